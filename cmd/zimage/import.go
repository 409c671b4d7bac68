package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"zimage/internal/app"
)

type importCommand struct {
	File  string `arg:"" type:"existingfile" help:"The archive of an export."`
	Email string `required:"" help:"Mail address of the user here."`
}

func (c importCommand) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		show := newCounter(os.Stderr)
		done, left, err := a.Import(ctx, c.Email, c.File, func(records int64) { show.tell(fmt.Sprintf("%d records are there", records)) })
		show.end()
		fmt.Printf("%d records and %d pictures were imported.\n", done.Records, done.Files)
		for _, one := range []struct {
			n    int64
			what string
		}{
			{done.There, "were there already"}, {done.Over, "are past their window"},
			{done.Unfinished, "had not ended"}, {done.Deleted, "were deleted here, and stay so"},
		} {
			if one.n > 0 {
				fmt.Printf("%d records %s.\n", one.n, one.what)
			}
		}
		if len(left) > 0 {
			fmt.Printf("Not taken, since it is not valid here or somebody has it: %s.\n", strings.Join(left, ", "))
		}
		return err
	})
}
