package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"zimage/internal/account"
	"zimage/internal/generate"
	"zimage/internal/mail"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// browser keeps a cookie, as one tab of a browser does, and sends no key.
type browser struct {
	*rig
	token string
}

func (b *browser) do(method, path, body string, headers ...string) answered {
	b.t.Helper()
	if b.token != "" {
		headers = append(headers, "Cookie", loopbackCookie+"="+b.token)
	}
	a := b.rig.do(method, path, "", body, headers...)
	for _, c := range a.Cookies() {
		if c.Name != loopbackCookie || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" {
			b.t.Errorf("the cookie is %v", c)
		}
		b.token = c.Value
	}
	return a
}

func (b *browser) want(status int, method, path, body string, headers ...string) answered {
	b.t.Helper()
	a := b.do(method, path, body, headers...)
	if a.status != status {
		b.t.Fatalf("%s %s: %d %s, want %d", method, path, a.status, a.body, status)
	}
	return a
}

// mailedTo are the addresses that mails of a template go to, in no order.
func (r *rig) mailedTo(template mail.Template) []string {
	r.t.Helper()
	var rows []struct {
		ID      string `db:"id"`
		Subject string `db:"subject"`
		Address []byte `db:"address"`
	}
	if err := r.db.Select(r.t.Context(), &rows, `SELECT id, subject, address FROM mails WHERE template = ?`, template); err != nil {
		r.t.Fatal(err)
	}
	var list []string
	for _, row := range rows {
		address, err := r.vault.Unseal(r.t.Context(), row.Subject, row.Address, vault.Column("mails", "address", row.ID))
		if err != nil {
			r.t.Fatal(err)
		}
		list = append(list, string(address))
	}
	slices.Sort(list)
	return list
}

// mailed is a value of the newest mail of a template.
func (r *rig) mailed(template mail.Template, name string) string {
	r.t.Helper()
	var row struct {
		ID      string `db:"id"`
		Subject string `db:"subject"`
		Data    []byte `db:"data"`
	}
	ctx := context.Background()
	if err := r.db.Get(ctx, &row, `SELECT id, subject, data FROM mails WHERE template = ? ORDER BY id DESC LIMIT 1`, template); err != nil {
		r.t.Fatalf("no mail %s: %v", template, err)
	}
	plain, err := r.vault.Unseal(ctx, row.Subject, row.Data, vault.Column("mails", "data", row.ID))
	if err != nil {
		r.t.Fatal(err)
	}
	var data map[string]string
	if err := json.Unmarshal(plain, &data); err != nil || data[name] == "" {
		r.t.Fatalf("the mail %s has no %s: %v", template, name, err)
	}
	return data[name]
}

const (
	eveAddress  = "eve@example.org"
	evePassword = "seven purple tractors at noon"
	eveSignUp   = `{"email":"` + eveAddress + `","username":"Eve_7","password":"` + evePassword + `","old_enough":true,"consents":["marketing"]}`
	eveSignIn   = `{"email":"` + eveAddress + `","password":"` + evePassword + `"}`
)

// joined is a browser that signed up, confirmed and is signed in.
func (r *rig) joined() *browser {
	r.t.Helper()
	return r.joins(eveSignUp)
}

func (r *rig) joins(signUp string) *browser {
	r.t.Helper()
	b := &browser{rig: r}
	b.want(202, "POST", "/v1/account", signUp)
	b.want(200, "POST", "/v1/account/confirm", `{"code":"`+r.mailed(mail.ConfirmSignUp, "Code")+`","password":"`+evePassword+`"}`)
	return b
}

