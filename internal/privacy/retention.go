package privacy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/subject"
)

// KindPurge is the job that ends what is past its time in one table. Its ref is the
// table, or the schedule, which adds one for every table.
const KindPurge = "retention:purge"

const (
	sweepSchedule = "retention"
	// purgeBatch bounds one transaction, so that others soon have their turn, and
	// purgePiece one between two rests.
	purgeBatch = 100
	purgePiece = 20
	// expired is why content is removed whose time is over.
	expired = "expired"
)

// A Remove ends the content of some rows of a table, where that takes more than a
// statement: whoever waits for it is told, and its objects are deleted in time. What
// a hold keeps, and what is gone already, it passes over.
type Remove func(ctx context.Context, tx *db.Tx, ids []string, reason string) (removed int, err error)

// A Drop deletes some rows of a table that are past their time with those that belong to
// them, and says how many of the table.
type Drop func(ctx context.Context, tx *db.Tx, ids []string) (dropped int, err error)

// purges are the table's reasons by which retention ends rows, or part of them.
func (t *Table) purges() []Keep {
	return slices.DeleteFunc(slices.Clone(t.Keep), func(k Keep) bool { return k.By != KindPurge })
}

// purged are the tables that retention goes through.
func (m *Map) purged() (tables []*Table) {
	for i := range m.Tables {
		if t := &m.Tables[i]; len(t.purges()) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

// partOf reports whether rows of the table are parts of another's: they mostly end
// with those, so that these go first.
func (t *Table) partOf(other string) bool {
	for _, p := range parts {
		if p.table == t.Name && (other == "" || p.of == other) {
			return true
		}
	}
	return false
}

// applies is the condition for rows that a reason is for and has not ended yet.
func (p plan) applies(t *Table, k Keep) string {
	applies := k.decides() + " > 0" // nor NULL
	switch {
	case k.Unless != "" && p.constraints.Required(t.Name, k.Unless):
		applies += " AND " + k.Unless + " = 0"
	case k.Unless != "":
		applies += " AND coalesce(" + k.Unless + ", 0) = 0"
	case k.Then == Null:
		var left []string
		for _, name := range k.Columns {
			switch c := t.Column(name); {
			case !p.constraints.Required(t.Name, name):
				left = append(left, name+" IS NOT NULL")
			case c.Type == "text" || c.Type == "words":
				left = append(left, name+" <> ''")
			case c.Type == "bytes":
				left = append(left, "length("+name+") > 0")
			default:
				left = append(left, name+" <> 0")
			}
		}
		applies += " AND (" + strings.Join(left, " OR ") + ")"
	}
	return applies
}

// due are those whose time is over; the parameter is the bound.
func (p plan) due(t *Table, k Keep) string { return p.applies(t, k) + " AND " + k.decides() + " <= ?" }

func (s *Service) purgeKind() jobs.Kind {
	return jobs.Kind{Name: KindPurge, MaxAttempts: 100, Run: func(ctx context.Context, r *jobs.Run) error {
		if err := s.plausible(ctx); err != nil {
			return jobs.Retry("internal", err)
		}
		if err := s.checkInForce(ctx); err != nil { // a process with the newer one does it
			return jobs.Retry("internal", err)
		}
		if r.Ref == sweepSchedule {
			s.SetBackstop(ctx)
			if err := s.forgetMirror(ctx); err != nil && ctx.Err() == nil {
				s.Log.WarnContext(ctx, "could not forget the old journal's mirror", "error", err) // the next time
			}
			if _, err := s.ShortenWindows(ctx); err != nil {
				return jobs.Retry("internal", err)
			}
			return r.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
				_, err := s.sweep(ctx, tx)
				return err
			})
		}
		if _, err := s.purge(ctx, r.Ref, s.Queue.PaceOf(r.Job)); err != nil {
			return jobs.Retry("internal", err)
		}
		return nil
	}}
}

// BackstopDays is after how many days the object store is to delete pictures by
// itself: one more than the policy's window.
func (p Policy) BackstopDays() int {
	days, _ := p.Windows.GeneratedContent.Days()
	return days + 1
}

// BackstopPrefix is where it does so.
const BackstopPrefix = pictures + "/"

// SetBackstop has the object store itself delete pictures, a day after retention
// should have. A store that knows no rules is used without.
func (s *Service) SetBackstop(ctx context.Context) {
	if err := s.Objects.Backstop(ctx, BackstopPrefix, s.Policy.BackstopDays()); err != nil && ctx.Err() == nil {
		s.Log.WarnContext(ctx, "the object store takes no rule of its own to delete old pictures", "error", err)
	}
}

// A Sweep is the job that goes through one table.
type Sweep struct{ Job, Table string }

// Sweep has every table gone through now, at the wish of staff. A table whose job
// waits already gets no other.
func (s *Service) Sweep(ctx context.Context) (all []Sweep, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		all, err = s.sweep(ctx, tx)
		return err
	})
	return all, away(err)
}

