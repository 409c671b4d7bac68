// Package vault keeps two keysets for every person and seals with
// them whatever identifies that person: fields with AES256-GCM, objects with
// AES256-GCM-HKDF-4KB streaming. Destroying a person's keysets makes every copy
// of what they sealed unreadable, also in backups.
//
// The keysets are wrapped by a root from the key ring and lie in a database of
// their own. The vault never writes a key unwrapped, never makes a second key
// for a subject, and never knows what it seals.
package vault

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/streamingaead"
	"github.com/tink-crypto/tink-go/v2/tink"

	"zimage/internal/clock"
	"zimage/internal/db"
)

// What callers can tell apart.
var (
	ErrNoKey     = errors.New("vault: the subject has no key")
	ErrExists    = errors.New("vault: the subject has a key already")
	ErrDestroyed = errors.New("vault: the subject's key was destroyed")
	ErrCorrupt   = errors.New("vault: sealed data does not open: changed, cut off, or bound to something else")
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations of the key store, which is a database apart from the main one.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // embedded at build
	}
	return sub
}

// A Vault is safe for concurrent use.
type Vault struct {
	keys   *db.DB
	roots  *Roots
	clock  *clock.Clock
	cache  *cache
	lookup func(message []byte) []byte // HMAC-SHA256; a closure, so that printing a Vault shows no key
	sign   func(message []byte) []byte // Ed25519, likewise
	public ed25519.PublicKey
}

// Open takes a migrated key store. It makes the installation's own keys when
// there are none, and refuses a key ring that lacks a root which the store needs
// with a *RootError.
func Open(ctx context.Context, keys *db.DB, roots *Roots, c *clock.Clock) (*Vault, error) {
	v := &Vault{keys: keys, roots: roots, clock: c, cache: newCache()}
	lookup, err := v.installationKey(ctx, lookupKey)
	if err != nil {
		return nil, fmt.Errorf("open the vault: %w", err)
	}
	seed, err := v.installationKey(ctx, signingKey)
	if err != nil {
		return nil, fmt.Errorf("open the vault: %w", err)
	}
	if err := v.findRoots(ctx); err != nil {
		return nil, fmt.Errorf("open the vault: %w", err)
	}
	v.lookup = func(message []byte) []byte {
		m := hmac.New(sha256.New, lookup)
		m.Write(message) // never fails
		return m.Sum(nil)
	}
	private := ed25519.NewKeyFromSeed(seed)
	v.sign = func(message []byte) []byte { return ed25519.Sign(private, message) }
	v.public = private.Public().(ed25519.PublicKey)
	return v, nil
}

// Verify reports what Open would refuse, and changes nothing. A store that no
// process has opened yet is fine with any key ring; roots is nil when there is
// none, which is fine with such a store alone.
func Verify(ctx context.Context, keys *db.DB, roots *Roots) error {
	v := &Vault{keys: keys, roots: roots}
	var rows []installationRow
	if err := keys.Select(ctx, &rows, selectInstallation+`ORDER BY name`); err != nil || len(rows) == 0 {
		return err
	}
	for _, row := range rows {
		if roots == nil {
			return &RootError{ID: row.RootID}
		}
		if _, err := v.unwrapInstallation(row); err != nil {
			return err
		}
	}
	return v.findRoots(ctx)
}

// findRoots refuses a key ring that lacks a root.
func (v *Vault) findRoots(ctx context.Context) error {
	for {
		var other string
		p := v.roots.now()
		err := v.keys.Get(ctx, &other, `SELECT root_id FROM keysets WHERE root_id NOT IN (?, ?, '') LIMIT 1`, p.current.id, p.before())
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := v.roots.find(other); err != nil {
			return err
		}
		// A rotation has replaced the ring meanwhile.
	}
}

// Check reports whether the key store answers.
func (v *Vault) Check(ctx context.Context) error {
	var name string
	if err := v.keys.Get(ctx, &name, `SELECT name FROM installation_keys WHERE name = ?`, lookupKey); err != nil {
		return fmt.Errorf("key store: %w", err)
	}
	return nil
}

// Data joins parts into associated data, so that different parts never give the
// same bytes: each goes in behind its length.
func Data(parts ...string) []byte {
	var b []byte
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return b
}

// Column is the associated data of a sealed column: whoever knows where a value
// stands can open it with its owner's key, and nobody who moved it elsewhere.
func Column(table, column, id string) []byte { return Data(table, column, id) }

