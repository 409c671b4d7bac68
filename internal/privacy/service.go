package privacy

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/problem"
	"zimage/internal/vault"
)

// Options of a Service. All are needed unless they say otherwise.
type Options struct {
	DB      *db.DB
	Keys    *db.DB // the key store
	Vault   *vault.Vault
	Objects objects.Store
	Queue   *jobs.Queue
	Clock   *clock.Clock
	Mail    *mail.Mailer
	Log     *slog.Logger
	Metrics *Metrics
	Map     *Map
	Policy  Policy // whose windows the map names

	// Events is told of requests and holds. Nil: nobody is.
	Events *events.Log
	// Accounts fulfils what was asked for outside an account. Nil: nothing can be.
	Accounts Accounts

	// Erasers are asked by every erasure. None: nobody outside holds anything.
	Erasers []Eraser

	// Removes end the content of rows, by table, where retention would not know all
	// that goes with it.
	Removes map[string]Remove
	// Drops delete rows, by table, with those of other tables that belong to them.
	Drops map[string]Drop
	// Ends are what people end beside their content, by the kind that Ended is told.
	Ends map[string]End

	// Notices are kinds of job that tell of a closing and store nothing: an erasure lets
	// them go out, as it does mails.
	Notices []string
	// Recurring is all recurring work of the installation, whose last success the
	// status tells. None: it tells of none.
	Recurring []jobs.Schedule
}

// Accounts is what the room of accounts does for people who wrote from an address.
type Accounts interface {
	// Address is a mail address as it is written to, and as it is compared.
	Address(email string) (address, canonical string, err error)
	// Owner is whose account has the address; empty: nobody's.
	Owner(ctx context.Context, q db.Querier, email string) (string, error)
	// Honour does what the event says, for the person whose address confirmed it.
	Honour(ctx context.Context, tx *db.Tx, owner string, right events.Type) error
	// Guarded reports whether a second factor of the account is in force.
	Guarded(ctx context.Context, tx *db.Tx, owner string) (bool, error)
	// ForgetSignUps removes sign-ups of the address that nobody has confirmed.
	ForgetSignUps(ctx context.Context, tx *db.Tx, email string) error
}

// Service is the room. Its methods are safe for concurrent use.
type Service struct {
	Options
	ledger *Ledger // to read

	// at is called in each phase of each step of an erasure. Tests end it there.
	at func(step string, p phase) error

	once sync.Mutex
	main *plan // what the main database demands; nil: not read yet

	mirrored struct { // what the journal's mirror was asked
		sync.Mutex
		asked  bool
		newest string // of the names that the key store knew then
	}

	apart struct { // the clocks
		sync.Mutex
		told time.Time
	}

	status statusCache
}

// New makes the room and registers its kinds of job.
func New(o Options) (*Service, error) {
	s := &Service{Options: o, ledger: NewLedger(LedgerOptions{DB: o.DB, Vault: o.Vault, Clock: o.Clock}), at: func(string, phase) error { return nil }}
	s.status.measure = s.Measure
	o.Queue.Register(s.erasureKind())
	for _, k := range []jobs.Kind{s.purgeKind(), s.compareKind(), s.holdKind(), s.endedKind()} {
		o.Queue.Register(k)
	}
	return s, errors.Join(s.initExports(), s.checkPurge())
}

// Schedules are the room's recurring work.
func Schedules() []jobs.Schedule {
	return []jobs.Schedule{
		{Name: "export-sweep", Every: time.Hour, Kind: KindExportSweep},
		{Name: sweepSchedule, Every: time.Hour, Kind: KindPurge},
		{Name: holdSchedule, Every: time.Hour, Kind: KindHold},
		{Name: "comparison", Every: 24 * time.Hour, Kind: KindCompare},
	}
}

// Happened is told of every event, in its transaction.
func (s *Service) Happened(ctx context.Context, tx *db.Tx, e events.Event) error {
	switch e.Type {
	case events.AccountClosing:
		if err := s.requestErasure(ctx, tx, db.NewID("era", s.Clock.Now()), e.Subject, e.At, nil); err != nil {
			return err
		}
		if e.Facts[events.Role] != "" {
			if _, err := tx.Exec(ctx, `UPDATE requests SET origin = ? WHERE subject = ? AND kind = ? AND origin = ?`, OriginStaff, e.Subject, RequestErasure, OriginSelf); err != nil {
				return err
			}
		}
		return s.voidExports(ctx, tx, e.Subject)
	case events.AccountRecovered:
		return s.voidExports(ctx, tx, e.Subject)
	}
	return s.rightUsed(ctx, tx, e)
}

// tell mails a person at the address of their account.
func (s *Service) tell(ctx context.Context, tx *db.Tx, owner string, template mail.Template, data map[string]string) error {
	var sealed []byte
	if err := tx.Get(ctx, &sealed, `SELECT email FROM users WHERE id = ?`, owner); err != nil {
		return fmt.Errorf("read an address: %w", err)
	}
	address, err := s.Vault.Unseal(ctx, owner, sealed, vault.Column("users", "email", owner))
	if err != nil {
		return fmt.Errorf("read an address: %w", err)
	}
	return s.Mail.Send(ctx, tx, mail.Message{Subject: owner, To: string(address), Template: template, Data: data})
}

// away turns an error of a part that is away into one the caller can act on.
func away(err error) error {
	var p *problem.Error
	if errors.As(err, &p) {
		return err
	}
	return db.Unavailable(err)
}

func isNone(err error) bool { return errors.Is(err, sql.ErrNoRows) }
