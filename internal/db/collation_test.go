package db_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"zimage/internal/db"
	"zimage/internal/testenv"
)

// Danish has aa behind z, Czech ch behind h, Estonian z before t: there, ids do
// not sort by their time.
func TestADatabaseThatSortsIDsOtherwiseIsRefused(t *testing.T) {
	t.Parallel()
	server := os.Getenv(testenv.PostgresVariable)
	for locale, want := range map[string]error{
		"da": db.ErrCollation, "cs": db.ErrCollation, "et": db.ErrCollation,
		"en-US": nil, "de": nil,
	} {
		t.Run(locale, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			conn, err := pgx.Connect(ctx, server)
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("zimage_collation_%d_%s", os.Getpid(), locale)
			t.Cleanup(func() {
				if _, err := conn.Exec(ctx, `DROP DATABASE IF EXISTS "`+name+`" WITH (FORCE)`); err != nil {
					t.Error(err)
				}
				_ = conn.Close(ctx)
			})
			_, err = conn.Exec(ctx, `CREATE DATABASE "`+name+`" TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE '`+locale+`'`)
			if err != nil {
				t.Fatal(err)
			}
			address, err := url.Parse(server)
			if err != nil {
				t.Fatal(err)
			}
			address.Path = "/" + name
			d, err := db.Open(ctx, address.String(), db.Options{})
			if err == nil {
				_ = d.Close()
			}
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		})
	}
}
