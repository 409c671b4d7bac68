package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"zimage/internal/config"
	"zimage/internal/httpapi"
	"zimage/internal/web"
)

// runAPI serves the API until ctx ends; requests in flight may finish.
func (a *App) runAPI(ctx context.Context, abort <-chan struct{}, listener net.Listener) error {
	watchers := a.Generate.NewWatchers()
	policy := a.statement()
	pages, err := web.New(web.Options{Policy: policy, Clock: a.clock, Shares: a.Generate})
	if err != nil {
		return err
	}
	api, err := httpapi.New(httpapi.Options{
		Generate: a.Generate, Watchers: watchers, Accounts: a.Accounts, Ledger: a.Ledger, Privacy: a.Privacy, Usage: a.Usage, Webhooks: a.Webhooks, Redis: a.redis, Log: a.log, Clock: a.clock,
		Registry: a.registry, TrustedProxies: a.config.TrustedProxies, PublicURL: a.config.PublicURL, Version: a.version,
		RequestsPerMinute: a.config.RequestsPerMinute, Policy: policy, Pages: pages, Ready: a.Ready, Closed: a.closed,
	})
	if err != nil {
		return err
	}
	var beside sync.WaitGroup
	besideCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer beside.Wait()
	defer stop()
	beside.Go(func() { watchers.Run(besideCtx) })
	beside.Go(func() { _ = a.awaitReplay(besideCtx) })
	if a.Usage != nil {
		beside.Go(func() { a.Usage.Run(besideCtx) })
	}
	beside.Go(func() {
		a.Accounts.Run(besideCtx, func(err error) { a.log.Warn("could not tidy up behind accounts", "error", err) })
	})
	tls, err := a.config.ServerTLS()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: api.Handler(), TLSConfig: tls,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 60 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
	}
	server.RegisterOnShutdown(api.Close)
	return a.serve(ctx, abort, server, listener)
}

// runOperations serves /metrics and the probes on their own listener, for every
// role, until ctx ends.
func (a *App) runOperations(ctx context.Context, abort <-chan struct{}, listener net.Listener) error {
	server := &http.Server{Handler: httpapi.Operations(a.registry, a.version, a.Ready), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	return a.serve(ctx, abort, server, listener)
}

// listen opens the listener that a setting names.
func listen(ctx context.Context, variable, address string) (net.Listener, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	if network == "unix" {
		removeStaleSocket(address)
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("%s%s: %w", config.Prefix, variable, err)
	}
	return l, nil
}

// removeStaleSocket removes the socket that a killed process left: one that
// nobody listens on. What is no socket, or answers, stays and is an error.
func removeStaleSocket(path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(path)
	}
}

// serve serves until ctx ends; then requests in flight may finish, for a while
// or until abort is closed.
func (a *App) serve(ctx context.Context, abort <-chan struct{}, server *http.Server, listener net.Listener) error {
	server.BaseContext = func(net.Listener) context.Context { return context.WithoutCancel(ctx) }
	server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // its lines hold clients' addresses
	failed := make(chan error, 1)
	go func() {
		if server.TLSConfig != nil {
			failed <- server.ServeTLS(listener, "", "")
		} else {
			failed <- server.Serve(listener)
		}
	}()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(a.config.ShutdownTimeout, 15*time.Second))
	defer cancel()
	go func() {
		select {
		case <-abort:
			cancel()
		case <-drain.Done():
		}
	}()
	if err := server.Shutdown(drain); err != nil {
		return server.Close()
	}
	return nil
}

// Ready asks every part. The database and the keys are needed; without Redis or
// object storage the service goes on with less, and says so.
func (a *App) Ready(ctx context.Context) httpapi.Readiness {
	parts := []struct {
		name, note string
		needed     bool
		check      func(context.Context) error
	}{
		{"database", "does not answer", true, a.db.Ping},
		{"keys", "the key store does not answer", true, a.keys.Ping},
		{"redis", "away; work is found every two seconds instead, and progress is coarse", false, func(ctx context.Context) error { return a.redis.Ping(ctx).Err() }},
		{"objects", "does not take objects; results wait in memory and are stored when it does", false, a.objects.Check},
	}
	out := httpapi.Readiness{State: httpapi.StateReady, Parts: make([]httpapi.Part, len(parts))}
	var work sync.WaitGroup
	for i, p := range parts {
		work.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			out.Parts[i] = httpapi.Part{Name: p.name, State: httpapi.StateReady}
			if p.check(ctx) != nil {
				out.Parts[i].State, out.Parts[i].Note = httpapi.StateDegraded, p.note
				if p.needed {
					out.Parts[i].State = httpapi.StateUnavailable
				}
			}
		})
	}
	work.Wait()
	if a.restored.Load() {
		out.Parts = append(out.Parts, httpapi.Part{Name: "erasures", State: httpapi.StateUnavailable, Note: "the database was restored from before something was erased, deleted or ended, which must be replayed first"})
	} else if a.unread.Load() {
		out.Parts = append(out.Parts, httpapi.Part{Name: "erasures", State: httpapi.StateUnavailable, Note: "the object store does not tell what was erased, deleted or ended; until it does, nothing is served"})
	}
	if !a.clock.Plausible() {
		out.Parts = append(out.Parts, httpapi.Part{Name: "clock", State: httpapi.StateDegraded, Note: "the database's differs from this machine's; no generation is accepted, and nothing is deleted because of a time"})
	}
	if n := a.Generate.ResultsWaiting(); n > 0 {
		out.Parts = append(out.Parts, httpapi.Part{Name: "results", State: httpapi.StateDegraded, Note: fmt.Sprintf("%d wait in memory to be stored", n)})
	}
	for _, p := range out.Parts {
		if p.State == httpapi.StateUnavailable || (p.State == httpapi.StateDegraded && out.State == httpapi.StateReady) {
			out.State = p.State
		}
	}
	return out
}
