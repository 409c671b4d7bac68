package illustrator

import "image"

// figures paints the subjects, the first one in front and in the light.
func (p *painter) figures() {
	n := len(p.subjects)
	d := p.dice("figures")
	flip := d.chance(0.5)
	// Where each of up to three stands, in parts of the width, and how near.
	spots := [][]struct{ x, scale float32 }{
		{},
		{{d.in(0.42, 0.58), 1}},
		{{0.33, 1}, {0.7, 0.9}},
		{{0.5, 1}, {0.2, 0.78}, {0.8, 0.82}},
	}[n]
	// Those behind first.
	for i := n - 1; i >= 0; i-- {
		f, s := p.subjects[i], spots[i]
		if p.gone() {
			return
		}
		x := s.x
		if flip {
			x = 1 - x
		}
		// On wide pictures subjects keep together around the middle.
		at := float32(p.w)/2 + (x-0.5)*min(float32(p.w), p.unit*1.5)
		p.figure(d, f, at, s.scale, float32(i))
	}
}

func (p *painter) figure(d *dice, f figure, x, scale, index float32) {
	u := p.unit
	size := f.size * u * scale
	floats := p.place == space || p.place == underwater || p.place == heavens
	tilt := float32(0)
	y := p.ground // the foot of the figure
	switch {
	case p.place == space:
		y = float32(p.h)*(0.5+0.1*index*d.in(-1, 1)) + size/2
		tilt = d.in(-0.25, 0.25)
	case p.place == underwater && f.where != standing && f.where != built && f.where != lying:
		y = float32(p.h)*(0.5+0.12*d.in(-1, 1)) + size/2
	case p.place == heavens:
		y = float32(p.h)*(0.5+0.1*d.in(-1, 1)) + size/2
		if f.where == standing || f.where == built || f.where == lying {
			y = p.horizon + u*0.04
		}
	case f.where == flying && p.place == room:
		y = p.ground - u*0.2
	case f.where == flying:
		y = p.horizon*d.in(0.42, 0.6) + size/2 + u*0.06*index
		tilt = d.in(-0.08, 0.08)
	case f.where == floating || f.where == swimming:
		if p.place == coast { // off the rocks
			x -= p.headSide() * 0.16 * u
		}
		if p.water < float32(p.h) {
			y = p.water + (float32(p.h)-p.water)*0.42
			if p.place == coast && !p.storm {
				y = p.water + (float32(p.h)-p.water)*0.32
			}
			if p.place == mountains || p.place == river || p.place == city {
				y = p.water + (p.ground-p.water)*0.52
			}
			p.afloat(d, f, x, y, size)
			return
		}
	case f.where == built:
		y = p.ground - u*0.004
		if p.standX > 0 {
			if index == 0 || len(p.subjects) == 1 {
				x, y = p.standX, p.standY
			} else {
				y = p.ground
			}
		}
		if p.place == room {
			size *= 0.5
			y = p.ground
		}
	case p.place == coast && p.storm, p.place == coast && f.where == standing && len(p.subjects) > 1 && p.standX > 0 && p.subjects[0].where == built:
		// The storm took the beach: it stands on the rock.
		y = p.standY + u*0.03
		x = p.standX + (x-float32(p.w)/2)*0.35
		size *= 0.7
	case p.place == sea:
		y = p.water + (float32(p.h)-p.water)*0.5
		p.afloat(d, f, x, y, size)
		return
	case p.place == coast:
		y = float32(p.h) * 0.93
		// The beach is deep on the side away from the land.
		x = float32(p.w)/2 + (x-float32(p.w)/2)*0.8 + p.headSide()*-0.12*u
	default:
		y += u * 0.02 * (1 - index)
	}
	switch f.name {
	case "lighthouse":
		p.lighthouse(x, y, size)
		return
	case "windmill":
		p.windmill(d, x, y, size)
		return
	case "great-tree":
		p.shade(x, y-size*0.01, size*0.34, size*0.045, rgb{0.02, 0.02, 0.06}, 0.5)
		p.greatTree(d, f, x, y, size)
		p.blades(d, x, y, size*0.4)
		return
	case "hot-air-balloon":
		p.hotAirBalloon(d, f, x, y, size)
		return
	}
	if !floats && f.where != flying || p.place == underwater && (f.where == standing || f.where == built) {
		p.shade(x, y-u*0.004, size*0.5, size*0.075, rgb{0.02, 0.02, 0.06}, 0.55)
	}
	// A soft light behind it parts it from the background.
	back := p.light.low.mix(p.light.sun, 0.5)
	p.glow(x, y-size*0.5, size*0.95, back, 0.14+0.1*p.light.dark)
	top := y - size
	if f.body != nil && f.body.clothed {
		tilt = 0
		size *= 0.66
		p.clothes(f, x, y, size/0.66)
	} else if f.body != nil {
		p.sitting(f, x, y, size)
		size *= 0.72
	}
	p.icon(f, x, top+size/2, size, tilt, d.chance(0.5) && f.where != built && f.body == nil)
	switch f.name {
	case "fire", "candle", "jack-o-lantern", "light-bulb":
		p.lamps = append(p.lamps, lamp{x, y - size*0.5, size * 2.6, hex(0xff9f45), 0.35})
	}
	if (f.where == standing || f.where == built) && p.standX == 0 && !floats && p.place != room && p.place != city && !p.snow {
		p.blades(d, x, y, size)
	}
}

