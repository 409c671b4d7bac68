package privacy_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

const day = 24 * time.Hour

// schedule makes what comes round once an hour come round, and waits until it is
// done. A worker must be at work.
func (h *home) schedule() {
	h.t.Helper()
	must(h.t, h.queue.NewScheduler(slices.Concat(privacy.Schedules(), generate.Schedules())...).Tick(context.Background()))
	testenv.Eventually(h.t, time.Minute, func() bool {
		return h.count(`SELECT count(*) FROM jobs WHERE kind IN ('retention:purge', 'generation:sweep') AND state IN ('queued', 'running')`) == 0
	})
}

// purge ends what is past its time, and deletes the objects of nothing but what
// retention deletes itself.
func (h *home) purge() {
	h.t.Helper()
	for _, t := range dataMap(h.t).Tables {
		if slices.ContainsFunc(t.Keep, func(k privacy.Keep) bool { return k.By == privacy.KindPurge }) {
			_, err := h.privacy.Purge(context.Background(), t.Name)
			must(h.t, err)
		}
	}
}

// readable reports whether the owner can read an image in any way.
func (h *home) readable(p person, image, generation string) (ways []string) {
	h.t.Helper()
	ctx := context.Background()
	if _, err := h.generate.Get(ctx, p.id, generation); err == nil {
		ways = append(ways, "generation")
	} else if problem.CodeOf(err) != problem.DataRemoved {
		h.t.Fatal(err)
	}
	if _, err := h.generate.Image(ctx, p.id, image); err == nil {
		ways = append(ways, "image")
	}
	for _, thumbnail := range []bool{false, true} {
		if c, err := h.generate.Content(ctx, p.id, image, thumbnail); err == nil {
			_, err = io.ReadAll(c)
			must(h.t, err)
			_ = c.Close()
			ways = append(ways, "content")
		}
	}
	list, _, err := h.generate.List(ctx, p.id, generate.Page{})
	must(h.t, err)
	if slices.ContainsFunc(list, func(g generate.Generation) bool { return g.ID == generation }) {
		ways = append(ways, "list")
	}
	return ways
}

// Every hour around the end: readable in every way until the moment, in none from it
// on, and two hours later not a byte is left anywhere.
func TestPromise_R3_EveryHourAroundTheEndOfTheWindow(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		p := h.newcomer("ann")
		image := h.paint(p, 1)[0]
		h.work()
		var generation string
		var expires int64
		must(t, h.db.Get(t.Context(), &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		must(t, h.db.Get(t.Context(), &expires, `SELECT expires_at FROM images WHERE id = ?`, image))
		end := time.UnixMilli(expires)
		h.clock.Advance(end.Add(-3*time.Hour - time.Millisecond).Sub(h.clock.Now()))
		for h.clock.Now().Before(end.Add(3 * time.Hour)) {
			now := h.clock.Now()
			if ways := h.readable(p, image, generation); now.Before(end) && len(ways) != 5 || !now.Before(end) && len(ways) != 0 {
				t.Errorf("%v from its end it can be read by %v", now.Sub(end), ways)
			}
			h.schedule()
			if left := h.objects("images/"); now.Before(end) && len(left) != 2 || !now.Before(end.Add(2*time.Hour)) && len(left) != 0 {
				t.Errorf("%v from its end there are %v", now.Sub(end), left)
			}
			prompts := h.count(`SELECT count(*) FROM generations WHERE request IS NOT NULL`) + h.count(`SELECT count(*) FROM images WHERE sha256 IS NOT NULL`)
			if now.Before(end) && prompts != 2 || !now.Before(end.Add(2*time.Hour)) && prompts != 0 {
				t.Errorf("%v from its end %d rows have content", now.Sub(end), prompts)
			}
			h.clock.Advance(time.Hour)
		}
		// The millisecond itself.
		image = h.paint(p, 1)[0]
		must(t, h.db.Get(t.Context(), &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		h.clock.Advance(90*day - time.Millisecond)
		if ways := h.readable(p, image, generation); len(ways) != 5 {
			t.Errorf("in its last millisecond it can be read by %v", ways)
		}
		h.clock.Advance(time.Millisecond)
		if ways := h.readable(p, image, generation); len(ways) != 0 {
			t.Errorf("at its end it can be read by %v", ways)
		}
		h.clock.Advance(31 * day)
		h.schedule()
		h.clock.Advance(31 * day)
		h.schedule()
		if n := h.count(`SELECT count(*) FROM generations`) + h.count(`SELECT count(*) FROM images`); n != 0 {
			t.Errorf("%d tombstones are left", n)
		}
	})
}

// An image that went with its generation, before its own purge came to it, leaves nothing to
// be swept: nobody would be told of it.
func TestAnImageThatIsGoneLeavesNothingToSweep(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		image := h.paint(p, 1)[0]
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		unswept := func() int { return h.count(`SELECT count(*) FROM generations WHERE unswept = 1`) }
		stop := h.work()
		must(t, h.generate.Delete(ctx, p.id, generation))
		testenv.Eventually(t, time.Minute, func() bool { return unswept() == 0 })
		stop()
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
			n, err := h.generate.RemoveImages(ctx, tx, []string{image}, "expired")
			if n != 0 {
				t.Errorf("%d images are removed", n)
			}
			return err
		}))
		if jobs := h.count(`SELECT count(*) FROM jobs WHERE kind = 'generation:sweep' AND state IN ('queued', 'waiting')`); unswept() != 0 || jobs != 0 {
			t.Errorf("%d generations are to be swept, and %d sweeps are to come", unswept(), jobs)
		}
	})
}

