package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"
	"github.com/gin-gonic/gin"

	"zimage/internal/account"
	"zimage/internal/problem"
)

// An answer is how a code is told over HTTP.
type answer struct {
	Code   problem.Code
	Status int
	Title  string
	When   string // for the documentation
}

// answers is the one table from code to status. What is not in it is Internal.
var answers = []answer{
	{problem.InvalidRequest, http.StatusBadRequest, "Invalid request", "The request breaks a documented rule; `errors` says which."},
	{problem.Unauthorized, http.StatusUnauthorized, "Unauthorized", "There is no key, or it is unknown, expired or revoked."},
	{problem.SignInFailed, http.StatusUnauthorized, "Sign-in failed", "The address, the password or the code is wrong."},
	{problem.SecondFactorNeeded, http.StatusUnauthorized, "Second factor required", "The password is right; `second_factor` says what else can be sent."},
	{problem.ReauthNeeded, http.StatusForbidden, "Prove again who you are", "This change needs a session that proved who it is within the last ten minutes: POST /v1/session/fresh."},
	{problem.TooYoung, http.StatusUnprocessableEntity, "Too young", "The service is for people of 13 and older. Nothing of the request is kept."},
	{problem.LinkInvalid, http.StatusUnprocessableEntity, "Code not valid", "The mailed code is unknown, was used, or has expired. Ask for a new one."},
	{problem.Forbidden, http.StatusForbidden, "Forbidden", "The key lacks the scope, or the account may not do this now."},
	{problem.NotFound, http.StatusNotFound, "Not found", "There is nothing here, or it belongs to somebody else."},
	{problem.MethodNotAllowed, http.StatusMethodNotAllowed, "Method not allowed", "`Allow` lists the methods that the address takes."},
	{problem.Conflict, http.StatusConflict, "Conflict", "The state does not allow this any more."},
	{problem.DataRemoved, http.StatusGone, "Data removed", "It was here and was deleted or has expired; nothing of it is left."},
	{problem.TooLarge, http.StatusRequestEntityTooLarge, "Too large", "The body is larger than this route takes."},
	{problem.UnsupportedMedia, http.StatusUnsupportedMediaType, "Unsupported media type", "Bodies are application/json, in UTF-8 and not compressed."},
	{problem.IdempotencyMismatch, http.StatusUnprocessableEntity, "Idempotency key was used before", "The same Idempotency-Key came with another body."},
	{problem.PromptRefused, http.StatusUnprocessableEntity, "Prompt refused", "The operator's rules refuse the prompt."},
	{problem.GenerationFailed, http.StatusBadGateway, "Generation failed", "The generation has ended without a picture: its engine failed, or it was canceled. Trying again makes a new one."},
	{problem.RateLimited, http.StatusTooManyRequests, "Too many requests", "`Retry-After` says when to try again."},
	{problem.QueueFull, http.StatusTooManyRequests, "Queue full", "Too many generations of this account are waiting."},
	{problem.DailyLimit, http.StatusTooManyRequests, "Daily limit reached", "Too many generations of this account today."},
	{problem.Timeout, http.StatusGatewayTimeout, "Timeout", "The request took longer than its limit; trying again is safe with an Idempotency-Key."},
	{problem.Unavailable, http.StatusServiceUnavailable, "Unavailable", "A part that is needed is away, or there are too many requests at once; `Retry-After` says when to try again."},
	{problem.Internal, http.StatusInternalServerError, "Internal error", "Our fault; quote the request id when you report it."},
}

func answerFor(code problem.Code) answer {
	for _, a := range answers {
		if a.Code == code {
			return a
		}
	}
	return answers[len(answers)-1]
}

// fieldView names one part of the request that is wrong, without its value.
type fieldView struct {
	Location string `json:"location" doc:"Path of the part that is wrong, such as body.prompt." example:"body.prompt"`
	Message  string `json:"message" doc:"What is wrong with it. It never repeats the value." example:"is required"`
}

