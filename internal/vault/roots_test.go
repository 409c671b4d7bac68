package vault

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	someKey  = "bXkgcm9vdCBrZXkgbXVzdCBub3QgYmUgbGVha2VkISE=" // "my root key must not be leaked!!"
	otherKey = "YW5kIHRoZSBvdGhlciBvbmUgbXVzdCBub3QgZWl0aGU=" // "and the other one must not eithe"
)

func ringText(currentID, currentKey, previousID, previousKey string) string {
	s := fmt.Sprintf("current:\n  id: %s\n  created: 2026-01-31T08:00:00Z\n  key: %s\n", currentID, currentKey)
	if previousID != "" {
		s += fmt.Sprintf("previous:\n  id: %s\n  created: 2026-01-31T08:00:00Z\n  key: %s\n", previousID, previousKey)
	}
	return s
}

func parse(t *testing.T, text string) *Roots {
	t.Helper()
	r, err := ParseRoots(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParseRootsAcceptsYAMLAndJSON(t *testing.T) {
	t.Parallel()
	r := parse(t, "# a comment\n"+ringText("b", someKey, "a", otherKey))
	if r.Current() != "b" || r.Previous() != "a" {
		t.Errorf("current %s, previous %s", r.Current(), r.Previous())
	}
	r = parse(t, `{"current": {"id": "b", "created": "2026-01-31T08:00:00Z", "key": "`+someKey+`"}}`)
	if r.Current() != "b" || r.Previous() != "" {
		t.Errorf("current %s, previous %q", r.Current(), r.Previous())
	}
}

func TestParseRootsRefuses(t *testing.T) {
	t.Parallel()
	short := base64.StdEncoding.EncodeToString([]byte("sixteen bytes ok"))
	zeros := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, c := range map[string]struct{ text, says string }{
		"empty":           {"", "current is missing"},
		"previous alone":  {strings.Replace(ringText("a", someKey, "", ""), "current", "previous", 1), "current is missing"},
		"short key":       {ringText("a", short, "", ""), "current.key has 16 bytes"},
		"short previous":  {ringText("a", someKey, "b", short), "previous.key has 16 bytes"},
		"no key":          {"current: {id: a, created: 2026-01-31T08:00:00Z}", "current.key has 0 bytes"},
		"one byte":        {ringText("a", zeros, "", ""), "one byte repeated"},
		"not base64":      {ringText("a", "%%"+someKey, "", ""), "line 4"},
		"not base64 text": {ringText("a", "'%%"+someKey+"'", "", ""), "current.key is not base64"},
		"same id":         {ringText("a", someKey, "a", otherKey), "same id a"},
		"same key":        {ringText("a", someKey, "b", someKey), "same key"},
		"key as id":       {ringText("'"+someKey+"'", someKey, "", ""), "current.id must be"},
		"no id":           {ringText("''", someKey, "", ""), "current.id must be"},
		"no time":         {strings.Replace(ringText("a", someKey, "", ""), "2026-01-31T08:00:00Z", "yesterday", 1), "current.created must be"},
		"unknown field":   {ringText("a", someKey, "", "") + "  " + someKey[:20] + ": 1\n", "line 5"},
		"key for a root":  {"current: " + someKey, "line 1"},
		"syntax":          {"current: [" + someKey, "key ring"},
		"a huge file":     {strings.Repeat("# comment\n", 10_000), "64 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseRoots(c.text)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
			for _, secret := range []string{someKey[:8], otherKey[:8], short[:8], "my root"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q quotes the key", err)
				}
			}
		})
	}
}

func TestCreateRootsMakesAFileForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "roots.yaml")
	made, err := CreateRoots(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", info.Mode().Perm())
	}
	read, err := ReadRoots(path)
	if err != nil {
		t.Fatal(err)
	}
	if read.Current() != made.Current() {
		t.Errorf("read %s, made %s", read.Current(), made.Current())
	}
	sealed, err := made.now().current.aead.Encrypt([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read.now().current.aead.Decrypt(sealed, nil); err != nil {
		t.Error("the file's root is another one")
	}

	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateRoots(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the key ring was overwritten")
	}
}

// At every moment there is the whole key ring or none, so a kill leaves one or the
// other; and of several processes that make one, the others find it made.
func TestAKeyRingIsThereAsAWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	for range 20 {
		folder := t.TempDir()
		path := filepath.Join(folder, "roots.yaml")
		done := make(chan struct{})
		var makers, readers sync.WaitGroup
		var made atomic.Int64
		readers.Go(func() {
			for {
				if _, err := ReadRoots(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("there is half of it: %v", err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
		for range 4 {
			makers.Go(func() {
				switch _, err := CreateRoots(path); {
				case err == nil:
					made.Add(1)
				case !errors.Is(err, fs.ErrExist):
					t.Error(err)
				}
			})
		}
		makers.Wait()
		close(done)
		readers.Wait()
		left, err := os.ReadDir(folder)
		if err != nil || len(left) != 1 || made.Load() != 1 {
			t.Fatalf("%d were made, and %v is left (%v)", made.Load(), left, err)
		}
	}
}

func TestReadRootsRefusesWhatOthersCanUse(t *testing.T) {
	t.Parallel()
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o660, 0o644} {
		path := filepath.Join(t.TempDir(), "roots.yaml")
		if _, err := CreateRoots(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadRoots(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if _, err := ReadRoots(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := ReadRoots(t.TempDir()); err == nil {
		t.Error("a folder was read")
	}
}

func TestRootsPrintNoKey(t *testing.T) {
	t.Parallel()
	r := parse(t, ringText("b", someKey, "a", otherKey))
	raw, _ := base64.StdEncoding.DecodeString(someKey)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, value := range []any{r, struct{ R *Roots }{r}} {
			s := fmt.Sprintf(verb, value)
			if strings.Contains(s, string(raw)) || strings.Contains(s, fmt.Sprintf("%x", raw)) || strings.Contains(s, "109 121 32") || strings.Contains(s, "0x6d, 0x79") {
				t.Errorf("%s prints the key: %s", verb, s)
			}
		}
	}
}
