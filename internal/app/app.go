// Package app wires the house: it opens the parts that the settings name, builds
// rooms and doors on them and runs roles. Nothing below it ever sees it.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	stdlog "log" //nolint:depguard // to silence it
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/redis/go-redis/v9"

	"zimage/internal/account"
	"zimage/internal/clock"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/embedded"
	"zimage/internal/engine"
	"zimage/internal/events"
	"zimage/internal/generate"
	"zimage/internal/httpapi"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/vault"
	"zimage/internal/webhook"
)

// App is one process with its parts open. Close it.
type App struct {
	config   config.Config
	name     string
	version  string
	log      *slog.Logger
	clock    *clock.Clock
	db       *db.DB
	keys     *db.DB
	vault    *vault.Vault
	redis    redis.UniversalClient
	inside   bool // Redis is in this process, so every ring comes from it
	objects  objects.Store
	engines  engine.Config
	policy   privacy.Policy
	registry *prometheus.Registry
	queue    *jobs.Queue
	bell     *jobs.Bell
	mail     *mail.Mailer
	open     func(engine.Settings) (engine.Engine, error) // the adapter of an engine

	Accounts *account.Service
	Generate *generate.Service
	Ledger   *privacy.Ledger
	Privacy  *privacy.Service
	Usage    *privacy.Usage
	Webhooks *webhook.Service

	restored atomic.Bool   // the main database lacks what was erased, deleted or ended: nothing may be served from it
	unread   atomic.Bool   // the object store has not told yet what that is: nothing may be served either
	known    atomic.Bool   // it lacked nothing at some time since the start: work may have been taken
	looking  sync.Mutex    // an older answer must not take the place of a newer one
	look     time.Duration // how often a running process looks

	closers []func() error
}

