package privacy

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// KindErasure is the job that erases somebody, step by step; its ref is the
// erasure.
const KindErasure = "erasure:run"

const (
	eraseBatch = 500 // rows or objects at once
	// accessEnds is within what time an ended session or key is refused everywhere.
	accessEnds = 5 * time.Second
	// noticeTime is how long the mail that tells of the closing may take to go out.
	noticeTime = 5 * time.Minute
	// keyForgotten is how long other processes may still have a destroyed key.
	keyForgotten = time.Minute
	// lateFor is how long an attempt that no longer counts may still store objects.
	lateFor = 24 * time.Hour
	// receiptLife is how long a receipt can be fetched.
	receiptLife = 1095 * 24 * time.Hour
)

// An Eraser asks a processor, who holds data for the service outside, for deletion.
type Eraser interface {
	Name() string
	// Erase asks for the deletion of all that is the person's. It may be called
	// again; an error keeps the erasure open.
	Erase(ctx context.Context, subject string) error
}

// erasure is a row of erasures.
type erasure struct {
	ID          string `db:"id"`
	Subject     string `db:"subject"`
	JobID       string `db:"job_id"`
	RequestedAt int64  `db:"requested_at"`
	DueAt       int64  `db:"due_at"`
	Step        string `db:"step"`
	LateUntil   int64  `db:"late_until"`
	Failures    int    `db:"failures"`
	Failure     string `db:"failure"`
	Work        string `db:"work"`
	Secret      []byte `db:"secret"`
	Receipt     []byte `db:"receipt"`
	ReceiptAt   int64  `db:"receipt_at"`
	CompletedAt int64  `db:"completed_at"`
}

const selectErasure = `SELECT id, subject, job_id, requested_at, due_at, step, late_until, failures, failure, work, secret, receipt,
	receipt_at, completed_at FROM erasures `

// work is what an erasure has done so far.
type work struct {
	Steps        map[string]int64  `json:"steps,omitempty"`          // when each was done
	Rows         map[string]int64  `json:"rows,omitempty"`           // deleted, by store and table
	Objects      map[string]int64  `json:"objects,omitempty"`        // deleted, by prefix
	Counted      map[string]string `json:"counted,omitempty"`        // the last object that is counted, by prefix
	Kept         map[string]int64  `json:"kept,omitempty"`           // rows that the map keeps, by store and table
	Processors   map[string]int64  `json:"processors,omitempty"`     // when each was told
	KeyRemovedAt int64             `json:"key_removed_at,omitempty"` //
	KeyGoneAt    int64             `json:"key_gone_at,omitempty"`    // from all backups
}

func parseWork(text string) (work, error) {
	w := work{Steps: map[string]int64{}, Rows: map[string]int64{}, Objects: map[string]int64{}, Counted: map[string]string{},
		Kept: map[string]int64{}, Processors: map[string]int64{}}
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return work{}, errors.New("what an erasure has done does not parse")
	}
	return w, nil
}

// wait is for something that comes by itself.
type wait struct{ d time.Duration }

func (w wait) Error() string { return "the erasure waits" }

// stuck is why an erasure cannot go on, in a word that may be shown.
type stuck struct {
	code  string
	cause error
}

func (s stuck) Error() string { return "the erasure is stuck: " + s.code }
func (s stuck) Unwrap() error { return s.cause }

func codeOf(err error) string {
	var s stuck
	switch {
	case errors.As(err, &s):
		return s.code
	case db.IsAway(err):
		return "database_away"
	}
	var o *objects.Error
	if errors.As(err, &o) {
		return "objects_failed"
	}
	return "internal"
}

// step is one of the durable steps. Each can be repeated at any time.
type step struct {
	name string
	do   func(*Service, context.Context, *erasure) error
}

// phase is when in a step Service.at is called.
type phase string

const (
	phaseBefore     phase = "before it"
	phaseUnrecorded phase = "done and not recorded"
	phaseRecorded   phase = "recorded"
)

// steps in their order.
func steps() []step {
	return []step{
		{"journalled", (*Service).writeJournal},
		{"access_closed", (*Service).closeAccess},
		{"work_stopped", (*Service).stopWork},
		{"holds_kept", (*Service).keepHeld},
		{"key_destroyed", (*Service).destroyKey},
		{"objects_deleted", (*Service).deleteObjects},
		{"rows_deleted", (*Service).deleteRows},
		{"processors_told", (*Service).tellProcessors},
		{"verified", (*Service).verify},
		{"complete", (*Service).complete},
	}
}

