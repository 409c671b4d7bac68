package privacy_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"zimage/internal/account"
	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/events"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/outbound"
	"zimage/internal/privacy"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
	"zimage/internal/webhook"
)

// mark stands in everything that a person of these tests gives the service.
const mark = "CANARY-7f3a91"

const password = "some long words for anybody"

// Which stacks a test runs on.
func every(privacy.Stack) bool         { return true }
func unversioned(s privacy.Stack) bool { return !s.Versioned }

func on(t *testing.T, which func(privacy.Stack) bool, test func(t *testing.T, s privacy.Stack)) {
	t.Helper()
	t.Parallel()
	for name, s := range privacy.Stacks {
		if which(s) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, s)
			})
		}
	}
}

// home is the rooms on real parts. Its clock stands still, and nothing works but
// what the test starts.
type home struct {
	t        testing.TB
	dir      string
	at       privacy.Place
	db, keys *db.DB
	vault    *vault.Vault
	store    objects.Store
	away     *away
	late     *late // what generate stores through
	clock    *clock.Clock
	queue    *jobs.Queue
	mail     *mail.Mailer
	folder   *mail.Directory
	post     mail.Transport // nil: the folder
	accounts *account.Service
	generate *generate.Service
	webhooks *webhook.Service
	privacy  *privacy.Service
	ledger   *privacy.Ledger // nil: nothing is told to one
	registry *prometheus.Registry
	engine   func(ctx context.Context, r engine.Request) ([]byte, error)
	public   ed25519.PublicKey
	log      *testenv.Lines
	options  privacy.Options
}

// away is an object store that fails while it is told to, wholly or as soon as it
// is to delete.
type away struct {
	objects.Store
	mu      sync.Mutex
	down    bool
	refuses bool
	isFull  bool
	left    int    // deletions until then; and
	then    func() // nil: nothing
	stored  func() // once, behind the next upload; nil: nothing
}

// behind has something happen behind the next upload.
func (a *away) behind(then func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stored = then
}

// after has something happen behind the nth deletion from now.
func (a *away) after(n int, then func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left, a.then = n, then
}

func (a *away) refuse(deletes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuses = deletes
}

func (a *away) set(down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = down
}

// full has it take nothing, and answer otherwise.
func (a *away) full(full bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isFull = full
}

func (a *away) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	a.mu.Lock()
	down, then := a.isFull, a.stored
	a.stored = nil
	a.mu.Unlock()
	if then != nil {
		defer then()
	}
	if down {
		return &objects.Error{Op: "put", Code: "unreachable"}
	}
	return a.Store.Put(ctx, key, r, size)
}

func (a *away) err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down {
		return &objects.Error{Op: "list", Code: "unreachable"}
	}
	return nil
}

func (a *away) List(ctx context.Context, prefix, after string, limit int) ([]objects.Info, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Store.List(ctx, prefix, after, limit)
}

func (a *away) Delete(ctx context.Context, keys ...string) error {
	if err := a.err(); err != nil {
		return err
	}
	a.mu.Lock()
	refuses := a.refuses
	if a.left--; a.left == 0 && a.then != nil {
		defer a.then()
	}
	a.mu.Unlock()
	if refuses {
		return &objects.Error{Op: "delete", Code: "AccessDenied"}
	}
	return a.Store.Delete(ctx, keys...)
}

// late is an object store for workers, whose uploads can be held up, however soon
// they are given up.
type late struct {
	objects.Store
	mu   sync.Mutex
	gate chan struct{} // nil: open
	puts chan string
}

func (l *late) hold() (waiting <-chan string, open func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate, l.puts = make(chan struct{}), make(chan string, 100)
	return l.puts, sync.OnceFunc(func() { close(l.gate) })
}

func (l *late) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	if gate != nil {
		l.puts <- key
		<-gate
		ctx = context.WithoutCancel(ctx)
	}
	return l.Store.Put(ctx, key, r, size)
}

// Delete is that of a worker which is killed before it tidies up.
func (l *late) Delete(ctx context.Context, keys ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate != nil {
		return &objects.Error{Op: "delete", Code: "killed"}
	}
	return l.Store.Delete(ctx, keys...)
}

