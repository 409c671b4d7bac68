package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"zimage/internal/account"
	"zimage/internal/app"
	"zimage/internal/config"
	"zimage/internal/embedded"
)

// firstUser is who a new installation belongs to until others are made.
const firstUser = "you@localhost.localdomain"

type upCommand struct{}

func (upCommand) Run(ctx context.Context, abort aborted) error {
	c, err := config.ForRole(nil, config.RoleUp)
	if err != nil {
		return fmt.Errorf("up does not start:\n%w", err)
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return fmt.Errorf("%sDATA: %w", config.Prefix, err)
	}
	if err := app.CheckData(c); err != nil {
		return err
	}
	for _, file := range c.LockFiles() {
		unlock, err := embedded.Lock(file)
		if err != nil {
			return err
		}
		defer func() { _ = unlock() }()
	}
	newRoots, err := app.CreateRoots(c)
	if err != nil {
		return fmt.Errorf("%sROOT_KEYS: %w", config.Prefix, err)
	}
	log := app.NewLog(c, os.Stderr)
	a, err := app.Open(ctx, c, "up", app.Version(), log)
	if err != nil {
		return err
	}
	if err := a.RequeueAll(ctx); err != nil {
		return errors.Join(err, a.Close())
	}
	if err := firstKey(ctx, a, c); err != nil {
		return errors.Join(err, a.Close())
	}
	started := func() { welcome(os.Stdout, c, newRoots) }
	return errors.Join(a.Run(ctx, abort, started, config.RoleAPI, config.RoleWorker, config.RoleScheduler), a.Close())
}

// keyFile holds the first user's key, so that zimage generate finds it.
func keyFile(c config.Config) string { return filepath.Join(c.Data, "first-key") }

// firstKey makes the first user and a key on the first start; later it finds
// the file. An empty file is one that a crash left.
func firstKey(ctx context.Context, a *app.App, c config.Config) error {
	switch info, err := os.Lstat(keyFile(c)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is a link or folder, not the file that this service made; remove it", keyFile(c))
	case info.Size() > 0:
		return nil
	}
	subject, err := a.Accounts.FindUser(ctx, firstUser)
	if err != nil {
		// Nobody knows this password: the account is used by its keys.
		if subject, err = a.Accounts.CreateUser(ctx, firstUser, rand.Text()); err != nil {
			return fmt.Errorf("make the first user: %w", err)
		}
	}
	token, _, err := a.Accounts.CreateKey(ctx, subject, "first key", []string{account.ScopeGenerate, account.ScopeRead}, time.Time{})
	if err != nil {
		return fmt.Errorf("make the first key: %w", err)
	}
	return writeSecret(keyFile(c), token+"\n")
}

// writeSecret makes or replaces a file that its owner alone may read, whole or
// not at all.
func writeSecret(name, text string) error {
	draft := name + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a crash
		return err
	}
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // a name of ours
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(draft))
	}
	return os.Rename(draft, name)
}

func welcome(w io.Writer, c config.Config, newRoots bool) {
	hint := ""
	if !c.UsesSMTP() {
		hint += "\nAn account of your own: README.md says how. Mails are files in " + c.MailFolder() + ".\n"
	}
	if c.Engines == "" {
		hint += "\nA GPU engine: edit what `go run ./cmd/zimage engines example` prints, and start again with " + config.Prefix + "ENGINES=FILE.\n"
	}
	_, _ = fmt.Fprintf(w, `
Z Image Generator %s is at %s  (docs: %s/docs)
Data: %s   Keys: %s

Try next, in another terminal:

  go run ./cmd/zimage generate "a lighthouse in a storm at night" -o out.png

  curl -s %s/v1/generations -H "Authorization: Bearer $(cat %s)" \
    -H "Content-Type: application/json" -H "Prefer: wait=30" \
    -d '{"prompt":"a lighthouse in a storm at night"}'
%s
`, app.Version(), c.PublicURL, c.PublicURL, c.Data, c.RootKeys, c.PublicURL, quote(keyFile(c)), hint)
	if newRoots {
		_, _ = fmt.Fprintf(w, "New root keys were made in %s. Without them nothing stored here can be opened:\nkeep a copy offline.\n\n", c.RootKeys)
	}
}

// quote makes a path safe to paste into a shell.
func quote(path string) string {
	if strings.ContainsAny(path, " '\"$`\\!*?[](){}<>|&;") {
		return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	return path
}
