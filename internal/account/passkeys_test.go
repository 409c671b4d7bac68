package account

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// device is an authenticator with one passkey.
type device struct {
	rp   virtualwebauthn.RelyingParty
	auth virtualwebauthn.Authenticator
	key  virtualwebauthn.Credential
}

func newDevice() *device {
	d := &device{
		rp:   virtualwebauthn.RelyingParty{Name: "Z Image Generator", ID: "images.example", Origin: "https://images.example"},
		auth: virtualwebauthn.NewAuthenticator(),
	}
	// One key in 128 has a coordinate that begins with a zero, which the virtual
	// one leaves out and no real one does.
	for d.key.Key == nil || len(d.key.Key.AttestationData()) != 77 {
		d.key = virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2)
	}
	return d
}

func optionsOf(c PasskeyChallenge) string {
	b, err := json.Marshal(c.Options)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// register answers a challenge for a new passkey and remembers whose it is.
func (d *device) register(c PasskeyChallenge) PasskeyAnswer {
	options, err := virtualwebauthn.ParseAttestationOptions(optionsOf(c))
	if err != nil {
		panic(err)
	}
	d.auth.Options.UserHandle = []byte(options.UserID)
	return PasskeyAnswer{ChallengeID: c.ID, Response: []byte(virtualwebauthn.CreateAttestationResponse(d.rp, d.auth, d.key, *options))}
}

// sign answers a challenge with the passkey; its counter goes up.
func (d *device) sign(c PasskeyChallenge) PasskeyAnswer {
	d.key.Counter++
	return d.signAgain(c)
}

// signAgain does not count.
func (d *device) signAgain(c PasskeyChallenge) PasskeyAnswer {
	options, err := virtualwebauthn.ParseAssertionOptions(optionsOf(c))
	if err != nil {
		panic(err)
	}
	return PasskeyAnswer{ChallengeID: c.ID, Response: []byte(virtualwebauthn.CreateAssertionResponse(d.rp, d.auth, d.key, *options))}
}

// addPasskey registers the device.
func (h *home) addPasskey(p *Principal, d *device) Passkey {
	h.t.Helper()
	made, got, err := h.AddPasskey(context.Background(), *p, Client{}, "phone of Ann", d.register(h.beginPasskey(*p)))
	if err != nil {
		h.t.Fatal(err)
	}
	h.goOn(p, got.SignedIn)
	return made
}

func (h *home) beginPasskey(p Principal) PasskeyChallenge {
	h.t.Helper()
	c, err := h.BeginPasskey(context.Background(), p)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *home) signInChallenge() PasskeyChallenge {
	h.t.Helper()
	c, err := h.PasskeyChallenge()
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// signInWith signs in with the device alone.
func (h *home) signInWith(d *device) error { return h.signInBy(d.sign(h.signInChallenge())) }

func (h *home) signInBy(a PasskeyAnswer) error {
	in, err := h.SignInWithPasskey(context.Background(), Client{}, a)
	if err == nil && (in.Token == "" || in.Session.Method != ByPasskey) {
		h.t.Errorf("signed in as %+v", in)
	}
	return err
}

// trySecond is a sign-in that comes as far as the passkey.
func (h *home) trySecond(owner string, a PasskeyAnswer) error {
	ctx := context.Background()
	return h.db.Tx(ctx, func(tx *db.Tx) error {
		found, err := h.checkPasskey(ctx, tx, owner, a)
		if err == nil && found != owner {
			h.t.Errorf("it is %s's", found)
		}
		return err
	})
}

// refuses asserts that an answer opens nothing, and says no more than that.
func (h *home) refuses(what string, err error) {
	h.t.Helper()
	if errors.Is(err, errWrongCode) && problem.CodeOf(err) == problem.Internal {
		return // of the hook; the caller says the words
	}
	var p *problem.Error
	if !errors.As(err, &p) || p.Code != problem.SignInFailed || errors.Unwrap(p) != nil || len(p.Fields) > 0 {
		h.t.Errorf("%s: %v, want it refused", what, err)
	}
}

func TestPromise_A4_APasskeyIsTheOnlyFactor(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		other, p := h.freshSession(ann), h.freshSession(ann)
		d := newDevice()
		begun := h.beginPasskey(p)
		h.wantCreation(optionsOf(begun), ann)
		if need := h.stillNeeds(ann); need != nil {
			t.Errorf("begun, and a sign-in needs %+v", need)
		}
		made, got, err := h.AddPasskey(ctx, p, Client{}, "phone of Ann", d.register(begun))
		if err != nil || len(got.Recovery) != recoveryCodes || made.Name != "phone of Ann" || !made.CreatedAt.Equal(start) || !made.LastUsedAt.IsZero() {
			t.Fatalf("%+v, %d recovery codes, %v", made, len(got.Recovery), err)
		}
		if h.sessionCount(ann) != 1 {
			t.Errorf("%d sessions; those without the factor should have ended", h.sessionCount(ann))
		}
		_, err = h.BeginPasskey(ctx, other)
		wantCode(t, "in the session that ended", err, problem.Unauthorized)

		h.clock.Advance(time.Hour)
		challenge := h.signInChallenge()
		h.wantRequest(optionsOf(challenge))
		in, err := h.SignInWithPasskey(ctx, Client{}, d.sign(challenge))
		if err != nil || in.Session.Method != ByPasskey || !in.Session.Method.Strong() {
			t.Fatalf("%+v, %v", in, err)
		}
		var owner string
		if err := h.db.Get(ctx, &owner, `SELECT owner FROM sessions WHERE id = ?`, in.Session.ID); err != nil || owner != ann {
			t.Errorf("the session is %s's, %v", owner, err)
		}
		list, err := h.Passkeys(ctx, ann)
		if err != nil || len(list) != 1 || list[0].ID != made.ID || list[0].Name != "phone of Ann" || !list[0].LastUsedAt.Equal(start.Add(time.Hour)) {
			t.Errorf("%+v, %v", list, err)
		}
		if list, err := h.Passkeys(ctx, bob); err != nil || len(list) != 0 {
			t.Errorf("Bob sees %+v, %v", list, err)
		}

		// A second one brings no codes and ends no session, and opens the same account.
		p = h.freshSession(ann)
		n := h.sessionCount(ann)
		tablet := newDevice()
		if _, got, err := h.AddPasskey(ctx, p, Client{}, "", tablet.register(h.beginPasskey(p))); err != nil || got.Recovery != nil || got.SignedIn.Token != "" {
			t.Errorf("%d recovery codes, a new token: %v, %v", len(got.Recovery), got.SignedIn.Token != "", err)
		}
		if h.sessionCount(ann) != n {
			t.Error("a second passkey ended sessions")
		}
		for range 2 {
			if err := errors.Join(h.signInWith(tablet), h.signInWith(d)); err != nil {
				t.Error(err)
			}
		}
		if told := h.toldFactors(ann); !slices.Equal(told, []string{"A passkey was added.", "A passkey was added."}) {
			t.Errorf("told %q", told)
		}
	})
}

