package privacy_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// letter is the newest mail of a template, with its address.
func (h *home) letter(template mail.Template) (address string, data map[string]string) {
	h.t.Helper()
	ctx := context.Background()
	var row struct {
		ID      string `db:"id"`
		Subject string `db:"subject"`
		Address []byte `db:"address"`
		Data    []byte `db:"data"`
	}
	must(h.t, h.db.Get(ctx, &row, `SELECT id, subject, address, data FROM mails WHERE template = ? ORDER BY id DESC LIMIT 1`, template))
	to, err := h.vault.Unseal(ctx, row.Subject, row.Address, vault.Column("mails", "address", row.ID))
	must(h.t, err)
	plain, err := h.vault.Unseal(ctx, row.Subject, row.Data, vault.Column("mails", "data", row.ID))
	must(h.t, err)
	must(h.t, json.Unmarshal(plain, &data))
	return string(to), data
}

// letters counts mails of a template.
func (h *home) letters(template mail.Template) int {
	return h.count(`SELECT count(*) FROM mails WHERE template = ?`, template)
}

// asked opens a request for an address and returns it with the mailed code.
func (h *home) asked(email string, kind privacy.RequestKind) (privacy.Request, string) {
	h.t.Helper()
	h.clock.Advance(time.Millisecond)
	r, err := h.privacy.OpenRequest(context.Background(), h.machine(), email, kind, "please, "+mark, time.Time{})
	must(h.t, err)
	to, data := h.letter(mail.RequestConfirm)
	if !strings.EqualFold(to, email) || data["Request"] == "" || data["Contact"] == "" {
		h.t.Errorf("the code went to %s with %v", to, data)
	}
	return r, data["Code"]
}

// wrote is asked, and the address has confirmed it.
func (h *home) wrote(email string, kind privacy.RequestKind) privacy.Request {
	h.t.Helper()
	_, code := h.asked(email, kind)
	r, err := h.privacy.ConfirmRequest(context.Background(), code)
	must(h.t, err)
	return r
}

// guard has sign-in ask for a code too.
func (h *home) guard(p person) {
	h.t.Helper()
	h.exec(`UPDATE users SET totp_confirmed_at = 1 WHERE id = ?`, p.id)
}

// requests are a person's, as kind, state and outcome, sorted.
func (h *home) requests(owner string) (list []string) {
	h.t.Helper()
	all, next, err := h.privacy.Requests(context.Background(), owner, "", 100)
	must(h.t, err)
	if next != "" {
		h.t.Error("there are more")
	}
	for _, r := range all {
		list = append(list, strings.TrimSpace(string(r.Kind)+" "+string(r.State)+" "+string(r.Outcome)))
	}
	slices.Sort(list)
	return list
}

func (h *home) wantRequests(what, owner string, want ...string) {
	h.t.Helper()
	if got := h.requests(owner); !slices.Equal(got, want) {
		h.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// What people do by themselves stands in the list of requests, with its state.
func TestPromise_R6_WhatPeopleDoIsARequestWithAState(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p, other := h.newcomer("ann"), h.newcomer("ben")
		must(t, h.accounts.Object(ctx, p.who, subject.Statistics))
		must(t, h.accounts.Object(ctx, p.who, subject.Statistics)) // once
		must(t, h.accounts.SetDoNotSell(ctx, p.who, true))
		must(t, h.accounts.SetDoNotSell(ctx, p.who, true))
		e, err := h.privacy.AskExport(ctx, p.id)
		must(t, err)
		must(t, h.accounts.Restrict(ctx, p.who))
		h.wantRequests("asked", p.id, "do_not_sell closed done", "export open", "objection closed done", "restriction closed done")
		must(t, h.privacy.DeleteExport(ctx, p.id, e.ID))
		h.wantRequests("the export deleted", p.id, "do_not_sell closed done", "export closed withdrawn", "objection closed done", "restriction closed done")
		h.clock.Advance(time.Second)
		_, err = h.privacy.AskExport(ctx, p.id)
		must(t, err)
		h.clock.Advance(time.Millisecond)
		_, err = h.privacy.Ask(ctx, p.id, privacy.RequestRectification, "my name, "+mark)
		must(t, err)
		list, next, err := h.privacy.Requests(ctx, p.id, "", 1)
		must(t, err)
		if len(list) != 1 || next != list[0].ID || list[0].Kind != privacy.RequestRectification || list[0].Note != "my name, "+mark ||
			!list[0].DueAt.Equal(list[0].OpenedAt.AddDate(0, 0, 30)) || list[0].Overdue {
			t.Errorf("the first page is %+v, %s", list, next)
		}
		if list, _, err = h.privacy.Requests(ctx, p.id, next, 1); err != nil || len(list) != 1 || list[0].Kind != privacy.RequestExport || list[0].Ref == "" {
			t.Errorf("the second page is %+v, %v", list, err)
		}
		h.wantRequests("somebody else", other.id)

		id, _ := h.close(p)
		h.wantRequests("closed", p.id, append([]string{"do_not_sell closed done", "erasure open", "export closed withdrawn", "export closed withdrawn"},
			"objection closed done", "rectification closed withdrawn", "restriction closed done")...)
		var origin string
		must(t, h.db.Get(ctx, &origin, `SELECT origin FROM requests WHERE subject = ? AND kind = 'erasure'`, p.id))
		if origin != privacy.OriginStaff {
			t.Errorf("closed by staff, the request is from %q", origin)
		}
		var r string
		must(t, h.db.Get(ctx, &r, `SELECT id FROM requests WHERE subject = ? AND kind = 'erasure'`, p.id))
		_, err = h.privacy.CloseRequest(ctx, h.machine(), r, privacy.OutcomeDone, because)
		refuses(t, "closing what runs", err, problem.Conflict)
		must(t, h.erase(id))
		h.erased(p)
		if n := h.count(`SELECT count(*) FROM requests WHERE subject = ? AND kind = 'erasure' AND state = 'closed' AND outcome = 'done' AND note IS NULL`, p.id); n != 1 {
			t.Error("the erasure does not close its request")
		}
		if h.count(`SELECT count(*) FROM requests WHERE subject = ? AND (note IS NOT NULL OR address IS NOT NULL)`, p.id) > 0 {
			t.Error("what requests said is left")
		}
	})
}