// blades of grass before a figure's feet bind it to the ground.
func (p *painter) blades(d *dice, x, y, size float32) {
	if p.place == desert || p.place == coast {
		return
	}
	v := p.grass()
	if p.place == forest {
		v = v.mix(hex(0x2f5a3a), 0.35)
	}
	for range p.many(26) {
		bx := x + size*d.in(-0.5, 0.5)
		high := p.unit * d.in(0.012, 0.034)
		c := p.air(v.times(d.in(0.62, 1.05)), 0)
		p.fill(flat(c, 1), false, []point{{bx - high*0.09, y + p.unit*0.008}, {bx + high*0.09, y + p.unit*0.008}, {bx + high*d.in(-0.5, 0.5), y - high}})
	}
}

// icon composes a drawing of the set into the picture's light.
func (p *painter) icon(f figure, cx, cy, size, tilt float32, mirrored bool) {
	side := int(size)
	if side < 2 {
		return
	}
	img := p.icons.draw(f.name, side, p.gone)
	if img == nil {
		return
	}
	if f.color != nil {
		recolor(img, *f.color)
	}
	// Night keeps enough of a subject to see it by.
	if f.where != flying && f.body == nil {
		cy += float32(margin(img)) // the drawing may leave room below its feet
	}
	light := p.light.ambient.mix(rgb{1, 1, 1}, 0.3+0.12*p.light.dark)
	sin, cos := sin(tilt), sin(tilt+1.5707963)
	reach := int(size*0.75) + 2
	p.rows(int(cy)-reach, int(cy)+reach, func(y int) {
		for x := max(0, int(cx)-reach); x < min(p.w, int(cx)+reach); x++ {
			dx, dy := float32(x)+0.5-cx, float32(y)+0.5-cy
			u, v := dx*cos+dy*sin+size/2-0.5, dy*cos-dx*sin+size/2-0.5
			if mirrored {
				u = float32(side) - 1 - u
			}
			c, a := sample(img.Pix, img.Stride, side, u, v)
			if a > 0 {
				p.over(x, y, c.mul(light), a)
			}
		}
	})
}

// margin is how many rows at the bottom of an icon are empty.
func margin(img *image.RGBA) int {
	side := img.Rect.Dy()
	for n := range side {
		row := img.Pix[(side-1-n)*img.Stride:][:4*side]
		for x := 3; x < len(row); x += 4 {
			if row[x] > 128 {
				return n
			}
		}
	}
	return 0
}

