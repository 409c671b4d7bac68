package illustrator

// A light is the hour and the weather in colours.
type light struct {
	top, mid, low rgb // of the sky
	ambient       rgb // what the colour of a thing is multiplied by
	sun           rgb
	haze          rgb     // what the distance fades into
	sunX, sunY    float32 // in parts of width and of the sky's height
	dark          float32 // 0 by day to 1 at night
	disc          bool    // sun or moon can be seen
	veil          float32 // how much the air hides: 0 clear to 1
}

func (p *painter) lit() light {
	d := p.dice("light")
	l := light{sunX: d.in(0.62, 0.84), sunY: 0.3, disc: true, ambient: rgb{1, 1, 1}}
	if d.chance(0.5) {
		l.sunX = 1 - l.sunX
	}
	switch p.hour {
	case dawn:
		l.top, l.mid, l.low = hex(0x5a78b8), hex(0xe8a9b0), hex(0xffdfb0)
		l.sun, l.ambient = hex(0xffe6b8), rgb{0.98, 0.88, 0.88}
		l.sunY, l.dark = 0.84, 0.15
	case golden:
		l.top, l.mid, l.low = hex(0x3d83c4), hex(0xf6c98a), hex(0xffe9b8)
		l.sun, l.ambient = hex(0xfff0c0), rgb{1.06, 0.96, 0.82}
		l.sunY = 0.62
	case dusk:
		l.top, l.mid, l.low = hex(0x2a2560), hex(0xc44a6e), hex(0xffb45e)
		l.sun, l.ambient = hex(0xffd08a), rgb{0.74, 0.58, 0.68}
		l.sunY, l.dark = 0.9, 0.4
	case night:
		l.top, l.mid, l.low = hex(0x070b26), hex(0x16265c), hex(0x3f5c94)
		l.sun, l.ambient = hex(0xe8eeff), rgb{0.34, 0.4, 0.62}
		l.sunY, l.dark = 0.28, 1
	default:
		l.top, l.mid, l.low = hex(0x2474d0), hex(0x78bdf2), hex(0xe0f3fc)
		l.sun = hex(0xfffbe6)
	}
	gloom := func(top, mid, low uint32, share float32) {
		dim := 1 - 0.72*l.dark
		l.top = l.top.mix(hex(top).times(dim), share)
		l.mid = l.mid.mix(hex(mid).times(dim), share)
		l.low = l.low.mix(hex(low).times(dim), share)
	}
	switch {
	case p.storm:
		gloom(0x2c3644, 0x465666, 0x8fa0a8, 0.88)
		l.ambient = l.ambient.mul(rgb{0.7, 0.76, 0.84})
		l.disc = false
	case p.rain:
		gloom(0x5a6c80, 0x8496a4, 0xbcc8cc, 0.8)
		l.ambient = l.ambient.mul(rgb{0.82, 0.86, 0.9})
		l.disc = false
	case p.snow:
		gloom(0x8fa6c0, 0xb9cadb, 0xe6ecf2, 0.55)
	case p.clouds && p.hour == day:
		gloom(0x7d93ab, 0xa9bccb, 0xd9e2e6, 0.5)
	}
	if p.fog {
		gloom(0x9aa9b4, 0xbcc8ce, 0xdde3e4, 0.6)
		l.veil = 0.75
	}
	if p.rain {
		l.veil = max(l.veil, 0.35)
	}
	l.haze = l.low.mix(l.mid, 0.3)
	return l
}

// gradient is the sky's colour at a height, 0 at the top to 1 at the horizon.
func (l *light) gradient(t float32) rgb {
	if t < 0.6 {
		return l.top.mix(l.mid, smooth(0, 0.6, t))
	}
	return l.mid.mix(l.low, smooth(0.6, 1.02, t))
}

func (p *painter) sunAt() (x, y float32) {
	return p.light.sunX * float32(p.w), p.light.sunY * p.horizon
}

// sky paints everything above and behind: the gradient, the shine around the
// sun, stars and clouds.
func (p *painter) sky() {
	l := &p.light
	sx, sy := p.sunAt()
	bottom := int(p.horizon) + int(p.unit*0.12)
	p.rows(0, p.h, func(y int) {
		base := l.gradient(float32(y) / p.horizon)
		for x := range p.w {
			v := base
			if l.disc {
				dx, dy := (float32(x)-sx)/p.unit, (float32(y)-sy)/p.unit
				r := sqrt(dx*dx + dy*dy)
				v = v.add(l.sun, (0.42-0.24*l.dark)*exp(-r*4.2)+(0.3-0.12*l.dark)*exp(-r*14))
			}
			p.set(x, y, v)
		}
	})
	if p.gone() {
		return
	}
	if l.dark > 0.8 && !p.rain && (p.aurora || !p.snow) && !p.fog {
		p.starfield(p.many(int(900*p.horizon*float32(p.w)/(p.unit*p.unit))), p.horizon)
	} else if p.hour == dusk && !p.clouds {
		p.starfield(p.many(90), p.horizon*0.45)
	}
	if l.disc {
		p.disc(sx, sy)
	}
	p.cloudbank(bottom)
}

