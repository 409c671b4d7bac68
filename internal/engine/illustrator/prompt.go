package illustrator

import (
	"strings"
	"unicode"
)

// A place is where a picture plays.
type place string

const (
	nowhere    place = "" // no word was known: an abstract picture
	forest     place = "forest"
	sea        place = "sea"
	coast      place = "coast"
	city       place = "city"
	mountains  place = "mountains"
	space      place = "space"
	desert     place = "desert"
	field      place = "field"
	village    place = "village"
	river      place = "river"
	room       place = "room"
	underwater place = "underwater"
	heavens    place = "heavens" // above the clouds
)

// An hour is the light of a picture.
type hour string

const (
	anyHour hour = ""
	dawn    hour = "dawn"
	day     hour = "day"
	golden  hour = "golden"
	dusk    hour = "dusk"
	night   hour = "night"
)

// A scene is what the words of a prompt ask for.
type scene struct {
	place    place
	hour     hour
	storm    bool
	rain     bool
	snow     bool
	fog      bool
	clouds   bool
	rainbow  bool
	aurora   bool
	autumn   bool
	spring   bool
	moon     bool
	stars    bool
	tint     *rgb // of the whole picture
	gray     bool
	sepia    bool
	subjects []figure
}

// A figure is one subject and, when a colour stands before its word, that.
type figure struct {
	subject
	color *rgb
}

const maxFigures = 3

var colors = map[string]rgb{
	"red": hex(0xe0342f), "crimson": hex(0xc0203a), "orange": hex(0xf2842b), "amber": hex(0xf5a524), "yellow": hex(0xf7d038),
	"gold": hex(0xe8b33a), "golden": hex(0xe8b33a), "green": hex(0x3fa34d), "emerald": hex(0x1f9d6b), "lime": hex(0x9bd13c),
	"teal": hex(0x1f9e9a), "turquoise": hex(0x2cc4bd), "cyan": hex(0x27bfe0), "blue": hex(0x2f6fe0), "azure": hex(0x3a96f0),
	"indigo": hex(0x4b3fb0), "purple": hex(0x8a3fc2), "violet": hex(0x8f4bd8), "lilac": hex(0xb48be0), "lavender": hex(0xb59be6),
	"magenta": hex(0xd836a8), "pink": hex(0xf27aa8), "white": hex(0xf4f4f2), "black": hex(0x26262c), "silver": hex(0xbcc3cc),
	"grey": hex(0x8a8f98), "gray": hex(0x8a8f98), "brown": hex(0x8a5a38),
}

var counts = map[string]int{"two": 2, "three": 3, "several": 3, "many": 3, "couple": 2, "pair": 2}

var places = vocabulary[place]{
	forest:     "forest wood woods woodland jungle rainforest grove tree pine taiga",
	sea:        "sea ocean wave open_water horizon atlantic pacific",
	coast:      "coast beach shore seaside cliff harbor harbour bay island lagoon tropical tropics seashore headland",
	city:       "city skyline town downtown skyscraper metropolis street urban building cyberpunk neon tokyo york manhattan london paris berlin bridge",
	mountains:  "mountain alps alpine peak summit hill himalaya glacier valley fjord volcano ski arctic antarctic tundra north_pole iceberg cabin",
	space:      "space galaxy nebula planet cosmos universe cosmic orbit mars saturn interstellar lunar milky_way starship black_hole asteroid",
	desert:     "desert dune sahara sand oasis canyon mesa savanna savannah wasteland pyramid",
	field:      "field meadow grassland prairie farm countryside garden park grass lawn plain pasture wheat vineyard orchard flower bloom landscape hillside steppe picnic",
	village:    "village hamlet cottage",
	river:      "river lake stream pond creek brook waterfall canal swamp wetland reflection",
	room:       "room indoor indoors inside kitchen bedroom living_room library cafe café office house_interior interior table desk window shelf sofa couch bed fireplace studio still_life museum bar restaurant coffee_shop portrait",
	underwater: "underwater reef coral seabed aquarium deep_sea undersea atlantis",
	heavens:    "above_the_clouds in_the_clouds sky heaven",
}.index()

var hours = vocabulary[hour]{
	dawn:   "dawn sunrise daybreak early_morning morning misty_morning",
	day:    "day daytime noon midday sunny sunshine afternoon bright summer daylight clear_sky",
	golden: "golden_hour autumn fall warm_light late_afternoon evening_sun",
	dusk:   "dusk sunset evening twilight sundown nightfall blue_hour",
	night:  "night midnight moonlight moonlit nighttime starry starlight dark halloween campfire fireworks",
}.index()

// What else a word says about a scene.
var effects = map[string]func(*scene){
	"storm": stormy, "stormy": stormy, "thunderstorm": stormy, "thunder": stormy, "lightning": stormy, "tempest": stormy, "hurricane": stormy,
	"rain": rainy, "rainy": rainy, "raining": rainy, "drizzle": rainy, "downpour": rainy, "wet": rainy, "umbrella": rainy, "monsoon": rainy,
	"snow": snowy, "snowy": snowy, "snowing": snowy, "winter": snowy, "blizzard": snowy, "frozen": snowy, "icy": snowy, "ice": snowy,
	"christmas": snowy, "snowfall": snowy, "arctic": snowy, "antarctic": snowy, "north pole": snowy, "glacier": snowy, "snowman": snowy,
	"fog": foggy, "foggy": foggy, "mist": foggy, "misty": foggy, "haze": foggy, "hazy": foggy, "misty morning": foggy,
	"cloud": cloudy, "cloudy": cloudy, "overcast": cloudy,
	"rainbow": func(s *scene) { s.rainbow = true },
	"aurora":  northern, "northern lights": northern,
	"autumn": autumnal, "fall": autumnal, "autumnal": autumnal, "october": autumnal, "november": autumnal, "halloween": autumnal,
	"spring": blooming, "blossom": blooming, "cherry blossom": blooming, "sakura": blooming, "flower": blooming, "april": blooming,
	"moon": moonlit, "moonlight": moonlit, "moonlit": moonlit, "full moon": moonlit,
	"star": starry, "starry": starry, "starlight": starry,
	"noir": colorless, "monochrome": colorless, "black and white": colorless, "charcoal": colorless, "grayscale": colorless,
	"sepia": aged, "vintage": aged, "old photo": aged, "antique": aged,
}

