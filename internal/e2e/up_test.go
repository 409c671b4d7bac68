package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// zimage up, killed in the middle of a generation and started again, finds its
// data and completes the generation once.
func TestUpKilledAndStartedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.Engine = startEngine(t)
	engines, data := filepath.Join(c.dir, "engines.yaml"), filepath.Join(c.dir, "data")
	if err := os.WriteFile(engines, []byte(enginesFile(c.Engine.address, Options{})), 0o600); err != nil {
		t.Fatal(err)
	}
	c.settings = []string{"DATA=" + data, "ENGINES=" + engines, "LOG_LEVEL=debug"}
	t.Cleanup(c.end)
	up := c.begin(c.Prepare("up", binZimage))
	key := func() string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(data, "first-key"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	c.Key = key()
	before := c.Submit(up, Request{Label: "before"})
	c.Wait(up, before.ID, "succeeded", 20*time.Second)

	c.Engine.Hold()
	g := c.Submit(up, Request{Label: "interrupted", N: 2})
	c.Engine.Await(20*time.Second, c.Prompt("interrupted"), 1)
	up.Kill9()
	c.Engine.Free()
	up.Start()
	c.Mended()
	started := time.Now()
	if key() != c.Key {
		t.Error("the second start made another key")
	}
	c.Wait(up, g.ID, "succeeded", 20*time.Second)
	t.Logf("from the second start to the end of the generation: %v", time.Since(started))
	if n := up.Metric("zimage_leases_lost_total"); n != 0 {
		t.Errorf("%v jobs were found by their lost lease: they were not given back at the start", n)
	}
	list, err := c.List(up)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || len(list[0].Images) != 2 || len(list[1].Images) != 1 {
		t.Errorf("after the second start: %+v", list)
	}
	if n := len(c.Engine.Calls(c.Prompt("interrupted"))); n != 3 {
		t.Errorf("the engine was called %d times, want once before the kill and twice after it", n)
	}
	until(t, sweepTime, "an object and a thumbnail for each of the three images, and nothing else", func() bool {
		n := 0
		err := filepath.WalkDir(filepath.Join(data, "objects"), func(_ string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				n++
			}
			return nil
		})
		return err == nil && n == 6
	})
	truth := map[string]end{}
	for _, g := range list {
		truth[g.ID] = g.end()
	}
	c.auditReceivers(truth)
	c.auditImages(up)
	up.Term()
	if code := up.Ended(20 * time.Second); code != 0 {
		t.Errorf("up ended with %d", code)
	}
	if strings.Contains(up.Log(), c.Canary) {
		t.Error("the prompt is in the log")
	}
	if path := fileWith(t, c.dir, c.Canary); path != "" {
		t.Errorf("the prompt can be read in %s", path)
	}
}
