package webhook

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// descriptionMost is how many characters a description has at most.
const descriptionMost = 200

// Why an endpoint is disabled.
const (
	ByUser  = "user"
	Gone    = "gone"    // the receiver answered 410
	Failing = "failing" // for five days nothing but failure

	// Restored is that a restored backup has it as it was before its owner changed it.
	Restored = "restored"
)

// An Endpoint as its owner sees it; its secret was shown once.
type Endpoint struct {
	ID            string
	URL           string
	Description   string
	Events        []string // empty: all
	IncludePrompt bool
	CreatedAt     time.Time
	ChangedAt     time.Time
	DisabledAt    time.Time // zero: it is not
	DisabledWhy   string
	FailingSince  time.Time // zero: the last attempt succeeded
	OldSecret     time.Time // until when the secret before signs too; zero: there is none
}

// A Change says what of an endpoint is to be another; nil: it stays.
type Change struct {
	URL           *string
	Description   *string
	Events        *[]string
	IncludePrompt *bool
	Enabled       *bool
}

// row is one endpoint.
type row struct {
	ID            string        `db:"id"`
	Owner         string        `db:"owner"`
	Once          int           `db:"once"`
	URL           []byte        `db:"url"`
	Description   []byte        `db:"description"`
	Secret        []byte        `db:"secret"`
	OldSecret     []byte        `db:"old_secret"`
	OldUntil      sql.NullInt64 `db:"old_until"`
	Events        string        `db:"events"`
	IncludePrompt int           `db:"include_prompt"`
	CreatedAt     int64         `db:"created_at"`
	ChangedAt     int64         `db:"changed_at"`
	DisabledAt    sql.NullInt64 `db:"disabled_at"`
	DisabledWhy   string        `db:"disabled_why"`
	Failures      int64         `db:"failures"`
	FailingSince  sql.NullInt64 `db:"failing_since"`
	OpenUntil     sql.NullInt64 `db:"open_until"`
	AskedUntil    int64         `db:"asked_until"`
}

// told is what decides what leaves, and for where.
type told struct {
	url, events string
	prompt      int
	disabled    bool
}

func (r row) told() told { return told{string(r.URL), r.Events, r.IncludePrompt, r.DisabledAt.Valid} }

const selectRow = `SELECT id, owner, once, url, description, secret, old_secret, old_until, events, include_prompt, created_at, changed_at,
	disabled_at, disabled_why, failures, failing_since, open_until, asked_until FROM webhook_endpoints `

// randomSecret is one that receivers check signatures with.
func randomSecret() (string, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return "", err
	}
	return secretPrefix + base64.StdEncoding.EncodeToString(key), nil
}

const secretPrefix = "whsec_"

func (s *Service) seal(ctx context.Context, owner, table, column, id, text string) ([]byte, error) {
	sealed, err := s.Vault.Seal(ctx, owner, []byte(text), vault.Column(table, column, id))
	if errors.Is(err, vault.ErrNoKey) || errors.Is(err, vault.ErrDestroyed) {
		return nil, subject.NoAccount()
	}
	return sealed, err
}

func (s *Service) unseal(ctx context.Context, owner, table, column, id string, sealed []byte) (string, error) {
	if sealed == nil {
		return "", nil
	}
	plain, err := s.Vault.Unseal(ctx, owner, sealed, vault.Column(table, column, id))
	return string(plain), err
}

func (s *Service) open(ctx context.Context, r row, column string, sealed []byte) (string, error) {
	return s.unseal(ctx, r.Owner, "webhook_endpoints", column, r.ID, sealed)
}

// check says what is wrong with an address and its events before anything is made of
// them; among is Told or ToldOnce.
func (s *Service) check(url *string, events *[]string, among []events.Type, names [2]string) (wrong []problem.Field) {
	if url != nil {
		if why := s.Client.Check(*url); why != "" {
			wrong = append(wrong, problem.Field{Location: names[0], Message: why})
		}
	}
	if events != nil && slices.ContainsFunc(*events, func(e string) bool { return !contains(among, e) }) {
		all := make([]string, len(among))
		for i, e := range among {
			all[i] = string(e)
		}
		wrong = append(wrong, problem.Field{Location: names[1], Message: "must be of " + strings.Join(all, ", ")})
	}
	return wrong
}

func contains(among []events.Type, e string) bool { return slices.Contains(among, events.Type(e)) }

// CheckOnce is the check of what is given with one generation; InvalidRequest.
func (s *Service) CheckOnce(url string, told []string) error {
	var wrong []problem.Field
	if url == "" {
		if len(told) > 0 {
			wrong = []problem.Field{{Location: "webhook_events", Message: "needs webhook_url"}}
		}
	} else {
		wrong = s.check(&url, &told, ToldOnce, [2]string{"webhook_url", "webhook_events"})
	}
	if len(wrong) > 0 {
		return problem.Invalid(wrong...)
	}
	return nil
}

