package db_test

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/e2e/proxy"
	"zimage/internal/testenv"
)

// Packets are lost and nobody set a deadline: every step ends all the same, and
// says that the database is away.
func TestNothingWaitsForeverForADatabaseThatHangs(t *testing.T) {
	t.Parallel()
	address, err := url.Parse(testenv.DatabaseURL(t, db.Postgres))
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.NewPostgres(address.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	address.Host = p.Addr()
	ctx := context.Background() // without a deadline, unlike the test's
	d, err := db.Open(ctx, address.String(), db.Options{MaxConnections: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if _, err := d.Exec(ctx, `CREATE TABLE kept (n INTEGER)`); err != nil {
		t.Fatal(err)
	}
	var n int
	refused := errors.New("no")
	for name, step := range map[string]func() error{
		"Get":      func() error { p.Freeze(true); return d.Get(ctx, &n, `SELECT 1`) },
		"Select":   func() error { p.Freeze(true); return d.Select(ctx, new([]int), `SELECT 1`) },
		"Exec":     func() error { p.Freeze(true); _, err := d.Exec(ctx, `DELETE FROM kept`); return err },
		"GetWrite": func() error { p.Freeze(true); return d.GetWrite(ctx, &n, `DELETE FROM kept RETURNING n`) },
		"SelectWrite": func() error {
			p.Freeze(true)
			return d.SelectWrite(ctx, new([]int), `DELETE FROM kept RETURNING n`)
		},
		"begin": func() error { p.Freeze(true); return d.Tx(ctx, func(*db.Tx) error { return nil }) },
		"Tx.Get": func() error {
			return d.Tx(ctx, func(tx *db.Tx) error { p.Freeze(true); return tx.Get(ctx, &n, `SELECT 1`) })
		},
		"Tx.Select": func() error {
			return d.Tx(ctx, func(tx *db.Tx) error { p.Freeze(true); return tx.Select(ctx, new([]int), `SELECT 1`) })
		},
		"Tx.Exec": func() error {
			return d.Tx(ctx, func(tx *db.Tx) error { p.Freeze(true); _, err := tx.Exec(ctx, `DELETE FROM kept`); return err })
		},
		"commit": func() error {
			return d.Tx(ctx, func(tx *db.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO kept VALUES (1)`)
				p.Freeze(true)
				return err
			})
		},
		"rollback": func() error {
			return d.Tx(ctx, func(*db.Tx) error { p.Freeze(true); return refused })
		},
	} {
		p.Freeze(false)
		d.SetTimeout(time.Minute)
		testenv.Eventually(t, 30*time.Second, func() bool { return d.Ping(ctx) == nil })
		d.SetTimeout(time.Second)
		ended := make(chan error, 1)
		go func() { ended <- step() }()
		select {
		case err := <-ended:
			if name == "rollback" && errors.Is(err, refused) {
				continue
			}
			if !db.IsAway(err) {
				t.Errorf("%s: %v, want that the database is away", name, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s still waits", name)
		}
	}
}

// A deadline of the caller's own is the one that counts.
func TestALongDeadlineIsNotShortened(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		d.SetTimeout(time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := d.Tx(ctx, func(tx *db.Tx) error {
			<-time.After(20 * time.Millisecond)
			_, err := tx.Exec(ctx, `DELETE FROM jobs`)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}
