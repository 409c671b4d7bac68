//go:build !race

// With the race detector it takes minutes: `make test` runs it without.

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
	"syscall"
	"testing"
	"time"

	"zimage/internal/objects"
	"zimage/internal/privacy"
)

func (d *doomed) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	d.at("copy")
	err := d.Store.Put(ctx, key, r, size)
	if err == nil {
		d.at("copied")
	}
	return err
}

func (d *doomed) Delete(ctx context.Context, keys ...string) error {
	d.at("delete")
	err := d.Store.Delete(ctx, keys...)
	if err == nil {
		d.at("deleted")
	}
	return err
}

const doomedErasure = "ZIMAGE_TEST_DOOMED_ERASURE"

// TestDoomedEraser is the other process of the next test, and nothing by itself.
func TestDoomedEraser(t *testing.T) {
	id := os.Getenv(doomedErasure)
	if id == "" {
		return
	}
	var at privacy.Place
	if err := json.Unmarshal([]byte(os.Getenv(doomedPlace)), &at); err != nil {
		t.Fatal(err)
	}
	d := &doomed{step: os.Getenv(doomedStep)}
	p, err := open(t.Context(), at, func(s objects.Store) objects.Store { d.Store = s; return d }, "")
	if err != nil {
		t.Fatal(err)
	}
	p.service.EndAt(func(step string, phase privacy.Phase) error {
		d.at(step + ", " + string(phase))
		return nil
	})
	for {
		after, err := p.service.Erase(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if after == 0 {
			t.Fatal("the step never came")
		}
		p.clock.Advance(max(after, time.Minute))
	}
}

// A process that is killed at any step of an erasure, or within one, has done nothing
// that another could not go on with: the receipt is that of somebody at whose erasure
// nobody was killed, and as little is left.
func TestPromise_R7_AProcessKilledAtEveryStepOfAnErasure(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		steps := []string{"", "copy", "copied", "delete", "deleted"}
		for _, step := range privacy.Steps() {
			for _, phase := range []privacy.Phase{privacy.Before, privacy.Unrecorded, privacy.Recorded} {
				steps = append(steps, step+", "+string(phase))
			}
		}
		other := h.live("other", 1)
		before := h.found(other.id)
		var want []privacy.ReceiptStore // of the first, who is not killed
		for i, step := range steps {
			p := h.newcomer(fmt.Sprint("ann", i))
			image := h.paint(p, 3)[0]
			for _, table := range dataMap(t).Tables {
				if table.Store == privacy.StoreMain && table.Nobody == "" && table.Erase.Do == privacy.Delete {
					h.fill(p.id, table)
				}
			}
			hold, err := h.place(p.id, "images", image)
			must(t, err)
			id, secret := h.close(p)
			if step != "" {
				h.killed(id, step)
				h.clock.Advance(time.Hour) // as the other's did, at least
			}
			must(t, h.erase(id))
			if n := len(h.objects("held/" + p.id + "/")); n != 2 || len(h.objects("images/"+p.id+"/")) != 0 || h.count(`SELECT count(*) FROM images WHERE owner = ?`, p.id) != 1 {
				t.Errorf("%s: %d objects are held", step, n)
			}

			must(t, h.privacy.ReleaseHold(ctx, h.machine(), hold.ID))
			h.clock.Advance(time.Second)
			must(t, h.privacy.Look(ctx, false))
			must(t, h.erase(id))
			h.erased(p, "main/erasure_exceptions")
			r := h.receipt(id, secret)
			if want == nil {
				want = r.Stores
				wantDeleted(t, r, map[string]int64{"objects images/": 6, "main images": 4, "main generations": 4, "main users": 1})
			}
			if r.State != "complete" || len(r.Steps) != len(privacy.Steps()) || !slices.Equal(r.Stores, want) {
				t.Errorf("%s: the receipt is %s with %d steps and %+v, want %+v", step, r.State, len(r.Steps), r.Stores, want)
			}
		}
		if after := h.found(other.id); !slices.Equal(sorted(before), sorted(after)) || after["main/images"] != before["main/images"] {
			t.Errorf("somebody else had %v and has %v", before, after)
		}
	})
}

// killed has another process erase until it kills itself.
func (h *home) killed(erasure, step string) {
	h.t.Helper()
	at := h.at
	at.Now = h.clock.Now()
	text, err := json.Marshal(at)
	must(h.t, err)
	other := exec.CommandContext(context.Background(), os.Args[0], "-test.run=^TestDoomedEraser$")
	other.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, doomedPlace+"=") }),
		doomedPlace+"="+string(text), doomedErasure+"="+erasure, doomedStep+"="+step)
	out, err := other.CombinedOutput()
	if other.ProcessState == nil || other.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		h.t.Fatalf("%s: the other process was not killed: %v %s", step, err, out)
	}
}