func stormy(s *scene)    { s.storm, s.rain, s.clouds = true, true, true }
func rainy(s *scene)     { s.rain, s.clouds = true, true }
func snowy(s *scene)     { s.snow = true }
func foggy(s *scene)     { s.fog = true }
func cloudy(s *scene)    { s.clouds = true }
func northern(s *scene)  { s.aurora, s.hour = true, night }
func autumnal(s *scene)  { s.autumn = true }
func blooming(s *scene)  { s.spring = true }
func moonlit(s *scene)   { s.moon, s.hour = true, night }
func starry(s *scene)    { s.stars, s.hour = true, night }
func colorless(s *scene) { s.gray = true }
func aged(s *scene)      { s.sepia = true }

// A vocabulary lists the words of each thing; _ stands between the words of a
// phrase.
type vocabulary[K comparable] map[K]string

func (v vocabulary[K]) index() map[string]K {
	words := map[string]K{}
	for k, list := range v {
		for word := range strings.FieldsSeq(list) {
			words[strings.ReplaceAll(word, "_", " ")] = k
		}
	}
	return words
}

const longestPhrase = 3 // words

// read finds what the illustrator knows in a prompt. The rest is left alone.
// The first place and the first hour count; what is missing follows from the
// subjects, else from chance.
func read(prompt string, d *dice) scene {
	var s scene
	words := strings.FieldsFunc(strings.ToLower(prompt), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsMark(r)
	})
	const farthest = 2_000 // words; no picture says more
	words = words[:min(len(words), farthest)]
	known := false
	var before *rgb
	count := 1
	for len(words) > 0 {
		used := 0
		for n := min(longestPhrase, len(words)); n > 0 && used == 0; n-- {
			phrase := strings.Join(words[:n], " ")
			for _, form := range singular(phrase) {
				if s.take(form, before, count) {
					used = n
					break
				}
			}
		}
		if used > 0 {
			known, before, count = true, nil, 1
			words = words[used:]
			continue
		}
		if c, ok := colors[words[0]]; ok {
			before, known = &c, true
			s.tint = &c
		} else if n, ok := counts[words[0]]; ok {
			count = n
		} else if !filler[words[0]] {
			before, count = nil, 1
		}
		words = words[1:]
	}
	for _, f := range s.subjects {
		if f.color != nil {
			s.tint = nil // the colour was the subject's
		}
	}
	if known {
		s.complete(d)
	}
	return s
}

var filler = map[string]bool{"little": true, "small": true, "big": true, "cute": true, "of": true, "tiny": true, "large": true, "happy": true, "old": true}

// take uses a word, if it is known.
func (s *scene) take(word string, color *rgb, count int) bool {
	found := false
	if f, ok := figures[word]; ok {
		for range count {
			if len(s.subjects) < maxFigures {
				s.subjects = append(s.subjects, figure{f, color})
			}
		}
		found = true
	}
	if p, ok := places[word]; ok {
		if s.place == nowhere || s.place == heavens {
			s.place = p
		}
		found = true
	}
	if effect, ok := effects[word]; ok {
		effect(s)
		found = true
	}
	if h, ok := hours[word]; ok {
		if s.hour == anyHour || s.hour == day {
			s.hour = h
		}
		found = true
	}
	return found
}

// complete chooses what the prompt leaves open.
func (s *scene) complete(d *dice) {
	if s.place == nowhere {
		for _, f := range s.subjects {
			if s.place = f.home; s.place != nowhere {
				break
			}
		}
	}
	if s.place == nowhere {
		s.place = []place{field, mountains, river, coast}[d.below(4)]
	}
	if s.place == sea { // what stands needs ground to stand on
		for _, f := range s.subjects {
			if f.where == standing || f.where == built {
				s.place = coast
			}
		}
	}
	if s.hour == anyHour {
		s.hour = []hour{day, golden, day, dusk, dawn}[d.below(5)]
		if s.storm {
			s.hour = dusk
		} else if s.rain || s.snow || s.rainbow {
			s.hour = day
		}
	}
	if s.snow && s.rain && !s.storm {
		s.rain = false
	}
}

// singular lists a word as it is and without the endings of English plurals.
func singular(word string) []string {
	forms := []string{word}
	if s, ok := strings.CutSuffix(word, "ies"); ok {
		forms = append(forms, s+"y")
	}
	if s, ok := strings.CutSuffix(word, "ves"); ok {
		forms = append(forms, s+"f", s+"fe")
	}
	if s, ok := strings.CutSuffix(word, "es"); ok {
		forms = append(forms, s)
	}
	if s, ok := strings.CutSuffix(word, "s"); ok {
		forms = append(forms, s)
	}
	return forms
}
