package picture_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"image/png"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/HugoSmits86/nativewebp"
	xwebp "golang.org/x/image/webp"

	"zimage/internal/picture"
)

const secret = "a red fox, seed 42, /home/ann/model.safetensors"

func TestFinish(t *testing.T) {
	t.Parallel()
	photo := scene(600, 400)
	tests := []struct {
		name   string
		raw    []byte
		format string
		want   picture.Picture // Data: what a pass-through must hold
		pixel  color.Color     // at (1, 1); nil: not looked at
	}{
		{name: "png stays png", raw: encodePNG(t, photo), format: picture.PNG,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "png with every kind of text", raw: noisyPNG(t, photo), format: picture.PNG,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "png to jpeg", raw: noisyPNG(t, photo), format: picture.JPEG,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "jpeg stays jpeg", raw: encodeJPEG(t, photo), format: picture.JPEG,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "jpeg with every kind of text", raw: noisyJPEG(t, photo, 1), format: picture.JPEG,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "jpeg to png", raw: noisyJPEG(t, photo, 1), format: picture.PNG,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "jpeg lying on its side", raw: noisyJPEG(t, photo, 6), format: picture.JPEG,
			want: picture.Picture{Width: 400, Height: 600}},
		{name: "gray jpeg", raw: encodeJPEG(t, gray(64, 32)), format: picture.JPEG,
			want: picture.Picture{Width: 64, Height: 32}},
		{name: "paletted png", raw: encodePNG(t, paletted(64, 32)), format: picture.PNG,
			want: picture.Picture{Width: 64, Height: 32}, pixel: color.NRGBA{200, 30, 30, 255}},
		{name: "paletted png to jpeg", raw: encodePNG(t, paletted(64, 32)), format: picture.JPEG,
			want: picture.Picture{Width: 64, Height: 32}, pixel: color.NRGBA{200, 30, 30, 255}},
		{name: "16-bit png", raw: encodePNG(t, deep(64, 32)), format: picture.PNG,
			want: picture.Picture{Width: 64, Height: 32}, pixel: color.NRGBA64{0x1234, 0x5678, 0x9abc, 0xffff}},
		{name: "16-bit png to jpeg", raw: encodePNG(t, deep(64, 32)), format: picture.JPEG,
			want: picture.Picture{Width: 64, Height: 32}},
		{name: "transparent png to jpeg is on white", raw: encodePNG(t, image.NewNRGBA(image.Rect(0, 0, 9, 5))), format: picture.JPEG,
			want: picture.Picture{Width: 9, Height: 5}, pixel: color.White},
		{name: "animated png is its default image", raw: animated(t, photo), format: picture.PNG,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "cmyk jpeg becomes ycbcr", raw: cmykJPEG(), format: picture.JPEG,
			want: picture.Picture{Width: 8, Height: 8}, pixel: color.Black},
		{name: "webp to png", raw: noisyWebP(webpLossless), format: picture.PNG,
			want: picture.Picture{Width: 1, Height: 1}},
		{name: "webp to jpeg", raw: noisyWebP(webpLossless), format: picture.JPEG,
			want: picture.Picture{Width: 1, Height: 1}},
		{name: "png to webp", raw: noisyPNG(t, photo), format: picture.WebP,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "jpeg to webp", raw: noisyJPEG(t, photo, 1), format: picture.WebP,
			want: picture.Picture{Width: 600, Height: 400}},
		{name: "jpeg lying on its side to webp", raw: noisyJPEG(t, photo, 6), format: picture.WebP,
			want: picture.Picture{Width: 400, Height: 600}},
		{name: "16-bit png to webp", raw: encodePNG(t, deep(64, 32)), format: picture.WebP,
			want: picture.Picture{Width: 64, Height: 32}, pixel: color.NRGBA64{0x1234, 0x5678, 0x9abc, 0xffff}},
		{name: "paletted png to webp", raw: encodePNG(t, paletted(64, 32)), format: picture.WebP,
			want: picture.Picture{Width: 64, Height: 32}, pixel: color.NRGBA{200, 30, 30, 255}},
		{name: "webp stays webp", raw: noisyWebP(webpLossless), format: picture.WebP,
			want: picture.Picture{Width: 1, Height: 1}},
		{name: "lossy webp stays webp", raw: noisyWebP(webpLossy), format: picture.WebP,
			want: picture.Picture{Width: 1, Height: 1}},
		{name: "transparent webp stays webp", raw: noisyWebP(webpTransparent), format: picture.WebP,
			want: picture.Picture{Width: 1, Height: 1}},
		{name: "thin as a hair", raw: encodePNG(t, gray(5000, 1)), format: picture.JPEG,
			want: picture.Picture{Width: 5000, Height: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := picture.Finish(tt.raw, picture.Options{Format: tt.format})
			if err != nil {
				t.Fatal(err)
			}
			if got.Width != tt.want.Width || got.Height != tt.want.Height || got.Format != tt.format {
				t.Errorf("got %d × %d %s, want %d × %d %s", got.Width, got.Height, got.Format, tt.want.Width, tt.want.Height, tt.format)
			}
			img := check(t, got)
			for _, word := range []string{"red fox", "safetensors", "JFXX", "photoshop", "2026"} {
				if bytes.Contains(got.Data, []byte(word)) || bytes.Contains(got.Thumbnail, []byte(word)) {
					t.Errorf("the picture still holds %q", word)
				}
			}
			if d := readMark(t, got); d.Description != "" || !strings.HasSuffix(d.SourceType, "/trainedAlgorithmicMedia") {
				t.Errorf("mark %+v, want a trained model's and no description", d)
			}
			if tt.pixel != nil && !near(img.At(1, 1), tt.pixel) {
				t.Errorf("pixel %v, want %v", img.At(1, 1), tt.pixel)
			}
		})
	}
}

