package privacy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"zimage/internal/db"
	"zimage/internal/subject"
)

// checker gathers everything that is wrong with a map in itself.
type checker struct {
	m     *Map
	wrong []error
}

func (c *checker) bad(where, format string, args ...any) {
	c.wrong = append(c.wrong, fmt.Errorf("  %s: "+format, append([]any{where}, args...)...))
}

// said finds a text that is missing.
func (c *checker) said(where, field, text string) {
	if strings.TrimSpace(text) == "" {
		c.bad(where, "%s is missing", field)
	}
}

func (c *checker) among(where, field, value string, known []string) {
	if !slices.Contains(known, value) {
		c.bad(where, "%s is %q, and must be one of %s", field, value, strings.Join(known, ", "))
	}
}

// once finds what stands there a second time.
func (c *checker) once(seen map[string]bool, where, what, name string) {
	if seen[name] {
		c.bad(where, "%s %s stands there twice", what, name)
	}
	seen[name] = true
}

// one finds that not exactly one of the fields is given.
func (c *checker) one(where string, fields map[string]string) {
	given := 0
	for _, value := range fields {
		if value != "" {
			given++
		}
	}
	if given != 1 {
		c.bad(where, "must have exactly one of %s", strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
	}
}

// Names go into SQL and into files of an export.
var plainName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func (c *checker) all() {
	seen, lists := map[string]bool{}, map[string]bool{}
	for i := range c.m.Tables {
		t := &c.m.Tables[i]
		where := t.Store + " table " + t.Name
		c.once(seen, where, "table", t.Store+"."+t.Name)
		if t.Export != "" {
			c.once(lists, where, "export", t.Category+"/"+t.Export)
		}
		c.table(where, t)
	}
	for i := range c.m.Objects {
		o := &c.m.Objects[i]
		c.object("object "+o.Key.String(), o)
	}
	for i := range c.m.Redis {
		r := &c.m.Redis[i]
		where := "redis " + r.Key.String() + r.Channel.String()
		c.one(where, map[string]string{"key": r.Key.String(), "channel": r.Channel.String()})
		c.entry(where, r.Entry)
	}
	for _, f := range c.m.Files {
		c.entry("file "+f.File.String(), f.Entry)
	}
	c.entry("tasks", c.m.Tasks.Entry)
	seen = map[string]bool{}
	for _, t := range c.m.Tasks.Types {
		where := "task " + t.Name
		c.once(seen, where, "task", t.Name)
		c.said(where, "does", t.Does)
		c.said(where, "ref", t.Ref)
		c.said(where, "party", t.Party)
	}
	c.entry("mails", c.m.Mails.Entry)
	c.names("mails", c.m.Mails.Always)
	seen = map[string]bool{}
	for _, t := range c.m.Mails.Templates {
		c.once(seen, "mails", "template", t.Name)
		c.names("mail "+t.Name, t.Data)
	}
	c.entry("logs", c.m.Logs.Entry)
	c.names("logs", c.m.Logs.Attributes)
	c.entry("metrics", c.m.Metrics.Entry)
	c.names("metrics", c.m.Metrics.Labels)
	c.figures()
	for _, k := range c.m.Cookies {
		c.said("cookie", "name", k.Name)
		c.entry("cookie "+k.Name, k.Entry)
	}
	seen = map[string]bool{}
	for _, e := range c.m.Engines {
		c.once(seen, "engines", "kind", e.Kind)
		c.entry("engine "+e.Kind, e.Entry)
	}
}

func (c *checker) figures() {
	var labels []string
	for _, l := range c.m.Metrics.Labels {
		labels = append(labels, l.Name)
	}
	seen, used := map[string]bool{}, map[string]bool{}
	for _, f := range c.m.Metrics.Figures {
		where := "metric " + f.Name
		c.once(seen, where, "metric", f.Name)
		for _, l := range f.Labels {
			c.among(where, "label", l, labels)
			used[l] = true
		}
	}
	for _, l := range labels {
		if !used[l] {
			c.bad("metrics", "no figure has the label %s", l)
		}
	}
}

func (c *checker) names(where string, all []Named) {
	seen := map[string]bool{}
	for _, n := range all {
		c.said(where, "name", n.Name)
		c.once(seen, where, "name", n.Name)
		c.said(where+" "+n.Name, "holds", n.Holds)
	}
}

func (c *checker) entry(where string, e Entry) {
	c.said(where, "holds", e.Holds)
	c.said(where, "kept", e.Kept)
	c.said(where, "erased", e.Erased)
	c.purposes(where, e.Purposes)
}

func (c *checker) purposes(where string, ids []string) {
	if len(ids) == 0 {
		c.bad(where, "purposes is missing: say what it is kept for")
	}
	for _, id := range ids {
		if id != Operate && !slices.Contains(subject.Purposes(), subject.Purpose(id)) {
			c.bad(where, "there is no purpose %q", id)
		}
	}
}

func (c *checker) table(where string, t *Table) {
	if !plainName.MatchString(t.Name) {
		c.bad(where, "the name must be of small letters, digits and _")
	}
	c.among(where, "store", t.Store, stores)
	c.said(where, "holds", t.Holds)
	c.one(where, map[string]string{"subject": t.Subject, "nobody": t.Nobody})
	c.among(where, "category", t.Category, categories)
	c.purposes(where, t.Purposes)
	if t.Subject != "" && slices.Contains(t.Purposes, Operate) {
		c.bad(where, "operate is no purpose for what is a person's: name the policy's")
	}
	if len(t.Key) == 0 {
		c.bad(where, "key is missing: what has no primary key cannot be deleted for certain")
	}
	for _, k := range t.Key {
		c.has(where, "key", t, k)
	}
	if t.Subject != "" {
		c.has(where, "subject", t, t.Subject)
	}
	if t.Through != "" {
		c.through(where, t)
	}
	if t.Also != "" {
		other := c.m.Table(t.Store, t.Also)
		if t.Through != "" || other == nil || len(other.Key) != 1 || other.Subject == "" || other.Through != "" || other.Also != "" {
			c.bad(where, "also must name a table of the same store that is a person's by a column of its own and has a key of one column; it goes without through")
		}
	}
	if len(t.Keep) == 0 {
		c.bad(where, "keep is missing: say how long")
	}
	for i, k := range t.Keep {
		c.keep(fmt.Sprintf("%s: keep[%d]", where, i), t, k)
	}
	c.erase(where, t)
	seen, names := map[string]bool{}, map[string]bool{}
	for _, col := range t.Columns {
		at := where + ": column " + col.Name
		c.once(seen, at, "column", col.Name)
		if col.Export != "" {
			c.once(names, at, "export", col.Export)
		}
		c.column(at, t, col)
	}
	for _, b := range t.Beside {
		at := where + ": beside " + b.Name
		c.once(names, at, "export", b.Name)
		c.said(at, "holds", b.Holds)
		c.among(at, "type", b.Type, slices.Sorted(maps.Keys(types)))
		if !plainName.MatchString(b.Name) {
			c.bad(at, "the name must be of small letters, digits and _")
		}
		if t.Name != ledgerTable {
			c.bad(at, "only the ledger joins other tables for an export")
		}
	}
	if (t.Export != "") != (len(names) > 0) {
		c.bad(where, "needs the name of its list in the export exactly when a column is exported")
	}
	if t.Export != "" && !plainName.MatchString(t.Export) {
		c.bad(where, "export must be of small letters, digits and _")
	}
}

func (c *checker) has(where, field string, t *Table, column string) {
	if t.Column(column) == nil {
		c.bad(where, "%s names the column %s, which is not in the table's list", field, column)
	}
}

// through follows the way to the person, which must end.
func (c *checker) through(where string, t *Table) {
	for hops := 0; t.Through != ""; hops++ {
		next := c.m.Table(t.Store, t.Through)
		if next == nil || len(next.Key) != 1 || next.Subject == "" || hops > len(c.m.Tables) {
			c.bad(where, "through must lead to a table of the same store that is a person's and has a key of one column")
			return
		}
		t = next
	}
}

func (c *checker) keep(where string, t *Table, k Keep) {
	c.one(where, map[string]string{"as_long_as": k.AsLongAs, "window": k.Window, "for": k.For, "until": untilAlone(k)})
	if k.Window == "" {
		c.said(where, "why", k.Why)
	}
	if k.AsLongAs != "" {
		c.among(where, "as_long_as", k.AsLongAs, []string{"account", "installation", "need"})
		if k.From != "" || k.Until != "" || k.Then != "" || k.Unless != "" {
			c.bad(where, "as_long_as has no times")
		}
		return
	}
	if _, ok := (Policy{}).Window(k.Window); k.Window != "" && !ok {
		c.bad(where, "the policy has no window %q", k.Window)
	}
	if _, err := parseSpan(k.For); k.For != "" && err != nil {
		c.bad(where, "for is %q, and must be a span such as 30d or 24h", k.For)
	}
	if (k.Window != "" || k.For != "") && k.From == "" {
		c.bad(where, "from is missing: the column with the time at which it begins")
	}
	for field, column := range map[string]string{"from": k.From, "until": k.Until} {
		if column == "" {
			continue
		}
		if col := t.Column(column); col == nil || col.Type != "time" {
			c.bad(where, "%s names %s, which is no column of the type time", field, column)
		}
	}
	if col := t.Column(k.Unless); k.Unless != "" && (col == nil || col.Type != "time" && col.Type != "flag") {
		c.bad(where, "unless names %s, which is no column of the type time or flag", k.Unless)
	}
	if k.By == KindPurge && t.Store != StoreMain {
		c.bad(where, "%s ends rows of the main store alone: holds stand there", KindPurge)
	}
	if k.Window != "" && k.Until != "" && k.Window != inDays {
		c.bad(where, "until beside a window is for %s, which is given in days: an end that is stored must follow a shorter one", inDays)
	}
	c.among(where, "then", string(k.Then), []string{string(Delete), string(Null)})
	if (k.Then == Null) != (len(k.Columns) > 0) {
		c.bad(where, "needs columns exactly when they become null")
	}
	for _, column := range k.Columns {
		c.has(where, "columns", t, column)
	}
	known := []string{"api", "worker", "scheduler"}
	for _, task := range c.m.Tasks.Types {
		known = append(known, task.Name)
	}
	c.among(where, "by", k.By, known)
}

// untilAlone is until where it is the whole rule: a window or span may also have
// its end stored.
func untilAlone(k Keep) string {
	if k.Window != "" || k.For != "" {
		return ""
	}
	return k.Until
}

func (c *checker) erase(where string, t *Table) {
	if t.Nobody != "" {
		if t.Erase != nil || t.Through != "" || t.Also != "" || t.Export != "" {
			c.bad(where, "is nobody's: it has no erase, through, also or export")
		}
		return
	}
	if t.Erase == nil {
		c.bad(where, "erase is missing: say what becomes of a person's rows")
		return
	}
	c.among(where, "erase.do", string(t.Erase.Do), []string{string(Delete), string(Shred), string(Retain)})
	if t.Erase.Do == Retain {
		c.said(where, "erase.basis", t.Erase.Basis)
		c.said(where, "erase.until", t.Erase.Until)
	} else if t.Erase.Basis != "" || t.Erase.Until != "" {
		c.bad(where, "only what is kept has a basis and an end")
	}
	if t.Erase.Do == Shred && !slices.ContainsFunc(t.Columns, func(c Column) bool { return c.Sealed != "" }) {
		c.bad(where, "has nothing sealed that could be shredded")
	}
}

func (c *checker) column(where string, t *Table, col Column) {
	if !plainName.MatchString(col.Name) {
		c.bad(where, "the name must be of small letters, digits and _")
	}
	c.among(where, "type", col.Type, slices.Sorted(maps.Keys(types)))
	c.said(where, "holds", col.Holds)
	c.one(where, map[string]string{"sealed": col.Sealed, "hashed": col.Hashed, "wrapped": col.Wrapped, "plain": col.Plain})
	if col.Sealed != "" {
		c.among(where, "sealed", col.Sealed, []string{"text", "json", sealedLedger})
		if col.Type != "bytes" || len(t.Key) != 1 || t.Subject == "" || t.Through != "" {
			c.bad(where, "sealed needs bytes, a key of one column and the subject in the row itself: the key and the binding are made of them")
		}
	}
	if t.Nobody != "" {
		if col.Export+col.NotExported != "" {
			c.bad(where, "is nobody's: there is no one to export it to")
		}
	} else {
		c.one(where, map[string]string{"export": col.Export, "not_exported": col.NotExported})
	}
	if col.Export != "" && !plainName.MatchString(col.Export) {
		c.bad(where, "export must be of small letters, digits and _")
	}
	if col.Without != "" && col.Export == "" {
		c.bad(where, "without is for what is exported in part; nothing of this is")
	}
	if (col.Sealed == sealedLedger) != (t.Name == ledgerTable && col.Sealed != "") {
		c.bad(where, "sealed is %s exactly in the table %s", sealedLedger, ledgerTable)
	}
	if col.Export != "" && col.Hashed+col.Wrapped != "" {
		c.bad(where, "a hash or a wrapped key says nothing to anybody: not_exported")
	}
	switch {
	case col.Erase == "":
	case t.Erase == nil || t.Erase.Do != Retain:
		c.bad(where, "erase is for columns of rows that are kept")
	case col.Erase == Shred && col.Sealed == "":
		c.bad(where, "is not sealed: shred does nothing to it")
	default:
		c.among(where, "erase", string(col.Erase), []string{string(Null), string(Shred)})
	}
}

func (c *checker) object(where string, o *StoredObject) {
	c.entry(where, o.Entry)
	c.one(where, map[string]string{"subject": o.Subject, "nobody": o.Nobody})
	if o.Nobody != "" {
		return
	}
	c.among(where, "category", o.Category, categories)
	c.one(where, map[string]string{"export": o.Export, "not_exported": o.Why})
	if c.m.Table(StoreMain, o.Table) == nil {
		c.bad(where, "table names %q, which is not in the map", o.Table)
	}
	if len(o.Data) == 0 {
		c.bad(where, "data is missing: what is a person's is sealed and bound")
	}
	for _, part := range append(o.Data, "<"+o.Subject+">") {
		if placeholder.MatchString(part) && !strings.Contains(o.Key.String(), part) {
			c.bad(where, "the key has no part %s", part)
		}
	}
}

// Check compares the map with one of the two databases, in both directions. Its
// error names every difference and what to do about it.
func (m *Map) Check(ctx context.Context, q db.Querier, store string) error {
	live, err := db.Tables(ctx, q)
	if err != nil {
		return err
	}
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf("  "+format, args...)) }
	there := map[string]bool{}
	for _, l := range live {
		there[l.Name] = true
		t := m.Table(store, l.Name)
		if t == nil {
			bad("table %s is not in the map: add it under tables, with store %s, whose it is and every column; a table that is not the service's belongs elsewhere, on PostgreSQL in a schema of its own", l.Name, store)
			continue
		}
		if !slices.Equal(l.Key, t.Key) {
			bad("table %s has the primary key (%s), and in the map (%s): mend key", l.Name, strings.Join(l.Key, ", "), strings.Join(t.Key, ", "))
		}
		for _, column := range l.Columns {
			c := t.Column(column.Name)
			switch {
			case c == nil:
				bad("column %s.%s is not in the map: add it to the table's columns, with what it holds, how it is protected and its export", l.Name, column.Name)
			case !slices.Contains(types[c.Type], column.Type):
				bad("column %s.%s is of the type %s, and in the map %s: mend type", l.Name, column.Name, column.Type, c.Type)
			}
		}
		for _, c := range t.Columns {
			if !slices.ContainsFunc(l.Columns, func(l db.Column) bool { return l.Name == c.Name }) {
				bad("column %s.%s is in the map%s, and not in the database: take it out of the map, or add the migration", t.Name, c.Name, t.role(c.Name))
			}
		}
	}
	for _, t := range m.Tables {
		if t.Store == store && !there[t.Name] {
			bad("table %s is in the map, and not in the database: take it out of the map, or add the migration", t.Name)
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%w (%s store; internal/privacy/datamap.yaml, see docs/privacy.md):\n%w", ErrMap, store, errors.Join(wrong...))
	}
	return nil
}

// ErrMap says that the map and what is stored differ.
var ErrMap = errors.New("the data map does not describe this database: nothing may be stored that nobody could export or erase")

// role says what hangs on a column.
func (t *Table) role(column string) string {
	var roles []string
	if t.Subject == column {
		roles = append(roles, "says whose the row is")
	}
	for _, k := range t.Keep {
		if k.From == column || k.Until == column || k.Unless == column {
			roles = append(roles, "decides when the row goes")
			break
		}
	}
	if len(roles) == 0 {
		return ""
	}
	return ", where it " + strings.Join(roles, " and ")
}
