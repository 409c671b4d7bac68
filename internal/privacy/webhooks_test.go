package privacy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/webhook"
)

// What webhooks were told is kept for 30 days, or as long as the policy keeps usage if that is
// shorter: the word in policy.yaml alone moves it. No attempt outlives its delivery.
func TestPromise_R4_TheLogOfWebhooksFollowsThePolicy(t *testing.T) {
	for words, days := range map[string]int{"12 months": 30, "31 days": 30, "10 days": 10} {
		t.Run(words, func(t *testing.T) {
			policy, err := privacy.ParsePolicy([]byte(strings.Replace(string(privacy.Example), "usage: 12 months", "usage: "+words, 1)))
			must(t, err)
			if w, _ := policy.Window("webhooks"); w != privacy.Days(days) {
				t.Fatalf("the window is %s", w)
			}
			on(t, unversioned, func(t *testing.T, s privacy.Stack) {
				ctx := t.Context()
				h := newHome(t, s, func(o *privacy.Options) { o.Policy = policy })
				ann := h.newcomer("ann")
				url := "http://127.0.0.1:1/"
				e, _, err := h.webhooks.Create(ctx, ann.id, webhook.Change{URL: &url})
				must(t, err)
				began := h.clock.Now()
				d, err := h.webhooks.SendTest(ctx, ann.id, e.ID)
				must(t, err)
				h.exec(`INSERT INTO webhook_once (id, owner, url, events, created_at) VALUES ('gen_1', ?, ?, '', ?)`, ann.id, []byte("sealed"), h.clock.Millis())
				h.exec(`UPDATE webhook_deliveries SET state = 'failed'`)
				left := func() map[string]int {
					n := map[string]int{}
					for _, table := range []string{"webhook_once", "webhook_events", "webhook_deliveries", "webhook_attempts"} {
						n[table] = h.count(`SELECT count(*) FROM ` + table)
					}
					return n
				}
				window := time.Duration(days) * day
				h.clock.Advance(window - time.Minute)
				h.exec(`INSERT INTO webhook_attempts (delivery, n, owner, at, took, status, error) VALUES (?, 1, ?, ?, 1, 500, 'unexpected_status')`, d.ID, ann.id, h.clock.Millis())
				h.purge()
				for table, n := range left() {
					if n != 1 {
						t.Errorf("a minute before: %d of %s", n, table)
					}
				}
				if n, _, err := h.webhooks.ReplayFailed(ctx, ann.id, e.ID, began); n != 1 || err != nil {
					t.Errorf("a minute before: %d are replayed, %v", n, err)
				}
				h.exec(`UPDATE webhook_deliveries SET state = 'failed'`)
				h.clock.Advance(2 * time.Minute)
				if n, _, err := h.webhooks.ReplayFailed(ctx, ann.id, e.ID, began); n != 0 || err != nil {
					t.Errorf("a minute behind: %d are replayed, %v", n, err)
				}
				h.purge()
				for table, n := range left() {
					if n != 0 {
						t.Errorf("a minute behind: %d of %s", n, table)
					}
				}
			})
		})
	}
}

// rowsOf are how many rows of each table of the map are a person's, and the ids in them.
func (h *home) rowsOf(p person) (rows map[string]int64, ids []string) {
	h.t.Helper()
	ctx := context.Background()
	rows = map[string]int64{}
	m := dataMap(h.t)
	for i := range m.Tables {
		t := &m.Tables[i]
		if t.Store != privacy.StoreMain || t.Nobody != "" || t.Erase.Do != privacy.Delete {
			continue
		}
		rows[t.Name] = int64(h.count("SELECT count(*) FROM "+t.Name+" WHERE "+m.Of(t), p.id))
		if t.Column("id") != nil {
			var some []string
			must(h.t, h.db.Select(ctx, &some, "SELECT id FROM "+t.Name+" WHERE "+m.Of(t), p.id))
			ids = append(ids, some...)
		}
	}
	return rows, ids
}

