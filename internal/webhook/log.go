package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// A Delivery as its owner sees it.
type Delivery struct {
	ID        string
	Endpoint  string
	Event     string // its id, which is the webhook-id of every attempt
	Type      string
	Ref       string
	State     string
	Error     string // why it failed
	CreatedAt time.Time
	EndedAt   time.Time // zero: not
	NextAt    time.Time // of the next attempt; zero: none is planned, or it is under way
	Attempts  []Attempt
}

// An Attempt is one call and what came of it.
type Attempt struct {
	N      int
	At     time.Time
	Took   time.Duration
	Status int    // 0: no answer came
	Error  string // code; empty: the receiver has it
}

// shown are how many attempts of a delivery are: the last.
const shown = 20

type deliveryRow struct {
	delivery
	Error     string        `db:"error"`
	CreatedAt int64         `db:"created_at"`
	EndedAt   sql.NullInt64 `db:"ended_at"`
	JobState  string        `db:"job_state"`
	RunAfter  int64         `db:"run_after"`
}

const selectLogged = `SELECT d.id, d.owner, d.endpoint, d.state, d.tries, d.error, d.created_at, d.ended_at,
	e.id AS event, e.type, e.ref, coalesce(j.state, '') AS job_state, coalesce(j.run_after, 0) AS run_after
	FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event LEFT JOIN jobs j ON j.id = d.job_id `

// Deliveries is a page of an endpoint's log, newest first, of one state or all; one
// more than limit when there are more.
func (s *Service) Deliveries(ctx context.Context, owner, endpoint, state, before string, limit int) ([]Delivery, error) {
	if _, err := s.find(ctx, s.DB, owner, endpoint, ""); err != nil {
		return nil, away(err)
	}
	query, args := selectLogged+`WHERE d.endpoint = ?`, []any{endpoint}
	if state != "" {
		query, args = query+` AND d.state = ?`, append(args, state)
	}
	if before != "" {
		query, args = query+` AND d.id < ?`, append(args, before)
	}
	var rows []deliveryRow
	if err := s.DB.Select(ctx, &rows, query+` ORDER BY d.id DESC LIMIT ?`, append(args, limit+1)...); err != nil {
		return nil, away(err)
	}
	list, err := s.views(ctx, rows)
	return list, away(err)
}

func (s *Service) views(ctx context.Context, rows []deliveryRow) ([]Delivery, error) {
	if len(rows) == 0 {
		return nil, nil
	}
	list, at, ids := make([]Delivery, len(rows)), map[string]int{}, make([]any, len(rows))
	for i, r := range rows {
		list[i] = Delivery{ID: r.ID, Endpoint: r.Endpoint, Event: r.Event, Type: r.Type, Ref: r.Ref, State: r.State, Error: r.Error,
			CreatedAt: moment(r.CreatedAt), EndedAt: moment(r.EndedAt.Int64)}
		if r.State == Pending && (r.JobState == "waiting" || r.JobState == "queued") {
			list[i].NextAt = moment(r.RunAfter)
		}
		at[r.ID], ids[i] = i, r.ID
	}
	var attempts []struct {
		Delivery string `db:"delivery"`
		N        int    `db:"n"`
		At       int64  `db:"at"`
		Took     int64  `db:"took"`
		Status   int    `db:"status"`
		Error    string `db:"error"`
	}
	err := s.DB.Select(ctx, &attempts, `SELECT a.delivery, a.n, a.at, a.took, a.status, a.error FROM webhook_attempts a JOIN webhook_deliveries d ON d.id = a.delivery
		WHERE d.id IN (`+db.Marks(len(ids))+`) AND a.n > d.attempts - ? ORDER BY a.delivery, a.n`, append(ids, shown)...)
	if err != nil {
		return nil, err
	}
	for _, a := range attempts {
		d := &list[at[a.Delivery]]
		d.Attempts = append(d.Attempts, Attempt{N: a.N, At: moment(a.At), Took: time.Duration(a.Took) * time.Millisecond, Status: a.Status, Error: a.Error})
	}
	return list, nil
}

