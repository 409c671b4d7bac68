package web

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"zimage/internal/clock"
	"zimage/internal/privacy"
)

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// theirs is a policy in which every value differs from the shipped one.
const theirs = `version: v7
date: 2026-04-30
changes: |
  Pictures are kept for a shorter time.
  A company <b>mails</b> for us.
controller: {name: Lighthouse & Sons, address: "1 Harbour Road\nPort Example"}
contacts: {privacy: privacy@lighthouse.test, dpo: officer@lighthouse.test, security: holes@lighthouse.test}
authority: {name: Harbour Commission, url: "https://commission.test/complain?a=1&b=2"}
windows: {generated_content: 45 days, deletion: 21 days, usage: 6 months, support: 18 months}
backups: 14 days
volume_encryption: LUKS on every server
purposes:
  - {id: read, name: n-read, words: w-read, basis: contract}
  - {id: account, name: n-account, words: w-account, basis: contract}
  - {id: notice, name: n-notice, words: w-notice, basis: legal_obligation}
  - {id: generate, name: n-generate, words: w-generate, basis: contract}
  - {id: deliver, name: n-deliver, words: w-deliver, basis: contract}
  - {id: marketing, name: n-marketing, words: w-marketing, basis: consent}
  - {id: training, name: n-training, words: w-training, basis: consent}
  - {id: analytics, name: n-analytics, words: w-analytics, basis: consent}
  - {id: profiling, name: n-profiling, words: w-profiling, basis: consent}
  - {id: statistics, name: n-statistics, words: w-statistics, basis: legitimate_interests}
processors:
  - {id: mail, name: Gull Mail Ltd, purpose: Delivers mail., purposes: [notice, account], categories: [mail address, content of the mail], place: Ireland,
     safeguard: None needed., contract: Agreement 17, contract_date: 2026-02-03}
  - {id: hosting, name: Reef Hosting Inc, purpose: Runs servers., purposes: [generate], categories: [ciphertext], place: United States,
     safeguard: Standard contractual clauses, contract: Agreement 18, contract_date: 2026-03-04}
  - {id: payments, name: Coin Ltd, purpose: Takes payments., purposes: [account], categories: [card], place: Nowhere, safeguard: S-payments}
`

func parsed(t *testing.T, text string) privacy.Policy {
	t.Helper()
	p, err := privacy.ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func at(p privacy.Policy) privacy.Statement {
	return privacy.Statement{Policy: p, Installation: privacy.Installation{URL: "https://images.example.org", EnginesKeep: "nothing"}}
}

// fetch is one page, as it is served.
func fetch(t *testing.T, s privacy.Statement, now *clock.Clock, path string) (http.Header, string) {
	t.Helper()
	pages, err := New(Options{Policy: s, Clock: now})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	pages[path].ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%s answers %d", path, w.Code)
	}
	return w.Header(), w.Body.String()
}

// A document is a page as a reader's program sees it.
type document struct {
	t    *testing.T
	root *html.Node
}

