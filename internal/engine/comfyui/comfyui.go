// Package comfyui runs prompts on a ComfyUI server: the operator's graph with
// the request's values in its slots, steps and image through a websocket, and
// the history entry, which holds the prompt, deleted after every call.
//
// It never runs a graph of the user's, never interrupts another's prompt, and
// never passes on a word of the server's. What it can't undo: ComfyUI keeps the
// inputs of the last graph in memory until the next one runs, and files that a
// graph writes stay for good. A graph that writes files is refused unless the
// engine declares keeps: disk.
package comfyui

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"zimage/internal/engine"
)

// Causes that errors.Is finds behind an *engine.Error.
var (
	errKept        = errors.New("comfyui: a history entry could not be deleted")
	errNoModel     = errors.New("comfyui: the server does not list a served model")
	errOutOfMemory = errors.New("comfyui: out of memory")
	errNoWorkflow  = errors.New("comfyui: no workflow for this model")
)

// Engine is one ComfyUI server.
type Engine struct {
	api       *api
	workflows map[string]*workflow // by model id
	served    map[string]engine.Served
	patience  time.Duration // how long a cancelled prompt may take to end
	poll      time.Duration // how often the server is asked, messages or not
	settle    time.Duration // the same once the outcome is known
	late      time.Duration // how long messages may come after the prompt is over
	silence   time.Duration // without any answer, after which the server counts as lost

	mu   sync.Mutex
	kept map[string]bool // prompts whose history entry is still to be deleted
}

var _ engine.Engine = (*Engine)(nil)

// Open reads the workflows and the credential; it does not connect. Errors name
// the file and what to change in it.
func Open(s engine.Settings) (engine.Engine, error) {
	e, err := open(s)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func open(s engine.Settings) (*Engine, error) {
	client, err := engine.NewClient(s)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		api:       &api{client: client},
		workflows: map[string]*workflow{},
		served:    s.Models,
		patience:  s.Timeout,
		poll:      2 * time.Second,
		settle:    50 * time.Millisecond,
		late:      2 * time.Second,
		silence:   15 * time.Second,
		kept:      map[string]bool{},
	}
	if e.patience <= 0 {
		e.patience = 10 * time.Minute
	}
	for id, served := range s.Models {
		w, err := readWorkflow(served.Workflow, s.Keeps)
		if err != nil {
			return nil, fmt.Errorf("engine %s, model %s: %w", s.Name, id, err)
		}
		e.workflows[id] = w
	}
	return e, nil
}

// Generate makes one image. It returns when the prompt has left the server's
// queue and history, or the server can't be reached to see to that; then Check
// goes on trying.
func (e *Engine) Generate(ctx context.Context, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	w := e.workflows[r.Model.ID]
	if w == nil {
		return nil, engine.NewError(engine.FaultOurs, engine.CodeInvalid, 0, errNoWorkflow)
	}
	if !plainID(r.ID) {
		return nil, engine.NewError(engine.FaultOurs, engine.CodeInvalid, 0, nil)
	}
	if ctx.Err() != nil {
		return nil, engine.ContextError(ctx)
	}
	if progress == nil {
		progress = func(engine.Progress) {}
	}
	// The websocket comes first: what the server sends before there is one is lost.
	limit := engine.ImageLimit(r.Width, r.Height)
	watcher, err := e.api.watch(ctx, r.ID, max(limit, engine.MaxStatus))
	if err != nil {
		return nil, err
	}
	defer watcher.close()
	// It is heard when the server greets, a moment after the handshake.
	select {
	case h := <-watcher.heard:
		if h.lost != nil {
			return nil, h.lost
		}
	case <-time.After(e.late):
	case <-ctx.Done():
		return nil, engine.ContextError(ctx)
	}

	id, taken, err := e.api.submit(ctx, w.fill(r), r.ID)
	if !taken {
		return nil, err
	}
	// From here the server has the prompt, or may have it, and whatever becomes
	// of this call it must neither run on nor be remembered.
	p := &prompt{api: e.api, id: id, workflow: w, request: r, progress: progress}
	var image []byte
	if err == nil {
		image, err = e.follow(ctx, p, watcher.heard)
	}
	e.end(context.WithoutCancel(ctx), p)
	return image, err
}

