package privacy_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

const because = "An order to preserve, checked by our counsel."

// machine acts at the command line.
func (h *home) machine() privacy.By { return h.accounts.Officer(account.AtTheMachine(), because) }

func (h *home) place(owner, table, record string) (privacy.Hold, error) {
	return h.privacy.PlaceHold(context.Background(), h.machine(), privacy.Hold{Subject: owner, Table: table, Record: record, Case: "case 7", MayBeTold: true})
}

// frees releases the last hold on an erased person's record, and has done what follows.
func (h *home) frees(p person, hold privacy.Hold) {
	h.t.Helper()
	ctx := context.Background()
	must(h.t, h.privacy.ReleaseHold(ctx, h.machine(), hold.ID))
	h.clock.Advance(time.Second)
	must(h.t, h.privacy.Look(ctx, false))
	for _, ref := range h.queued() {
		must(h.t, h.erase(ref))
	}
	h.erased(p, "main/erasure_exceptions")
}

func TestPromise_R8_HoldsArePlacedReviewedAndReleased(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		image := h.paint(p, 1)[0]
		for what, hold := range map[string]privacy.Hold{
			"no case":           {Subject: p.id, Table: "images", Record: image},
			"two lines":         {Subject: p.id, Table: "images", Record: image, Case: "a\nb"},
			"no record":         {Subject: p.id, Table: "images", Case: "c"},
			"another table":     {Subject: p.id, Table: "sessions", Record: image, Case: "c"},
			"reviewed too late": {Subject: p.id, Table: "images", Record: image, Case: "c", ReviewAt: h.clock.Now().Add(90*24*time.Hour + time.Second)},
			"reviewed before":   {Subject: p.id, Table: "images", Record: image, Case: "c", ReviewAt: h.clock.Now()},
		} {
			_, err := h.privacy.PlaceHold(ctx, h.machine(), hold)
			refuses(t, what, err, problem.InvalidRequest)
		}
		for what, hold := range map[string]privacy.Hold{
			"nobody": {Subject: "sub_nobody", Table: "images", Record: image, Case: "c"}, "no such record": {Subject: p.id, Table: "images", Record: "img_x", Case: "c"},
		} {
			_, err := h.privacy.PlaceHold(ctx, h.machine(), hold)
			refuses(t, what, err, problem.NotFound)
		}
		for what, by := range map[string]privacy.By{
			"no reason": h.accounts.Officer(account.AtTheMachine(), "short"), "no staff": h.accounts.Officer(p.who, because),
			"support":               h.accounts.Officer(account.Principal{Subject: p.id, SessionID: p.who.SessionID, Role: account.RoleSupport, Method: account.ByPasskey}, because),
			"a role that was taken": h.accounts.Officer(account.Principal{Subject: p.id, SessionID: p.who.SessionID, Role: account.RolePrivacy, Method: account.ByPasskey}, because),
		} {
			if _, err := h.privacy.PlaceHold(ctx, by, privacy.Hold{Subject: p.id, Table: "images", Record: image, Case: "c"}); err == nil {
				t.Errorf("%s places a hold", what)
			}
		}
		if n := h.count(`SELECT count(*) FROM holds`); n != 0 {
			t.Fatalf("%d holds of what was refused", n)
		}

		first, err := h.place(p.id, "images", image)
		must(t, err)
		h.clock.Advance(time.Millisecond)
		second, err := h.privacy.PlaceHold(ctx, h.machine(), privacy.Hold{Subject: p.id, Table: "images", Record: image, Case: "case 8", ReviewAt: h.clock.Now().Add(10 * 24 * time.Hour)})
		must(t, err)
		if !first.ReviewAt.Equal(first.PlacedAt.Add(subject.ReviewWithin)) || first.ID == second.ID || !first.MayBeTold || second.MayBeTold {
			t.Errorf("%+v, %+v", first, second)
		}
		listed := func(which string, want ...string) {
			t.Helper()
			list, err := h.privacy.Holds(ctx, which, p.id, "", 10)
			must(t, err)
			var ids []string
			for _, l := range list {
				ids = append(ids, l.ID)
			}
			if strings.Join(ids, " ") != strings.Join(want, " ") {
				t.Errorf("%s lists %v, want %v", which, ids, want)
			}
		}
		listed(privacy.HoldsOpen, first.ID, second.ID)
		look := func(due float64) {
			t.Helper()
			must(t, h.privacy.Look(ctx, true))
			if got := h.figure("zimage_holds_review_due"); got != due {
				t.Errorf("%v reviews are due, want %v", got, due)
			}
		}
		h.clock.Advance(10*24*time.Hour - time.Hour)
		look(0)
		if strings.Contains(h.log.String(), "looked at again") {
			t.Error("an alarm before the day")
		}
		h.clock.Advance(time.Hour)
		look(1)
		listed(privacy.HoldsDue, second.ID)
		if !strings.Contains(h.log.String(), "looked at again") || !strings.Contains(h.log.String(), second.ID) || strings.Contains(h.log.String(), "case 8") {
			t.Error("the alarm does not name the hold, or names the case")
		}
		_, err = h.privacy.RenewHold(ctx, h.machine(), second.ID, time.Time{})
		must(t, err)
		look(0)
		_, err = h.privacy.RenewHold(ctx, h.machine(), "hold_x", time.Time{})
		refuses(t, "renewing none", err, problem.NotFound)

		must(t, h.privacy.ReleaseHold(ctx, h.machine(), first.ID))
		refuses(t, "released twice", h.privacy.ReleaseHold(ctx, h.machine(), first.ID), problem.NotFound)
		refuses(t, "deleting what the second keeps", h.generate.DeleteImage(ctx, p.id, image), problem.Conflict)
		must(t, h.privacy.ReleaseHold(ctx, h.machine(), second.ID))
		must(t, h.generate.DeleteImage(ctx, p.id, image))
		listed(privacy.HoldsOpen)
		listed(privacy.HoldsAll, first.ID, second.ID)
		_, err = h.place(p.id, "users", p.id)
		must(t, err)
		h.clock.Advance(subject.ReviewWithin - time.Hour)
		look(0)
		h.clock.Advance(time.Hour)
		look(1)
		_, err = h.place(p.id, "images", image)
		refuses(t, "holding a tombstone", err, problem.DataRemoved)
	})
}

