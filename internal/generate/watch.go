package generate

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/db"
)

// channel is where workers tell of progress and changes of state: ids and
// numbers, nothing else.
const channel = "zimage:generations"

// removedSequence is beyond those of all states.
const removedSequence = 1 << 40

// note is what is told.
type note struct {
	ID       string    `json:"id"`
	Sequence int64     `json:"seq"`
	Progress *Progress `json:"p,omitempty"`
}

// bulletin publishes notes from a goroutine of its own, so that nobody waits
// for Redis. What it cannot tell, those who wait see in the database within a
// second.
type bulletin struct {
	redis redis.UniversalClient
	notes chan note
	quit  chan struct{}
	done  sync.WaitGroup
}

func newBulletin(r redis.UniversalClient) *bulletin {
	b := &bulletin{redis: r, notes: make(chan note, 1024), quit: make(chan struct{})}
	b.done.Go(func() {
		for {
			select {
			case <-b.quit:
				return
			case n := <-b.notes:
				b.publish(n)
			}
		}
	})
	return b
}

func (b *bulletin) publish(n note) {
	text, err := json.Marshal(n)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_ = b.redis.Publish(ctx, channel, text).Err() // lost notes are allowed
}

func (b *bulletin) close() {
	close(b.quit)
	b.done.Wait()
}

func (b *bulletin) tell(n note) {
	select {
	case b.notes <- n:
	default:
	}
}

func (b *bulletin) changed(id string, sequence int64) {
	b.tell(note{ID: id, Sequence: sequence})
}

func (b *bulletin) progress(id string, sequence int64, p Progress) {
	b.tell(note{ID: id, Sequence: sequence, Progress: &p})
}

// Watchers serves all who wait in one process: one subscription to Redis, and
// one query a second over all generations that somebody waits for, so that
// nothing is missed when Redis is.
type Watchers struct {
	service *Service

	mu      sync.Mutex
	watched map[string]*watched
}

// watched is one generation that somebody waits for.
type watched struct {
	sequence int64 // newest seen, by note or query
	done     int64 // progress as the newest query saw it
	watches  map[*Watch]struct{}
}

// NewWatchers makes it; Run does the work.
func (s *Service) NewWatchers() *Watchers {
	return &Watchers{service: s, watched: map[string]*watched{}}
}

// A Watch waits for what happens to one generation.
type Watch struct {
	hub       *Watchers
	owner, id string
	after     int64   // newest state the watcher has
	told      float64 // how far it was when that was last told
	last      Generation

	mu       sync.Mutex
	progress *Progress // a note's, not told yet
	unseen   bool      // there is more to know than progress
	signal   chan struct{}
}

// Watch follows one generation of the owner. The first Next returns at once
// unless its state is the one with the sequence after. Close it.
func (h *Watchers) Watch(ctx context.Context, owner, id string, after int64) (*Watch, error) {
	w := &Watch{hub: h, owner: owner, id: id, after: after, signal: make(chan struct{}, 1)}
	// Enrolled before the first look, so that nothing falls between the two.
	h.mu.Lock()
	g := h.watched[id]
	if g == nil {
		g = &watched{watches: map[*Watch]struct{}{}}
		h.watched[id] = g
	}
	g.watches[w] = struct{}{}
	h.mu.Unlock()
	if _, err := h.service.find(ctx, h.service.DB, owner, id); err != nil {
		w.Close()
		return nil, away(err)
	}
	w.look()
	return w, nil
}

// Close ends it.
func (w *Watch) Close() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if g := h.watched[w.id]; g != nil {
		delete(g.watches, w)
		if len(g.watches) == 0 {
			delete(h.watched, w.id)
		}
	}
}

