package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"zimage/internal/generate"
	"zimage/internal/problem"
)

// What OpenAI's clients send to images/generations, and no more. docs/openai.md says
// what each field does here. They may send null for what they leave out.
type imagesBody struct {
	Prompt            string   `json:"prompt" minLength:"1" maxLength:"32000" doc:"What to show. The model's own limit may be lower."`
	Model             *string  `json:"model,omitempty" nullable:"true" minLength:"1" maxLength:"128" doc:"One of GET /v1/models. Left out, or auto: your own default, else the operator's first."`
	N                 *int     `json:"n,omitempty" nullable:"true" minimum:"1" maximum:"10" doc:"How many images. Left out: your own default, else 1."`
	Size              *string  `json:"size,omitempty" nullable:"true" pattern:"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$" doc:"WIDTHxHEIGHT, brought within what the model makes, or auto."`
	Quality           *string  `json:"quality,omitempty" nullable:"true" enum:"auto,low,medium,high,standard,hd" doc:"How many steps: low is half of the model's usual ones, high and hd are twice as many."`
	Background        *string  `json:"background,omitempty" nullable:"true" enum:"auto,transparent,opaque" doc:"Accepted; pictures are opaque."`
	OutputFormat      *string  `json:"output_format,omitempty" nullable:"true" enum:"png,jpeg,webp" doc:"Left out: your own default, else png."`
	OutputCompression *int     `json:"output_compression,omitempty" nullable:"true" minimum:"0" maximum:"100" doc:"Quality of a JPEG; without effect on png, and on webp, which loses nothing."`
	Moderation        *string  `json:"moderation,omitempty" nullable:"true" enum:"auto,low" doc:"Accepted; the operator's rules hold."`
	ResponseFormat    *string  `json:"response_format,omitempty" nullable:"true" enum:"url,b64_json" doc:"url: a short-lived link. Left out: b64_json."`
	Style             *string  `json:"style,omitempty" nullable:"true" enum:"vivid,natural" doc:"Accepted, without effect."`
	User              *string  `json:"user,omitempty" nullable:"true" maxLength:"512" doc:"Accepted, and kept nowhere."`
	Stream            *bool    `json:"stream,omitempty" nullable:"true" doc:"Answer with events."`
	PartialImages     *int     `json:"partial_images,omitempty" nullable:"true" minimum:"0" maximum:"3" doc:"Accepted; no engine here gives partial images."`
	Seed              *int64   `json:"seed,omitempty" nullable:"true" minimum:"0" maximum:"4294967295" doc:"Image k uses seed + k. Left out: chosen here."`
	NegativePrompt    *string  `json:"negative_prompt,omitempty" nullable:"true" maxLength:"32000" doc:"What not to show, for models that take it."`
	Steps             *int     `json:"num_inference_steps,omitempty" nullable:"true" minimum:"1" maximum:"1000" doc:"Steps of each image, before quality."`
	Guidance          *float64 `json:"guidance_scale,omitempty" nullable:"true" minimum:"0" maximum:"100" doc:"How closely the model follows the prompt."`
}

type imagesInput struct {
	IdempotencyKey string     `header:"Idempotency-Key" doc:"1 to 255 visible ASCII characters. For 24 hours the same key and body return the same images." example:"3f0f9a52-order-17"`
	Retry          string     `header:"X-Stainless-Retry-Count" maxLength:"10" doc:"How often OpenAI's client has repeated the request: beyond 0 the newest generation with the same body that has not ended, or did in the last two minutes, is waited for, and none made; unless this process refused a request with that body in the last minute." example:"0"`
	Body           imagesBody `contentType:"application/json"`
}

// Resolve is createInput's.
func (in *imagesInput) Resolve(hc huma.Context) []error { return (&createInput{}).Resolve(hc) }

type openAIImageView struct {
	B64 string `json:"b64_json,omitempty" doc:"The file, in base64."`
	URL string `json:"url,omitempty" doc:"A link to the file that needs no key, for an hour."`
}

