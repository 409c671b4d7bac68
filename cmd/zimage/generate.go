package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"zimage/internal/config"
)

type generateCommand struct {
	Prompt   string   `arg:"" help:"What to draw."`
	Output   string   `short:"o" default:"out.png" help:"File to write; several images get a number before the extension."`
	Model    string   `help:"Model id; default: the service's first. List them at /v1/models."`
	Negative string   `help:"What to keep out of the picture, where the model takes it."`
	N        int      `short:"n" default:"1" help:"How many images."`
	Width    int      `help:"Pixels."`
	Height   int      `help:"Pixels."`
	Seed     *int64   `help:"The same seed gives the same picture."`
	Steps    int      `help:"Denoising steps."`
	Guidance *float64 `help:"How closely to follow the prompt, where the model takes it."`
	Force    bool     `short:"f" help:"Overwrite files that are there."`
	Server   string   `env:"ZIMAGE_PUBLIC_URL" help:"Address of the service; default: the one on this machine."`
	KeyFile  string   `help:"File with the API key; default: $ZIMAGE_KEY, else the first user's key of this installation."`
}

// answer is as much of a generation as this client needs.
type answer struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Seed   int64  `json:"seed"`
	Queue  *struct {
		Position   int    `json:"position"`
		ETASeconds *int   `json:"eta_seconds"`
		Message    string `json:"message"`
	} `json:"queue"`
	Progress *struct {
		Fraction float64 `json:"fraction"`
	} `json:"progress"`
	Images []struct {
		URL    string `json:"url"`
		Width  int    `json:"width"`
		Height int    `json:"height"`
		Seed   int64  `json:"seed"`
	} `json:"images"`
	Error *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func (g generateCommand) Run(ctx context.Context) error {
	files, err := g.files()
	if err != nil {
		return err
	}
	c, err := newClient(g.Server, g.KeyFile)
	if err != nil {
		return err
	}
	body := map[string]any{"prompt": g.Prompt, "n": g.N}
	for name, value := range map[string]int{"width": g.Width, "height": g.Height, "steps": g.Steps} {
		if value != 0 {
			body[name] = value
		}
	}
	for name, value := range map[string]string{"model": g.Model, "negative_prompt": g.Negative} {
		if value != "" {
			body[name] = value
		}
	}
	if g.Seed != nil {
		body["seed"] = *g.Seed
	}
	if g.Guidance != nil {
		body["guidance"] = *g.Guidance
	}
	if format := formatOf(g.Output); format != "" {
		body["format"] = format
	}
	var gen answer
	if err := c.json(ctx, http.MethodPost, "/v1/generations", body, &gen); err != nil {
		return err
	}
	bar := newBar(os.Stderr)
	err = c.follow(ctx, gen.ID, bar.show)
	bar.end()
	if err != nil {
		if ctx.Err() != nil {
			return c.giveUp(gen.ID)
		}
		return err
	}
	if err := c.json(context.WithoutCancel(ctx), http.MethodGet, "/v1/generations/"+gen.ID, nil, &gen); err != nil {
		return err
	}
	if gen.Status != "succeeded" {
		if gen.Error != nil {
			return fmt.Errorf("%s (%s, %s)", gen.Error.Message, gen.Error.Code, gen.ID)
		}
		return fmt.Errorf("the generation is %s (%s)", gen.Status, gen.ID)
	}
	for i, image := range gen.Images {
		if err := c.download(ctx, image.URL, files[i], g.Force); err != nil {
			return err
		}
		fmt.Printf("%s  %d×%d  seed %d\n", files[i], image.Width, image.Height, image.Seed)
	}
	return nil
}

// files are the names to write, checked before anything is made.
func (g generateCommand) files() ([]string, error) {
	files := []string{g.Output}
	if g.N > 1 {
		files = nil
		ext := filepath.Ext(g.Output)
		for i := range g.N {
			files = append(files, fmt.Sprintf("%s-%d%s", strings.TrimSuffix(g.Output, ext), i+1, ext))
		}
	}
	for _, f := range files {
		if _, err := os.Stat(f); err == nil && !g.Force {
			return nil, fmt.Errorf("%s is there already; --force overwrites it", f)
		}
		if info, err := os.Stat(filepath.Dir(f)); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("there is no folder %s to write to", filepath.Dir(f))
		}
	}
	return files, nil
}

func formatOf(name string) string {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".jpg", ".jpeg":
		return "jpeg"
	}
	return ""
}

// client speaks to the API as any program would.
type client struct {
	base, key string
	once      string // the Idempotency-Key: one run asks for one generation
	http      *http.Client
}

func newClient(server, keyPath string) (*client, error) {
	c, err := config.Load(nil)
	if err != nil {
		return nil, err
	}
	if server == "" {
		server = c.PublicURL
	}
	key := os.Getenv("ZIMAGE_KEY")
	if keyPath != "" || key == "" {
		if keyPath == "" {
			keyPath = keyFile(c)
		}
		text, err := os.ReadFile(keyPath) //nolint:gosec // the file that the user names
		if err != nil {
			return nil, fmt.Errorf("no API key: start `zimage up` here first, set $ZIMAGE_KEY, or name a file with --key-file (%w)", err)
		}
		key = strings.TrimSpace(string(text))
	}
	return &client{base: strings.TrimSuffix(server, "/"), key: key, once: rand.Text(), http: &http.Client{}}, nil
}

