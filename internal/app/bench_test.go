//go:build unix

package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/account"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// Every benchmark here measures its floor in the same run, on the same
// database and connections, and reports the ratio beside what it is to be.

// connections is what db.Open takes when nothing else is said.
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

// house is the whole service in one process, on real parts.
type house struct {
	*App
	base string
	keys []string // one API key for each owner
	ids  []string // their subjects
	sent atomic.Int64
}

// benchEngines has one model whose limits no benchmark meets.
const benchEngines = `
engines:
  - {name: bench, kind: illustrator, slots: %d, models: {bench: {}}}
models:
  - {id: bench, name: Bench, owned_by: zimage, license: Apache-2.0, source_type: algorithmicMedia,
     min_side: 64, max_side: 4096, side_multiple: 8, default_steps: 8, max_prompt_chars: 5000}
`

// openHouse opens it for so many owners, with an engine of so many slots.
func openHouse(b *testing.B, owners, slots int) *house {
	b.Helper()
	ctx := context.Background()
	bucket := testenv.S3(b)
	roots, engines := filepath.Join(b.TempDir(), "roots.yaml"), filepath.Join(b.TempDir(), "engines.yaml")
	if _, err := vault.CreateRoots(roots); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(engines, fmt.Appendf(nil, benchEngines, slots), 0o600); err != nil {
		b.Fatal(err)
	}
	c := config.Config{
		Listen: freeAddress(b), MetricsListen: "off", DatabaseURL: testenv.DatabaseURL(b, db.Postgres), KeysDatabaseURL: testenv.DatabaseURL(b, db.Postgres),
		RootKeys: roots, RedisURL: testenv.Redis(b), S3Endpoint: bucket.Endpoint, S3Bucket: bucket.Bucket, S3Region: "us-east-1",
		S3AccessKey: bucket.AccessKey, S3SecretKey: bucket.SecretKey, Data: b.TempDir(), Engines: engines,
		QueuedPerOwner: 1_000_000, DailyPerOwner: 1_000_000, RequestsPerMinute: 10_000_000, ShutdownTimeout: 5 * time.Second,
	}
	a, err := Open(ctx, c, "bench", "bench", onlyErrors())
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

func onlyErrors() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
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
	h.answers(b)
}

