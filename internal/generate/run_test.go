package generate

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

func TestTheSameSeedGivesTheSamePicture(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ask := func(seed int64, change ...func(*Request)) []string {
			t.Helper()
			g := r.made(r.ada, append(change, func(q *Request) { q.Seed = &seed })...)
			var sums []string
			for _, i := range g.Images {
				sums = append(sums, i.SHA256)
			}
			return sums
		}
		three := func(q *Request) { q.N = 3 }
		first := ask(41, three)
		if again := ask(41, three); !slices.Equal(first, again) {
			t.Error("the same seed gave another picture")
		}
		if one := ask(42); one[0] != first[1] {
			t.Error("image 2 does not have the seed after the first's")
		}
		for name, other := range map[string]func(*Request){
			"steps": func(q *Request) { q.Steps = 3 }, "size": func(q *Request) { q.Width = 72 }, "prompt": func(q *Request) { q.Prompt = "other" },
		} {
			if ask(41, other)[0] == first[0] {
				t.Errorf("another %s gave the same picture", name)
			}
		}
		call := r.engine.made()[1]
		if call.Seed != 42 || call.Steps != 2 || call.Width != 64 || call.Guidance != 1 || len(call.ID) != 36 {
			t.Errorf("the engine was asked for %+v", call)
		}
	})
}

type script = func(ctx context.Context, call int, r engine.Request, progress func(engine.Progress)) ([]byte, error)

func failing(fault engine.Fault, code string) script {
	return func(context.Context, int, engine.Request, func(engine.Progress)) ([]byte, error) {
		return nil, engine.NewError(fault, code, 0, errors.New("the engine's own words"))
	}
}

func TestWhoseFaultDecidesTheRetry(t *testing.T) {
	garbage := func(context.Context, int, engine.Request, func(engine.Progress)) ([]byte, error) {
		return []byte("nonsense"), nil
	}
	huge := func(_ context.Context, _ int, q engine.Request, _ func(engine.Progress)) ([]byte, error) {
		return paintSize(q, 400, 400), nil
	}
	for name, tt := range map[string]struct {
		script script
		calls  int
		code   string
	}{
		"user":     {failing(engine.FaultUser, engine.CodeRefused), 1, "refused"},
		"engine":   {failing(engine.FaultEngine, engine.CodeUnreachable), 5, "engine_unreachable"},
		"ours":     {failing(engine.FaultOurs, engine.CodeFailed), 5, "engine_failed"},
		"garbage":  {garbage, 5, "bad_image"},
		"too huge": {huge, 5, "bad_image"},
		"panic": {func(context.Context, int, engine.Request, func(engine.Progress)) ([]byte, error) { panic("canary-9") },
			5, "engine_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			test := func(t *testing.T, r *rig) {
				r.engine.play(tt.script)
				g := r.submit(r.ada, func(q *Request) { q.Prompt = "canary-9" })
				var job string
				if err := r.db.Get(t.Context(), &job, `SELECT job_id FROM generations WHERE id = ?`, g.ID); err != nil {
					t.Fatal(err)
				}
				var sequences []int64
				for {
					var j jobs.Job
					testenv.Eventually(t, 20*time.Second, func() bool {
						var err error
						j, err = jobs.Find(t.Context(), r.db, job)
						return err == nil && (j.State == jobs.Waiting || j.State.Terminal())
					})
					now := r.get(r.ada, g.ID)
					sequences = append(sequences, now.Sequence)
					if j.State.Terminal() {
						break
					}
					if now.Status != Queued {
						t.Errorf("waiting for a retry is shown as %s", now.Status)
					}
					r.mend(5 * time.Minute)
				}
				g = r.get(r.ada, g.ID)
				if g.Status != Failed || g.Failure == nil || g.Failure.Code != tt.code || g.Failure.Message == "" || len(r.engine.made()) != tt.calls {
					t.Errorf("%s, %+v after %d calls; want %s after %d", g.Status, g.Failure, len(r.engine.made()), tt.code, tt.calls)
				}
				if !slices.IsSorted(sequences) || len(slices.Compact(slices.Clone(sequences))) != len(sequences) {
					t.Errorf("the sequence does not grow: %v", sequences)
				}
				if r.told.of(events.GenerationFailed, g.ID) != 1 || r.told.of(events.GenerationSucceeded, g.ID) != 0 {
					t.Error("the failure was not told once")
				}
				if text := r.log.String(); strings.Contains(text, "canary-9") || strings.Contains(text, "own words") {
					t.Error("the prompt or the engine's words were logged")
				}
				_, err := r.service.Cancel(t.Context(), r.ada, g.ID)
				wantCode(t, err, problem.Conflict)
				r.mend(jobs.Lease + time.Second)
				r.swept()
				if left := r.objects("images/"); len(left) != 0 {
					t.Errorf("objects left: %v", left)
				}
			}
			if name == "user" || name == "engine" {
				stacks(t, setup{}, test)
				return
			}
			t.Parallel() // the others differ in nothing that a database or a bucket sees
			test(t, newRig(t, db.SQLite, setup{}))
		})
	}
}

