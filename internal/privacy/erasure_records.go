package privacy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/vault"
)

// heldRecord is an exception with its row and its holds, as it lies beside its key: a
// main database restored from before the erasure knows nothing of it.
type heldRecord struct {
	Table       string           `json:"table"`
	Row         string           `json:"row"`
	ParentTable string           `json:"parent_table,omitempty"`
	ParentRow   string           `json:"parent_row,omitempty"`
	KeptAt      int64            `json:"kept_at"`
	Columns     map[string]any   `json:"columns"`
	Holds       []map[string]any `json:"holds"`

	id string
}

func heldData(id string) []byte { return vault.Column("held_records", "record", id) }

// row reads the record of an exception.
func (s *Service) row(ctx context.Context, t *Table, x exception) (heldRecord, error) {
	r := heldRecord{Table: x.Table, Row: x.Row, ParentTable: x.ParentTable, ParentRow: x.ParentRow, KeptAt: x.KeptAt}
	rows, err := s.DB.Maps(ctx, "SELECT * FROM "+t.Name+" WHERE "+t.record()+" = ?", x.Row)
	if err == nil && len(rows) > 0 {
		r.Columns = readable(t, rows[0])
	}
	return r, err
}

// holdsOf are the holds on the record of an exception, released ones too.
func (s *Service) holdsOf(ctx context.Context, tx *db.Tx, x exception) ([]map[string]any, error) {
	holds, err := tx.Maps(ctx, `SELECT * FROM holds WHERE subject = ? AND (table_name = ? AND row_id = ? OR table_name = ? AND row_id = ?) ORDER BY id`,
		x.Subject, x.Table, x.Row, x.ParentTable, x.ParentRow)
	for _, hold := range holds {
		readable(s.Map.Table(StoreMain, "holds"), hold)
	}
	return holds, err
}

// keptOf are the open exceptions of a record and its parts. They stay as they are until
// the transaction ends.
func (s *Service) keptOf(ctx context.Context, tx *db.Tx, owner, table, row string) (all []exception, err error) {
	err = tx.Select(ctx, &all, selectException+`WHERE x.subject = ? AND x.ended_at = 0 AND x.freed_at = 0
		AND (x.table_name = ? AND x.row_id = ? OR x.parent_table = ? AND x.parent_row = ?) ORDER BY x.id`+db.ForUpdate(tx), owner, table, row, table, row)
	return all, err
}

// noteHolds adds to what lies beside the key of an exception the holds that the main
// database has by now. A hold that this does not know stays, as does a release: it may
// have been restored from before them.
func (s *Service) noteHolds(ctx context.Context, tx *db.Tx, x exception) error {
	r, noted, err := s.noted(ctx, x.ID)
	if err != nil || !noted {
		return err // what will be written has them
	}
	holds, err := s.holdsOf(ctx, tx, x)
	if err != nil {
		return err
	}
	before, err := json.Marshal(r)
	if err != nil {
		return err
	}
	for _, hold := range holds {
		i := slices.IndexFunc(r.Holds, func(noted map[string]any) bool { return noted["id"] == hold["id"] })
		switch {
		case i < 0:
			r.Holds = append(r.Holds, hold)
		case r.Holds[i]["released_at"] == nil:
			r.Holds[i] = hold
		}
	}
	if after, err := json.Marshal(r); err != nil || bytes.Equal(before, after) {
		return err
	}
	return s.keepRecord(ctx, x, r)
}

// notedHold is a hold that was noted beside the key of an exception, and then perhaps not
// placed.
type notedHold struct {
	x  exception
	id string
}

// unnoteHolds takes back what was noted of holds that the main database does not have.
func (s *Service) unnoteHolds(ctx context.Context, all []notedHold) error {
	var failed []error
	for _, n := range all {
		failed = append(failed, s.DB.Tx(ctx, func(tx *db.Tx) error {
			// Nobody else notes anything meanwhile.
			if err := tx.Get(ctx, new(string), `SELECT id FROM erasure_exceptions WHERE id = ? AND ended_at = 0`+db.ForUpdate(tx), n.x.ID); isNone(err) {
				return nil
			} else if err != nil {
				return err
			}
			var placed int
			if err := tx.Get(ctx, &placed, `SELECT count(*) FROM holds WHERE id = ?`, n.id); err != nil || placed > 0 {
				return err
			}
			r, noted, err := s.noted(ctx, n.x.ID)
			if err != nil || !noted {
				return err
			}
			before := len(r.Holds)
			r.Holds = slices.DeleteFunc(r.Holds, func(hold map[string]any) bool { return hold["id"] == n.id })
			if len(r.Holds) == before {
				return nil
			}
			return s.keepRecord(ctx, n.x, r)
		}))
	}
	return errors.Join(failed...)
}

