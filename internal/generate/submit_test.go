package generate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

func TestSubmitFillsInTheModelsDefaults(t *testing.T) {
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		g := r.submit(r.ada, func(q *Request) { q.Metadata = map[string]string{"ticket": "4711"} })
		want := Request{Prompt: "a lighthouse in a storm", Model: "illustrator", N: 1, Width: 64, Height: 64, Seed: &g.Seed,
			Steps: 2, Guidance: ptr(1.0), Format: "png", RetentionDays: 90, Metadata: map[string]string{"ticket": "4711"}}
		stored := r.get(r.ada, g.ID)
		for name, got := range map[string]Generation{"answer": g, "stored": stored} {
			if !reflect.DeepEqual(got.Request, want) {
				t.Errorf("%s: %+v, want %+v", name, got.Request, want)
			}
			if got.Status != Queued || got.Sequence != 1 || got.Queue == nil || got.Progress.Images != 1 || got.Progress.Steps != 2 {
				t.Errorf("%s: %+v", name, got)
			}
		}
		if g.Seed < 0 || g.Seed > maxSeed || stored.Seed != g.Seed || !stored.ExpiresAt.Equal(g.ExpiresAt) || !stored.CreatedAt.Equal(g.CreatedAt) {
			t.Errorf("answer and row differ: %+v, %+v", g, stored)
		}
		seeds := map[int64]bool{}
		for range 20 {
			seeds[r.submit(r.ada).Seed] = true
		}
		if len(seeds) < 20 {
			t.Error("the chosen seeds repeat")
		}
	})
}