func (p *painter) disc(x, y float32) {
	l := &p.light
	if l.dark < 0.8 {
		r := p.unit * 0.055
		if l.sunY > 0.5 {
			r *= 1.35 // low suns look larger
		}
		p.fill(flat(l.sun.mix(rgb{1, 1, 1}, 0.5), 0.96), false, ellipse(x, y, r, r))
		return
	}
	r := p.unit * 0.06
	if p.moon {
		r *= 1.6
	}
	n := p.noise("moon")
	phase := p.dice("moon").in(-0.7, 0.7)
	if p.moon {
		phase = 0.9
	}
	p.glow(x, y, r*5, l.sun, 0.22)
	p.fill(func(px, py int) (rgb, float32) {
		dx, dy := (float32(px)-x)/r, (float32(py)-y)/r
		v := hex(0xf6f3e2).mix(hex(0xc9c8cf), smooth(-0.1, 0.5, n.layers(dx*1.7+5, dy*1.7, 3)))
		edge := sqrt(max(0, 1-dy*dy)) * phase
		return v, 0.12 + 0.88*smooth(-0.08, 0.08, dx+edge)
	}, false, ellipse(x, y, r, r))
}

// starfield scatters n stars above a height.
func (p *painter) starfield(n int, bottom float32) {
	d := p.dice("stars")
	for range n {
		x, y := d.in(0, float32(p.w)), d.in(0, bottom)
		size := d.float()
		size = size * size * size * size
		bright := (0.35 + 0.65*d.float()) * (1 - 0.75*smooth(0.4, 1, y/bottom))
		tone := rgb{1, 1, 1}.mix([]rgb{hex(0x9fc4ff), hex(0xffd9a0), hex(0xffffff)}[d.below(3)], 0.6)
		r := p.unit * (0.0009 + 0.0016*size)
		p.fill(flat(tone, min(1, bright)), true, ellipse(x, y, max(r, 0.6), max(r, 0.6)))
		if size > 0.62 {
			p.glow(x, y, r*7, tone, 0.28*bright)
		}
	}
}

// cloudbank is clouds of noise, lit from the sun's side.
func (p *painter) cloudbank(bottom int) {
	l := &p.light
	d := p.dice("clouds")
	cover := d.in(-0.06, 0.1)
	switch {
	case p.aurora:
		cover = -0.3
	case p.storm:
		cover = 0.62
	case p.rain:
		cover = 0.5
	case p.clouds:
		cover = 0.24
	case p.snow || p.fog:
		cover = 0.15
	case p.hour == night:
		cover = d.in(-0.28, -0.1)
	case p.place == heavens:
		cover = 0.02
	}
	bright := l.low.mix(rgb{1, 1, 1}, 0.62*(1-l.dark))
	dull := l.mid.mix(l.top, 0.35)
	switch {
	case l.dark > 0.8 && p.storm:
		bright, dull = hex(0x5d6d88), hex(0x0d1424)
	case l.dark > 0.8:
		bright, dull = l.low.times(0.8), l.top.mix(l.mid, 0.5)
	case p.storm:
		bright, dull = l.low.times(0.92), l.top.times(0.72)
	case p.hour == dusk:
		bright, dull = hex(0xff9a76), hex(0x4b2f66)
	}
	n := p.noise("clouds")
	octaves := p.octaves(6)
	shift := float32(0.16)
	if l.sunX < 0.5 {
		shift = -shift
	}
	// Clouds are soft: every second pixel is enough.
	const cell = 2
	w, h := (p.w+cell-1)/cell+1, (bottom+cell-1)/cell+1
	amount := make([]float32, w*h)
	shaded := make([]float32, w*h)
	field := &canvas{ctx: p.ctx, w: w, h: h}
	field.rows(0, h, func(cy int) {
		y := float32(cy*cell) / p.horizon
		// Towards the horizon clouds lie flatter and closer.
		depth := 1 / (1.3 - min(y, 1.15))
		for cx := range w {
			x := (float32(cx*cell) - float32(p.w)/2) / p.unit
			u, v := x*1.1*(0.5+0.5*depth)+3, depth*1.45
			warp := n.at(u*0.7+9, v*0.7) * 0.5
			m := n.layers(u*1.25+warp, v*1.5, octaves)
			a := smooth(0.02, 0.42, m+cover)
			if a <= 0 {
				continue
			}
			toward := n.layers((u+shift)*1.25+warp, (v-0.16)*1.5, 3)
			amount[cy*w+cx] = a * (1 - 0.5*smooth(0.85, 1.12, y))
			shaded[cy*w+cx] = clamp(0.5+(toward-m)*-1.3-(m+cover-0.3)*0.5, 0, 1)
		}
	})
	if p.gone() {
		return
	}
	strength := float32(0.92)
	p.rows(0, bottom, func(y int) {
		for x := range p.w {
			i, j := y/cell*w+x/cell, (y/cell+1)*w+x/cell
			fx, fy := float32(x%cell)/cell, float32(y%cell)/cell
			mid := func(f []float32) float32 {
				a, b := f[i]+(f[i+1]-f[i])*fx, f[j]+(f[j+1]-f[j])*fx
				return a + (b-a)*fy
			}
			if a := mid(amount); a > 0 {
				p.over(x, y, dull.mix(bright, mid(shaded)), a*strength)
			}
		}
	})
}

