//go:build unix

package app

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/vault"
	"zimage/internal/webhook"
)

// patient is an installation of `zimage up` that was started once and is healthy
// until a case breaks it.
type patient struct {
	t       *testing.T
	dir     string
	environ map[string]string
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	p := bare(t)
	p.must(open(t, config.RoleUp, p.environ).Close())
	return p
}

// bare is one that was never started.
func bare(t *testing.T) *patient {
	t.Helper()
	p := &patient{t: t, dir: t.TempDir()}
	p.environ = map[string]string{
		"ZIMAGE_DATA": p.path("data"), "ZIMAGE_LISTEN": freePort(t), "ZIMAGE_METRICS_LISTEN": freePort(t), "ZIMAGE_SHUTDOWN_TIMEOUT": "5s",
	}
	return p
}

// twin is a copy, to be broken.
func (p *patient) twin(t *testing.T) *patient {
	t.Helper()
	twin := bare(t)
	p.must(os.CopyFS(twin.dir, os.DirFS(p.dir)))
	p.must(filepath.WalkDir(twin.dir, func(path string, entry fs.DirEntry, err error) error { // which copies no modes
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o600)
		if entry.IsDir() {
			mode = 0o700
		}
		return os.Chmod(path, mode)
	}))
	return twin
}

func (p *patient) path(name string) string { return filepath.Join(p.dir, name) }

// file writes one that a setting names.
func (p *patient) file(name, text string) string {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return p.path(name)
}

func (p *patient) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// sql runs statements on one of the databases.
func (p *patient) sql(file string, statements ...string) {
	p.t.Helper()
	d, err := db.Open(p.t.Context(), "sqlite:"+p.path(file), db.Options{})
	p.must(err)
	for _, s := range statements {
		_, err := d.Exec(p.t.Context(), s)
		p.must(err)
	}
	p.must(d.Close())
}

// redis starts one, changes a setting of it, and names it.
func (p *patient) redis(setting, value string) {
	p.t.Helper()
	address := testenv.Redis(p.t)
	o, err := redis.ParseURL(address)
	p.must(err)
	c := redis.NewClient(o)
	defer func() { _ = c.Close() }()
	p.must(c.ConfigSet(p.t.Context(), setting, value).Err())
	p.environ["ZIMAGE_REDIS_URL"] = address
}

// s3 names a bucket that nobody has made.
func (p *patient) s3() testenv.S3Bucket {
	p.t.Helper()
	b := testenv.S3(p.t)
	p.environ["ZIMAGE_S3_ENDPOINT"], p.environ["ZIMAGE_S3_BUCKET"], p.environ["ZIMAGE_S3_TLS"] = b.Endpoint, b.Bucket, "false"
	p.environ["ZIMAGE_S3_ACCESS_KEY"], p.environ["ZIMAGE_S3_SECRET_KEY"] = b.AccessKey, b.SecretKey
	return b
}

// mailServer names one.
func (p *patient) mailServer(address, before string) {
	p.environ["ZIMAGE_SMTP_URL"], p.environ["ZIMAGE_MAIL_FROM"] = before+address, "Z Image <no-reply@zimage.example>"
}

// says starts a server that greets everybody so, and hangs up.
func (p *patient) says(greeting string) string {
	p.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	p.must(err)
	p.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting)
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// worker reports one that lives and serves these lanes.
func (p *patient) worker(lanes ...string) {
	p.t.Helper()
	for _, lane := range lanes {
		p.sql("data/zimage.db", fmt.Sprintf(`INSERT INTO workers (id, lane, slots, unit_micros, seen_at) VALUES ('wrk_x', '%s', 1, 0, %d)`, lane, time.Now().UnixMilli()))
	}
}

