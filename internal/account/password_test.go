package account

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"

	"zimage/internal/db"
	"zimage/internal/problem"
)

func TestTheListOfCommonPasswords(t *testing.T) {
	t.Parallel()
	list := strings.Split(strings.TrimSuffix(commonPasswords, "\n"), "\n")
	if len(list) < 3000 { // OWASP ASVS 5.0, 6.2.4
		t.Errorf("%d passwords", len(list))
	}
	if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
		t.Error("the list is not sorted, or has something twice")
	}
	for _, p := range list {
		if len(p) < passwordLeast || strings.ToLower(p) != p {
			t.Errorf("%q can never be found", p)
		}
	}
}

func TestPromise_A4_GuessablePasswordsAreRefused(t *testing.T) {
	t.Parallel()
	const email, username = "willow.marsh@post.fernhill.example", "Heron77"
	list := strings.Split(strings.TrimSuffix(commonPasswords, "\n"), "\n")
	for what, p := range map[string]string{
		"common": "iloveyou", "common in capitals": "ILoveYou", "the first of the list": list[0], "the last": list[len(list)-1],
		"the address": email, "its local part": "willow.marsh", "within": "My_Willow.Marsh_1999", "its domain": "go fernhill go",
		"its host": "a post to nobody", "the username": "xx-heron77-xx", "backwards": "77noreh-9d8f7g6", "the service": "zImAgE-9d8f7g6",
		"the service, spelled": "my image generator", "the service backwards": "EGAMIz 9d8f7g6",
	} {
		if err := checkPassword(p, email, username); problem.CodeOf(err) != problem.InvalidRequest {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, p := range map[string]string{
		"letters alone": "untroubled vicinity", "digits alone": "8305710946", "64 characters": strings.Repeat("abcdefgh", 8), "1024 bytes": strings.Repeat("x", 1024),
		"another script": "мой длинный пароль", "symbols": "🦀🦐🦞🐙🦑🐚🐠🐟", "only the top level": "an example of sorts", "a common one and more": "iloveyou, and you?",
	} {
		if err := checkPassword(p, email, username); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Short words are in everything, so they are nobody's.
	if err := checkPassword("bandana collector", "ann@io.org", "ban"); err != nil {
		t.Errorf("short words: %v", err)
	}
	if err := checkPassword("bücherwurm-kiste", "ann@xn--bcher-kva.example", ""); problem.CodeOf(err) != problem.InvalidRequest {
		t.Errorf("a domain in letters of its own: %v", err)
	}
}

func TestAPasswordIsTheSameHoweverItsLettersAreMade(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		const composed, decomposed = "ge\u0301ne\u0301rique", "g\u00e9n\u00e9rique"
		if _, err := h.CreateUser(ctx, "ann@example.org", composed); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{composed, decomposed} {
			if _, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: p}); err != nil {
				t.Errorf("%q: %v", p, err)
			}
		}
		_, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: "G\u00c9N\u00c9RIQUE"})
		wantCode(t, "in capitals", err, problem.SignInFailed)
	})
}

func TestTheQueueOfHashesIsBounded(t *testing.T) {
	t.Parallel()
	s := &Service{hasher: newHasher(1)}
	s.hasher.params = &argon2id.Params{Memory: 32, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32}
	for range cap(s.hasher.places) {
		s.hasher.places <- struct{}{}
	}
	// One waits, in vain, and gives its turn back.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.hash(ctx, password); !errors.Is(err, context.Canceled) {
		t.Errorf("hashed without a place: %v", err)
	}
	var all []func()
	for range cap(s.hasher.turns) {
		leave, err := s.hasher.enter()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, leave)
	}
	_, err := s.hash(context.Background(), password)
	var p *problem.Error
	if !errors.As(err, &p) || p.Code != problem.Unavailable || p.RetryAfter != time.Second {
		t.Errorf("beyond the queue: %v", err)
	}
	all[0]()
	<-s.hasher.places
	if _, err := s.hash(context.Background(), password); err != nil {
		t.Error(err)
	}
	if len(s.hasher.turns) != len(all)-1 || len(s.hasher.places) != cap(s.hasher.places)-1 {
		t.Error("a place was not given back")
	}
}

