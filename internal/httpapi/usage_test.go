package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"zimage/internal/account"
	"zimage/internal/vault"
)

// used is what was written of a person, without the times.
func (r *rig) used(owner string) (list []string) {
	r.t.Helper()
	if err := r.usage.Flush(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	var rows []struct {
		ID      string `db:"id"`
		Feature string `db:"feature"`
		Details []byte `db:"details"`
	}
	if err := r.db.Select(r.t.Context(), &rows, `SELECT id, feature, details FROM usage_events WHERE subject = ?`, owner); err != nil {
		r.t.Fatal(err)
	}
	for _, row := range rows {
		text, err := r.vault.Unseal(context.Background(), owner, row.Details, vault.Column("usage_events", "details", row.ID))
		var d struct{ Device, Browser, Address, Screen string }
		if err != nil || json.Unmarshal(text, &d) != nil {
			r.t.Fatalf("%v: %s", err, text)
		}
		list = append(list, strings.Join(strings.Fields(fmt.Sprintln(row.Feature, d.Device, d.Browser, d.Address, d.Screen)), " "))
	}
	slices.Sort(list)
	return list
}

// What succeeded is written once, by the operation's id; what was refused, or
// came without a key, is not.
func TestPromise_U1_RequestsBecomeUsage(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		ada := r.ownerOf("ada@example.org")
		id := r.submit(r.ada)
		for range 3 {
			r.do("GET", "/v1/generations/"+id, r.ada, "", "User-Agent", "curl/8.5")
		}
		r.do("HEAD", "/v1/models", r.ada, "", "User-Agent", "Mozilla/5.0 (Windows NT 10.0) Firefox/128.0")
		r.do("GET", "/v1/generations/gen_"+secret, r.ada, "")
		r.do("POST", "/v1/generations", r.ada, `{"prompt":""}`)
		r.do("GET", "/v1/models", "zi_"+secret, "")
		r.do("GET", "/healthz", r.ada, "")
		want := []string{"create-generation program Go 127.0.0.1", "get-generation program curl 127.0.0.1", "list-models computer Firefox 127.0.0.1"}
		if got := r.used(ada); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		var others int
		if err := r.db.Get(t.Context(), &others, `SELECT count(*) FROM usage_events WHERE subject <> ?`, ada); err != nil || others != 0 {
			t.Errorf("%d events of others, %v", others, err)
		}
	})
}

// The screen is kept with consent alone.
func TestPromise_U1_ScreenOnlyWithConsent(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		eve := r.joined()
		id := eve.want(200, "GET", "/v1/account", "").text(t, "id")
		screen := func() (found []string) {
			for _, u := range r.used(id) {
				if strings.Contains(u, "390") || strings.HasPrefix(u, "tell-screen") {
					found = append(found, u)
				}
			}
			return found
		}
		const body = `{"screen_width":390,"screen_height":844}`
		eve.want(403, "POST", "/v1/usage", body)
		if got := screen(); len(got) > 0 {
			t.Errorf("without consent: %q", got)
		}
		eve.want(204, "PUT", "/v1/account/consents/analytics", `{"granted":true}`)
		eve.want(204, "POST", "/v1/usage", body)
		eve.want(400, "POST", "/v1/usage", `{"screen_width":0,"screen_height":844}`)
		eve.want(204, "PUT", "/v1/account/consents/analytics", `{"granted":false}`)
		eve.want(403, "POST", "/v1/usage", body)
		if got := screen(); len(got) != 1 || got[0] != "tell-screen program Go 127.0.0.1 390x844" {
			t.Errorf("with consent: %q", got)
		}
	})
}

func TestPromise_U6_OnlyOperatorsCountUsage(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		r.joined().want(403, "GET", "/v1/admin/usage", "")
		r.staff("help@example.org", account.RoleSupport).want(403, "GET", "/v1/admin/usage", "")
		operator := r.staff("op@example.org", account.RoleOperator)
		operator.want(400, "GET", "/v1/admin/usage?per=hour", "")
		for i := range 12 {
			_, err := r.db.Exec(t.Context(), `INSERT INTO usage_events (id, subject, at, feature, visit_ms, details)
				SELECT id || ?, id, ?, 'list-models', 0, ? FROM subjects ORDER BY id LIMIT 1`, fmt.Sprint(i), r.options.Clock.Millis()-24*3600*1000, []byte{1})
			if err != nil {
				t.Fatal(err)
			}
		}
		if a := operator.want(200, "GET", "/v1/admin/usage?per=day&last=2", ""); a.body != `{"data":[]}`+"\n" {
			t.Errorf("one person's twelve uses: %s", a.body)
		}
		for i := range 12 {
			_, err := r.db.Exec(t.Context(), `INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, 'active', 1, 1)`, fmt.Sprint("sub_x", i))
			if err == nil {
				_, err = r.db.Exec(t.Context(), `INSERT INTO usage_events (id, subject, at, feature, visit_ms, details) VALUES (?, ?, ?, 'list-models', 0, ?)`,
					fmt.Sprint("use_", i), fmt.Sprint("sub_x", i), r.options.Clock.Millis()-24*3600*1000, []byte{1})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		a := operator.want(200, "GET", "/v1/admin/usage?per=day&last=2", "")
		if strings.Count(a.body, `"people_at_least":10`) != 2 || !strings.Contains(a.body, `"feature":"list-models"`) || strings.Contains(a.body, "sub_") {
			t.Errorf("%s", a.body)
		}
	})
}
