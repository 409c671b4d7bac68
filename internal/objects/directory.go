package objects

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Directory keeps each object in a file of its own, below one folder. Several
// processes may use the same folder.
type Directory struct {
	root *os.Root // nothing outside of it can be reached, also not through a link

	mu    sync.Mutex
	swept time.Time // when drafts were, by monotonic time
}

// Temporary files lie in the folder drafts, whose name no key can have.
// staleDraft is how long after its last write one was left by a process that
// died: no Put pauses for as long. They are swept at the opening and once in
// sweepEvery while the folder is used.
const (
	drafts     = ".drafts"
	staleDraft = time.Hour
	sweepEvery = time.Hour
)

// OpenDirectory opens or makes the folder, refuses one that other accounts may
// write to, and removes the leftovers of writes that never finished.
func OpenDirectory(path string) (*Directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fileError("open", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fileError("open", err)
	}
	d := &Directory{root: root, swept: time.Now()}
	err = d.ours()
	if err == nil {
		err = d.sweep()
	}
	if err != nil {
		return nil, errors.Join(fileError("open", err), root.Close())
	}
	return d, nil
}

// LookDirectory reports whether the folder is there, and what OpenDirectory would
// refuse. It changes nothing.
func LookDirectory(path string) (there bool, err error) {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fileError("open", err)
	}
	defer func() { _ = root.Close() }()
	return true, (&Directory{root: root}).ours()
}

// ours refuses a folder in which other accounts could put links and files in
// the place of objects.
func (d *Directory) ours() error {
	info, err := d.root.Stat(".")
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fail("open", errors.New("other accounts may write to the folder of the objects; chmod go-w it"))
	}
	return nil
}

// Close ends the use of the folder.
func (d *Directory) Close() error { return d.root.Close() }

