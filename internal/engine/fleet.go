package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"zimage/internal/clock"
)

// ErrNoLane says that the fleet has no engine of that lane, now or ever.
var ErrNoLane = errors.New("engine: no engine of this lane")

// The states of an engine in the fleet.
const (
	StateReady    = "ready"     // takes calls
	StateDraining = "draining"  // the operator wants no new calls on it; running ones finish
	StateSetAside = "set_aside" // failed too often in a row; probed until it answers
)

// FleetOptions of a Fleet. Clock and Log are required.
type FleetOptions struct {
	Clock *clock.Clock
	Log   *slog.Logger
	// BusyRest is how long an engine without room is left alone when it does not
	// say for how long; doubled each time in a row. Default 2 s.
	BusyRest time.Duration
}

// longestRest bounds what an engine without room may ask for, so that one that is
// wrong about it costs a minute.
const longestRest = time.Minute

// A Fleet gives out the slots of a process's engines. It decides which engine
// takes an image, never which image is next.
type Fleet struct {
	o       FleetOptions
	most    int           // failures in a row
	every   time.Duration // between probes
	mu      sync.Mutex    // all below, and everything in members and Slots
	members []*member
	waiting map[string][]chan *Slot // by lane, the longest waiting first
}

type member struct {
	settings Settings
	engine   Engine

	busy, late, failures, full int // full: answers in a row that it has no room
	spoiled                    int // images in a row that turned out broken when they were decoded
	aside, drained, resting    bool
	lastCode                   string
}

// Status of one engine, for operators and metrics.
type Status struct {
	Name, Kind, Lane string
	State            string // StateReady, StateDraining or StateSetAside
	Slots            int
	Busy             int    // slots taken
	Late             int    // calls past their timeout whose engine still goes on
	Failures         int    // in a row
	LastErrorCode    string // of the last failure since a success
}

// NewFleet opens the engines of these lanes; a lane without engines adds none.
func NewFleet(cfg Config, lanes []string, open func(Settings) (Engine, error), o FleetOptions) (*Fleet, error) {
	setDefault(&cfg.SetAsideAfter, defaultSetAsideAfter)
	setDefault(&cfg.ProbeEvery, defaultProbeEvery)
	setDefault(&o.BusyRest, 2*time.Second)
	f := &Fleet{o: o, most: cfg.SetAsideAfter, every: cfg.ProbeEvery, waiting: map[string][]chan *Slot{}}
	for _, s := range cfg.ForLanes(lanes).Engines {
		e, err := open(s)
		if err != nil {
			return nil, fmt.Errorf("opening engine %s: %w", s.Name, err)
		}
		f.members = append(f.members, &member{settings: s, engine: e})
	}
	return f, nil
}

// Slots is how many images all engines of the lane can make at once.
func (f *Fleet) Slots(lane string) int {
	n := 0
	for _, m := range f.members {
		if m.settings.Lane == lane {
			n += m.settings.Slots
		}
	}
	return n
}

// ReadySlots is how many of the lane's slots take images, now or once the ones
// they have are done: those of ready engines, without those that an engine keeps
// past its timeout.
func (f *Fleet) ReadySlots(lane string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, m := range f.members {
		if m.settings.Lane == lane && m.state() == StateReady {
			n += m.settings.Slots - m.late
		}
	}
	return n
}

// Status of every engine, in the file's order.
func (f *Fleet) Status() []Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Status, 0, len(f.members))
	for _, m := range f.members {
		all = append(all, Status{
			Name: m.settings.Name, Kind: m.settings.Kind, Lane: m.settings.Lane, State: m.state(),
			Slots: m.settings.Slots, Busy: m.busy, Late: m.late, Failures: m.failures, LastErrorCode: m.lastCode,
		})
	}
	return all
}

// SetDrained replaces the set of drained engines: they get no new calls, and
// what they run finishes. Unknown names mean nothing here.
func (f *Fleet) SetDrained(names map[string]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		m.drained = names[m.settings.Name]
	}
	f.serve()
}

// Run probes the engines that were set aside and takes those back that answer,
// until ctx ends.
func (f *Fleet) Run(ctx context.Context) {
	t := time.NewTicker(f.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f.probe(ctx)
		}
	}
}

func (f *Fleet) probe(ctx context.Context) {
	f.mu.Lock()
	aside := slices.DeleteFunc(slices.Clone(f.members), func(m *member) bool { return !m.aside })
	f.mu.Unlock()
	answers := f.ask(ctx, aside)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range aside {
		if answers[m.settings.Name] != nil {
			continue
		}
		m.aside = false
		// One that answers probes but makes no images costs one image a probe,
		// not another three.
		m.failures = f.most - 1
		m.spoiled = min(m.spoiled, f.most-1)
		f.o.Log.Info("engine taken back", "engine", m.settings.Name)
	}
	f.serve()
}

