package illustrator

// air is a thing's colour in this light, seen through this much of the
// distance: 0 near to 1 at the horizon.
func (p *painter) air(v rgb, far float32) rgb {
	return v.mul(p.light.ambient).mix(p.light.haze, clamp(far*0.82+p.light.veil*sqrt(max(far, 0))*0.6, 0, 0.97))
}

// setLines sets the lines that everything else goes by.
func (p *painter) setLines() {
	h := float32(p.h)
	d := p.dice("compose")
	p.horizon, p.ground = h*0.6, h*0.87
	switch p.place {
	case forest:
		p.horizon = h * 0.66
	case sea:
		p.horizon, p.ground = h*d.in(0.54, 0.6), h*0.8
		p.water = p.horizon
	case coast:
		p.horizon = h * 0.58
		p.water = p.horizon
	case city:
		p.horizon, p.water, p.ground = h*0.7, h*0.74, h*0.93
	case mountains:
		p.horizon, p.water = h*0.62, h*0.68
	case river:
		p.horizon, p.water = h*0.58, h*0.62
	case heavens:
		p.horizon = h * 0.86
	case desert:
		p.horizon = h * 0.57
	}
}

func (p *painter) land() []layer {
	switch p.place {
	case forest:
		return []layer{{1, p.farHills}, {3, p.forestRows}, {1, p.meadow}}
	case sea:
		return []layer{{3, p.openWater}, {1, p.waves}}
	case coast:
		return []layer{{1, p.farHills}, {3, p.openWater}, {2, p.headland}, {1, p.waves}, {1, p.beach}}
	case city:
		return []layer{{4, p.skyline}, {2, p.openWater}, {1, p.quay}}
	case mountains:
		return []layer{{3, p.peaks}, {1, p.treeline}, {2, p.openWater}, {1, p.meadow}}
	case desert:
		return []layer{{1, p.mesas}, {2, p.dunes}}
	case village:
		return []layer{{1, p.farHills}, {2, p.houses}, {1, p.meadow}}
	case river:
		return []layer{{1, p.farHills}, {1, p.treeline}, {2, p.openWater}, {1, p.meadow}}
	case heavens:
		return []layer{{3, p.cloudSea}}
	default:
		return []layer{{1, p.farHills}, {2, p.fields}, {1, p.meadow}}
	}
}

func (p *painter) leaf(d *dice) rgb {
	switch {
	case p.snow:
		return hex(0x3f5f62)
	case p.autumn:
		return []rgb{hex(0xd9772b), hex(0xc0452a), hex(0xe2a63a), hex(0x9a5a2c)}[d.below(4)]
	case p.spring && d.chance(0.4):
		return hex(0xf2a7c3)
	}
	return []rgb{hex(0x3f8a4d), hex(0x4f9a4a), hex(0x2f7a55)}[d.below(3)]
}

func (p *painter) grass() rgb {
	switch {
	case p.snow:
		return hex(0xeef3fa)
	case p.autumn:
		return hex(0xb59a4a)
	}
	return hex(0x5da04e)
}

// contour is a line of heights: base, and noise of a height and a width.
func (p *painter) contour(part string, base, height, width float32, octaves int, ridged bool) []float32 {
	n := p.noise(part)
	top := make([]float32, p.w)
	for x := range top {
		at := float32(x) / (p.unit * width)
		v := n.layers(at+31, 0.5, p.octaves(octaves))
		if ridged {
			v = 1 - 2.4*max(v, -v)
		}
		top[x] = base - height*v
	}
	return top
}

func (p *painter) farHills() {
	d := p.dice("hills")
	h := p.unit
	for i := range 3 {
		t := float32(i) / 2
		top := p.contour("hills"+string(rune('a'+i)), p.horizon-h*(0.07-0.04*t), h*(0.07+d.in(-0.02, 0.02)), 0.55-0.1*t, 5, false)
		v := hex(0x5a7d9a).mix(p.grass().mix(hex(0x3f6f5a), 0.5), t)
		near, far := p.air(v, 0.66-0.26*t), p.air(v, 0.92-0.2*t)
		deepest := h * 0.16
		p.below(top, func(_, y int, deep float32) (rgb, float32) {
			if p.water < float32(p.h) && float32(y) > p.water {
				return near, 0
			}
			return near.mix(far, clamp(deep/deepest, 0, 1)), 1
		})
	}
}