func (d *Directory) sweep() error {
	if err := d.root.Mkdir(drafts, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	left, err := d.entries(drafts)
	if err != nil {
		return err
	}
	for _, entry := range left {
		info, err := entry.Info()
		if err != nil || time.Since(info.ModTime()) < staleDraft {
			continue // already gone, or being written
		}
		if err := d.root.Remove(path.Join(drafts, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sweepInTurn sweeps when an hour has passed. What cannot be removed is tried
// again in the next: in a folder that lets nothing be removed, Check fails.
func (d *Directory) sweepInTurn() {
	d.mu.Lock()
	due := time.Since(d.swept) >= sweepEvery
	if due {
		d.swept = time.Now()
	}
	d.mu.Unlock()
	if due {
		_ = d.sweep()
	}
}

// Put is described at Store.
func (d *Directory) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	if err := checkKeys("put", key); err != nil {
		return err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return unreadable(err)
	}
	d.sweepInTurn()
	draft, sum, err := d.draft(ctx, r, size)
	if err != nil {
		return fileError("put", err)
	}
	defer func() { _ = d.root.Remove(draft) }() // what stays is swept
	switch err := d.publish(draft, key); {
	case errors.Is(err, fs.ErrExist):
		same, err := d.holds(ctx, key, size, sum)
		if err != nil {
			return fileError("put", err)
		}
		if !same {
			return fail("put", ErrExists)
		}
	case err != nil:
		return fileError("put", err)
	}
	// Also when another writer made the link: it may not have come this far.
	err = d.sync(path.Dir(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // written, and deleted meanwhile
	}
	return fileError("put", err)
}

// PutStream is described at Store.
func (d *Directory) PutStream(ctx context.Context, key string, r io.Reader) (size int64, err error) {
	if err := checkKeys("put", key); err != nil {
		return 0, err
	}
	d.sweepInTurn()
	draft, err := d.write(func(w io.Writer) (err error) {
		size, err = io.Copy(w, &source{ctx, r})
		return err
	})
	if err != nil {
		return 0, fileError("put", err)
	}
	defer func() { _ = d.root.Remove(draft) }() // what stays is swept
	err = d.publish(draft, key)
	if errors.Is(err, fs.ErrExist) {
		return 0, fail("put", ErrExists)
	}
	if err == nil {
		err = d.sync(path.Dir(key))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return size, nil // written, and deleted meanwhile
	}
	return size, fileError("put", err)
}

// Abandon is described at Store. Drafts bear no keys: they are swept by their
// age.
func (d *Directory) Abandon(_ context.Context, keys ...string) error {
	return checkKeys("delete", keys...)
}

// draft writes r into a temporary file, down to the disk.
func (d *Directory) draft(ctx context.Context, r io.Reader, size int64) (name, sum string, err error) {
	name, err = d.write(func(w io.Writer) (err error) {
		sum, err = copyDigest(ctx, w, r, size)
		return err
	})
	return name, sum, err
}

// write makes a temporary file and has it filled, down to the disk.
func (d *Directory) write(fill func(io.Writer) error) (name string, err error) {
	name = path.Join(drafts, rand.Text())
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	if err = fill(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, d.root.Remove(name))
	}
	return name, nil
}

// publish links the draft to its key, which fails when the key is taken.
func (d *Directory) publish(draft, key string) error {
	var err error
	for range 10 { // a Delete may remove the folder between its making and its use
		if err = d.makeFolders(path.Dir(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err = d.root.Link(draft, key); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// makeFolders makes the missing folders and syncs each parent, so that they are
// still there after a power cut.
func (d *Directory) makeFolders(folder string) error {
	if folder == "." {
		return nil
	}
	if info, err := d.root.Stat(folder); err == nil && info.IsDir() {
		return nil
	}
	if err := d.makeFolders(path.Dir(folder)); err != nil {
		return err
	}
	switch err := d.root.Mkdir(folder, 0o700); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return d.sync(path.Dir(folder))
}

func (d *Directory) holds(ctx context.Context, key string, size int64, sum string) (bool, error) {
	f, err := d.root.Open(key)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() != size {
		return false, err
	}
	theirs, err := digest(ctx, f, size)
	return theirs == sum, err
}

// sync brings the names in a folder down to the disk.
func (d *Directory) sync(folder string) error {
	f, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Get is described at Store.
func (d *Directory) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	if err := checkKeys("get", key); err != nil {
		return nil, 0, err
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, fileError("get", err)
	}
	f, err := d.root.Open(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fail("get", ErrNotExist)
	}
	if err != nil {
		return nil, 0, fileError("get", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, fileError("get", errors.Join(err, f.Close()))
	}
	return content{f, fileError}, info.Size(), nil
}

// Delete is described at Store. It also removes the folders that it empties:
// their names are ids of people.
func (d *Directory) Delete(ctx context.Context, keys ...string) error {
	if err := checkKeys("delete", keys...); err != nil {
		return err
	}
	var failed int
	var first error
	folders := make(map[string]bool)
	for _, key := range keys {
		err := ctx.Err()
		if err == nil {
			err = d.root.Remove(key)
		}
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			folders[path.Dir(key)] = true // also where an earlier Delete was interrupted
		default:
			failed++
			first = cmp.Or(first, err)
		}
	}
	// Also after ctx ended: what was removed must not come back.
	changed := make(map[string]bool) // each synced once, however much went from it
	for folder := range folders {
		left, err := d.prune(folder)
		if err != nil {
			failed++
			first = cmp.Or(first, err)
		}
		changed[left] = true
	}
	for folder := range changed {
		if err := d.settle(folder); err != nil {
			failed++
			first = cmp.Or(first, err)
		}
	}
	return undeleted(failed, len(keys), fileError("delete", first))
}

// prune removes a folder and its parents as far as they are empty, and returns the
// first that is not.
func (d *Directory) prune(folder string) (left string, err error) {
	for ; folder != "."; folder = path.Dir(folder) {
		err := d.root.Remove(folder)
		if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
			break
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return folder, err
		}
	}
	return folder, nil
}

// settle syncs a folder from which something was removed. Another Delete may have
// emptied and removed it meanwhile: then its parent.
func (d *Directory) settle(folder string) error {
	for {
		err := d.sync(folder)
		if !errors.Is(err, fs.ErrNotExist) || folder == "." {
			return err
		}
		if folder, err = d.prune(path.Dir(folder)); err != nil {
			return err
		}
	}
}

// List is described at Store.
func (d *Directory) List(ctx context.Context, prefix, after string, limit int) ([]Info, error) {
	if err := checkList(prefix, limit); err != nil {
		return nil, err
	}
	start, there, err := d.start(prefix)
	if err != nil || !there {
		return nil, fileError("list", err)
	}
	var found []Info
	err = d.walk(ctx, start, func(name string, entry fs.DirEntry) error {
		if entry.IsDir() {
			within := strings.HasPrefix(name, prefix) || strings.HasPrefix(prefix, name)
			passed := name <= after && !strings.HasPrefix(after, name)
			if !within || passed || name == drafts+"/" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasPrefix(name, prefix) || name <= after || !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		found = append(found, Info{Key: name, Size: info.Size(), Modified: info.ModTime().UTC()})
		if len(found) == limit {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.SkipAll) {
		return nil, fileError("list", err)
	}
	return found, nil
}

// start is the deepest folder that holds all of a prefix, with a slash or empty:
// the neighbours of one generation are not read to list it. It is not there
// where no object can be; links are not followed.
func (d *Directory) start(prefix string) (folder string, there bool, err error) {
	folder = prefix[:strings.LastIndexByte(prefix, '/')+1]
	if folder == "" {
		return "", true, nil
	}
	if strings.HasPrefix(folder, drafts+"/") || !fs.ValidPath(strings.TrimSuffix(folder, "/")) {
		return "", false, nil
	}
	for i, c := range folder {
		if c != '/' {
			continue
		}
		info, err := d.root.Lstat(folder[:i])
		if errors.Is(err, fs.ErrNotExist) {
			return "", false, nil
		}
		if err != nil || !info.IsDir() {
			return "", false, err
		}
	}
	return folder, true, nil
}

// walk visits what is below folder in the order of whole keys' bytes, as S3
// lists them; fs.WalkDir would put a/x before a-b/x. Names of folders end with a
// slash. visit returns fs.SkipDir to stay out of a folder and fs.SkipAll to stop.
func (d *Directory) walk(ctx context.Context, folder string, visit func(string, fs.DirEntry) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := d.entries(cmp.Or(strings.TrimSuffix(folder, "/"), "."))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	name := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(name(a), name(b)) })
	for _, entry := range entries {
		whole := folder + name(entry)
		err := visit(whole, entry)
		if err == nil && entry.IsDir() {
			err = d.walk(ctx, whole, visit)
		}
		if err != nil && !errors.Is(err, fs.SkipDir) {
			return err
		}
	}
	return nil
}

func (d *Directory) entries(folder string) ([]fs.DirEntry, error) {
	f, err := d.root.Open(folder)
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(-1)
	return entries, errors.Join(err, f.Close())
}

// Check is described at Store.
func (d *Directory) Check(ctx context.Context) error {
	d.sweepInTurn()
	draft, _, err := d.draft(ctx, strings.NewReader("probe"), 5)
	if err != nil {
		return fileError("check", err)
	}
	return fileError("check", d.root.Remove(draft))
}

// fileError keeps the reason of a system's error and leaves out its path.
func fileError(op string, err error) error {
	var clean *Error
	if err == nil || errors.As(err, &clean) {
		return err
	}
	e := &Error{Op: op, Code: systemCode(err, "failed"), err: err}
	if isFull(err) {
		e.kind = ErrFull
	}
	return e
}
