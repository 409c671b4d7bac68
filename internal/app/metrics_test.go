//go:build unix

package app

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/account"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// roles opens and runs one process for each role, on real parts. change is told
// each before it runs.
func roles(t *testing.T, change func(*App)) map[config.Role]*App {
	t.Helper()
	bucket, ring := testenv.S3(t), filepath.Join(t.TempDir(), "roots.yaml")
	if _, err := vault.CreateRoots(ring); err != nil {
		t.Fatal(err)
	}
	environ := map[string]string{
		"ZIMAGE_DATABASE_URL": testenv.DatabaseURL(t, db.Postgres), "ZIMAGE_KEYS_DATABASE_URL": testenv.DatabaseURL(t, db.Postgres),
		"ZIMAGE_REDIS_URL": testenv.Redis(t), "ZIMAGE_S3_ENDPOINT": bucket.Endpoint, "ZIMAGE_S3_BUCKET": bucket.Bucket,
		"ZIMAGE_S3_ACCESS_KEY": bucket.AccessKey, "ZIMAGE_S3_SECRET_KEY": bucket.SecretKey, "ZIMAGE_S3_TLS": "false",
		"ZIMAGE_ROOT_KEYS": ring, "ZIMAGE_LISTEN": freePort(t), "ZIMAGE_DATA": filepath.Join(t.TempDir(), "data"),
		"ZIMAGE_SMTP_URL": "smtp://mailer:right@" + newPostbox(t).address, "ZIMAGE_MAIL_FROM": "no-reply@zimage.example",
	}
	all := map[config.Role]*App{}
	for _, role := range []config.Role{config.RoleAPI, config.RoleWorker, config.RoleScheduler} {
		environ["ZIMAGE_METRICS_LISTEN"] = freePort(t)
		all[role] = open(t, role, environ)
		change(all[role])
		all[role].start(t, role)
	}
	return all
}

// failsOnce is the illustrator on a bad day.
type failsOnce struct {
	engine.Engine
	failed *atomic.Bool
}

func (f failsOnce) Generate(ctx context.Context, r engine.Request, progress func(engine.Progress)) ([]byte, error) {
	if f.failed.CompareAndSwap(false, true) {
		return nil, engine.NewError(engine.FaultEngine, engine.CodeFailed, 0, errors.New("once"))
	}
	return f.Engine.Generate(ctx, r, progress)
}

// The documents name every figure, and of which processes it is. After a
// generation that failed once, each process tells what the documents say.
func TestMetricsAreThoseOfTheDocuments(t *testing.T) {
	t.Parallel()
	documented := map[config.Role][]string{}
	known := map[string]bool{}
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(zimage_[a-z_]+)` \\| ([a-z, ]+) \\|").FindAllStringSubmatch(string(text), -1) {
		known[row[1]] = true
		for _, role := range strings.Split(row[2], ", ") {
			documented[config.Role(role)] = append(documented[config.Role(role)], row[1])
		}
	}
	if len(documented) != 3 || len(known) < 20 {
		t.Fatalf("the table has %d figures of %v", len(known), slices.Collect(maps.Keys(documented)))
	}

	var failed atomic.Bool
	all := roles(t, func(a *App) {
		a.open = func(s engine.Settings) (engine.Engine, error) {
			e, err := openEngine(s)
			return failsOnce{e, &failed}, err
		}
	})
	api := all[config.RoleAPI]
	subject, err := api.Accounts.CreateUser(t.Context(), "owner@example.org", "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := api.Accounts.CreateKey(t.Context(), subject, "test", []string{account.ScopeGenerate, account.ScopeRead}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	// A mail, which the worker writes into its folder.
	err = api.Accounts.SignUp(t.Context(), account.Client{}, account.SignUp{Email: "new@example.org", Username: "new", Password: "correct horse battery", OldEnough: true})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+api.config.Listen+"/v1/generations",
		strings.NewReader(`{"prompt":"a lighthouse","width":64,"height":64,"steps":1}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Prefer", "wait=30")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK || !failed.Load() {
		t.Fatalf("status %d, failed once: %v\n%s", res.StatusCode, failed.Load(), answer)
	}

	for role, a := range all {
		scraped := func() map[string]bool {
			names := map[string]bool{}
			page := (&url.URL{Scheme: "http", Host: a.config.MetricsListen, Path: "/metrics"}).String()
			res, err := http.Get(page) //nolint:noctx // a test
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range regexp.MustCompile(`(?m)^# TYPE (zimage_[a-z_]+)`).FindAllStringSubmatch(string(body), -1) {
				names[line[1]] = true
			}
			if n := strings.Count(string(body), "\nzimage_database_failures_total{"); n != 2 {
				t.Errorf("%s: %d stores count their failures", role, n)
			}
			return names
		}
		var names map[string]bool
		complete := func() bool {
			names = scraped()
			return !slices.ContainsFunc(documented[role], func(name string) bool { return !names[name] })
		}
		// A scheduler samples the queue every ten seconds.
		for deadline := time.Now().Add(30 * time.Second); !complete() && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
		}
		for _, name := range documented[role] {
			if !names[name] {
				t.Errorf("%s does not tell %s", role, name)
			}
		}
		for name := range names {
			if !known[name] {
				t.Errorf("%s tells %s, which docs/operations.md does not explain", role, name)
			}
		}
	}

	// The same processes, for the doctor: all is well, whoever asks.
	for role, a := range all {
		Examine(t.Context(), a.config, role, func(f Finding) {
			if f.Bad || f.Warn {
				t.Errorf("the doctor of the %s says: %+v", role, f)
			}
		})
	}
}
