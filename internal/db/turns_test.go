package db_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

// Counted in other writers' turns, so that a slow machine sees the same.
func TestSQLiteWritersComeInTurnAndUrgentOnesFirst(t *testing.T) {
	t.Parallel()
	d, _ := testenv.Database(t, db.SQLite)
	ctx, stop := context.WithCancel(t.Context())
	if _, err := d.Exec(ctx, `CREATE TABLE marks (n INTEGER)`); err != nil {
		t.Fatal(err)
	}
	const writers = 500
	var turns atomic.Int64
	var work sync.WaitGroup
	for range writers {
		work.Go(func() {
			for ctx.Err() == nil {
				err := d.Tx(ctx, func(tx *db.Tx) error {
					turns.Add(1)
					_, err := tx.Exec(ctx, `INSERT INTO marks VALUES (1)`)
					return err
				})
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	testenv.Eventually(t, time.Minute, func() bool { return turns.Load() >= writers })
	waited := func(ctx context.Context) int64 {
		before := turns.Load()
		if _, err := d.Exec(ctx, `INSERT INTO marks VALUES (2)`); err != nil {
			t.Error(err)
		}
		return turns.Load() - before
	}
	for range 20 {
		if n := waited(db.Urgent(ctx)); n > 20 {
			t.Errorf("an urgent write waited for %d others", n)
		}
	}
	for range 3 {
		if n := waited(ctx); n > writers+50 {
			t.Errorf("a write waited for %d others, though %d were before it", n, writers)
		}
	}
	stop()
	work.Wait()
}