// The way that a browser goes, by every door of the room.
func TestPromise_A4_SigningInWithAPasskey(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		d := newDevice()
		h.addPasskey(&p, d)
		there := browser("198.51.100.7", "")
		with := func(a *PasskeyAnswer) (SignedIn, error) {
			return h.SignIn(ctx, there, Credentials{Email: "ann@example.org", Password: password, Passkey: a})
		}
		ask := func() PasskeyChallenge {
			t.Helper()
			_, err := with(nil)
			wantCode(t, "the password alone", err, problem.SecondFactorNeeded)
			var need *SecondFactor
			if !errors.As(err, &need) || need.TOTP || !need.Recovery || need.Passkey == nil {
				t.Fatalf("it needs %+v", need)
			}
			return *need.Passkey
		}
		// Behind the password.
		answer := d.sign(ask())
		in, err := with(&answer)
		if err != nil || in.Session.Method != ByPasswordPasskey || !h.principal(in.Token).Method.Strong() {
			t.Fatalf("%+v, %v", in.Session, err)
		}
		_, err = with(&answer)
		h.refuses("the answer once more", err)
		challenge := ask()
		_, err = with(&PasskeyAnswer{ChallengeID: challenge.ID, Response: []byte("{}")})
		h.refuses("a wrong answer", err)
		right := d.sign(challenge)
		_, err = with(&right)
		h.refuses("the right one, after a wrong one used up the challenge", err)
		_, err = h.SignIn(ctx, there, Credentials{Email: "ann@example.org", Password: "wrong horse", Passkey: &right})
		h.refuses("without the password", err)

		// Alone, from a browser that nobody knows, by both doors.
		told := len(h.sent("ann@example.org", mail.NewDevice))
		in, err = h.SignInWithPasskey(ctx, browser("203.0.113.9", ""), d.sign(h.signInChallenge()))
		if err != nil || in.Session.Method != ByPasskey || h.principal(in.Token).Subject != p.Subject {
			t.Fatalf("%+v, %v", in.Session, err)
		}
		if n := len(h.sent("ann@example.org", mail.NewDevice)); n != told+1 {
			t.Errorf("%d mails of a new device, before it were %d", n, told)
		}
		alone := d.sign(h.signInChallenge())
		again, err := h.SignIn(ctx, browser("203.0.113.9", in.Token), Credentials{Passkey: &alone})
		if err != nil || again.Token == in.Token || again.Session.ID != in.Session.ID {
			t.Errorf("%+v, %v", again.Session, err)
		}
		_, err = h.AuthenticateSession(ctx, in.Token)
		wantCode(t, "the token of before", err, problem.Unauthorized)
		if n := len(h.sent("ann@example.org", mail.NewDevice)); n != told+1 {
			t.Error("a known browser is told of as a new one")
		}
	})
}

