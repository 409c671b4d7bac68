package privacy

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"zimage/internal/jobs"
	"zimage/internal/objects"
)

var (
	errMissing = errors.New("an object of the export is missing")
	// errRemoved says that what was to be exported was removed meanwhile.
	errRemoved = errors.New("removed meanwhile")
)

// made is what became of a whole archive.
type made struct {
	Bytes, Files, Records int64
	Checksums             Checksums
}

// An archive is written from its first byte to its last: packed, sealed and
// stored as it is made. Its memory grows by its index alone, a few hundred bytes
// for each file.
type archive struct {
	s     *Service
	ctx   context.Context // of the attempt
	owner string
	id    string
	at    time.Time
	step  func() // one more record or file is in it

	zip     *zip.Writer
	files   []file
	lists   []*listing
	records int64
	removed int64 // files that went while it was made
}

// A file in the archive.
type file struct {
	Path   string
	Bytes  int64
	SHA256 [sha256.Size]byte
}

// A listing is the rows of one table.
type listing struct {
	table   *Table
	walk    *walk
	objects []*StoredObject

	Records int64
	Pages   int
}

// Path of the list's JSON; Page of the page to read it by.
func (l *listing) path(folder, suffix string) string {
	return folder + l.table.Category + "/" + l.table.Export + suffix
}

// Page is the path of the nth page, from 1.
func (l *listing) page(n int) string {
	return "pages/" + l.table.Category + "-" + l.table.Export + "-" + strconv.Itoa(n) + ".html"
}

// makeArchive makes an archive and stores it under the attempt's own key.
func (s *Service) makeArchive(ctx context.Context, run *jobs.Run, r exportRow) (made, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	read, write := io.Pipe()
	stored := make(chan error, 1)
	go func() {
		_, err := s.Objects.PutStream(ctx, exportKey(r.Owner, r.ID, run.Attempt), read)
		_ = read.CloseWithError(err) // whoever still writes must not wait
		stored <- err
	}()
	m, err := s.writeArchive(ctx, run, r, write)
	_ = write.CloseWithError(err) // nil: its end
	if put := <-stored; err == nil || errors.Is(err, put) {
		err = put
	}
	return m, err
}

func (s *Service) writeArchive(ctx context.Context, run *jobs.Run, r exportRow, w io.Writer) (made, error) {
	buffered := bufio.NewWriterSize(w, 256<<10)
	sealing, err := s.Vault.SealWriter(ctx, r.Owner, buffered, exportData(r.Owner, r.ID, run.Attempt))
	if err != nil {
		return made{}, err
	}
	whole := &measured{w: sealing, hash: sha256.New()}
	a := &archive{s: s, ctx: ctx, owner: r.Owner, id: r.ID, at: s.Clock.Now().UTC(), zip: zip.NewWriter(whole)}
	if err := a.write(run); err != nil {
		return made{}, err
	}
	manifest := a.files[len(a.files)-1]
	for _, end := range []func() error{a.zip.Close, sealing.Close, buffered.Flush} {
		if err := end(); err != nil {
			return made{}, err
		}
	}
	return made{Bytes: whole.n, Files: int64(len(a.files)), Records: a.records,
		Checksums: Checksums{Archive: hex.EncodeToString(whole.hash.Sum(nil)), Manifest: hex.EncodeToString(manifest.SHA256[:])}}, nil
}

// measured counts and hashes what goes through.
type measured struct {
	w    io.Writer
	n    int64
	hash hash.Hash
}

func (m *measured) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.n += int64(n)
	m.hash.Write(p[:n])
	return n, err
}

// write fills the archive: what explains it, the lists, then files and pages, and
// at the end what could not be known before.
func (a *archive) write(run *jobs.Run) error {
	var total, done int64
	for i := range a.s.Map.Tables {
		t := &a.s.Map.Tables[i]
		if t.Export == "" {
			continue
		}
		l := &listing{table: t, walk: a.s.walk(t, a.owner)}
		for i := range a.s.Map.Objects {
			if o := &a.s.Map.Objects[i]; o.Export != "" && o.Table == t.Name && t.Store == StoreMain {
				l.objects = append(l.objects, o)
			}
		}
		a.lists = append(a.lists, l)
		n, err := l.walk.count(a.ctx)
		if err != nil {
			return err
		}
		total += 2 * n
	}
	a.step = func() { done++; run.Progress(min(done, total), total) }
	if err := a.add("README.txt", zip.Deflate, a.readme); err != nil {
		return err
	}
	for _, l := range a.lists {
		if err := a.add(l.path("schemas/", ".schema.json"), zip.Deflate, l.table.schema); err != nil {
			return err
		}
	}
	for _, l := range a.lists {
		if err := a.add(l.path("", ".json"), zip.Deflate, func(w io.Writer) error { return a.json(w, l) }); err != nil {
			return err
		}
	}
	for _, l := range a.lists {
		if err := a.pages(l); err != nil {
			return err
		}
	}
	if err := a.add("index.html", zip.Deflate, a.index); err != nil {
		return err
	}
	return a.add("manifest.json", zip.Deflate, a.manifest)
}

