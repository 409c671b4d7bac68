package httpapi

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/problem"
)

// gcra is the generic cell rate algorithm: one number a key, the theoretical
// arrival time of the next request, in microseconds since 1970.
type gcra struct {
	limit    int64
	interval int64 // microseconds that one request costs
}

func perMinute(n int) gcra {
	return gcra{limit: int64(n), interval: int64(time.Minute/time.Microsecond) / int64(n)}
}

// allowance is what a key has left.
type allowance struct {
	ok        bool
	limit     int64
	remaining int64
	reset     time.Duration // until all of it is back
	retry     time.Duration // until the next request passes; only when not ok
}

// take counts one request and returns the arrival time to remember.
func (g gcra) take(arrival, now int64) (int64, allowance) {
	next := max(arrival, now) + g.interval
	room := now + g.limit*g.interval - next
	if room < 0 {
		return arrival, g.allowance(false, room, arrival-now)
	}
	return next, g.allowance(true, room, next-now)
}

func (g gcra) allowance(ok bool, room, full int64) allowance {
	l := allowance{ok: ok, limit: g.limit, reset: time.Duration(full) * time.Microsecond}
	if ok {
		l.remaining = room / g.interval
	} else {
		l.retry = time.Duration(-room) * time.Microsecond
	}
	return l
}

func (l allowance) show(h http.Header) {
	h.Set("RateLimit-Limit", strconv.FormatInt(l.limit, 10))
	h.Set("RateLimit-Remaining", strconv.FormatInt(l.remaining, 10))
	h.Set("RateLimit-Reset", seconds(l.reset))
}

// takeScript is gcra.take where all processes share the number. It returns
// whether it passed, the room, and the time until all is back, in microseconds.
// The key forgets itself when the allowance is whole again.
var takeScript = redis.NewScript(`
local now, interval, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local arrival = tonumber(redis.call('GET', KEYS[1]) or '0')
local next = math.max(arrival, now) + interval
local room = now + limit * interval - next
if room < 0 then return {0, room, arrival - now} end
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000))
return {1, room, next - now}
`)

const (
	// redisTime is what a request waits at most for its count.
	redisTime = 50 * time.Millisecond
	// redisRest is how long Redis is left alone after it failed.
	redisRest = time.Second
)

// keyLimiter counts the requests of keys, in Redis where it answers, otherwise
// in this process. Only ids of keys go to Redis.
type keyLimiter struct {
	redis redis.UniversalClient
	most  time.Duration // redisTime
	clock *clock.Clock
	rate  gcra
	rest  atomic.Int64 // milliseconds: not before

	mu      sync.Mutex
	arrival map[string]int64
}

func newKeyLimiter(r redis.UniversalClient, c *clock.Clock, perMin int) *keyLimiter {
	return &keyLimiter{redis: r, most: redisTime, clock: c, rate: perMinute(perMin), arrival: map[string]int64{}}
}

func (l *keyLimiter) take(ctx context.Context, keyID string) allowance {
	if l.redis != nil && l.clock.Millis() >= l.rest.Load() {
		if left, err := l.shared(ctx, keyID); err == nil {
			return left
		}
		l.rest.Store(l.clock.Millis() + redisRest.Milliseconds())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Millis() * 1000
	if len(l.arrival) >= mostMemory {
		prune(l.arrival, now)
	}
	next, left := l.rate.take(l.arrival[keyID], now)
	l.arrival[keyID] = next
	return left
}

// shared asks Redis, for l.most whatever the client's own timeouts
// are: a question that takes longer is left to end by itself.
func (l *keyLimiter) shared(ctx context.Context, keyID string) (allowance, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.most)
	type reply struct {
		numbers []int64
		err     error
	}
	done := make(chan reply, 1)
	go func() {
		numbers, err := takeScript.Run(ctx, l.redis, []string{"zimage:rate:" + keyID},
			l.clock.Millis()*1000, l.rate.interval, l.rate.limit).Int64Slice()
		done <- reply{numbers, err}
		cancel()
	}()
	select {
	case <-ctx.Done():
		// It may also be done: both can be ready at once.
		select {
		case r := <-done:
			return l.read(r.numbers, r.err)
		default:
			return allowance{}, ctx.Err()
		}
	case r := <-done:
		return l.read(r.numbers, r.err)
	}
}

