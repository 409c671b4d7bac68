package clients

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"zimage/internal/testenv"
)

// Redocly's rules, each of whose warnings counts as an error. What a rule finds
// is mended where the document is made, in internal/httpapi/docs.go.
func TestNothingIsWrongWithTheOpenAPIDocument(t *testing.T) {
	t.Parallel()
	s := start(t, usual...)
	res, err := http.Get(s.url + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.directory, "openapi.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := testenv.Node(t, "node_modules/@redocly/cli/bin/cli.js", "lint", "--extends=recommended-strict", file)
	cmd.Env = append(cmd.Env, "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
