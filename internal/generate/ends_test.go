package generate

import (
	"testing"

	"zimage/internal/events"
)

// What is deleted before its end is told to have been canceled, once; what has an end
// already has no other.
func TestADeletionBeforeTheEndIsToldAsAnEnd(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		made := r.made(r.ada)
		door := newGate(true)
		r.engine.play(door.script)
		running := r.submit(r.ada)
		<-door.entered
		queued := r.submit(r.ada)
		if n, err := r.service.DeleteMany(t.Context(), r.ada, []string{made.ID, running.ID, queued.ID}, false); n != 3 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		close(door.open)
		r.await(r.ben, r.submit(r.ben).ID, Succeeded) // the slot is free again: the canceled one has stopped
		for id, want := range map[string]int{made.ID: 0, running.ID: 1, queued.ID: 1} {
			if n := r.told.of(events.GenerationCanceled, id); n != want || r.told.of(events.GenerationDeleted, id) != 1 {
				t.Errorf("canceled %d times, want %d", n, want)
			}
		}
	})
}
