package enginetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/engine"
)

// A Subject is an adapter and the stand-in to try it on.
type Subject struct {
	Open     func(engine.Settings) (engine.Engine, error)
	Settings engine.Settings // of kind and model; the suite sets name, URL and timeout
	Server   func() Server   // serving the upstream of Settings
	Model    engine.Model
	// Stops: the engine stops when ctx ends, so that Generate returns at once.
	Stops bool
	// Steps: progress is of real steps.
	Steps bool
	// Traps that this server can fall into, of those in the table below.
	Traps []Trap
}

// Secret stands in every prompt of the suite, and in no error.
const Secret = "hidden heron"

// patience bounds everything that must end.
const patience = 15 * time.Second

// expected is what becomes of each trap.
var expected = map[Trap]struct {
	fault engine.Fault
	codes []string
}{
	WrongSize:   {engine.FaultEngine, []string{engine.CodeBadImage}},
	NotImage:    {engine.FaultEngine, []string{engine.CodeBadImage}},
	URLOnly:     {engine.FaultEngine, []string{engine.CodeBadImage}},
	Hang:        {engine.FaultEngine, []string{engine.CodeTimeout}},
	SlowHeaders: {engine.FaultEngine, []string{engine.CodeTimeout}},
	HalfBody:    {engine.FaultEngine, []string{engine.CodeUnreachable, engine.CodeBadImage}},
	Huge:        {engine.FaultEngine, []string{engine.CodeTooLarge}},
	Fail:        {engine.FaultEngine, []string{engine.CodeFailed}},
	Reject:      {engine.FaultUser, []string{engine.CodeInvalid}},
	Refuse:      {engine.FaultUser, []string{engine.CodeRefused}},
	Busy:        {engine.FaultOurs, []string{engine.CodeBusy}},
	Unavailable: {engine.FaultEngine, []string{engine.CodeFailed}},
	Forget:      {engine.FaultEngine, []string{engine.CodeFailed}},
	Expire:      {engine.FaultEngine, []string{engine.CodeFailed}},
}

// Suite is what every adapter passes.
func Suite(t *testing.T, s Subject) {
	t.Run("makes the image of its seed", s.success)
	t.Run("server "+string(IgnoreSeed), s.ignored)
	t.Run("sends no settings that a prompt holds", s.settings)
	t.Run("stops or waits when cancelled", s.cancel)
	t.Run("does nothing for who is gone", s.gone)
	t.Run("says whether it serves its models", s.check)
	t.Run("nobody there", s.unreachable)
	for _, trap := range s.Traps {
		t.Run("server "+string(trap), func(t *testing.T) { s.trapped(t, trap) })
	}
}

// serve starts a server and says how to reach it.
func (s Subject) serve(t *testing.T, timeout time.Duration) (Server, *httptest.Server, engine.Settings) {
	t.Helper()
	t.Parallel()
	server := s.Server()
	listener := httptest.NewServer(server)
	t.Cleanup(listener.Close)
	t.Cleanup(server.Finish)
	settings := s.Settings
	settings.Name, settings.URL, settings.Timeout, settings.Slots = "subject", listener.URL, timeout, 1
	return server, listener, settings
}

func (s Subject) start(t *testing.T, timeout time.Duration) (Server, *httptest.Server, engine.Engine) {
	t.Helper()
	server, listener, settings := s.serve(t, timeout)
	e, err := s.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	return server, listener, e
}

func (s Subject) request(seed int64) engine.Request {
	return engine.Request{
		ID: "0b9f3a4e-6f0a-4d0c-9a55-0d4f3f1c2b7a", Model: s.Model, Served: s.Settings.Models[s.Model.ID],
		Prompt: "a " + Secret + " at dawn", Width: 64, Height: 96, Steps: 4, Seed: seed,
	}
}

