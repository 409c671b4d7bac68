package httpapi

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

// ready asks for an export and waits until it can be fetched.
func (b *browser) ready() (path string) {
	b.t.Helper()
	asked := b.want(202, "POST", "/v1/account/exports", "")
	path = "/v1/account/exports/" + asked.text(b.t, "id")
	if got := asked.Header.Get("Location"); !strings.HasSuffix(got, path) || asked.text(b.t, "urls.get") != got {
		b.t.Errorf("Location is %q", got)
	}
	testenv.Eventually(b.t, 60*time.Second, func() bool {
		a := b.want(200, "GET", path, "")
		if a.text(b.t, "status") == "failed" {
			b.t.Fatalf("%s", a.body)
		}
		return a.text(b.t, "status") == "ready"
	})
	return path
}

// stale makes every session of the owner's one that proved long ago who it is.
func (r *rig) stale(owner string) {
	r.t.Helper()
	_, err := r.db.Exec(context.Background(), `UPDATE sessions SET fresh_at = fresh_at - 3600000 WHERE owner = ?`, owner)
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestPromise_G1_AnExportIsForAFreshSessionAlone(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		owner := r.ownerOf(eveAddress)
		path := b.ready()
		content := b.want(200, "GET", path+"/content", "")
		for name, want := range map[string]string{
			"Content-Type": "application/zip", "Cache-Control": "private, no-store", "Accept-Ranges": "none",
			"Content-Disposition": `attachment; filename="zimage-` + strings.TrimPrefix(path, "/v1/account/exports/") + `.zip"`,
		} {
			if got := content.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		archive, err := zip.NewReader(strings.NewReader(content.body), int64(len(content.body)))
		if err != nil {
			t.Fatal(err)
		}
		account, err := archive.Open("account/account.json")
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(account); err != nil || !bytes.Contains(text, []byte(eveAddress)) {
			t.Errorf("the account in the archive is %s %v", text, err)
		}
		one := b.want(200, "GET", path, "")
		if int(one.field(t, "bytes").(float64)) != len(content.body) || len(one.text(t, "sha256")) != 64 || one.field(t, "progress.fraction") != 1.0 {
			t.Errorf("the export is %s", one.body)
		}
		if a := b.want(200, "HEAD", path+"/content", ""); a.Header.Get("Content-Length") != content.Header.Get("Content-Length") || a.body != "" {
			t.Errorf("HEAD: %v", a.Header)
		}

		// A key with every scope reaches none of it.
		key, _, err := r.accounts.CreateKey(t.Context(), owner, "all", allScopes(), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		another := &browser{rig: r, token: r.signedUp("mallory")}
		for _, route := range [][2]string{{"POST", "/v1/account/exports"}, {"GET", "/v1/account/exports"}, {"GET", path}, {"GET", path + "/content"}, {"DELETE", path}} {
			if a := r.do(route[0], route[1], key, ""); a.status != 403 || a.text(t, "code") != string(problem.Forbidden) {
				t.Errorf("%v with a key: %d %s", route, a.status, a.body)
			}
			if route[1] != "/v1/account/exports" {
				if a := another.do(route[0], route[1], ""); a.status != 404 {
					t.Errorf("%v by somebody else: %d %s", route, a.status, a.body)
				}
			}
		}
		// A session that did not prove lately who it is may look, and no more.
		r.stale(owner)
		for _, route := range [][2]string{{"POST", "/v1/account/exports"}, {"GET", path + "/content"}, {"HEAD", path + "/content"}} {
			if a := b.do(route[0], route[1], ""); a.status != 401 && a.status != 403 || route[0] != "HEAD" && a.text(t, "code") != string(problem.ReauthNeeded) {
				t.Errorf("%v in a stale session: %d %s", route, a.status, a.body)
			}
		}
		b.want(200, "GET", "/v1/account/exports", "")
		b.want(200, "POST", "/v1/session/fresh", `{"password":"`+evePassword+`"}`)
		b.want(200, "GET", path+"/content", "")

		// Both mails were written, and neither leads anywhere.
		for _, template := range []mail.Template{mail.ExportAsked, mail.ExportReady} {
			var n int
			if err := r.db.Get(t.Context(), &n, `SELECT count(*) FROM mails WHERE template = ? AND subject = ?`, template, owner); err != nil || n != 1 {
				t.Errorf("%d mails %s (%v)", n, template, err)
			}
			if data := mail.Templates()[template]; len(data) > 0 {
				t.Errorf("the mail %s shows %v", template, data)
			}
		}

		b.want(204, "DELETE", path, "")
		b.want(404, "GET", path, "")
		b.want(404, "GET", path+"/content", "")
		if a := b.want(200, "GET", "/v1/account/exports", ""); strings.Contains(a.body, "exp_") {
			t.Errorf("after the deletion: %s", a.body)
		}
	})
}

func TestAResetVoidsAnExport(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		path := b.ready()
		owner := &browser{rig: r}
		owner.want(202, "POST", "/v1/account/password/reset", `{"email":"`+eveAddress+`"}`)
		const fresh = "eleven quiet lamps on a hill"
		owner.want(204, "POST", "/v1/account/password/reset/confirm", `{"code":"`+r.mailed(mail.ResetPassword, "Code")+`","password":"`+fresh+`"}`)
		b.want(401, "GET", path+"/content", "")
		owner.want(200, "POST", "/v1/session", `{"email":"`+eveAddress+`","password":"`+fresh+`"}`)
		owner.want(404, "GET", path, "")
		owner.want(404, "GET", path+"/content", "")
		testenv.Eventually(t, 30*time.Second, func() bool {
			left, err := r.objects.List(context.Background(), "exports/", "", 10)
			return err == nil && len(left) == 0
		})
	})
}

// A download ends when whoever fetches may no longer.
func TestADownloadEndsWithItsSession(t *testing.T) {
	t.Parallel()
	now := errors.New("ended")
	asked := 0
	var out bytes.Buffer
	p := &patient{ctx: t.Context(), w: &out, deadline: func(time.Time) error { return nil }, asked: time.Now(), may: func() error { asked++; return now }}
	if _, err := p.Write([]byte("first")); err != nil || asked > 0 {
		t.Errorf("at the beginning: %v", err)
	}
	p.asked = time.Now().Add(-holdsEvery)
	if _, err := p.Write([]byte("second")); !errors.Is(err, now) || out.String() != "first" {
		t.Errorf("later: %v, %q", err, out.String())
	}
	p.may = func() error { return nil }
	if _, err := p.Write([]byte(" third")); err != nil || out.String() != "first third" || time.Since(p.asked) >= holdsEvery {
		t.Errorf("while it may: %v, %q", err, out.String())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p.ctx = ended
	if _, err := p.Write([]byte("fourth")); !errors.Is(err, context.Canceled) {
		t.Errorf("after the request: %v", err)
	}
}

func allScopes() []string {
	var scopes []string
	for _, s := range account.Scopes() {
		if s != account.ScopeAdmin {
			scopes = append(scopes, s)
		}
	}
	return scopes
}

// signedUp is the session of somebody else.
func (r *rig) signedUp(name string) string {
	r.t.Helper()
	b := &browser{rig: r}
	const password = "nine orange boats at anchor"
	if _, err := r.accounts.CreateUser(context.Background(), name+"@example.org", password); err != nil {
		r.t.Fatal(err)
	}
	b.want(http.StatusOK, "POST", "/v1/session", `{"email":"`+name+`@example.org","password":"`+password+`"}`)
	return b.token
}
