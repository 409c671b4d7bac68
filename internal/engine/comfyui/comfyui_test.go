package comfyui

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/engine"
	"zimage/internal/engine/comfyui/fake"
)

const secret = "a heron named Ottoline by the \"weir\" {{seed}} \\ \n end"

// server starts a fake and an engine for it, with short waits.
func server(t *testing.T, o fake.Options, change func(*engine.Settings)) (*fake.Server, *Engine) {
	t.Helper()
	f := fake.New(o)
	h := httptest.NewServer(f)
	t.Cleanup(func() { f.Close(); h.CloseClientConnections(); h.Close() })
	s := engine.Settings{
		Name: "comfy", Kind: "comfyui", URL: h.URL, Keeps: "memory", Timeout: 20 * time.Second,
		Models: map[string]engine.Served{"z-image-turbo": {Upstream: "z_image_turbo_bf16.safetensors"}},
	}
	if change != nil {
		change(&s)
	}
	e, err := open(s)
	if err != nil {
		t.Fatal(err)
	}
	e.poll, e.settle, e.silence = 100*time.Millisecond, 5*time.Millisecond, 2*time.Second
	return f, e
}

func request(n int) engine.Request {
	return engine.Request{
		ID:    fmt.Sprintf("11111111-2222-4333-8444-%012d", n),
		Model: engine.Model{ID: "z-image-turbo"}, Served: engine.Served{Upstream: "z_image_turbo_bf16.safetensors"},
		Prompt: secret, Width: 64, Height: 48, Steps: 8, Guidance: 1, Seed: int64(n)*1000 + 7,
	}
}

// wantImage fails unless image is the one made from the request's seed.
func wantImage(t *testing.T, r engine.Request, image []byte) {
	t.Helper()
	p, err := png.Decode(bytes.NewReader(image))
	if err != nil {
		t.Fatalf("image: %v", err)
	}
	if got := p.Bounds().Size(); got.X != r.Width || got.Y != r.Height {
		t.Errorf("size %v, want %d×%d", got, r.Width, r.Height)
	}
	want := fake.Colour(r.Seed)
	if cr, cg, cb, _ := p.At(1, 1).RGBA(); uint8(cr) != want.R || uint8(cg) != want.G || uint8(cb) != want.B {
		t.Errorf("the image is not that of seed %d", r.Seed)
	}
}

// wantClean fails when the server still holds something of ours.
func wantClean(t *testing.T, f *fake.Server, e *Engine) {
	t.Helper()
	if l := f.Leftovers(); !l.Empty() {
		t.Errorf("left behind: %+v", l)
	}
	if n := e.Leftovers(); n != 0 {
		t.Errorf("%d leftovers noted", n)
	}
}

// wantError fails unless err has the fault and code, and quotes nothing.
func wantError(t *testing.T, err error, fault engine.Fault, code string) {
	t.Helper()
	var e *engine.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want %s (%s)", err, code, fault)
	}
	if e.Fault != fault || e.Code != code {
		t.Errorf("error %s (%s), want %s (%s)", e.Code, e.Fault, code, fault)
	}
	for err := err; err != nil; err = errors.Unwrap(err) {
		if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, "Ottoline") || strings.Contains(text, "heron") {
			t.Errorf("the error quotes the prompt: %s", text)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func TestGenerate(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]fake.Options{
		"plain":                      {},
		"slow":                       {Step: 30 * time.Millisecond},
		"previews":                   {Previews: true},
		"other people's messages":    {Others: true, Previews: true},
		"older build":                {Older: true},
		"older build, others":        {Older: true, Others: true, Previews: true},
		"nothing told of the end":    {Silent: true},
		"websocket breaks once":      {CutAt: 3, Step: 20 * time.Millisecond},
		"history deleted on a retry": {KeepHistory: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, e := server(t, o, nil)
			r := request(1)
			var steps []engine.Progress
			image, err := e.Generate(t.Context(), r, func(p engine.Progress) { steps = append(steps, p) })
			if err != nil {
				t.Fatal(err)
			}
			wantImage(t, r, image)
			wantClean(t, f, e)
			if !slices.IsSortedFunc(steps, func(a, b engine.Progress) int { return a.Step - b.Step }) {
				t.Errorf("progress goes back: %v", steps)
			}
			if len(steps) == 0 || steps[len(steps)-1] != (engine.Progress{Step: 8, Steps: 8}) {
				t.Errorf("progress %v, want it to end with 8 of 8", steps)
			}
			if o.CutAt == 0 && len(steps) != 8 {
				t.Errorf("%d steps told, want 8: %v", len(steps), steps)
			}
		})
	}
}

func TestGenerateFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		o     fake.Options
		fault engine.Fault
		code  string
		cause error
	}{
		{"execution error", fake.Options{Fail: "RuntimeError"}, engine.FaultEngine, engine.CodeFailed, nil},
		{"execution error, not told", fake.Options{Fail: "RuntimeError", Silent: true}, engine.FaultEngine, engine.CodeFailed, nil},
		{"out of memory", fake.Options{Fail: "torch.OutOfMemoryError"}, engine.FaultEngine, engine.CodeFailed, errOutOfMemory},
		{"out of memory, not told", fake.Options{Fail: "torch.OutOfMemoryError", Silent: true}, engine.FaultEngine, engine.CodeFailed, errOutOfMemory},
		{"model missing", fake.Options{Refuse: "value_not_in_list"}, engine.FaultEngine, engine.CodeInvalid, nil},
		{"beyond the node's limits", fake.Options{Refuse: "value_bigger_than_max"}, engine.FaultUser, engine.CodeInvalid, nil},
		{"no image", fake.Options{NoImage: true}, engine.FaultEngine, engine.CodeBadImage, nil},
		{"half an image", fake.Options{HalfFrame: true}, engine.FaultEngine, engine.CodeBadImage, nil},
		{"3 GB frame", fake.Options{HugeFrame: true}, engine.FaultEngine, engine.CodeTooLarge, nil},
		{"websocket breaks for good", fake.Options{CutAt: 3, CutForGood: true, Step: 20 * time.Millisecond}, engine.FaultEngine, engine.CodeUnreachable, nil},
		{"answer to the prompt lost", fake.Options{LoseReply: true, Step: 50 * time.Millisecond}, engine.FaultEngine, engine.CodeUnreachable, nil},
		{"answer to the prompt lost, older build", fake.Options{LoseReply: true, Older: true, Step: 50 * time.Millisecond}, engine.FaultEngine, engine.CodeUnreachable, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, e := server(t, c.o, nil)
			_, err := e.Generate(t.Context(), request(1), nil)
			wantError(t, err, c.fault, c.code)
			if c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("cause of %v is not %v", err, c.cause)
			}
			wantClean(t, f, e)
		})
	}
}

func TestGenerateUnreachable(t *testing.T) {
	t.Parallel()
	h := httptest.NewServer(http.NotFoundHandler())
	h.Close()
	e, err := open(engine.Settings{Name: "x", URL: h.URL, Models: map[string]engine.Served{"z-image-turbo": {}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Generate(t.Context(), request(1), nil)
	wantError(t, err, engine.FaultEngine, engine.CodeUnreachable)
	wantError(t, e.Check(t.Context()), engine.FaultEngine, engine.CodeUnreachable)
}

func TestCancelRunning(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]fake.Options{
		"newer":                   {Hang: true},
		"older":                   {Hang: true, Older: true},
		"takes its time":          {Hang: true, Stuck: 300 * time.Millisecond},
		"without messages":        {Hang: true, Silent: true},
		"deletion needs a second": {Hang: true, KeepHistory: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, e := server(t, o, nil)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				eventually(t, "running", func() bool { return f.Running() != "" })
				cancel()
			}()
			_, err := e.Generate(ctx, request(1), nil)
			wantError(t, err, engine.FaultOurs, engine.CodeCanceled)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%v is not context.Canceled", err)
			}
			// At this moment the slot is given away: nothing may run any more.
			wantClean(t, f, e)
			if len(f.Interrupted()) != 1 {
				t.Errorf("interrupted %v, want one", f.Interrupted())
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	f, e := server(t, fake.Options{Hang: true}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := e.Generate(ctx, request(1), nil)
	wantError(t, err, engine.FaultEngine, engine.CodeTimeout)
	wantClean(t, f, e)
}

func TestInterruptedBySomebodyElse(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		f, e := server(t, fake.Options{Hang: true, Silent: silent}, nil)
		go func() {
			eventually(t, "running", func() bool { return f.Running() != "" })
			_, _ = e.api.client.Bytes(context.Background(), http.MethodPost, "/interrupt", struct{}{}, 1<<10)
		}()
		_, err := e.Generate(t.Context(), request(1), nil)
		wantError(t, err, engine.FaultOurs, engine.CodeCanceled)
		wantClean(t, f, e)
	}
}

// A prompt that waits behind another's is taken from the queue, and the other's
// runs on, also on builds where an interrupt stops whatever runs.
func TestCancelWaitingLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	for _, older := range []bool{false, true} {
		t.Run(fmt.Sprint("older ", older), func(t *testing.T) {
			t.Parallel()
			f, e := server(t, fake.Options{Hang: true, Older: older}, nil)
			theirs, _, err := e.api.submit(t.Context(), e.workflows["z-image-turbo"].fill(request(9)), request(9).ID)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "theirs running", func() bool { return f.Running() == theirs })
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				eventually(t, "ours waiting", func() bool { return len(f.Leftovers().Queue) == 2 })
				cancel()
			}()
			_, err = e.Generate(ctx, request(1), nil)
			wantError(t, err, engine.FaultOurs, engine.CodeCanceled)
			if got := f.Leftovers(); !slices.Equal(got.Queue, []string{theirs}) || len(got.History) != 0 {
				t.Errorf("the server holds %+v, want only %s running", got, theirs)
			}
			if len(f.Interrupted()) != 0 {
				t.Error("another's prompt was interrupted")
			}
			f.Set(fake.Options{Older: older})
			eventually(t, "theirs finished", func() bool { return slices.Equal(f.Leftovers().History, []string{theirs}) })
		})
	}
}