func TestPromise_A1_AnAccountIsAnAddressAUsernameAndAPassword(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		me := b.want(200, "GET", "/v1/account", "")
		if me.text(t, "email") != eveAddress || me.text(t, "username") != "Eve_7" || me.field(t, "name") != nil {
			t.Errorf("the account is %s", me.body)
		}
		// What is optional can be given, and emptied.
		b.want(200, "PATCH", "/v1/account", `{"name":"Eve","preferences":{"width":64,"height":64,"format":"jpeg"}}`)
		if got := b.want(200, "GET", "/v1/account", ""); got.text(t, "name") != "Eve" || got.field(t, "preferences.format") != "jpeg" {
			t.Errorf("after the change: %s", got.body)
		}
		got := b.want(200, "PATCH", "/v1/account", `{"name":"","preferences":{}}`)
		if got.field(t, "name") != nil || got.field(t, "preferences.format") != nil {
			t.Errorf("after emptying: %s", got.body)
		}
		for what, body := range map[string]string{
			"no address":            `{"username":"x_y","password":"` + evePassword + `","old_enough":true}`,
			"no username":           `{"email":"x@example.org","password":"` + evePassword + `","old_enough":true}`,
			"no password":           `{"email":"x@example.org","username":"x_y","old_enough":true}`,
			"no word about the age": `{"email":"x@example.org","username":"x_y","password":"` + evePassword + `"}`,
			"a field too many":      `{"email":"x@example.org","username":"x_y","password":"` + evePassword + `","old_enough":true,"phone":"1"}`,
		} {
			if a := (&browser{rig: r}).do("POST", "/v1/account", body); a.status != 400 {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
	})
}

