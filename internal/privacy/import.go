package privacy

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/picture"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// exportFormat names the form of an archive.
const exportFormat = "zimage-export/1"

// importCategory is what an import brings back: what the person made. Everything
// else is of the service that kept it, or is to be said anew.
const importCategory = "content"

// What an archive may have. A file is never read beyond the size that the ZIP's
// directory says, so that what is bounded there is bounded as it is read.
const (
	importEntries  = 1 << 19 // files, and records of a list
	importTotal    = 1 << 40 // bytes, unpacked
	importList     = 4 << 30 // bytes of a list, which is read record by record
	importFile     = 128 << 20
	importManifest = 64 << 20
	importRecord   = 1 << 20
	importImages   = 64 // of a generation: what an engine's max_images may be
	// importSkew is how far the clocks of two machines of a service may be apart.
	importSkew = time.Minute
)

// Imported is what an import did.
type Imported struct {
	Records, Files int64
	There          int64 // records that were there already
	Deleted        int64 // that were deleted here, and stay so, with what belongs to them
	Over           int64 // that are past their window
	Unfinished     int64 // that were not at their end when the export was made

	// What the account had, for the room that may change it; empty: nothing.
	Username             string
	Profile, Preferences json.RawMessage
}

// ImportOptions for Import.
type ImportOptions struct {
	Archive io.ReaderAt
	Size    int64
	// Valid refuses JSON of a column that its room could not read; nil: none.
	Valid func(table, column string, text []byte) error
	// Progress is told how many records were written; may be nil.
	Progress func(records int64)
}

// importing is one import.
type importing struct {
	*Service
	o       ImportOptions
	owner   string
	files   map[string]*zip.File
	removed int64             // files that the export itself did without
	seen    map[string]string // ids of its records, and what is one of a kind, with their table
	without map[string]bool   // ids of records that are not imported
	stored  []string          // keys of the objects of the record that is imported
	done    Imported
}

// A badArchive says what is wrong with an archive.
func badArchive(format string, args ...any) error {
	return problem.New(problem.InvalidRequest, "The archive cannot be imported: "+fmt.Sprintf(format, args...)+".")
}

// Import puts generations and images of an export into an account, under their own
// ids and for the rest of their time. Every file must be what the manifest says, and
// every record one that could be of ours, which is looked at before anything is
// written. What is there already is left alone, so that a broken import can be
// repeated, and no object that a row makes is ever replaced.
func (s *Service) Import(ctx context.Context, owner string, o ImportOptions) (Imported, error) {
	if err := subject.May(ctx, s.DB, owner, subject.Account); err != nil {
		return Imported{}, away(err)
	}
	i := &importing{Service: s, o: o, owner: owner, files: map[string]*zip.File{}, seen: map[string]string{}, without: map[string]bool{}}
	z, err := zip.NewReader(o.Archive, o.Size)
	if err != nil {
		return Imported{}, badArchive("it is no whole ZIP file")
	}
	if err := i.index(z.File); err != nil {
		return Imported{}, err
	}
	if err := i.check(ctx); err != nil {
		return Imported{}, err
	}
	if err := i.account(); err != nil {
		return Imported{}, err
	}
	for _, list := range []func(context.Context, *Table) error{i.look, i.list} {
		for n := range s.Map.Tables { // in the map's order: generations before their images
			t := &s.Map.Tables[n]
			if t.Category != importCategory || t.Export == "" || t.Store != StoreMain {
				continue
			}
			if err := list(ctx, t); err != nil {
				return i.done, away(err)
			}
		}
	}
	return i.done, nil
}

// index finds the files, by what the ZIP's directory says of them.
func (i *importing) index(files []*zip.File) error {
	if len(files) > importEntries {
		return badArchive("it has more than %d files", importEntries)
	}
	lists := map[string]bool{}
	for n := range i.Map.Tables {
		if t := &i.Map.Tables[n]; t.Export != "" {
			lists[(&listing{table: t}).path("", ".json")] = true
		}
	}
	var packed, unpacked uint64
	for _, f := range files {
		if i.files[f.Name] != nil {
			return badArchive("it has two files of one name")
		}
		i.files[f.Name] = f
		most := uint64(importFile)
		switch {
		case f.Name == "manifest.json":
			most = importManifest
		case lists[f.Name]:
			most = importList
		}
		if f.UncompressedSize64 > most {
			return badArchive("a file in it is larger than any of ours")
		}
		if f.CompressedSize64 > uint64(i.o.Size) { //nolint:gosec // a file has no negative size
			return badArchive("its files are larger than itself")
		}
		packed, unpacked = packed+f.CompressedSize64, unpacked+f.UncompressedSize64
	}
	if packed > uint64(i.o.Size) { //nolint:gosec // the same; two files on the same bytes
		return badArchive("its files are larger than itself")
	}
	if unpacked > importTotal {
		return badArchive("it has more than %d bytes, unpacked", int64(importTotal))
	}
	return nil
}

