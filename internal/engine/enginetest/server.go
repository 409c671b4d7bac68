// Package enginetest holds stand-ins for image servers, each speaking its real
// protocol with its real traps, and the suite that every adapter passes. It is
// for tests alone, and makes no pictures worth looking at.
package enginetest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A Trap is one bad day of a server.
type Trap string

// The traps. A server that cannot fall into one ignores it.
const (
	Fine        Trap = ""
	IgnoreSeed  Trap = "ignores the seed"
	WrongSize   Trap = "returns another size"
	NotImage    Trap = "returns no image"
	URLOnly     Trap = "returns a URL"
	Hang        Trap = "takes requests and never answers"
	SlowHeaders Trap = "sends a header now and then, forever"
	HalfBody    Trap = "sends half a body"
	Huge        Trap = "answers with 3 GB"
	Fail        Trap = "fails, and echoes the prompt"
	Reject      Trap = "calls the request invalid, and echoes the prompt"
	Refuse      Trap = "refuses the content, and echoes the prompt"
	Busy        Trap = "has its queue full"
	Unavailable Trap = "is loading"
	OtherModel  Trap = "serves another model"
	Forget      Trap = "forgot its jobs in a restart"
	Expire      Trap = "dropped its jobs as too old"
)

// A Server is a stand-in.
type Server interface {
	http.Handler
	Set(Trap)           // from now on
	Take(time.Duration) // how long images take from now on; at first no time
	Finish()            // ends all images that are being made now
	Running() int       // images being made now
	Sent() int64        // bytes of a huge answer that somebody took
	Calls() []Call      // all requests for images so far
}

// A Call is a request for an image as the server understood it.
type Call struct {
	Model, Prompt, NegativePrompt string
	Width, Height, Steps, Images  int
	Guidance                      float64
	Seed                          int64
	Fields                        map[string]any // the body
}

// base is what all stand-ins share.
type base struct {
	mu      sync.Mutex
	trap    Trap
	takes   time.Duration
	finish  chan struct{}
	running int
	sent    int64
	calls   []Call
}

// Set chooses the trap from now on.
func (b *base) Set(t Trap) { b.mu.Lock(); defer b.mu.Unlock(); b.trap = t }

// Take says how long images take from now on.
func (b *base) Take(d time.Duration) { b.mu.Lock(); defer b.mu.Unlock(); b.takes = d }

// Running is how many images are being made now.
func (b *base) Running() int { b.mu.Lock(); defer b.mu.Unlock(); return b.running }

// Sent is how many bytes of huge answers were taken.
func (b *base) Sent() int64 { b.mu.Lock(); defer b.mu.Unlock(); return b.sent }

// Calls are all requests for images so far.
func (b *base) Calls() []Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Call(nil), b.calls...)
}

// Finish ends all images that are being made now.
func (b *base) Finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.finish != nil {
		close(b.finish)
		b.finish = nil
	}
}

func (b *base) is(t Trap) bool { b.mu.Lock(); defer b.mu.Unlock(); return b.trap == t }

func (b *base) note(c Call) { b.mu.Lock(); defer b.mu.Unlock(); b.calls = append(b.calls, c) }

// work takes the time of one image; it is false when ctx ended before.
func (b *base) work(ctx context.Context) bool {
	b.mu.Lock()
	b.running++
	if b.finish == nil {
		b.finish = make(chan struct{})
	}
	finish, t := b.finish, time.NewTimer(b.takes)
	b.mu.Unlock()
	defer func() { b.mu.Lock(); b.running--; b.mu.Unlock() }()
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-finish:
	case <-t.C:
	}
	return true
}

// paint makes the image of c, or what the trap makes of it.
func (b *base) paint(c Call) []byte {
	switch {
	case b.is(WrongSize):
		c.Width, c.Height = 512, 512
	case b.is(NotImage):
		return []byte("<html>" + c.Prompt + "</html>")
	case b.is(IgnoreSeed):
		b.mu.Lock()
		c.Seed = -int64(len(b.calls))
		b.mu.Unlock()
	}
	return Paint(c.Prompt, c.Seed, c.Width, c.Height)
}

// Paint is a PNG of one colour, which prompt and seed decide.
func Paint(prompt string, seed int64, width, height int) []byte {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, seed, prompt)
	sum := h.Sum32()
	p := image.NewPaletted(image.Rect(0, 0, width, height), color.Palette{color.RGBA{byte(sum >> 16), byte(sum >> 8), byte(sum), 255}})
	var out bytes.Buffer
	if err := png.Encode(&out, p); err != nil {
		panic(err) // a size that no caller asks for
	}
	return out.Bytes()
}

// transport falls into the traps of the wire, in place of the answer that
// starts with prefix; it is false when there are none.
func (b *base) transport(w http.ResponseWriter, r *http.Request, prefix string) bool {
	switch {
	case b.is(Hang):
		hang(r)
	case b.is(SlowHeaders):
		drip(w)
	case b.is(HalfBody):
		w.Header().Set("Content-Length", "100000")
		_, _ = io.WriteString(w, prefix+"AAAA")
	case b.is(Huge):
		b.flood(w, prefix)
	default:
		return false
	}
	return true
}