func everywhere(t *testing.T, test func(t *testing.T, h *home)) {
	t.Helper()
	on(t, every, func(t *testing.T, s privacy.Stack) { test(t, newHome(t, s)) })
}

// bothDatabases leaves the versioned bucket out.
func bothDatabases(t *testing.T, test func(t *testing.T, h *home)) {
	t.Helper()
	on(t, unversioned, func(t *testing.T, s privacy.Stack) { test(t, newHome(t, s)) })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHome(t testing.TB, s privacy.Stack, change ...func(*privacy.Options)) *home {
	t.Helper()
	dir := t.TempDir()
	return openHome(t, privacy.NewPlace(t, s, dir, start), db.Options{}, change...)
}

// openHome opens what is at a place.
func openHome(t testing.TB, at privacy.Place, o db.Options, change ...func(*privacy.Options)) *home {
	t.Helper()
	h := &home{t: t, dir: filepath.Dir(at.Roots), at: at, log: &testenv.Lines{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.log.String())
		}
	})
	p, err := h.at.Open(context.Background(), nil, o)
	t.Cleanup(p.Close)
	must(t, err)
	h.db, h.keys, h.vault, h.store, h.clock = p.DB, p.Keys, p.Vault, p.Store, p.Clock
	h.away = &away{Store: h.store}
	h.late = &late{Store: h.store}
	h.public = h.vault.PublicKey()
	h.folder = mail.NewDirectory(filepath.Join(h.dir, "mail"), h.clock)
	for _, c := range change {
		c(&h.options)
	}
	h.rooms()
	return h
}

var silent sync.Once

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// bells are what is at an address of Redis; empty: it is away.
func bells(address string) (*redis.Client, error) {
	silent.Do(func() { redis.SetLogger(quiet{}) })
	there := &redis.Options{Addr: "127.0.0.1:1", DialTimeout: 50 * time.Millisecond, MaxRetries: -1}
	var err error
	if address != "" {
		there, err = redis.ParseURL(address)
	}
	return redis.NewClient(there), err
}

