package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"zimage/internal/account"
	"zimage/internal/db"
	"zimage/internal/testenv"
)

func TestStrangers(t *testing.T) {
	t.Parallel()
	l := strangers{anybody: hall{most: 5, ofNear: 3, ofFar: 5}}
	var cut []string
	come := func(name, from string) *stranger {
		addr, _ := netip.ParseAddr(from)
		return l.enter(account.Client{Addr: addr}, false, func() { cut = append(cut, name) })
	}
	want := func(what string, names ...string) {
		t.Helper()
		if fmt.Sprint(cut) != fmt.Sprint(names) {
			t.Errorf("%s: %v were cut off, want %v", what, cut, names)
		}
		cut = nil
	}
	a := come("a1", "10.0.0.1")
	come("a2", "10.0.0.1")
	a3 := come("a3", "10.0.0.1")
	want("as many as a network may have")
	if a.arrived() {
		t.Error("the first was cut off")
	}
	come("a4", "10.0.0.1")
	want("one more of a network", "a2")
	come("b1", "10.0.0.2")
	come("b2", "10.0.0.2")
	want("as many as there may be")
	come("c1", "10.0.0.3")
	want("one more of all", "a3")
	if !a3.arrived() {
		t.Error("it does not know")
	}
	a3.leave() // again: it had to go already
	come("d1", "2001:db8::1")
	want("of the network that has most that still come", "b1")
	for range 4 {
		come("d", "2001:db8::2")
	}
	if len(l.anybody.in) != 5 {
		t.Errorf("%d are in", len(l.anybody.in))
	}
	for _, s := range l.anybody.in {
		s.arrived()
	}
	cut = nil
	if s := come("e1", "10.0.0.5"); s != nil {
		t.Error("in beside five whose bodies are there")
	}
	want("nobody who is worked on")
	for range 5 {
		l.anybody.in[0].leave()
	}
	for range 5 { // over a socket, where nobody has a network
		if come("s", "") == nil {
			t.Error("no room")
		}
	}
	want("of those without an address")
}

// Whoever has a part of the net to themselves, with any number of networks, takes
// no more than its share, and it is theirs that is cut off.
func TestAttack_ManyNetworksOfOneProvider(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"2001:db8:%x::1", "198.51.%d.1"} {
		l := newStrangers()
		cut := map[string]int{}
		come := func(name, addr string) *stranger {
			return l.enter(account.Client{Addr: netip.MustParseAddr(addr)}, false, func() { cut[name]++ })
		}
		honest := []*stranger{come("honest", "192.0.2.1"), come("honest", "2001:db9::1")}
		for i := range 3000 {
			if come("eve", fmt.Sprintf(form, i%256)) == nil {
				t.Fatal("nobody of hers was cut off")
			}
		}
		if n := len(l.anybody.in) - len(honest); n != mostAround {
			t.Errorf("%d of one provider are in, want %d", n, mostAround)
		}
		for i := range mostStrangers { // others, each from another provider, as many as there are places
			if come("others", fmt.Sprintf("10.%d.0.1", i%128)) == nil {
				t.Fatal("no room beside her")
			}
		}
		if cut["honest"] != 0 || cut["eve"] < 3000-mostAround {
			t.Errorf("%v were cut off", cut)
		}
		for _, s := range l.anybody.in {
			s.arrived()
		}
		if come("late", "203.0.113.1") != nil {
			t.Error("there are more than there may be")
		}
	}
}

// Browsers that were signed in here before have places of their own, of which one
// browser and one network get some.
func TestKnownBrowsersHavePlacesOfTheirOwn(t *testing.T) {
	t.Parallel()
	l := newStrangers()
	for i := range mostStrangers { // nobody of whom can be cut off
		if l.enter(account.Client{Addr: netip.AddrFrom4([4]byte{10, byte(i % 128), 0, 1})}, false, nil) == nil {
			t.Fatal("no room")
		}
	}
	n := 0
	come := func(token, addr string) bool {
		ok := l.enter(account.Client{Addr: netip.MustParseAddr(addr), Device: token}, true, nil) != nil
		if ok {
			n++
		}
		return ok
	}
	if l.enter(account.Client{Addr: netip.MustParseAddr("192.0.2.1"), Device: "made up"}, false, nil) != nil {
		t.Error("there is room for a browser that is not known")
	}
	for i := range 100 {
		come("eve's", fmt.Sprintf("198.51.100.%d", i))
	}
	if n != mostOfBrowser {
		t.Errorf("one browser has %d places, want %d", n, mostOfBrowser)
	}
	n = 0
	for i := range 100 {
		come(fmt.Sprint("eve's ", i), "203.0.113.1")
	}
	if n != mostBeside {
		t.Errorf("the browsers of one network have %d places, want %d", n, mostBeside)
	}
	if !come("ann's", "192.0.2.1") {
		t.Error("another known browser is kept out")
	}
	for i := range 100 {
		come(fmt.Sprint("others' ", i), fmt.Sprintf("192.0.2.%d", i))
	}
	if got := len(l.familiar.in); got != mostFamiliar {
		t.Errorf("%d known browsers are in, want %d", got, mostFamiliar)
	}
}

