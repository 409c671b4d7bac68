package generate

import (
	"testing"
	"time"
)

// Soon over are living images of the owner's that were made for longer.
func TestImagesThatEndSoon(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		day := 24 * time.Hour
		month := r.made(r.ada, func(q *Request) { q.N, q.RetentionDays = 3, 30 })
		r.made(r.ada, func(q *Request) { q.RetentionDays = 60 })
		r.made(r.ben, func(q *Request) { q.RetentionDays = 30 })
		soon := func(after string, limit int) []Ending {
			t.Helper()
			list, err := r.service.Expiring(t.Context(), r.ada, r.clock.Now().Add(7*day), 7*day, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		if list := soon("", 10); len(list) != 0 {
			t.Errorf("%+v", list)
		}
		if err := r.service.DeleteImage(t.Context(), r.ada, month.Images[1].ID); err != nil {
			t.Fatal(err)
		}
		r.clock.Advance(24 * day)
		r.made(r.ada, func(q *Request) { q.RetentionDays = 6 })
		list := soon("", 1)
		if len(list) != 1 || list[0].Generation != month.ID {
			t.Fatalf("%+v", list)
		}
		rest := soon(list[0].ID, 10)
		if len(rest) != 1 || rest[0].Generation != month.ID || rest[0].ID == month.Images[1].ID {
			t.Errorf("%+v", rest)
		}
		r.clock.Advance(7 * day)
		if list := soon("", 10); len(list) != 0 {
			t.Errorf("what is over: %+v", list)
		}
	})
}
