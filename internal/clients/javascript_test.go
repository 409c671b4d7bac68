package clients

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// savesAPicture wants that file holds a PNG, and that what was said names it and
// its seed.
func savesAPicture(t *testing.T, file, said string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil || !bytes.HasPrefix(text, []byte("\x89PNG")) {
		t.Errorf("%d bytes of no PNG, %v", len(text), err)
	}
	if !regexp.MustCompile(regexp.QuoteMeta(file) + `  seed \d+\n$`).MatchString(said) {
		t.Errorf("it said %q", said)
	}
}

func TestPollingInJavaScript(t *testing.T) {
	t.Parallel()
	s := start(t, usual...)
	file := filepath.Join(s.directory, "out.png")
	said, err := s.node("poll.mjs", "a lighthouse in a storm at night", file)
	if err != nil {
		t.Fatal(err)
	}
	savesAPicture(t, file, said)

	// What is wrong is told in the service's words.
	s.key = "zi_nobody"
	if _, err := s.node("poll.mjs", "a lighthouse", file); err == nil || !strings.Contains(err.Error(), "(unauthorized, req_") {
		t.Errorf("with a wrong key: %v", err)
	}
}