// A held image keeps itself and its generation, and not its neighbours.
func TestPromise_R8_AHeldImageKeepsNoOthers(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		held := h.paint(p, 1)[0]
		_, err := h.db.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
			SELECT 'img_second', generation_id, owner, 1, 1, width, height, format, bytes, seed, sha256, created_at, expires_at, 0, '' FROM images WHERE id = ?`, held)
		must(t, err)
		generation := ""
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, held))
		h.put(p.id, fmt.Sprintf("images/%s/%s/1/1.img", p.id, generation), vault.Data("object", p.id, generation, "1", "1", "image"))
		var hold string
		must(t, h.db.Tx(ctx, func(tx *db.Tx) (err error) {
			hold, err = subject.Hold(ctx, tx, p.id, "images", held, "case 7", h.clock.Now())
			return err
		}))
		h.work()
		h.clock.Advance(91 * day)
		h.schedule()
		if got := h.objects("images/"); len(got) != 2 || h.count(`SELECT count(*) FROM images WHERE removed_at = 0`) != 1 || h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`) != 1 {
			t.Errorf("with the hold there are %v", got)
		}
		if ways := h.readable(p, held, generation); len(ways) != 0 {
			t.Errorf("what is held can be read by %v", ways)
		}
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, hold, h.clock.Now()) }))
		h.clock.Advance(time.Hour)
		h.schedule()
		if got := h.objects("images/"); len(got) != 0 {
			t.Errorf("after the release there are %v", got)
		}
	})
}

// rooms that come later need an entry in the map: their tables, as a migration makes
// them, and nothing in the program.
const laterTables = `
  - table: letters
    store: main
    holds: what people write, with what they attach
    key: [owner, n]
    subject: owner
    category: communication
    purposes: [account]
    keep: [{window: support, from: at, then: delete, by: "retention:purge"}, {for: 30d, from: read_at, then: "null", columns: [words, title], by: "retention:purge", why: it was read}]
    erase: {do: delete}
    export: letters
    columns:
      - {name: owner, type: text, holds: owner, plain: whose, export: owner}
      - {name: n, type: number, holds: number, plain: key, export: n}
      - {name: at, type: time, holds: when, plain: found by it, export: at}
      - {name: read_at, type: time, holds: when, plain: found by it, export: read_at}
      - {name: words, type: bytes, holds: words, plain: a test, export: words}
      - {name: title, type: text, holds: title, plain: a test, export: title}
`

const laterObjects = `
  - key: letters/<owner>/<n>.txt
    holds: what is attached
    subject: owner
    table: letters
    category: communication
    purposes: [account]
    data: [letter, <n>]
    kept: as the row
    erased: deleted
    not_exported: a test
`

