package httpapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/subject"
)

func (a answered) requests(t *testing.T) []requestView {
	t.Helper()
	var v requestsView
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	return v.Data
}

const gpc = "Sec-GPC"

// The signal of a browser counts in the answer that it comes with and is kept; its
// absence takes nothing back. It is written once.
func TestPromise_D3_TheSignalOfABrowserIsKept(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		said := func(a answered) bool {
			t.Helper()
			return a.field(t, "do_not_sell") == true && a.field(t, "do_not_sell_since") != nil
		}
		for _, other := range []string{"0", "", "true", "1, 1"} {
			if said(b.want(200, "GET", "/v1/account", "", gpc, other)) {
				t.Errorf("%q is taken for the signal", other)
			}
		}
		if !said(b.want(200, "GET", "/v1/account", "", gpc, "1")) {
			t.Error("the signal does not count in its own answer")
		}
		if !said(b.want(200, "GET", "/v1/account", "")) {
			t.Error("a request without it takes it back")
		}
		since := b.want(200, "GET", "/v1/account", "").text(t, "do_not_sell_since")
		for range 5 {
			b.want(200, "GET", "/v1/generations", "", gpc, "1")
			b.want(204, "PUT", "/v1/account/do-not-sell", "", gpc, "1")
		}
		if now := b.want(200, "GET", "/v1/account", "").text(t, "do_not_sell_since"); now != since {
			t.Errorf("it is written again: %s, before %s", now, since)
		}
		if n := r.actions(events.DoNotSellSet); n != 1 {
			t.Errorf("the ledger has it %d times", n)
		}
		if list := b.want(200, "GET", "/v1/account/requests", "").requests(t); len(list) != 1 || list[0].Kind != "do_not_sell" || list[0].State != "closed" || list[0].Outcome != "done" {
			t.Errorf("the requests are %+v", list)
		}
		if a := b.want(409, "DELETE", "/v1/account/do-not-sell", "", gpc, "1"); !strings.Contains(a.body, gpc) {
			t.Errorf("%s", a.body)
		}
		b.want(204, "DELETE", "/v1/account/do-not-sell", "")
		if said(b.want(200, "GET", "/v1/account", "")) || r.actions(events.DoNotSellWithdrawn) != 1 {
			t.Error("it cannot be taken back, or nobody is told")
		}
		if !strings.Contains(b.want(200, "GET", "/v1/account/ledger", "").body, "do_not_sell.withdrawn") {
			t.Error("the person does not see it in the ledger")
		}
		// By a key too, also where the route asks for nothing of it.
		key := b.want(201, "POST", "/v1/keys", `{"scopes":["read"]}`).text(t, "token")
		for range 3 {
			if a := r.do("GET", "/v1/models", key, "", gpc, "1"); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		if !said(b.want(200, "GET", "/v1/account", "")) || r.actions(events.DoNotSellSet) != 2 {
			t.Error("a key's signal does not count, or each time")
		}
		if a := r.do("GET", "/v1/privacy/policy", "", "", gpc, "1"); a.status != 200 {
			t.Errorf("nobody's signal: %d", a.status)
		}
	})
}

// Whoever uses a right has the same service afterwards, after each of them.
func TestPromise_G8_TheSameServiceAfterEveryRight(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		service := func() string {
			t.Helper()
			models := b.want(200, "GET", "/v1/models", "")
			limit := models.Header.Get("RateLimit-Limit")
			if limit == "" {
				t.Error("no limit is told")
			}
			return limit + " " + models.body
		}
		made := b.want(202, "POST", "/v1/generations", `{"prompt":"a lighthouse"}`)
		offered := service()
		for _, u := range []struct {
			status             int
			method, path, body string
		}{
			{204, "PUT", "/v1/account/do-not-sell", ""}, {204, "PUT", "/v1/account/objections/statistics", ""},
			{204, "PUT", "/v1/account/consents/marketing", `{"granted":false}`}, {200, "POST", "/v1/account/requests", `{"kind":"access"}`},
			{200, "POST", "/v1/account/requests", `{"kind":"rectification","note":"my name"}`}, {202, "POST", "/v1/account/exports", ""},
			{204, "DELETE", "/v1/generations/" + made.text(t, "id"), ""},
			{204, "PUT", "/v1/account/restriction", ""}, {204, "DELETE", "/v1/account/restriction", ""},
		} {
			b.want(u.status, u.method, u.path, u.body, gpc, "1")
			if now := service(); now != offered {
				t.Errorf("after %s %s there is %s, before %s", u.method, u.path, now, offered)
			}
		}
		if again := b.want(202, "POST", "/v1/generations", `{"prompt":"a lighthouse"}`); again.text(t, "model") != made.text(t, "model") {
			t.Errorf("made by %s", again.text(t, "model"))
		}
	})
}