// sample reads a premultiplied image between its pixels; c is not
// premultiplied.
func sample(pix []uint8, stride, side int, u, v float32) (c rgb, a float32) {
	if u < -1 || v < -1 || u > float32(side) || v > float32(side) {
		return c, 0
	}
	ix, iy := int(u+1)-1, int(v+1)-1
	fx, fy := u-float32(ix), v-float32(iy)
	for j := range 2 {
		for i := range 2 {
			x, y := ix+i, iy+j
			if x < 0 || y < 0 || x >= side || y >= side {
				continue
			}
			w := (1 - fx + float32(i)*(2*fx-1)) * (1 - fy + float32(j)*(2*fy-1)) / 255
			q := pix[y*stride+4*x:][:4]
			c = c.add(rgb{float32(q[0]), float32(q[1]), float32(q[2])}, w)
			a += float32(q[3]) * w
		}
	}
	if a < 1.0/512 {
		return c, 0
	}
	return c.times(1 / a), min(a, 1)
}

// sitting draws a body under a head.
func (p *painter) sitting(f figure, x, y, size float32) {
	b := *f.body
	light := p.light.ambient.mix(rgb{1, 1, 1}, 0.3+0.12*p.light.dark)
	if f.color != nil {
		b.fur = *f.color
		if b.tail != (rgb{}) {
			b.tail = *f.color
		}
	}
	fur, dim, belly := b.fur.mul(light), b.fur.times(0.82).mul(light), b.belly.mul(light)
	s := size
	if b.tail != (rgb{}) {
		tail := b.tail.mul(light)
		base := point{x + s*0.2, y - s*0.06}
		tip := point{x + s*0.46, y - s*0.34}
		shape := append([]point{base}, curve(base, point{x + s*0.5, y + s*0.02}, point{x + s*0.58, y - s*0.14}, tip, 14)...)
		shape = append(shape, curve(tip, point{x + s*0.36, y - s*0.3}, point{x + s*0.32, y - s*0.2}, point{x + s*0.16, y - s*0.2}, 14)...)
		p.fill(flat(tail, 1), false, shape)
		p.fill(flat(belly, 1), false, ellipse(tip.x-s*0.012, tip.y+s*0.03, s*0.05, s*0.065))
	}
	hull := append([]point{{x - s*0.14, y - s*0.48}}, curve(point{x - s*0.14, y - s*0.48}, point{x - s*0.22, y - s*0.3}, point{x - s*0.3, y - s*0.02}, point{x - s*0.18, y}, 14)...)
	hull = append(hull, curve(point{x + s*0.18, y}, point{x + s*0.3, y - s*0.02}, point{x + s*0.22, y - s*0.3}, point{x + s*0.14, y - s*0.48}, 14)...)
	p.fill(flat(fur, 1), false, hull)
	p.fill(flat(dim, 1), false, ellipse(x-s*0.17, y-s*0.045, s*0.085, s*0.055), ellipse(x+s*0.17, y-s*0.045, s*0.085, s*0.055))
	p.fill(flat(belly, 1), false, ellipse(x, y-s*0.24, s*0.105, s*0.16))
	p.fill(flat(fur, 1), false, ellipse(x-s*0.068, y-s*0.04, s*0.052, s*0.045))
	p.fill(flat(fur, 1), false, ellipse(x+s*0.068, y-s*0.04, s*0.052, s*0.045))
	p.fill(flat(fur.times(0.94), 1), false, box(x-s*0.115, y-s*0.26, x-s*0.035, y-s*0.05), box(x+s*0.035, y-s*0.26, x+s*0.115, y-s*0.05))
}