func (s *Service) sweep(ctx context.Context, tx *db.Tx) (all []Sweep, err error) {
	for _, t := range s.Map.purged() {
		if t.partOf("") {
			continue
		}
		one, err := s.sweepTable(ctx, tx, t.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

func (s *Service) sweepTable(ctx context.Context, tx *db.Tx, table string) (Sweep, error) {
	one := Sweep{Table: table}
	err := tx.Get(ctx, &one.Job, `SELECT id FROM jobs WHERE party = ? AND state IN ('queued', 'waiting') AND kind = ? AND ref = ? LIMIT 1`+db.SkipLocked(tx),
		jobs.System, KindPurge, table)
	if isNone(err) {
		var j jobs.Job
		j, err = s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindPurge, Ref: table})
		one.Job = j.ID
	}
	if err != nil {
		return Sweep{}, fmt.Errorf("add a sweep: %w", err)
	}
	return one, nil
}

// sweepReleased has what a hold kept ended at once, if its time is over.
func (s *Service) sweepReleased(ctx context.Context, tx *db.Tx, table string) error {
	for _, p := range parts {
		if p.table == table {
			table = p.of // which goes through its parts
		}
	}
	if t := s.Map.Table(StoreMain, table); t == nil || len(t.purges()) == 0 {
		return nil
	}
	_, err := s.sweepTable(ctx, tx, table)
	return err
}

// Purge ends what is past its time in a table and in those of its parts, in bounded
// batches, and returns how many rows that were. It may be broken off and called again
// at any time. It takes all the time it gets; the jobs of the schedule rest between.
func (s *Service) Purge(ctx context.Context, table string) (ended int, err error) {
	return s.purge(ctx, table, nil)
}

func (s *Service) purge(ctx context.Context, table string, pace *jobs.Pace) (ended int, err error) {
	if err := s.plausible(ctx); err != nil {
		return 0, err
	}
	t := s.Map.Table(StoreMain, table)
	if t == nil || len(t.purges()) == 0 {
		return 0, fmt.Errorf("retention has no plan for %s", table)
	}
	p, err := s.schema(ctx)
	if err != nil {
		return 0, err
	}
	for _, k := range t.purges() {
		n, err := s.purgeBy(ctx, p, t, k, pace)
		if ended += n; err != nil {
			return ended, fmt.Errorf("purge %s: %w", table, err)
		}
	}
	if ended > 0 {
		s.Log.InfoContext(ctx, "rows past their time were ended", "table", table, "rows", ended)
	}
	s.Metrics.purged.Add(float64(ended))
	if err := s.swept(ctx, table, fmt.Appendf(nil, `{"rows":%d}`, ended)); err != nil {
		return ended, err
	}
	for _, part := range s.Map.purged() {
		if part.partOf(table) {
			n, err := s.purge(ctx, part.Name, pace)
			if ended += n; err != nil {
				return ended, err
			}
		}
	}
	return ended, nil
}

// schema is what the main database demands of its rows. It is read once: it changes
// with a start alone.
func (s *Service) schema(ctx context.Context) (plan, error) {
	s.once.Lock()
	defer s.once.Unlock()
	if s.main == nil {
		constraints, err := db.ReadConstraints(ctx, s.DB)
		if err != nil {
			return plan{}, err
		}
		s.main = &plan{constraints: constraints}
	}
	return *s.main, nil
}

// swept keeps that a plan was gone through to its end.
func (s *Service) swept(ctx context.Context, name string, result []byte) error {
	_, err := s.DB.Exec(ctx, `INSERT INTO sweeps (plan, ended_at, result) VALUES (?, ?, ?)
		ON CONFLICT (plan) DO UPDATE SET ended_at = excluded.ended_at, result = excluded.result`, name, s.Clock.Millis(), string(result))
	return err
}

// purgeBy goes through the rows that are due by one reason, by the time of their end,
// which has an index: what stays is never read.
func (s *Service) purgeBy(ctx context.Context, p plan, t *Table, k Keep, pace *jobs.Pace) (ended int, err error) {
	bound := k.bound(s.Policy, s.Clock.Now()).UnixMilli()
	order := strings.Join(append([]string{k.decides()}, t.Key...), ", ")
	columns := slices.Compact(slices.Sorted(slices.Values(append(s.needs(t), strings.Split(order, ", ")...))))
	where, args := p.due(t, k), []any{bound}
	query := "SELECT " + strings.Join(columns, ", ") + " FROM " + t.Name + " WHERE %s ORDER BY " + order + " LIMIT %d"
	for from, more := where, args; ; {
		size := purgePiece
		if pace.Over() {
			size = purgeBatch
		}
		page, err := s.DB.Maps(ctx, fmt.Sprintf(query, from, size), more...)
		if err != nil || len(page) == 0 {
			return ended, err
		}
		var n int
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			n, err = s.end(ctx, tx, p, t, k, page, bound)
			return err
		})
		if err != nil {
			return ended, err
		}
		ended += n
		if len(page) < size {
			return ended, nil
		}
		if err := pace.Next(ctx); err != nil {
			return ended, err
		}
		// Behind the last: what a hold keeps is passed over.
		last := page[len(page)-1]
		from, more = where+" AND ("+order+") > ("+db.Marks(len(t.Key)+1)+")", append(slices.Clone(args), last[k.decides()])
		for _, name := range t.Key {
			more = append(more, last[name])
		}
	}
}

