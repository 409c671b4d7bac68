package app

import (
	"io"
	stdlog "log"
	"testing"

	"zimage/internal/config"
)

// What net/http writes there holds bytes that a receiver chose.
func TestTheStandardLoggerIsSilent(t *testing.T) {
	NewLog(config.Config{}, io.Discard)
	if w := stdlog.Writer(); w != io.Discard {
		t.Errorf("it writes to %T", w)
	}
}
