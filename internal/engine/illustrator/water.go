package illustrator

// openWater mirrors what is above its line, broken by ripples.
func (p *painter) openWater() {
	l := &p.light
	y0 := int(p.water)
	deepTone := hex(0x1c5a78)
	if p.place == sea || p.place == coast {
		deepTone = hex(0x12607f)
	}
	deepTone = deepTone.mul(l.ambient)
	if p.storm {
		deepTone = hex(0x2c4a58).mul(l.ambient.mix(rgb{1, 1, 1}, 0.12))
	}
	n := p.noise("water")
	rough := float32(0.5)
	if p.place == sea || p.place == coast {
		rough = 1
	}
	if p.storm {
		rough = 2
	}
	if p.snow && p.place != sea {
		rough = 0.25
	}
	sx, _ := p.sunAt()
	// The mirror is read from a copy: rows are painted in any order.
	sky := &canvas{ctx: p.ctx, w: p.w, h: max(y0, 1), pix: p.pix[:3*p.w*max(y0, 1)]}
	octaves := p.octaves(3)
	p.rows(y0, p.h, func(y int) {
		down := (float32(y) - p.water) / p.unit
		depth := 1 / (down + 0.03) // towards the horizon waves crowd together
		for x := range p.w {
			fx := (float32(x) - float32(p.w)/2) / p.unit
			wave := n.layers(fx*(2+0.9*depth), depth*3.2, octaves)
			dx := wave * rough * p.unit * 0.03 * (0.25 + down*2)
			dy := (n.at(fx*(1+0.6*depth), depth*2.2+7)*0.5 + wave*0.5) * rough * p.unit * (0.02 + down*0.22)
			from := p.water - (float32(y)-p.water)*0.92 + dy
			v := sky.between(float32(x)+dx, min(from, p.water-1.5))
			v = v.mix(deepTone, clamp(0.2+0.5*down+0.12*wave*rough, 0.1, 0.72))
			crest := smooth(0.28, 0.6, wave)
			v = v.add(l.low, 0.07*crest*rough*(1-0.5*l.dark))
			if l.disc {
				// The sun's road.
				off := (float32(x) - sx) / (p.unit * (0.03 + down*0.5))
				v = v.add(l.sun, (0.55-0.2*l.dark)*exp(-off*off*2.2)*smooth(0.05, 0.4, wave+0.16))
			}
			p.set(x, y, v)
		}
	})
	// A line of light parts the water from the far shore.
	if p.place == sea || p.place == coast {
		p.rows(y0, y0+max(2, int(p.unit*0.004)), func(y int) {
			for x := range p.w {
				p.over(x, y, l.low, 0.3)
			}
		})
	}
}

// waves are rows of rollers with foam; on a calm day there are hardly any.
func (p *painter) waves() {
	n := p.noise("waves")
	d := p.dice("waves")
	if !p.storm && !p.rain {
		return // ripples are enough
	}
	count, high := 3, float32(0.008)
	if p.storm {
		count, high = 7, 0.034
	} else if p.rain {
		count, high = 5, 0.014
	}
	l := &p.light
	deepTone := hex(0x12556f).mul(l.ambient)
	if p.storm {
		deepTone = hex(0x34606f).mul(l.ambient.mix(rgb{1, 1, 1}, 0.3))
	}
	foam := hex(0xf2f8fa).mul(l.ambient.mix(rgb{1, 1, 1}, 0.42))
	from := p.horizon + (float32(p.h)-p.horizon)*0.3
	for i := range count {
		t := (float32(i) + 0.5) / float32(count)
		base := from + (float32(p.h)*1.04-from)*t*t
		tall := p.unit * high * (0.35 + 1.9*t)
		phase := d.in(0, 9)
		top := make([]float32, p.w)
		for x := range top {
			fx := float32(x) / p.unit
			a := fx*(11-5*t) + phase + n.at(fx*2.2, t*9)*2.4
			s := 0.5 + 0.5*sin(a)
			swell := n.at(fx*1.7+t*40, 3)
			// Peaked crests, flat troughs.
			top[x] = base - tall*(pow(s, 2.2)*(1.1+0.7*swell)+0.5*swell)
		}
		crest, body := deepTone.mix(l.low, 0.42), deepTone.mix(l.mid, 0.12)
		p.below(top, func(x, y int, deep float32) (rgb, float32) {
			fx := float32(x) / p.unit
			down := deep / tall
			v := crest.mix(body, smooth(0, 2.2, down))
			up := clamp((base-top[x])/tall, -0.4, 1.6)
			warp := n.layers(fx*7+t*5, deep/p.unit*9, 2)
			grain := n.layers(fx*11+t*30+warp*2.2, deep/p.unit*30+t*11+warp*3, 4)
			white := smooth(0.12, 0.5, grain+0.55*up-0.85*down-0.05)
			if p.storm {
				white = max(white, smooth(0.05, 0.35, grain-0.05)*smooth(5, 0.4, down)*0.5)
			}
			return v.mix(foam, white*(0.55+0.35*t)), 1 - smooth(4, 9, down)
		})
		if p.gone() {
			return
		}
		if p.storm { // spray torn from the crests
			for range p.many(int(60 * float32(p.w) / p.unit)) {
				x := d.below(p.w)
				up := (base - top[x]) / tall
				if up < 0.7 {
					continue
				}
				r := p.unit * d.in(0.0008, 0.0026) * (0.6 + t)
				p.fill(flat(foam, d.in(0.3, 0.8)), false, ellipse(float32(x)+tall*d.in(-0.6, 1.4), top[x]-tall*d.float()*d.float()*1.6, r*1.6, r))
			}
		}
	}
}

