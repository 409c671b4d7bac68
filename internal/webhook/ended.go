package webhook

import (
	"context"
	"database/sql"
	"fmt"

	"zimage/internal/db"
	"zimage/internal/subject"
)

// EndedWebhook is what the journal calls what people end of their endpoints: the id of one
// that was deleted, or "id@changed" of how it was before a change.
const EndedWebhook = "webhook"

func (s *Service) tellEnded(ctx context.Context, tx *db.Tx, owner, id string) {
	if s.Ended != nil {
		s.Ended(ctx, tx, owner, EndedWebhook, id)
	}
}

func before(r row) string { return db.Numbered(r.ID, r.ChangedAt) }

// EndpointsBack are those lines of whose endpoints an older state is there.
func (s *Service) EndpointsBack(ctx context.Context, q db.Querier, lines []string) (back []string, err error) {
	ids := make([]any, len(lines))
	for i, line := range lines {
		ids[i], _, _ = db.ParseNumbered(line)
	}
	var there []struct {
		ID      string        `db:"id"`
		Changed int64         `db:"changed_at"`
		State   subject.State `db:"state"`
	}
	err = q.Select(ctx, &there, `SELECT w.id, w.changed_at, s.state FROM webhook_endpoints w JOIN subjects s ON s.id = w.owner WHERE w.id IN (`+db.Marks(len(ids))+`)`, ids...)
	for _, line := range lines {
		id, last, changed := db.ParseNumbered(line)
		for _, e := range there {
			// Of an account that closes it goes with the account.
			if e.ID == id && (!changed || e.Changed < last && e.State == subject.Active) {
				back = append(back, line)
			}
		}
	}
	return back, err
}

// EndEndpointsAgain deletes those that were deleted. What else its owner made of one, the
// restored row does not have: it is disabled, without a secret that anybody knew, and its owner is told.
func (s *Service) EndEndpointsAgain(ctx context.Context, tx *db.Tx, lines []string) error {
	for _, line := range lines {
		id, last, changed := db.ParseNumbered(line)
		err := s.endAgain(ctx, tx, id, last, !changed)
		if err != nil {
			return fmt.Errorf("end a webhook again: %w", err)
		}
	}
	return nil
}

func (s *Service) endAgain(ctx context.Context, tx *db.Tx, id string, changed int64, deleted bool) error {
	var all []row
	if err := tx.Select(ctx, &all, selectRow+`WHERE id = ?`+db.ForUpdate(tx), id); err != nil || len(all) == 0 {
		return err
	}
	r := all[0]
	if deleted {
		return s.remove(ctx, tx, r.Owner, id)
	}
	if r.ChangedAt >= changed {
		return nil
	}
	p, err := subject.Find(ctx, tx, r.Owner)
	if err != nil || p.State != subject.Active {
		return err // it goes with the account
	}
	if _, err := s.newSecret(ctx, &r); err != nil {
		return err
	}
	told := r.Once == 1 || r.DisabledWhy == Restored
	if r.Once == 0 {
		r.DisabledAt, r.DisabledWhy = sql.NullInt64{Int64: s.Clock.Millis(), Valid: true}, Restored
	}
	_, err = tx.Exec(ctx, `UPDATE webhook_endpoints SET secret = ?, old_secret = NULL, old_until = NULL, changed_at = ?, disabled_at = ?, disabled_why = ? WHERE id = ?`,
		r.Secret, changed, r.DisabledAt, r.DisabledWhy, r.ID)
	if err != nil || told {
		return err
	}
	return s.tellDisabled(ctx, tx, r, Restored)
}
