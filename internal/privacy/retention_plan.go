package privacy

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A PlanLine is what the next sweep does by one reason, and why.
type PlanLine struct {
	Table string    `json:"table"`
	Why   string    `json:"why"`
	Then  Action    `json:"then"`  // delete, or null
	Bound time.Time `json:"bound"` // what the table's time is compared with: what is not younger is due
	Due   int64     `json:"due"`
	Held  int64     `json:"held"` // of these, kept by a hold
	Soon  int64     `json:"due_within_an_hour"`

	// The row that ends next, or should have ended: when its time began, where that
	// is known, and when it is over. Zero: there is none.
	Since time.Time `json:"oldest_since,omitzero"`
	End   time.Time `json:"oldest_end,omitzero"`
}

// RetentionPlan says what the next sweep ends, by table and reason, without doing
// it.
func (s *Service) RetentionPlan(ctx context.Context) ([]PlanLine, error) {
	p, err := s.schema(ctx)
	if err != nil {
		return nil, err
	}
	var lines []PlanLine
	for _, t := range s.Map.purged() {
		for _, k := range t.purges() {
			line, err := s.planLine(ctx, p, t, k)
			if err != nil {
				return nil, fmt.Errorf("plan for %s: %w", t.Name, err)
			}
			lines = append(lines, line)
		}
	}
	return lines, nil
}

func (s *Service) planLine(ctx context.Context, p plan, t *Table, k Keep) (PlanLine, error) {
	now := s.Clock.Now()
	line := PlanLine{Table: t.Name, Why: k.reason(s.Policy), Then: k.Then, Bound: k.bound(s.Policy, now).UTC()}
	count := func(n *int64, bound time.Time, more string) error {
		return s.DB.Get(ctx, n, "SELECT count(*) FROM "+t.Name+" WHERE "+p.due(t, k)+more, bound.UnixMilli())
	}
	if err := count(&line.Due, line.Bound, ""); err != nil {
		return line, err
	}
	if err := count(&line.Held, line.Bound, " AND "+anyHeld(t, k)); err != nil {
		return line, err
	}
	if err := count(&line.Soon, k.bound(s.Policy, now.Add(time.Hour)), ""); err != nil {
		return line, err
	}
	line.Soon -= line.Due
	since := k.From
	if since == "" {
		since = k.Until
	}
	var oldest []struct {
		Since   int64 `db:"since"`
		Decides int64 `db:"decides"`
	}
	err := s.DB.Select(ctx, &oldest, "SELECT "+since+" AS since, "+k.decides()+" AS decides FROM "+t.Name+" WHERE "+p.applies(t, k)+" ORDER BY "+k.decides()+" LIMIT 1")
	if err != nil || len(oldest) == 0 {
		return line, err
	}
	line.End = k.end(s.Policy, time.UnixMilli(oldest[0].Decides).UTC())
	if k.From != "" {
		line.Since = time.UnixMilli(oldest[0].Since).UTC()
	}
	return line, nil
}

// anyHeld is the condition that a hold keeps a row of anybody's from this: one on
// itself, on what it is part of, or, from losing its content, on a part of it.
func anyHeld(t *Table, k Keep) string {
	if t.Store != StoreMain {
		return "(1 = 0)"
	}
	named := func(table string) string {
		return "(SELECT row_id FROM holds WHERE table_name = '" + table + "' AND released_at IS NULL)"
	}
	conditions := []string{
		t.record() + " IN " + named(t.Name),
		t.record() + " IN (SELECT row_id FROM erasure_exceptions WHERE table_name = '" + t.Name + "' AND ended_at = 0)",
	}
	for _, p := range parts {
		switch {
		case p.table == t.Name:
			conditions = append(conditions, p.column+" IN "+named(p.of))
		case p.of == t.Name && k.Then == Null:
			conditions = append(conditions, t.record()+" IN (SELECT "+p.column+" FROM "+p.table+" WHERE id IN "+named(p.table)+")")
		}
	}
	return "(" + strings.Join(conditions, " OR ") + ")"
}
