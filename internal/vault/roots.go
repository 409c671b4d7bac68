package vault

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/tink"
	"go.yaml.in/yaml/v3"

	"zimage/internal/db"
)

const (
	rootBytes    = 32       // AES-256
	maxRootsText = 64 << 10 // a key ring is a few hundred bytes; this only stops a wrong file
)

// Roots is the key ring: the root that wraps new keysets, and the one before
// it, which still opens what has not been wrapped again. Losing both loses
// everything that the vault ever sealed.
//
// One that was read from a file follows it: a rotation replaces the file, and
// every process that has it open takes the new ring over.
type Roots struct {
	path string // empty: from a text, which never changes
	pair atomic.Pointer[pair]

	mu   sync.Mutex  // one reads the file at a time
	seen fs.FileInfo // the file as it was read
}

type pair struct {
	current  *root
	previous *root // nil: none
}

type root struct {
	id      string
	created time.Time
	aead    tink.AEAD
}

// ring is the file. JSON of the same shape is YAML too.
type ring struct {
	Current  *ringKey `yaml:"current"`
	Previous *ringKey `yaml:"previous,omitempty"`
}

type ringKey struct {
	ID      string `yaml:"id"`
	Created string `yaml:"created"` // RFC 3339
	Key     string `yaml:"key"`     // 32 random bytes, base64
}

const ringHead = `# The root keys of this installation. They wrap every person's keys.
# Whoever has this file and the key store can read everything; whoever loses it
# has lost everything. Keep a copy offline, and never beside the databases' backups.
`

// CreateRoots makes a key ring with one new root in a file that only its owner
// can read. A file that is already there is never touched: the error is
// fs.ErrExist.
func CreateRoots(path string) (*Roots, error) {
	fresh, err := newRingKey(time.Now().UTC())
	if err != nil {
		return nil, err
	}
	content, err := ring{Current: fresh}.text()
	if err != nil {
		return nil, err
	}
	if err := writeNew(path, content); err != nil {
		return nil, fmt.Errorf("write the key ring: %w", err)
	}
	return ReadRoots(path)
}

func newRingKey(now time.Time) (*ringKey, error) {
	key := make([]byte, rootBytes)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a root key: %w", err)
	}
	return &ringKey{ID: db.NewID("root", now), Created: now.Format(time.RFC3339), Key: base64.StdEncoding.EncodeToString(key)}, nil
}

func (r ring) text() (string, error) {
	text, err := yaml.Marshal(r)
	if err != nil {
		return "", errors.New("the key ring cannot be written")
	}
	return ringHead + string(text), nil
}

// writeNew leaves either the whole file or none, also when the process is killed
// on the way: half a key ring would stop every later start. What is written is on
// the disk when it returns: keysets that are wrapped next must not outlive their
// root.
func writeNew(path, content string) (err error) {
	folder := filepath.Dir(path)
	f, err := os.CreateTemp(folder, "."+filepath.Base(path)+".*.new") // for its owner alone
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // a kill leaves a root that wraps nothing
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, it replaces nothing
		return err
	}
	if err := syncFolder(folder); err != nil {
		return err
	}
	// The folder too may have just been made; not in one that we may not read.
	whole, err := filepath.Abs(folder)
	if err != nil {
		return err
	}
	if err := syncFolder(filepath.Dir(whole)); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// ReadRoots reads a key ring from a file, which it refuses when anybody but its
