//go:build !race

// With the race detector it takes minutes: `make test` runs it without.

package privacy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

// TestDoomedWorker is the other process of the next test, and nothing by itself.
func TestDoomedWorker(t *testing.T) {
	d := doomedTo(t)
	if d == nil {
		return
	}
	wrapped := &doomed{doom: d}
	p, err := open(t.Context(), d.At, setup{wrap: func(s objects.Store) objects.Store { wrapped.Store = s; return wrapped }, post: wrapped}, doomName)
	must(t, err)
	p.work(t.Error)
	time.Sleep(time.Minute)
	t.Fatal("the step never came")
}

// A process that is killed at any moment costs an attempt, or none behind the last: there
// is one archive in the end, whole, one mail that tells of it, and nothing else.
func TestAProcessKilledCostsAnExportNothing(t *testing.T) {
	on(t, every, func(t *testing.T, s privacy.Stack) {
		server := &post{accepted: map[string]int{}}
		r := newRig(t, s, setup{idle: true, post: server})
		ada := r.plant("ada")
		big := make([]byte, 9<<20) // parts go to S3 before the end
		for range 4 {
			r.generated(ada.owner, `{}`, big)
		}
		ready := statement{"mails", "INSERT", "NEW.template = 'export-ready'"}
		steps := []string{"begin", "picture 1", "picture 4", "stored", ready.step(), "mail"}
		if s.Versioned { // what a bucket has to do with
			steps = []string{"picture 4", "stored"}
		}
		for _, step := range steps {
			r.clock.Advance(24 * time.Hour)
			e := r.ask(ada.owner)
			r.at.Now = r.clock.Now()
			undo := func() {}
			if step == ready.step() {
				undo = ready.set(t, r.db)
			}
			_, err := r.db.Exec(t.Context(), `UPDATE mails SET accepted_at = 1, address = NULL, data = NULL WHERE template = 'export-asked'`)
			r.must(err) // not what the process is killed at
			killed(t, "TestDoomedWorker", doom{At: r.at, Step: step})
			left(t, r.db)
			undo()
			attempt, state, ended := 2, jobs.Running, 0
			if step == "mail" { // behind the row that says that it is ready
				attempt, state, ended = 1, jobs.Succeeded, 1
			}
			if n := r.count(`SELECT attempt FROM jobs WHERE ref = ? AND state = ?`, e.ID, state); n != 1 {
				t.Fatalf("%s: attempt %d", step, n)
			}
			if n := r.count(`SELECT count(*) FROM exports WHERE id = ? AND status = 'ready'`, e.ID); n != ended {
				t.Fatalf("%s: %d are ready", step, n)
			}
			r.mend(2 * jobs.Lease)
			stop := r.work(t.Error)
			e = r.ended(e, ada.owner, privacy.ExportReady)
			unpack(t, r.fetch(e, ada.owner))
			r.mend(2 * jobs.Lease) // the sweep of what the first has left
			testenv.Eventually(t, 30*time.Second, func() bool {
				return r.count(`SELECT count(*) FROM exports WHERE unswept = 1 AND id = ?`, e.ID)+r.count(`SELECT count(*) FROM mails WHERE template = 'export-ready' AND accepted_at IS NULL`) == 0
			})
			var left []string
			for _, key := range r.archives() {
				if strings.Contains(key, e.ID) {
					left = append(left, key)
				}
			}
			if len(left) != 1 || !strings.HasSuffix(left[0], fmt.Sprintf("/%d.zip", attempt)) {
				t.Errorf("%s: left %v", step, left)
			}
			if parts := r.at.Unfinished(t, "exports/"+ada.owner+"/"+e.ID+"/1.zip"); parts > 0 {
				t.Errorf("%s: %d uploads are unfinished", step, parts)
			}
			stop()
		}
		var ids []string
		r.must(r.db.Select(t.Context(), &ids, `SELECT id FROM mails WHERE template = 'export-ready'`))
		told := server.all()
		for _, id := range ids {
			if told[id] != 1 {
				t.Errorf("the mail %s was accepted %d times", id, told[id])
			}
		}
		if len(ids) != len(steps) {
			t.Errorf("%d mails for %d exports", len(ids), len(steps))
		}
	})
}