// listen takes a free address away.
func (p *patient) listen(network, address string) string {
	p.t.Helper()
	l, err := net.Listen(network, address)
	p.must(err)
	p.t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func (p *patient) config() config.Config {
	p.t.Helper()
	c, err := config.ForRole(p.environ, config.RoleUp)
	p.must(err)
	return c
}

// examine also checks that nothing has changed on the disk.
func (p *patient) examine() []Finding {
	p.t.Helper()
	before := p.content()
	var found []Finding
	Examine(p.t.Context(), p.config(), config.RoleUp, func(f Finding) { found = append(found, f) })
	if after := p.content(); !maps.Equal(before, after) {
		p.t.Errorf("the doctor changed something:\n%v\n%v", before, after)
	}
	return found
}

func (p *patient) content() map[string]string {
	p.t.Helper()
	all := map[string]string{}
	p.must(filepath.WalkDir(p.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			all[path] = "no file"
			return err
		}
		text, err := os.ReadFile(path)
		all[path] = fmt.Sprintf("%d %x", len(text), sha256.Sum256(text))
		return err
	}))
	return all
}

const twoEngines = `engines:
  - {name: illustrator, kind: illustrator, models: {illustrator: {}}}
  - {name: second, kind: illustrator, slots: 2, models: {illustrator: {}}}
models:
  - {id: illustrator, source_type: algorithmicMedia, default_steps: 8}
`

const oneServer = `engines:
  - {name: gpu, kind: openai, url: "http://127.0.0.1:1", keeps: nothing, %s models: {z: {dialect: vllm-omni}}}
models:
  - {id: z, default_steps: 8}
`

