package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"
)

// atOnce is how many tests run beside each other: they mostly wait for leases.
const atOnce = "6"

func TestMain(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	builds.remove()
	os.Exit(code)
}

// builds are the commands under test, built when first asked for, all from the
// same state of the source.
var builds commands

type commands struct {
	dir    string
	plain  sync.Once
	skewed sync.Once
	failed error
}

// The commands. The skewed workers' clocks are five minutes off until they have
// asked the database.
const (
	binAPI        = "api"
	binWorker     = "worker"
	binScheduler  = "scheduler"
	binZimage     = "zimage"
	binWorkerFast = "worker+300"
	binWorkerSlow = "worker-300"
)

// path of a command's binary.
func (b *commands) path(t testing.TB, name string) string {
	t.Helper()
	b.plain.Do(func() {
		if b.dir, b.failed = os.MkdirTemp("", "zimage-e2e-"); b.failed == nil {
			b.build(b.dir+"/", "", "zimage/cmd/api", "zimage/cmd/worker", "zimage/cmd/scheduler", "zimage/cmd/zimage")
		}
	})
	if name == binWorkerFast || name == binWorkerSlow {
		b.skewed.Do(func() {
			for _, seconds := range []string{"+300", "-300"} {
				b.build(filepath.Join(b.dir, binWorker+seconds), "-X zimage/internal/clock.skewSeconds="+seconds, "zimage/cmd/worker")
			}
		})
	}
	if b.failed != nil {
		t.Fatal(b.failed)
	}
	return filepath.Join(b.dir, name)
}

func (b *commands) build(to, flags string, packages ...string) {
	args := []string{"build", "-ldflags", flags, "-o", to}
	if raced() {
		args = append(args, "-race")
	}
	args = append(args, packages...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil && b.failed == nil {
		b.failed = fmt.Errorf("go build: %w: %s", err, out)
	}
}

// raced reports whether these tests were built with the race detector; then so
// are the commands, and what they do to one another is watched as well.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func (b *commands) remove() {
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}

// until waits for a state, asking every 20 ms, and fails the test when it is
// not there in time.
func until(t testing.TB, within time.Duration, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
