package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/outbound"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// The states of a delivery.
const (
	Pending   = "pending"   // it is tried, or waits for its next attempt
	Paused    = "paused"    // it waits for the end of a restriction or suspension
	Delivered = "delivered" // the receiver said so
	Failed    = "failed"    // it is not tried any more
)

// Why a delivery or an attempt failed, beside outbound's codes.
const (
	codeStatus   = "unexpected_status"
	codeGone     = "webhook_gone"      // 410
	codeDisabled = "webhook_disabled"  //
	codeNoURL    = "address_forgotten" // that was given with one generation
)

const (
	// patience is how many failures in a row open an endpoint's circuit.
	patience = 3
	// restLeast and restMost bound how long it stays open: half as long as nothing
	// has succeeded.
	restLeast, restMost = 10 * time.Second, 10 * time.Minute
	// askedMost is the most that a receiver can ask us to wait.
	askedMost = 24 * time.Hour
)

// delivery is one with its event.
type delivery struct {
	ID       string `db:"id"`
	Owner    string `db:"owner"`
	Endpoint string `db:"endpoint"`
	State    string `db:"state"`
	Tries    int    `db:"tries"`

	Event    string `db:"event"`
	Type     string `db:"type"`
	Ref      string `db:"ref"`
	Whole    string `db:"whole"`
	Sequence int64  `db:"sequence"`
	Reason   string `db:"reason"`
	At       int64  `db:"at"`
}

const selectDelivery = `SELECT d.id, d.owner, d.endpoint, d.state, d.tries, e.id AS event, e.type, e.ref, e.whole, e.sequence, e.reason, e.at
	FROM webhook_deliveries d JOIN webhook_events e ON e.id = d.event `

// outcome is what came of a call.
type outcome struct {
	began  time.Time
	took   time.Duration
	status int
	code   string        // empty: the receiver has it
	asked  time.Duration // what it asked us to wait; 0: nothing
}

// slow reports whether the receiver wants less of us.
func (o outcome) slow() bool { return o.status == 429 || o.status == 502 || o.status == 504 }

// deliver makes one attempt. The call and the record of it are not one: a worker that
// is lost between them leaves the job to another one, who calls again under the same
// id.
func (s *Service) deliver(ctx context.Context, run *jobs.Run) error {
	var d delivery
	err := s.DB.Get(ctx, &d, selectDelivery+`WHERE d.id = ?`, run.Ref)
	if errors.Is(err, sql.ErrNoRows) || err == nil && d.State != Pending {
		return nil
	}
	var r row
	if err == nil {
		err = s.DB.Get(ctx, &r, selectRow+`WHERE id = ?`, d.Endpoint)
	}
	switch {
	case errors.Is(err, sql.ErrNoRows): // deleted, and what was told to it at that moment goes too
		return run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
			_, err := s.DropDeliveries(ctx, tx, []string{d.ID})
			return err
		})
	case err != nil:
		return jobs.Retry("internal", err)
	case r.DisabledAt.Valid:
		return s.giveUp(ctx, run, d, codeDisabled)
	}
	if err := subject.May(ctx, s.DB, d.Owner, subject.Deliver); err != nil {
		return s.refused(ctx, run, d, err)
	}
	url, err := s.address(ctx, d, r)
	switch {
	case errors.Is(err, vault.ErrDestroyed), errors.Is(err, vault.ErrNoKey):
		return nil // erased
	case errors.Is(err, sql.ErrNoRows):
		return s.giveUp(ctx, run, d, codeNoURL)
	case err != nil:
		return jobs.Retry("internal", err)
	}
	c, err := s.circuitOf(ctx, r, url)
	if err != nil {
		return jobs.Retry("internal", err)
	}
	wait, err := s.pass(ctx, c)
	switch {
	case err != nil:
		return jobs.Retry("internal", err)
	case wait > 0:
		return later("circuit_open", wait)
	}
	o, err := s.send(ctx, d, r, url)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return jobs.Retry("internal", err)
	case o.code == "":
		return run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error { return s.succeeded(ctx, tx, d, c, o) })
	}
	return s.failed(ctx, run, d, r, c, o)
}

// later runs the job again at a time of ours.
func later(code string, after time.Duration) error { return &jobs.Failure{Code: code, After: after} }

// address is where a delivery goes.
func (s *Service) address(ctx context.Context, d delivery, r row) (string, error) {
	if r.Once == 0 {
		return s.open(ctx, r, "url", r.URL)
	}
	var sealed []byte
	if err := s.DB.Get(ctx, &sealed, `SELECT url FROM webhook_once WHERE id = ?`, d.Ref); err != nil {
		return "", err
	}
	return s.unseal(ctx, d.Owner, "webhook_once", "url", d.Ref, sealed)
}

// send makes the call. An error is one of ours: nothing was sent.
func (s *Service) send(ctx context.Context, d delivery, r row, url string) (outcome, error) {
	body, err := s.body(ctx, d, r.IncludePrompt == 1)
	if err != nil {
		return outcome{}, err
	}
	now := s.Clock.Now()
	signature, err := s.signature(ctx, r, d.Event, now, body)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{began: now}
	began := time.Now()
	a, err := s.Client.Post(ctx, outbound.Post{URL: url, Body: body, Header: map[string]string{
		"Content-Type": "application/json", "User-Agent": "zimage-webhooks",
		"webhook-id": d.Event, "webhook-timestamp": fmt.Sprint(now.Unix()), "webhook-signature": signature,
	}})
	o.took, o.status, o.asked = time.Since(began), a.Status, min(a.RetryAfter, askedMost)
	var e *outbound.Error
	switch {
	case errors.As(err, &e):
		o.code = string(e.Code)
	case a.Status == 410:
		o.code = codeGone
	case a.Status < 200 || a.Status > 299: // a redirect, too
		o.code = codeStatus
	}
	return o, nil
}

