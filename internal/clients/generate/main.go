// Command generate makes the Go client's generated.go of the OpenAPI document:
//
//	go run ./internal/clients/generate [FILE]
//
// It is what `make generate` runs.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"

	"zimage/internal/clock"
	"zimage/internal/httpapi"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return err
	}
	dir := string(root[:len(root)-1])
	output := filepath.Join(dir, "client", "generated.go")
	if len(args) > 0 {
		output = args[0]
	}
	document, err := forPrograms()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "zimage-openapi-*.json")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(document)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	cmd := exec.Command("go", "tool", "-modfile=tools/go.mod", "oapi-codegen", //nolint:gosec // a file of ours
		"-config", "internal/clients/generate/oapi-codegen.yaml", "-o", output, f.Name())
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stdout, os.Stderr
	return cmd.Run()
}

// forPrograms is the OpenAPI document as far as a key may go. Each operation's
// errors are one, and headers are left out: both have the same shape everywhere.
func forPrograms() ([]byte, error) {
	api, err := httpapi.New(httpapi.Options{Log: slog.New(slog.DiscardHandler), Clock: clock.New()})
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	api.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	type operation map[string]any
	document := map[string]any{}
	if err := json.Unmarshal(w.Body.Bytes(), &document); err != nil {
		return nil, err
	}
	var paths struct {
		Paths map[string]map[string]operation
	}
	if err := json.Unmarshal(w.Body.Bytes(), &paths); err != nil {
		return nil, err
	}
	for path, operations := range paths.Paths {
		for method, o := range operations {
			if !takesKey(o["security"]) {
				delete(operations, method)
				continue
			}
			simplify(o["responses"])
		}
		if len(operations) == 0 {
			delete(paths.Paths, path)
		}
	}
	document["paths"] = paths.Paths
	if err := withoutOpenAIsError(document); err != nil {
		return nil, err
	}
	return json.Marshal(document)
}

// withoutOpenAIsError leaves out what only OpenAI's clients read of an error: its
// name is that of a method of Go's errors.
func withoutOpenAIsError(document map[string]any) error {
	var at any = document
	for _, name := range []string{"components", "schemas", "Problem", "properties"} {
		in, _ := at.(map[string]any)
		if at = in[name]; at == nil {
			return fmt.Errorf("the document has no %s", name)
		}
	}
	delete(at.(map[string]any), "error")
	return nil
}

func takesKey(security any) bool {
	ways, _ := security.([]any)
	for _, way := range ways {
		if way, _ := way.(map[string]any); way["key"] != nil {
			return true
		}
	}
	return false
}

func simplify(responses any) {
	r, _ := responses.(map[string]any)
	for status, answer := range r {
		if status >= "400" {
			delete(r, status)
		} else if answer, ok := answer.(map[string]any); ok {
			delete(answer, "headers")
		}
	}
	r["default"] = map[string]any{
		"description": "What went wrong.",
		"content": map[string]any{"application/problem+json": map[string]any{
			"schema": map[string]any{"$ref": "#/components/schemas/Problem"},
		}},
	}
}
