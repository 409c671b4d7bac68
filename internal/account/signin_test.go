package account

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

func TestAttack_UserEnumerationBySignIn(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		closing := h.user("closing@example.org")
		state(t, h, closing, subject.Closing)
		erased := h.user("erased@example.org")
		state(t, h, erased, subject.Erased)
		if err := h.SignUp(ctx, browser("192.0.2.1", ""), SignUp{Email: "pending@example.org", Username: "pending", Password: password, OldEnough: true}); err != nil {
			t.Fatal(err)
		}
		hashes := 0
		h.hasher.counted = func() { hashes++ }
		var first error
		for what, cr := range map[string]Credentials{
			"no account":       {Email: "nobody@example.org", Password: password},
			"wrong password":   {Email: "ann@example.org", Password: "wrong horse"},
			"closing":          {Email: "closing@example.org", Password: password},
			"erased":           {Email: "erased@example.org", Password: password},
			"pending":          {Email: "pending@example.org", Password: password},
			"username":         {Email: "pending@localhost", Password: password},
			"a code, no match": {Email: "ann@example.org", Password: "wrong horse", Code: "123456"},
		} {
			hashes = 0
			in, err := h.SignIn(ctx, browser("192.0.2.1", ""), cr)
			wantCode(t, what, err, problem.SignInFailed)
			if first == nil {
				first = err
			}
			if !reflect.DeepEqual(err, first) || errors.Unwrap(err) != nil {
				t.Errorf("%s: %#v, elsewhere %#v", what, err, first)
			}
			if hashes != 1 || in.Token != "" {
				t.Errorf("%s: %d hashes", what, hashes)
			}
		}
		if h.count(`SELECT count(*) FROM sessions`) != 0 {
			t.Error("a session was opened")
		}
		for what, cr := range map[string]Credentials{
			"no address": {Email: "ann", Password: password}, "huge address": {Email: strings.Repeat("a", 1<<20) + "@example.org", Password: password},
			"no password": {Email: "ann@example.org"}, "huge password": {Email: "ann@example.org", Password: strings.Repeat("x", 1<<20)},
			"not text": {Email: "ann@example.org", Password: "correct horse\xff"},
		} {
			hashes = 0
			_, err := h.SignIn(ctx, browser("192.0.2.1", ""), cr)
			if wantCode(t, what, err, problem.InvalidRequest); hashes != 0 {
				t.Errorf("%s: hashed", what)
			}
		}
	})
}

// An answer ends a whole number of grid steps after the question, whatever the
// work took: a pause of a fixed length would hand the time of the work on.
func TestAnswersEndOnAGrid(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		const grid = 200 * time.Millisecond
		h.o.Level = grid
		// How far an answer is behind the grid in the best of some tries: a machine
		// that is busy makes some of them late, and none early.
		behind := func(what string, ask func() time.Duration) {
			t.Helper()
			best := grid
			for range 10 {
				took := ask()
				if took < grid {
					t.Fatalf("%s took %v", what, took)
				}
				if best = min(best, took%grid); best < grid/8 {
					return
				}
			}
			t.Errorf("%s ends %v behind the grid", what, best)
		}
		for _, work := range []time.Duration{0, grid / 4, grid / 2, grid - grid/8, grid + grid/4} {
			behind(fmt.Sprintf("work of %v", work), func() time.Duration {
				began := time.Now().Add(-work)
				h.level(ctx, Client{}, began)
				return time.Since(began)
			})
		}

		h.hasher.counted = func() { time.Sleep(grid / 2) }
		c := browser("192.0.2.1", "")
		for what, ask := range map[string]func() error{
			"sign-in, known": func() error {
				return failed(h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: "wrong horse"}))
			},
			"sign-in, unknown": func() error {
				return failed(h.SignIn(ctx, c, Credentials{Email: "nobody@example.org", Password: "wrong horse"}))
			},
			"reset, known":   func() error { return h.RequestReset(ctx, c, "ann@example.org") },
			"reset, unknown": func() error { return h.RequestReset(ctx, c, "nobody@example.org") },
			"sign-up, known": func() error {
				return h.SignUp(ctx, c, SignUp{Email: "ann@example.org", Username: "ann", Password: password, OldEnough: true})
			},
			"sign-up, unknown": func() error {
				return h.SignUp(ctx, c, SignUp{Email: "new@example.org", Username: "new", Password: password, OldEnough: true})
			},
		} {
			behind(what, func() time.Duration {
				h.clock.Advance(time.Hour) // or there were too many
				began := time.Now()
				if err := ask(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				return time.Since(began)
			})
		}
		// Whoever goes away is not waited for.
		gone, cancel := context.WithCancel(ctx)
		cancel()
		h.o.Level = time.Hour
		h.level(gone, Client{}, time.Now())
	})
}

