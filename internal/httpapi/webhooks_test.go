package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/events"
	"zimage/internal/testenv"
	"zimage/internal/webhook"
)

// webhookOf gives an owner a webhook to which nothing leads, and a delivery to it.
func (r *rig) webhookOf(owner string) (id, delivery string) {
	r.t.Helper()
	url := "https://hooks.example.org/x"
	e, _, err := r.hooks.Create(context.Background(), owner, webhook.Change{URL: &url})
	if err != nil {
		r.t.Fatal(err)
	}
	d, err := r.hooks.SendTest(context.Background(), owner, e.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	return e.ID, d.ID
}

// receiver keeps what it is told.
func receiver(t *testing.T) (url string, told chan string) {
	t.Helper()
	told = make(chan string, 100)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		told <- string(body)
	}))
	t.Cleanup(s.Close)
	return s.URL, told
}

func heard(t *testing.T, told chan string) string {
	t.Helper()
	select {
	case body := <-told:
		return body
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was told")
		return ""
	}
}

// keyWith makes a key of an owner's with some scopes.
func (r *rig) keyWith(owner string, scopes ...string) string {
	r.t.Helper()
	token, _, err := r.accounts.CreateKey(context.Background(), owner, "hooks", scopes, time.Time{})
	if err != nil {
		r.t.Fatal(err)
	}
	return token
}

func TestWebhooksOverTheAPI(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		key := r.keyWith(r.ownerOf("ada@example.org"), account.ScopeWebhooks)
		url, told := receiver(t)
		if a := r.do("GET", "/v1/webhooks", r.ada, ""); a.status != 403 {
			t.Errorf("without the scope: %d", a.status)
		}
		a := r.do("POST", "/v1/webhooks", key, fmt.Sprintf(`{"url":%q,"description":"shop","events":["generation.succeeded","export.ready"]}`, url+"/secret-path"))
		id := a.text(t, "webhook.id")
		if a.status != 200 || !strings.HasPrefix(a.text(t, "secret"), "whsec_") || a.field(t, "webhook.status") != "enabled" || !strings.HasSuffix(a.Header.Get("Location"), "/v1/webhooks/"+id) {
			t.Fatalf("%d %s", a.status, a.body)
		}
		secret := a.field(t, "secret")
		if a := r.do("GET", "/v1/webhooks/"+id, key, ""); a.status != 200 || strings.Contains(a.body, "whsec") || a.field(t, "description") != "shop" {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("PATCH", "/v1/webhooks/"+id, key, `{"events":[]}`); a.status != 200 || !strings.Contains(a.body, `"events":[]`) {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("POST", "/v1/webhooks/"+id+"/rotate", key, ""); a.status != 200 || a.field(t, "secret") == secret || !strings.Contains(a.body, "old_secret_until") {
			t.Errorf("%d %s", a.status, a.body)
		}
		a = r.do("POST", "/v1/webhooks/"+id+"/test", key, "")
		if a.status != 202 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		delivery := a.text(t, "id")
		if body := heard(t, told); !strings.Contains(body, `"type":"webhook.test"`) || !strings.Contains(body, a.text(t, "event_id")) {
			t.Error(body)
		}
		testenv.Eventually(t, 20*time.Second, func() bool {
			a = r.do("GET", "/v1/webhooks/"+id+"/deliveries?state=delivered", key, "")
			return a.status == 200 && strings.Contains(a.body, `"status":200`)
		})
		if a := r.do("POST", "/v1/deliveries/"+delivery+"/replay", key, ""); a.status != 202 {
			t.Errorf("%d %s", a.status, a.body)
		}
		heard(t, told)
		if a := r.do("POST", "/v1/webhooks/"+id+"/replay?since=2026-01-15T09:30:00Z", key, ""); a.status != 202 || !strings.Contains(a.body, `"more":false`) {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/events", key, ""); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/events?after=gen_06f3k2m9v0q8r5w1x4y7z2a6bc", key, ""); a.status != 400 || a.field(t, "errors.location") != "query.after" {
			t.Errorf("%d %s", a.status, a.body)
		}
		for _, bad := range []string{`{}`, `{"url":""}`, `{"url":"http://example.org/"}`, `{"url":"https://10.0.0.1/"}`, `{"url":"https://u:p@example.org/"}`, `{"url":"https://example.org/","events":["all"]}`, `{"url":"https://example.org/","more":1}`} {
			if a := r.do("POST", "/v1/webhooks", key, bad); a.status != 400 || strings.Contains(a.body, "example.org/") {
				t.Errorf("%s: %d %s", bad, a.status, a.body)
			}
		}
		second := r.do("POST", "/v1/webhooks", key, `{"url":"https://hooks.example.org/second"}`).text(t, "webhook.id")
		var all webhooksView
		a = r.do("GET", "/v1/webhooks", key, "")
		if err := json.Unmarshal([]byte(a.body), &all); err != nil || len(all.Data) != 2 || all.Data[0].ID != second || all.Data[1].ID != id || strings.Contains(a.body, "whsec") {
			t.Errorf("%d %s (%v)", a.status, a.body, err)
		}
		if a := r.do("DELETE", "/v1/webhooks/"+id, key, ""); a.status != 204 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/webhooks/"+id, key, ""); a.status != 404 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if log := r.log.String(); strings.Contains(log, "secret-path") || strings.Contains(log, "whsec") {
			t.Error("the log has an address or a secret")
		}
	})
}

