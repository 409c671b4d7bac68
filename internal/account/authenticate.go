package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

const (
	knownFor  = 2 * time.Second // how long a key revoked elsewhere may still be let in here
	knownMost = 10_000          // keys
)

// Authenticate says whom a token stands for. Malformed, unknown, expired and
// revoked tokens and those of closed accounts get one same Unauthorized. A token
// that was seen in the last two seconds costs no query.
func (s *Service) Authenticate(ctx context.Context, token string) (Principal, error) {
	who, err := s.KeyHolds(ctx, token)
	if err == nil {
		s.uses.mark(who.KeyID, s.clock.Now())
	}
	return who, err
}

// KeyHolds is Authenticate for a request that was let in before: it is no use of
// the key.
func (s *Service) KeyHolds(ctx context.Context, token string) (Principal, error) {
	if !wellFormed(token) {
		return Principal{}, refused()
	}
	now := s.clock.Now() // before the query: the life of what it returns counts from here
	lookup := s.tokenLookup(token)
	one, ok := s.known.get(lookup, now)
	if !ok {
		var err error
		if one, err = s.find(ctx, lookup, now); err != nil {
			return Principal{}, err
		}
	}
	if !one.expires.IsZero() && !one.expires.After(now) {
		return Principal{}, refused()
	}
	who := one.who
	who.Scopes = slices.Clone(who.Scopes) // the cached ones are everybody's
	return who, nil
}

func (s *Service) find(ctx context.Context, lookup string, now time.Time) (knownKey, error) {
	turn := s.known.turn()
	var row struct {
		keyRow
		Role        Role          `db:"role"`
		DoNotSellAt sql.NullInt64 `db:"do_not_sell_at"`
	}
	err := s.db.Get(ctx, &row, `SELECT k.id, k.owner, k.scopes, k.expires_at, k.revoked_at, u.role, u.do_not_sell_at
		FROM api_keys k JOIN users u ON u.id = k.owner WHERE k.token_lookup = ?`, lookup)
	if errors.Is(err, sql.ErrNoRows) {
		return knownKey{}, refused()
	}
	if err != nil {
		return knownKey{}, away(fmt.Errorf("find a key: %w", err))
	}
	if row.RevokedAt.Valid {
		return knownKey{}, refused()
	}
	if err := subject.May(ctx, s.db, row.Owner, subject.Read); err != nil {
		if isRefusal(err) {
			return knownKey{}, refused()
		}
		return knownKey{}, away(err)
	}
	who := Principal{Subject: row.Owner, KeyID: row.ID, Scopes: strings.Fields(row.Scopes), Role: row.Role, DoNotSell: row.DoNotSellAt.Valid}
	if who.Role == NoRole { // a member of staff no longer: the key opens no more than its owner may
		who.Scopes = slices.DeleteFunc(who.Scopes, func(scope string) bool { return scope == ScopeAdmin })
	}
	one := knownKey{
		who:     who,
		expires: timeOf(row.ExpiresAt),
		found:   now,
	}
	s.known.put(lookup, one, turn)
	return one, nil
}

// refused is one answer for every reason, so that it tells nothing about which
// tokens there are.
func refused() error {
	return problem.New(problem.Unauthorized, "The key is not valid.")
}

// known holds keys that were let in, by their lookup, for knownFor.
type known struct {
	mu    sync.Mutex
	keys  map[string]knownKey
	turns uint64 // grows with every forget
}

type knownKey struct {
	who     Principal
	expires time.Time // of the key; zero: never
	found   time.Time
}

func newKnown() *known { return &known{keys: map[string]knownKey{}} }

func (k *known) get(lookup string, now time.Time) (knownKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	one, ok := k.keys[lookup]
	if !ok {
		return knownKey{}, false
	}
	// A negative age: the clock was set back, nobody knows how old it is.
	if age := now.Sub(one.found); age < 0 || age >= knownFor {
		delete(k.keys, lookup)
		return knownKey{}, false
	}
	return one, true
}

// turn is handed to put, which then knows whether a key was revoked while
// another one was read.
func (k *known) turn() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.turns
}

func (k *known) put(lookup string, one knownKey, turn uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if turn != k.turns {
		return
	}
	if len(k.keys) >= knownMost {
		clear(k.keys) // they live for seconds; refilling costs a query each
	}
	k.keys[lookup] = one
}

