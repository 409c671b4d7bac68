package httpapi

import (
	"context"
	"errors"
	"strings"
	"time"

	"zimage/internal/account"
	"zimage/internal/problem"
)

type createKeyBody struct {
	Name      string     `json:"name,omitempty" maxLength:"100" doc:"What it is for."`
	Scopes    []string   `json:"scopes" enum:"generate,read,webhooks,account,admin" minItems:"1" maxItems:"5" nullable:"false" doc:"What it may do."`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"Left out: never."`
}

type createKeyInput struct {
	Body createKeyBody `contentType:"application/json"`
}

type newKeyOutput struct{ Body newKeyView }

func (a *API) createKey(ctx context.Context, in *createKeyInput) (*newKeyOutput, error) {
	var expires time.Time
	if in.Body.ExpiresAt != nil {
		expires = *in.Body.ExpiresAt
	}
	token, k, err := a.rooms.Accounts.NewKey(ctx, callOf(ctx).who, in.Body.Name, in.Body.Scopes, expires)
	if err != nil {
		return nil, inBody(err)
	}
	a.failures.succeeded(token)
	return &newKeyOutput{Body: newKeyView{Token: token, Key: key(k)}}, nil
}

// inBody says where the fields stand that a room named without knowing of bodies.
func inBody(err error) error {
	var p *problem.Error
	if errors.As(err, &p) {
		for i, f := range p.Fields {
			if !strings.HasPrefix(f.Location, "body.") {
				p.Fields[i].Location = "body." + f.Location
			}
		}
	}
	return err
}

type keysOutput struct{ Body keysView }

func (a *API) listKeys(ctx context.Context, _ *struct{}) (*keysOutput, error) {
	list, err := a.rooms.Accounts.Keys(ctx, callOf(ctx).owner)
	if err != nil {
		return nil, err
	}
	return &keysOutput{Body: keysView{Data: each(list, key)}}, nil
}

type keyInput struct {
	ID string `path:"id" doc:"Of the key." example:"key_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

func (a *API) revokeKey(ctx context.Context, in *keyInput) (*struct{}, error) {
	if err := known("key", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Accounts.RevokeKey(ctx, callOf(ctx).owner, in.ID)
}

type keyView struct {
	ID         string     `json:"id" doc:"To revoke it by."`
	Prefix     string     `json:"prefix" doc:"Its first letters, to tell it from others."`
	Name       string     `json:"name,omitempty" doc:"What it is for."`
	Scopes     []string   `json:"scopes" nullable:"false" doc:"What it may do."`
	CreatedAt  time.Time  `json:"created_at" doc:"When it was made."`
	ExpiresAt  *time.Time `json:"expires_at,omitempty" doc:"Left out: never."`
	RevokedAt  *time.Time `json:"revoked_at,omitempty" doc:"Left out: it is not."`
	LastUsedAt *time.Time `json:"last_used_at,omitempty" doc:"A few minutes behind; left out: never."`
}

type keysView struct {
	Data []keyView `json:"data" nullable:"false" doc:"Newest first, revoked and expired ones too."`
}

type newKeyView struct {
	Token string  `json:"token" doc:"The key itself. Shown once."`
	Key   keyView `json:"key" doc:"What is kept of it."`
}

func key(k account.Key) keyView {
	return keyView{
		ID: k.ID, Prefix: k.Prefix, Name: k.Name, Scopes: k.Scopes, CreatedAt: k.CreatedAt.UTC(),
		ExpiresAt: moment(k.ExpiresAt), RevokedAt: moment(k.RevokedAt), LastUsedAt: moment(k.LastUsedAt),
	}
}
