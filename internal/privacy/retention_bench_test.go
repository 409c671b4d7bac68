package privacy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

const expiring = 1000

// BenchmarkSweep ends 1,000 generations with their images, of 100,000 and of
// 1,000,000 that are stored: the ratio of the two times is what storing more costs.
// The floor deletes as many rows and objects without looking, one statement a table
// and a thousand objects a call. It is the work alone, without the rests of the
// schedule's jobs.
func BenchmarkSweep(b *testing.B) {
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				var took []time.Duration
				var asked []int
				sizes := []int{100_000, 1_000_000}
				for _, stored := range sizes {
					h := newHome(b, privacy.Stacks[name])
					h.at.Redis = testenv.Redis(b)
					h.rooms()
					counted := h.countStore()
					h.stored(stored, 1)
					h.clock.Advance(time.Hour)
					counted.reset()
					rows, objects := h.sweep()
					took, asked = append(took, rows+objects), append(asked, counted.calls())
					if n := h.count(`SELECT count(*) FROM generations WHERE removed_at = 0`); n != stored-expiring {
						b.Fatalf("%d are left", n)
					}
					b.ReportMetric(rows.Seconds()*1000, fmt.Sprintf("ms/rows-of-%d", stored))
					b.ReportMetric(objects.Seconds()*1000, fmt.Sprintf("ms/objects-of-%d", stored))
					if stored == sizes[0] {
						floor := h.floor()
						b.ReportMetric(2*expiring/objects.Seconds(), "objects/s")
						b.ReportMetric(expiring/(rows+objects).Seconds(), "generations/s")
						b.ReportMetric((rows+objects).Seconds()/floor.Seconds(), "ratio-to-floor")
					}
				}
				b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "ratio")
				b.ReportMetric(float64(asked[0]), "store-calls")
				if asked[1] != asked[0] {
					b.Errorf("the store is asked %d times with more stored, %d with less", asked[1], asked[0])
				}
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// BenchmarkSweepMemory is how much more memory is in use while of 1,000,000 generations
// of 10,000 people every fiftieth ends: what is live, and what the process has of the
// machine, SQLite's own included.
func BenchmarkSweepMemory(b *testing.B) {
	const stored, people, ended, most = 1_000_000, 10_000, 20_000, 50
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				h := newHome(b, privacy.Stacks[name])
				h.at.Redis = testenv.Redis(b)
				h.rooms()
				h.rows(stored, fmt.Sprintf(`'sub_' || k.n %% %d`, people), fmt.Sprintf(`CASE WHEN k.n / %d %% %d = 0 THEN %d ELSE %d END`,
					people, stored/ended, h.clock.Millis(), h.clock.Millis()+day.Milliseconds()))
				h.atRest()
				runtime.GC() // twice, for what is pooled
				runtime.GC()
				live, whole := memory(func() { time.Sleep(time.Second) })
				liveMost, wholeMost := memory(func() {
					n, err := h.privacy.Purge(context.Background(), "generations")
					must(b, err)
					if n != ended {
						b.Errorf("%d were ended", n)
					}
					// One that has waited does not rest.
					_, err = h.db.Exec(context.Background(), `UPDATE jobs SET created_at = created_at - ? WHERE kind = ?`, time.Hour.Milliseconds(), generate.KindSweep)
					must(b, err)
					defer h.housekeeping()()
					for h.count(`SELECT count(*) FROM generations WHERE unswept = 1`) > 0 {
						time.Sleep(100 * time.Millisecond)
					}
				})
				more := float64(int64(liveMost)-int64(live)) / (1 << 20)
				b.ReportMetric(more, "MiB-live")
				b.ReportMetric(most, "MiB-live-at-most")
				b.ReportMetric(float64(int64(wholeMost)-int64(whole))/(1<<20), "MiB-of-the-machine")
				b.ReportMetric(0, "ns/op")
				if more > most {
					b.Errorf("%.0f MiB more are in use", more)
				}
			}
		})
	}
}

