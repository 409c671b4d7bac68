package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func client(t *testing.T, s Settings) *Client {
	t.Helper()
	s.Name = "gpu"
	c, err := NewClient(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientSendsTheCredentialAndFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Store(true) }))
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
			return
		}
		if r.Header.Get("X-Key") != "Bearer s3cret" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer server.Close()
	c := client(t, Settings{URL: server.URL + "/", Auth: Auth{Header: "X-Key", Scheme: "Bearer", File: write(t, " s3cret\n")}})
	if err := c.JSON(t.Context(), http.MethodGet, "/", nil, nil, MaxStatus); err != nil {
		t.Error(err)
	}
	err := c.JSON(t.Context(), http.MethodPost, "/away", struct{}{}, nil, MaxStatus)
	if CodeOf(err) != CodeFailed || FaultOf(err) != FaultEngine || elsewhere.Load() {
		t.Errorf("redirect: %v, followed: %v", err, elsewhere.Load())
	}
	for name, text := range map[string]string{"empty": "\n", "two lines": "a\r\nX-Admin: 1"} {
		_, err := NewClient(Settings{Name: "gpu", URL: server.URL, Auth: Auth{Header: "X-Key", File: write(t, text)}})
		if err == nil || !strings.Contains(err.Error(), "auth.file") || strings.Contains(err.Error(), "Admin") {
			t.Errorf("%s credential: %v", name, err)
		}
	}
}

func TestClientUsesNoProxy(t *testing.T) {
	t.Parallel()
	c := client(t, Settings{URL: "http://127.0.0.1:1"})
	if c.http.Transport.(credentialed).RoundTripper.(*http.Transport).Proxy != nil {
		t.Error("the client would send prompts to a proxy from the environment")
	}
}

func TestPromise_X1_EnginesAreSpokenToInTLS13(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		max   uint16
		known bool
		ok    bool
	}{{"1.3", tls.VersionTLS13, true, true}, {"1.2", tls.VersionTLS12, true, false}, {"unknown authority", tls.VersionTLS13, false, false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
			server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tt.max}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			s := Settings{URL: server.URL}
			if tt.known {
				s.TLS.CAFile = write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
			}
			err := client(t, s).JSON(t.Context(), http.MethodGet, "/", nil, nil, MaxStatus)
			if (err == nil) != tt.ok {
				t.Errorf("%v", err)
			}
			if !tt.ok && CodeOf(err) != CodeUnreachable {
				t.Errorf("code %s", CodeOf(err))
			}
		})
	}
	if _, err := NewClient(Settings{Name: "gpu", URL: "https://localhost", TLS: TLS{CAFile: write(t, "nothing")}}); err == nil || !strings.Contains(err.Error(), "tls.ca_file") {
		t.Errorf("an authority file without certificate: %v", err)
	}
	if _, err := NewClient(Settings{Name: "gpu", URL: "http://10.0.0.7"}); err == nil {
		t.Error("plain http to another machine was taken")
	}
}

func TestClientSpeaksToASocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "e.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, `{"path":"`+r.URL.Path+`"}`) })}
	go func() { _ = server.Serve(l) }()
	defer func() { _ = server.Close() }()
	var answer struct{ Path string }
	if err := client(t, Settings{URL: "unix:" + path}).JSON(t.Context(), http.MethodGet, "/health", nil, &answer, MaxStatus); err != nil || answer.Path != "/health" {
		t.Errorf("%q, %v", answer.Path, err)
	}
}

func TestClientCutsLargeAnswers(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	cut := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/announced" {
			w.Header().Set("Content-Length", "3221225472")
		}
		zeros := make([]byte, 64<<10)
		for sent.Load() < 3<<30 {
			n, err := w.Write(zeros)
			sent.Add(int64(n))
			if err != nil {
				break
			}
		}
		cut <- struct{}{}
	}))
	defer server.Close()
	c := client(t, Settings{URL: server.URL})
	for _, path := range []string{"/", "/announced"} {
		sent.Store(0)
		_, err := c.Bytes(t.Context(), http.MethodGet, path, nil, 1<<20)
		if CodeOf(err) != CodeTooLarge || FaultOf(err) != FaultEngine {
			t.Errorf("%s: %v", path, err)
		}
		<-cut
		if n := sent.Load(); n > 64<<20 { // what socket buffers may hold, generously
			t.Errorf("%s: the server got rid of %d bytes", path, n)
		}
	}
}

