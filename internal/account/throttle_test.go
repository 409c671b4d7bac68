package account

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
)

func TestABucketCountsExactlyHoweverManyAskAtOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		b := bucket{key: "test", limit: limit{5, time.Minute}}
		processes := []*Service{h.Service, h.process()}
		var passed atomic.Int64
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				switch _, err := processes[i%2].take(ctx, b); problem.CodeOf(err) {
				case problem.RateLimited:
				default:
					if err != nil {
						t.Error(err)
					}
					passed.Add(1)
				}
			})
		}
		wg.Wait()
		if passed.Load() != 5 {
			t.Errorf("%d passed", passed.Load())
		}
		wait := func() time.Duration {
			t.Helper()
			var p *problem.Error
			_, err := h.take(ctx, b)
			if err == nil {
				return 0
			}
			if !errors.As(err, &p) || p.Code != problem.RateLimited {
				t.Fatal(err)
			}
			return p.RetryAfter
		}
		if w := wait(); w != time.Minute {
			t.Errorf("wait %v", w)
		}
		h.clock.Advance(time.Minute - time.Millisecond)
		if w := wait(); w != time.Millisecond {
			t.Errorf("wait %v", w)
		}
		h.clock.Advance(time.Millisecond)
		if w := wait(); w != 0 {
			t.Errorf("after a minute: wait %v", w)
		}
		if w := wait(); w != time.Minute {
			t.Errorf("one a minute: wait %v", w)
		}
		// Rest fills it up again, and no further.
		h.clock.Advance(24 * time.Hour)
		for range 5 {
			if w := wait(); w != 0 {
				t.Errorf("after a day: wait %v", w)
			}
		}
		if w := wait(); w != time.Minute {
			t.Errorf("more than full: wait %v", w)
		}
	})
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		key := func(s string) string {
			b := h.networkBucket(netip.MustParseAddr(s))
			if len(b) != 1 {
				t.Fatal(s)
			}
			return b[0].key
		}
		if key("192.0.2.1") == key("192.0.2.2") || key("192.0.2.1") != key("::ffff:192.0.2.1") {
			t.Error("IPv4 is not counted by address")
		}
		if key("2001:db8:1:2::1") != key("2001:db8:1:2:ffff::9%eth0") || key("2001:db8:1:2::1") == key("2001:db8:1:3::1") {
			t.Error("IPv6 is not counted by /64")
		}
		if len(h.networkBucket(netip.Addr{})) != 0 {
			t.Error("clients without an address share a count")
		}
	})
}

// signIn returns the code of the answer; empty: signed in.
func (h *home) signIn(s *Service, c Client, email, password string) problem.Code {
	h.t.Helper()
	_, err := s.SignIn(context.Background(), c, Credentials{Email: email, Password: password})
	if err == nil {
		return ""
	}
	return problem.CodeOf(err)
}

func TestPromise_U5_AnAccountsAttemptsAreCountedOverAllProcessesAndNetworks(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		h.user("ann@example.org")
		processes := []*Service{h.Service, h.process()}
		// Alike for an address that has an account and one that has none.
		for a, email := range []string{"ann@example.org", "nobody@example.org"} {
			for i := range 10 {
				if code := h.signIn(processes[i%2], browser(fmt.Sprintf("10.%d.0.%d", a, i), ""), email, "wrong horse"); code != problem.SignInFailed {
					t.Fatalf("%s, attempt %d: %s", email, i+1, code)
				}
			}
			hashes := 0
			h.hasher.counted = func() { hashes++ }
			for _, p := range []string{"wrong horse", password} { // the right one tells nothing either
				if code := h.signIn(h.Service, browser("10.9.0.1", ""), email, p); code != problem.RateLimited {
					t.Errorf("%s, one more: %s", email, code)
				}
			}
			if hashes != 0 {
				t.Error("a refused attempt was hashed")
			}
		}
		h.clock.Advance(time.Minute)
		if code := h.signIn(h.Service, browser("10.9.0.1", ""), "Ann@Example.org", password); code != "" {
			t.Errorf("a minute later: %s", code)
		}
	})
}

