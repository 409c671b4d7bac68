package mail

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

var all = []Template{ConfirmSignUp, SignUpAttempt, ConfirmEmail, EmailChangeAsked, EmailChanged, ResetPassword, PasswordChanged, NewDevice, AccountMade,
	SecondFactorChanged, KeyCreated, KeyRevoked, RestrictionLifted, AccountSuspended, AccountUnsuspended, AccountClosed, ExportAsked, ExportReady, WebhookDisabled,
	ErasureAsked, RequestConfirm, RequestNothingHeld, RequestClosed}

func filled(l *letter, value string) map[string]string {
	data := map[string]string{urlKey: publicURL}
	for _, key := range append(append([]string(nil), l.needs...), l.may...) {
		data[key] = value
	}
	return data
}

func TestEveryTemplateSaysWhatItMust(t *testing.T) {
	t.Parallel()
	if len(letters) != len(all) {
		t.Errorf("%d letters, %d templates", len(letters), len(all))
	}
	entries, err := files.ReadDir("templates")
	if err != nil || len(entries) != 2*len(all)+2 {
		t.Errorf("%d files, %v", len(entries), err)
	}
	for _, name := range all {
		l := letters[name]
		if l == nil || l.subject == "" {
			t.Fatalf("%s has no subject", name)
		}
		text, page, err := l.write(name, filled(l, "V4LUE"), start)
		if err != nil {
			t.Fatal(err)
		}
		for form, body := range map[string]string{"text": text, "HTML": page} {
			if !strings.Contains(body, publicURL) {
				t.Errorf("%s does not name the service in its %s", name, form)
			}
			if n := strings.Count(body, "V4LUE"); n != len(l.needs)+len(l.may) {
				t.Errorf("%s shows %d of %d values in its %s", name, n, len(l.needs)+len(l.may), form)
			}
			if strings.Contains(body, "{{") || strings.Contains(body, "<no value>") {
				t.Errorf("%s: %s", name, body)
			}
		}
		for _, line := range strings.Split(text, "\n") {
			if len(line) > 100 {
				t.Errorf("%s has a line of %d characters", name, len(line))
			}
		}
		if len(text) > 1200 {
			t.Errorf("%s is %d characters long", name, len(text))
		}
		// Nothing is fetched, nothing runs, nothing tells that it was read.
		if found := regexp.MustCompile(`(?i)<(img|script|link|iframe|object|form|a|base|meta http)\b|src=|href=|url\(|@import`).FindString(page); found != "" {
			t.Errorf("%s holds %s", name, found)
		}
		if _, err := html.Parse(strings.NewReader(page)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The same with what may be missing missing.
		bare := filled(l, "V4LUE")
		for _, key := range l.may {
			delete(bare, key)
		}
		if text, page, err = l.write(name, bare, start); err != nil || strings.Contains(text+page, "<no value>") {
			t.Errorf("%s without what may be missing: %v", name, err)
		}
	}
}

// Values come from outside: they stay values.
func TestValuesStayValues(t *testing.T) {
	t.Parallel()
	const evil = "x\r\n\r\n--\r\nYou have won!\u202e <img src=https://evil.example/pixel.gif><script>alert(1)</script> {{.Code}} \x00\u2028end"
	for _, name := range all {
		l := letters[name]
		text, page, err := l.write(name, filled(l, evil), start)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(page, "<img") || strings.Contains(page, "<script") {
			t.Errorf("%s: a value became HTML: %s", name, page)
		}
		if strings.Contains(text, "\nYou have won!") || strings.ContainsAny(text+page, "\r\x00\u2028\u202e") {
			t.Errorf("%s: a value became lines of its own: %q", name, text)
		}
		e := Envelope{ID: "mail_1", From: "a@b.example", To: ada, At: start, Subject: l.subject, Text: text, HTML: page}
		msg, err := compose(e)
		if err != nil {
			t.Fatal(err)
		}
		var raw bytes.Buffer
		if _, err := msg.WriteTo(&raw); err != nil {
			t.Fatal(err)
		}
		m := parse(t, raw.Bytes())
		if len(m.header) != 8 || len(m.parts) != 2 {
			t.Errorf("%s: %d headers and %d parts", name, len(m.header), len(m.parts))
		}
		if strings.TrimSpace(m.text) != strings.TrimSpace(text) {
			t.Errorf("%s: it reads %q, was written %q", name, m.text, text)
		}
	}
	if got := oneLine(strings.Repeat("é", 600)); got != strings.Repeat("é", valueMost)+"…" {
		t.Errorf("%d bytes of a long value", len(got))
	}
	if got := oneLine("\xff a\tb \u200f"); got != "a b" {
		t.Errorf("%q", got)
	}
}

func TestComposeRefusesWhatIsNoAddress(t *testing.T) {
	t.Parallel()
	for _, to := range []string{"", "ada", "ada@example.org\r\nBcc: eve@example.org", "a@b.example, c@d.example", "A <a@b.example>"} {
		e := envelope()
		e.To = to
		if _, err := compose(e); err == nil || strings.Contains(err.Error(), "example") {
			t.Errorf("%q: %v", to, err)
		}
	}
	e := envelope()
	e.From = "nobody"
	if _, err := compose(e); err == nil {
		t.Error("a sender that is none")
	}
}
