package privacy

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/subject"
)

// changed is the shipped file with one text replaced by another.
func changed(t *testing.T, pairs ...string) []byte {
	t.Helper()
	text := string(Example)
	for i := 0; i < len(pairs); i += 2 {
		if strings.Count(text, pairs[i]) != 1 {
			t.Fatalf("the shipped policy has %q %d times", pairs[i], strings.Count(text, pairs[i]))
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return []byte(text)
}

// What the policies of the seeds promise is what the shipped one says.
func TestPromise_P1_TheShippedPolicyHasTheWindowsThatWerePromised(t *testing.T) {
	t.Parallel()
	p := DefaultPolicy()
	want := Windows{GeneratedContent: Days(90), Deletion: Days(30), Usage: Months(12), Support: Months(24)}
	if p.Windows != want {
		t.Errorf("windows are %v, want %v", p.Windows, want)
	}
	if p.Backups.longer(p.Windows.Deletion) {
		t.Errorf("backups of %s outlive a deletion", p.Backups)
	}
	if left := p.Placeholders(); len(left) != 5 {
		t.Errorf("placeholders: %v", left)
	}
	for _, address := range []string{p.Contacts.Privacy, p.Contacts.DPO, p.Contacts.Security} {
		if !strings.HasSuffix(address, "@example.org") {
			t.Errorf("%s may be somebody's", address)
		}
	}
}

func TestPlaceholdersGoOneByOne(t *testing.T) {
	t.Parallel()
	p, err := ParsePolicy(changed(t, "name: Example Operator", "name: Lighthouse Ltd", "dpo: dpo@example.org ", "dpo: dpo@lighthouse.test "))
	if err != nil {
		t.Fatal(err)
	}
	if left := p.Placeholders(); !slices.Equal(left, []string{"controller.address", "contacts.privacy", "contacts.security"}) {
		t.Errorf("left are %v", left)
	}
}

// Every purpose that the program asks about has a legal basis, and it is the one on
// which the program lets it happen.
func TestPromise_G9_EachPurposeHasItsLegalBasis(t *testing.T) {
	t.Parallel()
	p := DefaultPolicy()
	var ids []subject.Purpose
	for _, one := range p.Purposes {
		ids = append(ids, one.ID)
		consent := slices.Contains(subject.ConsentPurposes(), one.ID)
		objectable := slices.Contains(subject.ObjectionPurposes(), one.ID)
		if consent != (one.Basis == WithConsent) || objectable != (one.Basis == LegitimateInterests) || one.Basis == "" || one.Words == "" {
			t.Errorf("%s rests on %q: consent %v, objectable %v", one.ID, one.Basis, consent, objectable)
		}
	}
	slices.Sort(ids)
	if want := subject.Purposes(); !slices.Equal(ids, want) || len(want) < 10 {
		t.Errorf("the policy has %v, the program %v", ids, want)
	}
}

// A processor without contract and date is in the register, and off.
func TestPromise_D7_AProcessorWithoutContractIsOff(t *testing.T) {
	t.Parallel()
	_, example, _ := strings.Cut(string(Example), "processors: []\n")
	register := "processors:\n" + strings.ReplaceAll("\n"+example, "\n# ", "\n ")
	base, _, _ := strings.Cut(string(Example), "processors: []\n")
	bound, err := ParsePolicy([]byte(base + register)) // as its comment shows
	if err != nil {
		t.Fatal(err)
	}
	mail := bound.Processor("mail")
	if !mail.On() || mail.Contract == "" || mail.ContractDate.IsZero() || len(mail.Categories) != 2 || len(mail.Purposes) != 3 || !slices.Equal(mail.Serves, []Connection{ToSMTP}) {
		t.Errorf("bound: %+v", mail)
	}
	lines := regexp.MustCompile(`(?m)^ +contract(_date)?:.*\n`)
	loose, err := ParsePolicy([]byte(base + lines.ReplaceAllString(register, "")))
	if err != nil {
		t.Fatal(err)
	}
	if one := loose.Processor("mail"); one.On() || one.Name == "" {
		t.Errorf("without a contract: %+v", one)
	}
	for _, c := range connections {
		if got := loose.Unbound(c); len(bound.Unbound(c)) != 0 || slices.Equal(got, []string{"mail"}) != (c == ToSMTP) {
			t.Errorf("to %s stand in the way: %v, bound %v", c, got, bound.Unbound(c))
		}
	}
	if s := (Statement{Policy: loose}); len(s.On()) != 0 || len(s.Off()) != 1 {
		t.Error("the page shows it as on")
	}
	if bound.Processor("analytics").On() {
		t.Error("one that is not in the register is on")
	}
	for _, left := range []string{"contract", "contract_date"} {
		half := regexp.MustCompile(`(?m)^ +`+left+`:.*\n`).ReplaceAllString(register, "")
		if _, err := ParsePolicy([]byte(base + half)); err == nil || !strings.Contains(err.Error(), "processors[0]."+left+": is missing") {
			t.Errorf("without %s: %v", left, err)
		}
	}
}

func TestAWrongPolicyIsRefusedWithEveryProblem(t *testing.T) {
	t.Parallel()
	const processor = "processors: [{id: mail, name: M, purpose: P, purposes: [notice], categories: [c], place: P, safeguard: S}"
	for _, tt := range []struct {
		name string
		text []byte
		want []string // of every line, and no more lines
	}{
		{"unknown keys", changed(t, "changes: This", "change: This", "  dpo: ", "  dop: "), []string{
			"change: is not known; write one of version, date, changes, controller",
			"contacts.dop: is not known; write one of privacy, dpo, security",
			"changes: is missing; write what has changed",
			"contacts.dpo: is missing; write a mail address",
		}},
		{"twice", changed(t, "  name: Example Operator", "  name: A\n  name: B"), []string{"controller.name: stands twice"}},
		{"a window without unit", changed(t, "usage: 12 months", "usage: 12"), []string{"windows.usage: write a number of days or months, such as 12 months"}},
		{"windows of other kinds", changed(t, "usage: 12 months", "usage: [1]", "support: 24 months", "support: 0 days"), []string{"windows.usage: write", "windows.support: write"}},
		{"content in months", changed(t, "generated_content: 90 days", "generated_content: 3 months"), []string{"windows.generated_content: write 1 to 3650 days"}},
		{"content for ever", changed(t, "generated_content: 90 days", "generated_content: 3651 days"), []string{"windows.generated_content: write"}},
		{"a deletion after the law's month", changed(t, "deletion: 30 days", "deletion: 31 days"), []string{"windows.deletion: write 1 to 30 days"}},
		{"backups that outlive the deletion", changed(t, "deletion: 30 days", "deletion: 14 days"), []string{"backups: write at most 14 days, which is windows.deletion"}},
		{"dates and shapes", changed(t, "date: 2026-01-01 #", "date: 2026-02-30 #", `version: "2026-01-01"`, `version: "the first"`), []string{
			"version: write a name for this version", "date: write the day since which"}},
		{"addresses", changed(t, "privacy: privacy@example.org", "privacy: Ada <ada@example.org>", "security: security@example.org", "security: https://example.org"), []string{
			"contacts.privacy: write a mail address", "contacts.security: write a mail address"}},
		{"nothing where something must be", changed(t, "address: The operator's postal address", "address: ' '"), []string{"controller.address: write a postal address"}},
		{"a text for a mapping", changed(t, "controller:\n  name: Example Operator\n  address: The operator's postal address", "controller: somebody"), []string{"controller: write name and address"}},
		{"an authority without a page", changed(t, "windows:\n", "authority: {name: A, url: 'http://example.org'}\nwindows:\n"), []string{"authority.url: write its address on the web, with https://"}},
		{"a purpose of nobody's", changed(t, "  - id: deliver", "  - id: delivery"), []string{
			"purposes[4].id: write one of account, analytics, deliver", "purposes: deliver missing; add"}},
		{"a purpose twice", changed(t, "  - id: deliver", "  - id: generate"), []string{"purposes[4].id: stands there twice", "purposes: deliver missing"}},
		{"training on a contract", []byte(regexp.MustCompile(`(?s)(id: training.*?basis: )consent`).ReplaceAllString(string(Example), "${1}contract")), []string{
			"purposes[6].basis: write consent: on that alone the program does training"}},
		{"statistics by consent", changed(t, "basis: legitimate_interests", "basis: consent"), []string{"purposes[9].basis: write legitimate_interests"}},
		{"an interest nobody can object to", []byte(strings.Replace(string(Example), "basis: contract", "basis: legitimate_interests", 1)), []string{
			"purposes[0].basis: write contract or legal_obligation"}},
		{"a basis that the law does not know", []byte(strings.Replace(string(Example), "basis: contract", "basis: because", 1)), []string{
			"purposes[0].basis: write contract, legal_obligation, consent or legitimate_interests"}},
		{"processors that are none", changed(t, "processors: []", "processors: [mail]"), []string{"processors: write a list of companies"}},
		{"a processor without place", changed(t, "processors: []", "processors: [{id: mail, name: M, purpose: P, purposes: [notice], categories: [], safeguard: S}]"), []string{
			"processors[0].categories: write a list", "processors[0].place: is missing; write the country"}},
		{"a processor for nothing", changed(t, "processors: []", strings.Replace(processor, "[notice]", "[]", 1)+"]"), []string{"processors[0].purposes: write a list of those"}},
		{"a processor that does not say what for", changed(t, "processors: []", strings.Replace(processor, "purposes: [notice], ", "", 1)+"]"), []string{"processors[0].purposes: is missing; write a list of those"}},
		{"a processor for a purpose of nobody's", changed(t, "processors: []", strings.Replace(processor, "[notice]", "[notice, operate]", 1)+"]"), []string{"processors[0].purposes: write a list of those"}},
		{"a processor for one purpose twice", changed(t, "processors: []", strings.Replace(processor, "[notice]", "[notice, notice]", 1)+"]"), []string{"processors[0].purposes: write a list of those"}},
		{"a processor that serves what is not known", changed(t, "processors: []", strings.Replace(processor, "{id", "{serves: [listen], id", 1)+"]"), []string{"processors[0].serves: write a list of what the program reaches"}},
		{"a processor that serves one twice", changed(t, "processors: []", strings.Replace(processor, "{id", "{serves: [s3, s3], id", 1)+"]"), []string{"processors[0].serves: write a list of what the program reaches"}},
		{"two processors of one id", changed(t, "processors: []", processor+", {id: mail, name: M, purpose: P, purposes: [notice], categories: [c], place: P, safeguard: S}]"), []string{"processors[1].id: stands there twice"}},
		{"a contract without its date", changed(t, "processors: []", strings.Replace(processor, "{id", "{contract: C, id", 1)+"]"), []string{"processors[0].contract_date: is missing"}},
		{"a date that is none", changed(t, "processors: []", strings.Replace(processor, "{id", "{contract: C, contract_date: soon, id", 1)+"]"), []string{"processors[0].contract_date: write the day of the contract"}},
		{"no mapping", []byte("- a list\n"), []string{"the file: write the keys of `zimage policy example`", "purposes: account, analytics"}},
	} {
		_, err := ParsePolicy(tt.text)
		if err == nil {
			t.Errorf("%s: taken", tt.name)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if lines[0] != "policy file:" || len(lines)-1 != len(tt.want) {
			t.Errorf("%s: %d problems, want %d:\n%v", tt.name, len(lines)-1, len(tt.want), err)
			continue
		}
		for _, want := range tt.want {
			if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, want) }) {
				t.Errorf("%s: nothing begins with %q:\n%v", tt.name, want, err)
			}
		}
	}
	for name, text := range map[string]string{
		"no YAML":        "version: [",
		"two documents":  string(Example) + "---\nversion: x\n",
		"an empty file":  "",
		"comments alone": "# version: x\n",
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), "policy file:") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParsePolicy(nil); strings.Count(err.Error(), "is missing") != 10 {
		t.Errorf("an empty file lacks everything:\n%v", err)
	}
}

