//go:build unix

package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"zimage/internal/account"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// A database that holds more than the map says, or less, is refused at start, and
// the doctor says the same. What lies in another schema is somebody else's.
func TestNoStartOnWhatTheMapDoesNotDescribe(t *testing.T) {
	t.Parallel()
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			main, keys := testenv.DatabaseURL(t, dialect), testenv.DatabaseURL(t, dialect)
			c := settingsOf(t, config.RoleUp, map[string]string{"ZIMAGE_DATABASE_URL": main, "ZIMAGE_KEYS_DATABASE_URL": keys})
			start := func() error {
				a, err := Open(t.Context(), c, "up", "test", NewLog(c, io.Discard))
				if err == nil {
					err = a.Close()
				}
				return err
			}
			doctor := func() (found Finding) {
				Examine(t.Context(), c, config.RoleUp, func(f Finding) {
					if f.Part == "data map" {
						found = f
					}
				})
				return found
			}
			if err := start(); err != nil {
				t.Fatal(err)
			}
			if f := doctor(); f.Bad || f.Text == "" {
				t.Errorf("the doctor says %+v", f)
			}
			refused := func(url, change, back string, words ...string) {
				t.Helper()
				execute(t, url, change)
				err, f := start(), doctor()
				if !errors.Is(err, privacy.ErrMap) || !f.Bad || f.Mend == "" {
					t.Errorf("%s: %v; the doctor says %+v", change, err, f)
					return
				}
				for _, w := range append(words, "docs/privacy.md") {
					if !strings.Contains(err.Error(), w) || !strings.Contains(f.Text, w) {
						t.Errorf("%s: %q is missing in %v, or in %v", change, w, err, f.Text)
					}
				}
				execute(t, url, back)
				if err := start(); err != nil {
					t.Errorf("%s: %v", back, err)
				}
			}
			refused(main, `CREATE TABLE gadgets (id TEXT PRIMARY KEY)`, `DROP TABLE gadgets`, "main store", "table gadgets is not in the map: add it under tables")
			refused(main, `ALTER TABLE users ADD COLUMN shoe_size BIGINT`, `ALTER TABLE users DROP COLUMN shoe_size`, "column users.shoe_size is not in the map: add it to the table's columns")
			refused(keys, `ALTER TABLE keysets ADD COLUMN copy BYTEA`, `ALTER TABLE keysets DROP COLUMN copy`, "keys store", "column keysets.copy is not in the map")
			refused(main, `ALTER TABLE drained_engines RENAME COLUMN at TO since`, `ALTER TABLE drained_engines RENAME COLUMN since TO at`,
				"column drained_engines.since is not in the map", "column drained_engines.at is in the map, and not in the database")
			if dialect == db.Postgres {
				execute(t, main, `CREATE SCHEMA dashboards`)
				execute(t, main, `CREATE TABLE dashboards.gadgets (anything TEXT)`)
				if err := start(); err != nil {
					t.Errorf("a table in a schema of the operator's: %v", err)
				}
			}
		})
	}
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	d, err := db.Open(t.Context(), url, db.Options{MaxConnections: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Exec(t.Context(), statement); err != nil {
		t.Fatal(statement, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTasksAreThoseOfTheMap(t *testing.T) {
	t.Parallel()
	a := open(t, config.RoleUp, nil)
	m, err := privacy.DataMap()
	if err != nil {
		t.Fatal(err)
	}
	var inMap []string
	for _, task := range m.Tasks.Types {
		inMap = append(inMap, task.Name)
	}
	slices.Sort(inMap)
	if kinds := a.queue.Kinds(); !slices.Equal(inMap, kinds) {
		t.Errorf("the program runs %v, and the map has %v", kinds, inMap)
	}
}

// Every metric that a process could show, with its labels, whether or not
// something was counted yet.
func TestMetricsAreThoseOfTheMap(t *testing.T) {
	t.Parallel()
	a := open(t, config.RoleUp, map[string]string{"ZIMAGE_LISTEN": freePort(t)})
	a.start(t, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
	m, err := privacy.DataMap()
	if err != nil {
		t.Fatal(err)
	}
	inMap := map[string]string{}
	for _, f := range m.Metrics.Figures {
		inMap[f.Name] = strings.Join(slices.Sorted(slices.Values(f.Labels)), ",")
	}
	// The API's are registered in a goroutine of its own.
	said := regexp.MustCompile(`^Desc\{fqName: "([^"]+)", .* constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}\}$`)
	really := map[string]string{}
	testenv.Eventually(t, time.Minute, func() bool {
		all := make(chan *prometheus.Desc, 1000)
		a.registry.Describe(all)
		close(all)
		for d := range all {
			parts := said.FindStringSubmatch(d.String())
			if parts == nil {
				t.Fatalf("%s is not understood", d)
			}
			if !strings.HasPrefix(parts[1], "zimage_") {
				continue
			}
			labels := strings.FieldsFunc(regexp.MustCompile(`="[^"]*"`).ReplaceAllString(parts[2]+","+parts[3], ""), func(r rune) bool { return r == ',' })
			slices.Sort(labels)
			really[parts[1]] = strings.Join(labels, ",")
		}
		return really["zimage_http_open_streams"] == "" && len(really) >= len(inMap)
	})
	for name, labels := range really {
		if known, ok := inMap[name]; !ok || known != labels {
			t.Errorf("%s has the labels %q, and in the map %q", name, labels, known)
		}
	}
	for name := range inMap {
		if _, ok := really[name]; !ok {
			t.Errorf("the map has %s, and there is none", name)
		}
	}
}

// The one place on earth where these come from is this test.
const (
	canaryAddress  = "198.51.100.77"
	canaryPassword = "canary horse battery"
)

// planted is what people and their programs send; each holds the word canary.
var planted = map[string]string{
	"mail":     "canary-ann@example.org",
	"new mail": "canary-new@example.org",
	"username": "canary.ann",
	"name":     "Ann Canary",
	"model":    "canary-model",
	"agent":    "CanaryBrowser/7",
	"place":    "Canaryville, Canaria",
	"address":  canaryAddress,
	"key":      "laptop of canary",
	"passkey":  "phone of canary",
	"reason":   "ticket 17 of canary",
	"letter":   "canary-letter@example.org",
	"note":     "please erase canary",
	"prompt":   "a lighthouse for canary",
	"metadata": "order of canary",

	"webhook":        "https://hooks.canary.invalid/ann",
	"single webhook": "https://single.canary.invalid/ann",
	"description":    "shop of canary",
}

// found finds anything of it in what must not hold it.
func found(text []byte) bool {
	return bytes.Contains(bytes.ToLower(text), []byte("canary")) || bytes.Contains(text, []byte(canaryAddress))
}

// A person comes over the door and uses everything. Then every sealed column and
// object opens through the map alone, and nothing of what was sent stands in any
// other column, in Redis, in a log line or a metric; and files, objects, Redis
// keys, log values and the cookie are those of the map.
func TestWhatIsStoredIsWhatTheMapSays(t *testing.T) {
	t.Parallel()
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			w := newWitness(t, dialect)
			w.person()
			w.columns(false)
			w.deliver()
			w.export()
			w.columns(true)
			w.storedObjects()
			w.files()
			w.inRedis()
			w.logged()
			w.measured()
		})
	}
}

// witness is an installation of which everything that it leaves is looked at.
type witness struct {
	t      *testing.T
	m      *privacy.Map
	a      *App
	data   string
	change map[string]string // settings
	log    testenv.Lines
	token  string          // of the cookie
	opened map[string]bool // sealed columns
	plain  bytes.Buffer    // what was sealed in them
	redis  *redis.Client
	seen   struct {
		sync.Mutex
		keys, channels map[string]bool
		said           bytes.Buffer // over channels
	}
}

func newWitness(t *testing.T, dialect db.Dialect) *witness {
	w := &witness{t: t, opened: map[string]bool{}, data: filepath.Join(t.TempDir(), "data")}
	var err error
	w.m, err = privacy.DataMap()
	w.must(err)
	address := testenv.Redis(t)
	w.watchRedis(address)
	w.change = map[string]string{
		"ZIMAGE_DATA": w.data, "ZIMAGE_REDIS_URL": address, "ZIMAGE_LISTEN": freePort(t), "ZIMAGE_METRICS_LISTEN": freePort(t),
		"ZIMAGE_TRUSTED_PROXIES": "127.0.0.1", "ZIMAGE_LOG_LEVEL": "debug", "ZIMAGE_LOG_FORMAT": "json",
		"ZIMAGE_GEOIP": placesFile(t, map[string][2]string{"198.51.100.0/24": {"Canaryville", "Canaria"}}),
		"ZIMAGE_LANES": "generation", // mails wait, so that they can be looked at
	}
	if dialect == db.Postgres {
		w.change["ZIMAGE_DATABASE_URL"], w.change["ZIMAGE_KEYS_DATABASE_URL"] = testenv.DatabaseURL(t, dialect), testenv.DatabaseURL(t, dialect)
	}
	w.a = w.open()
	w.a.start(t, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
	return w
}

func (w *witness) open() *App {
	w.t.Helper()
	c := settingsOf(w.t, config.RoleUp, w.change)
	a, err := Open(w.t.Context(), c, "up", "test", NewLog(c, &w.log))
	w.must(err)
	w.t.Cleanup(func() {
		if err := a.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return a
}

func (w *witness) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// send sends a request as the person's browser; 200 stands for any success.
func (w *witness) send(want int, method, path string, body, into any, headers ...string) {
	w.t.Helper()
	text, ok := body.(string)
	if !ok && body != nil {
		b, err := json.Marshal(body)
		w.must(err)
		text = string(b)
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+w.a.config.Listen+path, strings.NewReader(text))
	w.must(err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Forwarded-For", canaryAddress)
	r.Header.Set("User-Agent", planted["agent"])
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	if w.token != "" && r.Header.Get("Authorization") == "" {
		r.AddCookie(&http.Cookie{Name: w.m.Cookies[1].Name, Value: w.token})
	}
	res, err := http.DefaultClient.Do(r)
	w.must(err)
	defer func() { _ = res.Body.Close() }()
	for _, c := range res.Cookies() {
		w.token = c.Value
		if !slices.ContainsFunc(w.m.Cookies, func(k privacy.Cookie) bool { return k.Name == c.Name }) {
			w.t.Errorf("the cookie %s is not in the map", c.Name)
		}
	}
	answer, err := io.ReadAll(res.Body)
	w.must(err)
	if res.StatusCode != want && (want != 200 || res.StatusCode/100 != 2) {
		w.t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, answer)
	}
	if into != nil {
		w.must(json.Unmarshal(answer, into))
	}
}

type object = map[string]any

// person does what people do, until every sealed column has something in it.
func (w *witness) person() {
	ctx := w.t.Context()
	w.send(200, "POST", "/v1/account", object{"email": planted["mail"], "username": planted["username"], "password": canaryPassword,
		"old_enough": true, "consents": []string{"training"}, "name": planted["name"]}, nil)
	w.columns(false)
	w.send(200, "POST", "/v1/account/confirm", object{"code": w.mailed(mail.ConfirmSignUp), "password": canaryPassword}, nil)
	w.send(200, "PATCH", "/v1/account", object{"preferences": object{"model": planted["model"], "width": 64, "height": 64}}, nil)
	w.send(200, "POST", "/v1/account/email", object{"email": planted["new mail"]}, nil)
	w.send(200, "POST", "/v1/account/totp", nil, nil)
	w.passkey()
	var made struct{ Token string }
	w.send(200, "POST", "/v1/keys", object{"name": planted["key"], "scopes": []string{"generate", "read"}}, &made)
	owner, err := w.a.Accounts.FindUser(ctx, planted["mail"])
	w.must(err)
	w.must(w.a.Accounts.Suspend(ctx, account.AtTheMachine(), owner, planted["reason"]))
	w.must(w.a.Accounts.Unsuspend(ctx, account.AtTheMachine(), owner, planted["reason"]))
	_, err = w.a.Privacy.OpenRequest(ctx, w.a.Accounts.Officer(account.AtTheMachine(), planted["reason"]), planted["letter"], privacy.RequestErasure, planted["note"], time.Time{})
	w.must(err)
	program := []string{"Authorization", "Bearer " + made.Token, "Prefer", "wait=60", "Idempotency-Key", "once-canary"}
	var generation struct{ ID, Status string }
	// Nobody answers there, and deliveries wait as mails do.
	var hook struct {
		Webhook struct{ ID string }
	}
	w.send(200, "POST", "/v1/webhooks", object{"url": planted["webhook"], "description": planted["description"]}, &hook)
	w.send(200, "POST", "/v1/webhooks/"+hook.Webhook.ID+"/rotate", nil, nil)
	w.send(202, "POST", "/v1/webhooks/"+hook.Webhook.ID+"/test", nil, nil)
	w.send(200, "POST", "/v1/generations", object{"prompt": planted["prompt"], "width": 64, "height": 64, "steps": 1, "model": "illustrator",
		"webhook_url": planted["single webhook"], "metadata": object{"order": planted["metadata"]}}, &generation, program...)
	if generation.Status != "succeeded" {
		w.t.Fatalf("the generation is %s", generation.Status)
	}
	// What was used is written beside the requests, until the person objects.
	testenv.Eventually(w.t, time.Minute, func() bool {
		var n int
		w.must(w.a.db.Get(ctx, &n, `SELECT count(*) FROM usage_events WHERE feature = 'create-generation'`))
		return n == 1
	})
	w.send(200, "PUT", "/v1/account/objections/statistics", nil, nil)
	// And what goes wrong.
	w.send(400, "GET", "/v1/generations/gen_canary?q=canary", nil, nil, append(program, "X-Canary", "canary", "Referer", "https://canary.example/")...)
	w.send(404, "GET", "/v1/generations/gen_canary", nil, nil, program...)
	w.send(400, "POST", "/v1/generations", `{"prompt": "canary", "canary": `, nil, program...)
	w.send(400, "POST", "/v1/generations", object{"prompt": "canary", "model": "canary"}, nil, program...)
	w.send(401, "POST", "/v1/session", object{"email": "canary@example.org", "password": "canary canary canary"}, nil)
	w.send(401, "GET", "/v1/models", nil, nil, "Authorization", "Bearer zi_canary")
	w.send(404, "GET", "/canary", nil, nil)
}

// mailed is the code in the newest mail of a template, opened through the map.
func (w *witness) mailed(template mail.Template) string {
	w.t.Helper()
	var row struct {
		ID      string `db:"id"`
		Subject string `db:"subject"`
		Data    []byte `db:"data"`
	}
	w.must(w.a.db.Get(w.t.Context(), &row, `SELECT id, subject, data FROM mails WHERE template = ? ORDER BY id DESC LIMIT 1`, template))
	text, err := w.a.vault.Unseal(w.t.Context(), row.Subject, row.Data, w.m.Table(privacy.StoreMain, "mails").Bound("data", row.ID))
	w.must(err)
	var data struct{ Code string }
	w.must(json.Unmarshal(text, &data))
	return data.Code
}

func (w *witness) passkey() {
	var challenge struct {
		ID      string
		Options json.RawMessage
	}
	w.send(200, "POST", "/v1/account/passkeys/challenge", nil, &challenge)
	options, err := virtualwebauthn.ParseAttestationOptions(string(challenge.Options))
	w.must(err)
	_, port, _ := strings.Cut(w.a.config.Listen, ":")
	authenticator := virtualwebauthn.NewAuthenticator()
	authenticator.Options.UserHandle = []byte(options.UserID)
	var credential virtualwebauthn.Credential
	for credential.Key == nil || len(credential.Key.AttestationData()) != 77 { // see account's tests
		credential = virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2)
	}
	answer := virtualwebauthn.CreateAttestationResponse(virtualwebauthn.RelyingParty{ID: "localhost", Origin: "http://localhost:" + port}, authenticator, credential, *options)
	w.send(200, "POST", "/v1/account/passkeys", object{"name": planted["passkey"],
		"passkey": object{"challenge_id": challenge.ID, "response": json.RawMessage(answer)}}, nil)
}

// columns opens what is sealed and looks at everything else, in both databases.
// complete says that by now every sealed column has had something in it.
func (w *witness) columns(complete bool) {
	w.t.Helper()
	ctx := w.t.Context()
	for i := range w.m.Tables {
		t := &w.m.Tables[i]
		d := map[string]*db.DB{privacy.StoreMain: w.a.db, privacy.StoreKeys: w.a.keys}[t.Store]
		for _, c := range t.Columns {
			at := t.Name + "." + c.Name
			var rows []struct {
				ID      string `db:"id"`
				Subject string `db:"subject"`
				Value   []byte `db:"value"`
			}
			query := `SELECT ` + c.Name + ` AS value FROM ` + t.Name
			if c.Sealed != "" {
				query = `SELECT ` + t.Key[0] + ` AS id, ` + t.Subject + ` AS subject, ` + c.Name + ` AS value FROM ` + t.Name + ` WHERE ` + c.Name + ` IS NOT NULL`
			}
			w.must(d.Select(ctx, &rows, query))
			for _, r := range rows {
				if found(r.Value) {
					w.t.Errorf("%s holds what was sent, readable: %q", at, r.Value)
				}
				if c.Sealed == "" || r.Subject == "" { // what is about nobody is not sealed
					continue
				}
				plain, err := w.a.vault.Unseal(ctx, r.Subject, r.Value, t.Bound(c.Name, r.ID))
				if err != nil {
					w.t.Errorf("%s does not open through the map: %v", at, err)
					continue
				}
				if _, err := w.a.vault.Unseal(ctx, r.Subject, r.Value, vault.Column(t.Name, c.Name, r.ID+"x")); !errors.Is(err, vault.ErrCorrupt) {
					w.t.Errorf("%s opens in another row: %v", at, err)
				}
				if c.Sealed == "json" && !json.Valid(plain) {
					w.t.Errorf("%s is no JSON", at)
				}
				w.opened[at] = true
				w.plain.Write(append(plain, '\n'))
			}
		}
	}
	if !complete {
		return
	}
	for _, t := range w.m.Tables {
		for _, c := range t.Columns {
			if c.Sealed != "" && !w.opened[t.Name+"."+c.Name] && t.Name != "held_records" { // of an erasure under a hold
				w.t.Errorf("this test seals nothing in %s.%s", t.Name, c.Name)
			}
		}
	}
	for what, value := range planted {
		if !bytes.Contains(w.plain.Bytes(), []byte(value)) {
			w.t.Errorf("the %s is nowhere: this test proves nothing of it", what)
		}
	}
}

// storedObjects opens each object by its key and the map.
func (w *witness) storedObjects() {
	w.t.Helper()
	ctx := w.t.Context()
	// As a sweep and, a minute later, a scheduler do with what was deleted.
	w.must(w.a.Privacy.Journal(ctx, "generations", []string{"gen_deleted"}))
	_, err := w.a.keys.Exec(ctx, `UPDATE erasure_journal SET at = at - 60000`)
	w.must(err)
	w.must(w.a.Privacy.Look(ctx, false))
	all, err := w.a.objects.List(ctx, "", "", 100)
	w.must(err)
	kinds := map[string]bool{}
	for _, o := range all {
		kind := w.m.Object(o.Key)
		if kind == nil {
			w.t.Errorf("the object %s is not in the map", o.Key)
			continue
		}
		kinds[kind.Key.String()] = true
		parts, _ := kind.Key.Match(o.Key)
		stored, _, err := w.a.objects.Get(ctx, o.Key)
		w.must(err)
		sealed, err := io.ReadAll(stored)
		w.must(errors.Join(err, stored.Close()))
		if kind.Nobody != "" {
			for what, value := range planted {
				if bytes.Contains(sealed, []byte(value)) {
					w.t.Errorf("%s holds the %s", o.Key, what)
				}
			}
			continue
		}
		opened, err := w.a.vault.UnsealReader(ctx, parts[kind.Subject], bytes.NewReader(sealed), kind.Bound(o.Key))
		if err != nil {
			w.t.Errorf("%s does not open through the map: %v", o.Key, err)
			continue
		}
		picture, err := io.ReadAll(opened)
		w.must(err)
		if sort := http.DetectContentType(picture); !strings.HasPrefix(sort, "image/") && sort != "application/zip" || strings.HasPrefix(http.DetectContentType(sealed), "image/") {
			w.t.Errorf("%s holds %s, sealed %s", o.Key, sort, http.DetectContentType(sealed))
		}
	}
	for _, o := range w.m.Objects {
		if o.Nobody == "" && !heldKind(o.Key.String()) && !kinds[o.Key.String()] {
			w.t.Errorf("the map has objects %s, and nobody left any", o.Key)
		}
	}
}

// deliver has a second process send the mails that wait.
func (w *witness) deliver() {
	w.t.Helper()
	w.change["ZIMAGE_LANES"] = "housekeeping"
	w.change["ZIMAGE_METRICS_LISTEN"] = "off"
	w.change["ZIMAGE_ROOT_KEYS"] = w.a.config.RootKeys
	other := w.open()
	other.start(w.t, config.RoleWorker)
	testenv.Eventually(w.t, time.Minute, func() bool {
		var waiting int
		w.must(w.a.db.Get(w.t.Context(), &waiting, `SELECT count(*) FROM mails WHERE accepted_at IS NULL`))
		return waiting == 0
	})
	var left int
	w.must(w.a.db.Get(w.t.Context(), &left, `SELECT count(*) FROM mails WHERE address IS NOT NULL OR data IS NOT NULL`))
	if left > 0 {
		w.t.Errorf("%d accepted mails are still there", left)
	}
}

// files looks at every file in and beside the data folder.
// export has a copy of everything made, as the person would.
func (w *witness) export() {
	w.t.Helper()
	var e struct{ ID, Status string }
	w.send(202, "POST", "/v1/account/exports", nil, &e)
	testenv.Eventually(w.t, time.Minute, func() bool {
		w.send(200, "GET", "/v1/account/exports/"+e.ID, nil, &e)
		return e.Status == "ready"
	})
}

// heldKind says of objects and files of the map that an erasure under a hold makes
// them: its own tests open them through the map.
func heldKind(name string) bool { return strings.Contains(name, "held/<") }

func (w *witness) files() {
	w.t.Helper()
	seen := map[string]bool{}
	folder := filepath.Dir(w.data)
	w.must(filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name := "DATA" + strings.TrimPrefix(path, w.data)
		for _, f := range w.m.Files {
			if _, ok := f.File.Match(name); ok {
				seen[f.File.String()] = true
				name = ""
				break
			}
		}
		if name != "" {
			w.t.Errorf("the file %s is not in the map", name)
		}
		// Mails are told to lie there readable, for a day, and for a moment while they are written; nothing else.
		letter := strings.HasSuffix(path, ".eml") || strings.HasSuffix(path, ".draft")
		if text, err := os.ReadFile(path); err == nil && !letter && found(text) {
			w.t.Errorf("%s holds what was sent, readable", path)
		}
		return nil
	}))
	for _, f := range w.m.Files {
		name := f.File.String()
		passing := strings.Contains(name, "first-key") || strings.Contains(name, "lock") || strings.Contains(name, "draft") // of cmd/zimage, or gone in a moment
		lite := strings.Contains(name, ".db")
		if w.a.db.Dialect() == db.Postgres && lite {
			continue
		}
		if !passing && !heldKind(name) && !seen[name] {
			w.t.Errorf("the map has the file %s, and there is none", name)
		}
	}
}

const keyspace = "__keyspace@0__:"

// watchRedis hears of every key that is written, however soon it is gone, and of
// all that is said.
func (w *witness) watchRedis(address string) {
	o, err := redis.ParseURL(address)
	w.must(err)
	w.redis = redis.NewClient(o)
	w.must(w.redis.ConfigSet(w.t.Context(), "notify-keyspace-events", "KA").Err())
	w.seen.keys, w.seen.channels = map[string]bool{}, map[string]bool{}
	subscription := w.redis.PSubscribe(context.WithoutCancel(w.t.Context()), "*")
	_, err = subscription.Receive(w.t.Context()) // it is in force
	w.must(err)
	messages := subscription.Channel(redis.WithChannelSize(10_000))
	var done sync.WaitGroup
	done.Go(func() {
		for m := range messages {
			w.seen.Lock()
			if key, ok := strings.CutPrefix(m.Channel, keyspace); ok {
				w.seen.keys[key] = true
			} else {
				w.seen.channels[m.Channel] = true
				w.seen.said.WriteString(m.Payload + "\n")
			}
			w.seen.Unlock()
		}
	})
	w.t.Cleanup(func() {
		_ = subscription.Close()
		done.Wait()
		_ = w.redis.Close()
	})
}

func (w *witness) inRedis() {
	w.t.Helper()
	ctx := w.t.Context()
	w.seen.Lock()
	defer w.seen.Unlock()
	patterns := map[string]bool{}
	look := func(what, name string, of func(privacy.RedisName) privacy.Pattern) {
		for _, r := range w.m.Redis {
			if _, ok := of(r).Match(name); ok {
				patterns[r.Key.String()+r.Channel.String()] = true
				return
			}
		}
		w.t.Errorf("the %s %s is not in the map", what, name)
	}
	for key := range w.seen.keys {
		look("key", key, func(r privacy.RedisName) privacy.Pattern { return r.Key })
		if found([]byte(key)) {
			w.t.Errorf("the key %s holds what was sent", key)
		}
		var all []string
		switch sort := w.redis.Type(ctx, key).Val(); sort {
		case "string":
			all = []string{w.redis.Get(ctx, key).Val()}
		case "list":
			all = w.redis.LRange(ctx, key, 0, -1).Val()
		case "set":
			all = w.redis.SMembers(ctx, key).Val()
		case "zset":
			all = w.redis.ZRange(ctx, key, 0, -1).Val()
		case "hash":
			for name, value := range w.redis.HGetAll(ctx, key).Val() {
				all = append(all, name, value)
			}
		case "none": // gone
		default:
			w.t.Errorf("%s is a %s", key, sort)
		}
		if found([]byte(strings.Join(all, "\n"))) {
			w.t.Errorf("%s holds what was sent: %q", key, all)
		}
	}
	for channel := range w.seen.channels {
		look("channel", channel, func(r privacy.RedisName) privacy.Pattern { return r.Channel })
	}
	if found(w.seen.said.Bytes()) || w.seen.said.Len() == 0 {
		w.t.Errorf("over the channels was said: %s", w.seen.said.Bytes())
	}
	// What asynq writes of workers that are lost, or long at work.
	rare := regexp.MustCompile(`:archived$|:failed|^asynq:workers:`)
	for _, r := range w.m.Redis {
		if name := r.Key.String() + r.Channel.String(); !patterns[name] && !rare.MatchString(name) {
			w.t.Errorf("the map has %s in Redis, and there is none", name)
		}
	}
}

func (w *witness) logged() {
	w.t.Helper()
	requests := 0
	for line := range bytes.Lines([]byte(w.log.String())) {
		if found(line) {
			w.t.Errorf("a log line holds what was sent: %s", line)
		}
		var values object
		w.must(json.Unmarshal(line, &values))
		if values["msg"] == "request" {
			requests++
		}
		for name := range values {
			known := func(n privacy.Named) bool { return n.Name == name }
			if !slices.Contains([]string{"time", "level", "msg"}, name) && !slices.ContainsFunc(w.m.Logs.Attributes, known) {
				w.t.Errorf("the log value %s is not in the map", name)
			}
		}
	}
	if requests < 15 {
		w.t.Errorf("only %d requests are logged", requests)
	}
}

func (w *witness) measured() {
	w.t.Helper()
	res, err := http.Get("http://" + w.a.config.MetricsListen + "/metrics") //nolint:noctx // a test
	w.must(err)
	page, err := io.ReadAll(res.Body)
	w.must(errors.Join(err, res.Body.Close()))
	if found(page) || !bytes.Contains(page, []byte(`zimage_jobs_ended_total{`)) {
		w.t.Errorf("the metrics hold what was sent, or nothing:\n%s", page)
	}
}
