package httpapi

import (
	"context"
	"encoding/json"
	"time"

	"zimage/internal/account"
)

type totpOutput struct{ Body totpView }

func (a *API) beginTOTP(ctx context.Context, _ *struct{}) (*totpOutput, error) {
	secret, uri, err := a.rooms.Accounts.BeginTOTP(ctx, callOf(ctx).who)
	if err != nil {
		return nil, err
	}
	return &totpOutput{Body: totpView{Secret: secret, URI: uri}}, nil
}

type recoveryOutput struct {
	SetCookie string `header:"Set-Cookie"`
	Body      recoveryView
}

func recovery(codes []string, err error) (*recoveryOutput, error) {
	if err != nil {
		return nil, err
	}
	return &recoveryOutput{Body: recoveryView{RecoveryCodes: codes}}, nil
}

func (a *API) confirmTOTP(ctx context.Context, in *codeInput) (*recoveryOutput, error) {
	call := callOf(ctx)
	got, err := a.rooms.Accounts.ConfirmTOTP(ctx, call.who, call.client, in.Body.Code)
	if err != nil {
		return nil, err
	}
	return &recoveryOutput{SetCookie: a.cookieOf(got.SignedIn), Body: recoveryView{RecoveryCodes: got.Recovery}}, nil
}

func (a *API) removeTOTP(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, a.rooms.Accounts.RemoveTOTP(ctx, callOf(ctx).who)
}

func (a *API) newRecoveryCodes(ctx context.Context, _ *struct{}) (*recoveryOutput, error) {
	return recovery(a.rooms.Accounts.NewRecoveryCodes(ctx, callOf(ctx).who))
}

type challengeOutput struct{ Body challengeView }

func challenge(c account.PasskeyChallenge, err error) (*challengeOutput, error) {
	if err != nil {
		return nil, err
	}
	return &challengeOutput{Body: challengeView(c)}, nil
}

func (a *API) beginPasskey(ctx context.Context, _ *struct{}) (*challengeOutput, error) {
	return challenge(a.rooms.Accounts.BeginPasskey(ctx, callOf(ctx).who))
}

func (a *API) passkeyChallenge(context.Context, *struct{}) (*challengeOutput, error) {
	return challenge(a.rooms.Accounts.PasskeyChallenge())
}

type addPasskeyBody struct {
	Name    string            `json:"name,omitempty" maxLength:"100" doc:"To tell it from others."`
	Passkey passkeyAnswerView `json:"passkey" doc:"What the authenticator answered."`
}

type addPasskeyInput struct {
	Body addPasskeyBody `contentType:"application/json"`
}

type addedPasskeyOutput struct {
	SetCookie string `header:"Set-Cookie"`
	Body      addedPasskeyView
}

func (a *API) addPasskey(ctx context.Context, in *addPasskeyInput) (*addedPasskeyOutput, error) {
	call := callOf(ctx)
	p, got, err := a.rooms.Accounts.AddPasskey(ctx, call.who, call.client, in.Body.Name, *in.Body.Passkey.answer())
	if err != nil {
		return nil, err
	}
	return &addedPasskeyOutput{
		SetCookie: a.cookieOf(got.SignedIn),
		Body:      addedPasskeyView{Passkey: passkey(p), RecoveryCodes: got.Recovery},
	}, nil
}

type passkeysOutput struct{ Body passkeysView }

func (a *API) listPasskeys(ctx context.Context, _ *struct{}) (*passkeysOutput, error) {
	list, err := a.rooms.Accounts.Passkeys(ctx, callOf(ctx).owner)
	if err != nil {
		return nil, err
	}
	return &passkeysOutput{Body: passkeysView{Data: each(list, passkey)}}, nil
}

type passkeyInput struct {
	ID string `path:"id" doc:"Of the passkey." example:"pk_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

func (a *API) removePasskey(ctx context.Context, in *passkeyInput) (*struct{}, error) {
	if err := known("pk", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Accounts.RemovePasskey(ctx, callOf(ctx).who, in.ID)
}

type passkeySignInBody struct {
	Passkey passkeyAnswerView `json:"passkey" doc:"What the authenticator answered."`
}

type passkeySignInInput struct {
	Body passkeySignInBody `contentType:"application/json"`
}

func (a *API) signInWithPasskey(ctx context.Context, in *passkeySignInInput) (*signedInOutput, error) {
	s, err := a.rooms.Accounts.SignInWithPasskey(ctx, callOf(ctx).client, *in.Body.Passkey.answer())
	return a.signedIn(s, err)
}

type totpView struct {
	Secret string `json:"secret" doc:"In base 32, to type into the app. Shown once."`
	URI    string `json:"uri" doc:"otpauth://…, to show as a QR code."`
}

type recoveryView struct {
	RecoveryCodes []string `json:"recovery_codes" nullable:"false" doc:"Each works once, when the app is lost. Shown once: keep them safe."`
}

// challengeView is what a page hands to navigator.credentials.
type challengeView struct {
	ID      string `json:"id" doc:"To send back with the answer, within five minutes."`
	Options any    `json:"options" doc:"What navigator.credentials.create or get takes, as JSON (PublicKeyCredential.parse…OptionsFromJSON)."`
}

type passkeyAnswerView struct {
	ChallengeID string          `json:"challenge_id" minLength:"1" maxLength:"64" doc:"The id of the challenge."`
	Response    json.RawMessage `json:"response" doc:"PublicKeyCredential.toJSON()."`
}

// answer is nil for none.
func (v *passkeyAnswerView) answer() *account.PasskeyAnswer {
	if v == nil {
		return nil
	}
	return &account.PasskeyAnswer{ChallengeID: v.ChallengeID, Response: v.Response}
}

type passkeyView struct {
	ID         string     `json:"id" doc:"To remove it by."`
	Name       string     `json:"name,omitempty" doc:"As you called it."`
	CreatedAt  time.Time  `json:"created_at" doc:"When it was registered."`
	LastUsedAt *time.Time `json:"last_used_at,omitempty" doc:"When it last signed in."`
}

type passkeysView struct {
	Data []passkeyView `json:"data" nullable:"false" doc:"Newest first."`
}

type addedPasskeyView struct {
	Passkey       passkeyView `json:"passkey" doc:"The new one."`
	RecoveryCodes []string    `json:"recovery_codes,omitempty" nullable:"false" doc:"Only with the first factor. Shown once."`
}

type secondFactorView struct {
	TOTP     bool           `json:"totp" doc:"A code of the authenticator app."`
	Recovery bool           `json:"recovery" doc:"A recovery code."`
	Passkey  *challengeView `json:"passkey,omitempty" doc:"A passkey: its challenge."`
}

func secondFactor(f *account.SecondFactor) *secondFactorView {
	v := &secondFactorView{TOTP: f.TOTP, Recovery: f.Recovery}
	if f.Passkey != nil {
		c := challengeView(*f.Passkey)
		v.Passkey = &c
	}
	return v
}

func passkey(p account.Passkey) passkeyView {
	return passkeyView{ID: p.ID, Name: p.Name, CreatedAt: p.CreatedAt.UTC(), LastUsedAt: moment(p.LastUsedAt)}
}
