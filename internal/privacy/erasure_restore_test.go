package privacy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/privacy"
	"zimage/internal/vault"
)

// restored is what one person erased and another deleted, behind a backup.
type restored struct {
	h          *home
	ann, ben   person
	images     []string // ben's: deleted, expired, whole
	generation []string // theirs
	id, secret string   // the erasure's receipt
}

// newRestored has ann and ben live, makes the backup, and ends what is ended since.
func newRestored(t *testing.T, h *home, backup func()) *restored {
	ctx := t.Context()
	r := &restored{h: h, ann: h.live("ann", 2), ben: h.newcomer("ben")}
	r.images = h.paint(r.ben, 3)
	for _, image := range r.images {
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		r.generation = append(r.generation, generation)
	}
	ends := h.clock.Now().Add(day).UnixMilli()
	h.exec(`UPDATE generations SET expires_at = ? WHERE id = ?`, ends, r.generation[1])
	h.exec(`UPDATE images SET expires_at = ? WHERE id = ?`, ends, r.images[1])
	backup()
	r.id, r.secret = h.close(r.ann)
	must(t, h.erase(r.id))
	must(t, h.generate.Delete(ctx, r.ben.id, r.generation[0]))
	h.clock.Advance(day)
	stop := h.work()
	h.schedule()
	stop()
	h.clock.Advance(time.Minute) // so long the mirror gathers deletions
	must(t, h.privacy.Look(ctx, false))
	r.whole()
	return r
}

// whole checks that nothing of what was ended is there, and all else of ben.
func (r *restored) whole() {
	r.h.t.Helper()
	r.h.erased(r.ann)
	for i, name := range []string{"deleted", "expired"} {
		if ways := r.h.readable(r.ben, r.images[i], r.generation[i]); len(ways) > 0 {
			r.h.t.Errorf("what has %s can be read by %v", name, ways)
		}
		if n := r.h.count(`SELECT count(*) FROM generations WHERE id = ? AND (request IS NOT NULL OR unswept = 1)`, r.generation[i]) +
			r.h.count(`SELECT count(*) FROM images WHERE id = ? AND sha256 IS NOT NULL`, r.images[i]) +
			len(r.h.objects("images/"+r.ben.id+"/"+r.generation[i]+"/")); n > 0 {
			r.h.t.Errorf("of what has %s, %d rows and objects have content", name, n)
		}
	}
	if ways := r.h.readable(r.ben, r.images[2], r.generation[2]); len(ways) != 5 {
		r.h.t.Errorf("what stays can be read by %v", ways)
	}
}

// replays restores the databases at these addresses, and ends again what was ended.
func (r *restored) replays(t *testing.T, main, keys string) {
	h := r.h
	h.reopen(main, keys)
	if ways := h.readable(r.ben, r.images[1], r.generation[1]); len(ways) > 0 {
		t.Errorf("before the replay, what has expired can be read by %v", ways)
	}
	if n, err := h.privacy.Unreplayed(t.Context()); n != 2 || err != nil {
		t.Fatalf("%d are to be replayed, %v: want the account and the generation", n, err)
	}
	if done := r.finishes(t); done.Deleted != 1 {
		t.Fatalf("%+v", done)
	}
}

// finishes replays, and checks that everything is ended again.
func (r *restored) finishes(t *testing.T) privacy.Replayed {
	t.Helper()
	ctx := t.Context()
	h := r.h
	done, err := h.privacy.Replay(ctx)
	if err != nil || done.Erased+done.Open != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	must(t, h.erase(r.id)) // what waits, waits here
	if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
		t.Errorf("%d are to be replayed, %v", n, err)
	}
	stop := h.work()
	h.schedule()
	stop()
	r.whole()
	if got := h.receipt(r.id, r.secret); got.State != "complete" || got.ID != r.id {
		t.Errorf("the receipt is %+v", got)
	}
	return done
}

