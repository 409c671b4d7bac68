package enginetest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// SDCPP is a stand-in for stable-diffusion.cpp's sd-server. It makes one image
// at a time, and cannot stop one.
type SDCPP struct {
	base
	model string
	gpu   sync.Mutex
	jobs  map[string]*job
	next  int
}

type job struct {
	call   Call
	status string
	image  []byte
}

var _ Server = (*SDCPP)(nil)

// NewSDCPP is a server that loaded that model file.
func NewSDCPP(model string) *SDCPP { return &SDCPP{model: model, jobs: map[string]*job{}} }

// ServeHTTP answers as the real server does, on its native routes and on the one
// that is a trap: OpenAI's.
func (s *SDCPP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.is(Hang) {
		hang(r)
		return
	}
	path, isJob := strings.CutPrefix(r.URL.Path, "/sdcpp/v1/jobs/")
	id, isCancel := strings.CutSuffix(path, "/cancel")
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/sdcpp/v1/capabilities":
		model := s.model
		if s.is(OtherModel) {
			model = "another.gguf"
		}
		stem, _, _ := strings.Cut(model, ".")
		answer(w, http.StatusOK, object{"model": object{"name": model, "stem": stem, "path": "/models/" + model}, "supported_modes": []string{"img_gen"}})
	case r.Method == http.MethodPost && r.URL.Path == "/sdcpp/v1/img_gen":
		s.submit(w, r)
	case r.Method == http.MethodGet && r.URL.Path == "/v1/models":
		answer(w, http.StatusOK, object{"data": []object{{"id": "sd-cpp-local", "object": "model", "owned_by": "local"}}})
	case r.Method == http.MethodPost && r.URL.Path == "/v1/images/generations":
		s.compatible(w, r)
	case r.Method == http.MethodPost && isJob && isCancel:
		s.cancel(w, id)
	case r.Method == http.MethodGet && isJob:
		s.look(w, r, path)
	default:
		answer(w, http.StatusNotFound, object{"error": "no such route"})
	}
}

func (s *SDCPP) submit(w http.ResponseWriter, r *http.Request) {
	a := struct {
		Prompt         string `json:"prompt"`
		NegativePrompt string `json:"negative_prompt"`
		Width          int    `json:"width"`
		Height         int    `json:"height"`
		Seed           int64  `json:"seed"`
		BatchCount     int    `json:"batch_count"`
		Embed          bool   `json:"embed_image_metadata"`
		OutputFormat   string `json:"output_format"`
		Sample         struct {
			Steps    int `json:"sample_steps"`
			Guidance struct {
				Text float64 `json:"txt_cfg"`
			} `json:"guidance"`
		} `json:"sample_params"`
	}{Seed: -1, BatchCount: 1, Embed: true}
	fields, err := read(r, &a)
	if err != nil || s.is(Reject) {
		answer(w, http.StatusBadRequest, object{"error": "invalid json", "message": "near " + a.Prompt})
		return
	}
	c := Call{
		Prompt: a.Prompt, NegativePrompt: a.NegativePrompt, Width: a.Width, Height: a.Height, Seed: a.Seed, Images: a.BatchCount,
		Steps: a.Sample.Steps, Guidance: a.Sample.Guidance.Text, Fields: fields,
	}
	s.note(c)
	if s.is(Busy) {
		answer(w, http.StatusTooManyRequests, object{"error": "job queue is full"})
		return
	}
	s.mu.Lock()
	s.next++
	id, j := fmt.Sprintf("job_%d", s.next), &job{call: c, status: "queued"}
	s.jobs[id] = j
	s.mu.Unlock()
	go s.run(j)
	answer(w, http.StatusAccepted, object{"id": id, "kind": "img_gen", "status": "queued", "created": 1, "poll_url": "/sdcpp/v1/jobs/" + id})
}

