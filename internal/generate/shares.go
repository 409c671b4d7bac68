package generate

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"database/sql"
	"encoding/base32"
	"errors"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// How long a picture is shared.
const (
	ShareLife    = 7 * 24 * time.Hour // when nobody says for how long
	LongestShare = 365 * 24 * time.Hour
	mostShares   = 1000 // of one owner
)

// A Share shows one picture to whoever has its link, until it ends or its owner
// ends it.
type Share struct {
	ID        string    `db:"id"`
	ImageID   string    `db:"image_id"`
	CreatedAt time.Time `db:"-"`
	ExpiresAt time.Time `db:"-"`
	Token     string    `db:"-"` // of a new one: it is told once, and kept nowhere

	Created int64 `db:"created_at"`
	Expires int64 `db:"expires_at"`
}

func (h Share) timed() Share {
	h.CreatedAt, h.ExpiresAt = millis(h.Created), millis(h.Expires)
	return h
}

// Shown is what those who are shown a picture learn beside it.
type Shown struct {
	Width      int
	Height     int
	SourceType string    // of the model: trainedAlgorithmicMedia or algorithmicMedia
	ExpiresAt  time.Time // of the share
}

var errNoShare = problem.New(problem.NotFound, "There is no such share.")

// Share shows a picture of the owner's to whoever will have the link, for a time,
// ShareLife when that is 0, and no longer than the picture lives. Forbidden while the
// owner's data may not be delivered.
func (s *Service) Share(ctx context.Context, owner, image string, life time.Duration) (Share, error) {
	if life == 0 {
		life = ShareLife
	}
	if life < time.Second || life > LongestShare {
		return Share{}, problem.Invalid(problem.Field{Location: "body.expires_in", Message: fmt.Sprintf("must be from 1 to %d", LongestShare/time.Second)})
	}
	now := s.Clock.Now()
	h := Share{ID: db.NewID("shr", now), ImageID: image, Token: s.newShareToken(), Created: now.UnixMilli()}
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		i, err := s.findImage(ctx, tx, owner, image)
		if err != nil {
			return err
		}
		// It also keeps the owner's row, so that nobody counts beside us.
		if err := subject.Enter(ctx, tx, owner, subject.Deliver); err != nil {
			return err
		}
		var n int
		if err := tx.Get(ctx, &n, `SELECT count(*) FROM shares WHERE owner = ? AND expires_at > ?`, owner, now.UnixMilli()); err != nil {
			return err
		}
		if n >= mostShares {
			return problem.New(problem.Conflict, fmt.Sprintf("You share %d pictures, which is the limit. End one first.", mostShares))
		}
		h.Expires = min(now.Add(life).UnixMilli(), i.ExpiresAt)
		_, err = tx.Exec(ctx, `INSERT INTO shares (id, owner, image_id, token_lookup, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)`,
			h.ID, owner, image, s.shareLookup(h.Token), h.Created, h.Expires)
		return err
	})
	return h.timed(), away(err)
}

// Shares lists what the owner shares, newest first, behind an id, with one more than
// limit when there are more.
func (s *Service) Shares(ctx context.Context, owner, after string, limit int) ([]Share, error) {
	now := s.Clock.Millis()
	query := `SELECT s.id, s.image_id, s.created_at, s.expires_at FROM shares s JOIN images i ON i.id = s.image_id
		WHERE s.owner = ? AND s.expires_at > ? AND i.removed_at = 0 AND i.expires_at > ?`
	args := []any{owner, now, now}
	if after != "" {
		query += ` AND s.id < ?`
		args = append(args, after)
	}
	var list []Share
	if err := s.DB.Select(ctx, &list, query+` ORDER BY s.id DESC LIMIT ?`, append(args, limit+1)...); err != nil {
		return nil, away(err)
	}
	for k := range list {
		list[k] = list[k].timed()
	}
	return list, nil
}

