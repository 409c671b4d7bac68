package generate

import (
	"context"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

func (r *rig) hold(tx *db.Tx, table, record string) error {
	_, err := subject.Hold(context.Background(), tx, r.ada, table, record, "case 7", r.clock.Now())
	return err
}

// A hold that is placed while something is being deleted: every way to delete
// waits for it and leaves the record alone.
func TestAHoldStopsADeletionThatHasBegun(t *testing.T) {
	const passesOver = problem.Code("")
	some := func(n int, err error) error {
		if err == nil && n != 0 {
			return problem.New(problem.Internal, "something was removed")
		}
		return err
	}
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		ctx, s := t.Context(), r.service
		both := []string{"generations", "images"}
		cases := []struct {
			name   string
			held   []string
			remove func(g Generation) error
			want   problem.Code
		}{
			{"a generation", both, func(g Generation) error { return s.Delete(ctx, r.ada, g.ID) }, problem.Conflict},
			{"generations", both, func(g Generation) error { return some(s.DeleteMany(ctx, r.ada, []string{g.ID}, false)) }, passesOver},
			{"an image", both, func(g Generation) error { return s.DeleteImage(ctx, r.ada, g.Images[0].ID) }, problem.Conflict},
			{"images", both, func(g Generation) error { return some(s.DeleteImages(ctx, r.ada, []string{g.Images[0].ID}, false)) }, passesOver},
			{"what has expired", both, func(g Generation) error { r.clock.Advance(g.ExpiresAt.Sub(r.clock.Now())); return r.purge() }, passesOver},
		}
		stop := r.work()
		var made []Generation
		for _, c := range cases {
			for range c.held {
				made = append(made, r.made(r.ada, func(q *Request) { q.RetentionDays = len(made) + 1 }))
			}
		}
		stop()
		for _, c := range cases {
			for _, table := range c.held {
				g := made[0]
				made = made[1:]
				record := map[string]string{"generations": g.ID, "images": g.Images[0].ID}[table]
				first, second := testenv.Overtaken(t, r.db, func(tx *db.Tx) error { return r.hold(tx, table, record) }, func() error { return c.remove(g) })
				if first != nil {
					t.Fatal(first)
				}
				if got := problem.CodeOf(second); second != nil && got != c.want || second == nil && c.want != passesOver {
					t.Errorf("%s, held in %s: %v, want %q", c.name, table, second, c.want)
				}
				if n := r.count(`SELECT count(*) FROM generations g JOIN images i ON i.generation_id = g.id WHERE g.id = ? AND g.removed_at = 0 AND i.removed_at = 0`, g.ID); n != 1 {
					t.Errorf("%s, held in %s: it is gone", c.name, table)
				}
			}
		}
	})
}

// The other way round: what is being removed cannot be held any more.
func TestWhatIsBeingRemovedCannotBeHeld(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		stop := r.work()
		whole, part := r.made(r.ada), r.made(r.ada)
		stop()
		removeWhole := func(tx *db.Tx) error {
			g, err := r.service.find(ctx, tx, r.ada, whole.ID)
			if err != nil {
				return err
			}
			return r.service.remove(ctx, tx, g, "user")
		}
		removePart := func(tx *db.Tx) error {
			i, err := r.service.findImage(ctx, tx, r.ada, part.Images[0].ID)
			if err != nil {
				return err
			}
			return r.service.removeImage(ctx, tx, i, "user")
		}
		for _, c := range []struct {
			table, record string
			remove        func(tx *db.Tx) error
		}{{"generations", whole.ID, removeWhole}, {"images", part.Images[0].ID, removePart}} {
			first, second := testenv.Overtaken(t, r.db, c.remove,
				func() error { return r.db.Tx(ctx, func(tx *db.Tx) error { return r.hold(tx, c.table, c.record) }) })
			if first != nil {
				t.Fatal(first)
			}
			wantCode(t, second, problem.DataRemoved)
		}
		// Before the sweep has been there the objects still lie there, and saying that
		// they are held would be false.
		wantCode(t, r.db.Tx(ctx, func(tx *db.Tx) error { return r.hold(tx, "images", whole.Images[0].ID) }), problem.DataRemoved)
	})
}

// Tombstones have their time too, and a hold keeps them beyond it: those of images
// that were removed before their generation was held.
func TestAHoldKeepsTombstones(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		held, free := r.made(r.ada), r.made(r.ada)
		old := r.submit(r.ada)
		r.await(r.ada, old.ID, Succeeded)
		for _, g := range []Generation{held, free} {
			if err := r.service.DeleteImage(ctx, r.ada, g.Images[0].ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.service.Delete(ctx, r.ada, old.ID); err != nil {
			t.Fatal(err)
		}
		r.swept()
		var holds []string
		r.tx(func(ctx context.Context, tx *db.Tx) error {
			id, err := subject.Hold(ctx, tx, r.ada, "generations", held.ID, "case 7", r.clock.Now())
			holds = append(holds, id, "hold_old")
			return err
		})
		// One of a tombstone, as nobody can place it now.
		if _, err := r.db.Exec(ctx, `INSERT INTO holds (id, subject, table_name, row_id, reason_ref, created_at) VALUES ('hold_old', ?, 'generations', ?, 'case 8', 1)`,
			r.ada, old.ID); err != nil {
			t.Fatal(err)
		}
		rows := func() [3]int {
			return [3]int{r.count(`SELECT count(*) FROM images WHERE generation_id = ?`, held.ID), r.count(`SELECT count(*) FROM images WHERE generation_id = ?`, free.ID),
				r.count(`SELECT count(*) FROM generations WHERE id = ?`, old.ID)}
		}
		r.clock.Advance(tombstoneFor + time.Second)
		r.hourly()
		if got := rows(); got != [3]int{1, 0, 1} {
			t.Errorf("after 30 days %v, want the held ones", got)
		}
		r.tx(func(ctx context.Context, tx *db.Tx) error {
			for _, id := range holds {
				if err := subject.Release(ctx, tx, id, r.clock.Now()); err != nil {
					return err
				}
			}
			return nil
		})
		r.hourly()
		if got := rows(); got != [3]int{} {
			t.Errorf("after the release %v, want none", got)
		}
	})
}

// A hold of a generation, placed while the tombstone of one of its images is being
// forgotten.
func TestAHoldStopsATombstoneFromBeingForgotten(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		stop := r.work()
		g := r.made(r.ada)
		if err := r.service.DeleteImage(ctx, r.ada, g.Images[0].ID); err != nil {
			t.Fatal(err)
		}
		r.swept()
		stop()
		r.clock.Advance(tombstoneFor + time.Second)
		first, second := testenv.Overtaken(t, r.db, func(tx *db.Tx) error { return r.hold(tx, "generations", g.ID) }, func() error { return r.purge() })
		if first != nil || second != nil {
			t.Fatal(first, second)
		}
		if n := r.count(`SELECT count(*) FROM images`); n != 1 {
			t.Error("it is forgotten")
		}
	})
}
