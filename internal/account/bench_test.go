package account

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"

	"zimage/internal/db"
	"zimage/internal/problem"
)

// BenchmarkSignIn measures what one sign-in costs on PostgreSQL with the real
// parameters of Argon2id, against its floor: the hash alone, on the same
// machine.
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
	}
}

// BenchmarkHashesPerSecond measures how many hashes a second the service allows
// itself: people sign in beside one another, four for each processor, on
// PostgreSQL and with the real parameters. Its floor is Argon2id alone, as often
// and on as many goroutines as the service hashes on, measured in turns with it:
// on more of them memory makes it slower.
func BenchmarkHashesPerSecond(b *testing.B) {
	h := newHome(b, db.Postgres)
	h.hasher.params = hashing()
	var hashes atomic.Int64
	h.hasher.counted = func() { hashes.Add(1) }
	ctx := context.Background()
	people := make([]struct {
		client Client
		email  string
	}, 4*runtime.GOMAXPROCS(0))
	signIn := func(i int) error {
		p := &people[i]
		in, err := h.SignIn(ctx, p.client, Credentials{Email: p.email, Password: password})
		p.client.Device = in.Token
		return err
	}
	for i := range people {
		people[i].client, people[i].email = browser(fmt.Sprintf("10.0.%d.1", i), ""), fmt.Sprintf("user%d@example.org", i)
		if _, err := h.CreateUser(ctx, people[i].email, password); err != nil {
			b.Fatal(err)
		}
		if err := signIn(i); err != nil { // from here on a known browser
			b.Fatal(err)
		}
	}
	stored, err := argon2id.CreateHash(password, hashing())
	if err != nil {
		b.Fatal(err)
	}
	alone := func(int) error {
		ok, err := argon2id.ComparePasswordAndHash(password, stored)
		if err == nil && !ok {
			err = errors.New("the hash does not fit")
		}
		return err
	}
	// spread does something perTurn times in all on so many goroutines, and says how
	// long all took.
	const turns = 8
	perTurn := 4 * len(people)
	spread := func(goroutines int, do func(i int) error) time.Duration {
		var work sync.WaitGroup
		started := time.Now()
		for i := range goroutines {
			work.Go(func() {
				for range perTurn / goroutines {
					if err := do(i); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		work.Wait()
		return time.Since(started)
	}
	var floor, took time.Duration
	var done, counted int64
	for b.Loop() {
		for range turns { // what else the machine does weighs on both alike
			floor += spread(cap(h.hasher.places), alone)
			hashes.Store(0)
			took += spread(len(people), signIn)
			counted += hashes.Load()
			done += int64(perTurn)
		}
	}
	if counted != done {
		b.Errorf("%d hashes for %d sign-ins", counted, done)
	}
	service, raw := float64(counted)/took.Seconds(), float64(done)/floor.Seconds()
	b.ReportMetric(service, "hashes/s")
	b.ReportMetric(raw, "floor-hashes/s")
	b.ReportMetric(service/raw, "ratio")
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
