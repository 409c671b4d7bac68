package db_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

func TestTransactionsCommitRollBackAndTellAfterwards(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		if _, err := d.Exec(ctx, `CREATE TABLE kept (id TEXT PRIMARY KEY, body BYTEA)`); err != nil {
			t.Fatal(err)
		}
		var told []string
		no := errors.New("no")
		for id, fails := range map[string]error{"good": nil, "bad": no} {
			err := d.Tx(ctx, func(tx *db.Tx) error {
				tx.AfterCommit(func() { told = append(told, id) })
				if _, err := tx.Exec(ctx, `INSERT INTO kept (id, body) VALUES (?, ?)`, id, []byte{0, 1}); err != nil {
					return err
				}
				return fails
			})
			if !errors.Is(err, fails) {
				t.Errorf("%s: %v, want %v", id, err, fails)
			}
		}
		var ids []string
		if err := d.Select(ctx, &ids, `SELECT id FROM kept`); err != nil || !slices.Equal(ids, []string{"good"}) || !slices.Equal(told, ids) {
			t.Errorf("rows %v, told %v (%v); want the committed one alone", ids, told, err)
		}
		_, err := d.Exec(ctx, `INSERT INTO kept (id) VALUES (?)`, "good")
		if !db.IsUnique(err) || db.IsAway(err) {
			t.Errorf("a duplicate: unique %v, away %v", db.IsUnique(err), db.IsAway(err))
		}
		if err == nil || strings.Contains(err.Error(), "good") {
			t.Errorf("the error quotes a value: %v", err)
		}
		var body []byte
		if err := d.Get(ctx, &body, `SELECT body FROM kept WHERE id = ?`, "nobody"); !errors.Is(err, sql.ErrNoRows) || db.IsAway(err) {
			t.Errorf("no row: %v", err)
		}
	})
}

func TestAPanicEndsItsTransaction(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		func() {
			defer func() { _ = recover() }()
			_ = d.Tx(t.Context(), func(*db.Tx) error { panic("stop") })
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := d.Tx(ctx, func(*db.Tx) error { return nil }); err != nil { // SQLite has one writer
			t.Errorf("the transaction of a panic is still open: %v", err)
		}
	})
}

