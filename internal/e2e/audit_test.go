package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/redis/go-redis/v9"

	"zimage/internal/engine/enginetest"
)

// sweepTime is how long leftovers may lie about: the sweep waits a lease (12 s),
// is found by the scheduler and the worker (2 s each), and the machine is busy.
const sweepTime = time.Minute

// Audit compares every accept with the database, the bucket, its receiver and
// the API: none lost, none twice, nothing left over, and no prompt where none may
// be. It needs a living api, a scheduler, and a worker for housekeeping.
func (c *Cluster) Audit(api *Process) {
	c.t.Helper()
	c.auditEnds(2 * time.Minute)
	c.auditReceivers(c.auditRows())
	c.auditObjects()
	c.auditImages(api)
	c.auditCanary()
}

// auditEnds waits until nothing is left to do for the accepts.
func (c *Cluster) auditEnds(within time.Duration) {
	c.t.Helper()
	until(c.t, within, "all generations have ended", func() bool {
		return c.Count(`SELECT count(*) FROM generations WHERE status = '' AND removed_at = 0`) == 0
	})
}

type generationRow struct {
	ID         string `db:"id"`
	Status     string `db:"status"`
	Code       string `db:"error_code"`
	Job        string `db:"job_state"`
	FinishedAt int64  `db:"finished_at"`
}

