package jobs

import (
	"fmt"
	"sync"
)

// shared lets those who want the same thing of the database at the same time ask
// together. The first asks at once; those who come while that is on its way ask as
// one when it is back. So nobody waits for company, and the more there is to do, the
// less each costs.
type shared[In, Out any] struct {
	// all is given one to maxTogether wishes and sets what each came to; its error,
	// or its panic, is everybody's. It runs on anybody's goroutine and everybody waits
	// for it, so it bounds its own time, and shortly.
	all func([]*wish[In, Out]) error

	mu      sync.Mutex
	waiting []*wish[In, Out]
	asking  bool
}

// wish is what one of them wants, and what it came to.
type wish[In, Out any] struct {
	in      In
	out     Out
	err     error
	granted chan struct{} // closed when out or err is there
}

// maxTogether bounds how many ask as one, and with it the size of a statement.
const maxTogether = 64

// ask has in answered, perhaps together with others'.
func (s *shared[In, Out]) ask(in In) (Out, error) {
	mine := &wish[In, Out]{in: in, granted: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, mine)
	first := !s.asking
	s.asking = true
	s.mu.Unlock()
	if first {
		s.round()
	}
	<-mine.granted
	return mine.out, mine.err
}

// round asks for those who wait now, and sees to it that those who came meanwhile
// are next.
func (s *shared[In, Out]) round() {
	s.mu.Lock()
	n := min(len(s.waiting), maxTogether)
	wishes := s.waiting[:n:n]
	s.waiting = s.waiting[n:]
	s.mu.Unlock()
	err := recovered(func() error { return s.all(wishes) })
	for _, w := range wishes {
		w.err = err
		close(w.granted)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking = len(s.waiting) > 0; s.asking {
		go s.round()
	}
}

// recovered makes a panic an error, which tells its type alone: whoever waits for f
// would otherwise wait forever.
func recovered(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("jobs: panic of type %T", p)
		}
	}()
	return f()
}
