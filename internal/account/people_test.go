package account

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

const why = "ticket 17: lost the telephone"

// toldOfStaff asserts what staff are told to have done with somebody's account.
func (h *home) toldOfStaff(owner string, want ...events.Event) {
	h.t.Helper()
	told := h.happened.of("staff.")
	if len(told) != len(want) {
		h.t.Fatalf("told %+v", told)
	}
	for i, w := range want {
		if got := told[i]; got.Type != w.Type || got.Ref != w.Ref || got.Subject != owner || got.Hidden || got.At.IsZero() || !maps.Equal(got.Facts, w.Facts) {
			h.t.Errorf("told %+v, want %+v", got, w)
		}
	}
}

func TestPromise_X3_StaffActWithARoleTwoFactorsAndAReason(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, eve := h.user("ann@example.org"), h.user("eve@example.org")
		in, err := h.SignIn(ctx, browser("192.0.2.9", ""), Credentials{Email: "eve@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		// Her role and how she signed in are as each case needs them; the session is real.
		staff := func(r Role, m Method) Principal {
			if _, err := h.db.Exec(ctx, `UPDATE users SET role = ? WHERE id = ?`, r, eve); err != nil {
				t.Fatal(err)
			}
			return Principal{Subject: eve, Role: r, Method: m, SessionID: in.Session.ID, FreshAt: h.clock.Now(), lookup: h.sessionLookup(in.Token)}
		}
		acts := map[string]func(Principal, string) error{
			"find": func(p Principal, reason string) error {
				_, err := h.FindAccount(ctx, p, "ann@example.org", reason)
				return err
			},
			"suspend":     func(p Principal, reason string) error { return h.Suspend(ctx, p, ann, reason) },
			"unsuspend":   func(p Principal, reason string) error { return h.Unsuspend(ctx, p, ann, reason) },
			"close child": func(p Principal, reason string) error { return h.CloseChild(ctx, p, ann, reason) },
			"reset 2fa":   func(p Principal, reason string) error { return h.ResetFactors(ctx, p, ann, reason) },
			"role":        func(p Principal, reason string) error { return h.SetRole(ctx, p, ann, RoleOperator, reason) },
		}
		for name, act := range acts {
			wantCode(t, name+" without a role", act(staff(NoRole, ByPasskey), why), problem.Forbidden)
			wantCode(t, name+" with one factor", act(staff(RoleOperator, ByPassword), why), problem.Forbidden)
			if name != "find" {
				wantCode(t, name+" by support", act(staff(RoleSupport, ByPasswordTOTP), why), problem.Forbidden)
			}
			for _, reason := range []string{"", "why not", strings.Repeat("x", 501), "two\nlines of a reason"} {
				wantCode(t, name+" for no reason", act(AtTheMachine(), reason), problem.InvalidRequest)
			}
		}
		for name, act := range map[string]func(Principal, string) error{"reset 2fa": acts["reset 2fa"], "role": acts["role"]} {
			wantCode(t, name+" over the API", act(staff(RoleOperator, ByPasskey), why), problem.Forbidden)
		}
		wantCode(t, "a key of an operator", acts["suspend"](Principal{Subject: eve, Role: RoleOperator, Method: ByPasskey, KeyID: "key_x"}, why), problem.Forbidden)
		wantCode(t, "on oneself", h.Unsuspend(ctx, staff(RoleOperator, ByPasskey), eve, why), problem.Forbidden)
		_, err = h.FindAccount(ctx, staff(RoleSupport, ByPasskey), "nobody@example.org", "          ")
		wantCode(t, "an address without account, for no reason", err, problem.InvalidRequest)
		stale := staff(RoleOperator, ByPasskey)
		stale.FreshAt = stale.FreshAt.Add(-freshFor)
		wantCode(t, "closing in a session that is not fresh", h.CloseChild(ctx, stale, ann, why), problem.ReauthNeeded)
		gone := staff(RoleOperator, ByPasskey)
		gone.SessionID = "ses_ended"
		wantCode(t, "a session that has ended since", h.Suspend(ctx, gone, ann, why), problem.Forbidden)
		gone = staff(RoleOperator, ByPasskey)
		gone.lookup = h.sessionLookup(h.sessionForm.make())
		wantCode(t, "a session that has another token since", h.Suspend(ctx, gone, ann, why), problem.Forbidden)
		before := staff(RoleOperator, ByPasskey)
		staff(NoRole, ByPasskey)
		wantCode(t, "a role that was taken since", h.Suspend(ctx, before, ann, why), problem.Forbidden)
		suspended := staff(RoleOperator, ByPasskey)
		if _, err := h.db.Exec(ctx, `UPDATE subjects SET suspended_at = 1 WHERE id = ?`, eve); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "somebody who is suspended", h.Suspend(ctx, suspended, ann, why), problem.Forbidden)
		if _, err := h.db.Exec(ctx, `UPDATE subjects SET suspended_at = NULL WHERE id = ?`, eve); err != nil {
			t.Fatal(err)
		}
		if told := h.happened.of("staff."); len(told) != 0 {
			t.Errorf("acts are told of that were refused: %+v", told)
		}

		u, err := h.FindAccount(ctx, staff(RoleSupport, ByPasskey), "ann@example.org", why)
		if err != nil || u.ID != ann || u.Email != "ann@example.org" {
			t.Fatalf("%+v, %v", u, err)
		}
		h.clock.Advance(time.Second) // ids of one millisecond have no order
		if err := acts["suspend"](staff(RoleOperator, ByPasswordRecovery), why); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "work of a suspended account", subject.May(ctx, h.db, ann, subject.Generate), problem.Forbidden)
		if told := h.sent("ann@example.org", mail.AccountSuspended); len(told) != 1 || told[0].Data["Reason"] != why {
			t.Errorf("told %+v", told)
		}
		h.clock.Advance(time.Second)
		if err := acts["unsuspend"](AtTheMachine(), why); err != nil {
			t.Fatal(err)
		}
		if err := subject.May(ctx, h.db, ann, subject.Generate); err != nil {
			t.Error(err)
		}
		wantCode(t, "nobody's id", h.Suspend(ctx, AtTheMachine(), "sub_none", why), problem.NotFound)

		// Each is told with who and why.
		facts := func(staff, role string) map[events.Fact]string {
			return map[events.Fact]string{events.Staff: staff, events.Role: role, events.Reason: why}
		}
		h.toldOfStaff(ann,
			events.Event{Type: events.StaffOpened, Facts: facts(eve, "support")},
			events.Event{Type: events.StaffSuspended, Facts: facts(eve, "operator")},
			events.Event{Type: events.StaffUnsuspended, Facts: facts(cliStaff, "operator")})
	})
}

