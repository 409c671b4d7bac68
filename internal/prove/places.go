package prove

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/db"
	"zimage/internal/objects"
)

// A Place is somewhere where something of a person could be left.
type Place struct {
	Name string
	// Look gives everything there to the search.
	Look func(ctx context.Context, s *Search) error
	// Plant leaves a canary there and says how it is written; remove takes it away
	// again. Nil where nothing of ours may be put, as Why says.
	Plant func(ctx context.Context, c Canary) (as []Kind, remove func(context.Context) error, err error)
	Why   string
	// Copies is how many canaries Plant leaves; 0 is 1.
	Copies int
	// Readable says why something of a living account stands there as it is; empty
	// where nothing may. After the erasure nothing may anywhere.
	Readable string
	// Open are inputs that may be read there at any time, and why.
	Open map[string]string
	// Filled is a place in which something must lie: to find nothing in nothing proves
	// nothing.
	Filled bool
}

// A Finding is a canary where none may be: never what stands around it.
type Finding struct {
	Where string `json:"where"`           // within the place: a table, a kind of object, a file
	Kind  Kind   `json:"kind"`            // how it is written
	Input string `json:"input,omitempty"` // what it was sent as, where that can be told
	Times int    `json:"times"`
	Open  string `json:"open,omitempty"` // why it may stand there
}

// A Count is what one look at a place came to.
type Count struct {
	Things  int       `json:"things"` // rows, objects, keys, files
	Bytes   int64     `json:"bytes"`
	Older   int       `json:"older,omitempty"`  // things from before this run, which cannot hold what it made up
	Unread  int       `json:"unread,omitempty"` // things that could not be read
	Empty   []string  `json:"empty,omitempty"`  // folders and files in which nothing lies
	Found   []Finding `json:"found"`
	Request bool      `json:"-"` // the log knows our requests
}

// A Search looks for one canary in one place.
type Search struct {
	finder *finder
	inputs []string
	since  time.Time // nothing older can hold it
	ids    []string  // ids of our requests, which a log must know
	open   map[string]string
	count  Count
}

// slack is how far the clocks of stores may be off.
const slack = 10 * time.Minute

// old reports whether a thing is older than this run, and counts it then.
func (s *Search) old(modified time.Time) bool {
	if modified.Before(s.since.Add(-slack)) {
		s.count.Older++
		return true
	}
	return false
}

func (s *Search) found(where string) func(hit) {
	return func(h hit) {
		same := func(f Finding) bool { return f.Where == where && f.Kind == h.kind && f.Input == h.input }
		if i := slices.IndexFunc(s.count.Found, same); i >= 0 {
			s.count.Found[i].Times++
			return
		}
		s.count.Found = append(s.count.Found, Finding{Where: where, Kind: h.kind, Input: h.input, Times: 1, Open: s.open[h.input]})
	}
}

// Read looks through a thing; its name too, which must not be told then.
func (s *Search) Read(where string, r io.Reader) error {
	s.count.Things++
	n, err := s.finder.search(r, s.inputs, s.found(where))
	s.count.Bytes += n
	return err
}

// Text looks through something that is in memory.
func (s *Search) Text(where string, b []byte) {
	s.count.Bytes += int64(len(b))
	s.name(where, b)
}

// name is Text for what only says where something lies.
func (s *Search) name(where string, b []byte) {
	s.finder.block(b, 0, true, s.inputs, s.found(where))
}

// plants is the canary in all given kinds.
func plants(c Canary, kinds []Kind) []byte {
	all := make([][]byte, len(kinds))
	for i, k := range kinds {
		all[i] = c.Encode(k)
	}
	return bytes.Join(all, []byte("\n"))
}

const rowsAtOnce = 500

// Rows is a database as everybody reads it: each row of each table, every column;
// and what PostgreSQL remembers of columns to plan by. insert and remove are of a
// row that harms nobody.
func Rows(name string, d *db.DB, insert, remove string, args func(text string) []any) Place {
	return Place{
		Name: name, Filled: true,
		Look: func(ctx context.Context, s *Search) error {
			tables, err := db.Tables(ctx, d)
			if err != nil {
				return err
			}
			for _, t := range tables {
				if err := lookAtTable(ctx, d, t, s); err != nil {
					return fmt.Errorf("read %s: %w", t.Name, err)
				}
			}
			if d.Dialect() != db.Postgres {
				return nil
			}
			rows, err := d.Maps(ctx, `SELECT tablename || '.' || attname AS "column", concat_ws(' ', most_common_vals, histogram_bounds, most_common_elems) AS "values"
				FROM pg_stats WHERE schemaname = current_schema()`)
			for _, r := range rows {
				s.count.Things++
				s.Text("statistics of "+textOf(r["column"]), []byte(textOf(r["values"])))
			}
			return err
		},
		Plant: func(ctx context.Context, c Canary) ([]Kind, func(context.Context) error, error) {
			all := args(string(plants(c, textual)))
			_, err := d.Exec(ctx, insert, all...)
			return textual, func(ctx context.Context) error {
				_, err := d.Exec(ctx, remove, all[0])
				return err
			}, err
		},
	}
}

func textOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}

func lookAtTable(ctx context.Context, d *db.DB, t db.Table, s *Search) error {
	order, key := t.Key, strings.Join(t.Key, ", ") // without a key, everything is one page
	var after []any
	for {
		query := "SELECT * FROM " + t.Name
		if after != nil {
			query += " WHERE (" + key + ") > (" + db.Marks(len(order)) + ")"
		}
		if len(order) > 0 {
			query += fmt.Sprintf(" ORDER BY %s LIMIT %d", key, rowsAtOnce)
		}
		rows, err := d.Maps(ctx, query, after...)
		if err != nil {
			return err
		}
		for _, r := range rows {
			s.count.Things++
			for column, v := range r {
				switch v := v.(type) {
				case string:
					s.Text(t.Name+"."+column, []byte(v))
				case []byte:
					s.Text(t.Name+"."+column, v)
				default:
					s.count.Bytes += 8
				}
			}
		}
		if len(order) == 0 || len(rows) < rowsAtOnce {
			return nil
		}
		after = after[:0]
		for _, column := range order {
			after = append(after, rows[len(rows)-1][column])
		}
	}
}

// Stored is an object store: every version of every object, its key and what is
// stored beside it.
func Stored(store objects.Store, kind func(key string) string) Place {
	return Place{
		Name: "objects", Filled: true,
		Look: func(ctx context.Context, s *Search) error {
			raw, ok := store.(objects.Raw)
			if !ok {
				return errors.New("this object store does not show its versions")
			}
			return raw.Versions(ctx, func(key string, modified time.Time, open func() (io.ReadCloser, error)) error {
				where := kind(key)
				s.Text("keys of "+where, []byte(key))
				if s.old(modified) {
					return nil
				}
				if open == nil {
					s.count.Things++
					return nil
				}
				body, err := open()
				if errors.Is(err, objects.ErrNotExist) || errors.Is(err, fs.ErrNotExist) {
					return nil // deleted meanwhile
				}
				if err != nil {
					return err
				}
				return errors.Join(s.Read(where, body), body.Close())
			})
		},
		Plant: func(ctx context.Context, c Canary) ([]Kind, func(context.Context) error, error) {
			key, text := "probe/prove-"+string(c)+".bin", plants(c, Kinds)
			err := store.Put(ctx, key, bytes.NewReader(text), int64(len(text)))
			return Kinds, func(ctx context.Context) error { return store.Delete(ctx, key) }, err
		},
	}
}

// Rings is Redis: every key, and what is under it.
func Rings(client redis.UniversalClient) Place {
	return Place{
		Name: "redis",
		Look: func(ctx context.Context, s *Search) error {
			keys := client.Scan(ctx, 0, "*", 1000).Iterator()
			for keys.Next(ctx) {
				if err := lookAtKey(ctx, client, keys.Val(), s); err != nil {
					return err
				}
			}
			return keys.Err()
		},
		Plant: func(ctx context.Context, c Canary) ([]Kind, func(context.Context) error, error) {
			key := "zimage:rate:prove-" + string(c)
			err := client.Set(ctx, key, plants(c, Kinds), 5*time.Minute).Err()
			return Kinds, func(ctx context.Context) error { return client.Del(ctx, key).Err() }, err
		},
	}
}

func lookAtKey(ctx context.Context, client redis.UniversalClient, key string, s *Search) error {
	where := "keys"
	if first, _, ok := strings.Cut(key, ":"); ok {
		where = first + ":…"
	}
	s.count.Things++
	s.Text(where, []byte(key))
	kind, err := client.Type(ctx, key).Result()
	if err != nil {
		return err
	}
	var all []string
	switch kind {
	case "none": // gone meanwhile
		return nil
	case "string":
		var one string
		one, err = client.Get(ctx, key).Result()
		all = []string{one}
	case "list":
		all, err = client.LRange(ctx, key, 0, -1).Result()
	case "set":
		all, err = client.SMembers(ctx, key).Result()
	case "zset":
		all, err = client.ZRange(ctx, key, 0, -1).Result()
	case "hash":
		var fields map[string]string
		fields, err = client.HGetAll(ctx, key).Result()
		for name, value := range fields {
			all = append(all, name, value)
		}
	case "stream":
		var entries []redis.XMessage
		entries, err = client.XRange(ctx, key, "-", "+").Result()
		for _, e := range entries {
			for name, value := range e.Values {
				all = append(all, name, fmt.Sprint(value))
			}
		}
	default: // as it goes into a dump
		var one string
		one, err = client.Dump(ctx, key).Result()
		all = []string{one}
	}
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	for _, one := range all {
		s.Text(where, []byte(one))
	}
	return nil
}

