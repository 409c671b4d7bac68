package engine

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

const minimal = `
engines:
  - name: gpu
    kind: openai
    url: http://127.0.0.1:8000
    keeps: memory
    models: {z: {dialect: sglang}}
models:
  - {id: z, default_steps: 8}
`

func TestParseConfigFillsDefaults(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig([]byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	if c.SetAsideAfter != 3 || c.ProbeEvery != 10*time.Second {
		t.Errorf("set aside after %d, probed every %v", c.SetAsideAfter, c.ProbeEvery)
	}
	e := c.Engines[0]
	if e.Lane != "generation" || e.Slots != 1 || e.Timeout != 10*time.Minute || e.Models["z"].Upstream != "z" {
		t.Errorf("engine: %+v", e)
	}
	want := Model{ID: "z", Name: "z", Lane: "generation", SourceType: SourceTrained, DefaultWidth: 1024, DefaultHeight: 1024, MinSide: 256, MaxSide: 2048,
		SideMultiple: 16, MaxPixels: 2048 * 2048, DefaultSteps: 8, MaxSteps: 8, MaxImages: 4, MaxPromptChars: 2000}
	if len(c.Models) != 1 || c.Models[0] != want {
		t.Errorf("models:\n%+v, want\n%+v", c.Models, want)
	}
}

func TestParseConfigNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	// Each edits the minimal file and wants every one of these paths named.
	edit := func(old, new string) string { return strings.Replace(minimal, old, new, 1) }
	tests := []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"engines: at least one", "models: at least one"}},
		{"unknown field", edit("kind: openai", "knid: openai"), []string{"knid"}},
		{"two documents", minimal + "---\n" + minimal, []string{"one document"}},
		{"no yaml", "engines: [", []string{"engines file"}},
		{"unknown kind", edit("kind: openai", "kind: dalle"), []string{"engines[0].kind: "}},
		{"no keeps", edit("    keeps: memory\n", ""), []string{"engines[0].keeps: "}},
		{"unknown keeps", edit("keeps: memory", "keeps: secrets"), []string{"engines[0].keeps: "}},
		{"SGLang keeps its images", edit("keeps: memory", "keeps: nothing"), []string{"engines[0].keeps: must be memory or disk: SGLang"}},
		{"sd-server keeps its jobs", strings.NewReplacer("kind: openai", "kind: sdcpp", "{dialect: sglang}", "{}", "keeps: memory", "keeps: nothing").Replace(minimal),
			[]string{"engines[0].keeps: must be memory or disk: sd-server"}},
		{"ComfyUI keeps its graph", strings.NewReplacer("kind: openai", "kind: comfyui", "{dialect: sglang}", "{}", "keeps: memory", "keeps: nothing").Replace(minimal),
			[]string{"engines[0].keeps: must be memory or disk: ComfyUI"}},
		{"set aside before any failure", "set_aside_after: -1\n" + minimal, []string{"set_aside_after: wants 1 to 1000"}},
		{"never set aside", "set_aside_after: 1001\n" + minimal, []string{"set_aside_after: wants 1 to 1000"}},
		{"probes without a pause", "probe_every: 10ms\n" + minimal, []string{"probe_every: wants 1s to 1h"}},
		{"probes once a day", "probe_every: 24h\n" + minimal, []string{"probe_every: wants 1s to 1h"}},
		{"probes of no unit", "probe_every: 10\n" + minimal, []string{"line 1"}},
		{"no slots", edit("keeps: memory", "keeps: memory\n    slots: -1"), []string{"engines[0].slots: "}},
		{"short timeout", edit("keeps: memory", "keeps: memory\n    timeout: 1ms"), []string{"engines[0].timeout: "}},
		{"lane with capitals", edit("keeps: memory", "keeps: memory\n    lane: GPU"), []string{"engines[0].lane: ", "models.z: is of lane", "models[0]: no engine"}},
		{"no url", edit("    url: http://127.0.0.1:8000\n", ""), []string{"engines[0].url: "}},
		{"plain http far away", edit("127.0.0.1", "10.0.0.7"), []string{"engines[0].url: plain http"}},
		{"looks like loopback", edit("127.0.0.1", "127.0.0.1.example.org"), []string{"engines[0].url: plain http"}},
		{"blank exception", edit("127.0.0.1:8000", "10.0.0.7\n    tls: {exception: \" \"}"), []string{"engines[0].url: plain http"}},
		{"password in url", edit("http://127", "https://me:hunter2@127"), []string{"engines[0].url: "}},
		{"query in url", edit(":8000", ":8000/?k=hunter2"), []string{"engines[0].url: "}},
		{"other scheme", edit("http://127", "ftp://127"), []string{"engines[0].url: "}},
		{"relative socket", edit("http://127.0.0.1:8000", "unix:engine.sock"), []string{"engines[0].url: "}},
		{"auth without file", edit("keeps: memory", "keeps: memory\n    auth: {scheme: Bearer}"), []string{"engines[0].auth.file: "}},
		{"auth header", edit("keeps: memory", "keeps: memory\n    auth: {file: /k, header: 'A: b'}"), []string{"engines[0].auth.header: "}},
		{"no dialect", edit("{dialect: sglang}", "{}"), []string{"engines[0].models.z.dialect: "}},
		{"workflow elsewhere", edit("{dialect: sglang}", "{dialect: sglang, workflow: a.json}"), []string{"engines[0].models.z.workflow: "}},
		{"steps beyond the server", edit("default_steps: 8", "default_steps: 8, max_steps: 201"), []string{"engines[0].models.z: "}},
		{"offset below one step", edit("{dialect: sglang}", "{dialect: sglang, steps_offset: -8}"), []string{"engines[0].models.z.steps_offset: "}},
		{"sides that sd-server rounds", strings.NewReplacer("kind: openai", "kind: sdcpp", "{dialect: sglang}", "{}", "default_steps: 8", "default_steps: 8, side_multiple: 4, min_side: 32").Replace(minimal),
			[]string{"engines[0].models.z: the server wants sides that are multiples", "engines[0].models.z: the server takes sides of 64"}},
		{"unknown model", edit("{z: {dialect: sglang}}", "{z: {dialect: sglang}, y: {dialect: sglang}}"), []string{"engines[0].models.y: "}},
		{"model not served", minimal + "  - {id: y, default_steps: 1}\n", []string{"engines[0].models: every engine of lane"}},
		{"model of an empty lane", minimal + "  - {id: y, default_steps: 1, lane: other}\n", []string{"models[1]: no engine"}},
		{"twice", minimal + "  - {id: z, default_steps: 1}\n", []string{`models[1].id: "z" is there twice`}},
		{"engine twice", edit("models:\n  -", "  - {name: gpu, kind: sdcpp, url: 'http://[::1]:1', keeps: memory, models: {z: {}}}\nmodels:\n  -"), []string{"engines[1].name: "}},
		{"no steps", edit("default_steps: 8", "default_guidance: 1"), []string{"models[0].default_steps: "}},
		{"default steps above limit", edit("default_steps: 8", "default_steps: 8, max_steps: 4"), []string{"models[0].max_steps: "}},
		{"default guidance above limit", edit("default_steps: 8", "default_steps: 8, default_guidance: 5, max_guidance: 4"), []string{"models[0].max_guidance: "}},
		{"guidance is no number", edit("default_steps: 8", "default_steps: 8, max_guidance: .nan"), []string{"models[0].max_guidance: "}},
		{"default size odd", edit("default_steps: 8", "default_steps: 8, default_width: 1000"), []string{"models[0].default_width: is no multiple"}},
		{"default size large", edit("default_steps: 8", "default_steps: 8, max_side: 512"), []string{"models[0].default_width: ", "models[0].default_height: ", "models[0].max_pixels: "}},
		{"sides crossed", edit("default_steps: 8", "default_steps: 8, min_side: 4096"), []string{"models[0].max_side: "}},
		{"side enormous", edit("default_steps: 8", "default_steps: 8, max_side: 99999"), []string{"models[0].max_side: "}},
		{"negative multiple", edit("default_steps: 8", "default_steps: 8, side_multiple: -16"), []string{"models[0].side_multiple: "}},
		{"pixels", edit("default_steps: 8", "default_steps: 8, max_pixels: 4096"), []string{"models[0].max_pixels: "}},
		{"images", edit("default_steps: 8", "default_steps: 8, max_images: -1"), []string{"models[0].max_images: "}},
		{"source type", edit("default_steps: 8", "default_steps: 8, source_type: photo"), []string{"models[0].source_type: "}},
		{"dishonest source type", edit("default_steps: 8", "default_steps: 8, source_type: algorithmicMedia"), []string{"engines[0].models.z: source_type"}},
		{"several at once", edit("keeps: memory", "keeps: all\n    slots: 2000"), []string{"engines[0].keeps: ", "engines[0].slots: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseConfig([]byte(tt.text))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error shows a credential: %q", err)
			}
		})
	}
}

func TestParseConfigAcceptsTheseAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"http://localhost:1", "http://[::1]:1", "http://127.8.9.1", "https://gpu.example.org/engine", "unix:/run/engine.sock",
		"http://10.0.0.7\n    tls: {exception: private cable}",
	} {
		if _, err := ParseConfig([]byte(strings.Replace(minimal, "http://127.0.0.1:8000", address, 1))); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// Only what is so can be said to keep nothing, and everything may be said to keep
// more than we know of.
func TestWhatMayKeepNothing(t *testing.T) {
	t.Parallel()
	for _, dialect := range []string{"vllm-omni", "localai"} {
		for _, keeps := range keepings {
			text := strings.NewReplacer("sglang", dialect, "keeps: memory", "keeps: "+keeps).Replace(minimal)
			if _, err := ParseConfig([]byte(text)); err != nil {
				t.Errorf("%s, %s: %v", dialect, keeps, err)
			}
		}
	}
}

func TestExampleAndDefaultAreValid(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig(Example)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Lanes(); !reflect.DeepEqual(got, []string{"generation", "illustration"}) {
		t.Errorf("lanes %v", got)
	}
	kinds := map[string]bool{}
	for _, e := range c.Engines {
		kinds[e.Kind] = true
		kinds[e.Models["z-image-turbo"].Dialect] = true
	}
	for _, want := range []string{"illustrator", "openai", "comfyui", "sdcpp", "vllm-omni", "sglang", "localai"} {
		if !kinds[want] {
			t.Errorf("the example shows no %s", want)
		}
	}
	if c.SetAsideAfter != defaultSetAsideAfter || c.ProbeEvery != defaultProbeEvery {
		t.Error("the example calls other values the defaults")
	}
	c.SetAsideAfter, c.ProbeEvery = 7, time.Minute
	part := c.ForLanes([]string{"illustration", "mail"})
	if part.SetAsideAfter != 7 || part.ProbeEvery != time.Minute {
		t.Errorf("a part of the file forgets what is for all: %+v", part)
	}
	if len(part.Engines) != 1 || len(part.Models) != 1 || part.Models[0].ID != "illustrator" {
		t.Errorf("lane illustration alone: %+v", part)
	}
	if none := c.ForLanes(nil); len(none.Engines)+len(none.Models) != 0 {
		t.Errorf("no lanes: %+v", none)
	}
	d := DefaultConfig()
	if err := d.check(); err != nil {
		t.Error(err)
	}
	if m := d.Models; len(m) != 1 || m[0].ID != "illustrator" || m[0].SourceType != SourceAlgorithm || m[0].MaxPixels != 2048*2048 {
		t.Errorf("default models: %+v", m)
	}
}
