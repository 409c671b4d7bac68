package privacy_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/mail"
	"zimage/internal/privacy"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

// onBothStores runs test with a main database and a key store, both migrated, of
// each kind of database.
func onBothStores(t *testing.T, test func(t *testing.T, stores map[string]*db.DB)) {
	t.Helper()
	testenv.Databases(t, func(t *testing.T, main *db.DB) {
		keys, err := db.Open(t.Context(), testenv.DatabaseURL(t, main.Dialect()), db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = keys.Close() })
		if _, err := keys.Migrate(t.Context(), vault.Migrations()); err != nil {
			t.Fatal(err)
		}
		test(t, map[string]*db.DB{privacy.StoreMain: main, privacy.StoreKeys: keys})
	})
}

func TestDataMapIsTheSchema(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, stores map[string]*db.DB) {
		for store, d := range stores {
			if err := dataMap(t).Check(t.Context(), d, store); err != nil {
				t.Error(err)
			}
		}
	})
}

// The check can fail: each difference is named, with what to do about it.
func TestTheMapIsComparedInBothDirections(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, stores map[string]*db.DB) {
		ctx, d := t.Context(), stores[privacy.StoreMain]
		expect := func(m *privacy.Map, store string, words ...string) {
			t.Helper()
			err := m.Check(ctx, stores[store], store)
			if err == nil {
				t.Errorf("nothing is said of %s", words)
				return
			}
			for _, w := range append(words, "docs/privacy.md") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is missing in:\n%v", w, err)
				}
			}
			if lines := strings.Count(err.Error(), "\n"); lines != 1 {
				t.Errorf("%d differences are named:\n%v", lines, err)
			}
		}
		for _, store := range []string{privacy.StoreMain, privacy.StoreKeys} {
			for i := range dataMap(t).Tables {
				m := dataMap(t)
				if gone := m.Tables[i]; gone.Store == store {
					m.Tables = slices.Delete(m.Tables, i, i+1)
					expect(m, store, "table "+gone.Name+" is not in the map", "add it under tables, with store "+store)
				}
			}
		}
		change := func(name string, change func(*privacy.Table)) *privacy.Map {
			m := dataMap(t)
			change(m.Table(privacy.StoreMain, name))
			return m
		}
		expect(change("users", func(u *privacy.Table) { u.Columns = u.Columns[1:] }), privacy.StoreMain, "column users.id is not in the map", "what it holds")
		expect(change("users", func(u *privacy.Table) {
			u.Column("role").Name = "rank"
			u.Columns = append(u.Columns, privacy.Column{Name: "role", Type: "text"})
		}),
			privacy.StoreMain, "column users.rank is in the map, and not in the database", "add the migration")
		expect(change("sessions", func(s *privacy.Table) { s.Key = []string{"owner"} }), privacy.StoreMain, "table sessions has the primary key (id), and in the map (owner)")
		expect(change("sessions", func(s *privacy.Table) { s.Column("agent").Type = "text" }), privacy.StoreMain, "column sessions.agent is of the type bytea, and in the map text")
		m := dataMap(t)
		m.Tables = append(m.Tables, privacy.Table{Name: "gadgets", Store: privacy.StoreMain})
		expect(m, privacy.StoreMain, "table gadgets is in the map, and not in the database")

		run := func(statements ...string) {
			t.Helper()
			for _, s := range statements {
				if _, err := d.Exec(ctx, s); err != nil {
					t.Fatal(s, err)
				}
			}
		}
		run(`CREATE TABLE gadgets (id TEXT PRIMARY KEY)`)
		expect(dataMap(t), privacy.StoreMain, "table gadgets is not in the map", "on PostgreSQL in a schema of its own")
		run(`DROP TABLE gadgets`, `ALTER TABLE images ADD COLUMN mood TEXT`)
		expect(dataMap(t), privacy.StoreMain, "column images.mood is not in the map", "how it is protected")
		// SQLite drops no column that an index needs.
		run(`ALTER TABLE images DROP COLUMN mood`, `DROP INDEX sessions_unused`, `ALTER TABLE sessions DROP COLUMN last_used_at`)
		expect(dataMap(t), privacy.StoreMain, "column sessions.last_used_at is in the map, where it decides when the row goes, and not in the database")
	})
}