// fill takes all places of strangers, for good.
func (r *rig) fill() {
	r.api.strangers.anybody.mu.Lock()
	defer r.api.strangers.anybody.mu.Unlock()
	for range mostStrangers {
		r.api.strangers.anybody.in = append(r.api.strangers.anybody.in, &stranger{hall: &r.api.strangers.anybody})
	}
}

// places are how many strangers are in, of all and of browsers that are known.
func (r *rig) places() (anybody, familiar int) {
	for n, h := range map[*int]*hall{&anybody: &r.api.strangers.anybody, &familiar: &r.api.strangers.familiar} {
		h.mu.Lock()
		*n = len(h.in)
		h.mu.Unlock()
	}
	return anybody, familiar
}

// Every route that is open to everybody has a bound, but for the probes. A browser
// that is known comes in past it, and one that says so does not.
func TestEveryPublicRouteIsBounded(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		eve.want(204, "DELETE", "/v1/session", "") // what is left of it knows the browser
		r.fill()
		routes := 0
		for path, item := range r.api.spec.OpenAPI().Paths {
			for method, op := range map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PUT": item.Put, "PATCH": item.Patch, "DELETE": item.Delete} {
				if op == nil || len(op.Security) > 0 {
					continue
				}
				body := ""
				if op.RequestBody != nil {
					body = "{}"
				}
				routes++
				for what, token := range map[string]string{"a stranger": "", "a made-up browser": "zs_" + strings.Repeat("a", len(eve.token)-3)} {
					a := (&browser{rig: r, token: token}).do(method, path, body)
					if path == "/healthz" || path == "/readyz" {
						if a.status != 200 {
							t.Errorf("%s: %d %s", path, a.status, a.body)
						}
						continue
					}
					if a.status != 503 || a.text(t, "code") != "unavailable" || a.Header.Get("Retry-After") == "" {
						t.Errorf("%s, %s %s: %d %v %s", what, method, path, a.status, a.Header, a.body)
					}
				}
				if a := (&browser{rig: r, token: eve.token}).do(method, path, body); a.status == 503 {
					t.Errorf("a known browser, %s %s: %s", method, path, a.body)
				}
			}
		}
		if routes != len(openRoutes)+2 {
			t.Errorf("%d public routes, want %d", routes, len(openRoutes)+2)
		}
		eve.want(200, "POST", "/v1/session", eveSignIn)
		testenv.Eventually(t, 20*time.Second, func() bool {
			anybody, familiar := r.places()
			return anybody == mostStrangers && familiar == 0
		})
	})
}

// Whoever only waits for the time of the answer holds no place meanwhile.
func TestWhoWaitsForTheTimeOfTheAnswerHoldsNoPlace(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		slow, o := r.accountOptions, r.options
		slow.Level = time.Hour
		o.Accounts = account.New(slow)
		r.serve(o)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		req, err := http.NewRequestWithContext(ctx, "POST", r.url+"/v1/session", strings.NewReader(credentials("ada@example.org", "not the password")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		go func() {
			defer close(ended)
			if res, err := http.DefaultClient.Do(req); err == nil {
				_ = res.Body.Close()
			}
		}()
		testenv.Eventually(t, 20*time.Second, func() bool { return len(r.networks()) == 1 }) // its attempt is counted
		testenv.Eventually(t, 20*time.Second, func() bool {
			anybody, _ := r.places()
			return anybody == 0
		})
		select {
		case <-ended:
			t.Error("it was answered: nothing was tested")
		default:
		}
		cancel()
		<-ended
	})
}

