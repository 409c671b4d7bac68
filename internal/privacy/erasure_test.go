package privacy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"zimage/internal/db"
	"zimage/internal/e2e/proxy"
	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

var errKilled = errors.New("killed")

// A run that ends before a step, before its record or after it is gone on with by
// another process, and ends with one receipt and nothing left.
func TestPromise_R7_KilledAtEveryStep(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		other := h.live("other", 1)
		before := h.found(other.id)
		type place struct {
			step  string
			phase privacy.Phase
		}
		var places []place
		for _, s := range privacy.Steps() {
			if !h.at.Versioned || ofBucket(s) {
				places = append(places, place{s, privacy.Before}, place{s, privacy.Unrecorded}, place{s, privacy.Recorded})
			}
		}
		for i, at := range places {
			p := h.live(fmt.Sprintf("ann%d", i), 2)
			id, secret := h.close(p)
			h.privacy.EndAt(func(step string, phase privacy.Phase) error {
				if step == at.step && phase == at.phase {
					return errKilled
				}
				return nil
			})
			if err := h.erase(id); !errors.Is(err, errKilled) {
				t.Fatalf("%v: %v", at, err)
			}
			h.rooms()
			if err := h.erase(id); err != nil {
				t.Fatalf("%v: %v", at, err)
			}
			h.erased(p)
			r := h.receipt(id, secret)
			if n := h.count(`SELECT count(*) FROM erasures WHERE subject = ? AND completed_at > 0`, p.id); n != 1 || r.State != "complete" {
				t.Errorf("%v: %d receipts, %s", at, n, r.State)
			}
			wantDeleted(t, r, map[string]int64{"objects images/": 4, "main images": 3, "main generations": 3, "main users": 1})
		}
		if after := h.found(other.id); !slices.Equal(sorted(before), sorted(after)) || after["main/images"] != before["main/images"] {
			t.Errorf("somebody else had %v and has %v", before, after)
		}
		if got := h.count(`SELECT count(*) FROM subjects WHERE state = 'erased'`); got != len(places) {
			t.Errorf("%d of %d are erased", got, len(places))
		}
	})
}

// ofBucket says whether a step of an erasure has to do with objects, and so with the kind
// of their bucket.
func ofBucket(step string) bool {
	return slices.Contains([]string{"holds_kept", "objects_deleted", "verified"}, step)
}

func wantDeleted(t *testing.T, r privacy.Receipt, want map[string]int64) {
	t.Helper()
	got := map[string]int64{}
	for _, s := range r.Stores {
		got[s.Store+" "+s.Name] = s.Deleted
	}
	for name, n := range want {
		if deleted, there := got[name]; !there || deleted != n {
			t.Errorf("%s: %d deleted, told: %v, want %d", name, deleted, there, n)
		}
	}
}