// clothes draws a person below a bust: a gown, or arms and legs.
func (p *painter) clothes(f figure, x, y, s float32) {
	b := *f.body
	if f.color != nil {
		b.fur, b.belly = *f.color, f.color.times(0.85)
	}
	light := p.light.ambient.mix(rgb{1, 1, 1}, 0.3+0.12*p.light.dark)
	coat, legs, shoes := b.fur.mul(light), b.belly.mul(light), b.tail.mul(light)
	hip := y - s*0.36
	if b.tail == (rgb{}) {
		p.fill(flat(coat, 1), false, append([]point{{x - s*0.2, hip - s*0.02}, {x + s*0.2, hip - s*0.02}},
			append(curve(point{x + s*0.2, hip}, point{x + s*0.22, y - s*0.2}, point{x + s*0.36, y - s*0.1}, point{x + s*0.34, y}, 12),
				curve(point{x + s*0.34, y}, point{x + s*0.1, y + s*0.03}, point{x - s*0.1, y + s*0.03}, point{x - s*0.34, y}, 12)...)...))
		for _, k := range []float32{-0.5, 0.06, 0.55} {
			p.fill(flat(coat.times(0.86), 1), false, []point{{x + s*0.2*k, hip}, {x + s*(0.3*k-0.03), y}, {x + s*(0.3*k+0.05), y}})
		}
		return
	}
	for _, side := range []float32{-1, 1} {
		knee := point{x + side*s*0.13, y - s*0.16}
		foot := point{x + side*s*0.12, y - s*0.04}
		if p.place == space {
			foot.x += s * 0.06
		}
		p.fill(flat(legs, 1), false, line(point{x + side*s*0.1, hip}, knee, s*0.15, s*0.13))
		p.fill(flat(legs, 1), false, ellipse(knee.x, knee.y, s*0.065, s*0.065))
		p.fill(flat(legs, 1), false, line(knee, foot, s*0.13, s*0.12))
		p.fill(flat(shoes, 1), false, ellipse(foot.x+side*s*0.015, foot.y+s*0.012, s*0.085, s*0.042))
	}
	p.fill(flat(coat, 1), false, append([]point{{x - s*0.21, hip - s*0.03}, {x + s*0.21, hip - s*0.03}},
		append(curve(point{x + s*0.21, hip}, point{x + s*0.2, hip + s*0.1}, point{x + s*0.1, hip + s*0.13}, point{x, hip + s*0.13}, 10),
			curve(point{x, hip + s*0.13}, point{x - s*0.1, hip + s*0.13}, point{x - s*0.2, hip + s*0.1}, point{x - s*0.21, hip}, 10)...)...))
}

// afloat draws a figure in the water, with its mirror image.
func (p *painter) afloat(d *dice, f figure, x, y, size float32) {
	side := int(size)
	img := p.icons.draw(f.name, side, p.gone)
	if img == nil {
		return
	}
	if f.color != nil {
		recolor(img, *f.color)
	}
	n := p.noise("mirror " + f.name)
	light := p.light.ambient.mix(rgb{1, 1, 1}, 0.3+0.12*p.light.dark)
	mirrored := d.chance(0.5)
	// The drawings bring their own water or none: what sinks below the line goes.
	sink := size * 0.06
	switch f.name {
	case "sailboat":
		sink = size * 0.26
	case "canoe":
		sink = size * 0.4
	case "spouting-whale", "ship":
		sink = size * 0.12
	case "dolphin":
		sink = size * 0.24
	}
	deepest, clear := y+size*0.8, float32(0.62)
	if p.storm || p.rain {
		clear = 0.2 // rough water mirrors little
	}
	if p.place == coast && !p.storm { // not on the sand
		deepest = min(deepest, float32(p.h)*0.795)
	}
	p.rows(int(y), int(deepest), func(py int) {
		down := float32(py) - y
		for px := max(0, int(x-size*0.6)); px < min(p.w, int(x+size*0.6)); px++ {
			sway := n.at(float32(px)/p.unit*14, down/p.unit*60) * size * 0.045 * (0.4 + 2*down/size)
			u := float32(px) - x + size/2 + sway
			if mirrored {
				u = float32(side) - 1 - u
			}
			c, a := sample(img.Pix, img.Stride, side, u, size-sink-down*1.25)
			p.over(px, py, c.mul(light.times(0.72)).mix(p.light.mid, 0.3), a*clear*smooth(deepest-y, 0, down))
		}
	})
	p.rows(int(y-size), int(y+size*0.03), func(py int) {
		for px := max(0, int(x-size*0.6)); px < min(p.w, int(x+size*0.6)); px++ {
			u := float32(px) - x + size/2
			if mirrored {
				u = float32(side) - 1 - u
			}
			c, a := sample(img.Pix, img.Stride, side, u, float32(py)-y+size-sink)
			edge := y + size*0.012*n.at(float32(px)/p.unit*22, 5)
			p.over(px, py, c.mul(light), a*smooth(edge+1, edge-1, float32(py)))
		}
	})
	foam := hex(0xf4fafc).mul(p.light.ambient.mix(rgb{1, 1, 1}, 0.35))
	for range p.many(46) {
		off := d.in(-1, 1)
		fx, fy := x+off*size*0.46, y+size*0.014*d.in(-1, 1.4)
		p.fill(flat(foam, d.in(0.25, 0.7)), false, ellipse(fx, fy, size*d.in(0.012, 0.04), size*0.006))
	}
}

