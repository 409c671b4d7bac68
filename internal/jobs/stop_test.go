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

// Stop ends what waits, asks what runs, and ends what nobody runs any more. It
// leaves everybody else's work alone.
func TestStopEndsAllOfAParty(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		c := clock.Manual(time.Date(2031, 3, 3, 12, 0, 0, 0, time.UTC))
		ended := 0
		b := open(t, d, testenv.Redis(t), c, jobs.Kind{Name: "k", Run: func(context.Context, *jobs.Run) error { return nil },
			Ended: func(context.Context, *db.Tx, jobs.Job, jobs.State, string) error { ended++; return nil }})
		add := func(party string, after time.Duration) string {
			var j jobs.Job
			if err := d.Tx(ctx, func(tx *db.Tx) (err error) {
				j, err = b.queue.Add(ctx, tx, jobs.NewJob{Kind: "k", Party: party, RunAfter: c.Now().Add(after)})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return j.ID
		}
		state := func(id string) jobs.State {
			j, err := jobs.Find(ctx, d, id)
			if err != nil {
				t.Fatal(err)
			}
			return j.State
		}
		queued, waiting, running, other := add("ann", 0), add("ann", time.Hour), add("ann", 0), add("ben", 0)
		if _, err := d.Exec(ctx, `UPDATE jobs SET state = 'running', attempt = 1, lease_until = ? WHERE id = ?`, c.Millis()+1000, running); err != nil {
			t.Fatal(err)
		}
		if n, err := b.queue.Stop(ctx, "ann", jobs.AtWish); n != 1 || err != nil {
			t.Errorf("%d run, %v", n, err)
		}
		if j, err := jobs.Find(ctx, d, running); err != nil || j.State != jobs.Running || !j.CancelRequested {
			t.Errorf("the running one is %+v, %v", j, err)
		}
		c.Advance(2 * time.Second)
		if _, err := b.queue.Stop(ctx, "ann", jobs.AtWish); err != nil {
			t.Error(err)
		}
		if n, err := b.queue.Stop(ctx, "ann", jobs.AtWish); n != 0 || err != nil {
			t.Errorf("%d run, %v", n, err)
		}
		for _, id := range []string{queued, waiting, running} {
			if got := state(id); got != jobs.Canceled {
				t.Errorf("a job is %s", got)
			}
		}
		if state(other) != jobs.Queued || ended != 3 {
			t.Errorf("somebody else's is %s, and %d rooms were told", state(other), ended)
		}
	})
}
