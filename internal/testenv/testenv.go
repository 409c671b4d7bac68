// Package testenv gives tests real parts: PostgreSQL, Redis and an S3 server
// (MinIO), each on a free loopback port, and the helpers that hand every test a
// database, a Redis or a bucket of its own; and Node.js for the clients in
// docs/examples.
//
// The launcher in cmd/parts starts what a test run shares and names it in the
// environment; a test that wants to kill a server starts a private one. A
// missing part fails the test and never skips it. Nothing but tests imports
// this package.
package testenv

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"testing"
	"time"
)

// The environment by which the launcher tells tests about the shared parts.
const (
	PostgresVariable = "ZIMAGE_TEST_POSTGRES"     // postgres://… of a superuser, on any database of the server
	S3Variable       = "ZIMAGE_TEST_S3"           // http://ACCESS:SECRET@HOST:PORT
	RedisVariable    = "ZIMAGE_TEST_REDIS_SERVER" // path of redis-server, which every test starts for itself
)

// startTimeout is how long a part may take to answer: a busy machine with two
// cores needed 10 s for PostgreSQL.
const startTimeout = time.Minute

// Eventually waits until done returns true, asking every 5 ms, and fails the
// test when within has passed. It is for what happens elsewhere; it orders
// nothing.
func Eventually(t testing.TB, within time.Duration, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %v", within)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func variable(t testing.TB, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run `make test`, or `go run ./internal/testenv/cmd/parts -- go test ./...`", name)
	}
	return v
}

// uniqueName differs from that of every other test of every other process.
func uniqueName(prefix, separator string) string {
	return fmt.Sprintf("%s%s%d%s%s", prefix, separator, os.Getpid(), separator, randomHex(6))
}

func randomHex(n int) string {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		panic(err) // the kernel's generator does not fail
	}
	return hex.EncodeToString(b)
}
