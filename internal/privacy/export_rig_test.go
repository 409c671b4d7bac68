package privacy_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// start is when the rigs' clock stands.
var start = time.Date(2031, 3, 3, 12, 0, 0, 0, time.UTC)

// parts are what is at a place, and the room on them.
type parts struct {
	*privacy.Parts
	db, keys *db.DB
	vault    *vault.Vault
	store    objects.Store
	clock    *clock.Clock
	queue    *jobs.Queue
	service  *privacy.Service
	log      *testenv.Lines
	posts    bool // mails too
}

// open opens the room at a place. The name is what PostgreSQL knows the process by.
func open(ctx context.Context, at privacy.Place, s setup, name string) (p *parts, err error) {
	p = &parts{log: &testenv.Lines{}, posts: s.post != nil}
	p.Parts, err = at.Open(ctx, nil, db.Options{Name: name})
	if err != nil {
		return p, err
	}
	p.db, p.keys, p.vault, p.store, p.clock = p.DB, p.Keys, p.Vault, p.Store, p.Clock
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	bells, err := bells(at.Redis)
	if err != nil {
		return p, err
	}
	measured := jobs.NewMetrics(nil)
	bell := jobs.NewBell(bells, measured)
	p.OnClose(func() { _ = bells.Close() })
	p.OnClose(bell.Close)
	p.queue = jobs.New(p.db, p.clock, bell, measured, log)
	m, err := privacy.DataMap()
	if err != nil {
		return p, err
	}
	store := p.store
	if s.wrap != nil {
		store = s.wrap(store)
	}
	p.service, err = privacy.New(privacy.Options{
		DB: p.db, Keys: p.keys, Vault: p.vault, Objects: store, Queue: p.queue, Clock: p.clock, Log: log,
		Mail:    mail.New(mail.Options{DB: p.db, Vault: p.vault, Queue: p.queue, Clock: p.clock, Log: log, Transport: s.post, PublicURL: "http://service"}),
		Metrics: privacy.NewMetrics(nil), Map: m, Policy: privacy.DefaultPolicy(),
	})
	return p, err
}

// work runs a worker until stop is called.
func (p *parts) work(fail func(...any)) (stop func()) {
	lanes := []jobs.Lane{{Name: privacy.ExportLane, Slots: jobs.NewFixed(1)}, {Name: jobs.Housekeeping, Slots: jobs.NewFixed(2)}}
	if p.posts {
		lanes = append(lanes, jobs.Lane{Name: mail.Lane, Slots: jobs.NewFixed(1)})
	}
	w := p.queue.NewWorker(lanes, 10*time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := w.Run(ctx, nil); err != nil {
			fail(err)
		}
	})
	return sync.OnceFunc(func() { cancel(); work.Wait() })
}

// rig is the room on real parts. Its clock stands still.
type rig struct {
	*parts
	t  testing.TB
	at privacy.Place
	m  *privacy.Map
}

type setup struct {
	idle bool                              // no worker
	post mail.Transport                    // nil: no mail goes out
	wrap func(objects.Store) objects.Store // what stands before object storage
}

// stacks runs test on SQLite with a directory and on PostgreSQL with S3, the key store
// on the same.
func stacks(t *testing.T, s setup, test func(t *testing.T, r *rig)) {
	t.Helper()
	on(t, unversioned, func(t *testing.T, on privacy.Stack) { test(t, newRig(t, on, s)) })
}

// allStacks is privacy.Stacks with a versioned bucket too.
func allStacks(t *testing.T, s setup, test func(t *testing.T, r *rig)) {
	t.Helper()
	on(t, every, func(t *testing.T, on privacy.Stack) { test(t, newRig(t, on, s)) })
}