// rooms opens the rooms on the parts, as a new process does.
func (h *home) rooms() {
	h.t.Helper()
	log := slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	bells, err := bells(h.at.Redis)
	must(h.t, err)
	h.t.Cleanup(func() { _ = bells.Close() })
	measured := jobs.NewMetrics(nil)
	bell := jobs.NewBell(bells, measured)
	h.t.Cleanup(bell.Close)
	h.queue = jobs.New(h.db, h.clock, bell, measured, log)
	var rooms *generate.Service
	var own *privacy.Service
	var hooks *webhook.Service
	ended := func(ctx context.Context, tx *db.Tx, owner, kind string, ids ...string) {
		own.Ended(ctx, tx, owner, kind, ids...)
	}
	happened := events.New(
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return rooms.Happened(ctx, tx, e) },
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return own.Happened(ctx, tx, e) },
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return hooks.Happened(ctx, tx, e) },
		func(ctx context.Context, tx *db.Tx, e events.Event) error {
			if h.ledger == nil {
				return nil
			}
			return h.ledger.Happened(ctx, tx, e)
		})
	if h.post == nil {
		h.post = h.folder
	}
	h.mail = mail.New(mail.Options{DB: h.db, Vault: h.vault, Queue: h.queue, Clock: h.clock, Log: log, Transport: h.post, PublicURL: "http://127.0.0.1"})
	h.accounts = account.New(account.Options{
		DB: h.db, Vault: h.vault, Clock: h.clock, Log: log, Events: happened, Mail: h.mail, PublicURL: "http://127.0.0.1", PolicyVersion: "2026-01-01",
		HashCost: &argon2id.Params{Memory: 32, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32},
	})
	rooms = generate.New(generate.Options{
		DB: h.db, Vault: h.vault, Objects: h.late, Queue: h.queue, Events: happened, Clock: h.clock, Log: log, Redis: bells,
		Metrics: generate.NewMetrics(nil), Engines: engine.DefaultConfig(), Journal: func(ctx context.Context, table string, ids []string) error { return own.Journal(ctx, table, ids) }, Ended: ended, RetentionDays: 90, QueuedLimit: 100, DailyLimit: 1000,
	})
	h.t.Cleanup(rooms.Close)
	h.generate = rooms
	out := outbound.New(outbound.Options{Loopback: true})
	h.t.Cleanup(out.Close)
	if h.options.Policy.Version == "" {
		h.options.Policy = privacy.DefaultPolicy()
	}
	kept, _ := h.options.Policy.Window("webhooks")
	hooks = webhook.New(webhook.Options{DB: h.db, Vault: h.vault, Queue: h.queue, Clock: h.clock, Log: log, Client: out, PublicURL: "http://127.0.0.1", Tell: h.accounts.Tell, Ended: ended, Kept: kept.Before,
		Generation: func(ctx context.Context, owner, id string) (webhook.Generation, error) {
			g, err := rooms.Get(ctx, owner, id)
			told := webhook.Generation{ID: g.ID, Status: string(g.Status), ExpiresAt: g.ExpiresAt, Prompt: g.Request.Prompt}
			for _, i := range g.Images {
				told.Images = append(told.Images, i.ID)
			}
			return told, err
		},
		Expiring: func(ctx context.Context, owner string, until time.Time, life time.Duration, after string, limit int) (list []webhook.Image, err error) {
			endings, err := rooms.Expiring(ctx, owner, until, life, after, limit)
			for _, e := range endings {
				list = append(list, webhook.Image(e))
			}
			return list, err
		}})
	h.webhooks = hooks
	h.registry = prometheus.NewRegistry()
	o := h.options
	o.Metrics = privacy.NewMetrics(h.registry)
	o.DB, o.Keys, o.Vault, o.Objects, o.Queue, o.Clock, o.Mail, o.Log = h.db, h.keys, h.vault, h.away, h.queue, h.clock, h.mail, log
	if o.Map == nil {
		o.Map = dataMap(h.t)
	}
	o.Removes = map[string]privacy.Remove{"generations": rooms.RemoveGenerations, "images": rooms.RemoveImages}
	o.Drops = map[string]privacy.Drop{"webhook_deliveries": hooks.DropDeliveries}
	o.Ends = map[string]privacy.End{
		generate.EndedShare:  {Back: rooms.SharesBack, Again: rooms.EndSharesAgain},
		generate.EndedLinks:  {Back: rooms.LinksBack, Again: rooms.RevokeLinksAgain},
		webhook.EndedWebhook: {Back: hooks.EndpointsBack, Again: hooks.EndEndpointsAgain},
	}
	o.Events, o.Accounts = happened, h.accounts
	own, err = privacy.New(o)
	must(h.t, err)
	h.privacy = own
}

// withFarewells opens the rooms again, so that an erasure waits for the last calls.
func (h *home) withFarewells() {
	h.t.Helper()
	h.options.Notices = []string{webhook.KindFarewell}
	h.rooms()
}

// reopen opens the same parts at other addresses; empty: as it is.
func (h *home) reopen(main, keys string) {
	h.t.Helper()
	ctx := context.Background()
	if main != "" {
		d, err := db.Open(ctx, main, db.Options{})
		must(h.t, err)
		h.t.Cleanup(func() { _ = d.Close() })
		h.db = d
	}
	if keys != "" {
		d, err := db.Open(ctx, keys, db.Options{})
		must(h.t, err)
		h.t.Cleanup(func() { _ = d.Close() })
		h.keys = d
		roots, err := vault.ReadRoots(filepath.Join(h.dir, "roots"))
		must(h.t, err)
		h.vault, err = vault.Open(ctx, d, roots, h.clock)
		must(h.t, err)
	}
	h.rooms()
}