// BenchmarkRequestsDuringASweep is the 95th percentile of what people wait for while a
// sweep is at work, as a ratio to that without one: accepting a prompt, and reading
// (a generation, a page of them, a picture). The two are measured in turns, so that what
// else the machine does spoils a turn and not the ratio, which is the median of theirs.
func BenchmarkRequestsDuringASweep(b *testing.B) {
	const turns, each = 5, expiring / 8
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				h := newHome(b, privacy.Stacks[name])
				h.at.Redis = testenv.Redis(b)
				h.rooms()
				h.generate.QueuedLimit, h.generate.DailyLimit = 1_000_000, 1_000_000
				h.stored(20_000, expiring/each)
				crowd := newForeground(h)
				stop := h.housekeeping()
				alone := []latencies{crowd.requests(quietTurn)}
				var during []latencies
				var took time.Duration
				for range turns {
					h.clock.Advance(time.Hour)
					began := time.Now()
					_, err := h.privacy.Sweep(context.Background())
					must(b, err)
					during = append(during, crowd.requests(h.sweepIsOver))
					took += time.Since(began)
					alone = append(alone, crowd.requests(quietTurn))
				}
				stop()
				if n := h.count(`SELECT count(*) FROM generations WHERE removed_at > 0 AND unswept = 0`); n != turns*each {
					b.Errorf("%d were ended", n)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(turns*each/took.Seconds(), "generations/s")
				for _, kind := range []string{"accept", "read"} {
					var floors, figures, ratios []float64
					for i, d := range during {
						before, now, after := alone[i].p95(kind), d.p95(kind), alone[i+1].p95(kind)
						floors, figures, ratios = append(floors, before, after), append(figures, now), append(ratios, 2*now/(before+after))
					}
					b.ReportMetric(median(floors), "ms/"+kind+"-alone")
					b.ReportMetric(median(figures), "ms/"+kind+"-during")
					b.ReportMetric(median(ratios), "ratio-"+kind)
					b.ReportMetric(slices.Max(floors)/slices.Min(floors), "floor-max/min-"+kind)
				}
			}
		})
	}
}

func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// latencies are what requests of a kind took, in milliseconds.
type latencies map[string][]float64

func (l latencies) p95(kind string) float64 {
	sorted := slices.Sorted(slices.Values(l[kind]))
	return sorted[len(sorted)*95/100]
}

// foreground are people who use the service all the time.
type foreground struct {
	h      *home
	people []person
	images [][]string
	next   int
}

func newForeground(h *home) *foreground {
	f := &foreground{h: h}
	for i := range 10 {
		p := h.newcomer(fmt.Sprintf("ann%d", i))
		f.people, f.images = append(f.people, p), append(f.images, h.paint(p, 20))
	}
	return f
}

// quietTurn is how many rounds of requests a turn without a sweep has.
func quietTurn(done int) bool { return done >= 150 }

// sweepIsOver is asked now and then, for the asking is work too.
func (h *home) sweepIsOver(done int) bool {
	return done%50 == 49 && h.count(`SELECT (SELECT count(*) FROM generations WHERE unswept = 1) +
		(SELECT count(*) FROM jobs WHERE kind IN ('retention:purge', 'generation:sweep') AND state IN ('queued', 'waiting', 'running'))`) == 0
}

// requests asks until it is over: each of the people in turn, a prompt and three reads.
func (f *foreground) requests(over func(done int) bool) latencies {
	ctx := context.Background()
	l := latencies{}
	timed := func(kind string, do func() error) {
		began := time.Now()
		must(f.h.t, do())
		l[kind] = append(l[kind], float64(time.Since(began).Microseconds())/1000)
		time.Sleep(5 * time.Millisecond)
	}
	for done := 0; !over(done); done++ {
		p, images := f.people[f.next%len(f.people)], f.images[f.next%len(f.people)]
		var g generate.Generation
		timed("accept", func() (err error) {
			g, _, err = f.h.generate.Submit(ctx, p.id, generate.Request{Prompt: "a lighthouse"}, nil)
			return err
		})
		timed("read", func() error {
			_, err := f.h.generate.Get(ctx, p.id, g.ID)
			return err
		})
		timed("read", func() error {
			_, _, err := f.h.generate.List(ctx, p.id, generate.Page{})
			return err
		})
		timed("read", func() error {
			c, err := f.h.generate.Content(ctx, p.id, images[f.next%len(images)], false)
			if err == nil {
				_, err = io.Copy(io.Discard, c)
				err = errors.Join(err, c.Close())
			}
			return err
		})
		f.next++
	}
	return l
}

