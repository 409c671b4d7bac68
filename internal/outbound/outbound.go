// Package outbound is the client for every address that a user named. It decides
// where it may lead: the resolved address is looked at when it is dialled, so
// that no name, redirect, proxy or notation leads into the operator's network,
// and what comes back is bounded in size and time.
//
// It never repeats an address, neither in an error nor in a log, and keeps no
// word of an answer but its status and when to come again.
package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// total bounds a call, from the look-up of the name to the end of the answer.
	total = 15 * time.Second
	// connecting bounds the dial, and then the handshake.
	connecting = 5 * time.Second
	// bodyMost and headerMost are how many bytes of an answer are read.
	bodyMost   = 64 << 10
	headerMost = 16 << 10
	// urlMost is the longest address that is taken.
	urlMost = 2048
)

// Options for New. The zero value allows public addresses alone, at ports 80 and
// 443.
type Options struct {
	// Loopback lets addresses of this machine through as well, at any port and
	// without TLS: for development.
	Loopback bool
	Ports    []uint16       // that are allowed beside 80 and 443
	NAT64    []netip.Prefix // of the operator's network, which lead to IPv4
	Roots    *x509.CertPool // that vouch for receivers; nil: the system's

	Registry prometheus.Registerer // for metrics; nil: none
}

// A Client is safe for concurrent use.
type Client struct {
	o         Options
	dialer    net.Dialer
	transport *http.Transport
	calls     *prometheus.CounterVec
}

// New makes a client with connections of its own.
func New(o Options) *Client {
	c := &Client{o: o, calls: newCalls(o.Registry)}
	c.dialer = net.Dialer{Timeout: connecting, ControlContext: c.control}
	c.transport = &http.Transport{
		Proxy:                  nil, // a proxy would dial for us, unguarded
		DialContext:            c.dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    connecting,
		ResponseHeaderTimeout:  total,
		MaxResponseHeaderBytes: headerMost,
		DisableCompression:     true, // nothing is unpacked
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
	}
	return c
}

// Close closes the connections that nobody uses.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// A Code says why a call came to no answer. It is stable and names no address.
type Code string

// The codes.
const (
	Refused   Code = "address_refused" // it leads where we do not call
	BadURL    Code = "url_not_allowed"
	NoName    Code = "name_not_found"
	NoConnect Code = "not_reachable"
	BadTLS    Code = "tls_failed"
	TooSlow   Code = "timed_out"
	Broken    Code = "connection_failed" // it ended, or what came is no answer
)

// An Error is a call without an answer. Its text and its code are safe to show.
type Error struct{ Code Code }

func (e *Error) Error() string { return "call out: " + string(e.Code) }

// A Post is one call.
type Post struct {
	URL    string
	Header map[string]string
	Body   []byte
}

// An Answer is all that is kept of one.
type Answer struct {
	Status     int           // a redirect is an answer, and is not followed
	RetryAfter time.Duration // 0: it says nothing
}

// Post makes one call. Every error is an *Error, also when ctx ends.
func (c *Client) Post(ctx context.Context, p Post) (Answer, error) {
	a, err := c.post(ctx, p)
	if ctx.Err() == nil { // a call that is broken off says nothing
		c.calls.WithLabelValues(outcomeOf(a, err)).Inc()
	}
	if err != nil {
		return Answer{}, err
	}
	return a, nil
}

func (c *Client) post(ctx context.Context, p Post) (Answer, *Error) {
	u, why := c.parse(p.URL)
	if why != "" {
		return Answer{}, &Error{BadURL}
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, plain{}, u.Scheme == "http"), total)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(p.Body))
	if err != nil {
		return Answer{}, &Error{BadURL}
	}
	for name, value := range p.Header {
		req.Header.Set(name, value)
	}
	// The transport itself follows nothing and keeps no cookies.
	res, err := c.transport.RoundTrip(req)
	if err != nil {
		return Answer{}, &Error{codeOf(err)}
	}
	// What is read is read to use the connection again; one whose answer is longer
	// is closed.
	_, _ = io.CopyN(io.Discard, res.Body, bodyMost)
	_ = res.Body.Close()
	return Answer{Status: res.StatusCode, RetryAfter: retryAfter(res.Header)}, nil
}

// retryAfter reads both forms. A date is compared with the receiver's own.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	until, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0
	}
	return max(until.Sub(now), 0)
}

