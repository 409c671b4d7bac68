package privacy_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"zimage/internal/objects"
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
		other := privacy.Stacks["postgres, s3"]
		if r.at.Stack == other {
			other = privacy.Stacks["sqlite, directory"]
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

		there := newRig(t, other, setup{})
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

// moved exports a person with one image, and opens another installation where that person has nothing yet.
func (r *rig) moved(t *testing.T) (there *rig, archive []byte, image string) {
	t.Helper()
	r.member("sub_ada")
	_, ids := r.generated("sub_ada", `{"prompt":"canary"}`, picture())
	_, archive = r.exported("sub_ada")
	there = newRig(t, r.at.Stack, setup{})
	there.member("sub_ada")
	there.clock.Advance(time.Hour)
	return there, archive, ids[0]
}

// What does not fit its manifest or its record, and what could put words of
// somebody's where they are not sealed, is refused.
func TestAnArchiveThatWasChangedIsNotImported(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		there, archive, id := r.moved(t)
		files, name := unpack(t, archive), "content/images/"+id+".png"
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
			"words in an id":      with("content/images.json", id, "img_ann"),
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

		there := newRig(t, r.at.Stack, setup{idle: true})
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

// interrupted is an object store in whose nth Put something happens before it is done.
type interrupted struct {
	objects.Store
	left int
	then func()
}

func (s *interrupted) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	if s.left--; s.left == 0 {
		s.then()
	}
	return s.Store.Put(ctx, key, r, size)
}

// An import is no job, and an erasure waits for none: one that goes on while the account
// is closed, or erased, ends and leaves nothing.
func TestPromise_R7_AnImportLeavesNothingToAnErasedAccount(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		r := newRig(t, h.at.Stack, setup{})
		r.member("sub_ada")
		for i := range 4 {
			r.generated("sub_ada", fmt.Sprintf(`{"prompt":"canary %d"}`, i), picture())
		}
		_, archive := r.exported("sub_ada")
		h.clock.Advance(time.Hour)
		for i, c := range []struct {
			when   string
			record int64 // behind it it happens; 0: behind an
			object int
			erased bool // otherwise it is closed, and erased when the import has ended
		}{
			{when: "a generation was written", record: 2, erased: true},
			{when: "an image was written", record: 5, erased: true},
			{when: "a picture is stored, and its thumbnail not yet", object: 3, erased: true},
			{when: "a thumbnail is stored, and the row not yet written", object: 4, erased: true},
			{when: "the same, closed alone", object: 4},
		} {
			p := h.newcomer(fmt.Sprintf("ann%d", i))
			var erasure string
			happens := func() {
				erasure, _ = h.close(p)
				if c.erased {
					must(t, h.erase(erasure))
				}
			}
			o := privacy.ImportOptions{Archive: bytes.NewReader(archive), Size: int64(len(archive)), Progress: func(n int64) {
				if n == c.record {
					happens()
				}
			}}
			h.away.Store = &interrupted{Store: h.store, left: c.object, then: happens}
			done, err := h.privacy.Import(t.Context(), p.id, o)
			h.away.Store = h.store
			if erasure == "" || err == nil || done.Records > 5 {
				t.Errorf("%s: %+v, %v", c.when, done, err)
			}
			if c.erased {
				if left := h.objects("images/" + p.id + "/"); len(left) > 0 {
					t.Errorf("%s: %v are left", c.when, left)
				}
			} else {
				must(t, h.erase(erasure))
			}
			h.erased(p)
			if n := h.count(`SELECT count(*) FROM generations`) + h.count(`SELECT count(*) FROM images`); n != 0 {
				t.Errorf("%s: %d rows are left", c.when, n)
			}
		}
	})
}

// rewritten is an archive with the records of a list changed, and its manifest to fit.
func rewritten(t testing.TB, archive []byte, list string, change func(record map[string]any), more map[string][]byte) []byte {
	t.Helper()
	files := unpack(t, archive)
	records := listOf(t, files, list)
	for _, r := range records {
		change(r)
	}
	var manifest map[string]any
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	manifest["files"] = []any{}
	changed := map[string][]byte{}
	for name, of := range map[string]any{list: records, "manifest.json": manifest} {
		text, err := json.Marshal(of)
		if err != nil {
			t.Fatal(err)
		}
		changed[name] = text
	}
	return added(t, repacked(t, archive, changed), more)
}

