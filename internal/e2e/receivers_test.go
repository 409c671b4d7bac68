package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// toldWithin is how long after its end a receiver may learn of it, counted from
// the end of the fault that kept the news from everybody. The API asks the
// database every second and a receiver comes back after a quarter of one; the
// rest is this machine's, which runs many tests at once.
const toldWithin = 15 * time.Second

// comesBack is what a receiver waits after an answer that it cannot use.
const comesBack = 250 * time.Millisecond

// A way to wait for a generation. The receivers of a test take them in turn,
// beginning with any.
type way int

const (
	streams   way = iota // on the event stream, as long as it holds
	polls                // with long polls of 2 s
	hangsUp              // on the event stream, but leaves after each state and comes back with its id
	pollsLong            // with the longest polls there are
	ways
)

func anyWay() way { return way(rand.IntN(int(ways))) }

func (w way) String() string {
	return [...]string{"stream", "poll", "stream with pauses", "long poll"}[w]
}

// A receiver is a client that waits for one generation, at whichever API lives,
// until it was told of its end. Its findings may be read once done is closed.
type receiver struct {
	cluster *Cluster
	id      string
	way     way
	done    chan struct{}

	over  bool
	seen  []int64 // ids of the states on the stream
	ends  []end
	wrong []string // what must not happen, whatever the fault
}

// An end is how and when a generation ended, or when its receiver was told.
type end struct {
	status, code string
	images       []string // their ids in order
	at           time.Time
}

// follow starts the receiver of an accept; c.mu is held.
func (c *Cluster) follow(id string) *receiver {
	r := &receiver{cluster: c, id: id, way: (c.firstWay + way(len(c.accepts))) % ways, done: make(chan struct{})}
	ctx := c.t.Context() // ends with the test, before its cleanup
	c.following.Go(func() { r.run(ctx) })
	return r
}

func (r *receiver) run(ctx context.Context) {
	defer close(r.done)
	for ctx.Err() == nil {
		if api := r.cluster.livingAPI(); api != "" {
			switch r.way {
			case streams, hangsUp:
				r.stream(ctx, api)
			case polls:
				r.poll(ctx, api, 2)
			case pollsLong:
				r.poll(ctx, api, 60)
			}
		}
		if r.over {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(comesBack):
		}
	}
}

// ask sends a request and returns an answer of one of the wanted kinds, or nil
// when it is worth coming back. An answer that would send a client away for good
// is wrong: whoever was accepted is told its end.
func (r *receiver) ask(ctx context.Context, url, header, value string, wanted ...int) *http.Response {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		r.fail("%v", err)
		return nil
	}
	req.Header.Set("Authorization", "Bearer "+r.cluster.Key)
	if value != "" {
		req.Header.Set(header, value)
	}
	res, err := patient.Do(req)
	if err != nil {
		return nil
	}
	if slices.Contains(wanted, res.StatusCode) {
		return res
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusTooManyRequests && res.StatusCode < 500 {
		r.fail("the API answered %d", res.StatusCode)
	}
	return nil
}

func (r *receiver) fail(format string, args ...any) {
	r.wrong, r.over = append(r.wrong, fmt.Sprintf(format, args...)), true
}

// poll waits once. 200 says that the state is final, 202 that the wait ran out.
// No further answer can come to a poll that was told the end.
func (r *receiver) poll(ctx context.Context, api string, seconds int) {
	res := r.ask(ctx, api+"/v1/generations/"+r.id, "Prefer", "wait="+strconv.Itoa(seconds), http.StatusOK, http.StatusAccepted)
	if res == nil {
		return
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return // the API was killed in its answer
	}
	r.told("state", text)
	if final := res.StatusCode == http.StatusOK; final != (len(r.ends) > 0) && !r.over {
		r.fail("the API answered %d, and told it of its end %d times", res.StatusCode, len(r.ends))
	}
	r.over = r.over || len(r.ends) > 0
}

