package account

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

// freshSession is a fresh one of the owner's.
func (h *home) freshSession(owner string) Principal {
	h.t.Helper()
	var in SignedIn
	err := h.db.Tx(context.Background(), func(tx *db.Tx) error {
		var err error
		in, _, err = h.openSession(context.Background(), tx, owner, Client{}, ByPassword)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return Principal{Subject: owner, SessionID: in.Session.ID, Method: ByPassword, FreshAt: h.clock.Now(), lookup: h.sessionLookup(in.Token)}
}

// goOn is the session by its new token, if it has one.
func (h *home) goOn(p *Principal, in SignedIn) {
	if in.Token != "" {
		p.lookup = h.sessionLookup(in.Token)
	}
}

// sessionCount counts those of the owner that are signed in.
func (h *home) sessionCount(owner string) int { return h.rowsOf("sessions", owner) }

func (h *home) rowsOf(table, owner string) int {
	h.t.Helper()
	var n int
	if err := h.db.Get(context.Background(), &n, `SELECT count(*) FROM `+table+` WHERE owner = ?`, owner); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// toldFactors is what the owner was mailed of their factors, sorted: the clock stands
// still, so nothing tells which came first.
func (h *home) toldFactors(owner string) []string {
	h.t.Helper()
	var all []string
	for _, l := range h.letters() {
		if l.Subject == owner && l.Template == mail.SecondFactorChanged {
			all = append(all, l.Data["What"])
		}
	}
	slices.Sort(all)
	return all
}

// shows is what an authenticator app shows, so many steps from now.
func (h *home) shows(secret string, steps int) string {
	h.t.Helper()
	code, err := totp.GenerateCode(secret, h.clock.Now().Add(time.Duration(steps)*totpPeriod*time.Second))
	if err != nil {
		h.t.Fatal(err)
	}
	return code
}

// tryCode is a sign-in that comes as far as the code.
func (h *home) tryCode(owner, code string) (Method, error) { return checkWith(h.Service, owner, code) }

func checkWith(s *Service, owner, code string) (m Method, err error) {
	ctx := context.Background()
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		var err error
		m, err = s.checkCode(ctx, tx, owner, code)
		return err
	})
	return m, err
}

// opensNot reports whether a code opens nothing, whatever is wrong with it.
func (h *home) opensNot(what, owner, code string) {
	h.t.Helper()
	if m, err := h.tryCode(owner, code); !errors.Is(err, errWrongCode) || m != "" {
		h.t.Errorf("%s: %q, %v, want a wrong code", what, m, err)
	}
}

func (h *home) opens(what, owner, code string, want Method) {
	h.t.Helper()
	if m, err := h.tryCode(owner, code); m != want || err != nil {
		h.t.Errorf("%s: %q, %v, want %q", what, m, err, want)
	}
}

// enrolled has an authenticator app in force, and a step has passed since.
// The session goes on by its new token.
func (h *home) enrolled(p *Principal) (secret string, recovery []string) {
	h.t.Helper()
	ctx := context.Background()
	secret, _, err := h.BeginTOTP(ctx, *p)
	if err != nil {
		h.t.Fatal(err)
	}
	got, err := h.ConfirmTOTP(ctx, *p, Client{}, h.shows(secret, 0))
	if err != nil {
		h.t.Fatal(err)
	}
	h.goOn(p, got.SignedIn)
	h.clock.Advance(totpPeriod * time.Second)
	return secret, got.Recovery
}

// stillNeeds is what a sign-in needs after the password; nil: nothing.
func (h *home) stillNeeds(owner string) *SecondFactor {
	h.t.Helper()
	need, err := h.secondFactor(context.Background(), owner)
	if err != nil {
		h.t.Fatal(err)
	}
	if *need == (SecondFactor{}) {
		return nil
	}
	return need
}

func TestPromise_A4_AnAuthenticatorAppComesIntoForce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann+app@example.org"), h.user("bob@example.org")
		other, p, bobs := h.freshSession(ann), h.freshSession(ann), h.freshSession(bob)

		first, _, err := h.BeginTOTP(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		// Begun, and not confirmed: it asks for nothing and opens nothing.
		if need := h.stillNeeds(ann); need != nil {
			t.Errorf("before it is confirmed a sign-in needs %+v", need)
		}
		h.opensNot("unconfirmed", ann, h.shows(first, 0))
		if n := h.sessionCount(ann); n != 2 {
			t.Errorf("%d sessions", n)
		}

		secret, uri, err := h.BeginTOTP(ctx, p)
		if err != nil || secret == first {
			t.Fatalf("begun again: the same secret, %v", err)
		}
		checkURI(t, uri, secret, "ann+app@example.org")
		_, err = h.ConfirmTOTP(ctx, p, Client{}, h.shows(first, 0))
		wantField(t, "the secret that was replaced", err, "body.code")
		_, err = h.ConfirmTOTP(ctx, bobs, Client{}, h.shows(secret, 0))
		wantCode(t, "somebody else, who has none", err, problem.Conflict)
		got, err := h.ConfirmTOTP(ctx, p, Client{}, h.shows(secret, 0))
		recovery := got.Recovery
		if err != nil || len(recovery) != recoveryCodes {
			t.Fatalf("%d recovery codes, %v", len(recovery), err)
		}
		h.goOn(&p, got.SignedIn)

		// In force: other sessions are gone, and nobody else's.
		if need := h.stillNeeds(ann); need == nil || !need.TOTP || !need.Recovery || need.Passkey != nil {
			t.Errorf("a sign-in needs %+v", need)
		}
		if h.sessionCount(ann) != 1 || h.sessionCount(bob) != 1 {
			t.Errorf("%d sessions of Ann, %d of Bob", h.sessionCount(ann), h.sessionCount(bob))
		}
		_, _, err = h.BeginTOTP(ctx, other)
		wantCode(t, "in the session that ended", err, problem.Unauthorized)
		if _, _, err := h.BeginTOTP(ctx, bobs); err != nil {
			t.Errorf("Bob's session: %v", err)
		}
		h.opensNot("the code that confirmed", ann, h.shows(secret, 0))
		h.opens("the next", ann, h.shows(secret, 1), ByPasswordTOTP)

		_, _, err = h.BeginTOTP(ctx, p)
		wantCode(t, "a second app", err, problem.Conflict)
		_, err = h.ConfirmTOTP(ctx, p, Client{}, h.shows(secret, 1))
		wantCode(t, "confirmed again", err, problem.Conflict)
		if told := h.toldFactors(ann); !slices.Equal(told, []string{"An authenticator app was added."}) {
			t.Errorf("told %q", told)
		}
	})
}