// Of every column that the databases have, one of the two is said, and what is
// exported has a name of its own.
func TestPromise_G1_EveryColumnIsExportedOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	m := dataMap(t)
	onBothStores(t, func(t *testing.T, stores map[string]*db.DB) {
		lists, exported := map[string]bool{}, 0
		eachColumn(t, m, stores, func(table *privacy.Table, c *privacy.Column) {
			at := table.Name + "." + c.Name
			switch {
			case table.Nobody != "":
				if c.Export != "" {
					t.Errorf("%s is nobody's and exported", at)
				}
				return
			case (c.Export == "") == (len(c.NotExported) < 10):
				t.Errorf("%s: exported as %q, not exported because %q", at, c.Export, c.NotExported)
			}
			if c.Export != "" {
				exported++
				name := table.Category + "/" + table.Export + "/" + c.Export
				if lists[name] {
					t.Errorf("%s: %s is exported twice", at, name)
				}
				lists[name] = true
			}
			if c.Sealed != "" && c.Export == "" && !slices.Contains([]string{"users.totp_secret", "passkeys.credential", "mails.data", "held_records.record", "webhook_endpoints.secret", "webhook_endpoints.old_secret"}, at) {
				t.Errorf("%s is what a person wrote, and not exported", at)
			}
		})
		if exported < 90 {
			t.Errorf("only %d columns are exported", exported)
		}
	})
	if o := m.Object("images/sub_1/gen_1/1/0.img"); o == nil || o.Export == "" {
		t.Error("pictures are not exported")
	}
}

func TestPromise_G9_EveryColumnHasAPurposeAndABasis(t *testing.T) {
	t.Parallel()
	m := dataMap(t)
	bases := []privacy.Basis{privacy.Contract, privacy.LegalObligation, privacy.WithConsent, privacy.LegitimateInterests}
	policy := privacy.DefaultPolicy()
	rest := func(at string, purposes []string, person bool) {
		t.Helper()
		if len(purposes) == 0 {
			t.Errorf("%s has no purpose", at)
		}
		for _, id := range purposes {
			i := slices.IndexFunc(policy.Purposes, func(p privacy.Purpose) bool { return string(p.ID) == id })
			if i < 0 && (person || id != privacy.Operate) {
				t.Errorf("%s: the policy has no purpose %s", at, id)
			} else if i >= 0 && !slices.Contains(bases, policy.Purposes[i].Basis) {
				t.Errorf("%s: the purpose %s rests on %q", at, id, policy.Purposes[i].Basis)
			}
		}
	}
	onBothStores(t, func(t *testing.T, stores map[string]*db.DB) {
		eachColumn(t, m, stores, func(table *privacy.Table, c *privacy.Column) {
			rest(table.Name+"."+c.Name, table.Purposes, table.Nobody == "")
			if len(table.Keep) == 0 || table.Nobody == "" && table.Erase == nil {
				t.Errorf("%s.%s: nothing says how long it is kept", table.Name, c.Name)
			}
		})
	})
	for _, o := range m.Objects {
		rest(o.Key.String(), o.Purposes, o.Nobody == "")
	}
}

