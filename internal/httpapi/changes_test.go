package httpapi

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/mail"
)

// signIn is a browser of its own, signed in.
func (r *rig) signIn(email, password string) *browser {
	r.t.Helper()
	b := &browser{rig: r}
	b.want(200, "POST", "/v1/session", credentials(email, password))
	return b
}

func credentials(email, password string) string {
	return `{"email":"` + email + `","password":"` + password + `"}`
}

// refused asserts that a cookie opens nothing.
func (b *browser) refused(what string) {
	b.t.Helper()
	if a := (&browser{rig: b.rig, token: b.token}).do("GET", "/v1/session", ""); a.status != 401 {
		b.t.Errorf("%s is answered %d", what, a.status)
	}
}

// told asserts to whom mails of a template went.
func (r *rig) told(template mail.Template, want ...string) {
	r.t.Helper()
	if got := r.mailedTo(template); !slices.Equal(got, want) {
		r.t.Errorf("%s went to %v, want %v", template, got, want)
	}
}

// A change of address is in force once the new one confirms, and the old one is
// told both times.
func TestPromise_A2_AChangedAddressTakesEffectOnceItIsConfirmed(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		const next = "eve@new.example.org"
		b := r.joined()
		b.want(202, "POST", "/v1/account/email", `{"email":"`+next+`"}`)
		r.told(mail.ConfirmEmail, next)
		r.told(mail.EmailChangeAsked, eveAddress)
		if got := b.want(200, "GET", "/v1/account", "").text(t, "email"); got != eveAddress {
			t.Errorf("before the confirmation the address is %s", got)
		}
		(&browser{rig: r}).want(401, "POST", "/v1/session", credentials(next, evePassword))

		confirm := `{"code":"` + r.mailed(mail.ConfirmEmail, "Code") + `"}`
		b.want(422, "POST", "/v1/account/email/confirm", `{"code":"zc_made-up"}`)
		(&browser{rig: r}).want(401, "POST", "/v1/account/email/confirm", confirm)
		r.person("mallory")
		r.signIn("mallory@example.org", "some long words for anybody").want(422, "POST", "/v1/account/email/confirm", confirm)
		b.want(204, "POST", "/v1/account/email/confirm", confirm)
		r.told(mail.EmailChanged, eveAddress, next)
		if got := b.want(200, "GET", "/v1/account", "").text(t, "email"); got != next {
			t.Errorf("after the confirmation the address is %s", got)
		}
		if again := b.want(422, "POST", "/v1/account/email/confirm", confirm); again.text(t, "code") != "link_invalid" {
			t.Errorf("the code once more: %s", again.body)
		}
		(&browser{rig: r}).want(401, "POST", "/v1/session", eveSignIn)
		r.signIn(next, evePassword)
	})
}

func TestPromise_A2_AUsernameCanBeChanged(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		if got := b.want(200, "PATCH", "/v1/account", `{"username":"Eve_8"}`).text(t, "username"); got != "Eve_8" {
			t.Errorf("the username is %s", got)
		}
		if got := b.want(200, "GET", "/v1/account", "").text(t, "username"); got != "Eve_8" {
			t.Errorf("read back it is %s", got)
		}
		other := (&browser{rig: r}).do("POST", "/v1/account", strings.NewReplacer("Eve_7", "eVE_8", eveAddress, "mallory@example.org").Replace(eveSignUp))
		if other.status != 409 {
			t.Errorf("the same name in other letters: %d %s", other.status, other.body)
		}
		(&browser{rig: r}).want(202, "POST", "/v1/account", strings.Replace(eveSignUp, eveAddress, "mallory@example.org", 1))
	})
}

const nextPassword = "eleven quiet herons by the lake"

func TestPromise_A4_AChangedPasswordEndsEveryOtherSession(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b, other := r.joined(), r.signIn(eveAddress, evePassword)
		b.want(400, "PUT", "/v1/account/password", `{"password":"password1"}`)
		b.want(204, "PUT", "/v1/account/password", `{"password":"`+nextPassword+`"}`)
		other.refused("another session")
		b.want(200, "GET", "/v1/session", "")
		r.told(mail.PasswordChanged, eveAddress)
		(&browser{rig: r}).want(401, "POST", "/v1/session", eveSignIn)
		r.signIn(eveAddress, nextPassword)
	})
}

func TestPromise_A4_AResetEndsEverySessionAndOpensNone(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b, other := r.joined(), r.signIn(eveAddress, evePassword)
		there := &browser{rig: r}
		there.want(202, "POST", "/v1/account/password/reset", `{"email":"`+eveAddress+`"}`)
		r.told(mail.ResetPassword, eveAddress)
		b.want(200, "GET", "/v1/session", "") // asking for it ends nothing
		reset := `{"code":"` + r.mailed(mail.ResetPassword, "Code") + `","password":"` + nextPassword + `"}`
		there.want(400, "POST", "/v1/account/password/reset/confirm", strings.Replace(reset, nextPassword, "password1", 1))
		there.want(204, "POST", "/v1/account/password/reset/confirm", reset)
		b.refused("the session")
		other.refused("another session")
		if there.token == "" {
			t.Error("the browser is not known by a cookie")
		}
		there.refused("the cookie of the reset")
		there.want(422, "POST", "/v1/account/password/reset/confirm", reset)
		r.told(mail.PasswordChanged, eveAddress)
		(&browser{rig: r}).want(401, "POST", "/v1/session", eveSignIn)
		there.want(200, "POST", "/v1/session", credentials(eveAddress, nextPassword))
		there.want(200, "GET", "/v1/account", "")
	})
}