// G10: whoever is refused a right is told where to complain, in the operator's words.
func TestPromise_G10_EveryRefusalOfARightSaysHowToComplain(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		r.api.rooms.Policy.Authority = privacy.Authority{Name: "The Commission of Testing", URL: "https://commission.example"}
		b := r.joined()
		id := b.want(200, "GET", "/v1/account", "").text(t, "id")
		officer := r.staff("dpo@example.org", account.RolePrivacy)
		hold := func(table, record string) {
			t.Helper()
			officer.want(200, "POST", "/v1/admin/holds", `{"account":"`+id+`","table":"`+table+`","record":"`+record+`","case":"c","may_be_told":true,"reason":"`+reason+`"}`)
		}
		complains := func(what string, a answered, want bool) {
			t.Helper()
			text, _ := a.field(t, "complaint").(string)
			if got := strings.Contains(text, "complain") && strings.Contains(text, "The Commission of Testing"); got != want {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		b.want(204, "PUT", "/v1/account/objections/statistics", "")
		hold("users", id)
		hold("objections", subject.ObjectionRecord(id, subject.Statistics))
		g := b.want(202, "POST", "/v1/generations", `{"prompt":"p"}`).text(t, "id")
		hold("generations", g)
		complains("a change that a hold stops", b.want(409, "PATCH", "/v1/account", `{"username":"other"}`), true)
		complains("an objection that a hold keeps", b.want(409, "DELETE", "/v1/account/objections/statistics", ""), true)
		complains("a deletion that a hold stops", b.want(409, "DELETE", "/v1/generations/"+g, ""), true)
		var second answered
		for range 50 { // the first may be ready already
			if second = b.do("POST", "/v1/account/exports", ""); second.status == 409 {
				break
			}
		}
		complains("a second export", second, true)
		for range 5 {
			b.want(200, "POST", "/v1/account/requests", `{"kind":"access"}`)
		}
		complains("too many requests", b.want(409, "POST", "/v1/account/requests", `{"kind":"access"}`), true)
		b.want(204, "PUT", "/v1/account/restriction", "")
		complains("work under a restriction", b.want(403, "POST", "/v1/generations", `{"prompt":"p"}`), true)
		complains("what is not there", b.want(404, "GET", "/v1/generations/gen_00000000000000000000000000", ""), false)
		if a := r.do("GET", "/v1/privacy/policy", "", ""); !strings.Contains(a.text(t, "complaint"), "complain") {
			t.Errorf("the policy: %s", a.body)
		}
	})
}

