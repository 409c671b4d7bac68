package subject

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
)

// Records are the tables whose rows can be evidence: what a person made, said,
// agreed to and was told, and what the ledger tells of it. Sessions, mailed links,
// passkeys, challenges, recovery codes, keys, throttles and sign-ups are none:
// they are credentials and counters, which must end when their time is over or
// their owner says so, and prove nothing that these do not.
func Records() []string {
	return []string{"consents", "generations", "images", "ledger_details", "mails", "objections", "users"}
}

// ObjectionRecord is what an objection, which has no id of its own, is held by.
func ObjectionRecord(subject string, purpose Purpose) string { return subject + ":" + string(purpose) }

// Hold keeps one record from every deletion and change until it is released;
// several may keep the same one. reasonRef names the case and nothing else. It
// returns the hold's id, and InvalidRequest for a table that is not one of
// Records.
func Hold(ctx context.Context, tx *db.Tx, subject, table, record, reasonRef string, now time.Time) (string, error) {
	if !slices.Contains(Records(), table) {
		return "", problem.Invalid(problem.Field{Location: "table", Message: "must be one whose rows can be evidence: " + strings.Join(Records(), ", ")})
	}
	id := db.NewID("hold", now)
	_, err := tx.Exec(ctx, `INSERT INTO holds (id, subject, table_name, row_id, reason_ref, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
		id, subject, table, record, reasonRef, now.UnixMilli())
	if err != nil {
		return "", fmt.Errorf("place a hold: %w", err)
	}
	return id, nil
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

// AskHeld is Held for a deletion or change that its caller is told of: Conflict
// when a hold keeps the record.
func AskHeld(ctx context.Context, q db.Querier, table, record string) error {
	held, err := Held(ctx, q, table, record)
	if err == nil && held {
		err = problem.New(problem.Conflict, "A legal hold keeps this.")
	}
	return err
}

// Free returns those of a table's records that no hold keeps, in their order. Ask
// in the transaction that deletes.
func Free(ctx context.Context, q db.Querier, table string, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	args := []any{table}
	for _, id := range ids {
		args = append(args, id)
	}
	var held []string
	if err := q.Select(ctx, &held, `SELECT row_id FROM holds WHERE table_name = ? AND row_id IN (`+db.Marks(len(ids))+`) AND released_at IS NULL`, args...); err != nil {
		return nil, fmt.Errorf("look for holds: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(held, id) }), nil
}