// check compares every file with the manifest.
func (i *importing) check(ctx context.Context) error {
	var manifest struct {
		Format  string `json:"format"`
		Removed int64  `json:"removed_while_it_was_made"`
		Files   []struct {
			Path   string `json:"path"`
			SHA256 string `json:"sha256"`
		} `json:"files"`
	}
	f, err := i.open("manifest.json")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if json.NewDecoder(f).Decode(&manifest) != nil || manifest.Format != exportFormat {
		return badArchive("its manifest is not of the form %s", exportFormat)
	}
	i.removed = manifest.Removed
	named := map[string]bool{}
	for _, m := range manifest.Files {
		if named[m.Path] {
			return badArchive("its manifest names a file twice")
		}
		named[m.Path] = true
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := i.open(m.Path)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err = errors.Join(err, f.Close()); err != nil || hex.EncodeToString(h.Sum(nil)) != m.SHA256 {
			return badArchive("a file in it is not what its manifest says")
		}
	}
	return nil
}

func (i *importing) open(path string) (io.ReadCloser, error) {
	f := i.files[path]
	if f == nil {
		return nil, badArchive("a file is missing that an export has")
	}
	r, err := f.Open()
	if err != nil {
		return nil, badArchive("a file in it cannot be read")
	}
	return r, nil
}

// each calls f with every record of a list.
func (i *importing) each(t *Table, f func(map[string]json.RawMessage) error) error {
	file, err := i.open((&listing{table: t}).path("", ".json"))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	in := &bounded{r: file, most: importRecord}
	d := json.NewDecoder(in)
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return badArchive("%s is no list", t.Export)
	}
	for n := 0; d.More(); n++ {
		var record map[string]json.RawMessage
		switch err := d.Decode(&record); {
		case errors.Is(err, errBounded):
			return badArchive("a record of %s has more than %d bytes", t.Export, importRecord)
		case err != nil:
			return badArchive("a record of %s is none", t.Export)
		case n == importEntries:
			return badArchive("%s has more than %d records", t.Export, importEntries)
		}
		if err := f(record); err != nil {
			return err
		}
		in.most = d.InputOffset() + importRecord
	}
	if end, err := d.Token(); err != nil || end != json.Delim(']') {
		return badArchive("%s does not end", t.Export)
	}
	return nil
}

var errBounded = errors.New("more than may be read")

// bounded reads at most so many bytes. Of a list they are those before the end of
// the next record: its decoder asks for no more when it has a whole one.
type bounded struct {
	r          io.Reader
	read, most int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.read >= b.most {
		return 0, errBounded
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.most-b.read)])
	b.read += int64(n)
	return n, err
}

// account finds what the person told about themselves.
func (i *importing) account() error {
	return i.each(i.Map.Table(StoreMain, "users"), func(record map[string]json.RawMessage) error {
		_ = json.Unmarshal(record["username"], &i.done.Username) // none that is no text
		i.done.Profile, i.done.Preferences = given(record["profile"]), given(record["preferences"])
		return nil
	})
}

// given is nil for null.
func given(text json.RawMessage) json.RawMessage {
	if string(text) == "null" {
		return nil
	}
	return text
}

// look refuses, before anything is stored, what does not fit what is here or what
// else the archive has.
func (i *importing) look(ctx context.Context, t *Table) error {
	return i.each(t, func(record map[string]json.RawMessage) error {
		r, err := i.row(t, record)
		if err != nil {
			return err
		}
		id := textOf(r[t.Key[0]])
		once := []string{id}
		if t.Column("generation_id") != nil {
			if i.seen[textOf(r["generation_id"])] != "generations" {
				return badArchive("a record of %s is of no generation in it", t.Export)
			}
			once = append(once, fmt.Sprint(r["generation_id"], " ", r["n"]))
		}
		for _, what := range once {
			if i.seen[what] != "" {
				return badArchive("it has a record of %s twice", t.Export)
			}
			i.seen[what] = t.Name
		}
		if _, err := i.known(ctx, t, id); err != nil {
			return err
		}
		return i.free(ctx, t, r)
	})
}

