package vault

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Destroyed is when the subject's keysets were removed; zero while they are there,
// or when there never were any.
func (v *Vault) Destroyed(ctx context.Context, subject string) (time.Time, error) {
	var at sql.NullInt64
	err := v.keys.Get(ctx, &at, `SELECT destroyed_at FROM keysets WHERE subject = ?`, subject)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, fmt.Errorf("look for a key: %w", err)
	}
	if !at.Valid {
		return time.Time{}, nil
	}
	return time.UnixMilli(at.Int64).UTC(), nil
}