// heavenly is what stands in the sky at times.
func (p *painter) heavenly() {
	if p.aurora {
		p.northernLights()
	}
	if p.rainbow {
		cx, cy, r := float32(p.w)*(1-p.light.sunX), p.horizon*1.02, p.horizon*0.86
		band := p.unit * 0.055
		bow := []rgb{hex(0x8b5cf6), hex(0x3b82f6), hex(0x22c55e), hex(0xfacc15), hex(0xfb923c), hex(0xef4444)}
		p.rows(0, int(p.horizon), func(y int) {
			for x := range p.w {
				dx, dy := float32(x)-cx, float32(y)-cy
				t := (sqrt(dx*dx+dy*dy) - r) / band
				if t <= -1 || t >= 1 {
					continue
				}
				at := (t + 1) / 2 * float32(len(bow)-1)
				i := min(int(at), len(bow)-2)
				v := bow[i].mix(bow[i+1], at-float32(i))
				p.over(x, y, v.mix(rgb{1, 1, 1}, 0.15), 0.5*smooth(1, 0.55, max(t, -t))*smooth(1, 0.75, float32(y)/p.horizon))
			}
		})
	}
}

func (p *painter) northernLights() {
	n := p.noise("aurora")
	tones := []rgb{hex(0x35f2a0), hex(0x3ad6e8), hex(0xa35cf0)}
	p.rows(0, int(p.horizon), func(y int) {
		for x := range p.w {
			for i, tone := range tones {
				fx := float32(x) / p.unit
				foot := p.horizon * (0.56 - 0.13*float32(i) + 0.16*n.at(fx*1.3+float32(i)*7, 1))
				up := (foot - float32(y)) / p.horizon
				if up < -0.04 {
					continue
				}
				ray := 0.55 + 0.45*n.at(fx*26+n.at(fx*3, 4)*3, float32(i)*3)
				p.canvas.light(x, y, tone, 0.62*ray*smooth(-0.04, 0.03, up)*exp(-up*(5+2*n.at(fx*6, 8))))
			}
		}
	})
}

// lightning strikes from the clouds, and lights them.
func (p *painter) lightning() {
	d := p.dice("lightning")
	x := float32(p.w) * d.in(0.7, 0.82) // above the water, away from the land
	if p.headSide() > 0 {
		x = float32(p.w) - x
	}
	y := p.horizon * d.in(0.04, 0.12)
	p.glow(x, y, p.unit*0.5, hex(0x9fb4ff), 0.34)
	p.glow(x, p.horizon*0.55, p.unit*0.42, hex(0x8aa2ff), 0.26)
	p.bolt(d, point{x, y}, point{x + p.unit*d.in(-0.1, 0.1), p.horizon}, p.unit*0.0046, 3)
}

func (p *painter) bolt(d *dice, from, to point, width float32, branches int) {
	path := []point{from, to}
	for sway := float32(0.2); sway > 0.03; sway *= 0.72 {
		next := []point{path[0]}
		for i := 1; i < len(path); i++ {
			a, b := path[i-1], path[i]
			dx, dy := b.x-a.x, b.y-a.y
			t := d.in(-sway, sway) * 1.4
			next = append(next, point{(a.x+b.x)/2 - dy*t, (a.y+b.y)/2 + dx*t*0.6}, b)
		}
		path = next
	}
	for _, s := range []struct {
		wide, a float32
		v       rgb
	}{{9, 0.05, hex(0x7f9cff)}, {4.5, 0.12, hex(0x9db4ff)}, {2, 0.4, hex(0xc9d6ff)}, {0.9, 1, hex(0xffffff)}} {
		var polys [][]point
		for i := 1; i < len(path); i++ {
			taper := min(1, 0.15+float32(i)/float32(len(path))*4) * (1 - 0.6*float32(i)/float32(len(path)))
			polys = append(polys, line(path[i-1], path[i], width*s.wide*taper, width*s.wide*taper))
		}
		for _, poly := range polys {
			p.fill(flat(s.v, s.a), s.a < 1, poly)
		}
	}
	for range branches {
		i := len(path)/5 + d.below(len(path)/2)
		a := path[i]
		p.bolt(d, a, point{a.x + p.unit*d.in(-0.2, 0.2), a.y + (to.y-a.y)*d.in(0.3, 0.6)}, width*0.5, branches/2-1)
	}
}