// An engine whose queue is full has tried nothing: more often than there are
// attempts, and the job keeps its turn.
func TestABusyEngineCostsNoAttempt(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		const full = 8
		busy := failing(engine.FaultOurs, engine.CodeBusy)
		r.engine.play(func(ctx context.Context, call int, q engine.Request, p func(engine.Progress)) ([]byte, error) {
			if call <= full {
				return busy(ctx, call, q, p)
			}
			return paint(q), nil
		})
		g := r.made(r.ada)
		if n := len(r.engine.made()); n != full+1 || r.count(`SELECT attempts FROM generations WHERE id = ?`, g.ID) != full+1 {
			t.Errorf("%d calls for one image, want %d", n, full+1)
		}
		if n := r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state = 'waiting'`, KindRun); n != 0 {
			t.Errorf("%d jobs wait for a backoff", n)
		}
		// The sweep of what former attempts may have left finds the image needed.
		r.mend(jobs.Lease + time.Second)
		r.swept()
		r.content(r.ada, g.Images[0].ID, false)
	})
}

// One that stays busy does not keep a generation for ever.
func TestABusyEngineFailsAnOldGeneration(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		young, old := 0, 0
		busy := failing(engine.FaultOurs, engine.CodeBusy)
		r.engine.play(func(ctx context.Context, call int, q engine.Request, p func(engine.Progress)) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			if r.clock.Now().Sub(start) < busyPatience {
				young++
			} else {
				old++
			}
			return busy(ctx, call, q, p)
		})
		count := func(n *int) int { mu.Lock(); defer mu.Unlock(); return *n }
		g := r.submit(r.ada)
		testenv.Eventually(t, 20*time.Second, func() bool { return count(&young) >= 6 })
		r.clock.Advance(busyPatience)
		testenv.Eventually(t, 60*time.Second, func() bool {
			if r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state = 'waiting'`, KindRun) > 0 {
				r.mend(5 * time.Minute)
			}
			return r.get(r.ada, g.ID).Status.Terminal()
		})
		g = r.get(r.ada, g.ID)
		if g.Status != Failed || g.Failure == nil || g.Failure.Code != engine.CodeBusy || g.Failure.Message == "" {
			t.Errorf("%s, %+v", g.Status, g.Failure)
		}
		if n := count(&old); n < 4 || n > 6 { // one call may have begun before the hour was over, and ended after it
			t.Errorf("%d calls after the hour, want the usual 5", n)
		}
	})
}

