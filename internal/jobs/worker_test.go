package jobs_test

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/e2e/proxy"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

// cut is a database behind a proxy that can break connections.
func cut(t *testing.T) (*db.DB, *proxy.Postgres) {
	t.Helper()
	_, direct := testenv.Database(t, db.Postgres)
	address, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.NewPostgres(address.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	address.Host = p.Addr()
	d, err := db.Open(t.Context(), address.String(), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d, p
}

// Three claims in a row are answered by a connection that breaks. The database
// has done them; nobody runs the job.
func TestAClaimWithoutAnAnswerUsesUpNoAttempt(t *testing.T) {
	t.Parallel()
	d, p := cut(t)
	var runs atomic.Int64
	once := jobs.Kind{Name: "test:run", Lane: "a", MaxAttempts: 1, Run: func(context.Context, *jobs.Run) error {
		runs.Add(1)
		return nil
	}}
	// A clock that stands still: no lease passes.
	b := open(t, d, testenv.Redis(t), clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)), once)
	lost := p.CutReply(3, func(done proxy.Done) bool { return done.Ran("SET state = 'running'") })
	id := b.add(jobs.NewJob{Kind: "test:run"})
	b.work(2, time.Second, "a")
	testenv.Eventually(t, 2*time.Minute, func() bool { j := b.find(id); return j.State.Terminal() })
	if j := b.find(id); j.State != jobs.Succeeded || j.Attempt != 4 || runs.Load() != 1 || lost.Struck() != 3 {
		t.Errorf("it is %s (%s) in attempt %d after %d runs and %d lost answers", j.State, j.ErrorCode, j.Attempt, runs.Load(), lost.Struck())
	}
}

// Slots that claim at the same time share a claim, and its answer is lost.
func TestASharedClaimWithoutAnAnswerIsGivenBackWhole(t *testing.T) {
	t.Parallel()
	d, p := cut(t)
	const slots = 4
	var runs atomic.Int64
	hold := make(chan struct{})
	once := jobs.Kind{Name: "test:run", Lane: "a", MaxAttempts: 1, Run: func(context.Context, *jobs.Run) error {
		runs.Add(1)
		<-hold
		return nil
	}}
	b := open(t, d, testenv.Redis(t), clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)), once)
	var ids []string
	for range slots {
		ids = append(ids, b.add(jobs.NewJob{Kind: "test:run"}))
	}
	lost := p.CutReply(1, func(done proxy.Done) bool {
		return done.Ran("SET state = 'running'") && !done.Ran("LIMIT 1 ")
	})
	s := gate{jobs.NewFixed(slots), make(chan struct{}), make(chan struct{}, slots)}
	w := b.queue.NewWorker([]jobs.Lane{{Name: "a", Slots: s, CheckInterval: 10 * time.Millisecond}}, time.Second)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, nil) }()
	defer close(s.taken)
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	s.open <- struct{}{}
	<-s.taken
	testenv.Eventually(t, 10*time.Second, func() bool { return runs.Load() == 1 }) // one is claimed alone, and runs
	p.Freeze(true)
	for range slots - 1 { // the first of these claims hangs, and the others wait for it
		s.open <- struct{}{}
		<-s.taken
	}
	testenv.Eventually(t, 10*time.Second, func() bool { return w.Claiming() >= 2 })
	p.Freeze(false)
	testenv.Eventually(t, 10*time.Second, func() bool { return lost.Struck() == 1 })
	close(s.open)
	go func() { // whatever else is claimed
		for range s.taken {
		}
	}()
	close(hold)
	var again int
	for _, id := range ids {
		testenv.Eventually(t, 2*time.Minute, func() bool { j := b.find(id); return j.State.Terminal() })
		j := b.find(id)
		if j.State != jobs.Succeeded {
			t.Errorf("it is %s (%s) in attempt %d", j.State, j.ErrorCode, j.Attempt)
		}
		again += j.Attempt - 1
	}
	if again < 2 || runs.Load() != slots {
		t.Errorf("%d jobs were claimed again; %d runs", again, runs.Load())
	}
}