// add writes one file.
func (a *archive) add(path string, method uint16, write func(io.Writer) error) error {
	w, err := a.zip.CreateHeader(&zip.FileHeader{Name: path, Method: method, Modified: a.at})
	if err != nil {
		return err
	}
	m := &measured{w: w, hash: sha256.New()}
	if err := write(m); err != nil {
		return err
	}
	f := file{Path: path, Bytes: m.n}
	m.hash.Sum(f.SHA256[:0])
	a.files = append(a.files, f)
	return nil
}

// json writes a list as an array, one record a line.
func (a *archive) json(w io.Writer, l *listing) error {
	out := bufio.NewWriter(w)
	before := "[\n"
	walk := *l.walk
	for {
		rows, err := walk.next(a.ctx)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			break
		}
		for _, r := range rows {
			a.step()
			if !a.s.settle(l.table, r) {
				continue
			}
			fields, err := a.s.record(a.ctx, l.table, a.owner, r)
			if err != nil {
				return err
			}
			line, err := encode(fields)
			if err != nil {
				return err
			}
			_, _ = out.WriteString(before) // Flush tells
			_, _ = out.Write(line)
			before = ",\n"
			l.Records++
			a.records++
		}
	}
	if l.Records == 0 {
		before = "["
	}
	_, _ = out.WriteString(strings.TrimSuffix(before, ",\n") + "\n]\n")
	l.walk.until = walk.last // what is added from now on has no record, and so no file and no page
	return out.Flush()
}

