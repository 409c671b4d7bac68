//go:build unix

package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/testenv"
)

// ringFile is the key ring of an installation that was made at the clock's time.
func ringFile(t *testing.T, c *clock.Clock) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "roots.yaml")
	first, err := newRingKey(c.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := ring{Current: first}.text()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func reading(t *testing.T, path string) *Roots {
	t.Helper()
	r, err := ReadRoots(path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func rotate(t *testing.T, v *Vault, o RotateOptions) Rotation {
	t.Helper()
	r, err := v.Rotate(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// copyStore is a backup of the key store, restored into a database of its own.
func copyStore(t *testing.T, from *db.DB) string {
	t.Helper()
	ctx := context.Background()
	url := testenv.DatabaseURL(t, from.Dialect())
	to, err := db.Open(ctx, url, db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	if _, err := to.Migrate(ctx, Migrations()); err != nil {
		t.Fatal(err)
	}
	var keysets []keysetRow
	var own []installationRow
	err = errors.Join(from.Select(ctx, &keysets, `SELECT subject, field, object, root_id, destroyed_at FROM keysets`),
		from.Select(ctx, &own, selectInstallation))
	for _, k := range keysets {
		_, e := to.Exec(ctx, `INSERT INTO keysets (subject, field, object, root_id, created_at, destroyed_at) VALUES (?, ?, ?, ?, 1, ?)`,
			k.Subject, k.Field, k.Object, k.RootID, k.DestroyedAt)
		err = errors.Join(err, e)
	}
	for _, k := range own {
		_, e := to.Exec(ctx, `INSERT INTO installation_keys (name, wrapped, root_id) VALUES (?, ?, ?)`, k.Name, k.Wrapped, k.RootID)
		err = errors.Join(err, e)
	}
	if err != nil || len(own) < 2 {
		t.Fatalf("copied %d of the installation's keys: %v", len(own), err)
	}
	return url
}

func TestRotationKeepsTwoRootsAndABackupFromBeforeOpensNothingInTheEnd(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		path := ringFile(t, c)
		if err := os.Chmod(path, 0o400); err != nil {
			t.Fatal(err)
		}
		v := mustProcess(t, url, reading(t, path), c)
		create(t, v, "sub_a", "sub_b")
		sealed := seal(t, v, "sub_a", "a prompt", nil)
		gone := seal(t, v, "sub_b", "an erased prompt", nil)
		signature, lookup := string(v.Sign([]byte("x"))), v.Lookup("email", "a")
		first := v.roots.Current()
		backup := copyStore(t, v.keys)
		original, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Destroy(ctx, "sub_b"); err != nil {
			t.Fatal(err)
		}
		until := v.Unrecoverable()
		if want := start.Add(2 * RotateEvery); !until.Equal(want) {
			t.Errorf("a key destroyed today is unrecoverable from %v, want %v", until, want)
		}
		if _, err := v.Rotate(ctx, RotateOptions{Retire: true}); err == nil || !strings.Contains(err.Error(), "no previous") {
			t.Errorf("nothing to retire: %v", err)
		}

		c.Advance(RotateEvery)
		var told []string
		r := rotate(t, v, RotateOptions{Progress: func(done, total int) { told = append(told, fmt.Sprint(done, "/", total)) }})
		if !r.Made || r.Previous != first || r.Current == first || r.Retired != "" || r.Rewrapped != 1 || len(told) != 1 {
			t.Errorf("%+v, told %v", r, told)
		}
		if !r.Created.Equal(c.Now()) || !r.RetireDue.Equal(c.Now().Add(RotateEvery)) {
			t.Errorf("dates %v and %v", r.Created, r.RetireDue)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o400 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		// Within the 14 days a backup from before is of use, and another call does nothing.
		wantOpen(t, mustProcess(t, copyStore(t, mustProcess(t, backup, reading(t, path), c).keys), reading(t, path), c), "sub_a", sealed, nil, "a prompt")
		c.Advance(RotateEvery - time.Second)
		if again := rotate(t, v, RotateOptions{}); again.Made || again.Retired != "" || again.Current != r.Current || again.Rewrapped != 0 {
			t.Errorf("again too soon: %+v", again)
		}

		c.Advance(time.Second)
		if c.Now().After(until) {
			t.Error("the date that was promised has passed")
		}
		third := rotate(t, v, RotateOptions{})
		if !third.Made || third.Retired != first || third.Previous != r.Current {
			t.Errorf("%+v", third)
		}
		text, err := os.ReadFile(path)
		if err != nil || strings.Contains(string(text), first) {
			t.Errorf("the retired root is still in the file (%v)", err)
		}
		after := mustProcess(t, url, reading(t, path), c)
		wantOpen(t, after, "sub_a", sealed, nil, "a prompt")
		if string(after.Sign([]byte("x"))) != signature || after.Lookup("email", "a") != lookup {
			t.Error("the installation's own keys changed")
		}
		var missing *RootError
		if _, err := process(t, backup, reading(t, path), c); !errors.As(err, &missing) || missing.ID != first {
			t.Errorf("the backup from before: %v", err)
		}
		// It would have opened the erased: what keeps it shut is the root that is gone.
		old, err := ParseRoots(string(original))
		if err != nil {
			t.Fatal(err)
		}
		wantOpen(t, mustProcess(t, backup, old, c), "sub_b", gone, nil, "an erased prompt")

		if last := rotate(t, v, RotateOptions{Retire: true}); last.Retired != r.Current || last.Previous != "" || last.Made {
			t.Errorf("retired early: %+v", last)
		}
		wantOpen(t, mustProcess(t, url, reading(t, path), c), "sub_a", sealed, nil, "a prompt")
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
			t.Errorf("left beside the ring: %v, %v", left, err)
		}
	})
}

func TestARootThatIsNeededIsNotRetired(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		path := ringFile(t, c)
		v := mustProcess(t, url, reading(t, path), c)
		create(t, v, "sub_a")
		rotate(t, v, RotateOptions{})
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// A keyset that does not open, still wrapped with the previous root.
		if _, err := v.keys.Exec(ctx, `INSERT INTO keysets (subject, field, object, root_id, created_at) SELECT 'sub_x', field, object, ?, 1 FROM keysets`, v.roots.Previous()); err != nil {
			t.Fatal(err)
		}
		for _, o := range []RotateOptions{{Retire: true}, {}} {
			c.Advance(2 * RotateEvery)
			if _, err := v.Rotate(ctx, o); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		if _, err := v.keys.Exec(ctx, `DELETE FROM keysets WHERE subject = 'sub_x'`); err != nil {
			t.Fatal(err)
		}
		// A process that would go on wrapping with it.
		stale := `INSERT INTO key_rings (id, name, current, previous, seen_at) VALUES ('proc_1', 'worker', ?, '', ?)`
		if _, err := v.keys.Exec(ctx, stale, v.roots.Previous(), c.Millis()); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Rotate(ctx, RotateOptions{Retire: true}); !errors.Is(err, ErrRootNeeded) || !strings.Contains(err.Error(), "worker") {
			t.Errorf("beside a stale process: %v", err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != string(before) {
			t.Errorf("the ring was changed (%v)", err)
		}
		c.Advance(processDie)
		rotate(t, v, RotateOptions{Retire: true})
	})
}

// Running processes take the ring over without a restart, and nothing is wrapped
// anew before they all have it.
func TestRunningProcessesFollowARotation(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		running, stop := context.WithCancel(ctx)
		c := clock.Manual(start)
		path := ringFile(t, c)
		elsewhere := filepath.Join(t.TempDir(), "roots.yaml")
		distribute := func() {
			t.Helper()
			text, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(elsewhere+".new", text, 0o600)
			}
			if err = errors.Join(err, os.Rename(elsewhere+".new", elsewhere)); err != nil {
				t.Fatal(err)
			}
		}
		distribute()
		operator, here, there := mustProcess(t, url, reading(t, path), c), mustProcess(t, url, reading(t, path), c), mustProcess(t, url, reading(t, elsewhere), c)
		var work sync.WaitGroup
		for name, v := range map[string]*Vault{"api": here, "worker": there} {
			work.Go(func() { v.Keep(running, name, func(err error) { t.Error(err) }) })
		}
		defer work.Wait()
		defer stop()
		names := func() string {
			s, err := operator.processes(ctx, operator.keys, `1 = 1`)
			if err != nil {
				t.Error(err)
			}
			return s
		}
		testenv.Eventually(t, 30*time.Second, func() bool { return names() == "api, worker" })
		const people = 20
		sealed := make([][]byte, people)
		for i := range people {
			create(t, here, fmt.Sprint("sub_", i))
			sealed[i] = seal(t, here, fmt.Sprint("sub_", i), "x", nil)
		}
		opens := func(v *Vault) {
			t.Helper()
			v.cache = newCache() // as after a minute
			for i, s := range sealed {
				wantOpen(t, v, fmt.Sprint("sub_", i), s, nil, "x")
			}
		}

		// The worker's copy is not replaced: after a while the rotation says so, and it can be called again.
		_, err := operator.Rotate(ctx, RotateOptions{Wait: time.Millisecond})
		if err == nil || !strings.Contains(err.Error(), "worker") || !strings.Contains(err.Error(), "nothing is wrapped") {
			t.Fatalf("without the worker: %v", err)
		}
		opens(there)
		var n int
		if err := operator.keys.Get(ctx, &n, `SELECT count(*) FROM keysets WHERE root_id = ?`, operator.roots.Current()); err != nil || n != 0 {
			t.Errorf("%d keysets are wrapped with a root that the worker lacks (%v)", n, err)
		}
		waited := ""
		r := rotate(t, operator, RotateOptions{Wait: time.Minute, Waiting: func(processes string) { waited = processes; distribute() }})
		if r.Rewrapped != people || r.Made || !strings.Contains(waited, "worker") {
			t.Errorf("%+v, waited for %q", r, waited)
		}
		for _, v := range []*Vault{here, there} {
			opens(v)
			if v.roots.Current() != r.Current {
				t.Error("a process wraps with the old root")
			}
		}

		// A new person is wrapped with the new root at once, whenever the process looks next.
		c.Advance(RotateEvery)
		stop() // the worker's copy would be waited for
		work.Wait()
		rotate(t, operator, RotateOptions{})
		create(t, here, "sub_new")
		var root string
		if err := operator.keys.Get(ctx, &root, `SELECT root_id FROM keysets WHERE subject = 'sub_new'`); err != nil || root != operator.roots.Current() {
			t.Errorf("wrapped with %s (%v)", root, err)
		}
		if left := func() (n int) {
			_ = operator.keys.Get(context.Background(), &n, `SELECT count(*) FROM key_rings`)
			return n
		}(); left != 0 {
			t.Errorf("%d processes that ended are waited for", left)
		}
	})
}

func TestARingOfAnotherInstallationIsNotTakenOver(t *testing.T) {
	t.Parallel()
	path := ringFile(t, clock.Manual(start))
	r := reading(t, path)
	before := r.Current()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func() error{
		"another ring": func() error { return os.Rename(ringFile(t, clock.Manual(start)), path) },
		"half a ring":  func() error { return os.WriteFile(path, []byte("current:"), 0o600) },
		"for others": func() error { // the same ring, of another size so that it is read again
			return errors.Join(os.WriteFile(path, append(good, '\n'), 0o600), os.Chmod(path, 0o644)) //nolint:gosec // that is the test
		},
		"none": func() error { return os.Remove(path) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if err := r.Refresh(); err == nil || r.Current() != before {
			t.Errorf("%s: %v, current %s", what, err, r.Current())
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTwoRotationsAtOnceMakeOneRoot(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		c := clock.Manual(start)
		path := ringFile(t, c)
		create(t, mustProcess(t, url, reading(t, path), c), "sub_a", "sub_b")
		var work sync.WaitGroup
		results := make([]Rotation, 4)
		for i := range results {
			v := mustProcess(t, url, reading(t, path), c)
			work.Go(func() {
				var err error
				if results[i], err = v.Rotate(context.Background(), RotateOptions{}); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		made := 0
		for _, r := range results {
			if r.Made {
				made++
			}
			if r.Current != results[0].Current {
				t.Errorf("%s and %s are current", r.Current, results[0].Current)
			}
		}
		if made != 1 {
			t.Errorf("%d roots were made", made)
		}
	})
}

const killVariable = "ZIMAGE_TEST_KILL_ROTATION"

// TestKilledRotation is the process that TestARotationMayBeKilledAnywhere kills.
func TestKilledRotation(t *testing.T) {
	step := os.Getenv(killVariable)
	if step == "" {
		return
	}
	at, url, _ := strings.Cut(step, " ")
	url, path, _ := strings.Cut(url, " ")
	c := clock.Manual(start.Add(RotateEvery))
	v := mustProcess(t, url, reading(t, path), c)
	rotate(t, v, RotateOptions{at: func(step string) {
		if step == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}})
}

func TestARotationMayBeKilledAnywhere(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"written", "renamed", "replaced", "known", "batch"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			testenv.DatabaseURLs(t, func(t *testing.T, url string) {
				ctx := context.Background()
				c := clock.Manual(start)
				path := ringFile(t, c)
				v := mustProcess(t, url, reading(t, path), c)
				const people = batch + 5
				for i := range people {
					create(t, v, fmt.Sprintf("sub_%03d", i))
				}
				sealed := seal(t, v, "sub_000", "x", nil)
				late := seal(t, v, fmt.Sprintf("sub_%03d", people-1), "y", nil)
				c.Advance(RotateEvery)
				killed := exec.Command(os.Args[0], "-test.run=^TestKilledRotation$") //nolint:gosec // this test
				killed.Env = append(os.Environ(), killVariable+"="+step+" "+url+" "+path)
				out, err := killed.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("it was not killed: %v\n%s", err, out)
				}

				// A process that ran all the time, and one that starts now.
				v.cache = newCache()
				wantOpen(t, v, "sub_000", sealed, nil, "x")
				then := mustProcess(t, url, reading(t, path), c)
				wantOpen(t, then, fmt.Sprintf("sub_%03d", people-1), late, nil, "y")

				r := rotate(t, v, RotateOptions{})
				if r.Previous == "" || r.Retired != "" || r.Made != (step == "written") {
					t.Errorf("%+v", r)
				}
				var n int
				if err := v.keys.Get(ctx, &n, `SELECT count(*) FROM keysets WHERE root_id = ?`, r.Current); err != nil || n != people {
					t.Errorf("%d of %d keysets are wrapped with the new root (%v)", n, people, err)
				}
				rotate(t, v, RotateOptions{Retire: true})
				last := mustProcess(t, url, reading(t, path), c)
				wantOpen(t, last, "sub_000", sealed, nil, "x")
				wantOpen(t, last, fmt.Sprintf("sub_%03d", people-1), late, nil, "y")
				if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
					t.Errorf("left beside the ring: %v, %v", left, err)
				}
			})
		})
	}
}
