package jobs

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"time"

	"zimage/internal/db"
)

// Defer has what a party has queued, or due before it may be, wait until long after, in
// the caller's transaction: what it needs is away, and to try each would cost as much as to
// do it. One of them, if there is any, waits until first, to find out; Recall calls the others.
func (q *Queue) Defer(ctx context.Context, tx *db.Tx, party string, first, due, after time.Time) (waits bool, err error) {
	// In the order in which everybody locks; what is claimed at this moment is passed
	// over.
	_, err = tx.Exec(ctx, `UPDATE jobs SET state = 'waiting', run_after = ? WHERE id IN (SELECT id FROM jobs
		WHERE party = ? AND state IN ('queued', 'waiting') AND (state = 'queued' OR run_after < ?) ORDER BY id`+db.SkipLocked(tx)+`)`,
		after.UnixMilli(), party, due.UnixMilli())
	if err != nil {
		return false, err
	}
	n, err := tx.Exec(ctx, `UPDATE jobs SET run_after = ? WHERE id = (SELECT id FROM jobs
		WHERE party = ? AND state IN ('queued', 'waiting') AND run_after <= ? ORDER BY id LIMIT 1`+db.SkipLocked(tx)+`)`, first.UnixMilli(), party, after.UnixMilli())
	return n > 0, err
}

// Recall has what a party has waiting until a time wait no longer, in the caller's
// transaction: what was away is there again.
func (q *Queue) Recall(ctx context.Context, tx *db.Tx, party string, until time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE jobs SET run_after = ? WHERE id IN (SELECT id FROM jobs
		WHERE party = ? AND state IN ('queued', 'waiting') AND state = 'waiting' AND run_after <= ? ORDER BY id`+db.SkipLocked(tx)+`)`,
		q.clock.Millis(), party, until.UnixMilli())
	return err
}

// Drop ends what a party has waiting or queued, a bounded number in one statement, in
// the caller's transaction, and returns how many; once there are none, its turns are
// forgotten. It is for kinds to which an end means nothing; what runs goes on.
func (q *Queue) Drop(ctx context.Context, tx *db.Tx, party, why string) (int, error) {
	var ended []Job
	err := tx.Select(ctx, &ended, `UPDATE jobs SET state = 'canceled', error_code = ?, finished_at = ? WHERE id IN (SELECT id FROM jobs
		WHERE party = ? AND state IN ('queued', 'waiting') ORDER BY id LIMIT `+strconv.Itoa(dropped)+db.SkipLocked(tx)+`) RETURNING `+columns,
		why, q.clock.Millis(), party)
	tx.AfterCommit(func() {
		for _, j := range ended {
			q.metrics.ended(j, Canceled, q.clock.Millis())
		}
	})
	if err == nil && len(ended) == 0 {
		_, err = tx.Exec(ctx, `DELETE FROM job_turns WHERE party = ?`, party)
	}
	return len(ended), err
}

// dropped bounds one Drop.
const dropped = 1000

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