// What passes through must be bit for bit what the engine drew.
func TestFinishDoesNotEncodeAgain(t *testing.T) {
	t.Parallel()
	photo := scene(300, 200)
	p, err := picture.Finish(noisyPNG(t, photo), picture.Options{Format: picture.PNG})
	if err != nil {
		t.Fatal(err)
	}
	if want, got := pixels(t, encodePNG(t, photo)), pixels(t, p.Data); !bytes.Equal(want, got) {
		t.Error("the pixel chunks of the png changed")
	}
	plain := encodeJPEG(t, photo)
	p, err = picture.Finish(noisyJPEG(t, photo, 1), picture.Options{Format: picture.JPEG})
	if err != nil {
		t.Fatal(err)
	}
	tables := bytes.Index(plain, []byte{0xff, 0xdb})
	if !bytes.HasSuffix(p.Data, plain[tables:]) {
		t.Error("the scans of the jpeg changed")
	}
	for name, file := range map[string]string{"lossless": webpLossless, "lossy": webpLossy, "transparent": webpTransparent} {
		p, err = picture.Finish(noisyWebP(file), picture.Options{Format: picture.WebP})
		if err != nil {
			t.Fatal(err)
		}
		was, is := webpChunks(t, webpFile(file)), webpChunks(t, p.Data)
		if was[0].kind == "VP8X" {
			was = was[1:]
		}
		if is = is[1 : len(is)-1]; !reflect.DeepEqual(was, is) {
			t.Errorf("the pixels of the %s webp changed", name)
		}
	}
}

// What is encoded as WebP has exactly the pixels that came, also where the encoder
// that we use cannot do it.
func TestFinishMakesWebPWithoutLoss(t *testing.T) {
	t.Parallel()
	pixels := func(w, h int, paint func(n int) color.NRGBA) *image.NRGBA {
		img := image.NewNRGBA(image.Rect(0, 0, w, h))
		for n := range w * h {
			img.SetNRGBA(n%w, n/w, paint(n))
		}
		return img
	}
	r := rand.New(rand.NewPCG(3, 4))
	noise := func() uint8 { return uint8(r.IntN(256)) }
	black := func(int) color.NRGBA { return color.NRGBA{0, 0, 0, 255} }
	drawn := image.NewNRGBA(image.Rect(0, 0, 600, 401))
	draw.Draw(drawn, drawn.Rect, scene(600, 401), image.Point{}, draw.Src)
	pictures := map[string]*image.NRGBA{
		"a scene": drawn, "noise": pixels(65, 33, func(int) color.NRGBA { return color.NRGBA{noise(), noise(), noise(), 255} }),
		"black": pixels(64, 64, black), "a black dot": pixels(1, 1, black), "three black dots": pixels(3, 1, black),
		"every transparency": pixels(64, 64, func(n int) color.NRGBA { return color.NRGBA{uint8(n), noise(), uint8(n >> 4), uint8(n >> 2)} }),
		"transparent":        image.NewNRGBA(image.Rect(0, 0, 9, 5)),
		"as wide as can be":  pixels(16383, 2, func(n int) color.NRGBA { return color.NRGBA{uint8(n), uint8(n >> 8), 0, 255} }),
		"as high as can be":  pixels(2, 16383, func(n int) color.NRGBA { return color.NRGBA{uint8(n), uint8(n >> 8), 0, 255} }),
	}
	// Differences that are as frequent as Fibonacci's numbers want longer prefix
	// codes than WebP has.
	for k := range 4 {
		var steps []uint8
		for n, a, b := uint8(0), 1, 1; n < 17; n, a, b = n+1, b, a+b {
			steps = append(steps, bytes.Repeat([]byte{n}, a)...)
		}
		r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		var green uint8
		pictures[fmt.Sprint("Fibonacci's ", k)] = pixels(len(steps), 1, func(n int) color.NRGBA {
			green += steps[n]
			return color.NRGBA{noise(), green, noise(), 255}
		})
	}
	for name, img := range pictures {
		p, err := picture.Finish(encodePNG(t, img), picture.Options{Format: picture.WebP})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, ok := check(t, p).(*image.NRGBA)
		if !ok || !bytes.Equal(got.Pix, img.Pix) {
			t.Errorf("%s: other pixels", name)
		}
		if alpha := webpChunks(t, p.Data)[0].body[0]&0x10 != 0; alpha == img.Opaque() {
			t.Errorf("%s: the file says that it is transparent: %v", name, alpha)
		}
		again, err := picture.Finish(p.Data, picture.Options{Format: picture.WebP})
		if err != nil || !bytes.Equal(again.Data, p.Data) {
			t.Errorf("%s: a finished one is changed (%v)", name, err)
		}
	}
	for _, img := range []image.Image{gray(16384, 1), gray(1, 16384)} {
		if _, err := picture.Finish(encodePNG(t, img), picture.Options{Format: picture.WebP}); !errors.Is(err, picture.ErrTooManyPixels) {
			t.Errorf("%v: %v", img.Bounds(), err)
		}
	}
}

