package main

import (
	"context"
	"errors"
	"fmt"

	"zimage/internal/app"
	"zimage/internal/config"
)

type doctorCommand struct{}

func (doctorCommand) Run(ctx context.Context) error {
	c, err := config.Load(nil)
	var problems config.Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			fmt.Printf("✗ setting %s\n    %s\n", p.Variable, p.Message)
		}
		return fmt.Errorf("%d settings are wrong", len(problems))
	}
	fmt.Println("✓ settings: can be read (`zimage settings` prints them)")
	bad := 0
	app.Examine(ctx, c, func(f app.Finding) {
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
