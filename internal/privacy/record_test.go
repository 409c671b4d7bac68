package privacy_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/vault"
)

// described is a statement with one processor that is on, and three that lack
// something of a contract.
func described(t *testing.T) privacy.Statement {
	t.Helper()
	text := strings.Replace(string(privacy.Example), "processors: []", `processors:
  - {id: mail, name: Gull Mail Ltd, purpose: Delivers mails., purposes: [account, notice, marketing], categories: [mail address], place: Ireland, safeguard: None needed., contract: Agreement 17, contract_date: 2026-02-03}
  - {id: payments, name: Coin Ltd, purpose: Takes payments., purposes: [account], categories: [card], place: Nowhere, safeguard: Hope.}
`, 1)
	p, err := privacy.ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return privacy.Statement{Policy: p, Installation: privacy.Installation{URL: "https://images.example.org", Plain: []string{"smtp"}, EnginesKeep: "memory"}}
}

// Every entry of the map stands in the record under each of its purposes, with all
// of its columns, how they are protected, how long it is kept and what an erasure
// does.
func TestPromise_G9_TheRecordCoversTheMap(t *testing.T) {
	t.Parallel()
	m, s := dataMap(t), described(t)
	r := privacy.NewRecord(s, m)
	text := r.Markdown()
	inventory := map[string]privacy.RecordEntry{}
	for _, e := range r.Inventory {
		if _, twice := inventory[e.Name]; twice {
			t.Errorf("%s stands there twice", e.Name)
		}
		inventory[e.Name] = e
	}
	wanted := 0
	want := func(name string, purposes []string, parts ...string) {
		t.Helper()
		wanted++
		e, ok := inventory[name]
		if !ok || e.Holds == "" || len(e.Kept) == 0 || e.Kept[0] == "" || e.Erased == "" {
			t.Errorf("of %s the record says %+v", name, e)
			return
		}
		if !strings.Contains(text, "### `"+name+"`\n") {
			t.Errorf("%s is not in the Markdown", name)
		}
		for _, id := range purposes {
			i := slices.IndexFunc(r.Activities, func(a privacy.RecordActivity) bool { return a.ID == id })
			if i < 0 || !slices.Contains(r.Activities[i].Entries, name) {
				t.Errorf("%s is missing under its purpose %s", name, id)
			}
		}
		for _, part := range parts {
			if !slices.ContainsFunc(e.Parts, func(p privacy.RecordPart) bool {
				return p.Name == part && p.Holds != "" && (e.Kind != "table" || p.Protected != "")
			}) {
				t.Errorf("%s: %s is missing", name, part)
			}
		}
	}
	for _, table := range m.Tables {
		var columns []string
		for _, c := range table.Columns {
			columns = append(columns, c.Name)
		}
		want("table "+table.Store+"."+table.Name, table.Purposes, columns...)
		if e := inventory["table "+table.Store+"."+table.Name]; len(e.Kept) != len(table.Keep) || len(e.Parts) != len(table.Columns) {
			t.Errorf("%s: %d windows and %d columns", table.Name, len(e.Kept), len(e.Parts))
		}
	}
	for _, o := range m.Objects {
		want("object "+o.Key.String(), o.Purposes)
	}
	for _, x := range m.Redis {
		want("redis "+x.Key.String()+x.Channel.String(), x.Purposes)
	}
	for _, f := range m.Files {
		want("file "+f.File.String(), f.Purposes)
	}
	for _, x := range m.Tasks.Types {
		want("job "+x.Name, m.Tasks.Purposes)
	}
	for _, x := range m.Mails.Templates {
		var shown []string
		for _, d := range append(slices.Clone(m.Mails.Always), x.Data...) {
			shown = append(shown, d.Name)
		}
		want("mail "+x.Name, m.Mails.Purposes, shown...)
	}
	for _, a := range m.Logs.Attributes {
		want("log value "+a.Name, m.Logs.Purposes)
	}
	for _, f := range m.Metrics.Figures {
		want("figure "+f.Name, m.Metrics.Purposes, f.Labels...)
	}
	for _, c := range m.Cookies {
		want("cookie "+c.Name, c.Purposes)
	}
	for _, e := range m.Engines {
		want("engine "+e.Kind, e.Purposes)
	}
	if wanted != len(r.Inventory) {
		t.Errorf("the record has %d entries, the map %d", len(r.Inventory), wanted)
	}
	for _, p := range s.Purposes {
		i := slices.IndexFunc(r.Activities, func(a privacy.RecordActivity) bool { return a.ID == string(p.ID) })
		if i < 0 || r.Activities[i].Basis == "" || r.Activities[i].Words != p.Words || !strings.Contains(text, "(`"+string(p.ID)+"`)") {
			t.Errorf("the purpose %s is missing", p.ID)
		}
	}
	// What Article 30(1) asks for.
	for _, part := range []string{"**Controller:** " + s.Controller.Name, "**Data Protection Officer:** " + s.Contacts.DPO, "**Legal basis:** contract, Article 6(1)(b) GDPR",
		"**Categories of data:**", "**People:**", "## Recipients", "## Transfers", "## Windows", "`generated_content`: 90 days", "## Security measures", "Exception from that: smtp"} {
		if !strings.Contains(text, part) {
			t.Errorf("the record lacks %q", part)
		}
	}
	var again privacy.Record
	written, err := json.Marshal(r)
	if err != nil || json.Unmarshal(written, &again) != nil || len(again.Inventory) != len(r.Inventory) {
		t.Errorf("as JSON: %v", err)
	}
}