func TestPromise_U5_PasskeysAreTriedByANetworkSlowly(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		_, p := h.member("ann@example.org", "ann")
		d := newDevice()
		h.addPasskey(&p, d)
		from := func(network string, a PasskeyAnswer) error {
			_, err := h.SignInWithPasskey(ctx, browser(network, ""), a)
			return err
		}
		const eve, ann = "198.51.100.7", "203.0.113.9"
		for range perNetwork.burst {
			h.refuses("a guess", from(eve, PasskeyAnswer{ChallengeID: "chal_none", Response: []byte("{}")}))
		}
		answer := d.sign(h.signInChallenge())
		wantCode(t, "one more, although it is right", from(eve, answer), problem.RateLimited)
		if err := from(ann, answer); err != nil {
			t.Errorf("its owner, from elsewhere: %v", err)
		}
		for range perNetwork.burst { // a success gives its place back
			if err := from(ann, d.sign(h.signInChallenge())); err != nil {
				t.Fatal(err)
			}
		}
		h.clock.Advance(perNetwork.interval)
		if err := from(eve, d.sign(h.signInChallenge())); err != nil {
			t.Errorf("after a while: %v", err)
		}
	})
}

// wantCreation reads options as a browser does.
func (h *home) wantCreation(options, owner string) {
	h.t.Helper()
	var o struct {
		PublicKey struct {
			RP   struct{ ID, Name string }
			User struct {
				ID, Name, DisplayName string
			}
			Challenge              string
			Timeout                int
			Attestation            string
			AuthenticatorSelection struct {
				ResidentKey, UserVerification string
				RequireResidentKey            bool
			}
			PubKeyCredParams []struct{ Alg int }
		}
	}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		h.t.Fatal(err)
	}
	k := o.PublicKey
	handle, err := base64.RawURLEncoding.DecodeString(k.User.ID)
	if err != nil || string(handle) != owner || k.User.Name != "ann@example.org" {
		h.t.Errorf("user %+v, %v", k.User, err)
	}
	challenge, err := base64.RawURLEncoding.DecodeString(k.Challenge)
	if err != nil || len(challenge) < 32 {
		h.t.Errorf("a challenge of %d bytes, %v", len(challenge), err)
	}
	if k.RP.ID != "images.example" || k.RP.Name != "Z Image Generator" || k.Attestation != "none" || k.Timeout != int(challengeLife.Milliseconds()) ||
		k.AuthenticatorSelection.ResidentKey != "required" || !k.AuthenticatorSelection.RequireResidentKey ||
		k.AuthenticatorSelection.UserVerification != "required" || len(k.PubKeyCredParams) != 3 {
		h.t.Errorf("%+v", k)
	}
}

func (h *home) wantRequest(options string, allowed ...[]byte) {
	h.t.Helper()
	var o struct {
		PublicKey struct {
			RPID             string
			UserVerification string
			AllowCredentials []struct{ ID string }
		}
	}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		h.t.Fatal(err)
	}
	var got, want []string
	for _, c := range o.PublicKey.AllowCredentials {
		got = append(got, c.ID)
	}
	for _, id := range allowed {
		want = append(want, base64.RawURLEncoding.EncodeToString(id))
	}
	slices.Sort(got)
	slices.Sort(want)
	if o.PublicKey.RPID != "images.example" || o.PublicKey.UserVerification != "required" || !slices.Equal(got, want) {
		h.t.Errorf("%+v, allowed should be %q", o.PublicKey, want)
	}
}

