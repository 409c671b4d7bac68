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
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
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
	Insecure bool     `help:"Send the API key and the prompt in the clear to a --server that is http:// and not on this machine."`
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
	c, err := newClient(g.Server, g.KeyFile, g.Insecure)
	if err != nil {
		return err
	}
	files, err := g.files()
	if err != nil {
		return err
	}
	// Before anything is asked for: a folder that cannot be written to must not
	// cost a picture.
	drafts, err := openDrafts(files)
	defer drafts.discard()
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
	if err != nil && ctx.Err() != nil {
		return c.giveUp(gen.ID)
	}
	if err == nil {
		err = g.fetch(ctx, c, gen.ID, files, drafts)
	}
	if err != nil {
		return fmt.Errorf("generation %s: %w", gen.ID, err)
	}
	return nil
}

// fetch brings a generation's pictures into their files.
func (g generateCommand) fetch(ctx context.Context, c *client, id string, files []string, drafts drafts) error {
	var gen answer
	if err := c.json(context.WithoutCancel(ctx), http.MethodGet, "/v1/generations/"+id, nil, &gen); err != nil {
		return err
	}
	if gen.Status != "succeeded" {
		if gen.Error != nil {
			return fmt.Errorf("%s (%s)", gen.Error.Message, gen.Error.Code)
		}
		return fmt.Errorf("it is %s", gen.Status)
	}
	if len(gen.Images) != len(files) {
		return fmt.Errorf("it has %d pictures, not %d; fetch them from the service", len(gen.Images), len(files))
	}
	for i, image := range gen.Images {
		if err := c.download(ctx, image.URL, drafts[i]); err != nil {
			return fmt.Errorf("fetch %s: %w; the service still has it", image.URL, err)
		}
		if err := keep(drafts[i].Name(), files[i], g.Force, os.Link); err != nil {
			return fmt.Errorf("write %s: %w; the service still has %s", files[i], err, image.URL)
		}
		fmt.Printf("%s  %d×%d  seed %d\n", files[i], image.Width, image.Height, image.Seed)
	}
	return nil
}

// files are the names to write, checked before anything is made.
func (g generateCommand) files() ([]string, error) {
	if base := filepath.Base(g.Output); g.Output == "" || strings.HasSuffix(g.Output, "/") || base == "." || base == ".." {
		return nil, errors.New("--output needs the name of a file")
	}
	const most = 100 // far above what any model makes at once
	if g.N < 1 || g.N > most {
		return nil, fmt.Errorf("-n must be from 1 to %d", most)
	}
	files := []string{g.Output}
	if g.N > 1 {
		files = nil
		ext := filepath.Ext(g.Output)
		for i := range g.N {
			files = append(files, fmt.Sprintf("%s-%d%s", strings.TrimSuffix(g.Output, ext), i+1, ext))
		}
	}
	for _, f := range files {
		switch info, err := os.Lstat(f); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular():
			return nil, fmt.Errorf("%s is there and no plain file; name another", f)
		case !g.Force:
			return nil, fmt.Errorf("%s is there already; --force overwrites it", f)
		}
		if info, err := os.Stat(filepath.Dir(f)); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("there is no folder %s to write to", filepath.Dir(f))
		}
	}
	return files, nil
}

// drafts are temporary files beside the ones to write, so that a broken
// transfer leaves no half picture.
type drafts []*os.File

func openDrafts(files []string) (drafts, error) {
	var d drafts
	for _, name := range files {
		f, err := os.CreateTemp(filepath.Dir(name), ".zimage-*")
		if err != nil {
			return d, fmt.Errorf("%s cannot be written: %w", name, err)
		}
		d = append(d, f)
	}
	return d, nil
}

// discard removes what was not kept.
func (d drafts) discard() {
	for _, f := range d {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
}

// keep gives a draft its name. Without force it overwrites nothing, also not
// what has come meanwhile: a link does so at once, and where the folder knows no
// links, a new file with the same bytes.
func keep(draft, name string, force bool, link func(from, to string) error) (err error) {
	if force {
		return os.Rename(draft, name)
	}
	if err := link(draft, name); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	from, err := os.Open(draft) //nolint:gosec // our own
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644) //nolint:gosec // a picture, where the user says
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
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
	pause     time.Duration // before a stream that broke is opened again; doubled up to ten times
}

