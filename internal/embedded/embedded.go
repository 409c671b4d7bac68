// Package embedded is what `zimage up` brings along so that a newcomer needs
// nothing but Go: a Redis inside the process, and the lock that makes the
// process the only one on its data folder.
//
// It keeps nothing: the in-process Redis only rings, and ends with the process.
// The separate roles never use it.
package embedded

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/alicebob/miniredis/v2"
)

// Redis starts one on a free loopback port and returns its address, for
// config.RedisOptions. The address holds a random password, since every other
// user of the machine reaches the port too. stop ends it.
func Redis() (address string, stop func(), err error) {
	server := miniredis.NewMiniRedis()
	password := rand.Text()
	server.RequireAuth(password) // before the port is open
	if err := server.Start(); err != nil {
		return "", nil, fmt.Errorf("start the in-process redis: %w", err)
	}
	// Without this its keys never expire: it was made for tests that turn the
	// clock themselves.
	server.ClockTTL(true)
	u := url.URL{Scheme: "redis", User: url.UserPassword("", password), Host: server.Addr()}
	return u.String(), server.Close, nil
}

// ErrRunning says that another process holds the lock.
var ErrRunning = errors.New("already running")

// Lock makes this process the only one that holds the file at path, which it
// creates with its folder where missing. The system gives the lock back when
// the process ends, however it ends; unlock gives it back before. The error is
// ErrRunning when another holds it.
func Lock(path string) (unlock func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := lock(f); err != nil {
		_ = f.Close()
		if errors.Is(err, ErrRunning) {
			return nil, fmt.Errorf("%w on %s: stop that process, or give this one another ZIMAGE_DATA", ErrRunning, filepath.Dir(path))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The file stays when the lock goes: who removed it could take it from a
	// process that has just locked it.
	return f.Close, nil
}
