package privacy_test

import (
	"strings"
	"testing"
	"time"

	"zimage/internal/privacy"
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