// write records an attempt with what the delivery came to, in a transaction in which
// the job is still ours. It reports false when the delivery is gone or has ended.
func (s *Service) write(ctx context.Context, tx *db.Tx, d delivery, o outcome, state string) (bool, error) {
	ended := sql.NullInt64{Int64: s.Clock.Millis(), Valid: state != Pending}
	final := ""
	if state == Failed {
		final = o.code
	}
	var n int // of the attempts
	err := tx.Get(ctx, &n, `UPDATE webhook_deliveries SET state = ?, tries = tries + 1, attempts = attempts + 1, error = ?, ended_at = ?
		WHERE id = ? AND state = 'pending' RETURNING attempts`, state, final, ended, d.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = tx.Exec(ctx, `INSERT INTO webhook_attempts (delivery, n, owner, at, took, status, error) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		d.ID, n, d.Owner, o.began.UnixMilli(), o.took.Milliseconds(), o.status, o.code)
	return true, err
}

func (s *Service) succeeded(ctx context.Context, tx *db.Tx, d delivery, c circuit, o outcome) error {
	there, err := s.write(ctx, tx, d, o, Delivered)
	if err != nil || !there {
		return err
	}
	return s.closes(ctx, tx, c)
}

// failed records a failure and says when the next attempt is made, if there is one.
func (s *Service) failed(ctx context.Context, run *jobs.Run, d delivery, r row, c circuit, o outcome) error {
	gone := o.status == 410
	if gone || d.Tries+1 >= len(schedule) {
		return run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
			there, err := s.write(ctx, tx, d, o, Failed)
			if err != nil || !there {
				return err
			}
			_, err = s.fails(ctx, tx, d, r, c, o)
			return err
		})
	}
	var there bool
	var rest time.Duration
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		err := run.Own(ctx, tx)
		if err == nil {
			there, err = s.write(ctx, tx, d, o, Pending)
		}
		if err == nil && there {
			rest, err = s.fails(ctx, tx, d, r, c, o)
		}
		return err
	})
	switch {
	case errors.Is(err, jobs.ErrFenced):
		return err
	case err != nil:
		return jobs.Retry("internal", err)
	case !there:
		return nil // there is nothing left to do for it
	}
	return later(o.code, max(jitter(schedule[d.Tries+1]), o.asked, rest))
}

// fails says what a failure means for what was called: it is left alone for a while, or
// disabled. It returns how long it is left alone.
func (s *Service) fails(ctx context.Context, tx *db.Tx, d delivery, r row, c circuit, o outcome) (time.Duration, error) {
	if r.Once == 1 && o.status == 410 {
		_, err := tx.Exec(ctx, `DELETE FROM webhook_once WHERE id = ?`, d.Ref)
		return 0, err
	}
	now := s.Clock.Now()
	f, err := s.counts(ctx, tx, c, now)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, nil // deleted meanwhile
	case err != nil:
		return 0, err
	case f.DisabledAt.Valid:
		return 0, nil
	case o.status == 410:
		return 0, s.disable(ctx, tx, r, Gone)
	case r.Once == 0 && f.Failures >= patience && now.Sub(time.UnixMilli(f.FailingSince)) >= disableAfter:
		return 0, s.disable(ctx, tx, r, Failing)
	}
	return s.opens(ctx, tx, c, f, o, now)
}

// disable ends the calls to an endpoint and tells its owner.
func (s *Service) disable(ctx context.Context, tx *db.Tx, r row, why string) error {
	n, err := tx.Exec(ctx, `UPDATE webhook_endpoints SET disabled_at = ?, disabled_why = ? WHERE id = ? AND disabled_at IS NULL`,
		s.Clock.Millis(), why, r.ID)
	if err != nil || n == 0 {
		return err
	}
	return s.tellDisabled(ctx, tx, r, why)
}

// giveUp ends a delivery without a call.
func (s *Service) giveUp(ctx context.Context, run *jobs.Run, d delivery, code string) error {
	return run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE webhook_deliveries SET state = 'failed', error = ?, ended_at = ? WHERE id = ? AND state = 'pending'`,
			code, s.Clock.Millis(), d.ID)
		return err
	})
}

// refused has a delivery wait for the end of a restriction or suspension, or gives it
// up when the account is closed. What is committed at this very moment is waited for:
// a delivery that waits is found by whoever lifts it.
func (s *Service) refused(ctx context.Context, run *jobs.Run, d delivery, err error) error {
	why, is := subject.ReasonOf(err)
	switch {
	case !is:
		return jobs.Retry("internal", err)
	case why == subject.BecauseClosed:
		return s.giveUp(ctx, run, d, string(why))
	}
	err = run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
		err := subject.Enter(ctx, tx, d.Owner, subject.Deliver)
		if _, refused := subject.ReasonOf(err); !refused {
			if err == nil {
				err = errAllowedAgain
			}
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE webhook_deliveries SET state = 'paused' WHERE id = ? AND state = 'pending'`, d.ID)
		return err
	})
	if errors.Is(err, errAllowedAgain) {
		return later("internal", time.Second)
	}
	return err
}
