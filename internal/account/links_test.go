package account

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

const another = "another horse"

func TestPromise_A4_Attack_AResetCodeIsReused(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		there := h.process()
		in, _ := h.member("ann@example.org", "ann")
		c := browser("192.0.2.1", "")
		var codes []string
		for range 2 {
			if err := h.RequestReset(ctx, c, " ANN@example.org"); err != nil {
				t.Fatal(err)
			}
			codes = append(codes, h.code("ann@example.org", mail.ResetPassword))
		}
		if codes[0] == codes[1] || len(h.sent("ann@example.org", mail.ResetPassword)) != 2 {
			t.Fatal("one code twice")
		}
		_, err := h.Reset(ctx, c, codes[0], "iloveyou")
		wantField(t, "a common one", err, "body.password")
		_, err = h.Reset(ctx, c, codes[0], "ann@example.org")
		wantField(t, "the address", err, "body.password")
		device, err := h.Reset(ctx, c, codes[0], another) // which the refusals have not used up
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Service{h.Service, there} {
			for what, token := range map[string]string{"a session of before": in.Token, "what the reset returns": device} {
				_, err := s.AuthenticateSession(ctx, token)
				wantCode(t, what, err, problem.Unauthorized)
			}
		}
		_, err = h.Reset(ctx, c, codes[0], "a third horse")
		wantCode(t, "the code once more", err, problem.LinkInvalid)
		_, err = h.Reset(ctx, c, codes[1], "a third horse")
		wantCode(t, "the other code", err, problem.LinkInvalid)
		if code := h.signIn(h.Service, c, "ann@example.org", password); code != problem.SignInFailed {
			t.Errorf("the old password: %s", code)
		}
		if code := h.signIn(h.Service, c, "ann@example.org", another); code != "" {
			t.Errorf("the new password: %s", code)
		}
		if mails := h.sent("ann@example.org", mail.PasswordChanged); len(mails) != 1 {
			t.Errorf("%d mails about it", len(mails))
		}
	})
}

func TestPromise_A4_AResetDoesNotBypassTheSecondFactor(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		secret, _ := h.enrolled(&p)
		c := browser("192.0.2.1", "")
		if err := h.RequestReset(ctx, c, "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		device, err := h.Reset(ctx, c, h.code("ann@example.org", mail.ResetPassword), another)
		if err != nil {
			t.Fatal(err)
		}
		c.Device = device
		if code := h.signIn(h.Service, c, "ann@example.org", another); code != problem.SecondFactorNeeded {
			t.Errorf("without the app: %q", code)
		}
		if _, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: another, Code: h.shows(secret, 0)}); err != nil {
			t.Errorf("with it: %v", err)
		}
	})
}

// Nobody is locked out by others: the mailed code leads past an attack.
func TestPromise_U5_AResetLeadsPastAnAttackOnTheAccount(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.member("ann@example.org", "ann")
		attack := func() {
			for i := range 12 {
				h.signIn(h.Service, browser(fmt.Sprintf("10.0.0.%d", i), ""), "ann@example.org", "wrong horse")
			}
		}
		attack()
		c := browser("192.0.2.1", "")
		if err := h.RequestReset(ctx, c, "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		device, err := h.Reset(ctx, c, h.code("ann@example.org", mail.ResetPassword), another)
		if err != nil {
			t.Fatal(err)
		}
		attack()
		if code := h.signIn(h.Service, c, "ann@example.org", another); code != problem.RateLimited {
			t.Errorf("the attack is none: %q", code)
		}
		c.Device = device
		if code := h.signIn(h.Service, c, "ann@example.org", another); code != "" {
			t.Errorf("locked out: %s", code)
		}
		if mails := h.sent("ann@example.org", mail.NewDevice); len(mails) != 0 {
			t.Error("told of the device that set the password")
		}
	})
}

