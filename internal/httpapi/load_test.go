package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

// Of thousands of requests at once, each is accepted or refused with a reason and
// a time to come back; what was accepted is there, and nothing else; the process
// answers its probe meanwhile, and is as it was afterwards.
//
// It runs alone: it counts the goroutines and the heap of the whole process.
func TestThousandsOfRequestsAtOnce(t *testing.T) {
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			d, _ := testenv.Database(t, dialect)
			thousandsAtOnce(t, newRig(t, d))
		})
	}
}

// badBodies are refused each for another reason, and all hold the secret.
var badBodies = []string{
	`{"model":"` + secret + `"}`,
	`{"prompt":""}`,
	`{"prompt":"` + secret,
	`{"prompt":["` + secret + `"]}`,
	`{"prompt":"` + secret + `\u0000"}`,
	`{"prompt":"` + secret + `","` + secret + `":1}`,
	`{"prompt":"` + secret + `","width":-64}`,
	`{"prompt":"` + secret + `","model":"nobody-has-it"}`,
	`{"prompt":"` + strings.Repeat("z", 40_000) + secret + `"}`,
}

func thousandsAtOnce(t *testing.T, r *rig) {
	const requests, greedys, queued = 3000, 1500, 10
	// Low, so that both limits are met on a slow machine too, where most are sent
	// away because there is no place.
	r.api.rooms.Generate.QueuedLimit = queued
	r.api.keys.rate = perMinute(40)
	greedy := r.person("greedy")
	others := []string{r.ada, r.ben, r.person("cleo"), r.person("dora")}

	// With the timeouts of the real server, which the rig's are too short for.
	server := httptest.NewUnstartedServer(r.api.Handler())
	server.Config.ReadHeaderTimeout, server.Config.ReadTimeout, server.Config.WriteTimeout = 10*time.Second, 30*time.Second, time.Minute
	server.Start()
	t.Cleanup(server.Close)
	// Each has a connection of its own, which ends with its answer.
	browser := &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	send := func(ctx context.Context, method, path, key, body string) (*http.Response, string, error) {
		req, err := http.NewRequestWithContext(ctx, method, server.URL+path, strings.NewReader(body))
		if err != nil {
			return nil, "", err
		}
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
			req.Header.Set("Content-Type", "application/json")
		}
		res, err := browser.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = res.Body.Close() }()
		text, err := io.ReadAll(res.Body)
		return res, string(text), err
	}
	alive := func() time.Duration {
		began := time.Now()
		if res, text, err := send(t.Context(), http.MethodGet, "/healthz", "", ""); err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("/healthz: %v %s", err, text)
		}
		return time.Since(began)
	}
	alive()
	goroutines, heap := settled()

	var mu sync.Mutex
	seen := map[string]int{} // answers by status and code
	accepted := map[string]bool{}
	start := make(chan struct{})
	var work sync.WaitGroup
	for i := range requests {
		work.Go(func() {
			key := greedy
			if i >= greedys {
				key = others[i%len(others)]
			}
			body := `{"prompt":"` + secret + `","width":64,"height":64}`
			bad := rand.IntN(5) == 0
			if bad {
				body = badBodies[rand.IntN(len(badBodies))]
			}
			<-start
			res, text, err := send(t.Context(), http.MethodPost, "/v1/generations", key, body)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				seen["no answer"]++
				t.Errorf("no answer: %v", err)
				return
			}
			var a struct{ ID, Code string }
			if err := json.Unmarshal([]byte(text), &a); err != nil {
				t.Errorf("%d, not JSON: %s", res.StatusCode, text)
				return
			}
			seen[strings.TrimSpace(strconv.Itoa(res.StatusCode)+" "+a.Code)]++
			if res.StatusCode == http.StatusAccepted {
				if bad || a.ID == "" || accepted[a.ID] {
					t.Errorf("accepted (a bad body: %v): %s", bad, text)
				}
				accepted[a.ID] = true
				return
			}
			if res.Header.Get("Content-Type") != problemJSON || strings.Contains(text, secret) {
				t.Errorf("%d %s: %s", res.StatusCode, res.Header.Get("Content-Type"), text)
			}
			switch res.StatusCode {
			case http.StatusBadRequest:
				if !bad {
					t.Errorf("a good body is refused: %s", text)
				}
			case http.StatusTooManyRequests, http.StatusServiceUnavailable:
				if n, err := strconv.Atoi(res.Header.Get("Retry-After")); err != nil || n < 1 {
					t.Errorf("%d without a time to come back: %q", res.StatusCode, res.Header.Get("Retry-After"))
				}
			default:
				t.Errorf("%d %s", res.StatusCode, text)
			}
		})
	}
	var peak, worst atomic.Int64
	over := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), int64(m.HeapAlloc)))
				worst.Store(max(worst.Load(), int64(alive())))
			}
		}
	})
	began := time.Now()
	close(start)
	work.Wait()
	took := time.Since(began)
	close(over)
	beside.Wait()
	alive()
	t.Logf("%d requests in %v: %v; heap at most %d MiB, from %d; /healthz at worst after %v",
		requests, took.Round(time.Millisecond), seen, peak.Load()>>20, heap>>20, time.Duration(worst.Load()).Round(time.Millisecond))

	for _, want := range []string{"202", "400 invalid_request", "429 rate_limited", "429 queue_full"} {
		if seen[want] == 0 {
			t.Errorf("none was answered %s", want)
		}
	}
	for table, column := range map[string]string{"generations": "id", "jobs": "ref"} {
		var ids []string
		if err := r.db.Select(t.Context(), &ids, `SELECT `+column+` FROM `+table); err != nil {
			t.Fatal(err)
		}
		if len(ids) != len(accepted) || slices.ContainsFunc(ids, func(id string) bool { return !accepted[id] }) {
			t.Errorf("%d %s of %d that were accepted", len(ids), table, len(accepted))
		}
	}
	var most int
	if err := r.db.Get(t.Context(), &most, `SELECT max(n) FROM (SELECT count(*) AS n FROM generations GROUP BY owner) AS counted`); err != nil || most > queued+1 {
		t.Errorf("somebody has %d generations, with %d in the queue allowed and one slot to run on (%v)", most, queued, err)
	}

	// Bounded while it lasts, and given back: that the heap holds what 3,000 bodies
	// and their handlers need is 100 KiB each.
	if peak.Load()-int64(heap) > requests*100<<10 {
		t.Errorf("the heap grew by %d MiB", (peak.Load()-int64(heap))>>20)
	}
	after, left := 0, uint64(0)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if after, left = settled(); after <= goroutines+30 && left <= heap+32<<20 || time.Now().After(end) {
			break
		}
	}
	if after > goroutines+30 || left > heap+32<<20 {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d MiB are left, from %d and %d\n%s", after, left>>20, goroutines, heap>>20, buf[:runtime.Stack(buf, true)])
	}
	if strings.Contains(r.log.String(), secret) {
		t.Error("a prompt is logged")
	}
	if n := strings.Count(r.log.String(), `"level":"ERROR"`); n > 0 {
		t.Errorf("%d errors are logged", n)
	}
}

// settled counts goroutines and the heap's bytes that are in use.
func settled() (goroutines int, heap uint64) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), m.HeapAlloc
}
