package clients

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"zimage/internal/testenv"
)

func TestOpenAIsLibrary(t *testing.T) {
	t.Parallel()
	s := start(t, usual...)
	if said, err := s.as(testenv.Node(t, "test/openai.mjs")); err != nil || said != "all is well\n" {
		t.Errorf("%s %v", said, err)
	}
}

func TestOpenAIExample(t *testing.T) {
	t.Parallel()
	s := start(t, usual...)
	file := filepath.Join(s.directory, "out.png")
	if said, err := s.as(testenv.Node(t, "openai.mjs", "a lighthouse in a storm at night", file)); err != nil || said != file+"  1024x1024\n" {
		t.Errorf("%s %v", said, err)
	}
	if text, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(text, []byte("\x89PNG")) {
		t.Errorf("%d bytes of no PNG, %v", len(text), err)
	}
}