func TestFinishRefuses(t *testing.T) {
	t.Parallel()
	photo := scene(100, 80)
	aPNG, aJPEG, aWebP := encodePNG(t, photo), encodeJPEG(t, photo), webpFile(webpLossless)
	broken := bytes.Clone(aPNG)
	broken[len(broken)-20] ^= 1 // in the last pixel chunk
	short := bytes.Clone(aJPEG[:len(aJPEG)*2/3])
	tests := []struct {
		name string
		raw  []byte
		max  int
		want error
	}{
		{name: "nothing", raw: nil, want: picture.ErrTruncated},
		{name: "text", raw: []byte(`{"detail":"` + secret + `"}`), want: picture.ErrNotImage},
		{name: "gif", raw: []byte("GIF89a\x01\x00\x01\x00\x00\x00\x00;......"), want: picture.ErrNotImage},
		{name: "png of 2^31 squared", raw: hugePNG(1<<31-1, 1<<31-1), want: picture.ErrNotImage},
		{name: "png of 30000 squared", raw: hugePNG(30000, 30000), want: picture.ErrTooManyPixels},
		{name: "png wider than a jpeg can be", raw: encodePNG(t, gray(65536, 1)), want: picture.ErrTooManyPixels},
		{name: "one pixel too many", raw: aPNG, max: 100*80 - 1, want: picture.ErrTooManyPixels},
		{name: "jpeg too large", raw: aJPEG, max: 100*80 - 1, want: picture.ErrTooManyPixels},
		{name: "png cut", raw: aPNG[:len(aPNG)/2], want: picture.ErrTruncated},
		{name: "png without its end", raw: aPNG[:len(aPNG)-12], want: picture.ErrTruncated},
		{name: "png with a wrong checksum", raw: broken, want: picture.ErrNotImage},
		{name: "jpeg cut", raw: short, want: picture.ErrTruncated},
		{name: "jpeg without its end", raw: aJPEG[:len(aJPEG)-2], want: picture.ErrTruncated},
		{name: "webp cut", raw: aWebP[:len(aWebP)-3], want: picture.ErrTruncated},
		{name: "webp whose pixels are longer than it", raw: webp(aWebP[12:24]), want: picture.ErrNotImage},
		{name: "webp without pixels", raw: webp(webpChunk("VP8X", make([]byte, 10)), webpChunk("EXIF", exif(1))), want: picture.ErrNotImage},
		{name: "webp of another size than its canvas", raw: webp(webpChunk("VP8X", []byte{0, 0, 0, 0, 9, 0, 0, 9, 0, 0}), aWebP[12:]), want: picture.ErrNotImage},
		{name: "jpeg's first bytes", raw: []byte{0xff, 0xd8, 0xff}, want: picture.ErrTruncated},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, format := range []string{picture.PNG, picture.JPEG, picture.WebP} {
				_, err := picture.Finish(tt.raw, picture.Options{Format: format, MaxPixels: tt.max})
				if !errors.Is(err, tt.want) {
					t.Errorf("as %s: got %v, want %v", format, err, tt.want)
				}
			}
		})
	}
	if _, err := picture.Finish(aPNG, picture.Options{Format: picture.PNG, MaxPixels: 100 * 80}); err != nil {
		t.Errorf("exactly the pixels allowed: %v", err)
	}
	for _, o := range []picture.Options{{}, {Format: "gif"}, {Format: picture.PNG, SourceType: "digitalCapture"}} {
		if _, err := picture.Finish(aPNG, o); !errors.Is(err, picture.ErrOptions) {
			t.Errorf("%+v: got %v, want ErrOptions", o, err)
		}
	}
}

