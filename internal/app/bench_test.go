//go:build unix

package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// Every benchmark here measures its floor in the same run, on the same
// database and connections, and reports the ratio.

// connections is what db.Open takes when nothing else is said.
const connections = 16

// house is the whole service in one process, on real parts.
type house struct {
	*App
	base string
	keys []string // one API key for each owner
	ids  []string // their subjects
}

func openHouse(b *testing.B, owners int) *house {
	b.Helper()
	ctx := context.Background()
	bucket := testenv.S3(b)
	roots := filepath.Join(b.TempDir(), "roots.yaml")
	if _, err := vault.CreateRoots(roots); err != nil {
		b.Fatal(err)
	}
	c := config.Config{
		Listen: freeAddress(b), MetricsListen: "off", DatabaseURL: testenv.DatabaseURL(b, db.Postgres), KeysDatabaseURL: testenv.DatabaseURL(b, db.Postgres),
		RootKeys: roots, RedisURL: testenv.Redis(b), S3Endpoint: bucket.Endpoint, S3Bucket: bucket.Bucket, S3Region: "us-east-1",
		S3AccessKey: bucket.AccessKey, S3SecretKey: bucket.SecretKey, Data: b.TempDir(),
		QueuedPerOwner: 1_000_000, DailyPerOwner: 1_000_000, RequestsPerMinute: 10_000_000, ShutdownTimeout: 5 * time.Second,
	}
	a, err := Open(ctx, c, "bench", "bench", slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = a.Close() })
	h := &house{App: a, base: "http://" + c.Listen}
	for i := range owners {
		subject, err := a.Accounts.CreateUser(ctx, fmt.Sprintf("owner%d@example.org", i), "correct horse battery")
		if err != nil {
			b.Fatal(err)
		}
		key, _, err := a.Accounts.CreateKey(ctx, subject, "bench", []string{account.ScopeGenerate, account.ScopeRead}, time.Time{})
		if err != nil {
			b.Fatal(err)
		}
		h.keys, h.ids = append(h.keys, key), append(h.ids, subject)
	}
	return h
}

// start runs roles until the benchmark ends.
func (h *house) start(b *testing.B, roles ...config.Role) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx, nil, nil, roles...) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	testenv.Eventually(b, 10*time.Second, func() bool {
		res, err := http.Get(h.base + "/healthz") //nolint:noctx // a test
		if err != nil {
			return false
		}
		return res.Body.Close() == nil && res.StatusCode == http.StatusOK
	})
}

func freeAddress(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// parallel calls f n times from workers goroutines and returns calls in a
// second.
func parallel(workers, n int, f func(i int)) float64 {
	var next atomic.Int64
	var work sync.WaitGroup
	started := time.Now()
	for range workers {
		work.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	work.Wait()
	return float64(n) / time.Since(started).Seconds()
}

const prompt = "a lighthouse in a storm at night, waves, rain, lightning, oil on canvas"

// BenchmarkAccept submits over HTTP for 100 owners with no worker, against the
// statements of the same accepts on the same connections.
func BenchmarkAccept(b *testing.B) {
	for b.Loop() {
		const n = 6000
		h := openHouse(b, 100)
		h.start(b, config.RoleAPI)
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * connections}}
		body := []byte(`{"prompt":"` + prompt + `"}`)
		post := func(i int) {
			req, _ := http.NewRequest(http.MethodPost, h.base+"/v1/generations", bytes.NewReader(body)) //nolint:noctx // a test
			req.Header.Set("Authorization", "Bearer "+h.keys[i%len(h.keys)])
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Idempotency-Key", fmt.Sprint("k", i))
			res, err := client.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusAccepted {
				b.Errorf("status %d", res.StatusCode)
			}
		}
		parallel(connections, 500, func(i int) { post(1_000_000 + i) }) // keys and plans are warm
		before := h.statements(b, n)
		rate := parallel(connections, n, post)
		floor := (before + h.statements(b, n)) / 2
		b.ReportMetric(rate, "accepts/s")
		b.ReportMetric(floor, "floor/s")
		b.ReportMetric(rate/floor, "ratio")
	}
}

