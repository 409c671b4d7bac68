package httpapi

import (
	"strings"
	"testing"

	"zimage/internal/account"
	"zimage/internal/events"
	"zimage/internal/mail"
)

const reason = "Asked for help with a payment, ticket 17."

// staff is a browser of somebody with a role and an authenticator app, signed in
// with both factors.
func (r *rig) staff(email string, role account.Role) *browser {
	r.t.Helper()
	const words = "some long words for staff alone"
	id, err := r.accounts.CreateUser(r.t.Context(), email, words)
	if err != nil {
		r.t.Fatal(err)
	}
	b := r.signIn(email, words)
	authenticator, _ := b.withApp()
	if err := r.accounts.SetRole(r.t.Context(), account.AtTheMachine(), id, role, "Works here from today on."); err != nil {
		r.t.Fatal(err)
	}
	b.refused("a session from before the role")
	b = &browser{rig: r}
	b.want(200, "POST", "/v1/session", withCode(credentials(email, words), authenticator.code()))
	return b
}

// actions are what the ledger keeps of a kind.
func (r *rig) actions(kind events.Type) (n int) {
	r.t.Helper()
	if err := r.db.Get(r.t.Context(), &n, `SELECT count(*) FROM ledger_entries WHERE kind = ?`, kind); err != nil {
		r.t.Fatal(err)
	}
	return n
}

func TestPromise_X3_StaffActWithARoleAReasonAndTwoFactors(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		id := eve.want(200, "GET", "/v1/account", "").text(t, "id")
		operator, support := r.staff("op@example.org", account.RoleOperator), r.staff("help@example.org", account.RoleSupport)
		if a := operator.want(200, "GET", "/v1/account", ""); a.field(t, "role") != "operator" {
			t.Errorf("%s", a.body)
		}
		because := `{"reason":"` + reason + `"}`
		find := `{"email":"` + eveAddress + `","reason":"` + reason + `"}`
		admin := "/v1/admin/accounts/" + id

		for what, body := range map[string]string{
			"no reason": `{"email":"` + eveAddress + `"}`, "a short one": `{"email":"` + eveAddress + `","reason":"why not"}`,
			"a blank one": `{"email":"` + eveAddress + `","reason":"               "}`,
		} {
			if a := support.do("POST", "/v1/admin/accounts/find", body); a.status != 400 || r.actions(events.StaffOpened) != 0 {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		for _, b := range []*browser{support, operator} {
			if a := b.want(200, "POST", "/v1/admin/accounts/find", find); a.field(t, "id") != id || a.field(t, "username") != "Eve_7" {
				t.Errorf("%s", a.body)
			}
		}
		if n := r.actions(events.StaffOpened); n != 2 {
			t.Errorf("%d openings are kept, want 2", n)
		}
		operator.want(404, "POST", "/v1/admin/accounts/find", strings.Replace(find, eveAddress, "nobody@example.org", 1))
		if n := r.actions(events.StaffLookedFor); n != 1 {
			t.Errorf("%d searches in vain are kept, want 1", n)
		}

		for _, what := range []string{"/suspend", "/unsuspend", "/close-child"} {
			support.want(403, "POST", admin+what, because)
			eve.want(403, "POST", admin+what, because)
			operator.want(400, "POST", admin+what, `{"reason":"short"}`)
		}
		operator.want(204, "POST", admin+"/suspend", because)
		if got := r.mailed(mail.AccountSuspended, "Reason"); got != reason {
			t.Errorf("the reason that was told is %q", got)
		}
		eve.want(403, "POST", "/v1/generations", `{"prompt":"p"}`)
		if a := eve.want(200, "GET", "/v1/account", ""); a.field(t, "suspended_at") == nil {
			t.Errorf("%s", a.body)
		}
		operator.want(204, "POST", admin+"/unsuspend", because)
		r.told(mail.AccountUnsuspended, eveAddress)
		eve.want(202, "POST", "/v1/generations", `{"prompt":"p"}`)

		key := eve.want(201, "POST", "/v1/keys", `{"scopes":["read"]}`).text(t, "token")
		operator.want(204, "POST", admin+"/close-child", because)
		eve.refused("the child's session")
		if a := r.do("GET", "/v1/generations", key, ""); a.status != 401 {
			t.Errorf("the child's key is answered %d", a.status)
		}
		(&browser{rig: r}).want(401, "POST", "/v1/session", eveSignIn)
		r.told(mail.AccountClosed, eveAddress)
		var state string
		if err := r.db.Get(t.Context(), &state, `SELECT state FROM subjects WHERE id = ?`, id); err != nil || state != "closing" {
			t.Errorf("the account is %s (%v)", state, err)
		}
		for _, action := range []events.Type{events.StaffSuspended, events.StaffUnsuspended, events.StaffClosedChild, events.AccountClosing} {
			if n := r.actions(action); n != 1 {
				t.Errorf("%q is kept %d times", action, n)
			}
		}
		operator.want(200, "GET", "/v1/session", "")
		for _, word := range []string{eveAddress, reason, "ticket"} {
			if strings.Contains(r.log.String(), word) {
				t.Errorf("the log holds %q", word)
			}
		}
	})
}

func TestAttack_StaffWithoutASecondFactor(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		id := eve.want(200, "GET", "/v1/account", "").text(t, "id")
		err := r.accounts.SetRole(t.Context(), account.AtTheMachine(), r.ownerOf("ada@example.org"), account.RoleOperator, "Works here from today on.")
		if err == nil {
			t.Error("somebody without a second factor gets a role")
		}
		// Not even when the row says so.
		if _, err := r.db.Exec(t.Context(), `UPDATE users SET role = 'operator' WHERE id = ?`, r.ownerOf("ada@example.org")); err != nil {
			t.Fatal(err)
		}
		ada := r.signIn("ada@example.org", "some long words for anybody")
		for path, body := range map[string]string{
			"find":          `{"email":"` + eveAddress + `","reason":"` + reason + `"}`,
			id + "/suspend": `{"reason":"` + reason + `"}`, id + "/unsuspend": `{"reason":"` + reason + `"}`, id + "/close-child": `{"reason":"` + reason + `"}`,
		} {
			if a := ada.do("POST", "/v1/admin/accounts/"+path, body); a.status != 403 || strings.Contains(a.body, "Eve_7") {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		if a := ada.do("POST", "/v1/keys", `{"scopes":["admin"]}`); a.status != 403 {
			t.Errorf("a key with the scope admin: %d %s", a.status, a.body)
		}
		// And nobody who has a role gives the last one up.
		operator := r.staff("op@example.org", account.RoleOperator)
		operator.want(409, "DELETE", "/v1/account/totp", "")
		eve.want(200, "GET", "/v1/session", "")
		if n := r.actions(events.StaffOpened); n != 0 {
			t.Errorf("%d openings", n)
		}
	})
}