// restoreHolds gives the main database the holds on the record of an exception that are noted
// beside its key: one restored from before them would let it go.
func (s *Service) restoreHolds(ctx context.Context, tx *db.Tx, x exception) error {
	r, noted, err := s.noted(ctx, x.ID)
	if err != nil || !noted {
		return err
	}
	return s.writeHolds(ctx, tx, r)
}

// writeHolds writes those of a record that the main database lacks. As it has one, that is
// newer, but for a release.
func (s *Service) writeHolds(ctx context.Context, tx *db.Tx, r heldRecord) error {
	t := s.Map.Table(StoreMain, "holds")
	for _, hold := range r.Holds {
		if err := restoreRow(ctx, tx, t, hold, hold["released_at"] != nil); err != nil {
			return err
		}
	}
	return nil
}

// noteHeld does so for the records of erased people that a hold keeps, or for all.
func (s *Service) noteHeld(ctx context.Context, which string) error {
	var failed []error
	for after := ""; ; {
		var page []exception
		err := s.DB.Select(ctx, &page, selectException+`WHERE x.id > ? AND x.ended_at = 0 AND x.freed_at = 0 AND (? = '' OR EXISTS (SELECT 1 FROM holds h WHERE h.id = ?
			AND (h.table_name = x.table_name AND h.row_id = x.row_id OR h.table_name = x.parent_table AND h.row_id = x.parent_row))) ORDER BY x.id LIMIT ?`,
			after, which, which, eraseBatch)
		if err != nil || len(page) == 0 {
			return errors.Join(append(failed, err)...)
		}
		after = page[len(page)-1].ID
		for _, x := range page {
			failed = append(failed, s.DB.Tx(ctx, func(tx *db.Tx) error {
				kept, err := s.keptOf(ctx, tx, x.Subject, x.Table, x.Row)
				for _, x := range kept {
					err = errors.Join(err, s.noteHolds(ctx, tx, x))
				}
				return err
			}))
		}
	}
}

// readable has text as text, however a driver gives it: JSON has bytes otherwise.
func readable(t *Table, row map[string]any) map[string]any {
	for _, c := range t.Columns {
		if row[c.Name] != nil && (c.Type == "text" || c.Type == "words") {
			row[c.Name] = textOf(row[c.Name])
		}
	}
	return row
}

// stored is readable's way back.
func (t *Table) stored(row map[string]any) (names []string, values []any, err error) {
	for _, c := range t.Columns {
		v, known := row[c.Name]
		if !known {
			continue
		}
		switch said := v.(type) {
		case json.Number:
			if v, err = said.Int64(); err != nil {
				v, err = said.Float64()
			}
		case string:
			if c.Type == "bytes" {
				v, err = base64.StdEncoding.DecodeString(said)
			}
		}
		if err != nil {
			return nil, nil, errors.New("what is kept of a held record does not parse")
		}
		names, values = append(names, c.Name), append(values, v)
	}
	return names, values, nil
}

// keepRecord writes a record beside its key.
func (s *Service) keepRecord(ctx context.Context, x exception, r heldRecord) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	sealed, err := s.Vault.Seal(ctx, x.ID, text, heldData(x.ID))
	if err != nil {
		return stuck{"keys_failed", err}
	}
	_, err = s.Keys.Exec(ctx, `INSERT INTO held_records (id, subject, record) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record`, x.ID, x.Subject, sealed)
	if err != nil {
		return stuck{"keys_failed", err}
	}
	return nil
}

// forgetRecord removes what keepRecord wrote.
func (s *Service) forgetRecord(ctx context.Context, id string) error {
	if _, err := s.Keys.Exec(ctx, `DELETE FROM held_records WHERE id = ?`, id); err != nil {
		return stuck{"keys_failed", err}
	}
	return nil
}

func (s *Service) openRecord(ctx context.Context, id string, sealed []byte) (heldRecord, error) {
	r := heldRecord{id: id}
	text, err := s.Vault.Unseal(ctx, id, sealed, heldData(id))
	if err != nil {
		return r, fmt.Errorf("read what a hold keeps: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&r); err != nil {
		return r, errors.New("what is kept of a held record does not parse")
	}
	return r, nil
}

// noted is what lies beside the key of an exception, if it does.
func (s *Service) noted(ctx context.Context, id string) (r heldRecord, there bool, err error) {
	var sealed []byte
	err = s.Keys.Get(ctx, &sealed, `SELECT record FROM held_records WHERE id = ?`, id)
	if isNone(err) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("read what a hold keeps: %w", err)
	}
	r, err = s.openRecord(ctx, id, sealed)
	if errors.Is(err, vault.ErrDestroyed) {
		return r, false, nil
	}
	return r, err == nil, err
}

