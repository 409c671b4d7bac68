package privacy_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

// A window that became shorter is applied to what is stored, by any number of
// processes at once; one that became longer raises nothing.
func TestPromise_R3_AShorterWindowIsForWhatIsStored(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		images := h.paint(p, 3)
		crowd := h.paint(p, 1)[0]
		// Very many, in a few statements.
		_, err := h.db.Exec(ctx, `WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < 1200)
			INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
			SELECT 'img_many_' || k.n, 'gen_many_' || k.n, owner, 0, 1, 1, 1, 'png', 1, 1, sha256, created_at, expires_at, 0, '' FROM images, k WHERE id = ?`, crowd)
		must(t, err)
		_, err = h.db.Exec(ctx, `UPDATE images SET expires_at = created_at + 864000000 WHERE id = ?`, images[0]) // ten days
		must(t, err)
		generation := ""
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, images[1]))
		at := func(days int) {
			h.options.Policy = privacy.DefaultPolicy()
			h.options.Policy.Windows.GeneratedContent = privacy.Days(days)
			h.rooms()
		}
		spans := func() (longest, shortest int) {
			return h.count(`SELECT max(expires_at - created_at) / 86400000 FROM (SELECT expires_at, created_at FROM images UNION ALL SELECT expires_at, created_at FROM generations) AS everything`),
				h.count(`SELECT min(expires_at - created_at) / 86400000 FROM images`)
		}
		h.clock.Advance(61 * day)
		if ways := h.readable(p, images[1], generation); len(ways) != 5 {
			t.Fatalf("before, it can be read by %v", ways)
		}
		at(60)
		var work sync.WaitGroup
		for range 3 {
			work.Go(func() {
				if _, err := h.privacy.ShortenWindows(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		if longest, shortest := spans(); longest != 60 || shortest != 10 {
			t.Errorf("rows are kept for %d to %d days, want 10 to 60", shortest, longest)
		}
		if ways := h.readable(p, images[1], generation); len(ways) != 0 {
			t.Errorf("it can be read by %v", ways)
		}
		if n, err := h.privacy.ShortenWindows(ctx); n != 0 || err != nil {
			t.Errorf("a second time %d rows, %v", n, err)
		}
		at(90)
		if n, err := h.privacy.ShortenWindows(ctx); n != 0 || err != nil {
			t.Errorf("a longer window changes %d rows, %v", n, err)
		}
		if longest, shortest := spans(); longest != 60 || shortest != 10 {
			t.Errorf("after a longer window rows are kept for %d to %d days", shortest, longest)
		}
	})
}

// dated is an object store whose objects are as old as the test says: others than
// these were stored long ago.
type dated struct {
	objects.Store
	young map[string]bool
	now   func() time.Time
}

func (d dated) List(ctx context.Context, prefix, after string, limit int) ([]objects.Info, error) {
	page, err := d.Store.List(ctx, prefix, after, limit)
	for i := range page {
		page[i].Modified = d.now().Add(-49 * time.Hour)
		if d.young[page[i].Key] {
			page[i].Modified = d.now().Add(-47 * time.Hour)
		}
	}
	return page, err
}

// Database and object store are compared both ways: what no row needs goes once it
// is two days old, what is not ours stays, and what is missing is told.
func TestPromise_R3_DatabaseAndObjectsAreComparedBothWays(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p, q := h.newcomer("ann"), h.newcomer("ben")
		const many = 320 // pictures, with two objects each: several pages
		images := h.paint(p, many)
		other := h.paint(q, 3)
		fresh := dated{h.store, map[string]bool{}, h.clock.Now}
		h.away.Store = fresh
		h.clock.Advance(50 * time.Hour)
		compare := func(want privacy.Comparison) {
			t.Helper()
			got, err := h.privacy.Compare(ctx)
			want.Objects = got.Objects
			if err != nil || got != want {
				t.Errorf("found %+v, %v, want %+v", got, err, want)
			}
		}
		compare(privacy.Comparison{})
		key := func(image, end string) (key string) {
			must(t, h.db.Get(ctx, &key, `SELECT 'images/' || owner || '/' || generation_id || '/' || attempt || '/' || n FROM images WHERE id = ?`, image))
			return key + end
		}
		put := func(key string) {
			must(t, h.store.Put(ctx, key, bytes.NewReader([]byte("x")), 1))
		}
		orphans := []string{
			"images/" + p.id + "/gen_0/1/0.img", "images/" + p.id + "/gen_zz/1/0.thumb", strings.Replace(key(images[7], ".img"), "/1/0.", "/2/0.", 1),
			"held/" + p.id + "/hold_gone/gen_0/1/0.img", "exports/" + p.id + "/exp_gone/1.zip",
		}
		strange := []string{"images/sub_nobody/gen_0/1/0.img", "images/" + p.id + "/gen_0/notes.txt", "backups/main.tar"}
		young := "images/" + p.id + "/gen_1/1/0.img"
		for _, k := range slices.Concat(orphans, strange, []string{young}) {
			put(k)
		}
		fresh.young[young] = true
		missing := []string{key(images[0], ".img"), key(images[many-1], ".thumb"), key(other[1], ".img")}
		must(t, h.store.Delete(ctx, missing...))
		must(t, h.store.Delete(ctx, key(other[2], ".img"), key(other[2], ".thumb")))
		late := h.paint(q, 1)[0] // just being stored
		must(t, h.store.Delete(ctx, key(late, ".img")))
		compare(privacy.Comparison{Orphans: len(orphans), Unknown: len(strange), Missing: len(missing) + 2})
		left := h.objects("")
		for _, k := range orphans {
			if slices.Contains(left, k) {
				t.Errorf("%s is left", k)
			}
		}
		for _, k := range append(strange, young) {
			if !slices.Contains(left, k) {
				t.Errorf("%s is gone", k)
			}
		}
		if want := (many+4)*2 - len(missing) - 3 + len(strange) + 1; len(left) != want {
			t.Errorf("%d objects are left, want %d", len(left), want)
		}
		if n := h.count(`SELECT count(*) FROM images WHERE removed_at = 0`); n != many+4 {
			t.Errorf("%d rows are left: nothing is mended in silence", n)
		}
		compare(privacy.Comparison{Unknown: len(strange), Missing: len(missing) + 2})
		must(t, h.privacy.Look(ctx, false))
		if n, m := h.figure("zimage_objects_missing"), h.figure("zimage_objects_unknown"); n != 5 || m != 3 {
			t.Errorf("the figures tell %v missing and %v unknown", n, m)
		}
		if strings.Contains(h.log.String(), p.id) {
			t.Error("the log names a person")
		}
		h.away.set(true)
		if _, err := h.privacy.Compare(ctx); err == nil {
			t.Error("a comparison without the store says that it is done")
		}
	})
}