// OpenAIShape is what is told of the images, in the answer and in each event.
type OpenAIShape struct {
	Background   string          `json:"background" enum:"opaque" doc:"Always opaque."`
	OutputFormat string          `json:"output_format" enum:"png,jpeg,webp" doc:"Of the files."`
	Quality      string          `json:"quality" enum:"low,medium,high" doc:"As it was asked for."`
	Size         string          `json:"size" doc:"The true one, WIDTHxHEIGHT." example:"1024x1024"`
	Usage        openAIUsageView `json:"usage" doc:"Nothing is counted in tokens here: zeros."`
}

type openAIUsageView struct {
	InputTokens  int                    `json:"input_tokens" doc:"Always 0."`
	InputDetails openAIUsageDetailsView `json:"input_tokens_details" doc:"Zeros."`
	OutputTokens int                    `json:"output_tokens" doc:"Always 0."`
	TotalTokens  int                    `json:"total_tokens" doc:"Always 0."`
}

type openAIUsageDetailsView struct {
	ImageTokens int `json:"image_tokens" doc:"Always 0."`
	TextTokens  int `json:"text_tokens" doc:"Always 0."`
}

type openAIImagesView struct {
	Created int64 `json:"created" doc:"When they were finished, in seconds since 1970."`
	OpenAIShape
	Data []openAIImageView `json:"data" nullable:"false" doc:"The images."`
}

// openAIErrorView is an error as OpenAI's clients read it.
type openAIErrorView struct {
	Message string  `json:"message" doc:"What happened, in words for people."`
	Type    string  `json:"type" enum:"invalid_request_error,authentication_error,permission_error,rate_limit_error,server_error" doc:"Of what kind."`
	Param   *string `json:"param" nullable:"true" doc:"The field that is wrong."`
	Code    string  `json:"code" doc:"The code beside it."`
}

const imagesRoute = "create-openai-images"

// openAIRoutes are those that OpenAI's clients call.
var openAIRoutes = map[string]bool{imagesRoute: true, modelsDoc.id: true, modelDoc.id: true}

// forOpenAI adds the member that OpenAI's clients read.
func (p *problemView) forOpenAI() {
	e := openAIErrorView{Message: cmp.Or(p.Detail, p.Title), Code: p.Code, Type: "invalid_request_error"}
	switch {
	case p.Status >= http.StatusInternalServerError:
		e.Type = "server_error"
	case p.Status == http.StatusUnauthorized:
		e.Type = "authentication_error"
	case p.Status == http.StatusForbidden:
		e.Type = "permission_error"
	case p.Status == http.StatusTooManyRequests:
		e.Type = "rate_limit_error"
	}
	for i, f := range p.Errors {
		name := strings.TrimPrefix(f.Location, "body.")
		if i == 0 && name != f.Location {
			e.Param = &name
		}
		e.Message += " " + name + " " + f.Message + "."
	}
	p.OpenAI = &e
	// The day is not over, and the generation not other, in some seconds.
	p.final = p.Code == string(problem.DailyLimit) || p.Code == string(problem.GenerationFailed)
}

func (l allowance) showOpenAI(h http.Header) {
	h.Set("X-RateLimit-Limit-Requests", strconv.FormatInt(l.limit, 10))
	h.Set("X-RateLimit-Remaining-Requests", strconv.FormatInt(l.remaining, 10))
	h.Set("X-RateLimit-Reset-Requests", (time.Duration(math.Ceil(max(l.reset, 0).Seconds())) * time.Second).String())
}

