package account

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/vault"
)

// A recovery code stands in for a factor that was lost. It has so many bits that
// nobody guesses it, and no letter that people take for another.
const (
	recoveryCodes    = 10
	recoveryRandom   = 10 // bytes: 80 bits, 16 characters
	recoveryGroup    = 4  // characters between dashes
	recoveryAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"
)

// NewRecoveryCodes makes ten codes, which nobody can be shown again; the old ones
// are void. Conflict when no factor is in force that they could stand in for.
func (s *Service) NewRecoveryCodes(ctx context.Context, p Principal) ([]string, error) {
	var codes []string
	err := s.changeFactors(ctx, p, func(tx *db.Tx, u userFactors) error {
		state, err := s.factors(ctx, tx, u.ID)
		if err != nil {
			return err
		}
		if !state.any() {
			return problem.New(problem.Conflict, "Recovery codes stand in for a second factor. Add one first.")
		}
		if codes, err = s.replaceRecoveryCodes(ctx, tx, u.ID); err != nil {
			return err
		}
		return s.tellFactors(ctx, tx, u.ID, "New recovery codes were made. The old ones do not work any more.")
	})
	if err != nil {
		return nil, err
	}
	return codes, nil
}

func (s *Service) replaceRecoveryCodes(ctx context.Context, tx *db.Tx, owner string) ([]string, error) {
	if _, err := tx.Exec(ctx, `DELETE FROM recovery_codes WHERE owner = ?`, owner); err != nil {
		return nil, err
	}
	codes := make([]string, recoveryCodes)
	for i := range codes {
		plain := newRecoveryCode()
		if _, err := tx.Exec(ctx, `INSERT INTO recovery_codes (owner, code_lookup) VALUES (?, ?)`, owner, s.recoveryLookup(owner, plain)); err != nil {
			return nil, err
		}
		codes[i] = grouped(plain)
	}
	return codes, nil
}

// useRecoveryCode uses up one of the person's codes and tells them.
func (s *Service) useRecoveryCode(ctx context.Context, tx *db.Tx, u userFactors, code string) error {
	plain, ok := readRecoveryCode(code)
	if !ok {
		return errWrongCode
	}
	n, err := tx.Exec(ctx, `UPDATE recovery_codes SET used_at = ? WHERE owner = ? AND code_lookup = ? AND used_at IS NULL`,
		s.clock.Millis(), u.ID, s.recoveryLookup(u.ID, plain))
	if err != nil {
		return fmt.Errorf("check a recovery code: %w", err)
	}
	if n == 0 {
		return errWrongCode
	}
	left, err := s.factors(ctx, tx, u.ID)
	if err != nil {
		return err
	}
	return s.tellFactors(ctx, tx, u.ID, fmt.Sprintf("A recovery code was used. %d are left.", left.CodesLeft))
}

// recoveryLookup is bound to the owner: equal codes of two people don't look
// alike.
func (s *Service) recoveryLookup(owner, plain string) string {
	return s.vault.Lookup("recovery code", string(vault.Data(owner, plain)))
}

func newRecoveryCode() string {
	b := make([]byte, recoveryRandom)
	_, _ = rand.Read(b) // it never fails: without randomness the program ends
	return base32.NewEncoding(recoveryAlphabet).WithPadding(base32.NoPadding).EncodeToString(b)
}

// grouped puts a dash between every four characters.
func grouped(plain string) string {
	var b strings.Builder
	for i, c := range plain {
		if i > 0 && i%recoveryGroup == 0 {
			b.WriteByte('-')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// readRecoveryCode undoes what people do to a code that they type from paper.
func readRecoveryCode(code string) (string, bool) {
	if len(code) > codeMost {
		return "", false
	}
	plain := strings.NewReplacer(" ", "", "-", "", "o", "0", "i", "1", "l", "1").Replace(strings.ToLower(code))
	if len(plain) != recoveryRandom*8/5 || strings.Trim(plain, recoveryAlphabet) != "" {
		return "", false
	}
	return plain, true
}
