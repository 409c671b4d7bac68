package privacy_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/privacy"
	"zimage/internal/problem"
)

// member is somebody with an account.
func (r *rig) member(id string) {
	r.t.Helper()
	r.people(id)
	r.insert("users", map[string]any{"id": id, "email_lookup": id, "email": r.seal(id, "users", "email", id, id+"@example.org"), "password": "", "created_at": 1,
		"username": r.seal(id, "users", "username", id, "Name-of-"+strings.TrimPrefix(id, "sub_")), "username_lookup": id,
		"profile":     r.seal(id, "users", "profile", id, `{"name":"Ada"}`),
		"preferences": r.seal(id, "users", "preferences", id, `{"width":64,"height":64}`)})
}

func (r *rig) imports(owner string, archive []byte) (privacy.Imported, error) {
	return r.service.Import(context.Background(), owner, privacy.ImportOptions{Archive: bytes.NewReader(archive), Size: int64(len(archive)),
		Valid: func(_, _ string, text []byte) error {
			if bytes.Contains(text, []byte("unreadable")) {
				return errors.New("unreadable")
			}
			return nil
		}})
}

// repacked is an archive with some files changed; nil: without it.
func repacked(t testing.TB, archive []byte, change map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range unpack(t, archive) {
		if with, ok := change[name]; ok {
			if with == nil {
				continue
			}
			data = with
		}
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An export that is imported into an empty installation, on the other database,
// and exported there again has the same records and bytes of all that its person
// made, but for the person's id.
func TestPromise_G4_AnImportGivesTheSameRecordsAndBytes(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		dialect := db.Postgres
		if r.db.Dialect() == db.Postgres {
			dialect = db.SQLite
		}
		r.member("sub_ada")
		var second bytes.Buffer
		r.must(jpeg.Encode(&second, image.NewGray(image.Rect(0, 0, 9, 7)), nil))
		const generations = 60 // images on two pages
		for i := range generations {
			r.generated("sub_ada", fmt.Sprintf(`{"prompt":"canary %d ä\u0000€ <b>","n":2,"steps":8,"seed":%d,"guidance":0.1,"metadata":{"order":"17"}}`, i, 1<<32-1-i), picture(), second.Bytes())
		}
		// One that failed, one that was deleted, one that has not ended, one whose
		// window is over.
		change := func(statement string, args ...any) {
			t.Helper()
			_, err := r.db.Exec(t.Context(), statement, args...)
			r.must(err)
		}
		failed, _ := r.generated("sub_ada", `{"prompt":"canary of a failure"}`)
		change(`UPDATE generations SET status = 'failed', error_code = 'engine_failed', attempts = 5 WHERE id = ?`, failed)
		deleted, images := r.generated("sub_ada", `{}`, picture())
		for _, table := range []string{"generations", "images"} {
			change(`UPDATE `+table+` SET removed_at = created_at + 1, removed_reason = 'user' WHERE id IN (?, ?)`, deleted, images[0])
		}
		change(`UPDATE generations SET request = NULL WHERE id = ?`, deleted)
		change(`UPDATE images SET sha256 = NULL WHERE id = ?`, images[0])
		open, _ := r.generated("sub_ada", `{"prompt":"canary of one that runs"}`)
		change(`UPDATE generations SET status = '', finished_at = 0 WHERE id = ?`, open)
		_, archive := r.exported("sub_ada")
		files := unpack(t, archive)

		there := newRig(t, dialect, setup{})
		there.member("sub_other")
		there.clock.Advance(time.Hour)
		done, err := there.imports("sub_other", archive)
		r.must(err)
		if done.Records != 3*generations+3 || done.Files != 2*generations || done.Unfinished != 1 || done.There+done.Over+done.Deleted != 0 {
			t.Errorf("%+v", done)
		}
		if done.Username != "Name-of-ada" || string(done.Profile) != `{"name":"Ada"}` || string(done.Preferences) != `{"width":64,"height":64}` {
			t.Errorf("the account had %s %s %s", done.Username, done.Profile, done.Preferences)
		}
		_, again := there.exported("sub_other")
		copied := unpack(t, again)
		pictures := 0
		for name, data := range files {
			if strings.HasPrefix(name, "content/images/") {
				pictures++
				if !bytes.Equal(copied[name], data) {
					t.Errorf("%s has other bytes", name)
				}
			}
		}
		if pictures != 2*generations {
			t.Errorf("%d pictures", pictures)
		}
		same := func(list string) {
			t.Helper()
			var want []string
			for line := range strings.Lines(string(files[list])) {
				if !strings.Contains(line, open) {
					want = append(want, strings.TrimSuffix(strings.ReplaceAll(line, "sub_ada", "sub_other"), ",\n"))
				}
			}
			for i, line := range strings.Split(string(copied[list]), "\n") {
				if line = strings.TrimSuffix(line, ","); i < len(want) && line != strings.TrimSuffix(want[i], "\n") {
					t.Errorf("%s, line %d:\n%s\nwant\n%s", list, i, line, want[i])
				}
			}
			if n := strings.Count(string(copied[list]), "\n"); n != len(want) {
				t.Errorf("%s has %d lines, want %d", list, n, len(want))
			}
		}
		same("content/generations.json")
		same("content/images.json")
		same("schemas/content/images.schema.json")

		// The small pictures are made anew, and everything opens through the map.
		small := 0
		page, err := there.store.List(t.Context(), "images/sub_other/", "", 1000)
		r.must(err)
		for _, o := range page {
			sealed, _, err := there.store.Get(t.Context(), o.Key)
			r.must(err)
			plain, err := there.vault.UnsealReader(t.Context(), "sub_other", sealed, there.m.Object(o.Key).Bound(o.Key))
			r.must(err)
			data, err := io.ReadAll(plain)
			if err != nil || sealed.Close() != nil {
				t.Errorf("%s: %v", o.Key, err)
			}
			if strings.HasSuffix(o.Key, ".thumb") && bytes.HasPrefix(data, []byte("\xff\xd8")) {
				small++
			}
		}
		if small != 2*generations {
			t.Errorf("%d small pictures", small)
		}

		// Once more changes nothing; somebody else gets nothing of it.
		if done, err = there.imports("sub_other", archive); err != nil || done.There != 3*generations+3 || done.Records+done.Files != 0 {
			t.Errorf("once more: %+v, %v", done, err)
		}
		there.member("sub_third")
		if done, err = there.imports("sub_third", archive); problem.CodeOf(err) != problem.Conflict || done.Records != 0 {
			t.Errorf("somebody else: %+v, %v", done, err)
		}
		if n := there.count(`SELECT count(*) FROM generations WHERE owner = 'sub_third'`); n != 0 {
			t.Errorf("somebody else has %d", n)
		}
	})
}