// apply checks a change and makes it on a row.
func (s *Service) apply(ctx context.Context, r *row, c Change) error {
	wrong := s.check(c.URL, c.Events, Told, [2]string{"url", "events"})
	if d := c.Description; d != nil && (utf8.RuneCountInString(*d) > descriptionMost || !utf8.ValidString(*d) || strings.ContainsFunc(*d, unicode.IsControl)) {
		wrong = append(wrong, problem.Field{Location: "description", Message: fmt.Sprintf("must be at most %d characters in one line", descriptionMost)})
	}
	if len(wrong) > 0 {
		return problem.Invalid(wrong...)
	}
	var err error
	if c.URL != nil {
		if r.URL, err = s.seal(ctx, r.Owner, "webhook_endpoints", "url", r.ID, *c.URL); err != nil {
			return err
		}
	}
	if c.Description != nil {
		if r.Description, err = s.seal(ctx, r.Owner, "webhook_endpoints", "description", r.ID, *c.Description); err != nil {
			return err
		}
	}
	if c.Events != nil {
		var kept []string
		for _, e := range Told { // once each, in one order
			if slices.Contains(*c.Events, string(e)) {
				kept = append(kept, string(e))
			}
		}
		r.Events = strings.Join(kept, " ")
	}
	if c.IncludePrompt != nil {
		r.IncludePrompt = flag(*c.IncludePrompt)
	}
	return nil
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Create makes an endpoint and returns its secret, which nobody can be shown again.
// It returns InvalidRequest, Conflict when there are 20 already, and Forbidden while
// the account is restricted or suspended.
func (s *Service) Create(ctx context.Context, owner string, c Change) (Endpoint, string, error) {
	now := s.Clock.Now()
	r := row{ID: db.NewID("whe", now), Owner: owner, CreatedAt: now.UnixMilli(), ChangedAt: now.UnixMilli()}
	if c.URL == nil {
		c.URL = new(string)
	}
	if err := s.apply(ctx, &r, c); err != nil {
		return Endpoint{}, "", away(err)
	}
	secret, err := s.newSecret(ctx, &r)
	if err != nil {
		return Endpoint{}, "", away(err)
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.Enter(ctx, tx, owner, subject.Deliver); err != nil {
			return err
		}
		var n int
		if err := tx.Get(ctx, &n, `SELECT count(*) FROM webhook_endpoints WHERE owner = ? AND once = 0`, owner); err != nil {
			return err
		}
		if n >= endpointsMost {
			return problem.New(problem.Conflict, fmt.Sprintf("An account can have %d webhooks. Delete one that is not needed.", endpointsMost))
		}
		return s.add(ctx, tx, r)
	})
	if err != nil {
		return Endpoint{}, "", away(err)
	}
	e, err := s.endpoint(ctx, r)
	return e, secret, away(err)
}

// newSecret gives a row a secret, and returns it.
func (s *Service) newSecret(ctx context.Context, r *row) (string, error) {
	secret, err := randomSecret()
	if err != nil {
		return "", err
	}
	r.Secret, err = s.seal(ctx, r.Owner, "webhook_endpoints", "secret", r.ID, secret)
	return secret, err
}

func (s *Service) add(ctx context.Context, tx *db.Tx, r row) error {
	_, err := tx.Exec(ctx, `INSERT INTO webhook_endpoints (id, owner, once, url, description, secret, events, include_prompt, created_at, changed_at, disabled_why, failures)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', 0)`,
		r.ID, r.Owner, r.Once, r.URL, r.Description, r.Secret, r.Events, r.IncludePrompt, r.CreatedAt, r.ChangedAt)
	return err
}

