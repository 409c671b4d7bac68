// Package openai makes images on servers that speak OpenAI's
// /v1/images/generations: vLLM-Omni, SGLang and LocalAI, each with fields and
// traps of its own.
//
// Requests come from fixed structs, so nothing that a user wrote but the words
// of the prompts gets there. It never follows a URL that a server answers with,
// and never passes on a word of the server's.
package openai

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"zimage/internal/engine"
)

// dialect is how one kind of server differs from the others.
type dialect struct {
	health string
	// stops: closing the connection stops the image. Where it doesn't, Generate
	// waits for the answer that nobody wants any more.
	stops bool
	body  func(engine.Request) any
}

var dialects = map[string]dialect{
	engine.DialectVLLMOmni: {health: "/health", stops: true, body: diffusers},
	engine.DialectSGLang:   {health: "/health", stops: false, body: diffusers},
	engine.DialectLocalAI:  {health: "/readyz", stops: true, body: localAI},
}

// Engine is one server.
type Engine struct {
	client  *engine.Client
	dialect dialect
	timeout time.Duration
	served  map[string]engine.Served
	usual   engine.Usual
	known   atomic.Bool // the server has passed Check
}

var _ engine.Engine = (*Engine)(nil)

// Open reads the credential and the authority; it does not connect. All models
// of s have the same dialect.
func Open(s engine.Settings) (engine.Engine, error) {
	client, err := engine.NewClient(s)
	if err != nil {
		return nil, err
	}
	e := &Engine{client: client, timeout: s.Timeout, served: s.Models}
	for id, served := range s.Models {
		d, known := dialects[served.Dialect]
		if !known {
			return nil, fmt.Errorf("engine %s: models.%s.dialect: unknown", s.Name, id)
		}
		e.dialect = d
	}
	return e, nil
}

// Generate makes one image, the first after a Check. These servers tell no steps:
// progress is estimated from how long this model's images took before.
//
// vLLM-Omni and LocalAI stop when the connection closes, so Generate returns as
// soon as ctx ends. SGLang goes on: there Generate keeps the connection and
// returns with the answer, or, since nothing tells a hung server from a slow
// one, when the engine's timeout has passed since the start.
func (e *Engine) Generate(ctx context.Context, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, engine.ContextError(ctx)
	}
	// Other servers have this route too, and sd-server's ignores the seed, which no
	// answer would tell: before its first image a server must be the one we think.
	if !e.known.Load() {
		if err := e.Check(ctx); err != nil {
			return nil, err
		}
		e.known.Store(true)
	}
	base := ctx
	if !e.dialect.stops {
		base = context.WithoutCancel(ctx)
	}
	call, stop := context.WithTimeout(base, e.timeout)
	defer stop()
	stopProgress := e.usual.Watch(r, progress)
	defer stopProgress()
	started := time.Now()
	image, err := e.ask(call, r)
	if ctx.Err() != nil {
		return nil, engine.ContextError(ctx)
	}
	if err != nil {
		return nil, err
	}
	e.usual.Learn(r, time.Since(started))
	return image, nil
}

// Check asks the server for its health and for every model we want of it.
func (e *Engine) Check(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, engine.BriefCall)
	defer stop()
	if err := e.client.JSON(ctx, http.MethodGet, e.dialect.health, nil, nil, engine.MaxStatus); err != nil {
		return err
	}
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := e.client.JSON(ctx, http.MethodGet, "/v1/models", nil, &list, engine.MaxStatus); err != nil {
		return err
	}
	names := make([]string, 0, len(list.Data))
	for _, m := range list.Data {
		names = append(names, m.ID)
	}
	for id, served := range e.served {
		if !slices.Contains(names, served.Upstream) {
			return engine.NewError(engine.FaultEngine, engine.CodeFailed, http.StatusNotFound, fmt.Errorf("openai: the server does not list the upstream of %s", id))
		}
	}
	return nil
}