// Everything that a person gave the service is gone from every store: as rows and
// objects, and as bytes in the files of the database.
func TestPromise_R2_NothingIsLeft(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		stop := h.work()
		p := h.live("ann", 3)
		testenv.Eventually(t, 30*time.Second, func() bool { return h.found(p.email)["mail"] > 0 })
		stop()

		// What is looked for is there before.
		before := h.found(p.id)
		for _, m := range dataMap(t).Tables {
			if place := m.Store + "/" + m.Name; m.Nobody == "" && m.Erase.Do == privacy.Delete && before[place] == 0 && m.Name != "recovery_codes" {
				t.Errorf("nothing of the person is in %s", place)
			}
		}
		if before["objects/images/"] == 0 {
			t.Error("there are no objects")
		}
		var sealed [][]byte
		for _, q := range []string{`SELECT email FROM users WHERE id = ?`, `SELECT request FROM generations WHERE owner = ? ORDER BY id LIMIT 1`, `SELECT name FROM api_keys WHERE owner = ? ORDER BY id LIMIT 1`} {
			var b []byte
			must(t, h.db.Get(ctx, &b, q, p.id))
			sealed = append(sealed, b)
		}
		if n := h.raw(sealed...); n == 0 {
			t.Error("the raw files do not hold what the database holds")
		}

		// What a case forbids to tell, the receipt must not tell by a number.
		if n, err := h.db.Exec(ctx, `UPDATE ledger_details SET hidden = 1 WHERE subject = ?`, p.id); err != nil || n == 0 {
			t.Fatalf("%d entries are hidden, %v", n, err)
		}

		id, secret := h.close(p)
		must(t, h.erase(id))
		h.erased(p)
		for _, text := range []string{mark, p.email} {
			if left := h.found(text); len(left) > 0 {
				t.Errorf("%s stands in %v", text, left)
			}
			if strings.Contains(strings.ToLower(h.log.String()), strings.ToLower(text)) {
				t.Errorf("%s stands in the log", text)
			}
		}
		if n := h.raw(append(sealed, []byte(mark), []byte(p.email))...); n > 0 {
			t.Errorf("the raw files still hold %d pieces", n)
		}
		r := h.receipt(id, secret)
		wantDeleted(t, r, map[string]int64{"objects images/": 6, "main images": 4, "main users": 1, "main ledger_details": 0})
		for _, s := range r.Stores {
			kept := slices.ContainsFunc(r.Exceptions, func(x privacy.ReceiptException) bool {
				return x.Store == s.Store && x.Name == s.Name && x.Basis != "" && x.Until != ""
			})
			if s.Left > 0 != kept {
				t.Errorf("%s %s: %d left, listed as an exception: %v", s.Store, s.Name, s.Left, kept)
			}
		}
		if r.Key == nil || r.Key.RemovedAt.Before(start) || !r.Key.UnrecoverableAt.Equal(start.Add(2*vault.RotateEvery)) || r.Key.UnrecoverableAt.After(r.DueAt) {
			t.Errorf("the key's dates are %+v", r.Key)
		}
		if _, err := h.privacy.Receipt(ctx, id, secret+"x"); problem.CodeOf(err) != problem.NotFound {
			t.Errorf("another secret: %v", err)
		}
		if _, _, err := h.claim(p); problem.CodeOf(err) != problem.NotFound {
			t.Errorf("a second secret: %v", err)
		}
		// What is planted is found: the scan can fail.
		_, err := h.db.Exec(ctx, `INSERT INTO idempotency_keys (owner, key_lookup, body_lookup, generation_id, created_at) VALUES (?, ?, 'b', 'g', 1)`, p.id, mark)
		must(t, err)
		if h.found(mark)["main/idempotency_keys"] != 1 || h.found(p.id)["main/idempotency_keys"] != 1 || h.raw([]byte(mark)) == 0 {
			t.Error("a planted row was not found")
		}
	})
}

// raw counts in how many files of the main database one of the texts stands, once
// it is vacuumed.
func (h *home) raw(texts ...[]byte) (n int) {
	h.t.Helper()
	ctx := context.Background()
	folder := h.dir
	if h.at.Dialect == db.SQLite {
		folder = filepath.Dir(strings.TrimPrefix(h.at.Database, "sqlite:"))
		_, err := h.db.Exec(ctx, `VACUUM`)
		must(h.t, err)
		var busy []struct {
			Busy         int `db:"busy"`
			Log          int `db:"log"`
			Checkpointed int `db:"checkpointed"`
		}
		must(h.t, h.db.SelectWrite(ctx, &busy, `PRAGMA wal_checkpoint(TRUNCATE)`))
	} else {
		_, err := h.db.Exec(ctx, `VACUUM FULL`)
		must(h.t, err)
		_, err = h.db.Exec(ctx, `CHECKPOINT`)
		must(h.t, err)
		must(h.t, h.db.Get(ctx, &folder, `SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database WHERE datname = current_database()`))
	}
	must(h.t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, text := range texts {
			if bytes.Contains(content, text) {
				n++
				break
			}
		}
		return nil
	}))
	return n
}