// hang waits until the client goes.
func hang(r *http.Request) {
	// Before the end of the body net/http does not notice that.
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// flood sends 3 GB: zeros in base64, without a Content-Length.
func (b *base) flood(w http.ResponseWriter, prefix string) {
	_, _ = io.WriteString(w, prefix)
	zeros := bytes.Repeat([]byte("A"), 64<<10)
	for total := int64(0); total < 3<<30; {
		n, err := w.Write(zeros)
		total += int64(n)
		b.mu.Lock()
		b.sent += int64(n)
		b.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func drip(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	// Until the client goes; the bound is for a client that never does.
	_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
	for n := 0; err == nil && n < 10_000; n++ {
		time.Sleep(10 * time.Millisecond)
		_, err = io.WriteString(c, "X-Slow: 1\r\n")
	}
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

type object map[string]any

// read decodes the body into v, strictly, and into fields, loosely.
func read(r *http.Request, v any) (fields map[string]any, err error) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return fields, d.Decode(v)
}

func b64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

// OpenAI is a stand-in for vLLM-Omni, SGLang or LocalAI.
type OpenAI struct {
	base
	dialect, model string
	fetched        int
}

var _ Server = (*OpenAI)(nil)

// NewOpenAI speaks that dialect (vllm-omni, sglang, localai) and serves that
// model.
func NewOpenAI(dialect, model string) *OpenAI { return &OpenAI{dialect: dialect, model: model} }

// Fetched is how often somebody followed a URL of an answer.
func (o *OpenAI) Fetched() int { o.mu.Lock(); defer o.mu.Unlock(); return o.fetched }

// ServeHTTP answers as the real server does.
func (o *OpenAI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	model := o.model
	if o.is(OtherModel) {
		model = "another/model"
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /health", "GET /readyz":
		if (r.URL.Path == "/readyz") != (o.dialect == "localai") {
			answer(w, http.StatusNotFound, object{"detail": "Not Found"})
			return
		}
		if o.is(Hang) {
			hang(r)
			return
		}
		if o.is(Unavailable) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	case "GET /v1/models":
		answer(w, http.StatusOK, object{"object": "list", "data": []object{{"id": model, "object": "model"}}})
	case "POST /v1/images/generations":
		o.generate(w, r, model)
	case "GET /generated-images/b64.png":
		o.mu.Lock()
		o.fetched++
		o.mu.Unlock()
		_, _ = w.Write(Paint("", 0, 64, 64))
	default:
		answer(w, http.StatusNotFound, object{"detail": "Not Found"})
	}
}

// asked is the body of all dialects; which field a dialect takes is checked
// apart.
type asked struct {
	Model          string   `json:"model"`
	Prompt         string   `json:"prompt"`
	NegativePrompt string   `json:"negative_prompt"`
	N              *int     `json:"n"`
	Size           string   `json:"size"`
	Steps          int      `json:"num_inference_steps"`
	Step           int      `json:"step"`
	Guidance       *float64 `json:"guidance_scale"`
	Seed           *int64   `json:"seed"`
	ResponseFormat string   `json:"response_format"`
	OutputFormat   string   `json:"output_format"`
}

func (o *OpenAI) generate(w http.ResponseWriter, r *http.Request, model string) {
	var a asked
	fields, err := read(r, &a)
	echo := func(status int) {
		if o.dialect == "localai" {
			answer(w, status, object{"error": object{"code": status, "message": "could not draw: " + a.Prompt, "type": ""}})
			return
		}
		answer(w, status, object{"detail": []object{{"msg": "bad input", "input": a.Prompt}}})
	}
	if err != nil {
		echo(http.StatusUnprocessableEntity)
		return
	}
	c := Call{Model: a.Model, Prompt: a.Prompt, NegativePrompt: a.NegativePrompt, Steps: a.Steps, Images: 1, Fields: fields, Guidance: -1, Seed: 1024}
	if a.N != nil {
		c.Images = *a.N
	}
	if a.Guidance != nil {
		c.Guidance = *a.Guidance
	}
	if a.Seed != nil {
		c.Seed = *a.Seed
	}
	_, err = fmt.Sscanf(a.Size, "%dx%d", &c.Width, &c.Height)
	byURL := o.is(URLOnly)
	switch o.dialect {
	case "localai":
		c.Steps = a.Step
		c.Prompt, c.NegativePrompt, _ = strings.Cut(a.Prompt, "|")
		c.NegativePrompt, _, _ = strings.Cut(c.NegativePrompt, "|")
		if err != nil {
			c.Width, c.Height = 512, 512
		}
		byURL = byURL || a.ResponseFormat != "b64_json"
	case "sglang":
		byURL = byURL || a.ResponseFormat != "b64_json"
	default:
		if a.Model != model || c.Steps > 200 || c.Guidance > 20 || err != nil {
			echo(http.StatusBadRequest)
			return
		}
	}
	o.note(c)
	switch {
	case o.transport(w, r, `{"created":1,"data":[{"b64_json":"`):
		return
	case o.is(Reject):
		echo(http.StatusBadRequest)
		return
	case o.is(Busy):
		echo(http.StatusTooManyRequests)
		return
	case o.is(Unavailable):
		echo(http.StatusServiceUnavailable)
		return
	case o.is(Refuse):
		answer(w, http.StatusBadRequest, object{"error": object{"code": "content_policy_violation", "message": "will not draw: " + a.Prompt}})
		return
	}
	ctx := r.Context()
	if o.dialect == "sglang" { // goes on when nobody listens any more
		ctx = context.WithoutCancel(ctx)
	}
	if !o.work(ctx) {
		return
	}
	if o.is(Fail) {
		echo(http.StatusInternalServerError)
		return
	}
	one := object{"b64_json": b64(o.paint(c))}
	if byURL {
		one = object{"url": "http://" + r.Host + "/generated-images/b64.png"}
	}
	answer(w, http.StatusOK, object{"created": 1, "data": []object{one}})
}
