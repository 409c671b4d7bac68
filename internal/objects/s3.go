package objects

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Options says where the bucket is.
type S3Options struct {
	Endpoint  string // host or host:port
	Bucket    string
	Region    string // empty: asked of the server
	AccessKey string
	SecretKey string
	TLS       bool   // version 1.3 at least
	CAFile    string // PEM; trusted instead of the system's authorities
}

// S3 keeps objects in a bucket, versioned or not, on any server that honours
// If-None-Match.
type S3 struct {
	core    minio.Core
	bucket  string
	region  string
	plain   *http.Client  // for what core does not know
	proving chan struct{} // holds one while somebody proves the server
	proved  atomic.Bool
}

const (
	// attempts of one request, the first among them. The caller has the patience
	// for more, and knows what else it could do.
	attempts = 2
	// maxObject is what S3 takes in one PUT, which appears whole or not at all
	// and leaves no parts behind.
	maxObject = 5 << 30
	// partSize of a stream, which is also the memory that it takes. S3 counts to
	// 10,000 parts.
	partSize  = 16 << 20
	mostParts = 10_000
	// dropTime is for one small request that nobody waits for gladly.
	dropTime = 15 * time.Second
	// sumKey names the metadata that holds the SHA-256 of the stored bytes. The
	// ETag is not it: encrypting servers make it otherwise.
	sumKey = "Sha256"
	// probes is the folder of what Check and the proof write and remove.
	probes = "probe/"
	// proofTime is for four small requests; a server that hangs is away.
	proofTime = 15 * time.Second
)

// OpenS3 makes the bucket when it is missing, and refuses a server that
// overwrites objects in spite of If-None-Match. When the server is away, opening
// succeeds and the first Put or Check does this: the service goes on without its
// pictures, also one that is started meanwhile.
func OpenS3(ctx context.Context, o S3Options) (*S3, error) {
	core, err := o.core()
	if err != nil {
		return nil, err
	}
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	s := &S3{core: *core, bucket: o.Bucket, region: o.Region, plain: &http.Client{Transport: transport}, proving: make(chan struct{}, 1)}
	if err := s.prove(ctx, "open"); err != nil && (ctx.Err() != nil || !IsAway(err)) {
		return nil, err
	}
	return s, nil
}

// LookS3 asks the server for its bucket and changes nothing. there is false when
// it answers and has none, which OpenS3 would make. That the server refuses to
// overwrite is proved by OpenS3 alone.
func LookS3(ctx context.Context, o S3Options) (there bool, err error) {
	core, err := o.core()
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithTimeout(ctx, proofTime)
	defer stop()
	there, err = core.BucketExists(ctx, o.Bucket)
	return there, s3Error("open", err)
}

func (o S3Options) core() (*minio.Core, error) {
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	core, err := minio.NewCore(o.Endpoint, &minio.Options{
		Creds:      credentials.NewStaticV4(o.AccessKey, o.SecretKey, ""),
		Secure:     o.TLS,
		Region:     o.Region,
		Transport:  transport,
		MaxRetries: attempts,
	})
	return core, s3Error("open", err)
}

// prove makes sure, until it has once succeeded, that the bucket is there and
// that the server writes once. One proof runs at a time; the others wait for it.
func (s *S3) prove(ctx context.Context, op string) error {
	if s.proved.Load() {
		return nil
	}
	select {
	case s.proving <- struct{}{}:
		defer func() { <-s.proving }()
	case <-ctx.Done():
		return s3Error(op, ctx.Err())
	}
	if s.proved.Load() {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, proofTime)
	defer stop()
	if err := s.makeBucket(ctx); err != nil {
		return s3Error(op, err)
	}
	if err := s.proveWriteOnce(ctx, op); err != nil {
		return err
	}
	s.proved.Store(true)
	return nil
}

func (o S3Options) transport() (*http.Transport, error) {
	t, err := minio.DefaultTransport(o.TLS)
	if err != nil || !o.TLS {
		return t, err
	}
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the object store's CA file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, errors.New("the object store's CA file holds no certificate")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return t, nil
}