// A held record is kept, readable with a key of its own, and nothing else of the
// account is. The release of its last hold takes it away.
func TestPromise_R8_AHeldRecordOutlivesItsAccount(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		images := h.paint(p, 4)
		must(t, h.accounts.Object(ctx, p.who, subject.Statistics))
		var g string
		must(t, h.db.Get(ctx, &g, `SELECT generation_id FROM images WHERE id = ?`, images[0]))
		hold := func(table, row string) (id string) {
			must(t, h.db.Tx(ctx, func(tx *db.Tx) (err error) {
				id, err = subject.Hold(ctx, tx, p.id, table, row, "case 7", h.clock.Now())
				return err
			}))
			return id
		}
		release := func(id string) {
			must(t, h.db.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, id, h.clock.Now()) }))
		}
		first, second := hold("generations", g), hold("generations", g)
		third, fourth, over := hold("images", images[1]), hold("objections", subject.ObjectionRecord(p.id, subject.Statistics)), hold("images", images[2])
		release(over)

		id, secret := h.close(p)
		must(t, h.erase(id))
		h.erased(p, "main/holds", "main/erasure_exceptions", "main/generations", "main/images", "main/objections", "objects/held/")
		kept := map[string]int{
			`SELECT count(*) FROM generations WHERE owner = ?`: 1, `SELECT count(*) FROM images WHERE owner = ?`: 2,
			`SELECT count(*) FROM objections WHERE subject = ?`: 1, `SELECT count(*) FROM holds WHERE subject = ?`: 4,
			`SELECT count(*) FROM sessions WHERE owner = ?`: 0, `SELECT count(*) FROM mails WHERE subject = ?`: 0,
		}
		for query, want := range kept {
			if got := h.count(query, p.id); got != want {
				t.Errorf("%s: %d, want %d", query, got, want)
			}
		}
		again := h.newcomer("ann")
		if again.id == p.id {
			t.Error("a new account has an old id")
		}
		var exceptions []struct {
			ID    string `db:"id"`
			Table string `db:"table_name"`
			Row   string `db:"row_id"`
		}
		must(t, h.db.Select(ctx, &exceptions, `SELECT id, table_name, row_id FROM erasure_exceptions ORDER BY id`))
		opened := 0
		owned := func(ids []string) (map[string]bool, error) { return h.privacy.Owned(ctx, ids) }
		h.clock.Advance(48 * time.Hour)
		_, err := h.vault.SweepUnowned(ctx, time.Hour, func(ids []string) (map[string]bool, error) {
			all, err := owned(ids)
			all[again.id] = true
			return all, err
		})
		must(t, err)
		for _, x := range exceptions {
			column := map[string]string{"generations": "request", "images": "sha256"}[x.Table]
			if column == "" {
				continue // an objection has nothing that is sealed
			}
			var sealed []byte
			must(t, h.db.Get(ctx, &sealed, "SELECT "+column+" FROM "+x.Table+" WHERE id = ?", x.Row))
			plain, err := h.vault.Unseal(ctx, x.ID, sealed, vault.Column(x.Table, column, x.Row))
			if err != nil || !bytes.Contains(plain, []byte(mark)) {
				t.Errorf("%s is %q, %v", x.Table, plain, err)
			}
			for _, k := range h.objects("held/" + p.id + "/" + x.ID + "/") {
				o := dataMap(t).Object(k)
				body, _, err := h.store.Get(ctx, k)
				must(t, err)
				r, err := h.vault.UnsealReader(ctx, x.ID, body, o.Bound(k))
				if err != nil {
					t.Errorf("a held object: %v", err)
				} else if text, err := readAll(r); err != nil || !strings.Contains(text, mark) {
					t.Errorf("a held object is %q, %v", text, err)
				}
				_ = body.Close()
				opened++
			}
		}
		if len(exceptions) != 4 || opened != 4 {
			t.Errorf("%d records and %d objects are kept", len(exceptions), opened)
		}
		r := h.receipt(id, secret)
		held := 0
		for _, x := range r.Exceptions {
			if x.Since != nil {
				held++
				if x.Basis == "" || x.Until == "" || x.EndedAt != nil {
					t.Errorf("an exception is %+v", x)
				}
			}
		}
		if held != 4 || r.State != "complete" {
			t.Errorf("the receipt lists %d held records and is %s", held, r.State)
		}

		look := func() {
			h.clock.Advance(time.Second)
			must(t, h.privacy.Look(ctx, false))
			for _, ref := range h.queued() {
				must(t, h.erase(ref))
			}
		}
		release(first)
		look()
		if n := h.count(`SELECT count(*) FROM generations WHERE id = ?`, g); n != 1 {
			t.Error("one of two holds was released, and the record is gone")
		}
		for _, x := range []string{second, third, fourth} {
			release(x)
		}
		look()
		h.erased(p, "main/erasure_exceptions")
		if n := h.count(`SELECT count(*) FROM erasure_exceptions WHERE ended_at = 0`); n != 0 {
			t.Errorf("%d exceptions are open", n)
		}
		for _, x := range exceptions {
			if _, err := h.vault.Seal(ctx, x.ID, nil, nil); !errors.Is(err, vault.ErrDestroyed) {
				t.Errorf("the key of an exception that ended: %v", err)
			}
		}
		for _, x := range h.receipt(id, secret).Exceptions {
			if x.Since != nil && x.EndedAt == nil {
				t.Errorf("the receipt still says %+v", x)
			}
		}
		if _, err := h.accounts.FindUser(ctx, again.email); err != nil {
			t.Errorf("the new account: %v", err)
		}
	})
}

