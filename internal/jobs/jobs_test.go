package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

// bench is one queue on one database, with workers that stop with the test.
type bench struct {
	t     *testing.T
	db    *db.DB
	clock *clock.Clock
	queue *jobs.Queue
}

func open(t *testing.T, d *db.DB, redisURL string, c *clock.Clock, kinds ...jobs.Kind) *bench {
	t.Helper()
	o, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(o)
	m := jobs.NewMetrics(nil)
	bell := jobs.NewBell(client, m)
	t.Cleanup(func() { bell.Close(); _ = client.Close() })
	q := jobs.New(d, c, bell, m, slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, k := range kinds {
		q.Register(k)
	}
	return &bench{t, d, c, q}
}

// work runs a worker until the test ends or the returned function is called.
func (b *bench) work(slots int, shutdown time.Duration, lanes ...string) (stop func()) {
	b.t.Helper()
	var list []jobs.Lane
	for _, l := range lanes {
		list = append(list, jobs.Lane{Name: l, Slots: jobs.NewFixed(slots), CheckInterval: 10 * time.Millisecond})
	}
	w := b.queue.NewWorker(list, shutdown)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, nil) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

func (b *bench) add(n jobs.NewJob) string {
	b.t.Helper()
	var id string
	err := b.db.Tx(context.Background(), func(tx *db.Tx) error {
		j, err := b.queue.Add(context.Background(), tx, n)
		id = j.ID
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

func (b *bench) find(id string) jobs.Job {
	b.t.Helper()
	j, err := jobs.Find(context.Background(), b.db, id)
	if err != nil {
		b.t.Fatal(err)
	}
	return j
}

func (b *bench) await(id string, state jobs.State) jobs.Job {
	b.t.Helper()
	testenv.Eventually(b.t, 10*time.Second, func() bool { return b.find(id).State == state })
	return b.find(id)
}

func TestJobRunsOnceAndFollowsItsTransaction(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		var runs sync.Map
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:run", Lane: "a",
			Run: func(_ context.Context, r *jobs.Run) error {
				n, _ := runs.LoadOrStore(r.ID, new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
				return nil
			}})
		b.work(4, time.Second, "a")
		b.work(4, time.Second, "a")
		var ids []string
		for i := range 60 {
			ids = append(ids, b.add(jobs.NewJob{Kind: "test:run", Party: fmt.Sprint("p", i%7), Ref: fmt.Sprint(i)}))
		}
		rolledBack := errors.New("no")
		var never string
		err := d.Tx(context.Background(), func(tx *db.Tx) error {
			j, err := b.queue.Add(context.Background(), tx, jobs.NewJob{Kind: "test:run"})
			if err != nil {
				return err
			}
			never = j.ID
			return rolledBack
		})
		if !errors.Is(err, rolledBack) {
			t.Fatal(err)
		}
		for _, id := range ids {
			j := b.await(id, jobs.Succeeded)
			if j.Attempt != 1 {
				t.Errorf("attempt %d, want 1", j.Attempt)
			}
			if n, ok := runs.Load(id); !ok || n.(*atomic.Int64).Load() != 1 {
				t.Errorf("job ran not exactly once")
			}
		}
		if _, ran := runs.Load(never); ran {
			t.Error("a job of a rolled back transaction ran")
		}
	})
}

func TestWorkGoesOnWithoutRedis(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		b := open(t, d, "redis://127.0.0.1:1/0", clock.New(), jobs.Kind{Name: "test:run", Lane: "a",
			Run: func(context.Context, *jobs.Run) error { return nil }})
		id := b.add(jobs.NewJob{Kind: "test:run"}) // before any worker: only the tick can find it
		b.work(1, time.Second, "a")
		b.await(id, jobs.Succeeded)
	})
}

