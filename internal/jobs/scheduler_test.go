package jobs_test

import (
	"context"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

var idle = jobs.Kind{Name: "test:run", Lane: "a", MaxAttempts: 3, Run: func(context.Context, *jobs.Run) error { return nil }}

// claim claims the next job as a worker that is never heard of again.
func (b *bench) claim() jobs.Job {
	b.t.Helper()
	j, ok, err := b.queue.Claim(context.Background(), "a", "wrk_gone")
	if err != nil || !ok {
		b.t.Fatalf("claimed nothing: %v", err)
	}
	return j
}

// A job that takes its process down with it must not do so at every start.
func TestAJobThatSurvivesNoStartIsGivenUp(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		b := open(t, d, "redis://127.0.0.1:1/0", clock.New(), idle)
		id := b.add(jobs.NewJob{Kind: "test:run"})
		for range idle.MaxAttempts {
			b.claim()
			if n, err := b.queue.RequeueAll(context.Background()); err != nil || n != 1 {
				t.Fatalf("%d running jobs, %v", n, err)
			}
		}
		if j := b.find(id); j.State != jobs.Failed || j.ErrorCode != "worker_lost" || j.MaxAttempts != idle.MaxAttempts {
			t.Errorf("after %d starts it is %s (%s) with %d attempts allowed", j.Attempt, j.State, j.ErrorCode, j.MaxAttempts)
		}
	})
}

// With a full disk, or on a server that lets nobody write, questions are
// answered and renewals are not.
func TestJobsAreNotLostWhileNobodyCanWrite(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		c := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		b := open(t, d, "redis://127.0.0.1:1/0", c, idle)
		ctx := context.Background()
		scheduler := b.queue.NewScheduler()
		if err := scheduler.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		id := b.add(jobs.NewJob{Kind: "test:run"})
		b.claim()
		writable := b.readOnly()
		c.Advance(jobs.Lease + time.Second)
		if err := d.Ping(ctx); err != nil {
			t.Fatalf("it does not answer: %v", err)
		}
		if err := scheduler.Reconcile(ctx); err == nil {
			t.Error("the scheduler did not notice")
		}
		writable()
		if err := scheduler.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		if j := b.find(id); j.State != jobs.Running {
			t.Errorf("it is %s before its worker could renew the lease", j.State)
		}
		if left := scheduler.Patience(); left < jobs.Lease/2 || left > jobs.Lease {
			t.Errorf("workers have %v to renew", left)
		}
		scheduler.LosePatience()
		if err := scheduler.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		if j := b.find(id); j.State != jobs.Queued {
			t.Errorf("in the end it is %s", j.State)
		}
		var rows int
		if err := d.Get(ctx, &rows, `SELECT count(*) FROM workers`); err != nil || rows != 0 {
			t.Errorf("%d rows are left of the probe (%v)", rows, err)
		}
	})
}