func (s *S3) makeBucket(ctx context.Context) error {
	there, err := s.core.BucketExists(ctx, s.bucket)
	if err != nil || there {
		return err
	}
	err = s.core.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{Region: s.region})
	if codeOf(err) == minio.BucketAlreadyOwnedByYou { // by a process that started with us
		return nil
	}
	return err
}

// proveWriteOnce writes the same key twice: the second must be refused.
func (s *S3) proveWriteOnce(ctx context.Context, op string) error {
	key := probes + strings.ToLower(rand.Text()) + ".bin"
	_, first := s.probe(ctx, key, true)
	var second error
	if first == nil {
		_, second = s.probe(ctx, key, true)
	}
	removed := s.Delete(ctx, key)
	switch {
	case first != nil:
		return s3Error(op, first)
	case second == nil:
		return fail(op, errors.New("this server ignores If-None-Match and would overwrite objects"))
	case !isTaken(second):
		return s3Error(op, second)
	}
	return removed
}

// probe writes a few bytes.
func (s *S3) probe(ctx context.Context, key string, once bool) (minio.UploadInfo, error) {
	r := strings.NewReader("probe")
	sum, err := digest(ctx, r, r.Size())
	if err != nil {
		return minio.UploadInfo{}, err
	}
	return s.send(ctx, key, r, r.Size(), sum, once)
}

// Put is described at Store. Objects of more than 5 GiB are refused.
func (s *S3) Put(ctx context.Context, key string, r io.ReadSeeker, size int64) error {
	if err := checkKeys("put", key); err != nil {
		return err
	}
	if size < 0 || size > maxObject {
		return fail("put", errors.New("an object has 0 bytes to 5 GiB"))
	}
	sum, err := digest(ctx, r, size)
	if err != nil {
		return s3Error("put", err)
	}
	if err := s.prove(ctx, "put"); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		_, err := s.send(ctx, key, r, size, sum, true)
		if err == nil {
			return nil
		}
		if !isTaken(err) && !isTransient(ctx, err) {
			return s3Error("put", err)
		}
		// Something is there, or may be: the bytes of this very call, whose
		// reply was lost, or of an earlier one that was lost too.
		switch same, missing := s.holds(ctx, key, size, sum); {
		case missing == nil && same:
			return nil
		case missing == nil:
			return fail("put", ErrExists)
		case attempt == attempts || !errors.Is(missing, ErrNotExist):
			return s3Error("put", err)
		}
		if err := pause(ctx); err != nil {
			return s3Error("put", err)
		}
	}
}

// PutStream is described at Store. What is longer than 156 GiB is refused. The
// parts are dropped when it fails; those of a process that died stay until
// Abandon, or the bucket's own rule.
func (s *S3) PutStream(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := checkKeys("put", key); err != nil {
		return 0, err
	}
	body := &source{ctx, r}
	part := make([]byte, partSize)
	n, err := fill(body, part)
	if err != nil {
		return 0, s3Error("put", err)
	}
	if n < partSize {
		return int64(n), s.Put(ctx, key, bytes.NewReader(part[:n]), int64(n))
	}
	if err := s.prove(ctx, "put"); err != nil {
		return 0, err
	}
	upload, err := s.core.NewMultipartUpload(ctx, s.bucket, key, minio.PutObjectOptions{})
	if err != nil {
		return 0, s3Error("put", err)
	}
	size, err := s.sendParts(ctx, key, upload, body, part)
	if err == nil {
		return size, nil
	}
	// Also when ctx has ended: parts cost room, and nobody looks for them.
	drop, stop := context.WithTimeout(context.WithoutCancel(ctx), dropTime)
	defer stop()
	_ = s.core.AbortMultipartUpload(drop, s.bucket, key, upload)
	if isTaken(err) {
		return 0, fail("put", ErrExists)
	}
	return 0, s3Error("put", err)
}

