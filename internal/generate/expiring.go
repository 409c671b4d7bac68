package generate

import (
	"context"
	"time"
)

// An Ending is an image whose time is over soon.
type Ending struct {
	ID         string `db:"id"`
	Generation string `db:"generation_id"`
}

// Expiring are an owner's images behind one of them that are deleted by themselves by
// then, a bounded number in the order of their ids; without those that were made for no
// longer than life.
func (s *Service) Expiring(ctx context.Context, owner string, until time.Time, life time.Duration, after string, limit int) ([]Ending, error) {
	var list []Ending
	err := s.DB.Select(ctx, &list, `SELECT id, generation_id FROM images WHERE owner = ? AND id > ? AND removed_at = 0 AND expires_at > ? AND expires_at <= ?
		AND expires_at - created_at > ? ORDER BY id LIMIT ?`, owner, after, s.Clock.Millis(), until.UnixMilli(), life.Milliseconds(), limit)
	return list, away(err)
}
