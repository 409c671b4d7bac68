package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// A Server is one PostgreSQL, Redis or MinIO of our own. It ends with this
// process, however that ends (on Linux; elsewhere only by Stop).
type Server struct {
	name string
	dir  string // its data and its log; removed by Stop
	port int
	url  string
	quit syscall.Signal // the quickest end after which nothing of it stays behind

	command func() *exec.Cmd
	// answers says that the server at our port is ready, and is ours: the one
	// with this pid, password or data folder.
	answers func(ctx context.Context, pid int) error

	mu      sync.Mutex
	process *os.Process
	gone    <-chan struct{} // closed when process has ended
}

// URL is its address with what one needs to sign in.
func (s *Server) URL() string { return s.url }

// Addr is its host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Dir is the folder of its data and its log.
func (s *Server) Dir() string { return s.dir }

// Kill ends the server at once (SIGKILL) and returns when it is gone. Its data
// stays for Start.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop ends the server and removes its data.
func (s *Server) Stop() error {
	return errors.Join(s.end(s.quit), os.RemoveAll(s.dir))
}

// Start starts a killed server again on the same port and data, and returns
// when it answers.
func (s *Server) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := s.try(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		// PostgreSQL refuses to start while a process of the killed one lives.
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// first starts the server on a port that is free, with the address that build
// makes of it.
func (s *Server) first(ctx context.Context, build func()) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var err error
	for range 5 { // somebody else may take the port before the server does
		if s.port, err = freePort(); err != nil {
			break
		}
		build()
		if err = s.try(ctx); err == nil {
			return nil
		}
	}
	return errors.Join(err, s.Stop())
}

// try starts the server once and waits until it answers.
func (s *Server) try(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return fmt.Errorf("%s already runs", s.name)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	cmd := s.command()
	cmd.Stdout, cmd.Stderr = log, log
	gone, err := StartBound(cmd)
	_ = log.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.process, s.gone = cmd.Process, gone
	if err := s.await(ctx); err != nil {
		_ = s.process.Kill()
		<-gone
		s.process = nil
		return err
	}
	return nil
}

func (s *Server) await(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.answers(ctx, s.process.Pid)
		if err == nil {
			return nil
		}
		select {
		case <-s.gone:
			return fmt.Errorf("%s ended at start; its log says:\n%s", s.name, s.log())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer (%w); its log says:\n%s", s.name, err, s.log())
		case <-tick.C:
		}
	}
}

// log is the end of what the server wrote.
func (s *Server) log() []byte {
	text, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return nil
	}
	const end = 2000
	return bytes.TrimSpace(text[max(0, len(text)-end):])
}

func (s *Server) end(signal syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	if err := s.process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", s.name, err)
	}
	select {
	case <-s.gone:
	case <-time.After(10 * time.Second):
		_ = s.process.Kill()
		<-s.gone
	}
	s.process = nil
	return nil
}

// StartBound starts a child, in a process group of its own, that the kernel
// kills when we die (on Linux), and closes gone when the child has ended and its
// ProcessState is known.
func StartBound(cmd *exec.Cmd) (gone <-chan struct{}, err error) {
	bindToParent(cmd)
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		// The kernel counts from the thread that started the child, so that
		// thread has to live as long as the child does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in cmd.ProcessState
		}
		close(ended)
	}()
	return ended, <-started
}

// freePort picks a port below the range from which kernels serve outgoing
// connections: while a killed server is away, nothing takes its port.
func freePort() (int, error) {
	for range 100 {
		port := 15000 + rand.IntN(17000)
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("no free loopback port found")
}

// Binary finds a part's program: redis-server, minio, postgres or initdb. It
// looks in PATH, in Go's bin folder and where Debian keeps PostgreSQL.
func Binary(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	var places []string
	if bin := GoBin(); bin != "" {
		places = append(places, filepath.Join(bin, name))
	}
	versions, err := filepath.Glob(filepath.Join("/usr/lib/postgresql/*/bin", name))
	if err != nil {
		return "", err
	}
	for _, place := range append(places, versions...) {
		if info, err := os.Stat(place); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return place, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// GoBin is where go install puts programs.
func GoBin() string {
	for _, name := range []string{"GOBIN", "GOPATH"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			continue
		}
		dir := string(bytes.TrimSpace(out))
		if dir == "" {
			continue
		}
		if name == "GOPATH" {
			return filepath.Join(filepath.SplitList(dir)[0], "bin")
		}
		return dir
	}
	return ""
}

func closeQuietly(c io.Closer) { _ = c.Close() }
