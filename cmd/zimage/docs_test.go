package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the documents call kept is kept by tests that there are.
func TestTheTestsThatTheDocumentsNameExist(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("../../internal", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, name := range declared.FindAllStringSubmatch(string(text), -1) {
			there[filepath.Base(filepath.Dir(path))+" "+name[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	// Names stand in a row: those without a package behind them are account's, or
	// share that of the next one ("both", "all").
	rows := regexp.MustCompile("((?:`Test\\w+`(?:, | and )?)+)(?: ?\\((?:all |both )?(\\w+)\\))?")
	tests := regexp.MustCompile(`Test\w+`)
	named := 0
	for row := range strings.Lines(string(text)) {
		for _, m := range rows.FindAllStringSubmatch(row, -1) {
			names := tests.FindAllString(m[1], -1)
			for i, name := range names {
				named++
				in := "account"
				if m[2] != "" && (i == len(names)-1 || strings.Contains(m[0], "(all ") || strings.Contains(m[0], "(both ")) {
					in = m[2]
				}
				if !there[in+" "+name] {
					t.Errorf("docs/security.md names %s, which is not in %s", name, in)
				}
			}
		}
	}
	if named < 50 {
		t.Errorf("%d tests are named", named)
	}
	anywhere := map[string]bool{}
	for name := range there {
		_, test, _ := strings.Cut(name, " ")
		anywhere[test] = true
	}
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range documents {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		document := filepath.Base(path)
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(text), -1)
		for _, name := range names {
			if !anywhere[name[1]] {
				t.Errorf("docs/%s names %s, which is nowhere", document, name[1])
			}
		}
		if document == "threat-model.md" && len(names) < 30 {
			t.Errorf("the threat model names %d tests", len(names))
		}
	}
}
