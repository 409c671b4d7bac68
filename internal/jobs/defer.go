package jobs

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"zimage/internal/db"
)

// Defer has all that a party has queued wait until a time, in the caller's
// transaction: what it needs is away, and to try each would cost as much as to do it.
func (q *Queue) Defer(ctx context.Context, tx *db.Tx, party string, until time.Time) error {
	// In the order in which everybody locks; what is claimed at this moment is passed
	// over.
	_, err := tx.Exec(ctx, `UPDATE jobs SET state = 'waiting', run_after = ? WHERE id IN (SELECT id FROM jobs
		WHERE party = ? AND state = 'queued' ORDER BY id`+db.SkipLocked(tx)+`)`, until.UnixMilli(), party)
	return err
}

// Hasten has a job that waits for its time wait until another and no longer, in the
// caller's transaction. One that is due or runs is left as it is. It reports false when
// the job has ended, or is gone: nobody comes to it any more.
func (q *Queue) Hasten(ctx context.Context, tx *db.Tx, id string, until time.Time) (live bool, err error) {
	j := Job{State: Canceled}
	err = tx.Get(ctx, &j, `SELECT `+columns+` FROM jobs WHERE id = ?`+db.ForUpdate(tx), id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	if after := max(until.UnixMilli(), q.clock.Millis()); j.State == Waiting && j.RunAfter > after {
		_, err := tx.Exec(ctx, `UPDATE jobs SET run_after = ? WHERE id = ?`, after, id)
		return true, err
	}
	return !j.State.Terminal(), nil
}