// auditRows wants a row for every accept, and no others but those of submits
// without an answer. It returns how each generation ended.
func (c *Cluster) auditRows() map[string]end {
	t := c.t
	t.Helper()
	var rows []generationRow
	err := c.DB.Select(t.Context(), &rows, `SELECT g.id, g.status, g.error_code, g.finished_at, j.state AS job_state
		FROM generations g JOIN jobs j ON j.id = g.job_id AND j.ref = g.id`)
	if err != nil {
		t.Fatal(err)
	}
	var images []struct {
		ID         string `db:"id"`
		Generation string `db:"generation_id"`
	}
	if err := c.DB.Select(t.Context(), &images, `SELECT id, generation_id FROM images ORDER BY n`); err != nil {
		t.Fatal(err)
	}
	found := map[string]end{}
	for _, r := range rows {
		if _, twice := found[r.ID]; twice {
			t.Errorf("generation %s is there twice", r.ID)
		}
		e := end{status: r.Status, at: time.UnixMilli(r.FinishedAt)}
		if r.Status == "failed" {
			e.code = r.Code // the API tells it of nothing else
		}
		found[r.ID] = e
		if r.Status != r.Job {
			t.Errorf("generation %s is %s and its job %s", r.ID, r.Status, r.Job)
		}
	}
	for _, i := range images {
		e := found[i.Generation]
		e.images = append(e.images, i.ID)
		found[i.Generation] = e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, a := range c.accepts {
		e, there := found[id]
		switch {
		case !there:
			t.Errorf("generation %s was accepted and is lost", id)
		case e.status == "succeeded" && len(e.images) != a.Images:
			t.Errorf("generation %s has %d images, want %d", id, len(e.images), a.Images)
		case e.status != "succeeded" && len(e.images) != 0:
			t.Errorf("generation %s is %s and has %d images", id, e.status, len(e.images))
		}
	}
	if n := c.Count(`SELECT count(*) FROM generations`); n < len(c.accepts) || n > len(c.accepts)+len(c.open) {
		t.Errorf("%d generations for %d accepts and %d keys that were never answered", n, len(c.accepts), len(c.open))
	}
	// A key remembers one generation, so a second one of its is nobody's.
	if n := c.Count(`SELECT count(*) FROM generations g WHERE NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE k.generation_id = g.id)`); n > 0 {
		t.Errorf("%d generations are beside the one of their Idempotency-Key", n)
	}
	if n := c.Count(`SELECT count(*) FROM jobs WHERE kind = 'generation:run'`); n != len(rows) {
		t.Errorf("%d jobs for %d generations", n, len(rows))
	}
	return found
}

// bucket is a client of the bucket's server, past the proxy.
func (c *Cluster) bucket() *minio.Client {
	c.t.Helper()
	store, err := minio.New(c.Minio.Addr(), &minio.Options{Creds: credentials.NewStaticV4(c.s3.access, c.s3.secret, "")})
	if err != nil {
		c.t.Fatal(err)
	}
	return store
}

// Objects are the keys in the bucket below images/.
func (c *Cluster) Objects() []string {
	c.t.Helper()
	var keys []string
	for o := range c.bucket().ListObjects(c.t.Context(), c.s3.bucket, minio.ListObjectsOptions{Prefix: "images/", Recursive: true}) {
		if o.Err != nil {
			c.t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	slices.Sort(keys)
	return keys
}

// auditObjects wants the objects of the image rows, and after the sweeps
// nothing else.
func (c *Cluster) auditObjects() {
	t := c.t
	t.Helper()
	var rows []struct {
		Owner      string `db:"owner"`
		Generation string `db:"generation_id"`
		Attempt    int    `db:"attempt"`
		N          int    `db:"n"`
	}
	if err := c.DB.Select(t.Context(), &rows, `SELECT owner, generation_id, attempt, n FROM images WHERE removed_at = 0`); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, r := range rows {
		key := fmt.Sprintf("images/%s/%s/%d/%d", r.Owner, r.Generation, r.Attempt, r.N)
		want = append(want, key+".img", key+".thumb")
	}
	slices.Sort(want)
	deadline := time.Now().Add(sweepTime)
	for {
		got := c.Objects()
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			lost, left := without(want, got), without(got, want)
			t.Fatalf("%d objects lost: %v; %d left over: %v", len(lost), lost, len(left), left)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

func (c *Cluster) allAccepts() []Accept {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.accepts))
}

// auditImages reads every picture through the API: it is the one that the
// engine made of this prompt, with the hash that was told.
func (c *Cluster) auditImages(api *Process) {
	t := c.t
	t.Helper()
	for _, a := range c.allAccepts() {
		g, err := c.Get(api, a.ID)
		if err != nil {
			t.Errorf("generation %s: %v", a.ID, err)
			continue
		}
		if !g.Terminal() {
			t.Errorf("generation %s is %s", a.ID, g.Status)
		}
		for k, i := range g.Images {
			data, err := c.Content(api, i.ID)
			if err != nil {
				t.Errorf("image %s: %v", i.ID, err)
				continue
			}
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != i.SHA256 || int64(len(data)) != i.Bytes {
				t.Errorf("image %s is not the one whose hash was told", i.ID)
			}
			if !sameColour(t, data, enginetest.Paint(a.Prompt, g.Seed+int64(k), 16, 16)) {
				t.Errorf("image %s is of another prompt or seed", i.ID)
			}
		}
	}
}

func sameColour(t testing.TB, a, b []byte) bool {
	t.Helper()
	var first [2][3]uint32
	for k, data := range [][]byte{a, b} {
		p, _, err := image.Decode(bytes.NewReader(data))
		if err != nil {
			t.Error(err)
			return false
		}
		first[k][0], first[k][1], first[k][2], _ = p.At(0, 0).RGBA()
	}
	return first[0] == first[1]
}

// auditCanary wants the prompts nowhere: not in a log, in what passed through
// Redis or lies there, on a metrics page, nor readable on the disks of database
// and object store. Nor may a log have an address that the requests came from.
func (c *Cluster) auditCanary() {
	t := c.t
	t.Helper()
	for _, p := range c.processes {
		if what := c.personalIn(p.Log()); what != "" {
			t.Errorf("%s is in the log of %s", what, p.Name)
		}
		if p.Alive() && strings.Contains(p.metricsPage(), c.Canary) {
			t.Errorf("the prompt is on the metrics page of %s", p.Name)
		}
	}
	if c.heard.has(c.Canary) {
		t.Error("the prompt went to Redis")
	}
	if text, err := redisContents(t.Context(), c.Redis.URL()); err != nil {
		t.Error(err)
	} else if strings.Contains(text, c.Canary) {
		t.Error("the prompt is in Redis")
	}
	for _, dir := range []string{c.Postgres.Dir(), c.Minio.Dir()} {
		if path := fileWith(t, dir, c.Canary); path != "" {
			t.Errorf("the prompt can be read in %s", path)
		}
	}
}

// personalIn names what a log must not have, and has.
func (c *Cluster) personalIn(log string) string {
	switch {
	case strings.Contains(log, c.Canary):
		return "the prompt"
	case strings.Contains(log, clientIPv4.String()), strings.Contains(log, clientIPv6.String()):
		return "the client's address"
	}
	return ""
}

// redisContents is all keys and values as text.
func redisContents(ctx context.Context, address string) (string, error) {
	options, err := redis.ParseURL(address)
	if err != nil {
		return "", err
	}
	r := redis.NewClient(options)
	defer func() { _ = r.Close() }()
	var out strings.Builder
	keys := r.Scan(ctx, 0, "*", 100).Iterator()
	for keys.Next(ctx) {
		key := keys.Val()
		var value any
		switch kind, err := r.Type(ctx, key).Result(); {
		case err != nil:
			return "", err
		case kind == "string":
			value, err = r.Get(ctx, key).Result()
			if err != nil && !errors.Is(err, redis.Nil) {
				return "", err
			}
		case kind == "list":
			value = r.LRange(ctx, key, 0, -1).Val()
		case kind == "hash":
			value = r.HGetAll(ctx, key).Val()
		case kind == "zset":
			value = r.ZRange(ctx, key, 0, -1).Val()
		case kind == "set":
			value = r.SMembers(ctx, key).Val()
		}
		_, _ = fmt.Fprintln(&out, key, value)
	}
	return out.String(), keys.Err()
}

// fileWith names a file below dir that holds the text.
func fileWith(t testing.TB, dir, text string) (found string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // servers at work
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if bytes.Contains(data, []byte(text)) {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return found
}

// monitor hears every command that Redis gets, again after it was away.
type monitor struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func listenTo(t testing.TB, address string) *monitor {
	m := &monitor{}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			m.listen(ctx, address)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return m
}

func (m *monitor) listen(ctx context.Context, address string) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("MONITOR\r\n")); err != nil {
		return
	}
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadSlice('\n')
		m.mu.Lock()
		m.text.Write(line)
		m.mu.Unlock()
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (m *monitor) has(text string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Contains(m.text.Bytes(), []byte(text))
}
