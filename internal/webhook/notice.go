package webhook

import (
	"context"
	"fmt"
	"net/url"

	"zimage/internal/db"
	"zimage/internal/mail"
)

// tellDisabled mails an endpoint's owner why it is disabled, and names it by its host:
// the rest of an address may hold a secret.
func (s *Service) tellDisabled(ctx context.Context, tx *db.Tx, r row, why string) error {
	address, err := s.open(ctx, r, "url", r.URL)
	if err != nil {
		return fmt.Errorf("open a webhook: %w", err)
	}
	host := "an address of yours"
	if u, err := url.Parse(address); err == nil {
		host = u.Hostname()
	}
	reason := map[string]string{
		Gone:     "it answered 410, which says that it is gone",
		Failing:  "every call since " + moment(r.FailingSince.Int64).Format("2 January 2006, 15:04 UTC") + " has failed",
		Restored: "the service was restored from a backup that has it as it was before you changed it. Look at all of it, and rotate its secret",
	}[why]
	return s.Tell(ctx, tx, r.Owner, mail.WebhookDisabled, map[string]string{"Endpoint": r.ID, "Host": host, "Why": reason})
}
