package testenv_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/redis/go-redis/v9"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

func TestDatabasesAreSeparateAndMigrated(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		other, _ := testenv.Database(t, d.Dialect())
		if _, err := d.Exec(ctx, "CREATE TABLE only_here (id TEXT PRIMARY KEY)"); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Exec(ctx, "INSERT INTO only_here (id) VALUES ('x')"); err == nil {
			t.Error("two tests share a database")
		}
		if n, err := d.Migrate(ctx, db.Main()); err != nil || n != 0 {
			t.Errorf("Migrate after Databases = %d, %v; want nothing left to do", n, err)
		}
	})
}

func TestDatabaseURLsAreEmpty(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		d, err := db.Open(t.Context(), url, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		if n, err := d.Migrate(t.Context(), db.Main()); err != nil || n == 0 {
			t.Errorf("Migrate = %d, %v; want all of them", n, err)
		}
	})
}

func TestPostgresKeepsCommitsThroughKill(t *testing.T) {
	t.Parallel()
	s := testenv.PrivatePostgres(t)
	ctx := t.Context()
	d, err := db.Open(ctx, s.URL(), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, statement := range []string{"CREATE TABLE kept (id TEXT PRIMARY KEY)", "INSERT INTO kept (id) VALUES ('x')"} {
		if _, err := d.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := d.Ping(ctx); err == nil {
		t.Error("a killed server answers")
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var n int
	testenv.Eventually(t, 5*time.Second, func() bool { return d.Get(ctx, &n, "SELECT count(*) FROM kept") == nil })
	if n != 1 {
		t.Errorf("%d rows after the kill, want 1", n)
	}
}

func TestRedisKeepsOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{"kept": true, "forgotten": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testenv.PrivateRedis(t, kept)
			options, err := redis.ParseURL(s.URL())
			if err != nil {
				t.Fatal(err)
			}
			c := redis.NewClient(options)
			defer func() { _ = c.Close() }()
			ctx := t.Context()
			if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := c.Ping(ctx).Err(); err == nil {
				t.Error("a killed server answers")
			}
			if err := s.Start(ctx); err != nil {
				t.Fatal(err)
			}
			n, err := c.Exists(ctx, "k").Result()
			if err != nil || (n == 1) != kept {
				t.Errorf("after the kill: %d keys, %v; kept = %v", n, err, kept)
			}
		})
	}
}

func TestMinioKeepsBucketsThroughKill(t *testing.T) {
	t.Parallel()
	s := testenv.PrivateMinio(t)
	b := testenv.S3At(t, s.URL())
	c, err := minio.New(b.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(b.AccessKey, b.SecretKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := c.MakeBucket(ctx, b.Bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if there, err := c.BucketExists(ctx, b.Bucket); err != nil || !there {
		t.Errorf("BucketExists = %v, %v", there, err)
	}
}

func TestStopLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(context.Context) (*testenv.Server, error){
		"postgres": testenv.StartPostgres,
		"minio":    testenv.StartMinio,
		"redis":    func(ctx context.Context) (*testenv.Server, error) { return testenv.StartRedis(ctx, true) },
	} {
		t.Run(name, func(t *testing.T) {
			s, err := start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			dir := s.Dir()
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its folder is still there: %v", err)
			}
			if err := s.Kill(); err != nil {
				t.Errorf("Kill after Stop: %v", err)
			}
		})
	}
}

// The helper's failure is seen from outside: in a run of this test binary
// without the launcher's environment.
func TestMissingPartsFailAndSayWhatToRun(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestDatabasesAreSeparateAndMigrated$/^postgres$")
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ZIMAGE_TEST_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("the test passes without PostgreSQL")
	}
	for _, want := range []string{testenv.PostgresVariable, "make test", "go run ./internal/testenv/cmd/parts -- go test"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the failure does not name %q:\n%s", want, out)
		}
	}
}

func TestNodeRunsInTheExamples(t *testing.T) {
	t.Parallel()
	cmd := testenv.Node(t, "--print", "[process.cwd(), Object.keys(process.env)]")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "docs/examples', [ 'PATH' ]") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMissingNodeFailsAndSaysWhatToRun(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestNodeRunsInTheExamples$")
	cmd.Env = []string{"PATH=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "node is not installed: run `make test`") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPackagesInstalled(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ have, want string }{
		"nothing":         {``, "not installed"},
		"all":             {`{"packages": {"node_modules/a": {"integrity": "sha512-1"}, "node_modules/b": {"integrity": "sha512-2"}}}`, ""},
		"another version": {`{"packages": {"node_modules/a": {"integrity": "sha512-1"}, "node_modules/b": {"integrity": "sha512-3"}}}`, "node_modules/b"},
		"one is missing":  {`{"packages": {"node_modules/b": {"integrity": "sha512-2"}}}`, "node_modules/a"},
	} {
		dir := t.TempDir()
		write := func(text string, path ...string) {
			if err := os.WriteFile(filepath.Join(append([]string{dir}, path...)...), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(`{"packages": {"": {"name": "x"}, "node_modules/a": {"integrity": "sha512-1"}, "node_modules/b": {"integrity": "sha512-2"}}}`, "package-lock.json")
		if err := os.Mkdir(filepath.Join(dir, "node_modules"), 0o700); err != nil {
			t.Fatal(err)
		}
		if tt.have != "" {
			write(tt.have, "node_modules", ".package-lock.json")
		}
		err := testenv.PackagesInstalled(dir)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The lock file says what is installed, and leaves to the environment from where.
func TestTheLockFileNamesNoRegistry(t *testing.T) {
	t.Parallel()
	dir, err := testenv.ExamplesDir()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "package-lock.json"))
	if err != nil || !strings.Contains(string(text), "integrity") || strings.Contains(string(text), "://") {
		t.Errorf("%v\n%s", err, text)
	}
}
