package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"zimage/internal/db"
)

const (
	// RotateEvery is how old a root becomes before it is replaced, and how long the
	// one before it still opens backups of the key store.
	RotateEvery = 14 * 24 * time.Hour

	// RotateLate is how old the current root may be before somebody must be told.
	RotateLate = RotateEvery + 2*24*time.Hour

	keepEvery  = 5 * time.Second // how soon a process has a replaced key ring
	processDie = 30 * time.Second
)

// Unrecoverable is from when on no backup opens a key that is destroyed now, if
// roots are rotated when they are due: both roots that may have wrapped a copy of
// it are retired by then.
func (v *Vault) Unrecoverable() time.Time {
	due := v.roots.Created().Add(RotateEvery)
	if now := v.clock.Now(); due.Before(now) {
		due = now
	}
	return due.Add(RotateEvery)
}

// RootAge is how old the current root is.
func (v *Vault) RootAge() time.Duration { return v.clock.Now().Sub(v.roots.Created()) }

// Keep takes over key rings that a rotation makes, and says in the key store which
// one this process has, until ctx ends. failed is told what went wrong; the old
// ring stays in use meanwhile.
func (v *Vault) Keep(ctx context.Context, process string, failed func(error)) {
	id := db.NewID("proc", v.clock.Now())
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	for {
		if err := errors.Join(v.roots.Refresh(), v.present(ctx, id, process)); err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_, _ = v.keys.Exec(end, `DELETE FROM key_rings WHERE id = ?`, id) // else it is forgotten as a dead one
			return
		case <-t.C:
		}
	}
}

func (v *Vault) present(ctx context.Context, id, process string) error {
	p, now := v.roots.now(), v.clock.Millis()
	_, err := v.keys.Exec(ctx, `INSERT INTO key_rings (id, name, current, previous, seen_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET current = excluded.current, previous = excluded.previous, seen_at = excluded.seen_at`,
		id, process, p.current.id, p.before(), now)
	if err != nil {
		return fmt.Errorf("tell which roots this process has: %w", err)
	}
	_, err = v.keys.Exec(ctx, `DELETE FROM key_rings WHERE seen_at < ?`, now-RingsKept.Milliseconds())
	return err
}

// RotateOptions for Rotate.
type RotateOptions struct {
	// Retire takes the previous root out of the ring now, and makes no new one.
	Retire bool
	// Wait for running processes to have the new ring; 0 means a minute.
	Wait time.Duration
	// Progress of the wrapping; nil: nobody asks.
	Progress func(done, total int)
	// Waiting is told once for which processes it waits; nil: nobody asks.
	Waiting func(processes string)

	at func(step string) // for tests, which end the process there
}

// A Rotation says what Rotate did and found. A zero time or empty id means: none.
type Rotation struct {
	Current   string
	Created   time.Time // of the current root
	Made      bool      // the current root is new
	Previous  string
	RetireDue time.Time // from then on, Rotate retires the previous root
	Retired   string    // root that was taken out of the ring: what it alone opens is lost
	Rewrapped int       // keysets
}

// ErrRootNeeded means that a root cannot be retired yet.
var ErrRootNeeded = errors.New("the previous root is still needed")

// Rotate wraps every key with the current root. When that is all done and the
// root is due, it makes a new one, which becomes current, and wraps again. The
// root that was previous until then goes, once it is as old as backups of the key
// store may become: it never goes before RotateEvery unless Retire says so, nor
// while anything or anybody still wraps with it.
//
// It may be broken off anywhere and called again, any number of times, beside
// running processes. Their key rings must be this file, or a copy that is
// replaced while Rotate waits.
func (v *Vault) Rotate(ctx context.Context, o RotateOptions) (Rotation, error) {
	if v.roots.path == "" {
		return Rotation{}, errors.New("the key ring is no file")
	}
	if o.at == nil {
		o.at = func(string) {}
	}
	var r Rotation
	if err := v.settle(ctx, o, &r); err != nil { // an earlier one may have been broken off
		return r, err
	}
	if err := v.changeRing(ctx, o, &r); err != nil {
		return r, err
	}
	o.at("replaced")
	if err := v.settle(ctx, o, &r); err != nil {
		return r, err
	}
	p := v.roots.now()
	r.Current, r.Created, r.Previous = p.current.id, p.current.created, p.before()
	if r.Previous != "" {
		r.RetireDue = r.Created.Add(RotateEvery)
	}
	return r, nil
}

// settle wraps what other roots than the current one wrap, once every running
// process has the current one.
func (v *Vault) settle(ctx context.Context, o RotateOptions, r *Rotation) error {
	current := v.roots.newest().current.id
	var total int
	if err := v.keys.Get(ctx, &total, `SELECT (SELECT count(*) FROM keysets WHERE root_id NOT IN (?, '')) +
		(SELECT count(*) FROM installation_keys WHERE root_id <> ?)`, current, current); err != nil {
		return fmt.Errorf("look for what is to be wrapped: %w", err)
	}
	if total == 0 {
		return nil
	}
	if err := v.await(ctx, o, current); err != nil {
		return err
	}
	o.at("known")
	n, err := v.Rewrap(ctx, func(done int) {
		if o.Progress != nil {
			o.Progress(done, max(total, done))
		}
		o.at("batch")
	})
	r.Rewrapped += n
	return err
}

