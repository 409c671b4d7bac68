package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"zimage/internal/account"
	"zimage/internal/generate"
	"zimage/internal/problem"
)

type createBody struct {
	Prompt         string            `json:"prompt" minLength:"1" maxLength:"32000" doc:"What to show. The model's own limit may be lower."`
	NegativePrompt string            `json:"negative_prompt,omitempty" maxLength:"32000" doc:"What not to show, for models that take it."`
	Model          string            `json:"model,omitempty" minLength:"1" maxLength:"128" doc:"One of GET /v1/models. Left out: your own default, else the operator's first."`
	N              int               `json:"n,omitempty" minimum:"1" maximum:"100" doc:"How many images, one seed each. Left out: your own default, else 1."`
	Width          int               `json:"width,omitempty" minimum:"1" maximum:"16384" doc:"Pixels. Left out: your own default, else the model's."`
	Height         int               `json:"height,omitempty" minimum:"1" maximum:"16384" doc:"Pixels. Left out: your own default, else the model's."`
	Seed           *int64            `json:"seed,omitempty" minimum:"0" maximum:"4294967295" doc:"Image k uses seed + k. Left out: chosen here and told in the answer."`
	Steps          int               `json:"steps,omitempty" minimum:"1" maximum:"1000" doc:"Left out: the model's default."`
	Guidance       *float64          `json:"guidance,omitempty" minimum:"0" maximum:"100" doc:"How closely the model follows the prompt. Left out: the model's default."`
	Format         string            `json:"format,omitempty" enum:"png,jpeg,webp" doc:"Left out: your own default, else png."`
	RetentionDays  int               `json:"retention_days,omitempty" minimum:"1" maximum:"3650" doc:"Days to keep it, at most what the policy allows. Left out: the policy's."`
	EmbedPrompt    bool              `json:"embed_prompt,omitempty" doc:"Write the prompt into the files. Left out: no."`
	Metadata       map[string]string `json:"metadata,omitempty" maxProperties:"16" doc:"Your own words, given back with the generation: names to 64 and values to 512 characters."`
	WebhookURL     string            `json:"webhook_url,omitempty" maxLength:"2048" doc:"An address to call about this generation alone, by the rules of webhooks. GET /v1/webhooks/secret tells what signs it."`
	WebhookEvents  []string          `json:"webhook_events,omitempty" nullable:"false" maxItems:"4" enum:"generation.started,generation.succeeded,generation.failed,generation.canceled" doc:"Of which it is told. Left out: all four."`
}

type createInput struct {
	Prefer         string     `header:"Prefer" doc:"wait=SECONDS, at most 60: answer when the generation is final or the time is over." example:"wait=30"`
	IdempotencyKey string     `header:"Idempotency-Key" doc:"1 to 255 visible ASCII characters. For 24 hours the same key and body return the same generation." example:"3f0f9a52-order-17"`
	Body           createBody `contentType:"application/json"`
}

// Resolve refuses a key that is there and empty, or there twice: passed over, it
// would let a repeated request make a second generation.
func (in *createInput) Resolve(hc huma.Context) []error {
	keys := humagin.Unwrap(hc).Request.Header.Values("Idempotency-Key")
	if len(keys) == 0 || len(keys) == 1 && visible(keys[0], 255) {
		return nil
	}
	return []error{&huma.ErrorDetail{Location: "header.Idempotency-Key", Message: "expected once, with 1 to 255 visible ASCII characters"}}
}

type createOutput struct {
	Status   int
	Location string `header:"Location"`
	Applied  string `header:"Preference-Applied"`
	Replayed string `header:"Idempotency-Replayed"`
	Body     generationView
}

type getOutput struct {
	Status  int
	Applied string `header:"Preference-Applied"`
	Body    generationView
}

func (a *API) createGeneration(ctx context.Context, in *createInput) (*createOutput, error) {
	owner := callOf(ctx).owner
	if in.Body.WebhookURL != "" || len(in.Body.WebhookEvents) > 0 {
		if err := a.rooms.Webhooks.CheckOnce(in.Body.WebhookURL, in.Body.WebhookEvents); err != nil {
			return nil, inBody(err)
		}
	}
	submit, cancel := context.WithTimeout(ctx, ordinaryTime)
	defer cancel()
	preferences, err := a.rooms.Accounts.Preferences(submit, owner)
	if err != nil {
		return nil, err
	}
	r, err := in.request(preferences)
	if err != nil {
		return nil, err
	}
	wait := preferredWait(in.Prefer)
	if wait > 0 {
		release, err := a.hold(ctx) // before it is accepted: then it must be answered
		if err != nil {
			return nil, err
		}
		defer release()
	}
	g, replayed, err := a.rooms.Generate.Submit(submit, owner, r.Request, r.idempotency)
	if err != nil {
		return nil, err
	}
	out := &createOutput{Status: http.StatusAccepted, Location: a.base + "/v1/generations/" + g.ID}
	if replayed {
		out.Replayed = "true"
	}
	if wait > 0 {
		out.Applied = fmt.Sprintf("wait=%d", int(wait.Seconds()))
		if g, err = a.await(ctx, owner, g, wait); err != nil {
			return nil, err
		}
		if g.Status.Terminal() {
			out.Status = http.StatusOK
		}
	}
	out.Body = a.generation(g)
	return out, nil
}

type submission struct {
	generate.Request
	idempotency *generate.Idempotency
}

