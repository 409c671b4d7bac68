package httpapi

import (
	"time"

	"zimage/internal/generate"
	"zimage/internal/problem"
)

// generationView is a generation as JSON. Fields that are not there yet are
// left out.
type generationView struct {
	ID             string            `json:"id" doc:"Sorts by the time of creation."`
	Status         string            `json:"status" enum:"queued,running,succeeded,failed,canceled" doc:"The last three are final."`
	Model          string            `json:"model" doc:"The model that runs it."`
	Prompt         string            `json:"prompt" doc:"What to show."`
	NegativePrompt string            `json:"negative_prompt,omitempty" doc:"What not to show."`
	N              int               `json:"n" doc:"How many images were asked for."`
	Width          int               `json:"width" doc:"Pixels."`
	Height         int               `json:"height" doc:"Pixels."`
	Seed           int64             `json:"seed" doc:"The seed really used for the first image; image k uses seed + k."`
	Steps          int               `json:"steps" doc:"Steps of each image."`
	Guidance       *float64          `json:"guidance,omitempty" doc:"How closely the model follows the prompt."`
	Format         string            `json:"format" enum:"png,jpeg,webp" doc:"Of the images."`
	RetentionDays  int               `json:"retention_days" doc:"Days until everything about it is deleted."`
	EmbedPrompt    bool              `json:"embed_prompt" doc:"Whether the prompt is written into the files."`
	Metadata       map[string]string `json:"metadata,omitempty" doc:"What you sent along."`
	Progress       progressView      `json:"progress" doc:"How far it is."`
	Queue          *queueView        `json:"queue,omitempty" doc:"Only while it is queued."`
	Images         []imageView       `json:"images" nullable:"false" doc:"The finished images."`
	Error          *failureView      `json:"error,omitempty" doc:"When it failed, or was canceled for another reason than your wish: restricted, suspended or account_closed."`
	CreatedAt      time.Time         `json:"created_at" doc:"When it was accepted."`
	StartedAt      *time.Time        `json:"started_at,omitempty" doc:"When a worker began."`
	FinishedAt     *time.Time        `json:"finished_at,omitempty" doc:"When it became final."`
	ExpiresAt      time.Time         `json:"expires_at" doc:"When it and its images are deleted."`
	URLs           urlsView          `json:"urls" doc:"What can be done with it."`
}

type progressView struct {
	Image     int     `json:"image" doc:"Images finished."`
	Images    int     `json:"images" doc:"Images asked for."`
	Step      int     `json:"step" doc:"Step within the current image."`
	Steps     int     `json:"steps" doc:"Steps of one image."`
	Fraction  float64 `json:"fraction" minimum:"0" maximum:"1" doc:"Over all images."`
	Estimated bool    `json:"estimated" doc:"The engine tells no steps: reckoned from its usual time."`
}

type queueView struct {
	Position   int    `json:"position" doc:"1 is the next."`
	ETASeconds *int   `json:"eta_seconds,omitempty" doc:"Until it starts, from measured times; left out while nothing is measured."`
	Served     bool   `json:"served" doc:"Whether a worker serves this model now."`
	Message    string `json:"message,omitempty" doc:"In words, when nothing can happen now."`
}

type imageView struct {
	ID           string    `json:"id" doc:"Sorts by the time of creation."`
	GenerationID string    `json:"generation_id" doc:"What it came from."`
	URL          string    `json:"url" doc:"The picture. It needs your key."`
	ThumbnailURL string    `json:"thumbnail_url" doc:"A small JPEG of it. It needs your key."`
	Width        int       `json:"width" doc:"Pixels."`
	Height       int       `json:"height" doc:"Pixels."`
	Format       string    `json:"format" enum:"png,jpeg,webp" doc:"Of the file."`
	Bytes        int64     `json:"bytes" doc:"Size of the file."`
	SHA256       string    `json:"sha256" doc:"Of the file, in hex."`
	Seed         int64     `json:"seed" doc:"That made it."`
	CreatedAt    time.Time `json:"created_at" doc:"When it was finished."`
	ExpiresAt    time.Time `json:"expires_at" doc:"When it is deleted."`
}

type failureView struct {
	Code    string `json:"code" doc:"Stable: programs decide by it."`
	Message string `json:"message" doc:"In words for people."`
}

type urlsView struct {
	Get    string `json:"get" doc:"This generation."`
	Cancel string `json:"cancel" doc:"POST ends it."`
	Events string `json:"events" doc:"Its event stream."`
}

type generationsView struct {
	Data       []generationView `json:"data" nullable:"false" doc:"Newest first."`
	NextCursor string           `json:"next_cursor,omitempty" doc:"For the next page; left out on the last."`
}

type acceptedView struct {
	Accepted int `json:"accepted" doc:"How many will be deleted. They are out of sight at once."`
}

// modelsView has the shape of OpenAI's list, and more in each model.
type modelsView struct {
	Object string      `json:"object" enum:"list" doc:"Always list."`
	Data   []modelView `json:"data" nullable:"false" doc:"The models."`
}

