package jobs

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"zimage/internal/db"
)

const (
	// batch bounds what one pass of the scheduler changes in one transaction.
	batch = 200
	// maxStep of the clock between two passes is the sum of small corrections;
	// more is a jump, by which leases pass that nobody failed to renew.
	maxStep = 2 * time.Second
	// clockEvery is how often every process measures the clock: that long, some
	// still write leases by the old one.
	clockEvery = 10 * time.Second
)

// Scheduler mends the queue and makes schedules come round. Any number of them
// may run at once.
type Scheduler struct {
	queue     *Queue
	schedules []Schedule
	id        string

	failed  bool          // the last pass saw the database fail
	offset  time.Duration // of the clock in the last pass
	patient time.Time     // until then, by monotonic time, expired leases are left alone
}

// A Schedule adds a job of a kind once in every interval, counted from 1970.
type Schedule struct {
	Name  string
	Every time.Duration
	Kind  string
	Party string // default System; one of its own does not queue behind other schedules' work
}

// NewScheduler makes a scheduler with its schedules.
func (q *Queue) NewScheduler(schedules ...Schedule) *Scheduler {
	return &Scheduler{queue: q, schedules: schedules, id: db.NewID("sch", q.clock.Now()), offset: q.clock.Offset()}
}

// Run makes a pass every two seconds until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	t := time.NewTicker(reconcileEvery)
	defer t.Stop()
	s.failed = true // for all we know, it was away until now
	var sampled time.Time
	for {
		if err := s.pass(ctx, &sampled); err != nil && ctx.Err() == nil {
			s.queue.log.Warn("scheduler pass failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (s *Scheduler) pass(ctx context.Context, sampled *time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := s.Reconcile(ctx)
	if err == nil {
		err = s.Tick(ctx)
	}
	if err == nil && time.Since(*sampled) >= 10*time.Second {
		*sampled = time.Now()
		err = errors.Join(s.queue.sample(ctx), s.Prune(ctx))
	}
	return err
}

// Reconcile requeues jobs whose lease has passed, queues those that have waited
// long enough, and fails those that have no attempt left. It may be called by
// anybody at any time.
func (s *Scheduler) Reconcile(ctx context.Context) error {
	if err := s.probe(ctx); err != nil {
		return err
	}
	if s.failed {
		// The workers could not renew either: they get a lease's time to do so.
		s.failed = false
		s.wait(Lease)
	}
	now := s.queue.clock.Now() // before the offset, so that a jump in it is seen
	offset := s.queue.clock.Offset()
	if (offset - s.offset).Abs() > maxStep {
		s.wait(clockEvery + Lease)
	}
	s.offset = offset
	if !time.Now().Before(s.patient) {
		lost := func(ctx context.Context) (int, error) { return s.requeueLost(ctx, now) }
		if err := s.repeat(ctx, lost); err != nil {
			return err
		}
	}
	return s.repeat(ctx, s.queueDue)
}

// wait leaves expired leases alone for a while.
func (s *Scheduler) wait(d time.Duration) {
	if until := time.Now().Add(d); until.After(s.patient) {
		s.patient = until
	}
}

// probe notes whether a worker's renewal could be written now. It writes too,
// because a database whose disk is full or that lets nobody write still answers
// questions; and one that is too slow for a renewal is away for the workers even
// if it answers us in the end. Nothing is left of it.
func (s *Scheduler) probe(ctx context.Context) error {
	q := s.queue
	ctx, cancel := context.WithTimeout(db.Urgent(ctx), Renew)
	defer cancel()
	began := time.Now()
	err := q.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO workers (id, lane, slots, unit_micros, seen_at) VALUES (?, '', 0, 0, ?)`, s.id, q.clock.Millis())
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM workers WHERE id = ?`, s.id)
		return err
	})
	if err != nil || time.Since(began) > Renew {
		s.failed = true
	}
	return err
}

// repeat runs a bounded batch until there is no more.
func (s *Scheduler) repeat(ctx context.Context, one func(context.Context) (int, error)) error {
	for {
		n, err := one(ctx)
		if err != nil {
			s.failed = s.failed || db.IsAway(err)
			return err
		}
		if n < batch {
			return nil
		}
	}
}

