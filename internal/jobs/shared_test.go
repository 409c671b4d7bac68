package jobs_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"zimage/internal/jobs"
)

func TestWishesAtTheSameTimeAreAskedTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls [][]int
		first := make(chan struct{})
		broken := errors.New("away")
		all := func(numbers []int) error { // never two at a time, or the race detector tells
			calls = append(calls, slices.Clone(numbers))
			for i := range numbers {
				numbers[i] *= 10
			}
			switch len(calls) {
			case 1:
				<-first
			case 2:
				return broken
			case 5:
				panic("mercy")
			}
			return nil
		}
		s := jobs.NewShared(all)
		var asked sync.WaitGroup
		ask := func(from, to int, expected error) {
			for n := from; n <= to; n++ {
				asked.Go(func() {
					if got, err := s.Ask(n); err == nil && got != 10*n || !errors.Is(err, expected) {
						t.Errorf("%d came to %d (%v), expected %v", n, got, err, expected)
					}
				})
				synctest.Wait() // so that they wait in this order
			}
		}
		ask(1, 1, nil)
		ask(2, 65, broken) // as many as go together
		ask(66, 70, nil)
		close(first)
		asked.Wait()
		if len(calls) != 3 || len(calls[0]) != 1 || len(calls[1]) != 64 || len(calls[2]) != 5 {
			t.Errorf("asked %d times: %v", len(calls), calls)
		}
		ask(71, 71, nil) // who comes alone waits for nobody
		asked.Wait()
		if len(calls) != 4 {
			t.Errorf("asked %d times in the end", len(calls))
		}
		// A panic is told, and nobody waits for ever.
		if _, err := s.Ask(72); err == nil || strings.Contains(err.Error(), "mercy") {
			t.Errorf("a panic comes to %v", err)
		}
		ask(73, 73, nil)
		asked.Wait()
	})
}