func TestMark(t *testing.T) {
	t.Parallel()
	raws := map[string][]byte{picture.PNG: encodePNG(t, scene(40, 30)), picture.JPEG: encodeJPEG(t, scene(40, 30)), picture.WebP: encodePNG(t, scene(40, 30))}
	long := strings.Repeat("é<&>\n", 30_000)
	tests := []struct{ name, prompt, want string }{
		{name: "plain", prompt: secret, want: secret},
		{name: "markup", prompt: `</rdf:li> & "quotes" <?xpacket end="w"?> ]]>`, want: `</rdf:li> & "quotes" <?xpacket end="w"?> ]]>`},
		{name: "lines and scripts", prompt: "двое\tкотов\n一只猫 🐈", want: "двое\tкотов\n一只猫 🐈"},
		{name: "what XML cannot hold", prompt: "a\x00b\x1bc", want: "a\ufffdb\ufffdc"},
		{name: "long", prompt: long, want: long},
		{name: "odd", prompt: "a", want: "a"}, // the packets of one of the two have an odd length
		{name: "even", prompt: "ab", want: "ab"},
	}
	for _, tt := range tests {
		for format, raw := range raws {
			t.Run(tt.name+" in "+format, func(t *testing.T) {
				t.Parallel()
				p, err := picture.Finish(raw, picture.Options{Format: format, SourceType: picture.AlgorithmicMedia, Prompt: tt.prompt})
				if err != nil {
					t.Fatal(err)
				}
				check(t, p)
				got := readMark(t, p)
				if got.SourceType != "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia" {
					t.Errorf("source type %q", got.SourceType)
				}
				if tt.name == "long" {
					if len(got.Description) < 10_000 || !strings.HasPrefix(long, got.Description) {
						t.Errorf("a long description is not a piece of the prompt: %d bytes", len(got.Description))
					}
				} else if got.Description != tt.want {
					t.Errorf("description %q, want %q", got.Description, tt.want)
				}
			})
		}
	}
}

// The eight orientations, told apart by which corner is red.
func TestFinishTurns(t *testing.T) {
	t.Parallel()
	img := image.NewRGBA(image.Rect(0, 0, 64, 32))
	for i := range img.Pix {
		img.Pix[i] = 255
	}
	for y := range 16 {
		for x := range 16 {
			img.Set(x, y, color.RGBA{255, 0, 0, 255})
		}
	}
	corner := map[byte]image.Point{ // of the red one, once upright
		1: {4, 4}, 2: {60, 4}, 3: {60, 28}, 4: {4, 28}, 5: {4, 4}, 6: {28, 4}, 7: {28, 60}, 8: {4, 60},
	}
	for turn, at := range corner {
		for name, raw := range map[string][]byte{
			"jpeg": noisyJPEG(t, img, turn),
			"png":  insert(encodePNG(t, img), chunk("eXIf", exif(turn))),
		} {
			p, err := picture.Finish(raw, picture.Options{Format: picture.PNG})
			if err != nil {
				t.Fatal(err)
			}
			if got := check(t, p).At(at.X, at.Y); !near(got, color.RGBA{255, 0, 0, 255}) {
				t.Errorf("%s, orientation %d: %v at %v, want red", name, turn, got, at)
			}
		}
	}
}

