package outbound

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func code(t *testing.T, err error, want Code) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// counting is a receiver that counts its calls.
func counting(t *testing.T, secure bool, h http.HandlerFunc) (*httptest.Server, *atomic.Int64) {
	t.Helper()
	var calls atomic.Int64
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		h(w, r)
	})
	s := httptest.NewUnstartedServer(counted)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s, &calls
}

func local() *Client { return New(Options{Loopback: true}) }

func TestAPostArrives(t *testing.T) {
	t.Parallel()
	var body, header, encoding string
	s, _ := counting(t, true, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body, header, encoding = string(b), r.Header.Get("webhook-id"), r.Header.Get("Accept-Encoding")
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(503)
	})
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c := New(Options{Loopback: true, Roots: roots})
	a, err := c.Post(context.Background(), Post{URL: s.URL + "/x", Header: map[string]string{"webhook-id": "evt_1"}, Body: []byte("hello")})
	if err != nil || a.Status != 503 || a.RetryAfter != 7*time.Second || body != "hello" || header != "evt_1" || encoding != "" {
		t.Errorf("%+v, %v; %q %q %q", a, err, body, header, encoding)
	}
	_, err = local().Post(context.Background(), Post{URL: s.URL}) // nobody vouches for it
	code(t, err, BadTLS)
}

// The policy promises TLS 1.3 without an exception.
func TestSecurity_NothingIsSentByLessThanTLS13(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	_, err := New(Options{Loopback: true, Roots: roots}).Post(context.Background(), Post{URL: s.URL})
	code(t, err, BadTLS)
	if calls.Load() != 0 {
		t.Error("it was called")
	}

	// One that has never heard of TLS 1.3 begins with 1.2.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		hello := append([]byte{0x16, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3}, make([]byte, 32)...)
		_, _ = conn.Write(append(hello, 0, 0xc0, 0x2f, 0)) // no session, ECDHE with AES-128-GCM, no compression
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}()
	_, err = local().Post(context.Background(), Post{URL: "https://" + l.Addr().String()})
	code(t, err, BadTLS)
}

func TestRetryAfterTakesADateByTheReceiversClock(t *testing.T) {
	t.Parallel()
	h := http.Header{"Retry-After": {"Thu, 15 Jan 2026 10:00:30 GMT"}, "Date": {"Thu, 15 Jan 2026 10:00:00 GMT"}}
	if d := retryAfter(h); d != 30*time.Second {
		t.Error(d)
	}
	for _, bad := range []string{"", "soon", "-3", "99999999999999"} {
		h.Set("Retry-After", bad)
		if d := retryAfter(h); d != 0 {
			t.Errorf("%q: %s", bad, d)
		}
	}
}

// Every notation and range that leads elsewhere than to the public net.
func TestSecurity_SpecialAddressesAreRefused(t *testing.T) {
	t.Parallel()
	c := New(Options{NAT64: []netip.Prefix{netip.MustParsePrefix("2a00:64::/96")}})
	for _, address := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.8", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1", "198.19.255.255",
		"198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1", "5f00::1", "4000::1",
		"2001::1", "2001:1ff::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1", "3fff:fff::1",
	} {
		if c.allowed(netip.MustParseAddr(address)) {
			t.Errorf("%s is allowed", address)
		}
	}
	for _, address := range []string{"8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2001:4860:4860::8888", "2a00:1450::1", "::ffff:8.8.8.8"} {
		if !c.allowed(netip.MustParseAddr(address)) {
			t.Errorf("%s is refused", address)
		}
	}
}

func TestSecurity_IPv4MappedAddressesAreTheirIPv4(t *testing.T) {
	t.Parallel()
	c := New(Options{})
	for _, address := range []string{"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe"} {
		if c.allowed(netip.MustParseAddr(address)) {
			t.Errorf("%s is allowed", address)
		}
		if c.Check("https://["+address+"]/") == "" {
			t.Errorf("%s passes the look at it", address)
		}
		if err := c.control(context.Background(), "tcp6", "["+address+"]:443", nil); !errors.Is(err, errRefused) {
			t.Errorf("%s is dialled: %v", address, err)
		}
	}
}

