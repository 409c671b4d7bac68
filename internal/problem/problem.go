// Package problem holds the one error type whose words are safe to show to a
// caller. Everything else that goes wrong is an ordinary error, which the doors
// answer as Internal without a word of its text.
//
// It never knows about HTTP: the table from code to status is in httpapi.
package problem

import (
	"errors"
	"time"
)

// A Code is stable: programs decide by it, and a published one never changes
// its meaning.
type Code string

// The codes that rooms and ground may return.
const (
	InvalidRequest      Code = "invalid_request"           // the request breaks a documented rule; Fields says which
	Unauthorized        Code = "unauthorized"              // no key, or one that is unknown, expired or revoked
	SignInFailed        Code = "sign_in_failed"            // the address, the password or the code is wrong, or there is no such account
	SecondFactorNeeded  Code = "second_factor_required"    // the password is right and a second factor is in force
	ReauthNeeded        Code = "reauthentication_required" // the session must prove again who it is
	TooYoung            Code = "too_young"                 // not 13 yet; nothing of the request is kept
	LinkInvalid         Code = "link_invalid"              // a mailed code that is unknown, used or expired
	Forbidden           Code = "forbidden"                 // the key lacks the scope, or the subject's state refuses this use
	NotFound            Code = "not_found"                 // also for everything that belongs to somebody else
	MethodNotAllowed    Code = "method_not_allowed"        // the route knows other methods
	DataRemoved         Code = "data_removed"              // a tombstone: it was there, and its content is gone
	Conflict            Code = "conflict"                  // the state does not allow this any more
	IdempotencyMismatch Code = "idempotency_mismatch"      // the key was used with another body
	PromptRefused       Code = "prompt_refused"            // the operator's prompt rules refuse it
	TooLarge            Code = "too_large"                 // the body is larger than the limit
	UnsupportedMedia    Code = "unsupported_media"         // not a content type this route reads
	GenerationFailed    Code = "generation_failed"         // what was waited for has ended, and there is no picture
	RateLimited         Code = "rate_limited"              // too many requests of this key
	QueueFull           Code = "queue_full"                // too many queued generations of this owner
	DailyLimit          Code = "daily_limit"               // too many generations of this owner today
	Timeout             Code = "timeout"                   // the request took longer than its limit
	Unavailable         Code = "unavailable"               // a part we need is away; trying again helps
	Internal            Code = "internal"                  // our fault; the request id finds it in the log
)

// A Field names one part of the request that is wrong. Location is a path such
// as "body.prompt"; Message never repeats the value.
type Field struct {
	Location string
	Message  string
}

// An Error carries a code and a message that may be shown to the caller.
type Error struct {
	Code       Code
	Message    string
	Fields     []Field
	RetryAfter time.Duration // 0: unknown
	Right      bool          // it is about a right of the caller's, who is told where to complain
	cause      error
}

// New makes an error whose message is shown to the caller: no value the caller
// sent, no name of a host, no text of a driver.
func New(code Code, message string) *Error {
	return &Error{Code: code, Message: message}
}

// Wrap is New with the internal reason, which errors.Is and errors.As find and
// no caller ever sees.
func Wrap(cause error, code Code, message string) *Error {
	return &Error{Code: code, Message: message, cause: cause}
}

// Invalid is an InvalidRequest about the named parts of the request.
func Invalid(fields ...Field) *Error {
	return &Error{Code: InvalidRequest, Message: "The request is not valid.", Fields: fields}
}

// After sets when it is worth trying again.
func (e *Error) After(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// OfRight marks a refusal of a right: whoever is told it learns where to complain.
func (e *Error) OfRight() *Error {
	e.Right = true
	return e
}

// Error is the code and the message; the cause stays out of it, so that the
// text can be logged.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

func (e *Error) Unwrap() error { return e.cause }

// CodeOf finds the code in err's chain, and Internal when there is none.
func CodeOf(err error) Code {
	var p *Error
	if errors.As(err, &p) {
		return p.Code
	}
	return Internal
}
