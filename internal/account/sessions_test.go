package account

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

func TestSessionTokens(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		token := h.sessionForm.make()
		if len(token) != 75 || !strings.HasPrefix(token, "zs_") || !h.sessionForm.fits(token) || keyForm.fits(token) || h.codeForm.fits(token) {
			t.Errorf("%d characters", len(token))
		}
		for _, f := range []form{keyForm, h.codeForm, h.sessionForm} {
			if f.random*8 < 160 || (f.random+f.sum)%5 != 0 {
				t.Errorf("%s: %d and %d bytes", f.start, f.random, f.sum)
			}
		}
	})
}

// One of every kind that must not get in gets the same answer.
func TestAuthenticateSessionRefusesAllAlike(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		closing, p := h.member("closing@example.org", "closing")
		state(t, h, p.Subject, subject.Closing)
		gone, p := h.member("gone@example.org", "gone")
		state(t, h, p.Subject, subject.Erased)
		out, p := h.member("out@example.org", "out")
		device, err := h.SignOut(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		key, _ := h.key(p.Subject, time.Time{})
		for what, token := range map[string]string{
			"none": "", "malformed": "zs_nonsense", "unknown": h.sessionForm.make(), "a key": key, "signed out": out.Token, "only a device": device,
			"closing": closing.Token, "erased": gone.Token,
		} {
			_, err := h.AuthenticateSession(ctx, token)
			if wantCode(t, what, err, problem.Unauthorized); err != nil && err.Error() != notSignedIn().Error() {
				t.Errorf("%s: %v", what, err)
			}
		}
		in, _ := h.member("ann@example.org", "ann")
		_, err = h.Authenticate(ctx, in.Token)
		wantCode(t, "a session as a key", err, problem.Unauthorized)
	})
}

func TestPromise_A5_AnEndedSessionIsRefusedAtOnceEverywhere(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		there := h.process()
		first, p := h.member("ann@example.org", "ann")
		var others []SignedIn
		for range 4 {
			in, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: password})
			if err != nil {
				t.Fatal(err)
			}
			others = append(others, in)
		}
		if list, err := h.Sessions(ctx, p); err != nil || len(list) != 5 {
			t.Fatalf("%v, %v", list, err)
		}
		in := func(one SignedIn) bool {
			t.Helper()
			var first bool
			for i, s := range []*Service{h.Service, there} {
				_, err := s.AuthenticateSession(ctx, one.Token)
				if err != nil {
					wantCode(t, "an ended one", err, problem.Unauthorized)
				}
				if i == 0 {
					first = err == nil
				} else if first != (err == nil) {
					t.Error("the processes differ")
				}
			}
			return first
		}
		if !in(first) || !in(others[0]) {
			t.Fatal("not signed in")
		}
		bob, _ := h.member("bob@example.org", "bob")
		wantCode(t, "somebody else's", h.EndSession(ctx, p.Subject, bob.Session.ID), problem.NotFound)
		wantCode(t, "none", h.EndSession(ctx, p.Subject, "ses_none"), problem.NotFound)
		if err := h.EndSession(ctx, p.Subject, others[0].Session.ID); err != nil || in(others[0]) || !in(others[1]) {
			t.Errorf("one was ended: %v", err)
		}
		wantCode(t, "once more", h.EndSession(ctx, p.Subject, others[0].Session.ID), problem.NotFound)
		if _, err := h.SignOut(ctx, h.principal(others[1].Token)); err != nil || in(others[1]) {
			t.Errorf("one signed out: %v", err)
		}
		if n, err := h.EndSessions(ctx, p.Subject, p.SessionID); n != 2 || err != nil || in(others[2]) || in(others[3]) || !in(first) {
			t.Errorf("the others were ended: %d, %v", n, err)
		}
		if n := h.sessionCount(p.Subject); n != 1 {
			t.Errorf("%d browsers are known still", n)
		}
		if n, err := h.EndSessions(ctx, p.Subject, ""); n != 1 || err != nil || in(first) || !in(bob) {
			t.Errorf("all were ended: %d, %v", n, err)
		}
	})
}

