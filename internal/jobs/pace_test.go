package jobs_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

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

func TestAPaceTakesAThirtiethOfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for i, rest := range rests(t, &jobs.Pace{}, 10*time.Millisecond, 5) {
			if want := 290 * time.Millisecond; i == 0 && rest != 0 || i > 0 && (rest-want).Abs() > time.Millisecond {
				t.Errorf("before piece %d it rests %v", i, rest)
			}
		}
	})
}

// A piece that a store held up is no reason to rest for long, and what is not done in
// two minutes is done without rests.
func TestAPaceHasBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		all := rests(t, &jobs.Pace{}, time.Second, 60)
		for i, rest := range all[1:] {
			if rest > 2*time.Second {
				t.Errorf("before piece %d it rests %v", i+1, rest)
			}
		}
		if all[1] != 2*time.Second || all[59] != 0 {
			t.Errorf("it rests %v at first and %v at last", all[1], all[59])
		}
		if took := time.Since(began); took > 3*time.Minute {
			t.Errorf("a minute's work took %v", took)
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
		if err := p.Next(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		began := time.Now()
		if err := p.Next(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 50*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
