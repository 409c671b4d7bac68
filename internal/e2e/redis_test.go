package e2e

import (
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/e2e/proxy"
)

// bell is the lane whose rings the tests meddle with.
const bell = "asynq:{generation}"

// straight is a client of the cluster's Redis, past the proxy.
func (s *service) straight() *redis.Client {
	s.t.Helper()
	options, err := redis.ParseURL(s.Redis.URL())
	if err != nil {
		s.t.Fatal(err)
	}
	r := redis.NewClient(options)
	s.t.Cleanup(func() { _ = r.Close() })
	return r
}

// fill has the engine hold what it gets, accepts the first requests and returns
// when every slot is taken, with the slowest accept without a fault.
func (s *service) fill() time.Duration {
	s.t.Helper()
	s.Engine.Hold()
	usual := slices.Max(s.accept("before", inFlight))
	s.busy(8)
	return usual
}

// promptly is how much longer an accept may take while Redis is away than before,
// on this machine and under this load. Any wait for Redis in its path would be
// as long: to connect takes a second there, an answer three. With the rest that
// Redis is given then it would meet every fourth accept; one in ten may be late
// because the machine paused.
const promptly = time.Second

// acceptPromptly accepts n requests, none of which waits for Redis.
func (s *service) acceptPromptly(label string, n int, usual time.Duration) {
	s.t.Helper()
	for _, took := range s.accept(label, n) {
		s.hurried++
		if took > usual+promptly {
			s.late++
			s.t.Logf("an accept took %v, before the fault at most %v", took, usual)
		}
	}
}

func TestRedisKilled(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{Slots: 4})
	usual := s.fill()
	if err := s.Redis.Kill(); err != nil {
		t.Fatal(err)
	}
	s.acceptPromptly("meanwhile", inFlight, usual)
	for _, p := range []*Process{s.api, s.workers[0]} {
		says(t, p, http.StatusOK, "degraded")
	}
	// All of it is done without Redis, by a worker too that starts without it.
	late := s.Worker("worker-3")
	s.Engine.Free()
	until(t, time.Minute, "all ends without Redis", func() bool { return s.finished() == 2*inFlight })
	if err := s.Redis.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Process{s.api, s.workers[0], late} {
		says(t, p, http.StatusOK, `"state":"ready","parts"`)
	}
	s.acceptPromptly("after", 5, usual)
	s.conclude()
}

// asynq's leases and its handlers' deadlines pass meanwhile: it cancels what it
// believes to be its own. Some generations run all the time; the other slots go
// on: what was accepted before and meanwhile is claimed, made and told of.
func TestRedisAwayFor45Seconds(t *testing.T) {
	t.Parallel()
	o := Options{Slots: 4}
	p := beforeRedis(t, &o)
	s := serve(t, o)
	usual := s.fill()
	(*p).Freeze(true)
	const away = 45 * time.Second
	frozen := time.Now()
	long := s.Engine.Calls("")[:4] // the calls that outlast the fault
	answer := func() {
		for _, c := range s.Engine.Calls("") {
			if !slices.Contains(long, c) {
				c.Answer()
			}
		}
	}
	k, before := 0, 0
	during(away, func() {
		k++
		s.acceptPromptly("meanwhile "+strconv.Itoa(k), 1, usual)
		if time.Since(frozen) < away/2 {
			before = len(s.Engine.Calls(""))
		} else {
			answer()
		}
	})
	says(t, s.api, http.StatusOK, "degraded")
	if before != 8 {
		t.Errorf("%d calls at the engine's 8 slots before the first was answered", before)
	}
	until(t, 30*time.Second, "all but the long ones end while Redis hangs", func() bool {
		answer()
		return s.finished() == len(s.accepts)-len(long)
	})
	for _, c := range long {
		if c.Left() {
			t.Error("a running generation was stopped")
		}
	}
	(*p).Freeze(false)
	s.Engine.Free()
	s.conclude()
}

func TestRedisFlushed(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{Slots: 4})
	usual := s.fill()
	r := s.straight()
	if n, err := r.DBSize(t.Context()).Result(); err != nil || n == 0 {
		t.Fatalf("nothing to flush: %d, %v", n, err)
	}
	if err := r.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	s.acceptPromptly("after", inFlight, usual)
	s.Engine.Free()
	s.conclude()
}

// A ring whose lease is gone is one that asynq never recovers.
func TestRedisLeaseDeleted(t *testing.T) {
	t.Parallel()
	s := serve(t, Options{Slots: 4})
	usual := s.fill()
	r := s.straight()
	until(t, 20*time.Second, "a ring is being answered", func() bool { return r.ZCard(t.Context(), bell+":lease").Val() > 0 })
	deleted := 0
	during(35*time.Second, func() { // asynq's lease is 30 s
		deleted += int(r.Del(t.Context(), bell+":lease").Val())
	})
	if deleted == 0 {
		t.Fatal("no lease was deleted")
	}
	for _, c := range s.Engine.Calls("") {
		if c.Left() {
			t.Error("a running generation was stopped")
		}
	}
	s.acceptPromptly("after", inFlight, usual)
	s.Engine.Free() // not before: what runs would take the time
	s.conclude()
}

func TestRedisReplyCut(t *testing.T) {
	t.Parallel()
	o := Options{Slots: 4}
	p := beforeRedis(t, &o)
	s := serve(t, o)
	usual := s.fill()
	for _, moment := range []struct {
		name  string
		match func(proxy.Command) bool
	}{
		{"at enqueue", proxy.Enqueued}, {"at dequeue", proxy.Dequeued}, {"at acknowledge", proxy.Acknowledged},
	} {
		s.Engine.Hold()
		cut := (*p).CutReply(3, moment.match)
		s.acceptPromptly(moment.name, inFlight, usual)
		s.busy(8)
		s.Engine.Free()
		until(t, time.Minute, "all ends, the reply cut "+moment.name, func() bool { return s.finished() == len(s.accepts) })
		// A ring is acknowledged when there is nothing left to do.
		until(t, time.Minute, "the reply is cut "+moment.name, func() bool {
			if cut.Struck() < 3 {
				s.acceptPromptly(moment.name+time.Now().String(), 1, usual)
			}
			return cut.Struck() == 3
		})
	}
	s.conclude()
}
