package objects_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"zimage/internal/objects"
	"zimage/internal/testenv"
)

// stores runs the test on every kind of store there is.
func stores(t *testing.T, test func(t *testing.T, s objects.Store)) {
	t.Helper()
	for name, open := range map[string]func(*testing.T) objects.Store{
		"directory":    func(t *testing.T) objects.Store { return openDirectory(t, t.TempDir()) },
		"s3":           func(t *testing.T) objects.Store { return openS3(t, testenv.S3(t)) },
		"s3 versioned": func(t *testing.T) objects.Store { return openS3(t, versionedBucket(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func openDirectory(t *testing.T, path string) *objects.Directory {
	t.Helper()
	_ = os.Chmod(path, 0o700) // where it is there: whatever the umask of who runs the test
	d, err := objects.OpenDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func openS3(t *testing.T, b testenv.S3Bucket) *objects.S3 {
	t.Helper()
	s, err := objects.OpenS3(t.Context(), s3Options(b))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func s3Options(b testenv.S3Bucket) objects.S3Options {
	return objects.S3Options{Endpoint: b.Endpoint, Bucket: b.Bucket, AccessKey: b.AccessKey, SecretKey: b.SecretKey}
}

// client reaches around the store.
func client(t *testing.T, b testenv.S3Bucket) *minio.Client {
	t.Helper()
	c, err := minio.New(b.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func versionedBucket(t *testing.T) testenv.S3Bucket {
	t.Helper()
	b := testenv.S3(t)
	c := client(t, b)
	if err := c.MakeBucket(t.Context(), b.Bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.EnableVersioning(t.Context(), b.Bucket); err != nil {
		t.Fatal(err)
	}
	return b
}

const key = "images/sub_7k3/gen_01/1/0.bin"

func put(t *testing.T, s objects.Store, key string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
}

// get returns the bytes, or nil when there is no such object.
func get(t *testing.T, s objects.Store, key string) []byte {
	t.Helper()
	r, size, err := s.Get(t.Context(), key)
	if errors.Is(err, objects.ErrNotExist) {
		tells(t, err, objects.ErrNotExist)
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	if size != int64(len(data)) {
		t.Errorf("Get announced %d bytes and gave %d", size, len(data))
	}
	return data
}

func keysOf(t *testing.T, s objects.Store, prefix string) []string {
	t.Helper()
	infos, err := s.List(t.Context(), prefix, "", 5000)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, info := range infos {
		keys = append(keys, info.Key)
	}
	return keys
}

// tells checks that err is want and says nothing about anybody.
func tells(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	silent(t, err)
}

// silent checks that an error's text holds no key and no address.
func silent(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, secret := range []string{"sub_", "gen_", "images", ".bin", "127.0.0.1", "/tmp", "http"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells %q: %v", secret, err)
		}
	}
}

func noise(size int) []byte {
	data := make([]byte, size)
	_, _ = rand.Read(data)
	return data
}

func TestPutOnceGetDelete(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		for _, size := range []int{0, 1, 20_000} {
			key := fmt.Sprintf("images/sub_7k3/gen_01/%d/0.bin", size)
			data := noise(size)
			put(t, s, key, data)
			if got := get(t, s, key); !bytes.Equal(got, data) {
				t.Errorf("%d bytes: got others back", size)
			}
			put(t, s, key, data) // the same again is a success
			for name, other := range map[string][]byte{"same size": noise(size), "longer": noise(size + 1)} {
				if bytes.Equal(other, data) {
					continue
				}
				err := s.Put(t.Context(), key, bytes.NewReader(other), int64(len(other)))
				if !errors.Is(err, objects.ErrExists) {
					t.Errorf("%d bytes, %s: got %v, want ErrExists", size, name, err)
				}
			}
			if got := get(t, s, key); !bytes.Equal(got, data) {
				t.Errorf("%d bytes: a refused Put changed the object", size)
			}
			if err := s.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if get(t, s, key) != nil {
				t.Errorf("%d bytes: there after Delete", size)
			}
			put(t, s, key, append(data, 'x')) // a deleted key is free
		}
	})
}

func TestPutReadsFromTheStart(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		r := strings.NewReader("from the start")
		if _, err := r.Seek(5, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(t.Context(), key, r, r.Size()); err != nil {
			t.Fatal(err)
		}
		if got := get(t, s, key); string(got) != "from the start" {
			t.Errorf("got %q", got)
		}
	})
}

func TestPutRefusesAnotherSize(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		for _, size := range []int64{-1, 3, 5, 1 << 40} {
			silent(t, s.Put(t.Context(), key, strings.NewReader("four"), size))
		}
		if get(t, s, key) != nil {
			t.Error("something was written")
		}
	})
}

func TestConcurrentWritersOneWins(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		const writers = 8
		contents := make([][]byte, writers/2) // each content is written by two
		for i := range contents {
			contents[i] = noise(100_000)
		}
		errs := make([]error, writers)
		var wait sync.WaitGroup
		for i := range writers {
			wait.Go(func() {
				data := contents[i/2]
				errs[i] = s.Put(t.Context(), key, bytes.NewReader(data), int64(len(data)))
			})
		}
		wait.Wait()
		got := get(t, s, key)
		winner := slices.IndexFunc(contents, func(c []byte) bool { return bytes.Equal(c, got) })
		if winner < 0 {
			t.Fatal("the object is none of the contents")
		}
		for i, err := range errs {
			switch {
			case i/2 == winner && err != nil:
				t.Errorf("writer %d of the content that is there: %v", i, err)
			case i/2 != winner:
				tells(t, err, objects.ErrExists)
			}
		}
	})
}

func TestDelete(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		ctx := t.Context()
		put(t, s, "images/sub_a/g/1/0.bin", []byte("a"))
		put(t, s, "images/sub_a/g/1/0-thumbnail.bin", []byte("a"))
		put(t, s, "images/sub_ab/g/1/0.bin", []byte("b"))
		put(t, s, "images/sub_a/g/1/0.bin2", []byte("begins like the first"))
		err := s.Delete(ctx, "images/sub_a/g/1/0.bin", "images/sub_a/g/1/0.bin", "images/sub_a/g/1/0-thumbnail.bin", "images/missing/0.bin")
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"images/sub_a/g/1/0.bin2", "images/sub_ab/g/1/0.bin"}
		if got := keysOf(t, s, "images/"); !slices.Equal(got, want) {
			t.Errorf("left: %q, want %q", got, want)
		}
		if err := s.Delete(ctx); err != nil {
			t.Errorf("Delete of nothing: %v", err)
		}
	})
}

