//go:build unix

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/engine/enginetest"
	"zimage/internal/privacy"
	"zimage/internal/prove"
	"zimage/internal/testenv"
)

// proven is an installation to be proven, with all that it writes in one folder.
type proven struct {
	t    *testing.T
	app  *App
	told []string
	o    ProveOptions
}

func toProve(t *testing.T, dialect db.Dialect, s3, versioned bool) *proven {
	t.Helper()
	return toProveIn(t, t.TempDir(), "", dialect, s3, versioned)
}

// toProveIn is one with an engines file; empty: the illustrator's. Further settings,
// NAME and value, go before its own.
func toProveIn(t *testing.T, dir, engines string, dialect db.Dialect, s3, versioned bool, settings ...string) *proven {
	t.Helper()
	redis := testenv.PrivateRedis(t, true)
	environ := map[string]string{
		"ZIMAGE_DATA": filepath.Join(dir, "data"), "ZIMAGE_REDIS_URL": redis.URL(),
		"ZIMAGE_LISTEN": freePort(t), "ZIMAGE_METRICS_LISTEN": freePort(t), "ZIMAGE_LOG_LEVEL": "debug",
		"ZIMAGE_ENGINES": engines,
	}
	environ["ZIMAGE_PUBLIC_URL"] = "http://" + strings.Replace(environ["ZIMAGE_LISTEN"], "127.0.0.1", "localhost", 1)
	for pair := range slices.Chunk(settings, 2) {
		environ[pair[0]] = pair[1]
	}
	if dialect == db.Postgres {
		environ["ZIMAGE_DATABASE_URL"], environ["ZIMAGE_KEYS_DATABASE_URL"] = testenv.DatabaseURL(t, dialect), testenv.DatabaseURL(t, dialect)
	}
	if s3 {
		b := testenv.S3(t)
		environ["ZIMAGE_S3_ENDPOINT"], environ["ZIMAGE_S3_BUCKET"], environ["ZIMAGE_S3_TLS"] = b.Endpoint, b.Bucket, "false"
		environ["ZIMAGE_S3_ACCESS_KEY"], environ["ZIMAGE_S3_SECRET_KEY"] = b.AccessKey, b.SecretKey
		if versioned {
			c, err := minio.New(b.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, "")})
			if err == nil {
				err = c.MakeBucket(t.Context(), b.Bucket, minio.MakeBucketOptions{})
			}
			if err == nil {
				err = c.EnableVersioning(t.Context(), b.Bucket)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	c := settingsOf(t, config.RoleUp, environ)
	p := &proven{t: t, o: ProveOptions{Wait: 5 * time.Minute, Redis: redis.Dir(), Logs: []string{filepath.Join(dir, "log")}}}
	for folder, into := range map[string]*[]string{"engine": &p.o.Engines, "dumps": &p.o.Folders} {
		*into = []string{filepath.Join(dir, folder)}
		if err := os.Mkdir((*into)[0], 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.o.Folders[0], "dump"), []byte("of something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.o.Temp = filepath.Join(dir, "tmp")
	if err := os.Mkdir(p.o.Temp, 0o700); err != nil {
		t.Fatal(err)
	}
	p.o.Tell = func(what string) { p.told = append(p.told, what) }
	log, err := os.Create(p.o.Logs[0])
	if err != nil {
		t.Fatal(err)
	}
	p.app, err = Open(t.Context(), c, "up", "test", NewLog(c, log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.app.Close(); err != nil {
			t.Error(err)
		}
		_ = log.Close()
	})
	p.app.start(t, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
	return p
}

func (p *proven) run(plantIn ...string) prove.Report {
	p.t.Helper()
	p.o.PlantIn = plantIn
	r, err := p.app.Prove(context.WithoutCancel(p.t.Context()), p.o)
	if err != nil {
		p.t.Fatalf("after %q: %v", p.told, err)
	}
	return r
}

// A person is there with everything, and is erased; no word of theirs stands
// anywhere readable, before or after, while every word that is left on purpose is
// found.
func TestPromise_R2_ProvenOnALivingInstallation(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]struct {
		dialect       db.Dialect
		s3, versioned bool
	}{
		"sqlite, directory":      {dialect: db.SQLite},
		"postgres, s3":           {dialect: db.Postgres, s3: true},
		"postgres, s3 versioned": {dialect: db.Postgres, s3: true, versioned: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := toProve(t, s.dialect, s.s3, s.versioned)
			r := p.run()
			for _, wrong := range r.Wrong() {
				t.Error(wrong)
			}
			want := []string{"database", "key store", "objects", "redis", "redis files", "mail folder", "data folder", "engines' folders", "other folders", "temporary files", "logs", "metrics"}
			if s.dialect == db.SQLite {
				want = append(want, "database files", "key store files")
			}
			seen := map[string]prove.PlaceReport{}
			for _, place := range r.Places {
				seen[place.Name] = place
				if planted := strings.HasPrefix(place.Control, "found, in "); planted == slices.Contains([]string{"logs", "metrics"}, place.Name) {
					t.Errorf("%s: the control says %s", place.Name, place.Control)
				}
				empty := []string{"engines' folders", "temporary files"}
				if s.s3 { // nothing but mails is in it, which are looked at by themselves
					empty = append(empty, "data folder")
				}
				if (place.Life.Things == 0) != slices.Contains(empty, place.Name) {
					t.Errorf("%s: looked at %+v", place.Name, place.Life)
				}
			}
			if names := slices.Sorted(maps.Keys(seen)); !slices.Equal(names, slices.Sorted(slices.Values(want))) {
				t.Errorf("looked at %v, want %v", names, want)
			}
			// Mails are files that can be read, for as long as the account lives.
			if m := seen["mail folder"]; len(m.Life.Found) == 0 || m.Readable == "" {
				t.Errorf("no mail was read: %+v", m)
			}
			if m, err := privacy.DataMap(); err != nil || seen["database"].Life.Things < len(m.Tables) {
				t.Errorf("only %d rows were looked at (%v)", seen["database"].Life.Things, err)
			}
			// Sealed, in at least two objects for each of two pictures.
			if o := seen["objects"]; o.Life.Things < 4 || o.Life.Bytes < 1000 {
				t.Errorf("objects: %+v", o)
			}
			// That each input of the API got a canary the run looks at itself: passkeys are
			// here, and no model that takes a negative prompt.
			for _, why := range r.NotSent {
				if !strings.HasPrefix(why, "POST /v1/admin/accounts/{id}/close-child ") && !strings.Contains(why, " body.negative_prompt ") {
					t.Errorf("nothing was sent through %s", why)
				}
			}
			var state string
			if err := p.app.db.Get(t.Context(), &state, `SELECT state FROM subjects WHERE id = ?`, r.Account); err != nil || state != "erased" {
				t.Errorf("the account is %s, %v", state, err)
			}
			// What they used was written, and is deleted.
			var text []byte
			var signed privacy.SignedReceipt
			var receipt privacy.Receipt
			err := p.app.db.Get(t.Context(), &text, `SELECT receipt FROM erasures WHERE id = ?`, r.Receipt)
			if err == nil {
				err = json.Unmarshal(text, &signed)
			}
			if err == nil {
				err = json.Unmarshal(signed.Receipt, &receipt)
			}
			i := slices.IndexFunc(receipt.Stores, func(s privacy.ReceiptStore) bool { return s.Name == "usage_events" })
			if err != nil || i < 0 || receipt.Stores[i].Deleted < 3 || receipt.Stores[i].Left > 0 {
				t.Errorf("usage events: %+v, %v", receipt.Stores, err)
			}
			left, err := os.ReadDir(p.o.Temp)
			if err != nil || len(left) > 0 {
				t.Errorf("the proof leaves %v", left)
			}
		})
	}
}

// inFront is an installation behind a proxy that it trusts.
func inFront(t *testing.T, proxy func(p *httputil.ReverseProxy) http.Handler) *proven {
	t.Helper()
	listen := freePort(t)
	server := httptest.NewServer(proxy(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: listen})
		r.Out.Host = r.In.Host
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
		r.SetXForwarded()
	}}))
	t.Cleanup(server.Close)
	return toProveIn(t, t.TempDir(), "", db.SQLite, false, false, "ZIMAGE_LISTEN", listen, "ZIMAGE_TRUSTED_PROXIES", "127.0.0.0/8",
		"ZIMAGE_PUBLIC_URL", strings.Replace(server.URL, "127.0.0.1", "localhost", 1))
}