func newRig(t testing.TB, on privacy.Stack, s setup) *rig {
	t.Helper()
	r := &rig{t: t, m: dataMap(t), at: privacy.NewPlace(t, on, t.TempDir(), start)}
	r.at.Redis = testenv.Redis(t)
	var err error
	r.parts, err = open(t.Context(), r.at, s, "")
	t.Cleanup(func() { r.Close() })
	r.must(err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	if !s.idle {
		stop := r.work(t.Error)
		t.Cleanup(stop)
	}
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// exec writes a row.
func (r *rig) insert(table string, values map[string]any) {
	r.t.Helper()
	var names []string
	var args []any
	for name, v := range values {
		names, args = append(names, name), append(args, v)
	}
	_, err := r.db.Exec(context.Background(), `INSERT INTO `+table+` (`+strings.Join(names, ", ")+`) VALUES (`+db.Marks(len(args))+`)`, args...)
	if err != nil {
		r.t.Fatalf("%s: %v", table, err)
	}
}

func (r *rig) seal(owner, table, column, id, plain string) []byte {
	r.t.Helper()
	sealed, err := r.vault.Seal(context.Background(), owner, []byte(plain), vault.Column(table, column, id))
	r.must(err)
	return sealed
}

// planted is what a person got by plant: the values of every column, as they were
// before they were sealed.
type planted struct {
	owner  string
	tables map[string]map[string]any // by table and column
}

// A canary is a value that can stand nowhere else.
func canary(owner, table, column string) string {
	return strings.ReplaceAll(fmt.Sprintf("canary %s %s %s", owner, table, column), "_", "-")
}

// plant gives a person a row in every table that the map says is a person's, with
// a canary in every column.
func (r *rig) plant(name string) planted {
	r.t.Helper()
	owner := "sub_" + name
	r.must(r.vault.Create(context.Background(), owner))
	p := planted{owner, map[string]map[string]any{}}
	now := r.clock.Now()
	generation := db.NewID("gen", now)
	given := map[string]any{
		"users.email": name + "@example.org", "subjects.state": "active",
		"images.format": "png", "images.n": int64(0), "images.attempt": int64(1), "images.generation_id": generation, "generations.id": generation,
		"mails.accepted_at": nil, "mails.failed_at": nil,
		"jobs.party": owner, "jobs.state": "succeeded", "exports.status": "failed", "exports.attempts": int64(1),
		// What is over would not be there.
		"generations.removed_at": int64(0), "images.removed_at": int64(0), "exports.removed_at": int64(0),
	}
	number := int64(7_000_000) + int64(len(name))*1000
	for _, t := range r.m.Tables {
		if t.Store != privacy.StoreMain || t.Subject == "" {
			continue
		}
		if t.Through != "" {
			r.t.Fatalf("the test plants no rows of other rows: %s", t.Name)
		}
		plain, stored := map[string]any{}, map[string]any{}
		id := owner
		if t.Key[0] != t.Subject {
			id = db.NewID("x", now)
		}
		if v, ok := given[t.Name+"."+t.Key[0]].(string); ok {
			id = v
		}
		for _, c := range t.Columns {
			number++
			var v any
			switch text := canary(owner, t.Name, c.Name); {
			case c.Name == t.Subject:
				v = owner
			case c.Name == t.Key[0]:
				v = id
			case c.Sealed == "ledger":
				continue // below
			case c.Sealed == "json":
				v = `{"said":"` + text + `"}`
			case c.Type == "text", c.Sealed == "text":
				v = text
			case c.Type == "words":
				v = "first-" + strings.ReplaceAll(text, " ", "-") + " second"
			case c.Type == "flag":
				v = int64(1)
			case c.Type == "bytes" && c.Sealed == "":
				v = []byte(text)
			case c.Type == "number":
				v = number
			case c.Type == "time":
				v = now.Add(-time.Duration(number%1000) * time.Second).UnixMilli()
				if slices.ContainsFunc(t.Keep, func(k privacy.Keep) bool { return k.Until == c.Name }) {
					v = now.Add(time.Hour + time.Duration(number%1000)*time.Second).UnixMilli()
				}
			default:
				r.t.Fatalf("%s.%s: the test does not know what to plant", t.Name, c.Name)
			}
			if g, ok := given[t.Name+"."+c.Name]; ok {
				v = g
			}
			plain[c.Name], stored[c.Name] = v, v
			if c.Sealed != "" && v != nil {
				stored[c.Name] = r.seal(owner, t.Name, c.Name, id, v.(string))
			}
		}
		p.tables[t.Name] = plain
		if t.Name == "ledger_details" {
			plain["entry_id"] = r.told(owner, false)
			r.told(owner, true)
			continue
		}
		r.insert(t.Name, stored)
	}
	r.picture(owner, generation, 1, 0, pictureOf(owner, 0))
	return p
}

// told writes an entry of the ledger about a person, with a canary in every fact,
// and returns its id.
func (r *rig) told(owner string, hidden bool) (id string) {
	r.t.Helper()
	facts := map[events.Fact]string{}
	secret := ""
	if hidden {
		secret = " hidden"
	}
	for _, f := range []events.Fact{events.Staff, events.Role, events.Reason, events.Purpose, events.Policy, events.Case, events.Authority, events.Scope, events.State} {
		facts[f] = canary(owner, "ledger"+secret, string(f))
	}
	ctx := context.Background()
	ledger := privacy.NewLedger(privacy.LedgerOptions{DB: r.db, Vault: r.vault, Clock: r.clock})
	before := r.count(`SELECT count(*) FROM ledger_details`)
	r.must(r.db.Tx(ctx, func(tx *db.Tx) error {
		return ledger.Happened(ctx, tx, events.Event{Type: events.StaffDisclosed, Subject: owner, Ref: canary(owner, "ledger"+secret, "ref"), At: r.clock.Now(), Facts: facts, Hidden: hidden})
	}))
	if r.count(`SELECT count(*) FROM ledger_details`) != before+1 {
		r.t.Fatal("the ledger did not keep it")
	}
	r.must(r.db.Get(ctx, &id, `SELECT entry_id FROM ledger_details WHERE subject = ? AND hidden = ?`, owner, map[bool]int{true: 1}[hidden]))
	return id
}

// pictureOf is what stands for a picture.
func pictureOf(owner string, n int) []byte {
	return []byte(fmt.Sprintf("\x89PNG\r\n\x1a\npicture canary %s %d ", strings.ReplaceAll(owner, "_", "-"), n))
}

// picture stores an object of an image as generations do.
func (r *rig) picture(owner, generation string, attempt, n int, data []byte) {
	r.t.Helper()
	r.must(r.putPicture(owner, generation, attempt, n, data))
}

func (r *rig) putPicture(owner, generation string, attempt, n int, data []byte) error {
	var sealed bytes.Buffer
	w, err := r.vault.SealWriter(context.Background(), owner, &sealed,
		vault.Data("object", owner, generation, fmt.Sprint(attempt), fmt.Sprint(n), "image"))
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return r.store.Put(context.Background(), fmt.Sprintf("images/%s/%s/%d/%d.img", owner, generation, attempt, n),
		bytes.NewReader(sealed.Bytes()), int64(sealed.Len()))
}

// generated gives a person a generation with images, and returns their ids.
func (r *rig) generated(owner, request string, images ...[]byte) (generation string, ids []string) {
	r.t.Helper()
	r.clock.Advance(time.Millisecond) // ids of one millisecond have no order
	now := r.clock.Now()
	at, later := now.UnixMilli(), now.Add(90*24*time.Hour).UnixMilli()
	generation = db.NewID("gen", now)
	r.insert("generations", map[string]any{"id": generation, "owner": owner, "job_id": "job_x", "model": "m", "seed": 1,
		"request": r.seal(owner, "generations", "request", generation, request), "status": "succeeded", "error_code": "", "attempts": 1,
		"created_at": at, "started_at": at, "finished_at": at, "expires_at": later, "removed_at": 0, "removed_reason": "", "unswept": 0})
	for n, data := range images {
		id := db.NewID("img", now)
		sum := sha256.Sum256(data)
		r.insert("images", map[string]any{"id": id, "generation_id": generation, "owner": owner, "n": n, "attempt": 1, "width": 8, "height": 8,
			"format": []string{"png", "jpeg"}[n%2], "bytes": len(data), "seed": 1, "created_at": at, "expires_at": later, "removed_at": 0, "removed_reason": "",
			"sha256": r.seal(owner, "images", "sha256", id, hex.EncodeToString(sum[:]))})
		r.picture(owner, generation, 1, n, data)
		ids = append(ids, id)
	}
	return generation, ids
}

func (r *rig) ask(owner string) privacy.Export {
	r.t.Helper()
	e, err := r.service.AskExport(context.Background(), owner)
	r.must(err)
	return e
}

// ended waits for an export's end.
func (r *rig) ended(e privacy.Export, owner string, want privacy.ExportStatus) privacy.Export {
	r.t.Helper()
	testenv.Eventually(r.t, 10*time.Minute, func() bool {
		now, err := r.service.Export(context.Background(), owner, e.ID)
		r.must(err)
		e = now
		return e.Status == privacy.ExportReady || e.Status == privacy.ExportFailed
	})
	if e.Status != want {
		r.t.Fatalf("the export is %s (%s), want %s", e.Status, e.Code, want)
	}
	return e
}

func (r *rig) fetch(e privacy.Export, owner string) []byte {
	r.t.Helper()
	a, err := r.service.ExportArchive(context.Background(), owner, e.ID)
	r.must(err)
	data, err := io.ReadAll(a)
	r.must(err)
	r.must(a.Close())
	if int64(len(data)) != e.Bytes {
		r.t.Errorf("%d bytes, announced %d", len(data), e.Bytes)
	}
	return data
}

// exported asks, waits and fetches.
func (r *rig) exported(owner string) (privacy.Export, []byte) {
	r.t.Helper()
	e := r.ended(r.ask(owner), owner, privacy.ExportReady)
	return e, r.fetch(e, owner)
}

// unpack reads every file of an archive, which checks it, and refuses two of one
// name.
func unpack(t testing.TB, archive []byte) map[string][]byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, f := range z.File {
		in, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		if _, twice := all[f.Name]; twice {
			t.Errorf("%s is there twice", f.Name)
		}
		all[f.Name] = data
	}
	return all
}

func listOf(t testing.TB, files map[string][]byte, path string) []map[string]any {
	t.Helper()
	var records []map[string]any
	d := json.NewDecoder(bytes.NewReader(files[path]))
	d.UseNumber()
	if err := d.Decode(&records); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return records
}

// archives are the keys of all exports in object storage, every version of them.
func (r *rig) archives() []string {
	r.t.Helper()
	return r.at.Stored(r.t, r.store, "exports/")
}

func (r *rig) count(query string, args ...any) (n int) {
	r.t.Helper()
	r.must(r.db.Get(context.Background(), &n, query, args...))
	return n
}

// mend moves the clock and lets a scheduler pass.
func (r *rig) mend(d time.Duration) {
	r.t.Helper()
	r.clock.Advance(d)
	r.must(r.queue.NewScheduler().Reconcile(context.Background()))
}

// swept runs the schedule's sweep, and all that are due.
func (r *rig) swept() {
	r.t.Helper()
	r.must(r.db.Tx(context.Background(), func(tx *db.Tx) error {
		_, err := r.queue.Add(context.Background(), tx, jobs.NewJob{Kind: privacy.Schedules()[0].Kind, Ref: privacy.Schedules()[0].Name})
		return err
	}))
	testenv.Eventually(r.t, 30*time.Second, func() bool {
		return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state IN ('queued', 'running')`, privacy.KindExportSweep) == 0
	})
}
