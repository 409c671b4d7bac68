// Package sdcpp makes images on stable-diffusion.cpp's sd-server through its
// native, asynchronous API. Its other routes are not used: they ignore the seed
// and read settings out of the prompt.
//
// A running job cannot be stopped, so Generate stays until the server is done
// with it. The server has no call to delete a job: it keeps prompt and image in
// memory for 600 s, which the engines file declares (keeps: memory). No word of
// the server's is passed on.
package sdcpp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"time"

	"zimage/internal/engine"
)

const (
	firstPoll = 100 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
)

// Engine is one sd-server.
type Engine struct {
	client *engine.Client
	served map[string]engine.Served
	usual  engine.Usual
	// patience is how long the server may not answer at all before its job
	// counts as lost.
	patience time.Duration
}

var _ engine.Engine = (*Engine)(nil)

// Open reads the credential and the authority; it does not connect.
func Open(s engine.Settings) (engine.Engine, error) {
	client, err := engine.NewClient(s)
	if err != nil {
		return nil, err
	}
	return &Engine{client: client, served: s.Models, patience: min(engine.BriefCall, s.Timeout)}, nil
}

// Generate submits one image and polls for it. The server tells no steps, so
// progress is estimated from how long images took before, from the moment in
// which the server starts.
//
// When ctx ends, a queued job is cancelled; a running one is waited for, as
// long as the server says that it runs. A server that is gone, or has forgotten
// the job after a restart, is free.
func (e *Engine) Generate(ctx context.Context, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, engine.ContextError(ctx)
	}
	// Whether ctx ends or not, these exchanges are seen through: a job whose id
	// we don't know could not be cancelled.
	calls := context.WithoutCancel(ctx)
	id, err := e.submit(calls, r)
	if err != nil {
		return nil, ended(ctx, err)
	}
	image, err := e.await(ctx, calls, id, r, progress)
	if err := ended(ctx, err); err != nil {
		return nil, err
	}
	return image, nil
}

// ended is ctx's error where that ended, else err.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return engine.ContextError(ctx)
	}
	return err
}

// Check asks for the capabilities: there is no health route. When the engines
// file names the upstream, that model must be the loaded one.
func (e *Engine) Check(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, e.patience)
	defer stop()
	var answer struct {
		Model struct {
			Name string `json:"name"`
			Stem string `json:"stem"`
		} `json:"model"`
	}
	if err := e.client.JSON(ctx, http.MethodGet, "/sdcpp/v1/capabilities", nil, &answer, engine.MaxStatus); err != nil {
		return err
	}
	for _, served := range e.served {
		if u := served.Upstream; u != "" && u != answer.Model.Name && u != answer.Model.Stem {
			return engine.NewError(engine.FaultEngine, engine.CodeFailed, http.StatusNotFound, errOtherModel)
		}
	}
	return nil
}

var (
	errOtherModel = errors.New("sdcpp: the server loaded another model")
	errGone       = errors.New("sdcpp: the server does not know the job any more")
)

// order is the body of a submission, of fixed fields.
type order struct {
	Prompt         string `json:"prompt"`
	NegativePrompt string `json:"negative_prompt"`
	Width          int    `json:"width"`
	Height         int    `json:"height"`
	Seed           int64  `json:"seed"`
	BatchCount     int    `json:"batch_count"`
	EmbedMetadata  bool   `json:"embed_image_metadata"` // false: it holds the prompt
	OutputFormat   string `json:"output_format"`
	Sample         sample `json:"sample_params"`
}

type sample struct {
	Steps    int      `json:"sample_steps"`
	Guidance guidance `json:"guidance"`
}

type guidance struct {
	Text float64 `json:"txt_cfg"` // classic: 1 is none
}

func newOrder(r engine.Request) order {
	text := r.Guidance
	if r.Served.Guidance != nil {
		text = *r.Served.Guidance
	}
	return order{
		Prompt: r.Prompt, NegativePrompt: r.NegativePrompt,
		Width: r.Width, Height: r.Height, Seed: r.Seed, BatchCount: 1, OutputFormat: "png",
		Sample: sample{Steps: r.Steps + r.Served.StepsOffset, Guidance: guidance{Text: text}},
	}
}

// jobID is the shape of an id, which becomes part of our paths.
var jobID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

