package illustrator

// lampGold is the light of windows and lamps.
var lampGold = hex(0xffd27a)

func (p *painter) neon() bool { return p.hour == night || p.hour == dusk }

// skyline is a town in three rows, each nearer and clearer.
func (p *painter) skyline() {
	d := p.dice("skyline")
	for i := range 3 {
		t := float32(i) / 2
		far := 0.68 - 0.3*t
		base := p.water
		x := -p.unit * 0.05
		for x < float32(p.w) {
			wide := p.unit * d.in(0.05, 0.11) * (0.75 + 0.35*t)
			high := p.unit * d.in(0.14, 0.4) * (1.05 - 0.42*t)
			// Downtown stands off the middle, where towers grow taller.
			off := (x + wide/2 - float32(p.w)*(0.5+0.3*(p.light.sunX-0.5))) / p.unit
			high *= 0.62 + 0.85*exp(-off*off*5)
			p.tower(d, x, x+wide, base-high, base, far, t)
			x += wide * d.in(0.8, 1.12)
			if p.gone() {
				return
			}
		}
		mist := p.light.haze
		p.rows(int(base-p.unit*0.22), int(base), func(y int) {
			a := (0.34 - 0.12*t + 0.3*p.light.veil) * smooth(base-p.unit*0.22, base, float32(y))
			for x := range p.w {
				p.over(x, y, mist, a*(1-0.6*t))
			}
		})
	}
}

func (p *painter) tower(d *dice, x0, x1, top, base, far, near float32) {
	walls := []rgb{hex(0x5f7189), hex(0x6c6a86), hex(0x8a6f6a), hex(0x4f6675), hex(0x7b8794)}
	v := walls[d.below(len(walls))]
	lit := p.air(v.times(1.1), far)
	shade := p.air(v.times(0.68), far)
	wide := x1 - x0
	split := x0 + wide*0.68
	if p.light.sunX < 0.5 {
		lit, shade = shade, lit
		split = x0 + wide*0.32
	}
	p.fill(flat(lit, 1), false, box(x0, top, split, base))
	p.fill(flat(shade, 1), false, box(split, top, x1, base))
	switch d.below(6) {
	case 0: // a spire
		p.fill(flat(lit, 1), false, []point{{x0 + wide*0.2, top}, {x0 + wide*0.5, top - wide*0.7}, {x0 + wide*0.8, top}})
		p.fill(flat(shade, 1), false, line(point{x0 + wide*0.5, top - wide*1.3}, point{x0 + wide*0.5, top - wide*0.5}, p.unit*0.001, p.unit*0.003))
	case 1: // steps
		p.fill(flat(lit, 1), false, box(x0+wide*0.16, top-wide*0.2, x1-wide*0.16, top))
		p.fill(flat(lit, 1), false, box(x0+wide*0.32, top-wide*0.4, x1-wide*0.32, top))
	case 2: // a slanted roof
		p.fill(flat(lit, 1), false, []point{{x0, top}, {x1, top - wide*0.34}, {x1, top}})
	case 3: // an antenna
		p.fill(flat(shade, 1), false, line(point{x0 + wide*0.4, top - wide*0.8}, point{x0 + wide*0.4, top}, p.unit*0.0016, p.unit*0.0028))
		if p.neon() {
			p.glow(x0+wide*0.4, top-wide*0.8, p.unit*0.016, hex(0xff3b3b), 0.9)
		}
	case 4: // a dome
		p.fill(flat(lit, 1), false, ellipse(x0+wide/2, top, wide*0.36, wide*0.3))
	}
	// Windows.
	pitch := max(p.unit*(0.0105+0.004*near), 5)
	chance := float32(0.14)
	glass := p.air(v.mix(hex(0xcfe6f5), 0.5), far)
	on := lampGold
	switch {
	case p.hour == night:
		chance, glass = 0.5, p.air(v.times(0.45), far)
	case p.neon():
		chance, glass = 0.4, p.air(v.times(0.6), far)
	}
	wall := d.below(3)
	for y := top + pitch*0.8; y < base-pitch; y += pitch * 1.25 {
		floorLit := d.chance(0.12)
		for x := x0 + pitch*0.6; x < x1-pitch*0.8; x += pitch {
			w, c := pitch*0.52, glass
			if d.chance(chance) || floorLit && p.neon() {
				c = on.mix([]rgb{hex(0xffe9b8), hex(0xffb95e), hex(0xbfe3ff)}[d.below(3)], 0.5).mix(p.light.haze, far*0.35)
				if !p.neon() {
					c = c.mix(glass, 0.5)
				}
			}
			if wall == 1 { // bands of glass
				w = pitch * 0.92
			}
			p.fill(flat(c, 0.92), false, box(x, y, x+w, y+pitch*0.6))
		}
		if p.gone() {
			return
		}
	}
}

