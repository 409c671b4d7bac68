package privacy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Record is the record of processing activities after Article 30 GDPR, made from
// policy and data map: what is in neither of them is not done.
type Record struct {
	Policy     string            `json:"policy_version"`
	Date       string            `json:"policy_date"`
	Controller RecordParty       `json:"controller"`
	DPO        string            `json:"data_protection_officer"`
	Privacy    string            `json:"privacy_contact"`
	Authority  string            `json:"authority,omitempty"`
	Activities []RecordActivity  `json:"activities"`
	Recipients []RecordRecipient `json:"recipients"`
	Off        []string          `json:"in_the_register_and_given_nothing"`
	Transfers  []RecordTransfer  `json:"transfers"`
	Windows    map[string]string `json:"windows"`
	Security   []string          `json:"security"`
	Inventory  []RecordEntry     `json:"inventory"`
}

// A RecordParty can be reached.
type RecordParty struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// A RecordActivity is a purpose with everything that is kept for it.
type RecordActivity struct {
	ID         string   `json:"purpose"`
	Name       string   `json:"name"`
	Words      string   `json:"words"`
	Basis      string   `json:"basis"` // empty: nothing of a person is kept for it
	People     []string `json:"people"`
	Categories []string `json:"categories"` // of data
	Recipients []string `json:"recipients"` // of the register, by their ids
	Entries    []string `json:"entries"`    // of the inventory, by their names
}

// A RecordRecipient is a processor that is given data.
type RecordRecipient struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	Purpose    string   `json:"purpose"`
	Purposes   []string `json:"purposes"` // for which it is given data, by their ids
	Categories []string `json:"categories"`
	Contract   string   `json:"contract"`
	Date       string   `json:"contract_date"`
}

// A RecordTransfer is where data goes, and what protects it there.
type RecordTransfer struct {
	Recipient string `json:"recipient"`
	Place     string `json:"place"`
	Safeguard string `json:"safeguard"`
}

// A RecordEntry is one thing of the data map.
type RecordEntry struct {
	Name     string       `json:"name"`
	Kind     string       `json:"kind"` // table, object, redis, file, job, mail, log value, figure, cookie or engine
	Holds    string       `json:"holds"`
	Whose    string       `json:"whose"`
	Category string       `json:"category,omitempty"`
	Purposes []string     `json:"purposes"`
	Kept     []string     `json:"kept"`
	Erased   string       `json:"erased"`
	Parts    []RecordPart `json:"parts,omitempty"` // columns, or what a mail shows
}

// A RecordPart is a column, or a value that something shows.
type RecordPart struct {
	Name      string `json:"name"`
	Holds     string `json:"holds"`
	Protected string `json:"protected,omitempty"`
}

// NewRecord makes the record of an installation.
func NewRecord(s Statement, m *Map) Record {
	r := Record{
		Policy: s.Version, Date: s.Date.Format(time.DateOnly), Controller: RecordParty(s.Controller), DPO: s.Contacts.DPO, Privacy: s.Contacts.Privacy,
		Windows: map[string]string{
			"generated_content": s.Windows.GeneratedContent.String(), "deletion": s.Windows.Deletion.String(),
			"usage": s.Windows.Usage.String(), "support": s.Windows.Support.String(), "backups": s.Backups.String(),
		},
		Recipients: []RecordRecipient{}, Off: []string{}, Transfers: []RecordTransfer{}, Security: security(s), Inventory: inventory(s.Policy, m),
	}
	if s.Authority.Name != "" {
		r.Authority = s.Authority.Name + ", " + s.Authority.URL
	}
	for _, p := range s.On() {
		one := RecordRecipient{ID: p.ID, Name: p.Name, Purpose: p.Purpose, Categories: p.Categories, Contract: p.Contract, Date: p.ContractDate.Format(time.DateOnly)}
		for _, id := range p.Purposes {
			one.Purposes = append(one.Purposes, string(id))
		}
		r.Recipients = append(r.Recipients, one)
		r.Transfers = append(r.Transfers, RecordTransfer{p.Name, p.Place, p.Safeguard})
	}
	for _, p := range s.Off() {
		r.Off = append(r.Off, p.Name)
	}
	for _, p := range s.Purposes {
		r.Activities = append(r.Activities, r.activity(m, string(p.ID), p.Name, p.Words, basisWords[p.Basis]))
	}
	r.Activities = append(r.Activities, r.activity(m, Operate, "Running the service", "What holds nothing of a person: versions, times, names of machines and their parts.", ""))
	return r
}

var basisWords = map[Basis]string{
	Contract:            "contract, Article 6(1)(b) GDPR",
	LegalObligation:     "legal obligation, Article 6(1)(c) GDPR",
	WithConsent:         "consent, Article 6(1)(a) GDPR",
	LegitimateInterests: "legitimate interests, Article 6(1)(f) GDPR",
}