func TestPromise_U5_AKnownDeviceIsNotLockedOutByAnAttack(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		home := browser("192.0.2.1", "")
		in, err := h.SignIn(ctx, home, Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		device, err := h.SignOut(ctx, h.principal(in.Token))
		if err != nil {
			t.Fatal(err)
		}
		attack := func() (code problem.Code) {
			for i := range 12 {
				code = h.signIn(h.Service, browser(fmt.Sprintf("10.0.0.%d", i), ""), "ann@example.org", "wrong horse")
			}
			return code
		}
		if code := attack(); code != problem.RateLimited {
			t.Fatalf("the attack goes on: %s", code)
		}
		if code := h.signIn(h.Service, browser("192.0.2.1", ""), "ann@example.org", password); code != problem.RateLimited {
			t.Fatalf("a device that is not known: %s", code)
		}
		// Also by a device that was signed in elsewhere, which is no proof here.
		h.user("eve@example.org")
		eve, err := h.SignIn(ctx, browser("10.0.0.99", ""), Credentials{Email: "eve@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		if code := h.signIn(h.Service, browser("10.0.0.99", eve.Token), "ann@example.org", password); code != problem.RateLimited {
			t.Errorf("somebody else's device: %s", code)
		}
		// Also when the attacker sits behind the same address.
		for i := range 40 {
			h.signIn(h.Service, home, fmt.Sprintf("nobody%d@example.org", i), "wrong horse")
		}
		if code := h.signIn(h.Service, home, "nobody@example.org", password); code != problem.RateLimited {
			t.Fatalf("the network is not full: %s", code)
		}
		if code := h.signIn(h.Service, browser("192.0.2.1", device), "ann@example.org", password); code != "" {
			t.Errorf("the known device: %s", code)
		}
		// It came in without making room for the others.
		if code := h.signIn(h.Service, home, "nobody@example.org", password); code != problem.RateLimited {
			t.Errorf("the network is not full any more: %s", code)
		}
	})
}

func TestPromise_U5_AKnownDeviceHasALimitToo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		in, _ := h.member("ann@example.org", "ann")
		stolen := browser("10.0.0.1", in.Token)
		for range 10 {
			if code := h.signIn(h.Service, stolen, "ann@example.org", "wrong horse"); code != problem.SignInFailed {
				t.Fatal(code)
			}
		}
		if code := h.signIn(h.Service, stolen, "ann@example.org", password); code != problem.RateLimited {
			t.Errorf("one more: %s", code)
		}
		if code := h.signIn(h.Service, browser("192.0.2.7", ""), "ann@example.org", password); code != "" {
			t.Errorf("everybody else: %s", code)
		}
	})
}

func TestPromise_U5_ANetworkThatStuffsCredentialsIsSlowedDown(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		answers := map[problem.Code]int{}
		for i := range 40 { // every address once, from one /64
			answers[h.signIn(h.Service, browser(fmt.Sprintf("2001:db8::%x", i+1), ""), fmt.Sprintf("nobody%d@example.org", i), password)]++
		}
		if answers[problem.SignInFailed] != 30 || answers[problem.RateLimited] != 10 {
			t.Errorf("%v", answers)
		}
		err := h.SignUp(ctx, browser("2001:db8::1", ""), SignUp{Email: "new@example.org", Username: "new", Password: password, OldEnough: true})
		wantCode(t, "a sign-up from there", err, problem.RateLimited)
		wantCode(t, "a reset from there", h.RequestReset(ctx, browser("2001:db8::1", ""), "ann@example.org"), problem.RateLimited)
		if code := h.signIn(h.Service, browser("2001:db8:0:1::1", ""), "ann@example.org", password); code != "" {
			t.Errorf("the network beside it: %s", code)
		}
		h.clock.Advance(2 * time.Second)
		if code := h.signIn(h.Service, browser("2001:db8::1", ""), "ann@example.org", password); code != "" {
			t.Errorf("two seconds later: %s", code)
		}
	})
}

