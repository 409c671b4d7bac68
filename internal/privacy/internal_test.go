package privacy

import "context"

// EndAt has f called before and after each step of an erasure; its error ends the
// erasure there, as a killed process would.
func (s *Service) EndAt(f func(step string, done bool) error) { s.at = f }

// Issue writes a receipt once more.
func (s *Service) Issue(ctx context.Context, id string) error { return s.issue(ctx, id) }
