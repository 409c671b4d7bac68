//go:build !race

package privacy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"zimage/internal/generate"
	"zimage/internal/problem"
	"zimage/internal/webhook"
)

// showing is a picture that its owner shares.
type showing struct {
	shot      *shot
	id, token string
	ends      time.Time
}

func (h *showing) owner() *soul { return h.shot.of.owner }

// told is a webhook.
type told struct {
	owner   *soul
	id      string
	path    string // where it is told
	fails   bool
	rotated time.Time // zero: it has one secret
}

// How long the secret before signs too.
const replacedSecret = 24 * time.Hour

// heard is how often which path was told of which picture's end.
type heard struct {
	mu sync.Mutex
	of map[string]int
}

func (h *heard) times(path, image string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of[path+" "+image]
}

// How long before its end a picture that was made for longer is told of.
const toldBefore = 7 * day

// receivers takes what is told, but for what is sent to /fails.
func (w *world) receivers() {
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/fails") {
			rw.WriteHeader(http.StatusInternalServerError)
			return
		}
		var said struct {
			Type string
			Data struct{ ID, Code string }
		}
		if err := json.NewDecoder(r.Body).Decode(&said); err != nil || said.Type == "image.expiring" && said.Data.Code != "" {
			w.t.Errorf("a webhook is told %+v, %v", said, err)
		}
		if said.Type == "image.expiring" {
			w.heard.mu.Lock()
			w.heard.of[r.URL.Path+" "+said.Data.ID]++
			w.heard.mu.Unlock()
		}
	}))
	w.t.Cleanup(s.Close)
	w.receiver = s.URL
}

// shows is what people let others see, and programs hear of.
func (w *world) shows(free, living func(*soul) bool) {
	ctx, t := w.t.Context(), w.t
	restricted := func(what string, s *soul, err error) bool {
		if s.restricted && problem.CodeOf(err) != problem.Forbidden {
			t.Errorf("%s has restricted the processing, and %s: %v", s.id, what, err)
		}
		if !s.restricted {
			must(t, err)
		}
		return !s.restricted
	}
	w.often("shared", 0.15, func() bool {
		p := one(w, w.pieces(), func(p *piece) bool { return p.owner.leaves.IsZero() })
		if p == nil {
			return false
		}
		i := one(w, p.images, func(i *shot) bool { return i.gone.IsZero() })
		if i == nil {
			return false
		}
		life := time.Duration(actsEvery*w.chance.IntN(30)) * day
		most := life
		if life == 0 {
			most = generate.ShareLife
		}
		h, err := w.generate.Share(ctx, p.owner.id, i.id, life)
		if !restricted("shares", p.owner, err) {
			return false
		}
		if h.ExpiresAt.After(p.ends) || h.ExpiresAt.After(w.clock.Now().Add(most)) {
			t.Errorf("a picture that ends at %v is shared from %v on for %v, until %v", p.ends, w.clock.Now(), life, h.ExpiresAt)
		}
		w.shares = append(w.shares, &showing{shot: i, id: h.ID, token: h.Token, ends: h.ExpiresAt})
		return true
	})
	w.often("ended a share", 0.03, func() bool {
		h := one(w, w.shares, func(h *showing) bool { return living(h.owner()) && h.ends.After(w.clock.Now()) && h.shot.gone.IsZero() })
		if h == nil {
			return false
		}
		if w.chance.IntN(3) == 0 {
			must(t, w.generate.EndShares(ctx, h.owner().id))
			w.shares = slices.DeleteFunc(w.shares, func(other *showing) bool { return other.owner() == h.owner() })
			return true
		}
		must(t, w.generate.EndShare(ctx, h.owner().id, h.id))
		w.shares = slices.DeleteFunc(w.shares, func(other *showing) bool { return other == h })
		return true
	})
	w.often("revoked links", 0.04, func() bool {
		s := one(w, w.people, living)
		must(t, w.generate.RevokeLinks(ctx, s.id))
		s.revoked++
		return true
	})

	mine := func(h *told) bool { return living(h.owner) }
	w.often("made a webhook", 0.08, func() bool {
		s := one(w, w.people, living)
		fails := w.chance.IntN(8) == 0
		path := fmt.Sprintf("/%s/%d", map[bool]string{true: "fails", false: "takes"}[fails], w.did["made a webhook"])
		url := w.receiver + path
		e, _, err := w.webhooks.Create(ctx, s.id, webhook.Change{URL: &url, Description: new(mark)})
		if !restricted("makes a webhook", s, err) {
			return false
		}
		w.told = append(w.told, &told{owner: s, id: e.ID, path: path, fails: fails})
		return true
	})
	w.often("was told", 0.08, func() bool {
		h := one(w, w.told, func(h *told) bool { return mine(h) && !h.fails })
		if h == nil {
			return false
		}
		_, err := w.webhooks.SendTest(ctx, h.owner.id, h.id)
		return restricted("is told", h.owner, err)
	})
	w.often("replaced a secret", 0.015, func() bool {
		h := one(w, w.told, mine)
		if h == nil {
			return false
		}
		_, _, err := w.webhooks.Rotate(ctx, h.owner.id, h.id)
		must(t, err)
		h.rotated = w.clock.Now().Truncate(time.Millisecond)
		return true
	})
	w.often("deleted a webhook", 0.01, func() bool {
		h := one(w, w.told, mine)
		if h == nil {
			return false
		}
		var log []string // goes with it
		must(t, w.db.Select(ctx, &log, `SELECT id FROM webhook_deliveries WHERE endpoint = ?`, h.id))
		must(t, w.webhooks.Delete(ctx, h.owner.id, h.id))
		for _, id := range log {
			delete(w.passing["webhook_deliveries"], id)
			for attempt := range w.passing["webhook_attempts"] {
				if strings.HasPrefix(attempt, id) {
					delete(w.passing["webhook_attempts"], attempt)
				}
			}
		}
		w.told = slices.DeleteFunc(w.told, func(other *told) bool { return other == h })
		return true
	})
}

