package privacy_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/build"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"zimage/internal/privacy"
)

func dataMap(t testing.TB) *privacy.Map {
	t.Helper()
	m, err := privacy.DataMap()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// sameNames compares two lists of names, whatever their order.
func sameNames(t testing.TB, what string, inMap, really []string) {
	t.Helper()
	for _, name := range really {
		if !slices.Contains(inMap, name) {
			t.Errorf("%s: %s is not in the map", what, name)
		}
	}
	for _, name := range inMap {
		if !slices.Contains(really, name) {
			t.Errorf("%s: the map has %s, and there is none", what, name)
		}
	}
}

// Every line that the program logs has a fixed text and values with fixed names,
// and each name stands in the map.
func TestPromise_U2_LogsCarryIDsOnly(t *testing.T) {
	t.Parallel()
	l := newLogs()
	readProgram(t, l)
	for _, wrong := range l.wrong {
		t.Error(wrong)
	}
	var inMap []string
	for _, a := range dataMap(t).Logs.Attributes {
		inMap = append(inMap, a.Name)
	}
	if l.calls < 40 {
		t.Errorf("only %d lines were found", l.calls)
	}
	sameNames(t, "log attribute", inMap, slices.Sorted(maps.Keys(l.names)))
}

// What the test above must find, and must let pass.
func TestLogsOfAnySourceAreRead(t *testing.T) {
	t.Parallel()
	all := packages(t)
	for source, want := range map[string]string{
		`log.Info("fine", "a", 1, slog.Int("b", 2))`:                     "",
		`log.With("a", 1).WarnContext(ctx, "fine", "b", 2)`:              "",
		`slog.New(nil).With(slog.Group("a", "b", 2)).Info("fine")`:       "",
		`log.LogAttrs(ctx, slog.LevelInfo, "fine", list("a", "b")...)`:   "",
		`log.Info("text of "+prompt, "a", 1)`:                            "no constant text",
		`log.Log(ctx, 0, prompt, "a", 1)`:                                "no constant text",
		`log.Info("fine", prompt, 1)`:                                    "no constant name",
		`holder.Info("fine", prompt, 1)`:                                 "no constant name",
		`slog.Warn("fine", prompt, 1)`:                                   "no constant name",
		`log.With(prompt, 1)`:                                            "no constant name",
		`log.WithGroup(prompt)`:                                          "no constant name",
		`log.Info("fine", slog.String(prompt, ""))`:                      "no constant name",
		`log.Info("fine", slog.Attr{Key: prompt})`:                       "no constant name",
		`log.Info("fine", slog.Attr{prompt, slog.Value{}})`:              "no constant name",
		`a := slog.Int("a", 1); a.Key = prompt`:                          "no constant name",
		`log.Info("fine", append([]any{prompt, 1}, "a", 1)...)`:          "cannot be seen",
		`log.Info("fine", "a", 1, "b")`:                                  "no value",
		`slog.NewLogLogger(log.Handler(), slog.LevelInfo).Print(prompt)`: "no constant text",
		`slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo); log.Info("", list("a", "b")[0], list("a", "b")[1])`: "",
	} {
		text := `package p
			import ("context"; "log/slog")
			func list(a, b string) []slog.Attr { return []slog.Attr{slog.Int("a", 1), slog.Int("b", 2)} }
			func f(ctx context.Context, log *slog.Logger, prompt string, holder struct{ *slog.Logger }) { ` + source + "\n}"
		l := newLogs()
		file, err := parser.ParseFile(l.fset, "p.go", text, 0)
		if err != nil {
			t.Fatal(err)
		}
		check(t, l, compiled(l.fset, all), "p", []*ast.File{file})
		switch found := strings.Join(l.wrong, "\n"); {
		case want == "" && (found != "" || !l.names["a"] || !l.names["b"]):
			t.Errorf("%s: %v, %q", source, l.names, found)
		case !strings.Contains(found, want):
			t.Errorf("%s: found %q, want %q", source, found, want)
		}
	}
}

// logs are what is logged in some source.
type logs struct {
	fset  *token.FileSet
	names map[string]bool // of values
	calls int
	wrong []string
}

func newLogs() *logs { return &logs{fset: token.NewFileSet(), names: map[string]bool{}} }

// In which argument the text of a line stands; the values follow.
var lineText = map[string]int{
	"Debug": 0, "Info": 0, "Warn": 0, "Error": 0,
	"DebugContext": 1, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1,
	"Log": 2, "LogAttrs": 2,
}

func (l *logs) read(files []*ast.File, info *types.Info) {
	isAttr := func(e ast.Expr) bool { return types.TypeString(info.TypeOf(e), nil) == "log/slog.Attr" }
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				l.call(n, info, isAttr)
			case *ast.CompositeLit:
				if isAttr(n) && len(n.Elts) > 0 {
					key := n.Elts[0]
					for _, e := range n.Elts {
						if pair, ok := e.(*ast.KeyValueExpr); ok && pair.Key.(*ast.Ident).Name == "Key" {
							key = pair.Value
						}
					}
					l.name(key, info)
				}
			case *ast.AssignStmt:
				for i, to := range n.Lhs {
					if field, ok := to.(*ast.SelectorExpr); ok && field.Sel.Name == "Key" && isAttr(field.X) && i < len(n.Rhs) {
						l.name(n.Rhs[i], info)
					}
				}
			}
			return true
		})
	}
}