// Open opens every part that a role needs and brings the schemas forward. name
// is the process in logs and in the database's list of clients.
func Open(ctx context.Context, c config.Config, name, version string, log *slog.Logger) (opened *App, err error) {
	a := &App{config: c, name: name, version: version, log: log.With("process", name), clock: clock.New(), registry: prometheus.NewRegistry(), open: openEngine, look: 30 * time.Second}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, hop := range c.Exceptions() {
		a.log.Warn("this hop is accepted without verified TLS", "hop", hop)
	}
	if c.OutboundLoopback {
		a.log.Warn("webhooks may lead to this machine, at any port and without TLS: that is for development alone", "setting", config.Prefix+"OUTBOUND_LOOPBACK")
	}
	if a.engines, err = readEngines(c); err != nil {
		return nil, err
	}
	if a.policy, err = readPolicy(c); err != nil {
		return nil, err
	}
	if err := checkBound(c, a.policy, a.engines); err != nil {
		return nil, err
	}
	rules, err := readRules(c)
	if err != nil {
		return nil, err
	}
	if a.db, err = a.openDatabase(ctx, "DATABASE_URL", c.DatabaseURL, name, db.Main()); err != nil {
		return nil, err
	}
	if a.keys, err = a.openDatabase(ctx, "KEYS_DATABASE_URL", c.KeysDatabaseURL, name, vault.Migrations()); err != nil {
		return nil, err
	}
	described, err := checkMap(ctx, a.db, a.keys)
	if err != nil {
		return nil, err
	}
	if _, err := a.clock.Sync(ctx, a.db.Now); err != nil {
		return nil, fmt.Errorf("measure the clock: %w", err)
	}
	roots, err := readRoots(c)
	if err != nil {
		return nil, err
	}
	v, err := vault.Open(ctx, a.keys, roots, a.clock)
	if err != nil {
		return nil, err
	}
	if err := a.openObjects(ctx); err != nil {
		return nil, err
	}
	if err := a.openRedis(); err != nil {
		return nil, err
	}
	metrics := jobs.NewMetrics(a.registry)
	a.bell = jobs.NewBell(a.redis, metrics)
	a.closing(func() error { a.bell.Close(); return nil })
	a.queue = jobs.New(a.db, a.clock, a.bell, metrics, a.log)
	a.Ledger = privacy.NewLedger(privacy.LedgerOptions{DB: a.db, Vault: v, Clock: a.clock})
	a.queue.Register(a.Ledger.Kind())
	happened := events.New(
		a.Ledger.Happened,
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return a.Generate.Happened(ctx, tx, e) },
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return a.Privacy.Happened(ctx, tx, e) },
		func(ctx context.Context, tx *db.Tx, e events.Event) error { return a.Webhooks.Happened(ctx, tx, e) },
	)
	transport, err := mailTransport(c, a.clock)
	if err != nil {
		return nil, err
	}
	a.mail = mail.New(mail.Options{
		DB: a.db, Vault: v, Queue: a.queue, Clock: a.clock, Log: a.log, Registry: a.registry,
		Transport: transport, From: c.MailFrom, PublicURL: c.PublicURL,
	})
	places, err := a.openPlaces()
	if err != nil {
		return nil, err
	}
	a.Accounts = account.New(account.Options{
		DB: a.db, Vault: v, Clock: a.clock, Log: a.log, Events: happened, Mail: a.mail,
		PublicURL: c.PublicURL, PolicyVersion: a.policy.Version, Level: 250 * time.Millisecond, Place: places,
	})
	retentionDays, _ := a.policy.Windows.GeneratedContent.Days() // a policy gives it in days
	a.Generate = generate.New(generate.Options{
		DB: a.db, Vault: v, Objects: a.objects, Queue: a.queue, Events: happened, Clock: a.clock, Log: a.log,
		Redis: a.redis, Metrics: generate.NewMetrics(a.registry), Engines: a.engines, Rules: rules,
		Journal: func(ctx context.Context, table string, ids []string) error { return a.Privacy.Journal(ctx, table, ids) },
		Ended: func(ctx context.Context, tx *db.Tx, owner, kind string, ids ...string) {
			a.Privacy.Ended(ctx, tx, owner, kind, ids...)
		},
		RetentionDays: retentionDays, QueuedLimit: c.QueuedPerOwner, DailyLimit: c.DailyPerOwner,
	})
	a.closing(func() error { a.Generate.Close(); return nil })
	a.Privacy, err = privacy.New(privacy.Options{
		DB: a.db, Keys: a.keys, Vault: v, Objects: a.objects, Queue: a.queue, Clock: a.clock, Mail: a.mail, Log: a.log,
		Metrics: privacy.NewMetrics(a.registry), Map: described, Policy: a.policy, Events: happened, Accounts: a.Accounts,
		Removes:   map[string]privacy.Remove{"generations": a.Generate.RemoveGenerations, "images": a.Generate.RemoveImages},
		Drops:     a.drops(),
		Ends:      a.ends(),
		Notices:   []string{webhook.KindFarewell},
		Recurring: schedules(),
	})
	if err != nil {
		return nil, err
	}
	a.Usage = privacy.NewUsage(privacy.UsageOptions{
		DB: a.db, Vault: v, Clock: a.clock, Log: a.log, Registry: a.registry, Place: places, Window: a.policy.Windows.Usage,
	})
	a.vault = v
	a.openWebhooks()
	a.queue.Register(jobs.Kind{Name: kindKeySweep, Run: a.sweepKeys})
	for store, d := range map[string]*db.DB{"database": a.db, "keys": a.keys} {
		a.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "zimage_database_failures_total", Help: "Statements that failed because the database or the key store was away or broken.",
			ConstLabels: prometheus.Labels{"store": store},
		}, func() float64 { return float64(d.Failures()) }))
	}
	return a, nil
}

// Close closes the parts, the last opened first.
func (a *App) Close() error {
	var errs []error
	for _, closer := range slices.Backward(a.closers) {
		errs = append(errs, closer())
	}
	a.closers = nil
	return errors.Join(errs...)
}

func (a *App) closing(f func() error) { a.closers = append(a.closers, f) }

func (a *App) openDatabase(ctx context.Context, variable, address, name string, migrations fs.FS) (*db.DB, error) {
	d, err := db.Open(ctx, address, db.Options{Name: "zimage-" + name})
	if err != nil {
		return nil, fmt.Errorf("%s%s: %w", config.Prefix, variable, err)
	}
	a.closing(d.Close)
	done, err := d.Migrate(ctx, migrations)
	if err != nil {
		return nil, fmt.Errorf("%s%s: %w", config.Prefix, variable, err)
	}
	if done > 0 {
		a.log.Info("database migrated", "setting", config.Prefix+variable, "steps", done)
	}
	return d, nil
}

