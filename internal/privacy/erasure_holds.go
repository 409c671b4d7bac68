package privacy

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"

	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/vault"
)

// parts are the records that a hold on another one keeps with it.
var parts = []struct{ table, column, of string }{
	{"images", "generation_id", "generations"},
}

// exception is a row of erasure_exceptions.
type exception struct {
	ID          string `db:"id"`
	ErasureID   string `db:"erasure_id"`
	Subject     string `db:"subject"`
	Table       string `db:"table_name"`
	Row         string `db:"row_id"`
	ParentTable string `db:"parent_table"`
	ParentRow   string `db:"parent_row"`
	KeptAt      int64  `db:"kept_at"`
	ResealedAt  int64  `db:"resealed_at"`
	EndedAt     int64  `db:"ended_at"`
}

const selectException = `SELECT x.id, x.erasure_id, x.subject, x.table_name, x.row_id, x.parent_table, x.parent_row, x.kept_at, x.resealed_at, x.ended_at
	FROM erasure_exceptions x `

// record is one that a hold keeps.
type record struct{ table, row, parentTable, parentRow string }

// held are a person's records under a hold, with their parts.
func (s *Service) held(ctx context.Context, owner string) ([]record, error) {
	var named []struct {
		Table string `db:"table_name"`
		Row   string `db:"row_id"`
	}
	err := s.DB.Select(ctx, &named, `SELECT DISTINCT table_name, row_id FROM holds WHERE subject = ? AND released_at IS NULL ORDER BY table_name, row_id`, owner)
	if err != nil {
		return nil, err
	}
	var all []record
	for _, n := range named {
		all = append(all, record{table: n.Table, row: n.Row})
		for _, p := range parts {
			if p.of != n.Table {
				continue
			}
			var rows []string
			if err := s.DB.Select(ctx, &rows, "SELECT id FROM "+p.table+" WHERE "+p.column+" = ? ORDER BY id", n.Row); err != nil {
				return nil, err
			}
			for _, row := range rows {
				all = append(all, record{p.table, row, n.Table, n.Row})
			}
		}
	}
	return all, nil
}

