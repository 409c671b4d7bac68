package privacy

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/vault"
)

// pageRows is how many rows are in memory at once, also of the pages to read by.
const pageRows = 100

// A row is what a database gave, by the names of its columns.
type row map[string]any

// A walk goes through the rows of one table that are one person's, in the order
// of the table's key.
type walk struct {
	s       *Service
	table   *Table
	owner   string
	columns []string
	last    []any // key of the row before; nil: none
	until   []any // key of the last row that counts; nil: all do
	over    row   // the parent of the row before; nil: none
}

func (s *Service) walk(t *Table, owner string) *walk {
	w := &walk{s: s, table: t, owner: owner, columns: slices.Clone(t.Key)}
	need := func(names ...string) {
		for _, name := range names {
			if name != "" && !slices.Contains(w.columns, name) {
				w.columns = append(w.columns, name)
			}
		}
	}
	for _, c := range t.Columns {
		if c.Export != "" {
			need(c.Name)
		}
	}
	if len(t.Beside) > 0 {
		need("subject", "hidden", "kind", "at", "commitment", "sequence")
	}
	for _, k := range t.Keep { // whether the row, or part of it, is over
		need(k.From, k.Until)
	}
	for _, o := range s.Map.Objects { // where its objects lie
		if o.Export != "" && o.Table == t.Name && t.Store == StoreMain {
			need(slices.Collect(maps.Values(o.columns(t)))...)
		}
	}
	return w
}

// shown are the rows of the table that their person may see.
func (t *Table) shown() string {
	if t.Name == ledgerTable {
		return ledgerShown
	}
	return t.Name
}

// store is where a store's tables are.
func (s *Service) store(name string) *db.DB {
	if name == StoreKeys {
		return s.Keys
	}
	return s.DB
}

// next reads the next rows, none at the end.
func (w *walk) next(ctx context.Context) ([]row, error) {
	t := w.table
	key := "(" + strings.Join(t.Key, ", ") + ")"
	marks := "(" + db.Marks(len(t.Key)) + ")"
	query := `SELECT ` + strings.Join(w.columns, ", ") + ` FROM ` + t.shown() + ` WHERE ` + w.s.Map.Of(t)
	args := []any{w.owner}
	if w.last != nil {
		query += ` AND ` + key + ` > ` + marks
		args = append(args, w.last...)
	}
	if w.until != nil {
		query += ` AND ` + key + ` <= ` + marks
		args = append(args, w.until...)
	}
	rows, err := w.s.store(t.Store).Maps(ctx, query+` ORDER BY `+strings.Join(t.Key, ", ")+fmt.Sprintf(` LIMIT %d`, pageRows), args...)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	list := make([]row, len(rows))
	for i, r := range rows {
		list[i] = r
	}
	w.last = list[len(list)-1].key(t)
	return list, nil
}

func (r row) key(t *Table) []any {
	key := make([]any, len(t.Key))
	for i, name := range t.Key {
		key[i] = r[name]
	}
	return key
}

// again reads a row once more: nil when it is there no longer.
func (w *walk) again(ctx context.Context, r row) (row, error) {
	one := &walk{s: w.s, table: w.table, owner: w.owner, columns: w.columns, until: r.key(w.table)}
	rows, err := one.s.store(w.table.Store).Maps(ctx, `SELECT `+strings.Join(w.columns, ", ")+` FROM `+w.table.shown()+` WHERE `+w.s.Map.Of(w.table)+
		` AND (`+strings.Join(w.table.Key, ", ")+`) = (`+db.Marks(len(w.table.Key))+`)`, append([]any{w.owner}, one.until...)...)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return rows[0], nil
}

// parent finds the row that a row with objects belongs to: a part x of the
// object's key that stands in the column x_id names a row of the table xs. The
// newest is remembered, since those that belong together follow one another.
func (w *walk) parent(ctx context.Context, o *StoredObject, r row) (*Table, row, error) {
	for part, column := range o.columns(w.table) {
		t := w.s.Map.Table(w.table.Store, part+"s")
		if column != part+"_id" || t == nil || t.Export == "" || len(t.Key) != 1 {
			continue
		}
		if w.over == nil || w.over[t.Key[0]] != r[column] {
			above := w.s.walk(t, w.owner)
			found, err := above.again(ctx, row{t.Key[0]: r[column]})
			if err != nil || found == nil || !w.s.settle(t, found) {
				return nil, nil, err
			}
			w.over = found
		}
		return t, w.over, nil
	}
	return nil, nil, nil
}

// count of a person's rows.
func (w *walk) count(ctx context.Context) (n int64, err error) {
	err = w.s.store(w.table.Store).Get(ctx, &n, `SELECT count(*) FROM `+w.table.shown()+` WHERE `+w.s.Map.Of(w.table), w.owner)
	return n, err
}

// settle does in memory what retention does to the row soon: what is over is not
// shown in the meantime. It reports false for a row that is over as a whole.
func (s *Service) settle(t *Table, r row) bool {
	for _, k := range t.Keep {
		if !k.over(s.Policy, r, s.Clock.Now()) {
			continue
		}
		if k.Then == Delete {
			return false
		}
		for _, name := range k.Columns {
			r[name] = nil
		}
	}
	return true
}

