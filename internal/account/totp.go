package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"
	"github.com/pquerna/otp/totp"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// Authenticator apps know these numbers alone; most ignore any others (RFC 6238
// with the parameters of Google's key URI format).
const (
	totpIssuer = "Z Image Generator"
	totpSecret = 20 // bytes: 160 bits (RFC 4226, R6)
	totpPeriod = 30 // seconds of a step
	totpSkew   = 1  // steps that the clock of the app may be off, either way
	codeMost   = 64 // bytes that are looked at
)

// errWrongCode is one answer for a code or passkey that is wrong, used or
// expired.
var errWrongCode = errors.New("the code or the passkey is not valid")

// factorState says which second factors of an account are in force.
type factorState struct {
	TOTP      bool
	Passkeys  int
	CodesLeft int // recovery codes that were not used
}

// any reports whether a sign-in with the password needs anything more.
func (f factorState) any() bool { return f.TOTP || f.Passkeys > 0 }

// factors reads which second factors are in force. In a transaction it keeps the
// account's row, so that they stay as they are until it ends. Whoever enters the
// subject too does so before.
func (s *Service) factors(ctx context.Context, q db.Querier, owner string) (factorState, error) {
	lock := ""
	if _, ok := q.(*db.Tx); ok {
		lock = db.ForUpdate(q)
	}
	// The counts are a statement of their own: it sees what the row waited for.
	var confirmed sql.NullInt64
	err := q.Get(ctx, &confirmed, `SELECT totp_confirmed_at FROM users WHERE id = ?`+lock, owner)
	if errors.Is(err, sql.ErrNoRows) {
		return factorState{}, subject.NoAccount()
	}
	if err != nil {
		return factorState{}, fmt.Errorf("read the factors: %w", err)
	}
	var counts struct {
		Passkeys int `db:"passkeys"`
		Codes    int `db:"codes"`
	}
	if err := q.Get(ctx, &counts, `SELECT (SELECT count(*) FROM passkeys WHERE owner = ?) AS passkeys,
		(SELECT count(*) FROM recovery_codes WHERE owner = ? AND used_at IS NULL) AS codes`, owner, owner); err != nil {
		return factorState{}, fmt.Errorf("read the factors: %w", err)
	}
	return factorState{TOTP: confirmed.Valid, Passkeys: counts.Passkeys, CodesLeft: counts.Codes}, nil
}

// secondFactor says what a sign-in still needs after the password, and a zero one
// when that is nothing. It writes the passkey's challenge in a transaction of its
// own, so it stands in none.
func (s *Service) secondFactor(ctx context.Context, owner string) (*SecondFactor, error) {
	state, err := s.factors(ctx, s.db, owner)
	if err != nil {
		return nil, away(err)
	}
	need := &SecondFactor{TOTP: state.TOTP, Recovery: state.any() && state.CodesLeft > 0}
	if state.Passkeys > 0 {
		// Without an address that passkeys work with, the other factors still do.
		challenge, err := s.secondFactorChallenge(ctx, owner)
		if err != nil && problem.CodeOf(err) != problem.Conflict {
			return nil, err
		}
		need.Passkey = challenge
	}
	return need, nil
}

// checkCode takes a code of the authenticator app or a recovery code, each once:
// what the caller's transaction commits is used up. It returns how that opens a
// session, and errWrongCode for every code that does not.
func (s *Service) checkCode(ctx context.Context, tx *db.Tx, owner, code string) (Method, error) {
	if len(code) > codeMost {
		return "", errWrongCode
	}
	u, err := factorRow(ctx, tx, owner)
	if problem.CodeOf(err) == problem.Unauthorized {
		return "", errWrongCode
	}
	if err != nil {
		return "", err
	}
	if digits, ok := readTOTP(code); ok {
		if !u.ConfirmedAt.Valid {
			return "", errWrongCode
		}
		if err := s.useTOTP(ctx, tx, u, digits); err != nil {
			return "", err
		}
		return ByPasswordTOTP, nil
	}
	if err := s.useRecoveryCode(ctx, tx, u, code); err != nil {
		return "", err
	}
	return ByPasswordRecovery, nil
}

// userFactors is an account's row, as far as its factors go.
type userFactors struct {
	ID          string        `db:"id"`
	Email       []byte        `db:"email"` // sealed
	Role        Role          `db:"role"`
	Secret      []byte        `db:"totp_secret"` // sealed
	ConfirmedAt sql.NullInt64 `db:"totp_confirmed_at"`
}

