package subject

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
)

// records are the tables whose rows can be evidence, with how their rows tell.
var records = map[string]struct{ key, owner, removed string }{
	"consents":       {"id", "subject", "0"},
	"generations":    {"id", "owner", "removed_at"},
	"images":         {"id", "owner", "removed_at"},
	"ledger_details": {"entry_id", "subject", "0"},
	"mails":          {"id", "subject", "0"},
	"objections":     {"subject, purpose", "subject", "0"},
	"users":          {"id", "id", "0"},
}

// ReviewWithin is how long a hold stands at most before somebody looks again
// whether it is still needed.
const ReviewWithin = 90 * 24 * time.Hour

// Records are the tables whose rows can be evidence: what a person made, said,
// agreed to and was told, and what the ledger tells of it. Sessions, mailed links,
// passkeys, challenges, recovery codes, keys, throttles and sign-ups are none:
// they are credentials and counters, which must end when their time is over or
// their owner says so, and prove nothing that these do not.
func Records() []string { return slices.Sorted(maps.Keys(records)) }

// ObjectionRecord is what an objection, which has no id of its own, is held by.
func ObjectionRecord(subject string, purpose Purpose) string { return subject + ":" + string(purpose) }

// Hold keeps one record of the person's from every deletion and change until it
// is released; several may keep the same one. reasonRef names the case and nothing
// else. It returns the hold's id; InvalidRequest for a table that is not one of
// Records, NotFound when the person has no such record, and DataRemoved when
// there is only a tombstone left: its content is gone, or about to be.
//
// A held generation keeps its images, and a held image its generation, this one
// until the account is erased: who needs the prompt too holds the generation. Of an
// account it keeps address, username, profile and preferences; password, second
// factors and role go on changing, as credentials do. Of a mail it keeps that it
// was written, and what became of it when; address and words are there to be sent
// and go with that, held or not.
func Hold(ctx context.Context, tx *db.Tx, subject, table, record, reasonRef string, now time.Time) (string, error) {
	known, ok := records[table]
	if !ok {
		return "", problem.Invalid(problem.Field{Location: "table", Message: "must be one whose rows can be evidence: " + strings.Join(Records(), ", ")})
	}
	where, args := find(table, record)
	var removed int64
	err := tx.Get(ctx, &removed, `SELECT `+known.removed+` FROM `+table+` WHERE `+where+` AND `+known.owner+` = ?`+db.ForUpdate(tx), append(args, subject)...)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", problem.New(problem.NotFound, "There is no such record.")
	case err != nil:
		return "", fmt.Errorf("place a hold: %w", err)
	case removed > 0:
		return "", problem.New(problem.DataRemoved, "The record's content has been removed: there is nothing left to hold.")
	}
	id := db.NewID("hold", now)
	_, err = tx.Exec(ctx, `INSERT INTO holds (id, subject, table_name, row_id, reason_ref, created_at, review_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		id, subject, table, record, reasonRef, now.UnixMilli(), now.Add(ReviewWithin).UnixMilli())
	if err != nil {
		return "", fmt.Errorf("place a hold: %w", err)
	}
	return id, nil
}

// find is the condition for records' rows, and its arguments.
func find(table string, ids ...string) (string, []any) {
	var args []any
	if table == "objections" {
		for _, id := range ids {
			subject, purpose, _ := strings.Cut(id, ":")
			args = append(args, subject, purpose)
		}
		return `(subject, purpose) IN (VALUES ` + db.Rows("(?, ?)", len(ids)) + `)`, args
	}
	for _, id := range ids {
		args = append(args, id)
	}
	return records[table].key + ` IN (` + db.Marks(len(ids)) + `)`, args
}

// Release ends a hold; NotFound when there is none that holds.
func Release(ctx context.Context, tx *db.Tx, hold string, now time.Time) error {
	n, err := tx.Exec(ctx, `UPDATE holds SET released_at = ? WHERE id = ? AND released_at IS NULL`, now.UnixMilli(), hold)
	if err != nil {
		return fmt.Errorf("release a hold: %w", err)
	}
	if n == 0 {
		return problem.New(problem.NotFound, "There is no such hold.")
	}
	return nil
}

// Held reports whether a hold keeps one of the table's records, so that nothing
// may delete it. It keeps the records' rows until the transaction ends, so that
// no hold is placed between the question and the deletion. Several records' rows
// are kept in the order of their ids, as by everybody.
func Held(ctx context.Context, tx *db.Tx, table string, ids ...string) (bool, error) {
	free, err := Free(ctx, tx, table, ids)
	return len(free) < len(ids), err
}

// ErrHeld is what whoever wants to delete or change a held record is told.
var ErrHeld = problem.New(problem.Conflict, "A legal hold keeps this.").OfRight()

// AskHeld is Held for a deletion or change that its caller is told of: ErrHeld when
// a hold keeps the record.
func AskHeld(ctx context.Context, tx *db.Tx, table, record string) error {
	held, err := Held(ctx, tx, table, record)
	if err == nil && held {
		err = ErrHeld
	}
	return err
}

// Free returns those of a table's records that no hold keeps, in their order. It
// keeps the rows of all as Held does.
func Free(ctx context.Context, tx *db.Tx, table string, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	where, args := find(table, ids...)
	var kept []int
	if err := tx.Select(ctx, &kept, `SELECT 1 FROM `+table+` WHERE `+where+` ORDER BY `+records[table].key+db.ForUpdate(tx), args...); err != nil {
		return nil, fmt.Errorf("keep what may be deleted: %w", err)
	}
	args = []any{table}
	for _, id := range ids {
		args = append(args, id)
	}
	var held []string
	if err := tx.Select(ctx, &held, `SELECT row_id FROM holds WHERE table_name = ? AND row_id IN (`+db.Marks(len(ids))+`) AND released_at IS NULL`, args...); err != nil {
		return nil, fmt.Errorf("look for holds: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(held, id) }), nil
}