func checkURI(t *testing.T, uri, secret, email string) {
	t.Helper()
	key, err := otp.NewKeyFromURL(uri)
	if err != nil {
		t.Fatal(err)
	}
	if key.Type() != "totp" || key.Issuer() != "Z Image Generator" || key.AccountName() != email || key.Secret() != secret ||
		key.Period() != 30 || key.Digits() != otp.DigitsSix || key.Algorithm() != otp.AlgorithmSHA1 {
		t.Errorf("an app reads %q %q, %d s, %d digits", key.Type(), key.Issuer(), key.Period(), key.Digits())
	}
	if len(secret) != 32 { // 160 bits in base 32
		t.Errorf("the secret has %d characters", len(secret))
	}
	if u, err := url.Parse(uri); err != nil || u.Query().Get("issuer") != "Z Image Generator" {
		t.Errorf("issuer %q, %v", u.Query().Get("issuer"), err)
	}
}

func TestPromise_A4_Attack_ACodeIsReused(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ann := h.user("ann@example.org")
		secret, _ := h.enrolled(new(h.freshSession(ann)))
		code := h.shows(secret, 0)
		h.opens("once", ann, code, ByPasswordTOTP)
		h.opensNot("twice", ann, code)
		h.opensNot("the one before it, unused", ann, h.shows(secret, -1))
		h.opens("the next", ann, h.shows(secret, 1), ByPasswordTOTP)
		h.clock.Advance(totpPeriod * time.Second)
		h.opensNot("used before its time", ann, h.shows(secret, 0))
		h.clock.Advance(totpPeriod * time.Second)

		// At once, by many, through two processes: one gets in.
		there := h.process()
		code = h.shows(secret, 0)
		const n = 32
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { _, errs[i] = checkWith([]*Service{h.Service, there}[i%2], ann, code) })
		}
		wg.Wait()
		got := 0
		for _, err := range errs {
			switch {
			case err == nil:
				got++
			case !errors.Is(err, errWrongCode):
				t.Error(err)
			}
		}
		if got != 1 {
			t.Errorf("one code opened %d sessions", got)
		}
	})
}