// one is the view of a delivery that was just written.
func (s *Service) one(ctx context.Context, id string) (Delivery, error) {
	var rows []deliveryRow
	if err := s.DB.Select(ctx, &rows, selectLogged+`WHERE d.id = ?`, id); err != nil {
		return Delivery{}, away(err)
	}
	if len(rows) == 0 {
		return Delivery{}, errNoDelivery
	}
	list, err := s.views(ctx, rows)
	if err != nil {
		return Delivery{}, away(err)
	}
	return list[0], nil
}

// SendTest has an endpoint told of an event that says nothing.
func (s *Service) SendTest(ctx context.Context, owner, id string) (Delivery, error) {
	var delivery string
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		r, err := s.ready(ctx, tx, owner, id)
		if err != nil {
			return err
		}
		if r.Once == 1 {
			return errNoEndpoint
		}
		if err := s.charge(ctx, tx, r); err != nil {
			return err
		}
		event := s.keep(ctx, tx, events.Event{Type: Test, Subject: owner, Ref: r.ID, At: s.Clock.Now()})
		delivery = s.begin(ctx, tx, owner, listener{ID: r.ID, OpenUntil: r.OpenUntil}, event)
		return nil
	})
	if err != nil {
		return Delivery{}, away(err)
	}
	return s.one(ctx, delivery)
}

const (
	// askedBurst is how many replays and tests of an endpoint can be asked for at once.
	askedBurst = 60
	// askedEvery is how long each of them is charged.
	askedEvery = time.Second
)

// ready finds an endpoint to which something is to be sent now: Forbidden while the
// person's data is not to be used so, Conflict when it is disabled. While its circuit is
// open that waits as everything else does. The person's row is kept: nobody asks beside us.
func (s *Service) ready(ctx context.Context, tx *db.Tx, owner, id string) (row, error) {
	if err := subject.Enter(ctx, tx, owner, subject.Deliver); err != nil {
		return row{}, err
	}
	r, err := s.find(ctx, tx, owner, id, "")
	if err == nil && r.DisabledAt.Valid {
		err = problem.New(problem.Conflict, "This webhook is disabled. Enable it before.")
	}
	return r, err
}

// charge counts a replay or test of an endpoint's, RateLimited when there were too many.
func (s *Service) charge(ctx context.Context, tx *db.Tx, r row) error {
	now, every := s.Clock.Millis(), askedEvery.Milliseconds()
	until := max(r.AskedUntil, now) + every
	if wait := until - now - askedBurst*every; wait > 0 {
		return problem.New(problem.RateLimited, "Too many replays and tests of this webhook. Wait, or have all that failed sent again by one request.").
			After(time.Duration(wait) * time.Millisecond)
	}
	tx.AtLast("webhook_endpoints "+r.ID, func() error { // the endpoint last, as everybody does
		var open sql.NullInt64
		err := tx.Get(ctx, &open, `UPDATE webhook_endpoints SET asked_until = ? WHERE id = ? RETURNING open_until`, until, r.ID)
		switch {
		case errors.Is(err, sql.ErrNoRows): // deleted
			return nil
		case err == nil && r.OpenUntil.Valid && !open.Valid: // closed since, without what is put off here
			return s.recall(ctx, tx, r.ID, r.OpenUntil.Int64)
		}
		return err
	})
	return nil
}

// Replay makes a delivery again from the start, whatever came of it. One that waits
// for its next attempt is made at once, or, while the endpoint is left alone, with its
// next attempt then.
func (s *Service) Replay(ctx context.Context, owner, id string) (Delivery, error) {
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.Enter(ctx, tx, owner, subject.Deliver); err != nil {
			return err // before the delivery is looked at: of two who replay it the second finds what the first did
		}
		var d replayed
		err := tx.Get(ctx, &d, `SELECT id, endpoint, state, job_id FROM webhook_deliveries WHERE id = ? AND owner = ?`, id, owner)
		if errors.Is(err, sql.ErrNoRows) {
			return errNoDelivery
		}
		if err != nil {
			return err
		}
		r, err := s.ready(ctx, tx, owner, d.Endpoint)
		if err == nil {
			err = s.charge(ctx, tx, r)
		}
		if err != nil {
			return err
		}
		return s.replay(ctx, tx, r, d)
	})
	if err != nil {
		return Delivery{}, away(err)
	}
	return s.one(ctx, id)
}

