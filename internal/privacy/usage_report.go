package privacy

import (
	"context"
	"fmt"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// usageGroup is the smallest group that is told of, and the step in which groups
// are told. Rounding down is what keeps small ones from being reckoned out: that
// 100 people came and 90 of them made a picture says only that 1 to 19 did not.
const usageGroup = 10

// Periods that a report counts in.
const (
	UsageDays  = "day"
	UsageWeeks = "week" // from Monday on, in UTC
)

// Anything is the feature that everybody used.
const Anything = "anything"

// A UsageCount is how many people used a feature in a period, rounded down to
// tens.
type UsageCount struct {
	From    time.Time
	Feature string
	People  int64
}

// Report counts people by feature for the last so many whole days or weeks, oldest
// first. The one that runs is left out, so that nobody can watch a count change
// with somebody's click; so are groups below ten, people who object, and what is
// beyond its window.
func (u *Usage) Report(ctx context.Context, per string, periods int) ([]UsageCount, error) {
	const day = int64(24 * time.Hour / time.Millisecond)
	length, shift := day, int64(0)
	switch per {
	case UsageDays:
	case UsageWeeks:
		length, shift = 7*day, 3*day // 1970 began on a Thursday
	default:
		return nil, problem.Invalid(problem.Field{Location: "query.per", Message: "must be day or week"})
	}
	if periods < 1 || periods > 400 {
		return nil, problem.Invalid(problem.Field{Location: "query.last", Message: "must be from 1 to 400"})
	}
	now := u.o.Clock.Now()
	end := (now.UnixMilli()+shift)/length*length - shift
	begin := end - int64(periods)*length
	// A period that is only partly there any more would count too few.
	if oldest := u.o.Window.Before(now).UnixMilli(); begin <= oldest {
		begin += (oldest - begin + length) / length * length
	}
	var rows []struct {
		Period  int64  `db:"period"`
		Feature string `db:"feature"`
		People  int64  `db:"people"`
	}
	may, of := subject.Those(subject.Statistics)
	counted := func(feature, group string) (string, []any) {
		return `SELECT (e.at + ?) / ? AS period, ` + feature + ` AS feature, count(DISTINCT e.subject) / 10 * 10 AS people
			FROM usage_events e JOIN subjects s ON s.id = e.subject WHERE e.at >= ? AND e.at < ? AND ` + may + `
			GROUP BY ` + group + ` HAVING count(DISTINCT e.subject) >= ?`, append(append([]any{shift, length, begin, end}, of...), usageGroup)
	}
	each, args := counted("e.feature", "1, 2")
	all, more := counted("'"+Anything+"'", "1")
	if err := u.o.DB.Select(ctx, &rows, each+` UNION ALL `+all+` ORDER BY 1, 3 DESC, 2`, append(args, more...)...); err != nil {
		return nil, db.Unavailable(fmt.Errorf("count usage: %w", err))
	}
	counts := make([]UsageCount, 0, len(rows))
	for _, r := range rows {
		counts = append(counts, UsageCount{time.UnixMilli(r.Period*length - shift).UTC(), r.Feature, r.People})
	}
	return counts, nil
}
