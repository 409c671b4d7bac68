package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	s3 "github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"zimage/internal/db"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// modelID is the one model of the scripted engine.
const modelID = "scripted"

// Options of a Cluster; the zero value is good.
type Options struct {
	// Each turns a store's real address into the one that every process gets,
	// such as that of a proxy before it. The harness itself, and the command
	// line with which it makes the user, go to the real one.
	DatabaseURL, KeysDatabaseURL, RedisURL func(url string) string
	S3Endpoint                             func(hostPort string) string

	Slots        int      // of the engine in each worker; default 1
	CannotCancel bool     // an engine that goes on when nobody wants its image any more
	Settings     []string // NAME=VALUE, without the prefix, for every process
	Bare         bool     // no user yet: nobody has migrated the databases
	KeptRedis    bool     // it writes a log of its commands
	Versioned    bool     // the bucket keeps old versions
}

// A Cluster is the stores, the engine and the processes of one test.
type Cluster struct {
	Postgres, Redis, Minio *testenv.Server
	Engine                 *Engine
	DB                     *db.DB // the main database, past all proxies
	Key                    string // API key of the one user
	Owner                  string // the user's subject
	Canary                 string // in every prompt, and to be nowhere else

	t         testing.TB
	dir       string
	database  string   // address of DB
	settings  []string // what processes get
	direct    []string // the same without proxies
	s3        struct{ access, secret, bucket string }
	heard     *monitor
	following sync.WaitGroup // the receivers
	firstWay  way            // of the first receiver

	mu        sync.Mutex
	processes []*Process
	accepts   map[string]Accept   // by generation
	keys      map[string]string   // Idempotency-Key to the generation that it made
	open      map[string]struct{} // keys of which nobody knows whether they made one
	mended    time.Time           // see Mended
}

// An Accept is a request that the API said yes to.
type Accept struct {
	ID     string
	Prompt string
	Images int

	receiver *receiver
}

func newCluster(t testing.TB) *Cluster {
	t.Helper()
	return &Cluster{t: t, dir: t.TempDir(), Canary: "canary" + strings.ToLower(rand.Text()), firstWay: anyWay(),
		accepts: map[string]Accept{}, keys: map[string]string{}, open: map[string]struct{}{}}
}

// start starts stores and engine, and makes a user with a key. Processes are
// the test's to start.
func start(t *testing.T, o Options) *Cluster {
	t.Helper()
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c.startStores(ctx, o.KeptRedis)
	c.Engine = startEngine(t)
	c.configure(ctx, o)
	t.Cleanup(c.end)
	if !o.Bare {
		c.MakeUser()
	}
	return c
}