// Behind the last event that is known come those that were missed, in their order.
func TestEventsAreCaughtUpWithOverTheAPI(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		keys := map[string]string{}
		for name, key := range map[string]string{"ada": r.ada, "ben": r.ben} {
			owner := r.ownerOf(name + "@example.org")
			r.webhookOf(owner)
			keys[name] = r.keyWith(owner, account.ScopeWebhooks)
			if a := r.do("GET", "/v1/events", key, ""); a.status != 403 {
				t.Errorf("without the scope: %d", a.status)
			}
		}
		adas, image := r.finished(r.ada)
		bens, _ := r.finished(r.ben)
		if a := r.do("DELETE", "/v1/images/"+image, r.ada, ""); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		read := func(name, query string) (list []toldEventView, more bool) {
			t.Helper()
			var v toldEventsView
			a := r.do("GET", "/v1/events"+query, keys[name], "")
			if err := json.Unmarshal([]byte(a.body), &v); err != nil || a.status != 200 {
				t.Fatalf("%d %s (%v)", a.status, a.body, err)
			}
			return v.Data, v.More
		}
		all, more := read("ada", "")
		var told []string
		for i, e := range all {
			told = append(told, e.Type+" "+e.Ref)
			if i > 0 && e.ID <= all[i-1].ID || e.At.IsZero() {
				t.Errorf("%+v stands behind %+v", e, all[max(i, 1)-1])
			}
		}
		want := []string{"webhook.test " + all[0].Ref, "generation.started " + adas, "generation.succeeded " + adas, "image.deleted " + image}
		if !slices.Equal(told, want) || more {
			t.Fatalf("%q, want %q, more: %v", told, want, more)
		}
		if last := all[len(all)-1]; last.GenerationID != adas || last.Reason != "user" || last.Sequence <= all[len(all)-2].Sequence {
			t.Errorf("%+v", last)
		}
		// Page by page they are the same, and behind the last is none.
		var paged []toldEventView
		for after, more := "", true; more; after = "&after=" + paged[len(paged)-1].ID {
			var page []toldEventView
			if page, more = read("ada", "?limit=2"+after); len(page) == 0 || len(page) > 2 {
				t.Fatalf("a page of %d", len(page))
			}
			paged = append(paged, page...)
		}
		if !slices.Equal(paged, all) {
			t.Errorf("by pages\n%+v, at once\n%+v", paged, all)
		}
		if a := r.do("GET", "/v1/events?after="+all[len(all)-1].ID, keys["ada"], ""); a.body != `{"data":[],"more":false}`+"\n" {
			t.Errorf("behind the last: %s", a.body)
		}
		// Another person reads their own alone, also behind an id that is not theirs.
		for _, query := range []string{"", "?after=" + all[0].ID} {
			list, _ := read("ben", query)
			if !slices.ContainsFunc(list, func(e toldEventView) bool { return e.Ref == bens }) {
				t.Errorf("%q: ben's are not there: %+v", query, list)
			}
			for _, e := range list {
				if e.Ref != bens && e.Type != "webhook.test" || e.Ref == all[0].Ref {
					t.Errorf("%q: ben reads %+v", query, e)
				}
			}
		}
	})
}

