package webhook

import (
	"database/sql"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
)

// One answer that asks for less opens a circuit; one failure of another kind does not.
func TestOneAnswerThatAsksForLessOpensACircuit(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		opens := map[int]int{429: 1, 502: 1, 504: 1, 500: 0}
		ids := map[int]string{}
		for code := range opens {
			e, _ := r.endpoint(receive(t, status(code)).URL)
			ids[code] = e.ID
		}
		r.succeeds("gen_1")
		r.waits(len(opens)) // each was called once, and the clock stands still
		for code, want := range opens {
			if n := r.count(`SELECT count(*) FROM webhook_endpoints WHERE id = ? AND failures = 1 AND open_until IS NOT NULL`, ids[code]); n != want {
				t.Errorf("after one %d: %d circuits are open, want %d", code, n, want)
			}
		}
	})
}

// When an endpoint has been left alone for long enough one call tries it, however many
// wait: what comes of that decides for all.
func TestOneCallTriesWhatWasLeftAlone(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, status(http.StatusBadGateway))
		r.endpoint(v.URL)
		const n = 50
		for i := range n {
			r.succeeds(fmt.Sprint("gen_", i))
		}
		r.waits(n)
		// Those that were called wait for their own time; of the others one.
		if due := r.count(`SELECT count(*) FROM jobs WHERE state = 'waiting' AND run_after <= (SELECT max(open_until) FROM webhook_endpoints)`); due < 1 || due > 10 {
			t.Errorf("%d of %d are due when it is tried", due, n)
		}
		before := len(v.got())
		r.pass(restMost + time.Second)
		r.until("it is tried", func() bool { return len(v.got()) > before })
		r.waits(n)
		if got := len(v.got()) - before; got != 1 {
			t.Errorf("%d calls", got)
		}
		release := make(chan struct{})
		let := sync.OnceFunc(func() { close(release) })
		t.Cleanup(let)
		v.answers(func(http.ResponseWriter, int) { <-release })
		r.pass(2 * restMost)
		r.until("it is tried again", func() bool { return len(v.got()) > before+1 })
		r.waits(n - 1)
		if got := len(v.got()) - before; got != 2 {
			t.Errorf("%d calls while one tries", got-1)
		}
		let()
		r.until("all is told", func() bool {
			r.passIdle(time.Minute)
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == n
		})
	})
}

// What happens while it is tried goes on with all others, once that has succeeded, and
// does not wait for the time at which it would come by itself.
func TestWhatComesWhileItIsTriedIsCalledWithTheOthers(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, status(http.StatusBadGateway))
		r.endpoint(v.URL)
		r.succeeds("gen_1")
		r.waits(1)
		release := make(chan struct{})
		let := sync.OnceFunc(func() { close(release) })
		t.Cleanup(let)
		v.answers(func(http.ResponseWriter, int) { <-release })
		r.pass(restMost)
		r.until("it is tried", func() bool { return len(v.got()) == 2 })
		r.succeeds("gen_2") // tries after it
		r.succeeds("gen_3")
		if n := r.count(`SELECT count(*) FROM jobs WHERE state = 'waiting' AND run_after > ?`, r.clock.Now().Add(called).UnixMilli()); n != 1 {
			t.Errorf("%d jobs wait to be called", n)
		}
		let()
		r.until("the first is told", func() bool { return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 1 })
		r.idle()
		r.pass(time.Millisecond)
		r.until("the others are told", func() bool { return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 3 })
	})
}

// What happens at the very moment at which it closes does not miss the call.
func TestWhatComesAsItClosesIsCalledToo(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, nil)
		e, _ := r.endpoint(v.URL)
		r.tx(func(tx *db.Tx) error { // as an event that has seen it open
			event := r.service.keep(t.Context(), tx, events.Event{Type: events.GenerationSucceeded, Subject: "sub_ada", Ref: "gen_1", At: r.clock.Now()})
			r.service.begin(t.Context(), tx, "sub_ada", listener{ID: e.ID, OpenUntil: sql.NullInt64{Int64: r.clock.Now().Add(time.Minute).UnixMilli(), Valid: true}}, event)
			return nil
		})
		r.pass(time.Millisecond)
		r.until("it is told", func() bool { return len(v.got()) == 1 })
	})
}

