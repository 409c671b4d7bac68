package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/problem"
)

// safeBuffer is a log that goroutines share.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// secret is what must never come back, be logged or be counted.
const secret = "zebra-violin-7731"

// What needs no room, and must tell nothing of what was sent.
func TestStrangeRequestsTellNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, method, path, header, value string
		status                            int
		code                              problem.Code
	}{
		{"no such route", "GET", "/" + secret, "", "", 404, problem.NotFound},
		{"no such route with a query", "GET", "/v2/generations?prompt=" + secret, "", "", 404, problem.NotFound},
		{"a slash too much", "GET", "/v1/generations/", "", "", 404, problem.NotFound},
		{"wrong method", "PUT", "/v1/generations?x=" + secret, "", "", 405, problem.MethodNotAllowed},
		{"made-up method", strings.ToUpper(secret), "/v1/generations", "", "", 405, problem.MethodNotAllowed},
		{"no key", "GET", "/v1/generations", "", "", 401, problem.Unauthorized},
		{"key in the query", "GET", "/v1/generations?key=" + secret, "", "", 401, problem.Unauthorized},
		{"basic authorization", "GET", "/v1/generations", "Authorization", "Basic " + secret, 401, problem.Unauthorized},
		{"key of strange bytes", "GET", "/v1/generations", "Authorization", "Bearer " + secret + "\xff", 401, problem.Unauthorized},
		{"huge key", "GET", "/v1/generations", "Authorization", "Bearer " + strings.Repeat(secret, 100), 401, problem.Unauthorized},
		{"request id of the client", "GET", "/" + secret, "X-Request-ID", secret, 404, problem.NotFound},
		{"query that does not parse", "GET", "/healthz?a=%zz" + secret, "", "", 400, problem.InvalidRequest},
		{"unknown query of a public route", "GET", "/healthz?" + secret + "=" + secret, "", "", 400, problem.InvalidRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var log safeBuffer
			registry := prometheus.NewRegistry()
			a := bare(t, func(o *Options) {
				o.Log, o.Registry = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), registry
			})
			r := httptest.NewRequest(http.MethodGet, c.path, nil)
			r.Method = c.method
			if c.header != "" {
				r.Header.Set(c.header, c.value)
			}
			w := httptest.NewRecorder()
			a.Handler().ServeHTTP(w, r)
			body := w.Body.String()
			if w.Code != c.status || !strings.Contains(body, `"code":"`+string(c.code)+`"`) {
				t.Fatalf("%d %s", w.Code, body)
			}
			if got := w.Header().Get("Content-Type"); got != problemJSON {
				t.Errorf("content type %s", got)
			}
			id := w.Header().Get("X-Request-ID")
			if !strings.HasPrefix(id, "req_") || !strings.Contains(body, id) || !strings.Contains(log.String(), id) {
				t.Errorf("request id %q is not in header, body and log", id)
			}
			if c.status == 401 && w.Header().Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
			if c.status == 405 && !strings.Contains(w.Header().Get("Allow"), "POST") {
				t.Errorf("Allow is %q", w.Header().Get("Allow"))
			}
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			everything := strings.ToLower(body + log.String() + fmt.Sprint(families) + fmt.Sprint(w.Header()))
			if strings.Contains(everything, secret) {
				t.Errorf("what was sent comes back: %s", everything)
			}
			if !strings.Contains(log.String(), `"route"`) || strings.Contains(log.String(), "192.0.2.1") {
				t.Errorf("log line %s", log.String())
			}
		})
	}
}

func TestPanicsShowTheirTypeAlone(t *testing.T) {
	t.Parallel()
	var log safeBuffer
	a := bare(t, func(o *Options) { o.Log = slog.New(slog.NewJSONHandler(&log, nil)) })
	a.engine.GET("/boom", func(*gin.Context) { panic(errors.New(secret)) })
	a.engine.GET("/late", func(c *gin.Context) {
		c.String(200, "half")
		panic(secret)
	})
	server := httptest.NewServer(a.Handler())
	t.Cleanup(server.Close)
	res, err := http.Get(server.URL + "/boom")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusInternalServerError || !strings.Contains(string(body), `"code":"internal"`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, err := http.Get(server.URL + "/late"); err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err == nil {
			t.Error("half an answer looks whole")
		}
	}
	if !strings.Contains(log.String(), "*errors.errorString") || !strings.Contains(log.String(), "TestPanicsShowTheirTypeAlone") {
		t.Errorf("type or frames are not logged: %s", log.String())
	}
	if strings.Contains(log.String()+string(body), secret) {
		t.Errorf("the value is shown: %s %s", body, log.String())
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		public string
		hsts   bool
	}{{"", false}, {"http://localhost:8080", false}, {"https://images.example.org", true}} {
		a := bare(t, func(o *Options) { o.PublicURL = c.public })
		res, _ := get(t, a.Handler(), "/v1/generations")
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "private, no-store",
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if !strings.HasPrefix(res.Header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Error("no policy")
		}
		if got := res.Header.Get("Strict-Transport-Security") != ""; got != c.hsts {
			t.Errorf("%q: HSTS is %v", c.public, got)
		}
	}
}

