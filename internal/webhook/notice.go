package webhook

import (
	"context"
	"fmt"
	"net/url"
)

// host is what a mail may say of an endpoint's address: the rest may hold a secret.
func (s *Service) host(ctx context.Context, r row) (string, error) {
	address, err := s.open(ctx, r, "url", r.URL)
	if err != nil {
		return "", fmt.Errorf("open a webhook: %w", err)
	}
	if u, err := url.Parse(address); err == nil {
		return u.Hostname(), nil
	}
	return "an address of yours", nil
}
