package jobs

import (
	"context"
	"time"
)

const (
	// paceShare of the time is what background work takes: less than a twentieth, so that
	// few of those who wait for an answer meet it.
	paceShare = 1.0 / 30
	// pacePatience is how long it keeps to that. What is more than fits in must also
	// be done in time.
	pacePatience = 2 * time.Minute
	// paceRest bounds one rest: a piece that waited long for a store was no load.
	paceRest = 2 * time.Second
)

// A Pace leaves the machine to those who wait for an answer while work is done that
// has hours: between two pieces, which must be small, it rests for much longer than
// they take. The zero value is ready; a nil Pace never rests. It is for one goroutine.
type Pace struct {
	first, last time.Time // when the first and the last piece began
}

// Next is called before each piece. It returns after the rest behind the piece before,
// with the context's error if that ends meanwhile.
func (p *Pace) Next(ctx context.Context) error {
	if p == nil {
		return ctx.Err()
	}
	now := time.Now()
	if p.first.IsZero() {
		p.first = now
	} else if now.Sub(p.first) < pacePatience {
		took := float64(now.Sub(p.last))
		t := time.NewTimer(min(time.Duration(took/paceShare-took), paceRest))
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	p.last = time.Now()
	return ctx.Err()
}
