package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// The kinds of mailed links.
const (
	linkEmail    = "email"    // a new address confirms
	linkPassword = "password" // a reset
)

// resetFor is how long the code of a reset is good.
const resetFor = 30 * time.Minute

// linkInvalid is one answer for codes that are unknown, used or expired.
func linkInvalid() error {
	return problem.New(problem.LinkInvalid, "This code is not valid, or not any more. Ask for a new one.")
}

type linkRow struct {
	ID          string `db:"id"`
	Owner       string `db:"owner"`
	EmailLookup string `db:"email_lookup"`
	Email       []byte `db:"email"`
}

// addLink writes a link and returns its code. A zero address means none.
func (s *Service) addLink(ctx context.Context, tx *db.Tx, owner, kind, email, canonical string, life time.Duration) (code string, err error) {
	now := s.clock.Now()
	l := linkRow{ID: db.NewID("link", now), Owner: owner}
	if email != "" {
		l.EmailLookup = s.emailLookup(canonical)
		if l.Email, err = s.vault.Seal(ctx, owner, []byte(email), vault.Column("mailed_links", "email", l.ID)); err != nil {
			return "", fmt.Errorf("add a link: %w", err)
		}
	}
	code = s.codeForm.make()
	_, err = tx.Exec(ctx, `INSERT INTO mailed_links (id, owner, kind, token_lookup, email_lookup, email, created_at, expires_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		l.ID, owner, kind, s.codeLookup(code), l.EmailLookup, l.Email, now.UnixMilli(), now.Add(life).UnixMilli())
	if err != nil {
		return "", fmt.Errorf("add a link: %w", err)
	}
	return code, nil
}

// findLink reads a link that can still be used, and LinkInvalid for any other.
func (s *Service) findLink(ctx context.Context, kind, code string) (l linkRow, err error) {
	if !s.codeForm.fits(code) {
		return l, linkInvalid()
	}
	err = s.db.Get(ctx, &l, `SELECT id, owner, email_lookup, email FROM mailed_links
		WHERE token_lookup = ? AND kind = ? AND used_at IS NULL AND expires_at > ?`, s.codeLookup(code), kind, s.clock.Millis())
	if errors.Is(err, sql.ErrNoRows) {
		return l, linkInvalid()
	}
	if err != nil {
		return l, away(fmt.Errorf("find a link: %w", err))
	}
	return l, nil
}

// useLink uses a link up: of several at once, one. Every other link of its owner
// goes, since what it was mailed for is over or was asked for by somebody whom
// this change shuts out.
func (s *Service) useLink(ctx context.Context, tx *db.Tx, l linkRow) error {
	now := s.clock.Millis()
	// The account first: everybody locks in this order.
	if err := subject.Enter(ctx, tx, l.Owner, subject.Account); isRefusal(err) {
		return linkInvalid()
	} else if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `UPDATE mailed_links SET used_at = ? WHERE id = ? AND used_at IS NULL AND expires_at > ?`, now, l.ID, now)
	if err != nil {
		return fmt.Errorf("use a link: %w", err)
	}
	if n == 0 {
		return linkInvalid()
	}
	if _, err := tx.Exec(ctx, `DELETE FROM mailed_links WHERE owner = ? AND id <> ?`, l.Owner, l.ID); err != nil {
		return fmt.Errorf("use a link: %w", err)
	}
	return nil
}

// RequestReset mails a code with which the password can be set anew. The answer
// is the same when there is no account.
func (s *Service) RequestReset(ctx context.Context, c Client, email string) error {
	started := time.Now()
	_, canonical, err := normalise(email)
	if err != nil {
		return err
	}
	if err = s.requestReset(ctx, c, canonical); !turnedAway(err) {
		s.level(ctx, c, started)
	}
	return err
}

func (s *Service) requestReset(ctx context.Context, c Client, canonical string) error {
	owner, err := s.findUser(ctx, s.emailLookup(canonical))
	if err != nil && problem.CodeOf(err) != problem.NotFound {
		return err
	}
	by, err := s.asker(ctx, c, owner)
	if err != nil {
		return err
	}
	buckets := s.networkBucket(c.Addr)
	for i := range buckets {
		buckets[i].soft = by.known
	}
	if _, err := s.take(ctx, buckets...); err != nil {
		return err
	}
	// By the address and not its mailbox: no letter goes to one without an account,
	// so that those of the same mailbox must not wait for it.
	may, err := s.mayWrite(ctx, mail.ResetPassword, canonical, by)
	if err != nil || !may || owner == "" {
		return err
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.Enter(ctx, tx, owner, subject.Account); err != nil {
			return err
		}
		code, err := s.addLink(ctx, tx, owner, linkPassword, "", "", resetFor)
		if err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.ResetPassword, map[string]string{"Code": code})
	})
	if isRefusal(err) {
		return nil
	}
	return away(err)
}

// Reset sets a new password by a mailed code and ends every session. Second
// factors stay in force: it opens no session. The token it returns, for the
// cookie, only makes the browser known, so that its sign-in is not held up by an
// attack on the account.
//
// It returns LinkInvalid for a code that is unknown, used or expired, and
// InvalidRequest, which leaves the code as it was, for a password that is not
// allowed.
func (s *Service) Reset(ctx context.Context, c Client, code, password string) (device string, err error) {
	if !s.codeForm.fits(code) {
		return "", linkInvalid()
	}
	leave, err := s.enterQueue(ctx, s.codeForm, code, func() (bool, error) {
		_, err := s.findLink(ctx, linkPassword, code)
		if problem.CodeOf(err) == problem.LinkInvalid {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return "", err
	}
	defer leave()
	network, err := s.take(ctx, s.networkBucket(c.Addr)...)
	if err != nil {
		return "", err
	}
	l, err := s.findLink(ctx, linkPassword, code)
	if err != nil {
		return "", err
	}
	hash, err := s.newPassword(ctx, l.Owner, password)
	if err != nil {
		return "", err
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.useLink(ctx, tx, l); err != nil {
			return err
		}
		if err := s.setPassword(ctx, tx, l.Owner, hash, ""); err != nil {
			return err
		}
		if device, err = s.knowDevice(ctx, tx, l.Owner, c); err != nil {
			return err
		}
		if err := s.stopWork(ctx, tx, l.Owner, events.AccountRecovered); err != nil {
			return err
		}
		return giveBack(ctx, tx, network)
	})
	if err != nil {
		return "", away(fmt.Errorf("reset a password: %w", err))
	}
	return device, nil
}

// ChangePassword sets a new password in a fresh session, which gets a new token
// and is no fresher by it, and ends every other session. Codes that were mailed
// for a reset are void.
func (s *Service) ChangePassword(ctx context.Context, p Principal, c Client, password string) (in SignedIn, err error) {
	if err := s.Proved(p); err != nil {
		return SignedIn{}, err
	}
	if _, err := s.take(ctx, entryBucket(p.SessionID)); err != nil { // it costs a hash and a mail
		return SignedIn{}, err
	}
	leave, err := s.hasher.enterKnown()
	if err != nil {
		return SignedIn{}, err
	}
	defer leave()
	hash, err := s.newPassword(ctx, p.Subject, password)
	if err != nil {
		return SignedIn{}, err
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM mailed_links WHERE owner = ? AND kind = ?`, p.Subject, linkPassword); err != nil {
			return err
		}
		if err := s.setPassword(ctx, tx, p.Subject, hash, p.SessionID); err != nil {
			return err
		}
		in, err = s.rotate(ctx, tx, p, c, p.Method, p.FreshAt)
		return err
	})
	if err != nil {
		return SignedIn{}, away(fmt.Errorf("change a password: %w", err))
	}
	return in, nil
}