// Steps are the names of an erasure's steps, in their order.
func Steps() []string {
	var names []string
	for _, s := range steps() {
		names = append(names, s.name)
	}
	return names
}

// requestErasure writes an erasure and its job, unless there is one.
func (s *Service) requestErasure(ctx context.Context, tx *db.Tx, id, owner string, at time.Time, secret []byte) error {
	n, err := tx.Exec(ctx, `INSERT INTO erasures (id, subject, job_id, requested_at, due_at, step, late_until, failures, failure, work, secret, receipt_at, completed_at)
		VALUES (?, ?, '', ?, ?, '', 0, 0, '', '{}', ?, 0, 0) ON CONFLICT (subject) DO NOTHING`,
		id, owner, at.UnixMilli(), s.Policy.Windows.Deletion.After(at).UnixMilli(), secret)
	if err != nil {
		return fmt.Errorf("request an erasure: %w", err)
	}
	if n == 0 {
		return nil
	}
	// Whatever else the person asked for ends with the account.
	if _, err := s.closeRequests(ctx, tx, OutcomeWithdrawn, `subject = ? AND kind <> ?`, owner, RequestErasure); err != nil {
		return err
	}
	if err := s.began(ctx, tx, RequestErasure, owner, OriginSelf, id, at); err != nil {
		return err
	}
	return s.enqueue(ctx, tx, id, 0)
}

func (s *Service) enqueue(ctx context.Context, tx *db.Tx, id string, after time.Duration) error {
	j, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindErasure, Ref: id, RunAfter: s.Clock.Now().Add(after)})
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE erasures SET job_id = ? WHERE id = ?`, j.ID, id)
	return err
}

// ClaimIn gives the receipt of somebody's erasure its secret, once, in the
// transaction that closes the account: either it is closed and its owner alone has
// the secret, or neither. NotFound when it is claimed already.
func (s *Service) ClaimIn(ctx context.Context, tx *db.Tx, owner string) (receipt, secret string, err error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", "", err
	}
	secret = "zr_" + base64.RawURLEncoding.EncodeToString(raw)
	sum := sha256.Sum256([]byte(secret))
	err = tx.Get(ctx, &receipt, `UPDATE erasures SET secret = ? WHERE subject = ? AND secret IS NULL RETURNING id`, sum[:], owner)
	if errors.Is(err, sql.ErrNoRows) {
		return "", "", noReceipt()
	}
	if err != nil {
		return "", "", fmt.Errorf("claim a receipt: %w", err)
	}
	return receipt, secret, nil
}

func noReceipt() error { return problem.New(problem.NotFound, "There is no such receipt.") }

// opens reports whether a secret opens the erasure's receipt.
func (e *erasure) opens(secret string) bool {
	sum := sha256.Sum256([]byte(secret))
	return len(e.Secret) > 0 && subtle.ConstantTimeCompare(sum[:], e.Secret) == 1
}

func (s *Service) find(ctx context.Context, id string) (*erasure, error) {
	var e erasure
	if err := s.DB.Get(ctx, &e, selectErasure+`WHERE id = ?`, id); err != nil {
		return nil, err
	}
	return &e, nil
}

func (s *Service) erasureKind() jobs.Kind {
	return jobs.Kind{Name: KindErasure, MaxAttempts: 1 << 30, Run: func(ctx context.Context, r *jobs.Run) error {
		after, err := s.Erase(ctx, r.Ref)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil // its receipt has had its time
		case err != nil:
			return jobs.Retry(codeOf(err), err)
		case after == 0:
			return nil
		}
		return r.Complete(ctx, func(ctx context.Context, tx *db.Tx) error { return s.enqueue(ctx, tx, r.Ref, after) })
	}}
}

// Erase goes on with an erasure as far as it can. It returns how long to wait
// before it is called again; 0: it is complete. An error is kept beside the
// erasure, by its code.
func (s *Service) Erase(ctx context.Context, id string) (after time.Duration, err error) {
	for {
		e, err := s.find(ctx, id)
		if err != nil {
			return 0, err
		}
		if e.CompletedAt > 0 {
			return 0, s.failed(ctx, e, s.afterwards(ctx, e))
		}
		err = s.next(ctx, e)
		var w wait
		if errors.As(err, &w) {
			return max(w.d, time.Millisecond), nil
		}
		if err = s.failed(ctx, e, err); err != nil {
			return 0, err
		}
	}
}

// next does the step behind the last that is done.
func (s *Service) next(ctx context.Context, e *erasure) error {
	all, at := steps(), 0
	if e.Step != "" {
		at = slices.IndexFunc(all, func(s step) bool { return s.name == e.Step }) + 1
		if at == 0 || at == len(all) {
			return stuck{code: "unknown_step"}
		}
	}
	next := all[at]
	if err := s.at(next.name, phaseBefore); err != nil {
		return err
	}
	if err := next.do(s, ctx, e); err != nil {
		return err
	}
	if err := s.at(next.name, phaseUnrecorded); err != nil {
		return err
	}
	err := s.change(ctx, e.ID, func(tx *db.Tx, w *work) error {
		now := s.Clock.Millis()
		n, err := tx.Exec(ctx, `UPDATE erasures SET step = ?, failures = 0, failure = '' WHERE id = ? AND step = ?`, next.name, e.ID, e.Step)
		if n == 1 {
			w.Steps[next.name] = now
		}
		return err // otherwise another worker was first: the row tells how far it is
	})
	if err != nil {
		return err
	}
	e.Step = next.name
	return s.at(next.name, phaseRecorded)
}

// change writes what an erasure has done, with what it did it to, in one
// transaction. Two workers on the same erasure wait for each other here.
func (s *Service) change(ctx context.Context, id string, f func(tx *db.Tx, w *work) error) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		var text string
		if err := tx.Get(ctx, &text, `SELECT work FROM erasures WHERE id = ?`+db.ForUpdate(tx), id); err != nil {
			return err
		}
		w, err := parseWork(text)
		if err != nil {
			return err
		}
		if err := f(tx, &w); err != nil {
			return err
		}
		after, err := json.Marshal(w)
		if err != nil || string(after) == text {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE erasures SET work = ? WHERE id = ?`, string(after), id)
		return err
	})
}