func (c *Cluster) startStores(ctx context.Context, keptRedis bool) {
	c.t.Helper()
	var g errgroup.Group
	for target, begin := range map[**testenv.Server]func(context.Context) (*testenv.Server, error){
		&c.Postgres: testenv.StartPostgres,
		&c.Minio:    testenv.StartMinio,
		&c.Redis:    func(ctx context.Context) (*testenv.Server, error) { return testenv.StartRedis(ctx, keptRedis) },
	} {
		g.Go(func() (err error) { *target, err = begin(ctx); return err })
	}
	err := g.Wait()
	c.t.Cleanup(func() {
		for _, s := range []*testenv.Server{c.Postgres, c.Minio, c.Redis} {
			if s != nil {
				if err := s.Stop(); err != nil {
					c.t.Error(err)
				}
			}
		}
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.heard = listenTo(c.t, c.Redis.Addr())
}

func (c *Cluster) configure(ctx context.Context, o Options) {
	t := c.t
	t.Helper()
	databases := map[string]string{}
	conn, err := pgx.Connect(ctx, c.Postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"zimage", "zimage_keys"} {
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(c.Postgres.URL())
		if err != nil {
			t.Fatal(err)
		}
		u.Path = "/" + name
		databases[name] = u.String()
	}
	if err := conn.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c.database = databases["zimage"]
	if c.DB, err = db.Open(ctx, c.database, db.Options{Name: "zimage-e2e"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.DB.Close() })

	roots := filepath.Join(c.dir, "roots.yaml")
	if _, err := vault.CreateRoots(roots); err != nil {
		t.Fatal(err)
	}
	engines := filepath.Join(c.dir, "engines.yaml")
	if err := os.WriteFile(engines, []byte(enginesFile(c.Engine.address, o)), 0o600); err != nil {
		t.Fatal(err)
	}
	minio, err := url.Parse(c.Minio.URL())
	if err != nil {
		t.Fatal(err)
	}
	c.s3.access, c.s3.bucket = minio.User.Username(), "zimage-e2e"
	c.s3.secret, _ = minio.User.Password()
	if o.Versioned {
		bucket := c.bucket()
		err := bucket.MakeBucket(ctx, c.s3.bucket, s3.MakeBucketOptions{})
		if err == nil {
			err = bucket.EnableVersioning(ctx, c.s3.bucket)
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	common := append([]string{
		"ROOT_KEYS=" + roots, "ENGINES=" + engines, "DATA=" + filepath.Join(c.dir, "data"),
		"S3_BUCKET=" + c.s3.bucket, "S3_ACCESS_KEY=" + c.s3.access, "S3_SECRET_KEY=" + c.s3.secret, "S3_TLS=false",
		"QUEUED_PER_OWNER=100000", "DAILY_PER_OWNER=1000000", "REQUESTS_PER_MINUTE=10000000",
		"LOG_LEVEL=debug", "LOG_FORMAT=json", "TRUSTED_PROXIES=127.0.0.0/8",
	}, o.Settings...)
	addresses := func(through bool) []string {
		by := func(f func(string) string, address string) string {
			if through && f != nil {
				return f(address)
			}
			return address
		}
		return append([]string{
			"DATABASE_URL=" + by(o.DatabaseURL, databases["zimage"]),
			"KEYS_DATABASE_URL=" + by(o.KeysDatabaseURL, databases["zimage_keys"]),
			"REDIS_URL=" + by(o.RedisURL, c.Redis.URL()),
			"S3_ENDPOINT=" + by(o.S3Endpoint, c.Minio.Addr()),
		}, common...)
	}
	c.settings, c.direct = addresses(true), addresses(false)
}

func enginesFile(address string, o Options) string {
	dialect, keeps := "vllm-omni", "nothing"
	if o.CannotCancel {
		dialect, keeps = "sglang", "memory"
	}
	return fmt.Sprintf(`engines:
  - name: scripted
    kind: openai
    url: http://%s
    keeps: %s
    slots: %d
    timeout: 5m
    models:
      %s: {dialect: %s}
models:
  - id: %s
    default_width: 256
    default_height: 256
    default_steps: 4
`, address, keeps, max(o.Slots, 1), modelID, dialect, modelID)
}

// MakeUser makes the user and the key with the command line, as an operator
// does.
func (c *Cluster) MakeUser() {
	c.t.Helper()
	c.Owner = c.CLI("correct horse battery staple\n", "user", "create", "--email", "e2e@example.org")
	c.Key = c.CLI("", "key", "create", "--email", "e2e@example.org")
}

// CLI runs the zimage command on this installation and returns what it printed.
func (c *Cluster) CLI(stdin string, args ...string) string {
	c.t.Helper()
	cmd := exec.Command(builds.path(c.t, binZimage), args...)
	cmd.Env, cmd.Stdin, cmd.Dir = environment(c.dir, c.direct), strings.NewReader(stdin), c.dir
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	out, err := run(ctx, cmd)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// environment is all that a child sees; later settings win.
func environment(dir string, settings ...[]string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir,
		"GORACE=atexit_sleep_ms=0"} // the race detector sleeps for a second before an exit
	for _, list := range settings {
		for _, s := range list {
			env = append(env, "ZIMAGE_"+s)
		}
	}
	return env
}

// API starts an API; settings (NAME=VALUE) go before the cluster's.
func (c *Cluster) API(name string, settings ...string) *Process {
	c.t.Helper()
	return c.begin(c.Prepare(name, binAPI, settings...))
}

// Worker starts a worker.
func (c *Cluster) Worker(name string, settings ...string) *Process {
	c.t.Helper()
	return c.begin(c.Prepare(name, binWorker, settings...))
}

// Scheduler starts a scheduler.
func (c *Cluster) Scheduler(name string, settings ...string) *Process {
	c.t.Helper()
	return c.begin(c.Prepare(name, binScheduler, settings...))
}

func (c *Cluster) begin(p *Process) *Process {
	c.t.Helper()
	p.Start()
	return p
}

// Prepare makes a process of a command without starting it.
func (c *Cluster) Prepare(name, command string, settings ...string) *Process {
	c.t.Helper()
	metrics := freeAddress(c.t)
	own := []string{"METRICS_LISTEN=" + metrics}
	p := &Process{Name: name, Metrics: "http://" + metrics, t: c.t, path: builds.path(c.t, command), log: filepath.Join(c.dir, name+".log")}
	if command == binZimage {
		p.args = []string{"up"}
	}
	if command == binAPI || command == binZimage {
		listen := freeAddress(c.t)
		own = append(own, "LISTEN="+listen)
		p.URL = "http://" + listen
	}
	p.env = environment(c.dir, c.settings, own, settings)
	c.mu.Lock()
	c.processes = append(c.processes, p)
	c.mu.Unlock()
	return p
}

// end waits for the receivers, kills what runs, and shows the logs of a test
// that failed.
func (c *Cluster) end() {
	c.following.Wait() // their context has ended
	for _, p := range c.processes {
		if p.Alive() {
			_ = p.cmd.Process.Kill()
			<-p.gone
		}
	}
	for _, p := range c.processes {
		if _, report, found := strings.Cut(p.Log(), "WARNING: DATA RACE"); found {
			c.t.Errorf("data race in %s:%s", p.Name, report[:min(len(report), 6000)])
		}
	}
	if !c.t.Failed() {
		return
	}
	for _, p := range c.processes {
		lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
		c.t.Logf("log of %s (its end):\n%s", p.Name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// A Request is what a test asks for.
type Request struct {
	Label  string // goes into the prompt, after the canary
	N      int    // images; 0 means 1
	Key    string // Idempotency-Key; empty: one is made
	Within time.Duration
}

// Prompt is the prompt that a label makes.
func (c *Cluster) Prompt(label string) string { return c.Canary + " " + label }

// A Generation is what the API says of one.
type Generation struct {
	ID     string  `json:"id"`
	Status string  `json:"status"`
	Seed   int64   `json:"seed"`
	Images []Image `json:"images"`
	Error  *struct {
		Code string `json:"code"`
	} `json:"error"`
	FinishedAt time.Time `json:"finished_at"`
}

// Terminal reports whether it has ended.
func (g Generation) Terminal() bool {
	return g.Status == "succeeded" || g.Status == "failed" || g.Status == "canceled"
}

// end is how it ended.
func (g Generation) end() end {
	e := end{status: g.Status, at: g.FinishedAt}
	if g.Error != nil {
		e.code = g.Error.Code
	}
	for _, i := range g.Images {
		e.images = append(e.images, i.ID)
	}
	return e
}

// An Image is what the API says of one.
type Image struct {
	ID     string `json:"id"`
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
	Seed   int64  `json:"seed"`
}

// Try submits once to an API, logs the accept and starts its receiver. An error
// may leave it open whether the request was accepted.
func (c *Cluster) Try(ctx context.Context, api *Process, r Request) (Generation, error) {
	if r.Key == "" {
		r.Key = rand.Text()
	}
	prompt := c.Prompt(r.Label)
	body, err := json.Marshal(map[string]any{"prompt": prompt, "n": max(r.N, 1)})
	if err != nil {
		return Generation{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, api.URL+"/v1/generations", bytes.NewReader(body))
	if err != nil {
		return Generation{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", r.Key)
	var g Generation
	status, err := c.do(req, &g)
	if err == nil && status != http.StatusAccepted && status != http.StatusOK {
		err = &StatusError{Status: status}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	first, answered := c.keys[r.Key]
	if err != nil {
		// Only a 4xx says that nothing was written: a 503 may stand for a commit
		// whose answer was lost.
		if refused := new(StatusError); !answered && (!errors.As(err, &refused) || refused.Status >= 500) {
			c.open[r.Key] = struct{}{}
		}
		return Generation{}, err
	}
	delete(c.open, r.Key)
	c.keys[r.Key] = g.ID
	if answered && first != g.ID {
		c.t.Errorf("one Idempotency-Key made %s and %s", first, g.ID)
	}
	if _, known := c.accepts[g.ID]; !known {
		c.accepts[g.ID] = Accept{ID: g.ID, Prompt: prompt, Images: max(r.N, 1), receiver: c.follow(g.ID)}
	}
	return g, nil
}

// A StatusError is an answer with another status than asked for.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return fmt.Sprintf("the API answered %d", e.Status) }

// Submit submits until the API says yes, with the same Idempotency-Key each
// time, for 30 s unless the request says otherwise.
func (c *Cluster) Submit(api *Process, r Request) Generation {
	c.t.Helper()
	if r.Key == "" {
		r.Key = rand.Text()
	}
	if r.Within == 0 {
		r.Within = 30 * time.Second
	}
	var g Generation
	var err error
	until(c.t, r.Within, "the API accepts", func() bool {
		g, err = c.Try(c.t.Context(), api, r)
		return err == nil
	})
	return g
}

// Get reads a generation.
func (c *Cluster) Get(api *Process, id string) (Generation, error) {
	var g Generation
	return g, c.get(api, "/v1/generations/"+id, &g)
}

// List reads all the owner's generations, newest first.
func (c *Cluster) List(api *Process) ([]Generation, error) {
	var all []Generation
	for cursor := ""; ; {
		var page struct {
			Data []Generation `json:"data"`
			Next string       `json:"next_cursor"`
		}
		if err := c.get(api, "/v1/generations?limit=100&cursor="+url.QueryEscape(cursor), &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if cursor = page.Next; cursor == "" {
			return all, nil
		}
	}
}

// Cancel cancels a generation.
func (c *Cluster) Cancel(api *Process, id string) (Generation, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, api.URL+"/v1/generations/"+id+"/cancel", http.NoBody)
	if err != nil {
		return Generation{}, err
	}
	var g Generation
	status, err := c.do(req, &g)
	if err == nil && status != http.StatusOK && status != http.StatusAccepted {
		err = &StatusError{Status: status}
	}
	return g, err
}

// Content reads the bytes of an image.
func (c *Cluster) Content(api *Process, image string) ([]byte, error) {
	var data []byte
	return data, c.get(api, "/v1/images/"+image+"/content", &data)
}

// Wait waits until a generation has ended as wanted.
func (c *Cluster) Wait(api *Process, id, want string, within time.Duration) Generation {
	c.t.Helper()
	var g Generation
	until(c.t, within, "generation is "+want, func() bool {
		var err error
		if g, err = c.Get(api, id); err != nil {
			return false
		}
		if g.Terminal() && g.Status != want {
			c.t.Fatalf("generation %s is %s (%v), want %s", id, g.Status, g.Error, want)
		}
		return g.Status == want
	})
	return g
}

func (c *Cluster) get(api *Process, path string, dest any) error {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, api.URL+path, http.NoBody)
	if err != nil {
		return err
	}
	status, err := c.do(req, dest)
	if err == nil && status != http.StatusOK {
		err = &StatusError{Status: status}
	}
	return err
}

// do sends a request as the user; dest is filled when the answer is good.
func (c *Cluster) do(req *http.Request, dest any) (int, error) {
	req.Header.Set("Authorization", "Bearer "+c.Key)
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode > 299 {
		return res.StatusCode, err
	}
	if data, raw := dest.(*[]byte); raw {
		*data = text
		return res.StatusCode, nil
	}
	if err := json.Unmarshal(text, dest); err != nil {
		return res.StatusCode, errors.New("the answer is no JSON")
	}
	return res.StatusCode, nil
}

// A JobRow is what the database says of a generation's job.
type JobRow struct {
	ID          string `db:"id"`
	State       string `db:"state"`
	Attempt     int    `db:"attempt"`
	MaxAttempts int    `db:"max_attempts"`
	Worker      string `db:"worker"`
}

// Job reads a generation's job from the database.
func (c *Cluster) Job(generation string) JobRow {
	c.t.Helper()
	var j JobRow
	err := c.DB.Get(c.t.Context(), &j, `SELECT id, state, attempt, max_attempts, worker FROM jobs WHERE kind = 'generation:run' AND ref = ?`, generation)
	if err != nil {
		c.t.Fatal(err)
	}
	return j
}

// Hold runs a statement that takes a lock and keeps it until the returned
// function is called.
func (c *Cluster) Hold(statement string, args ...any) (letGo func()) {
	c.t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, c.database)
	if err != nil {
		c.t.Fatal(err)
	}
	letGo = sync.OnceFunc(func() { _ = conn.Close(ctx) }) // which ends the transaction
	c.t.Cleanup(letGo)
	for _, s := range []struct {
		sql  string
		args []any
	}{{"BEGIN", nil}, {statement, args}} {
		if _, err := conn.Exec(ctx, s.sql, s.args...); err != nil {
			c.t.Fatal(err)
		}
	}
	return letGo
}

// Blocked is how many statements that begin like this wait for a lock.
func (c *Cluster) Blocked(statement string) int {
	c.t.Helper()
	return c.Count(`SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE ?`, statement+"%")
}

// Count runs a counting query on the main database.
func (c *Cluster) Count(query string, args ...any) int {
	c.t.Helper()
	var n int
	if err := c.DB.Get(c.t.Context(), &n, query, args...); err != nil {
		c.t.Fatal(err)
	}
	return n
}
