package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"zimage/internal/problem"
)

// anonymous is all of an answer that may tell something: everything but the ids
// and times that every answer has of its own.
func anonymous(t *testing.T, a answered) string {
	t.Helper()
	id := a.Header.Get("X-Request-ID")
	if id == "" || a.Header.Get("Date") == "" {
		t.Fatalf("%v", a.Header)
	}
	header := a.Header.Clone()
	header.Del("X-Request-ID")
	header.Del("Date")
	var b strings.Builder
	if err := header.Write(&b); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d\n%s\n%s", a.status, b.String(), strings.ReplaceAll(a.body, id, "ID"))
}

// Nobody learns by an answer whether an address has an account: what is sent
// back is the same to the letter.
func TestAttack_UserEnumerationByAnswer(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		r.joined().withApp()
		closed := "closed@example.org"
		r.person("closed")
		gone := r.signIn(closed, "some long words for anybody")
		gone.want(202, "DELETE", "/v1/account", `{"password":"some long words for anybody"}`)
		suspended := "ben@example.org"
		if _, err := r.db.Exec(t.Context(), `UPDATE subjects SET suspended_at = 1 WHERE id = ?`, r.ownerOf(suspended)); err != nil {
			t.Fatal(err)
		}
		taken := []string{eveAddress, strings.ToUpper(eveAddress), "ada@example.org", closed, suspended}
		n := 0
		for what, c := range map[string]struct {
			path, body string
			status     int
		}{
			"sign-up":             {"/v1/account", `{"email":"%[1]s","username":"somebody_%[2]d","password":"nine slow ferries cross the bay","old_enough":true}`, 202},
			"sign-in":             {"/v1/session", `{"email":"%[1]s","password":"not the password"}`, 401},
			"sign-in with a code": {"/v1/session", `{"email":"%[1]s","password":"not the password","code":"000000"}`, 401},
			"reset":               {"/v1/account/password/reset", `{"email":"%[1]s"}`, 202},
		} {
			ask := func(email string) answered {
				n++
				return (&browser{rig: r}).want(c.status, "POST", c.path, fmt.Sprintf(c.body, email, n))
			}
			free := anonymous(t, ask("free@example.org"))
			for _, email := range taken {
				if got := anonymous(t, ask(email)); got != free {
					t.Errorf("%s with %s:\n%s\nwith a free address:\n%s", what, email, got, free)
				}
			}
		}
		// Nor by how soon attempts are too many; the network's count is another.
		count := func(email string) (n int) {
			for ; n < 40; n++ {
				if a := (&browser{rig: r}).do("POST", "/v1/session", credentials(email, "not the password")); a.status == 429 {
					return n
				}
				r.calm("network:")
			}
			return n
		}
		r.person("dog")
		if one, other := count("dog@example.org"), count("free@example.com"); one != other || one > 20 {
			t.Errorf("with an account attempts are too many after %d, without one after %d", one, other)
		}
	})
}

// calm forgets the counts whose names begin like this.
func (r *rig) calm(bucket string) {
	r.t.Helper()
	if _, err := r.db.Exec(r.t.Context(), `DELETE FROM throttles WHERE bucket LIKE ?`, bucket+"%"); err != nil {
		r.t.Fatal(err)
	}
}

// networks are those that are counted.
func (r *rig) networks() (list []string) {
	r.t.Helper()
	if err := r.db.Select(r.t.Context(), &list, `SELECT bucket FROM throttles WHERE bucket LIKE 'network:%'`); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// guess fails to sign in, as somebody new each time.
func (r *rig) guess(i int, headers ...string) int {
	r.t.Helper()
	a := (&browser{rig: r}).do("POST", "/v1/session", credentials(fmt.Sprintf("n%d@example.org", i), "not the password"), headers...)
	if a.status != 401 && (a.status != 429 || a.Header.Get("Retry-After") == "") {
		r.t.Fatalf("%d %v %s", a.status, a.Header, a.body)
	}
	return a.status
}

// Nobody escapes the count of their network by making up a header.
func TestAttack_ForgedForwardedFor(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		limited := false
		for i := range 60 {
			forged := fmt.Sprintf("198.51.100.%d", i)
			limited = r.guess(i, "X-Forwarded-For", forged, "X-Real-IP", forged, "Forwarded", "for="+forged, "X-Client-IP", forged, "CF-Connecting-IP", forged) == 429 || limited
		}
		if !limited {
			t.Error("sixty failures under made-up addresses were not slowed down")
		}
		if n := len(r.networks()); n != 1 {
			t.Errorf("one client is counted as %d networks", n)
		}
		var rows []string
		if err := r.db.Select(t.Context(), &rows, `SELECT bucket FROM throttles`); err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if regexp.MustCompile(`127\.0|198\.51|example`).MatchString(row) {
				t.Errorf("a bucket is readable: %s", row)
			}
		}
		r.calm("")
		if got := r.place("X-Forwarded-For", "198.51.100.1"); got != "Near 127.0.0.1" {
			t.Errorf("the address is taken from a header: %s", got)
		}
	})
}

