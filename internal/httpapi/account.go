package httpapi

import (
	"context"
	"encoding/json"
	"time"

	"zimage/internal/account"
	"zimage/internal/db"
	"zimage/internal/subject"
)

type signUpBody struct {
	Email     string   `json:"email" minLength:"3" maxLength:"254" doc:"Your mail address. A code is sent to it."`
	Username  string   `json:"username" minLength:"3" maxLength:"30" doc:"Letters, digits, dot, dash and underscore. Nobody signs in with it."`
	Password  string   `json:"password" minLength:"8" maxLength:"1024" doc:"At least 8 characters, none of the common ones; 15 and more are better."`
	OldEnough bool     `json:"old_enough" doc:"Your word that you are 13 or older. No date of birth is asked for or kept."`
	Consents  []string `json:"consents,omitempty" enum:"analytics,marketing,profiling,training" maxItems:"4" nullable:"false" doc:"What you agree to, each of it free. Left out: nothing. This version does none of it: your word is kept for what comes."`
	Name      string   `json:"name,omitempty" maxLength:"100" doc:"What you like to be called. It can stay empty."`
}

type signUpInput struct {
	Body signUpBody `contentType:"application/json"`
}

type sentOutput struct{ Body sentView }

// sent is the one answer of every request that may or may not send a mail.
func sent() *sentOutput {
	return &sentOutput{Body: sentView{Message: "If this address can be used for it, a mail with a code is on its way."}}
}

// ageFirst refuses a child before anything else of what it sent is judged, and
// without a line in the log: not even that knows that a child asked.
func ageFirst(c *call, body []byte) error {
	var said struct {
		OldEnough *bool `json:"old_enough"`
	}
	_ = json.Unmarshal(body, &said) // what is wrong with it is told to those who are old enough
	if said.OldEnough == nil || *said.OldEnough {
		return nil
	}
	c.quiet = true
	return account.TooYoung()
}

func (a *API) signUp(ctx context.Context, in *signUpInput) (*sentOutput, error) {
	b := in.Body
	r := account.SignUp{Email: b.Email, Username: b.Username, Password: b.Password, OldEnough: b.OldEnough, Profile: account.Profile{Name: b.Name}}
	for _, purpose := range b.Consents {
		r.Consents = append(r.Consents, subject.Purpose(purpose))
	}
	if err := a.rooms.Accounts.SignUp(ctx, callOf(ctx).client, r); err != nil {
		return nil, err
	}
	return sent(), nil
}

type codePasswordBody struct {
	Code     string `json:"code" minLength:"1" maxLength:"100" doc:"From the mail."`
	Password string `json:"password" minLength:"1" maxLength:"1024" doc:"To confirm a sign-up: the one you chose. To reset it: the new one."`
}

type codePasswordInput struct {
	Body codePasswordBody `contentType:"application/json"`
}

type signedInOutput struct {
	SetCookie string `header:"Set-Cookie"`
	Body      sessionView
}

func (a *API) confirmSignUp(ctx context.Context, in *codePasswordInput) (*signedInOutput, error) {
	s, err := a.rooms.Accounts.ConfirmSignUp(ctx, callOf(ctx).client, in.Body.Code, in.Body.Password)
	return a.signedIn(s, err)
}

type accountOutput struct{ Body accountView }

func (a *API) getAccount(ctx context.Context, _ *struct{}) (*accountOutput, error) {
	return shown(a.rooms.Accounts.User(ctx, callOf(ctx).owner))
}

func shown(u account.User, err error) (*accountOutput, error) {
	if err != nil {
		return nil, err
	}
	return &accountOutput{Body: user(u)}, nil
}

type updateAccountBody struct {
	Username    *string          `json:"username,omitempty" minLength:"3" maxLength:"30" doc:"A new one. Left out: it stays."`
	Name        *string          `json:"name,omitempty" maxLength:"100" doc:"What you like to be called; empty clears it. Left out: it stays."`
	Preferences *preferencesView `json:"preferences,omitempty" doc:"Replaces all of them; an empty object clears them. Left out: they stay."`
}

type updateAccountInput struct {
	Body updateAccountBody `contentType:"application/json"`
}

func (a *API) updateAccount(ctx context.Context, in *updateAccountInput) (*accountOutput, error) {
	change := account.UserChange{Username: in.Body.Username}
	if in.Body.Name != nil {
		change.Profile = &account.Profile{Name: *in.Body.Name}
	}
	if p := in.Body.Preferences; p != nil {
		change.Preferences = &account.Preferences{Model: p.Model, Width: p.Width, Height: p.Height, N: p.N, Format: p.Format}
	}
	return shown(a.rooms.Accounts.UpdateUser(ctx, callOf(ctx).who, change))
}

