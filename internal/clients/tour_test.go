package clients

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/testenv"
)

// The commands of docs/api.md, one after the other as a reader pastes them, in
// the folder where zimage up runs.
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
	if err := os.WriteFile(filepath.Join(s.directory, "zimage-data", "first-key"), []byte(s.key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const before = `set -euo pipefail
curl() { command curl --max-time 60 --write-out '%{stderr}%{http_code}\n' "$@"; }
`
	var told sync.Map // the events that were sent, by their type
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var event struct{ Type string }
		if err := json.NewDecoder(r.Body).Decode(&event); err == nil && r.Header.Get("Webhook-Signature") != "" {
			told.Store(event.Type, true)
		}
	}))
	t.Cleanup(receiver.Close)
	commands := strings.NewReplacer("http://127.0.0.1:8080", s.url, "http://127.0.0.1:9000", receiver.URL).Replace(script.String())
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
	for _, event := range []string{"webhook.test", "generation.succeeded"} {
		testenv.Eventually(t, 30*time.Second, func() bool { _, is := told.Load(event); return is })
	}
	for name, begins := range map[string]string{
		"lighthouse.png": "\x89PNG", "lighthouse.jpg": "\xff\xd8", "events": "retry: ", "heron.png": "\x89PNG", "page.html": "<!", "dawn.png": "\x89PNG",
	} {
		if text, err := os.ReadFile(filepath.Join(s.directory, name)); err != nil || !strings.HasPrefix(string(text), begins) {
			t.Errorf("%s: %.20q, %v", name, text, err)
		}
	}
}