func TestPromise_A3_PreferencesAreTheNextDefaults(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		b.want(200, "PATCH", "/v1/account", `{"preferences":{"width":128,"height":64,"n":2,"format":"jpeg"}}`)
		g := b.want(202, "POST", "/v1/generations", `{"prompt":"p"}`)
		if g.field(t, "width") != 128.0 || g.field(t, "height") != 64.0 || g.field(t, "n") != 2.0 || g.field(t, "format") != "jpeg" {
			t.Errorf("with preferences: %s", g.body)
		}
		g = b.want(202, "POST", "/v1/generations", `{"prompt":"p","width":64,"height":64,"n":1,"format":"png"}`)
		if g.field(t, "width") != 64.0 || g.field(t, "n") != 1.0 || g.field(t, "format") != "png" {
			t.Errorf("what is asked for does not win: %s", g.body)
		}
		// Of two models the preferred one, unless another is asked for.
		if g.field(t, "model") == secondModel {
			t.Error("the second model is the default: this test shows nothing")
		}
		b.want(200, "PATCH", "/v1/account", `{"preferences":{"model":"`+secondModel+`"}}`)
		if g := b.want(202, "POST", "/v1/generations", `{"prompt":"p"}`); g.text(t, "model") != secondModel || g.field(t, "format") != "png" {
			t.Errorf("with a preferred model: %s", g.body)
		}
		if g := b.want(202, "POST", "/v1/generations", `{"prompt":"p","model":"illustrator"}`); g.text(t, "model") != "illustrator" {
			t.Errorf("the model that is asked for does not win: %s", g.body)
		}
		// Somebody else's preferences are nothing to others.
		if a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"p"}`); a.text(t, "model") != "illustrator" {
			t.Errorf("%s", a.body)
		}
		// A preference that the model cannot do is no error of this request.
		b.want(200, "PATCH", "/v1/account", `{"preferences":{"model":"gone","width":16384,"height":16384,"n":100}}`)
		b.want(202, "POST", "/v1/generations", `{"prompt":"p"}`)
	})
}

func TestPromise_A6_AChildLeavesNothing(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		child := strings.Replace(eveSignUp, "true", "false", 1)
		var ids []string
		for what, c := range map[string][2]string{
			"a child":           {"", child},
			"a bad address":     {"", strings.Replace(child, eveAddress, "eve", 1)},
			"another's type":    {"", strings.Replace(child, `"Eve_7"`, "7", 1)},
			"a field too many":  {"", strings.TrimSuffix(child, "}") + `,"born":"2020"}`},
			"a field twice":     {"", strings.TrimSuffix(child, "}") + `,"name":"E","name":"Eve"}`},
			"broken text":       {"", strings.Replace(child, "Eve_7", `Eve\ud800`, 1)},
			"nothing else":      {"", `{"old_enough":false}`},
			"an unknown query":  {"?born=2020", child},
			"a query twice":     {"?born=2020&born=2021", child},
			"a password to see": {"", strings.Replace(child, evePassword, "short", 1)},
		} {
			a := (&browser{rig: r}).do("POST", "/v1/account"+c[0], c[1])
			if a.status != 422 || a.text(t, "code") != "too_young" || len(a.Cookies()) != 0 {
				t.Errorf("%s: %d %s %v", what, a.status, a.body, a.Cookies())
			}
			ids = append(ids, a.Header.Get("X-Request-ID"))
		}
		for _, table := range []string{"signups", "throttles", "mails", "sessions"} {
			var n int
			if err := r.db.Get(t.Context(), &n, `SELECT count(*) FROM `+table); err != nil || n != 0 {
				t.Errorf("%d rows in %s (%v)", n, table, err)
			}
		}
		// The same without a child is logged: so the log would tell.
		r.lineOf((&browser{rig: r}).want(400, "POST", "/v1/account", `{}`))
		// What cannot be read is nobody's word about their age. Its line is that of any
		// request that was refused: no word of the body, nothing of who sent it.
		for body, status := range map[string]int{child[:len(child)-1]: 400, child + strings.Repeat(" ", publicBody): 413, "?": 415} {
			kind := "application/json"
			if status == 415 {
				body, kind = child, "text/plain"
			}
			var line map[string]any
			if err := json.Unmarshal([]byte(r.lineOf((&browser{rig: r}).want(status, "POST", "/v1/account", body, "Content-Type", kind, "User-Agent", "Eve's"))), &line); err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(slices.Sorted(maps.Keys(line))); got != "[code level method ms msg request_id route status time]" {
				t.Errorf("%d: the line has %s", status, got)
			}
		}
		for _, id := range ids {
			if log := r.log.String(); id == "" || strings.Contains(log, id) || strings.Contains(log, "too_young") || strings.Contains(log, eveAddress) {
				t.Errorf("the log tells of it: %s", log)
			}
		}
	})
}

// What was changed at one process counts for the next generation at every other,
// also with a key that it let in a moment ago.
func TestPromise_A3_PreferencesChangedElsewhereCountAtOnce(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		key := b.want(201, "POST", "/v1/keys", `{"scopes":["generate","read"]}`).text(t, "token")
		who, err := r.accounts.AuthenticateSession(t.Context(), b.token)
		if err != nil {
			t.Fatal(err)
		}
		elsewhere := r.otherProcess()
		for _, want := range []int{128, 192, 256} {
			if _, err := elsewhere.UpdateUser(t.Context(), who, account.UserChange{Preferences: &account.Preferences{Width: want, Height: 64}}); err != nil {
				t.Fatal(err)
			}
			if g := r.do("POST", "/v1/generations", key, `{"prompt":"p"}`); g.status != 202 || g.field(t, "width") != float64(want) {
				t.Errorf("want %d wide: %d %s", want, g.status, g.body)
			}
		}
	})
}

// lineOf waits for the log line of a request: it is written at its end, and the
// answer may be here before.
func (r *rig) lineOf(a answered) (line string) {
	r.t.Helper()
	mark := `"request_id":"` + a.Header.Get("X-Request-ID") + `"`
	testenv.Eventually(r.t, 20*time.Second, func() bool {
		for l := range strings.Lines(r.log.String()) {
			if strings.Contains(l, `"msg":"request"`) && strings.Contains(l, mark) && strings.HasSuffix(l, "\n") {
				line = l
				return true
			}
		}
		return false
	})
	return line
}

// Signing in leaves a line that tells how it went, and nothing of who it was.
func TestPromise_A6_SigningInIsLoggedWithoutThePerson(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		const agent = "Peculiar/9.9 (browser of Eve)"
		b := r.joined()
		for what, body := range map[string]string{
			"right": eveSignIn, "a wrong password": credentials(eveAddress, "wrong "+evePassword),
			"nobody's address": credentials("nobody@example.org", evePassword), "not an address": credentials("eve at home", evePassword),
		} {
			a := (&browser{rig: r}).do("POST", "/v1/session", body, "User-Agent", agent)
			line := r.lineOf(a)
			if !strings.Contains(line, `"route":"/v1/session"`) || !strings.Contains(line, `"status":`+strconv.Itoa(a.status)) {
				t.Errorf("%s: %s", what, line)
			}
		}
		// Of who is signed in, the session's id alone.
		id := b.want(200, "GET", "/v1/session", "").text(t, "id")
		if line := r.lineOf(b.want(200, "GET", "/v1/account", "")); !strings.Contains(line, `"session_id":"`+id+`"`) {
			t.Errorf("%s", line)
		}
		for _, word := range []string{"eve@", "Eve_7", "nobody@", "eve at home", evePassword, b.token, "Peculiar", "127.0.0.1", "Near "} {
			if strings.Contains(r.log.String(), word) {
				t.Errorf("the log holds %q", word)
			}
		}
	})
}

func TestPromise_A5_SessionsAreSeenAndEnded(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		one := r.joined()
		two := &browser{rig: r}
		two.want(200, "POST", "/v1/session", eveSignIn, "User-Agent", "Second/2.0")
		list := one.want(200, "GET", "/v1/sessions", "")
		var sessions struct{ Data []sessionView }
		if err := json.Unmarshal([]byte(list.body), &sessions); err != nil || len(sessions.Data) != 2 {
			t.Fatalf("%s (%v)", list.body, err)
		}
		var other string
		for _, s := range sessions.Data {
			if s.Current == (s.Agent == "Second/2.0") {
				t.Errorf("which one asks is wrong: %+v", s)
			}
			if s.Place != "Near 127.0.0.1" || s.LastUsedAt.IsZero() {
				t.Errorf("place and last use are %q and %v", s.Place, s.LastUsedAt)
			}
			if !s.Current {
				other = s.ID
			}
		}
		one.want(204, "DELETE", "/v1/sessions/"+other, "")
		if a := two.do("GET", "/v1/account", ""); a.status != 401 {
			t.Errorf("an ended session is answered %d", a.status)
		}
		one.want(404, "DELETE", "/v1/sessions/"+other, "")
		two.token = ""
		two.want(200, "POST", "/v1/session", eveSignIn)
		if n := one.want(200, "DELETE", "/v1/sessions", "").field(t, "ended"); n != 1.0 {
			t.Errorf("%v ended", n)
		}
		if a := two.do("GET", "/v1/account", ""); a.status != 401 {
			t.Errorf("after all were ended: %d", a.status)
		}
		one.want(200, "GET", "/v1/session", "")
	})
}

// Device and place are shown to their owner, and can be read by nobody else.
func TestPromise_A5_DeviceAndPlaceAreSealed(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		r.joined()
		var rows []struct {
			ID    string `db:"id"`
			Owner string `db:"owner"`
			Agent []byte `db:"agent"`
			Place []byte `db:"place"`
		}
		if err := r.db.Select(t.Context(), &rows, `SELECT id, owner, agent, place FROM sessions`); err != nil || len(rows) != 1 {
			t.Fatalf("%d sessions (%v)", len(rows), err)
		}
		s := rows[0]
		for what, sealed := range map[string][]byte{"agent": s.Agent, "place": s.Place} {
			plain, err := r.vault.Unseal(t.Context(), s.Owner, sealed, vault.Column("sessions", what, s.ID))
			if err != nil || len(plain) == 0 || bytes.Contains(sealed, plain) || bytes.Contains(sealed, []byte("127.0.0.1")) {
				t.Errorf("the %s is %q, of %q (%v)", what, sealed, plain, err)
			}
			if _, err := r.vault.Unseal(t.Context(), r.ownerOf("ada@example.org"), sealed, vault.Column("sessions", what, s.ID)); err == nil {
				t.Errorf("somebody else's key opens the %s", what)
			}
		}
		// The notice of a new device names it too, to its owner.
		(&browser{rig: r}).want(200, "POST", "/v1/session", eveSignIn, "User-Agent", "Second/2.0")
		if place, agent := r.mailed(mail.NewDevice, "Place"), r.mailed(mail.NewDevice, "Agent"); place != "Near 127.0.0.1" || agent != "Second/2.0" {
			t.Errorf("the notice names %q and %q", place, agent)
		}
	})
}

// A cookie that was stolen before the sign-out opens nothing after it.
func TestAttack_StolenCookieAfterSignOut(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		stolen := &browser{rig: r, token: b.token}
		stolen.want(200, "GET", "/v1/account", "")
		b.want(204, "DELETE", "/v1/session", "")
		left := &browser{rig: r, token: b.token}
		for what, who := range map[string]*browser{"the stolen cookie": stolen, "the cookie that is left": left} {
			if a := who.do("GET", "/v1/account", ""); a.status != 401 {
				t.Errorf("%s is answered %d", what, a.status)
			}
		}
	})
}

// Whoever plants a cookie in a browser does not know the session that its owner
// opens with it.
func TestAttack_SessionFixation(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		attacker := r.joined()
		planted := attacker.token
		victim := &browser{rig: r, token: planted}
		a := victim.do("POST", "/v1/session", `{"email":"ada@example.org","password":"some long words for anybody"}`)
		if a.status != 200 || victim.token == planted {
			t.Fatalf("%d, the token is the same: %v", a.status, victim.token == planted)
		}
		if a := attacker.do("GET", "/v1/account", ""); a.status == 200 && a.text(t, "email") != eveAddress {
			t.Error("the planted cookie opens the victim's account")
		}
		before := victim.token
		victim.want(200, "POST", "/v1/session/fresh", `{"password":"some long words for anybody"}`)
		if a := (&browser{rig: r, token: before}).do("GET", "/v1/account", ""); victim.token == before || a.status != 401 {
			t.Errorf("the token from before the proof is answered %d", a.status)
		}
	})
}

func TestAttack_CrossSitePost(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		for what, headers := range map[string][]string{
			"another origin":       {"Origin", "https://evil.example"},
			"no origin at all":     {"Origin", "null"},
			"another site":         {"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"},
			"another host of ours": {"Sec-Fetch-Site", "same-site"},
		} {
			for _, c := range [][3]string{
				{"POST", "/v1/generations", `{"prompt":"p"}`}, {"DELETE", "/v1/account", `{"password":"` + evePassword + `"}`},
				{"POST", "/v1/session", eveSignIn}, {"POST", "/v1/account", eveSignUp}, {"PUT", "/v1/account/restriction", ""},
			} {
				if a := b.do(c[0], c[1], c[2], headers...); a.status != 403 || len(a.Cookies()) != 0 {
					t.Errorf("%s, %s %s: %d", what, c[0], c[1], a.status)
				}
			}
		}
		b.want(200, "GET", "/v1/account", "", "Sec-Fetch-Site", "cross-site") // a link leads here; it changes nothing
		b.want(202, "POST", "/v1/generations", `{"prompt":"p"}`, "Sec-Fetch-Site", "same-origin")
		if a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"p"}`, "Origin", "https://app.example"); a.status != 202 {
			t.Errorf("a key from another origin: %d", a.status)
		}
	})
}

