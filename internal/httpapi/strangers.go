package httpapi

import (
	"net/netip"
	"slices"
	"sync"

	"zimage/internal/account"
)

const (
	// mostStrangers is how many public requests with a body there are at once, far
	// more than can wait for a password to be hashed; each body has publicBody at
	// most.
	mostStrangers = 512
	// mostOfNetwork is how many of them come from one network: twice what its count
	// of attempts lets through at once.
	mostOfNetwork = 64
)

// strangers bounds the public requests whose bodies are read or worked on. Nobody
// waits, and nobody keeps others out by being slow: when there is no room, the body
// that has been coming longest is cut off, of the network that has most of them.
type strangers struct {
	most, ofNetwork int

	mu sync.Mutex
	in []*stranger // the first to come first
}

type stranger struct {
	from netip.Prefix
	cut  func() // ends the reading; nil once the body is there
	off  bool   // it was cut off
}

// enter counts one more until leave; nil: there is no room.
func (l *strangers) enter(from account.Client, cut func()) *stranger {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &stranger{from: account.Network(from.Addr), cut: cut}
	mine := 0
	for _, one := range l.in {
		if one.from == s.from {
			mine++
		}
	}
	crowded := s.from
	switch {
	case s.from.IsValid() && mine >= l.ofNetwork: // those without an address are nobody's network
	case len(l.in) >= l.most:
		reading := map[netip.Prefix]int{}
		for _, one := range l.in {
			if one.cut != nil {
				reading[one.from]++
			}
		}
		for _, one := range l.in { // of those that have as many, the one that came first
			if reading[one.from] > reading[crowded] {
				crowded = one.from
			}
		}
	default:
		l.in = append(l.in, s)
		return s
	}
	oldest := slices.IndexFunc(l.in, func(one *stranger) bool { return one.from == crowded && one.cut != nil })
	if oldest < 0 {
		return nil
	}
	l.in[oldest].off = true
	l.in[oldest].cut()
	l.in = append(slices.Delete(l.in, oldest, oldest+1), s)
	return s
}

// arrived says that the body is there, or will not come, and whether it was cut
// off.
func (l *strangers) arrived(s *stranger) (off bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.cut = nil
	return s.off
}

func (l *strangers) leave(s *stranger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in = slices.DeleteFunc(l.in, func(one *stranger) bool { return one == s })
}
