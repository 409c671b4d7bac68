package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"zimage/internal/e2e/proxy"
)

// refused submits once and wants no other answer than that the service cannot
// now: never that the key or the request is wrong.
func (s *service) refused(r Request) {
	s.t.Helper()
	_, err := s.Try(s.t.Context(), s.api, r)
	var status *StatusError
	if !errors.As(err, &status) || status.Status != http.StatusServiceUnavailable {
		s.t.Errorf("without a database a submit got %v", err)
	}
}

// The results of what ran are kept and completed when the database is back; the
// engine makes nothing twice.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{Slots: 4})
	s.fill()
	if err := s.Postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	s.Engine.Free()
	key := Request{Label: "meanwhile", Key: rand.Text()}
	s.refused(key)
	for _, p := range []*Process{s.api, s.workers[0]} {
		says(t, p, http.StatusServiceUnavailable, "unavailable")
	}
	if err := s.Postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Mended()
	s.Submit(s.api, key)
	s.accept("after", inFlight)
	s.conclude()
	for _, p := range append(s.workers, s.api) {
		says(t, p, http.StatusOK, `"state":"ready","parts"`)
	}
}

// Every lease passes meanwhile. The jobs are still their workers' afterwards.
func TestPostgresAwayFor30Seconds(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name string
		away func(*proxy.Postgres, bool)
	}{
		{"refuses", (*proxy.Postgres).Refuse},
		{"is silent", (*proxy.Postgres).Freeze},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			o := Options{Slots: 4}
			p := beforePostgres(t, &o)
			s := serve(t, o)
			s.fill()
			calls := s.Engine.Calls("")
			way.away(*p, true)
			calls[0].Answer() // these results have to wait
			calls[1].Answer()
			during(30*time.Second, func() {})
			for _, c := range calls[2:] {
				if c.Left() {
					t.Error("a running generation was stopped")
				}
			}
			way.away(*p, false)
			s.Mended()
			until(t, 20*time.Second, "the waiting results are complete", func() bool { return s.finished() >= 2 })
			s.Engine.Free()
			s.Submit(s.api, Request{Label: "after"})
			s.conclude()
		})
	}
}

func TestPostgresCommitAnswerLost(t *testing.T) {
	t.Parallel()
	o := Options{Slots: 4}
	p := beforePostgres(t, &o)
	s := serve(t, o)

	// At accept: whoever asks again with the same key gets the same generation.
	cut := (*p).CutReply(5, func(d proxy.Done) bool { return d.Committed("INSERT INTO generations") })
	s.Engine.Hold()
	var work sync.WaitGroup
	for k := range inFlight {
		work.Go(func() { s.Submit(s.api, Request{Label: fmt.Sprintf("accept %d", k)}) })
	}
	work.Wait()
	if cut.Struck() != 5 {
		t.Errorf("%d accepts lost their answer, want 5", cut.Struck())
	}
	if n := s.Count(`SELECT count(*) FROM generations`); n != inFlight {
		t.Errorf("%d generations for %d requests", n, inFlight)
	}
	again := Request{Label: "again", Key: rand.Text()}
	cut = (*p).CutReply(1, func(d proxy.Done) bool { return d.Committed("INSERT INTO generations") })
	s.refused(again)
	if first, second := s.Submit(s.api, again), s.Submit(s.api, again); cut.Struck() != 1 || first.ID != second.ID {
		t.Errorf("the same key made %s and %s", first.ID, second.ID)
	}

	// At completion and at claim.
	s.busy(8)
	completed := (*p).CutReply(5, func(d proxy.Done) bool { return d.Committed("INSERT INTO images") })
	claimed := (*p).CutReply(3, func(d proxy.Done) bool { return d.Ran("SET state = 'running'") })
	s.Engine.Free()
	s.conclude()
	if completed.Struck() != 5 || claimed.Struck() != 3 {
		t.Errorf("%d completions and %d claims lost their answer", completed.Struck(), claimed.Struck())
	}
}

// Nobody knows whether a result was committed when the answer is lost, the
// database away and the worker stopped: its objects must not be touched.
func TestPostgresCommitAnswerLostAndWorkerStopped(t *testing.T) {
	t.Parallel()
	o := Options{Slots: 1, Settings: []string{"SHUTDOWN_TIMEOUT=1s"}}
	p := beforePostgres(t, &o)
	s := &service{Cluster: start(t, o)}
	s.api = s.API("api")
	worker := s.Worker("worker-1")
	s.Scheduler("scheduler")
	s.Engine.Hold()
	s.accept("before", inFlight)
	s.busy(1)
	var once sync.Once
	cut := (*p).CutReply(1, func(d proxy.Done) bool {
		if !d.Committed("INSERT INTO images") {
			return false
		}
		once.Do(func() { (*p).Refuse(true) })
		return true
	})
	s.Engine.Free()
	until(t, 20*time.Second, "a completion loses its answer", func() bool { return cut.Struck() == 1 })
	drain(worker, 30*time.Second)
	(*p).Refuse(false)
	s.Mended()
	s.Worker("worker-2")
	s.Audit(s.api) // what else the worker had in its memory is made again
	if n := s.finished(); n != len(s.accepts) {
		t.Errorf("%d generations succeeded of %d accepted", n, len(s.accepts))
	}
}
