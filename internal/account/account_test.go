package account

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

var start = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

const roots = `{"current": {"id": "root", "created": "2026-01-31T08:00:00Z", "key": "bXkgcm9vdCBrZXkgbXVzdCBub3QgYmUgbGVha2VkISE="}}`

// home is an installation: both databases and the clock. Each process of it has
// its own connections and caches.
type home struct {
	t         testing.TB
	url, keys string
	clock     *clock.Clock
	log       bytes.Buffer // of its first process
	happened  chronicle    // what all its processes told
	*Service
}

func onBoth(t *testing.T, test func(t *testing.T, h *home)) {
	t.Helper()
	for _, dialect := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(dialect), func(t *testing.T) {
			t.Parallel()
			test(t, newHome(t, dialect))
		})
	}
}

func newHome(t testing.TB, dialect db.Dialect) *home {
	t.Helper()
	_, url := testenv.Database(t, dialect)
	h := &home{t: t, url: url, keys: testenv.DatabaseURL(t, dialect), clock: clock.Manual(start)}
	h.Service = h.process()
	return h
}

func (h *home) process() *Service {
	h.t.Helper()
	ctx := context.Background()
	open := func(url string) *db.DB {
		d, err := db.Open(ctx, url, db.Options{MaxConnections: 8})
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { _ = d.Close() })
		return d
	}
	keys := open(h.keys)
	if _, err := keys.Migrate(ctx, vault.Migrations()); err != nil {
		h.t.Fatal(err)
	}
	r, err := vault.ParseRoots(roots)
	if err != nil {
		h.t.Fatal(err)
	}
	v, err := vault.Open(ctx, keys, r, h.clock)
	if err != nil {
		h.t.Fatal(err)
	}
	d, log := open(h.url), slog.New(slog.DiscardHandler)
	if h.Service == nil {
		log = slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	address, err := redis.ParseURL("redis://127.0.0.1:1/0") // away: nobody rings here
	if err != nil {
		h.t.Fatal(err)
	}
	client, metrics := redis.NewClient(address), jobs.NewMetrics(nil)
	bell := jobs.NewBell(client, metrics)
	h.t.Cleanup(func() { bell.Close(); _ = client.Close() })
	queue := jobs.New(d, h.clock, bell, metrics, log)
	s := New(Options{
		DB: d, Vault: v, Clock: h.clock, Log: log, Events: events.New(h.happened.hear), PublicURL: "https://images.example", PolicyVersion: "2026-01-01",
		Mail: mail.New(mail.Options{DB: d, Vault: v, Queue: queue, Clock: h.clock, Log: log}),
	})
	// Hashes that cost nothing, but where the cost is what is tested.
	s.hasher.params = &argon2id.Params{Memory: 32, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32}
	return s
}

// A chronicle keeps the events of committed transactions.
type chronicle struct {
	mu  sync.Mutex
	all []events.Event
}

func (c *chronicle) hear(_ context.Context, tx *db.Tx, e events.Event) error {
	tx.AfterCommit(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all = append(c.all, e)
	})
	return nil
}

// of are those whose type begins so, in the order in which they happened.
func (c *chronicle) of(prefix string) (list []events.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.all {
		if strings.HasPrefix(string(e.Type), prefix) {
			list = append(list, e)
		}
	}
	return list
}

const password = "correct horse"

