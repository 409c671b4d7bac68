package generate

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// sweepBatch bounds one transaction, and one listing, of the sweep.
const sweepBatch = 200

// sweepPiece is how many generations a sweep of everybody's looks at between two rests.
const sweepPiece = 10

// sweepPatience is how many generations may fail to be swept before a sweep takes
// it that object storage is away.
const sweepPatience = 10

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
		state, err := s.Queue.Cancel(ctx, tx, r.JobID, jobs.AtWish)
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
// returns how many are removed; of very many, a job removes the rest.
func (s *Service) DeleteMany(ctx context.Context, owner string, ids []string, all bool) (int, error) {
	return s.deleteMany(ctx, owner, ids, all, s.generationRemoval())
}

// DeleteImages is DeleteMany for images.
func (s *Service) DeleteImages(ctx context.Context, owner string, ids []string, all bool) (int, error) {
	return s.deleteMany(ctx, owner, ids, all, s.imageRemoval())
}

// removal is what differs between removing generations and images.
type removal struct {
	kind, table, prefix string
	some                func(ctx context.Context, owner string, ids []string, strict bool) (int, error)
}

func (s *Service) generationRemoval() removal {
	return removal{KindDeleteGenerations, "generations", "gen", s.deleteSome}
}

func (s *Service) imageRemoval() removal {
	return removal{KindDeleteImages, "images", "img", s.deleteImages}
}

// pagesAtOnce of a removal of all run within the request; a job does the rest.
const pagesAtOnce = 5

func (s *Service) deleteMany(ctx context.Context, owner string, ids []string, all bool, k removal) (int, error) {
	if !all {
		if err := checkIDs(ids); err != nil {
			return 0, err
		}
		removed := 0
		// By pages: one transaction of a thousand could outlast the request on a
		// database that is far away, again and again.
		for page := range slices.Chunk(ids, sweepBatch) {
			n, err := k.some(ctx, owner, page, false)
			removed += n
			if err != nil {
				return removed, err
			}
		}
		return removed, nil
	}
	until := s.Clock.Now()
	removed, ended, err := s.removePages(ctx, owner, until, pagesAtOnce, k)
	if err != nil || ended {
		return removed, away(err)
	}
	var rest int
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		err := tx.Get(ctx, &rest, `SELECT count(*) FROM `+k.table+` WHERE owner = ? AND removed_at = 0 AND expires_at > ? AND id < ?`,
			owner, until.UnixMilli(), madeUntil(k, until))
		if err != nil {
			return err
		}
		_, err = s.Queue.Add(ctx, tx, jobs.NewJob{Kind: k.kind, Party: owner, Ref: db.Numbered(owner, until.UnixMilli())})
		return err
	})
	return removed + rest, away(err)
}

// deleteRest goes on where a request to remove all had to stop.
func (s *Service) deleteRest(k removal) func(context.Context, *jobs.Run) error {
	return func(ctx context.Context, r *jobs.Run) error {
		// Up to the moment of the request: what was made while it ran stays.
		owner, ms, ok := db.ParseNumbered(r.Ref)
		if !ok {
			return jobs.Fail("internal", errors.New("the job's ref has no time"))
		}
		if _, _, err := s.removePages(ctx, owner, millis(ms), 1<<30, k); err != nil {
			return jobs.Retry("internal", err)
		}
		return nil
	}
}

// madeUntil is above every id made until then: what is submitted meanwhile
// stays.
func madeUntil(k removal, until time.Time) string {
	return db.FloorID(k.prefix, until.Add(time.Millisecond))
}

// removePages removes an owner's rows, page by page; ended is true when none is
// left but those that a hold keeps.
func (s *Service) removePages(ctx context.Context, owner string, until time.Time, pages int, k removal) (removed int, ended bool, err error) {
	after := ""
	for range pages {
		var page []string
		err := s.DB.Select(ctx, &page, `SELECT id FROM `+k.table+` WHERE owner = ? AND removed_at = 0 AND expires_at > ? AND id > ? AND id < ?
			ORDER BY id LIMIT ?`, owner, s.Clock.Millis(), after, madeUntil(k, until), sweepBatch)
		if err != nil || len(page) == 0 {
			return removed, err == nil, err
		}
		n, err := k.some(ctx, owner, page, false)
		removed += n
		if err != nil {
			return removed, false, err
		}
		after = page[len(page)-1]
	}
	return removed, false, nil
}

// What cannot be removed, and is passed over unless it was asked for by name.
var (
	passOver = []error{errNotFound, errNoImage, errRemoved, subject.ErrHeld}
)

