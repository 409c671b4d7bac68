package privacy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// By runs what somebody of the staff does, when they may, in one transaction with the
// word of what happened, who did it and why. The room of accounts gives it.
type By func(ctx context.Context, do func(tx *db.Tx) (events.Event, error)) error

// A Hold keeps one record of a person's from every deletion and change.
type Hold struct {
	ID         string
	Subject    string // whose record it is
	Table      string // one of subject.Records
	Record     string
	Case       string    // its reference, and nothing else
	MayBeTold  bool      // false: the case forbids that the person learns of it
	PlacedAt   time.Time //
	ReviewAt   time.Time // by then somebody looks again whether it is needed
	ReleasedAt time.Time // zero: it holds
}

type holdRow struct {
	ID         string `db:"id"`
	Subject    string `db:"subject"`
	Table      string `db:"table_name"`
	Record     string `db:"row_id"`
	Case       string `db:"reason_ref"`
	Hidden     int64  `db:"hidden"`
	CreatedAt  int64  `db:"created_at"`
	ReviewAt   int64  `db:"review_at"`
	ReleasedAt int64  `db:"released_at"`
}

const selectHold = `SELECT id, subject, table_name, row_id, reason_ref, hidden, created_at, review_at, coalesce(released_at, 0) AS released_at FROM holds `

func (r holdRow) view() Hold {
	return Hold{ID: r.ID, Subject: r.Subject, Table: r.Table, Record: r.Record, Case: r.Case, MayBeTold: r.Hidden == 0,
		PlacedAt: moment(r.CreatedAt), ReviewAt: moment(r.ReviewAt), ReleasedAt: moment(r.ReleasedAt)}
}

func (r holdRow) event(what events.Type) events.Event {
	return events.Event{Type: what, Subject: r.Subject, Ref: r.Record, Hidden: r.Hidden != 0,
		Facts: map[events.Fact]string{events.Case: r.Case, events.Scope: r.Table}}
}

func errNoHold() error { return problem.New(problem.NotFound, "There is no such hold.") }

// PlaceHold places the hold that h describes by its person, record, case and date of
// review, by default the latest. Several may keep the same record. It returns NotFound
// when the person has no such record, and DataRemoved when what there was of it is
// being deleted: of an account that is being erased only what a hold keeps already can be
// held again.
func (s *Service) PlaceHold(ctx context.Context, by By, h Hold) (Hold, error) {
	h.Case = strings.TrimSpace(h.Case)
	if h.Case == "" || !oneLine(h.Case, caseMost) {
		return Hold{}, problem.Invalid(problem.Field{Location: "body.case", Message: fmt.Sprintf("must be there, with at most %d characters in one line", caseMost)})
	}
	if h.Record == "" || !oneLine(h.Record, caseMost) {
		return Hold{}, problem.Invalid(problem.Field{Location: "body.record", Message: "must be the id of the record"})
	}
	review, err := s.reviewAt(h.ReviewAt)
	if err != nil {
		return Hold{}, err
	}
	var placed holdRow
	var noted []notedHold
	err = by(ctx, func(tx *db.Tx) (events.Event, error) {
		if err := s.mayHold(ctx, tx, h); err != nil {
			return events.Event{}, err
		}
		kept, err := s.keptOf(ctx, tx, h.Subject, h.Table, h.Record)
		if err != nil {
			return events.Event{}, err
		}
		id, err := subject.Hold(ctx, tx, h.Subject, h.Table, h.Record, h.Case, s.Clock.Now())
		if err != nil {
			return events.Event{}, err
		}
		if _, err := tx.Exec(ctx, `UPDATE holds SET review_at = ?, hidden = ? WHERE id = ?`, review.UnixMilli(), flag(!h.MayBeTold), id); err != nil {
			return events.Event{}, err
		}
		for _, x := range kept { // before it is placed: a restore may know more holds, but not less
			noted = append(noted, notedHold{x, id})
			if err := s.noteHolds(ctx, tx, x); err != nil {
				return events.Event{}, err
			}
		}
		if err := s.holdChanged(ctx, tx, id); err != nil {
			return events.Event{}, err
		}
		err = tx.Get(ctx, &placed, selectHold+`WHERE id = ?`, id)
		return placed.event(events.HoldPlaced), err
	})
	unplaced := slices.DeleteFunc(noted, func(n notedHold) bool { return err == nil && n.id == placed.ID })
	if err = errors.Join(err, s.unnoteHolds(context.WithoutCancel(ctx), unplaced)); err != nil {
		return Hold{}, away(err)
	}
	return placed.view(), nil
}

// caseMost is how many characters the reference of a case has.
const caseMost = 300

// reviewAt is the date of review; zero: the latest there is.
func (s *Service) reviewAt(at time.Time) (time.Time, error) {
	now := s.Clock.Now()
	latest := now.Add(subject.ReviewWithin)
	if at.IsZero() {
		return latest, nil
	}
	if !at.After(now) || at.After(latest) {
		return at, problem.Invalid(problem.Field{Location: "body.review_at", Message: "must be within the next 90 days"})
	}
	return at, nil
}