func TestASuccessfulSignInIsNotCounted(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		h.user("ann@example.org")
		c := browser("192.0.2.1", "")
		for i := range 9 {
			if code := h.signIn(h.Service, c, "ann@example.org", "wrong horse"); code != problem.SignInFailed {
				t.Fatal(i, code)
			}
		}
		for i := range 40 { // more than any burst
			if code := h.signIn(h.Service, c, "ann@example.org", password); code != "" {
				t.Fatalf("sign-in %d: %s", i, code)
			}
		}
		// And washes nothing away: the nine still count, as in an attacker's own
		// account between two guesses.
		if code := h.signIn(h.Service, c, "ann@example.org", "wrong horse"); code != problem.SignInFailed {
			t.Error(code)
		}
		if code := h.signIn(h.Service, c, "ann@example.org", "wrong horse"); code != problem.RateLimited {
			t.Error(code)
		}
	})
}

// Who has an account must not have the machine hash for them all day, and nobody
// can use that up for somebody else.
func TestPromise_U5_Attack_RightPasswordsWithoutEnd(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		there := browser("192.0.2.1", "")
		in, err := h.SignIn(ctx, there, Credentials{Email: "ann@example.org", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		there.Device = in.Token
		// From a network of its own each, so that none of those is full.
		thief := func(i int) problem.Code {
			return h.signIn(h.Service, browser(fmt.Sprintf("10.0.%d.1", i), ""), "ann@example.org", password)
		}
		for i := range int(perEntry.burst) - 1 {
			if code := thief(i); code != "" {
				t.Fatalf("sign-in %d: %s", i, code)
			}
		}
		hashes := 0
		h.hasher.counted = func() { hashes++ }
		if code := thief(100); code != problem.RateLimited || hashes != 0 {
			t.Errorf("one more: %q after %d hashes", code, hashes)
		}
		// Strangers without the password count nothing there, and the browser that
		// the account knows is not in the way of the others nor they in its.
		for range int(perEntry.burst) {
			next, err := h.SignIn(ctx, there, Credentials{Email: "ann@example.org", Password: password})
			if err != nil {
				t.Fatalf("the known browser: %v", err)
			}
			there.Device = next.Token
		}
		_, err = h.SignIn(ctx, there, Credentials{Email: "ann@example.org", Password: password})
		wantCode(t, "the known browser without end", err, problem.RateLimited)
		_, err = h.Reauthenticate(ctx, h.principal(there.Device), there, Credentials{Password: password})
		wantCode(t, "proving it again without end", err, problem.RateLimited)
		h.clock.Advance(perEntry.interval)
		if code := thief(101); code != "" {
			t.Errorf("a minute later: %s", code)
		}
		if n := len(h.sent("ann@example.org", mail.NewDevice)); n != int(perNewDevice.burst) {
			t.Errorf("%d mails about new devices, want %d", n, perNewDevice.burst)
		}
		h.clock.Advance(perNewDevice.interval)
		thief(102)
		if n := len(h.sent("ann@example.org", mail.NewDevice)); n != int(perNewDevice.burst)+1 {
			t.Errorf("%d mails about new devices after a while", n)
		}
	})
}

// Wrong passwords, which anybody can send, use up nothing that right ones need
// once the attack is over.
func TestPromise_U5_StrangersUseUpNoRightPasswords(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		h.user("ann@example.org")
		for i := range 100 {
			h.signIn(h.Service, browser(fmt.Sprintf("10.0.%d.1", i), ""), "ann@example.org", "wrong horse")
		}
		h.clock.Advance(perAccount.interval)
		if code := h.signIn(h.Service, browser("192.0.2.1", ""), "ann@example.org", password); code != "" {
			t.Errorf("locked out: %s", code)
		}
		if n := h.count(`SELECT count(*) FROM throttles WHERE bucket LIKE 'entry:%'`); n != 1 {
			t.Errorf("%d counts of right passwords", n)
		}
	})
}

func TestMailboxes(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"ann@example.org": "ann@example.org", "ann+shop@example.org": "ann@example.org", "ann+a+b@example.org": "ann@example.org",
		"+ann@example.org": "+ann@example.org", "ann@a+b.example": "ann@a+b.example", "a.n.n@example.org": "a.n.n@example.org",
		"a.nn@gmail.com": "ann@gmail.com", "an.n+shop@googlemail.com": "ann@gmail.com", "a.nn@mail.gmail.com": "a.nn@mail.gmail.com",
	} {
		if got := mailbox(address); got != want {
			t.Errorf("%s is delivered to %s, want %s", address, got, want)
		}
	}
}

