package privacy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

var start = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// book is a ledger on a database and key store of the test's own.
type book struct {
	*Ledger
	t     testing.TB
	place Place
	db    *db.DB
	vault *vault.Vault
	clock *clock.Clock
}

func onBoth(t *testing.T, test func(t *testing.T, b *book)) {
	t.Helper()
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			test(t, newBook(t, dialect))
		})
	}
}

func newBook(t testing.TB, dialect db.Dialect) *book {
	t.Helper()
	return openBook(t, NewPlace(t, Stack{Dialect: dialect}, t.TempDir(), start), nil)
}

// openBook is one process on it.
func openBook(t testing.TB, at Place, c *clock.Clock) *book {
	t.Helper()
	p, err := at.Open(context.Background(), c, db.Options{MaxConnections: 8})
	t.Cleanup(p.Close)
	must(t, err)
	return &book{Ledger: NewLedger(LedgerOptions{DB: p.DB, Vault: p.Vault, Clock: p.Clock}), t: t, place: at, db: p.DB, vault: p.Vault, clock: p.Clock}
}

// queue is one with a Redis, that knows how to seal.
func (b *book) queue() *jobs.Queue {
	b.t.Helper()
	o, err := redis.ParseURL(testenv.Redis(b.t))
	must(b.t, err)
	client, metrics := redis.NewClient(o), jobs.NewMetrics(nil)
	bell := jobs.NewBell(client, metrics)
	b.t.Cleanup(func() { bell.Close(); _ = client.Close() })
	q := jobs.New(b.db, b.clock, bell, metrics, slog.New(slog.DiscardHandler))
	q.Register(b.Kind())
	return q
}

func (b *book) process() *book { return openBook(b.t, b.place, b.clock) }