// problemView is the body of every error: RFC 9457, with a stable code.
type problemView struct {
	Type      string      `json:"type" format:"uri-reference" doc:"Where this kind of problem is described."`
	Title     string      `json:"title" doc:"The kind of problem in words."`
	Status    int         `json:"status" doc:"The HTTP status."`
	Detail    string      `json:"detail,omitempty" doc:"What happened this time, in words for people."`
	Code      string      `json:"code" doc:"Stable: programs decide by it."`
	RequestID string      `json:"request_id,omitempty" doc:"Finds this request in the operator's log."`
	Errors    []fieldView `json:"errors,omitempty" nullable:"false" doc:"Each part of the request that is wrong."`
	Complaint string      `json:"complaint,omitempty" doc:"When a right of yours is refused: how to complain to an authority."`

	OpenAI *openAIErrorView `json:"error,omitempty" doc:"On the routes that OpenAI's clients use, and at unknown addresses: the same in the shape that they read."`

	SecondFactor *secondFactorView `json:"second_factor,omitempty" doc:"With second_factor_required: what can be sent beside the password."`

	retryAfter time.Duration
	right      bool
	final      bool // OpenAI's clients must not try again by themselves
}

func (p *problemView) Error() string  { return p.Code }
func (p *problemView) GetStatus() int { return p.Status }

// ContentType is asked by huma before it writes the body.
func (p *problemView) ContentType(string) string { return problemJSON }

