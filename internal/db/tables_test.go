package db_test

import (
	"reflect"
	"slices"
	"testing"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

func TestTablesAreWhatHoldsRowsOfOurs(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		before, err := db.Tables(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		statements := []string{
			`CREATE TABLE gadgets (size BIGINT, gone TEXT, maker TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (name, maker))`,
			`ALTER TABLE gadgets DROP COLUMN gone`,
			`ALTER TABLE gadgets ADD COLUMN photo BYTEA`,
			`CREATE TABLE notes (note TEXT)`,
			`CREATE INDEX notes_note ON notes (note)`,
			`CREATE VIEW seen AS SELECT note FROM notes`,
		}
		want := []db.Table{
			{"gadgets", []string{"name", "maker"}, []db.Column{{"size", "bigint"}, {"maker", "text"}, {"name", "text"}, {"photo", "bytea"}}},
			{"notes", nil, []db.Column{{"note", "text"}}},
		}
		if d.Dialect() == db.Postgres {
			statements = append(statements,
				`CREATE MATERIALIZED VIEW copies AS SELECT note FROM notes`,
				`CREATE TABLE years (at BIGINT PRIMARY KEY) PARTITION BY RANGE (at)`,
				`CREATE TABLE years_1 PARTITION OF years FOR VALUES FROM (0) TO (10)`,
				`CREATE SCHEMA operator`,
				`CREATE TABLE operator.dashboards (secret TEXT)`)
			want = slices.Insert(want, 0, db.Table{"copies", nil, []db.Column{{"note", "text"}}})
			want = append(want, db.Table{"years", []string{"at"}, []db.Column{{"at", "bigint"}}})
		}
		for _, s := range statements {
			if _, err := d.Exec(ctx, s); err != nil {
				t.Fatal(s, err)
			}
		}
		after, err := db.Tables(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		known := map[string]bool{}
		for _, b := range before {
			known[b.Name] = true
		}
		after = slices.DeleteFunc(after, func(a db.Table) bool { return known[a.Name] })
		if !reflect.DeepEqual(after, want) {
			t.Errorf("new are\n%+v, want\n%+v", after, want)
		}
		for _, name := range []string{"jobs", "users", "goose_db_version"} {
			if !known[name] {
				t.Errorf("%s is missing", name)
			}
		}
	})
}
