package privacy_test

import (
	"errors"
	"slices"
	"testing"

	"zimage/internal/privacy"
)

var errKilled = errors.New("killed")

// A run that ends before or after any step is gone on with by another process, and
// ends with one receipt and nothing left.
func TestPromise_R7_KilledAtEveryStep(t *testing.T) {
	everywhere(t, func(t *testing.T, h *home) {
		other := h.live("other", 1)
		before := h.found(other.id)
		type place struct {
			step string
			done bool
		}
		var places []place
		for _, s := range privacy.Steps() {
			places = append(places, place{s, false}, place{s, true})
		}
		for i, at := range places {
			p := h.live("ann"+string(rune('a'+i)), 2)
			id, secret := h.close(p)
			killed := false
			h.privacy.EndAt(func(step string, done bool) error {
				if !killed && step == at.step && done == at.done {
					killed = true
					return errKilled
				}
				return nil
			})
			if err := h.erase(id); !errors.Is(err, errKilled) {
				t.Fatalf("%v: %v", at, err)
			}
			h.options.Registry = nil
			h.rooms()
			if err := h.erase(id); err != nil {
				t.Fatalf("%v: %v", at, err)
			}
			h.erased(p)
			r := h.receipt(id, secret)
			if n := h.count(`SELECT count(*) FROM erasures WHERE subject = ? AND completed_at > 0`, p.id); n != 1 || r.State != "complete" {
				t.Errorf("%v: %d receipts, %s", at, n, r.State)
			}
			for _, s := range r.Stores {
				want := map[string]int64{"objects images/": 4, "main images": 3, "main users": 1, "main sessions": 1}[s.Store+" "+s.Name]
				if want > 0 && s.Name != "sessions" && s.Deleted != want {
					t.Errorf("%v: %s %s: %d deleted, want %d", at, s.Store, s.Name, s.Deleted, want)
				}
			}
		}
		if after := h.found(other.id); !slices.Equal(sorted(before), sorted(after)) || after["main/images"] != before["main/images"] {
			t.Errorf("somebody else had %v and has %v", before, after)
		}
		if got := h.count(`SELECT count(*) FROM subjects WHERE state = 'erased'`); got != len(places) {
			t.Errorf("%d of %d are erased", got, len(places))
		}
	})
}