func page(t *testing.T, s privacy.Statement) document {
	t.Helper()
	_, text := fetch(t, s, clock.Manual(start), "/privacy")
	root, err := html.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return document{t, root}
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func text(n *html.Node) string {
	var b strings.Builder
	for c := range n.Descendants() {
		if c.Type == html.TextNode {
			b.WriteString(c.Data)
		}
	}
	return strings.TrimSpace(b.String())
}

// find is the first element for which ok holds; nil when there is none.
func find(from *html.Node, ok func(*html.Node) bool) *html.Node {
	for n := range from.Descendants() {
		if n.Type == html.ElementNode && ok(n) {
			return n
		}
	}
	return nil
}

func (d document) id(id string) *html.Node {
	return find(d.root, func(n *html.Node) bool { return attribute(n, "id") == id })
}

func (d document) says(id, want string) {
	d.t.Helper()
	n := d.id(id)
	if n == nil {
		d.t.Errorf("the page has no %s", id)
		return
	}
	if got := text(n); got != want {
		d.t.Errorf("%s says %q, want %q", id, got, want)
	}
}

// section is all the text under a heading of the contents.
func (d document) section(id string) string {
	d.t.Helper()
	n := d.id(id)
	if n == nil {
		d.t.Fatalf("the page has no section %s", id)
	}
	return strings.Join(strings.Fields(text(n)), " ")
}

func TestPromise_P1_ThePageSaysWhatThePolicySays(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]privacy.Policy{"shipped": privacy.DefaultPolicy(), "theirs": parsed(t, theirs)} {
		t.Run(name, func(t *testing.T) {
			d := page(t, at(p))
			for id, want := range map[string]string{
				"version": p.Version, "date": p.Date.Format("2 January 2006"), "summary": p.Changes,
				"controller-name": p.Controller.Name, "controller-address": p.Controller.Address,
				"window-generated-content": p.Windows.GeneratedContent.String(), "window-deletion": p.Windows.Deletion.String(),
				"window-usage": p.Windows.Usage.String(), "window-support": p.Windows.Support.String(), "window-backups": p.Backups.String(),
			} {
				d.says(id, want)
			}
			for _, one := range p.Purposes {
				if row := text(d.id("purpose-" + string(one.ID))); !strings.HasPrefix(row, one.Name+one.Words) {
					t.Errorf("%s says %q", one.ID, row)
				}
			}
			if name == "shipped" {
				return
			}
			// Nowhere does it speak of a time that is neither the policy's nor, in the
			// rows for them, the program's own.
			times := map[string]int{"90 days": 2, "24 hours": 7, "30 days": 5, "7 days": 4, "3 days": 1, "3 years": 2}
			for _, found := range regexp.MustCompile(`\d+ (?:minutes?|hours?|days?|months?|years?)\b`).FindAllString(text(d.id("main")), -1) {
				times[found]--
			}
			for _, w := range []privacy.Window{p.Windows.GeneratedContent, p.Windows.Deletion, p.Windows.Usage, p.Windows.Support, p.Backups} {
				delete(times, w.String())
			}
			for found, off := range times {
				if off != 0 {
					t.Errorf("the page speaks %d times too seldom of %s", off, found)
				}
			}
		})
	}
}

// rowsOfRetention is, by table of the data map, how the row on the page begins that
// says how long it is kept.
var rowsOfRetention = map[string]string{
	"api_keys":           "An API key that was revoked or has expired",
	"erasure_journal":    "The journal of deletions",
	"erasures":           "The receipt of an erasure",
	"exports":            "Copies of your data that you asked for",
	"generations":        "Generated content",
	"idempotency_keys":   "The keyed hash by which a repeated request is recognised",
	"images":             "Generated content",
	"jobs":               "That work was done for you",
	"mailed_links":       "Codes that are mailed to you",
	"mails":              "That a mail was sent",
	"passkey_challenges": "Codes that are mailed to you, and what a passkey is to sign",
	"requests":           "Requests by your rights",
	"shares":             "What you share by a link",
	"sessions":           "Browsers in which you were signed in",
	"signups":            "A sign-up that nobody confirms",
	"throttles":          "How often something was tried",
	"usage_events":       "Usage data",
	"webhook_attempts":   "What your webhooks were told",
	"webhook_deliveries": "What your webhooks were told",
	"webhook_endpoints":  "The secret of a webhook that you replaced",
	"webhook_events":     "What your webhooks were told",
	"webhook_hosts":      "What your webhooks were told",
	"webhook_once":       "What your webhooks were told",
}

