package generate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image/jpeg"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/engine/illustrator"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/problem"
	"zimage/internal/testenv"
)

func TestPromise_C1_APromptBecomesMarkedImages(t *testing.T) {
	const canary = "canary7731 in a storm"
	for name, open := range map[string]func(engine.Settings) (engine.Engine, error){"scripted": nil, "illustrator": illustrator.Open} {
		t.Run(name, func(t *testing.T) {
			stacks(t, setup{open: open}, func(t *testing.T, r *rig) {
				for _, tt := range []struct {
					format string
					embed  bool
				}{{"png", false}, {"png", true}, {"jpeg", false}, {"jpeg", true}, {"webp", false}, {"webp", true}} {
					g := r.made(r.ada, func(q *Request) { q.Prompt, q.N, q.Format, q.EmbedPrompt = canary, 2, tt.format, tt.embed })
					if len(g.Images) != 2 || g.Progress.Fraction != 1 || g.Progress.Image != 2 || g.StartedAt.IsZero() || g.FinishedAt.IsZero() {
						t.Fatalf("%+v", g)
					}
					for n, i := range g.Images {
						data := r.content(r.ada, i.ID, false)
						sum := sha256.Sum256(data)
						if hex.EncodeToString(sum[:]) != i.SHA256 || int64(len(data)) != i.Bytes {
							t.Error("the bytes are not those of the row")
						}
						if i.N != n || i.Seed != g.Seed+int64(n) || i.Width != 64 || i.Height != 64 || i.Format != tt.format || !i.ExpiresAt.Equal(g.ExpiresAt) {
							t.Errorf("%+v", i)
						}
						if !bytes.Contains(data, []byte("DigitalSourceType")) || !bytes.Contains(data, []byte("digitalsourcetype/algorithmicMedia")) {
							t.Error("the picture is not marked")
						}
						if bytes.Contains(data, []byte("parameters")) {
							t.Error("the engine's metadata is still there")
						}
						if bytes.Contains(data, []byte(canary)) != tt.embed {
							t.Errorf("the prompt stands in the file: %v, asked for: %v", !tt.embed, tt.embed)
						}
						if _, err := jpeg.Decode(bytes.NewReader(r.content(r.ada, i.ID, true))); err != nil {
							t.Errorf("thumbnail: %v", err)
						}
						if one, err := r.service.Image(t.Context(), r.ada, i.ID); err != nil || one != i {
							t.Errorf("Image = %+v, %v", one, err)
						}
					}
					testenv.Eventually(t, 10*time.Second, func() bool { return r.told.of(events.GenerationSucceeded, g.ID) > 0 })
					if n := r.told.of(events.GenerationSucceeded, g.ID); n != 1 {
						t.Errorf("told %d times", n)
					}
				}
			})
		})
	}
}

// A person's preferences fill in what a request leaves out, where the model can
// do it, and nothing else.
func TestPromise_A3_PreferencesFillInWhatIsLeftOut(t *testing.T) {
	all := Defaults{Model: "elsewhere", Width: 128, Height: 96, N: 2, Format: "jpeg"}
	type want struct {
		model            string
		width, height, n int
		format           string
	}
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		for what, c := range map[string]struct {
			request Request
			want    want
		}{
			"none":                    {Request{}, want{"illustrator", 64, 64, 1, "png"}},
			"all":                     {Request{Defaults: all}, want{"elsewhere", 128, 96, 2, "jpeg"}},
			"a model":                 {Request{Defaults: Defaults{Model: "elsewhere"}}, want{"elsewhere", 64, 64, 1, "png"}},
			"another model asked for": {Request{Model: "illustrator", Defaults: all}, want{"illustrator", 128, 96, 2, "jpeg"}},
			"one side asked for":      {Request{Width: 256, Defaults: all}, want{"elsewhere", 256, 64, 2, "jpeg"}},
			"webp":                    {Request{Defaults: Defaults{Format: "webp"}}, want{"illustrator", 64, 64, 1, "webp"}},
			"all asked for": {Request{Model: "illustrator", Width: 64, Height: 64, N: 1, Format: "png", Defaults: all},
				want{"illustrator", 64, 64, 1, "png"}},
			"a model that is gone":    {Request{Defaults: Defaults{Model: "gone", Format: "jpeg"}}, want{"illustrator", 64, 64, 1, "jpeg"}},
			"more than the model can": {Request{Defaults: Defaults{Width: 4096, Height: 64, N: 99, Format: "gif"}}, want{"illustrator", 64, 64, 1, "png"}},
		} {
			q := c.request
			g := r.submit(r.ada, func(r *Request) { q.Prompt = r.Prompt; *r = q })
			for where, got := range map[string]Request{"answered": g.Request, "stored": r.get(r.ada, g.ID).Request} {
				if got := (want{got.Model, got.Width, got.Height, got.N, got.Format}); got != c.want {
					t.Errorf("%s, %s: %+v, want %+v", what, where, got, c.want)
				}
				if got.Defaults != (Defaults{}) && where == "stored" {
					t.Errorf("%s: the preferences are kept with the generation", what)
				}
			}
		}
		if _, _, err := r.service.Submit(t.Context(), r.ada, Request{Prompt: "p", Model: "gone", Defaults: all}, nil); err == nil {
			t.Error("a preference stands in for a model that was asked for and is gone")
		}
	})
}

