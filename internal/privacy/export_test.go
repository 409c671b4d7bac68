package privacy_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

// Two people have a row in every table, with a canary in every column. The export
// of one has every column that the map exports, nothing that it keeps back, and
// nothing of the other.
func TestPromise_G1_TheExportHasEveryColumnOfTheMap(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ada, ben := r.plant("ada"), r.plant("benjamin")
		e, archive := r.exported(ada.owner)
		files := unpack(t, archive)
		var everything bytes.Buffer
		for name, data := range files {
			everything.WriteString(name)
			everything.Write(data)
		}
		has := func(what string) bool { return bytes.Contains(everything.Bytes(), []byte(what)) }
		columns := 0
		for _, table := range r.m.Tables {
			values := ada.tables[table.Name]
			if table.Store != privacy.StoreMain || table.Subject == "" {
				continue
			}
			var record map[string]any
			if table.Export != "" {
				for _, one := range listOf(t, files, table.Category+"/"+table.Export+".json") {
					if fmt.Sprint(one[table.Column(table.Key[0]).Export]) == fmt.Sprint(values[table.Key[0]]) {
						record = one
					}
				}
				if record == nil {
					t.Errorf("%s: the row is not in the export", table.Name)
				}
			}
			for _, c := range table.Columns {
				text, _ := values[c.Name].(string)
				if c.Export == "" {
					if strings.HasPrefix(text, "canary") && has(text) {
						t.Errorf("%s.%s is not exported, and is in the archive", table.Name, c.Name)
					}
					continue
				}
				columns++
				want := values[c.Name]
				switch {
				case c.Sealed == "ledger":
					facts := map[string]any{}
					for _, fact := range []string{"ref", "role", "reason", "purpose", "policy", "case", "authority", "scope", "state"} {
						facts[fact] = canary(ada.owner, "ledger", fact)
					}
					want = facts
				case want == nil:
				case c.Sealed == "json":
					want = map[string]any{"said": canary(ada.owner, table.Name, c.Name)}
				case c.Type == "words":
					want = strings.Fields(text)
				case c.Type == "flag":
					want = true
				case c.Type == "time" && want.(int64) == 0:
					want = nil
				case c.Type == "time":
					want = time.UnixMilli(want.(int64)).UTC().Format("2006-01-02T15:04:05.000Z")
				}
				if got := record[c.Export]; fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s.%s is %v, want %v", table.Name, c.Name, got, want)
				}
			}
			for _, theirs := range ben.tables[table.Name] {
				if text, _ := theirs.(string); (strings.HasPrefix(text, "canary") || strings.Contains(text, "benjamin")) && has(text) {
					t.Errorf("%s: the archive has another's %q", table.Name, text)
				}
			}
		}
		if columns < 100 {
			t.Errorf("only %d columns were looked for", columns)
		}
		if image := "content/images/" + ada.tables["images"]["id"].(string) + ".png"; !bytes.Equal(files[image], pictureOf(ada.owner, 0)) {
			t.Errorf("the picture is %q", files[image])
		}
		if has("sub-benjamin") || has("sub_benjamin") {
			t.Error("the archive names somebody else")
		}
		// Of the ledger, what the person may see: no staff, no trace of what is hidden.
		if list := listOf(t, files, "security/ledger.json"); len(list) != 1 || list[0]["kind"] != "staff.disclosed" || list[0]["at"] != "2031-03-03T12:00:00.000Z" ||
			list[0]["sealed"] != false || list[0]["damaged"] != false {
			t.Errorf("the ledger is %v", list)
		}
		if has(canary(ada.owner, "ledger", "staff")) || has("ledger hidden") || !has("Which member of staff it was") {
			t.Error("the ledger tells too much, or does not say what it leaves out")
		}
		// What is left out is said.
		var manifest struct {
			LeftOut []struct{ List, Holds, Why string } `json:"left_out"`
			Lists   []struct{ Kept []string }
		}
		r.must(json.Unmarshal(files["manifest.json"], &manifest))
		said := map[string]bool{}
		for _, o := range manifest.LeftOut {
			said[o.Why] = true
		}
		for _, table := range r.m.Tables {
			for _, c := range table.Columns {
				if why := c.NotExported + c.Without; why != "" && !said[why] {
					t.Errorf("that %s.%s is left out is not said", table.Name, c.Name)
				}
			}
		}
		if !has("At most 90 days after created_at") {
			t.Error("the window of content is not said")
		}
		if sum := sha256.Sum256(archive); e.Checksums.Archive != hex.EncodeToString(sum[:]) {
			t.Error("the checksum of the archive is another one")
		}
		// Sealed where it lies.
		for _, key := range r.archives() {
			sealed, _, err := r.store.Get(t.Context(), key)
			r.must(err)
			data, err := io.ReadAll(sealed)
			r.must(err)
			if bytes.Contains(data, []byte("PK\x03\x04")) || bytes.Contains(data, []byte("canary")) {
				t.Error("the archive is not sealed in the object store")
			}
		}
	})
}

