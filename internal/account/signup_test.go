package account

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

func ann() SignUp {
	return SignUp{Email: "Ann@example.org", Username: "Ann.Lee", Password: password, OldEnough: true}
}

func TestPromise_A1_AnAccountIsAnAddressAUsernameAndAPassword(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		for _, r := range []SignUp{ann(), {Email: "bob@example.org", Username: "bob", Password: password, OldEnough: true, Profile: Profile{Name: "Bob the Builder"}}} {
			if err := h.SignUp(ctx, c, r); err != nil {
				t.Fatal(err)
			}
			if n := h.count(`SELECT count(*) FROM users WHERE email_lookup = ?`, h.emailLookup(strings.ToLower(r.Email))); n != 0 {
				t.Fatal("an account before its address is confirmed")
			}
			if code := h.signIn(h.Service, c, r.Email, password); code != problem.SignInFailed {
				t.Errorf("signed in before: %s", code)
			}
			in, err := h.ConfirmSignUp(ctx, c, h.code(r.Email, mail.ConfirmSignUp), password)
			if err != nil {
				t.Fatal(err)
			}
			p := h.principal(in.Token)
			u, err := h.User(ctx, p.Subject)
			if err != nil || u.Email != r.Email || u.Username != r.Username || u.Profile != r.Profile || u.Preferences != (Preferences{}) || u.Role != NoRole {
				t.Errorf("%+v, %v", u, err)
			}
			if !p.Fresh(h.clock.Now()) || p.Method != ByPassword || in.Session.ID != p.SessionID || !in.Session.Current {
				t.Errorf("%+v, %+v", p, in.Session)
			}
			if code := h.signIn(h.Service, c, r.Email, password); code != "" {
				t.Errorf("sign in: %s", code)
			}
			if mails := h.sent(r.Email, mail.NewDevice); len(mails) != 1 {
				t.Errorf("%d mails about a new device: one for the second sign-in, none for the sign-up", len(mails))
			}
		}
		if n := h.count(`SELECT count(*) FROM signups`); n != 0 {
			t.Errorf("%d sign-ups are left", n)
		}
	})
}

func TestASignUpIsConfirmedOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		if err := h.SignUp(ctx, c, ann()); err != nil {
			t.Fatal(err)
		}
		code := h.code("Ann@example.org", mail.ConfirmSignUp)
		_, err := h.ConfirmSignUp(ctx, c, code, "wrong horse")
		wantCode(t, "another password", err, problem.SignInFailed)
		other := h.process()
		const n = 8
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() {
				s := h.Service
				if i%2 == 1 {
					s = other
				}
				_, errs[i] = s.ConfirmSignUp(ctx, c, code, password)
			})
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
				continue
			}
			wantCode(t, "the others", err, problem.LinkInvalid)
		}
		if made != 1 || h.count(`SELECT count(*) FROM users`) != 1 || h.count(`SELECT count(*) FROM subjects`) != 1 || h.count(`SELECT count(*) FROM sessions`) != 1 {
			t.Errorf("%d of %d confirmed", made, n)
		}
		_, err = h.ConfirmSignUp(ctx, c, code, password)
		wantCode(t, "once more", err, problem.LinkInvalid)
	})
}

