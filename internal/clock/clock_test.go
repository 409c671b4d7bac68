package clock_test

import (
	"context"
	"errors"
	"testing"
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
