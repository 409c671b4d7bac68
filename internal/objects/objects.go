// Package objects keeps sealed bytes under keys: in an S3 bucket or in a
// directory. An object is written once and never changes; deleting it deletes
// every version of it.
//
// It never sees plain text, never decides what may be kept or for how long, and
// never puts a key or a server's words into an error: keys hold the ids of
// people.
package objects

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// A Store keeps objects. Both implementations behave as one suite says.
type Store interface {
	// Put writes all of r, which has size bytes, under key, and returns when
	// they are on disk. An object that is there already with the same bytes is
	// a success, so that a Put whose answer was lost can be repeated; with other
	// bytes it is ErrExists. Whatever fails, no part of an object is ever seen.
	// r is read from its start, twice or more.
	Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error
	// PutStream writes r to its end under key, in memory that does not grow with
	// it, and returns how many bytes that were. A key that is taken is ErrExists.
	// A stream cannot be read again: whoever repeats one takes another key, since
	// the first may be there in spite of an error. Whatever fails, r too, no part
	// of an object is ever seen.
	PutStream(ctx context.Context, key string, r io.Reader) (int64, error)
	// Abandon removes the parts that streams to these keys have left whose process
	// died. An object that is whole stays.
	Abandon(ctx context.Context, keys ...string) error
	// Get returns an object and its size, or ErrNotExist.
	Get(ctx context.Context, key string) (io.ReadCloser, int64, error)
	// Delete removes every version of the objects. A missing one is fine. The
	// error says how many may still be there.
	Delete(ctx context.Context, keys ...string) error
	// List returns at most limit objects (at least 1) whose keys begin with
	// prefix and come after the key after, in the order of their bytes. In a
	// versioned bucket it also names those of which only old versions or a
	// delete marker are left: Get does not find them, Delete removes them.
	List(ctx context.Context, prefix, after string, limit int) ([]Info, error)
	// Backstop has the store itself delete objects that lie under prefix for longer
	// than days, some time later, and parts that streams have left: should nobody
	// else do so. In a folder it does nothing.
	Backstop(ctx context.Context, prefix string, days int) error
	// Check says whether objects can be written. It writes a few bytes and
	// removes them, in S3 under probe/.
	Check(ctx context.Context) error
}

var (
	_ Store = (*S3)(nil)
	_ Store = (*Directory)(nil)
)

// Info describes a stored object.
type Info struct {
	Key      string
	Size     int64 // bytes
	Modified time.Time
	Hidden   bool // Get does not find it: only old versions or a marker are left
}

// What a Store says; find them with errors.Is. Of every other error, trying
// again later may help.
var (
	ErrNotExist = errors.New("no such object")
	ErrExists   = errors.New("an object with other bytes is already there")
	ErrFull     = errors.New("no room left")
	ErrBadKey   = errors.New("not a valid object key")
	ErrTooLarge = errors.New("larger than an object may be")
)

// An Error is a failure of the store in words that may be logged. The cause,
// which may name keys and addresses, is reached only by errors.Is and errors.As.
type Error struct {
	Op   string // open, put, get, delete, list, backstop or check
	Code string // S3's code, an HTTP status, or what the system or network said
	kind error  // one of the errors above, or nil
	err  error
}

func (e *Error) Error() string { return "object store: " + e.Op + ": " + e.Code }

// Unwrap lets errors.Is find ErrNotExist, ErrExists, ErrFull and the context's
// errors.
func (e *Error) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// fail is an error of ours about op.
func fail(op string, kind error) error {
	return &Error{Op: op, Code: kind.Error(), err: kind}
}

// systemCode is the short reason of an error of the system or the network,
// without the paths and addresses that its text holds. What it does not know is
// otherwise.
func systemCode(err error, otherwise string) string {
	var errno syscall.Errno
	var timeout net.Error
	var name *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.As(err, &name):
		return "host not found"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "connection cut"
	}
	return otherwise
}

// isFull knows the system's two ways of saying that there is no room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// keyPattern: at least one folder, then a name with one extension. Lower case
// alone, so that a directory that ignores case keeps keys apart; a dot only in
// the last part, so that no key is a folder of another.
var keyPattern = regexp.MustCompile(`^(?:[a-z0-9][a-z0-9_-]{0,99}/){1,10}[a-z0-9][a-z0-9_-]{0,99}\.[a-z0-9]{1,16}$`)

// maxKey is below what S3 (1,024 bytes) and file systems allow.
const maxKey = 512

func checkKeys(op string, keys ...string) error {
	for _, key := range keys {
		if len(key) > maxKey || !keyPattern.MatchString(key) {
			return fail(op, ErrBadKey)
		}
	}
	return nil
}

var prefixPattern = regexp.MustCompile(`^[a-z0-9_/.-]{0,512}$`)

func checkList(prefix string, limit int) error {
	if !prefixPattern.MatchString(prefix) || strings.HasPrefix(prefix, "/") || strings.Contains(prefix, "..") {
		return fail("list", ErrBadKey)
	}
	if limit < 1 {
		return fail("list", errors.New("the limit must be at least 1"))
	}
	return nil
}

// digest reads all of r from its start and returns its SHA-256 in hex.
func digest(ctx context.Context, r io.ReadSeeker, size int64) (string, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return "", unreadable(err)
	}
	return copyDigest(ctx, io.Discard, r, size)
}

// copyDigest copies size bytes, which must be all there are, and returns their
// SHA-256 in hex.
func copyDigest(ctx context.Context, w io.Writer, r io.Reader, size int64) (string, error) {
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(hash, w), &source{ctx, r})
	if err != nil {
		return "", err
	}
	if n != size {
		return "", fail("put", fmt.Errorf("the object has %d bytes, not the %d announced", n, size))
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// source ends with its context and marks its own errors.
type source struct {
	ctx context.Context
	r   io.Reader
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = unreadable(err)
	}
	return n, err
}

// unreadable is the failure of the bytes that the caller gave.
func unreadable(err error) error {
	return &Error{Op: "put", Code: "the object's bytes could not be read", err: err}
}

// content is an open object whose errors are clean.
type content struct {
	io.ReadCloser
	clean func(op string, err error) error
}

func (c content) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = c.clean("get", err)
	}
	return n, err
}