// stream follows the event stream until it ends. As browsers do, it comes back
// with the last id it saw until the API says that there is no more: so a final
// state told twice is seen twice.
func (r *receiver) stream(ctx context.Context, api string) {
	last := ""
	if len(r.seen) > 0 {
		last = strconv.FormatInt(r.seen[len(r.seen)-1], 10)
	}
	res := r.ask(ctx, api+"/v1/generations/"+r.id+"/events", "Last-Event-ID", last, http.StatusOK, http.StatusNoContent)
	if res == nil {
		return
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusNoContent {
		if r.over = true; len(r.ends) == 0 {
			r.fail("it was sent away before the end")
		}
		return
	}
	lines := bufio.NewReader(res.Body)
	for !r.over {
		event, err := readEvent(lines)
		if err != nil {
			return
		}
		if event.id != "" {
			id, err := strconv.ParseInt(event.id, 10, 64)
			if err != nil {
				r.fail("the id of an event is no number")
				return
			}
			if len(r.seen) > 0 && id <= r.seen[len(r.seen)-1] {
				r.fail("after the events %v came %d", r.seen, id)
			}
			r.seen = append(r.seen, id)
		}
		r.told(event.name, []byte(event.data))
		if r.way == hangsUp && event.id != "" {
			return
		}
	}
}

// told takes down what came.
func (r *receiver) told(what string, data []byte) {
	var g Generation
	switch err := json.Unmarshal(data, &g); {
	case what != "state" && what != "progress":
		r.fail("it was told of a %s", what)
	case err != nil:
		r.fail("what it was told is no JSON")
	case g.ID != r.id:
		r.fail("it was told of %s", g.ID)
	case g.Terminal():
		e := g.end()
		e.at = time.Now()
		r.ends = append(r.ends, e)
	}
}

type event struct{ name, id, data string }

// readEvent reads one server-sent event. One that was cut off in the middle
// does not count.
func readEvent(in *bufio.Reader) (event, error) {
	var e event
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return event{}, err
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			e.data += value
		case "":
			if line == "\n" && e.data != "" {
				return e, nil
			}
		}
	}
}

// patient is client without its time limit: streams last as long as they need.
var patient = &http.Client{Transport: client.Transport}

// livingAPI is the address of an API that has not ended; "" when there is none.
func (c *Cluster) livingAPI() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var alive []string
	for _, p := range c.processes {
		if p.URL != "" && p.Alive() {
			alive = append(alive, p.URL)
		}
	}
	if len(alive) == 0 {
		return ""
	}
	return alive[rand.IntN(len(alive))]
}

// Mended notes the end of a fault that kept every receiver from the news: no API
// lived, or none reached the database.
func (c *Cluster) Mended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mended = time.Now()
}

// auditReceivers wants every accept's receiver told once, in time, and what is
// true. All generations have ended.
func (c *Cluster) auditReceivers(truth map[string]end) {
	t := c.t
	t.Helper()
	ended := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), toldWithin)
	defer cancel()
	slowest, by, counts := time.Duration(0), way(0), [ways]int{}
	for _, a := range c.allAccepts() {
		r := a.receiver
		if !r.finished(ctx) {
			t.Errorf("generation %s has ended, and its receiver (%s) waits", a.ID, r.way)
			continue
		}
		for _, what := range r.wrong {
			t.Errorf("receiver (%s) of %s: %s", r.way, a.ID, what)
		}
		if len(r.ends) != 1 {
			t.Errorf("receiver (%s) of %s was told of its end %d times", r.way, a.ID, len(r.ends))
			continue
		}
		told, is := r.ends[0], truth[a.ID]
		if told.status != is.status || told.code != is.code || !slices.Equal(told.images, is.images) {
			t.Errorf("receiver (%s) of %s was told %s %q with images %v, and it is %s %q with %v", r.way, a.ID,
				told.status, told.code, told.images, is.status, is.code, is.images)
		}
		since := is.at
		if since.After(ended) {
			since = ended // by a clock that was wrong
		}
		if c.mended.After(since) {
			since = c.mended
		}
		if counts[r.way]++; told.at.Sub(since) > slowest {
			slowest, by = told.at.Sub(since), r.way
		}
		if told.at.Sub(since) > toldWithin {
			t.Errorf("receiver (%s) of %s was told of its end %v after it", r.way, a.ID, told.at.Sub(since))
		}
	}
	t.Logf("told once each: %d on streams, %d on streams with pauses, %d by polls, %d by long polls; the last %v after the end (%s)",
		counts[streams], counts[hangsUp], counts[polls], counts[pollsLong], slowest.Round(time.Millisecond), by)
}

// finished waits for the receiver's end.
func (r *receiver) finished(ctx context.Context) bool {
	select {
	case <-r.done:
		return true
	default:
	}
	select {
	case <-r.done:
		return true
	case <-ctx.Done():
		return false
	}
}
