package privacy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/subject"
)

// heldPrefix is where objects of held records lie once their person is erased.
const heldPrefix = "held/"

// prefixes are where objects of a person's lie, without those that are kept for a
// hold.
func (m *Map) prefixes(owner string) ([]string, error) {
	var all []string
	for _, o := range m.Objects {
		if o.Subject == "" || strings.HasPrefix(o.Key.String(), heldPrefix) {
			continue
		}
		before, _, ok := strings.Cut(o.Key.String(), "<"+o.Subject+">/")
		if !ok || placeholder.MatchString(before) {
			return nil, stuck{code: "map_unsupported"} // they cannot be listed by their person
		}
		if prefix := before + owner + "/"; !slices.Contains(all, prefix) {
			all = append(all, prefix)
		}
	}
	return all, nil
}

// deleteObjects deletes everything below the person's prefixes, every version, and
// looks again.
func (s *Service) deleteObjects(ctx context.Context, e *erasure) error {
	if err := s.abandonExports(ctx, e.Subject); err != nil {
		return err
	}
	prefixes, err := s.Map.prefixes(e.Subject)
	if err != nil {
		return err
	}
	for _, prefix := range prefixes {
		if err := s.deletePrefix(ctx, e.ID, prefix, strings.TrimSuffix(prefix, e.Subject+"/")); err != nil {
			return err
		}
	}
	return s.deleteCopies(ctx, e.Subject)
}

