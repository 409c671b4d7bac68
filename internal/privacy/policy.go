package privacy

import (
	_ "embed" // Example
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"zimage/internal/subject"
)

// Example is the shipped policy file, commented, to start from.
//
//go:embed policy.yaml
var Example []byte

// A Policy is what the operator promises. ParsePolicy and DefaultPolicy make it;
// it is never changed.
type Policy struct {
	Version          string    // what consents are given to
	Date             time.Time // in force since; midnight UTC
	Changes          string    // against the version before, in words
	Controller       Controller
	Contacts         Contacts
	Authority        Authority // zero: none is named
	Windows          Windows
	Backups          Window // the age at which the last backup is destroyed; at most Windows.Deletion
	VolumeEncryption string // what the operator declares; empty: nothing
	Purposes         []Purpose
	Processors       []Processor
}

// Controller is who answers for the data.
type Controller struct{ Name, Address string }

// Contacts are mail addresses.
type Contacts struct{ Privacy, DPO, Security string }

// Authority is where the operator is supervised.
type Authority struct{ Name, URL string }

// Windows are how long things are kept.
type Windows struct {
	GeneratedContent Window // in days
	Deletion         Window // in days, at most 30: until a deletion is complete, backups too
	Usage            Window
	Support          Window
}

// A Basis is why the law allows a purpose.
type Basis string

// The bases, after Article 6 GDPR.
const (
	Contract            Basis = "contract"
	LegalObligation     Basis = "legal_obligation"
	WithConsent         Basis = "consent"
	LegitimateInterests Basis = "legitimate_interests"
)

// A Purpose is one that subject decides about, in words.
type Purpose struct {
	ID          subject.Purpose
	Name, Words string
	Basis       Basis
}

// A Processor is another company that handles data for the operator.
type Processor struct {
	ID, Name     string
	Purpose      string            // what it does
	Purposes     []subject.Purpose // for which it is given data
	Serves       []Connection      // what the program reaches at it; empty: nothing of what the settings name
	Categories   []string          // of data that it gets
	Place        string
	Safeguard    string // for the transfer to that place
	Contract     string
	ContractDate time.Time
}

// A Connection is a service that settings lead the program to, and that another
// company may run.
type Connection string

// The connections.
const (
	ToDatabase Connection = "database" // the key store too
	ToRedis    Connection = "redis"
	ToS3       Connection = "s3"
	ToSMTP     Connection = "smtp"
	ToEngine   Connection = "engine"
)

var connections = []Connection{ToDatabase, ToRedis, ToS3, ToSMTP, ToEngine}

// Unbound are the processors without a contract that serve a connection.
func (p Policy) Unbound(c Connection) (ids []string) {
	for _, one := range p.Processors {
		if !one.On() && slices.Contains(one.Serves, c) {
			ids = append(ids, one.ID)
		}
	}
	return ids
}

// On reports whether it may be given anything: only under a contract with a date.
func (p Processor) On() bool { return p.Contract != "" && !p.ContractDate.IsZero() }

// Processor finds one by its id. One that is not in the register is off.
func (p Policy) Processor(id string) Processor {
	i := slices.IndexFunc(p.Processors, func(one Processor) bool { return one.ID == id })
	if i < 0 {
		return Processor{}
	}
	return p.Processors[i]
}

// For are the names of the purposes for which a processor is given data.
func (p Policy) For(one Processor) []string {
	var names []string
	for _, purpose := range p.Purposes {
		if slices.Contains(one.Purposes, purpose.ID) {
			names = append(names, purpose.Name)
		}
	}
	return names
}

// DefaultPolicy is the shipped one, which names no real operator.
func DefaultPolicy() Policy {
	p, err := ParsePolicy(Example)
	if err != nil {
		panic(err) // embedded, and read by every test
	}
	return p
}

// Placeholders are the paths of what still says what the shipped policy does,
// though it is about nobody.
func (p Policy) Placeholders() []string {
	d := DefaultPolicy()
	var left []string
	for _, v := range []struct{ path, is, shipped string }{
		{"controller.name", p.Controller.Name, d.Controller.Name},
		{"controller.address", p.Controller.Address, d.Controller.Address},
		{"contacts.privacy", p.Contacts.Privacy, d.Contacts.Privacy},
		{"contacts.dpo", p.Contacts.DPO, d.Contacts.DPO},
		{"contacts.security", p.Contacts.Security, d.Contacts.Security},
	} {
		if v.is == v.shipped {
			left = append(left, v.path)
		}
	}
	return left
}

// A Window is how long something is kept: whole days or calendar months, in UTC.
// The zero value is none.
type Window struct {
	n      int
	months bool
}

// Days is a window of n days.
func Days(n int) Window { return Window{n: n} }

// Months is a window of n calendar months.
func Months(n int) Window { return Window{n: n, months: true} }

// ParseWindow reads what String writes.
func ParseWindow(text string) (Window, bool) {
	number, unit, ok := strings.Cut(text, " ")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 1 || n > 3650 || strconv.Itoa(n) != number {
		return Window{}, false
	}
	switch strings.TrimSuffix(unit, "s") {
	case "day":
		return Days(n), true
	case "month":
		return Months(n), n <= 120
	}
	return Window{}, false
}

// Days is its length when it is given in days; false when in months.
func (w Window) Days() (int, bool) { return w.n, !w.months }

// Before is the moment on whose far side everything is past its window: the same
// day of an earlier month, or the end of that month where it has no such day. As
// time goes on it never goes back.
func (w Window) Before(now time.Time) time.Time {
	now = now.UTC()
	if !w.months {
		return now.AddDate(0, 0, -w.n)
	}
	then := now.AddDate(0, -w.n, 0)
	if then.Day() != now.Day() { // AddDate has gone on into the next month
		return time.Date(then.Year(), then.Month(), 1, 0, 0, 0, 0, time.UTC).Add(-time.Millisecond)
	}
	return then
}

// After is when what began then is past its window: the first moment whose Before
// is not earlier.
func (w Window) After(then time.Time) time.Time {
	then = then.UTC()
	if !w.months {
		return then.AddDate(0, 0, w.n)
	}
	end := then.AddDate(0, w.n, 0)
	if end.Day() != then.Day() { // a month without such a day, which AddDate has left
		return time.Date(end.Year(), end.Month(), 1, 0, 0, 0, 0, time.UTC)
	}
	return end
}

// MarshalText writes what ParseWindow reads; nothing for none.
func (w Window) MarshalText() ([]byte, error) {
	if w.n == 0 {
		return nil, nil
	}
	return []byte(w.String()), nil
}

func (w Window) String() string {
	unit := "day"
	if w.months {
		unit = "month"
	}
	if w.n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", w.n, unit)
}

// longer reports whether it can be longer than another: a month has up to 31 days.
func (w Window) longer(than Window) bool {
	days := func(v Window, month int) int {
		if v.months {
			return v.n * month
		}
		return v.n
	}
	if w.months == than.months {
		return w.n > than.n
	}
	return days(w, 31) > days(than, 28)
}