func (s *Scheduler) requeueLost(ctx context.Context, now time.Time) (int, error) {
	q := s.queue
	n, err := q.freeLost(ctx, now.UnixMilli())
	if n > 0 {
		q.metrics.leasesLost.Add(float64(n))
		q.log.Warn("jobs of silent workers are free again", "jobs", n)
	}
	return n, err
}

// freeLost queues a batch of running jobs whose lease passed before a time, and
// ends those for which this was the last attempt: a job that takes its process
// down with it must not do so forever. It returns how many.
func (q *Queue) freeLost(ctx context.Context, before int64) (int, error) {
	const lost = ` state = 'running' AND lease_until < ? `
	var found, spent []Job
	err := q.db.Tx(ctx, func(tx *db.Tx) error {
		found, spent = found[:0], spent[:0]
		err := tx.Select(ctx, &found, `SELECT `+columns+` FROM jobs WHERE`+lost+`ORDER BY lease_until LIMIT ?`+db.SkipLocked(tx), before, batch)
		if err != nil {
			return err
		}
		slices.SortStableFunc(found, byParty)
		for _, j := range found {
			if j.CancelRequested || j.Attempt >= j.MaxAttempts {
				spent = append(spent, j)
				continue
			}
			if _, err := tx.Exec(ctx, `UPDATE jobs SET state = 'queued', lease_until = 0, worker = '' WHERE id = ?`, j.ID); err != nil {
				return err
			}
			tx.AfterCommit(func() { q.bell.Ring(j.Lane, j.Kind) })
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	freed := len(found) - len(spent)
	for _, j := range spent {
		if _, known := q.kinds[j.Kind]; !known {
			continue // a newer scheduler also tells its room
		}
		// Each by itself: a room that fails to end one must not keep the others.
		err := q.endLost(ctx, j.ID, lost+db.SkipLocked(q.db), before)
		switch {
		case err == nil:
			freed++
		case db.IsAway(err):
			return freed, err
		default:
			q.log.Error("could not end a lost job", "kind", j.Kind, "job", j.ID, "error", err)
		}
	}
	return freed, nil
}

// endLost ends a lost job, if it still is one.
func (q *Queue) endLost(ctx context.Context, id, lost string, before int64) (err error) {
	defer func() {
		if p := recover(); p != nil { // of the kind's Ended
			err = fmt.Errorf("panic of type %T at %s", p, frames())
		}
	}()
	return q.db.Tx(ctx, func(tx *db.Tx) error {
		var j Job
		err := tx.Get(ctx, &j, `SELECT `+columns+` FROM jobs WHERE id = ? AND`+lost, id, before)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err != nil:
			return err
		case j.CancelRequested:
			return q.stop(ctx, tx, j)
		}
		return q.end(ctx, tx, j, Failed, "worker_lost")
	})
}

func byParty(a, b Job) int {
	return cmp.Or(cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.Party, b.Party))
}

// queueDue queues a batch of those that have waited long enough, and returns how
// many. Each party's turn is taken in a transaction of its own, or it would be kept
// while others' are waited for.
func (s *Scheduler) queueDue(ctx context.Context) (total int, err error) {
	var due []Job
	err = s.queue.db.Select(ctx, &due, `SELECT `+columns+` FROM jobs WHERE state = 'waiting' AND run_after <= ? ORDER BY run_after LIMIT ?`,
		s.queue.clock.Millis(), batch)
	if err != nil {
		return 0, err
	}
	slices.SortStableFunc(due, byParty)
	for len(due) > 0 {
		n := 1
		for n < len(due) && byParty(due[0], due[n]) == 0 {
			n++
		}
		queued, err := s.queueParty(ctx, due[:n])
		total += queued
		if err != nil {
			return total, err
		}
		due = due[n:]
	}
	return total, nil
}

// queueParty queues what still waits of one party's jobs in one lane.
func (s *Scheduler) queueParty(ctx context.Context, jobs []Job) (int, error) {
	q := s.queue
	ids := make([]any, len(jobs))
	for i, j := range jobs {
		ids[i] = j.ID
	}
	var due []Job
	err := q.db.Tx(ctx, func(tx *db.Tx) error {
		due = due[:0]
		err := tx.Select(ctx, &due, `SELECT `+columns+` FROM jobs WHERE id IN (`+db.Marks(len(ids))+`) AND state = 'waiting'
			ORDER BY run_after`+db.SkipLocked(tx), ids...)
		if err != nil {
			return err
		}
		for _, j := range due {
			finish, err := takeTurn(ctx, tx, j.Lane, j.Party, j.Cost)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `UPDATE jobs SET state = 'queued', vstart = ? WHERE id = ?`, finish-j.Cost, j.ID); err != nil {
				return err
			}
			tx.AfterCommit(func() { q.bell.Ring(j.Lane, j.Kind) })
		}
		return nil
	})
	return len(due), err
}