func TestPromise_A4_APasskeyIsTheSecondFactor(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		phone, tablet, bobs := newDevice(), newDevice(), newDevice()
		p := h.freshSession(ann)
		h.addPasskey(&p, phone)
		h.addPasskey(&p, tablet)
		h.addPasskey(new(h.freshSession(bob)), bobs)

		need := h.stillNeeds(ann)
		if need == nil || need.TOTP || !need.Recovery || need.Passkey == nil {
			t.Fatalf("a sign-in needs %+v", need)
		}
		h.wantRequest(optionsOf(*need.Passkey), phone.key.ID, tablet.key.ID)
		answer := phone.sign(*need.Passkey)
		h.refuses("Bob's sign-in with Ann's", h.trySecond(bob, answer))
		h.refuses("Ann's with Bob's passkey", h.trySecond(ann, bobs.sign(*h.stillNeeds(ann).Passkey)))
		bobs.auth.Options.UserHandle = []byte(ann)
		h.refuses("which says that it is Ann's", h.trySecond(ann, bobs.sign(*h.stillNeeds(ann).Passkey)))
		if err := h.trySecond(ann, answer); err != nil {
			t.Errorf("Ann's own: %v", err)
		}
		h.refuses("twice", h.trySecond(ann, answer))
		// A key that does not say whose it is will do: the password did.
		tablet.auth.Options.UserHandle = nil
		if err := h.trySecond(ann, tablet.sign(*h.stillNeeds(ann).Passkey)); err != nil {
			t.Errorf("her other one: %v", err)
		}
		tablet.auth.Options.UserHandle = []byte(bob)
		h.refuses("hers, which says that it is Bob's", h.trySecond(ann, tablet.sign(*h.stillNeeds(ann).Passkey)))
	})
}

func TestPromise_A4_AChallengeIsAnsweredOnceForItsPurposeInItsTime(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		p, bobs := h.freshSession(ann), h.freshSession(bob)
		d := newDevice()
		add := func(p *Principal, a PasskeyAnswer) error {
			_, got, err := h.AddPasskey(ctx, *p, Client{}, "key", a)
			h.goOn(p, got.SignedIn)
			return err
		}
		wantResponse := func(what string, err error) { t.Helper(); wantField(t, what, err, "body.passkey") }

		// To register.
		begun := h.beginPasskey(p)
		wantResponse("another's challenge", add(&bobs, d.register(begun)))
		if err := add(&p, d.register(begun)); err != nil {
			t.Fatal(err)
		}
		wantResponse("a used challenge", add(&p, newDevice().register(begun)))
		late := h.beginPasskey(p)
		for what, c := range map[string]PasskeyChallenge{"of a sign-in": h.signInChallenge(), "of a second factor": *h.stillNeeds(ann).Passkey, "nobody's": {ID: "chal_none", Options: late.Options}} {
			c.Options = swapped(late, c)
			wantResponse(what, add(&p, newDevice().register(c)))
		}
		h.clock.Advance(challengeLife)
		p.FreshAt = h.clock.Now()
		wantResponse("too late", add(&p, newDevice().register(late)))
		if list, err := h.Passkeys(ctx, ann); err != nil || len(list) != 1 {
			t.Errorf("%d passkeys, %v", len(list), err)
		}

		// To sign in.
		answer := d.sign(h.signInChallenge())
		if err := h.signInBy(answer); err != nil {
			t.Fatal(err)
		}
		h.refuses("twice", h.signInBy(answer))
		h.refuses("as a second factor", h.trySecond(ann, d.sign(h.signInChallenge())))
		h.refuses("a second factor alone", h.signInBy(d.sign(*h.stillNeeds(ann).Passkey)))
		h.refuses("to register", h.signInBy(d.sign(h.beginPasskey(p))))
		h.refuses("to register, as a second factor", h.trySecond(ann, d.sign(h.beginPasskey(p))))
		h.refuses("nobody's", h.signInBy(d.sign(PasskeyChallenge{ID: "chal_none", Options: h.signInChallenge().Options})))
		first, second := h.signInChallenge(), h.signInChallenge()
		h.refuses("the answer to another", h.signInBy(PasskeyAnswer{ChallengeID: first.ID, Response: d.sign(second).Response}))
		if err := h.signInBy(d.sign(second)); err != nil {
			t.Errorf("the other is still open: %v", err)
		}
		early, late := h.signInChallenge(), h.signInChallenge()
		h.clock.Advance(challengeLife - time.Millisecond)
		if err := h.signInBy(d.sign(early)); err != nil {
			t.Errorf("in time: %v", err)
		}
		h.clock.Advance(time.Millisecond)
		h.refuses("too late", h.signInBy(d.sign(late)))

		// Two at once: one of them.
		there := h.process()
		answer = d.sign(h.signInChallenge())
		const n = 8
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() {
				_, errs[i] = []*Service{h.Service, there}[i%2].SignInWithPasskey(ctx, Client{}, answer)
			})
		}
		wg.Wait()
		got := 0
		for _, err := range errs {
			if err == nil {
				got++
			} else {
				h.refuses("the others", err)
			}
		}
		if got != 1 {
			t.Errorf("one answer opened %d sessions", got)
		}
	})
}