// Holds and requests are for privacy officers, with two factors, a reason and a proof
// of late; each is in the ledger, where its person sees it unless the case forbids.
func TestPromise_X3_HoldsAndRequestsAreForOfficers(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		id := b.want(200, "GET", "/v1/account", "").text(t, "id")
		asked := b.want(200, "POST", "/v1/account/requests", `{"kind":"rectification","note":"my secret name"}`)
		if a := asked.field(t, "account"); a != nil {
			t.Errorf("%s", asked.body)
		}
		officer := r.staff("dpo@example.org", account.RolePrivacy)
		others := []*browser{b, r.staff("op@example.org", account.RoleOperator), r.staff("help@example.org", account.RoleSupport)}
		place := `{"account":"` + id + `","table":"users","record":"` + id + `","case":"17 Js 204/26","may_be_told":true,"reason":"` + reason + `"}`
		because := `{"reason":"` + reason + `"}`
		open := `{"email":"else@example.org","kind":"access","reason":"` + reason + `"}`
		closing := `{"outcome":"done","reason":"` + reason + `"}`
		request := "/v1/admin/requests/" + asked.text(t, "id")
		for _, route := range [][3]string{
			{"GET", "/v1/admin/holds", ""}, {"POST", "/v1/admin/holds", place}, {"POST", "/v1/admin/holds/hold_00000000000000000000000000/renew", because},
			{"POST", "/v1/admin/holds/hold_00000000000000000000000000/release", because}, {"GET", "/v1/admin/requests", ""}, {"POST", "/v1/admin/requests", open},
			{"POST", request + "/open", because}, {"POST", request + "/close", closing},
		} {
			for _, who := range others {
				if a := who.do(route[0], route[1], route[2]); a.status != 403 || strings.Contains(a.body, "secret name") {
					t.Errorf("%s %s: %d %s", route[0], route[1], a.status, a.body)
				}
			}
			if route[2] == "" {
				continue
			}
			if a := officer.do(route[0], route[1], strings.Replace(route[2], reason, "short", 1)); a.status != 400 {
				t.Errorf("%s %s without a reason: %d %s", route[0], route[1], a.status, a.body)
			}
		}
		if _, err := r.db.Exec(t.Context(), `UPDATE sessions SET fresh_at = 1 WHERE owner = ?`, r.ownerOf("dpo@example.org")); err != nil {
			t.Fatal(err)
		}
		for path, body := range map[string]string{"/v1/admin/holds": place, "/v1/admin/requests": open, request + "/open": because, request + "/close": closing} {
			if a := officer.do("POST", path, body); a.status != 403 || a.text(t, "code") != "reauthentication_required" {
				t.Errorf("%s in an old session: %d %s", path, a.status, a.body)
			}
		}
		if n := r.actions(events.HoldPlaced) + r.actions(events.RequestClosed) + r.actions(events.StaffOpened); n != 0 {
			t.Errorf("%d things were done", n)
		}
		officer = r.staff("dpo2@example.org", account.RolePrivacy)
		own := r.ownerOf("dpo2@example.org")
		officer.want(403, "POST", "/v1/admin/holds", strings.ReplaceAll(place, id, own))

		first := officer.want(200, "POST", "/v1/admin/holds", place).text(t, "id")
		hidden := officer.want(200, "POST", "/v1/admin/holds", strings.Replace(strings.Replace(place, "true", "false", 1), "204/26", "205/26", 1)).text(t, "id")
		officer.want(400, "POST", "/v1/admin/holds", strings.Replace(place, `"may_be_told":true,`, "", 1))
		officer.want(400, "POST", "/v1/admin/holds", strings.Replace(place, `"users"`, `"sessions"`, 1))
		page := officer.want(200, "GET", "/v1/admin/holds?limit=1", "")
		if !strings.Contains(page.body, `"next_cursor"`) || strings.Count(page.body, "review_at") != 1 {
			t.Errorf("%s", page.body)
		}
		if a := officer.want(200, "GET", "/v1/admin/holds?limit=5&account="+id, ""); strings.Count(a.body, "review_at") != 2 {
			t.Errorf("%s", a.body)
		}
		officer.want(200, "POST", "/v1/admin/holds/"+first+"/renew", because)
		officer.want(204, "POST", "/v1/admin/holds/"+first+"/release", because)
		officer.want(404, "POST", "/v1/admin/holds/"+first+"/release", because)
		officer.want(204, "POST", "/v1/admin/holds/"+hidden+"/release", because)

		on := func(day string) string { return strings.Replace(open, "{", `{"received_at":"`+day+`",`, 1) }
		for _, day := range []string{"soon", "2026-02-30", "2000-01-01", "2999-01-01", "2026-01-12T00:00:00Z"} {
			officer.want(400, "POST", "/v1/admin/requests", on(day))
		}
		if a := officer.want(200, "GET", "/v1/admin/requests?filter=open", ""); strings.Contains(a.body, "secret name") || len(a.requests(t)) != 1 {
			t.Errorf("%s", a.body)
		}
		if a := officer.want(200, "POST", request+"/open", because); a.text(t, "note") != "my secret name" || a.text(t, "account") != id {
			t.Errorf("%s", a.body)
		}
		officer.want(200, "POST", request+"/close", closing)
		r.told(mail.RequestClosed, eveAddress)
		seen := b.want(200, "GET", "/v1/account/ledger?limit=100", "").body
		for _, want := range []string{"hold.placed", "hold.renewed", "hold.released", "17 Js 204/26", "request.opened", "staff.opened", "request.closed", reason} {
			if !strings.Contains(seen, want) {
				t.Errorf("the person does not see %s", want)
			}
		}
		if strings.Contains(seen, "205/26") || r.actions(events.HoldPlaced) != 2 || r.actions(events.HoldReleased) != 2 {
			t.Error("the person sees what the case forbids, or the ledger has it not")
		}
		day := time.Now().UTC().AddDate(0, 0, -3)
		if a := officer.want(200, "POST", "/v1/admin/requests", on(day.Format(time.DateOnly))); a.text(t, "received_at") != day.Format(time.DateOnly)+"T00:00:00Z" ||
			a.text(t, "due_at") != day.AddDate(0, 0, 30).Format(time.DateOnly)+"T00:00:00Z" {
			t.Errorf("%s", a.body)
		}
		for _, word := range []string{"secret name", "else@example.org", "204/26", reason} {
			if strings.Contains(r.log.String(), word) {
				t.Errorf("the log holds %q", word)
			}
		}
	})
}

