package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/subject"
)

// Happened is told of every event, in its transaction: it writes the deliveries that
// follow from it and their jobs, so that both are there or none.
func (s *Service) Happened(ctx context.Context, tx *db.Tx, e events.Event) error {
	switch {
	case e.Type == events.GenerationQueued && e.Facts[events.WebhookURL] != "":
		return s.keepOnce(ctx, tx, e)
	case e.Type == events.AccountUnrestricted, e.Type == events.StaffUnsuspended:
		_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindResume, Party: e.Subject, Ref: e.Subject})
		return err
	case e.Type == events.AccountClosing:
		return s.sayFarewell(ctx, tx, e)
	case slices.Contains(Told, e.Type):
		return s.record(ctx, tx, e)
	}
	return nil
}

// keepOnce keeps the address that was given with a generation.
func (s *Service) keepOnce(ctx context.Context, tx *db.Tx, e events.Event) error {
	url, told := e.Facts[events.WebhookURL], e.Facts[events.WebhookEvents]
	if err := s.CheckOnce(url, strings.Fields(told)); err != nil {
		return err
	}
	if err := subject.Enter(ctx, tx, e.Subject, subject.Deliver); err != nil {
		return err
	}
	if _, err := s.once(ctx, tx, e.Subject); err != nil {
		return fmt.Errorf("keep a webhook: %w", err)
	}
	sealed, err := s.seal(ctx, e.Subject, "webhook_once", "url", e.Ref, url)
	if err != nil {
		return fmt.Errorf("keep a webhook: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO webhook_once (id, owner, url, events, created_at) VALUES (?, ?, ?, ?, ?)`,
		e.Ref, e.Subject, sealed, told, e.At.UnixMilli())
	return err
}

// listener is an endpoint as an event asks for it.
type listener struct {
	ID        string        `db:"id"`
	Events    string        `db:"events"`
	Disabled  int           `db:"disabled"`
	OpenUntil sql.NullInt64 `db:"open_until"`
}

func (l listener) hears(e events.Type) bool {
	return l.Disabled == 0 && (l.Events == "" || slices.Contains(strings.Fields(l.Events), string(e)))
}

// record keeps an event of somebody who has an endpoint, and has it delivered.
func (s *Service) record(ctx context.Context, tx *db.Tx, e events.Event) error {
	var all []listener
	err := tx.Select(ctx, &all, `SELECT id, events, CASE WHEN disabled_at IS NULL THEN 0 ELSE 1 END AS disabled, open_until
		FROM webhook_endpoints WHERE owner = ? AND once = 0 ORDER BY id`, e.Subject)
	if err != nil {
		return err
	}
	if slices.Contains(ToldOnce, e.Type) {
		var once []listener
		err := tx.Select(ctx, &once, `SELECT e.id, o.events, 0 AS disabled, e.open_until FROM webhook_once o
			JOIN webhook_endpoints e ON e.owner = o.owner AND e.once = 1 WHERE o.id = ?`, e.Ref)
		if err != nil {
			return err
		}
		all = append(all, once...)
	}
	hears := func(l listener) bool { return l.hears(e.Type) }
	if len(all) == 0 || e.Type == events.ImageExpiring && !slices.ContainsFunc(all, hears) {
		return nil
	}
	id := s.keep(ctx, tx, e)
	for _, l := range all {
		if hears(l) {
			s.begin(ctx, tx, e.Subject, l, id)
		}
	}
	return nil
}

// keep writes an event at the end of the transaction, before its deliveries, and returns
// where its id will stand. An owner's events get their ids in the order in which they are
// committed: who has read one has missed none before it.
func (s *Service) keep(ctx context.Context, tx *db.Tx, e events.Event) (id *string) {
	id = new(string)
	order := "events " + e.Subject // before job_turns, in the order in which everybody locks
	tx.AtLast(order, func() error {
		if err := tx.Alone(ctx, order); err != nil {
			return err
		}
		var last string
		if err := tx.Get(ctx, &last, `SELECT coalesce(max(id), '') FROM webhook_events WHERE owner = ?`, e.Subject); err != nil {
			return err
		}
		*id = db.NextID("evt", s.Clock.Now(), last)
		_, err := tx.Exec(ctx, `INSERT INTO webhook_events (id, owner, type, ref, whole, sequence, reason, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			*id, e.Subject, e.Type, e.Ref, e.Whole, e.Sequence, e.Reason, e.At.UnixMilli())
		return err
	})
	return id
}

// begin writes a delivery and its job at the end of the transaction, and returns the
// delivery's id: an endpoint's turn is taken last, in the order in which everybody
// takes them.
func (s *Service) begin(ctx context.Context, tx *db.Tx, owner string, to listener, event *string) string {
	now := s.Clock.Now()
	id := db.NewID("whd", now)
	var after time.Time
	if tried := time.UnixMilli(to.OpenUntil.Int64); to.OpenUntil.Valid && tried.Add(probing).After(now) { // by another one
		after = tried.Add(called)
	}
	var job string
	tx.AtLast("job_turns "+Lane+" "+to.ID, func() error {
		j, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindDeliver, Party: to.ID, Owner: owner, Ref: id, RunAfter: after})
		if err != nil {
			return err
		}
		job = j.ID
		_, err = tx.Exec(ctx, `INSERT INTO webhook_deliveries (id, owner, endpoint, event, job_id, state, tries, attempts, error, created_at)
			VALUES (?, ?, ?, ?, ?, 'pending', 0, 0, '', ?)`, id, owner, to.ID, *event, j.ID, now.UnixMilli())
		return err
	})
	if !after.IsZero() {
		tx.AtLast("webhook_endpoints "+to.ID, func() error { return s.catchUp(ctx, tx, to.ID, job) })
	}
	return id
}

// catchUp has a job that waits to be called wait no longer, if that has happened
// meanwhile: whoever calls comes before this, or finds the job. The first to come where
// nobody waits is the one that tries.
func (s *Service) catchUp(ctx context.Context, tx *db.Tx, endpoint, job string) error {
	var c struct {
		OpenUntil sql.NullInt64 `db:"open_until"`
		Tried     int           `db:"tried"`
	}
	err := tx.Get(ctx, &c, `SELECT open_until, tried FROM webhook_endpoints WHERE id = ?`+db.ForUpdate(tx), endpoint)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // deleted, and what waits for it goes too
	}
	if err != nil || c.OpenUntil.Valid && c.Tried == 1 {
		return err
	}
	if _, err := s.Queue.Hasten(ctx, tx, job, time.UnixMilli(c.OpenUntil.Int64)); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE webhook_endpoints SET tried = 1 WHERE id = ?`, endpoint)
	return err
}

// again has a delivery made from the start, at the end of the transaction and not
// before a time.
func (s *Service) again(ctx context.Context, tx *db.Tx, owner, endpoint, delivery string, after time.Time) {
	tx.AtLast("job_turns "+Lane+" "+endpoint, func() error {
		j, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindDeliver, Party: endpoint, Owner: owner, Ref: delivery, RunAfter: after})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE webhook_deliveries SET state = 'pending', tries = 0, error = '', ended_at = NULL, job_id = ? WHERE id = ?`, j.ID, delivery)
		return err
	})
}

// resume goes on with what waited while a person's data was not to be used.
func (s *Service) resume(ctx context.Context, run *jobs.Run) error {
	for {
		var n int
		err := s.DB.Tx(ctx, func(tx *db.Tx) error {
			var waiting []struct {
				ID       string `db:"id"`
				Endpoint string `db:"endpoint"`
			}
			err := tx.Select(ctx, &waiting, `SELECT id, endpoint FROM webhook_deliveries WHERE owner = ? AND state = 'paused' ORDER BY id LIMIT ?`+db.ForUpdate(tx),
				run.Ref, batch)
			for _, d := range waiting {
				s.again(ctx, tx, run.Ref, d.Endpoint, d.ID, time.Time{})
			}
			n = len(waiting)
			return err
		})
		if err != nil {
			return jobs.Retry("internal", err)
		}
		if n < batch {
			return nil
		}
	}
}

// batch bounds one transaction.
const batch = 200

// sayFarewell has an account's endpoints told that it closes.
func (s *Service) sayFarewell(ctx context.Context, tx *db.Tx, e events.Event) error {
	var n int
	err := tx.Get(ctx, &n, `SELECT count(*) FROM webhook_endpoints WHERE owner = ?`, e.Subject)
	if err != nil || n == 0 {
		return err
	}
	_, err = s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindFarewell, Party: e.Subject,
		Ref: db.Numbered(db.NewID("evt", s.Clock.Now()), e.At.UnixMilli())})
	return err
}

// farewell tells the endpoints of a closing account: the erasure waits for it, and then
// they are gone. What was still to be told is given up when its time comes, or goes with
// them; and nothing at all is told to those of an account that was restricted or suspended
// when it closed.
func (s *Service) farewell(ctx context.Context, run *jobs.Run) error {
	id, at, ok := db.ParseNumbered(run.Ref)
	if !ok {
		return jobs.Fail("internal", errors.New("the job's ref has no time"))
	}
	var rows []row
	if err := s.DB.Select(ctx, &rows, selectRow+`WHERE owner = ? ORDER BY id`, run.Party); err != nil {
		return jobs.Retry("internal", err)
	}
	person, err := subject.Find(ctx, s.DB, run.Party)
	if err != nil {
		return jobs.Retry("internal", err)
	}
	paused := !person.RestrictedAt.IsZero() || !person.SuspendedAt.IsZero()
	d := delivery{Owner: run.Party, Event: id, Type: string(events.AccountClosing), At: at}
	var calls sync.WaitGroup
	for _, r := range rows {
		l := listener{Events: r.Events, Disabled: flag(r.DisabledAt.Valid)}
		if paused || r.Once == 1 || !l.hears(events.AccountClosing) {
			continue
		}
		calls.Go(func() {
			if url, err := s.open(ctx, r, "url", r.URL); err == nil {
				_, _ = s.send(ctx, d, r, url)
			}
		})
	}
	calls.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

var errAllowedAgain = errors.New("webhook: allowed again meanwhile")
