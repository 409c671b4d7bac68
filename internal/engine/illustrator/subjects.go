package illustrator

import "strings"

// A stance is where in a picture a subject belongs.
type stance int

const (
	standing stance = iota // on the ground
	flying
	floating // on water
	swimming // under water, else jumping out of it
	built    // a building: large, on the ground, in the middle distance
	lying    // a thing on the table of a room, else on the ground
)

// A subject is something that a picture can be of.
type subject struct {
	name  string // of its drawing
	where stance
	size  float32 // of the picture's shorter side
	home  place   // when the prompt names none
	body  *body   // where the icon is a head alone
}

// A body is drawn sitting below a head.
type body struct {
	fur, belly, tail rgb
	clothed          bool // a person's: belly is what the legs wear
}

// All that is known, each with the words for it.
var known = []struct {
	subject
	words string
}{
	{subject{"lighthouse", built, 0.54, coast, nil}, "lighthouse light_house beacon"},
	{subject{"hot-air-balloon", flying, 0.36, mountains, nil}, "hot_air_balloon air_balloon"},
	{subject{"great-tree", built, 0.6, field, nil}, "lone_tree lonely_tree big_tree old_tree ancient_tree giant_tree single_tree oak oak_tree maple maple_tree willow tree_of_life treehouse"},
	{subject{"windmill", built, 0.5, field, nil}, "windmill mill"},

	{subject{"fox", standing, 0.32, forest, &body{hex(0xff822d), hex(0xfff1e0), hex(0xff822d), false}}, "fox vixen"},
	{subject{"wolf", standing, 0.34, forest, &body{hex(0x8c8c93), hex(0xd6d6dc), hex(0x8c8c93), false}}, "wolf husky"},
	{subject{"bear", standing, 0.36, forest, &body{hex(0x8d5a45), hex(0xb9836a), rgb{}, false}}, "bear grizzly"},
	{subject{"polar-bear", standing, 0.36, mountains, &body{hex(0xf1f1f3), hex(0xffffff), rgb{}, false}}, "polar_bear"},
	{subject{"panda", standing, 0.36, forest, &body{hex(0x3a3346), hex(0xf4f4f4), rgb{}, false}}, "panda"},
	{subject{"lion", standing, 0.36, desert, &body{hex(0xe9a33c), hex(0xffd07a), hex(0xe9a33c), false}}, "lion lioness"},
	{subject{"koala", standing, 0.32, forest, &body{hex(0x8a8a90), hex(0xd0d0d6), rgb{}, false}}, "koala"},
	{subject{"raccoon", standing, 0.3, forest, &body{hex(0x8a8a90), hex(0xcfcfd4), hex(0x55555c), false}}, "raccoon"},
	{subject{"frog", standing, 0.24, river, &body{hex(0x22c55e), hex(0xc9f5a8), rgb{}, false}}, "frog toad"},
	{subject{"robot", standing, 0.36, city, &body{hex(0x9b9bab), hex(0x5fd0ef), rgb{}, false}}, "robot android cyborg droid"},

	{subject{"cat", standing, 0.3, room, nil}, "cat kitten kitty tabby"},
	{subject{"black-cat", standing, 0.3, room, nil}, "black_cat witch_cat"},
	{subject{"dog", standing, 0.32, field, nil}, "dog puppy hound corgi labrador"},
	{subject{"rabbit", standing, 0.26, field, nil}, "rabbit bunny hare"},
	{subject{"deer", standing, 0.36, forest, nil}, "deer stag elk moose reindeer"},
	{subject{"horse", standing, 0.4, field, nil}, "horse pony stallion mare"},
	{subject{"unicorn", standing, 0.42, forest, &body{hex(0xf3eefb), hex(0xffffff), hex(0xff8ff8), false}}, "unicorn"},
	{subject{"tiger", standing, 0.36, forest, nil}, "tiger"},
	{subject{"leopard", standing, 0.34, forest, nil}, "leopard cheetah jaguar panther"},
	{subject{"elephant", standing, 0.42, desert, nil}, "elephant"},
	{subject{"mammoth", standing, 0.44, mountains, nil}, "mammoth"},
	{subject{"giraffe", standing, 0.46, desert, nil}, "giraffe"},
	{subject{"zebra", standing, 0.36, desert, nil}, "zebra"},
	{subject{"camel", standing, 0.4, desert, nil}, "camel dromedary"},
	{subject{"llama", standing, 0.36, mountains, nil}, "llama alpaca"},
	{subject{"goat", standing, 0.3, mountains, nil}, "goat"},
	{subject{"ewe", standing, 0.28, field, nil}, "sheep lamb ewe"},
	{subject{"cow", standing, 0.36, field, nil}, "cow bull cattle calf"},
	{subject{"pig", standing, 0.3, field, nil}, "pig piglet"},
	{subject{"rooster", standing, 0.26, village, nil}, "rooster chicken hen cock"},
	{subject{"hedgehog", standing, 0.22, forest, nil}, "hedgehog porcupine"},
	{subject{"chipmunk", standing, 0.24, forest, nil}, "squirrel chipmunk"},
	{subject{"mouse", standing, 0.18, room, nil}, "mouse rat mice hamster"},
	{subject{"monkey", standing, 0.3, forest, nil}, "monkey ape chimpanzee"},
	{subject{"gorilla", standing, 0.36, forest, nil}, "gorilla"},
	{subject{"kangaroo", standing, 0.36, desert, nil}, "kangaroo wallaby"},
	{subject{"bison", standing, 0.38, field, nil}, "bison buffalo"},
	{subject{"otter", floating, 0.24, river, nil}, "otter"},
	{subject{"penguin", standing, 0.26, mountains, nil}, "penguin"},
	{subject{"peacock", standing, 0.3, field, nil}, "peacock"},
	{subject{"snail", standing, 0.2, forest, nil}, "snail"},
	{subject{"snake", standing, 0.26, desert, nil}, "snake serpent cobra python"},
	{subject{"lizard", standing, 0.22, desert, nil}, "lizard gecko salamander"},
	{subject{"crocodile", standing, 0.34, river, nil}, "crocodile alligator"},
	{subject{"t-rex", standing, 0.46, forest, nil}, "t_rex dinosaur tyrannosaurus trex rex"},
	{subject{"sauropod", standing, 0.5, forest, nil}, "sauropod brontosaurus diplodocus"},
	{subject{"dragon", flying, 0.44, mountains, nil}, "dragon wyvern"},
	{subject{"turtle", standing, 0.24, coast, nil}, "turtle tortoise"},
	{subject{"crab", standing, 0.24, coast, nil}, "crab"},
	{subject{"flamingo", standing, 0.32, river, nil}, "flamingo heron crane"},
	{subject{"duck", floating, 0.2, river, nil}, "duck duckling"},
	{subject{"swan", floating, 0.24, river, nil}, "swan"},
	{subject{"goose", standing, 0.26, river, nil}, "goose geese"},

	{subject{"owl", flying, 0.24, forest, nil}, "owl"},
	{subject{"eagle", flying, 0.26, mountains, nil}, "eagle hawk falcon bird_of_prey"},
	{subject{"dove", flying, 0.26, heavens, nil}, "dove pigeon bird seagull gull"},
	{subject{"parrot", flying, 0.24, forest, nil}, "parrot macaw"},
	{subject{"bat", flying, 0.2, forest, nil}, "bat vampire"},
	{subject{"butterfly", flying, 0.2, field, nil}, "butterfly moth"},
	{subject{"honeybee", flying, 0.18, field, nil}, "bee honeybee bumblebee wasp"},

	{subject{"dolphin", swimming, 0.34, sea, nil}, "dolphin"},
	{subject{"spouting-whale", swimming, 0.4, sea, nil}, "whale"},
	{subject{"shark", swimming, 0.36, underwater, nil}, "shark"},
	{subject{"octopus", swimming, 0.32, underwater, nil}, "octopus kraken"},
	{subject{"squid", swimming, 0.32, underwater, nil}, "squid"},
	{subject{"jellyfish", swimming, 0.3, underwater, nil}, "jellyfish medusa"},
	{subject{"tropical-fish", swimming, 0.24, underwater, nil}, "fish clownfish goldfish koi"},

	{subject{"astronaut", flying, 0.46, space, &body{hex(0xe1d8ec), hex(0xcdc4d6), hex(0xb4acbc), true}}, "astronaut cosmonaut spaceman"},
	{subject{"rocket", flying, 0.36, space, nil}, "rocket spaceship spacecraft space_shuttle starship"},
	{subject{"flying-saucer", flying, 0.32, field, nil}, "ufo flying_saucer saucer alien aliens spaceship"},
	{subject{"satellite", flying, 0.26, space, nil}, "satellite space_station"},
	{subject{"airplane", flying, 0.28, heavens, nil}, "airplane plane aeroplane jet aircraft"},
	{subject{"helicopter", flying, 0.3, city, nil}, "helicopter chopper"},
	{subject{"balloon", flying, 0.26, heavens, nil}, "balloon"},
	{subject{"kite", flying, 0.26, field, nil}, "kite"},

	{subject{"sailboat", floating, 0.34, sea, nil}, "sailboat boat yacht sail sailing_ship pirate_ship galleon"},
	{subject{"ship", floating, 0.38, sea, nil}, "ship ferry cruise_ship steamer"},
	{subject{"canoe", floating, 0.28, river, nil}, "canoe kayak rowboat raft gondola"},

	{subject{"automobile", standing, 0.34, city, nil}, "car automobile vehicle sedan sports_car"},
	{subject{"bus", standing, 0.34, city, nil}, "bus van"},
	{subject{"tram", standing, 0.34, city, nil}, "tram streetcar"},
	{subject{"bicycle", standing, 0.3, village, nil}, "bicycle bike cyclist"},
	{subject{"motorcycle", standing, 0.3, city, nil}, "motorcycle motorbike"},
	{subject{"tractor", standing, 0.32, field, nil}, "tractor"},
	{subject{"locomotive", standing, 0.36, mountains, nil}, "train locomotive steam_train railway"},
	{subject{"tent", standing, 0.3, mountains, nil}, "tent camping camp"},
	{subject{"fire", standing, 0.2, forest, nil}, "fire campfire bonfire flame"},

	{subject{"castle", built, 0.46, mountains, nil}, "castle fortress palace"},
	{subject{"church", built, 0.4, village, nil}, "church chapel cathedral"},
	{subject{"house-with-garden", built, 0.36, village, nil}, "house home cottage cabin"},
	{subject{"hut", built, 0.32, coast, nil}, "hut shack"},
	{subject{"ferris-wheel", built, 0.5, city, nil}, "ferris_wheel fairground carnival amusement_park"},
	{subject{"statue-of-liberty", built, 0.5, city, nil}, "statue_of_liberty statue"},
	{subject{"moai", built, 0.36, coast, nil}, "moai easter_island"},
	{subject{"fountain", standing, 0.32, city, nil}, "fountain"},
	{subject{"carousel-horse", standing, 0.34, city, nil}, "carousel merry_go_round"},
	{subject{"snowman", standing, 0.34, field, nil}, "snowman"},
	{subject{"christmas-tree", standing, 0.4, room, nil}, "christmas_tree"},
	{subject{"palm-tree", built, 0.44, coast, nil}, "palm palm_tree"},
	{subject{"cactus", standing, 0.34, desert, nil}, "cactus"},
	{subject{"mushroom", standing, 0.24, forest, nil}, "mushroom toadstool"},
	{subject{"sunflower", standing, 0.3, field, nil}, "sunflower"},
	{subject{"rose", standing, 0.28, field, nil}, "rose"},
	{subject{"tulip", standing, 0.28, field, nil}, "tulip"},
	{subject{"ghost", flying, 0.28, forest, nil}, "ghost spirit phantom"},
	{subject{"jack-o-lantern", standing, 0.26, field, nil}, "pumpkin jack_o_lantern"},
	{subject{"skull", lying, 0.24, desert, nil}, "skull"},

	{subject{"prince", standing, 0.42, village, &body{hex(0x2f6fe0), hex(0x3b2b4f), hex(0x2a1d3a), true}}, "prince king"},
	{subject{"princess", standing, 0.42, village, &body{hex(0x7d45b8), hex(0x7d45b8), rgb{}, true}}, "princess queen"},
	{subject{"ninja", standing, 0.42, city, &body{hex(0x321b41), hex(0x2a1638), hex(0x1b0f26), true}}, "ninja samurai warrior"},
	{subject{"person-walking", standing, 0.32, city, nil}, "person man woman hiker walker traveler traveller wanderer people human girl boy child"},
	{subject{"person-surfing", floating, 0.32, sea, nil}, "surfer surfing"},
	{subject{"snowboarder", standing, 0.3, mountains, nil}, "snowboarder skier skiing"},
	{subject{"woman-in-lotus-position", standing, 0.3, field, nil}, "yoga meditation buddha monk"},

	{subject{"red-apple", lying, 0.2, room, nil}, "apple"},
	{subject{"strawberry", lying, 0.2, room, nil}, "strawberry"},
	{subject{"pizza", lying, 0.28, room, nil}, "pizza"},
	{subject{"birthday-cake", lying, 0.3, room, nil}, "cake birthday_cake birthday"},
	{subject{"hot-beverage", lying, 0.24, room, nil}, "coffee tea cup cup_of_coffee cup_of_tea mug espresso cocoa"},
	{subject{"teapot", lying, 0.26, room, nil}, "teapot kettle"},
	{subject{"potted-plant", lying, 0.3, room, nil}, "plant potted_plant houseplant"},
	{subject{"bouquet", lying, 0.3, room, nil}, "bouquet bunch_of_flowers"},
	{subject{"books", lying, 0.26, room, nil}, "book novel"},
	{subject{"candle", lying, 0.24, room, nil}, "candle"},
	{subject{"crystal-ball", lying, 0.26, room, nil}, "crystal_ball wizard witch magic"},
	{subject{"teddy-bear", lying, 0.3, room, nil}, "teddy_bear teddy toy"},
	{subject{"guitar", lying, 0.34, room, nil}, "guitar music"},
	{subject{"telescope", standing, 0.32, mountains, nil}, "telescope astronomer"},
	{subject{"camera", lying, 0.24, room, nil}, "camera"},
	{subject{"hourglass-done", lying, 0.26, room, nil}, "hourglass clock"},
	{subject{"light-bulb", lying, 0.26, room, nil}, "light_bulb lamp idea"},
	{subject{"old-key", lying, 0.22, room, nil}, "key"},
	{subject{"crown", lying, 0.26, room, nil}, "crown"},
	{subject{"gem-stone", lying, 0.26, room, nil}, "diamond gem jewel crystal"},
	{subject{"red-heart", flying, 0.28, heavens, nil}, "heart love"},
	{subject{"wrapped-gift", lying, 0.26, room, nil}, "gift present"},
	{subject{"umbrella", standing, 0.3, city, nil}, "umbrella parasol"},
}

var figures = func() map[string]subject {
	words := map[string]subject{}
	for _, k := range known {
		for word := range strings.FieldsSeq(k.words) {
			word = strings.ReplaceAll(word, "_", " ")
			if _, taken := words[word]; !taken {
				words[word] = k.subject
			}
		}
	}
	return words
}()
