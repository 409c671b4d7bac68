package webhook

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"zimage/internal/events"
)

// The mail says which host and why, and nothing else of an address, which may hold a
// secret.
func TestTheMailOfADisabledWebhookNamesItsHostAlone(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		gone, failing := receive(t, status(http.StatusGone)), receive(t, status(http.StatusInternalServerError))
		for url, told := range map[string]string{gone.URL: "generation.failed", failing.URL: "generation.succeeded"} {
			r.endpoint(url+"/hooks/of-ada?token=s3cret", told)
		}
		said := func(n int, want string) {
			t.Helper()
			r.until("a mail", func() bool { return len(r.mailed()) == n })
			m := r.mailed()[n-1]
			if m["host"] != "127.0.0.1" || m["why"] != want {
				t.Errorf("%v, want %s", m, want)
			}
			for key, value := range m {
				if strings.Contains(value, "of-ada") || strings.Contains(value, "s3cret") || strings.Contains(value, "http") {
					t.Errorf("%s is %s", key, value)
				}
			}
		}
		r.happens(events.Event{Type: events.GenerationFailed, Ref: "gen_1", Sequence: 4})
		said(1, whyDisabled[Gone])
		r.succeeds("gen_2")
		r.until("a failure", func() bool { return r.count(`SELECT count(*) FROM webhook_attempts WHERE status = 500`) > 0 })
		for gen := range patience - 1 {
			r.succeeds(fmt.Sprint("gen_again_", gen))
		}
		r.until("failures", func() bool { return r.count(`SELECT count(*) FROM webhook_attempts WHERE status = 500`) >= patience })
		r.idle()
		r.pass(5*24*time.Hour + time.Minute)
		said(2, whyDisabled[Failing])
	})
}