func TestACodeOfASignUpExpires(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		for _, email := range []string{"ann@example.org", "late@example.org"} {
			if err := h.SignUp(ctx, c, SignUp{Email: email, Username: email[:3], Password: password, OldEnough: true}); err != nil {
				t.Fatal(err)
			}
		}
		codes := []string{h.code("ann@example.org", mail.ConfirmSignUp), h.code("late@example.org", mail.ConfirmSignUp)}
		var late string
		if err := h.db.Get(ctx, &late, `SELECT id FROM signups WHERE email_lookup = ?`, h.emailLookup("late@example.org")); err != nil {
			t.Fatal(err)
		}
		if owned, err := h.Owned(ctx, []string{late, "sub_nobody"}); err != nil || len(owned) != 1 || !owned[late] {
			t.Errorf("the sweep of keys would take a pending one: %v, %v", owned, err)
		}
		h.clock.Advance(start.Add(confirmFor).Sub(h.clock.Now()) - time.Millisecond)
		if _, err := h.ConfirmSignUp(ctx, c, codes[0], password); err != nil {
			t.Errorf("in the last moment: %v", err)
		}
		if err := h.Prune(ctx); err != nil || h.count(`SELECT count(*) FROM signups`) != 1 {
			t.Errorf("removed too early, %v", err)
		}
		h.clock.Advance(time.Millisecond)
		_, err := h.ConfirmSignUp(ctx, c, codes[1], password)
		wantCode(t, "a day later", err, problem.LinkInvalid)
		if err := h.Prune(ctx); err != nil || h.count(`SELECT count(*) FROM signups`) != 0 {
			t.Errorf("it is left, %v", err)
		}
		if _, err := h.vault.Seal(ctx, late, []byte("x"), nil); err != vault.ErrNoKey {
			t.Errorf("its key is left: %v", err)
		}
		// Nor is it remembered that there was one: sign-ups cost nobody anything.
		var rows int
		if err := h.keyStore().Get(ctx, &rows, `SELECT count(*) FROM keysets`); err != nil || rows != 1 {
			t.Errorf("%d rows in the key store for one account (%v)", rows, err)
		}
	})
}

// The attacker signs up with the victim's address before the victim does, and
// waits for the victim to click.
func TestPromise_A4_AnAccountCannotBePreparedForItsVictim(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		attacker, victim := browser("10.6.6.6", ""), browser("192.0.2.1", "")
		if err := h.SignUp(ctx, attacker, SignUp{Email: "ann@example.org", Username: "eve", Password: "the attacker's own", OldEnough: true}); err != nil {
			t.Fatal(err)
		}
		theirs := h.code("ann@example.org", mail.ConfirmSignUp)
		if err := h.SignUp(ctx, victim, SignUp{Email: "ann@example.org", Username: "ann", Password: password, OldEnough: true}); err != nil {
			t.Fatal(err)
		}
		own := h.code("ann@example.org", mail.ConfirmSignUp)
		if own == theirs {
			t.Fatal("one code twice")
		}
		// The mail of the attacker's sign-up is of no use to the victim either.
		_, err := h.ConfirmSignUp(ctx, victim, theirs, password)
		wantCode(t, "the attacker's code with the victim's password", err, problem.SignInFailed)
		var doomed string
		if err := h.db.Get(ctx, &doomed, `SELECT id FROM signups WHERE username_lookup = ?`, h.usernameLookup("eve")); err != nil {
			t.Fatal(err)
		}
		if _, err := h.ConfirmSignUp(ctx, victim, own, password); err != nil {
			t.Fatal(err)
		}
		_, err = h.ConfirmSignUp(ctx, attacker, theirs, "the attacker's own")
		wantCode(t, "the attacker's code, should it leak", err, problem.LinkInvalid)
		if code := h.signIn(h.Service, attacker, "ann@example.org", "the attacker's own"); code != problem.SignInFailed {
			t.Errorf("the attacker's password: %s", code)
		}
		if h.count(`SELECT count(*) FROM signups`) != 0 || h.count(`SELECT count(*) FROM users`) != 1 {
			t.Error("something is left")
		}
		if _, err := h.vault.Seal(ctx, doomed, []byte("x"), nil); err != vault.ErrNoKey {
			t.Errorf("the key of the attacker's sign-up is left: %v", err)
		}
	})
}

func TestAttack_UserEnumerationBySignUp(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.member("ann@example.org", "ann")
		before := h.tables()
		hashes := 0
		h.hasher.counted = func() { hashes++ }
		c := browser("192.0.2.66", "")
		ask := func(email string) {
			t.Helper()
			hashes = 0
			err := h.SignUp(ctx, c, SignUp{Email: email, Username: "eve", Password: "another password", OldEnough: true})
			if err != nil || hashes != 1 {
				t.Errorf("%s: %v after %d hashes", email, err, hashes)
			}
		}
		ask("ANN@example.org")
		after := h.tables()
		ask("eve@example.org")
		mails := h.sent("ann@example.org", mail.SignUpAttempt)
		if len(mails) != 1 || mails[0].Data["Code"] != "" {
			t.Errorf("mails %v", mails)
		}
		for table, n := range after {
			switch table {
			case "mails", "jobs", "job_turns", "throttles":
			default:
				if n != before[table] {
					t.Errorf("%d rows became %d in %s", before[table], n, table)
				}
			}
		}
	})
}

