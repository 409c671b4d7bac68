package generate

import (
	"context"
	"errors"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
)

// startedTime bounds how long a generation waits for its start to be told.
const startedTime = 5 * time.Second

// started tells that an attempt has begun. The claim itself is one statement for
// several jobs and tells nobody, so this is a transaction of its own, in which the
// attempt still counts. That a start is not told, because the database is away at this
// moment, costs nobody the generation.
func (s *Service) started(ctx context.Context, r *jobs.Run, g row) error {
	ctx, cancel := context.WithTimeout(ctx, startedTime)
	defer cancel()
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := r.Own(ctx, tx); err != nil {
			return err
		}
		return s.Events.Append(ctx, tx, events.Event{Type: events.GenerationStarted, Subject: g.Owner, Ref: g.ID, At: s.Clock.Now(), Sequence: 2 * int64(r.Attempt)})
	})
	if err != nil && !errors.Is(err, jobs.ErrFenced) {
		s.Log.WarnContext(ctx, "could not tell that a generation has started", "job", r.ID, "attempt", r.Attempt, "error", err)
		return nil
	}
	return err
}