func (k *known) forget(keyID string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.turns++
	for lookup, one := range k.keys {
		if one.who.KeyID == keyID {
			delete(k.keys, lookup)
		}
	}
}

const (
	usesEvery = time.Minute // so no key's last use is written more often
	usesMost  = 10_000      // keys that wait to be written; more are dropped
	usesBatch = 200         // a transaction
)

// uses gathers the last use of each key until Run writes it.
type uses struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func newUses() *uses { return &uses{last: map[string]time.Time{}} }

func (u *uses) mark(keyID string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.last[keyID]; ok || len(u.last) < usesMost {
		u.last[keyID] = now
	}
}

func (u *uses) take() map[string]time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	last := u.last
	u.last = map[string]time.Time{}
	return last
}

// Run writes when keys were last used and removes what has expired, once a
// minute; uses once more when ctx ends. failed is told of errors; a use that could
// not be written is lost, what could not be removed goes in the next minute.
func (s *Service) Run(ctx context.Context, failed func(error)) {
	tick := time.NewTicker(usesEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.Prune(ctx); err != nil && ctx.Err() == nil {
				failed(err)
			}
		case <-ctx.Done():
		}
		// Also after the end of ctx, but not for long.
		writing, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		if err := s.writeUses(writing); err != nil {
			failed(err)
		}
		stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (s *Service) writeUses(ctx context.Context) error {
	last := s.uses.take()
	ids := make([]string, 0, len(last))
	for id := range last {
		ids = append(ids, id)
	}
	slices.Sort(ids) // two processes lock rows in the same order
	for batch := range slices.Chunk(ids, usesBatch) {
		err := s.db.Tx(ctx, func(tx *db.Tx) error {
			for _, id := range batch {
				at := last[id]
				// Another process may have written a use of the same minute.
				if _, err := tx.Exec(ctx, `UPDATE api_keys SET last_used_at = ? WHERE id = ? AND (last_used_at IS NULL OR last_used_at <= ?)`,
					at.UnixMilli(), id, at.Add(-usesEvery).UnixMilli()); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("write last uses: %w", err)
		}
	}
	return nil
}

const (
	pruneBatch = 500 // rows a transaction, so that SQLite's one writer is soon free again
	pruneMost  = 20  // transactions a table and minute of one process; an attack leaves throttles faster than it can go on
)

// Prune removes what has expired: pending sign-ups with their keys, mailed
// links, challenges, throttles that are even again, browsers that nobody has used
// for long, and keys that ended long ago. Any number of processes may do it at once.
func (s *Service) Prune(ctx context.Context) error {
	now := s.clock.Now()
	for _, old := range []struct {
		table, key, column string
		before             time.Time
	}{
		{"signups", "id", "expires_at", now},
		{"mailed_links", "id", "expires_at", now},
		{"passkey_challenges", "id", "expires_at", now},
		{"throttles", "bucket", "arrival", now},
		{"sessions", "id", "last_used_at", now.Add(-unusedFor)},
		{"api_keys", "id", "revoked_at", now.Add(-endedFor)},
		{"api_keys", "id", "expires_at", now.Add(-endedFor)},
	} {
		for range pruneMost {
			gone, err := s.pruneSome(ctx, old.table, old.key, old.column, old.before.UnixMilli())
			if err != nil {
				return fmt.Errorf("remove expired %s: %w", old.table, err)
			}
			if old.table == "signups" {
				// After the commit: a key destroyed first would leave a row that
				// nobody can read if the commit failed.
				s.discard(ctx, gone...)
			}
			if len(gone) < pruneBatch {
				break
			}
		}
	}
	return nil
}

// pruneSome removes one batch. None of these tables has records that a hold can
// keep: see subject.Records.
func (s *Service) pruneSome(ctx context.Context, table, key, column string, before int64) (gone []string, err error) {
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		// Asked for twice: a row that was waited for may have been used meanwhile.
		gone = nil
		return tx.Select(ctx, &gone, `DELETE FROM `+table+` WHERE `+column+` <= ? AND `+key+` IN
			(SELECT `+key+` FROM `+table+` WHERE `+column+` <= ? LIMIT ?`+db.SkipLocked(tx)+`) RETURNING `+key, before, before, pruneBatch)
	})
	return gone, err
}