// mentions are the tables of the live schema in which one of some ids stands, anywhere.
func (h *home) mentions(ids []string) map[string][]string {
	h.t.Helper()
	ctx := context.Background()
	places := map[string][]string{}
	for store, d := range map[string]*db.DB{privacy.StoreMain: h.db, privacy.StoreKeys: h.keys} {
		tables, err := db.Tables(ctx, d)
		must(h.t, err)
		for _, t := range tables {
			all, err := d.Maps(ctx, "SELECT * FROM "+t.Name)
			must(h.t, err)
			for _, row := range all {
				for _, v := range row {
					text := fmt.Sprint(v)
					if b, ok := v.([]byte); ok {
						text = string(b)
					}
					for _, id := range ids {
						if strings.Contains(text, id) {
							places[store+"/"+t.Name] = append(places[store+"/"+t.Name], id)
						}
					}
				}
			}
		}
	}
	return places
}

// A whole account with webhooks, deliveries that wait, shares and links goes: its jobs too,
// which take the turns of its webhooks. So with a farewell, and when nothing told it.
func TestPromise_R2_AnAccountWithWebhooksLeavesNothing(t *testing.T) {
	for _, farewell := range []bool{true, false} {
		t.Run(fmt.Sprint("farewell ", farewell), func(t *testing.T) {
			on(t, unversioned, func(t *testing.T, s privacy.Stack) {
				h := newHome(t, s, func(o *privacy.Options) {
					if farewell {
						o.Notices = []string{webhook.KindFarewell}
					}
				})
				h.leavesNothing(farewell)
			})
		})
	}
}

