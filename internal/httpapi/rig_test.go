package httpapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"image"
	"image/png"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"

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
	"zimage/internal/testenv"
	"zimage/internal/vault"
	"zimage/internal/webhook"
)

// secondModel is one that nobody gets who does not ask for it.
const secondModel = "second"

// gated is an engine that makes a grey picture with much detail when the test lets
// it, and keeps what it was last asked for.
type gated struct {
	gate chan struct{}
	last atomic.Pointer[engine.Request]
}

func (g *gated) Check(context.Context) error { return nil }

func (g *gated) Generate(ctx context.Context, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	g.last.Store(&r)
	progress(engine.Progress{Step: 1, Steps: r.Steps})
	select {
	case <-ctx.Done():
		return nil, engine.NewError(engine.FaultOurs, engine.CodeCanceled, 0, ctx.Err())
	case <-g.gate:
	}
	m := image.NewGray(image.Rect(0, 0, r.Width, r.Height))
	for i := range m.Pix {
		m.Pix[i] = uint8(i * i)
	}
	binary.LittleEndian.PutUint32(m.Pix, uint32(r.Seed)) // no two are the same
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		return nil, engine.NewError(engine.FaultEngine, engine.CodeBadImage, 0, err)
	}
	return b.Bytes(), nil
}

// bothDatabases runs test on SQLite and PostgreSQL, each with real rooms, a
// worker, a directory for objects and a Redis of its own.
func bothDatabases(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	testenv.Databases(t, func(t *testing.T, d *db.DB) { test(t, newRig(t, d)) })
}

