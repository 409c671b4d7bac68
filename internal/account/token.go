package account

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"strings"
)

// A token is zi_ and 40 letters and digits: 20 random bytes and 5 of their
// SHA-256, in base 32. The sum refuses typing errors and guesses without asking
// the database; it keeps nobody out.
const (
	tokenStart  = "zi_"
	tokenRandom = 20 // bytes: 160 bits
	tokenSum    = 5  // bytes
	tokenLength = len(tokenStart) + (tokenRandom+tokenSum)*8/5
	prefixShown = len(tokenStart) + 6 // leaves 130 bits unknown
)

func tokenAlphabet() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

func newToken() string {
	b := make([]byte, tokenRandom, tokenRandom+tokenSum)
	_, _ = rand.Read(b) // it never fails: without randomness the program ends
	return tokenStart + tokenAlphabet().EncodeToString(append(b, sumOf(b)...))
}

// wellFormed reports whether the token can be one of ours.
func wellFormed(token string) bool {
	if len(token) != tokenLength || !strings.HasPrefix(token, tokenStart) {
		return false
	}
	b, err := tokenAlphabet().DecodeString(token[len(tokenStart):])
	if err != nil || len(b) != tokenRandom+tokenSum {
		return false
	}
	return subtle.ConstantTimeCompare(b[tokenRandom:], sumOf(b[:tokenRandom])) == 1
}

func sumOf(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:tokenSum]
}