// checkMap refuses databases that hold what the data map does not describe.
func checkMap(ctx context.Context, main, keys *db.DB) (*privacy.Map, error) {
	m, err := privacy.DataMap()
	if err != nil {
		return nil, err
	}
	return m, errors.Join(m.Check(ctx, main, privacy.StoreMain), m.Check(ctx, keys, privacy.StoreKeys))
}

func (a *App) openObjects(ctx context.Context) error {
	c := a.config
	if !c.UsesS3() {
		d, err := objects.OpenDirectory(c.ObjectsFolder())
		if err != nil {
			return fmt.Errorf("%sDATA: %w", config.Prefix, err)
		}
		a.objects = d
		a.closing(d.Close)
		return nil
	}
	s, err := objects.OpenS3(ctx, s3Options(c))
	if err != nil {
		return fmt.Errorf("%sS3_ENDPOINT: %w", config.Prefix, err)
	}
	a.objects = s
	return nil
}

func s3Options(c config.Config) objects.S3Options {
	return objects.S3Options{Endpoint: c.S3Endpoint, Bucket: c.S3Bucket, Region: c.S3Region,
		AccessKey: c.S3AccessKey, SecretKey: c.S3SecretKey, TLS: c.S3TLS, CAFile: c.S3CA}
}

func (a *App) openRedis() error {
	if a.config.RedisURL == "" { // separate roles are refused without one: this is `zimage up`
		address, stop, err := embedded.Redis()
		if err != nil {
			return err
		}
		a.closing(func() error { stop(); return nil })
		a.config.RedisURL, a.inside = address, true
	}
	o, err := config.RedisOptions(a.config.RedisURL)
	if err != nil {
		return fmt.Errorf("%sREDIS_URL: %w", config.Prefix, err)
	}
	if o.TLSConfig != nil {
		if o.TLSConfig.RootCAs, err = config.Authorities(a.config.RedisCA); err != nil {
			return fmt.Errorf("%sREDIS_CA: %w", config.Prefix, err)
		}
	}
	o.DialTimeout, o.MaxRetries = time.Second, 1
	o.ContextTimeoutEnabled = true // otherwise a server that hangs is waited for longer than anybody said
	// Its own lines quote addresses; that Redis is away is said by readyz.
	redis.SetLogger(silent{})
	client := redis.NewClient(o)
	a.redis = client
	a.closing(client.Close)
	return nil
}

// mailTransport is the mail server that the settings name, or else a folder.
func mailTransport(c config.Config, now *clock.Clock) (mail.Transport, error) {
	if !c.UsesSMTP() {
		return mail.NewDirectory(c.MailFolder(), now), nil
	}
	return mailServer(c)
}