// What object storage did not do well is counted wherever it is met.
func TestFailuresOfObjectStorageAreCounted(t *testing.T) {
	var store *flaky
	t.Parallel()
	r := newRig(t, db.SQLite, setup{wrap: func(s objects.Store) objects.Store { store = &flaky{Store: s}; return store }})
	counted := func() (n float64) {
		t.Helper()
		registry := prometheus.NewRegistry()
		registry.MustRegister(r.service.Metrics.objectFailures)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		return families[0].GetMetric()[0].GetCounter().GetValue()
	}
	i := r.made(r.ada, func(q *Request) { q.Width, q.Height = 128, 128 }).Images[0] // more than is read ahead
	r.content(r.ada, i.ID, false)
	if n := counted(); n != 0 {
		t.Fatalf("%v counted of a read that went well", n)
	}
	for _, tt := range []struct {
		name string
		left bool // whoever asked has
		want float64
	}{{"a read that broke off", false, 1}, {"a read whose caller left", true, 1}} {
		ctx, leave := context.WithCancel(t.Context())
		c, err := r.service.Content(ctx, r.ada, i.ID, false)
		if err != nil {
			t.Fatal(err)
		}
		if tt.left {
			leave()
		}
		store.breaks(true)
		if _, err := io.ReadAll(c); err == nil || counted() != tt.want {
			t.Errorf("%s: %v, %v counted, want %v", tt.name, err, counted(), tt.want)
		}
		leave()
		_ = c.Close()
		store.breaks(false)
	}
	store.breaks(true)
	_, err := r.service.Content(t.Context(), r.ada, i.ID, false)
	wantCode(t, err, problem.Unavailable)
	if counted() != 2 || !strings.Contains(err.Error(), "Object storage") {
		t.Errorf("a read that broke off at once: %v, %v counted", err, counted())
	}
	store.breaks(false)

	// An attempt whose objects cannot be deleted.
	r.engine.play(func(_ context.Context, call int, q engine.Request, _ func(engine.Progress)) ([]byte, error) {
		if call == 3 {
			testenv.Eventually(t, 10*time.Second, func() bool { return len(r.objects("images/")) == 4 })
			store.set(true)
			return nil, engine.NewError(engine.FaultUser, engine.CodeRefused, 0, nil)
		}
		return paint(q), nil
	})
	r.await(r.ada, r.submit(r.ada, func(q *Request) { q.N = 2 }).ID, Failed)
	if counted() != 3 {
		t.Errorf("%v counted, want the deletion too", counted())
	}
}

func TestARetrySucceedsAndLeavesOnlyItsOwnObjects(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		// The second image of the first attempt fails, after the first was stored.
		r.engine.play(func(ctx context.Context, call int, q engine.Request, _ func(engine.Progress)) ([]byte, error) {
			if call == 2 {
				testenv.Eventually(t, 10*time.Second, func() bool { return len(r.objects("images/")) == 2 })
				return nil, engine.NewError(engine.FaultEngine, engine.CodeFailed, 0, nil)
			}
			return paint(q), nil
		})
		g := r.submit(r.ada, func(q *Request) { q.N = 2 })
		testenv.Eventually(t, 20*time.Second, func() bool { return r.count(`SELECT count(*) FROM jobs WHERE state = 'waiting'`) == 1 })
		testenv.Eventually(t, 10*time.Second, func() bool { return len(r.objects("images/")) == 0 })
		r.mend(time.Minute)
		g = r.await(r.ada, g.ID, Succeeded)
		if len(g.Images) != 2 || len(r.engine.made()) != 4 {
			t.Errorf("%d images after %d calls", len(g.Images), len(r.engine.made()))
		}
		r.mend(lateFor + time.Second)
		r.hourly()
		for _, i := range g.Images {
			r.content(r.ada, i.ID, false)
			r.content(r.ada, i.ID, true)
		}
		if n := r.count(`SELECT unswept FROM generations WHERE id = ?`, g.ID); n != 0 {
			t.Error("the sweep has not looked at it")
		}
	})
}

// Sizes are checked by the adapters; whatever comes through is told as it is.
func TestTheTrueSizeIsTold(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		r.engine.play(func(_ context.Context, _ int, q engine.Request, _ func(engine.Progress)) ([]byte, error) {
			return paintSize(q, 80, 48), nil
		})
		if i := r.made(r.ada).Images[0]; i.Width != 80 || i.Height != 48 {
			t.Errorf("told as %d×%d", i.Width, i.Height)
		}
	})
}

