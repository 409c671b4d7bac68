package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"zimage/internal/engine/enginetest"
)

// An Engine is an image server that does what the test says: it speaks the
// OpenAI-like protocol of vLLM-Omni, or of SGLang, which cannot stop an image.
type Engine struct {
	t       testing.TB
	address string
	server  *http.Server
	gate    *gate

	mu      sync.Mutex
	holding bool
	calls   []*Call
}

// A Call is a request for one image.
type Call struct {
	Prompt        string
	Seed          int64
	Width, Height int
	Arrived       time.Time

	// Gone is closed when whoever asked has closed the connection.
	Gone <-chan struct{}

	release  chan struct{}
	once     sync.Once
	answered chan struct{}
}

func startEngine(t testing.TB) *Engine {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{t: t, address: listener.Addr().String(), gate: &gate{Listener: listener}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"object":"list","data":[{"id":%q}]}`, modelID)
	})
	mux.HandleFunc("POST /v1/images/generations", e.generate)
	e.server = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = e.server.Serve(e.gate) }()
	t.Cleanup(func() { _ = e.server.Close() })
	return e
}

func (e *Engine) generate(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Prompt string `json:"prompt"`
		Size   string `json:"size"`
		Seed   int64  `json:"seed"`
	}
	c := &Call{Arrived: time.Now(), Gone: r.Context().Done(), release: make(chan struct{}), answered: make(chan struct{})}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, "invalid", http.StatusBadRequest)
		return
	}
	c.Prompt, c.Seed = body.Prompt, body.Seed
	if _, err := fmt.Sscanf(body.Size, "%dx%d", &c.Width, &c.Height); err != nil {
		http.Error(w, "invalid", http.StatusBadRequest)
		return
	}
	// The end of the body must be read before net/http notices a closed connection.
	_, _ = r.Body.Read(make([]byte, 1))
	e.mu.Lock()
	if !e.holding {
		c.Answer()
	}
	e.calls = append(e.calls, c)
	e.mu.Unlock()
	select {
	case <-c.release:
	case <-r.Context().Done():
		return
	}
	image := enginetest.Paint(c.Prompt, c.Seed, c.Width, c.Height)
	_, _ = fmt.Fprintf(w, `{"created":1,"data":[{"b64_json":%q}]}`, base64.StdEncoding.EncodeToString(image))
	close(c.answered)
}

// Answer lets the call have its image.
func (c *Call) Answer() { c.once.Do(func() { close(c.release) }) }

// Answered reports whether the image was sent.
func (c *Call) Answered() bool {
	select {
	case <-c.answered:
		return true
	default:
		return false
	}
}

// Left reports whether whoever asked has gone, or has been answered.
func (c *Call) Left() bool {
	select {
	case <-c.Gone:
		return true
	default:
		return false
	}
}

// Hold makes later calls wait for their Answer.
func (e *Engine) Hold() { e.mu.Lock(); defer e.mu.Unlock(); e.holding = true }

// Free answers all calls, those that come later too.
func (e *Engine) Free() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holding = false
	for _, c := range e.calls {
		c.Answer()
	}
}

// Calls are all calls for a prompt so far, in the order of their arrival; for
// the empty prompt, all calls.
func (e *Engine) Calls(prompt string) []*Call {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []*Call
	for _, c := range e.calls {
		if prompt == "" || c.Prompt == prompt {
			found = append(found, c)
		}
	}
	return found
}

// Await waits for call number k, counted from 1, for a prompt.
func (e *Engine) Await(within time.Duration, prompt string, k int) *Call {
	e.t.Helper()
	until(e.t, within, fmt.Sprintf("call %d at the engine", k), func() bool { return len(e.Calls(prompt)) >= k })
	return e.Calls(prompt)[k-1]
}

// Deaf makes the engine accept connections and read nothing from them; the
// connections accepted meanwhile are closed when it hears again.
func (e *Engine) Deaf(deaf bool) { e.gate.set(deaf) }

// Knocks is how many connections were accepted while deaf.
func (e *Engine) Knocks() int {
	e.gate.mu.Lock()
	defer e.gate.mu.Unlock()
	return len(e.gate.held)
}

// gate is a listener that can keep connections from its server.
type gate struct {
	net.Listener
	mu   sync.Mutex
	shut bool
	held []net.Conn
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		if !g.shut {
			g.mu.Unlock()
			return conn, nil
		}
		g.held = append(g.held, conn)
		g.mu.Unlock()
	}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	if !shut {
		for _, conn := range g.held {
			_ = conn.Close()
		}
		g.held = nil
	}
}