// lighthouse is a banded tower with its lamp lit, a gallery, and two beams.
func (p *painter) lighthouse(x, y, high float32) {
	l := p.light
	amb := l.ambient.mix(rgb{1, 1, 1}, 0.16)
	lit := float32(-1)
	if l.sunX > 0.5 {
		lit = 1
	}
	round := func(v rgb, half func(y float32) float32) paint {
		v = v.mul(amb)
		return func(px, py int) (rgb, float32) {
			t := (float32(px) - x) / half(float32(py)) * lit // -1 to 1 across the tower
			return v.times(0.56 + 0.5*smooth(-1, 0.5, t) - 0.12*smooth(0.6, 1, t)), 1
		}
	}
	foot, shaft := high*0.105, high*0.062 // half widths
	head := y - high*0.8                  // where the gallery is
	half := func(py float32) float32 {
		t := clamp((py-head)/(y-head), 0, 1)
		return shaft + (foot-shaft)*t*(0.55+0.45*t)
	}
	lampX, lampY := x, y-high*0.885
	dark := l.dark > 0.3 || p.storm || p.fog
	if dark {
		p.beams(lampX, lampY)
	}
	// The keeper's house, lower than the tower.
	side := -lit
	hx, hw, hh := x+side*high*0.15, high*0.105, high*0.1
	wall := hex(0xe9e4da).mul(amb)
	roof := hex(0xa8443c).mul(amb)
	p.fill(fade(wall, wall.times(0.75), y-hh, y), false, box(hx-hw, y-hh, hx+hw, y+high*0.02))
	p.fill(flat(roof, 1), false, []point{{hx - hw*1.16, y - hh}, {hx - hw*0.7, y - hh*1.75}, {hx + hw*0.7, y - hh*1.75}, {hx + hw*1.16, y - hh}})
	p.fill(flat(roof.times(0.7), 1), false, box(hx+hw*0.3, y-hh*2.15, hx+hw*0.48, y-hh*1.6))
	window := hex(0x6d8497).mul(amb)
	if dark {
		window = lampGold
		p.lamps = append(p.lamps, lamp{hx, y - hh*0.5, high * 0.2, lampGold, 0.3})
	}
	for _, off := range []float32{-0.55, 0.1} {
		p.fill(flat(window, 1), false, box(hx+hw*off, y-hh*0.72, hx+hw*(off+0.34), y-hh*0.3))
	}
	// The tower in bands.
	outline := func(from, to float32) []point {
		var leftSide, rightSide []point
		for i := range 9 {
			py := from + (to-from)*float32(i)/8
			leftSide = append(leftSide, point{x - half(py), py})
			rightSide = append(rightSide, point{x + half(py), py})
		}
		return append(leftSide, reversed(rightSide)...)
	}
	p.fill(round(hex(0xf4f1ea), half), false, outline(head, y+high*0.012))
	const bands = 3
	for i := range bands {
		from := head + (y-head)*(0.06+float32(i)*0.32)
		p.fill(round(hex(0xc8372d), half), false, outline(from, from+(y-head)*0.16))
	}
	for i := range 3 { // windows up the stairs
		py := head + (y-head)*(0.3+float32(i)*0.235)
		wx, ww := x-lit*half(py)*0.1, high*0.013
		c := hex(0x2d3945).mul(amb)
		if dark {
			c = lampGold
		}
		p.fill(flat(c, 1), false, box(wx-ww, py, wx+ww, py+high*0.036), ellipse(wx, py, ww, ww))
	}
	door := hex(0x4a3428).mul(amb)
	p.fill(flat(door, 1), false, box(x-high*0.024, y-high*0.062, x+high*0.024, y+high*0.008), ellipse(x, y-high*0.062, high*0.024, high*0.024))
	p.fill(round(hex(0x6f6a66), func(float32) float32 { return foot * 1.16 }), false, box(x-foot*1.16, y-high*0.004, x+foot*1.16, y+high*0.022))
	// The gallery.
	iron := hex(0x272c35).mul(amb.mix(rgb{1, 1, 1}, 0.2))
	wide := shaft * 1.5
	p.fill(flat(iron, 1), false, []point{{x - shaft, head + high*0.02}, {x - wide, head - high*0.004}, {x + wide, head - high*0.004}, {x + shaft, head + high*0.02}})
	p.fill(flat(iron, 1), false, box(x-wide*1.03, head-high*0.012, x+wide*1.03, head-high*0.002))
	rail := head - high*0.05
	// The lantern.
	room := shaft * 0.72
	roomTop := head - high*0.125
	glass := hex(0xa9c4d4).mul(amb)
	if dark {
		glass = hex(0xfff2c2)
	}
	p.fill(flat(glass, 1), false, box(x-room, roomTop, x+room, head-high*0.01))
	if dark {
		p.fill(flat(hex(0xffffff), 1), false, ellipse(lampX, lampY, room*0.5, room*0.62))
		p.lamps = append(p.lamps, lamp{lampX, lampY, high * 0.46, hex(0xffd98a), 0.3}, lamp{lampX, lampY, high * 0.13, hex(0xffe9b8), 0.34})
	}
	for i := range 4 {
		bx := x - room + 2*room*float32(i)/3
		p.fill(flat(iron, 1), false, box(bx-high*0.0022, roomTop, bx+high*0.0022, head-high*0.01))
	}
	p.fill(flat(iron, 1), false, box(x-room*1.2, roomTop-high*0.008, x+room*1.2, roomTop+high*0.004))
	dome := append(curve(point{x - room*1.12, roomTop}, point{x - room, roomTop - high*0.05}, point{x - room*0.4, roomTop - high*0.066}, point{x, roomTop - high*0.07}, 10),
		curve(point{x, roomTop - high*0.07}, point{x + room*0.4, roomTop - high*0.066}, point{x + room, roomTop - high*0.05}, point{x + room*1.12, roomTop}, 10)...)
	p.fill(round(hex(0xb5352c), func(float32) float32 { return room * 1.1 }), false, dome)
	p.fill(flat(iron, 1), false, ellipse(x, roomTop-high*0.074, high*0.009, high*0.009), box(x-high*0.0018, roomTop-high*0.115, x+high*0.0018, roomTop-high*0.07))
	for i := range 9 {
		bx := x - wide + 2*wide*float32(i)/8
		p.fill(flat(iron, 1), false, box(bx-high*0.0014, rail, bx+high*0.0014, head))
	}
	p.fill(flat(iron, 1), false, box(x-wide, rail, x+wide, rail+high*0.004))
}