// eachColumn calls f with what the map says of each column that really is there.
func eachColumn(t *testing.T, m *privacy.Map, stores map[string]*db.DB, f func(*privacy.Table, *privacy.Column)) {
	t.Helper()
	for store, d := range stores {
		tables, err := db.Tables(t.Context(), d)
		if err != nil || len(tables) < 3 {
			t.Fatal(tables, err)
		}
		for _, live := range tables {
			table := m.Table(store, live.Name)
			if table == nil {
				t.Errorf("%s is not in the map", live.Name)
				continue
			}
			for _, column := range live.Columns {
				if c := table.Column(column.Name); c != nil {
					f(table, c)
				} else {
					t.Errorf("%s.%s is not in the map", live.Name, column.Name)
				}
			}
		}
	}
}

// The condition for a person's rows runs on both databases, also where the way
// leads through other tables.
func TestAPersonsRowsAreFoundThroughTheMap(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, stores map[string]*db.DB) {
		m, ctx := dataMap(t), context.Background()
		for _, s := range []string{
			`INSERT INTO generations (id, owner, job_id, model, seed, status, error_code, attempts, created_at, started_at, finished_at, expires_at, removed_at, removed_reason, unswept)
				SELECT 'gen_' || x, 'sub_' || x, '', '', 0, '', '', 0, 0, 0, 0, 0, 0, '', 0 FROM (SELECT 'a' AS x UNION SELECT 'b') AS two`,
			`INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, created_at, expires_at, removed_at, removed_reason)
				SELECT 'img_' || x, 'gen_' || x, 'sub_' || x, 0, 1, 1, 1, 'png', 1, 0, 0, 0, 0, '' FROM (SELECT 'a' AS x UNION SELECT 'b') AS two`,
			`INSERT INTO webhook_endpoints (id, owner, once, secret, events, include_prompt, created_at, changed_at, disabled_why, failures)
				SELECT 'whe_' || x, 'sub_' || x, 0, CAST('s' AS BYTEA), '', 0, 0, 0, '', 0 FROM (SELECT 'a' AS x UNION SELECT 'b') AS two`,
			`INSERT INTO job_turns (lane, party, finish) SELECT 'l', x, 1 FROM (SELECT 'sub_a' AS x UNION SELECT 'whe_a' UNION SELECT 'sub_b' UNION SELECT 'whe_b' UNION SELECT 'system') AS five`,
		} {
			if _, err := stores[privacy.StoreMain].Exec(ctx, s); err != nil {
				t.Fatal(err)
			}
		}
		count := func(table *privacy.Table) (n int) {
			t.Helper()
			err := stores[table.Store].Get(ctx, &n, `SELECT count(*) FROM `+table.Name+` WHERE `+m.Of(table), "sub_a")
			if err != nil {
				t.Errorf("%s: %v", table.Name, err)
			}
			return n
		}
		for i := range m.Tables {
			table := &m.Tables[i]
			if table.Nobody != "" {
				if m.Of(table) != "" {
					t.Errorf("%s is nobody's, and found by %s", table.Name, m.Of(table))
				}
				continue
			}
			want := 0
			switch table.Name {
			case "generations", "images", "webhook_endpoints":
				want = 1
			case "job_turns": // its own, and its endpoint's
				want = 2
			}
			if n := count(table); n != want {
				t.Errorf("%s: %d rows, want %d", table.Name, n, want)
			}
		}
		images := m.Table(privacy.StoreMain, "images")
		images.Subject, images.Through = "generation_id", "generations"
		if n := count(images); n != 1 {
			t.Errorf("through generations: %d rows", n)
		}
	})
}

