package httpapi

import (
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
)

// clients are the networks that clients of these tests come from by a header. Loopback is
// not among them: the parts have their addresses there, too.
var clients = []string{"192.0.2.", "198.51.100.", "203.0.113.", "2001:db8"}

// namesNoClient looks whether a client's address is in the log. Every test that has a rig
// ends with it.
func (r *rig) namesNoClient() {
	r.t.Helper()
	for line := range strings.Lines(r.log.String()) {
		for _, network := range clients {
			if strings.Contains(line, network) {
				r.t.Errorf("an address is logged: %s", line)
			}
		}
	}
}

// Whatever is asked for, by whomever and with whatever outcome: no line says from which
// address.
func TestPromise_U2_NoLineNamesAClientsAddress(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		o := r.options
		o.TrustedProxies = []string{"127.0.0.0/8"}
		r.serve(o)
		eve := r.joined()
		_, image := r.finished(r.ada)
		for _, address := range []string{"203.0.113.77", "2001:db8:77::a"} {
			from := []string{"X-Forwarded-For", address}
			if got := r.place(from...); got != "Near "+address {
				t.Errorf("from %s it is %q", address, got)
			}
			for path, item := range r.api.spec.OpenAPI().Paths {
				for method, op := range map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PUT": item.Put, "PATCH": item.Patch, "DELETE": item.Delete} {
					if op == nil {
						continue
					}
					body := ""
					if op.RequestBody != nil {
						body = "{}"
					}
					for _, key := range []string{"", "zi_made-up", r.readOnly} {
						r.do(method, path, key, body, from...)
					}
					(&browser{rig: r, token: eve.token}).do(method, path, body, from...)
				}
			}
			if a := r.do("GET", "/v1/images/"+image+"/content", r.ada, "", from...); a.status != 200 {
				t.Errorf("the picture: %d", a.status)
			}
			for i := 0; r.guess(i, from...) != 429; i++ {
				if i == 60 {
					t.Fatal("nobody is slowed down")
				}
			}
		}
		r.lineOf(r.do("GET", "/v1/models", r.ada, "", "X-Forwarded-For", "nonsense, 203.0.113.78"))
		r.namesNoClient()
	})
}
