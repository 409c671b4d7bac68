package account

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
)

// BenchmarkSignIn measures what one sign-in costs on PostgreSQL with the real
// parameters of Argon2id, against its floor: the hash alone, on the same
// machine. It also reports how many hashes a second the service allows itself.
func BenchmarkSignIn(b *testing.B) {
	h := newHome(b, db.Postgres)
	h.hasher.params = hashing()
	ctx := context.Background()
	id, err := h.CreateUser(ctx, "ann@example.org", password)
	if err != nil {
		b.Fatal(err)
	}
	var stored string
	if err := h.db.Get(ctx, &stored, `SELECT password FROM users WHERE id = ?`, id); err != nil {
		b.Fatal(err)
	}
	c := browser("192.0.2.1", "")
	in, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password})
	if err != nil {
		b.Fatal(err)
	}
	c.Device = in.Token
	for b.Loop() {
		h.clock.Advance(time.Hour) // or there were too many right ones
		const n = 30
		floor := time.Now()
		for range n {
			if ok, _, err := h.hasher.verify(ctx, password, stored); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		hash := time.Since(floor) / n
		started := time.Now()
		for range n {
			if in, err = h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password}); err != nil {
				b.Fatal(err)
			}
			c.Device = in.Token
		}
		one := time.Since(started) / n
		b.ReportMetric(hash.Seconds()*1000, "hash-ms")
		b.ReportMetric(one.Seconds()*1000, "sign-in-ms")
		b.ReportMetric(hash.Seconds()/one.Seconds(), "ratio")
		b.ReportMetric(float64(runtime.GOMAXPROCS(0))/hash.Seconds(), "hashes-allowed/s")
	}
}

// BenchmarkStuffing lets 100 wrong sign-ins a second come from many networks for
// ten seconds, and reports what became of them and how long somebody who is
// known waits meanwhile.
func BenchmarkStuffing(b *testing.B) {
	h := newHome(b, db.Postgres)
	h.hasher.params = hashing()
	ctx := context.Background()
	if _, err := h.CreateUser(ctx, "ann@example.org", password); err != nil {
		b.Fatal(err)
	}
	ann := browser("198.51.100.1", "")
	in, err := h.SignIn(ctx, ann, Credentials{Email: "ann@example.org", Password: password})
	if err != nil {
		b.Fatal(err)
	}
	ann.Device = in.Token
	for b.Loop() {
		const rate, seconds = 100, 10
		var refused, limited, full atomic.Int64
		var work sync.WaitGroup
		tick := time.NewTicker(time.Second / rate)
		var worst time.Duration
		for i := range rate * seconds {
			<-tick.C
			work.Go(func() {
				from := browser(fmt.Sprintf("10.%d.%d.1", i%250, i/250), "")
				_, err := h.SignIn(ctx, from, Credentials{Email: fmt.Sprintf("user%d@example.org", i%50), Password: "guess " + fmt.Sprint(i)})
				switch problem.CodeOf(err) {
				case problem.SignInFailed:
					refused.Add(1)
				case problem.RateLimited:
					limited.Add(1)
				case problem.Unavailable:
					full.Add(1)
				default:
					b.Errorf("%v", err)
				}
			})
			if i%rate == rate/2 {
				started := time.Now()
				for {
					next, err := h.SignIn(ctx, ann, Credentials{Email: "ann@example.org", Password: password})
					if err == nil {
						ann.Device = next.Token
						break
					}
					if problem.CodeOf(err) != problem.Unavailable {
						b.Fatal(err)
					}
					time.Sleep(100 * time.Millisecond)
				}
				worst = max(worst, time.Since(started))
			}
		}
		tick.Stop()
		work.Wait()
		b.ReportMetric(float64(refused.Load()), "checked")
		b.ReportMetric(float64(limited.Load()), "limited")
		b.ReportMetric(float64(full.Load()), "queue-full")
		b.ReportMetric(worst.Seconds()*1000, "known-person-worst-ms")
	}
}
