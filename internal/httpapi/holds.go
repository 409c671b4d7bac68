package httpapi

import (
	"context"
	"time"

	"zimage/internal/privacy"
	"zimage/internal/problem"
)

type holdView struct {
	ID         string     `json:"id" doc:"Of the hold."`
	Account    string     `json:"account" doc:"Whose record it is; it may be erased."`
	Table      string     `json:"table" doc:"Where the record is."`
	Record     string     `json:"record" doc:"Which record."`
	Case       string     `json:"case" doc:"Reference of the case."`
	MayBeTold  bool       `json:"may_be_told" doc:"Whether the person may learn of it."`
	PlacedAt   time.Time  `json:"placed_at" doc:"Since when it holds."`
	ReviewAt   time.Time  `json:"review_at" doc:"By then somebody looks again whether it is needed."`
	ReleasedAt *time.Time `json:"released_at,omitempty" doc:"Until when it held; left out while it does."`
}

func hold(h privacy.Hold) holdView {
	return holdView{ID: h.ID, Account: h.Subject, Table: h.Table, Record: h.Record, Case: h.Case, MayBeTold: h.MayBeTold,
		PlacedAt: h.PlacedAt, ReviewAt: h.ReviewAt, ReleasedAt: moment(h.ReleasedAt)}
}

type placeHoldBody struct {
	Account   string     `json:"account" minLength:"1" maxLength:"100" doc:"Whose record it is."`
	Table     string     `json:"table" enum:"consents,generations,images,ledger_details,mails,objections,users" doc:"Where the record is. A generation keeps its images with it."`
	Record    string     `json:"record" minLength:"1" maxLength:"300" doc:"Its id; of an account the account's own, of an objection account and purpose with a colon between them."`
	Case      string     `json:"case" minLength:"1" maxLength:"300" doc:"Reference of the case, and nothing else."`
	ReviewAt  *time.Time `json:"review_at,omitempty" doc:"By when somebody looks again whether it is needed, within 90 days. Left out: in 90 days."`
	MayBeTold bool       `json:"may_be_told" doc:"false: the case forbids that the person learns of it. There is no default."`
	Reason    string     `json:"reason" minLength:"10" maxLength:"500" doc:"On which ground. It is kept."`
}

type placeHoldInput struct {
	Body placeHoldBody `contentType:"application/json"`
}

type holdOutput struct{ Body holdView }

func shownHold(h privacy.Hold, err error) (*holdOutput, error) {
	if err != nil {
		return nil, err
	}
	return &holdOutput{Body: hold(h)}, nil
}

// officer is who acts for people's rights, and why.
func (a *API) officer(ctx context.Context, reason string) privacy.By {
	return a.rooms.Accounts.Officer(callOf(ctx).who, reason)
}

func (a *API) placeHold(ctx context.Context, in *placeHoldInput) (*holdOutput, error) {
	b := in.Body
	h := privacy.Hold{Subject: b.Account, Table: b.Table, Record: b.Record, Case: b.Case, MayBeTold: b.MayBeTold}
	if b.ReviewAt != nil {
		h.ReviewAt = *b.ReviewAt
	}
	return shownHold(a.rooms.Privacy.PlaceHold(ctx, a.officer(ctx, b.Reason), h))
}

type renewHoldBody struct {
	ReviewAt *time.Time `json:"review_at,omitempty" doc:"By when somebody looks again, within 90 days. Left out: in 90 days."`
	Reason   string     `json:"reason" minLength:"10" maxLength:"500" doc:"Why it is still needed. It is kept."`
}

type renewHoldInput struct {
	ID   string        `path:"id" doc:"Of the hold." example:"hold_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body renewHoldBody `contentType:"application/json"`
}

func (a *API) renewHold(ctx context.Context, in *renewHoldInput) (*holdOutput, error) {
	if err := known("hold", in.ID); err != nil {
		return nil, err
	}
	var at time.Time
	if in.Body.ReviewAt != nil {
		at = *in.Body.ReviewAt
	}
	return shownHold(a.rooms.Privacy.RenewHold(ctx, a.officer(ctx, in.Body.Reason), in.ID, at))
}

type releaseHoldInput struct {
	ID   string     `path:"id" doc:"Of the hold." example:"hold_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body reasonBody `contentType:"application/json"`
}

