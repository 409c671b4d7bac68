package httpapi

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"
	"github.com/pquerna/otp/totp"

	"zimage/internal/mail"
)

// app is an authenticator app. Each of its codes is used once, so the next one
// is of a later step; it has three before the clock must move on.
type app struct {
	t      *testing.T
	secret string
	ago    time.Duration
}

// code is the next one that works.
func (a *app) code() string {
	a.t.Helper()
	if a.ago > 30*time.Second {
		a.t.Fatal("no step is left")
	}
	code, err := totp.GenerateCode(a.secret, time.Now().Add(a.ago))
	if err != nil {
		a.t.Fatal(err)
	}
	a.ago += 30 * time.Second
	return code
}

// withApp puts an authenticator app in force.
func (b *browser) withApp() (*app, []string) {
	b.t.Helper()
	begun := b.want(200, "POST", "/v1/account/totp", "")
	a := &app{t: b.t, secret: begun.text(b.t, "secret"), ago: -30 * time.Second}
	if uri := begun.text(b.t, "uri"); !strings.HasPrefix(uri, "otpauth://totp/") || !strings.Contains(uri, a.secret) {
		b.t.Errorf("the address for the app is %s", uri)
	}
	return a, b.want(200, "POST", "/v1/account/totp/confirm", `{"code":"`+a.code()+`"}`).codes(b.t)
}

func (a answered) codes(t *testing.T) []string {
	t.Helper()
	var v recoveryView
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || len(v.RecoveryCodes) != 10 {
		t.Fatalf("%s (%v)", a.body, err)
	}
	return v.RecoveryCodes
}

func withCode(body, code string) string {
	return strings.TrimSuffix(body, "}") + `,"code":"` + code + `"}`
}

func TestPromise_A4_AnAuthenticatorAppIsAskedForUntilItIsRemoved(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b, other := r.joined(), r.signIn(eveAddress, evePassword)
		copied := *b
		authenticator, codes := b.withApp()
		copied.refused("a copy of the cookie from before the first factor")
		other.refused("a session from before the first factor")
		b.want(200, "GET", "/v1/session", "")
		if a := b.want(200, "GET", "/v1/account", ""); a.field(t, "factors.totp") != true || a.field(t, "factors.recovery_codes") != 10.0 {
			t.Errorf("%s", a.body)
		}

		c := &browser{rig: r}
		c.want(401, "POST", "/v1/session", eveSignIn)
		code := authenticator.code()
		if in := c.want(200, "POST", "/v1/session", withCode(eveSignIn, code)); in.text(t, "method") != "password+totp" {
			t.Errorf("%s", in.body)
		}
		(&browser{rig: r}).want(401, "POST", "/v1/session", withCode(eveSignIn, code))

		renewed := b.want(200, "POST", "/v1/account/recovery-codes", "").codes(t)
		if slices.ContainsFunc(renewed, func(code string) bool { return slices.Contains(codes, code) }) {
			t.Error("an old recovery code stays")
		}
		(&browser{rig: r}).want(401, "POST", "/v1/session", withCode(eveSignIn, codes[0]))
		(&browser{rig: r}).want(200, "POST", "/v1/session", withCode(eveSignIn, renewed[0]))
		if a := b.want(200, "GET", "/v1/account", ""); a.field(t, "factors.recovery_codes") != 9.0 {
			t.Errorf("%s", a.body)
		}

		b.want(204, "DELETE", "/v1/account/totp", "")
		b.want(404, "DELETE", "/v1/account/totp", "")
		b.want(409, "POST", "/v1/account/recovery-codes", "")
		if a := b.want(200, "GET", "/v1/account", ""); a.field(t, "factors.totp") != false || a.field(t, "factors.recovery_codes") != 0.0 {
			t.Errorf("%s", a.body)
		}
		if in := (&browser{rig: r}).want(200, "POST", "/v1/session", eveSignIn); in.text(t, "method") != "password" {
			t.Errorf("%s", in.body)
		}
		// Added, the codes renewed, one used, removed.
		r.told(mail.SecondFactorChanged, eveAddress, eveAddress, eveAddress, eveAddress)
	})
}

// A reset of the password does not lead past the second factor.
func TestAttack_AResetDoesNotBypassTheSecondFactor(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		authenticator, _ := r.joined().withApp()
		thief := &browser{rig: r}
		thief.want(202, "POST", "/v1/account/password/reset", `{"email":"`+eveAddress+`"}`)
		thief.want(204, "POST", "/v1/account/password/reset/confirm", `{"code":"`+r.mailed(mail.ResetPassword, "Code")+`","password":"`+nextPassword+`"}`)
		thief.refused("the cookie of the reset")
		next := credentials(eveAddress, nextPassword)
		if a := thief.want(401, "POST", "/v1/session", next); a.text(t, "code") != "second_factor_required" || len(a.Cookies()) != 0 {
			t.Errorf("%s", a.body)
		}
		(&browser{rig: r}).want(200, "POST", "/v1/session", withCode(next, authenticator.code()))
	})
}

// device is an authenticator with one passkey, at home at the rig's address.
type device struct {
	t    *testing.T
	rp   virtualwebauthn.RelyingParty
	auth virtualwebauthn.Authenticator
	key  virtualwebauthn.Credential
}

