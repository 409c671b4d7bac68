package httpapi

import (
	"encoding/json"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// reference is what the page of the documentation shows: the OpenAPI in the
// order in which a person reads it.
type reference struct {
	Title, Version, Description string
	Key                         string
	Errors                      []answer
	Groups                      []referenceGroup
	Schemas                     []referenceSchema
}

type referenceGroup struct {
	Name, Description string
	Operations        []referenceOperation
}

type referenceOperation struct {
	ID, Method, Path, Summary, Description string
	Parameters                             []referenceField
	Body, BodySchema, BodyExample          string
	Answers                                []referenceAnswer
}

type referenceAnswer struct {
	Status, Description, Kind, Schema, Example string
}

type referenceSchema struct {
	Name   string
	Fields []referenceField
}

type referenceField struct {
	Name, In, Type, Schema, Description string
	Required                            bool
}

func (a *API) reference() reference {
	o := a.spec.OpenAPI()
	r := reference{
		Title: o.Info.Title, Version: o.Info.Version, Description: o.Info.Description,
		Key: o.Components.SecuritySchemes["key"].Description, Errors: answers,
	}
	for _, t := range o.Tags {
		g := referenceGroup{Name: t.Name, Description: t.Description}
		for _, path := range slices.Sorted(maps.Keys(o.Paths)) {
			item := o.Paths[path]
			for _, op := range []*huma.Operation{item.Post, item.Get, item.Put, item.Patch, item.Delete} {
				if op != nil && slices.Contains(op.Tags, t.Name) {
					g.Operations = append(g.Operations, readOperation(op))
				}
			}
		}
		r.Groups = append(r.Groups, g)
	}
	schemas := o.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		s := referenceSchema{Name: name}
		for _, field := range slices.Sorted(maps.Keys(schemas[name].Properties)) {
			p := schemas[name].Properties[field]
			kind, ref := typeOf(p)
			s.Fields = append(s.Fields, referenceField{
				Name: field, Type: kind, Schema: ref, Description: p.Description, Required: slices.Contains(schemas[name].Required, field),
			})
		}
		r.Schemas = append(r.Schemas, s)
	}
	return r
}

func readOperation(op *huma.Operation) referenceOperation {
	r := referenceOperation{ID: op.OperationID, Method: op.Method, Path: op.Path, Summary: op.Summary, Description: op.Description}
	for _, p := range op.Parameters {
		kind, _ := typeOf(p.Schema)
		r.Parameters = append(r.Parameters, referenceField{Name: p.Name, In: p.In, Type: kind, Description: p.Description, Required: p.Required})
	}
	if op.RequestBody != nil {
		m := op.RequestBody.Content["application/json"]
		_, r.BodySchema = typeOf(m.Schema)
		r.Body, r.BodyExample = op.RequestBody.Description, pretty(m.Example)
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		answer := op.Responses[status]
		a := referenceAnswer{Status: status + " " + http.StatusText(number(status)), Description: answer.Description}
		for _, kind := range slices.Sorted(maps.Keys(answer.Content)) {
			m := answer.Content[kind]
			a.Kind = kind
			if m.Schema != nil {
				_, a.Schema = typeOf(m.Schema)
			}
			if m.Example != nil {
				a.Example = pretty(m.Example)
			}
		}
		r.Answers = append(r.Answers, a)
	}
	return r
}

func number(s string) int {
	n := 0
	for _, r := range s {
		n = n*10 + int(r-'0')
	}
	return n
}

// typeOf is a schema's type in a few words, and the schema it refers to.
func typeOf(s *huma.Schema) (kind, ref string) {
	if s == nil {
		return "", ""
	}
	if s.Ref != "" {
		return "object", s.Ref[strings.LastIndex(s.Ref, "/")+1:]
	}
	kind = s.Type
	if s.Type == huma.TypeArray {
		inner, ref := typeOf(s.Items)
		return "list of " + inner, ref
	}
	if s.Format == "date-time" {
		kind = "time, RFC 3339 UTC"
	}
	if len(s.Enum) > 0 {
		var words []string
		for _, e := range s.Enum {
			if w, ok := e.(string); ok {
				words = append(words, w)
			}
		}
		kind = strings.Join(words, " | ")
	}
	if s.Minimum != nil && s.Maximum != nil {
		kind += ", " + pretty(*s.Minimum) + " to " + pretty(*s.Maximum)
	}
	return kind, ""
}

func pretty(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // html/template escapes
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return ""
	}
	return strings.TrimSpace(b.String())
}

// rich shows what stands between backticks as code, which is how OpenAPI's
// descriptions mark it.
func rich(s string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(s, "`") {
		part = template.HTMLEscapeString(part)
		if i%2 == 1 {
			part = "<code>" + part + "</code>"
		}
		b.WriteString(part)
	}
	return template.HTML(b.String()) //nolint:gosec // our own words, escaped
}
