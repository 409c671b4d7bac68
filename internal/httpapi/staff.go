package httpapi

import "context"

type findBody struct {
	Email  string `json:"email" minLength:"3" maxLength:"254" doc:"The person's mail address."`
	Reason string `json:"reason" minLength:"10" maxLength:"500" doc:"Why you open personal data. It is kept, and the person sees it, unless a case forbids that."`
	Case   string `json:"case,omitempty" maxLength:"300" doc:"Reference of a case that forbids that the person learns of it: then they do not see that you opened their account. For privacy officers."`
}

type findInput struct {
	Body findBody `contentType:"application/json"`
}

func (a *API) findAccount(ctx context.Context, in *findInput) (*accountOutput, error) {
	if in.Body.Case != "" {
		return shown(a.rooms.Accounts.FindForCase(ctx, callOf(ctx).who, in.Body.Email, in.Body.Case, in.Body.Reason))
	}
	return shown(a.rooms.Accounts.FindAccount(ctx, callOf(ctx).who, in.Body.Email, in.Body.Reason))
}

type reasonBody struct {
	Reason string `json:"reason" minLength:"10" maxLength:"500" doc:"Why. It is kept, and the person sees it."`
}

type reasonInput struct {
	ID   string     `path:"id" doc:"Of the account." example:"sub_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body reasonBody `contentType:"application/json"`
}

func (a *API) suspendAccount(ctx context.Context, in *reasonInput) (*struct{}, error) {
	if err := known("sub", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Accounts.Suspend(ctx, callOf(ctx).who, in.ID, in.Body.Reason)
}

func (a *API) unsuspendAccount(ctx context.Context, in *reasonInput) (*struct{}, error) {
	if err := known("sub", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Accounts.Unsuspend(ctx, callOf(ctx).who, in.ID, in.Body.Reason)
}

func (a *API) closeChild(ctx context.Context, in *reasonInput) (*struct{}, error) {
	if err := known("sub", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Accounts.CloseChild(ctx, callOf(ctx).who, in.ID, in.Body.Reason)
}
