// Package fake is a ComfyUI server without a GPU, for tests: its queue, its
// one executor, its history and its messages in the order of the real ones, and
// switches for what goes wrong. It records what is left behind of a prompt.
//
// It draws nothing but one colour, made from the seed.
package fake

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Options are the switches. The zero value is a quick server of today's build.
type Options struct {
	Models       []string      // of diffusion_models; default z-image-turbo and z_image_turbo_bf16.safetensors
	Step         time.Duration // of one step
	Hang         bool          // the sampler stops at its first step until it is interrupted
	Stuck        time.Duration // an interrupt takes effect only after this
	Fail         string        // exception type of an execution_error that quotes the prompt
	Refuse       string        // error type of a 400 at /prompt that quotes the prompt
	Previews     bool          // preview frames at every step
	Others       bool          // other people's messages and frames among ours
	Older        bool          // no /api/jobs, own prompt ids, and an interrupt stops whatever runs
	CutAt        int           // the websocket breaks at this step
	CutForGood   bool          // and no new one is let in
	Silent       bool          // nothing is told of the end
	NoImage      bool          // the image frame is not sent
	HalfFrame    bool          // the image is cut off
	HugeFrame    bool          // the image frame goes on for 3 GB
	WrongSize    bool          // the image is larger than asked for
	IgnoreSeed   bool          // the image is made from another seed every time
	NotImage     bool          // the image frame holds something else
	Status       int           // of every answer to /prompt, instead of queueing
	KeepFile     bool          // the output node writes a file, whatever its class
	KeepHistory  int           // so many deletions from the history are answered and not done
	LoseReply    bool          // the answer to /prompt is lost after the prompt was queued
	HangRequests bool          // no HTTP request is answered
}

// Leftovers is what a server still holds of the prompts it was sent.
type Leftovers struct {
	History, Files, Queue []string
}

// Empty reports whether nothing is left.
func (l Leftovers) Empty() bool { return len(l.History)+len(l.Files)+len(l.Queue) == 0 }

// Server is a fake ComfyUI and an http.Handler.
type Server struct {
	mux  *http.ServeMux
	stop context.CancelFunc
	done chan struct{} // the executor ended

	closing <-chan struct{}

	mu          sync.Mutex
	wake        *sync.Cond
	closed      bool
	options     Options
	number      int
	pending     []*job
	running     *job
	interrupt   bool
	interrupted []string
	history     map[string]any
	files       map[string][]byte
	sockets     map[string]*websocket.Conn
	graphs      []json.RawMessage
	flooded     int64
}

type job struct {
	number     int
	id, client string
	raw        json.RawMessage
	graph      map[string]node
	messages   [][2]any
}

type node struct {
	Class  string         `json:"class_type"`
	Inputs map[string]any `json:"inputs"`
}

// New starts a server; Close ends it.
func New(o Options) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{
		mux: http.NewServeMux(), stop: stop, done: make(chan struct{}), closing: ctx.Done(), options: o,
		history: map[string]any{}, files: map[string][]byte{}, sockets: map[string]*websocket.Conn{},
	}
	s.wake = sync.NewCond(&s.mu)
	s.mux.HandleFunc("GET /ws", s.socket)
	s.mux.HandleFunc("POST /prompt", s.prompt)
	s.mux.HandleFunc("GET /queue", s.getQueue)
	s.mux.HandleFunc("POST /queue", s.postQueue)
	s.mux.HandleFunc("POST /interrupt", s.postInterrupt)
	s.mux.HandleFunc("POST /api/jobs/{id}/cancel", s.cancelJob)
	s.mux.HandleFunc("GET /history/{id}", s.getHistory)
	s.mux.HandleFunc("POST /history", s.postHistory)
	s.mux.HandleFunc("GET /view", s.view)
	s.mux.HandleFunc("GET /system_stats", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{"system": map[string]any{"comfyui_version": "0.0.0-fake"}, "devices": []any{}})
	})
	s.mux.HandleFunc("GET /models/{folder}", func(w http.ResponseWriter, r *http.Request) {
		models := s.now().Models
		if models == nil {
			models = []string{"z-image-turbo", "z_image_turbo_bf16.safetensors"}
		}
		if r.PathValue("folder") != "diffusion_models" {
			models = []string{}
		}
		answer(w, 200, models)
	})
	go s.execute(ctx)
	return s
}