func FuzzFinish(f *testing.F) {
	formats := []string{picture.PNG, picture.JPEG, picture.WebP}
	photo := scene(40, 30)
	for _, raw := range [][]byte{
		encodePNG(f, photo), noisyPNG(f, photo), encodePNG(f, paletted(9, 9)), encodePNG(f, deep(9, 9)), animated(f, photo),
		encodeJPEG(f, photo), noisyJPEG(f, photo, 6), encodeJPEG(f, gray(9, 9)), cmykJPEG(), noisyWebP(webpLossless), noisyWebP(webpLossy), noisyWebP(webpTransparent), hugePNG(1<<31-1, 1),
		nil, []byte("RIFF\xff\xff\xff\xffWEBPVP8 "),
	} {
		for format := range formats {
			f.Add(raw, uint(format)) //nolint:gosec // one of three
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, format uint) {
		p, err := picture.Finish(raw, picture.Options{Format: formats[format%uint(len(formats))], MaxPixels: 1 << 16})
		if err != nil {
			for _, known := range []error{picture.ErrNotImage, picture.ErrTooManyPixels, picture.ErrTruncated} {
				if err == known { //nolint:errorlint // bare on purpose: nothing may hang on it
					return
				}
			}
			t.Fatalf("unknown error %v", err)
		}
		if p.Width*p.Height > 1<<16 {
			t.Fatalf("%d × %d is over the cap", p.Width, p.Height)
		}
		check(t, p)
		readMark(t, p)
	})
}

// Each beside the least that the job takes: one decode (pass-through) or a
// decode and an encode.
func BenchmarkFinish(b *testing.B) {
	photo := scene(1024, 1024)
	aPNG, aJPEG := encodePNG(b, photo), encodeJPEG(b, photo)
	for _, bb := range []struct {
		name, format string
		raw          []byte
		floor        func()
	}{
		{"png", picture.PNG, aPNG, func() { decode(b, aPNG) }},
		{"jpeg", picture.JPEG, aJPEG, func() { decode(b, aJPEG) }},
		{"png to jpeg", picture.JPEG, aPNG, func() {
			_ = jpeg.Encode(io.Discard, decode(b, aPNG), &jpeg.Options{Quality: 85})
		}},
		{"png to webp", picture.WebP, aPNG, func() {
			_ = nativewebp.Encode(io.Discard, decode(b, aPNG), nil)
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bb.raw)))
			for b.Loop() {
				if _, err := picture.Finish(bb.raw, picture.Options{Format: bb.format}); err != nil {
					b.Fatal(err)
				}
			}
			finish := b.Elapsed() / time.Duration(b.N)
			const rounds = 20
			start := time.Now()
			for range rounds {
				bb.floor()
			}
			b.ReportMetric(float64(finish)/float64(time.Since(start)/rounds), "×floor")
		})
	}
}

// check reads a finished picture back by its own means: it decodes to the size
// it claims, holds the allowed chunks alone, one mark, and ends where it ends.
func check(t testing.TB, p picture.Picture) image.Image {
	t.Helper()
	img := decode(t, p.Data)
	if s := img.Bounds().Size(); s.X != p.Width || s.Y != p.Height {
		t.Fatalf("decodes to %v, says %d × %d", s, p.Width, p.Height)
	}
	small := decode(t, p.Thumbnail)
	s := small.Bounds().Size()
	if long := max(s.X, s.Y); long > picture.ThumbnailSide || long != min(picture.ThumbnailSide, max(p.Width, p.Height)) {
		t.Errorf("thumbnail of %d × %d is %v", p.Width, p.Height, s)
	}
	marks := 0
	switch p.Format {
	case picture.PNG:
		kinds := "IHDR PLTE IDAT IEND tRNS sRGB gAMA cHRM iCCP"
		for i, c := range pngChunks(t, p.Data) {
			if c.kind == "iTXt" {
				marks++
				if i != 1 {
					t.Errorf("the mark is chunk %d, not the one after IHDR", i)
				}
			} else if !strings.Contains(kinds, c.kind) {
				t.Errorf("chunk %q is left", c.kind)
			}
		}
	case picture.WebP:
		chunks := webpChunks(t, p.Data)
		head, kinds := chunks[0], ""
		for _, c := range chunks {
			kinds += c.kind
		}
		marks = strings.Count(kinds, "XMP ")
		if !slices.Contains([]string{"VP8XVP8LXMP ", "VP8XVP8 XMP ", "VP8XALPHVP8 XMP "}, kinds) {
			t.Errorf("its chunks are %q", kinds)
		}
		side := func(b []byte) int { return int(b[0]) + int(b[1])<<8 + int(b[2])<<16 + 1 }
		if w, h := side(head.body[4:]), side(head.body[7:]); head.body[0]&^0x10 != 0x04 || string(head.body[1:4]) != "\x00\x00\x00" || w != p.Width || h != p.Height {
			t.Errorf("% x says %d × %d", head.body, w, h)
		}
	default:
		for i, s := range jpegSegments(t, p.Data) {
			switch s.kind {
			case 0xe1:
				marks++
				if i != 0 {
					t.Errorf("the mark is segment %d, not the first", i)
				}
			case 0xe0, 0xee:
				if len(s.body) > 14 {
					t.Errorf("segment %x holds %d bytes", s.kind, len(s.body))
				}
			default:
				if s.kind > 0xdd {
					t.Errorf("segment %x is left", s.kind)
				}
			}
		}
	}
	if marks != 1 {
		t.Errorf("%d marks", marks)
	}
	return img
}

