package comfyui

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/url"
	"time"

	"github.com/coder/websocket"

	"zimage/internal/engine"
)

// A message tells of one event. In the history the same stands as the pair
// [type, data].
type message struct {
	Type string      `json:"type"`
	Data messageData `json:"data"`
}

type messageData struct {
	PromptID      string  `json:"prompt_id"`
	Node          *string `json:"node"` // of executing: null means that the prompt is done
	Value         float64 `json:"value"`
	Max           float64 `json:"max"`
	ExceptionType string  `json:"exception_type"`
	Nodes         map[string]struct {
		Value float64 `json:"value"`
		Max   float64 `json:"max"`
	} `json:"nodes"`
}

func (m *message) UnmarshalJSON(text []byte) error {
	var pair []json.RawMessage
	if json.Unmarshal(text, &pair) == nil {
		if len(pair) != 2 {
			return errors.New("not a pair")
		}
		if err := json.Unmarshal(pair[0], &m.Type); err != nil {
			return err
		}
		_ = json.Unmarshal(pair[1], &m.Data) // of a type we don't know
		return nil
	}
	var whole struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(text, &whole); err != nil {
		return err
	}
	m.Type = whole.Type
	_ = json.Unmarshal(whole.Data, &m.Data) // of a type we don't know
	return nil
}

// heard is what comes through the websocket.
type heard struct {
	message message
	frame   []byte // binary, instead of a message
	again   bool   // the connection was lost and made again: something may be missing
	lost    error  // the last: the connection can't be had any more
}

// A watcher listens on one websocket, named like our prompt. It reads without
// pause: the server sends to everybody from one loop, which a slow reader holds up.
type watcher struct {
	conn  *websocket.Conn
	heard chan heard
	stop  context.CancelFunc
	done  chan struct{}
}

// watch connects; reading begins at once. A message of more than limit bytes
// ends it.
func (a *api) watch(ctx context.Context, client string, limit int64) (*watcher, error) {
	conn, err := a.dial(ctx, client, limit)
	if err != nil {
		return nil, err
	}
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	w := &watcher{conn: conn, heard: make(chan heard, 16), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.read(reading, func() (*websocket.Conn, error) { return a.dial(reading, client, limit) })
	}()
	return w, nil
}

func (a *api) dial(ctx context.Context, client string, limit int64) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, engine.BriefCall)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, a.client.URL("/ws?clientId="+url.QueryEscape(client)),
		&websocket.DialOptions{HTTPClient: a.client.HTTP()})
	if err != nil {
		e := engine.TransportError(ctx, err)
		if resp != nil && e.Code == engine.CodeUnreachable {
			e = engine.NewError(engine.FaultEngine, engine.CodeUnreachable, resp.StatusCode, nil)
		}
		return nil, e
	}
	conn.SetReadLimit(limit)
	return conn, nil
}

// read passes on what it hears. A lost connection is made again three times
// within a second or so: the server keeps what runs and sends on to the new one.
func (w *watcher) read(ctx context.Context, dial func() (*websocket.Conn, error)) {
	tell := func(h heard) bool {
		select {
		case w.heard <- h:
			return true
		case <-ctx.Done():
			return false
		}
	}
	defer func() { _ = w.conn.CloseNow() }()
	for tries := 0; ; {
		kind, data, err := w.conn.Read(ctx)
		switch {
		case err == nil && kind == websocket.MessageBinary:
			if !tell(heard{frame: data}) {
				return
			}
		case err == nil:
			var h heard
			if json.Unmarshal(data, &h.message) == nil && !tell(h) {
				return
			}
		case errors.Is(err, websocket.ErrMessageTooBig):
			tell(heard{lost: engine.NewError(engine.FaultEngine, engine.CodeTooLarge, 0, nil)})
			return
		default:
			_ = w.conn.CloseNow()
			var conn *websocket.Conn
			for ; conn == nil && tries < 3; tries++ {
				if conn, err = dial(); err != nil && !sleep(ctx, 200*time.Millisecond) {
					return
				}
			}
			if conn == nil {
				tell(heard{lost: engine.NewError(engine.FaultEngine, engine.CodeUnreachable, 0, nil)})
				return
			}
			w.conn = conn
			if !tell(heard{again: true}) {
				return
			}
		}
	}
}

func (w *watcher) close() {
	w.stop()
	<-w.done
}

// picture is the image of a frame: a big-endian 1 for “image”, then 1 for JPEG
// or 2 for PNG, then the file. Everything else is some other kind of frame.
func picture(frame []byte) (image []byte, ok bool) {
	if len(frame) < 4 || binary.BigEndian.Uint32(frame) != 1 {
		return nil, false
	}
	if len(frame) < 8 {
		return nil, true // an image frame without an image
	}
	return frame[8:], true
}

// sleep reports whether ctx lived through d.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