func TestPromise_D2_ADisclosureIsKeptByThePrivacyOfficerAlone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, eve := h.user("ann@example.org"), h.user("eve@example.org")
		in, err := h.SignIn(ctx, browser("192.0.2.9", ""), Credentials{Email: "eve@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		staff := func(r Role) Principal {
			if _, err := h.db.Exec(ctx, `UPDATE users SET role = ? WHERE id = ?`, r, eve); err != nil {
				t.Fatal(err)
			}
			return Principal{Subject: eve, Role: r, Method: ByPasskey, SessionID: in.Session.ID, FreshAt: h.clock.Now(), lookup: h.sessionLookup(in.Token)}
		}
		whole := Disclosure{Case: "17 Js 204/26", Authority: "prosecutor", Scope: "mail address"}
		for _, r := range []Role{NoRole, RoleSupport, RoleOperator} {
			wantCode(t, string(r), h.Disclose(ctx, staff(r), ann, whole, why), problem.Forbidden)
		}
		for what, change := range map[string]func(d *Disclosure){
			"no case": func(d *Disclosure) { d.Case = " " }, "no authority": func(d *Disclosure) { d.Authority = "" },
			"no scope": func(d *Disclosure) { d.Scope = "" }, "a long one": func(d *Disclosure) { d.Scope = strings.Repeat("x", 301) },
			"two lines": func(d *Disclosure) { d.Case = "a\nb" },
		} {
			d := whole
			change(&d)
			wantCode(t, what, h.Disclose(ctx, staff(RolePrivacy), ann, d, why), problem.InvalidRequest)
		}
		wantCode(t, "no reason", h.Disclose(ctx, staff(RolePrivacy), ann, whole, "because"), problem.InvalidRequest)
		wantCode(t, "nobody", h.Disclose(ctx, staff(RolePrivacy), "sub_none", whole, why), problem.NotFound)
		if told := h.happened.of("staff."); len(told) != 0 {
			t.Errorf("refused, and told of: %+v", told)
		}
		if err := h.Disclose(ctx, staff(RolePrivacy), ann, whole, why); err != nil {
			t.Fatal(err)
		}
		whole.MayBeTold = true
		if err := h.Disclose(ctx, AtTheMachine(), ann, whole, why); err != nil {
			t.Fatal(err)
		}
		told := h.happened.of("staff.disclosed")
		if len(told) != 2 || !told[0].Hidden || told[1].Hidden {
			t.Fatalf("told %+v", told)
		}
		want := map[events.Fact]string{events.Staff: eve, events.Role: "privacy", events.Reason: why,
			events.Case: whole.Case, events.Authority: whole.Authority, events.Scope: whole.Scope}
		if !maps.Equal(told[0].Facts, want) || told[0].Subject != ann {
			t.Errorf("told %+v", told[0])
		}
	})
}

// A case that forbids to tell hides the whole way to its disclosure, and nobody else's
// openings are hidden by it.
func TestPromise_D2_AnAccountIsFoundForACaseByThePrivacyOfficerAlone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, _, as := h.staffer()
		for _, r := range []Role{NoRole, RoleSupport, RoleOperator} {
			wantCode(t, string(r), second(h.FindForCase(ctx, as(r), "ann@example.org", "18 Js", why)), problem.Forbidden)
		}
		for _, reference := range []string{"", " ", "a\nb", strings.Repeat("x", 301)} {
			wantCode(t, "no case", second(h.FindForCase(ctx, as(RolePrivacy), "ann@example.org", reference, why)), problem.InvalidRequest)
		}
		wantCode(t, "no reason", second(h.FindForCase(ctx, as(RolePrivacy), "ann@example.org", "18 Js", "because")), problem.InvalidRequest)
		if told := h.happened.of("staff."); len(told) != 0 {
			t.Errorf("refused, and told of: %+v", told)
		}
		for _, p := range []Principal{as(RolePrivacy), AtTheMachine()} {
			u, err := h.FindForCase(ctx, p, "ann@example.org", " 18 Js ", why)
			if err != nil || u.ID != ann {
				t.Fatalf("%+v, %v", u, err)
			}
		}
		for i, e := range h.happened.of("staff.") {
			if e.Type != events.StaffOpened || !e.Hidden || e.Subject != ann || e.Facts[events.Case] != "18 Js" || e.Facts[events.Reason] != why {
				t.Errorf("%d: told %+v", i, e)
			}
		}
	})
}

// staffer is somebody, and a member of staff in a session of hers with the role that
// is needed.
func (h *home) staffer() (somebody, staff string, as func(Role) Principal) {
	h.t.Helper()
	somebody, staff = h.user("ann@example.org"), h.user("eve@example.org")
	in, err := h.SignIn(context.Background(), browser("192.0.2.9", ""), Credentials{Email: "eve@example.org", Password: password})
	if err != nil {
		h.t.Fatal(err)
	}
	return somebody, staff, func(r Role) Principal {
		if _, err := h.db.Exec(context.Background(), `UPDATE users SET role = ? WHERE id = ?`, r, staff); err != nil {
			h.t.Fatal(err)
		}
		return Principal{Subject: staff, Role: r, Method: ByPasskey, SessionID: in.Session.ID, FreshAt: h.clock.Now(), lookup: h.sessionLookup(in.Token)}
	}
}

// Also who looks for an account that is not there, and who makes one for somebody, is
// kept: the first without the address, which may be anybody's.
func TestPromise_X3_SearchesInVainAndNewAccountsAreKept(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, eve, as := h.staffer()
		reason := "asked for by nobody@example.org"
		wantCode(t, "in vain", second(h.FindAccount(ctx, as(RoleSupport), "nobody@example.org", reason)), problem.NotFound)
		wantCode(t, "for a case", second(h.FindForCase(ctx, as(RolePrivacy), "nobody@example.org", "18 Js", reason)), problem.NotFound)
		wantCode(t, "no address", second(h.FindAccount(ctx, as(RoleSupport), "nobody", reason)), problem.InvalidRequest)
		gone := as(RoleSupport)
		gone.SessionID = "ses_ended"
		wantCode(t, "a session that has ended", second(h.FindAccount(ctx, gone, "nobody@example.org", reason)), problem.Forbidden)
		told := h.happened.of("staff.")
		if len(told) != 2 {
			t.Fatalf("told %+v", told)
		}
		for i, role := range []string{"support", "privacy"} {
			if e := told[i]; e.Type != events.StaffLookedFor || e.Subject != "" || e.Ref != "" || e.At.IsZero() ||
				!maps.Equal(e.Facts, map[events.Fact]string{events.Staff: eve, events.Role: role}) {
				t.Errorf("told %+v", e)
			}
		}

		bob, err := h.CreateUserFor(ctx, AtTheMachine(), "bob@example.org", password)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, "over the API", second(h.CreateUserFor(ctx, as(RoleOperator), "cid@example.org", password)), problem.Forbidden)
		wantCode(t, "once more", second(h.CreateUserFor(ctx, AtTheMachine(), "bob@example.org", password)), problem.Conflict)
		if told = h.happened.of("staff.made"); len(told) != 1 || told[0].Type != events.StaffMadeAccount || told[0].Subject != bob || told[0].Hidden ||
			!maps.Equal(told[0].Facts, map[events.Fact]string{events.Staff: cliStaff, events.Role: "operator"}) {
			t.Errorf("told %+v", told)
		}
	})
}

