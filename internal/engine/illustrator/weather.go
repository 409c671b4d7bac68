package illustrator

// weather falls in front of everything.
func (p *painter) weather() {
	if p.place == space || p.place == underwater || p.place == room {
		return
	}
	area := float32(p.w) * float32(p.h) / (p.unit * p.unit)
	if p.fog {
		n := p.noise("fog")
		p.rows(0, p.h, func(y int) {
			fy := float32(y) / float32(p.h)
			for x := range p.w {
				a := 0.42*smooth(0.25, 0.62, fy)*smooth(1.15, 0.75, fy) + 0.34*n.layers(float32(x)/p.unit*1.6, fy*6, 4)*smooth(0.2, 0.6, fy)
				p.over(x, y, p.light.haze, clamp(a, 0, 0.75))
			}
		})
	}
	if p.snow {
		d := p.dice("snow")
		flake := hex(0xffffff).mul(p.light.ambient.mix(rgb{1, 1, 1}, 0.55))
		for i := range p.many(int(520 * area)) {
			near := d.float()
			near *= near * near
			r := p.unit * (0.0012 + 0.0055*near)
			p.fill(flat(flake, 0.85-0.4*near), false, ellipse(d.in(0, float32(p.w)), d.in(0, float32(p.h)), r, r))
			if i%64 == 0 && p.gone() {
				return
			}
		}
	}
	if p.rain {
		d := p.dice("rain")
		drop := p.light.low.mix(rgb{1, 1, 1}, 0.5)
		slant := d.in(-0.16, 0.16)
		count, strength := 620, float32(0.24)
		if p.storm {
			count, slant, strength = 1100, 0.34, 0.26
			if p.light.sunX > 0.5 {
				slant = -slant
			}
		}
		for i := range p.many(int(float32(count) * area)) {
			near := d.float()
			long := p.unit * (0.018 + 0.055*near*near)
			a := point{d.in(-0.2, 1.2) * float32(p.w), d.in(-0.1, 1) * float32(p.h)}
			b := point{a.x + long*slant, a.y + long}
			p.fill(flat(drop, strength*(0.45+0.55*d.float())), false, line(a, b, p.unit*0.0004, p.unit*(0.0009+0.0011*near)))
			if i%64 == 0 && p.gone() {
				return
			}
		}
	}
}