func TestPromise_C3_NobodyElseSeesAnything(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		g := r.made(r.ada)
		ctx, s, id, image := t.Context(), r.service, g.ID, g.Images[0].ID
		for name, call := range map[string]func(owner, id, image string) error{
			"Get":    func(o, id, _ string) error { _, err := s.Get(ctx, o, id); return err },
			"Cancel": func(o, id, _ string) error { _, err := s.Cancel(ctx, o, id); return err },
			"Delete": func(o, id, _ string) error { return s.Delete(ctx, o, id) },
			"Watch": func(o, id, _ string) error {
				w, err := r.watchers().Watch(ctx, o, id, 0)
				if err == nil {
					w.Close()
				}
				return err
			},
			"Image":       func(o, _, image string) error { _, err := s.Image(ctx, o, image); return err },
			"DeleteImage": func(o, _, image string) error { return s.DeleteImage(ctx, o, image) },
			"Content":     func(o, _, image string) error { _, err := s.Content(ctx, o, image, false); return err },
			"Thumbnail":   func(o, _, image string) error { _, err := s.Content(ctx, o, image, true); return err },
		} {
			wantCode(t, call(r.ben, id, image), problem.NotFound)
			wantCode(t, call("", id, image), problem.NotFound)
			foreign, unknown := call(r.ben, id, image), call(r.ben, "gen_nothing", "img_nothing")
			if foreign.Error() != unknown.Error() {
				t.Errorf("%s tells somebody else's from nobody's: %v and %v", name, foreign, unknown)
			}
		}
		for name, remove := range map[string]func() (int, error){
			"DeleteMany":      func() (int, error) { return s.DeleteMany(ctx, r.ben, []string{id}, false) },
			"DeleteMany all":  func() (int, error) { return s.DeleteMany(ctx, r.ben, nil, true) },
			"DeleteImages":    func() (int, error) { return s.DeleteImages(ctx, r.ben, []string{image}, false) },
			"DeleteImagesAll": func() (int, error) { return s.DeleteImages(ctx, r.ben, nil, true) },
		} {
			if n, err := remove(); n != 0 || err != nil {
				t.Errorf("%s removed %d, %v", name, n, err)
			}
		}
		if list, next, err := s.List(ctx, r.ben, Page{}); len(list) != 0 || next != "" || err != nil {
			t.Errorf("ben's list has %d, %q, %v", len(list), next, err)
		}
		if len(r.content(r.ada, image, false)) == 0 {
			t.Error("nothing left for its owner")
		}
	})
}

