//go:build unix

package app

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"zimage/internal/config"
	"zimage/internal/httpapi"
	"zimage/internal/objects"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// The same number, for what is stored already: page, what can be read, purge, the
// bucket's rule and the text of an export follow the one file.
func TestPromise_P1_OneNumberInOneFileChangesWhatIsStored(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx, bucket := t.Context(), testenv.S3(t)
		settings := map[string]string{"ZIMAGE_DATABASE_URL": url, "ZIMAGE_DATA": filepath.Join(t.TempDir(), "data"),
			"ZIMAGE_S3_ENDPOINT": bucket.Endpoint, "ZIMAGE_S3_BUCKET": bucket.Bucket, "ZIMAGE_S3_ACCESS_KEY": bucket.AccessKey,
			"ZIMAGE_S3_SECRET_KEY": bucket.SecretKey, "ZIMAGE_S3_TLS": "false"}
		rule := func(days int) bool {
			there, err := objects.LookBackstop(ctx, objects.S3Options{Endpoint: bucket.Endpoint, Bucket: bucket.Bucket,
				AccessKey: bucket.AccessKey, SecretKey: bucket.SecretKey}, privacy.BackstopPrefix, days+1)
			return err == nil && there
		}
		first := serve(t, "", settings)
		first.app.start(t, config.RoleScheduler)
		testenv.Eventually(t, 30*time.Second, func() bool { return rule(90) })
		var made struct{ ID string }
		first.answered("/v1/generations", `{"prompt":"a lighthouse","width":64,"height":64}`, &made)
		back := (70 * 24 * time.Hour).Milliseconds()
		if _, err := first.app.db.Exec(ctx, `UPDATE generations SET created_at = created_at - ?, expires_at = expires_at - ?`, back, back); err != nil {
			t.Fatal(err)
		}
		path := "/v1/generations/" + made.ID
		status := func(s served) int {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+first.key)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			return res.StatusCode
		}
		if got := status(first); got != http.StatusOK {
			t.Fatalf("with 90 days it is answered %d", got)
		}

		file := filepath.Join(t.TempDir(), "policy.yaml")
		shorter := strings.NewReplacer("generated_content: 90 days", "generated_content: 60 days", `version: "2026-01-01"`, "version: v2", "date: 2026-01-01", "date: 2026-02-01")
		if err := os.WriteFile(file, []byte(shorter.Replace(string(privacy.Example))), 0o600); err != nil {
			t.Fatal(err)
		}
		settings["ZIMAGE_POLICY"], settings["ZIMAGE_LISTEN"] = file, freePort(t)
		a := open(t, config.RoleUp, settings)
		a.start(t, config.RoleAPI)
		second := served{t: t, app: a, base: "http://" + settings["ZIMAGE_LISTEN"]}
		if got := status(second); got != http.StatusGone {
			t.Errorf("with 60 days it is answered %d", got)
		}
		if _, page := second.do(http.MethodGet, "/privacy", ""); !strings.Contains(page, `<span id="window-generated-content">60 days</span>`) {
			t.Error("the page does not say it")
		}
		if n, err := a.Privacy.Purge(ctx, "generations"); n != 1 || err != nil {
			t.Errorf("%d are purged, %v", n, err)
		}
		var found string
		Examine(ctx, a.config, config.RoleUp, func(f Finding) {
			if f.Part == "objects" {
				found += fmt.Sprintln(f)
			}
		})
		if !strings.Contains(found, "rule") {
			t.Errorf("before a scheduler was there, the doctor says %s", found)
		}
		a.Privacy.SetBackstop(ctx)
		if !rule(60) {
			t.Error("the bucket's rule is another")
		}
		owner, err := a.Accounts.FindUser(ctx, "ada@example.org")
		if err != nil {
			t.Fatal(err)
		}
		asked, err := a.Privacy.AskExport(ctx, owner)
		if err != nil {
			t.Fatal(err)
		}
		a.start(t, config.RoleWorker)
		testenv.Eventually(t, time.Minute, func() bool {
			e, err := a.Privacy.Export(ctx, owner, asked.ID)
			return err == nil && e.Status == privacy.ExportReady
		})
		archive, err := a.Privacy.ExportArchive(ctx, owner, asked.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = archive.Close() }()
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		z, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		f, err := z.Open("manifest.json")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil || !strings.Contains(string(text), "At most 60 days after created_at") || strings.Contains(string(text), "90 days after created_at") {
			t.Errorf("the export says %s, %v", text, err)
		}
	})
}

// A process for which ZIMAGE_POLICY was forgotten, or that has an older file, does
// not start: it would lower every stored end for good.
func TestPromise_R3_AnotherPolicyThanThatInForceDoesNotStart(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := t.Context()
		settings := map[string]string{"ZIMAGE_DATABASE_URL": url, "ZIMAGE_DATA": filepath.Join(t.TempDir(), "data")}
		longer := strings.NewReplacer("generated_content: 90 days", "generated_content: 120 days", `version: "2026-01-01"`, "version: v2", "date: 2026-01-01", "date: 2026-02-01")
		first := serve(t, longer.Replace(string(privacy.Example)), settings)
		var made struct{ ID string }
		first.answered("/v1/generations", `{"prompt":"a lighthouse","width":64,"height":64}`, &made)
		for _, role := range []config.Role{config.RoleAPI, config.RoleWorker, config.RoleScheduler} {
			settings["ZIMAGE_LISTEN"] = freePort(t)
			err := open(t, config.RoleUp, settings).Run(ctx, nil, func() { t.Errorf("%s has started", role) }, role)
			if err == nil || !strings.HasPrefix(err.Error(), "ZIMAGE_POLICY: version v2 of 2026-02-01 is in force") {
				t.Errorf("%s: %v", role, err)
			}
		}
		var days int
		if err := first.app.db.Get(ctx, &days, `SELECT (expires_at - created_at) / 86400000 FROM generations WHERE id = ?`, made.ID); err != nil || days != 120 {
			t.Errorf("it is kept for %d days, %v", days, err)
		}
		entries := 0
		if err := first.app.db.Get(ctx, &entries, `SELECT count(*) FROM ledger_entries WHERE kind = 'policy.published'`); err != nil || entries != 1 {
			t.Errorf("%d entries in the ledger, %v", entries, err)
		}
	})
}

// A sign-up under way has a key that no account owns yet: by a clock that is days ahead, it
// would be swept.
func TestPromise_R3_NoKeyIsSweptWhileTheClocksDiffer(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := t.Context()
		a := open(t, config.RoleUp, map[string]string{"ZIMAGE_DATABASE_URL": url})
		if err := a.vault.Create(ctx, "usr_underway"); err != nil {
			t.Fatal(err)
		}
		ahead := func(context.Context) (time.Time, error) { return time.Now().Add(14 * 24 * time.Hour), nil }
		if _, err := a.clock.Sync(ctx, ahead); err != nil {
			t.Fatal(err)
		}
		if a.sweepKeys(ctx, nil) == nil {
			t.Error("a sweep of keys says that it is done")
		}
		if _, err := a.vault.Seal(ctx, "usr_underway", []byte("x"), vault.Column("users", "email", "usr_underway")); err != nil {
			t.Errorf("the key is gone: %v", err)
		}
		r := a.Ready(ctx)
		if !slices.ContainsFunc(r.Parts, func(p httpapi.Part) bool { return p.Name == "clock" && p.State == httpapi.StateDegraded }) || r.State != httpapi.StateDegraded {
			t.Errorf("ready: %+v", r)
		}
	})
}
