package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/gin-gonic/gin"

	"zimage/internal/account"
	"zimage/internal/problem"
)

const (
	// The prefix makes browsers refuse the cookie from anybody but this very
	// host, over https (RFC 6265bis, 4.1.3.2). On a loopback address there is no
	// https, so there the plain name stands.
	sessionCookie  = "__Host-zimage"
	loopbackCookie = "zimage"

	mostAgent = 512 // bytes
)

func (a *API) cookieName() string {
	if a.secure {
		return sessionCookie
	}
	return loopbackCookie
}

// cookie is the session's token that the browser sent; empty: none, or several,
// of which nobody could say which one counts.
func (a *API) cookie(r *http.Request) string {
	sent := r.CookiesNamed(a.cookieName())
	if len(sent) != 1 || !visible(sent[0].Value, 255) {
		return ""
	}
	return sent[0].Value
}

// setCookie is the only cookie there is. It outlives the browser's window as
// long as the session does.
func (a *API) setCookie(token string, life time.Duration) string {
	c := http.Cookie{ //nolint:gosec // on a loopback address there is no https, and no Secure
		Name: a.cookieName(), Value: token, Path: "/", MaxAge: int(life.Seconds()),
		HttpOnly: true, Secure: a.secure, SameSite: http.SameSiteLaxMode,
	}
	return c.String()
}

func (a *API) clearCookie() string { return a.setCookie("", -time.Second) }

// clientOf is who asks, as far as the door can see.
func (a *API) clientOf(c *gin.Context) account.Client {
	addr, _ := netip.ParseAddr(c.ClientIP())
	agent := c.Request.UserAgent()
	return account.Client{Addr: addr.Unmap().WithZone(""), Agent: agent[:min(len(agent), mostAgent)], Device: a.cookie(c.Request)}
}

func (a *API) signedIn(s account.SignedIn, err error) (*signedInOutput, error) {
	if err != nil {
		return nil, err
	}
	s.Session.Current = true
	return &signedInOutput{SetCookie: a.cookieOf(s), Body: session(s.Session)}, nil
}

// cookieOf is the cookie of a session that was opened, or has a new token; empty
// for one that keeps its own.
func (a *API) cookieOf(s account.SignedIn) string {
	if s.Token == "" {
		return ""
	}
	a.failures.succeeded(s.Token) // whoever tries bad ones beside it must not keep it out
	return a.setCookie(s.Token, s.Session.ExpiresAt.Sub(a.rooms.Clock.Now()))
}

type signInBody struct {
	Email    string             `json:"email" minLength:"3" maxLength:"254" doc:"Your mail address."`
	Password string             `json:"password" minLength:"1" maxLength:"1024" doc:"Your password."`
	Code     string             `json:"code,omitempty" maxLength:"100" doc:"Of the authenticator app, or a recovery code, when a second factor is in force."`
	Passkey  *passkeyAnswerView `json:"passkey,omitempty" doc:"Instead of the code."`
}

type signInInput struct {
	Body signInBody `contentType:"application/json"`
}

func (a *API) signIn(ctx context.Context, in *signInInput) (*signedInOutput, error) {
	b := in.Body
	s, err := a.rooms.Accounts.SignIn(ctx, callOf(ctx).client,
		account.Credentials{Email: b.Email, Password: b.Password, Code: b.Code, Passkey: b.Passkey.answer()})
	return a.signedIn(s, err)
}

type sessionOutput struct{ Body sessionView }

func (a *API) getSession(ctx context.Context, _ *struct{}) (*sessionOutput, error) {
	call := callOf(ctx)
	list, err := a.rooms.Accounts.Sessions(ctx, call.who)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.Current {
			return &sessionOutput{Body: session(s)}, nil
		}
	}
	return nil, problem.New(problem.Unauthorized, "You are not signed in.") // it ended meanwhile
}

func (a *API) signOut(ctx context.Context, _ *struct{}) (*clearedOutput, error) {
	device, err := a.rooms.Accounts.SignOut(ctx, callOf(ctx).who)
	if err != nil {
		return nil, err
	}
	return &clearedOutput{SetCookie: a.setCookie(device, deviceLife)}, nil
}

// deviceLife is how long a browser is known again after a sign-out.
const deviceLife = 90 * 24 * time.Hour

func (a *API) reauthenticate(ctx context.Context, in *credentialsInput) (*signedInOutput, error) {
	call := callOf(ctx)
	s, err := a.rooms.Accounts.Reauthenticate(ctx, call.who, call.client, in.Body.credentials())
	return a.signedIn(s, err)
}

type sessionsOutput struct{ Body sessionsView }

func (a *API) listSessions(ctx context.Context, _ *struct{}) (*sessionsOutput, error) {
	list, err := a.rooms.Accounts.Sessions(ctx, callOf(ctx).who)
	if err != nil {
		return nil, err
	}
	return &sessionsOutput{Body: sessionsView{Data: each(list, session)}}, nil
}

type endedOutput struct{ Body endedView }

func (a *API) endSessions(ctx context.Context, _ *struct{}) (*endedOutput, error) {
	who := callOf(ctx).who
	n, err := a.rooms.Accounts.EndSessions(ctx, who.Subject, who.SessionID)
	if err != nil {
		return nil, err
	}
	return &endedOutput{Body: endedView{Ended: n}}, nil
}

type sessionInput struct {
	ID string `path:"id" doc:"Of the session." example:"ses_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

func (a *API) endSession(ctx context.Context, in *sessionInput) (*struct{}, error) {
	if err := known("ses", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Accounts.EndSession(ctx, callOf(ctx).owner, in.ID)
}

type sessionView struct {
	ID         string    `json:"id" doc:"To end it by."`
	Method     string    `json:"method" enum:"password,password+totp,password+recovery,password+passkey,passkey" doc:"How it was opened."`
	Agent      string    `json:"agent,omitempty" doc:"What the browser calls itself."`
	Place      string    `json:"place,omitempty" doc:"Roughly where it was opened; left out when that is not known."`
	CreatedAt  time.Time `json:"created_at" doc:"When it was opened."`
	LastUsedAt time.Time `json:"last_used_at" doc:"To the minute."`
	ExpiresAt  time.Time `json:"expires_at" doc:"It ends then at the latest."`
	Current    bool      `json:"current" doc:"Whether it is the one that asks."`
}

type sessionsView struct {
	Data []sessionView `json:"data" nullable:"false" doc:"Newest first."`
}

type endedView struct {
	Ended int `json:"ended" doc:"How many other sessions were ended."`
}

func session(s account.Session) sessionView {
	return sessionView{
		ID: s.ID, Method: string(s.Method), Agent: s.Agent, Place: s.Place, Current: s.Current,
		CreatedAt: s.CreatedAt.UTC(), LastUsedAt: s.LastUsedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC(),
	}
}
