package account

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		token := newToken()
		if !wellFormed(token) {
			t.Fatalf("our own token is malformed: %s", token)
		}
		if seen[token] {
			t.Fatal("a token came twice")
		}
		seen[token] = true
	}
	token := newToken()
	if len(token) != 43 {
		t.Errorf("a token has %d characters", len(token))
	}
	for i := len(tokenStart); i < len(token); i++ { // every typing error in one place
		for _, c := range "abcdefghijklmnopqrstuvwxyz234567" {
			if bad := token[:i] + string(c) + token[i+1:]; bad != token && wellFormed(bad) {
				t.Fatalf("%s passes for %s", bad, token)
			}
		}
	}
	for _, bad := range []string{"", "zi_", token[:42], token + "a", token[3:], "zi-" + token[3:], strings.ToUpper(token), token[:42] + "1", token[:42] + "\n", token[:41] + "\r\n"} {
		if wellFormed(bad) {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestKeysComeAndGo(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, bob := h.user("ann@example.org"), h.user("bob@example.org")
		token, made := h.key(ann, time.Time{})
		who, err := h.Authenticate(ctx, token)
		if err != nil || who.Subject != ann || who.KeyID != made.ID || !slices.Equal(who.Scopes, []string{ScopeGenerate, ScopeRead}) {
			t.Fatalf("%+v, %v", who, err)
		}
		if !who.Has(ScopeRead) || who.Has(ScopeAdmin) {
			t.Errorf("scopes %v", who.Scopes)
		}
		who.Scopes[0] = ScopeAdmin // what one caller does to its copy is nobody else's
		if who, err = h.Authenticate(ctx, token); err != nil || who.Has(ScopeAdmin) {
			t.Errorf("%+v, %v", who, err)
		}

		h.clock.Advance(time.Second)
		_, second := h.key(ann, start.Add(time.Hour))
		keys, err := h.Keys(ctx, ann)
		if err != nil || len(keys) != 2 {
			t.Fatalf("%v, %v", keys, err)
		}
		for i, want := range []Key{second, made} {
			if fmt.Sprint(keys[i]) != fmt.Sprint(want) {
				t.Errorf("listed %+v, made %+v", keys[i], want)
			}
		}
		if keys[1].Name != "laptop of Ann" || !strings.HasPrefix(token, keys[1].Prefix) || len(keys[1].Prefix) != prefixShown {
			t.Errorf("%+v", keys[1])
		}
		if keys, err := h.Keys(ctx, bob); err != nil || len(keys) != 0 {
			t.Errorf("Bob sees %v, %v", keys, err)
		}

		wantCode(t, "another's key", h.RevokeKey(ctx, bob, made.ID), problem.NotFound)
		wantCode(t, "no key", h.RevokeKey(ctx, ann, "key_none"), problem.NotFound)
		if _, err := h.Authenticate(ctx, token); err != nil {
			t.Fatalf("Bob ended Ann's key: %v", err)
		}
		revoked := h.clock.Now()
		for range 2 {
			if err := h.RevokeKey(ctx, ann, made.ID); err != nil {
				t.Fatal(err)
			}
			h.clock.Advance(time.Minute)
		}
		if keys, err := h.Keys(ctx, ann); err != nil || !keys[1].RevokedAt.Equal(revoked) {
			t.Errorf("%+v, %v", keys, err)
		}
	})
}

func TestAuthenticateRefusesAllAlike(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		unknown := newToken()
		revoked, k := h.key(ann, time.Time{})
		if err := h.RevokeKey(ctx, ann, k.ID); err != nil {
			t.Fatal(err)
		}
		expired, _ := h.key(ann, start.Add(time.Second))
		if _, err := h.Authenticate(ctx, expired); err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(time.Second) // less than it stays known
		closing, erased := h.user("closing@example.org"), h.user("erased@example.org")
		ofClosing, _ := h.key(closing, time.Time{})
		ofErased, _ := h.key(erased, time.Time{})
		state(t, h, closing, subject.Closing)
		state(t, h, erased, subject.Erased)

		var texts []string
		for what, token := range map[string]string{
			"empty": "", "malformed": "zi_nonsense", "unknown": unknown, "revoked": revoked, "expired": expired,
			"closing": ofClosing, "erased": ofErased,
		} {
			_, err := h.Authenticate(ctx, token)
			wantCode(t, what, err, problem.Unauthorized)
			texts = append(texts, fmt.Sprintf("%+v", err))
			if errors.Unwrap(err) != nil {
				t.Errorf("%s: the answer carries a reason", what)
			}
		}
		if len(slices.Compact(texts)) != 1 {
			t.Errorf("the answers differ: %q", texts)
		}

		// Restricted and suspended people still get in, to export and erase.
		for _, column := range []string{"restricted_at", "suspended_at"} {
			token, _ := h.key(ann, time.Time{})
			if _, err := h.db.Exec(ctx, `UPDATE subjects SET `+column+` = 1 WHERE id = ?`, ann); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Authenticate(ctx, token); err != nil {
				t.Errorf("%s: %v", column, err)
			}
		}
	})
}