// An export that is ready closes what waits for it.
func TestPromise_R6_AnExportClosesItsRequest(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		p := r.plant("ann")
		e, _ := r.exported(p.owner)
		var outcome string
		r.must(r.db.Get(context.Background(), &outcome, `SELECT outcome FROM requests WHERE subject = ? AND kind = 'export' AND ref = ?`, p.owner, e.ID))
		if outcome != "done" {
			t.Errorf("the request is %q", outcome)
		}
	})
}

// Somebody without an account wrote: control is proved, the answer is that nothing is
// held, and the address is forgotten.
func TestPromise_R6_AnAddressWithoutAnAccount(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		const email = "Nobody-canary@example.org"
		for i, kind := range privacy.RequestKinds() {
			r, code := h.asked(email, kind)
			if r.State != privacy.RequestUnconfirmed || r.Subject != "" || r.Origin != privacy.OriginAddress {
				t.Errorf("%+v", r)
			}
			_, err := h.privacy.OpenRequest(ctx, h.machine(), strings.ToUpper(email), kind, "", time.Time{})
			refuses(t, "twice", err, problem.Conflict)
			for _, bad := range []string{"", code + "x", code[:len(code)-1], "zq_", "zc_" + code[3:]} {
				_, err := h.privacy.ConfirmRequest(ctx, bad)
				refuses(t, "another code", err, problem.LinkInvalid)
			}
			done, err := h.privacy.ConfirmRequest(ctx, code)
			must(t, err)
			if done.State != privacy.RequestClosed || done.Outcome != privacy.OutcomeNothingHeld || done.Subject != "" {
				t.Errorf("%s: %+v", kind, done)
			}
			_, err = h.privacy.ConfirmRequest(ctx, code)
			refuses(t, "the code again", err, problem.LinkInvalid)
			to, data := h.letter(mail.RequestNothingHeld)
			if to != email || h.letters(mail.RequestNothingHeld) != i+1 || !strings.Contains(data["Complaint"], "authority") || len(data["Complaint"]) > 500 {
				t.Errorf("the answer went to %s with %v", to, data)
			}
		}
		open, err := h.privacy.OpenRequest(ctx, h.machine(), email, privacy.RequestAccess, "not confirmed, "+mark, time.Time{})
		must(t, err)
		_, data := h.letter(mail.RequestConfirm)
		said, err := h.privacy.ShowRequest(ctx, h.machine(), open.ID)
		if err != nil || said.Address != email || said.Note != "not confirmed, "+mark {
			t.Errorf("the staff is shown %+v, %v", said, err)
		}
		if h.count(`SELECT count(*) FROM users`) != 0 || len(h.found(email)) > 0 {
			t.Error("there is an account, or the address stands somewhere")
		}
		swept := func() {
			t.Helper()
			_, err := h.vault.SweepUnowned(ctx, time.Hour, func(ids []string) (map[string]bool, error) { return h.privacy.Owned(ctx, ids) })
			must(t, err)
		}
		keys := func() (n int) {
			must(t, h.keys.Get(ctx, &n, `SELECT count(*) FROM keysets WHERE destroyed_at IS NULL`))
			return n
		}
		all := len(privacy.RequestKinds()) + 1
		h.clock.Advance(7*24*time.Hour - time.Second)
		must(t, h.privacy.Look(ctx, false))
		swept()
		if n := h.count(`SELECT count(*) FROM requests WHERE state = 'unconfirmed'`); n != 1 || keys() != all {
			t.Errorf("%d wait before the seven days are over, with %d keys", n, keys())
		}
		h.clock.Advance(2 * time.Second)
		_, err = h.privacy.ConfirmRequest(ctx, data["Code"])
		refuses(t, "an old code", err, problem.LinkInvalid)
		must(t, h.privacy.Look(ctx, false))
		if n := h.count(`SELECT count(*) FROM requests WHERE state = 'closed' AND outcome = 'unconfirmed' AND token_lookup IS NULL`); n != 1 {
			t.Error("it is not closed when nobody confirms it")
		}
		h.clock.Advance(22 * 24 * time.Hour)
		must(t, h.privacy.Look(ctx, false))
		swept()
		if n := h.count(`SELECT count(*) FROM requests WHERE address IS NOT NULL`); n != all || keys() != all {
			t.Errorf("%d addresses of %d are there before 30 days, with %d keys", n, all, keys())
		}
		h.clock.Advance(9 * 24 * time.Hour)
		must(t, h.privacy.Look(ctx, false))
		if n := h.count(`SELECT count(*) FROM requests WHERE address IS NOT NULL OR address_lookup IS NOT NULL OR note IS NOT NULL`); n != 0 || keys() != 0 {
			t.Errorf("%d requests still say something after 30 days, with %d keys", n, keys())
		}
		if said, err := h.privacy.ShowRequest(ctx, h.machine(), open.ID); err != nil || said.Address+said.Note != "" {
			t.Errorf("the staff is shown %+v, %v", said, err)
		}
		h.clock.Advance(1095 * 24 * time.Hour)
		must(t, h.privacy.Look(ctx, false))
		if n := h.count(`SELECT count(*) FROM requests`); n != 0 {
			t.Errorf("%d requests are there after three years", n)
		}
		if strings.Contains(strings.ToLower(h.log.String()), strings.ToLower(email)) {
			t.Error("the log names the address")
		}
	})
}

