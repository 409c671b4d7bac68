package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"zimage/internal/account"
	"zimage/internal/app"
	"zimage/internal/config"
	"zimage/internal/engine"
)

// open opens the installation that the settings name, for one command beside
// the running processes.
func open(ctx context.Context) (*app.App, error) {
	c, err := config.Load(nil)
	if err != nil {
		return nil, err
	}
	c = app.Beside(c)
	if _, err := os.Stat(c.RootKeys); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no installation here yet: %s is missing. Start `zimage up` first, or set %sDATA and %sROOT_KEYS",
			c.RootKeys, config.Prefix, config.Prefix)
	}
	c.LogLevel = "error"
	return app.Open(ctx, c, "cli", app.Version(), app.NewLog(c, os.Stderr))
}

// with runs f on the opened installation.
func with(ctx context.Context, f func(a *app.App) error) error {
	a, err := open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(a), a.Close())
}

type userCreate struct {
	Email string `required:"" help:"Mail address of the user."`
}

func (u userCreate) Run(ctx context.Context) error {
	password, err := readPassword(ctx, os.Stdin)
	if err != nil {
		return err
	}
	return with(ctx, func(a *app.App) error {
		subject, err := a.Accounts.CreateUserFor(ctx, account.AtTheMachine(), u.Email, password)
		if err != nil {
			return err
		}
		fmt.Println(subject)
		return nil
	})
}

type userList struct {
	After string `help:"Go on after this id."`
	Limit int    `default:"100" help:"How many."`
}

func (u userList) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		list, err := a.Accounts.Accounts(ctx, u.After, min(max(u.Limit, 1), 10_000))
		if err != nil {
			return err
		}
		w := table("ID", "STATE", "ROLE", "CREATED")
		for _, one := range list {
			state := string(one.State)
			if one.RestrictedAt > 0 {
				state += ", restricted"
			}
			if one.SuspendedAt > 0 {
				state += ", suspended"
			}
			row(w, one.ID, state, string(one.Role), when(one.Created()))
		}
		return w.Flush()
	})
}

// someone is whom a command is about, and why: the reason is kept.
type someone struct {
	Email  string `required:"" help:"Mail address of the user."`
	Reason string `required:"" help:"Why, in 10 to 500 characters. It is kept, and sealed with the user's key."`
}

func (u someone) act(ctx context.Context, f func(a *app.App, id string) error) error {
	return with(ctx, func(a *app.App) error {
		id, err := a.Accounts.FindUser(ctx, u.Email)
		if err != nil {
			return err
		}
		return f(a, id)
	})
}

type userDisable struct{ someone }

func (u userDisable) Run(ctx context.Context) error {
	return u.act(ctx, func(a *app.App, id string) error {
		return a.Accounts.Suspend(ctx, account.AtTheMachine(), id, u.Reason)
	})
}

type userEnable struct{ someone }

func (u userEnable) Run(ctx context.Context) error {
	return u.act(ctx, func(a *app.App, id string) error {
		return a.Accounts.Unsuspend(ctx, account.AtTheMachine(), id, u.Reason)
	})
}

type userClose struct {
	someone
	Child bool `help:"The user turned out to be under 13."`
}

func (u userClose) Run(ctx context.Context) error {
	return u.act(ctx, func(a *app.App, id string) error {
		if u.Child {
			return a.Accounts.CloseChild(ctx, account.AtTheMachine(), id, u.Reason)
		}
		return a.Accounts.CloseFor(ctx, account.AtTheMachine(), id, u.Reason)
	})
}

type userResetFactors struct{ someone }

func (u userResetFactors) Run(ctx context.Context) error {
	return u.act(ctx, func(a *app.App, id string) error {
		return a.Accounts.ResetFactors(ctx, account.AtTheMachine(), id, u.Reason)
	})
}

type userRole struct {
	someone
	Role string `arg:"" enum:"support,privacy,operator,none" help:"One of ${enum}."`
}

func (u userRole) Run(ctx context.Context) error {
	role := account.Role(u.Role)
	if u.Role == "none" {
		role = account.NoRole
	}
	return u.act(ctx, func(a *app.App, id string) error {
		return a.Accounts.SetRole(ctx, account.AtTheMachine(), id, role, u.Reason)
	})
}

type userDisclose struct {
	someone
	Case      string `required:"" help:"Reference of the case at the authority."`
	Authority string `required:"" help:"To whom."`
	Scope     string `required:"" help:"Which data."`
	MayBeTold string `required:"" enum:"yes,no" help:"Whether the user may learn of it: ${enum}."`
}

