package generate

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// sweepBatch bounds one transaction, and one listing, of the sweep.
const sweepBatch = 200

// Cancel ends a generation: at once while it is queued, within a few seconds
// while it runs. A generation that was canceled already is returned as it is;
// one that ended otherwise is a Conflict.
func (s *Service) Cancel(ctx context.Context, owner, id string) (Generation, error) {
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		r, err := s.find(ctx, tx, owner, id)
		if err != nil {
			return err
		}
		switch r.status() {
		case Canceled:
			return nil
		case Succeeded, Failed:
			return problem.New(problem.Conflict, "The generation has ended already.")
		}
		state, err := s.Queue.Cancel(ctx, tx, r.JobID)
		if err == nil && (state == jobs.Succeeded || state == jobs.Failed) {
			return problem.New(problem.Conflict, "The generation has ended already.")
		}
		return err
	})
	if err != nil {
		return Generation{}, away(err)
	}
	return s.Get(ctx, owner, id)
}

// Delete removes a generation and its images; one that has not ended is
// canceled. The objects are gone soon after.
func (s *Service) Delete(ctx context.Context, owner, id string) error {
	_, err := s.deleteSome(ctx, owner, []string{id}, true)
	return err
}

// DeleteMany removes the given generations (at most 1,000), or all of the
// owner's. Ids that are not there, or removed already, are passed over. It
// returns how many were removed.
func (s *Service) DeleteMany(ctx context.Context, owner string, ids []string, all bool) (int, error) {
	if !all {
		if err := checkIDs(ids); err != nil {
			return 0, err
		}
		return s.deleteSome(ctx, owner, ids, false)
	}
	removed := 0
	before := db.FloorID("gen", s.Clock.Now().Add(time.Millisecond)) // not what is submitted meanwhile
	for {
		var batch []string
		err := s.DB.Select(ctx, &batch, `SELECT id FROM generations WHERE owner = ? AND removed_at = 0 AND id < ? ORDER BY id LIMIT ?`,
			owner, before, sweepBatch)
		if err != nil || len(batch) == 0 {
			return removed, away(err)
		}
		n, err := s.deleteSome(ctx, owner, batch, false)
		removed += n
		if err != nil {
			return removed, err
		}
		if n == 0 { // all of them are held
			return removed, nil
		}
	}
}

func checkIDs(ids []string) error {
	if len(ids) == 0 || len(ids) > 1000 {
		return problem.Invalid(problem.Field{Location: "body.ids", Message: "must have 1 to 1000 ids, or set all to true"})
	}
	return nil
}

func (s *Service) deleteSome(ctx context.Context, owner string, ids []string, strict bool) (int, error) {
	removed := 0
	ids = slices.Sorted(slices.Values(ids)) // everybody locks in one order
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		removed = 0
		for _, id := range ids {
			r, err := s.find(ctx, tx, owner, id)
			if err != nil && !strict && problem.CodeOf(err) != problem.Internal {
				continue
			}
			if err != nil {
				return err
			}
			done, err := s.remove(ctx, tx, r, "user")
			if err != nil {
				return err
			}
			if done {
				removed++
			} else if strict {
				return problem.New(problem.Conflict, "A legal hold keeps this generation.")
			}
		}
		if removed == 0 {
			return nil
		}
		return s.addSweep(ctx, tx, owner, 0)
	})
	return removed, away(err)
}

// remove turns a generation and its images into tombstones; false when a hold
// keeps it. Its objects are the sweep's.
func (s *Service) remove(ctx context.Context, tx *db.Tx, r row, reason string) (bool, error) {
	held, err := subject.Held(ctx, tx, "generations", r.ID)
	if err != nil || held {
		return false, err
	}
	now := s.Clock.Now()
	if r.Status == "" {
		if _, err := s.Queue.Cancel(ctx, tx, r.JobID); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return false, err
		}
	}
	_, err = tx.Exec(ctx, `UPDATE generations SET request = NULL, seed = 0, model = '', removed_at = ?, removed_reason = ?, unswept = 1 WHERE id = ?`,
		now.UnixMilli(), reason, r.ID)
	if err != nil {
		return false, err
	}
	if err := s.removeImages(ctx, tx, `generation_id = ?`, r.ID, reason, now); err != nil {
		return false, err
	}
	tx.AfterCommit(func() { s.bulletin.changed(r.ID, 1<<40) })
	return true, s.Events.Append(ctx, tx, events.Event{Type: events.GenerationDeleted, Subject: r.Owner, Ref: r.ID, Reason: reason, At: now})
}

