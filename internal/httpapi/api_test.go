package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/vault"
	"zimage/internal/webhook"
)

// rig is the API on real rooms, with two people and an engine that waits to be
// let go.
type rig struct {
	t              *testing.T
	api            *API
	url            string
	log            safeBuffer
	ada, ben       string // keys that may everything
	readOnly       string // another of ada's
	db             *db.DB
	objects        objects.Store
	pass           func()                // lets the engine finish one image
	asked          func() engine.Request // what the engine was last asked for
	person         func(name string) (key string)
	revoke         func(key string)
	keyOf          func(token string) string // its id
	ownerOf        func(email string) string // their subject id
	accounts       *account.Service
	otherProcess   func() *account.Service // of the same installation
	accountOptions account.Options
	hooks          *webhook.Service
	vault          *vault.Vault
	ledger         *privacy.Ledger
	usage          *privacy.Usage
	options        Options // of the API, to serve it once more with others
}

func (r *rig) serve(o Options) {
	r.t.Helper()
	r.options = o
	var err error
	if r.api, err = New(o); err != nil {
		r.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(r.api.Handler())
	// Short, so that a wait or a stream that lifts no deadline is cut.
	s.Config.ReadTimeout, s.Config.WriteTimeout = 2*time.Second, 2*time.Second
	s.Config.RegisterOnShutdown(r.api.Close)
	s.Start()
	r.t.Cleanup(func() {
		r.api.Close()
		s.Close()
	})
	r.url = s.URL
}

// answered is an answer and its body.
type answered struct {
	*http.Response
	status int
	body   string
}

func (a answered) field(t *testing.T, path string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%d: not JSON: %s", a.status, a.body)
	}
	for part := range strings.SplitSeq(path, ".") {
		if list, ok := v.([]any); ok {
			if len(list) == 0 {
				return nil
			}
			v = list[0]
		}
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[part]
	}
	return v
}

func (a answered) text(t *testing.T, path string) string {
	t.Helper()
	s, ok := a.field(t, path).(string)
	if !ok {
		t.Fatalf("%d: no text at %s: %s", a.status, path, a.body)
	}
	return s
}

func (r *rig) do(method, path, key, body string, headers ...string) answered {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return r.send(req)
}

func (r *rig) send(req *http.Request) answered {
	r.t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answered{res, res.StatusCode, string(b)}
}

func (r *rig) submit(key string) (id string) {
	r.t.Helper()
	a := r.do("POST", "/v1/generations", key, `{"prompt":"`+secret+`","width":64,"height":64}`)
	if a.status != 202 {
		r.t.Fatalf("%d %s", a.status, a.body)
	}
	return a.text(r.t, "id")
}

// finished submits and waits for the pictures.
func (r *rig) finished(key string) (id, image string) {
	r.t.Helper()
	id = r.submit(key)
	r.pass()
	a := r.do("GET", "/v1/generations/"+id, key, "", "Prefer", "wait=30")
	if a.field(r.t, "status") != "succeeded" {
		r.t.Fatalf("%d %s", a.status, a.body)
	}
	return id, a.text(r.t, "images.id")
}

func (r *rig) quiet() {
	r.t.Helper()
	if strings.Contains(r.log.String(), secret) {
		r.t.Errorf("the prompt is logged: %s", r.log.String())
	}
}

