package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"reflect"
	"regexp"
	"strings"
)

// A Variable is one setting as the documentation tells it.
type Variable struct {
	Name    string // with the prefix
	Default string // the value when it is not set; empty: none
	Without string // what holds instead of a default value
	Secret  bool   // also read from the file that NAME_FILE names, and never shown
	Doc     string
}

// Variables lists every setting in the order in which they are documented.
func Variables() []Variable {
	config := reflect.TypeFor[Config]()
	var list []Variable
	for i := range config.NumField() {
		tag := config.Field(i).Tag
		name := tag.Get("env")
		if name == "" {
			continue
		}
		list = append(list, Variable{
			Name: Prefix + name, Default: tag.Get("envDefault"), Without: tag.Get("without"),
			Secret: tag.Get("secret") != "", Doc: tag.Get("doc"),
		})
	}
	return list
}

// Markdown is the settings as the table in the README.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| Setting | Default | Meaning |\n|---|---|---|\n")
	for _, v := range Variables() {
		shown := v.Without
		if v.Default != "" {
			shown = "`" + v.Default + "`"
		}
		secret := ""
		if v.Secret {
			secret = " (secret)"
		}
		fmt.Fprintf(&b, "| `%s`%s | %s | %s |\n", v.Name, secret, shown, v.Doc)
	}
	return b.String()
}

// A Line is one setting as it is in force, safe to print.
type Line struct {
	Name   string
	Value  string // a secret's is masked
	Source string // environment, file PATH or default
}

// Redacted lists every setting in force with its source. Secrets show as
// "(set)"; of an address only scheme, host and path remain.
func (c Config) Redacted() []Line {
	config := reflect.ValueOf(c)
	var lines []Line
	for i := range config.NumField() {
		tag := config.Type().Field(i).Tag
		if tag.Get("env") == "" {
			continue
		}
		name := Prefix + tag.Get("env")
		value := fmt.Sprint(config.Field(i).Interface())
		if list, ok := config.Field(i).Interface().([]string); ok {
			value = strings.Join(list, ",")
		}
		switch kind := tag.Get("secret"); {
		case kind == "text" && value != "":
			value = "(set)"
		case kind == "url" && value != "":
			value = maskedURL(value)
		}
		source := c.sources[name]
		if source == "" {
			source = "default"
		}
		lines = append(lines, Line{name, value, source})
	}
	return lines
}

// Format keeps the secrets out of whatever prints a Config by accident.
func (c Config) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "config: print Redacted instead")
}

// LogValue is Format for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// maskedURL keeps what helps to find a wrong address and drops user, password
// and query, where drivers take secrets too.
func maskedURL(address string) string {
	if strings.HasPrefix(address, "sqlite:") {
		return address
	}
	u, err := url.Parse(address)
	if err != nil || u.Opaque != "" || u.Scheme == "" {
		return "(set)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// serviceLink is how Kubernetes names the variables that it puts into every
// container for a service called zimage or zimage-api.
var serviceLink = regexp.MustCompile(`^ZIMAGE_(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT(_\d+_.+)?)$`)

// foreign reports whether a variable has our prefix without being meant for us.
func foreign(name, value string) bool {
	if name == clientKey || strings.HasPrefix(name, testPrefix) {
		return true
	}
	if !serviceLink.MatchString(name) {
		return false
	}
	return !strings.HasSuffix(name, "_PORT") || strings.Contains(name, "_SERVICE_") || strings.Contains(value, "://")
}

// unknown says what an unknown variable may have meant.
func unknown(name string) string {
	best, distance := "", 4 // more than three slips are another word
	for _, v := range Variables() {
		candidates := []string{v.Name}
		if v.Secret {
			candidates = append(candidates, v.Name+fileSuffix)
		}
		for _, candidate := range candidates {
			if d := slips(name, candidate); d < distance {
				best, distance = candidate, d
			}
		}
	}
	if best == "" {
		return "is no setting; the README lists them"
	}
	return "is no setting; did you mean " + best + "?"
}

// slips counts the letters to add, drop or change from a to b (Levenshtein).
func slips(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
