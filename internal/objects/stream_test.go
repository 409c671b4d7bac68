package objects_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"zimage/internal/objects"
	"zimage/internal/testenv"
)

// part is how much of a stream goes to S3 at once.
const part = 16 << 20

// onlyRead hides that a reader could do more than be read to its end.
type onlyRead struct{ io.Reader }

func TestPutStream(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, s objects.Store) {
		for _, size := range []int{0, 20_000, part, part + 1, 2*part + 5} {
			data := noise(size)
			n, err := s.PutStream(t.Context(), key, onlyRead{bytes.NewReader(data)})
			if err != nil || n != int64(size) {
				t.Fatalf("%d bytes: %d, %v", size, n, err)
			}
			if !bytes.Equal(get(t, s, key), data) {
				t.Errorf("%d bytes: got others back", size)
			}
			for _, other := range []int{size + 1, part + 1} {
				_, err := s.PutStream(t.Context(), key, onlyRead{bytes.NewReader(noise(other))})
				tells(t, err, objects.ErrExists)
			}
			if !bytes.Equal(get(t, s, key), data) {
				t.Errorf("%d bytes: a refused stream changed the object", size)
			}
			if err := s.Abandon(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if get(t, s, key) == nil {
				t.Fatal("Abandon removed a whole object")
			}
			if err := s.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		for _, bad := range []string{"", "images/../a.bin"} {
			_, err := s.PutStream(t.Context(), bad, strings.NewReader("x"))
			tells(t, err, objects.ErrBadKey)
			tells(t, s.Abandon(t.Context(), key, bad), objects.ErrBadKey)
		}
	})
}

// A stream that breaks off, wherever it does, leaves nothing at all: no object,
// no draft, no parts.
func TestBrokenStreamLeavesNothing(t *testing.T) {
	t.Parallel()
	test := func(t *testing.T, s objects.Store, left func() int) {
		for _, size := range []int{0, 1000, part, 2*part + 1000} {
			_, err := s.PutStream(t.Context(), key, io.MultiReader(bytes.NewReader(noise(size)), failing{errBroken}))
			tells(t, err, errBroken)
			ctx, cancel := context.WithCancel(t.Context())
			_, err = s.PutStream(ctx, key, io.MultiReader(bytes.NewReader(noise(size)), canceling{cancel}, bytes.NewReader(noise(100))))
			tells(t, err, context.Canceled)
			// An end that comes with an error is none.
			_, err = s.PutStream(t.Context(), key, io.MultiReader(bytes.NewReader(noise(size)), failing{errors.Join(errBroken, io.EOF)}))
			tells(t, err, errBroken)
			if get(t, s, key) != nil || len(keysOf(t, s, "")) > 0 || left() > 0 {
				t.Errorf("%d bytes: something is left, %d of it unfinished", size, left())
			}
		}
	}
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		test(t, openDirectory(t, dir), func() int {
			drafts, err := os.ReadDir(filepath.Join(dir, ".drafts"))
			if err != nil {
				t.Fatal(err)
			}
			return len(drafts)
		})
	})
	t.Run("s3", func(t *testing.T) {
		t.Parallel()
		b := testenv.S3(t)
		test(t, openS3(t, b), func() int { return len(uploads(t, b)) })
	})
}

// What a process that died has left goes with Abandon.
func TestAbandonRemovesPartsOfTheDead(t *testing.T) {
	t.Parallel()
	b := testenv.S3(t)
	s := openS3(t, b)
	c := minio.Core{Client: client(t, b)}
	for _, key := range []string{key, "images/sub_7k3/gen_01/1/0.bin2"} {
		upload, err := c.NewMultipartUpload(t.Context(), b.Bucket, key, minio.PutObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.PutObjectPart(t.Context(), b.Bucket, key, upload, 1, strings.NewReader("x"), 1, minio.PutObjectPartOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(uploads(t, b)) != 1 {
		t.Fatal("the test's own upload is not there")
	}
	for range 2 {
		if err := s.Abandon(t.Context(), key, "images/nobody/1.bin"); err != nil {
			t.Fatal(err)
		}
		if left := uploads(t, b); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// uploads are those of key that have not ended: the server lists them by whole
// keys alone.
func uploads(t *testing.T, b testenv.S3Bucket) (ids []string) {
	t.Helper()
	for u := range client(t, b).ListIncompleteUploads(t.Context(), b.Bucket, key, true) {
		if u.Err != nil {
			t.Fatal(u.Err)
		}
		if u.Key == key {
			ids = append(ids, u.UploadID)
		}
	}
	return ids
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type canceling struct{ cancel func() }

func (c canceling) Read([]byte) (int, error) {
	c.cancel()
	return 0, io.EOF
}