// statements is the floor: what an accept asks of the database, and nothing
// else.
func (h *house) statements(b *testing.B, n int) float64 {
	b.Helper()
	ctx := context.Background()
	sealed := bytes.Repeat([]byte{7}, 330)
	return parallel(connections, n, func(i int) {
		owner, now := h.ids[i%len(h.ids)], time.Now()
		gen, job := db.NewID("gen", now), db.NewID("job", now)
		var finish int64
		err := h.db.Tx(ctx, func(tx *db.Tx) error {
			var text string
			var count int
			var err error
			run := func(sql string, args ...any) {
				if err == nil {
					_, err = tx.Exec(ctx, sql, args...)
				}
			}
			get := func(to any, sql string, args ...any) {
				if err == nil {
					err = tx.Get(ctx, to, sql, args...)
				}
			}
			get(&text, `SELECT state FROM subjects WHERE id = ?`, owner)
			run(`INSERT INTO idempotency_keys (owner, key_lookup, body_lookup, generation_id, created_at) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (owner, key_lookup) DO UPDATE SET created_at = excluded.created_at WHERE idempotency_keys.created_at < ?`,
				owner, "floor"+gen, strings.Repeat("0", 64), gen, now.UnixMilli(), 0)
			get(&finish, `INSERT INTO job_turns (lane, party, finish) VALUES ('generation', ?, 8 + coalesce(
					(SELECT min(vstart) FROM jobs WHERE lane = 'generation' AND state = 'queued'),
					(SELECT max(finish) FROM job_turns WHERE lane = 'generation'), 0))
				ON CONFLICT (lane, party) DO UPDATE SET finish = greatest(job_turns.finish + 8, excluded.finish) RETURNING finish`, owner)
			run(`INSERT INTO jobs (id, lane, kind, party, ref, state, attempt, max_attempts, run_after, lease_until, worker, vstart, cost,
					cancel_requested, progress_done, progress_total, error_code, created_at, started_at, finished_at)
				VALUES (?, 'generation', 'generation:run', ?, ?, 'queued', 0, 5, 0, 0, '', ?, 8, 0, 0, 0, '', ?, 0, 0)`,
				job, owner, gen, finish-8, now.UnixMilli())
			get(&count, `SELECT count(*) FROM (SELECT 1 FROM jobs WHERE party = ? AND state IN ('queued', 'waiting') LIMIT ?) AS counted`, owner, h.config.QueuedPerOwner+1)
			get(&count, `SELECT count(*) FROM (SELECT 1 FROM generations WHERE owner = ? AND id >= ? LIMIT ?) AS counted`,
				owner, db.FloorID("gen", now.Truncate(24*time.Hour)), h.config.DailyPerOwner)
			run(`INSERT INTO generations (id, owner, job_id, model, seed, request, status, error_code, attempts,
					created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
				VALUES (?, ?, ?, 'illustrator', 7, ?, '', '', 0, ?, 0, 0, ?, 0, '', 0)`,
				gen, owner, job, sealed, now.UnixMilli(), now.AddDate(0, 0, 90).UnixMilli())
			return err
		})
		if err == nil { // its place in the queue, which the answer tells
			_, err = h.queue.Outlook(ctx, h.db, jobs.Job{ID: job, Lane: "generation", State: jobs.Queued, VStart: finish - 8})
		}
		if err != nil {
			b.Error(err)
		}
	})
}

// sleeper is an engine that takes exactly its time for each image and counts
// how long it was at work.
type sleeper struct {
	takes  time.Duration
	image  []byte
	mu     sync.Mutex
	busy   time.Duration
	first  time.Time
	last   time.Time
	images int
}