func passedOver(err error) bool {
	return slices.ContainsFunc(passOver, func(known error) bool { return errors.Is(err, known) })
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
			if err == nil {
				err = s.remove(ctx, tx, r, "user")
			}
			if !strict && passedOver(err) {
				continue
			}
			if err != nil {
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

// remove turns a generation and its images into tombstones. It is subject.ErrHeld when a
// hold keeps it or an image of it, and errRemoved when somebody was first. Its
// objects are the sweep's.
func (s *Service) remove(ctx context.Context, tx *db.Tx, r row, reason string) error {
	removed, held, err := s.removeSome(ctx, tx, []string{r.ID}, reason)
	switch {
	case err == nil && held:
		err = subject.ErrHeld
	case err == nil && removed == 0:
		err = errRemoved
	}
	return err
}

// removeSome is remove for many, in a few statements whatever their number. Those that
// a hold keeps it leaves, and says so.
func (s *Service) removeSome(ctx context.Context, tx *db.Tx, ids []string, reason string) (removed int, held bool, err error) {
	// The jobs, the generations, their images: everybody locks in this order, and each
	// in that of their ids.
	var working []jobs.Job
	if err := tx.Select(ctx, &working, `SELECT id, attempt FROM jobs WHERE id IN (SELECT job_id FROM generations WHERE status = '' AND id IN (`+db.Marks(len(ids))+`))
		ORDER BY id`+db.ForUpdate(tx), db.Args(ids)...); err != nil {
		return 0, false, err
	}
	free, err := subject.Free(ctx, tx, "generations", ids)
	if err != nil {
		return 0, false, err
	}
	if free, err = s.withoutHeldImages(ctx, tx, free); err != nil || len(free) == 0 {
		return 0, len(free) < len(ids), err
	}
	now := s.Clock.Now()
	var gone []struct {
		ID    string `db:"id"`
		Owner string `db:"owner"`
		Job   string `db:"job_id"`
	}
	err = tx.Select(ctx, &gone, `UPDATE generations SET request = NULL, seed = 0, model = '', removed_at = ?, removed_reason = ?, unswept = 1
		WHERE removed_at = 0 AND id IN (`+db.Marks(len(free))+`) RETURNING id, owner, job_id`, append([]any{now.UnixMilli(), reason}, db.Args(free)...)...)
	if err != nil || len(gone) == 0 {
		return 0, len(free) < len(ids), err
	}
	var each []string
	for _, g := range gone {
		each = append(each, g.ID)
		i := slices.IndexFunc(working, func(j jobs.Job) bool { return j.ID == g.Job })
		if i < 0 {
			continue
		}
		if _, err := s.Queue.Cancel(ctx, tx, g.Job, jobs.AtWish); err != nil {
			return 0, false, err
		}
		// It has no other end: what ends the job finds it removed.
		err := s.Events.Append(ctx, tx, events.Event{Type: events.GenerationCanceled, Subject: g.Owner, Ref: g.ID, At: now, Sequence: 2*int64(working[i].Attempt) + 2})
		if err != nil {
			return 0, false, err
		}
	}
	if _, err := s.removeImages(ctx, tx, `generation_id IN (`+db.Marks(len(each))+`)`, db.Args(each), reason, now); err != nil {
		return 0, false, err
	}
	for _, g := range gone {
		tx.AfterCommit(func() { s.bulletin.changed(g.ID, removedSequence) })
		err := s.Events.Append(ctx, tx, events.Event{Type: events.GenerationDeleted, Subject: g.Owner, Ref: g.ID, Reason: reason, At: now, Sequence: removedSequence})
		if err != nil {
			return 0, false, err
		}
	}
	return len(gone), len(free) < len(ids), nil
}

// withoutHeldImages leaves out generations of which a hold keeps an image.
func (s *Service) withoutHeldImages(ctx context.Context, tx *db.Tx, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	var images []struct {
		ID    string `db:"id"`
		Whole string `db:"generation_id"`
	}
	if err := tx.Select(ctx, &images, `SELECT id, generation_id FROM images WHERE generation_id IN (`+db.Marks(len(ids))+`) ORDER BY id`, db.Args(ids)...); err != nil {
		return nil, err
	}
	all := make([]string, len(images))
	for i, image := range images {
		all[i] = image.ID
	}
	free, err := subject.Free(ctx, tx, "images", all)
	if err != nil || len(free) == len(all) {
		return ids, err
	}
	for _, image := range images {
		if !slices.Contains(free, image.ID) {
			ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == image.Whole })
		}
	}
	return ids, nil
}