// A wrong, an empty or an old main database makes orphans of everybody's pictures:
// none is deleted then, and it is told.
func TestPromise_R3_AWrongDatabaseDeletesNoPictures(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		images := h.paint(h.newcomer("ann"), 51) // two objects each: beyond a hundred
		again := &listings{Store: dated{h.store, nil, h.clock.Now}}
		h.away.Store = again
		h.clock.Advance(50 * time.Hour)
		compare := func(want privacy.Comparison, left int) {
			t.Helper()
			got, err := h.privacy.Compare(ctx)
			if err != nil || got != want {
				t.Errorf("found %+v, %v, want %+v", got, err, want)
			}
			if n := len(h.objects("images/")); n != left {
				t.Errorf("%d objects are left, want %d", n, left)
			}
		}
		told := func(want bool) {
			t.Helper()
			st, err := h.privacy.Measure(ctx)
			must(t, err)
			if broken := slices.ContainsFunc(st.Broken, func(p privacy.Promise) bool { return p.Code == "objects_whole" }); broken != want {
				t.Errorf("the promise is broken: %v", broken)
			}
		}
		h.exec(`UPDATE images SET removed_at = 1`)
		compare(privacy.Comparison{Objects: 102, Refused: 102}, 102)
		told(true)
		must(t, h.privacy.Look(ctx, false))
		if n := h.figure("zimage_objects_refused"); n != 102 {
			t.Errorf("the figure tells %v", n)
		}
		if !strings.Contains(h.log.String(), "not deleted") {
			t.Error("the log says nothing")
		}
		// The right one, of which a row is written while it is compared.
		h.exec(`UPDATE images SET removed_at = 0 WHERE id <> ? AND id <> ?`, images[3], images[4])
		again.second = func() { h.exec(`UPDATE images SET removed_at = 0 WHERE id = ?`, images[4]) }
		compare(privacy.Comparison{Objects: 102, Orphans: 2}, 100)
		told(false)
		// One that is exchanged while it is compared.
		h.paint(h.newcomer("ben"), 1)
		h.clock.Advance(50 * time.Hour)
		h.exec(`UPDATE images SET removed_at = 1 WHERE id = ?`, images[0])
		again.first = 0
		again.second = func() { h.exec(`UPDATE images SET removed_at = 1`) }
		compare(privacy.Comparison{Objects: 102, Refused: 102}, 102)
	})
}