// Both databases restored from before know nothing of an erasure and of deletions: the
// object store does.
func TestPromise_R7_BothDatabasesRestoredBringNothingBack(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		var main, keys string
		r := newRestored(t, h, func() { main, keys = h.backups() })
		names := h.objects("journal/")
		if len(names) == 0 {
			t.Fatal("the object store has no journal")
		}
		for _, name := range names {
			body, _, err := h.store.Get(ctx, name)
			must(t, err)
			text, err := readAll(body)
			must(t, errors.Join(err, body.Close()))
			if strings.Contains(strings.ToLower(text), strings.ToLower(mark)) || strings.Contains(text, r.secret) {
				t.Errorf("%s says more than ids: %s", name, text)
			}
		}
		// Whoever can write to the store has nobody erased by that.
		forged, err := json.Marshal(map[string]any{"lines": []any{map[string]any{"kind": "account", "id": r.ben.id, "erasure": "era_x", "at": h.clock.Millis()}}, "mac": []byte("x")})
		must(t, err)
		must(t, h.store.Put(ctx, "journal/"+h.clock.Now().Format(time.DateOnly)+"/"+db.NewID("jou", h.clock.Now())+".json", bytes.NewReader(forged), int64(len(forged))))

		// Without the store nobody knows, and it is asked again.
		h.away.set(true)
		h.reopen(main, keys)
		for range 2 {
			if n, err := h.privacy.Unreplayed(ctx); n != 0 || !errors.Is(err, privacy.ErrMirrorUnread) {
				t.Errorf("without the store, %d are to be replayed, %v", n, err)
			}
		}
		if _, err := h.privacy.Replay(ctx); err == nil {
			t.Error("a replay without the store says that it is done")
		}
		h.away.set(false)
		if n, err := h.privacy.Unreplayed(ctx); n != 2 || err != nil {
			t.Errorf("%d are to be replayed, %v", n, err)
		}
		if _, err := h.vault.Seal(ctx, r.ann.id, []byte("x"), nil); err != nil {
			t.Fatalf("the restored key store has no key of the erased, and this test proves nothing: %v", err)
		}
		r.replays(t, main, keys)
		if !strings.Contains(h.log.String(), "passed over") {
			t.Error("the log does not tell of a forged line")
		}

		// The mirror goes when the journal does.
		h.clock.Advance(60 * day)
		must(t, h.privacy.Look(ctx, false))
		var n int
		must(t, h.keys.Get(ctx, &n, `SELECT count(*) FROM erasure_journal`))
		stop := h.work()
		h.schedule()
		stop()
		if left := h.objects("journal/"); n > 0 || len(left) > 0 {
			t.Errorf("%d lines and %v are left after all backups", n, left)
		}
	})
}

// The key store is restored under a running process, which looks again, whatever was
// written into it since.
func TestAKeyStoreThatGoesBackIsSeen(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		r := newRestored(t, h, func() {})
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Fatalf("%d are to be replayed, %v", n, err)
		}
		seen := func(what string) {
			t.Helper()
			h.exec(`DELETE FROM erasures`)
			if n, err := h.privacy.Unreplayed(ctx); n != 1 || err != nil {
				t.Errorf("%s: %d are to be replayed, %v", what, n, err)
			}
			done, err := h.privacy.Replay(ctx)
			if err != nil || done.Erased+done.Open != 1 {
				t.Errorf("%s: %+v, %v", what, done, err)
			}
			must(t, h.erase(r.id))
			r.whole()
		}
		// As a restore does it, without another address.
		restore := func() {
			_, err := h.keys.Exec(ctx, `DELETE FROM erasure_journal`)
			must(t, err)
		}
		restore()
		seen("nothing since")

		restore()
		must(t, h.privacy.Journal(ctx, "images", []string{"img_since"}))
		h.clock.Advance(time.Minute)
		must(t, h.privacy.Look(ctx, false))
		seen("a line that this process mirrors")

		restore()
		must(t, h.privacy.Journal(ctx, "images", []string{"img_later"}))
		h.clock.Advance(time.Minute)
		_, err := h.keys.Exec(ctx, `UPDATE erasure_journal SET mirror = ?`, h.clock.Now().Format(time.DateOnly)+"/"+db.NewID("jou", h.clock.Now()))
		must(t, err)
		seen("a line that another process mirrored")

		// While the store is away, it is known that nobody knows.
		restore()
		h.away.set(true)
		if _, err := h.privacy.Unreplayed(ctx); !errors.Is(err, privacy.ErrMirrorUnread) {
			t.Errorf("without the store: %v", err)
		}
		h.away.set(false)
		seen("the store was away")
	})
}