// removeImages makes tombstones of images, ends their shares, and says how many images.
func (s *Service) removeImages(ctx context.Context, tx *db.Tx, where string, args []any, reason string, now time.Time) (int, error) {
	var gone []struct {
		ID    string `db:"id"`
		Owner string `db:"owner"`
	}
	err := tx.Select(ctx, &gone, `UPDATE images SET sha256 = NULL, seed = 0, width = 0, height = 0, bytes = 0, format = '',
		removed_at = ?, removed_reason = ? WHERE removed_at = 0 AND `+where+` RETURNING id, owner`, append([]any{now.UnixMilli(), reason}, args...)...)
	if err != nil || len(gone) == 0 {
		return 0, err
	}
	var images, owners []any
	for _, i := range gone {
		images = append(images, i.ID)
		if !slices.Contains(owners, any(i.Owner)) {
			owners = append(owners, i.Owner)
		}
	}
	// By their owners, which have an index.
	_, err = tx.Exec(ctx, `DELETE FROM shares WHERE owner IN (`+db.Marks(len(owners))+`) AND image_id IN (`+db.Marks(len(images))+`)`, append(owners, images...)...)
	return len(gone), err
}

// DeleteImage removes one image; the others of its generation stay.
func (s *Service) DeleteImage(ctx context.Context, owner, id string) error {
	_, err := s.deleteImages(ctx, owner, []string{id}, true)
	return err
}