// records are those of an erased person that lie beside their keys: those that others are
// part of before these.
func (s *Service) records(ctx context.Context, owner string) (all []heldRecord, err error) {
	var rows []struct {
		ID     string `db:"id"`
		Record []byte `db:"record"`
	}
	if err := s.Keys.Select(ctx, &rows, `SELECT id, record FROM held_records WHERE subject = ? ORDER BY id`, owner); err != nil {
		return nil, fmt.Errorf("read what holds keep: %w", err)
	}
	for _, row := range rows {
		r, err := s.openRecord(ctx, row.ID, row.Record)
		if errors.Is(err, vault.ErrDestroyed) {
			continue // it is being released
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	slices.SortStableFunc(all, func(a, b heldRecord) int { return cmp.Compare(a.ParentTable, b.ParentTable) })
	return all, nil
}

// restoreRecords gives the main database what holds keep of an erased person, as far as it
// was restored from before that.
func (s *Service) restoreRecords(ctx context.Context, owner, erasure string) error {
	held, err := s.records(ctx, owner)
	if err != nil {
		return stuck{"keys_failed", err}
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		for _, r := range held {
			if err := s.restoreRecord(ctx, tx, owner, erasure, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// restoreRecord gives the main database an exception with its row and its holds, as far
// as it lacks them.
func (s *Service) restoreRecord(ctx context.Context, tx *db.Tx, owner, erasure string, r heldRecord) error {
	var there []exception // one that is being made is waited for
	err := tx.Select(ctx, &there, selectException+`WHERE x.id = ? OR x.erasure_id = ? AND x.table_name = ? AND x.row_id = ? ORDER BY x.id`+db.ForUpdate(tx),
		r.id, erasure, r.Table, r.Row)
	if err != nil || slices.ContainsFunc(there, func(x exception) bool { return x.EndedAt > 0 }) {
		return err
	}
	t := s.Map.Table(StoreMain, r.Table)
	if t == nil {
		return stuck{code: "hold_unknown"}
	}
	if err := s.writeHolds(ctx, tx, r); err != nil {
		return err
	}
	if slices.ContainsFunc(there, func(x exception) bool { return x.ResealedAt > 0 }) {
		return nil
	}
	// One that was made without it, for a row that nobody can open, or is not whole.
	_, err = tx.Exec(ctx, `DELETE FROM erasure_exceptions WHERE id <> ? AND subject = ? AND table_name = ? AND row_id = ? AND resealed_at = 0`, r.id, owner, r.Table, r.Row)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO erasure_exceptions (id, erasure_id, subject, table_name, row_id, parent_table, parent_row, kept_at, resealed_at, ended_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (id) DO UPDATE SET erasure_id = excluded.erasure_id, resealed_at = excluded.resealed_at`,
		r.id, erasure, owner, r.Table, r.Row, r.ParentTable, r.ParentRow, r.KeptAt, r.KeptAt)
	if err != nil {
		return err
	}
	return restoreRow(ctx, tx, t, r.Columns, true)
}

// restoreRow writes a row, over the one that is there or not.
func restoreRow(ctx context.Context, tx *db.Tx, t *Table, row map[string]any, over bool) error {
	names, values, err := t.stored(row)
	if err != nil {
		return err
	}
	then := "NOTHING"
	if over {
		var sets []string
		for _, name := range names {
			if !slices.Contains(t.Key, name) {
				sets = append(sets, name+" = excluded."+name)
			}
		}
		if len(sets) > 0 {
			then = "UPDATE SET " + strings.Join(sets, ", ")
		}
	}
	_, err = tx.Exec(ctx, "INSERT INTO "+t.Name+" ("+strings.Join(names, ", ")+") VALUES ("+db.Marks(len(names))+") ON CONFLICT ("+strings.Join(t.Key, ", ")+") DO "+then, values...)
	if err != nil {
		return fmt.Errorf("restore what a hold keeps: %w", err)
	}
	return nil
}

// dropUnreadable deletes objects of exceptions whose key is gone, as after a restore of the
// key store from before them: nobody can open these any more.
func (s *Service) dropUnreadable(ctx context.Context, e *erasure) error {
	prefix := heldPrefix + e.Subject + "/"
	return s.list(ctx, prefix, func(page []objects.Info) error {
		var gone []objects.Info
		for _, o := range page {
			exception, _, _ := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
			var keys int
			if err := s.Keys.Get(ctx, &keys, `SELECT count(*) FROM keysets WHERE subject = ? AND destroyed_at IS NULL`, exception); err != nil {
				return stuck{"keys_failed", err}
			}
			if keys == 0 {
				gone = append(gone, o)
			}
		}
		if len(gone) == 0 {
			return nil
		}
		return s.deleteAll(ctx, gone)
	})
}