// deadlines remembers the last read deadline of an answer. It calls before it is
// given time.
type deadlines struct {
	*httptest.ResponseRecorder
	before func()
	last   time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	if at.After(time.Now()) {
		d.before()
	}
	d.last = at
	return nil
}

// held is a body that does not come. It looks at the deadline.
type held struct {
	d    *deadlines
	read func()
	late bool // it was read although its time was over
}

func (h *held) Read([]byte) (int, error) {
	h.read()
	h.late = h.d.last.After(time.Now())
	return 0, os.ErrDeadlineExceeded
}

// However early a body is cut off, nothing gives it time again.
func TestACutIsNotLost(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		for _, early := range []bool{true, false} {
			r.api.strangers = newStrangers()
			crowd := func() { // of the same network, whose slowest is cut off once it is in
				anybody, _ := r.places()
				for range anybody * mostOfNetwork {
					r.api.strangers.enter(account.Client{Addr: netip.MustParseAddr("192.0.2.1")}, false, nil)
				}
			}
			d := &deadlines{ResponseRecorder: httptest.NewRecorder(), before: func() {}}
			body := &held{d: d, read: crowd}
			if early {
				d.before = crowd
			}
			req := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/session", body)
			req.RemoteAddr, req.ContentLength = "192.0.2.1:1", 100
			req.Header.Set("Content-Type", "application/json")
			r.api.Handler().ServeHTTP(d, req)
			if body.late || d.Code != http.StatusServiceUnavailable {
				t.Errorf("cut off early (%v): %d, and it had time again: %v", early, d.Code, body.late)
			}
		}
	})
}

