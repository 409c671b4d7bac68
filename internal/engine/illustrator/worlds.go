package illustrator

// cosmos is the dark with its nebulae and stars.
func (p *painter) cosmos() {
	p.horizon, p.ground, p.water = float32(p.h), float32(p.h)*0.8, float32(p.h)
	d := p.dice("cosmos")
	schemes := [][3]rgb{
		{hex(0x6a2fb0), hex(0x1f7fd6), hex(0xff7ab8)},
		{hex(0x123f8f), hex(0x14b8a6), hex(0xffb06a)},
		{hex(0x8a1f5c), hex(0x4338ca), hex(0xfcd34d)},
		{hex(0x0e5a7a), hex(0x7c3aed), hex(0xf472b6)},
	}
	tones := schemes[d.below(len(schemes))]
	n, m := p.noise("nebula"), p.noise("dust")
	octaves := p.octaves(6)
	lean := d.in(-0.6, 0.6)
	p.rows(0, p.h, func(y int) {
		fy := (float32(y) - float32(p.h)/2) / p.unit
		for x := range p.w {
			fx := (float32(x) - float32(p.w)/2) / p.unit
			v := hex(0x04050f).mix(hex(0x0a0f2a), 0.5+0.5*fy)
			warpX, warpY := n.at(fx*1.6+7, fy*1.6), n.at(fx*1.6, fy*1.6+9)
			band := fy + lean*fx
			cloud := n.layers(fx*1.8+warpX*0.8, fy*1.8+warpY*0.8, octaves)
			a := smooth(-0.15, 0.75, cloud+0.35*exp(-band*band*5)-0.05)
			hue := smooth(-0.35, 0.35, n.at(fx*1.1+warpY, fy*1.1+20))
			v = v.add(tones[0].mix(tones[1], hue), a*0.8)
			v = v.add(tones[2], pow(a, 3)*0.5)
			dust := smooth(0.1, 0.55, m.layers(fx*2.6+warpY, fy*2.6+warpX, octaves))
			v = v.times(1 - 0.62*dust*exp(-band*band*4))
			p.set(x, y, v)
		}
	})
	if !p.gone() {
		p.starfield(p.many(int(1300*float32(p.w)*float32(p.h)/(p.unit*p.unit))), float32(p.h)*2.5)
	}
}

func (p *painter) planets() {
	d := p.dice("planets")
	left := d.chance(0.5)
	at := func(x float32) float32 {
		if left {
			x = 1 - x
		}
		return x * float32(p.w)
	}
	tones := [][2]rgb{{hex(0xe2a06a), hex(0xb5603a)}, {hex(0x6ab0e2), hex(0x2f5fa8)}, {hex(0xd8c3f2), hex(0x7a5cb0)}, {hex(0x8fd6b0), hex(0x2f7f78)}}
	first := d.below(len(tones))
	p.planet(d, at(d.in(0.76, 0.86)), float32(p.h)*d.in(0.2, 0.3), p.unit*d.in(0.13, 0.17), tones[first], true)
	p.planet(d, at(d.in(0.1, 0.2)), float32(p.h)*d.in(0.12, 0.3), p.unit*d.in(0.03, 0.055), tones[(first+1)%len(tones)], false)
	// The curve of a world below, with air that glows.
	r := max(float32(p.w)*0.95, p.unit*1.2)
	cx, cy := float32(p.w)*d.in(0.35, 0.65), float32(p.h)*0.86+r
	ground := tones[(first+2)%len(tones)]
	n := p.noise("world")
	p.rows(int(cy-r-p.unit*0.12), p.h, func(y int) {
		for x := range p.w {
			dx, dy := float32(x)-cx, float32(y)-cy
			off := (r - sqrt(dx*dx+dy*dy)) / p.unit
			if off*p.unit < 1 {
				p.canvas.light(x, y, hex(0x6fc3ff), 0.55*exp(min(off, 0)*38))
			}
			if off < 0 {
				continue
			}
			fx, fy := dx/p.unit, off
			v := ground[1].mix(ground[0], smooth(-0.3, 0.4, n.layers(fx*3, fy*9, p.octaves(6))))
			v = v.mix(rgb{1, 1, 1}, 0.5*smooth(0.15, 0.5, n.layers(fx*4+30, fy*14, p.octaves(5))))
			v = v.times(0.55-0.35*smooth(0, 0.2, off)).add(hex(0x7fccff), 0.5*exp(-off*34))
			cover := clamp(off*p.unit, 0, 1)
			p.over(x, y, v, cover)
		}
	})
}