func (c *client) do(ctx context.Context, method, path string, body any, header ...string) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(text)
	}
	if !strings.HasPrefix(path, "http") {
		path = c.base + path
	} else if !strings.HasPrefix(path, c.base+"/") {
		return nil, errors.New("the service names an address that is not its own")
	}
	req, err := http.NewRequestWithContext(ctx, method, path, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		// A lost answer is asked for again, and must not make the picture twice.
		req.Header.Set("Idempotency-Key", c.once)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no service at %s: is `zimage up` running? (%w)", c.base, err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	var p struct {
		Detail    string `json:"detail"`
		Code      string `json:"code"`
		RequestID string `json:"request_id"`
		Errors    []struct {
			Location string `json:"location"`
			Message  string `json:"message"`
		} `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&p) != nil || p.Code == "" {
		return nil, fmt.Errorf("the service answers %s", res.Status)
	}
	text := p.Detail
	for _, e := range p.Errors {
		text += "\n  " + e.Location + " " + e.Message
	}
	return nil, fmt.Errorf("%s (%s, %s)", text, p.Code, p.RequestID)
}

func (c *client) json(ctx context.Context, method, path string, body, out any) error {
	var err error
	for try := range 5 {
		var res *http.Response
		if res, err = c.do(ctx, method, path, body); err == nil {
			defer func() { _ = res.Body.Close() }()
			return json.NewDecoder(res.Body).Decode(out)
		}
		var network interface{ Timeout() bool }
		if !errors.As(err, &network) || try == 4 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(try+1) * 300 * time.Millisecond):
		}
	}
	return err
}

// follow reads the event stream until the generation has ended. When it breaks
// it is opened again where it ended.
func (c *client) follow(ctx context.Context, id string, show func(answer)) error {
	last := ""
	for broken := 0; broken < 10; {
		header := []string{"Accept", "text/event-stream"}
		if last != "" {
			header = append(header, "Last-Event-ID", last)
		}
		res, err := c.do(ctx, http.MethodGet, "/v1/generations/"+id+"/events", nil, header...)
		if err != nil {
			return err
		}
		if res.StatusCode == http.StatusNoContent {
			return res.Body.Close()
		}
		ended := false
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			field, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch field {
			case "id":
				last = value
			case "data":
				var g answer
				if json.Unmarshal([]byte(value), &g) != nil {
					continue
				}
				broken = 0
				show(g)
				switch g.Status {
				case "succeeded", "failed", "canceled":
					ended = true
				}
			}
		}
		_ = res.Body.Close()
		if ended || ctx.Err() != nil {
			return ctx.Err()
		}
		broken++
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
	return fmt.Errorf("the stream breaks again and again; ask later for %s", id)
}

// giveUp cancels what was asked for when the user interrupts.
func (c *client) giveUp(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	res, err := c.do(ctx, http.MethodPost, "/v1/generations/"+id+"/cancel", nil)
	if err != nil {
		return fmt.Errorf("interrupted; %s could not be canceled: %w", id, err)
	}
	_ = res.Body.Close()
	return fmt.Errorf("interrupted; %s is canceled", id)
}

// download writes an image beside its name first, so that a broken transfer
// leaves no half picture.
func (c *client) download(ctx context.Context, url, name string, force bool) (err error) {
	res, err := c.do(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	f, err := os.CreateTemp(filepath.Dir(name), ".zimage-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	n, err := io.Copy(f, res.Body)
	if err == nil && res.ContentLength >= 0 && n != res.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if force {
		return os.Rename(f.Name(), name)
	}
	return os.Link(f.Name(), name) // refuses to overwrite what has come meanwhile
}

// bar is a progress bar on a terminal, and a few lines elsewhere.
type bar struct {
	w        *os.File
	terminal bool
	last     string
}

func newBar(w *os.File) *bar {
	info, err := w.Stat()
	return &bar{w: w, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (b *bar) show(g answer) {
	text := g.Status
	switch {
	case g.Status == "queued" && g.Queue != nil:
		text = "queued, position " + strconv.Itoa(g.Queue.Position)
		if g.Queue.ETASeconds != nil {
			text += fmt.Sprintf(", about %d s", *g.Queue.ETASeconds)
		}
		if g.Queue.Message != "" {
			text += ": " + g.Queue.Message
		}
	case g.Status == "running" && g.Progress != nil:
		const width = 30
		done := int(g.Progress.Fraction*width + 0.5)
		text = fmt.Sprintf("[%s%s] %3.0f %%", strings.Repeat("█", done), strings.Repeat("░", width-done), g.Progress.Fraction*100)
	}
	if text == b.last {
		return
	}
	b.last = text
	if b.terminal {
		_, _ = fmt.Fprintf(b.w, "\r\033[K%s", text)
		return
	}
	_, _ = fmt.Fprintln(b.w, text)
}

func (b *bar) end() {
	if b.terminal && b.last != "" {
		_, _ = fmt.Fprintln(b.w)
	}
}
