package privacy

import (
	"context"
	"errors"
	"time"
)

const (
	// ClocksApart is by how much the service's clock, which is the database's, and that
	// of a machine may differ. Beyond it nothing is deleted because of a time: a clock
	// that steps by weeks would end everybody's windows at once.
	ClocksApart = time.Hour
	apartEvery  = time.Hour // it is told in the log
	apartText   = "the database's clock and this machine's differ by more than an hour: until that is mended, nothing is deleted because of a time"
)

var errApart = errors.New(apartText)

// plausible returns an error when this machine has another time than the service.
func (s *Service) plausible(ctx context.Context) error {
	apart := s.Clock.Apart()
	if apart.Abs() <= ClocksApart {
		return nil
	}
	s.apart.Lock()
	defer s.apart.Unlock()
	if s.apart.told.IsZero() || time.Since(s.apart.told) > apartEvery {
		s.apart.told = time.Now()
		s.Log.ErrorContext(ctx, apartText, "apart", apart.Round(time.Second).String())
	}
	return errApart
}
