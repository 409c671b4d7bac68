package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// Raw is everything that a store has as it lies there, for whoever looks whether
// something is left: each version, delete markers, and what is not whole.
type Raw interface {
	// Versions calls visit with each, by its key. open returns the bytes, in S3 with
	// their metadata before them; it is nil where there is only a key.
	Versions(ctx context.Context, visit func(key string, modified time.Time, open func() (io.ReadCloser, error)) error) error
}

var (
	_ Raw = (*S3)(nil)
	_ Raw = (*Directory)(nil)
)

// Versions is described at Raw.
func (s *S3) Versions(ctx context.Context, visit func(string, time.Time, func() (io.ReadCloser, error)) error) error {
	versioned, err := s.versioned(ctx)
	if err != nil {
		return s3Error("list", err)
	}
	noOwner := false
	for o := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: versioned, FetchOwner: &noOwner}) {
		if o.Err != nil {
			return s3Error("list", o.Err)
		}
		open := func() (io.ReadCloser, error) {
			body, _, header, err := s.core.GetObject(ctx, s.bucket, o.Key, minio.GetObjectOptions{VersionID: o.VersionID})
			if codeOf(err) == minio.NoSuchKey || codeOf(err) == minio.NoSuchVersion {
				return nil, fail("get", ErrNotExist) // deleted meanwhile
			}
			if err != nil {
				return nil, s3Error("get", err)
			}
			return content{struct {
				io.Reader
				io.Closer
			}{io.MultiReader(strings.NewReader(fmt.Sprintln(header)), body), body}, s3Error}, nil
		}
		if o.IsDeleteMarker {
			open = nil
		}
		if err := visit(o.Key, o.LastModified, open); err != nil {
			return err
		}
	}
	for u := range s.core.ListIncompleteUploads(ctx, s.bucket, "", true) {
		if u.Err != nil {
			return s3Error("list", u.Err)
		}
		if err := visit(u.Key, u.Initiated, nil); err != nil {
			return err
		}
	}
	return s3Error("list", ctx.Err())
}

// Versions is described at Raw.
func (d *Directory) Versions(ctx context.Context, visit func(string, time.Time, func() (io.ReadCloser, error)) error) error {
	err := d.walk(ctx, "", func(name string, entry fs.DirEntry) error {
		if entry.IsDir() {
			return nil
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		return visit(name, info.ModTime(), func() (io.ReadCloser, error) {
			f, err := d.root.Open(name)
			return f, fileError("get", err)
		})
	})
	return fileError("list", err)
}
