package jobs

import (
	"context"

	"zimage/internal/db"
)

// A Backlog is what waits in a lane.
type Backlog struct {
	Due   int `db:"due"`   // could run now
	Later int `db:"later"` // not before its time: for the most part it has failed, and is tried again
}

// BacklogOf counts the jobs of a lane that wait, for those who have no queue.
func BacklogOf(ctx context.Context, q db.Querier, lane string) (b Backlog, err error) {
	err = q.Get(ctx, &b, `SELECT (SELECT count(*) FROM jobs WHERE lane = ? AND state = 'queued') AS due,
		(SELECT count(*) FROM jobs WHERE lane = ? AND state = 'waiting') AS later`, lane, lane)
	return b, err
}