// Tick adds the jobs of schedules that have come round. The row of the tick
// decides which of several schedulers does it.
func (s *Scheduler) Tick(ctx context.Context) error {
	q := s.queue
	for _, schedule := range s.schedules {
		tick := q.clock.Millis() / schedule.Every.Milliseconds()
		var known int
		err := q.db.Get(ctx, &known, `SELECT count(*) FROM schedule_ticks WHERE name = ? AND tick = ?`, schedule.Name, tick)
		if err != nil {
			return err
		}
		if known > 0 {
			continue
		}
		err = q.db.Tx(ctx, func(tx *db.Tx) error {
			n, err := tx.Exec(ctx, `INSERT INTO schedule_ticks (name, tick, at) VALUES (?, ?, ?) ON CONFLICT (name, tick) DO NOTHING`,
				schedule.Name, tick, q.clock.Millis())
			if err != nil || n == 0 {
				return err
			}
			_, err = q.Add(ctx, tx, NewJob{Kind: schedule.Kind, Party: schedule.Party, Ref: schedule.Name})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// RequeueAll frees every running job at once, as if its lease had passed. Only a
// process that knows itself to be alone, by holding the data folder's lock, may
// call it.
func (q *Queue) RequeueAll(ctx context.Context) (total int, err error) {
	for {
		n, err := q.freeLost(ctx, math.MaxInt64)
		total += n
		if err != nil || n < batch {
			return total, err
		}
	}
}

// Prune removes the rows nobody needs any more: ended jobs, old ticks, silent
// workers, and turns of parties that are behind everybody who waits.
func (s *Scheduler) Prune(ctx context.Context) error {
	q, now := s.queue, s.queue.clock.Millis()
	for _, old := range []struct {
		sql  string
		args []any
	}{
		// Ids are cut by the time of their making, which needs no index of its own.
		{`DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE id < ? AND state IN ('succeeded', 'failed', 'canceled')
			AND finished_at < ? ORDER BY id LIMIT 1000)`,
			[]any{db.FloorID("job", q.clock.Now().Add(-keepEnded)), now - keepEnded.Milliseconds()}},
		{`DELETE FROM schedule_ticks WHERE at < ?`, []any{now - keepTicks.Milliseconds()}},
		{`DELETE FROM workers WHERE seen_at < ?`, []any{now - WorkersKept.Milliseconds()}},
		// Parties that are behind everybody who waits, or idle in an idle lane. The
		// furthest turn stays: it is what the next one is reckoned from, and a job
		// that is queued again keeps its old tag.
		{`DELETE FROM job_turns WHERE finish <= coalesce(
				(SELECT min(vstart) FROM jobs WHERE jobs.lane = job_turns.lane AND state = 'queued'), finish)
			AND finish < (SELECT max(t.finish) FROM job_turns t WHERE t.lane = job_turns.lane)
			AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.party = job_turns.party AND state IN ('queued', 'waiting'))`, nil},
	} {
		if _, err := q.db.Exec(ctx, old.sql, old.args...); err != nil {
			return err
		}
	}
	return nil
}