// added is an archive with more files, whatever it has.
func added(t testing.TB, archive []byte, more map[string][]byte) []byte {
	t.Helper()
	return packed(t, archive, func(z *zip.Writer) error {
		for name, data := range more {
			w, err := z.Create(name)
			if err == nil {
				_, err = w.Write(data)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// packed is an archive with what more writes into it.
func packed(t testing.TB, archive []byte, more func(z *zip.Writer) error) []byte {
	t.Helper()
	in, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range in.File {
		if err := z.Copy(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(more(z), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A record with an id of its own, and the place of a picture that is there, neither
// replaces nor deletes it.
func TestAnImportReplacesNoPicture(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		r.member("sub_ada")
		generation, ids := r.generated("sub_ada", `{"prompt":"canary"}`, picture())
		_, archive := r.exported("sub_ada")
		r.clock.Advance(time.Hour)
		fresh := db.NewID("img", r.clock.Now())
		bad := rewritten(t, archive, "content/images.json", func(record map[string]any) { record["id"] = fresh },
			map[string][]byte{"content/images/" + fresh + ".png": picture()})
		key := "images/sub_ada/" + generation + "/1/0.img"
		read := func() []byte {
			o, _, err := r.store.Get(t.Context(), key)
			r.must(err)
			data, err := io.ReadAll(o)
			r.must(errors.Join(err, o.Close()))
			return data
		}
		before := read()
		same := func(what string) {
			t.Helper()
			if !bytes.Equal(read(), before) {
				t.Errorf("%s: the picture was replaced", what)
			}
			if n := r.count(`SELECT count(*) FROM images WHERE id = '` + fresh + `'`); n != 0 {
				t.Errorf("%s: the record is there", what)
			}
		}
		done, err := r.imports("sub_ada", bad)
		if problem.CodeOf(err) != problem.Conflict || done.Records+done.Files != 0 {
			t.Errorf("the person's own: %+v, %v", done, err)
		}
		same("the person's own")
		r.member("sub_other")
		if _, err := r.imports("sub_other", bad); problem.CodeOf(err) != problem.Conflict {
			t.Errorf("somebody else's: %v", err)
		}
		same("somebody else's")

		// A generation that runs has its objects before their rows.
		exec := func(statement string, args ...any) {
			t.Helper()
			_, err := r.db.Exec(t.Context(), statement, args...)
			r.must(err)
		}
		exec(`DELETE FROM images WHERE id = ?`, ids[0])
		exec(`UPDATE generations SET status = '', finished_at = 0 WHERE id = ?`, generation)
		if done, err = r.imports("sub_ada", bad); err != nil || done.Deleted != 1 || done.Records+done.Files != 0 {
			t.Errorf("of a generation that runs: %+v, %v", done, err)
		}
		same("of a generation that runs")

		// What a broken import left, no row makes: it is stored anew.
		exec(`UPDATE generations SET status = 'succeeded', finished_at = created_at WHERE id = ?`, generation)
		if done, err = r.imports("sub_ada", archive); err != nil || done.Records != 1 || done.Files != 1 {
			t.Errorf("the archive itself: %+v, %v", done, err)
		}
	})
}

// Times that cannot be and places that no generation has are refused, before anything
// is stored.
func TestAnImportBelievesNoTimesOrPlaces(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		r.member("sub_ada")
		r.generated("sub_ada", `{"prompt":"canary"}`, picture())
		_, archive := r.exported("sub_ada")
		there := newRig(t, r.at.Stack, setup{})
		there.member("sub_ada")
		there.clock.Advance(time.Hour)
		now := there.clock.Now()
		at := func(d time.Duration) string { return now.Add(d).Format(time.RFC3339Nano) }
		const generations, images = "content/generations.json", "content/images.json"
		for _, c := range []struct {
			list, field string
			value       any
		}{
			{generations, "created_at", at(time.Second)},
			{generations, "created_at", nil},
			{generations, "started_at", at(-3 * time.Hour)},
			{generations, "finished_at", at(time.Second)},
			{generations, "removed_at", at(time.Second)},
			{generations, "removed_at", at(-3 * time.Hour)},
			{generations, "expires_at", nil},
			{generations, "expires_at", at(-3 * time.Hour)},
			{images, "created_at", at(50 * 365 * 24 * time.Hour)},
			{images, "removed_at", at(50 * 365 * 24 * time.Hour)},
			{images, "expires_at", nil},
			{images, "generation_id", db.NewID("gen", now)},
			{images, "generation_id", "gen_a/1/../other"},
			{images, "n", -1},
			{images, "n", 64},
		} {
			bad := rewritten(t, archive, c.list, func(record map[string]any) { record[c.field] = c.value }, nil)
			done, err := there.imports("sub_ada", bad)
			if problem.CodeOf(err) != problem.InvalidRequest || done.Records+done.Files != 0 {
				t.Errorf("%s %s %v: %+v, %v", c.list, c.field, c.value, done, err)
			}
			page, err := there.store.List(t.Context(), "images/", "", 10)
			r.must(err)
			if n := there.count(`SELECT count(*) FROM generations`); n != 0 || len(page) != 0 {
				t.Errorf("%s %s %v: %d generations and %d objects are there", c.list, c.field, c.value, n, len(page))
			}
		}
		// An end that is too far is brought near; one that is nearer is kept.
		later := rewritten(t, archive, generations, func(record map[string]any) { record["expires_at"] = at(50 * 365 * 24 * time.Hour) }, nil)
		later = rewritten(t, later, images, func(record map[string]any) { record["expires_at"] = at(24 * time.Hour) }, nil)
		if done, err := there.imports("sub_ada", later); err != nil || done.Records != 2 {
			t.Errorf("%+v, %v", done, err)
		}
		var ends struct {
			Generation int64 `db:"generation"`
			Image      int64 `db:"image"`
		}
		r.must(there.db.Get(t.Context(), &ends, `SELECT g.expires_at AS generation, i.expires_at AS image FROM generations g JOIN images i ON i.generation_id = g.id`))
		if ends.Generation > now.Add(90*24*time.Hour).UnixMilli() || ends.Image != now.Add(24*time.Hour).UnixMilli() {
			t.Errorf("the ends are %+v", ends)
		}
	})
}

// An archive that is small and unpacks to very much is refused before anything is
// stored, and so is one that says two things.
func TestAnImportIsBounded(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		there, archive, id := r.moved(t)
		files, name := unpack(t, archive), "content/images/"+id+".png"
		says := func(n int, packedSize, size uint64) []byte { // files that are there by their names alone
			return packed(t, archive, func(z *zip.Writer) error {
				for k := range n {
					if _, err := z.CreateRaw(&zip.FileHeader{Name: fmt.Sprint(k), Method: zip.Deflate, CompressedSize64: packedSize, UncompressedSize64: size}); err != nil {
						return err
					}
				}
				return nil
			})
		}
		spaces := func(list string, n int) []byte {
			return append(bytes.TrimSuffix(bytes.TrimSpace(files[list]), []byte("}")), append(bytes.Repeat([]byte(" "), n), '}')...)
		}
		twice := bytes.Replace(files["manifest.json"], []byte(`"files": [`), []byte(`"files": [{"path":"README.txt","sha256":"`+sum(files["README.txt"])+`"},`), 1)
		if bytes.Equal(twice, files["manifest.json"]) {
			t.Fatalf("the manifest is %.300s", twice)
		}
		for _, c := range []struct {
			what, want string
			archive    []byte
		}{
			{"a large manifest", "larger than any", repacked(t, archive, map[string][]byte{"manifest.json": spaces("manifest.json", 64<<20)})},
			{"a large file", "larger than any", says(1, 0, 128<<20+1)},
			{"very much", "unpacked", says(8193, 0, 128<<20)},
			{"files on the same bytes", "than itself", says(2, uint64(len(archive))/2, 10)},
			{"a file larger than the archive", "than itself", says(1, 1<<62, 10)},
			{"many files", "files", says(1<<19, 0, 0)},
			{"two files of one name", "one name", added(t, archive, map[string][]byte{name: picture()})},
			{"a file named twice", "twice", repacked(t, archive, map[string][]byte{"manifest.json": twice})},
			{"a large record", "bytes", rewritten(t, archive, "content/images.json", func(record map[string]any) { record["x"] = strings.Repeat("x", 1<<20) }, nil)},
			{"a large user", "bytes", rewritten(t, archive, "account/account.json", func(record map[string]any) { record["x"] = strings.Repeat("x", 1<<20) }, nil)},
			{"a record twice", "twice", doubled(t, archive, "content/images.json")},
			{"a list without its end", "end", cut(t, archive, "content/generations.json")},
		} {
			done, err := there.imports("sub_ada", c.archive)
			if problem.CodeOf(err) != problem.InvalidRequest || !strings.Contains(err.Error(), c.want) || done.Records+done.Files != 0 {
				t.Errorf("%s: %+v, %v", c.what, done, err)
			}
			page, err := there.store.List(t.Context(), "images/", "", 10)
			r.must(err)
			if n := there.count(`SELECT count(*) FROM generations`); n != 0 || len(page) != 0 {
				t.Errorf("%s: %d generations and %d objects are there", c.what, n, len(page))
			}
		}
		if done, err := there.imports("sub_ada", archive); err != nil || done.Records != 2 {
			t.Errorf("the archive itself: %+v, %v", done, err)
		}
	})
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// withList is an archive with another text of a list, which its manifest does not name.
func withList(t testing.TB, archive []byte, list string, change func(text []byte) []byte) []byte {
	t.Helper()
	loose := rewritten(t, archive, list, func(map[string]any) {}, nil)
	return repacked(t, loose, map[string][]byte{list: change(bytes.TrimSpace(unpack(t, loose)[list]))})
}

func doubled(t testing.TB, archive []byte, list string) []byte {
	return withList(t, archive, list, func(text []byte) []byte {
		records := bytes.Trim(text, "[]")
		return bytes.Join([][]byte{[]byte("["), records, []byte(","), records, []byte("]")}, nil)
	})
}

func cut(t testing.TB, archive []byte, list string) []byte {
	return withList(t, archive, list, func(text []byte) []byte { return bytes.TrimSuffix(text, []byte("]")) })
}