type replayed struct {
	ID       string `db:"id"`
	Endpoint string `db:"endpoint"`
	State    string `db:"state"`
	JobID    string `db:"job_id"`
}

func (s *Service) replay(ctx context.Context, tx *db.Tx, r row, d replayed) error {
	after := time.UnixMilli(r.OpenUntil.Int64)
	if d.State == Pending {
		live, err := s.Queue.Hasten(ctx, tx, d.JobID, after)
		if err != nil || live {
			return err
		}
	}
	s.again(ctx, tx, r.Owner, d.Endpoint, d.ID, after)
	return nil
}

// ReplayFailed makes again what was to be told since a time and has failed, or waits
// for another attempt after a failure: the oldest first, a bounded number at once. It
// returns how many, and whether there may be more.
func (s *Service) ReplayFailed(ctx context.Context, owner, id string, since time.Time) (n int, more bool, err error) {
	if end := s.Kept(s.Clock.Now()); since.Before(end) {
		since = end
	}
	after := db.FloorID("whd", since)
	for range replayBatches {
		var found []replayed
		err := s.DB.Tx(ctx, func(tx *db.Tx) error {
			found = found[:0]
			r, err := s.ready(ctx, tx, owner, id)
			if err == nil {
				err = s.charge(ctx, tx, r)
			}
			if err != nil {
				return err
			}
			err = tx.Select(ctx, &found, `SELECT d.id, d.endpoint, d.state, d.job_id FROM webhook_deliveries d LEFT JOIN jobs j ON j.id = d.job_id
				WHERE d.endpoint = ? AND d.id > ? AND (d.state = 'failed' OR d.state = 'pending' AND
				(d.tries > 0 OR coalesce(j.state, 'failed') IN ('succeeded', 'failed', 'canceled'))) ORDER BY d.id LIMIT ?`, id, after, batch)
			for _, d := range found {
				if err == nil {
					err = s.replay(ctx, tx, r, d)
				}
			}
			return err
		})
		if n > 0 && problem.CodeOf(err) == problem.RateLimited {
			return n, true, nil
		}
		if err != nil {
			return n, false, away(fmt.Errorf("replay: %w", err))
		}
		if n += len(found); len(found) < batch {
			return n, false, nil
		}
		after = found[len(found)-1].ID
	}
	return n, true, nil
}

// DropDeliveries deletes deliveries whose time is over with what came of their attempts,
// however late these were.
func (s *Service) DropDeliveries(ctx context.Context, tx *db.Tx, ids []string) (int, error) {
	args := db.Args(ids)
	_, err := tx.Exec(ctx, `DELETE FROM webhook_attempts WHERE delivery IN (`+db.Marks(len(ids))+`)`, args...)
	if err != nil {
		return 0, err
	}
	n, err := tx.Exec(ctx, `DELETE FROM webhook_deliveries WHERE id IN (`+db.Marks(len(ids))+`)`, args...)
	return int(n), err
}

// replayBatches bounds one call of ReplayFailed.
const replayBatches = 25

// An Event is one that is kept to catch up by.
type Event struct {
	ID         string
	Type       string
	Ref        string
	Generation string // of an image
	Sequence   int64
	Reason     string
	At         time.Time
}

// Events are an owner's behind one of them, in the order in which they were committed:
// none comes to stand before one that was read. One more than limit when there are more.
func (s *Service) Events(ctx context.Context, owner, after string, limit int) ([]Event, error) {
	var rows []struct {
		ID       string `db:"id"`
		Type     string `db:"type"`
		Ref      string `db:"ref"`
		Whole    string `db:"whole"`
		Sequence int64  `db:"sequence"`
		Reason   string `db:"reason"`
		At       int64  `db:"at"`
	}
	err := s.DB.Select(ctx, &rows, `SELECT id, type, ref, whole, sequence, reason, at FROM webhook_events WHERE owner = ? AND id > ? ORDER BY id LIMIT ?`,
		owner, after, limit+1)
	if err != nil {
		return nil, away(err)
	}
	list := make([]Event, len(rows))
	for i, r := range rows {
		list[i] = Event{ID: r.ID, Type: r.Type, Ref: r.Ref, Generation: r.Whole, Sequence: r.Sequence, Reason: r.Reason, At: moment(r.At)}
	}
	return list, nil
}