func (a *API) releaseHold(ctx context.Context, in *releaseHoldInput) (*struct{}, error) {
	if err := known("hold", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Privacy.ReleaseHold(ctx, a.officer(ctx, in.Body.Reason), in.ID)
}

type holdsInput struct {
	Filter  string `query:"filter" enum:"open,due,all" default:"open" doc:"due: those whose review is due."`
	Account string `query:"account" maxLength:"100" doc:"Only holds on records of this account."`
	Cursor  string `query:"cursor" maxLength:"100" doc:"next_cursor of the page before."`
	Limit   int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many."`
}

type holdsView struct {
	Data       []holdView `json:"data" nullable:"false" doc:"Oldest first."`
	NextCursor string     `json:"next_cursor,omitempty" doc:"For the next page; left out on the last."`
}

type holdsOutput struct{ Body holdsView }

func (a *API) listHolds(ctx context.Context, in *holdsInput) (*holdsOutput, error) {
	if err := a.rooms.Accounts.IsOfficer(callOf(ctx).who); err != nil {
		return nil, err
	}
	if err := cursor("hold", in.Cursor); err != nil {
		return nil, err
	}
	if in.Account != "" {
		if err := known("sub", in.Account); err != nil {
			return nil, err
		}
	}
	list, err := a.rooms.Privacy.Holds(ctx, in.Filter, in.Account, in.Cursor, in.Limit+1)
	if err != nil {
		return nil, err
	}
	list, next := page(list, in.Limit, func(h privacy.Hold) string { return h.ID })
	return &holdsOutput{Body: holdsView{Data: each(list, hold), NextCursor: next}}, nil
}

var (
	sampleHold = holdView{ID: "hold_06f3k2m9v0q8r5w1x4y7z2a6bc", Account: "sub_06f3k2m9v0q8r5w1x4y7z2a6bc", Table: "generations", Record: "gen_06f3k2m9v0q8r5w1x4y7z2a6bc",
		Case: "17 Js 204/26", MayBeTold: true, PlacedAt: sampleAt, ReviewAt: sampleAt.AddDate(0, 0, 90)}
	holdsDoc = doc{
		id: "list-holds", tag: tagStaff, summary: "List legal holds",
		description: "For privacy officers. It names records by their ids and opens none.",
		answers:     ok("A page.", holdsView{Data: []holdView{sampleHold}}),
		codes:       []problem.Code{problem.InvalidRequest, problem.NotFound},
	}
	placeHoldDoc = doc{
		id: "place-hold", tag: tagStaff, summary: "Place a legal hold on a record",
		description: "Keeps one record from every deletion and change until it is released; several may keep the same one. For privacy officers, in a session that proved lately who it is. The person sees it in their ledger, unless the case forbids that. " +
			"Of an account that is erased only a record that another hold keeps can be held.",
		request: placeHoldBody{Account: sampleHold.Account, Table: sampleHold.Table, Record: sampleHold.Record, Case: sampleHold.Case, MayBeTold: true, Reason: "Order to preserve of 12 January, checked by our counsel."},
		answers: ok("It holds.", sampleHold),
		codes:   []problem.Code{problem.NotFound, problem.DataRemoved, problem.ReauthNeeded},
	}
	renewHoldDoc = doc{
		id: "renew-hold", tag: tagStaff, summary: "Keep a hold after a review",
		description: "Sets another date of review, at most 90 days ahead. For privacy officers.",
		request:     renewHoldBody{Reason: "The case is still open, asked on 4 April."},
		answers:     ok("It goes on.", sampleHold),
		codes:       []problem.Code{problem.NotFound, problem.ReauthNeeded},
	}
	releaseHoldDoc = doc{
		id: "release-hold", tag: tagStaff, summary: "Release a hold",
		description: "For privacy officers. When it was the last on the record, the deletion that waited goes on.",
		request:     reasonBody{Reason: "The case was closed on 3 May."},
		answers:     none("Released."),
		codes:       []problem.Code{problem.NotFound, problem.ReauthNeeded},
	}
)