// Two processes may mirror the same line at once: that is no restore either.
func TestALineInTwoObjectsIsNoRestore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		must(t, h.privacy.Journal(ctx, "images", []string{"img_twice"}))
		var first, now string
		for _, name := range []*string{&first, &now} {
			_, err := h.keys.Exec(ctx, `UPDATE erasure_journal SET mirror = ''`)
			must(t, err)
			h.clock.Advance(time.Minute)
			must(t, h.privacy.Look(ctx, false))
			must(t, h.keys.Get(ctx, name, `SELECT mirror FROM erasure_journal`))
		}
		_, err := h.keys.Exec(ctx, `UPDATE erasure_journal SET mirror = ?`, first) // which was quicker
		must(t, err)
		h.rooms()
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%d are to be replayed, %v", n, err)
		}
		must(t, h.keys.Get(ctx, &now, `SELECT mirror FROM erasure_journal`))
		if len(h.objects("journal/")) != 2 || now != first || strings.Contains(h.log.String(), "as if that was restored") {
			t.Errorf("the line is in %q and was in %q", now, first)
		}
	})
}

// What is forgotten because its time is over is no restore.
func TestAJournalThatHasHadItsTimeIsNoRestore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		must(t, h.privacy.Journal(ctx, "images", []string{"img_old"}))
		h.clock.Advance(time.Minute)
		must(t, h.privacy.Look(ctx, false))
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil || len(h.objects("journal/")) != 1 {
			t.Fatalf("%d are to be replayed, %v", n, err)
		}
		h.clock.Advance(60 * day)
		must(t, h.privacy.Look(ctx, false))
		h.away.set(true)
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%d are to be replayed, %v", n, err)
		}
	})
}

// A line that changes while it is mirrored is mirrored again, as it is then.
func TestALineThatChangesWhileItIsMirroredIsMirroredAgain(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		must(t, h.accounts.CloseFor(ctx, account.AtTheMachine(), p.id, because))
		var id string
		must(t, h.db.Get(ctx, &id, `SELECT id FROM erasures WHERE subject = ?`, p.id))
		_, err := h.privacy.Erase(ctx, id) // the line is written, without a secret
		must(t, err)
		must(t, h.privacy.Journal(ctx, "images", []string{"img_beside"}))
		names := func() (names []string) {
			must(t, h.keys.Select(ctx, &names, `SELECT mirror FROM erasure_journal ORDER BY kind`))
			return names
		}
		for _, c := range []struct {
			column string
			value  any
			has    string
		}{{"secret", []byte("one"), "b25l"}, {"secret", []byte("two"), "dHdv"}, {"erasure", "era_other", "era_other"}} {
			_, err := h.keys.Exec(ctx, `UPDATE erasure_journal SET mirror = ''`)
			must(t, err)
			h.away.behind(func() {
				_, err := h.keys.Exec(ctx, `UPDATE erasure_journal SET `+c.column+` = ? WHERE kind = 'account'`, c.value)
				must(t, err)
				h.clock.Advance(time.Millisecond)
			})
			before := len(h.objects("journal/"))
			must(t, h.privacy.Look(ctx, false))
			if got := names(); len(got) != 2 || got[0] <= got[1] || got[1] == "" || len(h.objects("journal/")) != before+2 {
				t.Errorf("%s: the account is in %q, and what was deleted in %q", c.has, got[0], got[1])
			}
			body, _, err := h.store.Get(ctx, "journal/"+names()[0]+".json")
			must(t, err)
			text, err := readAll(body)
			must(t, errors.Join(err, body.Close()))
			if !strings.Contains(text, c.has) {
				t.Errorf("%s: the mirror has %s", c.has, text)
			}
		}
		before := len(h.objects("journal/"))
		must(t, h.privacy.Look(ctx, false))
		if after := len(h.objects("journal/")); after != before {
			t.Errorf("what is there is written again: %d objects after %d", after, before)
		}
	})
}