// What a person says about their data is told once each time that it changes.
func TestWordsOfAPersonAreToldWhenTheyChangeSomething(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, _ := h.member("ann@example.org", "ann")
		who, err := h.AuthenticateSession(ctx, in.Token)
		if err != nil {
			t.Fatal(err)
		}
		before := len(h.happened.of(""))
		for range 2 {
			for _, say := range []error{
				h.Object(ctx, who, subject.Statistics), h.Restrict(ctx, who), h.SetConsent(ctx, who, subject.Training, true),
			} {
				if say != nil {
					t.Fatal(say)
				}
			}
		}
		for range 2 {
			for _, say := range []error{
				h.WithdrawObjection(ctx, who, subject.Statistics), h.Unrestrict(ctx, who), h.SetConsent(ctx, who, subject.Training, false),
			} {
				if say != nil {
					t.Fatal(say)
				}
			}
		}
		counts := map[events.Type]int{}
		for _, e := range h.happened.of("")[before:] {
			counts[e.Type]++
			if e.Subject != who.Subject || e.Facts[events.Staff] != "" {
				t.Errorf("%+v", e)
			}
			if (e.Type == events.ConsentGiven || e.Type == events.ConsentWithdrawn) && (e.Facts[events.Purpose] != "training" || e.Facts[events.Policy] != "2026-01-01") {
				t.Errorf("%+v", e)
			}
		}
		want := map[events.Type]int{events.ObjectionMade: 1, events.ObjectionWithdrawn: 1, events.AccountRestricted: 1, events.AccountUnrestricted: 1,
			events.ConsentGiven: 1, events.ConsentWithdrawn: 1}
		if !maps.Equal(counts, want) {
			t.Errorf("told %v, want %v", counts, want)
		}
	})
}

// Whoever makes, lists or revokes somebody's keys at the machine says why, and the
// owner is told of it.
func TestPromise_X3_KeysOfOthersTakeAReason(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		scopes := []string{ScopeRead}
		create := func(p Principal, owner, reason string) (string, Key, error) {
			return h.CreateKeyFor(ctx, p, owner, "of a script", scopes, time.Time{}, reason)
		}
		kept, made, err := create(AtTheMachine(), ann, why)
		if err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(time.Second) // ids of one millisecond have no order
		operator := Principal{Subject: bob, Role: RoleOperator, Method: ByPasskey, SessionID: "ses_x", FreshAt: h.clock.Now()}
		for name, act := range map[string]func(Principal, string) error{
			"create": func(p Principal, reason string) error { _, _, err := create(p, ann, reason); return err },
			"list":   func(p Principal, reason string) error { _, err := h.KeysFor(ctx, p, ann, reason); return err },
			"revoke": func(p Principal, reason string) error { return h.RevokeKeyFor(ctx, p, ann, made.ID, reason) },
		} {
			wantCode(t, name+" over the API", act(operator, why), problem.Forbidden)
			for _, reason := range []string{"", "why not", strings.Repeat("x", 501)} {
				wantCode(t, name+" for no reason", act(AtTheMachine(), reason), problem.InvalidRequest)
			}
		}
		_, _, err = create(AtTheMachine(), "sub_none", why)
		if err == nil {
			t.Error("a key for nobody")
		}
		wantCode(t, "another's key", h.RevokeKeyFor(ctx, AtTheMachine(), bob, made.ID, why), problem.NotFound)
		if _, err := h.Authenticate(ctx, kept); err != nil {
			t.Errorf("the key after what was refused: %v", err)
		}

		_, _, err = h.CreateKeyFor(ctx, AtTheMachine(), ann, "admin", []string{ScopeAdmin}, time.Time{}, why)
		wantCode(t, "the scope admin for somebody who is no staff", err, problem.Forbidden)

		keys, err := h.KeysFor(ctx, AtTheMachine(), ann, why)
		if err != nil || len(keys) != 1 || keys[0].Name != "of a script" {
			t.Errorf("%+v, %v", keys, err)
		}
		h.clock.Advance(time.Second)
		for range 2 { // the second changes nothing
			if err := h.RevokeKeyFor(ctx, AtTheMachine(), ann, made.ID, why); err != nil {
				t.Error(err)
			}
			h.clock.Advance(time.Second)
		}
		_, err = h.Authenticate(ctx, kept)
		wantCode(t, "the revoked key", err, problem.Unauthorized)

		for _, template := range []mail.Template{mail.KeyCreated, mail.KeyRevoked} {
			if told := h.sent("ann@example.org", template); len(told) != 1 || told[0].Data["Name"] != "of a script" || told[0].Data["Reason"] != why {
				t.Errorf("%s: told %+v", template, told)
			}
		}
		facts := map[events.Fact]string{events.Staff: cliStaff, events.Role: "operator", events.Reason: why}
		h.toldOfStaff(ann,
			events.Event{Type: events.StaffMadeKey, Ref: made.ID, Facts: facts}, events.Event{Type: events.StaffListedKeys, Facts: facts},
			events.Event{Type: events.StaffRevokedKey, Ref: made.ID, Facts: facts}, events.Event{Type: events.StaffRevokedKey, Ref: made.ID, Facts: facts})
	})
}

func TestRolesAreForAccountsWithASecondFactor(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, _ := h.member("ann@example.org", "ann")
		who, err := h.AuthenticateSession(ctx, in.Token)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, "a role without a factor", h.SetRole(ctx, AtTheMachine(), who.Subject, RoleSupport, why), problem.Conflict)
		wantCode(t, "a role that there is not", h.SetRole(ctx, AtTheMachine(), who.Subject, "king", why), problem.InvalidRequest)
		if _, err := h.db.Exec(ctx, `UPDATE users SET totp_secret = ?, totp_confirmed_at = 1 WHERE id = ?`, []byte("sealed"), who.Subject); err != nil {
			t.Fatal(err)
		}
		if err := h.SetRole(ctx, AtTheMachine(), who.Subject, RoleSupport, why); err != nil {
			t.Fatal(err)
		}
		_, err = h.AuthenticateSession(ctx, in.Token)
		wantCode(t, "a session from before the role", err, problem.Unauthorized)
		list, err := h.Accounts(ctx, "", 10)
		if err != nil || len(list) != 1 || list[0].Role != RoleSupport || list[0].State != subject.Active {
			t.Errorf("%+v, %v", list, err)
		}
		if err := h.ResetFactors(ctx, AtTheMachine(), who.Subject, why); err != nil {
			t.Fatal(err)
		}
		if f, err := h.factors(ctx, h.db, who.Subject); err != nil || f.TOTP || f.Passkeys != 0 {
			t.Errorf("after the reset: %+v, %v", f, err)
		}
		if told := h.sent("ann@example.org", mail.SecondFactorChanged); len(told) == 0 {
			t.Error("nobody told her")
		}
	})
}

