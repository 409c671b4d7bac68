package jobs_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

// A party whose jobs all hang has the slots it may have and no more; everybody
// else's go on, and so do its own once it is well again.
func TestALaneBoundsTheSlotsOfAParty(t *testing.T) {
	boundsSlots(t, jobs.Lane{Slots: jobs.NewFixed(4), PerParty: 2}, 2, func(int) jobs.NewJob { return jobs.NewJob{Party: "hangs"} })
}

// So it is with all parties of one owner together.
func TestALaneBoundsTheSlotsOfAnOwner(t *testing.T) {
	boundsSlots(t, jobs.Lane{Slots: jobs.NewFixed(6), PerParty: 2, PerOwner: 3}, 3, func(i int) jobs.NewJob {
		return jobs.NewJob{Party: fmt.Sprint("hangs", i%4), Owner: "hangs"}
	})
}

// boundsSlots has 60 jobs of one owner hang in a lane, and looks that they take so many
// slots while 40 of others are done.
func boundsSlots(t *testing.T, lane jobs.Lane, slots int64, hangs func(i int) jobs.NewJob) {
	t.Parallel()
	lane.Name, lane.CheckInterval = "a", 10*time.Millisecond
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		lane := lane
		lane.Slots = jobs.NewFixed(lane.Slots.Size())
		hang := make(chan struct{})
		let := sync.OnceFunc(func() { close(hang) })
		var hanging, most, done atomic.Int64
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:run", Lane: "a", Run: func(_ context.Context, r *jobs.Run) error {
			if r.Owner == "hangs" {
				most.Store(max(most.Load(), hanging.Add(1)))
				<-hang
				hanging.Add(-1)
			}
			done.Add(1)
			return nil
		}})
		for i := range 60 {
			j := hangs(i)
			j.Kind, j.Ref = "test:run", fmt.Sprint(i)
			b.add(j)
		}
		ctx, cancel := context.WithCancel(context.Background())
		w := b.queue.NewWorker([]jobs.Lane{lane}, time.Second)
		stopped := make(chan error, 1)
		go func() { stopped <- w.Run(ctx, nil) }()
		t.Cleanup(func() {
			let()
			cancel()
			if err := <-stopped; err != nil {
				t.Error(err)
			}
		})
		testenv.Eventually(t, 10*time.Second, func() bool { return hanging.Load() == slots })
		var others []string
		for i := range 20 {
			others = append(others, b.add(jobs.NewJob{Kind: "test:run", Party: "living", Ref: fmt.Sprint(i)}), b.add(jobs.NewJob{Kind: "test:run", Party: fmt.Sprint("quick", i)}))
		}
		for _, id := range others {
			b.await(id, jobs.Succeeded)
		}
		if most.Load() != slots || done.Load() != 40 {
			t.Errorf("%d slots hung and %d jobs were done", most.Load(), done.Load())
		}
		let()
		testenv.Eventually(t, 30*time.Second, func() bool { return done.Load() == 100 })
	})
}

func TestDeferHastenAndRecall(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, c := context.Background(), clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		b := open(t, d, testenv.Redis(t), c, jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
		first := b.add(jobs.NewJob{Kind: "test:run", Party: "p"})
		c.Advance(time.Millisecond) // ids of one millisecond have no order
		second := b.add(jobs.NewJob{Kind: "test:run", Party: "p"})
		other := b.add(jobs.NewJob{Kind: "test:run", Party: "q"})
		until := c.Now().Add(time.Minute)
		run := func(f func(tx *db.Tx) error) {
			t.Helper()
			if err := d.Tx(ctx, f); err != nil {
				t.Fatal(err)
			}
		}
		tried := until.Add(-time.Second)
		soon, late := b.add(jobs.NewJob{Kind: "test:run", Party: "p", RunAfter: c.Now().Add(time.Second)}), b.add(jobs.NewJob{Kind: "test:run", Party: "p", RunAfter: until.Add(time.Hour)})
		for range 2 { // the second has nothing left to do
			run(func(tx *db.Tx) error {
				found, err := b.queue.Defer(ctx, tx, "p", tried, tried.Add(time.Millisecond), until)
				if !found {
					t.Error("nobody is to find out")
				}
				return err
			})
			for id, after := range map[string]time.Time{first: tried, second: until, soon: until, late: until.Add(time.Hour)} {
				if j := b.find(id); j.State != jobs.Waiting || j.RunAfter != after.UnixMilli() {
					t.Errorf("%+v", j)
				}
			}
		}
		if j := b.find(other); j.State != jobs.Queued {
			t.Errorf("another party's is %s", j.State)
		}
		run(func(tx *db.Tx) error {
			found, err := b.queue.Defer(ctx, tx, "nobody", tried, tried, until)
			if found {
				t.Error("somebody is to find out who is not there")
			}
			return err
		})
		hasten := func(id string, until time.Time) (live bool) {
			t.Helper()
			run(func(tx *db.Tx) (err error) {
				live, err = b.queue.Hasten(ctx, tx, id, until)
				return err
			})
			return live
		}
		if !hasten(first, time.Time{}) || !hasten(other, time.Time{}) || !hasten(second, until.Add(time.Hour)) {
			t.Error("one that waits or is queued is said to have ended")
		}
		if j := b.find(second); j.RunAfter != until.UnixMilli() {
			t.Error("one is put off")
		}
		s := b.queue.NewScheduler()
		if err := s.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		if one, two := b.find(first), b.find(second); one.State != jobs.Queued || two.State != jobs.Waiting {
			t.Errorf("hastened it is %s, the other %s", one.State, two.State)
		}
		run(func(tx *db.Tx) error { return b.queue.Recall(ctx, tx, "p", until) })
		for id, after := range map[string]time.Time{second: c.Now(), soon: c.Now(), late: until.Add(time.Hour)} {
			if j := b.find(id); j.State != jobs.Waiting || j.RunAfter != after.UnixMilli() {
				t.Errorf("%+v", j)
			}
		}
		run(func(tx *db.Tx) error {
			_, err := b.queue.Cancel(ctx, tx, second, jobs.AtWish)
			return err
		})
		if hasten(second, time.Time{}) || hasten("job_never", time.Time{}) {
			t.Error("one that has ended, or never was, is said to be to come")
		}
	})
}
