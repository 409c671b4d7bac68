package vault

import (
	"sync"
	"time"
)

const (
	cacheLife = 60 * time.Second // how long a key destroyed elsewhere may still open here
	cacheSize = 10_000           // people
)

// cache holds opened keys for cacheLife, counted from before they were read.
type cache struct {
	mu    sync.Mutex
	keys  map[string]cached
	swept time.Time
	turns uint64 // grows with every forget
}

type cached struct {
	keys   *opened
	loaded time.Time
}

func newCache() *cache { return &cache{keys: map[string]cached{}} }

// fresh is false also when the clock was set back behind the loading: then
// nobody knows how old the entry is.
func (c cached) fresh(now time.Time) bool {
	age := now.Sub(c.loaded)
	return age >= 0 && age < cacheLife
}

func (c *cache) get(subject string, now time.Time) *opened {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.keys[subject]
	if !ok {
		return nil
	}
	if !e.fresh(now) {
		delete(c.keys, subject)
		return nil
	}
	return e.keys
}

// turn is handed to put, which then knows whether anything was forgotten while
// the keys were read.
func (c *cache) turn() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turns
}

func (c *cache) put(subject string, k *opened, now time.Time, turn uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if turn != c.turns {
		return
	}
	if now.Sub(c.swept) >= cacheLife {
		c.swept = now
		for s, e := range c.keys {
			if !e.fresh(now) {
				delete(c.keys, s)
			}
		}
	}
	if len(c.keys) >= cacheSize {
		for s := range c.keys { // any one
			delete(c.keys, s)
			break
		}
	}
	c.keys[subject] = cached{keys: k, loaded: now}
}

func (c *cache) forget(subject string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turns++
	delete(c.keys, subject)
}
