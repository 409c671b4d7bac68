package picture

import (
	"bytes"
	"encoding/binary"
	"image"
	"math/bits"
	"sync"

	"github.com/HugoSmits86/nativewebp"
	"golang.org/x/image/webp"
)

// The flags of VP8X, the chunk that announces what else is in the file. The
// header of lossless pixels has its alpha at the same bit, in its fifth byte.
const (
	flagXMP   = 0x04
	flagAlpha = 0x10
)

// cleanWebP copies the chunks of the pixels and, where the file has one, the
// canvas, against which the decoder holds them. All else is left behind: text,
// colour profiles, animation, and whatever comes after the pixels.
func cleanWebP(raw []byte) ([]byte, orientation, error) {
	size := int64(binary.LittleEndian.Uint32(raw[4:])) + 8
	if size > int64(len(raw)) {
		return nil, upright, ErrTruncated
	}
	var chunks []byte
	turn, whole := upright, false
	for rest := raw[12:max(size, 12)]; len(rest) >= 8; {
		n := int(binary.LittleEndian.Uint32(rest[4:]))
		if n > len(rest)-8 {
			return nil, upright, ErrTruncated
		}
		kind, body := string(rest[:4]), rest[8:8+n]
		switch {
		case kind == "EXIF":
			turn = orientationOf(body)
		case whole:
		case kind == "VP8X" && n == 10:
			chunks = appendChunk(chunks, kind, append([]byte{body[0] & flagAlpha, 0, 0, 0}, body[4:]...))
		case kind == "ALPH":
			chunks = appendChunk(chunks, kind, body)
		case kind == "VP8 " || kind == "VP8L":
			chunks, whole = appendChunk(chunks, kind, body), true
		}
		rest = rest[min(8+n+n&1, len(rest)):]
	}
	if !whole {
		return nil, upright, ErrNotImage
	}
	return riff(chunks), turn, nil
}

// encodeWebP encodes without loss. The encoder's prefix codes can come out longer
// than WebP allows, of one picture in some hundreds: then it writes a broken file,
// or panics. So what it wrote is read back. One picture is encoded at a time: of
// 2048² it takes 300 MB meanwhile, and whoever sends prompts chooses the format.
func encodeWebP(img image.Image) []byte {
	encoding.Lock()
	defer encoding.Unlock()
	exact := straight(img)
	data := compressed(exact)
	if back, err := webp.Decode(bytes.NewReader(data)); err == nil {
		if m, ok := back.(*image.NRGBA); ok && m.Rect.Size() == exact.Rect.Size() && bytes.Equal(m.Pix, exact.Pix) {
			return data
		}
	}
	return riff(appendChunk(nil, "VP8L", uncompressed(exact)))
}

var encoding sync.Mutex

// compressed is nothing where the encoder panics.
func compressed(img *image.NRGBA) (data []byte) {
	defer func() {
		if recover() != nil {
			data = nil
		}
	}()
	var b bytes.Buffer
	if nativewebp.Encode(&b, img, nil) != nil {
		return nil
	}
	return b.Bytes()
}

// uncompressed is img in lossless WebP's bits, where every value of every channel
// has a code of 8 bits. It is right for all pictures, and large.
func uncompressed(img *image.NRGBA) []byte {
	size := img.Rect.Size()
	out := make([]byte, 0, 4*size.X*size.Y+512)
	var held uint64
	var n int
	put := func(width int, values ...int) {
		for _, v := range values {
			held |= uint64(v) << n //nolint:gosec // never negative
			for n += width; n >= 8; n -= 8 {
				out = append(out, byte(held)) //nolint:gosec // its first eight bits
				held >>= 8
			}
		}
	}
	alpha := 1
	if img.Opaque() {
		alpha = 0
	}
	put(8, 0x2f)
	put(14, size.X-1, size.Y-1)
	put(1, alpha)
	put(3, 0)                                                // version
	put(1, 0)                                                // no transform
	put(1, 0)                                                // no colour cache
	put(1, 0)                                                // the same codes everywhere
	for _, lengths := range []int{256 + 24, 256, 256, 256} { // green and what repeats, red, blue, alpha
		put(1, 0)                                  // each length is told,
		put(4, 12-4)                               // by codes of which twelve are told:
		put(3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1) // 0 for the length 0, the third; 1 for 8, the twelfth
		put(1, 0)                                  // all of them
		for i := range lengths {
			if i < 256 {
				put(1, 1)
			} else {
				put(1, 0)
			}
		}
	}
	put(1, 1, 0, 0, 0) // for distances a code that nobody uses
	for p := img.Pix; len(p) >= 4; p = p[4:] {
		for _, c := range [4]byte{p[1], p[0], p[2], p[3]} {
			put(8, int(bits.Reverse8(c))) // codes come with their first bit first
		}
	}
	put(7, 0) // what is begun is filled up
	return out
}

// markWebP puts the packet behind the pixels, and before them what announces it.
func markWebP(data, packet []byte, size image.Point) []byte {
	pixels := data[12:]
	if string(pixels[:4]) == "VP8X" {
		pixels = pixels[8+10:]
	}
	flags := byte(flagXMP)
	switch string(pixels[:4]) {
	case "ALPH":
		flags |= flagAlpha
	case "VP8L":
		flags |= pixels[8+4] & flagAlpha
	}
	head := []byte{flags, 0, 0, 0}
	for _, side := range []int{size.X - 1, size.Y - 1} {
		head = append(head, byte(side), byte(side>>8), byte(side>>16)) //nolint:gosec // by bytes
	}
	chunks := append(appendChunk(nil, "VP8X", head), pixels...)
	return riff(appendChunk(chunks, "XMP ", packet))
}

func appendChunk(b []byte, kind string, body []byte) []byte {
	b = append(b, kind...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body))) //nolint:gosec // of an image that is far below 4 GiB
	b = append(b, body...)
	return append(b, make([]byte, len(body)&1)...)
}

// riff is a whole file of the chunks.
func riff(chunks []byte) []byte { return appendChunk(nil, "RIFF", append([]byte("WEBP"), chunks...)) }