func TestSubmitWaitAndDownload(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"`+secret+`","width":64,"height":64,"metadata":{"order":"17"}}`)
		id := a.text(t, "id")
		if a.status != 202 || a.Header.Get("Location") != "/v1/generations/"+id || a.field(t, "prompt") != secret {
			t.Fatalf("%d %v %s", a.status, a.Header, a.body)
		}
		if a.field(t, "urls.events") != "/v1/generations/"+id+"/events" || a.field(t, "status") == nil {
			t.Errorf("%s", a.body)
		}
		if a.Header.Get("RateLimit-Limit") != "600" || a.Header.Get("RateLimit-Remaining") == "" || a.Header.Get("RateLimit-Reset") == "" {
			t.Errorf("rate headers: %v", a.Header)
		}

		// A wait that is over before anything happens; longer than the server's own
		// write timeout.
		began := time.Now()
		a = r.do("GET", "/v1/generations/"+id, r.ada, "", "Prefer", "wait=3")
		if took := time.Since(began); a.status != 202 || a.Header.Get("Preference-Applied") != "wait=3" || took < 3*time.Second {
			t.Errorf("%d after %v: %v", a.status, took, a.Header)
		}
		r.pass()
		a = r.do("GET", "/v1/generations/"+id, r.ada, "", "Prefer", "wait=60")
		if a.status != 200 || a.field(t, "status") != "succeeded" || a.field(t, "progress.fraction") != 1.0 && a.field(t, "progress.image") == nil {
			t.Fatalf("%s", a.body)
		}
		image := a.text(t, "images.id")
		if a.field(t, "images.url") != "/v1/images/"+image+"/content" {
			t.Errorf("%s", a.body)
		}

		a = r.do("GET", "/v1/images/"+image, r.ada, "")
		if a.status != 200 || a.field(t, "generation_id") != id {
			t.Errorf("%d %s", a.status, a.body)
		}
		sum := a.text(t, "sha256")
		a = r.do("GET", "/v1/images/"+image+"/content", r.ada, "")
		for name, want := range map[string]string{
			"Content-Type": "image/png", "Content-Length": fmt.Sprint(len(a.body)), "Cache-Control": "private, no-store",
			"Content-Disposition": `inline; filename="` + image + `.png"`, "Etag": `"` + sum + `"`, "X-Content-Type-Options": "nosniff",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if got := sha256.Sum256([]byte(a.body)); a.status != 200 || len(sum) == 64 && hex.EncodeToString(got[:]) != sum {
			t.Errorf("%d, %d bytes that are not the picture", a.status, len(a.body))
		}
		if strings.Contains(a.body, secret) {
			t.Error("the prompt stands in the file")
		}
		if a := r.do("GET", "/v1/images/"+image+"/content", r.ada, "", "If-None-Match", a.Header.Get("ETag")); a.status != 304 || a.body != "" {
			t.Errorf("the same file again: %d", a.status)
		}
		if a := r.do("HEAD", "/v1/images/"+image+"/content", r.ada, ""); a.status != 200 || a.body != "" || a.ContentLength <= 0 || a.Header.Get("Content-Type") != "image/png" {
			t.Errorf("HEAD: %d %v", a.status, a.Header)
		}
		for query, kind := range map[string]string{
			"?thumbnail": "image/jpeg", "?thumbnail=": "image/jpeg", "?thumbnail=true": "image/jpeg", "?thumbnail=1": "image/jpeg",
			"": "image/png", "?thumbnail=false": "image/png", "?thumbnail=0": "image/png",
		} {
			a := r.do("GET", "/v1/images/"+image+"/content"+query, r.ada, "")
			if a.status != 200 || a.Header.Get("Content-Type") != kind || a.ContentLength != int64(len(a.body)) || http.DetectContentType([]byte(a.body)) != kind {
				t.Errorf("content%s: %d %v, want %s", query, a.status, a.Header, kind)
			}
		}
		if a := r.do("GET", "/v1/images/"+image+"/content?thumbnail=small", r.ada, ""); a.status != 400 || a.field(t, "errors.location") != "query.thumbnail" {
			t.Errorf("a thumbnail that is neither true nor false: %d %s", a.status, a.body)
		}
		a = r.do("GET", "/v1/images/"+image+"/content?thumbnail", r.ada, "")
		if again := r.do("GET", "/v1/images/"+image+"/content?thumbnail=true", r.ada, "", "If-None-Match", a.Header.Get("ETag")); again.status != 304 {
			t.Errorf("thumbnail again: %d", again.status)
		}
		if a := r.do("GET", "/v1/models", r.readOnly, ""); a.status != 200 || a.field(t, "object") != "list" || a.field(t, "data.object") != "model" || a.field(t, "data.id") == nil {
			t.Errorf("models: %d %s", a.status, a.body)
		}
		r.quiet()
	})
}

func TestWaitOnSubmit(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		go r.pass()
		a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"`+secret+`","width":64,"height":64}`, "Prefer", "respond-async, wait=60")
		if a.status != 200 || a.field(t, "status") != "succeeded" || a.Header.Get("Preference-Applied") != "wait=60" || a.Header.Get("Location") == "" {
			t.Errorf("%d %v %s", a.status, a.Header, a.body)
		}
		a = r.do("POST", "/v1/generations", r.ada, `{"prompt":"`+secret+`","width":64,"height":64}`, "Prefer", "wait=1")
		if a.status != 202 || a.field(t, "status") == "succeeded" {
			t.Errorf("%d %s", a.status, a.body)
		}
		id := a.text(t, "id")
		// Closing ends a wait at once, with what is known.
		testenv.Eventually(t, 10*time.Second, func() bool { return r.do("GET", "/v1/generations/"+id, r.ada, "").status == 200 })
		done := make(chan answered, 1)
		go func() { done <- r.do("GET", "/v1/generations/"+id, r.ada, "", "Prefer", "wait=60") }()
		r.api.Close()
		select {
		case a := <-done:
			if a.status != 202 {
				t.Errorf("%d %s", a.status, a.body)
			}
		case <-time.After(20 * time.Second):
			t.Error("a wait outlives the server")
		}
	})
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		first := r.do("POST", "/v1/generations", r.ada, `{"prompt":"`+secret+`","width":64,"height":64}`, "Idempotency-Key", "order-17")
		again := r.do("POST", "/v1/generations", r.ada, `{ "height":64, "width":64, "prompt":"`+secret+`"}`, "Idempotency-Key", "order-17")
		if first.status != 202 || again.status != 202 || first.field(t, "id") != again.field(t, "id") {
			t.Errorf("%d %s, then %d %s", first.status, first.body, again.status, again.body)
		}
		if first.Header.Get("Idempotency-Replayed") != "" || again.Header.Get("Idempotency-Replayed") != "true" {
			t.Error("Idempotency-Replayed is wrong")
		}
		if a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"another"}`, "Idempotency-Key", "order-17"); a.status != 422 || a.field(t, "code") != "idempotency_mismatch" {
			t.Errorf("another body: %d %s", a.status, a.body)
		}
		if a := r.do("POST", "/v1/generations", r.ben, `{"prompt":"another","width":64,"height":64}`, "Idempotency-Key", "order-17"); a.status != 202 {
			t.Errorf("somebody else's key: %d %s", a.status, a.body)
		}
		for _, bad := range [][]string{{""}, {"order-17", "order-17"}} {
			req, err := http.NewRequest("POST", r.url+"/v1/generations", strings.NewReader(`{"prompt":"x","width":64,"height":64}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header = http.Header{"Authorization": {"Bearer " + r.ada}, "Content-Type": {"application/json"}, "Idempotency-Key": bad}
			if a := r.send(req); a.status != 400 || a.field(t, "errors.location") != "header.Idempotency-Key" {
				t.Errorf("%q: %d %s", bad, a.status, a.body)
			}
		}
		for _, bad := range []string{"two words", strings.Repeat("k", 256), "caf\u00e9"} {
			a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"x"}`, "Idempotency-Key", bad)
			if a.status != 400 || a.field(t, "errors.location") != "header.Idempotency-Key" || strings.Contains(a.body, bad) {
				t.Errorf("%q: %d %s", bad, a.status, a.body)
			}
		}
		r.quiet()
	})
}

// On every route with an id, what belongs to somebody else is not there.
func TestSomebodyElseSeesNothing(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		id, image := r.finished(r.ada)
		owner := r.ownerOf("ada@example.org")
		adas := &browser{rig: r}
		adas.want(200, "POST", "/v1/session", `{"email":"ada@example.org","password":"some long words for anybody"}`)
		bens := &browser{rig: r}
		bens.want(200, "POST", "/v1/session", `{"email":"ben@example.org","password":"some long words for anybody"}`)
		hook, delivery := r.webhookOf(owner)
		things := map[string]string{
			"/v1/webhooks": hook, "/v1/deliveries": delivery,
			"/v1/images": image, "/v1/sessions": adas.want(200, "GET", "/v1/session", "").text(t, "id"),
			"/v1/keys": r.keyOf(r.ada), "/v1/account/passkeys": "pk_00000000000000000000000000", "/v1/admin": owner,
			"/v1/shares": adas.want(201, "POST", "/v1/images/"+image+"/shares", `{}`).text(t, "id"),
		}
		made := 0
		for path, item := range r.api.spec.OpenAPI().Paths {
			if !strings.Contains(path, "{id}") {
				continue
			}
			for method, op := range map[string]any{"GET": item.Get, "POST": item.Post, "DELETE": item.Delete} {
				if fmt.Sprint(op) == "<nil>" {
					continue
				}
				mine := id
				for prefix, thing := range things {
					if strings.HasPrefix(path, prefix) {
						mine = thing
					}
				}
				body, wanted := "", 404
				if method == "POST" && strings.HasPrefix(path, "/v1/privacy/receipts") {
					body = `{"secret":"zr_of_somebody_else"}`
				}
				if strings.HasPrefix(path, "/v1/admin") {
					body, wanted = `{"reason":"I would like to know"}`, 403 // to who is no staff
				}
				if strings.HasSuffix(path, "/disclosures") {
					body = `{"reason":"I would like to know","case":"c","authority":"a","scope":"s","may_be_told":true}`
				}
				if strings.HasSuffix(path, "/close") {
					body = `{"reason":"I would like to know","outcome":"done"}`
				}
				if strings.HasPrefix(path, "/v1/privacy/receipts") && method == "POST" {
					body = `{"secret":"zr_x"}`
				}
				if strings.HasSuffix(path, "/links") || method == "POST" && strings.HasSuffix(path, "/shares") {
					body = `{}`
				}
				made++
				a := bens.do(method, strings.Replace(path, "{id}", mine, 1), body)
				if wanted == 403 && a.status == 403 && !strings.Contains(a.body, mine) {
					continue
				}
				if a.status != 404 || a.field(t, "code") != "not_found" || strings.Contains(a.body, secret) || strings.Contains(a.body, mine) {
					t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
				}
				for _, strange := range []string{"gen_", "img_", "gen_UPPERCASE99", "gen_00000000000000000000000000", "img_00000000000000000000000000", "%00", "gen_a%00bcdefghi", "..%2f..", strings.Repeat("a", 3000)} {
					a := adas.do(method, strings.Replace(path, "{id}", strange, 1), body)
					if a.status != 404 || a.field(t, "code") != "not_found" {
						t.Errorf("%s %s with a strange id: %d %s", method, path, a.status, a.body)
					}
				}
			}
		}
		if made != 34 {
			t.Errorf("%d routes with an id were tried, want 34", made)
		}
		adas.want(200, "GET", "/v1/session", "")
		if a := r.do("GET", "/v1/generations", r.ben, ""); a.status != 200 || strings.Contains(a.body, id) || strings.Contains(a.body, secret) {
			t.Errorf("list: %d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/generations/"+id, r.ada, ""); a.status != 200 {
			t.Errorf("its owner: %d", a.status)
		}
		r.quiet()
	})
}

func TestScopesAndKeys(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			method, path, body string
			status             int
		}{
			{"GET", "/v1/generations", "", 200},
			{"GET", "/v1/models", "", 200},
			{"POST", "/v1/generations", `{"prompt":"x"}`, 403},
			{"DELETE", "/v1/generations", `{"all":true}`, 403},
			{"DELETE", "/v1/images", `{"all":true}`, 403},
			{"POST", "/v1/generations/gen_00000000000000000000000000/cancel", "", 403},
			{"DELETE", "/v1/generations/gen_00000000000000000000000000", "", 403},
			{"DELETE", "/v1/images/img_00000000000000000000000000", "", 403},
		} {
			a := r.do(c.method, c.path, r.readOnly, c.body)
			if a.status != c.status {
				t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
			}
		}
		r.revoke(r.readOnly)
		testenv.Eventually(t, 5*time.Second, func() bool { return r.do("GET", "/v1/models", r.readOnly, "").status == 401 })
		if a := r.do("GET", "/v1/models", "zi_unknown", ""); a.status != 401 || a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("unknown key: %d %v", a.status, a.Header)
		}
		for range 40 {
			r.do("GET", "/v1/models", "zi_unknown", "")
		}
		if a := r.do("GET", "/v1/models", "zi_unknown", ""); a.status != 429 || a.Header.Get("Retry-After") == "" {
			t.Errorf("after 41 tries: %d", a.status)
		}
		if a := r.do("GET", "/v1/models", r.ben, ""); a.status == 401 {
			t.Error("a good key is refused")
		}
		if strings.Contains(r.log.String(), "zi_") || strings.Contains(r.log.String(), "127.0.0.1") {
			t.Errorf("a key or an address is logged: %s", r.log.String())
		}
	})
}

func TestHostileBodies(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		for _, c := range []struct {
			name, body string
			status     int
			code       string
			location   string
		}{
			{"empty", " ", 400, "invalid_request", "body"},
			{"no object", `"` + secret + `"`, 400, "invalid_request", "body"},
			{"null", `null`, 400, "invalid_request", "body"},
			{"no prompt", `{}`, 400, "invalid_request", "body.prompt"},
			{"empty prompt", `{"prompt":""}`, 400, "invalid_request", "body.prompt"},
			{"blank prompt", `{"prompt":" \n\t\u200b\u00a0"}`, 400, "invalid_request", "body.prompt"},
			{"huge prompt", `{"prompt":"` + strings.Repeat("a", 40000) + secret + `"}`, 400, "invalid_request", "body.prompt"},
			{"huge body", `{"prompt":"` + strings.Repeat(secret, 20000) + `"}`, 413, "too_large", ""},
			{"not UTF-8", "{\"prompt\":\"" + secret + "\xff\"}", 400, "invalid_request", "body"},
			{"lone surrogate", `{"prompt":"` + secret + `\ud800"}`, 400, "invalid_request", "body.prompt"},
			{"replacement character", `{"prompt":"` + secret + "\ufffd\"}", 400, "invalid_request", "body.prompt"},
			{"NUL", `{"prompt":"` + secret + `\u0000"}`, 400, "invalid_request", "body.prompt"},
			{"unknown field", `{"prompt":"x","` + secret + `":"` + secret + `"}`, 400, "invalid_request", "body"},
			{"other case", `{"Prompt":"` + secret + `"}`, 400, "invalid_request", "body.prompt"},
			{"twice", `{"prompt":"x","prompt":"` + secret + `"}`, 400, "invalid_request", "body"},
			{"trailing", `{"prompt":"x"} ` + secret, 400, "invalid_request", "body"},
			{"wrong type", `{"prompt":["` + secret + `"]}`, 400, "invalid_request", "body.prompt"},
			{"number as text", `{"prompt":"x","width":"` + secret + `"}`, 400, "invalid_request", "body.width"},
			{"zero width", `{"prompt":"x","width":0}`, 400, "invalid_request", "body.width"},
			{"negative height", `{"prompt":"x","height":-64}`, 400, "invalid_request", "body.height"},
			{"enormous width", `{"prompt":"x","width":99999999999999999999}`, 400, "invalid_request", "body.width"},
			{"fraction", `{"prompt":"x","width":64.5}`, 400, "invalid_request", "body.width"},
			{"exponent", `{"prompt":"x","width":1e3}`, 400, "invalid_request", "body"},
			{"seed out of range", `{"prompt":"x","seed":4294967296}`, 400, "invalid_request", "body.seed"},
			{"unknown model", `{"prompt":"x","model":"` + secret + `"}`, 400, "invalid_request", "body.model"},
			{"unknown format", `{"prompt":"x","format":"` + secret + `"}`, 400, "invalid_request", "body.format"},
			{"metadata of other types", `{"prompt":"x","metadata":{"` + secret + `":{"a":1}}}`, 400, "invalid_request", "body.metadata"},
			{"too much metadata", `{"prompt":"x","metadata":{` + strings.TrimSuffix(manyPairs(17), ",") + `}}`, 400, "invalid_request", "body.metadata"},
		} {
			t.Run(c.name, func(t *testing.T) {
				a := r.do("POST", "/v1/generations", r.ada, c.body)
				if a.status != c.status || a.field(t, "code") != c.code || a.Header.Get("Content-Type") != problemJSON {
					t.Fatalf("%d %s", a.status, a.body)
				}
				if c.location != "" && a.field(t, "errors.location") != c.location {
					t.Errorf("location: %s", a.body)
				}
				if strings.Contains(a.body, secret) || strings.Contains(a.body, `"value"`) {
					t.Errorf("what was sent comes back: %s", a.body)
				}
			})
		}
		for _, c := range []struct{ kind, encoding string }{
			{"text/plain", ""}, {"application/x-www-form-urlencoded", ""}, {"", ""}, {"application/json; charset=latin1", ""}, {"application/json", "gzip"}, {"application/" + secret, ""},
		} {
			a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"x"}`, "Content-Type", c.kind, "Content-Encoding", c.encoding)
			if a.status != 415 || a.field(t, "code") != "unsupported_media" || strings.Contains(a.body, secret) {
				t.Errorf("%s %s: %d %s", c.kind, c.encoding, a.status, a.body)
			}
		}
		for query, location := range map[string]string{
			"limit=0": "query.limit", "limit=101": "query.limit", "limit=" + secret: "query.limit", "status=" + secret: "query.status",
			"limit=%zz": "query", "limit=1;status=queued": "query", "limit=1&limit=1": "query.limit", secret + "=1&" + secret + "=2": "query",
			secret + "=1": "query", "cursor=" + secret: "query.cursor", "cursor=%00%ff": "query.cursor",
		} {
			a := r.do("GET", "/v1/generations?"+query, r.ada, "")
			if a.status != 400 || a.field(t, "errors.location") != location || strings.Contains(a.body, secret) {
				t.Errorf("%s: %d %s", query, a.status, a.body)
			}
		}
		for _, body := range []string{`{}`, `{"ids":[]}`, `{"all":false}`, `{"ids":["img_00000000000000000000000000"],"all":true}`, `{"ids":["` + secret + `"]}`, `{"ids":["*"]}`} {
			for _, path := range []string{"/v1/images", "/v1/generations"} {
				if a := r.do("DELETE", path, r.ada, body); a.status != 400 || strings.Contains(a.body, secret) {
					t.Errorf("DELETE %s %s: %d %s", path, body, a.status, a.body)
				}
			}
		}
		for _, body := range []string{
			`{"prompt":` + strings.Repeat(`[1,`, 14) + `1` + strings.Repeat("]", 14) + `,` + strings.TrimSuffix(manyPairs(60), ",") + `}`,
			`{"ids":[` + strings.Repeat(`1,`, 999) + `1]}`, `{"ids":[` + strings.Repeat(`1,`, 100_000) + `1]}`,
		} {
			for _, method := range []string{"POST", "DELETE"} {
				if a := r.do(method, "/v1/generations", r.ada, body); a.status != 400 || len(a.body) > 4096 {
					t.Errorf("%d with %d bytes for %.20s…", a.status, len(a.body), body)
				}
			}
		}
		if a := r.do("POST", "/v1/generations", r.ada, `{"prompt":"x","seed":4294967296}`); !strings.HasSuffix(a.text(t, "errors.message"), " 4294967295") {
			t.Errorf("the bound of seed: %s", a.body)
		}
		if a := r.do("GET", "/v1/generations", r.ada, ""); a.field(t, "data.id") != nil {
			t.Errorf("a refused request made something: %s", a.body)
		}
		r.quiet()
	})
}

func manyPairs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"k%d":"v",`, i)
	}
	return b.String()
}