func (e *Engine) ask(ctx context.Context, r engine.Request) ([]byte, error) {
	// Base64 takes four bytes for three; a page more for what stands around it.
	limit := engine.ImageLimit(r.Width, r.Height)/3*4 + 4<<10
	a, err := e.client.Bytes(ctx, http.MethodPost, "/v1/images/generations", e.dialect.body(r), limit)
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		if refused(a.Body) {
			return nil, engine.NewError(engine.FaultUser, engine.CodeRefused, a.Status, nil)
		}
		return nil, a.Err()
	}
	var answer struct {
		Data []struct {
			Image []byte `json:"b64_json"`
		} `json:"data"`
	}
	if json.Unmarshal(a.Body, &answer) != nil || len(answer.Data) == 0 {
		return nil, engine.NewError(engine.FaultEngine, engine.CodeBadImage, a.Status, errNoImage)
	}
	// One that sent a URL has no b64_json: an image of no size.
	image := answer.Data[0].Image
	if err := engine.CheckImage(image, r.Width, r.Height); err != nil {
		return nil, err
	}
	return image, nil
}

var errNoImage = errors.New("openai: the answer holds no image in base64")

// refusals are the codes by which servers and the filters before them say that
// it is the prompt's content they don't want.
var refusals = []string{"content_policy_violation", "content_filter", "moderation_blocked", "safety_violation"}

// refused looks for a stable code and at nothing else: the text around it
// echoes the prompt.
func refused(text []byte) bool {
	var answer struct {
		Error struct {
			Code any `json:"code"` // LocalAI: a number
			Type any `json:"type"`
		} `json:"error"`
	}
	if json.Unmarshal(text, &answer) != nil {
		return false
	}
	code, _ := answer.Error.Code.(string)
	kind, _ := answer.Error.Type.(string)
	return slices.Contains(refusals, code) || slices.Contains(refusals, kind)
}

// diffusersBody is what vLLM-Omni and SGLang take. No field is left out when it
// is zero: SGLang's defaults are seed 1024 and an answer by URL, and both take
// a missing guidance as the model's own.
type diffusersBody struct {
	Model          string  `json:"model"`
	Prompt         string  `json:"prompt"`
	NegativePrompt string  `json:"negative_prompt,omitempty"`
	N              int     `json:"n"`
	Size           string  `json:"size"`
	Steps          int     `json:"num_inference_steps"`
	Guidance       float64 `json:"guidance_scale"`
	Seed           int64   `json:"seed"`
	ResponseFormat string  `json:"response_format"`
	OutputFormat   string  `json:"output_format"`
}

func diffusers(r engine.Request) any {
	guidance := r.Guidance
	if r.Served.Guidance != nil {
		guidance = *r.Served.Guidance
	}
	return diffusersBody{
		Model: r.Served.Upstream, Prompt: r.Prompt, NegativePrompt: r.NegativePrompt, N: 1, Size: size(r),
		Steps: r.Steps + r.Served.StepsOffset, Guidance: guidance, Seed: r.Seed, ResponseFormat: "b64_json", OutputFormat: "png",
	}
}

// localAIBody is what LocalAI takes. Guidance stands in its model's YAML.
type localAIBody struct {
	Model          string `json:"model"`
	Prompt         string `json:"prompt"`
	N              int    `json:"n"`
	Size           string `json:"size"`
	Step           int    `json:"step"`
	Seed           int64  `json:"seed"`
	ResponseFormat string `json:"response_format"`
}

func localAI(r engine.Request) any {
	// It takes what stands behind a bar as the negative prompt.
	unbarred := strings.NewReplacer("|", ",")
	prompt := unbarred.Replace(r.Prompt)
	if r.NegativePrompt != "" {
		prompt += "|" + unbarred.Replace(r.NegativePrompt)
	}
	return localAIBody{
		Model: r.Served.Upstream, Prompt: prompt, N: 1, Size: size(r),
		Step: r.Steps + r.Served.StepsOffset, Seed: r.Seed, ResponseFormat: "b64_json",
	}
}

func size(r engine.Request) string { return strconv.Itoa(r.Width) + "x" + strconv.Itoa(r.Height) }
