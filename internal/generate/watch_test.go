package generate

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/engine"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

// follow collects a watch's updates until it is final or fails.
func follow(ctx context.Context, w *Watch) (list []Update, err error) {
	defer w.Close()
	for {
		u, err := w.Next(ctx)
		if err != nil {
			return list, err
		}
		list = append(list, u)
		if u.Generation.Status.Terminal() {
			return list, nil
		}
	}
}

// stepping is a script that tells a step whenever the test lets it.
func stepping(steps int, next <-chan struct{}) script {
	return func(ctx context.Context, _ int, q engine.Request, progress func(engine.Progress)) ([]byte, error) {
		for step := range steps {
			select {
			case <-next:
			case <-ctx.Done():
				return nil, engine.NewError(engine.FaultOurs, engine.CodeCanceled, 0, ctx.Err())
			}
			progress(engine.Progress{Step: step + 1, Steps: steps})
		}
		return paint(q), nil
	}
}

func TestWatchTellsStatesAndProgress(t *testing.T) {
	for name, address := range map[string]string{"with Redis": "", "Redis away": nowhere} {
		t.Run(name, func(t *testing.T) {
			stacks(t, setup{redis: address}, func(t *testing.T, r *rig) {
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				defer cancel()
				next := make(chan struct{})
				r.engine.play(stepping(8, next))
				g := r.submit(r.ada, func(q *Request) { q.Steps = 8 })
				w, err := r.watchers().Watch(ctx, r.ada, g.ID, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				first, err := w.Next(ctx)
				if err != nil || !first.State {
					t.Fatalf("the first update: %+v, %v", first, err)
				}
				sequence, far, seen := first.Generation.Sequence, 0.0, 0
				for range 4 {
					next <- struct{}{}
				}
				for seen == 0 { // some progress, before the end
					u, err := w.Next(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if u.State {
						if u.Generation.Sequence <= sequence {
							t.Errorf("sequence %d after %d", u.Generation.Sequence, sequence)
						}
						sequence = u.Generation.Sequence
						continue
					}
					if p := u.Generation.Progress; p.Fraction <= far || p.Step < 1 || p.Steps != 8 || u.Generation.Status != Running {
						t.Errorf("progress %+v after %v", p, far)
					}
					seen++
				}
				for range 4 {
					next <- struct{}{}
				}
				rest, err := follow(ctx, w)
				if err != nil {
					t.Fatal(err)
				}
				end := rest[len(rest)-1]
				if !end.State || end.Generation.Status != Succeeded || len(end.Generation.Images) != 1 || end.Generation.Sequence <= sequence {
					t.Errorf("the end: %+v", end)
				}
			})
		})
	}
}

func TestWatchResumesAfterTheLastSequence(t *testing.T) {
	stacks(t, setup{redis: nowhere}, func(t *testing.T, r *rig) {
		g := r.made(r.ada)
		for after := range g.Sequence {
			w, err := r.watchers().Watch(t.Context(), r.ada, g.ID, after)
			if err != nil {
				t.Fatal(err)
			}
			if list, err := follow(t.Context(), w); err != nil || len(list) != 1 || list[0].Generation.Sequence != g.Sequence {
				t.Errorf("after %d: %d updates, %v", after, len(list), err)
			}
		}
		w, err := r.watchers().Watch(t.Context(), r.ada, g.ID, g.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
		defer cancel()
		if list, err := follow(ctx, w); len(list) != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing is new, and it told %d, %v", len(list), err)
		}
	})
}

func TestWatchOfWhatIsNotThere(t *testing.T) {
	stacks(t, setup{redis: nowhere}, func(t *testing.T, r *rig) {
		ctx, door, hub := t.Context(), newGate(false), r.watchers()
		r.engine.play(door.script)
		g := r.submit(r.ada)
		for owner, id := range map[string]string{r.ben: g.ID, r.ada: "gen_unknown"} {
			_, err := hub.Watch(ctx, owner, id, 0)
			wantCode(t, err, problem.NotFound)
		}
		w, err := hub.Watch(ctx, r.ada, g.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { _, err := follow(ctx, w); ended <- err }()
		<-door.entered
		if err := r.service.Delete(ctx, r.ada, g.ID); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			wantCode(t, err, problem.DataRemoved)
		case <-time.After(10 * time.Second):
			t.Error("whoever watched was not told of the deletion")
		}
		testenv.Eventually(t, time.Second, func() bool {
			hub.mu.Lock()
			defer hub.mu.Unlock()
			return len(hub.watched) == 0
		})
	})
}

// Doors wait in short turns. A turn that ends in the middle of a look must not
// swallow what woke it.
func TestWatchInShortTurnsMissesNothing(t *testing.T) {
	stacks(t, setup{redis: nowhere, idle: true}, func(t *testing.T, r *rig) {
		hub := r.service.NewWatchers() // nobody looks every second: one wake is all there is
		g := r.submit(r.ada)
		w, err := hub.Watch(t.Context(), r.ada, g.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		for range 20 {
			over, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := w.Next(over); !errors.Is(err, context.Canceled) {
				t.Fatalf("a turn that is over: %v", err)
			}
		}
		if len(w.signal) != 1 {
			t.Fatal("the wake-up is lost")
		}
		if u, err := w.Next(t.Context()); err != nil || !u.State {
			t.Errorf("%+v, %v", u, err)
		}
	})
}

func TestManyWatchersAllSeeTheEnd(t *testing.T) {
	for name, address := range map[string]string{"with Redis": "", "Redis away": nowhere} {
		t.Run(name, func(t *testing.T) {
			stacks(t, setup{redis: address, slots: 4}, func(t *testing.T, r *rig) {
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				defer cancel()
				hub := r.watchers()
				var work sync.WaitGroup
				var ends atomic.Int64
				for range 10 {
					g := r.submit(r.ada)
					for range 5 {
						work.Go(func() {
							w, err := hub.Watch(ctx, r.ada, g.ID, g.Sequence)
							if err != nil {
								t.Error(err)
								return
							}
							list, err := follow(ctx, w)
							if err != nil || list[len(list)-1].Generation.Status != Succeeded {
								t.Errorf("%d updates, %v", len(list), err)
								return
							}
							ends.Add(1)
						})
					}
				}
				work.Wait()
				if n := ends.Load(); n != 50 {
					t.Errorf("%d of 50 saw the end", n)
				}
			})
		})
	}
}

func TestWithoutRedisAWatcherLearnsWithinTheSecondLook(t *testing.T) {
	stacks(t, setup{redis: nowhere, idle: true}, func(t *testing.T, r *rig) {
		g := r.submit(r.ada)
		w, err := r.watchers().Watch(t.Context(), r.ada, g.ID, g.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		told := make(chan time.Time, 1)
		go func() {
			if list, err := follow(t.Context(), w); err != nil || list[len(list)-1].Generation.Status != Canceled {
				t.Errorf("%d updates, %v", len(list), err)
			}
			told <- time.Now()
		}()
		if _, err := r.service.Cancel(t.Context(), r.ada, g.ID); err != nil {
			t.Fatal(err)
		}
		canceled := time.Now()
		// One second to the next look, and what a busy machine takes to answer.
		if took := (<-told).Sub(canceled); took > 4*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
