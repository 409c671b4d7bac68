package prove

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// A text that the API takes is an input, such as "POST /v1/keys body.name". That each
// of them gets a canary is not said but measured: what its OpenAPI document describes
// is compared with what was sent and accepted. So an input that is added to the API
// needs a line in person.go, in the request that sends it; or one here.

// ours are inputs in which the service takes its own words alone, by the end of their
// names. They get a canary too, which is refused.
var ours = []string{
	"path.id", "query.cursor", "query.after", "query.account", // ids
	"body.ids.[]", "body.account", "body.record", "passkey.challenge_id",
	"path.token", "body.code", "body.secret", "body.token", "passkey.response", // what opens something
	"generations body.model", "path.model", "header.X-Stainless-Retry-Count",
}

// unsent are inputs that get none, and why.
var unsent = map[string]string{
	"POST /v1/admin/accounts/{id}/close-child body.reason": "it closes the account at once; the reason goes the way of all reasons",
}

// everywhere are headers that any request may have, which the document does not
// describe.
var everywhere = []string{"User-Agent", "Referer", "Accept-Language", "X-Request-ID", "X-Real-IP", "X-Forwarded-For", "Forwarded", "Cookie"}

// An operation is one of the API, as far as its inputs go.
type operation struct {
	method, path string
	inputs       []string // where in the request
	example      any      // of its body
}

func (o operation) name(input string) string { return o.method + " " + o.path + " " + input }

// isOurs reports whether a named input takes our own words alone.
func isOurs(name string) bool {
	return slices.ContainsFunc(ours, func(end string) bool { return strings.HasSuffix(name, end) })
}

type schema struct {
	Ref                  string `json:"$ref"`
	Type                 any
	Enum                 []any
	Format, Pattern      string
	Properties           map[string]schema
	AdditionalProperties json.RawMessage
	Items                *schema
	AllOf, AnyOf, OneOf  []schema
}

// operations reads an OpenAPI document.
func operations(text []byte) (all []operation, err error) {
	var document struct {
		Paths map[string]map[string]struct {
			Parameters []struct {
				In, Name string
				Schema   schema
			}
			RequestBody struct {
				Content map[string]struct {
					Schema  schema
					Example any
				}
			}
		}
		Components struct{ Schemas map[string]schema }
	}
	if err := json.Unmarshal(text, &document); err != nil || len(document.Paths) == 0 {
		return nil, errors.New("the API's own description is none")
	}
	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		for method, described := range document.Paths[path] {
			o := operation{method: strings.ToUpper(method), path: path}
			for _, p := range described.Parameters {
				o.inputs = append(o.inputs, texts(document.Components.Schemas, p.Schema, p.In+"."+p.Name)...)
			}
			for _, body := range described.RequestBody.Content {
				o.inputs, o.example = append(o.inputs, texts(document.Components.Schemas, body.Schema, "body")...), body.Example
			}
			all = append(all, o)
		}
	}
	return all, nil
}

// texts are the places within a value where it takes text of whoever sends it: not
// words of a list or of a form that no canary has, nor times.
func texts(named map[string]schema, s schema, at string) (all []string) {
	if s.Ref != "" {
		s = named[s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]]
	}
	for _, one := range slices.Concat(s.AllOf, s.AnyOf, s.OneOf) {
		all = append(all, texts(named, one, at)...)
	}
	is := func(kind string) bool {
		several, _ := s.Type.([]any)
		return s.Type == kind || slices.Contains(several, any(kind))
	}
	for name, one := range s.Properties {
		all = append(all, texts(named, one, at+"."+name)...)
	}
	var more schema
	if is("object") && json.Unmarshal(s.AdditionalProperties, &more) == nil {
		all = append(append(all, at+" (names)"), texts(named, more, at+".*")...)
	}
	if s.Items != nil {
		all = append(all, texts(named, *s.Items, at+".[]")...)
	}
	anything := s.Type == nil && len(all) == 0
	form, err := regexp.Compile(s.Pattern)
	free := len(s.Enum) == 0 && !strings.HasPrefix(s.Format, "date") && (err != nil || form.MatchString(NewCanary().With("word")))
	if (anything || is("string")) && free {
		all = append(all, at)
	}
	return all
}

// A sent request is what was sent in one: where canaries stood in it.
type sent struct {
	method, path string
	inputs       []string
	refused      bool
}

// canariesIn are the places in a request where the canary stands.
func canariesIn(c Canary, r *http.Request, body any) (all []string) {
	is := func(text string) bool { return strings.Contains(text, string(c)) }
	for i, part := range strings.Split(r.URL.Path, "/") {
		if is(part) {
			all = append(all, fmt.Sprintf("path.%d", i))
		}
	}
	for name, values := range r.URL.Query() {
		if is(strings.Join(values, " ")) {
			all = append(all, "query."+name)
		}
	}
	four, six := c.addresses()
	for name, values := range r.Header {
		if text := strings.Join(values, " "); is(text) || strings.Contains(text, four.String()) || strings.Contains(text, six.String()) {
			all = append(all, "header."+name)
		}
	}
	var walk func(v any, at string)
	walk = func(v any, at string) {
		switch v := v.(type) {
		case string:
			if is(v) {
				all = append(all, at)
			}
		case []any:
			for _, one := range v {
				walk(one, at+".[]")
			}
		case map[string]any:
			for name, one := range v {
				if is(name) {
					all = append(all, at+" (names)")
					name = "*"
				}
				walk(one, at+"."+name)
			}
		}
	}
	walk(body, "body")
	return all
}