// hasContent reports whether a row still has what its objects belong to: the
// sealed columns that a window empties.
func hasContent(t *Table, r row) bool {
	for _, k := range t.Keep {
		if k.Then != Null {
			continue
		}
		for _, name := range k.Columns {
			if t.Column(name).Sealed != "" && r[name] == nil {
				return false
			}
		}
	}
	return true
}

// A field of a record, as it stands in the export.
type field struct {
	name  string
	value any // nil, string, bool, int64, []string or json.RawMessage
}

// record opens a row as the map says.
func (s *Service) record(ctx context.Context, t *Table, owner string, r row) ([]field, error) {
	if t.Name == ledgerTable {
		return s.ledger.record(ctx, t, r)
	}
	var fields []field
	for _, c := range t.Columns {
		if c.Export == "" {
			continue
		}
		v, err := s.value(ctx, t, &c, owner, r)
		if err != nil {
			return nil, err
		}
		fields = append(fields, field{c.Export, v})
	}
	return fields, nil
}

func (s *Service) value(ctx context.Context, t *Table, c *Column, owner string, r row) (any, error) {
	v := r[c.Name]
	if v == nil {
		return nil, nil
	}
	if c.Sealed != "" {
		sealed, _ := v.([]byte)
		id, _ := r[t.Key[0]].(string)
		plain, err := s.Vault.Unseal(ctx, owner, sealed, t.Bound(c.Name, id))
		if err != nil {
			return nil, err
		}
		if c.Sealed == "text" {
			return string(plain), nil
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, plain); err != nil {
			return nil, vault.ErrCorrupt // the decoder's words may quote it
		}
		return json.RawMessage(compact.Bytes()), nil
	}
	switch c.Type {
	case "time":
		if at := millisOf(v); at != 0 {
			return stamp(time.UnixMilli(at)), nil
		}
		return nil, nil
	case "flag":
		return v == true || v == int64(1), nil
	case "words":
		return append([]string{}, strings.Fields(textOf(v))...), nil
	case "text":
		return textOf(v), nil
	case "bytes":
		raw, _ := v.([]byte)
		return base64.StdEncoding.EncodeToString(raw), nil
	}
	return v, nil
}

// stamp is how times stand in an export.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func millisOf(v any) int64 {
	n, _ := v.(int64)
	return n
}

func textOf(v any) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	s, _ := v.(string)
	return s
}

// columns are those of the table that the parts of the object's key stand in: a
// part x is the column x, x_id, the row's own id, or the subject.
func (o *StoredObject) columns(t *Table) map[string]string {
	of := map[string]string{}
	for _, part := range placeholder.FindAllStringSubmatch(o.Key.String(), -1) {
		switch name := part[1]; {
		case name == o.Subject:
			of[name] = t.Subject
		case t.Column(name) != nil:
			of[name] = name
		case t.Column(name+"_id") != nil:
			of[name] = name + "_id"
		}
	}
	if t.Column("format") != nil {
		of["."] = "format"
	}
	return of
}

// keyOf is the key of the row's object.
func (o *StoredObject) keyOf(t *Table, r row) string {
	columns := o.columns(t)
	return placeholder.ReplaceAllStringFunc(o.Key.String(), func(part string) string {
		return fmt.Sprint(r[columns[strings.Trim(part, "<>")]])
	})
}

// What may stand in the name of a file: ids of ours and formats.
var plainFile = regexp.MustCompile(`^[a-z0-9][a-z0-9_]{0,63}\.[a-z0-9]{1,8}$`)

// fileOf is the name of the row's object in the archive: the row's id, and never a
// word of anybody's.
func (o *StoredObject) fileOf(t *Table, r row) (string, error) {
	_, extension, _ := strings.Cut(o.Key.String()[strings.LastIndexByte(o.Key.String(), '/')+1:], ".")
	if format := textOf(r["format"]); o.columns(t)["."] != "" && format != "" {
		extension = strings.Replace(format, "jpeg", "jpg", 1)
	}
	name := fmt.Sprint(r[t.Key[0]]) + "." + extension
	if !plainFile.MatchString(name) {
		return "", vault.ErrCorrupt
	}
	return o.Category + "/" + o.Export + "/" + name, nil
}

// checkExport finds what in the map an export could not follow.
func (s *Service) checkExport() error {
	for i := range s.Map.Objects {
		o := &s.Map.Objects[i]
		if o.Export == "" {
			continue
		}
		t := s.Map.Table(StoreMain, o.Table)
		columns := o.columns(t)
		for _, part := range placeholder.FindAllStringSubmatch(o.Key.String(), -1) {
			if columns[part[1]] == "" {
				return fmt.Errorf("data map: object %s: the table %s has no column for <%s>", o.Key, t.Name, part[1])
			}
		}
		if t.Export == "" {
			return fmt.Errorf("data map: object %s: the table %s is not exported", o.Key, t.Name)
		}
	}
	return nil
}
