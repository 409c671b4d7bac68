package webhook

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/outbound"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

var start = time.Date(2031, 3, 3, 12, 0, 0, 0, time.UTC)

const prompt = "a lighthouse that nobody else may know of"

// rig is the room on real parts, with one worker. Its clock stands still.
type rig struct {
	t       testing.TB
	db      *db.DB
	clock   *clock.Clock
	vault   *vault.Vault
	queue   *jobs.Queue
	service *Service
	events  *events.Log
	log     *testenv.Lines

	mu    sync.Mutex
	gone  map[string]bool // generations
	ends  []Image         // of ada's, at
	endAt time.Time
	mails []map[string]string
}

// both runs test on SQLite and PostgreSQL.
func both(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.work(Slots, SlotsPerEndpoint)
		test(t, r)
	})
}

func newRig(t testing.TB, d *db.DB) *rig {
	t.Helper()
	ctx := context.Background()
	r := &rig{t: t, db: d, clock: clock.Manual(start), log: &testenv.Lines{}, gone: map[string]bool{}, endAt: start.Add(expiring)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	dir := t.TempDir()
	keys, err := db.Open(ctx, "sqlite:"+filepath.Join(dir, "keys.db"), db.Options{})
	r.must(err)
	t.Cleanup(func() { _ = keys.Close() })
	_, err = keys.Migrate(ctx, vault.Migrations())
	r.must(err)
	roots, err := vault.CreateRoots(filepath.Join(dir, "roots"))
	r.must(err)
	r.vault, err = vault.Open(ctx, keys, roots, r.clock)
	r.must(err)
	address, err := redis.ParseURL(testenv.Redis(t))
	r.must(err)
	client := redis.NewClient(address)
	t.Cleanup(func() { _ = client.Close() })
	measured := jobs.NewMetrics(nil)
	bell := jobs.NewBell(client, measured)
	t.Cleanup(bell.Close)
	r.queue = jobs.New(d, r.clock, bell, measured, log)
	out := outbound.New(outbound.Options{Loopback: true})
	t.Cleanup(out.Close)
	r.service = New(Options{DB: d, Vault: r.vault, Queue: r.queue, Clock: r.clock, Log: log, Client: out, Generation: r.generation, Expiring: r.ending, Tell: r.tell,
		Kept: func(now time.Time) time.Time { return now.AddDate(0, 0, -30) }, PublicURL: "https://zimage.example"})
	r.events = events.New(r.service.Happened)
	r.person("sub_ada")
	r.person("sub_ben")
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) person(id string) {
	r.t.Helper()
	r.must(r.vault.Create(context.Background(), id))
	r.tx(func(tx *db.Tx) error { return subject.New(context.Background(), tx, id, r.clock.Now()) })
}

// work runs a worker until the test ends or the returned function is called.
func (r *rig) work(slots, perParty int) (stop func()) {
	w := r.queue.NewWorker([]jobs.Lane{
		{Name: Lane, Slots: jobs.NewFixed(slots), PerParty: perParty, PerOwner: 2 * perParty, CheckInterval: 10 * time.Millisecond},
		{Name: jobs.Housekeeping, Slots: jobs.NewFixed(1), CheckInterval: 10 * time.Millisecond},
	}, time.Second)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, nil) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) tx(f func(tx *db.Tx) error) {
	r.t.Helper()
	r.must(r.db.Tx(context.Background(), f))
}

// generation is a succeeded one, unless it is gone.
func (r *rig) generation(_ context.Context, _, id string) (Generation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone[id] {
		return Generation{}, problem.New(problem.DataRemoved, "It is gone.")
	}
	return Generation{ID: id, Status: "succeeded", Images: []string{"img_1"}, CreatedAt: start, FinishedAt: start, ExpiresAt: start, Prompt: prompt,
		Metadata: map[string]string{"order": "17 of hers"}}, nil
}

// ending are ada's images that end until then, in pages.
func (r *rig) ending(_ context.Context, owner string, until time.Time, life time.Duration, after string, _ int) ([]Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var page []Image
	for _, image := range r.ends {
		if image.ID > after && len(page) < 2 && r.endAt.After(r.clock.Now()) && !r.endAt.After(until) && life == expiring {
			page = append(page, Image{image.ID, "gen_of_" + owner})
		}
	}
	return page, nil
}

