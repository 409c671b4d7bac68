package account

import (
	"context"
	"fmt"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/alexedwards/argon2id"
	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"

	"zimage/internal/problem"
)

const (
	emailMost = 254 // bytes: what fits an SMTP path (RFC 5321, 4.5.3.1.3)
	localMost = 64  // bytes before the @ (RFC 5321, 4.5.3.1.1)

	passwordLeast = 8    // characters (OWASP ASVS 5.0, 6.2.1)
	passwordMost  = 1024 // bytes; a bound on work, far above what people type
)

// hashing is Argon2id as OWASP's password storage cheat sheet asks for: 19 MiB,
// two passes, one lane.
func hashing() *argon2id.Params {
	return &argon2id.Params{Memory: 19 * 1024, Iterations: 2, Parallelism: 1, SaltLength: 16, KeyLength: 32}
}

// normalise returns the address to write to, as it was typed but for spaces
// around it and the domain's letters, and the canonical one that finds the
// account: all in small letters, since people don't keep to their own spelling.
func normalise(email string) (address, canonical string, err error) {
	bad := problem.Invalid(problem.Field{Location: "email", Message: "must be a mail address such as name@example.com"})
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

// checkPassword asks for nothing but length: rules of composition make
// passwords worse (OWASP ASVS 5.0, 6.2.5).
func checkPassword(password string) error {
	switch {
	case !utf8.ValidString(password):
		return problem.Invalid(problem.Field{Location: "password", Message: "must be text in UTF-8"})
	case utf8.RuneCountInString(password) < passwordLeast:
		return problem.Invalid(problem.Field{Location: "password", Message: fmt.Sprintf("must have at least %d characters", passwordLeast)})
	case len(password) > passwordMost:
		return problem.Invalid(problem.Field{Location: "password", Message: fmt.Sprintf("must have at most %d bytes", passwordMost)})
	}
	return nil
}

// hash waits for a place first, so that many sign-ups at once take bounded
// memory.
func (s *Service) hash(ctx context.Context, password string) (string, error) {
	select {
	case s.hashing <- struct{}{}:
		defer func() { <-s.hashing }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	h, err := argon2id.CreateHash(password, hashing())
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	return h, nil
}