func TestACodeThatOpensNothingIsNotUsedUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		secret, recovery := h.enrolled(new(h.freshSession(ann)))
		for code, want := range map[string]Method{h.shows(secret, 0): ByPasswordTOTP, recovery[0]: ByPasswordRecovery} {
			broken := errors.New("the caller's transaction fails")
			if err := h.db.Tx(ctx, func(tx *db.Tx) error {
				if _, err := h.checkCode(ctx, tx, ann, code); err != nil {
					return err
				}
				return broken
			}); !errors.Is(err, broken) {
				t.Error(err)
			}
			h.opens("after a failure that was ours", ann, code, want)
		}
	})
}

func TestPromise_A4_ACodeIsGoodForAStepEitherWay(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ann := h.user("ann@example.org")
		secret, _ := h.enrolled(new(h.freshSession(ann)))
		for _, steps := range []int{-3, -2, -1, 0, 1, 2, 3} {
			h.clock.Advance(10 * totpPeriod * time.Second) // far from what was used
			code := h.shows(secret, steps)
			if steps < -totpSkew || steps > totpSkew {
				h.opensNot("too far", ann, code)
			} else {
				h.opens("within a step", ann, code, ByPasswordTOTP)
			}
		}
		h.clock.Advance(10 * totpPeriod * time.Second)
		code := h.shows(secret, 0)
		h.opens("typed in two groups", ann, " "+code[:3]+" "+code[3:]+" ", ByPasswordTOTP)
	})
}

func TestPromise_A4_WrongCodesOpenNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ann, bob, eve := h.user("ann@example.org"), h.user("bob@example.org"), h.user("eve@example.org")
		secret, _ := h.enrolled(new(h.freshSession(ann)))
		bobSecret, bobRecovery := h.enrolled(new(h.freshSession(bob)))
		code := h.shows(secret, 0)
		next := string('0'+(code[5]-'0'+1)%10) + code[1:]
		for what, wrong := range map[string]string{
			"none": "", "another": next, "five digits": code[:5], "seven": code + "0", "letters": "abcdef",
			"full-width digits": "１２３４５６", "behind a sign": "+" + code[1:], "a recovery code of nobody": "0000-0000-0000-0000",
			"long": strings.Repeat("1", 1<<20), "the right one behind much": strings.Repeat(" ", 1<<10) + code, "NUL": code[:5] + "\x00", "not text": "\xff\xfe\xfd\xfc\xfb\xfa",
			"Bob's": h.shows(bobSecret, 0), "Bob's recovery code": bobRecovery[0],
		} {
			if wrong == code {
				continue // a chance of one in a million: Bob's app shows the same
			}
			h.opensNot(what, ann, wrong)
		}
		h.opensNot("an account without factors", eve, code)
		h.opensNot("no account", "sub_none", code)
		h.opens("after all of these", ann, code, ByPasswordTOTP)
		h.opens("Bob's own", bob, bobRecovery[0], ByPasswordRecovery)
	})
}

func TestTOTPIsRemoved(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		wantCode(t, "there is none", h.RemoveTOTP(ctx, p), problem.NotFound)
		begun, _, err := h.BeginTOTP(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.RemoveTOTP(ctx, p); err != nil {
			t.Fatal(err)
		}
		_, err = h.ConfirmTOTP(ctx, p, Client{}, h.shows(begun, 0))
		wantCode(t, "confirmed after it was dropped", err, problem.Conflict)
		if told := h.toldFactors(ann); told != nil {
			t.Errorf("told %q of what never was in force", told)
		}

		secret, recovery := h.enrolled(&p)
		h.opens("this step's code", ann, h.shows(secret, 0), ByPasswordTOTP)
		if err := h.RemoveTOTP(ctx, p); err != nil {
			t.Fatal(err)
		}
		if need := h.stillNeeds(ann); need != nil {
			t.Errorf("without a factor a sign-in needs %+v", need)
		}
		h.opensNot("of the removed app", ann, h.shows(secret, 1))
		h.opensNot("recovery for nothing", ann, recovery[0])
		if n := h.rowsOf("recovery_codes", ann); n != 0 {
			t.Errorf("%d recovery codes outlived the last factor", n)
		}
		// A new secret has used none of its steps, not even this one.
		again, _, err := h.BeginTOTP(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := h.ConfirmTOTP(ctx, p, Client{}, h.shows(again, 0)); err != nil || len(got.Recovery) != recoveryCodes || slices.Contains(got.Recovery, recovery[0]) {
			t.Errorf("%d recovery codes, %v", len(got.Recovery), err)
		}
		if told := h.toldFactors(ann); !slices.Equal(told, []string{"An authenticator app was added.", "An authenticator app was added.", "The authenticator app was removed."}) {
			t.Errorf("told %q", told)
		}
	})
}