func mailServer(c config.Config) (*mail.SMTP, error) {
	roots, err := config.Authorities(c.SMTPCA)
	if err != nil {
		return nil, fmt.Errorf("%sSMTP_CA: %w", config.Prefix, err)
	}
	s := c.SMTP()
	return mail.NewSMTP(mail.SMTPOptions{Host: s.Host, Port: s.Port, User: s.User, Password: s.Password,
		Implicit: s.Implicit, Local: s.Local, Excepted: s.Excepted, Roots: roots}), nil
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func readEngines(c config.Config) (engine.Config, error) {
	if c.Engines == "" {
		e := engine.DefaultConfig()
		return e, checkLanes(c, e)
	}
	text, err := os.ReadFile(c.Engines)
	if err != nil {
		return engine.Config{}, fmt.Errorf("%sENGINES: %w", config.Prefix, err)
	}
	e, err := engine.ParseConfig(text)
	if err != nil {
		return engine.Config{}, fmt.Errorf("%sENGINES: %w", config.Prefix, err)
	}
	for _, own := range []string{jobs.Housekeeping, mail.Lane, privacy.ExportLane, webhook.Lane} {
		if slices.Contains(e.Lanes(), own) {
			return engine.Config{}, fmt.Errorf("%sENGINES: the lane %s is the service's own; name the engines' lane otherwise", config.Prefix, own)
		}
	}
	return e, checkLanes(c, e)
}

func checkLanes(c config.Config, e engine.Config) error {
	for _, lane := range c.Lanes {
		if lane != jobs.Housekeeping && !slices.Contains(e.Lanes(), lane) {
			return fmt.Errorf("%sLANES: there is no lane %q; there are %s and %s",
				config.Prefix, lane, strings.Join(e.Lanes(), ", "), jobs.Housekeeping)
		}
	}
	return nil
}

// readPolicy reads the operator's policy, or takes the shipped one.
func readPolicy(c config.Config) (privacy.Policy, error) {
	if c.Policy == "" {
		return privacy.DefaultPolicy(), nil
	}
	text, err := os.ReadFile(c.Policy)
	if err != nil {
		return privacy.Policy{}, fmt.Errorf("%sPOLICY: %w", config.Prefix, err)
	}
	p, err := privacy.ParsePolicy(text)
	if err != nil {
		return privacy.Policy{}, fmt.Errorf("%sPOLICY: %w", config.Prefix, err)
	}
	return p, nil
}

// checkBound refuses settings that lead to a processor without a contract.
func checkBound(c config.Config, p privacy.Policy, e engine.Config) error {
	external := func(s engine.Settings) bool { return s.URL != "" }
	var refused []error
	for _, s := range []struct {
		variable string
		to       privacy.Connection
		set      bool
	}{
		{"DATABASE_URL", privacy.ToDatabase, !strings.HasPrefix(c.DatabaseURL, "sqlite:")},
		{"KEYS_DATABASE_URL", privacy.ToDatabase, !strings.HasPrefix(c.KeysDatabaseURL, "sqlite:")},
		{"REDIS_URL", privacy.ToRedis, c.RedisURL != ""},
		{"S3_ENDPOINT", privacy.ToS3, c.S3Endpoint != ""},
		{"SMTP_URL", privacy.ToSMTP, c.SMTPURL != ""},
		{"ENGINES", privacy.ToEngine, slices.ContainsFunc(e.Engines, external)},
	} {
		if ids := p.Unbound(s.to); s.set && len(ids) > 0 {
			refused = append(refused, fmt.Errorf("%s%s: without a contract in the policy nothing is given to the processor of %s: %s", config.Prefix, s.variable, s.to, strings.Join(ids, ", ")))
		}
	}
	return errors.Join(refused...)
}

// statement is the policy with what the page tells of this installation.
func (a *App) statement() privacy.Statement { return statement(a.config, a.policy, a.engines) }

func statement(c config.Config, p privacy.Policy, e engine.Config) privacy.Statement {
	s := privacy.Statement{Policy: p, Installation: privacy.Installation{URL: c.PublicURL, EnginesKeep: e.Keeps()}}
	for _, hop := range c.Exceptions() {
		s.Plain = append(s.Plain, string(hop))
	}
	if e.Plain() {
		s.Plain = append(s.Plain, "engines")
	}
	return s
}

// ReadRecord makes the record of processing of the installation that the settings
// describe. It opens nothing.
func ReadRecord(c config.Config) (privacy.Record, error) {
	p, err := readPolicy(c)
	if err != nil {
		return privacy.Record{}, err
	}
	e, err := readEngines(c)
	if err != nil {
		return privacy.Record{}, err
	}
	m, err := privacy.DataMap()
	return privacy.NewRecord(statement(c, p, e), m), err
}

func readRules(c config.Config) (*generate.Rules, error) {
	if c.PromptRules == "" {
		return nil, nil
	}
	text, err := os.ReadFile(c.PromptRules)
	if err != nil {
		return nil, fmt.Errorf("%sPROMPT_RULES: %w", config.Prefix, err)
	}
	r, err := generate.ParseRules(text)
	if err != nil {
		return nil, fmt.Errorf("%sPROMPT_RULES: %w", config.Prefix, err)
	}
	return r, nil
}

func readRoots(c config.Config) (*vault.Roots, error) {
	r, err := vault.ReadRoots(c.RootKeys)
	if err != nil {
		return nil, fmt.Errorf("%sROOT_KEYS: %w", config.Prefix, err)
	}
	return r, nil
}

// CheckData refuses a data folder of `zimage up` in which other accounts could put
// files of theirs in the place of ours.
func CheckData(c config.Config) error {
	info, err := os.Stat(c.Data)
	switch {
	case err != nil:
		return fmt.Errorf("%sDATA: %w", config.Prefix, err)
	case !info.IsDir():
		return fmt.Errorf("%sDATA: %s is no folder", config.Prefix, c.Data)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%sDATA: other accounts may write to %s; mend that with chmod go-w", config.Prefix, c.Data)
	}
	return nil
}

// RotateRoots wraps every key anew, with a new root when one is due.
func (a *App) RotateRoots(ctx context.Context, o vault.RotateOptions) (vault.Rotation, error) {
	return a.vault.Rotate(ctx, o)
}

// CreateRoots makes the key ring of a new installation, unless there is one.
func CreateRoots(c config.Config) (created bool, err error) {
	if _, err := os.Stat(c.RootKeys); err == nil || !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(c.RootKeys), 0o700); err != nil {
		return false, err
	}
	_, err = vault.CreateRoots(c.RootKeys)
	return err == nil, err
}