// Whoever of the staff opened a request before its address confirmed it is seen by the
// account that it becomes one of, and the ledger stays whole.
func TestARequestBringsItsLedgerToTheAccount(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ledger := privacy.NewLedger(privacy.LedgerOptions{DB: h.db, Vault: h.vault, Clock: h.clock})
		p := h.newcomer("ann")
		r, code := h.asked(p.email, privacy.RequestRectification)
		officer := func(ctx context.Context, do func(*db.Tx) (events.Event, error)) error { // whose events the ledger is told of
			return h.machine()(ctx, func(tx *db.Tx) (events.Event, error) {
				e, err := do(tx)
				if err != nil {
					return e, err
				}
				told := e
				told.At, told.Facts = h.clock.Now(), map[events.Fact]string{events.Reason: because, events.Staff: "stf_x"}
				return e, ledger.Happened(ctx, tx, told)
			})
		}
		_, err := h.privacy.ShowRequest(ctx, officer, r.ID)
		must(t, err)
		_, err = ledger.Seal(ctx)
		must(t, err)
		var ids []string
		must(t, h.db.Select(ctx, &ids, `SELECT entry_id FROM ledger_details WHERE subject = ? ORDER BY entry_id`, r.ID))
		if len(ids) != 1 {
			t.Fatalf("the request has %d entries", len(ids))
		}
		_, err = h.privacy.ConfirmRequest(ctx, code)
		must(t, err)
		list, _, err := ledger.Entries(ctx, p.id, "", 100)
		must(t, err)
		seen := map[string]privacy.LedgerEntry{}
		for _, e := range list {
			seen[e.ID] = e
		}
		for _, id := range ids {
			if e := seen[id]; e.Damaged || e.Ref != r.ID || e.Facts[events.Reason] != because || e.Facts[events.Staff] != "" {
				t.Errorf("the person sees %+v", e)
			}
		}
		if _, err := ledger.Verify(ctx, nil, nil); err != nil {
			t.Errorf("the ledger: %v", err)
		}
		id, _ := h.close(p)
		must(t, h.erase(id))
		if n := h.count(`SELECT count(*) FROM ledger_details WHERE subject IN (?, ?)`, p.id, r.ID); n != 0 {
			t.Errorf("%d details are left after the erasure", n)
		}
		if _, err := ledger.Verify(ctx, nil, nil); err != nil {
			t.Errorf("the ledger after the erasure: %v", err)
		}
	})
}

