package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// SetDoNotSell keeps that the person's data is not to be sold or shared, or that they
// take this back. Nothing is sold either way. Saying again what is so costs no write.
func (s *Service) SetDoNotSell(ctx context.Context, p Principal, on bool) error {
	since, err := doNotSellSince(ctx, s.db, p.Subject)
	if err != nil || since.Valid == on {
		return away(err)
	}
	err = s.change(ctx, p, func(tx *db.Tx) error { return s.doNotSell(ctx, tx, p.Subject, on) })
	s.known.forgetOwner(p.Subject)
	return err
}

func doNotSellSince(ctx context.Context, q db.Querier, owner string) (since sql.NullInt64, err error) {
	err = q.Get(ctx, &since, `SELECT do_not_sell_at FROM users WHERE id = ?`, owner)
	if errors.Is(err, sql.ErrNoRows) {
		err = subject.NoAccount()
	}
	return since, err
}

func (s *Service) doNotSell(ctx context.Context, tx *db.Tx, owner string, on bool) error {
	now := s.clock.Now()
	statement, what, args := `UPDATE users SET do_not_sell_at = ? WHERE id = ? AND do_not_sell_at IS NULL`, events.DoNotSellSet, []any{now.UnixMilli(), owner}
	if !on {
		statement, what, args = `UPDATE users SET do_not_sell_at = NULL WHERE id = ? AND do_not_sell_at IS NOT NULL`, events.DoNotSellWithdrawn, []any{owner}
	}
	n, err := tx.Exec(ctx, statement, args...)
	if err != nil || n == 0 {
		return err
	}
	return s.o.Events.Append(ctx, tx, events.Event{Type: what, Subject: owner, At: now})
}

// Address is a mail address as it is written to, and as it is compared.
func (s *Service) Address(email string) (address, canonical string, err error) {
	return normalise(email)
}

// Owner is whose account has the mail address, also when it is closing; empty:
// nobody's.
func (s *Service) Owner(ctx context.Context, q db.Querier, email string) (string, error) {
	_, canonical, err := normalise(email)
	if err != nil {
		return "", err
	}
	var id string
	err = q.Get(ctx, &id, `SELECT id FROM users WHERE email_lookup = ?`, s.emailLookup(canonical))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("find a user: %w", err)
	}
	return id, nil
}

// Honour does what somebody asked for outside their account, once they have shown
// that its address is theirs: events.AccountClosing, AccountRestricted, ObjectionMade
// to every use that can be objected to and to marketing, or DoNotSellSet.
func (s *Service) Honour(ctx context.Context, tx *db.Tx, owner string, right events.Type) error {
	if err := subject.Enter(ctx, tx, owner, subject.Account); err != nil {
		return err
	}
	tx.AfterCommit(func() { s.known.forgetOwner(owner) })
	switch right {
	case events.AccountClosing:
		return s.close(ctx, tx, owner, nil)
	case events.AccountRestricted:
		return s.restrict(ctx, tx, owner)
	case events.ObjectionMade:
		for _, purpose := range subject.ObjectionPurposes() {
			if err := s.object(ctx, tx, owner, purpose); err != nil {
				return err
			}
		}
		return s.withdrawConsent(ctx, tx, owner, subject.Marketing)
	case events.DoNotSellSet:
		return s.doNotSell(ctx, tx, owner, true)
	}
	return problem.New(problem.Internal, "There is no such right.")
}

// withdrawConsent ends a use that rests on a consent, if there is one.
func (s *Service) withdrawConsent(ctx context.Context, tx *db.Tx, owner string, purpose subject.Purpose) error {
	given, err := subject.Consents(ctx, tx, owner)
	if err != nil {
		return err
	}
	for _, c := range given {
		if c.Purpose == purpose && c.Granted {
			return s.setConsent(ctx, tx, owner, purpose, false, s.o.PolicyVersion, s.clock.Now())
		}
	}
	return nil
}

// Guarded reports whether a second factor of the account is in force. It stays so until
// the transaction ends.
func (s *Service) Guarded(ctx context.Context, tx *db.Tx, owner string) (bool, error) {
	state, err := s.factors(ctx, tx, owner)
	return state.any(), err
}

// ForgetSignUps removes sign-ups of an address that nobody has confirmed, at the wish
// of who has shown that it is theirs.
func (s *Service) ForgetSignUps(ctx context.Context, tx *db.Tx, email string) error {
	_, canonical, err := normalise(email)
	if err != nil {
		return err
	}
	gone, err := dropSignUps(ctx, tx, s.emailLookup(canonical))
	if err == nil {
		tx.AfterCommit(func() { s.discard(ctx, gone...) })
	}
	return err
}
