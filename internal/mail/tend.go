package mail

import (
	"context"
	"time"
)

const sweepEvery = 10 * time.Minute

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