func codeOf(err error) Code {
	var timeout interface{ Timeout() bool }
	var name *net.DNSError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var certificate *tls.CertificateVerificationError
	var operation *net.OpError
	switch {
	case errors.Is(err, errRefused):
		return Refused
	case errors.As(err, &name) && !name.IsTimeout:
		return NoName
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return TooSlow
	case errors.As(err, &record), errors.As(err, &alert), errors.As(err, &certificate):
		return BadTLS
	case errors.As(err, &operation) && operation.Op == "dial":
		return NoConnect
	}
	return Broken
}

// Check says in words what is wrong with an address that somebody names, before
// anybody calls it; empty: nothing that can be seen by looking at it. The words do
// not repeat it.
func (c *Client) Check(raw string) string {
	_, why := c.parse(raw)
	return why
}

func (c *Client) parse(raw string) (u *url.URL, why string) {
	if len(raw) > urlMost {
		return nil, "must have at most " + strconv.Itoa(urlMost) + " characters"
	}
	u, err := url.Parse(raw)
	if err != nil || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) {
		return nil, "must be an address such as https://example.org/hook"
	}
	host := strings.ToLower(u.Hostname())
	addr, literal := netip.Addr{}, false
	if a, err := netip.ParseAddr(host); err == nil {
		addr, literal = a, true
	}
	local := c.o.Loopback && (host == "localhost" || literal && addr.Unmap().IsLoopback())
	switch {
	case u.Scheme != "https" && (u.Scheme != "http" || !local):
		return nil, "must begin with https://"
	case u.Opaque != "" || host == "":
		return nil, "must name a host"
	case u.User != nil:
		return nil, "must not hold a user or password"
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return nil, "must not have a fragment"
	case literal && !c.allowed(addr):
		return nil, "must lead to a public address"
	case !literal && !local && !isName(host):
		return nil, "must name a host by its full name, in ASCII, or by its address in the usual notation"
	case !local && !c.portAllowed(portOf(u)):
		return nil, "must use port 443, or another one that the operator allows"
	}
	return u, ""
}

func portOf(u *url.URL) uint16 {
	switch u.Port() {
	case "":
		if u.Scheme == "http" {
			return 80
		}
		return 443
	default:
		n, _ := strconv.ParseUint(u.Port(), 10, 16)
		return uint16(n)
	}
}

// isName accepts a full name. One whose last label begins with a digit is an IPv4
// address in another notation: decimal, octal, hexadecimal or short.
func isName(host string) bool {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	if len(labels) < 2 || len(host) > 253 {
		return false
	}
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.ContainsFunc(l, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	last := labels[len(labels)-1]
	return last != "localhost" && (last[0] < '0' || last[0] > '9')
}

// errRefused ends a dial before its first packet.
var errRefused = errors.New("outbound: not an address that we call")

// plain is the key of whether a call goes without TLS.
type plain struct{}

// control sees each address that is really dialled, after every look-up.
func (c *Client) control(ctx context.Context, network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return errRefused
	}
	loopback := c.o.Loopback && to.Addr().Unmap().IsLoopback()
	if !c.allowed(to.Addr()) || !loopback && !c.portAllowed(to.Port()) {
		return errRefused
	}
	if unsealed, _ := ctx.Value(plain{}).(bool); unsealed && !loopback {
		return errRefused
	}
	return nil
}

func (c *Client) portAllowed(port uint16) bool {
	return port == 80 || port == 443 || slices.Contains(c.o.Ports, port)
}

// allowed reports whether an address is one of the public net.
func (c *Client) allowed(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	if a.IsLoopback() {
		return c.o.Loopback
	}
	within := func(p netip.Prefix) bool { return p.Contains(a) }
	if a.Is4() {
		return !slices.ContainsFunc(special4, within)
	}
	return public6.Contains(a) && !slices.ContainsFunc(special6, within) && !slices.ContainsFunc(c.o.NAT64, within)
}

// The addresses that are not of the public net, by IANA's registries of special
// purposes. Of IPv6 only what is given out is taken, so 64:ff9b::/96 and
// 64:ff9b:1::/48, which lead to IPv4, are outside already.
var (
	special4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
		"192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")
	public6  = netip.MustParsePrefix("2000::/3")
	special6 = prefixes("64:ff9b::/96", "64:ff9b:1::/48", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

func prefixes(list ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, p := range list {
		all[i] = netip.MustParsePrefix(p)
	}
	return all
}
