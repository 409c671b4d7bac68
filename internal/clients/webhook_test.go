package clients

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/account"
)

// The public libraries of Standard Webhooks, on what the service itself sends.
func TestWebhookExamplesTakeWhatTheServiceSends(t *testing.T) {
	t.Parallel()
	inBoth(t, "webhook", func(t *testing.T, example func(args ...string) *exec.Cmd) {
		s := start(t, append(usual, account.ScopeWebhooks)...)
		address := free(t)
		var made, rotated struct {
			Secret  string
			Webhook struct{ ID string }
		}
		s.call("POST", "/v1/webhooks", `{"url": "http://`+address+`/hook"}`, &made)
		id := made.Webhook.ID
		sendTest := func() { s.call("POST", "/v1/webhooks/"+id+"/test", "", &struct{}{}) }

		first := receive(t, example, made.Secret, address)
		var generation struct{ ID string }
		s.call("POST", "/v1/generations", `{"prompt": "a lighthouse in a storm at night"}`, &generation)
		first.says("generation.started " + generation.ID)
		first.says("generation.succeeded " + generation.ID)

		// For a day the secret before signs too.
		s.call("POST", "/v1/webhooks/"+id+"/rotate", "", &rotated)
		sendTest()
		first.says("webhook.test " + id)
		first.stop()
		second := receive(t, example, rotated.Secret, address)
		sendTest()
		second.says("webhook.test " + id)
		second.stop()

		third := receive(t, example, "whsec_"+strings.Repeat("b3RoZXJz", 4), address)
		sendTest()
		until(t, "it is refused with another secret", func() bool {
			var log struct {
				Data []struct {
					Attempts []struct{ Status int }
				}
			}
			s.call("GET", "/v1/webhooks/"+id+"/deliveries?limit=1", "", &log)
			last := log.Data[0].Attempts
			return len(last) > 0 && last[0].Status == http.StatusUnauthorized
		})
		third.stop()
		if lines := third.said(); len(lines) != 1 {
			t.Errorf("with another secret it said %q", lines)
		}
	})
}

// What docs/webhooks.md shows stands in the examples, but for how far it is indented.
func TestTheDocumentOfWebhooksShowsTheExamples(t *testing.T) {
	t.Parallel()
	read := func(path string) string {
		text, err := os.ReadFile("../../docs/" + path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	flat := func(text string) string { return regexp.MustCompile(`(?m)^[ \t]+`).ReplaceAllString(text, "") }
	document := read("webhooks.md")
	for language, example := range map[string]string{"go": "examples/webhook/main.go", "js": "examples/webhook.mjs"} {
		blocks := regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```").FindAllStringSubmatch(document, -1)
		if len(blocks) == 0 {
			t.Errorf("it shows nothing in %s", language)
		}
		for _, block := range blocks {
			if !strings.Contains(flat(read(example)), flat(block[1])) {
				t.Errorf("it shows what does not stand in %s:\n%s", example, block[1])
			}
		}
	}
}

// call asks the API as the user does; an empty body is none.
func (s *service) call(method, path, body string, answer any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode > 299 {
		s.t.Fatalf("%s %s: %d", method, path, res.StatusCode)
	}
	if err := json.NewDecoder(res.Body).Decode(answer); err != nil {
		s.t.Fatal(err)
	}
}

// receiver is an example that runs.
type receiver struct {
	t    *testing.T
	stop func()

	mu    sync.Mutex
	lines []string
}

// receive runs the example until the test ends or stop is called, and returns when it
// listens.
func receive(t *testing.T, example func(args ...string) *exec.Cmd, secret, address string) *receiver {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	cmd := example(port)
	cmd.Env = append(cmd.Env, "WEBHOOK_SECRET="+secret)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &receiver{t: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			r.mu.Lock()
			r.lines = append(r.lines, lines.Text())
			r.mu.Unlock()
		}
	}()
	r.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait()
	})
	t.Cleanup(r.stop)
	r.says("listening on http://" + address)
	return r
}

func (r *receiver) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// says waits until it has said a line.
func (r *receiver) says(line string) {
	r.t.Helper()
	until(r.t, fmt.Sprintf("it says %q", line), func() bool { return slices.Contains(r.said(), line) })
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}