// A window of the policy is the record's, too.
func TestPromise_P1_TheRecordFollowsThePolicy(t *testing.T) {
	t.Parallel()
	p, err := privacy.ParsePolicy([]byte(strings.Replace(string(privacy.Example), "generated_content: 90 days", "generated_content: 60 days", 1)))
	if err != nil {
		t.Fatal(err)
	}
	text := privacy.NewRecord(privacy.Statement{Policy: p}, dataMap(t)).Markdown()
	if !strings.Contains(text, "60 days from created_at, then without request, seed, model") || strings.Contains(text, "90 days from created_at") {
		t.Error("the record does not say 60 days")
	}
}

// Who has no contract with a date is no recipient, in the record as on the page.
func TestPromise_D7_WithoutAContractNothingIsReceived(t *testing.T) {
	t.Parallel()
	s := described(t)
	r := privacy.NewRecord(s, dataMap(t))
	if len(r.Recipients) != 1 || r.Recipients[0].ID != "mail" || r.Recipients[0].Contract != "Agreement 17" || r.Recipients[0].Date != "2026-02-03" {
		t.Errorf("recipients are %+v", r.Recipients)
	}
	if !slices.Equal(r.Off, []string{"Coin Ltd"}) {
		t.Errorf("off are %v", r.Off)
	}
	for _, a := range r.Activities {
		if slices.Contains(a.Recipients, "payments") {
			t.Errorf("%s goes to who has no contract", a.ID)
		}
	}
	if s.Processor("mail").On() != true || s.Processor("payments").On() || s.Processor("unknown").On() {
		t.Error("who is on is not who has a contract")
	}
	for _, one := range []privacy.Processor{{Contract: "x"}, {ContractDate: s.Date}} {
		if one.On() {
			t.Errorf("%+v is on", one)
		}
	}
}

// Who receives something for one purpose receives nothing for another.
func TestPromise_D1_EachPurposeHasItsOwnRecipients(t *testing.T) {
	t.Parallel()
	r := privacy.NewRecord(described(t), dataMap(t))
	for _, a := range r.Activities {
		var want []string
		if a.ID == "account" || a.ID == "notice" || a.ID == "marketing" {
			want = []string{"mail"}
		}
		if !slices.Equal(a.Recipients, want) {
			t.Errorf("%s: received by %v, want %v", a.ID, a.Recipients, want)
		}
	}
	if text := r.Markdown(); !strings.Contains(text, "- **Gull Mail Ltd** (`mail`): Delivers mails. For: account, notice, marketing. Data: mail address.") {
		t.Error("the list of recipients does not say for which purposes")
	}
}

// Where each recipient is, and what protects the data there.
func TestPromise_I1_TransfersAreThoseOfTheRegister(t *testing.T) {
	t.Parallel()
	s := described(t)
	r := privacy.NewRecord(s, dataMap(t))
	if want := []privacy.RecordTransfer{{Recipient: "Gull Mail Ltd", Place: "Ireland", Safeguard: "None needed."}}; !slices.Equal(r.Transfers, want) {
		t.Errorf("transfers are %+v", r.Transfers)
	}
	s.Processors = nil
	if text := privacy.NewRecord(s, dataMap(t)).Markdown(); !strings.Contains(text, "## Transfers\n\nNone.") || !strings.Contains(text, "No processor is given data.") {
		t.Error("without processors the record names some")
	}
}