func TestPromise_A6_AChildsAccountIsClosedByTheOperator(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, who := h.member("kid@example.org", "kid")
		token, _ := h.key(who.Subject, time.Time{})
		if err := h.CloseChild(ctx, AtTheMachine(), who.Subject, "a parent wrote, with proof of age"); err != nil {
			t.Fatal(err)
		}
		_, err := h.AuthenticateSession(ctx, in.Token)
		wantCode(t, "the session", err, problem.Unauthorized)
		_, err = h.Authenticate(ctx, token)
		wantCode(t, "the key", err, problem.Unauthorized)
		other := h.process()
		_, err = other.Authenticate(ctx, token)
		wantCode(t, "the key at another process", err, problem.Unauthorized)
		if s, err := subject.Find(ctx, h.db, who.Subject); err != nil || s.State != subject.Closing {
			t.Errorf("%+v, %v", s, err)
		}
		// Nothing brings it back.
		_, err = h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "kid@example.org", Password: password})
		wantCode(t, "signing in", err, problem.SignInFailed)
		if err := h.RequestReset(ctx, browser("192.0.2.1", ""), "kid@example.org"); err != nil {
			t.Error(err)
		}
		if mails := h.sent("kid@example.org", mail.ResetPassword); len(mails) != 0 {
			t.Error("a reset is mailed to a closed account")
		}
		// Asked again it stays as it is.
		if err := h.CloseFor(ctx, AtTheMachine(), who.Subject, "asked twice by mistake"); err != nil && problem.CodeOf(err) != problem.NotFound {
			t.Error(err)
		}
	})
}

func TestPromise_A2_AccountDataIsSeenAndChanged(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, who := h.member("ann@example.org", "ann")
		h.member("ben@example.org", "ben")
		name, taken, alike := "Ann_2", "BEN", "Аnn" // the last with a Cyrillic letter
		u, err := h.UpdateUser(ctx, who, UserChange{Username: &name, Profile: &Profile{Name: "Ann Lee"}, Preferences: &Preferences{Width: 64, Height: 64, N: 2, Format: "jpeg", Model: "m"}})
		if err != nil || u.Username != name || u.Profile.Name != "Ann Lee" || u.Preferences.N != 2 {
			t.Fatalf("%+v, %v", u, err)
		}
		if again, err := h.User(ctx, who.Subject); err != nil || again != u {
			t.Errorf("read back %+v, want %+v (%v)", again, u, err)
		}
		_, err = h.UpdateUser(ctx, who, UserChange{Username: &taken})
		wantCode(t, "a name that somebody has", err, problem.Conflict)
		_, err = h.UpdateUser(ctx, who, UserChange{Username: &alike})
		wantCode(t, "a name that looks like another", err, problem.InvalidRequest)
		for what, c := range map[string]UserChange{
			"name in two lines": {Profile: &Profile{Name: "a\nb"}}, "long name": {Profile: &Profile{Name: strings.Repeat("é", 101)}},
			"half a size": {Preferences: &Preferences{Width: 64}}, "format": {Preferences: &Preferences{Format: "gif"}},
			"negative": {Preferences: &Preferences{N: -1}}, "huge": {Preferences: &Preferences{Width: 1 << 20, Height: 1 << 20}},
		} {
			_, err := h.UpdateUser(ctx, who, c)
			wantCode(t, what, err, problem.InvalidRequest)
		}
		u, err = h.UpdateUser(ctx, who, UserChange{Profile: &Profile{}, Preferences: &Preferences{}})
		if err != nil || u.Profile != (Profile{}) || u.Preferences != (Preferences{}) || u.Username != name {
			t.Errorf("emptied: %+v, %v", u, err)
		}
		var left int
		if err := h.db.Get(ctx, &left, `SELECT count(*) FROM users WHERE id = ? AND profile IS NULL AND preferences IS NULL`, who.Subject); err != nil || left != 1 {
			t.Errorf("something of what was emptied is kept (%v)", err)
		}
		// Nothing of it stands readable.
		var row struct {
			Username []byte `db:"username"`
			Lookup   string `db:"username_lookup"`
		}
		if err := h.db.Get(ctx, &row, `SELECT username, username_lookup FROM users WHERE id = ?`, who.Subject); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(bytes.ToLower(row.Username), []byte("ann")) || strings.Contains(row.Lookup, "ann") {
			t.Error("the username is readable")
		}
	})
}

// Each field that can be wrong is put right, and what was wrong is gone: from what
// is shown, from what is stored, and for those who look for it.
func TestPromise_G2_EachFieldIsCorrectedAndTheOldValueIsGone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, who := h.member("wrong@example.org", "wrong_name")
		wrong, right := "wrong_name", "right_name"
		if _, err := h.UpdateUser(ctx, who, UserChange{
			Profile:     &Profile{Name: "Wrong Person"},
			Preferences: &Preferences{Model: "wrong-model", Width: 64, Height: 64, N: 3, Format: "png"},
		}); err != nil {
			t.Fatal(err)
		}
		sealed := func(column string) (blob []byte) {
			t.Helper()
			if err := h.db.Get(ctx, &blob, `SELECT `+column+` FROM users WHERE id = ?`, who.Subject); err != nil {
				t.Fatal(err)
			}
			return blob
		}
		update := func(c UserChange) func() error {
			return func() error { _, err := h.UpdateUser(ctx, who, c); return err }
		}
		for _, field := range []struct {
			column  string
			correct func() error
			want    string // in what is stored
		}{
			{"username", update(UserChange{Username: &right}), right},
			{"profile", update(UserChange{Profile: &Profile{Name: "Right Person"}}), "Right Person"},
			{"preferences", update(UserChange{Preferences: &Preferences{Model: "right-model", Width: 32, Height: 32, N: 1, Format: "jpeg"}}), "right-model"},
			{"email", func() error {
				if err := h.ChangeEmail(ctx, who, "right@example.org"); err != nil {
					return err
				}
				return h.ConfirmEmail(ctx, who, h.code("right@example.org", mail.ConfirmEmail))
			}, "right@example.org"},
		} {
			before := sealed(field.column)
			if err := field.correct(); err != nil {
				t.Fatalf("%s: %v", field.column, err)
			}
			after := sealed(field.column)
			plain, err := h.vault.Unseal(ctx, who.Subject, after, vault.Column("users", field.column, who.Subject))
			if err != nil || !strings.Contains(string(plain), field.want) || strings.Contains(strings.ToLower(string(plain)), "wrong") || bytes.Equal(before, after) {
				t.Errorf("%s is stored as %q (%v)", field.column, plain, err)
			}
		}
		u, err := h.User(ctx, who.Subject)
		if err != nil {
			t.Fatal(err)
		}
		want := User{ID: who.Subject, Email: "right@example.org", Username: right, Profile: Profile{Name: "Right Person"},
			Preferences: Preferences{Model: "right-model", Width: 32, Height: 32, N: 1, Format: "jpeg"}, CreatedAt: u.CreatedAt}
		if u != want {
			t.Errorf("%+v, want %+v", u, want)
		}
		// Nothing finds the person by the old values, and others may have them.
		for _, table := range []string{"users", "signups", "mailed_links"} {
			if n := h.count(`SELECT count(*) FROM `+table+` WHERE email_lookup = ?`, h.emailLookup("wrong@example.org")); n != 0 {
				t.Errorf("%s still finds the old address", table)
			}
		}
		if code := h.signIn(h.Service, browser("192.0.2.7", ""), "wrong@example.org", password); code != problem.SignInFailed {
			t.Errorf("signing in with the old address: %q", code)
		}
		_, other := h.member("wrong@example.org", "another")
		if _, err := h.UpdateUser(ctx, other, UserChange{Username: &wrong}); err != nil {
			t.Errorf("the old username is not free: %v", err)
		}
	})
}

