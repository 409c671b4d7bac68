package vault

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"google.golang.org/protobuf/proto"

	gcmpb "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_go_proto"
	hkdfpb "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_hkdf_streaming_go_proto"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/testenv"
)

var start = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

func oldRing(t *testing.T) *Roots { return parse(t, ringText("old", someKey, "", "")) }

func bothRing(t *testing.T) *Roots { return parse(t, ringText("new", otherKey, "old", someKey)) }

func newRing(t *testing.T) *Roots { return parse(t, ringText("new", otherKey, "", "")) }

// process is what one process has: connections, a vault and its caches.
func process(t testing.TB, url string, roots *Roots, c *clock.Clock) (*Vault, error) {
	t.Helper()
	ctx := context.Background()
	keys, err := db.Open(ctx, url, db.Options{MaxConnections: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keys.Close() })
	if _, err := keys.Migrate(ctx, Migrations()); err != nil {
		t.Fatal(err)
	}
	return Open(ctx, keys, roots, c)
}

func mustProcess(t testing.TB, url string, roots *Roots, c *clock.Clock) *Vault {
	t.Helper()
	v, err := process(t, url, roots, c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func create(t testing.TB, v *Vault, subjects ...string) {
	t.Helper()
	for _, s := range subjects {
		if err := v.Create(context.Background(), s); err != nil {
			t.Fatal(err)
		}
	}
}

func seal(t testing.TB, v *Vault, subject, plain string, data []byte) []byte {
	t.Helper()
	sealed, err := v.Seal(context.Background(), subject, []byte(plain), data)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func wantOpen(t testing.TB, v *Vault, subject string, sealed, data []byte, plain string) {
	t.Helper()
	got, err := v.Unseal(context.Background(), subject, sealed, data)
	if err != nil {
		t.Fatalf("unseal for %s: %v", subject, err)
	}
	if string(got) != plain {
		t.Fatalf("unsealed %q, want %q", got, plain)
	}
}

func TestData(t *testing.T) {
	t.Parallel()
	lists := [][]string{nil, {""}, {"", ""}, {"a"}, {"a", ""}, {"", "a"}, {"ab"}, {"a", "b"}, {"a\x01b"}, {strings.Repeat("x", 200)}, {"\x01a"}}
	for i, a := range lists {
		for _, b := range lists[i+1:] {
			if bytes.Equal(Data(a...), Data(b...)) {
				t.Errorf("%q and %q give the same", a, b)
			}
		}
	}
}

func TestFieldsOpenOnlyAsTheyWereSealed(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		v := mustProcess(t, url, oldRing(t), clock.Manual(start))
		create(t, v, "sub_a", "sub_b")
		data := Data("users", "email", "sub_a")
		sealed := seal(t, v, "sub_a", "ann@example.org", data)
		wantOpen(t, v, "sub_a", sealed, data, "ann@example.org")
		wantOpen(t, v, "sub_a", seal(t, v, "sub_a", "", nil), nil, "")
		if bytes.Equal(sealed, seal(t, v, "sub_a", "ann@example.org", data)) {
			t.Error("the same text seals to the same bytes")
		}

		if _, err := v.Unseal(ctx, "sub_b", sealed, data); !errors.Is(err, ErrCorrupt) {
			t.Errorf("another subject: %v", err)
		}
		if _, err := v.Unseal(ctx, "sub_a", sealed, Data("users", "name", "sub_a")); !errors.Is(err, ErrCorrupt) {
			t.Errorf("other data: %v", err)
		}
		for i := range len(sealed) * 8 {
			bad := slices.Clone(sealed)
			bad[i/8] ^= 1 << (i % 8)
			if _, err := v.Unseal(ctx, "sub_a", bad, data); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d changed: %v", i, err)
			}
		}
		for n := range len(sealed) {
			if _, err := v.Unseal(ctx, "sub_a", sealed[:n], data); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut to %d bytes: %v", n, err)
			}
		}
		if _, err := v.Seal(ctx, "sub_none", nil, nil); !errors.Is(err, ErrNoKey) {
			t.Errorf("no key: %v", err)
		}
		if err := v.Create(ctx, "sub_a"); !errors.Is(err, ErrExists) {
			t.Errorf("created twice: %v", err)
		}
		wantOpen(t, v, "sub_a", sealed, data, "ann@example.org")
	})
}