// stored adds generations with an image each, of which some have their objects: these
// end in the next hours, as many in each.
func (h *home) stored(n, hours int) {
	h.t.Helper()
	ctx := context.Background()
	const owner = "sub_crowd"
	must(h.t, h.vault.Create(ctx, owner))
	_, err := h.db.Exec(ctx, `INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, 'active', 1, 1)`, owner)
	must(h.t, err)
	// Every hundredth or so ends soon, the others over the coming weeks.
	every := n / expiring
	h.rows(n, `'`+owner+`'`, fmt.Sprintf(`CASE WHEN k.n %% %d = 0 THEN %d + %d * (k.n / %d * %d / %d + 1) ELSE %d + 1000 * k.n END`,
		every, h.clock.Millis(), time.Hour.Milliseconds(), every, hours, expiring, h.clock.Millis()+day.Milliseconds()))
	h.store1000(owner, every)
	h.atRest()
}

// rows adds generations with an image each; whose they are and when they end is made of
// k.n, which counts them.
func (h *home) rows(n int, owner, ends string) {
	h.t.Helper()
	ctx := context.Background()
	const many = `WITH RECURSIVE k(n) AS (SELECT CAST(? AS integer) UNION ALL SELECT n + 1 FROM k WHERE n + 1 < CAST(? AS integer)) INSERT INTO `
	for from := 0; from < n; from += 50_000 {
		to := min(from+50_000, n)
		_, err := h.db.Exec(ctx, many+`generations (id, owner, job_id, model, seed, request, status, error_code, attempts, created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
			SELECT 'gen_' || k.n, `+owner+`, 'j', 'm', 1, CAST(? AS bytea), 'succeeded', '', 1, 1, 1, 1, `+ends+`, 0, '', 0 FROM k`, from, to, bytes.Repeat([]byte{7}, 200))
		must(h.t, err)
		_, err = h.db.Exec(ctx, many+`images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
			SELECT 'img_' || k.n, 'gen_' || k.n, `+owner+`, 0, 1, 64, 64, 'png', 9, 1, CAST(? AS bytea), 1, `+ends+`, 0, '' FROM k`, from, to, bytes.Repeat([]byte{7}, 97))
		must(h.t, err)
	}
}

// atRest brings what was filled in down to the disk, so that what is measured next does
// not wait for it.
func (h *home) atRest() {
	h.t.Helper()
	statements := []string{`ANALYZE`, `CHECKPOINT`}
	if h.at.Dialect == db.SQLite {
		statements[1] = `PRAGMA wal_checkpoint(TRUNCATE)`
	}
	for _, s := range statements {
		_, err := h.db.Exec(context.Background(), s)
		must(h.t, err)
	}
	if path, file := strings.CutPrefix(h.at.Database, "sqlite:"); file {
		f, err := os.Open(path) //nolint:gosec // the test's own
		must(h.t, err)
		must(h.t, errors.Join(f.Sync(), f.Close()))
	}
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
	h.t.Helper()
	ctx := context.Background()
	began := time.Now()
	if n, err := h.privacy.Purge(ctx, "generations"); n != expiring || err != nil {
		h.t.Errorf("%d were ended, %v", n, err)
	}
	rows = time.Since(began)
	// One for the owner: it does not rest.
	_, err := h.db.Exec(ctx, `DELETE FROM jobs WHERE kind = ?`, generate.KindSweep)
	must(h.t, err)
	must(h.t, h.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := h.queue.Add(ctx, tx, jobs.NewJob{Kind: generate.KindSweep, Party: "sub_crowd", Ref: "sub_crowd"})
		return err
	}))
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