type mark struct {
	SourceType  string `xml:"RDF>Description>DigitalSourceType"`
	Description string `xml:"RDF>Description>description>Alt>li"`
}

func readMark(t testing.TB, p picture.Picture) mark {
	t.Helper()
	var packet []byte
	switch p.Format {
	case picture.PNG:
		packet = bytes.TrimPrefix(pngChunks(t, p.Data)[1].body, []byte("XML:com.adobe.xmp\x00\x00\x00\x00\x00"))
	case picture.WebP:
		chunks := webpChunks(t, p.Data)
		packet = chunks[len(chunks)-1].body
	default:
		packet = bytes.TrimPrefix(jpegSegments(t, p.Data)[0].body, []byte("http://ns.adobe.com/xap/1.0/\x00"))
	}
	var m mark
	if err := xml.Unmarshal(packet, &m); err != nil {
		t.Fatalf("the mark is no XML: %v", err)
	}
	for _, ns := range []string{
		`"http://iptc.org/std/Iptc4xmpExt/2008-02-29/"`, `"http://purl.org/dc/elements/1.1/"`,
		`"http://www.w3.org/1999/02/22-rdf-syntax-ns#"`, `"adobe:ns:meta/"`,
	} {
		if !bytes.Contains(packet, []byte(ns)) {
			t.Errorf("the mark lacks the namespace %s", ns)
		}
	}
	return m
}

type piece[K any] struct {
	kind K
	body []byte
}

func pngChunks(t testing.TB, data []byte) (chunks []piece[string]) {
	t.Helper()
	for rest := data[8:]; len(rest) > 0; {
		n := binary.BigEndian.Uint32(rest)
		kind := string(rest[4:8])
		if crc32.ChecksumIEEE(rest[4:8+n]) != binary.BigEndian.Uint32(rest[8+n:]) {
			t.Fatalf("wrong checksum of %s", kind)
		}
		chunks = append(chunks, piece[string]{kind, rest[8 : 8+n]})
		rest = rest[12+n:]
		if kind == "IEND" && len(rest) > 0 {
			t.Fatalf("%d bytes after the end", len(rest))
		}
	}
	return chunks
}

func webpChunks(t testing.TB, data []byte) (chunks []piece[string]) {
	t.Helper()
	size := binary.LittleEndian.Uint32(data[4:])
	if string(data[:4]) != "RIFF" || string(data[8:12]) != "WEBP" || int(size) != len(data)-8 || size%2 != 0 {
		t.Fatalf("a file of %d bytes begins % x", len(data), data[:12])
	}
	for rest := data[12:]; len(rest) > 0; {
		n := binary.LittleEndian.Uint32(rest[4:])
		chunks = append(chunks, piece[string]{string(rest[:4]), rest[8 : 8+n]})
		if n%2 != 0 && rest[8+n] != 0 {
			t.Fatalf("%s is filled up with %x", rest[:4], rest[8+n])
		}
		rest = rest[8+n+n%2:]
	}
	return chunks
}

// jpegSegments lists the segments up to the first scan.
func jpegSegments(t testing.TB, data []byte) (segments []piece[byte]) {
	t.Helper()
	if !bytes.HasSuffix(data, []byte{0xff, 0xd9}) {
		t.Fatal("no end marker at the end")
	}
	for rest := data[2:]; ; {
		if rest[0] != 0xff {
			t.Fatal("no marker where one must be")
		}
		n := binary.BigEndian.Uint16(rest[2:])
		segments = append(segments, piece[byte]{rest[1], rest[4 : 2+n]})
		if rest[1] == 0xda {
			return segments
		}
		rest = rest[2+n:]
	}
}

func pixels(t testing.TB, data []byte) (all []byte) {
	t.Helper()
	for _, c := range pngChunks(t, data) {
		if c.kind == "IDAT" {
			all = append(all, c.body...)
		}
	}
	return all
}

func decode(t testing.TB, data []byte) image.Image {
	t.Helper()
	read := png.Decode
	switch {
	case bytes.HasPrefix(data, []byte{0xff, 0xd8}):
		read = jpeg.Decode
	case bytes.HasPrefix(data, []byte("RIFF")):
		read = xwebp.Decode
	}
	img, err := read(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("cannot be decoded: %v", err)
	}
	return img
}

