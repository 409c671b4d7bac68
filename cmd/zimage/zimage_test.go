package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"image/png"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zimage/internal/testenv"
)

// installation is the built program with settings of its own.
type installation struct {
	t      *testing.T
	binary string
	dir    string
	env    []string
	up     *exec.Cmd
	logs   string // file of the running process's output
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "zimage")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "zimage")
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

var program string // the built binary

// browser does not wait for ever: a service that hangs must fail the test.
var browser = &http.Client{Timeout: 10 * time.Second}

// build links the program once: on a busy machine that takes longer than all
// tests.
var build = sync.OnceValues(func() ([]byte, error) {
	return exec.Command("go", "build", "-o", program, ".").CombinedOutput()
})

func install(t *testing.T) *installation {
	t.Helper()
	if out, err := build(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	dir := t.TempDir()
	i := &installation{t: t, binary: program, dir: dir}
	i.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir,
		"ZIMAGE_DATA=" + filepath.Join(dir, "data"), "ZIMAGE_LISTEN=" + free(t), "ZIMAGE_METRICS_LISTEN=" + free(t),
		"ZIMAGE_REQUESTS_PER_MINUTE=1000000"} // the tests ask again and again
	return i
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (i *installation) base() string {
	return "http://" + strings.TrimPrefix(i.env[3], "ZIMAGE_LISTEN=")
}

// start runs zimage up and waits until it answers.
func (i *installation) start() {
	i.t.Helper()
	i.logs = filepath.Join(i.dir, "up.log")
	log, err := os.Create(i.logs)
	if err != nil {
		i.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	i.up = exec.Command(i.binary, "up")
	i.up.Dir, i.up.Env, i.up.Stdout, i.up.Stderr = i.dir, i.env, log, log
	if err := i.up.Start(); err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { _ = i.up.Process.Kill() })
	testenv.Eventually(i.t, 20*time.Second, func() bool {
		res, err := browser.Get(i.base() + "/readyz") //nolint:noctx // a test
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK
	})
}

// log is what the process has said since its start.
func (i *installation) log() string {
	text, err := os.ReadFile(i.logs)
	if err != nil {
		i.t.Error(err)
	}
	return string(text)
}

// stop ends it as an operator would, and wants a clean end.
func (i *installation) stop() {
	i.t.Helper()
	if err := i.up.Process.Signal(syscall.SIGTERM); err != nil {
		i.t.Fatal(err)
	}
	defer time.AfterFunc(30*time.Second, func() { _ = i.up.Process.Kill() }).Stop()
	if err := i.up.Wait(); err != nil {
		i.t.Errorf("up did not end cleanly: %v\n%s", err, i.log())
	}
}

func (i *installation) run(stdin string, args ...string) (stdout, stderr string, code int) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, i.binary, args...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = i.dir, i.env, strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		i.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (i *installation) must(stdin string, args ...string) string {
	i.t.Helper()
	out, errs, code := i.run(stdin, args...)
	if code != 0 {
		i.t.Fatalf("zimage %s: exit %d\n%s%s\n%s", strings.Join(args, " "), code, out, errs, i.log())
	}
	return out
}

func (i *installation) sum(name string) [32]byte {
	i.t.Helper()
	text, err := os.ReadFile(filepath.Join(i.dir, name))
	if err != nil {
		i.t.Fatal(err)
	}
	picture, err := png.DecodeConfig(bytes.NewReader(text))
	if err != nil || picture.Width != 256 || picture.Height != 192 {
		i.t.Fatalf("%s is %d×%d (%v)", name, picture.Width, picture.Height, err)
	}
	return sha256.Sum256(text)
}

func TestFirstRunAndTheNext(t *testing.T) {
	i := install(t)
	if _, errs, code := i.run("", "generate", "a cat"); code == 0 || !strings.Contains(errs, "zimage up") {
		t.Errorf("without a service: exit %d, %q", code, errs)
	}
	i.start()
	for _, want := range []string{i.base(), "zimage generate", "curl", "root keys", "A GPU engine", "data/mail"} {
		if !strings.Contains(i.log(), want) {
			t.Errorf("the first start does not say %q", want)
		}
	}
	const canary = "a xylophone-lighthouse in a storm"
	size := []string{"--width", "256", "--height", "192", "--seed", "7"}
	_, progress, code := i.run("", append([]string{"generate", canary, "-o", "one.png"}, size...)...)
	if code != 0 || !strings.Contains(progress, "%") {
		t.Fatalf("generate: exit %d, %q", code, progress)
	}
	i.must("", append([]string{"generate", canary, "-o", "two.png"}, size...)...)
	if i.sum("one.png") != i.sum("two.png") {
		t.Error("the same seed gave another picture")
	}
	for _, format := range []string{"jpeg", "webp"} { // as the file's name says
		i.must("", append([]string{"generate", canary, "-o", "three." + format}, size...)...)
		text, err := os.ReadFile(filepath.Join(i.dir, "three."+format))
		if kind := http.DetectContentType(text); err != nil || kind != "image/"+format {
			t.Errorf("three.%s is %s (%v)", format, kind, err)
		}
	}
	if _, errs, code := i.run("", "generate", canary, "-o", "one.png"); code == 0 || !strings.Contains(errs, "--force") {
		t.Errorf("a file is overwritten without being asked: exit %d, %q", code, errs)
	}
	if _, errs, code := i.run("", "generate", "a cat", "-o", "three.png", "--width", "5"); code == 0 || !strings.Contains(errs, "body.width") {
		t.Errorf("a wrong width: exit %d, %q", code, errs)
	}
	if _, errs, code := i.run("", "up"); code == 0 || !strings.Contains(errs, "already running") {
		t.Errorf("a second up on the same folder: exit %d, %q", code, errs)
	}
	first := i.log()
	i.stop()
	if strings.Contains(i.log(), "xylophone") {
		t.Error("the prompt is in the log")
	}

	i.start()
	if strings.Contains(i.log(), "New root keys") || strings.Contains(i.log(), "migrated") {
		t.Errorf("the second start made things anew:\n%s", i.log())
	}
	if list := i.get("/v1/generations"); !strings.Contains(list, "xylophone") {
		t.Errorf("the second start does not find what was there: %s\n%s", list, first)
	}
	i.stop()
}

// get asks the API with the first user's key.
func (i *installation) get(path string) string {
	i.t.Helper()
	key, err := os.ReadFile(filepath.Join(i.dir, "data", "first-key"))
	if err != nil {
		i.t.Fatal(err)
	}
	return i.ask(path, strings.TrimSpace(string(key)), http.StatusOK)
}

func (i *installation) ask(path, key string, want int) string {
	i.t.Helper()
	req, err := http.NewRequest(http.MethodGet, i.base()+path, nil) //nolint:noctx // a test
	if err != nil {
		i.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := browser.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(res.Body); err != nil || res.StatusCode != want {
		i.t.Fatalf("GET %s: %d, want %d (%v)\n%s", path, res.StatusCode, want, err, &body)
	}
	return body.String()
}

func TestOperatorsCommands(t *testing.T) {
	i := install(t)
	i.start()
	defer i.stop()
	i.must("a password of my own\n", "user", "create", "--email", "ann@example.org")
	if _, errs, code := i.run("another password\n", "user", "create", "--email", "Ann@example.org"); code == 0 || strings.Contains(strings.ToLower(errs), "ann@") {
		t.Errorf("a second user of that address: exit %d, %q", code, errs)
	}
	if _, _, code := i.run("short\n", "user", "create", "--email", "bob@example.org"); code == 0 {
		t.Error("a short password was taken")
	}
	key := strings.TrimSpace(i.must("", "key", "create", "--email", "ann@example.org"))
	if !strings.HasPrefix(key, "zi_") || strings.ContainsAny(key, " \n") {
		t.Fatal("the key alone should be on stdout")
	}
	var models struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(i.ask("/v1/models", key, http.StatusOK)), &models); err != nil || len(models.Data) != 1 {
		t.Errorf("models: %v (%v)", models, err)
	}
	list := i.must("", "key", "list", "--email", "ann@example.org", "--reason", "asked for it on the telephone")
	if strings.Contains(list, key) || !strings.Contains(list, key[:6]) {
		t.Errorf("the list should show the prefix and not the key:\n%s", list)
	}
	id := strings.Fields(strings.Split(list, "\n")[1])[0]
	i.must("", "key", "revoke", "--email", "ann@example.org", "--reason", "it was lost on a train", id)
	testenv.Eventually(t, 5*time.Second, func() bool {
		req, _ := http.NewRequest(http.MethodGet, i.base()+"/v1/models", nil) //nolint:noctx // a test
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := browser.Do(req)
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusUnauthorized
	})

	i.must("", "engines", "drain", "illustrator")
	testenv.Eventually(t, 10*time.Second, func() bool {
		return strings.Contains(i.must("", "engines", "list"), "draining") && strings.Contains(i.get("/v1/models"), `"served":false`)
	})
	i.must("", "engines", "resume", "illustrator")
	testenv.Eventually(t, 10*time.Second, func() bool { return strings.Contains(i.get("/v1/models"), `"served":true`) })
	if _, errs, code := i.run("", "engines", "drain", "nobody"); code == 0 || errs == "" {
		t.Error("an engine that is not there was drained")
	}
	if out := i.must("", "doctor"); strings.Contains(out, "✗") {
		t.Errorf("the doctor finds:\n%s", out)
	}
	if out := i.must("", "settings"); !strings.Contains(out, "ZIMAGE_DATA") {
		t.Errorf("settings:\n%s", out)
	}
	if out := i.must("", "engines", "example"); !strings.Contains(out, "z-image-turbo") {
		t.Errorf("example:\n%s", out)
	}
}

func TestPolicyCommandsHelpToWriteOne(t *testing.T) {
	t.Parallel()
	i := install(t)
	example := i.must("", "policy", "example")
	file := filepath.Join(i.dir, "policy.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(example)
	if out := i.must("", "policy", "check", file); !strings.Contains(out, "✓ version 2026-01-01, in force since 2026-01-01") || !strings.Contains(out, "! still as shipped, which names nobody: controller.name") {
		t.Errorf("the example:\n%s", out)
	}
	write(strings.Replace(example, "deletion: 30 days", "deletion: a year", 1))
	i.env = append(i.env, "ZIMAGE_POLICY="+file)
	const want = "windows.deletion: write 1 to 30 days"
	for _, args := range [][]string{{"policy", "check", file}, {"up"}} {
		if _, errs, code := i.run("", args...); code != 1 || !strings.Contains(errs, want) {
			t.Errorf("%v: exit %d\n%s", args, code, errs)
		}
	}
	if out, _, code := i.run("", "doctor"); code != 1 || !strings.Contains(out, "✗ policy: ZIMAGE_POLICY: policy file:\n"+want) {
		t.Errorf("doctor: exit %d\n%s", code, out)
	}
	if _, errs, code := i.run("", "policy", "check", file+".gone"); code != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("no file: exit %d\n%s", code, errs)
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	t.Parallel()
	i := install(t)
	for setting, command := range map[string]string{
		"ZIMAGE_LISTEN=0.0.0.0:80":        "up",
		"ZIMAGE_SHUTDOWN_TIMEOUT=soon":    "up",
		"ZIMAGE_DATABAS_URL=sqlite:x.db":  "doctor",
		"ZIMAGE_ENGINES=/does/not/exist":  "up",
		"ZIMAGE_DATABASE_URL=mysql://x/y": "settings",
	} {
		j := *i
		j.env = append(append([]string{}, i.env...), setting)
		name, _, _ := strings.Cut(setting, "=")
		out, errs, code := j.run("", command)
		if code == 0 || !strings.Contains(out+errs, name) {
			t.Errorf("%s with %s: exit %d\n%s%s", command, setting, code, out, errs)
		}
	}
}

func TestOutputFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("there.png"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(in("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", in("link.png")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		output string
		n      int
		force  bool
		want   string // of the error; "": fine
	}{
		{in("new.png"), 1, false, ""},
		{in("new.png"), 3, false, ""},
		{in("there.png"), 1, true, ""},
		{in("there.png"), 1, false, "--force"},
		{"", 1, true, "name of a file"},
		{".", 1, true, "name of a file"},
		{in("folder") + "/", 2, true, "name of a file"},
		{in("folder"), 1, true, "no plain file"},
		{in("link.png"), 1, false, "no plain file"},
		{in("link.png"), 1, true, "no plain file"},
		{in("none/new.png"), 1, false, "no folder"},
		{in("new.png"), 0, false, "-n must"},
		{in("new.png"), 1000000, false, "-n must"},
	} {
		files, err := generateCommand{Output: tt.output, N: tt.n, Force: tt.force}.files()
		if tt.want == "" && (err != nil || len(files) != tt.n) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q, %d, %v: %q, %v", tt.output, tt.n, tt.force, files, err)
		}
	}
}

func TestKeepOverwritesNothing(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]func(string, string) error{
		"links":    os.Link,
		"no links": func(string, string) error { return syscall.EPERM },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			draft, file := filepath.Join(dir, "draft"), filepath.Join(dir, "out.png")
			if err := os.WriteFile(draft, []byte("picture"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := keep(draft, file, false, link); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(draft, []byte("another"), 0o600); err != nil {
				t.Fatal(err)
			}
			if name == "links" { // the draft is the file itself
				if err := os.WriteFile(file, []byte("picture"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := keep(draft, file, false, link); !os.IsExist(err) {
				t.Errorf("the second: %v", err)
			}
			if text, err := os.ReadFile(file); err != nil || string(text) != "picture" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
}

func TestWhereTheKeyMayGo(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("ZIMAGE_DATA", dir)
	t.Setenv("ZIMAGE_KEY", "")
	t.Setenv("ZIMAGE_ENGINES", "/does/not/exist") // the server's trouble, not the client's
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("first-key", "zi_abc\n")
	for _, tt := range []struct {
		server, file, env string
		insecure          bool
		want              string // of the error; "": fine
	}{
		{"", "", "", false, ""},
		{"https://example.org", good, "", false, ""},
		{"https://example.org/", "", "zi_env", false, ""},
		{"http://127.0.0.1:8080", good, "", false, ""},
		{"http://[::1]:8080", good, "", false, ""},
		{"http://localhost:8080", good, "", false, ""},
		{"http://example.org", good, "", false, "--insecure"},
		{"http://127.0.0.1.example.org", good, "", false, "--insecure"},
		{"http://example.org", good, "", true, ""},
		{"ftp://example.org", good, "", true, "--server"},
		{"example.org", good, "", true, "--server"},
		{"https://you:secret@example.org", good, "", true, "--server"},
		{"", write("two", "zi_abc zi_def\n"), "", false, "one API key"},
		{"", write("lines", "zi_abc\nzi_def\n"), "", false, "one API key"},
		{"", write("empty", "\n"), "", false, "one API key"},
		{"", write("umlaut", "zi_ä"), "", false, "one API key"},
		{"", "", "zi_abc zi_def", false, "$ZIMAGE_KEY must hold one API key"},
		{"", filepath.Join(dir, "none"), "zi_env", false, "no API key"},
	} {
		t.Setenv("ZIMAGE_KEY", tt.env)
		_, err := newClient(tt.server, tt.file, tt.insecure)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v", tt, err)
		}
		if err != nil && (strings.Contains(err.Error(), "zi_") || strings.Contains(err.Error(), "secret")) {
			t.Errorf("the error tells the key: %v", err)
		}
	}
}

// A folder that cannot be written to is found before anything is asked for, and
// what fails afterwards names the generation.
func TestNothingIsLostByAFileThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("ZIMAGE_KEY", "zi_abc")
	file := filepath.Join(dir, "out.png")
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			asked++
			_, _ = io.WriteString(w, `{"id":"gen_1","status":"queued"}`)
		case strings.HasSuffix(r.URL.Path, "/events"):
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/v1/images/img_1/content":
			// Somebody else's file comes meanwhile.
			_ = os.WriteFile(file, []byte("theirs"), 0o600)
			_, _ = io.WriteString(w, "picture")
		default:
			_, _ = io.WriteString(w, `{"id":"gen_1","status":"succeeded","images":[{"id":"img_1","url":"/v1/images/img_1/content"}]}`)
		}
	}))
	t.Cleanup(server.Close)
	command := generateCommand{Prompt: "a cat", N: 1, Server: server.URL}
	if _, err := os.Stat("/proc/self"); err == nil {
		command.Output = "/proc/self/out.png" // takes no files, of root neither
		if err := command.Run(t.Context()); err == nil || asked != 0 {
			t.Errorf("asked %d times for what cannot be written: %v", asked, err)
		}
	}
	command.Output = file
	err := command.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "gen_1") || !strings.Contains(err.Error(), "/v1/images/img_1/content") {
		t.Errorf("got %v", err)
	}
	if text, _ := os.ReadFile(file); string(text) != "theirs" {
		t.Errorf("the file holds %q", text)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".zimage-*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestUpRefusesWhatOthersCouldChange(t *testing.T) {
	t.Parallel()
	i := install(t)
	data := filepath.Join(i.dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(i.dir, "elsewhere"), filepath.Join(data, "first-key")); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := i.run("", "up"); code == 0 || !strings.Contains(errs, "first-key is a link") {
		t.Errorf("a link in the place of the key: exit %d, %q", code, errs)
	}
	if err := os.Chmod(data, 0o770); err != nil { //nolint:gosec // that is the test
		t.Fatal(err)
	}
	if _, errs, code := i.run("", "up"); code == 0 || !strings.Contains(errs, "chmod go-w") {
		t.Errorf("a folder of others: exit %d, %q", code, errs)
	}
}

func TestWriteSecret(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "first-key")
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Symlink(outside, name+".new"); err != nil { // and a crash's leftover alike
		t.Fatal(err)
	}
	for _, text := range []string{"one\n", "two\n"} {
		if err := writeSecret(name, text); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		info, _ := os.Stat(name)
		if err != nil || string(got) != text || info.Mode() != 0o600 {
			t.Errorf("%q, %v, %v", got, info.Mode(), err)
		}
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Error("a link was followed")
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	i := install(t)
	if out := i.must("", "--version"); !strings.HasPrefix(out, "devel") {
		t.Errorf("zimage --version says %q", out)
	}
}

func TestDoctorAsksForARole(t *testing.T) {
	t.Parallel()
	i := install(t)
	if out := i.must("", "doctor"); !strings.Contains(out, "for up") || strings.Contains(out, "✗") {
		t.Errorf("before the first start:\n%s", out)
	}
	if out, _, code := i.run("", "doctor", "--role", "worker"); code == 0 || !strings.Contains(out, "✗ setting ZIMAGE_REDIS_URL\n    → is missing") {
		t.Errorf("a worker without settings: exit %d\n%s", code, out)
	}
	if _, errs, code := i.run("", "doctor", "--role", "king"); code == 0 || !strings.Contains(errs, "--role") {
		t.Errorf("an unknown role: exit %d, %s", code, errs)
	}
	if _, err := os.Stat(filepath.Join(i.dir, "data")); err == nil {
		t.Error("the doctor made the data folder")
	}
}
