// Package picture turns an engine's bytes into the picture that a user gets:
// its true size read under a cap before anything is decoded, every piece of
// metadata that the engine wrote taken out, the mark that says a machine made
// it put in, and a thumbnail beside it.
//
// It never writes a prompt into a picture unless told to, and its errors quote
// nothing of the input. Metadata means chunks and segments: pixel data is
// handed on as the engine wrote it, and what an engine might hide inside it
// stays there.
package picture

import (
	"bytes"
	"cmp"
	"errors"
	"image"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/webp"
)

// The formats that Finish writes.
const (
	PNG  = "png"
	JPEG = "jpeg"
	WebP = "webp"
)

// Writes reports whether Finish writes the format.
func Writes(format string) bool { return format == PNG || format == JPEG || format == WebP }

// The source types that Finish writes, from IPTC's digitalsourcetype codes.
const (
	TrainedAlgorithmicMedia = "trainedAlgorithmicMedia" // made by a trained model
	AlgorithmicMedia        = "algorithmicMedia"        // made by plain code
)

const (
	defaultMaxPixels = 1 << 24   // 4096 × 4096
	maxSide          = 1<<16 - 1 // what a JPEG header can hold
	maxSideWebP      = 1<<14 - 1 // what WebP's own library reads and writes
	quality          = 85        // of a JPEG encoded here: 1024² is about 120 KB
)

// The errors of Finish. None of them quotes the input or wraps a decoder's
// error, which might.
var (
	ErrNotImage      = errors.New("picture: not a png, jpeg or webp image that can be read")
	ErrTooManyPixels = errors.New("picture: more pixels than allowed")
	ErrTruncated     = errors.New("picture: image ends too early")
	ErrOptions       = errors.New("picture: unknown format or source type")
)

// Options of Finish.
type Options struct {
	Format     string // PNG, JPEG or WebP
	MaxPixels  int    // width × height at most; 0: 4096 × 4096
	SourceType string // TrainedAlgorithmicMedia (also when empty) or AlgorithmicMedia
	Prompt     string // written into the file as its description; empty: not at all
	Quality    int    // of a JPEG, 1 to 100, encoded anew; 0: the usual one, where it is encoded at all
}

// A Picture is ready to be stored.
type Picture struct {
	Data      []byte // in Format, marked
	Thumbnail []byte // JPEG, longest side at most ThumbnailSide pixels, never enlarged
	Width     int    // pixels, as a viewer shows it
	Height    int    // pixels
	Format    string // PNG, JPEG or WebP
}

// Finish reads an engine's PNG, JPEG or WebP and makes the Picture of it.
//
// What is asked for in its own format is not encoded again: only the chunks
// needed to decode and show it are copied. All else is encoded anew as sRGB,
// for WebP without loss in 8 bits a channel: other formats, CMYK and RGB JPEGs, and pictures that
// EXIF says to turn, which are turned. Of an animation the first or default
// image is taken, where there is one. The copy has been decoded once to its
// end, so it is whole.
//
// Errors: ErrNotImage, ErrTooManyPixels, ErrTruncated; ErrOptions.
func Finish(raw []byte, o Options) (Picture, error) {
	if o.SourceType == "" {
		o.SourceType = TrainedAlgorithmicMedia
	}
	if !Writes(o.Format) || o.SourceType != TrainedAlgorithmicMedia && o.SourceType != AlgorithmicMedia {
		return Picture{}, ErrOptions
	}
	s, err := open(raw)
	if err != nil {
		return Picture{}, err
	}
	if err := s.checkSize(raw, o); err != nil {
		return Picture{}, err
	}
	clean, turn, err := s.clean(raw)
	if err != nil {
		return Picture{}, err
	}
	img, err := s.decodeWhole(clean)
	if err != nil {
		return Picture{}, err
	}
	if turn != upright {
		img = turned(img, turn)
	}
	data := clean
	if s.format != o.Format || turn != upright || !passable(img, o.Format) || o.Format == JPEG && o.Quality > 0 {
		if data, err = encode(img, o); err != nil {
			return Picture{}, err
		}
	}
	small, err := thumbnail(img)
	if err != nil {
		return Picture{}, err
	}
	packet := xmp(o.SourceType, o.Prompt)
	size := img.Bounds().Size()
	switch o.Format {
	case PNG:
		data = markPNG(data, packet)
	case JPEG:
		data = markJPEG(data, packet)
	case WebP:
		data = markWebP(data, packet, size)
	}
	return Picture{Data: data, Thumbnail: small, Width: size.X, Height: size.Y, Format: o.Format}, nil
}

// A source reads one format of engine output. The registry of package image is
// not asked: what it knows depends on what else the program links.
type source struct {
	format string
	config func(io.Reader) (image.Config, error)
	decode func(io.Reader) (image.Image, error)
	clean  func(raw []byte) (clean []byte, turn orientation, err error)
}

func open(raw []byte) (source, error) {
	switch {
	case bytes.HasPrefix(raw, []byte(pngSignature)):
		return source{PNG, png.DecodeConfig, png.Decode, cleanPNG}, nil
	case bytes.HasPrefix(raw, []byte{0xff, soi, 0xff}):
		return source{JPEG, jpeg.DecodeConfig, jpeg.Decode, cleanJPEG}, nil
	case len(raw) >= 12 && string(raw[:4]) == "RIFF" && string(raw[8:12]) == "WEBP":
		return source{WebP, webp.DecodeConfig, webp.Decode, cleanWebP}, nil
	case len(raw) < 12:
		return source{}, ErrTruncated
	}
	return source{}, ErrNotImage
}

// checkSize reads the size from the header alone.
func (s source) checkSize(raw []byte, o Options) error {
	c, err := s.config(bytes.NewReader(raw))
	if err != nil {
		return readError(err)
	}
	maxPixels, side := cmp.Or(max(o.MaxPixels, 0), defaultMaxPixels), maxSide
	if o.Format == WebP {
		side = maxSideWebP
	}
	if c.Width <= 0 || c.Height <= 0 {
		return ErrNotImage
	}
	if c.Width > side || c.Height > side || c.Width > maxPixels/c.Height {
		return ErrTooManyPixels
	}
	return nil
}

// decodeWhole proves that data is whole. Its size was checked before; a decoder
// that finds another one inside is not believed.
func (s source) decodeWhole(data []byte) (image.Image, error) {
	c, err := s.config(bytes.NewReader(data))
	if err != nil {
		return nil, readError(err)
	}
	img, err := s.decode(bytes.NewReader(data))
	if err != nil {
		return nil, readError(err)
	}
	if b := img.Bounds(); b.Dx() != c.Width || b.Dy() != c.Height {
		return nil, ErrNotImage
	}
	return img, nil
}

func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return ErrNotImage
}

// passable says whether img's file may be handed on in format, not encoded
// again. Browsers disagree about JPEGs in other colours than these.
func passable(img image.Image, format string) bool {
	switch img.(type) {
	case *image.Gray, *image.YCbCr:
		return true
	}
	return format != JPEG
}

func encode(img image.Image, o Options) ([]byte, error) {
	var b bytes.Buffer
	var err error
	switch o.Format {
	case PNG:
		// Best speed: a third of the default's time for a quarter more bytes.
		e := png.Encoder{CompressionLevel: png.BestSpeed}
		err = e.Encode(&b, img)
	case JPEG:
		err = jpeg.Encode(&b, flat(img), &jpeg.Options{Quality: cmp.Or(o.Quality, quality)})
	case WebP:
		return encodeWebP(img), nil
	}
	return b.Bytes(), err
}
