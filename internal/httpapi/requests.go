package httpapi

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"zimage/internal/privacy"
	"zimage/internal/problem"
)

type requestView struct {
	ID       string     `json:"id" doc:"Of the request."`
	Account  string     `json:"account,omitempty" doc:"Whose it is, to staff alone; left out while no account is known to be the address's."`
	Kind     string     `json:"kind" enum:"access,export,erasure,rectification,restriction,objection,do_not_sell" doc:"Which right is used."`
	State    string     `json:"state" enum:"unconfirmed,open,closed" doc:"unconfirmed: the mail address has not confirmed it yet."`
	Origin   string     `json:"origin" enum:"self,staff,address" doc:"By the person, by staff in the account, or by staff for somebody who wrote from a mail address."`
	Ref      string     `json:"ref,omitempty" doc:"Id of the export or erasure, or the purpose that was objected to."`
	Outcome  string     `json:"outcome,omitempty" enum:"done,nothing_held,refused,withdrawn,unconfirmed" doc:"How it was closed."`
	Note     string     `json:"note,omitempty" doc:"What it asks for. Forgotten 30 days after the closing."`
	Address  string     `json:"address,omitempty" doc:"To staff alone: the mail address that it came from."`
	Received time.Time  `json:"received_at" doc:"When it came: the deadline counts from then."`
	OpenedAt time.Time  `json:"opened_at" doc:"When it was written down: later than that, for a letter that had lain."`
	DueAt    time.Time  `json:"due_at" doc:"By when it is answered."`
	ClosedAt *time.Time `json:"closed_at,omitempty" doc:"When it was closed."`
	ActsAt   *time.Time `json:"acts_at,omitempty" doc:"Until then its person can withdraw it before it is done: an erasure that a letter asked for, of an account with a second factor."`
	Overdue  bool       `json:"overdue" doc:"Whether it is open behind its deadline."`
}

// request is one as its person sees it.
func request(r privacy.Request) requestView {
	return requestView{ID: r.ID, Kind: string(r.Kind), State: string(r.State), Origin: r.Origin, Ref: r.Ref, Outcome: string(r.Outcome), Note: r.Note,
		Received: r.Received, OpenedAt: r.OpenedAt, DueAt: r.DueAt, ClosedAt: moment(r.ClosedAt), ActsAt: moment(r.ActsAt), Overdue: r.Overdue}
}

func staffRequest(r privacy.Request) requestView {
	v := request(r)
	v.Account, v.Address = r.Subject, r.Address
	return v
}

type requestsView struct {
	Data       []requestView `json:"data" nullable:"false" doc:"The requests."`
	NextCursor string        `json:"next_cursor,omitempty" doc:"For the next page; left out on the last."`
}

type requestsOutput struct{ Body requestsView }

type requestOutput struct{ Body requestView }

type requestsInput struct {
	Cursor string `query:"cursor" maxLength:"100" doc:"next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many."`
}