const hostile = `</dd><script>alert('canary script')</script><img src=x onerror=alert(1)> ../../../etc/passwd "'&amp; ` + "\u202egnp.exe"

func TestPromise_G4_TheExportIsWholeStructuredAndReadable(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		const generations = 125 // more than a page
		pictures := map[string][]byte{}
		for i := range generations {
			request, err := json.Marshal(map[string]any{"prompt": fmt.Sprintf("%s %d", hostile, i), "n": 2, hostile: hostile})
			r.must(err)
			data := [][]byte{pictureOf(ada.owner, 2*i), bytes.Repeat(pictureOf(ada.owner, 2*i+1), 1000)}
			_, ids := r.generated(ada.owner, string(request), data...)
			pictures["content/images/"+ids[0]+".png"], pictures["content/images/"+ids[1]+".jpg"] = data[0], data[1]
		}
		e, archive := r.exported(ada.owner)
		files := unpack(t, archive)
		for name, data := range pictures {
			if !bytes.Equal(files[name], data) {
				t.Errorf("%s is not what was stored", name)
			}
		}

		// The manifest names every file but itself, right.
		var manifest struct {
			Format string
			Files  []struct {
				Path, SHA256 string
				Bytes        int
			}
			Lists []struct {
				Path, Schema string
				Records      int
			}
		}
		r.must(json.Unmarshal(files["manifest.json"], &manifest))
		sum := sha256.Sum256(files["manifest.json"])
		if e.Checksums.Manifest != hex.EncodeToString(sum[:]) || manifest.Format != "zimage-export/1" {
			t.Error("the checksum of the manifest is another one")
		}
		if len(manifest.Files) != len(files)-1 || int64(len(files)) != e.Files {
			t.Errorf("%d files in the manifest, %d in the archive, %d announced", len(manifest.Files), len(files), e.Files)
		}
		plainName := regexp.MustCompile(`^[A-Za-z0-9_-]+(/[a-z0-9_-]+)*(\.[a-z0-9]+)+$`)
		for _, f := range manifest.Files {
			sum := sha256.Sum256(files[f.Path])
			if len(files[f.Path]) != f.Bytes || hex.EncodeToString(sum[:]) != f.SHA256 {
				t.Errorf("%s has another size or checksum", f.Path)
			}
			if !plainName.MatchString(f.Path) {
				t.Errorf("a file is named %q", f.Path)
			}
		}

		// Every list is as its schema says, and has as many records as announced.
		records := 0
		for _, l := range manifest.Lists {
			schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(files[l.Schema]))
			r.must(err)
			c := jsonschema.NewCompiler()
			c.AssertFormat()
			r.must(c.AddResource(l.Schema, schema))
			compiled, err := c.Compile(l.Schema)
			r.must(err)
			list, err := jsonschema.UnmarshalJSON(bytes.NewReader(files[l.Path]))
			r.must(err)
			if err := compiled.Validate(list); err != nil {
				t.Errorf("%s: %v", l.Path, err)
			}
			if n := len(list.([]any)); n != l.Records || n == 0 {
				t.Errorf("%s has %d records, announced %d", l.Path, n, l.Records)
			}
			records += l.Records
			for _, more := range []any{append(list.([]any), map[string]any{}), []any{map[string]any{"unknown": 1}}} {
				if compiled.Validate(more) == nil {
					t.Errorf("%s: the schema takes anything", l.Path)
				}
			}
		}
		if int64(records) != e.Records {
			t.Errorf("%d records, announced %d", records, e.Records)
		}

		// The pages have no scripts, lead nowhere else, and show every record and picture.
		link := regexp.MustCompile(`(?:href|src)="([^"]*)"`)
		shown := map[string]bool{}
		for name, data := range files {
			if path.Ext(name) != ".html" {
				continue
			}
			text := string(data)
			if strings.Contains(text, "<script") || strings.Contains(text, "<img src=x") || strings.Contains(text, "</dd><") {
				t.Errorf("%s: what a person wrote became more than text", name)
			}
			for _, found := range link.FindAllStringSubmatch(text, -1) {
				to := path.Join(path.Dir(name), found[1])
				if _, there := files[to]; !there {
					t.Errorf("%s leads to %q", name, found[1])
				}
				shown[to] = true
			}
		}
		for name := range files {
			if !shown[name] && (strings.HasPrefix(name, "content/") || strings.HasPrefix(name, "pages/")) {
				t.Errorf("no page leads to %s", name)
			}
		}
		all := 0
		for i := 1; i <= 3; i++ {
			all += strings.Count(string(files[fmt.Sprintf("pages/content-images-%d.html", i)]), `loading="lazy"`)
		}
		if all != 2*generations+1 {
			t.Errorf("the pages show %d pictures", all)
		}
		for _, name := range []string{"pages/content-generations-2.html", "pages/content-images-3.html"} { // also beside its pictures
			if !strings.Contains(string(files[name]), "&lt;script&gt;alert(&#39;canary script&#39;)") {
				t.Errorf("%s does not show the prompt as it was written", name)
			}
		}
	})
}

