package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"zimage/internal/testenv"
)

// build makes the launcher's binary.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "parts")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func TestLauncher(t *testing.T) {
	t.Parallel()
	launcher := build(t)

	t.Run("exit code and environment", func(t *testing.T) {
		t.Parallel()
		script := fmt.Sprintf(`test -n "$%s" && test -n "$%s" && test -x "$%s" && exit 7`,
			testenv.PostgresVariable, testenv.S3Variable, testenv.RedisVariable)
		cmd := exec.CommandContext(t.Context(), launcher, "--", "sh", "-c", script)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("exit code %d, want the command's 7\n%s", code, out)
		}
	})

	t.Run("a signal reaches the command", func(t *testing.T) {
		t.Parallel()
		ready := filepath.Join(t.TempDir(), "ready")
		cmd := exec.CommandContext(t.Context(), launcher, "--", "sh", "-c",
			`trap 'exit 9' TERM; touch "$0"; while :; do sleep 0.05; done`, ready)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, func() bool { _, err := os.Stat(ready); return err == nil })
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 9 {
			t.Errorf("exit code %d, want 9", code)
		}
	})

	t.Run("it ends with its parent", func(t *testing.T) {
		t.Parallel()
		written := filepath.Join(t.TempDir(), "pids")
		// As go run: a parent that ends without handing on its signal.
		cmd := exec.CommandContext(t.Context(), "sh", "-c",
			`"$0" -- sh -c 'echo "$PPID $$" > "$0.new"; mv "$0.new" "$0"; exec sleep 60' "$1" & wait`, launcher, written)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, func() bool { _, err := os.Stat(written); return err == nil })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		text, err := os.ReadFile(written)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, 20*time.Second, func() bool { return !alive(pid) })
		}
	})

	t.Run("parts die with a killed launcher", func(t *testing.T) {
		t.Parallel()
		ready := filepath.Join(t.TempDir(), "ready")
		cmd := exec.CommandContext(t.Context(), launcher, "--", "sh", "-c", `touch "$0"; exec sleep 60`, ready)
		cmd.Env = append(os.Environ(), "TMPDIR="+openTemp(t)) // a killed launcher cannot clean up
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, func() bool { _, err := os.Stat(ready); return err == nil })
		children := childrenOf(t, cmd.Process.Pid)
		if len(children) != 3 {
			t.Errorf("%d children, want PostgreSQL, MinIO and the command", len(children))
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		testenv.Eventually(t, 10*time.Second, func() bool {
			for _, pid := range children {
				if alive(pid) {
					return false
				}
			}
			return true
		})
	})
}

// On a machine with nothing, and outside of the project.
func TestMissing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	t.Chdir(dir)
	if _, err := missing(); err == nil || !strings.Contains(err.Error(), "in the folder of the project") {
		t.Errorf("outside of the project: %v", err)
	}
	examples := filepath.Join(dir, "docs", "examples")
	if err := os.MkdirAll(examples, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(examples, "package-lock.json"), []byte(`{"packages": {}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	steps, err := missing()
	if err != nil {
		t.Fatal(err)
	}
	last := steps[len(steps)-1].String()
	if !strings.HasPrefix(last, "npm ci ") || !strings.HasSuffix(last, " "+examples) {
		t.Errorf("the last step is %s", last)
	}
	packages := " " + strings.Join(steps[1].line, " ") + " "
	for _, name := range []string{"nodejs", "npm", "redis-server"} {
		if !strings.Contains(packages, " "+name+" ") {
			t.Errorf("%s is not installed by %s", name, packages)
		}
	}
}

// openTemp is a temporary folder that PostgreSQL's user may pass through, as it
// may not through the test's own.
func openTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "zimage-parts-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// childrenOf reads the processes whose parent is pid from /proc.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, path := range stats {
		id, parent, _ := stat(path)
		if parent == pid {
			children = append(children, id)
		}
	}
	return children
}

// alive is false for a zombie: nobody may be there to collect it.
func alive(pid int) bool {
	id, _, state := stat(fmt.Sprintf("/proc/%d/stat", pid))
	return id == pid && state != "Z" && state != "X"
}

func stat(path string) (pid, parent int, state string) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, ""
	}
	end := bytes.LastIndexByte(text, ')') // the name before it may hold spaces
	fields := strings.Fields(string(text[end+1:]))
	pid, _ = strconv.Atoi(string(text[:bytes.IndexByte(text, ' ')]))
	parent, _ = strconv.Atoi(fields[1])
	return pid, parent, fields[0]
}