func TestKeysetsCannotBeSwapped(t *testing.T) {
	t.Parallel()
	for name, swap := range map[string]string{
		"between subjects": `UPDATE keysets SET field = (SELECT field FROM keysets WHERE subject = 'sub_b'),
			object = (SELECT object FROM keysets WHERE subject = 'sub_b') WHERE subject = 'sub_a'`,
		"between purposes": `UPDATE keysets SET field = object WHERE subject = 'sub_a'`,
		"renamed":          `UPDATE keysets SET subject = CASE subject WHEN 'sub_a' THEN 'sub_gone' ELSE 'sub_a' END`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testenv.DatabaseURLs(t, func(t *testing.T, url string) {
				c := clock.Manual(start)
				v := mustProcess(t, url, oldRing(t), c)
				create(t, v, "sub_a", "sub_b")
				if name == "renamed" { // in two steps: subjects are unique
					if _, err := v.keys.Exec(context.Background(), `DELETE FROM keysets WHERE subject = 'sub_a'`); err != nil {
						t.Fatal(err)
					}
				}
				if n, err := v.keys.Exec(context.Background(), swap); err != nil || n != 1 {
					t.Fatal(n, err)
				}
				if _, err := v.Seal(context.Background(), "sub_a", []byte("x"), nil); !errors.Is(err, ErrCorrupt) {
					t.Errorf("sealed with a swapped keyset: %v", err)
				}
			})
		})
	}
}

func TestDestroyedKeysOpenNothingAndAreNeverMadeAgain(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		v := mustProcess(t, url, oldRing(t), c)
		create(t, v, "sub_a", "sub_b")
		sealed := seal(t, v, "sub_a", "gone", nil)
		object := sealObject(t, v, "sub_a", []byte("gone"), nil)
		theirs := seal(t, v, "sub_b", "stays", nil)
		for range 2 { // idempotent
			if err := v.Destroy(ctx, "sub_a"); err != nil {
				t.Fatal(err)
			}
			if _, err := v.Unseal(ctx, "sub_a", sealed, nil); !errors.Is(err, ErrDestroyed) {
				t.Errorf("unseal: %v", err)
			}
			if _, err := v.UnsealReader(ctx, "sub_a", bytes.NewReader(object), nil); !errors.Is(err, ErrDestroyed) {
				t.Errorf("unseal object: %v", err)
			}
			if _, err := v.Seal(ctx, "sub_a", nil, nil); !errors.Is(err, ErrDestroyed) {
				t.Errorf("seal: %v", err)
			}
			if _, err := v.SealWriter(ctx, "sub_a", &bytes.Buffer{}, nil); !errors.Is(err, ErrDestroyed) {
				t.Errorf("seal object: %v", err)
			}
			if err := v.Create(ctx, "sub_a"); !errors.Is(err, ErrDestroyed) {
				t.Errorf("create: %v", err)
			}
			c.Advance(time.Hour)
		}
		wantOpen(t, v, "sub_b", theirs, nil, "stays")

		var row keysetRow
		if err := v.keys.Get(ctx, &row, `SELECT subject, field, object, root_id, destroyed_at FROM keysets WHERE subject = 'sub_a'`); err != nil {
			t.Fatal(err)
		}
		if row.Field != nil || row.Object != nil || row.DestroyedAt.Int64 != start.UnixMilli() {
			t.Errorf("the tombstone keeps %+v", row)
		}

		// A sign-up that comes after its own erasure.
		if err := v.Destroy(ctx, "sub_never"); err != nil {
			t.Fatal(err)
		}
		if err := v.Create(ctx, "sub_never"); !errors.Is(err, ErrDestroyed) {
			t.Errorf("create after destroy: %v", err)
		}
	})
}