func TestCancelAndDelete(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		id := r.submit(r.ada)
		if a := r.do("POST", "/v1/generations/"+id+"/cancel", r.ada, ""); a.status != 200 || a.field(t, "id") != id {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/generations/"+id, r.ada, "", "Prefer", "wait=20"); a.field(t, "status") != "canceled" {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if a := r.do("POST", "/v1/generations/"+id+"/cancel", r.ada, ""); a.status != 200 {
			t.Errorf("canceled twice: %d", a.status)
		}
		if a := r.do("DELETE", "/v1/generations/"+id, r.ada, ""); a.status != 204 || a.body != "" {
			t.Fatalf("%d %s", a.status, a.body)
		}
		for _, path := range []string{"/v1/generations/" + id, "/v1/generations/" + id + "/events"} {
			if a := r.do("GET", path, r.ada, ""); a.status != 410 || a.field(t, "code") != "data_removed" || strings.Contains(a.body, secret) {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		_, image := r.finished(r.ada)
		if a := r.do("DELETE", "/v1/images/"+image, r.ada, ""); a.status != 204 {
			t.Errorf("image: %d %s", a.status, a.body)
		}
		for _, path := range []string{"", "/content", "/content?thumbnail=true"} {
			if a := r.do("GET", "/v1/images/"+image+path, r.ada, ""); a.status != 410 {
				t.Errorf("deleted image%s: %d %s", path, a.status, a.body)
			}
		}
		_, image = r.finished(r.ada)
		if a := r.do("DELETE", "/v1/images", r.ada, `{"ids":["`+image+`","img_00000000000000000000000000"]}`); a.status != 202 || a.field(t, "accepted") != 1.0 {
			t.Errorf("images: %d %s", a.status, a.body)
		}
		if a := r.do("DELETE", "/v1/images", r.ada, `{"all":true}`); a.status != 202 || a.field(t, "accepted") != 0.0 {
			t.Errorf("all images: %d %s", a.status, a.body)
		}
		if a := r.do("DELETE", "/v1/generations", r.ada, `{"all":true}`); a.status != 202 || a.field(t, "accepted") != 2.0 {
			t.Errorf("%d %s", a.status, a.body)
		}
		r.quiet()
	})
}

