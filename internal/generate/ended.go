package generate

import (
	"context"

	"zimage/internal/db"
	"zimage/internal/subject"
)

// What people end of what they let others see, as the journal calls it.
const (
	EndedShare = "share" // its id
	EndedLinks = "links" // "owner@epoch": theirs of all epochs before
)

func (s *Service) tellEnded(ctx context.Context, tx *db.Tx, owner, kind string, ids ...string) {
	if s.Ended != nil {
		s.Ended(ctx, tx, owner, kind, ids...)
	}
}

// SharesBack are those of some shares that were ended and are there.
func (s *Service) SharesBack(ctx context.Context, q db.Querier, ids []string) (back []string, err error) {
	err = q.Select(ctx, &back, `SELECT id FROM shares WHERE id IN (`+db.Marks(len(ids))+`) ORDER BY id`, db.Args(ids)...)
	return back, err
}

// EndSharesAgain ends them again.
func (s *Service) EndSharesAgain(ctx context.Context, tx *db.Tx, ids []string) error {
	_, err := tx.Exec(ctx, `DELETE FROM shares WHERE id IN (`+db.Marks(len(ids))+`)`, db.Args(ids)...)
	return err
}

// LinksBack are those of some people's epochs that are still to come.
func (s *Service) LinksBack(ctx context.Context, q db.Querier, ids []string) (back []string, err error) {
	owners := make([]any, len(ids))
	for i, id := range ids {
		owners[i], _, _ = db.ParseNumbered(id)
	}
	var now []struct {
		Owner string `db:"owner"`
		Epoch int64  `db:"epoch"`
	}
	err = q.Select(ctx, &now, `SELECT s.id AS owner, coalesce(e.epoch, 0) AS epoch FROM subjects s LEFT JOIN link_epochs e ON e.owner = s.id
		WHERE s.state = ? AND s.id IN (`+db.Marks(len(ids))+`)`, append([]any{subject.Active}, owners...)...)
	epochs := map[string]int64{}
	for _, n := range now {
		epochs[n.Owner] = n.Epoch
	}
	for _, id := range ids {
		owner, epoch, _ := db.ParseNumbered(id)
		if is, living := epochs[owner]; living && is < epoch {
			back = append(back, id)
		}
	}
	return back, err
}

// RevokeLinksAgain gives them these epochs.
func (s *Service) RevokeLinksAgain(ctx context.Context, tx *db.Tx, ids []string) error {
	for _, id := range ids {
		owner, epoch, _ := db.ParseNumbered(id)
		_, err := tx.Exec(ctx, `INSERT INTO link_epochs (owner, epoch, raised_at) VALUES (?, ?, ?)
			ON CONFLICT (owner) DO UPDATE SET epoch = excluded.epoch, raised_at = excluded.raised_at WHERE link_epochs.epoch < excluded.epoch`,
			owner, epoch, s.Clock.Millis())
		if err != nil {
			return err
		}
	}
	return nil
}
