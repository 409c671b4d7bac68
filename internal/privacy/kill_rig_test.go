//go:build !race

package privacy_test

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"modernc.org/sqlite"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

// A doom is what another process does, and at which step it kills itself.
type doom struct {
	At   privacy.Place
	Do   string // replay, or nothing
	Of   string // the erasure
	Step string
}

const (
	doomVariable = "ZIMAGE_TEST_DOOM"
	doomName     = "doomed" // by which PostgreSQL knows the process
)

// doomedTo is what this process is started for; nil: it is not doomed.
func doomedTo(t testing.TB) *doom {
	t.Helper()
	text := os.Getenv(doomVariable)
	if text == "" {
		return nil
	}
	var d doom
	must(t, json.Unmarshal([]byte(text), &d))
	return &d
}

func (d *doom) at(step string) {
	if step == d.Step {
		die()
	}
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// killed has a test of another process do what it is doomed to, until it is killed.
func killed(t testing.TB, test string, d doom) {
	t.Helper()
	text, err := json.Marshal(d)
	must(t, err)
	other := exec.CommandContext(context.Background(), os.Args[0], "-test.run=^"+test+"$")
	other.Env = append(os.Environ(), doomVariable+"="+string(text))
	var out strings.Builder
	other.Stdout, other.Stderr = &out, &out
	must(t, other.Start())
	ended := make(chan struct{})
	if strings.HasPrefix(d.Step, within) && d.At.Dialect == db.Postgres {
		go killAsleep(t, d.At, other.Process, ended)
	}
	err = other.Wait()
	close(ended)
	if status, ok := other.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s: the other process was not killed: %v %s", d.Step, err, out.String())
	}
}

// within begins the names of steps that are statements.
const within = "within "

// A statement is a change of one row, within which a doomed process is killed.
type statement struct{ table, event, when string }

func (s statement) step() string { return within + s.event + " " + s.table + ", " + s.when }

// SQLite asks the process itself; that of PostgreSQL sleeps until it is killed.
func init() {
	sqlite.MustRegisterScalarFunction("zimage_doomed", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
		if strings.Contains(os.Getenv(doomVariable), `"Step":"`+within) {
			die()
		}
		return int64(0), nil
	})
}

// set has a database kill whoever is doomed when it comes to the statement, until undo.
func (s statement) set(t testing.TB, d *db.DB) (undo func()) {
	t.Helper()
	exec := func(statements ...string) {
		t.Helper()
		for _, text := range statements {
			_, err := d.Exec(context.Background(), text)
			must(t, err)
		}
	}
	if d.Dialect() == db.SQLite {
		exec(fmt.Sprintf(`CREATE TRIGGER doomed BEFORE %s ON %s WHEN %s BEGIN SELECT zimage_doomed(); END`, s.event, s.table, s.when))
		return func() { exec(`DROP TRIGGER doomed`) }
	}
	exec(fmt.Sprintf(`CREATE FUNCTION doomed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF current_setting('application_name') = '%s' AND (%s) THEN PERFORM pg_sleep(60); END IF;
			IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
			RETURN NEW;
		END $$`, doomName, s.when),
		fmt.Sprintf(`CREATE TRIGGER doomed BEFORE %s ON %s FOR EACH ROW EXECUTE FUNCTION doomed()`, s.event, s.table))
	return func() { exec(`DROP TRIGGER doomed ON `+s.table, `DROP FUNCTION doomed()`) }
}

// killAsleep kills a process whose statement sleeps, and ends what is left of it in the
// database.
func killAsleep(t testing.TB, at privacy.Place, p *os.Process, ended <-chan struct{}) {
	for _, address := range []string{at.Database, at.Keys} {
		go func() {
			d, err := db.Open(context.Background(), address, db.Options{MaxConnections: 1})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = d.Close() }()
			const asleep = ` FROM pg_stat_activity WHERE datname = current_database() AND application_name = '` + doomName + `' AND wait_event = 'PgSleep'`
			for {
				var n int
				if err := d.Get(context.Background(), &n, `SELECT count(*)`+asleep); err != nil {
					t.Error(err)
					return
				}
				if n > 0 {
					break
				}
				select {
				case <-ended:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
			_ = p.Kill()
			if err := d.Get(context.Background(), new(int), `SELECT count(pg_terminate_backend(pid))`+asleep); err != nil {
				t.Error(err)
			}
		}()
	}
}

// left waits until a killed process has no session in a database any more.
func left(t testing.TB, d *db.DB) {
	t.Helper()
	if d.Dialect() == db.Postgres {
		testenv.Eventually(t, 30*time.Second, func() bool {
			var n int
			must(t, d.Get(context.Background(), &n, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = '`+doomName+`'`))
			return n == 0
		})
	}
}

// doomed is an object store, and a mail server, whose process kills itself at a step.
type doomed struct {
	objects.Store
	*doom
	gets atomic.Int64
}

func (d *doomed) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	d.at(fmt.Sprintf("picture %d", d.gets.Add(1)))
	return d.Store.Get(ctx, key)
}

func (d *doomed) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	d.at("copy")
	err := d.Store.Put(ctx, key, r, size)
	if err == nil {
		d.at("copied")
	}
	return err
}

func (d *doomed) PutStream(ctx context.Context, key string, r io.Reader) (int64, error) {
	d.at("begin")
	n, err := d.Store.PutStream(ctx, key, r)
	if err == nil {
		d.at("stored")
	}
	return n, err
}

func (d *doomed) Delete(ctx context.Context, keys ...string) error {
	d.at("delete")
	err := d.Store.Delete(ctx, keys...)
	if err == nil {
		d.at("deleted")
	}
	return err
}

func (d *doomed) Send(context.Context, mail.Envelope) error {
	d.at("mail")
	return &mail.Fault{Code: "unreachable"}
}
