package httpapi

import (
	"context"
	"net/http"
	"time"

	"zimage/internal/account"
	"zimage/internal/problem"
	"zimage/internal/webhook"
)

type addWebhookBody struct {
	URL           string   `json:"url" minLength:"1" maxLength:"2048" doc:"The address to call: https, public, without a user or fragment."`
	Description   string   `json:"description,omitempty" maxLength:"200" doc:"For you. Kept sealed."`
	Events        []string `json:"events,omitempty" nullable:"false" maxItems:"9" enum:"generation.started,generation.succeeded,generation.failed,generation.canceled,generation.deleted,image.deleted,image.expiring,export.ready,account.closing" doc:"Of which it is told. Left out or empty: all."`
	IncludePrompt bool     `json:"include_prompt,omitempty" doc:"Send prompt, negative prompt and metadata along. Left out: no. A key needs the scope read, too."`
}

type updateWebhookBody struct {
	URL           *string   `json:"url,omitempty" minLength:"1" maxLength:"2048" doc:"The address to call."`
	Description   *string   `json:"description,omitempty" maxLength:"200" doc:"For you. Empty: none."`
	Events        *[]string `json:"events,omitempty" maxItems:"9" enum:"generation.started,generation.succeeded,generation.failed,generation.canceled,generation.deleted,image.deleted,image.expiring,export.ready,account.closing" doc:"Of which it is told. Empty: all."`
	IncludePrompt *bool     `json:"include_prompt,omitempty" doc:"Send prompt, negative prompt and metadata along. A key needs the scope read, too."`
	Enabled       *bool     `json:"enabled,omitempty" doc:"false: nothing is sent any more. true: begin anew, its failures forgotten."`
}

type webhookInput struct {
	ID string `path:"id" doc:"Of the webhook." example:"whe_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

type webhookOutput struct{ Body webhookView }

type newWebhookOutput struct {
	Location string `header:"Location"`
	Body     newWebhookView
}

func (a *API) createWebhook(ctx context.Context, in *struct {
	Body addWebhookBody `contentType:"application/json"`
}) (*newWebhookOutput, error) {
	b := in.Body
	if b.IncludePrompt {
		if err := needs(callOf(ctx).who, account.ScopeRead); err != nil {
			return nil, err
		}
	}
	e, secret, err := a.rooms.Webhooks.Create(ctx, callOf(ctx).owner, webhook.Change{URL: &b.URL, Description: &b.Description, Events: &b.Events, IncludePrompt: &b.IncludePrompt})
	if err != nil {
		return nil, inBody(err)
	}
	return &newWebhookOutput{Location: a.base + "/v1/webhooks/" + e.ID, Body: newWebhookView{Secret: secret, Webhook: webhookOf(e)}}, nil
}

type webhooksOutput struct{ Body webhooksView }

func (a *API) listWebhooks(ctx context.Context, _ *struct{}) (*webhooksOutput, error) {
	list, err := a.rooms.Webhooks.Endpoints(ctx, callOf(ctx).owner)
	if err != nil {
		return nil, err
	}
	return &webhooksOutput{Body: webhooksView{Data: each(list, webhookOf)}}, nil
}

func (a *API) getWebhook(ctx context.Context, in *webhookInput) (*webhookOutput, error) {
	if err := known("whe", in.ID); err != nil {
		return nil, err
	}
	e, err := a.rooms.Webhooks.Endpoint(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	return &webhookOutput{Body: webhookOf(e)}, nil
}

type updateWebhookInput struct {
	ID   string            `path:"id" doc:"Of the webhook." example:"whe_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body updateWebhookBody `contentType:"application/json"`
}

func (a *API) updateWebhook(ctx context.Context, in *updateWebhookInput) (*webhookOutput, error) {
	if err := known("whe", in.ID); err != nil {
		return nil, err
	}
	if err := a.mayLead(ctx, in.ID, in.Body); err != nil {
		return nil, err
	}
	e, err := a.rooms.Webhooks.Update(ctx, callOf(ctx).owner, in.ID, webhook.Change(in.Body))
	if err != nil {
		return nil, inBody(err)
	}
	return &webhookOutput{Body: webhookOf(e)}, nil
}