func TestSubmitRefusesByFieldWithoutTheValue(t *testing.T) {
	t.Parallel()
	r := newRig(t, db.SQLite, setup{idle: true, redis: nowhere})
	tests := []struct {
		name   string
		change func(*Request)
		field  string // empty: it is taken
	}{
		{"plain", func(*Request) {}, ""},
		{"no prompt", func(q *Request) { q.Prompt = "" }, "prompt"},
		{"spaces", func(q *Request) { q.Prompt = " \t\r\n\u00a0\u3000" }, "prompt"},
		{"zero width", func(q *Request) { q.Prompt = "\u200b\u200d\ufeff\u2060" }, "prompt"},
		{"fillers", func(q *Request) { q.Prompt = "\u3164\u115f\uffa0\u2800" }, "prompt"},
		{"marks alone", func(q *Request) { q.Prompt = "\u0301\ufe0f" }, "prompt"},
		{"control characters", func(q *Request) { q.Prompt = "\x01\x7f\u0085" }, "prompt"},
		{"NUL", func(q *Request) { q.Prompt = "zq\x00zq" }, "prompt"},
		{"not UTF-8", func(q *Request) { q.Prompt = "zq\xff" }, "prompt"},
		{"half a surrogate", func(q *Request) { q.Prompt = "zq\xed\xa0\x80" }, "prompt"},
		{"replacement character", func(q *Request) { q.Prompt = "zq\ufffd" }, "prompt"},
		{"the longest", func(q *Request) { q.Prompt = strings.Repeat("é", 200) }, ""},
		{"too long", func(q *Request) { q.Prompt = strings.Repeat("z", 201) }, "prompt"},
		{"huge", func(q *Request) { q.Prompt = strings.Repeat("zq", 5<<20) }, "prompt"},
		{"emoji with joiners", func(q *Request) { q.Prompt = "👩‍🚀" }, ""},
		{"negative prompt", func(q *Request) { q.NegativePrompt = "zq\x00" }, "negative_prompt"},
		{"negative prompt too long", func(q *Request) { q.NegativePrompt = strings.Repeat("z", 201) }, "negative_prompt"},
		{"negative prompt without effect", func(q *Request) { q.Model, q.NegativePrompt = "elsewhere", "zq" }, "negative_prompt"},
		{"unknown model", func(q *Request) { q.Model = "zq" }, "model"},
		{"n", func(q *Request) { q.N = 4 }, ""},
		{"n too large", func(q *Request) { q.N = 5 }, "n"},
		{"n enormous", func(q *Request) { q.N = math.MaxInt }, "n"},
		{"n negative", func(q *Request) { q.N = -1 }, "n"},
		{"width too small", func(q *Request) { q.Width = 56 }, "width"},
		{"width odd", func(q *Request) { q.Width = 65 }, "width"},
		{"width enormous", func(q *Request) { q.Width = math.MaxInt }, "width"},
		{"width negative", func(q *Request) { q.Width = -64 }, "width"},
		{"height too large", func(q *Request) { q.Height = 264 }, "height"},
		{"height odd", func(q *Request) { q.Height = 100 + 1 }, "height"},
		{"most pixels", func(q *Request) { q.Width, q.Height = 256, 128 }, ""},
		{"too many pixels", func(q *Request) { q.Width, q.Height = 256, 136 }, "width"},
		{"steps", func(q *Request) { q.Steps = 8 }, ""},
		{"steps too many", func(q *Request) { q.Steps = 9 }, "steps"},
		{"steps negative", func(q *Request) { q.Steps = -1 }, "steps"},
		{"guidance 0", func(q *Request) { q.Guidance = ptr(0.0) }, ""},
		{"guidance", func(q *Request) { q.Guidance = ptr(5.0) }, ""},
		{"guidance too large", func(q *Request) { q.Guidance = ptr(5.001) }, "guidance"},
		{"guidance negative", func(q *Request) { q.Guidance = ptr(-0.5) }, "guidance"},
		{"guidance NaN", func(q *Request) { q.Guidance = ptr(math.NaN()) }, "guidance"},
		{"guidance infinite", func(q *Request) { q.Guidance = ptr(math.Inf(1)) }, "guidance"},
		{"guidance minus infinite", func(q *Request) { q.Guidance = ptr(math.Inf(-1)) }, "guidance"},
		{"seed 0", func(q *Request) { q.Seed = ptr[int64](0) }, ""},
		{"last seed", func(q *Request) { q.Seed = ptr[int64](maxSeed) }, ""},
		{"beyond the last seed", func(q *Request) { q.Seed = ptr[int64](maxSeed + 1) }, "seed"},
		{"seed negative", func(q *Request) { q.Seed = ptr[int64](-1) }, "seed"},
		{"last seed of four", func(q *Request) { q.N, q.Seed = 4, ptr[int64](maxSeed-3) }, ""},
		{"seed of four overflows", func(q *Request) { q.N, q.Seed = 4, ptr[int64](maxSeed-2) }, "seed"},
		{"seed overflows all", func(q *Request) { q.Seed = ptr[int64](math.MaxInt64) }, "seed"},
		{"format", func(q *Request) { q.Format = "jpeg" }, ""},
		{"unknown format", func(q *Request) { q.Format = "zq" }, "format"},
		{"retention", func(q *Request) { q.RetentionDays = 1 }, ""},
		{"retention beyond the policy", func(q *Request) { q.RetentionDays = 91 }, "retention_days"},
		{"retention negative", func(q *Request) { q.RetentionDays = -1 }, "retention_days"},
		{"metadata", func(q *Request) { q.Metadata = entries(16) }, ""},
		{"metadata too many", func(q *Request) { q.Metadata = entries(17) }, "metadata"},
		{"metadata without key", func(q *Request) { q.Metadata = map[string]string{"": "zq"} }, "metadata"},
		{"metadata longest", func(q *Request) { q.Metadata = map[string]string{strings.Repeat("é", 64): strings.Repeat("é", 512)} }, ""},
		{"metadata long key", func(q *Request) { q.Metadata = map[string]string{strings.Repeat("z", 65): ""} }, "metadata"},
		{"metadata long value", func(q *Request) { q.Metadata = map[string]string{"a": strings.Repeat("z", 513)} }, "metadata"},
		{"metadata control character", func(q *Request) { q.Metadata = map[string]string{"a": "zq\x1b[31m"} }, "metadata"},
		{"metadata not UTF-8", func(q *Request) { q.Metadata = map[string]string{"zq\xff": ""} }, "metadata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := Request{Prompt: "zq"}
			tt.change(&q)
			_, _, err := r.service.Submit(t.Context(), r.ada, q, nil)
			if tt.field == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			wantCode(t, err, problem.InvalidRequest)
			var p *problem.Error
			if !errors.As(err, &p) || len(p.Fields) == 0 || slices.ContainsFunc(p.Fields, func(f problem.Field) bool { return f.Location != "body."+tt.field }) {
				t.Fatalf("%+v, want body.%s alone", p, tt.field)
			}
			if text := fmt.Sprint(p.Message, p.Fields); strings.Contains(text, "zq") {
				t.Errorf("the value is echoed: %s", text)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		_, _, err := r.service.Submit(t.Context(), r.ada, Request{Width: 65, N: 9, Format: "gif", Steps: 100}, nil)
		var p *problem.Error
		if !errors.As(err, &p) || len(p.Fields) != 5 {
			t.Errorf("%+v, want prompt, n, width, steps and format", p)
		}
	})
	if strings.Contains(r.log.String(), "zq") {
		t.Error("a value was logged")
	}
}

func entries(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint("key", i)] = "v"
	}
	return m
}

