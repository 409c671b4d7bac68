// Package clock is the time everybody uses: this machine's monotonic time plus
// the measured offset to the database, so that workers whose wall clocks
// disagree still agree with each other. No SQL calls now().
//
// A test makes a Manual clock and moves it; it can live through 800 days.
package clock

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"
)

// skewSeconds moves this process's idea of its own wall clock. It is empty
// except in binaries that the fault matrix links with another value; no setting
// reaches it.
var skewSeconds string

const (
	// syncTimeout bounds one question, so that a database that hangs is asked again.
	syncTimeout = 5 * time.Second
	// maxRoundTrip is the slowest answer that is believed: it may be off by half
	// of it, and a lease must not notice.
	maxRoundTrip = time.Second
	// MostApart is by how much this clock and that of the machine may differ and be
	// Plausible.
	MostApart = time.Hour
)

// ErrSlow means that an answer came too late to tell the time by.
var ErrSlow = errors.New("clock: the answer took longer than a second, so it is not used")

// A Clock tells the time. Its zero value is not usable.
type Clock struct {
	mu     sync.RWMutex
	start  time.Time     // read once; its monotonic part tells what has elapsed
	wall   time.Time     // what this machine's wall clock said then
	offset time.Duration // added to wall + elapsed
	synced bool          // offset was measured
	manual bool
	fixed  time.Time
	apart  time.Duration // of a Manual clock
}

// New is the machine's time until Sync has measured the database's.
func New() *Clock {
	now := time.Now()
	c := &Clock{start: now, wall: now.Round(0)}
	if s, err := strconv.Atoi(skewSeconds); err == nil {
		c.wall = c.wall.Add(time.Duration(s) * time.Second)
	}
	return c
}

// Manual is a clock that stands still at t until it is moved.
func Manual(t time.Time) *Clock {
	return &Clock{manual: true, fixed: t.UTC()}
}

// Now is the time in UTC, to the millisecond, without a monotonic part.
func (c *Clock) Now() time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.manual {
		return c.fixed.Truncate(time.Millisecond)
	}
	return c.wall.Add(time.Since(c.start) + c.offset).UTC().Truncate(time.Millisecond)
}

// Millis is Now in milliseconds since 1970, the unit of every time column.
func (c *Clock) Millis() int64 { return c.Now().UnixMilli() }

// Advance moves a Manual clock; on any other it panics.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.manual {
		panic("clock: Advance on a running clock")
	}
	c.fixed = c.fixed.Add(d)
}

// Apart is how far ahead this clock is of this machine's own, as that is set now. One
// of the two is wrong when they differ by much. A Manual clock differs as SetApart
// says.
func (c *Clock) Apart() time.Duration {
	now := c.Now()
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.manual {
		return c.apart
	}
	skew := c.wall.Sub(c.start.Round(0))
	return now.Sub(time.Now().Round(0).Add(skew))
}

// Plausible is false when this clock and the machine's differ by so much that one of them
// must be wrong, and nobody knows which.
func (c *Clock) Plausible() bool { return c.Apart().Abs() <= MostApart }

// Later is Now, or the machine's time when the two are not Plausible and that is later.
// What must be kept for a time may be kept from then, and not too short.
func (c *Clock) Later() time.Time {
	now := c.Now()
	if apart := c.Apart(); apart < -MostApart {
		return now.Add(-apart).Truncate(time.Millisecond)
	}
	return now
}

// SetApart has a Manual clock differ from the machine's; on any other it panics.
func (c *Clock) SetApart(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.manual {
		panic("clock: SetApart on a running clock")
	}
	c.apart = d
}

// Offset is by how much Sync has moved this clock away from monotonic time. It
// is all that makes the clock jump: after a suspend of this machine or a step of
// the database's clock. Who reads Now first and Offset after it cannot miss a
// jump that Now already has in it.
func (c *Clock) Offset() time.Duration {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.offset
}

// Sync asks remote for its time and takes it over, counting half of the round
// trip. An answer that took longer than a second is refused with ErrSlow, and
// the offset stays as it is; only the first is taken all the same, because this
// machine's own time may be further off. A Manual clock ignores it. It returns
// how far this clock was off.
func (c *Clock) Sync(ctx context.Context, remote func(context.Context) (time.Time, error)) (time.Duration, error) {
	if c.manual {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	sent := time.Since(c.start)
	theirs, err := remote(ctx)
	if err != nil {
		return 0, err
	}
	received := time.Since(c.start)
	middle := c.wall.Add(sent + (received-sent)/2)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.synced && received-sent > maxRoundTrip {
		return 0, ErrSlow
	}
	offset := theirs.Sub(middle)
	moved := offset - c.offset
	c.offset, c.synced = offset, true
	return moved, nil
}

// Keep syncs every interval until ctx ends. Failures and slow answers are
// reported, and the last offset stays in force: monotonic time drifts far less than a lease.
func (c *Clock) Keep(ctx context.Context, interval time.Duration, remote func(context.Context) (time.Time, error), failed func(error)) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if _, err := c.Sync(ctx, remote); err != nil && ctx.Err() == nil {
				failed(err)
			}
		}
	}
}
