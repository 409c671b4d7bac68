package db

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// A Table is what the database itself says of one.
type Table struct {
	Name    string
	Key     []string // the columns of its primary key, in their order
	Columns []Column
}

// A Column of a table.
type Column struct {
	Name string
	Type string // as the database names it, in small letters
}

// Tables lists everything in the database that holds rows, by name, without the
// database's own. On PostgreSQL it looks where our tables are made, which is the
// current schema: tables in another one are somebody else's.
func Tables(ctx context.Context, q Querier) ([]Table, error) {
	query := `SELECT m.name AS "table", p.name AS "column", p.type AS "type", p.pk AS "key"
		FROM sqlite_master m, pragma_table_xinfo(m.name) p
		WHERE m.type = 'table' AND substr(m.name, 1, 7) <> 'sqlite_' ORDER BY m.name, p.cid`
	if q.Dialect() == Postgres {
		// Partitions are part of their table; a materialised view is a copy of what
		// it was made from. An int2vector counts from 0.
		query = `SELECT c.relname AS "table", a.attname AS "column", format_type(a.atttypid, a.atttypmod) AS "type",
			coalesce(array_position(i.indkey::int2[], a.attnum) + 1, 0) AS "key"
			FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
			WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'm', 'f') AND NOT c.relispartition
			ORDER BY c.relname, a.attnum`
	}
	var rows []struct {
		Table  string `db:"table"`
		Column string `db:"column"`
		Type   string `db:"type"`
		Key    int    `db:"key"` // its place in the primary key; 0: none
	}
	if err := q.Select(ctx, &rows, query); err != nil {
		return nil, fmt.Errorf("read the schema: %w", err)
	}
	var tables []Table
	for i, r := range rows {
		if i == 0 || rows[i-1].Table != r.Table {
			tables = append(tables, Table{Name: r.Table})
		}
		t := &tables[len(tables)-1]
		t.Columns = append(t.Columns, Column{Name: r.Column, Type: strings.ToLower(r.Type)})
		if r.Key > 0 {
			t.Key = slices.Grow(t.Key, r.Key)[:max(r.Key, len(t.Key))]
			t.Key[r.Key-1] = r.Column
		}
	}
	return tables, nil
}