func TestParallelWritersAllGetTheirTurn(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		if _, err := d.Exec(ctx, `CREATE TABLE counter (n INTEGER)`); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Exec(ctx, `INSERT INTO counter VALUES (0)`); err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		for range 200 {
			work.Go(func() {
				err := d.Tx(ctx, func(tx *db.Tx) error {
					var n int
					if err := tx.Get(ctx, &n, `SELECT n FROM counter`+db.ForUpdate(tx)); err != nil {
						return err
					}
					_, err := tx.Exec(ctx, `UPDATE counter SET n = ?`, n+1)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		var n int
		if err := d.Get(ctx, &n, `SELECT n FROM counter`); err != nil || n != 200 {
			t.Errorf("counted %d of 200 (%v)", n, err)
		}
	})
}

// What is not the database's failure must not make anybody wait for it.
func TestIsAwayKnowsOnlyTheDatabasesFailures(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"nothing":            nil,
		"an error of a room": errors.New("vault: sealed data does not open"),
		"wrapped":            fmt.Errorf("open: %w", errors.New("no")),
		"canceled":           fmt.Errorf("query: %w", context.Canceled),
		"no rows":            sql.ErrNoRows,
		"a missing file":     os.ErrNotExist,
	} {
		if db.IsAway(err) {
			t.Errorf("%s counts as the database being away", name)
		}
	}
	if !db.IsAway(fmt.Errorf("query: %w", context.DeadlineExceeded)) {
		t.Error("a statement that took too long does not count")
	}
}

func TestEveryErrorOfAKilledPostgresIsAway(t *testing.T) {
	t.Parallel()
	s := testenv.PrivatePostgres(t)
	d, err := db.Open(t.Context(), s.URL(), db.Options{MaxConnections: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	ctx := t.Context()
	if _, err := d.Exec(ctx, `CREATE TABLE marks (n INTEGER)`); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	failed, wrong := 0, map[string]bool{}
	done, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for done.Err() == nil {
				err := d.Tx(ctx, func(tx *db.Tx) error {
					if _, err := tx.Exec(ctx, `INSERT INTO marks VALUES (1)`); err != nil {
						return err
					}
					var n int
					return tx.Get(ctx, &n, `SELECT 1 FROM pg_sleep(0.005)`)
				})
				if err == nil {
					continue
				}
				mu.Lock()
				failed++
				if !db.IsAway(err) {
					wrong[fmt.Sprintf("%T: %v", err, err)] = true
				}
				mu.Unlock()
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return failed }
	for range 3 {
		before := count()
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 10*time.Second, func() bool { return count() >= before+20 })
		if err := s.Start(ctx); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 10*time.Second, func() bool { return d.Ping(ctx) == nil })
	}
	stop()
	work.Wait()
	for w := range wrong {
		t.Errorf("not known as away: %s", w)
	}
	if d.Failures() == 0 {
		t.Error("no failure was counted")
	}
}

// The context may end while a statement runs or between two of them.
func TestATransactionOutOfTimeIsAway(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := d.Tx(ctx, func(tx *db.Tx) error {
			<-ctx.Done()
			for { // until database/sql has noticed
				if _, err := tx.Exec(t.Context(), `DELETE FROM jobs`); err != nil {
					return fmt.Errorf("delete: %w", err)
				}
			}
		})
		if !db.IsAway(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAnUnreachableDatabaseIsNotQuoted(t *testing.T) {
	t.Parallel()
	_, err := db.Open(t.Context(), "postgres://somebody:hunter2@127.0.0.1:1/place", db.Options{})
	if !db.IsAway(err) {
		t.Errorf("%v is not away", err)
	}
	for _, secret := range []string{"somebody", "hunter2", "127.0.0.1", "place"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error quotes %q: %v", secret, err)
		}
	}
}

// A database that takes connections and says nothing is away; the time of its
// caller was not up.
func TestADatabaseThatDoesNotGreetIsUnavailable(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	d, err := db.Open(t.Context(), "postgres://someone@"+silent.Addr().String()+"/nothing?connect_timeout=1&sslmode=disable", db.Options{})
	if err == nil {
		defer func() { _ = d.Close() }()
		_, err = d.Exec(t.Context(), `SELECT 1`)
	}
	if problem.CodeOf(db.Unavailable(err)) != problem.Unavailable {
		t.Errorf("it is %v", err)
	}
}

func TestALockedSQLiteIsAway(t *testing.T) {
	t.Parallel()
	d, _ := testenv.Database(t, db.SQLite)
	ctx := t.Context()
	held, release := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- d.Tx(ctx, func(*db.Tx) error {
			close(held)
			<-release
			return nil
		})
	}()
	<-held
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := d.Exec(short, `DELETE FROM jobs`); !db.IsAway(err) {
		t.Errorf("waiting for the writer in vain is not known as away: %v", err)
	}
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAnIDSortsByItsTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	var ids []string
	for i := range 1000 {
		now := at.Add(time.Duration(i) * time.Millisecond)
		id := db.NewID("gen", now)
		if floor, next := db.FloorID("gen", now), db.FloorID("gen", now.Add(time.Millisecond)); id < floor || id >= next {
			t.Fatalf("%s is not between %s and %s", id, floor, next)
		}
		ids = append(ids, id)
	}
	if !slices.IsSorted(ids) || len(slices.Compact(ids)) != 1000 {
		t.Error("ids do not sort by their time, or repeat")
	}
}

// An id that is to sort behind another does, whatever the clocks say.
func TestTheNextIDSortsBehind(t *testing.T) {
	t.Parallel()
	now := time.Date(2031, 3, 3, 12, 0, 0, 0, time.UTC)
	last := ""
	for _, at := range []time.Duration{0, 0, 0, -time.Hour, time.Hour, time.Hour - time.Millisecond, 2 * time.Hour} {
		id := db.NextID("evt", now.Add(at), last)
		if id <= last || len(id) != len(db.NewID("evt", now)) {
			t.Errorf("%s is not behind %s", id, last)
		}
		last = id
	}
	if last < db.FloorID("evt", now.Add(2*time.Hour)) {
		t.Error("a clock that has caught up is not followed")
	}
	full := "evt_" + strings.Repeat("0", 9) + strings.Repeat("z", 16) + "w" // all of the random bits are set
	if id := db.NextID("evt", time.UnixMilli(0), full); id <= full {
		t.Errorf("%s is not behind %s", id, full)
	}
}

func TestAnIDWithANumber(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text, id string
		n        int64
		ok       bool
	}{
		{db.Numbered("sub_a", 1_900_000_000_000), "sub_a", 1_900_000_000_000, true},
		{"whk_a@7", "whk_a", 7, true},
		{"whk_a", "whk_a", 0, false},
		{"whk_a@", "whk_a@", 0, false},
		{"whk_a@7@8", "whk_a@7@8", 0, false},
	} {
		if id, n, ok := db.ParseNumbered(tt.text); id != tt.id || n != tt.n || ok != tt.ok {
			t.Errorf("%s is %s, %d, %v", tt.text, id, n, ok)
		}
	}
}

func TestMigrationsRunOnceAndNeverBackwards(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := t.Context()
		var work sync.WaitGroup
		for range 4 { // processes that start together
			if strings.HasPrefix(url, "sqlite:") {
				break // one process alone has the folder's lock
			}
			work.Go(func() {
				d, err := db.Open(ctx, url, db.Options{})
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = d.Close() }()
				if _, err := d.Migrate(ctx, db.Main()); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		d, err := db.Open(ctx, url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		if _, err := d.Migrate(ctx, db.Main()); err != nil {
			t.Fatal(err)
		}
		older := fstest.MapFS{"00001_jobs.sql": {Data: []byte("-- +goose Up\nSELECT 1;\n")}}
		if _, err := d.Migrate(ctx, older); !errors.Is(err, db.ErrNewerSchema) {
			t.Errorf("an older program says %v, want ErrNewerSchema", err)
		}
	})
}

func TestASQLiteFileIsPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "deep", "a b?.db")
	d, err := db.Open(t.Context(), "sqlite:"+path, db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := d.Select(t.Context(), new([]int), `DELETE FROM goose_db_version RETURNING 1`); err == nil {
		t.Error("the readers' pool writes")
	}
}

func TestAnAddressIsRefusedWithoutBeingQuoted(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "mysql://root:hunter2@h/x", "sqlite:", "postgres://u:hunter2@h:port/x"} {
		d, err := db.Open(t.Context(), address, db.Options{})
		if err == nil {
			_ = d.Close()
			t.Errorf("%q is taken", address)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error quotes the password: %v", err)
		}
	}
}
