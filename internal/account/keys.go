package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// The scopes that a key may have.
const (
	ScopeGenerate = "generate" // make, cancel and delete images
	ScopeRead     = "read"     // look at what is there
	ScopeWebhooks = "webhooks" // change webhook endpoints
	ScopeAccount  = "account"  // change the account
	ScopeAdmin    = "admin"    // for staff; reserved: no route takes it yet
)

// Scopes are all of them.
func Scopes() []string {
	return []string{ScopeGenerate, ScopeRead, ScopeWebhooks, ScopeAccount, ScopeAdmin}
}

const (
	nameMost = 100 // characters
	keysMost = 100 // keys of one owner that are neither revoked nor expired
	// Those that are stay for their owner to look back at: the newest of them, and
	// not for ever.
	endedMost = 100
	endedFor  = 30 * 24 * time.Hour
)

// A Key as its owner sees it; its token was shown once.
type Key struct {
	ID         string
	Prefix     string // the token's first letters
	Name       string
	Scopes     []string
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
	RevokedAt  time.Time // zero: not
	LastUsedAt time.Time // zero: never; a few minutes behind
}

// A Principal is who a request acts for, and how far: by a key, or in a session.
type Principal struct {
	Subject string
	Scopes  []string
	Role    Role

	KeyID string // empty: a session

	SessionID string // empty: a key
	Method    Method
	FreshAt   time.Time // when the session last proved who it is
	// lookup finds the session by the token that was shown: what was let in by it
	// ends when the session has another one.
	lookup string

	DoNotSell bool // the person has said so
}

// Has reports whether the key or session has the scope.
func (p Principal) Has(scope string) bool { return slices.Contains(p.Scopes, scope) }

type keyRow struct {
	ID         string        `db:"id"`
	Owner      string        `db:"owner"`
	Prefix     string        `db:"prefix"`
	Name       []byte        `db:"name"`
	Scopes     string        `db:"scopes"`
	CreatedAt  int64         `db:"created_at"`
	ExpiresAt  sql.NullInt64 `db:"expires_at"`
	RevokedAt  sql.NullInt64 `db:"revoked_at"`
	LastUsedAt sql.NullInt64 `db:"last_used_at"`
}

// CreateKey makes a key and returns its token, which nobody can be shown again.
// A zero expires means never. It returns InvalidRequest for a name, scope or
// time that is not valid, Conflict when the owner has 100 live keys, and
// Unauthorized when the account is closed.
func (s *Service) CreateKey(ctx context.Context, owner, name string, scopes []string, expires time.Time) (string, Key, error) {
	token, k, write, err := s.newKey(ctx, owner, name, scopes, expires)
	if err != nil {
		return "", Key{}, err
	}
	if err := s.db.Tx(ctx, write); err != nil {
		return "", Key{}, away(fmt.Errorf("create a key: %w", err))
	}
	return token, k, nil
}

// NewKey is CreateKey for a person in a fresh session, who is told of it by
// mail. The scope admin is for staff.
func (s *Service) NewKey(ctx context.Context, p Principal, name string, scopes []string, expires time.Time) (string, Key, error) {
	if err := s.Proved(p); err != nil {
		return "", Key{}, err
	}
	if slices.Contains(scopes, ScopeAdmin) {
		if err := p.may(RoleSupport, RolePrivacy, RoleOperator); err != nil {
			return "", Key{}, err
		}
	}
	token, k, write, err := s.newKey(ctx, p.Subject, name, scopes, expires)
	if err != nil {
		return "", Key{}, err
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		// The subject's row before the account's, as everywhere.
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		if err := write(tx); err != nil {
			return err
		}
		return s.tell(ctx, tx, p.Subject, mail.KeyCreated, map[string]string{"Name": name})
	})
	if err != nil {
		return "", Key{}, away(fmt.Errorf("create a key: %w", err))
	}
	return token, k, nil
}

// newKey is a key that holds once write has been called in a transaction and that
// is committed.
func (s *Service) newKey(ctx context.Context, owner, name string, scopes []string, expires time.Time) (token string, k Key, write func(*db.Tx) error, err error) {
	now := s.clock.Now()
	expires = expires.UTC().Truncate(time.Millisecond)
	scopes, fields := checkKey(name, scopes, expires, now)
	if len(fields) > 0 {
		return "", Key{}, nil, problem.Invalid(fields...)
	}
	token = newToken()
	k = Key{
		ID: db.NewID("key", now), Prefix: token[:prefixShown], Name: name,
		Scopes: scopes, CreatedAt: now, ExpiresAt: expires,
	}
	sealed, err := s.vault.Seal(ctx, owner, []byte(name), nameData(k.ID))
	if errors.Is(err, vault.ErrNoKey) || errors.Is(err, vault.ErrDestroyed) {
		return "", Key{}, nil, subject.NoAccount()
	}
	if err != nil {
		return "", Key{}, nil, away(fmt.Errorf("create a key: %w", err))
	}
	return token, k, func(tx *db.Tx) error {
		// The owner's row is the lock: of two at once, the second counts the first.
		var locked string
		err := tx.Get(ctx, &locked, `SELECT id FROM users WHERE id = ?`+db.ForUpdate(tx), owner)
		if errors.Is(err, sql.ErrNoRows) {
			return subject.NoAccount()
		}
		if err != nil {
			return err
		}
		if err := subject.May(ctx, tx, owner, subject.Read); err != nil {
			return err
		}
		var live int
		if err := tx.Get(ctx, &live, `SELECT count(*) FROM api_keys
			WHERE owner = ? AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)`, owner, now.UnixMilli()); err != nil {
			return err
		}
		if live >= keysMost {
			return problem.New(problem.Conflict, fmt.Sprintf("An account can have %d keys. Revoke one that is not needed.", keysMost))
		}
		const ended = ` WHERE owner = ? AND (revoked_at IS NOT NULL OR expires_at <= ?)`
		if _, err := tx.Exec(ctx, `DELETE FROM api_keys`+ended+` AND id NOT IN (SELECT id FROM api_keys`+ended+` ORDER BY id DESC LIMIT ?)`,
			owner, now.UnixMilli(), owner, now.UnixMilli(), endedMost); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO api_keys (id, owner, token_lookup, prefix, name, scopes, created_at, expires_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			k.ID, owner, s.tokenLookup(token), k.Prefix, sealed, strings.Join(scopes, " "), now.UnixMilli(), nullable(expires))
		return err
	}, nil
}

