package privacy_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/generate"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/testenv"
	"zimage/internal/webhook"
)

// ends has somebody end things behind a backup, has that journalled and mirrored, and gives
// the test the main database of before, beside the key store of now and that of then. lines is
// how many ends are to be found again.
func ends(t *testing.T, h *home, lines int, end, back, ended func(t *testing.T)) {
	t.Helper()
	ctx := t.Context()
	alone := h.backup()
	main, keys := h.backups()
	end(t)
	h.endsKept()
	ended(t)
	for name, at := range map[string][2]string{"the main database": {alone, ""}, "both": {main, keys}} {
		now, then := h.at.Database, h.at.Keys
		h.reopen(at[0], at[1])
		back(t) // or this test proves nothing
		if n, err := h.privacy.Unreplayed(ctx); n != lines || err != nil {
			t.Errorf("%s: %d are to be replayed, %v: want %d", name, n, err, lines)
		}
		for _, want := range []int{lines, 0} { // again changes nothing
			if done, err := h.privacy.Replay(ctx); err != nil || done.Ended != want || done.Deleted+done.Erased+done.Open != 0 {
				t.Errorf("%s: %+v, %v: want %d", name, done, err, want)
			}
		}
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%s: %d are to be replayed, %v", name, n, err)
		}
		ended(t)
		h.reopen(now, then)
	}
}

// endsKept has all that was ended written into the journal and its mirror.
func (h *home) endsKept() {
	h.t.Helper()
	stop := h.work()
	testenv.Eventually(h.t, time.Minute, func() bool {
		return h.count(`SELECT count(*) FROM jobs WHERE kind = 'erasure:journal' AND state NOT IN ('succeeded')`) == 0
	})
	stop()
	h.clock.Advance(time.Minute) // so long the mirror gathers deletions
	must(h.t, h.privacy.Look(context.Background(), false))
}

// opens wants a token of a picture to open it, or nothing.
func opens(t *testing.T, open func(context.Context, string) (generate.Content, error), token string, want bool) {
	t.Helper()
	c, err := open(t.Context(), token)
	if err == nil {
		must(t, c.Close())
	}
	if want != (err == nil) || !want && problem.CodeOf(err) != problem.NotFound {
		t.Errorf("it opens with %v, want it open: %v", err, want)
	}
}

func TestPromise_C3_AnEndedShareStaysEndedAfterARestore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann, ben := h.newcomer("ann"), h.newcomer("ben")
		share := func(p person, image string) generate.Share {
			s, err := h.generate.Share(ctx, p.id, image, 0)
			must(t, err)
			return s
		}
		images := h.paint(ann, 2)
		one, stays := share(ann, images[0]), share(ann, images[1])
		bens := h.paint(ben, 1)[0]
		all := []generate.Share{share(ben, bens), share(ben, bens)}
		shown := func(s generate.Share, want bool) { t.Helper(); opens(t, h.generate.SharedContent, s.Token, want) }
		ends(t, h, 3, func(t *testing.T) {
			must(t, h.generate.EndShare(ctx, ann.id, one.ID))
			must(t, h.generate.EndShares(ctx, ben.id))
		}, func(t *testing.T) {
			shown(one, true)
			shown(all[0], true)
			shown(all[1], true)
		}, func(t *testing.T) {
			shown(one, false)
			shown(all[0], false)
			shown(all[1], false)
			shown(stays, true)
		})
	})
}

func TestPromise_C3_ARevokedLinkStaysRevokedAfterARestore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann, ben := h.newcomer("ann"), h.newcomer("ben")
		images := map[string]string{ann.id: h.paint(ann, 1)[0], ben.id: h.paint(ben, 1)[0]}
		sign := func(p person) string {
			l, err := h.generate.SignLink(ctx, p.id, images[p.id], false, 0)
			must(t, err)
			return l.Token
		}
		linked := func(token string, want bool) { t.Helper(); opens(t, h.generate.Linked, token, want) }
		before, bens := sign(ann), sign(ben)
		var between, now string
		ends(t, h, 2, func(t *testing.T) {
			must(t, h.generate.RevokeLinks(ctx, ann.id))
			between = sign(ann)
			must(t, h.generate.RevokeLinks(ctx, ann.id))
			now = sign(ann)
		}, func(t *testing.T) {
			linked(before, true)
			linked(now, false)
		}, func(t *testing.T) {
			linked(before, false)
			linked(between, false)
			linked(now, true)
			linked(bens, true)
		})
	})
}