func (f *Fleet) ask(ctx context.Context, members []*member) map[string]error {
	ctx, stop := context.WithTimeout(ctx, BriefCall)
	defer stop()
	answers := make([]error, len(members))
	var all sync.WaitGroup
	for i, m := range members {
		all.Go(func() { answers[i] = f.check(ctx, m) })
	}
	all.Wait()
	named := make(map[string]error, len(members))
	for i, m := range members {
		named[m.settings.Name] = answers[i]
	}
	return named
}

func (f *Fleet) check(ctx context.Context, m *member) (err error) {
	defer f.recovered(m, &err)
	return m.engine.Check(ctx)
}

// Acquire waits for a free slot of a ready engine of the lane that does not rest,
// first come first served, and takes the least busy one. The caller must Release it. The error is
// ctx's or ErrNoLane.
func (f *Fleet) Acquire(ctx context.Context, lane string) (*Slot, error) {
	if f.Slots(lane) == 0 {
		return nil, ErrNoLane
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	mine := make(chan *Slot, 1)
	f.mu.Lock()
	f.waiting[lane] = append(f.waiting[lane], mine)
	f.serve()
	f.mu.Unlock()
	select {
	case s := <-mine:
		return s, nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting[lane] = slices.DeleteFunc(f.waiting[lane], func(c chan *Slot) bool { return c == mine })
	select {
	case s := <-mine: // given in the same moment
		s.release()
	default:
	}
	return nil, ctx.Err()
}

// serve gives free slots to whoever waits. The caller holds f.mu.
func (f *Fleet) serve() {
	for lane, queue := range f.waiting {
		for len(queue) > 0 {
			m := f.free(lane)
			if m == nil {
				break
			}
			m.busy++
			queue[0] <- &Slot{fleet: f, member: m}
			queue = queue[1:]
		}
		f.waiting[lane] = queue
	}
}

// free is, of the lane's engines that are ready and do not rest, the one with the
// smallest share of its slots taken, and of those the one that fails least; nil
// when all are taken.
func (f *Fleet) free(lane string) *member {
	var best *member
	for _, m := range f.members {
		if m.settings.Lane != lane || m.state() != StateReady || m.resting || m.busy >= m.settings.Slots {
			continue
		}
		if best == nil {
			best = m
			continue
		}
		ours, theirs := m.busy*best.settings.Slots, best.busy*m.settings.Slots
		if ours < theirs || ours == theirs && m.failures+m.spoiled < best.failures+best.spoiled {
			best = m
		}
	}
	return best
}

func (m *member) state() string {
	switch {
	case m.drained:
		return StateDraining
	case m.aside:
		return StateSetAside
	default:
		return StateReady
	}
}

// A Slot is the right to make one image at a time on one engine.
type Slot struct {
	fleet                    *Fleet
	member                   *member
	running, released, freed bool
}

// Timeout is how long one image may take here. An engine that cannot stop may
// keep Generate, and the slot, longer.
func (s *Slot) Timeout() time.Duration { return s.member.settings.Timeout }

// Release gives the slot back and wakes whoever waits for it. While an image is
// being made, the slot is free only when the engine is done with it. Calling it
// again does nothing.
func (s *Slot) Release() {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	s.release()
}

func (s *Slot) release() {
	s.released = true
	if s.freed || s.running {
		return
	}
	s.freed = true
	s.member.busy--
	s.fleet.serve()
}

// Generate makes one image, with r.Served filled in and the prompts free of what
// an engine could read as settings, within the engine's timeout. It returns when
// the engine is free again, which may be long after ctx or the timeout ended. Errors are *Error; those that are the engine's fault
// count towards setting it aside, unless ctx had ended.
func (s *Slot) Generate(ctx context.Context, r Request, progress func(Progress)) ([]byte, error) {
	f, m := s.fleet, s.member
	served, ok := m.settings.Models[r.Model.ID]
	if !ok {
		return nil, NewError(FaultOurs, CodeFailed, 0, nil)
	}
	r.Served = served
	if m.settings.Kind != KindIllustrator {
		r.Prompt, r.NegativePrompt = plain(r.Prompt), plain(r.NegativePrompt)
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	if !s.start() {
		return nil, NewError(FaultOurs, CodeFailed, 0, nil)
	}
	late, done := false, false
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		s.running, done = false, true
		if late {
			m.late--
		}
		if s.released {
			s.release()
		}
	}()
	// A tenth more, for the adapter to stop the engine in.
	overdue := time.AfterFunc(m.settings.Timeout+m.settings.Timeout/10, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !done {
			late = true
			m.late++
			f.o.Log.Warn("engine goes on past its timeout; its slot stays taken", "engine", m.settings.Name)
		}
	})
	defer overdue.Stop()

	call, stop := context.WithTimeout(ctx, m.settings.Timeout)
	defer stop()
	image, err := f.call(call, m, r, progress)
	if err == nil {
		f.succeeded(m)
		return image, nil
	}
	e := f.judge(ctx, call, m, err)
	switch {
	case e.Code == CodeBusy:
		f.rest(m, e.RetryAfter)
	case e.Fault == FaultEngine && ctx.Err() == nil:
		f.failed(m, e.Code)
	}
	return nil, e
}

// Report says whether what Generate returned was a whole picture, which only
// decoding shows, after the slot is free again. An engine that sends broken ones
// fails quickly and would otherwise draw all work to itself.
func (s *Slot) Report(whole bool) {
	f, m := s.fleet, s.member
	f.mu.Lock()
	defer f.mu.Unlock()
	if whole {
		m.spoiled = 0
		return
	}
	m.spoiled++
	m.lastCode = CodeBadImage
	f.setAside(m, m.spoiled)
}

func (s *Slot) start() bool {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	if s.running || s.released {
		return false
	}
	s.running = true
	return true
}

func (f *Fleet) call(ctx context.Context, m *member, r Request, progress func(Progress)) (image []byte, err error) {
	defer f.recovered(m, &err)
	return m.engine.Generate(ctx, r, progress)
}

// judge says whose fault err really is.
func (f *Fleet) judge(ctx, call context.Context, m *member, err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
	case call.Err() != nil:
		e = ContextError(call)
	default:
		e = NewError(FaultOurs, CodeFailed, 0, nil) // whatever it says may quote the prompt
	}
	if ctx.Err() != nil && e.Code == CodeTimeout {
		return NewError(FaultOurs, CodeCanceled, 0, ctx.Err()) // the caller's deadline, not the engine's
	}
	// An engine that was restarted with another model says that every request
	// is wrong.
	if e.Code == CodeInvalid && ctx.Err() == nil {
		brief, stop := context.WithTimeout(ctx, BriefCall)
		defer stop()
		if f.check(brief, m) != nil && ctx.Err() == nil {
			return NewError(FaultEngine, CodeFailed, e.Status, nil)
		}
	}
	return e
}