func (h *home) user(email string) string {
	h.t.Helper()
	id, err := h.CreateUser(context.Background(), email, password)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

func (h *home) key(owner string, expires time.Time) (string, Key) {
	h.t.Helper()
	token, k, err := h.CreateKey(context.Background(), owner, "laptop of Ann", []string{ScopeRead, ScopeGenerate}, expires)
	if err != nil {
		h.t.Fatal(err)
	}
	return token, k
}

// A letter is a mail as its reader gets it.
type letter struct {
	Subject, To string
	Template    mail.Template
	Data        map[string]string
}

// letters are all mails that were written, the oldest first.
func (h *home) letters() []letter {
	h.t.Helper()
	ctx := context.Background()
	var rows []struct {
		ID       string        `db:"id"`
		Subject  string        `db:"subject"`
		Template mail.Template `db:"template"`
		Address  []byte        `db:"address"`
		Data     []byte        `db:"data"`
	}
	if err := h.db.Select(ctx, &rows, `SELECT id, subject, template, address, data FROM mails ORDER BY created_at, id`); err != nil {
		h.t.Fatal(err)
	}
	var all []letter
	for _, r := range rows {
		l := letter{Subject: r.Subject, Template: r.Template}
		address, err := h.vault.Unseal(ctx, r.Subject, r.Address, vault.Column("mails", "address", r.ID))
		if errors.Is(err, vault.ErrNoKey) {
			continue // nobody can read it any more
		}
		if err != nil {
			h.t.Fatal(err)
		}
		data, err := h.vault.Unseal(ctx, r.Subject, r.Data, vault.Column("mails", "data", r.ID))
		if err != nil {
			h.t.Fatal(err)
		}
		if err := json.Unmarshal(data, &l.Data); err != nil {
			h.t.Fatal(err)
		}
		l.To = string(address)
		all = append(all, l)
	}
	return all
}

// sent are the mails of one template to one address.
func (h *home) sent(to string, template mail.Template) (found []letter) {
	h.t.Helper()
	for _, l := range h.letters() {
		if l.To == to && l.Template == template {
			found = append(found, l)
		}
	}
	return found
}

// code is the newest that was mailed to an address. Those of one millisecond
// have no order, so the clock moves on.
func (h *home) code(to string, template mail.Template) string {
	h.t.Helper()
	all := h.sent(to, template)
	if len(all) == 0 {
		h.t.Fatalf("no %s was mailed to %s", template, to)
	}
	h.clock.Advance(time.Millisecond)
	return all[len(all)-1].Data["Code"]
}

// browser is a client of one network; it knows what its cookie was set to.
func browser(network, device string) Client {
	c := Client{Agent: "Browser of " + network, Device: device}
	if network != "" { // else it is behind a socket
		c.Addr = netip.MustParseAddr(network)
	}
	return c
}

// member signs up, confirms, and is signed in.
func (h *home) member(email, username string) (SignedIn, Principal) {
	h.t.Helper()
	ctx := context.Background()
	c := browser("192.0.2.1", "")
	if err := h.SignUp(ctx, c, SignUp{Email: email, Username: username, Password: password, OldEnough: true}); err != nil {
		h.t.Fatal(err)
	}
	in, err := h.ConfirmSignUp(ctx, c, h.code(email, mail.ConfirmSignUp), password)
	if err != nil {
		h.t.Fatal(err)
	}
	return in, h.principal(in.Token)
}

func (h *home) principal(token string) Principal {
	h.t.Helper()
	p, err := h.AuthenticateSession(context.Background(), token)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *home) count(query string, args ...any) (n int) {
	h.t.Helper()
	if err := h.db.Get(context.Background(), &n, query, args...); err != nil {
		h.t.Fatal(err)
	}
	return n
}

func wantCode(t *testing.T, what string, err error, code problem.Code) {
	t.Helper()
	if err == nil || problem.CodeOf(err) != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

func TestCreateUser(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.hasher.params = hashing()
		ann := h.user("  Ann.Lee@Example.ORG ")
		for _, spelling := range []string{"ann.lee@example.org", "ANN.LEE@EXAMPLE.ORG"} {
			if id, err := h.FindUser(ctx, spelling); id != ann || err != nil {
				t.Errorf("find %s: %q, %v", spelling, id, err)
			}
			_, err := h.CreateUser(ctx, spelling, password)
			wantCode(t, "a second account", err, problem.Conflict)
		}
		_, err := h.FindUser(ctx, "bob@example.org")
		wantCode(t, "nobody", err, problem.NotFound)

		var row struct {
			Email    []byte `db:"email"`
			Password string `db:"password"`
		}
		if err := h.db.Get(ctx, &row, `SELECT email, password FROM users WHERE id = ?`, ann); err != nil {
			t.Fatal(err)
		}
		email, err := h.vault.Unseal(ctx, ann, row.Email, emailData(ann))
		if err != nil || string(email) != "Ann.Lee@example.org" {
			t.Errorf("the address to write to is %q, %v", email, err)
		}
		if !strings.HasPrefix(row.Password, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Error("the password is not hashed as it should be")
		}
		if match, err := argon2id.ComparePasswordAndHash(password, row.Password); !match || err != nil {
			t.Errorf("the hash does not fit the password: %v", err)
		}

		owned, err := h.Owned(ctx, []string{ann, "sub_nobody"})
		if err != nil || len(owned) != 1 || !owned[ann] {
			t.Errorf("owned %v, %v", owned, err)
		}
		if owned, err := h.Owned(ctx, nil); err != nil || len(owned) != 0 {
			t.Errorf("owned %v, %v", owned, err)
		}
	})
}

func TestOneAddressIsOneAccount(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		other := h.process()
		const n = 6
		var wg sync.WaitGroup
		ids, errs := make([]string, n), make([]error, n)
		for i := range n {
			wg.Go(func() {
				s := h.Service
				if i%2 == 1 {
					s = other
				}
				ids[i], errs[i] = s.CreateUser(ctx, "ann@example.org", password)
			})
		}
		wg.Wait()
		made := ""
		for i := range n {
			switch {
			case errs[i] == nil && made == "":
				made = ids[i]
			case errs[i] == nil:
				t.Error("two accounts with one address")
			default:
				wantCode(t, "the loser", errs[i], problem.Conflict)
			}
		}
		// No half account is left: every person has a user, and only the winner a key.
		var subjects []string
		if err := h.db.Select(ctx, &subjects, `SELECT id FROM subjects`); err != nil {
			t.Fatal(err)
		}
		if len(subjects) != 1 || subjects[0] != made {
			t.Errorf("subjects %v, made %s", subjects, made)
		}
		h.clock.Advance(2 * time.Hour)
		swept, err := h.vault.SweepUnowned(ctx, time.Hour, func(ids []string) (map[string]bool, error) { return h.Owned(ctx, ids) })
		if swept != 0 || err != nil {
			t.Errorf("%d keys were left behind, %v", swept, err)
		}
	})
}