// free refuses a record in whose place there is another one.
func (i *importing) free(ctx context.Context, t *Table, r row) error {
	if t.Column("generation_id") == nil {
		return nil
	}
	var there int
	err := i.DB.Get(ctx, &there, `SELECT count(*) FROM `+t.Name+` WHERE generation_id = ? AND n = ? AND `+t.Key[0]+` <> ?`, r["generation_id"], r["n"], r[t.Key[0]])
	if err == nil && there > 0 {
		err = problem.New(problem.Conflict, "Another record of this installation has the place of one in the archive.")
	}
	return err
}

// rests reports whether a record's generation has ended here and is still there:
// one that runs makes objects of its own, and one that was deleted takes none.
func (i *importing) rests(ctx context.Context, t *Table, r row) (bool, error) {
	if t.Column("generation_id") == nil {
		return true, nil
	}
	var n int
	err := i.DB.Get(ctx, &n, `SELECT count(*) FROM generations WHERE id = ? AND owner = ? AND status <> '' AND removed_at = 0`, r["generation_id"], i.owner)
	return n > 0, err
}

func (i *importing) list(ctx context.Context, t *Table) error {
	return i.each(t, func(record map[string]json.RawMessage) error {
		if err := subject.May(ctx, i.DB, i.owner, subject.Account); err != nil {
			return err // closed meanwhile
		}
		r, err := i.row(t, record)
		if err != nil {
			return err
		}
		id := textOf(r[t.Key[0]])
		switch known, err := i.known(ctx, t, id); {
		case err != nil:
			return err
		case known:
			i.done.There++
			return nil
		}
		var deleted int
		if err := i.Keys.Get(ctx, &deleted, `SELECT count(*) FROM erasure_journal WHERE id = ?`, id); err != nil {
			return err
		}
		i.without[id] = true
		switch {
		case slices.ContainsFunc(t.Keep, func(k Keep) bool { return k.over(i.Policy, r, i.Clock.Now()) }):
			i.done.Over++
			return nil
		case deleted > 0, i.without[textOf(r["generation_id"])]:
			i.done.Deleted++
			return nil
		case t.Column("job_id") != nil && textOf(r["status"]) == "":
			i.done.Unfinished++
			return nil
		}
		if hasContent(t, r) {
			switch rests, err := i.rests(ctx, t, r); {
			case err != nil:
				return err
			case !rests:
				i.done.Deleted++
				return nil
			}
		}
		delete(i.without, id)
		if err := i.free(ctx, t, r); err != nil {
			return err
		}
		i.stored = nil
		err = i.objects(ctx, t, r)
		if errors.Is(err, errRemoved) {
			return nil
		}
		if err == nil {
			err = i.insert(ctx, t, r)
		}
		if err != nil {
			return errors.Join(err, i.retract(ctx))
		}
		i.done.Records++
		if i.o.Progress != nil {
			i.o.Progress(i.done.Records)
		}
		return nil
	})
}

// retract deletes what was stored for a record whose account has been closed meanwhile:
// the erasure waits for no import, and may have been through the objects.
func (i *importing) retract(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	p, err := subject.Find(ctx, i.DB, i.owner)
	if err != nil || p.State == subject.Active || len(i.stored) == 0 {
		return err
	}
	return i.Objects.Delete(ctx, i.stored...)
}

// known reports whether the record is the person's already; it is an error when it
// is somebody else's.
func (i *importing) known(ctx context.Context, t *Table, id string) (bool, error) {
	var owner string
	err := i.DB.Get(ctx, &owner, `SELECT `+t.Subject+` FROM `+t.Name+` WHERE `+t.Key[0]+` = ?`, id)
	switch {
	case isNone(err):
		return false, nil
	case err == nil && owner != i.owner:
		return false, problem.New(problem.Conflict, "Another account of this installation has what is in the archive.")
	}
	return true, err
}

