package privacy

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"path"
	"slices"
	"strings"
	texttemplate "text/template"
	"time"
)

//go:embed export
var exportFiles embed.FS

// The pages have no scripts, and every link in them leads to a file beside them.
// html/template keeps what people wrote from being more than text.
var (
	exportPages  = template.Must(template.ParseFS(exportFiles, "export/*.html"))
	exportReadme = texttemplate.Must(texttemplate.ParseFS(exportFiles, "export/README.txt"))
)

// A shownRecord is one record of a page.
type shownRecord struct {
	Fields []shownField
	Above  []shownField // of the record that it belongs to
	Files  []string     // paths in the archive
}

// Pictures are the record's files as a page links to them.
func (r shownRecord) Pictures() []string {
	var links []string
	for _, f := range r.Files {
		links = append(links, "../"+f)
	}
	return links
}

type shownField struct{ Name, Value string }

// show turns fields into words. Those of an object stand beside the others.
func show(fields []field) []shownField {
	var shown []shownField
	add := func(name, value string) {
		if value != "" {
			shown = append(shown, shownField{strings.ReplaceAll(name, "_", " "), value})
		}
	}
	for _, f := range fields {
		switch v := f.value.(type) {
		case nil:
		case json.RawMessage:
			for _, member := range members(v) {
				add(f.name+": "+member.Name, member.Value)
			}
		case bool:
			add(f.name, map[bool]string{true: "yes", false: "no"}[v])
		case []string:
			add(f.name, strings.Join(v, ", "))
		case string:
			if at, err := time.Parse("2006-01-02T15:04:05.000Z", v); err == nil {
				v = at.Format("2 January 2006, 15:04:05 UTC")
			}
			add(f.name, v)
		default:
			add(f.name, fmt.Sprint(v))
		}
	}
	return shown
}

// members of a JSON object, in its order; anything else is one without a name.
func members(object json.RawMessage) []shownField {
	var all []shownField
	d := json.NewDecoder(bytes.NewReader(object))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return []shownField{{Value: string(object)}}
	}
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			return []shownField{{Value: string(object)}}
		}
		text := string(value)
		var words string
		if json.Unmarshal(value, &words) == nil {
			text = words
		}
		if text != "null" {
			all = append(all, shownField{fmt.Sprint(name), text})
		}
	}
	return all
}

func title(l *listing) string { return strings.ReplaceAll(l.table.Export, "_", " ") }

func writePage(w io.Writer, l *listing, records []shownRecord, more bool) error {
	data := map[string]any{"Title": title(l), "Holds": l.table.Holds, "Number": l.Pages, "Records": records}
	if l.Pages > 1 {
		data["Before"] = path.Base(l.page(l.Pages - 1))
	}
	if more {
		data["Next"] = path.Base(l.page(l.Pages + 1))
	}
	return exportPages.ExecuteTemplate(w, "page.html", data)
}

// A section is the lists of one category.
type section struct {
	Title string
	Lists []sectionList
}

type sectionList struct {
	Title, Holds, JSON, Page string
	Records                  int64
	Kept                     []string
}

func (a *archive) index(w io.Writer) error {
	var sections []section
	for _, category := range categories {
		s := section{Title: strings.ToUpper(category[:1]) + category[1:]}
		for _, l := range a.lists {
			if l.table.Category != category {
				continue
			}
			one := sectionList{Title: title(l), Holds: l.table.Holds, JSON: l.path("", ".json"), Records: l.Records, Kept: a.s.kept(l.table)}
			if l.Pages > 0 {
				one.Page = l.page(1)
			}
			s.Lists = append(s.Lists, one)
		}
		if len(s.Lists) > 0 {
			sections = append(sections, s)
		}
	}
	return exportPages.ExecuteTemplate(w, "index.html", map[string]any{
		"Subject": a.owner, "At": a.at.Format("2 January 2006, 15:04 UTC"), "Sections": sections,
		"LeftOut": a.s.Map.omissions(), "Removed": a.removed,
	})
}

func (a *archive) readme(w io.Writer) error {
	var folders []string
	for i := range a.s.Map.Objects {
		if o := &a.s.Map.Objects[i]; o.Export != "" {
			folders = append(folders, o.Category+"/"+o.Export+"/")
		}
	}
	slices.Sort(folders)
	return exportReadme.ExecuteTemplate(w, "README.txt", map[string]any{
		"Subject": a.owner, "Export": a.id, "At": a.at.Format("2 January 2006, 15:04 UTC"), "Folders": slices.Compact(folders),
	})
}