// beams shine to both sides, through what the air holds.
func (p *painter) beams(x, y float32) {
	n := p.noise("beams")
	strength := 0.34 + 0.2*p.light.dark
	p.rows(0, p.h, func(py int) {
		for px := range p.w {
			dx, dy := (float32(px)-x)/p.unit, (float32(py)-y)/p.unit
			for side := range 2 {
				ux, tilt := dx, float32(-0.1)
				if side == 1 {
					ux, tilt = -dx, 0.13
				}
				if ux <= 0 {
					continue
				}
				across := (dy - tilt*ux) / (0.018 + ux*0.155)
				a := smooth(1, 0.15, max(across, -across)) * exp(-ux*1.5)
				if a <= 0.003 {
					continue
				}
				dust := 0.82 + 0.3*n.layers(dx*9, dy*9, 3)
				p.canvas.light(px, py, hex(0xffeab8), a*strength*dust)
			}
		}
	})
}

// greatTree stands alone: roots, boughs, and a crown of many leaves.
func (p *painter) greatTree(d *dice, f figure, x, y, high float32) {
	leaf := p.leaf(d)
	if f.color != nil {
		leaf = *f.color
	}
	lit := float32(1)
	if p.light.sunX < 0.5 {
		lit = -1
	}
	bark := p.air(hex(0x5b4332), 0)
	trunk := append([]point{{x - high*0.12, y}}, curve(point{x - high*0.12, y}, point{x - high*0.035, y - high*0.03}, point{x - high*0.05, y - high*0.2}, point{x - high*0.03, y - high*0.46}, 10)...)
	trunk = append(trunk, point{x + high*0.03, y - high*0.46})
	trunk = append(trunk, curve(point{x + high*0.03, y - high*0.46}, point{x + high*0.05, y - high*0.2}, point{x + high*0.035, y - high*0.03}, point{x + high*0.12, y}, 10)...)
	p.fill(func(px, _ int) (rgb, float32) {
		return bark.times(0.85 + 0.35*smooth(-0.06, 0.06, (float32(px)-x)/high*lit)), 1
	}, false, trunk)
	for range 6 {
		p.branch(d, point{x, y - high*0.36}, -1.57+d.in(-0.9, 0.9), high*d.in(0.14, 0.22), high*0.035, bark, 2)
	}
	crownY := y - high*0.66
	for i := range p.many(420) {
		t := float32(i) / 420 // from the dark inside to the lit outside
		a, r := d.in(0, 6.2832), sqrt(d.float())
		lx, ly := x+sin(a)*r*high*0.4, crownY+sin(a+1.5708)*r*high*0.29
		toward := (lx-x)/(high*0.4)*lit*0.5 - (ly-crownY)/(high*0.29)*0.6
		tone := 0.62 + 0.24*t + 0.3*t*toward + d.in(-0.06, 0.06)
		c := p.air(leaf.times(tone), 0)
		if p.snow && toward > 0.1 && t > 0.5 {
			c = p.air(hex(0xf3f7fc), 0)
		}
		size := high * d.in(0.026, 0.062) * (1.25 - 0.6*t)
		p.fill(flat(c, 0.96), false, ellipse(lx, ly, size, size*0.86))
		if i%64 == 0 && p.gone() {
			return
		}
	}
}

