package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"zimage/internal/e2e/proxy"
)

// Results that cannot be stored wait in a bounded place, without a slot: the
// engine makes others meanwhile, until that place is full.
func TestObjectsNotTaken(t *testing.T) {
	t.Parallel()
	o := Options{Slots: 4}
	p := beforeObjects(t, &o)
	s := serve(t, o)
	const room = 3*4 + 2 // in each worker, by its slots
	uploads := proxy.Stores("/")
	for _, day := range []struct {
		name  string
		begin func() *proxy.Fault
	}{
		{"503", func() *proxy.Fault {
			return (*p).Fail(-1, uploads, http.StatusServiceUnavailable, "ServiceUnavailable")
		}},
		{"full", func() *proxy.Fault {
			return (*p).Fail(-1, uploads, http.StatusInsufficientStorage, "XMinioStorageFull")
		}},
		{"away", func() *proxy.Fault { return (*p).Away(-1, proxy.Any) }},
	} {
		before := len(s.Engine.Calls(""))
		fault := day.begin()
		s.accept(day.name, inFlight+10)
		for _, w := range s.workers {
			says(t, w, http.StatusOK, fmt.Sprintf("%d wait in memory to be stored", room))
			says(t, w, http.StatusOK, "does not take objects")
		}
		if n := len(s.Engine.Calls("")) - before; n != 2*room {
			t.Errorf("%s: the engine made %d images, want %d: as many as find room", day.name, n, 2*room)
		}
		if fault.Struck() < 2*room {
			t.Errorf("%s: only %d requests met the fault", day.name, fault.Struck())
		}
		fault.End()
		until(t, time.Minute, day.name+" is over and all is stored", func() bool { return s.finished() == len(s.accepts) })
		for _, w := range s.workers {
			says(t, w, http.StatusOK, `"state":"ready","parts"`)
		}
	}
	s.conclude()
}

// The engine goes on while objects are slow, and an upload whose answer was lost
// is recognised as our own.
func TestObjectsSlowAndReset(t *testing.T) {
	t.Parallel()
	o := Options{Slots: 1}
	p := beforeObjects(t, &o)
	s := serve(t, o)
	slow := (*p).Slow(-1, proxy.Stores("/images/"), 2*time.Second)
	s.accept("slow", inFlight)
	until(t, time.Minute, "the next call comes before the last result is stored", func() bool {
		finished := s.finished()
		return len(s.Engine.Calls("")) > finished+len(s.workers)
	})
	slow.End()
	until(t, time.Minute, "all is stored", func() bool { return s.finished() == len(s.accepts) })

	pictures, thumbnails := (*p).CutReply(6, proxy.Stores(".img")), (*p).CutReply(6, proxy.Stores(".thumb"))
	s.accept("reset", inFlight)
	s.conclude()
	if slow.Struck() == 0 || pictures.Struck() != 6 || thumbnails.Struck() != 6 {
		t.Errorf("%d uploads were slow, %d and %d lost their answer", slow.Struck(), pictures.Struck(), thumbnails.Struck())
	}
}
