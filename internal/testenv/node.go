package testenv

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Node is a command that runs Node.js with these arguments in docs/examples,
// with nothing in its environment but PATH.
func Node(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	node, err := Binary("node")
	if err != nil {
		t.Fatalf("%v: run `make test`, which installs it as root on Debian, or install Node.js and npm your system's way", err)
	}
	dir, err := ExamplesDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := PackagesInstalled(dir); err != nil {
		t.Fatalf("%v: run `make test`, or `npm ci` in %s", err, dir)
	}
	cmd := exec.CommandContext(t.Context(), node, args...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH")}
	return cmd
}

// ExamplesDir is docs/examples of the project that the working folder is in.
func ExamplesDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		examples := filepath.Join(dir, "docs", "examples")
		if _, err := os.Stat(filepath.Join(examples, "package-lock.json")); !errors.Is(err, fs.ErrNotExist) {
			return examples, err
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("run it in the folder of the project: no docs/examples here or above")
		}
		dir = filepath.Dir(dir)
	}
}

// PackagesInstalled says what npm ci has to do in dir: nil, nothing.
func PackagesInstalled(dir string) error {
	type lock struct {
		Packages map[string]struct{ Integrity string }
	}
	read := func(path ...string) (l lock, err error) {
		text, err := os.ReadFile(filepath.Join(append([]string{dir}, path...)...))
		if err != nil {
			return l, err
		}
		return l, json.Unmarshal(text, &l)
	}
	want, err := read("package-lock.json")
	if err != nil {
		return err
	}
	// npm writes it last: what it installed.
	have, err := read("node_modules", ".package-lock.json")
	if err != nil {
		return fmt.Errorf("the packages of the examples are not installed: %w", err)
	}
	for name, p := range want.Packages {
		if name != "" && have.Packages[name] != p {
			return fmt.Errorf("%s is not installed as package-lock.json says", name)
		}
	}
	return nil
}