func TestAttack_OversizedFields(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		long := strings.Repeat("x", 5000)
		b := &browser{rig: r}
		for what, c := range map[string][3]string{
			"address":  {"POST", "/v1/session", `{"email":"` + long + `@example.org","password":"p"}`},
			"password": {"POST", "/v1/session", `{"email":"a@example.org","password":"` + long + `"}`},
			"code":     {"POST", "/v1/session", `{"email":"a@example.org","password":"p","code":"` + long + `"}`},
			"username": {"POST", "/v1/account", strings.Replace(eveSignUp, "Eve_7", long, 1)},
			"token":    {"POST", "/v1/account/confirm", `{"code":"` + long + `","password":"p"}`},
			"consents": {"POST", "/v1/account", strings.Replace(eveSignUp, `["marketing"]`, `["`+long+`"]`, 1)},
		} {
			if a := b.do(c[0], c[1], c[2]); a.status != 400 || strings.Contains(a.body, "xxxx") {
				t.Errorf("%s: %d %.200s", what, a.status, a.body)
			}
		}
		huge := &browser{rig: r, token: strings.Repeat("z", 4000)}
		if a := huge.do("GET", "/v1/account", ""); a.status != 401 {
			t.Errorf("a huge cookie: %d", a.status)
		}
	})
}

