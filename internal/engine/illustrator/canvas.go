package illustrator

import (
	"context"
	"image"
	"math"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/image/vector"
)

// rgb is a colour, each part 0 to 1 and more where light is added up.
type rgb [3]float32

func hex(v uint32) rgb {
	return rgb{float32(v>>16&255) / 255, float32(v>>8&255) / 255, float32(v&255) / 255}
}

func (a rgb) mix(b rgb, t float32) rgb {
	return rgb{a[0] + (b[0]-a[0])*t, a[1] + (b[1]-a[1])*t, a[2] + (b[2]-a[2])*t}
}
func (a rgb) mul(b rgb) rgb            { return rgb{a[0] * b[0], a[1] * b[1], a[2] * b[2]} }
func (a rgb) add(b rgb, t float32) rgb { return rgb{a[0] + b[0]*t, a[1] + b[1]*t, a[2] + b[2]*t} }
func (a rgb) times(t float32) rgb      { return rgb{a[0] * t, a[1] * t, a[2] * t} }
func (a rgb) lum() float32             { return 0.3*a[0] + 0.59*a[1] + 0.11*a[2] }

func clamp(v, low, high float32) float32 { return max(low, min(high, v)) }

// smooth goes from 0 at a to 1 at b without corners.
func smooth(a, b, v float32) float32 {
	t := clamp((v-a)/(b-a), 0, 1)
	return t * t * (3 - 2*t)
}

func sqrt(v float32) float32 { return float32(math.Sqrt(float64(v))) }
func sin(v float32) float32  { return float32(math.Sin(float64(v))) }
func exp(v float32) float32  { return float32(math.Exp(float64(v))) }
func pow(v, e float32) float32 {
	return float32(math.Pow(float64(v), float64(e)))
}

type point struct{ x, y float32 }

// A canvas holds floats so that light can be added up and gradients do not
// show steps: 12 bytes a pixel, 50 MB at 2048².
type canvas struct {
	ctx  context.Context
	w, h int
	pix  []float32
	ras  vector.Rasterizer
	mask []uint8
}

func newCanvas(ctx context.Context, w, h int) *canvas {
	return &canvas{ctx: ctx, w: w, h: h, pix: make([]float32, 3*w*h)}
}

// gone says that nobody waits for the picture any more. Every loop that may
// take longer than a few milliseconds asks it.
func (c *canvas) gone() bool { return c.ctx.Err() != nil }

func (c *canvas) at(x, y int) rgb {
	i := 3 * (y*c.w + x)
	return rgb{c.pix[i], c.pix[i+1], c.pix[i+2]}
}

func (c *canvas) set(x, y int, v rgb) {
	i := 3 * (y*c.w + x)
	c.pix[i], c.pix[i+1], c.pix[i+2] = v[0], v[1], v[2]
}

func (c *canvas) over(x, y int, v rgb, a float32) {
	i := 3 * (y*c.w + x)
	p := c.pix[i : i+3 : i+3]
	p[0] += (v[0] - p[0]) * a
	p[1] += (v[1] - p[1]) * a
	p[2] += (v[2] - p[2]) * a
}

func (c *canvas) light(x, y int, v rgb, a float32) {
	i := 3 * (y*c.w + x)
	p := c.pix[i : i+3 : i+3]
	p[0] += v[0] * a
	p[1] += v[1] * a
	p[2] += v[2] * a
}

// rows calls draw for the rows from y0 up to y1, on all processors. Rows may
// not depend on each other: their order is anyone's guess.
func (c *canvas) rows(y0, y1 int, draw func(y int)) {
	y0, y1 = max(y0, 0), min(y1, c.h)
	var next atomic.Int64
	next.Store(int64(y0))
	var group sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 8) {
		group.Go(func() {
			for !c.gone() {
				y := int(next.Add(1)) - 1
				if y >= y1 {
					return
				}
				draw(y)
			}
		})
	}
	group.Wait()
}

// A paint is a colour and how much of it at a pixel.
type paint func(x, y int) (rgb, float32)

func flat(v rgb, a float32) paint { return func(int, int) (rgb, float32) { return v, a } }

