package account

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// confirmFor is how long the code of a sign-up, or of a new address, is good.
const confirmFor = 24 * time.Hour

// SignUp asks for an account and mails a code to the address; there is no
// account before it comes back to ConfirmSignUp. The answer is the same when the
// address has an account already: then its owner is told.
//
// It returns TooYoung before anything is done or kept, InvalidRequest for what is
// not valid, and Conflict for a username that somebody has.
func (s *Service) SignUp(ctx context.Context, c Client, r SignUp) error {
	if !r.OldEnough {
		return TooYoung()
	}
	started := time.Now()
	email, canonical, err := normalise(r.Email)
	if err != nil {
		return err
	}
	if err := checkUsername(r.Username); err != nil {
		return err
	}
	if err := checkPassword(r.Password, canonical, r.Username); err != nil {
		return err
	}
	fields := r.Profile.check()
	consents := slices.Compact(slices.Sorted(slices.Values(r.Consents)))
	for _, purpose := range consents {
		if !slices.Contains(subject.ConsentPurposes(), purpose) {
			fields = append(fields, problem.Field{Location: "body.consents", Message: "must be purposes that need consent"})
			break
		}
	}
	if len(fields) > 0 {
		return problem.Invalid(fields...)
	}
	if err = s.signUp(ctx, c, r, email, canonical, consents); !turnedAway(err) {
		s.level(ctx, c, started)
	}
	return err
}

// TooYoung is the answer to a child.
func TooYoung() error {
	return problem.New(problem.TooYoung, "This service is for people of 13 and older.")
}

func (s *Service) signUp(ctx context.Context, c Client, r SignUp, email, canonical string, consents []subject.Purpose) error {
	leave, err := s.hasher.enter()
	if err != nil {
		return err
	}
	defer leave()
	if _, err := s.take(ctx, s.networkBucket(c.Addr)...); err != nil {
		return err
	}
	if err := s.usernameFree(ctx, r.Username); err != nil {
		return err
	}
	hash, err := s.hasher.hash(ctx, r.Password)
	if err != nil {
		return err
	}
	owner, err := s.findUser(ctx, s.emailLookup(canonical))
	if err != nil && problem.CodeOf(err) != problem.NotFound {
		return err
	}
	by, err := s.asker(ctx, c, owner)
	if err != nil {
		return err
	}
	may, err := s.mayWrite(ctx, mail.ConfirmSignUp, mailbox(canonical), by)
	switch {
	case err != nil || !may:
		return err
	case owner != "":
		return s.tellOfAttempt(ctx, owner)
	}
	return s.pend(ctx, r, email, canonical, hash, consents)
}

// pend writes the sign-up and mails its code.
func (s *Service) pend(ctx context.Context, r SignUp, email, canonical, hash string, consents []subject.Purpose) error {
	// The key first: what breaks off in between leaves a key that
	// vault.SweepUnowned removes.
	now := s.clock.Now()
	id := db.NewID("sub", now)
	if err := s.vault.Create(ctx, id); err != nil {
		return away(fmt.Errorf("sign up: %w", err))
	}
	p := pending{
		ID: id, EmailLookup: s.emailLookup(canonical), UsernameLookup: s.usernameLookup(r.Username), Password: hash,
		PolicyVersion: s.o.PolicyVersion, CreatedAt: now.UnixMilli(),
	}
	for _, purpose := range consents {
		p.Consents = strings.TrimSpace(p.Consents + " " + string(purpose))
	}
	var err error
	if p.Email, err = s.vault.Seal(ctx, id, []byte(email), vault.Column("signups", "email", id)); err != nil {
		return away(fmt.Errorf("sign up: %w", err))
	}
	if p.Username, err = s.vault.Seal(ctx, id, []byte(r.Username), vault.Column("signups", "username", id)); err != nil {
		return away(fmt.Errorf("sign up: %w", err))
	}
	if r.Profile != (Profile{}) {
		text, err := json.Marshal(r.Profile)
		if err != nil {
			return fmt.Errorf("sign up: %w", err)
		}
		if p.Profile, err = s.vault.Seal(ctx, id, text, vault.Column("signups", "profile", id)); err != nil {
			return away(fmt.Errorf("sign up: %w", err))
		}
	}
	code := s.codeForm.make()
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO signups (id, email_lookup, email, username_lookup, username, profile, password,
				consents, policy_version, token_lookup, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			id, p.EmailLookup, p.Email, p.UsernameLookup, p.Username, p.Profile, p.Password,
			p.Consents, p.PolicyVersion, s.codeLookup(code), p.CreatedAt, now.Add(confirmFor).UnixMilli()); err != nil {
			return err
		}
		return s.o.Mail.Send(ctx, tx, mail.Message{Subject: id, To: email, Template: mail.ConfirmSignUp, Data: map[string]string{"Code": code}})
	})
	if err != nil {
		s.discard(ctx, id)
		return away(fmt.Errorf("sign up: %w", err))
	}
	return nil
}

