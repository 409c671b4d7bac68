package privacy

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"zimage/internal/jobs"
	"zimage/internal/problem"
)

type Phase = phase

// The phases of each step of an erasure.
const (
	Before     = phaseBefore
	Unrecorded = phaseUnrecorded
	Recorded   = phaseRecorded
)

// EndAt has f called in each phase of each step of an erasure; its error ends the
// erasure there, as a killed process would.
func (s *Service) EndAt(f func(step string, p Phase) error) { s.at = f }

// MeasureBy has Status measure so, with what Measure does.
func (s *Service) MeasureBy(f func(ctx context.Context, measure func(context.Context) (Status, error)) (Status, error)) {
	s.status.measure = func(ctx context.Context) (Status, error) { return f(ctx, s.Measure) }
}

// AgeStatus lets time pass for what Status keeps.
func (s *Service) AgeStatus(d time.Duration) {
	s.status.mu.Lock()
	defer s.status.mu.Unlock()
	s.status.until = s.status.until.Add(-d)
}

// Issue writes a receipt once more.
func (s *Service) Issue(ctx context.Context, id string) error { return s.issue(ctx, id) }

// EndOf is when a row of a table is deleted whose time began then.
func (s *Service) EndOf(table string, began time.Time) (end time.Time) {
	for _, k := range s.Map.Table(StoreMain, table).Keep {
		if k.Then == Delete {
			end = k.end(s.Policy, began)
		}
	}
	return end
}

// RunPurge is the job that sweeps a table.
func (s *Service) RunPurge(ctx context.Context, table string) error {
	return s.purgeKind().Run(ctx, &jobs.Run{Job: jobs.Job{Ref: table}})
}

// Whoever cannot connect in time is told to come again, and what is a problem
// already stays it.
func TestADatabaseThatDoesNotAnswerIsAway(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	c, err := pgconn.ParseConfig("postgres://zimage@" + silent.Addr().String() + "/zimage?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	c.ConnectTimeout = 50 * time.Millisecond
	_, err = pgconn.ConnectConfig(t.Context(), c)
	if got := problem.CodeOf(away(err)); got != problem.Unavailable {
		t.Errorf("%v is answered %s", err, got)
	}
	known := problem.Wrap(err, problem.NotFound, "There is none.")
	if away(known) != error(known) || away(nil) != nil {
		t.Errorf("%v becomes %v, and nothing %v", known, away(known), away(nil))
	}
}
