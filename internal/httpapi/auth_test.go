package httpapi

import "testing"

// A page that goes on asking after the sign-out guesses nothing: who else is
// behind its address still gets in.
func TestASignedOutBrowserShutsNobodyOut(t *testing.T) {
	t.Parallel()
	bothDatabases(t, func(t *testing.T, r *rig) {
		b := r.joined()
		b.want(204, "DELETE", "/v1/session", "")
		for range 40 { // more than a network may fail
			b.want(401, "GET", "/v1/account", "")
		}
		other := &browser{rig: r}
		other.want(200, "POST", "/v1/session", eveSignIn)
		other.want(200, "GET", "/v1/account", "")

		// Tokens that nobody ever had are guesses.
		guess := &browser{rig: r, token: "zs_nonsense"}
		for range 40 {
			guess.do("GET", "/v1/account", "")
		}
		guess.want(429, "GET", "/v1/account", "")
		other.want(200, "GET", "/v1/account", "")
	})
}