// createImages waits until the images are there and sends them, or events about
// them. When the client goes away the generation goes on: whoever repeats the request
// gets it, and it is in the list.
func (a *API) createImages(ctx context.Context, in *imagesInput) (*streamOutput, error) {
	owner := callOf(ctx).owner
	submit, cancel := context.WithTimeout(ctx, ordinaryTime)
	defer cancel()
	preferences, err := a.rooms.Accounts.Preferences(submit, owner)
	if err != nil {
		return nil, err
	}
	r, err := a.imagesRequest(in.Body, generate.Defaults(preferences))
	if err != nil {
		return nil, err
	}
	once, err := in.once()
	if err != nil {
		return nil, err
	}
	named := in.IdempotencyKey != ""
	again, _ := strconv.Atoi(in.Retry)
	request := func(again int) string { return owner + once.Key + " " + strconv.Itoa(again) }
	if !named && !once.Fresh {
		once.Fresh = a.refusals.take(request(again))
	}
	g, release, err := a.accept(submit, owner, r, once, named)
	if code := problem.CodeOf(err); !named && in.Retry != "" && (code == problem.RateLimited || code == problem.QueueFull) {
		a.refusals.add(request(max(again, 0) + 1)) // which is how it comes again
	}
	if err != nil {
		return nil, err
	}
	send := imagesAnswer{api: a, owner: owner, quality: told(in.Body.Quality), links: value(in.Body.ResponseFormat) == "url"}
	if value(in.Body.Stream) {
		return a.imagesStream(ctx, g, send, release)
	}
	defer release()
	if g, err = a.awaitEnd(ctx, owner, g); err != nil {
		return nil, err
	}
	return send.whole(ctx, g)
}

// accept submits a request, which must then be answered; release when it is.
func (a *API) accept(ctx context.Context, owner string, r generate.Request, once *generate.Idempotency, named bool) (generate.Generation, func(), error) {
	release, err := a.hold(ctx)
	if err != nil {
		return generate.Generation{}, nil, err
	}
	g, replayed, err := a.rooms.Generate.Submit(ctx, owner, r, once)
	if !named && (problem.CodeOf(err) == problem.DataRemoved || replayed && err == nil && a.answered(g)) {
		// What the same body made before is deleted, or was asked for by another request.
		once.Fresh = true
		g, _, err = a.rooms.Generate.Submit(ctx, owner, r, once)
	}
	if err != nil {
		release()
	}
	return g, release, err
}

// imagesRequest is the room's.
func (a *API) imagesRequest(b imagesBody, d generate.Defaults) (generate.Request, error) {
	name := value(b.Model)
	if name == "auto" {
		name = ""
	}
	m, known := a.rooms.Generate.Choose(name, d)
	if !known {
		p := noModel()
		p.Fields = []problem.Field{{Location: "body.model", Message: "is not a model of this service"}}
		return generate.Request{}, p
	}
	r := generate.Request{
		Prompt: b.Prompt, NegativePrompt: value(b.NegativePrompt), Model: m.ID, N: value(b.N), Seed: b.Seed,
		Steps: value(b.Steps), Guidance: b.Guidance, Format: value(b.OutputFormat), Defaults: d,
	}
	if b.OutputCompression != nil {
		r.Quality = max(*b.OutputCompression, 1)
	}
	if r.Steps == 0 {
		switch told(b.Quality) {
		case "low":
			r.Steps = max(m.DefaultSteps/2, 1)
		case "high":
			r.Steps = min(2*m.DefaultSteps, m.MaxSteps)
		}
	}
	if width, height, found := strings.Cut(value(b.Size), "x"); found {
		w, err := strconv.Atoi(width)
		h, other := strconv.Atoi(height)
		if err := errors.Join(err, other); err != nil {
			return generate.Request{}, err // the schema has looked at it
		}
		r.Width, r.Height = fit(w, h, m)
	}
	return r, nil
}

func noModel() *problem.Error {
	return problem.New(problem.NotFound, "There is no model of that name here: GET /v1/models lists them, and auto is the default.")
}

