package privacy

import (
	"context"

	"zimage/internal/jobs"
)

// EndAt has f called before and after each step of an erasure; its error ends the
// erasure there, as a killed process would.
func (s *Service) EndAt(f func(step string, done bool) error) { s.at = f }

// Issue writes a receipt once more.
func (s *Service) Issue(ctx context.Context, id string) error { return s.issue(ctx, id) }

// RunPurge is the job that sweeps a table.
func (s *Service) RunPurge(ctx context.Context, table string) error {
	return s.purgeKind().Run(ctx, &jobs.Run{Job: jobs.Job{Ref: table}})
}