// tables is how many rows each table has.
func (h *home) tables() map[string]int {
	h.t.Helper()
	query := `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`
	if h.db.Dialect() == db.Postgres {
		query = `SELECT tablename FROM pg_tables WHERE schemaname = 'public'`
	}
	var names []string
	if err := h.db.Select(context.Background(), &names, query); err != nil {
		h.t.Fatal(err)
	}
	rows := map[string]int{}
	for _, name := range names {
		rows[name] = h.count(`SELECT count(*) FROM ` + name)
	}
	store := h.keyStore()
	var n int
	if err := store.Get(context.Background(), &n, `SELECT count(*) FROM keysets`); err != nil {
		h.t.Fatal(err)
	}
	rows["keysets"] = n
	return rows
}

func TestPromise_A6_AChildsSignUpLeavesNothing(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		before := h.tables()
		if len(before) < 20 {
			t.Fatalf("%d tables are too few to be all", len(before))
		}
		hashes := 0
		h.hasher.counted = func() { hashes++ }
		r := ann()
		r.OldEnough = false
		wantCode(t, "a child", h.SignUp(ctx, browser("192.0.2.1", ""), r), problem.TooYoung)
		// Nor is anything of it looked at.
		wantCode(t, "a child who types badly", h.SignUp(ctx, browser("192.0.2.1", ""), SignUp{Email: "x"}), problem.TooYoung)
		if after := h.tables(); !maps.Equal(before, after) || hashes != 0 {
			t.Errorf("before %v, after %v", before, after)
		}
		if h.log.Len() != 0 {
			t.Errorf("the log says %s", h.log.String())
		}
		// A sign-up does leave rows, so that the count is one.
		r.OldEnough = true
		if err := h.SignUp(ctx, browser("192.0.2.1", ""), r); err != nil || maps.Equal(before, h.tables()) {
			t.Errorf("the count sees nothing, %v", err)
		}
	})
}

func TestAttack_UnicodeLookAlikeUsernames(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"ann", "Ann.Lee", "7up", "a_b-c.d", strings.Repeat("x", 30)} {
		if err := checkUsername(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for what, bad := range map[string]string{
		"empty": "", "short": "ab", "long": strings.Repeat("x", 31), "dot first": ".ann", "dash first": "-ann", "space": "ann lee",
		"Cyrillic а": "аnn", "Greek ο": "bοb", "full width": "ａｎｎ", "accent": "änn", "zero width": "an\u200bn", "combining": "ann\u0301",
		"dotless i": "l\u0131sa", "long s": "a\u017fa", "Kelvin": "\u212aim", "mathematical": "𝐚𝐧𝐧", "right to left": "\u202enna", "NUL": "an\x00", "line": "ann\n", "not text": "ann\xff", "at": "ann@lee",
	} {
		if err := checkUsername(bad); problem.CodeOf(err) != problem.InvalidRequest {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAUsernameIsOnePersons(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		// Two may wait for the same name; it goes to who confirms first.
		for _, email := range []string{"ann@example.org", "second@example.org"} {
			if err := h.SignUp(ctx, c, SignUp{Email: email, Username: "Ann", Password: password, OldEnough: true}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.ConfirmSignUp(ctx, c, h.code("ann@example.org", mail.ConfirmSignUp), password); err != nil {
			t.Fatal(err)
		}
		_, err := h.ConfirmSignUp(ctx, c, h.code("second@example.org", mail.ConfirmSignUp), password)
		wantCode(t, "the second", err, problem.Conflict)
		for _, spelling := range []string{"Ann", "ann", "ANN"} {
			err := h.SignUp(ctx, c, SignUp{Email: "third@example.org", Username: spelling, Password: password, OldEnough: true})
			wantCode(t, spelling, err, problem.Conflict)
		}
		// The answer for a name that is taken does not depend on the address.
		err = h.SignUp(ctx, c, SignUp{Email: "ann@example.org", Username: "ann", Password: password, OldEnough: true})
		wantCode(t, "with the owner's address", err, problem.Conflict)
		if h.count(`SELECT count(*) FROM users`) != 1 {
			t.Error("two accounts")
		}
	})
}

func TestConsentsAreKeptAsTheyWereGiven(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		r := ann()
		r.Consents = []subject.Purpose{subject.Training, subject.Marketing, subject.Training}
		if err := h.SignUp(ctx, c, r); err != nil {
			t.Fatal(err)
		}
		code := h.code(r.Email, mail.ConfirmSignUp)
		h.clock.Advance(time.Hour)
		h.o.PolicyVersion = "2027-01-01" // a new policy meanwhile, to which nobody agreed
		in, err := h.ConfirmSignUp(ctx, c, code, password)
		if err != nil {
			t.Fatal(err)
		}
		owner := h.principal(in.Token).Subject
		all, err := subject.Consents(ctx, h.db, owner)
		if err != nil {
			t.Fatal(err)
		}
		for _, consent := range all {
			want := subject.Consent{Purpose: consent.Purpose}
			if consent.Purpose == subject.Training || consent.Purpose == subject.Marketing {
				want = subject.Consent{Purpose: consent.Purpose, Granted: true, PolicyVersion: "2026-01-01", At: start}
			}
			if consent != want {
				t.Errorf("%+v, want %+v", consent, want)
			}
		}
		if h.count(`SELECT count(*) FROM consents`) != 2 {
			t.Error("a consent is kept twice, or one that nobody gave")
		}
	})
}

func TestSignUpRefuses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		before := h.tables()
		for location, change := range map[string]func(*SignUp){
			"body.email":    func(r *SignUp) { r.Email = strings.Repeat("a", 300) + "@example.org" },
			"body.username": func(r *SignUp) { r.Username = "аnn" },
			"body.password": func(r *SignUp) { r.Password = "Ann.Lee's password" },
			"body.consents": func(r *SignUp) { r.Consents = []subject.Purpose{subject.Generate} },
			"body.name":     func(r *SignUp) { r.Profile.Name = strings.Repeat("ü", 101) },
		} {
			r := ann()
			change(&r)
			wantField(t, location, h.SignUp(context.Background(), browser("192.0.2.1", ""), r), location)
		}
		if after := h.tables(); !maps.Equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
	})
}