// fit brings a size within what the model makes, as near to its shape as that goes.
func fit(width, height int, m generate.Model) (int, int) {
	multiple := max(m.SideMultiple, 1)
	low, high := (m.MinSide+multiple-1)/multiple*multiple, m.MaxSide/multiple*multiple
	scale := 1.0
	if small := min(width, height); small < low {
		scale = float64(low) / float64(small)
	}
	w, h := float64(width)*scale, float64(height)*scale
	if large := max(w, h); large > float64(high) {
		w, h = w*float64(high)/large, h*float64(high)/large
	}
	whole := math.Round
	if m.MaxPixels > 0 && w*h > float64(m.MaxPixels) {
		less := math.Sqrt(float64(m.MaxPixels) / (w * h))
		w, h, whole = w*less, h*less, math.Floor
	}
	side := func(v float64) int {
		return min(max(int(whole(v/float64(multiple)))*multiple, low), high)
	}
	x, y := side(w), side(h)
	for m.MaxPixels > 0 && x*y > m.MaxPixels { // a side was raised
		if x >= y && x > low {
			x -= multiple
		} else if y > low {
			y -= multiple
		} else {
			break
		}
	}
	return x, y
}

// once recognises a repeated request: by its key, or because the client says that
// it repeats it. Pressing twice makes two.
func (in *imagesInput) once() (*generate.Idempotency, error) {
	b := in.Body
	b.User = nil // of nobody's concern
	canonical, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	if in.IdempotencyKey != "" {
		return &generate.Idempotency{Key: in.IdempotencyKey, Body: canonical}, nil
	}
	sum := sha256.Sum256(canonical)
	again, _ := strconv.Atoi(in.Retry) // 0 of what is no number
	// No client's key has a space.
	return &generate.Idempotency{Key: "the same body " + hex.EncodeToString(sum[:]), Body: canonical, Fresh: again <= 0}, nil
}

// repeatedWithin is how long after the end of a generation a client still repeats
// the request that made it: OpenAI's come back within a minute.
const repeatedWithin = 2 * time.Minute

// answered reports whether the generation ended so long ago that whoever repeats a
// request with its body now repeats another one, which was refused.
func (a *API) answered(g generate.Generation) bool {
	return g.Status.Terminal() && a.rooms.Clock.Now().Sub(g.FinishedAt) > repeatedWithin
}

// soonServed is how long a model that nobody serves is waited for: a worker may
// just be starting.
const soonServed = 10 * time.Second

// awaitEnd waits until the generation has succeeded. Any other end is an error.
func (a *API) awaitEnd(ctx context.Context, owner string, g generate.Generation) (generate.Generation, error) {
	for wait := soonServed; !g.Status.Terminal(); wait = longestWait {
		var err error
		if g, err = a.await(ctx, owner, g, wait); err != nil {
			return g, err
		}
		select {
		case <-ctx.Done():
			return g, ctx.Err()
		case <-a.stop:
			if !g.Status.Terminal() {
				return g, restarting()
			}
		default:
		}
		if g.Queue != nil && !g.Queue.Served {
			return g, problem.New(problem.Unavailable, "No worker serves this model now. The generation stays in the queue; the same request, repeated, waits for it.").After(30 * time.Second)
		}
	}
	return g, unsuccessful(g)
}

func restarting() error {
	return problem.New(problem.Unavailable, "The service restarts. The generation goes on; the same request, repeated, gets it.").After(time.Second)
}

// unsuccessful says why there are no images; nil: there are.
func unsuccessful(g generate.Generation) error {
	switch {
	case g.Status == generate.Succeeded && len(g.Images) == 0:
		return problem.New(problem.DataRemoved, "It was here, and its content has been removed.")
	case g.Status == generate.Succeeded:
		return nil
	case g.Status == generate.Canceled && g.Failure != nil:
		return problem.New(problem.Forbidden, g.Failure.Message)
	case g.Status == generate.Canceled:
		return problem.New(problem.GenerationFailed, "The generation was canceled.")
	case g.Failure != nil && g.Failure.Code == "refused":
		return problem.New(problem.PromptRefused, g.Failure.Message)
	case g.Failure != nil:
		return problem.New(problem.GenerationFailed, g.Failure.Message)
	}
	return problem.New(problem.GenerationFailed, "The generation failed.")
}

// imagesAnswer sends the images of a generation that has succeeded.
type imagesAnswer struct {
	api     *API
	owner   string
	quality string
	links   bool
}

