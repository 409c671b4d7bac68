package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"zimage/internal/db"
)

const batch = 200 // rows a transaction, so that SQLite's one writer is soon free again

// Rewrap wraps every keyset with the current root that another one wraps, and
// returns how many it did. It can be broken off and called again, also beside
// Create, Destroy and another Rewrap. progress, which may be nil, is told the
// sum after each batch. Keysets that do not open are left as they are; the error
// then says how many, and the previous root must not be retired.
func (v *Vault) Rewrap(ctx context.Context, progress func(done int)) (int, error) {
	current := v.roots.newest().current
	if err := v.rewrapInstallation(ctx, current); err != nil {
		return 0, fmt.Errorf("rewrap the installation's keys: %w", err)
	}
	var done, failed int
	var first error
	for after := ""; ; {
		var rows []keysetRow
		if err := v.keys.Select(ctx, &rows, `SELECT subject, field, object, root_id, destroyed_at FROM keysets
			WHERE root_id <> ? AND destroyed_at IS NULL AND subject > ? ORDER BY subject LIMIT ?`,
			current.id, after, batch); err != nil {
			return done, fmt.Errorf("rewrap: %w", err)
		}
		if len(rows) == 0 {
			break
		}
		after = rows[len(rows)-1].Subject
		n, bad, err := v.rewrapBatch(ctx, current, rows)
		if err != nil {
			return done, fmt.Errorf("rewrap: %w", err)
		}
		done += n
		failed += len(bad)
		if first == nil && len(bad) > 0 {
			first = bad[0]
		}
		if progress != nil {
			progress(done)
		}
	}
	if failed > 0 {
		return done, fmt.Errorf("rewrap: %d keysets did not open and stay as they are, keep the previous root: %w", failed, first)
	}
	return done, nil
}

func (v *Vault) rewrapBatch(ctx context.Context, current *root, rows []keysetRow) (done int, bad []error, err error) {
	type wrapped struct {
		row           keysetRow
		field, object []byte
	}
	var list []wrapped
	for _, row := range rows {
		w := wrapped{row: row}
		field, object, err := v.unwrapRow(row)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		if w.field, err = wrap(current, field, row.Subject, forFields); err != nil {
			return 0, nil, err
		}
		if w.object, err = wrap(current, object, row.Subject, forObjects); err != nil {
			return 0, nil, err
		}
		list = append(list, w)
	}
	err = v.keys.Tx(ctx, func(tx *db.Tx) error {
		done = 0
		for _, w := range list {
			// Somebody may have destroyed or rewrapped it since it was read.
			n, err := tx.Exec(ctx, `UPDATE keysets SET field = ?, object = ?, root_id = ?
				WHERE subject = ? AND root_id = ? AND destroyed_at IS NULL`,
				w.field, w.object, current.id, w.row.Subject, w.row.RootID)
			if err != nil {
				return err
			}
			done += int(n)
		}
		return nil
	})
	return done, bad, err
}

func (v *Vault) rewrapInstallation(ctx context.Context, current *root) error {
	var rows []installationRow
	if err := v.keys.Select(ctx, &rows, selectInstallation+`WHERE root_id <> ?`, current.id); err != nil {
		return err
	}
	for _, row := range rows {
		key, err := v.unwrapInstallation(row)
		if err != nil {
			return err
		}
		wrapped, err := current.aead.Encrypt(key, installationData(row.Name))
		if err != nil {
			return errors.New("the key cannot be wrapped")
		}
		if _, err := v.keys.Exec(ctx, `UPDATE installation_keys SET wrapped = ?, root_id = ? WHERE name = ? AND root_id = ?`,
			wrapped, current.id, row.Name, row.RootID); err != nil {
			return err
		}
	}
	return nil
}

const (
	sweepMost   = 1000      // keysets a run
	sweepFew    = 10        // so many unowned ones prove nothing about the rest
	sweepMinAge = time.Hour // a sign-up makes its key first and its account at once
)

// ErrTooManyUnowned means that most of the key store belongs to nobody, which
// is what a wrong or empty main database looks like.
var ErrTooManyUnowned = errors.New("vault: more keys are without an account than with one: " +
	"is this the main database that belongs to the key store? nothing was destroyed")

// SweepUnowned destroys keysets older than olderThan, at least an hour, whose
// subject has no account: sign-ups that broke off in between. owned says which
// of the given subjects have one. At most 1000 go in a run. Because destroying
// cannot be taken back, nothing is destroyed when more than a few are unowned
// and they are the majority: ErrTooManyUnowned.
func (v *Vault) SweepUnowned(ctx context.Context, olderThan time.Duration, owned func(subjects []string) (map[string]bool, error)) (int, error) {
	before := v.clock.Now().Add(-max(olderThan, sweepMinAge)).UnixMilli()
	var doomed []string
	var with, without int
	for after := ""; ; {
		var subjects []string
		if err := v.keys.Select(ctx, &subjects, `SELECT subject FROM keysets
			WHERE destroyed_at IS NULL AND created_at < ? AND subject > ? ORDER BY subject LIMIT ?`, before, after, batch); err != nil {
			return 0, fmt.Errorf("sweep keys: %w", err)
		}
		if len(subjects) == 0 {
			break
		}
		after = subjects[len(subjects)-1]
		theirs, err := owned(subjects)
		if err != nil {
			return 0, fmt.Errorf("sweep keys: %w", err)
		}
		for _, s := range subjects {
			if theirs[s] {
				with++
				continue
			}
			without++
			if len(doomed) < sweepMost {
				doomed = append(doomed, s)
			}
		}
	}
	if without > sweepFew && without > with {
		return 0, ErrTooManyUnowned
	}
	for i, s := range doomed {
		if err := v.Destroy(ctx, s); err != nil {
			return i, err
		}
	}
	return len(doomed), nil
}
