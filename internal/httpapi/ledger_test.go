package httpapi

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"zimage/internal/account"
	"zimage/internal/events"
	"zimage/internal/privacy"
)

// ledger is what a person reads about themselves, newest first.
func (b *browser) ledger() []map[string]any {
	b.t.Helper()
	var page struct{ Data []map[string]any }
	a := b.want(200, "GET", "/v1/account/ledger?limit=100", "")
	if err := json.Unmarshal([]byte(a.body), &page); err != nil {
		b.t.Fatal(err)
	}
	return page.Data
}

func TestPromise_X3_APersonSeesWhoOpenedTheirData(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		before := len(eve.ledger())
		support := r.staff("help@example.org", account.RoleSupport)
		staff := r.ownerOf("help@example.org")
		support.want(200, "POST", "/v1/admin/accounts/find", `{"email":"`+eveAddress+`","reason":"`+reason+`"}`)

		list := eve.ledger()
		if len(list) != before+1 {
			t.Fatalf("%d entries: %v", len(list), list)
		}
		e := list[0]
		if e["kind"] != "staff.opened" || e["role"] != "support" || e["reason"] != reason || e["sealed"] != false {
			t.Errorf("the opening reads %v", e)
		}
		if text := eve.want(200, "GET", "/v1/account/ledger", "").body; strings.Contains(text, staff) || strings.Contains(text, "help@") {
			t.Errorf("it names the staff: %s", text)
		}
		if _, err := r.ledger.Seal(t.Context()); err != nil {
			t.Fatal(err)
		}
		if e := eve.ledger()[0]; e["sealed"] != true {
			t.Errorf("after the sealing: %v", e)
		}
		for _, e := range support.ledger() { // nobody else reads it
			if e["kind"] == "staff.opened" {
				t.Errorf("somebody else reads %v", e)
			}
		}
		(&browser{rig: r}).want(401, "GET", "/v1/account/ledger", "")
		if a := r.do("GET", "/v1/account/ledger", r.readOnly, ""); a.status != 403 {
			t.Errorf("a key without the scope: %d", a.status)
		}

		// Pages by cursor.
		first := eve.want(200, "GET", "/v1/account/ledger?limit=1", "")
		cursor := first.text(t, "next_cursor")
		if second := eve.want(200, "GET", "/v1/account/ledger?limit=1&cursor="+cursor, ""); second.body == first.body {
			t.Error("the second page is the first one")
		}
		support.want(400, "GET", "/v1/account/ledger?cursor="+cursor, "")
		if strings.Contains(r.log.String(), "ticket") {
			t.Error("the log holds a reason")
		}
	})
}

// mailsTo counts the mails that were written to a person.
func (r *rig) mailsTo(address string) (n int) {
	r.t.Helper()
	if err := r.db.Get(r.t.Context(), &n, `SELECT count(*) FROM mails WHERE subject = ?`, r.ownerOf(address)); err != nil {
		r.t.Fatal(err)
	}
	return n
}

func TestPromise_D2_DisclosureDrill(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		id := eve.want(200, "GET", "/v1/account", "").text(t, "id")
		path := "/v1/admin/accounts/" + id + "/disclosures"
		officer, operator := r.staff("dpo@example.org", account.RolePrivacy), r.staff("op@example.org", account.RoleOperator)
		before := len(eve.ledger())
		body := `{"case":"17 Js 204/26","authority":"Prosecutor of Lyon","scope":"mail address","may_be_told":true,"reason":"Order of the court of 12 January."}`
		operator.want(403, "POST", path, body)
		eve.want(403, "POST", path, body)
		for _, missing := range []string{`"case":"17 Js 204/26",`, `"authority":"Prosecutor of Lyon",`, `"scope":"mail address",`, `"may_be_told":true,`, `,"reason":"Order of the court of 12 January."`} {
			officer.want(400, "POST", path, strings.Replace(body, missing, "", 1))
		}
		officer.want(404, "POST", "/v1/admin/accounts/sub_06f3k2m9v0q8r5w1x4y7z2a6bc/disclosures", body)
		officer.want(204, "POST", path, strings.ReplaceAll(strings.Replace(body, "true", "false", 1), "17 Js", "18 Js"))
		officer.want(204, "POST", path, body)

		list := eve.ledger()
		if len(list) != before+1 {
			t.Fatalf("%v", list)
		}
		for field, want := range map[string]any{"kind": "staff.disclosed", "case": "17 Js 204/26", "authority": "Prosecutor of Lyon",
			"scope": "mail address", "reason": "Order of the court of 12 January.", "role": "privacy"} {
			if list[0][field] != want {
				t.Errorf("%s is %v, want %v", field, list[0][field], want)
			}
		}
		if n := r.actions("staff.disclosed"); n != 2 {
			t.Errorf("%d disclosures are kept, want 2", n)
		}
		var rows [][]byte
		if err := r.db.Select(t.Context(), &rows, `SELECT details FROM ledger_details`); err != nil {
			t.Fatal(err)
		}
		for _, d := range rows {
			if strings.Contains(string(d), "Lyon") {
				t.Error("a disclosure is readable in the database")
			}
		}
	})
}