func (b *book) people(subjects ...string) {
	b.t.Helper()
	for _, s := range subjects {
		if err := b.vault.Create(context.Background(), s); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *book) happens(list ...events.Event) {
	b.t.Helper()
	ctx := context.Background()
	for _, e := range list {
		b.clock.Advance(time.Second) // ids of one millisecond have no order
		e.At = b.clock.Now()
		if err := b.db.Tx(ctx, func(tx *db.Tx) error { return b.Happened(ctx, tx, e) }); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *book) seal() int {
	b.t.Helper()
	n, err := b.Seal(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *book) exec(statement string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Exec(context.Background(), statement, args...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *book) whole(held *Checkpoint) LedgerReport {
	b.t.Helper()
	r, err := b.Verify(context.Background(), held, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// wrong wants a fault whose words hold says.
func (b *book) wrong(what string, held *Checkpoint, says string) {
	b.t.Helper()
	_, err := b.Verify(context.Background(), held, nil)
	var f *LedgerFault
	if !errors.As(err, &f) || !strings.Contains(f.What, says) {
		b.t.Errorf("%s: %v, want %q", what, err, says)
	}
}

// checkpoint is the first that everybody gets after what has happened.
func (b *book) checkpoint() *Checkpoint {
	b.t.Helper()
	b.clock.Advance(checkpointEvery + checkpointRest)
	c, err := b.Checkpoint(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return &c
}

const secret = "asked about the violet tractor"

func opened(subject string) events.Event {
	return events.Event{Type: events.StaffOpened, Subject: subject,
		Facts: map[events.Fact]string{events.Staff: "sub_eve", events.Role: "support", events.Reason: secret}}
}

// small is two batches of two entries and one that waits; the last one's details
// are nobody's.
func (b *book) small() {
	b.t.Helper()
	b.people("sub_ann", "sub_ben")
	b.happens(opened("sub_ann"), events.Event{Type: events.StaffDisclosed, Subject: "sub_ben", Hidden: true, Facts: map[events.Fact]string{events.Case: "17"}})
	b.seal()
	b.happens(events.Event{Type: events.ConsentGiven, Subject: "sub_ann"}, events.Event{Type: events.PolicyPublished, Ref: "2026-02"})
	b.seal()
	b.happens(events.Event{Type: events.AccountClosing, Subject: "sub_ben"})
}

func TestPromise_X3_AOneBitEditIsFound(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		ctx := context.Background()
		b.small()
		if r := b.whole(b.checkpoint()); r != (LedgerReport{Batches: 2, Entries: 4, Waiting: 1}) {
			t.Fatalf("%+v", r)
		}
		edits := 0
		try := func(table, key, id, column string, before, after any) {
			t.Helper()
			set := func(value any, id any) error {
				_, err := b.db.Exec(ctx, `UPDATE `+table+` SET `+column+` = ? WHERE `+key+` = ?`, value, id)
				return err
			}
			var at any = id
			if key == "number" {
				at = before
				if column != "number" {
					at = json.Number(id)
				}
			}
			if err := set(after, at); err != nil {
				return // the database itself refuses such a value
			}
			edits++
			var f *LedgerFault
			if _, err := b.Verify(ctx, nil, nil); !errors.As(err, &f) {
				t.Errorf("%s %s: %s is %v instead of %v, and nobody notices (%v)", table, id, column, after, before, err)
			}
			if key == strings.TrimSpace(column) {
				at = after
			}
			if err := set(before, at); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			table, key, column string
			kind               string
		}{
			{"ledger_entries", "id", "id", "text"}, {"ledger_entries", "id", "kind", "text"}, {"ledger_entries", "id", "at", "number"},
			{"ledger_entries", "id", "commitment", "bytes"}, {"ledger_entries", "id", "sequence", "number"},
			{"ledger_details", "entry_id", "entry_id", "text"}, {"ledger_details", "entry_id", "subject", "text"},
			{"ledger_details", "entry_id", "hidden", "bit"}, {"ledger_details", "entry_id", "details", "bytes"},
			{"ledger_batches", "number", "number", "number"}, {"ledger_batches", "number", "first", "number"}, {"ledger_batches", "number", "entries", "number"},
			{"ledger_batches", "number", "at", "number"}, {"ledger_batches", "number", "hash", "bytes"}, {"ledger_batches", "number", "signature", "bytes"},
		} {
			edits = 0
			var ids []string
			if err := b.db.Select(ctx, &ids, `SELECT CAST(`+c.key+` AS TEXT) FROM `+c.table+` WHERE `+c.column+` IS NOT NULL`); err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				var value []byte
				var n int64
				dest := any(&value)
				if c.kind == "number" || c.kind == "bit" {
					dest = &n
				}
				if err := b.db.Get(ctx, dest, `SELECT `+c.column+` FROM `+c.table+` WHERE CAST(`+c.key+` AS TEXT) = ?`, id); err != nil {
					t.Fatal(err)
				}
				switch c.kind {
				case "number":
					for bit := range 63 {
						try(c.table, c.key, id, c.column, n, n^1<<bit)
					}
				case "bit":
					for bit := range 31 {
						try(c.table, c.key, id, c.column, n, n^1<<bit)
					}
				default:
					for i := range value {
						other := bytes.Clone(value)
						other[i] ^= 1 << (i % 8)
						if c.kind == "text" {
							try(c.table, c.key, id, c.column, string(value), string(other))
						} else {
							try(c.table, c.key, id, c.column, value, other)
						}
					}
				}
			}
			if edits < 20 {
				t.Errorf("only %d edits of %s.%s were tried", edits, c.table, c.column)
			}
		}
		b.whole(nil) // all is as it was
	})
}

func TestPromise_X3_AReorderADeletionAndATruncationAreFound(t *testing.T) {
	t.Parallel()
	swap := func(b *book, table, column string) {
		for _, step := range [][2]int{{1, 900}, {2, 1}, {900, 2}} {
			b.exec(`UPDATE `+table+` SET `+column+` = ? WHERE `+column+` = ?`, step[1], step[0])
		}
	}
	cutOff := func(b *book) {
		b.exec(`DELETE FROM ledger_batches WHERE number = 2`)
		b.exec(`DELETE FROM ledger_details WHERE entry_id IN (SELECT id FROM ledger_entries WHERE sequence > 2)`)
		b.exec(`DELETE FROM ledger_entries WHERE sequence > 2`)
	}
	for name, tt := range map[string]struct {
		change func(b *book)
		says   string
		held   bool // found only against a checkpoint
	}{
		"two entries change places": {func(b *book) { swap(b, "ledger_entries", "sequence") }, "batch 1", false},
		"two batches change places": {func(b *book) { swap(b, "ledger_batches", "number") }, "batch 1", false},
		"an entry is deleted":       {func(b *book) { b.exec(`DELETE FROM ledger_entries WHERE sequence = 2`) }, "entry 2, in batch 1, is missing", false},
		"and those behind it move up": {func(b *book) {
			b.exec(`DELETE FROM ledger_entries WHERE sequence = 1`)
			b.exec(`UPDATE ledger_entries SET sequence = sequence - 1 WHERE sequence = 2`)
			b.exec(`UPDATE ledger_batches SET entries = 1 WHERE number = 1`)
			b.exec(`UPDATE ledger_batches SET first = 2 WHERE number = 2`)
		}, "batch 1", false},
		"a waiting entry is deleted": {func(b *book) { b.exec(`DELETE FROM ledger_entries WHERE sequence IS NULL`) }, "its details are there", false},
		"an entry is put in":         {func(b *book) { b.exec(`UPDATE ledger_entries SET sequence = 5 WHERE sequence IS NULL`) }, "no batch holds", false},
		"a batch is deleted":         {func(b *book) { b.exec(`DELETE FROM ledger_batches WHERE number = 1`) }, "batch 1 is missing", false},
		"the last batch is deleted":  {func(b *book) { b.exec(`DELETE FROM ledger_batches WHERE number = 2`) }, "no batch holds", false},
		"details of somebody else": {func(b *book) {
			b.exec(`UPDATE ledger_details SET details = (SELECT details FROM ledger_details WHERE subject = '') WHERE subject = 'sub_ann'`)
		}, "do not fit", false},
		"the end is cut off": {cutOff, "ends with batch 1, and was another one at ", true},
		"and goes on":        {func(b *book) { cutOff(b); b.seal() }, "written anew", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, b *book) {
				b.small()
				held := b.checkpoint()
				tt.change(b)
				if tt.held {
					b.whole(nil)
				} else {
					b.wrong("alone", nil, tt.says)
				}
				if b.wrong("against a checkpoint", held, ""); tt.held {
					b.wrong("against a checkpoint", held, tt.says)
				}
			})
		})
	}
}

// Whoever has the database and not the roots can make a chain, and not sign it.
func TestPromise_X3_AChainWrittenAnewIsFound(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		b.small()
		held := b.checkpoint()
		b.exec(`DELETE FROM ledger_batches`)
		b.exec(`UPDATE ledger_entries SET sequence = NULL`)
		b.exec(`DELETE FROM ledger_details WHERE subject = 'sub_ben'`)
		b.exec(`DELETE FROM ledger_entries WHERE kind = 'staff.disclosed'`)
		forger := newBook(t, b.db.Dialect())
		NewLedger(LedgerOptions{DB: b.db, Vault: forger.vault, Clock: b.clock}).Seal(context.Background()) //nolint:errcheck // below
		b.wrong("with another key", nil, "not signed by this installation")
		b.exec(`DELETE FROM ledger_batches`)
		b.exec(`UPDATE ledger_entries SET sequence = NULL`)
		b.seal() // even with the key
		b.whole(nil)
		b.wrong("against a checkpoint", held, "checkpoint")

		foreign := *held
		foreign.PublicKey = forger.vault.PublicKey()
		edited := *held
		edited.At = edited.At.Add(time.Hour)
		for what, c := range map[string]*Checkpoint{"another installation": &foreign, "it was changed": &edited} {
			if _, err := b.Verify(context.Background(), c, nil); err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestCheckpointsAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		b.whole(b.checkpoint()) // of nothing
		b.small()
		now, err := b.CheckpointNow(context.Background())
		if err != nil || !now.At.Equal(b.clock.Now()) {
			t.Fatalf("%+v, %v", now, err)
		}
		b.whole(&now)
		held := b.checkpoint()
		text, err := json.Marshal(held)
		if err != nil {
			t.Fatal(err)
		}
		read, err := ParseCheckpoint(text)
		if err != nil || !read.Genuine() || !read.PublicKey.Equal(b.vault.PublicKey()) {
			t.Fatalf("%+v, %v", read, err)
		}
		b.seal()
		b.whole(&read)
		for what, document := range map[string]any{
			"manifest": map[string]any{"format": "zimage-export/1", "records": 7, "checkpoint": held},
			"receipt":  map[string]any{"receipt": map[string]any{"id": "era_1", "checkpoint": held}, "public_key": b.vault.PublicKey()},
		} {
			text, err := json.Marshal(document)
			if err != nil {
				t.Fatal(err)
			}
			if in, err := ParseCheckpoint(text); err != nil || !in.Genuine() || !bytes.Equal(in.Hash, held.Hash) {
				t.Errorf("in a %s: %+v, %v", what, in, err)
			}
		}
		for _, wrong := range []string{"", "{}", `{"checkpoint":null}`, `{"receipt":{}}`, `{"checkpoint":{"at":"2026-01-01T00:00:00Z"}}`, "[]", `{"at":"2026-01-01T00:00:00Z"}`, `{"at":"2026-01-01T00:00:00Z","hash":"AA==","public_key":"AA=="}`} {
			if _, err := ParseCheckpoint([]byte(wrong)); err == nil {
				t.Errorf("%q was taken", wrong)
			}
		}
		if read.At = read.At.Add(time.Hour); read.Genuine() {
			t.Error("the signature fits everything")
		}
	})
}

