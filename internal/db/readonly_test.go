package db_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

func TestReadOnlyChangesNothing(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := t.Context()
		writer, err := db.Open(ctx, url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = writer.Close() }()
		schema := func(wantEmpty bool) {
			t.Helper()
			d, err := db.Open(ctx, url, db.Options{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			current, newest, err := d.Schema(ctx, db.Main())
			if err != nil || newest < 3 || (current == 0) != wantEmpty || !wantEmpty && current != newest {
				t.Errorf("schema %d of %d, %v", current, newest, err)
			}
			for _, statement := range []string{"CREATE TABLE t (x INTEGER)", "DELETE FROM jobs"} {
				if _, err := d.Exec(ctx, statement); err == nil {
					t.Errorf("%s was done", statement)
				}
			}
			if err := d.Tx(ctx, func(tx *db.Tx) error { _, err := tx.Exec(ctx, "DELETE FROM jobs"); return err }); err == nil {
				t.Error("a transaction wrote")
			}
		}
		schema(true)
		if _, err := writer.Migrate(ctx, db.Main()); err != nil {
			t.Fatal(err)
		}
		schema(false)
		path, ok := strings.CutPrefix(url, "sqlite:")
		if !ok {
			return
		}
		if err := writer.Close(); err != nil {
			t.Fatal(err)
		}
		schema(false)
		if left, _ := filepath.Glob(path + "*"); len(left) != 1 {
			t.Errorf("files: %v", left)
		}
		missing := filepath.Join(t.TempDir(), "none", "x.db")
		if _, err := db.Open(ctx, "sqlite:"+missing, db.Options{ReadOnly: true}); err == nil {
			t.Error("a missing file was opened")
		}
		if _, err := os.Stat(filepath.Dir(missing)); err == nil {
			t.Error("its folder was made")
		}
	})
}
