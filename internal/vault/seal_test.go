package vault

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"zimage/internal/clock"
)

// localVault has its store in a file; objects do not touch the database.
func localVault(t testing.TB) *Vault {
	t.Helper()
	r, err := ParseRoots(ringText("old", someKey, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	v := mustProcess(t, "sqlite:"+t.TempDir()+"/keys.db", r, clock.Manual(start))
	create(t, v, "sub_a", "sub_b")
	return v
}

func sealObject(t testing.TB, v *Vault, subject string, plain, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := v.SealWriter(context.Background(), subject, &b, data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openObject(v *Vault, subject string, r io.Reader, data []byte) ([]byte, error) {
	u, err := v.UnsealReader(context.Background(), subject, r, data)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(u)
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func TestObjectsRoundTripAtTheirExactSize(t *testing.T) {
	t.Parallel()
	v := localVault(t)
	const first, rest = segmentSize - headerSize - tagSize, segmentSize - tagSize
	for _, n := range []int{0, 1, first - 1, first, first + 1, first + rest, first + rest + 1, 4095, 4096, 4097, 1<<20 + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			plain, data := random(n), Data("image", "img_1", "1")
			sealed := sealObject(t, v, "sub_a", plain, data)
			if got := SealedSize(int64(n)); got != int64(len(sealed)) {
				t.Errorf("SealedSize says %d, it has %d bytes", got, len(sealed))
			}
			if got := PlainSize(int64(len(sealed))); got != int64(n) {
				t.Errorf("PlainSize says %d", got)
			}
			for name, r := range map[string]io.Reader{
				"at once":     bytes.NewReader(sealed),
				"byte a time": iotest.OneByteReader(bytes.NewReader(sealed)),
				"EOF at once": iotest.DataErrReader(bytes.NewReader(sealed)),
			} {
				if n > 1<<16 && name == "byte a time" {
					continue
				}
				got, err := openObject(v, "sub_a", r, data)
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s: %d bytes of %d, %v", name, len(got), n, err)
				}
			}
			u, err := v.UnsealReader(context.Background(), "sub_a", bytes.NewReader(sealed), data)
			if err != nil {
				t.Fatal(err)
			}
			if err := iotest.TestReader(u, plain); n < 1<<16 && err != nil {
				t.Error(err)
			}
		})
	}
}

func TestObjectsOpenOnlyAsTheyWereSealed(t *testing.T) {
	t.Parallel()
	v := localVault(t)
	plain, data := random(10_000), Data("image", "img_1", "1")
	sealed := sealObject(t, v, "sub_a", plain, data)

	if _, err := v.UnsealReader(context.Background(), "sub_b", bytes.NewReader(sealed), data); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another subject: %v", err)
	}
	if _, err := v.UnsealReader(context.Background(), "sub_a", bytes.NewReader(sealed), Data("image", "img_2", "1")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("other data: %v", err)
	}
	wantCorrupt := func(what string, bad []byte) {
		t.Helper()
		got, err := openObject(v, "sub_a", bytes.NewReader(bad), data)
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: %v", what, err)
		}
		if !bytes.HasPrefix(plain, got) {
			t.Fatalf("%s: bytes came out that never went in", what)
		}
	}
	for i := 0; i < len(sealed); i += 7 {
		bad := slices.Clone(sealed)
		bad[i] ^= 1 << (i % 8)
		wantCorrupt(fmt.Sprintf("a bit of byte %d changed", i), bad)
	}
	for n := 0; n < len(sealed); n += 5 {
		wantCorrupt(fmt.Sprintf("cut to %d bytes", n), sealed[:n])
	}
	for _, n := range []int{segmentSize, 2 * segmentSize, len(sealed) - 1} {
		wantCorrupt(fmt.Sprintf("cut to %d bytes", n), sealed[:n])
	}
	wantCorrupt("a byte more", append(slices.Clone(sealed), 0))
	swapped := slices.Concat(sealed[:headerSize], sealed[segmentSize:2*segmentSize], sealed[headerSize:segmentSize], sealed[2*segmentSize:])
	wantCorrupt("segments swapped", swapped)
}

func TestACutObjectStaysAnError(t *testing.T) {
	t.Parallel()
	v := localVault(t)
	sealed := sealObject(t, v, "sub_a", random(10_000), nil)
	u, err := v.UnsealReader(context.Background(), "sub_a", bytes.NewReader(sealed[:len(sealed)-1]), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, u); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	// Whoever reads on must not be told that it ended well.
	if n, err := u.Read(make([]byte, 10)); n != 0 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("then %d bytes, %v", n, err)
	}
}

func TestABrokenSourceIsNotDamage(t *testing.T) {
	t.Parallel()
	v := localVault(t)
	sealed := sealObject(t, v, "sub_a", random(10_000), nil)
	for _, n := range []int{0, 10, headerSize, 2000, segmentSize, segmentSize + 1, 9000} {
		for _, broken := range []error{errors.New("connection reset"), io.ErrUnexpectedEOF, fmt.Errorf("reset: %w", io.EOF)} {
			r := io.MultiReader(bytes.NewReader(sealed[:n]), iotest.ErrReader(broken))
			if _, err := openObject(v, "sub_a", r, nil); !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
				t.Errorf("broken off after %d: %v", n, err)
			}
		}
	}
}

