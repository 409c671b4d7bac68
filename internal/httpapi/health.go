package httpapi

import (
	"context"
	"net/http"
	"sync"
	"time"
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
	return &healthOutput{Body: healthView{State: "alive", Version: a.rooms.Version}}, nil
}

type readyOutput struct {
	Status int
	Body   Readiness
}

func (a *API) ready(ctx context.Context, _ *struct{}) (*readyOutput, error) {
	out := &readyOutput{Status: http.StatusOK, Body: a.probe.state(ctx)}
	if out.Body.State == StateUnavailable {
		out.Status = http.StatusServiceUnavailable
	}
	return out, nil
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
