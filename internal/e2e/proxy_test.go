package e2e

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zimage/internal/e2e/proxy"
)

// inFlight is how many generations a fault meets at least.
const inFlight = 30

// service is a cluster of an API, two workers and a scheduler.
type service struct {
	*Cluster
	api     *Process
	workers []*Process

	hurried, late int // accepts that were not to wait, and how many of them did
}

func serve(t *testing.T, o Options) *service {
	t.Helper()
	s := &service{Cluster: start(t, o)}
	s.api = s.API("api")
	s.workers = []*Process{s.Worker("worker-1"), s.Worker("worker-2")}
	s.Scheduler("scheduler")
	return s
}

// accept submits n requests, a few at a time, each once: every one of them has
// to be accepted. It returns how long each took.
func (s *service) accept(label string, n int) []time.Duration {
	s.t.Helper()
	took := make([]time.Duration, n)
	next := make(chan int)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for k := range next {
				began := time.Now()
				_, err := s.Try(s.t.Context(), s.api, Request{Label: fmt.Sprintf("%s %d", label, k)})
				took[k] = time.Since(began)
				if err != nil {
					s.t.Errorf("submit %s %d: %v after %v", label, k, err, took[k])
				}
			}
		})
	}
	for k := range n {
		next <- k
	}
	close(next)
	work.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
	return took
}

// busy waits until the engine makes n images at once.
func (s *service) busy(n int) {
	s.t.Helper()
	until(s.t, 30*time.Second, fmt.Sprintf("%d calls at the engine", n), func() bool {
		open := 0
		for _, c := range s.Engine.Calls("") {
			if !c.Answered() && !c.Left() {
				open++
			}
		}
		return open >= n
	})
}

// finished is how many generations have succeeded.
func (s *service) finished() int {
	s.t.Helper()
	return s.Count(`SELECT count(*) FROM generations WHERE status = 'succeeded'`)
}

// oneCallEach wants every accept made by exactly one call: nothing that ran was
// stopped, and no result was lost and made again.
func (s *service) oneCallEach() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, a := range s.accepts {
		if n := len(s.Engine.Calls(a.Prompt)); n != a.Images {
			s.t.Errorf("the engine was called %d times for the %d images of %s", n, a.Images, id)
		}
	}
}

// conclude audits, and wants each accept succeeded by one call, and prompt where
// it had to be.
func (s *service) conclude() {
	s.t.Helper()
	if s.late*10 > s.hurried {
		s.t.Errorf("%d of %d accepts took more than %v longer than before the fault", s.late, s.hurried, promptly)
	}
	s.Audit(s.api)
	s.oneCallEach()
	if n := s.finished(); n < len(s.accepts) {
		s.t.Errorf("%d generations succeeded of %d accepted", n, len(s.accepts))
	}
}

// says waits until /readyz of a process has a status and a text.
func says(t *testing.T, p *Process, status int, text string) {
	t.Helper()
	until(t, 20*time.Second, fmt.Sprintf("readyz of %s is %d with %s", p.Name, status, text), func() bool {
		got, body := p.Ready()
		return got == status && strings.Contains(body, text)
	})
}

// during calls do every half second for as long as a fault lasts.
func during(d time.Duration, do func()) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	end := time.After(d)
	for {
		select {
		case <-end:
			return
		case <-tick.C:
			do()
		}
	}
}

// The proxies, as options of a cluster.

func beforeRedis(t *testing.T, o *Options) **proxy.Redis {
	var p *proxy.Redis
	o.RedisURL = func(url string) string {
		var err error
		address := hostOf(url)
		if p, err = proxy.NewRedis(address); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return strings.Replace(url, address, p.Addr(), 1)
	}
	return &p
}

// beforePostgres puts one proxy before both databases.
func beforePostgres(t *testing.T, o *Options) **proxy.Postgres {
	var p *proxy.Postgres
	o.DatabaseURL = func(url string) string {
		address := hostOf(url)
		if p == nil {
			var err error
			if p, err = proxy.NewPostgres(address); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
		}
		return strings.Replace(url, address, p.Addr(), 1)
	}
	o.KeysDatabaseURL = o.DatabaseURL
	return &p
}

func beforeObjects(t *testing.T, o *Options) **proxy.Objects {
	var p *proxy.Objects
	o.S3Endpoint = func(address string) string {
		p = proxy.NewObjects(address)
		t.Cleanup(p.Close)
		return p.Addr()
	}
	return &p
}

// hostOf is the host and port of a store's address.
func hostOf(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	host, _, _ := strings.Cut(rest, "/")
	if _, after, found := strings.Cut(host, "@"); found {
		return after
	}
	return host
}

// drain ends a process as an operator does and wants it gone in time.
func drain(p *Process, within time.Duration) {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	p.Ended(within)
}
