package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"zimage/internal/db"
)

// Databases runs test twice, in parallel, on SQLite and on PostgreSQL, each
// time on a migrated database that nobody else uses.
func Databases(t *testing.T, test func(t *testing.T, d *db.DB)) {
	t.Helper()
	dialects(t, func(t *testing.T, dialect db.Dialect) {
		d, _ := Database(t, dialect)
		test(t, d)
	})
}

// DatabaseURLs is Databases for tests that open and migrate for themselves.
func DatabaseURLs(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	dialects(t, func(t *testing.T, dialect db.Dialect) { test(t, DatabaseURL(t, dialect)) })
}

func dialects(t *testing.T, test func(*testing.T, db.Dialect)) {
	t.Helper()
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			test(t, dialect)
		})
	}
}

// Database is one migrated database of the test's own and its URL. Both are
// gone when the test ends.
func Database(t testing.TB, dialect db.Dialect) (*db.DB, string) {
	t.Helper()
	ctx := context.Background()
	address := Migrated(t, dialect, db.Main())
	d, err := db.Open(ctx, address, db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, address
}

// Migrated is the address of one database of the test's own with a schema.
func Migrated(t testing.TB, dialect db.Dialect, migrations fs.FS) string {
	t.Helper()
	if dialect == db.Postgres {
		return freshPostgres(t, migrations)
	}
	address := DatabaseURL(t, dialect)
	content, err := sqliteTemplate(migrations)
	if err == nil {
		err = os.WriteFile(strings.TrimPrefix(address, "sqlite:"), content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return address
}

var sqliteTemplates struct {
	sync.Mutex
	files map[string][]byte // by their migrations' hash
}

// sqliteTemplate is a file with a schema, which each process makes once: with the race
// detector a migration takes more than a second.
func sqliteTemplate(migrations fs.FS) ([]byte, error) {
	sum, err := hashFiles(migrations)
	if err != nil {
		return nil, err
	}
	sqliteTemplates.Lock()
	defer sqliteTemplates.Unlock()
	if content := sqliteTemplates.files[sum]; content != nil {
		return content, nil
	}
	dir, err := os.MkdirTemp("", "zimage-template")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "template.db")
	if err := migrate("sqlite:"+path, migrations); err != nil {
		return nil, err
	}
	if _, err := os.Stat(path + "-wal"); err == nil {
		return nil, errors.New("SQLite's log is not in its file")
	}
	content, err := os.ReadFile(path) //nolint:gosec // made above
	if err != nil {
		return nil, err
	}
	if sqliteTemplates.files == nil {
		sqliteTemplates.files = map[string][]byte{}
	}
	sqliteTemplates.files[sum] = content
	return content, nil
}

// DatabaseURL is the address of one empty database of the test's own.
func DatabaseURL(t testing.TB, dialect db.Dialect) string {
	t.Helper()
	if dialect == db.Postgres {
		return freshPostgres(t, nil)
	}
	return "sqlite:" + filepath.Join(t.TempDir(), "test.db")
}

// freshPostgres makes a database on the shared server, empty (nil) or with a schema,
// and drops it when the test ends.
func freshPostgres(t testing.TB, migrations fs.FS) string {
	t.Helper()
	s := postgresServer(variable(t, PostgresVariable))
	name := uniqueName("zimage_test", "_")
	ctx := context.Background()
	create := "CREATE DATABASE " + name
	if migrations != nil {
		template, err := s.template(ctx, migrations)
		if err != nil {
			t.Fatal(err)
		}
		create += " TEMPLATE " + template
	}
	if err := s.exec(ctx, create); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	address, err := s.database(name)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// postgresServer is the address of a server, on any of its databases.
type postgresServer string

func (s postgresServer) database(name string) (string, error) {
	u, err := url.Parse(string(s))
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

func (s postgresServer) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, string(s))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

// template names a database with a schema, from which others are copied: 40 ms
// instead of a migration. Its name holds the migrations' hash, so processes share
// it and changed migrations make another one.
func (s postgresServer) template(ctx context.Context, migrations fs.FS) (string, error) {
	sum, err := hashFiles(migrations)
	if err != nil {
		return "", err
	}
	name := "zimage_template_" + sum
	conn, err := pgx.Connect(ctx, string(s))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }() // it ends the lock too
	exists := func() (yes bool, err error) {
		err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", name).Scan(&yes)
		return yes, err
	}
	if yes, err := exists(); yes || err != nil {
		return name, err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(7164230716)"); err != nil {
		return "", err
	}
	if yes, err := exists(); yes || err != nil {
		return name, err
	}
	// It gets its name when it is complete: a process that dies on the way
	// leaves nothing that others would take for the template.
	draft := uniqueName("zimage_draft", "_")
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+draft); err != nil {
		return "", err
	}
	address, err := s.database(draft)
	if err == nil {
		err = migrate(address, migrations)
	}
	if err != nil {
		return "", errors.Join(err, s.exec(ctx, "DROP DATABASE "+draft+" WITH (FORCE)"))
	}
	for _, statement := range []string{
		"ALTER DATABASE " + draft + " ALLOW_CONNECTIONS false", // one connection to it would stop every copy
		"ALTER DATABASE " + draft + " RENAME TO " + name,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return "", fmt.Errorf("make the template: %w", err)
		}
	}
	return name, nil
}

func migrate(address string, migrations fs.FS) error {
	ctx := context.Background()
	d, err := db.Open(ctx, address, db.Options{})
	if err != nil {
		return err
	}
	_, err = d.Migrate(ctx, migrations)
	return errors.Join(explain(err), d.Close())
}

// explain adds PostgreSQL's own words, which db keeps out of logs and the
// author of a migration needs.
func explain(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return fmt.Errorf("%w: %s", err, pg.Message)
	}
	return err
}

func hashFiles(files fs.FS) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(h, "%s %d\n%s", path, len(text), text)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:8]), err
}

// Overtaken runs first in a transaction and, before that commits, second beside
// it. The commit waits until second is through or waits for a row of first's; on
// SQLite it does not wait, since there the one writer keeps second back anyway.
func Overtaken(t testing.TB, d *db.DB, first func(tx *db.Tx) error, second func() error) (firstErr, secondErr error) {
	t.Helper()
	var ended <-chan error
	firstErr = d.Tx(context.Background(), func(tx *db.Tx) error {
		if err := first(tx); err != nil {
			return err
		}
		ended = Beside(t, d, second)
		return nil
	})
	if firstErr == nil {
		secondErr = <-ended
	}
	return firstErr, secondErr
}

// Beside starts f beside a transaction that is open, and returns when f is through
// or waits for a row; on SQLite at once. The channel tells what f returned.
func Beside(t testing.TB, d *db.DB, f func() error) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	if d.Dialect() == db.SQLite {
		return ended
	}
	Eventually(t, 20*time.Second, func() bool {
		var waiting int
		err := d.Get(context.Background(), &waiting, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
		return len(ended) > 0 || err == nil && waiting > 0
	})
	return ended
}
