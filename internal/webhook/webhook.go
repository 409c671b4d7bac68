// Package webhook tells people's programs what happened: endpoints, deliveries in
// the transaction of their event, signatures, retries, a log, and replays.
//
// A delivery holds ids; what is told is looked up for each attempt, so that nothing
// is told of what has been deleted. Addresses and secrets lie sealed with their
// owner's key and stand in no log; of an answer only status and time are kept.
package webhook

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/outbound"
	"zimage/internal/problem"
	"zimage/internal/vault"
)

// The kinds of job of this room.
const (
	KindDeliver  = "webhook:deliver"
	KindResume   = "webhook:resume"
	KindFarewell = "webhook:farewell"
	KindForget   = "webhook:forget"
	KindExpiring = "webhook:expiring"
)

const (
	// Lane is where deliveries wait: what hangs holds up nothing but deliveries.
	Lane = "webhook"
	// Slots is how many calls a worker makes at once.
	Slots = 32
	// SlotsPerEndpoint is how many of these may be to one endpoint.
	SlotsPerEndpoint = 8
	// SlotsPerOwner is how many may be to all endpoints of one person.
	SlotsPerOwner = 16
)

const (
	// endpointsMost is how many endpoints an account may have.
	endpointsMost = 20
	// rotating is how long the old secret signs beside the new one.
	rotating = 24 * time.Hour
	// disableAfter is how long nothing but failure disables an endpoint.
	disableAfter = 5 * 24 * time.Hour
)

// schedule is how long after the attempt before each attempt is made. What is
// still not told after the last one has failed.
var schedule = []time.Duration{0, 5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

// Told are the events that an endpoint can be told of, in the order in which they
// are documented.
var Told = []events.Type{
	events.GenerationStarted, events.GenerationSucceeded, events.GenerationFailed, events.GenerationCanceled,
	events.GenerationDeleted, events.ImageDeleted, events.ImageExpiring, events.ExportReady, events.AccountClosing,
}

// ToldOnce are those of which an address can be told that was given with one
// generation.
var ToldOnce = []events.Type{
	events.GenerationStarted, events.GenerationSucceeded, events.GenerationFailed, events.GenerationCanceled,
}

// Test is the event that a test sends.
const Test = "webhook.test"

// A Generation is what the room is told of one.
type Generation struct {
	ID             string
	Status         string
	Code           string // why it failed
	Images         []string
	CreatedAt      time.Time
	StartedAt      time.Time // zero: not yet
	FinishedAt     time.Time // zero: not yet
	ExpiresAt      time.Time
	Prompt         string
	NegativePrompt string
	Metadata       map[string]string
}

// Options for New. All are required but Ended and PublicURL; Expiring for its schedule alone.
type Options struct {
	DB     *db.DB
	Vault  *vault.Vault
	Queue  *jobs.Queue
	Clock  *clock.Clock
	Log    *slog.Logger
	Client *outbound.Client

	// Generation looks a generation up for its owner: NotFound and DataRemoved once it
	// is gone.
	Generation func(ctx context.Context, owner, id string) (Generation, error)
	// Expiring are an owner's images behind one of them that are deleted by themselves by
	// then, in the order of their ids; without those that were made for no longer than life.
	Expiring func(ctx context.Context, owner string, until time.Time, life time.Duration, after string, limit int) ([]Image, error)
	// Tell mails the person, in the transaction.
	Tell func(ctx context.Context, tx *db.Tx, owner string, template mail.Template, data map[string]string) error
	// Ended is told, in the transaction, which endpoints people deleted or changed. Nil: nobody is.
	Ended func(ctx context.Context, tx *db.Tx, owner, kind string, ids ...string)

	// Kept is the moment before which events and deliveries are looked back on no more, by
	// the policy.
	Kept func(now time.Time) time.Time

	PublicURL string // of links
}

// Service is the room. Its methods are safe for concurrent use.
type Service struct{ Options }

// New makes the room and registers its kinds of job.
func New(o Options) *Service {
	o.PublicURL = strings.TrimRight(o.PublicURL, "/")
	s := &Service{o}
	// Whether there is another attempt is decided by the schedule.
	o.Queue.Register(jobs.Kind{Name: KindDeliver, Lane: Lane, MaxAttempts: 1 << 30, Timeout: time.Minute, Run: s.deliver})
	o.Queue.Register(jobs.Kind{Name: KindResume, MaxAttempts: 100, Run: s.resume})
	o.Queue.Register(jobs.Kind{Name: KindExpiring, Run: s.tellExpiring})
	o.Queue.Register(jobs.Kind{Name: KindForget, MaxAttempts: 100, Run: s.forget})
	o.Queue.Register(jobs.Kind{Name: KindFarewell, Lane: Lane, MaxAttempts: 100, Timeout: time.Minute, Run: s.farewell})
	return s
}

// jitter is d, a tenth more or less, so that what failed together does not come back
// together.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64())) //nolint:gosec // spreads load, decides nothing
}

// away turns an error of a part that is away into one the caller can act on.
func away(err error) error {
	var p *problem.Error
	if err == nil || errors.As(err, &p) {
		return err
	}
	return db.Unavailable(err)
}

var (
	errNoEndpoint = problem.New(problem.NotFound, "There is no such webhook.")
	errNoDelivery = problem.New(problem.NotFound, "There is no such delivery.")
)
