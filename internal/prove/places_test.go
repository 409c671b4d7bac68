package prove

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
		if len(found) != 2 || found["many.body"].Kind != UTF16 || found["keyless.note"] != (Finding{"keyless.note", Plain, "prompt", 1}) {
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
