package main

import (
	"context"
	"errors"
	"fmt"

	"zimage/internal/app"
	"zimage/internal/config"
)

type doctorCommand struct {
	Role config.Role `default:"up" enum:"up,api,worker,scheduler" help:"The process to check for: up (all in one), api, worker or scheduler."`
}

func (d doctorCommand) Run(ctx context.Context) error {
	c, err := config.ForRole(nil, d.Role)
	var problems config.Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			fmt.Printf("✗ setting %s\n    → %s\n", p.Variable, p.Message)
		}
		return fmt.Errorf("%d settings are wrong; %s does not start with them", len(problems), d.Role)
	}
	fmt.Printf("✓ settings: can be read, for %s (`zimage settings` prints them)\n", d.Role)
	bad := 0
	app.Examine(ctx, c, d.Role, func(f app.Finding) {
		sign := "✓"
		switch {
		case f.Bad:
			sign = "✗"
			bad++
		case f.Warn:
			sign = "!"
		}
		fmt.Printf("%s %s: %s\n", sign, f.Part, f.Text)
		if f.Mend != "" {
			fmt.Printf("    → %s\n", f.Mend)
		}
	})
	if bad > 0 {
		return fmt.Errorf("%d parts need attention", bad)
	}
	return nil
}
