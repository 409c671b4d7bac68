package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"zimage/internal/app"
)

type usageReport struct {
	Per  string `default:"week" enum:"day,week" help:"${enum}: weeks begin on Monday, in UTC."`
	Last int    `default:"12" help:"How many of them, without the one that runs."`
	JSON bool   `help:"As JSON."`
}

func (u usageReport) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		counts, err := a.Usage.Report(ctx, u.Per, u.Last)
		if err != nil {
			return err
		}
		type line struct {
			From    string `json:"from"`
			Feature string `json:"feature"`
			People  int64  `json:"people_at_least"`
		}
		lines := make([]line, len(counts))
		for i, c := range counts {
			lines[i] = line{c.From.Format(time.DateOnly), c.Feature, c.People}
		}
		if u.JSON {
			e := json.NewEncoder(os.Stdout)
			e.SetIndent("", "  ")
			return e.Encode(map[string]any{"per": u.Per, "counts": lines})
		}
		w := table(map[string]string{"day": "DAY", "week": "WEEK FROM"}[u.Per], "FEATURE", "PEOPLE")
		for _, l := range lines {
			row(w, l.From, l.Feature, fmt.Sprintf("%d+", l.People))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Println("People are counted once, rounded down to tens. Fewer than 10 are not shown.")
		return nil
	})
}
