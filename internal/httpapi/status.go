package httpapi

import (
	"context"
	"time"

	"zimage/internal/privacy"
)

type statusView struct {
	At         time.Time          `json:"at" doc:"When this was measured."`
	Kept       bool               `json:"kept" doc:"Whether every promise that the program watches is kept."`
	Broken     []promiseView      `json:"broken" nullable:"false" doc:"Promises that are broken now."`
	Policy     statusPolicyView   `json:"policy" doc:"The policy in force."`
	Retention  []retentionView    `json:"retention" nullable:"false" doc:"The oldest record of each kind against the time that it may be kept. Records that a legal hold keeps are left out."`
	Deadlines  []deadlineView     `json:"deadlines" nullable:"false" doc:"What is asked for and not complete: whether all of it is in time and, where ten or more are open, the slowest."`
	Sweeps     []recurringView    `json:"sweeps" nullable:"false" doc:"What deletes and looks after data by itself."`
	Comparison *comparisonView    `json:"objects,omitempty" doc:"What lies in the object store against the database. Left out before the first comparison."`
	Checkpoint ledgerCheckpointID `json:"ledger" doc:"The checkpoint of the ledger for everybody; the whole of it is at /v1/privacy/ledger/checkpoint."`
}

type comparisonView struct {
	At      time.Time `json:"at" doc:"When database and object store were last compared, both ways."`
	Orphans int       `json:"orphans,omitempty" minimum:"10" doc:"Objects that nothing needed; they were deleted. Left out below ten."`
	Refused int       `json:"refused,omitempty" minimum:"10" doc:"Objects that nothing seems to need and that are not deleted unseen: too many, or of people whom the database does not know. Left out below ten; that there are any is told as a broken promise."`
	Unknown int       `json:"unknown,omitempty" minimum:"10" doc:"Objects of which nobody can tell whose they are; they are never deleted. Left out below ten."`
	Missing int       `json:"missing,omitempty" minimum:"10" doc:"Objects that were needed and not there. Left out below ten; that any is missing is told as a broken promise."`
}

type promiseView struct {
	Code  string `json:"code" doc:"Stays the same from version to version."`
	Words string `json:"words" doc:"What was promised."`
}

type statusPolicyView struct {
	Version string `json:"version" doc:"What consents are given to."`
	Date    string `json:"date" format:"date" doc:"In force since."`
}

type retentionView struct {
	Category   string   `json:"category" enum:"account,content,usage,security,communication,operations" doc:"As the sections of an export."`
	Table      string   `json:"table" doc:"Of the data map."`
	Columns    []string `json:"columns,omitempty" doc:"What of the record becomes empty then; left out: all of it goes."`
	Keeps      string   `json:"keeps" doc:"How long it may be kept." example:"90 days"`
	OldestDays *int     `json:"oldest_days,omitempty" doc:"Whole days since the time of the oldest record began. Left out: there is none, or each has its own end."`
	LateDays   *int     `json:"late_days,omitempty" doc:"Whole days since the end of the record that ended first. Left out: none has ended."`
	Kept       bool     `json:"kept" doc:"Whether nothing waits for its deletion for more than two hours."`
}

type deadlineView struct {
	Kind       string `json:"kind" doc:"erasures, or requests."`
	Open       *int   `json:"open,omitempty" minimum:"10" doc:"How many are open. Left out below ten."`
	OldestDays *int   `json:"oldest_days,omitempty" doc:"Whole days since the oldest open one was asked for. Left out where fewer than ten are open."`
	DueInDays  *int   `json:"due_in_days,omitempty" doc:"Whole days until the first of them is due; below 0: it is late. Left out where fewer than ten are open."`
	Kept       bool   `json:"kept" doc:"Whether none is behind its deadline."`
}