// Without the grid, so that the work itself is seen, at the cost that hashes really
// have. Without a hash for nobody, an unknown address would answer tens of times
// faster. It does not run beside the other tests, and measures again when a busy
// machine was in the way: what the work differs in does not go away by that.
func TestAttack_UserEnumerationByTime(t *testing.T) {
	onBoth(t, func(t *testing.T, h *home) {
		h.hasher.params = hashing()
		h.user("ann@example.org")
		state(t, h, h.user("closing@example.org"), subject.Closing)
		measure := func() (unknown, closed float64) {
			took := map[string][]float64{}
			for range 9 { // in turn, so that a busy moment falls on all of them
				h.clock.Advance(time.Hour)
				for what, cr := range map[string]Credentials{
					"known":   {Email: "ann@example.org", Password: "wrong horse"},
					"unknown": {Email: "nobody@example.org", Password: "wrong horse"},
					"closed":  {Email: "closing@example.org", Password: password}, // even the right one
				} {
					began := time.Now()
					_, err := h.SignIn(context.Background(), browser("192.0.2.1", ""), cr)
					took[what] = append(took[what], time.Since(began).Seconds())
					wantCode(t, what, err, problem.SignInFailed)
				}
			}
			median := func(what string) float64 {
				slices.Sort(took[what])
				return took[what][len(took[what])/2]
			}
			return median("unknown") / median("known"), median("closed") / median("known")
		}
		alike := func(ratio float64) bool { return ratio > 0.5 && ratio < 2 }
		var unknown, closed float64
		for range 5 {
			if unknown, closed = measure(); alike(unknown) && alike(closed) {
				return
			}
		}
		t.Errorf("for a known address 1, for an unknown one %.2f, for a closed one %.2f", unknown, closed)
	})
}

func errorOf(_ SignedIn, err error) error { return err }

func second[T any](_ T, err error) error { return err }

// failed turns the failure that is expected into none.
func failed(_ SignedIn, err error) error {
	if problem.CodeOf(err) == problem.SignInFailed {
		return nil
	}
	return errors.Join(err, errors.New("signed in"))
}

func TestAttack_UserEnumerationByTheWorkDone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.member("ann@example.org", "ann")
		closing := h.user("closing@example.org")
		state(t, h, closing, subject.Closing)
		hashes := 0
		h.hasher.counted = func() { hashes++ }
		for i, email := range []string{"ann@example.org", "nobody@example.org", "closing@example.org"} {
			hashes = 0
			if err := h.RequestReset(ctx, browser("192.0.2.1", ""), email); err != nil || hashes != 0 {
				t.Errorf("reset of %s: %v after %d hashes", email, err, hashes)
			}
			err := h.SignUp(ctx, browser("192.0.2.1", ""), SignUp{Email: email, Username: fmt.Sprintf("user%d", i), Password: password, OldEnough: true})
			if err != nil || hashes != 1 {
				t.Errorf("sign-up of %s: %v after %d hashes", email, err, hashes)
			}
		}
		if n := len(h.sent("closing@example.org", mail.ResetPassword)) + len(h.sent("closing@example.org", mail.SignUpAttempt)); n != 0 {
			t.Errorf("%d mails to an account that is closed", n)
		}
	})
}