func TestDoctorNamesWhatIsBrokenAndHowToMendIt(t *testing.T) {
	t.Parallel()
	healthy := newPatient(t)
	const starts, fails = true, false
	for _, tt := range []struct {
		name       string
		change     func(p *patient)
		part       string
		bad        bool
		text, mend string
		start      bool // whether the parts open all the same
	}{
		{"a policy that promises what the law does not allow", func(p *patient) {
			p.environ["ZIMAGE_POLICY"] = p.file("policy.yaml", strings.Replace(string(privacy.Example), "deletion: 30 days", "deletion: 90 days", 1))
		}, "policy", true, "windows.deletion: write 1 to 30 days", "zimage policy example", fails},
		{"a processor without a contract", func(p *patient) {
			p.redis("maxmemory-policy", "noeviction")
			p.environ["ZIMAGE_POLICY"] = p.file("policy.yaml", unbound("redis"))
		}, "processors", true, "ZIMAGE_REDIS_URL: without a contract in the policy nothing is given to the processor of redis: gull", "write contract and contract_date", fails},
		{"a public service of nobody's", func(p *patient) { p.environ["ZIMAGE_PUBLIC_URL"] = "https://zimage.example" },
			"policy", false, "controller.name, controller.address, contacts.privacy", "ZIMAGE_POLICY", starts},
		{"a policy that another one has followed", func(p *patient) {
			p.sql("data/zimage.db", `INSERT INTO policies (version, in_force_since, fingerprint, published_at) VALUES ('v9', 1893456000000, 'x', 1)`)
		}, "policy in force", true, "version v9 of 2030-01-01 is in force, and this is version 2026-01-01 of 2026-01-01: name the file of version v9", "ZIMAGE_POLICY", starts}, // Run refuses it, as the next
		{"a policy that was changed under its version", func(p *patient) {
			p.sql("data/zimage.db", `INSERT INTO policies (version, in_force_since, fingerprint, published_at) VALUES ('2026-01-01', 1767225600000, 'x', 1)`)
		}, "policy in force", true, "says something else than this file: name the file as it was published, or give the changed file a new version", "ZIMAGE_POLICY", starts},
		{"an engines file without engines", func(p *patient) { p.environ["ZIMAGE_ENGINES"] = p.file("engines.yaml", "engines: []\n") },
			"engines file", true, "at least one is needed", "zimage engines example", fails},
		{"a lane that is not there", func(p *patient) { p.environ["ZIMAGE_LANES"] = "nowhere" },
			"engines file", true, `there is no lane "nowhere"`, "mend it", fails},
		{"rules without a message", func(p *patient) {
			p.environ["ZIMAGE_PROMPT_RULES"] = p.file("rules.yaml", "rules: [{id: a, words: [b]}]\n")
		},
			"prompt rules", true, "message: is missing", "mend that rule", fails},
		{"a data folder of others", func(p *patient) { p.must(os.Chmod(p.path("data"), 0o777)) }, //nolint:gosec // that is the test
			"data", true, "other accounts may write", "chmod go-w", starts}, // `zimage up` refuses it before it opens parts
		{"an address that is taken", func(p *patient) { p.environ["ZIMAGE_LISTEN"] = p.listen("tcp", "127.0.0.1:0") },
			"listen ", true, "address already in use", "ZIMAGE_LISTEN", starts},
		{"the metrics' address is taken", func(p *patient) { p.environ["ZIMAGE_METRICS_LISTEN"] = p.listen("tcp", "127.0.0.1:0") },
			"listen ", true, "address already in use", "ZIMAGE_METRICS_LISTEN", starts},
		{"a file where the socket is to be", func(p *patient) {
			p.environ["ZIMAGE_LISTEN"], p.environ["ZIMAGE_PUBLIC_URL"] = "unix:"+p.file("api.sock", ""), "https://localhost"
		}, "listen ", true, "a file is there already", "ZIMAGE_LISTEN", starts},

		{"a database that is away", func(p *patient) {
			p.environ["ZIMAGE_DATABASE_URL"] = "postgres://u@127.0.0.1:1/zimage?sslmode=disable"
		}, "database", true, "does not answer", "ZIMAGE_DATABASE_URL", fails},
		{"a database that is none", func(p *patient) { p.file("data/zimage.db", strings.Repeat("no database ", 100)) },
			"database", true, "refused", "ZIMAGE_DATABASE_URL", fails},
		{"a database of a newer version", func(p *patient) {
			p.sql("data/zimage.db", "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)")
		}, "database", true, "newer version", "run that version", fails},
		{"a database of an older version", func(p *patient) {
			p.must(os.Remove(p.path("data/zimage.db")))
			d, err := db.Open(p.t.Context(), "sqlite:"+p.path("data/zimage.db"), db.Options{})
			p.must(err)
			text, err := fs.ReadFile(db.Main(), "00001_jobs.sql")
			p.must(err)
			_, err = d.Migrate(p.t.Context(), fstest.MapFS{"00001_jobs.sql": {Data: text}})
			p.must(err)
			p.must(d.Close())
		}, "database", false, "steps of its schema are to come", "next start", starts},
		{"an empty database", func(p *patient) {
			p.must(os.Remove(p.path("data/zimage.db")))
			p.file("data/zimage.db", "")
		}, "database", false, "is empty", "makes its tables", starts},
		{"no database", func(p *patient) { p.must(os.Remove(p.path("data/zimage.db"))) },
			"database", false, "there is none yet", "zimage up", starts},
		{"a key store of a newer version", func(p *patient) {
			p.sql("data-keys/keys.db", "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)")
		}, "key store", true, "newer version", "run that version", fails},

		{"the roots of another installation", func(p *patient) {
			p.must(os.Remove(p.path("data-roots/roots.yaml")))
			_, err := vault.CreateRoots(p.path("data-roots/roots.yaml"))
			p.must(err)
		}, "root keys", true, "lacks root", "belongs to this key store", fails},
		{"another key under the root's id", func(p *patient) {
			text, err := os.ReadFile(p.path("data-roots/roots.yaml"))
			p.must(err)
			before, _, _ := strings.Cut(string(text), "key: ")
			p.file("data-roots/roots.yaml", before+"key: "+strings.Repeat("Zm9v", 10)+"YmE=\n")
		}, "root keys", true, "is not the one that wrapped", "belongs to this key store", fails},
		{"lost roots", func(p *patient) { p.must(os.Remove(p.path("data-roots/roots.yaml"))) },
			"root keys", true, "lacks root", "belongs to this key store", fails},
		{"roots that others can read", func(p *patient) { p.must(os.Chmod(p.path("data-roots/roots.yaml"), 0o644)) }, //nolint:gosec // that is the test
			"root keys", true, "chmod 600", "offline copy", fails},

		{"a root that nobody has rotated", func(p *patient) {
			text, err := os.ReadFile(p.path("data-roots/roots.yaml"))
			p.must(err)
			p.file("data-roots/roots.yaml", regexp.MustCompile(`created: .*`).ReplaceAllString(string(text), `created: "2020-01-31T08:00:00Z"`))
		}, "root keys", false, "days old", "zimage root rotate", starts},

		{"Redis away", func(p *patient) { p.environ["ZIMAGE_REDIS_URL"] = "redis://127.0.0.1:1" },
			"redis", false, "does not answer", "without it work goes on", starts},
		{"Redis with another password", func(p *patient) { p.redis("requirepass", "secret") },
			"redis", false, "refuses us: NOAUTH", "user and password", starts},
		{"Redis throws keys away", func(p *patient) { p.redis("maxmemory-policy", "allkeys-lru") },
			"redis", false, "allkeys-lru", "noeviction", starts},

		{"webhooks to this machine", func(p *patient) { p.environ["ZIMAGE_OUTBOUND_LOOPBACK"] = "true" },
			"webhooks", false, "may lead to this machine", "take ZIMAGE_OUTBOUND_LOOPBACK away", starts},

		{"the object store is away", func(p *patient) { p.s3(); p.environ["ZIMAGE_S3_ENDPOINT"] = "127.0.0.1:1" },
			"objects", false, "connection refused", "ZIMAGE_S3_ENDPOINT", starts},
		{"the object store refuses the key", func(p *patient) { p.s3(); p.environ["ZIMAGE_S3_SECRET_KEY"] = "another-secret" },
			"objects", true, "SignatureDoesNotMatch", "ZIMAGE_S3_", fails},
		{"the object store speaks no TLS", func(p *patient) { p.s3(); p.environ["ZIMAGE_S3_TLS"] = "true" },
			"objects", true, "does not speak TLS", "ZIMAGE_S3_", fails},
		{"no bucket", func(p *patient) { p.s3() },
			"objects", false, "there is no bucket", "first start makes it", starts},
		{"a file for a folder", func(p *patient) {
			p.must(os.RemoveAll(p.path("data/objects")))
			p.file("data/objects", "")
		}, "objects", true, "object store: open", "alone may write to", fails},
		{"a folder of objects that others may write to", func(p *patient) { p.must(os.Chmod(p.path("data/objects"), 0o777)) }, //nolint:gosec // that is the test
			"objects", true, "other accounts may write", "alone may write to", fails},

		{"the mail server is away", func(p *patient) { p.mailServer("127.0.0.1:1", "smtp://") },
			"mail", false, "does not answer", "ZIMAGE_SMTP_URL", starts},
		{"the mail server refuses the password", func(p *patient) { p.mailServer(newPostbox(p.t).address, "smtp://mailer:wrong@") },
			"mail", true, "does not accept user and password (535)", "ZIMAGE_SMTP_URL", starts},
		{"the mail server speaks no TLS", func(p *patient) { p.mailServer(newPostbox(p.t).address, "smtps://") },
			"mail", true, "no TLS that we accept", "ZIMAGE_SMTP_CA", starts},
		{"the mail server takes nothing", func(p *patient) { p.mailServer(p.says("554 not from you\r\n"), "smtp://") },
			"mail", true, "takes nothing from us (554)", "ZIMAGE_MAIL_FROM", starts},
		{"the mail server is busy", func(p *patient) { p.mailServer(p.says("421 later\r\n"), "smtp://") },
			"mail", false, "asks to come later (421)", "for long", starts},
		{"a file for the folder of mails", func(p *patient) { p.file("data/mail", "") },
			"mail", true, "is no folder", "ZIMAGE_SMTP_URL", starts},

		{"an engine that is away", func(p *patient) { p.environ["ZIMAGE_ENGINES"] = p.file("engines.yaml", fmt.Sprintf(oneServer, "")) },
			"engine gpu", true, "unreachable", "check that it runs", starts},
		{"an engine's credential is not there", func(p *patient) {
			p.environ["ZIMAGE_ENGINES"] = p.file("engines.yaml", fmt.Sprintf(oneServer, "auth: {file: /nowhere/key},"))
		}, "engine gpu", true, "auth.file", "mend that field", starts}, // the worker fails, after the parts are open
		{"nobody works", func(*patient) {}, "lane generation", false, "no worker serves it now", "ZIMAGE_LANES", starts},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := healthy.twin(t)
			tt.change(p)
			found := p.examine()
			i := slices.IndexFunc(found, func(f Finding) bool {
				return strings.HasPrefix(f.Part, tt.part) && f.Bad == tt.bad && f.Warn == !tt.bad &&
					strings.Contains(f.Text, tt.text) && strings.Contains(f.Mend, tt.mend)
			})
			if i < 0 {
				t.Errorf("not named: %s", tt.part)
			}
			told := false
			for k, f := range found {
				told = told || f.Part == "objects"
				if k != i && (f.Bad || f.Warn && !strings.HasPrefix(f.Part, "lane ")) {
					t.Errorf("also: %+v", f)
				}
			}
			if !told {
				t.Error("the examination ended at the first finding")
			}
			// What a start would refuse is bad, and what it would not is not.
			c := p.config()
			if _, err := CreateRoots(c); err != nil { // as `zimage up` does
				t.Fatal(err)
			}
			a, err := Open(t.Context(), c, "up", "test", slog.New(slog.DiscardHandler))
			if err == nil {
				_ = a.Close()
			}
			if (err == nil) != tt.start {
				t.Errorf("a start says: %v", err)
			}
			if t.Failed() {
				for _, f := range found {
					t.Logf("%+v", f)
				}
			}
		})
	}
}