// await waits until every running process has a root.
func (v *Vault) await(ctx context.Context, o RotateOptions, root string) error {
	limit := time.Minute
	if o.Wait > 0 {
		limit = o.Wait
	}
	ends := time.Now().Add(limit)
	for told := false; ; {
		lacking, err := v.processes(ctx, v.keys, `current <> ? AND previous <> ?`, root, root)
		if err != nil || lacking == "" {
			return err
		}
		if !told && o.Waiting != nil {
			o.Waiting(lacking)
			told = true
		}
		if time.Now().After(ends) {
			return fmt.Errorf("these processes do not have root %s yet: %s. Give each the key ring %s as it is now, restart those whose file was not replaced under them, and run this again; until then nothing is wrapped anew",
				root, lacking, v.roots.path)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// processes names the living processes that meet a condition.
func (v *Vault) processes(ctx context.Context, q db.Querier, condition string, args ...any) (string, error) {
	var names []string
	err := q.Select(ctx, &names, `SELECT name FROM key_rings WHERE seen_at > ? AND `+condition+` ORDER BY name`,
		append([]any{v.clock.Now().Add(-processDie).UnixMilli()}, args...)...)
	if err != nil {
		return "", fmt.Errorf("ask which roots the processes have: %w", err)
	}
	return strings.Join(names, ", "), nil
}

// changeRing replaces the file when its time has come. The key store's row is the
// lock: of two rotations at once, the second finds what the first made.
func (v *Vault) changeRing(ctx context.Context, o RotateOptions, r *Rotation) error {
	return v.keys.Tx(ctx, func(tx *db.Tx) error {
		var name string
		if err := tx.Get(ctx, &name, `SELECT name FROM installation_keys WHERE name = ?`+db.ForUpdate(tx), lookupKey); err != nil {
			return err
		}
		if err := v.roots.Refresh(); err != nil {
			return err
		}
		path, err := filepath.EvalSymlinks(v.roots.path)
		if err != nil {
			return fmt.Errorf("find the key ring: %w", err)
		}
		text, info, err := readRing(path)
		if err != nil {
			return err
		}
		next, err := parseRing(text)
		if err != nil {
			return err
		}
		p, now := v.roots.now(), v.clock.Now()
		if next.Current == nil || next.Current.ID != p.current.id {
			return errors.New("the key ring was changed meanwhile: run this again")
		}
		retired, young := p.before(), now.Before(p.current.created.Add(RotateEvery))
		switch {
		case o.Retire && p.previous == nil:
			return errors.New("there is no previous root to retire")
		case !o.Retire && p.previous != nil && young:
			return nil // nothing is due
		}
		if p.previous != nil {
			if err := v.free(ctx, tx, retired); err != nil {
				return err
			}
		}
		if o.Retire {
			next.Previous = nil
		} else {
			fresh, err := newRingKey(now)
			if err != nil {
				return err
			}
			next = ring{Current: fresh, Previous: next.Current}
		}
		content, err := next.text()
		if err != nil {
			return err
		}
		if err := replaceRing(path, content, info, o.at); err != nil {
			return fmt.Errorf("replace the key ring, which needs the right to write to its folder: %w", err)
		}
		r.Made, r.Retired = !o.Retire, retired
		return v.roots.Refresh()
	})
}

// free returns ErrRootNeeded while a root wraps anything, or a running process
// would wrap with it.
func (v *Vault) free(ctx context.Context, tx *db.Tx, root string) error {
	var n int
	if err := tx.Get(ctx, &n, `SELECT (SELECT count(*) FROM keysets WHERE root_id = ?) + (SELECT count(*) FROM installation_keys WHERE root_id = ?)`, root, root); err != nil {
		return fmt.Errorf("look for what a root wraps: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("%w: %d keys are wrapped with %s. Run this again", ErrRootNeeded, n, root)
	}
	behind, err := v.processes(ctx, tx, `current = ?`, root)
	if err != nil {
		return err
	}
	if behind != "" {
		return fmt.Errorf("%w: these processes still wrap with %s: %s. Give them the key ring %s as it is now and restart them", ErrRootNeeded, root, behind, v.roots.path)
	}
	return nil
}

// replaceRing leaves either the old file or the new one, with the same owner and
// mode, also when the process is killed on the way.
func replaceRing(path, content string, like fs.FileInfo, at func(step string)) (err error) {
	folder, base := filepath.Split(path)
	if folder == "" {
		folder = "."
	}
	left, err := filepath.Glob(filepath.Join(folder, "."+base+".*.rotated")) // by a kill; the caller has the lock
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(folder, "."+base+".*.rotated") // for its owner alone
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.WriteString(content)
	if err == nil {
		err = keepOwner(f, like)
	}
	if err == nil {
		err = f.Chmod(like.Mode().Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	at("written")
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	at("renamed")
	return syncFolder(folder)
}
