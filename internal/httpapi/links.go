package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"zimage/internal/generate"
	"zimage/internal/problem"
)

type signLinkBody struct {
	Thumbnail bool `json:"thumbnail,omitempty" doc:"To the small JPEG instead of the picture. Left out: no."`
	ExpiresIn int  `json:"expires_in,omitempty" minimum:"1" maximum:"86400" doc:"Seconds that it lives, and never longer than the picture. Left out: 3600."`
}

type signLinkInput struct {
	ID   string       `path:"id" doc:"Of the image." example:"img_06f3k2m9w1q8r5w1x4y7z2a6bc"`
	Body signLinkBody `contentType:"application/json"`
}

type linkView struct {
	URL       string    `json:"url" doc:"The picture, without a key, for whoever has it. It is shown once."`
	ExpiresAt time.Time `json:"expires_at" doc:"When it ends."`
}

type signLinkOutput struct{ Body linkView }

func (a *API) signLink(ctx context.Context, in *signLinkInput) (*signLinkOutput, error) {
	if err := known("img", in.ID); err != nil {
		return nil, err
	}
	l, err := a.rooms.Generate.SignLink(ctx, callOf(ctx).owner, in.ID, in.Body.Thumbnail, time.Duration(in.Body.ExpiresIn)*time.Second)
	if err != nil {
		return nil, err
	}
	return &signLinkOutput{Body: linkView{URL: a.linkURL(l), ExpiresAt: l.ExpiresAt}}, nil
}

func (a *API) linkURL(l generate.Link) string { return a.base + "/v1/links/" + l.Token }

func (a *API) revokeLinks(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, a.rooms.Generate.RevokeLinks(ctx, callOf(ctx).owner)
}

type tokenInput struct {
	Token string `path:"token" doc:"Of the link." example:"AAAAAZvBkPAAAAAAAAAAAABpbWdf"`
}

// linked sends a picture to whoever has a link to it, of whom nothing is kept.
func (a *API) linked(ctx context.Context, in *tokenInput) (*streamOutput, error) {
	out, err := a.sendToViewer(ctx, in.Token, a.rooms.Generate.Linked)
	if err != nil {
		return nil, err
	}
	return &streamOutput{Body: func(hc huma.Context) {
		// A page of another site may show it: that is what the link was made for.
		hc.SetHeader("Cross-Origin-Resource-Policy", "cross-origin")
		out.Body(hc)
	}}, nil
}

// sendToViewer sends what a token opens.
func (a *API) sendToViewer(ctx context.Context, token string, open func(context.Context, string) (generate.Content, error)) (*streamOutput, error) {
	release, err := a.viewing(ctx)
	if err != nil {
		return nil, err
	}
	content, err := open(ctx, token)
	if err != nil {
		release()
		return nil, err
	}
	out, err := a.send(ctx, content, func(h http.Header) { h.Set("X-Robots-Tag", "noindex") })
	if err != nil {
		release()
		return nil, err
	}
	return &streamOutput{Body: func(hc huma.Context) {
		defer release()
		out.Body(hc)
	}}, nil
}

var (
	sampleLink = linkView{URL: "https://images.example.org/v1/links/AAAAAZvBkPAAAAAAAAAAAABpbWdf", ExpiresAt: sampleAt.Add(generate.LinkLife)}

	signLinkDoc = doc{
		id: "sign-link", tag: tagLinks, summary: "Make a short-lived link",
		description: "To one picture or its thumbnail, for whoever has the link: no key stands in it. It lives for an hour, or as you say, for a day at most, and is kept nowhere. " +
			"It ends with the picture, with `DELETE /v1/links`, and while the account is restricted or suspended.",
		request: signLinkBody{ExpiresIn: 600},
		answers: ok("The link.", sampleLink),
		codes:   []problem.Code{problem.NotFound, problem.DataRemoved},
	}
	revokeLinksDoc = doc{
		id: "revoke-links", tag: tagLinks, summary: "Revoke all short-lived links",
		description: "All that were made until now open nothing any more, at once. What you share by `/v1/shares` stays.",
		answers:     none("Revoked."),
	}
	linkedDoc = doc{
		id: "open-link", tag: tagLinks, summary: "Open a short-lived link", long: true,
		description: "The picture, for whoever has the link. One that is wrong, revoked or past its time answers like one that never was.",
		answers:     []good{{status: http.StatusOK, description: "The file.", kind: "image/*", headers: []string{"Content-Disposition", "X-Robots-Tag"}}},
		codes:       []problem.Code{problem.NotFound},
	}
)