// swapped are the options to create a passkey, with another challenge.
func swapped(creation, with PasskeyChallenge) any {
	var c, w map[string]map[string]any
	for _, one := range []struct {
		from PasskeyChallenge
		to   *map[string]map[string]any
	}{{creation, &c}, {with, &w}} {
		if err := json.Unmarshal([]byte(optionsOf(one.from)), one.to); err != nil {
			panic(err)
		}
	}
	c["publicKey"]["challenge"] = w["publicKey"]["challenge"]
	return c
}

func TestPromise_A4_PasskeysOfOtherPlacesAndPeopleAreRefused(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		p := h.freshSession(ann)
		d, bobs := newDevice(), newDevice()
		h.addPasskey(&p, d)
		h.addPasskey(new(h.freshSession(bob)), bobs)
		for what, change := range map[string]func(d *device){
			"another origin":        func(d *device) { d.rp.Origin = "https://images.example.evil" },
			"a subdomain":           func(d *device) { d.rp.Origin = "https://www.images.example" },
			"another port":          func(d *device) { d.rp.Origin = "https://images.example:8443" },
			"plain http":            func(d *device) { d.rp.Origin = "http://images.example" },
			"an app":                func(d *device) { d.rp.Origin = "android:apk-key-hash:abc" },
			"another relying party": func(d *device) { d.rp.ID = "example" },
			"nobody present":        func(d *device) { d.auth.Options.UserNotPresent = true },
			"nobody verified":       func(d *device) { d.auth.Options.UserNotVerified = true },
		} {
			fresh := newDevice()
			change(fresh)
			_, _, err := h.AddPasskey(ctx, p, Client{}, "key", fresh.register(h.beginPasskey(p)))
			wantField(t, "register: "+what, err, "body.passkey")
			bad := *d
			bad.key.Counter += 10 // never the reason
			change(&bad)
			h.refuses(what, h.signInBy(bad.sign(h.signInChallenge())))
			h.refuses("second factor: "+what, h.trySecond(ann, bad.sign(*h.stillNeeds(ann).Passkey)))
		}
		for what, change := range map[string]func(d *device){
			"another's handle":        func(d *device) { d.auth.Options.UserHandle = []byte(bob) },
			"nobody's handle":         func(d *device) { d.auth.Options.UserHandle = []byte("sub_none") },
			"no handle":               func(d *device) { d.auth.Options.UserHandle = nil },
			"another's credential id": func(d *device) { d.key.ID = bobs.key.ID },
			"an unknown credential":   func(d *device) { d.key.ID = []byte("0123456789abcdef") },
			"another's id and handle": func(d *device) { d.key.ID = bobs.key.ID; d.auth.Options.UserHandle = []byte(bob) },
			"another key":             func(d *device) { d.key.Key = bobs.key.Key },
		} {
			bad := *d
			change(&bad)
			h.refuses(what, h.signInBy(bad.sign(h.signInChallenge())))
		}
		good := d.sign(h.signInChallenge())
		for what, response := range map[string][]byte{
			"nothing": nil, "no JSON": []byte("{"), "null": []byte("null"), "a list": []byte("[]"), "much": bytes.Repeat([]byte(" "), passkeyAnswerMost+1),
			"two": append(slices.Clone(good.Response), good.Response...), "padded past the limit": append(slices.Clone(good.Response), bytes.Repeat([]byte(" "), passkeyAnswerMost)...),
			"no signature": replaced(good.Response, "signature", ""), "another signature": replaced(good.Response, "signature", "MEUCIQ"),
			"no data": replaced(good.Response, "authenticatorData", ""),
		} {
			h.refuses(what, h.signInBy(PasskeyAnswer{ChallengeID: h.signInChallenge().ID, Response: response}))
			h.refuses(what, h.trySecond(ann, PasskeyAnswer{ChallengeID: h.stillNeeds(ann).Passkey.ID, Response: response}))
			_, _, err := h.AddPasskey(ctx, p, Client{}, "key", PasskeyAnswer{ChallengeID: h.beginPasskey(p).ID, Response: response})
			wantField(t, "register: "+what, err, "body.passkey")
		}
		if err := h.signInBy(good); err != nil {
			t.Errorf("the good one: %v", err)
		}

		// A key registered elsewhere under the id of Ann's.
		thief := newDevice()
		thief.key.ID = d.key.ID
		_, _, err := h.AddPasskey(ctx, h.freshSession(bob), Client{}, "key", thief.register(h.beginPasskey(h.freshSession(bob))))
		wantCode(t, "an id that is registered", err, problem.Conflict)
		if err := h.signInWith(d); err != nil {
			t.Errorf("Ann's after that: %v", err)
		}
	})
}

