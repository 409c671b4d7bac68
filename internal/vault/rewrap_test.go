package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"zimage/internal/clock"
	"zimage/internal/testenv"
)

func TestAfterRewrapTheOldRootIsNotNeeded(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		before := mustProcess(t, url, oldRing(t), c)
		const people = batch + 30
		sealed := make([][]byte, people)
		for i := range people {
			s := fmt.Sprintf("sub_%03d", i)
			create(t, before, s)
			if i%50 == 0 {
				sealed[i] = seal(t, before, s, s, nil)
			}
		}
		if err := before.Destroy(ctx, "sub_007"); err != nil {
			t.Fatal(err)
		}
		object := sealObject(t, before, "sub_000", []byte("a picture"), nil)
		lookup := before.Lookup("email", "ann@example.org")

		during := mustProcess(t, url, bothRing(t), c)
		wantOpen(t, during, "sub_000", sealed[0], nil, "sub_000")
		// Broken off after the first batch, then taken up again.
		stopped, stop := context.WithCancel(ctx)
		n, err := during.Rewrap(stopped, func(int) { stop() })
		if !errors.Is(err, context.Canceled) || n != batch {
			t.Fatalf("broken off: %d, %v", n, err)
		}
		wantOpen(t, mustProcess(t, url, bothRing(t), c), "sub_000", sealed[0], nil, "sub_000")
		var told []int
		n, err = during.Rewrap(ctx, func(done int) { told = append(told, done) })
		if err != nil || n != people-1-batch || len(told) != 1 || told[0] != n {
			t.Fatalf("%d rewrapped, told %v: %v", n, told, err)
		}
		if n, err = during.Rewrap(ctx, nil); n != 0 || err != nil {
			t.Errorf("again: %d, %v", n, err)
		}

		after := mustProcess(t, url, newRing(t), c)
		for i, b := range sealed {
			if b != nil {
				wantOpen(t, after, fmt.Sprintf("sub_%03d", i), b, nil, fmt.Sprintf("sub_%03d", i))
			}
		}
		if got, err := openObject(after, "sub_000", bytes.NewReader(object), nil); err != nil || string(got) != "a picture" {
			t.Errorf("object: %q, %v", got, err)
		}
		if after.Lookup("email", "ann@example.org") != lookup {
			t.Error("lookups changed: nobody would be found any more")
		}
		if err := after.Create(ctx, "sub_007"); !errors.Is(err, ErrDestroyed) {
			t.Errorf("the tombstone: %v", err)
		}
	})
}

func TestRewrapBesideCreateAndDestroy(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		old := mustProcess(t, url, oldRing(t), c)
		const people = 60
		sealed := make([][]byte, people)
		for i := range people {
			create(t, old, fmt.Sprintf("old_%02d", i))
			sealed[i] = seal(t, old, fmt.Sprintf("old_%02d", i), "x", nil)
		}
		a, b := mustProcess(t, url, bothRing(t), c), mustProcess(t, url, bothRing(t), c)
		var wg sync.WaitGroup
		for _, v := range []*Vault{a, b} {
			wg.Go(func() {
				if _, err := v.Rewrap(ctx, nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			for i := range 40 {
				if err := a.Create(ctx, fmt.Sprintf("new_%02d", i)); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for i := 0; i < people; i += 2 {
				if err := b.Destroy(ctx, fmt.Sprintf("old_%02d", i)); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		after := mustProcess(t, url, newRing(t), c)
		for i := range people {
			s := fmt.Sprintf("old_%02d", i)
			if i%2 == 1 {
				wantOpen(t, after, s, sealed[i], nil, "x")
			} else if _, err := after.Unseal(ctx, s, sealed[i], nil); !errors.Is(err, ErrDestroyed) {
				t.Errorf("%s came back: %v", s, err)
			}
		}
		for i := range 40 {
			seal(t, after, fmt.Sprintf("new_%02d", i), "x", nil)
		}
	})
}

func TestOneBadKeysetDoesNotStopTheRest(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		create(t, mustProcess(t, url, oldRing(t), c), "sub_a", "sub_b", "sub_c")
		v := mustProcess(t, url, bothRing(t), c)
		if _, err := v.keys.Exec(ctx, `UPDATE keysets SET field = object WHERE subject = 'sub_b'`); err != nil {
			t.Fatal(err)
		}
		if n, err := v.Rewrap(ctx, nil); n != 2 || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d rewrapped, %v", n, err)
		}
	})
}

func TestSweepUnowned(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		v := mustProcess(t, url, oldRing(t), c)
		theirs := map[string]bool{}
		for i := range batch {
			s := fmt.Sprintf("owned_%03d", i)
			create(t, v, s)
			theirs[s] = true
		}
		create(t, v, "broken_a", "broken_b")
		c.Advance(2 * time.Hour)
		create(t, v, "young")
		owned := func(subjects []string) (map[string]bool, error) {
			if len(subjects) > batch {
				t.Errorf("asked about %d at once", len(subjects))
			}
			return theirs, nil
		}

		if n, err := v.SweepUnowned(ctx, 3*time.Hour, owned); n != 0 || err != nil {
			t.Errorf("too young: %d, %v", n, err)
		}
		broken := errors.New("the main database is away")
		if n, err := v.SweepUnowned(ctx, time.Hour, func([]string) (map[string]bool, error) { return nil, broken }); n != 0 || !errors.Is(err, broken) {
			t.Errorf("nobody could say: %d, %v", n, err)
		}
		// The wrong main database knows nobody.
		if n, err := v.SweepUnowned(ctx, time.Hour, func([]string) (map[string]bool, error) { return nil, nil }); n != 0 || !errors.Is(err, ErrTooManyUnowned) {
			t.Errorf("everybody unowned: %d, %v", n, err)
		}
		seal(t, v, "owned_000", "x", nil)
		seal(t, v, "broken_a", "x", nil)

		if n, err := v.SweepUnowned(ctx, 0, owned); n != 2 || err != nil {
			t.Errorf("swept %d, %v", n, err)
		}
		for _, s := range []string{"owned_000", "owned_199", "young"} {
			seal(t, v, s, "x", nil)
		}
		for _, s := range []string{"broken_a", "broken_b"} {
			if _, err := v.Seal(ctx, s, nil, nil); !errors.Is(err, ErrDestroyed) {
				t.Errorf("%s: %v", s, err)
			}
		}
		if n, err := v.SweepUnowned(ctx, 0, owned); n != 0 || err != nil {
			t.Errorf("again: %d, %v", n, err)
		}
	})
}
