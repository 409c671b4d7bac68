package deploy

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"zimage/internal/privacy"
)

type alertRule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func alerts(t *testing.T) (all []alertRule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []alertRule
		}
	}
	d := yaml.NewDecoder(strings.NewReader(read(t, "alerts.yaml")))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// Every expression asks for figures that the program has, by labels that they have,
// and nothing else; and each alert says what to do.
func TestPromise_X5_AlertsNameFiguresThatExist(t *testing.T) {
	t.Parallel()
	m, err := privacy.DataMap()
	if err != nil {
		t.Fatal(err)
	}
	figures := map[string][]string{}
	for _, f := range m.Metrics.Figures {
		figures[f.Name] = f.Labels
	}
	functions := []string{"max", "sum", "by", "absent", "increase", "rate"}
	selector := regexp.MustCompile(`(zimage_[a-z_]+)(?:\{([^}]*)\})?`)
	matcher := regexp.MustCompile(`^([a-z]+)(=~|=)"([^"]+)"$`)
	seen := map[string]bool{}
	for _, rule := range alerts(t) {
		if seen[rule.Alert] || rule.Alert == "" {
			t.Errorf("%q stands there twice", rule.Alert)
		}
		seen[rule.Alert] = true
		var known []string // labels that the result may have
		names := selector.FindAllStringSubmatch(rule.Expr, -1)
		if len(names) == 0 {
			t.Errorf("%s asks for nothing", rule.Alert)
		}
		for _, n := range names {
			labels, ok := figures[n[1]]
			if !ok {
				t.Errorf("%s: there is no figure %s", rule.Alert, n[1])
			}
			known = append(known, labels...)
			for _, one := range strings.FieldsFunc(n[2], func(r rune) bool { return r == ',' }) {
				parts := matcher.FindStringSubmatch(strings.TrimSpace(one))
				if parts == nil || !slices.Contains(labels, parts[1]) {
					t.Errorf("%s: %s has no label for %s", rule.Alert, n[1], one)
				}
			}
		}
		// What is left is grammar.
		rest := regexp.MustCompile(`\[[0-9]+[smhd]\]`).ReplaceAllString(selector.ReplaceAllString(rule.Expr, ""), "")
		by := regexp.MustCompile(`by \(([a-z, ]+)\)`)
		for _, group := range by.FindAllStringSubmatch(rest, -1) {
			for _, label := range strings.Split(group[1], ", ") {
				if !slices.Contains(known, label) {
					t.Errorf("%s: nothing has the label %s", rule.Alert, label)
				}
			}
		}
		for _, word := range regexp.MustCompile(`[a-z_]+`).FindAllString(by.ReplaceAllString(rest, ""), -1) {
			if !slices.Contains(functions, word) {
				t.Errorf("%s: what is %s?", rule.Alert, word)
			}
		}
		if strings.Count(rule.Expr, "(") != strings.Count(rule.Expr, ")") || !regexp.MustCompile(`^[^<>=]*$|[<>=] ?[0-9.]+`).MatchString(rest) {
			t.Errorf("%s: %s", rule.Alert, rule.Expr)
		}
		if rule.For != "" {
			if _, err := time.ParseDuration(rule.For); err != nil {
				t.Errorf("%s: for is %s", rule.Alert, rule.For)
			}
		}
		if !slices.Contains([]string{"critical", "warning"}, rule.Labels["severity"]) || rule.Annotations["summary"] == "" || rule.Annotations["mend"] == "" {
			t.Errorf("%s: %v, %v", rule.Alert, rule.Labels, rule.Annotations)
		}
		for _, label := range regexp.MustCompile(`\$labels\.([a-z]+)`).FindAllStringSubmatch(rule.Annotations["summary"], -1) {
			if !strings.Contains(rule.Expr, "by ("+label[1]+")") {
				t.Errorf("%s: its summary names %s, which the expression loses", rule.Alert, label[1])
			}
		}
	}
}

// Values of labels are ones that exist, and what breaks a promise is an alert.
func TestPromise_X5_BrokenPromisesAreAlerts(t *testing.T) {
	t.Parallel()
	m, err := privacy.DataMap()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, rule := range alerts(t) {
		text.WriteString(rule.Expr + "\n")
	}
	for _, expression := range []string{
		"max by (promise) (zimage_promise_broken) > 0", "absent(zimage_promise_broken)",
		"max by (category) (zimage_retention_oldest_ratio) > 1", "max(zimage_erasures_overdue) > 0",
		"max(zimage_requests_overdue) > 0", "max(zimage_holds_review_due) > 0", "max(zimage_objects_unknown) > 0", "max(zimage_objects_missing) > 0",
		`sum by (outcome) (increase(zimage_usage_events_total{outcome=~"dropped|failed"}[15m])) > 0`,
	} {
		if !strings.Contains(text.String(), expression+"\n") {
			t.Errorf("no alert is %s", expression)
		}
	}
	kinds := map[string]bool{}
	for _, k := range m.Tasks.Types {
		kinds[k.Name] = true
	}
	for _, kind := range regexp.MustCompile(`kind="([^"]+)"`).FindAllStringSubmatch(text.String(), -1) {
		if !kinds[kind[1]] {
			t.Errorf("there is no job %s", kind[1])
		}
	}
	for label, values := range map[string][]string{"state": {"failed"}, "lane": {"housekeeping", "webhook"}, "outcome": {"failed", "dropped", "unreached"}} {
		for _, value := range regexp.MustCompile(label+`=~?"([^"]+)"`).FindAllStringSubmatch(text.String(), -1) {
			for _, one := range strings.Split(value[1], "|") {
				if !slices.Contains(values, one) {
					t.Errorf("%s is never %s", label, one)
				}
			}
		}
	}
}
