package app

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"zimage/internal/config"
)

// Main runs one role as a process of its own and returns its exit code. It is
// all that cmd/api, cmd/worker and cmd/scheduler do.
func Main(role config.Role, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(string(role), flag.ContinueOnError)
	flags.SetOutput(stderr)
	version := flags.Bool("version", false, "print the version and exit")
	health := flags.Bool("healthcheck", false, "ask the running process whether it is alive, and exit with 0 or 1")
	flags.Usage = func() {
		_, _ = fmt.Fprintf(stderr, "Usage of %s: all settings are environment variables; see README.md.\n", role)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *version {
		_, _ = fmt.Fprintln(stdout, Version())
		return 0
	}
	c, err := config.ForRole(nil, role)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "%s does not start:\n%s\n", role, err)
		return 2
	}
	if *health {
		if err := healthcheck(c); err != nil {
			_, _ = fmt.Fprintln(stderr, err)
			return 1
		}
		return 0
	}
	ctx, abort, stop := Signals()
	defer stop()
	log := NewLog(c, stderr)
	a, err := Open(ctx, c, string(role), Version(), log)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "%s does not start: %s\n", role, err)
		return 1
	}
	err = errors.Join(a.Run(ctx, abort, nil, role), a.Close())
	if err != nil {
		log.Error("stopped", "error", err)
		return 1
	}
	log.Info("stopped")
	return 0
}

// Run runs the roles, with metrics and probes beside them, until ctx ends or
// one of them fails. started is called once every listener is open, before any
// work is taken on; it may be nil.
func (a *App) Run(ctx context.Context, abort <-chan struct{}, started func(), roles ...config.Role) error {
	if err := a.findRestored(ctx); err != nil {
		return err
	}
	// Before a window of ours is applied: another policy may be in force.
	if err := a.Privacy.Publish(ctx); err != nil {
		return fmt.Errorf("%sPOLICY: %w", config.Prefix, err)
	}
	// Before anything is shown: a window may be shorter than when it was stored.
	if _, err := a.Privacy.ShortenWindows(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	var begin []func() error
	if a.config.MetricsListen != "off" {
		l, err := listen(ctx, "METRICS_LISTEN", a.config.MetricsListen)
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		begin = append(begin, func() error { return a.runOperations(ctx, abort, l) })
	}
	for _, role := range roles {
		switch role {
		case config.RoleAPI:
			l, err := listen(ctx, "LISTEN", a.config.Listen)
			if err != nil {
				return err
			}
			defer func() { _ = l.Close() }()
			begin = append(begin, func() error { return a.runAPI(ctx, abort, l) })
		case config.RoleWorker:
			begin = append(begin, func() error { return a.runWorker(ctx, abort) })
		case config.RoleScheduler:
			begin = append(begin, func() error { return a.runScheduler(ctx) })
		}
	}
	if started != nil {
		started()
	}
	a.log.Info("started", "version", a.version, "roles", len(roles))
	g.Go(func() error {
		a.clock.Keep(ctx, 10*time.Second, a.db.Now, func(err error) { a.log.Debug("could not measure the clock", "error", err) })
		return nil
	})
	g.Go(func() error {
		a.vault.Keep(ctx, a.name, func(err error) { a.log.Warn("could not follow the key ring", "error", err) })
		return nil
	})
	g.Go(func() error { return a.watchRestored(ctx) })
	for _, f := range begin {
		g.Go(f)
	}
	return g.Wait()
}

// Signals ends ctx at the first SIGTERM or SIGINT, which drains, and closes
// abort at the second.
func Signals() (ctx context.Context, abort <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	aborted := make(chan struct{})
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		cancel()
		if _, ok := <-signals; ok {
			close(aborted)
		}
	}()
	return ctx, aborted, func() { signal.Stop(signals); cancel(); close(signals) }
}

// version is set when a release is built.
var version string

// Version of this build.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return "devel-" + s.Value[:min(len(s.Value), 12)]
			}
		}
	}
	return "devel"
}

// healthcheck asks this container's own process, for images without a shell.
func healthcheck(c config.Config) error {
	if c.MetricsListen == "off" {
		return errors.New("healthcheck needs " + config.Prefix + "METRICS_LISTEN")
	}
	return alive(context.Background(), c.MetricsListen, nil)
}

// alive asks whoever listens at one of our addresses whether it is this service.
func alive(ctx context.Context, address string, secure *tls.Config) error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
			host = "127.0.0.1"
		}
		return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	url := "http://localhost/healthz"
	if secure != nil {
		url = "https://localhost/healthz"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: dial, TLSClientConfig: secure, DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return errors.New("the process does not answer")
	}
	defer func() { _ = res.Body.Close() }()
	var said struct{ State string }
	if res.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(res.Body, 4096)).Decode(&said) != nil || said.State != "alive" {
		return errors.New("the process answers " + strings.ToLower(http.StatusText(res.StatusCode)))
	}
	return nil
}
