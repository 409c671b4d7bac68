package generate

import (
	"context"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
)

// KindCancelAll is the job that stops all work of a person.
const KindCancelAll = "generation:cancel-all"

// Happened is told of every event, in its transaction: when an account closes, or
// may not be worked for, what it has queued and running is to stop.
func (s *Service) Happened(ctx context.Context, tx *db.Tx, e events.Event) error {
	switch e.Type {
	case events.AccountClosing, events.AccountRestricted, events.AccountSuspended:
	default:
		return nil
	}
	_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindCancelAll, Party: e.Subject, Ref: e.Subject})
	return err
}

// cancelAll cancels what an owner has not finished, in bounded batches. Nothing
// new can begin meanwhile.
func (s *Service) cancelAll(ctx context.Context, r *jobs.Run) error {
	for after := ""; ; {
		var page []struct {
			ID  string `db:"id"`
			Job string `db:"job_id"`
		}
		err := s.DB.Select(ctx, &page, `SELECT g.id, g.job_id FROM generations g JOIN jobs j ON j.id = g.job_id
			WHERE g.owner = ? AND g.status = '' AND g.id > ? AND j.state IN ('queued', 'waiting', 'running') ORDER BY g.id LIMIT ?`, r.Ref, after, sweepBatch)
		if err != nil {
			return jobs.Retry("internal", err)
		}
		if len(page) == 0 {
			return nil
		}
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			for _, g := range page {
				if _, err := s.Queue.Cancel(ctx, tx, g.Job); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return jobs.Retry("internal", err)
		}
		after = page[len(page)-1].ID
	}
}