func (p *painter) planet(d *dice, cx, cy, r float32, tones [2]rgb, rings bool) {
	n := noise(d.next() & 0xffffffff)
	tilt := d.in(-0.4, 0.4)
	ring := func(front bool) {
		if !rings {
			return
		}
		p.rows(int(cy-r*2.4), int(cy+r*2.4), func(y int) {
			for x := max(0, int(cx-r*2.4)); x < min(p.w, int(cx+r*2.4)); x++ {
				dx, dy := (float32(x)-cx)/r, (float32(y)-cy)/r
				u, v := dx+tilt*dy, (dy-tilt*dx)*3.4
				if (v > 0) != front {
					continue
				}
				rad := sqrt(u*u + v*v)
				if rad < 1.3 || rad > 2.15 {
					continue
				}
				a := (0.5 + 0.4*n.at(rad*22, 3)) * smooth(1.3, 1.36, rad) * smooth(2.15, 2.05, rad) * (1 - smooth(0.03, 0.0, max(rad-1.76, 1.76-rad)))
				p.over(x, y, tones[0].mix(rgb{1, 1, 1}, 0.4), a*0.85)
			}
		})
	}
	ring(false)
	p.glow(cx, cy, r*1.7, tones[0], 0.22)
	p.fill(func(x, y int) (rgb, float32) {
		dx, dy := (float32(x)-cx)/r, (float32(y)-cy)/r
		z := sqrt(max(0, 1-dx*dx-dy*dy))
		u, v := dx+tilt*dy, dy-tilt*dx
		band := n.layers(u*0.7, v*6+n.at(u*2, v*4)*0.6, 4)
		c := tones[1].mix(tones[0], smooth(-0.5, 0.5, band))
		shine := clamp(-0.55*dx-0.5*dy+0.66*z, 0, 1)
		return c.times(0.07+1.1*shine).add(tones[0], 0.3*pow(1-z, 3)*shine), 1
	}, false, ellipse(cx, cy, r, r))
	ring(true)
}

// deep is the sea seen from within: light from above, dark below.
func (p *painter) deep() {
	h := float32(p.h)
	p.horizon, p.ground, p.water = h, h*0.88, h
	n := p.noise("deep")
	top, mid, low := hex(0x6fe0e6), hex(0x1487b8), hex(0x062a52)
	if p.hour == night {
		top, mid, low = hex(0x2f7fb0), hex(0x0c3f78), hex(0x04102c)
	}
	cx := float32(p.w) * p.light.sunX
	octaves := p.octaves(4)
	p.rows(0, p.h, func(y int) {
		t := float32(y) / h
		base := top.mix(mid, smooth(0, 0.45, t)).mix(low, smooth(0.35, 1, t))
		for x := range p.w {
			dx, dy := (float32(x)-cx)/p.unit, float32(y)/p.unit+0.25
			angle := dx / dy
			ray := smooth(-0.1, 0.7, n.layers(angle*7, dy*0.35, octaves)) * exp(-dy*1.5) * exp(-dx*dx*0.9)
			v := base.add(hex(0xd8fff4), ray*0.95)
			ripple := n.at(float32(x)/p.unit*9, 2+t*60) * smooth(0.09, 0, t)
			p.set(x, y, v.add(rgb{1, 1, 1}, 0.22*max(ripple, 0)))
		}
	})
	p.light.haze, p.light.ambient = mid.mix(low, 0.4), rgb{0.72, 0.9, 1}
	if p.hour == night {
		p.light.ambient = rgb{0.4, 0.56, 0.8}
	}
}

func (p *painter) reef() {
	d := p.dice("reef")
	for i := range 3 {
		t := float32(i) / 2
		top := p.contour("reef"+string(rune('a'+i)), float32(p.h)*(0.78+0.1*t), p.unit*0.06, 0.4, 4, false)
		sand := hex(0x9c8f78).mix(hex(0xe8d2a0), t)
		near, edge := p.air(sand.times(0.6), 0.7*(1-t)), p.air(sand, 0.8*(1-t))
		p.below(top, func(_, _ int, deep float32) (rgb, float32) { return edge.mix(near, smooth(0, 0.14, deep/p.unit)), 1 })
		for range p.many(int(16 * float32(p.w) / p.unit)) {
			x := d.in(0, float32(p.w))
			y := top[min(int(x), p.w-1)] + p.unit*d.in(0, 0.05)
			p.coral(d, x, y, p.unit*(0.05+0.06*t)*d.in(0.6, 1.4), 0.72*(1-t))
			if p.gone() {
				return
			}
		}
	}
	for range p.many(70) {
		x, y, r := d.in(0, float32(p.w)), d.in(0, float32(p.h)*0.9), p.unit*d.in(0.002, 0.009)
		p.fill(flat(hex(0xd8fbff), 0.22), false, ellipse(x, y, r, r))
		p.fill(flat(rgb{1, 1, 1}, 0.7), false, ellipse(x-r*0.35, y-r*0.35, r*0.3, r*0.3))
	}
}