// sendParts sends the full first part, then the rest of body, and has the server
// put them together, unless the key is taken.
func (s *S3) sendParts(ctx context.Context, key, upload string, body io.Reader, part []byte) (size int64, err error) {
	var sent []minio.CompletePart
	for n := len(part); n > 0; {
		if len(sent) == mostParts {
			return 0, fail("put", ErrTooLarge)
		}
		sum := sha256.Sum256(part[:n])
		p, err := s.core.PutObjectPart(ctx, s.bucket, key, upload, len(sent)+1, bytes.NewReader(part[:n]), int64(n),
			minio.PutObjectPartOptions{Sha256Hex: hex.EncodeToString(sum[:])})
		if err != nil {
			return 0, err
		}
		sent = append(sent, minio.CompletePart{PartNumber: p.PartNumber, ETag: p.ETag})
		size += int64(n)
		if n, err = fill(body, part); err != nil {
			return 0, err
		}
	}
	var once minio.PutObjectOptions
	once.SetMatchETagExcept("*")
	_, err = s.core.CompleteMultipartUpload(ctx, s.bucket, key, upload, sent, once)
	return size, err
}

// fill reads as much as there is and fits.
func fill(r io.Reader, p []byte) (int, error) {
	n, err := io.ReadFull(r, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF { // only the end of r itself: source marks other errors
		err = nil
	}
	return n, err
}

// Abandon is described at Store.
func (s *S3) Abandon(ctx context.Context, keys ...string) error {
	if err := checkKeys("delete", keys...); err != nil {
		return err
	}
	for _, key := range keys {
		if err := s.core.RemoveIncompleteUpload(ctx, s.bucket, key); err != nil && codeOf(err) != minio.NoSuchUpload {
			return s3Error("delete", err)
		}
	}
	return nil
}

// send is one PUT. The server refuses bytes that are not those of sum, and, when
// once is set, any if the key is taken.
func (s *S3) send(ctx context.Context, key string, r io.ReadSeeker, size int64, sum string, once bool) (minio.UploadInfo, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return minio.UploadInfo{}, unreadable(err)
	}
	// Disabled is only the signing of each chunk: sum signs the whole body.
	o := minio.PutObjectOptions{DisableContentSha256: true, UserMetadata: map[string]string{sumKey: sum}}
	if once {
		o.SetMatchETagExcept("*")
	}
	body := &lent{r: r}
	defer func() { _ = body.take() }() // also when PutObject panics
	info, err := s.core.PutObject(ctx, s.bucket, key, body, size, "", sum, o)
	if broken := body.take(); broken != nil {
		return info, unreadable(broken)
	}
	return info, err
}

// lent is the caller's reader for as long as one request lasts. The transport
// may go on reading after the reply is there; by then the next attempt, or the
// caller, is using the reader again. It has no Seek, so that minio-go does not
// repeat the request by itself.
type lent struct {
	mu    sync.Mutex
	r     io.Reader
	taken bool
	err   error // of the reader itself
}

func (l *lent) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taken {
		return 0, io.ErrClosedPipe
	}
	n, err := l.r.Read(p)
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}

// take ends the loan and returns the reader's own error.
func (l *lent) take() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken = true
	return l.err
}

// holds says whether the object has these bytes. An error that is not
// ErrNotExist means that nobody knows.
func (s *S3) holds(ctx context.Context, key string, size int64, sum string) (bool, error) {
	info, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return false, s3Error("put", err)
	}
	if info.Size != size {
		return false, nil
	}
	if theirs := info.UserMetadata[sumKey]; theirs != "" {
		return theirs == sum, nil
	}
	// Copied here by a tool that dropped the metadata.
	r, _, err := s.Get(ctx, key)
	if err != nil {
		return false, err
	}
	defer func() { _ = r.Close() }()
	theirs, err := copyDigest(ctx, io.Discard, r, size)
	return theirs == sum, err
}

// pause waits 100 to 300 ms.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(100*time.Millisecond + mathrand.N(200*time.Millisecond)): //nolint:gosec // spreads retries, decides nothing
		return nil
	}
}

