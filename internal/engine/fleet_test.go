package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/testenv"
)

// scripted is an engine that does as a test says.
type scripted struct {
	generate func(context.Context, Request, func(Progress)) ([]byte, error)
	check    func(context.Context) error
}

func (s scripted) Generate(ctx context.Context, r Request, p func(Progress)) ([]byte, error) {
	if s.generate == nil {
		return []byte("image"), nil
	}
	return s.generate(ctx, r, p)
}

func (s scripted) Check(ctx context.Context) error {
	if s.check == nil {
		return nil
	}
	return s.check(ctx)
}

var painter = Model{ID: "z", Lane: "gpu", DefaultSteps: 8}

func settings(name string, slots int) Settings {
	return Settings{Name: name, Lane: "gpu", Slots: slots, Timeout: time.Minute, Models: map[string]Served{"z": {Upstream: name + "-z"}}}
}

func fleet(t *testing.T, engines map[string]scripted, all ...Settings) (*Fleet, *testenv.Lines) {
	t.Helper()
	out := &testenv.Lines{}
	f, err := NewFleet(Config{ProbeEvery: 5 * time.Millisecond, Engines: all, Models: []Model{painter}}, []string{"gpu"},
		func(s Settings) (Engine, error) { return engines[s.Name], nil },
		FleetOptions{Clock: clock.New(), Log: slog.New(slog.NewTextHandler(out, nil)), BusyRest: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return f, out
}

func acquire(t *testing.T, f *Fleet) *Slot {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	s, err := f.Acquire(ctx, "gpu")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func (f *Fleet) queued(lane string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.waiting[lane])
}

func TestFleetTakesTheLeastBusyEngine(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, nil, settings("small", 1), settings("large", 3))
	if got := f.Slots("gpu"); got != 4 {
		t.Errorf("%d slots", got)
	}
	var got []string
	var slots []*Slot
	for range 4 {
		s := acquire(t, f)
		slots = append(slots, s)
		got = append(got, s.member.settings.Name)
	}
	if want := "[small large large large]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := f.Acquire(short, "gpu"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fifth of four slots: %v", err)
	}
	if f.queued("gpu") != 0 {
		t.Error("who gave up still waits")
	}
	slots[2].Release()
	slots[2].Release()
	if s := acquire(t, f); s.member.settings.Name != "large" {
		t.Errorf("freed large, got %s", s.member.settings.Name)
	}
	for _, s := range f.Status() {
		if s.Busy != s.Slots {
			t.Errorf("released twice counts twice: %+v", s)
		}
	}
	if _, err := f.Acquire(t.Context(), "mail"); !errors.Is(err, ErrNoLane) {
		t.Errorf("lane without engines: %v", err)
	}
}

func TestFleetServesFirstComeFirst(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, nil, settings("one", 1))
	held := acquire(t, f)
	order := make(chan int, 5)
	var all sync.WaitGroup
	for i := range 5 {
		all.Go(func() {
			s, err := f.Acquire(t.Context(), "gpu")
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			s.Release()
		})
		eventually(t, "waiter in the queue", func() bool { return f.queued("gpu") == i+1 })
	}
	held.Release()
	all.Wait()
	for want := range 5 {
		if got := <-order; got != want {
			t.Fatalf("waiter %d came before %d", got, want)
		}
	}
}

func TestFleetLosesNoSlotToThoseWhoGiveUp(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, nil, settings("a", 2), settings("b", 1))
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			ctx, stop := context.WithTimeout(t.Context(), time.Duration(i%7)*100*time.Microsecond)
			defer stop()
			if s, err := f.Acquire(ctx, "gpu"); err == nil {
				_, _ = s.Generate(ctx, Request{Model: painter}, nil)
				s.Release()
			}
		})
	}
	all.Wait()
	for _, s := range f.Status() {
		if s.Busy != 0 {
			t.Errorf("%s still has %d busy", s.Name, s.Busy)
		}
	}
	if f.queued("gpu") != 0 {
		t.Error("somebody still waits")
	}
}