// Jobs that end at the same time: those whose attempt counts have ended, one whose
// attempt is somebody else's by now has not, and one that somebody is at waits alone.
func TestEndsThatAreSharedAreEachAnswered(t *testing.T) {
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
		w := b.queue.NewWorker(nil, time.Second)
		var list []jobs.Job
		for range 4 {
			b.add(jobs.NewJob{Kind: "test:run"})
			list = append(list, b.claim())
		}
		stale, gone := list[1], list[2]
		if _, err := d.Exec(ctx, `UPDATE jobs SET attempt = attempt + 1 WHERE id = ?`, stale.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Exec(ctx, `DELETE FROM jobs WHERE id = ?`, gone.ID); err != nil {
			t.Fatal(err)
		}
		newer := stale
		newer.Attempt++
		got := w.Succeed(ctx, list[0], stale, gone, list[3])
		for i, want := range []error{nil, jobs.ErrFenced, jobs.ErrFenced, nil} {
			if !errors.Is(got[i], want) {
				t.Errorf("the end of job %d came to %v, want %v", i, got[i], want)
			}
		}
		if j := b.find(stale.ID); j.State != jobs.Running {
			t.Errorf("the job of somebody else's attempt is %s", j.State)
		}
		// Both attempts of one job at once.
		got = w.Succeed(ctx, stale, newer)
		if !errors.Is(got[0], jobs.ErrFenced) || got[1] != nil {
			t.Errorf("the older attempt came to %v, the newer to %v", got[0], got[1])
		}
		for _, j := range []jobs.Job{list[0], newer, list[3]} {
			if b.find(j.ID).State != jobs.Succeeded {
				t.Errorf("job %s is %s", j.ID, b.find(j.ID).State)
			}
		}
	})
}

// Somebody keeps the row of one of them: the others do not wait for as long as that
// lasts.
func TestAnEndWaitsForNobodyElsesRow(t *testing.T) {
	t.Parallel()
	_, url := testenv.Database(t, db.Postgres)
	d, err := db.Open(t.Context(), url, db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	b := open(t, d, testenv.Redis(t), clock.New(), jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
	w := b.queue.NewWorker(nil, time.Second)
	var list []jobs.Job
	for range 3 {
		b.add(jobs.NewJob{Kind: "test:run"})
		list = append(list, b.claim())
	}
	kept, let := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- d.Tx(context.Background(), func(tx *db.Tx) error {
			_, err := tx.Exec(context.Background(), `UPDATE jobs SET lease_until = lease_until + 1 WHERE id = ?`, list[1].ID)
			close(kept)
			<-let
			return err
		})
	}()
	<-kept
	ends := make(chan []error, 1)
	go func() { ends <- w.Succeed(context.Background(), list...) }()
	testenv.Eventually(t, 10*time.Second, func() bool {
		return b.find(list[0].ID).State == jobs.Succeeded && b.find(list[2].ID).State == jobs.Succeeded
	})
	if state := b.find(list[1].ID).State; state != jobs.Running {
		t.Errorf("the job that is kept is %s", state)
	}
	close(let)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i, err := range <-ends {
		if err != nil {
			t.Errorf("the end of job %d: %v", i, err)
		}
	}
}

// gate is one slot that is taken when the test lets it and says so: a claim comes
// next.
type gate struct {
	jobs.Fixed
	open, taken chan struct{}
}

func (s gate) Acquire(ctx context.Context) (jobs.Slot, error) {
	<-s.open
	slot, err := s.Fixed.Acquire(ctx)
	if err == nil {
		s.taken <- struct{}{}
	}
	return slot, err
}

func TestAClaimThatComesBackAfterTheShutdownTimeIsReleased(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		var runs atomic.Int64
		once := jobs.Kind{Name: "test:run", Lane: "a", MaxAttempts: 1, Run: func(context.Context, *jobs.Run) error {
			runs.Add(1)
			return nil
		}}
		b := open(t, d, testenv.Redis(t), clock.New(), once)
		id := b.add(jobs.NewJob{Kind: "test:run"})
		slots := gate{jobs.NewFixed(1), make(chan struct{}), make(chan struct{}, 100)}
		w := b.queue.NewWorker([]jobs.Lane{{Name: "a", Slots: slots}}, time.Minute)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx, nil) }()
		// The claim waits for this transaction.
		err := d.Tx(context.Background(), func(tx *db.Tx) error {
			if d.Dialect() == db.Postgres {
				if _, err := tx.Exec(context.Background(), `LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE`); err != nil {
					return err
				}
			}
			close(slots.open)
			<-slots.taken
			cancel()
			w.StopAll()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		// On a slow machine the claim may have given up, which is as good.
		if j := b.find(id); j.State != jobs.Queued || j.MaxAttempts-j.Attempt != 1 || runs.Load() != 0 {
			t.Errorf("it is %s after attempt %d of %d, and ran %d times", j.State, j.Attempt, j.MaxAttempts, runs.Load())
		}
	})
}

// A database that hangs holds one try, not the rest of them.
func TestWhatBecameOfAnAttemptIsWrittenTryByTry(t *testing.T) {
	t.Parallel()
	q := jobs.New(nil, clock.New(), nil, jobs.NewMetrics(nil), slog.New(slog.DiscardHandler))
	w := q.NewWorker(nil, time.Second)
	tries := 0
	err := w.Persist(t.Context(), time.Millisecond, func(ctx context.Context) error {
		if tries++; tries < 3 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
}
