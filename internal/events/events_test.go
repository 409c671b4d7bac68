package events_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/testenv"
)

func TestSubscribersWriteInTheTransactionOrRollItBack(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		if _, err := d.Exec(ctx, `CREATE TABLE told (who TEXT, ref TEXT)`); err != nil {
			t.Fatal(err)
		}
		no := errors.New("no")
		subscriber := func(name, refuses string) events.Subscriber {
			return func(ctx context.Context, tx *db.Tx, e events.Event) error {
				if e.Ref == refuses {
					return no
				}
				_, err := tx.Exec(ctx, `INSERT INTO told (who, ref) VALUES (?, ?)`, name, e.Ref)
				return err
			}
		}
		log := events.New(subscriber("first", ""), subscriber("second", "gen_bad"))
		for ref, want := range map[string]error{"gen_good": nil, "gen_bad": no} {
			err := d.Tx(ctx, func(tx *db.Tx) error {
				return log.Append(ctx, tx, events.Event{Type: events.GenerationQueued, Ref: ref, At: time.Unix(1, 0)})
			})
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", ref, err, want)
			}
		}
		var told []string
		if err := d.Select(ctx, &told, `SELECT who || ' ' || ref FROM told ORDER BY who`); err != nil || !slices.Equal(told, []string{"first gen_good", "second gen_good"}) {
			t.Errorf("told %v (%v); an event that one refuses is nobody's", told, err)
		}
	})
}
