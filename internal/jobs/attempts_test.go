package jobs_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

// A job that is given back keeps its turn and spends no attempt, however often.
func TestGivingBackSpendsNoAttempt(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		var mu sync.Mutex
		var asked []int // the attempts that a backoff was asked for
		turns := map[int64]bool{}
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{
			Name: "test:busy", Lane: "a", MaxAttempts: 2,
			Backoff: func(attempt int) time.Duration {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, attempt)
				return time.Millisecond
			},
			Run: func(_ context.Context, r *jobs.Run) error {
				if r.Attempt > 6 {
					return jobs.Retry("engine_failed", nil)
				}
				mu.Lock()
				defer mu.Unlock()
				turns[r.VStart] = true
				return jobs.GiveBack("engine_busy", nil)
			},
		})
		b.add(jobs.NewJob{Kind: "test:busy", Party: "p", Cost: 7}) // so that the turn is not 0
		id := b.add(jobs.NewJob{Kind: "test:busy", Party: "p", Cost: 7})
		b.work(1, time.Second, "a")
		b.schedule()
		if j := b.await(id, jobs.Failed); j.Attempt != 8 || j.MaxAttempts != 8 || j.ErrorCode != "engine_failed" {
			t.Errorf("%+v, want two attempts that count after six that do not", j)
		}
		mu.Lock()
		defer mu.Unlock()
		if slices.Max(asked) != 1 {
			t.Errorf("the backoff was asked for attempts %v, want 1", asked)
		}
		if len(turns) != 2 || !turns[0] || !turns[7] {
			t.Errorf("the turns were %v, want 0 and 7", turns)
		}
	})
}

func TestAJobThatIsAskedToStopIsNotGivenBack(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, started := context.Background(), make(chan struct{}, 1)
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:busy", Lane: "a",
			Run: func(ctx context.Context, _ *jobs.Run) error {
				started <- struct{}{}
				<-ctx.Done()
				return jobs.GiveBack("engine_busy", nil)
			}})
		id := b.add(jobs.NewJob{Kind: "test:busy"})
		b.work(1, time.Second, "a")
		<-started
		if err := d.Tx(ctx, func(tx *db.Tx) error { _, err := b.queue.Cancel(ctx, tx, id, "suspended"); return err }); err != nil {
			t.Fatal(err)
		}
		if code := b.await(id, jobs.Canceled).ErrorCode; code != "suspended" {
			t.Errorf("it was canceled as %q", code)
		}
	})
}

// What was to stop when its worker was lost ends with the reason that it had.
func TestALostJobThatIsAskedToStopEndsWithItsReason(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, c := context.Background(), clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		var told atomic.Value
		b := open(t, d, testenv.Redis(t), c, jobs.Kind{Name: "test:lost", Lane: "a",
			Run: func(context.Context, *jobs.Run) error { return nil },
			Ended: func(_ context.Context, _ *db.Tx, _ jobs.Job, end jobs.State, code string) error {
				told.Store(string(end) + "/" + code)
				return nil
			}})
		id := b.add(jobs.NewJob{Kind: "test:lost"})
		if _, ok, err := b.queue.Claim(ctx, "a", "gone"); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if err := d.Tx(ctx, func(tx *db.Tx) error { _, err := b.queue.Cancel(ctx, tx, id, "account_closed"); return err }); err != nil {
			t.Fatal(err)
		}
		c.Advance(jobs.Lease + time.Second)
		if err := b.queue.NewScheduler().Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		if got := told.Load(); got != "canceled/account_closed" {
			t.Errorf("the room was told %v", got)
		}
	})
}

// Every attempt is measured, not only the one that ends its job.
func TestEveryAttemptIsMeasured(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		registry := prometheus.NewRegistry()
		client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1}) // away: the tick finds the job
		m := jobs.NewMetrics(registry)
		bell := jobs.NewBell(client, m)
		t.Cleanup(func() { bell.Close(); _ = client.Close() })
		q := jobs.New(d, clock.New(), bell, m, slog.New(slog.DiscardHandler))
		q.Register(jobs.Kind{Name: "test:run", Lane: "a", Backoff: func(int) time.Duration { return time.Millisecond },
			Run: func(_ context.Context, r *jobs.Run) error {
				switch r.Attempt {
				case 1:
					return jobs.Retry("engine_failed", nil)
				case 2:
					return jobs.GiveBack("engine_busy", nil)
				}
				return nil
			}})
		b := &bench{t, d, clock.New(), q}
		id := b.add(jobs.NewJob{Kind: "test:run"})
		b.work(1, time.Second, "a")
		b.schedule()
		b.await(id, jobs.Succeeded)
		testenv.Eventually(t, 5*time.Second, func() bool { return measured(t, registry, "zimage_job_run_seconds") >= 3 })
		if n := measured(t, registry, "zimage_job_run_seconds"); n != 3 {
			t.Errorf("%d attempts were measured, want 3", n)
		}
	})
}

// measured is how often a histogram has been observed.
func measured(t *testing.T, r *prometheus.Registry, name string) (n uint64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				n += m.GetHistogram().GetSampleCount()
			}
		}
	}
	return n
}
