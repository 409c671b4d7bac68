package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"zimage/client"
	"zimage/internal/config"
)

type generateCommand struct {
	Prompt   string   `arg:"" help:"What to draw."`
	Output   string   `short:"o" default:"out.png" help:"File to write, as its extension says: .png, .jpg or .webp; several images get a number before the extension."`
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
	gen, err := g.submit(ctx, c)
	if err != nil {
		return explain(c, err)
	}
	bar := newBar(os.Stderr)
	err = c.Follow(ctx, gen.ID, bar.show)
	bar.end()
	if err != nil && ctx.Err() != nil {
		return giveUp(c, gen.ID)
	}
	if err == nil {
		err = g.fetch(ctx, c, gen.ID, files, drafts)
	}
	if err != nil {
		return fmt.Errorf("generation %s: %w", gen.ID, explain(c, err))
	}
	return nil
}

// submit asks for one generation, also when an answer is lost.
func (g generateCommand) submit(ctx context.Context, c *client.Client) (*client.Generation, error) {
	n, once := int64(g.N), rand.Text()
	body := client.Create{
		Prompt: g.Prompt, N: &n, Model: given(g.Model), NegativePrompt: given(g.Negative), Seed: g.Seed, Guidance: g.Guidance,
		Width: given(int64(g.Width)), Height: given(int64(g.Height)), Steps: given(int64(g.Steps)), Format: given(formatOf(g.Output)),
	}
	return again(ctx, func() (*client.Generation, error) {
		return c.CreateGeneration(ctx, body, &client.CreateGenerationParams{IdempotencyKey: &once})
	})
}

// given is what was given, or nil.
func given[T comparable](value T) *T {
	var zero T
	if value == zero {
		return nil
	}
	return &value
}

// fetch brings a generation's pictures into their files.
func (g generateCommand) fetch(ctx context.Context, c *client.Client, id string, files []string, drafts drafts) error {
	gen, err := again(ctx, func() (*client.Generation, error) {
		return c.GetGeneration(context.WithoutCancel(ctx), id, nil)
	})
	if err != nil {
		return err
	}
	if gen.Status != client.GenerationStatusSucceeded {
		if gen.Error != nil {
			return fmt.Errorf("%s (%s)", gen.Error.Message, gen.Error.Code)
		}
		return fmt.Errorf("it is %s", gen.Status)
	}
	if len(gen.Images) != len(files) {
		return fmt.Errorf("it has %d pictures, not %d; fetch them from the service", len(gen.Images), len(files))
	}
	for i, image := range gen.Images {
		if err := download(ctx, c, image.ID, drafts[i]); err != nil {
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

func formatOf(name string) client.CreateFormat {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".png":
		return client.CreateFormatPng
	case ".jpg", ".jpeg":
		return client.CreateFormatJpeg
	case ".webp":
		return client.CreateFormatWebp
	}
	return ""
}

func newClient(server, keyPath string, insecure bool) (*client.Client, error) {
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
	return client.New(base.String(), key), nil
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

// again asks until an answer comes, five times at most.
func again[T any](ctx context.Context, ask func() (T, error)) (out T, err error) {
	for try := range 5 {
		var lost *url.Error
		if out, err = ask(); !errors.As(err, &lost) || try == 4 {
			break
		}
		select {
		case <-ctx.Done():
			return out, ctx.Err()
		case <-time.After(time.Duration(try+1) * 300 * time.Millisecond):
		}
	}
	return out, err
}

// explain says what can be done when nobody answers.
func explain(c *client.Client, err error) error {
	if lost := (*url.Error)(nil); errors.As(err, &lost) {
		return fmt.Errorf("no service at %s: is `zimage up` running? (%w)", c.Server, err)
	}
	return err
}

// giveUp cancels what was asked for when the user interrupts.
func giveUp(c *client.Client, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := c.CancelGeneration(ctx, id); err != nil {
		return fmt.Errorf("interrupted; %s could not be canceled: %w", id, explain(c, err))
	}
	return fmt.Errorf("interrupted; %s is canceled", id)
}

// download writes an image into f and closes it.
func download(ctx context.Context, c *client.Client, id string, f *os.File) error {
	res, err := c.GetImageContent(ctx, id, nil)
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

func (b *bar) show(g client.Generation) {
	text := string(g.Status)
	switch {
	case g.Status == client.GenerationStatusQueued && g.Queue != nil:
		text = fmt.Sprintf("queued, position %d", g.Queue.Position)
		if g.Queue.ETASeconds != nil {
			text += fmt.Sprintf(", about %d s", *g.Queue.ETASeconds)
		}
		if g.Queue.Message != nil {
			text += ": " + *g.Queue.Message
		}
	case g.Status == client.GenerationStatusRunning:
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