// request is the room's. The room checks it against the model's limits; the
// schema has refused what no model takes.
func (in *createInput) request(p account.Preferences) (submission, error) {
	b := in.Body
	s := submission{Request: generate.Request{
		Prompt: b.Prompt, NegativePrompt: b.NegativePrompt, Model: b.Model, N: b.N, Width: b.Width, Height: b.Height,
		Seed: b.Seed, Steps: b.Steps, Guidance: b.Guidance, Format: b.Format, RetentionDays: b.RetentionDays,
		EmbedPrompt: b.EmbedPrompt, Metadata: b.Metadata, Defaults: generate.Defaults(p),
		Webhook: generate.Webhook{URL: b.WebhookURL, Events: b.WebhookEvents},
	}}
	if in.IdempotencyKey != "" {
		// Marshalled again, so that spaces and the order of fields make no difference.
		canonical, err := json.Marshal(b)
		if err != nil {
			return submission{}, err
		}
		s.idempotency = &generate.Idempotency{Key: in.IdempotencyKey, Body: canonical}
	}
	return s, nil
}

type getInput struct {
	ID     string `path:"id" doc:"Of the generation." example:"gen_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Prefer string `header:"Prefer" doc:"wait=SECONDS, at most 60: answer when the generation is final or the time is over." example:"wait=30"`
}

func (a *API) getGeneration(ctx context.Context, in *getInput) (*getOutput, error) {
	if err := known("gen", in.ID); err != nil {
		return nil, err
	}
	get, cancel := context.WithTimeout(ctx, ordinaryTime)
	defer cancel()
	owner := callOf(ctx).owner
	g, err := a.rooms.Generate.Get(get, owner, in.ID)
	if err != nil {
		return nil, err
	}
	out := &getOutput{Status: http.StatusOK}
	if wait := preferredWait(in.Prefer); wait > 0 {
		release, err := a.hold(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
		out.Applied = fmt.Sprintf("wait=%d", int(wait.Seconds()))
		if g, err = a.await(ctx, owner, g, wait); err != nil {
			return nil, err
		}
		if !g.Status.Terminal() {
			out.Status = http.StatusAccepted
		}
	}
	out.Body = a.generation(g)
	return out, nil
}

type listInput struct {
	Cursor string `query:"cursor" maxLength:"512" doc:"next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many."`
	Status string `query:"status" enum:"queued,running,succeeded,failed,canceled" doc:"Only these."`
}

type listOutput struct{ Body generationsView }

func (a *API) listGenerations(ctx context.Context, in *listInput) (*listOutput, error) {
	if in.Cursor != "" && !visible(in.Cursor, 512) {
		return nil, problem.Invalid(problem.Field{Location: "query.cursor", Message: "is not a cursor of this list"})
	}
	list, next, err := a.rooms.Generate.List(ctx, callOf(ctx).owner,
		generate.Page{Cursor: in.Cursor, Limit: in.Limit, Status: generate.Status(in.Status)})
	if err != nil {
		return nil, err
	}
	return &listOutput{Body: generationsView{Data: each(list, a.generation), NextCursor: next}}, nil
}

type generationInput struct {
	ID string `path:"id" doc:"Of the generation." example:"gen_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

type cancelOutput struct{ Body generationView }

func (a *API) cancelGeneration(ctx context.Context, in *generationInput) (*cancelOutput, error) {
	if err := known("gen", in.ID); err != nil {
		return nil, err
	}
	g, err := a.rooms.Generate.Cancel(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	return &cancelOutput{Body: a.generation(g)}, nil
}

func (a *API) deleteGeneration(ctx context.Context, in *generationInput) (*struct{}, error) {
	if err := known("gen", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Generate.Delete(ctx, callOf(ctx).owner, in.ID)
}

type deleteBody struct {
	IDs []string `json:"ids,omitempty" minItems:"1" maxItems:"1000" nullable:"false" doc:"These."`
	All bool     `json:"all,omitempty" doc:"Everything that is yours."`
}

type deleteInput struct {
	Body deleteBody `contentType:"application/json"`
}

type acceptedOutput struct{ Body acceptedView }

func (a *API) deleteGenerations(ctx context.Context, in *deleteInput) (*acceptedOutput, error) {
	if err := in.Body.check("gen"); err != nil {
		return nil, err
	}
	n, err := a.rooms.Generate.DeleteMany(ctx, callOf(ctx).owner, in.Body.IDs, in.Body.All)
	if err != nil {
		return nil, err
	}
	return &acceptedOutput{Body: acceptedView{Accepted: n}}, nil
}

// check wants one of the two: an empty body must never mean all.
func (b deleteBody) check(prefix string) error {
	if b.All == (len(b.IDs) > 0) {
		return problem.Invalid(problem.Field{Location: "body", Message: "needs either ids or all: true"})
	}
	for _, id := range b.IDs {
		if known(prefix, id) != nil {
			return problem.Invalid(problem.Field{Location: "body.ids", Message: "has something that is not an id of this kind"})
		}
	}
	return nil
}

// known refuses what cannot be one of our ids before any room is asked.
func known(prefix, id string) error {
	rest, ok := strings.CutPrefix(id, prefix+"_")
	if !ok || len(rest) < 8 || len(rest) > 40 || strings.Trim(rest, "0123456789abcdefghjkmnpqrstvwxyz") != "" {
		return problem.New(problem.NotFound, "There is no such thing.")
	}
	return nil
}
