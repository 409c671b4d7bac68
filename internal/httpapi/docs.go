package httpapi

import (
	"bytes"
	_ "embed" // the page of the documentation
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"

	"zimage/internal/generate"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// doc is what a reader learns of a route.
type doc struct {
	id          string
	tag         string
	summary     string
	description string
	request     any // example of the body; nil: the route reads none
	answers     []good
	codes       []problem.Code // beside those of every route with a key or a body
	long        bool           // no time limit of its own: it waits or streams
	// before looks at the body before anything of it is judged; nil: nobody does.
	before func(c *call, body []byte) error
}

// good is an answer that is no error.
type good struct {
	status      int
	description string
	kind        string   // media type; "": JSON, or nothing without a body
	body        any      // example
	headers     []string // of components.headers
}

const (
	tagGenerations = "Generations"
	tagImages      = "Images"
	tagLinks       = "Links"
	tagModels      = "Models"
	tagAccount     = "Account"
	tagSignIn      = "Sign-in"
	tagKeys        = "Keys"
	tagWebhooks    = "Webhooks"
	tagStaff       = "Staff"
	tagPrivacy     = "Privacy"
	tagOperations  = "Operations"
)

var (
	createDoc = doc{
		id: "create-generation", tag: tagGenerations, summary: "Submit a prompt", long: true,
		description: "Accepts the prompt and answers at once with where to look, or with `Prefer: wait=SECONDS` as soon as it is final. " +
			"With an `Idempotency-Key` a repeated request returns the generation that the first one made.",
		request: createBody{Prompt: "a lighthouse in a storm at night", Width: 1024, Height: 768, Seed: pointer(int64(42)), Metadata: map[string]string{"order": "17"}},
		answers: []good{
			{status: http.StatusAccepted, description: "Accepted; not final yet.", body: sample(generate.Queued), headers: []string{"Location", "Preference-Applied", "Idempotency-Replayed"}},
			{status: http.StatusOK, description: "It became final while the request waited.", body: sample(generate.Succeeded), headers: []string{"Location", "Preference-Applied", "Idempotency-Replayed"}},
		},
		codes: []problem.Code{problem.IdempotencyMismatch, problem.PromptRefused, problem.QueueFull, problem.DailyLimit, problem.DataRemoved},
	}
	listDoc = doc{
		id: "list-generations", tag: tagGenerations, summary: "List generations",
		description: "Yours, newest first, a page at a time.",
		answers:     []good{{status: http.StatusOK, description: "A page.", body: generationsView{Data: []generationView{sample(generate.Succeeded)}, NextCursor: "MDZmM2sybTl2MHE4cjV3MXg0"}}},
		codes:       []problem.Code{problem.InvalidRequest},
	}
	deleteGenerationsDoc = doc{
		id: "delete-generations", tag: tagGenerations, summary: "Delete many generations",
		description: "Those named, or all of yours: prompts, images and thumbnails. They are out of sight at once; a job removes them.",
		request:     deleteBody{IDs: []string{sampleGeneration}},
		answers:     []good{{status: http.StatusAccepted, description: "They will be deleted.", body: acceptedView{Accepted: 1}}},
	}
	getDoc = doc{
		id: "get-generation", tag: tagGenerations, summary: "Look at a generation", long: true,
		description: "Its state, progress, place in the queue, and images. `Prefer: wait=SECONDS` waits until it is final.",
		answers: []good{
			{status: http.StatusOK, description: "As it is now; after a wait, final.", body: sample(generate.Succeeded), headers: []string{"Preference-Applied"}},
			{status: http.StatusAccepted, description: "The wait is over and it is not final yet.", body: sample(generate.Running), headers: []string{"Preference-Applied"}},
		},
		codes: []problem.Code{problem.NotFound, problem.DataRemoved, problem.InvalidRequest},
	}
	deleteGenerationDoc = doc{
		id: "delete-generation", tag: tagGenerations, summary: "Delete a generation",
		description: "With its prompt, images and thumbnails; one that is not final is canceled first.",
		answers:     []good{{status: http.StatusNoContent, description: "Deleted."}},
		codes:       []problem.Code{problem.NotFound, problem.DataRemoved, problem.Conflict},
	}
	cancelDoc = doc{
		id: "cancel-generation", tag: tagGenerations, summary: "Cancel a generation",
		description: "A queued one ends at once, a running one as soon as its engine can. Canceling twice is fine.",
		answers:     []good{{status: http.StatusOK, description: "As it is now.", body: sample(generate.Canceled)}},
		codes:       []problem.Code{problem.NotFound, problem.DataRemoved, problem.Conflict},
	}
	eventsDoc = doc{
		id: "stream-generation", tag: tagGenerations, summary: "Follow a generation", long: true,
		description: "Server-sent events: `state` carries the whole generation and an id, `progress` only how far it is, `problem` an error that ends the stream. " +
			"It ends after the final state. With `Last-Event-ID` states that were seen are not told again. A comment every 15 s keeps proxies from closing it. " +
			"One key may have 100 streams and waits open at once.",
		answers: []good{
			{status: http.StatusOK, description: "The stream.", kind: "text/event-stream", body: "retry: 2000\n\nevent: state\nid: 2\ndata: {\"id\":\"" + sampleGeneration + "\",\"status\":\"running\"}\n\nevent: progress\ndata: {\"id\":\"" + sampleGeneration + "\",\"status\":\"running\",\"progress\":{\"image\":0,\"images\":1,\"step\":4,\"steps\":8,\"fraction\":0.5,\"estimated\":false}}\n\n"},
			{status: http.StatusNoContent, description: "It is final and Last-Event-ID says that you saw that: do not come back."},
		},
		codes: []problem.Code{problem.NotFound, problem.DataRemoved, problem.InvalidRequest},
	}
	deleteImagesDoc = doc{
		id: "delete-images", tag: tagImages, summary: "Delete many images",
		description: "Those named, or all of yours, with their thumbnails. They are out of sight at once; a job removes them.",
		request:     deleteBody{IDs: []string{sampleImage}},
		answers:     []good{{status: http.StatusAccepted, description: "They will be deleted.", body: acceptedView{Accepted: 1}}},
	}
	imageDoc = doc{
		id: "get-image", tag: tagImages, summary: "Look at an image",
		description: "What is known of it; the picture itself is at its `url`.",
		answers:     []good{{status: http.StatusOK, description: "The image.", body: sample(generate.Succeeded).Images[0]}},
		codes:       []problem.Code{problem.NotFound, problem.DataRemoved},
	}
	deleteImageDoc = doc{
		id: "delete-image", tag: tagImages, summary: "Delete an image",
		description: "With its thumbnail. The generation stays.",
		answers:     []good{{status: http.StatusNoContent, description: "Deleted."}},
		codes:       []problem.Code{problem.NotFound, problem.DataRemoved, problem.Conflict},
	}
	contentDoc = doc{
		id: "get-image-content", tag: tagImages, summary: "Download an image", long: true,
		description: "The file as PNG, JPEG or WebP, decrypted for you; not to be kept by caches.",
		answers: []good{
			{status: http.StatusOK, description: "The file.", kind: "image/*", headers: []string{"ETag", "Content-Disposition"}},
			{status: http.StatusNotModified, description: "If-None-Match names the file you have.", headers: []string{"ETag"}},
		},
		codes: []problem.Code{problem.NotFound, problem.DataRemoved, problem.InvalidRequest},
	}
	modelsDoc = doc{
		id: "list-models", tag: tagModels, summary: "List models",
		description: "What a request can name, with each model's limits and defaults. The shape is OpenAI's, with more in it.",
		answers:     []good{{status: http.StatusOK, description: "The models.", body: modelsView{Object: "list", Data: []modelView{sampleModel}}}},
	}
	modelDoc = doc{
		id: "get-model", tag: tagModels, summary: "Look at a model",
		description: "One of them, as in the list.",
		answers:     []good{{status: http.StatusOK, description: "The model.", body: sampleModel}},
		codes:       []problem.Code{problem.NotFound},
	}
	policyDoc = doc{
		id: "get-policy", tag: tagPrivacy, summary: "Read the privacy policy",
		description: "What the page at `/privacy` says, as data: windows, contacts, purposes, processors, and how data is protected here.",
		answers:     []good{{status: http.StatusOK, description: "The policy in force.", body: samplePolicy()}},
	}
	healthDoc = doc{
		id: "health", tag: tagOperations, summary: "Alive?",
		description: "Answers as long as the process does.",
		answers:     []good{{status: http.StatusOK, description: "Alive.", body: healthView{State: "alive", Version: "1.0.0"}}},
	}
	readyDoc = doc{
		id: "ready", tag: tagOperations, summary: "Ready?",
		description: "Whether this process can serve, with the state of each part. `degraded` still serves.",
		answers: []good{
			{status: http.StatusOK, description: "It serves.", body: Readiness{State: StateDegraded, Parts: []Part{{Name: "database", State: StateReady}, {Name: "redis", State: StateDegraded, Note: "away; work goes on"}}}},
			{status: http.StatusServiceUnavailable, description: "It cannot serve.", body: Readiness{State: StateUnavailable, Parts: []Part{{Name: "database", State: StateUnavailable}}}},
		},
	}
)

// What the examples are made of.
const (
	sampleGeneration = "gen_06f3k2m9v0q8r5w1x4y7z2a6bc"
	sampleImage      = "img_06f3k2m9w1q8r5w1x4y7z2a6bc"
)

var sampleModel = modelView{
	ID: "z-image-turbo", Object: "model", OwnedBy: "Tongyi-MAI", Name: "Z-Image-Turbo", License: "Apache-2.0",
	SourceType: "trainedAlgorithmicMedia", Served: true,
	Size:  modelSizeView{DefaultWidth: 1024, DefaultHeight: 1024, Min: 256, Max: 2048, Multiple: 16, MaxPixels: 2097152},
	Steps: modelRangeView{Default: 8, Max: 50}, Guidance: modelNumberView{Max: 10}, MaxImages: 4, MaxPromptChars: 4000,
}

func sample(status generate.Status) generationView {
	at := time.Date(2026, 1, 15, 9, 30, 0, 0, time.UTC)
	g := generate.Generation{
		ID: sampleGeneration, Status: status, Seed: 42, CreatedAt: at, ExpiresAt: at.AddDate(0, 0, 30), Sequence: 1,
		Request: generate.Request{
			Prompt: "a lighthouse in a storm at night", Model: "z-image-turbo", N: 1, Width: 1024, Height: 768,
			Steps: 8, Format: "png", RetentionDays: 30, Metadata: map[string]string{"order": "17"},
		},
		Progress: generate.Progress{Images: 1, Steps: 8},
	}
	switch status {
	case generate.Queued:
		g.Queue = &generate.Queue{Position: 3, ETASeconds: pointer(12), Served: true}
	case generate.Running:
		g.StartedAt = at.Add(2 * time.Second)
		g.Progress.Step, g.Progress.Fraction = 4, 0.5
	case generate.Canceled:
		g.FinishedAt = at.Add(3 * time.Second)
	case generate.Failed:
		g.FinishedAt = at.Add(3 * time.Second)
		g.Failure = &generate.Failure{Code: "engine_failed", Message: "The engine failed."}
	case generate.Succeeded:
		g.StartedAt, g.FinishedAt = at.Add(2*time.Second), at.Add(6*time.Second)
		g.Progress = generate.Progress{Image: 1, Images: 1, Step: 8, Steps: 8, Fraction: 1}
		g.Images = []generate.Image{{
			ID: sampleImage, GenerationID: sampleGeneration, Width: 1024, Height: 768, Format: "png", Bytes: 1482133,
			SHA256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", Seed: 42, CreatedAt: g.FinishedAt, ExpiresAt: g.ExpiresAt,
		}}
	}
	return (&API{}).generation(g)
}

func samplePolicy() policyView {
	s := privacy.Statement{Policy: privacy.DefaultPolicy(), Installation: privacy.Installation{URL: "https://images.example.org", EnginesKeep: "nothing"}}
	s.Processors = []privacy.Processor{{
		ID: "mail", Name: "Example Mail Ltd", Purpose: "Delivers the mail that the service sends.", Purposes: []subject.Purpose{subject.Account, subject.Notice}, Categories: []string{"mail address", "content of the mail"},
		Place: "Ireland", Safeguard: "None needed, within the European Economic Area.", Contract: "Data processing agreement under Article 28 GDPR", ContractDate: s.Date,
	}}
	return policy(s)
}

func pointer[T any](v T) *T { return &v }

// operation is the OpenAPI of a route, complete with every error it can answer.
func (d doc) operation(a *API, method, path string, need access) huma.Operation {
	registry := a.spec.OpenAPI().Components.Schemas
	op := huma.Operation{
		OperationID: d.id, Method: method, Path: path, Tags: []string{d.tag}, Summary: d.summary, Description: d.description,
		DefaultStatus: d.answers[0].status, Responses: map[string]*huma.Response{},
	}
	codes := slices.Clone(d.codes)
	if strings.HasPrefix(path, "/v1/") && need.public {
		codes = append(codes, problem.Forbidden, problem.RateLimited, problem.Timeout, problem.Unavailable)
	}
	op.Security = []map[string][]string{} // nobody has to be anybody
	if !need.public {
		switch {
		case need.session:
			op.Security = []map[string][]string{{"session": {}}}
			op.Description += " A session is needed: no key may do this."
			if need.fresh {
				op.Description += " It must have proved within ten minutes who it is."
				codes = append(codes, problem.ReauthNeeded)
			}
		default:
			op.Security = []map[string][]string{{"key": {need.scope}}, {"session": {}}}
			op.Description += " A key needs the scope `" + need.scope + "`."
		}
		codes = append(codes, problem.Unauthorized, problem.Forbidden, problem.RateLimited, problem.Timeout, problem.Unavailable)
	}
	codes = append(codes, problem.Internal, problem.InvalidRequest)
	if d.request != nil {
		codes = append(codes, problem.TooLarge, problem.UnsupportedMedia)
		op.RequestBody = &huma.RequestBody{
			Description: fmt.Sprintf("At most %d KiB of JSON in UTF-8. Unknown fields are refused.", need.bodyLimit()>>10), Required: true,
			Content: map[string]*huma.MediaType{"application/json": {Example: plain(d.request)}},
		}
	}
	for _, g := range d.answers {
		r := &huma.Response{Description: g.description, Headers: headers(append(g.headers, "X-Request-ID")...)}
		if !need.public {
			addHeaders(r.Headers, "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
		}
		switch {
		case g.kind == "image/*":
			file := func() *huma.MediaType {
				return &huma.MediaType{Schema: &huma.Schema{Type: "string", Format: "binary"}, Example: "(the bytes of the file)"}
			}
			r.Content = map[string]*huma.MediaType{"image/png": file(), "image/jpeg": file(), "image/webp": file()}
		case g.kind != "":
			r.Content = map[string]*huma.MediaType{g.kind: {Schema: &huma.Schema{Type: "string"}, Example: g.body}}
		case g.body != nil:
			r.Content = map[string]*huma.MediaType{"application/json": {
				Schema: registry.Schema(reflect.TypeOf(g.body), true, ""), Example: plain(g.body),
			}}
		}
		op.Responses[strconv.Itoa(g.status)] = r
	}
	d.errors(&op, registry, codes)
	return op
}

// errors groups codes by their status, each with an example.
func (d doc) errors(op *huma.Operation, registry huma.Registry, codes []problem.Code) {
	schema := registry.Schema(reflect.TypeFor[problemView](), true, "")
	for _, a := range answers {
		if !slices.Contains(codes, a.Code) {
			continue
		}
		status := strconv.Itoa(a.Status)
		r := op.Responses[status]
		if r == nil {
			r = &huma.Response{Headers: headers("X-Request-ID")}
			op.Responses[status] = r
		}
		if r.Content == nil {
			r.Content = map[string]*huma.MediaType{}
		}
		m := r.Content[problemJSON]
		if m == nil {
			m = &huma.MediaType{Schema: schema, Examples: map[string]*huma.Example{}}
			r.Content[problemJSON] = m
		}
		switch a.Status {
		case http.StatusUnauthorized:
			addHeaders(r.Headers, "WWW-Authenticate")
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			addHeaders(r.Headers, "Retry-After")
		}
		r.Description = strings.TrimSpace(r.Description + " `" + string(a.Code) + "`: " + a.When)
		example := problemView{
			Type: "/docs#" + string(a.Code), Title: a.Title, Status: a.Status, Detail: strings.ReplaceAll(a.When, "`", ""),
			Code: string(a.Code), RequestID: "req_1s7g3kqv9m2x4c8w",
		}
		if a.Code == problem.InvalidRequest && d.request != nil {
			example.Errors = []fieldView{{Location: "body", Message: "has a field that is not known"}}
		}
		m.Examples[string(a.Code)] = &huma.Example{Summary: a.Title, Value: plain(example)}
	}
}

// plain is v as a JSON reader sees it.
func plain(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}

func headers(names ...string) map[string]*huma.Param {
	h := map[string]*huma.Param{}
	addHeaders(h, names...)
	return h
}

func addHeaders(h map[string]*huma.Param, names ...string) {
	for _, n := range names {
		h[n] = &huma.Param{Ref: "#/components/headers/" + n}
	}
}

func header(kind, description string, example any) *huma.Header {
	return &huma.Header{Description: description, Schema: &huma.Schema{Type: kind}, Example: example}
}

// document is the OpenAPI before the routes are in it.
func (a *API) document() *huma.OpenAPI {
	registry := huma.NewMapRegistry("#/components/schemas/", func(t reflect.Type, hint string) string {
		name := strings.TrimSuffix(huma.DefaultSchemaNamer(t, hint), "View")
		return strings.TrimSuffix(name, "Body")
	})
	o := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "Z Image Generator", Version: a.rooms.Version,
			Description: "Prompts become images. Submit one, wait or watch, download the result; delete it when you like. " +
				"Everything belongs to the account of the key it was made with; what belongs to somebody else answers as if it were not there.",
			License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Tags: []*huma.Tag{
			{Name: tagGenerations, Description: "A prompt and what becomes of it."},
			{Name: tagImages, Description: "The finished pictures."},
			{Name: tagLinks, Description: "By which others see a picture of yours, because you want them to."},
			{Name: tagModels, Description: "What can be asked for."},
			{Name: tagAccount, Description: "Who you are here, what you agreed to, and how you leave."},
			{Name: tagSignIn, Description: "Sessions, second factors and passkeys. A session is a cookie that the answer sets."},
			{Name: tagKeys, Description: "By which programs act for you."},
			{Name: tagWebhooks, Description: "How your programs are told what happens, without asking."},
			{Name: tagStaff, Description: "For those who run the service: with a role, two factors and a reason that is kept."},
			{Name: tagPrivacy, Description: "What the operator promises about personal data, what becomes of yours, and how everybody can see that it is kept."},
			{Name: tagOperations, Description: "For whoever runs it."},
		},
		Components: &huma.Components{
			Schemas: registry,
			SecuritySchemes: map[string]*huma.SecurityScheme{"key": {
				Type: "http", Scheme: "bearer", BearerFormat: "zi_…",
				Description: "`Authorization: Bearer zi_…`. A key has some of the scopes `generate` (make, cancel, delete), `read`, `webhooks`, `account` and `admin`. `admin` is for staff and reserved: no route takes it yet, and what staff do needs a session. Never put it into a URL.",
			}, "session": {
				Type: "apiKey", In: "cookie", Name: sessionCookie,
				Description: "Set by signing in: `__Host-zimage` over https, `zimage` on a loopback address. It has every scope but `admin`.",
			}},
			Headers: map[string]*huma.Header{
				"X-Request-ID":         header("string", "Finds this request in the operator's log.", "req_1s7g3kqv9m2x4c8w"),
				"RateLimit-Limit":      header("integer", "Requests a minute of this key.", 600),
				"RateLimit-Remaining":  header("integer", "Left now.", 599),
				"RateLimit-Reset":      header("integer", "Seconds until all are back.", 1),
				"Retry-After":          header("integer", "Seconds until it is worth trying again.", 3),
				"WWW-Authenticate":     header("string", "How to authenticate.", `Bearer realm="zimage"`),
				"Location":             header("string", "Where to look.", "/v1/generations/"+sampleGeneration),
				"Preference-Applied":   header("string", "The wait that was taken over from Prefer.", "wait=30"),
				"Idempotency-Replayed": header("string", "true when the generation was made by an earlier request with this Idempotency-Key.", "true"),
				"Set-Cookie":           header("string", "The session, or what is left of it after a sign-out.", sessionCookie+"=zs_…; Path=/; HttpOnly; Secure; SameSite=Lax"),
				"Cache-Control":        header("string", "How long the answer may be kept.", "public, max-age=30"),
				"ETag":                 header("string", "Of the file.", `"9f86d081884c7d65"`),
				"X-Robots-Tag":         header("string", "What is behind a link is not for search engines.", "noindex"),
				"Content-Disposition":  header("string", "A file name that is not made of the prompt.", `inline; filename="`+sampleImage+`.png"`),

				"X-RateLimit-Limit-Requests":     header("integer", "RateLimit-Limit, for OpenAI's clients.", 600),
				"X-RateLimit-Remaining-Requests": header("integer", "RateLimit-Remaining, for OpenAI's clients.", 599),
				"X-RateLimit-Reset-Requests":     header("string", "RateLimit-Reset, for OpenAI's clients.", "1s"),
			},
		},
	}
	if a.base != "" {
		o.Servers = []*huma.Server{{URL: a.base}}
	}
	s := registry.Schema(reflect.TypeFor[problemView](), true, "")
	code := registry.SchemaFromRef(s.Ref).Properties["code"]
	for _, k := range answers {
		code.Enum = append(code.Enum, string(k.Code))
	}
	code.PrecomputeMessages()
	return o
}

//go:embed docs.html
var docsHTML string

//go:embed docs.css
var docsCSS []byte

// render makes the OpenAPI and the page made of it, once.
func (a *API) render() error {
	var err error
	if a.openAPI, err = json.Marshal(a.spec.OpenAPI()); err != nil {
		return fmt.Errorf("render openapi: %w", err)
	}
	page, err := template.New("docs").Funcs(template.FuncMap{"rich": rich}).Parse(docsHTML)
	if err != nil {
		return fmt.Errorf("parse the page of the documentation: %w", err)
	}
	var b bytes.Buffer
	if err := page.Execute(&b, a.reference()); err != nil {
		return fmt.Errorf("render the page of the documentation: %w", err)
	}
	a.docs = b.Bytes()
	return nil
}

func (a *API) serveOpenAPI(c *gin.Context) {
	c.Header("Cache-Control", "no-cache")
	c.Data(http.StatusOK, "application/openapi+json", a.openAPI)
}

func (a *API) serveDocs(c *gin.Context) {
	c.Header("Cache-Control", "no-cache")
	c.Header("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	c.Data(http.StatusOK, "text/html; charset=utf-8", a.docs)
}

func (a *API) serveStyle(c *gin.Context) {
	c.Header("Cache-Control", "no-cache")
	c.Data(http.StatusOK, "text/css; charset=utf-8", docsCSS)
}
