package httpapi

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

var strictCases = []struct {
	name, body, location, message string // no message: accepted
}{
	{"plain", `{"prompt":"a lighthouse"}`, "", ""},
	{"emoji and escapes", `{"prompt":"\ud83d\ude80 caf\u00e9 \n"}`, "", ""},
	{"white space around", " \n{\"prompt\":\"x\"}\t ", "", ""},
	{"null", `null`, "", ""},
	{"empty", ``, "body", "is empty: a JSON object is required"},
	{"only spaces", " \n ", "body", "is empty: a JSON object is required"},
	{"cut", `{"prompt":"a`, "body", "is not one valid JSON value"},
	{"two values", `{"prompt":"a"} {"prompt":"b"}`, "body", "is not one valid JSON value"},
	{"trailing comma", `{"prompt":"a",}`, "body", "is not one valid JSON value"},
	{"comment", `{"prompt":"a"} // b`, "body", "is not one valid JSON value"},
	{"byte order mark", "\ufeff{}", "body", "is not one valid JSON value"},
	{"control character", "{\"prompt\":\"a\x01\"}", "body", "is not one valid JSON value"},
	{"not UTF-8", "{\"prompt\":\"\xff\xfe\"}", "body", "is not valid UTF-8"},
	{"surrogate in UTF-8", "{\"prompt\":\"\xed\xa0\x80\"}", "body", "is not valid UTF-8"},
	{"lone high surrogate", `{"prompt":"\ud800"}`, "body.prompt", "has broken text: a lone surrogate or U+FFFD"},
	{"lone low surrogate", `{"prompt":"x\udfffx"}`, "body.prompt", "has broken text: a lone surrogate or U+FFFD"},
	{"surrogates swapped", `{"prompt":"\ude80\ud83d"}`, "body.prompt", "has broken text: a lone surrogate or U+FFFD"},
	{"replacement character", "{\"prompt\":\"\ufffd\"}", "body.prompt", "has broken text: a lone surrogate or U+FFFD"},
	{"NUL", `{"prompt":"a\u0000b"}`, "body.prompt", "has a NUL character"},
	{"NUL in a name", `{"metadata":{"a\u0000":"b"}}`, "body.metadata", "has a NUL character"},
	{"surrogate in a name", `{"metadata":{"\ud800":"b"}}`, "body.metadata", "has broken text: a lone surrogate or U+FFFD"},
	{"twice", `{"prompt":"a","prompt":"b"}`, "body", "has the same field twice"},
	{"twice through an escape", `{"prompt":"a","pr\u006fmpt":"b"}`, "body", "has the same field twice"},
	{"twice inside", `{"metadata":{"k":"a","k":"b"}}`, "body.metadata", "has the same field twice"},
	{"unknown names stay out", `{"a secret":{"k":1,"k":2}}`, "body", "has the same field twice"},
	{"number out of range", `{"seed":1e999}`, "body.seed", "is a number out of range"},
	{"deep", strings.Repeat("[", 40) + strings.Repeat("]", 40), "body", "is nested too deeply"},
	{"deep in a field", `{"metadata":` + strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat("}", 41), "body.metadata", "is nested too deeply"},
	{"as many elements as ids", `{"ids":[` + strings.Repeat(`1,`, 999) + `1]}`, "", ""},
	{"too many elements", `{"ids":[` + strings.Repeat(`1,`, 1000) + `1]}`, "body.ids", "has more than 1000 elements"},
	{"many fields", `{` + strings.TrimSuffix(manyPairs(64), ",") + `}`, "", ""},
	{"too many fields", `{"metadata":{` + strings.TrimSuffix(manyPairs(65), ",") + `}}`, "body.metadata", "has more than 64 fields"},
	{"beyond the decoder's depth", strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "body", "is not one valid JSON value"},
}

func TestCheckJSON(t *testing.T) {
	t.Parallel()
	for _, c := range strictCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := checkJSON([]byte(c.body))
			switch {
			case f == nil && c.message != "":
				t.Fatalf("accepted, want %s %s", c.location, c.message)
			case f != nil && (f.Location != c.location || f.Message != c.message):
				t.Fatalf("got %s %q, want %s %q", f.Location, f.Message, c.location, c.message)
			}
		})
	}
}

// What checkJSON accepts decodes, has nothing broken in it, and nothing is lost
// on the way through our structs but what huma refuses.
func FuzzCheckJSON(f *testing.F) {
	for _, c := range strictCases {
		f.Add([]byte(c.body))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found := checkJSON(data)
		if found != nil {
			if found.Message == "" || !strings.HasPrefix(found.Location, "body") || len(found.Location) > 32 {
				t.Fatalf("refused with %+v", found)
			}
			return
		}
		var v any
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatalf("accepted what does not decode: %v", err)
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsRune(again, utf8.RuneError) || bytes.Contains(again, []byte(`\u0000`)) && !bytes.Contains(data, []byte(`\\u0000`)) {
			t.Fatal("accepted broken text")
		}
		if checkJSON(again) != nil {
			t.Fatal("refuses its own re-encoding")
		}
		var b createBody
		if err := decodeJSON(data, &b); err != nil && len(err.Error()) > 128 {
			t.Fatal("the error is as long as the input")
		}
	})
}
