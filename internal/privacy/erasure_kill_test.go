//go:build !race

// With the race detector it takes minutes: `make test` runs it without.

package privacy_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/vault"
	"zimage/internal/webhook"
)

// TestDoomedEraser is the other process of the next tests, and nothing by itself.
func TestDoomedEraser(t *testing.T) {
	d := doomedTo(t)
	if d == nil {
		return
	}
	h := openHome(t, d.At, db.Options{Name: doomName})
	h.away.Store = &doomed{Store: h.store, doom: d}
	h.privacy.EndAt(func(step string, phase privacy.Phase) error {
		d.at(step + ", " + string(phase))
		return nil
	})
	if d.Do == "replay" {
		done, err := h.privacy.Replay(t.Context())
		t.Fatalf("the step never came: %+v, %v", done, err)
	}
	must(t, h.erase(d.Of))
	t.Fatal("the step never came")
}

// A process that is killed at any step of an erasure, or within one, has done nothing
// that another could not go on with: the receipt is that of somebody at whose erasure
// nobody was killed, and as little is left: nothing of webhooks and of what was shared,
// also as long as a hold keeps the picture.
func TestPromise_R7_AProcessKilledAtEveryStepOfAnErasure(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.withFarewells()
		steps := []string{"", "copy", "copied", "delete", "deleted"}
		for _, step := range privacy.Steps() {
			for _, phase := range []privacy.Phase{privacy.Before, privacy.Unrecorded, privacy.Recorded} {
				if !h.at.Versioned || phase == privacy.Unrecorded && ofBucket(step) {
					steps = append(steps, step+", "+string(phase))
				}
			}
		}
		other := h.live("other", 1)
		before := h.found(other.id)
		var want []privacy.ReceiptStore // of the first, who is not killed
		for i, step := range steps {
			p := h.newcomer(fmt.Sprint("ann", i))
			image := h.paint(p, 3)[0]
			share := h.tells(p, image)
			for _, table := range dataMap(t).Tables {
				if table.Store == privacy.StoreMain && table.Nobody == "" && table.Erase.Do == privacy.Delete {
					h.fill(p.id, table)
				}
			}
			for table, n := range h.toldOf(p) {
				if n == 0 {
					t.Errorf("nothing is in %s", table)
				}
			}
			hold, err := h.place(p.id, "images", image)
			must(t, err)
			id, secret := h.close(p)
			if step != "" {
				h.killed(doom{Of: id, Step: step})
				h.clock.Advance(time.Hour) // as the other's did, at least
			}
			must(t, h.erase(id))
			if n := len(h.objects("held/" + p.id + "/")); n != 2 || len(h.objects("images/"+p.id+"/")) != 0 || h.count(`SELECT count(*) FROM images WHERE owner = ?`, p.id) != 1 {
				t.Errorf("%s: %d objects are held", step, n)
			}
			for table, n := range h.toldOf(p) {
				if n != 0 {
					t.Errorf("%s: %d rows of %s are left", step, n, table)
				}
			}
			if _, err := h.generate.Shared(ctx, share); problem.CodeOf(err) != problem.NotFound {
				t.Errorf("%s: a held picture is shown: %v", step, err)
			}

			must(t, h.privacy.ReleaseHold(ctx, h.machine(), hold.ID))
			h.clock.Advance(time.Second)
			must(t, h.privacy.Look(ctx, false))
			must(t, h.erase(id))
			h.erased(p, "main/erasure_exceptions")
			r := h.receipt(id, secret)
			if want == nil {
				want = r.Stores
				wantDeleted(t, r, map[string]int64{"objects images/": 6, "main images": 4, "main generations": 4, "main users": 1})
			}
			if r.State != "complete" || len(r.Steps) != len(privacy.Steps()) || !slices.Equal(r.Stores, want) {
				t.Errorf("%s: the receipt is %s with %d steps and %+v, want %+v", step, r.State, len(r.Steps), r.Stores, want)
			}
		}
		if after := h.found(other.id); !slices.Equal(sorted(before), sorted(after)) || after["main/images"] != before["main/images"] {
			t.Errorf("somebody else had %v and has %v", before, after)
		}
	})
}