// toldEnds looks whether the webhooks that were there at the first round at which it could
// be were told that a picture ends, and none twice.
func (w *world) toldEnds() {
	w.t.Helper()
	now := w.clock.Now()
	for _, s := range w.people {
		hooks := slices.DeleteFunc(slices.Clone(w.told), func(h *told) bool { return h.owner != s })
		if !s.living() || s.restricted || len(hooks) == 0 {
			continue
		}
		for _, p := range s.works {
			if !p.gone.IsZero() || p.life <= toldBefore || !p.ends.After(now) || p.ends.After(w.sweptAt.Add(toldBefore)) {
				continue
			}
			for _, i := range p.images {
				if i.told || !i.gone.IsZero() {
					continue
				}
				i.told = true
				for _, h := range hooks {
					if h.fails {
						continue
					}
					if n := w.heard.times(h.path, i.id); n != 1 {
						w.t.Errorf("%v before its end, %s was told %d times that %s ends", p.ends.Sub(now), h.id, n, i.id)
					}
					w.did["was told of a picture's end"]++
				}
			}
		}
	}
	w.heard.mu.Lock()
	defer w.heard.mu.Unlock()
	for what, n := range w.heard.of {
		if n > 1 {
			w.t.Errorf("%s was told %d times", what, n)
		}
	}
}

// shown looks whether a stranger sees a shared picture: until the share ends, and no
// longer than its owner lets it be and it is there.
func (w *world) shown(h *showing) {
	w.t.Helper()
	now, s, p := w.clock.Now(), h.owner(), h.shot.of
	want := s.living() && !s.restricted && h.ends.After(now) && h.shot.gone.IsZero() && p.gone.IsZero() && p.ends.After(now)
	if _, err := w.generate.Shared(w.t.Context(), h.token); (err == nil) != want || err != nil && problem.CodeOf(err) != problem.NotFound {
		w.t.Errorf("%v from its end the share %s is shown: %v, want %v", now.Sub(h.ends), h.id, err, want)
	}
}

// compareTold looks at what people share, at their webhooks, and how often they revoked
// their links.
func (w *world) compareTold() {
	w.t.Helper()
	rows := func(query string) (rows []string) {
		must(w.t, w.db.Select(w.t.Context(), &rows, query))
		return rows
	}
	w.shares = slices.DeleteFunc(w.shares, func(h *showing) bool {
		if !h.shot.gone.IsZero() { // a share goes with its picture
			w.shown(h)
		}
		return !h.ends.After(w.sweptAt) || !h.shot.gone.IsZero() || h.owner().erased
	})
	w.same("shares", rows(`SELECT owner || ' ' || id FROM shares`), func(s *soul) (ids []string) {
		for _, h := range w.shares {
			if h.owner() == s {
				ids = append(ids, s.id+" "+h.id)
			}
		}
		return ids
	})
	for range 2 {
		if h := one(w, w.shares, func(*showing) bool { return true }); h != nil {
			w.shown(h)
		}
	}
	w.same("link epochs", rows(`SELECT owner || ' ' || epoch FROM link_epochs`), func(s *soul) []string {
		if s.revoked == 0 {
			return nil
		}
		return []string{fmt.Sprint(s.id, " ", s.revoked)}
	})
	w.told = slices.DeleteFunc(w.told, func(h *told) bool { return h.owner.erased })
	hooks := func(ok func(*told) bool) func(s *soul) []string {
		return func(s *soul) (ids []string) {
			for _, h := range w.told {
				if h.owner == s && ok(h) {
					ids = append(ids, s.id+" "+h.id)
				}
			}
			return ids
		}
	}
	w.same("webhooks", rows(`SELECT owner || ' ' || id FROM webhook_endpoints WHERE once = 0`), hooks(func(*told) bool { return true }))
	w.same("replaced secrets", rows(`SELECT owner || ' ' || id FROM webhook_endpoints WHERE old_secret IS NOT NULL`), hooks(func(h *told) bool {
		return !h.rotated.IsZero() && h.rotated.Add(replacedSecret).After(w.sweptAt)
	}))
	w.same("webhooks of generations", rows(`SELECT owner FROM webhook_endpoints WHERE once = 1`), func(s *soul) []string {
		if !s.once {
			return nil
		}
		return []string{s.id}
	})
}