func (p *painter) windmill(d *dice, x, y, high float32) {
	amb := p.light.ambient.mix(rgb{1, 1, 1}, 0.15)
	wall, cap := hex(0xf0e8da).mul(amb), hex(0x8a4a3a).mul(amb)
	p.shade(x, y, high*0.26, high*0.035, rgb{}, 0.4)
	p.fill(func(px, _ int) (rgb, float32) {
		return wall.times(0.82 + 0.2*smooth(-0.12, 0.12, (float32(px)-x)/high)), 1
	}, false,
		[]point{{x - high*0.15, y}, {x - high*0.085, y - high*0.6}, {x + high*0.085, y - high*0.6}, {x + high*0.15, y}})
	p.fill(flat(cap, 1), false, append([]point{{x - high*0.1, y - high*0.6}}, append(curve(point{x - high*0.1, y - high*0.6}, point{x - high*0.09, y - high*0.75}, point{x + high*0.09, y - high*0.75}, point{x + high*0.1, y - high*0.6}, 16), point{x + high*0.1, y - high*0.6})...))
	p.fill(flat(hex(0x5b3d2e).mul(amb), 1), false, box(x-high*0.03, y-high*0.13, x+high*0.03, y))
	glass := hex(0x5f7d92).mul(amb)
	if p.neon() {
		glass = lampGold
	}
	p.fill(flat(glass, 1), false, box(x-high*0.02, y-high*0.34, x+high*0.02, y-high*0.27), box(x-high*0.02, y-high*0.5, x+high*0.02, y-high*0.44))
	turn := d.in(0.2, 1.3)
	hub := point{x, y - high*0.63}
	wood, cloth := hex(0x6b4a35).mul(amb), hex(0xfaf4e6).mul(amb)
	for i := range 4 {
		a := turn + float32(i)*1.5707963
		dx, dy := sin(a+1.5707963), sin(a)
		tip := point{hub.x + dx*high*0.4, hub.y + dy*high*0.4}
		at := func(t, off float32) point {
			return point{hub.x + dx*high*0.4*t - dy*high*off, hub.y + dy*high*0.4*t + dx*high*off}
		}
		p.fill(flat(cloth, 0.94), false, []point{at(0.2, 0.008), at(1, 0.008), at(1, 0.075), at(0.2, 0.06)})
		for k := range 6 {
			t := 0.2 + 0.16*float32(k)
			p.fill(flat(wood, 1), false, line(at(t, 0.004), at(t, 0.075), high*0.005, high*0.005))
		}
		p.fill(flat(wood, 1), false, line(hub, tip, high*0.016, high*0.01))
	}
	p.fill(flat(wood.times(0.7), 1), false, ellipse(hub.x, hub.y, high*0.024, high*0.024))
}

