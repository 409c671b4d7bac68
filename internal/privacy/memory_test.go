package privacy_test

import (
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
)

// peak is the most memory that was really in use while something was done.
func peak(do func()) (most uint64) {
	ended, measured := make(chan struct{}), make(chan struct{})
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	go func() {
		defer close(measured)
		for {
			runtime.GC()
			metrics.Read(live)
			most = max(most, live[0].Value.Uint64())
			select {
			case <-ended:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	do()
	close(ended)
	<-measured
	return most
}

// memory is peak, with the most that the process has of the machine beside it, where the
// system tells that.
func memory(do func()) (live, whole uint64) {
	ended, measured := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(measured)
		for {
			statm, _ := os.ReadFile("/proc/self/statm")
			if f := strings.Fields(string(statm)); len(f) > 1 {
				pages, _ := strconv.ParseUint(f[1], 10, 64)
				whole = max(whole, pages*uint64(os.Getpagesize())) //nolint:gosec // positive
			}
			select {
			case <-ended:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	live = peak(do)
	close(ended)
	<-measured
	return live, whole
}
