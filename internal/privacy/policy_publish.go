package privacy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
)

type published struct {
	Version      string `db:"version"`
	InForceSince int64  `db:"in_force_since"`
	Fingerprint  string `db:"fingerprint"`
}

func (p published) String() string {
	return "version " + p.Version + " of " + time.UnixMilli(p.InForceSince).UTC().Format(time.DateOnly)
}

// newestPolicy is the one in force; nil: none was published yet.
func newestPolicy(ctx context.Context, q db.Querier) (*published, error) {
	var p published
	err := q.Get(ctx, &p, `SELECT version, in_force_since, fingerprint FROM policies ORDER BY in_force_since DESC, published_at DESC LIMIT 1`)
	if isNone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the policy in force: %w", err)
	}
	return &p, nil
}

func (p Policy) published() (published, error) {
	sum, err := p.fingerprint()
	return published{Version: p.Version, InForceSince: p.Date.UnixMilli(), Fingerprint: sum}, err
}

// refused says why a policy is not to be applied where another one is in force, and how
// to mend it. It returns the one in force; nil: none.
func (p published) refused(ctx context.Context, q db.Querier) (*published, error) {
	newest, err := newestPolicy(ctx, q)
	if err != nil || newest == nil || *newest == p {
		return newest, err
	}
	switch {
	case newest.Version == p.Version:
		return newest, fmt.Errorf("version %s is in force and says something else than this file: name the file as it was published, or give the changed file a new version and a later date", newest.Version)
	case p.InForceSince <= newest.InForceSince:
		return newest, fmt.Errorf("%s is in force, and this is %s: name the file of version %s, or give this one a new version and a later date", newest, p, newest.Version)
	}
	var used int
	if err := q.Get(ctx, &used, `SELECT count(*) FROM policies WHERE version = ?`, p.Version); err != nil {
		return newest, fmt.Errorf("look for a version of the policy: %w", err)
	}
	if used > 0 {
		return newest, fmt.Errorf("%s is in force, and version %s was before it: name the file of version %s, or give this one a new version", newest, p.Version, newest.Version)
	}
	return newest, nil
}

// CheckPolicy says what Publish would do, and does nothing: the error is why a process with
// this policy would not start. isNew: it would be put in force.
func CheckPolicy(ctx context.Context, q db.Querier, p Policy) (isNew bool, err error) {
	ours, err := p.published()
	if err != nil {
		return false, err
	}
	newest, err := ours.refused(ctx, q)
	return err == nil && (newest == nil || *newest != ours), err
}

// Publish puts our policy in force if it is a new version with a later date, and
// refuses one that is not that in force: its windows would delete what was promised
// to be kept. Any number of processes may do it at once.
func (s *Service) Publish(ctx context.Context) error {
	ours, err := s.Policy.published()
	if err != nil {
		return err
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		if tx.Dialect() == db.Postgres { // one after the other, and readers go on
			if _, err := tx.Exec(ctx, `LOCK TABLE policies IN SHARE ROW EXCLUSIVE MODE`); err != nil {
				return fmt.Errorf("publish the policy: %w", err)
			}
		}
		if newest, err := ours.refused(ctx, tx); err != nil || newest != nil && *newest == ours {
			return err
		}
		now := s.Clock.Now()
		if _, err := tx.Exec(ctx, `INSERT INTO policies (version, in_force_since, fingerprint, published_at) VALUES (?, ?, ?, ?)`,
			ours.Version, ours.InForceSince, ours.Fingerprint, now.UnixMilli()); err != nil {
			return fmt.Errorf("publish the policy: %w", err)
		}
		if s.Events == nil {
			return nil
		}
		return s.Events.Append(ctx, tx, events.Event{Type: events.PolicyPublished, Ref: ours.Version, At: now,
			Facts: map[events.Fact]string{events.Policy: ours.Version, events.Date: s.Policy.Date.Format(time.DateOnly)}})
	})
}

// checkInForce refuses work by our policy once another process has published a
// newer one.
func (s *Service) checkInForce(ctx context.Context) error {
	newest, err := newestPolicy(ctx, s.DB)
	if err != nil {
		return err
	}
	if newest != nil && newest.InForceSince > s.Policy.Date.UnixMilli() {
		return fmt.Errorf("policy %s is in force, and this process still has version %s", newest, s.Policy.Version)
	}
	return nil
}

// fingerprint is a hash of what the policy says, whatever the comments and the order
// of its file. What is left empty does not count, so that a release which knows more
// fields finds the same.
func (p Policy) fingerprint() (string, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("fingerprint of the policy: %w", err)
	}
	var all any
	if err := json.Unmarshal(text, &all); err != nil {
		return "", fmt.Errorf("fingerprint of the policy: %w", err)
	}
	if text, err = json.Marshal(filled(all)); err != nil {
		return "", fmt.Errorf("fingerprint of the policy: %w", err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// filled is a value of JSON without what is empty; nil when nothing is left.
func filled(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key, one := range v {
			if v[key] = filled(one); v[key] == nil {
				delete(v, key)
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			v[i] = filled(v[i])
		}
		if len(v) == 0 {
			return nil
		}
	case string:
		if v == "" || v == "0001-01-01T00:00:00Z" { // no date
			return nil
		}
	}
	return value
}
