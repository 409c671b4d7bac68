package comfyui

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"

	"zimage/internal/engine"
)

// An outcome is how the server says that a prompt ended.
type outcome int

const (
	unknown outcome = iota
	succeeded
	failed
	outOfMemory
	interrupted
)

// A prompt is one call's on the server, and what is known of it.
type prompt struct {
	api      *api
	id       string // the server's id of it
	workflow *workflow
	request  engine.Request // its ID names our websocket
	progress func(engine.Progress)

	doing   [2]string // prompt and node that the last message was about
	step    int       // the highest told
	missed  bool      // the websocket broke, so messages may be missing
	image   []byte    // from the websocket; nil: none yet
	outcome outcome
	told    bool    // that it ended, by a message: the image was sent before
	over    bool    // it left the queue: nothing runs, and the history entry can be deleted
	record  *record // its history entry, once seen
}

// hear takes what came through the websocket. The server tells each client of
// its own prompts and everybody of those without a client, so all that names
// another prompt is passed over.
func (p *prompt) hear(h heard) {
	if h.again {
		p.missed, p.doing = true, [2]string{}
		return
	}
	if h.frame != nil {
		p.takeFrame(h.frame)
		return
	}
	m, d := h.message, h.message.Data
	if m.Type == "executing" || m.Type == "progress" {
		p.doing = [2]string{d.PromptID}
		if d.Node != nil {
			p.doing[1] = *d.Node
		}
	}
	if d.PromptID != p.id {
		return
	}
	switch m.Type {
	case "progress":
		p.advance(d.Value, d.Max)
	case "progress_state":
		for _, node := range d.Nodes {
			p.advance(node.Value, node.Max)
		}
	case "executing":
		if d.Node == nil {
			p.over, p.told = true, true
		}
	case "execution_success", "execution_interrupted", "execution_error":
		p.told = true
		p.judge(m)
	}
}

// expectsImage reports whether the image may still come through the websocket.
func (p *prompt) expectsImage() bool {
	return p.outcome == succeeded && !p.workflow.files && p.image == nil && !p.told
}

// judge takes the messages that tell the outcome. They come while the server
// still has the prompt among the running: only after them it writes the history.
func (p *prompt) judge(m message) {
	if p.outcome != unknown {
		return
	}
	switch m.Type {
	case "execution_success":
		p.outcome = succeeded
	case "execution_interrupted":
		p.outcome = interrupted
	case "execution_error":
		p.outcome = failed
		if strings.HasSuffix(m.Data.ExceptionType, "OutOfMemoryError") {
			p.outcome = outOfMemory
		}
	}
}

// takeFrame keeps the first image that comes while our output node executes;
// those of other nodes are previews.
func (p *prompt) takeFrame(frame []byte) {
	if p.workflow.files || p.image != nil || p.doing != [2]string{p.id, p.workflow.output} {
		return
	}
	if image, ok := picture(frame); ok {
		p.image = append([]byte{}, image...)
	}
}

// advance tells of a step. Other nodes count too (tiles, batches); the
// sampler's count is the one with as many steps as we asked for.
func (p *prompt) advance(value, most float64) {
	if most <= 1 || p.workflow.slots["steps"] && int(most) != stepsOf(p.request) {
		return
	}
	total := p.request.Steps
	if !p.workflow.slots["steps"] {
		total = int(most) // the graph has its own number
	}
	if step := min(int(value), total); step > p.step {
		p.step = step
		p.progress(engine.Progress{Step: step, Steps: total})
	}
}

// where asks the server for the prompt, and sees whether it is over.
func (p *prompt) where(ctx context.Context) (place, error) {
	at, id, rec, err := p.api.locate(ctx, p.id, p.request.ID)
	if err != nil {
		return at, err
	}
	p.id = id
	if at == finished || at == gone {
		p.over, p.record = true, rec
	}
	return at, nil
}

// look is where, and takes the outcome from the history in case its message was
// missed.
func (p *prompt) look(ctx context.Context) error {
	if _, err := p.where(ctx); err != nil || p.record == nil {
		return err
	}
	for _, m := range p.record.Status.Messages {
		p.judge(m)
	}
	if p.outcome == unknown {
		p.outcome = failed
		if p.record.Status.Text == "success" {
			p.outcome = succeeded
		}
	}
	return nil
}

// result is the image of a prompt that is over, or the error it ended with.
func (p *prompt) result(ctx context.Context) ([]byte, error) {
	if p.record == nil && (p.outcome == unknown || p.workflow.files) {
		if err := p.look(ctx); err != nil {
			return nil, err
		}
	}
	switch p.outcome {
	case interrupted: // not by us: follow would have ended with ctx
		return nil, engine.NewError(engine.FaultOurs, engine.CodeCanceled, 0, nil)
	case outOfMemory:
		return nil, engine.NewError(engine.FaultEngine, engine.CodeFailed, 0, errOutOfMemory)
	case unknown, failed: // unknown: it vanished, as after a restart
		return nil, engine.NewError(engine.FaultEngine, engine.CodeFailed, 0, nil)
	}
	image := p.image
	if p.workflow.files {
		if p.record == nil || len(p.record.Outputs[p.workflow.output].Images) == 0 {
			return nil, engine.NewError(engine.FaultEngine, engine.CodeBadImage, 0, nil)
		}
		var err error
		if image, err = p.api.view(ctx, p.record.Outputs[p.workflow.output].Images[0], engine.ImageLimit(p.request.Width, p.request.Height)); err != nil {
			return nil, err
		}
	}
	switch {
	case image == nil && p.missed:
		return nil, engine.NewError(engine.FaultEngine, engine.CodeUnreachable, 0, nil)
	case !complete(image):
		return nil, engine.NewError(engine.FaultEngine, engine.CodeBadImage, 0, nil)
	}
	if err := engine.CheckImage(image, p.request.Width, p.request.Height); err != nil {
		return nil, err
	}
	return image, nil
}

// complete tells a whole PNG, JPEG or WebP from a part of one by its two ends.
// What is between them is looked at when it is decoded.
func complete(image []byte) bool {
	switch {
	case bytes.HasPrefix(image, []byte("\x89PNG\r\n\x1a\n")):
		return bytes.HasSuffix(image, []byte("IEND\xaeB`\x82"))
	case bytes.HasPrefix(image, []byte("\xff\xd8\xff")):
		return bytes.HasSuffix(image, []byte("\xff\xd9"))
	case len(image) >= 12 && string(image[:4]) == "RIFF" && string(image[8:12]) == "WEBP":
		return int64(binary.LittleEndian.Uint32(image[4:]))+8 <= int64(len(image))
	}
	return false
}