func TestDiscardLeavesNothingOfWhoNeverCameToBe(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		v := mustProcess(t, url, oldRing(t), clock.Manual(start))
		create(t, v, "sub_a", "sub_b", "sub_erased")
		sealed, theirs := seal(t, v, "sub_a", "gone", nil), seal(t, v, "sub_b", "stays", nil)
		if err := v.Destroy(ctx, "sub_erased"); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"sub_a", "sub_a", "sub_never", "sub_erased"} {
			if err := v.Discard(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v.Unseal(ctx, "sub_a", sealed, nil); !errors.Is(err, ErrNoKey) {
			t.Errorf("unseal: %v", err)
		}
		var left []string
		if err := v.keys.Select(ctx, &left, `SELECT subject FROM keysets ORDER BY subject`); err != nil || fmt.Sprint(left) != "[sub_b sub_erased]" {
			t.Errorf("left are %v (%v)", left, err)
		}
		wantOpen(t, v, "sub_b", theirs, nil, "stays")
		// The tombstone of somebody who was erased is not taken away by it.
		if err := v.Create(ctx, "sub_erased"); !errors.Is(err, ErrDestroyed) {
			t.Errorf("create: %v", err)
		}
	})
}

func TestDestroyTakesEffectInOtherProcessesWithinAMinute(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		c := clock.Manual(start)
		roots := oldRing(t)
		here, there := mustProcess(t, url, roots, c), mustProcess(t, url, roots, c)
		create(t, here, "sub_a")
		sealed := seal(t, here, "sub_a", "x", nil)
		wantOpen(t, there, "sub_a", sealed, nil, "x")
		if here.Lookup("email", "ann@example.org") != there.Lookup("email", "ann@example.org") {
			t.Error("two processes look up by different keys")
		}

		c.Advance(30 * time.Second) // using a key does not make it live longer
		wantOpen(t, there, "sub_a", sealed, nil, "x")
		if err := here.Destroy(ctx, "sub_a"); err != nil {
			t.Fatal(err)
		}
		c.Advance(cacheLife - 30*time.Second - time.Millisecond)
		wantOpen(t, there, "sub_a", sealed, nil, "x") // else there is no cache, and this test shows nothing
		c.Advance(time.Millisecond)
		if _, err := there.Unseal(ctx, "sub_a", sealed, nil); !errors.Is(err, ErrDestroyed) {
			t.Errorf("after a minute: %v", err)
		}
	})
}

func TestAClockSetBackDoesNotKeepKeysAlive(t *testing.T) {
	t.Parallel()
	c := newCache()
	c.put("a", &opened{}, start, c.turn())
	if c.get("a", start.Add(-time.Second)) != nil {
		t.Error("an entry from the future was used")
	}
}

func TestCacheIsBoundedAndNeverPutsBackWhatWasForgotten(t *testing.T) {
	t.Parallel()
	c := newCache()
	for i := range cacheSize + 500 {
		c.put(fmt.Sprint(i), &opened{}, start, c.turn())
	}
	if len(c.keys) != cacheSize {
		t.Errorf("%d entries", len(c.keys))
	}
	later := start.Add(cacheLife)
	c.put("new", &opened{}, later, c.turn())
	if len(c.keys) != 1 {
		t.Errorf("%d entries after all but one expired", len(c.keys))
	}
	turn := c.turn()
	c.forget("slow")
	c.put("slow", &opened{}, later, turn)
	if c.get("slow", later) != nil {
		t.Error("a key destroyed while it was read came back")
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		c := clock.Manual(start)
		roots := oldRing(t)
		// Many processes open an empty store at once: one key wins.
		const n = 8
		got := make([]string, n)
		mustProcessMigrated(t, url)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				v, err := process(t, url, roots, c)
				if err != nil {
					t.Error(err)
					return
				}
				got[i] = v.Lookup("email", "ann@example.org")
			})
		}
		wg.Wait()
		if len(slices.Compact(slices.Clone(got))) != 1 || len(got[0]) != 64 {
			t.Errorf("lookups differ: %q", got)
		}
		v := mustProcess(t, url, roots, c)
		seen := map[string]bool{}
		for _, l := range []string{v.Lookup("email", "a"), v.Lookup("email", "b"), v.Lookup("emaila", ""), v.Lookup("name", "a"), v.Lookup("", "emaila")} {
			if seen[l] {
				t.Error("different lookups are equal")
			}
			seen[l] = true
		}
	})
}

func mustProcessMigrated(t *testing.T, url string) {
	t.Helper()
	keys, err := db.Open(context.Background(), url, db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = keys.Close() }()
	if _, err := keys.Migrate(context.Background(), Migrations()); err != nil {
		t.Fatal(err)
	}
}