// fill inserts generations that have ended, oldest first, a minute apart.
func (r *rig) fill(owner string, n int) []string {
	r.t.Helper()
	ctx := context.Background()
	at := r.clock.Now().Add(-time.Duration(n) * time.Minute)
	var ids []string
	for len(ids) < n {
		var rows []string
		var args []any
		for range min(500, n-len(ids)) {
			at = at.Add(time.Minute)
			id := db.NewID("gen", at)
			ids = append(ids, id)
			sealed, err := r.vault.Seal(ctx, owner, []byte(`{"prompt":"p","n":1,"steps":2}`), requestData(id))
			if err != nil {
				r.t.Fatal(err)
			}
			rows = append(rows, `(?, ?, '', 'illustrator', 1, ?, 'canceled', '', 0, ?, 0, 0, ?, 0, '', 0)`)
			args = append(args, id, owner, sealed, at.UnixMilli(), at.AddDate(0, 0, 90).UnixMilli())
		}
		_, err := r.db.Exec(ctx, `INSERT INTO generations (id, owner, job_id, model, seed, request, status, error_code, attempts,
			created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept) VALUES `+strings.Join(rows, ", "), args...)
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return ids
}

func TestPromise_C4_HistoryOfTenThousandNewestFirst(t *testing.T) {
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		ids := r.fill(r.ada, 10_000)
		r.fill(r.ben, 30)
		var seen []string
		cursor, page := "", 0
		for {
			list, next, err := r.service.List(ctx, r.ada, Page{Cursor: cursor, Limit: 100})
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range list {
				seen = append(seen, g.ID)
			}
			if page++; page%10 == 1 {
				r.submit(r.ada) // arrives in front of what has been read
			}
			if next == "" {
				break
			}
			cursor = next
		}
		slices.Reverse(ids)
		if !slices.Equal(seen, ids) {
			t.Fatalf("read %d of %d, or in another order", len(seen), len(ids))
		}
		list, next, err := r.service.List(ctx, r.ada, Page{})
		if err != nil || len(list) != 20 || list[0].Status != Queued || next == "" {
			t.Errorf("%d on the first page (%v), the newest %s", len(list), err, list[0].Status)
		}
		for _, cursor := range []string{next, next[:len(next)-1] + "0", ids[0], "x", "." + next, strings.Repeat("a", 5000)} {
			owner := r.ada
			if cursor == next {
				owner = r.ben
			}
			_, _, err := r.service.List(ctx, owner, Page{Cursor: cursor})
			wantCode(t, err, problem.InvalidRequest)
		}
		for _, p := range []Page{{Limit: 101}, {Limit: -1}, {Status: "lost"}} {
			_, _, err := r.service.List(ctx, r.ada, p)
			wantCode(t, err, problem.InvalidRequest)
		}
		for status, want := range map[Status]int{Queued: 10, Running: 0, Succeeded: 0, Canceled: 100} {
			if list, _, err := r.service.List(ctx, r.ada, Page{Status: status, Limit: 100}); err != nil || len(list) != want {
				t.Errorf("%s: %d, %v; want %d", status, len(list), err, want)
			}
		}
	})
}