func (r *Record) activity(m *Map, id, name, words, basis string) RecordActivity {
	a := RecordActivity{ID: id, Name: name, Words: words, Basis: basis, People: []string{}, Categories: []string{}, Recipients: []string{}, Entries: []string{}}
	once := func(list *[]string, word string) {
		if word != "" && !slices.Contains(*list, word) {
			*list = append(*list, word)
		}
	}
	for _, e := range r.Inventory {
		if slices.Contains(e.Purposes, id) {
			a.Entries = append(a.Entries, e.Name)
			once(&a.Categories, e.Category)
		}
	}
	for _, p := range r.Recipients {
		if slices.Contains(p.Purposes, id) {
			a.Recipients = append(a.Recipients, p.ID)
		}
	}
	if id == Operate || len(a.Entries) == 0 {
		return a
	}
	a.People = append(a.People, "people with an account, members of staff among them")
	if t := m.Table(StoreMain, "signups"); t != nil && slices.Contains(t.Purposes, id) {
		a.People = append(a.People, "people who asked for an account and have not confirmed it")
	}
	return a
}

// security are the measures, with what weakens them here.
func security(s Statement) []string {
	list := []string{
		"In transit: TLS 1.3 with verified certificates on every hop between machines.",
	}
	for _, e := range s.Exceptions() {
		list = append(list, "Exception from that: "+e.Hop+", "+e.Words+".")
	}
	list = append(list,
		"At rest: what can hold words or pictures of a person is sealed with AES-256-GCM under a key of that person's own; the inventory says of each column how it is protected.",
		"Keys lie in a store of their own, wrapped by roots that lie in neither; destroying a person's key makes every copy unreadable, in backups from then on and, once the roots of that time are retired, in all.",
		"Disks as a whole: "+cmp.Or(s.VolumeEncryption, "the operator has declared no encryption")+".",
		"Engines that make the pictures keep of a request by themselves, at most: "+cmp.Or(s.EnginesKeep, "nothing")+".",
		"Access: members of staff have a role and two factors and give a reason, which stands in a ledger that its person sees and nobody changes unseen.",
		"Passwords: Argon2id with a salt of their own. Look-ups by address go by keyed hashes.",
		"Deletion: by the windows, by people themselves, and by the erasure of an account, which ends with a signed receipt; `zimage prove` shows it on the running installation, and /v1/privacy/status what is late.",
		"Logs and figures hold ids, codes and counts alone.",
	)
	return list
}

// inventory is everything in the map, in its order.
func inventory(p Policy, m *Map) []RecordEntry {
	var all []RecordEntry
	for _, t := range m.Tables {
		e := RecordEntry{Name: "table " + t.Store + "." + t.Name, Kind: "table", Holds: t.Holds, Whose: cmp.Or(t.Nobody, "the person's"),
			Category: t.Category, Purposes: t.Purposes, Erased: eraseWords(t.Erase)}
		for _, k := range t.Keep {
			e.Kept = append(e.Kept, k.words(p))
		}
		for _, c := range t.Columns {
			e.Parts = append(e.Parts, RecordPart{c.Name, c.Holds, protection(c)})
		}
		all = append(all, e)
	}
	add := func(kind, name, whose, category string, e Entry, parts ...RecordPart) {
		all = append(all, RecordEntry{Name: kind + " " + name, Kind: kind, Holds: e.Holds, Whose: whose, Category: category,
			Purposes: e.Purposes, Kept: []string{e.Kept}, Erased: e.Erased, Parts: parts})
	}
	for _, o := range m.Objects {
		add("object", o.Key.String(), cmp.Or(o.Nobody, "the person's"), o.Category, o.Entry)
	}
	for _, r := range m.Redis {
		add("redis", r.Key.String()+r.Channel.String(), "", "", r.Entry)
	}
	for _, f := range m.Files {
		add("file", f.File.String(), "", "", f.Entry)
	}
	for _, t := range m.Tasks.Types {
		e := m.Tasks.Entry
		e.Holds = t.Does + " Its job names " + t.Ref + ", for " + t.Party + "."
		add("job", t.Name, "", "", e)
	}
	named := func(list []Named) (parts []RecordPart) {
		for _, n := range list {
			parts = append(parts, RecordPart{Name: n.Name, Holds: n.Holds})
		}
		return parts
	}
	for _, t := range m.Mails.Templates {
		add("mail", t.Name, "its receiver's", "communication", m.Mails.Entry, named(slices.Concat(m.Mails.Always, t.Data))...)
	}
	for _, n := range m.Logs.Attributes {
		e := m.Logs.Entry
		e.Holds = n.Holds
		add("log value", n.Name, "", "", e)
	}
	for _, f := range m.Metrics.Figures {
		var parts []RecordPart
		for _, l := range m.Metrics.Labels {
			if slices.Contains(f.Labels, l.Name) {
				parts = append(parts, RecordPart{Name: l.Name, Holds: l.Holds})
			}
		}
		add("figure", f.Name, "nobody's", "", m.Metrics.Entry, parts...)
	}
	for _, c := range m.Cookies {
		add("cookie", c.Name, "the person's", "", c.Entry)
	}
	for _, e := range m.Engines {
		add("engine", e.Kind, "", "", e.Entry)
	}
	return all
}