// A hold that comes while the erasure runs keeps its record too; what was sealed of
// it only if it came before the key was destroyed.
func TestPromise_R8_AHoldThatComesDuringTheErasure(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for step, readable := range map[string]bool{"holds_kept": true, "key_destroyed": false} {
			p := h.newcomer("ann" + step[:3])
			image := h.paint(p, 2)[0]
			id, secret := h.close(p)
			var hold string
			h.privacy.EndAt(func(at string, phase privacy.Phase) error {
				if at != step || phase != privacy.Recorded || hold != "" {
					return nil
				}
				return h.db.Tx(ctx, func(tx *db.Tx) (err error) {
					hold, err = subject.Hold(ctx, tx, p.id, "images", image, "case 8", h.clock.Now())
					return err
				})
			})
			must(t, h.erase(id))
			h.erased(p, "main/holds", "main/erasure_exceptions", "main/images", "objects/held/")
			var exception string
			must(t, h.db.Get(ctx, &exception, `SELECT id FROM erasure_exceptions WHERE subject = ?`, p.id))
			var sealed []byte
			must(t, h.db.Get(ctx, &sealed, `SELECT sha256 FROM images WHERE owner = ?`, p.id))
			if _, err := h.vault.Unseal(ctx, exception, sealed, vault.Column("images", "sha256", image)); (err == nil) != readable {
				t.Errorf("%s: readable is to be %v: %v", step, readable, err)
			}
			must(t, h.db.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, hold, h.clock.Now()) }))
			h.clock.Advance(time.Second)
			must(t, h.privacy.Look(ctx, false))
			must(t, h.erase(id))
			h.erased(p, "main/erasure_exceptions")
			if r := h.receipt(id, secret); !slices.ContainsFunc(r.Exceptions, func(x privacy.ReceiptException) bool { return x.EndedAt != nil }) {
				t.Errorf("%s: the receipt does not tell of the hold", step)
			}
		}
	})
}

func readAll(r interface{ Read([]byte) (int, error) }) (string, error) {
	var b bytes.Buffer
	_, err := b.ReadFrom(r)
	return b.String(), err
}

// queued are the erasures that have a job which has not ended.
func (h *home) queued() (refs []string) {
	must(h.t, h.db.Select(context.Background(), &refs, `SELECT DISTINCT ref FROM jobs WHERE kind = ? AND state IN ('queued', 'waiting', 'running')`, privacy.KindErasure))
	return refs
}

// An hour without a store: the erasure shows why it does not go on, and is complete
// only when the store is back and empty.
func TestPromise_R2_AStoreThatIsAwayDelaysAndIsSeen(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		outages := map[string]func() (back func()){
			"objects_failed": func() func() { h.away.refuse(true); return func() { h.away.refuse(false) } },
		}
		if h.at.Dialect == db.Postgres {
			main, mainProxy := via(t, h.at.Database)
			keys, keysProxy := via(t, h.at.Keys)
			h.reopen(main, keys)
			for code, p := range map[string]*proxy.Postgres{"database_away": mainProxy, "keys_failed": keysProxy} {
				outages[code] = func() func() {
					p.Refuse(true)
					p.Cut()
					return func() { p.Refuse(false) }
				}
			}
		}
		for code, outage := range outages {
			p := h.live("ann"+code[:2], 2)
			id, secret := h.close(p)
			// Away from where it is needed on.
			var back func()
			h.privacy.EndAt(func(step string, phase privacy.Phase) error {
				if step == map[string]string{"objects_failed": "objects_deleted", "database_away": "rows_deleted", "keys_failed": "key_destroyed"}[code] && phase == privacy.Before && back == nil {
					back = outage()
				}
				return nil
			})
			for range 6 {
				if err := h.erase(id); err == nil {
					t.Fatalf("%s: complete without the store", code)
				}
				h.clock.Advance(10 * time.Minute)
			}
			if code == "database_away" {
				_, err := h.privacy.Receipt(ctx, id, secret)
				refuses(t, "a receipt without the database", err, problem.Unavailable)
				_, err = h.privacy.Erasures(ctx, false, "", 10)
				refuses(t, "a list without the database", err, problem.Unavailable)
			} else {
				signed, err := h.privacy.Receipt(ctx, id, secret)
				must(t, err)
				var r privacy.Receipt
				must(t, json.Unmarshal(signed.Receipt, &r))
				if r.State != "open" || r.Delayed != code || len(signed.Signature) > 0 {
					t.Errorf("%s: the receipt is %s, delayed by %q", code, r.State, r.Delayed)
				}
				if err := h.privacy.Look(ctx, true); err != nil && code != "keys_failed" {
					t.Error(err)
				}
				if h.figure("zimage_erasures_open") != 1 {
					t.Errorf("%s: the figures do not show it", code)
				}
				list, err := h.privacy.Erasures(ctx, false, "", 10)
				if err != nil || len(list) != 1 || list[0].Failure != code || list[0].Failures != 6 {
					t.Errorf("%s: the list is %+v, %v", code, list, err)
				}
			}
			back()
			testenv.Eventually(t, 30*time.Second, func() bool { return h.erase(id) == nil })
			h.erased(p)
			r := h.receipt(id, secret)
			if r.Delayed != "" || r.State != "complete" {
				t.Errorf("%s: %s, %q", code, r.State, r.Delayed)
			}
			wantDeleted(t, r, map[string]int64{"objects images/": 4, "main images": 3}) // each counted once, however often it was tried
		}
	})
}

