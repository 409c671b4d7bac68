package jobs_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"zimage/internal/clock"
	"zimage/internal/jobs"
)

// rests does pieces that take so long each, and returns the rest behind each.
func rests(t *testing.T, p *jobs.Pace, piece time.Duration, pieces int) (all []time.Duration) {
	t.Helper()
	for range pieces {
		began := time.Now()
		if err := p.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(began))
		time.Sleep(piece)
	}
	return all
}

func TestAPaceTakesAHundredthOfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for i, rest := range rests(t, &jobs.Pace{}, 10*time.Millisecond, 10) {
			if i < 5 && rest != 0 { // little work is not made long
				t.Errorf("before piece %d it rests %v", i, rest)
			}
			if i >= 5 && (rest < 960*time.Millisecond || rest > 990*time.Millisecond) {
				t.Errorf("before piece %d it rests %v", i, rest)
			}
		}
	})
}

// More work than fits into a hundredth gets more and more of the time, and all of it in
// the end.
func TestAPaceIsOverInItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const piece, most = 100 * time.Millisecond, 20 * time.Minute
		var p jobs.Pace
		began, done := time.Now(), 0
		for before := time.Hour; time.Since(began) < most; done++ {
			rest := rests(t, &p, piece, 1)[0]
			if done > 5 && rest > before {
				t.Fatalf("after %v it rests %v, before that %v", time.Since(began), rest, before)
			}
			if done > 5 {
				before = rest
			}
		}
		if worked := time.Duration(done) * piece; worked < 4*time.Minute || worked > 5*time.Minute {
			t.Errorf("it worked %v", worked)
		}
		if !p.Over() {
			t.Error("it does not say that it is over")
		}
		for _, rest := range rests(t, &p, piece, 100) {
			if rest != 0 {
				t.Fatalf("it still rests %v", rest)
			}
		}
	})
}

// The time is that of the job: what waited, or is tried again, has less of it.
func TestThePaceOfAJobCountsFromWhenItWasAdded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		q := jobs.New(nil, now, nil, nil, nil)
		j := jobs.Job{CreatedAt: now.Millis()}
		for i, want := range []time.Duration{990 * time.Millisecond, 90 * time.Millisecond, 0, 0} {
			if rest := rests(t, q.PaceOf(j), 10*time.Millisecond, 6)[5]; rest > want || rest < want-want/20 {
				t.Errorf("after %v it rests %v, want %v", now.Now().Sub(time.UnixMilli(j.CreatedAt)), rest, want)
			}
			if over := q.PaceOf(j).Over(); over != (i >= 2) {
				t.Errorf("over: %v", over)
			}
			now.Advance([]time.Duration{10 * time.Minute, 10 * time.Minute, time.Hour, 0}[i])
		}
		now.Advance(-24 * time.Hour)
		if rest := rests(t, q.PaceOf(j), 10*time.Millisecond, 6)[5]; rest > time.Second {
			t.Errorf("by a clock that is behind it rests %v", rest)
		}
	})
}

// Jobs that rest keep their slots: half of a worker's are left to others.
func TestFourJobsRestAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock.Manual(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		q := jobs.New(nil, now, nil, nil, nil)
		var done [6]time.Duration
		var work sync.WaitGroup
		for i := range done {
			work.Go(func() {
				p, began := q.PaceOf(jobs.Job{CreatedAt: now.Millis()}), time.Now()
				rests(t, p, 10*time.Millisecond, 6)
				done[i] = time.Since(began)
			})
		}
		work.Wait()
		slices.Sort(done[:])
		if done[1] > 100*time.Millisecond || done[2] < time.Second {
			t.Errorf("they took %v", done)
		}
		if rest := rests(t, q.PaceOf(jobs.Job{CreatedAt: now.Millis()}), 10*time.Millisecond, 6)[5]; rest < 900*time.Millisecond {
			t.Errorf("afterwards one rests %v", rest)
		}
	})
}

// A piece that a store held up is no reason to rest for long.
func TestAPaceHasBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for i, rest := range rests(t, &jobs.Pace{}, 5*time.Second, 20) {
			if i >= 5 && rest != 10*time.Second {
				t.Errorf("before piece %d it rests %v", i, rest)
			}
		}
	})
}

func TestNoPaceNeverRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rest := range rests(t, nil, time.Second, 3) {
			if rest != 0 {
				t.Errorf("it rests %v", rest)
			}
		}
	})
}

func TestAPaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var p jobs.Pace
		for range 5 {
			if err := p.Next(ctx); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond)
		began := time.Now()
		if err := p.Next(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 50*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
