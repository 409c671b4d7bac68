package privacy

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Keep is one reason for which a row, or part of it, is kept no longer.
type Keep struct {
	AsLongAs string   `yaml:"as_long_as"` // account, installation or need; else it is a time:
	Window   string   `yaml:"window"`     // of the policy, by its name, or
	For      string   `yaml:"for"`        // a span of ours such as 30d or 24h,
	From     string   `yaml:"from"`       // since the time in this column; NULL or 0: it has not begun
	Until    string   `yaml:"until"`      // the column with the end, where one is stored
	Unless   string   `yaml:"unless"`     // a column that keeps the row from it as long as it is not 0 or NULL
	Then     Action   `yaml:"then"`       // delete or null
	Columns  []string `yaml:"columns"`    // that become null
	By       string   `yaml:"by"`         // the task type that does it, or the process
	Why      string   `yaml:"why"`        // of all but windows of the policy
}

// Span is For as a duration.
func (k Keep) Span() time.Duration {
	d, _ := parseSpan(k.For) // checked when the map was read
	return d
}

func parseSpan(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

// decides is the column whose time ends the row: the end, where it is stored.
func (k Keep) decides() string {
	if k.Until != "" {
		return k.Until
	}
	return k.From
}

// bound is the newest time in the deciding column that is over.
func (k Keep) bound(p Policy, now time.Time) time.Time {
	switch {
	case k.Until != "":
		return now
	case k.For != "":
		return now.Add(-k.Span())
	}
	w, _ := p.Window(k.Window) // the map's check knows only these
	return w.Before(now)
}

// over reports whether the reason to keep a row has ended, by what stands in it.
func (k Keep) over(p Policy, r row, now time.Time) bool {
	if k.AsLongAs != "" {
		return false
	}
	at := millisOf(r[k.decides()])
	return at > 0 && at <= k.bound(p, now).UnixMilli()
}

// longest is when the time that began then is over at the latest; ok is false where
// only the record itself knows.
func (k Keep) longest(p Policy, began time.Time) (end time.Time, ok bool) {
	switch w, known := p.Window(k.Window); {
	case known:
		return w.After(began), true
	case k.For != "":
		return began.Add(k.Span()), true
	}
	return time.Time{}, false
}

// end is when a row is over, by the time in its deciding column.
func (k Keep) end(p Policy, decides time.Time) time.Time {
	if k.Until != "" {
		return decides
	}
	end, _ := k.longest(p, decides)
	return end
}

// span says how long, as the rule has it.
func (k Keep) span(p Policy) string {
	switch {
	case k.Window != "":
		w, _ := p.Window(k.Window)
		return w.String()
	case k.For != "" && k.Span() == 0:
		return "no longer than needed"
	case strings.HasSuffix(k.For, "d"):
		return Days(int(k.Span() / day)).String()
	case k.For != "":
		return k.Span().String()
	}
	return "until its end"
}

// reason says to an operator why a row is over.
func (k Keep) reason(p Policy) string {
	switch {
	case k.Window != "":
		text := fmt.Sprintf("the policy's window %s: %s after %s", k.Window, k.span(p), k.From)
		if k.Until != "" {
			text += ", or earlier as " + k.Until + " says"
		}
		return text
	case k.For != "":
		return fmt.Sprintf("%s after %s", k.For, k.From)
	}
	return k.Until + " says when"
}

// words say of a rule how long, and what happens then.
func (k Keep) words(p Policy) string {
	switch k.AsLongAs {
	case "account":
		return "as long as the account. " + k.Why
	case "installation":
		return "as long as the installation. " + k.Why
	case "need":
		return "as long as needed. " + k.Why
	}
	text := k.span(p)
	if k.From != "" {
		text += " from " + k.From
	} else {
		text = "until " + k.Until
	}
	if k.Then == Null {
		text += ", then without " + strings.Join(k.Columns, ", ")
	} else {
		text += ", then deleted"
	}
	return strings.TrimSpace(text + " (" + k.By + "). " + k.Why)
}
