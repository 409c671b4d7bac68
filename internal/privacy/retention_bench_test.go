package privacy_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/privacy"
)

const expiring = 1000

// BenchmarkSweep ends 1,000 generations with their images, of 100,000 and of
// 1,000,000 that are stored: the ratio of the two times is what storing more costs.
// The floor deletes as many rows and objects without looking, one statement a table
// and a thousand objects a call.
func BenchmarkSweep(b *testing.B) {
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				var took []time.Duration
				sizes := []int{100_000, 1_000_000}
				for _, stored := range sizes {
					h := newHome(b, privacy.Stacks[name])
					h.stored(stored)
					rows, objects := h.sweep()
					took = append(took, rows)
					if n := h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`); n != stored-expiring {
						b.Fatalf("%d are left", n)
					}
					b.ReportMetric(rows.Seconds()*1000, fmt.Sprintf("ms/rows-of-%d", stored))
					if stored == sizes[0] {
						floor := h.floor()
						b.ReportMetric(2*expiring/objects.Seconds(), "objects/s")
						b.ReportMetric(expiring/(rows+objects).Seconds(), "generations/s")
						b.ReportMetric((rows+objects).Seconds()/floor.Seconds(), "ratio-to-floor")
					}
				}
				b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "ratio")
			}
		})
	}
}

// BenchmarkAcceptDuringASweep is the 95th percentile of accepting a prompt while a
// sweep is at work, as a ratio to that without one.
func BenchmarkAcceptDuringASweep(b *testing.B) {
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				h := newHome(b, privacy.Stacks[name])
				h.stored(20_000)
				h.generate.QueuedLimit, h.generate.DailyLimit = 1_000_000, 1_000_000
				p := h.newcomer("ann")
				before := h.accept(p)
				done := make(chan struct{})
				began := time.Now()
				go func() { defer close(done); h.scheduledSweep() }()
				during := h.accept(p)
				select {
				case <-done:
					b.Fatal("the sweep was over before it was measured")
				default:
				}
				<-done
				took := time.Since(began)
				floor := (before + h.accept(p)) / 2
				b.ReportMetric(took.Seconds(), "s/sweep")
				b.ReportMetric(float64(floor.Microseconds())/1000, "ms/alone")
				b.ReportMetric(float64(during.Microseconds())/1000, "ms/during")
				b.ReportMetric(during.Seconds()/floor.Seconds(), "ratio")
			}
		})
	}
}

// accept submits 400 prompts and returns the 95th percentile.
func (h *home) accept(p person) time.Duration {
	h.t.Helper()
	took := make([]time.Duration, 400)
	for i := range took {
		began := time.Now()
		_, _, err := h.generate.Submit(context.Background(), p.id, generate.Request{Prompt: "a lighthouse"}, nil)
		must(h.t, err)
		took[i] = time.Since(began)
		time.Sleep(15 * time.Millisecond)
	}
	slices.Sort(took)
	return took[len(took)*95/100]
}

// stored adds generations with an image each, of which some are past their window
// and have their objects.
func (h *home) stored(n int) {
	h.t.Helper()
	ctx := context.Background()
	const owner = "sub_crowd"
	must(h.t, h.vault.Create(ctx, owner))
	_, err := h.db.Exec(ctx, `INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, 'active', 1, 1)`, owner)
	must(h.t, err)
	now := h.clock.Millis()
	const many = `WITH RECURSIVE k(n) AS (SELECT CAST(? AS integer) UNION ALL SELECT n + 1 FROM k WHERE n + 1 < CAST(? AS integer)) INSERT INTO `
	// Every hundredth or so is over; the others end over the coming weeks.
	ends := fmt.Sprintf(`CASE WHEN k.n %% %d = 0 THEN %d - k.n ELSE %d + 1000 * k.n END`, n/expiring, now-1, now+day.Milliseconds())
	for from := 0; from < n; from += 50_000 {
		to := min(from+50_000, n)
		_, err := h.db.Exec(ctx, many+`generations (id, owner, job_id, model, seed, request, status, error_code, attempts, created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
			SELECT 'gen_' || k.n, '`+owner+`', 'j', 'm', 1, CAST(? AS bytea), 'succeeded', '', 1, 1, 1, 1, `+ends+`, 0, '', 0 FROM k`, from, to, bytes.Repeat([]byte{7}, 200))
		must(h.t, err)
		_, err = h.db.Exec(ctx, many+`images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
			SELECT 'img_' || k.n, 'gen_' || k.n, '`+owner+`', 0, 1, 64, 64, 'png', 9, 1, CAST(? AS bytea), 1, `+ends+`, 0, '' FROM k`, from, to, bytes.Repeat([]byte{7}, 97))
		must(h.t, err)
	}
	_, err = h.db.Exec(ctx, `ANALYZE`)
	must(h.t, err)
	h.store1000(owner, n/expiring)
}

// store1000 puts the objects of those that are over.
func (h *home) store1000(owner string, every int) {
	h.t.Helper()
	picture := bytes.Repeat([]byte{9}, 2000)
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			for i := w; i < expiring; i += 8 {
				for _, end := range []string{"img", "thumb"} {
					key := fmt.Sprintf("images/%s/gen_%d/1/0.%s", owner, i*every, end)
					if err := h.store.Put(context.Background(), key, bytes.NewReader(picture), int64(len(picture))); err != nil {
						h.t.Error(err)
					}
				}
			}
		})
	}
	work.Wait()
}

// sweep says how long rows and then objects took.
func (h *home) sweep() (rows, objects time.Duration) {
	began := time.Now()
	if n, err := h.privacy.Purge(context.Background(), "generations"); n != expiring || err != nil {
		h.t.Errorf("%d were ended, %v", n, err)
	}
	rows = time.Since(began)
	began = time.Now()
	defer h.housekeeping()()
	for h.count(`SELECT count(*) FROM generations WHERE unswept = 1`) > 0 {
		time.Sleep(5 * time.Millisecond)
	}
	return rows, time.Since(began)
}

// housekeeping runs a worker for that alone: no prompt runs meanwhile, whose cost is not
// the sweep's.
func (h *home) housekeeping() (stop func()) {
	w := h.queue.NewWorker([]jobs.Lane{{Name: jobs.Housekeeping, Slots: jobs.NewFixed(1)}}, 10*time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	var working sync.WaitGroup
	working.Go(func() { _ = w.Run(ctx, nil) })
	return func() { cancel(); working.Wait() }
}

// scheduledSweep has the jobs do it that the schedule adds, until all is gone.
func (h *home) scheduledSweep() {
	if _, err := h.privacy.Sweep(context.Background()); err != nil {
		h.t.Error(err)
	}
	defer h.housekeeping()()
	for h.count(`SELECT (SELECT count(*) FROM generations WHERE unswept = 1) + (SELECT count(*) FROM jobs WHERE kind IN ('retention:purge', 'generation:sweep') AND state <> 'succeeded')`) > 0 {
		time.Sleep(50 * time.Millisecond)
	}
	if n := h.count(`SELECT count(*) FROM generations WHERE removed_at > 0`); n != expiring {
		h.t.Errorf("%d were ended", n)
	}
}

// floor puts as many again and deletes them without looking.
func (h *home) floor() time.Duration {
	h.t.Helper()
	ctx := context.Background()
	h.store1000("sub_floor", 1)
	began := time.Now()
	for _, end := range []string{"img", "thumb"} {
		keys := make([]string, expiring)
		for i := range keys {
			keys[i] = fmt.Sprintf("images/sub_floor/gen_%d/1/0.%s", i, end)
		}
		must(h.t, h.store.Delete(ctx, keys...))
	}
	for _, statement := range []string{
		`DELETE FROM images WHERE generation_id ` + db.InOnce(h.db, `SELECT id FROM generations WHERE removed_at = 0 ORDER BY expires_at LIMIT 1000`),
		`DELETE FROM generations WHERE id ` + db.InOnce(h.db, `SELECT id FROM generations WHERE removed_at = 0 ORDER BY expires_at LIMIT 1000`),
	} {
		_, err := h.db.Exec(ctx, statement)
		must(h.t, err)
	}
	return time.Since(began)
}
