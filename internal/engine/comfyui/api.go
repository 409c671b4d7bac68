package comfyui

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"zimage/internal/engine"
)

// Limits of what is read of an answer, in bytes.
const (
	queueLimit  = 32 << 20 // holds the graphs of all that wait, which may be thousands
	recordLimit = 16 << 20 // holds the graph, and what failed with its inputs
)

// viewWait is how long an image file may take to arrive.
const viewWait = time.Minute

// api is ComfyUI's HTTP side. Its errors are *engine.Error without a word of
// the server's.
type api struct {
	client *engine.Client
}

func (a *api) get(ctx context.Context, path string, limit int64, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, engine.BriefCall)
	defer cancel()
	return a.client.JSON(ctx, http.MethodGet, path, nil, answer, limit)
}

func (a *api) post(ctx context.Context, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, engine.BriefCall)
	defer cancel()
	return a.client.JSON(ctx, http.MethodPost, path, body, nil, engine.MaxStatus)
}

// submit queues the graph under id, which also names our websocket. It returns
// the id the server uses: old builds mint their own. taken is false only when
// the server surely did not queue it.
func (a *api) submit(ctx context.Context, graph map[string]any, id string) (used string, taken bool, err error) {
	body := struct {
		Prompt   map[string]any `json:"prompt"`
		ClientID string         `json:"client_id"`
		PromptID string         `json:"prompt_id"`
	}{graph, id, id}
	ctx, cancel := context.WithTimeout(ctx, engine.BriefCall)
	defer cancel()
	answer, err := a.client.Bytes(ctx, http.MethodPost, "/prompt", body, engine.MaxStatus)
	if err != nil {
		return id, true, err
	}
	if answer.Status != http.StatusOK {
		return id, answer.Status >= 500 || answer.Status == http.StatusRequestTimeout, refusal(answer)
	}
	var accepted struct {
		PromptID string `json:"prompt_id"`
	}
	if json.Unmarshal(answer.Body, &accepted) != nil || !plainID(accepted.PromptID) {
		return id, true, engine.NewError(engine.FaultEngine, engine.CodeFailed, answer.Status, nil)
	}
	return accepted.PromptID, true, nil
}

// refusal is the error of an answer to POST /prompt. A 400 never comes of the
// prompt's words: either a number is beyond what a node takes, which our limits
// let through, or this engine lacks a model or a node of the graph. Its text
// quotes the inputs, so only the types of its errors are looked at.
func refusal(answer engine.Answer) error {
	if answer.Status != http.StatusBadRequest {
		return answer.Err()
	}
	var said struct {
		NodeErrors map[string]struct {
			Errors []struct {
				Type string `json:"type"`
			} `json:"errors"`
		} `json:"node_errors"`
	}
	_ = json.Unmarshal(answer.Body, &said) // an answer that can't be read names no type
	for _, node := range said.NodeErrors {
		for _, e := range node.Errors {
			if e.Type == "value_bigger_than_max" || e.Type == "value_smaller_than_min" {
				return engine.NewError(engine.FaultUser, engine.CodeInvalid, answer.Status, nil)
			}
		}
	}
	return engine.NewError(engine.FaultEngine, engine.CodeInvalid, answer.Status, nil)
}

// plainID guards what we put into a path.
func plainID(id string) bool {
	return id != "" && len(id) <= 64 && strings.Trim(id, "0123456789abcdefABCDEF-") == ""
}

// A place is where a prompt is on the server.
type place int

const (
	gone     place = iota // neither waiting nor running, and no history of it
	pending               // waits
	running               //
	finished              // in the history
)