// owner may read or write it.
func ReadRoots(path string) (*Roots, error) {
	text, info, err := readRing(path)
	if err != nil {
		return nil, err
	}
	r, err := ParseRoots(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.path, r.seen = path, info
	return r, nil
}

func readRing(path string) (string, fs.FileInfo, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return "", nil, fmt.Errorf("read the key ring: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", nil, fmt.Errorf("read the key ring: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", nil, fmt.Errorf("the key ring %s is not a file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", nil, fmt.Errorf("the key ring %s may be used by others (mode %04o): run chmod 600 %s", path, mode, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRootsText+1))
	if err != nil {
		return "", nil, fmt.Errorf("read the key ring: %w", err)
	}
	return string(text), info, nil
}

// Refresh takes over the file's key ring if it is another one by now. A file that
// cannot be read, or that lacks the root which wraps here, changes nothing.
func (r *Roots) Refresh() error {
	if r.path == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.path)
	if err != nil {
		return fmt.Errorf("read the key ring: %w", err)
	}
	if os.SameFile(info, r.seen) && info.Size() == r.seen.Size() && info.ModTime().Equal(r.seen.ModTime()) {
		return nil
	}
	read, err := ReadRoots(r.path)
	if err != nil {
		return err
	}
	before, after := r.now(), read.now()
	if !after.current.is(before.current) && (after.previous == nil || !after.previous.is(before.current)) {
		return fmt.Errorf("the key ring %s was replaced by one without root %s: put the right one there", r.path, before.current.id)
	}
	r.pair.Store(after)
	r.seen = read.seen
	return nil
}

// is reports whether both are the same key under the same id.
func (r *root) is(other *root) bool {
	sealed, err := other.aead.Encrypt(nil, nil)
	if err == nil {
		_, err = r.aead.Decrypt(sealed, nil)
	}
	return err == nil && r.id == other.id
}

var (
	rootID   = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	yamlLine = regexp.MustCompile(`line (\d+)`)
)

// ParseRoots reads a key ring from its text, YAML or JSON. Its errors name what
// is wrong and never quote the text, which is all secrets.
func ParseRoots(text string) (*Roots, error) {
	parsed, err := parseRing(text)
	if err != nil {
		return nil, err
	}
	if parsed.Current == nil {
		return nil, errors.New("key ring: current is missing")
	}
	p := &pair{}
	var key, older []byte
	if p.current, key, err = parsed.Current.open("current"); err != nil {
		return nil, err
	}
	if parsed.Previous != nil {
		if p.previous, older, err = parsed.Previous.open("previous"); err != nil {
			return nil, err
		}
		if p.current.id == p.previous.id {
			return nil, fmt.Errorf("key ring: current and previous have the same id %s", p.current.id)
		}
		if bytes.Equal(key, older) {
			return nil, errors.New("key ring: current and previous have the same key")
		}
	}
	r := &Roots{}
	r.pair.Store(p)
	return r, nil
}

func parseRing(text string) (parsed ring, err error) {
	if len(text) > maxRootsText {
		return ring{}, errors.New("key ring: larger than 64 KiB, so it is something else")
	}
	d := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	d.KnownFields(true)
	if err := d.Decode(&parsed); err != nil && !errors.Is(err, io.EOF) {
		where := ""
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			where = " line " + m[1]
		}
		return ring{}, fmt.Errorf("key ring%s: needs current and perhaps previous, each with id, created and key, and nothing else", where)
	}
	return parsed, nil
}

func (k *ringKey) open(which string) (*root, []byte, error) {
	if !rootID.MatchString(k.ID) {
		return nil, nil, fmt.Errorf("key ring: %s.id must be 1 to 64 letters, digits, dots, dashes or underscores", which)
	}
	created, err := time.Parse(time.RFC3339, k.Created)
	if err != nil {
		return nil, nil, fmt.Errorf("key ring: %s.created must be a time such as 2026-01-31T08:00:00Z", which)
	}
	key, err := base64.StdEncoding.Strict().DecodeString(k.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("key ring: %s.key is not base64", which)
	}
	if len(key) != rootBytes {
		return nil, nil, fmt.Errorf("key ring: %s.key has %d bytes, it needs %d random ones (openssl rand -base64 32)", which, len(key), rootBytes)
	}
	if bytes.Count(key, key[:1]) == len(key) {
		return nil, nil, fmt.Errorf("key ring: %s.key is one byte repeated, it needs %d random ones (openssl rand -base64 32)", which, rootBytes)
	}
	a, err := subtle.NewAESGCM(key)
	if err != nil {
		return nil, nil, fmt.Errorf("key ring: %s.key is not usable", which)
	}
	return &root{id: k.ID, created: created.UTC(), aead: a}, key, nil
}

func (r *Roots) now() *pair { return r.pair.Load() }

// newest is the ring to wrap with: that of the file as it is now.
func (r *Roots) newest() *pair {
	_ = r.Refresh() // Keep tells why not
	return r.now()
}

// Current is the id of the root that wraps new keysets.
func (r *Roots) Current() string { return r.now().current.id }

// Created is when the current root was made.
func (r *Roots) Created() time.Time { return r.now().current.created }

// Previous is the id of the root before it, empty when there is none.
func (r *Roots) Previous() string { return r.now().before() }

// before is the previous root's id, empty when there is none.
func (p *pair) before() string {
	if p.previous == nil {
		return ""
	}
	return p.previous.id
}

// Format prints ids alone under every verb, so that no log line or dump of a
// struct shows a key.
func (r *Roots) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "roots(current %s, previous %s)", r.Current(), r.Previous())
}

// find returns the root with this id, also when the file has it only since a
// moment ago.
func (r *Roots) find(id string) (*root, error) {
	if found := r.now().find(id); found != nil {
		return found, nil
	}
	if found := r.newest().find(id); found != nil {
		return found, nil
	}
	return nil, &RootError{ID: id}
}

func (p *pair) find(id string) *root {
	switch id {
	case p.current.id:
		return p.current
	case p.before(): // the empty id is no root's
		return p.previous
	}
	return nil
}

// A RootError tells the operator that the key ring is not the one that this key
// store was wrapped with.
type RootError struct {
	ID    string // of the root that is needed
	Wrong bool   // the ring has this id, with other bytes
}

func (e *RootError) Error() string {
	if e.Wrong {
		return fmt.Sprintf("the key ring's root %s is not the one that wrapped this key store: restore its key from your offline copy", e.ID)
	}
	return fmt.Sprintf("the key ring lacks root %s, which wraps keys in this key store: add it from your offline copy, as previous", e.ID)
}