// fade goes from v at y0 to w at y1.
func fade(v, w rgb, y0, y1 float32) paint {
	return func(_, y int) (rgb, float32) { return v.mix(w, clamp((float32(y)-y0)/(y1-y0), 0, 1)), 1 }
}

// fill paints the inside of polygons; adding makes it light instead of paint.
func (c *canvas) fill(p paint, adding bool, polygons ...[]point) {
	if c.gone() {
		return
	}
	x0, y0, x1, y1 := float32(c.w), float32(c.h), float32(0), float32(0)
	for _, poly := range polygons {
		for _, q := range poly {
			x0, x1 = min(x0, q.x), max(x1, q.x)
			y0, y1 = min(y0, q.y), max(y1, q.y)
		}
	}
	box := image.Rect(int(x0)-1, int(y0)-1, int(x1)+2, int(y1)+2).Intersect(image.Rect(0, 0, c.w, c.h))
	if box.Empty() {
		return
	}
	c.ras.Reset(box.Dx(), box.Dy())
	ox, oy := float32(box.Min.X), float32(box.Min.Y)
	// Far outside, a corner moves to where its edge stays about right; the
	// rasterizer's time goes with an edge's height.
	limit := func(q point) (float32, float32) {
		return clamp(q.x-ox, -float32(2*c.w), float32(3*c.w)), clamp(q.y-oy, -float32(2*c.h), float32(3*c.h))
	}
	for _, poly := range polygons {
		for i, q := range poly {
			x, y := limit(q)
			if i == 0 {
				c.ras.MoveTo(x, y)
			} else {
				c.ras.LineTo(x, y)
			}
		}
		c.ras.ClosePath()
	}
	if need := box.Dx() * box.Dy(); cap(c.mask) < need {
		c.mask = make([]uint8, need)
	} else {
		c.mask = c.mask[:need]
		clear(c.mask)
	}
	mask := &image.Alpha{Pix: c.mask, Stride: box.Dx(), Rect: image.Rect(0, 0, box.Dx(), box.Dy())}
	c.ras.Draw(mask, mask.Rect, image.Opaque, image.Point{})
	line := func(y int) {
		row := mask.Pix[(y-box.Min.Y)*mask.Stride:][:box.Dx()]
		for i, m := range row {
			if m == 0 {
				continue
			}
			x := box.Min.X + i
			v, a := p(x, y)
			if a *= float32(m) / 255; adding {
				c.light(x, y, v, a)
			} else {
				c.over(x, y, v, a)
			}
		}
	}
	if len(c.mask) > 1<<16 {
		c.rows(box.Min.Y, box.Max.Y, line)
		return
	}
	for y := box.Min.Y; y < box.Max.Y; y++ {
		line(y)
	}
}

// below paints everything under a line of heights, one a column.
func (c *canvas) below(top []float32, p func(x, y int, deep float32) (rgb, float32)) {
	highest := float32(c.h)
	steep := make([]float32, c.w)
	for x, y := range top {
		highest = min(highest, y)
		slope := (top[min(x+1, c.w-1)] - top[max(x-1, 0)]) / 2
		steep[x] = 1 / sqrt(1+slope*slope)
	}
	c.rows(int(highest)-2, c.h, func(y int) {
		for x := range c.w {
			deep := float32(y) + 0.5 - top[x]
			if cover := clamp(deep*steep[x]+0.5, 0, 1); cover > 0 {
				v, a := p(x, y, max(deep, 0))
				c.over(x, y, v, a*cover)
			}
		}
	})
}

// glow adds light that fades with the distance from a point.
func (c *canvas) glow(x, y, r float32, v rgb, strength float32) {
	c.rows(int(y-r), int(y+r)+1, func(py int) {
		for px := max(int(x-r), 0); px < min(int(x+r)+1, c.w); px++ {
			dx, dy := float32(px)-x, float32(py)-y
			if d := 1 - (dx*dx+dy*dy)/(r*r); d > 0 {
				c.light(px, py, v, strength*d*d*d)
			}
		}
	})
}

