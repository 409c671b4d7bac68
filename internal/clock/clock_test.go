package clock_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"zimage/internal/clock"
)

func TestManualStandsStillUntilMoved(t *testing.T) {
	t.Parallel()
	at := time.Date(2031, 5, 6, 7, 8, 9, 123_456_789, time.FixedZone("", 3600))
	c := clock.Manual(at)
	if got := c.Now(); !got.Equal(at.Truncate(time.Millisecond)) || got.Location() != time.UTC {
		t.Errorf("Now = %v, want %v in UTC to the millisecond", got, at)
	}
	c.Advance(800 * 24 * time.Hour)
	if got, want := c.Millis(), at.AddDate(0, 0, 800).UnixMilli(); got != want {
		t.Errorf("after 800 days: %d, want %d", got, want)
	}
	asked := false
	_, err := c.Sync(t.Context(), func(context.Context) (time.Time, error) { asked = true; return time.Now(), nil })
	if err != nil || asked {
		t.Errorf("Sync moved a manual clock: %v, %v", asked, err)
	}
}

func TestAdvanceOfARunningClockPanics(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	clock.New().Advance(time.Second)
}

func TestSyncTakesTheDatabasesTimeOver(t *testing.T) {
	t.Parallel()
	const off = 5 * time.Minute
	for name, ours := range map[string]time.Duration{"behind": off, "ahead": -off} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := clock.New()
			theirs := func(context.Context) (time.Time, error) { return time.Now().Add(ours), nil }
			moved, err := c.Sync(t.Context(), theirs)
			if err != nil || (moved-ours).Abs() > time.Second {
				t.Errorf("moved by %v (%v), want about %v", moved, err, ours)
			}
			if got := time.Until(c.Now()) - ours; got.Abs() > time.Second {
				t.Errorf("still %v off", got)
			}
			before := c.Now()
			if _, err := c.Sync(t.Context(), func(context.Context) (time.Time, error) { return time.Time{}, errors.New("away") }); err == nil {
				t.Error("a failed question is not told")
			}
			if c.Now().Before(before) {
				t.Error("a failed question moved the clock")
			}
		})
	}
}

// In a bubble, whose time is its own.
func TestASlowAnswerDoesNotMoveTheClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := clock.New()
		answer := func(after, ahead time.Duration) func(context.Context) (time.Time, error) {
			return func(context.Context) (time.Time, error) {
				time.Sleep(after)
				return time.Now().Add(ahead), nil
			}
		}
		// The first is better than nothing.
		if moved, err := c.Sync(t.Context(), answer(2*time.Second, time.Hour)); err != nil || (moved-time.Hour).Abs() > time.Second {
			t.Errorf("the first: moved by %v, %v", moved, err)
		}
		offset := c.Offset()
		if moved, err := c.Sync(t.Context(), answer(1001*time.Millisecond, 2*time.Hour)); !errors.Is(err, clock.ErrSlow) || moved != 0 || c.Offset() != offset {
			t.Errorf("a slow one: moved by %v to %v, %v", moved, c.Offset(), err)
		}
		if _, err := c.Sync(t.Context(), answer(900*time.Millisecond, 2*time.Hour)); err != nil || (c.Offset()-2*time.Hour).Abs() > time.Second {
			t.Errorf("a fast one: %v, %v", c.Offset(), err)
		}
	})
}

func TestSyncDoesNotWaitForeverForAnAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, err := clock.New().Sync(t.Context(), func(ctx context.Context) (time.Time, error) {
			<-ctx.Done()
			return time.Time{}, ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestKeepTellsOfFailuresAndEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	away := errors.New("away")
	told := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		clock.New().Keep(ctx, time.Millisecond, func(context.Context) (time.Time, error) { return time.Time{}, away }, func(err error) {
			select {
			case told <- err:
			case <-ctx.Done():
			}
		})
	}()
	if err := <-told; !errors.Is(err, away) {
		t.Errorf("told %v", err)
	}
	cancel()
	<-ended
}

// Apart tells a clock of the database that is wrong, and one that was right and is
// wrong by now.
func TestApartIsHowFarTheMachineIsOff(t *testing.T) {
	t.Parallel()
	c := clock.New()
	if d := c.Apart(); d.Abs() > time.Second {
		t.Errorf("before it was measured: %v", d)
	}
	for _, off := range []time.Duration{0, 14 * 24 * time.Hour, -2 * time.Hour, 0} {
		_, err := c.Sync(t.Context(), func(context.Context) (time.Time, error) { return time.Now().Add(off), nil })
		if d := c.Apart() - off; err != nil || d.Abs() > time.Second {
			t.Errorf("%v apart, want %v: %v", c.Apart(), off, err)
		}
		if c.Plausible() != (off == 0) {
			t.Errorf("%v apart is plausible: %v", off, c.Plausible())
		}
		if d := c.Later().Sub(time.Now().Add(max(off, 0))); d.Abs() > 2*time.Second {
			t.Errorf("%v apart, the later is %v off", off, d)
		}
	}
	m := clock.Manual(time.Unix(0, 0))
	m.Advance(800 * 24 * time.Hour)
	if m.Apart() != 0 {
		t.Error("a Manual clock that was moved is apart")
	}
	if m.SetApart(time.Hour); m.Apart() != time.Hour {
		t.Error("a Manual clock cannot be set apart")
	}
}
