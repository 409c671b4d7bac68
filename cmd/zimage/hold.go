package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"zimage/internal/account"
	"zimage/internal/app"
	"zimage/internal/privacy"
	"zimage/internal/subject"
)

// officer is who acts for people's rights at the machine, and why.
func officer(a *app.App, reason string) privacy.By {
	return a.Accounts.Officer(account.AtTheMachine(), reason)
}

// review is a date of review so many days ahead; zero, which is the latest, for all
// that there are.
func review(days int) time.Time {
	ahead := time.Duration(days) * 24 * time.Hour
	if ahead == subject.ReviewWithin {
		return time.Time{}
	}
	return time.Now().Add(ahead)
}

type holdPlace struct {
	Account   string `required:"" help:"Whose record it is: a mail address, or the id of an account, which may be erased."`
	Table     string `arg:"" enum:"consents,generations,images,ledger_details,mails,objections,users" help:"One of ${enum}."`
	Record    string `arg:"" help:"Id of the record."`
	Case      string `required:"" help:"Reference of the case, and nothing else."`
	MayBeTold string `required:"" enum:"yes,no" help:"Whether the user may learn of it: ${enum}."`
	Days      int    `default:"90" help:"Days until somebody looks again whether it is needed, at most 90."`
	Reason    string `required:"" help:"On which ground, in 10 to 500 characters. It is kept."`
}

func (h holdPlace) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		id := h.Account
		if strings.Contains(id, "@") {
			var err error
			if id, err = a.Accounts.FindUser(ctx, id); err != nil {
				return err
			}
		}
		placed, err := a.Privacy.PlaceHold(ctx, officer(a, h.Reason), privacy.Hold{
			Subject: id, Table: h.Table, Record: h.Record, Case: h.Case, MayBeTold: h.MayBeTold == "yes", ReviewAt: review(h.Days),
		})
		if err != nil {
			return err
		}
		fmt.Println(placed.ID)
		return nil
	})
}

type holdList struct {
	Due   bool   `help:"Only those whose review is due."`
	All   bool   `help:"Also those that were released."`
	After string `help:"Go on after this id."`
	Limit int    `default:"100" help:"How many."`
}

func (h holdList) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		which := privacy.HoldsOpen
		switch {
		case h.Due:
			which = privacy.HoldsDue
		case h.All:
			which = privacy.HoldsAll
		}
		list, err := a.Privacy.Holds(ctx, which, "", h.After, min(max(h.Limit, 1), 10_000))
		if err != nil {
			return err
		}
		w := table("HOLD", "ACCOUNT", "TABLE", "RECORD", "CASE", "SINCE", "REVIEW", "RELEASED")
		for _, one := range list {
			row(w, one.ID, one.Subject, one.Table, one.Record, one.Case, when(one.PlacedAt), when(one.ReviewAt), when(one.ReleasedAt))
		}
		return w.Flush()
	})
}

type holdRenew struct {
	ID     string `arg:"" help:"The hold, from zimage hold list."`
	Days   int    `default:"90" help:"Days until somebody looks again, at most 90."`
	Reason string `required:"" help:"Why it is still needed, in 10 to 500 characters. It is kept."`
}

func (h holdRenew) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error {
		_, err := a.Privacy.RenewHold(ctx, officer(a, h.Reason), h.ID, review(h.Days))
		return err
	})
}

type holdRelease struct {
	ID     string `arg:"" help:"The hold, from zimage hold list."`
	Reason string `required:"" help:"Why, in 10 to 500 characters. It is kept."`
}

func (h holdRelease) Run(ctx context.Context) error {
	return with(ctx, func(a *app.App) error { return a.Privacy.ReleaseHold(ctx, officer(a, h.Reason), h.ID) })
}