// failed keeps beside the erasure why it does not go on, if the database takes it. What
// failed because another worker had done it meanwhile has not: the row tells how far it is.
func (s *Service) failed(ctx context.Context, e *erasure, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	code := codeOf(err)
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	n, unsaid := s.DB.Exec(short, `UPDATE erasures SET failure = ?, failures = failures + 1 WHERE id = ? AND step = ?`, code, e.ID, e.Step)
	if unsaid == nil && n == 0 {
		return nil
	}
	s.Metrics.erasureFailures.WithLabelValues(code).Inc()
	s.Log.WarnContext(ctx, "an erasure does not go on", "erasure", e.ID, "step", e.Step, "code", code, "failures", e.Failures+1)
	if unsaid != nil && db.IsAway(unsaid) {
		return err // its age tells
	}
	return errors.Join(err, unsaid)
}

// closeAccess makes sure that nobody comes in any more, and waits until no process
// remembers that somebody might.
func (s *Service) closeAccess(ctx context.Context, e *erasure) error {
	now := s.Clock.Now()
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		p, err := subject.Find(ctx, tx, e.Subject)
		if err != nil {
			return err
		}
		if p.State == subject.Active {
			return stuck{code: "account_active"}
		}
		for _, end := range []string{
			`UPDATE sessions SET ended_at = ? WHERE owner = ? AND ended_at IS NULL`,
			`UPDATE api_keys SET revoked_at = ? WHERE owner = ? AND revoked_at IS NULL`,
		} {
			if _, err := tx.Exec(ctx, end, now.UnixMilli(), e.Subject); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if left := time.UnixMilli(e.RequestedAt).Add(accessEnds).Sub(now); left > 0 {
		return wait{left}
	}
	return nil
}

// stopWork cancels the person's jobs and waits until none runs. What tells of the
// closing, a mail and other notices, may go out before; the room that made the rest stops it by
// itself meanwhile.
func (s *Service) stopWork(ctx context.Context, e *erasure) error {
	notices := []any{mail.KindSend}
	for _, kind := range s.Notices {
		notices = append(notices, kind)
	}
	if s.Clock.Now().Before(time.UnixMilli(e.RequestedAt).Add(noticeTime)) {
		var n int
		err := s.DB.Get(ctx, &n, `SELECT count(*) FROM jobs WHERE owner = ? AND party = owner AND kind IN (`+db.Marks(len(notices))+`) AND state IN ('queued', 'waiting', 'running')`,
			append([]any{e.Subject}, notices...)...)
		if err != nil {
			return err
		}
		if n > 0 {
			return wait{2 * time.Second}
		}
	}
	if err := s.stopped(ctx, e); err != nil {
		return err
	}
	var last int64
	// A worker that lost its attempt may store what it made after all; one that
	// succeeded at the first had nobody beside it. Notices store nothing.
	err := s.DB.Get(ctx, &last, `SELECT coalesce(max(finished_at), 0) FROM jobs WHERE owner = ? AND party = owner AND kind NOT IN (`+db.Marks(len(notices))+`) AND attempt > 0
		AND NOT (state = 'succeeded' AND attempt = 1)`, append([]any{e.Subject}, notices...)...)
	if err != nil || last == 0 {
		return err
	}
	return s.late(ctx, e, time.UnixMilli(last).Add(lateFor))
}

// late keeps the erasure open until a time at least.
func (s *Service) late(ctx context.Context, e *erasure, until time.Time) error {
	_, err := s.DB.Exec(ctx, `UPDATE erasures SET late_until = ? WHERE id = ? AND late_until < ?`, until.UnixMilli(), e.ID, until.UnixMilli())
	return err
}

// stopped cancels everything that is left, and waits while something runs. Ending work may
// add some, such as a look for what it left.
func (s *Service) stopped(ctx context.Context, e *erasure) error {
	for {
		var parties []string
		err := s.DB.Select(ctx, &parties, `SELECT DISTINCT party FROM jobs WHERE `+s.Map.Of(s.Map.Table(StoreMain, "jobs"))+` AND state IN ('queued', 'waiting', 'running')`, e.Subject)
		if err != nil || len(parties) == 0 {
			return err
		}
		running := 0
		for _, party := range parties {
			n, err := s.Queue.Stop(ctx, party, string(subject.BecauseClosed))
			if err != nil {
				return err
			}
			running += n
		}
		if running > 0 {
			return wait{2 * time.Second}
		}
	}
}

// destroyKey ends what every copy could be read with, wherever it lies.
func (s *Service) destroyKey(ctx context.Context, e *erasure) error {
	// A hold may have come since. From here on none does.
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := subject.Lock(ctx, tx, e.Subject); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE erasures SET shut_at = ? WHERE id = ? AND shut_at = 0`, s.Clock.Millis(), e.ID)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.keepHeld(ctx, e); err != nil {
		return err
	}
	gone := s.Vault.Unrecoverable()
	if err := s.Vault.Destroy(ctx, e.Subject); err != nil {
		return stuck{"keys_failed", err}
	}
	removed, err := s.Vault.Destroyed(ctx, e.Subject)
	if err != nil {
		return stuck{"keys_failed", err}
	}
	if removed.IsZero() {
		return stuck{code: "key_left"}
	}
	if err := s.late(ctx, e, removed.Add(keyForgotten)); err != nil {
		return err
	}
	return s.change(ctx, e.ID, func(_ *db.Tx, w *work) error {
		if w.KeyRemovedAt == 0 || w.KeyRemovedAt != removed.UnixMilli() {
			w.KeyRemovedAt, w.KeyGoneAt = removed.UnixMilli(), gone.UnixMilli()
		}
		return nil
	})
}

// tellProcessors asks everybody outside for the deletion, too.
func (s *Service) tellProcessors(ctx context.Context, e *erasure) error {
	for _, p := range s.Erasers {
		w, err := parseWork(e.Work)
		if err != nil {
			return err
		}
		if w.Processors[p.Name()] > 0 {
			continue
		}
		if err := p.Erase(ctx, e.Subject); err != nil {
			return stuck{"processor_failed", err}
		}
		err = s.change(ctx, e.ID, func(_ *db.Tx, w *work) error {
			w.Processors[p.Name()] = s.Clock.Millis()
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