func (h *house) answers(b *testing.B) {
	b.Helper()
	testenv.Eventually(b, 20*time.Second, func() bool {
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

func (h *house) request(method, path string, owner int, body string) *http.Request {
	req, err := http.NewRequest(method, h.base+path, strings.NewReader(body)) //nolint:noctx // a test
	if err != nil {
		panic(err) // our own address
	}
	req.Header.Set("Authorization", "Bearer "+h.keys[owner%len(h.keys)])
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return req
}

// client keeps a connection for each of parallel's goroutines.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * connections}}
}

// submit sends a prompt and returns the generation's id.
func (h *house) submit(b *testing.B, c *http.Client, i int, body string) string {
	b.Helper()
	req := h.request(http.MethodPost, "/v1/generations", i, body)
	req.Header.Set("Idempotency-Key", fmt.Sprint("k", h.sent.Add(1)))
	res, err := c.Do(req)
	if err != nil {
		b.Error(err)
		return ""
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusAccepted {
		b.Errorf("status %d (%v)", res.StatusCode, err)
	}
	var g struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(text, &g); err != nil {
		b.Error(err)
	}
	return g.ID
}

// BenchmarkAccept submits over HTTP for 100 owners with no worker, against the
// statements of the same accepts on the same connections. Floor and figure take
// turns, the floor first and last, and each turn is compared with the floors
// around it: what else the machine does for a while then spoils one turn, not the
// median. How far the floors are apart is reported too.
func BenchmarkAccept(b *testing.B) {
	for b.Loop() {
		const n, turns = 1000, 7
		h := openHouse(b, 100, 1)
		h.start(b, config.RoleAPI)
		c := client()
		post := func() float64 {
			return parallel(connections, n, func(i int) { h.submit(b, c, i, `{"prompt":"`+prompt+`"}`) })
		}
		post() // keys and plans are warm
		h.statements(b, n)
		floors := []float64{h.statements(b, n)}
		var rates, ratios []float64
		for i := range turns {
			rates = append(rates, post())
			floors = append(floors, h.statements(b, n))
			ratios = append(ratios, 2*rates[i]/(floors[i]+floors[i+1]))
		}
		b.ReportMetric(median(rates), "accepts/s")
		b.ReportMetric(median(floors), "floor/s")
		b.ReportMetric(slices.Max(floors)/slices.Min(floors), "floor-max/min")
		atLeast(b, "accepts/statements", median(ratios), 0.7)
	}
}

// BenchmarkUsage submits over HTTP to two services, of which one writes usage
// events, in turns.
func BenchmarkUsage(b *testing.B) {
	for b.Loop() {
		const n, turns = 1000, 9
		with, without := openHouse(b, 100, 1), openHouse(b, 100, 1)
		without.Usage = nil
		c := client()
		post := func(h *house) float64 {
			return parallel(connections, n, func(i int) { h.submit(b, c, i, `{"prompt":"`+prompt+`"}`) })
		}
		for _, h := range []*house{with, without} {
			h.start(b, config.RoleAPI)
			post(h)
		}
		floors := []float64{post(without)}
		var ratios []float64
		for i := range turns {
			rate := post(with)
			floors = append(floors, post(without))
			ratios = append(ratios, 2*rate/(floors[i]+floors[i+1]))
		}
		var written int
		testenv.Eventually(b, 20*time.Second, func() bool {
			if err := with.db.Get(context.Background(), &written, `SELECT count(*) FROM usage_events`); err != nil {
				b.Fatal(err)
			}
			return written == (turns+1)*n
		})
		b.ReportMetric(median(floors), "accepts/s-without")
		b.ReportMetric(slices.Max(floors)/slices.Min(floors), "floor-max/min")
		atLeast(b, "with/without", median(ratios), 0.95)
	}
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// statements is the floor: what an accept asks of the database, and nothing
// else.
func (h *house) statements(b *testing.B, n int) float64 {
	b.Helper()
	ctx := context.Background()
	sealed := bytes.Repeat([]byte{7}, 330)
	return parallel(connections, n, func(i int) {
		owner, now := h.ids[i%len(h.ids)], h.clock.Now()
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
			get(&text, `SELECT state FROM subjects WHERE id = ? FOR UPDATE`, owner)
			run(`INSERT INTO idempotency_keys (owner, key_lookup, body_lookup, generation_id, created_at) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (owner, key_lookup) DO UPDATE SET body_lookup = excluded.body_lookup, generation_id = excluded.generation_id,
					created_at = excluded.created_at WHERE idempotency_keys.created_at < ?`,
				owner, "floor"+gen, strings.Repeat("0", 64), gen, now.UnixMilli(), 0)
			get(&count, `SELECT count(*) FROM (
				SELECT 1 FROM jobs WHERE party = ? AND kind = 'generation:run' AND state IN ('queued', 'waiting') LIMIT ?) AS counted`,
				owner, h.config.QueuedPerOwner)
			get(&count, `SELECT count(*) FROM (SELECT 1 FROM generations WHERE owner = ? AND id >= ? LIMIT ?) AS counted`,
				owner, db.FloorID("gen", now.Truncate(24*time.Hour)), h.config.DailyPerOwner)
			get(&finish, `INSERT INTO job_turns (lane, party, finish) VALUES ('generation', ?, 8 + coalesce(
					(SELECT min(vstart) FROM jobs WHERE lane = 'generation' AND state = 'queued'),
					(SELECT max(finish) FROM job_turns WHERE lane = 'generation'), 0))
				ON CONFLICT (lane, party) DO UPDATE SET finish = greatest(job_turns.finish + 8, excluded.finish) RETURNING finish`, owner)
			run(`INSERT INTO jobs (id, lane, kind, party, ref, state, attempt, max_attempts, run_after, lease_until, worker, vstart, cost,
					cancel_requested, progress_done, progress_total, error_code, created_at, started_at, finished_at)
				VALUES (?, 'generation', 'generation:run', ?, ?, 'queued', 0, 5, 0, 0, '', ?, 8, 0, 0, 0, '', ?, 0, 0)`,
				job, owner, gen, finish-8, now.UnixMilli())
			run(`INSERT INTO generations (id, owner, job_id, model, seed, request, status, error_code, attempts,
					created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
				VALUES (?, ?, ?, 'bench', 7, ?, '', '', 0, ?, 0, 0, ?, 0, '', 0)`,
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

// BenchmarkRedisBytes measures what Redis holds for each queued job with a
// prompt of 4 KiB: of 200 jobs, each of which has a ring of its own, and of
// 5,000, of which no more are rung than the bell's bound. It fails when a piece
// of a prompt is there.
func BenchmarkRedisBytes(b *testing.B) {
	for b.Loop() {
		const few, many = 200, 5000
		h := openHouse(b, 100, 1)
		h.start(b, config.RoleAPI)
		c, ctx := client(), context.Background()
		const word = "lanternfish "
		body := `{"prompt":"` + strings.Repeat(word, 4096/len(word)+1)[:4096] + `"}`
		ring := func() float64 { return float64(h.redis.LLen(ctx, "asynq:{generation}:pending").Val()) }

		parallel(connections, few, func(i int) { h.submit(b, c, i, body) })
		testenv.Eventually(b, 30*time.Second, func() bool { return ring() == few })
		bytesOfFew := redisBytes(b, h.redis, word[:6])
		parallel(connections, many-few, func(i int) { h.submit(b, c, few+i, body) })
		time.Sleep(time.Second) // the last rings are rung beside the accepts
		bytesOfMany := redisBytes(b, h.redis, word[:6])

		atMost(b, "redis-bytes/job-all-rung", bytesOfFew/few, 700)
		atMost(b, "redis-bytes/job-of-5000", bytesOfMany/many, 700)
		b.ReportMetric(ring(), "rings-of-5000")
	}
}

// redisBytes is what all keys take. None of them, nor what they hold, may hold
// the secret.
func redisBytes(b *testing.B, r redis.UniversalClient, secret string) (total float64) {
	b.Helper()
	ctx := context.Background()
	keys, err := r.Keys(ctx, "*").Result()
	if err != nil {
		b.Fatal(err)
	}
	for _, key := range keys {
		size, err := r.MemoryUsage(ctx, key, 0).Result() // 0: every element is counted
		if errors.Is(err, redis.Nil) {
			continue // it has ended meanwhile
		}
		if err != nil {
			b.Fatal(err)
		}
		total += float64(size)
		var held any
		switch kind := r.Type(ctx, key).Val(); kind {
		case "none":
		case "string":
			held = r.Get(ctx, key).Val()
		case "list":
			held = r.LRange(ctx, key, 0, -1).Val()
		case "set":
			held = r.SMembers(ctx, key).Val()
		case "zset":
			held = r.ZRange(ctx, key, 0, -1).Val()
		case "hash":
			held = r.HGetAll(ctx, key).Val()
		default:
			b.Errorf("Redis holds a %s, which nobody looked into", kind)
		}
		if strings.Contains(fmt.Sprint(key, held), secret) {
			b.Errorf("a piece of a prompt is in Redis, in a key like %.20s", key)
		}
	}
	return total
}

// sleeper is an engine that takes exactly its time for each image and counts
// how long it was at work.
type sleeper struct {
	mu    sync.Mutex
	takes time.Duration
	image []byte
	busy  time.Duration
	first time.Time
	last  time.Time
}

func (s *sleeper) Generate(ctx context.Context, _ engine.Request, _ func(engine.Progress)) ([]byte, error) {
	started := time.Now()
	s.mu.Lock()
	takes := s.takes
	s.mu.Unlock()
	select {
	case <-time.After(takes):
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
	return s.image, nil
}

func (s *sleeper) Check(context.Context) error { return nil }

// noise is a square picture that takes its time to be read and encoded.
func noise(b *testing.B, side int) []byte {
	b.Helper()
	img := image.NewNRGBA(image.Rect(0, 0, side, side))
	for i := range img.Pix {
		img.Pix[i] = byte(i * i >> 7 & 255)
		if i%4 == 3 {
			img.Pix[i] = 255
		}
	}
	var raw bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&raw, img); err != nil {
		b.Fatal(err)
	}
	return raw.Bytes()
}

// post runs n generations on the sleeper, one after the other, and returns how
// long each of them took beyond the engine, on average: reading it, encoding,
// sealing, storing and its end.
func (h *house) post(b *testing.B, s *sleeper, n int, takes time.Duration, image []byte) time.Duration {
	b.Helper()
	s.mu.Lock()
	s.takes, s.image, s.busy, s.first = takes, image, 0, time.Time{}
	s.mu.Unlock()
	c := client()
	ids := make([]any, n)
	for i := range ids {
		ids[i] = h.submit(b, c, i, `{"prompt":"`+prompt+`","format":"jpeg"}`)
	}
	var took []float64
	testenv.Eventually(b, time.Duration(n)*(takes+10*time.Second), func() bool {
		took = took[:0]
		err := h.db.Select(context.Background(), &took, `SELECT (finished_at - started_at) / 1000.0 FROM jobs
			WHERE state = 'succeeded' AND ref IN (`+db.Marks(n)+`)`, ids...)
		return err == nil && len(took) == n
	})
	var sum float64
	for _, t := range took {
		sum += t
	}
	return time.Duration(sum/float64(n)*float64(time.Second)) - takes
}

// BenchmarkEngineBusy runs 20 generations on an engine that takes 1 s, with a
// picture of the size that takes this machine half of that beside it, and
// reports the share of the time in which the engine was at work.
func BenchmarkEngineBusy(b *testing.B) {
	for b.Loop() {
		const n, takes, half = 20, time.Second, 500 * time.Millisecond
		h := openHouse(b, 4, 1)
		s := &sleeper{}
		h.open = func(engine.Settings) (engine.Engine, error) { return s, nil }
		h.start(b, config.RoleAPI, config.RoleWorker)
		side, image := 1024, noise(b, 1024)
		h.post(b, s, 1, 0, image) // keys and plans are warm
		for range 3 {
			// With pauses as in the figure itself, so that no two are beside each other.
			took := h.post(b, s, 3, takes, image)
			if took > half*19/20 && took < half*21/20 {
				break
			}
			side = max(64, min(int(float64(side)*math.Sqrt(float64(half)/float64(took))), 6000))
			image = noise(b, side)
		}
		took := h.post(b, s, n, takes, image)
		s.mu.Lock()
		b.ReportMetric(float64(side), "picture-side-px")
		b.ReportMetric(took.Seconds()/takes.Seconds(), "post-processing/G")
		atLeast(b, "engine-busy-share", s.busy.Seconds()/s.last.Sub(s.first).Seconds(), 0.98)
		s.mu.Unlock()
	}
}

// lateWake is how long after its generation's end a client may learn of it: the
// API asks the database every second for what Redis did not tell.
const lateWake = 1500 * time.Millisecond

// waiter is one client that waits for a generation, by event stream or by long
// polls, until it was told of the end.
type waiter struct {
	id    string
	told  int64   // when it learned of the end, in milliseconds; 0: never
	still []int64 // when an answer ended that told of no end
}

// waits counts what happened to all waiters.
type waits struct{ open, broken, refused atomic.Int64 }

// wait returns once the client was told or ctx has ended.
func (w *waiter) wait(ctx context.Context, h *house, c *http.Client, owner int, stream bool, all *waits) {
	opened := sync.OnceFunc(func() { all.open.Add(1) })
	for ctx.Err() == nil {
		path := "/v1/generations/" + w.id
		if stream {
			path += "/events"
		}
		req := h.request(http.MethodGet, path, owner, "")
		if !stream {
			req.Header.Set("Prefer", "wait=60")
		}
		res, err := c.Do(req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			WroteRequest: func(httptrace.WroteRequestInfo) { opened() },
		})))
		if err != nil {
			if ctx.Err() == nil {
				all.broken.Add(1)
				time.Sleep(time.Second)
			}
			continue
		}
		ended := false
		for lines := bufio.NewScanner(res.Body); lines.Scan() && !ended; {
			var g struct {
				Status string `json:"status"`
			}
			_ = json.Unmarshal([]byte(strings.TrimPrefix(lines.Text(), "data: ")), &g) // other lines of a stream
			ended = g.Status == "succeeded" || g.Status == "failed" || g.Status == "canceled"
		}
		now := h.clock.Millis()
		_ = res.Body.Close()
		switch {
		case res.StatusCode != http.StatusOK && res.StatusCode != http.StatusAccepted:
			all.refused.Add(1)
			time.Sleep(time.Second)
		case ended:
			w.told = now
			return
		case ctx.Err() == nil:
			w.still = append(w.still, now)
		}
	}
}

// BenchmarkWaitingClients has 2,000 clients wait on one API in a process of its
// own, half by long poll and half by event stream, each for a generation of its
// own. It reports what a waiting client costs that process, how late the clients
// learned of the end, and how many did not learn of it in time.
func BenchmarkWaitingClients(b *testing.B) {
	for b.Loop() {
		const n = 2000
		h := openHouse(b, 40, 4) // 50 clients for each key, which may have 100 open
		s := &sleeper{image: noise(b, 64)}
		h.open = func(engine.Settings) (engine.Engine, error) { return s, nil }
		api := h.child(b)
		c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
		waiters := make([]waiter, n)
		for i := range waiters {
			waiters[i].id = h.submit(b, c, i, `{"prompt":"`+prompt+`","width":64,"height":64,"steps":1}`)
		}
		const idle, settle, watch = 5 * time.Second, 3 * time.Second, 10 * time.Second
		time.Sleep(settle)
		cpu := api.cpu(b)
		time.Sleep(idle)
		idleCPU, before := (api.cpu(b)-cpu).Seconds()/idle.Seconds(), api.memory(b)

		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		var all waits
		var work sync.WaitGroup
		for i := range waiters {
			work.Go(func() { waiters[i].wait(ctx, h, c, i, i%2 == 0, &all) })
		}
		testenv.Eventually(b, 30*time.Second, func() bool { return all.open.Load() == n })
		time.Sleep(settle) // all of them wait now
		cpu = api.cpu(b)
		time.Sleep(watch)
		waitingCPU, after := (api.cpu(b)-cpu).Seconds()/watch.Seconds(), api.memory(b)
		h.start(b, config.RoleWorker, config.RoleScheduler)
		work.Wait()

		late, lost := h.lateness(b, waiters)
		b.ReportMetric(before/1024, "rss-MiB-idle")
		b.ReportMetric(after/1024, "rss-MiB-waiting")
		b.ReportMetric((after-before)/n, "rss-KiB/client")
		b.ReportMetric(idleCPU*100, "cpu-%-idle")
		b.ReportMetric(waitingCPU*100, "cpu-%-waiting")
		b.ReportMetric((waitingCPU-idleCPU)*1e6/n, "cpu-us/s/client")
		b.ReportMetric(float64(late[len(late)/2]), "told-after-p50-ms")
		b.ReportMetric(float64(late[len(late)*99/100]), "told-after-p99-ms")
		b.ReportMetric(float64(late[len(late)-1]), "told-after-max-ms")
		atMost(b, "lost-wakeups", float64(lost), 0)
		atMost(b, "broken-requests", float64(all.broken.Load()), 0)
		atMost(b, "other-statuses", float64(all.refused.Load()), 0)
	}
}

// lateness compares what the clients saw with the rows: how many milliseconds
// after the end each was told of it, in order, and how many wake-ups were lost:
// a client was told too late or not at all, or was sent away after the end
// without being told of it.
func (h *house) lateness(b *testing.B, waiters []waiter) (late []int64, lost int) {
	b.Helper()
	var rows []struct {
		ID         string `db:"id"`
		Status     string `db:"status"`
		FinishedAt int64  `db:"finished_at"`
	}
	if err := h.db.Select(context.Background(), &rows, `SELECT id, status, finished_at FROM generations`); err != nil {
		b.Fatal(err)
	}
	finished := map[string]int64{}
	for _, r := range rows {
		if r.Status == "succeeded" {
			finished[r.ID] = r.FinishedAt
		}
	}
	for _, w := range waiters {
		end, ok := finished[w.id]
		if !ok {
			b.Errorf("a generation did not succeed")
			continue
		}
		if w.told > 0 {
			late = append(late, w.told-end)
		}
		// An answer may have been on its way at the end.
		const onItsWay = 500
		if w.told == 0 || w.told-end > lateWake.Milliseconds() ||
			slices.ContainsFunc(w.still, func(at int64) bool { return at > end+onItsWay }) {
			lost++
		}
	}
	if len(late) == 0 {
		b.Fatal("nobody was told of anything")
	}
	slices.Sort(late)
	return late, lost
}

// process is the API as a process of its own.
type process struct{ pid int }

// child starts it: this very binary, on the house's parts.
func (h *house) child(b *testing.B) process {
	b.Helper()
	settings, err := json.Marshal(h.config)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0]) //nolint:gosec // this very binary
	cmd.Env, cmd.Stderr = append(os.Environ(), childSettings+"="+string(settings)), os.Stderr
	gone, err := testenv.StartBound(cmd)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
	})
	h.answers(b)
	return process{cmd.Process.Pid}
}

// read is a file of the kernel's about the process. Only Linux has them.
func (p process) read(b *testing.B, name string) string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, name))
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}