// Deletions are gathered for a minute, whatever their number; an erasure is written at
// once, with all that waits. The figure tells of what should be there.
func TestTheMirrorGathersDeletions(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		wrote := func(what string, want int, late float64) {
			t.Helper()
			err := h.privacy.Look(ctx, false)
			if got := len(h.objects("journal/")); got != want || h.figure("zimage_journal_unmirrored") != late {
				t.Errorf("%s: %d objects, want %d; the figure tells %v, want %v; %v", what, got, want, h.figure("zimage_journal_unmirrored"), late, err)
			}
		}
		var ids []string
		for i := range 1500 {
			ids = append(ids, fmt.Sprintf("img_%d", i))
		}
		must(t, h.privacy.Journal(ctx, "images", ids))
		h.clock.Advance(time.Minute - time.Millisecond)
		wrote("within the minute", 0, 0)
		h.clock.Advance(time.Millisecond)
		wrote("after it", 2, 0)
		wrote("again", 2, 0)
		must(t, h.privacy.Journal(ctx, "images", []string{"img_last"}))
		wrote("one more", 2, 0)
		id, _ := h.close(h.newcomer("ann"))
		_, err := h.privacy.Erase(ctx, id)
		must(t, err)
		wrote("an erasure", 3, 0)
		must(t, h.privacy.Journal(ctx, "images", []string{"img_waits"}))
		h.away.full(true)
		h.clock.Advance(5*time.Minute - time.Millisecond)
		wrote("the store takes nothing", 3, 0)
		h.clock.Advance(time.Millisecond)
		wrote("for five minutes", 3, 1)
		h.away.full(false)
		wrote("it takes objects", 4, 0)
	})
}

// A complete erasure is in the mirror, whatever the store did meanwhile; until then it
// is seen.
func TestAnErasureIsNotCompleteBeforeItsMirror(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		id, _ := h.close(p)
		h.away.full(true)
		if err := h.erase(id); err == nil {
			t.Fatal("complete without the mirror")
		}
		list, err := h.privacy.Erasures(ctx, false, "", 10)
		if err != nil || len(list) != 1 || list[0].Failure != "objects_failed" || list[0].Step != "processors_told" {
			t.Errorf("the list is %+v, %v", list, err)
		}
		if err := h.privacy.Look(ctx, false); err == nil || h.figure("zimage_journal_unmirrored") != 1 {
			t.Errorf("%v, and the figure tells %v", err, h.figure("zimage_journal_unmirrored"))
		}
		h.away.full(false)
		must(t, h.erase(id))
		must(t, h.privacy.Look(ctx, false))
		if n := len(h.objects("journal/")); n != 1 || h.figure("zimage_journal_unmirrored") != 0 {
			t.Errorf("%d objects, and the figure tells %v", n, h.figure("zimage_journal_unmirrored"))
		}
	})
}