// A key reaches nothing that protects the account.
func TestKeysDoNotReachWhatProtectsTheAccount(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		owner, err := r.accounts.FindUser(t.Context(), "ada@example.org")
		if err != nil {
			t.Fatal(err)
		}
		all, _, err := r.accounts.CreateKey(t.Context(), owner, "all", account.Scopes(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range [][3]string{
			{"DELETE", "/v1/account", `{"password":"some long words for anybody"}`}, {"POST", "/v1/account/email", `{"email":"x@example.org"}`},
			{"PUT", "/v1/account/password", `{"password":"another long one here"}`}, {"POST", "/v1/account/totp", ""},
			{"POST", "/v1/keys", `{"scopes":["read"]}`}, {"GET", "/v1/sessions", ""}, {"POST", "/v1/session/fresh", `{"password":"some long words for anybody"}`},
			{"POST", "/v1/admin/accounts/find", `{"email":"ben@example.org","reason":"because I would like to"}`},
			{"POST", "/v1/admin/accounts/" + owner + "/suspend", `{"reason":"because I would like to"}`},
		} {
			if a := r.do(c[0], c[1], all, c[2]); a.status != 403 {
				t.Errorf("%s %s: %d %s", c[0], c[1], a.status, a.body)
			}
		}
		if a := r.do("GET", "/v1/account", r.ada, ""); a.status != 403 {
			t.Errorf("a key without the scope account: %d", a.status)
		}
		if a := r.do("GET", "/v1/account", all, ""); a.status != 200 {
			t.Errorf("a key with it: %d %s", a.status, a.body)
		}
	})
}

