package jobs_test

import (
	"context"
	"testing"

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