func (l *keyLimiter) read(numbers []int64, err error) (allowance, error) {
	if err != nil {
		return allowance{}, err
	}
	if len(numbers) != 3 {
		return allowance{}, errors.New("the rate script answered something else")
	}
	return l.rate.allowance(numbers[0] == 1, numbers[1], numbers[2]), nil
}

const (
	// mostAtOnce is how many requests are worked on at once: four for each of the
	// database's connections, so that none of those waits for us.
	mostAtOnce = 64
	// turnTime is how long a request waits for its turn.
	turnTime = 10 * time.Second
)

// crowd bounds how many requests are worked on at once. The others wait for their
// turn and are sent away when it does not come: of thousands that wait for the
// database together, hundreds would run out of time, and nobody would know what
// became of them.
type crowd struct {
	places chan struct{}
	wait   time.Duration
}

func newCrowd(most int, wait time.Duration) *crowd {
	return &crowd{places: make(chan struct{}, most), wait: wait}
}

var errCrowded = errors.New("more requests than places")

// enter waits for a place, first come first served, until leave, which may be
// called again.
func (c *crowd) enter(ctx context.Context) (leave func(), err error) {
	t := time.NewTimer(c.wait)
	defer t.Stop()
	select {
	case c.places <- struct{}{}:
		return sync.OnceFunc(func() { <-c.places }), nil
	case <-t.C:
		return nil, crowded()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func crowded() error {
	// Not all at the same moment again.
	again := time.Duration(2+rand.IntN(4)) * time.Second //nolint:gosec // spreads load, decides nothing
	return problem.Wrap(errCrowded, problem.Unavailable, "There are more requests than can be served now. Try again in a moment.").After(again)
}

const (
	// refusedFor is how long a refused request may take to come again: OpenAI's
	// clients wait a minute at most.
	refusedFor   = time.Minute
	mostRefusals = 10_000
)

// refusals remembers, in this process, the requests that made nothing and may come
// again: whoever repeats one of them does not want what another has made.
type refusals struct {
	clock *clock.Clock

	mu   sync.Mutex
	list []refusedRequest // oldest first
}

type refusedRequest struct {
	key   string
	until int64 // milliseconds
}

func (r *refusals) add(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
	r.list = append(r.list, refusedRequest{key, r.clock.Millis() + refusedFor.Milliseconds()})
	if more := len(r.list) - mostRefusals; more > 0 {
		r.list = slices.Delete(r.list, 0, more)
	}
}

// take reports whether a request of that key was refused, which then has come again.
func (r *refusals) take(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
	i := slices.IndexFunc(r.list, func(x refusedRequest) bool { return x.key == key })
	if i >= 0 {
		r.list = slices.Delete(r.list, i, i+1)
	}
	return i >= 0
}

func (r *refusals) forget() {
	now := r.clock.Millis()
	r.list = slices.DeleteFunc(r.list, func(x refusedRequest) bool { return x.until <= now })
}

// openLimiter caps what one key has open at once, in this process: each stream
// and wait holds a connection and is asked for in the database.
type openLimiter struct {
	most int

	mu   sync.Mutex
	open map[string]int // by key; none at 0
}

// take counts one more until release, which may be called again; false: there
// are most already.
func (l *openLimiter) take(keyID string) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[keyID] >= l.most {
		return nil, false
	}
	l.open[keyID]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.open[keyID]--; l.open[keyID] == 0 {
			delete(l.open, keyID)
		}
	}), true
}