// Whoever fetches every checkpoint learns nothing: there is one an hour, and it is
// another one each hour, whether something that must not be told was sealed or not.
func TestPromise_D2_CheckpointsDoNotTellWhetherAnythingHappened(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		b.people("sub_ann")
		b.clock.Advance(b.clock.Now().Truncate(checkpointEvery).Add(checkpointEvery).Sub(b.clock.Now())) // begins an hour
		seen := map[string]bool{}
		for hour, happens := range []bool{false, false, true, false, true, true, false} {
			var first Checkpoint
			for minute := range 60 {
				if happens && minute%7 == 3 {
					b.happens(events.Event{Type: events.StaffDisclosed, Subject: "sub_ann", Hidden: true})
					b.seal()
				}
				c, err := b.Checkpoint(context.Background())
				if err != nil || !c.Genuine() || !c.At.Equal(c.At.Truncate(checkpointEvery)) {
					t.Fatalf("%+v, %v", c, err)
				}
				if minute == int(checkpointRest/time.Minute) {
					if first = c; seen[string(c.Hash)] {
						t.Errorf("hour %d: the checkpoint of another hour", hour)
					}
					seen[string(c.Hash)] = true
				}
				if minute > int(checkpointRest/time.Minute) && !reflect.DeepEqual(c, first) {
					t.Errorf("hour %d: it changes in minute %d", hour, minute)
				}
				b.clock.Advance(time.Minute)
			}
			b.whole(&first)
			text, err := json.Marshal(first)
			if err != nil {
				t.Fatal(err)
			}
			var fields map[string]any
			if err := json.Unmarshal(text, &fields); err != nil || len(fields) != 4 || strings.Contains(string(text), "batch") {
				t.Errorf("%s", text)
			}
			var known int
			if err := b.db.Get(context.Background(), &known, `SELECT count(*) FROM ledger_batches WHERE hash = ?`, first.Hash); err != nil || known != 0 {
				t.Errorf("%d batches have the hash that everybody sees (%v)", known, err)
			}
		}
	})
}