func TestAttack_TagsFillNobodysMailbox(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for i := range 12 {
			for _, email := range []string{fmt.Sprintf("ann+%d@example.org", i), fmt.Sprintf("ANN+%d@Example.org", i)} {
				if err := h.SignUp(ctx, browser(fmt.Sprintf("10.0.0.%d", i), ""), SignUp{
					Email: email, Username: fmt.Sprintf("ann%d", i), Password: password, OldEnough: true,
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
		// All of them ask from one part of the net.
		if n, want := len(h.letters()), int(perMailbox.burst+perNeighbourhood.burst); n != want {
			t.Errorf("%d letters to one mailbox, want %d", n, want)
		}
		if err := h.SignUp(ctx, browser("10.0.1.1", ""), SignUp{Email: "anna@example.org", Username: "anna", Password: password, OldEnough: true}); err != nil {
			t.Fatal(err)
		}
		if len(h.sent("anna@example.org", mail.ConfirmSignUp)) != 1 {
			t.Error("another mailbox gets none")
		}
	})
}

func TestThrottlesNameNobody(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		h.signIn(h.Service, browser("198.51.100.77", ""), "canary.ann@example.org", "wrong horse")
		raw := everything(t, h.db, h.url)
		for _, secret := range []string{"canary.ann", "198.51.100"} {
			if found(raw, secret) {
				t.Errorf("%s stands in the database", secret)
			}
		}
		if n := h.count(`SELECT count(*) FROM throttles`); n != 2 {
			t.Errorf("%d counts", n)
		}
		// Even again, they go.
		h.clock.Advance(10 * time.Second)
		if err := h.Prune(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := h.count(`SELECT count(*) FROM throttles`); n != 1 {
			t.Errorf("%d counts after ten seconds", n)
		}
		h.clock.Advance(time.Minute)
		if err := h.Prune(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := h.count(`SELECT count(*) FROM throttles`); n != 0 {
			t.Errorf("%d counts after a minute", n)
		}
	})
}

// signUpLetter reports whether a sign-up of the address from there brings a letter.
func (h *home) signUpLetter(from, email, username string) bool {
	h.t.Helper()
	before := len(h.letters())
	if err := h.SignUp(context.Background(), browser(from, ""), SignUp{Email: email, Username: username, Password: password, OldEnough: true}); err != nil {
		h.t.Fatal(err)
	}
	return len(h.letters()) > before
}

// Who goes on asking for letters to somebody's mailbox, also from many networks of
// a provider, keeps that person's own away neither at first nor later.
func TestAttack_AStrangerKeepsNobodyFromSigningUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		n := 0
		attack := func(from string, times int) (sent int) {
			for range times {
				n++
				if h.signUpLetter(from, fmt.Sprintf("ann+%d@example.org", n), fmt.Sprintf("user%d", n)) {
					sent++
				}
			}
			return sent
		}
		if sent := attack("10.6.6.6", 12); sent != int(perLetter.burst) {
			t.Errorf("one network has %d letters sent, want %d", sent, perLetter.burst)
		}
		if !h.signUpLetter("192.0.2.1", "ann@example.org", "ann") {
			t.Error("beside one network: no letter")
		}
		for round := range 6 {
			h.clock.Advance(perLetter.interval)
			for i := range 20 {
				attack(fmt.Sprintf("10.6.%d.%d", round, i), 1)
				attack(fmt.Sprintf("2001:db8:%x:%x::1", round, i), 1)
			}
			if from := fmt.Sprintf("192.%d.2.1", round+1); !h.signUpLetter(from, "ann@example.org", "ann") {
				t.Errorf("round %d: no letter beside two providers' networks", round)
			}
		}
	})
}

// Nobody knows who asks over a socket: all of those together are not one asker.
func TestAskersBehindASocketAreCountedByTheMailboxAlone(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		sent := 0
		for i := range 60 {
			if h.signUpLetter("", fmt.Sprintf("ann+%d@example.org", i), fmt.Sprintf("user%d", i)) {
				sent++
			}
		}
		if want := int(perMailbox.burst + perReserve.burst); sent != want {
			t.Errorf("%d letters, want %d", sent, want)
		}
	})
}

