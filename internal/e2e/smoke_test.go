package e2e

import (
	"testing"
	"time"
)

// Without a fault everything ends well: what the other tests rest on.
func TestNoFault(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	api := c.API("api")
	c.Worker("worker")
	c.Scheduler("scheduler")
	one, two := c.Submit(api, Request{Label: "one"}), c.Submit(api, Request{Label: "two", N: 2})
	c.Wait(api, one.ID, "succeeded", 20*time.Second)
	c.Wait(api, two.ID, "succeeded", 20*time.Second)
	if n := len(c.Engine.Calls("")); n != 3 {
		t.Errorf("the engine was called %d times for 3 images", n)
	}
	c.Audit(api)
	if !c.heard.has("generation:run") {
		t.Error("no ring was heard in Redis: the monitor does not listen")
	}
}