func TestErasedDetailsKeepTheChainValid(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		ctx := context.Background()
		b.small()
		held := b.checkpoint()
		// The key goes, then the rows; what happens afterwards is kept without a name.
		if err := b.vault.Destroy(ctx, "sub_ann"); err != nil {
			t.Fatal(err)
		}
		if r := b.whole(held); r.Erased != 2 {
			t.Errorf("%+v", r)
		}
		b.exec(`DELETE FROM ledger_details WHERE subject = 'sub_ann'`)
		b.happens(events.Event{Type: events.HoldReleased, Subject: "sub_ann", Ref: "img_1"})
		b.seal()
		if r := b.whole(held); r != (LedgerReport{Batches: 3, Entries: 6, Erased: 3}) {
			t.Errorf("%+v", r)
		}
		if list, _, err := b.Entries(ctx, "sub_ann", "", 10); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
		var rows []struct {
			ID         string `db:"id"`
			Kind       string `db:"kind"`
			Commitment []byte `db:"commitment"`
		}
		if err := b.db.Select(ctx, &rows, `SELECT id, kind, commitment FROM ledger_entries`); err != nil || len(rows) != 6 {
			t.Fatalf("%d entries, %v", len(rows), err)
		}
		for _, r := range rows {
			if strings.Contains(r.ID+r.Kind, "sub_") || bytes.Contains(r.Commitment, []byte("ann")) {
				t.Errorf("the chain names somebody: %+v", r)
			}
		}
	})
}