func (p *painter) coral(d *dice, x, y, size, far float32) {
	v := p.air([]rgb{hex(0xff6f7f), hex(0xff9f5a), hex(0xb06af0), hex(0xf2c14e), hex(0xf25fa8)}[d.below(5)], far)
	switch d.below(3) {
	case 0: // weed
		green := p.air([]rgb{hex(0x2fae7a), hex(0x6abf4b)}[d.below(2)], far)
		for range 5 {
			a := point{x + size*d.in(-0.3, 0.3), y}
			b := point{a.x + size*d.in(-0.4, 0.4), y - size*d.in(1, 2.1)}
			mid := curve(a, point{a.x + size*d.in(-0.5, 0.5), y - size*0.5}, point{b.x + size*d.in(-0.5, 0.5), y - size}, b, 8)
			prev := a
			for i, q := range mid {
				p.fill(flat(green, 1), false, line(prev, q, size*0.12*(1-float32(i)/9), size*0.12*(1-float32(i+1)/9)))
				prev = q
			}
		}
	case 1: // a fan of branches
		p.branch(d, point{x, y}, -1.57, size*0.42, size*0.14, v, 4)
	default: // domes
		for i := range 3 {
			k := float32(i)
			p.fill(flat(v.times(0.75+0.2*k), 1), false, ellipse(x, y-size*0.06*k, size*(0.5-0.13*k), size*(0.42-0.1*k)))
		}
	}
}

func (p *painter) branch(d *dice, from point, angle, length, width float32, v rgb, depth int) {
	to := point{from.x + sin(angle+1.5708)*length, from.y + sin(angle)*length}
	p.fill(flat(v, 1), false, line(from, to, width, width*0.7))
	p.fill(flat(v, 1), false, ellipse(to.x, to.y, width*0.42, width*0.42))
	if depth > 0 {
		p.branch(d, to, angle-d.in(0.25, 0.65), length*0.74, width*0.7, v, depth-1)
		p.branch(d, to, angle+d.in(0.25, 0.65), length*0.74, width*0.7, v, depth-1)
	}
}

// walls and floor of a room.
func (p *painter) walls() {
	h := float32(p.h)
	p.horizon, p.ground, p.water = h*0.66, h*0.87, h
	d := p.dice("room")
	papers := []rgb{hex(0x5f8f8a), hex(0xc98f6a), hex(0x6f7fa8), hex(0xb5a27a), hex(0x8a6f8f), hex(0x7f9a6f)}
	paper := papers[d.below(len(papers))]
	wood := []rgb{hex(0x9a6b45), hex(0x7d5638), hex(0xb0825a)}[d.below(3)]
	lit := rgb{1, 1, 1}
	if p.light.dark > 0.3 {
		lit = rgb{0.62, 0.5, 0.44} // by lamplight
	}
	n := p.noise("room")
	skirting := p.horizon - p.unit*0.03
	p.rows(0, p.h, func(y int) {
		fy := float32(y)
		for x := range p.w {
			fx := (float32(x) - float32(p.w)/2) / p.unit
			var v rgb
			switch {
			case fy < skirting:
				v = paper.times(1.06 - 0.2*fy/h)
				stripe := sin(fx * 75)
				v = v.times(1 + 0.035*smooth(-0.2, 0.2, stripe))
			case fy < p.horizon:
				v = hex(0xf2ead9).times(0.95 - 0.2*smooth(p.horizon-p.unit*0.006, p.horizon, fy))
			default:
				down := (fy-p.horizon)/p.unit + 0.18
				board := fx / down * 1.7
				i := float32(int(board + 1000))
				f := board + 1000 - i
				v = wood.times(0.92 + 0.1*n.at(i*3.3, 1) + 0.07*n.layers(board*8, 3/down+i*7, 3))
				v = v.times(0.72 + 0.28*smooth(0, 0.03, min(f, 1-f)))
				v = v.times(0.72 + 0.5*smooth(0, 0.4, down-0.18))
			}
			p.set(x, y, v.mul(lit))
		}
	})
	p.light.ambient = rgb{1, 0.98, 0.95}
	if p.light.dark > 0.3 {
		p.light.ambient = rgb{0.9, 0.78, 0.68}
	}
	p.light.veil = 0
}

