package webhook

import (
	"context"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

// Of an image that will be deleted by itself those are told who asked for it, once.
func TestAnImageThatEndsIsToldOfOnce(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx, v, silent := context.Background(), receive(t, nil), receive(t, nil)
		r.endpoint(v.URL, string(events.ImageExpiring))
		_, _, err := r.service.Create(ctx, "sub_ben", Change{URL: &silent.URL, Events: &[]string{"export.ready"}})
		r.must(err)
		r.looksForEnds("img_1", "img_2", "img_3")
		r.looksForEnds("img_4")
		r.until("all are told", func() bool {
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 4
		})
		if n := r.count(`SELECT count(*) FROM webhook_events`); n != 4 || len(v.got()) != 4 || len(silent.got()) != 0 {
			t.Errorf("%d events, %d and %d calls", n, len(v.got()), len(silent.got()))
		}
		all := ""
		for _, c := range v.got() {
			all += c.body + "\n"
		}
		// The rig's generations have one image, img_1.
		if !strings.Contains(all, `"data":{"id":"img_1","generation_id":"gen_of_sub_ada","url":"https://zimage.example/v1/images/img_1/content","expires_at":"2031-03-03T12:00:00Z"}`) ||
			!strings.Contains(all, `"data":{"id":"img_2","generation_id":"gen_of_sub_ada","code":"data_removed"}`) || strings.Contains(all, prompt) {
			t.Error(all)
		}
	})
}

// Where events are kept for less than the time before the end, an image is told of once
// all the same, while it is there.
func TestAnImageThatEndsIsToldOfOnceHoweverShortEventsAreKept(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.service.Kept = func(now time.Time) time.Time { return now.AddDate(0, 0, -3) }
		r.work(Slots, SlotsPerEndpoint)
		v := receive(t, nil)
		r.endpoint(v.URL, string(events.ImageExpiring))
		r.looksForEnds("img_1")
		for r.clock.Now().Before(r.endAt.Add(24 * time.Hour)) {
			r.clock.Advance(6 * time.Hour)
			_, err := r.db.Exec(context.Background(), `DELETE FROM webhook_events WHERE at <= ?`, r.service.Kept(r.clock.Now()).UnixMilli())
			r.must(err)
			r.looksForEnds()
		}
		r.until("it is told", func() bool { return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state <> 'delivered'`) == 0 })
		if calls := v.got(); len(calls) != 1 {
			t.Errorf("it was told %d times", len(calls))
		}
	})
}

// looksForEnds adds images that end, and has the schedule's job look for such.
func (r *rig) looksForEnds(images ...string) {
	r.t.Helper()
	r.mu.Lock()
	for _, id := range images {
		r.ends = append(r.ends, Image{ID: id})
	}
	r.mu.Unlock()
	r.tx(func(tx *db.Tx) error {
		_, err := r.queue.Add(context.Background(), tx, jobs.NewJob{Kind: KindExpiring, Ref: "webhook-expiring"})
		return err
	})
	r.until("it was looked", func() bool {
		return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state <> 'succeeded'`, KindExpiring) == 0
	})
}
