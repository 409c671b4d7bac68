package webhook

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

// The public libraries take what was signed within five minutes of now, and no call of
// ten minutes before or after.
func TestTheLibrariesRefuseCallsOfAnotherTime(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		const apart = 10 * time.Minute
		r.clock.Advance(time.Now().Add(-apart).Sub(r.clock.Now()))
		r.work(Slots, SlotsPerEndpoint)
		receivers := map[string]Endpoint{"Go": r.inGo(), "JavaScript": r.inJavaScript()}
		test := func(want int) {
			t.Helper()
			r.clock.Advance(time.Millisecond) // ids sort by their time
			for in, e := range receivers {
				_, err := r.service.SendTest(context.Background(), "sub_ada", e.ID)
				r.must(err)
				var last Delivery
				r.until("an answer in "+in, func() bool {
					last = r.deliveries(e.ID)[0]
					return len(last.Attempts) == 1
				})
				if got := last.Attempts[0].Status; got != want {
					t.Errorf("in %s it answers %d, want %d: %s", in, got, want, last.Attempts[0].Error)
				}
			}
		}
		test(http.StatusUnauthorized)
		r.clock.Advance(apart)
		test(http.StatusNoContent)
		r.clock.Advance(apart)
		test(http.StatusUnauthorized)
	})
}

// inGo is an endpoint that verifies by the library for Go.
func (r *rig) inGo() Endpoint {
	r.t.Helper()
	var webhook *standardwebhooks.Webhook
	v := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil || webhook.Verify(body, q.Header) != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	r.t.Cleanup(v.Close)
	e, secret := r.endpoint(v.URL)
	var err error
	webhook, err = standardwebhooks.NewWebhook(secret)
	r.must(err)
	return e
}

// inJavaScript is one that runs the example, which verifies by the npm package.
func (r *rig) inJavaScript() Endpoint {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	address := l.Addr().String()
	_, port, err := net.SplitHostPort(address)
	r.must(err)
	r.must(l.Close())
	e, secret := r.endpoint("http://" + address)
	cmd := testenv.Node(r.t, "webhook.mjs", port)
	cmd.Env = append(cmd.Env, "WEBHOOK_SECRET="+secret)
	out, err := cmd.StdoutPipe()
	r.must(err)
	r.must(cmd.Start())
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "listening on http://"+address+"\n" {
		r.t.Fatalf("it said %q, %v", line, err)
	}
	return e
}
