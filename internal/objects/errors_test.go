package objects

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/minio/minio-go/v7"
)

func TestErrorsKeepReasonsAndDropNames(t *testing.T) {
	t.Parallel()
	const name = "images/sub_7k3/0.bin"
	cases := []struct {
		err  error
		text string
		is   error
	}{
		{fileError("put", &fs.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}), "object store: put: no space left on device", ErrFull},
		{fileError("put", &fs.PathError{Op: "write", Path: name, Err: syscall.EDQUOT}), "object store: put: disk quota exceeded", ErrFull},
		{fileError("get", &fs.PathError{Op: "open", Path: name, Err: syscall.EACCES}), "object store: get: permission denied", fs.ErrPermission},
		{fileError("get", errors.New("open "+name)), "object store: get: failed", nil},
		{s3Error("put", minio.ErrorResponse{StatusCode: 507, Code: "XMinioStorageFull", Message: name}), "object store: put: XMinioStorageFull", ErrFull},
		{s3Error("put", minio.ErrorResponse{StatusCode: 507, Code: "507 Insufficient Storage"}), "object store: put: status 507", ErrFull},
		{s3Error("put", minio.ErrorResponse{StatusCode: 500, Code: "InternalError", Message: "write: No space left on device"}), "object store: put: InternalError", ErrFull},
		{s3Error("get", minio.ErrorResponse{StatusCode: 404, Code: "NoSuchKey", Key: name}), "object store: get: NoSuchKey", ErrNotExist},
		{s3Error("get", minio.ErrorResponse{StatusCode: 403, Code: "AccessDenied", Message: name}), "object store: get: AccessDenied", nil},
		{s3Error("get", minio.ErrorResponse{StatusCode: 400, Code: name}), "object store: get: status 400", nil},
		{s3Error("put", fmt.Errorf("put %s: %w", name, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})), "object store: put: connection refused", syscall.ECONNREFUSED},
		{s3Error("put", fmt.Errorf("put %s: %w", name, &net.DNSError{Name: "s3.internal", IsTimeout: true})), "object store: put: host not found", nil},
		{s3Error("put", errors.New(name)), "object store: put: unreachable", nil},
	}
	for _, c := range cases {
		if c.err.Error() != c.text {
			t.Errorf("text %q, want %q", c.err, c.text)
		}
		if c.is != nil && !errors.Is(c.err, c.is) {
			t.Errorf("%v is not %v", c.err, c.is)
		}
		for _, kind := range []error{ErrNotExist, ErrExists, ErrFull, ErrBadKey} {
			if kind != c.is && errors.Is(c.err, kind) {
				t.Errorf("%v is also %v", c.err, kind)
			}
		}
	}
	// A bucket that is not there says nothing about the object.
	if err := s3Error("get", minio.ErrorResponse{StatusCode: 404, Code: "NoSuchBucket"}); errors.Is(err, ErrNotExist) {
		t.Error("a missing bucket counts as a missing object")
	}
}

func TestLentReaderIsNotReadAfterwards(t *testing.T) {
	t.Parallel()
	r := strings.NewReader("the caller's")
	l := &lent{r: r}
	if _, err := l.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if err := l.take(); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Read(make([]byte, 4)); n != 0 || err == nil {
		t.Errorf("Read = %d, %v after the request", n, err)
	}
	if r.Len() != len("caller's") {
		t.Errorf("%d bytes are left, some were taken from the caller", r.Len())
	}
}