// What is left in any place on purpose is found there, after the erasure, and taken
// away again. A proxy's log has the network addresses of who comes: they are found too.
func TestPromise_R2_WhatIsLeftOnPurposeIsFound(t *testing.T) {
	t.Parallel()
	access := filepath.Join(t.TempDir(), "access")
	log, err := os.Create(access)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	viewed := map[string][]int{} // what was answered, in that order
	p := inFront(t, func(proxy *httputil.ReverseProxy) http.Handler {
		proxy.ModifyResponse = func(r *http.Response) error {
			if view := viewOf(r.Request.URL.Path); view != "" && r.Request.Method == http.MethodGet {
				viewed[view] = append(viewed[view], r.StatusCode)
			}
			return nil
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintln(log, r.RemoteAddr, r.Header["X-Forwarded-For"])
			proxy.ServeHTTP(w, r)
		})
	})
	p.o.Logs = append(p.o.Logs, access)
	planted := []string{"database", "key store", "objects", "redis", "redis files", "mail folder", "data folder", "engines' folders", "other folders", "temporary files"}
	r := p.run(planted...)
	for _, view := range views {
		if !slices.Equal(viewed[view], []int{http.StatusOK, http.StatusNotFound}) {
			t.Errorf("%s answered %v", view, viewed[view])
		}
	}
	for _, place := range r.Places {
		// Databases and objects lie in files, which are looked at by themselves too.
		want := slices.Contains(planted, place.Name) || slices.Contains([]string{"database files", "key store files", "logs"}, place.Name)
		if got := len(place.After.Found) > 0; got != want {
			t.Errorf("%s: found %+v", place.Name, place.After.Found)
		}
		for _, f := range place.After.Found {
			if f.Where == "" || f.Kind == "" || f.Times < 1 {
				t.Errorf("%s: %+v", place.Name, f)
			}
		}
	}
	text := strings.Join(r.Wrong(), "\n")
	for _, name := range planted {
		if !strings.Contains(text, name+", after its erasure: ") {
			t.Errorf("%s is not told: %s", name, text)
		}
	}
	for _, when := range []string{"while the account lives", "after its erasure"} {
		for _, kind := range []prove.Kind{prove.IPv4, prove.IPv6} {
			if !strings.Contains(text, "logs, "+when+": access holds a canary, "+string(kind)+", ") {
				t.Errorf("no %s is told: %s", kind, text)
			}
		}
	}
	for _, line := range r.Wrong() {
		if strings.Contains(line, "while the account lives") && !strings.HasPrefix(line, "logs, ") {
			t.Errorf("found before it was left: %s", line)
		}
		if strings.HasPrefix(line, "logs, ") && !strings.Contains(line, ": access holds a canary, IPv") {
			t.Errorf("found in the log of the processes: %s", line)
		}
	}
	var ticks int
	if err := p.app.db.Get(t.Context(), &ticks, `SELECT count(*) FROM schedule_ticks WHERE tick = 0`); err != nil || ticks > 0 {
		t.Errorf("%d rows are still there, %v", ticks, err)
	}
	if _, err := p.app.Prove(t.Context(), ProveOptions{PlantIn: []string{"logs"}}); err == nil || !strings.Contains(err.Error(), `in "logs" nothing can be planted; there are database, `) {
		t.Errorf("a place in which nothing may be left: %v", err)
	}
}

