package prove

import (
	"context"
	"errors"
	"time"

	"github.com/pquerna/otp/totp"
)

// Roles of staff.
const (
	privacyOfficer = "privacy"
	operator       = "operator"
	nobody         = "none"
)

// served is what staff do with a person, all of it with canaries. They come in by the
// door too: with an account of their own, which has its roles for these moments alone
// and is closed again.
func (p *person) served(ctx context.Context, o Options) (err error) {
	c := &person{trace: p.trace, email: o.Address(p.word("staffmail")), password: "four words and " + p.word("staffpassword")}
	p.clerk = c
	if c.id, err = o.Hire(ctx, c.email, c.password); err != nil {
		return err
	}
	defer func() { // whatever comes
		if err != nil {
			err = errors.Join(err, o.Role(context.WithoutCancel(ctx), c.id, nobody))
		}
	}()
	if err := c.signIn(ctx); err != nil {
		return err
	}
	var app struct{ Secret string }
	if err := c.ask(ctx, "POST", "/v1/account/totp", nil, &app); err != nil {
		return err
	}
	code, err := totp.GenerateCode(app.Secret, time.Now())
	if err != nil {
		return errors.New("the secret of the authenticator app is none")
	}
	var added struct {
		RecoveryCodes []string `json:"recovery_codes"`
	}
	if err := c.ask(ctx, "POST", "/v1/account/totp/confirm", object{"code": code}, &added); err != nil {
		return err
	}
	c.factors = added.RecoveryCodes
	for _, as := range []struct {
		role string
		do   func(ctx context.Context, c, p *person, o Options) error
	}{{privacyOfficer, asOfficer}, {operator, asOperator}} {
		if err := o.Role(ctx, c.id, as.role); err != nil {
			return err
		}
		if err := c.signIn(ctx); err != nil { // the sessions of before have ended
			return err
		}
		if err := as.do(ctx, c, p, o); err != nil {
			return err
		}
	}
	if err := o.Role(ctx, c.id, nobody); err != nil {
		return err
	}
	return c.signIn(ctx)
}

func asOfficer(ctx context.Context, c, p *person, o Options) error {
	reason := "ticket 17 of " + c.word("reason")
	var made struct{ ID string }
	hold := object{"account": p.id, "table": "generations", "record": p.pictures[1], "case": c.word("holdcase"), "may_be_told": true, "reason": reason}
	if err := c.ask(ctx, "POST", "/v1/admin/holds", hold, &made); err != nil {
		return err
	}
	letter := object{"email": p.email, "kind": "rectification", "note": c.word("letter"), "reason": reason}
	var request struct{ ID string }
	if err := c.ask(ctx, "POST", "/v1/admin/requests", letter, &request); err != nil {
		return err
	}
	code, err := p.mailed(ctx, o)
	if err != nil {
		return err
	}
	if err := p.ask(ctx, "POST", "/v1/privacy/requests/confirm", object{"token": code}, nil); err != nil {
		return err
	}
	for _, s := range []struct {
		path string
		body object
	}{
		{"/v1/admin/holds/" + made.ID + "/renew", object{"reason": reason}},
		{"/v1/admin/holds/" + made.ID + "/release", object{"reason": reason}},
		{"/v1/admin/requests/" + request.ID + "/open", object{"reason": reason}},
		{"/v1/admin/requests/" + request.ID + "/close", object{"reason": reason, "outcome": "done"}},
		{"/v1/admin/accounts/find", object{"email": p.email, "reason": reason}},
		{"/v1/admin/accounts/find", object{"email": p.email, "reason": reason, "case": c.word("findcase")}},
		{"/v1/admin/accounts/" + p.id + "/disclosures", object{"reason": reason, "case": c.word("case"), "authority": c.word("authority"),
			"scope": c.word("scope"), "may_be_told": true}},
	} {
		if err := c.ask(ctx, "POST", s.path, s.body, nil); err != nil {
			return err
		}
	}
	return c.misuse(ctx, true)
}

func asOperator(ctx context.Context, c, p *person, _ Options) error {
	for _, what := range []string{"suspend", "unsuspend"} {
		if err := c.ask(ctx, "POST", "/v1/admin/accounts/"+p.id+"/"+what, object{"reason": "ticket 17 of " + c.word("reason")}, nil); err != nil {
			return err
		}
	}
	return nil
}
