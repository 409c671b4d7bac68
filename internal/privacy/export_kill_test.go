package privacy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

// doomed kills its own process at a step of an export.
type doomed struct {
	objects.Store
	step string
	gets atomic.Int64
}

func (d *doomed) at(step string) {
	if step == d.step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (d *doomed) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	d.at(fmt.Sprintf("picture %d", d.gets.Add(1)))
	return d.Store.Get(ctx, key)
}

func (d *doomed) PutStream(ctx context.Context, key string, r io.Reader) (int64, error) {
	d.at("begin")
	n, err := d.Store.PutStream(ctx, key, r)
	if err == nil {
		d.at("stored")
	}
	return n, err
}

const (
	doomedPlace = "ZIMAGE_TEST_DOOMED_PLACE"
	doomedStep  = "ZIMAGE_TEST_DOOMED_STEP"
)

// TestDoomedWorker is the other process of the next test, and nothing by itself.
func TestDoomedWorker(t *testing.T) {
	if os.Getenv(doomedPlace) == "" {
		return
	}
	var at privacy.Place
	if err := json.Unmarshal([]byte(os.Getenv(doomedPlace)), &at); err != nil {
		t.Fatal(err)
	}
	p, err := open(t.Context(), at, func(s objects.Store) objects.Store { return &doomed{Store: s, step: os.Getenv(doomedStep)} }, "")
	if err != nil {
		t.Fatal(err)
	}
	p.work(t.Error)
	time.Sleep(time.Minute)
	t.Fatal("the step never came")
}

// A worker that is killed at any moment costs an attempt: there is one archive in
// the end, whole, and nothing else.
func TestAKilledWorkerCostsAnExportNothing(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		big := make([]byte, 9<<20) // parts go to S3 before the end
		for range 4 {
			r.generated(ada.owner, `{}`, big)
		}
		for _, step := range []string{"begin", "picture 1", "picture 4", "stored"} {
			r.clock.Advance(24 * time.Hour)
			e := r.ask(ada.owner)
			r.at.Now = r.clock.Now()
			at, err := json.Marshal(r.at)
			r.must(err)
			other := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDoomedWorker$")
			other.Env = append(os.Environ(), doomedPlace+"="+string(at), doomedStep+"="+step)
			out, err := other.CombinedOutput()
			if other.ProcessState == nil || other.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: the other process was not killed: %v %s", step, err, out)
			}
			if n := r.count(`SELECT attempt FROM jobs WHERE ref = ? AND state = 'running'`, e.ID); n != 1 {
				t.Fatalf("%s: attempt %d runs", step, n)
			}
			r.mend(2 * jobs.Lease)
			stop := r.work(t.Error)
			e = r.ended(e, ada.owner, privacy.ExportReady)
			unpack(t, r.fetch(e, ada.owner))
			r.mend(2 * jobs.Lease) // the sweep of what the first has left
			testenv.Eventually(t, 30*time.Second, func() bool {
				return r.count(`SELECT count(*) FROM exports WHERE unswept = 1 AND id = ?`, e.ID) == 0
			})
			var left []string
			for _, key := range r.archives() {
				if strings.Contains(key, e.ID) {
					left = append(left, key)
				}
			}
			if len(left) != 1 || !strings.HasSuffix(left[0], "/2.zip") {
				t.Errorf("%s: left %v", step, left)
			}
			if parts := r.at.Unfinished(t, strings.TrimSuffix(left[0], "2.zip")+"1.zip"); parts > 0 {
				t.Errorf("%s: %d uploads are unfinished", step, parts)
			}
			stop()
		}
		if n := r.count(`SELECT count(*) FROM mails WHERE template = 'export-ready'`); n != 4 {
			t.Errorf("%d mails for 4 exports", n)
		}
	})
}

// What a worker that was taken for dead stores late, nobody needs: it goes with the
// next sweep. What has no row may be another installation's.
func TestLateArchivesAreSwept(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ada := r.plant("ada")
		e := r.ended(r.ask(ada.owner), ada.owner, privacy.ExportReady)
		data := pictureOf(ada.owner, 9)
		_, err := r.store.PutStream(t.Context(), "exports/"+ada.owner+"/"+e.ID+"/7.zip", strings.NewReader(string(data)))
		r.must(err)
		rowless := []string{"exports/" + ada.owner + "/exp_unknown/1.zip", "exports/sub_another/exp_unknown/1.zip"}
		for _, key := range rowless {
			_, err = r.store.PutStream(t.Context(), key, strings.NewReader(string(data)))
			r.must(err)
		}
		r.swept()
		want := append(rowless, "exports/"+ada.owner+"/"+e.ID+"/1.zip")
		slices.Sort(want)
		if left := r.archives(); !slices.Equal(left, want) {
			t.Errorf("left %v, want %v", left, want)
		}
		unpack(t, r.fetch(e, ada.owner))
	})
}