func (r *rig) tell(_ context.Context, _ *db.Tx, owner string, template mail.Template, data map[string]string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mails = append(r.mails, map[string]string{"owner": owner, "template": string(template), "endpoint": data["Endpoint"], "host": data["Host"], "why": data["Why"]})
	return nil
}

func (r *rig) mailed() []map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mails
}

// happens tells of something of ada's.
func (r *rig) happens(e events.Event) {
	r.t.Helper()
	if e.Subject == "" {
		e.Subject = "sub_ada"
	}
	r.clock.Advance(time.Millisecond) // ids sort by their time
	e.At = r.clock.Now()
	r.tx(func(tx *db.Tx) error { return r.events.Append(context.Background(), tx, e) })
}

func (r *rig) succeeds(generation string) {
	r.t.Helper()
	r.happens(events.Event{Type: events.GenerationSucceeded, Ref: generation, Sequence: 4})
}

// queues tells of a new generation of ada's with an address of its own.
func (r *rig) queues(generation, url, told string) error {
	return r.db.Tx(context.Background(), func(tx *db.Tx) error {
		return r.events.Append(context.Background(), tx, events.Event{Type: events.GenerationQueued, Subject: "sub_ada", Ref: generation, At: r.clock.Now(),
			Facts: map[events.Fact]string{events.WebhookURL: url, events.WebhookEvents: told}})
	})
}

// waits is over when so many jobs wait for their time.
func (r *rig) waits(n int) {
	r.t.Helper()
	r.until(fmt.Sprint(n, " wait"), func() bool { return r.count(`SELECT count(*) FROM jobs WHERE state = 'waiting'`) == n })
}

// endpoint is a new one of ada's.
func (r *rig) endpoint(url string, told ...string) (Endpoint, string) {
	r.t.Helper()
	e, secret, err := r.service.Create(context.Background(), "sub_ada", Change{URL: &url, Events: &told})
	r.must(err)
	return e, secret
}

func (r *rig) look(id string) Endpoint {
	r.t.Helper()
	e, err := r.service.Endpoint(context.Background(), "sub_ada", id)
	r.must(err)
	return e
}

func (r *rig) deliveries(endpoint string) []Delivery {
	r.t.Helper()
	list, err := r.service.Deliveries(context.Background(), "sub_ada", endpoint, "", "", 100)
	r.must(err)
	return list
}

// pass lets time go by: what waits for it is due.
func (r *rig) pass(d time.Duration) {
	r.t.Helper()
	r.clock.Advance(d)
	r.must(r.queue.NewScheduler().Reconcile(context.Background()))
}

// idle waits until nothing is due: a lease that time runs away from is lost.
func (r *rig) idle() {
	r.t.Helper()
	r.until("nothing is due", func() bool { return r.count(`SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')`) == 0 })
}

// passIdle is pass, if nothing is due.
func (r *rig) passIdle(d time.Duration) {
	r.t.Helper()
	if r.count(`SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')`) == 0 {
		r.pass(d)
	}
}

func (r *rig) until(what string, done func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			r.t.Fatal("never: " + what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *rig) count(query string, args ...any) (n int) {
	r.t.Helper()
	r.must(r.db.Get(context.Background(), &n, query, args...))
	return n
}

// call is one that a receiver got.
type call struct {
	header http.Header
	body   string
}

// receiver answers as its test wants and keeps what it gets.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	calls  []call
	answer func(w http.ResponseWriter, n int) // nil: 204; n is 1 for the first call
}

func receive(t testing.TB, answer func(w http.ResponseWriter, n int)) *receiver {
	t.Helper()
	v := &receiver{answer: answer}
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		v.mu.Lock()
		v.calls = append(v.calls, call{r.Header.Clone(), string(body)})
		n, answer := len(v.calls), v.answer
		v.mu.Unlock()
		if answer == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		answer(w, n)
	}))
	t.Cleanup(v.Close)
	return v
}

func (v *receiver) got() []call {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]call(nil), v.calls...)
}

func (v *receiver) answers(answer func(w http.ResponseWriter, n int)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answer = answer
}

func status(code int) func(http.ResponseWriter, int) {
	return func(w http.ResponseWriter, _ int) { w.WriteHeader(code) }
}