// What may stand readable in a row: words and ids of ours, and names of models.
var (
	importID   = regexp.MustCompile(`^[a-z]{3}_[0-9a-hjkmnp-tv-z]{26}$`)
	importWord = regexp.MustCompile(`^[A-Za-z0-9_.:/-]{0,128}$`)
)

// row is a record as the table has it, before it is sealed. What is not exported
// is as it is after a first attempt that left nothing to do.
func (i *importing) row(t *Table, record map[string]json.RawMessage) (row, error) {
	r := row{}
	for _, c := range t.Columns {
		text, there := record[c.Export]
		var ok bool
		switch {
		case c.Name == t.Subject:
			r[c.Name], ok = i.owner, true
		case c.Export == "":
			r[c.Name], ok = map[string]any{"text": "", "flag": int64(0), "number": int64(1), "time": int64(0)}[c.Type], true
		case !there:
		case c.Sealed == "json" && given(text) != nil:
			r[c.Name] = []byte(text) // as it was written: the order of its fields too
			ok = text[0] == '{' && (i.o.Valid == nil || i.o.Valid(t.Name, c.Name, text) == nil)
		case c.Sealed != "" && given(text) != nil:
			var words string
			ok = json.Unmarshal(text, &words) == nil
			r[c.Name] = []byte(words)
		default:
			r[c.Name], ok = valueFrom(c.Type, text)
		}
		if text, plain := r[c.Name].(string); plain && !importWord.MatchString(text) || c.Name == t.Key[0] && !importID.MatchString(text) {
			ok = false
		}
		switch c.Name {
		case "generation_id":
			ok = ok && importID.MatchString(textOf(r[c.Name]))
		case "n":
			n, _ := r[c.Name].(int64)
			ok = ok && n >= 0 && n < importImages
		}
		if !ok {
			return nil, badArchive("a record of %s has no proper %s", t.Export, c.Export)
		}
	}
	if name := i.untimely(t, r); name != "" {
		return nil, badArchive("a record of %s has no proper %s", t.Export, name)
	}
	// The window here may be shorter than it was there.
	for _, k := range t.Keep {
		if k.Window == "" || k.Until == "" {
			continue
		}
		if end, known := k.longest(i.Policy, time.UnixMilli(millisOf(r[k.From]))); known {
			r[k.Until] = min(millisOf(r[k.Until]), end.UnixMilli())
		}
	}
	return r, nil
}

// untimely names a time of a row that cannot be: one that is still to come, or that
// is before the row's beginning. When it ends it must say.
func (i *importing) untimely(t *Table, r row) string {
	began := millisOf(r["created_at"])
	if began == 0 {
		return "created_at"
	}
	ends := map[string]bool{}
	for _, k := range t.Keep {
		ends[k.Until] = k.Until != ""
	}
	for _, c := range t.Columns {
		if at := millisOf(r[c.Name]); c.Type == "time" && (ends[c.Name] || at != 0) {
			if at < began-importSkew.Milliseconds() || !ends[c.Name] && at > i.Clock.Millis() {
				return c.Name
			}
		}
	}
	if at := millisOf(r["finished_at"]); at > 0 && at < millisOf(r["started_at"])-importSkew.Milliseconds() {
		return "finished_at"
	}
	return ""
}

// valueFrom is the inverse of value, for what is not sealed.
func valueFrom(kind string, text json.RawMessage) (any, bool) {
	var v any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil, false
	}
	switch text, isText := v.(string); kind {
	case "bytes":
		if v == nil {
			return nil, true
		}
		raw, err := base64.StdEncoding.DecodeString(text)
		return raw, isText && err == nil
	case "text":
		return text, isText || v == nil
	case "time":
		if v == nil {
			return int64(0), true
		}
		at, err := time.Parse(time.RFC3339Nano, text)
		return at.UnixMilli(), err == nil && at.UnixMilli() > 0
	case "number":
		if v == nil {
			return int64(0), true
		}
		number, _ := v.(json.Number)
		n, err := number.Int64()
		return n, err == nil
	case "flag":
		yes, isFlag := v.(bool)
		return int64(flag(yes)), isFlag || v == nil
	}
	return nil, false // no list of words is anybody's content
}