func state(t *testing.T, h *home, id string, s subject.State) {
	t.Helper()
	if n, err := h.db.Exec(context.Background(), `UPDATE subjects SET state = ? WHERE id = ?`, s, id); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

func TestARevokedKeyIsRefusedEverywhereSoon(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		there := h.process()
		ann := h.user("ann@example.org")
		token, k := h.key(ann, time.Time{})
		closes, _ := h.key(ann, time.Time{})
		for _, s := range []*Service{h.Service, there} {
			for _, one := range []string{token, closes} {
				if _, err := s.Authenticate(ctx, one); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := h.RevokeKey(ctx, ann, k.ID); err != nil {
			t.Fatal(err)
		}
		_, err := h.Authenticate(ctx, token)
		wantCode(t, "in this process", err, problem.Unauthorized)

		h.clock.Advance(knownFor - time.Millisecond)
		if _, err := there.Authenticate(ctx, token); err != nil {
			t.Fatalf("nothing is cached, so this test shows nothing: %v", err)
		}
		h.clock.Advance(time.Millisecond)
		_, err = there.Authenticate(ctx, token)
		wantCode(t, "in another process", err, problem.Unauthorized)

		if _, err := there.Authenticate(ctx, closes); err != nil {
			t.Fatal(err)
		}
		state(t, h, ann, subject.Closing)
		h.clock.Advance(knownFor)
		_, err = there.Authenticate(ctx, closes)
		wantCode(t, "a closed account", err, problem.Unauthorized)
	})
}

func TestAKnownTokenCostsNoQuery(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		token, _ := h.key(h.user("ann@example.org"), time.Time{})
		if _, err := h.Authenticate(ctx, token); err != nil {
			t.Fatal(err)
		}
		if err := h.db.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Authenticate(ctx, token); err != nil {
			t.Errorf("a known token asked the database: %v", err)
		}
		_, err := h.Authenticate(ctx, "zi_"+strings.Repeat("a", 40))
		wantCode(t, "a token with a typing error", err, problem.Unauthorized)
		h.clock.Advance(knownFor)
		_, err = h.Authenticate(ctx, token)
		wantCode(t, "without a database", err, problem.Unavailable)
	})
}

func TestKnownKeysAreBoundedAndStayForgotten(t *testing.T) {
	t.Parallel()
	k := newKnown()
	for i := range knownMost + 10 {
		k.put(fmt.Sprint(i), knownKey{found: start}, k.turn())
	}
	if len(k.keys) > knownMost {
		t.Errorf("%d keys are known", len(k.keys))
	}
	turn := k.turn()
	k.forget("key_1")
	k.put("lookup", knownKey{who: Principal{KeyID: "key_1"}, found: start}, turn)
	if _, ok := k.get("lookup", start); ok {
		t.Error("a key revoked while it was read came back")
	}
	k.put("lookup", knownKey{found: start}, k.turn())
	if _, ok := k.get("lookup", start.Add(-time.Second)); ok {
		t.Error("a clock set back keeps keys alive")
	}
	u := newUses()
	for i := range usesMost + 10 {
		u.mark(fmt.Sprint(i), start)
	}
	if u.mark("0", start.Add(time.Second)); len(u.last) != usesMost || !u.last["0"].After(start) {
		t.Errorf("%d uses wait", len(u.last))
	}
}