// A hash and a mail each time: a session has them made so often and no more.
func TestAttack_PasswordsAreNotChangedWithoutEnd(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		_, p := h.member("ann@example.org", "ann")
		c := browser("192.0.2.1", "")
		for i := range int(perEntry.burst) + 1 {
			hashes := 0
			h.hasher.counted = func() { hashes++ }
			in, err := h.ChangePassword(context.Background(), p, c, fmt.Sprintf("another correct horse %d", i))
			if problem.CodeOf(err) == problem.RateLimited {
				if hashes != 0 || i < int(perEntry.burst)-1 {
					t.Errorf("change %d is refused after %d hashes", i, hashes)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			p = h.principal(in.Token)
		}
		t.Error("no change is refused")
	})
}

// However many networks ask, a mailbox gets a bounded number of letters.
func TestAttack_AllTheWorldFillsNobodysMailbox(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		for i := range 60 {
			h.signUpLetter(fmt.Sprintf("10.%d.0.1", i), fmt.Sprintf("ann+%d@example.org", i), fmt.Sprintf("user%d", i))
		}
		if n, want := len(h.letters()), int(perMailbox.burst+perReserve.burst); n != want {
			t.Errorf("%d letters, want %d", n, want)
		}
	})
}

// Nor does their patience fill it.
func TestAttack_PatientStrangersFillNobodysMailbox(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		n := 0
		for day, most := range []int{140, 70, 70} {
			sent := 0
			for range 24 * 6 {
				h.clock.Advance(10 * time.Minute)
				for range 2 {
					n++
					from, err := h.asker(context.Background(), browser(fmt.Sprintf("10.%d.0.1", n%250), ""), "")
					if err != nil {
						t.Fatal(err)
					}
					switch may, err := h.mayWrite(context.Background(), mail.ConfirmSignUp, "ann@example.org", from); {
					case err != nil:
						t.Fatal(err)
					case may:
						sent++
					}
				}
			}
			if sent > most || sent < most/2 {
				t.Errorf("%d letters on day %d, want at most %d", sent, day+1, most)
			}
		}
	})
}

// Whatever strangers use up, also of the network and the provider from which the
// owner asks: the browser that the account knows has a count of its own.
func TestAttack_NobodyKeepsAnOwnerFromTheirOwnLetters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, ann := h.member("ann@example.org", "ann")
		device, err := h.SignOut(ctx, ann)
		if err != nil {
			t.Fatal(err)
		}
		bob, _ := h.member("bob@example.org", "bob")
		letter := func(from, device string) bool {
			t.Helper()
			before := len(h.sent("ann@example.org", mail.ResetPassword))
			if err := h.RequestReset(ctx, browser(from, device), "ann@example.org"); err != nil && problem.CodeOf(err) != problem.RateLimited {
				t.Fatal(err)
			}
			return len(h.sent("ann@example.org", mail.ResetPassword)) > before
		}
		for i := range 60 {
			letter(fmt.Sprintf("10.%d.0.1", i), "")
		}
		for range 40 {
			letter("10.0.0.1", "")
		}
		if letter("192.0.2.7", "") || letter("192.0.2.8", bob.Token) {
			t.Error("strangers have letters sent without end")
		}
		for i := range int(perLetter.burst) {
			if !letter("10.0.0.1", device) {
				t.Errorf("the owner's letter %d is kept away", i+1)
			}
		}
		if letter("10.0.0.1", device) {
			t.Error("the owner has letters sent without end")
		}
		h.clock.Advance(perLetter.interval)
		if !letter("10.0.0.1", device) {
			t.Error("the owner's count does not refill")
		}
	})
}

