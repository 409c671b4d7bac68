package privacy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"zimage/internal/db"
	"zimage/internal/jobs"
)

// KindEnded is the job that keeps in the journal what somebody ended; its ref is the
// journal's kind, and the ids.
const KindEnded = "erasure:journal"

// endedMost is how many ids one job has.
const endedMost = 100

// An End is how a kind of what people end, such as a share, stays ended when the main
// database is restored from before.
type End struct {
	// Back are those of the ids of which something is there again.
	Back func(ctx context.Context, q db.Querier, ids []string) ([]string, error)
	// Again ends these again.
	Again func(ctx context.Context, tx *db.Tx, ids []string) error
}

// Ended has the journal keep what its owner ended in this transaction. A job writes it
// once that is committed: the journal never has what did not end.
func (s *Service) Ended(ctx context.Context, tx *db.Tx, owner, kind string, ids ...string) {
	for page := range slices.Chunk(ids, endedMost) {
		tx.AtLast("job_turns "+jobs.Housekeeping+" "+owner, func() error {
			_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindEnded, Party: owner, Ref: kind + " " + strings.Join(page, " ")})
			return err
		})
	}
}

func (s *Service) endedKind() jobs.Kind {
	return jobs.Kind{Name: KindEnded, MaxAttempts: 1 << 30, Run: func(ctx context.Context, r *jobs.Run) error {
		words := strings.Fields(r.Ref)
		if err := s.note(ctx, words[0], words[1:]); err != nil {
			return jobs.Retry("keys_failed", err)
		}
		return nil
	}}
}

// goBack has f told what was ended and is there again, by kinds and pages.
func (s *Service) goBack(ctx context.Context, f func(end End, back []string) error) error {
	for _, kind := range slices.Sorted(maps.Keys(s.Ends)) {
		err := s.journal(ctx, kind, func(page []entry) error {
			ids := make([]string, len(page))
			for i, e := range page {
				ids[i] = e.ID
			}
			back, err := s.Ends[kind].Back(ctx, s.DB, ids)
			if err != nil || len(back) == 0 {
				return err
			}
			return f(s.Ends[kind], back)
		})
		if err != nil {
			return fmt.Errorf("look for what was ended: %w", err)
		}
	}
	return nil
}

// endsBack counts what was ended and is there again.
func (s *Service) endsBack(ctx context.Context) (n int, err error) {
	err = s.goBack(ctx, func(_ End, back []string) error {
		n += len(back)
		return nil
	})
	return n, err
}

// endAgain ends what the journal says was ended.
func (s *Service) endAgain(ctx context.Context) (n int, err error) {
	err = s.goBack(ctx, func(end End, back []string) error {
		err := s.DB.Tx(ctx, func(tx *db.Tx) error { return end.Again(ctx, tx, back) })
		if err == nil {
			n += len(back)
		}
		return err
	})
	return n, err
}
