package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// Two schedulers, and two of everything, started at once on empty databases:
// every tick once, under a kill of one too.
func TestTwoOfEverything(t *testing.T) {
	t.Parallel()
	c := start(t, Options{Bare: true})
	var all []*Process
	for k := range 2 {
		for _, command := range []string{binAPI, binWorker, binScheduler} {
			all = append(all, c.Prepare(fmt.Sprintf("%s-%d", command, k+1), command))
		}
	}
	for _, p := range all {
		p.Launch()
	}
	for _, p := range all {
		p.AwaitAnswer()
	}
	c.MakeUser()
	apis, schedulers := []*Process{all[0], all[3]}, []*Process{all[2], all[5]}

	const each = 15
	var clients sync.WaitGroup
	for k := range 2 * each {
		clients.Go(func() {
			if _, err := c.Try(t.Context(), apis[k%2], Request{Label: fmt.Sprint("pair ", k)}); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	c.auditEnds(time.Minute)
	for k := range 2 * each {
		if n := len(c.Engine.Calls(c.Prompt(fmt.Sprint("pair ", k)))); n != 1 {
			t.Errorf("generation %d was made %d times", k, n)
		}
	}

	// Both are about to insert the same tick.
	forgotten := 0
	tie := func() (letGo func()) {
		for {
			letGo := c.Hold(`LOCK TABLE schedule_ticks IN EXCLUSIVE MODE`)
			if c.Count(`SELECT count(*) FROM schedule_ticks`) == 0 {
				return letGo
			}
			letGo()
			n, err := c.DB.Exec(t.Context(), `DELETE FROM schedule_ticks WHERE name = 'generation-sweep'`)
			if err != nil {
				t.Fatal(err)
			}
			forgotten += int(n)
			if _, err := c.DB.Exec(t.Context(), `DELETE FROM schedule_ticks WHERE name <> 'generation-sweep'`); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One that happens to clear old ticks away waits too, but not for a tick: then
	// it is tried anew.
	bothWant := func() (letGo func()) {
		t.Helper()
		for tries := 0; ; tries++ {
			letGo := tie()
			for range 100 {
				if c.Blocked("INSERT INTO schedule_ticks") == 2 {
					return letGo
				}
				time.Sleep(50 * time.Millisecond)
			}
			if letGo(); tries == 5 {
				t.Fatal("both schedulers never want the same tick")
			}
		}
	}
	ticked := func() {
		t.Helper()
		const ours = `SELECT count(*) FROM schedule_ticks WHERE name = 'generation-sweep'`
		until(t, 20*time.Second, "the tick", func() bool { return c.Count(ours) > 0 })
		ticks := forgotten + c.Count(ours)
		if n := c.Count(`SELECT count(*) FROM jobs WHERE ref = 'generation-sweep'`); n != ticks {
			t.Errorf("%d jobs for %d ticks", n, ticks)
		}
	}
	ticked()
	for range 3 {
		letGo := bothWant()
		letGo()
		until(t, 20*time.Second, "both have gone on", func() bool { return c.Blocked("INSERT INTO schedule_ticks") == 0 })
		ticked()
	}
	letGo := bothWant()
	schedulers[0].Kill9()
	letGo()
	ticked()
	schedulers[0].Start()
	letGo = bothWant()
	letGo()
	ticked()
	until(t, 30*time.Second, "the jobs of all ticks have run", func() bool {
		return c.Count(`SELECT count(*) FROM jobs WHERE ref = 'generation-sweep' AND state <> 'succeeded'`) == 0
	})
	if n := c.Count(`SELECT count(*) FROM jobs WHERE attempt > 1`); n > 0 {
		t.Errorf("%d jobs took more than one attempt", n)
	}
	ticked()
	c.Audit(apis[1])
}
