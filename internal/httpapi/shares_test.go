package httpapi

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"zimage/internal/privacy"
	"zimage/internal/web"
)

// withPages serves the pages too.
func (r *rig) withPages() {
	r.t.Helper()
	o := r.options
	var err error
	o.Pages, err = web.New(web.Options{Policy: privacy.Statement{Policy: privacy.DefaultPolicy()}, Clock: o.Clock, Shares: o.Generate})
	if err != nil {
		r.t.Fatal(err)
	}
	o.Registry = nil
	r.serve(o)
}

func TestPromise_C3_SharingIsAnActOfASession(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		_, image := r.finished(r.ada)
		adas := &browser{rig: r}
		adas.want(200, "POST", "/v1/session", `{"email":"ada@example.org","password":"some long words for anybody"}`)
		path := "/v1/images/" + image + "/shares"
		if a := r.do("POST", path, r.ada, `{}`); a.status != 403 {
			t.Errorf("a key shares: %d %s", a.status, a.body)
		}
		if a := r.do("GET", "/v1/shares", r.ada, ""); a.status != 200 || a.body != `{"data":[]}`+"\n" {
			t.Errorf("shared before anybody shared: %s", a.body)
		}
		for _, body := range []string{`{"expires_in":0}`, `{"expires_in":31536001}`, `{"title":"x"}`, `[]`} {
			adas.want(400, "POST", path, body)
		}
		first := adas.want(201, "POST", path, `{}`)
		second := adas.want(201, "POST", path, `{"expires_in":60}`)
		at := func(a answered, field string) time.Time {
			v, err := time.Parse(time.RFC3339, a.text(t, field))
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if life := at(first, "expires_at").Sub(at(first, "created_at")); life != 7*24*time.Hour {
			t.Errorf("it lives %s", life)
		}
		if life := at(second, "expires_at").Sub(at(second, "created_at")); life != time.Minute {
			t.Errorf("it lives %s", life)
		}
		list := r.do("GET", "/v1/shares?limit=1", r.readOnly, "")
		if list.text(t, "data.id") != second.text(t, "id") || list.text(t, "next_cursor") != second.text(t, "id") || strings.Contains(list.body, `"url"`) {
			t.Errorf("%s", list.body)
		}
		list = r.do("GET", "/v1/shares?cursor="+second.text(t, "id"), r.readOnly, "")
		if list.text(t, "data.id") != first.text(t, "id") || list.field(t, "next_cursor") != nil {
			t.Errorf("%s", list.body)
		}
		if a := r.do("GET", "/v1/shares?cursor=x", r.ada, ""); a.status != 400 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("DELETE", "/v1/shares/"+first.text(t, "id"), r.readOnly, ""); a.status != 403 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("DELETE", "/v1/shares/"+first.text(t, "id"), r.ada, ""); a.status != 204 {
			t.Errorf("%d %s", a.status, a.body)
		}
		if a := r.do("DELETE", "/v1/shares", r.ada, ""); a.status != 204 || r.do("GET", "/v1/shares", r.ada, "").body != `{"data":[]}`+"\n" {
			t.Errorf("%d %s", a.status, a.body)
		}
		r.quiet()
	})
}

