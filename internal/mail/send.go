package mail

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// attempts are spread over a day: with backoff, the last one comes 23 hours and a
// half after the first, give or take the jitter.
const attempts = 15

// backoff is 5 s, 12 s, 31 s… up to 4 h, a tenth more or less, so that what
// failed together does not come back together.
func backoff(attempt int) time.Duration {
	const first, most = 5 * time.Second, 4 * time.Hour
	wait := min(float64(first)*math.Pow(2.5, float64(attempt-1)), float64(most))
	return time.Duration(wait * (0.9 + 0.2*rand.Float64())) //nolint:gosec // spreads load, decides nothing
}

// row is one mail.
type row struct {
	ID         string        `db:"id"`
	Subject    string        `db:"subject"`
	Template   Template      `db:"template"`
	Address    []byte        `db:"address"` // sealed; nil once the mail has ended
	Data       []byte        `db:"data"`    // sealed; nil once the mail has ended
	CreatedAt  int64         `db:"created_at"`
	AcceptedAt sql.NullInt64 `db:"accepted_at"`
	FailedAt   sql.NullInt64 `db:"failed_at"`
}

// send makes one attempt at one mail.
func (m *Mailer) send(ctx context.Context, run *jobs.Run) error {
	var r row
	err := m.o.DB.Get(ctx, &r, `SELECT id, subject, template, address, data, created_at, accepted_at, failed_at FROM mails WHERE id = ?`, run.Ref)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil // erased with its receiver
	case err != nil:
		return jobs.Retry("internal", err)
	case r.AcceptedAt.Valid || r.FailedAt.Valid:
		return nil // never again
	case m.o.Transport == nil:
		return jobs.Retry("mail_off", nil)
	}
	e, err := m.open(ctx, r)
	switch {
	case errors.Is(err, errDrop):
		return m.drop(ctx, run, r)
	case errors.Is(err, vault.ErrCorrupt):
		return jobs.Fail("mail_unreadable", err)
	case err != nil:
		return jobs.Retry("internal", err)
	}
	if err := m.o.Transport.Send(ctx, e); err != nil {
		return m.failure(ctx, run, r, err)
	}
	// From here on the receiver may have it: what follows waits for the database,
	// however long that is away.
	now := m.o.Clock.Millis()
	err = run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE mails SET accepted_at = ?, address = NULL, data = NULL WHERE id = ? AND accepted_at IS NULL`, now, r.ID)
		return err
	})
	if err == nil {
		m.metrics.count(r.Template, accepted)
		m.metrics.time.Observe(float64(now-r.CreatedAt) / 1000)
	}
	return err
}

// failure says what becomes of a mail that was not accepted.
func (m *Mailer) failure(ctx context.Context, run *jobs.Run, r row, cause error) error {
	if ctx.Err() != nil {
		return cause // the worker stops, or the attempt is somebody else's
	}
	f := &Fault{Code: "internal"}
	errors.As(cause, &f)
	m.o.Log.Warn("a mail was not accepted", "mail", r.ID, "template", r.Template, "attempt", run.Attempt, "reason", f.Code, "reply", f.Reply, "final", f.Final)
	if f.Final {
		return jobs.Fail(f.Code, cause)
	}
	if run.Attempt < run.MaxAttempts {
		m.metrics.count(r.Template, retried)
	}
	return jobs.Retry(f.Code, cause)
}

// errDrop says that the receiver may not, or can not, be written to.
var errDrop = errors.New("the mail's receiver may not be written to")

// open asks whether the mail may go out and unseals it.
func (m *Mailer) open(ctx context.Context, r row) (Envelope, error) {
	l, known := letters[r.Template]
	if !known {
		return Envelope{}, errors.New("unknown template") // a newer worker may know it
	}
	if !l.always {
		err := subject.May(ctx, m.o.DB, r.Subject, subject.Notice)
		var no *problem.Error
		if errors.As(err, &no) {
			return Envelope{}, errDrop
		}
		if err != nil {
			return Envelope{}, err
		}
	}
	address, err := m.unseal(ctx, r, "address", r.Address)
	if err != nil {
		return Envelope{}, err
	}
	sealed, err := m.unseal(ctx, r, "data", r.Data)
	if err != nil {
		return Envelope{}, err
	}
	var data map[string]string
	if err := json.Unmarshal(sealed, &data); err != nil {
		return Envelope{}, vault.ErrCorrupt // the decoder's words may quote it
	}
	e := Envelope{ID: r.ID, Host: host(data[urlKey]), From: m.o.From, To: string(address), At: time.UnixMilli(r.CreatedAt).UTC(), Subject: l.subject}
	e.Text, e.HTML, err = l.write(r.Template, data, e.At)
	return e, err
}

// host is that of the service as it was when the mail was written: the sender's
// domain is a setting of each worker and may change before the next attempt.
func host(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	name := u.Hostname()
	if strings.Contains(name, ":") { // an IPv6 address
		name = "[" + name + "]"
	}
	return name
}

func (m *Mailer) unseal(ctx context.Context, r row, column string, sealed []byte) ([]byte, error) {
	plain, err := m.o.Vault.Unseal(ctx, r.Subject, sealed, vault.Column("mails", column, r.ID))
	if errors.Is(err, vault.ErrDestroyed) || errors.Is(err, vault.ErrNoKey) {
		return nil, errDrop
	}
	return plain, err
}

// drop ends a mail that is not to be sent.
func (m *Mailer) drop(ctx context.Context, run *jobs.Run, r row) error {
	err := run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
		_, err := m.giveUp(ctx, tx, r.ID)
		return err
	})
	if err == nil {
		m.metrics.count(r.Template, dropped)
		m.o.Log.Info("a mail was dropped: its receiver may not be written to", "mail", r.ID, "template", r.Template)
	}
	return err
}

// ended gives a mail up whose job has failed or was canceled.
func (m *Mailer) ended(ctx context.Context, tx *db.Tx, j jobs.Job, end jobs.State, code string) error {
	template, err := m.giveUp(ctx, tx, j.Ref)
	if err != nil || template == "" {
		return err
	}
	outcome := failed
	switch {
	case end == jobs.Canceled:
		outcome = dropped
	case code == codeRefused:
		outcome = refused
	}
	tx.AfterCommit(func() {
		m.metrics.count(template, outcome)
		m.o.Log.Warn("a mail was given up", "mail", j.Ref, "template", template, "attempts", j.Attempt, "reason", code)
	})
	return nil
}

// giveUp forgets what a mail said and to whom. It returns its template, empty
// when it had ended already.
func (m *Mailer) giveUp(ctx context.Context, tx *db.Tx, id string) (Template, error) {
	var template Template
	err := tx.Get(ctx, &template, `UPDATE mails SET failed_at = ?, address = NULL, data = NULL
		WHERE id = ? AND accepted_at IS NULL AND failed_at IS NULL RETURNING template`, m.o.Clock.Millis(), id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("give a mail up: %w", err)
	}
	return template, nil
}