func TestPromise_A5_SessionsAreListedWithDevicePlaceAndLastUse(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		h.clock.Advance(time.Hour)
		phone := browser("198.51.100.1", "")
		in, err := h.SignIn(ctx, phone, Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		opened := h.clock.Now()
		h.clock.Advance(touchEvery - time.Millisecond)
		h.principal(in.Token)
		list, err := h.Sessions(ctx, p)
		if err != nil || len(list) != 2 {
			t.Fatalf("%v, %v", list, err)
		}
		want := Session{
			ID: in.Session.ID, Method: ByPassword, Agent: phone.Agent, CreatedAt: opened, LastUsedAt: opened, ExpiresAt: opened.Add(sessionLife),
		}
		if list[0] != want || list[0].Current || !list[1].Current || list[1].ID != p.SessionID {
			t.Errorf("%+v, want %+v first", list, want)
		}
		h.clock.Advance(time.Millisecond)
		h.principal(in.Token)
		if list, err = h.Sessions(ctx, p); err != nil || !list[0].LastUsedAt.Equal(opened.Add(touchEvery)) {
			t.Errorf("a minute later: %+v, %v", list, err)
		}
	})
}

func TestSessionsEndByThemselves(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for role, c := range map[Role]struct{ idle, life time.Duration }{
			NoRole: {sessionIdle, sessionLife}, RoleSupport: {staffSessionIdle, staffSessionLife},
		} {
			email, username := "person@example.org", "person"
			if role != NoRole {
				email, username = "staff@example.org", "staff"
			}
			_, p := h.member(email, username)
			if _, err := h.db.Exec(ctx, `UPDATE users SET role = ? WHERE id = ?`, role, p.Subject); err != nil {
				t.Fatal(err)
			}
			open := func() SignedIn {
				t.Helper()
				in, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: email, Password: password})
				if err != nil {
					t.Fatal(err)
				}
				return in
			}
			left := func(in SignedIn) bool {
				t.Helper()
				_, err := h.AuthenticateSession(ctx, in.Token)
				if err != nil {
					wantCode(t, "run out", err, problem.Unauthorized)
				}
				return err == nil
			}
			idle := open()
			h.clock.Advance(c.idle - time.Millisecond)
			if !left(idle) {
				t.Errorf("%q: out before its time", role)
			}
			h.clock.Advance(c.idle)
			if left(idle) {
				t.Errorf("%q: unused, and still in", role)
			}
			if n, err := h.Sessions(ctx, Principal{Subject: p.Subject, Role: role}); err != nil || len(n) != 0 {
				t.Errorf("%q: listed: %v, %v", role, n, err)
			}
			used := open()
			if want := h.clock.Now().Add(c.life); !used.Session.ExpiresAt.Equal(want) {
				t.Errorf("%q: until %v, want %v", role, used.Session.ExpiresAt, want)
			}
			for end := used.Session.ExpiresAt; h.clock.Now().Before(end); h.clock.Advance(min(c.idle/2, end.Sub(h.clock.Now()))) {
				if !left(used) {
					t.Fatalf("%q: used, and out at %v", role, h.clock.Now())
				}
			}
			if left(used) {
				t.Errorf("%q: older than it may be", role)
			}
		}
	})
}

func TestARoleShortensSessionsThatAreOpen(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		in, p := h.member("ann@example.org", "ann")
		h.clock.Advance(staffSessionIdle)
		h.principal(in.Token)
		if _, err := h.db.Exec(context.Background(), `UPDATE users SET role = 'support' WHERE id = ?`, p.Subject); err != nil {
			t.Fatal(err)
		}
		h.principal(in.Token)
		h.clock.Advance(staffSessionIdle)
		_, err := h.AuthenticateSession(context.Background(), in.Token)
		wantCode(t, "idle for staff", err, problem.Unauthorized)
	})
}