func TestRetriesThenFailsAndTellsTheRoom(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		var ended atomic.Value
		var attempts atomic.Int64
		b := open(t, d, testenv.Redis(t), clock.New(),
			jobs.Kind{Name: "test:flaky", Lane: "a", MaxAttempts: 3, Backoff: func(int) time.Duration { return 10 * time.Millisecond },
				Run: func(context.Context, *jobs.Run) error {
					attempts.Add(1)
					return jobs.Retry("engine_failed", nil)
				},
				Ended: func(_ context.Context, _ *db.Tx, _ jobs.Job, end jobs.State, code string) error {
					ended.Store(string(end) + "/" + code)
					return nil
				}},
			jobs.Kind{Name: "test:final", Lane: "a", Run: func(context.Context, *jobs.Run) error { return jobs.Fail("refused", nil) }},
			jobs.Kind{Name: "test:panic", Lane: "a", MaxAttempts: 1, Run: func(context.Context, *jobs.Run) error { panic("secret") }})
		b.work(2, time.Second, "a")
		b.schedule()
		flaky, final, panics := b.add(jobs.NewJob{Kind: "test:flaky"}), b.add(jobs.NewJob{Kind: "test:final"}), b.add(jobs.NewJob{Kind: "test:panic"})
		if j := b.await(flaky, jobs.Failed); j.Attempt != 3 || j.ErrorCode != "engine_failed" || attempts.Load() != 3 {
			t.Errorf("flaky ended with %+v after %d runs", j, attempts.Load())
		}
		if got := ended.Load(); got != "failed/engine_failed" {
			t.Errorf("the room was told %v", got)
		}
		if j := b.await(final, jobs.Failed); j.Attempt != 1 || j.ErrorCode != "refused" {
			t.Errorf("final ended with %+v", j)
		}
		if j := b.await(panics, jobs.Failed); j.ErrorCode != "internal" {
			t.Errorf("panic ended with %+v", j)
		}
	})
}

// schedule runs a scheduler until the test ends.
func (b *bench) schedule(schedules ...jobs.Schedule) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.queue.NewScheduler(schedules...).Run(ctx)
	}()
	b.t.Cleanup(func() { cancel(); <-done })
}

func TestCancel(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		started := make(chan struct{}, 1)
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:long", Lane: "a",
			Run: func(ctx context.Context, _ *jobs.Run) error {
				started <- struct{}{}
				<-ctx.Done()
				return context.Cause(ctx)
			}})
		ctx := context.Background()
		cancel := func(id, why string) (state jobs.State) {
			t.Helper()
			err := d.Tx(ctx, func(tx *db.Tx) (err error) {
				state, err = b.queue.Cancel(ctx, tx, id, why)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return state
		}
		queued := b.add(jobs.NewJob{Kind: "test:long", Party: "p", Cost: 50})
		if state := cancel(queued, "restricted"); state != jobs.Canceled {
			t.Errorf("a queued job is %s after cancel", state)
		}
		if code := b.find(queued).ErrorCode; code != "restricted" {
			t.Errorf("a queued job was canceled as %q", code)
		}
		var finish int64
		if err := d.Get(ctx, &finish, `SELECT finish FROM job_turns WHERE party = 'p'`); err != nil || finish != 0 {
			t.Errorf("the turn was not given back: finish %d, %v", finish, err)
		}
		running := b.add(jobs.NewJob{Kind: "test:long"})
		b.work(1, time.Second, "a")
		<-started
		asked := time.Now()
		for _, why := range []string{"suspended", jobs.AtWish} { // of several reasons the first
			if state := cancel(running, why); state != jobs.Running {
				t.Errorf("a running job is %s right after cancel", state)
			}
		}
		if code := b.await(running, jobs.Canceled).ErrorCode; code != "suspended" {
			t.Errorf("a running job was canceled as %q", code)
		}
		if took := time.Since(asked); took > 5*time.Second {
			t.Errorf("cancel took %s", took)
		}
		if state := cancel(running, "restricted"); state != jobs.Canceled || b.find(running).ErrorCode != "suspended" {
			t.Errorf("cancel of a canceled job says %s", state)
		}
	})
}

func TestLostLeaseRunsAgainAndTheZombieChangesNothing(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		c := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		release := make(chan struct{})
		var zombie atomic.Value
		b := open(t, d, testenv.Redis(t), c, jobs.Kind{Name: "test:run", Lane: "a",
			Run: func(ctx context.Context, r *jobs.Run) error {
				if r.Attempt == 1 {
					<-release
					err := r.Complete(context.WithoutCancel(ctx), func(context.Context, *db.Tx) error {
						t.Error("the zombie wrote")
						return nil
					})
					zombie.Store(errors.Is(err, jobs.ErrFenced))
					return err
				}
				return nil
			}})
		b.work(2, time.Second, "a")
		id := b.add(jobs.NewJob{Kind: "test:run"})
		b.await(id, jobs.Running)
		scheduler := b.queue.NewScheduler()
		if err := scheduler.Reconcile(context.Background()); err != nil {
			t.Fatal(err)
		}
		if j := b.find(id); j.State != jobs.Running {
			t.Fatalf("requeued before its lease had passed: %s", j.State)
		}
		c.Advance(jobs.Lease + time.Second)
		if err := scheduler.Reconcile(context.Background()); err != nil {
			t.Fatal(err)
		}
		if j := b.await(id, jobs.Succeeded); j.Attempt != 2 {
			t.Errorf("succeeded in attempt %d", j.Attempt)
		}
		close(release)
		testenv.Eventually(t, 10*time.Second, func() bool { return zombie.Load() != nil })
		if zombie.Load() != true {
			t.Error("the zombie's completion was not refused")
		}
	})
}