// newPassword checks a password against its owner's own words and hashes it. The
// caller has entered the hasher's queue.
func (s *Service) newPassword(ctx context.Context, owner, password string) (string, error) {
	var row userRow
	if err := s.db.Get(ctx, &row, selectUser+`WHERE id = ?`, owner); err != nil {
		return "", away(fmt.Errorf("read an account: %w", err))
	}
	var email, username string
	if err := s.unsealUser(ctx, owner, "email", row.Email, &email); err != nil {
		return "", away(fmt.Errorf("read an account: %w", err))
	}
	if err := s.unsealUser(ctx, owner, "username", row.Username, &username); err != nil {
		return "", away(fmt.Errorf("read an account: %w", err))
	}
	if err := checkPassword(password, email, username); err != nil {
		return "", err
	}
	return s.hasher.hash(ctx, password)
}

// setPassword writes it, ends all sessions but one, which may be none, and tells
// the owner (OWASP ASVS 5.0, 6.3.7).
func (s *Service) setPassword(ctx context.Context, tx *db.Tx, owner, hash, except string) error {
	if _, err := tx.Exec(ctx, `UPDATE users SET password = ? WHERE id = ?`, hash, owner); err != nil {
		return err
	}
	if _, err := endSessions(ctx, tx, owner, except, s.clock.Millis()); err != nil {
		return err
	}
	return s.tell(ctx, tx, owner, mail.PasswordChanged, nil)
}