func (s *Service) removeImages(ctx context.Context, tx *db.Tx, where, arg, reason string, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE images SET sha256 = NULL, seed = 0, width = 0, height = 0, bytes = 0, format = '',
		removed_at = ?, removed_reason = ? WHERE removed_at = 0 AND `+where, now.UnixMilli(), reason, arg)
	return err
}

// DeleteImage removes one image; the others of its generation stay.
func (s *Service) DeleteImage(ctx context.Context, owner, id string) error {
	_, err := s.deleteImages(ctx, owner, []string{id}, true)
	return err
}

// DeleteImages removes the given images (at most 1,000), or all of the owner's,
// and returns how many.
func (s *Service) DeleteImages(ctx context.Context, owner string, ids []string, all bool) (int, error) {
	if !all {
		if err := checkIDs(ids); err != nil {
			return 0, err
		}
		return s.deleteImages(ctx, owner, ids, false)
	}
	removed := 0
	before := db.FloorID("img", s.Clock.Now().Add(time.Millisecond))
	for {
		var batch []string
		err := s.DB.Select(ctx, &batch, `SELECT id FROM images WHERE owner = ? AND removed_at = 0 AND expires_at > ? AND id < ? ORDER BY id LIMIT ?`,
			owner, s.Clock.Millis(), before, sweepBatch)
		if err != nil || len(batch) == 0 {
			return removed, away(err)
		}
		n, err := s.deleteImages(ctx, owner, batch, false)
		removed += n
		if err != nil {
			return removed, err
		}
		if n == 0 {
			return removed, nil
		}
	}
}

func (s *Service) deleteImages(ctx context.Context, owner string, ids []string, strict bool) (int, error) {
	removed := 0
	ids = slices.Sorted(slices.Values(ids))
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		removed = 0
		for _, id := range ids {
			i, err := s.findImage(ctx, tx, owner, id)
			if err != nil && !strict && problem.CodeOf(err) != problem.Internal {
				continue
			}
			if err != nil {
				return err
			}
			held, err := subject.Held(ctx, tx, "images", id)
			if err == nil && !held {
				held, err = subject.Held(ctx, tx, "generations", i.GenerationID)
			}
			if err != nil {
				return err
			}
			if held {
				if strict {
					return problem.New(problem.Conflict, "A legal hold keeps this image.")
				}
				continue
			}
			now := s.Clock.Now()
			if err := s.removeImages(ctx, tx, `id = ?`, id, "user", now); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `UPDATE generations SET unswept = 1 WHERE id = ?`, i.GenerationID); err != nil {
				return err
			}
			if err := s.Events.Append(ctx, tx, events.Event{Type: events.ImageDeleted, Subject: owner, Ref: id, Reason: "user", At: now}); err != nil {
				return err
			}
			removed++
		}
		if removed == 0 {
			return nil
		}
		return s.addSweep(ctx, tx, owner, 0)
	})
	return removed, away(err)
}

// addSweep has the objects of an owner's unswept generations deleted, after a
// while when an attempt that no longer counts may still be storing some.
func (s *Service) addSweep(ctx context.Context, tx *db.Tx, owner string, after time.Duration) error {
	_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindSweep, Party: owner, Ref: owner, RunAfter: s.Clock.Now().Add(after)})
	return err
}

// sweep removes what has expired and deletes every object that no living image
// needs. Its job names an owner, or comes from the schedule and is for all.
func (s *Service) sweep(ctx context.Context, r *jobs.Run) error {
	everybody := strings.HasPrefix(r.Ref, "generation-sweep")
	if everybody {
		if err := s.expire(ctx); err != nil {
			return jobs.Retry("internal", err)
		}
	}
	after := ""
	for {
		var batch []row
		query, args := `SELECT id, owner FROM generations WHERE unswept = 1 AND owner = ? AND id > ? ORDER BY id LIMIT ?`, []any{r.Ref, after, sweepBatch}
		if everybody {
			query, args = `SELECT id, owner FROM generations WHERE unswept = 1 AND id > ? ORDER BY id LIMIT ?`, []any{after, sweepBatch}
		}
		if err := s.DB.Select(ctx, &batch, query, args...); err != nil {
			return jobs.Retry("internal", err)
		}
		for _, g := range batch {
			if err := s.sweepOne(ctx, g.Owner, g.ID); err != nil {
				return jobs.Retry("internal", err)
			}
			after = g.ID
		}
		if len(batch) < sweepBatch {
			return nil
		}
	}
}

// sweepOne deletes the objects of one generation that no living image needs. A
// running attempt's own objects are left alone.
func (s *Service) sweepOne(ctx context.Context, owner, id string) error {
	var living []imageRow
	if err := s.DB.Select(ctx, &living, selectImage+`WHERE generation_id = ? AND removed_at = 0`, id); err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, i := range living {
		needed[imageKey(owner, id, i.Attempt, i.N)] = true
		needed[thumbKey(owner, id, i.Attempt, i.N)] = true
	}
	var running struct {
		State   string `db:"state"`
		Attempt int    `db:"attempt"`
	}
	err := s.DB.Get(ctx, &running, `SELECT j.state, j.attempt FROM jobs j JOIN generations g ON g.job_id = j.id WHERE g.id = ?`, id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	busy := running.State != "" && !jobs.State(running.State).Terminal()
	var unneeded []string
	for after := ""; ; {
		page, err := s.Objects.List(ctx, prefix(owner, id), after, sweepBatch)
		if err != nil {
			s.Metrics.objectFailures.Inc()
			return err
		}
		for _, o := range page {
			after = o.Key
			if !needed[o.Key] && (!busy || attemptOf(o.Key) < running.Attempt) {
				unneeded = append(unneeded, o.Key)
			}
		}
		if len(page) < sweepBatch {
			break
		}
	}
	if len(unneeded) > 0 {
		if err := s.Objects.Delete(ctx, unneeded...); err != nil {
			s.Metrics.objectFailures.Inc()
			return err
		}
		s.Metrics.swept.Add(float64(len(unneeded)))
	}
	if busy {
		return nil // it is looked at again when it has ended
	}
	_, err = s.DB.Exec(ctx, `UPDATE generations SET unswept = 0 WHERE id = ?`, id)
	return err
}

func attemptOf(key string) int {
	parts := strings.Split(key, "/")
	if len(parts) < 2 {
		return 1 << 30
	}
	n, err := strconv.Atoi(parts[len(parts)-2])
	if err != nil {
		return 1 << 30 // not ours: never deleted
	}
	return n
}

// expire makes tombstones of what has passed its window, in bounded batches,
// and forgets tombstones and idempotency keys that have had their time.
func (s *Service) expire(ctx context.Context) error {
	after := ""
	for {
		var batch []string
		err := s.DB.Select(ctx, &batch, `SELECT id FROM generations WHERE removed_at = 0 AND expires_at <= ? AND id > ? ORDER BY id LIMIT ?`,
			s.Clock.Millis(), after, sweepBatch)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			break
		}
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			for _, id := range batch {
				var r row
				if err := tx.Get(ctx, &r, selectRow+`WHERE g.id = ?`, id); err != nil {
					return err
				}
				if _, err := s.remove(ctx, tx, r, "expired"); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		after = batch[len(batch)-1]
	}
	now := s.Clock.Now()
	for _, old := range []struct {
		sql    string
		before time.Time
	}{
		{`DELETE FROM idempotency_keys WHERE created_at < ?`, now.Add(-idempotentFor)},
		{`DELETE FROM images WHERE removed_at > 0 AND removed_at < ?`, now.Add(-tombstoneFor)},
		{`DELETE FROM generations WHERE unswept = 0 AND removed_at > 0 AND removed_at < ?`, now.Add(-tombstoneFor)},
	} {
		if _, err := s.DB.Exec(ctx, old.sql, old.before.UnixMilli()); err != nil {
			return fmt.Errorf("forget what is old: %w", err)
		}
	}
	return nil
}
