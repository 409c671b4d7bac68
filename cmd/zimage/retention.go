package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"zimage/internal/app"
	"zimage/internal/privacy"
)

type retentionPlan struct {
	JSON bool `help:"Print JSON."`
}

func (c retentionPlan) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		lines, err := a.Privacy.RetentionPlan(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			e := json.NewEncoder(os.Stdout)
			e.SetIndent("", "  ")
			return e.Encode(lines)
		}
		w := table("TABLE", "THEN", "NOT AFTER", "DUE", "HELD", "WITHIN AN HOUR", "OLDEST", "BECAUSE")
		for _, l := range lines {
			row(w, l.Table, then(l), when(l.Bound), fmt.Sprint(l.Due), fmt.Sprint(l.Held), fmt.Sprint(l.Soon), oldest(l, time.Now()), l.Why)
		}
		return w.Flush()
	})
}

func then(l privacy.PlanLine) string {
	if l.Then == privacy.Null {
		return "empty"
	}
	return string(l.Then)
}

// oldest says how old the row is that ends next, against how old it may be.
func oldest(l privacy.PlanLine, now time.Time) string {
	switch {
	case l.End.IsZero():
		return "none"
	case l.Since.IsZero():
		return "until " + when(l.End)
	}
	days := func(d time.Duration) float64 { return d.Hours() / 24 }
	return fmt.Sprintf("%.1f of %.1f days", days(now.Sub(l.Since)), days(l.End.Sub(l.Since)))
}