// tellOfAttempt mails the owner of an address that somebody tried to sign up
// with it. An account that is being erased is told nothing.
func (s *Service) tellOfAttempt(ctx context.Context, owner string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.May(ctx, tx, owner, subject.Notice); err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.SignUpAttempt, nil)
	})
	if isRefusal(err) {
		return nil
	}
	return away(err)
}

// A pending sign-up. What is sealed is so with the key of the subject that it
// becomes.
type pending struct {
	ID             string `db:"id"`
	EmailLookup    string `db:"email_lookup"`
	Email          []byte `db:"email"`
	UsernameLookup string `db:"username_lookup"`
	Username       []byte `db:"username"`
	Profile        []byte `db:"profile"`
	Password       string `db:"password"`
	Consents       string `db:"consents"`
	PolicyVersion  string `db:"policy_version"`
	CreatedAt      int64  `db:"created_at"`
}

// ConfirmSignUp makes the account and opens its first session. The password is
// asked for again: the code proves the address and the password that it was this
// person who signed up, so that nobody comes to own an account that another
// prepared for them.
//
// It returns LinkInvalid for a code that is unknown, used or expired, or whose
// address has an account meanwhile; SignInFailed for another password than the
// one of the sign-up; Conflict for a username that was taken meanwhile.
func (s *Service) ConfirmSignUp(ctx context.Context, c Client, code, password string) (in SignedIn, err error) {
	if !s.codeForm.fits(code) {
		return SignedIn{}, linkInvalid()
	}
	if err := typed(password); err != nil {
		return SignedIn{}, err
	}
	leave, err := s.enterQueue(ctx, s.codeForm, code, func() (bool, error) {
		p, err := s.findSignUp(ctx, code)
		return p.ID != "", err
	})
	if err != nil {
		return SignedIn{}, err
	}
	defer leave()
	network, err := s.take(ctx, s.networkBucket(c.Addr)...)
	if err != nil {
		return SignedIn{}, err
	}
	p, err := s.findSignUp(ctx, code)
	if err != nil {
		return SignedIn{}, err
	}
	if p.ID == "" {
		return SignedIn{}, linkInvalid()
	}
	if _, err := s.take(ctx, codeBucket(p.ID)); err != nil {
		return SignedIn{}, err
	}
	match, _, err := s.hasher.verify(ctx, password, p.Password)
	if err != nil {
		return SignedIn{}, err
	}
	if !match {
		return SignedIn{}, signInFailed()
	}
	var others []string
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		if others, err = s.confirm(ctx, tx, p); err != nil {
			return err
		}
		if in, _, err = s.openSession(ctx, tx, p.ID, c, ByPassword); err != nil {
			return err
		}
		return giveBack(ctx, tx, network)
	})
	if db.IsUnique(err) {
		return SignedIn{}, s.lost(ctx, p)
	}
	if err != nil {
		return SignedIn{}, away(fmt.Errorf("confirm a sign-up: %w", err))
	}
	s.discard(ctx, others...)
	return in, nil
}

// findSignUp reads what waits for a code; zero: nothing.
func (s *Service) findSignUp(ctx context.Context, code string) (p pending, err error) {
	err = s.db.Get(ctx, &p, `SELECT id, email_lookup, email, username_lookup, username, profile, password, consents, policy_version, created_at
		FROM signups WHERE token_lookup = ? AND expires_at > ?`, s.codeLookup(code), s.clock.Millis())
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return p, away(fmt.Errorf("confirm a sign-up: %w", err))
	}
	return p, nil
}

