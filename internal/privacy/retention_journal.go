package privacy

import (
	"context"
	"fmt"
	"time"

	"zimage/internal/db"
)

// The journal's kinds of content that its owner deleted, by table. What has expired
// needs no entry: its end stands in its row, wherever that is restored to.
var journalled = []struct{ kind, table string }{
	{"generation", "generations"},
	{"image", "images"},
}

// Journal keeps beside the keys that people deleted rows of a table, so that these
// stay deleted when the main database is restored from before. It may be repeated, which
// only reads.
func (s *Service) Journal(ctx context.Context, table string, ids []string) error {
	for _, j := range journalled {
		if j.table == table && len(ids) > 0 {
			return s.note(ctx, j.kind, ids)
		}
	}
	return nil
}

// note writes the journal's lines of a kind that it does not have.
func (s *Service) note(ctx context.Context, kind string, ids []string) error {
	named := []any{kind}
	for _, id := range ids {
		named = append(named, id)
	}
	var there []string
	err := s.Keys.Select(ctx, &there, `SELECT id FROM erasure_journal WHERE kind = ? AND id IN (`+db.Marks(len(ids))+`)`, named...)
	known := map[string]bool{}
	for _, id := range there {
		known[id] = true
	}
	var args []any
	for _, id := range ids {
		if !known[id] {
			args = append(args, kind, id, s.Clock.Later().UnixMilli())
		}
	}
	if err == nil && len(args) > 0 {
		_, err = s.Keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, erasure, at) VALUES `+db.Rows("(?, ?, '', ?)", len(args)/3)+` ON CONFLICT (kind, id) DO NOTHING`, args...)
	}
	if err != nil {
		return fmt.Errorf("write the journal of deletions: %w", err)
	}
	return nil
}

// back is the condition that rows of the table have content that nothing keeps, with
// the ids of a page of the journal.
func (s *Service) back(table string, page []entry) (condition string, args []any) {
	t := s.Map.Table(StoreMain, table)
	for _, e := range page {
		args = append(args, e.ID)
	}
	return "removed_at = 0 AND id IN (" + db.Marks(len(page)) + ") AND NOT " + anyHeld(t, Keep{Then: Null}), args
}

// deletionsBack counts what was deleted and is there. What a hold of the restored
// database keeps is not counted: whoever released it must do so again.
func (s *Service) deletionsBack(ctx context.Context) (n int, err error) {
	for _, j := range journalled {
		err := s.journal(ctx, j.kind, func(page []entry) error {
			var back int
			condition, args := s.back(j.table, page)
			err := s.DB.Get(ctx, &back, "SELECT count(*) FROM "+j.table+" WHERE "+condition, args...)
			n += back
			return err
		})
		if err != nil {
			return n, fmt.Errorf("look for deletions: %w", err)
		}
	}
	return n, nil
}

// deleteAgain deletes what the journal says was deleted.
func (s *Service) deleteAgain(ctx context.Context) (n int, err error) {
	for _, j := range journalled {
		remove := s.Removes[j.table]
		if remove == nil {
			continue
		}
		err := s.journal(ctx, j.kind, func(page []entry) error {
			var ids []string
			condition, args := s.back(j.table, page)
			if err := s.DB.Select(ctx, &ids, "SELECT id FROM "+j.table+" WHERE "+condition+" ORDER BY id", args...); err != nil || len(ids) == 0 {
				return err
			}
			var removed int
			err := s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
				removed, err = remove(ctx, tx, ids, "user")
				return err
			})
			if err == nil {
				n += removed
			}
			return err
		})
		if err != nil {
			return n, fmt.Errorf("delete again: %w", err)
		}
	}
	return n, nil
}

// forgetDeletions removes lines of deletions when no backup from before lives any
// more.
func (s *Service) forgetDeletions(ctx context.Context) error {
	before := s.journalEnd().UnixMilli()
	for {
		var old []entry
		err := s.Keys.Select(ctx, &old, `SELECT id, erasure, secret, at FROM erasure_journal WHERE kind <> ? AND at < ? ORDER BY at LIMIT ?`,
			journalAccount, before, eraseBatch)
		if err != nil || len(old) == 0 {
			return err
		}
		args := []any{journalAccount}
		for _, e := range old {
			args = append(args, e.ID)
		}
		// An id of one kind is never that of another.
		if _, err := s.Keys.Exec(ctx, `DELETE FROM erasure_journal WHERE kind <> ? AND id IN (`+db.Marks(len(old))+`)`, args...); err != nil {
			return fmt.Errorf("forget the old journal: %w", err)
		}
		if len(old) < eraseBatch {
			return nil
		}
	}
}

// measureSweeps tells when each plan was last gone through, and what the comparison
// found.
func (s *Service) measureSweeps(ctx context.Context) error {
	oldest, err := s.oldestSweep(ctx)
	if err != nil {
		return err
	}
	s.Metrics.sweepsOldest.Set(oldest.Seconds())
	c, err := s.lastComparison(ctx)
	if err == nil && c != nil {
		s.Metrics.objectsMissing.Set(float64(c.Missing))
		s.Metrics.objectsUnknown.Set(float64(c.Unknown))
		s.Metrics.objectsRefused.Set(float64(c.Refused))
	}
	return err
}

// oldestSweep is the time since the last good sweep of the table that waits longest.
func (s *Service) oldestSweep(ctx context.Context) (oldest time.Duration, err error) {
	var all []struct {
		Plan    string `db:"plan"`
		EndedAt int64  `db:"ended_at"`
	}
	if err := s.DB.Select(ctx, &all, `SELECT plan, ended_at FROM sweeps`); err != nil {
		return 0, fmt.Errorf("look when tables were swept: %w", err)
	}
	for _, one := range all {
		if t := s.Map.Table(StoreMain, one.Plan); t != nil && len(t.purges()) > 0 {
			oldest = max(oldest, millis(s.Clock.Millis()-one.EndedAt))
		}
	}
	return oldest, nil
}