// What the map keeps for a time stands on the page, with that time. Of the tables
// that are nobody's, only the counts of attempts come from what people do.
func TestPromise_P1_ThePageSaysHowLongEverythingIsKept(t *testing.T) {
	t.Parallel()
	m, err := privacy.DataMap()
	if err != nil {
		t.Fatal(err)
	}
	p := parsed(t, theirs)
	d := page(t, at(p))
	row := func(begins string) (all string) {
		for n := range d.id("retention").Descendants() {
			if n.Data == "tr" && strings.HasPrefix(text(n), begins) {
				all += text(n)
			}
		}
		return all
	}
	removed := row("That something was removed")
	seen := map[string]bool{}
	for _, table := range m.Tables {
		for _, k := range table.Keep {
			if k.AsLongAs != "" || k.For != "" && k.Span() == 0 || table.Nobody != "" && rowsOfRetention[table.Name] == "" {
				continue
			}
			seen[table.Name] = true
			begins := rowsOfRetention[table.Name]
			said := row(begins)
			if begins == "" || said == "" {
				t.Errorf("the page does not say how long %s are kept", table.Name)
				continue
			}
			if k.From == "removed_at" && table.Name != "exports" {
				said = removed
			}
			want := ""
			switch {
			case table.Name == "erasure_journal": // the map reckons with the shipped policy
				want = p.Windows.Deletion.String() + " and " + p.Backups.String()
			case k.Window == "generated_content":
				want = p.Windows.GeneratedContent.String()
			case k.Window == "usage":
				want = p.Windows.Usage.String()
			case k.Window == "webhooks":
				w, _ := p.Window(k.Window)
				want = w.String()
			case k.Window != "":
				t.Errorf("%s: which window is %s?", table.Name, k.Window)
			case k.For != "":
				want = span(k.Span())
			}
			if !strings.Contains(said, want) {
				t.Errorf("%s: the page says %q, and the map %s", table.Name, said, want)
			}
		}
	}
	for name := range rowsOfRetention {
		if !seen[name] {
			t.Errorf("%s are kept for no time", name)
		}
	}
}

func TestPromise_D1_ThePageListsTheRegister(t *testing.T) {
	t.Parallel()
	p := parsed(t, theirs)
	d := page(t, at(p))
	listed := 0
	for n := range d.root.Descendants() {
		if strings.HasPrefix(attribute(n, "id"), "processor-") {
			listed++
		}
	}
	if listed != len(p.Processors) {
		t.Errorf("%d are listed of %d", listed, len(p.Processors))
	}
	for _, one := range p.Processors {
		entry := d.id("processor-" + one.ID)
		if entry == nil {
			t.Fatalf("%s is not listed", one.ID)
		}
		part := func(class string) string {
			if n := find(entry, func(n *html.Node) bool { return attribute(n, "class") == class }); n != nil {
				return text(n)
			}
			return ""
		}
		if one.ID == "payments" { // bound by nothing: see D7
			continue
		}
		for class, want := range map[string]string{
			"purpose": one.Purpose, "purposes": map[string]string{"mail": "n-account, n-notice", "hosting": "n-generate"}[one.ID], "categories": strings.Join(one.Categories, ", "), "place": one.Place, "safeguard": one.Safeguard,
			"contract": one.Contract + ", " + one.ContractDate.Format("2 January 2006"),
		} {
			if got := part(class); got != want {
				t.Errorf("%s: %s is %q, want %q", one.ID, class, got, want)
			}
		}
		if !strings.HasPrefix(text(entry), one.Name) {
			t.Errorf("%s is not named", one.ID)
		}
	}
	if d.id("no-processors") != nil {
		t.Error("it says that there are none")
	}
	if none := page(t, at(privacy.DefaultPolicy())); none.id("no-processors") == nil || none.id("off") != nil {
		t.Error("an empty register is not said to be one")
	}
}

func TestPromise_D7_TheUnboundAreListedAsOff(t *testing.T) {
	t.Parallel()
	p := parsed(t, theirs)
	d := page(t, at(p))
	d.says("processor-payments", "Coin Ltd: Takes payments. (off)")
	if off := d.id("off"); off == nil || strings.Contains(text(off), "Gull") || p.Processor("payments").On() || !p.Processor("mail").On() {
		t.Error("who is bound is off, or the other way round")
	}
}

