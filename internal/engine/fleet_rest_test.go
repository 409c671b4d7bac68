package engine

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An engine without room turns down one image and then rests; it has not failed.
func TestAFullEngineRestsUntilTheNextProbe(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	full := scripted{generate: func(context.Context, Request, func(Progress)) ([]byte, error) {
		calls.Add(1)
		return nil, NewError(FaultOurs, CodeBusy, 429, nil)
	}}
	f, log := fleet(t, map[string]scripted{"a": full}, settings("a", 4))
	s := acquire(t, f)
	if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); CodeOf(err) != CodeBusy {
		t.Fatal(err)
	}
	s.Release()
	soon, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := f.Acquire(soon, "gpu"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a full engine is given out: %v", err)
	}
	if got := f.Status()[0]; got.State != StateSetAside || got.Failures != 0 || got.LastErrorCode != CodeBusy {
		t.Errorf("it is %+v", got)
	}
	f.probe(t.Context())
	acquire(t, f).Release()
	if got := f.Status()[0]; got.State != StateReady || got.Failures != 0 {
		t.Errorf("after the probe it is %+v", got)
	}
	if calls.Load() != 1 || strings.Contains(log.String(), "level=WARN") {
		t.Errorf("%d calls; log %s", calls.Load(), log.String())
	}
}

// Broken pixels behind a good header show only when the picture is decoded.
func TestAnEngineOfBrokenPicturesIsSetAside(t *testing.T) {
	t.Parallel()
	f, _ := fleet(t, map[string]scripted{"a": {}, "b": {}}, settings("a", 1), settings("b", 1))
	spoil := func() string {
		s := acquire(t, f)
		defer s.Release()
		if _, err := s.Generate(t.Context(), Request{Model: painter}, nil); err != nil {
			t.Fatal(err)
		}
		s.Report(s.member.settings.Name == "b")
		return s.member.settings.Name
	}
	if first, second := spoil(), spoil(); first != "a" || second != "b" {
		t.Errorf("given out %s, then %s: the one that spoils less goes first", first, second)
	}
	for range 2 {
		s := &Slot{fleet: f, member: f.members[0]}
		s.Report(false)
	}
	if got := f.Status()[0]; got.State != StateSetAside || got.LastErrorCode != CodeBadImage {
		t.Errorf("it is %+v", got)
	}
	f.probe(t.Context())
	(&Slot{fleet: f, member: f.members[0]}).Report(true)
	if got := f.members[0]; got.aside || got.spoiled != 0 {
		t.Errorf("after a whole picture: %+v", got)
	}
}