// Dumps are the files of Redis in a folder: its dump, which is made anew for each
// look, and its log of all that it was ever told.
func Dumps(client redis.UniversalClient, folder string) Place {
	p := Folder("redis files", []string{folder}, nil)
	look := p.Look
	p.Look = func(ctx context.Context, s *Search) error {
		if err := dump(ctx, client); err != nil {
			return fmt.Errorf("have it write its dump: %w", err)
		}
		return look(ctx, s)
	}
	p.Plant = func(ctx context.Context, c Canary) ([]Kind, func(context.Context) error, error) {
		key := "zimage:rate:prove-" + string(c)
		_, err := client.Pipelined(ctx, func(all redis.Pipeliner) error {
			all.Set(ctx, key, c.Encode(Plain), 5*time.Minute)
			all.Set(ctx, key+"-long", plants(c, Kinds), 5*time.Minute) // a dump may compress it
			return nil
		})
		return []Kind{Plain, Compressed}, func(ctx context.Context) error { return client.Del(ctx, key, key+"-long").Err() }, err
	}
	p.Filled, p.Copies = true, 1
	return p
}

// dump has Redis write its dump and waits for it.
func dump(ctx context.Context, client redis.UniversalClient) error {
	started := false
	for range 600 { // a minute
		said, err := client.Info(ctx, "persistence").Result()
		if err != nil {
			return err
		}
		switch busy := strings.Contains(said, "rdb_bgsave_in_progress:1") || strings.Contains(said, "aof_rewrite_in_progress:1"); {
		case busy:
		case started && strings.Contains(said, "rdb_last_bgsave_status:ok"):
			return nil
		case started:
			return errors.New("it failed")
		default:
			if err := client.BgSave(ctx).Err(); err != nil {
				return err
			}
			started = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return errors.New("it is not written within a minute")
}

// Folder is all files below the given files and folders, read as raw bytes. skip
// leaves out what is looked at as another place; it may be nil.
func Folder(name string, paths []string, skip func(path string) bool) Place {
	folders := slices.DeleteFunc(slices.Clone(paths), func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && !info.IsDir()
	})
	p := Place{
		Name: name, Copies: len(folders),
		Look: func(ctx context.Context, s *Search) error {
			for _, path := range paths {
				before, older := s.count.Bytes, s.count.Older
				if err := lookAtFiles(ctx, path, skip, s); err != nil {
					return err
				}
				if s.count.Bytes == before && s.count.Older == older {
					s.count.Empty = append(s.count.Empty, path)
				}
			}
			return nil
		},
	}
	p.Plant = func(_ context.Context, c Canary) ([]Kind, func(context.Context) error, error) {
		name, text := "zimage-prove-"+strconv.Itoa(os.Getpid())+".tmp", plants(c, Kinds)
		var failed error
		for _, folder := range folders {
			failed = errors.Join(failed, os.WriteFile(filepath.Join(folder, name), text, 0o600))
		}
		return Kinds, func(context.Context) (failed error) {
			for _, folder := range folders {
				failed = errors.Join(failed, os.Remove(filepath.Join(folder, name)))
			}
			return failed
		}, failed
	}
	return p
}

// files visits every file below a folder, or the one file. What lies there may be
// anybody's, so no link leads out of it.
func files(ctx context.Context, path string, visit func(root *os.Root, name string, entry fs.DirEntry, err error) error) error {
	folder, start := path, "."
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		folder, start = filepath.Split(path)
	}
	root, err := os.OpenRoot(filepath.Clean(folder))
	if err != nil {
		return err
	}
	err = fs.WalkDir(root.FS(), start, func(name string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return visit(root, name, entry, err)
	})
	return errors.Join(err, root.Close())
}

func lookAtFiles(ctx context.Context, path string, skip func(string) bool, s *Search) error {
	return files(ctx, path, func(root *os.Root, name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != ".":
			return nil // gone meanwhile
		case err != nil && name == ".":
			return err
		case err != nil:
			s.count.Unread++
			return fs.SkipDir
		case skip != nil && skip(filepath.Join(root.Name(), name)):
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		where, before := name, len(s.count.Found)
		s.name("names of files", []byte(name))
		if len(s.count.Found) > before {
			where = "a file whose name holds one"
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		if err != nil || s.old(info.ModTime()) {
			return nil //nolint:nilerr // gone meanwhile
		}
		f, err := root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = errors.Join(s.Read(where, f), f.Close())
		}
		if err != nil {
			s.count.Unread++
		}
		return nil
	})
}

// Logs are files that somebody else writes: nothing is planted in them, but they
// must know requests of this run, or else they are others.
func Logs(paths []string) Place {
	p := Folder("logs", paths, nil)
	p.Plant, p.Filled = nil, true
	p.Why = "ids of our requests stand in it"
	look := p.Look
	p.Look = func(ctx context.Context, s *Search) error {
		if err := look(ctx, s); err != nil {
			return err
		}
		for _, path := range paths {
			if holdsAny(ctx, path, s.ids) {
				s.count.Request = true
				break
			}
		}
		return nil
	}
	return p
}

// holdsAny reports whether any file there holds any of the words.
func holdsAny(ctx context.Context, path string, words []string) (found bool) {
	err := files(ctx, path, func(root *os.Root, name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // it is counted where it is searched
		}
		text, err := root.ReadFile(name)
		for _, w := range words {
			if err == nil && bytes.Contains(text, []byte(w)) {
				found = true
				return fs.SkipAll
			}
		}
		return nil
	})
	return found && err == nil
}
