package privacy

import (
	"context"
	"errors"
	"fmt"
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

// adopt requests erasures of accounts that closed before there was one.
func (s *Service) adopt(ctx context.Context) error {
	var closing []struct {
		ID string `db:"id"`
		At int64  `db:"changed_at"`
	}
	err := s.DB.Select(ctx, &closing, `SELECT id, changed_at FROM subjects WHERE state = ? AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.subject = subjects.id) LIMIT ?`,
		subject.Closing, eraseBatch)
	if err != nil {
		return fmt.Errorf("look for closed accounts: %w", err)
	}
	for _, c := range closing {
		err := s.DB.Tx(ctx, func(tx *db.Tx) error {
			return s.requestErasure(ctx, tx, db.NewID("era", s.Clock.Now()), c.ID, at(c.At), nil)
		})
		if err != nil {
			return fmt.Errorf("request an erasure: %w", err)
		}
	}
	return nil
}

// resume adds jobs for what has work to do and no job.
func (s *Service) resume(ctx context.Context) error {
	const idle = `NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = erasures.job_id AND j.state IN ('queued', 'waiting', 'running'))`
	var ids []string
	err := s.DB.Select(ctx, &ids, `SELECT id FROM erasures WHERE completed_at = 0 AND `+idle+`
		UNION SELECT id FROM erasures WHERE completed_at > 0 AND `+idle+` AND id IN (SELECT x.erasure_id FROM erasure_exceptions x WHERE `+free+`
			UNION SELECT x.erasure_id FROM erasure_exceptions x WHERE x.ended_at > erasures.receipt_at) ORDER BY id LIMIT ?`, eraseBatch)
	if err != nil {
		return fmt.Errorf("look for erasures: %w", err)
	}
	for _, id := range ids {
		err := s.DB.Tx(ctx, func(tx *db.Tx) error {
			var locked string
			if err := tx.Get(ctx, &locked, `SELECT id FROM erasures WHERE id = ?`+db.ForUpdate(tx), id); err != nil {
				return err
			}
			var n int // another scheduler may have been first
			if err := tx.Get(ctx, &n, `SELECT count(*) FROM erasures WHERE id = ? AND `+idle, id); err != nil || n == 0 {
				return err
			}
			return s.enqueue(ctx, tx, id, 0)
		})
		if err != nil {
			return fmt.Errorf("go on with an erasure: %w", err)
		}
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

// forgetAccounts removes lines of accounts that are erased.
func (s *Service) forgetAccounts(ctx context.Context) error {
	var old []entry
	err := s.Keys.Select(ctx, &old, `SELECT id, erasure, secret, at FROM erasure_journal WHERE kind = ? AND at < ? ORDER BY at LIMIT ?`,
		journalAccount, s.journalEnd().UnixMilli(), eraseBatch)
	if err != nil {
		return fmt.Errorf("forget the old journal: %w", err)
	}
	for _, j := range old {
		var open int
		err := s.DB.Get(ctx, &open, `SELECT count(*) FROM subjects WHERE id = ? AND state <> ?`, j.ID, subject.Erased)
		if err == nil && open == 0 {
			_, err = s.Keys.Exec(ctx, `DELETE FROM erasure_journal WHERE kind = ? AND id = ?`, journalAccount, j.ID)
		}
		if err != nil {
			return fmt.Errorf("forget the old journal: %w", err)
		}
	}
	return nil
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
