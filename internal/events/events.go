// Package events tells what happened, in the transaction in which it happened,
// to the subscribers that app registered. An event that its subscribers cannot
// take rolls the transaction back with it: either both are true or none.
//
// Nobody tails a table of events, and an event carries ids and times only.
package events

import (
	"context"
	"time"

	"zimage/internal/db"
)

// A Type of event. The names are the ones that webhooks will use.
type Type string

// The events.
const (
	GenerationQueued    Type = "generation.queued"
	GenerationSucceeded Type = "generation.succeeded"
	GenerationFailed    Type = "generation.failed"
	GenerationCanceled  Type = "generation.canceled"
	GenerationDeleted   Type = "generation.deleted"
	ImageDeleted        Type = "image.deleted"
	AccountClosing      Type = "account.closing"    // access has ended; its work is to stop
	AccountRestricted   Type = "account.restricted" // as its owner asked; its work is to stop
	AccountSuspended    Type = "account.suspended"  // by the operator; its work is to stop
	AccountRecovered    Type = "account.recovered"  // entered anew without what it was locked with: what was made ready for who was in it before is void
)

// An Event says what happened to what.
type Event struct {
	Type    Type
	Subject string // whose it is
	Ref     string // the generation or image
	Reason  string // of a deletion: user or expired
	At      time.Time
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
