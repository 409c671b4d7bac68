// Package deploy checks the files beside it, since they are read by programs
// that no test starts: every setting against the config package, every command
// against cmd, and what Redis and PostgreSQL are given against the real ones.
package deploy

import (
	"context"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.yaml.in/yaml/v3"

	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/generate"
	"zimage/internal/jobs"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

type composeFile struct {
	Services map[string]service
	Secrets  map[string]struct{ File string }
	Configs  map[string]struct{ File string }
	Networks map[string]struct{ Internal bool }
	Volumes  map[string]any
}

type service struct {
	Image       string
	Build       *struct{ Context, Dockerfile string }
	User        string
	Entrypoint  []string
	Command     []string
	Environment map[string]string
	Secrets     []string
	Configs     []struct{ Source, Target string }
	Volumes     []string
	Ports       []string
	Networks    []string
	Tmpfs       []string
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	ReadOnly    bool                                  `yaml:"read_only"`
	CapDrop     []string                              `yaml:"cap_drop"`
	CapAdd      []string                              `yaml:"cap_add"`
	SecurityOpt []string                              `yaml:"security_opt"`
	Privileged  bool
	Ulimits     map[string]int
	GracePeriod time.Duration `yaml:"stop_grace_period"`
	Healthcheck struct{ Test []string }
}

// ours are the services that run this project's image.
var ours = map[string]config.Role{"api": config.RoleAPI, "worker": config.RoleWorker, "scheduler": config.RoleScheduler}

var interpolation = regexp.MustCompile(`\$\{[A-Z_]+:-([^}]*)\}`)

// compose reads the Compose file as it is without any variable set.
func compose(t *testing.T) composeFile {
	t.Helper()
	text := interpolation.ReplaceAllString(read(t, "compose.yaml"), "$1")
	text = strings.ReplaceAll(text, "$$", "$")
	var c composeFile
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"api", "worker", "scheduler", "postgres", "redis", "minio"} {
		if _, ok := c.Services[name]; !ok {
			t.Fatalf("there is no service %s", name)
		}
	}
	return c
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// secrets runs secrets.sh into a new folder.
func secrets(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "secrets")
	makeSecrets(t, folder)
	return folder
}

