// Package db opens PostgreSQL or SQLite, runs transactions and migrations, and
// hides where the two dialects differ behind named functions.
//
// SQL is written once, with ? for parameters, text ids and times as integer
// milliseconds since 1970. This package never knows what a table means.
package db

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"zimage/internal/problem"
)

// A Dialect is one of the two databases.
type Dialect string

// The dialects.
const (
	Postgres Dialect = "postgres"
	SQLite   Dialect = "sqlite"
)

// A Querier runs statements, on a pool (DB) or within a transaction (Tx).
// Statements use ? for parameters. Get returns sql.ErrNoRows when there is none.
type Querier interface {
	Get(ctx context.Context, dest any, query string, args ...any) error
	Select(ctx context.Context, dest any, query string, args ...any) error
	Exec(ctx context.Context, query string, args ...any) (int64, error)
	Dialect() Dialect
}

var (
	_ Querier = (*DB)(nil)
	_ Querier = (*Tx)(nil)
)

// DB is one database: a pool for PostgreSQL; for SQLite one writer connection
// and a pool of read-only ones.
type DB struct {
	dialect Dialect
	write   *sqlx.DB
	read    *sqlx.DB
	turns   *turns   // before the one writer of SQLite; nil: PostgreSQL
	rebound sync.Map // query with ? → query with $n
	timeout time.Duration

	closed atomic.Bool
	errors atomic.Int64
}

// statementTimeout bounds a statement, a begin and a commit whose context has no
// deadline, what they wait for included: a connection whose packets are lost
// would otherwise hold its caller until the kernel gives up, after a quarter of
// an hour or never. Migrations may take longer.
const statementTimeout = 30 * time.Second

// Options for Open; the zero value is good.
type Options struct {
	// MaxConnections of the PostgreSQL pool; 0 means 16.
	MaxConnections int
	// Name shows in PostgreSQL's pg_stat_activity.
	Name string
	// ReadOnly changes nothing: no statement that writes succeeds, and no file of
	// SQLite's is made, except its index of a log that a crash left.
	ReadOnly bool
}

// Open connects to "sqlite:PATH" or "postgres://…" and checks that it answers.
// It creates no table: that is Migrate.
func Open(ctx context.Context, address string, o Options) (*DB, error) {
	d := &DB{timeout: statementTimeout}
	switch {
	case strings.HasPrefix(address, "sqlite:"):
		d.dialect = SQLite
		open := d.openSQLite
		if o.ReadOnly {
			open = d.readSQLite
		}
		if err := open(strings.TrimPrefix(address, "sqlite:")); err != nil {
			return nil, err
		}
	case strings.HasPrefix(address, "postgres://"), strings.HasPrefix(address, "postgresql://"):
		d.dialect = Postgres
		if err := d.openPostgres(address, o); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("a database is sqlite:PATH or postgres://…")
	}
	if err := d.Ping(ctx); err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("the database does not answer: %w", err)
	}
	if err := d.sorts(ctx); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// ErrCollation means that the database puts text in an order in which ids do not
// sort by their time.
var ErrCollation = errors.New("the database's collation does not sort our ids by their time: make another with " +
	"CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C' " +
	"(before PostgreSQL 15 without LOCALE_PROVIDER libc), and restore a dump of this one into it if it holds anything")

// sorts refuses a PostgreSQL database whose order of ids differs from that of
// their bytes. Ids are compared with FloorID, and pages are cut by them. Most
// languages sort our digits and letters as C does, but Danish has aa behind z,
// Czech has ch behind h, and Estonian has z before t.
func (d *DB) sorts(ctx context.Context) error {
	if d.dialect != Postgres {
		return nil
	}
	var wrong int
	err := d.Get(ctx, &wrong, `SELECT count(*) FROM (
			SELECT id, lead(id) OVER (ORDER BY id COLLATE "C") AS next
			FROM (SELECT 'id_' || a || b AS id FROM unnest(string_to_array(?, NULL)) a, unnest(string_to_array(?, NULL)) b) AS ids
		) AS pairs WHERE NOT id < next`, idLetters, idLetters)
	if err == nil && wrong > 0 {
		return ErrCollation
	}
	return err
}