func TestPromise_D4_ADeletedWebhookStaysDeletedAfterARestore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann := h.newcomer("ann")
		made := map[string]webhook.Endpoint{}
		for _, name := range []string{"deleted", "disabled", "moved", "rotated", "whole"} {
			url := "http://127.0.0.1:1/" + name
			e, _, err := h.webhooks.Create(ctx, ann.id, webhook.Change{URL: &url})
			must(t, err)
			made[name] = e
		}
		once := func() string {
			o, err := h.webhooks.OnceSecret(ctx, ann.id, false)
			must(t, err)
			return o.Secret
		}
		// What was changed before the backup is in it.
		early, off, on := "http://127.0.0.1:1/early", false, true
		for _, c := range []webhook.Change{{URL: &early}, {Enabled: &off}, {Enabled: &on}} {
			_, err := h.webhooks.Update(ctx, ann.id, made["whole"].ID, c)
			must(t, err)
		}
		h.endsKept()
		first, now, url := once(), "", "http://127.0.0.1:1/elsewhere"
		images := h.paint(ann, 3)
		told, restored := 0, false
		ends(t, h, 5, func(t *testing.T) {
			must(t, h.webhooks.Delete(ctx, ann.id, made["deleted"].ID))
			_, err := h.webhooks.Update(ctx, ann.id, made["disabled"].ID, webhook.Change{Enabled: &off})
			must(t, err)
			_, err = h.webhooks.Update(ctx, ann.id, made["moved"].ID, webhook.Change{URL: &url})
			must(t, err)
			_, _, err = h.webhooks.Rotate(ctx, ann.id, made["rotated"].ID)
			must(t, err)
			o, err := h.webhooks.OnceSecret(ctx, ann.id, true)
			must(t, err)
			now = o.Secret
		}, func(t *testing.T) {
			for name, e := range made {
				if is, err := h.webhooks.Endpoint(ctx, ann.id, e.ID); err != nil || !is.DisabledAt.IsZero() {
					t.Errorf("%s: %+v, %v", name, is, err)
				}
			}
			if once() != first {
				t.Error("the secret of one generation's addresses is another")
			}
			restored, told = true, h.count(`SELECT count(*) FROM mails`)
		}, func(t *testing.T) {
			if _, err := h.webhooks.Endpoint(ctx, ann.id, made["deleted"].ID); problem.CodeOf(err) != problem.NotFound {
				t.Errorf("deleted: %v", err)
			}
			hears := map[string]bool{made["whole"].ID: true}
			if !restored {
				hears[made["moved"].ID], hears[made["rotated"].ID] = true, true
			}
			for name, e := range made {
				if name == "deleted" {
					continue
				}
				is, err := h.webhooks.Endpoint(ctx, ann.id, e.ID)
				if err != nil || is.DisabledAt.IsZero() != hears[e.ID] || restored && !hears[e.ID] && is.DisabledWhy != webhook.Restored {
					t.Errorf("%s: %+v, %v", name, is, err)
				}
			}
			if is := once(); is == first || restored == (is == now) {
				t.Errorf("after a restore %v: the secret of one generation's addresses is the first: %v, the newest: %v", restored, is == first, is == now)
			}
			// Nothing goes to an address of before.
			events := h.count(`SELECT count(*) FROM webhook_events`)
			must(t, h.generate.DeleteImage(ctx, ann.id, images[0]))
			var to []string
			must(t, h.db.Select(ctx, &to, `SELECT d.endpoint FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event WHERE e.ref = ?`, images[0]))
			if len(to) != len(hears) || h.count(`SELECT count(*) FROM webhook_events`) != events+1 {
				t.Errorf("%d are told", len(to))
			}
			for _, id := range to {
				if !hears[id] {
					t.Errorf("%s is told", id)
				}
			}
			images = images[1:]
			if !restored {
				return
			}
			if n := h.count(`SELECT count(*) FROM mails WHERE subject = ?`, ann.id) - told; n != 3 {
				t.Errorf("%d mails tell of it", n)
			}
			// Its owner takes it up again; that is newer than all.
			_, err := h.webhooks.Update(ctx, ann.id, made["moved"].ID, webhook.Change{URL: &url, Enabled: &on})
			must(t, err)
			if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
				t.Errorf("%d are to be replayed, %v", n, err)
			}
		})
	})
}

