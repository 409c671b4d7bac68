package mail

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"zimage/internal/clock"
)

const (
	// fileLife is how long a mail lies in the directory.
	fileLife = 24 * time.Hour
	draftEnd = ".draft"
)

// Directory writes each mail into a file of its own, for an installation without
// a mail server. Whoever reads the folder reads the mails: they are not sealed.
type Directory struct {
	path  string
	clock *clock.Clock
}

// NewDirectory makes the transport; the folder is made with the first mail.
func NewDirectory(path string, c *clock.Clock) *Directory { return &Directory{path, c} }

// Path is where the mails lie.
func (d *Directory) Path() string { return d.path }

// Send is described at Transport. A mail whose file is there already was
// accepted by an earlier attempt.
func (d *Directory) Send(ctx context.Context, e Envelope) error {
	msg, err := compose(e)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return &Fault{Code: codeFolder}
	}
	root, err := d.open()
	if err != nil {
		return &Fault{Code: codeFolder}
	}
	defer func() { _ = root.Close() }()
	name := path.Base(e.ID) + ".eml"
	if _, err := root.Lstat(name); err == nil {
		return nil
	}
	draft := rand.Text() + draftEnd
	defer func() { _ = root.Remove(draft) }() // after the rename it is not there
	f, err := root.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return &Fault{Code: codeFolder}
	}
	_, err = msg.WriteTo(f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if now := d.clock.Now(); err == nil {
		// Its age is reckoned by our clock, not by this machine's.
		err = root.Chtimes(draft, now, now)
	}
	if err == nil {
		err = root.Rename(draft, name)
	}
	if err == nil {
		err = flush(root)
	}
	if err != nil {
		return &Fault{Code: codeFolder}
	}
	return nil
}

// open makes the folder ours alone.
func (d *Directory) open() (*os.Root, error) {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return nil, err
	}
	if err := root.Chmod(".", 0o700); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// flush brings the names in the folder down to the disk.
func flush(root *os.Root) error {
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Forget removes the files of mails; one that is not there is fine.
func (d *Directory) Forget(mails []string) error {
	root, err := os.OpenRoot(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no mail yet
	}
	if err != nil {
		return &Fault{Code: codeFolder}
	}
	defer func() { _ = root.Close() }()
	for _, id := range mails {
		if err := root.Remove(path.Base(id) + ".eml"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &Fault{Code: codeFolder}
		}
	}
	return nil
}

// Sweep removes the mails that are older than a day, and what attempts that did
// not end have left.
func (d *Directory) Sweep() (removed int, err error) {
	root, err := os.OpenRoot(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // no mail yet
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = root.Close() }()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return 0, err
	}
	limit := d.clock.Now().Add(-fileLife)
	for _, entry := range entries {
		if end := path.Ext(entry.Name()); end != ".eml" && end != draftEnd || !entry.Type().IsRegular() {
			continue // not ours
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return removed, err
		}
		if info.ModTime().After(limit) {
			continue
		}
		if err := root.Remove(entry.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed++
	}
	if removed > 0 {
		err = flush(root)
	}
	return removed, err
}