func TestMailsAreThoseOfTheMap(t *testing.T) {
	t.Parallel()
	m := dataMap(t)
	var inMap, really []string
	said := func(template string, data []privacy.Named) {
		inMap = append(inMap, template)
		for _, d := range data {
			inMap = append(inMap, template+" "+d.Name)
		}
	}
	for _, x := range m.Mails.Templates {
		said(x.Name, x.Data)
	}
	for template, data := range mail.Templates() {
		really = append(really, string(template))
		for _, d := range data {
			really = append(really, string(template)+" "+d)
		}
	}
	sameNames(t, "mail", inMap, really)
	// And what the files show, which nobody else would notice.
	for _, x := range m.Mails.Templates {
		for _, end := range []string{".txt", ".html"} {
			text, err := os.ReadFile("../mail/templates/" + x.Name + end)
			if err != nil {
				t.Fatal(err)
			}
			for _, field := range regexp.MustCompile(`\{\{[^}]*\.([A-Z]\w*)`).FindAllStringSubmatch(string(text), -1) {
				named := func(n privacy.Named) bool { return n.Name == field[1] }
				if !slices.ContainsFunc(x.Data, named) && !slices.ContainsFunc(m.Mails.Always, named) {
					t.Errorf("%s%s shows %s, which is not in the map", x.Name, end, field[1])
				}
			}
		}
	}
}

func TestEnginesAreThoseOfTheMap(t *testing.T) {
	t.Parallel()
	var inMap []string
	for _, e := range dataMap(t).Engines {
		inMap = append(inMap, e.Kind)
	}
	sameNames(t, "engine", inMap, []string{engine.KindIllustrator, engine.KindOpenAI, engine.KindComfyUI, engine.KindSDCPP})
}

func TestObjectsAreBoundAsTheMapSays(t *testing.T) {
	t.Parallel()
	m := dataMap(t)
	for key, what := range map[string]string{"images/sub_1/gen_2/3/4.img": "image", "images/sub_1/gen_2/3/4.thumb": "thumbnail"} {
		o := m.Object(key)
		if o == nil || string(o.Bound(key)) != string(vault.Data("object", "sub_1", "gen_2", "3", "4", what)) || o.Key.Prefix() != "images/" {
			t.Errorf("%s: %+v", key, o)
		}
	}
	for _, key := range []string{"images/sub_1/gen_2/3/4.exe", "images/sub_1/gen_2/4.img", "x/images/sub_1/gen_2/3/4.img", "other"} {
		if o := m.Object(key); o != nil {
			t.Errorf("%s is taken for %s", key, o.Key)
		}
	}
}