func eraseWords(e *Erase) string {
	switch {
	case e == nil:
		return "Nothing of anybody is in it."
	case e.Do == Retain:
		return "Kept. " + e.Basis + " Until: " + e.Until
	case e.Do == Shred:
		return "Unreadable once the key is destroyed; the rows go later."
	}
	return "Deleted."
}

func protection(c Column) string {
	switch {
	case c.Sealed != "":
		return "sealed with the person's key"
	case c.Hashed != "":
		return "hashed, " + c.Hashed
	case c.Wrapped != "":
		return "wrapped " + c.Wrapped
	}
	return "readable, since " + c.Plain
}

// recordKinds are the kinds of entries, as one and as many are called.
var recordKinds = []struct{ one, many string }{
	{"table", "Tables"}, {"object", "Objects"}, {"redis", "In Redis"}, {"file", "Files"}, {"job", "Jobs"}, {"mail", "Mails"},
	{"log value", "Log values"}, {"figure", "Figures"}, {"cookie", "Cookies"}, {"engine", "Engines"},
}

// Markdown is the record for people.
func (r Record) Markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	item := func(name string, values ...string) {
		if len(values) > 0 {
			line("- **%s:** %s", name, strings.Join(values, "; "))
		}
	}
	cell := func(text string) string {
		return strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(text, "\n", " "), "|", "\\|"), "<", "&lt;")
	}
	line("# Record of processing activities\n\nAfter Article 30 GDPR, from version %s of the privacy policy, in force since %s, and the data map of the program.\n", r.Policy, r.Date)
	item("Controller", r.Controller.Name, cell(r.Controller.Address))
	item("Data Protection Officer", r.DPO)
	item("Privacy", r.Privacy)
	if r.Authority != "" {
		item("Supervised by", r.Authority)
	}
	line("\n## Activities")
	for _, a := range r.Activities {
		line("\n### %s (`%s`)\n\n%s\n", a.Name, a.ID, a.Words)
		item("Legal basis", cmp.Or(a.Basis, "none needed: nothing of a person"))
		item("People", a.People...)
		item("Categories of data", a.Categories...)
		item("Recipients", cmp.Or(strings.Join(a.Recipients, ", "), "none"))
		if len(a.Entries) == 0 {
			item("What is kept for it", "nothing: this version of the program keeps nothing for it")
		}
		for _, kind := range recordKinds {
			var names []string
			for _, e := range a.Entries {
				if name, ok := strings.CutPrefix(e, kind.one+" "); ok {
					names = append(names, "`"+name+"`")
				}
			}
			if len(names) > 0 {
				item(kind.many, strings.Join(names, ", "))
			}
		}
	}
	line("\n## Recipients\n")
	for _, p := range r.Recipients {
		line("- **%s** (`%s`): %s For: %s. Data: %s. Contract: %s, of %s.", p.Name, p.ID, p.Purpose, strings.Join(p.Purposes, ", "), strings.Join(p.Categories, ", "), p.Contract, p.Date)
	}
	if len(r.Recipients) == 0 {
		line("No processor is given data.")
	}
	if len(r.Off) > 0 {
		line("\nIn the register without a contract, and given nothing: %s.", strings.Join(r.Off, ", "))
	}
	line("\n## Transfers\n")
	for _, t := range r.Transfers {
		line("- %s: %s. Safeguard: %s", t.Recipient, t.Place, t.Safeguard)
	}
	if len(r.Transfers) == 0 {
		line("None.")
	}
	line("\n## Windows\n")
	for _, name := range []string{"generated_content", "usage", "support", "deletion", "backups"} {
		line("- `%s`: %s", name, r.Windows[name])
	}
	line("\n## Security measures\n")
	for _, s := range r.Security {
		line("- %s", s)
	}
	line("\n## Inventory")
	for _, e := range r.Inventory {
		line("\n### `%s`\n\n%s\n", e.Name, cell(e.Holds))
		if e.Whose != "" {
			item("Whose", cell(e.Whose))
		}
		if e.Category != "" {
			item("Category", e.Category)
		}
		item("Purposes", e.Purposes...)
		item("Kept", cell(strings.Join(e.Kept, "; ")))
		item("When an account is erased", cell(e.Erased))
		if len(e.Parts) > 0 {
			line("\n| part | holds | protected |\n|---|---|---|")
			for _, p := range e.Parts {
				line("| `%s` | %s | %s |", p.Name, cell(p.Holds), cell(p.Protected))
			}
		}
	}
	return b.String()
}