// replaced is an answer with another text in one part of its response.
func replaced(response []byte, part, text string) []byte {
	var all map[string]any
	if err := json.Unmarshal(response, &all); err != nil {
		panic(err)
	}
	all["response"].(map[string]any)[part] = text
	b, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return b
}

func TestPromise_A4_ACopiedPasskeyIsRefused(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ann := h.user("ann@example.org")
		d := newDevice()
		made := h.addPasskey(new(h.freshSession(ann)), d)

		// Those that don't count say zero for ever.
		for range 2 {
			if err := h.signInBy(d.signAgain(h.signInChallenge())); err != nil {
				t.Fatalf("a key that does not count: %v", err)
			}
		}
		if err := errors.Join(h.signInWith(d), h.signInWith(d)); err != nil { // 1, 2
			t.Fatal(err)
		}
		clone := *d
		clone.key.Counter = 0
		h.refuses("a copy that counts from the beginning", h.signInWith(&clone)) // 1
		h.refuses("with the last number", h.signInWith(&clone))                  // 2
		clone.key.Counter = 0
		h.refuses("back to zero", h.signInBy(clone.signAgain(h.signInChallenge())))
		h.refuses("as a second factor", h.trySecond(ann, clone.sign(*h.stillNeeds(ann).Passkey)))
		if lines := strings.Count(h.log.String(), "passkey="+made.ID); lines != 4 || strings.Contains(h.log.String(), ann) {
			t.Errorf("the operator reads %q", h.log.String())
		}
		if err := h.signInWith(d); err != nil { // 3
			t.Errorf("the original: %v", err)
		}
	})
}

func TestPasskeysAreRemoved(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		p, bobs := h.freshSession(ann), h.freshSession(bob)
		phone, tablet := newDevice(), newDevice()
		first := h.addPasskey(&p, phone)
		h.clock.Advance(time.Second)
		second := h.addPasskey(&p, tablet)
		wantCode(t, "another's", h.RemovePasskey(ctx, bobs, first.ID), problem.NotFound)
		wantCode(t, "none", h.RemovePasskey(ctx, p, "pk_none"), problem.NotFound)
		if list, err := h.Passkeys(ctx, ann); err != nil || len(list) != 2 || list[0].ID != second.ID || list[1].ID != first.ID {
			t.Errorf("%+v, %v", list, err)
		}
		asked, alone := *h.stillNeeds(ann).Passkey, h.signInChallenge() // before it goes
		if err := h.RemovePasskey(ctx, p, first.ID); err != nil {
			t.Fatal(err)
		}
		h.refuses("removed", h.signInBy(phone.sign(alone)))
		h.refuses("removed, as a second factor", h.trySecond(ann, phone.sign(asked)))
		if err := h.trySecond(ann, tablet.sign(asked)); err != nil {
			t.Errorf("the other one, asked for together with it: %v", err)
		}
		if n := h.rowsOf("recovery_codes", ann); n != recoveryCodes {
			t.Errorf("%d recovery codes", n)
		}
		if err := h.RemovePasskey(ctx, p, second.ID); err != nil {
			t.Fatal(err)
		}
		if n := h.rowsOf("recovery_codes", ann); n != 0 || h.stillNeeds(ann) != nil {
			t.Errorf("without a factor: %d recovery codes, a sign-in needs %+v", n, h.stillNeeds(ann))
		}
		if told := h.toldFactors(ann); len(told) != 4 || told[3] != "A passkey was removed." {
			t.Errorf("told %q", told)
		}
		// What was removed can be registered again, by anybody.
		if _, got, err := h.AddPasskey(ctx, bobs, Client{}, "key", phone.register(h.beginPasskey(bobs))); err != nil || len(got.Recovery) != recoveryCodes {
			t.Errorf("%d recovery codes, %v", len(got.Recovery), err)
		}
	})
}