// peaks are mountains with a lit and a shaded side, and snow.
func (p *painter) peaks() {
	h := p.unit
	lit := float32(1)
	if p.light.sunX < 0.5 {
		lit = -1
	}
	for i := range 3 {
		t := float32(i) / 2
		part := "peaks" + string(rune('a'+i))
		n := p.noise(part)
		top := p.contour(part, p.horizon-h*(0.2-0.12*t), h*(0.17-0.05*t), 0.5-0.08*t, 6, true)
		rock := hex(0x6f7f98).mix(hex(0x4c5f6e), t)
		snowline := p.horizon - h*(0.2-0.09*t)
		if p.snow {
			snowline = p.horizon
		}
		far := 0.54 - 0.22*t
		peak := summits(top, int(h*0.035))
		bright, dim := p.air(rock.times(1.22), far), p.air(rock.times(0.62), far)
		white, blue := p.air(hex(0xffffff), far*0.72), p.air(hex(0x9fb3d6), far*0.8)
		foot := p.air(rock, min(1, far+0.3))
		p.below(top, func(x, y int, deep float32) (rgb, float32) {
			fx, fy := float32(x)/h, float32(y)/h
			// Each peak has a lit and a shaded face; they meet in a ridge that
			// wanders on its way down.
			wobble := n.layers(fx*5, fy*7, 4)
			down := deep / h
			ridge := peak[x] + h*(0.05*n.at(down*9+peak[x], t)+0.16*down*n.at(peak[x], 5)+0.014*wobble)
			side := smooth(-0.006, 0.006, (float32(x)-ridge)/h*lit)
			side = 0.12 + 0.76*side + 0.2*wobble
			v := dim.mix(bright, side)
			snow := smooth(0.02, -0.02, (float32(y)-snowline)/h+wobble*0.07-0.02)
			v = v.mix(blue.mix(white, side), snow)
			return v.mix(foot, 0.7*smooth(0, 0.3, deep/h)), 1
		})
		if p.gone() {
			return
		}
	}
}

// summits says for each column where the peak is whose slope it belongs to.
func summits(top []float32, reach int) []float32 {
	var peaks []int
	for x := range top {
		highest := true
		for k := max(0, x-reach); k <= min(len(top)-1, x+reach); k++ {
			highest = highest && (top[k] > top[x] || top[k] == top[x] && k >= x)
		}
		if highest {
			peaks = append(peaks, x)
		}
	}
	of := make([]float32, len(top))
	x := 0
	for i, peak := range peaks {
		valley := len(top) - 1
		if i+1 < len(peaks) {
			valley = peak
			for k := peak; k < peaks[i+1]; k++ {
				if top[k] > top[valley] {
					valley = k
				}
			}
		}
		for ; x <= valley; x++ {
			of[x] = float32(peak)
		}
	}
	return of
}

func (p *painter) mesas() {
	d := p.dice("mesas")
	top := make([]float32, p.w)
	for x := range top {
		top[x] = p.horizon + 2
	}
	for range 4 + d.below(3) {
		cx, wide, high := d.in(0, float32(p.w)), p.unit*d.in(0.06, 0.16), p.unit*d.in(0.05, 0.15)
		for x := range top {
			off := (float32(x) - cx) / wide
			off = max(off, -off)
			y := p.horizon - high*smooth(1.35, 0.92, off)*(0.8+0.2*smooth(0.6, 0.5, off))
			top[x] = min(top[x], y)
		}
	}
	n := p.noise("mesas")
	a, b := p.air(hex(0xb5623c), 0.45), p.air(hex(0xd58a58), 0.5)
	p.below(top, func(x, y int, _ float32) (rgb, float32) {
		fx, fy := float32(x)/p.unit, float32(y)/p.unit
		return a.mix(b, smooth(-0.4, 0.4, n.at(fx*4, fy*55))), 1
	})
}