func TestEntriesOfAPerson(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		ctx := context.Background()
		b.small()
		b.happens(opened("sub_ann"), events.Event{Type: events.GenerationQueued, Subject: "sub_ann", Ref: "gen_1"})
		var raw [][]byte
		if err := b.db.Select(ctx, &raw, `SELECT details FROM ledger_details WHERE subject <> ''`); err != nil {
			t.Fatal(err)
		}
		for _, d := range raw {
			if bytes.Contains(d, []byte("violet")) || bytes.Contains(d, []byte("eve")) {
				t.Error("details are readable")
			}
		}
		var kinds []events.Type
		var pages int
		for cursor := ""; ; pages++ {
			list, next, err := b.Entries(ctx, "sub_ann", cursor, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				kinds = append(kinds, e.Kind)
				if _, shown := e.Facts[events.Staff]; shown || e.Damaged || e.At.IsZero() {
					t.Errorf("%+v", e)
				}
				if e.Kind == events.StaffOpened && (e.Facts[events.Reason] != secret || e.Facts[events.Role] != "support") {
					t.Errorf("%+v", e)
				}
				if first := len(kinds) == 1; e.Sealed == first { // the newest waits
					t.Errorf("entry %d: sealed is %v", len(kinds), e.Sealed)
				}
			}
			if next == "" {
				break
			}
			if _, _, err := b.Entries(ctx, "sub_ben", next, 2); problem.CodeOf(err) != problem.InvalidRequest {
				t.Errorf("a cursor of somebody else: %v", err)
			}
			cursor = next
		}
		if want := []events.Type{events.StaffOpened, events.ConsentGiven, events.StaffOpened}; !slices.Equal(kinds, want) || pages != 1 {
			t.Errorf("%v in %d pages, want %v", kinds, pages+1, want)
		}
		// A disclosure that must not be told is not there; what follows it is.
		list, _, err := b.Entries(ctx, "sub_ben", "", 10)
		if err != nil || len(list) != 1 || list[0].Kind != events.AccountClosing {
			t.Errorf("%+v, %v", list, err)
		}
		b.exec(`UPDATE ledger_details SET details = ? WHERE subject = 'sub_ben'`, []byte("forged"))
		if list, _, err = b.Entries(ctx, "sub_ben", "", 10); err != nil || len(list) != 1 || !list[0].Damaged {
			t.Errorf("%+v, %v", list, err)
		}
		for _, limit := range []int{0, 101} {
			if _, _, err := b.Entries(ctx, "sub_ann", "", limit); problem.CodeOf(err) != problem.InvalidRequest {
				t.Errorf("limit %d: %v", limit, err)
			}
		}
	})
}

func TestNoEntryOfWhatWasRolledBack(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		ctx := context.Background()
		b.people("sub_ann")
		broken := errors.New("something else failed")
		err := b.db.Tx(ctx, func(tx *db.Tx) error {
			if err := b.Happened(ctx, tx, opened("sub_ann")); err != nil {
				return err
			}
			return broken
		})
		if !errors.Is(err, broken) || b.seal() != 0 {
			t.Errorf("%v, or an entry is left", err)
		}
		err = b.db.Tx(ctx, func(tx *db.Tx) error { return b.Happened(ctx, tx, opened("sub_nobody")) })
		if !errors.Is(err, vault.ErrNoKey) {
			t.Errorf("somebody without a key: %v", err)
		}
		b.whole(nil)
	})
}

