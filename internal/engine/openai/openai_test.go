package openai_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/engine"
	"zimage/internal/engine/enginetest"
	"zimage/internal/engine/openai"
)

var none = 0.0

func settings(dialect string) engine.Settings {
	return engine.Settings{
		Name: "gpu", Kind: engine.KindOpenAI, Lane: "generation", Slots: 1, Keeps: "nothing", Timeout: 10 * time.Second,
		Models: map[string]engine.Served{"z": {Upstream: "Tongyi/Z", Dialect: dialect, StepsOffset: 1, Guidance: &none}},
	}
}

func open(t *testing.T, dialect string) (*enginetest.OpenAI, engine.Engine) {
	t.Helper()
	server := enginetest.NewOpenAI(dialect, "Tongyi/Z")
	listener := httptest.NewServer(server)
	t.Cleanup(listener.Close)
	t.Cleanup(server.Finish)
	s := settings(dialect)
	s.URL = listener.URL
	e, err := openai.Open(s)
	if err != nil {
		t.Fatal(err)
	}
	return server, e
}

func request(dialect string) engine.Request {
	return engine.Request{
		Model: engine.Model{ID: "z"}, Served: settings(dialect).Models["z"],
		Prompt: "a cat | a dog || rain", NegativePrompt: "fog|mist", Width: 128, Height: 64, Steps: 8, Guidance: 3.5, Seed: 0,
	}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{engine.DialectVLLMOmni, engine.DialectSGLang, engine.DialectLocalAI} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			enginetest.Suite(t, enginetest.Subject{
				Open: openai.Open, Settings: settings(dialect), Model: engine.Model{ID: "z"},
				Server: func() enginetest.Server { return enginetest.NewOpenAI(dialect, "Tongyi/Z") },
				Stops:  dialect != engine.DialectSGLang,
				Traps: []enginetest.Trap{
					enginetest.WrongSize, enginetest.NotImage, enginetest.URLOnly, enginetest.Hang, enginetest.SlowHeaders, enginetest.HalfBody,
					enginetest.Huge, enginetest.Fail, enginetest.Reject, enginetest.Refuse, enginetest.Busy, enginetest.Unavailable,
				},
			})
		})
	}
}

// The whole body, so that a field that is added or left out is seen. Seed 0 and
// guidance 0 are sent: SGLang would take seed 1024.
func TestBodies(t *testing.T) {
	t.Parallel()
	diffusers := `{"guidance_scale":0,"model":"Tongyi/Z","n":1,"negative_prompt":"fog|mist","num_inference_steps":9,"output_format":"png",` +
		`"prompt":"a cat | a dog || rain","response_format":"b64_json","seed":0,"size":"128x64"}`
	for dialect, want := range map[string]string{
		engine.DialectVLLMOmni: diffusers,
		engine.DialectSGLang:   diffusers,
		engine.DialectLocalAI: `{"model":"Tongyi/Z","n":1,"prompt":"a cat , a dog ,, rain|fog,mist","response_format":"b64_json",` +
			`"seed":0,"size":"128x64","step":9}`,
	} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			server, e := open(t, dialect)
			if _, err := e.Generate(t.Context(), request(dialect), func(engine.Progress) {}); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(server.Calls()[0].Fields)
			if err != nil || string(got) != want {
				t.Errorf("sent\n%s, want\n%s", got, want)
			}
		})
	}
}