func (a *API) listRequests(ctx context.Context, in *requestsInput) (*requestsOutput, error) {
	if err := cursor("req", in.Cursor); err != nil {
		return nil, err
	}
	list, next, err := a.rooms.Privacy.Requests(ctx, callOf(ctx).owner, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	return &requestsOutput{Body: requestsView{Data: each(list, request), NextCursor: next}}, nil
}

type askBody struct {
	Kind string `json:"kind" enum:"access,rectification" doc:"What the staff answers. For the other rights there are routes of their own."`
	Note string `json:"note,omitempty" maxLength:"2000" doc:"What you want to know, or what is wrong and how it is right."`
}

type askInput struct {
	Body askBody `contentType:"application/json"`
}

func (a *API) ask(ctx context.Context, in *askInput) (*requestOutput, error) {
	r, err := a.rooms.Privacy.Ask(ctx, callOf(ctx).owner, privacy.RequestKind(in.Body.Kind), in.Body.Note)
	if err != nil {
		return nil, err
	}
	return &requestOutput{Body: request(r)}, nil
}

type withdrawRequestInput struct {
	ID string `path:"id" doc:"Of the request." example:"req_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

func (a *API) withdrawRequest(ctx context.Context, in *withdrawRequestInput) (*struct{}, error) {
	if err := known("req", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Privacy.Withdraw(ctx, callOf(ctx).owner, in.ID)
}

func (a *API) doNotSell(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, a.rooms.Accounts.SetDoNotSell(ctx, callOf(ctx).who, true)
}

type signalInput struct{ signalled bool }

// Resolve looks whether the browser says the opposite at the same time.
func (in *signalInput) Resolve(hc huma.Context) []error {
	in.signalled = hc.Header("Sec-GPC") == "1"
	return nil
}

func (a *API) allowSale(ctx context.Context, in *signalInput) (*struct{}, error) {
	if in.signalled {
		return nil, problem.New(problem.Conflict, "Your browser says by Sec-GPC that your data is not to be sold or shared, and that counts. Turn the signal off first.")
	}
	return nil, a.rooms.Accounts.SetDoNotSell(ctx, callOf(ctx).who, false)
}

type staffRequestsInput struct {
	Filter string `query:"filter" enum:"open,overdue,all" default:"open" doc:"open: also those that wait for their confirmation."`
	Cursor string `query:"cursor" maxLength:"100" doc:"next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many."`
}

func (a *API) listStaffRequests(ctx context.Context, in *staffRequestsInput) (*requestsOutput, error) {
	if err := a.rooms.Accounts.IsOfficer(callOf(ctx).who); err != nil {
		return nil, err
	}
	if err := cursor("req", in.Cursor); err != nil {
		return nil, err
	}
	list, err := a.rooms.Privacy.StaffRequests(ctx, in.Filter, in.Cursor, in.Limit+1)
	if err != nil {
		return nil, err
	}
	list, next := page(list, in.Limit, func(r privacy.Request) string { return r.ID })
	return &requestsOutput{Body: requestsView{Data: each(list, staffRequest), NextCursor: next}}, nil
}

type openRequestBody struct {
	Email    string `json:"email" minLength:"3" maxLength:"254" doc:"The mail address that somebody wrote from. A code is sent to it."`
	Kind     string `json:"kind" enum:"access,export,erasure,rectification,restriction,objection,do_not_sell" doc:"Which right they use."`
	Note     string `json:"note,omitempty" maxLength:"2000" doc:"What they ask for."`
	Received string `json:"received_at,omitempty" format:"date" doc:"The day on which the letter came, in UTC, at most 60 days ago; left out: today. The deadline counts from it."`
	Reason   string `json:"reason" minLength:"10" maxLength:"500" doc:"Where it comes from, such as a letter and its date. It is kept."`
}

type openRequestInput struct {
	Body openRequestBody `contentType:"application/json"`
}

func shownRequest(r privacy.Request, err error) (*requestOutput, error) {
	if err != nil {
		return nil, err
	}
	return &requestOutput{Body: staffRequest(r)}, nil
}

func (a *API) openRequest(ctx context.Context, in *openRequestInput) (*requestOutput, error) {
	b := in.Body
	var received time.Time
	if b.Received != "" {
		var err error
		if received, err = time.Parse(time.DateOnly, b.Received); err != nil {
			return nil, problem.Invalid(problem.Field{Location: "body.received_at", Message: "must be a day, such as 2026-01-12"})
		}
	}
	return shownRequest(a.rooms.Privacy.OpenRequest(ctx, a.officer(ctx, b.Reason), b.Email, privacy.RequestKind(b.Kind), b.Note, received))
}

type showRequestInput struct {
	ID   string     `path:"id" doc:"Of the request." example:"req_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body reasonBody `contentType:"application/json"`
}

func (a *API) showRequest(ctx context.Context, in *showRequestInput) (*requestOutput, error) {
	if err := known("req", in.ID); err != nil {
		return nil, err
	}
	return shownRequest(a.rooms.Privacy.ShowRequest(ctx, a.officer(ctx, in.Body.Reason), in.ID))
}

type closeRequestBody struct {
	Outcome string `json:"outcome" enum:"done,refused,withdrawn,nothing_held" doc:"How it is answered."`
	Reason  string `json:"reason" minLength:"10" maxLength:"500" doc:"Why, or what was done. It is kept, and mailed to the person with how to complain."`
}

type closeRequestInput struct {
	ID   string           `path:"id" doc:"Of the request." example:"req_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body closeRequestBody `contentType:"application/json"`
}

func (a *API) closeRequest(ctx context.Context, in *closeRequestInput) (*requestOutput, error) {
	if err := known("req", in.ID); err != nil {
		return nil, err
	}
	b := in.Body
	return shownRequest(a.rooms.Privacy.CloseRequest(ctx, a.officer(ctx, b.Reason), in.ID, privacy.RequestOutcome(b.Outcome), b.Reason))
}

type confirmRequestBody struct {
	Token string `json:"token" minLength:"1" maxLength:"100" doc:"The code from the mail."`
}

type confirmRequestInput struct {
	Body confirmRequestBody `contentType:"application/json"`
}

// confirmRequest says nothing of an account: that is mailed.
func (a *API) confirmRequest(ctx context.Context, in *confirmRequestInput) (*sentOutput, error) {
	if _, err := a.rooms.Privacy.ConfirmRequest(ctx, in.Body.Token); err != nil {
		return nil, err
	}
	return &sentOutput{Body: sentView{Message: "The request is confirmed. What becomes of it is told by mail."}}, nil
}

var (
	sampleRequest = requestView{ID: "req_06f3k2m9v0q8r5w1x4y7z2a6bc", Kind: "rectification", State: "open", Origin: "self",
		Note: "My name is spelt with one n.", Received: sampleAt, OpenedAt: sampleAt, DueAt: sampleAt.AddDate(0, 0, 30)}
	sampleStaffRequest = requestView{ID: sampleRequest.ID, Kind: "erasure", State: "unconfirmed", Origin: "address", Received: sampleAt, OpenedAt: sampleAt, DueAt: sampleAt.AddDate(0, 0, 30)}

	doNotSellDoc = doc{
		id: "set-do-not-sell", tag: tagAccount, summary: "Say that your data is not to be sold or shared",
		description: "Kept on the account. A request with `Sec-GPC: 1` says the same; one without it takes nothing back. Nothing is sold either way, and the service stays the same.",
		answers:     none("Kept."),
	}
	allowSaleDoc = doc{
		id: "withdraw-do-not-sell", tag: tagAccount, summary: "Take that back",
		description: "Only so, and not while the browser sends `Sec-GPC: 1`.",
		answers:     none("Taken back."),
		codes:       []problem.Code{problem.Conflict},
	}
	requestsDoc = doc{
		id: "list-requests", tag: tagAccount, summary: "List your requests",
		description: "Every use of your rights, with state and deadline: what you asked here or by the routes of their own (exports, closing, restriction, objections, do not sell), and what you asked by mail and confirmed.",
		answers:     ok("A page, newest first.", requestsView{Data: []requestView{sampleRequest}}),
		codes:       []problem.Code{problem.InvalidRequest},
	}
	askDoc = doc{
		id: "make-request", tag: tagAccount, summary: "Ask the staff for access or correction",
		description: "What you can see and change by yourself needs no request. It is answered by mail before its deadline. Five may be open at once.",
		request:     askBody{Kind: "rectification", Note: sampleRequest.Note},
		answers:     ok("It is open.", sampleRequest),
		codes:       []problem.Code{problem.Conflict},
	}
	withdrawRequestDoc = doc{
		id: "withdraw-request", tag: tagAccount, summary: "Withdraw a request",
		description: "While nothing was begun for it. An erasure that a letter asked for waits 3 days for this when the account has a second factor: see `acts_at`.",
		answers:     none("Withdrawn."),
		codes:       []problem.Code{problem.NotFound, problem.Conflict},
	}
	staffRequestsDoc = doc{
		id: "list-all-requests", tag: tagStaff, summary: "List requests",
		description: "For privacy officers: what is open, and by when. What people wrote is left out.",
		answers:     ok("A page, oldest first.", requestsView{Data: []requestView{sampleStaffRequest}}),
		codes:       []problem.Code{problem.InvalidRequest},
	}
	openRequestDoc = doc{
		id: "open-request", tag: tagStaff, summary: "Open a request for a mail address",
		description: "For somebody who wrote, with or without an account. A code is mailed to the address, good once and for 7 days; nothing is done before it comes back. Then an account is closed, exported, restricted and so on as its owner could do it; " +
			"to an address without account it is answered that nothing is held. For privacy officers.",
		request: openRequestBody{Email: "ada@example.com", Kind: "erasure", Received: "2026-01-12", Reason: "Letter of 12 January, file 7."},
		answers: ok("It waits for the confirmation.", sampleStaffRequest),
		codes:   []problem.Code{problem.Conflict, problem.ReauthNeeded},
	}
	showRequestDoc = doc{
		id: "show-request", tag: tagStaff, summary: "Open what a request says",
		description: "Note and address. For privacy officers, with a reason; the person sees that it was opened.",
		request:     reasonBody{Reason: "To answer it, before the deadline."},
		answers:     ok("The request.", sampleRequest),
		codes:       []problem.Code{problem.NotFound, problem.ReauthNeeded},
	}
	closeRequestDoc = doc{
		id: "close-request", tag: tagStaff, summary: "Close a request",
		description: "With its outcome and the reason, which are mailed to the person together with how to complain. An erasure that runs closes its request itself. For privacy officers.",
		request:     closeRequestBody{Outcome: "done", Reason: "The name was corrected in our answer of today."},
		answers:     ok("Closed.", requestView{ID: sampleRequest.ID, Kind: "rectification", State: "closed", Outcome: "done", Origin: "self", Received: sampleAt, OpenedAt: sampleAt, DueAt: sampleAt.AddDate(0, 0, 30), ClosedAt: pointer(sampleAt)}),
		codes:       []problem.Code{problem.NotFound, problem.Conflict, problem.ReauthNeeded},
	}
	confirmRequestDoc = doc{
		id: "confirm-request", tag: tagPrivacy, summary: "Confirm a request from a mail address",
		description: "With the code that was mailed to it. What was asked for is done or begun at once, but for the erasure of an account with a second factor, which waits 3 days; the answer comes by mail.",
		request:     confirmRequestBody{Token: "zq_…"},
		answers:     ok("Confirmed.", sentView{Message: "The request is confirmed. What becomes of it is told by mail."}),
		codes:       []problem.Code{problem.LinkInvalid},
	}
)