func TestScopesOfASession(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		role  Role
		m     Method
		admin bool
	}{
		{NoRole, ByPassword, false}, {NoRole, ByPasskey, false}, {RoleOperator, ByPassword, false},
		{RoleOperator, ByPasskey, true}, {RoleSupport, ByPasswordTOTP, true}, {RolePrivacy, ByPasswordRecovery, true},
	} {
		scopes := sessionScopes(c.role, c.m)
		if slices.Contains(scopes, ScopeAdmin) != c.admin || len(scopes) < len(Scopes())-1 {
			t.Errorf("%q by %s: %v", c.role, c.m, scopes)
		}
	}
}

func TestAPrincipalKnowsTheRole(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, p := h.member("ann@example.org", "ann")
		token, _, err := h.CreateKey(ctx, p.Subject, "all", Scopes(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		who, err := h.Authenticate(ctx, token)
		if err != nil || who.Has(ScopeAdmin) || !who.Has(ScopeAccount) || who.Role != NoRole {
			t.Errorf("a key with the scope admin whose owner is no staff: %+v, %v", who, err)
		}
		if _, err := h.db.Exec(ctx, `UPDATE users SET role = 'operator' WHERE id = ?`, p.Subject); err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(knownFor)
		who, err = h.Authenticate(ctx, token)
		if err != nil || who.Role != RoleOperator || !who.Has(ScopeAdmin) || who.SessionID != "" {
			t.Errorf("%+v, %v", who, err)
		}
		who = h.principal(in.Token)
		if who.Role != RoleOperator || who.Has(ScopeAdmin) || who.KeyID != "" || !who.Has(ScopeGenerate) {
			t.Errorf("%+v", who)
		}
	})
}

// Session fixation: what an attacker planted in the browser opens nothing after
// the victim has signed in.
func TestPromise_A4_SignInAlwaysChangesTheToken(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		eve, _ := h.member("eve@example.org", "eve")
		first, p := h.member("ann@example.org", "ann")
		device, err := h.SignOut(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		victim := func(planted string) SignedIn {
			t.Helper()
			in, err := h.SignIn(ctx, browser("192.0.2.1", planted), Credentials{Email: "ann@example.org", Password: password})
			if err != nil {
				t.Fatal(err)
			}
			if in.Token == planted {
				t.Fatal("the planted token was kept")
			}
			if planted != "" {
				_, err := h.AuthenticateSession(ctx, planted)
				wantCode(t, "the planted token", err, problem.Unauthorized)
			}
			return in
		}
		if in := victim(device); in.Session.ID != first.Session.ID {
			t.Error("the browser was not known again")
		} else {
			again := victim(in.Token) // also while it is signed in
			if again.Session.ID != in.Session.ID || h.sessionCount(p.Subject) != 1 {
				t.Error("one browser, two sessions")
			}
		}
		in := victim(eve.Token)
		if h.principal(in.Token).Subject != p.Subject {
			t.Error("signed in as somebody else")
		}
		victim(h.sessionForm.make())
		victim("nonsense")
		if mails := h.sent("ann@example.org", mail.NewDevice); len(mails) != 3 {
			t.Errorf("%d mails, want one for each browser that was not known", len(mails))
		}
	})
}