const someRules = `rules:
  - id: no-names
    message: Pictures of real people are not made here.
    words: [Jane Roe, méchant]
  - id: no-tags
    message: Tags are not allowed.
    pattern: '<lora:'
`

func TestPromptRules(t *testing.T) {
	t.Parallel()
	r := newRig(t, db.SQLite, setup{idle: true, redis: nowhere, rules: someRules})
	allowed := 0
	for prompt, rule := range map[string]string{
		"a lighthouse":                  "",
		"jane roebuck on a hill":        "",
		"mary-jane  roes":               "",
		"jane roe":                      "no-names",
		"portrait of JANE\tROE, smiles": "no-names",
		"(Jane\n Roe)":                  "no-names",
		"ja\u200bne r\u00adoe":          "no-names",
		"ja\u0301ne ro\ufe0fe":          "no-names",
		"ja\x01ne ro\x7fe":              "no-names",
		"jan\u3164e r\u115foe":          "no-names",
		"un chat MÉCHANT":               "no-names",
		"un chat me\u0301chant":         "no-names",
		"un chat ｍéｃhant":               "no-names",
		"jane\u00a0roe":                 "no-names",
		"jane\u3000 \u2003roe":          "no-names",
		"a <LORA:style:1> cat":          "no-tags",
		"a <lo\u2060ra:style> cat":      "no-tags",
	} {
		for field, q := range map[string]Request{
			"body.prompt": {Prompt: prompt}, "body.negative_prompt": {Prompt: "a cat", NegativePrompt: prompt},
		} {
			_, _, err := r.service.Submit(t.Context(), r.ada, q, nil)
			if rule == "" {
				if allowed++; err != nil {
					t.Errorf("%q is refused: %v", prompt, err)
				}
				continue
			}
			wantCode(t, err, problem.PromptRefused)
			var p *problem.Error
			if !errors.As(err, &p) || len(p.Fields) != 1 || p.Fields[0].Location != field || !strings.Contains(p.Fields[0].Message, rule) {
				t.Errorf("%q: %+v, want %s by %s", prompt, p, field, rule)
			}
		}
	}
	for _, table := range []string{"generations", "jobs"} {
		if n := r.count(`SELECT count(*) FROM ` + table); n != allowed || allowed != 6 {
			t.Errorf("%d %s of %d allowed prompts, want 6: a refused prompt left something", n, table, allowed)
		}
	}
	if log := strings.ToLower(r.log.String()); strings.Contains(log, "jane") || strings.Contains(log, "lora") {
		t.Error("a prompt was logged")
	}
}

func TestParseRulesNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"rules: [{id: A, message: m, words: [x]}]":                                  "rules[0].id",
		"rules: [{id: a, message: m, words: [x]}, {id: a, message: m, words: [x]}]": "rules[1].id",
		"rules: [{id: a, words: [x]}]":                                              "rules[0].message",
		"rules: [{id: a, message: m}]":                                              "rules[0]",
		"rules: [{id: a, message: m, words: [x], pattern: y}]":                      "rules[0]",
		"rules: [{id: a, message: m, words: [' ']}]":                                "rules[0].words[0]",
		"rules: [{id: a, message: m, words: [\"\\u200b\"]}]":                        "rules[0].words[0]",
		"rules: [{id: a, message: m, pattern: '('}]":                                "rules[0].pattern",
		"rules: [{id: a, message: m, wrods: [x]}]":                                  "wrods",
	} {
		if _, err := ParseRules([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it to name %s", text, err, want)
		}
	}
}