// What does not fit its manifest or its record, and what could put words of
// somebody's where they are not sealed, is refused.
func TestAnArchiveThatWasChangedIsNotImported(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		r.member("sub_ada")
		_, ids := r.generated("sub_ada", `{"prompt":"canary"}`, picture())
		_, archive := r.exported("sub_ada")
		there := newRig(t, r.db.Dialect(), setup{})
		there.member("sub_ada")
		files := unpack(t, archive)
		name := "content/images/" + ids[0] + ".png"
		// with is the archive with a file changed, and its manifest to fit.
		with := func(list, from, to string) []byte {
			t.Helper()
			data := bytes.ReplaceAll(files[list], []byte(from), []byte(to))
			if bytes.Equal(data, files[list]) {
				t.Fatalf("%s does not have %q", list, from)
			}
			var manifest map[string]any
			r.must(json.Unmarshal(files["manifest.json"], &manifest))
			var rest []any
			for _, f := range manifest["files"].([]any) {
				if f.(map[string]any)["path"] != list {
					rest = append(rest, f)
				}
			}
			manifest["files"] = rest
			text, err := json.Marshal(manifest)
			r.must(err)
			return repacked(t, archive, map[string][]byte{list: data, "manifest.json": text})
		}
		for what, bad := range map[string][]byte{
			"no zip":              []byte("canary"),
			"cut off":             archive[:len(archive)-100],
			"no manifest":         repacked(t, archive, map[string][]byte{"manifest.json": nil}),
			"another form":        repacked(t, archive, map[string][]byte{"manifest.json": []byte(`{"format":"other/1"}`)}),
			"a changed picture":   repacked(t, archive, map[string][]byte{name: pictureOf("sub_ada", 1)}),
			"no picture":          repacked(t, archive, map[string][]byte{name: nil}),
			"a changed list":      repacked(t, archive, map[string][]byte{"content/generations.json": []byte("[]")}),
			"a picture unlike it": with(name, "PNG", "PNH"),
			"words in a model":    with("content/generations.json", `"model":"m"`, `"model":"my name is Ann"`),
			"words in an id":      with("content/images.json", ids[0], "img_ann"),
			"a list of nothing":   with("content/images.json", "[", "{"),
			"a number in words":   with("content/images.json", `"width":8`, `"width":"8"`),
			"a field too few":     with("content/images.json", `"width":8,`, ``),
			"a time in words":     with("content/images.json", `"created_at":"`, `"created_at":"on `),
			"an unknown request":  with("content/generations.json", `"prompt":"canary"`, `"prompt":"unreadable"`),
		} {
			done, err := there.imports("sub_ada", bad)
			if problem.CodeOf(err) != problem.InvalidRequest || strings.Contains(err.Error(), "Ann") {
				t.Errorf("%s: %+v, %v", what, done, err)
			}
			if n := there.count(`SELECT count(*) FROM images`); n != 0 {
				t.Errorf("%s: %d images are there", what, n)
			}
		}
		// A generation may be there already, from before the record that was refused.
		if done, err := there.imports("sub_ada", archive); err != nil || done.Records+done.There != 2 || done.Files != 1 {
			t.Errorf("the archive itself: %+v, %v", done, err)
		}
	})
}

