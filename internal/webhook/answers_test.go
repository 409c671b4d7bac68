package webhook

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Of what a receiver answers its status is kept, and nothing else of it, whether it took
// what it was told, refused it, or sends us elsewhere.
func TestWhatAReceiverAnswersIsKeptNowhere(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		const mark = "mark-of-the-receivers-own"
		answers := func(code int) func(http.ResponseWriter, int) {
			return func(w http.ResponseWriter, _ int) {
				w.Header().Set("X-Theirs", mark)
				w.Header().Set("Set-Cookie", "theirs="+mark)
				w.Header().Set("Location", "/"+mark)
				w.Header().Set("Retry-After", mark)
				w.WriteHeader(code)
				_, _ = fmt.Fprintf(w, `{"error":%q}`, mark)
			}
		}
		statuses := []int{200, 302, 410, 429, 500}
		for _, code := range statuses {
			r.endpoint(receive(t, answers(code)).URL)
		}
		r.succeeds("gen_1")
		for _, code := range statuses {
			r.until(fmt.Sprint("an answer ", code), func() bool { return r.count(`SELECT count(*) FROM webhook_attempts WHERE status = ?`, code) > 0 })
		}
		for _, table := range []string{"webhook_endpoints", "webhook_once", "webhook_hosts", "webhook_events", "webhook_deliveries", "webhook_attempts", "jobs"} {
			rows, err := r.db.Maps(context.Background(), "SELECT * FROM "+table)
			r.must(err)
			if strings.Contains(fmt.Sprintf("%s", rows), mark) {
				t.Errorf("%s holds it", table)
			}
		}
		if strings.Contains(r.log.String(), mark) {
			t.Error("the log holds it")
		}
		if strings.Contains(fmt.Sprint(r.mailed()), mark) || len(r.mailed()) == 0 {
			t.Errorf("the owner is told %v", r.mailed())
		}
	})
}
