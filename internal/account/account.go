// Package account is the room of accounts: how people sign up, sign in and prove
// who they are, what they say about themselves, and the API keys by which
// programs act for them.
//
// It never stores a token, a code or a readable address: each is found by a keyed
// hash, and what is to be read again lies sealed with its owner's key. It knows
// nothing of what an account is used for.
package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/alexedwards/argon2id"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// Options for New.
type Options struct {
	DB     *db.DB
	Vault  *vault.Vault
	Clock  *clock.Clock
	Log    *slog.Logger
	Mail   *mail.Mailer
	Events *events.Log
	// PublicURL is the address that browsers know the service by: passkeys are
	// bound to its host.
	PublicURL string
	// PolicyVersion is the one that consents are given to.
	PolicyVersion string
	// Place says roughly where an address is; nil: nobody knows.
	Place func(netip.Addr) string
	// Level is the grid on which answers end that must not tell by their time
	// whether an account exists; 0: none.
	Level time.Duration
	// HashQueue is how many may wait for a password to be hashed; 0 means 64.
	HashQueue int
	// HashCost of new passwords; nil: what OWASP asks for. Tests pass a cheap one.
	HashCost *argon2id.Params
}

// A Service is safe for concurrent use.
type Service struct {
	o      Options
	db     *db.DB
	vault  *vault.Vault
	clock  *clock.Clock
	hasher *hasher
	known  *known
	uses   *uses

	sessionForm, codeForm form
}

// New makes the room. Run must run beside it for last uses to be written and
// for what has expired to go.
func New(o Options) *Service {
	s := &Service{
		o: o, db: o.DB, vault: o.Vault, clock: o.Clock,
		hasher: newHasher(o.HashQueue),
		known:  newKnown(),
		uses:   newUses(),

		sessionForm: sessionForm(o.Vault), codeForm: codeForm(o.Vault),
	}
	if o.HashCost != nil {
		s.hasher.params = o.HashCost
	}
	return s
}

// CreateUser makes an account for the operator, who answers for the address and
// for the age of its owner, and returns its subject id. It returns InvalidRequest
// for what is no mail address or not allowed as a password, and Conflict when the
// address has an account.
func (s *Service) CreateUser(ctx context.Context, email, password string) (string, error) {
	return s.createUser(ctx, email, password, func(*db.Tx, string) error { return nil })
}

// CreateUserFor is CreateUser for somebody else, who is told of it by mail.
func (s *Service) CreateUserFor(ctx context.Context, staff Principal, email, password string) (string, error) {
	if err := staff.atTheMachine("Accounts for others are made"); err != nil {
		return "", err
	}
	return s.createUser(ctx, email, password, func(tx *db.Tx, id string) error {
		err := s.o.Events.Append(ctx, tx, events.Event{Type: events.StaffMadeAccount, Subject: id, At: s.clock.Now(),
			Facts: map[events.Fact]string{events.Staff: staff.Subject, events.Role: string(staff.Role)}})
		if err != nil {
			return err
		}
		return s.tell(ctx, tx, id, mail.AccountMade, nil)
	})
}

func (s *Service) createUser(ctx context.Context, email, password string, also func(tx *db.Tx, id string) error) (string, error) {
	email, canonical, err := normalise(email)
	if err != nil {
		return "", err
	}
	if err := checkPassword(password, canonical, ""); err != nil {
		return "", err
	}
	lookup := s.emailLookup(canonical)
	// Looked at first only to spare the work; the unique column decides.
	switch _, err := s.findUser(ctx, lookup); {
	case err == nil:
		return "", taken()
	case problem.CodeOf(err) != problem.NotFound:
		return "", err
	}
	hash, err := s.hash(ctx, password)
	if err != nil {
		return "", err
	}

	// The key first, the account second: what breaks off in between leaves a key
	// without an account, which vault.SweepUnowned removes, and never an account
	// whose key is missing.
	now := s.clock.Now()
	id := db.NewID("sub", now)
	if err := s.vault.Create(ctx, id); err != nil {
		return "", away(fmt.Errorf("create a user: %w", err))
	}
	sealed, err := s.vault.Seal(ctx, id, []byte(email), emailData(id))
	if err != nil {
		return "", away(fmt.Errorf("create a user: %w", err))
	}
	var pending []string
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.New(ctx, tx, id, now); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO users (id, email_lookup, email, password, created_at) VALUES (?, ?, ?, ?, ?)`,
			id, lookup, sealed, hash, now.UnixMilli()); err != nil {
			return err
		}
		var err error
		if pending, err = dropSignUps(ctx, tx, lookup); err != nil {
			return err
		}
		return also(tx, id)
	})
	if db.IsUnique(err) {
		s.discard(ctx, id) // certain to be unused
		return "", taken()
	}
	if err != nil {
		return "", away(fmt.Errorf("create a user: %w", err))
	}
	s.discard(ctx, pending...)
	return id, nil
}

func taken() error {
	return problem.New(problem.Conflict, "There is an account with this mail address already.")
}

// FindUser returns the subject id of the account with this mail address, or
// NotFound.
func (s *Service) FindUser(ctx context.Context, email string) (string, error) {
	_, canonical, err := normalise(email)
	if err != nil {
		return "", err
	}
	return s.findUser(ctx, s.emailLookup(canonical))
}

func (s *Service) findUser(ctx context.Context, lookup string) (string, error) {
	var id string
	err := s.db.Get(ctx, &id, `SELECT id FROM users WHERE email_lookup = ?`, lookup)
	if errors.Is(err, sql.ErrNoRows) {
		return "", problem.New(problem.NotFound, "There is no account with this mail address.")
	}
	if err != nil {
		return "", away(fmt.Errorf("find a user: %w", err))
	}
	return id, nil
}

// Owned says which of the subjects have an account, or may get one by a sign-up
// that waits for its code, for vault.SweepUnowned.
func (s *Service) Owned(ctx context.Context, subjects []string) (map[string]bool, error) {
	owned := make(map[string]bool, len(subjects))
	if len(subjects) == 0 {
		return owned, nil
	}
	args := db.Args(subjects)
	in := ` WHERE id IN (` + db.Marks(len(args)) + `)`
	var ids []string
	// One statement: a sign-up that is confirmed meanwhile stands in one of both.
	if err := s.db.Select(ctx, &ids, `SELECT id FROM users`+in+` UNION SELECT id FROM signups`+in, append(args, args...)...); err != nil {
		return nil, fmt.Errorf("look for accounts: %w", err)
	}
	for _, id := range ids {
		owned[id] = true
	}
	return owned, nil
}

func (s *Service) emailLookup(canonical string) string { return s.vault.Lookup("email", canonical) }

func emailData(subject string) []byte { return vault.Column("users", "email", subject) }

// away marks a database that cannot be reached as Unavailable, so that callers
// try again. Neither the end of the caller's own context nor a key that is
// missing or damaged gets better by that.
func away(err error) error {
	var p *problem.Error
	var r *vault.RootError
	switch {
	case errors.As(err, &p):
		return p // what was done when it came up is nothing to the caller
	case errors.As(err, &r),
		errors.Is(err, vault.ErrNoKey), errors.Is(err, vault.ErrExists), errors.Is(err, vault.ErrDestroyed), errors.Is(err, vault.ErrCorrupt),
		errors.Is(err, context.Canceled):
		return err
	}
	return db.Unavailable(err)
}
