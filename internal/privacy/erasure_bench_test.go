package privacy_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/privacy"
)

// The erasure of a person with 10,000 images, against the floor of deleting the
// same rows and objects without looking: one statement a table, a thousand objects
// a call.
func BenchmarkErasure(b *testing.B) {
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				h := newHome(b, privacy.Stacks[name])
				const images = 10_000
				h.crowd("sub_floor", images)
				h.crowd("sub_person", images)
				floor := h.raze("sub_floor", images)
				ctx := context.Background()
				if err := h.db.Tx(ctx, func(tx *db.Tx) error {
					_, err := tx.Exec(ctx, `UPDATE subjects SET state = 'closing' WHERE id = 'sub_person'`)
					return err
				}); err != nil {
					b.Fatal(err)
				}
				must(b, h.privacy.Look(ctx, false))
				id := h.queued()[0]
				began := time.Now()
				must(b, h.erase(id))
				took := time.Since(began)
				b.ReportMetric(took.Seconds(), "s/erasure")
				b.ReportMetric(floor.Seconds(), "s/floor")
				b.ReportMetric(took.Seconds()/floor.Seconds(), "ratio")
				if n := h.count(`SELECT count(*) FROM images`); n != 0 {
					b.Fatalf("%d images are left", n)
				}
			}
		})
	}
}

// crowd adds a person with many images: rows and objects as large as they are, but
// not sealed.
func (h *home) crowd(owner string, images int) {
	h.t.Helper()
	ctx := context.Background()
	must(h.t, h.vault.Create(ctx, owner))
	_, err := h.db.Exec(ctx, `INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, 'active', 1, ?)`, owner, h.clock.Millis())
	must(h.t, err)
	request := bytes.Repeat([]byte{7}, 300)
	for from := 0; from < images; from += 200 {
		must(h.t, h.db.Tx(ctx, func(tx *db.Tx) error {
			for i := from; i < from+200; i++ {
				g, m := fmt.Sprintf("gen_%s_%06d", owner[4:], i), fmt.Sprintf("img_%s_%06d", owner[4:], i)
				if _, err := tx.Exec(ctx, `INSERT INTO generations (id, owner, job_id, model, seed, request, status, error_code, attempts, created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
					VALUES (?, ?, 'j', 'm', 1, ?, 'succeeded', '', 1, 1, 1, 1, 1, 0, '', 0)`, g, owner, request); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256, created_at, expires_at, removed_at, removed_reason)
					VALUES (?, ?, ?, 0, 1, 64, 64, 'png', 9, 1, ?, 1, 1, 0, '')`, m, g, owner, request[:97]); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	picture := bytes.Repeat([]byte{9}, 2000)
	work := make(chan string)
	done := make(chan error, 8)
	for range 8 {
		go func() {
			var err error
			for key := range work {
				if err == nil {
					err = h.store.Put(ctx, key, bytes.NewReader(picture), int64(len(picture)))
				}
			}
			done <- err
		}()
	}
	for i := range images {
		work <- fmt.Sprintf("images/%s/gen_%s_%06d/1/0.img", owner, owner[4:], i)
	}
	close(work)
	for range 8 {
		must(h.t, <-done)
	}
}

// raze deletes without looking, and says how long it took.
func (h *home) raze(owner string, images int) time.Duration {
	h.t.Helper()
	ctx := context.Background()
	began := time.Now()
	for from := 0; from < images; from += 1000 {
		keys := make([]string, 1000)
		for i := range keys {
			keys[i] = fmt.Sprintf("images/%s/gen_%s_%06d/1/0.img", owner, owner[4:], from+i)
		}
		must(h.t, h.store.Delete(ctx, keys...))
	}
	for _, t := range dataMap(h.t).Tables {
		if t.Store == privacy.StoreMain && t.Nobody == "" && t.Erase.Do == privacy.Delete && !strings.HasPrefix(t.Name, "users") {
			_, err := h.db.Exec(ctx, "DELETE FROM "+t.Name+" WHERE "+dataMap(h.t).Of(&t), owner)
			must(h.t, err)
		}
	}
	return time.Since(began)
}