func TestSecurity_NAT64IsRefused(t *testing.T) {
	t.Parallel()
	own := "2a00:64::7f00:1"
	if err := New(Options{}).control(context.Background(), "tcp6", "["+own+"]:443", nil); err != nil {
		t.Error("the test's prefix is refused anyway")
	}
	c := New(Options{NAT64: []netip.Prefix{netip.MustParsePrefix("2a00:64::/96")}})
	for _, address := range []string{"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:ffff::1", own} {
		if c.allowed(netip.MustParseAddr(address)) {
			t.Errorf("%s is allowed", address)
		}
		// A name that is as good as any leads there.
		c.dialer.Resolver = names(t, address)
		c.transport.DialContext = c.dialer.DialContext
		_, err := c.Post(context.Background(), Post{URL: "https://hook.example.org/"})
		code(t, err, Refused)
	}
}

func TestSecurity_ZonesAreRefused(t *testing.T) {
	t.Parallel()
	c := local()
	for _, address := range []string{"fe80::1%eth0", "2606:4700::1111%1", "::1%lo"} {
		if c.allowed(netip.MustParseAddr(address)) {
			t.Errorf("%s is allowed", address)
		}
		if c.control(context.Background(), "tcp6", "["+address+"]:443", nil) == nil {
			t.Errorf("%s is dialled", address)
		}
		if raw := "https://[" + strings.Replace(address, "%", "%25", 1) + "]/"; c.Check(raw) == "" {
			t.Errorf("%s passes the look at it", raw)
		}
	}
}

// names is a name server that gives each question the next of its answers.
func names(t *testing.T, answers ...string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		given := 0
		for buffer := make([]byte, 1500); ; {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			q := m.Questions[0]
			var body dnsmessage.ResourceBody
			switch a := netip.MustParseAddr(answers[min(given, len(answers)-1)]); {
			case q.Type == dnsmessage.TypeA && a.Is4():
				body = &dnsmessage.AResource{A: a.As4()}
			case q.Type == dnsmessage.TypeAAAA && a.Is6():
				body = &dnsmessage.AAAAResource{AAAA: a.As16()}
			}
			if body != nil {
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: body}}
				given++
			}
			if packed, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(packed, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
}

// A name is public when it is looked at and leads to this machine when it is dialled.
func TestSecurity_ARebindingNameIsRefusedAtTheDial(t *testing.T) {
	t.Parallel()
	s, calls := counting(t, true, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	to := "https://hook.rebind.test:" + port + "/"
	c := New(Options{Ports: []uint16{portNumber(port)}})
	c.dialer.Resolver = names(t, "93.184.216.34", "127.0.0.1")
	c.transport.DialContext = c.dialer.DialContext
	if why := c.Check(to); why != "" {
		t.Fatal(why)
	}
	if first, err := c.dialer.Resolver.LookupHost(context.Background(), "hook.rebind.test"); err != nil || first[0] != "93.184.216.34" {
		t.Fatal(first, err) // what somebody who looks before the dial sees
	}
	_, err := c.Post(context.Background(), Post{URL: to})
	code(t, err, Refused)
	if calls.Load() != 0 {
		t.Error("it was called")
	}
}

func portNumber(port string) uint16 {
	return portOf(&url.URL{Host: "h:" + port})
}

func TestSecurity_ARedirectIsAnAnswerAndNotFollowed(t *testing.T) {
	t.Parallel()
	inside, calls := counting(t, false, func(http.ResponseWriter, *http.Request) {})
	for _, status := range []int{301, 302, 303, 307, 308} {
		s, _ := counting(t, false, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL, status) })
		if a, err := local().Post(context.Background(), Post{URL: s.URL}); err != nil || a.Status != status {
			t.Errorf("%d: %+v, %v", status, a, err)
		}
	}
	if calls.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

