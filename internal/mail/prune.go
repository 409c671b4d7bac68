package mail

import (
	"context"
	"time"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/subject"
)

const (
	// rowLife is how long the row of a mail stays once it has ended, without its
	// content.
	rowLife    = 30 * 24 * time.Hour
	pruneBatch = 200
	sweepEvery = 10 * time.Minute
)

// prune removes the rows of mails that ended long ago.
func (m *Mailer) prune(ctx context.Context, _ *jobs.Run) error {
	var removed int
	for after := ""; ; {
		n, last, err := m.pruneSome(ctx, after)
		if err != nil {
			return jobs.Retry("internal", err)
		}
		removed += n
		if last == "" {
			break
		}
		after = last
	}
	if removed > 0 {
		m.o.Log.Info("rows of old mails were removed", "mails", removed)
	}
	return nil
}

// pruneSome makes one batch of those behind the id after; last is empty when
// there was none.
func (m *Mailer) pruneSome(ctx context.Context, after string) (removed int, last string, err error) {
	limit := m.o.Clock.Now().Add(-rowLife)
	err = m.o.DB.Tx(ctx, func(tx *db.Tx) error {
		removed, last = 0, ""
		var ids []string
		// Ids begin with the time of their making, so nothing younger is looked at.
		err := tx.Select(ctx, &ids, `SELECT id FROM mails WHERE id > ? AND id < ? AND (accepted_at < ? OR failed_at < ?)
			ORDER BY id LIMIT ?`+db.SkipLocked(tx), after, db.FloorID("mail", limit), limit.UnixMilli(), limit.UnixMilli(), pruneBatch)
		if err != nil || len(ids) == 0 {
			return err
		}
		last = ids[len(ids)-1]
		if ids, err = subject.Free(ctx, tx, "mails", ids); err != nil || len(ids) == 0 {
			return err
		}
		args := make([]any, len(ids))
		for i, id := range ids {
			args[i] = id
		}
		n, err := tx.Exec(ctx, `DELETE FROM mails WHERE id IN (`+db.Marks(len(ids))+`)`, args...)
		removed = int(n)
		return err
	})
	return removed, last, err
}

// Tend removes old files from this machine's directory until ctx ends. With a
// mail server there is nothing to do.
func (m *Mailer) Tend(ctx context.Context) {
	d, ok := m.o.Transport.(*Directory)
	if !ok {
		return
	}
	m.o.Log.Info("no mail server is set: mails become files", "folder", d.Path())
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		if n, err := d.Sweep(); err != nil {
			m.o.Log.Warn("old mails were not removed from the folder", "error", err)
		} else if n > 0 {
			m.o.Log.Info("old mails were removed from the folder", "mails", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Forget removes the files of mails from this machine's directory, wherever the
// others are. With a mail server there is nothing to do.
func (m *Mailer) Forget(mails []string) error {
	d, ok := m.o.Transport.(*Directory)
	if !ok {
		return nil
	}
	return d.Forget(mails)
}