// keepHeld seals each held record anew with a key of its own, so that it outlives
// the person's, and moves its objects. It saves nothing else of the account. What was
// kept before comes first: a main database restored from between may not know it.
func (s *Service) keepHeld(ctx context.Context, e *erasure) error {
	if err := s.restoreRecords(ctx, e.Subject, e.ID); err != nil {
		return err
	}
	all, err := s.held(ctx, e.Subject)
	if err != nil {
		return err
	}
	for _, r := range all {
		if err := s.keep(ctx, e, r); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) keep(ctx context.Context, e *erasure, r record) error {
	t := s.Map.Table(StoreMain, r.table)
	if t == nil || t.Nobody != "" {
		return stuck{code: "hold_unknown"}
	}
	var there int
	err := s.DB.Get(ctx, &there, "SELECT count(*) FROM "+t.Name+" WHERE "+t.record()+" = ? AND "+s.Map.Of(t), r.row, e.Subject)
	if err != nil || there == 0 {
		return err
	}
	now := s.Clock.Now()
	_, err = s.DB.Exec(ctx, `INSERT INTO erasure_exceptions (id, erasure_id, subject, table_name, row_id, parent_table, parent_row, kept_at, resealed_at, ended_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0) ON CONFLICT (erasure_id, table_name, row_id) DO NOTHING`,
		db.NewID("exc", now), e.ID, e.Subject, r.table, r.row, r.parentTable, r.parentRow, now.UnixMilli())
	if err != nil {
		return err
	}
	var x exception
	err = s.DB.Get(ctx, &x, selectException+`WHERE x.erasure_id = ? AND x.table_name = ? AND x.row_id = ?`, e.ID, r.table, r.row)
	if err != nil || x.ResealedAt > 0 || x.EndedAt > 0 {
		return err
	}
	if destroyed, err := s.Vault.Destroyed(ctx, e.Subject); err != nil {
		return stuck{"keys_failed", err}
	} else if !destroyed.IsZero() {
		return nil // the hold came too late for what was sealed
	}
	if err := s.Vault.Create(ctx, x.ID); err != nil && !errors.Is(err, vault.ErrExists) {
		return stuck{"keys_failed", err}
	}
	if err := s.moveObjects(ctx, t, x); err != nil {
		return err
	}
	return s.reseal(ctx, t, x)
}

// reseal gives a row's sealed columns another key, and takes its hashes away: they
// would let the person be found, and keep others from having the same. What comes of it
// is kept beside its key too.
func (s *Service) reseal(ctx context.Context, t *Table, x exception) error {
	r, err := s.row(ctx, t, x)
	if err != nil || r.Columns == nil {
		return err
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		var resealed int64
		if err := tx.Get(ctx, &resealed, `SELECT resealed_at FROM erasure_exceptions WHERE id = ?`+db.ForUpdate(tx), x.ID); err != nil || resealed > 0 {
			return err
		}
		for _, c := range t.Columns {
			where := " WHERE " + t.record() + " = ?"
			switch {
			case c.Sealed != "":
				var old []byte
				if err := tx.Get(ctx, &old, "SELECT "+c.Name+" FROM "+t.Name+where+db.ForUpdate(tx), x.Row); err != nil {
					return err
				}
				if old == nil {
					continue
				}
				plain, err := s.Vault.Unseal(ctx, x.Subject, old, t.Bound(c.Name, x.Row))
				if err != nil {
					return stuck{"reseal_failed", err}
				}
				sealed, err := s.Vault.Seal(ctx, x.ID, plain, t.Bound(c.Name, x.Row))
				if err != nil {
					return stuck{"reseal_failed", err}
				}
				if _, err := tx.Exec(ctx, "UPDATE "+t.Name+" SET "+c.Name+" = ?"+where, sealed, x.Row); err != nil {
					return err
				}
				r.Columns[c.Name] = sealed
			case c.Hashed != "" && c.Type == "text":
				if _, err := tx.Exec(ctx, "UPDATE "+t.Name+" SET "+c.Name+" = ?"+where+" AND "+c.Name+" IS NOT NULL", x.ID, x.Row); err != nil {
					return err
				}
				if r.Columns[c.Name] != nil {
					r.Columns[c.Name] = x.ID
				}
			}
		}
		if r.Holds, err = s.holdsOf(ctx, tx, x); err != nil {
			return err
		}
		if err := s.keepRecord(ctx, x, r); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE erasure_exceptions SET resealed_at = ? WHERE id = ?`, s.Clock.Millis(), x.ID)
		return err
	})
}

// moveObjects copies the objects of a held row to where no erasure looks, sealed
// with the exception's key. The originals go with all others.
func (s *Service) moveObjects(ctx context.Context, t *Table, x exception) error {
	for i := range s.Map.Objects {
		o := &s.Map.Objects[i]
		if o.Table != t.Name || o.Subject == "" || strings.HasPrefix(o.Key.String(), heldPrefix) {
			continue
		}
		from, err := s.keyOf(ctx, o, t, x)
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(from, x.Subject+"/")
		copies, err := s.copiesOf(ctx, x, rest)
		if err != nil {
			return err
		}
		if err := s.move(ctx, append([]string{from}, copies...), heldPrefix+x.Subject+"/"+x.ID+"/"+rest, o.Bound(from), x); err != nil {
			return err
		}
	}
	return nil
}

// keyOf makes the key of a row's object: each part of it is a column of the row, or
// the id of one.
func (s *Service) keyOf(ctx context.Context, o *StoredObject, t *Table, x exception) (string, error) {
	key := o.Key.String()
	for _, part := range placeholder.FindAllStringSubmatch(key, -1) {
		value := x.Subject
		if part[1] != o.Subject {
			column := t.Column(part[1])
			if column == nil {
				column = t.Column(part[1] + "_id")
			}
			if column == nil {
				return "", stuck{code: "map_unsupported"}
			}
			err := s.DB.Get(ctx, &value, "SELECT CAST("+column.Name+" AS text) FROM "+t.Name+" WHERE "+t.record()+" = ?", x.Row)
			if err != nil {
				return "", err
			}
		}
		key = strings.Replace(key, part[0], value, 1)
	}
	return key, nil
}

// move copies the first of some objects that is there: the bucket may have deleted the
// original of what is held.
func (s *Service) move(ctx context.Context, from []string, to string, data []byte, x exception) error {
	sealed, _, err := s.Objects.Get(ctx, from[0])
	for _, copied := range from[1:] {
		if errors.Is(err, objects.ErrNotExist) {
			sealed, _, err = s.Objects.Get(ctx, copied)
		}
	}
	if errors.Is(err, objects.ErrNotExist) {
		return nil // it had been removed before
	}
	if err != nil {
		return err
	}
	defer func() { _ = sealed.Close() }()
	plain, err := s.Vault.UnsealReader(ctx, x.Subject, sealed, data)
	if err != nil {
		return stuck{"reseal_failed", err}
	}
	var again bytes.Buffer // a picture: some megabytes at most
	w, err := s.Vault.SealWriter(ctx, x.ID, &again, data)
	if err != nil {
		return stuck{"keys_failed", err}
	}
	if _, err := io.Copy(w, plain); err != nil {
		return stuck{"reseal_failed", err}
	}
	if err := w.Close(); err != nil {
		return stuck{"reseal_failed", err}
	}
	err = s.Objects.Put(ctx, to, bytes.NewReader(again.Bytes()), int64(again.Len()))
	if errors.Is(err, objects.ErrExists) { // of a run that was broken off here, whole and with the same key
		return nil
	}
	return err
}

// Owned says which of the vault's subjects are exceptions that are still kept, as the
// main database or the key store has it, or requests from an address: their keys are
// needed though they are nobody's account.
func (s *Service) Owned(ctx context.Context, ids []string) (map[string]bool, error) {
	owned := map[string]bool{}
	if len(ids) == 0 {
		return owned, nil
	}
	args := db.Args(ids)
	var found []string
	in := ` AND id IN (` + db.Marks(len(args)) + `)`
	err := s.DB.Select(ctx, &found, `SELECT id FROM erasure_exceptions WHERE ended_at = 0`+in+`
		UNION SELECT id FROM requests WHERE subject = id AND address IS NOT NULL`+in, append(args, args...)...)
	if err != nil {
		return nil, fmt.Errorf("look for exceptions and requests: %w", err)
	}
	var kept []string
	if err := s.Keys.Select(ctx, &kept, `SELECT id FROM held_records WHERE id IN (`+db.Marks(len(args))+`)`, args...); err != nil {
		return nil, fmt.Errorf("look for what holds keep: %w", err)
	}
	for _, id := range append(found, kept...) {
		owned[id] = true
	}
	return owned, nil
}

// free is the condition that no hold keeps an exception's record any more.
const free = `x.ended_at = 0 AND (x.freed_at > 0 OR NOT EXISTS (SELECT 1 FROM holds h WHERE h.released_at IS NULL
	AND (h.table_name = x.table_name AND h.row_id = x.row_id OR h.table_name = x.parent_table AND h.row_id = x.parent_row)))`

// afterwards resumes the deletion of what was kept when a complete erasure's holds
// are released, and issues its receipt anew.
func (s *Service) afterwards(ctx context.Context, e *erasure) error {
	var freed []exception
	err := s.DB.Select(ctx, &freed, selectException+`WHERE x.erasure_id = ? AND `+free+` ORDER BY x.id`, e.ID)
	if err != nil {
		return err
	}
	for _, x := range freed {
		if err := s.release(ctx, x); err != nil {
			return err
		}
	}
	var newest int64
	if err := s.DB.Get(ctx, &newest, `SELECT coalesce(max(ended_at), 0) FROM erasure_exceptions WHERE erasure_id = ?`, e.ID); err != nil {
		return err
	}
	if newest < e.ReceiptAt || newest == 0 {
		return nil
	}
	// What it named may go now too.
	if err := s.verify(ctx, e); err != nil {
		return err
	}
	return s.issue(ctx, e.ID)
}

// setFree says for good that nothing holds an exception's record any more. A hold that is
// being placed on it waits here, or is waited for, and one that a restored database lacks is
// there again.
func (s *Service) setFree(ctx context.Context, x exception) (freed bool, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		var ids []string
		if err := tx.Select(ctx, &ids, `SELECT id FROM erasure_exceptions WHERE erasure_id = ? AND ended_at = 0
			AND (id = ? OR table_name = ? AND row_id = ?) ORDER BY id`+db.ForUpdate(tx), x.ErasureID, x.ID, x.ParentTable, x.ParentRow); err != nil {
			return err
		}
		if err := s.restoreHolds(ctx, tx, x); err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `UPDATE erasure_exceptions SET freed_at = CASE WHEN freed_at > 0 THEN freed_at ELSE ? END WHERE id = ?
			AND id IN (SELECT x.id FROM erasure_exceptions x WHERE `+free+`)`, s.Clock.Millis(), x.ID)
		freed = n > 0
		return err
	})
	return freed, err
}

// release ends an exception: its key, its objects, its row.
func (s *Service) release(ctx context.Context, x exception) error {
	if freed, err := s.setFree(ctx, x); err != nil || !freed {
		return err
	}
	if err := s.Vault.Destroy(ctx, x.ID); err != nil {
		return stuck{"keys_failed", err}
	}
	if err := s.forgetRecord(ctx, x.ID); err != nil {
		return err
	}
	if err := s.deletePrefix(ctx, x.ErasureID, heldPrefix+x.Subject+"/"+x.ID+"/", heldPrefix); err != nil {
		return err
	}
	t := s.Map.Table(StoreMain, x.Table)
	if t == nil {
		return stuck{code: "map_differs"}
	}
	condition := " WHERE " + t.record() + " = ? AND " + s.Map.Of(t)
	return s.change(ctx, x.ErasureID, func(tx *db.Tx, w *work) error {
		n, err := tx.Exec(ctx, `UPDATE erasure_exceptions SET ended_at = ? WHERE id = ? AND ended_at = 0`, s.Clock.Millis(), x.ID)
		if err != nil || n == 0 {
			return err
		}
		n, err = tx.Exec(ctx, "DELETE FROM "+t.Name+condition, x.Row, x.Subject)
		if n > 0 {
			w.Rows[StoreMain+"/"+t.Name] += n
		}
		return err
	})
}

// dropHolds forgets released holds of an erased person, whose records are gone.
func (s *Service) dropHolds(ctx context.Context, owner string) error {
	_, err := s.DB.Exec(ctx, `DELETE FROM holds WHERE subject = ? AND released_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM erasure_exceptions x
		WHERE x.ended_at = 0 AND (holds.table_name = x.table_name AND holds.row_id = x.row_id OR holds.table_name = x.parent_table AND holds.row_id = x.parent_row))`, owner)
	return err
}

// exceptions of an erasure, also those that have ended.
func (s *Service) exceptions(ctx context.Context, q db.Querier, id string) ([]exception, error) {
	var all []exception
	err := q.Select(ctx, &all, selectException+`WHERE x.erasure_id = ? ORDER BY x.id`, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return all, err
}
