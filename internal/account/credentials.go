package account

import (
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"

	"zimage/internal/problem"
)

const (
	emailMost = 254 // bytes: what fits an SMTP path (RFC 5321, 4.5.3.1.3)
	localMost = 64  // bytes before the @ (RFC 5321, 4.5.3.1.1)
)

// normalise returns the address to write to, as it was typed but for spaces
// around it and the domain's letters, and the canonical one that finds the
// account: all in small letters, since people don't keep to their own spelling.
func normalise(email string) (address, canonical string, err error) {
	bad := problem.Invalid(problem.Field{Location: "body.email", Message: "must be a mail address such as name@example.com"})
	email = strings.TrimSpace(email)
	if len(email) > emailMost || !utf8.ValidString(email) || strings.ContainsFunc(email, func(r rune) bool {
		return unicode.IsControl(r) || unicode.IsSpace(r) || r == utf8.RuneError
	}) {
		return "", "", bad
	}
	// Names, comments, quotes and lists parse too, but never to what was typed.
	parsed, err := mail.ParseAddress(email)
	if err != nil || parsed.Name != "" || parsed.Address != email {
		return "", "", bad
	}
	at := strings.LastIndexByte(email, '@')
	local, domain := norm.NFC.String(email[:at]), email[at+1:]
	if local == "" || len(local) > localMost || strings.ContainsAny(local, `"(),:;<>@[\]`) {
		return "", "", bad
	}
	domain, err = idna.Registration.ToASCII(strings.ToLower(norm.NFC.String(domain)))
	if err != nil || domain == "" || len(local)+1+len(domain) > emailMost {
		return "", "", bad
	}
	address = local + "@" + domain
	return address, strings.ToLower(address), nil
}