// Whatever is left out or wrong is found, and all of it at once.
func TestAMapWithGapsIsRefused(t *testing.T) {
	t.Parallel()
	const whole = `
tables:
  - table: notes
    store: main
    holds: notes
    key: [id]
    subject: owner
    category: content
    purposes: [generate]
    keep: [{window: generated_content, from: at, then: delete, by: worker}, {as_long_as: account, why: it is theirs}]
    erase: {do: delete}
    export: notes
    columns:
      - {name: id, type: text, holds: id, plain: key, export: id}
      - {name: owner, type: text, holds: owner, plain: key, export: owner}
      - {name: at, type: time, holds: when, plain: found by it, export: at}
      - {name: text, type: bytes, holds: text, sealed: text, export: text}
objects:
  - {key: notes/<subject>/<id>.txt, subject: subject, table: notes, category: content, data: [note, <id>], export: notes, holds: x, purposes: [generate], kept: x, erased: x}
redis: [{key: "notes:<id>", holds: x, purposes: [generate], kept: x, erased: x}]
tasks: {holds: x, purposes: [generate], kept: x, erased: x}
mails: {holds: x, purposes: [generate], kept: x, erased: x}
logs: {holds: x, purposes: [generate], kept: x, erased: x, attributes: [{name: a, holds: b}]}
metrics: {holds: x, purposes: [generate], kept: x, erased: x, labels: [{name: a, holds: b}], figures: [{name: f, labels: [a]}]}
`
	if _, err := privacy.ParseMap([]byte(whole)); err != nil {
		t.Fatal(err)
	}
	var every string // all changes that do not touch each other
	together := []string{}
	for i, c := range []struct{ from, to, want string }{
		{"holds: notes", "holds: ' '", "holds is missing"},
		{"store: main", "store: cellar", "store is \"cellar\""},
		{"key: [id]\n    subject", "key: []\n    subject", "key is missing: what has no primary key"},
		{"subject: owner\n", "subject: ower\n", "subject names the column ower"},
		{"category: content\n", "category: stuff\n", "category is \"stuff\""},
		{"purposes: [generate]\n    keep", "purposes: [sell]\n    keep", "there is no purpose \"sell\""},
		{"purposes: [generate]\n    keep", "purposes: []\n    keep", "purposes is missing"},
		{"purposes: [generate]\n    keep", "purposes: [operate]\n    keep", "operate is no purpose"},
		{"window: generated_content", "window: ever", "the policy has no window \"ever\""},
		{"from: at", "from: id", "from names id, which is no column of the type time"},
		{"then: delete", "then: forget", "then is \"forget\""},
		{"then: delete", "then: \"null\"", "needs columns exactly when they become null"},
		{"by: worker", "by: somebody", "by is \"somebody\""},
		{"window: generated_content,", "window: generated_content, for: 30d,", "must have exactly one of as_long_as, for, until, window"},
		{"window: generated_content,", "for: soon, why: x,", "for is \"soon\""},
		{", why: it is theirs", "", "why is missing"},
		{"erase: {do: delete}", "", "erase is missing"},
		{"erase: {do: delete}", "erase: {do: keep, until: x}", "erase.basis is missing"},
		{"erase: {do: delete}", "erase: {do: null}", "erase.do is \"\""},
		{"export: notes\n    columns", "columns", "needs the name of its list"},
		{"plain: found by it, export: at", "plain: found by it", "must have exactly one of export, not_exported"},
		{"plain: found by it", "hashed: well", "says nothing to anybody"},
		{"plain: found by it", "plain: found by it, sealed: text", "exactly one of hashed, plain, sealed, wrapped"},
		{", plain: found by it", "", "exactly one of hashed, plain, sealed, wrapped"},
		{"export: at", "export: id", "export id stands there twice"},
		{"export: at", "export: ../at", "export must be of small letters"},
		{"export: at", "export: at, erase: shred", "erase is for columns of rows that are kept"},
		{"type: bytes, holds: text", "type: text, holds: text", "sealed needs bytes"},
		{"key: [id]\n    subject", "key: [id, owner]\n    subject", "sealed needs bytes, a key of one column"},
		{"subject: owner\n", "subject: owner\n    through: notes\n", "through must lead to"},
		{"subject: owner\n", "subject: owner\n    also: notes\n", "also must name"},
		{"subject: owner\n", "subject: owner\n    also: songs\n", "also must name"},
		{"subject: owner\n", "nobody: it is ours\n", "has no erase, through, also or export"},
		{"holds: notes\n", "holds: notes\n    colour: red\n", "field colour not found"},
		{"data: [note, <id>]", "data: [note, <n>]", "the key has no part <n>"},
		{"data: [note, <id>]", "data: []", "data is missing"},
		{"table: notes, category", "table: songs, category", "table names \"songs\""},
		{"key: \"notes:<id>\"", "key: \"notes:<id>\", channel: x", "exactly one of channel, key"},
		{"attributes: [{name: a, holds: b}]", "attributes: [{name: a, holds: b}, {name: a, holds: \"\"}]", "name a stands there twice"},
		{"labels: [a]", "labels: [b]", "label is \"b\""},
	} {
		if strings.Count(whole, c.from) < 1 {
			t.Fatalf("%d: %q is not there", i, c.from)
		}
		_, err := privacy.ParseMap([]byte(strings.Replace(whole, c.from, c.to, 1)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q instead of %q: %v, want %q", c.to, c.from, err, c.want)
		}
		if i < 6 {
			if every == "" {
				every = whole
			}
			every = strings.Replace(every, c.from, c.to, 1)
			together = append(together, c.want)
		}
	}
	_, err := privacy.ParseMap([]byte(every))
	for _, want := range together {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("of several faults, %q is not told: %v", want, err)
		}
	}
}