// GetHeaders is asked by huma before it writes the body.
func (p *problemView) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter > 0 {
		h.Set("Retry-After", seconds(p.retryAfter))
	}
	if p.final {
		h.Set("X-Should-Retry", "false")
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="zimage"`)
	}
	return h
}

const problemJSON = "application/problem+json"

// seconds is d in whole seconds, rounded up, as Retry-After takes it.
func seconds(d time.Duration) string {
	return strconv.Itoa(int(math.Ceil(max(d, 0).Seconds())))
}

// view turns an error into the body that the caller sees. Only *problem.Error
// has words for callers.
func view(ctx context.Context, err error) *problemView {
	var already *problemView
	if errors.As(err, &already) {
		return already
	}
	var known *problem.Error
	if !errors.As(err, &known) {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			known = problem.New(problem.Timeout, "The request took longer than its limit.")
		case errors.Is(err, context.Canceled):
			known = problem.New(problem.Timeout, "The request was given up.")
		default:
			known = problem.New(problem.Internal, "Something went wrong here. The request id finds it in the log.")
		}
	}
	a := answerFor(known.Code)
	p := &problemView{
		Type: "/docs#" + string(a.Code), Title: a.Title, Status: a.Status, Detail: known.Message,
		Code: string(a.Code), RequestID: callOf(ctx).id, retryAfter: known.RetryAfter, right: known.Right,
	}
	for _, f := range known.Fields {
		p.Errors = append(p.Errors, fieldView(f))
	}
	var second *account.SecondFactor
	if errors.As(err, &second) {
		p.SecondFactor = secondFactor(second)
	}
	if p.retryAfter == 0 && a.Status == http.StatusServiceUnavailable {
		p.retryAfter = 2 * time.Second
	}
	if route := callOf(ctx).route; route == "" || openAIRoutes[route] { // without a route they may have asked too
		p.forOpenAI()
	}
	return p
}

// refuse is view for an error that leaves a handler; what is our fault is
// logged, without the text of the error, which may quote values. Of those who are
// sent away in a crowd the line of each request says enough.
func (a *API) refuse(ctx context.Context, err error) *problemView {
	p := view(ctx, err)
	callOf(ctx).code = p.Code
	if p.right {
		p.Complaint = a.rooms.Policy.Complaint()
	}
	if p.Status >= 500 && !errors.Is(err, context.Canceled) && !errors.Is(err, errCrowded) {
		a.log.LogAttrs(ctx, slog.LevelError, "request failed", callOf(ctx).attrs(slog.String("code", p.Code), slog.String("error", kindOf(err)))...)
	}
	return p
}

// kindOf tells what kind of error it is by the types in its chain, and by the
// number that a database gave it. Texts stay out: those of drivers quote
// addresses and values.
func kindOf(err error) string {
	var kinds []string
	var descend func(error)
	descend = func(e error) {
		if e == nil || len(kinds) == 8 {
			return
		}
		kinds = append(kinds, fmt.Sprintf("%T", e))
		if joined, ok := e.(interface{ Unwrap() []error }); ok {
			for _, part := range joined.Unwrap() {
				descend(part)
			}
			return
		}
		descend(errors.Unwrap(e))
	}
	descend(err)
	var postgres interface{ SQLState() string }
	if errors.As(err, &postgres) {
		kinds = append(kinds, "SQLSTATE "+postgres.SQLState())
	}
	var sqlite interface{ Code() int }
	if errors.As(err, &sqlite) {
		kinds = append(kinds, "code "+strconv.Itoa(sqlite.Code()))
	}
	return strings.Join(kinds, " < ")
}

// fail answers outside of huma.
func (a *API) fail(c *gin.Context, err error) {
	c.Abort()
	p := a.refuse(c.Request.Context(), err)
	if c.Writer.Written() {
		return // half an answer is out: nothing can be added to it
	}
	for name, values := range p.GetHeaders() {
		c.Writer.Header()[name] = values
	}
	writeJSON(c, p.Status, problemJSON, p)
}

// recovered answers a panic. The value may hold anything, so only its type and
// the frames are logged.
func (a *API) recovered(c *gin.Context) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // the server closes the connection: the answer was cut
	}
	ctx := c.Request.Context()
	a.log.LogAttrs(ctx, slog.LevelError, "handler panicked", callOf(ctx).attrs(slog.String("type", fmt.Sprintf("%T", v)), slog.Any("frames", frames()))...)
	if c.Writer.Written() {
		panic(http.ErrAbortHandler)
	}
	a.fail(c, problem.New(problem.Internal, "Something went wrong here. The request id finds it in the log."))
}

// frames are the functions on the stack of a panic, innermost first.
func frames() []string {
	pcs := make([]uintptr, 32)
	it := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs)])
	var list []string
	for {
		f, more := it.Next()
		if !strings.HasPrefix(f.Function, "runtime.") {
			list = append(list, f.Function+":"+strconv.Itoa(f.Line))
		}
		if !more || len(list) == 16 {
			return list
		}
	}
}

// setHuma replaces what huma keeps in variables of its package: how it makes
// errors, and that it takes {"Prompt": …} for {"prompt": …}.
var setHuma = sync.OnceFunc(func() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, _ string, errs ...error) huma.StatusError {
		return fromHuma(context.Background(), status, errs)
	}
	huma.NewErrorWithContext = func(hc huma.Context, status int, _ string, errs ...error) huma.StatusError {
		return fromHuma(hc.Context(), status, errs)
	}
})

// fromHuma makes our error of huma's: its messages and locations only where
// they are known to hold nothing that the client sent.
func fromHuma(ctx context.Context, status int, errs []error) *problemView {
	var e *problem.Error
	switch {
	case status == http.StatusRequestEntityTooLarge:
		e = tooLarge(maxBody)
	case status == http.StatusUnsupportedMediaType:
		e = unsupported()
	case status >= 500:
		e = problem.New(problem.Internal, "Something went wrong here. The request id finds it in the log.")
	default:
		e = problem.Invalid(humaFields(errs)...)
	}
	callOf(ctx).code = string(e.Code)
	return view(ctx, e)
}

// mostFields is how many wrong parts one answer names, so that it does not grow
// with what was sent.
const mostFields = 20

func humaFields(errs []error) []problem.Field {
	var list []problem.Field
	for _, err := range errs {
		var d *huma.ErrorDetail
		if !errors.As(err, &d) {
			continue
		}
		f := problem.Field{Location: locate(d.Location), Message: d.Message}
		switch property, missing := strings.CutPrefix(d.Message, requiredPrefix); {
		case missing:
			f.Location += "." + strings.TrimSuffix(property, requiredSuffix)
			f.Message = "is required"
		case d.Message == validation.MsgUnexpectedProperty:
			f = problem.Field{Location: root(d.Location), Message: "has a field that is not known"}
		case d.Message == "unknown query parameter":
			f = problem.Field{Location: "query", Message: "has a parameter that is not known"}
		case strings.HasPrefix(d.Message, "expected number "):
			f.Message = plainNumber(d.Message)
		case strings.HasPrefix(d.Message, "expected "), strings.HasPrefix(d.Message, "invalid "), strings.HasPrefix(d.Message, "required "):
			// Made of our own schema, never of the value.
		default:
			f.Message = "is not valid"
		}
		if slices.Contains(list, f) {
			continue
		}
		if list = append(list, f); len(list) == mostFields {
			break
		}
	}
	return list
}

// plainNumber writes the bound at the end of a message of huma's in digits:
// 4294967295, not 4.294967295e+09.
func plainNumber(message string) string {
	at := strings.LastIndexByte(message, ' ') + 1
	bound, err := strconv.ParseFloat(message[at:], 64)
	if err != nil {
		return message
	}
	return message[:at] + strconv.FormatFloat(bound, 'f', -1, 64)
}

var requiredPrefix, requiredSuffix, _ = strings.Cut(validation.MsgExpectedRequiredProperty, "%s")

func root(location string) string {
	r, _, _ := strings.Cut(location, ".")
	return r
}

// locate shortens a location to the part that stands in our schema: the rest
// may be a name that the client made up.
func locate(location string) string {
	r, rest, found := strings.Cut(location, ".")
	if !found {
		return r
	}
	name := rest
	if i := strings.IndexAny(rest, ".["); i >= 0 {
		name = rest[:i]
	}
	if !knownNames[r+"."+name] {
		return r
	}
	return r + "." + name
}

// knownNames are the fields and parameters that a location may name.
var knownNames = namesOf(map[string][]any{
	"body": {
		createBody{}, deleteBody{}, signUpBody{}, codePasswordBody{}, updateAccountBody{}, credentialsBody{}, emailBody{}, codeBody{},
		passwordBody{}, setConsentBody{}, addPasskeyBody{}, signInBody{}, passkeySignInBody{}, createKeyBody{}, findBody{}, reasonBody{}, disclosureBody{},
		placeHoldBody{}, renewHoldBody{}, askBody{}, openRequestBody{}, closeRequestBody{}, confirmRequestBody{},
		signLinkBody{}, makeShareBody{}, imagesBody{},
	},
	"query":  {listInput{}, contentInput{}, ledgerInput{}, requestsInput{}, holdsInput{}, staffRequestsInput{}, sharesInput{}},
	"header": {createInput{}, imagesInput{}, getInput{}, eventsInput{}, contentInput{}},
	"path":   {getInput{}},
})

func namesOf(inputs map[string][]any) map[string]bool {
	known := map[string]bool{}
	for where, values := range inputs {
		tag := where
		if where == "body" {
			tag = "json"
		}
		for _, v := range values {
			t := reflect.TypeOf(v)
			for i := range t.NumField() {
				if name, _, _ := strings.Cut(t.Field(i).Tag.Get(tag), ","); name != "" {
					known[where+"."+name] = true
				}
			}
		}
	}
	return known
}

func tooLarge(most int64) *problem.Error {
	return problem.New(problem.TooLarge, fmt.Sprintf("The body is larger than %d KiB.", most>>10))
}

func unsupported() *problem.Error {
	return problem.New(problem.UnsupportedMedia, "Send the body as application/json, in UTF-8 and not compressed.")
}
