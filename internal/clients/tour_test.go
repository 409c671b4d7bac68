package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The commands of docs/api.md, one after the other as a reader pastes them, in
// a folder where zimage up has run.
func TestTheTourWithCurl(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(string(text), -1) {
		script.WriteString(block[1])
	}
	var want []string
	for _, m := range regexp.MustCompile(`(?m)# (\d{3})$`).FindAllStringSubmatch(script.String(), -1) {
		want = append(want, m[1])
	}
	if asks := strings.Count(script.String(), "curl "); asks != len(want) || asks < 20 {
		t.Fatalf("%d commands ask, and %d statuses stand behind them", asks, len(want))
	}

	s := start(t, usual...)
	if err := os.Mkdir(filepath.Join(s.directory, "zimage-data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.directory, "zimage-data", "first-key"), []byte(s.key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const before = `set -euo pipefail
curl() { command curl --max-time 60 --write-out '%{stderr}%{http_code}\n' "$@"; }
`
	commands := strings.ReplaceAll(script.String(), "http://127.0.0.1:8080", s.url)
	cmd := exec.CommandContext(t.Context(), "bash", "-c", before+commands)
	cmd.Dir, cmd.Env = s.directory, []string{"PATH=" + os.Getenv("PATH")}
	var out, statuses strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &statuses
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s\n%s", err, &out, &statuses)
	}
	if got := strings.Fields(statuses.String()); !slices.Equal(got, want) {
		t.Errorf("the answers are\n%v, told are\n%v\n%s", got, want, &out)
	}
	for name, begins := range map[string]string{"lighthouse.png": "\x89PNG", "lighthouse.jpg": "\xff\xd8", "events": "retry: "} {
		if text, err := os.ReadFile(filepath.Join(s.directory, name)); err != nil || !strings.HasPrefix(string(text), begins) {
			t.Errorf("%s: %.20q, %v", name, text, err)
		}
	}
}
