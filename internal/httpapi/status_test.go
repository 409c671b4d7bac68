package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"regexp"
	"testing"
	"time"

	"zimage/internal/privacy"
)

// Everybody may ask, and nobody is named.
func TestPromise_P2_StatusIsForEverybody(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		r.staff("help@example.org", "support").want(200, "POST", "/v1/admin/accounts/find", `{"email":"`+eveAddress+`","reason":"`+reason+`"}`)
		if _, err := r.ledger.Seal(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := r.do("GET", "/v1/privacy/status", "", "")
		if a.status != 200 || a.Header.Get("Cache-Control") != "public, max-age=30" {
			t.Fatalf("%d %v", a.status, a.Header)
		}
		var said struct {
			Kept      bool
			Broken    []any
			Policy    map[string]string
			Retention []struct {
				Category, Table, Keeps string
				Kept                   bool
			}
			Deadlines []map[string]any
			Ledger    map[string]string
		}
		if err := json.Unmarshal([]byte(a.body), &said); err != nil {
			t.Fatal(err)
		}
		if !said.Kept || len(said.Broken) > 0 || said.Policy["version"] != privacy.DefaultPolicy().Version {
			t.Errorf("the status says %s", a.body)
		}
		c, err := r.ledger.Checkpoint(t.Context())
		if err != nil || said.Ledger["hash"] != base64.StdEncoding.EncodeToString(c.Hash) || said.Ledger["at"] != c.At.Format(time.RFC3339Nano) {
			t.Errorf("the checkpoint is %v, want %+v, %v", said.Ledger, c, err)
		}
		found := false
		for _, one := range said.Retention {
			found = found || one.Category == "content" && one.Table == "images" && one.Keeps == "90 days" && one.Kept
		}
		if !found || len(said.Deadlines) == 0 {
			t.Errorf("images or deadlines are missing: %s", a.body)
		}
		if id := regexp.MustCompile(`\b(sub|ses|key|gen|img|era|led|job|mai)_[0-9a-z]{20,}`).FindString(a.body); id != "" {
			t.Errorf("it names %s", id)
		}
		eve.want(200, "GET", "/v1/privacy/status", "")
	})
}
