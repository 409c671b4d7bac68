package jobs

import (
	"context"
	"time"
)

// Columns of a Job's row, as a claim returns them.
const Columns = columns

// Claim claims without a worker around it, so that the claim alone is measured.
func (q *Queue) Claim(ctx context.Context, lane, worker string) (j Job, ok bool, err error) {
	return q.claim(ctx, lane, worker)
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
