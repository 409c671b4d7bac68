package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"zimage/internal/account"
	"zimage/internal/problem"
)

type usageBody struct {
	ScreenWidth  int `json:"screen_width" minimum:"1" maximum:"100000" doc:"Of the screen, in pixels of the page."`
	ScreenHeight int `json:"screen_height" minimum:"1" maximum:"100000" doc:"Of the screen, in pixels of the page."`
}

type usageInput struct {
	Body usageBody `contentType:"application/json"`
}

type usageReportInput struct {
	Per  string `query:"per" enum:"day,week" default:"week" doc:"Weeks begin on Monday, in UTC."`
	Last int    `query:"last" minimum:"1" maximum:"400" default:"12" doc:"How many of them, without the one that runs."`
}

type usageCountView struct {
	From    string `json:"from" format:"date" doc:"First day."`
	Feature string `json:"feature" doc:"Id of the operation; anything: all of them together."`
	People  int64  `json:"people_at_least" doc:"How many people, each counted once, rounded down to tens."`
}

type usageReportView struct {
	Data []usageCountView `json:"data" doc:"Oldest first. What fewer than ten people used is left out."`
}

type usageReportOutput struct{ Body usageReportView }

var (
	usageDoc = doc{
		id: "tell-screen", tag: tagAccount, summary: "Tell the size of the screen",
		description: "For pages, and only while the person agrees to analytics: without, it is refused and kept nowhere. It stands in one usage event, sealed.",
		request:     usageBody{ScreenWidth: 1920, ScreenHeight: 1080},
		answers:     []good{{status: http.StatusNoContent, description: "Taken."}},
	}
	usageReportDoc = doc{
		id: "count-usage", tag: tagStaff, summary: "Count which features are used",
		description: "How many people used which feature, by day or week, without saying who. For operators. Small groups are not shown, and counts are rounded down to tens, so that none can be reckoned out.",
		answers:     ok("The counts.", usageReportView{Data: []usageCountView{{From: "2026-01-05", Feature: "create-generation", People: 1240}}}),
		codes:       []problem.Code{problem.InvalidRequest},
	}
)

func (a *API) tellUsage(ctx context.Context, in *usageInput) (*struct{}, error) {
	call := callOf(ctx)
	if err := a.rooms.Privacy.MayMeasure(ctx, call.owner); err != nil {
		return nil, err
	}
	call.screen = fmt.Sprintf("%dx%d", in.Body.ScreenWidth, in.Body.ScreenHeight)
	return nil, nil
}

func (a *API) usageReport(ctx context.Context, in *usageReportInput) (*usageReportOutput, error) {
	if err := a.rooms.Accounts.AskStaff(ctx, callOf(ctx).who, account.RoleOperator); err != nil {
		return nil, err
	}
	counts, err := a.rooms.Usage.Report(ctx, in.Per, in.Last)
	if err != nil {
		return nil, err
	}
	out := &usageReportOutput{Body: usageReportView{Data: make([]usageCountView, 0, len(counts))}}
	for _, c := range counts {
		out.Body.Data = append(out.Body.Data, usageCountView{From: c.From.Format(time.DateOnly), Feature: c.Feature, People: c.People})
	}
	return out, nil
}