// The spans that the map promises are those by which the rooms delete.
func TestTheMapsSpansAreThoseOfTheRooms(t *testing.T) {
	t.Parallel()
	m := dataMap(t)
	for _, c := range []struct {
		store, table, from string
		then               privacy.Action
		is                 time.Duration
	}{
		{privacy.StoreMain, "exports", "removed_at", privacy.Delete, privacy.RemovedExportKept},
		{privacy.StoreMain, "api_keys", "revoked_at", privacy.Delete, account.KeyKept},
		{privacy.StoreMain, "api_keys", "expires_at", privacy.Delete, account.KeyKept},
		{privacy.StoreMain, "sessions", "last_used_at", privacy.Delete, account.DeviceKept},
		{privacy.StoreMain, "erasures", "completed_at", privacy.Delete, privacy.ReceiptKept},
		{privacy.StoreMain, "requests", "closed_at", privacy.Null, privacy.RequestWordsKept},
		{privacy.StoreMain, "requests", "closed_at", privacy.Delete, privacy.RequestKept},
		{privacy.StoreMain, "generations", "removed_at", privacy.Delete, generate.TombstoneKept},
		{privacy.StoreMain, "images", "removed_at", privacy.Delete, generate.TombstoneKept},
		{privacy.StoreMain, "idempotency_keys", "created_at", privacy.Delete, generate.IdempotentKept},
		{privacy.StoreMain, "mails", "accepted_at", privacy.Delete, mail.RowKept},
		{privacy.StoreMain, "mails", "failed_at", privacy.Delete, mail.RowKept},
		{privacy.StoreMain, "jobs", "finished_at", privacy.Delete, jobs.EndedKept},
		{privacy.StoreMain, "schedule_ticks", "at", privacy.Delete, jobs.TicksKept},
		{privacy.StoreMain, "workers", "seen_at", privacy.Delete, jobs.WorkersKept},
		{privacy.StoreMain, "engines", "seen_at", privacy.Delete, generate.EnginesKept},
		{privacy.StoreKeys, "key_rings", "seen_at", privacy.Delete, vault.RingsKept},
	} {
		found := 0
		for _, k := range m.Table(c.store, c.table).Keep {
			if k.For != "" && k.From == c.from && k.Then == c.then {
				found++
				if k.Span() != c.is {
					t.Errorf("%s from %s: the map says %v, the room %v", c.table, c.from, k.Span(), c.is)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s from %s: %d rules", c.table, c.from, found)
		}
	}
	// And every span of the map is one of these, or of the policy.
	others := map[string]string{
		"mails": "0s: in the transaction that ends the mail",
	}
	checked := []string{"exports", "api_keys", "sessions", "erasures", "requests", "generations", "images", "idempotency_keys", "mails", "webhook_once", "webhook_hosts", "webhook_events", "webhook_deliveries", "webhook_attempts", "jobs", "schedule_ticks", "workers", "engines", "key_rings"}
	for _, table := range m.Tables {
		for _, k := range table.Keep {
			if k.For != "" && !slices.Contains(checked, table.Name) && others[table.Name] == "" {
				t.Errorf("%s is kept for %s: nobody compares that with the room", table.Name, k.For)
			}
		}
	}
	// The journal's is made of two of the policy's, whatever they are.
	theirs := privacy.DefaultPolicy()
	theirs.Windows.Deletion, theirs.Backups = privacy.Days(20), privacy.Days(9)
	for p, want := range map[*privacy.Policy]string{new(privacy.DefaultPolicy()): "58 days", &theirs: "29 days"} {
		r := privacy.NewRecord(privacy.Statement{Policy: *p}, m)
		i := slices.IndexFunc(r.Inventory, func(e privacy.RecordEntry) bool { return e.Name == "table keys.erasure_journal" })
		if i < 0 || len(r.Inventory[i].Kept) != 1 || !strings.HasPrefix(r.Inventory[i].Kept[0], want+" from at") {
			t.Errorf("the journal is kept for %v, want %s", r.Inventory[i].Kept, want)
		}
	}
	// What stands in words.
	for text, word := range map[string]string{
		m.Table(privacy.StoreMain, "signups").Keep[0].Why:            hours(account.SignUpKept),
		m.Table(privacy.StoreMain, "mailed_links").Keep[0].Why:       hours(account.SignUpKept),
		m.Table(privacy.StoreMain, "exports").Keep[1].Why:            "7 days",
		m.Table(privacy.StoreMain, "passkey_challenges").Keep[0].Why: "five minutes",
		m.Files[fileNamed(m, "DATA/mail/<mail>.eml")].Kept:           hours(mail.FileKept),
		m.Cookies[0].Kept: "90 days",
	} {
		if !strings.Contains(text, word) {
			t.Errorf("%q does not say %s", text, word)
		}
	}
	if privacy.ExportKept != 7*day || account.ChallengeKept.Minutes() != 5 || account.DeviceKept != 90*day {
		t.Errorf("exports, challenges and devices are kept for %v, %v and %v", privacy.ExportKept, account.ChallengeKept, account.DeviceKept)
	}
}

func hours(d time.Duration) string { return fmt.Sprintf("%d hours", int(d.Hours())) }

func fileNamed(m *privacy.Map, name string) int {
	return slices.IndexFunc(m.Files, func(f privacy.DataFile) bool { return f.File.String() == name })
}
