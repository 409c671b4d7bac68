//go:build unix

package app

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/generate"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
)

// A person's pictures go from one service to another, on the other database, and
// are there as they were: to list, to look at, large and small.
func TestPromise_G4_PicturesMoveToAnotherService(t *testing.T) {
	t.Parallel()
	for _, to := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run("to "+string(to), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			settings := map[db.Dialect]map[string]string{
				db.SQLite:   nil,
				db.Postgres: {"ZIMAGE_DATABASE_URL": testenv.DatabaseURL(t, db.Postgres), "ZIMAGE_KEYS_DATABASE_URL": testenv.DatabaseURL(t, db.Postgres)},
			}
			from := db.SQLite
			if to == from {
				from = db.Postgres
			}
			here, there := open(t, config.RoleUp, settings[from]), open(t, config.RoleUp, settings[to])
			here.start(t, config.RoleWorker)
			owner, err := here.Accounts.CreateUser(ctx, "ada@example.org", "some long words for anybody")
			must(err)
			for _, r := range []generate.Request{
				{Prompt: "a lighthouse <b> & ünïcode", N: 2, Width: 64, Height: 64, Steps: 1, Metadata: map[string]string{"b": "2", "a": "1"}},
				{Prompt: "a town", Width: 96, Height: 64, Steps: 1, Format: "jpeg", EmbedPrompt: true},
				{Prompt: "a harbour", Width: 64, Height: 96, Steps: 1, Format: "webp", EmbedPrompt: true},
			} {
				g, _, err := here.Generate.Submit(ctx, owner, r, nil)
				must(err)
				testenv.Eventually(t, time.Minute, func() bool {
					g, err = here.Generate.Get(ctx, owner, g.ID)
					must(err)
					return g.Status == generate.Succeeded
				})
			}
			export, err := here.Privacy.AskExport(ctx, owner)
			must(err)
			testenv.Eventually(t, time.Minute, func() bool {
				export, err = here.Privacy.Export(ctx, owner, export.ID)
				must(err)
				return export.Status == privacy.ExportReady
			})
			archive, err := here.Privacy.ExportArchive(ctx, owner, export.ID)
			must(err)
			data, err := io.ReadAll(archive)
			must(errors.Join(err, archive.Close()))
			file := filepath.Join(t.TempDir(), "export.zip")
			must(os.WriteFile(file, data, 0o600))

			other, err := there.Accounts.CreateUser(ctx, "ada@example.org", "some long words for anybody")
			must(err)
			done, left, err := there.Import(ctx, "ada@example.org", file, nil)
			if err != nil || len(left) > 0 || done.Records != 7 || done.Files != 4 {
				t.Fatalf("%+v, left %v, %v", done, left, err)
			}
			want, _, err := here.Generate.List(ctx, owner, generate.Page{})
			must(err)
			got, _, err := there.Generate.List(ctx, other, generate.Page{})
			if err != nil || len(got) != 3 || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, want %+v (%v)", got, want, err)
			}
			read := func(a *App, owner, id string, small bool) []byte {
				c, err := a.Generate.Content(ctx, owner, id, small)
				must(err)
				data, err := io.ReadAll(c)
				must(errors.Join(err, c.Close()))
				return data
			}
			for _, g := range want {
				for _, i := range g.Images {
					for _, small := range []bool{false, true} {
						// A small one is made anew, of what a JPEG was encoded to.
						a, b := read(here, owner, i.ID, small), read(there, other, i.ID, small)
						if len(b) == 0 || !bytes.Equal(a, b) && (!small || i.Format != "jpeg") {
							t.Errorf("image %s (small: %v) has %d bytes, and had %d", i.ID, small, len(b), len(a))
						}
					}
				}
			}
			if _, _, err := there.Import(ctx, "nobody@example.org", file, nil); err == nil {
				t.Error("it went to nobody")
			}
		})
	}
}