// Restricted or suspended, a person keeps every right that is theirs.
func TestPromise_G6_RightsWorkWhileRestrictedOrSuspended(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for name, stop := range map[string]func(Principal) error{
			"restricted": func(p Principal) error { return h.Restrict(ctx, p) },
			"suspended":  func(p Principal) error { return h.Suspend(ctx, AtTheMachine(), p.Subject, why) },
		} {
			email := name + "@example.org"
			_, who := h.member(email, name)
			if err := h.SetConsent(ctx, who, subject.Training, true); err != nil {
				t.Fatal(err)
			}
			if err := stop(who); err != nil {
				t.Fatal(err)
			}
			wantCode(t, name+": new work", subject.May(ctx, h.db, who.Subject, subject.Generate), problem.Forbidden)
			h.clock.Advance(time.Second)

			c := browser("192.0.2.1", "")
			in, err := h.SignIn(ctx, c, Credentials{Email: email, Password: password})
			if err != nil {
				t.Fatalf("%s: signing in: %v", name, err)
			}
			who, c.Device = h.principal(in.Token), in.Token
			for what, right := range map[string]func() error{
				"look": func() error { _, err := h.User(ctx, who.Subject); return err },
				"correct": func() error {
					_, err := h.UpdateUser(ctx, who, UserChange{Profile: &Profile{Name: "Right"}})
					return err
				},
				"object":   func() error { return h.Object(ctx, who, subject.Statistics) },
				"withdraw": func() error { return h.SetConsent(ctx, who, subject.Training, false) },
			} {
				if err := right(); err != nil {
					t.Errorf("%s, %s: %v", name, what, err)
				}
			}
			if list, err := h.Objections(ctx, who.Subject); err != nil || len(list) != 1 || list[0].At.IsZero() {
				t.Errorf("%s: the objection is not kept: %+v, %v", name, list, err)
			}
			for _, consent := range must(h.Consents(ctx, who.Subject)) {
				if consent.Granted {
					t.Errorf("%s: the consent to %s stands", name, consent.Purpose)
				}
			}
			if err := h.Close(ctx, who, c, Credentials{Password: password}); err != nil {
				t.Fatalf("%s: closing: %v", name, err)
			}
			if s, err := subject.Find(ctx, h.db, who.Subject); err != nil || s.State != subject.Closing {
				t.Errorf("%s: %+v, %v", name, s, err)
			}
			_, err = h.AuthenticateSession(ctx, in.Token)
			wantCode(t, name+": the session", err, problem.Unauthorized)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A hold keeps a record from its own owner too, and nothing else.
func TestAHeldAccountStaysAsItIs(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, who := h.member("ann@example.org", "ann")
		if err := h.Object(ctx, who, subject.Statistics); err != nil {
			t.Fatal(err)
		}
		if err := h.ChangeEmail(ctx, who, "new@example.org"); err != nil {
			t.Fatal(err)
		}
		code := h.code("new@example.org", mail.ConfirmEmail)
		name := "other"
		changes := map[string]func() error{
			"profile":     func() error { _, err := h.UpdateUser(ctx, who, UserChange{Profile: &Profile{}}); return err },
			"preferences": func() error { _, err := h.UpdateUser(ctx, who, UserChange{Preferences: &Preferences{}}); return err },
			"username":    func() error { _, err := h.UpdateUser(ctx, who, UserChange{Username: &name}); return err },
			"address":     func() error { return h.ConfirmEmail(ctx, who, code) },
			"objection":   func() error { return h.WithdrawObjection(ctx, who, subject.Statistics) },
		}
		var holds []string
		if err := h.db.Tx(ctx, func(tx *db.Tx) error {
			for table, record := range map[string]string{"users": who.Subject, "objections": subject.ObjectionRecord(who.Subject, subject.Statistics)} {
				id, err := subject.Hold(ctx, tx, who.Subject, table, record, "case 7", start)
				if err != nil {
					return err
				}
				holds = append(holds, id)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		before, err := h.User(ctx, who.Subject)
		if err != nil {
			t.Fatal(err)
		}
		for what, change := range changes {
			wantCode(t, what+" while held", change(), problem.Conflict)
		}
		if after, err := h.User(ctx, who.Subject); err != nil || after != before {
			t.Errorf("%+v became %+v (%v)", before, after, err)
		}
		if _, err := h.UpdateUser(ctx, who, UserChange{}); err != nil {
			t.Errorf("no change at all: %v", err)
		}
		if err := h.db.Tx(ctx, func(tx *db.Tx) error {
			for _, id := range holds {
				if err := subject.Release(ctx, tx, id, start); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for what, change := range changes {
			if err := change(); err != nil {
				t.Errorf("%s once released: %v", what, err)
			}
		}
		h.principal(in.Token)
	})
}

func TestPromise_G6_WhoRestrictedLiftsItAndAMailSaysSo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, who := h.member("ann@example.org", "ann")
		if err := h.Restrict(ctx, who); err != nil {
			t.Fatal(err)
		}
		for _, p := range []subject.Purpose{subject.Generate, subject.Deliver, subject.Statistics, subject.Marketing} {
			wantCode(t, string(p), subject.May(ctx, h.db, who.Subject, p), problem.Forbidden)
		}
		for _, p := range []subject.Purpose{subject.Read, subject.Account, subject.Notice} {
			if err := subject.May(ctx, h.db, who.Subject, p); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
		// Suspended meanwhile, and the suspension lifted: the restriction stands.
		if err := h.Suspend(ctx, AtTheMachine(), who.Subject, why); err != nil {
			t.Fatal(err)
		}
		if err := h.Unsuspend(ctx, AtTheMachine(), who.Subject, why); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "after a suspension", subject.May(ctx, h.db, who.Subject, subject.Generate), problem.Forbidden)
		stale := who
		stale.FreshAt = stale.FreshAt.Add(-freshFor)
		wantCode(t, "lifting in a session that is not fresh", h.Unrestrict(ctx, stale), problem.ReauthNeeded)
		wantCode(t, "lifting with a key", h.Unrestrict(ctx, Principal{Subject: who.Subject, KeyID: "key_x"}), problem.Forbidden)
		wantCode(t, "and it stands", subject.May(ctx, h.db, who.Subject, subject.Generate), problem.Forbidden)
		for range 2 { // lifting twice tells once
			if err := h.Unrestrict(ctx, who); err != nil {
				t.Fatal(err)
			}
		}
		if told := h.sent("ann@example.org", mail.RestrictionLifted); len(told) != 1 {
			t.Errorf("told %d times", len(told))
		}
		if err := subject.May(ctx, h.db, who.Subject, subject.Generate); err != nil {
			t.Error(err)
		}
	})
}

// A hold that is placed while its owner changes what it is to keep: every such
// change waits for it and is refused.
func TestAHoldStopsAChangeThatHasBegun(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, who := h.member("ann@example.org", "ann")
		if err := h.Object(ctx, who, subject.Statistics); err != nil {
			t.Fatal(err)
		}
		if err := h.ChangeEmail(ctx, who, "new@example.org"); err != nil {
			t.Fatal(err)
		}
		code, name := h.code("new@example.org", mail.ConfirmEmail), "other"
		for _, c := range []struct {
			what, table, record string
			change              func() error
		}{
			{"username", "users", who.Subject, func() error { _, err := h.UpdateUser(ctx, who, UserChange{Username: &name}); return err }},
			{"profile", "users", who.Subject, func() error { _, err := h.UpdateUser(ctx, who, UserChange{Profile: &Profile{Name: "x"}}); return err }},
			{"address", "users", who.Subject, func() error { return h.ConfirmEmail(ctx, who, code) }},
			{"objection", "objections", subject.ObjectionRecord(who.Subject, subject.Statistics), func() error { return h.WithdrawObjection(ctx, who, subject.Statistics) }},
		} {
			var id string
			first, second := testenv.Overtaken(t, h.db, func(tx *db.Tx) (err error) {
				id, err = subject.Hold(ctx, tx, who.Subject, c.table, c.record, "case 7", start)
				return err
			}, c.change)
			if first != nil {
				t.Fatal(first)
			}
			wantCode(t, c.what, second, problem.Conflict)
			if err := h.db.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, id, start) }); err != nil {
				t.Fatal(err)
			}
		}
		if u, err := h.User(ctx, who.Subject); err != nil || u.Email != "ann@example.org" || u.Username != "ann" || u.Profile != (Profile{}) {
			t.Errorf("%+v, %v", u, err)
		}
	})
}

