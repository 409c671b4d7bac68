package privacy_test

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

// unreachable is an object store that answers nothing while it is away.
type unreachable struct {
	objects.Store
	mu   sync.Mutex
	down bool
}

func (u *unreachable) set(down bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.down = down
}

func (u *unreachable) err() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.down {
		return &objects.Error{Op: "any", Code: "unreachable"}
	}
	return nil
}

func (u *unreachable) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	if err := u.err(); err != nil {
		return err
	}
	return u.Store.Put(ctx, key, r, size)
}

func (u *unreachable) PutStream(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := u.err(); err != nil {
		return 0, err
	}
	return u.Store.PutStream(ctx, key, r)
}

func (u *unreachable) Abandon(ctx context.Context, keys ...string) error {
	if err := u.err(); err != nil {
		return err
	}
	return u.Store.Abandon(ctx, keys...)
}

func (u *unreachable) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	if err := u.err(); err != nil {
		return nil, 0, err
	}
	return u.Store.Get(ctx, key)
}

func (u *unreachable) Delete(ctx context.Context, keys ...string) error {
	if err := u.err(); err != nil {
		return err
	}
	return u.Store.Delete(ctx, keys...)
}

func (u *unreachable) List(ctx context.Context, prefix, after string, limit int) ([]objects.Info, error) {
	if err := u.err(); err != nil {
		return nil, err
	}
	return u.Store.List(ctx, prefix, after, limit)
}

func (u *unreachable) Backstop(ctx context.Context, prefix string, days int) error {
	if err := u.err(); err != nil {
		return err
	}
	return u.Store.Backstop(ctx, prefix, days)
}

func (u *unreachable) Check(ctx context.Context) error {
	if err := u.err(); err != nil {
		return err
	}
	return u.Store.Check(ctx)
}

// post is a mail server that counts what it accepted, by the mail.
type post struct {
	mu       sync.Mutex
	down     bool
	accepted map[string]int
}

func (p *post) set(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
}

func (p *post) Send(_ context.Context, e mail.Envelope) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return &mail.Fault{Code: "unreachable"}
	}
	p.accepted[e.ID]++
	return nil
}

func (p *post) all() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.accepted)
}

// An hour without a store, in which something of every kind is due: what needs the store
// waits and says nothing else, what does not need it goes on; and once the store is back
// everything is done within two hours, each thing once.
func TestPromise_R2_R3_R6_S2_AnHourWithoutEachStore(t *testing.T) {
	t.Parallel()
	const purge, comparison, export, erasure, letter = "purge", "comparison", "export", "erasure", "mail"
	needs := map[string][]string{
		"database":   {purge, comparison, export, erasure, letter},
		"keys":       {export, erasure, letter},
		"objects":    {purge, comparison, export, erasure},
		"mailserver": {letter},
		"redis":      {},
	}
	for name, s := range privacy.Stacks {
		for store, waits := range needs {
			// A database that is a file is never away, and the kind of bucket matters where
			// objects wait.
			if s.Dialect == db.SQLite && (store == "database" || store == "keys") || s.Versioned && store != "objects" && store != "database" {
				continue
			}
			t.Run(name+", without "+store, func(t *testing.T) {
				t.Parallel()
				o := newOutage(t, s)
				done := map[string]func() bool{purge: o.purged, comparison: o.compared, export: o.exported, erasure: o.erasedNow, letter: o.posted}
				back := o.away[store]()
				stop := o.work(jobs.Lane{Name: privacy.ExportLane, Slots: jobs.NewFixed(1)})
				defer stop()
				o.began = o.clock.Now()
				for range 6 {
					o.clock.Advance(10 * time.Minute)
					o.pass(store == "database")
					for _, kind := range waits {
						if done[kind]() {
							t.Fatalf("the %s is done without the %s", kind, store)
						}
					}
					o.notHalf()
				}
				for kind, f := range done {
					if !slices.Contains(waits, kind) && !f() {
						t.Errorf("the %s waits, and needs no %s", kind, store)
					}
				}
				back()
				testenv.Eventually(t, time.Minute, func() bool { return o.db.Ping(t.Context()) == nil && o.keys.Ping(t.Context()) == nil })
				returned := o.clock.Now()
				for !o.whole(done) && o.clock.Now().Before(returned.Add(2*time.Hour)) {
					o.clock.Advance(5 * time.Minute)
					o.pass(false)
				}
				for kind, f := range done {
					if !f() {
						t.Errorf("two hours after the %s is back, the %s is not done", store, kind)
					}
				}
				o.notHalf()
				o.check()
			})
		}
	}
}