// tells has a person share a picture, void links, and have a webhook that is about to be
// told of something.
func (h *home) tells(p person, image string) (share string) {
	h.t.Helper()
	ctx := context.Background()
	shown, err := h.generate.Share(ctx, p.id, image, 0)
	must(h.t, err)
	must(h.t, h.generate.RevokeLinks(ctx, p.id))
	url := "https://hooks.example.org/" + mark
	hook, _, err := h.webhooks.Create(ctx, p.id, webhook.Change{URL: &url})
	must(h.t, err)
	_, err = h.webhooks.SendTest(ctx, p.id, hook.ID)
	must(h.t, err)
	return shown.Token
}

// toldOf counts what is stored of a person's shares and webhooks.
func (h *home) toldOf(p person) map[string]int {
	h.t.Helper()
	n := map[string]int{}
	for _, table := range []string{"shares", "link_epochs", "webhook_endpoints", "webhook_once", "webhook_events", "webhook_deliveries", "webhook_attempts"} {
		n[table] = h.count(`SELECT count(*) FROM `+table+` WHERE owner = ?`, p.id)
	}
	return n
}

// killed has another process erase, or replay, until it is killed at a step: in the
// databases too when that is a statement.
func (h *home) killed(d doom, at ...statement) {
	h.t.Helper()
	d.At = h.at
	d.At.Now = h.clock.Now()
	for _, s := range at {
		d.Step = s.step()
		store := h.db
		if t := dataMap(h.t).Table(privacy.StoreMain, s.table); t == nil {
			store = h.keys
		}
		defer s.set(h.t, store)()
	}
	killed(h.t, "TestDoomedEraser", d)
	left(h.t, h.db)
	left(h.t, h.keys)
}

// A process that is killed within the deletion of rows, of which more than a batch is
// gone, has deleted nothing by halves: each row is counted once.
func TestPromise_R7_AProcessKilledWithinTheDeletionOfRows(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		const used, batch = 1200, 500
		p := h.newcomer("ann")
		h.paint(p, 2)
		usage := privacy.NewUsage(privacy.UsageOptions{DB: h.db, Vault: h.vault, Clock: h.clock, Window: h.options.Policy.Windows.Usage})
		for range used {
			h.clock.Advance(time.Millisecond)
			usage.Note(privacy.Use{Subject: p.id, Feature: "list-generations", Addr: usageAddr, Agent: usageAgent})
		}
		must(t, usage.Flush(t.Context()))
		rows := func() int { return h.count(`SELECT count(*) FROM usage_events WHERE subject = ?`, p.id) }
		if rows() != used {
			t.Fatalf("%d rows", rows())
		}
		id, secret := h.close(p)
		second := fmt.Sprintf("(SELECT count(*) FROM usage_events WHERE subject = OLD.subject) <= %d", used-batch-1)
		h.killed(doom{Of: id}, statement{"usage_events", "DELETE", second})
		var step string
		must(t, h.db.Get(t.Context(), &step, `SELECT step FROM erasures WHERE id = ?`, id))
		if rows() != used-batch || step != "objects_deleted" {
			t.Fatalf("%d of %d rows are left behind %s: it was not killed within the second batch", rows(), used, step)
		}
		h.clock.Advance(time.Hour)
		must(t, h.erase(id))
		h.erased(p)
		wantDeleted(t, h.receipt(id, secret), map[string]int64{"main usage_events": used, "objects images/": 4, "main images": 2, "main generations": 2, "main users": 1})
	})
}