// What a hold keeps of somebody who is erased lies elsewhere, and is not missing where it
// was.
func TestPromise_R8_WhatIsHeldOfTheErasedIsNotMissing(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		p, other := h.newcomer("ann"), h.newcomer("ben")
		_, err := h.place(p.id, "images", h.paint(p, 2)[0])
		must(t, err)
		h.paint(other, 1)
		id, _ := h.close(p)
		compare := func(want privacy.Comparison) {
			t.Helper()
			got, err := h.privacy.Compare(t.Context())
			if err != nil || got != want {
				t.Errorf("found %+v, %v, want %+v", got, err, want)
			}
		}
		h.clock.Advance(50 * time.Hour)
		h.privacy.EndAt(func(step string, _ privacy.Phase) error {
			if step == "rows_deleted" { // the objects are gone, and the rows are there
				compare(privacy.Comparison{Objects: 4})
			}
			return nil
		})
		must(t, h.erase(id))
		mirrored := len(h.objects("journal/"))
		compare(privacy.Comparison{Objects: 4 + mirrored})
		must(t, h.store.Delete(t.Context(), h.objects("images/"+other.id+"/")...))
		compare(privacy.Comparison{Objects: 2 + mirrored, Missing: 2})
		if n := len(h.objects("held/" + p.id + "/")); n != 2 {
			t.Errorf("%d are held", n)
		}
	})
}

