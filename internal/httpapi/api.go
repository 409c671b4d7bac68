// Package httpapi is the JSON API under /v1, its OpenAPI description, and the
// probes: it binds a request, asks a room, and shows what the room answered.
//
// It never decides about a generation or a key itself, holds no SQL, and writes
// nothing a client sent into a log, a metric or an error.
package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"zimage/internal/account"
	"zimage/internal/clock"
	"zimage/internal/generate"
	"zimage/internal/privacy"
	"zimage/internal/webhook"
)

// Options for New. What does not say otherwise is required.
type Options struct {
	Generate *generate.Service
	Watchers *generate.Watchers // runs beside, for those who wait and stream
	Accounts *account.Service
	Ledger   *privacy.Ledger
	Privacy  *privacy.Service
	// Usage is told which features are used. Nil: nobody is.
	Usage *privacy.Usage
	// Webhooks tells people's programs what happened.
	Webhooks *webhook.Service
	// Closed says that nothing may be served yet, but the probes. Nil: never.
	Closed func() bool
	// Redis shares the rate limits between processes. Nil, or away: each process
	// counts for itself.
	Redis    redis.UniversalClient
	Log      *slog.Logger
	Clock    *clock.Clock
	Registry *prometheus.Registry // nil: a new one
	// TrustedProxies are the addresses or networks whose X-Forwarded-For is
	// believed. Empty: nobody's.
	TrustedProxies []string
	// PublicURL starts every URL in an answer. Empty: URLs are paths.
	PublicURL string
	Version   string
	// RequestsPerMinute of one key; 0 means 600.
	RequestsPerMinute int
	// Policy is what GET /v1/privacy/policy tells.
	Policy privacy.Statement
	// Pages are answered beside the API, by path and for GET alone: web's. One whose
	// path has a parameter takes a place as every public route does.
	Pages map[string]http.Handler
	// Ready says whether this process can serve. Nil: always.
	Ready func(context.Context) Readiness
}

const (
	// ordinaryTime is the limit of a request that neither waits nor streams.
	ordinaryTime = 30 * time.Second
	// sendTime is how long a client may take to read an image or the end of an
	// answer it waited for.
	sendTime = 5 * time.Minute
)

// API serves the routes. Make it with New.
type API struct {
	rooms     Options
	log       *slog.Logger
	base      string // of URLs, without a slash at its end
	secure    bool   // the public address is https
	engine    *gin.Engine
	spec      huma.API
	meters    meters
	keys      *keyLimiter
	failures  *failureLimiter
	origins   *http.CrossOriginProtection
	open      openLimiter
	refusals  refusals // of requests for OpenAI's images
	crowd     *crowd
	strangers strangers

	probe      *kept[Readiness]
	checkpoint *kept[checkpoint]

	openAPI []byte
	docs    []byte

	stop     chan struct{} // closed by Close: streams and waits end
	stopOnce sync.Once
}

// New wires the routes. It starts nothing; an error names what is wrong with
// the options.
func New(o Options) (*API, error) {
	setHuma()
	gin.SetMode(gin.ReleaseMode)
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.RequestsPerMinute <= 0 {
		o.RequestsPerMinute = 600
	}
	a := &API{
		rooms: o, log: o.Log, stop: make(chan struct{}),
		base:   strings.TrimRight(o.PublicURL, "/"),
		secure: strings.HasPrefix(o.PublicURL, "https://"),
		keys:   newKeyLimiter(o.Redis, o.Clock, o.RequestsPerMinute),
	}
	a.failures = newFailureLimiter(o.Clock)
	a.origins = http.NewCrossOriginProtection()
	if a.base != "" {
		// Behind a proxy the Host may be another one than the browser's.
		if err := a.origins.AddTrustedOrigin(a.base); err != nil {
			return nil, fmt.Errorf("public URL: %w", err)
		}
	}
	a.open = openLimiter{most: mostOpen, open: map[string]int{}}
	a.refusals.clock = o.Clock
	a.crowd = newCrowd(mostAtOnce, turnTime)
	a.strangers = newStrangers()
	a.probe = newProbe(o.Ready)
	a.checkpoint = newCheckpoint(o.Ledger)
	var err error
	if a.meters, err = newMeters(o.Registry); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}

	g := gin.New()
	g.RedirectTrailingSlash = false
	g.HandleMethodNotAllowed = true
	// Of no other header is known whether the proxy writes it or lets it through.
	g.RemoteIPHeaders = []string{"X-Forwarded-For"}
	// gin believes whoever comes over a socket. Where nobody is named, nobody is.
	g.ForwardedByClientIP = len(o.TrustedProxies) > 0
	if err := g.SetTrustedProxies(o.TrustedProxies); err != nil {
		return nil, fmt.Errorf("trusted proxies: %w", err)
	}
	a.engine = g
	g.Use(a.begin)
	g.NoRoute(a.noRoute)
	g.NoMethod(a.noMethod)
	a.spec = humagin.New(g, a.config())
	a.routes()
	return a, a.render()
}

// Handler serves the API, its description and the probes.
func (a *API) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{id: newRequestID(), head: r.Method == http.MethodHead}
		r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
		if c.head {
			// Every GET answers HEAD too: the server drops the body by itself, since
			// it still knows the method that came.
			r.Method = http.MethodGet
		}
		// There is one representation of everything: negotiation could only refuse.
		r.Header.Del("Accept")
		a.engine.ServeHTTP(w, r)
	})
}

// Close ends open streams and long polls with what is known then, so that the
// server can shut down. Clients come back by themselves.
func (a *API) Close() { a.stopOnce.Do(func() { close(a.stop) }) }

// untilClose is ctx that also ends when the API closes.
func (a *API) untilClose(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-a.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func (a *API) config() huma.Config {
	format := huma.Format{
		Marshal: func(w io.Writer, v any) error {
			e := json.NewEncoder(w)
			e.SetEscapeHTML(false)
			return e.Encode(v)
		},
		Unmarshal: decodeJSON,
	}
	return huma.Config{
		OpenAPI:       a.document(),
		Formats:       map[string]huma.Format{"application/json": format, problemJSON: format},
		DefaultFormat: "application/json",
	}
}