func TestRestrictedAndSuspendedPeopleSignIn(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		for _, change := range []string{"restricted_at", "suspended_at"} {
			email := change[:4] + "@example.org"
			owner := h.user(email)
			if _, err := h.db.Exec(context.Background(), `UPDATE subjects SET `+change+` = 1 WHERE id = ?`, owner); err != nil {
				t.Fatal(err)
			}
			in, err := h.SignIn(context.Background(), browser("192.0.2.1", ""), Credentials{Email: email, Password: password})
			if err != nil {
				t.Fatalf("%s: %v", change, err)
			}
			if p := h.principal(in.Token); p.Subject != owner {
				t.Errorf("%s: %+v", change, p)
			}
		}
	})
}

func TestPromise_A4_ASecondFactorIsAskedForAndUsedOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		secret, recovery := h.enrolled(&p)
		c := browser("192.0.2.1", "")
		with := func(code string) (SignedIn, error) {
			return h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password, Code: code})
		}
		_, err := with("")
		wantCode(t, "none", err, problem.SecondFactorNeeded)
		var need *SecondFactor
		if !errors.As(err, &need) || !need.TOTP || !need.Recovery || need.Passkey != nil {
			t.Errorf("%+v", need)
		}
		// Only to who has the password.
		_, err = h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: "wrong horse"})
		wantCode(t, "without the password", err, problem.SignInFailed)

		_, err = with("000000")
		wantCode(t, "a wrong code", err, problem.SignInFailed)
		code := h.shows(secret, 0)
		in, err := with(code)
		if err != nil || in.Session.Method != ByPasswordTOTP || !h.principal(in.Token).Method.Strong() {
			t.Fatalf("%+v, %v", in.Session, err)
		}
		_, err = with(code)
		wantCode(t, "the code once more", err, problem.SignInFailed)
		in, err = with(recovery[0])
		if err != nil || in.Session.Method != ByPasswordRecovery {
			t.Fatalf("%+v, %v", in.Session, err)
		}
		_, err = with(recovery[0])
		wantCode(t, "the recovery code once more", err, problem.SignInFailed)
	})
}

func TestPromise_U5_CodesCannotBeGuessedBehindARightPassword(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		secret, _ := h.enrolled(&p)
		try := func(network, code string) error {
			_, err := h.SignIn(ctx, browser(network, ""), Credentials{Email: "ann@example.org", Password: password, Code: code})
			return err
		}
		guesses := 0
		for i := range 120 { // a minute each: the account's own count never fills
			h.clock.Advance(time.Minute)
			switch err := try(fmt.Sprintf("10.0.0.%d", i), "000000"); problem.CodeOf(err) {
			case problem.SignInFailed:
				guesses++
			case problem.RateLimited:
			default:
				t.Fatal(err)
			}
		}
		if guesses > 18 {
			t.Errorf("%d guesses in two hours", guesses)
		}
		h.clock.Advance(15 * time.Minute)
		if err := try("10.0.0.1", h.shows(secret, 0)); err != nil {
			t.Errorf("the right one, when it is its turn: %v", err)
		}
	})
}

// Whoever has the password uses up the guesses of the second factor. A browser that
// once showed it has guesses of its own.
func TestPromise_U5_AThiefOfThePasswordShutsOutNoProvenBrowser(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		secret, recovery := h.enrolled(&p)
		in, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: password, Code: recovery[0]})
		if err != nil {
			t.Fatal(err)
		}
		device, err := h.SignOut(ctx, h.principal(in.Token))
		if err != nil {
			t.Fatal(err)
		}
		with := func(c Client, code string) error {
			_, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password, Code: code})
			return err
		}
		var last error
		for i := 0; i < 30 && problem.CodeOf(last) != problem.RateLimited; i++ { // a minute each: the account's own count never fills
			h.clock.Advance(time.Minute)
			last = with(browser(fmt.Sprintf("10.0.0.%d", i), ""), "000000")
		}
		wantCode(t, "the thief, in the end", last, problem.RateLimited)
		wantCode(t, "a browser that is not known", with(browser("192.0.2.1", ""), h.shows(secret, 0)), problem.RateLimited)
		if err := with(browser("192.0.2.1", device), h.shows(secret, 0)); err != nil {
			t.Errorf("the browser that showed the second factor: %v", err)
		}
	})
}

func TestAPasswordChangedDuringASignInOpensNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		h.hasher.counted = func() { // while the old one is checked
			if _, err := h.db.Exec(ctx, `UPDATE users SET password = 'changed' WHERE id = ?`, ann); err != nil {
				t.Error(err)
			}
		}
		_, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: password})
		wantCode(t, "the old password", err, problem.SignInFailed)
		if h.sessionCount(ann) != 0 {
			t.Error("it opened a session")
		}
	})
}

func TestReauthenticate(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, p := h.member("ann@example.org", "ann")
		c := browser("192.0.2.1", in.Token)
		if err := h.Proved(p); err != nil {
			t.Errorf("right after the sign-in: %v", err)
		}
		h.clock.Advance(freshFor)
		p = h.principal(in.Token)
		wantCode(t, "ten minutes later", h.Proved(p), problem.ReauthNeeded)
		wantCode(t, "a key", h.Proved(Principal{Subject: p.Subject, KeyID: "key_1", FreshAt: h.clock.Now()}), problem.Forbidden)

		_, err := h.Reauthenticate(ctx, p, c, Credentials{Password: "wrong horse"})
		wantCode(t, "wrong", err, problem.SignInFailed)
		_, err = h.Reauthenticate(ctx, p, c, Credentials{})
		wantCode(t, "nothing", err, problem.InvalidRequest)
		_, err = h.Reauthenticate(ctx, Principal{Subject: p.Subject, KeyID: "key_1"}, c, Credentials{Password: password})
		wantCode(t, "a key", err, problem.Forbidden)

		again, err := h.Reauthenticate(ctx, p, c, Credentials{Password: password})
		if err != nil {
			t.Fatal(err)
		}
		if again.Session.ID != in.Session.ID || again.Token == in.Token || !again.Session.ExpiresAt.Equal(in.Session.ExpiresAt) {
			t.Errorf("before %+v, after %+v", in, again)
		}
		if err := h.Proved(h.principal(again.Token)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		_, err = h.AuthenticateSession(ctx, in.Token)
		wantCode(t, "the token before", err, problem.Unauthorized)
		if mails := h.sent("ann@example.org", mail.NewDevice); len(mails) != 0 {
			t.Error("told of a device that is known")
		}

		// Guesses in a stolen session are counted apart from everybody else's.
		stolen := h.principal(again.Token)
		for range 9 {
			_, err = h.Reauthenticate(ctx, stolen, browser("10.6.6.6", ""), Credentials{Password: "wrong horse"})
			wantCode(t, "a guess", err, problem.SignInFailed)
		}
		for range 2 {
			_, err = h.Reauthenticate(ctx, stolen, browser("10.6.6.6", ""), Credentials{Password: "wrong horse"})
		}
		wantCode(t, "too many", err, problem.RateLimited)
		if code := h.signIn(h.Service, browser("192.0.2.9", ""), "ann@example.org", password); code != "" {
			t.Errorf("everybody else: %s", code)
		}
		if err := h.EndSession(ctx, p.Subject, p.SessionID); err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(time.Hour)
		_, err = h.Reauthenticate(ctx, p, c, Credentials{Password: password})
		wantCode(t, "an ended session", err, problem.Unauthorized)
	})
}