// outage is a home where something of every kind is due within the hour.
type outage struct {
	*home
	t         *testing.T
	direct    *db.DB // the main database, whatever is before it
	scheduler *jobs.Scheduler
	post      *post
	away      map[string]func() (back func())
	began     time.Time

	expires, copies, leaves person
	export                  privacy.Export
	id, secret              string   // of the erasure
	mails                   []string // that wait
}

func newOutage(t *testing.T, s privacy.Stack) *outage {
	h := newHome(t, s)
	o := &outage{home: h, t: t, direct: h.db, post: &post{accepted: map[string]int{}}, away: map[string]func() func(){}}
	server := testenv.PrivateRedis(t, false)
	h.at.Redis, h.post = server.URL(), o.post
	o.away["redis"] = func() func() {
		must(t, server.Kill())
		return func() { must(t, server.Start(context.Background())) }
	}
	o.away["mailserver"] = func() func() { o.post.set(true); return func() { o.post.set(false) } }
	store := &unreachable{Store: h.store}
	h.away.Store, h.late.Store = store, store
	o.away["objects"] = func() func() { store.set(true); return func() { store.set(false) } }
	if s.Dialect == db.Postgres {
		main, mainProxy := via(t, h.at.Database)
		keys, keysProxy := via(t, h.at.Keys)
		h.reopen(main, keys)
		o.away["database"] = func() func() { mainProxy.Refuse(true); mainProxy.Cut(); return func() { mainProxy.Refuse(false) } }
		o.away["keys"] = func() func() { keysProxy.Refuse(true); keysProxy.Cut(); return func() { keysProxy.Refuse(false) } }
	} else {
		h.rooms()
	}
	o.scheduler = h.queue.NewScheduler(slices.Concat(privacy.Schedules(), generate.Schedules())...)

	o.expires, o.copies, o.leaves = h.newcomer("ann"), h.newcomer("ben"), h.newcomer("cleo")
	h.paint(o.expires, 3)
	h.clock.Advance(90*day - 10*time.Minute) // vaults have forgotten keys
	h.paint(o.copies, 2)
	h.paint(o.leaves, 2)
	_, err := h.db.Exec(t.Context(), `DELETE FROM mails`)
	must(t, err)
	_, err = h.db.Exec(t.Context(), `DELETE FROM jobs`)
	must(t, err)
	o.export, err = h.privacy.AskExport(t.Context(), o.copies.id)
	must(t, err)
	o.id, o.secret = h.close(o.leaves)
	must(t, h.db.Select(t.Context(), &o.mails, `SELECT id FROM mails WHERE subject = ?`, o.copies.id))
	if len(o.mails) == 0 {
		t.Fatal("no mail waits")
	}
	h.clock.Advance(2 * time.Minute)
	return o
}

// pass lets a scheduler pass, and the workers do what they can.
func (o *outage) pass(blind bool) {
	ctx := o.t.Context()
	for range 3 {
		err := o.scheduler.Reconcile(ctx)
		if err == nil {
			err = o.scheduler.Tick(ctx)
		}
		_ = o.privacy.Look(ctx, true)
		if blind {
			if err == nil {
				o.t.Error("the scheduler did not notice")
			}
			time.Sleep(100 * time.Millisecond)
			continue
		}
		must(o.t, err)
		testenv.Eventually(o.t, time.Minute, func() bool {
			return o.seen(`SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')`) == 0
		})
		o.clock.Advance(10 * time.Second)
	}
}