// A backup of both databases from before an erasure opens nothing of the erased once
// the roots of its time are gone; and the main database of that time, beside the key
// store of today, shows nothing that was deleted or has expired.
func TestPromise_R2_ABackupWhoseRootsAreGoneOpensNothing(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		var main, keys string
		var email []byte
		r := newRestored(t, h, func() {
			main, keys = h.backups()
		})
		before, err := db.Open(ctx, main, db.Options{})
		must(t, err)
		must(t, before.Get(ctx, &email, `SELECT email FROM users WHERE id = ?`, r.ann.id))
		must(t, before.Close())
		ring := filepath.Join(h.dir, "roots")
		text, err := os.ReadFile(ring)
		must(t, err)
		old := filepath.Join(h.dir, "offline copy")
		must(t, os.WriteFile(old, text, 0o600))
		backup, err := db.Open(ctx, keys, db.Options{})
		must(t, err)
		t.Cleanup(func() { _ = backup.Close() })
		opens := func(ring string) error {
			roots, err := vault.ReadRoots(ring)
			must(t, err)
			v, err := vault.Open(ctx, backup, roots, h.clock)
			if err != nil {
				return err
			}
			plain, err := v.Unseal(ctx, r.ann.id, email, vault.Column("users", "email", r.ann.id))
			if err == nil && string(plain) != r.ann.email {
				t.Fatalf("it opens %q", plain)
			}
			return err
		}
		// With the roots of its time it does: this is what rotations are for.
		must(t, opens(ring))
		for range 2 {
			h.clock.Advance(vault.RotateEvery)
			done, err := h.vault.Rotate(ctx, vault.RotateOptions{})
			if err != nil || !done.Made {
				t.Fatalf("%+v, %v", done, err)
			}
		}
		if end := h.receipt(r.id, r.secret).Key.UnrecoverableAt; h.clock.Now().Before(end) {
			t.Fatalf("it is %s, and the receipt says from %s on", h.clock.Now(), end)
		}
		must(t, opens(old)) // whoever keeps that copy
		var lacks *vault.RootError
		err = opens(ring)
		if !errors.As(err, &lacks) || !strings.Contains(err.Error(), "the key ring lacks root") {
			t.Fatalf("the process says %v", err)
		}
		// Its row in a key store that opens, under the name of either root.
		var row struct {
			Field  []byte `db:"field"`
			Object []byte `db:"object"`
		}
		must(t, backup.Get(ctx, &row, `SELECT field, object FROM keysets WHERE subject = ?`, r.ann.id))
		roots, err := vault.ReadRoots(ring)
		must(t, err)
		for _, root := range []string{roots.Current(), roots.Previous()} {
			_, err := backup.Exec(ctx, `UPDATE keysets SET root_id = ?`, root)
			must(t, err)
			_, err = backup.Exec(ctx, `DELETE FROM installation_keys`)
			must(t, err)
			if err := opens(ring); !errors.Is(err, vault.ErrCorrupt) {
				t.Errorf("under the name of %s: %v", root, err)
			}
		}

		r.replays(t, main, "")
	})
}

// Roots that nobody rotates keep backups open: everybody is told.
func TestPromise_P2_RootsThatAreNotRotatedAreTold(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		told := func(want bool) {
			t.Helper()
			st, err := h.privacy.Measure(ctx)
			must(t, err)
			if broken := slices.ContainsFunc(st.Broken, func(p privacy.Promise) bool { return p.Code == "roots_rotated" }); broken != want {
				t.Errorf("the promise is broken: %v", broken)
			}
		}
		h.clock.Advance(vault.RotateLate)
		told(false)
		if age := h.figure("zimage_root_age_seconds"); age != (16 * day).Seconds() {
			t.Errorf("the figure tells %v", age)
		}
		h.clock.Advance(time.Second)
		told(true)
		_, err := h.vault.Rotate(ctx, vault.RotateOptions{})
		must(t, err)
		told(false)
	})
}

// A receipt says when backups open something of the account after its deadline.
func TestPromise_R2_AReceiptSaysThatBackupsAreBehindTheDeadline(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		held := true
		h.privacy.EndAt(func(step string, phase privacy.Phase) error {
			if held && step == "key_destroyed" && phase == privacy.Before {
				return errors.New("not yet")
			}
			return nil
		})
		for _, days := range []int{0, 15} {
			behind := days > 0
			p := h.newcomer(fmt.Sprintf("ann%d", days))
			id, secret := h.close(p)
			if held = true; h.erase(id) == nil {
				t.Fatal("it is complete")
			}
			h.clock.Advance(time.Duration(days) * day)
			_, err := h.vault.Rotate(t.Context(), vault.RotateOptions{})
			must(t, err)
			held = false
			must(t, h.erase(id))
			r := h.receipt(id, secret)
			if r.Key.BehindDeadline != behind || r.Key.UnrecoverableAt.After(r.DueAt) != behind || strings.Contains(r.String(), "behind the deadline") != behind {
				t.Errorf("after %d days: %+v, due %s", days, r.Key, r.DueAt)
			}
		}
	})
}