func newDevice(t *testing.T) *device {
	d := &device{
		t:    t,
		rp:   virtualwebauthn.RelyingParty{Name: "Z Image Generator", ID: "localhost", Origin: "http://localhost"},
		auth: virtualwebauthn.NewAuthenticator(),
	}
	// One key in 128 has a coordinate that begins with a zero, which the virtual
	// one leaves out and no real one does.
	for d.key.Key == nil || len(d.key.Key.AttestationData()) != 77 {
		d.key = virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2)
	}
	return d
}

// passkeyChallenge is what a page hands to its authenticator.
type passkeyChallenge struct {
	ID      string
	Options json.RawMessage
}

func (d *device) answer(id, response string) string {
	return `{"challenge_id":"` + id + `","response":` + response + `}`
}

// register answers a challenge for a new passkey.
func (d *device) register(challenge answered) string {
	d.t.Helper()
	c := d.read(challenge.body)
	options, err := virtualwebauthn.ParseAttestationOptions(string(c.Options))
	if err != nil {
		d.t.Fatal(err)
	}
	d.auth.Options.UserHandle = []byte(options.UserID)
	return d.answer(c.ID, virtualwebauthn.CreateAttestationResponse(d.rp, d.auth, d.key, *options))
}

// sign answers a challenge with the passkey.
func (d *device) sign(challenge string) string {
	d.t.Helper()
	c := d.read(challenge)
	options, err := virtualwebauthn.ParseAssertionOptions(string(c.Options))
	if err != nil {
		d.t.Fatal(err)
	}
	d.key.Counter++
	return d.answer(c.ID, virtualwebauthn.CreateAssertionResponse(d.rp, d.auth, d.key, *options))
}

func (d *device) read(challenge string) (c passkeyChallenge) {
	d.t.Helper()
	if err := json.Unmarshal([]byte(challenge), &c); err != nil || c.ID == "" {
		d.t.Fatalf("%s (%v)", challenge, err)
	}
	return c
}

func TestPromise_A4_PasskeysSignInAloneAndBesideThePassword(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b, other := r.joined(), r.signIn(eveAddress, evePassword)
		d := newDevice(t)
		answer := d.register(b.want(200, "POST", "/v1/account/passkeys/challenge", ""))
		copied := *b
		added := b.want(200, "POST", "/v1/account/passkeys", `{"name":"tele phone","passkey":`+answer+`}`)
		copied.refused("a copy of the cookie from before the first factor")
		added.codes(t)
		id := added.text(t, "passkey.id")
		other.refused("a session from before the first factor")
		b.want(400, "POST", "/v1/account/passkeys", `{"passkey":`+answer+`}`)
		list := b.want(200, "GET", "/v1/account/passkeys", "")
		if list.field(t, "data.id") != id || list.field(t, "data.name") != "tele phone" || list.field(t, "data.last_used_at") != nil {
			t.Errorf("%s", list.body)
		}

		// Alone.
		c := &browser{rig: r}
		alone := `{"passkey":` + d.sign(c.want(200, "POST", "/v1/session/passkey/challenge", "").body) + `}`
		if in := c.want(200, "POST", "/v1/session/passkey", alone); in.text(t, "method") != "passkey" {
			t.Errorf("%s", in.body)
		}
		if got := c.want(200, "GET", "/v1/account", "").text(t, "email"); got != eveAddress {
			t.Errorf("it opens the account of %s", got)
		}
		(&browser{rig: r}).want(401, "POST", "/v1/session/passkey", alone)
		if list := b.want(200, "GET", "/v1/account/passkeys", ""); list.field(t, "data.last_used_at") == nil {
			t.Errorf("%s", list.body)
		}

		// Beside the password.
		c = &browser{rig: r}
		asked := c.want(401, "POST", "/v1/session", eveSignIn)
		var need struct {
			SecondFactor struct {
				TOTP    bool
				Passkey json.RawMessage
			} `json:"second_factor"`
		}
		if err := json.Unmarshal([]byte(asked.body), &need); err != nil || need.SecondFactor.TOTP {
			t.Fatalf("%s (%v)", asked.body, err)
		}
		in := c.want(200, "POST", "/v1/session", strings.TrimSuffix(eveSignIn, "}")+`,"passkey":`+d.sign(string(need.SecondFactor.Passkey))+`}`)
		if in.text(t, "method") != "password+passkey" {
			t.Errorf("%s", in.body)
		}
		// As the proof that a session is fresh.
		before := c.token
		c.want(200, "POST", "/v1/session/fresh", `{"passkey":`+d.sign(c.want(200, "POST", "/v1/session/passkey/challenge", "").body)+`}`)
		(&browser{rig: r, token: before}).refused("the token from before the proof")

		b.want(204, "DELETE", "/v1/account/passkeys/"+id, "")
		b.want(404, "DELETE", "/v1/account/passkeys/"+id, "")
		if list := b.want(200, "GET", "/v1/account/passkeys", ""); list.field(t, "data.id") != nil {
			t.Errorf("%s", list.body)
		}
		c = &browser{rig: r}
		c.want(401, "POST", "/v1/session/passkey", `{"passkey":`+d.sign(c.want(200, "POST", "/v1/session/passkey/challenge", "").body)+`}`)
		c.want(200, "POST", "/v1/session", eveSignIn)
		r.told(mail.SecondFactorChanged, eveAddress, eveAddress)
	})
}