func (d *DB) openSQLite(path string) error {
	if path == "" {
		return errors.New("sqlite: needs a path after the colon")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	// The file is made here with the right mode; SQLite would use the umask's.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the file that the operator names
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	pragmas := url.Values{"_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)",
		"foreign_keys(ON)", "secure_delete(ON)", "temp_store(MEMORY)",
	}}
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas.Encode()
	d.write, err = sqlx.Open("sqlite", dsn+"&_txlock=immediate")
	if err != nil {
		return err
	}
	d.write.SetMaxOpenConns(1)
	d.write.SetMaxIdleConns(1)
	d.read, err = sqlx.Open("sqlite", dsn+"&_pragma=query_only(ON)")
	if err != nil {
		return err
	}
	d.read.SetMaxOpenConns(8)
	d.read.SetMaxIdleConns(8)
	d.turns = &turns{}
	return nil
}

func (d *DB) readSQLite(path string) error {
	// Not for writing, but with the rights that a start needs.
	f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:gosec // the file that the operator names
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	query := "?mode=ro&_pragma=busy_timeout(10000)&_pragma=query_only(ON)"
	if _, err := os.Stat(path + "-wal"); errors.Is(err, fs.ErrNotExist) {
		query += "&immutable=1" // nobody has it open; otherwise SQLite would make a log to read by
	}
	d.write, err = sqlx.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+query)
	d.read = d.write
	return err
}