// locate finds the prompt by its id, or by our websocket's name where an old
// build minted another id and its answer was lost. The queue is asked first:
// the server moves a prompt from it to the history in one step, so a prompt is
// never missed between the two.
func (a *api) locate(ctx context.Context, id, client string) (place, string, *record, error) {
	var queue struct {
		Running []queued `json:"queue_running"`
		Pending []queued `json:"queue_pending"`
	}
	if err := a.get(ctx, "/queue", queueLimit, &queue); err != nil {
		return gone, id, nil, err
	}
	mine := func(q queued) bool { return q.id == id || q.client == client }
	if i := slices.IndexFunc(queue.Running, mine); i >= 0 && plainID(queue.Running[i].id) {
		return running, queue.Running[i].id, nil, nil
	}
	if i := slices.IndexFunc(queue.Pending, mine); i >= 0 && plainID(queue.Pending[i].id) {
		return pending, queue.Pending[i].id, nil, nil
	}
	rec, err := a.history(ctx, id)
	switch {
	case err != nil:
		return gone, id, nil, err
	case rec == nil:
		return gone, id, nil, nil
	}
	return finished, id, rec, nil
}

// queued is an entry of the queue: [number, id, graph, extra, outputs]. The
// graph, which may be somebody else's, is not looked at.
type queued struct{ id, client string }

func (q *queued) UnmarshalJSON(text []byte) error {
	var parts []json.RawMessage
	if err := json.Unmarshal(text, &parts); err != nil {
		return err
	}
	if len(parts) < 2 {
		return errors.New("short queue entry")
	}
	if len(parts) > 3 {
		var extra struct {
			ClientID string `json:"client_id"`
		}
		if json.Unmarshal(parts[3], &extra) == nil {
			q.client = extra.ClientID
		}
	}
	return json.Unmarshal(parts[1], &q.id)
}

// record is a finished prompt in the history.
type record struct {
	Outputs map[string]struct {
		Images []file `json:"images"`
	} `json:"outputs"`
	Status struct {
		Text     string    `json:"status_str"`
		Messages []message `json:"messages"`
	} `json:"status"`
}

type file struct {
	Name   string `json:"filename"`
	Folder string `json:"subfolder"`
	Type   string `json:"type"`
}

// history is nil for a prompt that is unknown or has not finished.
func (a *api) history(ctx context.Context, id string) (*record, error) {
	var entries map[string]*record
	if err := a.get(ctx, "/history/"+id, recordLimit, &entries); err != nil {
		return nil, err
	}
	return entries[id], nil
}

func (a *api) view(ctx context.Context, f file, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, viewWait)
	defer cancel()
	query := url.Values{"filename": {f.Name}, "subfolder": {f.Folder}, "type": {f.Type}}
	answer, err := a.client.Bytes(ctx, http.MethodGet, "/view?"+query.Encode(), nil, limit)
	if err == nil && answer.Status != http.StatusOK {
		return nil, engine.NewError(engine.FaultEngine, engine.CodeBadImage, answer.Status, nil)
	}
	return answer.Body, err
}

// cancel asks the server to stop this prompt and no other. The builds before
// /api/jobs may ignore the id an interrupt names and stop whatever runs, so
// they get one only while the queue says that it is ours.
func (a *api) cancel(ctx context.Context, id string, at place) error {
	err := a.post(ctx, "/api/jobs/"+id+"/cancel", struct{}{})
	var e *engine.Error
	switch {
	case !errors.As(err, &e) || e.Status != http.StatusNotFound && e.Status != http.StatusMethodNotAllowed:
		return err
	case at == running:
		return a.post(ctx, "/interrupt", map[string]string{"prompt_id": id})
	}
	return a.post(ctx, "/queue", map[string][]string{"delete": {id}})
}

// forget deletes the prompt from the history and looks whether it is gone.
func (a *api) forget(ctx context.Context, id string) error {
	if err := a.post(ctx, "/history", map[string][]string{"delete": {id}}); err != nil {
		return err
	}
	rec, err := a.history(ctx, id)
	if err == nil && rec != nil {
		err = engine.NewError(engine.FaultEngine, engine.CodeFailed, 0, errKept)
	}
	return err
}