// seen is count beside the outage.
func (o *outage) seen(query string, args ...any) (n int) {
	must(o.t, o.direct.Get(context.Background(), &n, query, args...))
	return n
}

func (o *outage) purged() bool {
	return len(o.objects("images/"+o.expires.id+"/")) == 0 &&
		o.seen(`SELECT count(*) FROM generations WHERE owner = ? AND (removed_at = 0 OR request IS NOT NULL OR unswept = 1)`, o.expires.id) == 0
}

func (o *outage) compared() bool {
	return o.seen(`SELECT count(*) FROM sweeps WHERE plan = 'objects' AND ended_at >= ?`, o.began.UnixMilli()) == 1
}

func (o *outage) exported() bool {
	return o.seen(`SELECT count(*) FROM exports WHERE id = ? AND status = 'ready'`, o.export.ID) == 1
}

func (o *outage) erasedNow() bool {
	return o.seen(`SELECT count(*) FROM erasures WHERE completed_at > 0`) == 1
}

func (o *outage) posted() bool {
	return o.seen(`SELECT count(*) FROM mails WHERE subject = ? AND accepted_at IS NULL`, o.copies.id) == 0
}

func (o *outage) whole(done map[string]func() bool) bool {
	for _, f := range done {
		if !f() {
			return false
		}
	}
	return true
}

// notHalf finds what says that it is done and is not: objects that nothing would look for
// any more, failures for good, and lost jobs.
func (o *outage) notHalf() {
	o.t.Helper()
	if n := len(o.objects("images/" + o.expires.id + "/")); n > 0 {
		if open := o.seen(`SELECT count(*) FROM generations WHERE owner = ? AND (removed_at = 0 OR unswept = 1)`, o.expires.id); open*2 < n {
			o.t.Errorf("%d objects are left of %d generations", n, open)
		}
	}
	if n := len(o.objects("images/"+o.leaves.id+"/")) + o.seen(`SELECT count(*) FROM generations WHERE owner = ?`, o.leaves.id); n > 0 && o.erasedNow() {
		o.t.Errorf("%d rows and objects are left of whoever is erased", n)
	}
	if n := o.seen(`SELECT count(*) FROM jobs WHERE state = 'failed'`) + o.seen(`SELECT count(*) FROM exports WHERE status = 'failed'`) + o.seen(`SELECT count(*) FROM mails WHERE failed_at > 0 AND subject = ?`, o.copies.id); n > 0 {
		o.t.Errorf("%d have failed for good", n)
	}
}

// check looks at all that was done.
func (o *outage) check() {
	t, ctx := o.t, o.t.Context()
	o.erased(o.leaves)
	r := o.receipt(o.id, o.secret)
	wantDeleted(t, r, map[string]int64{"objects images/": 4, "main images": 2, "main generations": 2, "main users": 1})
	if r.State != "complete" || r.CompletedAt.After(r.DueAt) {
		t.Errorf("the receipt is %s, at %v", r.State, r.CompletedAt)
	}
	a, err := o.privacy.ExportArchive(ctx, o.copies.id, o.export.ID)
	must(t, err)
	archive, err := io.ReadAll(a)
	must(t, err)
	must(t, a.Close())
	pictures := 0
	for path := range unpack(t, archive) {
		if strings.HasPrefix(path, "content/images/") {
			pictures++
		}
	}
	if pictures != 2 {
		t.Errorf("the export has %d pictures", pictures)
	}
	if n := len(o.objects("exports/")); n != 1 {
		t.Errorf("%d archives", n)
	}
	accepted := o.post.all()
	for _, id := range o.mails {
		if accepted[id] != 1 {
			t.Errorf("the mail %s was accepted %d times", id, accepted[id])
		}
	}
	c, err := o.privacy.Compare(ctx)
	if want := (privacy.Comparison{Objects: c.Objects}); err != nil || c != want {
		t.Errorf("found %+v, %v", c, err)
	}
	o.rotate()
	st, err := o.privacy.Measure(ctx)
	if err != nil || len(st.Broken) > 0 {
		t.Errorf("broken are %v, %v", st.Broken, err)
	}
}