// event is one of a stream.
type event struct{ name, id, data string }

// open starts a stream with a key or a session. The channel is closed when the server ends it.
func (r *rig) open(ctx context.Context, id, key, last string) (*http.Response, <-chan event) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/v1/generations/"+id+"/events", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if strings.HasPrefix(key, "zs_") {
		req.AddCookie(&http.Cookie{Name: loopbackCookie, Value: key})
	} else {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	events := make(chan event, 64)
	go func() {
		defer close(events)
		defer func() { _ = res.Body.Close() }()
		var e event
		lines := bufio.NewReader(res.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), ": ")
			switch {
			case line == "\n" && e.name != "":
				events <- e
				e = event{}
			case name == "event":
				e.name = value
			case name == "id":
				e.id = value
			case name == "data":
				e.data = value
			}
		}
	}()
	return res, events
}

// state reads events up to the next change of state.
func state(t *testing.T, events <-chan event) (status, id string) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return "end", ""
			}
			if e.name == "problem" {
				return e.name, ""
			}
			var v struct{ Status, Prompt string }
			if err := json.NewDecoder(bytes.NewReader([]byte(e.data))).Decode(&v); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
			if e.name == "progress" {
				if e.id != "" || v.Prompt != "" {
					t.Errorf("progress carries more: %+v", e)
				}
				continue
			}
			return v.Status, e.id
		case <-timeout:
			t.Fatal("no event in time")
		}
	}
}