func (s *sleeper) Generate(ctx context.Context, _ engine.Request, _ func(engine.Progress)) ([]byte, error) {
	started := time.Now()
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return nil, engine.ContextError(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first.IsZero() {
		s.first = started
	}
	s.last = time.Now()
	s.busy += s.last.Sub(started)
	s.images++
	return s.image, nil
}

func (s *sleeper) Check(context.Context) error { return nil }

// BenchmarkEngineBusy runs 20 generations of one image on an engine that takes
// 1 s, with a picture whose encoding and storing takes about half of that, and
// reports the share of the time in which the engine was at work.
func BenchmarkEngineBusy(b *testing.B) {
	for b.Loop() {
		const n = 20
		h := openHouse(b, 4)
		noise := image.NewNRGBA(image.Rect(0, 0, 1900, 1900))
		for i := range noise.Pix {
			noise.Pix[i] = byte(i * i >> 7 & 255)
		}
		var raw bytes.Buffer
		if err := png.Encode(&raw, noise); err != nil {
			b.Fatal(err)
		}
		s := &sleeper{takes: time.Second, image: raw.Bytes()}
		h.engines.Models[0].MaxPixels = 1900 * 1900
		h.open = func(engine.Settings) (engine.Engine, error) { return s, nil }
		h.start(b, config.RoleAPI, config.RoleWorker)
		for i := range n {
			h.submit(b, i, `{"prompt":"`+prompt+`","format":"jpeg"}`)
		}
		testenv.Eventually(b, 2*n*time.Second, func() bool {
			var done int
			err := h.db.Get(context.Background(), &done, `SELECT count(*) FROM generations WHERE status = 'succeeded'`)
			return err == nil && done == n
		})
		var took []float64
		if err := h.db.Select(context.Background(), &took, `SELECT (finished_at - started_at) / 1000.0 FROM jobs WHERE state = 'succeeded'`); err != nil {
			b.Fatal(err)
		}
		var sum float64
		for _, t := range took {
			sum += t
		}
		s.mu.Lock()
		b.ReportMetric(s.busy.Seconds()/s.last.Sub(s.first).Seconds(), "busy-share")
		b.ReportMetric(sum/float64(len(took))-s.takes.Seconds(), "post-processing-s")
		s.mu.Unlock()
	}
}

func (h *house) submit(b *testing.B, i int, body string) string {
	b.Helper()
	req, _ := http.NewRequest(http.MethodPost, h.base+"/v1/generations", strings.NewReader(body)) //nolint:noctx // a test
	req.Header.Set("Authorization", "Bearer "+h.keys[i%len(h.keys)])
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var g struct {
		ID string `json:"id"`
	}
	if err := json.NewDecoder(res.Body).Decode(&g); err != nil || res.StatusCode != http.StatusAccepted {
		b.Fatalf("status %d (%v)", res.StatusCode, err)
	}
	return g.ID
}

// BenchmarkWaitingClients has 2,000 clients wait on one API, half by long poll
// and half by event stream, each for a generation of its own. It reports what a
// waiting client costs and how many did not learn of the end.
func BenchmarkWaitingClients(b *testing.B) {
	for b.Loop() {
		const n = 2000
		h := openHouse(b, 20)
		h.start(b, config.RoleAPI)
		ids := make([]string, n)
		for i := range ids {
			ids[i] = h.submit(b, i, `{"prompt":"`+prompt+`","width":64,"height":64,"steps":1}`)
		}
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
		before := memory()
		var told, failed, open atomic.Int64
		var work sync.WaitGroup
		for i, id := range ids {
			work.Go(func() {
				stream := i%2 == 0
				for {
					path := "/v1/generations/" + id
					if stream {
						path += "/events"
					}
					req, _ := http.NewRequest(http.MethodGet, h.base+path, nil) //nolint:noctx // a test
					req.Header.Set("Authorization", "Bearer "+h.keys[i%len(h.keys)])
					if !stream {
						req.Header.Set("Prefer", "wait=60")
					}
					open.Add(1)
					res, err := client.Do(req)
					if err != nil {
						failed.Add(1)
						return
					}
					ended := false
					for lines := bufio.NewScanner(res.Body); lines.Scan(); {
						ended = ended || strings.Contains(lines.Text(), `"status":"succeeded"`)
					}
					_ = res.Body.Close()
					if ended {
						told.Add(1)
						return
					}
				}
			})
		}
		testenv.Eventually(b, 30*time.Second, func() bool { return open.Load() >= n })
		time.Sleep(3 * time.Second) // all of them wait now
		cpu, at := processor(), time.Now()
		time.Sleep(5 * time.Second)
		waiting := (processor() - cpu).Seconds() / time.Since(at).Seconds()
		used := memory() - before
		h.start(b, config.RoleWorker, config.RoleScheduler)
		work.Wait()
		b.ReportMetric(float64(used)/n/1024, "KiB/client-and-server")
		b.ReportMetric(waiting*100, "%cpu-waiting")
		b.ReportMetric(float64(n-told.Load()), "lost-wakeups")
		b.ReportMetric(float64(failed.Load()), "failed")
	}
}

// memory is what the process holds, clients' side included.
func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func processor() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestMain(m *testing.M) {
	// Two thousand clients and their connections.
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	os.Exit(m.Run())
}
