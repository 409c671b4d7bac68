package prove

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

const described = `{"paths": {
	"/v1/hooks/{id}": {"put": {
		"parameters": [
			{"in": "path", "name": "id", "schema": {"type": "string"}},
			{"in": "query", "name": "state", "schema": {"type": "string", "enum": ["on", "off"]}},
			{"in": "query", "name": "limit", "schema": {"type": "integer"}},
			{"in": "header", "name": "If-None-Match", "schema": {"type": "string"}}],
		"requestBody": {"content": {"application/json": {"example": {"url": "https://x.example"}, "schema": {"$ref": "#/components/schemas/Hook"}}}}}}},
	"components": {"schemas": {
		"Hook": {"type": "object", "additionalProperties": false, "properties": {
			"url": {"type": "string", "format": "uri"},
			"size": {"type": ["string", "null"], "pattern": "^([0-9]+x[0-9]+|auto)$"},
			"word": {"type": "string", "pattern": "^[a-z0-9]*$"},
			"until": {"type": "string", "format": "date-time"},
			"on": {"type": "boolean"},
			"labels": {"type": "object", "additionalProperties": {"type": "string"}},
			"parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
			"extra": {}}},
		"Part": {"oneOf": [{"type": "string"}, {"type": "object", "properties": {"text": {"type": ["string", "null"]}}}]}}}}`

// Every text that a document describes is an input, in whatever it lies; and one that
// got no canary, or was sent in a refused request alone, is missed.
func TestAnInputWithoutACanaryIsMissed(t *testing.T) {
	t.Parallel()
	all, err := operations([]byte(described))
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	want := []string{"body.extra", "body.labels (names)", "body.labels.*", "body.parts.[]", "body.parts.[].text", "body.url", "body.word", "header.If-None-Match", "path.id"}
	if got := slices.Sorted(slices.Values(all[0].inputs)); !slices.Equal(got, want) {
		t.Fatalf("inputs are\n%q, want\n%q", got, want)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "refuse") {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(server.Close)
	p := newPerson(server.URL, NewCanary())
	p.operations = all
	if err := p.ask(t.Context(), "GET", "/", nil, nil); err != nil { // with what any request has
		t.Fatal(err)
	}
	word := string(p.canary)
	put := func(path string, body any, headers ...string) {
		t.Helper()
		if err := p.ask(t.Context(), "PUT", path, body, nil, headers...); err != nil && !strings.Contains(path, "refuse") {
			t.Fatal(err)
		}
	}
	missing := func(want ...string) {
		t.Helper()
		got := p.without(all)
		for i := range want {
			want[i] = "PUT /v1/hooks/{id} " + want[i]
		}
		if !slices.Equal(got, want) {
			t.Errorf("missing are\n%q, want\n%q", got, want)
		}
		if err := p.complete(); (err == nil) != (len(want) == 0) || err != nil && !strings.Contains(err.Error(), want[0]+"\n") {
			t.Error(err)
		}
	}
	put("/v1/hooks/refuse"+word, object{"url": word, "extra": word, "word": word}, "if-none-match", word)
	missing("body.extra", "body.labels (names)", "body.labels.*", "body.parts.[]", "body.parts.[].text", "body.url", "body.word", "header.If-None-Match")
	put("/v1/hooks/hook_1", object{"url": "https://" + word + ".example", "word": word, "labels": object{word: word}, "parts": []any{word, object{"text": word}}, "extra": object{}}, "if-none-match", word)
	missing("body.extra")
	p.unable[all[0].name("body.extra")] = "none can be"
	missing()
	p.carried[1].inputs = nil // the id was in it
	missing("path.id")
}

// The person comes from an address that nobody else has.
func TestThePersonHasAnAddressOfTheirOwn(t *testing.T) {
	t.Parallel()
	from := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { from <- r.RemoteAddr }))
	t.Cleanup(server.Close)
	p := newPerson(strings.Replace(server.URL, "127.0.0.1", "localhost", 1), NewCanary())
	if err := p.ask(t.Context(), "GET", "/", nil, nil); err != nil {
		t.Fatal(err)
	}
	if found := kindsIn(t, p.canary, []byte("a line of "+<-from)); !slices.Equal(found, []Kind{IPv4}) {
		t.Errorf("found %v", found)
	}
	if found := kindsIn(t, NewCanary(), []byte(strings.Join([]string{string(p.canary.Encode(IPv4)), string(p.canary.Encode(IPv6))}, " "))); len(found) > 0 {
		t.Errorf("another one's addresses are the same: %v", found)
	}
}
