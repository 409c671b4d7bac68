package account

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"strings"
)

// A form is how one kind of token looks: its start, then random bytes and some
// of their SHA-256 in base 32. The sum refuses typing errors and guesses without
// asking the database; it keeps nobody out.
type form struct {
	start       string
	random, sum int // bytes; together a multiple of 5, so that base 32 fills up
}

// The forms. A session's has 256 random bits, since nobody types it.
var (
	keyForm     = form{start: "zi_", random: 20, sum: 5}
	codeForm    = form{start: "zc_", random: 20, sum: 5} // mailed, to be copied
	sessionForm = form{start: "zs_", random: 32, sum: 3}
)

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

func (f form) sumOf(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:f.sum]
}

func newToken() string { return keyForm.make() }

func wellFormed(token string) bool { return keyForm.fits(token) }
