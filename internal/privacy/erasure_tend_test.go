package privacy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/subject"
)

// subject has somebody in the main database, in a state since a time.
func (h *home) subject(id string, state subject.State, since time.Time) {
	h.t.Helper()
	h.exec(`INSERT INTO subjects (id, state, created_at, changed_at) VALUES (?, ?, ?, ?)`, id, state, since.UnixMilli(), since.UnixMilli())
}

// However many accounts of the journal are not erased in the end, those that are are
// forgotten.
func TestLinesOfTheErasedAreForgottenBehindOthers(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		old := h.clock.Now().AddDate(0, 0, -100)
		var stuck []any
		for n := range 600 {
			stuck = append(stuck, fmt.Sprintf("sub_stuck%03d", n), old.UnixMilli())
		}
		people := make([]any, 0, 4*600)
		for n := 0; n < len(stuck); n += 2 {
			people = append(people, stuck[n], subject.Active, stuck[n+1], stuck[n+1])
		}
		h.exec(`INSERT INTO subjects (id, state, created_at, changed_at) VALUES `+db.Rows("(?, ?, ?, ?)", 600), people...)
		h.subject("sub_erased", subject.Erased, old)
		_, err := h.keys.Exec(ctx, `INSERT INTO erasure_journal (kind, id, at, erasure) VALUES `+db.Rows("('account', ?, ?, 'era_x')", 601),
			append(stuck, "sub_erased", old.Add(time.Hour).UnixMilli())...)
		must(t, err)
		must(t, h.privacy.Look(ctx, false))
		var left []string
		must(t, h.keys.Select(ctx, &left, `SELECT id FROM erasure_journal ORDER BY id`))
		if len(left) != 600 || !strings.HasPrefix(left[0], "sub_stuck") {
			t.Errorf("%d lines are left, the first of %v", len(left), left[:min(1, len(left))])
		}
	})
}

// An account whose erasure cannot be requested, and one that gets no job, keep no other
// waiting.
func TestAnErasureThatCannotBeginLeavesTheOthers(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		now := h.clock.Now()
		h.subject("sub_1", subject.Closing, now)
		h.subject("sub_2", subject.Closing, now)
		h.subject("sub_3", subject.Closing, now.Add(time.Second))
		begun := func(want ...string) {
			t.Helper()
			var got []string
			must(t, h.db.Select(ctx, &got, `SELECT e.subject FROM erasures e JOIN jobs j ON j.id = e.job_id WHERE j.state = 'queued' ORDER BY e.subject`))
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%v are being erased, want %v", got, want)
			}
		}
		h.exec(`CREATE UNIQUE INDEX refused ON erasures (requested_at)`) // the second
		if err := h.privacy.Look(ctx, false); err == nil || !strings.Contains(err.Error(), "request erasures of closed accounts: 1 fail") {
			t.Errorf("it says %v", err)
		}
		begun("sub_1", "sub_3")
		h.exec(`DROP INDEX refused`)
		must(t, h.privacy.Look(ctx, false))
		begun("sub_1", "sub_2", "sub_3")

		h.exec(`UPDATE jobs SET state = 'canceled' WHERE kind = 'erasure:run'`)
		h.exec(`DELETE FROM jobs WHERE kind = 'erasure:run' AND ref NOT IN (SELECT id FROM erasures WHERE subject = 'sub_1')`)
		h.exec(`CREATE UNIQUE INDEX refused ON jobs (ref)`) // the first
		if err := h.privacy.Look(ctx, false); err == nil || !strings.Contains(err.Error(), "go on with erasures: 1 fail") {
			t.Errorf("it says %v", err)
		}
		begun("sub_2", "sub_3")
		h.exec(`DROP INDEX refused`)
		must(t, h.privacy.Look(ctx, false))
		begun("sub_1", "sub_2", "sub_3")
	})
}