// views are the beginnings of addresses that show a picture to whoever has them: a link,
// the page of a share, and its picture.
var views = []string{"/v1/links/", "/s/", "/v1/shared/"}

// viewOf is the beginning of an address of that kind; empty: it is none, or made up.
func viewOf(path string) string {
	i := slices.IndexFunc(views, func(prefix string) bool {
		return strings.HasPrefix(path, prefix) && !strings.HasPrefix(path, prefix+"x_")
	})
	if i < 0 {
		return ""
	}
	return views[i]
}

// Something in front that keeps what was shown shows it after the erasure too, which
// proves nothing.
func TestPromise_R2_ALinkThatShowsAfterTheErasureProvesNothing(t *testing.T) {
	t.Parallel()
	var shown sync.Map
	p := inFront(t, func(proxy *httputil.ReverseProxy) http.Handler {
		proxy.ModifyResponse = func(r *http.Response) error {
			if r.StatusCode == http.StatusOK && r.Request.Method == http.MethodGet && viewOf(r.Request.URL.Path) != "" {
				shown.Store(r.Request.URL.Path, true)
			}
			return nil
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := shown.Load(r.URL.Path); !ok {
				proxy.ServeHTTP(w, r)
			}
		})
	})
	_, err := p.app.Prove(context.WithoutCancel(t.Context()), p.o)
	for _, prefix := range views {
		if err == nil || !strings.Contains(err.Error(), "GET "+prefix+"{id}: it showed a picture of the erased account") {
			t.Errorf("%s: %v", prefix, err)
		}
	}
}