// place is where somebody signs in from, as the service sees it.
func (r *rig) place(headers ...string) string {
	r.t.Helper()
	return (&browser{rig: r}).want(200, "POST", "/v1/session", credentials("ada@example.org", "some long words for anybody"), headers...).text(r.t, "place")
}

// Behind proxies that are trusted, the last address that is none of theirs
// counts: what stands before it is the client's own invention.
func TestAttack_ForgedForwardedForBehindAProxy(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		o := r.options
		o.TrustedProxies = []string{"127.0.0.0/8", "10.1.0.0/16", "::1"}
		r.serve(o)
		for forwarded, want := range map[string]string{
			"":                                               "127.0.0.1",
			"203.0.113.7":                                    "203.0.113.7",
			"198.51.100.1, 203.0.113.7":                      "203.0.113.7",
			"198.51.100.1, 203.0.113.7, 10.1.2.3":            "203.0.113.7",
			"127.0.0.1, 203.0.113.7":                         "203.0.113.7",
			"10.1.9.9, 203.0.113.7, 10.1.2.3":                "203.0.113.7",
			"203.0.113.7, 10.2.0.1":                          "10.2.0.1",
			"nonsense, 203.0.113.7, 10.1.2.3":                "203.0.113.7",
			"2001:db8::7, 10.1.2.3":                          "2001:db8::7",
			"::ffff:203.0.113.7":                             "203.0.113.7",
			"198.51.100.1, nonsense":                         "127.0.0.1",
			strings.Repeat("9.9.9.9, ", 200) + "203.0.113.7": "203.0.113.7",
		} {
			if got := r.place("X-Forwarded-For", forwarded, "X-Real-IP", "198.51.100.9", "Forwarded", "for=198.51.100.9"); got != "Near "+want {
				t.Errorf("%.60q: %s, want %s", forwarded, got, want)
			}
		}

		// A proxy that adds a line of its own below the client's.
		req, err := http.NewRequest("POST", r.url+"/v1/session", strings.NewReader(credentials("ada@example.org", "some long words for anybody")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header["X-Forwarded-For"] = []string{"198.51.100.1", "203.0.113.7"}
		if got := r.send(req).text(t, "place"); got != "Near 203.0.113.7" {
			t.Errorf("of two lines: %s", got)
		}

		// So the count cannot be escaped, and others do not pay.
		limited := false
		for i := range 60 {
			limited = r.guess(i, "X-Forwarded-For", fmt.Sprintf("198.51.100.%d, 203.0.113.66, 10.1.2.3", i)) == 429 || limited
		}
		if !limited {
			t.Error("sixty failures under made-up addresses were not slowed down")
		}
		if got := r.guess(99, "X-Forwarded-For", "203.0.113.67"); got != 401 {
			t.Errorf("another network is answered %d", got)
		}

		// Keys that do not hold are counted by the same address.
		refused := func(forwarded string) string {
			return r.do("GET", "/v1/models", "zi_made-up", "", "X-Forwarded-For", forwarded).text(t, "code")
		}
		code := ""
		for i := range 60 {
			code = refused(fmt.Sprintf("198.51.100.%d, 203.0.113.68", i))
		}
		if code != string(problem.RateLimited) {
			t.Errorf("the sixtieth made-up key is answered %s", code)
		}
		if code := refused("203.0.113.69"); code != string(problem.Unauthorized) {
			t.Errorf("another network's first is answered %s", code)
		}
	})
}

