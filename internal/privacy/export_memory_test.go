//go:build !race

// The race detector makes it slow, and takes memory itself: `make test` runs it without.

package privacy_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"zimage/internal/db"
	"zimage/internal/privacy"
	"zimage/internal/vault"
)

// many gives a person images of the size, all of one generation and of the same
// bytes, as fast as it goes.
func (r *rig) many(owner string, images, size int) {
	r.t.Helper()
	ctx := r.t.Context()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	now := r.clock.Now()
	generation := db.NewID("gen", now)
	later := now.Add(90 * 24 * time.Hour).UnixMilli()
	var work errgroup.Group
	work.SetLimit(8)
	for n := range images {
		work.Go(func() error { return r.putPicture(owner, generation, 1, n, data) })
	}
	r.must(work.Wait())
	r.must(r.db.Tx(ctx, func(tx *db.Tx) error {
		for n := range images {
			id := db.NewID("img", now.Add(time.Duration(n)*time.Millisecond))
			sum, err := r.vault.Seal(ctx, owner, []byte(strings.Repeat("0", 64)), vault.Column("images", "sha256", id))
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256,
				created_at, expires_at, removed_at, removed_reason) VALUES (?, ?, ?, ?, 1, 8, 8, 'png', ?, 1, ?, ?, ?, 0, '')`,
				id, generation, owner, n, size, sum, now.UnixMilli(), later)
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

// The memory of an export is that of one part and some pages of rows, however many
// images there are: 2,000 of 64 KiB are 125 MiB. It runs by itself, so that nothing
// else is measured.
func TestPromise_G4_AnExportTakesTheSameMemoryForMoreImages(t *testing.T) {
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, privacy.Stacks[name], setup{})
			used := map[int]uint64{}
			for _, images := range []int{100, 2000} {
				p := r.plant(fmt.Sprintf("ada%d", images))
				r.many(p.owner, images, 64<<10)
				e := privacy.Export{}
				used[images] = peak(func() { e = r.ended(r.ask(p.owner), p.owner, privacy.ExportReady) })
				if e.Files < int64(images) {
					t.Fatalf("only %d files in the archive", e.Files)
				}
			}
			if more := int64(used[2000]) - int64(used[100]); more > 8<<20 || used[2000] > 64<<20 {
				t.Errorf("%d KiB for 100 images, %d KiB for 2,000", used[100]>>10, used[2000]>>10)
			}
			t.Logf("%d KiB for 100 images, %d KiB for 2,000", used[100]>>10, used[2000]>>10)
		})
	}
}

// An export of images of 256 KiB, as a ratio to the floor: opening the same objects
// and throwing them away. Memory is the most that was in use.
func BenchmarkExport(b *testing.B) {
	for _, name := range []string{"sqlite, directory", "postgres, s3"} {
		for _, images := range []int{1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, images), func(b *testing.B) {
				const size = 256 << 10
				r := newRig(b, privacy.Stacks[name], setup{})
				p := r.plant("ada")
				r.many(p.owner, images, size)
				var floor, made time.Duration
				var most uint64
				for range b.N {
					began := time.Now()
					r.open(p.owner)
					floor += time.Since(began)
					r.clock.Advance(24 * time.Hour)
					began = time.Now()
					most = max(most, peak(func() { r.ended(r.ask(p.owner), p.owner, privacy.ExportReady) }))
					made += time.Since(began)
				}
				b.ReportMetric(float64(made)/float64(floor), "×floor")
				b.ReportMetric(float64(images*size*b.N)/1e6/made.Seconds(), "MB/s")
				b.ReportMetric(float64(most)/(1<<20), "MiB-live")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// open reads every picture of a person and keeps nothing.
func (r *rig) open(owner string) {
	r.t.Helper()
	ctx := r.t.Context()
	for after := ""; ; {
		page, err := r.store.List(ctx, "images/"+owner+"/", after, 1000)
		r.must(err)
		for _, o := range page {
			after = o.Key
			sealed, _, err := r.store.Get(ctx, o.Key)
			r.must(err)
			plain, err := r.vault.UnsealReader(ctx, owner, sealed, r.m.Object(o.Key).Bound(o.Key))
			r.must(err)
			_, err = io.Copy(io.Discard, plain)
			r.must(err)
			r.must(sealed.Close())
		}
		if len(page) < 1000 {
			return
		}
	}
}
