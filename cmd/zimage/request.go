package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"zimage/internal/app"
	"zimage/internal/privacy"
)

type requestList struct {
	Overdue bool   `help:"Only those behind their deadline."`
	All     bool   `help:"Also those that are closed."`
	After   string `help:"Go on after this id."`
	Limit   int    `default:"100" help:"How many."`
}

func (r requestList) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		which := privacy.RequestsOpen
		switch {
		case r.Overdue:
			which = privacy.RequestsOverdue
		case r.All:
			which = privacy.RequestsAll
		}
		list, err := a.Privacy.StaffRequests(ctx, which, r.After, min(max(r.Limit, 1), 10_000))
		if err != nil {
			return err
		}
		w := table("REQUEST", "KIND", "STATE", "FROM", "ACCOUNT", "RECEIVED", "OPENED", "DUE", "CLOSED", "OUTCOME")
		for _, one := range list {
			state := string(one.State)
			if one.Overdue {
				state += ", overdue"
			}
			row(w, one.ID, string(one.Kind), state, one.Origin, one.Subject, when(one.Received), when(one.OpenedAt), when(one.DueAt), when(one.ClosedAt), string(one.Outcome))
		}
		return w.Flush()
	})
}

type requestOpen struct {
	Email    string `required:"" help:"Mail address that somebody wrote from. A code is sent to it."`
	Kind     string `arg:"" enum:"access,export,erasure,rectification,restriction,objection,do_not_sell" help:"One of ${enum}."`
	Note     string `help:"What they ask for. It is sealed."`
	Received string `placeholder:"DAY" help:"The day on which the letter came, such as 2026-01-12, in UTC and at most 60 days ago; today without. The deadline counts from it."`
	Reason   string `required:"" help:"Where it comes from, such as a letter and its date, in 10 to 500 characters. It is kept."`
}

func (r requestOpen) Run(ctx context.Context) error {
	var received time.Time
	if r.Received != "" {
		var err error
		if received, err = time.Parse(time.DateOnly, r.Received); err != nil {
			return errors.New("write --received as a day, such as 2026-01-12")
		}
	}
	return with(ctx, func(a *app.App) error {
		one, err := a.Privacy.OpenRequest(ctx, officer(a, r.Reason), r.Email, privacy.RequestKind(r.Kind), r.Note, received)
		if err != nil {
			return err
		}
		fmt.Println(one.ID)
		return nil
	})
}

type requestConfirm struct {
	Code string `arg:"" help:"The code, as it came back from the address."`
}

func (r requestConfirm) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		one, err := a.Privacy.ConfirmRequest(ctx, r.Code)
		if err != nil {
			return err
		}
		fmt.Printf("%s is %s %s\n", one.ID, one.State, one.Outcome)
		return nil
	})
}

type requestShow struct {
	ID     string `arg:"" help:"The request, from zimage request list."`
	Reason string `required:"" help:"Why you open it, in 10 to 500 characters. It is kept, and the person sees it."`
}

func (r requestShow) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		one, err := a.Privacy.ShowRequest(ctx, officer(a, r.Reason), r.ID)
		if err != nil {
			return err
		}
		fmt.Printf("%s, %s, received %s, opened %s, due %s\n", one.Kind, one.State, when(one.Received), when(one.OpenedAt), when(one.DueAt))
		if !one.ActsAt.IsZero() && one.Ref == "" {
			fmt.Printf("Waits until %s: its person can withdraw it\n", when(one.ActsAt))
		}
		if one.Address != "" {
			fmt.Printf("From: %q\n", one.Address)
		}
		fmt.Printf("Asks: %q\n", one.Note)
		return nil
	})
}

type requestClose struct {
	ID      string `arg:"" help:"The request, from zimage request list."`
	Outcome string `required:"" enum:"done,refused,withdrawn,nothing_held" help:"One of ${enum}."`
	Reason  string `required:"" help:"Why, or what was done, in 10 to 500 characters. It is kept, and mailed to the person with how to complain."`
}

func (r requestClose) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		_, err := a.Privacy.CloseRequest(ctx, officer(a, r.Reason), r.ID, privacy.RequestOutcome(r.Outcome), r.Reason)
		return err
	})
}