// via is the way to a database of PostgreSQL through a proxy.
func via(t *testing.T, address string) (string, *proxy.Postgres) {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	p, err := proxy.NewPostgres(u.Host)
	must(t, err)
	t.Cleanup(p.Close)
	u.Host = p.Addr()
	return u.String(), p
}

// The deadline of an erasure that cannot go on is told before it passes, and after.
func TestPromise_R6_AlarmBeforeAndAfterTheDeadline(t *testing.T) {
	t.Parallel()
	h := newHome(t, privacy.Stacks["sqlite, directory"])
	ctx := context.Background()
	p := h.newcomer("ann")
	id, _ := h.close(p)
	_, err := h.privacy.Unreplayed(ctx) // as whoever looks has asked before
	must(t, err)
	h.away.set(true)
	_ = h.erase(id)
	age := func(d time.Duration) {
		h.clock.Advance(start.Add(d).Sub(h.clock.Now()))
		must(t, h.privacy.Look(ctx, true))
	}
	age(22 * 24 * time.Hour)
	if strings.Contains(h.log.String(), "deadline") || h.figure("zimage_erasures_overdue") != 0 || h.figure("zimage_erasures_open") != 1 {
		t.Error("an alarm after 22 days")
	}
	age(24 * 24 * time.Hour)
	if !strings.Contains(h.log.String(), "nears its deadline") || h.figure("zimage_erasures_overdue") != 0 {
		t.Error("no alarm after 24 days")
	}
	age(31 * 24 * time.Hour)
	if !strings.Contains(h.log.String(), "behind its deadline") || h.figure("zimage_erasures_overdue") != 1 || h.figure("zimage_erasures_oldest_seconds") < 30*24*3600 {
		t.Error("no alarm after 31 days")
	}
	h.away.set(false)
	must(t, h.erase(id))
	must(t, h.privacy.Look(ctx, true))
	if h.figure("zimage_erasures_open") != 0 || h.figure("zimage_erasures_overdue") != 0 || h.figure("zimage_erasures_completed_total") != 1 {
		t.Error("the figures do not tell that it is complete")
	}
	if strings.Contains(h.log.String(), p.email) || strings.Contains(h.log.String(), mark) {
		t.Error("the log names the person")
	}
	// The journal goes when no backup from before lives any more, the receipt after three years.
	h.clock.Advance(58 * 24 * time.Hour)
	must(t, h.privacy.Look(ctx, false))
	var n int
	must(t, h.keys.Get(ctx, &n, `SELECT count(*) FROM erasure_journal`))
	if n != 0 || h.count(`SELECT count(*) FROM erasures`) != 1 {
		t.Error("the journal stays, or the receipt goes")
	}
	h.clock.Advance(1095 * 24 * time.Hour)
	must(t, h.privacy.Look(ctx, false))
	if h.count(`SELECT count(*) FROM erasures`) != 0 || h.count(`SELECT count(*) FROM subjects WHERE id = ?`, p.id) != 1 {
		t.Error("the receipt stays, or the id could be used again")
	}
}

// What the map does not describe could hold anything of the person.
func TestWhatTheMapDoesNotKnowKeepsAnErasureOpen(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.live("ann", 1)
		id, _ := h.close(p)
		_, err := h.db.Exec(ctx, `CREATE TABLE strangers (id TEXT PRIMARY KEY, owner TEXT)`)
		must(t, err)
		if err := h.erase(id); err == nil {
			t.Error("complete beside a table that nobody described")
		}
		if list, err := h.privacy.Erasures(ctx, false, "", 10); err != nil || len(list) != 1 || list[0].Failure != "map_differs" {
			t.Errorf("%+v, %v", list, err)
		}
		_, err = h.db.Exec(ctx, `DROP TABLE strangers`)
		must(t, err)
		must(t, h.erase(id))
		h.erased(p)
	})
}

