package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"zimage/internal/app"
	"zimage/internal/config"
	"zimage/internal/prove"
)

type proveCommand struct {
	Scratch  bool          `help:"Prove it on an installation that is made for this, on embedded parts, and removed afterwards."`
	URL      string        `help:"The API's address, if it is not the public one."`
	Mail     string        `placeholder:"YOU@DOMAIN" help:"With a mail server: an address that you read. The person gets YOU+WORD@DOMAIN, and you are asked for the mailed code."`
	Log      []string      `placeholder:"FILE" sep:"none" help:"A log file or folder of the running processes; may be repeated."`
	Engine   []string      `placeholder:"FOLDER" sep:"none" help:"A folder in which engines keep files; may be repeated."`
	Folder   []string      `placeholder:"FOLDER" sep:"none" help:"Any other folder in which something lies, such as a bucket's disk; may be repeated."`
	Postgres string        `placeholder:"FOLDER" help:"PostgreSQL's data folder, when it can be read here."`
	Redis    string        `placeholder:"FOLDER" help:"Redis' folder, when it can be read here. Its dump is written for each look."`
	Temp     string        `placeholder:"FOLDER" default:"${temp}" help:"The folder of temporary files."`
	Plant    []string      `placeholder:"PLACE" sep:"none" help:"Leave a canary in this place before the last look, to see that the command fails then; may be repeated."`
	Wait     time.Duration `default:"15m" help:"How long the erasure may take."`
	JSON     bool          `help:"Print the report as JSON."`
}

func (c proveCommand) Run(ctx context.Context) error {
	o := app.ProveOptions{
		URL: c.URL, Mail: c.Mail, Logs: c.Log, Engines: c.Engine, Folders: c.Folder, Postgres: c.Postgres, Redis: c.Redis, Temp: c.Temp,
		PlantIn: c.Plant, Wait: c.Wait, Code: askCode,
		Tell: func(what string) { fmt.Fprintln(os.Stderr, "· "+what) },
	}
	var report prove.Report
	prove := func(a *app.App) (err error) {
		report, err = a.Prove(ctx, o)
		return err
	}
	var err error
	if c.Scratch {
		err = scratch(ctx, &o, prove)
	} else {
		err = with(ctx, prove)
	}
	if c.JSON {
		text, failed := json.MarshalIndent(report, "", "  ")
		if failed != nil {
			return failed
		}
		fmt.Println(string(text))
	} else if len(report.Sent) > 0 {
		show(report)
	}
	if err != nil {
		return fmt.Errorf("nothing is proven: %w", err)
	}
	if wrong := report.Wrong(); len(wrong) > 0 {
		return errors.New("canaries were found:\n  " + strings.Join(wrong, "\n  "))
	}
	return nil
}

func show(r prove.Report) {
	fmt.Printf("Sent through:     %s\n", strings.Join(r.Sent, ", "))
	if len(r.NotSent) > 0 {
		fmt.Printf("Not sent:         %s\n", strings.Join(r.NotSent, ", "))
	}
	fmt.Printf("In the export:    %s\n", strings.Join(r.Exported, ", "))
	if r.Erased > 0 {
		fmt.Printf("Erased, verified: after %s, receipt %s\n", r.Erased.Round(time.Second), r.Receipt)
	}
	fmt.Println()
	w := table("PLACE", "CANARY LEFT ON PURPOSE", "WHILE THE ACCOUNT LIVES", "AFTER ITS ERASURE")
	looked := func(c prove.Count, readable string) string {
		if c.Things == 0 && c.Bytes == 0 && c.Older == 0 {
			return "nothing there"
		}
		open := 0
		for _, f := range c.Found {
			if f.Open != "" {
				open++
			}
		}
		text := fmt.Sprintf("looked at %d things / %d bytes, canaries found %d", c.Things, c.Bytes, len(c.Found)-open)
		if open > 0 {
			text += fmt.Sprintf(", and %d that may stand there", open)
		}
		if c.Unread > 0 {
			text += fmt.Sprintf(", could not read %d", c.Unread)
		}
		if readable != "" && len(c.Found) > 0 {
			text += " (" + readable + ")"
		}
		return text
	}
	for _, p := range r.Places {
		row(w, p.Name, p.Control, looked(p.Life, p.Readable), looked(p.After, ""))
	}
	_ = w.Flush() // standard output
}

// askCode asks who reads the mailbox.
func askCode(address string) (string, error) {
	fmt.Fprintf(os.Stderr, "A code was mailed to %s. Type it here:\n", address)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if line = strings.TrimSpace(line); line == "" {
		return "", errors.Join(errors.New("no code came on standard input"), err)
	}
	return line, nil
}

// scratch runs f on an installation in a folder of its own, with its API, worker
// and scheduler in this process.
func scratch(ctx context.Context, o *app.ProveOptions, f func(*app.App) error) (err error) {
	folder, err := os.MkdirTemp("", "zimage-prove-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	environ := env.ToMap(os.Environ())
	for _, v := range config.Variables() { // its stores are its own
		switch strings.TrimPrefix(v.Name, config.Prefix) {
		case "ENGINES", "PROMPT_RULES", "POLICY", "GEOIP":
		default:
			delete(environ, v.Name)
			delete(environ, v.Name+"_FILE")
		}
	}
	for _, name := range []string{"LISTEN", "METRICS_LISTEN"} {
		if environ[config.Prefix+name], err = freeAddress(); err != nil {
			return err
		}
	}
	environ[config.Prefix+"DATA"] = filepath.Join(folder, "data")
	environ[config.Prefix+"LOG_LEVEL"] = "debug"
	c, err := config.ForRole(environ, config.RoleUp)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return err
	}
	if _, err := app.CreateRoots(c); err != nil {
		return err
	}
	name := filepath.Join(folder, "log")
	log, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	o.Logs = append(o.Logs, name)
	a, err := app.Open(ctx, c, "prove", app.Version(), app.NewLog(c, log))
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- a.Run(running, nil, func() { close(started) }, config.RoleAPI, config.RoleWorker, config.RoleScheduler)
	}()
	select {
	case <-started:
		err = f(a)
		stop()
		err = errors.Join(err, <-ended)
	case err = <-ended:
		stop()
	}
	return errors.Join(err, a.Close())
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed at once
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
