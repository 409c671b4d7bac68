package db

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	goosedb "github.com/pressly/goose/v3/database"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrNewerSchema means that a newer version of this program has already changed
// the database.
var ErrNewerSchema = errors.New("the database was migrated by a newer version of this program; run that one")

// Main is the migrations of the main database. The key store has its own, in
// vault.
func Main() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // embedded at build
	}
	return sub
}

// Migrate brings the schema forward to the newest of the given migrations, and
// returns how many it ran. Several processes may call it at once. A schema that
// is newer than the program is refused with ErrNewerSchema.
func (d *DB) Migrate(ctx context.Context, migrations fs.FS) (int, error) {
	if d.dialect == Postgres {
		// One process migrates, the others wait: an advisory lock of the session.
		conn, err := d.write.Connx(ctx)
		if err != nil {
			return 0, err
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock(7164230715)"); err != nil {
			return 0, err
		}
		defer func() {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock(7164230715)")
		}()
	}
	p, err := d.provider(migrations)
	if err != nil {
		return 0, err
	}
	current, newest, err := p.GetVersions(ctx)
	if err != nil {
		return 0, err
	}
	if current > newest {
		return 0, ErrNewerSchema
	}
	done, err := p.Up(ctx)
	if err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	return len(done), nil
}

func (d *DB) provider(migrations fs.FS) (*goose.Provider, error) {
	dialect := goosedb.DialectSQLite3
	if d.dialect == Postgres {
		dialect = goosedb.DialectPostgres
	}
	return goose.NewProvider(dialect, d.write.DB, migrations, goose.WithDisableGlobalRegistry(true))
}

// Schema is how far the database was migrated, 0 when it never was, and how far
// Migrate would bring it. It changes nothing.
func (d *DB) Schema(ctx context.Context, migrations fs.FS) (current, newest int64, err error) {
	p, err := d.provider(migrations)
	if err != nil {
		return 0, 0, err
	}
	for _, m := range p.ListSources() {
		newest = max(newest, m.Version)
	}
	table := `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'goose_db_version'`
	if d.dialect == Postgres {
		table = `SELECT count(*) FROM pg_class WHERE oid = to_regclass('goose_db_version')`
	}
	var there int
	if err := d.Get(ctx, &there, table); err != nil || there == 0 {
		return 0, newest, err
	}
	err = d.Get(ctx, &current, `SELECT coalesce(max(version_id), 0) FROM goose_db_version`)
	return current, newest, err
}