// ServeHTTP answers with and without the /api prefix, like the real one.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.now().HangRequests {
		_, _ = io.Copy(io.Discard, r.Body) // a server sees who goes away only after the body
		select {
		case <-r.Context().Done():
		case <-s.closing:
		}
		return
	}
	if path, ok := strings.CutPrefix(r.URL.Path, "/api"); ok && !strings.HasPrefix(path, "/jobs") {
		r.URL.Path = path
	}
	s.mux.ServeHTTP(w, r)
}

// Close stops what runs and waits for it.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.wake.Broadcast()
	for _, c := range s.sockets {
		go func() { _ = c.CloseNow() }()
	}
	s.mu.Unlock()
	s.stop()
	<-s.done
}

// Set changes the switches.
func (s *Server) Set(o Options) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options = o
	s.wake.Broadcast()
}

func (s *Server) now() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.options
}

// Leftovers lists what remains.
func (s *Server) Leftovers() Leftovers {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := Leftovers{History: slices.Sorted(maps.Keys(s.history)), Files: slices.Sorted(maps.Keys(s.files))}
	if s.running != nil {
		l.Queue = append(l.Queue, s.running.id)
	}
	for _, j := range s.pending {
		l.Queue = append(l.Queue, j.id)
	}
	return l
}

// Running is the id of the prompt that runs, or empty.
func (s *Server) Running() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return ""
	}
	return s.running.id
}

// Interrupted lists the prompts that were stopped while they ran.
func (s *Server) Interrupted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.interrupted)
}

// Flooded is how many bytes of a huge frame were taken.
func (s *Server) Flooded() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flooded
}

// Graphs lists the graphs that were sent, in their order.
func (s *Server) Graphs() []json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.graphs)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) socket(w http.ResponseWriter, r *http.Request) {
	client := r.URL.Query().Get("clientId")
	s.mu.Lock()
	cut := s.options.CutForGood && s.sockets[client+" cut"] != nil
	s.mu.Unlock()
	if cut {
		http.Error(w, "no", http.StatusBadGateway)
		return
	}
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.sockets[client] = c
	s.mu.Unlock()
	s.send(client, "status", map[string]any{"status": map[string]any{}, "sid": client})
	for {
		if _, _, err := c.Read(r.Context()); err != nil {
			break
		}
	}
	s.mu.Lock()
	if s.sockets[client] == c {
		delete(s.sockets, client)
	}
	s.mu.Unlock()
}

// write sends to one client.
func (s *Server) write(client string, kind websocket.MessageType, data []byte) {
	s.mu.Lock()
	c := s.sockets[client]
	s.mu.Unlock()
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.Write(ctx, kind, data)
}

func (s *Server) send(client, kind string, data map[string]any) {
	text, _ := json.Marshal(map[string]any{"type": kind, "data": data})
	s.write(client, websocket.MessageText, text)
}

