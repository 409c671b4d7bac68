package jobs_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

// Every benchmark here measures its floor in the same run, on the same
// connections, and reports the ratio beside what it is to be. Absolute figures
// belong to the machine.

// connections of the pool that floor and queue share.
const connections = 16

// atLeast reports a figure beside its target. Units are printed in the order of
// the alphabet, so the two stand together.
func atLeast(b *testing.B, name string, figure, target float64) {
	b.ReportMetric(figure, name)
	b.ReportMetric(target, name+"-at-least")
	b.ReportMetric(0, "ns/op") // the time of the whole benchmark says nothing
}

// atMost is atLeast for figures that are better when they are smaller.
func atMost(b *testing.B, name string, figure, target float64) {
	b.ReportMetric(figure, name)
	b.ReportMetric(target, name+"-at-most")
	b.ReportMetric(0, "ns/op")
}

// between measures a floor and a figure in turns, the floor first and last, and
// returns the medians of both and of the ratios of each turn to the floors around
// it: what else the machine does for a while then spoils one turn, not the ratio.
// How far the floors of it are apart is reported too.
func between(b *testing.B, of string, turns int, floor, figure func() float64) (f, g, ratio float64) {
	floors := []float64{floor()}
	var figures, ratios []float64
	for i := range turns {
		figures = append(figures, figure())
		floors = append(floors, floor())
		ratios = append(ratios, 2*figures[i]/(floors[i]+floors[i+1]))
	}
	b.ReportMetric(slices.Max(floors)/slices.Min(floors), "floor-max/min"+of)
	return median(floors), median(figures), median(ratios)
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

type rig struct {
	db            *db.DB
	redis         *redis.Client
	queue         *jobs.Queue // of those who submit
	url, redisURL string
	worker        func() (stop func())
}

func newRig(b *testing.B, slots int, interval time.Duration, run func(context.Context, *jobs.Run) error) *rig {
	b.Helper()
	_, url := testenv.Database(b, db.Postgres)
	d, err := db.Open(context.Background(), url, db.Options{MaxConnections: connections})
	if err != nil {
		b.Fatal(err)
	}
	redisURL := testenv.Redis(b)
	o, err := redis.ParseURL(redisURL)
	if err != nil {
		b.Fatal(err)
	}
	if run == nil {
		run = func(context.Context, *jobs.Run) error { return nil }
	}
	client := redis.NewClient(o)
	b.Cleanup(func() { _ = client.Close(); _ = d.Close() })
	// Submitting and working are two processes in real life: a bell each, so that
	// no wake takes the short way.
	queue := func() *jobs.Queue {
		m := jobs.NewMetrics(nil)
		bell := jobs.NewBell(client, m)
		b.Cleanup(bell.Close)
		q := jobs.New(d, clock.New(), bell, m, slog.New(slog.NewTextHandler(io.Discard, nil)))
		q.Register(jobs.Kind{Name: "bench:run", Lane: "bench", Run: run})
		return q
	}
	working := queue()
	return &rig{db: d, redis: client, queue: queue(), url: url, redisURL: redisURL, worker: func() func() {
		w := working.NewWorker([]jobs.Lane{{Name: "bench", Slots: jobs.NewFixed(slots), CheckInterval: interval}}, time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx, nil) }()
		return func() { cancel(); <-done }
	}}
}

func (r *rig) add(b *testing.B, party string) {
	err := r.db.Tx(context.Background(), func(tx *db.Tx) error {
		_, err := r.queue.Add(context.Background(), tx, jobs.NewJob{Kind: "bench:run", Party: party, Ref: "gen_0000000000"})
		return err
	})
	if err != nil {
		b.Error(err)
	}
}

func (r *rig) exec(b *testing.B, statement string, args ...any) {
	b.Helper()
	if _, err := r.db.Exec(context.Background(), statement, args...); err != nil {
		b.Fatal(err)
	}
}