func TestPromise_I1_TransfersStandWithTheirSafeguards(t *testing.T) {
	t.Parallel()
	p := parsed(t, theirs)
	d := page(t, at(p))
	recipients := d.section("recipients")
	for _, one := range p.Processors {
		if shown := strings.Contains(recipients, "Where"+one.Place+" Safeguard"+one.Safeguard); shown != one.On() {
			t.Errorf("%s is on: %v, and its place and safeguard are shown: %v", one.ID, one.On(), shown)
		}
	}
	if text := d.section("transfers"); !strings.Contains(text, "standard contractual clauses") || !strings.Contains(text, "adequacy decision") {
		t.Errorf("transfers: %s", text)
	}
	if text := page(t, at(privacy.DefaultPolicy())).section("transfers"); !strings.Contains(text, "to no processor in any country") {
		t.Errorf("without processors: %s", text)
	}
}

func TestPromise_S5_ContactAndOfficerCanBeReached(t *testing.T) {
	t.Parallel()
	p := parsed(t, theirs)
	d := page(t, at(p))
	addresses := map[string]string{"privacy": p.Contacts.Privacy, "dpo": p.Contacts.DPO, "security": p.Contacts.Security}
	for name, address := range addresses {
		d.says("contact-"+name, address)
		if find(d.id("contact-"+name), func(n *html.Node) bool { return attribute(n, "href") == "mailto:"+address }) == nil {
			t.Errorf("%s is no link", name)
		}
	}
	now := clock.Manual(start)
	s := at(p)
	_, file := fetch(t, s, now, "/.well-known/security.txt")
	fields := securityTxt(t, file)
	want := []string{"mailto:holes@lighthouse.test", "mailto:privacy@lighthouse.test", "mailto:officer@lighthouse.test"}
	if !slices.Equal(fields["Contact"], want) {
		t.Errorf("security.txt names %v, want %v", fields["Contact"], want)
	}
	for field, want := range map[string]string{
		"Expires": "2026-10-28T12:00:00Z", "Preferred-Languages": "en",
		"Canonical": "https://images.example.org/.well-known/security.txt", "Policy": "https://images.example.org/privacy#reporting",
	} {
		if !slices.Equal(fields[field], []string{want}) {
			t.Errorf("security.txt: %s is %v, want %s", field, fields[field], want)
		}
	}
	if d.id("reporting") == nil {
		t.Error("security.txt's policy leads nowhere")
	}
	if len(fields) != 5 {
		t.Errorf("security.txt has %v", fields)
	}

	// One process that serves it for a year never serves an expired one.
	pages, err := New(Options{Policy: s, Clock: now})
	if err != nil {
		t.Fatal(err)
	}
	for range 12 {
		now.Advance(31 * 24 * time.Hour)
		w := httptest.NewRecorder()
		pages["/.well-known/security.txt"].ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		expires, err := time.Parse(time.RFC3339, securityTxt(t, w.Body.String())["Expires"][0])
		if left := expires.Sub(now.Now()); err != nil || left != 180*24*time.Hour {
			t.Errorf("%v are left (%v)", left, err)
		}
	}

	one := p
	one.Contacts.Security = one.Contacts.Privacy
	if got := securityTxt(t, at(one).SecurityTxt(start))["Contact"]; len(got) != 2 {
		t.Errorf("one address for two things: %v", got)
	}
}

// securityTxt reads it as RFC 9116 has it.
func securityTxt(t *testing.T, file string) map[string][]string {
	t.Helper()
	fields := map[string][]string{}
	for lines := bufio.NewScanner(strings.NewReader(file)); lines.Scan(); {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			t.Errorf("security.txt has the line %q", line)
		}
		fields[name] = append(fields[name], value)
	}
	return fields
}

func TestPromise_G10_ThePageSaysHowToComplain(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		policy privacy.Policy
		links  []string
	}{
		"shipped": {privacy.DefaultPolicy(), []string{privacy.AuthoritiesURL}},
		"theirs":  {parsed(t, theirs), []string{privacy.AuthoritiesURL, "https://commission.test/complain?a=1&b=2"}},
	} {
		d := page(t, at(tt.policy))
		rights := d.section("rights")
		if complaint := tt.policy.Complaint(); !strings.Contains(rights, complaint) {
			t.Errorf("%s: the rights end with %q", name, rights[max(0, len(rights)-500):])
		}
		for _, link := range tt.links {
			if find(d.id("rights"), func(n *html.Node) bool { return attribute(n, "href") == link }) == nil {
				t.Errorf("%s: no link to %s", name, link)
			}
		}
	}
}