// Somebody with an account wrote: once the address has confirmed it, what was asked
// for happens as its owner could have done it, and only then.
func TestPromise_R6_AnAddressWithAnAccount(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		confirm := func(code string) privacy.Request {
			t.Helper()
			r, err := h.privacy.ConfirmRequest(ctx, code)
			must(t, err)
			return r
		}
		p := h.newcomer("ann")
		var codes []string
		for _, kind := range privacy.RequestKinds() {
			_, code := h.asked(p.email, kind)
			codes = append(codes, code)
		}
		s, err := subject.Find(ctx, h.db, p.id)
		must(t, err)
		u, err := h.accounts.User(ctx, p.id)
		must(t, err)
		if s.State != subject.Active || !s.RestrictedAt.IsZero() || !u.DoNotSellAt.IsZero() || h.count(`SELECT count(*) FROM exports`)+h.count(`SELECT count(*) FROM objections`) != 0 {
			t.Error("something was done before the address confirmed it")
		}
		h.wantRequests("unconfirmed", p.id)
		byKind := map[privacy.RequestKind]string{}
		for i, kind := range privacy.RequestKinds() {
			byKind[kind] = codes[i]
		}
		// A copy, once for both.
		for _, kind := range []privacy.RequestKind{privacy.RequestAccess, privacy.RequestExport} {
			if r := confirm(byKind[kind]); r.State != privacy.RequestOpen || r.Subject != p.id || !strings.HasPrefix(r.Ref, "exp_") {
				t.Errorf("%+v", r)
			}
		}
		if to, _ := h.letter(mail.ExportAsked); to != p.email || h.count(`SELECT count(*) FROM exports WHERE owner = ?`, p.id) != 1 {
			t.Error("no copy is made, or several, or somebody else is told")
		}
		for _, kind := range []privacy.RequestKind{privacy.RequestRestriction, privacy.RequestObjection, privacy.RequestDoNotSell} {
			if r := confirm(byKind[kind]); r.State != privacy.RequestClosed || r.Outcome != privacy.OutcomeDone || r.Subject != p.id {
				t.Errorf("%+v", r)
			}
		}
		s, err = subject.Find(ctx, h.db, p.id)
		must(t, err)
		u, err = h.accounts.User(ctx, p.id)
		must(t, err)
		if s.RestrictedAt.IsZero() || u.DoNotSellAt.IsZero() || h.count(`SELECT count(*) FROM objections WHERE subject = ?`, p.id) != 1 {
			t.Error("what was asked for was not done")
		}
		// What is so already is done too, once.
		_, again := h.asked(p.email, privacy.RequestRestriction)
		if r := confirm(again); r.Outcome != privacy.OutcomeDone {
			t.Errorf("%+v", r)
		}
		r := confirm(byKind[privacy.RequestRectification])
		if said, err := h.privacy.ShowRequest(ctx, h.machine(), r.ID); err != nil || said.Note != "please, "+mark || said.Address != "" {
			t.Errorf("the staff is shown %+v, %v", said, err)
		}
		h.wantRequests("confirmed", p.id, "access open", "do_not_sell closed done", "export open", "objection closed done", "rectification open",
			"restriction closed done", "restriction closed done")
		if r := confirm(byKind[privacy.RequestErasure]); r.State != privacy.RequestOpen || !strings.HasPrefix(r.Ref, "era_") {
			t.Errorf("%+v", r)
		}
		if to, _ := h.letter(mail.AccountClosed); to != p.email {
			t.Error("the closing is not told")
		}
		if _, err := h.accounts.SignIn(ctx, client, account.Credentials{Email: p.email, Password: password}); problem.CodeOf(err) != problem.SignInFailed {
			t.Errorf("signing in: %v", err)
		}
		// While the account is closing: erasure waits for the same, and nothing else is begun.
		r2, code := h.asked(p.email, privacy.RequestErasure)
		if r := confirm(code); r.State != privacy.RequestOpen || r.Ref == "" {
			t.Errorf("%+v", r)
		}
		_, code = h.asked(p.email, privacy.RequestExport)
		if r := confirm(code); r.Outcome != privacy.OutcomeRefused {
			t.Errorf("%+v", r)
		}
		if to, data := h.letter(mail.RequestClosed); to != p.email || !strings.Contains(data["Complaint"], "authority") {
			t.Errorf("%s is told %v", to, data)
		}
		var erasure string
		must(t, h.db.Get(ctx, &erasure, `SELECT id FROM erasures WHERE subject = ?`, p.id))
		must(t, h.erase(erasure))
		h.erased(p)
		if n := h.count(`SELECT count(*) FROM requests WHERE kind = 'erasure' AND outcome = 'done' AND closed_at > 0`); n != 2 {
			t.Errorf("%d requests for erasure are done (%s)", n, r2.ID)
		}
		var live int
		must(t, h.keys.Get(ctx, &live, `SELECT count(*) FROM keysets WHERE destroyed_at IS NULL`))
		if live != 1 { // of the one that was refused, until its address is forgotten
			t.Errorf("%d keys are left", live)
		}
		// A new sign-up of the same address is nobody that was known.
		_, code = h.asked(p.email, privacy.RequestErasure)
		if r := confirm(code); r.Outcome != privacy.OutcomeNothingHeld {
			t.Errorf("after the erasure: %+v", r)
		}
	})
}