func withLater(t *testing.T, s privacy.Stack) *home {
	t.Helper()
	text := strings.Replace(string(privacy.ShippedMap()), "\ntables:\n", "\ntables:"+laterTables, 1)
	text = strings.Replace(text, "\nobjects:\n", "\nobjects:"+laterObjects, 1)
	m, err := privacy.ParseMap([]byte(text))
	must(t, err)
	h := newHome(t, s, func(o *privacy.Options) { o.Map = m })
	for _, statement := range []string{
		`CREATE TABLE letters (owner TEXT NOT NULL, n BIGINT NOT NULL, at BIGINT NOT NULL, read_at BIGINT, words BYTEA, title TEXT NOT NULL, PRIMARY KEY (owner, n))`,
		`CREATE INDEX letters_old ON letters (at)`,
	} {
		_, err := h.db.Exec(t.Context(), statement)
		must(t, err)
	}
	return h
}

// What was used is gone when its window ends, as the service writes it.
func TestPromise_R4_UsageEndsWithItsWindow(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		p := h.newcomer("ann")
		usage := privacy.NewUsage(privacy.UsageOptions{DB: h.db, Vault: h.vault, Clock: h.clock, Log: slog.New(slog.NewTextHandler(h.log, nil)),
			Window: privacy.DefaultPolicy().Windows.Usage})
		endsWithItsWindow(t, h, 12, func(int) {
			usage.Note(privacy.Use{Subject: p.id, Caller: "ses_x", Feature: "create-generation", Addr: usageAddr, Agent: usageAgent})
			must(t, usage.Flush(t.Context()))
		}, func() int { return h.count(`SELECT count(*) FROM usage_events WHERE subject = ?`, p.id) })
	})
}

// There is no support yet. A made-up table, which only the map of the test knows, stands for what
// people will write and attach: it needs no more than an entry in the map.
func TestPromise_R5_CorrespondenceEndsWithItsWindow(t *testing.T) {
	on(t, every, func(t *testing.T, s privacy.Stack) {
		h := withLater(t, s)
		endsWithItsWindow(t, h, 24, func(n int) {
			h.exec(`INSERT INTO letters (owner, n, at, read_at, words, title) VALUES ('sub_x', ?, ?, NULL, ?, 'a')`, n, h.clock.Millis(), []byte("w"))
			must(t, h.store.Put(t.Context(), fmt.Sprintf("letters/sub_x/%d.txt", n), bytes.NewReader([]byte("attached")), 8))
		}, func() int { return h.count(`SELECT count(*) FROM letters`) }, func() int { return len(h.objects("letters/")) })
	})
}

// endsWithItsWindow writes something a day for a month, and looks every hour around the
// days on which each must go.
func endsWithItsWindow(t *testing.T, h *home, months int, write func(n int), left ...func() int) {
	t.Helper()
	h.work()
	first := h.clock.Now().Add(day)
	const written = 30
	for n := range written {
		h.clock.Advance(day)
		write(n)
	}
	over := func(n int) time.Time { return privacy.Months(months).After(first.AddDate(0, 0, n)) }
	look := func(want int) {
		t.Helper()
		for _, count := range left {
			if got := count(); got != want {
				t.Fatalf("at %v %d are there, want %d", h.clock.Now(), got, want)
			}
		}
	}
	look(written)
	h.clock.Advance(over(0).Add(-2 * time.Hour).Sub(h.clock.Now()))
	for range 52 { // two days and more
		h.schedule()
		want := 0
		for n := range written {
			if h.clock.Now().Before(over(n)) {
				want++
			}
		}
		look(want)
		h.clock.Advance(time.Hour)
	}
	h.clock.Advance(40 * day)
	h.schedule()
	look(0)
}

// A rule that empties columns does so once, in a table with a key of several columns.
func TestColumnsBecomeEmptyByTheMapAlone(t *testing.T) {
	on(t, unversioned, func(t *testing.T, s privacy.Stack) {
		ctx, h := t.Context(), withLater(t, s)
		for n := range 250 {
			_, err := h.db.Exec(ctx, `INSERT INTO letters (owner, n, at, read_at, words, title) VALUES ('sub_x', ?, ?, ?, ?, 'a')`, n, h.clock.Millis(), h.clock.Millis(), []byte("w"))
			must(t, err)
		}
		h.clock.Advance(30*day - time.Millisecond)
		ended, err := h.privacy.Purge(ctx, "letters")
		if ended != 0 || err != nil {
			t.Fatalf("%d rows before the time, %v", ended, err)
		}
		h.clock.Advance(time.Millisecond)
		ended, err = h.privacy.Purge(ctx, "letters")
		if ended != 250 || err != nil {
			t.Fatalf("%d rows, %v", ended, err)
		}
		if n := h.count(`SELECT count(*) FROM letters WHERE words IS NULL AND title = '' AND read_at > 0`); n != 250 {
			t.Errorf("%d rows are empty", n)
		}
		if ended, err = h.privacy.Purge(ctx, "letters"); ended != 0 || err != nil {
			t.Errorf("%d rows a second time, %v", ended, err)
		}
	})
}

