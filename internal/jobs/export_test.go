package jobs

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// Columns of a Job's row, as a claim returns them.
const Columns = columns

// Claim claims one job without a worker around it, so that the claim alone is
// measured.
func (q *Queue) Claim(ctx context.Context, lane, worker string) (j Job, ok bool, err error) {
	list, err := q.claim(ctx, lane, worker, 1, full{})
	if err != nil || len(list) == 0 {
		return Job{}, false, err
	}
	return list[0], true, nil
}

// Patience is how much longer expired leases are left alone.
func (s *Scheduler) Patience() time.Duration { return time.Until(s.patient) }

// LosePatience ends it.
func (s *Scheduler) LosePatience() { s.patient = time.Time{} }

// StopAll is what a worker does when its shutdown time is over.
func (w *Worker) StopAll() { w.stopAll() }

// Persist writes what became of an attempt, each try for no longer than try.
func (w *Worker) Persist(ctx context.Context, try time.Duration, write func(context.Context) error) error {
	w.try = try
	return w.persist(ctx, write)
}

// Shared is shared, for numbers that come to numbers.
type Shared struct{ s shared[int, int] }

// NewShared asks all with the numbers of those who ask, which it changes into what
// they come to.
func NewShared(all func(numbers []int) error) *Shared {
	return &Shared{shared[int, int]{all: func(wishes []*wish[int, int]) error {
		var numbers []int
		for _, w := range wishes {
			numbers = append(numbers, w.in)
		}
		err := all(numbers)
		for i, w := range wishes {
			w.out = numbers[i]
		}
		return err
	}}}
}

// Ask asks with a number.
func (s *Shared) Ask(in int) (int, error) { return s.s.ask(in) }

// Claiming counts the slots of a worker that wait for the claim that is on its way.
func (w *Worker) Claiming() (n int) {
	for _, l := range w.lanes {
		l.claims.mu.Lock()
		n += len(l.claims.waiting)
		l.claims.mu.Unlock()
	}
	return n
}

// Succeed ends jobs that have nothing more to write together, and says what each
// came to.
func (w *Worker) Succeed(ctx context.Context, list ...Job) []error {
	w.ends.mu.Lock()
	w.ends.asking = true // as if an end were on its way
	w.ends.mu.Unlock()
	errs := make([]error, len(list))
	var ends sync.WaitGroup
	for i, j := range list {
		ends.Go(func() { errs[i] = w.succeed(ctx, j) })
	}
	for n := 0; n < len(list); runtime.Gosched() {
		w.ends.mu.Lock()
		n = len(w.ends.waiting)
		w.ends.mu.Unlock()
	}
	w.ends.round()
	ends.Wait()
	return errs
}
