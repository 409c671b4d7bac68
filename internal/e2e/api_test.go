package e2e

import (
	"net"
	"testing"
	"time"
)

// kill -9 API after commit, before the doorbell: the job runs within 3 s.
func TestKillAPIBeforeDoorbell(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	api := c.API("api", "REDIS_URL=redis://"+silent(t)+"/0")
	c.Worker("worker")
	c.Scheduler("scheduler")
	request := Request{Label: "bell", Key: "once"}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _ = c.Try(t.Context(), api, request) // the kill may come before the answer
	}()
	until(t, 20*time.Second, "the commit", func() bool {
		return c.Count(`SELECT count(*) FROM jobs WHERE kind = 'generation:run'`) == 1
	})
	committed := time.Now()
	api.Kill9()
	<-answered
	call := c.Engine.Await(20*time.Second, c.Prompt("bell"), 1)
	took := call.Arrived.Sub(committed)
	t.Logf("from the commit to the engine: %v", took)
	if took > 3*time.Second {
		t.Errorf("the job ran after %v, want at most 3 s", took)
	}
	if c.heard.has("generation:run") {
		t.Error("there was a ring: this test shows nothing")
	}

	api = c.API("api-2")
	c.Mended()
	g := c.Submit(api, request)
	c.Wait(api, g.ID, "succeeded", 20*time.Second)
	if n := c.Count(`SELECT count(*) FROM generations`); n != 1 {
		t.Errorf("%d generations for one Idempotency-Key", n)
	}
	if n := len(c.Engine.Calls("")); n != 1 {
		t.Errorf("the engine was called %d times, want once", n)
	}
	c.Audit(api)
}

// kill -9 API while clients wait: they go to the other one, or come back when it
// is there again, and miss nothing.
func TestKillAPIWhileClientsWait(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{Slots: 4})
	other := s.API("api-2")
	s.Engine.Hold()
	s.accept("before", inFlight)
	s.busy(8)
	s.api.Kill9()
	calls := s.Engine.Calls("")
	for _, call := range calls {
		call.Answer()
	}
	until(t, 20*time.Second, "generations end while one API is away", func() bool { return s.finished() >= len(calls) })
	s.busy(8)
	other.Kill9()
	calls = s.Engine.Calls("")
	for _, call := range calls {
		call.Answer()
	}
	until(t, 20*time.Second, "generations end while both are away", func() bool { return s.finished() >= len(calls) })
	s.busy(8)
	s.api.Start()
	s.Mended()
	s.Engine.Free()
	s.conclude()
}

// silent is an address that accepts connections and never answers.
func silent(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}