// The doctor says beforehand what a start does with the policy.
func TestDoctorTellsWhichPolicyIsInForce(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	says := func(want string) {
		t.Helper()
		for _, f := range p.examine() {
			if f.Part == "policy in force" {
				if f.Bad || f.Warn || f.Text != want {
					t.Errorf("%+v, want %s", f, want)
				}
				return
			}
		}
		t.Errorf("it does not say: %s", want)
	}
	says("the next start puts version 2026-01-01 in force")
	a := open(t, config.RoleUp, p.environ)
	p.must(a.Privacy.Publish(t.Context()))
	p.must(a.Close())
	says("version 2026-01-01")
	p.environ["ZIMAGE_POLICY"] = p.file("policy.yaml", strings.NewReplacer(`version: "2026-01-01"`, "version: v2", "date: 2026-01-01 #", "date: 2026-02-01 #").Replace(string(privacy.Example)))
	says("the next start puts version v2 in force")
}

func TestDoctorAsksTheMailServerAndSendsNothing(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	b := newPostbox(p.t)
	p.mailServer(b.address, "smtp://mailer:right@")
	mails := func(role config.Role) (told []Finding) {
		Examine(t.Context(), p.config(), role, func(f Finding) {
			if f.Part == "mail" {
				told = append(told, f)
			}
		})
		return told
	}
	if told := mails(config.RoleUp); len(told) != 1 || told[0].Bad || told[0].Warn || b.logins.Load() != 1 || b.froms.Load() != 0 {
		t.Errorf("%+v after %d sign-ins and %d mails", told, b.logins.Load(), b.froms.Load())
	}
	if told := mails(config.RoleAPI); len(told) != 0 {
		t.Errorf("an api sends no mail: %+v", told)
	}
	p.environ["ZIMAGE_LANES"] = "illustration"
	if told := mails(config.RoleWorker); len(told) != 0 {
		t.Errorf("a worker without housekeeping sends no mail: %+v", told)
	}
	for _, name := range []string{"ZIMAGE_LANES", "ZIMAGE_SMTP_URL"} {
		delete(p.environ, name)
	}
	if told := mails(config.RoleWorker); len(told) != 1 || !told[0].Warn || !strings.Contains(told[0].Mend, "ZIMAGE_SMTP_URL") {
		t.Errorf("a worker without a mail server: %+v", told)
	}
}