func TestReauthenticateAsksForTheSecondFactorToo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, p := h.member("ann@example.org", "ann")
		secret, _ := h.enrolled(&p)
		c := browser("192.0.2.1", in.Token)
		_, err := h.Reauthenticate(ctx, p, c, Credentials{Password: password})
		wantCode(t, "the password alone", err, problem.SecondFactorNeeded)
		again, err := h.Reauthenticate(ctx, p, c, Credentials{Password: password, Code: h.shows(secret, 0)})
		if err != nil || again.Session.Method != ByPasswordTOTP {
			t.Errorf("%+v, %v", again.Session, err)
		}
	})
}

func TestReauthenticateByPasskey(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, eve := h.member("eve@example.org", "eve")
		_, ann := h.member("ann@example.org", "ann")
		ofEve, ofAnn := newDevice(), newDevice()
		h.addPasskey(&eve, ofEve)
		h.addPasskey(&ann, ofAnn)
		c := browser("192.0.2.1", "")
		answer := ofEve.sign(h.signInChallenge())
		_, err := h.Reauthenticate(ctx, ann, c, Credentials{Passkey: &answer})
		wantCode(t, "somebody else's", err, problem.SignInFailed)
		answer = ofAnn.sign(h.signInChallenge())
		in, err := h.Reauthenticate(ctx, ann, c, Credentials{Passkey: &answer})
		if err != nil || in.Session.Method != ByPasskey || in.Session.ID != ann.SessionID {
			t.Errorf("%+v, %v", in.Session, err)
		}
		h.goOn(&ann, in)
		_, err = h.Reauthenticate(ctx, ann, c, Credentials{Passkey: &answer})
		wantCode(t, "the answer once more", err, problem.SignInFailed)
	})
}

// The mail and its address are the owner's; nothing else tells who signed in.
func TestPromise_U5_ASignInFromANewDeviceIsToldOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.o.Place = func(netip.Addr) string { return "near here" }
		h.user("ann@example.org")
		c := Client{Addr: browser("192.0.2.1", "").Addr, Agent: "Firefox\x00 on\r\nBcc: eve@example.org " + strings.Repeat("x", 600)}
		in, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		mails := h.sent("ann@example.org", mail.NewDevice)
		if len(mails) != 1 || mails[0].Data["When"] != "1 March 2026, 09:00 UTC" || mails[0].Data["Place"] != "near here" {
			t.Fatalf("%+v", mails)
		}
		if agent := mails[0].Data["Agent"]; !strings.HasPrefix(agent, "Firefox  on  Bcc:") || len(agent) > agentMost {
			t.Errorf("%q", agent)
		}
		for range 3 {
			c.Device = in.Token
			if in, err = h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password}); err != nil {
				t.Fatal(err)
			}
		}
		c.Device = ""
		if _, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: "wrong horse"}); err == nil {
			t.Fatal(err)
		}
		if mails := h.sent("ann@example.org", mail.NewDevice); len(mails) != 1 {
			t.Errorf("%d mails", len(mails))
		}
		raw := everything(t, h.db, h.url)
		for _, secret := range []string{"Firefox", "near here", "192.0.2.1", in.Token, in.Token[len("zs_"):]} {
			if found(raw, secret) {
				t.Errorf("%q stands in the database", secret)
			}
		}
	})
}

func TestASignInIsAllOrNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		secret, _ := h.enrolled(&p)
		broken := errors.New("no")
		who := claimed{ID: p.Subject}
		if err := h.db.Get(ctx, &who, `SELECT id, password FROM users WHERE id = ?`, p.Subject); err != nil {
			t.Fatal(err)
		}
		cr := Credentials{Password: password, Code: h.shows(secret, 0)}
		err := h.check(ctx, who, cr, nil, func(*db.Tx, Method) error { return broken })
		if !errors.Is(err, broken) {
			t.Fatal(err)
		}
		if err := h.check(ctx, who, cr, nil, func(*db.Tx, Method) error { return nil }); err != nil {
			t.Errorf("a sign-in that failed for another reason used the code up: %v", err)
		}
	})
}
