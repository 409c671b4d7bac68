package webhook

import (
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

// BenchmarkDeliveries compares what a worker with its usual slots delivers to four
// receivers, two of each of two people, with its floor: signed POSTs of the same body,
// over as many connections to each, without a queue, a look-up or a record.
func BenchmarkDeliveries(b *testing.B) {
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		b.Run(string(dialect), func(b *testing.B) {
			d, _ := testenv.Database(b, dialect)
			r := newRig(b, d)
			var arrived atomic.Int64
			var urls []string
			var receivers []*receiver
			var secret string
			owners := []string{"sub_ada", "sub_ben"}
			for i := range Slots / SlotsPerEndpoint {
				v := receive(b, func(w http.ResponseWriter, _ int) {
					arrived.Add(1)
					w.WriteHeader(http.StatusNoContent)
				})
				urls, receivers = append(urls, v.URL), append(receivers, v)
				var err error
				_, secret, err = r.service.Create(context.Background(), owners[i%len(owners)], Change{URL: &v.URL})
				r.must(err)
			}
			each := len(urls) / len(owners) // deliveries of an event
			const atOnce = 100
			for n := (b.N + each - 1) / each; n > 0; n -= atOnce {
				r.tx(func(tx *db.Tx) error {
					for i := range min(atOnce, n) {
						if err := r.events.Append(context.Background(), tx, events.Event{Type: events.GenerationSucceeded, Subject: owners[i%len(owners)],
							Ref: fmt.Sprint("gen_", n, "_", i), Sequence: 4, At: r.clock.Now()}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			n := r.count(`SELECT count(*) FROM webhook_deliveries`)
			b.ResetTimer()
			began := time.Now()
			stop := r.work(Slots, SlotsPerEndpoint)
			r.until("all is told", func() bool {
				return arrived.Load() >= int64(n) && r.count(`SELECT count(*) FROM webhook_deliveries WHERE state <> 'delivered'`) == 0
			})
			took := time.Since(began)
			b.StopTimer()
			stop()
			floor := postAll(b, urls, secret, receivers[0].got()[0].body, n)
			b.ReportMetric(float64(n)/took.Seconds(), "deliveries/s")
			b.ReportMetric(float64(n)/floor.Seconds(), "posts/s")
			b.ReportMetric(took.Seconds()/floor.Seconds(), "x-floor")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// postAll signs and posts a body n times over as many connections to each receiver as
// a worker has.
func postAll(b *testing.B, urls []string, secret, body string, n int) time.Duration {
	b.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, secretPrefix))
	if err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: SlotsPerEndpoint}}
	defer client.CloseIdleConnections()
	var left atomic.Int64
	left.Store(int64(n))
	began := time.Now()
	var posting sync.WaitGroup
	for i := range Slots {
		url := urls[i%len(urls)]
		posting.Go(func() {
			for left.Add(-1) >= 0 {
				mac := hmac.New(sha256.New, key)
				_, _ = fmt.Fprintf(mac, "evt_x.%d.%s", time.Now().Unix(), body)
				req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
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