// shade darkens softly around a point.
func (c *canvas) shade(x, y, rx, ry float32, v rgb, strength float32) {
	c.rows(int(y-ry), int(y+ry)+1, func(py int) {
		for px := max(int(x-rx), 0); px < min(int(x+rx)+1, c.w); px++ {
			dx, dy := (float32(px)-x)/rx, (float32(py)-y)/ry
			if d := 1 - dx*dx - dy*dy; d > 0 {
				c.over(px, py, v, strength*d)
			}
		}
	})
}

func ellipse(x, y, rx, ry float32) []point {
	n := int(clamp(6+5*sqrt(max(rx, ry)), 10, 240))
	poly := make([]point, n)
	for i := range poly {
		s, co := math.Sincos(2 * math.Pi * float64(i) / float64(n))
		poly[i] = point{x + rx*float32(co), y + ry*float32(s)}
	}
	return poly
}

func box(x0, y0, x1, y1 float32) []point {
	return []point{{x0, y0}, {x1, y0}, {x1, y1}, {x0, y1}}
}

// line is a stroke whose width goes from w0 to w1.
func line(a, b point, w0, w1 float32) []point {
	dx, dy := b.x-a.x, b.y-a.y
	n := sqrt(dx*dx+dy*dy) + 1e-6
	dx, dy = dx/n/2, dy/n/2
	return []point{
		{a.x - dy*w0, a.y + dx*w0}, {b.x - dy*w1, b.y + dx*w1}, {b.x + dy*w1, b.y - dx*w1}, {a.x + dy*w0, a.y - dx*w0},
	}
}

// curve is the cubic from a to d as n points, without a itself.
func curve(a, b, c, d point, n int) []point {
	out := make([]point, n)
	for i := range out {
		t := float32(i+1) / float32(n)
		u := 1 - t
		e, f, g, h := u*u*u, 3*u*u*t, 3*u*t*t, t*t*t
		out[i] = point{e*a.x + f*b.x + g*c.x + h*d.x, e*a.y + f*b.y + g*c.y + h*d.y}
	}
	return out
}

// A dice is the chance in one part of a picture. Each part has its own, so that
// a change to one leaves the others as they were.
type dice struct{ state uint64 }

func (d *dice) next() uint64 {
	d.state += 0x9e3779b97f4a7c15
	return scramble(d.state)
}

func scramble(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// float is from 0 up to 1.
func (d *dice) float() float32 { return float32(d.next()>>40) / (1 << 24) }

// in is from low up to high.
func (d *dice) in(low, high float32) float32 { return low + (high-low)*d.float() }

func (d *dice) below(n int) int { return int(d.next() % uint64(n)) } //nolint:gosec // n is a small positive constant

func (d *dice) chance(p float32) bool { return d.float() < p }

// A noise is a smooth random landscape from -1 to 1, without end.
type noise uint32

func (n noise) corner(x, y int32) float32 {
	h := uint32(x)*0x85ebca6b ^ uint32(y)*0xc2b2ae35 ^ uint32(n) //nolint:gosec // wrapping is what a hash wants
	h = (h ^ h>>15) * 0x2c1b3c6d
	h = (h ^ h>>12) * 0x297a2d39
	return float32(h>>8)/(1<<23) - 1
}

func (n noise) at(x, y float32) float32 {
	fx, fy := float32(math.Floor(float64(x))), float32(math.Floor(float64(y)))
	ix, iy := int32(fx), int32(fy)
	x, y = x-fx, y-fy
	x, y = x*x*x*(x*(x*6-15)+10), y*y*y*(y*(y*6-15)+10)
	a, b := n.corner(ix, iy), n.corner(ix+1, iy)
	c, d := n.corner(ix, iy+1), n.corner(ix+1, iy+1)
	a += (b - a) * x
	c += (d - c) * x
	return a + (c-a)*y
}

// layers adds up noise of ever smaller size; also about -1 to 1.
func (n noise) layers(x, y float32, octaves int) float32 {
	sum, weight, all := float32(0), float32(1), float32(0)
	for range octaves {
		sum += n.at(x, y) * weight
		all += weight
		x, y = 1.6*x+1.2*y+17.3, -1.2*x+1.6*y+9.1 // twice as fine, and turned
		weight /= 2
		n++
	}
	return sum / all
}
