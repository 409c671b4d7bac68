package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"

	"zimage/internal/generate"
	"zimage/internal/problem"
)

const (
	// longestWait is the most that Prefer: wait can ask for.
	longestWait = time.Minute
	// holdsEvery is how often an open request asks whether its key still holds.
	// With the 2 s for which account remembers a key, access is closed in 5 s.
	holdsEvery = 2500 * time.Millisecond
	// beatEvery is how often a silent stream says that it is alive, below the
	// usual 30 s of proxies.
	beatEvery = 15 * time.Second
	// writeTime is how long a client may take to read one event.
	writeTime = 10 * time.Second
	// blipRest is how long a part of ours that failed is left alone.
	blipRest = 500 * time.Millisecond
	// mostOpen is how many streams and waits one key may have open at once.
	mostOpen = 100
	// retryMillis is what a broken stream waits before it comes back.
	retryMillis = 2000
)

// preferredWait is the time that a Prefer header asks for, at most longestWait;
// 0 when it asks for none that we understand (RFC 7240: ignore it then).
func preferredWait(prefer string) time.Duration {
	for part := range strings.FieldsFuncSeq(prefer, func(r rune) bool { return r == ',' || r == ';' }) {
		name, value, ok := strings.Cut(part, "=")
		if !ok || !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		n, err := strconv.Atoi(strings.Trim(strings.TrimSpace(value), `"`))
		if err != nil || n <= 0 {
			return 0
		}
		return min(time.Duration(min(n, 3600))*time.Second, longestWait)
	}
	return 0
}

// await returns the generation as it is when it is final or the time is over.
// After an accept it fails only when the key does not hold any more or the data
// is gone: what was accepted must be answered, also while the database is away.
func (a *API) await(ctx context.Context, owner string, g generate.Generation, wait time.Duration) (generate.Generation, error) {
	if g.Status.Terminal() {
		return g, nil
	}
	a.extend(ctx, wait+ordinaryTime)
	callOf(ctx).idle()
	until, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	until, cancelClose := a.untilClose(until)
	defer cancelClose()
	if w, err := a.rooms.Watchers.Watch(until, owner, g.ID, g.Sequence); err == nil {
		defer w.Close()
		asked := time.Now()
		for !g.Status.Terminal() && until.Err() == nil {
			u, err := next(until, w, holdsEvery-time.Since(asked))
			switch {
			case err == nil:
				g = u.Generation
			case ends(err):
				return g, err
			case !silence(err):
				pause(until, blipRest)
			}
			if time.Since(asked) >= holdsEvery {
				if err := a.stillHolds(until); err != nil {
					return g, err
				}
				asked = time.Now()
			}
		}
	}
	ending, cancelEnding := context.WithTimeout(ctx, ordinaryTime)
	defer cancelEnding()
	if err := a.stillHolds(ending); err != nil {
		return g, err
	}
	if !g.Status.Terminal() {
		fresh, err := a.rooms.Generate.Get(ending, owner, g.ID)
		if err == nil {
			return fresh, nil
		}
		if ends(err) {
			return g, err
		}
	}
	return g, nil
}

// ends reports whether there is nothing more to wait for: the data is gone, or
// the key does not hold. Any other error says nothing of the generation.
func ends(err error) bool {
	switch problem.CodeOf(err) {
	case problem.DataRemoved, problem.NotFound, problem.Unauthorized, problem.Forbidden:
		return true
	}
	return false
}

// silence reports whether next only ran out of its time. A part of ours that
// took too long is no silence: it would be asked again at once.
func silence(err error) bool {
	known := new(problem.Error)
	return errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &known)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// hold counts one stream or wait of the request's key until release.
func (a *API) hold(ctx context.Context) (release func(), err error) {
	release, ok := a.open.take(cmp.Or(callOf(ctx).who.KeyID, callOf(ctx).who.SessionID))
	if !ok {
		return nil, problem.New(problem.RateLimited, "Too many streams and waits are open with this key.").After(5 * time.Second)
	}
	return release, nil
}

// next waits for one update, but no longer than most.
func next(ctx context.Context, w *generate.Watch, most time.Duration) (generate.Update, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return w.Next(ctx)
}

// extend moves the deadlines of this request's connection.
func (a *API) extend(ctx context.Context, by time.Duration) {
	if w := callOf(ctx).writer; w != nil {
		rc := http.NewResponseController(w)
		_ = rc.SetReadDeadline(time.Time{})
		_ = rc.SetWriteDeadline(time.Now().Add(by))
	}
}

