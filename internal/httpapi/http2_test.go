package httpapi

import (
	"bufio"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Over HTTP/2 a write deadline that passes resets the stream even while nothing
// is written: a silent stream must outlive the time that one event may take.
func TestASilentStreamOutlivesItsWriteDeadlineOverHTTP2(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		s := httptest.NewUnstartedServer(r.api.Handler())
		s.EnableHTTP2 = true
		s.StartTLS()
		defer s.Close()
		defer r.api.Close()
		id := r.submit(r.ada) // nobody lets the engine finish it
		req := httptest.NewRequest("GET", s.URL+"/v1/generations/"+id+"/events", nil)
		req.RequestURI = ""
		req.Header.Set("Authorization", "Bearer "+r.ada)
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		if res.ProtoMajor != 2 || res.StatusCode != 200 {
			t.Fatalf("%s %d", res.Proto, res.StatusCode)
		}
		beat := make(chan bool, 1)
		go func() {
			for lines := bufio.NewScanner(res.Body); lines.Scan(); {
				if strings.Contains(lines.Text(), "still here") {
					beat <- true
					return
				}
			}
			beat <- false
		}()
		select {
		case ok := <-beat:
			if !ok {
				t.Error("the stream broke off before its first beat")
			}
		case <-time.After(time.Minute):
			t.Error("no beat in a minute")
		}
	})
}
