package httpapi

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"

	"zimage/internal/clock"
	"zimage/internal/problem"
)

// guard lets a request through when there is a place for it and its key holds, has
// the scope, and is within its rate.
func (a *API) guard(scope string) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		c := humagin.Unwrap(hc)
		ctx := c.Request.Context()
		var err error
		if callOf(ctx).leave, err = a.crowd.enter(ctx); err == nil {
			err = a.admit(ctx, c, scope)
		}
		if err != nil {
			a.fail(c, err)
			return
		}
		next(hc)
	}
}

func (a *API) admit(ctx context.Context, c *gin.Context, scope string) error {
	token, ok := bearer(c.Request.Header.Values("Authorization"))
	if !ok {
		return problem.New(problem.Unauthorized, "Send your key as Authorization: Bearer zi_…")
	}
	from := network(c.ClientIP())
	if wait := a.failures.refused(from, token); wait > 0 {
		return problem.New(problem.RateLimited, "Too many attempts with keys that do not hold.").After(wait)
	}
	who, err := a.rooms.Accounts.Authenticate(ctx, token)
	if err != nil {
		if problem.CodeOf(err) == problem.Unauthorized {
			a.failures.failed(from, token)
		}
		return err
	}
	a.failures.succeeded(token)
	call := callOf(ctx)
	call.keyID, call.owner, call.token = who.KeyID, who.Subject, token

	left := a.keys.take(ctx, who.KeyID)
	left.show(c.Writer.Header())
	if !left.ok {
		return problem.New(problem.RateLimited, "Too many requests with this key.").After(left.retry)
	}
	if !who.Has(scope) {
		return problem.New(problem.Forbidden, "The key lacks the scope "+scope+".")
	}
	return nil
}

// bearer takes the key out of the one Authorization header.
func bearer(headers []string) (string, bool) {
	if len(headers) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(headers[0], " ")
	token = strings.TrimSpace(token)
	if !ok || !strings.EqualFold(scheme, "bearer") || !visible(token, 255) {
		return "", false
	}
	return token, true
}

// visible reports whether s is 1 to most visible ASCII characters.
func visible(s string, most int) bool {
	return s != "" && len(s) <= most && strings.IndexFunc(s, func(r rune) bool { return r < '!' || r > '~' }) < 0
}

// stillHolds looks again whether the key of an open request holds. A failure of
// ours is no reason to end it.
func (a *API) stillHolds(ctx context.Context) error {
	_, err := a.rooms.Accounts.Authenticate(ctx, callOf(ctx).token)
	switch problem.CodeOf(err) {
	case problem.Unauthorized, problem.Forbidden:
		return err
	}
	return nil
}

// network is what failures are counted by: an IPv4 address, or the /64 that an
// IPv6 client moves in freely.
func network(ip string) netip.Prefix {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{}
	}
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits)
	return p
}

// failureLimiter slows down who tries keys: 30 failures a minute of one network,
// in this process. A key that held a moment ago passes, so that behind an
// unnamed proxy one client cannot lock out the others. Whoever comes without an
// address, over a socket, is not counted.
type failureLimiter struct {
	mu      sync.Mutex
	clock   *clock.Clock
	secret  [32]byte // keys are remembered by a hash nobody can compare
	rate    gcra
	arrival map[netip.Prefix]int64
	held    map[[32]byte]int64 // until, milliseconds
}

const (
	heldFor    = 10 * time.Minute
	mostMemory = 100_000 // entries of each map
)

func newFailureLimiter(c *clock.Clock) *failureLimiter {
	l := &failureLimiter{clock: c, rate: perMinute(30), arrival: map[netip.Prefix]int64{}, held: map[[32]byte]int64{}}
	_, _ = rand.Read(l.secret[:])
	return l
}

func (l *failureLimiter) hash(token string) (sum [32]byte) {
	m := hmac.New(sha256.New, l.secret[:])
	m.Write([]byte(token))
	m.Sum(sum[:0])
	return sum
}

// refused says how long to wait before the key is even looked up; 0: go on.
func (l *failureLimiter) refused(from netip.Prefix, token string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Millis()
	_, left := l.rate.take(l.arrival[from], now*1000)
	if left.ok || !from.IsValid() || l.held[l.hash(token)] > now {
		return 0
	}
	return left.retry
}

func (l *failureLimiter) failed(from netip.Prefix, token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, l.hash(token))
	now := l.clock.Millis() * 1000
	if len(l.arrival) >= mostMemory {
		prune(l.arrival, now)
	}
	l.arrival[from], _ = l.rate.take(l.arrival[from], now)
}

func (l *failureLimiter) succeeded(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Millis()
	if len(l.held) >= mostMemory {
		prune(l.held, now)
	}
	l.held[l.hash(token)] = now + heldFor.Milliseconds()
}

// prune forgets what lies in the past, and everything when that is not enough:
// memory is bounded before counts are exact.
func prune[K comparable](m map[K]int64, now int64) {
	for k, until := range m {
		if until <= now {
			delete(m, k)
		}
	}
	if len(m) >= mostMemory {
		clear(m)
	}
}