// What a hold kept beyond its end goes with the release, and not an hour later: until
// then the status would say that a promise is broken.
func TestPromise_R8_WhatWasHeldBeyondItsEndGoesWithTheRelease(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		p := h.newcomer("ben")
		hold, err := h.place(p.id, "images", h.paint(p, 1)[0])
		must(t, err)
		h.work()
		h.clock.Advance(91 * day)
		h.schedule()
		if n := h.count(`SELECT count(*) FROM images WHERE removed_at = 0`); n != 1 || len(h.objects("images/")) != 2 {
			t.Fatalf("%d images are held", n)
		}
		must(t, h.privacy.ReleaseHold(t.Context(), h.machine(), hold.ID))
		testenv.Eventually(t, 30*time.Second, func() bool {
			return len(h.objects("")) == 0 && h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`) == 0
		})
		st, err := h.privacy.Measure(t.Context())
		if must(t, err); slices.ContainsFunc(st.Broken, func(b privacy.Promise) bool { return b.Code == "retention_content" }) {
			t.Error("the status says that content is kept too long")
		}
	})
}

// However few they are: of people whom the database does not know nothing is deleted. Whoever
// was erased is known.
func TestPromise_R3_NothingIsDeletedOfPeopleWhomTheDatabaseDoesNotKnow(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		lost, gone := h.newcomer("ann"), h.newcomer("ben")
		h.paint(lost, 2)
		id, _ := h.close(gone)
		must(t, h.erase(id))
		left := "images/" + gone.id + "/gen_0/1/0.img"
		must(t, h.store.Put(ctx, left, bytes.NewReader([]byte("x")), 1))
		h.away.Store = dated{h.store, nil, h.clock.Now}
		h.clock.Advance(50 * time.Hour)
		var at int64
		must(t, h.db.Get(ctx, &at, `SELECT created_at FROM subjects WHERE id = ?`, lost.id))
		for _, forget := range []string{`DELETE FROM images WHERE owner = ?`, `DELETE FROM generations WHERE owner = ?`, `DELETE FROM sessions WHERE owner = ?`, `DELETE FROM users WHERE id = ?`, `DELETE FROM subjects WHERE id = ?`} {
			h.exec(forget, lost.id)
		}
		compare := func(want privacy.Comparison, of person, there int) {
			t.Helper()
			got, err := h.privacy.Compare(ctx)
			if err != nil || got != want {
				t.Errorf("found %+v, %v, want %+v", got, err, want)
			}
			if n := len(h.objects("images/" + of.id + "/")); n != there {
				t.Errorf("%d objects are left, want %d", n, there)
			}
		}
		mirrored := len(h.objects("journal/"))
		compare(privacy.Comparison{Objects: 5 + mirrored, Orphans: 1, Refused: 4}, lost, 4)
		if n := len(h.objects(left)); n != 0 {
			t.Error("what an erased person left stays")
		}
		h.promised("objects_whole")
		if !strings.Contains(h.log.String(), "not deleted") {
			t.Error("the log says nothing")
		}
		compare(privacy.Comparison{Objects: 4 + mirrored, Refused: 4}, lost, 4)
		h.exec(`INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, 'active', ?, ?)`, lost.id, at, at)
		compare(privacy.Comparison{Objects: 4 + mirrored, Orphans: 4}, lost, 0)
	})
}

// listings is an object store where something happens before all is listed for the
// second time.
type listings struct {
	objects.Store
	first  int
	second func()
}

func (l *listings) List(ctx context.Context, prefix, after string, limit int) ([]objects.Info, error) {
	if prefix+after == "" && l.second != nil {
		if l.first++; l.first == 2 {
			l.second()
		}
	}
	return l.Store.List(ctx, prefix, after, limit)
}

// What a hold keeps of a living person outlives the bucket's own rule, and goes with
// the hold.
func TestPromise_R8_AHoldOutlivesTheBucketsRule(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		images := h.paint(p, 3)
		place := func(table, record string) string {
			hold, err := h.place(p.id, table, record)
			must(t, err)
			return hold.ID
		}
		generation := ""
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, images[1]))
		one, two := place("images", images[0]), place("generations", generation)
		if n := h.count(`SELECT count(*) FROM jobs WHERE kind = ?`, privacy.KindHold); n != 2 {
			t.Errorf("%d jobs", n)
		}
		for range 2 {
			must(t, h.privacy.CopyHeld(ctx, ""))
		}
		held := h.objects("held/" + p.id + "/")
		if len(held) != 4 {
			t.Fatalf("copies: %v", held)
		}
		// The bucket's rule, which knows no holds.
		must(t, h.store.Delete(ctx, h.objects("images/")...))
		release := func(hold string) {
			must(t, h.privacy.ReleaseHold(ctx, h.machine(), hold))
			must(t, h.privacy.CopyHeld(ctx, hold))
		}
		release(two)
		held = h.objects("held/" + p.id + "/")
		if len(held) != 2 || !strings.HasPrefix(held[0], "held/"+p.id+"/"+one+"/") {
			t.Errorf("after the release of the other: %v", held)
		}
		// The account is erased: the copy takes the original's place.
		id, _ := h.close(p)
		must(t, h.erase(id))
		held = h.objects("held/" + p.id + "/")
		if len(held) != 2 || slices.ContainsFunc(held, func(k string) bool { return strings.Contains(k, "hold_") }) {
			t.Fatalf("after the erasure: %v", held)
		}
		exception := strings.Split(held[0], "/")[2]
		sealed, _, err := h.store.Get(ctx, held[0])
		must(t, err)
		defer func() { _ = sealed.Close() }()
		plain, err := h.vault.UnsealReader(ctx, exception, sealed, dataMap(t).Object(held[0]).Bound(held[0]))
		must(t, err)
		var content bytes.Buffer
		_, err = content.ReadFrom(plain)
		must(t, err)
		if content.String() != "picture of "+mark {
			t.Errorf("it holds %q", content.String())
		}
	})
}

// A main database restored from before deletions shows nothing that was deleted or
// has expired, and is not served before the deletions are done again.
func TestPromise_R3_ARestoredBackupBringsNoContentBack(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		images := h.paint(p, 6)
		of := func(image string) (generation string) {
			must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
			return generation
		}
		whole, part, expires, stays, held := of(images[0]), images[1], of(images[2]), images[3], of(images[4])
		_, err := h.db.Exec(ctx, `UPDATE generations SET expires_at = ? WHERE id = ?`, h.clock.Now().Add(day).UnixMilli(), expires)
		must(t, err)
		_, err = h.db.Exec(ctx, `UPDATE images SET expires_at = ? WHERE generation_id = ?`, h.clock.Now().Add(day).UnixMilli(), expires)
		must(t, err)
		var hold string
		must(t, h.db.Tx(ctx, func(tx *db.Tx) (err error) {
			hold, err = subject.Hold(ctx, tx, p.id, "generations", held, "case 7", h.clock.Now())
			return err
		}))
		before := h.backup()

		must(t, h.db.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, hold, h.clock.Now()) }))
		stop := h.work()
		must(t, h.generate.Delete(ctx, p.id, whole))
		must(t, h.generate.DeleteImage(ctx, p.id, part))
		must(t, h.generate.Delete(ctx, p.id, held))
		h.clock.Advance(2 * day)
		h.schedule()
		stop()
		var entries []string
		must(t, h.keys.Select(ctx, &entries, `SELECT kind || ' ' || id FROM erasure_journal ORDER BY kind, id`))
		want := []string{"generation " + whole, "generation " + held, "image " + part}
		slices.Sort(want)
		if slices.Sort(entries); !slices.Equal(entries, want) {
			t.Errorf("the journal has %v, want %v", entries, want)
		}
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%d are unreplayed, %v", n, err)
		}

		h.reopen(before, "")
		if _, err := h.generate.Get(ctx, p.id, expires); problem.CodeOf(err) != problem.DataRemoved {
			t.Errorf("what has expired: %v", err)
		}
		if n, err := h.privacy.Unreplayed(ctx); n != 2 || err != nil {
			t.Fatalf("%d are unreplayed, %v: want what is deleted and not held", n, err)
		}
		done, err := h.privacy.Replay(ctx)
		if err != nil || done != (privacy.Replayed{Deleted: 2}) {
			t.Fatalf("%+v, %v", done, err)
		}
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%d are unreplayed, %v", n, err)
		}
		for _, err := range []error{
			func() error { _, err := h.generate.Get(ctx, p.id, whole); return err }(),
			func() error { _, err := h.generate.Image(ctx, p.id, images[0]); return err }(),
			func() error { _, err := h.generate.Image(ctx, p.id, part); return err }(),
		} {
			if problem.CodeOf(err) != problem.DataRemoved {
				t.Errorf("what was deleted: %v", err)
			}
		}
		if _, err := h.generate.Image(ctx, p.id, stays); err != nil {
			t.Error(err)
		}
		if done, err = h.privacy.Replay(ctx); err != nil || done.Deleted != 0 {
			t.Errorf("a second time: %+v, %v", done, err)
		}
		// Its lines go with the last backup from before.
		must(t, h.privacy.Look(ctx, false))
		lines := func() (n int) {
			must(t, h.keys.Get(ctx, &n, `SELECT count(*) FROM erasure_journal`))
			return n
		}
		if lines() != 3 {
			t.Errorf("%d lines", lines())
		}
		h.clock.Advance(59 * day)
		must(t, h.privacy.Look(ctx, false))
		if lines() != 0 {
			t.Errorf("%d lines after all backups", lines())
		}
	})
}

// Nothing that was deleted loses its objects before the journal knows it, and what is
// deleted while a sweep is at work is journalled too.
func TestADeletionIsJournalledBeforeItsObjectsGo(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		image := h.paint(p, 1)[0]
		_, err := h.db.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
			SELECT 'img_second', generation_id, owner, 1, 1, width, height, format, bytes, seed, sha256, created_at, expires_at, 0, '' FROM images WHERE id = ?`, image)
		must(t, err)
		must(t, h.generate.DeleteImage(ctx, p.id, image))
		away := errors.New("away")
		h.generate.Journal = func(context.Context, string, []string) error { return away }
		stop := h.work()
		time.Sleep(500 * time.Millisecond)
		stop()
		if n := len(h.objects("images/")); n != 2 {
			t.Errorf("%d objects are left without a journal", n)
		}
		second := sync.OnceFunc(func() { must(t, h.generate.DeleteImage(context.Background(), p.id, "img_second")) })
		h.generate.Journal = func(ctx context.Context, table string, ids []string) error {
			defer second() // behind the journal, before the objects
			return h.privacy.Journal(ctx, table, ids)
		}
		h.clock.Advance(time.Hour)
		must(t, h.queue.NewScheduler().Reconcile(ctx))
		stop = h.work()
		h.schedule()
		h.clock.Advance(time.Hour)
		h.schedule()
		stop()
		var entries []string
		must(t, h.keys.Select(ctx, &entries, `SELECT id FROM erasure_journal ORDER BY id`))
		if want := []string{image, "img_second"}; len(entries) != 2 || !slices.Contains(entries, want[0]) || !slices.Contains(entries, want[1]) {
			t.Errorf("the journal has %v, want %v", entries, want)
		}
		if left := h.objects("images/"); len(left) != 0 {
			t.Errorf("objects left: %v", left)
		}
		if n := h.count(`SELECT count(*) FROM generations WHERE unswept = 1`); n != 0 {
			t.Error("it is never done")
		}
	})
}

// While the object store is away, all that was deleted is journalled.
func TestPromise_R3_DeletionsAreJournalledWithoutTheStore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		h.paint(p, 450) // three pages of a sweep
		n, err := h.generate.DeleteMany(ctx, p.id, nil, true)
		must(t, err)
		if n != 450 {
			t.Fatalf("%d are deleted", n)
		}
		h.late.Store = unchecked{&away{Store: h.store, down: true}}
		stop := h.work()
		journalled := 0
		testenv.Eventually(t, 30*time.Second, func() bool {
			must(t, h.keys.Get(ctx, &journalled, `SELECT count(*) FROM erasure_journal WHERE kind = 'generation'`))
			return journalled == 450
		})
		stop()
		if n := len(h.objects("images/")); n != 900 {
			t.Errorf("%d objects are left", n)
		}
	})
}

// unchecked is an object store that says that it is away.
type unchecked struct{ objects.Store }

func (unchecked) Check(context.Context) error { return errors.New("away") }