// A worker of a version before the mail lane takes housekeeping without it.
func TestDoctorTellsThatNobodySendsMail(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.worker("generation", jobs.Housekeeping, webhook.Lane)
	warned := map[string]Finding{}
	for _, f := range p.examine() {
		if lane, ok := strings.CutPrefix(f.Part, "lane "); ok && f.Warn {
			warned[lane] = f
		}
	}
	if f := warned[mail.Lane]; len(warned) != 1 || !strings.Contains(f.Text, "no worker serves it") || !strings.Contains(f.Mend, "housekeeping, of this version") {
		t.Errorf("warned of %+v", warned)
	}
	p.worker(mail.Lane)
	for _, f := range p.examine() {
		if f.Part == "lane mail" && f.Warn {
			t.Errorf("served: %+v", f)
		}
	}
}

func TestDoctorTellsWhetherWebhooksAreCalled(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.worker("generation", jobs.Housekeeping, mail.Lane) // of a version before webhooks
	lane := func() (said Finding) {
		t.Helper()
		for _, f := range p.examine() {
			switch {
			case f.Part == "lane webhook":
				said = f
			case f.Bad || f.Warn:
				t.Errorf("%+v", f)
			}
		}
		return said
	}
	if f := lane(); !f.Warn || f.Text != "no worker serves it now" || !strings.Contains(f.Mend, "housekeeping, of this version") {
		t.Errorf("nobody: %+v", f)
	}
	for id, state := range []string{"queued", "queued", "waiting", "succeeded"} {
		p.sql("data/zimage.db", fmt.Sprintf(`INSERT INTO jobs (id, lane, kind, party, ref, state, attempt, max_attempts, run_after, lease_until, worker, vstart, cost,
			cancel_requested, progress_done, progress_total, error_code, created_at, started_at, finished_at)
			VALUES ('job_%d', 'webhook', 'webhook:deliver', 'whk_x', 'dlv_x', '%s', 0, 1, 0, 0, '', 0, 1, 0, 0, 0, '', 0, 0, 0)`, id, state))
	}
	const waiting = "; deliveries that wait for a worker: 2, for their next attempt: 1"
	if f := lane(); !f.Warn || f.Text != "no worker serves it now"+waiting {
		t.Errorf("nobody, and some wait: %+v", f)
	}
	p.worker(webhook.Lane)
	if f := lane(); f.Warn || f.Text != "is served"+waiting {
		t.Errorf("served: %+v", f)
	}
}

