package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"

	"zimage/internal/app"
	"zimage/internal/privacy"
)

type erasureList struct {
	All   bool   `help:"Also those that are complete."`
	After string `help:"Go on after this id."`
	Limit int    `default:"100" help:"How many."`
}

func (e erasureList) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		list, err := a.Privacy.Erasures(ctx, e.All, e.After, min(max(e.Limit, 1), 10_000))
		if err != nil {
			return err
		}
		w := table("RECEIPT", "ACCOUNT", "REQUESTED", "DUE", "LAST STEP", "STATE")
		for _, one := range list {
			state := "open"
			switch {
			case !one.CompletedAt.IsZero():
				state = "complete since " + when(one.CompletedAt)
			case one.Failure != "":
				state = fmt.Sprintf("does not go on: %s (%d times)", one.Failure, one.Failures)
			case !one.LateUntil.IsZero():
				state = "waits for late work until " + when(one.LateUntil)
			}
			row(w, one.ID, one.Subject, when(one.RequestedAt), when(one.DueAt), one.Step, state)
		}
		return w.Flush()
	})
}

type erasureReplay struct{}

func (erasureReplay) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		done, err := a.Privacy.Replay(ctx)
		fmt.Printf("%d erasures are done again, %d go on by themselves; %d generations and images are deleted again, %d shares, webhooks and revocations of links ended again.\n",
			done.Erased, done.Open, done.Deleted, done.Ended)
		if err != nil {
			return err
		}
		left, err := a.Privacy.Unreplayed(ctx)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d erasures, deletions or ends are still unknown to the main database; run this again", left)
		}
		return err
	})
}

type receiptVerify struct {
	File string `arg:"" help:"The receipt as it was fetched; - is standard input."`
	Key  string `help:"The service's public key in base64, which you have from elsewhere. Without it the key beside the receipt counts, which proves only that nothing was changed since."`
}

func (r receiptVerify) Run() error {
	text, err := read(r.File)
	if err != nil {
		return err
	}
	var key ed25519.PublicKey
	if r.Key != "" {
		if key, err = base64.StdEncoding.DecodeString(r.Key); err != nil || len(key) != ed25519.PublicKeySize {
			return errors.New("--key is no public key: 32 bytes in base64")
		}
	}
	receipt, key, err := privacy.VerifyReceipt(text, key)
	if err != nil {
		return err
	}
	fmt.Print(receipt)
	fmt.Printf("The signature holds. It was made with the key %s\n", base64.StdEncoding.EncodeToString(key))
	return nil
}

func read(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
	}
	return os.ReadFile(file)
}