// mayHold keeps the person's state until the transaction ends, so that no hold is
// placed beside an erasure that has looked for holds already.
func (s *Service) mayHold(ctx context.Context, tx *db.Tx, h Hold) error {
	none := problem.New(problem.NotFound, "There is no such record.")
	p, err := subject.Lock(ctx, tx, h.Subject)
	switch {
	case problem.CodeOf(err) == problem.Unauthorized:
		return none
	case err != nil:
		return err
	case p.State == subject.Active:
		return nil
	}
	if p.State == subject.Closing {
		var shut int
		if err := tx.Get(ctx, &shut, `SELECT count(*) FROM erasures WHERE subject = ? AND shut_at > 0`, h.Subject); err != nil {
			return err
		}
		destroyed, err := s.Vault.Destroyed(ctx, h.Subject) // restored from before, it may be open again without a key
		if err != nil || shut == 0 && destroyed.IsZero() {
			return err
		}
	}
	// Kept until the end too: a release looks for holds behind the same lock.
	var freed []int64
	err = tx.Select(ctx, &freed, `SELECT freed_at FROM erasure_exceptions WHERE subject = ? AND table_name = ? AND row_id = ? AND ended_at = 0 ORDER BY id`+db.ForUpdate(tx),
		h.Subject, h.Table, h.Record)
	switch {
	case err != nil:
		return err
	case len(freed) > 0 && freed[0] > 0 || len(freed) == 0 && p.State == subject.Closing:
		return problem.New(problem.DataRemoved, "The record is being deleted: there is nothing left to hold.")
	case len(freed) == 0:
		return none
	}
	return nil
}

// RenewHold gives a hold another date of review; zero: the latest there is.
func (s *Service) RenewHold(ctx context.Context, by By, id string, at time.Time) (Hold, error) {
	review, err := s.reviewAt(at)
	if err != nil {
		return Hold{}, err
	}
	var h holdRow
	err = by(ctx, func(tx *db.Tx) (events.Event, error) {
		err := tx.Get(ctx, &h, `UPDATE holds SET review_at = ? WHERE id = ? AND released_at IS NULL
			RETURNING id, subject, table_name, row_id, reason_ref, hidden, created_at, review_at, 0 AS released_at`, review.UnixMilli(), id)
		if isNone(err) {
			err = errNoHold()
		}
		if err == nil {
			err = s.holdChanged(ctx, tx, id)
		}
		return h.event(events.HoldRenewed), err
	})
	return h.view(), away(err)
}

// ReleaseHold ends a hold; NotFound when it holds nothing any more. The deletion that
// waited for the last one goes on by itself.
func (s *Service) ReleaseHold(ctx context.Context, by By, id string) error {
	return away(by(ctx, func(tx *db.Tx) (events.Event, error) {
		var h holdRow
		err := tx.Get(ctx, &h, selectHold+`WHERE id = ?`+db.ForUpdate(tx), id)
		if isNone(err) {
			err = errNoHold()
		}
		if err == nil {
			err = subject.Release(ctx, tx, id, s.Clock.Now())
		}
		if err == nil {
			err = s.holdChanged(ctx, tx, id)
		}
		if err == nil {
			err = s.sweepReleased(ctx, tx, h.Table)
		}
		return h.event(events.HoldReleased), err
	}))
}

// Which holds are listed.
const (
	HoldsOpen = "open"
	HoldsDue  = "due" // whose review is due
	HoldsAll  = "all" // also those that were released
)

// Holds lists holds by id, after the given one, at most limit; owner narrows it to
// one person. It opens no personal data.
func (s *Service) Holds(ctx context.Context, which, owner, after string, limit int) ([]Hold, error) {
	query, args := selectHold+`WHERE id > ?`, []any{after}
	switch which {
	case HoldsAll:
	case HoldsDue:
		query, args = query+` AND released_at IS NULL AND review_at <= ?`, append(args, s.Clock.Millis())
	default:
		query += ` AND released_at IS NULL`
	}
	if owner != "" {
		query, args = query+` AND subject = ?`, append(args, owner)
	}
	var rows []holdRow
	if err := s.DB.Select(ctx, &rows, query+` ORDER BY id LIMIT ?`, append(args, limit)...); err != nil {
		return nil, away(fmt.Errorf("list holds: %w", err))
	}
	list := make([]Hold, len(rows))
	for i, r := range rows {
		list[i] = r.view()
	}
	return list, nil
}

// measureHolds counts those whose review is due, and tells of them in the log.
func (s *Service) measureHolds(ctx context.Context, alarm bool) error {
	now := s.Clock.Millis()
	var sum struct {
		Open int `db:"open"`
		Due  int `db:"due"`
	}
	err := s.DB.Get(ctx, &sum, `SELECT count(*) AS open, coalesce(sum(CASE WHEN review_at <= ? THEN 1 ELSE 0 END), 0) AS due FROM holds WHERE released_at IS NULL`, now)
	if err != nil {
		return fmt.Errorf("measure holds: %w", err)
	}
	s.Metrics.holdsOpen.Set(float64(sum.Open))
	s.Metrics.holdsDue.Set(float64(sum.Due))
	if !alarm || sum.Due == 0 {
		return nil
	}
	var due []string
	err = s.DB.Select(ctx, &due, `SELECT id FROM holds WHERE released_at IS NULL AND review_at <= ? ORDER BY review_at LIMIT 20`, now)
	for _, id := range due {
		s.Log.WarnContext(ctx, "a hold is to be looked at again", "hold", id)
	}
	return err
}

// oneLine reports whether a text is one line of at most so many characters.
func oneLine(text string, most int) bool {
	return utf8.ValidString(text) && utf8.RuneCountInString(text) <= most && !strings.ContainsFunc(text, unicode.IsControl)
}
