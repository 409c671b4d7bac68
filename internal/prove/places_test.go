package prove

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/redis/go-redis/v9"

	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/testenv"
)

func (s *Search) in(t *testing.T, p Place) Count {
	t.Helper()
	s.count = Count{}
	if err := p.Look(t.Context(), s); err != nil {
		t.Fatalf("%s: %v", p.Name, err)
	}
	return s.count
}

func searching(c Canary) *Search {
	return &Search{finder: newFinder(c), inputs: []string{"prompt"}, since: time.Now()}
}

// Every table of a database is looked through to its last row, text and bytes.
func TestEveryRowIsLookedAt(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, c := context.Background(), NewCanary()
		exec := func(query string, args ...any) {
			t.Helper()
			if _, err := d.Exec(ctx, query, args...); err != nil {
				t.Fatal(err)
			}
		}
		exec(`CREATE TABLE many (a TEXT NOT NULL, b BIGINT NOT NULL, body BYTEA, PRIMARY KEY (a, b))`)
		exec(`CREATE TABLE keyless (note TEXT)`)
		for i := range 3*rowsAtOnce + 1 {
			exec(`INSERT INTO many (a, b, body) VALUES (?, ?, ?)`, "x", i, []byte("nothing"))
		}
		p := Rows("database", d, "", "", nil)
		before := searching(c).in(t, p)
		if len(before.Found) > 0 || before.Things < 3*rowsAtOnce+1 {
			t.Fatalf("before: %+v", before)
		}
		exec(`UPDATE many SET body = ? WHERE b = ?`, append([]byte{0, 0xff}, c.Encode(UTF16)...), 3*rowsAtOnce)
		exec(`INSERT INTO keyless (note) VALUES (?)`, "it was "+c.With("prompt"))
		found := map[string]Finding{}
		for _, f := range searching(c).in(t, p).Found {
			found[f.Where] = f
		}
		if len(found) != 2 || found["many.body"].Kind != UTF16 || found["keyless.note"] != (Finding{Where: "keyless.note", Kind: Plain, Input: "prompt", Times: 1}) {
			t.Errorf("found %+v", found)
		}
	})
}

// Files are found by their content and their name, in folders below too; no link
// leads elsewhere, and what is older than the run is counted and left out.
func TestFilesAreLookedThrough(t *testing.T) {
	t.Parallel()
	dir, elsewhere, c := t.TempDir(), t.TempDir(), NewCanary()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "a", "b", "deep"), string(c.Encode(Hex)))
	write(filepath.Join(dir, "old"), string(c))
	write(filepath.Join(dir, "skipped", "one"), string(c))
	write(filepath.Join(elsewhere, "one"), string(c))
	write(filepath.Join(dir, "named "+string(c)), "nothing")
	if err := os.Symlink(elsewhere, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "old"), past, past); err != nil {
		t.Fatal(err)
	}
	p := Folder("folder", []string{dir}, func(path string) bool { return path == filepath.Join(dir, "skipped") })
	got := searching(c).in(t, p)
	want := map[string]Kind{"a/b/deep": Hex, "names of files": Plain}
	for _, f := range got.Found {
		if want[f.Where] != f.Kind {
			t.Errorf("found %+v", f)
		}
		if strings.Contains(f.Where, string(c)) {
			t.Errorf("a finding shows what it found: %+v", f)
		}
		delete(want, f.Where)
	}
	if len(want) > 0 || got.Things != 2 || got.Older != 1 {
		t.Errorf("%v is missing of %+v", want, got)
	}
	if got := searching(c).in(t, Folder("file", []string{filepath.Join(dir, "a", "b", "deep")}, nil)); len(got.Found) != 1 || got.Things != 1 {
		t.Errorf("one file: %+v", got)
	}
	if err := Folder("none", []string{filepath.Join(dir, "gone")}, nil).Look(t.Context(), searching(c)); err == nil {
		t.Error("a folder that is not there was looked through")
	}
}