// Over the door: a request for an address, its code, and an erasure that follows.
func TestPromise_G3_ErasureAskedFromAnAddress(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		id := b.want(200, "GET", "/v1/account", "").text(t, "id")
		officer := r.staff("dpo@example.org", account.RolePrivacy)
		open := func(email string) string {
			t.Helper()
			officer.want(200, "POST", "/v1/admin/requests", `{"email":"`+email+`","kind":"erasure","reason":"`+reason+`"}`)
			return r.mailed(mail.RequestConfirm, "Code")
		}
		known := r.do("POST", "/v1/privacy/requests/confirm", "", `{"token":"`+open("eve@example.org")+`"}`)
		unknown := r.do("POST", "/v1/privacy/requests/confirm", "", `{"token":"`+open("nobody@example.org")+`"}`)
		if known.status != 200 || unknown.status != 200 || known.body != unknown.body {
			t.Errorf("the answers tell them apart: %d %s, %d %s", known.status, known.body, unknown.status, unknown.body)
		}
		r.told(mail.AccountClosed, eveAddress)
		r.told(mail.RequestNothingHeld, "nobody@example.org")
		b.refused("a session after the closing")
		var state string
		if err := r.db.Get(t.Context(), &state, `SELECT state FROM subjects WHERE id = ?`, id); err != nil || state != "closing" {
			t.Errorf("the account is %s (%v)", state, err)
		}
		for _, bad := range []string{"zq_x", "x", strings.Repeat("z", 100)} {
			if a := r.do("POST", "/v1/privacy/requests/confirm", "", `{"token":"`+bad+`"}`); a.status != http.StatusUnprocessableEntity || a.text(t, "code") != "link_invalid" {
				t.Errorf("%s: %d %s", bad, a.status, a.body)
			}
		}
	})
}

// Over the door: with a second factor the erasure waits, and who is signed in withdraws it.
func TestPromise_G3_AGuardedAccountsOwnerCanWithdrawALettersErasure(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		key := b.want(201, "POST", "/v1/keys", `{"scopes":["read","generate","account"]}`).text(t, "token")
		b.withApp()
		officer := r.staff("dpo@example.org", account.RolePrivacy)
		officer.want(200, "POST", "/v1/admin/requests", `{"email":"eve@example.org","kind":"erasure","reason":"`+reason+`"}`)
		if a := r.do("POST", "/v1/privacy/requests/confirm", "", `{"token":"`+r.mailed(mail.RequestConfirm, "Code")+`"}`); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		r.told(mail.ErasureAsked, eveAddress)
		list := b.want(200, "GET", "/v1/account/requests", "").requests(t)
		if len(list) != 1 || list[0].State != "open" || list[0].ActsAt == nil || time.Until(*list[0].ActsAt).Round(time.Hour) != 72*time.Hour {
			t.Fatalf("the account shows %+v", list)
		}
		path := "/v1/account/requests/" + list[0].ID
		if a := r.do("DELETE", path, key, ""); a.status != 403 {
			t.Errorf("by a key: %d %s", a.status, a.body)
		}
		officer.want(404, "DELETE", path, "")
		b.want(204, "DELETE", path, "")
		r.told(mail.RequestClosed, eveAddress)
		b.want(409, "DELETE", path, "")
		b.want(404, "DELETE", "/v1/account/requests/req_00000000000000000000000000", "")
		if list := b.want(200, "GET", "/v1/account/requests", "").requests(t); len(list) != 1 || list[0].Outcome != "withdrawn" {
			t.Errorf("withdrawn: %+v", list)
		}
	})
}