func (p *painter) hotAirBalloon(d *dice, f figure, x, y, high float32) {
	amb := p.light.ambient.mix(rgb{1, 1, 1}, 0.2)
	schemes := [][2]rgb{{hex(0xe0342f), hex(0xffd34d)}, {hex(0x2f7fd6), hex(0xf6f1e4)}, {hex(0x8a3fc2), hex(0xff9f5a)}, {hex(0x1f9e8a), hex(0xffe08a)}}
	tones := schemes[d.below(len(schemes))]
	if f.color != nil {
		tones[0] = *f.color
	}
	r := high * 0.36
	cy := y - high + r
	shape := append([]point{}, curve(point{x - r*0.3, y - high*0.22}, point{x - r*0.9, y - high*0.42}, point{x - r*1.03, cy + r*0.3}, point{x - r, cy}, 16)...)
	for i := range 33 {
		a := 3.14159265 + float32(i)/32*3.14159265
		shape = append(shape, point{x + r*sin(a+1.5707963), cy + r*sin(a)})
	}
	shape = append(shape, curve(point{x + r, cy}, point{x + r*1.03, cy + r*0.3}, point{x + r*0.9, y - high*0.42}, point{x + r*0.3, y - high*0.22}, 16)...)
	shape = append([]point{{x - r*0.3, y - high*0.22}}, shape...)
	lit := float32(1)
	if p.light.sunX < 0.5 {
		lit = -1
	}
	if p.light.dark > 0.3 {
		p.lamps = append(p.lamps, lamp{x, y - high*0.3, high * 0.6, hex(0xffb861), 0.4})
	}
	p.fill(func(px, py int) (rgb, float32) {
		fx, fy := (float32(px)-x)/r, (float32(py)-cy)/r
		wide := sqrt(max(0.02, 1-fy*fy))
		if fy > 0 {
			wide = max(0.3, 1-0.36*fy*fy*1.1)
		}
		t := clamp(fx/wide, -1, 1)
		// Gores narrow towards the sides, as on a globe.
		angle := t * (1 + 0.57*t*t) / 1.57 * 4
		gore := int(angle+100.5) & 1
		v := tones[gore].mul(amb)
		return v.times(0.72 + 0.4*smooth(-0.9, 0.6, t*lit-0.25*fy)), 1
	}, false, shape)
	rope := hex(0x4a3a2e).mul(amb)
	bx, by := high*0.06, y-high*0.1
	for _, k := range []float32{-1, -0.33, 0.33, 1} {
		p.fill(flat(rope, 1), false, line(point{x + r*0.28*k, y - high*0.22}, point{x + bx*k, by}, high*0.005, high*0.005))
	}
	p.fill(fade(hex(0xb5793f).mul(amb), hex(0x7a4a26).mul(amb), by, y), false, []point{{x - bx, by}, {x + bx, by}, {x + bx*0.86, y}, {x - bx*0.86, y}})
	p.fill(flat(hex(0x6b4020).mul(amb), 1), false, box(x-bx*1.08, by-high*0.008, x+bx*1.08, by+high*0.012))
}
