// Package events tells what happened, in the transaction in which it happened,
// to the subscribers that app registered. An event that its subscribers cannot
// take rolls the transaction back with it: either both are true or none.
//
// Nobody tails a table of events. An event carries ids and times, and beside them
// facts, which may be words of people: whoever keeps them seals them.
package events

import (
	"context"
	"time"

	"zimage/internal/db"
)

// A Type of event. Those of which webhooks tell are told by these names.
type Type string

// The events.
const (
	GenerationQueued    Type = "generation.queued"
	GenerationStarted   Type = "generation.started" // an attempt of it; may be missing, and come again
	GenerationSucceeded Type = "generation.succeeded"
	GenerationFailed    Type = "generation.failed"
	GenerationCanceled  Type = "generation.canceled"
	GenerationDeleted   Type = "generation.deleted"
	ImageDeleted        Type = "image.deleted"
	ImageExpiring       Type = "image.expiring" // its time is nearly over

	ExportReady Type = "export.ready"

	AccountClosing      Type = "account.closing"      // access has ended; its work is to stop
	AccountRestricted   Type = "account.restricted"   // as its owner asked; its work is to stop
	AccountUnrestricted Type = "account.unrestricted" // as its owner asked
	AccountSuspended    Type = "account.suspended"    // by the operator; its work is to stop
	AccountRecovered    Type = "account.recovered"    // entered anew without what it was locked with: what was made ready for who was in it before is void

	ConsentGiven       Type = "consent.given"
	ConsentWithdrawn   Type = "consent.withdrawn"
	ObjectionMade      Type = "objection.made"
	ObjectionWithdrawn Type = "objection.withdrawn"

	DoNotSellSet       Type = "do_not_sell.set" // by the person or a signal of their browser
	DoNotSellWithdrawn Type = "do_not_sell.withdrawn"

	// What staff did with somebody's account, with staff, role and reason.
	StaffOpened       Type = "staff.opened"
	StaffLookedFor    Type = "staff.looked_for"   // an account that is not there: nobody's, without the reason
	StaffMadeAccount  Type = "staff.made_account" // at the machine, which asks for no reason
	StaffSuspended    Type = "staff.suspended"
	StaffUnsuspended  Type = "staff.unsuspended"
	StaffClosed       Type = "staff.closed"
	StaffClosedChild  Type = "staff.closed_child" // the person turned out to be under 13
	StaffResetFactors Type = "staff.reset_factors"
	StaffGaveRole     Type = "staff.gave_role" // the ref is the role
	StaffTookRole     Type = "staff.took_role"
	StaffListedKeys   Type = "staff.listed_keys"
	StaffMadeKey      Type = "staff.made_key" // the ref is the key
	StaffRevokedKey   Type = "staff.revoked_key"
	StaffDisclosed    Type = "staff.disclosed" // personal data was handed out under law

	// The ref is the record.
	HoldPlaced   Type = "hold.placed"
	HoldReleased Type = "hold.released"
	HoldRenewed  Type = "hold.renewed" // it has another date of review

	// The ref is the request.
	RequestOpened  Type = "request.opened"
	RequestChanged Type = "request.changed"
	RequestClosed  Type = "request.closed"

	PolicyPublished Type = "policy.published" // nobody's; the ref is the version
)

// A Fact names what is told of an event beside its ids.
type Fact string

// The facts.
const (
	Staff     Fact = "staff"     // who acted: a subject id, or cli for the machine; never shown to the person
	Role      Fact = "role"      // of the staff
	Reason    Fact = "reason"    // why, in the staff's words
	Purpose   Fact = "purpose"   // of a consent or objection
	Policy    Fact = "policy"    // version of the words that were agreed to
	Case      Fact = "case"      // reference of a disclosure or hold
	Authority Fact = "authority" // to whom was disclosed
	Scope     Fact = "scope"     // what was disclosed; table of what is held; kind of a request
	State     Fact = "state"     // of a request, or its outcome
	Date      Fact = "date"      // since when a policy is in force

	WebhookURL    Fact = "webhook_url"    // that is to be told of a generation
	WebhookEvents Fact = "webhook_events" // of which events, separated by spaces
)

// An Event says what happened to what.
type Event struct {
	Type    Type
	Subject string // whose it is; empty: nobody's
	Ref     string // the generation, image, record
	Whole   string // the generation of an image
	Reason  string // of a deletion: user or expired
	At      time.Time
	// Sequence grows with the events of a generation.
	Sequence int64
	Facts    map[Fact]string
	Hidden   bool // the person must not be told
}

// A Subscriber writes what follows from an event, in its transaction.
type Subscriber func(ctx context.Context, tx *db.Tx, e Event) error

// Log passes events on. Subscribers are given once, by app.
type Log struct{ subscribers []Subscriber }

// New makes a log with its subscribers, called in this order.
func New(subscribers ...Subscriber) *Log { return &Log{subscribers} }

// Append tells every subscriber; the first error ends it.
func (l *Log) Append(ctx context.Context, tx *db.Tx, e Event) error {
	for _, s := range l.subscribers {
		if err := s(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}