func TestTheStoreHoldsNoKey(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		ctx := context.Background()
		v := mustProcess(t, url, oldRing(t), clock.Manual(start))
		create(t, v, "sub_a")
		var row keysetRow
		if err := v.keys.Get(ctx, &row, `SELECT subject, field, object, root_id, destroyed_at FROM keysets`); err != nil {
			t.Fatal(err)
		}
		field, object, err := v.unwrapRow(row)
		if err != nil {
			t.Fatal(err)
		}
		gcm, hkdf := &gcmpb.AesGcmKey{}, &hkdfpb.AesGcmHkdfStreamingKey{}
		rawKey(t, field, gcm)
		rawKey(t, object, hkdf)
		installation, err := v.readInstallation(ctx, lookupKey)
		if err != nil {
			t.Fatal(err)
		}
		lookup, err := v.roots.now().current.aead.Decrypt(installation.Wrapped, installationData(lookupKey))
		if err != nil {
			t.Fatal(err)
		}

		raw := everything(t, v.keys, url)
		for name, key := range map[string][]byte{
			"field key": gcm.GetKeyValue(), "object key": hkdf.GetKeyValue(), "lookup key": lookup,
			"root": []byte("my root key must not be leaked!!"), "root in base64": []byte(someKey),
		} {
			if len(key) < 32 {
				t.Fatalf("%s has %d bytes", name, len(key))
			}
			if found(raw, key) {
				t.Errorf("the %s stands in the store", name)
			}
		}
		// The same search finds what does stand there.
		for name, known := range map[string][]byte{"wrapped keyset": row.Field, "subject": []byte("sub_a")} {
			if !found(raw, known) {
				t.Errorf("the search does not find the %s", name)
			}
		}
	})
}

func rawKey(t *testing.T, h *keyset.Handle, into proto.Message) {
	t.Helper()
	keys := insecurecleartextkeyset.KeysetMaterial(h)
	if err := proto.Unmarshal(keys.GetKey()[0].GetKeyData().GetValue(), into); err != nil {
		t.Fatal(err)
	}
}

// everything is SQLite's files as they lie on the disk, or every PostgreSQL row
// as text.
func everything(t *testing.T, keys *db.DB, url string) []byte {
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
	for _, table := range []string{"keysets", "installation_keys"} {
		var rows []string
		if err := keys.Select(context.Background(), &rows, "SELECT t::text FROM "+table+" t"); err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.Join(rows, "\n")...)
	}
	return all
}

func found(raw, what []byte) bool {
	// A large value spills over SQLite's pages, so its beginning has to do.
	what = what[:min(len(what), 32)]
	return bytes.Contains(raw, what) || bytes.Contains(raw, []byte(hex.EncodeToString(what)))
}

func TestAMissingRootIsNamed(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		c := clock.Manual(start)
		create(t, mustProcess(t, url, oldRing(t), c), "sub_a")
		_, err := process(t, url, newRing(t), c)
		var missing *RootError
		if !errors.As(err, &missing) || missing.ID != "old" || missing.Wrong || !strings.Contains(err.Error(), "as previous") {
			t.Errorf("without the root: %v", err)
		}
		_, err = process(t, url, parse(t, ringText("old", otherKey, "", "")), c)
		if !errors.As(err, &missing) || missing.ID != "old" || !missing.Wrong || !strings.Contains(err.Error(), "offline copy") {
			t.Errorf("with another key under its id: %v", err)
		}

		// The installation's keys have moved on; a person's keyset has not.
		v := mustProcess(t, url, bothRing(t), c)
		if err := v.rewrapInstallation(context.Background(), v.roots.now().current); err != nil {
			t.Fatal(err)
		}
		if _, err = process(t, url, newRing(t), c); !errors.As(err, &missing) || missing.ID != "old" {
			t.Errorf("without a keyset's root: %v", err)
		}
	})
}

func TestCheck(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, url string) {
		v := mustProcess(t, url, oldRing(t), clock.Manual(start))
		if err := v.Check(context.Background()); err != nil {
			t.Error(err)
		}
		if err := v.keys.Close(); err != nil {
			t.Fatal(err)
		}
		if err := v.Check(context.Background()); err == nil {
			t.Error("a closed key store answers")
		}
	})
}
