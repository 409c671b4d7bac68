// Package engine is every image engine behind one interface: what to send, how
// far it is, how to stop it, whose fault a failure is. The adapters stand in
// packages below it; the fleet here gives out their slots and sets a broken
// engine aside.
//
// An engine's own words are never logged, stored or returned: they may quote
// the prompt. They are mapped to the codes below.
package engine

import (
	"context"
	"errors"
	"time"
)

// A Request is one call for one image. Limits were checked before.
type Request struct {
	ID             string // lower-case canonical UUID, new for every call
	Model          Model
	Served         Served // how this engine serves the model
	Prompt         string
	NegativePrompt string // empty unless the model takes one
	Width          int    // pixels
	Height         int    // pixels
	Steps          int    // as the user counts them; the adapter adds Served.StepsOffset
	Guidance       float64
	Seed           int64 // 0 to 2^32-1, always chosen by us
}

// Progress within one image.
type Progress struct {
	Step, Steps int
	Estimated   bool // reckoned from the usual time: the engine tells no steps
}

// An Engine makes images, one a call. Its slots bound how many calls run at
// once; the engine itself does not.
type Engine interface {
	// Generate makes one image and returns its encoded bytes (PNG, JPEG or WebP,
	// as the engine wrote it). It returns only when the engine is really free
	// again: when ctx ends it cancels where the engine can, and otherwise waits
	// until the engine is done. Errors are *Error. progress may be called from
	// any goroutine until Generate returns.
	Generate(ctx context.Context, r Request, progress func(Progress)) ([]byte, error)
	// Check asks whether the engine answers and serves its models.
	Check(ctx context.Context) error
}

// A Fault says whose failure it is, which decides whether it is tried again.
type Fault string

// The faults.
const (
	FaultUser   Fault = "user"   // the request itself: never tried again
	FaultEngine Fault = "engine" // tried again, and counted towards setting the engine aside
	FaultOurs   Fault = "ours"   // tried again
)

// The codes of an Error. They are stable: users and metrics see them.
const (
	CodeRefused     = "refused"            // the engine's own filter refused the request
	CodeInvalid     = "invalid"            // the engine says the request is wrong, though our limits let it through
	CodeUnreachable = "engine_unreachable" // no connection, or it broke
	CodeFailed      = "engine_failed"      // it says that it failed
	CodeBusy        = "engine_busy"        // its own queue is full
	CodeTimeout     = "engine_timeout"     // no answer in time
	CodeTooLarge    = "engine_too_large"   // the answer is larger than the cap
	CodeBadImage    = "bad_image"          // the answer holds no usable image
	CodeCanceled    = "canceled"           // ctx ended
)

// An Error is a failed call, without a word of the engine's.
type Error struct {
	Fault  Fault
	Code   string
	Status int // HTTP status, when there was one
	// RetryAfter is when an engine without room wants to be asked again; 0: it did
	// not say.
	RetryAfter time.Duration
	cause      error
}

// NewError makes an Error. The cause is for errors.Is alone; it must not hold
// the engine's text.
func NewError(fault Fault, code string, status int, cause error) *Error {
	return &Error{Fault: fault, Code: code, Status: status, cause: cause}
}

func (e *Error) Error() string { return "engine: " + e.Code + " (" + string(e.Fault) + ")" }

func (e *Error) Unwrap() error { return e.cause }

// FaultOf is the fault in err's chain; an unknown error is ours.
func FaultOf(err error) Fault {
	var e *Error
	if errors.As(err, &e) {
		return e.Fault
	}
	return FaultOurs
}

// CodeOf is the code in err's chain; an unknown error is CodeFailed.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeFailed
}
