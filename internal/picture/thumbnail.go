package picture

import (
	"bytes"
	"image"
	stddraw "image/draw"
	"image/jpeg"

	"golang.org/x/image/draw"
)

// ThumbnailSide is the longest side of a thumbnail in pixels.
const ThumbnailSide = 384

const thumbnailQuality = 80

// thumbnail scales img down on white and encodes it.
func thumbnail(img image.Image) ([]byte, error) {
	b := img.Bounds()
	w, h := b.Dx(), b.Dy()
	if long := max(w, h); long > ThumbnailSide {
		w = max(1, (w*ThumbnailSide+long/2)/long)
		h = max(1, (h*ThumbnailSide+long/2)/long)
	}
	small := white(w, h)
	draw.CatmullRom.Scale(small, small.Bounds(), quick(img), b, draw.Over, nil)
	var out bytes.Buffer
	err := jpeg.Encode(&out, small, &jpeg.Options{Quality: thumbnailQuality})
	return out.Bytes(), err
}

// quick is img in a type that the scaler reads without a call per pixel.
func quick(img image.Image) image.Image {
	switch img.(type) {
	case *image.RGBA, *image.NRGBA, *image.YCbCr, *image.Gray:
		return img
	}
	return straight(img)
}

// straight is img in 8 bits a channel, each without its alpha.
func straight(img image.Image) *image.NRGBA {
	if m, ok := img.(*image.NRGBA); ok {
		return m
	}
	b := img.Bounds()
	m := image.NewNRGBA(b)
	stddraw.Draw(m, b, img, b.Min, stddraw.Src)
	return m
}

// flat is img on white, in a type that the JPEG encoder reads fast.
func flat(img image.Image) image.Image {
	switch img.(type) {
	case *image.YCbCr, *image.Gray:
		return img
	}
	b := img.Bounds()
	f := white(b.Dx(), b.Dy())
	stddraw.Draw(f, f.Bounds(), img, b.Min, stddraw.Over)
	return f
}

func white(w, h int) *image.RGBA {
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	stddraw.Draw(m, m.Bounds(), image.White, image.Point{}, stddraw.Src)
	return m
}