// What is past its window is not brought back, what was deleted here neither, and
// nothing lives longer than the window here allows.
func TestAnImportBringsNothingBack(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		r.member("sub_ada")
		old, _ := r.generated("sub_ada", `{"prompt":"canary"}`, picture())
		r.clock.Advance(24 * time.Hour)
		young, _ := r.generated("sub_ada", `{"prompt":"canary"}`, picture())
		gone, _ := r.generated("sub_ada", `{"prompt":"canary"}`, picture())
		_, archive := r.exported("sub_ada")

		there := newRig(t, r.db.Dialect(), setup{idle: true})
		there.member("sub_ada")
		there.clock.Advance(90*24*time.Hour + time.Millisecond) // the end of the old one
		_, err := there.keys.Exec(t.Context(), `INSERT INTO erasure_journal (kind, id, erasure, at) VALUES ('generation', ?, '', 1)`, gone)
		r.must(err)
		done, err := there.imports("sub_ada", archive)
		r.must(err)
		if done.Records != 2 || done.Over != 2 || done.Deleted != 2 {
			t.Errorf("%+v", done)
		}
		var ids []string
		r.must(there.db.Select(t.Context(), &ids, `SELECT id FROM generations`))
		if len(ids) != 1 || ids[0] != young {
			t.Errorf("there are %v, and not %s", ids, old)
		}
		// A closed account takes nothing.
		_, err = there.db.Exec(t.Context(), `UPDATE subjects SET state = 'closing'`)
		r.must(err)
		if _, err := there.imports("sub_ada", archive); problem.CodeOf(err) != problem.Unauthorized {
			t.Errorf("a closing account: %v", err)
		}
	})
}
