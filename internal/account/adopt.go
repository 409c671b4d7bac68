package account

import (
	"bytes"
	"context"
	"encoding/json"

	"zimage/internal/db"
	"zimage/internal/subject"
)

// Adopted is what an account brings from elsewhere; empty: nothing.
type Adopted struct {
	Username             string
	Profile, Preferences json.RawMessage
}

// Adopt fills what an account does not say of itself yet with what it said
// elsewhere. A username that somebody has here, and what is not valid, is passed
// over; left says so.
func (s *Service) Adopt(ctx context.Context, owner string, from Adopted) (left []string, err error) {
	values := map[string]any{}
	var profile Profile
	var preferences Preferences
	strict := func(text json.RawMessage, into any) bool {
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		return d.Decode(into) == nil
	}
	if from.Username != "" {
		if checkUsername(from.Username) == nil {
			values["username"] = from.Username
		} else {
			left = append(left, "username")
		}
	}
	if len(from.Profile) > 0 {
		if strict(from.Profile, &profile) && len(profile.check()) == 0 {
			values["profile"] = profile
		} else {
			left = append(left, "profile")
		}
	}
	if len(from.Preferences) > 0 {
		if strict(from.Preferences, &preferences) && len(preferences.check()) == 0 {
			values["preferences"] = preferences
		} else {
			left = append(left, "preferences")
		}
	}
	for column, value := range values {
		sealed, err := s.sealUser(ctx, owner, column, value)
		if err != nil {
			return left, away(err)
		}
		if sealed == nil {
			continue
		}
		set, args := column+` = ?`, []any{sealed}
		if column == "username" {
			set, args = set+`, username_lookup = ?`, append(args, s.usernameLookup(from.Username))
		}
		err = s.db.Tx(ctx, func(tx *db.Tx) error {
			if err := subject.Enter(ctx, tx, owner, subject.Account); err != nil {
				return err
			}
			if err := subject.AskHeld(ctx, tx, "users", owner); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `UPDATE users SET `+set+` WHERE id = ? AND `+column+` IS NULL`, append(args, owner)...)
			return err
		})
		if db.IsUnique(err) {
			left = append(left, column)
		} else if err != nil {
			return left, away(err)
		}
	}
	return left, nil
}
