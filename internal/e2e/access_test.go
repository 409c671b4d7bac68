package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// closedWithin is how long a key or account that was closed may still be let in
// by another process, on open streams too.
const closedWithin = 5 * time.Second

// Access that one API process ends, ends at the other: keys, sessions and whole
// accounts, and what they have open.
func TestAccessEndsOnEveryProcess(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	one, two := c.API("api-1"), c.API("api-2")
	ask := func(api *Process, method, path, key, cookie, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, api.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
		}
		if cookie != "" {
			req.Header.Set("Cookie", "zimage="+cookie)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	status := func(api *Process, path, key, cookie string) int {
		t.Helper()
		res := ask(api, http.MethodGet, path, key, cookie, "")
		_ = res.Body.Close()
		return res.StatusCode
	}
	// stream opens an event stream and tells when it ends.
	stream := func(api *Process, key string) <-chan time.Time {
		t.Helper()
		g := ask(api, http.MethodPost, "/v1/generations", key, "", `{"prompt":"`+c.Canary+`"}`)
		var made struct{ ID string }
		if err := json.NewDecoder(g.Body).Decode(&made); err != nil || made.ID == "" {
			t.Fatalf("%d (%v)", g.StatusCode, err)
		}
		_ = g.Body.Close()
		res := ask(api, http.MethodGet, "/v1/generations/"+made.ID+"/events", key, "", "")
		lines := bufio.NewReader(res.Body)
		if _, err := lines.ReadString('\n'); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("the stream answers %d (%v)", res.StatusCode, err)
		}
		ended := make(chan time.Time, 1)
		go func() {
			_, _ = io.Copy(io.Discard, lines)
			_ = res.Body.Close()
			ended <- time.Now()
		}()
		return ended
	}
	// refused measures until the other process answers 401, and until the stream
	// there ends.
	refused := func(what string, since time.Time, key string, ended <-chan time.Time) {
		t.Helper()
		until(t, closedWithin+10*time.Second, what+" is refused", func() bool { return status(two, "/v1/models", key, "") == http.StatusUnauthorized })
		took := time.Since(since)
		var stream time.Duration
		select {
		case at := <-ended:
			stream = at.Sub(since)
		case <-time.After(closedWithin + 10*time.Second):
			t.Errorf("%s: the open stream goes on", what)
		}
		t.Logf("%s: refused by the other process after %v, its stream there ended after %v", what, took.Round(time.Millisecond), stream.Round(time.Millisecond))
		if took > closedWithin || stream > closedWithin {
			t.Errorf("%s: %v and %v, want at most %v", what, took, stream, closedWithin)
		}
	}

	// A key.
	key := c.CLI("", "key", "create", "--email", "e2e@example.org", "--name", "to be revoked")
	var id string
	for line := range strings.Lines(c.CLI("", "key", "list", "--email", "e2e@example.org")) {
		if strings.Contains(line, "to be revoked") {
			id, _, _ = strings.Cut(line, " ")
		}
	}
	if got := status(two, "/v1/models", key, ""); got != http.StatusOK {
		t.Fatalf("the key is answered %d", got)
	}
	ended := stream(two, key)
	c.CLI("", "key", "revoke", "--email", "e2e@example.org", id)
	refused("a revoked key", time.Now(), key, ended)

	// A session: at once, nothing of it is remembered anywhere.
	const credentials = `{"email":"e2e@example.org","password":"correct horse battery staple"}`
	in := ask(one, http.MethodPost, "/v1/session", "", "", credentials)
	_ = in.Body.Close()
	if in.StatusCode != http.StatusOK || len(in.Cookies()) != 1 {
		t.Fatalf("signing in is answered %d", in.StatusCode)
	}
	cookie := in.Cookies()[0].Value
	if got := status(two, "/v1/session", "", cookie); got != http.StatusOK {
		t.Fatalf("the session is answered %d by the other process", got)
	}
	out := ask(one, http.MethodDelete, "/v1/session", "", cookie, "")
	_ = out.Body.Close()
	if got := status(two, "/v1/session", "", cookie); got != http.StatusUnauthorized {
		t.Errorf("after the sign-out the other process answers %d", got)
	}

	// The account: its keys too, without anybody revoking them.
	in = ask(one, http.MethodPost, "/v1/session", "", "", credentials)
	_ = in.Body.Close()
	ended = stream(two, c.Key)
	closed := ask(one, http.MethodDelete, "/v1/account", "", in.Cookies()[0].Value, `{"password":"correct horse battery staple"}`)
	_ = closed.Body.Close()
	if closed.StatusCode != http.StatusAccepted {
		t.Fatalf("closing is answered %d", closed.StatusCode)
	}
	refused("a key of a closed account", time.Now(), c.Key, ended)
	again := ask(two, http.MethodPost, "/v1/session", "", "", credentials)
	_ = again.Body.Close()
	if again.StatusCode != http.StatusUnauthorized {
		t.Errorf("signing in after closing is answered %d", again.StatusCode)
	}
}