// encode writes the fields in the order of the map.
func encode(fields []field) ([]byte, error) {
	var b bytes.Buffer
	for i, f := range fields {
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.WriteByte("{,"[min(i, 1)])
		fmt.Fprintf(&b, "%q:%s", f.name, value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// pages writes the files of a list and pages to read it by, together: a page shows
// the files that are really there.
func (a *archive) pages(l *listing) error {
	if l.walk.until == nil {
		return nil
	}
	walk := *l.walk
	rows, err := walk.next(a.ctx)
	for ; err == nil && len(rows) > 0; rows, err = walk.next(a.ctx) {
		var shown []shownRecord
		for _, r := range rows {
			a.step()
			if !a.s.settle(l.table, r) {
				continue
			}
			record, err := a.show(l, r)
			if err != nil {
				return err
			}
			shown = append(shown, record)
		}
		l.Pages++
		more := fmt.Sprint(walk.last) != fmt.Sprint(walk.until)
		if err := a.add(l.page(l.Pages), zip.Deflate, func(w io.Writer) error { return writePage(w, l, shown, more) }); err != nil {
			return err
		}
	}
	return err
}

// show opens one row to be read, after its files were written.
func (a *archive) show(l *listing, r row) (shownRecord, error) {
	fields, err := a.s.record(a.ctx, l.table, a.owner, r)
	if err != nil {
		return shownRecord{}, err
	}
	record := shownRecord{Fields: show(fields)}
	if !hasContent(l.table, r) {
		return record, nil
	}
	if record.Above, err = a.above(l, r); err != nil {
		return shownRecord{}, err
	}
	for _, o := range l.objects {
		path, err := a.object(l, o, r)
		switch {
		case errors.Is(err, errRemoved):
			a.removed++
		case err != nil:
			return shownRecord{}, err
		default:
			record.Files = append(record.Files, path)
		}
	}
	return record, nil
}

// above is what its person wrote in the row that a row with files belongs to: the
// prompt stands beside its pictures.
func (a *archive) above(l *listing, r row) ([]shownField, error) {
	for _, o := range l.objects {
		t, parent, err := l.walk.parent(a.ctx, o, r)
		if err != nil || parent == nil {
			return nil, err
		}
		var fields []field
		for _, c := range t.Columns {
			if c.Sealed == "" || c.Export == "" {
				continue
			}
			v, err := a.s.value(a.ctx, t, &c, a.owner, parent)
			if err != nil {
				return nil, err
			}
			fields = append(fields, field{c.Export, v})
		}
		return show(fields), nil
	}
	return nil, nil
}

// object unseals the object of a row into a file. One that is missing is an error,
// unless its row has lost it meanwhile: errRemoved.
func (a *archive) object(l *listing, o *StoredObject, r row) (path string, err error) {
	if path, err = o.fileOf(l.table, r); err != nil {
		return "", err
	}
	key := o.keyOf(l.table, r)
	sealed, _, err := a.s.Objects.Get(a.ctx, key)
	if errors.Is(err, objects.ErrNotExist) {
		now, err := l.walk.again(a.ctx, r)
		switch {
		case err != nil:
			return "", err
		case now == nil, !a.s.settle(l.table, now), !hasContent(l.table, now):
			return "", errRemoved
		}
		return "", errMissing
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = sealed.Close() }()
	plain, err := a.s.Vault.UnsealReader(a.ctx, a.owner, sealed, o.Bound(key))
	if err != nil {
		return "", err
	}
	// Pictures are compressed already.
	return path, a.add(path, zip.Store, func(w io.Writer) error {
		_, err := io.Copy(w, plain)
		return err
	})
}

// schema writes the JSON Schema of a table's list.
func (t *Table) schema(w io.Writer) error {
	properties, required := map[string]any{}, []string{}
	add := func(name, kind, holds string) {
		p := map[string]any{"description": holds}
		switch kind {
		case "number":
			p["type"] = []string{"integer", "null"}
		case "flag":
			p["type"] = []string{"boolean", "null"}
		case "words":
			p["type"], p["items"] = []string{"array", "null"}, map[string]any{"type": "string"}
		case "time":
			p["type"], p["format"] = []string{"string", "null"}, "date-time"
		case "object":
			p["type"] = []string{"object", "null"}
		default:
			p["type"] = []string{"string", "null"}
		}
		properties[name] = p
		required = append(required, name)
	}
	for _, c := range t.Columns {
		if c.Sealed == "json" || c.Sealed == sealedLedger {
			c.Type = "object"
		}
		if c.Export != "" {
			add(c.Export, c.Type, c.Holds)
		}
	}
	for _, b := range t.Beside {
		add(b.Name, b.Type, b.Holds)
	}
	return indented(w, map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": t.Export, "description": t.Holds, "type": "array",
		"items": map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false},
	})
}

func indented(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// An omission is what is left out, and why.
type omission struct {
	List  string `json:"list,omitempty"` // empty: none of it is exported
	Holds string `json:"holds"`
	Why   string `json:"why"`
}

// omissions are by the map all that is a person's and not exported.
func (m *Map) omissions() []omission {
	var all []omission
	for _, t := range m.Tables {
		for _, c := range t.Columns {
			if c.NotExported+c.Without == "" {
				continue
			}
			o := omission{Holds: c.Holds, Why: c.NotExported + c.Without}
			if t.Export != "" {
				o.List = t.Category + "/" + t.Export
			} else {
				o.Holds = strings.TrimSuffix(t.Holds, ".") + ": " + c.Holds
			}
			all = append(all, o)
		}
	}
	for _, o := range m.Objects {
		if o.Why != "" {
			all = append(all, omission{Holds: o.Holds, Why: o.Why})
		}
	}
	return all
}

// kept says in words how long the rows of a table are kept.
func (s *Service) kept(t *Table) []string {
	var all []string
	for _, k := range t.Keep {
		what := "the record is deleted"
		if k.Then == Null {
			what = strings.ReplaceAll(strings.Join(k.Columns, ", "), "_", " ") + " are removed"
		}
		say := func(format string, args ...any) {
			text := fmt.Sprintf(format, args...)
			if k.Why != "" {
				text += " (" + strings.TrimSuffix(k.Why, ".") + ")"
			}
			all = append(all, text+".")
		}
		switch {
		case k.AsLongAs == "account":
			say("As long as the account")
		case k.AsLongAs != "":
			say("As long as needed")
		case k.Window != "":
			say("At most %s after %s: then %s", k.span(s.Policy), k.From, what)
		case k.For != "":
			say("%s after %s: then %s", strings.TrimSuffix(k.For, "0s")+map[bool]string{true: "At once"}[k.For == "0s"], k.From, what)
		default:
			say("Until %s: then %s", k.Until, what)
		}
	}
	return all
}

// manifest writes what is in the archive, one file a line.
func (a *archive) manifest(w io.Writer) error {
	type kept struct {
		Path    string   `json:"path"`
		Schema  string   `json:"schema"`
		Holds   string   `json:"holds"`
		Records int64    `json:"records"`
		Kept    []string `json:"kept"`
	}
	var lists []kept
	for _, l := range a.lists {
		lists = append(lists, kept{l.path("", ".json"), l.path("schemas/", ".schema.json"), l.table.Holds, l.Records, a.s.kept(l.table)})
	}
	checkpoint, err := a.s.ledger.public(a.ctx, a.s.DB)
	if err != nil {
		return err
	}
	head, err := json.MarshalIndent(map[string]any{
		"format": exportFormat, "export": a.id, "subject": a.owner, "made_at": stamp(a.at), "records": a.records,
		"lists": lists, "left_out": a.s.Map.omissions(), "removed_while_it_was_made": a.removed,
		"checkpoint": checkpoint,
	}, "", "  ")
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	_, _ = out.Write(bytes.TrimSuffix(head, []byte("\n}"))) // Flush tells
	_, _ = out.WriteString(",\n  \"files\": [\n")
	for i, f := range a.files {
		line, err := json.Marshal(map[string]any{"path": f.Path, "bytes": f.Bytes, "sha256": hex.EncodeToString(f.SHA256[:])})
		if err != nil {
			return err
		}
		if i > 0 {
			_, _ = out.WriteString(",\n")
		}
		_, _ = out.WriteString("    " + string(line))
	}
	_, _ = out.WriteString("\n  ]\n}\n")
	return out.Flush()
}