// The installation's own keys, 32 random bytes each.
const (
	lookupKey  = "lookup"  // of Lookup
	signingKey = "signing" // the seed of Sign's key
)

// installationKey reads one of the installation's own keys, which the first
// process to open the store makes.
func (v *Vault) installationKey(ctx context.Context, name string) ([]byte, error) {
	row, err := v.readInstallation(ctx, name)
	if errors.Is(err, sql.ErrNoRows) {
		fresh := make([]byte, 32)
		if _, err := rand.Read(fresh); err != nil {
			return nil, err
		}
		current := v.roots.newest().current
		wrapped, err := current.aead.Encrypt(fresh, installationData(name))
		if err != nil {
			return nil, errors.New("the key cannot be wrapped")
		}
		if _, err := v.keys.Exec(ctx, `INSERT INTO installation_keys (name, wrapped, root_id) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING`,
			name, wrapped, current.id); err != nil {
			return nil, err
		}
		row, err = v.readInstallation(ctx, name) // another process may have been first
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	return v.unwrapInstallation(row)
}

type installationRow struct {
	Name    string `db:"name"`
	Wrapped []byte `db:"wrapped"`
	RootID  string `db:"root_id"`
}

const selectInstallation = `SELECT name, wrapped, root_id FROM installation_keys `

func (v *Vault) readInstallation(ctx context.Context, name string) (installationRow, error) {
	var row installationRow
	err := v.keys.Get(ctx, &row, selectInstallation+`WHERE name = ?`, name)
	return row, err
}

func (v *Vault) unwrapInstallation(row installationRow) ([]byte, error) {
	root, err := v.roots.find(row.RootID)
	if err != nil {
		return nil, err
	}
	key, err := root.aead.Decrypt(row.Wrapped, installationData(row.Name))
	if err != nil {
		return nil, &RootError{ID: root.id, Wrong: true}
	}
	return key, nil
}

func installationData(name string) []byte { return Data("installation key", name) }

// Lookup is a keyed hash in hex, for columns that are searched by a value that
// must not stand there, such as a mail address. Equal values under different
// purposes give different hashes.
func (v *Vault) Lookup(purpose, value string) string {
	return hex.EncodeToString(v.lookup(Data("lookup", purpose, value)))
}

// MAC is a keyed hash of 32 bytes, by which the installation knows again what it
// made itself, such as a token. Under different purposes it is another one.
func (v *Vault) MAC(purpose string, message []byte) []byte {
	return v.lookup(Data("mac", purpose, string(message)))
}

// Sign signs a message with the installation's Ed25519 key, which stays the same
// when roots are rotated.
func (v *Vault) Sign(message []byte) []byte { return v.sign(message) }

// PublicKey verifies what Sign signed.
func (v *Vault) PublicKey() ed25519.PublicKey { return v.public }

// A keyset's purpose is part of what its wrapping is bound to.
const (
	forFields  = "field"
	forObjects = "object"
)

func keysetData(subject, purpose string) []byte { return Data("keyset", subject, purpose) }

func wrap(r *root, h *keyset.Handle, subject, purpose string) ([]byte, error) {
	var b bytes.Buffer
	if err := h.WriteWithAssociatedData(keyset.NewBinaryWriter(&b), r.aead, keysetData(subject, purpose)); err != nil {
		return nil, errors.New("vault: the keyset cannot be wrapped")
	}
	return b.Bytes(), nil
}

func unwrap(r *root, wrapped []byte, subject, purpose string) (*keyset.Handle, error) {
	h, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(wrapped)), r.aead, keysetData(subject, purpose))
	if err != nil {
		return nil, ErrCorrupt
	}
	return h, nil
}

// Create makes both keysets of a new subject. It returns ErrExists when there
// are some, and ErrDestroyed when there were: a subject id is never used again.
func (v *Vault) Create(ctx context.Context, subject string) error {
	if subject == "" {
		return errors.New("vault: a key needs a subject")
	}
	current := v.roots.newest().current
	field, err := newKeyset(current, aead.AES256GCMKeyTemplate(), subject, forFields)
	if err != nil {
		return err
	}
	object, err := newKeyset(current, streamingaead.AES256GCMHKDF4KBKeyTemplate(), subject, forObjects)
	if err != nil {
		return err
	}
	n, err := v.keys.Exec(ctx, `INSERT INTO keysets (subject, field, object, root_id, created_at)
		VALUES (?, ?, ?, ?, ?) ON CONFLICT (subject) DO NOTHING`,
		subject, field, object, current.id, v.clock.Millis())
	if err != nil {
		return fmt.Errorf("create a key: %w", err)
	}
	if n == 1 {
		return nil
	}
	var destroyed sql.NullInt64
	if err := v.keys.Get(ctx, &destroyed, `SELECT destroyed_at FROM keysets WHERE subject = ?`, subject); err != nil {
		return fmt.Errorf("create a key: %w", err)
	}
	if destroyed.Valid {
		return ErrDestroyed
	}
	return ErrExists
}

