package client

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestWhatARequestSays(t *testing.T) {
	t.Parallel()
	var asked, body string
	var header http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		asked, body, header = r.Method+" "+r.URL.RequestURI(), string(text), r.Header
		_, _ = io.WriteString(w, `{"id":"gen_1","status":"queued"}`)
	}))
	t.Cleanup(server.Close)
	c := New(server.URL+"/", "zi_abc")

	seed, wait := int64(0), "wait=3"
	g, err := c.CreateGeneration(t.Context(), Create{Prompt: "a cat", Seed: &seed}, &CreateGenerationParams{Prefer: &wait})
	if err != nil || g.ID != "gen_1" || g.Status != GenerationStatusQueued || g.Status.Final() {
		t.Errorf("%+v, %v", g, err)
	}
	if asked != "POST /v1/generations" || body != `{"prompt":"a cat","seed":0}` || header.Get("Authorization") != "Bearer zi_abc" ||
		header.Get("Prefer") != "wait=3" || header.Get("Content-Type") != "application/json" || header["Idempotency-Key"] != nil {
		t.Errorf("%s %s %v", asked, body, header)
	}
	// An id cannot lead elsewhere.
	if err := c.DeleteImage(t.Context(), "../keys/a?b"); err != nil || asked != "DELETE /v1/images/..%2Fkeys%2Fa%3Fb" || body != "" {
		t.Errorf("%s, %v", asked, err)
	}
	status, limit := ListGenerationsParamsStatusRunning, int64(5)
	if _, err := c.ListGenerations(t.Context(), &ListGenerationsParams{Status: &status, Limit: &limit}); err != nil || asked != "GET /v1/generations?limit=5&status=running" {
		t.Errorf("%s, %v", asked, err)
	}
}

func TestWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status     int
		body, want string
		passing    bool
	}{
		{400, `{"code":"invalid_request","detail":"The request is not valid.","request_id":"req_1","errors":[{"location":"body.width","message":"is too small"}]}`,
			"The request is not valid.\n  body.width is too small (invalid_request, req_1)", false},
		{429, `{"code":"rate_limited","detail":"Too many.","request_id":"req_1"}`, "Too many. (rate_limited, req_1)", true},
		{503, `{"code":"unavailable","title":"Unavailable"}`, "Unavailable (unavailable, no request id)", true},
		{502, `<html>`, "the service answers 502 Bad Gateway", true},
		{404, `{}`, "the service answers 404 Not Found", false},
		{302, ``, "the service answers 302 Found", false},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://elsewhere.example.org/")
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, tt.body)
		}))
		_, err := New(server.URL, "zi_abc").ListModels(t.Context())
		var p *Problem
		if err == nil || err.Error() != tt.want || Passing(err) != tt.passing || !errors.As(err, &p) || p.Status != int64(tt.status) {
			t.Errorf("%d: %v", tt.status, err)
		}
		server.Close()
		if _, err := New(server.URL, "zi_abc").ListModels(t.Context()); !Passing(err) || strings.Contains(err.Error(), "zi_abc") {
			t.Errorf("nobody answers: %v", err)
		}
	}
}
