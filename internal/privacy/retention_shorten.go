package privacy

import (
	"context"
	"fmt"
	"slices"
	"time"

	"zimage/internal/db"
)

// inDays is the window of the policy that is always given in days.
const inDays = "generated_content"

// ShortenWindows lowers every stored end that is beyond what the policy's windows
// allow, as after a window was shortened: at once hidden, and ended by the next
// sweep. It never raises one: a longer window is for what comes. It returns how many
// rows that were. Any number of processes may do it at once.
func (s *Service) ShortenWindows(ctx context.Context) (lowered int, err error) {
	for i := range s.Map.Tables {
		t := &s.Map.Tables[i]
		for _, k := range t.Keep {
			if k.Window == "" || k.Until == "" || t.Store != StoreMain {
				continue
			}
			n, err := s.shorten(ctx, t, k)
			if lowered += n; err != nil {
				return lowered, fmt.Errorf("shorten a window: %w", err)
			}
		}
	}
	if lowered > 0 {
		s.Log.InfoContext(ctx, "stored ends were lowered to the policy's window", "rows", lowered)
	}
	return lowered, nil
}

func (s *Service) shorten(ctx context.Context, t *Table, k Keep) (lowered int, err error) {
	window, _ := s.Policy.Window(k.Window)
	days, ok := window.Days()
	if !ok {
		return 0, fmt.Errorf("the window %s must be given in days", k.Window)
	}
	longest := (time.Duration(days) * 24 * time.Hour).Milliseconds()
	// As the index on the span has it.
	beyond := k.Until + " - " + k.From + " > ?"
	if k.Unless != "" {
		beyond += " AND " + k.Unless + " = 0"
	}
	for {
		var ids []string
		err := s.DB.Select(ctx, &ids, fmt.Sprintf("SELECT %s FROM %s WHERE %s LIMIT %d", t.record(), t.Name, beyond, eraseBatch), longest)
		if err != nil || len(ids) == 0 {
			return lowered, err
		}
		slices.Sort(ids)
		var n int64
		err = s.DB.Tx(ctx, func(tx *db.Tx) error {
			args := []any{longest}
			for _, id := range ids {
				args = append(args, id)
			}
			n, err = tx.Exec(ctx, "UPDATE "+t.Name+" SET "+k.Until+" = "+k.From+" + ? WHERE "+t.record()+" IN ("+db.Marks(len(ids))+") AND "+beyond,
				append(args, longest)...)
			return err
		})
		if err != nil {
			return lowered, err
		}
		lowered += int(n)
	}
}