// The name is one for which the variables hold: they never do for localhost.
func TestSecurity_NoProxyIsAsked(t *testing.T) {
	proxy, asked := counting(t, false, func(http.ResponseWriter, *http.Request) {})
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, proxy.URL)
		t.Setenv(strings.ToLower(name), proxy.URL)
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	s, calls := counting(t, true, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c := New(Options{Loopback: true, Roots: roots, Ports: []uint16{portNumber(port)}})
	c.dialer.Resolver = names(t, "127.0.0.1")
	c.transport.DialContext = c.dialer.DialContext
	if c.transport.Proxy != nil {
		t.Error("the transport has a proxy")
	}
	if _, err := c.Post(context.Background(), Post{URL: "https://example.com:" + port}); err != nil || calls.Load() != 1 { // the name in its certificate
		t.Errorf("%v; %d calls", err, calls.Load())
	}
	if asked.Load() != 0 {
		t.Error("the proxy was asked")
	}
}

// Packed, the answer ends within what is read, and so its connection is used again;
// unpacked it is far longer.
func TestSecurity_AGzipBombIsNotUnpacked(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 32<<20))
	_ = z.Close()
	connections := map[string]bool{}
	s, _ := counting(t, false, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Error("it asks for compression")
		}
		connections[r.RemoteAddr] = true
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb.Bytes())
	})
	c := local()
	for range 2 {
		if a, err := c.Post(context.Background(), Post{URL: s.URL}); err != nil || a.Status != 200 {
			t.Error(a, err)
		}
	}
	if len(connections) != 1 {
		t.Error("the answer was not read as it came")
	}
}

func TestSecurity_AnEndlessBodyIsCutOff(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	done := make(chan struct{})
	s, _ := counting(t, false, func(w http.ResponseWriter, _ *http.Request) {
		defer close(done)
		for piece := make([]byte, 32<<10); ; {
			n, err := w.Write(piece)
			if sent.Add(int64(n)); err != nil || sent.Load() > 1<<30 {
				return
			}
		}
	})
	if a, err := local().Post(context.Background(), Post{URL: s.URL}); err != nil || a.Status != 200 {
		t.Error(a, err)
	}
	<-done
	if sent.Load() > 64<<20 { // what fits into the system's buffers, and no more
		t.Errorf("%d bytes were taken", sent.Load())
	}
}

func TestSecurity_SlowHeadersAreGivenUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
				for n := 0; ; n++ {
					if _, err := fmt.Fprintf(conn, "X-%d: y\r\n", n); err != nil {
						return
					}
					time.Sleep(200 * time.Millisecond)
				}
			}()
		}
	}()
	began := time.Now()
	_, err = local().Post(context.Background(), Post{URL: "http://" + l.Addr().String()})
	code(t, err, TooSlow)
	if took := time.Since(began); took > 2*total {
		t.Errorf("it took %s", took)
	}
}

func TestSecurity_HugeHeadersAreGivenUp(t *testing.T) {
	t.Parallel()
	s, _ := counting(t, false, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", strings.Repeat("y", 1<<20))
	})
	_, err := local().Post(context.Background(), Post{URL: s.URL})
	code(t, err, Broken)
}

func TestSecurity_OtherNotationsOfAddressesAreRefused(t *testing.T) {
	t.Parallel()
	for _, host := range []string{
		"2130706433", "0x7f000001", "017700000001", "127.1", "0177.0.0.1", "0x7f.0.0.1", "127.0.0.1.", "1.2.3.0x4", "10.1", "0",
		"localhost", "LOCALHOST", "hook.localhost", "localhost.", "intranet", "１２７.0.0.1", "①.example.org", "127。0。0。1", "exa mple.org", "a..b.org", "-",
	} {
		if New(Options{}).Check("https://"+host+"/") == "" {
			t.Errorf("%s passes", host)
		}
	}
	for _, host := range []string{"example.org", "EXAMPLE.org", "example.org.", "a-b_c.example.org", "xn--bcher-kva.example", "8.8.8.8", "[2606:4700::1111]"} {
		if why := New(Options{}).Check("https://" + host + "/x?y=z"); why != "" {
			t.Errorf("%s: %s", host, why)
		}
	}
	s, calls := counting(t, false, func(http.ResponseWriter, *http.Request) {})
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	for _, host := range []string{"2130706433", "0x7f.1", "0177.0.0.1"} {
		_, err := local().Post(context.Background(), Post{URL: "http://" + host + ":" + port})
		code(t, err, BadURL)
	}
	if calls.Load() != 0 {
		t.Error("it was called")
	}
}