// What a hold on an account does not keep: credentials change and end whatever is
// on hold, so that nobody keeps an open door in the name of evidence.
func TestAHeldAccountsCredentialsGoOnChanging(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, who := h.member("ann@example.org", "ann")
		if err := h.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := subject.Hold(ctx, tx, who.Subject, "users", who.Subject, "case 7", start)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		c := browser("192.0.2.1", "")
		in, err := h.ChangePassword(ctx, who, c, "another correct horse")
		if err != nil {
			t.Errorf("the password: %v", err)
		}
		h.goOn(&who, in)
		if err := h.Close(ctx, who, c, Credentials{Password: "another correct horse"}); err != nil {
			t.Errorf("closing: %v", err)
		}
		if n := h.count(`SELECT count(*) FROM users WHERE email_lookup = ? AND email IS NOT NULL AND username IS NOT NULL`, h.emailLookup("ann@example.org")); n != 1 {
			t.Error("closing took what is held")
		}
	})
}

// A key over the API: in a fresh session alone, and its owner is told.
func TestNewKeysNeedAFreshSession(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, who := h.member("ann@example.org", "ann")
		if _, _, err := h.NewKey(ctx, who, "laptop", []string{ScopeRead}, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if told := h.sent("ann@example.org", mail.KeyCreated); len(told) != 1 || told[0].Data["Name"] != "laptop" {
			t.Errorf("told %+v", told)
		}
		_, _, err := h.NewKey(ctx, who, "admin", []string{ScopeAdmin}, time.Time{})
		wantCode(t, "the scope admin", err, problem.Forbidden)
		h.clock.Advance(freshFor)
		stale, err := h.AuthenticateSession(ctx, in.Token)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = h.NewKey(ctx, stale, "late", []string{ScopeRead}, time.Time{})
		wantCode(t, "a session that is not fresh", err, problem.ReauthNeeded)
		byKey := Principal{Subject: who.Subject, KeyID: "key_x", Scopes: Scopes()}
		_, _, err = h.NewKey(ctx, byKey, "more", []string{ScopeRead}, time.Time{})
		wantCode(t, "a key that makes keys", err, problem.Forbidden)
		if err := h.db.Tx(ctx, func(tx *db.Tx) error { _, err := subject.Close(ctx, tx, who.Subject, h.clock.Now()); return err }); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "a consent of a closed account", h.SetConsent(ctx, who, subject.Marketing, true), problem.Unauthorized)
	})
}

// Nobody needs to be known to ask for a challenge: those that nobody answers
// rightly leave nothing, and those that somebody does a row until they expire.
func TestAttack_ChallengesLeaveNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		d := newDevice()
		h.addPasskey(new(h.freshSession(h.user("ann@example.org"))), d)
		seen := map[string]bool{}
		for range 1000 {
			c := h.signInChallenge()
			seen[c.ID], seen[optionsOf(PasskeyChallenge{Options: c.Options})] = true, true
		}
		if len(seen) != 2000 {
			t.Errorf("of 1000 challenges %d ids and challenges differ", len(seen))
		}
		for range 5 {
			h.refuses("no answer", h.signInBy(PasskeyAnswer{ChallengeID: h.signInChallenge().ID, Response: []byte("{}")}))
			h.refuses("another's passkey", h.signInBy(newDevice().sign(h.signInChallenge())))
		}
		if n := h.rowsOf("passkey_challenges", ""); n != 0 {
			t.Errorf("%d rows are left of those", n)
		}
		answer := d.signAgain(h.signInChallenge()) // its counter stays at zero, so that nothing else tells
		if err := h.signInBy(answer); err != nil {
			t.Fatal(err)
		}
		h.refuses("the same answer again", h.signInBy(answer))
		if n := h.rowsOf("passkey_challenges", ""); n != 1 {
			t.Errorf("%d rows for one answer", n)
		}
	})
}