func (s imagesAnswer) shape(g generate.Generation) OpenAIShape {
	i := g.Images[0]
	return OpenAIShape{Background: "opaque", OutputFormat: i.Format, Quality: s.quality, Size: fmt.Sprintf("%dx%d", i.Width, i.Height)}
}

// whole sends all images in one answer, each as it is decrypted: none is held in
// memory as a whole.
func (s imagesAnswer) whole(ctx context.Context, g generate.Generation) (*streamOutput, error) {
	callOf(ctx).idle() // whoever takes the pictures may be slow
	v := openAIImagesView{Created: g.FinishedAt.Unix(), OpenAIShape: s.shape(g)}
	var first *generate.Content
	if s.links {
		for _, i := range g.Images {
			url, err := s.link(ctx, i)
			if err != nil {
				return nil, err
			}
			v.Data = append(v.Data, openAIImageView{URL: url})
		}
	} else {
		v.Data = []openAIImageView{}
		c, err := s.api.rooms.Generate.Content(ctx, s.owner, g.Images[0].ID, false) // while it can still be an error
		if err != nil {
			return nil, err
		}
		first = &c
	}
	head, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return &streamOutput{Body: func(hc huma.Context) {
		w := humagin.Unwrap(hc).Writer
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTime))
		hc.SetHeader("Content-Type", "application/json")
		hc.SetStatus(http.StatusOK)
		if s.links {
			_, _ = w.Write(append(head, '\n')) // the client hung up
			return
		}
		err := s.encodeAll(ctx, w, bytes.TrimSuffix(head, []byte("]}")), *first, g.Images[1:])
		if err == nil {
			_, err = io.WriteString(w, "]}\n")
		}
		if err != nil {
			s.cut(ctx, err)
		}
	}}, nil
}

func (s imagesAnswer) encodeAll(ctx context.Context, w io.Writer, head []byte, c generate.Content, rest []generate.Image) error {
	_, err := w.Write(head)
	for {
		if err == nil {
			_, err = io.WriteString(w, `{"b64_json":"`)
		}
		if err = errors.Join(err, encode64(w, c)); err == nil {
			_, err = io.WriteString(w, `"}`)
		}
		if err != nil || len(rest) == 0 {
			return err
		}
		if _, err = io.WriteString(w, ","); err != nil {
			return err
		}
		if c, err = s.api.rooms.Generate.Content(ctx, s.owner, rest[0].ID, false); err != nil {
			return err
		}
		rest = rest[1:]
	}
}

// cut ends the connection, so that half an answer never looks whole.
func (s imagesAnswer) cut(ctx context.Context, err error) {
	if ctx.Err() == nil {
		s.api.log.LogAttrs(ctx, slog.LevelError, "image not sent whole", callOf(ctx).attrs(slog.String("error", kindOf(err)))...)
	}
	panic(http.ErrAbortHandler)
}

// encode64 writes a picture in base64 and closes it.
func encode64(w io.Writer, c generate.Content) error {
	e := base64.NewEncoder(base64.StdEncoding, w)
	n, err := io.Copy(e, c)
	if err == nil && n != c.Bytes {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, e.Close(), c.Close())
}

func (s imagesAnswer) link(ctx context.Context, i generate.Image) (string, error) {
	l, err := s.api.rooms.Generate.SignLink(ctx, s.owner, i.ID, false, 0)
	return s.api.linkURL(l), err
}

// The events of a stream. No engine gives partial images; progress is told by an
// event of ours, which clients that do not know it pass over.
const (
	progressOfImages = "image_generation.progress"
	completedImage   = "image_generation.completed"
)

type openAIProgress struct {
	Type         string       `json:"type"`
	GenerationID string       `json:"generation_id"`
	Progress     progressView `json:"progress"`
}

type openAICompleted struct {
	Type      string `json:"type"`
	URL       string `json:"url,omitempty"`
	CreatedAt int64  `json:"created_at"`
	OpenAIShape
}