// credentialsBody proves once more who somebody is.
type credentialsBody struct {
	Password string             `json:"password,omitempty" maxLength:"1024" doc:"Your password. Left out: only with a passkey."`
	Code     string             `json:"code,omitempty" maxLength:"100" doc:"Of the authenticator app, or a recovery code, when a second factor is in force."`
	Passkey  *passkeyAnswerView `json:"passkey,omitempty" doc:"Instead of the code, or of everything."`
}

func (b credentialsBody) credentials() account.Credentials {
	return account.Credentials{Password: b.Password, Code: b.Code, Passkey: b.Passkey.answer()}
}

type credentialsInput struct {
	Body credentialsBody `contentType:"application/json"`
}

type clearedOutput struct {
	SetCookie string `header:"Set-Cookie"`
}

type closedOutput struct {
	SetCookie string `header:"Set-Cookie"`
	Body      closedView
}

func (a *API) closeAccount(ctx context.Context, in *credentialsInput) (*closedOutput, error) {
	call := callOf(ctx)
	out := &closedOutput{SetCookie: a.clearCookie()}
	err := a.rooms.Accounts.Close(ctx, call.who, call.client, in.Body.credentials(), func(tx *db.Tx) (err error) {
		out.Body.Receipt.ID, out.Body.Receipt.Secret, err = a.rooms.Privacy.ClaimIn(ctx, tx, call.owner)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

type emailBody struct {
	Email string `json:"email" minLength:"3" maxLength:"254" doc:"A mail address."`
}

type emailInput struct {
	Body emailBody `contentType:"application/json"`
}

func (a *API) changeEmail(ctx context.Context, in *emailInput) (*sentOutput, error) {
	if err := a.rooms.Accounts.ChangeEmail(ctx, callOf(ctx).who, in.Body.Email); err != nil {
		return nil, err
	}
	return sent(), nil
}

type codeBody struct {
	Code string `json:"code" minLength:"1" maxLength:"100" doc:"The code."`
}

type codeInput struct {
	Body codeBody `contentType:"application/json"`
}

func (a *API) confirmEmail(ctx context.Context, in *codeInput) (*struct{}, error) {
	return nil, a.rooms.Accounts.ConfirmEmail(ctx, callOf(ctx).who, in.Body.Code)
}

type passwordBody struct {
	Password string `json:"password" minLength:"8" maxLength:"1024" doc:"The new one."`
}

type passwordInput struct {
	Body passwordBody `contentType:"application/json"`
}

func (a *API) changePassword(ctx context.Context, in *passwordInput) (*clearedOutput, error) {
	call := callOf(ctx)
	s, err := a.rooms.Accounts.ChangePassword(ctx, call.who, call.client, in.Body.Password)
	if err != nil {
		return nil, err
	}
	return &clearedOutput{SetCookie: a.cookieOf(s)}, nil
}

func (a *API) requestReset(ctx context.Context, in *emailInput) (*sentOutput, error) {
	if err := a.rooms.Accounts.RequestReset(ctx, callOf(ctx).client, in.Body.Email); err != nil {
		return nil, err
	}
	return sent(), nil
}

// reset leaves a cookie that opens nothing: who has the mailbox is known as a
// device of the account, which nobody else's attempts lock out.
func (a *API) reset(ctx context.Context, in *codePasswordInput) (*clearedOutput, error) {
	device, err := a.rooms.Accounts.Reset(ctx, callOf(ctx).client, in.Body.Code, in.Body.Password)
	if err != nil {
		return nil, err
	}
	return &clearedOutput{SetCookie: a.setCookie(device, deviceLife)}, nil
}

type consentsOutput struct{ Body consentsView }

func (a *API) listConsents(ctx context.Context, _ *struct{}) (*consentsOutput, error) {
	list, err := a.rooms.Accounts.Consents(ctx, callOf(ctx).owner)
	if err != nil {
		return nil, err
	}
	out := &consentsOutput{Body: consentsView{Data: []consentView{}}}
	for _, c := range list {
		out.Body.Data = append(out.Body.Data, consentView{Purpose: string(c.Purpose), Granted: c.Granted, PolicyVersion: c.PolicyVersion, At: moment(c.At)})
	}
	return out, nil
}

type setConsentBody struct {
	Granted bool `json:"granted" doc:"true: you agree; false: you take it back."`
}

type consentInput struct {
	Purpose string         `path:"purpose" enum:"analytics,marketing,profiling,training" doc:"What it is about." example:"marketing"`
	Body    setConsentBody `contentType:"application/json"`
}

func (a *API) setConsent(ctx context.Context, in *consentInput) (*struct{}, error) {
	return nil, a.rooms.Accounts.SetConsent(ctx, callOf(ctx).who, subject.Purpose(in.Purpose), in.Body.Granted)
}

type objectionsOutput struct{ Body objectionsView }

func (a *API) listObjections(ctx context.Context, _ *struct{}) (*objectionsOutput, error) {
	list, err := a.rooms.Accounts.Objections(ctx, callOf(ctx).owner)
	if err != nil {
		return nil, err
	}
	out := &objectionsOutput{Body: objectionsView{Data: []objectionView{}}}
	for _, o := range list {
		out.Body.Data = append(out.Body.Data, objectionView{Purpose: string(o.Purpose), Objected: !o.At.IsZero(), At: moment(o.At)})
	}
	return out, nil
}

type objectionInput struct {
	Purpose string `path:"purpose" enum:"statistics" doc:"What it is about." example:"statistics"`
}

func (a *API) object(ctx context.Context, in *objectionInput) (*struct{}, error) {
	return nil, a.rooms.Accounts.Object(ctx, callOf(ctx).who, subject.Purpose(in.Purpose))
}

func (a *API) withdrawObjection(ctx context.Context, in *objectionInput) (*struct{}, error) {
	return nil, a.rooms.Accounts.WithdrawObjection(ctx, callOf(ctx).who, subject.Purpose(in.Purpose))
}

func (a *API) restrict(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, a.rooms.Accounts.Restrict(ctx, callOf(ctx).who)
}

func (a *API) unrestrict(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, a.rooms.Accounts.Unrestrict(ctx, callOf(ctx).who)
}

type sentView struct {
	Message string `json:"message" doc:"In words. It is the same whether or not there is an account."`
}

type accountView struct {
	ID           string          `json:"id" doc:"Of the person, everywhere in the service."`
	Email        string          `json:"email" doc:"The confirmed mail address."`
	Username     string          `json:"username,omitempty" doc:"Left out for accounts made at the command line."`
	Name         string          `json:"name,omitempty" doc:"What you like to be called."`
	Preferences  preferencesView `json:"preferences" doc:"The defaults of your next generation."`
	Role         string          `json:"role,omitempty" enum:"support,privacy,operator" doc:"Only for staff."`
	Factors      factorsView     `json:"factors" doc:"What signing in asks for beside the password."`
	CreatedAt    time.Time       `json:"created_at" doc:"When it was confirmed."`
	RestrictedAt *time.Time      `json:"restricted_at,omitempty" doc:"Since when processing is restricted at your request."`
	SuspendedAt  *time.Time      `json:"suspended_at,omitempty" doc:"Since when the operator refuses new work."`
	DoNotSell    bool            `json:"do_not_sell" doc:"Whether you or your browser said that your data is not to be sold or shared. Nothing is sold either way."`
	DoNotSellAt  *time.Time      `json:"do_not_sell_since,omitempty" doc:"Since when."`
}

type preferencesView struct {
	Model  string `json:"model,omitempty" maxLength:"128" doc:"One of GET /v1/models."`
	Width  int    `json:"width,omitempty" minimum:"1" maximum:"16384" doc:"Pixels."`
	Height int    `json:"height,omitempty" minimum:"1" maximum:"16384" doc:"Pixels."`
	N      int    `json:"n,omitempty" minimum:"1" maximum:"100" doc:"How many images."`
	Format string `json:"format,omitempty" enum:"png,jpeg,webp" doc:"Of the files."`
}

type factorsView struct {
	TOTP          bool `json:"totp" doc:"Codes of an authenticator app."`
	Passkeys      int  `json:"passkeys" doc:"How many are registered."`
	RecoveryCodes int  `json:"recovery_codes" doc:"How many are left."`
}

type consentsView struct {
	Data []consentView `json:"data" nullable:"false" doc:"One for each purpose."`
}

type consentView struct {
	Purpose       string     `json:"purpose" enum:"analytics,marketing,profiling,training" doc:"What it is about."`
	Granted       bool       `json:"granted" doc:"Whether you agree now. Until you say so: no."`
	PolicyVersion string     `json:"policy_version,omitempty" doc:"The words that you agreed to, or took back."`
	At            *time.Time `json:"at,omitempty" doc:"When you last said so."`
}

type objectionsView struct {
	Data []objectionView `json:"data" nullable:"false" doc:"One for each purpose that rests on a legitimate interest."`
}

type objectionView struct {
	Purpose  string     `json:"purpose" enum:"statistics" doc:"What it is about."`
	Objected bool       `json:"objected" doc:"Whether you object to it now."`
	At       *time.Time `json:"at,omitempty" doc:"Since when."`
}

func user(u account.User) accountView {
	return accountView{
		ID: u.ID, Email: u.Email, Username: u.Username, Name: u.Profile.Name, Role: string(u.Role),
		Preferences: preferencesView{Model: u.Preferences.Model, Width: u.Preferences.Width, Height: u.Preferences.Height, N: u.Preferences.N, Format: u.Preferences.Format},
		Factors:     factorsView{TOTP: u.TOTP, Passkeys: u.Passkeys, RecoveryCodes: u.CodesLeft},
		CreatedAt:   u.CreatedAt.UTC(), RestrictedAt: moment(u.RestrictedAt), SuspendedAt: moment(u.SuspendedAt),
		DoNotSell: !u.DoNotSellAt.IsZero(), DoNotSellAt: moment(u.DoNotSellAt),
	}
}