func (s *Server) prompt(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Prompt   json.RawMessage `json:"prompt"`
		ClientID string          `json:"client_id"`
		PromptID string          `json:"prompt_id"`
	}
	var graph map[string]node
	if json.NewDecoder(r.Body).Decode(&body) != nil || json.Unmarshal(body.Prompt, &graph) != nil {
		answer(w, 400, map[string]any{"error": map[string]any{"type": "no_prompt"}, "node_errors": map[string]any{}})
		return
	}
	s.mu.Lock()
	o := s.options
	s.graphs = append(s.graphs, body.Prompt)
	if o.Refuse != "" {
		s.mu.Unlock()
		answer(w, 400, map[string]any{
			"error": map[string]any{"type": "prompt_outputs_failed_validation", "message": "bad", "details": string(body.Prompt)},
			"node_errors": map[string]any{"x": map[string]any{"class_type": "X", "errors": []any{
				map[string]any{"type": o.Refuse, "message": "bad", "details": string(body.Prompt)},
			}}},
		})
		return
	}
	if o.Status != 0 {
		s.mu.Unlock()
		http.Error(w, string(body.Prompt), o.Status)
		return
	}
	s.number++
	j := &job{number: s.number, id: body.PromptID, client: body.ClientID, raw: body.Prompt, graph: graph}
	if o.Older || j.id == "" {
		j.id = fmt.Sprintf("00000000-0000-4000-8000-%012d", s.number)
	}
	s.pending = append(s.pending, j)
	s.wake.Broadcast()
	s.mu.Unlock()
	if o.LoseReply {
		panic(http.ErrAbortHandler)
	}
	answer(w, 200, map[string]any{"prompt_id": j.id, "number": j.number, "node_errors": map[string]any{}})
}

func (j *job) entry() []any {
	return []any{j.number, j.id, j.raw, map[string]any{"client_id": j.client}, []any{}}
}

func (s *Server) getQueue(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pending, running := []any{}, []any{}
	for _, j := range s.pending {
		pending = append(pending, j.entry())
	}
	if s.running != nil {
		running = append(running, s.running.entry())
	}
	answer(w, 200, map[string]any{"queue_running": running, "queue_pending": pending})
}

func (s *Server) dequeue(id string) bool {
	before := len(s.pending)
	s.pending = slices.DeleteFunc(s.pending, func(j *job) bool { return j.id == id })
	return len(s.pending) < before
}

func (s *Server) postQueue(w http.ResponseWriter, r *http.Request) {
	var body struct{ Delete []string }
	_ = json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range body.Delete {
		s.dequeue(id)
	}
}

func (s *Server) postInterrupt(_ http.ResponseWriter, r *http.Request) {
	var body struct {
		ID string `json:"prompt_id"`
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil && (s.options.Older || body.ID == "" || body.ID == s.running.id) {
		s.interrupt = true
		s.wake.Broadcast()
	}
}

func (s *Server) cancelJob(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.PathValue("id")
	switch {
	case s.options.Older:
		http.NotFound(w, r)
		return
	case s.running != nil && s.running.id == id:
		s.interrupt = true
		s.wake.Broadcast()
		answer(w, 200, map[string]bool{"cancelled": true})
	default:
		answer(w, 200, map[string]bool{"cancelled": s.dequeue(id)})
	}
}

func (s *Server) getHistory(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]any{}
	if entry, ok := s.history[r.PathValue("id")]; ok {
		found[r.PathValue("id")] = entry
	}
	answer(w, 200, found)
}

func (s *Server) postHistory(_ http.ResponseWriter, r *http.Request) {
	var body struct{ Delete []string }
	_ = json.NewDecoder(r.Body).Decode(&body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.options.KeepHistory > 0 {
		s.options.KeepHistory--
		return
	}
	for _, id := range body.Delete {
		delete(s.history, id)
	}
}

func (s *Server) view(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	data, ok := s.files[r.URL.Query().Get("type")+"/"+r.URL.Query().Get("filename")]
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "image/png")
	_, _ = w.Write(data)
}