func TestPasskeysAreBoundedAndNotRegisteredTwice(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.freshSession(h.user("ann@example.org"))
		devices := []*device{newDevice(), newDevice()}
		for _, d := range devices {
			h.addPasskey(&p, d)
		}
		begun := h.beginPasskey(p)
		options, err := virtualwebauthn.ParseAttestationOptions(optionsOf(begun))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range devices {
			if !d.key.IsExcludedForAttestation(*options) {
				t.Error("a browser is not told which passkeys are there")
			}
		}
		_, _, err = h.AddPasskey(ctx, p, Client{}, "again", devices[0].register(begun))
		wantCode(t, "from a browser that does not care", err, problem.Conflict)
		for what, name := range map[string]string{"long": strings.Repeat("ü", 101), "two lines": "a\nb", "not text": "\xff"} {
			_, _, err := h.AddPasskey(ctx, p, Client{}, name, newDevice().register(h.beginPasskey(p)))
			wantField(t, what, err, "body.name")
		}
		if _, _, err := h.AddPasskey(ctx, p, Client{}, strings.Repeat("ü", 100), newDevice().register(h.beginPasskey(p))); err != nil {
			t.Error(err)
		}

		open := []PasskeyChallenge{h.beginPasskey(p), h.beginPasskey(p), h.beginPasskey(p)}
		for range passkeysMost - 4 {
			h.addPasskey(&p, newDevice())
		}
		// One place is left, and three ask for it.
		var wg sync.WaitGroup
		errs := make([]error, len(open))
		for i, c := range open {
			wg.Go(func() { _, _, errs[i] = h.AddPasskey(ctx, p, Client{}, "last", newDevice().register(c)) })
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else {
				wantCode(t, "the others", err, problem.Conflict)
			}
		}
		if n := h.rowsOf("passkeys", p.Subject); made != 1 || n != passkeysMost {
			t.Errorf("%d made, %d there", made, n)
		}
		_, err = h.BeginPasskey(ctx, p)
		wantCode(t, "one more", err, problem.Conflict)
	})
}

func TestAClosedAccountsPasskeyIsAnyWrongOne(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for _, s := range []subject.State{subject.Closing, subject.Erased} {
			ann := h.user(string(s) + "@example.org")
			d := newDevice()
			h.addPasskey(new(h.freshSession(ann)), d)
			need := h.stillNeeds(ann)
			state(t, h, ann, s)
			h.refuses(string(s), h.signInWith(d))
			h.refuses(string(s)+" as a second factor", h.trySecond(ann, d.sign(*need.Passkey)))
			if n := h.sessionCount(ann); n != 1 {
				t.Errorf("%d sessions", n)
			}
		}
		// Restricted and suspended people still get in, to export and erase.
		for _, column := range []string{"restricted_at", "suspended_at"} {
			ann := h.user(column + "@example.org")
			d := newDevice()
			h.addPasskey(new(h.freshSession(ann)), d)
			if _, err := h.db.Exec(ctx, `UPDATE subjects SET `+column+` = 1 WHERE id = ?`, ann); err != nil {
				t.Fatal(err)
			}
			if err := h.signInWith(d); err != nil {
				t.Errorf("%s: %v", column, err)
			}
		}
	})
}

