package webhook

import (
	"context"
	"fmt"
	"net/url"

	"zimage/internal/db"
	"zimage/internal/mail"
)

// whyDisabled tells the owner, in a sentence.
var whyDisabled = map[string]string{
	Gone:     "It answered 410, which says that it is gone.",
	Failing:  "For five days nothing but failure came of calling it.",
	Restored: "The service was restored from a backup, which has it as it was before you changed it: look at all of it, and rotate its secret.",
}

// tellDisabled mails an endpoint's owner why it is disabled.
func (s *Service) tellDisabled(ctx context.Context, tx *db.Tx, r row, why string) error {
	host, err := s.host(ctx, r)
	if err != nil {
		return err
	}
	return s.Tell(ctx, tx, r.Owner, mail.WebhookDisabled, map[string]string{"Endpoint": r.ID, "Host": host, "Why": whyDisabled[why]})
}

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