func TestTwoPromptsDoNotCross(t *testing.T) {
	t.Parallel()
	for _, older := range []bool{false, true} {
		t.Run(fmt.Sprint("older ", older), func(t *testing.T) {
			t.Parallel()
			f, e := server(t, fake.Options{Older: older, Others: true, Previews: true, Step: 3 * time.Millisecond}, nil)
			var all sync.WaitGroup
			for n := range 4 {
				all.Go(func() {
					r := request(n + 1)
					r.Steps = 4 + n
					last := engine.Progress{}
					image, err := e.Generate(t.Context(), r, func(p engine.Progress) { last = p })
					if err != nil {
						t.Error(err)
						return
					}
					wantImage(t, r, image)
					if last != (engine.Progress{Step: r.Steps, Steps: r.Steps}) {
						t.Errorf("prompt %d: progress ended with %v", n, last)
					}
				})
			}
			all.Wait()
			wantClean(t, f, e)
		})
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file.json")
	text := strings.Replace(string(zimage), `"SaveImageWebsocket",`, `"SaveImage",`, 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]fake.Options{
		"plain": {Others: true}, "silent": {Silent: true}, "no websocket": {CutAt: 2, CutForGood: true, Step: 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, e := server(t, o, func(s *engine.Settings) {
				s.Keeps = "disk"
				s.Models = map[string]engine.Served{"z-image-turbo": {Workflow: path}}
			})
			image, err := e.Generate(t.Context(), request(1), nil)
			if err != nil {
				t.Fatal(err)
			}
			wantImage(t, request(1), image)
			// The file stays: ComfyUI can't delete it, which keeps: disk admits.
			if l := f.Leftovers(); len(l.Files) != 1 || len(l.History)+len(l.Queue) != 0 {
				t.Errorf("left behind: %+v, want the file alone", l)
			}
		})
	}
}

// A file that a graph leaves behind is seen by the fake: the tests above would fail.
func TestFakeSeesFiles(t *testing.T) {
	t.Parallel()
	f, e := server(t, fake.Options{KeepFile: true}, nil)
	if _, err := e.Generate(t.Context(), request(1), nil); err != nil {
		t.Fatal(err)
	}
	if len(f.Leftovers().Files) != 1 {
		t.Error("the file was not seen")
	}
}

// When the history can't be deleted now, the image is still good; Check fails
// until it is.
func TestLeftoverIsDeletedLater(t *testing.T) {
	t.Parallel()
	f, e := server(t, fake.Options{KeepHistory: 4}, nil)
	if _, err := e.Generate(t.Context(), request(1), nil); err != nil {
		t.Fatal(err)
	}
	if e.Leftovers() != 1 || len(f.Leftovers().History) != 1 {
		t.Fatalf("noted %d, server %+v, want one each", e.Leftovers(), f.Leftovers())
	}
	err := e.Check(t.Context())
	wantError(t, err, engine.FaultEngine, engine.CodeFailed)
	if !errors.Is(err, errKept) {
		t.Errorf("cause of %v is not %v", err, errKept)
	}
	if err := e.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantClean(t, f, e)
}