func TestCancel(t *testing.T) {
	for name, deaf := range map[string]bool{"an engine that stops": false, "an engine that goes on": true} {
		t.Run(name, func(t *testing.T) {
			stacks(t, setup{}, func(t *testing.T, r *rig) {
				ctx, door := t.Context(), newGate(deaf)
				r.engine.play(door.script)
				running := r.submit(r.ada)
				<-door.entered
				queued := r.submit(r.ada)
				if g, err := r.service.Cancel(ctx, r.ada, queued.ID); err != nil || g.Status != Canceled {
					t.Errorf("a queued one: %s, %v", g.Status, err)
				}
				next := r.submit(r.ada)
				asked := time.Now()
				if g, err := r.service.Cancel(ctx, r.ada, running.ID); err != nil || g.Status != Running && g.Status != Canceled {
					t.Errorf("a running one: %s, %v", g.Status, err)
				}
				r.await(r.ada, running.ID, Canceled)
				if took := time.Since(asked); took > 10*time.Second { // 5 s, on a machine that has nothing else to do
					t.Errorf("canceling took %v", took)
				}
				if g, err := r.service.Cancel(ctx, r.ada, running.ID); err != nil || g.Status != Canceled {
					t.Errorf("again: %s, %v", g.Status, err)
				}
				if deaf {
					if busy := r.fleet.Status()[0].Busy; busy != 1 {
						t.Errorf("%d slots are taken while the engine goes on", busy)
					}
					if g := r.get(r.ada, next.ID); g.Status != Queued || len(door.entered) != 0 {
						t.Errorf("the next is %s though the engine is not free", g.Status)
					}
				} else {
					<-door.entered
				}
				close(door.open)
				r.await(r.ada, next.ID, Succeeded)
				for _, g := range []Generation{running, queued} {
					if r.told.of(events.GenerationCanceled, g.ID) != 1 {
						t.Error("the cancel was not told once")
					}
					if left := r.objects(prefix(r.ada, g.ID)); len(left) != 0 {
						t.Errorf("objects left: %v", left)
					}
				}
				if strings.Contains(r.log.String(), "level=ERROR") {
					t.Error("a cancel is logged as an error")
				}
			})
		})
	}
}

func TestDeletedWhileItRuns(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		door := newGate(true) // it finishes its picture whatever it is told
		r.engine.play(door.script)
		g := r.submit(r.ada)
		<-door.entered
		if err := r.service.Delete(t.Context(), r.ada, g.ID); err != nil {
			t.Fatal(err)
		}
		_, err := r.service.Get(t.Context(), r.ada, g.ID)
		wantCode(t, err, problem.DataRemoved)
		close(door.open)
		testenv.Eventually(t, 20*time.Second, func() bool { return r.count(`SELECT count(*) FROM jobs WHERE state = 'canceled'`) == 1 })
		r.mend(jobs.Lease + time.Second)
		r.swept()
		if left := r.objects("images/"); len(left) != 0 {
			t.Errorf("objects left: %v", left)
		}
		if n := r.count(`SELECT count(*) FROM images`); n != 0 {
			t.Errorf("%d images of a deleted generation", n)
		}
		if r.told.of(events.GenerationSucceeded, g.ID) != 0 || r.told.of(events.GenerationDeleted, g.ID) != 1 {
			t.Error("not told as deleted alone")
		}
	})
}

