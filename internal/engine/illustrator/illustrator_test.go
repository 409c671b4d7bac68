package illustrator_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/png"
	"runtime"
	"testing"
	"time"

	"zimage/internal/engine"
	"zimage/internal/engine/illustrator"
)

func open(t testing.TB) engine.Engine {
	t.Helper()
	e, err := illustrator.Open(engine.Settings{Name: "illustrator", Kind: "illustrator"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func paint(t testing.TB, e engine.Engine, r engine.Request) []byte {
	t.Helper()
	out, err := e.Generate(t.Context(), r, nil)
	if err != nil {
		t.Fatalf("%q: %v", r.Prompt, err)
	}
	return out
}

func decode(t testing.TB, file []byte) *image.RGBA {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	rgba, ok := img.(*image.RGBA)
	if !ok {
		t.Fatalf("an opaque picture decodes to %T", img)
	}
	return rgba
}

func TestGenerateIsDeterministic(t *testing.T) {
	t.Parallel()
	e, other := open(t), open(t)
	r := engine.Request{Prompt: "a lighthouse in a storm at night", Width: 160, Height: 128, Steps: 8, Seed: 42}
	first := paint(t, e, r)
	if !bytes.Equal(first, paint(t, other, r)) {
		t.Error("the same request gave other bytes")
	}
	for name, change := range map[string]func(*engine.Request){
		"prompt": func(r *engine.Request) { r.Prompt += "!" },
		"seed":   func(r *engine.Request) { r.Seed++ },
		"steps":  func(r *engine.Request) { r.Steps = 2 },
		"size":   func(r *engine.Request) { r.Width += 8 },
	} {
		changed := r
		change(&changed)
		if bytes.Equal(first, paint(t, e, changed)) {
			t.Errorf("another %s gave the same picture", name)
		}
	}
}

// One prompt for every place and every kind of weather.
var prompts = []string{
	"a lighthouse in a storm at night", "a fox in a misty forest at dawn", "mountains and a lake at sunset",
	"a sailboat on the sea", "a city at night in the rain", "an astronaut in space", "a camel in the desert",
	"a windmill in a field of flowers", "a village in winter", "two ducks on a river", "coffee and books on a table at night",
	"an octopus underwater", "an airplane above the clouds", "northern lights over snowy mountains", "a rainbow over a meadow",
	"a hot air balloon, golden hour", "black and white cat, film noir", "a cottage, vintage sepia", "a crab on a tropical beach",
	"a princess in front of a castle in autumn", "hjkl", "", "\x00\xff\xfe", "pink pink pink",
}

func TestGenerateEveryPlace(t *testing.T) {
	t.Parallel()
	e := open(t)
	for i, prompt := range prompts {
		t.Run(fmt.Sprintf("%d %q", i, prompt), func(t *testing.T) {
			t.Parallel()
			var steps []int
			file, err := e.Generate(t.Context(), engine.Request{Prompt: prompt, Width: 160, Height: 120, Steps: 8, Seed: int64(i)}, func(p engine.Progress) {
				if p.Steps != 8 || p.Estimated {
					t.Errorf("progress %+v", p)
				}
				steps = append(steps, p.Step)
			})
			if err != nil {
				t.Fatal(err)
			}
			img := decode(t, file)
			if img.Rect.Dx() != 160 || img.Rect.Dy() != 120 {
				t.Errorf("size %v", img.Rect)
			}
			if len(steps) < 4 || steps[len(steps)-1] != 8 {
				t.Errorf("steps told: %v", steps)
			}
			for k := 1; k < len(steps); k++ {
				if steps[k] <= steps[k-1] {
					t.Errorf("steps do not rise: %v", steps)
				}
			}
			tones := map[[3]uint8]bool{}
			for k := 0; k < len(img.Pix); k += 4 {
				tones[[3]uint8{img.Pix[k] >> 4, img.Pix[k+1] >> 4, img.Pix[k+2] >> 4}] = true
			}
			if len(tones) < 12 {
				t.Errorf("only %d tones: this is no picture", len(tones))
			}
			for _, kind := range chunks(t, file) {
				if kind != "IHDR" && kind != "IDAT" && kind != "IEND" {
					t.Errorf("the file has a chunk %s", kind)
				}
			}
		})
	}
}

func TestGenerateEverySize(t *testing.T) {
	t.Parallel()
	e := open(t)
	for i, size := range []image.Point{{16, 16}, {16, 1024}, {1024, 16}, {17, 101}} {
		for k, prompt := range prompts {
			if (i+k)%2 == 0 && size.X*size.Y > 10_000 {
				continue // the other long size has it
			}
			file := paint(t, e, engine.Request{Prompt: prompt, Width: size.X, Height: size.Y, Steps: 1, Seed: 7})
			if got := decode(t, file).Rect.Size(); got != size {
				t.Errorf("%q: %v, want %v", prompt, got, size)
			}
		}
	}
}

func TestGenerateRefusesSizes(t *testing.T) {
	t.Parallel()
	e := open(t)
	for _, size := range []image.Point{{0, 64}, {64, 0}, {-8, 64}, {8, 8}, {2048, 2056}, {1 << 40, 1 << 40}} {
		_, err := e.Generate(t.Context(), engine.Request{Prompt: "sea", Width: size.X, Height: size.Y, Steps: 8}, nil)
		if engine.CodeOf(err) != engine.CodeInvalid || engine.FaultOf(err) != engine.FaultUser {
			t.Errorf("%v: %v", size, err)
		}
	}
}

// The lower right corner says what made the picture.
func TestGenerateSaysWhatItIs(t *testing.T) {
	t.Parallel()
	e := open(t)
	a := decode(t, paint(t, e, engine.Request{Prompt: "the sea by day", Width: 512, Height: 512, Steps: 1, Seed: 1}))
	bright, dark := 0, 0
	for y := 490; y < 508; y++ {
		for x := 375; x < 508; x++ {
			switch c := a.RGBAAt(x, y); {
			case min(c.R, c.G, c.B) > 200:
				bright++
			case max(c.R, c.G, c.B) < 150:
				dark++
			}
		}
	}
	if bright < 100 || dark < 600 {
		t.Errorf("no badge: %d bright and %d dark pixels where it should be", bright, dark)
	}
}

func TestGenerateStops(t *testing.T) {
	t.Parallel()
	e := open(t)
	// Far above the 50 ms it takes alone: the race detector and other tests
	// share the machine.
	const patience = 2 * time.Second
	for _, prompt := range prompts[:6] {
		ctx, cancel := context.WithCancel(t.Context())
		var canceledAt time.Time
		_, err := e.Generate(ctx, engine.Request{Prompt: prompt, Width: 512, Height: 512, Steps: 16}, func(engine.Progress) {
			if canceledAt.IsZero() {
				canceledAt = time.Now()
				cancel()
			}
		})
		if took := time.Since(canceledAt); took > patience {
			t.Errorf("%q: stopped after %v", prompt, took)
		}
		if engine.CodeOf(err) != engine.CodeCanceled || !errors.Is(err, context.Canceled) {
			t.Errorf("%q: %v", prompt, err)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if _, err := e.Generate(ctx, engine.Request{Prompt: "sea", Width: 64, Height: 64}, nil); engine.CodeOf(err) != engine.CodeTimeout {
		t.Errorf("out of time: %v", err)
	}
}

func TestGenerateTakesBoundedMemory(t *testing.T) {
	// Not parallel: it counts the whole process's memory.
	e := open(t)
	const side = 384
	for _, prompt := range prompts[:12] {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		paint(t, e, engine.Request{Prompt: prompt, Width: side, Height: side, Steps: 8})
		runtime.ReadMemStats(&after)
		if perPixel := (after.TotalAlloc - before.TotalAlloc) / (side * side); perPixel > 100 {
			t.Errorf("%q: %d bytes a pixel in all", prompt, perPixel)
		}
	}
}

func FuzzGenerate(f *testing.F) {
	for i, prompt := range prompts {
		f.Add(prompt, int64(i), uint8(8))
	}
	f.Add("a red fox, a blue bird and three green houses, four elephants on mars", int64(1), uint8(16))
	e := open(f)
	f.Fuzz(func(t *testing.T, prompt string, seed int64, steps uint8) {
		if seed < 0 {
			seed = -(seed + 1)
		}
		decode(t, paint(t, e, engine.Request{Prompt: prompt, Seed: seed, Width: 64, Height: 48, Steps: int(steps)}))
	})
}

func BenchmarkGenerate(b *testing.B) {
	e := open(b)
	for _, side := range []int{1024, 2048} {
		for _, prompt := range prompts[:12] {
			b.Run(fmt.Sprintf("%d/%s", side, prompt), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					paint(b, e, engine.Request{Prompt: prompt, Width: side, Height: side, Steps: 8, Seed: 42})
				}
			})
		}
	}
}

// How long it takes to stop, at the worst of many moments.
func BenchmarkStop(b *testing.B) {
	e := open(b)
	var worst time.Duration
	for i := 0; b.Loop(); i++ {
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan time.Time, 1)
		go func() {
			time.Sleep(time.Duration(i*13%600) * time.Millisecond)
			ended <- time.Now()
			cancel()
		}()
		_, err := e.Generate(ctx, engine.Request{Prompt: prompts[i%12], Width: 1024, Height: 1024, Steps: 8, Seed: 42}, nil)
		now := time.Now()
		at := <-ended
		if err != nil {
			worst = max(worst, now.Sub(at))
		}
		cancel()
	}
	b.ReportMetric(float64(worst.Milliseconds()), "worst-ms")
}

func chunks(t testing.TB, file []byte) (kinds []string) {
	t.Helper()
	for rest := file[8:]; len(rest) > 0; {
		n := binary.BigEndian.Uint32(rest)
		kinds = append(kinds, string(rest[4:8]))
		rest = rest[12+n:]
	}
	return kinds
}