type recurringView struct {
	Kind        string     `json:"kind" doc:"Of the job."`
	Every       int64      `json:"every_seconds" doc:"How often it comes round."`
	LastSuccess *time.Time `json:"last_success,omitempty" doc:"When it last succeeded. Left out: not within the day for which jobs are remembered."`
	Kept        bool       `json:"kept" doc:"Whether it comes round and succeeds."`
}

type ledgerCheckpointID struct {
	At   time.Time `json:"at" doc:"When the newest one was."`
	Hash []byte    `json:"hash" doc:"Of the newest one. Base64."`
}

type statusOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         statusView
}

func (a *API) getStatus(ctx context.Context, _ *struct{}) (*statusOutput, error) {
	st, err := a.rooms.Privacy.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &statusOutput{CacheControl: "public, max-age=30", Body: status(st)}, nil
}

func status(st privacy.Status) statusView {
	v := statusView{
		At: st.At, Kept: len(st.Broken) == 0, Policy: statusPolicyView{st.Policy, st.Date.Format(time.DateOnly)},
		Broken: []promiseView{}, Retention: []retentionView{}, Deadlines: []deadlineView{}, Sweeps: []recurringView{},
	}
	for _, p := range st.Broken {
		v.Broken = append(v.Broken, promiseView(p))
	}
	for _, r := range st.Retention {
		v.Retention = append(v.Retention, retentionView{Category: r.Category, Table: r.Table, Columns: r.Columns, Keeps: r.Kept,
			OldestDays: r.OldestDays, LateDays: r.LateDays, Kept: !r.Broken})
	}
	for _, d := range st.Deadlines {
		one := deadlineView{Kind: d.Kind, OldestDays: d.OldestDays, DueInDays: d.DueInDays, Kept: !d.Broken}
		if d.Open > 0 {
			one.Open = &d.Open
		}
		v.Deadlines = append(v.Deadlines, one)
	}
	for _, w := range st.Sweeps {
		one := recurringView{Kind: w.Kind, Every: int64(w.Every.Seconds()), Kept: !w.Broken}
		if !w.LastSuccess.IsZero() {
			one.LastSuccess = &w.LastSuccess
		}
		v.Sweeps = append(v.Sweeps, one)
	}
	if c := st.Comparison; c != nil {
		v.Comparison = &comparisonView{c.At, c.Orphans, c.Refused, c.Unknown, c.Missing}
	}
	v.Checkpoint = ledgerCheckpointID{At: st.Checkpoint.At, Hash: st.Checkpoint.Hash}
	return v
}

var statusDoc = doc{
	id: "get-privacy-status", tag: tagPrivacy, summary: "Whether the privacy policy is kept",
	description: "What is stored against what is promised: how old the oldest of each kind is, what is late, when it was last swept, and which promises are broken now. " +
		"It names nobody: ages are whole days, and numbers below ten are left out, with the ages of what so few have asked for. It is measured anew every half minute, however many ask.",
	answers: ok("As it was within the last half minute.", statusView{
		At: sampleAt, Broken: []promiseView{{Code: "retention_content", Words: "No record of the category content is kept longer than its time."}},
		Policy: statusPolicyView{"2026-01-01", "2026-01-01"},
		Retention: []retentionView{
			{Category: "content", Table: "images", Columns: []string{"sha256"}, Keeps: "90 days", OldestDays: pointer(91), LateDays: pointer(1)},
			{Category: "security", Table: "sessions", Keeps: "90 days", OldestDays: pointer(12), Kept: true},
		},
		Deadlines:  []deadlineView{{Kind: "erasures", Open: pointer(12), OldestDays: pointer(1), DueInDays: pointer(28), Kept: true}},
		Sweeps:     []recurringView{{Kind: "generation:sweep", Every: 3600, LastSuccess: pointer(sampleAt), Kept: true}},
		Comparison: &comparisonView{At: sampleAt, Orphans: 12},
		Checkpoint: ledgerCheckpointID{At: sampleAt, Hash: sampleHash[:]},
	}, "Cache-Control"),
}
