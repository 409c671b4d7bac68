package privacy_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/generate"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

// A database whose clock steps by weeks would end all windows at once: nothing is
// deleted until it is known what time it is, and everybody is told.
func TestPromise_R3_AClockThatIsWrongDeletesNothing(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann, ben := h.newcomer("ann"), h.newcomer("ben")
		image := h.paint(ann, 2)[0]
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, image))
		must(t, h.privacy.Journal(ctx, "generations", []string{"gen_old"}))
		id, _ := h.close(ben)
		h.privacy.EndAt(func(step string, phase privacy.Phase) error {
			if step == "verified" && phase == privacy.Before {
				return errors.New("not yet")
			}
			return nil
		})
		if h.erase(id) == nil {
			t.Fatal("the erasure has ended")
		}
		h.privacy.EndAt(func(string, privacy.Phase) error { return nil })
		lines := func() (n int) {
			must(t, h.keys.Get(ctx, &n, `SELECT count(*) FROM erasure_journal WHERE id = 'gen_old'`))
			return n
		}
		told := func(want bool) {
			t.Helper()
			st, err := h.privacy.Measure(ctx)
			must(t, err)
			if broken := slices.ContainsFunc(st.Broken, func(p privacy.Promise) bool { return p.Code == "clock_plausible" }); broken != want {
				t.Errorf("the promise is broken: %v", broken)
			}
		}
		told(false)

		h.clock.Advance(100 * day)
		h.clock.SetApart(100 * day)
		if ways := h.readable(ann, image, generation); len(ways) > 0 {
			t.Errorf("what has expired by that clock can be read by %v", ways)
		}
		if _, err := h.privacy.Purge(ctx, "generations"); err == nil {
			t.Error("a purge says that it is done")
		}
		if _, err := h.privacy.Compare(ctx); err == nil {
			t.Error("a comparison says that it is done")
		}
		must(t, h.queue.NewScheduler(slices.Concat(privacy.Schedules(), generate.Schedules())...).Tick(ctx))
		stop := h.work()
		testenv.Eventually(t, 30*time.Second, func() bool {
			return h.count(`SELECT count(*) FROM jobs WHERE kind IN ('retention:purge', 'retention:compare') AND attempt > 0 AND state IN ('queued', 'waiting')`) == 2
		})
		stop()
		if h.erase(id) == nil {
			t.Error("the erasure has ended")
		}
		list, err := h.privacy.Erasures(ctx, false, "", 10)
		if err != nil || len(list) != 1 || list[0].Failure != "clock_implausible" {
			t.Errorf("%+v, %v", list, err)
		}
		must(t, h.privacy.Look(ctx, true))
		if n, rows := len(h.objects("images/"+ann.id+"/")), h.count(`SELECT count(*) FROM images WHERE removed_at = 0 AND sha256 IS NOT NULL`); n != 4 || rows != 2 || lines() != 1 {
			t.Errorf("%d objects, %d rows and %d lines are left, want 4, 2 and 1", n, rows, lines())
		}
		told(true)
		if n := h.figure("zimage_clock_apart_seconds"); n != (100 * day).Seconds() {
			t.Errorf("the figure tells %v", n)
		}
		if n := strings.Count(h.log.String(), "nothing is deleted because of a time\" apart="); n != 1 {
			t.Errorf("the log tells it %d times", n)
		}

		// It was right all the same: everything goes on.
		h.clock.SetApart(-time.Hour)
		h.clock.Advance(time.Hour)
		told(false)
		must(t, h.erase(id))
		stop = h.work()
		h.schedule()
		h.clock.Advance(time.Hour)
		h.schedule()
		stop()
		must(t, h.privacy.Look(ctx, false))
		if n, rows := len(h.objects("images/")), h.count(`SELECT count(*) FROM images WHERE removed_at = 0`); n != 0 || rows != 0 || lines() != 0 {
			t.Errorf("%d objects, %d rows and %d lines are left", n, rows, lines())
		}
	})
}

