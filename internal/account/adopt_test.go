package account

import (
	"context"
	"slices"
	"testing"
)

// What an account brings along fills what it does not say yet; what is not valid
// here, or somebody has, is left.
func TestPromise_G4_AnAccountTakesWhatItBringsAlong(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		ann, eve := h.user("ann@example.org"), h.user("eve@example.org")
		full := Adopted{Username: "Ann_7", Profile: []byte(`{"name":"Ann Lee"}`), Preferences: []byte(`{"width":64,"height":32,"format":"jpeg"}`)}
		adopt := func(owner string, from Adopted, want ...string) User {
			t.Helper()
			left, err := h.Adopt(ctx, owner, from)
			slices.Sort(left)
			if err != nil || !slices.Equal(left, want) {
				t.Errorf("left %v, want %v (%v)", left, want, err)
			}
			u, err := h.User(ctx, owner)
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		want := Preferences{Width: 64, Height: 32, Format: "jpeg"}
		if u := adopt(ann, full); u.Username != "Ann_7" || u.Profile.Name != "Ann Lee" || u.Preferences != want {
			t.Errorf("%+v", u)
		}
		// What it says of itself by now stays.
		if u := adopt(ann, Adopted{Username: "other", Profile: []byte(`{"name":"Other"}`)}); u.Username != "Ann_7" || u.Profile.Name != "Ann Lee" {
			t.Errorf("%+v", u)
		}
		if u := adopt(eve, full, "username"); u.Username != "" || u.Profile.Name != "Ann Lee" || u.Preferences != want {
			t.Errorf("a name that somebody has: %+v", u)
		}
		bob := h.user("bob@example.org")
		u := adopt(bob, Adopted{Username: "x\x00", Profile: []byte(`{"name":"a\nb"}`), Preferences: []byte(`{"width":"wide"}`)}, "preferences", "profile", "username")
		if u.Username != "" || u.Profile != (Profile{}) || u.Preferences != (Preferences{}) {
			t.Errorf("%+v", u)
		}
		if _, err := h.Adopt(ctx, "sub_none", full); err == nil {
			t.Error("nobody's account took it")
		}
	})
}
