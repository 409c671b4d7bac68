package app

import (
	"context"
	"testing"
	"time"

	"zimage/internal/config"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/webhook"
)

// The rooms tell the journal what people end, and a replay ends it again; and what belongs
// to a delivery goes with it.
func TestTheRoomsAreWiredToTheJournal(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		a := open(t, config.RoleUp, map[string]string{"ZIMAGE_DATABASE_URL": url, "ZIMAGE_DATA": t.TempDir() + "/data", "ZIMAGE_LISTEN": freePort(t), "ZIMAGE_OUTBOUND_LOOPBACK": "true"})
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		exec := func(query string, args ...any) {
			t.Helper()
			_, err := a.db.Exec(ctx, query, args...)
			must(err)
		}
		count := func(query string, args ...any) (n int) {
			t.Helper()
			must(a.db.Get(ctx, &n, query, args...))
			return n
		}
		ann, err := a.Accounts.CreateUser(ctx, "ann@example.org", "correct horse battery")
		must(err)
		address := "http://127.0.0.1/"
		hook, _, err := a.Webhooks.Create(ctx, ann, webhook.Change{URL: &address})
		must(err)
		now := a.clock.Millis()
		exec(`INSERT INTO shares (id, owner, image_id, token_lookup, created_at, expires_at) VALUES ('shr_1', ?, 'img_1', 'x', ?, ?)`, ann, now, now+time.Hour.Milliseconds())

		for kind, id := range map[string]string{"share": "shr_1", "links": ann + "@3", "webhook": hook.ID} {
			_, err := a.keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, erasure, at) VALUES (?, ?, '', ?)`, kind, id, now)
			must(err)
		}
		if n, err := a.Privacy.Unreplayed(ctx); n != 3 || err != nil {
			t.Errorf("%d are to be replayed, %v", n, err)
		}
		if done, err := a.Privacy.Replay(ctx); done != (privacy.Replayed{Ended: 3}) || err != nil {
			t.Errorf("%+v, %v", done, err)
		}
		if n := count(`SELECT count(*) FROM shares`) + count(`SELECT count(*) FROM webhook_endpoints`); n != 0 || count(`SELECT epoch FROM link_epochs WHERE owner = ?`, ann) != 3 {
			t.Errorf("%d shares and webhooks are there", n)
		}
		if n, err := a.Privacy.Unreplayed(ctx); n != 0 || err != nil {
			t.Errorf("%d are to be replayed, %v", n, err)
		}

		must(a.Generate.RevokeLinks(ctx, ann))
		other, _, err := a.Webhooks.Create(ctx, ann, webhook.Change{URL: &address})
		must(err)
		must(a.Webhooks.Delete(ctx, ann, other.ID))
		if n := count(`SELECT count(*) FROM jobs WHERE kind = ? AND party = ? AND ref IN (?, ?)`, privacy.KindEnded, ann, "links "+ann+"@4", "webhook "+other.ID); n != 2 {
			t.Errorf("%d of two ends are to be journalled", n)
		}

		old := a.clock.Now().AddDate(0, 0, -31).UnixMilli()
		exec(`INSERT INTO webhook_deliveries (id, owner, endpoint, event, job_id, state, tries, attempts, error, created_at) VALUES ('whd_1', ?, 'whe_1', 'evt_1', '', 'failed', 1, 1, '', ?)`, ann, old)
		exec(`INSERT INTO webhook_attempts (delivery, n, owner, at, took, status, error) VALUES ('whd_1', 1, ?, ?, 1, 500, '')`, ann, now)
		if n, err := a.Privacy.Purge(ctx, "webhook_deliveries"); n != 1 || err != nil || count(`SELECT count(*) FROM webhook_attempts`) != 0 {
			t.Errorf("%d deliveries are purged, %v, and their attempts stay", n, err)
		}
	})
}
