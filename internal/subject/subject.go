// Package subject is the person as everybody else sees one: an id, a state, and
// the records of theirs that are on hold. It answers the questions that every
// room must ask before it uses or deletes something of a person's.
//
// It never knows who the person is: no name, no address, no key.
package subject

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
)

// A State says how far a person's data may be used.
type State string

// The states.
const (
	Active     State = "active"
	Restricted State = "restricted" // stored, not processed, as the person asked
	Suspended  State = "suspended"  // the operator refuses new work; what is there stays readable
	Closing    State = "closing"    // access has ended and the erasure is on its way
	Erased     State = "erased"     // final
)

// A Purpose is what somebody's data is to be used for.
type Purpose string

// The purposes.
const (
	Generate Purpose = "generate" // make images, also those already asked for
	Read     Purpose = "read"     // show a person what is theirs, and let them delete it
)

// New adds a person, active, in the transaction that makes the account.
func New(ctx context.Context, tx *db.Tx, id string, now time.Time) error {
	at := now.UnixMilli()
	if _, err := tx.Exec(ctx, `INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, ?, ?, ?)`,
		id, Active, at, at); err != nil {
		return fmt.Errorf("add a subject: %w", err)
	}
	return nil
}

// May returns nil when the person's data may be used for the purpose now, and
// otherwise a *problem.Error that says why not: Forbidden while the account
// exists, Unauthorized when there is none (any more). An unknown state or
// purpose is refused.
func May(ctx context.Context, q db.Querier, subject string, purpose Purpose) error {
	return may(ctx, q, subject, purpose, "")
}

func may(ctx context.Context, q db.Querier, subject string, purpose Purpose, lock string) error {
	var state State
	err := q.Get(ctx, &state, `SELECT state FROM subjects WHERE id = ?`+lock, subject)
	if errors.Is(err, sql.ErrNoRows) {
		return problem.New(problem.Unauthorized, "There is no such account.")
	}
	if err != nil {
		return fmt.Errorf("read a subject's state: %w", err)
	}
	switch state {
	case Closing:
		return problem.New(problem.Unauthorized, "This account is closed and is being erased.")
	case Erased:
		return problem.New(problem.Unauthorized, "There is no such account.")
	}
	switch purpose {
	case Read:
		if state == Active || state == Restricted || state == Suspended {
			return nil
		}
	case Generate:
		switch state {
		case Active:
			return nil
		case Restricted:
			return problem.New(problem.Forbidden, "Processing of this account's data is restricted at its owner's request, so no images are made. Lifting the restriction allows it again.")
		case Suspended:
			return problem.New(problem.Forbidden, "This account is suspended, so no images are made. What is there can still be read and deleted.")
		}
	}
	return problem.New(problem.Forbidden, "This use of the account's data is not allowed.")
}

// Enter is May for a transaction that begins something new of the person's. It
// keeps the person's row until the transaction ends: neither a change of state
// nor another Enter of the same person passes beside it.
func Enter(ctx context.Context, tx *db.Tx, subject string, purpose Purpose) error {
	return may(ctx, tx, subject, purpose, db.ForUpdate(tx))
}

// Held reports whether a hold keeps one of the table's records, so that nothing
// may delete it. Ask in the transaction that deletes.
func Held(ctx context.Context, q db.Querier, table string, ids ...string) (bool, error) {
	if len(ids) == 0 {
		return false, nil
	}
	args := []any{table}
	for _, id := range ids {
		args = append(args, id)
	}
	var n int
	if err := q.Get(ctx, &n, `SELECT count(*) FROM holds WHERE table_name = ? AND row_id IN (`+db.Marks(len(ids))+`) AND released_at IS NULL`, args...); err != nil {
		return false, fmt.Errorf("look for holds: %w", err)
	}
	return n > 0, nil
}
