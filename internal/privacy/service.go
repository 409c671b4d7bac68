package privacy

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/vault"
)

// Options for New. What does not say otherwise is required.
type Options struct {
	DB       *db.DB
	Keys     *db.DB // the key store, which also holds the journal of erasures
	Vault    *vault.Vault
	Objects  objects.Store
	Queue    *jobs.Queue
	Clock    *clock.Clock
	Mail     *mail.Mailer
	Map      *Map
	Log      *slog.Logger
	Registry prometheus.Registerer // nil: the metrics are not shown

	// Sign signs receipts with the installation's Ed25519 key. Nil: they are not
	// signed, and say so.
	Sign func(ctx context.Context, message []byte) (signature, publicKey []byte, err error)
	// Processors are told of every erasure.
	Processors []Processor
	// Deadline of an erasure, from the request until nothing is left in backups
	// either; 0 means 30 days.
	Deadline time.Duration
	// Backups is the age at which the last backup of anything is destroyed; 0
	// means 28 days.
	Backups time.Duration
	// Unrecoverable is from when on no backup opens a key that is destroyed now.
	// Nil: after Backups.
	Unrecoverable func() time.Time
}

// A Service is safe for concurrent use.
type Service struct {
	o       Options
	metrics *erasureMetrics

	// at is called before and after each step of an erasure. Tests end it there.
	at func(step string, done bool) error
}

// New makes the room and registers its jobs.
func New(o Options) *Service {
	if o.Deadline == 0 {
		o.Deadline = 30 * 24 * time.Hour
	}
	if o.Backups == 0 {
		o.Backups = 28 * 24 * time.Hour
	}
	s := &Service{o: o, metrics: newErasureMetrics(o.Registry), at: func(string, bool) error { return nil }}
	o.Queue.Register(s.erasureKind())
	return s
}
