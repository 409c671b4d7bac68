package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// again is how long a job of a killed worker may wait for its next attempt.
const again = 20 * time.Second

// kill -9 worker at five moments: exactly one completion, running again within
// 20 s, no second image, leftovers swept.
func TestKillWorker(t *testing.T) {
	t.Parallel()
	const label = "victim"
	// arrange brings the worker to the moment; the function it returns undoes the
	// fault once the worker is dead.
	for name, test := range map[string]struct {
		arrange     func(c *Cluster, g string, uploads *heldUploads) (after func())
		attempts    int // that the job takes
		engineCalls int
	}{
		"before the engine": {
			arrange: func(c *Cluster, _ string, _ *heldUploads) func() {
				until(c.t, 20*time.Second, "the worker calls the engine", func() bool { return c.Engine.Knocks() > 0 })
				return func() { c.Engine.Deaf(false) }
			},
			attempts: 2, engineCalls: 1,
		},
		"during the engine": {
			arrange: func(c *Cluster, _ string, _ *heldUploads) func() {
				c.Engine.Await(20*time.Second, c.Prompt(label), 1)
				return func() {}
			},
			attempts: 2, engineCalls: 2,
		},
		"after the engine": {
			arrange: func(c *Cluster, _ string, uploads *heldUploads) func() {
				c.Engine.Await(20*time.Second, c.Prompt(label), 1).Answer()
				until(c.t, 20*time.Second, "the upload begins", func() bool { return uploads.count() == 1 })
				return func() {
					uploads.letGo()
					until(c.t, 10*time.Second, "it arrives although its sender is dead", func() bool { return len(c.Objects()) == 1 })
				}
			},
			attempts: 2, engineCalls: 2,
		},
		"after the upload": {
			arrange: func(c *Cluster, g string, _ *heldUploads) func() {
				call := c.Engine.Await(20*time.Second, c.Prompt(label), 1)
				letGo := c.Hold(`SELECT 1 FROM jobs WHERE ref = $1 FOR UPDATE`, g)
				call.Answer()
				until(c.t, 20*time.Second, "the completion waits for the row", func() bool { return c.Blocked("UPDATE jobs SET state = ") == 1 })
				if n := len(c.Objects()); n != 2 {
					c.t.Errorf("%d objects before the completion, want 2", n)
				}
				return letGo
			},
			attempts: 2, engineCalls: 2,
		},
		"after the commit": {
			arrange: func(c *Cluster, g string, _ *heldUploads) func() {
				c.Engine.Await(20*time.Second, c.Prompt(label), 1).Answer()
				until(c.t, 20*time.Second, "the commit", func() bool { return c.Job(g).State == "succeeded" })
				return func() {}
			},
			attempts: 1, engineCalls: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, Options{})
			var settings []string
			uploads := holdUploads(t, c.Minio.Addr())
			if name == "after the engine" {
				settings = append(settings, "S3_ENDPOINT="+uploads.address)
			}
			api := c.API("api")
			c.Scheduler("scheduler")
			c.Engine.Hold()
			c.Engine.Deaf(name == "before the engine")
			victim := c.Worker("victim", settings...)
			g := c.Submit(api, Request{Label: label})
			heir := c.Prepare("heir", binWorker)
			if test.attempts > 1 {
				until(t, 20*time.Second, "the victim claims", func() bool { return c.Job(g.ID).State == "running" })
				heir.Start() // there before the kill: its start is not what is measured
			}
			after := test.arrange(c, g.ID, uploads)
			victim.Kill9()
			killed := time.Now()
			after()
			if test.attempts > 1 {
				until(t, 2*again, "the next attempt", func() bool { return c.Job(g.ID).Attempt == 2 })
				took := time.Since(killed)
				t.Logf("from the kill to running again: %v", took)
				if took > again {
					t.Errorf("running again after %v, want at most %v", took, again)
				}
			} else {
				heir.Start()
			}
			c.Engine.Free()
			c.Wait(api, g.ID, "succeeded", 20*time.Second)
			if j := c.Job(g.ID); j.Attempt != test.attempts {
				t.Errorf("it took %d attempts, want %d", j.Attempt, test.attempts)
			}
			if n := len(c.Engine.Calls(c.Prompt(label))); n != test.engineCalls {
				t.Errorf("the engine was called %d times, want %d", n, test.engineCalls)
			}
			c.Audit(api)
		})
	}
}

// heldUploads is a proxy before the object store that keeps the uploads of
// images until they are let go; then they arrive, whether their sender lives or
// not.
type heldUploads struct {
	address string
	letGo   func()

	open chan struct{}
	mu   sync.Mutex
	held int
}