func TestPromise_R7_ClosingEndsAllAccessAtOnce(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		other := &browser{rig: r}
		other.want(200, "POST", "/v1/session", eveSignIn)
		key := b.want(201, "POST", "/v1/keys", `{"name":"k","scopes":["generate","read"]}`).text(t, "token")
		running, queued := r.submit(key), r.submit(key)
		wrong := b.do("DELETE", "/v1/account", `{"password":"not the password"}`)
		if wrong.status != 401 {
			t.Fatalf("closed without a proof: %d %s", wrong.status, wrong.body)
		}
		b.want(202, "DELETE", "/v1/account", `{"password":"`+evePassword+`"}`)
		for what, a := range map[string]answered{
			"the session": (&browser{rig: r, token: b.token}).do("GET", "/v1/account", ""), "another session": other.do("GET", "/v1/account", ""),
			"a key": r.do("GET", "/v1/generations", key, ""), "signing in again": (&browser{rig: r}).do("POST", "/v1/session", eveSignIn),
		} {
			if a.status != 401 {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		// Also for a worker that began meanwhile and asked.
		var ends []struct {
			Status string `db:"status"`
			Code   string `db:"code"`
		}
		testenv.Eventually(t, 30*time.Second, func() bool {
			ends = nil
			err := r.db.Select(t.Context(), &ends, `SELECT g.status, g.error_code AS code FROM generations g
				WHERE g.status <> '' AND g.id IN (?, ?)`, running, queued)
			return err == nil && len(ends) == 2
		})
		for _, end := range ends {
			if end.Status != "canceled" || end.Code != "account_closed" {
				t.Errorf("%+v", end)
			}
		}
		// The address is free for nobody: what is being erased is not revived.
		(&browser{rig: r}).want(202, "POST", "/v1/account", strings.Replace(eveSignUp, "Eve_7", "eve8", 1))
		var n int
		if err := r.db.Get(t.Context(), &n, `SELECT count(*) FROM subjects WHERE state = 'closing'`); err != nil || n != 1 {
			t.Errorf("%d closing (%v)", n, err)
		}
	})
}