func TestAResultWaitsForObjectStorage(t *testing.T) {
	var mu sync.Mutex
	stores := map[objects.Store]*flaky{}
	stacks(t, setup{wrap: func(s objects.Store) objects.Store {
		mu.Lock()
		defer mu.Unlock()
		stores[s] = &flaky{Store: s, away: true}
		return stores[s]
	}}, func(t *testing.T, r *rig) {
		mu.Lock()
		store := stores[r.store]
		mu.Unlock()
		first, second := r.submit(r.ada), r.submit(r.ada)
		testenv.Eventually(t, 20*time.Second, func() bool { return r.service.ResultsWaiting() == 2 })
		// One slot: the second could only be made because the first gave it back.
		testenv.Eventually(t, 10*time.Second, func() bool { return r.fleet.Status()[0].Busy == 0 })
		for _, g := range []Generation{first, second} {
			if g := r.get(r.ada, g.ID); g.Status != Running {
				t.Errorf("it is %s while its result waits", g.Status)
			}
		}
		store.set(false)
		for _, g := range []Generation{first, second} {
			r.content(r.ada, r.await(r.ada, g.ID, Succeeded).Images[0].ID, false)
		}
		if n := len(r.engine.made()); n != 2 || r.service.ResultsWaiting() != 0 {
			t.Errorf("%d pictures for 2 generations, %d still wait", n, r.service.ResultsWaiting())
		}
		// Deleting goes on too, once it is back.
		store.set(true)
		if err := r.service.Delete(t.Context(), r.ada, first.ID); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 20*time.Second, func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state = 'waiting'`, KindSweep) == 1
		})
		store.set(false)
		r.mend(time.Hour)
		testenv.Eventually(t, 20*time.Second, func() bool { return len(r.objects(prefix(r.ada, first.ID))) == 0 })
	})
}

func TestAZombiesResultChangesNothing(t *testing.T) {
	stacks(t, setup{slots: 2}, func(t *testing.T, r *rig) {
		door := newGate(true)
		r.engine.play(func(ctx context.Context, call int, q engine.Request, p func(engine.Progress)) ([]byte, error) {
			if call == 1 {
				return door.script(context.WithoutCancel(ctx), call, q, p)
			}
			return paint(q), nil
		})
		g := r.submit(r.ada)
		<-door.entered
		r.mend(jobs.Lease + time.Second) // its worker is thought dead
		g = r.await(r.ada, g.ID, Succeeded)
		close(door.open)
		testenv.Eventually(t, 20*time.Second, func() bool { return strings.Contains(r.log.String(), "attempt no longer counts") })
		r.mend(jobs.Lease + time.Second)
		r.swept()
		want := []string{imageKey(r.ada, g.ID, 2, 0), thumbKey(r.ada, g.ID, 2, 0)}
		testenv.Eventually(t, 10*time.Second, func() bool { return slices.Equal(r.objects("images/"), want) })
		r.content(r.ada, g.Images[0].ID, false)
		if r.told.of(events.GenerationSucceeded, g.ID) != 1 || r.count(`SELECT count(*) FROM images`) != 1 {
			t.Error("it did not succeed exactly once")
		}
	})
}

func TestTheSweepKeepsWhatIsNeeded(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		ctx, s := t.Context(), r.service
		put := func(key string) {
			t.Helper()
			if err := s.put(ctx, key, []byte(key)); err != nil {
				t.Fatal(err)
			}
		}
		g := r.submit(r.ada)
		for _, attempt := range []int{1, 2, 3} {
			put(imageKey(r.ada, g.ID, attempt, 0))
		}
		if _, err := r.db.Exec(ctx, `UPDATE generations SET unswept = 1`); err != nil {
			t.Fatal(err)
		}
		if _, err := r.db.Exec(ctx, `UPDATE jobs SET state = 'running', attempt = 2`); err != nil {
			t.Fatal(err)
		}
		sweep := func(want ...int) {
			t.Helper()
			if err := s.sweepSome(ctx, []unswept{{ID: g.ID, Owner: r.ada}}); err != nil {
				t.Fatal(err)
			}
			var keys []string
			for _, attempt := range want {
				keys = append(keys, imageKey(r.ada, g.ID, attempt, 0))
			}
			if got := r.objects("images/"); !slices.Equal(got, keys) {
				t.Errorf("left %v, want %v", got, keys)
			}
		}
		sweep(2, 3) // the running attempt's, and whatever may come after it
		_, err := r.db.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, created_at, expires_at, removed_at, removed_reason)
			VALUES ('img_1', ?, ?, 0, 2, 1, 1, 'png', 1, 1, 1, 1, 0, '')`, g.ID, r.ada)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.db.Exec(ctx, `UPDATE jobs SET state = 'succeeded', finished_at = ?`, r.clock.Millis()); err != nil {
			t.Fatal(err)
		}
		sweep(2)
		if n := r.count(`SELECT unswept FROM generations`); n != 1 {
			t.Error("swept for good while a former attempt may still be storing")
		}
		// Its worker may have lost the database alone, and store what it made hours later.
		r.clock.Advance(lateFor - time.Minute)
		put(imageKey(r.ada, g.ID, 1, 0))
		sweep(2)
		r.clock.Advance(time.Minute)
		sweep(2)
		if n := r.count(`SELECT unswept FROM generations`); n != 0 {
			t.Error("it is never done")
		}
		if _, err := r.db.Exec(ctx, `UPDATE images SET removed_at = 1`); err != nil {
			t.Fatal(err)
		}
		sweep()
	})
}