// A mailbox alone does not destroy what a second factor guards: its owner is told, and can
// withdraw. Who has lost the factor is erased all the same.
func TestPromise_G3_ALetterErasesAGuardedAccountOnlyAfterAWhile(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		state := func(p person) subject.State {
			t.Helper()
			s, err := subject.Find(ctx, h.db, p.id)
			must(t, err)
			return s.State
		}
		var people []person
		for _, name := range []string{"ann", "ben", "cleo", "dora", "eve"} {
			p := h.newcomer(name)
			if name != "eve" {
				h.guard(p)
			}
			people = append(people, p)
		}
		lost, robbed, staffed, own, bare := people[0], people[1], people[2], people[3], people[4]
		if r := h.wrote(bare.email, privacy.RequestErasure); r.Ref == "" || !r.ActsAt.IsZero() || state(bare) != subject.Closing {
			t.Errorf("without a second factor: %+v", r)
		}
		requests := map[string]privacy.Request{}
		for _, p := range []person{lost, robbed, staffed, own} {
			r := h.wrote(p.email, privacy.RequestErasure)
			to, data := h.letter(mail.ErasureAsked)
			if want := h.clock.Now().Add(3 * 24 * time.Hour); r.State != privacy.RequestOpen || r.Ref != "" || !r.ActsAt.Equal(want) || state(p) != subject.Active ||
				to != p.email || data["ID"] != r.ID || !strings.Contains(data["Contact"], "@") || data["When"] != want.Format("2 January 2006, 15:04 UTC") {
				t.Errorf("confirmed: %+v, %s is told %v", r, to, data)
			}
			requests[p.id] = r
		}
		// Nobody else can withdraw it, and whoever can is told.
		refuses(t, "somebody else's", h.privacy.Withdraw(ctx, lost.id, requests[robbed.id].ID), problem.NotFound)
		must(t, h.privacy.Withdraw(ctx, robbed.id, requests[robbed.id].ID))
		if to, data := h.letter(mail.RequestClosed); to != robbed.email || !strings.Contains(data["Outcome"], "withdrawn") {
			t.Errorf("%s is told %v", to, data)
		}
		refuses(t, "twice", h.privacy.Withdraw(ctx, robbed.id, requests[robbed.id].ID), problem.Conflict)
		_, err := h.privacy.CloseRequest(ctx, h.machine(), requests[staffed.id].ID, privacy.OutcomeRefused, because)
		must(t, err)
		h.close(own)
		h.clock.Advance(requests[lost.id].ActsAt.Sub(h.clock.Now()) - time.Millisecond)
		must(t, h.privacy.Look(ctx, false))
		if state(lost) != subject.Active {
			t.Error("it is closed before its time")
		}
		h.clock.Advance(time.Second)
		must(t, h.privacy.Look(ctx, false))
		must(t, h.privacy.Look(ctx, false)) // once
		if state(robbed) != subject.Active || state(staffed) != subject.Active || state(lost) != subject.Closing || state(own) != subject.Closing {
			t.Errorf("the robbed is %s, the staff's %s, the lost %s, their own %s", state(robbed), state(staffed), state(lost), state(own))
		}
		h.wantRequests("withdrawn", robbed.id, "erasure closed withdrawn")
		h.wantRequests("closed by staff", staffed.id, "erasure closed refused")
		refuses(t, "what is on its way", h.privacy.Withdraw(ctx, lost.id, requests[lost.id].ID), problem.Conflict)
		var erasure string
		must(t, h.db.Get(ctx, &erasure, `SELECT ref FROM requests WHERE id = ?`, requests[lost.id].ID))
		must(t, h.erase(erasure))
		h.erased(lost)
		if n := h.count(`SELECT count(*) FROM requests WHERE id = ? AND state = 'closed' AND outcome = 'done'`, requests[lost.id].ID); n != 1 {
			t.Error("the request is not done with its erasure")
		}
		// What the staff was asked can be withdrawn too.
		asked, err := h.privacy.Ask(ctx, robbed.id, privacy.RequestAccess, "")
		must(t, err)
		must(t, h.privacy.Withdraw(ctx, robbed.id, asked.ID))
		h.wantRequests("both", robbed.id, "access closed withdrawn", "erasure closed withdrawn")
	})
}

// Two letters for one guarded account are one question: the owner is told once, both are
// done at the same time, and one answer ends both.
func TestPromise_G3_TwoLettersForAGuardedAccountHaveOneAnswer(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		wrote := func(p person) privacy.Request {
			t.Helper()
			_, code := h.asked(p.email, privacy.RequestErasure)
			r, err := h.privacy.ConfirmRequest(ctx, code)
			must(t, err)
			return r
		}
		people := map[string]person{}
		first, second := map[string]privacy.Request{}, map[string]privacy.Request{}
		for _, name := range []string{"ann", "ben", "cleo"} {
			p := h.newcomer(name)
			_, err := h.db.Exec(ctx, `UPDATE users SET totp_confirmed_at = 1 WHERE id = ?`, p.id)
			must(t, err)
			people[name], first[name] = p, wrote(p)
		}
		h.clock.Advance(2 * 24 * time.Hour)
		for name, p := range people {
			second[name] = wrote(p)
			if !second[name].ActsAt.Equal(first[name].ActsAt) || second[name].ID == first[name].ID {
				t.Errorf("the letters of %s are acted on at %s and %s", name, first[name].ActsAt, second[name].ActsAt)
			}
		}
		if n := h.letters(mail.ErasureAsked); n != 3 {
			t.Errorf("three owners are told %d times", n)
		}
		must(t, h.privacy.Withdraw(ctx, people["ben"].id, first["ben"].ID))
		_, err := h.privacy.CloseRequest(ctx, h.machine(), second["cleo"].ID, privacy.OutcomeRefused, because)
		must(t, err)
		if n := h.letters(mail.RequestClosed); n != 2 {
			t.Errorf("two owners are told %d times", n)
		}
		h.wantRequests("withdrawn", people["ben"].id, "erasure closed withdrawn", "erasure closed withdrawn")
		h.wantRequests("refused", people["cleo"].id, "erasure closed refused", "erasure closed refused")
		h.clock.Advance(24 * time.Hour)
		must(t, h.privacy.Look(ctx, false))
		for name, want := range map[string]subject.State{"ann": subject.Closing, "ben": subject.Active, "cleo": subject.Active} {
			if s, err := subject.Find(ctx, h.db, people[name].id); err != nil || s.State != want {
				t.Errorf("%s is %s, %v", name, s.State, err)
			}
		}
		var erasure string
		must(t, h.db.Get(ctx, &erasure, `SELECT id FROM erasures WHERE subject = ?`, people["ann"].id))
		must(t, h.erase(erasure))
		h.wantRequests("done", people["ann"].id, "erasure closed done", "erasure closed done")
		// What was withdrawn may be asked for again.
		told := h.letters(mail.ErasureAsked)
		if r := wrote(people["ben"]); !r.ActsAt.Equal(h.clock.Now().Add(3*24*time.Hour)) || h.letters(mail.ErasureAsked) != told+1 {
			t.Errorf("asked again: %+v", r)
		}
	})
}

