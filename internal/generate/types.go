package generate

import (
	"io"
	"time"
)

// A Status is where a generation is in its life.
type Status string

// The states. The last three are final.
const (
	Queued    Status = "queued"
	Running   Status = "running"
	Succeeded Status = "succeeded"
	Failed    Status = "failed"
	Canceled  Status = "canceled"
)

// Terminal reports whether nothing more will happen to the generation.
func (s Status) Terminal() bool { return s == Succeeded || s == Failed || s == Canceled }

// A Request is what a person asks for. Zero values mean the model's defaults.
type Request struct {
	Prompt         string            `json:"prompt"`
	NegativePrompt string            `json:"negative_prompt,omitempty"`
	Model          string            `json:"model"`
	N              int               `json:"n"`                 // images, one seed each
	Width          int               `json:"width"`             // pixels
	Height         int               `json:"height"`            // pixels
	Seed           *int64            `json:"seed,omitempty"`    // 0 to 2^32-1; image k uses seed+k; nil: chosen here
	Steps          int               `json:"steps"`             // of denoising
	Guidance       *float64          `json:"guidance"`          // scale; nil: the model's
	Format         string            `json:"format"`            // png, jpeg or webp
	Quality        int               `json:"quality,omitempty"` // of a JPEG, 1 to 100; 0: the usual one
	RetentionDays  int               `json:"retention_days"`    // at most the policy's
	EmbedPrompt    bool              `json:"embed_prompt"`      // write the prompt into the file
	Metadata       map[string]string `json:"metadata"`          // the caller's own

	// Webhook is told of this generation; it is not kept with it.
	Webhook Webhook `json:"-"`
	// Defaults fill in what is left out, before the model's own; they are not kept.
	Defaults Defaults `json:"-"`
}

// A Webhook is an address to call about one generation.
type Webhook struct {
	URL    string   // empty: none
	Events []string // empty: all
}

// Defaults are a person's preferences. One that the model cannot do is passed
// over: it was not asked for now.
type Defaults struct {
	Model  string
	Width  int
	Height int
	N      int
	Format string
}

// A Generation is one request and what became of it, as its owner sees it.
type Generation struct {
	ID         string
	Status     Status
	Request    Request // as it runs: defaults filled in
	Seed       int64   // really used for the first image
	Progress   Progress
	Queue      *Queue // while queued
	Images     []Image
	Failure    *Failure // when failed, or canceled for another reason than the owner's wish
	CreatedAt  time.Time
	StartedAt  time.Time // zero: not yet
	FinishedAt time.Time // zero: not yet
	ExpiresAt  time.Time
	// Sequence grows with every change of state and is the same for everybody
	// who looks: it is the id of the event in a stream.
	Sequence int64
}

// Progress of a running generation.
type Progress struct {
	Image     int     // images finished
	Images    int     // images asked for
	Step      int     // within the current image
	Steps     int     // of one image
	Fraction  float64 // 0 to 1 over all images
	Estimated bool    // the engine tells no steps: reckoned from its usual time
}

// Queue says where a queued generation stands.
type Queue struct {
	Position   int  // 1 is the next
	ETASeconds *int // until it starts; nil: nothing measured yet
	Served     bool // false: no worker serves this model now
}

// A Failure says why, by a code that is stable and a message that is safe.
type Failure struct {
	Code    string
	Message string
}

// An Image is one picture of a generation.
type Image struct {
	ID           string
	GenerationID string
	N            int // 0 is the first
	Width        int
	Height       int
	Format       string // png, jpeg or webp
	Bytes        int64
	SHA256       string // hex, of the picture as it is served
	Seed         int64
	CreatedAt    time.Time
	ExpiresAt    time.Time
}

// Content is a picture's bytes, decrypted as they are read.
type Content struct {
	io.ReadCloser
	Format string
	Bytes  int64
	SHA256 string // of the picture; empty for a thumbnail
	Name   string // such as img_06….png: never made of the prompt
}

// A Model is what a person may ask for.
type Model struct {
	ID             string
	Name           string
	OwnedBy        string
	License        string
	SourceType     string // trainedAlgorithmicMedia or algorithmicMedia
	Served         bool   // a worker serves it now
	DefaultWidth   int
	DefaultHeight  int
	MinSide        int
	MaxSide        int
	SideMultiple   int
	MaxPixels      int
	DefaultSteps   int
	MaxSteps       int
	Guidance       float64
	MaxGuidance    float64
	NegativePrompt bool
	MaxImages      int
	MaxPromptChars int
}

// Page asks for part of a list, newest first.
type Page struct {
	Cursor string // from the page before; only its owner can use it
	Limit  int    // 1 to 100; 0: 20
	Status Status // only these; empty: all
}

// Idempotency makes a repeated Submit return what the first one made.
type Idempotency struct {
	Key  string // as the client sent it, at most 255 characters
	Body []byte // what must be equal: the canonical body

	// Fresh makes a new one all the same, which those that repeat it find from now on.
	Fresh bool
}

// An Update is a change of state or a step of progress of a watched generation.
type Update struct {
	Generation Generation
	State      bool // a change of state, or the first update; false: progress only
}
