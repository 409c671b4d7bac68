package privacy

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// journalAccount is the journal's kind of an account.
const journalAccount = "account"

// entry is a row of the journal.
type entry struct {
	ID      string `db:"id"`
	Erasure string `db:"erasure"`
	Secret  []byte `db:"secret"`
	At      int64  `db:"at"`
}

// writeJournal keeps beside the keys that the account is erased, so that it stays
// erased when the main database is restored from before.
func (s *Service) writeJournal(ctx context.Context, e *erasure) error {
	kept := e.RequestedAt
	if later := s.Clock.Later().UnixMilli(); later > s.Clock.Millis() { // asked for by a clock that is behind
		kept = max(kept, later)
	}
	_, err := s.Keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, erasure, secret, at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (kind, id) DO UPDATE SET erasure = excluded.erasure, secret = coalesce(excluded.secret, erasure_journal.secret), mirror = ''
		WHERE erasure_journal.erasure <> excluded.erasure OR erasure_journal.secret IS DISTINCT FROM coalesce(excluded.secret, erasure_journal.secret)`,
		journalAccount, e.Subject, e.ID, e.Secret, kept)
	if err != nil {
		return stuck{"keys_failed", err}
	}
	return nil
}

// journal goes through all entries of a kind in the journal.
func (s *Service) journal(ctx context.Context, kind string, f func([]entry) error) error {
	for after := ""; ; {
		var page []entry
		err := s.Keys.Select(ctx, &page, `SELECT id, erasure, secret, at FROM erasure_journal WHERE kind = ? AND id > ? ORDER BY id LIMIT ?`,
			kind, after, eraseBatch)
		if err != nil {
			return fmt.Errorf("read the journal of erasures: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		after = page[len(page)-1].ID
		if err := f(page); err != nil {
			return err
		}
	}
}

// Unreplayed counts erasures, deletions and ends of the journal that the main database does
// not know: it was restored from before them, or belongs to another key store. Until
// they are replayed nothing may be served from it, and neither with ErrMirrorUnread: then
// it counts what the key store knows.
func (s *Service) Unreplayed(ctx context.Context) (n int, err error) {
	unread := s.askMirror(ctx, false)
	if unread != nil && (!errors.Is(unread, ErrMirrorUnread) || ctx.Err() != nil) {
		return 0, unread
	}
	err = s.journal(ctx, journalAccount, func(page []entry) error {
		args := []any{subject.Closing, subject.Erased}
		for _, e := range page {
			args = append(args, e.ID)
		}
		var known int
		err := s.DB.Get(ctx, &known, `SELECT count(*) FROM subjects s JOIN erasures e ON e.subject = s.id
			WHERE s.state IN (?, ?) AND s.id IN (`+db.Marks(len(page))+`)`, args...)
		if err != nil {
			return fmt.Errorf("look for erasures: %w", err)
		}
		n += len(page) - known
		return nil
	})
	if err != nil {
		return n, err
	}
	back, err := s.deletionsBack(ctx)
	if n += back; err == nil {
		back, err = s.endsBack(ctx)
		n += back
	}
	return n, errors.Join(err, unread)
}

// Replayed is what a replay did.
type Replayed struct {
	Erased int // complete
	Open   int // go on by themselves: they wait for late work, or failed

	Deleted int // generations and images
	Ended   int // shares and webhooks, and whose short-lived links
}

// Replay repeats every erasure of the journal on the main database and on the
// object store, whatever they say of it. Beside a running service it changes
// nothing that the erasures would not. An erasure that fails is left to its job.
func (s *Service) Replay(ctx context.Context) (Replayed, error) {
	if err := s.askMirror(ctx, true); err != nil {
		return Replayed{}, err
	}
	var ids []string
	err := s.journal(ctx, journalAccount, func(page []entry) error {
		for _, j := range page {
			if err := s.reopen(ctx, j); err != nil {
				return err
			}
			ids = append(ids, j.Erasure)
		}
		return nil
	})
	if err != nil {
		return Replayed{}, err
	}
	var done Replayed
	var failed []error
	if done.Deleted, err = s.deleteAgain(ctx); err != nil {
		failed = append(failed, err)
	}
	if done.Ended, err = s.endAgain(ctx); err != nil {
		failed = append(failed, err)
	}
	for _, id := range ids {
		complete, err := s.finish(ctx, id)
		if complete {
			done.Erased++
		} else {
			done.Open++
		}
		failed = append(failed, err)
	}
	return done, errors.Join(failed...)
}

// finish erases as far as it goes without a long wait.
func (s *Service) finish(ctx context.Context, id string) (complete bool, err error) {
	for {
		after, err := s.Erase(ctx, id)
		if err != nil || after == 0 {
			return err == nil, err
		}
		e, err := s.find(ctx, id)
		if err != nil || after > 2*accessEnds {
			return false, err
		}
		if e.Step == "processors_told" { // only late work is waited for
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(after):
		}
	}
}

// reopen makes the main database know an erasure of the journal, to be done from
// its first step on, with what holds kept of it.
func (s *Service) reopen(ctx context.Context, j entry) error {
	at := time.UnixMilli(j.At)
	held, err := s.records(ctx, j.ID)
	if err != nil {
		return err
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := subject.Find(ctx, tx, j.ID)
		if problem.CodeOf(err) == problem.Unauthorized { // restored from before there was the account
			err = subject.New(ctx, tx, j.ID, at)
		}
		if err != nil {
			return err
		}
		if _, err := subject.Close(ctx, tx, j.ID, s.Clock.Now()); err != nil {
			return err
		}
		// Of another erasure of the same person, or one that was further: it begins anew.
		_, err = tx.Exec(ctx, `UPDATE erasures SET id = ?, step = '', failures = 0, failure = '', completed_at = 0, secret = coalesce(secret, ?) WHERE subject = ?`,
			j.Erasure, j.Secret, j.ID)
		if err != nil {
			return err
		}
		for _, r := range held {
			if err := s.restoreRecord(ctx, tx, j.ID, j.Erasure, r); err != nil {
				return err
			}
		}
		var job string
		err = tx.Get(ctx, &job, `SELECT job_id FROM erasures WHERE subject = ?`, j.ID)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return s.requestErasure(ctx, tx, j.Erasure, j.ID, at, j.Secret)
		case err != nil:
			return err
		}
		return s.enqueue(ctx, tx, j.Erasure, 0)
	})
}
