package webhook

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

// Nobody comes any more to a delivery whose job has ended or is lost: a replay brings it
// another.
func TestAReplayDeliversWhatHasNoJobAnyMore(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]string{
		"failed": `UPDATE jobs SET state = 'failed', error_code = 'internal'`,
		"lost":   `DELETE FROM jobs`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testenv.Databases(t, func(t *testing.T, d *db.DB) {
				ctx, r, v := context.Background(), newRig(t, d), receive(t, nil)
				e, _ := r.endpoint(v.URL)
				r.succeeds("gen_1")
				r.succeeds("gen_2")
				_, err := d.Exec(ctx, lose)
				r.must(err)
				r.work(Slots, SlotsPerEndpoint)
				if _, err := r.service.Replay(ctx, "sub_ada", r.deliveries(e.ID)[0].ID); err != nil {
					t.Fatal(err)
				}
				r.until("one is told", func() bool { return r.deliveries(e.ID)[0].State == Delivered })
				if n, more, err := r.service.ReplayFailed(ctx, "sub_ada", e.ID, time.Time{}); n != 1 || more || err != nil {
					t.Errorf("%d, %v, %v", n, more, err)
				}
				r.until("so is the other", func() bool { return r.deliveries(e.ID)[1].State == Delivered })
			})
		})
	}
}

// What was asked for waits with everything else while the endpoint is left alone.
func TestAReplayLeavesAnOpenCircuitOpen(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx, v := context.Background(), receive(t, status(http.StatusBadGateway))
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_1")
		r.waits(1)
		open := r.count(`SELECT coalesce(open_until, 0) FROM webhook_endpoints`)
		_, err := r.service.Replay(ctx, "sub_ada", r.deliveries(e.ID)[0].ID)
		r.must(err)
		_, err = r.service.SendTest(ctx, "sub_ada", e.ID)
		r.must(err)
		_, _, err = r.service.ReplayFailed(ctx, "sub_ada", e.ID, time.Time{})
		r.must(err)
		if open == 0 || r.count(`SELECT coalesce(open_until, 0) FROM webhook_endpoints`) != open {
			t.Error("the circuit was closed")
		}
		for _, d := range r.deliveries(e.ID) {
			if d.NextAt.UnixMilli() < int64(open) {
				t.Errorf("%s comes at %s", d.Type, d.NextAt)
			}
		}
		v.answers(nil)
		r.until("both are told", func() bool {
			r.passIdle(time.Minute)
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 2
		})
	})
}

// What a replay puts off, since it has seen the webhook left alone, goes on with the
// others if that is over before the replay is written.
func TestAReplayThatHasSeenTheCircuitOpenIsCalledWhenItHasClosed(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, nil)
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_1")
		r.until("it is told", func() bool { return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 1 })
		r.tx(func(tx *db.Tx) error {
			seen, err := r.service.ready(t.Context(), tx, "sub_ada", e.ID)
			r.must(err)
			seen.OpenUntil = sql.NullInt64{Int64: r.clock.Now().Add(time.Hour).UnixMilli(), Valid: true}
			r.must(r.service.charge(t.Context(), tx, seen))
			return r.service.replay(t.Context(), tx, seen, replayed{ID: r.deliveries(e.ID)[0].ID, Endpoint: e.ID, State: Delivered})
		})
		r.pass(time.Millisecond)
		r.until("it is told again", func() bool { return len(v.got()) == 2 })
	})
}

func TestReplaysAndTestsAreBounded(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, r := context.Background(), newRig(t, d)
		e, _ := r.endpoint("https://example.org/")
		other, _ := r.endpoint("https://example.org/")
		for range askedBurst {
			_, err := r.service.SendTest(ctx, "sub_ada", e.ID)
			r.must(err)
		}
		refused := func(what string, err error) {
			t.Helper()
			var p *problem.Error
			if !errors.As(err, &p) || p.Code != problem.RateLimited || p.RetryAfter <= 0 || p.RetryAfter > askedEvery {
				t.Errorf("%s: %v", what, err)
			}
		}
		n := r.count(`SELECT count(*) FROM webhook_deliveries`)
		refused("a test", second(r.service.SendTest(ctx, "sub_ada", e.ID)))
		refused("a replay", second(r.service.Replay(ctx, "sub_ada", r.deliveries(e.ID)[0].ID)))
		_, _, err := r.service.ReplayFailed(ctx, "sub_ada", e.ID, time.Time{})
		refused("many replays", err)
		if now := r.count(`SELECT count(*) FROM webhook_deliveries`); now != n {
			t.Errorf("%d deliveries, not %d: what is refused leaves nothing", now, n)
		}
		_, err = r.service.SendTest(ctx, "sub_ada", other.ID)
		r.must(err)
		r.clock.Advance(askedEvery)
		_, err = r.service.Replay(ctx, "sub_ada", r.deliveries(e.ID)[0].ID)
		r.must(err)
		refused("one more", second(r.service.SendTest(ctx, "sub_ada", e.ID)))
	})
}

func TestOfADeliveryTheLastAttemptsAreShown(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		e, _ := r.endpoint("https://example.org/")
		r.succeeds("gen_1")
		r.succeeds("gen_2")
		for i := range 25 {
			for _, statement := range []string{
				`INSERT INTO webhook_attempts (delivery, n, owner, at, took, status, error) SELECT id, attempts + 1, owner, created_at, 1, 500, 'unexpected_status' FROM webhook_deliveries`,
				`UPDATE webhook_deliveries SET attempts = attempts + 1`,
			} {
				_, err := d.Exec(context.Background(), statement)
				r.must(err)
			}
			if i != 2 && i != 24 {
				continue
			}
			for _, delivery := range r.deliveries(e.ID) {
				if a := delivery.Attempts; len(a) != min(i+1, shown) || a[0].N != max(i+2-shown, 1) || a[len(a)-1].N != i+1 {
					t.Error(fmt.Sprint(len(a), " of ", i+1, " attempts"))
				}
			}
		}
	})
}