func (d *DB) openPostgres(address string, o Options) error {
	cfg, err := pgx.ParseConfig(address)
	if err != nil {
		return errors.New("the postgres:// address does not parse") // pgx's text may quote the password
	}
	// What speaks TLS speaks 1.3, also where the driver falls back to another host.
	for _, t := range append([]*pgconn.FallbackConfig{{TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...) {
		if t.TLSConfig != nil {
			t.TLSConfig.MinVersion = tls.VersionTLS13
		}
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	if o.Name != "" {
		cfg.RuntimeParams["application_name"] = o.Name
	}
	// A process that was stopped in the middle of a transaction must not hold
	// its rows: a job would stay claimed by nobody.
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "10000"
	cfg.RuntimeParams["timezone"] = "UTC"
	if o.ReadOnly {
		cfg.RuntimeParams["default_transaction_read_only"] = "on"
	}
	pool := sqlx.NewDb(stdlib.OpenDB(*cfg), "pgx")
	n := o.MaxConnections
	if n == 0 {
		n = 16
	}
	pool.SetMaxOpenConns(n)
	pool.SetMaxIdleConns(n)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	d.write, d.read = pool, pool
	return nil
}

// Close closes all connections.
func (d *DB) Close() error {
	d.closed.Store(true)
	err := d.write.Close()
	if d.read != d.write {
		err = errors.Join(err, d.read.Close())
	}
	return err
}

// Dialect says which database it is.
func (d *DB) Dialect() Dialect { return d.dialect }

// Ping asks the database for an answer.
func (d *DB) Ping(ctx context.Context) error {
	var one int
	return d.Get(ctx, &one, "SELECT 1")
}

// Now is the database's time, for clock.Sync. SQLite has none of its own: it is
// this machine's.
func (d *DB) Now(ctx context.Context) (time.Time, error) {
	if d.dialect == SQLite {
		return time.Now(), nil
	}
	var micros int64
	err := d.Get(ctx, &micros, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
	return time.UnixMicro(micros), err
}

// Failures counts the statements that failed because the database was away or
// broken, since this process started.
func (d *DB) Failures() int64 { return d.errors.Load() }

// bounded gives a context without a deadline one.
func (d *DB) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d.timeout)
}

// Get reads one row outside of a transaction.
func (d *DB) Get(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	return d.seen(d.read.GetContext(ctx, dest, d.bind(query), args...))
}

// Select reads many rows outside of a transaction.
func (d *DB) Select(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	return d.seen(d.read.SelectContext(ctx, dest, d.bind(query), args...))
}

// Maps reads many rows outside of a transaction, for who knows the columns only by
// their names. Numbers come as int64, text as string, bytes as []byte.
func (d *DB) Maps(ctx context.Context, query string, args ...any) ([]map[string]any, error) {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	return d.maps(d.read.QueryxContext(ctx, d.bind(query), args...))
}

func (d *DB) maps(rows *sqlx.Rows, err error) ([]map[string]any, error) {
	if err != nil {
		return nil, d.seen(err)
	}
	defer func() { _ = rows.Close() }()
	var all []map[string]any
	for rows.Next() {
		row := map[string]any{}
		if err := rows.MapScan(row); err != nil {
			return nil, d.seen(err)
		}
		all = append(all, row)
	}
	return all, d.seen(rows.Err())
}

// Exec runs one statement in a transaction of its own and says how many rows it
// changed.
func (d *DB) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	if err := d.turns.take(ctx); err != nil {
		return 0, d.seen(err)
	}
	defer d.turns.give()
	return affected(d.write.ExecContext(ctx, d.bind(query), args...))(d)
}

// GetWrite runs a statement with RETURNING, in a transaction of its own, and
// reads its one row.
func (d *DB) GetWrite(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	if err := d.turns.take(ctx); err != nil {
		return d.seen(err)
	}
	defer d.turns.give()
	return d.seen(d.write.GetContext(ctx, dest, d.bind(query), args...))
}

// SelectWrite is GetWrite for a statement that returns any number of rows.
func (d *DB) SelectWrite(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	if err := d.turns.take(ctx); err != nil {
		return d.seen(err)
	}
	defer d.turns.give()
	return d.seen(d.write.SelectContext(ctx, dest, d.bind(query), args...))
}

// Tx is one transaction.
type Tx struct {
	tx    *sqlx.Tx
	db    *DB
	last  []last
	after []func()
}

// last is what a transaction does at its end.
type last struct {
	row string
	do  func() error
}

// AtLast runs do when all else of the transaction is done, before the commit: for a
// row that many write, so that nobody holds it and waits for another. Those of several
// rows come in the order of their names, as everybody's do.
func (t *Tx) AtLast(row string, do func() error) { t.last = append(t.last, last{row, do}) }

// Alone keeps all others out who want to be alone with the same name, until the
// transaction ends. On SQLite every transaction is alone.
func (t *Tx) Alone(ctx context.Context, name string) error {
	if t.Dialect() != Postgres {
		return nil
	}
	_, err := t.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended(?, 0))`, name)
	return err
}

// AfterCommit runs fn once the transaction is committed, in the order of the
// calls. It must not block: whoever waits for the commit waits for it too.
func (t *Tx) AfterCommit(fn func()) { t.after = append(t.after, fn) }

// Get reads one row.
func (t *Tx) Get(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := t.db.bounded(ctx)
	defer cancel()
	return t.db.seen(t.tx.GetContext(ctx, dest, t.db.bind(query), args...))
}

// Select reads many rows.
func (t *Tx) Select(ctx context.Context, dest any, query string, args ...any) error {
	ctx, cancel := t.db.bounded(ctx)
	defer cancel()
	return t.db.seen(t.tx.SelectContext(ctx, dest, t.db.bind(query), args...))
}

// Maps is DB.Maps in the transaction.
func (t *Tx) Maps(ctx context.Context, query string, args ...any) ([]map[string]any, error) {
	ctx, cancel := t.db.bounded(ctx)
	defer cancel()
	return t.db.maps(t.tx.QueryxContext(ctx, t.db.bind(query), args...))
}

// Exec runs one statement and says how many rows it changed.
func (t *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	ctx, cancel := t.db.bounded(ctx)
	defer cancel()
	return affected(t.tx.ExecContext(ctx, t.db.bind(query), args...))(t.db)
}

// Dialect says which database it is.
func (t *Tx) Dialect() Dialect { return t.db.dialect }

// Tx runs fn in one transaction: committed when fn returns nil, rolled back
// otherwise. On SQLite it is IMMEDIATE on the one writer; on PostgreSQL READ
// COMMITTED. When it met another in a deadlock it is rolled back and fn runs
// again, so fn must not add to what an earlier run left outside. A failed commit
// may still have happened: whoever repeats must be able to find that out.
func (d *DB) Tx(ctx context.Context, fn func(*Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := d.once(ctx, fn)
		if attempt == maxDeadlocks || !isDeadlock(err) || ctx.Err() != nil {
			return err
		}
	}
}

// maxDeadlocks is how often a transaction is run before its deadlock is told.
const maxDeadlocks = 5

// isDeadlock reports whether PostgreSQL rolled a transaction back in favour of
// another.
func isDeadlock(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "40001")
}

func (d *DB) once(ctx context.Context, fn func(*Tx) error) error {
	after, err := d.transact(ctx, fn)
	if err != nil {
		return err
	}
	for _, f := range after { // the writer is free again
		f()
	}
	return nil
}

func (d *DB) transact(ctx context.Context, fn func(*Tx) error) (after []func(), err error) {
	wait, stop := d.bounded(ctx)
	err = d.turns.take(wait)
	stop()
	if err != nil {
		return nil, d.seen(err)
	}
	defer d.turns.give()
	// database/sql begins, commits and rolls back under this one context, and fn
	// may take its time in between: each step is bounded by itself.
	own, end := context.WithCancelCause(ctx)
	defer end(nil)
	late := func() bool { return errors.Is(context.Cause(own), context.DeadlineExceeded) }
	step := func(do func() error) error {
		if _, has := ctx.Deadline(); has {
			return do()
		}
		timer := time.AfterFunc(d.timeout, func() { end(context.DeadlineExceeded) })
		defer timer.Stop()
		err := do()
		if err != nil && late() {
			return context.DeadlineExceeded // err says only that somebody gave up
		}
		return err
	}
	var tx *sqlx.Tx
	err = step(func() (err error) {
		tx, err = d.write.BeginTxx(own, nil)
		return err
	})
	if err != nil {
		return nil, d.seen(err)
	}
	defer func() { _ = step(tx.Rollback) }() // after a commit it does nothing; it also ends a panic's transaction
	t := &Tx{tx: tx, db: d}
	err = fn(t)
	slices.SortStableFunc(t.last, func(a, b last) int { return strings.Compare(a.row, b.row) })
	for _, l := range t.last {
		if err == nil {
			err = l.do()
		}
	}
	if err == nil {
		err = d.seen(step(tx.Commit))
	}
	if errors.Is(err, sql.ErrTxDone) { // ended between two statements, it says only that it is done
		if late() {
			err = d.seen(context.DeadlineExceeded)
		} else if ctx.Err() != nil {
			err = d.seen(ctx.Err())
		}
	}
	return t.after, err
}

func affected(r sql.Result, err error) func(*DB) (int64, error) {
	return func(d *DB) (int64, error) {
		if err != nil {
			return 0, d.seen(err)
		}
		return r.RowsAffected()
	}
}

// seen counts what is the database's own failure and cleans the error of the
// values that PostgreSQL quotes in its details, and of the address that the
// driver quotes when it cannot connect.
func (d *DB) seen(err error) error {
	if err == nil || errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if d.closed.Load() && !IsAway(err) {
		err = fmt.Errorf("closed: %w", sql.ErrConnDone) // the process is shutting down
	}
	if IsAway(err) {
		d.errors.Add(1)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return &Error{Code: pg.Code, Constraint: pg.ConstraintName, cause: err}
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return &Error{Code: fmt.Sprintf("sqlite-%d", lite.Code()), cause: err}
	}
	var known *Error
	if IsAway(err) && !errors.As(err, &known) {
		return &Error{Code: awayCode(err), away: true, cause: err}
	}
	return err
}

// awayCode is the reason why no answer came, as far as an operator can mend it.
func awayCode(err error) string {
	var system syscall.Errno
	var name *net.DNSError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &name):
		return "its host name is not known"
	case errors.As(err, &system):
		return system.Error()
	}
	return "the connection broke"
}

// Error is a database's refusal, or that it is away, without the values that
// the driver quotes, so that it can be logged.
type Error struct {
	Code       string // SQLSTATE, or "sqlite-" and the extended result code, or why it is away
	Constraint string // PostgreSQL only
	away       bool
	cause      error
}

func (e *Error) Error() string {
	if e.away {
		return "database away: " + e.Code
	}
	if e.Constraint != "" {
		return "database refused: " + e.Code + " (" + e.Constraint + ")"
	}
	return "database refused: " + e.Code
}

func (e *Error) Unwrap() error { return e.cause }

// IsUnique reports whether err is a duplicate of a unique key.
func IsUnique(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23505"
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return false
}

// Unavailable marks the error of a database that is away, so that callers try
// again. The end of the caller's own context gets no better by that.
func Unavailable(err error) error {
	var connect *pgconn.ConnectError // whose time to connect was up, and not the caller's
	if IsAway(err) && (errors.As(err, &connect) || !errors.Is(err, context.DeadlineExceeded)) {
		return problem.Wrap(err, problem.Unavailable, "The database does not answer. Try again in a moment.").After(2 * time.Second)
	}
	return err
}

// IsAway reports whether err says that the database could not be reached, was
// restarted, has no room or took too long: trying again later may help. The
// statement may have happened. An error that is not known to be the database's
// is never one of these: a loop that waits for the database must not wait for
// something that no waiting mends.
func IsAway(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code[:min(2, len(pg.Code))] {
		case "08", "53", "57", "58", "25", "40": // connection, resources, shutdown, system, idle transaction ended, deadlock
			return true
		}
		return false
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
			return true
		}
		return false
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) {
		return true
	}
	for _, lost := range []error{
		driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded,
	} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
}

// bind turns ? into $1, $2… for PostgreSQL. No statement of ours holds a
// literal question mark.
func (d *DB) bind(query string) string {
	if d.dialect == SQLite {
		return query
	}
	if q, ok := d.rebound.Load(query); ok {
		return q.(string)
	}
	q := sqlx.Rebind(sqlx.DOLLAR, query)
	d.rebound.Store(query, q)
	return q
}