func TestPromise_G6_ARestrictedAccountIsStoredAndNotProcessed(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		b.want(204, "PUT", "/v1/account/restriction", "")
		refused := b.want(403, "POST", "/v1/generations", `{"prompt":"p"}`)
		if !strings.Contains(refused.body, "restricted at its owner's request") {
			t.Errorf("no reason: %s", refused.body)
		}
		b.want(200, "GET", "/v1/generations", "")
		b.want(200, "GET", "/v1/account", "")
		(&browser{rig: r}).want(200, "POST", "/v1/session", eveSignIn)
		b.want(204, "DELETE", "/v1/account/restriction", "")
		var told int
		if err := r.db.Get(t.Context(), &told, `SELECT count(*) FROM mails WHERE template = ?`, mail.RestrictionLifted); err != nil || told != 1 {
			t.Errorf("told %d times (%v)", told, err)
		}
		b.want(202, "POST", "/v1/generations", `{"prompt":"p"}`)
	})
}

// Whoever forbids a person's work, what runs and what waits stops and says why.
func TestPromise_G6_WhatForbidsWorkStopsItAndSaysWhy(t *testing.T) {
	t.Parallel()
	for code, forbid := range map[string]func(b *browser, id string){
		"restricted": func(b *browser, _ string) { b.want(204, "PUT", "/v1/account/restriction", "") },
		"suspended": func(b *browser, id string) {
			b.staff("op@example.org", account.RoleOperator).want(204, "POST", "/v1/admin/accounts/"+id+"/suspend", `{"reason":"`+reason+`"}`)
		},
		"account_closed": func(b *browser, _ string) {
			b.want(202, "DELETE", "/v1/account", `{"password":"`+evePassword+`"}`)
		},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			bothDatabases(t, func(t *testing.T, r *rig) {
				b := r.joined()
				id := b.want(200, "GET", "/v1/account", "").text(t, "id")
				key := b.want(201, "POST", "/v1/keys", `{"name":"k","scopes":["generate","read"]}`).text(t, "token")
				running := r.submit(key)
				testenv.Eventually(t, 20*time.Second, func() bool {
					return r.do("GET", "/v1/generations/"+running, key, "").field(t, "status") == "running"
				})
				waiting := r.submit(key)
				if a := r.do("GET", "/v1/generations/"+waiting, key, ""); a.field(t, "status") != "queued" || a.field(t, "error") != nil {
					t.Fatalf("%s", a.body)
				}
				forbid(b, id)
				words, _ := subject.Reason(code).Words()
				for what, generation := range map[string]string{"what ran": running, "what waited": waiting} {
					var got generate.Generation
					testenv.Eventually(t, 30*time.Second, func() (ended bool) {
						var err error
						got, err = r.options.Generate.Get(t.Context(), id, generation)
						return err == nil && got.Status.Terminal()
					})
					if got.Status != generate.Canceled || got.Failure == nil || got.Failure.Code != code || got.Failure.Message != words {
						t.Errorf("%s is %s with %+v", what, got.Status, got.Failure)
					}
					if code == "account_closed" { // nobody gets in to look
						continue
					}
					a := r.do("GET", "/v1/generations/"+generation, key, "")
					if a.field(t, "status") != "canceled" || a.field(t, "error.code") != code || a.field(t, "error.message") != words {
						t.Errorf("%s: %s", what, a.body)
					}
				}
			})
		})
	}
}