func newClient(server, keyPath string, insecure bool) (*client, error) {
	key, source := os.Getenv("ZIMAGE_KEY"), "$ZIMAGE_KEY"
	if keyPath != "" {
		key = ""
	}
	if server == "" || key == "" && keyPath == "" {
		c, err := installed()
		if err != nil {
			return nil, err
		}
		if server == "" {
			server = c.PublicURL
		}
		if key == "" && keyPath == "" {
			keyPath = keyFile(c)
		}
	}
	base, err := url.Parse(strings.TrimSuffix(server, "/"))
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Hostname() == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("--server must be https://host or https://host:port")
	}
	if base.Scheme == "http" && !isLoopback(base.Hostname()) && !insecure {
		return nil, fmt.Errorf("the API key would go to %s in the clear: name an https:// address, or accept it with --insecure", base.Host)
	}
	if key == "" {
		text, err := os.ReadFile(keyPath) //nolint:gosec // the file that the user names
		if err != nil {
			return nil, fmt.Errorf("no API key: start `zimage up` here first, set $ZIMAGE_KEY, or name a file with --key-file (%w)", err)
		}
		key, source = string(text), keyPath
	}
	key = strings.TrimSpace(key)
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("%s must hold one API key and nothing else", source)
	}
	return &client{base: base.String(), key: key, once: rand.Text(), pause: 500 * time.Millisecond, http: &http.Client{
		// The API sends nobody elsewhere, and the key must not go there.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// installed is where the installation on this machine is and keeps its first
// key. What else is wrong with its settings does not matter to a client.
func installed() (config.Config, error) {
	c, err := config.Load(nil)
	var problems config.Problems
	if errors.As(err, &problems) {
		problems = slices.DeleteFunc(problems, func(p config.Problem) bool {
			return !slices.Contains([]string{"LISTEN", "PUBLIC_URL", "TLS_CERT", "TLS_KEY", "DATA"}, strings.TrimPrefix(p.Variable, config.Prefix))
		})
		err = nil
		if len(problems) > 0 {
			err = problems
		}
	}
	return c, err
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
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
		return nil, passing{fmt.Errorf("no service at %s: is `zimage up` running? (%w)", c.base, err)}
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
		err = fmt.Errorf("the service answers %s", res.Status)
	} else {
		text := p.Detail
		for _, e := range p.Errors {
			text += "\n  " + e.Location + " " + e.Message
		}
		err = fmt.Errorf("%s (%s, %s)", text, p.Code, p.RequestID)
	}
	if res.StatusCode >= http.StatusInternalServerError || res.StatusCode == http.StatusTooManyRequests {
		err = passing{err}
	}
	return nil, err
}

// passing is an error that may be gone when it is tried again: no connection, or
// an answer that says nothing of what was asked for.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

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

// mostBroken is how often in a row a stream may break, or not open, before it is
// given up: about a minute and a half, in which a service has started again.
const mostBroken = 20

// follow reads the event stream until the generation has ended. When it breaks
// it is opened again where it ended, also after the service was away.
func (c *client) follow(ctx context.Context, id string, show func(answer)) error {
	last := ""
	err := errors.New("it breaks again and again")
	for broken := 0; broken < mostBroken; {
		if broken > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(min(c.pause<<(broken-1), 10*c.pause)):
			}
		}
		broken++
		header := []string{"Accept", "text/event-stream"}
		if last != "" {
			header = append(header, "Last-Event-ID", last)
		}
		res, failed := c.do(ctx, http.MethodGet, "/v1/generations/"+id+"/events", nil, header...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failed != nil {
			if !errors.As(failed, &passing{}) {
				return failed
			}
			err = failed
			continue
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
				broken = 1 // one pause, should it break here
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
	}
	return fmt.Errorf("its events cannot be followed, ask for it later: %w", err)
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

// download writes an image into f and closes it.
func (c *client) download(ctx context.Context, url string, f *os.File) error {
	res, err := c.do(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	n, err := io.Copy(f, res.Body)
	if err == nil && res.ContentLength >= 0 && n != res.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

func onTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// bar is a progress bar on a terminal, and a few lines elsewhere.
type bar struct {
	w        *os.File
	terminal bool
	last     string
}

func newBar(w *os.File) *bar {
	return &bar{w: w, terminal: onTerminal(w)}
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