func TestPromise_C5_DeletedImagesAreGone(t *testing.T) {
	two := func(q *Request) { q.N = 2 }
	for name, tt := range map[string]struct {
		remove   func(r *rig, a, b Generation) error
		images   []int // left of a and b
		removed  []bool
		deletion events.Type
	}{
		"one image": {func(r *rig, a, _ Generation) error {
			return r.service.DeleteImage(r.t.Context(), r.ada, a.Images[0].ID)
		},
			[]int{1, 2}, []bool{false, false}, events.ImageDeleted},
		"one generation": {func(r *rig, a, _ Generation) error { return r.service.Delete(r.t.Context(), r.ada, a.ID) },
			[]int{0, 2}, []bool{true, false}, events.GenerationDeleted},
		"many": {func(r *rig, a, b Generation) error {
			n, err := r.service.DeleteMany(r.t.Context(), r.ada, []string{b.ID, "gen_unknown", a.ID, a.ID}, false)
			if n != 2 {
				r.t.Errorf("removed %d, want 2", n)
			}
			return err
		}, []int{0, 0}, []bool{true, true}, events.GenerationDeleted},
		"all": {func(r *rig, _, _ Generation) error {
			n, err := r.service.DeleteMany(r.t.Context(), r.ada, nil, true)
			if n != 2 {
				r.t.Errorf("removed %d, want 2", n)
			}
			return err
		}, []int{0, 0}, []bool{true, true}, events.GenerationDeleted},
		"all images": {func(r *rig, _, _ Generation) error {
			n, err := r.service.DeleteImages(r.t.Context(), r.ada, nil, true)
			if n != 4 {
				r.t.Errorf("removed %d images, want 4", n)
			}
			return err
		}, []int{0, 0}, []bool{false, false}, events.ImageDeleted},
	} {
		t.Run(name, func(t *testing.T) {
			stacks(t, setup{}, func(t *testing.T, r *rig) {
				ctx := t.Context()
				both := []Generation{r.made(r.ada, two), r.made(r.ada, two)}
				bens := r.made(r.ben)
				if err := tt.remove(r, both[0], both[1]); err != nil {
					t.Fatal(err)
				}
				gone := 0
				for k, g := range both {
					now, err := r.service.Get(ctx, r.ada, g.ID)
					if tt.removed[k] {
						wantCode(t, err, problem.DataRemoved)
						wantCode(t, r.service.Delete(ctx, r.ada, g.ID), problem.DataRemoved)
					} else if err != nil || len(now.Images) != tt.images[k] {
						t.Errorf("%d images left (%v), want %d", len(now.Images), err, tt.images[k])
					}
					for _, i := range g.Images {
						if slices.ContainsFunc(now.Images, func(left Image) bool { return left.ID == i.ID }) {
							r.content(r.ada, i.ID, false)
							continue
						}
						gone++
						_, err := r.service.Image(ctx, r.ada, i.ID)
						wantCode(t, err, problem.DataRemoved)
						_, err = r.service.Content(ctx, r.ada, i.ID, true)
						wantCode(t, err, problem.DataRemoved)
						wantCode(t, r.service.DeleteImage(ctx, r.ada, i.ID), problem.DataRemoved)
						if n := r.count(`SELECT count(*) FROM images WHERE id = ? AND sha256 IS NULL AND seed = 0 AND width = 0 AND bytes = 0 AND format = ''`, i.ID); n != 1 {
							t.Error("the tombstone keeps content")
						}
						if tt.deletion == events.ImageDeleted && r.told.of(tt.deletion, i.ID) != 1 {
							t.Error("the deletion was not told once")
						}
					}
					if tt.removed[k] {
						if n := r.count(`SELECT count(*) FROM generations WHERE id = ? AND request IS NULL AND seed = 0 AND model = ''`, g.ID); n != 1 {
							t.Error("the tombstone keeps content")
						}
						if r.told.of(events.GenerationDeleted, g.ID) != 1 {
							t.Error("the deletion was not told once")
						}
					}
				}
				for k, g := range both {
					testenv.Eventually(t, 10*time.Second, func() bool { return len(r.objects(prefix(r.ada, g.ID))) == 2*tt.images[k] })
				}
				if n := len(r.objects(prefix(r.ben, bens.ID))); n != 2 {
					t.Errorf("%d objects of somebody else, want 2", n)
				}
				r.swept()
				r.clock.Advance(30*24*time.Hour + time.Second)
				r.hourly()
				r.hourly() // what the first one swept, the second one forgets
				for k, g := range both {
					_, err := r.service.Get(ctx, r.ada, g.ID)
					if tt.removed[k] {
						wantCode(t, err, problem.NotFound)
					} else if err != nil {
						t.Error(err)
					}
				}
				if n := r.count(`SELECT count(*) FROM images WHERE owner = ?`, r.ada); n != 4-gone {
					t.Errorf("%d rows of images after 30 days, want %d", n, 4-gone)
				}
			})
		})
	}
}