// A webhook that is told prompts reads them for whoever has its address.
func TestPromptsAreLedSomewhereByWhoMayReadThem(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		ada := r.ownerOf("ada@example.org")
		blind, seeing := r.keyWith(ada, account.ScopeWebhooks), r.keyWith(ada, account.ScopeWebhooks, account.ScopeRead)
		const telling, silent = `{"url":"https://hooks.example.org/x","include_prompt":true}`, `{"url":"https://hooks.example.org/y","include_prompt":false}`
		refused := func(a answered) {
			t.Helper()
			if a.status != 403 || a.field(t, "code") != "forbidden" || !strings.Contains(a.text(t, "detail"), "scope read") {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		refused(r.do("POST", "/v1/webhooks", blind, telling))
		if a := r.do("GET", "/v1/webhooks", blind, ""); !strings.Contains(a.body, `"data":[]`) {
			t.Errorf("it is there all the same: %s", a.body)
		}
		a := r.do("POST", "/v1/webhooks", blind, silent)
		if a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		refused(r.do("PATCH", "/v1/webhooks/"+a.text(t, "webhook.id"), blind, `{"include_prompt":true}`))

		a = r.do("POST", "/v1/webhooks", seeing, telling)
		if a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		path := "/v1/webhooks/" + a.text(t, "webhook.id")
		refused(r.do("PATCH", path, blind, `{"url":"https://hooks.example.org/of-the-thief"}`))
		refused(r.do("PATCH", path, blind, telling))
		if a := r.do("GET", path, blind, ""); a.field(t, "url") != "https://hooks.example.org/x" || !strings.Contains(a.body, `"include_prompt":true`) {
			t.Errorf("%s", a.body)
		}
		for _, step := range [][2]string{
			{blind, `{"enabled":false}`},
			{blind, `{"description":"shop","enabled":true}`},
			{seeing, `{"url":"https://hooks.example.org/z"}`},
			{blind, silent},
			{blind, `{"url":"https://hooks.example.org/z"}`},
			{seeing, `{"include_prompt":true}`},
		} {
			if a := r.do("PATCH", path, step[0], step[1]); a.status != 200 {
				t.Errorf("%s: %d %s", step[1], a.status, a.body)
			}
		}
		if a := r.do("PATCH", path, r.keyWith(r.ownerOf("ben@example.org"), account.ScopeWebhooks), `{"url":"https://hooks.example.org/x"}`); a.status != 404 {
			t.Errorf("somebody else's: %d %s", a.status, a.body)
		}
	})
}