// The page names each hop without verified TLS 1.3, and no other.
func TestPromise_X1_ExceptionsStandOnThePage(t *testing.T) {
	t.Parallel()
	s := at(parsed(t, theirs))
	d := page(t, s)
	if d.id("no-exceptions") == nil || d.id("exceptions") != nil {
		t.Error("exceptions where there are none")
	}
	s.Plain = []string{"listen", "metrics", "database", "keys", "redis", "s3", "smtp", "engines", "carrier-pigeon"}
	d = page(t, s)
	if d.id("no-exceptions") != nil {
		t.Error("it says that there are none")
	}
	var named []string
	for n := range d.id("exceptions").Descendants() {
		if n.Data == "strong" {
			named = append(named, text(n))
		}
	}
	if !slices.Equal(named, s.Plain) {
		t.Errorf("named are %v", named)
	}
	if list := text(d.id("exceptions")); strings.Count(list, "between") != len(s.Plain) {
		t.Errorf("not each has its words: %s", list)
	}
}

func TestPromise_X2_ThePageSaysWhatIsDeclaredOfDisks(t *testing.T) {
	t.Parallel()
	page(t, at(parsed(t, theirs))).says("volume-encryption", "LUKS on every server")
	page(t, at(privacy.DefaultPolicy())).says("volume-encryption", "the operator has declared no encryption of entire disks.")
	for keeps, want := range map[string]string{
		"nothing": "keeps none of that once it has answered", "memory": "in its working memory until", "disk": "to a disk of its own",
	} {
		s := at(privacy.DefaultPolicy())
		s.EnginesKeep = keeps
		recipients := page(t, s).section("recipients")
		if !strings.Contains(recipients, want) || strings.Count(recipients, "It keeps none")+strings.Count(recipients, "working memory")+strings.Count(recipients, "disk of its own") != 1 {
			t.Errorf("engines that keep %s: %s", keeps, recipients)
		}
	}
}

// Each sentence of the seeds has its place. What the service does not do is not
// promised.
func TestPromise_P1_ThePageIsComplete(t *testing.T) {
	t.Parallel()
	d := page(t, at(privacy.DefaultPolicy()))
	for section, wanted := range map[string][]string{
		"data":       {"mail address", "username", "password", "optional", "prompts", "device and operating system", "approximate place", "IP address", "performance figures", "how long the visit lasts", "kind of device, browser and system", "size of your screen", "no data about you from other sources"},
		"purposes":   {"explicit consent", "Article 6(1)(a)", "Article 6(1)(b)", "Article 6(1)(f)", "object"},
		"retention":  {"As long as you have the account", "deleted automatically", "what a law obliges us to keep", "with or without an account"},
		"recipients": {"court order", "merger", "never sell", "explicitly ask", "not shown to other users"},
		"security":   {"TLS 1.3", "AES-256-GCM", "two factors", "known vulnerabilities", "breach", "strong password", "second factor", "up to date", "Give nobody your password"},
		"rights": {"Access", "Correction", "Deletion", "permanent", "Portability", "machine-readable", "Restriction", "Objection", "Withdrawal of consent", "opt out of marketing", "free of charge", "within one month",
			"POST /v1/account/exports", "GET /v1/account/requests", "POST /v1/account/requests", "DELETE /v1/account", "GET /v1/privacy/receipts/{id}", "PUT /v1/account/do-not-sell"},
		"decisions":  {"No decision that has legal effects", "no profiling without your consent"},
		"cookies":    {"__Host-zimage", "Analytics: off", "only with your consent"},
		"children":   {"under 13", "we close it"},
		"california": {"To know", "To delete", "to correct", "To opt out of sale", "Sec-GPC: 1", "Not to be discriminated against"},
		"changes":    {"summary", "always on this page"},
		"contact":    {"Data Protection Officer", "By post"},
	} {
		text := d.section(section)
		for _, want := range wanted {
			if !strings.Contains(text, want) {
				t.Errorf("%s does not say %q", section, want)
			}
		}
	}
	all := strings.ToLower(text(d.id("main")))
	for _, absent := range []string{"newsletter", "subscription", "credit card", "stripe", "google", "unsubscribe", "ticket", "image-generator.org", "san francisco"} {
		if strings.Contains(all, absent) {
			t.Errorf("it speaks of %q", absent)
		}
	}
}