// Next waits for a change of state or progress. It returns DataRemoved when the
// generation is removed, and ctx's error when that ends. After any error it may
// be called again, and nothing is missed. It is for one goroutine at a time.
func (w *Watch) Next(ctx context.Context) (Update, error) {
	for {
		select {
		case <-ctx.Done():
			return Update{}, ctx.Err()
		case <-w.signal:
		}
		w.mu.Lock()
		progress, unseen := w.progress, w.unseen
		w.progress, w.unseen = nil, false
		w.mu.Unlock()
		g := w.last
		if unseen || g.Status != Running { // mere progress costs no query
			var err error
			if g, err = w.hub.service.Get(ctx, w.owner, w.id); err != nil {
				w.look() // what woke us has not been seen yet
				if ctx.Err() != nil {
					err = ctx.Err() // not what the database made of it
				}
				return Update{}, err
			}
			w.last = g
		}
		if progress != nil && g.Status == Running && progress.Fraction > g.Progress.Fraction {
			g.Progress = *progress // newer than the job's row
		}
		if g.Sequence > w.after {
			w.after, w.told = g.Sequence, g.Progress.Fraction
			return Update{Generation: g, State: true}, nil
		}
		if g.Status == Running && g.Progress.Fraction > w.told {
			w.told = g.Progress.Fraction
			return Update{Generation: g}, nil
		}
	}
}

// look wakes the watch to ask the database.
func (w *Watch) look() {
	w.mu.Lock()
	w.unseen = true
	w.mu.Unlock()
	w.wake()
}

func (w *Watch) wake() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// Run feeds the watches until ctx ends.
func (h *Watchers) Run(ctx context.Context) {
	var work sync.WaitGroup
	work.Go(func() { h.subscribe(ctx) })
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			work.Wait()
			return
		case <-t.C:
			h.look(ctx)
		}
	}
}

// subscribe reads notes from Redis. go-redis reconnects by itself.
func (h *Watchers) subscribe(ctx context.Context) {
	subscription := h.service.Redis.Subscribe(ctx, channel)
	defer func() { _ = subscription.Close() }()
	messages := subscription.Channel(redis.WithChannelSize(1024))
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			if !ok {
				return
			}
			var n note
			if json.Unmarshal([]byte(m.Payload), &n) == nil {
				h.hear(n)
			}
		}
	}
}

func (h *Watchers) hear(n note) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.watched[n.ID]
	if g == nil {
		return
	}
	if n.Progress == nil && n.Sequence <= g.sequence {
		return
	}
	ahead := n.Sequence > g.sequence // the note of the change itself was lost
	g.sequence = max(g.sequence, n.Sequence)
	for w := range g.watches {
		if n.Progress == nil {
			w.look()
			continue
		}
		if n.Sequence == g.sequence { // not a former attempt's
			w.mu.Lock()
			w.progress = n.Progress
			w.unseen = w.unseen || ahead
			w.mu.Unlock()
		}
		w.wake()
	}
}

// far wakes those who wait when the job's row has progress that they may not
// have heard of: Redis may be away.
func (h *Watchers) far(id string, done int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.watched[id]
	if g == nil || g.done == done {
		return
	}
	g.done = done
	for w := range g.watches {
		w.look()
	}
}

// look asks the database, once for all that are watched.
func (h *Watchers) look(ctx context.Context) {
	h.mu.Lock()
	ids := make([]any, 0, len(h.watched))
	for id := range h.watched {
		ids = append(ids, id)
	}
	h.mu.Unlock()
	const chunk = 500
	for len(ids) > 0 {
		some := ids[:min(chunk, len(ids))]
		ids = ids[len(some):]
		var rows []row
		err := h.service.DB.Select(ctx, &rows, `SELECT g.id, g.status, g.attempts, g.removed_at,
			j.state AS job_state, j.attempt AS job_attempt, j.progress_done, j.progress_total
			FROM generations g LEFT JOIN jobs j ON j.id = g.job_id WHERE g.id IN (`+db.Marks(len(some))+`)`, some...)
		if err != nil {
			return // the next second asks again
		}
		for _, r := range rows {
			sequence := r.sequence()
			if r.RemovedAt > 0 {
				sequence = removedSequence
			}
			h.hear(note{ID: r.ID, Sequence: sequence})
			h.far(r.ID, r.ProgressDone.Int64)
		}
	}
}
