package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/testenv"
)

// BenchmarkDeadReceiver sends 10,000 events to two receivers, 125 in a second, and takes
// how long each was on its way to the healthy one, from its timestamp on: with the
// other one dead, which refuses connections or accepts them without a word, and with
// it healthy too. Half of those come first, half last: what else the machine does then
// shows in how far the two are apart.
func BenchmarkDeadReceiver(b *testing.B) {
	const sent, inSecond = 10_000, 125
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		for name, dead := range map[string]func(testing.TB) string{"refuses": refusingReceiver, "silent": silentReceiver} {
			b.Run(string(dialect)+"/"+name, func(b *testing.B) {
				for range b.N {
					first := onTheWay(b, dialect, receive(b, nil).URL, sent/2, inSecond)
					beside := p99(onTheWay(b, dialect, dead(b), sent, inSecond))
					last := onTheWay(b, dialect, receive(b, nil).URL, sent/2, inSecond)
					well := p99(append(first, last...))
					b.ReportMetric(max(p99(first), p99(last))/min(p99(first), p99(last)), "floor-max/min")
					b.ReportMetric(well, "p99-ms-both-healthy")
					b.ReportMetric(beside, "p99-ms-one-dead")
					b.ReportMetric(beside/well, "ratio")
					b.ReportMetric(1.2, "ratio-at-most")
					b.ReportMetric(0, "ns/op")
				}
			})
		}
	}
}

// p99 is the 99th percentile in milliseconds.
func p99(of []time.Duration) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)*99/100].Seconds() * 1000
}

func refusingReceiver(t testing.TB) string {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	return gone.URL
}

// silentReceiver accepts connections and reads nothing from them.
func silentReceiver(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepted []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted = append(accepted, conn)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, conn := range accepted {
			_ = conn.Close()
		}
	})
	return "http://" + l.Addr().String()
}

// onTheWay sends events at an even pace to a healthy receiver and to another, and
// returns how long they took until they first arrived at the healthy one.
func onTheWay(b *testing.B, dialect db.Dialect, other string, sent, inSecond int) []time.Duration {
	b.Helper()
	d, _ := testenv.Database(b, dialect)
	r := newRig(b, d)
	var mu sync.Mutex
	happened, took := map[string]time.Time{}, map[string]time.Duration{}
	healthy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		at := time.Now()
		var told struct{ Data struct{ ID string } }
		text, err := io.ReadAll(q.Body)
		if err != nil || json.Unmarshal(text, &told) != nil {
			b.Error("what arrives is no event")
		}
		mu.Lock()
		defer mu.Unlock()
		if _, known := took[told.Data.ID]; !known {
			took[told.Data.ID] = at.Sub(happened[told.Data.ID])
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer healthy.Close()
	r.endpoint(healthy.URL)
	r.endpoint(other)

	ctx, stop := context.WithCancel(context.Background())
	var background sync.WaitGroup
	background.Go(func() { _ = r.queue.NewScheduler().Run(ctx) })
	background.Go(func() { // the rig's clock goes with the machine's
		before := time.Now()
		for ctx.Err() == nil {
			time.Sleep(time.Millisecond)
			now := time.Now()
			r.clock.Advance(now.Sub(before))
			before = now
		}
	})
	leave := r.work(Slots, SlotsPerEndpoint)
	defer func() { leave(); stop(); background.Wait() }()

	began := time.Now()
	for i := range sent {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(inSecond))))
		ref := fmt.Sprint("gen_", i)
		mu.Lock()
		happened[ref] = time.Now()
		mu.Unlock()
		r.tx(func(tx *db.Tx) error {
			return r.events.Append(ctx, tx, events.Event{Type: events.GenerationSucceeded, Subject: "sub_ada", Ref: ref, Sequence: 4, At: r.clock.Now()})
		})
	}
	r.until("all has arrived", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(took) == sent
	})
	if late := time.Since(began) - time.Duration(sent)*time.Second/time.Duration(inSecond); late > time.Second {
		b.Logf("the events came %v slower than wanted", late)
	}
	var all []time.Duration
	for _, t := range took {
		all = append(all, t)
	}
	return all
}
