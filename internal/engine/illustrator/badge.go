package illustrator

import (
	"image"
	"image/color"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gomedium"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

const badgeText = "Built-in illustrator · no AI model"

// badge writes in the lower right corner what made the picture. On pictures too
// narrow for the words it gets smaller, down to what can still be read.
func badge(img *image.RGBA) {
	parsed, err := opentype.Parse(gomedium.TTF)
	if err != nil {
		return // the font is part of the program; the mark in the file says the same
	}
	w, h := img.Rect.Dx(), img.Rect.Dy()
	size := max(7, min(float64(min(w, h))*0.0165, float64(w)*0.05))
	var face font.Face
	var wide int
	for ; ; size *= 0.9 {
		if face, err = opentype.NewFace(parsed, &opentype.FaceOptions{Size: size, DPI: 72, Hinting: font.HintingNone}); err != nil {
			return
		}
		if wide = font.MeasureString(face, badgeText).Ceil(); float64(wide)+size*2 < float64(w) || size < 4 {
			break
		}
	}
	pad := int(size*0.62 + 0.5)
	margin := int(size*0.7 + 0.5)
	m := face.Metrics()
	high := m.Ascent.Ceil() + m.Descent.Ceil()
	x1, y1 := w-margin, h-margin
	x0, y0 := x1-wide-2*pad, y1-high-pad
	r := float32(y1-y0) / 2
	for y := max(y0, 0); y < y1; y++ {
		for x := max(x0, 0); x < x1; x++ {
			dx := max(float32(x0)+r-float32(x)-0.5, float32(x)+0.5-float32(x1)+r, 0)
			dy := float32(y) + 0.5 - float32(y0) - r
			cover := clamp(r-sqrt(dx*dx+dy*dy)+0.5, 0, 1) * 0.46
			p := img.Pix[img.PixOffset(x, y):][:3]
			for i, v := range p {
				p[i] = uint8(float32(v)*(1-cover) + 18*cover)
			}
		}
	}
	d := font.Drawer{Dst: img, Src: image.NewUniform(color.NRGBA{255, 255, 255, 225}), Face: face,
		Dot: fixed.P(x0+pad, y0+pad/2+m.Ascent.Ceil())}
	d.DrawString(badgeText)
}
