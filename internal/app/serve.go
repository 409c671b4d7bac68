package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"zimage/internal/httpapi"
)

// RunAPI serves the API until ctx ends; requests in flight may finish.
func (a *App) RunAPI(ctx context.Context) error {
	watchers := a.Generate.NewWatchers()
	api, err := httpapi.New(httpapi.Options{
		Generate: a.Generate, Watchers: watchers, Accounts: a.Accounts, Redis: a.redis, Log: a.log, Clock: a.clock,
		Registry: a.registry, TrustedProxies: a.config.TrustedProxies, PublicURL: a.config.PublicURL, Version: a.version,
		RequestsPerMinute: a.config.RequestsPerMinute, Ready: a.Ready,
	})
	if err != nil {
		return err
	}
	var beside sync.WaitGroup
	besideCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer beside.Wait()
	defer stop()
	beside.Go(func() { watchers.Run(besideCtx) })
	beside.Go(func() {
		a.Accounts.Run(besideCtx, func(err error) { a.log.Warn("could not note when keys were used", "error", err) })
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
	return a.serve(ctx, server, a.config.Listen)
}

// RunOperations serves /metrics and the probes on their own listener, for every
// role, until ctx ends.
func (a *App) RunOperations(ctx context.Context) error {
	if a.config.MetricsListen == "off" {
		<-ctx.Done()
		return nil
	}
	server := &http.Server{Handler: httpapi.Operations(a.registry, a.version, a.Ready), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	return a.serve(ctx, server, a.config.MetricsListen)
}

func (a *App) serve(ctx context.Context, server *http.Server, address string) error {
	var listener net.Listener
	var err error
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		listener, err = net.Listen("unix", path)
	} else {
		listener, err = net.Listen("tcp", address)
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server.BaseContext = func(net.Listener) context.Context { return context.WithoutCancel(ctx) }
	failed := make(chan error, 1)
	go func() {
		if server.TLSConfig != nil {
			failed <- server.ServeTLS(listener, "", "")
		} else {
			failed <- server.Serve(listener)
		}
	}()
	a.log.Info("listening", "address", listener.Addr().String())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(a.config.ShutdownTimeout, 15*time.Second))
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		return errors.Join(err, server.Close())
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

// embedded reports whether Redis runs in this very process.
func (a *App) embedded() bool { return strings.HasPrefix(a.config.DatabaseURL, "sqlite:") }
