package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The states of Readiness and of its parts.
const (
	StateReady       = "ready"
	StateDegraded    = "degraded"    // it serves, with less: Redis away
	StateUnavailable = "unavailable" // it cannot serve
)

// Readiness is whether this process can serve, and why not.
type Readiness struct {
	State string `json:"state" enum:"ready,degraded,unavailable" doc:"degraded still serves."`
	Parts []Part `json:"parts" nullable:"false" doc:"What it is made of."`
}

// A Part is one thing the process needs. Note says more in words that hold no
// address and no text of a driver: anybody can read it.
type Part struct {
	Name  string `json:"name" doc:"Such as database."`
	State string `json:"state" enum:"ready,degraded,unavailable" doc:"Of this part."`
	Note  string `json:"note,omitempty" doc:"More, in words."`
}

type healthOutput struct {
	Body healthView
}

type healthView struct {
	State   string `json:"state" enum:"alive" doc:"Always alive."`
	Version string `json:"version,omitempty" doc:"Of this program."`
}

func (a *API) health(context.Context, *struct{}) (*healthOutput, error) {
	return &healthOutput{Body: alive(a.rooms.Version)}, nil
}

func alive(version string) healthView { return healthView{State: "alive", Version: version} }

type readyOutput struct {
	Status int
	Body   Readiness
}

func (a *API) ready(ctx context.Context, _ *struct{}) (*readyOutput, error) {
	state := a.probe.state(ctx)
	return &readyOutput{Status: state.status(), Body: state}, nil
}

func (r Readiness) status() int {
	if r.State == StateUnavailable {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

// Operations serves /metrics and the probes for a listener of its own, which
// every role has and the public does not reach. A nil ready is always ready.
func Operations(registry *prometheus.Registry, version string, ready func(context.Context) Readiness) http.Handler {
	p := &probe{ask: ready}
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // the client hung up
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, alive(version)) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		state := p.state(r.Context())
		answer(w, state.status(), state)
	})
	return mux
}

// probe asks the parts at most once a second, however many look: /readyz is
// open to everybody.
type probe struct {
	ask func(context.Context) Readiness

	mu    sync.Mutex
	asked time.Time
	last  Readiness
}

func (p *probe) state(ctx context.Context) Readiness {
	if p.ask == nil {
		return Readiness{State: StateReady, Parts: []Part{}}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.asked) < time.Second {
		return p.last
	}
	// Not the caller's context: one that hangs up must not make it look away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	p.last = p.ask(ctx)
	if p.last.Parts == nil {
		p.last.Parts = []Part{}
	}
	p.asked = time.Now()
	return p.last
}