// Who writes that they object ends every use that can be objected to, and mail about
// features with its consent.
func TestPromise_G5_ALetterOptsOutOfMarketing(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		agreed, never := h.newcomer("ann"), h.newcomer("ben")
		for _, purpose := range []subject.Purpose{subject.Marketing, subject.Training} {
			must(t, h.accounts.SetConsent(ctx, agreed.who, purpose, true))
		}
		may := func(p person, purpose subject.Purpose) bool { return subject.May(ctx, h.db, p.id, purpose) == nil }
		if !may(agreed, subject.Marketing) || may(never, subject.Marketing) {
			t.Fatal("the consent does not count, and this test proves nothing")
		}
		for _, p := range []person{agreed, never} {
			h.clock.Advance(time.Second)
			_, code := h.asked(p.email, privacy.RequestObjection)
			before := may(p, subject.Marketing)
			r, err := h.privacy.ConfirmRequest(ctx, code)
			if err != nil || r.Outcome != privacy.OutcomeDone || before != (p.id == agreed.id) {
				t.Errorf("%+v, %v; before the code came back: %v", r, err, before)
			}
			if may(p, subject.Marketing) || may(p, subject.Statistics) {
				t.Error("it goes on")
			}
			h.wantRequests("objected", p.id, "objection closed done")
		}
		if !may(agreed, subject.Training) {
			t.Error("another consent is gone")
		}
		if n := h.count(`SELECT count(*) FROM consents WHERE subject = ?`, never.id); n != 0 {
			t.Errorf("who never agreed has taken back %d consents", n)
		}
	})
}

// What an officer ends is not done in the same moment.
func TestAWaitingErasureThatIsWithdrawnIsNotDone(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		h.guard(p)
		r := h.wrote(p.email, privacy.RequestErasure)
		h.clock.Advance(r.ActsAt.Sub(h.clock.Now()) + time.Second)
		looked := make(chan error, 1)
		by := func(ctx context.Context, do func(tx *db.Tx) (events.Event, error)) error {
			return h.machine()(ctx, func(tx *db.Tx) (events.Event, error) {
				what, err := do(tx)
				go func() { looked <- h.privacy.Look(context.Background(), false) }()
				if tx.Dialect() == db.Postgres {
					testenv.Eventually(t, 30*time.Second, func() bool {
						return h.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
					})
				}
				return what, err
			})
		}
		_, err := h.privacy.CloseRequest(ctx, by, r.ID, privacy.OutcomeWithdrawn, because)
		must(t, err)
		must(t, <-looked)
		must(t, h.privacy.Look(ctx, false))
		s, err := subject.Find(ctx, h.db, p.id)
		if err != nil || s.State != subject.Active {
			t.Errorf("the account is %s, %v", s.State, err)
		}
		h.wantRequests("withdrawn", p.id, "erasure closed withdrawn")
	})
}

// One request that nothing can be done for keeps no other from its time.
func TestARequestThatFailsKeepsNoOtherFromItsTime(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		people := map[string]person{}
		requests := map[string]privacy.Request{}
		old := h.wrote("nobody@example.org", privacy.RequestAccess)
		h.clock.Advance(31 * 24 * time.Hour)
		for _, name := range []string{"ann", "ben"} {
			people[name] = h.newcomer(name)
			h.guard(people[name])
			requests[name] = h.wrote(people[name].email, privacy.RequestErasure)
		}
		_, err := h.db.Exec(ctx, `UPDATE requests SET subject = 'sub_gone' WHERE id = ?`, requests["ann"].ID)
		must(t, err)
		// And so many that they would be all of a round.
		_, err = h.db.Exec(ctx, `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
			INSERT INTO requests (id, subject, kind, state, origin, ref, outcome, received_at, opened_at, due_at, expires_at, closed_at, acts_at)
			SELECT 'req_00' || n.i, r.subject, r.kind, r.state, r.origin, r.ref, r.outcome, r.received_at, r.opened_at, r.due_at, r.expires_at, r.closed_at, r.acts_at
			FROM requests r, n WHERE r.id = ?`, requests["ann"].ID)
		must(t, err)
		h.clock.Advance(requests["ben"].ActsAt.Sub(h.clock.Now()) + time.Second)
		if err := h.privacy.Look(ctx, false); err == nil || len(err.Error()) > 1000 {
			t.Errorf("of requests that cannot be acted on, this is told: %v", err)
		}
		if s, err := subject.Find(ctx, h.db, people["ben"].id); err != nil || s.State != subject.Closing {
			t.Errorf("the other account is %s, %v", s.State, err)
		}
		if h.count(`SELECT count(*) FROM requests WHERE id = ? AND address IS NULL AND note IS NULL`, old.ID) != 1 {
			t.Error("what an old request said is not forgotten")
		}
		if n := h.figure("zimage_requests_open"); n != 602 {
			t.Errorf("%v requests are measured, want 602", n)
		}
	})
}

