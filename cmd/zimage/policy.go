package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"zimage/internal/app"
	"zimage/internal/config"
	"zimage/internal/privacy"
)

type policyExample struct{}

func (policyExample) Run() error {
	_, err := os.Stdout.Write(privacy.Example)
	return err
}

type policyCheck struct {
	File string `arg:"" help:"The policy file."`
}

func (c policyCheck) Run() error {
	text, err := os.ReadFile(c.File)
	if err != nil {
		return err
	}
	p, err := privacy.ParsePolicy(text)
	if err != nil {
		return err
	}
	fmt.Printf("✓ version %s, in force since %s\n", p.Version, p.Date.Format(time.DateOnly))
	if left := p.Placeholders(); len(left) > 0 {
		fmt.Printf("! still as shipped, which names nobody: %s\n", strings.Join(left, ", "))
	}
	for _, one := range p.Processors {
		switch {
		case one.On():
		case len(one.Serves) == 0:
			fmt.Printf("! the processor %s is off: it has no contract; it serves nothing, so that you alone keep data from it\n", one.ID)
		default:
			fmt.Printf("! the processor %s is off: it has no contract; no process starts whose settings lead to it\n", one.ID)
		}
	}
	return nil
}

type policyRecord struct {
	JSON bool `help:"Print it as JSON instead of Markdown."`
}

func (r policyRecord) Run() error {
	c, err := config.Load(nil)
	if err != nil {
		return err
	}
	record, err := app.ReadRecord(c)
	if err != nil {
		return err
	}
	if !r.JSON {
		fmt.Print(record.Markdown())
		return nil
	}
	e := json.NewEncoder(os.Stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(record)
}