// factorChanges are all that change factors.
func (h *home) factorChanges(p Principal) map[string]func() error {
	ctx := context.Background()
	return map[string]func() error{
		"begin TOTP":    func() error { _, _, err := h.BeginTOTP(ctx, p); return err },
		"confirm TOTP":  func() error { _, err := h.ConfirmTOTP(ctx, p, Client{}, "000000"); return err },
		"remove TOTP":   func() error { return h.RemoveTOTP(ctx, p) },
		"new codes":     func() error { _, err := h.NewRecoveryCodes(ctx, p); return err },
		"begin passkey": func() error { _, err := h.BeginPasskey(ctx, p); return err },
		"add passkey": func() error {
			_, _, err := h.AddPasskey(ctx, p, Client{}, "key", PasskeyAnswer{ChallengeID: "chal_none", Response: []byte("{}")})
			return err
		},
		"remove passkey": func() error { return h.RemovePasskey(ctx, p, "pk_none") },
	}
}

func TestFactorsChangeOnlyInAFreshSessionOfAnOpenAccount(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		h.enrolled(&p)
		stale := p
		stale.FreshAt = h.clock.Now().Add(-freshFor)
		key := Principal{Subject: ann, KeyID: "key_1", Scopes: Scopes(), FreshAt: h.clock.Now()}
		for what, change := range h.factorChanges(stale) {
			wantCode(t, "not fresh: "+what, change(), problem.ReauthNeeded)
		}
		for what, change := range h.factorChanges(key) {
			if code := problem.CodeOf(change()); code != problem.ReauthNeeded && code != problem.Forbidden {
				t.Errorf("by a key: %s: %s", what, code)
			}
		}
		gone := h.freshSession(ann)
		if _, err := h.db.Exec(ctx, `DELETE FROM sessions WHERE id = ?`, gone.SessionID); err != nil {
			t.Fatal(err)
		}
		for what, change := range h.factorChanges(gone) {
			wantCode(t, "ended a moment ago: "+what, change(), problem.Unauthorized)
		}
		stranger := h.freshSession(h.user("bob@example.org"))
		stranger.Subject = ann // no door makes this one
		for what, change := range h.factorChanges(stranger) {
			wantCode(t, "another's session: "+what, change(), problem.Unauthorized)
		}
		state(t, h, ann, subject.Closing)
		for what, change := range h.factorChanges(p) {
			wantCode(t, "closing: "+what, change(), problem.Unauthorized)
		}
		if state, err := h.factors(ctx, h.db, ann); err != nil || !state.TOTP || state.CodesLeft != recoveryCodes {
			t.Errorf("something changed: %+v, %v", state, err)
		}
		if told := h.toldFactors(ann); len(told) != 1 {
			t.Errorf("told %q", told)
		}
		h.opensNot("nobody", "sub_none", "123456")
		_, err := h.factors(ctx, h.db, "sub_none")
		wantCode(t, "nobody's factors", err, problem.Unauthorized)
	})
}

func TestStaffKeepASecondFactor(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		h.enrolled(&p)
		key := newDevice()
		made := h.addPasskey(&p, key)
		if _, err := h.db.Exec(ctx, `UPDATE users SET role = ? WHERE id = ?`, RoleSupport, ann); err != nil {
			t.Fatal(err)
		}
		if err := h.RemoveTOTP(ctx, p); err != nil {
			t.Errorf("one of two: %v", err)
		}
		wantCode(t, "the last", h.RemovePasskey(ctx, p, made.ID), problem.Conflict)
		if state, err := h.factors(ctx, h.db, ann); err != nil || state != (factorState{Passkeys: 1, CodesLeft: recoveryCodes}) {
			t.Errorf("%+v, %v", state, err)
		}
		h.enrolled(&p)
		if err := h.RemovePasskey(ctx, p, made.ID); err != nil {
			t.Errorf("one of two: %v", err)
		}
		wantCode(t, "the last", h.RemoveTOTP(ctx, p), problem.Conflict)
	})
}