func TestPromise_R3_ContentEndsWithItsWindow(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		_, _, err := r.service.Submit(ctx, r.ada, Request{Prompt: "p", RetentionDays: 91}, nil)
		wantCode(t, err, problem.InvalidRequest)
		long := r.made(r.ada)
		short := r.made(r.ada, func(q *Request) { q.RetentionDays = 3 })
		r.engine.play(func(context.Context, int, engine.Request, func(engine.Progress)) ([]byte, error) {
			return nil, engine.NewError(engine.FaultUser, engine.CodeRefused, 0, nil)
		})
		failed := r.await(r.ada, r.submit(r.ada, func(q *Request) { q.RetentionDays = 3 }).ID, Failed)
		for _, g := range []struct {
			Generation
			days int
		}{{long, 90}, {short, 3}, {failed, 3}} {
			if want := g.CreatedAt.AddDate(0, 0, g.days); !g.ExpiresAt.Equal(want) {
				t.Fatalf("expires at %v, want %v", g.ExpiresAt, want)
			}
		}
		image := short.Images[0].ID
		r.clock.Advance(short.ExpiresAt.Sub(r.clock.Now()) - time.Millisecond)
		r.get(r.ada, short.ID)
		r.content(r.ada, image, false)
		r.hourly()
		r.content(r.ada, image, false)

		r.clock.Advance(time.Millisecond)
		_, err = r.service.Get(ctx, r.ada, short.ID)
		wantCode(t, err, problem.DataRemoved)
		_, err = r.service.Image(ctx, r.ada, image)
		wantCode(t, err, problem.DataRemoved)
		_, err = r.service.Content(ctx, r.ada, image, false)
		wantCode(t, err, problem.DataRemoved)
		_, err = r.watchers().Watch(ctx, r.ada, short.ID, 0)
		wantCode(t, err, problem.DataRemoved)
		if list, _, err := r.service.List(ctx, r.ada, Page{}); err != nil || slices.ContainsFunc(list, func(g Generation) bool { return g.ID == short.ID }) {
			t.Errorf("it is still listed (%v)", err)
		}
		if n := len(r.objects(prefix(r.ada, short.ID))); n != 2 {
			t.Fatalf("%d objects before the sweep, want 2", n)
		}
		r.clock.Advance(time.Second) // the failed one was asked for later
		r.hourly()
		if left := r.objects(prefix(r.ada, short.ID)); len(left) != 0 {
			t.Errorf("objects left after the sweep: %v", left)
		}
		if n := r.count(`SELECT count(*) FROM generations WHERE removed_reason = 'expired' AND request IS NULL AND id IN (?, ?)`, short.ID, failed.ID); n != 2 {
			t.Errorf("%d tombstones, want 2", n)
		}
		r.content(r.ada, long.Images[0].ID, false)
		r.clock.Advance(87 * 24 * time.Hour)
		r.hourly()
		r.hourly()
		if left := r.objects("images/"); len(left) != 0 {
			t.Errorf("objects left after 90 days: %v", left)
		}
		if n := r.count(`SELECT count(*) FROM generations WHERE request IS NOT NULL`); n != 0 {
			t.Errorf("%d prompts left after 90 days", n)
		}
		r.clock.Advance(31 * 24 * time.Hour)
		r.hourly()
		if n := r.count(`SELECT count(*) FROM generations`) + r.count(`SELECT count(*) FROM images`); n != 0 {
			t.Errorf("%d tombstones after 121 days", n)
		}
	})
}

