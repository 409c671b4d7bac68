package subject

import (
	"context"
	"fmt"

	"zimage/internal/db"
)

// Those is May for many people at once, as a condition in SQL: it holds for the
// rows of subjects, in a query under the name s, whose data may be used for the
// purpose now. An unknown purpose holds for nobody.
func Those(purpose Purpose) (condition string, args []any) {
	need, known := rules[purpose]
	if !known {
		return `1 = 0`, nil
	}
	condition, args = `s.state = ?`, []any{Active}
	if !need.restricted {
		condition += ` AND s.restricted_at IS NULL`
	}
	if !need.suspended {
		condition += ` AND s.suspended_at IS NULL`
	}
	if need.consent {
		condition += ` AND coalesce((SELECT c.granted FROM consents c WHERE c.subject = s.id AND c.purpose = ? ORDER BY c.at DESC, c.granted, c.id DESC LIMIT 1), 0) = 1`
		args = append(args, purpose)
	}
	if need.objectable {
		condition += ` AND NOT EXISTS (SELECT 1 FROM objections o WHERE o.subject = s.id AND o.purpose = ?)`
		args = append(args, purpose)
	}
	return condition, args
}

// Allowing finds those of the given people whose data may be used for the purpose
// now.
func Allowing(ctx context.Context, q db.Querier, subjects []string, purpose Purpose) (map[string]bool, error) {
	may := make(map[string]bool, len(subjects))
	if len(subjects) == 0 {
		return may, nil
	}
	condition, args := Those(purpose)
	ids := db.Args(subjects)
	var found []string
	err := q.Select(ctx, &found, `SELECT s.id FROM subjects s WHERE s.id IN (`+db.Marks(len(ids))+`) AND `+condition, append(ids, args...)...)
	if err != nil {
		return nil, fmt.Errorf("ask for a purpose: %w", err)
	}
	for _, id := range found {
		may[id] = true
	}
	return may, nil
}