func TestWindowsFollowTheCalendar(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ window, now, want string }{
		{"90 days", "2026-05-30T10:00:00Z", "2026-03-01T10:00:00Z"},
		{"1 day", "2026-03-01T00:00:00Z", "2026-02-28T00:00:00Z"},
		{"12 months", "2026-11-26T10:00:00Z", "2025-11-26T10:00:00Z"},
		{"12 months", "2024-02-29T10:00:00Z", "2023-02-28T23:59:59Z"},
		{"12 months", "2025-02-28T10:00:00Z", "2024-02-28T10:00:00Z"},
		{"1 month", "2026-03-31T23:59:59Z", "2026-02-28T23:59:59Z"},
		{"1 month", "2026-03-01T00:00:00Z", "2026-02-01T00:00:00Z"},
		{"24 months", "2026-01-31T10:00:00Z", "2024-01-31T10:00:00Z"},
		{"1 month", "2026-01-01T01:00:00+02:00", "2025-11-30T23:59:59Z"}, // in UTC it is still December
	} {
		w, ok := ParseWindow(tt.window)
		now, err := time.Parse(time.RFC3339, tt.now)
		if got := w.Before(now).Format(time.RFC3339); !ok || err != nil || got != tt.want || w.String() != tt.window {
			t.Errorf("%s before %s is %s, want %s (%v)", w, tt.now, got, tt.want, err)
		}
	}
	// Whatever the day, the bound never goes back as time goes on.
	w, last := Months(1), time.Time{}
	for now := time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC); now.Year() < 2025; now = now.Add(time.Hour) {
		if b := w.Before(now); b.Before(last) {
			t.Fatalf("the bound goes back from %s to %s", last, b)
		} else {
			last = b
		}
		if end := w.After(now); w.Before(end).Before(now) || !w.Before(end.Add(-time.Millisecond)).Before(now) {
			t.Fatalf("what began %s is past its window at %s, and not a moment before or after", now, end)
		}
	}
	for _, text := range []string{"", "90", "days", "90days", "90 weeks", "-1 days", "0 days", "090 days", "1.5 months", "121 months", "90  days", "+9 days"} {
		if w, ok := ParseWindow(text); ok {
			t.Errorf("%q was taken for %s", text, w)
		}
	}
}

