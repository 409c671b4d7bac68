package outbound

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// What became of calls is counted from the start, also of those that were never made;
// a call that we break off is not the receiver's.
func TestCallsAreCountedByWhatBecameOfThem(t *testing.T) {
	t.Parallel()
	s, _ := counting(t, false, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		case "/moved":
			http.Redirect(w, r, "/", http.StatusFound)
		}
	})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	r := prometheus.NewRegistry()
	c := New(Options{Loopback: true, Registry: r})
	count := func(accepted, answered, refused, unreached float64) {
		t.Helper()
		families, err := r.Gather()
		if err != nil || len(families) != 1 || families[0].GetName() != "zimage_outbound_calls_total" {
			t.Fatal(families, err)
		}
		want := map[string]float64{"accepted": accepted, "answered": answered, "refused": refused, "unreached": unreached}
		for _, m := range families[0].GetMetric() {
			outcome := m.GetLabel()[0].GetValue()
			if n, known := want[outcome]; !known || m.GetCounter().GetValue() != n {
				t.Errorf("%s: %v, want %v", outcome, m.GetCounter().GetValue(), n)
			}
			delete(want, outcome)
		}
		if len(want) > 0 {
			t.Errorf("not told: %v", want)
		}
	}
	count(0, 0, 0, 0)
	for _, to := range []string{s.URL, s.URL + "/broken", s.URL + "/moved", "https://10.0.0.1/", "ftp://example.org/", "http://" + l.Addr().String()} {
		_, _ = c.Post(context.Background(), Post{URL: to})
	}
	count(1, 2, 2, 1)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, _ = c.Post(ended, Post{URL: s.URL})
	count(1, 2, 2, 1)
}
