package db

import (
	"container/list"
	"context"
	"sync"
)

// turns lets the writers of a SQLite file in one at a time, the urgent first and
// the others in the order in which they came. database/sql alone picks at random
// among those who wait for its one connection: in a burst of 500, some wait five
// times as long as the rest. A nil *turns lets everybody in.
type turns struct {
	mu     sync.Mutex
	taken  bool
	urgent list.List // of chan struct{}, closed when it is their turn
	others list.List
}

type urgentKey struct{}

// Urgent marks writes that are small, few and worthless when they are late, such
// as the renewal of a lease: on SQLite they need not queue behind the others.
func Urgent(ctx context.Context) context.Context {
	return context.WithValue(ctx, urgentKey{}, true)
}

// take waits for the turn. Whoever got it gives it.
func (t *turns) take(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	line := &t.others
	if ctx.Value(urgentKey{}) != nil {
		line = &t.urgent
	}
	t.mu.Lock()
	if !t.taken {
		t.taken = true
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	place := line.PushBack(mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-mine: // it came at the same moment
		t.next()
	default:
		line.Remove(place)
	}
	return ctx.Err()
}

// give ends the turn.
func (t *turns) give() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

func (t *turns) next() {
	for _, line := range []*list.List{&t.urgent, &t.others} {
		if first := line.Front(); first != nil {
			line.Remove(first)
			close(first.Value.(chan struct{}))
			return
		}
	}
	t.taken = false
}
