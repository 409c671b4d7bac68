package generate

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// A signed link opens one picture, or its thumbnail, to whoever has its token.
const (
	LinkLife    = time.Hour // when nobody says for how long
	LongestLink = 24 * time.Hour
)

// A Link is told once: the token is kept nowhere.
type Link struct {
	Token     string // letters, digits, - and _
	ExpiresAt time.Time
}

var errNoLink = problem.New(problem.NotFound, "There is no such link, or not any more.")

// SignLink makes a link to one picture of the owner, or to its thumbnail, that
// lives for a time, LinkLife when that is 0, and no longer than the picture. Forbidden
// while the owner's data may not be delivered.
func (s *Service) SignLink(ctx context.Context, owner, image string, thumbnail bool, life time.Duration) (Link, error) {
	if life == 0 {
		life = LinkLife
	}
	if life < time.Second || life > LongestLink {
		return Link{}, problem.Invalid(problem.Field{Location: "body.expires_in", Message: fmt.Sprintf("must be from 1 to %d", LongestLink/time.Second)})
	}
	i, err := s.findImage(ctx, s.DB, owner, image)
	if err == nil {
		err = subject.May(ctx, s.DB, owner, subject.Deliver)
	}
	var epoch int64
	if err == nil {
		err = s.DB.Get(ctx, &epoch, `SELECT epoch FROM link_epochs WHERE owner = ?`, owner)
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Link{}, away(err)
	}
	ends := min(s.Clock.Now().Add(life).UnixMilli(), i.ExpiresAt)
	return Link{Token: s.sign(signed{image: image, thumbnail: thumbnail, ends: ends, epoch: epoch}), ExpiresAt: millis(ends)}, nil
}

// RevokeLinks voids all signed links of the owner at once.
func (s *Service) RevokeLinks(ctx context.Context, owner string) error {
	return away(s.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.Enter(ctx, tx, owner, subject.Read); err != nil {
			return err
		}
		var epoch int64
		err := tx.Get(ctx, &epoch, `INSERT INTO link_epochs (owner, epoch, raised_at) VALUES (?, 1, ?)
			ON CONFLICT (owner) DO UPDATE SET epoch = link_epochs.epoch + 1, raised_at = excluded.raised_at RETURNING epoch`, owner, s.Clock.Millis())
		if err == nil {
			s.tellEnded(ctx, tx, owner, EndedLinks, db.Numbered(owner, epoch))
		}
		return err
	}))
}

// Linked opens what a signed link leads to. A link that is not ours, was revoked or
// has expired, and one whose picture is gone or may not be delivered, are all the
// same: NotFound. The caller closes the content.
func (s *Service) Linked(ctx context.Context, token string) (Content, error) {
	l, ok := s.verify(token)
	if !ok || l.ends <= s.Clock.Millis() { // without a question to the database
		return Content{}, errNoLink
	}
	var of struct {
		Owner string `db:"owner"`
		Epoch int64  `db:"epoch"`
	}
	err := s.DB.Get(ctx, &of, `SELECT i.owner, coalesce(e.epoch, 0) AS epoch FROM images i LEFT JOIN link_epochs e ON e.owner = i.owner WHERE i.id = ?`, l.image)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Content{}, errNoLink
	case err != nil:
		return Content{}, away(err)
	case of.Epoch != l.epoch:
		return Content{}, errNoLink
	}
	return s.deliver(ctx, of.Owner, l.image, l.thumbnail)
}

// deliver opens a picture for somebody else than its owner, who has let them.
func (s *Service) deliver(ctx context.Context, owner, image string, thumbnail bool) (Content, error) {
	if err := subject.May(ctx, s.DB, owner, subject.Deliver); err != nil {
		return Content{}, notDelivered(err)
	}
	c, err := s.Content(ctx, owner, image, thumbnail)
	return c, notDelivered(err)
}

// notDelivered tells strangers nothing of why there is nothing for them.
func notDelivered(err error) error {
	if err == nil {
		return nil
	}
	switch problem.CodeOf(err) {
	case problem.NotFound, problem.DataRemoved, problem.Forbidden, problem.Unauthorized:
		return errNoLink
	}
	return away(err)
}

// signed is what a token says.
type signed struct {
	image     string
	thumbnail bool
	ends      int64 // milliseconds
	epoch     int64 // of the owner's links
}

const (
	signedHead = 1 + 8 + 8 // before the image's id
	signedSum  = 16
)

func (s *Service) sign(l signed) string {
	b := make([]byte, 1, 64)
	if l.thumbnail {
		b[0] = 1
	}
	b = binary.BigEndian.AppendUint64(b, uint64(l.ends))  //nolint:gosec // never negative
	b = binary.BigEndian.AppendUint64(b, uint64(l.epoch)) //nolint:gosec // never negative
	b = append(b, l.image...)
	return base64.RawURLEncoding.EncodeToString(append(b, s.signedSum(b)...))
}

// verify reads a token that sign made; false for any other.
func (s *Service) verify(token string) (signed, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) <= signedHead+signedSum || strings.ContainsAny(token, "\r\n") { // which it passes over
		return signed{}, false
	}
	b, sum := b[:len(b)-signedSum], b[len(b)-signedSum:]
	if subtle.ConstantTimeCompare(sum, s.signedSum(b)) != 1 {
		return signed{}, false
	}
	return signed{image: string(b[signedHead:]), thumbnail: b[0] == 1,
		ends: int64(binary.BigEndian.Uint64(b[1:9])), epoch: int64(binary.BigEndian.Uint64(b[9:17]))}, true //nolint:gosec // sign's own
}

func (s *Service) signedSum(b []byte) []byte { return s.Vault.MAC("signed link", b)[:signedSum] }