// follow waits until the prompt is over and returns its image.
func (e *Engine) follow(ctx context.Context, p *prompt, messages <-chan heard) ([]byte, error) {
	ticker := time.NewTicker(e.poll)
	defer ticker.Stop()
	answered := time.Now()
	var late <-chan time.Time
	for !p.over || messages != nil && p.expectsImage() {
		if p.over && late == nil {
			// The server was asked and is ahead of its messages, which may still
			// bring the image.
			late = time.After(e.late)
		}
		select {
		case <-ctx.Done():
			return nil, engine.ContextError(ctx)
		case <-late:
			messages = nil
		case h := <-messages:
			answered = time.Now()
			if h.lost != nil {
				if !p.workflow.files && p.image == nil {
					return nil, h.lost // the image comes no other way: don't wait for the rest
				}
				messages = nil
				continue
			}
			open := p.outcome == unknown
			p.hear(h)
			if open && p.outcome != unknown {
				ticker.Reset(e.settle)
			}
		case <-ticker.C:
			if p.over {
				continue
			}
			err := p.look(ctx)
			switch {
			case err == nil:
				answered = time.Now()
			case ctx.Err() == nil && time.Since(answered) > e.silence:
				return nil, err
			}
		}
	}
	return p.result(ctx)
}

// end stops the prompt unless it is over, waits until the server is free of it,
// and deletes it from the history. What remains is noted for Check.
func (e *Engine) end(ctx context.Context, p *prompt) {
	if !p.over {
		e.stop(ctx, p)
	}
	for try := range 3 {
		if try > 0 && !sleep(ctx, time.Duration(try)*200*time.Millisecond) {
			break
		}
		if p.over && e.api.forget(ctx, p.id) == nil {
			return
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept[p.id] = true
}

// stop cancels the prompt and waits until it has left the queue. An interrupt
// takes effect at the next step, or after a node that has none, so it may take
// a while; the slot is not free before.
func (e *Engine) stop(ctx context.Context, p *prompt) {
	ctx, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	answered := time.Now()
	var asked time.Time
	last := gone
	for wait := e.settle; !p.over; wait = min(2*wait, time.Second) {
		at, err := p.where(ctx)
		if err == nil {
			answered = time.Now()
			// Asked again when it began to run meanwhile, and now and then in
			// case the first was lost.
			if !p.over && (at != last || time.Since(asked) > 5*time.Second) {
				if e.api.cancel(ctx, p.id, at) == nil {
					asked, last = time.Now(), at
				}
			}
		}
		if p.over || time.Since(answered) > e.silence || !sleep(ctx, wait) {
			return
		}
	}
}

// Leftovers counts the prompts that the server still remembers, because it
// could not be reached or refused to delete them.
func (e *Engine) Leftovers() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.kept)
}

// Check asks whether the server answers, lists the served models, and has
// forgotten every prompt it should; those it has not it is asked to stop and
// forget once more.
func (e *Engine) Check(ctx context.Context) error {
	var stats struct{}
	if err := e.api.get(ctx, "/system_stats", engine.MaxStatus, &stats); err != nil {
		return err
	}
	if err := e.sweep(ctx); err != nil {
		return err
	}
	lists := map[string][]string{}
	for id, w := range e.workflows {
		if !w.slots["model"] {
			continue // the graph names its model itself
		}
		folder := "diffusion_models"
		if strings.Contains(w.loader, "Checkpoint") {
			folder = "checkpoints"
		}
		if lists[folder] == nil {
			names := []string{}
			if err := e.api.get(ctx, "/models/"+folder, engine.MaxStatus, &names); err != nil {
				return err
			}
			lists[folder] = names
		}
		if !slices.Contains(lists[folder], upstreamOf(id, e.served[id])) {
			return engine.NewError(engine.FaultEngine, engine.CodeInvalid, 0, errNoModel)
		}
	}
	return nil
}

func (e *Engine) sweep(ctx context.Context) error {
	e.mu.Lock()
	ids := slices.Collect(maps.Keys(e.kept))
	e.mu.Unlock()
	for _, id := range ids {
		at, _, _, err := e.api.locate(ctx, id, id)
		switch {
		case err != nil:
			return err
		case at == pending || at == running:
			if err := e.api.cancel(ctx, id, at); err != nil {
				return err
			}
			return engine.NewError(engine.FaultEngine, engine.CodeBusy, 0, errKept)
		}
		if err := e.api.forget(ctx, id); err != nil {
			return err
		}
		e.mu.Lock()
		delete(e.kept, id)
		e.mu.Unlock()
	}
	return nil
}
