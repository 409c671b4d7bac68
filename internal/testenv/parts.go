package testenv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// StartPostgres starts an empty PostgreSQL. A commit survives Kill, though not
// the machine: fsync is off.
func StartPostgres(ctx context.Context) (*Server, error) {
	postgres, err := Binary("postgres")
	if err != nil {
		return nil, err
	}
	initdb, err := Binary("initdb")
	if err != nil {
		return nil, err
	}
	s := &Server{name: "PostgreSQL", quit: syscall.SIGQUIT}
	// Directly below the temporary folder: PostgreSQL's user must reach it.
	if s.dir, err = os.MkdirTemp("", "zimage-postgres-"); err != nil {
		return nil, err
	}
	as, err := unprivileged(s.dir)
	if err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	data := filepath.Join(s.dir, "data")
	// Without a locale, text sorts by its bytes as it does in SQLite.
	create := exec.CommandContext(ctx, initdb, "--pgdata", data, "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
	create.SysProcAttr, create.Dir = as, s.dir
	if out, err := create.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("initdb: %w: %s", err, out), s.Stop())
	}
	s.command = func() *exec.Cmd {
		args := []string{"-D", data, "-p", strconv.Itoa(s.port)}
		for _, setting := range []string{
			"listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=400", "fsync=off",
		} {
			args = append(args, "-c", setting)
		}
		cmd := exec.Command(postgres, args...)
		cmd.Dir = s.dir
		if as != nil {
			own := *as
			cmd.SysProcAttr = &own
		}
		return cmd
	}
	s.answers = func(ctx context.Context, _ int) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, s.url)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }()
		var theirs string
		if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&theirs); err != nil {
			return err
		}
		if theirs != data {
			return errors.New("another PostgreSQL answers")
		}
		return nil
	}
	return s, s.first(ctx, func() {
		s.url = "postgres://postgres@" + s.Addr() + "/postgres?sslmode=disable"
	})
}

// unprivileged gives dir to the user postgres when we are root, as whom
// PostgreSQL refuses to run, and says how to start a process as that user.
func unprivileged(dir string) (*syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

// StartRedis starts an empty Redis. What it holds is lost by Kill unless kept
// is true, which turns on its append-only file, synced every second.
func StartRedis(ctx context.Context, kept bool) (*Server, error) {
	redis := os.Getenv(RedisVariable)
	if redis == "" {
		var err error
		if redis, err = Binary("redis-server"); err != nil {
			return nil, err
		}
	}
	s := &Server{name: "Redis", quit: syscall.SIGKILL}
	var err error
	if s.dir, err = os.MkdirTemp("", "zimage-redis-"); err != nil {
		return nil, err
	}
	appendOnly := "no"
	if kept {
		appendOnly = "yes"
	}
	s.command = func() *exec.Cmd {
		return exec.Command(redis, "--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir,
			"--save", "", "--appendonly", appendOnly, "--maxmemory-policy", "noeviction")
	}
	s.answers = func(ctx context.Context, pid int) error { return redisAnswers(ctx, s.Addr(), pid) }
	return s, s.first(ctx, func() { s.url = "redis://" + s.Addr() + "/0" })
}

// redisAnswers asks for the process id, which it gives only once its data is
// loaded.
func redisAnswers(ctx context.Context, addr string, pid int) error {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer closeQuietly(conn)
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("PING\r\nINFO server\r\n")); err != nil {
		return err
	}
	lines := bufio.NewScanner(conn)
	for first := true; lines.Scan(); first = false {
		if first && lines.Text() != "+PONG" {
			return errors.New("loading")
		}
		if id, ok := strings.CutPrefix(lines.Text(), "process_id:"); ok {
			if id != strconv.Itoa(pid) {
				return errors.New("another Redis answers")
			}
			return nil
		}
	}
	return errors.Join(errors.New("no answer"), lines.Err())
}

// StartMinio starts an empty MinIO, an S3 server. Its URL holds the access and
// the secret key; S3At reads it.
func StartMinio(ctx context.Context) (*Server, error) {
	minio, err := Binary("minio")
	if err != nil {
		return nil, err
	}
	s := &Server{name: "MinIO", quit: syscall.SIGKILL}
	if s.dir, err = os.MkdirTemp("", "zimage-minio-"); err != nil {
		return nil, err
	}
	access, secret := "zimage"+randomHex(4), randomHex(16)
	s.command = func() *exec.Cmd {
		cmd := exec.Command(minio, "server", "--quiet", "--address", s.Addr(), filepath.Join(s.dir, "data"))
		cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+access, "MINIO_ROOT_PASSWORD="+secret,
			"MINIO_BROWSER=off", "MINIO_UPDATE=off", "HOME="+s.dir)
		return cmd
	}
	s.answers = func(ctx context.Context, _ int) error {
		client, err := parseS3(s.url)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := healthy(ctx, "http://"+s.Addr()+"/minio/health/cluster"); err != nil {
			return err
		}
		c, err := client.client()
		if err != nil {
			return err
		}
		_, err = c.ListBuckets(ctx) // with keys that no other server knows
		return err
	}
	return s, s.first(ctx, func() {
		s.url = (&url.URL{Scheme: "http", User: url.UserPassword(access, secret), Host: s.Addr()}).String()
	})
}

func healthy(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	closeQuietly(res.Body)
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// PrivatePostgres is a PostgreSQL of the test's own, to be killed as it likes.
func PrivatePostgres(t testing.TB) *Server {
	t.Helper()
	return private(t, StartPostgres)
}

// PrivateRedis is a Redis of the test's own; kept as in StartRedis.
func PrivateRedis(t testing.TB, kept bool) *Server {
	t.Helper()
	return private(t, func(ctx context.Context) (*Server, error) { return StartRedis(ctx, kept) })
}

// PrivateMinio is an S3 server of the test's own.
func PrivateMinio(t testing.TB) *Server {
	t.Helper()
	return private(t, StartMinio)
}

// Redis is the redis:// URL of a server of the test's own that forgets when
// killed.
func Redis(t testing.TB) string {
	t.Helper()
	variable(t, RedisVariable)
	return PrivateRedis(t, false).URL()
}

func private(t testing.TB, start func(context.Context) (*Server, error)) *Server {
	t.Helper()
	s, err := start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}
