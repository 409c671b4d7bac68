package webhook

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/testenv"
)

// Whoever goes on behind the last event that was listed misses none: not one whose
// transaction was the first to tell of something and the last to be committed, nor one of
// a machine whose clock is behind.
func TestNobodyWhoCatchesUpMissesAnEvent(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, r := context.Background(), newRig(t, d)
		r.endpoint("https://example.org/", "export.ready")
		tell := func(ref string, before func()) error {
			return d.Tx(ctx, func(tx *db.Tx) error {
				tx.AtLast("till the commit", func() error { before(); return nil }) // behind all that the room does at last
				return r.events.Append(ctx, tx, events.Event{Type: events.GenerationSucceeded, Subject: "sub_ada", Ref: ref, At: r.clock.Now()})
			})
		}
		told, hold := make(chan struct{}), make(chan struct{})
		var work sync.WaitGroup
		work.Go(func() {
			if err := tell("gen_held", func() { close(told); <-hold }); err != nil {
				t.Error(err)
			}
		})
		<-told
		for i := range 5 {
			work.Go(func() {
				if err := tell(fmt.Sprint("gen_", i), func() {}); err != nil {
					t.Error(err)
				}
			})
		}
		let := time.AfterFunc(300*time.Millisecond, func() { close(hold) })
		defer let.Stop()
		var read []string
		after := ""
		r.until("all is read", func() bool {
			written := r.count(`SELECT count(*) FROM webhook_events`) // before the look
			list, err := r.service.Events(ctx, "sub_ada", after, 2)
			r.must(err)
			for _, e := range list[:min(len(list), 2)] {
				read, after = append(read, e.Ref), e.ID
			}
			return written == 6 && len(list) == 0
		})
		work.Wait()
		if slices.Sort(read); !slices.Equal(read, []string{"gen_0", "gen_1", "gen_2", "gen_3", "gen_4", "gen_held"}) {
			t.Errorf("read were %v", read)
		}
		if _, err := d.Exec(ctx, `UPDATE webhook_events SET id = ? WHERE id = ?`, db.NewID("evt", r.clock.Now().Add(time.Hour)), after); err != nil {
			t.Fatal(err)
		}
		list, err := r.service.Events(ctx, "sub_ada", "", 10)
		r.must(err)
		r.succeeds("gen_late")
		if next, err := r.service.Events(ctx, "sub_ada", list[5].ID, 10); err != nil || len(next) != 1 || next[0].Ref != "gen_late" {
			t.Errorf("%+v, %v", next, err)
		}
	})
}
