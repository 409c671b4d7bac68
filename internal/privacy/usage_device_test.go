package privacy

import "testing"

// Only words of ours are kept of what a browser calls itself.
func TestDevicesAreKindsOfOurs(t *testing.T) {
	t.Parallel()
	const webkit = "AppleWebKit/605.1.15 (KHTML, like Gecko) "
	for agent, want := range map[string][3]string{
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0":                                               {"computer", "Firefox", "Windows"},
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0":  {"computer", "Edge", "Windows"},
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) " + webkit + "Version/17.5 Safari/605.1.15":                                        {"computer", "Safari", "macOS"},
		"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36":                 {"computer", "Chrome", "ChromeOS"},
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36 OPR/111.0.0.0":            {"computer", "Opera", "Linux"},
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) " + webkit + "CriOS/126.0 Mobile/15E148 Safari/604.1":                    {"phone", "Chrome", "iOS"},
		"Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) " + webkit + "Version/17.5 Mobile/15E148 Safari/604.1":                            {"tablet", "Safari", "iPadOS"},
		"Mozilla/5.0 (Linux; Android 14; SM-X710) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/25.0 Chrome/121.0 Safari/537.36": {"tablet", "Samsung Internet", "Android"},
		"Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36":          {"phone", "Chrome", "Android"},
		"curl/8.5.0":                   {"program", "curl", ""},
		"python-requests/2.32":         {"program", "Python", ""},
		"Go-http-client/2.0":           {"program", "Go", ""},
		"Mozilla/5.0 my name is Ann":   {"unknown", "", ""},
		"Ann's own thing":              {"unknown", "", ""},
		"":                             {"unknown", "", ""},
		"Mozilla/5.0 \x00\xff Mobile;": {"phone", "", ""},
	} {
		device, browser, system := deviceOf(agent)
		if got := [3]string{device, browser, system}; got != want {
			t.Errorf("%q: %q, want %q", agent, got, want)
		}
	}
}