func TestPromise_X2_NothingAtRestCanBeRead(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		canaries := []string{"canary-prompt-8812", "canary-negative-8813", "canary-key-8814", "canary-value-8815", "canary-idempotency-8816"}
		q := Request{Prompt: canaries[0], NegativePrompt: canaries[1], Metadata: map[string]string{canaries[2]: canaries[3]}, EmbedPrompt: true, N: 2}
		g, _, err := r.service.Submit(t.Context(), r.ada, q, &Idempotency{Key: canaries[4], Body: []byte(canaries[0])})
		if err != nil {
			t.Fatal(err)
		}
		g = r.await(r.ada, g.ID, Succeeded)
		if g.Request.Metadata[canaries[2]] != canaries[3] {
			t.Fatal("its owner cannot read it")
		}
		forbidden := append(canaries, g.Images[0].SHA256)
		find := func(where string, data []byte) (found int) {
			for _, c := range forbidden {
				if bytes.Contains(data, []byte(c)) || bytes.Contains(data, []byte(hex.EncodeToString([]byte(c)))) {
					found++
					if where != "" {
						t.Errorf("%s holds %q", where, c)
					}
				}
			}
			return found
		}
		find("the database", r.atRest())
		find("the log", []byte(r.log.String()))
		find("Redis", r.inRedis())
		keys := r.objects("")
		if len(keys) != 4 {
			t.Fatalf("%d objects, want 4", len(keys))
		}
		for _, key := range keys {
			sealed, _, err := r.store.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(sealed)
			_ = sealed.Close()
			if err != nil {
				t.Fatal(err)
			}
			find(key, data)
			for _, header := range []string{"PNG\r\n", "IHDR", "JFIF", "xpacket", "DigitalSourceType"} {
				if bytes.Contains(data, []byte(header)) {
					t.Errorf("%s holds %q", key, header)
				}
			}
			if bytes.HasPrefix(data, []byte{0xff, 0xd8, 0xff}) {
				t.Errorf("%s begins as a JPEG", key)
			}
		}
		// The scanner finds what is there.
		if _, err := r.db.Exec(t.Context(), `CREATE TABLE control (a TEXT, b BYTEA)`); err != nil {
			t.Fatal(err)
		}
		if _, err := r.db.Exec(t.Context(), `INSERT INTO control VALUES (?, ?)`, canaries[0], []byte(canaries[1])); err != nil {
			t.Fatal(err)
		}
		if n := find("", r.atRest()); n != 2 {
			t.Errorf("the control found %d of 2", n)
		}
	})
}

// atRest is all that the database holds: SQLite's files, or every row of every
// table of PostgreSQL.
func (r *rig) atRest() []byte {
	r.t.Helper()
	var all bytes.Buffer
	if path, ok := strings.CutPrefix(r.address, "sqlite:"); ok {
		files, err := filepath.Glob(path + "*")
		if err != nil {
			r.t.Fatal(err)
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				r.t.Fatal(err)
			}
			all.Write(data)
		}
		return all.Bytes()
	}
	var tables []string
	if err := r.db.Select(context.Background(), &tables, `SELECT tablename FROM pg_tables WHERE schemaname = 'public'`); err != nil {
		r.t.Fatal(err)
	}
	for _, table := range tables {
		var rows []string
		if err := r.db.Select(context.Background(), &rows, fmt.Sprintf(`SELECT x::text FROM %q AS x`, table)); err != nil {
			r.t.Fatal(err)
		}
		for _, row := range rows {
			all.WriteString(row)
		}
	}
	return all.Bytes()
}

func (r *rig) inRedis() []byte {
	r.t.Helper()
	ctx := context.Background()
	var all bytes.Buffer
	keys, err := r.redis.Keys(ctx, "*").Result()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, k := range keys {
		all.WriteString(k)
		all.WriteString(r.redis.Dump(ctx, k).Val()) // gone meanwhile: nothing to scan
	}
	return all.Bytes()
}

func TestAHoldKeepsWhatItNamesAndNothingElse(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		held, byImage, free := r.made(r.ada), r.made(r.ada), r.made(r.ada)
		for k, hold := range [][2]string{{"generations", held.ID}, {"images", byImage.Images[0].ID}} {
			_, err := r.db.Exec(ctx, `INSERT INTO holds (id, subject, table_name, row_id, reason_ref, created_at) VALUES (?, ?, ?, ?, 'case', 1)`,
				fmt.Sprint("hold", k), r.ada, hold[0], hold[1])
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, g := range []Generation{held, byImage} {
			wantCode(t, r.service.Delete(ctx, r.ada, g.ID), problem.Conflict)
			wantCode(t, r.service.DeleteImage(ctx, r.ada, g.Images[0].ID), problem.Conflict)
		}
		if n, err := r.service.DeleteImages(ctx, r.ada, nil, true); n != 1 || err != nil {
			t.Errorf("%d images removed, %v; want the free one", n, err)
		}
		if n, err := r.service.DeleteMany(ctx, r.ada, nil, true); n != 1 || err != nil {
			t.Errorf("%d removed, %v; want the free one", n, err)
		}
		r.clock.Advance(90*24*time.Hour + time.Second)
		r.hourly()
		for _, g := range []Generation{held, byImage} {
			if n := len(r.objects(prefix(r.ada, g.ID))); n != 2 {
				t.Errorf("%d objects of what is held, want 2", n)
			}
		}
		if n := len(r.objects(prefix(r.ada, free.ID))); n != 0 {
			t.Errorf("%d objects of what is free", n)
		}
		if n := r.count(`SELECT count(*) FROM generations WHERE removed_at = 0 AND request IS NOT NULL`); n != 2 {
			t.Errorf("%d rows are kept, want 2", n)
		}
		if _, err := r.db.Exec(ctx, `UPDATE holds SET released_at = 2`); err != nil {
			t.Fatal(err)
		}
		r.hourly()
		if left := r.objects("images/"); len(left) != 0 {
			t.Errorf("objects left after the release: %v", left)
		}
	})
}