func TestQueuePositionAndModelsServed(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx, door := t.Context(), newGate(false)
		served := func(id string) bool {
			t.Helper()
			models, err := r.service.Models(ctx)
			if err != nil || len(models) != 2 {
				t.Fatalf("%d models, %v", len(models), err)
			}
			return models[slices.IndexFunc(models, func(m Model) bool { return m.ID == id })].Served
		}
		testenv.Eventually(t, 10*time.Second, func() bool { return served("illustrator") })
		if served("elsewhere") {
			t.Error("a model is served that no worker has")
		}
		if g := r.submit(r.ada, func(q *Request) { q.Model = "elsewhere" }); g.Queue == nil || g.Queue.Served || g.Queue.ETASeconds != nil || g.Queue.Position != 1 {
			t.Errorf("of a lane without workers: %+v", g.Queue)
		}
		r.engine.play(door.script)
		running := r.submit(r.ada)
		<-door.entered
		if _, err := r.db.Exec(ctx, `UPDATE workers SET unit_micros = 2000000 WHERE lane = 'generation'`); err != nil {
			t.Fatal(err)
		}
		var last Generation
		for n := range 3 {
			last = r.submit(r.ada)
			if last.Queue == nil || last.Queue.Position != n+1 || !last.Queue.Served {
				t.Errorf("number %d: %+v", n+1, last.Queue)
			}
		}
		if first := r.submit(r.ben); first.Queue.Position > 2 {
			t.Errorf("somebody's first is number %d behind another's many", first.Queue.Position)
		}
		if g := r.get(r.ada, running.ID); g.Queue != nil || g.Status != Running || g.StartedAt.IsZero() {
			t.Errorf("running: %+v", g)
		}
		close(door.open)
		r.await(r.ada, last.ID, Succeeded)
	})
}

func TestEnginesAreListedAndDrained(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); r.service.ReportEngines(ctx, "wrk_1", r.fleet) }()
		defer func() { cancel(); <-ended }()
		state := func() string {
			list, err := r.service.ListEngines(ctx)
			if err != nil || len(list) != 1 {
				return ""
			}
			return list[0].State
		}
		testenv.Eventually(t, 10*time.Second, func() bool { return state() == engine.StateReady })
		wantCode(t, r.service.DrainEngine(ctx, "unknown", true), problem.NotFound)
		wantCode(t, r.service.DrainEngine(ctx, "illustrator", false), problem.NotFound)
		if err := errors.Join(r.service.DrainEngine(ctx, "illustrator", true), r.service.DrainEngine(ctx, "illustrator", true)); err != nil {
			t.Fatal(err)
		}
		if list, err := r.service.ListEngines(ctx); err != nil || !list[0].Drained || list[0].Kind != engine.KindIllustrator || list[0].Slots != 1 {
			t.Errorf("%+v, %v", list, err)
		}
		testenv.Eventually(t, 10*time.Second, func() bool { return state() == engine.StateDraining })
		g := r.submit(r.ada)
		testenv.Eventually(t, 10*time.Second, func() bool {
			models, err := r.service.Models(ctx)
			return err == nil && !models[0].Served
		})
		if now := r.get(r.ada, g.ID); now.Status != Queued || now.Queue.Served {
			t.Errorf("on a drained engine: %s, %+v", now.Status, now.Queue)
		}
		if err := r.service.DrainEngine(ctx, "illustrator", false); err != nil {
			t.Fatal(err)
		}
		r.await(r.ada, g.ID, Succeeded)
		cancel()
		<-ended
		if list, err := r.service.ListEngines(context.Background()); err != nil || len(list) != 0 {
			t.Errorf("a worker that went still shows: %+v, %v", list, err)
		}
	})
}
