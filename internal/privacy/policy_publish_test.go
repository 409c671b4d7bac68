package privacy_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/events"
	"zimage/internal/privacy"
)

// A version with a later date comes in force, with one entry in the ledger, however
// many processes bring it; whatever else is not in force does not start.
func TestPromise_R3_OnlyThePolicyInForceIsApplied(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		as := func(version string, month time.Month, days int) {
			h.options.Policy = privacy.DefaultPolicy()
			h.options.Policy.Version, h.options.Policy.Date = version, time.Date(2026, month, 1, 0, 0, 0, 0, time.UTC)
			h.options.Policy.Windows.GeneratedContent = privacy.Days(days)
			h.rooms()
			ledger := privacy.NewLedger(privacy.LedgerOptions{DB: h.db, Vault: h.vault, Clock: h.clock})
			h.privacy.Events = events.New(ledger.Happened, h.privacy.Happened)
		}
		publish := func(says ...string) {
			t.Helper()
			var work sync.WaitGroup
			for range 3 {
				work.Go(func() {
					err := h.privacy.Publish(context.Background())
					if (err != nil) != (len(says) > 0) {
						t.Errorf("%s: %v, want an error with %q", h.options.Policy.Version, err, says)
						return
					}
					for _, part := range says {
						if !strings.Contains(err.Error(), part) {
							t.Errorf("%s: %v, without %q", h.options.Policy.Version, err, part)
						}
					}
				})
			}
			work.Wait()
		}
		as("v1", time.January, 90)
		publish()
		publish()
		old := h.privacy
		as("v1", time.January, 60)
		publish("version v1 is in force and says something else", "a new version")
		as("v2", time.February, 120)
		publish()
		publish()
		as("v1", time.January, 90)
		publish("version v2 of 2026-02-01 is in force", "version v1 of 2026-01-01", "name the file of version v2")
		as("v1", time.March, 90)
		publish("version v1 was before it")
		as("v3", time.February, 90)
		publish("version v2 of 2026-02-01 is in force")
		if n := h.count(`SELECT count(*) FROM policies`); n != 2 {
			t.Errorf("%d policies are kept", n)
		}
		if n := h.count(`SELECT count(*) FROM ledger_entries WHERE kind = 'policy.published'`); n != 2 {
			t.Errorf("%d policies are in the ledger", n)
		}
		// One that started before, and still runs.
		if err := old.RunPurge(ctx, "generations"); errors.Unwrap(err) == nil || !strings.Contains(errors.Unwrap(err).Error(), "policy version v2") {
			t.Errorf("a sweep by the policy before: %v", err)
		}
		as("v2", time.February, 120)
		must(t, h.privacy.RunPurge(ctx, "generations"))
	})
}