func (h *home) leavesNothing(farewell bool) {
	t, ctx := h.t, h.t.Context()
	var mu sync.Mutex
	var calls []string
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, string(body))
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(receiver.Close)
	ann, ben := h.newcomer("ann"), h.newcomer("ben")
	url, refused, words := receiver.URL+"/hook", "http://127.0.0.1:1/", "what she calls it, "+mark
	var hooks []string
	for _, c := range []webhook.Change{{URL: &url, Description: &words}, {URL: &refused}} {
		e, _, err := h.webhooks.Create(ctx, ann.id, c)
		must(t, err)
		hooks = append(hooks, e.ID)
	}
	bens, _, err := h.webhooks.Create(ctx, ben.id, webhook.Change{URL: &refused})
	must(t, err)
	waits, err := h.webhooks.SendTest(ctx, ben.id, bens.ID)
	must(t, err)

	h.engine = func(context.Context, engine.Request) ([]byte, error) { return picture(), nil }
	g, _, err := h.generate.Submit(ctx, ann.id, generate.Request{Prompt: mark, Width: 256, Height: 256, Webhook: generate.Webhook{URL: url + "/once"}}, nil)
	must(t, err)
	lanes := []jobs.Lane{{Name: webhook.Lane, Slots: jobs.NewFixed(4)}, {Name: privacy.ExportLane, Slots: jobs.NewFixed(1)}}
	stop := h.work(lanes...)
	called := func(kind string, least int) {
		t.Helper()
		testenv.Eventually(t, time.Minute, func() bool {
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for _, body := range calls {
				if strings.Contains(body, kind) {
					n++
				}
			}
			return n >= least
		})
	}
	called("generation.succeeded", 2)
	testenv.Eventually(t, time.Minute, func() bool {
		return h.count(`SELECT count(*) FROM jobs WHERE lane = ? AND state IN ('queued', 'running')`, webhook.Lane) == 0
	})
	stop()
	g, err = h.generate.Get(ctx, ann.id, g.ID)
	must(t, err)
	for range 2 {
		share, err := h.generate.Share(ctx, ann.id, g.Images[0].ID, 0)
		must(t, err)
		if h.count(`SELECT count(*) FROM shares`) > 1 {
			must(t, h.generate.EndShare(ctx, ann.id, share.ID))
		}
	}
	must(t, h.generate.RevokeLinks(ctx, ann.id))
	must(t, h.generate.DeleteImage(ctx, ann.id, h.paint(ann, 1)[0])) // told to nobody yet

	asked, err := h.privacy.AskExport(ctx, ann.id)
	must(t, err)
	stop = h.work(lanes[1])
	testenv.Eventually(t, time.Minute, func() bool {
		e, err := h.privacy.Export(ctx, ann.id, asked.ID)
		return err == nil && e.Status == privacy.ExportReady
	})
	stop()
	a, err := h.privacy.ExportArchive(ctx, ann.id, asked.ID)
	must(t, err)
	archive, err := io.ReadAll(a)
	must(t, errors.Join(err, a.Close()))
	files := unpack(t, archive)
	for path, want := range map[string][]string{
		"account/webhooks.json":                append(hooks, url, words),
		"account/webhooks_of_generations.json": {g.ID, url + "/once"},
		"usage/webhook_events.json":            {"generation.succeeded", "image.deleted"},
		"usage/webhook_deliveries.json":        append(hooks, "pending"),
		"usage/webhook_attempts.json":          {"500", "unexpected_status"},
		"content/shares.json":                  {g.Images[0].ID},
		"content/signed_links.json":            {ann.id},
		"operations/jobs.json":                 hooks,
	} {
		for _, text := range want {
			if !bytes.Contains(files[path], []byte(text)) {
				t.Errorf("the export's %s has no %q: %s", path, text, files[path])
			}
		}
		if path != "account/webhooks.json" && bytes.Contains(files[path], []byte(mark)) {
			t.Errorf("the export's %s has what was sent", path)
		}
	}

	_, ids := h.rowsOf(ann)
	id, secret := h.close(ann)
	if farewell {
		stop = h.work(lanes...)
		called("account.closing", 1)
		testenv.Eventually(t, time.Minute, func() bool {
			return h.count(`SELECT count(*) FROM jobs WHERE kind IN ('webhook:farewell', 'mail:send') AND state IN ('queued', 'running')`) == 0
		})
		stop()
	}
	before, more := h.rowsOf(ann)
	ids = append(append(ids, more...), hooks...)
	for table, least := range map[string]int64{"webhook_endpoints": 3, "webhook_once": 1, "webhook_events": 2, "webhook_deliveries": 4, "webhook_attempts": 3, "shares": 1, "link_epochs": 1} {
		if before[table] < least {
			t.Errorf("before the erasure there are %d of %s, and this test proves nothing", before[table], table)
		}
	}
	if n := h.count(`SELECT count(*) FROM jobs WHERE party IN (?, ?)`, hooks[0], hooks[1]); n < 4 {
		t.Errorf("before the erasure there are %d jobs of webhooks, and this test proves nothing", n)
	}
	must(t, h.erase(id))
	h.erased(ann)
	keeps := []string{"keys/erasure_journal", "main/requests"} // what she ended, and which export she asked for
	for place, some := range h.mentions(slices.DeleteFunc(ids, func(id string) bool { return id == ann.id })) {
		if !slices.Contains(keeps, place) {
			t.Errorf("%s has %v", place, some)
		}
	}
	r := h.receipt(id, secret)
	deleted := map[string]int64{}
	for _, store := range r.Stores {
		if store.Store == privacy.StoreMain {
			deleted[store.Name] = store.Deleted
		}
	}
	for table, n := range before {
		if deleted[table] < n {
			t.Errorf("the receipt tells of %d of %s, and there were %d", deleted[table], table, n)
		}
	}
	if n := h.count(`SELECT count(*) FROM jobs j JOIN webhook_deliveries d ON d.job_id = j.id WHERE d.id = ? AND j.party = ?`, waits.ID, bens.ID); n != 1 {
		t.Error("what waits of another account is gone")
	}
}
