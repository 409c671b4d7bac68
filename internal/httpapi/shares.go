package httpapi

import (
	"context"
	"net/http"
	"time"

	"zimage/internal/generate"
	"zimage/internal/problem"
)

type makeShareBody struct {
	ExpiresIn int `json:"expires_in,omitempty" minimum:"1" maximum:"31536000" doc:"Seconds that it is shown, and never longer than the picture lives. Left out: 7 days."`
}

type shareInput struct {
	ID   string        `path:"id" doc:"Of the image." example:"img_06f3k2m9w1q8r5w1x4y7z2a6bc"`
	Body makeShareBody `contentType:"application/json"`
}

type shareView struct {
	ID        string    `json:"id" doc:"Of the share; it opens nothing."`
	ImageID   string    `json:"image_id" doc:"What is shown."`
	URL       string    `json:"url,omitempty" doc:"The page, for whoever has its address. It is shown once: to have one again, share again."`
	CreatedAt time.Time `json:"created_at" doc:"Since when."`
	ExpiresAt time.Time `json:"expires_at" doc:"When it ends."`
}

type sharesView struct {
	Data       []shareView `json:"data" nullable:"false" doc:"Newest first."`
	NextCursor string      `json:"next_cursor,omitempty" doc:"For the next page; left out on the last."`
}

type shareOutput struct{ Body shareView }

type sharesInput struct {
	Cursor string `query:"cursor" maxLength:"64" doc:"next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"How many."`
}

type sharesOutput struct{ Body sharesView }

type endShareInput struct {
	ID string `path:"id" doc:"Of the share." example:"shr_06f3k2m9w1q8r5w1x4y7z2a6bc"`
}

func (a *API) share(ctx context.Context, in *shareInput) (*shareOutput, error) {
	if err := known("img", in.ID); err != nil {
		return nil, err
	}
	h, err := a.rooms.Generate.Share(ctx, callOf(ctx).owner, in.ID, time.Duration(in.Body.ExpiresIn)*time.Second)
	if err != nil {
		return nil, err
	}
	v := showShare(h)
	v.URL = a.base + "/s/" + h.Token
	return &shareOutput{Body: v}, nil
}

func showShare(h generate.Share) shareView {
	return shareView{ID: h.ID, ImageID: h.ImageID, CreatedAt: h.CreatedAt, ExpiresAt: h.ExpiresAt}
}

func (a *API) listShares(ctx context.Context, in *sharesInput) (*sharesOutput, error) {
	if err := cursor("shr", in.Cursor); err != nil {
		return nil, err
	}
	list, err := a.rooms.Generate.Shares(ctx, callOf(ctx).owner, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	list, next := page(list, in.Limit, func(h generate.Share) string { return h.ID })
	return &sharesOutput{Body: sharesView{Data: each(list, showShare), NextCursor: next}}, nil
}

func (a *API) endShare(ctx context.Context, in *endShareInput) (*struct{}, error) {
	if err := known("shr", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Generate.EndShare(ctx, callOf(ctx).owner, in.ID)
}

func (a *API) endShares(ctx context.Context, _ *struct{}) (*struct{}, error) {
	return nil, a.rooms.Generate.EndShares(ctx, callOf(ctx).owner)
}

// shared sends the picture of a share, of whose viewers nothing is kept.
func (a *API) shared(ctx context.Context, in *tokenInput) (*streamOutput, error) {
	return a.sendToViewer(ctx, in.Token, a.rooms.Generate.SharedContent)
}

var (
	sampleShare = shareView{ID: "shr_06f3k2m9w1q8r5w1x4y7z2a6bc", ImageID: sampleImage, CreatedAt: sampleAt, ExpiresAt: sampleAt.Add(generate.ShareLife)}

	shareDoc = doc{
		id: "share-image", tag: tagLinks, summary: "Share a picture",
		description: "Makes a page that shows this one picture to whoever has its address: no prompt, no name, no title. It ends after 7 days, or as you say, with the picture, or when you end it, " +
			"and shows nothing while the account is restricted or suspended. Who looks is not written down.",
		request: makeShareBody{ExpiresIn: 86400},
		answers: []good{{status: http.StatusCreated, description: "It is shown.", body: func() shareView {
			v := sampleShare
			v.URL = "https://images.example.org/s/abcdefghijklmnopqrstuvwxyz234567"
			return v
		}()}},
		codes: []problem.Code{problem.NotFound, problem.DataRemoved, problem.Conflict},
	}
	sharesDoc = doc{
		id: "list-shares", tag: tagLinks, summary: "List what you share",
		description: "What is shown now, newest first. Addresses are not kept, so that they do not stand here.",
		answers:     ok("A page.", sharesView{Data: []shareView{sampleShare}, NextCursor: sampleShare.ID}),
		codes:       []problem.Code{problem.InvalidRequest},
	}
	endShareDoc = doc{
		id: "end-share", tag: tagLinks, summary: "End a share",
		description: "Its page shows nothing any more, at once. The picture stays yours.",
		answers:     none("Ended."),
		codes:       []problem.Code{problem.NotFound},
	}
	endSharesDoc = doc{
		id: "end-shares", tag: tagLinks, summary: "End all shares",
		description: "Nothing of yours is shown any more, at once.",
		answers:     none("Ended."),
	}
	sharedDoc = doc{
		id: "open-share", tag: tagLinks, summary: "Look at a shared picture", long: true,
		description: "The picture of a share, as its page at `/s/{token}` shows it. A link that is wrong, ended or past its time answers like one that never was.",
		answers:     []good{{status: http.StatusOK, description: "The file.", kind: "image/*", headers: []string{"Content-Disposition", "X-Robots-Tag"}}},
		codes:       []problem.Code{problem.NotFound},
	}
)