func TestEventStream(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		id := r.submit(r.ada)
		res, events := r.open(t.Context(), id, r.ada, "")
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" || res.Header.Get("Cache-Control") != "private, no-store" {
			t.Fatalf("%d %v", res.StatusCode, res.Header)
		}
		seen := map[string]string{}
		for status := ""; status != "running"; {
			var last string
			if status, last = state(t, events); status == "end" {
				t.Fatal("the stream ended")
			}
			seen[status] = last
		}
		// Silence for longer than the server's write timeout ends nothing; nor does
		// the look whether the key still holds.
		time.Sleep(4 * time.Second) // the passing of time is what is tested
		r.pass()
		status, last := state(t, events)
		if status != "succeeded" || last == "" {
			t.Fatalf("%s %s", status, last)
		}
		if status, _ := state(t, events); status != "end" {
			t.Fatalf("after the final state: %s", status)
		}

		// Whoever saw only that it runs is told the rest.
		res, events = r.open(t.Context(), id, r.ada, seen["running"])
		if status, got := state(t, events); res.StatusCode != http.StatusOK || status != "succeeded" || got != last {
			t.Errorf("resumed: %d %s %s", res.StatusCode, status, got)
		}
		// Whoever saw the end is sent home.
		if res, _ := r.open(t.Context(), id, r.ada, last); res.StatusCode != http.StatusNoContent {
			t.Errorf("resumed at the end: %d", res.StatusCode)
		}
		for _, strange := range []string{"x", "-1", "999999999", "99999999999999999999999"} {
			res, events := r.open(t.Context(), id, r.ada, strange)
			if status, _ := state(t, events); res.StatusCode != http.StatusOK || status != "succeeded" {
				t.Errorf("Last-Event-ID %s: %d %s", strange, res.StatusCode, status)
			}
		}
		if a := r.do("HEAD", "/v1/generations/"+id+"/events", r.ada, ""); a.status != 200 {
			t.Errorf("HEAD: %d", a.status)
		}
		r.quiet()
	})
}