// endpoint opens what its owner sees of a row.
func (s *Service) endpoint(ctx context.Context, r row) (Endpoint, error) {
	url, err := s.open(ctx, r, "url", r.URL)
	if err != nil {
		return Endpoint{}, fmt.Errorf("open a webhook: %w", err)
	}
	description, err := s.open(ctx, r, "description", r.Description)
	if err != nil {
		return Endpoint{}, fmt.Errorf("open a webhook: %w", err)
	}
	e := Endpoint{ID: r.ID, URL: url, Description: description, Events: strings.Fields(r.Events), IncludePrompt: r.IncludePrompt == 1,
		CreatedAt: moment(r.CreatedAt), ChangedAt: moment(r.ChangedAt), DisabledAt: moment(r.DisabledAt.Int64), DisabledWhy: r.DisabledWhy,
		FailingSince: moment(r.FailingSince.Int64)}
	if r.OldUntil.Int64 > s.Clock.Millis() {
		e.OldSecret = moment(r.OldUntil.Int64)
	}
	return e, nil
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Endpoints lists an owner's endpoints, the newest first.
func (s *Service) Endpoints(ctx context.Context, owner string) ([]Endpoint, error) {
	var rows []row
	if err := s.DB.Select(ctx, &rows, selectRow+`WHERE owner = ? AND once = 0 ORDER BY id DESC`, owner); err != nil {
		return nil, away(err)
	}
	list := make([]Endpoint, len(rows))
	for i, r := range rows {
		var err error
		if list[i], err = s.endpoint(ctx, r); err != nil {
			return nil, away(err)
		}
	}
	return list, nil
}

// Endpoint finds one of an owner's; NotFound for anybody else's.
func (s *Service) Endpoint(ctx context.Context, owner, id string) (Endpoint, error) {
	r, err := s.find(ctx, s.DB, owner, id, "AND once = 0")
	if err != nil {
		return Endpoint{}, away(err)
	}
	e, err := s.endpoint(ctx, r)
	return e, away(err)
}

func (s *Service) find(ctx context.Context, q db.Querier, owner, id, more string) (row, error) {
	var r row
	err := q.Get(ctx, &r, selectRow+`WHERE id = ? AND owner = ? `+more, id, owner)
	if errors.Is(err, sql.ErrNoRows) {
		return r, errNoEndpoint
	}
	return r, err
}

// Update changes an endpoint. Enabling one that was disabled begins anew: its
// failures are forgotten.
func (s *Service) Update(ctx context.Context, owner, id string, c Change) (Endpoint, error) {
	var r row
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		purpose := subject.Read
		if c.URL != nil || c.Enabled != nil && *c.Enabled { // data is to go somewhere
			purpose = subject.Deliver
		}
		if err := subject.Enter(ctx, tx, owner, purpose); err != nil {
			return err
		}
		var err error
		if r, err = s.find(ctx, tx, owner, id, "AND once = 0"+db.ForUpdate(tx)); err != nil {
			return err
		}
		was := r.told()
		if err := s.apply(ctx, &r, c); err != nil {
			return err
		}
		r.ChangedAt = s.after(r.ChangedAt)
		switch {
		case c.Enabled != nil && !*c.Enabled && !r.DisabledAt.Valid:
			r.DisabledAt, r.DisabledWhy = sql.NullInt64{Int64: r.ChangedAt, Valid: true}, ByUser
		case c.Enabled != nil && *c.Enabled:
			if r.Failures > 0 {
				if err := s.charge(ctx, tx, r); err != nil {
					return err
				}
				if err := s.recall(ctx, tx, r.ID, r.OpenUntil.Int64); err != nil {
					return err
				}
			}
			r.DisabledAt, r.DisabledWhy = sql.NullInt64{}, ""
			r.Failures, r.FailingSince, r.OpenUntil = 0, sql.NullInt64{}, sql.NullInt64{}
		}
		_, err = tx.Exec(ctx, `UPDATE webhook_endpoints SET url = ?, description = ?, events = ?, include_prompt = ?, changed_at = ?, disabled_at = ?,
			disabled_why = ?, failures = ?, failing_since = ?, open_until = ? WHERE id = ?`,
			r.URL, r.Description, r.Events, r.IncludePrompt, r.ChangedAt, r.DisabledAt, r.DisabledWhy, r.Failures, r.FailingSince, r.OpenUntil, r.ID)
		if was != r.told() {
			s.tellEnded(ctx, tx, owner, before(r))
		}
		return err
	})
	if err != nil {
		return Endpoint{}, away(err)
	}
	e, err := s.endpoint(ctx, r)
	return e, away(err)
}

// Delete removes an endpoint, and with it its secrets. A job removes its log: that may be
// long.
func (s *Service) Delete(ctx context.Context, owner, id string) error {
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := s.find(ctx, tx, owner, id, "AND once = 0"+db.ForUpdate(tx)); err != nil {
			return err
		}
		s.tellEnded(ctx, tx, owner, id)
		return s.remove(ctx, tx, owner, id)
	})
	return away(err)
}

// remove deletes an endpoint at once; its log goes by a job.
func (s *Service) remove(ctx context.Context, tx *db.Tx, owner, id string) error {
	tx.AtLast("job_turns "+jobs.Housekeeping+" "+owner, func() error {
		_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindForget, Party: owner, Ref: id})
		return err
	})
	_, err := tx.Exec(ctx, `DELETE FROM webhook_endpoints WHERE id = ?`, id)
	return err
}

