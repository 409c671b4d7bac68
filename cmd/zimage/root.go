package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"zimage/internal/app"
	"zimage/internal/vault"
)

type rootRotate struct {
	Retire bool          `help:"Take the previous root out of the key ring now, and make no new one: backups of the key store from before the last rotation open nothing any more."`
	Wait   time.Duration `default:"1m" help:"How long to wait for running processes to have the new key ring."`
}

func (c rootRotate) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		show := newCounter(os.Stderr)
		r, err := a.RotateRoots(ctx, vault.RotateOptions{
			Retire: c.Retire, Wait: c.Wait,
			Progress: func(done, total int) {
				show.tell(fmt.Sprintf("%d of %d keys are wrapped with the new root", done, total))
			},
			Waiting: func(processes string) {
				fmt.Fprintln(os.Stderr, "Waiting until these processes have the new key ring: "+processes)
			},
		})
		show.end()
		if r.Made {
			fmt.Println("A new root was made. Copy the key ring to your offline place now: losing it loses everything stored.")
		}
		if r.Retired != "" {
			fmt.Printf("Root %s is retired: backups of the key store that it wrapped open nothing any more. Destroy its offline copies too.\n", r.Retired)
		}
		if err != nil {
			return err
		}
		fmt.Printf("Current root:  %s, of %s; due to be replaced on %s.\n", r.Current, when(r.Created), when(r.Created.Add(vault.RotateEvery)))
		if r.Previous != "" {
			fmt.Printf("Previous root: %s, opens backups of the key store from before %s; retired by the first rotation after %s.\n", r.Previous, when(r.Created), when(r.RetireDue))
		}
		if !r.Made && r.Retired == "" && r.Rewrapped == 0 {
			fmt.Println("Nothing was due.")
		}
		return nil
	})
}

// counter writes how far something is: in place on a terminal, and nothing
// elsewhere.
type counter struct {
	w     io.Writer
	live  bool
	shown bool
	last  time.Time
}

func newCounter(f *os.File) *counter {
	return &counter{w: f, live: onTerminal(f)}
}

func (c *counter) tell(text string) {
	if !c.live || time.Since(c.last) < 100*time.Millisecond {
		return
	}
	c.last, c.shown = time.Now(), true
	_, _ = fmt.Fprintf(c.w, "\r\x1b[K%s", text)
}

func (c *counter) end() {
	if c.shown {
		_, _ = fmt.Fprintln(c.w)
	}
}
