package db_test

import (
	"context"
	"io/fs"
	"testing"
	"testing/fstest"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

// Restricted and suspended people stay so when the two become times of their own.
func TestMigrationKeepsRestrictedAndSuspendedPeople(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		d, err := db.Open(ctx, url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		before := fstest.MapFS{}
		err = fs.WalkDir(db.Main(), ".", func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || e.Name() >= "00004" {
				return err
			}
			text, err := fs.ReadFile(db.Main(), path)
			before[path] = &fstest.MapFile{Data: text}
			return err
		})
		if err != nil || len(before) != 3 {
			t.Fatalf("%d migrations of before (%v)", len(before), err)
		}
		if _, err := d.Migrate(ctx, before); err != nil {
			t.Fatal(err)
		}
		for _, state := range []string{"active", "restricted", "suspended", "closing", "erased"} {
			if _, err := d.Exec(ctx, `INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, ?, 1, 7)`, "sub_"+state, state); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Exec(ctx, `INSERT INTO users (id, email_lookup, email, password, created_at) VALUES (?, ?, ?, 'hash', 1)`,
				"sub_"+state, state, []byte("sealed")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.Migrate(ctx, db.Main()); err != nil {
			t.Fatal(err)
		}
		var rows []struct {
			ID         string `db:"id"`
			State      string `db:"state"`
			Restricted int64  `db:"restricted"`
			Suspended  int64  `db:"suspended"`
		}
		if err := d.Select(ctx, &rows, `SELECT s.id, s.state, coalesce(restricted_at, 0) AS restricted, coalesce(suspended_at, 0) AS suspended
			FROM subjects s JOIN users u ON u.id = s.id WHERE u.role = '' AND u.totp_step = 0 ORDER BY s.id`); err != nil {
			t.Fatal(err)
		}
		want := map[string][3]any{
			"sub_active": {"active", int64(0), int64(0)}, "sub_restricted": {"active", int64(7), int64(0)}, "sub_suspended": {"active", int64(0), int64(7)},
			"sub_closing": {"closing", int64(0), int64(0)}, "sub_erased": {"erased", int64(0), int64(0)},
		}
		for _, r := range rows {
			if got := [3]any{r.State, r.Restricted, r.Suspended}; got != want[r.ID] {
				t.Errorf("%s is %v, want %v", r.ID, got, want[r.ID])
			}
		}
		if len(rows) != len(want) {
			t.Errorf("%d people, want %d", len(rows), len(want))
		}
	})
}