// quay is the near bank of a town's water.
func (p *painter) quay() {
	top := p.ground - p.unit*0.035
	stone := hex(0x8a8782)
	if p.snow {
		stone = hex(0xdfe6ef)
	}
	edge, face := p.air(stone.times(1.15), 0), p.air(stone.times(0.62), 0)
	n := p.noise("quay")
	p.rows(int(top), p.h, func(y int) {
		for x := range p.w {
			fx, down := (float32(x)-float32(p.w)/2)/p.unit, (float32(y)-top)/p.unit
			v := edge.mix(face, smooth(0, 0.16, down))
			if down > 0.014 {
				depth := down + 0.12
				u, w := fx/depth*1.6, 1/depth*1.5
				seam := func(t float32) float32 { f := t - float32(int(t+1000)-1000); return min(f, 1-f) }
				v = v.times(0.9 + 0.1*smooth(0.01, 0.05, min(seam(u), seam(w))) + 0.05*n.at(float32(int(u+1000)), float32(int(w+1000))))
				if p.rain && p.water < float32(p.h) { // wet stone mirrors the sky
					v = v.mix(p.light.mid, 0.22+0.1*n.layers(fx*5, down*40, 2))
				}
			}
			p.set(x, y, v)
		}
	})
	// A railing with lamps.
	dark := p.air(hex(0x2c3138), 0)
	rail := top - p.unit*0.045
	p.fill(flat(dark, 1), false, box(0, rail, float32(p.w), rail+p.unit*0.004))
	p.fill(flat(dark, 1), false, box(0, rail+p.unit*0.02, float32(p.w), rail+p.unit*0.0225))
	for x := p.unit * 0.02; x < float32(p.w); x += p.unit * 0.05 {
		p.fill(flat(dark, 1), false, box(x, rail, x+p.unit*0.003, top+2))
	}
	for x := p.unit * 0.1; x < float32(p.w); x += p.unit * 0.4 {
		p.streetLamp(x, top+p.unit*0.01, p.unit*0.24)
	}
}

func (p *painter) streetLamp(x, base, high float32) {
	dark := p.air(hex(0x23272e), 0)
	p.fill(flat(dark, 1), false, line(point{x, base}, point{x, base - high}, high*0.04, high*0.022))
	p.fill(flat(dark, 1), false, box(x-high*0.05, base-high*0.03, x+high*0.05, base))
	y := base - high*1.04
	glass := hex(0xd9e2e6).mul(p.light.ambient)
	if p.neon() || p.storm {
		glass = hex(0xfff0c4)
		p.lamps = append(p.lamps, lamp{x, y, p.unit * 0.2, lampGold, 0.42})
	}
	p.fill(flat(glass, 1), false, ellipse(x, y, high*0.062, high*0.07))
	p.fill(flat(dark, 1), false, []point{{x - high*0.075, y - high*0.05}, {x, y - high*0.115}, {x + high*0.075, y - high*0.05}})
}

// houses are a village on its hill.
func (p *painter) houses() {
	p.fields()
	d := p.dice("houses")
	for i := range 2 {
		t := float32(i)
		base := p.horizon + (p.ground-p.horizon)*(0.2+0.4*t)
		for x := p.unit * d.in(-0.02, 0.06); x < float32(p.w); x += p.unit * d.in(0.09, 0.17) * (1 + 0.5*t) {
			y := base + p.unit*d.in(-0.03, 0.02)
			switch {
			case i == 0 && d.chance(0.1):
				p.house(d, x, y, p.unit*0.05, 0.3*(1-t), true)
			case d.chance(0.62):
				p.house(d, x, y, p.unit*(0.055+0.035*t), 0.3*(1-t), false)
			default:
				p.tree(d, x, y+p.unit*0.01, p.unit*(0.09+0.05*t), 0.3*(1-t))
			}
			if p.gone() {
				return
			}
		}
	}
}

func (p *painter) house(d *dice, x, base, size, far float32, steeple bool) {
	wall := p.air([]rgb{hex(0xf2e6d0), hex(0xe8d2b0), hex(0xf5efe6), hex(0xd9b89a)}[d.below(4)], far)
	roofTone := []rgb{hex(0xb5493a), hex(0x9c5a3c), hex(0x6a5560)}[d.below(3)]
	if p.snow {
		roofTone = hex(0xf3f7fc)
	}
	roof, dim := p.air(roofTone, far), p.air(roofTone.times(0.75), far)
	wide, high := size*d.in(1, 1.4), size*0.62
	p.shade(x+wide*0.5, base, wide*0.75, size*0.12, rgb{}, 0.22)
	p.fill(flat(wall, 1), false, box(x, base-high, x+wide, base))
	p.fill(flat(wall.times(0.82), 1), false, box(x+wide*0.72, base-high, x+wide, base))
	p.fill(flat(roof, 1), false, []point{{x - wide*0.07, base - high}, {x + wide*0.22, base - high*1.75}, {x + wide*0.78, base - high*1.75}, {x + wide*1.07, base - high}})
	p.fill(flat(dim, 1), false, []point{{x + wide*0.72, base - high}, {x + wide*0.78, base - high*1.75}, {x + wide*1.07, base - high}})
	if steeple {
		p.fill(flat(wall, 1), false, box(x+wide*0.3, base-high*2.9, x+wide*0.6, base))
		p.fill(flat(roof, 1), false, []point{{x + wide*0.25, base - high*2.9}, {x + wide*0.45, base - high*4.4}, {x + wide*0.65, base - high*2.9}})
	}
	pane := p.air(hex(0x5f7d92), far)
	for i := range 3 {
		c := pane
		if p.neon() || p.light.dark > 0.1 && d.chance(0.5) {
			c = lampGold
			if i == 1 {
				p.lamps = append(p.lamps, lamp{x + wide*0.5, base - high*0.5, size * 1.1, lampGold, 0.16})
			}
		}
		wx := x + wide*(0.1+0.22*float32(i))
		p.fill(flat(c, 1), false, box(wx, base-high*0.72, wx+wide*0.12, base-high*0.32))
	}
	p.fill(flat(p.air(hex(0x5b3d2e), far), 1), false, box(x+wide*0.79, base-high*0.6, x+wide*0.92, base))
}