func TestGenerateFillsServed(t *testing.T) {
	t.Parallel()
	var seen Request
	f, _ := fleet(t, map[string]scripted{"one": {generate: func(ctx context.Context, r Request, p func(Progress)) ([]byte, error) {
		seen = r
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > time.Minute {
			t.Error("no timeout for the image")
		}
		p(Progress{Step: 1})
		return []byte("image"), nil
	}}}, settings("one", 1))
	s := acquire(t, f)
	r := Request{Model: painter, Steps: 8, Width: 1000, Height: 500}
	if image, err := s.Generate(t.Context(), r, nil); err != nil || string(image) != "image" {
		t.Fatalf("%q, %v", image, err)
	}
	if seen.Served.Upstream != "one-z" {
		t.Errorf("served %+v", seen.Served)
	}
	if _, err := s.Generate(t.Context(), Request{Model: Model{ID: "other"}}, nil); FaultOf(err) != FaultOurs {
		t.Errorf("a model that the engine does not serve: %v", err)
	}
	s.Release()
	if _, err := s.Generate(t.Context(), r, nil); FaultOf(err) != FaultOurs || CodeOf(err) != CodeFailed {
		t.Errorf("after release: %v", err)
	}
}

func TestReleaseDuringAnImageFreesTheSlotAfterIt(t *testing.T) {
	t.Parallel()
	started, finish := make(chan struct{}), make(chan struct{})
	f, _ := fleet(t, map[string]scripted{"one": {generate: func(context.Context, Request, func(Progress)) ([]byte, error) {
		close(started)
		<-finish
		return []byte("image"), nil
	}}}, settings("one", 1))
	s := acquire(t, f)
	ended := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := s.Generate(ctx, Request{Model: painter}, nil)
		ended <- err
	}()
	<-started
	if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); CodeOf(err) != CodeFailed {
		t.Errorf("two images in one slot: %v", err)
	}
	cancel() // the engine cannot stop
	s.Release()
	if got := f.Status()[0].Busy; got != 1 {
		t.Errorf("busy %d while the engine goes on", got)
	}
	close(finish)
	if err := <-ended; err != nil {
		t.Errorf("the engine went on to its end: %v", err)
	}
	acquire(t, f).Release()
}

func TestFailuresSetAnEngineAsideAndProbesTakeItBack(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	broken := true
	state := func() bool { mu.Lock(); defer mu.Unlock(); return broken }
	probes := 0
	f, out := fleet(t, map[string]scripted{
		"bad": {
			generate: func(context.Context, Request, func(Progress)) ([]byte, error) {
				return nil, NewError(FaultEngine, CodeFailed, 500, nil)
			},
			check: func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				probes++
				if broken {
					return NewError(FaultEngine, CodeUnreachable, 0, nil)
				}
				return nil
			},
		},
	}, settings("bad", 1))
	s := acquire(t, f)
	for i := range 3 {
		if got := f.Status()[0]; got.State != StateReady || got.Failures != i || f.ReadySlots("gpu") != 1 {
			t.Fatalf("before failure %d: %+v", i+1, got)
		}
		if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); CodeOf(err) != CodeFailed {
			t.Fatal(err)
		}
	}
	if got := f.Status()[0]; got.State != StateSetAside || got.LastErrorCode != CodeFailed || f.ReadySlots("gpu") != 0 {
		t.Fatalf("after three failures: %+v", got)
	}
	s.Release()
	got := make(chan *Slot)
	go func() {
		s, err := f.Acquire(t.Context(), "gpu")
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { f.Run(ctx); close(ran) }()
	eventually(t, "two probes", func() bool { mu.Lock(); defer mu.Unlock(); return probes >= 2 })
	if f.queued("gpu") != 1 || !state() {
		t.Error("an engine that does not answer was taken back")
	}
	mu.Lock()
	broken = false
	mu.Unlock()
	s = <-got
	if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); err == nil || f.Status()[0].State != StateSetAside {
		t.Error("one that answers but still fails is set aside again at once")
	}
	stop()
	<-ran
	if log := out.String(); !strings.Contains(log, "engine set aside") || !strings.Contains(log, "engine taken back") {
		t.Errorf("log: %s", log)
	}
}