// Several workers at one erasure do it once.
func TestTwoWorkersAtTheSameErasure(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		p := h.live("ann", 20)
		id, secret := h.close(p)
		services := []*privacy.Service{h.privacy}
		for range 2 {
			h.rooms()
			services = append(services, h.privacy)
		}
		var work sync.WaitGroup
		for _, s := range services {
			work.Go(func() {
				for {
					after, err := s.Erase(context.Background(), id)
					if err != nil {
						t.Error(err)
						return
					}
					if after == 0 {
						return
					}
					h.clock.Advance(max(after, time.Minute))
				}
			})
		}
		work.Wait()
		h.erased(p)
		r := h.receipt(id, secret)
		wantDeleted(t, r, map[string]int64{"objects images/": 40, "main images": 21, "main generations": 21, "main users": 1})
		if n := strings.Count(h.log.String(), "an erasure is complete"); n != 1 {
			t.Errorf("it was complete %d times", n)
		}
	})
}

// lent is an object store that has something happen behind the first object it gives out.
type lent struct {
	objects.Store
	then func() // once
}

func (l *lent) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	r, size, err := l.Store.Get(ctx, key)
	if then := l.then; then != nil {
		l.then = nil
		then()
	}
	return r, size, err
}

// A worker who finds the key gone while it seals anew what is held, since another one was
// faster, has not failed: it goes on where the other is.
func TestPromise_R8_AFasterWorkerIsNoFailure(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		p := h.newcomer("ann")
		image := h.paint(p, 2)[0]
		_, err := h.place(p.id, "images", image)
		must(t, err)
		id, secret := h.close(p)
		ahead := 0
		h.away.Store = &lent{Store: h.store, then: func() {
			must(t, h.erase(id))
			ahead++
		}}
		if err := h.erase(id); err != nil || ahead != 1 {
			t.Errorf("%v, behind %d workers", err, ahead)
		}
		if n := h.figure("zimage_erasure_failures_total") + float64(h.count(`SELECT failures FROM erasures WHERE id = ?`, id)); n != 0 {
			t.Errorf("%v failures are counted", n)
		}
		if there, readable := h.kept(p.id, image); !there || !readable {
			t.Errorf("what is held is there: %v, and readable: %v", there, readable)
		}
		if r := h.receipt(id, secret); r.State != "complete" {
			t.Errorf("the receipt is %s", r.State)
		}
	})
}

// An erasure while the person's jobs run: they are stopped, and their results leave
// nothing, also those of a worker that hears of nothing and stores in the end.
func TestPromise_R7_ALateWorkerLeavesNothing(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		h.engine = func(context.Context, engine.Request) ([]byte, error) { return picture(), nil }
		waiting, open := h.late.hold()
		t.Cleanup(open)
		stop := h.work()
		g, _, err := h.generate.Submit(ctx, p.id, generate.Request{Prompt: mark, Width: 256, Height: 256}, nil)
		must(t, err)
		_, _, err = h.generate.Submit(ctx, p.id, generate.Request{Prompt: mark, Width: 256, Height: 256}, nil)
		must(t, err)
		key := <-waiting

		// The mails first, as they would be with a real clock.
		testenv.Eventually(t, 30*time.Second, func() bool {
			return h.count(`SELECT count(*) FROM jobs WHERE kind = 'mail:send' AND state IN ('queued', 'running')`) == 0
		})
		id, secret := h.close(p)
		testenv.Eventually(t, 60*time.Second, func() bool {
			// The worker is silent for longer than its lease: its jobs are ended without it.
			h.clock.Advance(jobs.Lease + time.Second)
			_, err := h.privacy.Erase(ctx, id)
			must(t, err)
			list, err := h.privacy.Erasures(ctx, false, "", 10)
			return err == nil && len(list) == 1 && list[0].Step == "processors_told"
		})
		signed, err := h.privacy.Receipt(ctx, id, secret)
		must(t, err)
		var r privacy.Receipt
		must(t, json.Unmarshal(signed.Receipt, &r))
		if r.State != "open" || r.WaitsUntil == nil || r.WaitsUntil.Before(h.clock.Now().Add(23*time.Hour)) {
			t.Errorf("the receipt is %s and waits until %v", r.State, r.WaitsUntil)
		}
		h.erased(p)
		open()
		stop() // however many attempts there were, each has stored what it had
		if !slices.Contains(h.objects("images/"+p.id+"/"), key) {
			t.Error("the late worker stored nothing")
		}
		if n := h.count(`SELECT count(*) FROM jobs WHERE party = ?`, p.id) + h.figureOfBusy(); n != 0 {
			t.Errorf("%d jobs are left", n)
		}
		if n := h.count(`SELECT count(*) FROM images WHERE generation_id = ?`, g.ID) + h.count(`SELECT count(*) FROM generations WHERE id = ?`, g.ID); n != 0 {
			t.Errorf("the late worker left %d rows", n)
		}
		must(t, h.erase(id))
		h.erased(p)
		if got := h.receipt(id, secret); got.CompletedAt.Before(*r.WaitsUntil) {
			t.Errorf("complete at %v, before late work was over", got.CompletedAt)
		}
	})
}

