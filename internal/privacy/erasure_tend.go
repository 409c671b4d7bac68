package privacy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"zimage/internal/db"
	"zimage/internal/subject"
)

const (
	tendEvery = 10 * time.Second
	// alarmBefore the deadline an erasure that is open is told in the log.
	alarmBefore = 7 * 24 * time.Hour
	alarmEvery  = time.Hour
)

// Tend looks after erasures until ctx ends: one process at least must do so.
func (s *Service) Tend(ctx context.Context) {
	t := time.NewTicker(tendEvery)
	defer t.Stop()
	var told time.Time
	for {
		alarm := told.IsZero() || time.Since(told) >= alarmEvery
		if alarm {
			told = time.Now()
		}
		if err := s.Look(ctx, alarm); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "could not look after erasures", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Look makes one round: it finds accounts that closed without an erasure,
// erasures without a job, and exceptions that no hold keeps any more; it mirrors the
// journal, forgets what has had its time, and measures what is open, requests and holds too. alarm
// also tells in the log what nears its deadline or is to be looked at again.
func (s *Service) Look(ctx context.Context, alarm bool) error {
	return errors.Join(s.adopt(ctx), s.resume(ctx), s.forget(ctx), s.measure(ctx, alarm), s.tendMirror(ctx),
		s.measureSweeps(ctx), s.tendRequests(ctx, alarm), s.measureHolds(ctx, alarm))
}

// each does something for all that page finds, by their ids. One that fails keeps nobody else
// waiting: they are told together.
func each(ctx context.Context, page func(after string) ([]entry, error), do func(entry) error) error {
	failed, first := 0, error(nil)
	for after := ""; ; {
		some, err := page(after)
		if err != nil {
			return err
		}
		for _, one := range some {
			after = one.ID
			err := do(one)
			if ctx.Err() != nil || db.IsAway(err) {
				return err
			}
			if err != nil {
				if failed++; first == nil {
					first = err
				}
			}
		}
		if len(some) == eraseBatch {
			continue
		}
		if failed > 0 {
			return fmt.Errorf("%d fail, the first with: %w", failed, first)
		}
		return nil
	}
}

// adopt requests erasures of accounts that closed before there was one.
func (s *Service) adopt(ctx context.Context) error {
	err := each(ctx, func(after string) (closing []entry, err error) {
		err = s.DB.Select(ctx, &closing, `SELECT id, changed_at AS at FROM subjects WHERE state = ? AND id > ?
			AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.subject = subjects.id) ORDER BY id LIMIT ?`, subject.Closing, after, eraseBatch)
		return closing, err
	}, func(c entry) error {
		return s.DB.Tx(ctx, func(tx *db.Tx) error {
			return s.requestErasure(ctx, tx, db.NewID("era", s.Clock.Now()), c.ID, at(c.At), nil)
		})
	})
	if err != nil {
		return fmt.Errorf("request erasures of closed accounts: %w", err)
	}
	return nil
}

// resume adds jobs for what has work to do and no job.
func (s *Service) resume(ctx context.Context) error {
	const idle = `NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = erasures.job_id AND j.state IN ('queued', 'waiting', 'running'))`
	err := each(ctx, func(after string) (all []entry, err error) {
		err = s.DB.Select(ctx, &all, `SELECT id FROM erasures WHERE id > ? AND completed_at = 0 AND `+idle+`
			UNION SELECT id FROM erasures WHERE id > ? AND completed_at > 0 AND `+idle+` AND id IN (SELECT x.erasure_id FROM erasure_exceptions x WHERE `+free+`
				UNION SELECT x.erasure_id FROM erasure_exceptions x WHERE x.ended_at > erasures.receipt_at) ORDER BY id LIMIT ?`, after, after, eraseBatch)
		return all, err
	}, func(e entry) error {
		return s.DB.Tx(ctx, func(tx *db.Tx) error {
			var locked string
			if err := tx.Get(ctx, &locked, `SELECT id FROM erasures WHERE id = ?`+db.ForUpdate(tx), e.ID); err != nil {
				return err
			}
			var n int // another scheduler may have been first
			if err := tx.Get(ctx, &n, `SELECT count(*) FROM erasures WHERE id = ? AND `+idle, e.ID); err != nil || n == 0 {
				return err
			}
			return s.enqueue(ctx, tx, e.ID, 0)
		})
	})
	if err != nil {
		return fmt.Errorf("go on with erasures: %w", err)
	}
	return nil
}

// forget removes receipts and lines of the journal that have had their time.
func (s *Service) forget(ctx context.Context) error {
	if s.plausible(ctx) != nil {
		return nil //nolint:nilerr // the log tells it
	}
	return errors.Join(s.forgetReceipts(ctx), s.forgetAccounts(ctx), s.forgetDeletions(ctx))
}

func (s *Service) forgetReceipts(ctx context.Context) error {
	now := s.Clock.Now()
	_, err := s.DB.Exec(ctx, `DELETE FROM erasures WHERE id IN (SELECT id FROM erasures WHERE completed_at > 0 AND completed_at < ?
		AND NOT EXISTS (SELECT 1 FROM erasure_exceptions x WHERE x.erasure_id = erasures.id AND x.ended_at = 0) LIMIT ?)`,
		now.Add(-receiptLife).UnixMilli(), eraseBatch)
	if err == nil {
		_, err = s.DB.Exec(ctx, `DELETE FROM erasure_exceptions WHERE ended_at > 0 AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.id = erasure_exceptions.erasure_id)`)
	}
	if err != nil {
		return fmt.Errorf("forget old receipts: %w", err)
	}
	return nil
}

// forgetAccounts removes lines of accounts that are erased. Others stay, and are passed over.
func (s *Service) forgetAccounts(ctx context.Context) error {
	end := s.journalEnd().UnixMilli()
	for last := (entry{}); ; {
		var old []entry
		err := s.Keys.Select(ctx, &old, `SELECT id, erasure, secret, at FROM erasure_journal WHERE kind = ? AND at < ? AND (at, id) > (?, ?) ORDER BY at, id LIMIT ?`,
			journalAccount, end, last.At, last.ID, eraseBatch)
		if err == nil && len(old) == 0 {
			return nil
		}
		if err == nil {
			last = old[len(old)-1]
			err = s.forgetErased(ctx, old)
		}
		if err != nil {
			return fmt.Errorf("forget the old journal: %w", err)
		}
	}
}

func (s *Service) forgetErased(ctx context.Context, old []entry) error {
	named := []any{subject.Erased}
	for _, e := range old {
		named = append(named, e.ID)
	}
	var open []string
	if err := s.DB.Select(ctx, &open, `SELECT id FROM subjects WHERE state <> ? AND id IN (`+db.Marks(len(old))+`)`, named...); err != nil {
		return err
	}
	over := []any{journalAccount}
	for _, e := range old {
		if !slices.Contains(open, e.ID) {
			over = append(over, e.ID)
		}
	}
	if len(over) == 1 {
		return nil
	}
	_, err := s.Keys.Exec(ctx, `DELETE FROM erasure_journal WHERE kind = ? AND id IN (`+db.Marks(len(over)-1)+`)`, over...)
	return err
}

// measure counts what is open.
func (s *Service) measure(ctx context.Context, alarm bool) error {
	now := s.Clock.Millis()
	var sum struct {
		Open    int   `db:"open"`
		Oldest  int64 `db:"oldest"`
		Overdue int   `db:"overdue"`
	}
	err := s.DB.Get(ctx, &sum, `SELECT count(*) AS open, coalesce(min(requested_at), 0) AS oldest, coalesce(sum(CASE WHEN due_at < ? THEN 1 ELSE 0 END), 0) AS overdue
		FROM erasures WHERE completed_at = 0`, now)
	if err != nil {
		return fmt.Errorf("measure erasures: %w", err)
	}
	age := millis(0)
	if sum.Open > 0 {
		age = millis(now - sum.Oldest)
	}
	s.Metrics.erasuresOpen.Set(float64(sum.Open))
	s.Metrics.erasuresOverdue.Set(float64(sum.Overdue))
	s.Metrics.erasuresOldest.Set(age.Seconds())
	if !alarm {
		return nil
	}
	var late []erasure
	err = s.DB.Select(ctx, &late, selectErasure+`WHERE completed_at = 0 AND due_at < ? ORDER BY due_at LIMIT 20`, now+alarmBefore.Milliseconds())
	for _, e := range late {
		if e.DueAt < now {
			s.Log.ErrorContext(ctx, "an erasure is behind its deadline", "erasure", e.ID, "step", e.Step, "code", e.Failure, "failures", e.Failures)
		} else {
			s.Log.WarnContext(ctx, "an erasure nears its deadline", "erasure", e.ID, "step", e.Step, "code", e.Failure, "failures", e.Failures)
		}
	}
	return err
}
