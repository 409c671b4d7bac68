package httpapi

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"

	"zimage/internal/account"
	"zimage/internal/clock"
	"zimage/internal/problem"
)

// access says who may use a route.
type access struct {
	public  bool   // anybody
	probe   bool   // anybody at any time: what it answers costs nothing
	scope   string // a key or session that has it
	session bool   // a session alone: no key reaches what protects the account
	fresh   bool   // one that proved lately who it is, before anything else is looked at
}

var (
	public         = access{public: true}
	probing        = access{public: true, probe: true}
	inSession      = access{session: true}
	inFreshSession = access{session: true, fresh: true}
)

func with(scope string) access { return access{scope: scope} }

// guard lets a request through when there is a place for it, and its key or
// session holds, may use the route, and is within its rate.
func (a *API) guard(need access) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		c := humagin.Unwrap(hc)
		ctx := c.Request.Context()
		callOf(ctx).route = hc.Operation().OperationID
		err := a.checkOrigin(c.Request)
		// Public routes have bounds of their own (strangers, and the queue of hashes): a
		// crowd that signs in must not keep those waiting who are at work.
		if err == nil && !need.public {
			callOf(ctx).leave, err = a.crowd.enter(ctx)
		}
		if err == nil && !need.public {
			err = a.admit(ctx, c, need)
		}
		if err != nil {
			a.fail(c, err)
			return
		}
		next(hc)
	}
}

// checkOrigin refuses what another site has a browser send. A request with a
// key in its header is no browser's doing.
func (a *API) checkOrigin(r *http.Request) error {
	if r.Header.Get("Authorization") == "" && a.origins.Check(r) != nil {
		return problem.New(problem.Forbidden, "A page of another site may not do this.")
	}
	return nil
}

func (a *API) admit(ctx context.Context, c *gin.Context, need access) error {
	token, authenticate, err := a.presented(c.Request)
	if err != nil {
		return err
	}
	from := account.Network(callOf(ctx).client.Addr)
	if wait := a.failures.refused(from, token); wait > 0 {
		return problem.New(problem.RateLimited, "Too many attempts with keys or sessions that do not hold.").After(wait)
	}
	who, err := authenticate(ctx, token)
	if err != nil {
		return a.notAdmitted(ctx, from, token, err)
	}
	a.failures.succeeded(token)
	call := callOf(ctx)
	call.who, call.owner, call.token = who, who.Subject, token

	left := a.keys.take(ctx, cmp.Or(who.KeyID, who.SessionID))
	left.show(c.Writer.Header())
	if openAIRoutes[call.route] {
		left.showOpenAI(c.Writer.Header())
	}
	if !left.ok {
		return problem.New(problem.RateLimited, "Too many requests with this key or session.").After(left.retry)
	}
	if signalled(c.Request) && !who.DoNotSell {
		if err := a.rooms.Accounts.SetDoNotSell(ctx, who, true); err != nil {
			return err
		}
	}
	if need.session && who.SessionID == "" {
		return problem.New(problem.Forbidden, "A key may not do this: sign in.")
	}
	if need.fresh {
		if err := a.rooms.Accounts.Proved(who); err != nil {
			return err
		}
	}
	if need.scope != "" {
		return needs(who, need.scope)
	}
	return nil
}

// needs refuses a key or session without a scope.
func needs(who account.Principal, scope string) error {
	if !who.Has(scope) {
		return problem.New(problem.Forbidden, "The scope "+scope+" is needed here.")
	}
	return nil
}

// signalled reports whether the browser says, by Global Privacy Control, that its
// person's data is not to be sold or shared.
func signalled(r *http.Request) bool { return r.Header.Get("Sec-GPC") == "1" }

// notAdmitted counts a token that does not hold. The cookie of a browser that signed
// out guesses nothing: it is counted by itself, so that a page that goes on asking
// does not shut out the others of its network.
func (a *API) notAdmitted(ctx context.Context, from netip.Prefix, token string, err error) error {
	var known *account.SignedOut
	switch {
	case errors.As(err, &known):
		if left := a.keys.take(ctx, known.SessionID); !left.ok {
			return problem.New(problem.RateLimited, "Too many requests with this session.").After(left.retry)
		}
	case problem.CodeOf(err) == problem.Unauthorized:
		a.failures.failed(from, token)
	}
	return err
}

// presented is the key in the Authorization header, else the session in the
// cookie, and how to find out whether it holds.
func (a *API) presented(r *http.Request) (string, func(context.Context, string) (account.Principal, error), error) {
	if headers := r.Header.Values("Authorization"); len(headers) > 0 {
		token, ok := bearer(headers)
		if !ok {
			return "", nil, problem.New(problem.Unauthorized, "Send your key as Authorization: Bearer zi_…")
		}
		return token, a.rooms.Accounts.Authenticate, nil
	}
	if token := a.cookie(r); token != "" {
		return token, a.rooms.Accounts.AuthenticateSession, nil
	}
	return "", nil, problem.New(problem.Unauthorized, "Send your key as Authorization: Bearer zi_…, or sign in.")
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

// stillHolds looks again whether the key or session of an open request holds,
// which is no use of it. A failure of ours is no reason to end it.
func (a *API) stillHolds(ctx context.Context) error {
	call := callOf(ctx)
	var err error
	if call.who.SessionID != "" {
		err = a.rooms.Accounts.StillHolds(ctx, call.who)
	} else {
		_, err = a.rooms.Accounts.KeyHolds(ctx, call.token)
	}
	switch problem.CodeOf(err) {
	case problem.Unauthorized, problem.Forbidden:
		return err
	}
	return nil
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