func TestAResetTakesAllFactors(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		p, bobs := h.freshSession(ann), h.freshSession(bob)
		secret, recovery := h.enrolled(&p)
		key := newDevice()
		h.addPasskey(&p, key)
		h.enrolled(&bobs)
		_ = h.stillNeeds(ann) // leaves a challenge
		reset := func(owner string) error {
			return h.db.Tx(ctx, func(tx *db.Tx) error { return h.resetFactors(ctx, tx, owner) })
		}
		if err := reset(ann); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"recovery_codes", "passkeys", "passkey_challenges", "sessions"} {
			if n := h.rowsOf(table, ann); n != 0 {
				t.Errorf("%d rows of Ann are left in %s", n, table)
			}
		}
		if need := h.stillNeeds(ann); need != nil {
			t.Errorf("a sign-in needs %+v", need)
		}
		h.opensNot("her app", ann, h.shows(secret, 0))
		h.opensNot("her recovery code", ann, recovery[0])
		h.refuses("her passkey", h.signInWith(key))
		if told := h.toldFactors(ann); len(told) != 2 {
			t.Errorf("told %q", told)
		}
		if h.rowsOf("recovery_codes", bob) != recoveryCodes || h.sessionCount(bob) != 1 || !h.stillNeeds(bob).TOTP {
			t.Error("Bob lost something")
		}
		wantCode(t, "nobody", reset("sub_none"), problem.Unauthorized)
	})
}

// What somebody reads in a transaction holds until it ends: the first factor does
// not come into force beside a sign-in that asked for none, and the last is not
// removed beside a role that counts on it.
func TestFactorsStayWhileSomebodyCountsOnThem(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		there := h.process()
		// beside begins change when the transaction has read the factors, and lets
		// the transaction go on when the change waits for it, or has not waited.
		beside := func(owner string, enter func(tx *db.Tx) error, change func() error, then func(tx *db.Tx) error) error {
			t.Helper()
			changed := make(chan error, 1)
			begun := false
			err := h.db.Tx(ctx, func(tx *db.Tx) error {
				if err := enter(tx); err != nil {
					return err
				}
				if _, err := h.factors(ctx, tx, owner); err != nil {
					return err
				}
				if begun {
					return errors.New("the transaction had to begin again")
				}
				begun = true
				go func() { changed <- change() }()
				if h.db.Dialect() == db.Postgres { // SQLite has one writer: the change waits before it begins
					testenv.Eventually(t, 20*time.Second, func() bool {
						var waits int
						if err := there.db.Get(ctx, &waits, `SELECT count(*) FROM pg_stat_activity
							WHERE datname = current_database() AND wait_event_type = 'Lock'`); err != nil {
							t.Error(err)
						}
						return waits == 1 || len(changed) == 1
					})
				}
				return then(tx)
			})
			if err != nil {
				t.Fatal(err)
			}
			return <-changed
		}

		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		secret, _, err := h.BeginTOTP(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if err := beside(ann,
			func(tx *db.Tx) error { return h.enter(ctx, tx, ann) },
			func() error {
				got, err := there.ConfirmTOTP(ctx, p, Client{}, h.shows(secret, 0))
				h.goOn(&p, got.SignedIn)
				return err
			},
			func(tx *db.Tx) error {
				_, _, err := h.openSession(ctx, tx, ann, Client{}, ByPassword)
				return err
			}); err != nil {
			t.Fatal(err)
		}
		if n := h.sessionCount(ann); n != 1 {
			t.Errorf("%d sessions: one that was opened without the factor is left", n)
		}
		wantCode(t, "the last factor of somebody who just became staff", beside(ann,
			func(*db.Tx) error { return nil },
			func() error { return there.RemoveTOTP(ctx, p) },
			func(tx *db.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE users SET role = ? WHERE id = ?`, RoleSupport, ann)
				return err
			}), problem.Conflict)
	})
}
