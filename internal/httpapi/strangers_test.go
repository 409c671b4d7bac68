package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/db"
	"zimage/internal/testenv"
)

func TestStrangers(t *testing.T) {
	t.Parallel()
	l := strangers{most: 5, ofNetwork: 3}
	var cut []string
	come := func(name, from string) *stranger {
		addr, _ := netip.ParseAddr(from)
		return l.enter(account.Client{Addr: addr}, func() { cut = append(cut, name) })
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
	if l.arrived(a) {
		t.Error("the first was cut off")
	}
	come("a4", "10.0.0.1")
	want("one more of a network", "a2")
	come("b1", "10.0.0.2")
	come("b2", "10.0.0.2")
	want("as many as there may be")
	come("c1", "10.0.0.3")
	want("one more of all", "a3")
	if !l.arrived(a3) {
		t.Error("it does not know")
	}
	l.leave(a3) // again: it had to go already
	come("d1", "2001:db8::1")
	want("of the network that has most that still come", "b1")
	for range 4 {
		come("d", "2001:db8::2")
	}
	if len(l.in) != 5 {
		t.Errorf("%d are in", len(l.in))
	}
	for _, s := range l.in {
		l.arrived(s)
	}
	cut = nil
	if s := come("e1", "10.0.0.5"); s != nil {
		t.Error("in beside five whose bodies are there")
	}
	want("nobody who is worked on")
	for range 5 {
		l.leave(l.in[0])
	}
	for range 5 { // over a socket, where nobody has a network
		if come("s", "") == nil {
			t.Error("no room")
		}
	}
	want("of those without an address")
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