func TestStreamsEndWithTheirKeyAndTheirData(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		removed, watched := r.submit(r.ada), r.submit(r.ada)
		_, deleted := r.open(t.Context(), removed, r.ada, "")
		_, revoked := r.open(t.Context(), watched, r.readOnly, "")
		_, kept := r.open(t.Context(), watched, r.ada, "")
		for _, events := range []<-chan event{deleted, revoked, kept} {
			if status, _ := state(t, events); status != "queued" && status != "running" {
				t.Fatal(status)
			}
		}
		began := time.Now()
		r.revoke(r.readOnly)
		for status := ""; status != "end"; {
			status, _ = state(t, revoked)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("the stream of a revoked key lived for %v", took)
		}
		if a := r.do("DELETE", "/v1/generations/"+removed, r.ada, ""); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		var last string
		for status := ""; status != "end"; {
			last = status
			status, _ = state(t, deleted)
		}
		if last != "problem" && last != "canceled" {
			t.Errorf("the stream of what was deleted ended with %q", last)
		}
		r.api.Close()
		for status := ""; status != "end"; {
			status, _ = state(t, kept)
		}
		r.quiet()
	})
}

func TestRateLimitOfAKey(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		r.api.keys.rate = perMinute(5)
		var a answered
		for range 6 {
			a = r.do("GET", "/v1/models", r.ada, "")
		}
		if a.status != 429 || a.field(t, "code") != "rate_limited" || a.Header.Get("Retry-After") == "" ||
			a.Header.Get("RateLimit-Remaining") != "0" || a.Header.Get("RateLimit-Limit") != "5" {
			t.Errorf("%d %v %s", a.status, a.Header, a.body)
		}
		if a := r.do("GET", "/v1/models", r.ben, ""); a.status != 200 {
			t.Errorf("another key: %d", a.status)
		}
	})
}

