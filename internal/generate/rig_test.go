package generate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"hash/fnv"
	"image"
	"image/png"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// start is when the rigs' clock stands: noon, so that no test crosses midnight
// without wanting to.
var start = time.Date(2031, 3, 3, 12, 0, 0, 0, time.UTC)

// nowhere is a Redis that is away.
const nowhere = "redis://127.0.0.1:1/0"

// setup says how a rig differs from the usual one.
type setup struct {
	idle   bool                              // no worker
	redis  string                            // empty: a server of its own
	wrap   func(objects.Store) objects.Store // what stands before object storage
	open   func(engine.Settings) (engine.Engine, error)
	slots  int // default 1
	rules  string
	queued int // default 1000
	daily  int // default 1000
}

// rig is the room on real parts, with one worker whose engine the test plays.
// Its clock stands still.
type rig struct {
	t       *testing.T
	db      *db.DB
	address string // of the database
	redis   *redis.Client
	store   objects.Store // without the wrap
	clock   *clock.Clock
	vault   *vault.Vault
	queue   *jobs.Queue
	service *Service
	privacy *privacy.Service // ends what is past its time
	engine  *scripted
	fleet   *engine.Fleet
	told    *told
	log     *testenv.Lines
	ada     string
	ben     string

	hub sync.Once
	w   *Watchers
}

// stacks runs test on SQLite with a directory and on PostgreSQL with S3.
func stacks(t *testing.T, s setup, test func(t *testing.T, r *rig)) {
	t.Helper()
	t.Parallel()
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			test(t, newRig(t, dialect, s))
		})
	}
}