func makeSecrets(t *testing.T, folder string) {
	t.Helper()
	cmd := exec.Command("./secrets.sh")
	cmd.Env = append(os.Environ(), "SECRETS="+folder, "APP_UID="+strconv.Itoa(os.Getuid()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("secrets.sh: %v\n%s", err, out)
	}
}

// mounted is the path on this machine of what a container sees at path.
func mounted(c composeFile, s service, folder, path string) (string, bool) {
	for _, file := range s.Configs {
		if file.Target == path {
			return c.Configs[file.Source].File, c.Configs[file.Source].File != ""
		}
	}
	for _, memory := range s.Tmpfs {
		if at, _, _ := strings.Cut(memory, ":"); strings.HasPrefix(path, at+"/") {
			return filepath.Join(folder, "memory", path), true
		}
	}
	name, ok := strings.CutPrefix(path, "/run/secrets/")
	if !ok || !slices.Contains(s.Secrets, name) {
		return "", false
	}
	return filepath.Join(folder, filepath.Base(c.Secrets[name].File)), true
}

func TestEveryServiceStartsWithItsSettings(t *testing.T) {
	t.Parallel()
	c, folder := compose(t), secrets(t)
	for name, role := range ours {
		s := c.Services[name]
		environ := map[string]string{}
		for variable, value := range s.Environment {
			if strings.HasPrefix(value, "/") {
				path, ok := mounted(c, s, folder, value)
				if !ok {
					t.Errorf("%s: %s names %s, which is not mounted", name, variable, value)
				}
				value = path
			}
			environ[variable] = value
		}
		loaded, err := config.ForRole(environ, role)
		if err != nil {
			t.Errorf("%s does not start:\n%v", name, err)
			continue
		}
		if s.GracePeriod <= loaded.ShutdownTimeout {
			t.Errorf("%s: killed after %v, though it takes up to %v to stop", name, s.GracePeriod, loaded.ShutdownTimeout)
		}
		// Hosts are services that the process can reach and waits for.
		for setting, address := range map[string]string{
			"DATABASE_URL": loaded.DatabaseURL, "KEYS_DATABASE_URL": loaded.KeysDatabaseURL,
			"REDIS_URL": loaded.RedisURL, "S3_ENDPOINT": "s3://" + loaded.S3Endpoint,
		} {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			host, ok := c.Services[u.Hostname()]
			if !ok || s.DependsOn[u.Hostname()].Condition == "" || !slices.ContainsFunc(host.Networks, func(n string) bool { return slices.Contains(s.Networks, n) }) {
				t.Errorf("%s: the host of %s is no service that it reaches and waits for", name, setting)
			}
		}
		if _, err := vault.ReadRoots(loaded.RootKeys); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if redacted := loaded.Redacted(); len(redacted) == 0 {
			t.Errorf("%s: nothing to show", name)
		}
	}
}

func TestPromise_X1_NamedExceptionsAreNeededOnesOnly(t *testing.T) {
	t.Parallel()
	c, folder := compose(t), secrets(t)
	for name, role := range ours {
		s := c.Services[name]
		hops := strings.Split(s.Environment["ZIMAGE_TLS_EXCEPTIONS"], ",")
		for _, left := range hops {
			environ := map[string]string{}
			for variable, value := range s.Environment {
				if path, ok := mounted(c, s, folder, value); ok {
					value = path
				}
				environ[variable] = value
			}
			environ["ZIMAGE_TLS_EXCEPTIONS"] = strings.Join(slices.DeleteFunc(slices.Clone(hops), func(h string) bool { return h == left }), ",")
			if _, err := config.ForRole(environ, role); err == nil {
				t.Errorf("%s: the exception %s changes nothing", name, left)
			}
		}
	}
	for _, s := range []string{"postgres", "redis", "minio"} {
		if len(c.Services[s].Ports) > 0 {
			t.Errorf("%s: published, though its hop is in plain", s)
		}
		for _, network := range c.Services[s].Networks {
			if !c.Networks[network].Internal {
				t.Errorf("%s: on %s, which leads out", s, network)
			}
		}
	}
	for _, port := range c.Services["api"].Ports {
		if !strings.HasPrefix(port, "127.0.0.1:") {
			t.Errorf("api: %s publishes plain HTTP to the network", port)
		}
	}
}

// What the api accepts is what the workers run: one engines file, one set of rules,
// one policy.
func TestEveryRoleReadsTheSameFiles(t *testing.T) {
	t.Parallel()
	c, folder := compose(t), secrets(t)
	for variable, parse := range map[string]func([]byte) error{
		"ZIMAGE_ENGINES":      func(text []byte) error { _, err := engine.ParseConfig(text); return err },
		"ZIMAGE_PROMPT_RULES": func(text []byte) error { _, err := generate.ParseRules(text); return err },
		"ZIMAGE_POLICY":       func(text []byte) error { _, err := privacy.ParsePolicy(text); return err },
	} {
		files := map[string]bool{}
		for name := range ours {
			path, ok := mounted(c, c.Services[name], folder, c.Services[name].Environment[variable])
			if !ok {
				t.Errorf("%s: %s names no file that it sees", name, variable)
			}
			files[path] = true
		}
		for path := range files {
			if err := parse([]byte(read(t, path))); err != nil {
				t.Error(err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o004 == 0 {
				t.Errorf("the containers' user cannot read %s", path)
			}
		}
		if len(files) != 1 {
			t.Errorf("%s is not the same for all: %v", variable, files)
		}
	}
}

// Mails, exports and calls to webhooks come from workers, and name the address that
// users type.
func TestEveryRoleKnowsThePublicAddress(t *testing.T) {
	t.Parallel()
	c := compose(t)
	want := c.Services["api"].Environment["ZIMAGE_PUBLIC_URL"]
	for name := range ours {
		if got := c.Services[name].Environment["ZIMAGE_PUBLIC_URL"]; got != want || got == "" {
			t.Errorf("%s: %q, the api's is %q", name, got, want)
		}
	}
}

// The policy to be edited is the shipped one, so that it follows what is learned.
func TestThePolicyIsTheShippedOne(t *testing.T) {
	t.Parallel()
	if read(t, "policy.yaml") != string(privacy.Example) {
		t.Error("it is not what `zimage policy example` prints: cp internal/privacy/policy.yaml deploy/policy.yaml")
	}
}

// What the files and the notes show as comments works when it is uncommented.
func TestExamplesWork(t *testing.T) {
	t.Parallel()
	text := regexp.MustCompile(`(?m)^#(  - |    )`).ReplaceAllString(read(t, "engines.yaml"), "$1")
	engines, err := engine.ParseConfig([]byte(text))
	if err != nil || len(engines.Engines) != 2 {
		t.Fatalf("engines.yaml, uncommented: %v, %v", engines, err)
	}
	_, rules, _ := strings.Cut(read(t, "prompt-rules.yaml"), "#\n# rules:\n")
	rules = "rules:\n" + strings.ReplaceAll(strings.TrimSuffix(rules, "rules: []\n"), "# ", "")
	parsed, err := generate.ParseRules([]byte(rules))
	if err != nil || parsed.Check("prompt", "Our Mayor at sea") == nil || parsed.Check("prompt", "the sea") != nil {
		t.Errorf("prompt-rules.yaml, uncommented: %v", err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(read(t, "README.md"), -1)
	for _, block := range blocks {
		var c composeFile
		if err := yaml.Unmarshal([]byte(block[1]), &c); err != nil || len(c.Services) == 0 {
			t.Errorf("%v in:\n%s", err, block[1])
		}
		for name, s := range c.Services {
			for _, lane := range strings.Split(s.Environment["ZIMAGE_LANES"], ",") {
				if lane != "" && lane != jobs.Housekeeping && !slices.Contains(engines.Lanes(), lane) {
					t.Errorf("%s takes the lane %s, which engines.yaml does not have", name, lane)
				}
			}
			for _, secret := range s.Secrets {
				named := strings.Contains(text, "/run/secrets/"+secret+"\n")
				for _, value := range s.Environment {
					named = named || value == "/run/secrets/"+secret
				}
				if !named || c.Secrets[secret].File == "" {
					t.Errorf("%s gets %s, which nothing names", name, secret)
				}
			}
		}
	}
	if len(blocks) == 0 {
		t.Error("README.md has lost its examples")
	}
}

func TestCommandsExist(t *testing.T) {
	t.Parallel()
	c, dockerfile := compose(t), read(t, "Dockerfile")
	var built []string
	for _, command := range regexp.MustCompile(`\./cmd/([a-z]+)`).FindAllStringSubmatch(dockerfile, -1) {
		built = append(built, command[1])
		if _, err := os.Stat(filepath.Join("..", "cmd", command[1], "main.go")); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(dockerfile, "-o /out/ ") || !strings.Contains(dockerfile, "COPY --from=build /out/ /app/\n") {
		t.Error("the Dockerfile does not copy what it builds to /app")
	}
	exists := func(where, path string) {
		if dir, name := filepath.Split(path); dir != "/app/" || !slices.Contains(built, name) {
			t.Errorf("%s runs %s, which the image does not hold", where, path)
		}
	}
	exists("the image", regexp.MustCompile(`ENTRYPOINT \["([^"]*)"\]`).FindStringSubmatch(dockerfile)[1])
	for name := range ours {
		s := c.Services[name]
		if s.Build == nil || s.Build.Context != ".." || s.Build.Dockerfile != "deploy/Dockerfile" || len(s.Entrypoint) != 1 {
			t.Errorf("%s is not built from here, or has no one entrypoint", name)
			continue
		}
		exists(name, s.Entrypoint[0])
		if filepath.Base(s.Entrypoint[0]) != name {
			t.Errorf("%s runs %s", name, s.Entrypoint[0])
		}
		if want := []string{"CMD", s.Entrypoint[0], "--healthcheck"}; !slices.Equal(s.Healthcheck.Test, want) {
			t.Errorf("%s: health check %v, want %v", name, s.Healthcheck.Test, want)
		}
	}
	// The linker says nothing when the variable it sets is not there.
	symbol := regexp.MustCompile(`-X zimage/(\S+)\.(\w+)=`).FindStringSubmatch(dockerfile)
	sources, err := filepath.Glob(filepath.Join("..", symbol[1], "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(sources, func(path string) bool { return strings.Contains(read(t, path), "\nvar "+symbol[2]+" string\n") }) {
		t.Errorf("%s declares no variable %s", symbol[1], symbol[2])
	}
	gomod := regexp.MustCompile(`(?m)^go (1\.\d+)`).FindStringSubmatch(read(t, filepath.Join("..", "go.mod")))[1]
	if image := regexp.MustCompile(`(?m)^ARG GO=(.*)$`).FindStringSubmatch(dockerfile)[1]; image != gomod {
		t.Errorf("built with Go %s, while go.mod wants %s", image, gomod)
	}
}

func TestPromise_X7_ContainersAreHardened(t *testing.T) {
	t.Parallel()
	c, dockerfile := compose(t), read(t, "Dockerfile")
	final := dockerfile[strings.LastIndex(dockerfile, "\nFROM "):]
	if !strings.Contains(final, "distroless/static") || !strings.Contains(final, "\nUSER 65532:65532\n") || strings.Contains(final, "\nRUN ") {
		t.Error("the image is not distroless, or runs as root")
	}
	if !strings.Contains(dockerfile, "CGO_ENABLED=0") || !strings.Contains(dockerfile, "-trimpath") {
		t.Error("the image needs a C library, or tells where it was built")
	}
	if ignored := read(t, "Dockerfile.dockerignore"); !strings.Contains(ignored, "deploy/secrets\n") || !strings.Contains(ignored, "zimage-data*\n") {
		t.Error("secrets or data get into the build")
	}
	if ignored := read(t, "../.gitignore"); !strings.Contains(ignored, "/deploy/secrets/\n") || !strings.Contains(ignored, "/zimage-data*/\n") {
		t.Error("secrets or data get into the repository")
	}
	secret := map[string]bool{}
	for _, v := range config.Variables() {
		secret[v.Name] = v.Secret
	}
	for name, s := range c.Services {
		if !s.ReadOnly || s.Privileged || !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.CapAdd) > 0 ||
			!slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: not read-only, or with more rights than none", name)
		}
		if core, ok := s.Ulimits["core"]; !ok || core != 0 {
			t.Errorf("%s may leave core files", name)
		}
		if _, ok := ours[name]; ok && (s.User != "65532:65532" || len(s.Volumes) > 0) {
			t.Errorf("%s: runs as %q with volumes %v", name, s.User, s.Volumes)
		}
		if _, tag, ok := strings.Cut(s.Image, ":"); !ok || tag == "latest" {
			t.Errorf("%s: the image %s names no version", name, s.Image)
		}
		if len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s has no health check", name)
		}
		for variable, value := range s.Environment {
			if secret[variable] || (strings.Contains(variable, "PASSWORD") && !strings.HasPrefix(value, "/run/secrets/")) {
				t.Errorf("%s: %s stands in the environment rather than in a file", name, variable)
			}
		}
		for _, secret := range s.Secrets {
			if c.Secrets[secret].File != "./secrets/"+secret {
				t.Errorf("%s: the secret %s is not declared", name, secret)
			}
		}
		for _, volume := range s.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if strings.HasPrefix(source, "./") {
				if _, err := os.Stat(source); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			} else if _, ok := c.Volumes[source]; !ok {
				t.Errorf("%s: the volume %s is not declared", name, source)
			}
		}
	}
}

func TestSettingsInTheNotesExist(t *testing.T) {
	t.Parallel()
	known := map[string]bool{config.Prefix: true}
	for _, v := range config.Variables() {
		known[v.Name] = true
		known[v.Name+"_FILE"] = v.Secret
	}
	for _, path := range []string{"README.md", "compose.yaml", "Dockerfile", "secrets.sh"} {
		for _, name := range regexp.MustCompile(`ZIMAGE_[A-Z0-9_]*`).FindAllString(read(t, path), -1) {
			if !known[name] {
				t.Errorf("%s speaks of %s, which is no setting", path, name)
			}
		}
	}
}

func TestSecretsAreMadeOnceAndKept(t *testing.T) {
	t.Parallel()
	folder := secrets(t)
	before := contents(t, folder)
	for _, declared := range compose(t).Secrets {
		if before[filepath.Base(declared.File)] == "" {
			t.Errorf("secrets.sh does not make %s", declared.File)
		}
	}
	for name, mode := range map[string]os.FileMode{".": 0o700, "roots": 0o400, "redis_url": 0o444} {
		info, err := os.Stat(filepath.Join(folder, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := os.Remove(filepath.Join(folder, "s3_access_key")); err != nil {
		t.Fatal(err)
	}
	makeSecrets(t, folder)
	for name, text := range contents(t, folder) {
		if (text != before[name]) != (name == "s3_access_key") {
			t.Errorf("%s: made again, or not made", name)
		}
	}
	if other := contents(t, secrets(t)); other["roots"] == before["roots"] || other["redis_password"] == before["redis_password"] {
		t.Error("two installations have the same secrets")
	}
}

func contents(t *testing.T, folder string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		all[e.Name()] = read(t, filepath.Join(folder, e.Name()))
	}
	return all
}

func TestRedisTakesItsConfigurationAndOurPassword(t *testing.T) {
	t.Parallel()
	binary, err := testenv.Binary("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	folder, data := secrets(t), t.TempDir()
	socket := filepath.Join(data, "redis.sock")
	text := strings.NewReplacer("/run/secrets", folder, "dir /data", "dir "+data).Replace(read(t, "redis.conf"))
	file := filepath.Join(data, "redis.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.Command(binary, file, "--port", "0", "--unixsocket", socket)
	gone, err := testenv.StartBound(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		<-gone
	})
	address, err := config.RedisOptions(strings.TrimSpace(read(t, filepath.Join(folder, "redis_url"))))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(user, password string) *redis.Client {
		c := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, Username: user, Password: password, MaxRetries: -1})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ctx := context.Background()
	c := dial(address.Username, address.Password)
	testenv.Eventually(t, 20*time.Second, func() bool { return c.Ping(ctx).Err() == nil })
	for setting, want := range map[string]string{"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"} {
		if got := c.ConfigGet(ctx, setting).Val()[setting]; got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	for _, stranger := range []*redis.Client{dial("", ""), dial("", address.Password), dial(address.Username, "wrong")} {
		err := stranger.Ping(ctx).Err()
		if err == nil {
			t.Error("answers without its password")
		}
	}
	// What the health check takes for a living server.
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	if err != nil || !strings.Contains(string(answer[:n]), "NOAUTH") {
		t.Errorf("a stranger's ping is answered %q, %v", answer[:n], err)
	}
}

func TestPostgresMakesBothDatabasesAndKeepsThemApart(t *testing.T) {
	t.Parallel()
	server, folder := testenv.PrivatePostgres(t), secrets(t)
	host, port, err := net.SplitHostPort(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	postgres, err := testenv.Binary("postgres")
	if err != nil {
		t.Fatal(err)
	}
	script := exec.Command("./postgres/10-databases.sh")
	script.Env = append(os.Environ(), "SECRETS="+folder, "PGHOST="+host, "PGPORT="+port,
		"PATH="+filepath.Dir(postgres)+string(os.PathListSeparator)+os.Getenv("PATH"))
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// This server trusts everybody, so the passwords are read back instead.
	ctx := context.Background()
	admin, err := db.Open(ctx, server.URL(), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	var withPassword int
	if err := admin.Get(ctx, &withPassword, `SELECT count(*) FROM pg_authid WHERE rolname IN ('zimage', 'keys')
		AND rolpassword LIKE 'SCRAM-SHA-256$%' AND NOT rolsuper AND NOT rolcreatedb AND NOT rolcreaterole`); err != nil || withPassword != 2 {
		t.Errorf("%d roles with a password and no more rights than needed, %v", withPassword, err)
	}
	var sorted int
	if err := admin.Get(ctx, &sorted, `SELECT count(*) FROM pg_database WHERE datname IN ('zimage', 'keys')
		AND datcollate = 'C' AND datlocprovider = 'c'`); err != nil || sorted != 2 {
		t.Errorf("%d databases sort by bytes, %v", sorted, err)
	}
	open := func(role, name string) (*db.DB, error) {
		u := url.URL{Scheme: "postgres", User: url.User(role), Host: server.Addr(), Path: name, RawQuery: "sslmode=disable"}
		return db.Open(ctx, u.String(), db.Options{MaxConnections: 2})
	}
	for _, own := range []string{"zimage", "keys"} {
		d, err := open(own, own)
		if err != nil {
			t.Fatal(err)
		}
		migrations := db.Main()
		if own == "keys" {
			migrations = vault.Migrations()
		}
		if _, err := d.Migrate(ctx, migrations); err != nil {
			t.Errorf("%s cannot make its tables: %v", own, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	for role, other := range map[string]string{"zimage": "keys", "keys": "zimage"} {
		if d, err := open(role, other); err == nil {
			_ = d.Close()
			t.Errorf("the role %s opens the database %s", role, other)
		}
	}
	urls := read(t, filepath.Join(folder, "database_url")) + read(t, filepath.Join(folder, "keys_database_url"))
	for _, want := range []string{"://zimage:" + strings.TrimSpace(read(t, filepath.Join(folder, "zimage_password"))) + "@",
		"://keys:" + strings.TrimSpace(read(t, filepath.Join(folder, "keys_password"))) + "@"} {
		if !strings.Contains(urls, want) {
			t.Error("an address does not carry its role's password")
		}
	}
}