// What a share's page is to whoever opens it, and that nothing of them is kept.
func TestPromise_D4_ASharedPictureIsShownUntilItsOwnerEndsIt(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		r.withPages()
		_, image := r.finished(r.ada)
		whole := r.do("GET", "/v1/images/"+image+"/content", r.ada, "")
		adas := &browser{rig: r}
		adas.want(200, "POST", "/v1/session", `{"email":"ada@example.org","password":"some long words for anybody"}`)
		share := adas.want(201, "POST", "/v1/images/"+image+"/shares", `{}`)
		url := share.text(t, "url")
		if !regexp.MustCompile(`^/s/[a-z2-7]{32}$`).MatchString(url) {
			t.Fatalf("it is at %s", url)
		}
		visit := func(path string) answered {
			t.Helper()
			return r.do("GET", path, "", "", "User-Agent", "Peculiar/9.9", "Referer", "https://elsewhere.example/")
		}
		page := visit(url)
		if page.status != 200 || !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") {
			t.Fatalf("%d %s", page.status, page.body)
		}
		for name, want := range map[string]string{
			"Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Set-Cookie": "",
			"Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		} {
			if got := page.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if !strings.HasPrefix(page.Header.Get("X-Robots-Tag"), "noindex") || !strings.Contains(page.body, `<meta name="robots" content="noindex`) || !strings.Contains(page.body, `<meta name="referrer" content="no-referrer">`) {
			t.Errorf("search engines and other sites are told of it: %v", page.Header)
		}
		for _, absent := range []string{secret, "<script", "ada", image, `src="http`, r.ownerOf("ada@example.org")} {
			if strings.Contains(page.body, absent) {
				t.Errorf("the page has %s: %s", absent, page.body)
			}
		}
		if !strings.Contains(page.body, "Drawn by a computer program, without an AI model.") { // as the illustrator does
			t.Errorf("the page does not say what made it: %s", page.body)
		}
		src := regexp.MustCompile(`<img src="([^"]+)"`).FindStringSubmatch(page.body)
		if src == nil {
			t.Fatalf("no picture: %s", page.body)
		}
		picture := visit(src[1])
		if picture.status != 200 || picture.body != whole.body || picture.Header.Get("Cache-Control") != "private, no-store" || picture.Header.Get("X-Robots-Tag") != "noindex" ||
			picture.Header.Get("Cross-Origin-Resource-Policy") != "same-origin" || picture.Header.Get("Set-Cookie") != "" {
			t.Errorf("%d %v", picture.status, picture.Header)
		}
		for _, a := range []answered{page, picture} {
			line := r.lineOf(a)
			token := strings.TrimPrefix(url, "/s/")
			for _, absent := range []string{"127.0.0.1", "Peculiar", "elsewhere", token, image} {
				if strings.Contains(line, absent) {
					t.Errorf("the log has %s: %s", absent, line)
				}
			}
		}
		var made int
		for _, used := range r.used(r.ownerOf("ada@example.org")) { // all of it is hers, and no visit
			if strings.HasPrefix(used, "share-image ") {
				made++
			}
			if strings.Contains(used, "open-share") || strings.Contains(used, "Peculiar") {
				t.Errorf("a visit is written down: %s", used)
			}
		}
		var others int
		if err := r.db.Get(t.Context(), &others, `SELECT count(*) FROM usage_events WHERE subject <> ?`, r.ownerOf("ada@example.org")); err != nil || others != 0 || made != 1 {
			t.Errorf("%d events of others (%v), and %d of the share that was made", others, err, made)
		}

		// Only reading: nothing else is at the address, and what opens nothing is all one.
		if a := r.do("POST", url, "", ""); a.status != http.StatusMethodNotAllowed {
			t.Errorf("POST: %d", a.status)
		}
		unknown, noPicture := visit("/s/x"), visit("/v1/shared/x")
		if unknown.status != 404 || noPicture.status != 404 || strings.Contains(unknown.body, "<img") {
			t.Fatalf("%d %s, %d", unknown.status, unknown.body, noPicture.status)
		}
		adas.want(204, "PUT", "/v1/account/restriction", "")
		paused, pausedPicture := visit(url), visit(src[1])
		adas.want(204, "DELETE", "/v1/account/restriction", "")
		if a := visit(url); a.status != 200 {
			t.Errorf("after the restriction: %d", a.status)
		}
		adas.want(204, "DELETE", "/v1/shares/"+share.text(t, "id"), "")
		ended, endedPicture := visit(url), visit(src[1])
		for what, a := range map[string]answered{"restricted": paused, "ended": ended} {
			if a.status != 404 || a.body != unknown.body {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		for what, a := range map[string]answered{"restricted": pausedPicture, "ended": endedPicture} {
			if !same(t, a, noPicture) {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}

		// The page takes a place like every public route.
		r.fill()
		if a := visit(url); a.status != 503 || a.Header.Get("Retry-After") == "" {
			t.Errorf("beyond the last place: %d %s", a.status, a.body)
		}
		if a := visit("/privacy"); a.status != 200 {
			t.Errorf("the policy is kept from people: %d", a.status)
		}
	})
}
