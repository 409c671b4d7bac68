package prove

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func kindsIn(t *testing.T, c Canary, text []byte) (found []Kind) {
	t.Helper()
	n, err := newFinder(c).search(bytes.NewReader(text), nil, func(h hit) { found = append(found, h.kind) })
	if err != nil || n != int64(len(text)) {
		t.Fatalf("read %d of %d: %v", n, len(text), err)
	}
	return found
}

// Each kind is found once wherever it stands, across the ends of blocks too, and
// nothing is found where it is not.
func TestEveryKindIsFound(t *testing.T) {
	t.Parallel()
	c := NewCanary()
	noise := make([]byte, 2*block+12345)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // no secret
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	if found := kindsIn(t, c, noise); len(found) > 0 {
		t.Errorf("in noise: %v", found)
	}
	for _, kind := range Kinds {
		encoded := c.Encode(kind)
		for _, at := range []int{0, 17, block - 5, block + carry - len(encoded)/2, block + carry, len(noise)} {
			text := slices.Concat(noise[:at], encoded, noise[at:])
			if found := kindsIn(t, c, text); !slices.Equal(found, []Kind{kind}) {
				t.Errorf("%s at %d: %v", kind, at, found)
			}
		}
		if found := kindsIn(t, NewCanary(), encoded); len(found) > 0 {
			t.Errorf("another one is found in %s: %v", kind, found)
		}
	}
}

func TestWhatIsPackedIsLookedInto(t *testing.T) {
	t.Parallel()
	c := NewCanary()
	var packed, archive bytes.Buffer
	w := gzip.NewWriter(&packed)
	fmt.Fprintf(w, "a log line with %s in it", c.With("prompt"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(&archive)
	entry, err := z.Create("account.json")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(entry, `{"name": %q}`, c.With("name"))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"gzip": packed.Bytes(), "zip": archive.Bytes()} {
		if found := kindsIn(t, c, text); !slices.Equal(found, []Kind{Compressed}) {
			t.Errorf("%s: %v", name, found)
		}
	}
}

// Letters may change their case on the way, and what stands before and behind in
// base64 is not ours.
func TestACanaryIsFoundHoweverItIsTreated(t *testing.T) {
	t.Parallel()
	c := NewCanary()
	for i := range 12 {
		text := strings.Repeat("x", i) + string(c) + strings.Repeat("y", i%5)
		for name, encoded := range map[string]string{"std": base64.StdEncoding.EncodeToString([]byte(text)), "url": base64.RawURLEncoding.EncodeToString([]byte(text))} {
			if found := kindsIn(t, c, []byte(encoded)); len(found) != 1 || !strings.HasPrefix(string(found[0]), "base64") {
				t.Errorf("%s, %d before: %v", name, i, found)
			}
		}
	}
	for _, text := range []string{strings.ToUpper(string(c)), strings.ToUpper(string(c.Encode(Hex))), strings.ToUpper(string(c.Encode(Percent))), "Ⱥ" + string(c)} {
		if found := kindsIn(t, c, []byte(text)); len(found) != 1 {
			t.Errorf("%q: %v", text, found)
		}
	}
	var got []hit
	_, err := newFinder(c).search(strings.NewReader("x "+c.With("newmail")+" "+c.With("mail")+" "+string(c)), []string{"mail", "newmail", "new"}, func(h hit) { got = append(got, h) })
	if err != nil || !slices.Equal(got, []hit{{Plain, "newmail"}, {Plain, "mail"}, {Plain, ""}}) {
		t.Errorf("inputs: %v, %v", got, err)
	}
}