// What protects the account asks for a proof that is not old, and no such change
// happens without it.
func TestSensitiveChangesAskForAFreshSession(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		if _, err := r.db.Exec(t.Context(), `UPDATE sessions SET fresh_at = ?`, time.Now().Add(-11*time.Minute).UnixMilli()); err != nil {
			t.Fatal(err)
		}
		changes := [][3]string{
			{"POST", "/v1/account/email", `{"email":"eve@new.example.org"}`}, {"PUT", "/v1/account/password", `{"password":"` + nextPassword + `"}`},
			{"POST", "/v1/account/totp", ""}, {"POST", "/v1/account/passkeys/challenge", ""}, {"POST", "/v1/keys", `{"scopes":["read"]}`},
		}
		for _, c := range changes {
			if a := b.do(c[0], c[1], c[2]); a.status != 403 || a.text(t, "code") != "reauthentication_required" {
				t.Errorf("%s %s: %d %s", c[0], c[1], a.status, a.body)
			}
		}
		before := b.token
		b.want(401, "POST", "/v1/session/fresh", `{"password":"not the password"}`)
		b.want(200, "POST", "/v1/session/fresh", `{"password":"`+evePassword+`"}`)
		if b.token == before {
			t.Error("the proof leaves the token as it was")
		}
		(&browser{rig: r, token: before}).refused("the token from before the proof")
		for _, c := range changes {
			if a := b.do(c[0], c[1], c[2]); a.status > 299 {
				t.Errorf("after the proof, %s %s: %d %s", c[0], c[1], a.status, a.body)
			}
		}
	})
}

func TestKeysOfASession(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		if got := b.want(200, "GET", "/v1/keys", "").field(t, "data.id"); got != nil {
			t.Errorf("a new account has the key %v", got)
		}
		expires := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano)
		made := b.want(201, "POST", "/v1/keys", `{"name":"lap top","scopes":["read","generate","account"],"expires_at":"`+expires+`"}`)
		token, id := made.text(t, "token"), made.text(t, "key.id")
		if prefix := made.text(t, "key.prefix"); !strings.HasPrefix(token, prefix) || len(prefix) >= len(token)/2 {
			t.Errorf("prefix %s", prefix)
		}
		r.told(mail.KeyCreated, eveAddress)
		list := b.want(200, "GET", "/v1/keys", "")
		if list.field(t, "data.id") != id || list.field(t, "data.name") != "lap top" || list.field(t, "data.revoked_at") != nil ||
			list.field(t, "data.expires_at") != expires || strings.Contains(list.body, token) {
			t.Errorf("%s", list.body)
		}
		if a := r.do("POST", "/v1/generations", token, `{"prompt":"p"}`); a.status != 202 {
			t.Errorf("the new key is answered %d %s", a.status, a.body)
		}
		if a := r.do("DELETE", "/v1/keys/"+r.keyOf(r.ada), token, ""); a.status != 404 {
			t.Errorf("revoking somebody else's key: %d", a.status)
		}
		b.want(204, "DELETE", "/v1/keys/"+id, "")
		if a := r.do("GET", "/v1/generations", token, ""); a.status != 401 {
			t.Errorf("the revoked key is answered %d", a.status)
		}
		if list := b.want(200, "GET", "/v1/keys", ""); list.field(t, "data.revoked_at") == nil {
			t.Errorf("%s", list.body)
		}
		b.want(200, "GET", "/v1/session", "")
		if strings.Contains(r.log.String(), token) || strings.Contains(r.log.String(), "lap top") {
			t.Error("the log holds the key or its name")
		}
	})
}

// What is wrong with a key is named where it stands in the body, as everywhere.
func TestAWrongKeyIsToldByField(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		for body, location := range map[string]string{
			`{"scopes":["read"],"expires_at":"2020-01-01T00:00:00Z"}`: "body.expires_at",
			`{"scopes":["read"],"name":"two\nlines"}`:                 "body.name",
			`{"scopes":["everything"]}`:                               "body.scopes",
		} {
			if a := b.do("POST", "/v1/keys", body); a.status != 400 || a.field(t, "errors.location") != location {
				t.Errorf("%s: %d %s", location, a.status, a.body)
			}
		}
	})
}

// A session that ends between its check and the answer is no session, not one
// that cannot be found.
func TestASessionThatEndsMeanwhileIsUnauthorized(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		who, err := r.accounts.AuthenticateSession(t.Context(), b.token)
		if err != nil {
			t.Fatal(err)
		}
		b.want(204, "DELETE", "/v1/session", "")
		_, err = r.api.getSession(context.WithValue(t.Context(), callKey{}, &call{who: who}), nil)
		if p := view(t.Context(), err); err == nil || p.Status != 401 || p.Code != "unauthorized" {
			t.Errorf("%+v", p)
		}
	})
}
