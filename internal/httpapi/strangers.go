package httpapi

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"

	"zimage/internal/account"
)

const (
	// mostStrangers is how many public requests there are at once, far more than can
	// wait for a password to be hashed; each body has publicBody at most.
	mostStrangers = 512
	// mostOfNetwork is how many of them come from one network: twice what its count
	// of attempts lets through at once. mostAround is how many come from the part of
	// the net around it, where one customer may have any number of networks.
	mostOfNetwork = 64
	mostAround    = mostStrangers / 2

	// mostFamiliar is how many more there are of browsers that were signed in here
	// before, mostOfBrowser and mostBeside how many of one and of one network: whoever
	// has an account must not fill the places of all others.
	mostFamiliar  = 64
	mostOfBrowser = 4
	mostBeside    = 16

	// mostViewers is how many fetch a picture by a link at once, as slowly as they
	// like, and the others how many of one network and of the part of the net around it.
	mostViewers          = 256
	mostViewersOfNetwork = 32
	mostViewersAround    = mostViewers / 2
)

// strangers bounds the public requests that are read or worked on. Nobody waits,
// and nobody keeps others out by being slow: when there is no room, the body that
// has been coming longest is cut off, of those who have most of them.
type strangers struct {
	anybody  hall
	familiar hall // for browsers that were signed in here before
	viewers  hall // for those who are sent a picture, so that they keep nobody else out
}

func newStrangers() strangers {
	return strangers{
		anybody:  hall{most: mostStrangers, ofNear: mostOfNetwork, ofFar: mostAround},
		familiar: hall{most: mostFamiliar, ofNear: mostOfBrowser, ofFar: mostBeside},
		viewers:  hall{most: mostViewers, ofNear: mostViewersOfNetwork, ofFar: mostViewersAround},
	}
}

// enter counts one more until it leaves; nil: there is no room. cut ends the reading
// of its body; nil: it has none.
func (l *strangers) enter(from account.Client, familiar bool, cut func()) *stranger {
	network := named(account.Network(from.Addr))
	if familiar {
		if s := l.familiar.enter(from.Device, network, cut); s != nil {
			return s
		}
	}
	return l.anybody.enter(network, named(account.Neighbourhood(from.Addr)), cut)
}

// named is empty where the address is not known: those are nobody's network.
func named(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// A hall has a bounded number of places, for all together and for those who are
// near to each other.
type hall struct {
	most, ofNear, ofFar int

	mu     sync.Mutex
	in     []*stranger // the first to come first
	groups map[string]*group
}

// A group is counted together. Its name is empty for those who are counted with
// nobody.
type group struct {
	name        string
	in, reading int
}

func (g *group) full(most int) bool { return g.name != "" && g.in >= most }

type stranger struct {
	hall      *hall
	near, far *group
	cut       func() // ends the reading; nil once the body is there
	off       bool   // it was cut off
}

// slower says of whom of two who are still read one has to go: of those who have
// more of them.
func (s *stranger) slower(than *stranger) bool {
	return cmp.Or(cmp.Compare(s.far.reading, than.far.reading), cmp.Compare(s.near.reading, than.near.reading)) > 0
}

func (h *hall) enter(near, far string, cut func()) *stranger {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &stranger{hall: h, near: h.group(near), far: h.group(far), cut: cut}
	var among func(*stranger) bool
	switch {
	case s.near.full(h.ofNear):
		among = func(one *stranger) bool { return one.near == s.near }
	case s.far.full(h.ofFar):
		among = func(one *stranger) bool { return one.far == s.far }
	case len(h.in) >= h.most:
		among = func(*stranger) bool { return true }
	}
	if among != nil {
		// Its own go first, unless others have more; of those that have as many, the
		// one that came first.
		slowest := slices.IndexFunc(h.in, func(one *stranger) bool { return one.cut != nil && one.near == s.near })
		for i, one := range h.in {
			if one.cut != nil && among(one) && (slowest < 0 || one.slower(h.in[slowest])) {
				slowest = i
			}
		}
		if slowest < 0 {
			return nil
		}
		one := h.in[slowest]
		one.off = true
		one.cut()
		h.remove(slowest)
	}
	h.add(s)
	return s
}

// group is the one of that name; a new one counts nobody and is not kept yet.
func (h *hall) group(name string) *group {
	if g := h.groups[name]; g != nil {
		return g
	}
	return &group{name: name}
}

func (h *hall) add(s *stranger) {
	if h.groups == nil {
		h.groups = map[string]*group{}
	}
	h.in = append(h.in, s)
	for _, g := range []**group{&s.near, &s.far} {
		if kept := h.groups[(*g).name]; kept != nil {
			*g = kept // one may be both
		}
		h.groups[(*g).name] = *g
		(*g).in++
	}
	if s.cut != nil {
		s.near.reading++
		s.far.reading++
	}
}

func (h *hall) remove(i int) {
	s := h.in[i]
	h.in = slices.Delete(h.in, i, i+1)
	s.read()
	for _, g := range []*group{s.near, s.far} {
		if g.in--; g.in == 0 {
			delete(h.groups, g.name)
		}
	}
}

// read says that a stranger's body is not waited for any more.
func (s *stranger) read() {
	if s.cut != nil {
		s.cut = nil
		s.near.reading--
		s.far.reading--
	}
}

// arrived says that the body is there, or will not come, and whether it was cut
// off.
func (s *stranger) arrived() (off bool) {
	s.hall.mu.Lock()
	defer s.hall.mu.Unlock()
	s.read()
	return s.off
}

func (s *stranger) leave() {
	s.hall.mu.Lock()
	defer s.hall.mu.Unlock()
	if i := slices.Index(s.hall.in, s); i >= 0 {
		s.hall.remove(i)
	}
}

// viewing gives a request that fetches a picture by a link a place among those who
// do, until release, in place of its own.
func (a *API) viewing(ctx context.Context) (release func(), err error) {
	call := callOf(ctx)
	s := a.strangers.viewers.enter(named(account.Network(call.client.Addr)), named(account.Neighbourhood(call.client.Addr)), nil)
	if s == nil {
		return nil, crowded()
	}
	call.idle()
	return s.leave, nil
}

// seat gives a public request its place. reads says that the route has a body.
func (a *API) seat(reads bool) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		if a.sit(humagin.Unwrap(hc), reads) {
			next(hc)
		}
	}
}

// sit answers, and is false, when there is no place.
func (a *API) sit(c *gin.Context, reads bool) bool {
	call := callOf(c.Request.Context())
	var cut func()
	if reads {
		// Before it can be cut off: no later deadline gives it more time.
		rc := http.NewResponseController(c.Writer)
		_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
		cut = func() { _ = rc.SetReadDeadline(time.Unix(1, 0)) }
	}
	s := a.strangers.enter(call.client, a.rooms.Accounts.Issued(call.client.Device), cut)
	if s == nil {
		a.fail(c, crowded())
		return false
	}
	call.stranger, call.leave = s, s.leave
	return true
}
