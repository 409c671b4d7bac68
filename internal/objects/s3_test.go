package objects_test

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"

	"zimage/internal/objects"
	"zimage/internal/testenv"
)

// A fault stands between the store and its server. It sees each request, may
// answer it, and says whether it goes on to the server and whether the server's
// reply is cut off.
type fault func(w http.ResponseWriter, r *http.Request) (pass, cut bool)

// A proxy counts the requests for objects and applies a fault to them.
type proxy struct {
	server *httptest.Server
	mu     sync.Mutex
	fault  fault
	count  map[string]int // by method

	everything bool // also what is about no object of ours
}

func faulty(t *testing.T, b testenv.S3Bucket) (*proxy, testenv.S3Bucket) {
	t.Helper()
	p := &proxy{count: make(map[string]int)}
	target := b.Endpoint // b becomes the proxy's
	forward := &httputil.ReverseProxy{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: target})
		r.Out.Host = r.In.Host // it is signed
	}}
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		f := p.fault
		if p.everything || strings.HasPrefix(r.URL.Path, "/"+b.Bucket+"/images/") {
			p.count[r.Method]++
		} else {
			f = nil
		}
		p.mu.Unlock()
		pass, cut := true, false
		if f != nil {
			pass, cut = f(w, r)
		}
		switch {
		case cut:
			if pass {
				forward.ServeHTTP(httptest.NewRecorder(), r)
			}
			panic(http.ErrAbortHandler) // closes the connection
		case pass:
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(p.server.Close)
	b.Endpoint = strings.TrimPrefix(p.server.URL, "http://")
	return p, b
}

// with sets the fault and forgets the counts.
func (p *proxy) with(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	clear(p.count)
}

func (p *proxy) puts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count[http.MethodPut]
}

// once applies a fault to the first request of that method alone.
func once(method string, f fault) fault {
	var used bool
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) (bool, bool) {
		mu.Lock()
		first := !used && r.Method == method
		used = used || first
		mu.Unlock()
		if first {
			return f(w, r)
		}
		return true, false
	}
}

// each applies a fault to every request of that method.
func each(method string, f fault) fault {
	return func(w http.ResponseWriter, r *http.Request) (bool, bool) {
		if r.Method == method {
			return f(w, r)
		}
		return true, false
	}
}

func cutReply(http.ResponseWriter, *http.Request) (bool, bool)   { return true, true }
func cutRequest(http.ResponseWriter, *http.Request) (bool, bool) { return false, true }

func answer(status int, body string) fault {
	return func(w http.ResponseWriter, r *http.Request) (bool, bool) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return false, false
	}
}

func TestS3Faults(t *testing.T) {
	t.Parallel()
	const slow = `<Error><Code>SlowDown</Code><Message>images/sub_7k3</Message></Error>`
	const full = `<Error><Code>XMinioStorageFull</Code><Message>images/sub_7k3</Message></Error>`
	cases := []struct {
		name  string
		fault fault
		want  error // nil: success
		fails bool
		puts  int
		there bool
	}{
		{name: "reply cut", fault: once("PUT", cutReply), puts: 1, there: true},
		{name: "every reply to a PUT cut", fault: each("PUT", cutReply), puts: 1, there: true},
		{name: "request cut", fault: once("PUT", cutRequest), puts: 2, there: true},
		{name: "every request cut", fault: each("PUT", cutRequest), fails: true, puts: 2},
		{name: "503 once", fault: once("PUT", answer(503, slow)), puts: 2, there: true},
		{name: "503 always", fault: each("PUT", answer(503, slow)), fails: true, puts: 2},
		{name: "502 without a text", fault: each("PUT", answer(502, "<html>images/sub_7k3")), fails: true, puts: 2},
		{name: "full", fault: each("PUT", answer(507, full)), fails: true, want: objects.ErrFull, puts: 1},
		{name: "refused", fault: each("PUT", answer(403, "")), fails: true, puts: 1},
		{name: "another writer at work", fault: once("PUT", answer(409, `<Error><Code>ConditionalRequestConflict</Code></Error>`)), puts: 2, there: true},
		{name: "reply cut and nothing to be asked", fault: func(w http.ResponseWriter, r *http.Request) (bool, bool) {
			return r.Method == "PUT", true
		}, fails: true, puts: 1, there: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			direct := versionedBucket(t)
			p, b := faulty(t, direct)
			s := openS3(t, b)
			data := noise(200_000)
			p.with(c.fault)
			err := s.Put(t.Context(), key, bytes.NewReader(data), int64(len(data)))
			puts := p.puts()
			p.with(nil)
			if c.fails {
				silent(t, err)
				if c.want != nil {
					tells(t, err, c.want)
				}
			} else if err != nil {
				t.Errorf("Put: %v", err)
			}
			if puts != c.puts {
				t.Errorf("%d PUTs, want %d", puts, c.puts)
			}
			if there := get(t, s, key) != nil; there != c.there {
				t.Errorf("there: %v, want %v", there, c.there)
			}
			// Whatever happened, the caller's retry with the same bytes succeeds,
			// other bytes are refused, and one version exists.
			if c.there {
				other := noise(200_000)
				tells(t, s.Put(t.Context(), key, bytes.NewReader(other), int64(len(other))), objects.ErrExists)
			}
			put(t, s, key, data)
			if !bytes.Equal(get(t, s, key), data) {
				t.Error("other bytes are there")
			}
			if n := versionsOf(t, direct); n != 1 {
				t.Errorf("%d versions, want 1", n)
			}
		})
	}
}