func (l *logs) call(n *ast.CallExpr, info *types.Info, isAttr func(ast.Expr) bool) {
	at, ok := n.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	f, ok := info.Uses[at.Sel].(*types.Func)
	if !ok || f.Pkg() == nil || f.Pkg().Path() != "log/slog" {
		return
	}
	owner := strings.TrimSuffix(f.FullName(), f.Name())
	logger := owner == "(*log/slog.Logger)." || owner == "log/slog."
	text, line := lineText[f.Name()]
	var values []ast.Expr
	switch {
	case logger && line:
		l.calls++
		l.constant(n.Args[text], info, "text")
		values = n.Args[text+1:]
	case logger && f.Name() == "With":
		values = n.Args
	case logger && f.Name() == "WithGroup":
		l.name(n.Args[0], info)
	case owner == "log/slog." && f.Name() == "NewLogLogger":
		if types.ExprString(n.Args[0]) != "slog.DiscardHandler" {
			l.bad(n, "what goes through a log.Logger has no constant text")
		}
	case owner == "log/slog." && types.TypeString(f.Signature().Results().At(0).Type(), nil) == "log/slog.Attr":
		l.name(n.Args[0], info)
		if f.Name() == "Group" {
			values = n.Args[1:]
		}
	}
	if n.Ellipsis.IsValid() && len(values) > 0 {
		last := values[len(values)-1]
		values = values[:len(values)-1]
		if types.TypeString(info.TypeOf(last), nil) != "[]log/slog.Attr" {
			l.bad(last, "names in this list cannot be seen: make it a []slog.Attr")
		}
	}
	for i := 0; i < len(values); i++ {
		if isAttr(values[i]) {
			continue // seen where it is made
		}
		l.name(values[i], info)
		if i++; i == len(values) {
			l.bad(values[i-1], "the name has no value")
		}
	}
}

func (l *logs) name(e ast.Expr, info *types.Info) {
	if name := l.constant(e, info, "name"); name != "" {
		l.names[name] = true
	}
}

func (l *logs) constant(e ast.Expr, info *types.Info, what string) string {
	v := info.Types[e].Value
	if v == nil || v.Kind() != constant.String {
		l.bad(e, "no constant "+what)
		return ""
	}
	return constant.StringVal(v)
}

func (l *logs) bad(n ast.Node, text string) {
	l.wrong = append(l.wrong, fmt.Sprintf("%s: %s", l.fset.Position(n.Pos()), text))
}

// A listed package, as the go command tells it.
type listed struct{ path, folder, export string }

// packages lists what the program is made of, which the go command may have to compile.
func packages(t testing.TB) []listed {
	t.Helper()
	all, err := program()
	must(t, err)
	return all
}

var program = sync.OnceValues(func() (all []listed, err error) {
	list := exec.Command("go", "list", "-deps", "-export", "-f", "{{.ImportPath}}\t{{.Dir}}\t{{.Export}}", "./cmd/...")
	list.Dir = filepath.Join("..", "..")
	var failed bytes.Buffer
	list.Stderr = &failed
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("%w %s", err, failed.String())
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		all = append(all, listed{f[0], f[1], f[2]})
	}
	return all, nil
})

// compiled reads the types of what is imported from what the compiler wrote.
func compiled(fset *token.FileSet, all []listed) types.Importer {
	files := map[string]string{}
	for _, p := range all {
		files[p.path] = p.export
	}
	return importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(files[path]) })
}

func check(t testing.TB, l *logs, imports types.Importer, path string, files []*ast.File) {
	t.Helper()
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}
	if _, err := (&types.Config{Importer: imports}).Check(path, l.fset, files, info); err != nil {
		t.Fatal(err)
	}
	l.read(files, info)
}

// readProgram reads every package of ours that is part of the program.
func readProgram(t testing.TB, l *logs) {
	t.Helper()
	all := packages(t)
	imports := compiled(l.fset, all)
	for _, p := range all {
		if !strings.HasPrefix(p.path, "zimage/") {
			continue
		}
		parsed, err := build.ImportDir(p.folder, 0)
		if err != nil {
			t.Fatal(err)
		}
		var files []*ast.File
		for _, name := range parsed.GoFiles {
			file, err := parser.ParseFile(l.fset, filepath.Join(p.folder, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		check(t, l, imports, p.path, files)
	}
}
