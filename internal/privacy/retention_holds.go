package privacy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/subject"
)

// KindHold is the job that copies the objects of held records to where the bucket's
// own rule does not reach, and deletes the copies of holds that were released. Its ref
// is the hold, or the schedule.
const KindHold = "retention:hold"

const holdSchedule = "retention-holds"

// holdChanged has the objects of what a hold keeps copied, or those copies deleted, and
// the hold noted beside the key of what it keeps of somebody erased: it belongs into the
// transaction that places, renews or releases the hold. What it misses, the schedule finds
// within the hour.
func (s *Service) holdChanged(ctx context.Context, tx *db.Tx, hold string) error {
	_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindHold, Ref: hold})
	return err
}

func (s *Service) holdKind() jobs.Kind {
	return jobs.Kind{Name: KindHold, MaxAttempts: 100, Run: func(ctx context.Context, r *jobs.Run) error {
		which := r.Ref
		if which == holdSchedule {
			which = ""
		}
		if err := s.CopyHeld(ctx, which); err != nil {
			return jobs.Retry("internal", err)
		}
		return nil
	}}
}

// CopyHeld does so now for one hold, or for all. Copies of an erased person are the
// erasure's.
func (s *Service) CopyHeld(ctx context.Context, which string) error {
	failed := []error{s.noteHeld(ctx, which)}
	for after := ""; ; {
		var page []struct {
			ID       string `db:"id"`
			Subject  string `db:"subject"`
			Table    string `db:"table_name"`
			Row      string `db:"row_id"`
			Released int64  `db:"released_at"`
		}
		err := s.DB.Select(ctx, &page, `SELECT h.id, h.subject, h.table_name, h.row_id, coalesce(h.released_at, 0) AS released_at
			FROM holds h JOIN subjects p ON p.id = h.subject AND p.state = ? WHERE h.id > ? AND (h.id = ? OR ? = '')
			AND (h.released_at IS NULL OR h.released_at > ?) ORDER BY h.id LIMIT ?`,
			subject.Active, after, which, which, s.Clock.Now().Add(-unripe).UnixMilli(), eraseBatch)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return errors.Join(failed...)
		}
		for _, h := range page {
			after = h.ID
			to := heldPrefix + h.Subject + "/" + h.ID + "/"
			if h.Released > 0 {
				err = s.list(ctx, to, func(page []objects.Info) error { return s.deleteAll(ctx, page) })
			} else {
				err = s.copyHeld(ctx, h.Subject, h.Table, h.Row, to)
			}
			if err != nil {
				failed = append(failed, fmt.Errorf("copy what a hold keeps: %w", err)) // the others first
			}
			if ctx.Err() != nil {
				return errors.Join(failed...)
			}
		}
	}
}

func (s *Service) deleteAll(ctx context.Context, page []objects.Info) error {
	keys := make([]string, len(page))
	for i, o := range page {
		keys[i] = o.Key
	}
	return s.Objects.Delete(ctx, keys...)
}

// copyHeld copies the objects of a record and of its parts, sealed as they are.
func (s *Service) copyHeld(ctx context.Context, owner, table, record, to string) error {
	copyRows := func(t *Table, condition string) error {
		var kinds []*StoredObject
		for i := range s.Map.Objects {
			if o := &s.Map.Objects[i]; t != nil && o.Table == t.Name && o.Subject != "" && !strings.HasPrefix(o.Key.String(), heldPrefix) {
				kinds = append(kinds, o)
			}
		}
		if len(kinds) == 0 {
			return nil
		}
		rows, err := s.DB.Maps(ctx, "SELECT * FROM "+t.Name+" WHERE "+condition+" AND "+s.Map.Of(t), record, owner)
		if err != nil {
			return err
		}
		for _, r := range rows {
			for _, o := range kinds {
				from := o.keyOf(t, r)
				_, rest, _ := strings.Cut(from, "/"+owner+"/")
				if err := s.copyObject(ctx, from, to+rest); err != nil {
					return err
				}
			}
		}
		return nil
	}
	t := s.Map.Table(StoreMain, table)
	if t == nil {
		return nil
	}
	err := copyRows(t, t.record()+" = ?")
	for _, p := range parts {
		if p.of == table {
			err = errors.Join(err, copyRows(s.Map.Table(StoreMain, p.table), p.column+" = ?"))
		}
	}
	return err
}

func (s *Service) copyObject(ctx context.Context, from, to string) error {
	there, err := s.Objects.List(ctx, to, "", 1)
	if err != nil || len(there) > 0 && there[0].Key == to && !there[0].Hidden {
		return err
	}
	sealed, _, err := s.Objects.Get(ctx, from)
	if errors.Is(err, objects.ErrNotExist) {
		return nil // removed before the hold
	}
	if err != nil {
		return err
	}
	defer func() { _ = sealed.Close() }()
	content, err := io.ReadAll(sealed) // a picture: some megabytes at most
	if err != nil {
		return err
	}
	return s.Objects.Put(ctx, to, bytes.NewReader(content), int64(len(content)))
}

// keeps reports whether a hold or an exception, by its id, is open.
func (s *Service) keeps(ctx context.Context, id string) (bool, error) {
	var n int
	err := s.DB.Get(ctx, &n, `SELECT (SELECT count(*) FROM holds WHERE id = ? AND released_at IS NULL) + (SELECT count(*) FROM erasure_exceptions WHERE id = ? AND ended_at = 0)`, id, id)
	return n > 0, err
}

// copiesOf are where copies of a held record's object lie, by what its own key says
// behind the person.
func (s *Service) copiesOf(ctx context.Context, x exception, rest string) ([]string, error) {
	var holds []string
	err := s.DB.Select(ctx, &holds, `SELECT id FROM holds WHERE subject = ? AND (table_name = ? AND row_id = ? OR table_name = ? AND row_id = ?) ORDER BY id`,
		x.Subject, x.Table, x.Row, x.ParentTable, x.ParentRow)
	keys := make([]string, len(holds))
	for i, hold := range holds {
		keys[i] = heldPrefix + x.Subject + "/" + hold + "/" + rest
	}
	return keys, err
}

// deleteCopies deletes the copies that holds on a living person made: what is still
// held, an exception has by now, sealed with its own key.
func (s *Service) deleteCopies(ctx context.Context, owner string) error {
	prefix := heldPrefix + owner + "/"
	return s.list(ctx, prefix, func(page []objects.Info) error {
		var copies []objects.Info
		for _, o := range page {
			if strings.HasPrefix(o.Key, prefix+"hold_") {
				copies = append(copies, o)
			}
		}
		if len(copies) == 0 {
			return nil
		}
		return s.deleteAll(ctx, copies)
	})
}
