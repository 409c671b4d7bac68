package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"

	"zimage/internal/problem"
)

const (
	maxBody = 256 << 10
	// publicBody is enough for every field at its longest, all of it escaped, and for
	// what an authenticator answers.
	publicBody = 16 << 10
	maxDepth   = 16
	// What no body of ours has more of: the validator would name every one.
	maxElements = 1000
	maxNames    = 64
	// bodyTime is how long a client may take to send its body.
	bodyTime = 10 * time.Second
	// lateBody is how long a body may take before its key is looked at again.
	lateBody = time.Second
)

// bodyLimit is how many bytes a body may have.
func (need access) bodyLimit() int64 {
	if need.public {
		return publicBody
	}
	return maxBody
}

// readStrict reads the body under its limits and refuses what encoding/json
// would let through or mend in silence.
func (a *API) readStrict(need access, d doc) func(huma.Context, func(huma.Context)) {
	return func(hc huma.Context, next func(huma.Context)) {
		c := humagin.Unwrap(hc)
		data, err := a.readBody(c, need.bodyLimit())
		if s := callOf(c.Request.Context()).stranger; s != nil && s.arrived() {
			err = crowded()
		}
		if err == nil && d.before != nil {
			err = d.before(callOf(c.Request.Context()), data)
		}
		if err == nil {
			if f := checkJSON(data); f != nil {
				err = problem.Invalid(*f)
			}
		}
		if err != nil {
			a.fail(c, err)
			return
		}
		c.Request.Body = io.NopCloser(bytes.NewReader(data))
		c.Request.Header.Set("Content-Type", "application/json")
		next(hc)
	}
}

// readBody takes a body as it comes: what was promised and did not come takes no
// memory.
func (a *API) readBody(c *gin.Context, most int64) ([]byte, error) {
	r := c.Request
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, named := params["charset"]
	if err != nil || kind != "application/json" || named && !strings.EqualFold(charset, "utf-8") || r.Header.Get("Content-Encoding") != "" {
		return nil, unsupported()
	}
	if r.ContentLength > most {
		return nil, tooLarge(most)
	}
	started := time.Now()
	rc := http.NewResponseController(c.Writer)
	if callOf(r.Context()).stranger == nil { // whose time has begun, and may be over by now
		_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	}
	data, err := io.ReadAll(http.MaxBytesReader(c.Writer, r.Body, most))
	if err == nil {
		// It is whole: the connection can go on, and a read deadline that passes
		// later would end the request's context in the middle of a long poll. While
		// some of it is missing the deadline stays, since the server waits for the
		// rest when the answer is out.
		_ = rc.SetReadDeadline(time.Time{})
		c.Writer.Header().Del("Connection")
	}
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge(most)
	case err != nil:
		return nil, problem.Invalid(problem.Field{Location: "body", Message: "did not arrive whole or in time"})
	}
	if call := callOf(r.Context()); call.token != "" && time.Since(started) > lateBody {
		// Whoever holds a body back must not act after their key or session ended.
		if err := a.stillHolds(r.Context()); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// refuseBody refuses what a route without a body would overlook, and would have
// to wait for.
func (a *API) refuseBody(hc huma.Context, next func(huma.Context)) {
	c := humagin.Unwrap(hc)
	if c.Request.ContentLength != 0 {
		a.fail(c, problem.Invalid(problem.Field{Location: "body", Message: "is not read here: send none"}))
		return
	}
	next(hc)
}

// checkQuery refuses a query that would be read in part: what does not parse is
// dropped in silence, and of a parameter given twice only the first counts.
func (a *API) checkQuery(hc huma.Context, next func(huma.Context)) {
	c := humagin.Unwrap(hc)
	values, err := url.ParseQuery(c.Request.URL.RawQuery)
	if err != nil {
		a.fail(c, problem.Invalid(problem.Field{Location: "query", Message: "is not well formed"}))
		return
	}
	for name, given := range values {
		if len(given) > 1 {
			a.fail(c, problem.Invalid(problem.Field{Location: locate("query." + name), Message: "is given twice"}))
			return
		}
	}
	next(hc)
}

// checkJSON says what is wrong with a JSON text beyond its schema: its form,
// invalid UTF-8, lone surrogates, U+FFFD (which is what broken text looks like
// after somebody mended it), NUL, a key given twice, too deep.
func checkJSON(data []byte) *problem.Field {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return &problem.Field{Location: "body", Message: "is empty: a JSON object is required"}
	case !utf8.Valid(data):
		return &problem.Field{Location: "body", Message: "is not valid UTF-8"}
	case !json.Valid(data):
		return &problem.Field{Location: "body", Message: "is not one valid JSON value"}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	w := walker{d: d}
	return w.value("body", 0)
}

type walker struct{ d *json.Decoder }

// value checks the next value. The text is valid JSON: Token cannot fail.
func (w walker) value(location string, depth int) *problem.Field {
	if depth > maxDepth {
		return &problem.Field{Location: locate(location), Message: "is nested too deeply"}
	}
	t, err := w.d.Token()
	if err != nil {
		return &problem.Field{Location: "body", Message: "is not one valid JSON value"}
	}
	switch v := t.(type) {
	case string:
		return text(location, v)
	case json.Number:
		if f, err := strconv.ParseFloat(v.String(), 64); err != nil || math.IsInf(f, 0) {
			return &problem.Field{Location: locate(location), Message: "is a number out of range"}
		}
	case json.Delim:
		if v == '{' {
			return w.object(location, depth)
		}
		for n := 0; w.d.More(); n++ {
			if n == maxElements {
				return &problem.Field{Location: locate(location), Message: "has more than 1000 elements"}
			}
			if f := w.value(location, depth+1); f != nil {
				return f
			}
		}
		_, _ = w.d.Token() // the closing bracket
	}
	return nil
}

func (w walker) object(location string, depth int) *problem.Field {
	seen := map[string]bool{}
	for w.d.More() {
		t, err := w.d.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return &problem.Field{Location: "body", Message: "is not one valid JSON value"}
		}
		if f := text(location, key); f != nil {
			return f
		}
		if seen[key] {
			return &problem.Field{Location: locate(location), Message: "has the same field twice"}
		}
		if seen[key] = true; len(seen) > maxNames {
			return &problem.Field{Location: locate(location), Message: "has more than 64 fields"}
		}
		if f := w.value(location+"."+key, depth+1); f != nil {
			return f
		}
	}
	_, _ = w.d.Token() // the closing brace
	return nil
}

func text(location, s string) *problem.Field {
	switch {
	case strings.ContainsRune(s, utf8.RuneError):
		return &problem.Field{Location: locate(location), Message: "has broken text: a lone surrogate or U+FFFD"}
	case strings.ContainsRune(s, 0):
		return &problem.Field{Location: locate(location), Message: "has a NUL character"}
	}
	return nil
}

// decodeJSON is huma's way to our structs, of a body that checkJSON passed. Its
// errors name the field, never the value.
func decodeJSON(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && knownNames["body."+wrong.Field] {
		return errors.New("expected another type, or an integer without fraction and exponent, in " + wrong.Field)
	}
	if err != nil {
		return errors.New("expected a JSON object")
	}
	return nil
}