// A sweep that is broken off goes on, and a store that is away lets no row go whose
// objects are still there.
func TestPromise_R5_AnObjectStoreThatIsAwayKeepsTheRows(t *testing.T) {
	on(t, every, func(t *testing.T, s privacy.Stack) {
		ctx, h := t.Context(), withLater(t, s)
		for n := range 230 {
			_, err := h.db.Exec(ctx, `INSERT INTO letters (owner, n, at, title) VALUES ('sub_x', ?, ?, '')`, n, h.clock.Millis()+int64(n))
			must(t, err)
			must(t, h.store.Put(ctx, fmt.Sprintf("letters/sub_x/%d.txt", n), bytes.NewReader([]byte("attached")), 8))
		}
		h.clock.Advance(800 * day)
		h.away.refuse(true)
		if _, err := h.privacy.Purge(ctx, "letters"); err == nil {
			t.Error("a sweep without the object store says that it is done")
		}
		if n := h.count(`SELECT count(*) FROM letters`); n != 230 || h.count(`SELECT count(*) FROM sweeps WHERE plan = 'letters'`) != 0 {
			t.Errorf("%d rows are left", n)
		}
		h.away.refuse(false)
		broken, stop := context.WithCancel(ctx)
		h.away.after(1, stop) // killed behind the first batch's objects
		if _, err := h.privacy.Purge(broken, "letters"); err == nil {
			t.Error("a sweep that was broken off says that it is done")
		}
		rows, left := h.count(`SELECT count(*) FROM letters`), len(h.objects("letters/"))
		if rows == 0 || rows < left {
			t.Errorf("%d rows and %d objects", rows, left)
		}
		if _, err := h.privacy.Purge(ctx, "letters"); err != nil {
			t.Fatal(err)
		}
		if n := h.count(`SELECT count(*) FROM letters`) + len(h.objects("letters/")); n != 0 {
			t.Errorf("%d rows and objects are left", n)
		}
	})
}