func TestCreateUserRefuses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for _, email := range []string{
			"", "ann", "@example.org", "ann@", "ann@@example.org", "a b@example.org", "Ann <ann@example.org>", "<ann@example.org>",
			`"a b"@example.org`, "ann@example.org, bob@example.org", "ann@exam ple.org", "ann@-example.org", "ann@example..org",
			"ann@[127.0.0.1]", "ann@exa_mple.org", "ann\x00@example.org", "ann@example.org\r\nBcc: bob@example.org", "ann\xff@example.org",
			".ann@example.org", "ann.@example.org", "ann(comment)@example.org",
			strings.Repeat("a", 65) + "@example.org", "ann@" + strings.Repeat("a.", 130) + "org", "ann@" + strings.Repeat("a", 64) + ".org",
		} {
			_, err := h.CreateUser(ctx, email, password)
			wantField(t, email, err, "body.email")
			_, err = h.FindUser(ctx, email)
			wantField(t, email, err, "body.email")
		}
		for what, p := range map[string]string{
			"none": "", "short": "seven77", "7 letters of many bytes": "éééèèèà", "long": strings.Repeat("x", 1025), "not text": "12345678\xff",
		} {
			_, err := h.CreateUser(ctx, "ann@example.org", p)
			wantField(t, what, err, "body.password")
		}
		for email, p := range map[string]string{
			"len8@example.org": "eightlet", "long@example.org": strings.Repeat("x", 1024), "letters@example.org": "ééééèèèà",
			"you@localhost": password, "o'neill+tag@sub.example.org": password, "ann@bücher.example": password, "пошта@example.org": password,
		} {
			if _, err := h.CreateUser(ctx, email, p); err != nil {
				t.Errorf("%s: %v", email, err)
			}
		}
		if _, err := h.FindUser(ctx, "Ann@xn--bcher-kva.example"); err != nil {
			t.Errorf("the domain in its other spelling: %v", err)
		}
	})
}

func wantField(t *testing.T, value string, err error, location string) {
	t.Helper()
	var p *problem.Error
	if !errors.As(err, &p) || p.Code != problem.InvalidRequest || len(p.Fields) != 1 || p.Fields[0].Location != location {
		t.Errorf("%q: %v", value, err)
		return
	}
	if len(value) > 4 && strings.Contains(p.Fields[0].Message, value) {
		t.Errorf("%q is echoed", value)
	}
}

func TestTheDatabaseHoldsNeitherAddressNorToken(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		const email = "ann.canary@example.org"
		token, key := h.key(h.user(email), time.Time{})
		raw := append(everything(t, h.db, h.url), everything(t, h.keyStore(), h.keys)...)
		for name, secret := range map[string]string{
			"address": email, "its local part": "ann.canary", "token": token, "token without its start": token[len(tokenStart):],
			"token behind its prefix": token[prefixShown:], "password": password, "name of the key": "laptop of Ann",
		} {
			if found(raw, secret) {
				t.Errorf("the %s stands in the database", name)
			}
		}
		// The same search finds what does stand there.
		for name, known := range map[string]string{"key's id": key.ID, "key's prefix": key.Prefix, "hash": "$argon2id$"} {
			if !found(raw, known) {
				t.Errorf("the search does not find the %s", name)
			}
		}
	})
}

// keyStore is another connection to the key store, to look into it.
func (h *home) keyStore() *db.DB {
	h.t.Helper()
	d, err := db.Open(context.Background(), h.keys, db.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = d.Close() })
	return d
}

// everything is SQLite's files as they lie on the disk, or every row of every
// PostgreSQL table as text.
func everything(t *testing.T, d *db.DB, url string) []byte {
	t.Helper()
	var all []byte
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		for _, name := range []string{path, path + "-wal"} {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b...)
		}
		return all
	}
	ctx := context.Background()
	var tables []string
	if err := d.Select(ctx, &tables, `SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'`); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		var rows []string
		if err := d.Select(ctx, &rows, "SELECT t::text FROM "+table+" t"); err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.Join(rows, "\n")...)
	}
	return all
}

func found(raw []byte, what string) bool {
	return bytes.Contains(bytes.ToLower(raw), bytes.ToLower([]byte(what))) || bytes.Contains(raw, []byte(hex.EncodeToString([]byte(what))))
}