// readOnly lets nobody write until the returned function is called.
func (b *bench) readOnly() (writable func()) {
	b.t.Helper()
	ctx := context.Background()
	run := func(statements ...string) {
		b.t.Helper()
		for _, s := range statements {
			if _, err := b.db.Exec(ctx, s); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	if b.db.Dialect() == db.SQLite {
		run(`PRAGMA query_only = ON`)
		return func() { run(`PRAGMA query_only = OFF`) }
	}
	var name string
	if err := b.db.Get(ctx, &name, `SELECT current_database()`); err != nil {
		b.t.Fatal(err)
	}
	// It counts from the next session on, so every session ends; the last is ours.
	renew := func() {
		run(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		if _, err := b.db.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`); !db.IsAway(err) {
			b.t.Fatalf("the session did not end: %v", err)
		}
		testenv.Eventually(b.t, time.Minute, func() bool { return b.db.Ping(ctx) == nil })
	}
	run(`ALTER DATABASE ` + name + ` SET default_transaction_read_only = on`)
	renew()
	return func() {
		err := b.db.Tx(ctx, func(tx *db.Tx) error {
			for _, s := range []string{`SET TRANSACTION READ WRITE`, `ALTER DATABASE ` + name + ` RESET default_transaction_read_only`} {
				if _, err := tx.Exec(ctx, s); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.t.Fatal(err)
		}
		renew()
	}
}

// A machine that was asleep, or a database whose clock is set: every lease has
// passed at once, and no worker has failed.
func TestAJumpOfTheClockFreesNoJob(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		c := clock.New()
		ctx := context.Background()
		jump := func(by time.Duration) {
			t.Helper()
			if _, err := c.Sync(ctx, func(context.Context) (time.Time, error) { return c.Now().Add(by), nil }); err != nil {
				t.Fatal(err)
			}
		}
		b := open(t, d, "redis://127.0.0.1:1/0", c, idle)
		scheduler := b.queue.NewScheduler()
		pass := func(id string, state jobs.State) {
			t.Helper()
			if err := scheduler.Reconcile(ctx); err != nil {
				t.Fatal(err)
			}
			if j := b.find(id); j.State != state {
				t.Errorf("it is %s, want %s", j.State, state)
			}
		}
		id := b.add(jobs.NewJob{Kind: "test:run"})
		b.claim()
		pass(id, jobs.Running)
		jump(time.Hour)
		pass(id, jobs.Running)
		pass(id, jobs.Running) // also when the next pass sees no jump
		// Workers measure the clock within 10 s and renew after that.
		if left := scheduler.Patience(); left <= jobs.Lease || left > jobs.Lease+10*time.Second {
			t.Errorf("workers have %v to renew", left)
		}
		scheduler.LosePatience()
		jump(time.Second) // a correction
		pass(id, jobs.Queued)
	})
}

// A room that fails to end its job keeps nobody else's.
func TestAJobThatCannotBeEndedKeepsNoOther(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		c := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		ctx := context.Background()
		last := func(name string, ended func()) jobs.Kind {
			return jobs.Kind{Name: name, Lane: "a", MaxAttempts: 1, Run: idle.Run,
				Ended: func(context.Context, *db.Tx, jobs.Job, jobs.State, string) error { ended(); return nil }}
		}
		b := open(t, d, "redis://127.0.0.1:1/0", c, idle, last("test:panic", func() { panic("secret") }), last("test:last", func() {}))
		stuck, free, failed := b.add(jobs.NewJob{Kind: "test:panic"}), b.add(jobs.NewJob{Kind: "test:run"}), b.add(jobs.NewJob{Kind: "test:last"})
		for range 3 {
			b.claim()
		}
		c.Advance(jobs.Lease + time.Second)
		scheduler := b.queue.NewScheduler()
		for range 2 {
			if err := scheduler.Reconcile(ctx); err != nil {
				t.Fatal(err)
			}
		}
		for id, want := range map[string]jobs.State{stuck: jobs.Running, free: jobs.Queued, failed: jobs.Failed} {
			if j := b.find(id); j.State != want {
				t.Errorf("%s is %s, want %s", j.Kind, j.State, want)
			}
		}
	})
}

// impatient has PostgreSQL roll this transaction back, and no other, when it meets
// one in a deadlock.
func impatient(ctx context.Context, tx *db.Tx) error {
	if tx.Dialect() == db.SQLite {
		return nil
	}
	_, err := tx.Exec(ctx, `SET LOCAL deadlock_timeout = '10ms'`)
	return err
}

// Whoever cancels several jobs of a party keeps nobody who cancels another one of it
// from ending, and the party gets every turn back.
func TestCancelsOfOnePartyDoNotStopOneAnother(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		b := open(t, d, "redis://127.0.0.1:1/0", clock.New(), idle)
		finish := func() (n int64) {
			t.Helper()
			if err := d.Get(ctx, &n, `SELECT finish FROM job_turns WHERE lane = 'a' AND party = 'ann'`); err != nil {
				t.Fatal(err)
			}
			return n
		}
		b.add(jobs.NewJob{Kind: "test:run", Party: "ann"})
		before := finish()
		one, two := b.add(jobs.NewJob{Kind: "test:run", Party: "ann", Cost: 5}), b.add(jobs.NewJob{Kind: "test:run", Party: "ann", Cost: 7})
		cancel := func(tx *db.Tx, id string) error {
			_, err := b.queue.Cancel(ctx, tx, id, jobs.AtWish)
			return err
		}
		runs := 0
		var other <-chan error
		err := d.Tx(ctx, func(tx *db.Tx) error {
			runs++
			if err := impatient(ctx, tx); err != nil {
				return err
			}
			if err := cancel(tx, one); err != nil {
				return err
			}
			if runs == 1 {
				other = testenv.Beside(t, d, func() error { return d.Tx(ctx, func(tx *db.Tx) error { return cancel(tx, two) }) })
			}
			return cancel(tx, two)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-other; err != nil || runs != 1 {
			t.Errorf("%d runs, %v", runs, err)
		}
		for _, id := range []string{one, two} {
			if j := b.find(id); j.State != jobs.Canceled {
				t.Errorf("it is %s", j.State)
			}
		}
		if n := finish(); n != before {
			t.Errorf("the party's turns end at %d, before at %d", n, before)
		}
	})
}

// A scheduler keeps no party's turn while it waits for another's.
func TestWhoAddsAndWhoQueuesDoNotStopOneAnother(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		c := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		b := open(t, d, "redis://127.0.0.1:1/0", c, idle)
		var due []string
		for _, lane := range []string{"a", "b"} {
			b.add(jobs.NewJob{Kind: "test:run", Party: "ann", Lane: lane}) // so that the turn's row is there
			due = append(due, b.add(jobs.NewJob{Kind: "test:run", Party: "ann", Lane: lane, RunAfter: c.Now().Add(time.Second)}))
		}
		c.Advance(time.Minute)
		runs := 0
		var queued <-chan error
		err := d.Tx(ctx, func(tx *db.Tx) error {
			runs++
			if err := impatient(ctx, tx); err != nil {
				return err
			}
			add := func(lane string) error {
				_, err := b.queue.Add(ctx, tx, jobs.NewJob{Kind: "test:run", Party: "ann", Lane: lane})
				return err
			}
			if err := add("b"); err != nil {
				return err
			}
			if runs == 1 {
				queued = testenv.Beside(t, d, func() error { return b.queue.NewScheduler().Reconcile(ctx) })
			}
			return add("a")
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-queued; err != nil || runs != 1 {
			t.Errorf("%d runs, %v", runs, err)
		}
		for _, id := range due {
			if j := b.find(id); j.State != jobs.Queued {
				t.Errorf("a job that is due is %s", j.State)
			}
		}
	})
}