func TestLastUseIsWrittenOnceAMinute(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		token, _ := h.key(ann, time.Time{})
		used := func() time.Time {
			t.Helper()
			keys, err := h.Keys(ctx, ann)
			if err != nil {
				t.Fatal(err)
			}
			return keys[0].LastUsedAt
		}
		// run is Run that is told to end: it writes once more.
		run := func(s *Service) {
			t.Helper()
			ended, end := context.WithCancel(ctx)
			var wg sync.WaitGroup
			wg.Go(func() { s.Run(ended, func(err error) { t.Error(err) }) })
			end()
			wg.Wait()
		}
		use := func(s *Service) {
			t.Helper()
			if _, err := s.Authenticate(ctx, token); err != nil {
				t.Fatal(err)
			}
		}
		if run(h.Service); !used().IsZero() {
			t.Error("a last use without a use")
		}
		use(h.Service)
		if !used().IsZero() {
			t.Error("Authenticate writes")
		}
		if run(h.Service); !used().Equal(start) {
			t.Errorf("last used %v", used())
		}
		there := h.process()
		h.clock.Advance(usesEvery - time.Millisecond)
		use(there)
		if run(there); !used().Equal(start) {
			t.Errorf("written twice in a minute: %v", used())
		}
		h.clock.Advance(time.Millisecond)
		use(there)
		if run(there); !used().Equal(start.Add(usesEvery)) {
			t.Errorf("last used %v", used())
		}
		// A failure is told, and not for ever.
		use(there)
		if err := there.db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := there.writeUses(ctx); err == nil {
			t.Error("written to a closed database")
		}
		if err := there.writeUses(ctx); err != nil {
			t.Errorf("nothing is left to write: %v", err)
		}
	})
}

func TestCreateKeyRefuses(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		read := []string{ScopeRead}
		for _, c := range map[string]struct {
			name     string
			scopes   []string
			expires  time.Time
			location string
		}{
			"long name":    {strings.Repeat("ü", 101), read, time.Time{}, "name"},
			"two lines":    {"a\nb", read, time.Time{}, "name"},
			"not text":     {"\xff", read, time.Time{}, "name"},
			"no scope":     {"a", nil, time.Time{}, "scopes"},
			"unknown":      {"a", []string{ScopeRead, "everything"}, time.Time{}, "scopes"},
			"two in one":   {"a", []string{"read generate"}, time.Time{}, "scopes"},
			"empty scope":  {"a", []string{""}, time.Time{}, "scopes"},
			"expires now":  {"a", read, start, "expires_at"},
			"expired long": {"a", read, start.Add(-time.Hour), "expires_at"},
		} {
			_, _, err := h.CreateKey(ctx, ann, c.name, c.scopes, c.expires)
			wantField(t, c.name, err, c.location)
		}
		_, k, err := h.CreateKey(ctx, ann, strings.Repeat("ü", 100), []string{ScopeRead, ScopeGenerate, ScopeRead}, time.Time{})
		if err != nil || !slices.Equal(k.Scopes, []string{ScopeGenerate, ScopeRead}) {
			t.Errorf("%+v, %v", k, err)
		}

		_, _, err = h.CreateKey(ctx, "sub_none", "a", read, time.Time{})
		wantCode(t, "nobody", err, problem.Unauthorized)
		closing := h.user("closing@example.org")
		state(t, h, closing, subject.Closing)
		_, _, err = h.CreateKey(ctx, closing, "a", read, time.Time{})
		wantCode(t, "closing", err, problem.Unauthorized)
		gone := h.user("gone@example.org")
		if err := h.vault.Destroy(ctx, gone); err != nil {
			t.Fatal(err)
		}
		_, _, err = h.CreateKey(ctx, gone, "a", read, time.Time{})
		wantCode(t, "key destroyed", err, problem.Unauthorized)
	})
}

func TestAnOwnerHasABoundedNumberOfKeys(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann := h.user("ann@example.org")
		if err := h.db.Tx(ctx, func(tx *db.Tx) error { // made at once, since each takes a commit
			for i := range keysMost - 2 {
				if _, err := tx.Exec(ctx, `INSERT INTO api_keys (id, owner, token_lookup, prefix, name, scopes, created_at)
					VALUES (?, ?, ?, '', ?, 'read', 1)`, fmt.Sprint("key_", i), ann, fmt.Sprint(i), []byte("x")); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		_, last := h.key(ann, time.Time{})
		h.key(ann, start.Add(time.Second)) // the hundredth, for a second
		create := func() error {
			_, _, err := h.CreateKey(ctx, ann, "a", []string{ScopeRead}, time.Time{})
			return err
		}
		wantCode(t, "one more", create(), problem.Conflict)
		if err := h.RevokeKey(ctx, ann, last.ID); err != nil {
			t.Fatal(err)
		}
		h.clock.Advance(time.Second)
		// Two places are free, and many ask for them at once.
		const n = 4
		var wg sync.WaitGroup
		errs := make([]error, n)
		release := h.holdUser(ann)
		for i := range n {
			wg.Go(func() { errs[i] = create() })
		}
		release(n)
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else {
				wantCode(t, "one too many", err, problem.Conflict)
			}
		}
		if made != 2 {
			t.Errorf("%d keys for two places", made)
		}
	})
}