// The operator's number of failures, not ours.
func TestTheOperatorSaysWhenAnEngineIsSetAside(t *testing.T) {
	t.Parallel()
	for _, most := range []int{1, 5} {
		f, err := NewFleet(Config{SetAsideAfter: most, Engines: []Settings{settings("bad", 1)}, Models: []Model{painter}}, []string{"gpu"},
			func(Settings) (Engine, error) {
				return scripted{generate: func(context.Context, Request, func(Progress)) ([]byte, error) {
					return nil, NewError(FaultEngine, CodeFailed, 500, nil)
				}}, nil
			}, FleetOptions{Clock: clock.New(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		s := acquire(t, f)
		for n := range most {
			if f.Status()[0].State != StateReady {
				t.Errorf("set aside after %d failures, want %d", n, most)
			}
			_, _ = s.Generate(t.Context(), Request{Model: painter}, nil)
		}
		if f.Status()[0].State != StateSetAside {
			t.Errorf("not set aside after %d failures", most)
		}
		f.probe(t.Context())
		if got := f.Status()[0]; got.State != StateReady || got.Failures != most-1 {
			t.Errorf("taken back as %+v", got)
		}
	}
}

// An engine without room is left alone for as long as it says, and its lane counts
// as served all the same.
func TestAnEngineWithoutRoomRests(t *testing.T) {
	t.Parallel()
	const asked = 300 * time.Millisecond
	var mu sync.Mutex
	var calls []time.Time
	f, out := fleet(t, map[string]scripted{"full": {generate: func(context.Context, Request, func(Progress)) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if calls = append(calls, time.Now()); len(calls) > 2 {
			return []byte("image"), nil
		}
		e := NewError(FaultOurs, CodeBusy, 429, nil)
		e.RetryAfter = asked
		return nil, e
	}}}, settings("full", 2))
	first, second := acquire(t, f), acquire(t, f)
	for _, s := range []*Slot{first, second} {
		if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); CodeOf(err) != CodeBusy {
			t.Fatal(err)
		}
		s.Release()
	}
	if got := f.Status()[0]; got.State != StateReady || got.Busy != 0 || got.Failures != 0 || got.LastErrorCode != CodeBusy || f.ReadySlots("gpu") != 2 {
		t.Errorf("%+v, %d ready", got, f.ReadySlots("gpu"))
	}
	s := acquire(t, f)
	if rested := time.Since(calls[0]); rested < asked {
		t.Errorf("asked again after %v", rested)
	}
	if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); err != nil {
		t.Fatal(err)
	}
	s.Release()
	acquire(t, f).Release()
	if got := f.Status()[0]; got.LastErrorCode != "" {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(out.String(), "engine has no room"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestTheRestOfABusyEngineGrowsAndIsBounded(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, nil, settings("full", 1), settings("other", 1))
	m := f.members[0]
	if s := acquire(t, f); s.member != m {
		t.Fatal("another engine came first")
	} else {
		s.Release()
	}
	m.full = 60 // of a long night
	f.rest(m, 0)
	f.rest(m, 24*time.Hour) // another slot's: it changes nothing
	if s := acquire(t, f); s.member.settings.Name != "other" {
		t.Error("a slot of the engine that rests was given out")
	}
	if m.full != 61 {
		t.Errorf("counted %d", m.full)
	}
	for _, tt := range []struct {
		asked time.Duration
		full  int
		want  time.Duration
	}{
		{0, 0, 5 * time.Millisecond}, {0, 3, 40 * time.Millisecond}, {0, 1000, 5 * time.Millisecond << 10},
		{-time.Second, 0, 5 * time.Millisecond}, {7 * time.Second, 9, 7 * time.Second}, {24 * time.Hour, 0, longestRest},
	} {
		if got := f.restOf(tt.asked, tt.full); got != tt.want {
			t.Errorf("asked for %v after %d: %v, want %v", tt.asked, tt.full, got, tt.want)
		}
	}
}

func TestWhoseFailuresCount(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name  string
		ctx   context.Context
		give  error
		check error
		want  Error
		count int
	}{
		{"engine", t.Context(), NewError(FaultEngine, CodeTimeout, 0, nil), nil, Error{Fault: FaultEngine, Code: CodeTimeout}, 1},
		{"user", t.Context(), NewError(FaultUser, CodeRefused, 400, nil), nil, Error{Fault: FaultUser, Code: CodeRefused}, 0},
		{"invalid", t.Context(), NewError(FaultUser, CodeInvalid, 400, nil), nil, Error{Fault: FaultUser, Code: CodeInvalid}, 0},
		{"invalid, and the engine lost its model", t.Context(), NewError(FaultUser, CodeInvalid, 400, nil), errors.New("no model"), Error{Fault: FaultEngine, Code: CodeFailed}, 1},
		{"ours", t.Context(), NewError(FaultOurs, CodeBusy, 429, nil), nil, Error{Fault: FaultOurs, Code: CodeBusy}, 0},
		{"some other error", t.Context(), errors.New("a secret prompt"), nil, Error{Fault: FaultOurs, Code: CodeFailed}, 0},
		{"engine after cancel", canceled, NewError(FaultEngine, CodeUnreachable, 0, nil), nil, Error{Fault: FaultEngine, Code: CodeUnreachable}, 0},
		{"raw cancel", canceled, context.Canceled, nil, Error{Fault: FaultOurs, Code: CodeCanceled}, 0},
		{"timeout after cancel", canceled, NewError(FaultEngine, CodeTimeout, 0, nil), nil, Error{Fault: FaultOurs, Code: CodeCanceled}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f, _ := fleet(t, map[string]scripted{"one": {
				generate: func(context.Context, Request, func(Progress)) ([]byte, error) { return nil, tt.give },
				check:    func(context.Context) error { return tt.check },
			}}, settings("one", 1))
			_, err := acquire(t, f).Generate(tt.ctx, Request{Model: painter}, nil)
			if FaultOf(err) != tt.want.Fault || CodeOf(err) != tt.want.Code || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want %v", err, &tt.want)
			}
			if got := f.Status()[0].Failures; got != tt.count {
				t.Errorf("%d failures, want %d", got, tt.count)
			}
		})
	}
}