// What somebody changed before they left goes with the account: it is not waited for when the
// replay cannot erase that yet.
func TestAChangedWebhookOfSomebodyErasedClosesNothing(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann := h.newcomer("ann")
		url := "http://127.0.0.1:1/"
		e, _, err := h.webhooks.Create(ctx, ann.id, webhook.Change{URL: &url})
		must(t, err)
		before := h.backup()
		_, _, err = h.webhooks.Rotate(ctx, ann.id, e.ID)
		must(t, err)
		h.endsKept()
		id, _ := h.close(ann)
		must(t, h.erase(id))
		h.reopen(before, "")
		if n, err := h.privacy.Unreplayed(ctx); n != 2 || err != nil {
			t.Errorf("%d are to be replayed, %v: want the account and its webhook", n, err)
		}
		h.privacy.EndAt(func(step string, phase privacy.Phase) error {
			if step == "holds_kept" && phase == privacy.Before {
				return errors.New("not yet")
			}
			return nil
		})
		if done, err := h.privacy.Replay(ctx); err == nil || done.Open != 1 {
			t.Errorf("%+v, %v", done, err)
		}
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil || h.count(`SELECT count(*) FROM webhook_endpoints`) != 1 {
			t.Errorf("%d are to be replayed, %v", n, err)
		}
	})
}

// What did not end in the end is not in the journal: a line of it would close the service.
func TestAnEndThatIsRolledBackIsNotJournalled(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann := h.newcomer("ann")
		refused := errors.New("no")
		err := h.db.Tx(ctx, func(tx *db.Tx) error {
			h.privacy.Ended(ctx, tx, ann.id, generate.EndedShare, "shr_x")
			return refused
		})
		if !errors.Is(err, refused) || h.count(`SELECT count(*) FROM jobs WHERE kind = 'erasure:journal'`) != 0 {
			t.Errorf("it is to be journalled, %v", err)
		}
		var many []string
		for range 150 {
			many = append(many, db.NewID("shr", h.clock.Now()))
		}
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
			h.privacy.Ended(ctx, tx, ann.id, generate.EndedShare, many...)
			return nil
		}))
		h.endsKept()
		var ids []string
		must(t, h.keys.Select(ctx, &ids, `SELECT id FROM erasure_journal WHERE kind = 'share' AND mirror <> ''`))
		if text := strings.Join(ids, " "); len(ids) != len(many) || !strings.Contains(text, many[0]) || !strings.Contains(text, many[149]) {
			t.Errorf("%d of %d are journalled", len(ids), len(many))
		}
	})
}

// Two changes at the same moment are two, and a clock that goes back makes none older: the
// newest is never taken for what a restore brought back.
func TestAChangeOfAWebhookIsNewerThanTheOneBefore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann := h.newcomer("ann")
		url := "http://127.0.0.1:1/"
		e, _, err := h.webhooks.Create(ctx, ann.id, webhook.Change{URL: &url})
		must(t, err)
		for _, back := range []time.Duration{0, 0, time.Hour} {
			h.clock.Advance(-back)
			_, err = h.webhooks.Update(ctx, ann.id, e.ID, webhook.Change{URL: &url})
			must(t, err)
			_, _, err = h.webhooks.Rotate(ctx, ann.id, e.ID)
			must(t, err)
		}
		h.endsKept()
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%d are to be replayed, %v", n, err)
		}
		var lines int
		must(t, h.keys.Get(ctx, &lines, `SELECT count(*) FROM erasure_journal WHERE kind = 'webhook'`))
		if lines != 6 {
			t.Errorf("%d of 6 changes are journalled", lines)
		}
	})
}
