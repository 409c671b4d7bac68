// Package client speaks to the service from Go, by a key. What it can do and
// the types of it are in generated.go, which `make generate` makes of the
// OpenAPI document; how it asks is here. It depends on nothing but the standard
// library.
package client

//go:generate go run ../internal/clients/generate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client asks one service with one key. Its methods may be called from several
// goroutines at once, and never ask twice by themselves.
type Client struct {
	Server string // such as https://images.example.org
	Key    string // zi_…
	HTTP   *http.Client
	// Pause is waited before a stream that broke is opened again; doubled up to ten times.
	Pause time.Duration
}

// New makes a client that follows no redirect: the service sends nobody
// elsewhere, and the key must not go there.
func New(server, key string) *Client {
	return &Client{Server: strings.TrimSuffix(server, "/"), Key: key, Pause: 500 * time.Millisecond, HTTP: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Error tells a problem in the service's words.
func (p *Problem) Error() string {
	if p.Code == "" {
		return "the service answers " + p.Title
	}
	detail, id := p.Title, "no request id"
	if p.Detail != nil {
		detail = *p.Detail
	}
	if p.RequestID != nil {
		id = *p.RequestID
	}
	for _, e := range p.Errors {
		detail += "\n  " + e.Location + " " + e.Message
	}
	return fmt.Sprintf("%s (%s, %s)", detail, p.Code, id)
}

// Passing tells whether an error may be gone when it is tried again: no
// connection, or an answer that says nothing of what was asked for.
func Passing(err error) bool {
	var p *Problem
	if errors.As(err, &p) {
		return p.Status >= http.StatusInternalServerError || p.Status == http.StatusTooManyRequests
	}
	var lost *url.Error
	return errors.As(err, &lost)
}

// request is what a generated method asks for.
type request struct {
	method, path string
	query        url.Values
	header       http.Header
	body         any // nil: none
}

// newRequest puts values into the places of a path.
func newRequest(method, path string, values ...any) request {
	for i, v := range values {
		values[i] = url.PathEscape(text(v))
	}
	return request{method: method, path: fmt.Sprintf(path, values...), query: url.Values{}, header: http.Header{}}
}

// set sets a query's or a header's value that is there.
func set[T any](to interface{ Set(name, value string) }, name string, value *T) {
	if value != nil {
		to.Set(name, text(*value))
	}
}

func text(v any) string {
	if t, ok := v.(time.Time); ok {
		return t.Format(time.RFC3339Nano)
	}
	return fmt.Sprint(v)
}

// do asks, and gives an answer that is no error, whose body the caller closes.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	var body io.Reader
	if r.body != nil {
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
		r.header.Set("Content-Type", "application/json")
	}
	address := c.Server + r.path
	if len(r.query) > 0 {
		address += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, address, body)
	if err != nil {
		return nil, err
	}
	req.Header = r.header
	req.Header.Set("Authorization", "Bearer "+c.Key)
	res, err := c.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode < http.StatusMultipleChoices || res.StatusCode == http.StatusNotModified {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	var p Problem
	if json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&p) != nil || p.Code == "" {
		p = Problem{Title: res.Status} // of somebody between us and the service
	}
	p.Status = int64(res.StatusCode)
	return nil, &p
}

// call asks, and reads the answer into out; nil: it has none.
func (c *Client) call(ctx context.Context, r request, out any) error {
	res, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}

func answer[T any](ctx context.Context, c *Client, r request) (*T, error) {
	var out T
	if err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