// Neither does anything happen to a request because of a time that nobody knows.
func TestPromise_R3_AClockThatIsWrongDoesNothingToRequests(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ann := h.newcomer("ann")
		h.guard(ann)
		waits, closed := h.wrote(ann.email, privacy.RequestErasure), h.wrote("nobody@example.org", privacy.RequestAccess)
		unconfirmed, _ := h.asked("else@example.org", privacy.RequestAccess)
		states := func() string {
			var list []string
			for _, r := range []privacy.Request{waits, closed, unconfirmed} {
				var one string
				must(t, h.db.Get(ctx, &one, `SELECT state || ' ' || (CASE WHEN ref = '' THEN 'idle' ELSE 'begun' END) || ' ' || (CASE WHEN address IS NULL THEN 'wiped' ELSE 'said' END) FROM requests WHERE id = ?`, r.ID))
				list = append(list, one)
			}
			return strings.Join(list, ", ")
		}
		before := states()
		h.clock.Advance(100 * day)
		h.clock.SetApart(100 * day)
		must(t, h.privacy.Look(ctx, false))
		if got := states(); got != before || got != "open idle wiped, closed idle said, unconfirmed idle said" {
			t.Errorf("the requests are %s, they were %s", got, before)
		}
		if n := h.figure("zimage_requests_overdue"); n != 2 {
			t.Errorf("%v are measured as overdue, want 2", n)
		}
		h.clock.SetApart(0)
		must(t, h.privacy.Look(ctx, false))
		if got := states(); got != "open begun wiped, closed idle wiped, closed idle said" {
			t.Errorf("afterwards the requests are %s", got)
		}
	})
}

// An archive has its time by a clock that is right. What its owner deletes goes at once.
func TestPromise_R3_AClockThatIsWrongKeepsArchives(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		kept, _ := r.exported(ada.owner)
		r.clock.Advance(time.Hour)
		deleted, _ := r.exported(ada.owner)
		if n := len(r.archives()); n != 2 {
			t.Fatalf("%d archives", n)
		}
		r.must(r.service.DeleteExport(t.Context(), ada.owner, deleted.ID))
		r.clock.Advance(100 * day)
		r.clock.SetApart(100 * day)
		r.swept()
		if list := r.archives(); len(list) != 1 || !strings.Contains(list[0], kept.ID) {
			t.Errorf("%v are left", list)
		}
		r.clock.SetApart(0)
		r.swept()
		if list := r.archives(); len(list) != 0 || r.count(`SELECT count(*) FROM exports`) != 0 {
			t.Errorf("%v are left", list)
		}
	})
}

// What was deleted by a clock that was far behind stays in the journal, and in its mirror,
// as long as backups from before live.
func TestPromise_R7_AClockThatIsBehindShortensNoJournal(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.newcomer("ann")
		h.clock.Advance(-100 * day)
		h.clock.SetApart(-100 * day)
		must(t, h.privacy.Journal(ctx, "images", []string{"img_deleted"}))
		id, _ := h.close(ann)
		if h.erase(id) == nil {
			t.Error("the erasure has ended")
		}
		must(t, h.privacy.Look(ctx, false))
		h.clock.Advance(100 * day)
		h.clock.SetApart(0)
		must(t, h.erase(id))
		lines := func() (n int) {
			must(t, h.privacy.Look(ctx, false))
			must(t, h.keys.Get(ctx, &n, `SELECT count(*) FROM erasure_journal WHERE id IN (?, 'img_deleted')`, ann.id))
			return n
		}
		if lines() != 2 {
			t.Errorf("%d lines are left, want 2", lines())
		}
		// Both databases from before: the mirror has them still.
		_, err := h.keys.Exec(ctx, `DELETE FROM erasure_journal`)
		must(t, err)
		if _, err := h.privacy.Unreplayed(ctx); err != nil || lines() != 2 {
			t.Errorf("%d lines are taken in, want 2 (%v)", lines(), err)
		}
		h.clock.Advance(60 * day)
		if lines() != 0 {
			t.Errorf("%d lines are left, want none", lines())
		}
	})
}