// mayLead refuses a change that leads prompts to somewhere new by a key that may not
// read them.
func (a *API) mayLead(ctx context.Context, id string, b updateWebhookBody) error {
	refusal := needs(callOf(ctx).who, account.ScopeRead)
	switch {
	case refusal == nil:
		return nil
	case b.IncludePrompt != nil && *b.IncludePrompt:
		return refusal
	case b.IncludePrompt != nil || b.URL == nil:
		return nil
	}
	e, err := a.rooms.Webhooks.Endpoint(ctx, callOf(ctx).owner, id)
	if err == nil && e.IncludePrompt {
		err = refusal
	}
	return err
}

func (a *API) deleteWebhook(ctx context.Context, in *webhookInput) (*struct{}, error) {
	if err := known("whe", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Webhooks.Delete(ctx, callOf(ctx).owner, in.ID)
}

type rotatedOutput struct{ Body newWebhookView }

func (a *API) rotateWebhook(ctx context.Context, in *webhookInput) (*rotatedOutput, error) {
	if err := known("whe", in.ID); err != nil {
		return nil, err
	}
	e, secret, err := a.rooms.Webhooks.Rotate(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	return &rotatedOutput{Body: newWebhookView{Secret: secret, Webhook: webhookOf(e)}}, nil
}

type onceSecretOutput struct{ Body onceSecretView }

func (a *API) onceSecret(ctx context.Context, _ *struct{}) (*onceSecretOutput, error) {
	return a.secretOf(ctx, false)
}

func (a *API) rotateOnce(ctx context.Context, _ *struct{}) (*onceSecretOutput, error) {
	return a.secretOf(ctx, true)
}

func (a *API) secretOf(ctx context.Context, rotate bool) (*onceSecretOutput, error) {
	o, err := a.rooms.Webhooks.OnceSecret(ctx, callOf(ctx).owner, rotate)
	if err != nil {
		return nil, err
	}
	return &onceSecretOutput{Body: onceSecretView{ID: o.ID, Secret: o.Secret, OldUntil: moment(o.OldSecret)}}, nil
}

type deliveryOutput struct {
	Status int
	Body   deliveryView
}

func (a *API) testWebhook(ctx context.Context, in *webhookInput) (*deliveryOutput, error) {
	if err := known("whe", in.ID); err != nil {
		return nil, err
	}
	d, err := a.rooms.Webhooks.SendTest(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	return &deliveryOutput{Status: http.StatusAccepted, Body: deliveryOf(d)}, nil
}

type deliveriesInput struct {
	ID     string `path:"id" doc:"Of the webhook." example:"whe_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	State  string `query:"state" enum:"pending,paused,delivered,failed" doc:"Only these. Left out: all."`
	Cursor string `query:"cursor" maxLength:"100" doc:"next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many at most."`
}

type deliveriesOutput struct{ Body deliveriesView }

func (a *API) listDeliveries(ctx context.Context, in *deliveriesInput) (*deliveriesOutput, error) {
	if err := known("whe", in.ID); err != nil {
		return nil, err
	}
	if err := cursor("whd", in.Cursor); err != nil {
		return nil, err
	}
	list, err := a.rooms.Webhooks.Deliveries(ctx, callOf(ctx).owner, in.ID, in.State, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	list, next := page(list, in.Limit, func(d webhook.Delivery) string { return d.ID })
	return &deliveriesOutput{Body: deliveriesView{Data: each(list, deliveryOf), NextCursor: next}}, nil
}

type replayFailedInput struct {
	ID    string    `path:"id" doc:"Of the webhook." example:"whe_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Since time.Time `query:"since" doc:"Those that were to be told since then. Left out: all that are kept." example:"2026-01-15T09:30:00Z"`
}

type replayedOutput struct {
	Status int
	Body   replayedView
}

func (a *API) replayFailed(ctx context.Context, in *replayFailedInput) (*replayedOutput, error) {
	if err := known("whe", in.ID); err != nil {
		return nil, err
	}
	n, more, err := a.rooms.Webhooks.ReplayFailed(ctx, callOf(ctx).owner, in.ID, in.Since)
	if err != nil {
		return nil, err
	}
	return &replayedOutput{Status: http.StatusAccepted, Body: replayedView{Replayed: n, More: more}}, nil
}

type deliveryInput struct {
	ID string `path:"id" doc:"Of the delivery." example:"whd_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

func (a *API) replayDelivery(ctx context.Context, in *deliveryInput) (*deliveryOutput, error) {
	if err := known("whd", in.ID); err != nil {
		return nil, err
	}
	d, err := a.rooms.Webhooks.Replay(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	return &deliveryOutput{Status: http.StatusAccepted, Body: deliveryOf(d)}, nil
}

type eventsAfterInput struct {
	After string `query:"after" maxLength:"100" doc:"Id of the last event that you know. Left out: from the oldest on that is kept." example:"evt_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"100" doc:"How many at most."`
}

type toldEventsOutput struct{ Body toldEventsView }

func (a *API) listEvents(ctx context.Context, in *eventsAfterInput) (*toldEventsOutput, error) {
	if in.After != "" && known("evt", in.After) != nil {
		return nil, problem.Invalid(problem.Field{Location: "query.after", Message: "is no id of an event"})
	}
	list, err := a.rooms.Webhooks.Events(ctx, callOf(ctx).owner, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	list, next := page(list, in.Limit, func(e webhook.Event) string { return e.ID })
	return &toldEventsOutput{Body: toldEventsView{Data: each(list, toldEvent), More: next != ""}}, nil
}

type webhookView struct {
	ID            string     `json:"id" doc:"Sorts by the time of creation."`
	URL           string     `json:"url" doc:"The address that is called."`
	Description   string     `json:"description,omitempty" doc:"What you call it."`
	Events        []string   `json:"events" nullable:"false" doc:"Of which it is told. Empty: all."`
	IncludePrompt bool       `json:"include_prompt" doc:"Whether prompt, negative prompt and metadata are sent along."`
	Status        string     `json:"status" enum:"enabled,disabled" doc:"Whether it is called."`
	DisabledAt    *time.Time `json:"disabled_at,omitempty" doc:"Since when it is not."`
	DisabledWhy   string     `json:"disabled_reason,omitempty" enum:"user,gone,failing,restored" doc:"By you, by its answer 410, after five days of nothing but failure, or because the service was restored from a backup that has it as it was before you changed it."`
	FailingSince  *time.Time `json:"failing_since,omitempty" doc:"Left out: its last call succeeded, or there was none."`
	OldUntil      *time.Time `json:"old_secret_until,omitempty" doc:"Until when the secret before signs too."`
	CreatedAt     time.Time  `json:"created_at" doc:"When it was made."`
	ChangedAt     time.Time  `json:"changed_at" doc:"When it was last changed."`
}

type newWebhookView struct {
	Secret  string      `json:"secret" doc:"To check signatures with, by the rules of Standard Webhooks. Shown once."`
	Webhook webhookView `json:"webhook" doc:"The webhook."`
}

type webhooksView struct {
	Data []webhookView `json:"data" nullable:"false" doc:"Newest first."`
}

type onceSecretView struct {
	ID       string     `json:"id" doc:"Stands for all addresses that were given with a generation: their deliveries are listed by it."`
	Secret   string     `json:"secret" doc:"Signs what goes to them."`
	OldUntil *time.Time `json:"old_secret_until,omitempty" doc:"Until when the secret before signs too."`
}

type deliveryView struct {
	ID        string        `json:"id" doc:"Sorts by the time at which it was to be told."`
	WebhookID string        `json:"webhook_id" doc:"Who is told."`
	EventID   string        `json:"event_id" doc:"Of what. It is the webhook-id of every attempt."`
	Type      string        `json:"type" doc:"Of the event."`
	Ref       string        `json:"ref" doc:"What it is about: a generation, image, export or webhook."`
	State     string        `json:"state" enum:"pending,paused,delivered,failed" doc:"paused: it waits for the end of a restriction or suspension."`
	Error     string        `json:"error,omitempty" doc:"Why it has failed: the code of its last attempt, webhook_disabled, or address_forgotten (given with a generation, and forgotten since)."`
	CreatedAt time.Time     `json:"created_at" doc:"When it was to be told."`
	EndedAt   *time.Time    `json:"ended_at,omitempty" doc:"When it was told or given up."`
	NextAt    *time.Time    `json:"next_attempt_at,omitempty" doc:"While it waits for an attempt."`
	Attempts  []attemptView `json:"attempts" nullable:"false" doc:"The last 20, the oldest first. Nothing is kept of what was sent or answered."`
}

type attemptView struct {
	Attempt int       `json:"attempt" doc:"1 is the first."`
	At      time.Time `json:"at" doc:"When it began."`
	TookMS  int64     `json:"took_ms" doc:"Milliseconds."`
	Status  int       `json:"status,omitempty" doc:"Of the answer. Left out: none came."`
	Error   string    `json:"error,omitempty" doc:"Left out: it succeeded. Stable: address_refused, url_not_allowed, name_not_found, not_reachable, tls_failed, timed_out, connection_failed, unexpected_status, webhook_gone."`
}

type deliveriesView struct {
	Data       []deliveryView `json:"data" nullable:"false" doc:"Newest first."`
	NextCursor string         `json:"next_cursor,omitempty" doc:"For the next page; left out on the last."`
}

type replayedView struct {
	Replayed int  `json:"replayed" doc:"How many are sent again."`
	More     bool `json:"more" doc:"There are more: ask again."`
}

type toldEventView struct {
	ID           string    `json:"id" doc:"The webhook-id of its deliveries."`
	Type         string    `json:"type" doc:"What happened."`
	Ref          string    `json:"ref" doc:"To what: a generation, image, export or webhook."`
	GenerationID string    `json:"generation_id,omitempty" doc:"Of an image."`
	Sequence     int64     `json:"sequence,omitempty" doc:"Its place among the events of the generation."`
	Reason       string    `json:"reason,omitempty" enum:"user,expired" doc:"Of a deletion."`
	At           time.Time `json:"at" doc:"When."`
}

type toldEventsView struct {
	Data []toldEventView `json:"data" nullable:"false" doc:"The oldest first."`
	More bool            `json:"more" doc:"There are more behind the last of these."`
}

func webhookOf(e webhook.Endpoint) webhookView {
	v := webhookView{ID: e.ID, URL: e.URL, Description: e.Description, Events: append([]string{}, e.Events...), IncludePrompt: e.IncludePrompt, Status: "enabled",
		DisabledAt: moment(e.DisabledAt), DisabledWhy: e.DisabledWhy, FailingSince: moment(e.FailingSince), OldUntil: moment(e.OldSecret),
		CreatedAt: e.CreatedAt.UTC(), ChangedAt: e.ChangedAt.UTC()}
	if v.DisabledAt != nil {
		v.Status = "disabled"
	}
	return v
}

func deliveryOf(d webhook.Delivery) deliveryView {
	return deliveryView{ID: d.ID, WebhookID: d.Endpoint, EventID: d.Event, Type: d.Type, Ref: d.Ref, State: d.State, Error: d.Error,
		CreatedAt: d.CreatedAt.UTC(), EndedAt: moment(d.EndedAt), NextAt: moment(d.NextAt), Attempts: each(d.Attempts, func(a webhook.Attempt) attemptView {
			return attemptView{Attempt: a.N, At: a.At.UTC(), TookMS: a.Took.Milliseconds(), Status: a.Status, Error: a.Error}
		})}
}

func toldEvent(e webhook.Event) toldEventView {
	return toldEventView{ID: e.ID, Type: e.Type, Ref: e.Ref, GenerationID: e.Generation, Sequence: e.Sequence, Reason: e.Reason, At: e.At.UTC()}
}