func TestAGenerationCanHaveAWebhookOfItsOwn(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		url, told := receiver(t)
		for body, at := range map[string]string{
			`{"prompt":"x","webhook_url":"http://example.org"}`:                                           "body.webhook_url",
			`{"prompt":"x","webhook_events":["generation.failed"]}`:                                       "body.webhook_events",
			`{"prompt":"x","webhook_url":"https://example.org/","webhook_events":["generation.deleted"]}`: "body.webhook_events",
		} {
			if a := r.do("POST", "/v1/generations", r.ada, body); a.status != 400 || a.field(t, "errors.location") != at {
				t.Errorf("%s: %d %s", body, a.status, a.body)
			}
		}
		a := r.do("POST", "/v1/generations", r.ada, fmt.Sprintf(`{"prompt":"nobody is told this","webhook_url":%q,"webhook_events":["generation.started","generation.succeeded"]}`, url))
		if a.status != 202 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		id := a.text(t, "id")
		if first := heard(t, told); !strings.Contains(first, `"type":"generation.started"`) || !strings.Contains(first, id) {
			t.Error(first)
		}
		r.pass()
		second := heard(t, told)
		if !strings.Contains(second, `"type":"generation.succeeded"`) || !strings.Contains(second, `"sequence":4`) || strings.Contains(second, "nobody is told this") {
			t.Error(second)
		}
		key := r.keyWith(r.ownerOf("ada@example.org"), account.ScopeWebhooks)
		s := r.do("GET", "/v1/webhooks/secret", key, "")
		if s.status != 200 || r.do("GET", "/v1/webhooks/secret", key, "").field(t, "secret") != s.field(t, "secret") {
			t.Errorf("%d %s", s.status, s.body)
		}
		testenv.Eventually(t, 20*time.Second, func() bool {
			a := r.do("GET", "/v1/webhooks/"+s.text(t, "id")+"/deliveries", key, "")
			return a.status == 200 && strings.Count(a.body, `"state":"delivered"`) == 2
		})
		if a := r.do("POST", "/v1/webhooks/secret/rotate", key, ""); a.status != 200 || a.field(t, "secret") == s.field(t, "secret") {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/webhooks", key, ""); a.status != 200 || strings.Contains(a.body, s.text(t, "id")) {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// A generation that is deleted before its end has an end, of which it is told: to its own
// address, and to the webhooks beside the deletion.
func TestADeletedGenerationIsToldItsEnd(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		once, toldOnce := receiver(t)
		all, toldAll := receiver(t)
		_, _, err := r.hooks.Create(context.Background(), r.ownerOf("ada@example.org"), webhook.Change{URL: &all, Events: &[]string{"generation.canceled", "generation.deleted"}})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string // of one that runs, and of one that waits for it
		for range 2 {
			a := r.do("POST", "/v1/generations", r.ada, fmt.Sprintf(`{"prompt":"nobody is told this","webhook_url":%q,"webhook_events":["generation.canceled","generation.succeeded"]}`, once))
			if a.status != 202 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			ids = append(ids, a.text(t, "id"))
		}
		testenv.Eventually(t, 20*time.Second, func() bool { return r.do("GET", "/v1/generations/"+ids[0], r.ada, "").field(t, "status") == "running" })
		for _, id := range ids {
			if a := r.do("DELETE", "/v1/generations/"+id, r.ada, ""); a.status != 204 {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		once1, all1 := heard(t, toldOnce)+heard(t, toldOnce), heard(t, toldAll)+heard(t, toldAll)+heard(t, toldAll)+heard(t, toldAll)
		for told, want := range map[string]int{once1: 1, all1: 2} {
			for _, id := range ids {
				if strings.Count(told, id) < want || !strings.Contains(told, `"data":{"id":"`+id+`","code":"data_removed"}`) || strings.Contains(told, "nobody is told this") {
					t.Error(told)
				}
			}
		}
		if strings.Count(once1, `"type":"generation.canceled"`) != 2 || strings.Count(all1, `"type":"generation.deleted"`) != 2 {
			t.Errorf("%s\n%s", once1, all1)
		}
	})
}

func TestAWebhookIsToldThatACopyCanBeFetched(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		url, told := receiver(t)
		_, _, err := r.hooks.Create(context.Background(), r.ownerOf(eveAddress), webhook.Change{URL: &url, Events: &[]string{"export.ready"}})
		if err != nil {
			t.Fatal(err)
		}
		path := b.ready()
		id := strings.TrimPrefix(path, "/v1/account/exports/")
		if body := heard(t, told); !strings.Contains(body, `"type":"export.ready"`) || !strings.Contains(body, `"data":{"id":"`+id+`","url":"`+path+`"}`) {
			t.Error(body)
		}
	})
}

// What the document offers is what the room knows.
func TestTheEventsOfWebhooksAreTheRooms(t *testing.T) {
	t.Parallel()
	names := func(list []events.Type) string {
		all := make([]string, len(list))
		for i, e := range list {
			all[i] = string(e)
		}
		return strings.Join(all, ",")
	}
	for kind, want := range map[reflect.Type][]events.Type{reflect.TypeFor[addWebhookBody](): webhook.Told, reflect.TypeFor[updateWebhookBody](): webhook.Told, reflect.TypeFor[createBody](): webhook.ToldOnce} {
		f, ok := kind.FieldByName("Events")
		if !ok {
			f, _ = kind.FieldByName("WebhookEvents")
		}
		if got := f.Tag.Get("enum"); got != names(want) || f.Tag.Get("maxItems") != strconv.Itoa(len(want)) {
			t.Errorf("%s offers %s, at most %s; told are %s", kind.Name(), got, f.Tag.Get("maxItems"), names(want))
		}
	}
}