// memory is what is resident, in KiB.
func (p process) memory(b *testing.B) float64 {
	b.Helper()
	_, rest, _ := strings.Cut(p.read(b, "status"), "VmRSS:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib
}

// cpu is the processor time it has used.
func (p process) cpu(b *testing.B) (total time.Duration) {
	b.Helper()
	text := p.read(b, "stat")
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the name before it may hold spaces
	for _, field := range fields[11:13] {                               // of the user and of the kernel, in hundredths of a second
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		total += time.Duration(n) * 10 * time.Millisecond
	}
	return total
}

// childSettings is where a child of BenchmarkWaitingClients finds its settings.
const childSettings = "ZIMAGE_TEST_APP_SETTINGS"

func TestMain(m *testing.M) {
	// Two thousand clients and their connections.
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	settings := os.Getenv(childSettings)
	if settings == "" {
		os.Exit(m.Run())
	}
	if err := serveChild(settings); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveChild(settings string) error {
	var c config.Config
	if err := json.Unmarshal([]byte(settings), &c); err != nil {
		return err
	}
	ctx, abort, stop := Signals()
	defer stop()
	a, err := Open(ctx, c, "bench-api", "bench", onlyErrors())
	if err != nil {
		return err
	}
	return errors.Join(a.Run(ctx, abort, nil, config.RoleAPI), a.Close())
}