// after is now, and later than a change before: the newest is known by its time.
func (s *Service) after(changed int64) int64 { return max(s.Clock.Millis(), changed+1) }

// stopped is the code of jobs whose endpoint is gone.
const stopped = "webhook_deleted"

// forget calls off what waits for an endpoint that was deleted, and removes its log.
func (s *Service) forget(ctx context.Context, run *jobs.Run) error {
	for _, piece := range []func(ctx context.Context, tx *db.Tx, endpoint string) (int, error){
		func(ctx context.Context, tx *db.Tx, endpoint string) (int, error) {
			return s.Queue.Drop(ctx, tx, endpoint, stopped)
		},
		s.forgetSome,
	} {
		for n := 1; n > 0; {
			err := s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
				n, err = piece(ctx, tx, run.Ref)
				return err
			})
			if err != nil {
				return jobs.Retry("internal", err)
			}
		}
	}
	return nil
}

func (s *Service) forgetSome(ctx context.Context, tx *db.Tx, endpoint string) (int, error) {
	var ids []string
	err := tx.Select(ctx, &ids, `SELECT id FROM webhook_deliveries WHERE endpoint = ? ORDER BY id LIMIT ?`+db.ForUpdate(tx), endpoint, batch)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	return s.DropDeliveries(ctx, tx, ids)
}

// Rotate gives an endpoint another secret and returns it. The one before signs too
// for 24 hours; one before that no more.
func (s *Service) Rotate(ctx context.Context, owner, id string) (Endpoint, string, error) {
	var r row
	var secret string
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		var err error
		if r, err = s.find(ctx, tx, owner, id, db.ForUpdate(tx)); err != nil {
			return err
		}
		secret, err = s.rotate(ctx, tx, &r)
		return err
	})
	if err != nil {
		return Endpoint{}, "", away(err)
	}
	e, err := s.endpoint(ctx, r)
	return e, secret, away(err)
}

func (s *Service) rotate(ctx context.Context, tx *db.Tx, r *row) (string, error) {
	old, err := s.open(ctx, *r, "secret", r.Secret)
	if err != nil {
		return "", err
	}
	if r.OldSecret, err = s.seal(ctx, r.Owner, "webhook_endpoints", "old_secret", r.ID, old); err != nil {
		return "", err
	}
	secret, err := s.newSecret(ctx, r)
	if err != nil {
		return "", err
	}
	now := s.Clock.Now()
	r.OldUntil, r.ChangedAt = sql.NullInt64{Int64: now.Add(rotating).UnixMilli(), Valid: true}, s.after(r.ChangedAt)
	s.tellEnded(ctx, tx, r.Owner, before(*r))
	_, err = tx.Exec(ctx, `UPDATE webhook_endpoints SET secret = ?, old_secret = ?, old_until = ?, changed_at = ? WHERE id = ?`,
		r.Secret, r.OldSecret, r.OldUntil, r.ChangedAt, r.ID)
	return secret, err
}

// A OnceSecret signs what goes to addresses that were given with one generation.
type OnceSecret struct {
	ID        string // of the endpoint that stands for them, by which their log is found
	Secret    string
	OldSecret time.Time // until when the secret before signs too; zero: there is none
}

// OnceSecret is the owner's, made when it is first asked for; with rotate another.
func (s *Service) OnceSecret(ctx context.Context, owner string, rotate bool) (o OnceSecret, err error) {
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		r, err := s.once(ctx, tx, owner)
		if err != nil {
			return err
		}
		if rotate {
			_, err = s.rotate(ctx, tx, &r)
		}
		if err != nil {
			return err
		}
		o = OnceSecret{ID: r.ID}
		if r.OldUntil.Int64 > s.Clock.Millis() {
			o.OldSecret = moment(r.OldUntil.Int64)
		}
		o.Secret, err = s.open(ctx, r, "secret", r.Secret)
		return err
	})
	return o, away(err)
}

// once finds or makes the endpoint that stands for addresses of one generation each.
// It keeps the owner's row: two are not made side by side.
func (s *Service) once(ctx context.Context, tx *db.Tx, owner string) (row, error) {
	if err := subject.Enter(ctx, tx, owner, subject.Read); err != nil {
		return row{}, err
	}
	var r row
	err := tx.Get(ctx, &r, selectRow+`WHERE owner = ? AND once = 1`, owner)
	if !errors.Is(err, sql.ErrNoRows) {
		return r, err
	}
	now := s.Clock.Now()
	r = row{ID: db.NewID("whe", now), Owner: owner, Once: 1, CreatedAt: now.UnixMilli(), ChangedAt: now.UnixMilli()}
	if _, err := s.newSecret(ctx, &r); err != nil {
		return row{}, err
	}
	return r, s.add(ctx, tx, r)
}
