package engine

import "time"

// Config is the engines file: which engines there are and which models they
// serve.
type Config struct {
	Engines []Settings `yaml:"engines"`
	Models  []Model    `yaml:"models"`
}

// Settings of one engine.
type Settings struct {
	Name    string            `yaml:"name"`
	Kind    string            `yaml:"kind"` // illustrator, openai, comfyui or sdcpp
	URL     string            `yaml:"url"`
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
	File   string `yaml:"file"`
}

// Served is how one engine serves one model.
type Served struct {
	Upstream    string   `yaml:"upstream"`     // the engine's name of the model; default: the id
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
	Lane            string  `yaml:"lane"`        // default "generation"
	SourceType      string  `yaml:"source_type"` // trainedAlgorithmicMedia (default) or algorithmicMedia
	DefaultWidth    int     `yaml:"default_width"`
	DefaultHeight   int     `yaml:"default_height"`
	MinSide         int     `yaml:"min_side"`
	MaxSide         int     `yaml:"max_side"`
	SideMultiple    int     `yaml:"side_multiple"`
	MaxPixels       int     `yaml:"max_pixels"`
	DefaultSteps    int     `yaml:"default_steps"`
	MaxSteps        int     `yaml:"max_steps"`
	DefaultGuidance float64 `yaml:"default_guidance"`
	MaxGuidance     float64 `yaml:"max_guidance"`
	NegativePrompt  bool    `yaml:"negative_prompt"`
	MaxImages       int     `yaml:"max_images"`
	MaxPromptChars  int     `yaml:"max_prompt_chars"`
}