// objects stores what belongs to a row: first the object, then its row, so that a
// broken import leaves objects that are swept and no row without its own.
func (i *importing) objects(ctx context.Context, t *Table, r row) error {
	if !hasContent(t, r) {
		return nil
	}
	for n := range i.Map.Objects {
		o := &i.Map.Objects[n]
		if o.Export == "" || o.Table != t.Name || t.Store != StoreMain {
			continue
		}
		path, err := o.fileOf(t, r)
		if err != nil {
			return badArchive("a record of %s names no file", t.Export)
		}
		if i.files[path] == nil && i.removed > 0 {
			return errRemoved
		}
		data, err := i.read(path, r)
		if err != nil {
			return err
		}
		small, err := checkPicture(data, r)
		if err != nil {
			return err
		}
		key := o.keyOf(t, r)
		if err := i.put(ctx, t, r, o, key, data); err != nil {
			return err
		}
		if thumb := i.Map.Object(strings.TrimSuffix(key, ".img") + ".thumb"); thumb != nil {
			if err := i.put(ctx, t, r, thumb, strings.TrimSuffix(key, ".img")+".thumb", small); err != nil {
				return err
			}
		}
		i.done.Files++
	}
	return nil
}

func (i *importing) read(path string, r row) ([]byte, error) {
	f, err := i.open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if size := i.files[path].UncompressedSize64; size > importFile || millisOf(r["bytes"]) != int64(size) {
		return nil, badArchive("a picture is not what its record says")
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, badArchive("a file in it cannot be read")
	}
	return data, nil
}

// checkPicture holds a picture against its record, and makes its thumbnail.
func checkPicture(data []byte, r row) (thumbnail []byte, err error) {
	sum := sha256.Sum256(data)
	want, _ := r["sha256"].([]byte)
	begins := map[string]string{picture.PNG: "\x89PNG\r\n", picture.JPEG: "\xff\xd8\xff", picture.WebP: "RIFF"}[textOf(r["format"])]
	if hex.EncodeToString(sum[:]) != string(want) || r["bytes"] != int64(len(data)) || begins == "" || !bytes.HasPrefix(data, []byte(begins)) {
		return nil, badArchive("a picture is not what its record says")
	}
	p, err := picture.Finish(data, picture.Options{Format: textOf(r["format"])})
	if err != nil {
		return nil, badArchive("a picture in it cannot be read")
	}
	return p.Thumbnail, nil
}

func (i *importing) put(ctx context.Context, t *Table, r row, o *StoredObject, key string, data []byte) error {
	var sealed bytes.Buffer
	w, err := i.Vault.SealWriter(ctx, i.owner, &sealed, o.Bound(key))
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	err = i.Objects.Put(ctx, key, bytes.NewReader(sealed.Bytes()), int64(sealed.Len()))
	if errors.Is(err, objects.ErrExists) { // of an import that was broken off, if no row needs it
		if err := i.unneeded(ctx, t, r, o); err != nil {
			return err
		}
		if err = i.Objects.Delete(ctx, key); err == nil {
			err = i.Objects.Put(ctx, key, bytes.NewReader(sealed.Bytes()), int64(sealed.Len()))
		}
	}
	i.stored = append(i.stored, key) // perhaps: an answer may be lost
	return err
}

// unneeded refuses to replace an object that some row makes.
func (i *importing) unneeded(ctx context.Context, t *Table, r row, o *StoredObject) error {
	var where []string
	var args []any
	for part, column := range o.columns(t) {
		if part != "." {
			where, args = append(where, column+` = ?`), append(args, r[column])
		}
	}
	var n int
	err := i.DB.Get(ctx, &n, `SELECT count(*) FROM `+t.Name+` WHERE `+strings.Join(where, ` AND `), args...)
	if err == nil && n > 0 {
		err = problem.New(problem.Conflict, "Another record of this installation has the place of one in the archive.")
	}
	return err
}

func (i *importing) insert(ctx context.Context, t *Table, r row) error {
	var names []string
	var args []any
	for _, c := range t.Columns {
		v := r[c.Name]
		if plain, ok := v.([]byte); ok && c.Sealed != "" {
			sealed, err := i.Vault.Seal(ctx, i.owner, plain, vault.Column(t.Name, c.Name, textOf(r[t.Key[0]])))
			if err != nil {
				return err
			}
			v = sealed
		}
		names, args = append(names, c.Name), append(args, v)
	}
	return i.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.Enter(ctx, tx, i.owner, subject.Account); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO `+t.Name+` (`+strings.Join(names, ", ")+`) VALUES (`+db.Marks(len(names))+`)`, args...)
		return err
	})
}