func (e *Engine) submit(ctx context.Context, r engine.Request) (string, error) {
	ctx, stop := context.WithTimeout(ctx, e.patience)
	defer stop()
	var answer struct {
		ID string `json:"id"`
	}
	if err := e.client.JSON(ctx, http.MethodPost, "/sdcpp/v1/img_gen", newOrder(r), &answer, engine.MaxStatus); err != nil {
		return "", err
	}
	if !jobID.MatchString(answer.ID) {
		return "", engine.NewError(engine.FaultEngine, engine.CodeFailed, http.StatusAccepted, nil)
	}
	return answer.ID, nil
}

// state is a job as the server tells it.
type state struct {
	Status string `json:"status"`
	Result struct {
		Images []struct {
			Image []byte `json:"b64_json"`
		} `json:"images"`
	} `json:"result"`
}

func (e *Engine) await(ctx, calls context.Context, id string, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	var started time.Time
	stopProgress := func() {}
	defer func() { stopProgress() }()
	answered := time.Now()
	pause := firstPoll
	asked := false // whether the server was told to cancel, and answered
	timer := time.NewTimer(pause)
	defer timer.Stop()
	over := ctx.Done()
	for {
		select {
		case <-over:
			over = nil // a closed channel would not let us pause
		case <-timer.C:
			pause = min(2*pause, lastPoll)
		}
		if ctx.Err() != nil && !asked {
			var canceled bool
			if canceled, asked = e.cancel(calls, id); canceled {
				return nil, engine.ContextError(ctx)
			}
		}
		job, err := e.look(calls, id, r)
		switch {
		case err == nil:
			answered = time.Now()
		case lost(err) || time.Since(answered) >= e.patience:
			return nil, err
		}
		switch job.Status {
		case "generating":
			if started.IsZero() {
				started = time.Now()
				stopProgress = e.usual.Watch(r, progress)
			}
		case "completed":
			if len(job.Result.Images) == 0 {
				return nil, engine.NewError(engine.FaultEngine, engine.CodeBadImage, 0, nil)
			}
			image := job.Result.Images[0].Image
			if err := engine.CheckImage(image, r.Width, r.Height); err != nil {
				return nil, err
			}
			if !started.IsZero() {
				e.usual.Learn(r, time.Since(started))
			}
			return image, nil
		case "failed", "cancelled": // the latter by somebody else
			return nil, engine.NewError(engine.FaultEngine, engine.CodeFailed, 0, nil)
		}
		timer.Reset(pause)
	}
}

// look asks for the job's state.
func (e *Engine) look(ctx context.Context, id string, r engine.Request) (state, error) {
	ctx, stop := context.WithTimeout(ctx, e.patience)
	defer stop()
	limit := engine.ImageLimit(r.Width, r.Height)/3*4 + 4<<10
	a, err := e.client.Bytes(ctx, http.MethodGet, "/sdcpp/v1/jobs/"+id, nil, limit)
	switch {
	case err != nil:
		return state{}, err
	case a.Status == http.StatusNotFound || a.Status == http.StatusGone:
		return state{}, engine.NewError(engine.FaultEngine, engine.CodeFailed, a.Status, errGone)
	case a.Status != http.StatusOK:
		return state{}, a.Err()
	}
	var job state
	if json.Unmarshal(a.Body, &job) != nil {
		return state{}, engine.NewError(engine.FaultEngine, engine.CodeBadImage, a.Status, nil)
	}
	switch job.Status {
	case "queued", "generating", "completed", "failed", "cancelled":
		return job, nil
	}
	// Not the server's word, perhaps a proxy's: as good as no answer.
	return state{}, engine.NewError(engine.FaultEngine, engine.CodeFailed, a.Status, nil)
}

// lost says that asking again would not help: the job is gone, or its answer is
// larger than we take.
func lost(err error) bool {
	return errors.Is(err, errGone) || engine.CodeOf(err) == engine.CodeTooLarge || engine.CodeOf(err) == engine.CodeBadImage
}

// cancel asks the server to cancel. It is canceled when the job was still
// queued; asked when the server said anything, so that asking again is in vain.
func (e *Engine) cancel(ctx context.Context, id string) (canceled, asked bool) {
	ctx, stop := context.WithTimeout(ctx, e.patience)
	defer stop()
	// A POST without a body stalls the server for 5 s.
	a, err := e.client.Bytes(ctx, http.MethodPost, "/sdcpp/v1/jobs/"+id+"/cancel", struct{}{}, engine.MaxStatus)
	return err == nil && a.Status == http.StatusOK, err == nil
}
