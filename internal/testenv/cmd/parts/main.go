// Command parts runs a command, usually go test, beside the real parts that the
// tests use:
//
//	go run ./internal/testenv/cmd/parts -- go test -race ./...
//
// As root on Debian it installs what is missing; elsewhere it says what to run.
// The parts listen on loopback, hold nothing that lasts, and end with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"zimage/internal/testenv"
)

// minioModule is the last release of the MinIO server that builds with go
// install.
const minioModule = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return 2, errors.New("which command? such as: parts -- go test ./internal/jobs")
	}
	// Before the first part starts, so that no signal can leave one behind.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	go followParent(signals)
	if err := install(signals); err != nil {
		return 1, err
	}
	redis, err := testenv.Binary("redis-server")
	if err != nil {
		return 1, err
	}
	ctx := context.Background()
	postgres, err := testenv.StartPostgres(ctx)
	if err != nil {
		return 1, err
	}
	defer stop(postgres)
	minio, err := testenv.StartMinio(ctx)
	if err != nil {
		return 1, err
	}
	defer stop(minio)

	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(),
		testenv.PostgresVariable+"="+postgres.URL(),
		testenv.S3Variable+"="+minio.URL(),
		testenv.RedisVariable+"="+redis)
	return supervise(cmd, signals)
}

// followParent asks us to end when our parent has: a go run that gets SIGTERM
// ends without a word to the program it runs.
func followParent(signals chan<- os.Signal) {
	parent := os.Getppid()
	for os.Getppid() == parent {
		time.Sleep(500 * time.Millisecond)
	}
	signals <- syscall.SIGTERM
}

func stop(s *testenv.Server) {
	if err := s.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
	}
}

// supervise runs the command in a process group of its own, hands the signals
// we get on to that group, and returns the command's exit code.
func supervise(cmd *exec.Cmd, signals <-chan os.Signal) (int, error) {
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	gone, err := testenv.StartBound(cmd)
	if err != nil {
		return 127, err
	}
	for {
		select {
		case s := <-signals:
			if number, ok := s.(syscall.Signal); ok {
				_ = syscall.Kill(-cmd.Process.Pid, number)
			}
		case <-gone:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what the command left running
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

// A step is one command that installs something.
type step struct {
	why  string
	line []string
}

func (s step) String() string { return strings.Join(s.line, " ") }

// missing lists what has to be run before the parts are there.
func missing() ([]step, error) {
	var packages []string
	for program, name := range map[string]string{
		"redis-server": "redis-server", "node": "nodejs", "npm": "npm", "curl": "curl", "jq": "jq", // the tour in docs/api.md
	} {
		if _, err := testenv.Binary(program); err != nil {
			packages = append(packages, name)
		}
	}
	_, noServer := testenv.Binary("postgres")
	_, noInit := testenv.Binary("initdb")
	if noServer != nil || noInit != nil {
		packages = append(packages, "postgresql")
	}
	var steps []step
	if len(packages) > 0 {
		slices.Sort(packages)
		steps = append(steps,
			step{"the list of Debian packages", []string{"apt-get", "-o", "DPkg::Lock::Timeout=300", "update"}},
			step{strings.Join(packages, " and "), append([]string{"apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y"}, packages...)})
	}
	if _, err := testenv.Binary("minio"); err != nil {
		steps = append(steps, step{"MinIO, an S3 server: about 5 minutes, once", []string{"go", "install", minioModule}})
	}
	examples, err := testenv.ExamplesDir()
	if err != nil {
		return nil, err
	}
	if testenv.PackagesInstalled(examples) != nil {
		steps = append(steps, step{"the JavaScript clients that the tests use", []string{"npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", examples}})
	}
	return steps, nil
}

// install runs what is missing as root on Debian, and elsewhere says what to
// run.
func install(signals <-chan os.Signal) error {
	steps, err := missing()
	if err != nil || len(steps) == 0 {
		return err
	}
	if _, err := os.Stat("/etc/debian_version"); err != nil || os.Getuid() != 0 {
		var text strings.Builder
		text.WriteString("the tests need real parts that are not installed here. Run:\n")
		for _, s := range steps {
			fmt.Fprintf(&text, "  %s\n", s)
		}
		text.WriteString("(apt-get as root; without Debian, install redis-server, PostgreSQL, Node.js, npm, curl and jq your system's way)")
		return errors.New(text.String())
	}
	for _, s := range steps {
		fmt.Fprintf(os.Stderr, "parts: installing %s\nparts: %s\n", s.why, s)
		cmd := exec.Command(s.line[0], s.line[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "GOFLAGS=", "GOBIN="+testenv.GoBin())
		cmd.Dir = filepath.Clean(os.TempDir()) // outside of every module
		code, err := supervise(cmd, signals)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("%s: exit code %d", s, code)
		}
	}
	return nil
}