func TestAttack_ResetCodeRace(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		if err := h.RequestReset(ctx, browser("192.0.2.1", ""), "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		code := h.code("ann@example.org", mail.ResetPassword)
		processes := []*Service{h.Service, h.process()}
		const n = 32
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() {
				_, errs[i] = processes[i%2].Reset(ctx, browser(fmt.Sprintf("10.0.0.%d", i), ""), code, fmt.Sprintf("horse number %d", i))
			})
		}
		wg.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won < 0:
				won = i
			case err == nil:
				t.Error("two won")
			default:
				wantCode(t, "the others", err, problem.LinkInvalid)
			}
		}
		if code := h.signIn(h.Service, browser("192.0.2.1", ""), "ann@example.org", fmt.Sprintf("horse number %d", won)); code != "" {
			t.Errorf("the password of the one that won, %d: %s", won, code)
		}
		if len(h.sent("ann@example.org", mail.PasswordChanged)) != 1 || h.sessionCount(p.Subject) != 2 {
			t.Error("one that lost left something behind")
		}
	})
}

func TestCodesThatAreMailedExpire(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		_, p := h.member("ann@example.org", "ann")
		// The address first: a reset ends the session that asks for it.
		for _, link := range []struct {
			kind string
			life time.Duration
		}{{linkEmail, confirmFor}, {linkPassword, resetFor}} {
			kind, life := link.kind, link.life
			for _, late := range []bool{false, true} {
				began := h.clock.Now()
				p.FreshAt = began
				var use func() error
				if kind == linkPassword {
					if err := h.RequestReset(ctx, c, "ann@example.org"); err != nil {
						t.Fatal(err)
					}
					code := h.code("ann@example.org", mail.ResetPassword)
					use = func() error { _, err := h.Reset(ctx, c, code, another); return err }
				} else {
					if err := h.ChangeEmail(ctx, p, "ann@example.org"); err != nil {
						t.Fatal(err)
					}
					code := h.code("ann@example.org", mail.ConfirmEmail)
					use = func() error { return h.ConfirmEmail(ctx, p, code) }
				}
				h.clock.Advance(began.Add(life).Sub(h.clock.Now()) - time.Millisecond)
				if !late {
					if err := use(); err != nil {
						t.Errorf("%s in the last moment: %v", kind, err)
					}
					wantCode(t, kind+" used", use(), problem.LinkInvalid)
					continue
				}
				if err := h.Prune(ctx); err != nil || h.count(`SELECT count(*) FROM mailed_links WHERE used_at IS NULL`) != 1 {
					t.Errorf("%s: removed too early, %v", kind, err)
				}
				h.clock.Advance(time.Millisecond)
				wantCode(t, kind+" late", use(), problem.LinkInvalid)
				if err := h.Prune(ctx); err != nil || h.count(`SELECT count(*) FROM mailed_links WHERE used_at IS NULL`) != 0 {
					t.Errorf("%s: it is left, %v", kind, err)
				}
			}
		}
	})
}

// A code opens only what it was mailed for, and a malformed one asks nobody.
func TestCodesAreForOneThing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		_, p := h.member("ann@example.org", "ann")
		if err := h.RequestReset(ctx, c, "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		if err := h.ChangeEmail(ctx, p, "new@example.org"); err != nil {
			t.Fatal(err)
		}
		if err := h.SignUp(ctx, c, SignUp{Email: "bob@example.org", Username: "bob", Password: password, OldEnough: true}); err != nil {
			t.Fatal(err)
		}
		codes := map[string]string{
			"reset": h.code("ann@example.org", mail.ResetPassword), "email": h.code("new@example.org", mail.ConfirmEmail),
			"sign-up": h.code("bob@example.org", mail.ConfirmSignUp), "unknown": h.codeForm.make(), "none": "", "malformed": "zc_nonsense", "a key": keyForm.make(),
		}
		uses := map[string]func(code string) error{
			"reset":   func(code string) error { _, err := h.Reset(ctx, c, code, another); return err },
			"email":   func(code string) error { return h.ConfirmEmail(ctx, p, code) },
			"sign-up": func(code string) error { _, err := h.ConfirmSignUp(ctx, c, code, password); return err },
		}
		for use, try := range uses {
			for of, code := range codes {
				if of == use {
					continue
				}
				err := try(code)
				if wantCode(t, of+" for "+use, err, problem.LinkInvalid); err != nil && err.Error() != linkInvalid().Error() {
					t.Errorf("%s for %s: %v", of, use, err)
				}
			}
		}
		// None of it has used any up. The change of address goes first: a reset
		// voids it.
		for _, use := range []string{"email", "sign-up"} {
			if err := uses[use](codes[use]); err != nil {
				t.Errorf("%s: %v", use, err)
			}
		}
		wantCode(t, "a reset mailed to the address of before", uses["reset"](codes["reset"]), problem.LinkInvalid)
	})
}

