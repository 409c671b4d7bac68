package account

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"strings"

	"zimage/internal/vault"
)

// A form is how one kind of token looks: its start, then random bytes and a sum
// of them in base 32. The sum refuses typing errors and guesses without asking the
// database; it opens nothing.
type form struct {
	start       string
	random, sum int // bytes; together a multiple of 5, so that base 32 fills up
	by          func(random []byte) []byte
}

// keyForm is that of API keys.
var keyForm = form{start: tokenStart, random: 20, sum: 5, by: func(random []byte) []byte {
	sum := sha256.Sum256(random)
	return sum[:]
}}

// The forms of what strangers may send as often as they like have a keyed sum:
// nobody can make one up that is worth a look into the database. A session's has
// 256 random bits, since nobody types it; a code is mailed, to be copied.
func sessionForm(v *vault.Vault) form {
	return form{start: "zs_", random: 32, sum: 13, by: func(random []byte) []byte { return v.MAC("session token", random) }}
}

func codeForm(v *vault.Vault) form {
	return form{start: "zc_", random: 20, sum: 5, by: func(random []byte) []byte { return v.MAC("mailed code", random) }}
}

const (
	tokenStart  = "zi_"
	prefixShown = len(tokenStart) + 6 // of a key: leaves 130 bits unknown
)

func tokenAlphabet() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

func (f form) length() int { return len(f.start) + (f.random+f.sum)*8/5 }

func (f form) make() string {
	b := make([]byte, f.random, f.random+f.sum)
	_, _ = rand.Read(b) // it never fails: without randomness the program ends
	return f.start + tokenAlphabet().EncodeToString(append(b, f.sumOf(b)...))
}

// fits reports whether the token can be one of ours.
func (f form) fits(token string) bool {
	if len(token) != f.length() || !strings.HasPrefix(token, f.start) {
		return false
	}
	b, err := tokenAlphabet().DecodeString(token[len(f.start):])
	if err != nil || len(b) != f.random+f.sum {
		return false
	}
	return subtle.ConstantTimeCompare(b[f.random:], f.sumOf(b[:f.random])) == 1
}

func (f form) sumOf(b []byte) []byte { return f.by(b)[:f.sum] }

func newToken() string { return keyForm.make() }

func wellFormed(token string) bool { return keyForm.fits(token) }
