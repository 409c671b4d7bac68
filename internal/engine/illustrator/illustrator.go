// Package illustrator is the engine that is built in: it paints a picture of a
// prompt's words in about a second, without a GPU and without a model, so that
// everything around it can be tried at once. Words choose the place, the hour,
// the weather, the colours and up to three subjects; chance, drawn from the
// prompt and the seed, does the rest.
//
// It says in every picture what it is, writes none of the prompt's text into
// it, keeps nothing, and never pretends to denoise: its steps are passes of a
// painter, from the broad to the fine, and more of them mean more detail.
package illustrator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"image/png"
	"io"

	"zimage/internal/engine"
)

const (
	maxPixels    = 2048 * 2048 // about 100 MB of memory
	minSide      = 16
	fullDetail   = 8 // steps from which on nothing is left out
	defaultSteps = 8
)

// An Illustrator paints. Its calls are independent of each other.
type Illustrator struct{ icons *icons }

var _ engine.Engine = (*Illustrator)(nil)

// Open makes the engine. Of the settings nothing concerns it: it has no
// address, no credential and no other model.
func Open(engine.Settings) (engine.Engine, error) {
	ic, err := openIcons()
	if err != nil {
		return nil, err
	}
	return &Illustrator{icons: ic}, nil
}

// Check always finds it ready.
func (*Illustrator) Check(ctx context.Context) error { return ctx.Err() }

// Generate paints r as a PNG. On one kind of processor the same prompt, seed,
// size and steps give the same bytes. It stops within 50 ms of ctx's end.
func (e *Illustrator) Generate(ctx context.Context, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	if r.Width < minSide || r.Height < minSide || r.Width > maxPixels/r.Height || r.Seed < 0 {
		return nil, engine.NewError(engine.FaultUser, engine.CodeInvalid, 0, nil)
	}
	steps := r.Steps
	if steps < 1 {
		steps = defaultSteps
	}
	told := 0
	tell := func(step int) {
		if step > told && progress != nil {
			told = step
			progress(engine.Progress{Step: step, Steps: steps})
		}
	}
	detail := min(1, float32(steps)/fullDetail)
	img := compose(ctx, e.icons, r.Prompt, uint64(r.Seed), r.Width, r.Height, detail, func(share float32) {
		tell(min(steps-1, int(share*float32(steps)))) // the last step is the file
	})
	if img == nil || ctx.Err() != nil {
		return nil, canceled(ctx)
	}
	badge(img)
	var file bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestSpeed}
	if err := encoder.Encode(&stopping{ctx, &file}, img); err != nil {
		if ctx.Err() != nil {
			return nil, canceled(ctx)
		}
		return nil, engine.NewError(engine.FaultOurs, engine.CodeFailed, 0, err)
	}
	tell(steps)
	return file.Bytes(), nil
}

// canceled tells a caller who left from a time that ran out.
func canceled(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return engine.NewError(engine.FaultEngine, engine.CodeTimeout, 0, context.DeadlineExceeded)
	}
	return engine.NewError(engine.FaultOurs, engine.CodeCanceled, 0, context.Canceled)
}

// stopping is a writer that fails once ctx has ended: the encoder asks nobody
// else.
type stopping struct {
	ctx context.Context
	w   io.Writer
}

func (s *stopping) Write(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.w.Write(b)
}

// rootOf is where all chance of a picture begins. A hash keeps pictures of
// prompts that differ in a letter apart.
func rootOf(prompt string, seed uint64) uint64 {
	h := sha256.New()
	_ = binary.Write(h, binary.BigEndian, seed) // a hash takes everything
	_, _ = io.WriteString(h, prompt)
	return binary.BigEndian.Uint64(h.Sum(nil))
}
