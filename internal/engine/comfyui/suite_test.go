package comfyui

import (
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

// Finish comes at the end of each of the suite's tests: nothing may be left.
func (s *stand) Finish() {
	if l := s.Leftovers(); !l.Empty() {
		s.t.Errorf("left behind: %+v", l)
	}
	s.Close()
}

func TestSuite(t *testing.T) {
	t.Parallel()
	traps := []enginetest.Trap{}
	for trap := range options {
		if trap != enginetest.OtherModel {
			traps = append(traps, trap)
		}
	}
	enginetest.Suite(t, enginetest.Subject{
		Open: Open,
		Settings: engine.Settings{Kind: "comfyui", Keeps: "memory", Models: map[string]engine.Served{
			"z-image-turbo": {Upstream: "z_image_turbo_bf16.safetensors"},
		}},
		Server: func() enginetest.Server { return &stand{Server: fake.New(fake.Options{}), t: t} },
		Model:  engine.Model{ID: "z-image-turbo"},
		Stops:  true,
		Steps:  true,
		Traps:  traps,
	})
}