// More than one batch of held records must not hide what comes after them.
func TestDeletingVeryManyIsFinishedByAJob(t *testing.T) {
	stacks(t, setup{redis: nowhere}, func(t *testing.T, r *rig) {
		const n = pagesAtOnce*sweepBatch + 150
		r.fill(r.ada, n)
		r.fill(r.ben, 3)
		accepted, err := r.service.DeleteMany(t.Context(), r.ada, nil, true)
		if err != nil || accepted != n {
			t.Fatalf("%d accepted, want %d (%v)", accepted, n, err)
		}
		testenv.Eventually(t, 2*time.Minute, func() bool {
			return r.count(`SELECT count(*) FROM generations WHERE owner = ? AND removed_at = 0`, r.ada) == 0
		})
		if left := r.count(`SELECT count(*) FROM generations WHERE owner = ? AND removed_at = 0`, r.ben); left != 3 {
			t.Errorf("%d of somebody else's 3 are left", left)
		}
	})
}

func TestDeleteAllPassesOverManyHolds(t *testing.T) {
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		ids := r.fill(r.ada, sweepBatch+5)
		_, err := r.db.Exec(t.Context(), `INSERT INTO holds (id, subject, table_name, row_id, reason_ref, created_at)
			SELECT 'hold' || id, owner, 'generations', id, 'case', 1 FROM generations WHERE id < ?`, ids[sweepBatch+2])
		if err != nil {
			t.Fatal(err)
		}
		if n, err := r.service.DeleteMany(t.Context(), r.ada, nil, true); n != 3 || err != nil {
			t.Errorf("removed %d, %v; want 3", n, err)
		}
	})
}

func TestParallelDeletesAreToldOnce(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		g := r.made(r.ada, func(q *Request) { q.N = 4 })
		var work sync.WaitGroup
		for _, i := range g.Images { // each with its own sweep, while others go on
			for range 2 {
				work.Go(func() {
					if err := r.service.DeleteImage(t.Context(), r.ada, i.ID); err != nil && problem.CodeOf(err) != problem.DataRemoved {
						t.Error(err)
					}
				})
			}
		}
		work.Wait()
		for _, i := range g.Images {
			if n := r.told.of(events.ImageDeleted, i.ID); n != 1 {
				t.Errorf("an image's deletion was told %d times", n)
			}
		}
		testenv.Eventually(t, 10*time.Second, func() bool { return len(r.objects("images/")) == 0 })
		for range 8 {
			work.Go(func() {
				if err := r.service.Delete(t.Context(), r.ada, g.ID); err != nil && problem.CodeOf(err) != problem.DataRemoved {
					t.Error(err)
				}
			})
		}
		work.Wait()
		if n := r.told.of(events.GenerationDeleted, g.ID); n != 1 {
			t.Errorf("the deletion was told %d times", n)
		}
	})
}

// interrupted is object storage in which something happens before a Delete.
type interrupted struct {
	objects.Store
	before func()
}

func (i *interrupted) Delete(ctx context.Context, keys ...string) error {
	i.before()
	return i.Store.Delete(ctx, keys...)
}

