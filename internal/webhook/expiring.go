package webhook

import (
	"context"
	"slices"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// expiring is how long before its end an image is told of, if it was made for longer. Where
// events are kept for less, it is that: by the event it is known that it was told.
const expiring = 7 * 24 * time.Hour

// An Image is one whose end is told.
type Image struct{ ID, Generation string }

// Schedules is the recurring work of the room.
func Schedules() []jobs.Schedule {
	return []jobs.Schedule{{Name: "webhook-expiring", Every: time.Hour, Kind: KindExpiring}}
}

// tellExpiring tells whoever asked for it which images will be deleted by themselves.
func (s *Service) tellExpiring(ctx context.Context, _ *jobs.Run) error {
	for after := ""; ; {
		var owners []string
		err := s.DB.Select(ctx, &owners, `SELECT DISTINCT owner FROM webhook_endpoints WHERE once = 0 AND disabled_at IS NULL
			AND (events = '' OR events LIKE ?) AND owner > ? ORDER BY owner LIMIT ?`, "%"+string(events.ImageExpiring)+"%", after, batch)
		if err != nil {
			return jobs.Retry("internal", err)
		}
		for _, owner := range owners {
			if err := s.tellExpiringOf(ctx, owner); err != nil {
				return jobs.Retry("internal", err)
			}
			after = owner
		}
		if len(owners) < batch {
			return nil
		}
	}
}

// expiringBatch bounds one transaction: each image may have a delivery to each endpoint.
const expiringBatch = 50

func (s *Service) tellExpiringOf(ctx context.Context, owner string) error {
	switch err := subject.May(ctx, s.DB, owner, subject.Deliver); problem.CodeOf(err) {
	case problem.Forbidden, problem.Unauthorized:
		return nil // once it is allowed again, what is left is told
	default:
		if err != nil {
			return err
		}
	}
	for after := ""; ; {
		now := s.Clock.Now()
		list, err := s.Expiring(ctx, owner, now.Add(min(expiring, now.Sub(s.Kept(now)))), expiring, after, expiringBatch)
		if err != nil || len(list) == 0 {
			return err
		}
		ids := make([]any, len(list))
		for i, image := range list {
			ids[i] = image.ID
		}
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			var told []string // once each: an index sees to that
			err := tx.Select(ctx, &told, `SELECT ref FROM webhook_events WHERE type = 'image.expiring' AND ref IN (`+db.Marks(len(ids))+`)`, ids...)
			for _, image := range list {
				if err == nil && !slices.Contains(told, image.ID) {
					err = s.record(ctx, tx, events.Event{Type: events.ImageExpiring, Subject: owner, Ref: image.ID, Whole: image.Generation, At: now})
				}
			}
			return err
		})
		if err != nil {
			return err
		}
		after = list[len(list)-1].ID
	}
}

// ending is what is told of an image whose end is near.
func (s *Service) ending(ctx context.Context, d delivery) (any, error) {
	g, err := s.Generation(ctx, d.Owner, d.Whole)
	if code := problem.CodeOf(err); code == problem.DataRemoved || code == problem.NotFound || err == nil && !slices.Contains(g.Images, d.Ref) {
		return refData{ID: d.Ref, GenerationID: d.Whole, Code: string(problem.DataRemoved)}, nil
	}
	return refData{ID: d.Ref, GenerationID: d.Whole, ExpiresAt: pointer(g.ExpiresAt), URL: s.PublicURL + "/v1/images/" + d.Ref + "/content"}, err
}
