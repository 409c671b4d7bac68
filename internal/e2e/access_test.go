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

// The one user's words.
const (
	userAddress = "e2e@example.org"
	userSignIn  = `{"email":"` + userAddress + `","password":"correct horse battery staple"}`
	userProof   = `{"password":"correct horse battery staple"}`
)

// ask sends a request with a key or a session's token; empty: as nobody.
func (c *Cluster) ask(api *Process, method, path, token, body string) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, api.URL+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	switch {
	case strings.HasPrefix(token, "zs_"):
		req.Header.Set("Cookie", "zimage="+token)
	case token != "":
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	return res
}

// status is what a request is answered with.
func (c *Cluster) status(api *Process, method, path, token, body string) int {
	c.t.Helper()
	res := c.ask(api, method, path, token, body)
	_ = res.Body.Close()
	return res.StatusCode
}

// want is ask for an answer that must be this one; dest takes its body.
func (c *Cluster) want(status int, api *Process, method, path, token, body string, dest any) *http.Response {
	c.t.Helper()
	res := c.ask(api, method, path, token, body)
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != status {
		c.t.Fatalf("%s %s is answered %d, want %d", method, path, res.StatusCode, status)
	}
	if dest != nil {
		if err := json.NewDecoder(res.Body).Decode(dest); err != nil {
			c.t.Fatal(err)
		}
	}
	return res
}

// signIn opens a session and returns its token.
func (c *Cluster) signIn(api *Process) string {
	c.t.Helper()
	cookies := c.want(http.StatusOK, api, http.MethodPost, "/v1/session", "", userSignIn, nil).Cookies()
	if len(cookies) != 1 {
		c.t.Fatalf("signing in sets %d cookies", len(cookies))
	}
	return cookies[0].Value
}

// submits asks for a generation outside of what Audit knows.
func (c *Cluster) submits(api *Process, token, label string) (id string) {
	c.t.Helper()
	var made struct{ ID string }
	c.want(http.StatusAccepted, api, http.MethodPost, "/v1/generations", token, `{"prompt":"`+c.Prompt(label)+`"}`, &made)
	return made.ID
}

// stream opens an event stream and tells when it ends.
func (c *Cluster) stream(api *Process, token, generation string) <-chan time.Time {
	c.t.Helper()
	res := c.ask(api, http.MethodGet, "/v1/generations/"+generation+"/events", token, "")
	lines := bufio.NewReader(res.Body)
	if _, err := lines.ReadString('\n'); err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("the stream answers %d (%v)", res.StatusCode, err)
	}
	ended := make(chan time.Time, 1)
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		_ = res.Body.Close()
		ended <- time.Now()
	}()
	return ended
}

// ends measures from before a change until another process refuses the token,
// and until a stream that is open there ends. That process has just let the
// token in, so that it knows it by heart.
func (c *Cluster) ends(what string, other *Process, token string, open <-chan time.Time, change func()) {
	t := c.t
	t.Helper()
	if got := c.status(other, http.MethodGet, "/v1/models", token, ""); got != http.StatusOK {
		t.Fatalf("%s is answered %d before the change", what, got)
	}
	select {
	case <-open:
		t.Fatalf("%s: the stream ended before the change", what)
	default:
	}
	since := time.Now()
	change()
	until(t, closedWithin+10*time.Second, what+" is refused", func() bool {
		return c.status(other, http.MethodGet, "/v1/models", token, "") == http.StatusUnauthorized
	})
	took := time.Since(since)
	t.Logf("%s: refused by the other process %v after the call began", what, took.Round(time.Millisecond))
	c.closes(what, since, open)
	if took > closedWithin {
		t.Errorf("%s: refused after %v, want at most %v", what, took, closedWithin)
	}
}

// closes wants a stream to end in time.
func (c *Cluster) closes(what string, since time.Time, open <-chan time.Time) {
	c.t.Helper()
	select {
	case at := <-open:
		took := at.Sub(since)
		c.t.Logf("%s: its stream at the other process ended %v after the call began", what, took.Round(time.Millisecond))
		if took > closedWithin {
			c.t.Errorf("%s: its stream ended after %v, want at most %v", what, took, closedWithin)
		}
	case <-time.After(closedWithin + 10*time.Second):
		c.t.Errorf("%s: the open stream goes on", what)
	}
}

