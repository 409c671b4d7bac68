package app

import (
	"bytes"
	"context"
	"encoding/json"
	"os"

	"zimage/internal/account"
	"zimage/internal/generate"
	"zimage/internal/privacy"
)

// Import puts an export into somebody's account. left are what the account did not
// take: a username that somebody has here, for example.
func (a *App) Import(ctx context.Context, email, path string, progress func(records int64)) (done privacy.Imported, left []string, err error) {
	owner, err := a.Accounts.FindUser(ctx, email)
	if err != nil {
		return done, nil, err
	}
	file, err := os.Open(path) //nolint:gosec // the archive that the operator names
	if err != nil {
		return done, nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return done, nil, err
	}
	done, err = a.Privacy.Import(ctx, owner, privacy.ImportOptions{Archive: file, Size: info.Size(), Valid: readable, Progress: progress})
	if err != nil {
		return done, nil, err
	}
	left, err = a.Accounts.Adopt(ctx, owner, account.Adopted{Username: done.Username, Profile: done.Profile, Preferences: done.Preferences})
	return done, left, err
}

// readable refuses a generation's request that could not be shown.
func readable(table, column string, text []byte) error {
	if table != "generations" || column != "request" {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(new(generate.Request))
}