// EndShare ends one share of the owner at once.
func (s *Service) EndShare(ctx context.Context, owner, id string) error {
	ended, err := s.endShares(ctx, owner, `id = ?`, id)
	if err == nil && len(ended) == 0 {
		return errNoShare
	}
	return err
}

// EndShares ends all of the owner's at once.
func (s *Service) EndShares(ctx context.Context, owner string) error {
	_, err := s.endShares(ctx, owner, `1 = 1`)
	return err
}

func (s *Service) endShares(ctx context.Context, owner, where string, args ...any) (ended []string, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		ended = nil
		err := tx.Select(ctx, &ended, `DELETE FROM shares WHERE owner = ? AND `+where+` RETURNING id`, append([]any{owner}, args...)...)
		if err == nil {
			s.tellEnded(ctx, tx, owner, EndedShare, ended...)
		}
		return err
	})
	return ended, away(err)
}

// Shared tells of a shared picture, by the token of its link. One that is not ours,
// was ended or has expired, and one whose picture is gone or may not be delivered, are
// all the same: NotFound.
func (s *Service) Shared(ctx context.Context, token string) (Shown, error) {
	h, err := s.findShare(ctx, token)
	if err != nil {
		return Shown{}, err
	}
	i, err := s.findImage(ctx, s.DB, h.Owner, h.ImageID)
	if err == nil {
		err = subject.May(ctx, s.DB, h.Owner, subject.Deliver)
	}
	if err != nil {
		return Shown{}, notDelivered(err)
	}
	return Shown{Width: i.Width, Height: i.Height, SourceType: s.models[h.Model].SourceType, ExpiresAt: millis(min(h.ExpiresAt, i.ExpiresAt))}, nil
}

// SharedContent opens a shared picture, as Shared does. The caller closes it.
func (s *Service) SharedContent(ctx context.Context, token string) (Content, error) {
	h, err := s.findShare(ctx, token)
	if err != nil {
		return Content{}, err
	}
	return s.deliver(ctx, h.Owner, h.ImageID, false)
}

type shareRow struct {
	Owner     string `db:"owner"`
	ImageID   string `db:"image_id"`
	ExpiresAt int64  `db:"expires_at"`
	Model     string `db:"model"`
}

func (s *Service) findShare(ctx context.Context, token string) (shareRow, error) {
	var h shareRow
	if !s.isShareToken(token) { // without a question to the database
		return h, errNoLink
	}
	err := s.DB.Get(ctx, &h, `SELECT s.owner, s.image_id, s.expires_at, g.model FROM shares s
		JOIN images i ON i.id = s.image_id JOIN generations g ON g.id = i.generation_id
		WHERE s.token_lookup = ? AND s.expires_at > ?`, s.shareLookup(token), s.Clock.Millis())
	if errors.Is(err, sql.ErrNoRows) {
		return h, errNoLink
	}
	return h, away(err)
}

func (s *Service) shareLookup(token string) string { return s.Vault.Lookup("share token", token) }

// The token of a share is random, with a keyed sum: one that somebody made up is not
// worth a look into the database.
const (
	shareRandom = 16
	shareSum    = 4
)

var shareLetters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func (s *Service) newShareToken() string {
	b := make([]byte, shareRandom, shareRandom+shareSum)
	_, _ = rand.Read(b) // it never fails: without randomness the program ends
	return shareLetters.EncodeToString(append(b, s.shareSum(b)...))
}

func (s *Service) isShareToken(token string) bool {
	if len(token) != shareLetters.EncodedLen(shareRandom+shareSum) {
		return false
	}
	b, err := shareLetters.DecodeString(token)
	return err == nil && len(b) == shareRandom+shareSum && subtle.ConstantTimeCompare(b[shareRandom:], s.shareSum(b[:shareRandom])) == 1
}

func (s *Service) shareSum(random []byte) []byte {
	return s.Vault.MAC("share token", random)[:shareSum]
}