func (f *Fleet) succeeded(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.failures, m.full, m.lastCode = 0, 0, ""
}

func (f *Fleet) restOf(asked time.Duration, before int) time.Duration {
	if asked <= 0 {
		asked = f.o.BusyRest << min(before, 10)
	}
	return min(asked, longestRest)
}

// rest gives out no slot of an engine that has no room, for as long as it asks
// for: each job of the lane would be claimed to learn the same.
func (f *Fleet) rest(m *member, asked time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.lastCode = CodeBusy
	if m.resting {
		return // another of its slots heard it first
	}
	rest := f.restOf(asked, m.full)
	if m.full++; m.full == 1 {
		f.o.Log.Info("engine has no room", "engine", m.settings.Name)
	}
	m.resting = true
	time.AfterFunc(rest, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		m.resting = false
		f.serve()
	})
}

func (f *Fleet) failed(m *member, code string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.failures++
	m.full, m.lastCode = 0, code
	f.setAside(m, m.failures)
}

// setAside stops an engine that failed too often in a row. The caller holds f.mu.
func (f *Fleet) setAside(m *member, failures int) {
	if failures >= f.most && !m.aside {
		m.aside = true
		f.o.Log.Warn("engine set aside", "engine", m.settings.Name, "failures", failures, "code", m.lastCode)
	}
}

// recovered turns a panic of an adapter into our error. The value of a panic may
// hold the prompt; its type and the frames don't.
func (f *Fleet) recovered(m *member, err *error) {
	v := recover()
	if v == nil {
		return
	}
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var where strings.Builder
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		fmt.Fprintf(&where, "%s:%d ", frame.Function, frame.Line)
	}
	f.o.Log.Error("engine adapter panicked", "engine", m.settings.Name, "type", fmt.Sprintf("%T", v), "frames", where.String())
	*err = NewError(FaultOurs, CodeFailed, 0, nil)
}
