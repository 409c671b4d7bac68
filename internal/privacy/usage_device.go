package privacy

import "strings"

// A word that a browser or system is known by, and what we call it.
type knownBy struct{ word, name string }

// The more special come first: most browsers also name those that they descend
// from.
var (
	browsers = []knownBy{
		{"Edg", "Edge"}, {"OPR/", "Opera"}, {"SamsungBrowser/", "Samsung Internet"}, {"Vivaldi/", "Vivaldi"}, {"YaBrowser/", "Yandex"},
		{"Firefox/", "Firefox"}, {"FxiOS/", "Firefox"}, {"CriOS/", "Chrome"}, {"Chromium/", "Chromium"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"},
	}
	systems = []knownBy{
		{"iPhone", "iOS"}, {"iPad", "iPadOS"}, {"Android", "Android"}, {"CrOS", "ChromeOS"}, {"Windows", "Windows"},
		{"Macintosh", "macOS"}, {"Mac OS X", "macOS"}, {"Linux", "Linux"}, {"BSD", "BSD"},
	}
	programs = []knownBy{
		{"curl/", "curl"}, {"Wget/", "Wget"}, {"python", "Python"}, {"Python", "Python"}, {"Go-http-client/", "Go"}, {"okhttp/", "OkHttp"},
		{"node", "Node.js"}, {"axios/", "Node.js"}, {"Java/", "Java"}, {"PostmanRuntime/", "Postman"}, {"zimage", "zimage"},
	}
)

func nameOf(agent string, known []knownBy) string {
	for _, k := range known {
		if strings.Contains(agent, k.word) {
			return k.name
		}
	}
	return ""
}

// deviceOf says of what kind a device is, by what its browser calls itself: words
// of ours alone, whatever it says.
func deviceOf(agent string) (device, browser, system string) {
	if !strings.HasPrefix(agent, "Mozilla/") {
		if browser = nameOf(agent, programs); browser != "" {
			return "program", browser, nameOf(agent, systems)
		}
		return "unknown", "", ""
	}
	browser, system = nameOf(agent, browsers), nameOf(agent, systems)
	switch {
	case system == "iPadOS", system == "Android" && !strings.Contains(agent, "Mobile"):
		device = "tablet"
	case system == "iOS", system == "Android", strings.Contains(agent, "Mobile"):
		device = "phone"
	case system != "":
		device = "computer"
	default:
		device = "unknown"
	}
	return device, browser, system
}