// parallel calls f n times from as many goroutines as there are connections and
// returns the calls in a second.
func parallel(n int, f func(i int)) float64 {
	var next atomic.Int64
	var work sync.WaitGroup
	started := time.Now()
	for range connections {
		work.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				f(i)
			}
		})
	}
	work.Wait()
	return float64(n) / time.Since(started).Seconds()
}

// commits is the floor: one-row commits in a second.
func (r *rig) commits(b *testing.B, n int) float64 {
	b.Helper()
	ctx := context.Background()
	r.exec(b, `CREATE TABLE IF NOT EXISTS floor_rows (id TEXT PRIMARY KEY, body TEXT NOT NULL)`)
	return parallel(n, func(int) {
		err := r.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO floor_rows (id, body) VALUES (?, ?)`, db.NewID("row", time.Now()), "0123456789abcdef")
			return err
		})
		if err != nil {
			b.Error(err)
		}
	})
}

// BenchmarkNoOpJobs runs jobs that do nothing from accept to done. Three
// commits are the least it takes without batches, so the floor is a third of the
// commit rate.
func BenchmarkNoOpJobs(b *testing.B) {
	for b.Loop() {
		const n = 1000
		done := make(chan struct{}, n)
		r := newRig(b, connections, 10*time.Millisecond, func(ctx context.Context, run *jobs.Run) error {
			err := run.Complete(ctx, nil)
			if err == nil {
				done <- struct{}{}
			}
			return err
		})
		r.commits(b, 500) // every connection is open and knows its statements
		run := func() float64 {
			stop := r.worker()
			defer stop()
			late := time.After(time.Minute)
			started := time.Now()
			parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
			for i := range n {
				select {
				case <-done:
				case <-late:
					var states []struct {
						State string `db:"state"`
						Jobs  int    `db:"jobs"`
					}
					err := r.db.Select(context.Background(), &states, `SELECT state, count(*) AS jobs FROM jobs GROUP BY state`)
					b.Fatalf("%d of %d jobs were done; the queue holds %v (%v)", i, n, states, err)
				}
			}
			return n / time.Since(started).Seconds()
		}
		floor, rate, ratio := between(b, "", 7, func() float64 { return r.commits(b, n) }, run)
		b.ReportMetric(floor, "commits/s")
		b.ReportMetric(rate, "jobs/s")
		atLeast(b, "jobs/third-of-commits", 3*ratio, 0.6)
	}
}

// BenchmarkPickUp measures from commit to claim with an idle worker of a
// generation lane, against 1.5 check intervals and two commits.
func BenchmarkPickUp(b *testing.B) {
	for b.Loop() {
		const n, interval = 1000, 10 * time.Millisecond
		claimed := make(chan time.Time, 1)
		r := newRig(b, 1, interval, func(context.Context, *jobs.Run) error {
			claimed <- time.Now()
			return nil
		})
		w := r.worker()
		var took, commits []time.Duration
		for range n {
			time.Sleep(5*time.Millisecond + rand.N(20*time.Millisecond)) //nolint:gosec // idle between jobs, at no fixed phase
			started := time.Now()
			r.exec(b, `INSERT INTO schedule_ticks (name, tick, at) VALUES (?, 0, 0)`, db.NewID("t", started))
			commits = append(commits, time.Since(started))
			var id string
			err := r.db.Tx(context.Background(), func(tx *db.Tx) error {
				j, err := r.queue.Add(context.Background(), tx, jobs.NewJob{Kind: "bench:run"})
				id = j.ID
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			committed := time.Now()
			took = append(took, (<-claimed).Sub(committed))
			testenv.Eventually(b, 5*time.Second, func() bool {
				j, err := jobs.Find(context.Background(), r.db, id)
				return err == nil && j.State == jobs.Succeeded
			})
		}
		w()
		slices.Sort(took)
		slices.Sort(commits)
		bound := interval*3/2 + 2*commits[len(commits)/2]
		b.ReportMetric(commits[n/2].Seconds()*1000, "commit-p50-ms")
		b.ReportMetric(took[n/2].Seconds()*1000, "pick-up-p50-ms")
		atMost(b, "pick-up-p99-ms", took[n*99/100].Seconds()*1000, bound.Seconds()*1000)
	}
}

// What the claim benchmarks claim.
const (
	claimJobs   = 8000
	claimOwners = 100
)

// How the jobs of the owners came.
const (
	mixed      = "mixed"       // by turns: fair turns and arrival are nearly one order
	ownerAfter = "owner-after" // one owner after the other with all of theirs: two different orders
)

// fill makes the queue anew, as it is after a vacuum, and keeps the next vacuum
// and the writing of these rows out of what is measured.
func (r *rig) fill(b *testing.B, waiting int, came string) {
	b.Helper()
	r.exec(b, `TRUNCATE jobs`)
	r.exec(b, `ALTER TABLE jobs SET (autovacuum_enabled = false)`)
	insert := func(prefix, state string, attempt, n int) {
		owner, turn := fmt.Sprintf("i %% %d", claimOwners), fmt.Sprintf("i / %d", claimOwners)
		if came == ownerAfter {
			owner, turn = fmt.Sprintf("i / %d", max(n/claimOwners, 1)), fmt.Sprintf("i %% %d", max(n/claimOwners, 1))
		}
		r.exec(b, `INSERT INTO jobs (id, lane, kind, party, ref, state, attempt, max_attempts, run_after, lease_until, worker,
				vstart, cost, cancel_requested, progress_done, progress_total, error_code, created_at, started_at, finished_at)
			SELECT 'job_' || ?::text || lpad(i::text, 25, '0'), 'bench', 'bench:run', 'owner' || `+owner+`, 'gen_0000000000', ?::text, ?::int, 5,
				CASE WHEN ?::text = 'waiting' THEN 9000000000000 ELSE i END, 0, '', `+turn+`, 1, 0, 0, 0, '', i, 0, 0
			FROM generate_series(0, ?::int - 1) AS i`, prefix, state, attempt, state, n)
	}
	insert("w", "waiting", 1, waiting)
	insert("q", "queued", 0, claimJobs)
	r.exec(b, `VACUUM ANALYZE jobs`)
	r.exec(b, `CHECKPOINT`)
}

// drain claims all that is queued, as many at a time as there are connections,
// and returns claims in a second.
func drain(b *testing.B, claim func() (ok bool, err error)) float64 {
	b.Helper()
	return parallel(claimJobs, func(int) {
		if ok, err := claim(); err != nil || !ok {
			b.Errorf("claimed nothing: %v", err)
		}
	})
}

func (r *rig) claims(b *testing.B) float64 {
	b.Helper()
	return drain(b, func() (bool, error) {
		_, ok, err := r.queue.Claim(context.Background(), "bench", "wrk_0000000000")
		return ok, err
	})
}

// BenchmarkClaimBesideWaiting claims, with nothing around the claim, while
// 100,000 retries wait in the lane, against the same without them.
func BenchmarkClaimBesideWaiting(b *testing.B) {
	for b.Loop() {
		r := newRig(b, 1, time.Second, nil)
		rate := func(waiting int) func() float64 {
			return func() float64 {
				r.fill(b, waiting, ownerAfter)
				return r.claims(b)
			}
		}
		rate(0)() // every connection is open and knows its statements
		without, with, ratio := between(b, "", 9, rate(0), rate(100_000))
		b.ReportMetric(without, "claims/s-alone")
		b.ReportMetric(with, "claims/s-beside-100000")
		atLeast(b, "beside/alone", ratio, 0.9)
	}
}

// BenchmarkFairClaim claims in the order of turns against the same statement in
// the order of arrival, which has an index of its own, and measures how fair the
// turns are: Jain's index over 100 owners, one of whom has 100 times the jobs.
func BenchmarkFairClaim(b *testing.B) {
	for b.Loop() {
		r := newRig(b, 1, time.Second, nil)
		ctx := context.Background()
		// Each has one index to keep.
		fifo := func() float64 {
			r.exec(b, `DROP INDEX jobs_queued`)
			r.exec(b, `CREATE INDEX floor_queued ON jobs (lane, created_at, id) WHERE state = 'queued'`)
			return drain(b, func() (bool, error) {
				var j jobs.Job
				now := time.Now().UnixMilli()
				err := r.db.GetWrite(ctx, &j, `UPDATE jobs SET state = 'running', attempt = attempt + 1, lease_until = ?, worker = ?,
						started_at = ?, progress_done = 0, progress_total = 0
					WHERE id = (SELECT id FROM jobs WHERE lane = ? AND state = 'queued' AND kind IN (?)
							ORDER BY created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
						AND state = 'queued' RETURNING `+jobs.Columns, now+jobs.Lease.Milliseconds(), "wrk_0000000000", now, "bench", "bench:run")
				if errors.Is(err, sql.ErrNoRows) {
					return false, nil
				}
				return true, err
			})
		}
		var index string
		if err := r.db.Get(ctx, &index, `SELECT indexdef FROM pg_indexes WHERE indexname = 'jobs_queued'`); err != nil {
			b.Fatal(err)
		}
		fair := func() float64 {
			r.exec(b, `DROP INDEX floor_queued`)
			r.exec(b, index)
			return r.claims(b)
		}
		r.fill(b, 0, mixed)
		r.claims(b) // every connection is open and knows its statements
		for _, came := range []string{mixed, ownerAfter} {
			arrival, turns, ratio := between(b, "-"+came, 7,
				func() float64 { r.fill(b, 0, came); return fifo() },
				func() float64 { r.fill(b, 0, came); return fair() })
			b.ReportMetric(arrival, "claims/s-fifo-"+came)
			b.ReportMetric(turns, "claims/s-fair-"+came)
			atLeast(b, "fair/fifo-"+came, ratio, 0.9)
			r.exec(b, `DROP INDEX floor_queued`)
			r.exec(b, index)
		}

		const each = 20
		r = newRig(b, 1, time.Second, nil)
		for range 100 * each {
			r.add(b, "greedy")
		}
		parallel(99*each, func(i int) { r.add(b, fmt.Sprint("owner", i%99)) })
		served := map[string]float64{}
		for range 100 * each / 2 { // while everybody still waits
			j, ok, err := r.queue.Claim(ctx, "bench", "wrk_0000000000")
			if err != nil || !ok {
				b.Fatalf("claimed nothing: %v", err)
			}
			served[j.Party]++
		}
		var sum, squares float64
		for _, n := range served {
			sum += n
			squares += n * n
		}
		atLeast(b, "jain", sum*sum/(100*squares), 0.99)

		r = newRig(b, 1, time.Second, nil)
		parallel(320, func(int) { r.add(b, "one") })
		var distinct float64
		if err := r.db.Get(ctx, &distinct, `SELECT count(DISTINCT vstart) FROM jobs`); err != nil {
			b.Fatal(err)
		}
		atLeast(b, "turns-of-320", distinct, 320)
	}
}

// BenchmarkFlushAll empties Redis with 10,000 jobs queued, and again and again
// while jobs trickle in on an idle lane, and reports the longest wait of any job
// after its slot was free.
func BenchmarkFlushAll(b *testing.B) {
	for b.Loop() {
		const n, trickle = 10_000, 40
		var mu sync.Mutex
		var last time.Time
		var pause time.Duration
		done := 0
		tell := make(chan struct{}, n+trickle)
		r := newRig(b, 4, 10*time.Millisecond, func(context.Context, *jobs.Run) error {
			mu.Lock()
			if !last.IsZero() {
				pause = max(pause, time.Since(last))
			}
			last = time.Now()
			done++
			mu.Unlock()
			tell <- struct{}{}
			return nil
		})
		told := func() bool {
			select {
			case <-tell:
				return true
			case <-time.After(30 * time.Second):
				return false // lost, which the count says
			}
		}
		ctx := context.Background()
		flush := func() {
			if err := r.redis.FlushAll(ctx).Err(); err != nil {
				b.Fatal(err)
			}
		}
		parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
		flush() // every ring of the 10,000
		mu.Lock()
		last = time.Now()
		mu.Unlock()
		stop := r.worker()
		for i := 0; i < n && told(); i++ {
			if i == n/2 {
				flush() // in the middle of the work
			}
		}
		for i := range trickle {
			mu.Lock()
			last = time.Now()
			mu.Unlock()
			r.add(b, fmt.Sprint("owner", i))
			flush() // with luck before its ring was heard
			told()
		}
		stop()
		mu.Lock()
		atMost(b, "longest-pause-s", pause.Seconds(), 3)
		atMost(b, "lost", float64(n+trickle-done), 0)
		mu.Unlock()
	}
}

// BenchmarkKill9 kills worker processes in the middle of a job, right after
// they renewed its lease, which is the worst moment, and measures until another
// worker runs it.
func BenchmarkKill9(b *testing.B) {
	for b.Loop() {
		again := make(chan time.Time, 1)
		r := newRig(b, 1, 10*time.Millisecond, func(context.Context, *jobs.Run) error {
			again <- time.Now()
			return nil
		})
		// The scheduler is patient for a lease after its own start. Every kill comes
		// after that start, so no lease ends within its patience.
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() { _ = r.queue.NewScheduler().Run(ctx) }()
		var took []float64
		for range 3 {
			took = append(took, r.kill(b, again).Seconds())
		}
		b.ReportMetric(median(took), "running-again-median-s")
		atMost(b, "running-again-max-s", slices.Max(took), 20)
	}
}

// kill starts a worker that runs one job, kills it and says how long the job
// took to come to again.
func (r *rig) kill(b *testing.B, again <-chan time.Time) time.Duration {
	b.Helper()
	child := exec.Command(os.Args[0]) //nolint:gosec // this very binary
	child.Env = append(os.Environ(), childDatabase+"="+r.url, childRedis+"="+r.redisURL)
	gone, err := testenv.StartBound(child)
	if err != nil {
		b.Fatal(err)
	}
	r.add(b, "owner")
	lease := func() (until int64) {
		err := r.db.Get(context.Background(), &until, `SELECT coalesce(max(lease_until), 0) FROM jobs WHERE state = 'running'`)
		if err != nil {
			b.Fatal(err)
		}
		return until
	}
	testenv.Eventually(b, 20*time.Second, func() bool { return lease() > 0 })
	defer r.worker()()
	first := lease()
	testenv.Eventually(b, 2*jobs.Renew, func() bool { return lease() != first })
	killed := time.Now()
	if err := child.Process.Kill(); err != nil {
		b.Fatal(err)
	}
	<-gone
	select {
	case at := <-again:
		return at.Sub(killed)
	case <-time.After(2 * time.Minute):
		b.Fatal("it did not run again")
		return 0
	}
}

// Where a child of BenchmarkKill9 finds its parts.
const (
	childDatabase = "ZIMAGE_TEST_JOBS_DATABASE"
	childRedis    = "ZIMAGE_TEST_JOBS_REDIS"
)

func TestMain(m *testing.M) {
	if os.Getenv(childDatabase) == "" {
		os.Exit(m.Run())
	}
	// A worker whose job never ends, to be killed.
	d, err := db.Open(context.Background(), os.Getenv(childDatabase), db.Options{})
	if err != nil {
		panic(err)
	}
	o, err := redis.ParseURL(os.Getenv(childRedis))
	if err != nil {
		panic(err)
	}
	metrics := jobs.NewMetrics(nil)
	q := jobs.New(d, clock.New(), jobs.NewBell(redis.NewClient(o), metrics), metrics, slog.New(slog.DiscardHandler))
	q.Register(jobs.Kind{Name: "bench:run", Lane: "bench", Run: func(ctx context.Context, _ *jobs.Run) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	w := q.NewWorker([]jobs.Lane{{Name: "bench", Slots: jobs.NewFixed(1), CheckInterval: 10 * time.Millisecond}}, time.Second)
	if err := w.Run(context.Background(), nil); err != nil {
		panic(err)
	}
}