// windowView is the prompt's weather and hour behind glass.
func (p *painter) windowView() {
	d := p.dice("window")
	wide, high := p.unit*0.46, p.unit*0.42
	x0 := float32(p.w)*0.5 - wide*0.5 + p.unit*d.in(-0.17, 0.17)
	y0 := float32(p.h)*0.33 - high*0.5
	outside := &painter{canvas: newCanvas(p.ctx, int(wide)+1, int(high)+1), icons: p.icons, root: p.root, detail: p.detail * 0.7, unit: wide * 0.9}
	outside.scene = p.scene
	outside.place = []place{mountains, field, river, city}[d.below(4)]
	outside.subjects, outside.tint = nil, nil
	outside.light = outside.lit()
	outside.setLines()
	outside.sky()
	outside.heavenly()
	for _, l := range outside.land() {
		l.draw()
	}
	outside.weather()
	if p.gone() {
		return
	}
	frame := hex(0xf4eee2).mul(p.light.ambient)
	border := p.unit * 0.018
	p.shade(x0+wide/2, y0+high/2+p.unit*0.02, wide*0.72, high*0.78, rgb{}, 0.3)
	p.fill(flat(frame, 1), false, box(x0-border, y0-border, x0+wide+border, y0+high+border))
	for y := range outside.h {
		for x := range outside.w {
			if px, py := x+int(x0), y+int(y0); px >= 0 && py >= 0 && px < p.w && py < p.h {
				p.set(px, py, outside.at(x, y))
			}
		}
	}
	bar := p.unit * 0.009
	p.fill(flat(frame, 1), false, box(x0+wide/2-bar/2, y0, x0+wide/2+bar/2, y0+high))
	p.fill(flat(frame, 1), false, box(x0, y0+high*0.46-bar/2, x0+wide, y0+high*0.46+bar/2))
	p.fill(flat(frame.times(0.88), 1), false, box(x0-border*1.8, y0+high+border*0.4, x0+wide+border*1.8, y0+high+border*1.7))
	// Curtains.
	cloth := []rgb{hex(0xd9775f), hex(0xe2b45f), hex(0x6f9fb5), hex(0xb56f8f)}[d.below(4)].mul(p.light.ambient)
	for _, side := range []float32{-1, 1} {
		cx := x0 + wide/2 + side*(wide/2+border*0.6)
		outer := cx + side*p.unit*0.075
		inner := cx - side*p.unit*0.035
		bottom := y0 + high + p.unit*0.09
		shape := append([]point{{outer, y0 - border*2.2}, {inner - side*p.unit*0.05, y0 - border*2.2}},
			curve(point{inner - side*p.unit*0.05, y0 - border*2.2}, point{inner, y0 + high*0.5}, point{inner, y0 + high*0.6}, point{cx + side*p.unit*0.012, bottom}, 10)...)
		shape = append(shape, point{outer + side*p.unit*0.012, bottom})
		p.fill(func(x, y int) (rgb, float32) {
			fold := sin(float32(x) / p.unit * 170)
			return cloth.times(0.86 + 0.14*fold), 1
		}, false, shape)
	}
	rod := hex(0x5b4332).mul(p.light.ambient)
	p.fill(flat(rod, 1), false, box(x0-p.unit*0.11, y0-border*2.8, x0+wide+p.unit*0.11, y0-border*2))
	// Daylight falls on the floor.
	if p.light.dark < 0.3 && !p.storm {
		fx := x0 + wide*0.5
		p.fill(func(_, y int) (rgb, float32) {
			return p.light.sun, 0.16 * smooth(float32(p.h), p.horizon, float32(y))
		}, true, []point{{fx - wide*0.42, p.horizon}, {fx + wide*0.42, p.horizon}, {fx + wide*0.95, float32(p.h)}, {fx - wide*0.25, float32(p.h)}})
	}
}