// figureOfBusy counts jobs that run, of anybody.
func (h *home) figureOfBusy() int {
	return h.count(`SELECT count(*) FROM jobs WHERE state = 'running' AND kind <> ?`, privacy.KindErasure)
}

// A main database restored from before an erasure brings nobody back: nothing is
// served from it until the journal is replayed.
func TestPromise_R7_ARestoredBackupBringsNobodyBack(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		empty := h.backup()
		ann, ben := h.live("ann", 2), h.live("ben", 1)
		bens := h.found(ben.id)
		before := h.backup()
		type object struct {
			key  string
			data []byte
		}
		var copied []object
		for _, key := range h.objects("images/" + ann.id + "/") {
			body, _, err := h.store.Get(ctx, key)
			must(t, err)
			text, err := readAll(body)
			must(t, errors.Join(err, body.Close()))
			copied = append(copied, object{key, []byte(text)})
		}
		id, secret := h.close(ann)
		must(t, h.erase(id))
		h.erased(ann)
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%d are to be replayed, %v", n, err)
		}

		for name, address := range map[string]string{"before": before, "empty": empty} {
			h.reopen(address, "")
			h.at.Database = address
			for _, o := range copied {
				must(t, h.store.Put(ctx, o.key, bytes.NewReader(o.data), int64(len(o.data))))
			}
			h.clock.Advance(time.Hour)
			if n, err := h.privacy.Unreplayed(ctx); n != 1 || err != nil {
				t.Errorf("%s: %d are to be replayed, %v", name, n, err)
			}
			for range 2 { // again changes nothing
				done, err := h.privacy.Replay(ctx)
				if err != nil || done != (privacy.Replayed{Erased: 1}) {
					t.Fatalf("%s: %+v, %v", name, done, err)
				}
			}
			if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
				t.Errorf("%s: %d are to be replayed, %v", name, n, err)
			}
			h.erased(ann)
			if r := h.receipt(id, secret); r.State != "complete" || r.ID != id {
				t.Errorf("%s: the receipt is %+v", name, r)
			}
			if name == "before" {
				if now := h.found(ben.id); !slices.Equal(sorted(now), sorted(bens)) {
					t.Errorf("somebody else had %v and has %v", bens, now)
				}
			}
		}
	})
}

// backup copies the main database, and returns the copy's address.
func (h *home) backup() string {
	h.t.Helper()
	to := h.copied(h.db, h.at.Database)
	if h.at.Dialect == db.Postgres {
		h.reopen(h.at.Database, "")
	}
	return to
}

// backups copies both databases.
func (h *home) backups() (main, keys string) {
	h.t.Helper()
	keys = h.copied(h.keys, h.at.Keys)
	if h.at.Dialect == db.Postgres {
		h.reopen("", h.at.Keys)
	}
	return h.backup(), keys
}

// copied copies a database. On PostgreSQL it is closed for that.
func (h *home) copied(d *db.DB, address string) string {
	h.t.Helper()
	ctx := context.Background()
	if h.at.Dialect == db.SQLite {
		path := filepath.Join(h.t.TempDir(), "restored.db")
		_, err := d.Exec(ctx, `VACUUM INTO ?`, path)
		must(h.t, err)
		return "sqlite:" + path
	}
	must(h.t, d.Close()) // PostgreSQL copies a database that nobody uses
	u, err := url.Parse(address)
	must(h.t, err)
	from := strings.TrimPrefix(u.Path, "/")
	to := fmt.Sprintf("%s_%d", from, time.Now().UnixNano())
	admin := func(statement string) {
		h.t.Helper()
		conn, err := pgx.Connect(ctx, os.Getenv(testenv.PostgresVariable))
		must(h.t, err)
		defer func() { _ = conn.Close(ctx) }()
		_, err = conn.Exec(ctx, statement)
		must(h.t, err)
	}
	admin("CREATE DATABASE " + to + " TEMPLATE " + from)
	h.t.Cleanup(func() { admin("DROP DATABASE " + to + " WITH (FORCE)") })
	u.Path = "/" + to
	return u.String()
}