func TestErrorsOfTransportAndStatus(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			<-release
		case "/half":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
		case "/html":
			_, _ = io.WriteString(w, "<html>a secret prompt</html>")
		}
	}))
	defer server.Close()
	defer close(release)
	c := client(t, Settings{URL: server.URL})
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var answer struct{}
	for _, tt := range []struct {
		name, path string
		ctx        context.Context
		client     *Client
		code       string
		fault      Fault
	}{
		{"hang", "/hang", short, c, CodeTimeout, FaultEngine},
		{"canceled", "/hang", gone, c, CodeCanceled, FaultOurs},
		{"half a body", "/half", t.Context(), c, CodeUnreachable, FaultEngine},
		{"no json", "/html", t.Context(), c, CodeFailed, FaultEngine},
		{"nobody there", "/", t.Context(), client(t, Settings{URL: "http://127.0.0.1:1"}), CodeUnreachable, FaultEngine},
	} {
		err := tt.client.JSON(tt.ctx, http.MethodGet, tt.path, nil, &answer, MaxStatus)
		if CodeOf(err) != tt.code || FaultOf(err) != tt.fault {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error is %v", tt.name, err)
		}
	}
	for status, want := range map[int]Error{
		301: {Fault: FaultEngine, Code: CodeFailed}, 400: {Fault: FaultUser, Code: CodeInvalid}, 401: {Fault: FaultEngine, Code: CodeFailed},
		404: {Fault: FaultEngine, Code: CodeFailed}, 422: {Fault: FaultUser, Code: CodeInvalid}, 429: {Fault: FaultOurs, Code: CodeBusy},
		500: {Fault: FaultEngine, Code: CodeFailed}, 503: {Fault: FaultEngine, Code: CodeFailed}, 504: {Fault: FaultEngine, Code: CodeTimeout},
	} {
		if got := StatusError(status); got.Fault != want.Fault || got.Code != want.Code || got.Status != status {
			t.Errorf("status %d: %+v", status, got)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", "Thu, 26 Nov 2026 12:00:00 GMT")
		w.Header().Set("Retry-After", r.URL.Query().Get("say"))
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	c := client(t, Settings{URL: server.URL})
	for said, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0": 0, "-5": 0, "99999999999": 24 * time.Hour, "soon": 0,
		"Thu, 26 Nov 2026 12:00:09 GMT": 9 * time.Second, "Thu, 26 Nov 2026 11:00:00 GMT": 0,
	} {
		err := c.JSON(t.Context(), http.MethodPost, "/?say="+url.QueryEscape(said), struct{}{}, nil, MaxStatus)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeBusy || e.Fault != FaultOurs || e.RetryAfter != want {
			t.Errorf("%q: %+v, want %v", said, e, want)
		}
	}
}

func TestCheckImage(t *testing.T) {
	t.Parallel()
	var p, j bytes.Buffer
	picture := image.NewGray(image.Rect(0, 0, 64, 32))
	if err := png.Encode(&p, picture); err != nil {
		t.Fatal(err)
	}
	if err := jpeg.Encode(&j, picture, nil); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name          string
		data          []byte
		width, height int
		ok            bool
	}{
		{"png", p.Bytes(), 64, 32, true}, {"jpeg", j.Bytes(), 64, 32, true},
		{"turned", p.Bytes(), 32, 64, false}, {"another size", j.Bytes(), 512, 512, false},
		{"head alone", p.Bytes()[:8], 64, 32, false}, {"nothing", nil, 64, 32, false}, {"svg", []byte("<svg width='64' height='32'>"), 64, 32, false},
	} {
		if err := CheckImage(tt.data, tt.width, tt.height); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if got := ImageLimit(1024, 1024); got != 9<<20 {
		t.Errorf("limit of 1024²: %d", got)
	}
	if got := ImageLimit(8192, 8192); got != MaxImage {
		t.Errorf("limit of 8192²: %d", got)
	}
}
