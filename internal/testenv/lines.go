package testenv

import (
	"bytes"
	"sync"
)

// Lines is a log that several write and a test reads.
type Lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends to it.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is all that was written until now.
func (l *Lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Reset forgets what was written.
func (l *Lines) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}
