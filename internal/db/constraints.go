package db

import (
	"context"
	"fmt"
)

// Constraints are what a database demands of those who change its rows.
type Constraints struct {
	required   map[[2]string]bool
	References []Reference
}

// A Reference is a foreign key: the column of Table names a row of To.
type Reference struct {
	Table  string `db:"table"`
	Column string `db:"column"`
	To     string `db:"to"`
}

// Required reports whether a column may not be NULL.
func (c Constraints) Required(table, column string) bool { return c.required[[2]string{table, column}] }

// ReadConstraints reads those of every table of ours; see Tables.
func ReadConstraints(ctx context.Context, q Querier) (Constraints, error) {
	columns := `SELECT m.name AS "table", p.name AS "column" FROM sqlite_master m, pragma_table_info(m.name) p
		WHERE m.type = 'table' AND (p."notnull" = 1 OR p.pk > 0)`
	references := `SELECT m.name AS "table", f."from" AS "column", f."table" AS "to" FROM sqlite_master m, pragma_foreign_key_list(m.name) f
		WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq`
	if q.Dialect() == Postgres {
		columns = `SELECT table_name AS "table", column_name AS "column" FROM information_schema.columns
			WHERE table_schema = current_schema() AND is_nullable = 'NO'`
		references = `SELECT c.conrelid::regclass::text AS "table", a.attname AS "column", c.confrelid::regclass::text AS "to"
			FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
			WHERE c.contype = 'f' AND c.connamespace = current_schema()::regnamespace ORDER BY 1, 2`
	}
	var required []struct {
		Table  string `db:"table"`
		Column string `db:"column"`
	}
	c := Constraints{required: map[[2]string]bool{}}
	err := q.Select(ctx, &required, columns)
	if err == nil {
		err = q.Select(ctx, &c.References, references)
	}
	if err != nil {
		return Constraints{}, fmt.Errorf("read the schema's constraints: %w", err)
	}
	for _, r := range required {
		c.required[[2]string{r.Table, r.Column}] = true
	}
	return c, nil
}
