package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"zimage/internal/app"
	"zimage/internal/privacy"
)

type ledgerVerify struct {
	Checkpoint string `type:"path" help:"File with a checkpoint that somebody kept, as GET /v1/privacy/ledger/checkpoint gives it, the manifest of an export, or the receipt of an erasure: finds what was cut off or written anew since."`
}

func (l ledgerVerify) Run(ctx context.Context) error {
	var held *privacy.Checkpoint
	if l.Checkpoint != "" {
		text, err := os.ReadFile(l.Checkpoint)
		if err != nil {
			return err
		}
		c, err := privacy.ParseCheckpoint(text)
		if err != nil {
			return fmt.Errorf("%s: %w", l.Checkpoint, err)
		}
		held = &c
	}
	return with(ctx, func(a *app.App) error {
		show := newCounter(os.Stderr)
		r, err := a.Ledger.Verify(ctx, held, func(entries int64) { show.tell(fmt.Sprintf("%d entries are in order", entries)) })
		show.end()
		if err != nil {
			return err
		}
		fmt.Printf("The ledger is whole: %d entries in %d batches, %d more wait to be chained. The details of %d were erased.\n", r.Entries, r.Batches, r.Waiting, r.Erased)
		if held == nil {
			fmt.Println("Without a checkpoint that somebody kept, entries that were cut off at the end are not missed: see --checkpoint.")
		} else {
			fmt.Printf("It holds what the checkpoint of %s has seen.\n", when(held.At))
		}
		return nil
	})
}

type ledgerCheckpoint struct{}

func (ledgerCheckpoint) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		c, err := a.Ledger.CheckpointNow(ctx)
		if err != nil {
			return err
		}
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(c)
	})
}