// kept says whether a person's image is there, and whether it can be opened with the
// key of its exception.
func (h *home) kept(owner, image string) (there, readable bool) {
	h.t.Helper()
	ctx := context.Background()
	there = h.count(`SELECT count(*) FROM images WHERE id = ?`, image) == 1
	var x []string
	must(h.t, h.db.Select(ctx, &x, `SELECT id FROM erasure_exceptions WHERE subject = ? AND table_name = 'images' AND row_id = ? AND ended_at = 0`, owner, image))
	if !there || len(x) != 1 {
		return there, false
	}
	var sealed []byte
	must(h.t, h.db.Get(ctx, &sealed, `SELECT sha256 FROM images WHERE id = ?`, image))
	_, err := h.vault.Unseal(ctx, x[0], sealed, vault.Column("images", "sha256", image))
	return there, err == nil && len(h.objects("held/"+owner+"/"+x[0]+"/")) == 2
}

// An erasure and a hold at the same time, begun beside each of its steps: whoever is
// told that the record is held has it afterwards, and can open it.
func TestPromise_R8_AHoldAndAnErasureDoNotPassOneAnother(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		placed, refused := 0, 0
		for round := range 3 {
			for _, step := range privacy.Steps() {
				p := h.newcomer("ann" + step[:4] + string(rune('a'+round)))
				image := h.paint(p, 1)[0]
				id, _ := h.close(p)
				var holding sync.WaitGroup
				var held error
				begin := sync.OnceFunc(func() { holding.Go(func() { _, held = h.place(p.id, "images", image) }) })
				h.privacy.EndAt(func(at string, phase privacy.Phase) error {
					if at == step && phase == privacy.Before {
						begin()
						time.Sleep(time.Duration(round) * time.Millisecond)
					}
					return nil
				})
				must(t, h.erase(id))
				holding.Wait()
				must(t, h.erase(id))
				switch there, readable := h.kept(p.id, image); {
				case held == nil && (!there || !readable):
					t.Errorf("beside %s: held, and there: %v, readable: %v", step, there, readable)
				case held != nil && there:
					t.Errorf("beside %s: refused with %v, and it is there", step, held)
				case held == nil:
					placed++
				default:
					refused++
					if code := problem.CodeOf(held); code != problem.NotFound && code != problem.DataRemoved {
						t.Errorf("beside %s: %v", step, held)
					}
				}
				_, err := h.place(p.id, "generations", "gen_x")
				refuses(t, "what was not held", err, problem.NotFound)
				h.erased(p, "main/holds", "main/erasure_exceptions", "main/images", "objects/held/")
				if n := h.count(`SELECT count(*) FROM generations WHERE owner = ?`, p.id); n != 0 {
					t.Error("more than the record is there")
				}
			}
		}
		if placed < 5 || refused < 5 {
			t.Errorf("%d were placed and %d refused: the test does not look at both", placed, refused)
		}
	})
}