// An account is kept as long as it is there, whatever the sweeps do.
func TestPromise_R1_AnActiveAccountIsNotPurged(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		p := h.live("ann", 2)
		kept := map[string]int{}
		for _, table := range dataMap(t).Tables {
			if table.Store == privacy.StoreMain && table.Nobody == "" && slices.ContainsFunc(table.Keep, func(k privacy.Keep) bool { return k.AsLongAs == "account" }) {
				if n := h.count(`SELECT count(*) FROM `+table.Name+` WHERE `+dataMap(t).Of(&table), p.id); n > 0 {
					kept[table.Name] = n
				}
			}
		}
		if len(kept) < 5 {
			t.Fatalf("only %v is looked at", kept)
		}
		for range 80 {
			h.clock.Advance(5 * day)
			h.purge()
		}
		for name, n := range kept {
			table := dataMap(t).Table(privacy.StoreMain, name)
			if got := h.count(`SELECT count(*) FROM `+name+` WHERE `+dataMap(t).Of(table), p.id); got != n {
				t.Errorf("after 400 days there are %d rows in %s, want %d", got, name, n)
			}
		}
		if n := h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`); n != 0 {
			t.Errorf("%d generations are left", n)
		}
	})
}

// A mail's row is kept for its time, or as long as a hold says, and a hold that comes
// while old ones are removed is in time.
func TestRowsOfMailsAreKeptFor30Days(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		for n := range 230 {
			column := []string{"accepted_at", "failed_at"}[n%2]
			_, err := h.db.Exec(ctx, `INSERT INTO mails (id, subject, template, created_at, `+column+`) VALUES (?, 'sub_x', 'x', 1, ?)`, fmt.Sprint("mail_", n), h.clock.Millis())
			must(t, err)
		}
		_, err := h.db.Exec(ctx, `INSERT INTO mails (id, subject, template, created_at) VALUES ('mail_waits', 'sub_x', 'x', 1)`)
		must(t, err)
		rows := func() int { h.purge(); return h.count(`SELECT count(*) FROM mails`) }
		hold := func(tx *db.Tx, mail string) (id string, err error) {
			return subject.Hold(ctx, tx, "sub_x", "mails", mail, "case 7", h.clock.Now())
		}
		var held string
		must(t, h.db.Tx(ctx, func(tx *db.Tx) (err error) { held, err = hold(tx, "mail_7"); return err }))
		h.clock.Advance(mail.RowKept - time.Millisecond)
		if n := rows(); n != 231 {
			t.Errorf("%d rows before the time", n)
		}
		h.clock.Advance(time.Millisecond)
		first, second := testenv.Overtaken(t, h.db, func(tx *db.Tx) error { _, err := hold(tx, "mail_8"); return err },
			func() error { _, err := h.privacy.Purge(ctx, "mails"); return err })
		if first != nil || second != nil {
			t.Fatal(first, second)
		}
		if n := rows(); n != 3 {
			t.Errorf("%d rows, want the two that are held and the one that waits", n)
		}
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, held, h.clock.Now()) }))
		if n := rows(); n != 2 {
			t.Errorf("%d rows after the release", n)
		}
	})
}

// What waits already is not asked for twice, and a job for every table is made.
func TestSweepsAreAddedOnce(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		first, err := h.privacy.Sweep(t.Context())
		must(t, err)
		second, err := h.privacy.Sweep(t.Context())
		must(t, err)
		if len(first) < 3 || !slices.Equal(first, second) || h.count(`SELECT count(*) FROM jobs WHERE kind = ? AND party = ?`, privacy.KindPurge, jobs.System) != len(first) {
			t.Errorf("first %v, then %v", first, second)
		}
	})
}

// The column that decides has an index in which it stands first: what stays is not
// read by a sweep.
func TestEveryPurgeHasAnIndex(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		for _, table := range dataMap(t).Tables {
			for _, k := range table.Keep {
				column := k.Until
				if column == "" {
					column = k.From
				}
				if k.By != privacy.KindPurge {
					continue
				}
				query := `SELECT count(*) FROM pragma_index_list(?) l, pragma_index_info(l.name) i WHERE i.seqno = 0 AND i.name = ?`
				if d.Dialect() == db.Postgres {
					query = `SELECT count(*) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] WHERE i.indrelid = CAST(? AS regclass) AND a.attname = ?`
				}
				var n int
				must(t, d.Get(t.Context(), &n, query, table.Name, column))
				if n == 0 {
					t.Errorf("%s.%s has no index", table.Name, column)
				}
			}
		}
	})
}

func TestThePlanSaysWhatTheNextSweepEnds(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		images := h.paint(p, 4)
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := subject.Hold(ctx, tx, p.id, "images", images[0], "case 7", h.clock.Now())
			return err
		}))
		_, err := h.db.Exec(ctx, `UPDATE generations SET expires_at = expires_at + 1800000 WHERE id = (SELECT generation_id FROM images WHERE id = ?)`, images[3])
		must(t, err)
		h.clock.Advance(90 * day)
		before := h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`)
		lines, err := h.privacy.RetentionPlan(ctx)
		must(t, err)
		if len(lines) < 6 || h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`) != before {
			t.Fatalf("%d lines", len(lines))
		}
		l := lines[slices.IndexFunc(lines, func(l privacy.PlanLine) bool { return l.Table == "generations" && l.Then == privacy.Null })]
		if l.Due != 3 || l.Held != 1 || l.Soon != 1 || !l.Bound.Equal(h.clock.Now()) || !strings.Contains(l.Why, "generated_content: 90 days after created_at") ||
			l.End.Sub(l.Since) != 90*day || h.clock.Now().Sub(l.Since) < 90*day {
			t.Errorf("%+v", l)
		}
		h.purge()
		if n := before - h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`); int64(n) != l.Due-l.Held {
			t.Errorf("%d were ended, and the plan said %+v", n, l)
		}
		lines, err = h.privacy.RetentionPlan(ctx)
		must(t, err)
		for _, l := range lines {
			if l.Due > l.Held {
				t.Errorf("after the sweep: %+v", l)
			}
		}
	})
}