// Get is described at Store.
func (s *S3) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	if err := checkKeys("get", key); err != nil {
		return nil, 0, err
	}
	body, info, _, err := s.core.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, 0, s3Error("get", err)
	}
	return content{body, s3Error}, info.Size, nil
}

// Delete is described at Store.
func (s *S3) Delete(ctx context.Context, keys ...string) error {
	if err := checkKeys("delete", keys...); err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	keys = slices.Clone(keys)
	slices.Sort(keys)
	keys = slices.Compact(keys)
	versioned, err := s.versioned(ctx)
	if err != nil {
		return s3Error("delete", err)
	}
	if versioned {
		return s.deleteVersions(ctx, keys)
	}
	all := make([]minio.ObjectInfo, len(keys))
	for i, key := range keys {
		all[i].Key = key
	}
	failed, err := s.remove(ctx, all)
	return undeleted(failed, len(keys), s3Error("delete", err))
}

// deleteVersions removes every version by its id: a delete without one would only add
// a marker on top. A key is written once, so what comes behind its listing comes behind
// the deletion.
func (s *S3) deleteVersions(ctx context.Context, keys []string) error {
	var all []minio.ObjectInfo
	for _, key := range keys {
		versions, err := s.versions(ctx, key)
		if err != nil {
			return s3Error("delete", err)
		}
		all = append(all, versions...)
	}
	if len(all) == 0 {
		return nil
	}
	failed, err := s.remove(ctx, all)
	return undeleted(min(failed, len(keys)), len(keys), s3Error("delete", err))
}

// versions lists what there is of exactly this key, delete markers too.
func (s *S3) versions(ctx context.Context, key string) ([]minio.ObjectInfo, error) {
	var all []minio.ObjectInfo
	for v := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: key, Recursive: true, WithVersions: true}) {
		if v.Err != nil {
			return nil, v.Err
		}
		if v.Key != key {
			break // longer keys come after it
		}
		all = append(all, minio.ObjectInfo{Key: key, VersionID: v.VersionID})
	}
	return all, ctx.Err() // an ended context ends the listing without a word
}

// remove deletes and counts what was not confirmed one by one.
func (s *S3) remove(ctx context.Context, all []minio.ObjectInfo) (failed int, first error) {
	results, err := s.core.RemoveObjectsWithIter(ctx, s.bucket, slices.Values(all), minio.RemoveObjectsOptions{})
	if err != nil {
		return len(all), err
	}
	confirmed := 0
	for result := range results {
		if result.Err == nil || codeOf(result.Err) == minio.NoSuchKey {
			confirmed++
		} else if first == nil {
			first = result.Err
		}
	}
	if confirmed == len(all) {
		return 0, nil
	}
	if first == nil {
		first = ctx.Err()
	}
	if first == nil {
		first = errors.New("not every deletion was answered")
	}
	return max(0, len(all)-confirmed), first
}

// versioned asks each time: somebody may turn versions on while we run.
func (s *S3) versioned(ctx context.Context) (bool, error) {
	c, err := s.core.GetBucketVersioning(ctx, s.bucket)
	if codeOf(err) == minio.NotImplemented {
		return false, nil // the server knows no versions
	}
	return c.Enabled() || c.Suspended(), err
}

// List is described at Store.
func (s *S3) List(ctx context.Context, prefix, after string, limit int) ([]Info, error) {
	if err := checkList(prefix, limit); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(after, prefix) { // which MinIO refuses when it lists versions
		if after > prefix {
			return nil, nil
		}
		after = ""
	}
	versioned, err := s.versioned(ctx)
	if err != nil {
		return nil, s3Error("list", err)
	}
	noOwner := false
	var found []Info
	marker := false // the last one found is so far only a delete marker
	for o := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{
		Prefix: prefix, StartAfter: after, MaxKeys: min(limit, 1000),
		Recursive: true, WithVersions: versioned, FetchOwner: &noOwner,
	}) {
		if o.Err != nil {
			return nil, s3Error("list", o.Err)
		}
		info := Info{Key: o.Key, Size: o.Size, Modified: o.LastModified.UTC()}
		if n := len(found); n > 0 && found[n-1].Key == o.Key {
			if marker && !o.IsDeleteMarker {
				info.Hidden = true
				found[n-1], marker = info, false
			}
			continue
		}
		if len(found) == limit {
			break
		}
		info.Hidden = o.IsDeleteMarker
		found, marker = append(found, info), o.IsDeleteMarker
	}
	return found, s3Error("list", ctx.Err()) // an ended context ends the listing without a word
}