// A process that is killed at any step of what follows the release of the last hold, when
// the account is long erased, leaves nothing but the work: the held record goes, with its
// key and its objects, and the receipt says so.
func TestPromise_R8_AProcessKilledAtEveryStepOfARelease(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		steps := []string{"", "delete", "deleted"}
		statements := []statement{
			{"erasure_exceptions", "UPDATE", "NEW.freed_at > 0 AND OLD.freed_at = 0"}, {"keysets", "UPDATE", "NEW.destroyed_at IS NOT NULL AND OLD.destroyed_at IS NULL"},
			{"held_records", "DELETE", "1 = 1"}, {"erasure_exceptions", "UPDATE", "NEW.ended_at > 0 AND OLD.ended_at = 0"}, {"images", "DELETE", "1 = 1"},
			{"erasures", "UPDATE", "NEW.receipt_at > OLD.receipt_at"},
		}
		if h.at.Versioned { // what a bucket has to do with
			statements = nil
		}
		for _, at := range statements {
			steps = append(steps, at.step())
		}
		var want []privacy.ReceiptStore // of the first, beside whom nobody is killed
		for i, step := range steps {
			p := h.newcomer(fmt.Sprint("ann", i))
			image := h.paint(p, 3)[0]
			hold, err := h.place(p.id, "images", image)
			must(t, err)
			id, secret := h.close(p)
			must(t, h.erase(id))
			var exception string
			must(t, h.db.Get(ctx, &exception, `SELECT id FROM erasure_exceptions WHERE subject = ?`, p.id))
			if there, readable := h.kept(p.id, image); !there || !readable {
				t.Fatal("nothing is held")
			}
			must(t, h.privacy.ReleaseHold(ctx, h.machine(), hold.ID))
			h.clock.Advance(time.Second)
			if of := (doom{Of: id, Step: step}); i >= 3 {
				h.killed(of, statements[i-3])
			} else if step != "" {
				h.killed(of)
			}
			h.clock.Advance(time.Minute)
			must(t, h.privacy.Look(ctx, false))
			must(t, h.erase(id))
			h.erased(p, "main/erasure_exceptions")
			if _, err := h.vault.Seal(ctx, exception, nil, nil); !errors.Is(err, vault.ErrDestroyed) {
				t.Errorf("%s: the key of what was held: %v", step, err)
			}
			if n := len(h.objects("held/")) + h.count(`SELECT count(*) FROM images`); n != 0 {
				t.Errorf("%s: %d rows and objects are left", step, n)
			}
			r := h.receipt(id, secret)
			if want == nil {
				want = r.Stores
				wantDeleted(t, r, map[string]int64{"objects images/": 6, "main images": 3, "main generations": 3, "main users": 1})
			}
			ended := slices.ContainsFunc(r.Exceptions, func(x privacy.ReceiptException) bool { return x.Since != nil && x.EndedAt != nil })
			if r.State != "complete" || !ended || !slices.Equal(r.Stores, want) {
				t.Errorf("%s: the receipt is %s, tells of the end: %v, and has %+v, want %+v", step, r.State, ended, r.Stores, want)
			}
		}
	})
}

// A process that is killed at any step of a replay, after both databases were restored
// from before, is gone on with: nothing may be served until one is through, and then
// nothing of what was ended is there.
func TestPromise_R7_AProcessKilledAtEveryStepOfAReplay(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		var main, keys string
		r := newRestored(t, h, func() { main, keys = h.backups() })
		h.clock.Advance(time.Hour)
		h.reopen(main, keys)
		h.at.Database, h.at.Keys = main, keys
		unreplayed := func(what string, want ...int) {
			t.Helper()
			if n, err := h.privacy.Unreplayed(ctx); err != nil || !slices.Contains(want, n) {
				t.Errorf("%s: %d are to be replayed, %v, want one of %v", what, n, err, want)
			}
		}
		unreplayed("restored", 2)
		// The journal is taken in, the account is closed again, the deletion is repeated.
		for _, at := range []statement{{"erasure_journal", "INSERT", "1 = 1"}, {"subjects", "UPDATE", "NEW.state = 'closing'"}, {"generations", "UPDATE", "NEW.removed_at > 0"}} {
			if at.table == "erasure_journal" {
				_, err := h.keys.Exec(ctx, `DELETE FROM erasure_journal`)
				must(t, err)
			}
			h.killed(doom{Do: "replay"}, at)
			if at.table != "erasure_journal" {
				unreplayed(at.step(), 1, 2)
			}
		}
		for _, step := range privacy.Steps() {
			if step == "verified" { // late work is waited for elsewhere
				break
			}
			for _, phase := range []privacy.Phase{privacy.Before, privacy.Unrecorded, privacy.Recorded} {
				h.killed(doom{Do: "replay", Step: step + ", " + string(phase)})
			}
		}
		for _, step := range []string{"delete", "deleted"} {
			must(t, h.store.Put(ctx, "images/"+r.ann.id+"/gen_"+step+"/1/0.img", strings.NewReader("late"), 4))
			h.killed(doom{Do: "replay", Step: step})
		}
		r.finishes(t)
	})
}