func (s Subject) success(t *testing.T) {
	server, _, e := s.start(t, patience)
	server.Take(20 * time.Millisecond)
	var images [3][]byte
	for i, seed := range []int64{7, 7, 1<<32 - 1} {
		var mu sync.Mutex
		last, over := engine.Progress{}, false
		image, err := e.Generate(t.Context(), s.request(seed), func(p engine.Progress) {
			mu.Lock()
			defer mu.Unlock()
			if over {
				t.Error("progress after the end")
			}
			if p.Steps != 4 || p.Step < last.Step || p.Step > p.Steps || p.Estimated == s.Steps {
				t.Errorf("progress %+v after %+v", p, last)
			}
			last = p
		})
		mu.Lock()
		over = true
		mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if err := engine.CheckImage(image, 64, 96); err != nil {
			t.Fatal(err)
		}
		images[i] = image
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("the same seed gave another image")
	}
	if bytes.Equal(images[1], images[2]) {
		t.Error("another seed gave the same image")
	}
}

// ignored is a server that does not do as it is told. None of them says which seed
// it took, so no adapter can see it: that each was asked for the right one is all
// there is to see, and that the image is taken for what it is.
func (s Subject) ignored(t *testing.T) {
	server, _, e := s.start(t, patience)
	server.Set(IgnoreSeed)
	var images [4][]byte
	seeds := []int64{0, 0, 1<<32 - 1, 1<<32 - 1}
	for i, seed := range seeds {
		if i == 2 {
			server.Set(Fine)
		}
		image, err := e.Generate(t.Context(), s.request(seed), func(engine.Progress) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := engine.CheckImage(image, 64, 96); err != nil {
			t.Fatal(err)
		}
		images[i] = image
	}
	if bytes.Equal(images[0], images[1]) {
		t.Error("the server did not fall into its trap")
	}
	if !bytes.Equal(images[2], images[3]) {
		t.Error("the same seed gave another image")
	}
	calls := server.Calls()
	if len(calls) != len(seeds) {
		t.Fatalf("%d calls for %d images", len(calls), len(seeds))
	}
	for i, c := range calls {
		if c.Seed != seeds[i] {
			t.Errorf("call %d asks for seed %d, want %d", i, c.Seed, seeds[i])
		}
	}
}

// settings are those of stable-diffusion.cpp, which its server and others built on
// it take out of a prompt. The fleet takes them out for every engine, so it is
// the fleet that is asked.
func (s Subject) settings(t *testing.T) {
	server, _, settings := s.serve(t, patience)
	fleet, err := engine.NewFleet(engine.Config{Engines: []engine.Settings{settings}}, []string{settings.Lane}, s.Open,
		engine.FleetOptions{Clock: clock.New(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	slot, err := fleet.Acquire(t.Context(), settings.Lane)
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Release()
	const block = `<sd_cpp_extra_args>{"batch_count":3,"seed":5,"width":4096,"height":4096}</sd_cpp_extra_args>`
	for i, c := range []struct{ prompt, negative, wantPrompt, wantNegative string }{
		{"a cat " + block + "in rain", "fog", "a cat in rain", "fog"},
		{block + "a cat", "fog" + block, "a cat", "fog"},
		{"a cat" + strings.ToUpper(block), strings.ToUpper(block) + "fog", "a cat", "fog"},
		{"a cat" + block + block, "fog<sd_cpp_extra_args>", "a cat", "fog"},
		{"<sd_cpp_" + block + "extra_args>a cat", "fog<sd_cpp_" + block + "extra_args>", "a cat", "fog"},          // put together by taking out
		{"<sd_cpp_<sd_cpp_extra_args>extra_args>a cat", "</sd_cpp_extra_args>fog", "<>a cat", "fog"},              // nested
		{`a cat<sd_cpp_extra_args>{"batch_count":3}`, `</sd_cpp_extra_args>fog`, `a cat{"batch_count":3}`, "fog"}, // split over both
	} {
		r := s.request(int64(i))
		r.Prompt, r.NegativePrompt = c.prompt, c.negative
		image, err := slot.Generate(t.Context(), r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := engine.CheckImage(image, 64, 96); err != nil {
			t.Error(err)
		}
		calls := server.Calls()
		got := calls[len(calls)-1]
		if len(calls) != i+1 || got.Images != 1 || got.Seed != r.Seed || got.Prompt != c.wantPrompt || got.NegativePrompt != c.wantNegative {
			t.Errorf("%q, %q: call %d is %d images of %q, %q with seed %d", c.prompt, c.negative, len(calls), got.Images, got.Prompt, got.NegativePrompt, got.Seed)
		}
		sent, err := json.Marshal(got.Fields)
		if err != nil || strings.Contains(strings.ToLower(string(sent)), "sd_cpp_extra_args") {
			t.Errorf("%q, %q: sent %s (%v)", c.prompt, c.negative, sent, err)
		}
	}
}

func (s Subject) cancel(t *testing.T) {
	server, _, e := s.start(t, time.Hour)
	server.Take(time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		image, err := e.Generate(ctx, s.request(1), func(engine.Progress) {})
		if image != nil {
			t.Error("an image although cancelled")
		}
		ended <- err
	}()
	eventually(t, "the image is being made", func() bool { return server.Running() == 1 })
	cancel()
	if s.Stops {
		eventually(t, "the engine stops", func() bool { return server.Running() == 0 })
	} else {
		select {
		case err := <-ended:
			t.Fatalf("returned while the engine goes on: %v", err)
		case <-time.After(300 * time.Millisecond):
		}
		server.Finish()
	}
	select {
	case err := <-ended:
		if engine.CodeOf(err) != engine.CodeCanceled || engine.FaultOf(err) != engine.FaultOurs {
			t.Errorf("%v", err)
		}
	case <-time.After(patience):
		t.Fatal("did not return after cancel")
	}
	server.Take(0)
	if _, err := e.Generate(t.Context(), s.request(2), func(engine.Progress) {}); err != nil {
		t.Errorf("the next image: %v", err)
	}
}

func (s Subject) gone(t *testing.T) {
	server, _, e := s.start(t, patience)
	server.Take(time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Generate(ctx, s.request(1), func(engine.Progress) {}); engine.CodeOf(err) != engine.CodeCanceled {
		t.Errorf("%v", err)
	}
	if server.Running() != 0 {
		t.Error("an image is being made")
	}
}

func (s Subject) check(t *testing.T) {
	server, _, e := s.start(t, patience)
	if err := e.Check(t.Context()); err != nil {
		t.Errorf("a server that is well: %v", err)
	}
	server.Set(OtherModel)
	silent(t, e.Check(t.Context()), engine.FaultEngine)
	server.Set(Hang)
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	silent(t, e.Check(ctx), engine.FaultEngine, engine.CodeTimeout)
}

func (s Subject) unreachable(t *testing.T) {
	_, listener, e := s.start(t, patience)
	listener.Close()
	_, err := e.Generate(t.Context(), s.request(1), func(engine.Progress) {})
	silent(t, err, engine.FaultEngine, engine.CodeUnreachable)
	silent(t, e.Check(t.Context()), engine.FaultEngine, engine.CodeUnreachable)
}

func (s Subject) trapped(t *testing.T, trap Trap) {
	want, known := expected[trap]
	if !known {
		t.Fatal("the suite does not know what to expect")
	}
	server, _, e := s.start(t, 2*time.Second)
	server.Set(trap)
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if want.codes[0] != engine.CodeTimeout {
		ctx = t.Context()
	}
	began := time.Now()
	image, err := e.Generate(ctx, s.request(1), func(engine.Progress) {})
	if image != nil {
		t.Error("an image came back")
	}
	silent(t, err, want.fault, want.codes...)
	if time.Since(began) > patience {
		t.Errorf("took %v", time.Since(began))
	}
	if sent := server.Sent(); sent > 128<<20 {
		t.Errorf("took %d bytes of a huge answer", sent)
	}
	server.Set(Fine)
	if _, err := e.Generate(t.Context(), s.request(2), func(engine.Progress) {}); err != nil {
		t.Errorf("the next image, from a server that is well again: %v", err)
	}
}

// silent wants an error of that fault and one of the codes (none: any), with
// nothing of the prompt in it or below it.
func silent(t *testing.T, err error, fault engine.Fault, codes ...string) {
	t.Helper()
	var e *engine.Error
	if !errors.As(err, &e) {
		t.Errorf("error is %v", err)
		return
	}
	ok := len(codes) == 0
	for _, code := range codes {
		ok = ok || e.Code == code
	}
	if !ok || e.Fault != fault {
		t.Errorf("%v, want %v by %s", e, codes, fault)
	}
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		if strings.Contains(cause.Error(), Secret) {
			t.Errorf("the prompt stands in an error: %v", cause)
		}
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}
