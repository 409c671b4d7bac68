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

func TestTheBacklogOfALane(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, c := t.Context(), clock.New()
		b := open(t, d, testenv.Redis(t), c, jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
		want := func(lane string, want jobs.Backlog) {
			t.Helper()
			if got, err := jobs.BacklogOf(ctx, d, lane); err != nil || got != want {
				t.Errorf("%s: %+v (%v), want %+v", lane, got, err, want)
			}
		}
		want("a", jobs.Backlog{})
		b.add(jobs.NewJob{Kind: "test:run"})
		b.add(jobs.NewJob{Kind: "test:run"})
		b.add(jobs.NewJob{Kind: "test:run", RunAfter: c.Now().Add(time.Hour)})
		over := b.add(jobs.NewJob{Kind: "test:run"})
		if err := d.Tx(ctx, func(tx *db.Tx) error { _, err := b.queue.Cancel(ctx, tx, over, jobs.AtWish); return err }); err != nil {
			t.Fatal(err)
		}
		want("a", jobs.Backlog{Due: 2, Later: 1})
		want("b", jobs.Backlog{})
	})
}