// What one browser is refused fills nobody else's network.
func TestAttack_ARefusedDeviceFillsNobodysNetwork(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, _ := h.member("eve@example.org", "eve")
		h.user("ann@example.org")
		limited := 0
		for range 200 {
			_, err := h.SignIn(ctx, browser("192.0.2.1", in.Token), Credentials{Email: "eve@example.org", Password: "not the password"})
			if problem.CodeOf(err) == problem.RateLimited {
				limited++
			}
		}
		if limited < 180 {
			t.Errorf("%d of 200 were refused", limited)
		}
		h.clock.Advance(time.Minute)
		if _, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: password}); err != nil {
			t.Errorf("a new browser beside it: %v", err)
		}
	})
}

// A request that was let in before its session ended, and whose body came after,
// changes nothing any more.
func TestAttack_ALateBodyOfAnEndedSession(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, thief := h.member("ann@example.org", "ann")
		if err := h.RequestReset(ctx, browser("192.0.2.1", ""), "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Reset(ctx, browser("192.0.2.1", ""), h.code("ann@example.org", mail.ResetPassword), "another four words here"); err != nil {
			t.Fatal(err)
		}
		name := "thief"
		for what, act := range map[string]func() error{
			"a key":      func() error { _, _, err := h.NewKey(ctx, thief, "k", []string{ScopeRead}, time.Time{}); return err },
			"an address": func() error { return h.ChangeEmail(ctx, thief, "thief@example.org") },
			"a password": func() error { return errorOf(h.ChangePassword(ctx, thief, Client{}, "the words of a thief")) },
			"a name":     func() error { _, err := h.UpdateUser(ctx, thief, UserChange{Username: &name}); return err },
			"a closing": func() error {
				return h.Close(ctx, thief, browser("192.0.2.1", ""), Credentials{Password: "another four words here"})
			},
			"a consent": func() error { return h.SetConsent(ctx, thief, subject.Marketing, true) },
			"a passkey": func() error { _, _, err := h.BeginTOTP(ctx, thief); return err },
		} {
			wantCode(t, what, act(), problem.Unauthorized)
		}
		if person, err := subject.Find(ctx, h.db, thief.Subject); err != nil || person.State != subject.Active {
			t.Errorf("%+v, %v", person, err)
		}
	})
}

// A list of stolen passwords, tried at a hundred a second from everywhere: what is
// hashed is bounded by what each account allows, and who is known gets in.
func TestAttack_CredentialStuffing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		in, err := h.SignIn(ctx, browser("198.51.100.1", ""), Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		ann := browser("198.51.100.1", in.Token)
		var hashes atomic.Int64
		h.hasher.counted = func() { hashes.Add(1) }
		const victims, tries = 5, 300 // three seconds of a hundred; the clock goes with them
		var work sync.WaitGroup
		var mu sync.Mutex
		answers := map[problem.Code]int{}
		for k := range tries {
			if k%10 == 0 {
				work.Wait() // so that the queue is not what refuses
				h.clock.Advance(100 * time.Millisecond)
			}
			work.Go(func() {
				from := browser(fmt.Sprintf("10.0.%d.%d", k/250, k%250), "")
				email := []string{"ann@example.org", "nobody1@example.org", "nobody2@example.org", "nobody3@example.org", "nobody4@example.org"}[k%victims]
				_, err := h.SignIn(ctx, from, Credentials{Email: email, Password: fmt.Sprint("stolen password ", k)})
				mu.Lock()
				defer mu.Unlock()
				answers[problem.CodeOf(err)]++
			})
		}
		work.Wait()
		if n := hashes.Load(); n > victims*perAccount.burst || answers[problem.SignInFailed] != int(n) || answers[problem.RateLimited] != tries-int(n) {
			t.Errorf("%d hashes, want at most %d; answered %v", n, victims*perAccount.burst, answers)
		}
		if _, err := h.SignIn(ctx, ann, Credentials{Email: "ann@example.org", Password: password}); err != nil {
			t.Errorf("she is kept out of her own account: %v", err)
		}
	})
}

// The same with another address each time: what each account allows bounds nothing
// then, and the queue is full of strangers all the time. Who is known gets in
// beside them, and changes their password.
func TestAttack_CredentialStuffingOverManyAddressesKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx, over := context.WithCancel(context.Background())
		defer over()
		in, _ := h.member("ann@example.org", "ann")
		h.hasher.counted = func() { time.Sleep(30 * time.Millisecond) } // so that a hundred a second are too many
		var hashed, full atomic.Int64
		stuff := func(i int) {
			from := browser(fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255), "")
			if i%2 == 0 {
				from.Device = h.sessionForm.make() // as if it were known
			}
			_, err := h.SignIn(ctx, from, Credentials{Email: fmt.Sprintf("user%d@example.org", i), Password: "a stolen password"})
			switch problem.CodeOf(err) {
			case problem.SignInFailed:
				hashed.Add(1)
			case problem.Unavailable:
				full.Add(1)
			default:
				if ctx.Err() == nil {
					t.Error(err)
				}
			}
		}
		var strangers sync.WaitGroup
		strangers.Go(func() {
			tick := time.NewTicker(time.Second / 100)
			defer tick.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				<-tick.C
				strangers.Go(func() { stuff(i) })
			}
		})
		defer strangers.Wait()
		defer over()
		testenv.Eventually(t, time.Minute, func() bool { return full.Load() > 10 && hashed.Load() > 0 })
		// Patience is not what is tested: the machine has other things to do.
		calm, stop := context.WithTimeout(ctx, 3*time.Minute)
		defer stop()
		ann := browser("192.0.2.1", in.Token)
		if in, err := h.SignIn(calm, ann, Credentials{Email: "ann@example.org", Password: password}); err != nil {
			t.Errorf("sign-in: %v", err)
		} else if in, err = h.Reauthenticate(calm, h.principal(in.Token), ann, Credentials{Password: password}); err != nil {
			t.Errorf("a new proof: %v", err)
		} else if _, err = h.ChangePassword(calm, h.principal(in.Token), ann, another); err != nil {
			t.Errorf("a new password: %v", err)
		}
		t.Logf("%d attempts were hashed, %d refused", hashed.Load(), full.Load())
	})
}

