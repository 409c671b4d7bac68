package privacy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/privacy"
)

// cutOff removes the ledger's newest batch as if it had never been.
func cutOff(t testing.TB, d *db.DB) {
	t.Helper()
	for _, s := range []string{
		`DELETE FROM ledger_details WHERE entry_id IN (SELECT id FROM ledger_entries WHERE sequence >= (SELECT max(first) FROM ledger_batches))`,
		`DELETE FROM ledger_entries WHERE sequence >= (SELECT max(first) FROM ledger_batches)`,
		`DELETE FROM ledger_batches WHERE number = (SELECT max(number) FROM ledger_batches)`,
	} {
		if _, err := d.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}

// An export has every entry that its person sees, over all pages, and a checkpoint
// by which a ledger that is cut off later is found. An entry that somebody changed
// says so, and keeps no export from being made.
func TestPromise_X3_TheExportHasTheLedgerAndACheckpoint(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		ada, ben := r.plant("ada"), r.plant("benjamin")
		ledger := privacy.NewLedger(privacy.LedgerOptions{DB: r.db, Vault: r.vault, Clock: r.clock})
		const entries = 250 // three pages
		for i := range entries {
			r.clock.Advance(time.Second)
			for _, owner := range []string{ada.owner, ben.owner} {
				for _, hidden := range []bool{false, true} {
					r.must(r.db.Tx(ctx, func(tx *db.Tx) error {
						return ledger.Happened(ctx, tx, events.Event{Type: events.ConsentGiven, Subject: owner, At: r.clock.Now(), Hidden: hidden,
							Facts: map[events.Fact]string{events.Purpose: fmt.Sprintf("%s %d %v", owner, i, hidden)}})
					}))
				}
			}
			if i%100 == 0 {
				_, err := ledger.Seal(ctx)
				r.must(err)
			}
		}
		_, err := r.db.Exec(ctx, `UPDATE ledger_details SET details = ? WHERE entry_id = (SELECT min(entry_id) FROM ledger_details WHERE subject = ? AND hidden = 0 AND entry_id <> ?)`,
			[]byte("changed by somebody"), ada.owner, ada.tables["ledger_details"]["entry_id"])
		r.must(err)
		r.clock.Advance(2 * time.Hour) // a checkpoint is of a full hour
		_, archive := r.exported(ada.owner)
		files := unpack(t, archive)
		list := listOf(t, files, "security/ledger.json")
		if len(list) != entries+1 {
			t.Fatalf("%d entries, want %d", len(list), entries+1)
		}
		damaged, sealed := 0, 0
		for i, e := range list[1:] {
			if e["damaged"] == true {
				damaged++
				if e["details"] != nil || i > 0 {
					t.Errorf("entry %d: %v", i, e)
				}
			} else if got, want := fmt.Sprint(e["details"]), fmt.Sprintf("map[purpose:%s %d false]", ada.owner, i); got != want {
				t.Errorf("entry %d is %s, want %s", i, got, want)
			}
			if e["sealed"] == true {
				sealed++
			}
		}
		if damaged != 1 || sealed != 201 {
			t.Errorf("%d are damaged, %d sealed", damaged, sealed)
		}
		if n := strings.Count(string(files["pages/security-ledger-3.html"]), "consent.given"); n != entries+1-200 {
			t.Errorf("the last page shows %d entries", n)
		}

		_, err = r.db.Exec(ctx, `DELETE FROM ledger_details WHERE details = ?`, []byte("changed by somebody")) // as an erasure would
		r.must(err)
		held, err := privacy.ParseCheckpoint(files["manifest.json"])
		r.must(err)
		if report, err := ledger.Verify(ctx, &held, nil); err != nil || report.Batches != 3 {
			t.Errorf("%+v, %v", report, err)
		}
		cutOff(t, r.db)
		var fault *privacy.LedgerFault
		if _, err := ledger.Verify(ctx, &held, nil); !errors.As(err, &fault) {
			t.Errorf("a ledger that was cut off: %v", err)
		}
		if _, err := ledger.Verify(ctx, nil, nil); err != nil {
			t.Errorf("without the checkpoint: %v", err)
		}
	})
}

// So has the receipt of an erasure, signed with it.
func TestPromise_X3_ReceiptsHoldACheckpoint(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := t.Context()
		ledger := privacy.NewLedger(privacy.LedgerOptions{DB: h.db, Vault: h.vault, Clock: h.clock})
		p := h.newcomer("ann")
		id, secret := h.close(p)
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
			return ledger.Happened(ctx, tx, events.Event{Type: events.AccountClosing, Subject: p.id, At: h.clock.Now()})
		}))
		_, err := ledger.Seal(ctx)
		must(t, err)
		h.clock.Advance(2 * time.Hour)
		h.work()
		must(t, h.erase(id))
		r := h.receipt(id, secret)
		if r.Checkpoint == nil || !strings.Contains(r.String(), "checkpoint of 2031-03-03") {
			t.Fatalf("%+v: %s", r.Checkpoint, r)
		}
		signed, err := h.privacy.Receipt(context.Background(), id, secret)
		must(t, err)
		text, err := json.Marshal(signed)
		must(t, err)
		held, err := privacy.ParseCheckpoint(text)
		must(t, err)
		if _, err := ledger.Verify(ctx, &held, nil); err != nil {
			t.Error(err)
		}
		cutOff(t, h.db)
		var fault *privacy.LedgerFault
		if _, err := ledger.Verify(ctx, &held, nil); !errors.As(err, &fault) {
			t.Errorf("a ledger that was cut off: %v", err)
		}
	})
}