// Of an erased account only what a hold keeps can be held again, as long as its
// deletion has not begun.
func TestPromise_R8_OfTheErasedOnlyWhatIsHeldCanBeHeldAgain(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		images := h.paint(p, 2)
		first, err := h.place(p.id, "images", images[0])
		must(t, err)
		id, secret := h.close(p)
		must(t, h.erase(id))
		_, err = h.place(p.id, "images", images[1])
		refuses(t, "what was erased", err, problem.NotFound)
		second, err := h.place(p.id, "images", images[0])
		must(t, err)
		if r := h.receipt(id, secret); !strings.Contains(r.Complaint, "complain") || !strings.Contains(r.String(), r.Complaint) {
			t.Errorf("G10: the receipt says %q of complaints", r.Complaint)
		}
		must(t, h.privacy.ReleaseHold(ctx, h.machine(), first.ID))
		must(t, h.privacy.Look(ctx, false))
		must(t, h.erase(id))
		if there, readable := h.kept(p.id, images[0]); !there || !readable {
			t.Error("the second hold does not keep it")
		}
		must(t, h.privacy.ReleaseHold(ctx, h.machine(), second.ID))
		h.clock.Advance(time.Second)
		must(t, h.erase(id))
		h.erased(p, "main/erasure_exceptions")
		_, err = h.place(p.id, "images", images[0])
		refuses(t, "what was released", err, problem.NotFound)

		// A hold beside the deletion of what was released.
		for round := range 12 {
			p := h.newcomer("ben" + string(rune('a'+round)))
			image := h.paint(p, 1)[0]
			last, err := h.place(p.id, "images", image)
			must(t, err)
			id, _ := h.close(p)
			must(t, h.erase(id))
			must(t, h.privacy.ReleaseHold(ctx, h.machine(), last.ID))
			h.clock.Advance(time.Second)
			var both sync.WaitGroup
			var held, ended error
			both.Go(func() {
				time.Sleep(time.Duration(round%4) * 3 * time.Millisecond)
				_, held = h.place(p.id, "images", image)
			})
			both.Go(func() { _, ended = h.privacy.Erase(ctx, id) })
			both.Wait()
			must(t, ended)
			must(t, h.erase(id))
			there, readable := h.kept(p.id, image)
			if held == nil && (!there || !readable) || held != nil && there {
				t.Errorf("round %d: %v, there: %v, readable: %v", round, held, there, readable)
			}
		}
	})
}

