package account

import (
	"context"
	"fmt"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/subject"
)

// Close ends an account for good, at its owner's wish: with one more proof of
// who they are, in a session that has not ended since the request came, every
// session and key ends in one transaction, queued and running work is told to
// stop, and what is left waits for its erasure. Signing in again does not bring
// it back. also is what must be true with it, in the same transaction.
func (s *Service) Close(ctx context.Context, p Principal, c Client, cr Credentials, also ...func(*db.Tx) error) error {
	err := s.proveThen(ctx, p, c, cr, func(tx *db.Tx, _ Method) error {
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		if err := s.close(ctx, tx, p.Subject, nil); err != nil {
			return err
		}
		for _, f := range also {
			if err := f(tx); err != nil {
				return err
			}
		}
		return nil
	})
	s.known.forgetOwner(p.Subject)
	return err
}

// close is one transaction's part of every way to close an account. Closing a
// closed one changes nothing. by says who of the staff closes it; nil: its owner.
func (s *Service) close(ctx context.Context, tx *db.Tx, owner string, by map[events.Fact]string) error {
	now := s.clock.Now()
	closed, err := subject.Close(ctx, tx, owner, now)
	if err != nil || !closed {
		return err
	}
	// Before the address is of no use any more.
	if err := s.tell(ctx, tx, owner, mail.AccountClosed, nil); err != nil {
		return err
	}
	for _, end := range []struct {
		sql  string
		args []any
	}{
		{`DELETE FROM sessions WHERE owner = ?`, []any{owner}},
		{`UPDATE api_keys SET revoked_at = ? WHERE owner = ? AND revoked_at IS NULL`, []any{now.UnixMilli(), owner}},
		{`DELETE FROM mailed_links WHERE owner = ?`, []any{owner}},
		{`DELETE FROM recovery_codes WHERE owner = ?`, []any{owner}},
		{`DELETE FROM passkeys WHERE owner = ?`, []any{owner}},
		{`DELETE FROM passkey_challenges WHERE owner = ?`, []any{owner}},
		{`UPDATE users SET role = '', totp_secret = NULL, totp_confirmed_at = NULL WHERE id = ?`, []any{owner}},
	} {
		if _, err := tx.Exec(ctx, end.sql, end.args...); err != nil {
			return fmt.Errorf("end all access: %w", err)
		}
	}
	return s.o.Events.Append(ctx, tx, events.Event{Type: events.AccountClosing, Subject: owner, Ref: owner, At: now, Facts: by})
}
