package e2e

import (
	"testing"
	"time"
)

// SIGTERM drains: what runs is finished, nothing new is begun.
func TestTermDrains(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	api := c.API("api")
	c.Scheduler("scheduler")
	c.Engine.Hold()
	worker := c.Worker("worker")
	running := c.Submit(api, Request{Label: "running"})
	call := c.Engine.Await(20*time.Second, c.Prompt("running"), 1)
	waiting := c.Submit(api, Request{Label: "waiting"})
	worker.Term()
	until(t, 10*time.Second, "the worker drains", func() bool { return !worker.answers() })
	call.Answer()
	if code := worker.Ended(20 * time.Second); code != 0 {
		t.Errorf("the worker ended with %d", code)
	}
	c.Wait(api, running.ID, "succeeded", 5*time.Second)
	if j := c.Job(running.ID); j.Attempt != 1 {
		t.Errorf("the running generation took %d attempts", j.Attempt)
	}
	if j := c.Job(waiting.ID); j.State != "queued" || j.Attempt != 0 {
		t.Errorf("the waiting generation is %s after %d attempts", j.State, j.Attempt)
	}
	if n := c.Count(`SELECT count(*) FROM workers`); n != 0 {
		t.Errorf("%d rows of workers that have gone", n)
	}
	c.Engine.Free()
	worker.Start()
	c.Wait(api, waiting.ID, "succeeded", 20*time.Second)
	c.Audit(api)
}

// A drain that takes too long, and a second SIGINT at once, give the job back:
// it runs elsewhere, and no attempt of it is used up.
func TestStopReleases(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		setting string
		stop    func(t *testing.T, worker *Process)
	}{
		"after the shutdown time": {"SHUTDOWN_TIMEOUT=1s", func(_ *testing.T, worker *Process) { worker.Term() }},
		"at the second interrupt": {"SHUTDOWN_TIMEOUT=10m", func(t *testing.T, worker *Process) {
			worker.Interrupt()
			until(t, 10*time.Second, "the worker drains", func() bool { return !worker.answers() })
			worker.Interrupt()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, Options{})
			api := c.API("api")
			c.Scheduler("scheduler")
			c.Engine.Hold()
			worker := c.Worker("worker", test.setting)
			g := c.Submit(api, Request{Label: "released"})
			call := c.Engine.Await(20*time.Second, c.Prompt("released"), 1)
			allowed := c.Job(g.ID).MaxAttempts
			c.Worker("heir")
			test.stop(t, worker)
			if code := worker.Ended(10 * time.Second); code != 0 {
				t.Errorf("the worker ended with %d", code)
			}
			stopped := time.Now()
			select {
			case <-call.Gone:
			case <-time.After(5 * time.Second):
				t.Error("the engine still works for a worker that has gone")
			}
			second := c.Engine.Await(10*time.Second, c.Prompt("released"), 2)
			t.Logf("from the worker's end to the next engine call: %v", second.Arrived.Sub(stopped))
			if j := c.Job(g.ID); j.MaxAttempts-j.Attempt != allowed-1 {
				t.Errorf("%d attempts of %d are used, as if the release counted", j.Attempt, j.MaxAttempts)
			}
			c.Engine.Free()
			c.Wait(api, g.ID, "succeeded", 20*time.Second)
			c.Audit(api)
		})
	}
}

// cancelTime is how long a running generation may take to be canceled.
const cancelTime = 5 * time.Second

// Cancel of a running generation: at once where the engine can.
func TestCancelRunning(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	api := c.API("api")
	c.Scheduler("scheduler")
	c.Worker("worker")
	c.Engine.Hold()
	g := c.Submit(api, Request{Label: "unwanted"})
	call := c.Engine.Await(20*time.Second, c.Prompt("unwanted"), 1)
	next := c.Submit(api, Request{Label: "next"})
	c.cancelInTime(api, g.ID)
	select {
	case <-call.Gone:
	case <-time.After(5 * time.Second):
		t.Error("the engine was not stopped")
	}
	c.Engine.Await(5*time.Second, c.Prompt("next"), 1)
	c.Engine.Free()
	c.Wait(api, next.ID, "succeeded", 20*time.Second)
	c.Audit(api)
}

// Where the engine cannot stop, the generation is canceled in time all the same,
// and the slot stays taken until the engine is done.
func TestCancelWhereTheEngineCannot(t *testing.T) {
	t.Parallel()
	c := start(t, Options{CannotCancel: true})
	api := c.API("api")
	c.Scheduler("scheduler")
	c.Worker("worker")
	c.Engine.Hold()
	g := c.Submit(api, Request{Label: "unwanted"})
	call := c.Engine.Await(20*time.Second, c.Prompt("unwanted"), 1)
	next := c.Submit(api, Request{Label: "next"})
	c.cancelInTime(api, g.ID)
	canceled := time.Now()
	until(t, time.Minute, "a worker would have looked twice", func() bool {
		if c.Job(next.ID).State != "queued" || len(c.Engine.Calls(c.Prompt("next"))) > 0 {
			t.Fatal("the next generation began while the engine was busy")
		}
		return time.Since(canceled) > 5*time.Second
	})
	if call.Left() {
		t.Error("the connection to an engine that cannot stop was closed")
	}
	call.Answer()
	c.Engine.Await(5*time.Second, c.Prompt("next"), 1)
	c.Engine.Free()
	c.Wait(api, next.ID, "succeeded", 20*time.Second)
	c.Audit(api)
}

func (c *Cluster) cancelInTime(api *Process, id string) {
	c.t.Helper()
	asked := time.Now()
	if _, err := c.Cancel(api, id); err != nil {
		c.t.Fatal(err)
	}
	c.Wait(api, id, "canceled", 20*time.Second)
	took := time.Since(asked)
	c.t.Logf("canceled after %v", took)
	if took > cancelTime {
		c.t.Errorf("canceled after %v, want at most %v", took, cancelTime)
	}
}