func near(got, want color.Color) bool {
	r, g, b, _ := got.RGBA()
	wr, wg, wb, _ := want.RGBA()
	for _, d := range []int{int(r) - int(wr), int(g) - int(wg), int(b) - int(wb)} {
		if max(d, -d) > 0x1000 {
			return false
		}
	}
	return true
}

// scene has gradients and noise, as a picture has.
func scene(w, h int) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	r := rand.New(rand.NewPCG(1, 2))
	for y := range h {
		for x := range w {
			n := uint8(r.IntN(12))
			img.SetRGBA(x, y, color.RGBA{uint8(x*200/w) + n, uint8(y*200/h) + n, 120 + n, 255})
		}
	}
	return img
}

func gray(w, h int) *image.Gray { return image.NewGray(image.Rect(0, 0, w, h)) }

func paletted(w, h int) *image.Paletted {
	return image.NewPaletted(image.Rect(0, 0, w, h), color.Palette{color.NRGBA{200, 30, 30, 255}, color.NRGBA{0, 0, 0, 0}})
}

func deep(w, h int) *image.NRGBA64 {
	img := image.NewNRGBA64(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			img.SetNRGBA64(x, y, color.NRGBA64{0x1234, 0x5678, 0x9abc, 0xffff})
		}
	}
	return img
}

