package client

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// follower is a client whose pauses are short.
func follower(address string) *Client {
	return &Client{Server: "http://" + address, Key: "zi_abc", Pause: 5 * time.Millisecond, HTTP: &http.Client{Transport: &http.Transport{}}}
}

// The service goes away in the middle of a stream, for a while nobody answers at its
// address, then it answers that it is not ready, and then it goes on.
func TestFollowingSurvivesARestart(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	said := func(w http.ResponseWriter, id int, status string) {
		_, _ = fmt.Fprintf(w, "event: state\nid: %d\ndata: {\"id\":\"gen_1\",\"status\":%q}\n\n", id, status)
		_ = http.NewResponseController(w).Flush()
	}
	before := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said(w, 2, "running")
		<-r.Context().Done() // until it is killed
	})}
	go func() { _ = before.Serve(l) }()

	var mu sync.Mutex
	var statuses []GenerationStatus
	running := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- follower(address).Follow(t.Context(), "gen_1", func(g Generation) {
			mu.Lock()
			defer mu.Unlock()
			if statuses = append(statuses, g.Status); len(statuses) == 1 {
				close(running)
			}
		})
	}()
	<-running
	_ = before.Close()
	select {
	case err := <-ended:
		t.Fatalf("given up at once: %v", err)
	case <-time.After(100 * time.Millisecond): // some refused connections
	}

	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	asked := 0
	var last string
	after := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked++
		first := asked == 1
		last = r.Header.Get("Last-Event-ID")
		mu.Unlock()
		if first {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"code":"unavailable","detail":"Not yet."}`)
			return
		}
		said(w, 4, "succeeded")
	})}
	go func() { _ = after.Serve(l) }()
	t.Cleanup(func() { _ = after.Close() })
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("not followed to the end")
	}
	if !slices.Equal(statuses, []GenerationStatus{GenerationStatusRunning, GenerationStatusSucceeded}) || last != "2" || asked != 2 {
		t.Errorf("saw %v, asked %d times, at last after event %q", statuses, asked, last)
	}
}

func TestFollowingGivesUp(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(nil)
	gone.Close()
	removed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusGone)
		_, _ = io.WriteString(w, `{"code":"data_removed","detail":"It was here."}`)
	}))
	t.Cleanup(removed.Close)
	for _, tt := range []struct{ name, url, want string }{
		{"nobody answers, ever", gone.URL, "its events cannot be followed, ask for it later"},
		{"the generation is gone", removed.URL, "data_removed"},
	} {
		err := follower(strings.TrimPrefix(tt.url, "http://")).Follow(t.Context(), "gen_1", func(Generation) {})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// Who leaves does not wait for the end of a pause.
	c := follower(strings.TrimPrefix(gone.URL, "http://"))
	c.Pause = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Follow(ctx, "gen_1", func(Generation) {}); err == nil || ctx.Err() == nil {
		t.Errorf("%v", err)
	}
}