// dunes have a sharp crest: light on one side, shade on the other.
func (p *painter) dunes() {
	sand := hex(0xe8b777)
	if p.snow {
		sand = hex(0xeef3fa)
	}
	side := float32(1)
	if p.light.sunX > 0.5 {
		side = -1
	}
	for i := range 5 {
		t := float32(i) / 4
		part := "dunes" + string(rune('a'+i))
		n := p.noise(part)
		base := p.horizon + (float32(p.h)-p.horizon)*(0.02+0.66*t*t)
		top := p.contour(part, base, p.unit*(0.03+0.06*t), 0.36+0.34*t, 2, true)
		far := 0.5 * (1 - t)
		bright, dim := p.air(sand.times(1.06), far), p.air(sand.mul(rgb{0.72, 0.6, 0.62}), far)
		p.below(top, func(x, y int, deep float32) (rgb, float32) {
			fx, fy := float32(x)/p.unit, float32(y)/p.unit
			// The crest's line wanders down the face and parts light from shade.
			at := x + int(side*deep*0.9+n.at(fx*3, fy*6)*p.unit*0.05)
			at = min(max(at, 2), p.w-3)
			slope := (top[at+2] - top[at-2]) / 4 * side
			v := dim.mix(bright, smooth(-0.12, 0.12, slope+0.02*n.at(fx*8, fy*50)))
			ripple := sin(fy*420*(1.1-0.6*t) + n.at(fx*7, fy*12)*5)
			return v.times(1+0.022*ripple*t).mix(bright, smooth(0, 0.5, deep/p.unit)*0.5), 1
		})
		if p.gone() {
			return
		}
	}
}

// fields are rolling hills in stripes of crops.
func (p *painter) fields() {
	d := p.dice("fields")
	for i := range 4 {
		t := float32(i) / 3
		part := "fields" + string(rune('a'+i))
		n := p.noise(part)
		base := p.horizon + (float32(p.h)-p.horizon)*(0.04+0.46*t)
		top := p.contour(part, base, p.unit*(0.03+0.015*t), 0.7, 2, false)
		v := p.grass().mix([]rgb{hex(0xd9c25a), hex(0x7fb457), hex(0x4d8f56), hex(0x9cc063)}[d.below(4)], 0.5)
		if p.snow {
			v = p.grass().mix(hex(0xc6d4e8), 0.25)
		}
		far := 0.5 * (1 - t)
		bright, dim := p.air(v.times(1.06), far), p.air(v.times(0.86), far)
		lean := d.in(-2.5, 2.5)
		stripes := d.in(24, 44)
		p.below(top, func(x, y int, deep float32) (rgb, float32) {
			fx := (float32(x) - float32(p.w)/2) / p.unit
			depth := deep/p.unit + 0.09
			row := sin((fx+lean*depth)/depth*stripes*0.16 + n.at(fx*2, depth*5))
			v := dim.mix(bright, 0.5+0.5*smooth(-0.6, 0.6, row)*smooth(0.1, 0.16, depth))
			return v.mix(bright, 0.4*smooth(0.02, 0, deep/p.unit)), 1
		})
		if p.gone() {
			return
		}
		for range p.many(5) {
			x := d.below(p.w)
			if i < 3 {
				p.tree(d, float32(x), top[x]+p.unit*0.004, p.unit*(0.035+0.05*t)*d.in(0.7, 1.3), far)
			}
		}
	}
}

// forestRows are rows of trees, each nearer, darker and clearer.
func (p *painter) forestRows() {
	d := p.dice("forest")
	floor := p.grass().mix(hex(0x2f5a3a), 0.5)
	if p.snow {
		floor = hex(0xdfe8f2)
	}
	for i := range 5 {
		t := float32(i) / 4
		base := p.horizon + (p.ground-p.horizon)*(0.02+0.62*t*t)
		far := 0.72 * (1 - t) * (1 - 0.2*t)
		size := p.unit * (0.18 + 0.36*t)
		step := size * 0.26
		// The middle stays open so that the eye can walk in.
		for x := -size * 0.2; x < float32(p.w)+size*0.2; x += step * d.in(0.6, 1.4) {
			middle := (x - float32(p.w)/2) / p.unit
			if gap := 0.1 + 0.34*t; i > 0 && middle > -gap && middle < gap && !d.chance(0.1*(1-t)) {
				continue
			}
			high := size * d.in(0.75, 1.3)
			if p.autumn || p.spring || d.chance(0.18) {
				p.tree(d, x, base+p.unit*0.01*d.float(), high*0.86, far)
			} else {
				p.pine(d, x, base+p.unit*0.01*d.float(), high, far)
			}
			if p.gone() {
				return
			}
		}
		top := p.contour("floor"+string(rune('a'+i)), base, p.unit*0.008, 0.2, 3, false)
		near, edge := p.air(floor, far*0.8), p.air(floor.times(1.15), min(1, far+0.12))
		p.below(top, func(_, _ int, deep float32) (rgb, float32) {
			return edge.mix(near, smooth(0, 0.12, deep/p.unit)), 1
		})
		// Mist between the rows.
		mist := p.light.haze
		strength := (0.2 + 0.5*p.light.veil) * (1 - t)
		p.rows(int(base-size*0.5), int(base+p.unit*0.03), func(y int) {
			a := strength * smooth(base-size*0.5, base, float32(y)) * smooth(base+p.unit*0.03, base, float32(y))
			for x := range p.w {
				p.over(x, y, mist, a)
			}
		})
	}
}