// What a hold keeps of an erased person is there again when the main database is
// restored from before the erasure, and even from before the hold: it opens, the receipt
// tells of it, and it goes with the hold.
func TestPromise_R8_WhatAHoldKeepsOutlivesARestore(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		images := h.paint(p, 2)
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, images[0]))
		unheld := h.backup()
		hold, err := h.place(p.id, "generations", generation)
		must(t, err)
		held := h.backup()
		id, secret := h.close(p)
		must(t, h.erase(id))
		type kept struct {
			ID    string `db:"id"`
			Table string `db:"table_name"`
			Row   string `db:"row_id"`
		}
		whole := func() (all []kept) {
			t.Helper()
			h.erased(p, "main/holds", "main/erasure_exceptions", "main/generations", "main/images", "objects/held/")
			must(t, h.db.Select(ctx, &all, `SELECT id, table_name, row_id FROM erasure_exceptions WHERE subject = ? AND resealed_at > 0 AND ended_at = 0 ORDER BY table_name`, p.id))
			if len(all) != 2 || all[0].Row != generation || all[1].Row != images[0] {
				t.Fatalf("exceptions: %+v", all)
			}
			var request []byte
			must(t, h.db.Get(ctx, &request, `SELECT request FROM generations WHERE id = ?`, generation))
			plain, err := h.vault.Unseal(ctx, all[0].ID, request, vault.Column("generations", "request", generation))
			if err != nil || !strings.Contains(string(plain), mark) {
				t.Errorf("the generation says %q, %v", plain, err)
			}
			if there, readable := h.kept(p.id, images[0]); !there || !readable {
				t.Errorf("its image is there: %v, readable: %v", there, readable)
			}
			if n := h.count(`SELECT count(*) FROM generations WHERE owner = ?`, p.id) + h.count(`SELECT count(*) FROM images WHERE owner = ?`, p.id); n != 2 {
				t.Errorf("%d rows are there", n)
			}
			list, err := h.privacy.Holds(ctx, privacy.HoldsOpen, p.id, "", 10)
			if err != nil || len(list) != 1 || list[0].ID != hold.ID || list[0].Case != hold.Case || !list[0].ReviewAt.Equal(hold.ReviewAt) {
				t.Errorf("the holds are %+v, %v", list, err)
			}
			n := 0
			for _, x := range h.receipt(id, secret).Exceptions {
				if x.Since != nil && x.EndedAt == nil {
					n++
				}
			}
			if n != 2 {
				t.Errorf("the receipt tells of %d", n)
			}
			return all
		}
		first := whole()
		for _, address := range []string{held, unheld} {
			h.reopen(address, "")
			for range 2 { // again changes nothing
				done, err := h.privacy.Replay(ctx)
				if err != nil || done.Erased+done.Open != 1 {
					t.Fatalf("%+v, %v", done, err)
				}
				must(t, h.erase(id))
				if now := whole(); !slices.Equal(now, first) {
					t.Errorf("they were %+v and are %+v", first, now)
				}
			}
		}
		h.frees(p, hold)
		for _, x := range first {
			if _, err := h.vault.Seal(ctx, x.ID, nil, nil); !errors.Is(err, vault.ErrDestroyed) {
				t.Errorf("the key of %s: %v", x.Table, err)
			}
		}
		if n := len(h.objects("held/")); n > 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

// Both databases restored from before the erasure of somebody under a hold: the hold keeps
// what the backup has, and nothing is left that nobody can open.
func TestPromise_R8_AHoldAfterBothDatabasesWereRestored(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		image := h.paint(p, 2)[0]
		hold, err := h.place(p.id, "images", image)
		must(t, err)
		main, keys := h.backups()
		id, _ := h.close(p)
		must(t, h.erase(id))
		before := h.objects("held/")
		must(t, h.privacy.Look(ctx, false))
		h.reopen(main, keys)
		done, err := h.privacy.Replay(ctx)
		if err != nil || done.Erased+done.Open != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		must(t, h.erase(id))
		h.erased(p, "main/holds", "main/erasure_exceptions", "main/images")
		if n := h.count(`SELECT count(*) FROM images WHERE owner = ? AND id = ?`, p.id, image); n != 1 || len(before) != 2 {
			t.Errorf("%d rows are held, and %d objects were", n, len(before))
		}
		h.frees(p, hold)
	})
}

