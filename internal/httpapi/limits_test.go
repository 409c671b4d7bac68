package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func redisClient(t *testing.T, url string) redis.UniversalClient {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// One table for both: the script in Redis and the code here count alike.
func TestKeyLimiter(t *testing.T) {
	t.Parallel()
	shared := testenv.Redis(t)
	for name, url := range map[string]string{"process": "", "redis": shared} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := clock.Manual(start)
			var client redis.UniversalClient
			if url != "" {
				client = redisClient(t, url)
				if err := client.Ping(context.Background()).Err(); err != nil {
					t.Fatal(err)
				}
			}
			l := newKeyLimiter(client, c, 3)
			l.most = 10 * time.Second // the count is tested here, not a slow machine
			take := func(key string) allowance { return l.take(context.Background(), key) }
			for i, want := range []int64{2, 1, 0} {
				if got := take("key_a"); !got.ok || got.remaining != want || got.limit != 3 {
					t.Fatalf("request %d: %+v, want %d left", i, got, want)
				}
			}
			got := take("key_a")
			if got.ok || got.retry != 20*time.Second || got.reset != time.Minute {
				t.Fatalf("the fourth: %+v", got)
			}
			if got := take("key_b"); !got.ok {
				t.Fatal("another key pays for the first")
			}
			c.Advance(20 * time.Second)
			if got := take("key_a"); !got.ok || got.remaining != 0 {
				t.Fatalf("after its wait: %+v", got)
			}
			if got := take("key_a"); got.ok {
				t.Fatal("two for one wait")
			}
			if client == nil {
				return
			}
			keys := client.Keys(context.Background(), "*").Val()
			for _, k := range keys {
				if ttl := client.PTTL(context.Background(), k).Val(); ttl <= 0 || ttl > 61*time.Second {
					t.Fatalf("%s lives for %v", k, ttl)
				}
			}
			if len(keys) != 2 {
				t.Fatalf("keys are %v: the limit was not counted in Redis", keys)
			}
		})
	}
}

// A Redis that takes connections and says nothing must not hold requests.
func TestKeyLimiterGoesOnWithoutRedis(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	client := redis.NewClient(&redis.Options{Addr: silent.Addr().String()})
	t.Cleanup(func() { _ = client.Close() })
	c := clock.Manual(start)
	l := newKeyLimiter(client, c, 2)
	began := time.Now()
	for range 2 {
		if got := l.take(context.Background(), "key_a"); !got.ok {
			t.Fatalf("%+v", got)
		}
	}
	if got := l.take(context.Background(), "key_a"); got.ok {
		t.Fatal("nobody counts")
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Fatalf("three requests took %v", took)
	}
	if l.rest.Load() <= c.Millis() {
		t.Fatal("a silent Redis is asked by every request")
	}
}

func TestFailureLimiter(t *testing.T) {
	t.Parallel()
	c := clock.Manual(start)
	l := newFailureLimiter(c)
	from, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
	l.succeeded("zi_good")
	for i := range 30 {
		if l.refused(from, "zi_bad") > 0 {
			t.Fatalf("refused after %d", i)
		}
		l.failed(from, "zi_bad")
	}
	if l.refused(from, "zi_bad") <= 0 {
		t.Fatal("tries without end")
	}
	if l.refused(other, "zi_bad") > 0 {
		t.Fatal("another network pays")
	}
	if l.refused(from, "zi_good") > 0 {
		t.Fatal("a key that holds is locked out by its neighbour")
	}
	for range 40 {
		l.failed(netip.Prefix{}, "zi_bad")
	}
	if l.refused(netip.Prefix{}, "zi_bad") > 0 {
		t.Fatal("all who come over a socket pay for one")
	}
	c.Advance(3 * time.Second)
	if l.refused(from, "zi_bad") > 0 {
		t.Fatal("not forgiven")
	}
}

func TestPreferredWait(t *testing.T) {
	t.Parallel()
	for prefer, want := range map[string]time.Duration{
		"":                          0,
		"wait=10":                   10 * time.Second,
		"respond-async, wait=10":    10 * time.Second,
		"WAIT = 5":                  5 * time.Second,
		`wait="7"`:                  7 * time.Second,
		"wait=3600":                 time.Minute,
		"wait=99999999999999999999": 0,
		"wait=9223372036854775807":  time.Minute,
		"wait=-1":                   0,
		"wait=x":                    0,
		"wait":                      0,
		"return=minimal":            0,
	} {
		if got := preferredWait(prefer); got != want {
			t.Errorf("%q: %v, want %v", prefer, got, want)
		}
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"": false, `"a"`: true, `W/"a"`: true, `"b", "a"`: true, "*": true, `"b"`: false, `a`: false,
	} {
		if got := matches(header, `"a"`); got != want {
			t.Errorf("%s: %v", header, got)
		}
	}
}

func TestOpenLimiter(t *testing.T) {
	t.Parallel()
	l := openLimiter{most: 2, open: map[string]int{}}
	first, ok := l.take("key_a")
	second, also := l.take("key_a")
	if !ok || !also {
		t.Fatal("refused below the cap")
	}
	if _, ok := l.take("key_a"); ok {
		t.Error("one more than the cap")
	}
	other, ok := l.take("key_b")
	if !ok {
		t.Fatal("another key pays for the first")
	}
	first()
	first()
	third, ok := l.take("key_a")
	if !ok {
		t.Fatal("released, and still counted")
	}
	if _, ok := l.take("key_a"); ok {
		t.Error("released twice counts twice")
	}
	second()
	third()
	other()
	if len(l.open) != 0 {
		t.Errorf("keys are remembered: %v", l.open)
	}
}

// A database that is away ends no wait; what is gone does.
func TestWhatEndsAWait(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		err           error
		ends, silence bool
	}{
		{"removed", problem.New(problem.DataRemoved, "Gone."), true, false},
		{"not found", fmt.Errorf("get: %w", problem.New(problem.NotFound, "No.")), true, false},
		{"revoked", problem.New(problem.Unauthorized, "No."), true, false},
		{"forbidden", problem.New(problem.Forbidden, "No."), true, false},
		{"away", problem.New(problem.Unavailable, "Away."), false, false},
		{"away, too slow", problem.Wrap(context.DeadlineExceeded, problem.Unavailable, "Away."), false, false},
		{"nothing new", context.DeadlineExceeded, false, true},
		{"unknown", errors.New("x"), false, false},
		{"none", nil, false, false},
	} {
		if ends(c.err) != c.ends || silence(c.err) != c.silence {
			t.Errorf("%s: ends %v, silence %v", c.name, ends(c.err), silence(c.err))
		}
	}
}