func (s *Service) deleteImages(ctx context.Context, owner string, ids []string, strict bool) (int, error) {
	removed := 0
	ids = slices.Sorted(slices.Values(ids))
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		removed = 0
		for _, id := range ids {
			i, err := s.findImage(ctx, tx, owner, id)
			if err == nil {
				err = s.removeImage(ctx, tx, i, "user")
			}
			if !strict && passedOver(err) {
				continue
			}
			if err != nil {
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

// removeImage makes a tombstone of one image, with remove's errors.
func (s *Service) removeImage(ctx context.Context, tx *db.Tx, i imageRow, reason string) error {
	// The generation before the image, in the order in which everybody locks.
	held, err := subject.Held(ctx, tx, "generations", i.GenerationID)
	if err == nil && !held {
		held, err = subject.Held(ctx, tx, "images", i.ID)
	}
	if err == nil && held {
		err = subject.ErrHeld
	}
	if err != nil {
		return err
	}
	now := s.Clock.Now()
	n, err := s.removeImages(ctx, tx, `id = ?`, []any{i.ID}, reason, now)
	if err == nil && n == 0 {
		err = errRemoved // with its generation, whose sweep is on its way
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE generations SET unswept = 1 WHERE id = ?`, i.GenerationID); err != nil {
		return err
	}
	return s.Events.Append(ctx, tx, events.Event{Type: events.ImageDeleted, Subject: i.Owner, Ref: i.ID, Whole: i.GenerationID, Reason: reason, At: now,
		Sequence: 2*int64(i.Attempt) + 3 + int64(i.N)})
}

// RemoveGenerations makes tombstones of some people's generations, for retention and
// for what must be deleted again after a restore. What a hold keeps it passes over. It
// returns how many were removed; their objects are gone soon after.
func (s *Service) RemoveGenerations(ctx context.Context, tx *db.Tx, ids []string, reason string) (int, error) {
	removed, _, err := s.removeSome(ctx, tx, ids, reason)
	if err != nil || removed == 0 {
		return 0, err
	}
	return removed, s.addSweep(ctx, tx, sweepAll, 0)
}

// RemoveImages is RemoveGenerations for images.
func (s *Service) RemoveImages(ctx context.Context, tx *db.Tx, ids []string, reason string) (removed int, err error) {
	for _, id := range ids {
		var i imageRow
		err := tx.Get(ctx, &i, selectImage+`WHERE id = ?`, id)
		if err == nil {
			err = s.removeImage(ctx, tx, i, reason)
		}
		switch {
		case err == nil:
			removed++
		case !passedOver(err) && !errors.Is(err, sql.ErrNoRows):
			return 0, err
		}
	}
	if removed == 0 {
		return 0, nil
	}
	return removed, s.addSweep(ctx, tx, sweepAll, 0)
}

// sweepAll is the schedule of sweeps, and the ref of one for everybody.
const sweepAll = "generation-sweep"

// addSweep has the objects of an owner's unswept generations deleted, or of
// everybody's, after a while when an attempt that no longer counts may still be
// storing some.
func (s *Service) addSweep(ctx context.Context, tx *db.Tx, owner string, after time.Duration) error {
	party := owner
	if owner == sweepAll {
		party = jobs.System
	}
	// One that is due by then will see what this transaction writes: its row is
	// kept, so that no worker claims it before the commit.
	var waiting string
	err := tx.Get(ctx, &waiting, `SELECT id FROM jobs WHERE party = ? AND state IN ('queued', 'waiting') AND kind = ? AND run_after <= ?
		LIMIT 1`+db.SkipLocked(tx), party, KindSweep, s.Clock.Now().Add(after).UnixMilli())
	if errors.Is(err, sql.ErrNoRows) && owner == sweepAll {
		// So will everybody's that is at work, before it ends: see endSweep.
		err = tx.Get(ctx, &waiting, `SELECT id FROM jobs WHERE state = 'running' AND kind = ? AND ref = ? LIMIT 1`+db.SkipLocked(tx), KindSweep, sweepAll)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	_, err = s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindSweep, Party: party, Ref: owner, RunAfter: s.Clock.Now().Add(after)})
	return err
}

// endSweep ends everybody's sweep, and adds another if anything is unswept that could be
// swept by now: what was removed while it ran counted on it.
func (s *Service) endSweep(ctx context.Context, r *jobs.Run) error {
	return r.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
		var id string
		err := tx.Get(ctx, &id, `SELECT g.id FROM generations g LEFT JOIN jobs j ON j.id = g.job_id WHERE g.unswept = 1 AND `+quiet+` LIMIT 1`, s.late())
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return s.addSweep(ctx, tx, sweepAll, 0)
	})
}

// sweep deletes every object that no living image needs. Its job names an owner, or
// is for all: the schedule's, and that of what has expired.
func (s *Service) sweep(ctx context.Context, r *jobs.Run) error {
	if err := s.journalAll(ctx, r.Ref); err != nil {
		return jobs.Retry("internal", err)
	}
	// A person who deletes waits for it; what has expired has two hours.
	var pace *jobs.Pace
	if r.Ref == sweepAll {
		pace = s.Queue.PaceOf(r.Job)
	}
	var failed []error
	inARow := 0
	for after := (unswept{}); ; {
		if err := pace.Next(ctx); err != nil {
			return jobs.Retry("internal", err)
		}
		size := sweepPiece
		if pace.Over() {
			size = sweepBatch
		}
		batch, err := s.unswept(ctx, r.Ref, after, size)
		if err != nil {
			return jobs.Retry("internal", err)
		}
		if err := s.journal(ctx, batch); err != nil { // what was deleted meanwhile
			return jobs.Retry("internal", err)
		}
		// Together it takes a few calls; one by one, what fails is told from the rest.
		alone := batch
		if len(batch) > 1 {
			if err := s.sweepSome(ctx, batch); err == nil {
				alone, after = nil, batch[len(batch)-1]
			}
		}
		for _, g := range alone {
			err := s.sweepSome(ctx, []unswept{g})
			if inARow++; err == nil {
				inARow = 0
			} else if failed = append(failed, err); len(failed) > sweepPatience {
				failed = failed[1:]
			}
			// Some that cannot be deleted must not keep the others; a store that is
			// away is asked no further.
			if inARow >= sweepPatience {
				if err := s.Objects.Check(ctx); err != nil {
					return jobs.Retry("internal", errors.Join(append(failed, err)...))
				}
				inARow = 0
			}
			if ctx.Err() != nil {
				return jobs.Retry("internal", errors.Join(append(failed, ctx.Err())...))
			}
			after = g
		}
		if len(batch) == size {
			continue
		}
		if len(failed) > 0 {
			return jobs.Retry("internal", errors.Join(failed...))
		}
		if r.Ref == sweepAll {
			return s.endSweep(ctx, r)
		}
		return nil
	}
}

// unswept is a generation of which objects may be left, or deletions that are not
// journalled.
type unswept struct {
	ID    string `db:"id"`
	Owner string `db:"owner"`
	Gone  int    `db:"gone"` // how much of it its owner deleted
}

const gone = `(CASE WHEN g.removed_reason = 'user' THEN 1 ELSE 0 END + (SELECT count(*) FROM images i WHERE i.generation_id = g.id AND i.removed_reason = 'user'))`

const selectUnswept = `SELECT id, owner, ` + gone + ` AS gone FROM generations g `

// unswept is a page of an owner's, or of everybody's, in the order of their index.
func (s *Service) unswept(ctx context.Context, owner string, after unswept, limit int) (batch []unswept, err error) {
	query, args := selectUnswept+`WHERE unswept = 1 AND owner = ? AND id > ? ORDER BY id LIMIT ?`, []any{owner, after.ID, limit}
	if owner == sweepAll {
		query, args = selectUnswept+`WHERE unswept = 1 AND (owner, id) > (?, ?) ORDER BY owner, id LIMIT ?`, []any{after.Owner, after.ID, limit}
	}
	err = s.DB.Select(ctx, &batch, query, args...)
	return batch, err
}

// journalAll journals every deletion before the object store is asked for anything: it
// may be away for long.
func (s *Service) journalAll(ctx context.Context, owner string) error {
	if s.Journal == nil {
		return nil
	}
	for after := (unswept{}); ; {
		batch, err := s.unswept(ctx, owner, after, sweepBatch)
		if err == nil {
			err = s.journal(ctx, batch)
		}
		if err != nil || len(batch) < sweepBatch {
			return err
		}
		after = batch[len(batch)-1]
	}
}

// journal keeps what people deleted where a restored database does not lose it,
// before the objects go.
func (s *Service) journal(ctx context.Context, batch []unswept) error {
	var ids []any
	for _, g := range batch {
		if g.Gone > 0 {
			ids = append(ids, g.ID)
		}
	}
	if s.Journal == nil || len(ids) == 0 {
		return nil
	}
	for table, query := range map[string]string{
		"generations": `SELECT id FROM generations WHERE removed_reason = 'user' AND id IN (` + db.Marks(len(ids)) + `)`,
		"images": `SELECT i.id FROM images i JOIN generations g ON g.id = i.generation_id
			WHERE i.removed_reason = 'user' AND g.removed_reason <> 'user' AND g.id IN (` + db.Marks(len(ids)) + `)`,
	} {
		var deleted []string
		if err := s.DB.Select(ctx, &deleted, query, ids...); err != nil {
			return err
		}
		if err := s.Journal(ctx, table, deleted); err != nil {
			return err
		}
	}
	return nil
}

// sweepSome deletes the objects of some generations that no living image needs. A running
// attempt's own objects are left alone. All of it is done, or it is an error.
func (s *Service) sweepSome(ctx context.Context, batch []unswept) error {
	all, err := s.look(ctx, batch)
	if err != nil {
		return err
	}
	var unneeded []string
	for _, l := range all {
		unneeded = append(unneeded, l.unneeded...)
	}
	if len(unneeded) > 0 {
		if err := s.Objects.Delete(ctx, unneeded...); err != nil {
			s.Metrics.objectFailures.Inc()
			return err
		}
		s.Metrics.swept.Add(float64(len(unneeded)))
	}
	return s.settle(ctx, all)
}

// looks are how many generations' objects are listed at once.
const looks = 4

// looked is what a look at a generation's objects found.
type looked struct {
	unswept
	needed   int      // objects
	unneeded []string // keys
	open     bool     // an attempt may still be storing: it is looked at again later
}

// look finds what of a batch's objects no living image needs. Only where an attempt may
// have left some without a row is the store asked what there is.
func (s *Service) look(ctx context.Context, batch []unswept) ([]looked, error) {
	var ids []any
	for _, g := range batch {
		ids = append(ids, g.ID)
	}
	// The jobs first: a completion between the two questions is then still seen as
	// running, and never as ended without images.
	var works []work
	err := s.DB.Select(ctx, &works, `SELECT g.id AS generation, coalesce(j.state, '') AS state, coalesce(j.attempt, 0) AS attempt,
		CASE WHEN `+quiet+` THEN 1 ELSE 0 END AS quiet, CASE WHEN g.status = 'succeeded' AND g.attempts = 1 AND g.job_id <> '' THEN 1 ELSE 0 END AS alone
		FROM generations g LEFT JOIN jobs j ON j.id = g.job_id WHERE g.id IN (`+db.Marks(len(ids))+`)`, append([]any{s.late()}, ids...)...)
	if err != nil {
		return nil, err
	}
	var images []imageRow
	if err := s.DB.Select(ctx, &images, selectImage+`WHERE generation_id IN (`+db.Marks(len(ids))+`)`, ids...); err != nil {
		return nil, err
	}
	all := make([]looked, len(batch))
	g, looking := errgroup.WithContext(ctx)
	g.SetLimit(looks)
	for i, u := range batch {
		var job work
		if n := slices.IndexFunc(works, func(w work) bool { return w.Generation == u.ID }); n >= 0 {
			job = works[n]
		}
		all[i] = looked{unswept: u, open: !job.Quiet}
		needed, rows := map[string]bool{}, 0
		for _, image := range images {
			if image.GenerationID != u.ID {
				continue
			}
			rows++
			for _, key := range []string{imageKey(u.Owner, u.ID, image.Attempt, image.N), thumbKey(u.Owner, u.ID, image.Attempt, image.N)} {
				if image.RemovedAt == 0 {
					needed[key] = true
				} else {
					all[i].unneeded = append(all[i].unneeded, key)
				}
			}
		}
		all[i].needed = len(needed)
		if job.Alone && rows > 0 {
			continue
		}
		g.Go(func() (err error) {
			all[i].unneeded, err = s.unneeded(looking, u, job, needed)
			return err
		})
	}
	return all, g.Wait()
}

// work is what is known of a generation's attempts.
type work struct {
	Generation string `db:"generation"`
	jobs.Job
	Quiet bool `db:"quiet"` // nothing more can be stored
	Alone bool `db:"alone"` // its first attempt succeeded: each object that it stored has a row
}

func (w work) busy() bool { return w.State != "" && !w.State.Terminal() }

// unneeded asks the store for a generation's objects. A running attempt's own are
// left alone.
func (s *Service) unneeded(ctx context.Context, g unswept, job work, needed map[string]bool) (keys []string, err error) {
	for after := ""; ; {
		page, err := s.Objects.List(ctx, prefix(g.Owner, g.ID), after, sweepBatch)
		if err != nil {
			s.Metrics.objectFailures.Inc()
			return nil, err
		}
		for _, o := range page {
			after = o.Key
			if !needed[o.Key] && (!job.busy() || attemptOf(o.Key) < job.Attempt) {
				keys = append(keys, o.Key)
			}
		}
		if len(page) < sweepBatch {
			return keys, nil
		}
	}
}

// settle marks those generations as swept of which nothing was removed since they were
// looked at: a later sweep must find them.
func (s *Service) settle(ctx context.Context, all []looked) error {
	all = slices.DeleteFunc(all, func(l looked) bool { return l.open })
	if len(all) == 0 {
		return nil
	}
	var ids []any
	for _, l := range all {
		ids = append(ids, l.ID)
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		// The rows first, and what is asked of their images in a statement of its own:
		// PostgreSQL reads a row anew that it had to wait for, but everything else of
		// the statement as it was before the wait.
		marks := db.Marks(len(ids))
		var kept []string
		if err := tx.Select(ctx, &kept, `SELECT id FROM generations WHERE id IN (`+marks+`) ORDER BY id`+db.ForUpdate(tx), ids...); err != nil {
			return err
		}
		var now []struct {
			unswept
			Living int `db:"living"`
		}
		err := tx.Select(ctx, &now, `SELECT id, owner, `+gone+` AS gone, (SELECT count(*) FROM images i WHERE i.generation_id = g.id AND i.removed_at = 0) AS living
			FROM generations g WHERE id IN (`+marks+`)`, ids...)
		if err != nil {
			return err
		}
		var done []any
		for _, n := range now {
			i := slices.IndexFunc(all, func(l looked) bool { return l.ID == n.ID })
			if l := all[i]; l.Gone == n.Gone && l.needed == objectsOfAnImage*n.Living {
				done = append(done, n.ID)
			}
		}
		if len(done) == 0 {
			return nil
		}
		_, err = tx.Exec(ctx, `UPDATE generations SET unswept = 0 WHERE id IN (`+db.Marks(len(done))+`)`, done...)
		return err
	})
}

// objectsOfAnImage are the picture and its thumbnail.
const objectsOfAnImage = 2

// lateFor is how long an attempt that no longer counts may still store objects:
// its worker may have lost the database and not the object store.
const lateFor = 24 * time.Hour

// quiet is a condition: nothing more can be stored for the job j of a generation, or it is
// gone. One that succeeded at its first attempt had nobody beside it. Its parameter is late.
const quiet = `(j.id IS NULL OR j.state IN ('succeeded', 'failed', 'canceled') AND (j.attempt = 0 OR j.state = 'succeeded' AND j.attempt = 1 OR j.finished_at <= ?))`

// late is the time of an end whose attempts can store nothing any more.
func (s *Service) late() int64 { return s.Clock.Now().Add(-lateFor).UnixMilli() }

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
