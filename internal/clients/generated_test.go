package clients

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestTheGoClientIsOfThisAPI(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "generated.go")
	if out, err := exec.CommandContext(t.Context(), "go", "run", "./generate", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../../client/generated.go")
	if err != nil || !bytes.Equal(have, want) {
		t.Errorf("client/generated.go is of another API: run `make generate` (%v)", err)
	}
}