// deletePrefix counts what it deletes before it is gone, each object once.
func (s *Service) deletePrefix(ctx context.Context, id, prefix, name string) error {
	for range 2 { // the second time finds what a late writer added
		for after := ""; ; {
			page, err := s.Objects.List(ctx, prefix, after, eraseBatch)
			if err != nil {
				return err
			}
			if len(page) == 0 {
				break
			}
			keys := make([]string, len(page))
			for i, o := range page {
				keys[i] = o.Key
			}
			after = keys[len(keys)-1]
			err = s.change(ctx, id, func(_ *db.Tx, w *work) error {
				for _, key := range keys {
					if key > w.Counted[prefix] {
						w.Objects[name]++
						w.Counted[prefix] = key
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			if err := s.Objects.Delete(ctx, keys...); err != nil {
				return err
			}
		}
	}
	return s.emptyPrefix(ctx, prefix)
}

func (s *Service) emptyPrefix(ctx context.Context, prefix string) error {
	left, err := s.Objects.List(ctx, prefix, "", 1)
	if err == nil && len(left) > 0 {
		err = stuck{code: "objects_left"}
	}
	return err
}

// plan is the order in which a database's tables of persons' rows are gone through:
// rows that name others go before those they name.
type plan struct {
	tables      []*Table
	constraints db.Constraints
}

func (s *Service) plan(ctx context.Context, store string) (plan, error) {
	q := s.store(store)
	// Of what the map does not know, nobody could say that it is erased.
	if err := s.Map.Check(ctx, q, store); err != nil {
		return plan{}, stuck{"map_differs", err}
	}
	constraints, err := db.ReadConstraints(ctx, q)
	if err != nil {
		return plan{}, err
	}
	p := plan{constraints: constraints}
	var waiting []*Table
	for i := range s.Map.Tables {
		if t := &s.Map.Tables[i]; t.Store == store && t.Nobody == "" {
			waiting = append(waiting, t)
		}
	}
	for len(waiting) > 0 {
		free := slices.IndexFunc(waiting, func(t *Table) bool {
			return !slices.ContainsFunc(waiting, func(other *Table) bool { return other != t && p.names(other, t.Name) })
		})
		if free < 0 {
			return plan{}, stuck{code: "map_unsupported"} // a circle
		}
		p.tables = append(p.tables, waiting[free])
		waiting = slices.Delete(waiting, free, free+1)
	}
	return p, nil
}

// names reports whether rows of t name rows of the other table.
func (p plan) names(t *Table, other string) bool {
	return t.Through == other || t.Also == other || len(p.columnsTo(t.Name, other)) > 0
}

func (p plan) columnsTo(table, other string) (columns []string) {
	for _, r := range p.constraints.References {
		if r.Table == table && r.To == other {
			columns = append(columns, r.Column)
		}
	}
	return columns
}

// keptBack is the condition that a hold or an exception keeps a row; its one parameter
// is the subject, as often as args says.
func (s *Service) keptBack(t *Table) (condition string, args int) {
	if t.Store != StoreMain {
		return "1 = 0", 0
	}
	name, key := "'"+t.Name+"'", t.record()
	conditions := []string{
		key + " IN (SELECT row_id FROM erasure_exceptions WHERE subject = ? AND table_name = " + name + " AND ended_at = 0)",
		key + " IN (SELECT row_id FROM holds WHERE subject = ? AND table_name = " + name + " AND released_at IS NULL)",
	}
	for _, p := range parts {
		if p.table == t.Name {
			conditions = append(conditions, p.column+" IN (SELECT row_id FROM holds WHERE subject = ? AND table_name = '"+p.of+"' AND released_at IS NULL)")
		}
	}
	return "(" + strings.Join(conditions, " OR ") + ")", len(conditions)
}

func times(owner string, n int) []any {
	args := make([]any, n)
	for i := range args {
		args[i] = owner
	}
	return args
}

// deleteRows does in every table what the map says of an erasure.
func (s *Service) deleteRows(ctx context.Context, e *erasure) error {
	if err := s.stopped(ctx, e); err != nil {
		return err
	}
	if err := s.keepHeld(ctx, e); err != nil {
		return err
	}
	err := s.DB.Tx(ctx, func(tx *db.Tx) error { return subject.Erase(ctx, tx, e.Subject, s.Clock.Now()) })
	if err != nil {
		return err
	}
	if err := s.forgetMails(ctx, e); err != nil {
		return err
	}
	for _, store := range stores {
		p, err := s.plan(ctx, store)
		if err != nil {
			return err
		}
		for _, t := range p.tables {
			switch t.Erase.Do {
			case Delete:
				err = s.deleteTable(ctx, e, t)
			case Retain:
				err = s.clearTable(ctx, e, p, t)
			case Shred: // unreadable since the key is destroyed
			default:
				err = stuck{code: "map_unsupported"}
			}
			if err != nil {
				return err
			}
		}
	}
	return s.dropHolds(ctx, e.Subject)
}

// deleteTable deletes the person's rows of a table. What a case forbids to tell is
// not told by a number either: rows that are hidden go first, and are not counted.
func (s *Service) deleteTable(ctx context.Context, e *erasure, t *Table) error {
	if t.Column("hidden") != nil {
		if err := s.deleteRowsOf(ctx, e, t, " AND hidden = 1", false); err != nil {
			return err
		}
	}
	return s.deleteRowsOf(ctx, e, t, "", true)
}

// deleteRowsOf deletes some of the person's rows, in bounded batches. What it did is
// counted in the same transaction, where that is the same database.
func (s *Service) deleteRowsOf(ctx context.Context, e *erasure, t *Table, which string, count bool) error {
	q := s.store(t.Store)
	kept, more := s.keptBack(t)
	condition := s.Map.Of(t) + which + " AND NOT " + kept
	key := strings.Join(t.Key, ", ")
	some := fmt.Sprintf("SELECT %s FROM %s WHERE %s LIMIT %d", key, t.Name, condition, eraseBatch)
	statement := "DELETE FROM " + t.Name + " WHERE (" + key + ") IN (" + some + ")"
	if len(t.Key) == 1 {
		statement = "DELETE FROM " + t.Name + " WHERE " + key + " " + db.InOnce(q, some)
	}
	args := append([]any{e.Subject}, times(e.Subject, more)...)
	for n := int64(eraseBatch); n == eraseBatch; {
		err := s.change(ctx, e.ID, func(tx *db.Tx, w *work) (err error) {
			if t.Store == StoreMain {
				n, err = tx.Exec(ctx, statement, args...)
			} else {
				n, err = q.Exec(ctx, statement, args...)
			}
			if n > 0 && count {
				w.Rows[t.Store+"/"+t.Name] += n
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nothing is NULL, or empty or 0 where that may not be.
func (p plan) nothing(t *Table, c Column) any {
	if !p.constraints.Required(t.Name, c.Name) {
		return nil
	}
	switch c.Type {
	case "text", "words":
		return ""
	case "bytes":
		return []byte{}
	}
	return 0
}

// clearTable takes out of rows that are kept what is not kept of them.
func (s *Service) clearTable(ctx context.Context, e *erasure, p plan, t *Table) error {
	var sets []string
	var values []any
	for _, c := range t.Columns {
		if c.Erase == Null {
			sets = append(sets, c.Name+" = ?")
			values = append(values, p.nothing(t, c))
		}
	}
	if len(sets) == 0 {
		return nil
	}
	_, err := s.store(t.Store).Exec(ctx, "UPDATE "+t.Name+" SET "+strings.Join(sets, ", ")+" WHERE "+s.Map.Of(t), append(values, e.Subject)...)
	return err
}

// forgetMails removes the files of the person's mails, where mails become files: those
// too that asked whether a letter was theirs, before it was the account's.
func (s *Service) forgetMails(ctx context.Context, e *erasure) error {
	for after := ""; ; {
		var page []string
		err := s.DB.Select(ctx, &page, `SELECT id FROM mails WHERE (subject = ? OR subject IN (SELECT id FROM requests WHERE subject = ?)) AND id > ? ORDER BY id LIMIT ?`,
			e.Subject, e.Subject, after, eraseBatch)
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1]
		if err := s.Mail.Forget(page); err != nil {
			return stuck{"mail_folder", err}
		}
	}
}

// verify deletes once more what late work may have left, and then counts through
// the map what is there. Nothing may be, but what the map or a hold keeps.
func (s *Service) verify(ctx context.Context, e *erasure) error {
	if err := s.plausible(ctx); err != nil { // late work may not be over
		return stuck{"clock_implausible", err}
	}
	if left := e.LateUntil - s.Clock.Millis(); left > 0 {
		return wait{millis(left)}
	}
	mirror := func(ctx context.Context, _ *erasure) error { return s.mirror(ctx) }
	again := []func(context.Context, *erasure) error{s.writeJournal, mirror, s.deleteObjects, s.deleteRows, s.verifyKey, s.dropUnreadable, s.verifyObjects, s.verifyRows}
	if e.CompletedAt > 0 {
		again = again[1:] // its line may have had its time
	}
	for _, do := range again {
		if err := do(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) verifyKey(ctx context.Context, e *erasure) error {
	removed, err := s.Vault.Destroyed(ctx, e.Subject)
	switch {
	case err != nil:
		return stuck{"keys_failed", err}
	case removed.IsZero():
		return stuck{code: "key_left"}
	}
	return nil
}

func (s *Service) verifyObjects(ctx context.Context, e *erasure) error {
	prefixes, err := s.Map.prefixes(e.Subject)
	if err != nil {
		return err
	}
	for _, prefix := range prefixes {
		if err := s.emptyPrefix(ctx, prefix); err != nil {
			return err
		}
	}
	// What is kept for a hold belongs to an exception that is open.
	var open []string
	if err := s.DB.Select(ctx, &open, `SELECT id FROM erasure_exceptions WHERE subject = ? AND ended_at = 0`, e.Subject); err != nil {
		return err
	}
	prefix := heldPrefix + e.Subject + "/"
	return s.list(ctx, prefix, func(page []objects.Info) error {
		for _, o := range page {
			exception, _, _ := strings.Cut(strings.TrimPrefix(o.Key, prefix), "/")
			if !slices.Contains(open, exception) {
				return stuck{code: "objects_left"}
			}
		}
		return nil
	})
}

func (s *Service) list(ctx context.Context, prefix string, f func([]objects.Info) error) error {
	for after := ""; ; {
		page, err := s.Objects.List(ctx, prefix, after, eraseBatch)
		if err != nil || len(page) == 0 {
			return err
		}
		after = page[len(page)-1].Key
		if err := f(page); err != nil {
			return err
		}
	}
}

func (s *Service) verifyRows(ctx context.Context, e *erasure) error {
	keeps := map[string]int64{}
	for _, store := range stores {
		p, err := s.plan(ctx, store)
		if err != nil {
			return err
		}
		for _, t := range p.tables {
			n, err := s.left(ctx, e, p, t)
			if err != nil {
				return err
			}
			if n > 0 {
				keeps[t.Store+"/"+t.Name] = n
			}
		}
	}
	return s.change(ctx, e.ID, func(_ *db.Tx, w *work) error {
		w.Kept = keeps
		return nil
	})
}

// left counts the rows of a table that the map keeps. Any that should be gone, or
// that says more than it may, is an error.
func (s *Service) left(ctx context.Context, e *erasure, p plan, t *Table) (int64, error) {
	q := s.store(t.Store)
	count := func(condition string, args ...any) (n int64, err error) {
		err = q.Get(ctx, &n, "SELECT count(*) FROM "+t.Name+" WHERE "+s.Map.Of(t)+condition, append([]any{e.Subject}, args...)...)
		return n, err
	}
	if t.Erase.Do == Delete {
		kept, more := s.keptBack(t)
		condition := " AND NOT " + kept
		n, err := count(condition, times(e.Subject, more)...)
		if err == nil && n > 0 {
			err = stuck{code: "rows_left"}
		}
		return 0, err
	}
	for _, c := range t.Columns {
		if c.Erase != Null {
			continue
		}
		said := " AND " + c.Name + " IS NOT NULL"
		var args []any
		if nothing := p.nothing(t, c); nothing != nil {
			said, args = " AND "+c.Name+" <> ?", []any{nothing}
		}
		n, err := count(said, args...)
		if err == nil && n > 0 {
			err = stuck{code: "columns_left"}
		}
		if err != nil {
			return 0, err
		}
	}
	return count("")
}