// furniture is a lamp, a picture and a plant, and a table for what lies on one.
func (p *painter) furniture() {
	d := p.dice("furniture")
	u := p.unit
	amb := p.light.ambient
	side := float32(-1)
	if d.chance(0.5) {
		side = 1
	}
	cx := float32(p.w) / 2
	// A rug under the scene.
	rug := []rgb{hex(0xb5483f), hex(0x3f6f9f), hex(0x7a5f9a), hex(0x2f7f78)}[d.below(4)].mul(amb)
	for i, k := range []float32{1, 0.9, 0.84, 0.5, 0.44} {
		c := rug
		if i%2 == 1 {
			c = hex(0xf0e2c4).mul(amb)
		}
		p.fill(flat(c, 1), false, ellipse(cx, p.ground+u*0.01, u*0.42*k, u*0.085*k))
	}
	// A standing lamp.
	lx, foot := cx+side*u*0.43, p.horizon+u*0.06
	metal := hex(0x3a332e).mul(amb)
	p.shade(lx, foot, u*0.08, u*0.018, rgb{}, 0.5)
	p.fill(flat(metal, 1), false, ellipse(lx, foot, u*0.045, u*0.011))
	p.fill(flat(metal, 1), false, box(lx-u*0.004, foot-u*0.42, lx+u*0.004, foot))
	top := foot - u*0.5
	shadeTone := hex(0xf2d9a8).mul(amb)
	if p.light.dark > 0.3 || p.storm || p.rain {
		shadeTone = hex(0xffe6ae)
		p.lamps = append(p.lamps, lamp{lx, top + u*0.06, u * 0.62, hex(0xffb861), 0.5})
	}
	p.fill(fade(shadeTone, shadeTone.times(0.86), top, top+u*0.12), false, []point{{lx - u*0.045, top}, {lx + u*0.045, top}, {lx + u*0.085, top + u*0.12}, {lx - u*0.085, top + u*0.12}})
	// A plant on the other side.
	px, py := cx-side*u*0.42, p.horizon+u*0.09
	p.shade(px, py, u*0.09, u*0.02, rgb{}, 0.5)
	for range 13 {
		angle := d.in(-1.35, 1.35)
		length := u * d.in(0.14, 0.27)
		tip := point{px + sin(angle)*length*0.8, py - u*0.08 - length*sin(1.5708-angle*0.8)}
		from := point{px, py - u*0.08}
		bend := point{(from.x + tip.x) / 2, tip.y - u*0.02}
		leaf := hex(0x3f8f5a).mix(hex(0x2f6f4a), d.float()).mul(amb)
		edge := curve(from, point{from.x, bend.y}, bend, tip, 9)
		prev := from
		for i, q := range edge {
			w := func(k int) float32 { t := float32(k) / 9; return u * 0.034 * t * (1 - t) * 4 * 0.9 }
			p.fill(flat(leaf, 1), false, line(prev, q, w(i)+u*0.003, w(i+1)+u*0.003))
			prev = q
		}
	}
	pot := hex(0xc46a4a).mul(amb)
	p.fill(fade(pot, pot.times(0.8), py-u*0.09, py), false, []point{{px - u*0.055, py - u*0.09}, {px + u*0.055, py - u*0.09}, {px + u*0.04, py}, {px - u*0.04, py}})
	p.fill(flat(pot.times(1.1), 1), false, box(px-u*0.062, py-u*0.105, px+u*0.062, py-u*0.085))
	for _, f := range p.subjects {
		if f.where == lying {
			p.table(cx)
			return
		}
	}
}

func (p *painter) table(cx float32) {
	u := p.unit
	wood := hex(0xa8734a).mul(p.light.ambient)
	top := p.ground - u*0.1
	p.shade(cx, p.ground+u*0.09, u*0.42, u*0.035, rgb{}, 0.4)
	for _, x := range []float32{-0.33, 0.33} {
		p.fill(flat(wood.times(0.62), 1), false, []point{{cx + u*(x-0.022), top}, {cx + u*(x+0.022), top}, {cx + u*(x+0.014), top + u*0.2}, {cx + u*(x-0.014), top + u*0.2}})
	}
	n := p.noise("table")
	p.fill(func(x, y int) (rgb, float32) {
		return wood.times(1.06 + 0.08*n.layers(float32(x)/u*3, float32(y)/u*60, 3)), 1
	}, false, ellipse(cx, top, u*0.42, u*0.062))
	p.fill(flat(wood.times(0.72), 1), false, append(arc(cx, top, u*0.42, u*0.062), reversed(arc(cx, top+u*0.024, u*0.42, u*0.062))...))
	p.ground = top + u*0.012
}

// arc is the lower half of an ellipse, from left to right.
func arc(x, y, rx, ry float32) []point {
	out := make([]point, 41)
	for i := range out {
		a := float32(i) / 40 * 3.14159265
		out[i] = point{x - rx*sin(a+1.5707963), y + ry*sin(a)}
	}
	return out
}

func reversed(poly []point) []point {
	out := make([]point, len(poly))
	for i, q := range poly {
		out[len(poly)-1-i] = q
	}
	return out
}
