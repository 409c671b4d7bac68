package privacy_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/objects"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// tally is an object store that knows what it was asked for.
type tally struct {
	objects.Store
	mu             sync.Mutex
	lists, deletes int
	touched        map[string]bool // keys and prefixes
}

// countStore has all rooms use one.
func (h *home) countStore() *tally {
	t := &tally{Store: h.store, touched: map[string]bool{}}
	h.away.Store, h.late.Store = t, t
	return t
}

func (t *tally) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lists, t.deletes, t.touched = 0, 0, map[string]bool{}
}

func (t *tally) calls() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lists + t.deletes
}

func (t *tally) List(ctx context.Context, prefix, after string, limit int) ([]objects.Info, error) {
	t.mu.Lock()
	t.lists++
	t.touched[prefix] = true
	t.mu.Unlock()
	return t.Store.List(ctx, prefix, after, limit)
}

func (t *tally) Delete(ctx context.Context, keys ...string) error {
	t.mu.Lock()
	t.deletes++
	for _, key := range keys {
		t.touched[key] = true
	}
	t.mu.Unlock()
	return t.Store.Delete(ctx, keys...)
}

// The store is asked for what has ended, by its name, and for nothing else, however
// much there is.
func TestASweepTouchesTheObjectsOfWhatHasEndedAlone(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		h.paint(p, 30)
		_, err := h.db.Exec(ctx, `UPDATE images SET expires_at = 1 WHERE generation_id IN (SELECT id FROM generations ORDER BY id LIMIT 12)`)
		must(t, err)
		_, err = h.db.Exec(ctx, `UPDATE generations SET expires_at = 1 WHERE id IN (SELECT id FROM generations ORDER BY id LIMIT 12)`)
		must(t, err)
		var ended []string
		must(t, h.db.Select(ctx, &ended, `SELECT id FROM generations WHERE expires_at = 1 ORDER BY id`))
		counted := h.countStore()
		n, err := h.privacy.Purge(ctx, "generations")
		must(t, err)
		if n != len(ended) {
			t.Fatalf("%d were ended", n)
		}
		if counted.calls() != 0 {
			t.Error("the store is asked before the rows are ended")
		}
		stop := h.work()
		testenv.Eventually(t, 30*time.Second, func() bool { return h.count(`SELECT count(*) FROM generations WHERE unswept = 1`) == 0 })
		stop()
		want := map[string]bool{}
		for _, id := range ended {
			want[fmt.Sprintf("images/%s/%s/1/0.img", p.id, id)] = true
			want[fmt.Sprintf("images/%s/%s/1/0.thumb", p.id, id)] = true
		}
		for key := range counted.touched {
			if !want[key] {
				t.Errorf("the store is asked for %s", strings.ReplaceAll(key, p.id, "somebody"))
			}
		}
		if len(counted.touched) != len(want) || counted.lists != 0 || counted.deletes > len(ended) {
			t.Errorf("%d of %d objects in %d deletions and %d lists", len(counted.touched), len(want), counted.deletes, counted.lists)
		}
		if left := h.objects("images/"); len(left) != 2*(30-len(ended)) {
			t.Errorf("%d objects are left", len(left))
		}
	})
}

// gated is an object store whose first deletion waits.
type gated struct {
	objects.Store
	once          sync.Once
	reached, open chan struct{}
}

func (g *gated) Delete(ctx context.Context, keys ...string) error {
	g.once.Do(func() { close(g.reached); <-g.open })
	return g.Store.Delete(ctx, keys...)
}

// What ends while everybody's sweep is at work gets no second one beside it, and waits for
// none of the schedule.
func TestWhatEndsDuringASweepIsSweptBehindIt(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		images := h.paint(p, 6)
		end := func(images ...string) {
			t.Helper()
			for _, id := range images {
				_, err := h.db.Exec(ctx, `UPDATE images SET expires_at = 1 WHERE id = ?`, id)
				must(t, err)
				_, err = h.db.Exec(ctx, `UPDATE generations SET expires_at = 1 WHERE id = (SELECT generation_id FROM images WHERE id = ?)`, id)
				must(t, err)
			}
			n, err := h.privacy.Purge(ctx, "generations")
			must(t, err)
			if n != len(images) {
				t.Fatalf("%d were ended", n)
			}
		}
		store := &gated{Store: h.store, reached: make(chan struct{}), open: make(chan struct{})}
		h.late.Store = store
		end(images[:2]...)
		stop := h.work()
		defer stop()
		<-store.reached
		end(images[2:4]...)
		end(images[4:]...)
		if n := h.count(`SELECT count(*) FROM jobs WHERE kind = 'generation:sweep'`); n != 1 {
			t.Errorf("%d sweeps for everybody", n)
		}
		close(store.open)
		testenv.Eventually(t, 30*time.Second, func() bool { return h.count(`SELECT count(*) FROM generations WHERE unswept = 1`) == 0 })
		if left := h.objects("images/"); len(left) != 0 {
			t.Errorf("%d objects are left", len(left))
		}
	})
}

// The sweep has looked at the generation before its second image ends: what that counted on
// must come round once more.
func TestAnImageThatEndsDuringTheSweepOfItsGenerationIsSweptToo(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		p := h.newcomer("ann")
		first := h.paint(p, 1)[0]
		var generation string
		must(t, h.db.Get(ctx, &generation, `SELECT generation_id FROM images WHERE id = ?`, first))
		second := db.NewID("img", h.clock.Now())
		_, err := h.db.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
			SELECT ?, generation_id, owner, 1, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, 0, '' FROM images WHERE id = ?`, second, first)
		must(t, err)
		h.put(p.id, "images/"+p.id+"/"+generation+"/1/1.img", vault.Data("object", p.id, generation, "1", "1", "image"))
		h.put(p.id, "images/"+p.id+"/"+generation+"/1/1.thumb", vault.Data("object", p.id, generation, "1", "1", "thumbnail"))
		end := func(id string) {
			t.Helper()
			_, err := h.db.Exec(ctx, `UPDATE images SET expires_at = 1 WHERE id = ?`, id)
			must(t, err)
			n, err := h.privacy.Purge(ctx, "images")
			must(t, err)
			if n != 1 {
				t.Fatalf("%d were ended", n)
			}
		}
		store := &gated{Store: h.store, reached: make(chan struct{}), open: make(chan struct{})}
		h.late.Store = store
		end(first)
		stop := h.work()
		defer stop()
		<-store.reached
		end(second)
		close(store.open)
		testenv.Eventually(t, 30*time.Second, func() bool { return h.count(`SELECT count(*) FROM generations WHERE unswept = 1`) == 0 })
		if left := h.objects("images/"); len(left) != 0 {
			t.Errorf("%d objects are left", len(left))
		}
	})
}