// factorRow reads and keeps the row, so that one change of a person's factors
// comes after the other; Unauthorized when there is none.
func factorRow(ctx context.Context, tx *db.Tx, owner string) (userFactors, error) {
	var u userFactors
	err := tx.Get(ctx, &u, `SELECT id, email, role, totp_secret, totp_confirmed_at FROM users WHERE id = ?`+db.ForUpdate(tx), owner)
	if errors.Is(err, sql.ErrNoRows) {
		return userFactors{}, subject.NoAccount()
	}
	if err != nil {
		return userFactors{}, fmt.Errorf("read an account: %w", err)
	}
	return u, nil
}

// changeFactors runs fn in a transaction for a person who proved a moment ago who
// they are, and whose session is still there: a reset of the password ends what a
// thief is about to add.
func (s *Service) changeFactors(ctx context.Context, p Principal, fn func(tx *db.Tx, u userFactors) error) error {
	if err := s.Proved(p); err != nil {
		return err
	}
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		u, err := factorRow(ctx, tx, p.Subject)
		if err != nil {
			return err
		}
		return fn(tx, u)
	})
	if err != nil {
		return away(fmt.Errorf("change the factors: %w", err))
	}
	return nil
}

// tellFactors mails the person what became of their factors.
func (s *Service) tellFactors(ctx context.Context, tx *db.Tx, owner, what string) error {
	return s.tell(ctx, tx, owner, mail.SecondFactorChanged, map[string]string{"What": what})
}

// Enrolled is what a person gets with the first factor, and nothing with a further
// one.
type Enrolled struct {
	Recovery []string // codes, which nobody can be shown again
	SignedIn SignedIn // the session with its new token
}

// firstFactor is called when a factor came into force beside those that were
// there before. With the first, whoever got in with the password alone is out,
// also with a copy of this session's cookie, and there are recovery codes.
func (s *Service) firstFactor(ctx context.Context, tx *db.Tx, p Principal, c Client, before factorState) (got Enrolled, err error) {
	if before.any() {
		return Enrolled{}, nil
	}
	if _, err := endSessions(ctx, tx, p.Subject, p.SessionID, s.clock.Millis()); err != nil {
		return Enrolled{}, err
	}
	if got.SignedIn, err = s.rotate(ctx, tx, p, c, p.Method, p.FreshAt); err != nil {
		return Enrolled{}, err
	}
	got.Recovery, err = s.replaceRecoveryCodes(ctx, tx, p.Subject)
	return got, err
}

// lastFactor is called when a factor was removed. Recovery codes stand in for a
// factor and don't outlive the last.
func (s *Service) lastFactor(ctx context.Context, tx *db.Tx, u userFactors) error {
	left, err := s.factors(ctx, tx, u.ID)
	if err != nil || left.any() {
		return err
	}
	if u.Role != NoRole {
		return problem.New(problem.Conflict, "Staff keep a second factor. Add another one before you remove this.")
	}
	_, err = tx.Exec(ctx, `DELETE FROM recovery_codes WHERE owner = ?`, u.ID)
	return err
}

// BeginTOTP makes the secret for an authenticator app, and the same as a URI for
// a QR code. Nothing asks for its codes before ConfirmTOTP. Beginning again
// replaces it; Conflict when there is one in force.
func (s *Service) BeginTOTP(ctx context.Context, p Principal) (secret, uri string, err error) {
	err = s.changeFactors(ctx, p, func(tx *db.Tx, u userFactors) error {
		if u.ConfirmedAt.Valid {
			return problem.New(problem.Conflict, "An authenticator app is in force already. Remove it before you add another.")
		}
		email, err := s.vault.Unseal(ctx, u.ID, u.Email, emailData(u.ID))
		if err != nil {
			return err
		}
		key, err := totp.Generate(totp.GenerateOpts{
			Issuer: totpIssuer, AccountName: string(email),
			Period: totpPeriod, SecretSize: totpSecret, Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1,
		})
		if err != nil {
			return errors.New("make a secret for an authenticator app") // the library's text quotes the address
		}
		sealed, err := s.vault.Seal(ctx, u.ID, []byte(key.Secret()), totpData(u.ID))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE users SET totp_secret = ? WHERE id = ?`, sealed, u.ID); err != nil {
			return err
		}
		secret, uri = key.Secret(), key.URL()
		return nil
	})
	if err != nil {
		return "", "", err
	}
	return secret, uri, nil
}

// ConfirmTOTP puts the authenticator app into force with a code that shows that
// it has the secret; that code signs nobody in any more. With the first factor
// the person's other sessions end and this one gets a new token. InvalidRequest
// for a wrong code, Conflict when there is nothing to confirm.
func (s *Service) ConfirmTOTP(ctx context.Context, p Principal, c Client, code string) (got Enrolled, err error) {
	err = s.changeFactors(ctx, p, func(tx *db.Tx, u userFactors) error {
		switch {
		case u.ConfirmedAt.Valid:
			return problem.New(problem.Conflict, "The authenticator app is in force already.")
		case u.Secret == nil:
			return problem.New(problem.Conflict, "There is no authenticator app to confirm. Begin with a new secret.")
		}
		before, err := s.factors(ctx, tx, u.ID)
		if err != nil {
			return err
		}
		digits, ok := readTOTP(code)
		if ok {
			err = s.useTOTP(ctx, tx, u, digits)
		}
		if !ok || errors.Is(err, errWrongCode) {
			return problem.Invalid(problem.Field{Location: "body.code", Message: "must be the six digits that the authenticator app shows now"})
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE users SET totp_confirmed_at = ? WHERE id = ?`, s.clock.Millis(), u.ID); err != nil {
			return err
		}
		if got, err = s.firstFactor(ctx, tx, p, c, before); err != nil {
			return err
		}
		return s.tellFactors(ctx, tx, u.ID, "An authenticator app was added.")
	})
	if err != nil {
		return Enrolled{}, err
	}
	return got, nil
}