func holdUploads(t testing.TB, store string) *heldUploads {
	t.Helper()
	h := &heldUploads{open: make(chan struct{})}
	h.letGo = sync.OnceFunc(func() { close(h.open) })
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: store})
		r.Out.Host = r.In.Host // which is signed
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/images/") {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			h.mu.Lock()
			h.held++
			h.mu.Unlock()
			<-h.open
			// One that can end: of another kind, the proxy would follow the sender.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
			defer cancel()
			r = r.WithContext(ctx)
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { h.letGo(); server.Close() })
	h.address = strings.TrimPrefix(server.URL, "http://")
	return h
}

func (h *heldUploads) count() int { h.mu.Lock(); defer h.mu.Unlock(); return h.held }

// SIGSTOP a worker for 60 s, then SIGCONT: its late completion changes nothing,
// its objects are swept.
func TestFreezeWorker(t *testing.T) {
	t.Parallel()
	const frozen, label = 60 * time.Second, "frozen"
	for name, freeze := range map[string]func(c *Cluster, g string, worker *Process, call *Call){
		// The engine's answer waits for it in the socket.
		"before the answer": func(_ *Cluster, _ string, worker *Process, call *Call) {
			worker.Freeze()
			call.Answer()
		},
		// Its completing transaction is open, and holds the row.
		"in the completion": func(c *Cluster, g string, worker *Process, call *Call) {
			letGo := c.Hold(`SELECT 1 FROM jobs WHERE ref = $1 FOR UPDATE`, g)
			call.Answer()
			until(c.t, 20*time.Second, "the completion waits for the row", func() bool { return c.Blocked("UPDATE jobs SET state = ") == 1 })
			worker.Freeze()
			letGo()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, Options{})
			api := c.API("api")
			c.Scheduler("scheduler")
			c.Engine.Hold()
			sleeper := c.Worker("sleeper")
			g := c.Submit(api, Request{Label: label})
			call := c.Engine.Await(20*time.Second, c.Prompt(label), 1)
			heir := c.Worker("heir")
			freeze(c, g.ID, sleeper, call)
			since := time.Now()
			c.Engine.Await(frozen, c.Prompt(label), 2)
			t.Logf("from SIGSTOP to the next engine call: %v", time.Since(since))
			c.Engine.Free()
			first := c.Wait(api, g.ID, "succeeded", 20*time.Second)
			until(t, 2*frozen, "a minute has passed", func() bool { return time.Since(since) > frozen })
			sleeper.Thaw()
			until(t, 30*time.Second, "the sleeper learns that it is late", func() bool { return sleeper.Metric("zimage_leases_lost_total") == 1 })
			if now := c.Wait(api, g.ID, "succeeded", 5*time.Second); len(now.Images) != 1 || now.Images[0] != first.Images[0] {
				t.Errorf("the late completion changed the generation: %v, before %v", now.Images, first.Images)
			}
			if j := c.Job(g.ID); j.Attempt != 2 {
				t.Errorf("it took %d attempts, want 2", j.Attempt)
			}
			// It goes on as a worker like any other.
			heir.Term()
			heir.Ended(30 * time.Second)
			next := c.Submit(api, Request{Label: "next"})
			c.Wait(api, next.ID, "succeeded", 20*time.Second)
			c.Audit(api)
		})
	}
}

// The clock of one worker ±5 min: nothing happens to its jobs. It is off from the
// start: a step later on is nothing that our processes could see, since they read
// the wall clock once and count monotonic time from there.
func TestSkewedClocks(t *testing.T) {
	t.Parallel()
	const generations, slots = 40, 2
	c := start(t, Options{Slots: slots})
	api, scheduler := c.API("api"), c.Scheduler("scheduler")
	workers := []*Process{
		c.begin(c.Prepare("fast", binWorkerFast)), c.begin(c.Prepare("slow", binWorkerSlow)), c.Worker("right"),
	}
	c.Engine.Hold()
	var ids []string
	for range generations {
		ids = append(ids, c.Submit(api, Request{Label: "clock"}).ID)
	}
	until(t, 30*time.Second, "all slots of all workers are taken", func() bool { return len(c.Engine.Calls("")) == slots*len(workers) })
	full := time.Now()
	// Longer than a lease of 12 s: it must have been renewed, by every clock.
	until(t, time.Minute, "15 s have passed", func() bool { return time.Since(full) > 15*time.Second })
	c.Engine.Free()
	for _, id := range ids {
		c.Wait(api, id, "succeeded", time.Minute)
	}
	if n := len(c.Engine.Calls("")); n != generations {
		t.Errorf("the engine was called %d times for %d generations", n, generations)
	}
	if n := c.Count(`SELECT count(*) FROM jobs WHERE kind = 'generation:run' AND attempt <> 1`); n > 0 {
		t.Errorf("%d generations took more than one attempt", n)
	}
	for _, p := range append(workers, scheduler) {
		if n := p.Metric("zimage_leases_lost_total"); n != 0 {
			t.Errorf("%s saw %v leases lost", p.Name, n)
		}
	}
	c.Audit(api)
}
