package httpapi

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"zimage/internal/clock"
)

// bare is an API without rooms: its descriptions, and what needs no room.
func bare(t *testing.T, change func(*Options)) *API {
	t.Helper()
	o := Options{Log: slog.New(slog.DiscardHandler), Clock: clock.Manual(start), Version: "1.2.3"}
	if change != nil {
		change(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func validates(t *testing.T, a *API, what string, s *huma.Schema, v any) {
	t.Helper()
	res := &huma.ValidateResult{}
	huma.Validate(a.spec.OpenAPI().Components.Schemas, s, huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, v, res)
	for _, err := range res.Errors {
		t.Errorf("%s: the example does not validate: %v", what, err)
	}
}

// openRoutes are those that nobody is signed in for yet.
var openRoutes = []string{
	"POST /v1/account", "POST /v1/account/confirm",
	"POST /v1/account/password/reset", "POST /v1/account/password/reset/confirm",
	"GET /v1/privacy/policy", "GET /v1/privacy/status", "POST /v1/privacy/requests/confirm",
	"GET /v1/privacy/receipts/{id}", "POST /v1/privacy/receipts/{id}",
	"POST /v1/session", "POST /v1/session/passkey", "POST /v1/session/passkey/challenge",
	"GET /v1/privacy/ledger/checkpoint", "GET /v1/links/{token}", "GET /v1/shared/{token}",
}

func TestOpenAPIIsComplete(t *testing.T) {
	t.Parallel()
	a := bare(t, nil)
	o := a.spec.OpenAPI()
	everyCode := map[string]bool{}
	routes := 0
	for path, item := range o.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op == nil {
				continue
			}
			routes++
			name := op.Method + " " + path
			if moved := op.Responses["200"]; op.OperationID == "get-generation" && (moved.Headers["Location"] != nil || moved.Headers["Idempotency-Replayed"] != nil) {
				t.Errorf("%s promises headers that it never sends", name)
			}
			if op.Summary == "" || op.Description == "" || op.OperationID == "" || len(op.Tags) != 1 {
				t.Errorf("%s has no summary, description, id or tag", name)
			}
			open := !strings.HasPrefix(path, "/v1/") || slices.Contains(openRoutes, name)
			if open != (len(op.Security) == 0) {
				t.Errorf("%s: security is %v", name, op.Security)
			}
			for _, p := range op.Parameters {
				if p.Description == "" || p.Schema == nil {
					t.Errorf("%s: parameter %s is not described", name, p.Name)
				}
				if len(p.Schema.Examples) > 0 {
					validates(t, a, name+" "+p.Name, p.Schema, p.Schema.Examples[0])
				}
			}
			if op.RequestBody != nil {
				m := op.RequestBody.Content["application/json"]
				if m.Example == nil {
					t.Errorf("%s: the body has no example", name)
				}
				validates(t, a, name+" body", m.Schema, m.Example)
			}
			codes := map[string]bool{}
			for status, r := range op.Responses {
				if r.Description == "" {
					t.Errorf("%s %s is not described", name, status)
				}
				if r.Headers["X-Request-ID"] == nil {
					t.Errorf("%s %s has no request id", name, status)
				}
				for header, h := range r.Headers {
					if h.Ref == "" && h.Description == "" {
						t.Errorf("%s %s: the header %s is not described", name, status, header)
					}
				}
				for kind, m := range r.Content {
					what := name + " " + status + " " + kind
					if m.Schema == nil || m.Example == nil && len(m.Examples) == 0 {
						t.Errorf("%s has no schema or no example", what)
						continue
					}
					if m.Example != nil {
						validates(t, a, what, m.Schema, m.Example)
					}
					for code, e := range m.Examples {
						validates(t, a, what+" "+code, m.Schema, e.Value)
						codes[code], everyCode[code] = true, true
						if kind != problemJSON || strconv.Itoa(answerStatus(code)) != status {
							t.Errorf("%s: %s stands at the wrong status", name, code)
						}
					}
				}
				if n, _ := strconv.Atoi(status); n >= 400 && r.Content[problemJSON] == nil && path != "/readyz" {
					t.Errorf("%s %s is an error without problem+json", name, status)
				}
			}
			want := []string{"internal", "invalid_request"}
			if !open {
				want = append(want, "unauthorized")
			}
			if strings.HasPrefix(path, "/v1/") {
				want = append(want, "forbidden", "rate_limited", "timeout", "unavailable")
			}
			if strings.Contains(path, "{id}") {
				want = append(want, "not_found")
			}
			if strings.HasPrefix(path, "/v1/generations/{id}") || strings.HasPrefix(path, "/v1/images/{id}") {
				want = append(want, "data_removed")
			}
			if op.RequestBody != nil {
				want = append(want, "too_large", "unsupported_media")
			}
			for _, code := range want {
				if !codes[code] {
					t.Errorf("%s does not document %s", name, code)
				}
			}
		}
	}
	if routes != 107 {
		t.Errorf("%d routes are described, want 107", routes)
	}
	for _, known := range answers {
		// The one about methods belongs to no route.
		if !everyCode[string(known.Code)] && known.Status != http.StatusMethodNotAllowed {
			t.Errorf("no route documents %s", known.Code)
		}
	}
	for name, s := range o.Components.Schemas.Map() {
		for field, p := range s.Properties {
			if p.Description == "" && p.Ref == "" {
				t.Errorf("%s.%s is not described", name, field)
			}
		}
	}
}

func answerStatus(code string) int {
	for _, a := range answers {
		if string(a.Code) == code {
			return a.Status
		}
	}
	return 0
}

func get(t *testing.T, h http.Handler, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	res := w.Result()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func TestOpenAPIAndDocsAreServed(t *testing.T) {
	t.Parallel()
	a := bare(t, func(o *Options) { o.PublicURL = "https://images.example.org/" })
	res, body := get(t, a.Handler(), "/openapi.json")
	var o struct {
		OpenAPI string
		Info    struct{ Version string }
		Servers []struct{ URL string }
		Paths   map[string]any
	}
	if err := json.Unmarshal([]byte(body), &o); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.StatusCode, err)
	}
	if o.OpenAPI != "3.1.0" || o.Info.Version != "1.2.3" || len(o.Servers) != 1 || o.Servers[0].URL != "https://images.example.org" {
		t.Fatalf("%+v", o)
	}
	for _, ref := range regexp.MustCompile(`"\$ref":"#/components/(\w+)/([^"]+)"`).FindAllStringSubmatch(body, -1) {
		if !strings.Contains(body, `"`+ref[2]+`":{`) {
			t.Errorf("nothing stands at %s/%s", ref[1], ref[2])
		}
	}

	res, page := get(t, a.Handler(), "/docs")
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
		t.Fatal(res.StatusCode, res.Header)
	}
	for path := range o.Paths {
		if !strings.Contains(page, "<code>"+path+"</code>") {
			t.Errorf("the page lacks %s", path)
		}
	}
	for _, known := range answers {
		if !strings.Contains(page, `id="`+string(known.Code)+`"`) {
			t.Errorf("the page lacks the code %s", known.Code)
		}
	}
	for _, absent := range []string{"<script", "javascript:", "unpkg", "cdn", `src="http`, `href="http`, "ZgotmplZ"} {
		if strings.Contains(strings.ToLower(page), strings.ToLower(absent)) {
			t.Errorf("the page has %s", absent)
		}
	}
	ids := regexp.MustCompile(` id="([^"]+)"`).FindAllStringSubmatch(page, -1)
	var names []string
	for _, m := range ids {
		if slices.Contains(names, m[1]) {
			t.Errorf("the page has the id %s twice", m[1])
		}
		names = append(names, m[1])
	}
	for _, m := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if !slices.Contains(names, m[1]) {
			t.Errorf("a link leads to #%s, which is not there", m[1])
		}
	}
	if csp := res.Header.Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy of the page is %s", csp)
	}
	if res, css := get(t, a.Handler(), "/docs.css"); res.StatusCode != http.StatusOK || !strings.Contains(css, "body") {
		t.Error("no style")
	}
	for _, gone := range []string{"/openapi.yaml", "/openapi-3.0.json", "/schemas/Generation.json"} {
		if res, _ := get(t, a.Handler(), gone); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers %d", gone, res.StatusCode)
		}
	}
}