// Made and revoked again and again, keys leave no growing list behind.
func TestEndedKeysAreBoundedAndForgotten(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, ben := h.user("ann@example.org"), h.user("ben@example.org")
		_, bens := h.key(ben, time.Time{})
		if err := h.RevokeKey(ctx, ben, bens.ID); err != nil {
			t.Fatal(err)
		}
		if err := h.db.Tx(ctx, func(tx *db.Tx) error { // half revoked, half expired
			for i := range 2 * endedMost {
				revoked, expires := any(start.UnixMilli()), any(nil)
				if i%2 == 0 {
					revoked, expires = nil, start.UnixMilli()
				}
				if _, err := tx.Exec(ctx, `INSERT INTO api_keys (id, owner, token_lookup, prefix, name, scopes, created_at, expires_at, revoked_at)
					VALUES (?, ?, ?, '', ?, 'read', 1, ?, ?)`, fmt.Sprintf("key_%04d", i), ann, fmt.Sprint(i), []byte("x"), expires, revoked); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		token, live := h.key(ann, start.Add(endedFor))
		ids := func(owner string) (all []string) {
			if err := h.db.Select(ctx, &all, `SELECT id FROM api_keys WHERE owner = ? ORDER BY id`, owner); err != nil {
				t.Fatal(err)
			}
			return all
		}
		if all := ids(ann); len(all) != endedMost+1 || all[0] != fmt.Sprintf("key_%04d", endedMost) || !slices.Contains(all, live.ID) {
			t.Errorf("%d keys, the oldest %s", len(all), all[0])
		}
		if len(ids(ben)) != 1 {
			t.Error("somebody else's went")
		}
		h.clock.Advance(start.Add(endedFor).Sub(h.clock.Now()) - time.Millisecond)
		if err := h.Prune(ctx); err != nil || len(ids(ann)) != endedMost+1 {
			t.Errorf("before their time: %d (%v)", len(ids(ann)), err)
		}
		if _, err := h.Authenticate(ctx, token); err != nil {
			t.Errorf("the live one: %v", err)
		}
		h.clock.Advance(time.Millisecond)
		if err := h.Prune(ctx); err != nil || len(ids(ann)) != 1 || len(ids(ben)) != 0 {
			t.Errorf("after 30 days: %v and %v (%v)", ids(ann), ids(ben), err)
		}
		h.clock.Advance(endedFor)
		if err := h.Prune(ctx); err != nil || len(ids(ann)) != 0 {
			t.Errorf("expired for 30 days: %v (%v)", ids(ann), err)
		}
	})
}

// holdUser locks the user's row, so that whoever comes then has to wait. The
// function it returns lets them all go at once when n stand there. SQLite has
// one writer, so there is nothing to show.
func (h *home) holdUser(id string) (release func(n int)) {
	h.t.Helper()
	if h.db.Dialect() == db.SQLite {
		return func(int) {}
	}
	ctx := context.Background()
	other := h.process().db
	locked, let, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- other.Tx(ctx, func(tx *db.Tx) error {
			defer func() { <-let }()
			defer close(locked)
			// It idles on purpose, on a busy machine for longer than a pool allows.
			if _, err := tx.Exec(ctx, `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
				return err
			}
			var row string
			return tx.Get(ctx, &row, `SELECT id FROM users WHERE id = ?`+db.ForUpdate(tx), id)
		})
	}()
	<-locked
	return func(n int) {
		h.t.Helper()
		testenv.Eventually(h.t, 20*time.Second, func() bool {
			var waiting int
			if err := other.Get(ctx, &waiting, `SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND wait_event_type = 'Lock'`); err != nil {
				h.t.Fatal(err)
			}
			return waiting == n
		})
		close(let)
		if err := <-ended; err != nil {
			h.t.Fatal(err)
		}
	}
}
