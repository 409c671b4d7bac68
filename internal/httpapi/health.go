package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
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
	state := a.probe.get(ctx)
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
	p := newProbe(ready)
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
		state := p.get(r.Context())
		answer(w, state.status(), state)
	})
	return mux
}

// newProbe asks the parts at most once a second.
func newProbe(ready func(context.Context) Readiness) *kept[Readiness] {
	return &kept[Readiness]{life: time.Second, ask: func(ctx context.Context) Readiness {
		r := Readiness{State: StateReady}
		if ready != nil {
			r = ready(ctx)
		}
		if r.Parts == nil {
			r.Parts = []Part{}
		}
		return r
	}}
}

// kept is what everybody may ask for: it is asked for at most once in its life,
// however many look, and who comes while it is asked for anew gets what it was.
type kept[T any] struct {
	life time.Duration
	ask  func(context.Context) T

	asking sync.Mutex
	last   atomic.Pointer[keptAt[T]]
}

type keptAt[T any] struct {
	value T
	at    time.Time
}

func (k *kept[T]) get(ctx context.Context) T {
	l := k.last.Load()
	switch {
	case l != nil && time.Since(l.at) < k.life:
		return l.value
	case l == nil:
		k.asking.Lock()
	case !k.asking.TryLock():
		return l.value
	}
	defer k.asking.Unlock()
	if l := k.last.Load(); l != nil && time.Since(l.at) < k.life {
		return l.value // somebody asked while we waited
	}
	// Not the caller's context: one that hangs up must not make it look away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	fresh := &keptAt[T]{value: k.ask(ctx)}
	fresh.at = time.Now()
	k.last.Store(fresh)
	return fresh.value
}
