package httpapi

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// However many look, one asks; the others take what was last known, and only the
// first of all wait for it.
func TestWhatIsKeptIsAskedForOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	began, goOn := make(chan struct{}, 100), make(chan struct{})
	k := &kept[int64]{life: time.Hour, ask: func(ctx context.Context) int64 {
		n := asked.Add(1)
		began <- struct{}{}
		<-goOn
		if ctx.Err() != nil {
			t.Error("it asks for somebody who has gone")
		}
		return n
	}}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if got := k.get(gone); got != 1 {
				t.Errorf("got %d", got)
			}
		})
	}
	<-began
	goOn <- struct{}{}
	all.Wait()
	if asked.Load() != 1 {
		t.Fatalf("asked %d times at the beginning", asked.Load())
	}

	k.life = 0 // what it was is too old from now on
	all.Go(func() {
		if got := k.get(t.Context()); got != 2 {
			t.Errorf("who asks gets %d", got)
		}
	})
	<-began
	for range 50 {
		if got := k.get(t.Context()); got != 1 { // and waits for nobody
			t.Errorf("beside who asks: %d", got)
		}
	}
	goOn <- struct{}{}
	all.Wait()
	if asked.Load() != 2 {
		t.Errorf("asked %d times", asked.Load())
	}
}
