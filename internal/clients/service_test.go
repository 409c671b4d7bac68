package clients

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/app"
	"zimage/internal/config"
)

// service is one of the test's own, and what its user has to know.
type service struct {
	t         *testing.T
	url, key  string
	directory string // for the files of the test
}

// start starts the service as zimage up does, in the folder for the test's files,
// with a user and a key that has these scopes.
func start(t *testing.T, scopes ...string) *service {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &service{t: t, directory: t.TempDir()}
	address := free(t)
	c, err := config.ForRole(map[string]string{
		"ZIMAGE_LISTEN": address, "ZIMAGE_METRICS_LISTEN": "off", "ZIMAGE_SHUTDOWN_TIMEOUT": "5s",
		"ZIMAGE_DATA": filepath.Join(s.directory, "zimage-data"), "ZIMAGE_OUTBOUND_LOOPBACK": "true",
	}, config.RoleUp)
	must(err)
	s.url = c.PublicURL
	_, err = app.CreateRoots(c)
	must(err)
	a, err := app.Open(t.Context(), c, "up", "test", slog.New(slog.DiscardHandler))
	must(err)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	owner, err := a.Accounts.CreateUser(t.Context(), "ada@example.org", "four words nobody guesses")
	must(err)
	s.key, _, err = a.Accounts.CreateKey(t.Context(), owner, "test", scopes, time.Time{})
	must(err)

	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- a.Run(ctx, nil, func() { close(started) }, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-started:
	case err := <-ended:
		ended <- nil
		t.Fatal("it does not start: ", err)
	}
	return s
}

// usual are the scopes of a key that makes pictures.
var usual = []string{account.ScopeGenerate, account.ScopeRead}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// as puts the service and its key into a program's environment, runs it, and
// returns what it printed.
func (s *service) as(cmd *exec.Cmd) (stdout string, err error) {
	cmd.Env = append(cmd.Env, "ZIMAGE_PUBLIC_URL="+s.url, "ZIMAGE_KEY="+s.key)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%w\n%s", err, &errs)
	}
	return out.String(), err
}
