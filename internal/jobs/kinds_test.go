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

// While a fleet is upgraded, some add kinds that others do not know.
func TestAJobOfANewerKindIsLeftToANewerWorker(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		kind := func(name string) jobs.Kind {
			return jobs.Kind{Name: name, Lane: "a", MaxAttempts: 1, Run: func(context.Context, *jobs.Run) error { return nil }}
		}
		redis := testenv.Redis(t)
		newer := open(t, d, redis, clock.New(), kind("test:old"), kind("test:new"))
		older := open(t, d, redis, clock.New(), kind("test:old"))
		first := newer.add(jobs.NewJob{Kind: "test:new"})
		stop := older.work(1, time.Second, "a")
		older.await(newer.add(jobs.NewJob{Kind: "test:old"}), jobs.Succeeded) // which stands behind it
		if j := older.find(first); j.State != jobs.Queued || j.Attempt != 0 {
			t.Errorf("the old worker left the new job %s after %d attempts", j.State, j.Attempt)
		}
		stop()
		newer.work(1, time.Second, "a")
		newer.await(first, jobs.Succeeded)
	})
}

// Its room is only told by who knows it.
func TestALostJobOfANewerKindIsEndedByANewerScheduler(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		c := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		told := false
		newer := open(t, d, "redis://127.0.0.1:1/0", c, jobs.Kind{Name: "test:new", Lane: "a", MaxAttempts: 1, Run: idle.Run,
			Ended: func(context.Context, *db.Tx, jobs.Job, jobs.State, string) error { told = true; return nil }})
		older := open(t, d, "redis://127.0.0.1:1/0", c, idle)
		id := newer.add(jobs.NewJob{Kind: "test:new"})
		newer.claim()
		c.Advance(jobs.Lease + time.Second)
		for _, b := range []*bench{older, newer} {
			if err := b.queue.NewScheduler().Reconcile(context.Background()); err != nil {
				t.Fatal(err)
			}
			if j := b.find(id); told != (b == newer) || j.State.Terminal() != told {
				t.Errorf("it is %s, its room told: %v", j.State, told)
			}
		}
	})
}

func TestAPanicAtTheEndOfAJobDoesNotEndTheWorker(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		fails := func(context.Context, *jobs.Run) error { return jobs.Retry("no", nil) }
		ended, waits := make(chan struct{}, 1), make(chan struct{}, 1)
		b := open(t, d, testenv.Redis(t), clock.New(),
			jobs.Kind{Name: "test:ended", Lane: "a", MaxAttempts: 1, Run: fails,
				Ended: func(context.Context, *db.Tx, jobs.Job, jobs.State, string) error {
					ended <- struct{}{}
					panic("secret")
				}},
			jobs.Kind{Name: "test:backoff", Lane: "a", Run: fails,
				Backoff: func(int) time.Duration { waits <- struct{}{}; panic("secret") }},
			jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
		b.work(1, time.Second, "a")
		b.add(jobs.NewJob{Kind: "test:ended"})
		b.add(jobs.NewJob{Kind: "test:backoff"})
		<-ended
		<-waits
		b.await(b.add(jobs.NewJob{Kind: "test:run"}), jobs.Succeeded)
	})
}
