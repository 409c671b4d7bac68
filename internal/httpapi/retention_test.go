package httpapi

import (
	"strings"
	"testing"

	"zimage/internal/account"
	"zimage/internal/privacy"
)

func TestSweepsAreAskedForByStaffAlone(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		const path = "/v1/admin/retention/sweeps"
		eve := r.joined()
		eve.want(403, "POST", path, "")
		r.staff("help@example.org", account.RoleSupport).want(403, "POST", path, "")
		if a := r.do("POST", path, eve.want(201, "POST", "/v1/keys", `{"scopes":["read","account"]}`).text(t, "token"), ""); a.status != 403 {
			t.Errorf("a key is answered %d", a.status)
		}
		asked := func() (n int) {
			if err := r.db.Get(t.Context(), &n, `SELECT count(*) FROM jobs WHERE kind = ?`, privacy.KindPurge); err != nil {
				t.Fatal(err)
			}
			return n
		}
		if asked() != 0 {
			t.Error("who may not has something done")
		}
		first := r.staff("op@example.org", account.RoleOperator).want(202, "POST", path, "")
		n := asked()
		if n < 3 || strings.Count(first.body, `"job"`) != n || !strings.Contains(first.body, `"table":"generations"`) {
			t.Errorf("%d jobs, and the answer is %s", n, first.body)
		}
		second := r.staff("privacy@example.org", account.RolePrivacy).want(202, "POST", path, "")
		if strings.Count(second.body, `"table"`) != n {
			t.Errorf("a privacy officer is told %s", second.body)
		}
	})
}
