package privacy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"zimage/internal/db"
)

// tendRequests closes what nobody has confirmed in time, does what nobody objected to, forgets what has had its time,
// and measures what is open. What fails keeps nothing else from its time.
func (s *Service) tendRequests(ctx context.Context, alarm bool) error {
	var failed error
	if s.plausible(ctx) == nil {
		failed = errors.Join(s.dropUnconfirmed(ctx), s.actOnRequests(ctx), s.wipeRequests(ctx), s.forgetRequests(ctx))
	}
	return errors.Join(failed, s.measureRequests(ctx, alarm))
}

func (s *Service) dropUnconfirmed(ctx context.Context) error {
	drop := func(ctx context.Context, r requestRow) error {
		return s.DB.Tx(ctx, func(tx *db.Tx) error {
			_, err := s.closeRequests(ctx, tx, OutcomeUnconfirmed, `id = ? AND state = 'unconfirmed'`, r.ID)
			return err
		})
	}
	err := s.eachRequest(ctx, drop, `state = 'unconfirmed' AND expires_at <= ?`, s.Clock.Millis())
	if err != nil {
		return fmt.Errorf("close unconfirmed requests: %w", err)
	}
	return nil
}

// actOnRequests does what has waited for an objection.
func (s *Service) actOnRequests(ctx context.Context) error {
	err := s.eachRequest(ctx, s.act, `acts_at > 0 AND acts_at <= ? AND state = 'open' AND ref = ''`, s.Clock.Millis())
	if err != nil {
		return fmt.Errorf("do what was asked for: %w", err)
	}
	return nil
}

// eachRequest goes through all requests of a condition. Those for which nothing can be done,
// however many, keep no other from its turn.
func (s *Service) eachRequest(ctx context.Context, do func(context.Context, requestRow) error, which string, args ...any) error {
	var first error
	failed := 0
	for after := ""; ; {
		var page []requestRow
		err := s.DB.Select(ctx, &page, selectRequest+`WHERE `+which+` AND id > ? ORDER BY id LIMIT ?`, append(slices.Clone(args), after, eraseBatch)...)
		if err != nil {
			return errors.Join(first, err)
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			after = r.ID
			if err := do(ctx, r); db.IsAway(err) || ctx.Err() != nil {
				return errors.Join(first, err)
			} else if err != nil {
				failed++
				first = cmp.Or(first, err)
			}
		}
	}
	if failed > 1 {
		return fmt.Errorf("%d requests failed, the first: %w", failed, first)
	}
	return first
}

// wipeRequests forgets what requests said that were closed a while ago, and whose
// address it was. The key of one that belongs to no account goes first, and with it
// the mails and the words of the ledger that it sealed.
func (s *Service) wipeRequests(ctx context.Context) error {
	err := s.eachRequest(ctx, s.wipe, `state = 'closed' AND closed_at <= ? AND (address IS NOT NULL OR note IS NOT NULL OR address_lookup IS NOT NULL)`,
		s.Clock.Now().Add(-wipeAfter).UnixMilli())
	if err != nil {
		return fmt.Errorf("forget what requests said: %w", err)
	}
	return nil
}

func (s *Service) wipe(ctx context.Context, r requestRow) error {
	if r.nobodys() {
		if err := s.Vault.Destroy(ctx, r.ID); err != nil {
			return err
		}
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		if r.nobodys() {
			if _, err := tx.Exec(ctx, `DELETE FROM ledger_details WHERE subject = ?`, r.ID); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `UPDATE requests SET address = NULL, address_lookup = NULL, note = NULL WHERE id = ?`, r.ID)
		return err
	})
}

func (s *Service) forgetRequests(ctx context.Context) error {
	_, err := s.DB.Exec(ctx, `DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE state = 'closed' AND closed_at <= ? LIMIT ?)`,
		s.Clock.Now().Add(-requestLife).UnixMilli(), eraseBatch)
	if err != nil {
		return fmt.Errorf("forget old requests: %w", err)
	}
	return nil
}

// measureRequests counts what is open, and tells in the log what nears its deadline.
func (s *Service) measureRequests(ctx context.Context, alarm bool) error {
	now := s.Clock.Millis()
	var sums []struct {
		Kind    RequestKind `db:"kind"`
		Open    int         `db:"open"`
		Oldest  int64       `db:"oldest"`
		Overdue int         `db:"overdue"`
	}
	err := s.DB.Select(ctx, &sums, `SELECT kind, count(*) AS open, min(received_at) AS oldest, coalesce(sum(CASE WHEN due_at <= ? THEN 1 ELSE 0 END), 0) AS overdue
		FROM requests WHERE state <> 'closed' GROUP BY kind`, now)
	if err != nil {
		return fmt.Errorf("measure requests: %w", err)
	}
	for _, kind := range RequestKinds() {
		s.Metrics.requestsOpen.WithLabelValues(string(kind)).Set(0)
	}
	oldest, overdue := now, 0
	for _, sum := range sums {
		s.Metrics.requestsOpen.WithLabelValues(string(sum.Kind)).Set(float64(sum.Open))
		oldest, overdue = min(oldest, sum.Oldest), overdue+sum.Overdue
	}
	s.Metrics.requestsOldest.Set(millis(now - oldest).Seconds())
	s.Metrics.requestsOverdue.Set(float64(overdue))
	if !alarm {
		return nil
	}
	var late []requestRow
	err = s.DB.Select(ctx, &late, selectRequest+`WHERE state <> 'closed' AND due_at < ? ORDER BY due_at LIMIT 20`, now+alarmBefore.Milliseconds())
	for _, r := range late {
		if r.DueAt <= now {
			s.Log.ErrorContext(ctx, "a request is behind its deadline", "request", r.ID, "kind", string(r.Kind), "state", string(r.State))
		} else {
			s.Log.WarnContext(ctx, "a request nears its deadline", "request", r.ID, "kind", string(r.Kind), "state", string(r.State))
		}
	}
	return err
}