func versionsOf(t *testing.T, b testenv.S3Bucket) int {
	t.Helper()
	n := 0
	for v := range client(t, b).ListObjectsIter(t.Context(), b.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		if v.Err != nil {
			t.Fatal(v.Err)
		}
		n++
	}
	return n
}

func TestS3DeleteLeavesNoVersion(t *testing.T) {
	t.Parallel()
	for _, suspended := range []bool{false, true} {
		b := versionedBucket(t)
		s := openS3(t, b)
		c := client(t, b)
		ctx := t.Context()
		// What others leave: overwritten objects, and markers on top of them.
		for _, k := range []string{key, "images/sub_7k3/gen_01/1/1.bin"} {
			for _, text := range []string{"one", "two", "three"} {
				if _, err := c.PutObject(ctx, b.Bucket, k, strings.NewReader(text), int64(len(text)), minio.PutObjectOptions{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.RemoveObject(ctx, b.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
			t.Fatal(err)
		}
		if suspended {
			if err := c.SuspendVersioning(ctx, b.Bucket); err != nil {
				t.Fatal(err)
			}
		}
		if get(t, s, key) != nil {
			t.Error("an object below a marker is served")
		}
		infos, err := s.List(ctx, "images/", "", 10)
		if err != nil || len(infos) != 2 || infos[0].Key != key || infos[0].Size != int64(len("three")) {
			t.Errorf("List = %+v, %v; want both keys, with the newest size", infos, err)
		}
		if one, err := s.List(ctx, "images/", "", 1); err != nil || len(one) != 1 {
			t.Errorf("List of 1 = %+v, %v", one, err)
		}
		if err := s.Delete(ctx, key, "images/sub_7k3/gen_01/1/1.bin"); err != nil {
			t.Fatal(err)
		}
		if n := versionsOf(t, b); n != 0 {
			t.Errorf("suspended %v: %d versions and markers left", suspended, n)
		}
	}
}

// In a bucket that keeps versions each key is listed once, and all that is there of them
// is deleted in one call.
func TestS3DeleteListsEachKeyOnce(t *testing.T) {
	t.Parallel()
	direct := versionedBucket(t)
	p, b := faulty(t, direct)
	p.everything = true
	s := openS3(t, b)
	var keys []string
	for n := range 5 {
		k := fmt.Sprintf("images/sub_7k3/gen_01/1/%d.bin", n)
		put(t, s, k, noise(100))
		keys = append(keys, k)
	}
	var mu sync.Mutex
	listed := map[string]int{}
	p.with(func(_ http.ResponseWriter, r *http.Request) (bool, bool) {
		mu.Lock()
		defer mu.Unlock()
		switch q := r.URL.Query(); {
		case q.Has("versions"):
			listed[q.Get("prefix")]++
		case q.Has("delete"):
			listed["delete"]++
		}
		return true, false
	})
	if err := s.Delete(t.Context(), append(keys, "images/sub_7k3/gen_01/1/9.bin")...); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, k := range append(keys, "images/sub_7k3/gen_01/1/9.bin", "delete") {
		if listed[k] != 1 {
			t.Errorf("%s: %d calls, want 1", k, listed[k])
		}
	}
	if n := versionsOf(t, direct); n != 0 {
		t.Errorf("%d versions are left", n)
	}
}

func TestS3DeleteThatFailsSaysHowMany(t *testing.T) {
	t.Parallel()
	// A server that acknowledges one key of the two and never mentions the other.
	s := openFake(t, `<DeleteResult><Deleted><Key>images/a/0.bin</Key></Deleted></DeleteResult>`)
	err := s.Delete(t.Context(), "images/a/0.bin", "images/a/1.bin")
	silent(t, err)
	if !strings.HasPrefix(err.Error(), "1 of 2 objects") {
		t.Errorf("the error does not count: %v", err)
	}
	s = openFake(t, `<DeleteResult><Error><Key>images/a/0.bin</Key><Code>AccessDenied</Code><Message>images</Message></Error><Deleted><Key>images/a/1.bin</Key></Deleted></DeleteResult>`)
	err = s.Delete(t.Context(), "images/a/0.bin", "images/a/1.bin")
	silent(t, err)
	if !strings.HasPrefix(err.Error(), "1 of 2 objects") || !strings.HasSuffix(err.Error(), "AccessDenied") {
		t.Errorf("the error does not count or name the code: %v", err)
	}
}

// fake is a server of few words: it takes every PUT except the second of a key,
// which it refuses unless it ignores the condition.
func fake(t *testing.T, ignores bool, deleted func(body string) string) testenv.S3Bucket {
	t.Helper()
	var mu sync.Mutex
	seen := make(map[string]bool)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch q := r.URL.Query(); {
		case q.Has("location"):
			_, _ = io.WriteString(w, `<LocationConstraint/>`)
		case q.Has("versioning"):
			w.WriteHeader(http.StatusNotImplemented)
			_, _ = io.WriteString(w, `<Error><Code>NotImplemented</Code></Error>`)
		case q.Has("delete"):
			_, _ = io.WriteString(w, deleted(string(body)))
		case r.Method == http.MethodPut:
			mu.Lock()
			defer mu.Unlock()
			if seen[r.URL.Path] && !ignores {
				w.WriteHeader(http.StatusPreconditionFailed)
			}
			seen[r.URL.Path] = true
		}
	}))
	t.Cleanup(server.Close)
	return testenv.S3Bucket{Endpoint: strings.TrimPrefix(server.URL, "http://"), Bucket: "pictures", AccessKey: "a", SecretKey: "s"}
}

// everything is the answer of a server that deleted all it was asked to.
func everything(body string) string {
	_, keys, _ := strings.Cut(body, "<Object>")
	keys, _, _ = strings.Cut(keys, "<Quiet>")
	keys = strings.ReplaceAll(strings.ReplaceAll(keys, "<Object>", ""), "</Object>", "")
	key, _, _ := strings.Cut(keys, "</Key>")
	return "<DeleteResult><Deleted>" + key + "</Key></Deleted></DeleteResult>"
}

func openFake(t *testing.T, deleted string) *objects.S3 {
	t.Helper()
	return openS3(t, fake(t, false, func(body string) string {
		if strings.Contains(body, "probe/") {
			return everything(body)
		}
		return deleted
	}))
}

func TestS3RefusesAServerThatOverwrites(t *testing.T) {
	t.Parallel()
	_, err := objects.OpenS3(t.Context(), s3Options(fake(t, true, everything)))
	if err == nil || !strings.Contains(err.Error(), "If-None-Match") {
		t.Errorf("got %v", err)
	}
}

func TestS3OpenTwiceAndConcurrently(t *testing.T) {
	t.Parallel()
	b := testenv.S3(t)
	errs := make([]error, 4)
	var wait sync.WaitGroup
	for i := range errs {
		wait.Go(func() { _, errs[i] = objects.OpenS3(t.Context(), s3Options(b)) })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if n := versionsOf(t, b); n != 0 {
		t.Errorf("opening left %d objects", n)
	}
}

func TestS3WrongKeysAndMissingServer(t *testing.T) {
	t.Parallel()
	b := testenv.S3(t)
	o := s3Options(b)
	o.SecretKey = "wrong-secret"
	_, err := objects.OpenS3(t.Context(), o)
	silent(t, err)
	if err != nil && strings.Contains(err.Error(), "secret") {
		t.Errorf("the error tells the secret: %v", err)
	}
	o = s3Options(b)
	o.Endpoint = "127.0.0.1:1"
	s, err := objects.OpenS3(t.Context(), o)
	if err != nil {
		t.Fatalf("a server that is away: %v", err)
	}
	for _, err := range []error{s.Check(t.Context()), s.Put(t.Context(), key, strings.NewReader("x"), 1)} {
		silent(t, err)
		if !strings.HasSuffix(err.Error(), "connection refused") {
			t.Errorf("the operator does not learn why: %v", err)
		}
	}
}

// gate is a door before a server: shut, it answers as proxies do.
func gate(t *testing.T, b testenv.S3Bucket, shut *atomic.Bool) testenv.S3Bucket {
	t.Helper()
	target := b.Endpoint
	forward := &httputil.ReverseProxy{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: target})
		r.Out.Host = r.In.Host // it is signed
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if shut.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	b.Endpoint = strings.TrimPrefix(server.URL, "http://")
	return b
}

func TestS3AwayAtOpenAndThere(t *testing.T) {
	t.Parallel()
	direct := testenv.S3(t)
	var shut atomic.Bool
	shut.Store(true)
	s := openS3(t, gate(t, direct, &shut))
	silent(t, s.Put(t.Context(), key, strings.NewReader("x"), 1))
	silent(t, s.Check(t.Context()))
	shut.Store(false)
	// All at once, as the workers come back.
	errs := make([]error, 8)
	var wait sync.WaitGroup
	for i := range errs {
		wait.Go(func() { errs[i] = s.Put(t.Context(), key, strings.NewReader("x"), 1) })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, key); string(got) != "x" {
		t.Errorf("got %q", got)
	}
	if n := versionsOf(t, direct); n != 1 {
		t.Errorf("%d objects, want the one", n)
	}
}

// What opening could not prove, the first write does.
func TestS3RefusesLaterAServerThatOverwrites(t *testing.T) {
	t.Parallel()
	var shut atomic.Bool
	shut.Store(true)
	s := openS3(t, gate(t, fake(t, true, everything), &shut))
	shut.Store(false)
	for range 2 {
		for _, err := range []error{s.Put(t.Context(), key, strings.NewReader("x"), 1), s.Check(t.Context())} {
			if err == nil || !strings.Contains(err.Error(), "If-None-Match") {
				t.Errorf("got %v", err)
			}
		}
	}
}

// A bucket that somebody removes is not a store without objects.
func TestS3BucketThatIsGone(t *testing.T) {
	t.Parallel()
	b := testenv.S3(t)
	s := openS3(t, b)
	if err := client(t, b).RemoveBucket(t.Context(), b.Bucket); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	_, _, err := s.Get(ctx, key)
	silent(t, err)
	if errors.Is(err, objects.ErrNotExist) {
		t.Error("Get says ErrNotExist")
	}
	silent(t, s.Check(ctx))
	silent(t, s.Delete(ctx, key))
	_, err = s.List(ctx, "", "", 1)
	silent(t, err)
}

func TestS3ComparesWithoutMetadata(t *testing.T) {
	t.Parallel()
	b := testenv.S3(t)
	s := openS3(t, b)
	if _, err := client(t, b).PutObject(t.Context(), b.Bucket, key, strings.NewReader("copied"), 6, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	put(t, s, key, []byte("copied"))
	tells(t, s.Put(t.Context(), key, strings.NewReader("differs"), 7), objects.ErrExists)
	tells(t, s.Put(t.Context(), key, strings.NewReader("COPIED"), 6), objects.ErrExists)
}

func TestPromise_X1_TheObjectStoreIsSpokenToInTLS13(t *testing.T) {
	t.Parallel()
	b := testenv.S3(t)
	serve := func(maxVersion uint16) (testenv.S3Bucket, string) {
		server := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: b.Endpoint})
			r.Out.Host = r.In.Host
		}})
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		server.TLS = &tls.Config{MaxVersion: maxVersion}
		server.StartTLS()
		t.Cleanup(server.Close)
		authority := filepath.Join(t.TempDir(), "ca.pem")
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		if err := os.WriteFile(authority, text, 0o600); err != nil {
			t.Fatal(err)
		}
		secure := b
		secure.Endpoint = server.Listener.Addr().String()
		return secure, authority
	}
	modern, authority := serve(tls.VersionTLS13)
	old, oldAuthority := serve(tls.VersionTLS12)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		bucket testenv.S3Bucket
		ca     string
		want   string // "": works
	}{
		{"1.3 and its authority", modern, authority, ""},
		{"unknown authority", modern, "", "unknown authority"},
		{"1.2", old, oldAuthority, "it needs version 1.3"},
		{"no TLS", b, authority, "does not speak TLS"},
		{"a CA file without a certificate", modern, empty, "holds no certificate"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := s3Options(c.bucket)
			o.TLS, o.CAFile = true, c.ca
			s, err := objects.OpenS3(t.Context(), o)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			put(t, s, key, []byte("over TLS"))
			if got := get(t, s, key); string(got) != "over TLS" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// An object that breaks off while it is read is an error, not a shorter object.
func TestS3GetCutMidway(t *testing.T) {
	t.Parallel()
	p, b := faulty(t, testenv.S3(t))
	s := openS3(t, b)
	data := noise(500_000)
	put(t, s, key, data)
	p.with(func(w http.ResponseWriter, r *http.Request) (bool, bool) {
		w.Header().Set("Content-Length", "500000")
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		_, _ = w.Write(data[:100_000])
		return false, true
	})
	r, _, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	got, err := io.ReadAll(r)
	silent(t, err)
	if len(got) >= len(data) {
		t.Errorf("%d bytes", len(got))
	}
}