// keeper is an image server with a folder of its own, into which it writes what it is asked while it works.
type keeper struct {
	http.Handler
	folder string
	leaves bool // it does not clean up behind itself
	asked  atomic.Int64
}

func (k *keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		file := filepath.Join(k.folder, fmt.Sprintf("request-%d.json", k.asked.Add(1)))
		if err = errors.Join(err, os.WriteFile(file, body, 0o600)); err != nil {
			http.Error(w, "", http.StatusInternalServerError)
			return
		}
		if !k.leaves {
			defer func() { _ = os.Remove(file) }()
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	k.Handler.ServeHTTP(w, r)
}

// An engine may keep copies in a folder of its own, which no erasure reaches: what it leaves there is
// found, and one that cleans up is clean.
func TestPromise_R2_WhatAnEngineLeavesInItsFolderIsFound(t *testing.T) {
	t.Parallel()
	for name, leaves := range map[string]bool{"leaves": true, "cleans up": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			k := &keeper{Handler: enginetest.NewOpenAI(engine.DialectVLLMOmni, "z"), folder: filepath.Join(dir, "engine"), leaves: leaves}
			server := httptest.NewServer(k)
			t.Cleanup(server.Close)
			engines := filepath.Join(dir, "engines.yaml")
			text := fmt.Sprintf("engines:\n  - {name: shop, kind: openai, url: %q, keeps: disk, models: {z: {dialect: vllm-omni}}}\nmodels:\n  - {id: z, default_steps: 8}\n", server.URL)
			if err := os.WriteFile(engines, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			p := toProveIn(t, dir, engines, db.SQLite, false, false)
			r := p.run()
			i := slices.IndexFunc(r.Places, func(place prove.PlaceReport) bool { return place.Name == "engines' folders" })
			if i < 0 || k.asked.Load() == 0 {
				t.Fatalf("%d pictures were made, and the places are %+v", k.asked.Load(), r.Places)
			}
			for when, look := range map[string]prove.Count{"while the account lives": r.Places[i].Life, "after its erasure": r.Places[i].After} {
				prompt := slices.ContainsFunc(look.Found, func(f prove.Finding) bool { return f.Input == "prompt" })
				if prompt != leaves || (look.Things > 0) != leaves {
					t.Errorf("%s: %+v", when, look)
				}
			}
			wrong := r.Wrong()
			if leaves {
				wrong = slices.DeleteFunc(wrong, func(line string) bool { return strings.HasPrefix(line, "engines' folders, ") })
				if len(wrong) == len(r.Wrong()) {
					t.Error("the proof does not tell it")
				}
			}
			for _, line := range wrong {
				t.Error(line)
			}
		})
	}
}

// A log that is another installation's proves nothing, nor does a folder in which
// nothing lies.
func TestProveWantsTheRightLogAndFolders(t *testing.T) {
	t.Parallel()
	p := toProve(t, db.SQLite, false, false)
	other, empty, right := filepath.Join(t.TempDir(), "other"), t.TempDir(), p.o
	if err := os.WriteFile(other, []byte("level=INFO msg=request request_id=req_0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func(says string, o ProveOptions) {
		t.Helper()
		if _, err := p.app.Prove(t.Context(), o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want one that says %s", err, says)
		}
	}
	o := right
	o.Logs = []string{other}
	refused("none of our requests", o)
	o = right
	o.Folders = append(slices.Clone(o.Folders), empty)
	refused("other folders: nothing lies in "+empty+",", o)
}

// An input of the API that gets no canary is named, with where to add one.
func TestPromise_R2_AnInputWithoutACanaryProvesNothing(t *testing.T) {
	t.Parallel()
	p := inFront(t, func(proxy *httputil.ReverseProxy) http.Handler {
		proxy.ModifyResponse = func(r *http.Response) error {
			if r.Request.URL.Path != "/openapi.json" {
				return nil
			}
			text, err := io.ReadAll(r.Body)
			more := bytes.Replace(text, []byte(`"embed_prompt":{`), []byte(`"another":{"type":"string"},"embed_prompt":{`), 1)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(more)), int64(len(more))
			r.Header.Set("Content-Length", strconv.Itoa(len(more)))
			return err
		}
		return proxy
	})
	_, err := p.app.Prove(t.Context(), p.o)
	if err == nil || !strings.Contains(err.Error(), "\n  POST /v1/generations body.another\n") || !strings.Contains(err.Error(), "internal/prove/inputs.go") {
		t.Errorf("with an input more: %v", err)
	}
}