type modelView struct {
	ID             string          `json:"id" doc:"What a request names."`
	Object         string          `json:"object" enum:"model" doc:"Always model."`
	Created        int64           `json:"created" doc:"Always 0: OpenAI's clients need the field."`
	OwnedBy        string          `json:"owned_by" doc:"Who made the model."`
	Name           string          `json:"name" doc:"For people."`
	License        string          `json:"license,omitempty" doc:"Of the model."`
	SourceType     string          `json:"source_type" doc:"The IPTC digital source type that its images are marked with."`
	Served         bool            `json:"served" doc:"Whether a worker serves it now."`
	Size           modelSizeView   `json:"size" doc:"The sizes it makes, in pixels."`
	Steps          modelRangeView  `json:"steps" doc:"Steps of each image."`
	Guidance       modelNumberView `json:"guidance" doc:"How closely it follows the prompt."`
	NegativePrompt bool            `json:"negative_prompt" doc:"Whether it takes one."`
	MaxImages      int             `json:"max_images" doc:"In one generation."`
	MaxPromptChars int             `json:"max_prompt_chars" doc:"Unicode characters."`
}

type modelSizeView struct {
	DefaultWidth  int `json:"default_width" doc:"When a request names none."`
	DefaultHeight int `json:"default_height" doc:"When a request names none."`
	Min           int `json:"min" doc:"Of a side."`
	Max           int `json:"max" doc:"Of a side."`
	Multiple      int `json:"multiple" doc:"Sides are multiples of it."`
	MaxPixels     int `json:"max_pixels" doc:"Width times height."`
}

type modelRangeView struct {
	Default int `json:"default" doc:"When a request names none."`
	Max     int `json:"max" doc:"The most it takes."`
}

type modelNumberView struct {
	Default float64 `json:"default" doc:"When a request names none."`
	Max     float64 `json:"max" doc:"The most it takes."`
}

// progressEvent is the data of a progress event.
type progressEvent struct {
	ID       string       `json:"id"`
	Status   string       `json:"status"`
	Progress progressView `json:"progress"`
	Queue    *queueView   `json:"queue,omitempty"`
}

func (a *API) generation(g generate.Generation) generationView {
	r := g.Request
	v := generationView{
		ID: g.ID, Status: string(g.Status), Model: r.Model, Prompt: r.Prompt, NegativePrompt: r.NegativePrompt,
		N: r.N, Width: r.Width, Height: r.Height, Seed: g.Seed, Steps: r.Steps, Guidance: r.Guidance, Format: r.Format,
		RetentionDays: r.RetentionDays, EmbedPrompt: r.EmbedPrompt, Metadata: r.Metadata,
		Progress: progressView(g.Progress), Queue: queue(g.Queue), Images: []imageView{},
		CreatedAt: g.CreatedAt.UTC(), StartedAt: moment(g.StartedAt), FinishedAt: moment(g.FinishedAt), ExpiresAt: g.ExpiresAt.UTC(),
		URLs: urlsView{
			Get:    a.base + "/v1/generations/" + g.ID,
			Cancel: a.base + "/v1/generations/" + g.ID + "/cancel",
			Events: a.base + "/v1/generations/" + g.ID + "/events",
		},
	}
	for _, i := range g.Images {
		v.Images = append(v.Images, a.image(i))
	}
	if g.Failure != nil {
		v.Error = &failureView{Code: g.Failure.Code, Message: g.Failure.Message}
	}
	return v
}

func (a *API) image(i generate.Image) imageView {
	url := a.base + "/v1/images/" + i.ID + "/content"
	return imageView{
		ID: i.ID, GenerationID: i.GenerationID, URL: url, ThumbnailURL: url + "?thumbnail=true",
		Width: i.Width, Height: i.Height, Format: i.Format, Bytes: i.Bytes, SHA256: i.SHA256, Seed: i.Seed,
		CreatedAt: i.CreatedAt.UTC(), ExpiresAt: i.ExpiresAt.UTC(),
	}
}

func queue(q *generate.Queue) *queueView {
	if q == nil {
		return nil
	}
	v := &queueView{Position: q.Position, ETASeconds: q.ETASeconds, Served: q.Served}
	if !q.Served {
		v.Message = "no worker serves this model now"
	}
	return v
}

func model(m generate.Model) modelView {
	return modelView{
		ID: m.ID, Object: "model", OwnedBy: m.OwnedBy, Name: m.Name, License: m.License, SourceType: m.SourceType, Served: m.Served,
		Size: modelSizeView{
			DefaultWidth: m.DefaultWidth, DefaultHeight: m.DefaultHeight, Min: m.MinSide, Max: m.MaxSide,
			Multiple: m.SideMultiple, MaxPixels: m.MaxPixels,
		},
		Steps:          modelRangeView{Default: m.DefaultSteps, Max: m.MaxSteps},
		Guidance:       modelNumberView{Default: m.Guidance, Max: m.MaxGuidance},
		NegativePrompt: m.NegativePrompt, MaxImages: m.MaxImages, MaxPromptChars: m.MaxPromptChars,
	}
}

// moment is nil for what has not happened yet.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// page ends a list, of which one more than the limit was asked for, and says behind
// which id it goes on.
func page[T any](list []T, limit int, id func(T) string) (shown []T, next string) {
	if len(list) <= limit {
		return list, ""
	}
	return list[:limit], id(list[limit-1])
}

// each shows every item of a list; never nil.
func each[T, View any](list []T, show func(T) View) []View {
	views := make([]View, len(list))
	for i, item := range list {
		views[i] = show(item)
	}
	return views
}

// cursor accepts the id behind which a list goes on.
func cursor(prefix, id string) error {
	if id != "" && known(prefix, id) != nil {
		return problem.Invalid(problem.Field{Location: "query.cursor", Message: "is not a cursor of this list"})
	}
	return nil
}