func (p *painter) treeline() {
	d := p.dice("treeline")
	base := p.water
	for i := range 2 {
		t := float32(i)
		for x := -p.unit * 0.02; x < float32(p.w); x += p.unit * 0.018 * d.in(0.6, 1.5) {
			high := p.unit * (0.05 + 0.035*t) * d.in(0.6, 1.3)
			if t == 1 && d.chance(0.35) {
				continue
			}
			if p.place == river && d.chance(0.6) || p.autumn {
				p.tree(d, x, base+p.unit*0.004, high*0.9, 0.42-0.2*t)
			} else {
				p.pine(d, x, base+p.unit*0.004, high, 0.42-0.2*t)
			}
		}
	}
	shore := p.air(p.grass().times(0.6), 0.3)
	p.fill(flat(shore, 1), false, box(0, base-p.unit*0.003, float32(p.w), base+p.unit*0.008))
}

// pine is a conifer.
func (p *painter) pine(d *dice, x, base, high, far float32) {
	v := hex(0x24584a).mix(hex(0x3a7350), d.float()*0.6)
	lit := float32(1)
	if p.light.sunX < 0.5 {
		lit = -1
	}
	p.fill(flat(p.air(hex(0x4a3728), far), 1), false, box(x-high*0.022, base-high*0.12, x+high*0.022, base))
	tiers := 5 + d.below(3)
	left, right := []point{{x, base - high}}, []point{}
	for i := range tiers {
		t := float32(i+1) / float32(tiers)
		y := base - high + high*0.93*t
		half := high * (0.05 + 0.2*t) * d.in(0.88, 1.1)
		left = append(left, point{x - half, y + high*0.012*d.float()}, point{x - half*0.5, y - high*0.028})
		right = append(right, point{x + half, y + high*0.012*d.float()}, point{x + half*0.5, y - high*0.028})
	}
	poly := left[:len(left)-1]
	for i := len(right) - 2; i >= 0; i-- {
		// The tiers come out in pairs of tip and notch.
		poly = append(poly, right[i])
	}
	dark, bright := p.air(v.times(0.78), far), p.air(v.times(1.25), far)
	snow := p.air(hex(0xf3f7fc), far*0.9)
	n := noise(d.next() & 0xffffffff)
	p.fill(func(px, py int) (rgb, float32) {
		dx, dy := (float32(px)-x)/high, (base-float32(py))/high
		c := dark.mix(bright, smooth(-0.16, 0.2, dx*lit+0.08*n.at(dx*34, dy*26)))
		if p.snow {
			c = c.mix(snow, 0.9*smooth(0.05, 0.35, n.at(dx*14, dy*22)+0.25*dx*lit))
		}
		return c, 1
	}, false, poly)
}

// tree has a trunk and a round crown in three tones.
func (p *painter) tree(d *dice, x, base, high, far float32) {
	v := p.leaf(d)
	lit := float32(1)
	if p.light.sunX < 0.5 {
		lit = -1
	}
	bark := p.air(hex(0x5b4332), far)
	p.fill(flat(bark, 1), false, line(point{x, base}, point{x, base - high*0.6}, high*0.075, high*0.03))
	type puff struct{ x, y, r float32 }
	puffs := []puff{{x, base - high*0.68, high * 0.27}}
	for range 7 {
		puffs = append(puffs, puff{x + high*d.in(-0.24, 0.24), base - high*d.in(0.46, 0.86), high * d.in(0.12, 0.19)})
	}
	for i, tone := range []float32{0.74, 1, 1.22} {
		c := p.air(v.times(tone), far)
		if p.snow && i == 2 {
			c = p.air(hex(0xf3f7fc), far)
		}
		off := high * 0.035 * float32(i)
		shrink := 1 - 0.24*float32(i)
		for _, q := range puffs {
			r := q.r * shrink
			p.fill(flat(c, 1), false, ellipse(q.x+lit*off, q.y-off*1.3, r, r*0.94))
		}
	}
}

