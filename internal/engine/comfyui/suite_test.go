package comfyui

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/engine"
	"zimage/internal/engine/comfyui/fake"
	"zimage/internal/engine/enginetest"
)

// stand is the fake as the suite of all adapters handles it.
type stand struct {
	*fake.Server
	t *testing.T

	mu   sync.Mutex
	trap enginetest.Trap
	take time.Duration
}

var _ enginetest.Server = (*stand)(nil)

// options of the traps. Those of an answer's body are of the image's frame here.
var options = map[enginetest.Trap]fake.Options{
	enginetest.WrongSize:   {WrongSize: true},
	enginetest.NotImage:    {NotImage: true},
	enginetest.Hang:        {HangRequests: true},
	enginetest.HalfBody:    {HalfFrame: true},
	enginetest.Huge:        {HugeFrame: true},
	enginetest.Fail:        {Fail: "RuntimeError"},
	enginetest.Reject:      {Refuse: "value_bigger_than_max"},
	enginetest.Busy:        {Status: 429},
	enginetest.Unavailable: {Status: 503},
	enginetest.OtherModel:  {Models: []string{"another.safetensors"}},
	enginetest.IgnoreSeed:  {IgnoreSeed: true},
}

func (s *stand) Set(t enginetest.Trap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trap = t
	s.apply()
}

func (s *stand) Take(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take = d
	s.apply()
}

func (s *stand) apply() {
	o := options[s.trap]
	o.Step = s.take / 4
	if s.take > time.Minute {
		o.Step, o.Hang = 0, true // until it is interrupted
	}
	s.Server.Set(o)
}

func (s *stand) Running() int {
	if s.Server.Running() != "" {
		return 1
	}
	return 0
}

func (s *stand) Sent() int64 { return s.Flooded() }

// Calls reads what was asked for out of the graphs.
func (s *stand) Calls() []enginetest.Call {
	var calls []enginetest.Call
	for _, raw := range s.Graphs() {
		var graph map[string]struct {
			Inputs struct {
				Text  string `json:"text"`
				Seed  int64  `json:"seed"`
				Batch int    `json:"batch_size"`
			} `json:"inputs"`
		}
		c := enginetest.Call{}
		if err := errors.Join(json.Unmarshal(raw, &graph), json.Unmarshal(raw, &c.Fields)); err != nil {
			s.t.Errorf("a graph that cannot be read: %v", err)
			continue
		}
		c.Prompt, c.NegativePrompt = graph["positive"].Inputs.Text, graph["negative"].Inputs.Text
		c.Seed, c.Images = graph["sampler"].Inputs.Seed, graph["latent"].Inputs.Batch
		calls = append(calls, c)
	}
	return calls
}

// Finish comes at the end of each of the suite's tests: nothing may be left.
func (s *stand) Finish() {
	if l := s.Leftovers(); !l.Empty() {
		s.t.Errorf("left behind: %+v", l)
	}
	s.Close()
}

func TestSuite(t *testing.T) {
	t.Parallel()
	// The built-in graph has no negative prompt, which its model does not know.
	path := filepath.Join(t.TempDir(), "negative.json")
	text := strings.Replace(string(zimage), `"class_type": "ConditioningZeroOut",
    "inputs": {"conditioning": ["positive", 0]}`, `"class_type": "CLIPTextEncode",
    "inputs": {"clip": ["clip", 0], "text": "{{negative_prompt}}"}`, 1)
	if !strings.Contains(text, "{{negative_prompt}}") {
		t.Fatal("the built-in graph has changed")
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	traps := []enginetest.Trap{}
	for trap := range options {
		if trap != enginetest.OtherModel && trap != enginetest.IgnoreSeed { // of tests of their own
			traps = append(traps, trap)
		}
	}
	enginetest.Suite(t, enginetest.Subject{
		Open: Open,
		Settings: engine.Settings{Kind: "comfyui", Keeps: "memory", Models: map[string]engine.Served{
			"z-image-turbo": {Upstream: "z_image_turbo_bf16.safetensors", Workflow: path},
		}},
		Server: func() enginetest.Server { return &stand{Server: fake.New(fake.Options{}), t: t} },
		Model:  engine.Model{ID: "z-image-turbo"},
		Stops:  true,
		Steps:  true,
		Traps:  traps,
	})
}
