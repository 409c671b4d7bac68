package subject_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

// What is asked of many at once is answered as it is of each.
func TestThoseAreWhomMayAllows(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		states := []func(ctx context.Context, tx *db.Tx, id string) error{
			func(context.Context, *db.Tx, string) error { return nil },
			func(ctx context.Context, tx *db.Tx, id string) error { return subject.Restrict(ctx, tx, id, now) },
			func(ctx context.Context, tx *db.Tx, id string) error { return subject.Suspend(ctx, tx, id, now) },
			func(ctx context.Context, tx *db.Tx, id string) error {
				_, err := subject.Close(ctx, tx, id, now)
				return err
			},
			func(ctx context.Context, tx *db.Tx, id string) error {
				if _, err := subject.Close(ctx, tx, id, now); err != nil {
					return err
				}
				return subject.Erase(ctx, tx, id, now)
			},
			func(ctx context.Context, tx *db.Tx, id string) error {
				for _, p := range subject.ObjectionPurposes() {
					if _, err := subject.Object(ctx, tx, id, p, now); err != nil {
						return err
					}
				}
				return nil
			},
		}
		ids := []string{"sub_nobody"}
		for i, set := range states {
			for consent := range 4 { // never asked, given, taken back, taken back and given in one millisecond
				id := fmt.Sprintf("sub_%d_%d", i, consent)
				ids = append(ids, id)
				add(t, d, id)
				change(t, d, func(ctx context.Context, tx *db.Tx) error {
					for _, p := range subject.ConsentPurposes() {
						for n, granted := range map[int][]bool{1: {true}, 2: {true, false}, 3: {false, true}}[consent] {
							at := now.Add(time.Duration(n) * time.Second)
							if consent == 3 {
								at = now
							}
							if err := setConsent(ctx, tx, id, p, granted, "v1", at); err != nil {
								return err
							}
						}
					}
					return set(ctx, tx, id)
				})
			}
		}
		allowed := 0
		for _, p := range append(subject.Purposes(), "selling") {
			those, err := subject.Allowing(ctx, d, ids, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				if may := subject.May(ctx, d, id, p) == nil; may != those[id] {
					t.Errorf("%s, %s: May says %v, and among many it is %v", id, p, may, those[id])
				} else if may {
					allowed++
				}
			}
		}
		if allowed == 0 || allowed == len(ids)*len(subject.Purposes()) {
			t.Errorf("%d are allowed", allowed)
		}
		if none, err := subject.Allowing(ctx, d, nil, subject.Read); err != nil || len(none) != 0 {
			t.Errorf("of nobody: %v, %v", none, err)
		}
	})
}
