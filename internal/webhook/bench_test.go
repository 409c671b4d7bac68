package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/testenv"
)

// BenchmarkDeliveries compares deliveries with their floor: a signed POST of the same
// body over as many connections, without a queue, a look-up or a record.
func BenchmarkDeliveries(b *testing.B) {
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		b.Run(string(dialect), func(b *testing.B) {
			var calls atomic.Int64
			v := receive(b, func(w http.ResponseWriter, _ int) {
				calls.Add(1)
				w.WriteHeader(http.StatusNoContent)
			})
			d, _ := testenv.Database(b, dialect)
			r := newRig(b, d)
			e, secret := r.endpoint(v.URL)
			const atOnce = 500
			fill := func(n int) {
				r.tx(func(tx *db.Tx) error {
					for i := range n {
						if err := r.events.Append(context.Background(), tx, events.Event{Type: events.GenerationSucceeded, Subject: "sub_ada",
							Ref: fmt.Sprint("gen_", i), Sequence: 4, At: r.clock.Now()}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			for left := b.N; left > 0; left -= atOnce {
				fill(min(left, atOnce))
			}
			b.ResetTimer()
			began := time.Now()
			stop := r.work(Slots, Slots)
			r.until("all is told", func() bool {
				return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == b.N
			})
			took := time.Since(began)
			b.StopTimer()
			stop()
			if calls.Load() < int64(b.N) || r.look(e.ID).FailingSince != (time.Time{}) {
				b.Fatal("not all was told")
			}
			floor := postAll(b, v.URL, secret, v.got()[0].body, b.N)
			b.ReportMetric(float64(b.N)/took.Seconds(), "deliveries/s")
			b.ReportMetric(float64(b.N)/floor.Seconds(), "posts/s")
			b.ReportMetric(took.Seconds()/floor.Seconds(), "x_floor")
		})
	}
}

// postAll signs and posts a body n times over as many connections as a worker has.
func postAll(b *testing.B, url, secret, body string, n int) time.Duration {
	b.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, secretPrefix))
	if err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: Slots}}
	var left atomic.Int64
	left.Store(int64(n))
	began := time.Now()
	var posting sync.WaitGroup
	for range Slots {
		posting.Go(func() {
			for left.Add(-1) >= 0 {
				mac := hmac.New(sha256.New, key)
				_, _ = fmt.Fprintf(mac, "evt_x.%d.%s", time.Now().UnixNano(), body)
				req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader([]byte(body)))
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
				res, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				_ = res.Body.Close()
			}
		})
	}
	posting.Wait()
	return time.Since(began)
}