// Nothing that a person can read gives away what a case forbids to tell, from the
// search for their account on.
func TestPromise_D2_AHiddenDisclosureLeavesNothingToSee(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		key := eve.want(201, "POST", "/v1/keys", `{"scopes":["account"]}`).text(t, "token")
		officer, support := r.staff("dpo@example.org", account.RolePrivacy), r.staff("help@example.org", account.RoleSupport)
		const order = `"reason":"Order of the court of 12 January."}`
		find := `{"email":"` + eveAddress + `","case":"18 Js 204/26",` + order
		support.want(403, "POST", "/v1/admin/accounts/find", find)
		paths := []string{"/v1/account/ledger", "/v1/account/ledger?limit=1", "/v1/account"}
		seen := func() (all []string) {
			for _, path := range paths {
				all = append(all, eve.want(200, "GET", path, "").body)
			}
			return append(all, r.do("GET", "/v1/account/ledger", key, "").body)
		}
		before, mails := seen(), r.mailsTo(eveAddress)
		id := officer.want(200, "POST", "/v1/admin/accounts/find", find).text(t, "id")
		officer.want(204, "POST", "/v1/admin/accounts/"+id+"/disclosures",
			`{"case":"18 Js 204/26","authority":"Prosecutor of Lyon","scope":"mail address","may_be_told":false,`+order)
		if after := seen(); !slices.Equal(after, before) {
			t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
		if n := r.mailsTo(eveAddress); n != mails {
			t.Errorf("%d mails, before %d", n, mails)
		}
		if r.actions(events.StaffOpened) != 1 || r.actions(events.StaffDisclosed) != 1 {
			t.Error("it is not kept")
		}
	})
}

// A program reads the ledger with a key that has the scope.
func TestALedgerIsReadByKey(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		eve.want(204, "PUT", "/v1/account/consents/marketing", `{"granted":true}`)
		key := eve.want(201, "POST", "/v1/keys", `{"scopes":["account"]}`).text(t, "token")
		a := r.do("GET", "/v1/account/ledger", key, "")
		if a.status != 200 || a.field(t, "data.kind") != "consent.given" || a.field(t, "data.purpose") != "marketing" || a.field(t, "data.policy_version") == nil {
			t.Errorf("%d %s", a.status, a.body)
		}
		if own := eve.want(200, "GET", "/v1/account/ledger", ""); own.body != a.body {
			t.Errorf("the session reads %s, the key %s", own.body, a.body)
		}
	})
}

func TestCheckpointIsForEverybody(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		anybody := &browser{rig: r}
		before := anybody.want(200, "GET", "/v1/privacy/ledger/checkpoint", "")
		r.api.checkpoint.last.Store(nil) // or it were told for seconds
		eve := r.joined()
		eve.want(204, "PUT", "/v1/account/consents/marketing", `{"granted":true}`)
		if _, err := r.ledger.Seal(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again := anybody.want(200, "GET", "/v1/privacy/ledger/checkpoint", ""); again.text(t, "at") == before.text(t, "at") && again.body != before.body {
			t.Errorf("it tells that something was sealed: %s, before %s", again.body, before.body)
		}
		a := anybody.want(200, "GET", "/v1/privacy/ledger/checkpoint", "")
		held, err := privacy.ParseCheckpoint([]byte(a.body))
		if err != nil || !held.Genuine() {
			t.Fatalf("%s: %v", a.body, err)
		}
		if _, err := r.ledger.Verify(t.Context(), &held, nil); err != nil {
			t.Error(err)
		}
		// Whoever asks again and again has nothing read: it is not even there any more.
		if _, err := r.db.Exec(t.Context(), `DELETE FROM ledger_batches`); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if again := anybody.want(200, "GET", "/v1/privacy/ledger/checkpoint", ""); again.body != a.body {
				t.Fatalf("%s, and a moment later %s", a.body, again.body)
			}
		}
	})
}
