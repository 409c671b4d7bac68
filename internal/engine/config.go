package engine

import "time"

// Config is the engines file: which engines there are and which models they
// serve.
type Config struct {
	SetAsideAfter int           `yaml:"set_aside_after"` // failures in a row after which an engine is set aside; default 3
	ProbeEvery    time.Duration `yaml:"probe_every"`     // how often one that was set aside is asked whether it answers; default 10s
	Engines       []Settings    `yaml:"engines"`
	Models        []Model       `yaml:"models"`
}

// Settings of one engine.
type Settings struct {
	Name    string            `yaml:"name"`
	Kind    string            `yaml:"kind"`    // illustrator, openai, comfyui or sdcpp
	URL     string            `yaml:"url"`     // https://…, http:// on loopback, or unix:/path/of/a.sock
	Lane    string            `yaml:"lane"`    // default "generation"
	Slots   int               `yaml:"slots"`   // images at once; default 1
	Keeps   string            `yaml:"keeps"`   // nothing, memory or disk: what the engine itself keeps of a request
	Timeout time.Duration     `yaml:"timeout"` // for one image; default 10m
	TLS     TLS               `yaml:"tls"`
	Auth    Auth              `yaml:"auth"`
	Models  map[string]Served `yaml:"models"` // by model id
}

// TLS of the hop to an engine. Anything but https, loopback or a socket is
// refused unless Exception says in words why the operator accepts it.
type TLS struct {
	CAFile    string `yaml:"ca_file"`
	Exception string `yaml:"exception"`
}

// Auth is the credential sent to an engine, in a header, read from a file.
type Auth struct {
	Header string `yaml:"header"` // default Authorization
	Scheme string `yaml:"scheme"` // such as Bearer; empty: the file's content alone
	File   string `yaml:"file"`   // white space around its content is cut off
}

// Served is how one engine serves one model.
type Served struct {
	Upstream    string   `yaml:"upstream"`     // the engine's name of the model; openai: default the id; elsewhere empty means whatever is loaded
	StepsOffset int      `yaml:"steps_offset"` // added to the user's steps (diffusers counts one more)
	Guidance    *float64 `yaml:"guidance"`     // sent whatever the user says (classic cfg is 1 where the model has none)
	Dialect     string   `yaml:"dialect"`      // openai: vllm-omni, sglang or localai
	Workflow    string   `yaml:"workflow"`     // comfyui: path of the graph template; empty: the built-in Z-Image graph
}

// A Model is what a user may ask for, with its limits.
type Model struct {
	ID              string  `yaml:"id"`
	Name            string  `yaml:"name"`
	OwnedBy         string  `yaml:"owned_by"`
	License         string  `yaml:"license"`
	Lane            string  `yaml:"lane"`             // default "generation"
	SourceType      string  `yaml:"source_type"`      // trainedAlgorithmicMedia (default) or algorithmicMedia
	DefaultWidth    int     `yaml:"default_width"`    // pixels; default 1024
	DefaultHeight   int     `yaml:"default_height"`   // pixels; default 1024
	MinSide         int     `yaml:"min_side"`         // pixels; default 256
	MaxSide         int     `yaml:"max_side"`         // pixels; default 2048
	SideMultiple    int     `yaml:"side_multiple"`    // both sides are multiples of it; default 16
	MaxPixels       int     `yaml:"max_pixels"`       // width × height; default max_side²
	DefaultSteps    int     `yaml:"default_steps"`    // required
	MaxSteps        int     `yaml:"max_steps"`        // default default_steps
	DefaultGuidance float64 `yaml:"default_guidance"` // default 0
	MaxGuidance     float64 `yaml:"max_guidance"`     // default default_guidance; 0: the model has none
	NegativePrompt  bool    `yaml:"negative_prompt"`  // whether it takes one
	MaxImages       int     `yaml:"max_images"`       // of one generation; default 4
	MaxPromptChars  int     `yaml:"max_prompt_chars"` // Unicode code points; default 2000
}