func TestPromise_A2_AnAddressChangesOnceItIsConfirmed(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		in, p := h.member("ann@example.org", "ann")
		stale := p
		stale.FreshAt = h.clock.Now().Add(-freshFor)
		wantCode(t, "not fresh", h.ChangeEmail(ctx, stale, "new@example.org"), problem.ReauthNeeded)
		wantField(t, "no address", h.ChangeEmail(ctx, p, "new"), "body.email")
		for _, email := range []string{"typo@example.org", "New@Example.org"} {
			if err := h.ChangeEmail(ctx, p, email); err != nil {
				t.Fatal(err)
			}
		}
		typo, code := h.code("typo@example.org", mail.ConfirmEmail), h.code("New@example.org", mail.ConfirmEmail)
		if len(h.sent("ann@example.org", mail.EmailChangeAsked)) != 2 {
			t.Error("the owner's address is not told")
		}
		if u, err := h.User(ctx, p.Subject); err != nil || u.Email != "ann@example.org" {
			t.Errorf("%+v, %v", u, err)
		}
		if code := h.signIn(h.Service, c, "new@example.org", password); code != problem.SignInFailed {
			t.Errorf("before: %q", code)
		}
		wantCode(t, "the change before", h.ConfirmEmail(ctx, p, typo), problem.LinkInvalid)
		if err := h.ConfirmEmail(ctx, p, code); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "once more", h.ConfirmEmail(ctx, p, code), problem.LinkInvalid)
		if u, err := h.User(ctx, p.Subject); err != nil || u.Email != "New@example.org" {
			t.Errorf("%+v, %v", u, err)
		}
		for _, email := range []string{"ann@example.org", "New@example.org"} {
			if len(h.sent(email, mail.EmailChanged)) != 1 {
				t.Errorf("%s is not told", email)
			}
		}
		if code := h.signIn(h.Service, c, "new@example.org", password); code != "" {
			t.Errorf("afterwards: %s", code)
		}
		if code := h.signIn(h.Service, c, "ann@example.org", password); code != problem.SignInFailed {
			t.Errorf("by the address before: %q", code)
		}
		h.principal(in.Token)
		if _, err := h.CreateUser(ctx, "ann@example.org", password); err != nil {
			t.Errorf("the address before is not free: %v", err)
		}
	})
}

func TestAttack_TwoDevicesConfirmAnAddressAtOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		in, err := h.SignIn(ctx, browser("192.0.2.2", ""), Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		devices := []Principal{p, h.principal(in.Token)}
		if err := h.ChangeEmail(ctx, p, "new@example.org"); err != nil {
			t.Fatal(err)
		}
		code := h.code("new@example.org", mail.ConfirmEmail)
		processes := []*Service{h.Service, h.process()}
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = processes[i%2].ConfirmEmail(ctx, devices[i/2%2], code) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			wantCode(t, "the other", err, problem.LinkInvalid)
		}
		if won != 1 || len(h.sent("new@example.org", mail.EmailChanged)) != 1 {
			t.Errorf("%d won", won)
		}
	})
}