func TestUsersGuidanceIsSentWhereTheModelHasOne(t *testing.T) {
	t.Parallel()
	server, e := open(t, engine.DialectVLLMOmni)
	r := request(engine.DialectVLLMOmni)
	r.Served.Guidance = nil
	if _, err := e.Generate(t.Context(), r, func(engine.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if got := server.Calls()[0].Guidance; got != 3.5 {
		t.Errorf("guidance %v", got)
	}
}

func TestNoURLIsFollowed(t *testing.T) {
	t.Parallel()
	server, e := open(t, engine.DialectLocalAI)
	server.Set(enginetest.URLOnly)
	if _, err := e.Generate(t.Context(), request(engine.DialectLocalAI), func(engine.Progress) {}); engine.CodeOf(err) != engine.CodeBadImage {
		t.Errorf("%v", err)
	}
	if n := server.Fetched(); n != 0 {
		t.Errorf("the URL was followed %d times", n)
	}
}

// SGLang tells nothing of an image whose caller is gone: Generate gives up at
// the engine's timeout, counted from the start.
func TestSGLangIsWaitedForUntilItsTimeout(t *testing.T) {
	t.Parallel()
	server := enginetest.NewOpenAI(engine.DialectSGLang, "Tongyi/Z")
	listener := httptest.NewServer(server)
	t.Cleanup(listener.Close)
	t.Cleanup(server.Finish)
	server.Take(time.Hour)
	s := settings(engine.DialectSGLang)
	s.URL, s.Timeout = listener.URL, 400*time.Millisecond
	e, err := openai.Open(s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	// Progress starts with the call, so this cancels an image that runs.
	_, err = e.Generate(ctx, request(engine.DialectSGLang), func(engine.Progress) { cancel() })
	if took := time.Since(began); took < s.Timeout || took > 10*time.Second {
		t.Errorf("returned after %v", took)
	}
	if engine.CodeOf(err) != engine.CodeCanceled {
		t.Errorf("%v", err)
	}
}

func TestProgressIsEstimatedOnceTimesAreKnown(t *testing.T) {
	t.Parallel()
	server, e := open(t, engine.DialectVLLMOmni)
	server.Take(200 * time.Millisecond)
	var steps []int
	for range 2 {
		steps = nil
		if _, err := e.Generate(t.Context(), request(engine.DialectVLLMOmni), func(p engine.Progress) {
			steps = append(steps, p.Step)
			if !p.Estimated {
				t.Error("an estimate must say so")
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if len(steps) < 3 || steps[0] != 0 {
		t.Errorf("steps of the second image: %v", steps)
	}
}

// sd-server has this route too, ignores the seed on it and does what a prompt says.
// No dialect takes it for its server, so no seed is claimed that was not used.
func TestAnSDServerIsNoneOfTheDialects(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{engine.DialectVLLMOmni, engine.DialectSGLang, engine.DialectLocalAI} {
		t.Run(dialect, func(t *testing.T) {
			t.Parallel()
			server := enginetest.NewSDCPP("z_image.gguf")
			listener := httptest.NewServer(server)
			t.Cleanup(listener.Close)
			s := settings(dialect)
			s.URL, s.Models = listener.URL, map[string]engine.Served{"z": {Upstream: "sd-cpp-local", Dialect: dialect}}
			e, err := openai.Open(s)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Check(t.Context()); engine.FaultOf(err) != engine.FaultEngine || engine.CodeOf(err) != engine.CodeFailed {
				t.Errorf("Check: %v", err)
			}
			image, err := e.Generate(t.Context(), request(dialect), func(engine.Progress) {})
			if image != nil || engine.FaultOf(err) != engine.FaultEngine || engine.CodeOf(err) != engine.CodeFailed {
				t.Errorf("%d bytes, %v", len(image), err)
			}
			if n := len(server.Calls()); n != 0 {
				t.Errorf("it was asked for %d images", n)
			}
		})
	}
}

// A server is looked at before its first image alone.
func TestAServerIsCheckedOnce(t *testing.T) {
	t.Parallel()
	server := enginetest.NewOpenAI(engine.DialectVLLMOmni, "Tongyi/Z")
	var checks atomic.Int64
	listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			checks.Add(1)
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(listener.Close)
	s := settings(engine.DialectVLLMOmni)
	s.URL = listener.URL
	e, err := openai.Open(s)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := e.Generate(t.Context(), request(engine.DialectVLLMOmni), func(engine.Progress) {}); err != nil {
			t.Fatal(err)
		}
	}
	if n := checks.Load(); n != 1 {
		t.Errorf("checked %d times", n)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	s := settings("dalle")
	s.URL = "http://127.0.0.1:1"
	if _, err := openai.Open(s); err == nil {
		t.Error("an unknown dialect was taken")
	}
	s = settings(engine.DialectSGLang)
	s.URL = "http://10.0.0.7"
	if _, err := openai.Open(s); err == nil {
		t.Error("plain http to another machine was taken")
	}
}