func TestThePageCanBeReadByEverybody(t *testing.T) {
	t.Parallel()
	s := at(parsed(t, theirs))
	header, source := fetch(t, s, clock.Manual(start), "/privacy")
	if csp := header.Get("Content-Security-Policy"); csp != "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" {
		t.Errorf("its content policy is %s", csp)
	}
	d := page(t, s)
	ids := map[string]bool{}
	var levels []string
	for n := range d.root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if id := attribute(n, "id"); id != "" {
			if ids[id] {
				t.Errorf("the id %s stands twice", id)
			}
			ids[id] = true
		}
		switch n.Data {
		case "script", "style", "img", "iframe", "form", "object":
			t.Errorf("it has a %s", n.Data)
		case "h1", "h2", "h3", "h4":
			if len(levels) > 0 && n.Data[1] > levels[len(levels)-1][1]+1 {
				t.Errorf("%s %q comes after %s", n.Data, text(n), levels[len(levels)-1])
			}
			levels = append(levels, n.Data)
		case "table":
			if find(n, func(n *html.Node) bool { return n.Data == "caption" }) == nil {
				t.Error("a table has no caption")
			}
		case "th":
			if attribute(n, "scope") == "" {
				t.Errorf("%q heads nothing", text(n))
			}
		}
		for _, a := range n.Attr {
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
				t.Errorf("%s has a %s, which the content policy does not let through", n.Data, a.Key)
			}
		}
	}
	if attribute(find(d.root, func(n *html.Node) bool { return n.Data == "html" }), "lang") != "en" || strings.Join(levels, "")[:2] != "h1" || slices.Index(levels[1:], "h1") >= 0 {
		t.Error("no language, or not one heading of the first level at the top")
	}
	for n := range d.root.Descendants() {
		if target, ok := strings.CutPrefix(attribute(n, "href"), "#"); ok && !ids[target] {
			t.Errorf("a link leads to #%s, which is not there", target)
		}
	}
	// Every section is in the contents.
	contents := find(d.root, func(n *html.Node) bool { return n.Data == "nav" })
	sections := 0
	for n := range d.id("main").Descendants() {
		if id := attribute(n, "id"); n.Data == "section" && id != "" {
			sections++
			if find(contents, func(n *html.Node) bool { return attribute(n, "href") == "#"+id }) == nil {
				t.Errorf("the contents lack %s", id)
			}
		}
	}
	if sections != 14 {
		t.Errorf("%d sections", sections)
	}
	for _, wrong := range []string{"ZgotmplZ", "<no value>", "<b>mails</b>", "{{", "%!"} {
		if strings.Contains(source, wrong) {
			t.Errorf("it has %s", wrong)
		}
	}
	d.says("summary", "Pictures are kept for a shorter time.\nA company <b>mails</b> for us.")
	if header, css := fetch(t, s, clock.Manual(start), "/page.css"); !strings.HasPrefix(header.Get("Content-Type"), "text/css") || !strings.Contains(css, "@media print") || strings.Contains(css, "url(") {
		t.Error("its style is not served, does not print, or loads something")
	}
}

func TestTheSignalOfTheBrowserIsSaidToBeFollowed(t *testing.T) {
	t.Parallel()
	header, text := fetch(t, at(parsed(t, theirs)), clock.Manual(start), "/.well-known/gpc.json")
	var got map[string]any
	if err := json.Unmarshal([]byte(text), &got); err != nil || got["gpc"] != true || got["lastUpdate"] != "2026-04-30" || len(got) != 2 {
		t.Errorf("gpc.json is %s (%v)", text, err)
	}
	if kind := header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("it is %s", kind)
	}
}
