package jobs_test

import (
	"context"
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
// connections, and reports the ratio. Absolute figures belong to the machine.

// connections of the pool that floor and queue share.
const connections = 16

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
	if _, err := r.db.Exec(ctx, `CREATE TABLE IF NOT EXISTS floor_rows (id TEXT PRIMARY KEY, body TEXT NOT NULL)`); err != nil {
		b.Fatal(err)
	}
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
// commits are the least it takes, so the floor is a third of the commit rate.
func BenchmarkNoOpJobs(b *testing.B) {
	for b.Loop() {
		const n = 6000
		var done atomic.Int64
		all := make(chan struct{})
		r := newRig(b, connections, 10*time.Millisecond, func(ctx context.Context, run *jobs.Run) error {
			if err := run.Complete(ctx, nil); err != nil {
				return err
			}
			if done.Add(1) == n {
				close(all)
			}
			return nil
		})
		before := r.commits(b, n)
		stop := r.worker()
		started := time.Now()
		parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
		select {
		case <-all:
		case <-time.After(time.Minute):
			var states []struct {
				State string `db:"state"`
				Jobs  int    `db:"jobs"`
			}
			err := r.db.Select(context.Background(), &states, `SELECT state, count(*) AS jobs FROM jobs GROUP BY state`)
			b.Fatalf("%d of %d jobs were done; the queue holds %v (%v)", done.Load(), n, states, err)
		}
		rate := n / time.Since(started).Seconds()
		stop()
		floor := (before + r.commits(b, n)) / 2
		b.ReportMetric(floor, "commits/s")
		b.ReportMetric(rate, "jobs/s")
		b.ReportMetric(rate/(floor/3), "ratio")
	}
}

// BenchmarkPickUp measures from commit to claim with an idle worker of a
// generation lane, against 1.5 check intervals and two commits.
func BenchmarkPickUp(b *testing.B) {
	for b.Loop() {
		const n, interval = 400, 10 * time.Millisecond
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
			_, err := r.db.Exec(context.Background(), `INSERT INTO schedule_ticks (name, tick, at) VALUES (?, 0, 0)`, db.NewID("t", started))
			if err != nil {
				b.Fatal(err)
			}
			commits = append(commits, time.Since(started))
			var id string
			err = r.db.Tx(context.Background(), func(tx *db.Tx) error {
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
		b.ReportMetric(took[n/2].Seconds()*1000, "p50-ms")
		b.ReportMetric(took[n*99/100].Seconds()*1000, "p99-ms")
		b.ReportMetric(bound.Seconds()*1000, "bound-ms")
		b.ReportMetric(float64(took[n*99/100])/float64(bound), "ratio")
	}
}

// BenchmarkClaimBesideWaiting claims with 100,000 retries waiting in the lane,
// against the same without them.
func BenchmarkClaimBesideWaiting(b *testing.B) {
	for b.Loop() {
		const n = 8000
		rate := func(waiting int) float64 {
			r := newRig(b, connections, time.Second, nil)
			ctx := context.Background()
			_, err := r.db.Exec(ctx, `INSERT INTO jobs (id, lane, kind, party, ref, state, attempt, max_attempts, run_after, lease_until, worker,
					vstart, cost, cancel_requested, progress_done, progress_total, error_code, created_at, started_at, finished_at)
				SELECT 'job_w' || i, 'bench', 'bench:run', 'p' || (i % 100), '', 'waiting', 1, 5, 9000000000000, 0, '', 0, 1, 0, 0, 0, '', 0, 0, 0
				FROM generate_series(1, ?::int) AS i`, waiting)
			if err != nil {
				b.Fatal(err)
			}
			parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
			if _, err := r.db.Exec(ctx, `ANALYZE jobs`); err != nil {
				b.Fatal(err)
			}
			return r.claims(b, n)
		}
		without := rate(0)
		with := rate(100_000)
		again := rate(0)
		b.ReportMetric(with, "claims/s")
		b.ReportMetric(with/((without+again)/2), "ratio")
	}
}

// claims drains n queued jobs through the worker and returns jobs in a second.
func (r *rig) claims(b *testing.B, n int) float64 {
	b.Helper()
	stop := r.worker()
	defer stop()
	started := time.Now()
	testenv.Eventually(b, time.Minute, func() bool {
		var left int
		err := r.db.Get(context.Background(), &left, `SELECT count(*) FROM jobs WHERE state = 'queued'`)
		return err == nil && left == 0
	})
	return float64(n) / time.Since(started).Seconds()
}

// BenchmarkFairClaim claims in the order of turns against the same rows in the
// order of their arrival, and measures how fair the turns are: Jain's index
// over 100 owners, one of whom has 100 times the jobs.
func BenchmarkFairClaim(b *testing.B) {
	for b.Loop() {
		const n = 8000
		fifo := func() float64 {
			r := newRig(b, connections, time.Second, nil)
			parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
			// The same rows and index, tagged by arrival.
			if _, err := r.db.Exec(context.Background(), `UPDATE jobs SET vstart = created_at`); err != nil {
				b.Fatal(err)
			}
			if _, err := r.db.Exec(context.Background(), `VACUUM ANALYZE jobs`); err != nil {
				b.Fatal(err)
			}
			return r.claims(b, n)
		}
		fair := func() float64 {
			r := newRig(b, connections, time.Second, nil)
			parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
			if _, err := r.db.Exec(context.Background(), `VACUUM ANALYZE jobs`); err != nil {
				b.Fatal(err)
			}
			return r.claims(b, n)
		}
		first, turns, second := fifo(), fair(), fifo()
		b.ReportMetric(turns/((first+second)/2), "ratio")

		const each = 20
		var mu sync.Mutex
		served := map[string]float64{}
		total := 0
		all := make(chan struct{})
		r := newRig(b, 1, time.Second, func(_ context.Context, run *jobs.Run) error {
			mu.Lock()
			defer mu.Unlock()
			if total++; total <= 100*each/2 { // while everybody still waits
				served[run.Party]++
			}
			if total == 100*each/2 {
				close(all)
			}
			return nil
		})
		for range 100 * each {
			r.add(b, "greedy")
		}
		parallel(99*each, func(i int) { r.add(b, fmt.Sprint("owner", i%99)) })
		stop := r.worker()
		<-all
		stop()
		var sum, squares float64
		mu.Lock()
		for _, n := range served {
			sum += n
			squares += n * n
		}
		mu.Unlock()
		b.ReportMetric(sum*sum/(100*squares), "jain")

		r = newRig(b, 1, time.Second, nil)
		parallel(320, func(int) { r.add(b, "one") })
		var distinct float64
		if err := r.db.Get(context.Background(), &distinct, `SELECT count(DISTINCT vstart) FROM jobs`); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(distinct, "turns-of-320")
	}
}

// BenchmarkRedisBytes measures what Redis holds for each queued job while every
// job has a ring of its own; beyond the bell's bound it is less.
func BenchmarkRedisBytes(b *testing.B) {
	for b.Loop() {
		const n = 200 // below the bound of 256
		r := newRig(b, 1, time.Second, nil)
		ctx := context.Background()
		used := func() (total float64) {
			for _, key := range r.redis.Keys(ctx, "*").Val() {
				total += float64(r.redis.MemoryUsage(ctx, key, 0).Val())
			}
			return total
		}
		before := used()
		parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
		testenv.Eventually(b, 30*time.Second, func() bool {
			return r.redis.LLen(ctx, "asynq:{bench}:pending").Val() == n
		})
		b.ReportMetric((used()-before)/n, "redis-bytes/job")
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
		ctx := context.Background()
		parallel(n, func(i int) { r.add(b, fmt.Sprint("owner", i%100)) })
		if err := r.redis.FlushAll(ctx).Err(); err != nil { // every ring of the 10,000
			b.Fatal(err)
		}
		mu.Lock()
		last = time.Now()
		mu.Unlock()
		defer r.worker()()
		for i := range n {
			if i == n/2 {
				_ = r.redis.FlushAll(ctx).Err() // in the middle of the work
			}
			<-tell
		}
		for i := range trickle {
			mu.Lock()
			last = time.Now()
			mu.Unlock()
			r.add(b, fmt.Sprint("owner", i))
			_ = r.redis.FlushAll(ctx).Err() // with luck before its ring was heard
			select {
			case <-tell:
			case <-time.After(time.Minute):
			}
		}
		mu.Lock()
		b.ReportMetric(pause.Seconds(), "longest-pause-s")
		b.ReportMetric(float64(n+trickle-done), "lost")
		mu.Unlock()
	}
}

// BenchmarkKill9 kills a worker process in the middle of a job and measures
// until another worker runs it.
func BenchmarkKill9(b *testing.B) {
	for b.Loop() {
		again := make(chan time.Time, 1)
		r := newRig(b, 1, 10*time.Millisecond, func(context.Context, *jobs.Run) error {
			again <- time.Now()
			return nil
		})
		child := exec.Command(os.Args[0]) //nolint:gosec // this very binary
		child.Env = append(os.Environ(), childDatabase+"="+r.url, childRedis+"="+r.redisURL)
		if err := child.Start(); err != nil {
			b.Fatal(err)
		}
		r.add(b, "owner")
		testenv.Eventually(b, 20*time.Second, func() bool {
			var running int
			err := r.db.Get(context.Background(), &running, `SELECT count(*) FROM jobs WHERE state = 'running'`)
			return err == nil && running == 1
		})
		defer r.worker()()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() { _ = r.queue.NewScheduler().Run(ctx) }()
		// The scheduler is patient for a lease after its own start; the kill comes
		// later, right after a renewal: the worst moment.
		time.Sleep(jobs.Lease + jobs.Renew)
		killed := time.Now()
		if err := child.Process.Kill(); err != nil {
			b.Fatal(err)
		}
		_ = child.Wait()
		select {
		case at := <-again:
			b.ReportMetric(at.Sub(killed).Seconds(), "running-again-s")
			b.ReportMetric(at.Sub(killed).Seconds()/20, "ratio-of-20-s")
		case <-time.After(2 * time.Minute):
			b.Fatal("it did not run again")
		}
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