// meadow is the foreground: ground, blades and flowers.
func (p *painter) meadow() {
	d := p.dice("meadow")
	base := p.ground - p.unit*0.05
	v := p.grass()
	if p.place == forest {
		v = v.mix(hex(0x2f5a3a), 0.35)
		if p.snow {
			v = p.grass()
		}
	}
	top := p.contour("meadow", base, p.unit*0.03, 0.8, 3, false)
	near, edge := p.air(v.times(0.78), 0), p.air(v.times(1.04), 0.06)
	n := p.noise("meadow")
	p.below(top, func(x, y int, deep float32) (rgb, float32) {
		c := edge.mix(near, smooth(0, 0.2, deep/p.unit))
		return c.times(1 + 0.05*n.layers(float32(x)/p.unit*9, float32(y)/p.unit*30, 3)), 1
	})
	if p.snow {
		return
	}
	petals := []rgb{hex(0xffffff), hex(0xf7d038), hex(0xf27aa8), hex(0xe0503f), hex(0xa98be8)}
	bloom := p.place == field || p.place == village || p.spring
	total := p.many(int(1500 * float32(p.w) / p.unit))
	for i := range total {
		// From the back to the front.
		t := float32(i) / float32(total)
		x := d.in(0, float32(p.w))
		from := top[min(int(x), p.w-1)]
		y := from + (float32(p.h)*1.02-from)*t*t
		high := p.unit * (0.012 + 0.034*t) * d.in(0.5, 1.2)
		c := p.air(v.times(d.in(0.62, 1.12)), 0.05*(1-t))
		lean := high * d.in(-0.5, 0.5)
		p.fill(flat(c, 1), false, []point{{x - high*0.07, y}, {x + high*0.07, y}, {x + lean, y - high}})
		if bloom && d.chance(0.07+0.1*t) {
			petal := p.air(petals[d.below(len(petals))], 0)
			r := p.unit * (0.0022 + 0.0045*t) * d.in(0.7, 1.2)
			fx, fy := x+lean, y-high
			for k := range 5 {
				px := sin(float32(k)*1.2566 + x)
				py := sin(float32(k)*1.2566 + x + 1.5708)
				p.fill(flat(petal, 1), false, ellipse(fx+px*r, fy+py*r*0.8, r*0.72, r*0.66))
			}
			p.fill(flat(p.air(hex(0xf2b632), 0), 1), false, ellipse(fx, fy, r*0.5, r*0.45))
		}
		if i%64 == 0 && p.gone() {
			return
		}
	}
}

// cloudSea is what lies below when one is above the clouds.
func (p *painter) cloudSea() {
	l := &p.light
	for i := range 6 {
		t := float32(i) / 5
		part := "sea of clouds" + string(rune('a'+i))
		base := p.horizon - p.unit*0.16 + p.unit*0.34*t
		n := p.noise(part)
		top := make([]float32, p.w)
		for x := range top {
			fx := float32(x) / p.unit * (3.2 - 1.4*t)
			v := float32(0)
			for o := range 3 {
				k := n.at(fx*float32(int(1)<<o)+float32(o)*9, 0.5)
				v += (max(k, -k)*2.4 - 0.3) / float32(int(1)<<o) // round above, sharp between
			}
			top[x] = base - p.unit*(0.05+0.02*t)*v
		}
		bright := l.low.mix(rgb{1, 1, 1}, 0.75*(1-l.dark)).mul(l.ambient.mix(rgb{1, 1, 1}, 0.5))
		dull := l.mid.mix(bright, 0.25+0.3*t)
		deepest := p.unit * (0.1 + 0.08*t)
		p.below(top, func(_, _ int, deep float32) (rgb, float32) {
			return bright.mix(dull, smooth(0, 1, deep/deepest)), 0.96
		})
	}
}
