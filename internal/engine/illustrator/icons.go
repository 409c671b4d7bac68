package illustrator

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"image"
	"math"
	"strings"

	"github.com/srwiley/oksvg"
	"github.com/srwiley/rasterx"
)

// The flat drawings of things: Fluent Emoji by Microsoft, MIT, see
// icons/LICENSE. Each is the inside of an SVG of 32 × 32.
//
//go:embed icons/icons.json
var iconFile []byte

const iconSide = 32

type icons struct{ svg map[string]string }

func openIcons() (*icons, error) {
	var ic icons
	if err := json.Unmarshal(iconFile, &ic.svg); err != nil {
		return nil, fmt.Errorf("illustrator: read icons: %w", err)
	}
	return &ic, nil
}

// draw rasters an icon at a size in pixels; nil when it is not there or stop
// says so.
func (ic *icons) draw(name string, side int, stop func() bool) *image.RGBA {
	icon, err := oksvg.ReadIconStream(strings.NewReader(
		fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d">%s</svg>`, iconSide, iconSide, ic.svg[name])), oksvg.IgnoreErrorMode)
	if err != nil || side < 1 {
		return nil
	}
	img := image.NewRGBA(image.Rect(0, 0, side, side))
	pen := rasterx.NewDasher(side, side, rasterx.NewScannerGV(side, side, img, img.Bounds()))
	icon.SetTarget(0, 0, float64(side), float64(side))
	for i := range icon.SVGPaths {
		if stop() {
			return nil
		}
		icon.SVGPaths[i].DrawTransformed(pen, 1, icon.Transform)
	}
	return img
}

// recolor turns the main hue of an icon into another colour and leaves its
// other hues alone.
func recolor(img *image.RGBA, to rgb) {
	var weight [36]float32
	each := func(f func(p []uint8, h, s, l float32)) {
		for i := 0; i < len(img.Pix); i += 4 {
			if p := img.Pix[i : i+4 : i+4]; p[3] > 0 {
				a := float32(p[3])
				h, s, l := hsl(rgb{float32(p[0]) / a, float32(p[1]) / a, float32(p[2]) / a})
				f(p, h, s, l)
			}
		}
	}
	each(func(_ []uint8, h, s, l float32) {
		weight[int(h*36)%36] += s * (1 - max(2*l-1, 1-2*l)) * 2
		if s < 0.16 && l > 0.2 {
			weight[0] += 0.02 // an almost colourless thing still takes one
		}
	})
	main := 0
	for i := range weight {
		if weight[i] > weight[main] {
			main = i
		}
	}
	center := (float32(main) + 0.5) / 36
	toH, toS, toL := hsl(to)
	colorless := weight[main] < 0.02*float32(len(img.Pix)/4)
	each(func(p []uint8, h, s, l float32) {
		off := h - center
		off -= float32(math.Round(float64(off)))
		near := smooth(0.14, 0.07, max(off, -off)) * smooth(0.1, 0.25, s)
		if colorless {
			near = smooth(0.15, 0.3, l)
		}
		if near == 0 {
			return
		}
		was := rgb{float32(p[0]) / float32(p[3]), float32(p[1]) / float32(p[3]), float32(p[2]) / float32(p[3])}
		is := fromHSL(toH+off*0.6, toS*clamp(0.6+0.5*s, 0, 1), clamp(toL+(l-0.55)*0.8, 0.04, 0.97))
		v := was.mix(is, near)
		for i := range 3 {
			p[i] = uint8(clamp(v[i], 0, 1)*float32(p[3]) + 0.5)
		}
	})
}

func hsl(v rgb) (h, s, l float32) {
	high, low := max(v[0], v[1], v[2]), min(v[0], v[1], v[2])
	l = (high + low) / 2
	d := high - low
	if d < 1e-5 {
		return 0, 0, l
	}
	s = d / (1 - max(2*l-1, 1-2*l) + 1e-5)
	switch high {
	case v[0]:
		h = (v[1] - v[2]) / d
	case v[1]:
		h = 2 + (v[2]-v[0])/d
	default:
		h = 4 + (v[0]-v[1])/d
	}
	h /= 6
	return h - float32(math.Floor(float64(h))), min(s, 1), l
}

func fromHSL(h, s, l float32) rgb {
	h -= float32(math.Floor(float64(h)))
	c := (1 - max(2*l-1, 1-2*l)) * s
	part := func(n float32) float32 {
		k := n + h*12
		if k >= 12 {
			k -= 12
		}
		return l - c/2*max(-1, min(k-3, 9-k, 1))
	}
	return rgb{part(0), part(8), part(4)}
}