func TestLimitsAreExactUnderParallelSubmits(t *testing.T) {
	for name, tt := range map[string]struct {
		setup
		code problem.Code
	}{
		"queued": {setup{idle: true, redis: nowhere, queued: 37}, problem.QueueFull},
		"daily":  {setup{idle: true, redis: nowhere, daily: 37}, problem.DailyLimit},
	} {
		t.Run(name, func(t *testing.T) {
			stacks(t, tt.setup, func(t *testing.T, r *rig) {
				var taken atomic.Int64
				var work sync.WaitGroup
				for i := range 320 {
					work.Go(func() {
						// Two lanes: what locks must not be one of them.
						_, _, err := r.service.Submit(t.Context(), r.ada, Request{Prompt: "p", Model: []string{"illustrator", "elsewhere"}[i%2]}, nil)
						if err == nil {
							taken.Add(1)
							return
						}
						wantCode(t, err, tt.code)
						var p *problem.Error
						if !errors.As(err, &p) || p.RetryAfter <= 0 {
							t.Error("it is not said when to come back")
						}
					})
				}
				work.Wait()
				if n := taken.Load(); n != 37 || r.count(`SELECT count(*) FROM generations`) != 37 || r.count(`SELECT count(*) FROM jobs`) != 37 {
					t.Errorf("%d of 37 were taken; %d jobs", n, r.count(`SELECT count(*) FROM jobs`))
				}
				if n := r.count(`SELECT count(DISTINCT lane || vstart) FROM jobs`); n != 37 {
					t.Errorf("%d distinct turns", n)
				}
				r.submit(r.ben) // limits are each owner's own
				if name == "daily" {
					r.clock.Advance(12*time.Hour - 5*time.Second)
					_, _, err := r.service.Submit(t.Context(), r.ada, Request{Prompt: "p"}, nil)
					wantCode(t, err, problem.DailyLimit)
					r.clock.Advance(5 * time.Second) // midnight
				} else if _, err := r.service.DeleteMany(t.Context(), r.ada, nil, true); err != nil {
					t.Fatal(err)
				}
				// The sweeps that deleting queued are no generations that wait.
				for range 37 {
					r.submit(r.ada)
				}
			})
		})
	}
}

func TestIdempotency(t *testing.T) {
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		ctx, q := t.Context(), Request{Prompt: "p"}
		body := []byte(`{"prompt":"p"}`)
		var mu sync.Mutex
		var ids []string
		fresh := 0
		var work sync.WaitGroup
		for range 50 {
			work.Go(func() {
				g, replayed, err := r.service.Submit(ctx, r.ada, q, &Idempotency{Key: "key-1", Body: body})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				ids = append(ids, g.ID)
				if !replayed {
					fresh++
				}
			})
		}
		work.Wait()
		slices.Sort(ids)
		if n := len(slices.Compact(ids)); n != 1 || fresh != 1 || r.count(`SELECT count(*) FROM jobs`) != 1 {
			t.Fatalf("%d generations, %d fresh, %d jobs; want one of each", n, fresh, r.count(`SELECT count(*) FROM jobs`))
		}
		_, _, err := r.service.Submit(ctx, r.ada, Request{Prompt: "other"}, &Idempotency{Key: "key-1", Body: []byte(`{"prompt":"other"}`)})
		wantCode(t, err, problem.IdempotencyMismatch)
		if g, replayed, err := r.service.Submit(ctx, r.ben, q, &Idempotency{Key: "key-1", Body: body}); err != nil || replayed || g.ID == ids[0] {
			t.Errorf("the key is shared with somebody else: %v, %v", replayed, err)
		}
		// A refused submit does not use its key up.
		if _, err := r.db.Exec(ctx, `UPDATE subjects SET restricted_at = 1 WHERE id = ?`, r.ada); err != nil {
			t.Fatal(err)
		}
		_, _, err = r.service.Submit(ctx, r.ada, q, &Idempotency{Key: "key-2", Body: body})
		wantCode(t, err, problem.Forbidden)
		if _, err := r.db.Exec(ctx, `UPDATE subjects SET restricted_at = NULL WHERE id = ?`, r.ada); err != nil {
			t.Fatal(err)
		}
		if _, replayed, err := r.service.Submit(ctx, r.ada, q, &Idempotency{Key: "key-2", Body: body}); err != nil || replayed {
			t.Errorf("the key of a refused submit: replayed %v, %v", replayed, err)
		}
		r.clock.Advance(24 * time.Hour)
		if g, replayed, err := r.service.Submit(ctx, r.ada, q, &Idempotency{Key: "key-1", Body: body}); err != nil || !replayed || g.ID != ids[0] {
			t.Errorf("after 24 h: replayed %v, %v", replayed, err)
		}
		r.clock.Advance(time.Millisecond)
		g, replayed, err := r.service.Submit(ctx, r.ada, Request{Prompt: "other"}, &Idempotency{Key: "key-1", Body: []byte(`{"prompt":"other"}`)})
		if err != nil || replayed || g.ID == ids[0] {
			t.Errorf("the day after: replayed %v, %v", replayed, err)
		}
		if err := r.service.Delete(ctx, r.ada, g.ID); err != nil {
			t.Fatal(err)
		}
		_, replayed, err = r.service.Submit(ctx, r.ada, Request{Prompt: "other"}, &Idempotency{Key: "key-1", Body: []byte(`{"prompt":"other"}`)})
		wantCode(t, err, problem.DataRemoved)
		if !replayed {
			t.Error("a deleted generation was made again")
		}
	})
}