func TestACookieStolenBeforeTheSignOutIsWorthNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, p := h.member("ann@example.org", "ann")
		device, err := h.SignOut(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		for what, token := range map[string]string{"the stolen one": in.Token, "what is left in the cookie": device} {
			_, err := h.AuthenticateSession(ctx, token)
			wantCode(t, what, err, problem.Unauthorized)
		}
		_, err = h.SignOut(ctx, p)
		wantCode(t, "signed out twice", err, problem.Unauthorized)
		_, err = h.Reauthenticate(ctx, p, browser("10.6.6.6", in.Token), Credentials{Password: password})
		wantCode(t, "made fresh", err, problem.Unauthorized)
		if row, err := h.device(ctx, device); err != nil || row.Owner != p.Subject {
			t.Errorf("the browser is not known: %+v, %v", row, err)
		}
		if row, err := h.device(ctx, in.Token); err != nil || row.Owner != "" {
			t.Errorf("nor is the thief's: %+v, %v", row, err)
		}
		if _, err := h.SignIn(ctx, browser("192.0.2.1", device), Credentials{Email: "ann@example.org", Password: password}); err != nil {
			t.Fatal(err)
		}
		if mails := h.sent("ann@example.org", mail.NewDevice); len(mails) != 0 {
			t.Error("told of a device that is known")
		}
	})
}

// A request that stays open asks now and then whether its session or key holds.
// That is no use of it, and a new token is its end as well.
func TestPromise_A5_AnOpenRequestEndsWithItsSessionAndKeepsNoneAlive(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, p := h.member("ann@example.org", "ann")
		other := h.process()
		holds := func(what string, p Principal, want bool) {
			t.Helper()
			for _, s := range []*Service{h.Service, other} {
				err := s.StillHolds(ctx, p)
				if want && err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if !want {
					wantCode(t, what, err, problem.Unauthorized)
				}
			}
		}
		holds("a session", p, true)
		h.clock.Advance(sessionIdle - time.Millisecond)
		holds("in its last moment", p, true)
		h.clock.Advance(time.Millisecond)
		holds("that nobody but an open request used", p, false)
		_, err := h.AuthenticateSession(ctx, in.Token)
		wantCode(t, "it is not revived", err, problem.Unauthorized)

		c := browser("192.0.2.1", in.Token)
		signIn := func() Principal {
			t.Helper()
			next, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password})
			if err != nil {
				t.Fatal(err)
			}
			c.Device = next.Token
			h.clock.Advance(time.Second)
			return h.principal(next.Token)
		}
		p = signIn()
		rotated, err := h.Reauthenticate(ctx, p, c, Credentials{Password: password})
		if err != nil {
			t.Fatal(err)
		}
		c.Device = rotated.Token
		holds("by the token of before", p, false)
		p = h.principal(rotated.Token)
		holds("by the new token", p, true)
		again := signIn() // in the same browser, which keeps its row
		if again.SessionID != p.SessionID {
			t.Fatal("the browser has a new row")
		}
		holds("after another sign-in", p, false)
		holds("that one's own", again, true)
		stranger := again
		stranger.Subject = "sub_other"
		holds("somebody else's", stranger, false)
		if _, err := h.SignOut(ctx, again); err != nil {
			t.Fatal(err)
		}
		holds("after the sign-out", again, false)
		last := signIn()
		if err := h.Close(ctx, last, c, Credentials{Password: password}); err != nil {
			t.Fatal(err)
		}
		holds("of a closed account", last, false)
	})
}