// Access that one API process ends, ends at the other: keys, sessions and whole
// accounts, and what they have open.
func TestPromise_R7_AccessEndsOnEveryProcess(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	one, two := c.API("api-1"), c.API("api-2")
	g := c.submits(one, c.Key, "waits") // there is no worker

	// A key, from API to API.
	session := c.signIn(one)
	var made struct {
		Token string
		Key   struct{ ID string }
	}
	c.want(http.StatusCreated, one, http.MethodPost, "/v1/keys", session, `{"name":"to be revoked","scopes":["generate","read"]}`, &made)
	c.ends("a revoked key", two, made.Token, c.stream(two, made.Token, g), func() {
		c.want(http.StatusNoContent, one, http.MethodDelete, "/v1/keys/"+made.Key.ID, session, "", nil)
	})

	// Sessions: at once, nothing of them is remembered anywhere.
	other := c.signIn(two)
	open := c.stream(one, other, g)
	ended := time.Now()
	c.want(http.StatusOK, one, http.MethodDelete, "/v1/sessions", session, "", nil)
	if got := c.status(two, http.MethodGet, "/v1/session", other, ""); got != http.StatusUnauthorized {
		t.Errorf("a session that was ended elsewhere is answered %d", got)
	}
	c.closes("an ended session", ended, open)
	c.want(http.StatusNoContent, one, http.MethodDelete, "/v1/session", session, "", nil)
	if got := c.status(two, http.MethodGet, "/v1/session", session, ""); got != http.StatusUnauthorized {
		t.Errorf("after the sign-out the other process answers %d", got)
	}

	// The account: its keys too, without anybody revoking them.
	session, other = c.signIn(one), c.signIn(two)
	open = c.stream(two, other, g)
	ended = time.Now()
	c.ends("a key of a closed account", two, c.Key, c.stream(two, c.Key, g), func() {
		c.want(http.StatusAccepted, one, http.MethodDelete, "/v1/account", session, userProof, nil)
		if got := c.status(two, http.MethodGet, "/v1/session", other, ""); got != http.StatusUnauthorized {
			t.Errorf("another session of the closed account is answered %d", got)
		}
	})
	c.closes("a session of a closed account", ended, open)
	if got := c.status(two, http.MethodPost, "/v1/session", "", userSignIn); got != http.StatusUnauthorized {
		t.Errorf("signing in after closing is answered %d", got)
	}
}

// What runs and waits when an account closes is stopped in the processes that
// have it, whoever closes it, and nothing comes of it.
func TestPromise_R7_ClosingStopsTheWorkOfOtherProcesses(t *testing.T) {
	t.Parallel()
	for name, closes := range map[string]func(c *Cluster, api *Process, session string){
		"over the API": func(c *Cluster, api *Process, session string) {
			c.want(http.StatusAccepted, api, http.MethodDelete, "/v1/account", session, userProof, nil)
		},
		"at the machine": func(c *Cluster, _ *Process, _ string) {
			c.CLI("", "user", "close", "--email", userAddress, "--reason", "asked for it by letter")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, Options{})
			one, two := c.API("api-1"), c.API("api-2")
			c.Scheduler("scheduler")
			c.Worker("worker")
			c.Engine.Hold()
			session := c.signIn(one)
			running := c.submits(one, c.Key, "running")
			call := c.Engine.Await(20*time.Second, c.Prompt("running"), 1)
			queued := c.submits(one, session, "queued")

			bySession, since := c.stream(two, session, queued), time.Now()
			c.ends("a key of the closed account", two, c.Key, c.stream(two, c.Key, running), func() { closes(c, one, session) })
			c.closes("a session of the closed account", since, bySession)
			until(t, 20*time.Second, "all work is canceled, or erased", func() bool {
				return c.Count(`SELECT count(*) FROM generations WHERE status <> 'canceled'`) == 0
			})
			until(t, 20*time.Second, "the engine is left", call.Left)
			call.Answer()
			c.leavesNothing(1)
			if c.Count(`SELECT count(*) FROM jobs WHERE ref IN (?, ?) AND state <> 'canceled'`, running, queued) != 0 {
				t.Error("a job goes on")
			}
		})
	}
}

// A worker that was frozen with a picture in its hands when the account closed
// comes too late with it.
func TestPromise_R7_ALateWorkersResultIsNotStored(t *testing.T) {
	t.Parallel()
	c := start(t, Options{})
	api := c.API("api")
	c.Scheduler("scheduler")
	late := c.Worker("late")
	c.Engine.Hold()
	session := c.signIn(api)
	g := c.submits(api, session, "late")
	call := c.Engine.Await(20*time.Second, c.Prompt("late"), 1)
	late.Freeze()
	call.Answer()
	until(t, 20*time.Second, "the engine has answered", call.Answered)
	c.Worker("heir")
	c.want(http.StatusAccepted, api, http.MethodDelete, "/v1/account", session, userProof, nil)
	until(t, time.Minute, "the work has ended without it", func() bool {
		return c.Count(`SELECT count(*) FROM generations WHERE id = ? AND status NOT IN ('canceled', 'failed')`, g) == 0
	})
	late.Thaw()
	// Its own word that it has come to this; the answer of a request would not say.
	until(t, 20*time.Second, "it learns that it is too late", func() bool { return strings.Contains(late.Log(), "attempt no longer counts") })
	c.leavesNothing(1)
}

// leavesNothing wants no image anywhere, and no call at the engine beyond these.
func (c *Cluster) leavesNothing(calls int) {
	t := c.t
	t.Helper()
	until(t, sweepTime, "no object is left", func() bool { return len(c.Objects()) == 0 })
	if n := c.Count(`SELECT count(*) FROM images`) + c.Count(`SELECT count(*) FROM generations WHERE status = 'succeeded'`); n != 0 {
		t.Errorf("%d images or successes", n)
	}
	if n := len(c.Engine.Calls("")); n != calls {
		t.Errorf("the engine was called %d times, want %d", n, calls)
	}
	c.auditCanary()
}