// Check is described at Store.
func (s *S3) Check(ctx context.Context) error {
	if err := s.prove(ctx, "check"); err != nil {
		return err
	}
	const key = probes + "write.bin" // always the same: a crash leaves at most one
	info, err := s.probe(ctx, key, false)
	if err == nil {
		err = s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{VersionID: info.VersionID})
	}
	return s3Error("check", err)
}

// undeleted is the error of a Delete that left objects behind.
func undeleted(failed, all int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%d of %d objects may not be deleted: %w", max(1, failed), all, err)
}

func codeOf(err error) string {
	var r minio.ErrorResponse
	errors.As(err, &r)
	return r.Code
}

func statusOf(err error) int {
	var r minio.ErrorResponse
	errors.As(err, &r)
	return r.StatusCode
}

// isTaken: the key holds an object, or another writer is just making one.
func isTaken(err error) bool {
	return statusOf(err) == http.StatusPreconditionFailed || statusOf(err) == http.StatusConflict
}

// isTransient: the request may have happened, or may do so when sent again.
func isTransient(ctx context.Context, err error) bool {
	var ours *Error
	if ctx.Err() != nil || errors.As(err, &ours) {
		return false
	}
	var response minio.ErrorResponse
	if !errors.As(err, &response) {
		return true
	}
	switch response.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusInsufficientStorage:
		return false
	}
	return response.StatusCode >= 500
}

// IsAway reports whether nothing is known to be wrong with the settings: the
// server, or the way to it, is down or too busy. A full one is too: objects can
// be read and deleted.
func IsAway(err error) bool {
	var response minio.ErrorResponse
	if errors.As(err, &response) {
		switch response.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests:
			return true
		case http.StatusNotImplemented: // a server that does not know If-None-Match
			return false
		}
		return response.StatusCode >= 500
	}
	var network *url.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && tlsCode(err) == ""
}

var plainCode = regexp.MustCompile(`^[A-Za-z0-9]{1,64}$`)

// s3Error keeps the code of a server's answer and leaves out its words, which
// quote keys.
func s3Error(op string, err error) error {
	var clean *Error
	if err == nil || errors.As(err, &clean) {
		return err
	}
	var r minio.ErrorResponse
	if !errors.As(err, &r) {
		return &Error{Op: op, Code: connectionCode(err), err: err}
	}
	e := &Error{Op: op, Code: r.Code, err: err}
	if !plainCode.MatchString(r.Code) {
		e.Code = "status " + strconv.Itoa(r.StatusCode)
	}
	switch {
	case r.StatusCode == http.StatusInsufficientStorage, r.Code == "XMinioStorageFull",
		strings.Contains(strings.ToLower(r.Message), "no space left"):
		e.kind = ErrFull
	case r.Code == minio.NoSuchKey:
		e.kind = ErrNotExist
	}
	return e
}

// connectionCode is the reason why no answer came, as far as an operator can
// mend it.
func connectionCode(err error) string {
	if code := tlsCode(err); code != "" {
		return code
	}
	return systemCode(err, "unreachable")
}

// tlsCode is what is wrong between our TLS and theirs, which stays until
// somebody mends it; else it is empty.
func tlsCode(err error) string {
	var authority x509.UnknownAuthorityError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var operation *net.OpError
	switch {
	case errors.As(err, &authority):
		return "the server's certificate is of an unknown authority"
	case errors.As(err, &certificate):
		return "the server's certificate is not valid"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS"
	case errors.As(err, &operation) && operation.Op == "remote error": // crypto/tls: an alert
		return "the server refused the TLS handshake; it needs version 1.3"
	}
	return ""
}