func TestListPages(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		const count = 1_530
		var want []string
		for i := range count {
			want = append(want, fmt.Sprintf("images/sub_%d/gen_%d/1/%d.bin", i%7, i%131, i))
		}
		work := make(chan string)
		var wait sync.WaitGroup
		for range 8 {
			wait.Go(func() {
				for key := range work {
					if err := s.Put(t.Context(), key, strings.NewReader(key), int64(len(key))); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for _, key := range want {
			work <- key
		}
		close(work)
		wait.Wait()
		slices.Sort(want)

		for _, limit := range []int{97, 1000, 1200, count, 5000} {
			var got []string
			after := ""
			for {
				page, err := s.List(t.Context(), "images/", after, limit)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) > limit {
					t.Fatalf("%d objects in a page of %d", len(page), limit)
				}
				for _, info := range page {
					got = append(got, info.Key)
					if info.Size != int64(len(info.Key)) || info.Modified.IsZero() {
						t.Errorf("wrong info: %+v", info)
					}
				}
				if len(page) < limit {
					break
				}
				after = page[len(page)-1].Key
			}
			if !slices.Equal(got, want) {
				t.Errorf("limit %d: %d keys, not the %d written in their order", limit, len(got), count)
			}
		}
		if err := s.Delete(t.Context(), want...); err != nil {
			t.Fatal(err)
		}
		if left := keysOf(t, s, ""); len(left) != 0 {
			t.Errorf("%d left after deleting all", len(left))
		}
	})
}

func TestListOrderAndPrefixes(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		all := []string{ // in the order of their bytes
			"a-b/x.bin", "a/1-thumbnail.bin", "a/1.bin", "a/1/2.bin", "a/10.bin", "a/b/x.bin", "a/b_c/x.bin", "a0/x.bin", "a_b/x.bin", "b/x.bin",
		}
		if !slices.IsSorted(all) {
			t.Fatal("the test's own list is not sorted")
		}
		for _, key := range all {
			put(t, s, key, []byte("x"))
		}
		for _, prefix := range []string{"", "a", "a/", "a/1", "a/1.bin", "a/1/", "a/b", "a/b/", "b/x", "c", "a/1.bin2"} {
			for _, after := range append([]string{"", "a", "a/", "a/1", "a/b/", "a/b0", "zz"}, all...) {
				var want []string
				for _, key := range all {
					if strings.HasPrefix(key, prefix) && key > after {
						want = append(want, key)
					}
				}
				infos, err := s.List(t.Context(), prefix, after, 100)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, info := range infos {
					got = append(got, info.Key)
				}
				if !slices.Equal(got, want) {
					t.Errorf("prefix %q after %q: %q, want %q", prefix, after, got, want)
				}
			}
		}
		for _, limit := range []int{0, -1} {
			if _, err := s.List(t.Context(), "", "", limit); err == nil {
				t.Errorf("limit %d is taken", limit)
			}
		}
	})
}

func TestBadKeysAreRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 100)
	bad := []string{
		"", "/", ".", "..", "a.bin", "/images/a.bin", "images/../a.bin", "../a.bin", "images/a/../../../etc/passwd.bin",
		"images/./a.bin", "images//a.bin", "images/a.bin/", "images/a", "images/a.", "images/.bin", "images/a.b.bin",
		"images/a\x00.bin", "images/a.bin\x00", "images/a\n.bin", "images/a.bin\n", "images\\a.bin", "Images/A.bin", "images/é.bin",
		"images/a b.bin", "images/a*.bin", ".drafts/a.bin", "images/x.d/a.bin", "images/%2e%2e/a.bin", "images/-a.bin",
		"images/" + long + "a/a.bin", strings.Repeat(long+"/", 5) + long + ".bin", strings.Repeat("a/", 11) + "a.bin",
	}
	stores(t, func(t *testing.T, s objects.Store) {
		ctx := t.Context()
		put(t, s, key, []byte("x"))
		for _, k := range bad {
			tells(t, s.Put(ctx, k, strings.NewReader("x"), 1), objects.ErrBadKey)
			_, _, err := s.Get(ctx, k)
			tells(t, err, objects.ErrBadKey)
			tells(t, s.Delete(ctx, key, k), objects.ErrBadKey)
		}
		for _, prefix := range []string{"..", "/", "images/../", "a\x00", "Images", strings.Repeat("a", 513)} {
			_, err := s.List(ctx, prefix, "", 10)
			tells(t, err, objects.ErrBadKey)
		}
		if got := keysOf(t, s, ""); !slices.Equal(got, []string{key}) {
			t.Errorf("there is %q; one bad key must stop the whole Delete", got)
		}
		longest := strings.Repeat(long+"/", 4) + long + "/a.bin"
		if len(longest) > 512 {
			t.Fatal("the test's own key is too long")
		}
		put(t, s, longest, []byte("x"))
	})
}

// broken fails in the middle of its nth reading.
type broken struct {
	*bytes.Reader
	readings int
	fails    func() // at the middle; nil: Read fails
}

var errBroken = errors.New("images/sub_7k3: the source broke")

func (b *broken) Seek(offset int64, whence int) (int64, error) {
	b.readings--
	return b.Reader.Seek(offset, whence)
}

func (b *broken) Read(p []byte) (int, error) {
	if b.readings == 0 && b.Len() <= int(b.Size()/2) {
		if b.fails == nil {
			return 0, errBroken
		}
		b.fails()
	}
	return b.Reader.Read(p[:min(len(p), 4096)])
}

// WriteTo hides bytes.Reader's, which would pass Read by.
func (b *broken) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b})
}

func TestBrokenReaderLeavesNothing(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		data := noise(300_000)
		for reading := 1; reading <= 2; reading++ {
			err := s.Put(t.Context(), key, &broken{Reader: bytes.NewReader(data), readings: reading}, int64(len(data)))
			if _, isDirectory := s.(*objects.Directory); isDirectory && reading == 2 {
				break // it reads once
			}
			tells(t, err, errBroken)
			if got := keysOf(t, s, ""); len(got) != 0 {
				t.Errorf("reading %d: a broken Put left %q", reading, got)
			}
		}
		put(t, s, key, data)
	})
}

func TestCanceledContext(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		put(t, s, "images/sub_a/g/1/0.bin", []byte("x"))
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		tells(t, s.Put(ended, key, strings.NewReader("x"), 1), context.Canceled)
		_, _, err := s.Get(ended, "images/sub_a/g/1/0.bin")
		tells(t, err, context.Canceled)
		tells(t, s.Delete(ended, "images/sub_a/g/1/0.bin"), context.Canceled)
		_, err = s.List(ended, "", "", 10)
		tells(t, err, context.Canceled)
		tells(t, s.Check(ended), context.Canceled)

		data := noise(3_000_000)
		readings := 2 // of S3 the second is the one that goes out
		if _, isDirectory := s.(*objects.Directory); isDirectory {
			readings = 1
		}
		midway, cancel := context.WithCancel(t.Context())
		defer cancel()
		err = s.Put(midway, key, &broken{Reader: bytes.NewReader(data), readings: readings, fails: cancel}, int64(len(data)))
		tells(t, err, context.Canceled)
		// The request may have gone out whole before it was cut.
		if got := get(t, s, key); got != nil && !bytes.Equal(got, data) {
			t.Errorf("a part of %d bytes is there", len(got))
		}
	})
}

func TestLargeObject(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		data := noise(30 << 20)
		put(t, s, key, data)
		if !bytes.Equal(get(t, s, key), data) {
			t.Error("got other bytes back")
		}
		put(t, s, key, data)
		data[20<<20]++ // one bit in the middle; the store must not still read the last call's bytes either
		tells(t, s.Put(t.Context(), key, bytes.NewReader(data), int64(len(data))), objects.ErrExists)
	})
}

func TestCheckLeavesNothing(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		for range 3 {
			if err := s.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := keysOf(t, s, ""); len(got) != 0 {
			t.Errorf("Check left %q", got)
		}
	})
}
