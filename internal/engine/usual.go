package engine

import (
	"sync"
	"time"
)

// newest is the weight of the newest time in a moving average: the last ten or
// so images decide, and one that was slow does not.
const newest = 0.2

// Usual is how long the images of each model usually take on one engine, per
// unit of cost. Its zero value knows nothing yet.
type Usual struct {
	mu      sync.Mutex
	perUnit map[string]float64 // milliseconds per unit, by model id
}

// Cost of one image: steps × megapixels.
func Cost(steps, width, height int) float64 {
	return float64(steps) * float64(width) * float64(height) / 1e6
}

// Learn takes the time that r took into the average.
func (u *Usual) Learn(r Request, took time.Duration) {
	cost := Cost(r.Steps, r.Width, r.Height)
	if cost <= 0 || took <= 0 {
		return
	}
	now := float64(took) / float64(time.Millisecond) / cost
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.perUnit == nil {
		u.perUnit = map[string]float64{}
	}
	if before, ok := u.perUnit[r.Model.ID]; ok {
		now = newest*now + (1-newest)*before
	}
	u.perUnit[r.Model.ID] = now
}

// Of is the time that r should take; 0 when nothing is known of its model.
func (u *Usual) Of(r Request) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	return time.Duration(u.perUnit[r.Model.ID] * Cost(r.Steps, r.Width, r.Height) * float64(time.Millisecond))
}

// Watch tells estimated progress from now on, for engines that tell no steps.
// It never tells the last step: that is the image itself. While nothing is
// known of the model, it tells step 0 alone. After stop returns, progress, which
// may be nil, is not called again.
func (u *Usual) Watch(r Request, progress func(Progress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	progress(Progress{Steps: r.Steps, Estimated: true})
	step := u.Of(r) / time.Duration(max(r.Steps, 1))
	if step <= 0 {
		return func() {}
	}
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(max(step, time.Millisecond))
		defer t.Stop()
		for k := 1; k < r.Steps; k++ {
			select {
			case <-stopped:
				return
			case <-t.C:
				progress(Progress{Step: k, Steps: r.Steps, Estimated: true})
			}
		}
	}()
	return sync.OnceFunc(func() { close(stopped); <-ended })
}