func TestProbesAndMetrics(t *testing.T) {
	t.Parallel()
	asked, state := 0, StateDegraded
	ready := func(context.Context) Readiness {
		asked++
		return Readiness{State: state, Parts: []Part{{Name: "redis", State: state}}}
	}
	registry := prometheus.NewRegistry()
	a := bare(t, func(o *Options) { o.Ready, o.Registry = ready, registry })
	operations := Operations(registry, "1.2.3", ready)
	for i, h := range []http.Handler{a.Handler(), operations} {
		for range 3 {
			if res, body := get(t, h, "/healthz"); res.StatusCode != http.StatusOK || !strings.Contains(body, `"state":"alive"`) || !strings.Contains(body, "1.2.3") {
				t.Errorf("%d %s", res.StatusCode, body)
			}
			if res, body := get(t, h, "/readyz"); res.StatusCode != http.StatusOK || !strings.Contains(body, `"state":"degraded"`) {
				t.Errorf("%d %s", res.StatusCode, body)
			}
		}
		if asked != i+1 {
			t.Errorf("the parts were asked %d times in a moment", asked)
		}
		if res, _ := get(t, h, "/debug/pprof/"); res.StatusCode != http.StatusNotFound {
			t.Error("pprof is served")
		}
	}
	state = StateUnavailable
	for _, h := range []http.Handler{bare(t, func(o *Options) { o.Ready = ready }).Handler(), Operations(registry, "", ready)} {
		if res, body := get(t, h, "/readyz"); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `"state":"unavailable"`) {
			t.Errorf("unavailable answers %d %s", res.StatusCode, body)
		}
	}
	res, body := get(t, operations, "/metrics")
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `zimage_http_requests_total{method="GET",route="/healthz",status="200"}`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, _ := get(t, a.Handler(), "/metrics"); res.StatusCode != http.StatusNotFound {
		t.Error("metrics are public")
	}
	if res, _ := get(t, Operations(registry, "", nil), "/readyz"); res.StatusCode != http.StatusOK {
		t.Error("nobody to ask is not ready")
	}
}

func TestHeadOfEveryGet(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(bare(t, nil).Handler())
	t.Cleanup(server.Close)
	for path, status := range map[string]int{"/healthz": 200, "/openapi.json": 200, "/docs": 200, "/v1/models": 401, "/nothing": 404} {
		res, err := http.Head(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != status || len(body) > 0 {
			t.Errorf("HEAD %s: %d, %d bytes", path, res.StatusCode, len(body))
		}
	}
}

// Every code has a status, and an unknown one is our fault.
func TestErrorsBecomeProblems(t *testing.T) {
	t.Parallel()
	ctx := context.WithValue(context.Background(), callKey{}, &call{id: "req_1"})
	for _, c := range []struct {
		err    error
		status int
		code   problem.Code
		absent string
	}{
		{problem.New(problem.NotFound, "There is no such generation."), 404, problem.NotFound, ""},
		{fmt.Errorf("get: %w", problem.New(problem.QueueFull, "Full.").After(3*time.Second)), 429, problem.QueueFull, "get"},
		{problem.Wrap(errors.New(secret), problem.Unavailable, "Away."), 503, problem.Unavailable, secret},
		{errors.New(secret), 500, problem.Internal, secret},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), 504, problem.Timeout, "read"},
		{problem.New("made_up", "x"), 500, problem.Internal, "made_up"},
	} {
		p := view(ctx, c.err)
		if p.Status != c.status || p.Code != string(c.code) || p.RequestID != "req_1" || p.Type != "/docs#"+p.Code {
			t.Errorf("%v: %+v", c.err, p)
		}
		if c.absent != "" && strings.Contains(fmt.Sprintf("%+v", *p), c.absent) {
			t.Errorf("%+v tells %s", *p, c.absent)
		}
	}
	if got := view(ctx, problem.New(problem.QueueFull, "").After(2500*time.Millisecond)).GetHeaders().Get("Retry-After"); got != "3" {
		t.Errorf("Retry-After is %s", got)
	}
}

func TestLogRequestID(t *testing.T) {
	t.Parallel()
	var b safeBuffer
	log := slog.New(LogRequestID(slog.NewJSONHandler(&b, nil))).With("room", "x")
	ctx := context.WithValue(context.Background(), callKey{}, &call{id: "req_1"})
	log.InfoContext(ctx, "a")
	log.InfoContext(ctx, "b", "request_id", "req_1")
	log.Info("c")
	if got := strings.Count(b.String(), `"request_id":"req_1"`); got != 2 {
		t.Errorf("%d lines carry the id once: %s", got, b.String())
	}
}

// refusal is what an error of PostgreSQL looks like from here.
type refusal struct{ error }

func (refusal) SQLState() string { return "42601" }

func TestKindOfTellsNoText(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("%s: %w", secret, refusal{errors.New(secret)})
	if got := kindOf(err); got != "*fmt.wrapError < httpapi.refusal < SQLSTATE 42601" {
		t.Error(got)
	}
	if got := kindOf(errors.Join(errors.New(secret), err)); got != "*errors.joinError < *errors.errorString < *fmt.wrapError < httpapi.refusal < SQLSTATE 42601" {
		t.Error(got)
	}
	if got := kindOf(errors.New(secret)); got != "*errors.errorString" {
		t.Error(got)
	}
}
