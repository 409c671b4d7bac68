package illustrator

import (
	"context"
	"image"
)

// A painter paints one picture, from the broad to the fine: sky, distance,
// foreground, subjects, weather, light.
type painter struct {
	*canvas
	scene
	light  light
	root   uint64  // of all chance in this picture
	unit   float32 // the shorter side in pixels; all sizes go by it
	detail float32 // 0 to 1: how much of the fine work is done
	icons  *icons

	horizon float32 // y of the far edge of the ground or water
	ground  float32 // y where the first subject stands
	water   float32 // y where water begins; at or below the picture's height: none
	standX  float32 // where a building stands, when the land says so
	standY  float32
	lamps   []lamp
}

// A lamp shines when all is painted.
type lamp struct {
	x, y, r  float32
	v        rgb
	strength float32
}

// dice is the chance of one named part.
func (p *painter) dice(part string) *dice {
	h := p.root
	for _, b := range []byte(part) {
		h = scramble(h ^ uint64(b))
	}
	return &dice{h}
}

func (p *painter) noise(part string) noise { return noise(p.dice(part).next() & 0xffffffff) }

// many scales a number of small things to the detail asked for.
func (p *painter) many(n int) int { return int(float32(n)*(0.3+0.7*p.detail) + 0.5) }

func (p *painter) octaves(n int) int { return max(2, int(float32(n)*(0.4+0.6*p.detail)+0.5)) }

// A layer is one part of the work, and about how much of it.
type layer struct {
	weight float32
	draw   func()
}

// compose draws the scene and says after each layer which share of the work is
// done.
func compose(ctx context.Context, ic *icons, prompt string, seed uint64, w, h int, detail float32, done func(share float32)) *image.RGBA {
	p := &painter{canvas: newCanvas(ctx, w, h), icons: ic, root: rootOf(prompt, seed), detail: detail, unit: float32(min(w, h))}
	p.scene = read(prompt, p.dice("scene"))
	p.water = float32(h)
	p.light = p.lit()
	layers := p.layers()
	all := float32(0)
	for _, l := range layers {
		all += l.weight
	}
	sum := float32(0)
	for _, l := range layers {
		l.draw()
		if p.gone() {
			return nil
		}
		sum += l.weight
		done(sum / all)
	}
	return p.develop()
}

func (p *painter) layers() []layer {
	var ls []layer
	add := func(weight float32, draw func()) { ls = append(ls, layer{weight, draw}) }
	switch p.place {
	case nowhere:
		return p.abstract()
	case space:
		add(6, p.cosmos)
		add(2, p.planets)
	case room:
		add(2, p.walls)
		add(3, p.windowView)
		add(2, p.furniture)
	case underwater:
		add(5, p.deep)
		add(2, p.reef)
	default:
		p.setLines()
		add(4, p.sky)
		add(1, p.heavenly)
		if p.storm {
			add(1, p.lightning)
		}
		for _, l := range p.land() {
			add(l.weight, l.draw)
		}
	}
	add(3, p.figures)
	add(1, p.weather)
	add(2, p.bloom)
	return ls
}

// develop turns light into bytes: the tint, the vignette, and a dither of one
// level so that gradients stay smooth.
func (p *painter) develop() *image.RGBA {
	out := image.NewRGBA(image.Rect(0, 0, p.w, p.h))
	grain := noise(p.root & 0xffffffff)
	cx, cy := float32(p.w)/2, float32(p.h)/2
	p.rows(0, p.h, func(y int) {
		row := out.Pix[y*out.Stride:][:4*p.w]
		for x := range p.w {
			v := p.at(x, y)
			dx, dy := (float32(x)-cx)/cx, (float32(y)-cy)/cy
			v = v.times(1 - 0.16*smooth(0.5, 2, dx*dx+dy*dy))
			if p.tint != nil && p.place != nowhere {
				l := v.lum()
				v = v.mix(p.tint.times(0.35+0.9*l).mix(rgb{l, l, l}, 0.1), 0.3)
			}
			if p.gray || p.sepia {
				l := smooth(-0.05, 1.02, v.lum())
				v = rgb{l, l, l}
				if p.sepia {
					v = rgb{min(1, l*1.05+0.05), l*0.92 + 0.03, l * 0.72}
				}
			}
			noise := grain.corner(int32(x), int32(y)) * 1.1 //nolint:gosec // sides are far below 2^31
			for i, c := range v {
				if c > 0.8 { // a shoulder instead of a cut
					c = 1 - 0.2*exp(-(c-0.8)/0.2)
				}
				row[4*x+i] = uint8(clamp(c*255+0.5+noise, 0, 255))
			}
			row[4*x+3] = 255
		}
	})
	return out
}

// bloom lets bright parts shine into their surroundings.
func (p *painter) bloom() {
	for _, l := range p.lamps {
		p.glow(l.x, l.y, l.r, l.v, l.strength)
	}
	const cell = 8
	w, h := (p.w+cell-1)/cell, (p.h+cell-1)/cell
	small := newCanvas(p.ctx, w, h)
	small.rows(0, h, func(y int) {
		for x := range w {
			var sum rgb
			n := float32(0)
			for sy := y * cell; sy < min((y+1)*cell, p.h); sy += 2 {
				for sx := x * cell; sx < min((x+1)*cell, p.w); sx += 2 {
					v := p.at(sx, sy)
					sum = sum.add(v, smooth(0.72, 1.1, v.lum()))
					n++
				}
			}
			small.set(x, y, sum.times(1/n))
		}
	})
	radius := max(1, int(p.unit/cell*0.03))
	for range 2 {
		small.blur(radius)
	}
	p.rows(0, p.h, func(y int) {
		for x := range p.w {
			p.canvas.light(x, y, small.between(float32(x)/cell-0.5, float32(y)/cell-0.5), 0.35)
		}
	})
}

// blur is a box blur in both directions.
func (c *canvas) blur(r int) {
	from := append([]float32(nil), c.pix...)
	pass := func(count, length, step, stride int) {
		for i := range count {
			for k := range 3 {
				base := 3*i*stride + k
				sum := float32(0)
				for j := -r; j <= r; j++ {
					sum += from[base+3*step*min(max(j, 0), length-1)]
				}
				for j := range length {
					c.pix[base+3*step*j] = sum / float32(2*r+1)
					sum += from[base+3*step*min(j+r+1, length-1)] - from[base+3*step*max(j-r, 0)]
				}
			}
		}
	}
	pass(c.h, c.w, 1, c.w)
	copy(from, c.pix)
	pass(c.w, c.h, c.w, 1)
}

// between reads between the pixels.
func (c *canvas) between(x, y float32) rgb {
	x, y = clamp(x, 0, float32(c.w-1)), clamp(y, 0, float32(c.h-1))
	ix, iy := int(x), int(y)
	jx, jy := min(ix+1, c.w-1), min(iy+1, c.h-1)
	fx, fy := x-float32(ix), y-float32(iy)
	return c.at(ix, iy).mix(c.at(jx, iy), fx).mix(c.at(ix, jy).mix(c.at(jx, jy), fx), fy)
}