// compatible is OpenAI's route. It takes the fields that it knows and passes over
// the others, the seed among them; what it takes beyond them is what a block in
// the prompt says.
func (s *SDCPP) compatible(w http.ResponseWriter, r *http.Request) {
	a := struct {
		Prompt string `json:"prompt"`
		N      int    `json:"n"`
		Size   string `json:"size"`
	}{N: 1}
	if json.NewDecoder(r.Body).Decode(&a) != nil || a.Prompt == "" {
		answer(w, http.StatusBadRequest, object{"error": "prompt required"})
		return
	}
	c := Call{Prompt: a.Prompt, Width: 512, Height: 512, Images: a.N}
	_, _ = fmt.Sscanf(a.Size, "%dx%d", &c.Width, &c.Height)
	s.mu.Lock()
	s.next++
	c.Seed = int64(s.next) // its own, whatever was sent
	s.mu.Unlock()
	obey(&c)
	s.note(c)
	s.gpu.Lock()
	defer s.gpu.Unlock()
	s.work(context.WithoutCancel(r.Context()))
	data := []object{}
	for k := range c.Images {
		image := c
		image.Seed += int64(k)
		data = append(data, object{"b64_json": b64(s.paint(image))})
	}
	answer(w, http.StatusOK, object{"created": 1, "data": data, "output_format": "png"})
}

// obey takes the block of settings out of a prompt and does what it says.
func obey(c *Call) {
	const open, shut = "<sd_cpp_extra_args>", "</sd_cpp_extra_args>"
	before, rest, found := strings.Cut(c.Prompt, open)
	block, after, closed := strings.Cut(rest, shut)
	if !found || !closed {
		return
	}
	c.Prompt = before + after
	var settings struct {
		Batch  int    `json:"batch_count"`
		Seed   *int64 `json:"seed"`
		Width  int    `json:"width"`
		Height int    `json:"height"`
	}
	if json.Unmarshal([]byte(block), &settings) != nil {
		return
	}
	c.Images = max(settings.Batch, c.Images)
	if settings.Seed != nil {
		c.Seed = *settings.Seed
	}
	if settings.Width > 0 && settings.Height > 0 {
		c.Width, c.Height = settings.Width, settings.Height
	}
}

// run makes the image when it is its turn; the real server goes on whoever
// went away.
func (s *SDCPP) run(j *job) {
	s.gpu.Lock()
	defer s.gpu.Unlock()
	s.mu.Lock()
	if j.status != "queued" {
		s.mu.Unlock()
		return
	}
	j.status = "generating"
	s.mu.Unlock()
	s.work(context.Background())
	image, status := s.paint(j.call), "completed"
	if s.is(Fail) {
		image, status = nil, "failed"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j.image, j.status = image, status
}

func (s *SDCPP) cancel(w http.ResponseWriter, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, ok := s.jobs[id]
	switch {
	case !ok:
		answer(w, http.StatusNotFound, object{"error": "job not found"})
	case j.status == "queued":
		j.status = "cancelled"
		answer(w, http.StatusOK, object{"id": id, "status": j.status})
	default:
		answer(w, http.StatusConflict, object{"error": "job cannot be cancelled"})
	}
}

func (s *SDCPP) look(w http.ResponseWriter, r *http.Request, id string) {
	switch {
	case s.is(Expire):
		answer(w, http.StatusGone, object{"error": "job expired"})
		return
	case s.is(Forget):
		answer(w, http.StatusNotFound, object{"error": "job not found"})
		return
	case s.is(Unavailable):
		answer(w, http.StatusServiceUnavailable, object{"error": "overloaded"})
		return
	}
	s.mu.Lock()
	j, ok := s.jobs[id]
	if !ok {
		s.mu.Unlock()
		answer(w, http.StatusNotFound, object{"error": "job not found"})
		return
	}
	a := object{"id": id, "kind": "img_gen", "status": j.status, "queue_position": 0, "result": nil, "error": nil}
	switch j.status {
	case "completed":
		a["result"] = object{"output_format": "png", "images": []object{{"index": 0, "b64_json": b64(j.image)}}}
	case "failed":
		a["error"] = object{"code": "generation_failed", "message": "could not draw " + j.call.Prompt}
	}
	s.mu.Unlock()
	if a["result"] != nil && s.transport(w, r, `{"id":"`+id+`","status":"completed","result":{"images":[{"b64_json":"`) {
		return
	}
	answer(w, http.StatusOK, a)
}