func TestDoctorMakesNothing(t *testing.T) {
	t.Parallel()
	p := bare(t)
	b := p.s3()
	p.environ["ZIMAGE_DATABASE_URL"] = testenv.DatabaseURL(t, db.Postgres)
	for _, f := range p.examine() {
		if f.Bad {
			t.Errorf("bad before the first start: %+v", f)
		}
	}
	client, err := minio.New(b.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, "")})
	p.must(err)
	if there, err := client.BucketExists(t.Context(), b.Bucket); err != nil || there {
		t.Errorf("the bucket was made (%v)", err)
	}
	d, err := db.Open(t.Context(), p.environ["ZIMAGE_DATABASE_URL"], db.Options{})
	p.must(err)
	defer func() { _ = d.Close() }()
	var tables int
	if err := d.Get(t.Context(), &tables, `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`); err != nil || tables != 0 {
		t.Errorf("%d tables were made (%v)", tables, err)
	}
}

func TestDoctorNamesAWorkerWithAnotherEnginesFile(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.environ["ZIMAGE_ENGINES"] = p.file("theirs.yaml", twoEngines)
	a := open(t, config.RoleUp, p.environ)
	a.start(t, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
	var found []Finding
	ask := func() {
		found = nil
		Examine(context.Background(), p.config(), config.RoleUp, func(f Finding) { found = append(found, f) })
	}
	served := func() bool {
		ask()
		return !slices.ContainsFunc(found, func(f Finding) bool { return f.Bad || f.Warn })
	}
	testenv.Eventually(t, 20*time.Second, served) // all is well while the file is the same
	p.environ["ZIMAGE_ENGINES"] = p.file("ours.yaml", strings.Replace(twoEngines, "slots: 2", "slots: 3", 1))
	ask()
	i := slices.IndexFunc(found, func(f Finding) bool {
		return f.Warn && strings.HasPrefix(f.Part, "worker wrk_") && strings.Contains(f.Text, "its second has 2 slots, here 3") && strings.Contains(f.Mend, "the same file")
	})
	if i < 0 {
		t.Errorf("not named: %+v", found)
	}
}

func TestEnginesOfAWorkerAreCompared(t *testing.T) {
	t.Parallel()
	ours := engine.Config{Engines: []engine.Settings{
		{Name: "a", Kind: "comfyui", Lane: "generation", Slots: 1}, {Name: "b", Kind: "comfyui", Lane: "generation", Slots: 1},
		{Name: "c", Kind: "illustrator", Lane: "illustration", Slots: 1},
	}}
	a, b := generate.EngineState{Name: "a", Kind: "comfyui", Lane: "generation", Slots: 1}, generate.EngineState{Name: "b", Kind: "comfyui", Lane: "generation", Slots: 1}
	with := func(e generate.EngineState, change func(*generate.EngineState)) generate.EngineState {
		change(&e)
		return e
	}
	for _, tt := range []struct {
		name   string
		theirs []generate.EngineState
		want   string
	}{
		{"the same, of one lane", []generate.EngineState{b, a}, ""},
		{"nothing but housekeeping", nil, ""},
		{"one is missing", []generate.EngineState{a}, "it lacks b"},
		{"one more", []generate.EngineState{a, b, {Name: "d", Lane: "generation"}}, "it has d, which is not in the file here"},
		{"another lane", []generate.EngineState{a, with(b, func(e *generate.EngineState) { e.Lane = "second" })},
			"its b is comfyui in lane second, here comfyui in lane generation"},
		{"another kind", []generate.EngineState{with(a, func(e *generate.EngineState) { e.Kind = "sdcpp" }), b},
			"its a is sdcpp in lane generation, here comfyui in lane generation"},
		{"more slots", []generate.EngineState{a, with(b, func(e *generate.EngineState) { e.Slots = 4 })}, "its b has 4 slots, here 1"},
	} {
		if got := strings.Join(differ(ours, tt.theirs), "; "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestDoctorTellsThatClocksDiffer(t *testing.T) {
	t.Parallel()
	for off, want := range map[time.Duration]Finding{
		5 * time.Second:               {},
		time.Minute:                   {Part: "clock", Warn: true},
		clock.MostApart + time.Second: {Part: "clock", Bad: true},
	} {
		var said Finding
		doctor{tell: func(f Finding) { said = f }}.off(off)
		if said.Part != want.Part || said.Warn != want.Warn || said.Bad != want.Bad || (said.Part != "") != (said.Mend != "") {
			t.Errorf("%s: %+v", off, said)
		}
	}
}