// What has passed its window is in no export, although it waits to be removed.
func TestWhatIsOverIsNotExported(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		_, gone := r.generated(ada.owner, `{"prompt":"canary of the past"}`, pictureOf(ada.owner, 7))
		_, there := r.generated(ada.owner, `{"prompt":"canary of today"}`, pictureOf(ada.owner, 8))
		for _, table := range []string{"generations", "images"} {
			_, err := r.db.Exec(t.Context(), `UPDATE `+table+` SET expires_at = ? WHERE id IN (SELECT generation_id FROM images WHERE id = ?) OR id = ?`,
				r.clock.Millis(), gone[0], gone[0])
			r.must(err)
		}
		_, err := r.db.Exec(t.Context(), `UPDATE signups SET expires_at = ?`, r.clock.Millis())
		r.must(err)
		_, archive := r.exported(ada.owner)
		files := unpack(t, archive)
		for name, data := range files {
			if bytes.Contains(data, []byte("canary of the past")) || strings.Contains(name, gone[0]) {
				t.Errorf("%s has what is over", name)
			}
		}
		if files["content/images/"+there[0]+".png"] == nil || !bytes.Contains(files["content/generations.json"], []byte("canary of today")) {
			t.Error("what is not over is missing")
		}
		if list := listOf(t, files, "account/signups.json"); len(list) != 0 {
			t.Errorf("a sign-up that is over is exported: %v", list)
		}
		if n := len(listOf(t, files, "content/images.json")); n != 3 {
			t.Errorf("%d records of images: what is left of one that is over is a record", n)
		}
	})
}

// An export without something that belongs to its owner would not be whole: it
// fails, says why, and leaves nothing.
func TestAnExportFailsOnWhatIsMissingOrUnreadable(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		for i, c := range []struct {
			code  string
			spoil func(owner, generation, image string)
		}{
			{"object_missing", func(owner, generation, _ string) {
				r.must(r.store.Delete(t.Context(), "images/"+owner+"/"+generation+"/1/0.img"))
			}},
			{"unreadable", func(owner, generation, _ string) { // the object of another image, put in its place
				key := "images/" + owner + "/" + generation + "/1/0.img"
				other, _, err := r.store.Get(t.Context(), "images/"+owner+"/"+generation+"/1/1.img")
				r.must(err)
				data, err := io.ReadAll(other)
				r.must(errors.Join(err, other.Close(), r.store.Delete(t.Context(), key)))
				r.must(r.store.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))))
			}},
			{"unreadable", func(owner, _, image string) { // a sealed value of another row
				_, err := r.db.Exec(t.Context(), `UPDATE images SET sha256 = (SELECT sha256 FROM images WHERE owner = ? AND id <> ? LIMIT 1) WHERE id = ?`, owner, image, image)
				r.must(err)
			}},
		} {
			p := r.plant(fmt.Sprintf("ada%d", i))
			generation, ids := r.generated(p.owner, `{}`, pictureOf(p.owner, 1), pictureOf(p.owner, 2))
			c.spoil(p.owner, generation, ids[0])
			e := r.ended(r.ask(p.owner), p.owner, privacy.ExportFailed)
			if e.Code != c.code || e.Message == "" {
				t.Errorf("%s: the export says %q, %q", c.code, e.Code, e.Message)
			}
			if _, err := r.service.ExportArchive(t.Context(), p.owner, e.ID); problem.CodeOf(err) != problem.Conflict {
				t.Errorf("%s: the archive of a failed export: %v", c.code, err)
			}
			if n := r.count(`SELECT count(*) FROM mails WHERE template = 'export-ready'`); n > 0 {
				t.Errorf("%s: a mail says that it is ready", c.code)
			}
			if e := r.ask(p.owner); e.Status == privacy.ExportFailed { // it may be asked for again
				t.Error("the new export is the old one")
			}
		}
		if left := r.archives(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if strings.Contains(r.log.String(), "canary") || !strings.Contains(r.log.String(), "object_missing") {
			t.Error("the log does not say what is wrong, or too much")
		}
	})
}

