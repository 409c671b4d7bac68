package httpapi

import (
	"context"
	"net/http"

	"zimage/internal/account"
	"zimage/internal/problem"
)

var sweepDoc = doc{
	id: "sweep-retention", tag: tagStaff, summary: "End now what is past its time",
	description: "Has every table gone through whose rows end with a window or span, as the scheduler has every hour. For operators and privacy officers. " +
		"Nothing ends before its time by it, and nothing that a hold keeps. A table that waits for its turn already is named with the job that it has.",
	answers: []good{{status: http.StatusAccepted, description: "It will be done.",
		body: sweepsView{Data: []sweepView{{Job: "job_06f3k2m9v0q8r5w1x4y7z2a6bc", Table: "generations"}}}}},
	codes: []problem.Code{},
}

type sweepsView struct {
	Data []sweepView `json:"data" doc:"One for each table."`
}

type sweepView struct {
	Job   string `json:"job" doc:"Id of the job."`
	Table string `json:"table" doc:"That it goes through, with what is part of it."`
}

type sweepsOutput struct{ Body sweepsView }

func (a *API) sweep(ctx context.Context, _ *struct{}) (*sweepsOutput, error) {
	if err := a.rooms.Accounts.AskStaff(ctx, callOf(ctx).who, account.RoleOperator, account.RolePrivacy); err != nil {
		return nil, err
	}
	all, err := a.rooms.Privacy.Sweep(ctx)
	if err != nil {
		return nil, err
	}
	out := &sweepsOutput{Body: sweepsView{Data: []sweepView{}}}
	for _, s := range all {
		out.Body.Data = append(out.Body.Data, sweepView{Job: s.Job, Table: s.Table})
	}
	return out, nil
}