func TestWindowsAreCompared(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		a, b Window
		want bool
	}{
		{Days(28), Days(30), false}, {Days(31), Days(30), true}, {Days(30), Days(30), false},
		{Months(2), Months(1), true}, {Months(1), Days(30), true}, {Months(1), Days(31), false}, {Days(29), Months(1), true}, {Days(28), Months(1), false},
	} {
		if got := tt.a.longer(tt.b); got != tt.want {
			t.Errorf("%s longer than %s: %v", tt.a, tt.b, got)
		}
	}
}

// The fingerprint is of what the policy says, and stays the same from release to
// release: otherwise no process would start after an update.
func TestTheFingerprintOfAPolicyStays(t *testing.T) {
	t.Parallel()
	of := func(text []byte) string {
		t.Helper()
		p, err := ParsePolicy(text)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := p.fingerprint()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	const shipped = "aa38b69b6683ae30a3dedd70410f0e1b14c5197b68271779d012d73447d72c81"
	if got := of(Example); got != shipped {
		t.Errorf("the shipped policy has %s, want %s: when its words change, so must its version and date", got, shipped)
	}
	if of(append([]byte("# A comment.\n"), Example...)) != shipped {
		t.Error("a comment changes it")
	}
	for _, pair := range [][2]string{
		{"generated_content: 90 days", "generated_content: 60 days"},
		{"usage: 12 months", "usage: 12 days"},
		{"Example Operator", "Another Operator"},
		{"date: 2026-01-01 # in", "date: 2026-01-02 # in"},
	} {
		if of(changed(t, pair[0], pair[1])) == shipped {
			t.Errorf("%s does not change it", pair[1])
		}
	}
}