// Over a socket there is no address; a header makes none up unless proxies are
// named.
func TestAttack_ForgedForwardedForOverASocket(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		for want, trusted := range map[string][]string{"": nil, "Near 203.0.113.7": {"10.1.0.0/16"}} {
			o := r.options
			o.TrustedProxies = trusted
			r.serve(o)
			path := filepath.Join(t.TempDir(), "s")
			listener, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			s := &http.Server{Handler: r.api.Handler(), ReadHeaderTimeout: time.Minute}
			go func() { _ = s.Serve(listener) }()
			t.Cleanup(func() { _ = s.Close() })
			client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			}}}
			t.Cleanup(client.CloseIdleConnections)
			req, err := http.NewRequest("POST", "http://localhost/v1/session", strings.NewReader(credentials("ada@example.org", "some long words for anybody")))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("X-Forwarded-For", "198.51.100.1, 203.0.113.7")
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			var v sessionView
			if err := json.NewDecoder(res.Body).Decode(&v); err != nil || res.StatusCode != 200 || v.Place != want {
				t.Errorf("with %v trusted: %d, place %q (%v)", trusted, res.StatusCode, v.Place, err)
			}
			_ = res.Body.Close()
		}
	})
}

// A copied cookie is worth nothing after a new password or the first second factor,
// and what was begun with it is none either: a stream ends, a wait is refused, and a
// body that was held back changes nothing. The owner goes on.
func TestAttack_NothingBegunWithACopiedCookieOutlivesIt(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		for what, rotate := range map[string]func(b *browser){
			"a new password":   func(b *browser) { b.want(204, "PUT", "/v1/account/password", `{"password":"`+nextPassword+`"}`) },
			"the first factor": func(b *browser) { b.withApp() },
		} {
			t.Run(what, func(t *testing.T) {
				name := strings.ReplaceAll(what, " ", "-")
				owner := r.person(name)
				b := r.signIn(name+"@example.org", "some long words for anybody")
				stolen := b.token
				id := r.submit(owner)
				_, stream := r.open(t.Context(), id, stolen, "")
				if status, _ := state(t, stream); status != "queued" && status != "running" {
					t.Fatal(status)
				}
				waited := make(chan answered, 1)
				go func() {
					waited <- (&browser{rig: r, token: stolen}).do("GET", "/v1/generations/"+id, "", "Prefer", "wait=20")
				}()
				held := []func() int{
					r.holdBack("PATCH /v1/account", stolen, `{"profile":{"name":"Mallory"}}`),
					r.holdBack("POST /v1/generations", stolen, `{"prompt":"of the thief"}`),
				}

				rotate(b)
				began := time.Now()
				b.want(200, "GET", "/v1/session", "")
				for status := ""; status != "end"; {
					status, _ = state(t, stream)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("the stream lived for %v", took)
				}
				if a := <-waited; a.status != 401 {
					t.Errorf("the wait is answered %d %s", a.status, a.body)
				}
				for _, finish := range held {
					if status := finish(); status != 401 {
						t.Errorf("a request whose body was held back is answered %d", status)
					}
				}
				if a := b.want(200, "GET", "/v1/account", ""); strings.Contains(a.body, "Mallory") {
					t.Errorf("the thief's word counts: %s", a.body)
				}
				if a := b.want(200, "GET", "/v1/generations", ""); strings.Contains(a.body, "thief") {
					t.Errorf("the thief's work is done: %s", a.body)
				}
			})
		}
	})
}

// holdBack sends a request up to the middle of its body, and returns once it was let
// in. finish sends the rest, not before it counts as late, and returns the status.
func (r *rig) holdBack(line, session, body string) (finish func() int) {
	r.t.Helper()
	server := httptest.NewServer(r.api.Handler()) // without the rig's timeouts
	r.t.Cleanup(server.Close)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	answers := bufio.NewReader(conn)
	half := len(body) / 2
	send := func(text string) {
		r.t.Helper()
		if _, err := io.WriteString(conn, text); err != nil {
			r.t.Fatal(err)
		}
	}
	status := func() int {
		r.t.Helper()
		res, err := http.ReadResponse(answers, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	send(fmt.Sprintf("%s HTTP/1.1\r\nHost: x\r\nCookie: %s=%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		line, loopbackCookie, session, len(body)))
	if got := status(); got != http.StatusContinue { // told when the body is read
		r.t.Fatalf("the request is answered %d", got)
	}
	began := time.Now()
	send(body[:half])
	return func() int {
		r.t.Helper()
		time.Sleep(time.Until(began.Add(lateBody + 200*time.Millisecond)))
		send(body[half:])
		return status()
	}
}