// oneLine reports whether a text has at most so many characters, in one line.
func oneLine(text string, most int) bool {
	return utf8.RuneCountInString(text) <= most && utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

// checkKey returns the scopes once each, in the order of Scopes.
func checkKey(name string, scopes []string, expires, now time.Time) (clean []string, fields []problem.Field) {
	if !oneLine(name, nameMost) {
		fields = append(fields, problem.Field{Location: "name", Message: fmt.Sprintf("must be at most %d characters in one line", nameMost)})
	}
	for _, known := range Scopes() {
		if slices.Contains(scopes, known) {
			clean = append(clean, known)
		}
	}
	unknown := slices.ContainsFunc(scopes, func(s string) bool { return !slices.Contains(clean, s) })
	if unknown || len(clean) == 0 {
		fields = append(fields, problem.Field{Location: "scopes", Message: "must be at least one of " + strings.Join(Scopes(), ", ")})
	}
	if !expires.IsZero() && !expires.After(now) {
		fields = append(fields, problem.Field{Location: "expires_at", Message: "must be in the future"})
	}
	return clean, fields
}

// Keys lists an owner's keys, the newest first, with the newest of those that were
// revoked or expired in the last 30 days: at most keysMost and endedMost.
func (s *Service) Keys(ctx context.Context, owner string) ([]Key, error) {
	return s.keys(ctx, s.db, owner)
}

func (s *Service) keys(ctx context.Context, q db.Querier, owner string) ([]Key, error) {
	var rows []keyRow
	if err := q.Select(ctx, &rows, `SELECT id, owner, prefix, name, scopes, created_at, expires_at, revoked_at, last_used_at
		FROM api_keys WHERE owner = ? ORDER BY id DESC`, owner); err != nil {
		return nil, away(fmt.Errorf("list keys: %w", err))
	}
	keys := make([]Key, 0, len(rows))
	for _, r := range rows {
		name, err := s.vault.Unseal(ctx, owner, r.Name, nameData(r.ID))
		if err != nil {
			return nil, away(fmt.Errorf("list keys: %w", err))
		}
		keys = append(keys, Key{
			ID: r.ID, Prefix: r.Prefix, Name: string(name), Scopes: strings.Fields(r.Scopes),
			CreatedAt: time.UnixMilli(r.CreatedAt).UTC(), ExpiresAt: timeOf(r.ExpiresAt),
			RevokedAt: timeOf(r.RevokedAt), LastUsedAt: timeOf(r.LastUsedAt),
		})
	}
	return keys, nil
}

// RevokeKey ends a key: in this process at once, in others within knownFor. A
// key of somebody else is NotFound; one that is revoked stays as it was.
func (s *Service) RevokeKey(ctx context.Context, owner, id string) error {
	// Before and after: a look-up that read the row before the change must not
	// put it back.
	s.known.forget(id)
	defer s.known.forget(id)
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := s.revokeKey(ctx, tx, owner, id)
		return err
	})
	if err != nil {
		return away(fmt.Errorf("revoke a key: %w", err))
	}
	return nil
}

// revokeKey reports false when the key was revoked already. Its caller has s.known
// forget the key, before and after.
func (s *Service) revokeKey(ctx context.Context, tx *db.Tx, owner, id string) (bool, error) {
	n, err := tx.Exec(ctx, `UPDATE api_keys SET revoked_at = ? WHERE id = ? AND owner = ? AND revoked_at IS NULL`,
		s.clock.Millis(), id, owner)
	if err != nil || n == 1 {
		return n == 1, err
	}
	var mine int
	if err := tx.Get(ctx, &mine, `SELECT count(*) FROM api_keys WHERE id = ? AND owner = ?`, id, owner); err != nil {
		return false, err
	}
	if mine == 0 {
		return false, problem.New(problem.NotFound, "There is no such key.")
	}
	return false, nil
}

// forgetOwner lets nobody in by what was known of this person a moment ago.
func (k *known) forgetOwner(owner string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.turns++
	for lookup, one := range k.keys {
		if one.who.Subject == owner {
			delete(k.keys, lookup)
		}
	}
}

func (s *Service) tokenLookup(token string) string { return s.vault.Lookup("api key", token) }

func nameData(key string) []byte { return vault.Column("api_keys", "name", key) }

func nullable(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMilli(), Valid: !t.IsZero()}
}

func timeOf(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.UnixMilli(n.Int64).UTC()
}