func TestSuccessEndsTheRowOfFailures(t *testing.T) {
	t.Parallel()
	n := 0
	f, _ := fleet(t, map[string]scripted{"one": {generate: func(context.Context, Request, func(Progress)) ([]byte, error) {
		if n++; n%3 == 0 {
			return []byte("image"), nil
		}
		return nil, NewError(FaultEngine, CodeFailed, 500, nil)
	}}}, settings("one", 1))
	s := acquire(t, f)
	for range 12 {
		_, _ = s.Generate(t.Context(), Request{Model: painter}, nil)
	}
	if got := f.Status()[0]; got.State != StateReady || got.Failures != 0 || got.LastErrorCode != "" {
		t.Errorf("two failures at a time: %+v", got)
	}
}

func TestDrainedEnginesGetNoNewCalls(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, nil, settings("a", 1), settings("b", 1))
	a := acquire(t, f)
	f.SetDrained(map[string]bool{"a": true, "b": true, "unknown": true})
	if f.ReadySlots("gpu") != 0 || f.Status()[0].State != StateDraining {
		t.Errorf("%+v", f.Status())
	}
	if _, err := a.Generate(t.Context(), Request{Model: painter}, nil); err != nil {
		t.Errorf("what runs must finish: %v", err)
	}
	got := make(chan *Slot, 1)
	go func() {
		s, err := f.Acquire(t.Context(), "gpu")
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	eventually(t, "waiter", func() bool { return f.queued("gpu") == 1 })
	a.Release()
	if f.queued("gpu") != 1 {
		t.Error("a drained engine took a call")
	}
	f.SetDrained(map[string]bool{"a": true})
	if s := <-got; s.member.settings.Name != "b" {
		t.Errorf("got %s", s.member.settings.Name)
	}
}

