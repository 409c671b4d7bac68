package httpapi

import (
	"net/http"
	"strings"
	"testing"
)

// link makes a signed one and returns its path.
func (r *rig) link(key, image, body string) string {
	r.t.Helper()
	a := r.do("POST", "/v1/images/"+image+"/links", key, body)
	if a.status != 200 {
		r.t.Fatalf("%d %s", a.status, a.body)
	}
	return a.text(r.t, "url")
}

// same reports whether two answers tell a stranger the same.
func same(t *testing.T, a, b answered) bool {
	t.Helper()
	plain := func(a answered) string { return strings.Replace(a.body, a.text(t, "request_id"), "", 1) }
	for _, h := range []http.Header{a.Header, b.Header} {
		h.Del("X-Request-ID")
		h.Del("Date")
	}
	return a.status == b.status && plain(a) == plain(b) && headersEqual(a.Header, b.Header)
}

func headersEqual(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if a.Get(name) != b.Get(name) {
			return false
		}
	}
	return true
}

func TestPromise_D4_ASignedLinkIsForWhoeverHasItUntilItIsRevoked(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		_, image := r.finished(r.ada)
		whole := r.do("GET", "/v1/images/"+image+"/content", r.ada, "")
		small := r.do("GET", "/v1/images/"+image+"/content?thumbnail", r.ada, "")
		picture, thumbnail := r.link(r.readOnly, image, `{}`), r.link(r.ada, image, `{"thumbnail":true,"expires_in":86400}`)
		for path, want := range map[string]answered{picture: whole, thumbnail: small} {
			if strings.Contains(path, r.ada) || strings.Contains(path, r.readOnly) || strings.Contains(path, "zi_") {
				t.Errorf("a key stands in %s", path)
			}
			for _, method := range []string{"GET", "HEAD"} {
				a := r.do(method, path, "", "")
				if a.status != 200 || method == "GET" && a.body != want.body || a.Header.Get("Content-Type") != want.Header.Get("Content-Type") {
					t.Fatalf("%s: %d %v", method, a.status, a.Header)
				}
				for name, value := range map[string]string{
					"Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex",
					"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "cross-origin", "Set-Cookie": "", "ETag": "",
				} {
					if got := a.Header.Get(name); got != value {
						t.Errorf("%s is %q, want %q", name, got, value)
					}
				}
				if line := r.lineOf(a); !strings.Contains(line, `"route":"/v1/links/:token"`) || strings.Contains(line, "127.0.0.1") || strings.Contains(line, image) {
					t.Errorf("the log has %s", line)
				}
			}
		}

		for what, a := range map[string]answered{
			"somebody else's": r.do("POST", "/v1/images/"+image+"/links", r.ben, `{}`), "nobody's": r.do("POST", "/v1/images/img_00000000000000000000000000/links", r.ada, `{}`),
		} {
			if a.status != 404 {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		for _, body := range []string{`{"expires_in":0}`, `{"expires_in":86401}`, `{"expires_in":-1}`, `{"thumbnail":1}`, `{"title":"x"}`} {
			if a := r.do("POST", "/v1/images/"+image+"/links", r.ada, body); a.status != 400 {
				t.Errorf("%s: %d %s", body, a.status, a.body)
			}
		}

		// Wrong, revoked, and of a picture that is gone: all the same.
		wrong := r.do("GET", picture[:len(picture)-1]+map[bool]string{true: "A", false: "_"}[strings.HasSuffix(picture, "_")], "", "")
		unknown := r.do("GET", "/v1/links/x", "", "")
		if a := r.do("DELETE", "/v1/links", r.readOnly, ""); a.status != 403 {
			t.Errorf("revoked by a key that only reads: %d", a.status)
		}
		if a := r.do("DELETE", "/v1/links", r.ben, ""); a.status != 204 || r.do("GET", picture, "", "").status != 200 {
			t.Errorf("ben revoked ada's: %d", a.status)
		}
		if a := r.do("DELETE", "/v1/links", r.ada, ""); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		revoked := r.do("GET", picture, "", "")
		later := r.link(r.ada, image, `{}`)
		if a := r.do("GET", later, "", ""); a.status != 200 {
			t.Errorf("made after the others were revoked: %d %s", a.status, a.body)
		}
		if a := r.do("DELETE", "/v1/images/"+image, r.ada, ""); a.status != 204 {
			t.Fatal(a.status, a.body)
		}
		gone := r.do("GET", later, "", "")
		if unknown.status != 404 || unknown.field(t, "code") != "not_found" {
			t.Fatalf("%d %s", unknown.status, unknown.body)
		}
		for what, a := range map[string]answered{"wrong": wrong, "revoked": revoked, "of a picture that is gone": gone} {
			if !same(t, a, unknown) {
				t.Errorf("%s: %d %v %s, unknown: %v %s", what, a.status, a.Header, a.body, unknown.Header, unknown.body)
			}
		}
	})
}

// Those who fetch pictures by links keep nobody out but each other.
func TestViewersHavePlacesOfTheirOwn(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		_, image := r.finished(r.ada)
		picture := r.link(r.ada, image, `{}`)
		for range 3 { // each gives its place back
			if a := r.do("GET", picture, "", ""); a.status != 200 {
				t.Fatal(a.status, a.body)
			}
		}
		if a := r.do("GET", "/v1/links/x", "", ""); a.status != 404 {
			t.Fatal(a.status)
		}
		viewers := &r.api.strangers.viewers
		viewers.mu.Lock()
		left := len(viewers.in)
		for range mostViewers {
			viewers.in = append(viewers.in, &stranger{hall: viewers})
		}
		viewers.mu.Unlock()
		if left > 1 { // the last may not have left yet
			t.Errorf("%d places are still taken", left)
		}
		if a := r.do("GET", picture, "", ""); a.status != 503 || a.Header.Get("Retry-After") == "" {
			t.Errorf("beyond the last place: %d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/privacy/ledger/checkpoint", "", ""); a.status != 200 {
			t.Errorf("they keep others out: %d %s", a.status, a.body)
		}
	})
}
