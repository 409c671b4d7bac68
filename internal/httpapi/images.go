package httpapi

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"zimage/internal/generate"
)

type imageInput struct {
	ID string `path:"id" doc:"Of the image." example:"img_06f3k2m9w1q8r5w1x4y7z2a6bc"`
}

type imageOutput struct{ Body imageView }

func (a *API) getImage(ctx context.Context, in *imageInput) (*imageOutput, error) {
	if err := known("img", in.ID); err != nil {
		return nil, err
	}
	i, err := a.rooms.Generate.Image(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	return &imageOutput{Body: a.image(i)}, nil
}

func (a *API) deleteImage(ctx context.Context, in *imageInput) (*struct{}, error) {
	if err := known("img", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Generate.DeleteImage(ctx, callOf(ctx).owner, in.ID)
}

func (a *API) deleteImages(ctx context.Context, in *deleteInput) (*acceptedOutput, error) {
	if err := in.Body.check("img"); err != nil {
		return nil, err
	}
	n, err := a.rooms.Generate.DeleteImages(ctx, callOf(ctx).owner, in.Body.IDs, in.Body.All)
	if err != nil {
		return nil, err
	}
	return &acceptedOutput{Body: acceptedView{Accepted: n}}, nil
}

type contentInput struct {
	ID          string `path:"id" doc:"Of the image." example:"img_06f3k2m9w1q8r5w1x4y7z2a6bc"`
	Thumbnail   bool   `query:"thumbnail" doc:"The small JPEG instead of the picture. The name alone says true."`
	IfNoneMatch string `header:"If-None-Match" doc:"The ETag you have: 304 when it is the same."`
}

// Resolve takes ?thumbnail for true: huma takes a parameter without a value for
// one that is not there.
func (in *contentInput) Resolve(hc huma.Context) []error {
	query := humagin.Unwrap(hc).Request.URL.Query()
	in.Thumbnail = in.Thumbnail || query.Has("thumbnail") && query.Get("thumbnail") == ""
	return nil
}

type streamOutput struct {
	Body func(huma.Context)
}

func (a *API) imageContent(ctx context.Context, in *contentInput) (*streamOutput, error) {
	if err := known("img", in.ID); err != nil {
		return nil, err
	}
	// Object storage may be slow, and whoever takes the picture too.
	callOf(ctx).idle()
	content, err := a.rooms.Generate.Content(ctx, callOf(ctx).owner, in.ID, in.Thumbnail)
	if err != nil {
		return nil, err
	}
	tag := `"` + content.SHA256 + `"`
	if content.SHA256 == "" {
		tag = `"` + in.ID + `-thumbnail"` // an image never changes under its id
	}
	if matches(in.IfNoneMatch, tag) {
		_ = content.Close()
		return &streamOutput{Body: func(hc huma.Context) {
			hc.SetHeader("ETag", tag)
			hc.SetStatus(http.StatusNotModified)
		}}, nil
	}
	return a.send(ctx, content, func(h http.Header) { h.Set("ETag", tag) })
}

// send decrypts as it sends, and closes the content. What fails before the first
// byte is an answer; after it, the connection is cut, so that half a picture never
// looks whole.
func (a *API) send(ctx context.Context, content generate.Content, add func(http.Header)) (*streamOutput, error) {
	head := callOf(ctx).head
	r := bufio.NewReaderSize(content, 32<<10)
	if !head {
		if _, err := r.Peek(1); err != nil {
			_ = content.Close()
			return nil, err
		}
	}
	return &streamOutput{Body: func(hc huma.Context) {
		defer func() { _ = content.Close() }()
		w := humagin.Unwrap(hc).Writer
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTime))
		h := w.Header()
		h.Set("Content-Type", "image/"+content.Format)
		h.Set("Content-Length", strconv.FormatInt(content.Bytes, 10))
		h.Set("Content-Disposition", `inline; filename="`+content.Name+`"`)
		h.Set("Accept-Ranges", "none")
		add(h)
		hc.SetStatus(http.StatusOK)
		if head {
			return
		}
		n, err := io.Copy(w, r)
		if err == nil && n == content.Bytes {
			return
		}
		if ctx.Err() == nil {
			a.log.LogAttrs(ctx, slog.LevelError, "image not sent whole", callOf(ctx).attrs(slog.String("error", kindOf(err)))...)
		}
		panic(http.ErrAbortHandler)
	}}, nil
}

// matches reports whether an If-None-Match names the tag. Weak comparison, as
// RFC 9110 wants it here.
func matches(header, tag string) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimSpace(part)
		if part == "*" || strings.TrimPrefix(part, "W/") == tag {
			return true
		}
	}
	return false
}