func newKeyset(r *root, t *tinkpb.KeyTemplate, subject, purpose string) ([]byte, error) {
	h, err := keyset.NewHandle(t)
	if err != nil {
		return nil, errors.New("vault: the keyset cannot be made")
	}
	return wrap(r, h, subject, purpose)
}

// Destroy removes both keysets and leaves a tombstone, so that none is ever made
// again. This process forgets them at once, others within cacheLife. A subject
// that never had a key gets its tombstone too; doing it again changes nothing.
func (v *Vault) Destroy(ctx context.Context, subject string) error {
	if subject == "" {
		return errors.New("vault: a key needs a subject")
	}
	now := v.clock.Millis()
	// Before and after: a load that read the row before the change must not
	// put it back.
	v.cache.forget(subject)
	defer v.cache.forget(subject)
	_, err := v.keys.Exec(ctx, `INSERT INTO keysets (subject, root_id, created_at, destroyed_at) VALUES (?, '', ?, ?)
		ON CONFLICT (subject) DO UPDATE SET field = NULL, object = NULL, root_id = '', destroyed_at = excluded.destroyed_at
		WHERE keysets.destroyed_at IS NULL`, subject, now, now)
	if err != nil {
		return fmt.Errorf("destroy a key: %w", err)
	}
	return nil
}

// Discard removes both keysets of a subject that never came to be, such as a
// sign-up that nobody confirmed, and leaves nothing: its id was made for it alone
// and is known nowhere, so that no tombstone needs to keep it from a second key.
// Caches forget it as Destroy says.
func (v *Vault) Discard(ctx context.Context, subject string) error {
	v.cache.forget(subject)
	defer v.cache.forget(subject)
	// What was destroyed stays so: that was somebody's.
	if _, err := v.keys.Exec(ctx, `DELETE FROM keysets WHERE subject = ? AND destroyed_at IS NULL`, subject); err != nil {
		return fmt.Errorf("discard a key: %w", err)
	}
	return nil
}

type keysetRow struct {
	Subject     string        `db:"subject"`
	Field       []byte        `db:"field"`
	Object      []byte        `db:"object"`
	RootID      string        `db:"root_id"`
	DestroyedAt sql.NullInt64 `db:"destroyed_at"`
}

// opened is a subject's keys as they are used.
type opened struct {
	field  tink.AEAD
	object tink.StreamingAEAD
}

// open finds the keys of a subject, in the cache or in the store.
func (v *Vault) open(ctx context.Context, subject string) (*opened, error) {
	now := v.clock.Now() // before the query: the life of what it returns counts from here
	if k := v.cache.get(subject, now); k != nil {
		return k, nil
	}
	turn := v.cache.turn()
	var row keysetRow
	err := v.keys.Get(ctx, &row, `SELECT subject, field, object, root_id, destroyed_at FROM keysets WHERE subject = ?`, subject)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, ErrNoKey
	case err != nil:
		return nil, fmt.Errorf("open a key: %w", err)
	case row.DestroyedAt.Valid:
		return nil, ErrDestroyed
	}
	field, object, err := v.unwrapRow(row)
	if err != nil {
		return nil, fmt.Errorf("open a key: %w", err)
	}
	k := &opened{}
	if k.field, err = aead.New(field); err != nil {
		return nil, errors.New("vault: the keyset is not for fields")
	}
	if k.object, err = streamingaead.New(object); err != nil {
		return nil, errors.New("vault: the keyset is not for objects")
	}
	v.cache.put(subject, k, now, turn)
	return k, nil
}

func (v *Vault) unwrapRow(row keysetRow) (field, object *keyset.Handle, err error) {
	r, err := v.roots.find(row.RootID)
	if err != nil {
		return nil, nil, err
	}
	if field, err = unwrap(r, row.Field, row.Subject, forFields); err != nil {
		return nil, nil, err
	}
	object, err = unwrap(r, row.Object, row.Subject, forObjects)
	return field, object, err
}
