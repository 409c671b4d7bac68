package httpapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/account"
	"zimage/internal/privacy"
	"zimage/internal/problem"
)

// call is what is known of one request, for its log line and its errors.
type call struct {
	id     string            // ours; one that the client sends is not read
	who    account.Principal // whom it acts for; none on public routes
	owner  string            // who.Subject
	token  string            // of the key or session, to look again whether it still holds
	client account.Client    // who asks, as far as can be seen
	code   string            // of the problem that was answered
	route  string            // the operation's id, once the request was let in
	screen string            // size of the screen, told with consent
	head   bool              // HEAD came; it is served as GET
	quiet  bool              // no line is logged of it

	writer   http.ResponseWriter // to move the deadlines of its connection
	stranger *stranger           // on public routes, once it has a place
	leave    func()              // gives its place back; may be called again
}

// idle gives the request's place to another: from here on it waits, or sends what
// is read elsewhere.
func (c *call) idle() {
	if c.leave != nil {
		c.leave()
	}
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

func (c *call) attrs(more ...slog.Attr) []slog.Attr {
	list := []slog.Attr{slog.String("request_id", c.id)}
	if c.who.KeyID != "" {
		list = append(list, slog.String("key_id", c.who.KeyID))
	}
	if c.who.SessionID != "" {
		list = append(list, slog.String("session_id", c.who.SessionID))
	}
	return append(list, more...)
}

var requestIDs = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

func newRequestID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return "req_" + requestIDs.EncodeToString(b[:])
}

// LogRequestID adds the request id to every line that is logged with the
// context of a request, also by the rooms.
func LogRequestID(h slog.Handler) slog.Handler { return requestIDHandler{h} }

type requestIDHandler struct{ slog.Handler }

func (h requestIDHandler) Handle(ctx context.Context, r slog.Record) error {
	if c := callOf(ctx); c.id != "" {
		present := false
		r.Attrs(func(a slog.Attr) bool {
			present = a.Key == "request_id"
			return !present
		})
		if !present {
			r = r.Clone()
			r.AddAttrs(slog.String("request_id", c.id))
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h requestIDHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return requestIDHandler{h.Handler.WithAttrs(attrs)}
}

func (h requestIDHandler) WithGroup(name string) slog.Handler {
	return requestIDHandler{h.Handler.WithGroup(name)}
}

type meters struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	streams  prometheus.Gauge
}

func newMeters(r *prometheus.Registry) (meters, error) {
	m := meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zimage_http_requests_total", Help: "Requests answered, by route template, method and status.",
		}, []string{"route", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "zimage_http_request_seconds", Help: "Time from the first byte of a request to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"route", "method"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_http_open_streams", Help: "Event streams that are open now.",
		}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.streams} {
		if err := r.Register(c); err != nil {
			return m, err
		}
	}
	return m, nil
}

// statusClientGone counts requests whose client hung up before the answer: they
// are no failure of ours.
const statusClientGone = 499

// begin is around every request: headers, panics, the log line, the metrics.
func (a *API) begin(c *gin.Context) {
	started := time.Now()
	call := callOf(c.Request.Context())
	call.writer = c.Writer
	call.client = a.clientOf(c)
	call.client.Idle = call.idle
	h := c.Writer.Header()
	h.Set("X-Request-ID", call.id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "private, no-store")
	if a.secure || c.Request.TLS != nil {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	if c.Request.ContentLength != 0 && c.Request.ProtoMajor == 1 {
		// Otherwise the server reads the rest of a body before it sends an answer,
		// and whoever withholds it holds the answer. readStrict takes it back when
		// the body is there.
		h.Set("Connection", "close")
	}
	defer func() {
		route, method, status := c.FullPath(), methodName(c.Request.Method, call.head), c.Writer.Status()
		if route == "" {
			route = "none"
		}
		if status >= http.StatusInternalServerError && c.Request.Context().Err() != nil {
			status = statusClientGone
		}
		took := time.Since(started)
		a.meters.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
		a.meters.seconds.WithLabelValues(route, method).Observe(took.Seconds())
		if a.rooms.Usage != nil && call.owner != "" && status < http.StatusBadRequest {
			a.rooms.Usage.Note(privacy.Use{Subject: call.owner, Caller: cmp.Or(call.who.KeyID, call.who.SessionID), Feature: call.route,
				Look: c.Request.Method == http.MethodGet, Addr: call.client.Addr, Agent: call.client.Agent, Screen: call.screen})
		}
		if call.quiet {
			return
		}
		attrs := call.attrs(slog.String("route", route), slog.String("method", method), slog.Int("status", status),
			slog.Float64("ms", float64(took.Microseconds())/1000))
		if call.code != "" {
			attrs = append(attrs, slog.String("code", call.code))
		}
		a.log.LogAttrs(c.Request.Context(), slog.LevelInfo, "request", attrs...)
	}()
	defer call.idle()
	defer a.recovered(c)
	if path := c.FullPath(); a.rooms.Closed != nil && a.rooms.Closed() && path != "/healthz" && path != "/readyz" {
		a.fail(c, problem.New(problem.Unavailable, "The service is not open yet: it makes sure first that it shows nothing that was deleted.").After(time.Minute))
		return
	}
	c.Next()
}

// methodName keeps methods that a client made up out of logs and labels.
func methodName(m string, head bool) string {
	if head {
		return http.MethodHead
	}
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

func (a *API) noRoute(c *gin.Context) {
	a.fail(c, problem.New(problem.NotFound, "There is nothing at this address."))
}

func (a *API) noMethod(c *gin.Context) {
	if allow := c.Writer.Header().Get("Allow"); strings.Contains(allow, http.MethodGet) {
		c.Writer.Header().Set("Allow", allow+", "+http.MethodHead)
	}
	a.fail(c, problem.New(problem.MethodNotAllowed, "This address does not take this method."))
}

// writeJSON answers outside of huma.
func writeJSON(c *gin.Context, status int, kind string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	c.Data(status, kind, append(body, '\n'))
}