func TestNobodysHashIsCheckedAtFullCostAndNeverFits(t *testing.T) {
	t.Parallel()
	h := newHasher(0)
	params, salt, key, err := argon2id.DecodeHash(h.nobody())
	if err != nil || *params != *hashing() || len(salt) != 16 || len(key) != 32 {
		t.Fatalf("%+v, %v", params, err)
	}
	for _, p := range []string{"", password} {
		if match, outdated, err := h.verify(context.Background(), p, ""); match || outdated || err != nil {
			t.Errorf("%q: %v, %v, %v", p, match, outdated, err)
		}
	}
}

func TestPasswordsAreHashedAnewWhenTheParametersRise(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		hash := func() (p string) {
			t.Helper()
			if err := h.db.Get(ctx, &p, `SELECT password FROM users WHERE id = ?`, ann); err != nil {
				t.Fatal(err)
			}
			return p
		}
		signIn := func(p string) error {
			_, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: p})
			return err
		}
		first := hash()
		if err := signIn(password); err != nil {
			t.Fatal(err)
		}
		if hash() != first {
			t.Error("hashed anew for nothing")
		}
		h.hasher.params = &argon2id.Params{Memory: 64, Iterations: 2, Parallelism: 1, SaltLength: 16, KeyLength: 32}
		wantCode(t, "wrong", signIn("wrong horse"), problem.SignInFailed)
		if hash() != first {
			t.Error("a wrong password was hashed anew")
		}
		if err := signIn(password); err != nil {
			t.Fatal(err)
		}
		second := hash()
		if !strings.HasPrefix(second, "$argon2id$v=19$m=64,t=2,p=1$") {
			t.Errorf("it stays as it was")
		}
		// Parameters that fall weaken nothing.
		h.hasher.params = &argon2id.Params{Memory: 32, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32}
		if err := signIn(password); err != nil || hash() != second {
			t.Errorf("weakened, %v", err)
		}
	})
}

// Not parallel, and one database after the other: it measures the heap.
func TestPromise_U5_Attack_TenThousandSignInsAtOnce(t *testing.T) {
	const callers, most = 10_000, 512 << 20 // unbounded, they would take 190 GiB
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			h := newHome(t, dialect)
			h.hasher.params = hashing() // at full cost
			ctx := context.Background()
			h.user("ann@example.org")

			var peak atomic.Uint64
			done, measured := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(measured)
				var m runtime.MemStats
				for {
					runtime.ReadMemStats(&m)
					peak.Store(max(peak.Load(), m.HeapInuse+m.StackInuse))
					select {
					case <-done:
						return
					case <-time.After(5 * time.Millisecond):
					}
				}
			}()
			var mu sync.Mutex
			answers := map[problem.Code]int{}
			var all, lined sync.WaitGroup
			start := make(chan struct{})
			lined.Add(callers)
			for i := range callers {
				all.Go(func() {
					cr := Credentials{Email: fmt.Sprintf("nobody%d@example.org", i), Password: password}
					if i%10 == 0 {
						cr.Email = "ann@example.org"
					}
					lined.Done()
					<-start
					_, err := h.SignIn(ctx, browser(fmt.Sprintf("10.0.%d.%d", i/250, i%250), ""), cr)
					code := problem.CodeOf(err)
					if err == nil {
						code = "signed in"
					}
					mu.Lock()
					defer mu.Unlock()
					answers[code]++
				})
			}
			lined.Wait()
			close(start)
			all.Wait()
			close(done)
			<-measured
			t.Logf("%v; at most %d MiB", answers, peak.Load()>>20)
			if peak.Load() > most {
				t.Errorf("%d MiB", peak.Load()>>20)
			}
			for code := range answers {
				switch code {
				case "signed in", problem.SignInFailed, problem.RateLimited, problem.Unavailable:
				default:
					t.Errorf("answered %s", code)
				}
			}
			if answers[problem.Unavailable] == 0 || answers[problem.SignInFailed] < defaultQueue/2 {
				t.Error("it was no crowd")
			}
			// It is over, and the next one gets in.
			if _, err := h.SignIn(ctx, browser("192.0.2.9", ""), Credentials{Email: "ann@example.org", Password: password}); err != nil && problem.CodeOf(err) != problem.RateLimited {
				t.Error(err)
			}
		})
	}
}