// within names the inputs that were sent to an operation; not ok: it went to another.
func (s sent) within(o operation) (names []string, ok bool) {
	parts, mine := strings.Split(o.path, "/"), strings.Split(s.path, "/")
	if s.method != o.method || len(parts) != len(mine) {
		return nil, false
	}
	variables := map[string]string{}
	for i, part := range parts {
		if variable := strings.HasPrefix(part, "{"); variable {
			variables[fmt.Sprintf("path.%d", i)] = "path." + strings.Trim(part, "{}")
		} else if part != mine[i] {
			return nil, false
		}
	}
	for _, input := range s.inputs {
		if variable, ok := variables[input]; ok {
			input = variable
		}
		names = append(names, o.name(input))
	}
	return names, true
}

// without are the inputs that got no canary, and may not go without one.
func (p *person) without(all []operation) (missing []string) {
	accepted, refused := map[string]bool{}, map[string]bool{}
	for _, o := range all {
		for _, s := range p.carried {
			names, _ := s.within(o)
			for _, name := range names {
				// Names of headers are written in several ways.
				accepted[strings.ToLower(name)] = accepted[strings.ToLower(name)] || !s.refused
				refused[strings.ToLower(name)] = true
			}
		}
	}
	for _, o := range all {
		for _, input := range o.inputs {
			name := o.name(input)
			_, excused := unsent[name]
			_, unable := p.unable[name]
			key := strings.ToLower(name)
			if done := accepted[key] || excused || unable || isOurs(name) && refused[key]; !done {
				missing = append(missing, name)
			}
		}
	}
	for _, header := range everywhere {
		if !slices.ContainsFunc(p.carried, func(s sent) bool {
			return !s.refused && slices.Contains(s.inputs, "header."+http.CanonicalHeaderKey(header))
		}) {
			missing = append(missing, "header."+header+" of any request")
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// unsent are the inputs that got no canary, and why.
func (p *person) unsent() (all []string) {
	for _, whys := range []map[string]string{p.unable, unsent} {
		for name, why := range whys {
			all = append(all, name+" ("+why+")")
		}
	}
	slices.Sort(all)
	return all
}

// describe reads what the API says of itself.
func (p *person) describe(ctx context.Context) (err error) {
	var text []byte
	if err := p.ask(ctx, http.MethodGet, "/openapi.json", nil, &text); err != nil {
		return err
	}
	p.operations, err = operations(text)
	return err
}

// complete is an error when an input of the API got no canary.
func (p *person) complete() error {
	missing := p.without(p.operations)
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("nothing was sent through\n  %s\nEither the API is of another version than this command, or these inputs are new: "+
		"send a canary through each, in a request of internal/prove/person.go, or say in internal/prove/inputs.go why none is", strings.Join(missing, "\n  "))
}

// misuse puts a canary where the service takes its own words alone, in every operation
// of staff or of everybody else.
func (p *person) misuse(ctx context.Context, staff bool) error {
	for _, o := range p.operations {
		if strings.HasPrefix(o.path, "/v1/admin/") != staff {
			continue
		}
		path, query, body, headers := o.path, url.Values{}, o.example, []string{}
		some := false
		for _, input := range o.inputs {
			if !isOurs(o.name(input)) {
				continue
			}
			some = true
			word := p.word("misuse")
			switch where, name, _ := strings.Cut(input, "."); where {
			case "path":
				path = strings.ReplaceAll(path, "{"+name+"}", "x_"+word)
			case "query":
				query.Set(name, word)
			case "header":
				headers = append(headers, name, word)
			case "body":
				body = put(body, strings.Split(name, "."), word)
			}
		}
		if !some || strings.Contains(path, "{") {
			continue
		}
		if len(query) > 0 {
			path += "?" + query.Encode()
		}
		if o.example == nil {
			body = nil
		}
		err := p.ask(ctx, o.method, path, body, nil, headers...)
		var r refusal
		if err != nil && (!errors.As(err, &r) || r.status >= http.StatusInternalServerError) {
			return err
		}
	}
	return nil
}

// put puts a word into a JSON value.
func put(v any, at []string, word string) any {
	switch {
	case len(at) == 0:
		return word
	case at[0] == "[]":
		return []any{put(nil, at[1:], word)}
	}
	m, _ := v.(map[string]any)
	if m = maps.Clone(m); m == nil {
		m = object{}
	}
	m[at[0]] = put(m[at[0]], at[1:], word)
	return m
}