// Addresses of the same mailbox that have no account get no letter, and use up none
// of those of the one that has.
func TestAttack_ResetsOfNobodyKeepNoLetterAway(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		for i := range 60 {
			if err := h.RequestReset(ctx, browser(fmt.Sprintf("10.%d.0.1", i), ""), fmt.Sprintf("ann+%d@example.org", i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.RequestReset(ctx, browser("10.0.0.1", ""), "ann@example.org"); err != nil {
			t.Fatal(err)
		}
		if n := len(h.sent("ann@example.org", mail.ResetPassword)); n != 1 || n != len(h.letters()) {
			t.Errorf("%d resets of %d letters", n, len(h.letters()))
		}
	})
}

// Nor does another person who says that the address is to be theirs.
func TestAttack_AnotherPersonKeepsNoAddressFromBeingConfirmed(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, eve := h.member("eve@example.org", "eve")
		_, ann := h.member("ann@example.org", "ann")
		for i := range 5 {
			if err := h.ChangeEmail(ctx, eve, fmt.Sprintf("new+%d@example.org", i)); err != nil {
				t.Fatal(err)
			}
		}
		wantCode(t, "one more", h.ChangeEmail(ctx, eve, "new+6@example.org"), problem.RateLimited)
		if err := h.ChangeEmail(ctx, ann, "new@example.org"); err != nil {
			t.Errorf("her own address: %v", err)
		}
	})
}

func TestOneAddressGetsABoundedNumberOfLetters(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.user("ann@example.org")
		for i := range 8 {
			// Nobody is told, neither of an account nor of its letters.
			if err := h.RequestReset(ctx, browser("10.0.0.1", ""), "ann@example.org"); err != nil {
				t.Error(err)
			}
			if err := h.SignUp(ctx, browser(fmt.Sprintf("2001:db8::%d", i+1), ""), SignUp{Email: "new@example.org", Username: "new", Password: password, OldEnough: true}); err != nil {
				t.Error(err)
			}
		}
		count := func() (n [2]int) {
			for _, l := range h.letters() {
				switch l.To {
				case "ann@example.org":
					n[0]++
				case "new@example.org":
					n[1]++
				}
			}
			return n
		}
		if n := count(); n != [2]int{5, 5} {
			t.Errorf("%v letters", n)
		}
		h.clock.Advance(10 * time.Minute)
		if err := h.RequestReset(ctx, browser("10.0.0.1", ""), "ann@example.org"); err != nil {
			t.Error(err)
		}
		if n := count(); n != [2]int{6, 5} {
			t.Errorf("%v letters", n)
		}
	})
}

func TestCountsThatCannotBeWrittenLetNobodyIn(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		h.user("ann@example.org")
		other := h.process()
		if err := other.db.Close(); err != nil {
			t.Fatal(err)
		}
		if code := h.signIn(other, browser("192.0.2.1", ""), "ann@example.org", password); code != problem.Unavailable {
			t.Errorf("without a database: %s", code)
		}
		// A count that fails in the transaction of the sign-in rolls it back.
		err := h.db.Tx(context.Background(), func(tx *db.Tx) error {
			_, err := takeOne(context.Background(), tx, bucket{key: "a", limit: limit{1, time.Minute}}, 0)
			return errors.Join(err, errors.New("no"))
		})
		if err == nil || h.count(`SELECT count(*) FROM throttles`) != 0 {
			t.Errorf("%v", err)
		}
	})
}

func TestManyThrottlesGoInBatches(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		if err := h.db.Tx(ctx, func(tx *db.Tx) error {
			for i := range 2*pruneBatch + 1 {
				if _, err := tx.Exec(ctx, `INSERT INTO throttles (bucket, arrival) VALUES (?, ?)`, fmt.Sprint(i), start.UnixMilli()); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, `INSERT INTO throttles (bucket, arrival) VALUES ('later', ?)`, start.UnixMilli()+1)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := h.Prune(ctx); err != nil {
			t.Fatal(err)
		}
		if n := h.count(`SELECT count(*) FROM throttles`); n != 1 {
			t.Errorf("%d are left", n)
		}
	})
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7/32",
		"::ffff:192.0.2.7":     "192.0.2.7/32",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"fe80::1%eth0":         "fe80::/64",
		"":                     "invalid Prefix",
	} {
		addr, _ := netip.ParseAddr(ip)
		if got := Network(addr).String(); got != want {
			t.Errorf("%q: %s, want %s", ip, got, want)
		}
	}
}