// Whoever finds the code, or reads the mail of the new address, is not the owner
// of the account by that.
func TestAttack_SomebodyElseConfirmsAnAddress(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, ann := h.member("ann@example.org", "ann")
		_, eve := h.member("eve@example.org", "eve")
		if err := h.ChangeEmail(ctx, ann, "typo@example.org"); err != nil {
			t.Fatal(err)
		}
		code := h.code("typo@example.org", mail.ConfirmEmail)
		wantCode(t, "in another's session", h.ConfirmEmail(ctx, eve, code), problem.LinkInvalid)
		wantCode(t, "by a key of hers", h.ConfirmEmail(ctx, Principal{Subject: ann.Subject, KeyID: "key_1", Scopes: Scopes()}, code), problem.Forbidden)
		ended := ann
		ended.SessionID = "ses_ended"
		wantCode(t, "in a session that has ended", h.ConfirmEmail(ctx, ended, code), problem.Unauthorized)
		if u, err := h.User(ctx, ann.Subject); err != nil || u.Email != "ann@example.org" {
			t.Errorf("%+v, %v", u, err)
		}
		if err := h.ConfirmEmail(ctx, ann, code); err != nil {
			t.Errorf("her own: %v", err)
		}
	})
}

func TestAnAddressThatIsTakenBeforeItIsConfirmed(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		_, ann := h.member("ann@example.org", "ann")
		_, bob := h.member("bob@example.org", "bob")
		// Neither is told whether the address is free.
		for _, p := range []Principal{ann, bob} {
			if err := h.ChangeEmail(ctx, p, "new@example.org"); err != nil {
				t.Fatal(err)
			}
			h.clock.Advance(time.Millisecond)
		}
		if err := h.ChangeEmail(ctx, bob, "ann@example.org"); err != nil {
			t.Errorf("an address that has an account: %v", err)
		}
		bobs := h.code("ann@example.org", mail.ConfirmEmail)
		anns := h.sent("new@example.org", mail.ConfirmEmail)[0].Data["Code"]
		wantCode(t, "Ann's own", h.ConfirmEmail(ctx, bob, bobs), problem.Conflict)

		// A sign-up with the same address pends, and is void once it is Ann's.
		if err := h.SignUp(ctx, c, SignUp{Email: "new@example.org", Username: "new", Password: password, OldEnough: true}); err != nil {
			t.Fatal(err)
		}
		signUp := h.code("new@example.org", mail.ConfirmSignUp)
		if err := h.ConfirmEmail(ctx, ann, anns); err != nil {
			t.Fatal(err)
		}
		_, err := h.ConfirmSignUp(ctx, c, signUp, password)
		wantCode(t, "the sign-up", err, problem.LinkInvalid)
		// Ann's address of before is free, so Bob may have it.
		if err := h.ConfirmEmail(ctx, bob, bobs); err != nil {
			t.Errorf("the code was used up by a refusal: %v", err)
		}
		for owner, want := range map[string]string{ann.Subject: "new@example.org", bob.Subject: "ann@example.org"} {
			if u, err := h.User(ctx, owner); err != nil || u.Email != want {
				t.Errorf("%+v, %v, want %s", u, err, want)
			}
		}
	})
}