// Its own sweep may come before the sweep that is on the way marks the
// generation as done: that must not hide it.
func TestAnImageDeletedDuringASweepIsSweptToo(t *testing.T) {
	t.Parallel()
	r := newRig(t, db.SQLite, setup{})
	g := r.made(r.ada, func(q *Request) { q.N = 2 })
	r.clock.Advance(jobs.Lease)
	if _, err := r.db.Exec(t.Context(), `UPDATE images SET removed_at = 1 WHERE id = ?`, g.Images[0].ID); err != nil {
		t.Fatal(err)
	}
	second := sync.OnceFunc(func() {
		if _, err := r.db.Exec(context.Background(), `UPDATE images SET removed_at = 1 WHERE id = ?`, g.Images[1].ID); err != nil {
			t.Error(err)
		}
		if _, err := r.db.Exec(context.Background(), `UPDATE generations SET unswept = 1`); err != nil {
			t.Error(err)
		}
	})
	r.service.Objects = &interrupted{r.store, second}
	if err := r.service.sweepSome(t.Context(), []unswept{{ID: g.ID, Owner: r.ada}}); err != nil {
		t.Fatal(err)
	}
	r.hourly()
	if left := r.objects("images/"); len(left) != 0 {
		t.Errorf("objects left: %v", left)
	}
}

// What is made while everything of before is being deleted stays.
func TestDeletingAllSparesWhatIsMadeMeanwhile(t *testing.T) {
	stacks(t, setup{idle: true, redis: nowhere}, func(t *testing.T, r *rig) {
		r.fill(r.ada, pagesAtOnce*sweepBatch+10)
		if _, err := r.service.DeleteMany(t.Context(), r.ada, nil, true); err != nil {
			t.Fatal(err)
		}
		r.clock.Advance(time.Second)
		later := r.submit(r.ada)
		r.clock.Advance(time.Second)
		if _, err := r.db.Exec(t.Context(), `UPDATE jobs SET created_at = ? WHERE kind = ?`, r.clock.Millis(), KindDeleteGenerations); err != nil {
			t.Fatal(err)
		}
		r.work()
		testenv.Eventually(t, 2*time.Minute, func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state = 'succeeded'`, KindDeleteGenerations) == 1
		})
		if n := r.count(`SELECT count(*) FROM generations WHERE removed_at = 0`); n != 1 {
			t.Errorf("%d are left, want the one that was made meanwhile (%s)", n, later.ID)
		}
	})
}

// stubborn refuses to delete what lies under some prefixes.
type stubborn struct {
	objects.Store
	kept atomic.Pointer[[]string]
}

func (s *stubborn) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		for _, prefix := range *s.kept.Load() {
			if strings.HasPrefix(key, prefix) {
				return errors.New("locked")
			}
		}
	}
	return s.Store.Delete(ctx, keys...)
}

// Objects that cannot be deleted must not keep the younger ones for ever.
func TestPromise_R3_StubbornObjectsKeepNoOthers(t *testing.T) {
	store := &stubborn{}
	store.kept.Store(&[]string{})
	t.Parallel()
	r := newRig(t, db.SQLite, setup{idle: true, redis: nowhere, wrap: func(s objects.Store) objects.Store { store.Store = s; return store }})
	ids := r.fill(r.ada, sweepPatience+5)
	var kept []string
	for i, id := range ids {
		if err := r.service.put(t.Context(), imageKey(r.ada, id, 1, 0), []byte("sealed")); err != nil {
			t.Fatal(err)
		}
		if i < sweepPatience+2 {
			kept = append(kept, prefix(r.ada, id))
		}
	}
	store.kept.Store(&kept)
	if _, err := r.service.DeleteMany(t.Context(), r.ada, ids, false); err != nil {
		t.Fatal(err)
	}
	if err := r.service.sweep(t.Context(), &jobs.Run{Job: jobs.Job{Ref: r.ada}}); err == nil {
		t.Error("a sweep that left something says that it is done")
	}
	left := r.objects("images/")
	if len(left) != len(kept) {
		t.Errorf("%d objects are left, want only the %d that cannot be deleted", len(left), len(kept))
	}
}