func TestPromise_G7_AnObjectionStopsTheUseAtOnce(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		b.want(204, "PUT", "/v1/account/objections/statistics", "")
		if a := b.want(200, "GET", "/v1/account/objections", ""); a.field(t, "data.objected") != true {
			t.Errorf("%s", a.body)
		}
		b.want(204, "DELETE", "/v1/account/objections/statistics", "")
		if a := b.want(200, "GET", "/v1/account/objections", ""); a.field(t, "data.objected") != false {
			t.Errorf("%s", a.body)
		}
		b.want(400, "PUT", "/v1/account/objections/generate", "")
		consents := b.want(200, "GET", "/v1/account/consents", "").body
		if strings.Count(consents, `"granted":true`) != 1 || !strings.Contains(consents, `"policy_version":"2026-01-01"`) {
			t.Errorf("%s", consents)
		}
		b.want(204, "PUT", "/v1/account/consents/marketing", `{"granted":false}`)
		if consents := b.want(200, "GET", "/v1/account/consents", "").body; strings.Contains(consents, `"granted":true`) {
			t.Errorf("%s", consents)
		}
	})
}

func TestSecondFactorOverTheAPI(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		secret := b.want(200, "POST", "/v1/account/totp", "").text(t, "secret")
		code := func(ago time.Duration) string {
			c, err := totp.GenerateCode(secret, time.Now().Add(ago))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		confirmed := b.want(200, "POST", "/v1/account/totp/confirm", `{"code":"`+code(-30*time.Second)+`"}`)
		var codes recoveryView
		if err := json.Unmarshal([]byte(confirmed.body), &codes); err != nil || len(codes.RecoveryCodes) != 10 {
			t.Fatalf("%s (%v)", confirmed.body, err)
		}
		c := &browser{rig: r}
		asked := c.want(401, "POST", "/v1/session", eveSignIn)
		if asked.text(t, "code") != "second_factor_required" || asked.field(t, "second_factor.totp") != true || len(asked.Cookies()) != 0 {
			t.Errorf("%s", asked.body)
		}
		c.want(401, "POST", "/v1/session", strings.Replace(eveSignIn, "}", `,"code":"000000"}`, 1))
		in := c.want(200, "POST", "/v1/session", strings.Replace(eveSignIn, "}", `,"code":"`+codes.RecoveryCodes[3]+`"}`, 1))
		if in.text(t, "method") != "password+recovery" {
			t.Errorf("%s", in.body)
		}
		if again := (&browser{rig: r}).do("POST", "/v1/session", strings.Replace(eveSignIn, "}", `,"code":"`+codes.RecoveryCodes[3]+`"}`, 1)); again.status != 401 {
			t.Errorf("a recovery code works twice: %d", again.status)
		}
		for what, a := range map[string]answered{
			"a challenge":      c.want(200, "POST", "/v1/session/passkey/challenge", ""),
			"a registration":   c.want(200, "POST", "/v1/account/passkeys/challenge", ""),
			"the list of none": c.want(200, "GET", "/v1/account/passkeys", ""),
		} {
			if !json.Valid([]byte(a.body)) {
				t.Errorf("%s: %s", what, a.body)
			}
		}
		c.want(401, "POST", "/v1/session/passkey", `{"passkey":{"challenge_id":"none","response":{"id":"x"}}}`)
		for _, word := range []string{evePassword, eveAddress, secret, codes.RecoveryCodes[0]} {
			if strings.Contains(r.log.String(), word) {
				t.Errorf("the log holds %q", word)
			}
		}
	})
}

// The cookie that browsers get over https cannot come from any other host.
func TestTheCookieIsBoundToItsHost(t *testing.T) {
	t.Parallel()
	a := bare(t, func(o *Options) { o.PublicURL = "https://images.example.org" })
	c := a.setCookie("zs_token", time.Hour)
	for _, part := range []string{"__Host-zimage=zs_token", "Path=/", "Secure", "HttpOnly", "SameSite=Lax", "Max-Age=3600"} {
		if !strings.Contains(c, part) {
			t.Errorf("%s lacks %s", c, part)
		}
	}
	if strings.Contains(c, "Domain") {
		t.Errorf("%s names a domain", c)
	}
}
