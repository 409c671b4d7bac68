// Package proxy stands between a process and its Redis, PostgreSQL or object
// store and has bad days on demand: it cuts the answer to a chosen request after
// the server has done what was asked, refuses connections, or goes silent.
//
// It reads just enough of each protocol to know which answer is which, so that
// no test needs to sleep and hope. It changes no byte of what it lets through.
package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
)

// A Fault counts how often it struck. Its methods are safe for concurrent use.
type Fault struct {
	mu     sync.Mutex
	times  int // still to strike; negative: every time
	struck int
}

// strike reports whether the fault strikes now, and counts it.
func (f *Fault) strike() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.times == 0 {
		return false
	}
	if f.times > 0 {
		f.times--
	}
	f.struck++
	return true
}

// Struck is how often it happened.
func (f *Fault) Struck() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.struck
}

// End lets it not strike any more.
func (f *Fault) End() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.times = 0
}

// tcp forwards connections to one server.
type tcp struct {
	listener net.Listener
	target   string
	speak    func(client, server net.Conn) // forwards one connection until it ends
	ended    chan struct{}
	work     sync.WaitGroup

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	refuses bool
	flows   chan struct{} // closed while bytes flow
	refused int
}

func listen(target string, speak func(client, server net.Conn)) (*tcp, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &tcp{listener: l, target: target, speak: speak, ended: make(chan struct{}),
		conns: map[net.Conn]struct{}{}, flows: make(chan struct{})}
	close(p.flows)
	p.work.Go(p.accept)
	return p, nil
}

// Addr is where clients connect, as host:port.
func (p *tcp) Addr() string { return p.listener.Addr().String() }

// Close ends every connection and the proxy.
func (p *tcp) Close() {
	close(p.ended)
	_ = p.listener.Close()
	p.Refuse(true)
	p.work.Wait()
}

// Refuse cuts every connection and resets new ones, until it is called with
// false.
func (p *tcp) Refuse(on bool) {
	p.mu.Lock()
	p.refuses = on
	p.mu.Unlock()
	if on {
		p.Cut()
	}
}

// Cut resets every connection; clients may connect again.
func (p *tcp) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		reset(c)
	}
}

// Freeze stops the flow in both directions without closing anything, as a
// network does that loses packets, until it is called with false.
func (p *tcp) Freeze(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	frozen := false
	select {
	case <-p.flows:
	default:
		frozen = true
	}
	if on && !frozen {
		p.flows = make(chan struct{})
	}
	if !on && frozen {
		close(p.flows)
	}
}

// Refused is how many connections were reset at once.
func (p *tcp) Refused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// thaw waits while the flow is stopped.
func (p *tcp) thaw() {
	p.mu.Lock()
	flows := p.flows
	p.mu.Unlock()
	select {
	case <-flows:
	case <-p.ended:
	}
}

func (p *tcp) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.work.Go(func() { p.serve(c) })
	}
}

func (p *tcp) serve(client net.Conn) {
	defer reset(client)
	if !p.enrol(client) {
		return
	}
	defer p.forget(client)
	p.thaw()
	server, err := net.Dial("tcp4", p.target)
	if err != nil {
		return // as if it had been refused
	}
	defer reset(server)
	p.speak(&gated{Conn: client, proxy: p}, &gated{Conn: server, proxy: p})
}

func (p *tcp) enrol(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuses {
		p.refused++
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *tcp) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// gated is a connection whose writes wait while the proxy is frozen.
type gated struct {
	net.Conn
	proxy *tcp
}

func (g *gated) Write(b []byte) (int, error) {
	g.proxy.thaw()
	return g.Conn.Write(b)
}

// both runs the two directions of a connection and ends the one when the other
// has ended.
func both(client, server net.Conn, up, down func() error) {
	var work sync.WaitGroup
	run := func(f func() error) {
		_ = f() // that a direction ended is all there is to know
		reset(client)
		reset(server)
	}
	work.Go(func() { run(up) })
	run(down)
	work.Wait()
}

// errCut ends a direction whose answer was withheld.
var errCut = errors.New("proxy: cut")

// reset closes a connection so that the other end sees it at once.
func reset(c net.Conn) {
	if g, ok := c.(*gated); ok {
		c = g.Conn
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// exactly reads n bytes, refusing lengths that no part of ours sends.
func exactly(r io.Reader, n int) ([]byte, error) {
	if n < 0 || n > 64<<20 {
		return nil, errors.New("proxy: impossible length")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
