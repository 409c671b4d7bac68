package generate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/picture"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// maxSeed is the largest seed every engine takes.
const maxSeed = 1<<32 - 1

// idempotentFor is how long an Idempotency-Key is remembered.
const idempotentFor = 24 * time.Hour

// Submit accepts a request: checked against the model's and the owner's limits,
// sealed, and written with its job and event in one transaction. With an
// idempotency key that was used before for the same body it returns what that
// made, and replayed is true.
func (s *Service) Submit(ctx context.Context, owner string, r Request, i *Idempotency) (g Generation, replayed bool, err error) {
	model, err := s.complete(&r)
	if err == nil {
		err = s.checkRules(r)
	}
	if err == nil && !s.Clock.Plausible() { // nobody knows when it would end
		err = problem.New(problem.Unavailable, "Nothing new is accepted until the service's clocks agree.").After(time.Minute)
	}
	if err != nil {
		// What was accepted once stays accepted, whatever the rules say now.
		if g, known := s.replay(ctx, owner, i); known {
			return g, true, nil
		}
		return Generation{}, false, err
	}
	now := s.Clock.Now()
	if s.DB.Dialect() == db.SQLite && i == nil {
		// Its one writer also renews leases: what is refused must not queue for it.
		if err := s.checkLimits(ctx, s.DB, owner, now); err != nil {
			return Generation{}, false, away(err)
		}
	}
	id, expires := db.NewID("gen", now), now.AddDate(0, 0, r.RetentionDays)
	plain, err := json.Marshal(r)
	if err != nil {
		return Generation{}, false, err
	}
	sealed, err := s.Vault.Seal(ctx, owner, plain, requestData(id))
	if err != nil {
		if refused := subject.May(ctx, s.DB, owner, subject.Generate); refused != nil {
			err = refused // that there is no key any more has this reason
		}
		return Generation{}, false, away(err)
	}
	var first string // of an earlier request with the same key
	var job jobs.Job
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		// It also keeps the owner's row, so that nobody counts beside us.
		if err := subject.Enter(ctx, tx, owner, subject.Generate); err != nil {
			return err
		}
		if i != nil {
			var err error
			if first, err = s.remember(ctx, tx, owner, id, i); err != nil || first != "" {
				return err
			}
		}
		if err := s.checkLimits(ctx, tx, owner, now); err != nil {
			return err
		}
		var err error
		job, err = s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindRun, Lane: model.Lane, Party: owner, Ref: id, Cost: cost(r)})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO generations (id, owner, job_id, model, seed, request, status, error_code, attempts,
				created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
			VALUES (?, ?, ?, ?, ?, ?, '', '', 0, ?, 0, 0, ?, 0, '', 0)`,
			id, owner, job.ID, model.ID, *r.Seed, sealed, now.UnixMilli(), expires.UnixMilli())
		if err != nil {
			return err
		}
		return s.Events.Append(ctx, tx, events.Event{Type: events.GenerationQueued, Subject: owner, Ref: id, At: now, Sequence: row{}.sequence(), Facts: r.Webhook.facts()})
	})
	if err != nil {
		return Generation{}, false, away(err)
	}
	if first != "" {
		g, err := s.Get(ctx, owner, first)
		return g, true, err
	}
	// All of it is known: only its place in the queue is asked for.
	g = Generation{ID: id, Status: Queued, Request: r, Seed: *r.Seed, CreatedAt: now, ExpiresAt: expires,
		Sequence: row{}.sequence(), Progress: Progress{Images: r.N, Steps: r.Steps}}
	if g.Queue, err = s.queue(ctx, job); err != nil {
		s.Log.WarnContext(ctx, "could not tell a generation's place in the queue", "error", err)
		err = nil // it is accepted
	}
	return g, false, err
}

// facts are for whoever makes the calls, who checks them.
func (w Webhook) facts() map[events.Fact]string {
	if w.URL == "" {
		return nil
	}
	return map[events.Fact]string{events.WebhookURL: w.URL, events.WebhookEvents: strings.Join(w.Events, " ")}
}

func (s *Service) checkRules(r Request) error {
	err := errors.Join(s.Rules.Check("body.prompt", r.Prompt), s.Rules.Check("body.negative_prompt", r.NegativePrompt))
	if err != nil {
		s.Metrics.refused.Inc()
	}
	return err
}

// replay finds what an idempotency key has made of the same body.
func (s *Service) replay(ctx context.Context, owner string, i *Idempotency) (Generation, bool) {
	if i == nil || i.Fresh {
		return Generation{}, false
	}
	key, body := s.lookups(owner, i)
	var id string
	err := s.DB.Get(ctx, &id, `SELECT generation_id FROM idempotency_keys WHERE owner = ? AND key_lookup = ? AND body_lookup = ? AND created_at >= ?`,
		owner, key, body, s.Clock.Millis()-idempotentFor.Milliseconds())
	if err != nil {
		return Generation{}, false
	}
	g, err := s.Get(ctx, owner, id)
	return g, err == nil
}

func (s *Service) lookups(owner string, i *Idempotency) (key, body string) {
	return s.Vault.Lookup("idempotency-key", owner+"\x00"+i.Key), s.Vault.Lookup("idempotency-body", string(i.Body))
}

// remember keeps which generation a key makes; it returns the earlier one when
// the key is known.
func (s *Service) remember(ctx context.Context, tx *db.Tx, owner, id string, i *Idempotency) (string, error) {
	key, body := s.lookups(owner, i)
	now := s.Clock.Millis()
	// A key that has outlived its day is free again; the upsert takes it over.
	free := now - idempotentFor.Milliseconds()
	if i.Fresh {
		free = math.MaxInt64
	}
	n, err := tx.Exec(ctx, `INSERT INTO idempotency_keys (owner, key_lookup, body_lookup, generation_id, created_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (owner, key_lookup) DO UPDATE SET body_lookup = excluded.body_lookup, generation_id = excluded.generation_id,
			created_at = excluded.created_at WHERE idempotency_keys.created_at < ?`,
		owner, key, body, id, now, free)
	if err != nil || n == 1 {
		return "", err
	}
	var known struct {
		Body       string `db:"body_lookup"`
		Generation string `db:"generation_id"`
	}
	if err := tx.Get(ctx, &known, `SELECT body_lookup, generation_id FROM idempotency_keys WHERE owner = ? AND key_lookup = ?`, owner, key); err != nil {
		return "", err
	}
	if known.Body != body {
		return "", problem.New(problem.IdempotencyMismatch, "This Idempotency-Key was used with another body.")
	}
	return known.Generation, nil
}

func (s *Service) checkLimits(ctx context.Context, q db.Querier, owner string, now time.Time) error {
	queued, err := jobs.Unstarted(ctx, q, KindRun, owner, s.QueuedLimit)
	if err != nil {
		return err
	}
	if queued >= s.QueuedLimit {
		return problem.New(problem.QueueFull,
			fmt.Sprintf("You have %d generations waiting, which is the limit. Wait for one, or cancel one.", s.QueuedLimit)).After(10 * time.Second)
	}
	midnight := now.Truncate(24 * time.Hour)
	var today int
	err = q.Get(ctx, &today, `SELECT count(*) FROM (SELECT 1 FROM generations WHERE owner = ? AND id >= ? LIMIT ?) AS counted`,
		owner, db.FloorID("gen", midnight), s.DailyLimit)
	if err != nil {
		return err
	}
	if today >= s.DailyLimit {
		return problem.New(problem.DailyLimit,
			fmt.Sprintf("You have asked for %d generations today, which is the limit.", s.DailyLimit)).After(midnight.Add(24 * time.Hour).Sub(now))
	}
	return nil
}

// cost is what a turn is charged: steps × megapixels × images, in thousandths.
func cost(r Request) int64 {
	return max(int64(r.Steps)*int64(r.Width)*int64(r.Height)*int64(r.N)/1000, 1)
}

// complete fills in the model's defaults and checks every limit. It names all
// that is wrong at once.
func (s *Service) complete(r *Request) (engine.Model, error) {
	var wrong []problem.Field
	bad := func(field, format string, args ...any) {
		wrong = append(wrong, problem.Field{Location: "body." + field, Message: fmt.Sprintf(format, args...)})
	}
	if r.Model == "" {
		r.Model = s.usual(r.Defaults)
	}
	m, known := s.models[r.Model]
	if known {
		r.prefer(m)
	} else {
		bad("model", "is not a model of this service; GET /v1/models lists them")
		return engine.Model{}, problem.Invalid(wrong...)
	}
	checkText(bad, "prompt", r.Prompt, m.MaxPromptChars, true)
	checkText(bad, "negative_prompt", r.NegativePrompt, m.MaxPromptChars, false)
	if r.NegativePrompt != "" && !m.NegativePrompt {
		bad("negative_prompt", "has no effect with this model; leave it out")
	}
	within := func(field string, value *int, standard, low, high int) {
		if *value == 0 {
			*value = standard
		}
		if *value < low || *value > high {
			bad(field, "must be from %d to %d", low, high)
		}
	}
	within("n", &r.N, 1, 1, m.MaxImages)
	within("width", &r.Width, m.DefaultWidth, m.MinSide, m.MaxSide)
	within("height", &r.Height, m.DefaultHeight, m.MinSide, m.MaxSide)
	bounded := r.Width <= m.MaxSide && r.Height <= m.MaxSide
	for _, side := range []struct {
		field string
		value int
	}{{"width", r.Width}, {"height", r.Height}} {
		if m.SideMultiple > 1 && side.value%m.SideMultiple != 0 {
			bad(side.field, "must be a multiple of %d", m.SideMultiple)
		}
	}
	if bounded && m.MaxPixels > 0 && r.Width*r.Height > m.MaxPixels {
		bad("width", "times height must be at most %d pixels", m.MaxPixels)
	}
	within("steps", &r.Steps, m.DefaultSteps, 1, m.MaxSteps)
	if r.Guidance == nil {
		r.Guidance = &m.DefaultGuidance
	}
	if g := *r.Guidance; g != m.DefaultGuidance && (!(g >= 0) || g > m.MaxGuidance) { // the negation also finds NaN
		bad("guidance", "must be from 0 to %g", m.MaxGuidance)
	}
	further := int64(min(max(r.N, 1), m.MaxImages) - 1) // images, each with the next seed
	if r.Seed == nil {
		seed := rand.Int64N(maxSeed - further + 1) //nolint:gosec // a seed is no secret
		r.Seed = &seed
	}
	if *r.Seed < 0 || *r.Seed > maxSeed-further {
		bad("seed", "must be from 0 to %d, less the number of further images", int64(maxSeed))
	}
	if r.Format == "" {
		r.Format = picture.PNG
	}
	if !picture.Writes(r.Format) {
		bad("format", "must be png, jpeg or webp")
	}
	if r.Quality < 0 || r.Quality > 100 {
		bad("quality", "must be from 1 to 100")
	}
	within("retention_days", &r.RetentionDays, s.RetentionDays, 1, s.RetentionDays)
	if len(r.Metadata) > 16 {
		bad("metadata", "must have at most 16 entries")
	}
	for k, v := range r.Metadata {
		if k == "" || utf8.RuneCountInString(k) > 64 || utf8.RuneCountInString(v) > 512 ||
			!clean(k) || !clean(v) || strings.ContainsFunc(k+v, unicode.IsControl) {
			bad("metadata", "has keys of 1 to 64 and values of at most 512 characters, without control characters")
			break
		}
	}
	if len(wrong) > 0 {
		return engine.Model{}, problem.Invalid(wrong...)
	}
	return m, nil
}

// prefer fills in from the person's preferences what the request leaves out and
// the model can do.
func (r *Request) prefer(m engine.Model) {
	d := r.Defaults
	fits := func(side int) bool {
		return side >= m.MinSide && side <= m.MaxSide && (m.SideMultiple <= 1 || side%m.SideMultiple == 0)
	}
	if r.Width == 0 && r.Height == 0 && fits(d.Width) && fits(d.Height) && (m.MaxPixels == 0 || d.Width*d.Height <= m.MaxPixels) {
		r.Width, r.Height = d.Width, d.Height
	}
	if r.N == 0 && d.N <= m.MaxImages {
		r.N = d.N
	}
	if r.Format == "" && picture.Writes(d.Format) {
		r.Format = d.Format
	}
}

func checkText(bad func(string, string, ...any), field, text string, limit int, needed bool) {
	switch {
	case !clean(text):
		bad(field, "must be valid UTF-8 without NUL and without replacement characters")
	case needed && strings.TrimFunc(text, invisible) == "":
		bad(field, "must not be blank")
	case utf8.RuneCountInString(text) > limit:
		bad(field, "must have at most %d characters", limit)
	}
}

func clean(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsAny(s, "\x00\uFFFD")
}

// invisible runes leave no ink: alone they are a blank prompt, and within a word
// they would hide it from the operator's rules.
func invisible(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || r == '\u2800' || // the empty Braille pattern
		unicode.In(r, unicode.Cf, unicode.Mn, unicode.Me, unicode.Other_Default_Ignorable_Code_Point)
}
