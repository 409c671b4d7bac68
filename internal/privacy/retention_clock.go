package privacy

import (
	"context"
	"errors"
	"time"
)

const (
	apartEvery = time.Hour // it is told in the log
	apartText  = "the database's clock and this machine's differ by more than an hour: until that is mended, nothing is deleted because of a time"
)

var errApart = errors.New(apartText)

// plausible returns an error when this machine has another time than the service, whose
// clock is the database's. Then nothing is deleted or done because of a time: a clock that
// steps by weeks would end everybody's windows at once.
func (s *Service) plausible(ctx context.Context) error {
	if s.Clock.Plausible() {
		return nil
	}
	s.apart.Lock()
	defer s.apart.Unlock()
	if s.apart.told.IsZero() || time.Since(s.apart.told) > apartEvery {
		s.apart.told = time.Now()
		s.Log.ErrorContext(ctx, apartText, "apart", s.Clock.Apart().Round(time.Second).String())
	}
	return errApart
}
