package app

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/httpapi"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/testenv"
)

// A process on a main database that does not know an erasure of the journal serves
// nothing and takes no job, until the erasure is replayed; also where the object store
// alone has the journal still.
func TestPromise_R7_NothingIsServedBeforeTheReplay(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	settings := map[string]string{"ZIMAGE_DATA": t.TempDir() + "/data", "ZIMAGE_LISTEN": freePort(t)}
	first := open(t, config.RoleUp, settings)
	subject, err := first.Accounts.CreateUser(ctx, "ann@example.org", "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, erasure, at) VALUES ('account', ?, 'era_1', ?)`,
		subject, first.clock.Now().Add(-time.Hour).UnixMilli()); err != nil {
		t.Fatal(err)
	}

	if err := first.Privacy.Look(ctx, false); err != nil {
		t.Fatal(err)
	}
	if _, err := first.keys.Exec(ctx, `DELETE FROM erasure_journal`); err != nil {
		t.Fatal(err)
	}

	a := open(t, config.RoleUp, settings)
	var lines int // a command that serves nothing reads nothing of the object store
	if err := a.keys.Get(ctx, &lines, `SELECT count(*) FROM erasure_journal`); err != nil || lines != 0 {
		t.Errorf("opening takes %d lines in, %v", lines, err)
	}
	var job jobs.Job
	if err := a.db.Tx(ctx, func(tx *db.Tx) (err error) {
		job, err = a.queue.Add(ctx, tx, jobs.NewJob{Kind: kindKeySweep})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	a.start(t, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
	if r := a.Ready(ctx); r.State != httpapi.StateUnavailable {
		t.Errorf("ready: %+v", r)
	}
	status := func(path string) int {
		res, err := http.Get("http://" + a.config.Listen + path) //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	for path, want := range map[string]int{"/v1/models": 503, "/readyz": 503, "/healthz": 200} {
		if got := status(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	time.Sleep(3 * time.Second) // a worker looks every two
	if j, err := jobs.Find(ctx, a.db, job.ID); err != nil || j.State != jobs.Queued {
		t.Errorf("the job is %s, %v", j.State, err)
	}

	done, err := first.Privacy.Replay(ctx)
	if err != nil || done.Erased+done.Open != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	testenv.Eventually(t, 30*time.Second, func() bool { return status("/readyz") == 200 && status("/v1/models") == 401 })
	testenv.Eventually(t, 30*time.Second, func() bool {
		j, err := jobs.Find(ctx, a.db, job.ID)
		return err == nil && j.State == jobs.Succeeded
	})
	if _, err := a.Accounts.FindUser(ctx, "ann@example.org"); err == nil {
		t.Error("the erased account is there")
	}
}

// unreadable is an object store that does not list what it has.
type unreadable struct {
	objects.Store
	away *atomic.Bool
}

func (u unreadable) List(ctx context.Context, prefix, after string, limit int) ([]objects.Info, error) {
	if u.away.Load() {
		return nil, &objects.Error{Op: "list", Code: "connection refused"}
	}
	return u.Store.List(ctx, prefix, after, limit)
}

// Both databases are from before an erasure, and the object store, which alone knows of it,
// does not answer: nothing is served and no job is taken until it does, and then until the
// replay.
func TestPromise_R7_NothingIsServedBeforeTheObjectStoreHasTold(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		settings := map[string]string{"ZIMAGE_DATABASE_URL": url, "ZIMAGE_DATA": t.TempDir() + "/data", "ZIMAGE_LISTEN": freePort(t)}
		first := open(t, config.RoleUp, settings)
		subject, err := first.Accounts.CreateUser(ctx, "ann@example.org", "correct horse battery")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := first.keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, erasure, at) VALUES ('account', ?, 'era_1', ?)`,
			subject, first.clock.Now().Add(-time.Hour).UnixMilli()); err != nil {
			t.Fatal(err)
		}
		if err := first.Privacy.Look(ctx, false); err != nil {
			t.Fatal(err)
		}
		if _, err := first.keys.Exec(ctx, `DELETE FROM erasure_journal`); err != nil {
			t.Fatal(err)
		}

		a := open(t, config.RoleUp, settings)
		away := &atomic.Bool{}
		away.Store(true)
		a.Privacy.Objects = unreadable{a.objects, away}
		var job jobs.Job
		if err := a.db.Tx(ctx, func(tx *db.Tx) (err error) {
			job, err = a.queue.Add(ctx, tx, jobs.NewJob{Kind: kindKeySweep})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		a.start(t, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
		status := func(path string) int {
			res, err := http.Get("http://" + a.config.Listen + path) //nolint:noctx // a test
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			return res.StatusCode
		}
		closed := func(note string) bool {
			r := a.Ready(ctx)
			return r.State == httpapi.StateUnavailable && slices.ContainsFunc(r.Parts, func(p httpapi.Part) bool { return p.Name == "erasures" && strings.Contains(p.Note, note) })
		}
		shut := func(what string) {
			t.Helper()
			time.Sleep(3 * time.Second) // a worker looks every two
			for path, want := range map[string]int{"/v1/models": 503, "/readyz": 503, "/healthz": 200} {
				if got := status(path); got != want {
					t.Errorf("%s: %s: %d, want %d", what, path, got, want)
				}
			}
			if j, err := jobs.Find(ctx, a.db, job.ID); err != nil || j.State != jobs.Queued {
				t.Errorf("%s: the job is %s, %v", what, j.State, err)
			}
		}
		if !closed("does not tell") {
			t.Errorf("ready: %+v", a.Ready(ctx))
		}
		shut("unread")
		away.Store(false)
		testenv.Eventually(t, 30*time.Second, func() bool { return closed("replayed") })
		shut("not replayed")
		if done, err := first.Privacy.Replay(ctx); err != nil || done.Erased+done.Open != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		testenv.Eventually(t, 30*time.Second, func() bool { return status("/readyz") == 200 && status("/v1/models") == 401 })
		testenv.Eventually(t, 30*time.Second, func() bool {
			j, err := jobs.Find(ctx, a.db, job.ID)
			return err == nil && j.State == jobs.Succeeded
		})
	})
}

// The same when the main database is restored while a process runs on it: it closes
// and ends, whatever its role, and the next one waits for the replay.
func TestPromise_R7_ARestoreUnderARunningProcessEndsIt(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		settings := map[string]string{"ZIMAGE_DATABASE_URL": url, "ZIMAGE_DATA": t.TempDir() + "/data"}
		ended := map[config.Role]chan error{}
		var all []*App
		for _, role := range []config.Role{config.RoleAPI, config.RoleWorker, config.RoleScheduler} {
			settings["ZIMAGE_LISTEN"] = freePort(t)
			a := open(t, config.RoleUp, settings)
			a.look = 100 * time.Millisecond
			all = append(all, a)
			started, end := make(chan struct{}), make(chan error, 1)
			ended[role] = end
			go func() { end <- a.Run(ctx, nil, func() { close(started) }, role) }()
			<-started
		}
		subject, err := all[0].Accounts.CreateUser(ctx, "ann@example.org", "correct horse battery")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		for role, end := range ended {
			select {
			case err := <-end:
				t.Fatalf("%s has ended: %v", role, err)
			default:
			}
		}
		if _, err := all[0].keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, erasure, at) VALUES ('account', ?, 'era_1', ?)`,
			subject, all[0].clock.Now().Add(-time.Hour).UnixMilli()); err != nil {
			t.Fatal(err)
		}
		for role, end := range ended {
			select {
			case err := <-end:
				if !errors.Is(err, errRestored) {
					t.Errorf("%s ends with %v", role, err)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("%s goes on", role)
			}
		}
		for _, a := range all {
			if !a.restored.Load() {
				t.Error("one is not closed")
			}
		}
		settings["ZIMAGE_LISTEN"] = freePort(t)
		next := open(t, config.RoleUp, settings)
		next.look = 100 * time.Millisecond
		next.start(t, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
		time.Sleep(500 * time.Millisecond) // it waits, and does not end
		if r := next.Ready(ctx); r.State != httpapi.StateUnavailable {
			t.Errorf("ready: %+v", r)
		}
		if done, err := next.Privacy.Replay(ctx); err != nil || done.Erased+done.Open != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		testenv.Eventually(t, 30*time.Second, func() bool { return next.Ready(ctx).State != httpapi.StateUnavailable })
	})
}