// ChangeEmail asks, in a fresh session, for another address: a code goes to it,
// and the present one is told. Whether the new one has an account shows only to
// who can read its mail. A change that was asked for before is void.
func (s *Service) ChangeEmail(ctx context.Context, p Principal, email string) error {
	if err := s.Proved(p); err != nil {
		return err
	}
	email, canonical, err := normalise(email)
	if err != nil {
		return err
	}
	// For the person first: nobody writes to strangers by changing address again
	// and again.
	if _, err := s.take(ctx, askerBucket(p.Subject)); err != nil {
		return err
	}
	if err := s.takeLetter(ctx, mail.ConfirmEmail, mailbox(canonical), asker{who: p.Subject, around: p.Subject}); err != nil {
		return err
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM mailed_links WHERE owner = ? AND kind = ?`, p.Subject, linkEmail); err != nil {
			return err
		}
		code, err := s.addLink(ctx, tx, p.Subject, linkEmail, email, canonical, confirmFor)
		if err != nil {
			return err
		}
		if err := s.o.Mail.Send(ctx, tx, mail.Message{
			Subject: p.Subject, To: email, Template: mail.ConfirmEmail, Data: map[string]string{"Code": code},
		}); err != nil {
			return err
		}
		return s.tell(ctx, tx, p.Subject, mail.EmailChangeAsked, nil)
	})
	if err != nil {
		return away(fmt.Errorf("ask for another address: %w", err))
	}
	return nil
}

// ConfirmEmail makes the address to which the code was mailed the account's, in a
// session of the account alone: who can read the mail, or finds the code, need
// not be its owner. Both addresses are told. It returns LinkInvalid for a code
// that is unknown, used, expired or of another account, and Conflict when the
// address has an account meanwhile or a hold keeps the present one.
func (s *Service) ConfirmEmail(ctx context.Context, p Principal, code string) error {
	if err := p.inSession(); err != nil {
		return err
	}
	l, err := s.findLink(ctx, linkEmail, code)
	if err != nil {
		return err
	}
	if l.Owner != p.Subject {
		return linkInvalid()
	}
	plain, err := s.vault.Unseal(ctx, l.Owner, l.Email, vault.Column("mailed_links", "email", l.ID))
	if errors.Is(err, vault.ErrDestroyed) || errors.Is(err, vault.ErrNoKey) {
		return linkInvalid()
	}
	if err != nil {
		return away(fmt.Errorf("confirm an address: %w", err))
	}
	email := string(plain)
	sealed, err := s.sealUser(ctx, l.Owner, "email", email)
	if err != nil {
		return away(fmt.Errorf("confirm an address: %w", err))
	}
	var others []string
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		if err := s.useLink(ctx, tx, l); err != nil {
			return err
		}
		if err := subject.AskHeld(ctx, tx, "users", l.Owner); err != nil {
			return err
		}
		if err := s.tell(ctx, tx, l.Owner, mail.EmailChanged, nil); err != nil { // the old one
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE users SET email_lookup = ?, email = ? WHERE id = ?`, l.EmailLookup, sealed, l.Owner); err != nil {
			return err
		}
		if err := s.tell(ctx, tx, l.Owner, mail.EmailChanged, nil); err != nil {
			return err
		}
		others, err = dropSignUps(ctx, tx, l.EmailLookup)
		return err
	})
	if db.IsUnique(err) {
		return taken()
	}
	if err != nil {
		return away(fmt.Errorf("confirm an address: %w", err))
	}
	s.discard(ctx, others...)
	return nil
}