func TestSecurity_OtherPortsAreRefused(t *testing.T) {
	t.Parallel()
	c := New(Options{Ports: []uint16{8443}})
	for raw, ok := range map[string]bool{
		"https://example.org": true, "https://example.org:443": true, "https://example.org:80": true, "https://example.org:8443": true,
		"https://example.org:22": false, "https://example.org:6379": false, "https://example.org:0": false, "https://example.org:99999": false,
	} {
		if why := c.Check(raw); (why == "") != ok {
			t.Errorf("%s: %q", raw, why)
		}
	}
	for address, ok := range map[string]bool{"8.8.8.8:443": true, "8.8.8.8:8443": true, "8.8.8.8:25": false} {
		if err := c.control(context.Background(), "tcp4", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	if c.control(context.Background(), "udp4", "8.8.8.8:443", nil) == nil {
		t.Error("another network is dialled")
	}
}

func TestSecurity_UsersFragmentsAndOtherSchemesAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []*Client{New(Options{}), local()} {
		for _, raw := range []string{
			"", "hook", "//example.org/", "http://example.org/", "ftp://example.org/", "file:///etc/passwd", "gopher://example.org/",
			"https://", "https:///x", "https:example.org", "https://user@example.org/", "https://user:secret@example.org/", "https://@example.org/",
			"https://example.org/#", "https://example.org/#x", "https://example.org/\r\nX: y", "https://example.org/a b", "https://example.org\\@127.0.0.1/",
			"https://example.org/" + strings.Repeat("x", 3000),
		} {
			if c.Check(raw) == "" {
				t.Errorf("%.40q passes", raw)
			}
			if _, err := c.Post(context.Background(), Post{URL: raw}); err == nil || strings.Contains(err.Error(), "example") {
				t.Errorf("%.40q: %v", raw, err)
			}
		}
	}
}

// Without the option nothing of this machine is called; with it, plain text stays
// on this machine.
func TestLoopbackNeedsTheOption(t *testing.T) {
	t.Parallel()
	s, calls := counting(t, false, func(http.ResponseWriter, *http.Request) {})
	if _, err := New(Options{}).Post(context.Background(), Post{URL: s.URL}); err == nil {
		t.Error("it was called")
	}
	if err := New(Options{}).control(context.Background(), "tcp4", "127.0.0.1:443", nil); !errors.Is(err, errRefused) {
		t.Error(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost"} {
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		if _, err := local().Post(context.Background(), Post{URL: "http://" + host + ":" + port}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if calls.Load() != 2 {
		t.Errorf("%d calls", calls.Load())
	}
	unsealed := context.WithValue(context.Background(), plain{}, true)
	if err := local().control(unsealed, "tcp4", "8.8.8.8:80", nil); !errors.Is(err, errRefused) {
		t.Errorf("plain text leaves the machine: %v", err)
	}
}

func TestErrorsNameNoAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	c := local()
	c.dialer.Resolver = names(t, "127.0.0.1")
	_, err = c.Post(context.Background(), Post{URL: "http://" + l.Addr().String() + "/secret"})
	code(t, err, NoConnect)
	if strings.Contains(err.Error(), "127") || strings.Contains(err.Error(), "secret") || errors.Unwrap(err) != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = c.Post(ctx, Post{URL: "http://" + l.Addr().String()})
	if err == nil {
		t.Error("a call whose context has ended is made")
	}
}
