package generate

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"golang.org/x/text/unicode/norm"

	"zimage/internal/problem"
)

// Rules are the operator's, for prompts: each refuses what one of its words or
// its pattern matches.
type Rules struct{ rules []rule }

type rule struct {
	id      string
	message string
	pattern *regexp.Regexp
}

var ruleID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// ParseRules reads a rules file:
//
//	rules:
//	  - id: no-real-people
//	    message: Pictures of real people are not made here.
//	    words: [some name, another]
//	  - id: no-tags
//	    message: Tags in angle brackets are not allowed.
//	    pattern: '<[a-z]+:'
//
// Words match whole words, whatever their case; patterns are Go's regular
// expressions, matched without regard to case.
func ParseRules(text []byte) (*Rules, error) {
	var file struct {
		Rules []struct {
			ID      string   `yaml:"id"`
			Message string   `yaml:"message"`
			Words   []string `yaml:"words"`
			Pattern string   `yaml:"pattern"`
		} `yaml:"rules"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil {
		return nil, fmt.Errorf("prompt rules: %w", err)
	}
	seen := map[string]bool{}
	parsed := &Rules{}
	for i, r := range file.Rules {
		at := fmt.Sprintf("prompt rules: rules[%d]", i)
		if !ruleID.MatchString(r.ID) || seen[r.ID] {
			return nil, fmt.Errorf("%s.id: must be unique, of a-z, 0-9 and hyphens", at)
		}
		seen[r.ID] = true
		if strings.TrimSpace(r.Message) == "" {
			return nil, fmt.Errorf("%s.message: is missing; it is what the user reads", at)
		}
		if (len(r.Words) == 0) == (r.Pattern == "") {
			return nil, fmt.Errorf("%s: needs either words or a pattern", at)
		}
		expression := r.Pattern
		if expression == "" {
			quoted := make([]string, len(r.Words))
			for k, w := range r.Words {
				if strings.TrimFunc(w, invisible) == "" {
					return nil, fmt.Errorf("%s.words[%d]: is empty", at, k)
				}
				quoted[k] = strings.ReplaceAll(regexp.QuoteMeta(fold(w)), " ", `\s+`)
			}
			expression = `(?:^|[^\pL\pN])(?:` + strings.Join(quoted, "|") + `)(?:$|[^\pL\pN])`
		}
		p, err := regexp.Compile("(?i)" + expression)
		if err != nil {
			return nil, fmt.Errorf("%s.pattern: %w", at, err)
		}
		parsed.rules = append(parsed.rules, rule{r.ID, r.Message, p})
	}
	return parsed, nil
}

// Check refuses a text with the first rule that matches it. What it matched is
// neither said nor kept.
func (r *Rules) Check(location, text string) error {
	if r == nil || text == "" {
		return nil
	}
	folded := fold(text)
	for _, rule := range r.rules {
		if rule.pattern.MatchString(folded) || rule.pattern.MatchString(text) {
			p := problem.New(problem.PromptRefused, rule.message)
			p.Fields = []problem.Field{{Location: location, Message: "refused by rule " + rule.id}}
			return p
		}
	}
	return nil
}

// fold writes a text in the one way in which words are compared: compatible
// letters as one, without marks and without what cannot be seen, so that a word
// is not hidden by them. White space of every kind stays as a space: it parts
// words.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case invisible(r):
			return -1
		}
		return r
	}, norm.NFKD.String(s))
}
