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

// ServeHTTP answers as the real server does, on the native routes alone: an
// adapter that uses another gets a 404.
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
	obey(&c)
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

// obey does what the block of settings in a prompt says, as the compatible
// routes of the real server do: whoever lets one through gets three images.
func obey(c *Call) {
	_, rest, found := strings.Cut(strings.ToLower(c.Prompt), "<sd_cpp_extra_args>")
	block, _, closed := strings.Cut(rest, "</sd_cpp_extra_args>")
	if !found || !closed {
		return
	}
	var settings struct {
		Batch int `json:"batch_count"`
	}
	if json.Unmarshal([]byte(block), &settings) == nil && settings.Batch > 0 {
		c.Images = settings.Batch
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
