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
type Roots struct {
	current  *root
	previous *root // nil: none
}

type root struct {
	id   string
	aead tink.AEAD
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
	now := time.Now().UTC()
	key := make([]byte, rootBytes)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a root key: %w", err)
	}
	text, err := yaml.Marshal(ring{Current: &ringKey{
		ID:      db.NewID("root", now),
		Created: now.Format(time.RFC3339),
		Key:     base64.StdEncoding.EncodeToString(key),
	}})
	if err != nil {
		return nil, fmt.Errorf("write the key ring: %w", err)
	}
	content := ringHead + string(text)
	if err := writeNew(path, content); err != nil {
		return nil, fmt.Errorf("write the key ring: %w", err)
	}
	return ParseRoots(content)
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
	f, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("read the key ring: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the key ring: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("the key ring %s is not a file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("the key ring %s may be used by others (mode %04o): run chmod 600 %s", path, mode, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRootsText+1))
	if err != nil {
		return nil, fmt.Errorf("read the key ring: %w", err)
	}
	roots, err := ParseRoots(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return roots, nil
}

var (
	rootID   = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	yamlLine = regexp.MustCompile(`line (\d+)`)
)

// ParseRoots reads a key ring from its text, YAML or JSON. Its errors name what
// is wrong and never quote the text, which is all secrets.
func ParseRoots(text string) (*Roots, error) {
	if len(text) > maxRootsText {
		return nil, errors.New("key ring: larger than 64 KiB, so it is something else")
	}
	d := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	d.KnownFields(true)
	var parsed ring
	if err := d.Decode(&parsed); err != nil && !errors.Is(err, io.EOF) {
		where := ""
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			where = " line " + m[1]
		}
		return nil, fmt.Errorf("key ring%s: needs current and perhaps previous, each with id, created and key, and nothing else", where)
	}
	if parsed.Current == nil {
		return nil, errors.New("key ring: current is missing")
	}
	r := &Roots{}
	var err error
	var key, older []byte
	if r.current, key, err = parsed.Current.open("current"); err != nil {
		return nil, err
	}
	if parsed.Previous == nil {
		return r, nil
	}
	if r.previous, older, err = parsed.Previous.open("previous"); err != nil {
		return nil, err
	}
	if r.current.id == r.previous.id {
		return nil, fmt.Errorf("key ring: current and previous have the same id %s", r.current.id)
	}
	if bytes.Equal(key, older) {
		return nil, errors.New("key ring: current and previous have the same key")
	}
	return r, nil
}

func (k *ringKey) open(which string) (*root, []byte, error) {
	if !rootID.MatchString(k.ID) {
		return nil, nil, fmt.Errorf("key ring: %s.id must be 1 to 64 letters, digits, dots, dashes or underscores", which)
	}
	if _, err := time.Parse(time.RFC3339, k.Created); err != nil {
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
	return &root{id: k.ID, aead: a}, key, nil
}

// Current is the id of the root that wraps new keysets.
func (r *Roots) Current() string { return r.current.id }

// Previous is the id of the root before it, empty when there is none.
func (r *Roots) Previous() string {
	if r.previous == nil {
		return ""
	}
	return r.previous.id
}

// Format prints ids alone under every verb, so that no log line or dump of a
// struct shows a key.
func (r *Roots) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "roots(current %s, previous %s)", r.Current(), r.Previous())
}

// find returns the root with this id.
func (r *Roots) find(id string) (*root, error) {
	switch {
	case id == r.current.id:
		return r.current, nil
	case r.previous != nil && id == r.previous.id:
		return r.previous, nil
	}
	return nil, &RootError{ID: id}
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
