// Package e2e is the fault matrix: it starts the built commands as real
// processes on a PostgreSQL, a Redis and a MinIO of each test's own, does them
// harm, and compares every accepted request with what the database, the bucket
// and the API hold in the end, and with what a client was told that waited for it
// all the time.
//
// Nothing here sleeps to order things: a test waits for a state, and a fault
// lasts until the test ends it. The image engine is the one part that is not
// real; the tests script it.
package e2e
