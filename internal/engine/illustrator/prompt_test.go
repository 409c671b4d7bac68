package illustrator

import (
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	t.Parallel()
	tests := []struct {
		prompt string
		place  place
		hour   hour
		names  []string
		also   func(scene) bool
	}{
		{"a lighthouse in a storm at night", coast, night, []string{"lighthouse"}, func(s scene) bool { return s.storm && s.rain }},
		{"Mountains at SUNSET", mountains, dusk, nil, nil},
		{"two cats and a dog", room, "", []string{"cat", "cat", "dog"}, nil},
		{"wolves, foxes and cherries", forest, "", []string{"wolf", "fox"}, nil},
		{"a red fox in the snow, morning", forest, dawn, []string{"fox"}, func(s scene) bool {
			return s.snow && s.tint == nil && s.subjects[0].color != nil && *s.subjects[0].color == colors["red"]
		}},
		{"a polar bear on an iceberg", mountains, "", []string{"polar-bear"}, nil},
		{"a hot air balloon over the desert, golden hour", desert, golden, []string{"hot-air-balloon"}, nil},
		{"northern lights", "", night, nil, func(s scene) bool { return s.aurora }},
		{"an astronaut riding a horse", space, "", []string{"astronaut", "horse"}, nil},
		{"a castle by the sea", coast, "", []string{"castle"}, nil},
		{"pink", "", "", nil, func(s scene) bool { return s.tint != nil }},
		{"black and white photograph of a tram", city, "", []string{"tram"}, func(s scene) bool { return s.gray }},
		{"five elephants, five giraffes, five zebras, five lions", desert, "", []string{"elephant", "giraffe", "zebra"}, nil},
		{"qwertz 12345 !!", nowhere, "", nil, func(s scene) bool { return s.place == nowhere }},
		{"夜の灯台", nowhere, "", nil, func(s scene) bool { return s.place == nowhere }},
		{strings.Repeat("very ", 100_000) + "cat", nowhere, "", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.prompt[:min(40, len(tt.prompt))], func(t *testing.T) {
			t.Parallel()
			s := read(tt.prompt, &dice{1})
			var names []string
			for _, f := range s.subjects {
				names = append(names, f.name)
			}
			if tt.place != "" && s.place != tt.place || tt.hour != "" && s.hour != tt.hour || !slices.Equal(names, tt.names) {
				t.Errorf("place %q, hour %q, subjects %v; want %q, %q, %v", s.place, s.hour, names, tt.place, tt.hour, tt.names)
			}
			if tt.also != nil && !tt.also(s) {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Every word leads to a subject that can be drawn, and every icon is used.
func TestSubjects(t *testing.T) {
	t.Parallel()
	ic, err := openIcons()
	if err != nil {
		t.Fatal(err)
	}
	special := map[string]bool{"lighthouse": true, "windmill": true, "great-tree": true, "hot-air-balloon": true}
	used := map[string]bool{}
	for _, k := range known {
		used[k.name] = true
		if k.size <= 0 || k.size > 0.6 || k.home == nowhere {
			t.Errorf("%s: size %v, home %q", k.name, k.size, k.home)
		}
		if special[k.name] {
			continue
		}
		img := ic.draw(k.name, 64, func() bool { return false })
		if img == nil {
			t.Errorf("%s cannot be drawn", k.name)
			continue
		}
		covered := 0
		for i := 3; i < len(img.Pix); i += 4 {
			if img.Pix[i] > 0 {
				covered++
			}
		}
		if covered < 64*64/8 {
			t.Errorf("%s covers %d of %d pixels", k.name, covered, 64*64)
		}
	}
	for name := range ic.svg {
		if !used[name] {
			t.Errorf("icon %s has no word", name)
		}
	}
	for word, f := range figures {
		if strings.ToLower(word) != word || f.name == "" {
			t.Errorf("word %q", word)
		}
	}
	const most = 400_000
	if len(iconFile) > most {
		t.Errorf("the icons take %d bytes", len(iconFile))
	}
}

func TestRecolor(t *testing.T) {
	t.Parallel()
	ic, err := openIcons()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"automobile", "balloon", "elephant"} {
		img := ic.draw(name, 64, func() bool { return false })
		recolor(img, colors["blue"])
		blue, other := 0, 0
		for i := 0; i < len(img.Pix); i += 4 {
			if p := img.Pix[i : i+4]; p[3] == 255 && max(p[0], p[1], p[2])-min(p[0], p[1], p[2]) > 60 {
				if p[2] > p[0] && p[2] >= p[1] {
					blue++
				} else {
					other++
				}
			}
		}
		if blue < 2*other || blue < 100 {
			t.Errorf("blue %s: %d blue pixels and %d others", name, blue, other)
		}
	}
}