// thief lets something happen before a picture is read.
type thief struct {
	objects.Store
	mu     sync.Mutex
	before func(key string)
}

func (s *thief) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	s.mu.Lock()
	if s.before != nil && strings.HasPrefix(key, "images/") {
		s.before(key)
	}
	s.mu.Unlock()
	return s.Store.Get(ctx, key)
}

// What its owner deletes while the export is made is left out, said, and no reason
// to fail, whether the row is a tombstone or gone.
func TestWhatIsRemovedMeanwhileFailsNoExport(t *testing.T) {
	for _, statement := range []string{
		`UPDATE images SET sha256 = NULL, removed_at = 7, removed_reason = 'user' WHERE id = ?`,
		`DELETE FROM images WHERE id = ?`,
	} {
		t.Run(strings.Fields(statement)[0], func(t *testing.T) {
			stacks(t, setup{wrap: func(s objects.Store) objects.Store { return &thief{Store: s} }}, func(t *testing.T, r *rig) {
				ada := r.plant("ada")
				generation, ids := r.generated(ada.owner, `{}`, pictureOf(ada.owner, 1), pictureOf(ada.owner, 2))
				key := "images/" + ada.owner + "/" + generation + "/1/0.img"
				r.service.Objects.(*thief).before = func(k string) {
					if k == key {
						_, err := r.db.Exec(t.Context(), statement, ids[0])
						if err := errors.Join(err, r.store.Delete(t.Context(), key)); err != nil {
							t.Error(err)
						}
					}
				}
				_, archive := r.exported(ada.owner)
				files := unpack(t, archive)
				if files["content/images/"+ids[0]+".png"] != nil || !bytes.Equal(files["content/images/"+ids[1]+".jpg"], pictureOf(ada.owner, 2)) {
					t.Error("the wrong picture is left out")
				}
				if !bytes.Contains(files["manifest.json"], []byte(`"removed_while_it_was_made": 1`)) || !bytes.Contains(files["index.html"], []byte("1 file was removed")) {
					t.Error("what is left out is not said")
				}
			})
		})
	}
}

// Whoever recovers an account, or closes it, has no export left from before: at
// once for whoever asks, and soon in the store.
func TestRecoveryAndClosingVoidExports(t *testing.T) {
	for _, why := range []events.Type{events.AccountRecovered, events.AccountClosing} {
		t.Run(string(why), func(t *testing.T) {
			stacks(t, setup{}, func(t *testing.T, r *rig) {
				ada, ben := r.plant("ada"), r.plant("benjamin")
				e, _ := r.exported(ada.owner)
				kept, _ := r.exported(ben.owner)
				r.must(r.db.Tx(t.Context(), func(tx *db.Tx) error {
					return r.service.Happened(t.Context(), tx, events.Event{Type: why, Subject: ada.owner})
				}))
				_, err := r.service.Export(t.Context(), ada.owner, e.ID)
				refuses(t, "the export", err, problem.NotFound)
				_, err = r.service.ExportArchive(t.Context(), ada.owner, e.ID)
				refuses(t, "its archive", err, problem.NotFound)
				r.swept()
				if left := r.archives(); len(left) != 1 || !strings.Contains(left[0], kept.ID) {
					t.Errorf("left: %v", left)
				}
				r.mend(25 * time.Hour)
				r.swept()
				if n := r.count(`SELECT count(*) FROM exports WHERE id = ?`, e.ID); n != 0 {
					t.Error("the row stays for longer than its day")
				}
			})
		})
	}
}