// A request is told of before its deadline and behind it, whatever its kind.
func TestPromise_R6_AlarmsOfRequests(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		r, err := h.privacy.Ask(ctx, p.id, privacy.RequestAccess, "what do you hold, "+mark)
		must(t, err)
		begun := h.clock.Now()
		age := func(d time.Duration, warned, failed bool, overdue float64) {
			t.Helper()
			h.clock.Advance(begun.Add(d).Sub(h.clock.Now()))
			must(t, h.privacy.Look(ctx, true))
			if got := strings.Contains(h.log.String(), "a request nears its deadline"); got != warned {
				t.Errorf("after %v a warning: %v", d, got)
			}
			if got := strings.Contains(h.log.String(), "a request is behind its deadline"); got != failed {
				t.Errorf("after %v an error: %v", d, got)
			}
			if h.figure("zimage_requests_overdue") != overdue || h.figure("zimage_requests_open") != 1 || h.figure("zimage_requests_oldest_seconds") != d.Seconds() {
				t.Errorf("after %v: %v overdue, %v open, the oldest %v s", d, h.figure("zimage_requests_overdue"), h.figure("zimage_requests_open"), h.figure("zimage_requests_oldest_seconds"))
			}
			list, err := h.privacy.StaffRequests(ctx, privacy.RequestsOverdue, "", 10)
			if err != nil || len(list) != int(overdue) {
				t.Errorf("after %v the staff sees %v overdue, %v", d, list, err)
			}
		}
		age(22*24*time.Hour, false, false, 0)
		age(23*24*time.Hour+time.Second, true, false, 0)
		age(30*24*time.Hour-time.Second, true, false, 0)
		age(30*24*time.Hour, true, true, 1)
		if l := h.log.String(); strings.Contains(l, mark) || !strings.Contains(l, r.ID) {
			t.Error("the log does not name the request, or what it says")
		}
		_, err = h.privacy.CloseRequest(ctx, h.machine(), r.ID, privacy.OutcomeDone, because)
		must(t, err)
		must(t, h.privacy.Look(ctx, true))
		if h.figure("zimage_requests_overdue") != 0 || h.figure("zimage_requests_open") != 0 || h.figure("zimage_requests_oldest_seconds") != 0 {
			t.Error("the figures do not tell that it is closed")
		}
	})
}

// The deadline of a letter counts from the day on which it came, not from the day on
// which somebody found it.
func TestPromise_R6_ALettersDeadlineCountsFromItsDay(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		today := h.clock.Now().UTC().Truncate(24 * time.Hour)
		opened := func(who string, received time.Time) (privacy.Request, error) {
			return h.privacy.OpenRequest(ctx, h.machine(), who+"@example.org", privacy.RequestRectification, "", received)
		}
		for what, received := range map[string]time.Time{
			"tomorrow": today.AddDate(0, 0, 1), "in a moment": h.clock.Now().Add(time.Millisecond),
			"61 days ago": today.AddDate(0, 0, -61), "a moment more than 60 days ago": today.AddDate(0, 0, -60).Add(-time.Millisecond),
		} {
			_, err := opened("refused", received)
			refuses(t, what, err, problem.InvalidRequest)
		}
		if h.count(`SELECT count(*) FROM requests`) != 0 {
			t.Error("what was refused is there")
		}
		for who, received := range map[string]time.Time{"now": h.clock.Now(), "today": today, "lain": today.AddDate(0, 0, -29), "late": today.AddDate(0, 0, -30), "oldest": today.AddDate(0, 0, -60)} {
			r, err := opened(who, received)
			must(t, err)
			if late := who == "late" || who == "oldest"; !r.Received.Equal(received) || !r.DueAt.Equal(received.AddDate(0, 0, 30)) || !r.OpenedAt.Equal(h.clock.Now()) || r.Overdue != late {
				t.Errorf("%s: %+v", who, r)
			}
		}
		overdue, err := h.privacy.StaffRequests(ctx, privacy.RequestsOverdue, "", 10)
		if err != nil || len(overdue) != 2 {
			t.Errorf("%d are overdue, want 2 (%v)", len(overdue), err)
		}
		must(t, h.privacy.Look(ctx, true))
		if got, want := h.figure("zimage_requests_oldest_seconds"), h.clock.Now().Sub(today.AddDate(0, 0, -60)).Seconds(); got != want {
			t.Errorf("the oldest is %v s old, want %v", got, want)
		}
		// The person sees the same.
		p := h.newcomer("ann")
		h.clock.Advance(time.Millisecond)
		r, err := h.privacy.OpenRequest(ctx, h.machine(), p.email, privacy.RequestRectification, "", today.AddDate(0, 0, -5))
		must(t, err)
		_, data := h.letter(mail.RequestConfirm)
		_, err = h.privacy.ConfirmRequest(ctx, data["Code"])
		must(t, err)
		list, _, err := h.privacy.Requests(ctx, p.id, "", 10)
		if err != nil || len(list) != 1 || !list[0].Received.Equal(r.Received) || !list[0].DueAt.Equal(today.AddDate(0, 0, 25)) {
			t.Errorf("the person sees %+v, %v", list, err)
		}
		// What people ask themselves has come when it was asked.
		asked, err := h.privacy.Ask(ctx, p.id, privacy.RequestAccess, "")
		if err != nil || !asked.Received.Equal(asked.OpenedAt) || !asked.Received.Equal(h.clock.Now()) {
			t.Errorf("%+v, %v", asked, err)
		}
	})
}