// The main database restored from the middle of an erasure, before what the hold keeps had
// its own key or before that was done with: the erasure goes on by itself, and has it again.
func TestPromise_R8_WhatAHoldKeepsOutlivesARestoreFromTheMiddle(t *testing.T) {
	for _, made := range []bool{false, true} { // the exception, in the backup
		t.Run(fmt.Sprint("made ", made), func(t *testing.T) {
			bothDatabases(t, func(t *testing.T, h *home) {
				ctx := t.Context()
				p := h.newcomer("ann")
				image := h.paint(p, 2)[0]
				hold, err := h.place(p.id, "images", image)
				must(t, err)
				id, _ := h.close(p)
				held := true
				h.away.full(made)
				h.privacy.EndAt(func(step string, phase privacy.Phase) error {
					if held && !made && step == "holds_kept" && phase == privacy.Before {
						return errors.New("not yet")
					}
					return nil
				})
				if h.erase(id) == nil {
					t.Fatal("it is complete")
				}
				if n := h.count(`SELECT count(*) FROM erasure_exceptions WHERE subject = ? AND resealed_at = 0`, p.id); (n == 1) != made {
					t.Fatalf("%d exceptions are in the backup", n)
				}
				backup := h.backup()
				held = false
				h.away.full(false)
				must(t, h.erase(id))
				var first string
				must(t, h.db.Get(ctx, &first, `SELECT id FROM erasure_exceptions WHERE subject = ?`, p.id))

				h.reopen(backup, "")
				if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
					t.Fatalf("%d are to be replayed, %v: this test is of what goes on by itself", n, err)
				}
				if owned, err := h.privacy.Owned(ctx, []string{first, "exc_x"}); err != nil || !owned[first] || owned["exc_x"] {
					t.Errorf("owned: %v, %v", owned, err)
				}
				must(t, h.erase(id))
				h.erased(p, "main/holds", "main/erasure_exceptions", "main/images", "objects/held/")
				if there, readable := h.kept(p.id, image); !there || !readable {
					t.Errorf("with the exception in the backup %v: it is there: %v, readable: %v", made, there, readable)
				}
				must(t, h.privacy.ReleaseHold(ctx, h.machine(), hold.ID))
				h.clock.Advance(time.Second)
				must(t, h.erase(id))
				h.erased(p, "main/erasure_exceptions")
			})
		})
	}
}

// Holds that are placed on what another one keeps of an erased person, and released, are as
// they were after a restore from before: what is still held goes with the last one.
func TestPromise_R8_HoldsPlacedAfterTheErasureOutliveARestore(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		image := h.paint(p, 1)[0]
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		first, err := h.place(p.id, "generations", generation)
		must(t, err)
		before := h.backup()
		id, _ := h.close(p)
		must(t, h.erase(id))
		between := h.backup()
		second, err := h.place(p.id, "generations", generation)
		must(t, err)
		last := h.backup() // no job has run
		must(t, h.privacy.ReleaseHold(ctx, h.machine(), first.ID))
		must(t, h.privacy.CopyHeld(ctx, first.ID))

		for _, address := range []string{before, between, last} {
			h.reopen(address, "")
			must(t, h.privacy.CopyHeld(ctx, "")) // of what the database lacks, it forgets nothing
			done, err := h.privacy.Replay(ctx)
			if err != nil || done.Erased+done.Open != 1 {
				t.Fatalf("%+v, %v", done, err)
			}
			must(t, h.erase(id))
			must(t, h.privacy.Look(ctx, false))
			list, err := h.privacy.Holds(ctx, privacy.HoldsOpen, p.id, "", 10)
			if err != nil || len(list) != 1 || list[0].ID != second.ID || list[0].Case != second.Case {
				t.Errorf("the holds are %+v, %v", list, err)
			}
			if there, readable := h.kept(p.id, image); !there || !readable {
				t.Errorf("the image is there: %v, readable: %v", there, readable)
			}
		}
		must(t, h.privacy.ReleaseHold(ctx, h.machine(), second.ID))
		h.clock.Advance(time.Second)
		must(t, h.erase(id))
		h.erased(p, "main/erasure_exceptions")
	})
}

