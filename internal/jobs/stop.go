package jobs

import (
	"context"
	"database/sql"
	"errors"

	"zimage/internal/db"
)

// Stop cancels everything of a party's that has not ended, in bounded batches,
// and returns how many jobs still run. Their workers answer within seconds; one
// whose lease has passed is ended here, and can write nothing any more.
func (q *Queue) Stop(ctx context.Context, party, reason string) (running int, err error) {
	for after := ""; ; {
		var page []Job
		err := q.db.Select(ctx, &page, `SELECT `+columns+` FROM jobs WHERE party = ? AND state IN ('queued', 'waiting', 'running') AND id > ?
			ORDER BY id LIMIT ?`, party, after, batch)
		if err != nil || len(page) == 0 {
			return running, err
		}
		after = page[len(page)-1].ID
		for _, j := range page {
			var state State
			err := q.db.Tx(ctx, func(tx *db.Tx) (err error) {
				state, err = q.Cancel(ctx, tx, j.ID, reason)
				return err
			})
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err == nil && state == Running {
				running++
				err = q.endLost(ctx, j.ID, ` state = 'running' AND lease_until < ? `+db.ForUpdate(q.db), q.clock.Millis())
			}
			if err != nil && !errors.Is(err, ErrFenced) {
				return running, err
			}
		}
	}
}