// NewLog makes the process's log, as the settings say. The standard logger falls
// silent: net/http writes there what a server sends unasked, such as a receiver of
// webhooks.
func NewLog(c config.Config, w io.Writer) *slog.Logger {
	var level slog.Level
	if level.UnmarshalText([]byte(c.LogLevel)) != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if c.LogFormat == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	stdlog.SetOutput(io.Discard)
	return slog.New(httpapi.LogRequestID(h))
}

// RequeueAll gives the jobs of this installation's last run back, for a process
// that knows itself to be the only one on its SQLite file.
func (a *App) RequeueAll(ctx context.Context) error {
	if a.db.Dialect() != db.SQLite {
		return nil // other processes may work on a server's database
	}
	n, err := a.queue.RequeueAll(ctx)
	if n > 0 {
		a.log.Info("jobs of the last run go on", "jobs", n)
	}
	return err
}

// lanes are those this worker takes.
func (a *App) lanes() []string {
	if len(a.config.Lanes) > 0 {
		return a.config.Lanes
	}
	return append(a.engines.Lanes(), jobs.Housekeeping)
}

// findRestored looks whether the main database knows every line of the journal. One
// that was restored from before an erasure, a deletion or an end does not. The key store may have
// been restored too: the object store has to tell first.
func (a *App) findRestored(ctx context.Context) error {
	a.looking.Lock()
	defer a.looking.Unlock()
	n, err := a.Privacy.Unreplayed(ctx)
	unread := errors.Is(err, privacy.ErrMirrorUnread)
	if err != nil && !unread {
		return err
	}
	if n == 0 && !unread {
		a.known.Store(true)
	}
	if a.unread.Swap(unread) != unread {
		if unread {
			a.log.Error("the object store does not tell what was erased, deleted or ended: nothing is served until it does", "error", err)
		} else {
			a.log.Info("the object store has told what was erased, deleted and ended")
		}
	}
	if restored := n > 0; a.restored.Swap(restored) != restored {
		if restored {
			a.log.Error("the main database does not know what was erased, deleted or ended, as if it was restored: nothing is served until `zimage erasure replay` has run", "unknown", n)
		} else {
			a.log.Info("the main database knows again what was erased, deleted and ended")
		}
	}
	return nil
}

// closed says that nothing may be served, nor any work taken: what was deleted might be
// shown.
func (a *App) closed() bool { return a.restored.Load() || a.unread.Load() }

var errRestored = errors.New("the main database was restored, while this process ran, from before something was erased, deleted or ended: start it again, and it waits until `zimage erasure replay` has run")

// watchRestored looks from time to time. A database that is restored under a running
// process closes it to requests at once and ends it: the next one takes no work
// before the replay.
func (a *App) watchRestored(ctx context.Context) error {
	t := time.NewTicker(a.look)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := a.findRestored(ctx); err != nil {
			a.log.Debug("could not look for erasures to replay", "error", err)
		} else if a.restored.Load() && a.known.Load() {
			return errRestored
		}
	}
}

// awaitReplay waits until it is known what was erased, deleted or ended, and that is replayed if
// a restored database lacks it.
func (a *App) awaitReplay(ctx context.Context) error {
	for a.closed() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
		if err := a.findRestored(ctx); err != nil {
			a.log.Debug("could not look for erasures to replay", "error", err)
		}
	}
	return nil
}