// notes says whether what lies beside the keys of all that holds keep names a case.
func (h *home) notes(named string) (some, all bool) {
	h.t.Helper()
	ctx := h.t.Context()
	var rows []struct {
		ID     string `db:"id"`
		Record []byte `db:"record"`
	}
	must(h.t, h.keys.Select(ctx, &rows, `SELECT id, record FROM held_records`))
	all = len(rows) > 0
	for _, r := range rows {
		text, err := h.vault.Unseal(ctx, r.ID, r.Record, vault.Column("held_records", "record", r.ID))
		must(h.t, err)
		has := strings.Contains(string(text), named)
		some, all = some || has, all && has
	}
	return some, all
}

// The main database is restored from between the erasure and a second hold, which knows the
// erasure and is not replayed: the release of the first takes nothing that the second keeps.
func TestPromise_R8_AReleaseKnowsTheHoldsThatARestoreForgot(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		image := h.paint(p, 1)[0]
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		first, err := h.place(p.id, "generations", generation)
		must(t, err)
		id, _ := h.close(p)
		must(t, h.erase(id))
		between := h.backup()
		second, err := h.place(p.id, "generations", generation)
		must(t, err)
		h.reopen(between, "")
		if n, err := h.privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Fatalf("%d are to be replayed, %v: this test is of what goes on by itself", n, err)
		}
		released := func(hold string) {
			t.Helper()
			must(t, h.privacy.ReleaseHold(ctx, h.machine(), hold))
			h.clock.Advance(time.Second)
			must(t, h.privacy.Look(ctx, false))
			for _, ref := range h.queued() {
				must(t, h.erase(ref))
			}
		}
		released(first.ID)
		list, err := h.privacy.Holds(ctx, privacy.HoldsOpen, p.id, "", 10)
		if err != nil || len(list) != 1 || list[0].ID != second.ID || list[0].Case != second.Case {
			t.Errorf("the holds are %+v, %v", list, err)
		}
		if there, readable := h.kept(p.id, image); !there || !readable {
			t.Errorf("the image is there: %v, readable: %v", there, readable)
		}
		released(second.ID)
		h.erased(p, "main/erasure_exceptions")
	})
}

// A hold that is refused in the end is noted nowhere, and keeps nothing.
func TestAHoldThatIsNotPlacedIsNotNoted(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		image := h.paint(p, 1)[0]
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		first, err := h.place(p.id, "generations", generation)
		must(t, err)
		id, _ := h.close(p)
		must(t, h.erase(id))
		refused := errors.New("no")
		noted := false
		by := func(ctx context.Context, do func(tx *db.Tx) (events.Event, error)) error {
			return h.machine()(ctx, func(tx *db.Tx) (events.Event, error) {
				what, err := do(tx)
				must(t, err)
				_, noted = h.notes("case 9")
				return what, refused
			})
		}
		_, err = h.privacy.PlaceHold(ctx, by, privacy.Hold{Subject: p.id, Table: "generations", Record: generation, Case: "case 9"})
		if !errors.Is(err, refused) || !noted {
			t.Fatalf("%v; noted before it is placed: %v", err, noted)
		}
		if some, _ := h.notes("case 9"); some {
			t.Error("what was refused is noted")
		}
		if _, all := h.notes(first.Case); !all {
			t.Error("the hold before is noted no more")
		}
		must(t, h.privacy.ReleaseHold(ctx, h.machine(), first.ID))
		h.clock.Advance(time.Second)
		must(t, h.erase(id))
		h.erased(p, "main/erasure_exceptions")
	})
}