func encodePNG(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func encodeJPEG(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 90}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func chunk(kind string, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	b = append(append(b, kind...), body...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// insert puts chunks after IHDR.
func insert(data []byte, chunks ...[]byte) []byte {
	const header = 8 + 25
	return bytes.Join([][]byte{data[:header], bytes.Join(chunks, nil), data[header:]}, nil)
}

// noisyPNG holds everything that engines write, in all the places where they
// may write it.
func noisyPNG(t testing.TB, img image.Image) []byte {
	t.Helper()
	data := insert(encodePNG(t, img),
		chunk("iCCP", []byte(secret+"\x00\x00x\x9c\x03\x00\x00\x00\x00\x01")),
		chunk("gAMA", []byte{0, 0, 0xb1, 0x8f}),
		chunk("sRGB", []byte{0}),
		chunk("sRGB", []byte(secret)),
		chunk("tEXt", []byte("parameters\x00"+secret)),
		chunk("zTXt", []byte("prompt\x00\x00"+secret)),
		chunk("iTXt", []byte("XML:com.adobe.xmp\x00\x00\x00\x00\x00<x>"+secret+"</x>")),
		chunk("tIME", []byte{7, 234, 1, 1, 1, 1, 1}),
		chunk("eXIf", append(exif(1), secret...)),
		chunk("caBX", []byte(secret)),
		chunk("prVt", []byte(secret)),
	)
	end := len(data) - 12
	return bytes.Join([][]byte{
		data[:end], chunk("tEXt", []byte("workflow\x00"+secret)), chunk("IDAT", []byte(secret)), data[end:], []byte(secret),
	}, nil)
}

func animated(t testing.TB, img image.Image) []byte {
	t.Helper()
	data := insert(encodePNG(t, img), chunk("acTL", make([]byte, 8)), chunk("fcTL", make([]byte, 26)))
	end := len(data) - 12
	return bytes.Join([][]byte{data[:end], chunk("fcTL", make([]byte, 26)), chunk("fdAT", []byte("0000"+secret)), data[end:]}, nil)
}

func hugePNG(w, h uint32) []byte {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, w), h)
	return bytes.Join([][]byte{
		[]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", append(head, 8, 2, 0, 0, 0)), chunk("IDAT", []byte("x\x9c")), chunk("IEND", nil),
	}, nil)
}

func exif(turn byte) []byte {
	return []byte{'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, turn, 0, 0, 0, 0, 0, 0}
}

func segment(marker byte, body string) []byte {
	return append([]byte{0xff, marker, byte((len(body) + 2) >> 8), byte(len(body) + 2)}, body...)
}

func noisyJPEG(t testing.TB, img image.Image, turn byte) []byte {
	t.Helper()
	plain := encodeJPEG(t, img)
	return bytes.Join([][]byte{
		plain[:2],
		segment(0xe0, "JFIF\x00\x01\x02\x00\x00\x01\x00\x01\x00\x00"+secret),
		segment(0xe0, "JFXX\x00"+secret),
		segment(0xe1, "Exif\x00\x00"+string(exif(turn))+secret),
		segment(0xe1, "http://ns.adobe.com/xap/1.0/\x00"+secret),
		segment(0xe2, "ICC_PROFILE\x00\x01\x01"+secret),
		segment(0xed, "photoshop "+secret),
		segment(0xee, "Adobe\x00\x64\x00\x00\x00\x00\x01"+secret),
		segment(0xfe, secret),
		[]byte(secret), // loose between two segments
		{0xff, 0xff},   // filler
		plain[2:],
		[]byte(secret),
	}, nil)
}

// cmykJPEG is 8 × 8 black pixels in Adobe's inverted CMYK: one block a
// component, each of a single DC code and an end of block.
func cmykJPEG() []byte {
	quant := "\x00" + strings.Repeat("\x01", 64)
	// Codes 0 → length 0 and 10 → 11 bits for DC, 0 → end of block for AC.
	dc := "\x00\x01\x01" + strings.Repeat("\x00", 14) + "\x00\x0b"
	ac := "\x10\x01" + strings.Repeat("\x00", 15) + "\x00"
	frame := "\x08\x00\x08\x00\x08\x04\x01\x11\x00\x02\x11\x00\x03\x11\x00\x04\x11\x00"
	scan := "\x04\x01\x00\x02\x00\x03\x00\x04\x00\x00\x3f\x00"
	// C, M and Y: DC 0 (0), AC end (0). K: DC −1024 (10 01111111111), AC end (0), then ones.
	bits := "000000" + "10" + "01111111111" + "0" + "1111"
	var pixels []byte
	for i := 0; i < len(bits); i += 8 {
		var b byte
		for _, c := range bits[i : i+8] {
			b = b<<1 | byte(c-'0')
		}
		if pixels = append(pixels, b); b == 0xff {
			pixels = append(pixels, 0)
		}
	}
	return bytes.Join([][]byte{
		{0xff, 0xd8}, segment(0xee, "Adobe\x00\x64\x00\x00\x00\x00\x00"), segment(0xdb, quant), segment(0xc0, frame),
		segment(0xc4, dc), segment(0xc4, ac), segment(0xda, scan), pixels, {0xff, 0xd9},
	}, nil)
}

// WebP files of one pixel, in hex. The transparent one has a canvas and its alpha
// in a chunk of its own.
const (
	webpLossless    = "524946461a000000574542505650384c0e0000002f00000010071011118888fe0700"
	webpLossy       = "52494646220000005745425056503820160000003001009d012a010001000ec0fe25a400037000000000"
	webpTransparent = "524946464a00000057454250" + "565038580a00000010000000000000000000" +
		"414c50480c00000011071011fd0f4444ff030000" + "5650382018000000" + "1401009d012a010001000000fe00000dc000fee6b5000000"
)

func webpFile(text string) []byte {
	data, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return data
}

func webp(chunks ...[]byte) []byte {
	return webpChunk("RIFF", append([]byte("WEBP"), bytes.Join(chunks, nil)...))
}

func webpChunk(kind string, body []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte(kind), uint32(len(body)))
	return append(append(b, body...), make([]byte, len(body)&1)...)
}

// noisyWebP holds everything that may stand beside the pixels of the file, and
// behind it.
func noisyWebP(file string) []byte {
	data := webpFile(file)
	flags, pixels := byte(0x2c), data[12:]
	if string(pixels[:4]) == "VP8X" {
		flags, pixels = flags|pixels[8], pixels[18:]
	}
	return append(webp(
		webpChunk("VP8X", []byte{flags, 'r', 'e', 'd', 0, 0, 0, 0, 0, 0}), webpChunk("ICCP", []byte(secret)), webpChunk("JUNK", []byte(secret)),
		pixels, webpChunk("VP8L", []byte(secret)), webpChunk("ALPH", []byte(secret)),
		webpChunk("EXIF", append(exif(1), secret...)), webpChunk("XMP ", []byte(secret)),
	), secret...)
}

func TestAJPEGHasTheQualityThatIsAskedFor(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string][]byte{"of a PNG": encodePNG(t, scene(300, 200)), "of a JPEG": encodeJPEG(t, scene(300, 200))} {
		size := map[int]int{}
		for _, quality := range []int{1, 50, 100} {
			p, err := picture.Finish(raw, picture.Options{Format: picture.JPEG, Quality: quality})
			if err != nil {
				t.Fatal(err)
			}
			check(t, p)
			size[quality] = len(p.Data)
		}
		if size[1] >= size[50] || size[50] >= size[100] {
			t.Errorf("%s: bytes by quality %v", name, size)
		}
	}
}
