package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// A hook is a program that is told by a webhook. It notes what arrives and is rightly
// signed.
type hook struct {
	id      string // of the webhook
	address string
	gate    *gate

	mu     sync.Mutex
	verify func(body []byte, header http.Header) error
	told   map[string]int  // how often, by the id of the event
	what   map[string]bool // types and what each is of, such as "image.deleted img_…"
}

// hook listens and makes a webhook for it, whose address has the canary in it.
func (c *Cluster) hook(api *Process) *hook {
	c.t.Helper()
	h := &hook{address: freeAddress(c.t), told: map[string]int{}, what: map[string]bool{}}
	h.listen(c.t, false)
	var made struct {
		Secret  string `json:"secret"`
		Webhook struct {
			ID string `json:"id"`
		} `json:"webhook"`
	}
	c.post(api, "/v1/webhooks", fmt.Sprintf(`{"url": "http://%s/%s"}`, h.address, c.Canary), &made)
	wh, err := standardwebhooks.NewWebhook(made.Secret)
	if err != nil {
		c.t.Fatal("the secret is none of Standard Webhooks")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.id, h.verify = made.Webhook.ID, wh.Verify
	return h
}

// listen has it hear, at the same address as before; or be silent: it accepts and reads
// nothing.
func (h *hook) listen(t testing.TB, silent bool) {
	t.Helper()
	l, err := net.Listen("tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	h.gate = &gate{Listener: l, shut: silent}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(h.gate) }()
	t.Cleanup(func() { _ = server.Close() })
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // whoever calls was killed
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.verify(body, r.Header) != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var event struct {
		ID   string `json:"id"`
		Type string `json:"type"`
		Data struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if json.Unmarshal(body, &event) != nil || event.ID != r.Header.Get("Webhook-Id") {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.told[event.ID]++
	h.what[event.Type+" "+event.Data.ID] = true
	w.WriteHeader(http.StatusNoContent)
}

// heard is how many events have arrived, and how many calls they took.
func (h *hook) heard() (events, calls int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.told {
		calls += n
	}
	return len(h.told), calls
}

// missed is what of the truth it was not told.
func (h *hook) missed(truth []string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(truth), func(what string) bool { return h.what[what] })
}

// post sends a request; an empty body is none.
func (c *Cluster) post(api *Process, path, body string, dest any) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, api.URL+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	status, err := c.do(req, dest)
	if err != nil || status > 299 {
		c.t.Fatalf("POST %s: %d, %v", path, status, err)
	}
}

// insist does something until it works: the API may be killed meanwhile.
func insist(do func() error) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if err := do(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// delete deletes what may be gone already.
func (c *Cluster) delete(api *Process, path string) error {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodDelete, api.URL+path, http.NoBody)
	if err != nil {
		return err
	}
	status, err := c.do(req, new([]byte))
	if err == nil && status > 299 && status != http.StatusNotFound && status != http.StatusGone {
		err = &StatusError{Status: status}
	}
	return err
}

// lifeOf makes a generation, waits for its image, and deletes first that and then the
// generation. It returns what a webhook is to be told of it.
func (c *Cluster) lifeOf(api *Process, label string) ([]string, error) {
	var g Generation
	r := Request{Label: label, Key: rand.Text()}
	err := insist(func() (err error) { g, err = c.Try(c.t.Context(), api, r); return err })
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	follows := c.accepts[g.ID].receiver
	c.mu.Unlock()
	if !follows.finished(c.t.Context()) || len(follows.ends) != 1 || len(follows.ends[0].images) != 1 {
		return nil, fmt.Errorf("generation %s ended as %v", g.ID, follows.ends)
	}
	image := follows.ends[0].images[0]
	for _, path := range []string{"/v1/images/" + image, "/v1/generations/" + g.ID} {
		if err := insist(func() error { return c.delete(api, path) }); err != nil {
			return nil, err
		}
	}
	return []string{"generation.succeeded " + g.ID, "image.deleted " + image, "generation.deleted " + g.ID}, nil
}

// eventsOfOne is how many events a generation with one image comes to here: started,
// succeeded, deleted, and its image deleted.
const eventsOfOne = 4

// Two receivers, of which one is dead: first it refuses connections, then it accepts
// them and says nothing. Meanwhile each process and Redis is killed once. All that
// happened arrives at the healthy one, and at the other after it came back.
// ZIMAGE_E2E_EVENTS=10000 has more happen.
func TestWebhooksLoseNothing(t *testing.T) {
	t.Parallel()
	generations := 400 / eventsOfOne
	if n, err := strconv.Atoi(os.Getenv("ZIMAGE_E2E_EVENTS")); err == nil {
		generations = n / eventsOfOne
	}
	c := start(t, Options{Slots: 4, Settings: []string{"OUTBOUND_LOOPBACK=true"}})
	c.Key = c.CLI("", "key", "create", "--email", "e2e@example.org", "--scope", "generate,read,webhooks")
	api, worker, scheduler := c.API("api"), c.Worker("worker"), c.Scheduler("scheduler")
	began := time.Now()
	healthy, dead := c.hook(api), c.hook(api)
	_ = dead.gate.Close()

	var mu sync.Mutex
	var truth []string // what has happened, as far as the API said yes to it
	next := make(chan int)
	var clients sync.WaitGroup
	for range 12 {
		clients.Go(func() {
			for k := range next {
				told, err := c.lifeOf(api, fmt.Sprint("told ", k))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				truth = append(truth, told...)
				mu.Unlock()
			}
		})
	}
	// share has events happen until so much of all has.
	begun := 0
	share := func(of float64) {
		for ; begun < int(of*float64(generations)); begun++ {
			next <- begun
		}
	}
	share(0.15)
	api.Kill9()
	api.Start()
	share(0.3)
	worker.Kill9()
	worker.Start()
	until(t, time.Minute, "the dead one is given up for a while", func() bool {
		return c.Count(`SELECT count(*) FROM webhook_endpoints WHERE id = ? AND open_until IS NOT NULL`, dead.id) == 1
	})
	dead.listen(t, true)
	share(0.5)
	scheduler.Kill9()
	scheduler.Start()
	share(0.7)
	if err := c.Redis.Kill(); err != nil {
		t.Fatal(err)
	}
	share(0.8)
	if err := c.Redis.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	share(1)
	close(next)
	clients.Wait()
	if t.Failed() {
		return
	}

	// What happened is what the database says, and what the API said yes to.
	happened := c.Count(`SELECT count(*) FROM webhook_events`)
	all := func(h *hook) func() bool {
		return func() bool {
			n, _ := h.heard()
			return n == happened
		}
	}
	until(t, time.Minute, "all arrives at the healthy one", all(healthy))
	until(t, time.Minute, "the dead one is called while it is silent, in vain", func() bool {
		return c.Count(`SELECT count(*) FROM webhook_attempts WHERE error = 'timed_out'`) > 0 &&
			c.Count(`SELECT count(*) FROM jobs WHERE party = ? AND state = 'running'`, dead.id) == 0
	})
	if n, _ := dead.heard(); n > 0 {
		t.Errorf("%d events arrived at the dead one", n)
	}
	dead.gate.set(false)
	var replayed struct{ Replayed int }
	c.post(api, "/v1/webhooks/"+dead.id+"/replay?since="+began.UTC().Format(time.RFC3339), "", &replayed)
	if replayed.Replayed == 0 {
		t.Error("nothing was replayed")
	}
	// Those that waited for it come as late as it would have been left alone.
	until(t, 2*time.Minute+time.Since(began), "all arrives at the other one, which came back", all(dead))
	for _, h := range []*hook{healthy, dead} {
		if missed := h.missed(truth); len(missed) > 0 {
			t.Errorf("of %d events %d were not told, such as %s", len(truth), len(missed), missed[0])
		}
	}
	until(t, time.Minute, "the deliveries are recorded", func() bool {
		return c.Count(`SELECT count(*) FROM webhook_deliveries WHERE state <> 'delivered'`) == 0
	})
	_, calls := healthy.heard()
	_, later := dead.heard()
	c.auditCanary()
	t.Logf("%d events: in %d calls to the healthy one, %d to the other", happened, calls, later)
}