// An engine that stops answering in the middle gives the slot back in bounded
// time, and is swept when it answers again.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	f, e := server(t, fake.Options{Hang: true}, nil)
	e.silence, e.patience = 100*time.Millisecond, 300*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		eventually(t, "running", func() bool { return f.Running() != "" })
		f.Set(fake.Options{Hang: true, HangRequests: true})
		cancel()
	}()
	_, err := e.Generate(ctx, request(1), nil)
	wantError(t, err, engine.FaultOurs, engine.CodeCanceled)
	if e.Leftovers() != 1 {
		t.Fatalf("%d leftovers noted, want 1", e.Leftovers())
	}
	f.Set(fake.Options{Hang: true})
	wantError(t, e.Check(t.Context()), engine.FaultEngine, engine.CodeBusy)
	eventually(t, "a clean server", func() bool { return e.Check(t.Context()) == nil })
	wantClean(t, f, e)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	_, e := server(t, fake.Options{}, nil)
	if err := e.Check(t.Context()); err != nil {
		t.Error(err)
	}
	_, e = server(t, fake.Options{Models: []string{"other.safetensors"}}, nil)
	err := e.Check(t.Context())
	wantError(t, err, engine.FaultEngine, engine.CodeInvalid)
	if !errors.Is(err, errNoModel) {
		t.Errorf("cause of %v is not %v", err, errNoModel)
	}
}

func TestWhatIsSent(t *testing.T) {
	t.Parallel()
	f, e := server(t, fake.Options{}, nil)
	r := request(1)
	one := 1.5
	r.Served.Guidance, r.Served.StepsOffset, r.Guidance, r.Seed = &one, 1, 7, 1<<32-1
	var last engine.Progress
	if _, err := e.Generate(t.Context(), r, func(p engine.Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if last != (engine.Progress{Step: 8, Steps: 8}) {
		t.Errorf("progress ended with %v, want the user's 8 of 8", last)
	}
	var graph map[string]struct {
		Inputs map[string]json.RawMessage `json:"inputs"`
	}
	if err := json.Unmarshal(f.Graphs()[0], &graph); err != nil {
		t.Fatal(err)
	}
	prompt, _ := json.Marshal(secret)
	for _, c := range []struct{ node, input, want string }{
		{"positive", "text", string(prompt)},
		{"sampler", "seed", "4294967295"},
		{"sampler", "steps", "9"},
		{"sampler", "cfg", "1.5"},
		{"latent", "width", "64"},
		{"latent", "height", "48"},
		{"unet", "unet_name", `"z_image_turbo_bf16.safetensors"`},
		{"shift", "shift", "3.0"},
	} {
		if got := string(graph[c.node].Inputs[c.input]); got != c.want {
			t.Errorf("%s.%s is %s, want %s", c.node, c.input, got, c.want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ keeps, text, want string }{
		"not JSON":          {"memory", `{`, "not a JSON object"},
		"more":              {"memory", string(zimage) + "{}", "more after"},
		"editor's format":   {"memory", `{"nodes":[],"links":[]}`, "Export (API)"},
		"no class":          {"memory", `{"1":{}}`, "class_type"},
		"no output":         {"memory", `{"1":{"class_type":"A","inputs":{"t":"{{prompt}}"}}}`, "no output node"},
		"no prompt":         {"memory", `{"1":{"class_type":"SaveImageWebsocket","inputs":{}}}`, "no {{prompt}}"},
		"two outputs":       {"memory", `{"1":{"class_type":"SaveImageWebsocket","inputs":{"t":"{{prompt}}"}},"2":{"class_type":"SaveImageWebsocket"}}`, "more than one output"},
		"unknown slot":      {"memory", `{"1":{"class_type":"SaveImageWebsocket","inputs":{"t":"{{promt}}"}}}`, "{{promt}}"},
		"part of a value":   {"memory", `{"1":{"class_type":"SaveImageWebsocket","inputs":{"t":"a {{prompt}}"}}}`, "whole value"},
		"slot as a name":    {"memory", `{"1":{"class_type":"SaveImageWebsocket","inputs":{"{{prompt}}":1}}}`, "only a value"},
		"files, memory":     {"memory", `{"1":{"class_type":"SaveImage","inputs":{"t":"{{prompt}}"}}}`, "keeps: disk"},
		"a preview besides": {"nothing", `{"1":{"class_type":"SaveImageWebsocket","inputs":{"t":"{{prompt}}"}},"2":{"class_type":"PreviewImage"}}`, "keeps: disk"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "mine.json")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(engine.Settings{
				Name: "comfy", URL: "http://127.0.0.1:8188", Keeps: c.keeps,
				Models: map[string]engine.Served{"m": {Workflow: path}},
			})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %q and the path", err, c.want)
			}
		})
	}
	if _, err := Open(engine.Settings{Name: "comfy", URL: "http://127.0.0.1:8188", Models: map[string]engine.Served{"m": {Workflow: "/nowhere.json"}}}); err == nil {
		t.Error("a missing file was accepted")
	}
}