// Accounts that closed before there were erasures are found, and an erasure whose
// job was lost gets another.
func TestClosedAccountsWithoutAnErasureAreFound(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.live("ann", 1)
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := subject.Close(ctx, tx, p.id, h.clock.Now())
			return err
		}))
		must(t, h.privacy.Look(ctx, false))
		must(t, h.privacy.Look(ctx, false))
		refs := h.queued()
		if len(refs) != 1 {
			t.Fatalf("%d erasures", len(refs))
		}
		_, err := h.db.Exec(ctx, `DELETE FROM jobs WHERE kind = ?`, privacy.KindErasure)
		must(t, err)
		must(t, h.privacy.Look(ctx, false))
		if again := h.queued(); !slices.Equal(again, refs) {
			t.Fatalf("queued are %v, want %v", again, refs)
		}
		must(t, h.erase(refs[0]))
		h.erased(p)
	})
}

// processor is somebody outside, who may be down.
type processor struct {
	down bool
	told []string
}

func (*processor) Name() string { return "mailing house" }

func (p *processor) Erase(_ context.Context, subject string) error {
	if p.down {
		return errors.New("down")
	}
	p.told = append(p.told, subject)
	return nil
}

// A processor that does not answer keeps the erasure open.
func TestPromise_D8_ProcessorsAreToldOrTheErasureStaysOpen(t *testing.T) {
	t.Parallel()
	outside := &processor{down: true}
	h := newHome(t, privacy.Stacks["sqlite, directory"], func(o *privacy.Options) { o.Erasers = []privacy.Eraser{outside} })
	p := h.live("ann", 1)
	id, secret := h.close(p)
	if err := h.erase(id); err == nil {
		t.Fatal("complete, and the processor was not told")
	}
	if list, err := h.privacy.Erasures(context.Background(), false, "", 10); err != nil || len(list) != 1 || list[0].Failure != "processor_failed" {
		t.Errorf("%+v, %v", list, err)
	}
	outside.down = false
	must(t, h.erase(id))
	if r := h.receipt(id, secret); !slices.Equal(outside.told, []string{p.id}) || len(r.Processors) != 1 || r.Processors[0].Name != "mailing house" {
		t.Errorf("told %v, and the receipt says %+v", outside.told, r.Processors)
	}
}

// One changed letter of a receipt is found, and white space is none.
func TestReceiptsCanBeVerifiedWithoutTheService(t *testing.T) {
	t.Parallel()
	h := newHome(t, privacy.Stacks["sqlite, directory"])
	p := h.newcomer("ann")
	id, secret := h.close(p)
	must(t, h.erase(id))
	signed, err := h.privacy.Receipt(context.Background(), id, secret)
	must(t, err)
	text, err := json.MarshalIndent(signed, "", "\t")
	must(t, err)
	r, key, err := privacy.VerifyReceipt(text, nil)
	if err != nil || r.Subject != p.id || !bytes.Equal(key, h.public) {
		t.Fatalf("%+v, %v", r, err)
	}
	if !strings.Contains(r.String(), "complete") || !strings.Contains(r.String(), "no backup can open") {
		t.Errorf("in words: %s", r)
	}
	for _, changed := range [][]byte{
		bytes.Replace(text, []byte(p.id), []byte("sub_other"), 1), bytes.Replace(text, []byte(`"deleted": 1`), []byte(`"deleted": 0`), 1),
	} {
		if _, _, err := privacy.VerifyReceipt(changed, nil); !errors.Is(err, privacy.ErrSignature) {
			t.Errorf("a changed receipt: %v", err)
		}
	}
	if _, _, err := privacy.VerifyReceipt(text, make([]byte, 32)); !errors.Is(err, privacy.ErrSignature) {
		t.Errorf("another key: %v", err)
	}
	for _, none := range []string{"", "{}", `{"receipt":{}}`, "null"} {
		if _, _, err := privacy.VerifyReceipt([]byte(none), nil); err == nil {
			t.Errorf("%q is a receipt", none)
		}
	}
}
