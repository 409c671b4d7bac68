package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Objects forwards to an S3 server, request by request.
type Objects struct {
	server  *httptest.Server
	forward *httputil.ReverseProxy
	mu      sync.Mutex
	rules   []objectsRule
}

type objectsRule struct {
	*Fault
	match func(*http.Request) bool
	do    func(o *Objects, w http.ResponseWriter, r *http.Request)
}

// NewObjects starts a proxy before the server at target, which is host:port.
func NewObjects(target string) *Objects {
	o := &Objects{forward: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: target})
			r.Out.Host = r.In.Host // it is signed
		},
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		ErrorLog:      log.New(io.Discard, "", 0), // a reset client is what is wanted here
		FlushInterval: -1,
	}}
	o.server = httptest.NewServer(http.HandlerFunc(o.serve))
	return o
}

// Addr is where clients connect, as host:port.
func (o *Objects) Addr() string { return strings.TrimPrefix(o.server.URL, "http://") }

// Close ends every connection and the proxy.
func (o *Objects) Close() {
	o.server.CloseClientConnections()
	o.server.Close()
}

// Fail answers the next n requests (negative: all) that match with a status and
// an S3 code, in place of the server.
func (o *Objects) Fail(n int, match func(*http.Request) bool, status int, code string) *Fault {
	return o.add(n, match, func(_ *Objects, w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>no</Message></Error>`, code)
	})
}

// CutReply lets the server do the next n requests (negative: all) that match and
// resets the connection in place of its answer. Requests that the server refuses
// pass.
func (o *Objects) CutReply(n int, match func(*http.Request) bool) *Fault {
	f := &Fault{times: n}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rules = append(o.rules, objectsRule{nil, match, func(o *Objects, w http.ResponseWriter, r *http.Request) {
		forward := *o.forward
		forward.ModifyResponse = func(answer *http.Response) error {
			if answer.StatusCode >= 300 || !f.strike() {
				return nil
			}
			return errCut
		}
		forward.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			if errors.Is(err, errCut) {
				hangUp(w)
				return
			}
			w.WriteHeader(http.StatusBadGateway)
		}
		forward.ServeHTTP(w, r)
	}})
	return f
}

// Slow has the next n requests (negative: all) that match wait before the server
// sees them.
func (o *Objects) Slow(n int, match func(*http.Request) bool, wait time.Duration) *Fault {
	return o.add(n, match, func(o *Objects, w http.ResponseWriter, r *http.Request) {
		ctx, stop := context.WithTimeout(r.Context(), wait)
		defer stop()
		<-ctx.Done()
		o.forward.ServeHTTP(w, r)
	})
}

// Away resets the connections of the next n requests (negative: all) that match.
func (o *Objects) Away(n int, match func(*http.Request) bool) *Fault {
	return o.add(n, match, func(_ *Objects, w http.ResponseWriter, _ *http.Request) { hangUp(w) })
}

// Any matches every request.
func Any(*http.Request) bool { return true }

// Stores matches the upload of an object whose key has the given part.
func Stores(part string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == http.MethodPut && strings.Contains(r.URL.Path, part)
	}
}

func (o *Objects) add(n int, match func(*http.Request) bool, do func(*Objects, http.ResponseWriter, *http.Request)) *Fault {
	f := &Fault{times: n}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rules = append(o.rules, objectsRule{f, match, do})
	return f
}

func (o *Objects) serve(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	rules := o.rules
	o.mu.Unlock()
	for _, rule := range rules {
		if rule.match(r) && (rule.Fault == nil || rule.strike()) {
			rule.do(o, w, r)
			return
		}
	}
	o.forward.ServeHTTP(w, r)
}

// hangUp resets the client's connection.
func hangUp(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