// execute is the one executor.
func (s *Server) execute(ctx context.Context) {
	defer close(s.done)
	for {
		s.mu.Lock()
		for len(s.pending) == 0 && !s.closed {
			s.wake.Wait()
		}
		if s.closed {
			s.mu.Unlock()
			return
		}
		j := s.pending[0]
		s.pending, s.running, s.interrupt = s.pending[1:], j, false
		o := s.options
		s.mu.Unlock()

		outputs, status := s.run(ctx, j, o)

		// The end is told before the history is written: who deletes the entry at
		// the message deletes nothing.
		pause(ctx, 20*time.Millisecond)
		s.mu.Lock()
		s.running = nil
		if status == "interrupted" {
			s.interrupted = append(s.interrupted, j.id)
			status = "error"
		}
		s.history[j.id] = map[string]any{
			"prompt": j.entry(), "outputs": outputs,
			"status": map[string]any{"status_str": status, "completed": status == "success", "messages": j.messages},
		}
		s.mu.Unlock()
		if !o.Silent {
			s.send(j.client, "executing", map[string]any{"node": nil, "prompt_id": j.id})
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// say sends a message that also stands in the history.
func (s *Server) say(j *job, o Options, kind string, data map[string]any) {
	data["prompt_id"] = j.id
	j.messages = append(j.messages, [2]any{kind, data})
	if !o.Silent || kind == "execution_start" {
		s.send(j.client, kind, data)
	}
}

func (s *Server) run(ctx context.Context, j *job, o Options) (outputs map[string]any, status string) {
	var sampler, output string
	seed, steps, width, height := 0, 1, 64, 64
	number := func(v any, or int) int {
		if f, ok := v.(float64); ok {
			return int(f)
		}
		return or
	}
	for id, n := range j.graph {
		switch {
		case strings.Contains(n.Class, "KSampler"):
			sampler, seed, steps = id, number(n.Inputs["seed"], 0), number(n.Inputs["steps"], 1)
		case strings.HasPrefix(n.Class, "SaveImage"):
			output = id
		case strings.HasPrefix(n.Class, "Empty"):
			width, height = number(n.Inputs["width"], 64), number(n.Inputs["height"], 64)
		}
	}
	s.say(j, o, "execution_start", map[string]any{})
	s.send(j.client, "executing", map[string]any{"node": sampler, "display_node": sampler, "prompt_id": j.id})
	for step := 1; step <= steps; step++ {
		if s.stopped(ctx, o) {
			s.say(j, o, "execution_interrupted", map[string]any{"node_id": sampler})
			return map[string]any{}, "interrupted"
		}
		if o.Fail != "" && step > steps/2 {
			s.say(j, o, "execution_error", map[string]any{
				"node_id": sampler, "exception_type": o.Fail,
				"exception_message": string(j.raw), "current_inputs": map[string]any{"text": []string{string(j.raw)}},
			})
			return map[string]any{}, "error"
		}
		if step == o.CutAt {
			s.cut(j.client)
		}
		pause(ctx, o.Step)
		s.send(j.client, "progress", map[string]any{"value": step, "max": steps, "prompt_id": j.id, "node": sampler})
		if !o.Older {
			s.send(j.client, "progress_state", map[string]any{"prompt_id": j.id, "nodes": map[string]any{
				sampler: map[string]any{"value": step, "max": steps, "state": "running", "node_id": sampler, "prompt_id": j.id},
			}})
		}
		if o.Previews {
			s.write(j.client, websocket.MessageBinary, frame(1, draw(seed+1, 16, 16)))
		}
		if o.Others {
			s.others(j.client, sampler, output, steps)
		}
	}
	if o.WrongSize {
		width, height = 2*width, 2*height
	}
	if o.IgnoreSeed {
		seed = 1_000_003 * j.number
	}
	picture := draw(seed, width, height)
	if o.NotImage {
		picture = []byte("<!doctype html> no picture of " + string(j.raw))
	}
	s.send(j.client, "executing", map[string]any{"node": output, "display_node": output, "prompt_id": j.id})
	outputs = map[string]any{}
	if class := j.graph[output].Class; class != "SaveImageWebsocket" || o.KeepFile {
		name := fmt.Sprintf("ComfyUI_%05d_.png", j.number)
		s.mu.Lock()
		s.files["output/"+name] = picture
		s.mu.Unlock()
		outputs[output] = map[string]any{"images": []any{map[string]string{"filename": name, "subfolder": "", "type": "output"}}}
	}
	if j.graph[output].Class == "SaveImageWebsocket" && !o.NoImage {
		s.send(j.client, "progress", map[string]any{"value": 0, "max": 1, "prompt_id": j.id, "node": output})
		switch {
		case o.HugeFrame:
			s.flood(ctx, j.client)
		case o.HalfFrame:
			s.write(j.client, websocket.MessageBinary, frame(2, picture[:len(picture)/2]))
		default:
			s.write(j.client, websocket.MessageBinary, frame(2, picture))
		}
	}
	if o.Others {
		s.others(j.client, sampler, output, steps)
	}
	s.say(j, o, "execution_success", map[string]any{})
	return outputs, "success"
}

// stopped waits where the server hangs, and reports an interrupt.
func (s *Server) stopped(ctx context.Context, o Options) bool {
	s.mu.Lock()
	for o.Hang && s.options.Hang && !s.interrupt && !s.closed {
		s.wake.Wait()
	}
	stop := s.interrupt || s.closed
	s.mu.Unlock()
	if stop {
		pause(ctx, o.Stuck)
	}
	return stop
}

// others sends what a client hears of prompts that were queued without a client.
func (s *Server) others(client, sampler, output string, steps int) {
	const id = "99999999-9999-4999-8999-999999999999"
	s.send(client, "execution_start", map[string]any{"prompt_id": id})
	s.send(client, "progress", map[string]any{"value": steps, "max": steps, "prompt_id": id, "node": sampler})
	s.send(client, "executing", map[string]any{"node": output, "prompt_id": id})
	s.write(client, websocket.MessageBinary, frame(2, draw(12345, 32, 32)))
	s.send(client, "execution_error", map[string]any{"prompt_id": id, "exception_type": "RuntimeError"})
	s.send(client, "execution_success", map[string]any{"prompt_id": id})
	s.send(client, "executing", map[string]any{"node": nil, "prompt_id": id})
}

func (s *Server) cut(client string) {
	s.mu.Lock()
	c := s.sockets[client]
	delete(s.sockets, client)
	if c != nil {
		s.sockets[client+" cut"] = c
	}
	s.mu.Unlock()
	if c != nil {
		_ = c.CloseNow()
	}
}

// flood writes one message of 3 GB, or as much of it as is taken.
func (s *Server) flood(ctx context.Context, client string) {
	s.mu.Lock()
	c := s.sockets[client]
	s.mu.Unlock()
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	w, err := c.Writer(ctx, websocket.MessageBinary)
	if err != nil {
		return
	}
	chunk := frame(2, make([]byte, 1<<20))
	for range 3 << 10 {
		if _, err := w.Write(chunk); err != nil {
			return
		}
		s.mu.Lock()
		s.flooded += int64(len(chunk))
		s.mu.Unlock()
	}
	_ = w.Close()
}

// frame puts the two numbers before an image: 1 for “image”, and its format.
func frame(format uint32, image []byte) []byte {
	head := binary.BigEndian.AppendUint32(nil, 1)
	return append(binary.BigEndian.AppendUint32(head, format), image...)
}

// Colour is the colour of the image made from seed.
func Colour(seed int64) color.RGBA {
	return color.RGBA{R: uint8(seed), G: uint8(seed >> 8), B: uint8(seed >> 16), A: 255}
}

func draw(seed, width, height int) []byte {
	picture := image.NewRGBA(image.Rect(0, 0, width, height))
	c := Colour(int64(seed))
	for i := 0; i < len(picture.Pix); i += 4 {
		picture.Pix[i], picture.Pix[i+1], picture.Pix[i+2], picture.Pix[i+3] = c.R, c.G, c.B, c.A
	}
	var b bytes.Buffer
	_ = png.Encode(&b, picture)
	return b.Bytes()
}
