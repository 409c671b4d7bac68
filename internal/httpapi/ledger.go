package httpapi

import (
	"context"
	"time"

	"zimage/internal/account"
	"zimage/internal/events"
	"zimage/internal/privacy"
	"zimage/internal/problem"
)

type ledgerView struct {
	Data       []ledgerEntryView `json:"data" doc:"Newest first."`
	NextCursor string            `json:"next_cursor,omitempty" doc:"For the next page; left out on the last."`
}

type ledgerEntryView struct {
	ID        string    `json:"id" doc:"Of the entry."`
	Kind      string    `json:"kind" doc:"What happened, such as staff.opened, staff.disclosed or consent.given."`
	At        time.Time `json:"at" doc:"When."`
	Role      string    `json:"role,omitempty" doc:"Of the member of staff who did it; left out when it was you."`
	Reason    string    `json:"reason,omitempty" doc:"Why, in the words of the staff."`
	Ref       string    `json:"ref,omitempty" doc:"Id or name of what it was about."`
	Purpose   string    `json:"purpose,omitempty" doc:"Of a consent or objection."`
	Policy    string    `json:"policy_version,omitempty" doc:"The words that were agreed to."`
	Case      string    `json:"case,omitempty" doc:"Reference of a disclosure or hold."`
	Authority string    `json:"authority,omitempty" doc:"To whom data was disclosed."`
	Scope     string    `json:"scope,omitempty" doc:"Which data."`
	State     string    `json:"state,omitempty" doc:"Of a request."`
	Sealed    bool      `json:"sealed" doc:"Whether it is chained already, which takes a minute at most."`
	Damaged   bool      `json:"damaged,omitempty" doc:"Somebody changed its details in the database: they are left out. Tell the privacy contact."`
}

type ledgerInput struct {
	Cursor string `query:"cursor" maxLength:"512" doc:"next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many."`
}

type ledgerOutput struct{ Body ledgerView }

func (a *API) listLedger(ctx context.Context, in *ledgerInput) (*ledgerOutput, error) {
	if in.Cursor != "" && !visible(in.Cursor, 512) {
		return nil, problem.Invalid(problem.Field{Location: "query.cursor", Message: "is not a cursor of this list"})
	}
	list, next, err := a.rooms.Ledger.Entries(ctx, callOf(ctx).owner, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	out := &ledgerOutput{Body: ledgerView{Data: make([]ledgerEntryView, 0, len(list)), NextCursor: next}}
	for _, e := range list {
		out.Body.Data = append(out.Body.Data, ledgerEntryView{
			ID: e.ID, Kind: string(e.Kind), At: e.At, Ref: e.Ref, Sealed: e.Sealed, Damaged: e.Damaged,
			Role: e.Facts[events.Role], Reason: e.Facts[events.Reason], Purpose: e.Facts[events.Purpose], Policy: e.Facts[events.Policy],
			Case: e.Facts[events.Case], Authority: e.Facts[events.Authority], Scope: e.Facts[events.Scope], State: e.Facts[events.State],
		})
	}
	return out, nil
}

type disclosureBody struct {
	Case      string `json:"case" minLength:"1" maxLength:"300" doc:"Reference of the case at the authority."`
	Authority string `json:"authority" minLength:"1" maxLength:"300" doc:"To whom."`
	Scope     string `json:"scope" minLength:"1" maxLength:"300" doc:"Which data."`
	MayBeTold bool   `json:"may_be_told" doc:"false: the case forbids that the person learns of it. There is no default."`
	Reason    string `json:"reason" minLength:"10" maxLength:"500" doc:"On which ground. It is kept."`
}

type disclosureInput struct {
	ID   string         `path:"id" doc:"Of the account." example:"sub_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body disclosureBody `contentType:"application/json"`
}

func (a *API) disclose(ctx context.Context, in *disclosureInput) (*struct{}, error) {
	if err := known("sub", in.ID); err != nil {
		return nil, err
	}
	b := in.Body
	d := account.Disclosure{Case: b.Case, Authority: b.Authority, Scope: b.Scope, MayBeTold: b.MayBeTold}
	return nil, a.rooms.Accounts.Disclose(ctx, callOf(ctx).who, in.ID, d, b.Reason)
}

type checkpointView struct {
	At        time.Time `json:"at" doc:"What was sealed until then is in it: a full hour."`
	Hash      []byte    `json:"hash" doc:"Keyed, over the time and the whole ledger: it is another one each hour, whether anything happened or not. Base64."`
	Signature []byte    `json:"signature" doc:"Ed25519. Base64."`
	PublicKey []byte    `json:"public_key" doc:"Of the installation: it stays the same. Base64."`
}

type checkpointOutput struct{ Body checkpointView }

// checkpointFor is how long the newest one is told without another look: there is
// a new one every minute at most.
const checkpointFor = 5 * time.Second

type checkpoint struct {
	privacy.Checkpoint
	err error
}

func newCheckpoint(l *privacy.Ledger) *kept[checkpoint] {
	return &kept[checkpoint]{life: checkpointFor, ask: func(ctx context.Context) (c checkpoint) {
		c.Checkpoint, c.err = l.Checkpoint(ctx)
		return c
	}}
}

func (a *API) getCheckpoint(ctx context.Context, _ *struct{}) (*checkpointOutput, error) {
	c := a.checkpoint.get(ctx)
	if c.err != nil {
		return nil, c.err
	}
	return &checkpointOutput{Body: checkpointView{At: c.At, Hash: c.Hash, Signature: c.Signature, PublicKey: c.PublicKey}}, nil
}
