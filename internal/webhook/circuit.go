package webhook

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"time"

	"zimage/internal/db"
)

// probing is how long the one call that tries what was left alone keeps all others
// waiting: somewhat longer than a call can take.
const probing = 20 * time.Second

// called is when the others come by themselves, if whoever tries is lost: what closes
// the circuit calls them. It is long, so that a backlog is not put off anew each time.
const called = restMost + 2*probing

// A circuit is open while what is called is left alone. Once its time is over one
// delivery tries, and what comes of that closes it or opens it again. An endpoint has
// one, and so has each host of a person's addresses of single generations, from its first
// failure until it has something.
type circuit struct {
	table string
	party string // whose jobs wait for it; empty: each job finds out by itself
	owner string

	ID        string        `db:"id"`
	OpenUntil sql.NullInt64 `db:"open_until"`
}

// circuitOf is the circuit of a call.
func (s *Service) circuitOf(ctx context.Context, r row, address string) (circuit, error) {
	if r.Once == 0 {
		return circuit{table: "webhook_endpoints", party: r.ID, owner: r.Owner, ID: r.ID, OpenUntil: r.OpenUntil}, nil
	}
	host := ""
	if u, err := url.Parse(address); err == nil {
		host = u.Host
	}
	c := circuit{table: "webhook_hosts", owner: r.Owner, ID: s.Vault.Lookup("webhook host", r.Owner+" "+host)}
	err := s.DB.Get(ctx, &c, `SELECT id, open_until FROM webhook_hosts WHERE id = ?`, c.ID)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return c, err
}

// pass lets a call through, or says how long it is to wait.
func (s *Service) pass(ctx context.Context, c circuit) (wait time.Duration, err error) {
	if !c.OpenUntil.Valid {
		return 0, nil
	}
	now := s.Clock.Now()
	if until := time.UnixMilli(c.OpenUntil.Int64); until.After(now) {
		if c.party == "" {
			return until.Sub(now), nil
		}
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			wait = until.Sub(now)
			var open sql.NullInt64
			err := tx.Get(ctx, &open, `SELECT open_until FROM webhook_endpoints WHERE id = ?`+db.ForUpdate(tx), c.ID)
			if errors.Is(err, sql.ErrNoRows) || err == nil && open != c.OpenUntil {
				wait = time.Second // it has closed meanwhile, or is tried: nobody would call what is put off now
				return nil
			}
			if err == nil {
				_, err = s.leave(ctx, tx, c, until)
			}
			wait = min(wait, probing) // this one runs still, and is not called when it closes
			return err
		})
		return wait, err
	}
	n, err := s.DB.Exec(ctx, `UPDATE `+c.table+` SET open_until = ? WHERE id = ? AND open_until = ?`, now.Add(probing).UnixMilli(), c.ID, c.OpenUntil.Int64)
	if err == nil && n == 0 { // another one tries
		wait = probing
	}
	return wait, err
}

// leave has all that waits for a circuit wait until it is known what came of the one call
// that tries at a time. It reports whether anything waits.
func (s *Service) leave(ctx context.Context, tx *db.Tx, c circuit, tried time.Time) (waits bool, err error) {
	if c.party == "" {
		return false, nil
	}
	return s.Queue.Defer(ctx, tx, c.party, tried, tried.Add(probing), tried.Add(called))
}

// closes forgets the failures, and has what waited go on.
func (s *Service) closes(ctx context.Context, tx *db.Tx, c circuit) (err error) {
	if c.party == "" {
		_, err = tx.Exec(ctx, `DELETE FROM webhook_hosts WHERE id = ?`, c.ID)
		return err
	}
	// Others may have failed during the call.
	var open sql.NullInt64
	err = tx.Get(ctx, &open, `SELECT open_until FROM webhook_endpoints WHERE id = ? AND failures > 0`+db.ForUpdate(tx), c.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE webhook_endpoints SET failures = 0, failing_since = NULL, open_until = NULL WHERE id = ?`, c.ID)
	}
	if err == nil && open.Valid {
		err = s.recall(ctx, tx, c.ID, open.Int64)
	}
	return err
}

// recall has what waits for an endpoint that was open until then go on.
func (s *Service) recall(ctx context.Context, tx *db.Tx, endpoint string, open int64) error {
	return s.Queue.Recall(ctx, tx, endpoint, time.UnixMilli(max(open, s.Clock.Millis())).Add(called))
}

// failing is how it stands with what was called, after a failure.
type failing struct {
	Failures     int64         `db:"failures"`
	FailingSince int64         `db:"failing_since"`
	DisabledAt   sql.NullInt64 `db:"disabled_at"`
}

// counts counts a failure; sql.ErrNoRows when the endpoint was deleted meanwhile.
func (s *Service) counts(ctx context.Context, tx *db.Tx, c circuit, now time.Time) (f failing, err error) {
	if c.party == "" {
		err = tx.Get(ctx, &f, `INSERT INTO webhook_hosts (id, owner, failures, failing_since) VALUES (?, ?, 1, ?)
			ON CONFLICT (id) DO UPDATE SET failures = webhook_hosts.failures + 1 RETURNING failures, failing_since`, c.ID, c.owner, now.UnixMilli())
		return f, err
	}
	err = tx.Get(ctx, &f, `UPDATE webhook_endpoints SET failures = failures + 1, failing_since = coalesce(failing_since, ?) WHERE id = ?
		RETURNING failures, failing_since, disabled_at`, now.UnixMilli(), c.ID)
	return f, err
}

// opens opens a circuit after a failure, if it is the one too many, and returns how long
// it stays so.
func (s *Service) opens(ctx context.Context, tx *db.Tx, c circuit, f failing, o outcome, now time.Time) (time.Duration, error) {
	if f.Failures < patience && !o.slow() {
		return 0, nil
	}
	rest := min(max(now.Sub(time.UnixMilli(f.FailingSince))/2, restLeast, o.asked), max(restMost, min(o.asked, time.Hour)))
	var open int64 // another call may have been asked to wait for longer
	err := tx.Get(ctx, &open, `UPDATE `+c.table+` SET open_until = `+db.Greatest(tx)+`(coalesce(open_until, 0), ?) WHERE id = ? RETURNING open_until`,
		now.Add(rest).UnixMilli(), c.ID)
	if err != nil {
		return 0, err
	}
	until := time.UnixMilli(open)
	waits, err := s.leave(ctx, tx, c, until)
	if err == nil && c.party != "" {
		_, err = tx.Exec(ctx, `UPDATE webhook_endpoints SET tried = ? WHERE id = ?`, flag(waits), c.ID)
	}
	return until.Sub(now), err
}