// confirm turns a pending sign-up into an account. It returns the other sign-ups
// of the address, which are gone with it and whose keys are to follow.
func (s *Service) confirm(ctx context.Context, tx *db.Tx, p pending) (others []string, err error) {
	now := s.clock.Now()
	n, err := tx.Exec(ctx, `DELETE FROM signups WHERE id = ? AND expires_at > ?`, p.ID, now.UnixMilli())
	if err != nil {
		return nil, err
	}
	if n == 0 { // another request was first
		return nil, linkInvalid()
	}
	sealed := map[string][]byte{"email": p.Email, "username": p.Username, "profile": p.Profile}
	for column, value := range sealed {
		if value == nil {
			continue
		}
		plain, err := s.vault.Unseal(ctx, p.ID, value, vault.Column("signups", column, p.ID))
		if err != nil {
			return nil, err
		}
		if sealed[column], err = s.vault.Seal(ctx, p.ID, plain, vault.Column("users", column, p.ID)); err != nil {
			return nil, err
		}
	}
	if err := subject.New(ctx, tx, p.ID, now); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO users (id, email_lookup, email, username_lookup, username, profile, password, created_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		p.ID, p.EmailLookup, sealed["email"], p.UsernameLookup, sealed["username"], sealed["profile"], p.Password, now.UnixMilli()); err != nil {
		return nil, err
	}
	for _, purpose := range strings.Fields(p.Consents) {
		// At the time and to the words at which the person agreed.
		if err := s.setConsent(ctx, tx, p.ID, subject.Purpose(purpose), true, p.PolicyVersion, time.UnixMilli(p.CreatedAt).UTC()); err != nil {
			return nil, err
		}
	}
	return dropSignUps(ctx, tx, p.EmailLookup)
}

// lost is the answer to a sign-up whose address or username somebody else has by
// now.
func (s *Service) lost(ctx context.Context, p pending) error {
	switch _, err := s.findUser(ctx, p.EmailLookup); {
	case problem.CodeOf(err) == problem.NotFound:
		return usernameTaken() // it waits, in case the name becomes free
	case err != nil:
		return err
	}
	n, err := s.db.Exec(ctx, `DELETE FROM signups WHERE id = ?`, p.ID)
	if err != nil {
		return away(fmt.Errorf("delete a sign-up: %w", err))
	}
	if n == 1 { // else it has become an account beside us, and its key is in use
		s.discard(ctx, p.ID)
	}
	return linkInvalid()
}

// dropSignUps deletes what pends on an address that is somebody's now, and
// returns whose keys are to be destroyed once that is committed.
func dropSignUps(ctx context.Context, tx *db.Tx, emailLookup string) (ids []string, err error) {
	if err := tx.Select(ctx, &ids, `DELETE FROM signups WHERE email_lookup = ? RETURNING id`, emailLookup); err != nil {
		return nil, fmt.Errorf("delete sign-ups: %w", err)
	}
	return ids, nil
}

// discard makes what sign-ups that never became accounts have sealed unreadable,
// and leaves nothing of their keys: anybody can make any number of them. What
// fails is left to vault.SweepUnowned.
func (s *Service) discard(ctx context.Context, ids ...string) {
	for _, id := range ids {
		_ = s.vault.Discard(context.WithoutCancel(ctx), id)
	}
}

// checkUsername allows ASCII alone, so that no two names look alike by letters
// of other scripts, and so that it can be written into an address one day.
func checkUsername(name string) error {
	ok := len(name) >= usernameLeast && len(name) <= usernameMost
	for i := range len(name) {
		c := name[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (alphanumeric || i > 0 && (c == '.' || c == '_' || c == '-'))
	}
	if !ok {
		return problem.Invalid(problem.Field{Location: "body.username", Message: fmt.Sprintf(
			"must be %d to %d letters from a to z, digits, dots, dashes and underscores, the first of them a letter or digit", usernameLeast, usernameMost)})
	}
	return nil
}

func (s *Service) usernameFree(ctx context.Context, name string) error {
	var n int
	if err := s.db.Get(ctx, &n, `SELECT count(*) FROM users WHERE username_lookup = ?`, s.usernameLookup(name)); err != nil {
		return away(fmt.Errorf("look for a username: %w", err))
	}
	if n > 0 {
		return usernameTaken()
	}
	return nil
}

func usernameTaken() error { return problem.New(problem.Conflict, "This username is taken.") }

// mayWrite reports whether one more mail of a kind may go to a mailbox. Nobody
// is told when not: codes that were sent before are still good.
func (s *Service) mayWrite(ctx context.Context, t mail.Template, mailbox string, by asker) (bool, error) {
	err := s.takeLetter(ctx, t, mailbox, by)
	if problem.CodeOf(err) == problem.RateLimited {
		return false, nil
	}
	return err == nil, err
}

// usernameLookup finds a username however it is spelled in capitals.
func (s *Service) usernameLookup(name string) string {
	return s.vault.Lookup("username", strings.ToLower(name))
}

func (s *Service) codeLookup(code string) string { return s.vault.Lookup("mailed code", code) }