// needs are the columns that the keys of a table's objects are made of.
func (s *Service) needs(t *Table) (columns []string) {
	for _, o := range s.objectsOf(t) {
		for _, column := range o.columns(t) {
			columns = append(columns, column)
		}
	}
	return columns
}

// objectsOf are the kinds of object that retention deletes with a table's rows; those
// of a table with a Remove are its room's.
func (s *Service) objectsOf(t *Table) (kinds []*StoredObject) {
	for i := range s.Map.Objects {
		o := &s.Map.Objects[i]
		if o.Table == t.Name && s.Removes[t.Name] == nil && !strings.HasPrefix(o.Key.String(), heldPrefix) {
			kinds = append(kinds, o)
		}
	}
	return kinds
}

// end does with a batch of rows what the reason says. Whether a hold keeps them is
// asked in this transaction, which also keeps anybody from placing one meanwhile.
func (s *Service) end(ctx context.Context, tx *db.Tx, p plan, t *Table, k Keep, page []map[string]any, bound int64) (int, error) {
	rows := map[string]map[string]any{}
	var ids []string
	for _, r := range page {
		id := recordOf(t, r)
		rows[id], ids = r, append(ids, id)
	}
	slices.Sort(ids) // everybody locks in one order
	if remove := s.Removes[t.Name]; remove != nil && k.Then == Null {
		return remove(ctx, tx, ids, expired)
	}
	ids, err := s.free(ctx, tx, t, ids)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	if drop := s.Drops[t.Name]; drop != nil && k.Then == Delete {
		return drop(ctx, tx, ids)
	}
	var objects []string
	for _, id := range ids {
		for _, o := range s.objectsOf(t) {
			objects = append(objects, o.keyOf(t, rows[id]))
		}
	}
	// Before the row, which nobody else could find them by.
	if len(objects) > 0 {
		if err := s.Objects.Delete(ctx, objects...); err != nil {
			return 0, err
		}
	}
	statement, args := "DELETE FROM "+t.Name, []any(nil)
	if k.Then == Null {
		var sets []string
		for _, name := range k.Columns {
			sets = append(sets, name+" = ?")
			args = append(args, p.nothing(t, *t.Column(name)))
		}
		statement = "UPDATE " + t.Name + " SET " + strings.Join(sets, ", ")
	}
	var which []string
	for _, id := range ids {
		for _, name := range t.Key {
			args = append(args, rows[id][name])
		}
		which = append(which, "("+strings.Join(t.Key, " = ? AND ")+" = ?)")
	}
	n, err := tx.Exec(ctx, statement+" WHERE ("+strings.Join(which, " OR ")+") AND "+p.due(t, k), append(args, bound)...)
	return int(n), err
}

// recordOf is what a hold calls the row; see Table.record.
func recordOf(t *Table, r map[string]any) string {
	key := make([]string, len(t.Key))
	for i, name := range t.Key {
		key[i] = fmt.Sprint(r[name])
	}
	return strings.Join(key, ":")
}

// free are those of a table's records that neither a hold on them nor one on what they
// are part of keeps. It keeps the rows of all; see subject.Free.
func (s *Service) free(ctx context.Context, tx *db.Tx, t *Table, ids []string) ([]string, error) {
	for _, p := range parts {
		if p.table != t.Name {
			continue
		}
		var rows []struct {
			ID     string `db:"id"`
			Parent string `db:"parent"`
		}
		err := tx.Select(ctx, &rows, "SELECT "+t.record()+" AS id, "+p.column+" AS parent FROM "+t.Name+" WHERE "+t.record()+" IN ("+db.Marks(len(ids))+") ORDER BY 2, 1", db.Args(ids)...)
		if err != nil {
			return nil, err
		}
		var parents []string
		for _, r := range rows {
			parents = append(parents, r.Parent)
		}
		// What they are part of before them, in the order in which everybody locks.
		free, err := subject.Free(ctx, tx, p.of, parents)
		if err != nil {
			return nil, err
		}
		ids = nil
		for _, r := range rows {
			if slices.Contains(free, r.Parent) {
				ids = append(ids, r.ID)
			}
		}
		slices.Sort(ids)
	}
	if !slices.Contains(subject.Records(), t.Name) {
		return ids, nil
	}
	return subject.Free(ctx, tx, t.Name, ids)
}

// checkPurge finds what in the map retention could not follow.
func (s *Service) checkPurge() error {
	var wrong []error
	for _, t := range s.Map.purged() {
		for _, o := range s.objectsOf(t) {
			columns := o.columns(t)
			for _, part := range placeholder.FindAllStringSubmatch(o.Key.String(), -1) {
				if columns[part[1]] == "" {
					wrong = append(wrong, fmt.Errorf("data map: object %s: the table %s has no column for <%s>", o.Key, t.Name, part[1]))
				}
			}
		}
	}
	return errors.Join(wrong...)
}