// Who has seen it open puts nothing off when it has closed since: nobody would call that.
func TestNothingIsPutOffOnceItHasClosed(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		e, _ := r.endpoint(receive(t, status(http.StatusInternalServerError)).URL)
		r.succeeds("gen_1")
		r.waits(1)
		due := r.count(`SELECT run_after FROM jobs WHERE state = 'waiting'`)
		seen := sql.NullInt64{Int64: r.clock.Now().Add(time.Minute).UnixMilli(), Valid: true}
		wait, err := r.service.pass(t.Context(), circuit{table: "webhook_endpoints", party: e.ID, ID: e.ID, OpenUntil: seen})
		if err != nil || wait <= 0 || wait > time.Second {
			t.Errorf("it waits %v, %v", wait, err)
		}
		if now := r.count(`SELECT run_after FROM jobs WHERE state = 'waiting'`); now != due {
			t.Errorf("the other is put off by %d ms", now-due)
		}
		// What runs while it is open is not called when it closes: it looks again soon.
		r.tx(func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE webhook_endpoints SET open_until = ?`, seen.Int64)
			return err
		})
		wait, err = r.service.pass(t.Context(), circuit{table: "webhook_endpoints", party: e.ID, ID: e.ID, OpenUntil: seen})
		if err != nil || wait != probing {
			t.Errorf("it waits %v, %v", wait, err)
		}
	})
}

// Where nothing else waits, what comes next is what tries, as soon as that is allowed: the
// one that failed waits for its own time.
func TestTheNextEventTriesWhereNothingElseWaits(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, status(http.StatusBadGateway))
		r.endpoint(v.URL)
		r.succeeds("gen_0")
		for n := 1; ; n++ {
			r.until("it is called", func() bool { return len(v.got()) == n })
			r.idle()
			if r.count(`SELECT count(*) FROM jobs j, webhook_endpoints e WHERE j.run_after > e.open_until + ?`, called.Milliseconds()) == 1 {
				break
			}
			r.pass(time.Duration(r.count(`SELECT max(run_after) FROM jobs`)-int(r.clock.Millis())) * time.Millisecond)
		}
		r.succeeds("gen_1")
		r.succeeds("gen_2")
		for i, waits := range []time.Duration{0, called} {
			if n := r.count(`SELECT count(*) FROM jobs j, webhook_endpoints e WHERE j.run_after = e.open_until + ?`, waits.Milliseconds()); n != 1 {
				t.Errorf("%d jobs wait as the event number %d should", n, i+1)
			}
		}
	})
}

// What one call was asked to wait for is not shortened by another that fails.
func TestALongerRestIsKept(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		e, _ := r.endpoint("http://127.0.0.1:9")
		c := circuit{table: "webhook_endpoints", party: e.ID, owner: "sub_ada", ID: e.ID}
		f := failing{Failures: patience, FailingSince: r.clock.Millis()}
		r.tx(func(tx *db.Tx) error {
			for _, asked := range []time.Duration{30 * time.Minute, 0} {
				rest, err := r.service.opens(t.Context(), tx, c, f, outcome{asked: asked}, r.clock.Now())
				if err != nil || rest != 30*time.Minute {
					t.Errorf("asked to wait %v it is left alone for %v, %v", asked, rest, err)
				}
			}
			return nil
		})
	})
}

// So it is with a host to which addresses of single generations lead, and with that one
// alone; nothing of it stays once something has arrived.
func TestAHostOfSingleAddressesIsLeftAlone(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		dead, living := receive(t, status(http.StatusBadGateway)), receive(t, nil)
		one := func(generation, url string) {
			t.Helper()
			r.must(r.queues(generation, url, ""))
			r.succeeds(generation)
		}
		one("gen_0", dead.URL)
		r.until("it is left alone", func() bool { return r.count(`SELECT count(*) FROM webhook_hosts WHERE open_until IS NOT NULL`) == 1 })
		for i := 1; i < 5; i++ {
			one(fmt.Sprint("gen_", i), dead.URL+fmt.Sprint("/", i))
		}
		one("gen_living", living.URL)
		r.until("all wait and the other is told", func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE state = 'waiting'`) == 5 && len(living.got()) == 1
		})
		if got := len(dead.got()); got != 1 {
			t.Errorf("%d calls", got)
		}
		dead.answers(nil)
		r.until("all is told", func() bool {
			r.passIdle(time.Minute)
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 6
		})
		if n := r.count(`SELECT count(*) FROM webhook_hosts`); n != 0 {
			t.Errorf("%d hosts are kept", n)
		}
	})
}