// Staff answer a correction: with what the person wrote, a reason, and a mail.
func TestPromise_G2_CorrectionOnRequest(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		for what, note := range map[string]string{"nothing": " \n ", "too much": strings.Repeat("x", 2001), "a bell": "a\a"} {
			_, err := h.privacy.Ask(ctx, p.id, privacy.RequestRectification, note)
			refuses(t, what, err, problem.InvalidRequest)
		}
		_, err := h.privacy.Ask(ctx, p.id, privacy.RequestErasure, "x")
		refuses(t, "another kind", err, problem.InvalidRequest)
		var last privacy.Request
		for range 5 {
			last, err = h.privacy.Ask(ctx, p.id, privacy.RequestRectification, "Ann with one n,\n"+mark)
			must(t, err)
		}
		_, err = h.privacy.Ask(ctx, p.id, privacy.RequestAccess, "")
		refuses(t, "six at once", err, problem.Conflict)
		var refusal *problem.Error
		if !errors.As(err, &refusal) || !refusal.Right {
			t.Error("G10: the refusal does not say how to complain")
		}
		if h.found(mark)["main/requests"] != 0 {
			t.Error("what was asked stands there readable")
		}
		if _, err := h.privacy.ShowRequest(ctx, h.accounts.Officer(account.AtTheMachine(), "short"), last.ID); err == nil {
			t.Error("it is opened without a reason")
		}
		said, err := h.privacy.ShowRequest(ctx, h.machine(), last.ID)
		if err != nil || said.Note != "Ann with one n,\n"+mark {
			t.Errorf("%+v, %v", said, err)
		}
		for what, c := range map[string]struct {
			id      string
			outcome privacy.RequestOutcome
			want    problem.Code
		}{"another outcome": {last.ID, privacy.OutcomeUnconfirmed, problem.InvalidRequest}, "no such request": {"req_x", privacy.OutcomeDone, problem.NotFound}} {
			_, err := h.privacy.CloseRequest(ctx, h.machine(), c.id, c.outcome, because)
			refuses(t, what, err, c.want)
		}
		for _, outcome := range []privacy.RequestOutcome{privacy.OutcomeDone, privacy.OutcomeRefused} {
			var id string
			must(t, h.db.Get(ctx, &id, `SELECT id FROM requests WHERE state = 'open' ORDER BY id DESC LIMIT 1`))
			h.clock.Advance(time.Millisecond)
			closed, err := h.privacy.CloseRequest(ctx, h.machine(), id, outcome, because)
			if err != nil || closed.State != privacy.RequestClosed || closed.Outcome != outcome || closed.ClosedAt.IsZero() {
				t.Errorf("%+v, %v", closed, err)
			}
			to, data := h.letter(mail.RequestClosed)
			if to != p.email || data["Reason"] != because || !strings.Contains(data["Complaint"], "authority") || data["Outcome"] == "" {
				t.Errorf("%s is told %v", to, data)
			}
			_, err = h.privacy.CloseRequest(ctx, h.machine(), id, outcome, because)
			refuses(t, "closing twice", err, problem.Conflict)
		}
		// Nobody is written to whose address nobody has confirmed.
		unproved, _ := h.asked("else@example.org", privacy.RequestAccess)
		_, err = h.privacy.CloseRequest(ctx, h.machine(), unproved.ID, privacy.OutcomeDone, because)
		refuses(t, "done without a proof", err, problem.Conflict)
		before := h.letters(mail.RequestClosed)
		_, err = h.privacy.CloseRequest(ctx, h.machine(), unproved.ID, privacy.OutcomeRefused, because)
		if err != nil || h.letters(mail.RequestClosed) != before {
			t.Errorf("an address that nobody has confirmed is written to, or %v", err)
		}
	})
}