func TestOnlyActivePeopleSubmit(t *testing.T) {
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		g := r.submit(r.ada)
		for _, c := range []struct {
			change string
			code   problem.Code
		}{
			{`restricted_at = 1`, problem.Forbidden}, {`restricted_at = NULL, suspended_at = 1`, problem.Forbidden},
			{`suspended_at = NULL, state = 'closing'`, problem.Unauthorized}, {`state = 'erased'`, problem.Unauthorized},
		} {
			if _, err := r.db.Exec(ctx, `UPDATE subjects SET `+c.change+` WHERE id = ?`, r.ada); err != nil {
				t.Fatal(err)
			}
			_, _, err := r.service.Submit(ctx, r.ada, Request{Prompt: "p"}, nil)
			wantCode(t, err, c.code)
		}
		_, _, err := r.service.Submit(ctx, "sub_nobody", Request{Prompt: "p"}, nil)
		wantCode(t, err, problem.Unauthorized)
		if _, err := r.db.Exec(ctx, `UPDATE subjects SET state = ? WHERE id = ?`, subject.Closing, r.ada); err != nil {
			t.Fatal(err)
		}
		if err := r.vault.Destroy(ctx, r.ada); err != nil {
			t.Fatal(err)
		}
		_, _, err = r.service.Submit(ctx, r.ada, Request{Prompt: "p"}, nil)
		wantCode(t, err, problem.Unauthorized)
		// What was sealed is lost, which no waiting mends.
		_, err = r.service.Get(ctx, r.ada, g.ID)
		wantCode(t, err, problem.Internal)
		if n := r.count(`SELECT count(*) FROM generations`); n != 1 {
			t.Errorf("%d generations, want the first alone", n)
		}
	})
}

// Closing an account and submitting must not pass each other: either the
// closing sees the job, or the submit is refused.
func TestSubmitWaitsForAChangeOfState(t *testing.T) {
	t.Parallel()
	r := newRig(t, db.Postgres, setup{idle: true, redis: nowhere})
	ctx := t.Context()
	changed, commit := make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		err := r.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE subjects SET state = ? WHERE id = ?`, subject.Closing, r.ada)
			close(changed)
			<-commit
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-changed
	work.Go(func() {
		_, _, err := r.service.Submit(ctx, r.ada, Request{Prompt: "p"}, nil)
		wantCode(t, err, problem.Unauthorized)
	})
	testenv.Eventually(t, 10*time.Second, func() bool {
		return r.count(`SELECT count(*) FROM pg_locks WHERE NOT granted`) > 0
	})
	close(commit)
	work.Wait()
}

func TestOnlyADatabaseThatIsAwayIsUnavailable(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]problem.Code{
		io.ErrUnexpectedEOF:        problem.Unavailable,
		vault.ErrCorrupt:           problem.Internal,
		vault.ErrDestroyed:         problem.Internal,
		context.Canceled:           problem.Internal,
		errors.New("a room's own"): problem.Internal,
		errNotFound:                problem.NotFound,
	} {
		wantCode(t, away(fmt.Errorf("read: %w", err)), want)
	}
}

// While nobody knows what time it is, nothing new is accepted: its end would be wrong too.
func TestPromise_R3_NothingIsAcceptedWhileTheClocksDiffer(t *testing.T) {
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		again := Idempotency{Key: "once", Body: []byte("x")}
		q := r.submit(r.ada).Request
		known, _, err := r.service.Submit(t.Context(), r.ada, q, &again)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []time.Duration{-100 * 24 * time.Hour, 2 * time.Hour} {
			r.clock.SetApart(off)
			_, _, err := r.service.Submit(t.Context(), r.ada, q, nil)
			var refusal *problem.Error
			if !errors.As(err, &refusal) || refusal.Code != problem.Unavailable || refusal.RetryAfter == 0 {
				t.Errorf("%v apart: %v", off, err)
			}
			if g, replayed, err := r.service.Submit(t.Context(), r.ada, q, &again); err != nil || !replayed || g.ID != known.ID {
				t.Errorf("%v apart, what was accepted: %v, %v", off, g.ID, err)
			}
		}
		r.clock.SetApart(time.Minute)
		r.submit(r.ada)
	})
}