func TestTooManyStreamsOfAKey(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		r.api.open.most = 2
		id := r.submit(r.ada)
		first, leave := context.WithCancel(t.Context())
		defer leave()
		for _, ctx := range []context.Context{first, t.Context()} {
			if res, _ := r.open(ctx, id, r.ada, ""); res.StatusCode != http.StatusOK {
				t.Fatal(res.StatusCode)
			}
		}
		for _, c := range []struct{ method, path, body string }{
			{"GET", "/v1/generations/" + id + "/events", ""}, {"GET", "/v1/generations/" + id, ""},
			{"POST", "/v1/generations", `{"prompt":"x","width":64,"height":64}`},
		} {
			a := r.do(c.method, c.path, r.ada, c.body, "Prefer", "wait=1")
			if a.status != 429 || a.field(t, "code") != "rate_limited" || a.Header.Get("Retry-After") == "" {
				t.Errorf("%s %s: %d %s", c.method, c.path, a.status, a.body)
			}
		}
		var list struct{ Data []any }
		if a := r.do("GET", "/v1/generations", r.ada, ""); json.Unmarshal([]byte(a.body), &list) != nil || len(list.Data) != 1 {
			t.Errorf("a refused wait made something: %s", a.body)
		}
		if a := r.do("GET", "/v1/generations/"+id, r.readOnly, "", "Prefer", "wait=1"); a.status != 202 {
			t.Errorf("another key: %d", a.status)
		}
		leave()
		testenv.Eventually(t, 20*time.Second, func() bool {
			return r.do("GET", "/v1/generations/"+id, r.ada, "", "Prefer", "wait=1").status == 202
		})
	})
}