func newRig(t *testing.T, dialect db.Dialect, s setup) *rig {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, dir := context.Background(), t.TempDir()
	r := &rig{t: t, clock: clock.Manual(start), engine: &scripted{}, told: &told{}, log: &testenv.Lines{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.db, r.address = testenv.Database(t, dialect)

	keys, err := db.Open(ctx, "sqlite:"+filepath.Join(dir, "keys.db"), db.Options{})
	must(err)
	t.Cleanup(func() { _ = keys.Close() })
	_, err = keys.Migrate(ctx, vault.Migrations())
	must(err)
	roots, err := vault.CreateRoots(filepath.Join(dir, "roots"))
	must(err)
	r.vault, err = vault.Open(ctx, keys, roots, r.clock)
	must(err)

	if dialect == db.SQLite {
		store, err := objects.OpenDirectory(filepath.Join(dir, "objects"))
		must(err)
		t.Cleanup(func() { _ = store.Close() })
		r.store = store
	} else {
		b := testenv.S3(t)
		r.store, err = objects.OpenS3(ctx, objects.S3Options{Endpoint: b.Endpoint, Bucket: b.Bucket, AccessKey: b.AccessKey, SecretKey: b.SecretKey})
		must(err)
	}
	store := r.store
	if s.wrap != nil {
		store = s.wrap(store)
	}
	if s.redis == "" {
		s.redis = testenv.Redis(t)
	}
	address, err := redis.ParseURL(s.redis)
	must(err)
	r.redis = redis.NewClient(address)
	t.Cleanup(func() { _ = r.redis.Close() })

	measured := jobs.NewMetrics(nil)
	bell := jobs.NewBell(r.redis, measured)
	t.Cleanup(bell.Close)
	r.queue = jobs.New(r.db, r.clock, bell, measured, log)
	var rules *Rules
	if s.rules != "" {
		rules, err = ParseRules([]byte(s.rules))
		must(err)
	}
	cfg := config(max(s.slots, 1))
	cfg.SetAsideAfter, cfg.ProbeEvery = 100, 50*time.Millisecond
	limit := func(n int) int {
		if n == 0 {
			return 1000
		}
		return n
	}
	r.service = New(Options{
		DB: r.db, Vault: r.vault, Objects: store, Queue: r.queue, Events: events.New(r.told.hear, r.happened), Clock: r.clock, Log: log,
		Redis: r.redis, Metrics: NewMetrics(nil), Engines: cfg, Rules: rules,
		RetentionDays: 90, QueuedLimit: limit(s.queued), DailyLimit: limit(s.daily),
	})
	t.Cleanup(r.service.Close)
	m, err := privacy.DataMap()
	must(err)
	r.privacy, err = privacy.New(privacy.Options{
		DB: r.db, Keys: keys, Vault: r.vault, Objects: store, Queue: r.queue, Clock: r.clock, Log: log,
		Metrics: privacy.NewMetrics(nil), Map: m, Policy: privacy.DefaultPolicy(),
		Removes: map[string]privacy.Remove{"generations": r.service.RemoveGenerations, "images": r.service.RemoveImages},
	})
	must(err)
	open := s.open
	if open == nil {
		open = func(engine.Settings) (engine.Engine, error) { return r.engine, nil }
	}
	r.fleet, err = engine.NewFleet(cfg, []string{"generation"}, open,
		engine.FleetOptions{Clock: r.clock, Log: log, BusyRest: time.Millisecond})
	must(err)
	r.ada, r.ben = r.person("sub_ada"), r.person("sub_ben")
	if !s.idle {
		r.work()
	}
	return r
}

// config has small pictures: one model with an engine, one that nobody serves.
func config(slots int) engine.Config {
	c := engine.DefaultConfig()
	c.Engines[0].Slots = slots
	m := &c.Models[0]
	m.DefaultWidth, m.DefaultHeight, m.MaxSide, m.MaxPixels = 64, 64, 256, 256*128
	m.DefaultSteps, m.MaxSteps = 2, 8
	m.DefaultGuidance, m.MaxGuidance = 1, 5
	m.NegativePrompt, m.MaxPromptChars = true, 200
	other := *m
	other.ID, other.Lane, other.NegativePrompt = "elsewhere", "elsewhere", false
	c.Models = append(c.Models, other)
	return c
}

// person adds an active subject with keys.
func (r *rig) person(id string) string {
	r.t.Helper()
	if err := r.vault.Create(context.Background(), id); err != nil {
		r.t.Fatal(err)
	}
	err := r.db.Tx(context.Background(), func(tx *db.Tx) error { return subject.New(context.Background(), tx, id, r.clock.Now()) })
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// happened passes events on as app does.
func (r *rig) happened(ctx context.Context, tx *db.Tx, e events.Event) error {
	return r.service.Happened(ctx, tx, e)
}

// work runs a worker until the test ends or stop is called.
func (r *rig) work() (stop func()) {
	w := r.queue.NewWorker([]jobs.Lane{
		{Name: "generation", Slots: LaneSlots{Fleet: r.fleet, Lane: "generation"}},
		{Name: jobs.Housekeeping, Slots: jobs.NewFixed(2)},
	}, 10*time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { r.fleet.Run(ctx) })
	work.Go(func() {
		if err := w.Run(ctx, nil); err != nil {
			r.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); work.Wait() })
	r.t.Cleanup(stop)
	return stop
}

// watchers is the process's hub, running.
func (r *rig) watchers() *Watchers {
	r.hub.Do(func() {
		r.w = r.service.NewWatchers()
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); r.w.Run(ctx) }()
		r.t.Cleanup(func() { cancel(); <-ended })
	})
	return r.w
}

func (r *rig) submit(owner string, change ...func(*Request)) Generation {
	r.t.Helper()
	q := Request{Prompt: "a lighthouse in a storm"}
	for _, c := range change {
		c(&q)
	}
	r.clock.Advance(time.Millisecond) // ids of one millisecond have no order
	g, replayed, err := r.service.Submit(r.t.Context(), owner, q, nil)
	if err != nil || replayed {
		r.t.Fatalf("Submit: %v, replayed %v", err, replayed)
	}
	return g
}

func (r *rig) get(owner, id string) Generation {
	r.t.Helper()
	g, err := r.service.Get(r.t.Context(), owner, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

func (r *rig) await(owner, id string, s Status) Generation {
	r.t.Helper()
	testenv.Eventually(r.t, 20*time.Second, func() bool {
		g := r.get(owner, id)
		if g.Status.Terminal() && g.Status != s {
			r.t.Fatalf("%s became %s (%+v), want %s", id, g.Status, g.Failure, s)
		}
		return g.Status == s
	})
	return r.get(owner, id)
}

// made submits and waits for the pictures.
func (r *rig) made(owner string, change ...func(*Request)) Generation {
	r.t.Helper()
	return r.await(owner, r.submit(owner, change...).ID, Succeeded)
}

func (r *rig) content(owner, id string, thumbnail bool) []byte {
	r.t.Helper()
	c, err := r.service.Content(r.t.Context(), owner, id, thumbnail)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	data, err := io.ReadAll(c)
	if err != nil {
		r.t.Fatal(err)
	}
	if int64(len(data)) != c.Bytes {
		r.t.Errorf("%d bytes, announced %d", len(data), c.Bytes)
	}
	return data
}

// objects are the keys of all that lies in object storage below the prefix.
func (r *rig) objects(prefix string) []string {
	r.t.Helper()
	var keys []string
	for after := ""; ; {
		page, err := r.store.List(context.Background(), prefix, after, 500)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, o := range page {
			keys, after = append(keys, o.Key), o.Key
		}
		if len(page) < 500 {
			return keys
		}
	}
}

// count asks the database for a number.
func (r *rig) count(query string, args ...any) (n int) {
	r.t.Helper()
	if err := r.db.Get(context.Background(), &n, query, args...); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// mend moves the clock and lets a scheduler pass: what waits is queued, what
// was lost is free again.
func (r *rig) mend(d time.Duration) {
	r.t.Helper()
	r.clock.Advance(d)
	if err := r.queue.NewScheduler().Reconcile(context.Background()); err != nil {
		r.t.Fatal(err)
	}
}

// swept waits until no sweep is queued or runs.
func (r *rig) swept() {
	r.t.Helper()
	testenv.Eventually(r.t, 20*time.Second, func() bool {
		return r.count(`SELECT count(*) FROM jobs WHERE kind IN (?, ?) AND state IN ('queued', 'running')`, KindSweep, privacy.KindPurge) == 0
	})
}

// hourly runs what the schedules run every hour.
func (r *rig) hourly() {
	r.t.Helper()
	for _, s := range append(privacy.Schedules(), Schedules()...) {
		if s.Kind != privacy.KindPurge && s.Kind != KindSweep {
			continue
		}
		err := r.db.Tx(context.Background(), func(tx *db.Tx) error {
			_, err := r.queue.Add(context.Background(), tx, jobs.NewJob{Kind: s.Kind, Ref: s.Name})
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
		r.swept()
	}
}

// purge ends what is past its time, and leaves objects to the sweep.
func (r *rig) purge() error {
	_, err := r.privacy.Purge(context.Background(), "generations")
	return err
}

func wantCode(t *testing.T, err error, want problem.Code) {
	t.Helper()
	if err == nil || problem.CodeOf(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// scripted is an engine whose calls the test decides.
type scripted struct {
	mu     sync.Mutex
	script func(ctx context.Context, call int, r engine.Request, progress func(engine.Progress)) ([]byte, error)
	calls  []engine.Request
}

// play sets what calls do from now on; nil: a picture at once. The first call
// is 1.
func (e *scripted) play(script func(ctx context.Context, call int, r engine.Request, progress func(engine.Progress)) ([]byte, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.script = script
}

func (e *scripted) made() []engine.Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]engine.Request(nil), e.calls...)
}

func (e *scripted) Check(context.Context) error { return nil }

func (e *scripted) Generate(ctx context.Context, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	e.mu.Lock()
	e.calls = append(e.calls, r)
	script, call := e.script, len(e.calls)
	e.mu.Unlock()
	if script == nil {
		return paint(r), nil
	}
	return script(ctx, call, r, progress)
}

// gate is a script that waits until it is opened, and stops when it is told to
// unless it is deaf.
type gate struct {
	open    chan struct{}
	entered chan struct{}
	deaf    bool
}

func newGate(deaf bool) *gate {
	return &gate{open: make(chan struct{}), entered: make(chan struct{}, 100), deaf: deaf}
}

func (g *gate) script(ctx context.Context, _ int, r engine.Request, _ func(engine.Progress)) ([]byte, error) {
	g.entered <- struct{}{}
	stop := ctx.Done()
	if g.deaf {
		stop = nil
	}
	select {
	case <-g.open:
		return paint(r), nil
	case <-stop:
		return nil, engine.NewError(engine.FaultOurs, engine.CodeCanceled, 0, ctx.Err())
	}
}

// paint makes a PNG of the request alone, with the prompt in its metadata as
// engines do.
func paint(r engine.Request) []byte { return paintSize(r, r.Width, r.Height) }

func paintSize(r engine.Request, w, h int) []byte {
	hash := fnv.New64a()
	_, _ = io.WriteString(hash, r.Prompt+"\x00"+r.NegativePrompt)
	noise := rand.New(rand.NewPCG(uint64(r.Seed), hash.Sum64()+uint64(r.Steps))) //nolint:gosec // a picture
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		m.Pix[i] = byte(noise.Uint32()) | byte(255*((i%4)/3)) // opaque
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		panic(err)
	}
	body := append([]byte("tEXtparameters\x00"), r.Prompt...)
	chunk := binary.BigEndian.AppendUint32(nil, uint32(len(body)-4)) //nolint:gosec // short
	chunk = append(chunk, body...)
	chunk = binary.BigEndian.AppendUint32(chunk, crc32.ChecksumIEEE(body))
	const header = 8 + 25
	return bytes.Join([][]byte{b.Bytes()[:header], chunk, b.Bytes()[header:]}, nil)
}

// flaky is object storage that is away while it is told to be.
type flaky struct {
	objects.Store
	mu   sync.Mutex
	away bool
	cut  bool
	puts int
}

func (f *flaky) set(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

// breaks makes reads fail, also those that have begun.
func (f *flaky) breaks(cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = cut
}

func (f *flaky) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	body, size, err := f.Store.Get(ctx, key)
	if err != nil {
		return nil, 0, err
	}
	return readCloser{readerFunc(func(p []byte) (int, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.cut {
			return 0, io.ErrUnexpectedEOF
		}
		return body.Read(p)
	}), body}, size, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (f *flaky) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errors.New("object storage is away")
	}
	return nil
}

func (f *flaky) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	f.mu.Lock()
	f.puts++
	f.mu.Unlock()
	if err := f.err(); err != nil {
		return err
	}
	return f.Store.Put(ctx, key, r, size)
}

func (f *flaky) Delete(ctx context.Context, keys ...string) error {
	if err := f.err(); err != nil {
		return err
	}
	return f.Store.Delete(ctx, keys...)
}

func (f *flaky) List(ctx context.Context, prefix, after string, limit int) ([]objects.Info, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	return f.Store.List(ctx, prefix, after, limit)
}

// told keeps the events.
type told struct {
	mu   sync.Mutex
	list []events.Event
}

func (o *told) hear(_ context.Context, tx *db.Tx, e events.Event) error {
	tx.AfterCommit(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.list = append(o.list, e)
	})
	return nil
}

// of counts the events of a type about ref.
func (o *told) of(kind events.Type, ref string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.list {
		if e.Type == kind && e.Ref == ref {
			n++
		}
	}
	return n
}

func ptr[T any](v T) *T { return &v }