// imagesStream follows the generation. What fails before the stream is an ordinary
// answer, and after that an event.
func (a *API) imagesStream(ctx context.Context, g generate.Generation, send imagesAnswer, release func()) (*streamOutput, error) {
	callOf(ctx).idle()
	return a.watched(ctx, send.owner, g.ID, 0, release, func(live context.Context, out *eventWriter, w *generate.Watch) {
		g := g
		err := a.follow(live, out, w, func(u generate.Update) (bool, error) {
			g = u.Generation
			if g.Status != generate.Running {
				return g.Status.Terminal(), nil
			}
			return false, out.event(progressOfImages, "", openAIProgress{Type: progressOfImages, GenerationID: g.ID, Progress: progressView(g.Progress)})
		})
		if err == nil {
			err = unsuccessful(g)
		}
		if err == nil {
			err = send.events(ctx, out, g)
		}
		if live.Err() != nil && ctx.Err() == nil {
			err = restarting()
		}
		if err != nil && ctx.Err() == nil {
			_ = out.event("error", "", map[string]any{"error": a.refuse(ctx, err).OpenAI}) // the client hung up
		}
	})
}

// events sends the images, an event each.
func (s imagesAnswer) events(ctx context.Context, out *eventWriter, g generate.Generation) error {
	v := openAICompleted{Type: completedImage, CreatedAt: g.FinishedAt.Unix(), OpenAIShape: s.shape(g)}
	for _, i := range g.Images {
		if s.links {
			var err error
			if v.URL, err = s.link(ctx, i); err == nil {
				err = out.event(completedImage, "", v)
			}
			if err != nil {
				return err
			}
			continue
		}
		c, err := s.api.rooms.Generate.Content(ctx, s.owner, i.ID, false)
		if err != nil {
			return err
		}
		rest, err := json.Marshal(v)
		if err != nil {
			return errors.Join(err, c.Close())
		}
		if err := out.picture(completedImage, c, rest[1:]); err != nil {
			s.cut(ctx, err)
		}
	}
	return nil
}

// picture writes an event with a picture in base64 before the rest of its data.
func (e *eventWriter) picture(name string, c generate.Content, rest []byte) error {
	_ = e.rc.SetWriteDeadline(time.Now().Add(sendTime))
	_, err := e.w.WriteString("event: " + name + "\ndata: {\"b64_json\":\"")
	if err = errors.Join(err, encode64(e.w, c)); err != nil {
		return err
	}
	return e.write(`",` + string(rest) + "\n\n")
}

// told is the quality that an answer names.
func told(quality *string) string {
	switch value(quality) {
	case "low":
		return "low"
	case "high", "hd":
		return "high"
	}
	return "medium"
}

// value is what a pointer points to, or nothing.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

var imagesDoc = doc{
	id: imagesRoute, tag: tagImages, summary: "Make images as OpenAI's clients do", long: true,
	description: "What the official SDKs call `images.generate`: set their base URL to `/v1` here and their API key to yours. It waits until the images are there. " +
		"With `stream` it answers with server-sent events: `image_generation.progress`, an `image_generation.completed` for each image, or an `error`. " +
		"A client that goes away and soon repeats the request gets the same images. Errors have a member `error` in OpenAI's shape.",
	request: imagesBody{Prompt: "a lighthouse in a storm at night", Size: pointer("1024x1024"), Quality: pointer("high")},
	answers: []good{{status: http.StatusOK, description: "The images.", headers: []string{"X-RateLimit-Limit-Requests", "X-RateLimit-Remaining-Requests", "X-RateLimit-Reset-Requests"},
		body: openAIImagesView{Created: sampleAt.Unix(), OpenAIShape: OpenAIShape{Background: "opaque", OutputFormat: "png", Quality: "high", Size: "1024x1024"},
			Data: []openAIImageView{{B64: "iVBORw0KGgo="}}}}},
	codes: []problem.Code{problem.NotFound, problem.IdempotencyMismatch, problem.PromptRefused, problem.GenerationFailed, problem.QueueFull, problem.DailyLimit, problem.DataRemoved},
}