// RemoveTOTP takes the authenticator app out of force, or drops one that was not
// confirmed; NotFound when there is neither. Conflict when it is the last factor
// of a member of staff.
func (s *Service) RemoveTOTP(ctx context.Context, p Principal) error {
	return s.changeFactors(ctx, p, func(tx *db.Tx, u userFactors) error {
		if u.Secret == nil {
			return problem.New(problem.NotFound, "There is no authenticator app.")
		}
		if _, err := tx.Exec(ctx, dropTOTP, u.ID); err != nil {
			return err
		}
		if !u.ConfirmedAt.Valid {
			return nil
		}
		if err := s.lastFactor(ctx, tx, u); err != nil {
			return err
		}
		return s.tellFactors(ctx, tx, u.ID, "The authenticator app was removed.")
	})
}

// dropTOTP forgets the steps too: none of the next secret's is used.
const dropTOTP = `UPDATE users SET totp_secret = NULL, totp_confirmed_at = NULL, totp_step = 0 WHERE id = ?`

// resetFactors removes all that a person could have lost, and ends their
// sessions. Whoever calls it has a reason on record, and tells the person.
func (s *Service) resetFactors(ctx context.Context, tx *db.Tx, owner string) error {
	if _, err := factorRow(ctx, tx, owner); err != nil {
		return err
	}
	for _, statement := range []string{
		dropTOTP,
		`UPDATE users SET role = '' WHERE id = ?`, // staff need a second factor
		`DELETE FROM passkeys WHERE owner = ?`,
		`DELETE FROM passkey_challenges WHERE owner = ?`,
		`DELETE FROM recovery_codes WHERE owner = ?`,
		`DELETE FROM sessions WHERE owner = ?`,
	} {
		if _, err := tx.Exec(ctx, statement, owner); err != nil {
			return fmt.Errorf("reset the factors: %w", err)
		}
	}
	return nil
}

// useTOTP takes a code of the step before, now or after, and uses up its step and
// those before it.
func (s *Service) useTOTP(ctx context.Context, tx *db.Tx, u userFactors, code string) error {
	secret, err := s.vault.Unseal(ctx, u.ID, u.Secret, totpData(u.ID))
	if err != nil {
		return fmt.Errorf("check a code: %w", err)
	}
	now := s.clock.Now().Unix() / totpPeriod
	for step := now - totpSkew; step <= now+totpSkew; step++ {
		if !fits(code, string(secret), step) {
			continue
		}
		n, err := tx.Exec(ctx, `UPDATE users SET totp_step = ? WHERE id = ? AND totp_step < ?`, step, u.ID, step)
		if err != nil {
			return fmt.Errorf("check a code: %w", err)
		}
		if n == 1 {
			return nil
		}
	}
	return errWrongCode
}

func fits(code, secret string, step int64) bool {
	if step < 0 {
		return false // a clock before 1970
	}
	ok, err := hotp.ValidateCustom(code, uint64(step), secret, hotp.ValidateOpts{Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1})
	return err == nil && ok
}

// readTOTP takes six digits out of what somebody typed, as "123 456" too.
func readTOTP(code string) (string, bool) {
	if len(code) > codeMost {
		return "", false
	}
	code = strings.NewReplacer(" ", "", "-", "").Replace(code)
	if len(code) != otp.DigitsSix.Length() || strings.Trim(code, "0123456789") != "" {
		return "", false
	}
	return code, true
}

func totpData(owner string) []byte { return vault.Column("users", "totp_secret", owner) }