// Processes that seal at the same time, while others write, make one chain.
func TestManySealersMakeOneChain(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		ctx := context.Background()
		b.people("sub_ann")
		const writers, each = 4, 60
		var writing, sealing sync.WaitGroup
		done := make(chan struct{})
		for range 3 {
			p := b.process()
			sealing.Go(func() {
				for {
					if _, err := p.Seal(ctx); err != nil {
						t.Error(err)
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		for range writers {
			p := b.process()
			writing.Go(func() {
				for range each {
					if err := p.db.Tx(ctx, func(tx *db.Tx) error {
						e := opened("sub_ann")
						e.At = start
						return p.Happened(ctx, tx, e)
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		writing.Wait()
		close(done)
		sealing.Wait()
		b.seal()
		if r := b.whole(b.checkpoint()); r.Entries != writers*each || r.Waiting != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// An entry whose transaction commits after younger ones were sealed is not missed.
func TestALateCommitIsSealed(t *testing.T) {
	t.Parallel()
	b := newBook(t, db.Postgres) // SQLite has one writer
	ctx := context.Background()
	b.people("sub_ann")
	written, goOn, late := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		late <- b.db.Tx(ctx, func(tx *db.Tx) error {
			err := b.Happened(ctx, tx, opened("sub_ann"))
			close(written)
			<-goOn
			return err
		})
	}()
	<-written
	b.happens(opened("sub_ann"))
	if n := b.seal(); n != 1 {
		t.Errorf("%d entries were sealed, want the one that is committed", n)
	}
	close(goOn)
	if err := <-late; err != nil {
		t.Fatal(err)
	}
	if n := b.seal(); n != 1 {
		t.Errorf("the late one: %d", n)
	}
	if r := b.whole(nil); r.Entries != 2 || r.Batches != 2 {
		t.Errorf("%+v", r)
	}
}

// Two schedulers and two workers, as they run.
func TestSchedulersSealWithinAMinute(t *testing.T) {
	t.Parallel()
	if ledgerEvery > 30*time.Second {
		t.Errorf("a tick every %v leaves a job no time within the minute", ledgerEvery)
	}
	onBoth(t, func(t *testing.T, b *book) {
		ctx, stop := context.WithCancel(context.Background())
		b.people("sub_ann")
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		var schedulers []*jobs.Scheduler
		for range 2 {
			p := b.process()
			queue := p.queue()
			schedulers = append(schedulers, queue.NewScheduler(LedgerSchedules()...))
			worker := queue.NewWorker([]jobs.Lane{{Name: jobs.Housekeeping, Slots: jobs.NewFixed(2)}}, time.Second)
			running.Go(func() {
				if err := worker.Run(ctx, nil); err != nil {
					t.Error(err)
				}
			})
		}
		for round := range 3 {
			b.happens(opened("sub_ann"), opened("sub_ann"))
			b.clock.Advance(ledgerEvery)
			var ticks sync.WaitGroup
			for _, s := range schedulers {
				ticks.Go(func() {
					if err := s.Tick(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			ticks.Wait()
			testenv.Eventually(t, 30*time.Second, func() bool {
				var n int
				return b.db.Get(ctx, &n, `SELECT count(*) FROM ledger_entries WHERE sequence IS NULL`) == nil && n == 0
			})
			if r := b.whole(nil); r.Entries != int64(2*round+2) || r.Batches != int64(round+1) {
				t.Errorf("round %d: %+v", round, r)
			}
		}
	})
}

// A long list of other housekeeping does not delay the sealing.
func TestSealingDoesNotQueueBehindSweeps(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		ctx := context.Background()
		queue := b.queue()
		queue.Register(jobs.Kind{Name: "sweep", Run: func(context.Context, *jobs.Run) error { return nil }})
		if err := b.db.Tx(ctx, func(tx *db.Tx) error {
			for range 50 {
				if _, err := queue.Add(ctx, tx, jobs.NewJob{Kind: "sweep"}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := queue.NewScheduler(LedgerSchedules()...).Tick(ctx); err != nil {
			t.Fatal(err)
		}
		var next []string
		if err := b.db.Select(ctx, &next, `SELECT kind FROM jobs WHERE state = 'queued' ORDER BY vstart, id LIMIT 2`); err != nil || !slices.Contains(next, KindLedgerSeal) {
			t.Errorf("next are %v (%v)", next, err)
		}
	})
}

const writeVariable = "ZIMAGE_TEST_LEDGER_WRITER"

// TestLedgerWriter is the process that the next test kills.
func TestLedgerWriter(t *testing.T) {
	text := os.Getenv(writeVariable)
	if text == "" {
		return
	}
	var at Place
	must(t, json.Unmarshal([]byte(text), &at))
	b := openBook(t, at, clock.New())
	ctx := context.Background()
	for n := 0; ; n++ {
		if err := b.db.Tx(ctx, func(tx *db.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO witnesses (at) VALUES (?)`, n); err != nil {
				return err
			}
			return b.Happened(ctx, tx, opened("sub_ann"))
		}); err != nil {
			t.Fatal(err)
		}
		if n%3 == 0 {
			b.seal()
		}
		fmt.Println("written", n)
	}
}

// At every moment there are entries of just what was committed, and one chain.
func TestPromise_X3_KilledBetweenEntryAndSeal(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, b *book) {
		ctx := context.Background()
		b.people("sub_ann")
		b.exec(`CREATE TABLE witnesses (at BIGINT NOT NULL)`)
		for round := range 4 {
			at, err := json.Marshal(b.place)
			must(t, err)
			writer := exec.Command(os.Args[0], "-test.run=^TestLedgerWriter$") //nolint:gosec // this test
			writer.Env = append(os.Environ(), writeVariable+"="+string(at))
			out, err := writer.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := writer.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for n := 0; n < 5+3*round && lines.Scan(); n++ {
			}
			if err := writer.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := writer.Wait(); err == nil || strings.Contains(err.Error(), "exit status") {
				t.Fatalf("it was not killed: %v", err)
			}
			survivor := b.process()
			var witnesses int64
			testenv.Eventually(t, 30*time.Second, func() bool { // PostgreSQL may still end the killed one's transaction
				survivor.seal()
				r, err := survivor.Verify(ctx, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				err = survivor.db.Get(ctx, &witnesses, `SELECT count(*) FROM witnesses`)
				return err == nil && witnesses == r.Entries && r.Waiting == 0
			})
			if witnesses < int64(round+1) {
				t.Errorf("only %d were written", witnesses)
			}
		}
	})
}

// BenchmarkLedgerAppend measures what an entry adds: transactions that write one
// against the floor of transactions that insert two rows of that size, and batches
// against as many updates.
func BenchmarkLedgerAppend(b *testing.B) {
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		b.Run(string(dialect), func(b *testing.B) {
			l := newBook(b, dialect)
			ctx := context.Background()
			l.people("sub_ann")
			l.exec(`CREATE TABLE floor_a (id TEXT PRIMARY KEY, kind TEXT NOT NULL, at BIGINT NOT NULL, commitment BYTEA NOT NULL, sequence BIGINT UNIQUE)`)
			l.exec(`CREATE TABLE floor_b (id TEXT PRIMARY KEY, subject TEXT NOT NULL, hidden INTEGER NOT NULL, details BYTEA NOT NULL)`)
			const n = 300
			timed := func(f func(i int) error) time.Duration {
				began := time.Now()
				for i := range n {
					if err := f(i); err != nil {
						b.Fatal(err)
					}
				}
				return time.Since(began)
			}
			var next int64
			for b.Loop() {
				var ids []string
				floor := timed(func(int) error {
					id := db.NewID("led", l.clock.Now())
					ids = append(ids, id)
					return l.db.Tx(ctx, func(tx *db.Tx) error {
						if _, err := tx.Exec(ctx, `INSERT INTO floor_a (id, kind, at, commitment) VALUES (?, ?, ?, ?)`, id, "staff.opened", 1, make([]byte, 32)); err != nil {
							return err
						}
						_, err := tx.Exec(ctx, `INSERT INTO floor_b (id, subject, hidden, details) VALUES (?, ?, 0, ?)`, id, "sub_ann", make([]byte, 200))
						return err
					})
				})
				took := timed(func(int) error {
					return l.db.Tx(ctx, func(tx *db.Tx) error { return l.Happened(ctx, tx, opened("sub_ann")) })
				})
				began := time.Now()
				if err := l.db.Tx(ctx, func(tx *db.Tx) error {
					for _, id := range ids {
						next++
						if _, err := tx.Exec(ctx, `UPDATE floor_a SET sequence = ? WHERE id = ?`, next, id); err != nil {
							return err
						}
					}
					return nil
				}); err != nil {
					b.Fatal(err)
				}
				updates := time.Since(began)
				began = time.Now()
				if got := l.seal(); got != n {
					b.Fatal(got)
				}
				sealed := time.Since(began)
				began = time.Now()
				r := l.whole(nil)
				verified := time.Since(began)
				b.ReportMetric(n/took.Seconds(), "entries/s")
				b.ReportMetric(floor.Seconds()/took.Seconds(), "ratio-append")
				b.ReportMetric(updates.Seconds()/sealed.Seconds(), "ratio-seal")
				b.ReportMetric(float64(r.Entries)/verified.Seconds(), "verified/s")
			}
		})
	}
}