type eventsInput struct {
	ID          string `path:"id" doc:"Of the generation." example:"gen_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	LastEventID string `header:"Last-Event-ID" doc:"The last id you saw: states up to it are not told again." example:"3"`
}

// generationEvents streams what happens. The generation is looked at before the
// stream starts, so that errors are ordinary answers.
func (a *API) generationEvents(ctx context.Context, in *eventsInput) (*streamOutput, error) {
	if err := known("gen", in.ID); err != nil {
		return nil, err
	}
	owner := callOf(ctx).owner
	first, cancel := context.WithTimeout(ctx, ordinaryTime)
	defer cancel()
	g, err := a.rooms.Generate.Get(first, owner, in.ID)
	if err != nil {
		return nil, err
	}
	after, err := strconv.ParseInt(in.LastEventID, 10, 64)
	if err != nil || after < 0 || after > g.Sequence {
		after = 0 // not an id of ours: tell everything
	}
	if g.Status.Terminal() && after == g.Sequence {
		return &streamOutput{Body: func(hc huma.Context) { hc.SetStatus(http.StatusNoContent) }}, nil // an EventSource stops on it
	}
	if callOf(ctx).head {
		return &streamOutput{Body: func(hc huma.Context) {
			hc.SetHeader("Content-Type", "text/event-stream")
			hc.SetStatus(http.StatusOK)
		}}, nil
	}
	callOf(ctx).idle()
	release, err := a.hold(ctx)
	if err != nil {
		return nil, err
	}
	return a.watched(ctx, owner, in.ID, after, release, a.stream)
}

// watched is an answer of events about a generation, which body writes. It releases
// the place that was held for it.
func (a *API) watched(ctx context.Context, owner, id string, after int64, release func(), body func(context.Context, *eventWriter, *generate.Watch)) (*streamOutput, error) {
	live, cancelLive := a.untilClose(ctx)
	w, err := a.rooms.Watchers.Watch(live, owner, id, after)
	if err != nil {
		cancelLive()
		release()
		return nil, err
	}
	return &streamOutput{Body: func(hc huma.Context) {
		defer release()
		defer cancelLive()
		defer w.Close()
		a.meters.streams.Inc()
		defer a.meters.streams.Dec()
		if out := newEventWriter(humagin.Unwrap(hc)); out.start() == nil {
			body(live, out, w)
		}
	}}, nil
}

// stream writes updates until the generation is final, the client is gone, the
// key does not hold any more, or the server closes.
func (a *API) stream(ctx context.Context, out *eventWriter, w *generate.Watch) {
	err := a.follow(ctx, out, w, func(u generate.Update) (bool, error) {
		g := u.Generation
		if u.State {
			return g.Status.Terminal(), out.event("state", strconv.FormatInt(g.Sequence, 10), a.generation(g))
		}
		return false, out.event("progress", "", progressEvent{ID: g.ID, Status: string(g.Status), Progress: progressView(g.Progress), Queue: queue(g.Queue)})
	})
	known := new(problem.Error)
	switch {
	case err == nil, ctx.Err() != nil, out.broken:
	case ends(err):
		// Deleted or expired while we watched.
		_ = out.event("problem", "", view(ctx, err))
	case errors.As(err, &known): // the key does not hold any more
	default:
		a.log.LogAttrs(ctx, slog.LevelError, "stream failed", callOf(ctx).attrs(slog.String("error", kindOf(err)))...)
		// The client comes back after retry, with its Last-Event-ID.
	}
}

// follow has each update told, until tell says that it was the last one. It is an
// error when the generation is deleted or expires, the client is gone, the key does
// not hold any more, or ctx ends.
func (a *API) follow(ctx context.Context, out *eventWriter, w *generate.Watch, tell func(generate.Update) (last bool, err error)) error {
	asked := time.Now()
	for {
		u, err := next(ctx, w, holdsEvery-time.Since(asked))
		known := new(problem.Error)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case ends(err):
			return err
		case silence(err):
		case errors.As(err, &known):
			pause(ctx, blipRest) // a part of ours is away, and the generation is not
		case err != nil:
			return err
		default:
			if last, err := tell(u); last || err != nil {
				return err
			}
		}
		// Looked at by time, not only in silence: steady progress must not keep a
		// revoked key's stream open.
		if time.Since(asked) >= holdsEvery {
			if err := a.stillHolds(ctx); err != nil {
				return err
			}
			asked = time.Now()
		}
		if out.silent() >= beatEvery {
			if err := out.beat(); err != nil {
				return err
			}
		}
	}
}

// eventWriter writes server-sent events. Each write has its own deadline.
type eventWriter struct {
	w    gin.ResponseWriter
	rc   *http.ResponseController
	last time.Time

	broken bool // a write has failed: the client is gone
}

func newEventWriter(c *gin.Context) *eventWriter {
	return &eventWriter{w: c.Writer, rc: http.NewResponseController(c.Writer)}
}

func (e *eventWriter) start() error {
	_ = e.rc.SetReadDeadline(time.Time{})
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	e.w.WriteHeader(http.StatusOK)
	return e.write(fmt.Sprintf("retry: %d\n\n", retryMillis))
}

func (e *eventWriter) event(name, id string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	head := "event: " + name + "\n"
	if id != "" {
		head += "id: " + id + "\n"
	}
	return e.write(head + "data: " + string(data) + "\n\n")
}

func (e *eventWriter) beat() error { return e.write(": still here\n\n") }

func (e *eventWriter) silent() time.Duration { return time.Since(e.last) }

func (e *eventWriter) write(s string) (err error) {
	defer func() { e.broken = e.broken || err != nil }()
	_ = e.rc.SetWriteDeadline(time.Now().Add(writeTime))
	e.last = time.Now()
	if _, err := e.w.WriteString(s); err != nil {
		return err
	}
	if err := e.rc.Flush(); err != nil {
		return err
	}
	// Lifted: over HTTP/2 a deadline that passes resets the stream, also while
	// nothing is being written.
	return e.rc.SetWriteDeadline(time.Time{})
}