// headland is the rock on which a coast's buildings stand.
func (p *painter) headland() {
	side := p.headSide()
	n := p.noise("headland")
	top := make([]float32, p.w)
	w := float32(p.w)
	foot := p.horizon + p.unit*0.17
	for x := range top {
		t := float32(x) / w // 0 where the land begins
		if side > 0 {
			t = 1 - t
		}
		t *= w / p.unit / max(1, w/p.unit*0.8)
		rise := smooth(0.66, 0.34, t)*0.15 + smooth(0.78, 0.6, t)*0.05 + smooth(0.25, 0, t)*0.05
		rise += 0.022 * n.layers(t*9, 1, 5) * smooth(0.85, 0.5, t)
		top[x] = foot - p.unit*(rise-0.012) + p.unit*0.1*smooth(0.62, 0.86, t)
	}
	p.standX = w * 0.3
	if side > 0 {
		p.standX = w * 0.7
	}
	if w > p.unit*1.3 {
		p.standX = p.unit * 0.34
		if side > 0 {
			p.standX = w - p.unit*0.34
		}
	}
	p.standY = top[min(max(int(p.standX), 0), p.w-1)] + p.unit*0.006
	rock, dark, light := hex(0x7d7a7c), hex(0x3c3c46), hex(0xbdb4a8)
	green := p.grass().mix(hex(0x3f6b45), 0.4)
	bottom := foot + p.unit*0.05
	ambient := p.light.ambient.mix(rgb{1, 1, 1}, 0.14*p.light.dark) // the lamp helps
	p.below(top, func(x, y int, deep float32) (rgb, float32) {
		fx, fy := float32(x)/p.unit, float32(y)/p.unit
		crack := n.layers(fx*7+n.at(fx*3, fy*3)*1.2, fy*11, p.octaves(5))
		facet := n.layers(fx*4-fy*3, fy*4+fx*2, 2)
		// Flat faces with clear edges, as cut with a knife.
		tone := (facet+0.7*crack)*2.6 + 2
		step := float32(int(tone+10)) - 10
		tone = (step + smooth(0.42, 0.58, tone-step)) / 4
		v := dark.mix(rock, smooth(0, 0.5, tone)).mix(light, smooth(0.5, 1, tone))
		v = v.times(1 - 0.3*smooth(0, 0.2, deep/p.unit))
		v = v.mix(green, smooth(0.035, 0.012, deep/p.unit+0.014*crack)*0.9)
		c := v.mul(ambient).mix(p.light.haze, 0.05)
		wet := smooth(bottom-p.unit*0.05, bottom, float32(y))
		return c.times(1 - 0.35*wet), 1 - smooth(bottom+p.unit*0.02, bottom+p.unit*0.06, float32(y)+p.unit*0.02*crack)
	})
	// Breakers at its foot.
	foam := hex(0xf4f9fb).mul(p.light.ambient.mix(rgb{1, 1, 1}, 0.3))
	strength, reach := float32(0.8), float32(0.014)
	if p.storm {
		strength, reach = 0.9, 0.05
	}
	p.rows(int(foot-p.unit*0.14), int(bottom+p.unit*0.08), func(y int) {
		for x := range p.w {
			over := (float32(y) - top[x]) / p.unit
			if over < -reach {
				continue
			}
			fx, fy := float32(x)/p.unit, float32(y)/p.unit
			edge := bottom + p.unit*0.02*n.at(fx*8, 2)
			off := (float32(y) - edge) / p.unit
			splash := n.layers(fx*13, fy*13, 4)
			a := smooth(0.1, 0.5, splash+0.5-max(off, -off)/reach*0.8)
			p.over(x, y, foam, a*strength*smooth(-reach, -reach*0.3, over))
		}
	})
}

// headSide is the side of the land: away from the sun.
func (p *painter) headSide() float32 {
	if p.light.sunX > 0.5 {
		return -1
	}
	return 1
}

// beach is sand in the foreground, unless a storm has taken it.
func (p *painter) beach() {
	if p.storm {
		return
	}
	n := p.noise("beach")
	side := -p.headSide()
	top := make([]float32, p.w)
	for x := range top {
		t := float32(x) / float32(p.w)
		if side < 0 {
			t = 1 - t
		}
		top[x] = float32(p.h)*(0.93-0.13*smooth(0, 1, t)) - p.unit*0.012*n.layers(t*3, 2, 3)
	}
	sand := hex(0xeccf9c)
	if p.snow {
		sand = hex(0xeef3fa)
	}
	dry, wet := p.air(sand, 0), p.air(sand.times(0.66), 0)
	foam := hex(0xffffff).mul(p.light.ambient.mix(rgb{1, 1, 1}, 0.35))
	p.below(top, func(x, y int, deep float32) (rgb, float32) {
		fx, fy := float32(x)/p.unit, float32(y)/p.unit
		v := wet.mix(dry, smooth(0.015, 0.07, deep/p.unit))
		v = v.times(1 + 0.04*n.layers(fx*20, fy*60, 3))
		lace := smooth(0.016, 0.004, deep/p.unit+0.01*n.layers(fx*16, fy*30, 3))
		return v.mix(foam, 0.85*lace), 1
	})
}
