package db

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// SkipLocked ends a SELECT that takes rows nobody else is working on. SQLite
// has one writer, so there is nobody else.
func SkipLocked(q Querier) string {
	if q.Dialect() == Postgres {
		return " FOR UPDATE SKIP LOCKED "
	}
	return " "
}

// InOnce is the condition that a column is among what a subquery finds, which is
// run once. Behind a plain IN PostgreSQL may run it for every row, and with
// SkipLocked it finds others each time.
func InOnce(q Querier, subquery string) string {
	if q.Dialect() == Postgres {
		return "= ANY (ARRAY(" + subquery + "))"
	}
	return "IN (" + subquery + ")"
}

// ForUpdate ends a SELECT that waits for the row and keeps it.
func ForUpdate(q Querier) string {
	if q.Dialect() == Postgres {
		return " FOR UPDATE "
	}
	return " "
}

// Greatest names the function for the larger of several values.
func Greatest(q Querier) string {
	if q.Dialect() == Postgres {
		return "greatest"
	}
	return "max"
}

// Marks is "?, ?, ?" for n parameters, for IN lists and rows of values.
func Marks(n int) string { return Rows("?", n) }

// Args are what Marks stand for.
func Args(list []string) []any {
	all := make([]any, len(list))
	for i, one := range list {
		all[i] = one
	}
	return all
}

// Rows is a row of parameters such as "(?, ?)" n times, behind VALUES.
func Rows(row string, n int) string {
	return strings.TrimSuffix(strings.Repeat(row+", ", n), ", ")
}

// idLetters are what ids are made of behind their prefix, in the order of C.
const idLetters = "0123456789abcdefghjkmnpqrstvwxyz"

var idAlphabet = base32.NewEncoding(idLetters).WithPadding(base32.NoPadding)

// NewID makes an id such as gen_06f3…: the prefix, then 48 bits of milliseconds
// and 80 random bits in Crockford's base 32, so that ids sort by their time and
// cannot be guessed.
func NewID(prefix string, now time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	if _, err := rand.Read(b[6:]); err != nil {
		panic(err) // the kernel's generator does not fail
	}
	return prefix + "_" + idAlphabet.EncodeToString(b[:])
}

// NextID is NewID for one that is to sort behind another, however the clocks of those who
// made them go.
func NextID(prefix string, now time.Time, last string) string {
	id := NewID(prefix, now)
	b, err := idAlphabet.DecodeString(strings.TrimPrefix(last, prefix+"_"))
	if id > last || err != nil || len(b) != 16 {
		return id
	}
	var step [8]byte
	if _, err := rand.Read(step[:]); err != nil {
		panic(err) // as in NewID
	}
	low, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(step[:])|1, 0)
	high, _ := bits.Add64(binary.BigEndian.Uint64(b[:8]), 0, carry)
	binary.BigEndian.PutUint64(b[8:], low)
	binary.BigEndian.PutUint64(b[:8], high)
	return prefix + "_" + idAlphabet.EncodeToString(b)
}

// Numbered names an id and a number of it, such as a time, where one text is to name both.
func Numbered(id string, n int64) string { return id + "@" + strconv.FormatInt(n, 10) }

// ParseNumbered reads what Numbered wrote; false, and the text as the id, for any other.
func ParseNumbered(text string) (id string, n int64, ok bool) {
	id, number, _ := strings.Cut(text, "@")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return text, 0, false
	}
	return id, n, true
}

// FloorID is the smallest id of the prefix that could have been made at t: ids
// can be cut by time without another index.
func FloorID(prefix string, t time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(t.UnixMilli())<<16)
	return prefix + "_" + idAlphabet.EncodeToString(b[:])
}
