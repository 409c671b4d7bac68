package jobs

import (
	"context"
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

// Hasten has a job that waits for its time wait no longer, in the caller's
// transaction. One that has ended or runs is left as it is.
func (q *Queue) Hasten(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `UPDATE jobs SET run_after = ? WHERE id = ? AND state = 'waiting'`, q.clock.Millis(), id)
	return err
}