func TestExpiredChallengesGo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		for range challengesSwept + 5 {
			h.beginPasskey(p)
		}
		h.clock.Advance(challengeLife - time.Millisecond)
		h.beginPasskey(p)
		if n := h.rowsOf("passkey_challenges", ann); n != challengesSwept+6 {
			t.Errorf("%d challenges: some went before their time", n)
		}
		h.clock.Advance(time.Millisecond)
		h.beginPasskey(p)
		h.beginPasskey(p)
		if n := h.rowsOf("passkey_challenges", ann); n != 3 {
			t.Errorf("%d challenges are left", n)
		}
	})
}

func TestPasskeysNeedAnAddressThatBrowsersTrust(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"https://images.example":      "images.example https://images.example",
		"https://images.example:8443": "images.example https://images.example:8443",
		"https://images.example/":     "images.example https://images.example",
		"http://localhost:8080":       "localhost http://localhost:8080",
		"http://localhost":            "localhost http://localhost",
		"http://127.0.0.1:8080":       "localhost http://localhost:8080",
		"http://[::1]:8080":           "localhost http://localhost:8080",
		"https://127.0.0.1":           "localhost https://localhost",
		"http://images.example":       "",
		"http://192.168.1.2:8080":     "",
		"https://192.168.1.2":         "",
		"https://[2001:db8::1]":       "",
		"ftp://images.example":        "",
		"":                            "",
		"://":                         "",
	} {
		s := &Service{o: Options{PublicURL: address}}
		rp, err := s.relyingParty()
		if want == "" {
			wantCode(t, address, err, problem.Conflict)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if got := fmt.Sprint(rp.Config.RPID, " ", strings.Join(rp.Config.RPOrigins, " ")); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

// After a move to an address that passkeys don't work with, the other factors
// still do.
func TestASignInGoesOnWithoutPasskeys(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		d := newDevice()
		made := h.addPasskey(&p, d)
		challenge := h.signInChallenge()
		h.o.PublicURL = "http://192.168.1.2:8080"
		if need := h.stillNeeds(ann); need == nil || need.Passkey != nil || !need.Recovery {
			t.Errorf("a sign-in needs %+v", need)
		}
		_, err := h.PasskeyChallenge()
		wantCode(t, "a challenge", err, problem.Conflict)
		_, err = h.BeginPasskey(ctx, p)
		wantCode(t, "a new one", err, problem.Conflict)
		h.refuses("an answer", h.signInBy(d.sign(challenge)))
		if err := h.RemovePasskey(ctx, p, made.ID); err != nil {
			t.Error(err)
		}
	})
}

func TestTheDatabaseHoldsNoFactorThatCanBeRead(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ann := h.user("ann@example.org")
		p := h.freshSession(ann)
		secret, recovery := h.enrolled(&p)
		d := newDevice()
		made := h.addPasskey(&p, d)
		if err := h.signInWith(d); err != nil {
			t.Fatal(err)
		}
		h.opens("a code", ann, recovery[1], ByPasswordRecovery)

		raw := append(everything(t, h.db, h.url), everything(t, h.keyStore(), h.keys)...)
		public := d.key.Key.AttestationData()
		for name, what := range map[string]string{
			"secret": secret, "recovery code": recovery[0], "recovery code without dashes": strings.ReplaceAll(recovery[0], "-", ""),
			"used recovery code": recovery[1], "used one without dashes": strings.ReplaceAll(recovery[1], "-", ""),
			"name of the passkey": "phone of Ann", "credential id": string(d.key.ID),
			"credential id in base64": base64.StdEncoding.EncodeToString(d.key.ID)[:40], "credential id in base64url": base64.RawURLEncoding.EncodeToString(d.key.ID),
			"public key": string(public[10:42]), "public key in base64": base64.StdEncoding.EncodeToString(public)[:40],
			"model": string(d.auth.Aaguid[:]), "address": "ann@example.org", "what she was told": "recovery code was used",
		} {
			if found(raw, what) || bytes.Contains(raw, []byte(what)) {
				t.Errorf("the %s stands in the database", name)
			}
		}
		// The same search finds what does stand there.
		for name, what := range map[string]string{"passkey's id": made.ID, "look-up": h.passkeyLookup(d.key.ID)} {
			if !found(raw, what) {
				t.Errorf("the search does not find the %s", name)
			}
		}
	})
}
