package httpapi

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"zimage/internal/problem"
	"zimage/internal/testenv"
)

func TestCrowd(t *testing.T) {
	t.Parallel()
	c := newCrowd(1, 20*time.Millisecond)
	leave, err := c.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.enter(t.Context())
	var p *problem.Error
	if !errors.As(err, &p) || p.Code != problem.Unavailable || p.RetryAfter < time.Second {
		t.Errorf("one too many: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.enter(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("one that went: %v", err)
	}
	leave()
	leave()
	again, err := c.enter(t.Context())
	if err != nil || len(c.places) != 1 {
		t.Errorf("after it was left: %v, %d places are taken", err, len(c.places))
	}
	again()
}

// With one place: whoever waits, streams or takes a picture holds none, and whoever
// comes to a full house is told when to come back.
func TestWhoWaitsHoldsNoPlace(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		_, image := r.finished(r.ada)
		r.api.crowd = newCrowd(1, time.Minute)
		id := r.submit(r.ada)
		waited := make(chan answered, 2)
		go func() { waited <- r.do("GET", "/v1/generations/"+id, r.ada, "", "Prefer", "wait=30") }()
		go func() {
			waited <- r.do("POST", "/v1/generations", r.ada, `{"prompt":"x","width":64,"height":64}`, "Prefer", "wait=30")
		}()
		_, events := r.open(t.Context(), id, r.ada, "")
		state(t, events)
		testenv.Eventually(t, 20*time.Second, func() bool {
			r.api.open.mu.Lock()
			defer r.api.open.mu.Unlock()
			return len(r.api.open.open) == 1 && len(r.api.crowd.places) == 0
		})
		for _, path := range []string{"/v1/models", "/v1/generations/" + id, "/v1/images/" + image + "/content", "/v1/nothing"} {
			if a := r.do("GET", path, r.ada, ""); a.status >= 500 {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		r.do("GET", "/v1/models", "zi_none", "")
		r.do("POST", "/v1/generations", r.ada, `{`)
		if n := len(r.api.crowd.places); n != 0 {
			t.Errorf("%d places are taken by nobody", n)
		}

		r.api.crowd.wait = 20 * time.Millisecond
		leave, err := r.api.crowd.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ method, path, body string }{
			{"GET", "/v1/models", ""}, {"GET", "/v1/images/" + image + "/content", ""}, {"POST", "/v1/generations", `{"prompt":"` + secret + `"}`},
		} {
			a := r.do(c.method, c.path, r.ada, c.body)
			if a.status != 503 || a.field(t, "code") != "unavailable" || a.Header.Get("Retry-After") == "" || a.Header.Get("Content-Type") != problemJSON {
				t.Errorf("%s %s: %d %v %s", c.method, c.path, a.status, a.Header, a.body)
			}
		}
		if a := r.do("GET", "/healthz", "", ""); a.status != http.StatusOK {
			t.Errorf("/healthz: %d", a.status)
		}
		leave()
		r.pass()
		r.pass()
		for range 2 {
			if a := <-waited; a.status != http.StatusOK || a.field(t, "status") != "succeeded" {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		r.quiet()
	})
}
