package illustrator

import "math"

// abstract is for prompts without a word that is known: a small random network
// of waves over the plane (a CPPN), painted in bands of one palette.
func (p *painter) abstract() []layer {
	p.horizon, p.ground = float32(p.h), float32(p.h)
	d := p.dice("abstract")
	palettes := [][]uint32{
		{0x0b132b, 0x1c3f72, 0x3aa6b9, 0xf4e9cd, 0xff9e6d, 0xe84a5f},
		{0x1a1423, 0x5b2a86, 0xc95d9b, 0xffb997, 0xffe8c2, 0x2bb3b1},
		{0x10302b, 0x1f7a63, 0x9bd1a5, 0xfaf3dd, 0xf2b950, 0xd9573b},
		{0x14213d, 0x2f5fa8, 0x8fc1e8, 0xfdf6e9, 0xfca311, 0xb5446e},
	}
	palette := palettes[d.below(len(palettes))]
	tones := make([]rgb, len(palette))
	for i, v := range palette {
		tones[i] = hex(v)
		if p.tint != nil {
			tones[i] = tones[i].mix(p.tint.times(0.4+tones[i].lum()), 0.5)
		}
	}
	const width = 9
	var weights [3][width][width]float32
	for k := range weights {
		for i := range weights[k] {
			for j := range weights[k][i] {
				// Sums of three make chance bell-shaped.
				weights[k][i][j] = (d.float() + d.float() + d.float() - 1.5) * 1.25
			}
		}
	}
	n := p.noise("abstract")
	height := make([]float32, p.w*p.h)
	net := func(fx, fy float32) float32 {
		r := sqrt(fx*fx + fy*fy)
		warp := n.layers(fx*1.3, fy*1.3, p.octaves(3))
		in := [width]float32{fx * 1.6, fy * 1.6, r * 1.8, sin(fx * 4), sin(fy * 4), sin(r * 6), warp * 1.4, 1, n.at(fx*2+9, fy*2)}
		for k := range weights {
			var out [width]float32
			for i := range out {
				sum := float32(0)
				for j, v := range in {
					sum += weights[k][i][j] * v
				}
				if i%3 == 2 {
					out[i] = sin(sum * 1.3)
				} else {
					out[i] = float32(math.Tanh(float64(sum)))
				}
			}
			in = out
		}
		return in[0] + 0.5*in[2] + 0.3*warp
	}
	// The network is smooth: a coarse grid of it is enough.
	const cell = 4
	w, h := p.w/cell+2, p.h/cell+2
	grid := make([]float32, w*h)
	field := &canvas{ctx: p.ctx, w: w, h: h}
	return []layer{
		{4, func() {
			field.rows(0, h, func(y int) {
				for x := range w {
					grid[y*w+x] = net((float32(x*cell)-float32(p.w)/2)/p.unit*1.4, (float32(y*cell)-float32(p.h)/2)/p.unit*1.4)
				}
			})
		}},
		{2, func() {
			p.rows(0, p.h, func(y int) {
				for x := range p.w {
					i := y/cell*w + x/cell
					fx, fy := float32(x%cell)/cell, float32(y%cell)/cell
					a, b := grid[i]+(grid[i+1]-grid[i])*fx, grid[i+w]+(grid[i+w+1]-grid[i+w])*fx
					height[y*p.w+x] = a + (b-a)*fy
				}
			})
		}},
		{3, func() {
			bands := float32(7 + d.below(5))
			p.rows(0, p.h, func(y int) {
				for x := range p.w {
					v := height[y*p.w+x]
					right, down := height[y*p.w+min(x+2, p.w-1)]-v, height[min(y+2, p.h-1)*p.w+x]-v
					t := (v + 1.8) / 3.6 * bands
					i := int(t + 100)
					f := t + 100 - float32(i)
					steep := sqrt(right*right+down*down)*bands/3.6/2 + 1e-4
					from, to := tones[(i-1)%len(tones)], tones[i%len(tones)]
					c := from.times(1-0.34*smooth(0, 1, steep*40)).mix(to, smooth(0, 1, clamp(f/steep/1.6, 0, 1)))
					// Each sheet lies on the one before: lit above, in shadow at its edge.
					c = c.times(1 + clamp((right+down)*p.unit*0.02, -0.16, 0.16))
					c = c.times(1 - 0.34*smooth(0.24, 0, 1-f)*smooth(0, 1, steep*40))
					p.set(x, y, c)
				}
			})
		}},
		{1, func() { p.light.low = tones[3] }},
		{2, p.bloom},
	}
}
