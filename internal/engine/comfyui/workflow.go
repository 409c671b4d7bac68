package comfyui

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"zimage/internal/engine"
)

//go:embed zimage.json
var zimage []byte

// socketNode is the class of the only node that hands out an image without
// writing a file.
const socketNode = "SaveImageWebsocket"

// A workflow is a graph in ComfyUI's API format with slots such as
// "{{prompt}}" in place of values.
type workflow struct {
	nodes  map[string]any
	output string          // id of the node that gives the image
	files  bool            // the image is a file on the engine; otherwise it comes through the websocket
	slots  map[string]bool // those that occur
	loader string          // class of the node that takes {{model}}
}

// readWorkflow reads the template at path, or the built-in Z-Image graph when
// path is empty. keeps is the engine's own: a template that writes files is
// refused unless it says disk. Errors name the path and what to change in it.
func readWorkflow(path, keeps string) (*workflow, error) {
	name, text := "built-in workflow", zimage
	if path != "" {
		name = "workflow " + path
		read, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("workflow: %w", err)
		}
		text = read
	}
	w, err := parseWorkflow(text, keeps)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return w, nil
}

func parseWorkflow(text []byte, keeps string) (*workflow, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // a seed of 2^53 and more would lose digits in a float64
	w := &workflow{slots: map[string]bool{}}
	if err := d.Decode(&w.nodes); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the JSON object")
	}
	if _, editor := w.nodes["links"]; editor {
		return nil, errors.New("this is the editor's format; export it with “Export (API)”")
	}
	var sockets, writers []string
	for id, raw := range w.nodes {
		node, _ := raw.(map[string]any)
		class, _ := node["class_type"].(string)
		if class == "" {
			return nil, fmt.Errorf("node %q has no class_type; export it with “Export (API)”", id)
		}
		switch {
		case class == socketNode:
			sockets = append(sockets, id)
		case writesFiles(class):
			writers = append(writers, id)
		}
		before := w.slots["model"]
		if err := w.collect(raw, "node "+id); err != nil {
			return nil, err
		}
		if w.slots["model"] && !before {
			w.loader = class
		}
	}
	if len(writers) > 0 && keeps != "disk" {
		return nil, fmt.Errorf("node %q writes files that ComfyUI never deletes: end the graph with %s, or declare keeps: disk",
			writers[0], socketNode)
	}
	switch {
	case len(sockets) == 1:
		w.output = sockets[0]
	case len(sockets) == 0 && len(writers) == 1:
		w.output, w.files = writers[0], true
	case len(sockets)+len(writers) == 0:
		return nil, fmt.Errorf("no output node: end the graph with %s", socketNode)
	default:
		return nil, errors.New("more than one output node: which holds the image cannot be told")
	}
	if !w.slots["prompt"] {
		return nil, errors.New("no {{prompt}} slot")
	}
	return w, nil
}

// writesFiles reports whether nodes of this class leave files behind: SaveImage
// in output/ for good, PreviewImage in temp/ until a restart, and what custom
// nodes name alike.
func writesFiles(class string) bool {
	lower := strings.ToLower(class)
	return class != socketNode && (strings.Contains(lower, "save") || strings.Contains(lower, "preview"))
}

// collect notes the slots of a value and refuses what is nearly one.
func (w *workflow) collect(value any, where string) error {
	switch v := value.(type) {
	case map[string]any:
		for key, child := range v {
			if strings.Contains(key, "{{") {
				return fmt.Errorf("%s: a slot can't be a name, only a value", where)
			}
			if err := w.collect(child, where+"."+key); err != nil {
				return err
			}
		}
	case []any:
		for _, child := range v {
			if err := w.collect(child, where); err != nil {
				return err
			}
		}
	case string:
		if !strings.Contains(v, "{{") {
			return nil
		}
		name, whole := slotName(v)
		if !whole {
			return fmt.Errorf("%s: a slot must be the whole value", where)
		}
		if _, known := slotValues(engine.Request{})[name]; !known {
			return fmt.Errorf("%s: unknown slot {{%s}}", where, name)
		}
		w.slots[name] = true
	}
	return nil
}

func slotName(s string) (name string, whole bool) {
	inner, opened := strings.CutPrefix(s, "{{")
	inner, closed := strings.CutSuffix(inner, "}}")
	return strings.TrimSpace(inner), opened && closed && !strings.ContainsAny(inner, "{}")
}

// slotValues is every slot there is, with its value for r.
func slotValues(r engine.Request) map[string]any {
	return map[string]any{
		"prompt":          r.Prompt,
		"negative_prompt": r.NegativePrompt,
		"seed":            r.Seed,
		"steps":           stepsOf(r),
		"guidance":        guidanceOf(r),
		"width":           r.Width,
		"height":          r.Height,
		"model":           upstreamOf(r.Model.ID, r.Served),
	}
}

// stepsOf is what the engine is told, which may differ from what the user counts.
func stepsOf(r engine.Request) int { return r.Steps + r.Served.StepsOffset }

func guidanceOf(r engine.Request) float64 {
	if r.Served.Guidance != nil {
		return *r.Served.Guidance
	}
	return r.Guidance
}

func upstreamOf(id string, s engine.Served) string {
	if s.Upstream != "" {
		return s.Upstream
	}
	return id
}

// fill is the graph for r. It walks the template and never looks into what it
// puts in, so a prompt that reads "{{seed}}" stays that text.
func (w *workflow) fill(r engine.Request) map[string]any {
	return substitute(w.nodes, slotValues(r)).(map[string]any)
}

func substitute(value any, values map[string]any) any {
	switch v := value.(type) {
	case map[string]any:
		filled := make(map[string]any, len(v))
		for key, child := range v {
			filled[key] = substitute(child, values)
		}
		return filled
	case []any:
		filled := make([]any, len(v))
		for i, child := range v {
			filled[i] = substitute(child, values)
		}
		return filled
	case string:
		if strings.HasPrefix(v, "{{") {
			name, _ := slotName(v)
			return values[name]
		}
	}
	return value
}