// work runs a worker until the test ends or stop is called, for more lanes too.
func (h *home) work(more ...jobs.Lane) (stop func()) {
	cfg := engine.DefaultConfig()
	fleet, err := engine.NewFleet(cfg, []string{"generation"}, func(engine.Settings) (engine.Engine, error) { return played{h}, nil },
		engine.FleetOptions{Clock: h.clock, Log: slog.New(slog.DiscardHandler)})
	must(h.t, err)
	w := h.queue.NewWorker(append([]jobs.Lane{
		{Name: "generation", Slots: generate.LaneSlots{Fleet: fleet, Lane: "generation"}},
		{Name: jobs.Housekeeping, Slots: jobs.NewFixed(2)}, {Name: mail.Lane, Slots: jobs.NewFixed(2)},
	}, more...), 10*time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { fleet.Run(ctx) })
	running.Go(func() { _ = w.Run(ctx, nil) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	h.t.Cleanup(stop)
	return stop
}

type played struct{ h *home }

func (played) Check(context.Context) error { return nil }

func (p played) Generate(ctx context.Context, r engine.Request, _ func(engine.Progress)) ([]byte, error) {
	return p.h.engine(ctx, r)
}

// person is somebody who used everything that there is.
type person struct {
	id, email string
	who       account.Principal
}

var client = account.Client{Addr: netip.MustParseAddr("192.0.2.7"), Agent: "Browser " + mark}

// newcomer has an account and a session.
func (h *home) newcomer(name string) person {
	h.t.Helper()
	ctx := context.Background()
	p := person{email: name + "-" + strings.ToLower(mark) + "@example.org"}
	var err error
	p.id, err = h.accounts.CreateUser(ctx, p.email, password)
	must(h.t, err)
	in, err := h.accounts.SignIn(ctx, client, account.Credentials{Email: p.email, Password: password})
	must(h.t, err)
	p.who, err = h.accounts.AuthenticateSession(ctx, in.Token)
	must(h.t, err)
	return p
}

// live adds a person with a row in every table, and images.
func (h *home) live(name string, images int) person {
	h.t.Helper()
	ctx := context.Background()
	p := h.newcomer(name)
	username := name + "_" + strings.ToLower(strings.ReplaceAll(mark, "-", "_"))
	_, err := h.accounts.UpdateUser(ctx, p.who, account.UserChange{Username: &username, Profile: &account.Profile{Name: mark}, Preferences: &account.Preferences{Width: 64, Height: 64}})
	must(h.t, err)
	_, _, err = h.accounts.CreateKey(ctx, p.id, "key "+mark, []string{account.ScopeRead}, time.Time{})
	must(h.t, err)
	must(h.t, h.accounts.SetConsent(ctx, p.who, subject.Training, true))
	must(h.t, h.accounts.Object(ctx, p.who, subject.Statistics))
	must(h.t, h.accounts.Suspend(ctx, account.AtTheMachine(), p.id, "because of "+mark))
	must(h.t, h.accounts.Unsuspend(ctx, account.AtTheMachine(), p.id, "no more "+mark))
	h.paint(p, images)
	for _, t := range dataMap(h.t).Tables {
		if t.Store == privacy.StoreMain && t.Nobody == "" && t.Erase.Do == privacy.Delete {
			h.fill(p.id, t)
		}
	}
	return p
}

// fill adds a row to a table of the map, unless the person can have one alone.
func (h *home) fill(owner string, t privacy.Table) {
	h.t.Helper()
	if slices.Contains(t.Key, t.Subject) && len(t.Key) == 1 {
		var n int
		must(h.t, h.db.Get(context.Background(), &n, "SELECT count(*) FROM "+t.Name+" WHERE "+t.Subject+" = ?", owner))
		if n > 0 {
			return
		}
	}
	id := strings.ToLower(rand.Text())
	var names []string
	var values []any
	for _, c := range t.Columns {
		if t.Name == "mails" && (c.Name == "accepted_at" || c.Name == "failed_at") {
			continue
		}
		var v any
		switch {
		case c.Name == t.Subject:
			v = owner
		case c.Name == "id" || c.Name == "key_lookup" || c.Hashed != "" && c.Type == "text":
			v = strings.ToLower(rand.Text())
			if c.Name == "id" {
				v = id
			}
		case c.Sealed != "":
			sealed, err := h.vault.Seal(context.Background(), owner, []byte(`"`+mark+`"`), t.Bound(c.Name, id))
			must(h.t, err)
			v = sealed
		case t.Name == "jobs" && c.Name == "state":
			v = jobs.Succeeded
		case t.Name == "jobs" && c.Name == "attempt":
			v = 1
		case c.Type == "text", c.Type == "words":
			v = strings.ToLower(rand.Text())
		case c.Type == "bytes":
			v = []byte(rand.Text())
		case c.Type == "time":
			v = h.clock.Millis()
		default:
			v = 1
		}
		names, values = append(names, c.Name), append(values, v)
	}
	_, err := h.db.Exec(context.Background(), "INSERT INTO "+t.Name+" ("+strings.Join(names, ", ")+") VALUES ("+db.Marks(len(names))+")", values...)
	if err != nil {
		h.t.Fatalf("fill %s: %v", t.Name, errors.Unwrap(err))
	}
}

// paint adds generations of one image each, with their objects.
func (h *home) paint(p person, images int) (ids []string) {
	h.t.Helper()
	ctx := context.Background()
	for range images {
		h.clock.Advance(time.Millisecond)
		now := h.clock.Now()
		g, i := db.NewID("gen", now), db.NewID("img", now)
		request, err := h.vault.Seal(ctx, p.id, []byte(`{"prompt":"`+mark+`"}`), vault.Column("generations", "request", g))
		must(h.t, err)
		hash, err := h.vault.Seal(ctx, p.id, []byte(mark), vault.Column("images", "sha256", i))
		must(h.t, err)
		_, err = h.db.Exec(ctx, `INSERT INTO generations (id, owner, job_id, model, seed, request, status, error_code, attempts, created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
			VALUES (?, ?, 'job_x', 'm', 1, ?, 'succeeded', '', 1, ?, ?, ?, ?, 0, '', 0)`, g, p.id, request, now.UnixMilli(), now.UnixMilli(), now.UnixMilli(), now.Add(90*24*time.Hour).UnixMilli())
		must(h.t, err)
		_, err = h.db.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
			VALUES (?, ?, ?, 0, 1, 64, 64, 'png', 9, 1, ?, ?, ?, 0, '')`, i, g, p.id, hash, now.UnixMilli(), now.Add(90*24*time.Hour).UnixMilli())
		must(h.t, err)
		for _, o := range [][2]string{{"img", "image"}, {"thumb", "thumbnail"}} {
			h.put(p.id, fmt.Sprintf("images/%s/%s/1/0.%s", p.id, g, o[0]), vault.Data("object", p.id, g, "1", "0", o[1]))
		}
		ids = append(ids, i)
	}
	return ids
}

func (h *home) put(owner, key string, data []byte) {
	h.t.Helper()
	var b bytes.Buffer
	w, err := h.vault.SealWriter(context.Background(), owner, &b, data)
	must(h.t, err)
	_, err = io.WriteString(w, "picture of "+mark)
	must(h.t, err)
	must(h.t, w.Close())
	must(h.t, h.store.Put(context.Background(), key, bytes.NewReader(b.Bytes()), int64(b.Len())))
}

// close ends the account and returns the erasure, and the secret of its receipt.
func (h *home) close(p person) (id, secret string) {
	h.t.Helper()
	ctx := context.Background()
	must(h.t, h.accounts.CloseFor(ctx, account.AtTheMachine(), p.id, "a letter that asks for it, "+mark))
	id, secret, err := h.claim(p)
	must(h.t, err)
	return id, secret
}

func (h *home) claim(p person) (id, secret string, err error) {
	err = h.db.Tx(context.Background(), func(tx *db.Tx) error {
		id, secret, err = h.privacy.ClaimIn(context.Background(), tx, p.id)
		return err
	})
	return id, secret, err
}

// erase goes on until the erasure is complete, moving the clock over every wait.
func (h *home) erase(id string) error {
	h.t.Helper()
	for range 2000 {
		after, err := h.privacy.Erase(context.Background(), id)
		if err != nil || after == 0 {
			return err
		}
		h.clock.Advance(max(after, time.Minute))
	}
	h.t.Fatal("the erasure has no end")
	return nil
}

// receipt fetches and verifies the complete receipt.
func (h *home) receipt(id, secret string) privacy.Receipt {
	h.t.Helper()
	signed, err := h.privacy.Receipt(context.Background(), id, secret)
	must(h.t, err)
	text, err := json.MarshalIndent(signed, "", "  ")
	must(h.t, err)
	r, _, err := privacy.VerifyReceipt(text, h.public)
	if err != nil {
		h.t.Fatalf("%v: %s", err, text)
	}
	return r
}

// found is every place where a text stands: rows by store and table, objects by
// prefix, files of mails.
func (h *home) found(text string) map[string]int {
	h.t.Helper()
	ctx := context.Background()
	places := map[string]int{}
	for store, d := range map[string]*db.DB{privacy.StoreMain: h.db, privacy.StoreKeys: h.keys} {
		tables, err := db.Tables(ctx, d)
		must(h.t, err)
		for _, t := range tables {
			var where []string
			var args []any
			for _, c := range t.Columns {
				// Text as it is, bytes by their hex: sealed ones hold no text of anybody.
				as, want := "lower(CAST("+c.Name+" AS text))", strings.ToLower(text)
				if c.Type == "bytea" {
					as, want = "lower(hex("+c.Name+"))", fmt.Sprintf("%x", text)
					if d.Dialect() == db.Postgres {
						as = "encode(" + c.Name + ", 'hex')"
					}
				}
				where, args = append(where, as+" LIKE ?"), append(args, "%"+want+"%")
			}
			var n int
			must(h.t, d.Get(ctx, &n, "SELECT count(*) FROM "+t.Name+" WHERE "+strings.Join(where, " OR "), args...))
			if n > 0 {
				places[store+"/"+t.Name] = n
			}
		}
	}
	for _, prefix := range []string{"images/", "exports/", "held/"} {
		for _, key := range h.objects(prefix) {
			if strings.Contains(key, strings.ToLower(text)) {
				places["objects/"+prefix]++
			}
		}
	}
	_ = filepath.WalkDir(filepath.Join(h.dir, "mail"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			content, err := os.ReadFile(path)
			must(h.t, err)
			if bytes.Contains(bytes.ToLower(content), []byte(strings.ToLower(text))) {
				places["mail"]++
			}
		}
		return nil
	})
	return places
}

// objects are all keys below a prefix, every version and marker of them.
func (h *home) objects(prefix string) []string {
	h.t.Helper()
	return h.at.Stored(h.t, h.store, prefix)
}

// erased checks that nothing of a person is left but what the map keeps.
func (h *home) erased(p person, more ...string) {
	h.t.Helper()
	// Counters name ids for some hours yet.
	keeps := append([]string{"main/throttles", "main/subjects", "main/erasures", "main/requests", "keys/keysets", "keys/erasure_journal"}, more...)
	if slices.Contains(more, "main/erasure_exceptions") && slices.ContainsFunc(more, func(place string) bool { return strings.HasPrefix(place, "main/holds") }) {
		keeps = append(keeps, "keys/held_records") // beside what a hold keeps
	}
	for place, n := range h.found(p.id) {
		if !slices.Contains(keeps, place) {
			h.t.Errorf("%d of %s are left", n, place)
		}
	}
	var s subject.Subject
	s, err := subject.Find(context.Background(), h.db, p.id)
	if err != nil || s.State != subject.Erased || !s.CreatedAt.IsZero() {
		h.t.Errorf("the subject is %+v, %v", s, err)
	}
	if _, err := h.vault.Seal(context.Background(), p.id, []byte("x"), nil); !errors.Is(err, vault.ErrDestroyed) {
		h.t.Errorf("the key: %v", err)
	}
}

func (h *home) count(query string, args ...any) (n int) {
	h.t.Helper()
	must(h.t, h.db.Get(context.Background(), &n, query, args...))
	return n
}

// figure is a metric's value, over all its labels.
func (h *home) figure(name string) (sum float64) {
	h.t.Helper()
	families, err := h.registry.Gather()
	must(h.t, err)
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// picture is what an engine makes.
func picture() []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 256, 256))); err != nil {
		panic(err)
	}
	return b.Bytes()
}