// The reserve is for a browser that this account knows, and has an end too.
func TestTheReserveOfTheQueueIsForKnownBrowsers(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		in, ann := h.member("ann@example.org", "ann")
		h.user("bob@example.org")
		device, err := h.SignOut(ctx, ann)
		if err != nil {
			t.Fatal(err)
		}
		for range cap(h.hasher.turns) {
			h.hasher.turns <- struct{}{}
		}
		try := func(device, email string) problem.Code {
			return h.signIn(h.Service, browser("192.0.2.1", device), email, "wrong horse")
		}
		for what, code := range map[string]problem.Code{
			"no browser":     try("", "ann@example.org"),
			"a made-up one":  try(unkeyed(h.sessionForm).make(), "ann@example.org"),
			"an unknown one": try(h.sessionForm.make(), "ann@example.org"),
			"one of before":  try(in.Token, "ann@example.org"),
			"another's":      try(device, "bob@example.org"),
			"that of nobody": try(device, "nobody@example.org"),
		} {
			if code != problem.Unavailable {
				t.Errorf("%s: %q", what, code)
			}
		}
		if code := try(device, "ann@example.org"); code != problem.SignInFailed {
			t.Errorf("her own, signed out: %q", code)
		}
		for range cap(h.hasher.known) {
			h.hasher.known <- struct{}{}
		}
		if code := try(device, "ann@example.org"); code != problem.Unavailable {
			t.Errorf("beyond the reserve: %q", code)
		}
		<-h.hasher.known
		done, ok := h.hasher.look(device)
		if !ok {
			t.Fatal("no look")
		}
		if code := try(device, "ann@example.org"); code != problem.Unavailable {
			t.Errorf("two looks for one browser: %q", code)
		}
		done()
		if code := try(device, "ann@example.org"); code != problem.SignInFailed {
			t.Errorf("after the look: %q", code)
		}
		for i := range looksMost {
			if _, ok := h.hasher.look(strconv.Itoa(i)); !ok {
				t.Fatalf("%d looks, want %d", i, looksMost)
			}
		}
		if code := try(device, "ann@example.org"); code != problem.Unavailable {
			t.Errorf("beyond the looks: %q", code)
		}
		if len(h.hasher.known) != cap(h.hasher.known)-1 || len(h.hasher.turns) != cap(h.hasher.turns) {
			t.Error("a turn was not given back")
		}
	})
}

// unkeyed makes tokens of a form as somebody does who does not have the key.
func unkeyed(f form) form {
	f.by = func(random []byte) []byte {
		sum := sha256.Sum256(random)
		return sum[:]
	}
	return f
}

// Whoever makes up cookies and codes has nothing looked up, and one that is there
// all the same is none: the sum comes before the database.
func TestAttack_MadeUpTokensAreNotLookedUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		in, err := h.SignIn(ctx, browser("192.0.2.1", ""), Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.RequestReset(ctx, browser("192.0.2.1", ""), "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		cookie, code := unkeyed(h.sessionForm).make(), unkeyed(h.codeForm).make()
		if len(cookie) != len(in.Token) || h.Issued(cookie) || !h.Issued(in.Token) || !h.process().Issued(in.Token) {
			t.Error("a made-up cookie is not told from ours")
		}
		for statement, lookup := range map[string]string{
			`UPDATE sessions SET token_lookup = ? WHERE owner = ?`:     h.sessionLookup(cookie),
			`UPDATE mailed_links SET token_lookup = ? WHERE owner = ?`: h.codeLookup(code),
		} {
			if n, err := h.db.Exec(ctx, statement, lookup, ann); err != nil || n != 1 {
				t.Fatalf("%d, %v", n, err)
			}
		}
		if row, err := h.device(ctx, cookie); err != nil || row.ID != "" {
			t.Errorf("the browser is known: %+v, %v", row, err)
		}
		_, err = h.AuthenticateSession(ctx, cookie)
		wantCode(t, "the session", err, problem.Unauthorized)
		_, err = h.Reset(ctx, browser("192.0.2.1", ""), code, "another horse altogether")
		wantCode(t, "the code", err, problem.LinkInvalid)
	})
}

// A mailed code that is right gets in past those who fill the queue of hashes, and
// no other does.
func TestTheReserveOfTheQueueIsForRightCodes(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		h.user("ann@example.org")
		if err := h.RequestReset(ctx, c, "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		if err := h.SignUp(ctx, c, SignUp{Email: "bob@example.org", Username: "bob", Password: password, OldEnough: true}); err != nil {
			t.Fatal(err)
		}
		reset, signUp := h.code("ann@example.org", mail.ResetPassword), h.code("bob@example.org", mail.ConfirmSignUp)
		for range cap(h.hasher.turns) {
			h.hasher.turns <- struct{}{}
		}
		const other = "another horse altogether"
		for what, code := range map[string]string{"a made-up code": unkeyed(h.codeForm).make(), "an unknown code": h.codeForm.make(), "the other's code": "swap"} {
			forReset, forSignUp := code, code
			if code == "swap" {
				forReset, forSignUp = signUp, reset
			}
			_, err := h.Reset(ctx, c, forReset, other)
			if got := problem.CodeOf(err); got != problem.Unavailable && got != problem.LinkInvalid {
				t.Errorf("%s, to reset: %v", what, err)
			}
			_, err = h.ConfirmSignUp(ctx, c, forSignUp, password)
			if got := problem.CodeOf(err); got != problem.Unavailable && got != problem.LinkInvalid {
				t.Errorf("%s, to confirm: %v", what, err)
			}
		}
		if _, err := h.Reset(ctx, c, reset, other); err != nil {
			t.Errorf("a right code to reset: %v", err)
		}
		if _, err := h.ConfirmSignUp(ctx, c, signUp, password); err != nil {
			t.Errorf("a right code to confirm: %v", err)
		}
		_, err := h.Reset(ctx, c, reset, other)
		wantCode(t, "a used code", err, problem.Unavailable)
		if len(h.hasher.known) != 0 || len(h.hasher.turns) != cap(h.hasher.turns) || len(h.hasher.looks) != 0 {
			t.Error("a turn was not given back")
		}
	})
}

// Who only waits for the answer's time says so first, and who was turned away does
// not wait.
func TestWhoOnlyWaitsSaysSo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		h.o.Level = 50 * time.Millisecond
		c, idle := browser("192.0.2.1", ""), 0
		c.Idle = func() { idle++ }
		asks := map[string]func() error{
			"sign-in": func() error {
				_, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: "wrong horse"})
				return err
			},
			"reset": func() error { return h.RequestReset(ctx, c, "nobody@example.org") },
			"sign-up": func() error {
				return h.SignUp(ctx, c, SignUp{Email: "new@example.org", Username: "new", Password: password, OldEnough: true})
			},
		}
		for what, ask := range asks {
			idle = 0
			if err := ask(); (err != nil && problem.CodeOf(err) != problem.SignInFailed) || idle != 1 {
				t.Errorf("%s: %v, told %d times", what, err, idle)
			}
		}
		h.o.Level = time.Hour
		soon, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		ctx = soon
		for range perNetwork.burst { // the network is full
			_, _ = h.take(ctx, h.networkBucket(c.Addr)...)
		}
		for what, ask := range asks {
			wantCode(t, what+" of a network that is full", ask(), problem.RateLimited)
		}
		for range cap(h.hasher.turns) {
			h.hasher.turns <- struct{}{}
		}
		delete(asks, "reset") // it hashes nothing
		for what, ask := range asks {
			wantCode(t, what+" with a full queue", ask(), problem.Unavailable)
		}
		if ctx.Err() != nil {
			t.Error("somebody who was turned away waited")
		}
	})
}
