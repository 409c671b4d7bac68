// Package web is the pages for people and the well-known files beside them:
// templates and styles, embedded. Nothing on a page runs in the browser.
//
// It answers GET alone, decides nothing, and sets no cookie. What is around every
// request, its id, its line in the log, its figures, is httpapi's, which takes
// these pages among its routes.
package web

import (
	"bytes"
	_ "embed" // the pages
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"zimage/internal/account"
	"zimage/internal/clock"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/privacy"
)

//go:embed privacy.html
var privacyHTML string

//go:embed page.css
var pageCSS []byte

// Options for New. All are required.
type Options struct {
	Policy privacy.Statement
	Clock  *clock.Clock
	Shares Shares
}

// New makes the pages. All but that of a share are rendered once: what they tell
// stands still while a process runs. The handlers are by path.
func New(o Options) (map[string]http.Handler, error) {
	page, err := privacyPage(o.Policy)
	if err != nil {
		return nil, err
	}
	shares, err := sharePages(o.Shares)
	if err != nil {
		return nil, err
	}
	fixed := func(kind string, content []byte) http.Handler {
		return answer(kind, func() []byte { return content })
	}
	return map[string]http.Handler{
		"/privacy":              fixed("text/html; charset=utf-8", page),
		sharePath + ":token":    shares,
		"/page.css":             fixed("text/css; charset=utf-8", pageCSS),
		"/.well-known/gpc.json": fixed("application/json", o.Policy.GPC()),
		"/.well-known/security.txt": answer("text/plain; charset=utf-8", func() []byte {
			return []byte(o.Policy.SecurityTxt(o.Clock.Now()))
		}),
	}, nil
}

func answer(kind string, content func() []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", kind)
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		_, _ = w.Write(content()) // the client hung up
	})
}

// kept are the times that do not stand in the policy, since they are the program's.
type kept struct {
	Device, Key, SignUp, Tombstone, Idempotency, Mail, Job                    time.Duration
	Export, RemovedExport, Request, RequestWords, RequestUnconfirmed, Receipt time.Duration
	Objection, Share, Link, OldSecret                                         time.Duration

	Webhook privacy.Window // the policy's usage, if that is shorter
}

func privacyPage(s privacy.Statement) ([]byte, error) {
	page, err := template.New("privacy").Option("missingkey=error").Funcs(template.FuncMap{
		"basis": basis, "span": span, "linked": linked,
		"join": func(list []string) string { return strings.Join(list, ", ") },
	}).Parse(privacyHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the page of the policy: %w", err)
	}
	var b bytes.Buffer
	webhooks, _ := s.Window("webhooks")
	err = page.Execute(&b, struct {
		privacy.Statement
		Service string
		Kept    kept
	}{s, privacy.ServiceName, kept{
		Device: account.DeviceKept, Key: account.KeyKept, SignUp: account.SignUpKept,
		Tombstone: generate.TombstoneKept, Idempotency: generate.IdempotentKept, Mail: mail.RowKept, Job: jobs.EndedKept,
		Export: privacy.ExportKept, RemovedExport: privacy.RemovedExportKept, Receipt: privacy.ReceiptKept,
		Request: privacy.RequestKept, RequestWords: privacy.RequestWordsKept, RequestUnconfirmed: privacy.UnconfirmedKept,
		Objection: privacy.ObjectionTime, Share: generate.ShareLife, Link: generate.LongestLink,
		OldSecret: 24 * time.Hour, Webhook: webhooks,
	}})
	if err != nil {
		return nil, fmt.Errorf("render the page of the policy: %w", err)
	}
	return b.Bytes(), nil
}

// basis names the place in the law.
func basis(b privacy.Basis) (string, error) {
	switch b {
	case privacy.Contract:
		return "Contract, Article 6(1)(b) GDPR", nil
	case privacy.LegalObligation:
		return "Legal obligation, Article 6(1)(c) GDPR", nil
	case privacy.WithConsent:
		return "Only with your consent, Article 6(1)(a) GDPR", nil
	case privacy.LegitimateInterests:
		return "Legitimate interests, Article 6(1)(f) GDPR", nil
	}
	return "", fmt.Errorf("no words for the basis %q", b)
}

// span is a time in whole years, in days, or in hours below two days.
func span(d time.Duration) string {
	const year = 365 * 24 * time.Hour
	if hours := int(d.Hours()); hours < 48 {
		return fmt.Sprintf("%d hours", hours)
	}
	if d >= 2*year && d%year == 0 {
		return fmt.Sprintf("%d years", d/year)
	}
	return privacy.Days(int(d.Hours() / 24)).String()
}

// linked is text with the https addresses in it as links.
func linked(text string) template.HTML {
	var b strings.Builder
	for i, word := range strings.Split(text, " ") {
		if i > 0 {
			b.WriteByte(' ')
		}
		address := strings.TrimRight(word, ".,")
		shown := template.HTMLEscapeString(address)
		if strings.HasPrefix(address, "https://") {
			shown = `<a href="` + shown + `">` + shown + `</a>`
		}
		b.WriteString(shown + template.HTMLEscapeString(word[len(address):]))
	}
	return template.HTML(b.String()) //nolint:gosec // every word is escaped
}