func refuses(t testing.TB, what string, err error, want problem.Code) {
	t.Helper()
	if err == nil || problem.CodeOf(err) != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// One that is being made stops when it is removed, and leaves nothing.
func TestARemovedExportStops(t *testing.T) {
	allStacks(t, setup{wrap: func(s objects.Store) objects.Store { return &thief{Store: s} }}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		reached, leave := make(chan struct{}), make(chan struct{})
		var once sync.Once
		r.service.Objects.(*thief).before = func(string) { once.Do(func() { close(reached); <-leave }) }
		e := r.ask(ada.owner)
		<-reached
		r.must(r.service.DeleteExport(t.Context(), ada.owner, e.ID))
		_, err := r.service.Export(t.Context(), ada.owner, e.ID)
		refuses(t, "a removed export", err, problem.NotFound)
		close(leave)
		testenv.Eventually(t, 60*time.Second, func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND ref = ? AND state IN ('failed', 'canceled')`, privacy.KindExport, e.ID) == 1
		})
		r.mend(2 * jobs.Lease)
		r.swept()
		if left := r.archives(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		if n := r.count(`SELECT count(*) FROM mails WHERE template = 'export-ready'`); n > 0 {
			t.Error("a mail says that it is ready")
		}
	})
}

func TestAnExportIsGoneAfterSevenDays(t *testing.T) {
	allStacks(t, setup{}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		e, _ := r.exported(ada.owner)
		r.mend(7*24*time.Hour - time.Second)
		r.swept()
		if _, err := r.service.ExportArchive(t.Context(), ada.owner, e.ID); err != nil {
			t.Errorf("a second before its end: %v", err)
		}
		r.mend(time.Second)
		_, err := r.service.ExportArchive(t.Context(), ada.owner, e.ID)
		refuses(t, "an export behind its end", err, problem.NotFound)
		if list, err := r.service.Exports(t.Context(), ada.owner); err != nil || len(list) != 0 {
			t.Errorf("after its end: %v %v", list, err)
		}
		r.swept()
		if left := r.archives(); len(left) != 0 || r.count(`SELECT count(*) FROM exports WHERE id = ?`, e.ID) != 0 {
			t.Errorf("after the sweep: %v", left)
		}
	})
}

func TestOneExportAtATimeAndThreeADay(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		r.plant("benjamin")
		race := func() (won int, id string) {
			t.Helper()
			var mu sync.Mutex
			var work sync.WaitGroup
			for range 8 {
				work.Go(func() {
					e, err := r.service.AskExport(context.Background(), ada.owner)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won, id = won+1, e.ID
					} else if problem.CodeOf(err) != problem.Conflict {
						t.Errorf("the second of two: %v", err)
					}
				})
			}
			work.Wait()
			return won, id
		}
		for range 3 {
			r.clock.Advance(time.Minute)
			won, id := race()
			if won != 1 {
				t.Fatalf("%d of 8 requests at once were taken", won)
			}
			r.must(r.service.DeleteExport(t.Context(), ada.owner, id)) // deleting does not help
		}
		_, err := r.service.AskExport(t.Context(), ada.owner)
		refuses(t, "a ninth request", err, problem.DailyLimit)
		var limit *problem.Error
		if errors.As(err, &limit) && limit.RetryAfter != 24*time.Hour-2*time.Minute {
			t.Errorf("try again after %v", limit.RetryAfter)
		}
		if n := r.count(`SELECT count(*) FROM mails WHERE template = 'export-asked' AND subject = ?`, ada.owner); n != 3 {
			t.Errorf("%d mails for three requests", n)
		}
		r.ask("sub_benjamin")
		r.clock.Advance(limit.RetryAfter)
		r.ask(ada.owner)
	})
}

// Restricted and suspended people get their data; nobody does once the account is
// closing.
func TestPromise_G1_InEveryStateOfTheAccount(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		set := func(change string) {
			t.Helper()
			_, err := r.db.Exec(t.Context(), `UPDATE subjects SET `+change+` WHERE id = ?`, ada.owner)
			r.must(err)
		}
		set(`restricted_at = 5, suspended_at = 6`)
		r.exported(ada.owner)
		set(`state = 'closing'`)
		_, err := r.service.AskExport(t.Context(), ada.owner)
		refuses(t, "a closed account", err, problem.Unauthorized)
	})
}

// What a worker that was taken for dead stores late, nobody needs: it goes with the
// next sweep. What has no row may be another installation's.
func TestLateArchivesAreSwept(t *testing.T) {
	allStacks(t, setup{}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		e := r.ended(r.ask(ada.owner), ada.owner, privacy.ExportReady)
		data := pictureOf(ada.owner, 9)
		_, err := r.store.PutStream(t.Context(), "exports/"+ada.owner+"/"+e.ID+"/7.zip", strings.NewReader(string(data)))
		r.must(err)
		rowless := []string{"exports/" + ada.owner + "/exp_unknown/1.zip", "exports/sub_another/exp_unknown/1.zip"}
		for _, key := range rowless {
			_, err = r.store.PutStream(t.Context(), key, strings.NewReader(string(data)))
			r.must(err)
		}
		r.swept()
		want := append(rowless, "exports/"+ada.owner+"/"+e.ID+"/1.zip")
		slices.Sort(want)
		if left := r.archives(); !slices.Equal(left, want) {
			t.Errorf("left %v, want %v", left, want)
		}
		unpack(t, r.fetch(e, ada.owner))
	})
}