// What a room logs while it serves a request is found by the request's id.
func TestTheRoomsLinesCarryTheRequestID(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		carries := func(a answered, level, message string) {
			t.Helper()
			for line := range strings.Lines(r.log.String()) {
				var said struct {
					Level, Msg string
					Request    string `json:"request_id"`
				}
				if json.Unmarshal([]byte(line), &said) == nil && said.Msg == message {
					if said.Level != level || said.Request != a.Header.Get("X-Request-ID") {
						t.Errorf("request %s: %s", a.Header.Get("X-Request-ID"), line)
					}
					return
				}
			}
			t.Errorf("%q was not logged", message)
		}
		_, image := r.finished(r.ada)
		stored, err := r.objects.List(t.Context(), "images/", "", 10)
		if err != nil || len(stored) != 2 {
			t.Fatalf("%d objects, %v", len(stored), err)
		}
		if err := r.objects.Delete(t.Context(), stored[0].Key, stored[1].Key); err != nil {
			t.Fatal(err)
		}
		a := r.do("GET", "/v1/images/"+image+"/content", r.ada, "")
		if a.status != 500 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		carries(a, "ERROR", "an image's object is missing")

		// Accepted all the same, when only its place in the queue cannot be told.
		rename := func(from, to string) {
			t.Helper()
			if _, err := r.db.Exec(t.Context(), `ALTER TABLE `+from+` RENAME TO `+to); err != nil {
				t.Fatal(err)
			}
		}
		rename("workers", "elsewhere")
		a = r.do("POST", "/v1/generations", r.ada, `{"prompt":"`+secret+`","width":64,"height":64}`)
		rename("elsewhere", "workers")
		if a.status != 202 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		carries(a, "WARN", "could not tell a generation's place in the queue")
		r.quiet()
	})
}
