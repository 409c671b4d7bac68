package httpapi

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Whoever promises a body and withholds it is answered all the same. The server
// has no timeouts of its own here, so that none of them helps.
func TestAWithheldBodyHoldsNoAnswer(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		id := r.submit(r.ada)
		server := httptest.NewServer(r.api.Handler())
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		for _, c := range []struct {
			name, line, key, more string
			status                int
		}{
			{"a short body", "POST /v1/generations", r.ada, "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"prompt\":", 400},
			{"a body in pieces without an end", "POST /v1/generations", r.ada, "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"p\r\n", 400},
			{"a body that is not read", "POST /v1/generations", r.ada, "Content-Type: text/plain\r\nContent-Length: 100\r\n\r\n", 415},
			{"events", "GET /v1/generations/" + id + "/events", r.ada, "Content-Length: 100\r\n\r\n", 400},
			{"a wait", "GET /v1/generations/" + id, r.ada, "Prefer: wait=2\r\nContent-Length: 100\r\n\r\n", 400},
			{"a wait in pieces", "GET /v1/generations/" + id, r.ada, "Prefer: wait=2\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
			{"cancel", "POST /v1/generations/" + id + "/cancel", r.ada, "Content-Length: 100\r\n\r\n", 400},
			{"a key that does not hold", "POST /v1/generations", "zi_none", "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n", 401},
			{"no such route", "POST /v1/nothing", r.ada, "Content-Length: 100\r\n\r\n", 404},
			{"the description", "GET /openapi.json", r.ada, "Content-Length: 100\r\n\r\n", 200},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				conn, err := net.Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				_ = conn.SetDeadline(time.Now().Add(bodyTime + 5*time.Second))
				if _, err := io.WriteString(conn, c.line+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+c.key+"\r\n"+c.more); err != nil {
					t.Fatal(err)
				}
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatalf("no answer: %v", err)
				}
				defer func() { _ = res.Body.Close() }()
				if _, err := io.ReadAll(res.Body); err != nil {
					t.Errorf("half an answer: %v", err)
				}
				if res.StatusCode != c.status || !res.Close {
					t.Errorf("%d, closing %v, want %d on a connection that closes", res.StatusCode, res.Close, c.status)
				}
			})
		}
	})
}

// A body that is there keeps the connection, and none is taken where none is read.
func TestBodiesAndConnections(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"x","width":64,"height":64}`)
		if a.status != 202 || a.Close {
			t.Errorf("accepted: %d, closing %v", a.status, a.Close)
		}
		if a := r.do("POST", "/v1/generations", r.ada, `{}`); a.status != 400 || a.Close {
			t.Errorf("refused: %d, closing %v", a.status, a.Close)
		}
		a = r.do("POST", "/v1/generations/"+a.text(t, "id")+"/cancel", r.ada, `{"prompt":"`+secret+`"}`)
		if a.status != 400 || a.field(t, "errors.location") != "body" || strings.Contains(a.body, secret) {
			t.Errorf("a body to cancel: %d %s", a.status, a.body)
		}
	})
}
