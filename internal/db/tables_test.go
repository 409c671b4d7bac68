package db_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
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

// What of the queue is a person's is found without a look at everybody's.
func TestJobsAreFoundByTheirOwner(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		var plan []map[string]any
		err := d.Tx(t.Context(), func(tx *db.Tx) (err error) {
			explain := "EXPLAIN QUERY PLAN "
			if d.Dialect() == db.Postgres {
				explain = "EXPLAIN "
				_, err = tx.Exec(t.Context(), `SET LOCAL enable_seqscan = off`) // it would read so few rows without an index
			}
			if err == nil {
				plan, err = tx.Maps(t.Context(), explain+`SELECT id FROM jobs WHERE owner = 'sub_a' LIMIT 500`)
			}
			return err
		})
		if err != nil || !strings.Contains(fmt.Sprint(plan), "jobs_by_owner") {
			t.Errorf("%v, %v", plan, err)
		}
	})
}