func newRig(t *testing.T, d *db.DB) *rig {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, r, c := context.Background(), &rig{t: t}, clock.New()
	t.Cleanup(func() {
		r.namesNoClient()
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	log := slog.New(LogRequestID(slog.NewJSONHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	dir := t.TempDir()

	keys, err := db.Open(ctx, "sqlite:"+filepath.Join(dir, "keys.db"), db.Options{})
	must(err)
	t.Cleanup(func() { _ = keys.Close() })
	_, err = keys.Migrate(ctx, vault.Migrations())
	must(err)
	roots, err := vault.CreateRoots(filepath.Join(dir, "roots"))
	must(err)
	v, err := vault.Open(ctx, keys, roots, c)
	must(err)
	store, err := objects.OpenDirectory(filepath.Join(dir, "objects"))
	must(err)
	t.Cleanup(func() { _ = store.Close() })
	redisServer := redisClient(t, testenv.Redis(t))

	measured := jobs.NewMetrics(nil)
	bell := jobs.NewBell(redisServer, measured)
	t.Cleanup(bell.Close)
	queue := jobs.New(d, c, bell, measured, log)
	cfg := engine.DefaultConfig()
	second := cfg.Models[0]
	second.ID = secondModel
	cfg.Models = append(cfg.Models, second)
	var rooms *generate.Service
	var rights *privacy.Service
	var hooks *webhook.Service
	ledger := privacy.NewLedger(privacy.LedgerOptions{DB: d, Vault: v, Clock: c})
	happened := events.New(
		ledger.Happened,
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return rooms.Happened(ctx, tx, e) },
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return rights.Happened(ctx, tx, e) },
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return hooks.Happened(ctx, tx, e) },
	)
	letters := mail.New(mail.Options{DB: d, Vault: v, Queue: queue, Clock: c, Log: log})
	rooms = generate.New(generate.Options{
		DB: d, Vault: v, Objects: store, Queue: queue, Events: happened, Clock: c, Log: log, Redis: redisServer,
		Metrics: generate.NewMetrics(nil), Engines: cfg, RetentionDays: 30, QueuedLimit: 50, DailyLimit: 500,
	})
	t.Cleanup(rooms.Close)
	options := account.Options{
		DB: d, Vault: v, Clock: c, Log: log, Events: happened, PublicURL: "http://127.0.0.1", PolicyVersion: "2026-01-01",
		HashCost: &argon2id.Params{Memory: 32, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32},
		Mail:     letters,
		Place:    func(addr netip.Addr) string { return "Near " + addr.String() },
	}
	accounts := account.New(options)
	r.accountOptions = options
	r.otherProcess = func() *account.Service { return account.New(options) }
	described, err := privacy.DataMap()
	must(err)
	rights, err = privacy.New(privacy.Options{
		DB: d, Keys: keys, Vault: v, Objects: store, Queue: queue, Clock: c, Mail: letters, Log: log, Metrics: privacy.NewMetrics(nil), Map: described, Policy: privacy.DefaultPolicy(), Events: happened, Accounts: accounts,
	})
	must(err)
	r.usage = privacy.NewUsage(privacy.UsageOptions{DB: d, Vault: v, Clock: c, Log: log, Window: privacy.DefaultPolicy().Windows.Usage})
	client := outbound.New(outbound.Options{Loopback: true})
	t.Cleanup(client.Close)
	hooks = webhook.New(webhook.Options{DB: d, Vault: v, Queue: queue, Clock: c, Log: log, Client: client, Tell: accounts.Tell,
		Kept: func(now time.Time) time.Time { return now.AddDate(0, 0, -30) },
		Generation: func(ctx context.Context, owner, id string) (webhook.Generation, error) {
			g, err := rooms.Get(ctx, owner, id)
			return webhook.Generation{ID: g.ID, Status: string(g.Status), Prompt: g.Request.Prompt}, err
		}})
	r.hooks = hooks
	watchers := rooms.NewWatchers()

	held := &gated{gate: make(chan struct{})}
	fleet, err := engine.NewFleet(cfg, []string{"generation"}, func(engine.Settings) (engine.Engine, error) { return held, nil },
		engine.FleetOptions{Clock: c, Log: log})
	must(err)
	worker := queue.NewWorker([]jobs.Lane{
		{Name: "generation", Slots: generate.LaneSlots{Fleet: fleet, Lane: "generation"}, CheckInterval: 10 * time.Millisecond},
		{Name: jobs.Housekeeping, Slots: jobs.NewFixed(2)},
		{Name: privacy.ExportLane, Slots: jobs.NewFixed(1)},
		{Name: webhook.Lane, Slots: jobs.NewFixed(4), CheckInterval: 10 * time.Millisecond, PerParty: 2},
	}, time.Second)
	running, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { fleet.Run(running) })
	work.Go(func() { watchers.Run(running) })
	work.Go(func() {
		if err := worker.Run(running, nil); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		work.Wait()
	})

	owners := map[string][2]string{} // by token: owner and key
	key := func(owner string, scopes ...string) string {
		token, k, err := accounts.CreateKey(ctx, owner, "test", scopes, time.Time{})
		must(err)
		owners[token] = [2]string{owner, k.ID}
		return token
	}
	user := func(name string) string {
		owner, err := accounts.CreateUser(ctx, name+"@example.org", "some long words for anybody")
		must(err)
		return owner
	}
	ada := user("ada")
	r.person = func(name string) string { return key(user(name), account.ScopeGenerate, account.ScopeRead) }
	r.ada, r.ben = key(ada, account.ScopeGenerate, account.ScopeRead), r.person("ben")
	r.readOnly = key(ada, account.ScopeRead)
	r.pass = func() {
		select {
		case held.gate <- struct{}{}:
		case <-time.After(30 * time.Second):
			t.Error("no engine waits")
		}
	}
	r.asked = func() engine.Request { return *held.last.Load() }
	r.keyOf = func(token string) string { return owners[token][1] }
	r.ownerOf = func(email string) string {
		id, err := accounts.FindUser(ctx, email)
		must(err)
		return id
	}
	r.db, r.objects = d, store
	r.revoke = func(token string) { must(accounts.RevokeKey(ctx, owners[token][0], owners[token][1])) }
	r.accounts, r.vault, r.ledger = accounts, v, ledger
	r.serve(Options{Generate: rooms, Watchers: watchers, Accounts: accounts, Ledger: ledger, Privacy: rights, Usage: r.usage, Webhooks: hooks, Redis: redisServer, Log: log, Clock: c})
	return r
}
