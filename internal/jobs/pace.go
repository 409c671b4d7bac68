package jobs

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

const (
	// paceShare of the time is what background work takes at first: so little that of
	// those who wait for an answer few meet it.
	paceShare = 1.0 / 100
	// paceTime is when all of the time is taken, at the latest. The share grows by the
	// same factor in each minute until then, so that work of every size is done with as
	// little of the machine as it can be.
	paceTime = 20 * time.Minute
	// paceRest bounds one rest: a piece that waited long for a store was no load.
	paceRest = 10 * time.Second
	// paceMost of a queue's jobs rest at a time: they keep their slots, which others wait for.
	paceMost = 4
	// paceFree pieces are done without rests: little work is soon done, and then over.
	paceFree = 5
)

// A Pace leaves the machine to those who wait for an answer while work is done that
// has hours: between two pieces, which must be small, it rests for much longer than
// they take, and for less the longer the work lasts. The zero value is ready; a nil
// Pace never rests. It is for one goroutine.
type Pace struct {
	first, last time.Time     // when the first and the last piece began
	used        time.Duration // of the time, before the first
	pieces      int
	resting     *atomic.Int64 // those of the queue; nil: nobody else
}

// PaceOf is the pace of a job, which counts from when the job was added: one that waited
// long, or was broken off, has less time left.
func (q *Queue) PaceOf(j Job) *Pace {
	return &Pace{used: time.Duration(max(q.clock.Millis()-j.CreatedAt, 0)) * time.Millisecond, resting: &q.resting}
}

// Next is called before each piece. It returns after the rest behind the piece before,
// with the context's error if that ends meanwhile.
func (p *Pace) Next(ctx context.Context) error {
	if p == nil {
		return ctx.Err()
	}
	now := time.Now()
	if p.pieces == 0 {
		p.first = now
	}
	p.pieces++
	if rest := p.rest(now); p.pieces > paceFree && rest > 0 && p.enter() {
		defer p.leave()
		t := time.NewTimer(rest)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	p.last = time.Now()
	return ctx.Err()
}

// Over reports whether it rests no more: pieces may be larger then.
func (p *Pace) Over() bool { return p == nil || p.left(time.Now()) <= 0 }

// left is how much there is of its time, from 1 to 0 and below.
func (p *Pace) left(now time.Time) float64 {
	used := p.used
	if p.pieces > 0 {
		used += now.Sub(p.first)
	}
	return 1 - float64(used)/float64(paceTime)
}

func (p *Pace) rest(now time.Time) time.Duration {
	took, left := float64(now.Sub(p.last)), max(p.left(now), 0)
	return min(time.Duration(took*(math.Pow(paceShare, -left)-1)), paceRest)
}

func (p *Pace) enter() bool {
	if p.resting == nil {
		return true
	}
	room := p.resting.Add(1) <= paceMost
	if !room {
		p.resting.Add(-1)
	}
	return room
}

func (p *Pace) leave() {
	if p.resting != nil {
		p.resting.Add(-1)
	}
}
