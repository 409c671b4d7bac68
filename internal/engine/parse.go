package engine

import (
	"bytes"
	_ "embed" // Example
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Example is a commented engines file with every kind of engine in it.
//
//go:embed engines.example.yaml
var Example []byte

// DefaultLane is the lane of engines and models that name none.
const DefaultLane = "generation"

// The kinds of engine.
const (
	KindIllustrator = "illustrator"
	KindOpenAI      = "openai"
	KindComfyUI     = "comfyui"
	KindSDCPP       = "sdcpp"
)

// The dialects of KindOpenAI.
const (
	DialectVLLMOmni = "vllm-omni"
	DialectSGLang   = "sglang"
	DialectLocalAI  = "localai"
)

// The source types: what IPTC calls the way in which a picture came about.
const (
	SourceTrained   = "trainedAlgorithmicMedia" // made by a trained model
	SourceAlgorithm = "algorithmicMedia"        // made by an algorithm that was not trained
)

// What the engines file need not say.
const (
	defaultSetAsideAfter = 3
	defaultProbeEvery    = 10 * time.Second
)

// maxSide is the longest side that any model may be given, in pixels: beyond
// it an engine is held for minutes with tens of gigabytes.
const maxSide = 8192

var (
	kinds     = []string{KindIllustrator, KindOpenAI, KindComfyUI, KindSDCPP}
	dialects  = []string{DialectVLLMOmni, DialectSGLang, DialectLocalAI}
	keepings  = []string{"nothing", "memory", "disk"}
	sources   = []string{SourceTrained, SourceAlgorithm}
	laneName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	nameShape = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	token     = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
)

// DefaultConfig is what runs without an engines file: the built-in illustrator
// alone, which needs no GPU and says that it is no AI model.
func DefaultConfig() Config {
	c := Config{
		Engines: []Settings{{
			Name: "illustrator", Kind: KindIllustrator,
			Models: map[string]Served{"illustrator": {}},
		}},
		Models: []Model{{
			ID: "illustrator", Name: "Built-in illustrator, no AI model", OwnedBy: "zimage", License: "Apache-2.0",
			SourceType:   SourceAlgorithm,
			DefaultWidth: 1024, DefaultHeight: 1024,
			MinSide: 64, MaxSide: 2048, SideMultiple: 8,
			DefaultSteps: 8, MaxSteps: 16,
		}},
	}
	c.fill()
	return c
}

// ParseConfig reads an engines file, fills in the defaults and checks all of
// it. The error names the path of everything that is wrong. No file that it
// names is opened here.
func ParseConfig(text []byte) (Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("engines file: %w", err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("engines file: only one document is read")
	}
	c.fill()
	if err := c.check(); err != nil {
		return Config{}, fmt.Errorf("engines file: %w", err)
	}
	return c, nil
}

// Lanes are the names of all lanes, in the file's order of engines.
func (c Config) Lanes() []string {
	var lanes []string
	for _, e := range c.Engines {
		if !slices.Contains(lanes, e.Lane) {
			lanes = append(lanes, e.Lane)
		}
	}
	return lanes
}

// ForLanes is the part of the file that concerns these lanes; one that it does
// not know adds nothing.
func (c Config) ForLanes(lanes []string) Config {
	part := Config{SetAsideAfter: c.SetAsideAfter, ProbeEvery: c.ProbeEvery}
	for _, e := range c.Engines {
		if slices.Contains(lanes, e.Lane) {
			part.Engines = append(part.Engines, e)
		}
	}
	for _, m := range c.Models {
		if slices.Contains(lanes, m.Lane) {
			part.Models = append(part.Models, m)
		}
	}
	return part
}

// Keeps is the most that any engine keeps of a request by itself: nothing, memory
// or disk.
func (c Config) Keeps() string {
	most := 0
	for _, e := range c.Engines {
		most = max(most, slices.Index(keepings, e.Keeps))
	}
	return keepings[most]
}

// Plain reports whether prompts cross the network to an engine in the clear, as
// the operator has accepted.
func (c Config) Plain() bool {
	return slices.ContainsFunc(c.Engines, func(e Settings) bool {
		u, err := e.base()
		return err == nil && u.Scheme == "http" && !loopback(u.Hostname())
	})
}

func (c *Config) fill() {
	setDefault(&c.SetAsideAfter, defaultSetAsideAfter)
	setDefault(&c.ProbeEvery, defaultProbeEvery)
	for i := range c.Engines {
		e := &c.Engines[i]
		setDefault(&e.Lane, DefaultLane)
		setDefault(&e.Slots, 1)
		setDefault(&e.Timeout, 10*time.Minute)
		if e.Kind == KindIllustrator {
			setDefault(&e.Keeps, "nothing")
		}
		if e.Auth.File != "" {
			setDefault(&e.Auth.Header, "Authorization")
		}
		if e.Kind == KindOpenAI {
			for id, s := range e.Models {
				setDefault(&s.Upstream, id)
				e.Models[id] = s
			}
		}
	}
	for i := range c.Models {
		m := &c.Models[i]
		setDefault(&m.Name, m.ID)
		setDefault(&m.Lane, DefaultLane)
		setDefault(&m.SourceType, SourceTrained)
		setDefault(&m.DefaultWidth, 1024)
		setDefault(&m.DefaultHeight, 1024)
		setDefault(&m.MinSide, 256)
		setDefault(&m.MaxSide, 2048)
		setDefault(&m.SideMultiple, 16)
		if m.MaxSide > 0 && m.MaxSide <= maxSide {
			setDefault(&m.MaxPixels, m.MaxSide*m.MaxSide)
		}
		setDefault(&m.MaxSteps, m.DefaultSteps)
		setDefault(&m.MaxGuidance, m.DefaultGuidance)
		setDefault(&m.MaxImages, 4)
		setDefault(&m.MaxPromptChars, 2000)
	}
}

func setDefault[T comparable](v *T, d T) {
	if *v == *new(T) {
		*v = d
	}
}

// faults collects what is wrong, each with the path of its place in the file.
type faults []error

func (f *faults) add(path, format string, args ...any) {
	*f = append(*f, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
}

func (f *faults) unless(ok bool, path, format string, args ...any) {
	if !ok {
		f.add(path, format, args...)
	}
}

func (c Config) check() error {
	var f faults
	f.unless(c.SetAsideAfter >= 1 && c.SetAsideAfter <= 1000, "set_aside_after", "wants 1 to 1000")
	f.unless(c.ProbeEvery >= time.Second && c.ProbeEvery <= time.Hour, "probe_every", "wants 1s to 1h")
	f.unless(len(c.Engines) > 0, "engines", "at least one is needed")
	f.unless(len(c.Models) > 0, "models", "at least one is needed")
	models := map[string]Model{}
	for i, m := range c.Models {
		path := fmt.Sprintf("models[%d]", i)
		if _, twice := models[m.ID]; twice {
			f.add(path+".id", "%q is there twice", m.ID)
		}
		models[m.ID] = m
		m.check(path, &f)
	}
	names := map[string]bool{}
	for i, e := range c.Engines {
		path := fmt.Sprintf("engines[%d]", i)
		f.unless(!names[e.Name], path+".name", "%q is there twice", e.Name)
		names[e.Name] = true
		e.check(path, models, &f)
		for j, m := range c.Models {
			if _, serves := e.Models[m.ID]; m.Lane == e.Lane && !serves {
				f.add(path+".models", "every engine of lane %q must serve every model of it; %s (models[%d]) is missing: give it a lane of its own", e.Lane, m.ID, j)
			}
		}
	}
	for i, m := range c.Models {
		f.unless(slices.ContainsFunc(c.Engines, func(e Settings) bool { return e.Lane == m.Lane }),
			fmt.Sprintf("models[%d]", i), "no engine of lane %q serves it", m.Lane)
	}
	return errors.Join(f...)
}

func (m Model) check(path string, f *faults) {
	f.unless(nameShape.MatchString(m.ID), path+".id", "wants small letters, digits, dots, dashes, underscores; at most 63")
	f.unless(laneName.MatchString(m.Lane), path+".lane", "wants small letters, digits and dashes, a letter first")
	f.unless(slices.Contains(sources, m.SourceType), path+".source_type", "is one of %s", strings.Join(sources, ", "))

	sizes := m.MinSide >= 1 && m.MaxSide >= m.MinSide && m.MaxSide <= maxSide && m.SideMultiple >= 1 && m.MaxPixels >= 1
	f.unless(m.MinSide >= 1, path+".min_side", "wants at least 1")
	f.unless(m.MaxSide >= m.MinSide, path+".max_side", "is less than min_side")
	f.unless(m.MaxSide <= maxSide, path+".max_side", "wants at most %d", maxSide)
	f.unless(m.SideMultiple >= 1, path+".side_multiple", "wants at least 1")
	f.unless(m.MaxPixels >= 1, path+".max_pixels", "wants at least 1")
	if sizes {
		for _, side := range []struct {
			name  string
			value int
		}{{"default_width", m.DefaultWidth}, {"default_height", m.DefaultHeight}} {
			f.unless(side.value >= m.MinSide && side.value <= m.MaxSide, path+"."+side.name, "is outside min_side to max_side")
			f.unless(side.value%m.SideMultiple == 0, path+"."+side.name, "is no multiple of side_multiple")
		}
		f.unless(m.MinSide%m.SideMultiple == 0, path+".min_side", "is no multiple of side_multiple")
		f.unless(m.MaxSide%m.SideMultiple == 0, path+".max_side", "is no multiple of side_multiple")
		f.unless(m.DefaultWidth*m.DefaultHeight <= m.MaxPixels, path+".max_pixels", "is less than the default size")
		f.unless(m.MaxPixels <= m.MaxSide*m.MaxSide, path+".max_pixels", "is more than max_side allows")
	}
	f.unless(m.DefaultSteps >= 1, path+".default_steps", "wants at least 1")
	f.unless(m.MaxSteps >= m.DefaultSteps, path+".max_steps", "is less than default_steps")
	f.unless(m.MaxSteps <= 1000, path+".max_steps", "wants at most 1000")
	f.unless(finite(m.DefaultGuidance) && m.DefaultGuidance >= 0, path+".default_guidance", "wants 0 or more")
	f.unless(finite(m.MaxGuidance) && m.MaxGuidance >= m.DefaultGuidance, path+".max_guidance", "is less than default_guidance")
	f.unless(m.MaxImages >= 1 && m.MaxImages <= 64, path+".max_images", "wants 1 to 64")
	f.unless(m.MaxPromptChars >= 1 && m.MaxPromptChars <= 100_000, path+".max_prompt_chars", "wants 1 to 100000")
}

func (e Settings) check(path string, models map[string]Model, f *faults) {
	f.unless(nameShape.MatchString(e.Name), path+".name", "wants small letters, digits, dots, dashes, underscores; at most 63")
	f.unless(laneName.MatchString(e.Lane), path+".lane", "wants small letters, digits and dashes, a letter first")
	f.unless(e.Slots >= 1 && e.Slots <= 1000, path+".slots", "wants 1 to 1000")
	f.unless(e.Timeout >= time.Second && e.Timeout <= 24*time.Hour, path+".timeout", "wants 1s to 24h")
	f.unless(slices.Contains(kinds, e.Kind), path+".kind", "is one of %s", strings.Join(kinds, ", "))
	f.unless(slices.Contains(keepings, e.Keeps), path+".keeps", "must say what the engine keeps of a request: %s", strings.Join(keepings, ", "))
	if kept := e.keptAnyway(); e.Keeps == "nothing" && kept != "" {
		f.add(path+".keeps", "must be memory or disk: %s", kept)
	}

	if e.Kind == KindIllustrator {
		f.unless(e.URL == "", path+".url", "the illustrator is built in and has none")
	} else if slices.Contains(kinds, e.Kind) {
		if _, err := e.base(); err != nil {
			f.add(path+".url", "%w", err)
		}
	}
	if e.Auth.File == "" {
		f.unless(e.Auth == Auth{}, path+".auth.file", "is missing")
	} else {
		f.unless(token.MatchString(e.Auth.Header), path+".auth.header", "is no header name")
		f.unless(e.Auth.Scheme == "" || token.MatchString(e.Auth.Scheme), path+".auth.scheme", "is no scheme such as Bearer")
	}

	f.unless(len(e.Models) > 0, path+".models", "at least one is needed")
	f.unless(e.Kind != KindSDCPP || len(e.Models) == 1, path+".models", "an sd-server serves the one model that it loaded")
	dialect := ""
	ids := make([]string, 0, len(e.Models))
	for id := range e.Models {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		served, path := e.Models[id], path+".models."+id
		model, known := models[id]
		if !known {
			f.add(path, "is not under models")
			continue
		}
		f.unless(model.Lane == e.Lane, path, "is of lane %q, the engine of %q", model.Lane, e.Lane)
		f.unless((e.Kind == KindIllustrator) == (model.SourceType == SourceAlgorithm), path, "%s", "source_type "+SourceAlgorithm+" is the illustrator's and no other engine's")
		f.unless(model.DefaultSteps+served.StepsOffset >= 1 && served.StepsOffset <= 10 && served.StepsOffset >= -10, path+".steps_offset", "wants -10 to 10, and at least 1 step in all")
		f.unless(served.Guidance == nil || finite(*served.Guidance) && *served.Guidance >= 0, path+".guidance", "wants 0 or more")
		f.unless(e.Kind == KindComfyUI || served.Workflow == "", path+".workflow", "is for comfyui alone")
		if e.Kind == KindSDCPP { // it rounds other sizes up, and holds itself to 64 to 4096
			f.unless(model.SideMultiple%8 == 0, path, "the server wants sides that are multiples of 8")
			f.unless(model.MinSide >= 64 && model.MaxSide <= 4096, path, "the server takes sides of 64 to 4096")
		}
		if e.Kind != KindOpenAI {
			f.unless(served.Dialect == "", path+".dialect", "is for openai alone")
			continue
		}
		f.unless(slices.Contains(dialects, served.Dialect), path+".dialect", "is one of %s", strings.Join(dialects, ", "))
		f.unless(dialect == "" || dialect == served.Dialect, path+".dialect", "differs from that of another model: a server speaks one")
		dialect = served.Dialect
		if dialect != DialectLocalAI { // the bounds of vLLM-Omni's request type
			f.unless(model.MaxSteps+served.StepsOffset <= 200, path, "the server takes at most 200 steps")
			f.unless(model.MaxGuidance <= 20 && (served.Guidance == nil || *served.Guidance <= 20), path, "the server takes at most guidance 20")
		}
	}
}

// keptAnyway is what this kind of engine keeps of a request however it is set up;
// empty: nothing that we know of. The policy page prints keeps, so it must not say
// less.
func (e Settings) keptAnyway() string {
	switch e.Kind {
	case KindComfyUI:
		return "ComfyUI keeps the last graph until the next one runs"
	case KindSDCPP:
		return "sd-server keeps prompts and images in memory for ten minutes"
	}
	for _, served := range e.Models {
		if e.Kind == KindOpenAI && served.Dialect == DialectSGLang {
			return "SGLang writes every image to its output path: disk, or memory where that is a tmpfs"
		}
	}
	return ""
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// base is the address of the engine, checked. Its errors never hold the
// address: it could carry a password.
func (e Settings) base() (*url.URL, error) {
	u, err := url.Parse(e.URL)
	if err != nil {
		return nil, errors.New("cannot be read as a URL")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("wants no user, query or fragment; credentials go to auth.file")
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return nil, errors.New("wants unix:/path/of/the.sock")
		}
		return u, nil
	case "http", "https":
		if u.Hostname() == "" {
			return nil, errors.New("names no host")
		}
		if u.Scheme == "http" && !loopback(u.Hostname()) && strings.TrimSpace(e.TLS.Exception) == "" {
			return nil, errors.New("plain http to another machine: use https, or say in tls.exception why prompts may cross the network in the clear")
		}
		return u, nil
	default:
		return nil, errors.New("wants an https:// or unix: address, or http:// on loopback")
	}
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