func TestPanicsAndLateEngines(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	late := settings("late", 1)
	late.Timeout = 20 * time.Millisecond
	f, out := fleet(t, map[string]scripted{"late": {generate: func(ctx context.Context, r Request, _ func(Progress)) ([]byte, error) {
		if r.Prompt != "" {
			panic(r.Prompt)
		}
		<-finish
		return nil, ContextError(ctx)
	}}}, late)
	s := acquire(t, f)
	if _, err := s.Generate(t.Context(), Request{Model: painter, Prompt: "a secret prompt"}, nil); FaultOf(err) != FaultOurs || CodeOf(err) != CodeFailed {
		t.Errorf("panic: %v", err)
	}
	if log := out.String(); !strings.Contains(log, "panicked") || !strings.Contains(log, "fleet_test") && !strings.Contains(log, "TestPanics") || strings.Contains(log, "secret") {
		t.Errorf("log: %s", log)
	}
	ended := make(chan error)
	go func() {
		_, err := s.Generate(t.Context(), Request{Model: painter}, nil)
		ended <- err
	}()
	eventually(t, "the engine is late", func() bool { return f.Status()[0].Late == 1 })
	if f.ReadySlots("gpu") != 0 || f.Status()[0].Busy != 1 {
		t.Error("a lane whose only engine hangs is not ready")
	}
	close(finish)
	if err := <-ended; CodeOf(err) != CodeTimeout || f.Status()[0].Late != 0 || f.Status()[0].Failures != 1 {
		t.Errorf("%v, %+v", err, f.Status()[0])
	}
}

// A hung image takes its own slot from the lane, and no more.
func TestReadySlotsWithoutTheLate(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	hangs := settings("hangs", 3)
	hangs.Timeout = 20 * time.Millisecond
	f, _ := fleet(t, map[string]scripted{"hangs": {generate: func(ctx context.Context, r Request, _ func(Progress)) ([]byte, error) {
		if r.Prompt == "hang" {
			<-finish
		}
		return nil, nil
	}}}, hangs, settings("other", 2))
	if got := f.ReadySlots("gpu"); got != 5 {
		t.Errorf("%d ready, want 5", got)
	}
	if got := f.ReadySlots("mail"); got != 0 {
		t.Errorf("%d ready in a lane without engines", got)
	}
	s := acquire(t, f) // of the first engine, as all are free
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = s.Generate(t.Context(), Request{Model: painter, Prompt: "hang"}, nil)
	}()
	eventually(t, "the engine is late", func() bool { return f.ReadySlots("gpu") == 4 })
	f.SetDrained(map[string]bool{"other": true})
	if got := f.ReadySlots("gpu"); got != 2 {
		t.Errorf("%d ready beside a drained engine, want 2", got)
	}
	close(finish)
	<-ended
	if got := f.ReadySlots("gpu"); got != 3 {
		t.Errorf("%d ready when the engine is done, want 3", got)
	}
}

func TestFleetAsksEveryEngineAndRefusesWhatCannotOpen(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, map[string]scripted{
		"bad":    {check: func(context.Context) error { return NewError(FaultEngine, CodeUnreachable, 0, nil) }},
		"panics": {check: func(context.Context) error { panic("no") }},
	}, settings("good", 1), settings("bad", 1), settings("panics", 1))
	got := f.ask(t.Context(), f.members)
	if len(got) != 3 || got["good"] != nil || CodeOf(got["bad"]) != CodeUnreachable || FaultOf(got["panics"]) != FaultOurs {
		t.Errorf("%v", got)
	}
	_, err := NewFleet(Config{Engines: []Settings{settings("gpu1", 1)}}, []string{"gpu"}, func(Settings) (Engine, error) { return nil, errors.New("no file") }, FleetOptions{Clock: clock.New(), Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "gpu1") {
		t.Errorf("%v", err)
	}
}

func TestUsualEstimatesProgress(t *testing.T) {
	t.Parallel()
	var u Usual
	r := Request{Model: painter, Steps: 4, Width: 1000, Height: 1000}
	var mu sync.Mutex
	var seen []Progress
	note := func(p Progress) { mu.Lock(); defer mu.Unlock(); seen = append(seen, p) }
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
	u.Watch(r, nil)()
	u.Watch(r, note)()
	if len(seen) != 1 || seen[0] != (Progress{Steps: 4, Estimated: true}) {
		t.Fatalf("without knowledge: %v", seen)
	}
	u.Learn(r, 40*time.Millisecond)
	u.Learn(r, -time.Second) // a clock that was set back teaches nothing
	if got := u.Of(r); got != 40*time.Millisecond {
		t.Fatalf("should take %v", got)
	}
	seen = nil
	stop := u.Watch(r, note)
	eventually(t, "three steps", func() bool { return count() == 4 })
	stop()
	for i, p := range seen {
		if p != (Progress{Step: i, Steps: 4, Estimated: true}) {
			t.Errorf("%d: %+v", i, p)
		}
	}
}