// Drafts and keys of a directory's objects count as well.
func TestObjectsAreLookedThrough(t *testing.T) {
	t.Parallel()
	dir, c := t.TempDir(), NewCanary()
	store, err := objects.OpenDirectory(filepath.Join(dir, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	p := Stored(store, func(string) string { return "kind" })
	_, remove, err := p.Plant(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "objects", ".drafts", "x"), c.Encode(Compressed), 0o600); err != nil {
		t.Fatal(err)
	}
	kinds := map[Kind]int{}
	for _, f := range searching(c).in(t, p).Found {
		kinds[f.Kind] += f.Times
	}
	if len(kinds) != len(Kinds) || kinds[Compressed] != 2 || kinds[Plain] != 2 {
		t.Errorf("found %v", kinds)
	}
	if err := remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := searching(c).in(t, p); len(got.Found) != 1 {
		t.Errorf("after it was taken away: %+v", got)
	}
}

// What Redis keeps in files is looked through: its dump, though it compresses, and the
// log of its commands, which knows also what is gone.
func TestDumpsOfRedisAreLookedThrough(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{"dump": false, "dump and log": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testenv.PrivateRedis(t, kept)
			options, err := redis.ParseURL(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			client := redis.NewClient(options)
			t.Cleanup(func() { _ = client.Close() })
			p, left, gone := Dumps(client, server.Dir()), NewCanary(), NewCanary()
			as, remove, err := p.Plant(t.Context(), left)
			if err == nil {
				err = client.Set(t.Context(), "gone", gone.With("prompt"), 0).Err()
			}
			if err == nil {
				err = client.Del(t.Context(), "gone").Err()
			}
			if err != nil {
				t.Fatal(err)
			}
			got := searching(left).in(t, p)
			for _, kind := range as {
				if !slices.ContainsFunc(got.Found, func(f Finding) bool { return f.Kind == kind && strings.HasPrefix(f.Where, "dump.rdb") }) {
					t.Errorf("nothing %s is found in the dump: %+v", kind, got)
				}
			}
			if log := slices.ContainsFunc(got.Found, func(f Finding) bool { return strings.HasPrefix(f.Where, "appendonlydir") }); log != kept {
				t.Errorf("found %+v", got.Found)
			}
			if found := searching(gone).in(t, p).Found; (len(found) > 0) != kept {
				t.Errorf("of what is gone: %+v", found)
			}
			if err := remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if found := searching(left).in(t, p).Found; (len(found) > 0) != kept {
				t.Errorf("after it was taken away, the dump is another: %+v", found)
			}
		})
	}
}

// A row that is gone stands in PostgreSQL's write-ahead log still.
func TestTheWriteAheadLogIsLookedThrough(t *testing.T) {
	t.Parallel()
	server, c := testenv.PrivatePostgres(t), NewCanary()
	d, err := db.Open(t.Context(), server.URL(), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	for _, statement := range []string{"CREATE TABLE notes (note TEXT)", "INSERT INTO notes VALUES ('" + c.With("prompt") + "')", "TRUNCATE notes", "CHECKPOINT"} {
		if _, err := d.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	got := searching(c).in(t, Folder("database files", []string{server.Dir()}, nil))
	for _, f := range got.Found {
		if !strings.HasPrefix(f.Where, "data/pg_wal/") || f.Input != "prompt" {
			t.Errorf("found %+v", f)
		}
	}
	if len(got.Found) == 0 {
		t.Errorf("nothing is found in %d files of %d bytes", got.Things, got.Bytes)
	}
}

// A version that another one lies over is looked through, and one below a mark that
// it is deleted.
func TestOldVersionsAreLookedThrough(t *testing.T) {
	t.Parallel()
	b, c := testenv.S3(t), NewCanary()
	bare, err := minio.New(b.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, "")})
	if err == nil {
		err = bare.MakeBucket(t.Context(), b.Bucket, minio.MakeBucketOptions{})
	}
	if err == nil {
		err = bare.EnableVersioning(t.Context(), b.Bucket)
	}
	for _, key := range []string{"images/covered", "images/deleted"} {
		for _, text := range []string{c.With("prompt"), "nothing"} {
			if err == nil {
				_, err = bare.PutObject(t.Context(), b.Bucket, key, strings.NewReader(text), int64(len(text)), minio.PutObjectOptions{})
			}
		}
	}
	if err == nil {
		err = bare.RemoveObject(t.Context(), b.Bucket, "images/deleted", minio.RemoveObjectOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	store, err := objects.OpenS3(t.Context(), objects.S3Options{Endpoint: b.Endpoint, Bucket: b.Bucket, AccessKey: b.AccessKey, SecretKey: b.SecretKey})
	if err != nil {
		t.Fatal(err)
	}
	got := searching(c).in(t, Stored(store, func(key string) string { return key }))
	for _, key := range []string{"images/covered", "images/deleted"} {
		if !slices.ContainsFunc(got.Found, func(f Finding) bool { return f.Where == key && f.Times == 1 }) {
			t.Errorf("the old version of %s is not found: %+v", key, got)
		}
	}
}

// A folder in which nothing lies is told, and a canary is left in each.
func TestEmptyFoldersAreTold(t *testing.T) {
	t.Parallel()
	full, empty, c := t.TempDir(), t.TempDir(), NewCanary()
	if err := os.WriteFile(filepath.Join(full, "file"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := Folder("folders", []string{full, empty}, nil)
	if got := searching(c).in(t, p); !slices.Equal(got.Empty, []string{empty}) {
		t.Errorf("empty are %v", got.Empty)
	}
	if _, _, err := p.Plant(t.Context(), c); err != nil || p.Copies != 2 {
		t.Fatal(p.Copies, err)
	}
	if got := searching(c).in(t, p); len(got.Empty) > 0 || got.Found[0].Times != 2 {
		t.Errorf("with a canary in each: %+v", got)
	}
}
