package generate

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/subject"
)

// KindCancelAll is the job that stops all work of a person.
const KindCancelAll = "generation:cancel-all"

// stops are the events after which nothing may be made for a person, with what
// their work then ends as.
var stops = map[events.Type]subject.Reason{
	events.AccountClosing:    subject.BecauseClosed,
	events.AccountRestricted: subject.BecauseRestricted,
	events.AccountSuspended:  subject.BecauseSuspended,
}

// Happened is told of every event, in its transaction: when an account closes, or
// may not be worked for, what it has queued and running is to stop.
func (s *Service) Happened(ctx context.Context, tx *db.Tx, e events.Event) error {
	why, stop := stops[e.Type]
	if !stop {
		return nil
	}
	_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindCancelAll, Party: e.Subject, Ref: fmt.Sprintf("%s@%d@%s", e.Subject, e.At.UnixMilli(), why)})
	return err
}

// cancelAll cancels what an owner has not finished, in bounded batches, up to the
// moment of the event: what was accepted after it is allowed again.
func (s *Service) cancelAll(ctx context.Context, r *jobs.Run) error {
	owner, rest, _ := strings.Cut(r.Ref, "@")
	until, why, _ := strings.Cut(rest, "@")
	ms, err := strconv.ParseInt(until, 10, 64)
	if err != nil {
		return jobs.Fail("internal", err)
	}
	for after := ""; ; {
		var page []struct {
			ID  string `db:"id"`
			Job string `db:"job_id"`
		}
		// The job's time: it was added while the owner's row was kept, as the event was.
		err := s.DB.Select(ctx, &page, `SELECT g.id, g.job_id FROM generations g JOIN jobs j ON j.id = g.job_id
			WHERE g.owner = ? AND g.status = '' AND g.id > ? AND j.created_at <= ? AND j.state IN ('queued', 'waiting', 'running')
			ORDER BY g.id LIMIT ?`, owner, after, ms, sweepBatch)
		if err != nil {
			return jobs.Retry("internal", err)
		}
		if len(page) == 0 {
			return nil
		}
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			for _, g := range page {
				if _, err := s.Queue.Cancel(ctx, tx, g.Job, why); err != nil {
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