// failing fails its write number at, and only that one.
type failing struct {
	bytes.Buffer
	at int
}

func (f *failing) Write(p []byte) (int, error) {
	f.at--
	if f.at == 0 {
		return 0, errors.New("disk full")
	}
	return f.Buffer.Write(p)
}

func TestALostWriteNeverEndsAsAWholeObject(t *testing.T) {
	t.Parallel()
	v := localVault(t)
	for at := 2; at <= 4; at++ {
		f := &failing{at: at}
		w, err := v.SealWriter(context.Background(), "sub_a", f, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(w, bytes.NewReader(random(10_000)))
		if end := w.Close(); end == nil {
			t.Errorf("write %d lost (%v): Close says that all is well", at, err)
		}
		if _, err := openObject(v, "sub_a", &f.Buffer, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("write %d lost: it opens: %v", at, err)
		}
	}
}

// Not parallel: it measures the whole process's allocations.
func TestObjectsStreamInConstantMemory(t *testing.T) {
	v := localVault(t)
	const size, chunk = 10 << 20, 32 << 10
	measure := func(what string, fn func()) {
		fn() // the first time fills the key cache
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		// All that was ever allocated, freed or not: a nonce a segment, and the buffers.
		if got := after.TotalAlloc - before.TotalAlloc; got > 512<<10 {
			t.Errorf("%s 10 MiB allocated %d KiB", what, got>>10)
		}
	}
	sealed := bytes.NewBuffer(make([]byte, 0, SealedSize(size)+1))
	piece, pass := random(chunk), make([]byte, chunk)
	measure("sealing", func() {
		sealed.Reset()
		w, err := v.SealWriter(context.Background(), "sub_a", sealed, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range size / chunk {
			if _, err := w.Write(piece); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	})
	if int64(sealed.Len()) != SealedSize(size) {
		t.Errorf("sealed size %d, said %d", sealed.Len(), SealedSize(size))
	}
	measure("opening", func() {
		u, err := v.UnsealReader(context.Background(), "sub_a", bytes.NewReader(sealed.Bytes()), nil)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < size; at += chunk {
			if _, err := io.ReadFull(u, pass); err != nil || !bytes.Equal(pass, piece) {
				t.Fatalf("at %d: %v", at, err)
			}
		}
		if n, err := u.Read(pass); n != 0 || err != io.EOF {
			t.Fatalf("at the end: %d, %v", n, err)
		}
	})
}

// BenchmarkObject seals and opens an image of 2 MiB. Its ratio is the speed
// against AES-256-GCM over the same bytes in one piece, measured by turns
// with it.
func BenchmarkObject(b *testing.B) {
	const size = 2 << 20
	v := localVault(b)
	plain := random(size)
	sealed := sealObject(b, v, "sub_a", plain, nil)
	block, err := aes.NewCipher(random(32))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	nonce, buffer := make([]byte, gcm.NonceSize()), make([]byte, 0, size+gcm.Overhead())
	whole := slices.Clone(gcm.Seal(buffer, nonce, plain, nil)) //nolint:gosec // one key, one text: the nonce does not matter
	out := bytes.NewBuffer(make([]byte, 0, len(sealed)))
	ctx := context.Background()

	for _, c := range []struct {
		name        string
		floor, work func() error
	}{
		{"seal", func() error {
			gcm.Seal(buffer, nonce, plain, nil)
			return nil
		}, func() error {
			out.Reset()
			w, err := v.SealWriter(ctx, "sub_a", out, nil)
			if err != nil {
				return err
			}
			if _, err := w.Write(plain); err != nil {
				return err
			}
			return w.Close()
		}},
		{"open", func() error {
			_, err := gcm.Open(buffer, nonce, whole, nil)
			return err
		}, func() error {
			u, err := v.UnsealReader(ctx, "sub_a", bytes.NewReader(sealed), nil)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, u)
			return err
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			// By turns, so that a busy neighbour slows both.
			var floor, work time.Duration
			b.ReportAllocs()
			for b.Loop() {
				begin := time.Now()
				if err := c.floor(); err != nil {
					b.Fatal(err)
				}
				middle := time.Now()
				if err := c.work(); err != nil {
					b.Fatal(err)
				}
				floor += middle.Sub(begin)
				work += time.Since(middle)
			}
			all := float64(size) * float64(b.N) / 1e6
			b.ReportMetric(float64(work.Nanoseconds())/float64(b.N), "ns/op")
			b.ReportMetric(all/work.Seconds(), "MB/s")
			b.ReportMetric(all/floor.Seconds(), "floor-MB/s")
			b.ReportMetric(floor.Seconds()/work.Seconds(), "ratio-to-floor")
		})
	}
}
