package clients

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/testenv"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "zimage-examples")
	if err != nil {
		panic(err)
	}
	built = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

var built string // the folder of the examples in Go

var build = sync.OnceValues(func() ([]byte, error) {
	return exec.Command("go", "build", "-o", built, "../../docs/examples/...").CombinedOutput()
})

// inBoth runs test with the example of this name in JavaScript and in Go.
func inBoth(t *testing.T, name string, test func(t *testing.T, example func(args ...string) *exec.Cmd)) {
	t.Run("JavaScript", func(t *testing.T) {
		t.Parallel()
		test(t, func(args ...string) *exec.Cmd { return testenv.Node(t, append([]string{name + ".mjs"}, args...)...) })
	})
	t.Run("Go", func(t *testing.T) {
		t.Parallel()
		if out, err := build(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		test(t, func(args ...string) *exec.Cmd {
			cmd := exec.CommandContext(t.Context(), filepath.Join(built, name), args...)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
			return cmd
		})
	})
}

func TestPollingExamples(t *testing.T) {
	t.Parallel()
	inBoth(t, "poll", func(t *testing.T, example func(args ...string) *exec.Cmd) {
		s := start(t, usual...)
		file := filepath.Join(s.directory, "out.png")
		said, err := s.as(example("a lighthouse in a storm at night", file))
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(text, []byte("\x89PNG")) {
			t.Errorf("%d bytes of no PNG, %v", len(text), err)
		}
		if !regexp.MustCompile(`^` + regexp.QuoteMeta(file) + `  seed \d+\n$`).MatchString(said) {
			t.Errorf("it said %q", said)
		}
		// What is wrong is told in the service's words.
		s.key = "zi_nobody"
		if _, err := s.as(example("a lighthouse", file)); err == nil || !strings.Contains(err.Error(), "(unauthorized, req_") {
			t.Errorf("with a wrong key: %v", err)
		}
	})
}

func TestStreamingExamples(t *testing.T) {
	t.Parallel()
	inBoth(t, "stream", func(t *testing.T, example func(args ...string) *exec.Cmd) {
		s := start(t, usual...)
		said, err := s.as(example("a lighthouse in a storm at night", filepath.Join(s.directory, "out.png")))
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`^(queued 0 %\n)*(running \d+ %\n)*succeeded 100 %\n.+\n$`).MatchString(said) {
			t.Errorf("it said %q", said)
		}
		s.key = "zi_nobody"
		if _, err := s.as(example("a lighthouse", "")); err == nil || !strings.Contains(err.Error(), "(unauthorized, req_") {
			t.Errorf("with a wrong key: %v", err)
		}
	})
}

// A service whose first stream breaks in the middle.
func TestStreamingExamplesGoOnAfterABreak(t *testing.T) {
	t.Parallel()
	inBoth(t, "stream", func(t *testing.T, example func(args ...string) *exec.Cmd) {
		var asked []string // what they had seen, at each opening
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			const state = "id: %d\ndata: {\"id\": \"gen_1\", \"status\": %q, \"progress\": {\"fraction\": %d}, \"images\": [%s]}\n\n"
			switch {
			case r.Method == http.MethodPost:
				_, _ = io.WriteString(w, `{"id": "gen_1", "status": "queued"}`)
			case !strings.HasSuffix(r.URL.Path, "/events"):
				_, _ = io.WriteString(w, "picture")
			case len(asked) == 0:
				asked = append(asked, r.Header.Get("Last-Event-ID"))
				_, _ = fmt.Fprintf(w, state, 2, "running", 0, "")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			default:
				asked = append(asked, r.Header.Get("Last-Event-ID"))
				_, _ = fmt.Fprintf(w, state, 4, "succeeded", 1, `{"url": "/picture"}`)
			}
		}))
		s := &service{url: server.URL, key: "zi_abc"}
		said, err := s.as(example("a lighthouse", filepath.Join(t.TempDir(), "out.png")))
		server.Close()
		if err != nil || !strings.HasPrefix(said, "running 0 %\nsucceeded 100 %\n") || !slices.Equal(asked, []string{"", "2"}) {
			t.Errorf("%v; it said %q and opened the stream after %q", err, said, asked)
		}
	})
}

// The public libraries of Standard Webhooks, on bodies that are signed as the
// standard says.
func TestWebhookExamples(t *testing.T) {
	t.Parallel()
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	inBoth(t, "webhook", func(t *testing.T, example func(args ...string) *exec.Cmd) {
		cmd := example("0")
		cmd.Env = append(cmd.Env, "WEBHOOK_SECRET="+secret)
		said, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		lines := bufio.NewScanner(said)
		lines.Scan()
		address, ok := strings.CutPrefix(lines.Text(), "listening on ")
		if !ok {
			t.Fatalf("it said %q", lines.Text())
		}

		now := time.Now()
		body := func(id string) string {
			return `{"type": "generation.succeeded", "timestamp": "2026-01-15T09:30:00Z", "data": {"id": "` + id + `"}}`
		}
		deliver := func(id, body, signature string, at time.Time) int {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Webhook-Id", id)
			req.Header.Set("Webhook-Timestamp", fmt.Sprint(at.Unix()))
			req.Header.Set("Webhook-Signature", signature)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return 0
			}
			_ = res.Body.Close()
			return res.StatusCode
		}
		signed := sign(t, secret, "msg_1", now, body("gen_1"))
		other := sign(t, "whsec_"+base64.StdEncoding.EncodeToString([]byte("another secret of 24 byt")), "msg_2", now, body("gen_2"))
		long := now.Add(-10 * time.Minute)
		large := body(strings.Repeat("x", 2<<20))
		for _, tt := range []struct {
			name, id, body, signature string
			at                        time.Time
			good                      bool
		}{
			{"right", "msg_1", body("gen_1"), signed, now, true},
			{"once more", "msg_1", body("gen_1"), signed, now, true},
			{"another body", "msg_1", body("gen_9"), signed, now, false},
			{"another id", "msg_9", body("gen_1"), signed, now, false},
			{"another time", "msg_1", body("gen_1"), signed, now.Add(time.Second), false},
			{"another secret", "msg_2", body("gen_2"), other, now, false},
			{"while the secret changes", "msg_2", body("gen_2"), other + " " + sign(t, secret, "msg_2", now, body("gen_2")), now, true},
			{"long ago", "msg_3", body("gen_3"), sign(t, secret, "msg_3", long, body("gen_3")), long, false},
			{"not signed", "msg_3", body("gen_3"), "", now, false},
			{"too large", "msg_4", large, sign(t, secret, "msg_4", now, large), now, false},
		} {
			if got := deliver(tt.id, tt.body, tt.signature, tt.at); tt.good != (got == http.StatusNoContent) {
				t.Errorf("%s: it answers %d", tt.name, got)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		var told []string
		for lines.Scan() {
			told = append(told, lines.Text())
		}
		if got := strings.Join(told, ", "); got != "generation.succeeded gen_1, generation.succeeded gen_2" {
			t.Errorf("it told %s", got)
		}
	})
}

// sign is the signature of the standard: HMAC-SHA256 over id, time and body.
func sign(t *testing.T, secret, id string, at time.Time, body string) string {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