// What was let in by a token that is none any more changes nothing, however long its
// body took: neither the account nor the session, which goes on by its new token.
func TestAttack_AHeldBackRequestDoesNotOutliveItsToken(t *testing.T) {
	t.Parallel()
	const another = "correct horse battery staple two"
	for what, rotate := range map[string]func(h *home, p Principal, c Client) SignedIn{
		"a new password": func(h *home, p Principal, c Client) SignedIn {
			in, err := h.ChangePassword(context.Background(), p, c, another)
			if err != nil {
				h.t.Fatal(err)
			}
			return in
		},
		"the first factor": func(h *home, p Principal, c Client) SignedIn {
			secret, _, err := h.BeginTOTP(context.Background(), p)
			if err != nil {
				h.t.Fatal(err)
			}
			got, err := h.ConfirmTOTP(context.Background(), p, c, h.shows(secret, 0))
			if err != nil {
				h.t.Fatal(err)
			}
			return got.SignedIn
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, h *home) {
				ctx := context.Background()
				in, old := h.member("ann@example.org", "ann")
				thief := browser("198.51.100.6", in.Token)
				name := "mallory"
				next := rotate(h, old, browser("192.0.2.1", in.Token))
				for held, act := range map[string]func(p Principal) error{
					"username": func(p Principal) error { return second(h.UpdateUser(ctx, p, UserChange{Username: &name})) },
					"address":  func(p Principal) error { return h.ChangeEmail(ctx, p, "mallory@example.org") },
					"password": func(p Principal) error {
						return errorOf(h.ChangePassword(ctx, p, thief, "another horse battery staple"))
					},
					"key": func(p Principal) error {
						_, _, err := h.NewKey(ctx, p, "mine", []string{ScopeRead}, time.Time{})
						return err
					},
					"passkey":     func(p Principal) error { return second(h.BeginPasskey(ctx, p)) },
					"consent":     func(p Principal) error { return h.SetConsent(ctx, p, subject.Marketing, true) },
					"restriction": func(p Principal) error { return h.Restrict(ctx, p) },
					"sign-out":    func(p Principal) error { return second(h.SignOut(ctx, p)) },
				} {
					wantCode(t, held, act(old), problem.Unauthorized)
				}
				p := h.principal(next.Token)
				u, err := h.User(ctx, p.Subject)
				if err != nil || u.Username != "ann" || !u.RestrictedAt.IsZero() || h.rowsOf("api_keys", p.Subject) != 0 {
					t.Errorf("%+v, %v", u, err)
				}
				if err := h.SetConsent(ctx, p, subject.Marketing, true); err != nil {
					t.Errorf("by the new token: %v", err)
				}
			})
		})
	}
}

func TestAnOpenRequestIsNoUseOfItsKey(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		token, k := h.key(ann, time.Time{})
		used := func() int {
			t.Helper()
			if err := h.writeUses(ctx); err != nil {
				t.Fatal(err)
			}
			return h.count(`SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL`)
		}
		if who, err := h.KeyHolds(ctx, token); err != nil || who.KeyID != k.ID || used() != 0 {
			t.Errorf("%+v, %v, %d uses", who, err, used())
		}
		if _, err := h.Authenticate(ctx, token); err != nil || used() != 1 {
			t.Errorf("%v, %d uses", err, used())
		}
		if err := h.RevokeKey(ctx, ann, k.ID); err != nil {
			t.Fatal(err)
		}
		_, err := h.KeyHolds(ctx, token)
		wantCode(t, "revoked", err, problem.Unauthorized)
	})
}

func TestBrowsersAreForgotten(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		device, err := h.SignOut(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(unusedFor - time.Minute)
		if err := h.Prune(ctx); err != nil {
			t.Fatal(err)
		}
		if row, err := h.device(ctx, device); err != nil || row.ID == "" {
			t.Errorf("forgotten before its time, %v", err)
		}
		h.clock.Advance(2 * time.Minute)
		if err := h.Prune(ctx); err != nil {
			t.Fatal(err)
		}
		if row, err := h.device(ctx, device); err != nil || row.ID != "" {
			t.Errorf("known for ever, %v", err)
		}
	})
}

func TestAnOwnersBrowsersAreBounded(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, p := h.member("ann@example.org", "ann")
		if err := h.db.Tx(ctx, func(tx *db.Tx) error {
			for i := range sessionsMost {
				if _, err := tx.Exec(ctx, `INSERT INTO sessions (id, owner, token_lookup, method, created_at, fresh_at, last_used_at, expires_at)
					VALUES (?, ?, ?, 'password', 1, 1, ?, 1)`, fmt.Sprint("ses_", i), p.Subject, fmt.Sprint(i), i); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		last, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		if n := h.sessionCount(p.Subject); n != sessionsMost {
			t.Errorf("%d browsers", n)
		}
		h.principal(in.Token) // those that are used stay
		h.principal(last.Token)
	})
}
