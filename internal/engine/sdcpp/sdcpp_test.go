package sdcpp

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"zimage/internal/engine"
	"zimage/internal/engine/enginetest"
)

var classic = 1.0

func settings() engine.Settings {
	return engine.Settings{
		Name: "gpu", Kind: engine.KindSDCPP, Lane: "generation", Slots: 1, Keeps: "memory", Timeout: 10 * time.Second,
		Models: map[string]engine.Served{"z": {Upstream: "z_image.gguf", Guidance: &classic}},
	}
}

func open(t *testing.T, h http.Handler) engine.Engine {
	t.Helper()
	listener := httptest.NewServer(h)
	t.Cleanup(listener.Close)
	s := settings()
	s.URL = listener.URL
	e, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func request(prompt string) engine.Request {
	return engine.Request{Model: engine.Model{ID: "z"}, Served: settings().Models["z"], Prompt: prompt, Width: 128, Height: 64, Steps: 8, Guidance: 5, Seed: 4294967295}
}

func TestSuite(t *testing.T) {
	t.Parallel()
	enginetest.Suite(t, enginetest.Subject{
		Open: Open, Settings: settings(), Model: engine.Model{ID: "z"},
		Server: func() enginetest.Server { return enginetest.NewSDCPP("z_image.gguf") },
		Traps: []enginetest.Trap{
			enginetest.WrongSize, enginetest.NotImage, enginetest.Hang, enginetest.SlowHeaders, enginetest.HalfBody, enginetest.Huge,
			enginetest.Fail, enginetest.Reject, enginetest.Busy, enginetest.Unavailable, enginetest.Forget, enginetest.Expire,
		},
	})
}

func TestBody(t *testing.T) {
	t.Parallel()
	server := enginetest.NewSDCPP("z_image.gguf")
	e := open(t, server)
	if _, err := e.Generate(t.Context(), request("a cat"), func(engine.Progress) {}); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(server.Calls()[0].Fields)
	want := `{"batch_count":1,"embed_image_metadata":false,"height":64,"negative_prompt":"","output_format":"png","prompt":"a cat",` +
		`"sample_params":{"guidance":{"txt_cfg":1},"sample_steps":8},"seed":4294967295,"width":128}`
	if err != nil || string(got) != want {
		t.Errorf("sent\n%s, want\n%s", got, want)
	}
}

// Why the adapter uses the native routes: on the same server the other one ignores
// the seed and does what a prompt says, and ours does neither.
func TestTheCompatibleRouteIsATrap(t *testing.T) {
	t.Parallel()
	const block = `<sd_cpp_extra_args>{"batch_count":3}</sd_cpp_extra_args>`
	server := enginetest.NewSDCPP("z_image.gguf")
	listener := httptest.NewServer(server)
	t.Cleanup(listener.Close)
	compatible := func(prompt string) (images [][]byte) {
		t.Helper()
		body, err := json.Marshal(map[string]any{"prompt": prompt, "n": 1, "size": "128x64", "seed": 7})
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.Post(listener.URL+"/v1/images/generations", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		var a struct {
			Data []struct {
				Image []byte `json:"b64_json"`
			} `json:"data"`
		}
		if err := json.NewDecoder(res.Body).Decode(&a); err != nil {
			t.Fatal(err)
		}
		for _, one := range a.Data {
			images = append(images, one.Image)
		}
		return images
	}
	first, second := compatible("a cat"), compatible("a cat")
	if len(first) != 1 || len(second) != 1 || bytes.Equal(first[0], second[0]) {
		t.Errorf("%d and %d images: the stand-in's trap is gone", len(first), len(second))
	}
	if n := len(compatible("a cat" + block)); n != 3 {
		t.Errorf("%d images: the stand-in's trap is gone", n)
	}
	s := settings()
	s.URL = listener.URL
	e, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	var images [2][]byte
	for i := range images {
		if images[i], err = e.Generate(t.Context(), request("a cat"), func(engine.Progress) {}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("the same seed gave another image")
	}
}

// A queued job can be cancelled, and then nothing is waited for.
func TestCancelWhileQueued(t *testing.T) {
	t.Parallel()
	server := enginetest.NewSDCPP("z_image.gguf")
	t.Cleanup(server.Finish)
	e := open(t, server)
	server.Take(time.Hour)
	first := make(chan error, 1)
	go func() {
		_, err := e.Generate(t.Context(), request("first"), func(engine.Progress) {})
		first <- err
	}()
	wait(t, func() bool { return server.Running() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() {
		_, err := e.Generate(ctx, request("second"), func(engine.Progress) { t.Error("progress of a queued job") })
		second <- err
	}()
	wait(t, func() bool { return len(server.Calls()) == 2 })
	cancel()
	if err := <-second; engine.CodeOf(err) != engine.CodeCanceled {
		t.Errorf("%v", err)
	}
	server.Finish()
	if err := <-first; err != nil {
		t.Errorf("the job that ran: %v", err)
	}
}

// The server has no way to stop: it is waited for long after the cancel, and a
// restart, after which it knows no job, frees it.
func TestRestartFreesARunningJob(t *testing.T) {
	t.Parallel()
	server := enginetest.NewSDCPP("z_image.gguf")
	t.Cleanup(server.Finish)
	e := open(t, server)
	server.Take(time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := e.Generate(ctx, request("a cat"), func(engine.Progress) {})
		ended <- err
	}()
	wait(t, func() bool { return server.Running() == 1 })
	cancel()
	select {
	case err := <-ended:
		t.Fatalf("returned while the engine goes on: %v", err)
	case <-time.After(700 * time.Millisecond):
	}
	server.Set(enginetest.Forget)
	if err := <-ended; engine.CodeOf(err) != engine.CodeCanceled {
		t.Errorf("%v", err)
	}
}

// A few polls that fail are no reason to lose the image.
func TestPollsMayFail(t *testing.T) {
	t.Parallel()
	server := enginetest.NewSDCPP("z_image.gguf")
	t.Cleanup(server.Finish)
	e := open(t, server)
	server.Take(time.Hour)
	ended := make(chan error, 1)
	go func() {
		_, err := e.Generate(t.Context(), request("a cat"), func(engine.Progress) {})
		ended <- err
	}()
	wait(t, func() bool { return server.Running() == 1 })
	server.Set(enginetest.Unavailable)
	select {
	case err := <-ended:
		t.Fatalf("%v", err)
	case <-time.After(time.Second):
	}
	server.Set(enginetest.Fine)
	server.Finish()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestIDsThatAreNoIDs(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "../../v1/models", "a/b", "a?b", strings.Repeat("a", 200)} {
		e := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/sdcpp/v1/img_gen" {
				t.Errorf("asked for %s", r.URL.Path)
			}
			w.WriteHeader(http.StatusAccepted)
			_ = json.NewEncoder(w).Encode(map[string]string{"id": id})
		}))
		if _, err := e.Generate(t.Context(), request("a cat"), func(engine.Progress) {}); engine.FaultOf(err) != engine.FaultEngine {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestCheckTakesStemNameOrNothing(t *testing.T) {
	t.Parallel()
	listener := httptest.NewServer(enginetest.NewSDCPP("z_image.gguf"))
	defer listener.Close()
	for upstream, ok := range map[string]bool{"": true, "z_image": true, "z_image.gguf": true, "z_image.safetensors": false} {
		s := settings()
		s.URL, s.Models = listener.URL, map[string]engine.Served{"z": {Upstream: upstream}}
		e, err := Open(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Check(t.Context()); (err == nil) != ok {
			t.Errorf("%q: %v", upstream, err)
		}
	}
}

func wait(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never came")
		}
	}
}