// The longest that a form can be still comes in.
func TestPublicBodies(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		escaped := func(c rune, n int) string { return strings.Repeat(fmt.Sprintf(`\u%04x`, c), n) }
		long := `{"email":"` + escaped('e', 60) + `@example.org","username":"` + escaped('u', 30) + `","password":"` + escaped('p', 1024) +
			`","old_enough":true,"consents":["analytics","marketing","profiling","training"],"name":"` + strings.Repeat(`\ud83d\ude80`, 100) + `"}`
		(&browser{rig: r}).want(202, "POST", "/v1/account", long)
		for path, body := range map[string]string{"/v1/session": eveSignIn, "/v1/account": eveSignUp, "/v1/account/password/reset": `{"email":"` + eveAddress + `"}`} {
			a := (&browser{rig: r}).do("POST", path, body+strings.Repeat(" ", publicBody-len(body)+1))
			if a.status != 413 || !strings.Contains(a.body, "16 KiB") {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		if a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"x","width":64,"height":64}`+strings.Repeat(" ", publicBody)); a.status != 202 {
			t.Errorf("a longer one with a key: %d %s", a.status, a.body)
		}
	})
}

// heapPeak watches the memory of the whole process until it is asked. Garbage is
// collected early: it is not what is measured.
func heapPeak() (grown func() int64) {
	percent := debug.SetGCPercent(20)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapInuse + m.StackInuse
	var peak atomic.Int64
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), int64(m.HeapInuse+m.StackInuse)))
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() int64 {
		close(done)
		<-ended
		debug.SetGCPercent(percent)
		return peak.Load() - int64(before)
	}
}

// A thousand strangers hold their bodies back, each as long as it may: the memory
// stays bounded, and others sign in beside them.
//
// It runs alone: it measures the heap of the whole process.
func TestAttack_UnfinishedBodies(t *testing.T) {
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			d, _ := testenv.Database(t, dialect)
			r := newRig(t, d)
			o := r.options
			o.TrustedProxies = []string{"127.0.0.0/8"}
			r.serve(o)
			// With the timeouts of the real server, which the rig's are too short for.
			server := httptest.NewUnstartedServer(r.api.Handler())
			server.Config.ReadTimeout, server.Config.WriteTimeout = 30*time.Second, time.Minute
			server.Start()
			t.Cleanup(func() {
				server.CloseClientConnections()
				server.Close()
			})
			r.url = server.URL
			grown := heapPeak()
			const slow = 1000
			var work sync.WaitGroup
			var sent, cut atomic.Int64
			piece := []byte(strings.Repeat(" ", publicBody-1))
			for i := range slow {
				work.Go(func() {
					conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
					if err != nil {
						t.Error(err)
						return
					}
					defer func() { _ = conn.Close() }()
					_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
					length := fmt.Sprintf("Content-Length: %d\r\n\r\n", publicBody)
					if i%2 == 0 {
						length = fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", publicBody)
					}
					// Half of them from networks of their own.
					from := fmt.Sprintf("10.0.%d.%d", i>>8, i&255)
					if i%4 < 2 {
						from = fmt.Sprintf("10.1.0.%d", i%8)
					}
					_, _ = io.WriteString(conn, "POST /v1/session HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: "+from+"\r\nContent-Type: application/json\r\n"+length)
					_, _ = conn.Write(piece)
					sent.Add(1)
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						return // cut off while it was sending
					}
					defer func() { _ = res.Body.Close() }()
					switch again, _ := strconv.Atoi(res.Header.Get("Retry-After")); {
					case res.StatusCode == http.StatusServiceUnavailable && again > 0:
						cut.Add(1)
					case res.StatusCode != http.StatusBadRequest:
						t.Errorf("%d", res.StatusCode)
					}
				})
			}
			testenv.Eventually(t, time.Minute, func() bool { return sent.Load() > slow/2 })
			for i := range 10 {
				from := fmt.Sprintf("192.0.2.%d", i)
				(&browser{rig: r}).want(200, "POST", "/v1/session", credentials("ada@example.org", "some long words for anybody"), "X-Forwarded-For", from)
			}
			work.Wait()
			most := grown()
			t.Logf("%d of %d were cut off; %d MiB", cut.Load(), slow, most>>20)
			if cut.Load() == 0 {
				t.Error("it was no crowd")
			}
			if most > 128<<20 {
				t.Errorf("the heap grew by %d MiB", most>>20)
			}
		})
	}
}

// pipes is a listener whose connections lie in memory, each from an address of its
// own: ten thousand sockets are more than a process may have.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
}

type from struct {
	net.Conn
	addr net.TCPAddr
}

func (f *from) RemoteAddr() net.Addr { return &f.addr }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accepted:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(addr net.TCPAddr) net.Conn {
	here, there := net.Pipe()
	p.accepted <- &from{there, addr}
	return here
}

// Ten thousand people sign in at once, through the whole door: each is answered,
// none waits for ever, and what they take together is bounded.
//
// It runs alone: it measures the heap of the whole process.
func TestAttack_TenThousandSignInsAtOnce(t *testing.T) {
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			d, _ := testenv.Database(t, dialect)
			r := newRig(t, d)
			in := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
			server := &http.Server{Handler: r.api.Handler(), ReadHeaderTimeout: time.Minute, ReadTimeout: time.Minute}
			go func() { _ = server.Serve(in) }()
			t.Cleanup(func() {
				close(in.closed)
				_ = server.Close()
			})
			const people = 10_000
			var lined, work sync.WaitGroup
			start := make(chan struct{})
			var mu sync.Mutex
			answers := map[int]int{}
			lined.Add(people)
			for i := range people {
				work.Go(func() {
					conn := in.dial(net.TCPAddr{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)), Port: 1})
					defer func() { _ = conn.Close() }()
					_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
					body := credentials(fmt.Sprintf("nobody%d@example.org", i), "not the password")
					if i%10 == 0 {
						body = credentials("ada@example.org", "some long words for anybody")
					}
					lined.Done()
					<-start
					if _, err := conn.Write([]byte("POST /v1/session HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: " +
						strconv.Itoa(len(body)) + "\r\n\r\n" + body)); err != nil {
						t.Error(err)
						return
					}
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
					if again, _ := strconv.Atoi(res.Header.Get("Retry-After")); again < 1 && (res.StatusCode == 503 || res.StatusCode == 429) {
						t.Errorf("%d without a time to come back", res.StatusCode)
					}
					mu.Lock()
					defer mu.Unlock()
					answers[res.StatusCode]++
				})
			}
			lined.Wait()
			grown := heapPeak() // beside ten thousand idle connections
			close(start)
			work.Wait()
			most := grown()
			t.Logf("%v; %d MiB", answers, most>>20)
			n := answers[200] + answers[401] + answers[429] + answers[503]
			if n != people || answers[200] == 0 || answers[401] == 0 || answers[503] == 0 {
				t.Errorf("%v", answers)
			}
			// The connections and those who wait at their other ends included: 16 to 29 KiB
			// for each, by how late the collector comes on a crowded machine. Bodies
			// without a bound would be 256 KiB.
			if most > people*64<<10 {
				t.Errorf("%d MiB", most>>20)
			}
		})
	}
}
