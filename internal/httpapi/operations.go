package httpapi

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Operations serves /metrics and the probes of any role, for a listener of its
// own that the public does not reach.
func Operations(registry *prometheus.Registry, version string, ready func(context.Context) Readiness) http.Handler {
	p := &probe{ask: ready}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeState(w, http.StatusOK, healthView{State: "alive", Version: version})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		state := p.state(r.Context())
		status := http.StatusOK
		if state.State == StateUnavailable {
			status = http.StatusServiceUnavailable
		}
		writeState(w, status, state)
	})
	return mux
}

func writeState(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // whoever asked has gone
}