func (u userDisclose) Run(ctx context.Context) error {
	return u.act(ctx, func(a *app.App, id string) error {
		d := account.Disclosure{Case: u.Case, Authority: u.Authority, Scope: u.Scope, MayBeTold: u.MayBeTold == "yes"}
		return a.Accounts.Disclose(ctx, account.AtTheMachine(), id, d, u.Reason)
	})
}

// readPassword reads one line, until a signal says that nobody wants to type it.
func readPassword(ctx context.Context, r io.Reader) (string, error) {
	if f, ok := r.(*os.File); ok && onTerminal(f) {
		fmt.Fprintln(os.Stderr, "Password (shown as you type; pipe it in to avoid that):")
	}
	type answer struct {
		line string
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
		read <- answer{line, err}
	}()
	var line string
	select {
	case a := <-read:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return "", a.err
		}
		line = a.line
	case <-ctx.Done():
		return "", errors.New("stopped before a password came")
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", errors.New("no password came on standard input")
	}
	return line, nil
}

type keyCreate struct {
	Email   string        `required:"" help:"Mail address of the user."`
	Reason  string        `default:"at the machine" help:"Why, in 10 to 500 characters. It is kept, sealed with the user's key, and mailed to the user."`
	Name    string        `default:"command line" help:"What the key is for."`
	Scope   []string      `default:"generate,read" help:"What it may do: ${enum}. admin is for staff, and no route takes it yet." enum:"generate,read,webhooks,account,admin"`
	Expires time.Duration `help:"Valid for this long, such as 720h; without it the key does not expire."`
}

func (k keyCreate) Run(ctx context.Context) error {
	return someone{k.Email, k.Reason}.act(ctx, func(a *app.App, id string) error {
		var expires time.Time
		if k.Expires != 0 {
			expires = time.Now().Add(k.Expires)
		}
		token, _, err := a.Accounts.CreateKeyFor(ctx, account.AtTheMachine(), id, k.Name, k.Scope, expires, k.Reason)
		if err != nil {
			return err
		}
		fmt.Println(token)
		return nil
	})
}

type keyList struct{ someone }

func (k keyList) Run(ctx context.Context) error {
	return k.act(ctx, func(a *app.App, id string) error {
		keys, err := a.Accounts.KeysFor(ctx, account.AtTheMachine(), id, k.Reason)
		if err != nil {
			return err
		}
		w := table("ID", "PREFIX", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "REVOKED")
		for _, key := range keys {
			row(w, key.ID, key.Prefix, key.Name, strings.Join(key.Scopes, ","), when(key.CreatedAt), when(key.ExpiresAt), when(key.LastUsedAt), when(key.RevokedAt))
		}
		return w.Flush()
	})
}

type keyRevoke struct {
	someone
	ID string `arg:"" help:"The key's id, from zimage key list."`
}

func (k keyRevoke) Run(ctx context.Context) error {
	return k.act(ctx, func(a *app.App, id string) error {
		return a.Accounts.RevokeKeyFor(ctx, account.AtTheMachine(), id, k.ID, k.Reason)
	})
}

type enginesList struct{}

func (enginesList) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		engines, err := a.Generate.ListEngines(ctx)
		if err != nil {
			return err
		}
		if len(engines) == 0 {
			fmt.Println("No worker is running.")
			return nil
		}
		w := table("LANE", "ENGINE", "KIND", "STATE", "BUSY", "SLOTS", "FAILURES", "LAST ERROR", "WORKER")
		for _, e := range engines {
			state := e.State
			if e.Drained && state == engine.StateReady {
				state = "ready (drain asked for)"
			}
			row(w, e.Lane, e.Name, e.Kind, state, fmt.Sprint(e.Busy), fmt.Sprint(e.Slots), fmt.Sprint(e.Failures), e.ErrorCode, e.Worker)
		}
		return w.Flush()
	})
}

type enginesDrain struct {
	Name string `arg:"" help:"The engine's name in the engines file."`
}

func (e enginesDrain) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error { return a.Generate.DrainEngine(ctx, e.Name, true) })
}

type enginesResume struct {
	Name string `arg:"" help:"The engine's name in the engines file."`
}

func (e enginesResume) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error { return a.Generate.DrainEngine(ctx, e.Name, false) })
}

type engineExample struct{}

func (engineExample) Run() error {
	_, err := os.Stdout.Write(engine.Example)
	return err
}

type settingsCommand struct{}

func (settingsCommand) Run() error {
	c, err := config.Load(nil)
	w := table("SETTING", "VALUE", "FROM")
	for _, l := range c.Redacted() {
		row(w, l.Name, l.Value, l.Source)
	}
	return errors.Join(w.Flush(), err)
}

func table(head ...string) *tabwriter.Writer {
	w := tabwriter.NewWriter(os.Stdout, 2, 4, 2, ' ', 0)
	row(w, head...)
	return w
}

func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04")
}
