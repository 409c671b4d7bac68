// Package subject is the person as everybody else sees one: an id, a state, what
// they agreed and objected to, and the records of theirs that are on hold. It is
// the one gate: May answers every use of a person's data beyond storing it, Held
// every deletion.
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

// A State says how far a person's account lives.
type State string

// The states.
const (
	Active  State = "active"
	Closing State = "closing" // access has ended and the erasure is on its way; no way back
	Erased  State = "erased"  // final
)

// A Subject is what is known of a person here. A zero time means: not.
type Subject struct {
	ID           string
	State        State
	CreatedAt    time.Time
	ChangedAt    time.Time // of the state
	RestrictedAt time.Time // stored, not processed, as the person asked
	SuspendedAt  time.Time // the operator refuses new work; what is there stays readable
}

type row struct {
	ID           string        `db:"id"`
	State        State         `db:"state"`
	CreatedAt    int64         `db:"created_at"`
	ChangedAt    int64         `db:"changed_at"`
	RestrictedAt sql.NullInt64 `db:"restricted_at"`
	SuspendedAt  sql.NullInt64 `db:"suspended_at"`
}

// New adds a person, active, in the transaction that makes the account.
func New(ctx context.Context, tx *db.Tx, id string, now time.Time) error {
	at := now.UnixMilli()
	if _, err := tx.Exec(ctx, `INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, ?, ?, ?)`,
		id, Active, at, at); err != nil {
		return fmt.Errorf("add a subject: %w", err)
	}
	return nil
}

// Find reads one person; Unauthorized when there is none.
func Find(ctx context.Context, q db.Querier, id string) (Subject, error) {
	r, err := read(ctx, q, id, "")
	return r.subject(), err
}

func (r row) subject() Subject {
	return Subject{
		ID: r.ID, State: r.State, CreatedAt: moment(r.CreatedAt), ChangedAt: moment(r.ChangedAt),
		RestrictedAt: moment(r.RestrictedAt.Int64), SuspendedAt: moment(r.SuspendedAt.Int64),
	}
}

// Lock is Find, and keeps the person's row until the transaction ends: the state
// stays what it is.
func Lock(ctx context.Context, tx *db.Tx, id string) (Subject, error) {
	r, err := read(ctx, tx, id, db.ForUpdate(tx))
	return r.subject(), err
}

func read(ctx context.Context, q db.Querier, id, lock string) (row, error) {
	var r row
	err := q.Get(ctx, &r, `SELECT id, state, created_at, changed_at, restricted_at, suspended_at FROM subjects WHERE id = ?`+lock, id)
	if errors.Is(err, sql.ErrNoRows) {
		return row{}, NoAccount()
	}
	if err != nil {
		return row{}, fmt.Errorf("read a subject's state: %w", err)
	}
	return r, nil
}

func moment(millis int64) time.Time {
	if millis == 0 {
		return time.Time{}
	}
	return time.UnixMilli(millis).UTC()
}

// NoAccount is what everybody says of an account that is not there, or not any more.
func NoAccount() error {
	return problem.Wrap(BecauseClosed, problem.Unauthorized, "There is no such account.")
}

// Restrict stops all processing of the person's data beyond storing it and what
// the person does with the account itself. Restricting twice changes nothing.
func Restrict(ctx context.Context, tx *db.Tx, id string, now time.Time) error {
	return set(ctx, tx, id, `restricted_at = coalesce(restricted_at, ?)`, now.UnixMilli())
}

// Unrestrict lifts a restriction, at the wish of the person who asked for it.
// Whoever else is to lift one must tell the person before.
func Unrestrict(ctx context.Context, tx *db.Tx, id string) error {
	return set(ctx, tx, id, `restricted_at = NULL`)
}

// Suspend refuses new work of the person's, by the operator's decision.
func Suspend(ctx context.Context, tx *db.Tx, id string, now time.Time) error {
	return set(ctx, tx, id, `suspended_at = coalesce(suspended_at, ?)`, now.UnixMilli())
}

// Unsuspend lets a suspended account work again.
func Unsuspend(ctx context.Context, tx *db.Tx, id string) error {
	return set(ctx, tx, id, `suspended_at = NULL`)
}

// Close ends all access, for good. It reports false when that was so already.
func Close(ctx context.Context, tx *db.Tx, id string, now time.Time) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE subjects SET state = ?, changed_at = ? WHERE id = ? AND state = ?`, Closing, now.UnixMilli(), id, Active)
	if err != nil {
		return false, fmt.Errorf("close a subject: %w", err)
	}
	if n == 0 {
		_, err = read(ctx, tx, id, "")
	}
	return n == 1, err
}

// Erase says for good that nothing of the person is left but the id. An account
// that is not closing is refused. Erasing twice changes nothing.
func Erase(ctx context.Context, tx *db.Tx, id string, now time.Time) error {
	n, err := tx.Exec(ctx, `UPDATE subjects SET state = ?, changed_at = ? WHERE id = ? AND state = ?`, Erased, now.UnixMilli(), id, Closing)
	if err != nil {
		return fmt.Errorf("erase a subject: %w", err)
	}
	if n == 1 {
		return nil
	}
	if r, err := read(ctx, tx, id, ""); err != nil || r.State == Erased {
		return err
	}
	return errors.New("erase a subject: the account is not closing")
}

// set changes a living account's row; Unauthorized when there is none.
func set(ctx context.Context, tx *db.Tx, id, change string, args ...any) error {
	n, err := tx.Exec(ctx, `UPDATE subjects SET `+change+` WHERE id = ? AND state = ?`, append(args, id, Active)...)
	if err != nil {
		return fmt.Errorf("change a subject: %w", err)
	}
	if n == 0 {
		return NoAccount()
	}
	return nil
}
