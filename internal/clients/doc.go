// Package clients is where the service meets the programs of others: its tests
// run what docs/api.md tells and what docs/examples holds, in JavaScript and
// Go, against the service as `zimage up` starts it, on embedded parts.
package clients
