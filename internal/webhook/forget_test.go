package webhook

import (
	"context"
	"fmt"
	"testing"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

// An endpoint with much to tell is gone at once when it is deleted, and nothing is told
// any more; its log goes piece by piece.
func TestABusyEndpointIsDeletedAtOnce(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, r, v := context.Background(), newRig(t, d), receive(t, nil)
		e, _ := r.endpoint(v.URL)
		other, _ := r.endpoint("https://example.org/", "generation.failed")
		const n = 2*batch + 1
		for i := range n {
			r.succeeds(fmt.Sprint("gen_", i))
		}
		_, err := d.Exec(ctx, `INSERT INTO webhook_attempts (delivery, n, owner, at, took, status, error) SELECT id, 1, owner, created_at, 1, 500, 'unexpected_status' FROM webhook_deliveries`)
		r.must(err)
		_, err = d.Exec(ctx, `UPDATE jobs SET state = 'waiting', run_after = run_after + 3600000 WHERE id IN (SELECT job_id FROM webhook_deliveries ORDER BY id LIMIT 100)`)
		r.must(err)
		r.must(r.service.Delete(ctx, "sub_ada", e.ID))
		if left := r.count(`SELECT count(*) FROM webhook_endpoints WHERE id = ?`, e.ID); left != 0 || r.count(`SELECT count(*) FROM webhook_deliveries`) != n {
			t.Errorf("it is there still, or its log went with it")
		}
		code(t, "its log", second(r.service.Deliveries(ctx, "sub_ada", e.ID, "", "", 10)), problem.NotFound)
		r.work(Slots, SlotsPerEndpoint)
		r.until("its log and its jobs are gone", func() bool {
			return r.count(`SELECT count(*) FROM webhook_deliveries`)+r.count(`SELECT count(*) FROM webhook_attempts`)+
				r.count(`SELECT count(*) FROM jobs WHERE party = ? AND state IN ('queued', 'waiting', 'running')`, e.ID) == 0
		})
		if got := len(v.got()); got != 0 {
			t.Errorf("it was called %d times", got)
		}
		r.look(other.ID)
	})
}