// Either the account is closed and its owner has the secret of the receipt, or neither.
func TestPromise_R7_NoClosingWithoutTheReceipt(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		id := b.want(200, "GET", "/v1/account", "").text(t, "id")
		// The secret of this receipt is somebody else's already.
		_, err := r.db.Exec(t.Context(), `INSERT INTO erasures (id, subject, job_id, requested_at, due_at, step, late_until, failures, failure, work, secret, receipt_at, completed_at)
			VALUES ('era_x', ?, '', 1, 1, '', 0, 0, '', '{}', ?, 0, 0)`, id, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if a := b.do("DELETE", "/v1/account", `{"password":"`+evePassword+`"}`); a.status < 400 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		b.want(200, "GET", "/v1/account", "")
		if _, err := r.db.Exec(t.Context(), `DELETE FROM erasures WHERE id = 'era_x'`); err != nil {
			t.Fatal(err)
		}
		if a := b.want(202, "DELETE", "/v1/account", `{"password":"`+evePassword+`"}`); !strings.Contains(a.body, "zr_") {
			t.Errorf("%s", a.body)
		}
	})
}

// Nothing is trained on without a consent that was asked for by itself and still holds.
func TestPromise_C2_TrainingNeedsAConsentThatHolds(t *testing.T) {
	t.Parallel()
	gate(t, subject.Training, subject.Marketing)
}

// Marketing begins with a consent, and whoever opts out is out at once.
func TestPromise_G5_WhoeverOptsOutOfMarketingIsOutAtOnce(t *testing.T) {
	t.Parallel()
	gate(t, subject.Marketing, subject.Training)
}

// gate gives a consent and takes it back, and asks as every use of the purpose must. Neither such
// mail nor training is there yet: this is what each will have to pass.
func gate(t *testing.T, purpose, other subject.Purpose) {
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joins(strings.Replace(eveSignUp, `,"consents":["marketing"]`, "", 1))
		id := b.want(200, "GET", "/v1/account", "").text(t, "id")
		may := func(when string, want bool) {
			t.Helper()
			if err := subject.May(t.Context(), r.db, id, purpose); (err == nil) != want {
				t.Errorf("%s: %s is allowed: %v", when, purpose, err == nil)
			}
			if subject.May(t.Context(), r.db, id, other) == nil {
				t.Errorf("%s: %s is allowed, to which nobody agreed", when, other)
			}
		}
		path := "/v1/account/consents/" + string(purpose)
		may("never asked", false)
		b.want(204, "PUT", path, `{"granted":true}`)
		may("agreed", true)
		b.want(204, "PUT", path, `{"granted":false}`)
		may("taken back", false)
		b.want(204, "PUT", path, `{"granted":true}`)
		may("agreed again", true)
		b.want(204, "PUT", "/v1/account/restriction", "")
		may("restricted", false)
		var words, versions int
		if err := r.db.Get(t.Context(), &words, `SELECT count(*) FROM consents WHERE subject = ?`, id); err != nil || words != 3 {
			t.Errorf("%d words are kept, want 3 (%v)", words, err)
		}
		if err := r.db.Get(t.Context(), &versions, `SELECT count(*) FROM consents WHERE subject = ? AND policy_version <> ''`, id); err != nil || versions != 3 {
			t.Errorf("%d of them name the policy's version (%v)", versions, err)
		}
	})
}