func TestASignUpThatBreaksOffLeavesNoKey(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		if _, err := h.db.Exec(ctx, `DROP TABLE mails`); err != nil { // the last thing that it writes
			t.Fatal(err)
		}
		if err := h.SignUp(ctx, browser("192.0.2.1", ""), ann()); err == nil {
			t.Fatal("signed up without a mail")
		}
		var n int
		if err := h.keyStore().Get(ctx, &n, `SELECT count(*) FROM keysets`); err != nil || n != 0 {
			t.Errorf("%d keys are left, %v", n, err)
		}
		if h.count(`SELECT count(*) FROM signups`) != 0 {
			t.Error("a sign-up is left")
		}
	})
}

func TestTheOperatorsAccountEndsWhatPendsOnItsAddress(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		if err := h.SignUp(ctx, c, ann()); err != nil {
			t.Fatal(err)
		}
		code := h.code("Ann@example.org", mail.ConfirmSignUp)
		h.user("ann@example.org")
		_, err := h.ConfirmSignUp(ctx, c, code, password)
		wantCode(t, "afterwards", err, problem.LinkInvalid)
	})
}

func TestAnAddressTakenWhileASignUpIsConfirmed(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		c := browser("192.0.2.1", "")
		// Both read their row before either has written.
		var codes []string
		for _, username := range []string{"one", "two"} {
			if err := h.SignUp(ctx, c, SignUp{Email: "ann@example.org", Username: username, Password: password, OldEnough: true}); err != nil {
				t.Fatal(err)
			}
			codes = append(codes, h.code("ann@example.org", mail.ConfirmSignUp))
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, s := range []*Service{h.Service, h.process()} {
			wg.Go(func() { _, errs[i] = s.ConfirmSignUp(ctx, c, codes[i], password) })
		}
		wg.Wait()
		i := slices.IndexFunc(errs, func(err error) bool { return err == nil })
		if i < 0 {
			t.Fatal(errs)
		}
		wantCode(t, "the other", errs[1-i], problem.LinkInvalid)
		if h.count(`SELECT count(*) FROM users`) != 1 || h.count(`SELECT count(*) FROM signups`) != 0 {
			t.Error(fmt.Sprint(h.tables()))
		}
	})
}