func TestShutdownReleasesWithoutLosingAnAttempt(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:long", Lane: "a", MaxAttempts: 1,
			Run: func(ctx context.Context, r *jobs.Run) error {
				if r.Attempt > 1 {
					return nil
				}
				<-ctx.Done()
				return context.Cause(ctx)
			}})
		stop := b.work(1, 10*time.Millisecond, "a")
		id := b.add(jobs.NewJob{Kind: "test:long"})
		b.await(id, jobs.Running)
		stop()
		if j := b.find(id); j.State != jobs.Queued {
			t.Fatalf("after the shutdown it is %s", j.State)
		}
		b.work(1, time.Second, "a")
		b.await(id, jobs.Succeeded)
	})
}

func TestFairTurns(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		var mu sync.Mutex
		var order []string
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:run", Lane: "a",
			Run: func(_ context.Context, r *jobs.Run) error {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, r.Party)
				return nil
			}})
		for range 100 {
			b.add(jobs.NewJob{Kind: "test:run", Party: "greedy"})
		}
		for i := range 10 {
			b.add(jobs.NewJob{Kind: "test:run", Party: fmt.Sprint("modest", i)})
		}
		b.work(1, time.Second, "a")
		testenv.Eventually(t, 20*time.Second, func() bool { mu.Lock(); defer mu.Unlock(); return len(order) == 110 })
		seen := map[string]int{}
		for i, party := range order {
			if _, ok := seen[party]; !ok {
				seen[party] = i
			}
		}
		for party, at := range seen {
			if at > 12 {
				t.Errorf("%s had its first turn after %d others", party, at)
			}
		}
	})
}

func TestParallelSubmitsGetDistinctTurns(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		b := open(t, d, "redis://127.0.0.1:1/0", clock.New(), jobs.Kind{Name: "test:run", Lane: "a",
			Run: func(context.Context, *jobs.Run) error { return nil }})
		var work sync.WaitGroup
		for range 320 {
			work.Go(func() { b.add(jobs.NewJob{Kind: "test:run", Party: "one", Cost: 3}) })
		}
		work.Wait()
		var turns int
		if err := d.Get(context.Background(), &turns, `SELECT count(DISTINCT vstart) FROM jobs`); err != nil || turns != 320 {
			t.Errorf("%d distinct turns, want 320 (%v)", turns, err)
		}
	})
}

func TestTwoSchedulersMakeOneTick(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		c := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		b := open(t, d, "redis://127.0.0.1:1/0", c, jobs.Kind{Name: "test:tick",
			Run: func(context.Context, *jobs.Run) error { return nil }})
		schedule := jobs.Schedule{Name: "hourly", Every: time.Hour, Kind: "test:tick"}
		for range 5 { // hours
			var work sync.WaitGroup
			for range 4 { // schedulers
				s := b.queue.NewScheduler(schedule)
				work.Go(func() {
					for range 3 {
						if err := s.Tick(context.Background()); err != nil {
							t.Error(err)
						}
					}
				})
			}
			work.Wait()
			c.Advance(time.Hour)
		}
		var n int
		if err := d.Get(context.Background(), &n, `SELECT count(*) FROM jobs`); err != nil || n != 5 {
			t.Errorf("%d jobs after 5 hours, want 5 (%v)", n, err)
		}
	})
}

func TestOutlookReckonsWithWhatRuns(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, c := context.Background(), clock.New()
		b := open(t, d, testenv.Redis(t), c, jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
		ids := []string{b.add(jobs.NewJob{Kind: "test:run", Party: "p", Cost: 17}), b.add(jobs.NewJob{Kind: "test:run", Party: "p", Cost: 10}), b.add(jobs.NewJob{Kind: "test:run", Party: "p"})}
		if o, err := b.queue.Outlook(ctx, d, b.find(ids[2])); err != nil || o.Position != 3 || o.Served || o.Start != nil {
			t.Errorf("without a worker: %+v, %v", o, err)
		}
		if _, err := d.Exec(ctx, `UPDATE jobs SET state = 'running' WHERE id = ?`, ids[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Exec(ctx, `INSERT INTO workers (id, lane, slots, unit_micros, seen_at) VALUES ('w', 'a', 2, 1000, ?)`, c.Millis()); err != nil {
			t.Fatal(err)
		}
		o, err := b.queue.Outlook(ctx, d, b.find(ids[2]))
		if err != nil {
			t.Fatal(err)
		}
		if want := (10 + 17/2) * time.Millisecond / 2; o.Position != 2 || !o.Served || o.Start == nil || *o.Start != want {
			t.Errorf("got %+v with start %v, want position 2 in %v", o, o.Start, want)
		}
	})
}
