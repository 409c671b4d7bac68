package httpapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"zimage/internal/privacy"
)

// Who closes an account is shown a secret, and can follow the erasure with it and
// nothing else.
func TestPromise_R7_TheReceiptOutlivesTheAccount(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		closed := b.want(202, "DELETE", "/v1/account", `{"password":"`+evePassword+`"}`)
		var out closedView
		if err := json.Unmarshal([]byte(closed.body), &out); err != nil || len(out.Receipt.Secret) < 40 {
			t.Fatalf("%s, %v", closed.body, err)
		}
		path := "/v1/privacy/receipts/" + out.Receipt.ID
		other := path[:len(path)-1] + string("01"[strings.Count(path[len(path)-1:], "0")])
		for what, a := range map[string]answered{
			"without the secret": r.do("GET", path, "", ""), "with another": r.do("GET", path, out.Receipt.Secret+"x", ""),
			"with a key": r.do("GET", path, r.ada, ""), "with another in the body": r.do("POST", path, "", `{"secret":"zr_x"}`),
			"another receipt": r.do("GET", other, out.Receipt.Secret, ""), "no id at all": r.do("GET", "/v1/privacy/receipts/x", out.Receipt.Secret, ""),
		} {
			if a.status != 404 || strings.Contains(a.body, "zr_") {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		if a := r.do("GET", path+"?secret="+out.Receipt.Secret, "", ""); a.status != 400 {
			t.Errorf("a secret in the address: %d %s", a.status, a.body)
		}
		for what, a := range map[string]answered{
			"GET": r.do("GET", path, out.Receipt.Secret, ""), "POST": r.do("POST", path, "", `{"secret":"`+out.Receipt.Secret+`"}`),
		} {
			var signed privacy.SignedReceipt
			var receipt privacy.Receipt
			if err := json.Unmarshal([]byte(a.body), &signed); err != nil || a.status != 200 {
				t.Fatalf("%s: %d %s", what, a.status, a.body)
			}
			if err := json.Unmarshal(signed.Receipt, &receipt); err != nil || receipt.State != "open" || receipt.ID != out.Receipt.ID || len(signed.Signature) > 0 {
				t.Errorf("%s: %s, %v", what, a.body, err)
			}
		}
		if strings.Contains(r.log.String(), out.Receipt.Secret) {
			t.Error("the secret is in the log")
		}
	})
}

func TestNothingIsServedFromARestoredDatabase(t *testing.T) {
	t.Parallel()
	closed := true
	a := bare(t, func(o *Options) { o.Closed = func() bool { return closed } })
	for path, want := range map[string]int{"/v1/models": 503, "/docs": 503, "/openapi.json": 503, "/nothing": 503, "/healthz": 200, "/readyz": 200} {
		if got := visit(t, a, path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	closed = false
	if got := visit(t, a, "/docs"); got != 200 {
		t.Errorf("open again: %d", got)
	}
}

func visit(t *testing.T, a *API, path string) int {
	t.Helper()
	w := httptest.NewRecorder()
	a.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code
}
