package db_test

import (
	"reflect"
	"testing"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

func TestConstraintsAreRead(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		for _, s := range []string{
			`CREATE TABLE makers (id TEXT PRIMARY KEY, name TEXT)`,
			`CREATE TABLE gadgets (id TEXT PRIMARY KEY, maker TEXT NOT NULL REFERENCES makers (id), size BIGINT)`,
		} {
			if _, err := d.Exec(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		c, err := db.ReadConstraints(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		var ours []db.Reference
		for _, r := range c.References {
			if r.To == "makers" {
				ours = append(ours, r)
			}
		}
		if !reflect.DeepEqual(ours, []db.Reference{{Table: "gadgets", Column: "maker", To: "makers"}}) {
			t.Errorf("references are %+v", c.References)
		}
		for column, want := range map[string]bool{"id": true, "maker": true, "size": false} {
			if got := c.Required("gadgets", column); got != want {
				t.Errorf("%s is required: %v", column, got)
			}
		}
	})
}