func TestAPasswordChangeEndsTheOtherSessions(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		in, p := h.member("ann@example.org", "ann")
		other, err := h.SignIn(ctx, c, Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.RequestReset(ctx, c, "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		reset := h.code("ann@example.org", mail.ResetPassword)
		stale := p
		stale.FreshAt = h.clock.Now().Add(-freshFor)
		wantCode(t, "not fresh", errorOf(h.ChangePassword(ctx, stale, c, another)), problem.ReauthNeeded)
		wantCode(t, "by key", errorOf(h.ChangePassword(ctx, Principal{Subject: p.Subject, KeyID: "key_1"}, c, another)), problem.Forbidden)
		wantField(t, "the address", errorOf(h.ChangePassword(ctx, p, c, "ann@example.org")), "body.password")
		h.principal(other.Token) // none of that changed anything
		h.principal(in.Token)
		h.clock.Advance(time.Minute)
		next, err := h.ChangePassword(ctx, p, c, another)
		if err != nil {
			t.Fatal(err)
		}
		// The same session, by a new token alone, and no fresher than it was: or who
		// has a copy of a fresh one could keep it so for ever.
		_, err = h.process().AuthenticateSession(ctx, in.Token)
		wantCode(t, "a copy of the cookie", err, problem.Unauthorized)
		if now := h.principal(next.Token); now.SessionID != p.SessionID || !now.FreshAt.Equal(p.FreshAt) || now.Method != p.Method || now.lookup == p.lookup {
			t.Errorf("%+v, before %+v", now, p)
		}
		_, err = h.process().AuthenticateSession(ctx, other.Token)
		wantCode(t, "the other session", err, problem.Unauthorized)
		_, err = h.Reset(ctx, c, reset, "a third horse")
		wantCode(t, "a reset asked for before", err, problem.LinkInvalid)
		for p, want := range map[string]problem.Code{password: problem.SignInFailed, another: ""} {
			if code := h.signIn(h.Service, c, "ann@example.org", p); code != want {
				t.Errorf("%s: %q", p, code)
			}
		}
		if len(h.sent("ann@example.org", mail.PasswordChanged)) != 1 {
			t.Error("the owner is not told")
		}
	})
}

// A copy of the cookie that a thief made before opens nothing once what protects
// the account is another.
func TestAttack_ACopiedCookieDoesNotOutliveTheFirstFactor(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for name, first := range map[string]func(Principal) (Enrolled, error){
			"app": func(p Principal) (Enrolled, error) {
				secret, _, err := h.BeginTOTP(ctx, p)
				if err != nil {
					t.Fatal(err)
				}
				return h.ConfirmTOTP(ctx, p, browser("192.0.2.1", ""), h.shows(secret, 0))
			},
			"passkey": func(p Principal) (Enrolled, error) {
				_, got, err := h.AddPasskey(ctx, p, browser("192.0.2.1", ""), "", newDevice().register(h.beginPasskey(p)))
				return got, err
			},
		} {
			in, p := h.member(name+"@example.org", name)
			h.clock.Advance(time.Minute)
			got, err := first(p)
			if err != nil {
				t.Fatal(err)
			}
			_, err = h.process().AuthenticateSession(ctx, in.Token)
			wantCode(t, name+": the copy", err, problem.Unauthorized)
			if now := h.principal(got.SignedIn.Token); now.SessionID != p.SessionID || !now.FreshAt.Equal(p.FreshAt) {
				t.Errorf("%s: %+v, before %+v", name, now, p)
			}
		}
	})
}

func TestAClosedAccountsCodesAreVoid(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		_, p := h.member("ann@example.org", "ann")
		if err := h.RequestReset(ctx, c, "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		if err := h.ChangeEmail(ctx, p, "new@example.org"); err != nil {
			t.Fatal(err)
		}
		reset, email := h.code("ann@example.org", mail.ResetPassword), h.code("new@example.org", mail.ConfirmEmail)
		state(t, h, p.Subject, subject.Closing)
		_, err := h.Reset(ctx, c, reset, another)
		wantCode(t, "a reset", err, problem.LinkInvalid)
		wantCode(t, "a change of address", h.ConfirmEmail(ctx, p, email), problem.Unauthorized)
		wantCode(t, "another change", h.ChangeEmail(ctx, p, "new@example.org"), problem.Unauthorized)
		wantCode(t, "a password", errorOf(h.ChangePassword(ctx, p, c, another)), problem.Unauthorized)
		_, err = h.Reauthenticate(ctx, p, c, Credentials{Password: password})
		wantCode(t, "one more proof", err, problem.SignInFailed)
	})
}