// Every path that deletes or changes a record that can be held, with a hold and
// without one.
func TestPromise_R8_EveryDeletingPath(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		stop := h.work()
		defer stop()
		purge := func(table string) { // one sweep
			t.Helper()
			var id string
			must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
				j, err := h.queue.Add(ctx, tx, jobs.NewJob{Kind: privacy.KindPurge, Ref: table})
				id = j.ID
				return err
			}))
			testenv.Eventually(t, 30*time.Second, func() bool { return h.count(`SELECT count(*) FROM jobs WHERE id = ? AND state = 'succeeded'`, id) == 1 })
		}
		generation := func(image string) (g string) {
			must(t, h.db.Get(ctx, &g, `SELECT generation_id FROM images WHERE id = ?`, image))
			return g
		}
		image := func(p person) (string, string) { return "images", h.paint(p, 1)[0] }
		ofGeneration := func(p person) (string, string) { return "generations", generation(h.paint(p, 1)[0]) }
		there := func(table, column string) func(p person, record string) bool {
			return func(_ person, record string) bool {
				return h.count("SELECT count(*) FROM "+table+" WHERE "+column+" = ?", record) == 1
			}
		}
		content := func(table string) func(p person, record string) bool {
			return func(_ person, record string) bool {
				return h.count("SELECT count(*) FROM "+table+" WHERE id = ? AND removed_at = 0", record) == 1
			}
		}
		mailed := func(p person) (string, string) {
			var id string
			must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
				return h.mail.Send(ctx, tx, mail.Message{Subject: p.id, To: p.email, Template: mail.AccountMade})
			}))
			must(t, h.db.Get(ctx, &id, `SELECT id FROM mails WHERE subject = ? ORDER BY id DESC LIMIT 1`, p.id))
			testenv.Eventually(t, 30*time.Second, func() bool {
				return h.count(`SELECT count(*) FROM mails WHERE id = ? AND accepted_at IS NOT NULL`, id) == 1
			})
			return "mails", id
		}
		objection := func(p person) (string, string) {
			must(t, h.accounts.Object(ctx, p.who, subject.Statistics))
			return "objections", subject.ObjectionRecord(p.id, subject.Statistics)
		}
		consent := func(p person) (string, string) {
			must(t, h.accounts.SetConsent(ctx, p.who, subject.Training, true))
			var id string
			must(t, h.db.Get(ctx, &id, `SELECT id FROM consents WHERE subject = ? ORDER BY id LIMIT 1`, p.id))
			return "consents", id
		}
		self := func(p person) (string, string) { return "users", p.id }
		username := "other_name"
		erase := func(p person, _ string) error {
			id, _ := h.close(p)
			return h.erase(id)
		}
		detail := func(p person) (string, string) {
			id := "led_" + p.id
			_, err := h.db.Exec(ctx, `INSERT INTO ledger_details (entry_id, subject, hidden, details) VALUES (?, ?, 0, ?)`, id, p.id, []byte("x"))
			must(t, err)
			sealed, err := h.vault.Seal(ctx, p.id, []byte("x"), vault.Column("ledger_details", "details", id))
			must(t, err)
			_, err = h.db.Exec(ctx, `UPDATE ledger_details SET details = ? WHERE entry_id = ?`, sealed, id)
			must(t, err)
			return "ledger_details", id
		}
		answered := func(p person) (string, string) { // a request, whose entry of the ledger is the person's
			r, err := h.privacy.Ask(ctx, p.id, privacy.RequestRectification, mark)
			must(t, err)
			_, err = h.privacy.CloseRequest(ctx, h.machine(), r.ID, privacy.OutcomeDone, because)
			must(t, err)
			return detail(p)
		}
		forget := func(p person, _ string) error {
			h.clock.Advance(31 * 24 * time.Hour)
			err := h.privacy.Look(ctx, false)
			if n := h.count(`SELECT count(*) FROM requests WHERE subject = ? AND note IS NULL`, p.id); n != 1 {
				t.Errorf("%d requests are forgotten, want 1", n)
			}
			return err
		}
		some := func(_ int, err error) error { return err }
		paths := []struct {
			name   string
			make   func(p person) (table, record string)
			remove func(p person, record string) error
			there  func(p person, record string) bool
			always bool // also without a hold: the path only adds
		}{
			{"delete an image", image, func(p person, id string) error { return h.generate.DeleteImage(ctx, p.id, id) }, content("images"), false},
			{"delete images", image, func(p person, id string) error { return some(h.generate.DeleteImages(ctx, p.id, []string{id}, false)) }, content("images"), false},
			{"delete all images", image, func(p person, _ string) error { return some(h.generate.DeleteImages(ctx, p.id, nil, true)) }, content("images"), false},
			{"delete a held image's generation", image, func(p person, id string) error { return h.generate.Delete(ctx, p.id, generation(id)) }, content("images"), false},
			{"delete a generation", ofGeneration, func(p person, id string) error { return h.generate.Delete(ctx, p.id, id) }, content("generations"), false},
			{"delete generations", ofGeneration, func(p person, id string) error { return some(h.generate.DeleteMany(ctx, p.id, []string{id}, false)) }, content("generations"), false},
			{"delete all generations", ofGeneration, func(p person, _ string) error { return some(h.generate.DeleteMany(ctx, p.id, nil, true)) }, content("generations"), false},
			{"the end of the window, an image", image, func(person, string) error { h.clock.Advance(91 * 24 * time.Hour); purge("images"); return nil }, content("images"), false},
			{"the end of the window, a generation", ofGeneration, func(person, string) error { h.clock.Advance(91 * 24 * time.Hour); purge("generations"); return nil }, content("generations"), false},
			{"pruning of mails", mailed, func(person, string) error { h.clock.Advance(31 * 24 * time.Hour); purge("mails"); return nil }, there("mails", "id"), false},
			{"withdrawing an objection", objection, func(p person, _ string) error { return h.accounts.WithdrawObjection(ctx, p.who, subject.Statistics) },
				func(p person, _ string) bool {
					return h.count(`SELECT count(*) FROM objections WHERE subject = ?`, p.id) == 1
				}, false},
			{"withdrawing a consent", consent, func(p person, _ string) error { return h.accounts.SetConsent(ctx, p.who, subject.Training, false) }, there("consents", "id"), true},
			{"changing the account", self, func(p person, _ string) error {
				_, err := h.accounts.UpdateUser(ctx, p.who, account.UserChange{Username: &username})
				return err
			}, func(_ person, id string) bool {
				return h.count(`SELECT count(*) FROM users WHERE id = ? AND username IS NULL`, id) == 1
			}, false},
			{"erasure, an image", image, erase, there("images", "id"), false},
			{"erasure, a generation", ofGeneration, erase, there("generations", "id"), false},
			{"erasure, a mail", mailed, erase, there("mails", "id"), false},
			{"erasure, a consent", consent, erase, there("consents", "id"), false},
			{"erasure, an objection", objection, erase, func(p person, _ string) bool {
				return h.count(`SELECT count(*) FROM objections WHERE subject = ?`, p.id) == 1
			}, false},
			{"erasure, the account", self, erase, there("users", "id"), false},
			{"erasure, words of the ledger", detail, erase, there("ledger_details", "entry_id"), false},
			{"forgetting of requests", answered, forget, there("ledger_details", "entry_id"), true},
		}
		tables := map[string]bool{}
		for i, path := range paths {
			for _, held := range []bool{true, false} {
				p := h.newcomer("p" + string(rune('a'+i)) + map[bool]string{true: "held", false: "free"}[held])
				table, record := path.make(p)
				tables[table] = true
				if held {
					_, err := h.place(p.id, table, record)
					must(t, err)
				}
				err := path.remove(p, record)
				if err != nil && (!held || problem.CodeOf(err) != problem.Conflict) {
					t.Errorf("%s, held %v: %v", path.name, held, err)
				}
				if got := path.there(p, record); got != (held || path.always) {
					t.Errorf("%s, held %v: it is there: %v", path.name, held, got)
				}
			}
		}
		for _, table := range subject.Records() {
			if !tables[table] {
				t.Errorf("no path of %s is looked at", table)
			}
		}
	})
}
