package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/image/webp"
)

const (
	// MaxImage is the largest encoded image that is taken from any engine.
	MaxImage = 64 << 20
	// MaxStatus is the largest answer to any other question: lists of models,
	// health, states.
	MaxStatus = 4 << 20
	// BriefCall is how long an engine may take to answer anything but the image
	// itself.
	BriefCall = 15 * time.Second
)

// A Client is the way out to one engine: TLS 1.3, its authority and credential,
// no proxy, no redirects, no more than the asked-for bytes. It never keeps what
// an engine says of a failure.
type Client struct {
	http *http.Client
	base string
}

// NewClient reads the credential and the authority of s. Errors name the field
// of the engines file.
func NewClient(s Settings) (*Client, error) {
	base, err := s.base()
	if err != nil {
		return nil, fmt.Errorf("engine %s: url: %w", s.Name, err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13}
	if s.TLS.CAFile != "" {
		pem, err := os.ReadFile(s.TLS.CAFile)
		if err != nil {
			return nil, fmt.Errorf("engine %s: tls.ca_file: %w", s.Name, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("engine %s: tls.ca_file: holds no certificate", s.Name)
		}
	}
	credential, err := s.Auth.read()
	if err != nil {
		return nil, fmt.Errorf("engine %s: auth.file: %w", s.Name, err)
	}
	dialer := &net.Dialer{
		Timeout: 5 * time.Second,
		// A machine that lost its power is noticed after 25 s, not at the end of
		// the image's timeout.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	transport := &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    5 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		// Below the 5 s after which uvicorn and cpp-httplib close an idle
		// connection: a request that meets that close is lost.
		IdleConnTimeout:     3 * time.Second,
		MaxIdleConnsPerHost: 8,
	}
	address := strings.TrimSuffix(base.String(), "/")
	if base.Scheme == "unix" {
		socket := base.Path
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
		address = "http://localhost"
	}
	return &Client{
		base: address,
		http: &http.Client{
			Transport:     credentialed{transport, s.Auth.Header, credential},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func (a Auth) read() (string, error) {
	if a.File == "" {
		return "", nil
	}
	text, err := os.ReadFile(a.File)
	if err != nil {
		return "", err
	}
	credential := strings.TrimSpace(string(text))
	if credential == "" {
		return "", errors.New("is empty")
	}
	if strings.ContainsFunc(credential, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", errors.New("holds more than one line of printable ASCII")
	}
	if a.Scheme != "" {
		credential = a.Scheme + " " + credential
	}
	return credential, nil
}

// credentialed adds the engine's credential to every request. There are no
// redirects, so it goes nowhere else.
type credentialed struct {
	http.RoundTripper
	header, value string
}

func (c credentialed) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.value != "" {
		r = r.Clone(r.Context())
		r.Header.Set(c.header, c.value)
	}
	return c.RoundTripper.RoundTrip(r)
}

// HTTP is the client itself, for what JSON and Bytes cannot do.
func (c *Client) HTTP() *http.Client { return c.http }

// URL is the address of a path of the engine, which begins with a slash.
func (c *Client) URL(path string) string { return c.base + path }

// An Answer is what an engine said, of any status.
type Answer struct {
	Status     int
	RetryAfter time.Duration // when it wants to be asked again; 0: it did not say
	Body       []byte        // that of a failure must not be kept
}

// Err is the StatusError of an answer that is no success.
func (a Answer) Err() *Error {
	e := StatusError(a.Status)
	e.RetryAfter = a.RetryAfter
	return e
}

// Bytes sends body as JSON (nil: none) and returns the answer, of which at most
// limit bytes are read. A longer one is CodeTooLarge and closes the connection.
func (c *Client) Bytes(ctx context.Context, method, path string, body any, limit int64) (Answer, error) {
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return Answer{}, NewError(FaultOurs, CodeFailed, 0, nil)
		}
		payload = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.URL(path), payload)
	if err != nil {
		return Answer{}, NewError(FaultOurs, CodeFailed, 0, nil)
	}
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return Answer{}, TransportError(ctx, err)
	}
	// Closing before the end of the body closes the connection too.
	defer func() { _ = response.Body.Close() }()
	if response.ContentLength > limit {
		return Answer{}, NewError(FaultEngine, CodeTooLarge, response.StatusCode, nil)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err != nil {
		return Answer{}, TransportError(ctx, err)
	}
	if int64(len(text)) > limit {
		return Answer{}, NewError(FaultEngine, CodeTooLarge, response.StatusCode, nil)
	}
	return Answer{Status: response.StatusCode, RetryAfter: retryAfter(response.Header), Body: text}, nil
}

// retryAfter reads a number of seconds, or a date by the engine's own clock.
func retryAfter(h http.Header) time.Duration {
	said := h.Get("Retry-After")
	if n, err := strconv.Atoi(said); err == nil {
		return time.Duration(max(min(n, 24*60*60), 0)) * time.Second
	}
	at, err := http.ParseTime(said)
	now, unknown := http.ParseTime(h.Get("Date"))
	if err != nil || unknown != nil {
		return 0
	}
	return max(at.Sub(now), 0)
}

// JSON is Bytes with the answer decoded into answer (nil: not wanted) when the
// status is 2xx; any other status is its StatusError.
func (c *Client) JSON(ctx context.Context, method, path string, body, answer any, limit int64) error {
	a, err := c.Bytes(ctx, method, path, body, limit)
	if err != nil {
		return err
	}
	if a.Status/100 != 2 {
		return a.Err()
	}
	if answer != nil && json.Unmarshal(a.Body, answer) != nil {
		return NewError(FaultEngine, CodeFailed, a.Status, nil)
	}
	return nil
}

// ContextError says why ctx ended: CodeTimeout at its deadline, which is the
// engine's fault, and else CodeCanceled.
func ContextError(ctx context.Context) *Error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return NewError(FaultEngine, CodeTimeout, 0, ctx.Err())
	}
	return NewError(FaultOurs, CodeCanceled, 0, ctx.Err())
}

// TransportError is the Error of a failed exchange: the context's when that
// ended, else CodeTimeout or CodeUnreachable, both the engine's fault.
func TransportError(ctx context.Context, err error) *Error {
	var e *Error
	var n net.Error
	switch {
	case errors.As(err, &e):
		return e
	case ctx.Err() != nil:
		return ContextError(ctx)
	case errors.As(err, &n) && n.Timeout():
		return NewError(FaultEngine, CodeTimeout, 0, nil)
	default:
		return NewError(FaultEngine, CodeUnreachable, 0, nil)
	}
}

// StatusError is the Error of a failed HTTP status. What the engine says in the
// body is not looked at: validation errors echo the prompt.
func StatusError(status int) *Error {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		// One prompt that is too long for the engine must not set the engine
		// aside; whether it is the engine after all, Slot.Generate finds out.
		return NewError(FaultUser, CodeInvalid, status, nil)
	case http.StatusTooManyRequests:
		return NewError(FaultOurs, CodeBusy, status, nil)
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return NewError(FaultEngine, CodeTimeout, status, nil)
	default:
		return NewError(FaultEngine, CodeFailed, status, nil)
	}
}

// ImageLimit is the largest encoded image that can be taken for one of this
// size: 16-bit RGBA without any compression and 1 MiB of metadata, at most
// MaxImage.
func ImageLimit(width, height int) int64 {
	return min(MaxImage, 8*int64(width)*int64(height)+1<<20)
}

// CheckImage reads the true size of an encoded image, which must be PNG, JPEG
// or WebP of exactly width × height. Else it is CodeBadImage: engines that
// don't understand a size silently take another.
func CheckImage(data []byte, width, height int) error {
	var config image.Config
	var err error
	switch r := bytes.NewReader(data); {
	case bytes.HasPrefix(data, []byte("\x89PNG")):
		config, err = png.DecodeConfig(r)
	case bytes.HasPrefix(data, []byte("\xff\xd8")):
		config, err = jpeg.DecodeConfig(r)
	case bytes.HasPrefix(data, []byte("RIFF")):
		config, err = webp.DecodeConfig(r)
	default:
		err = image.ErrFormat
	}
	if err != nil || config.Width != width || config.Height != height {
		return NewError(FaultEngine, CodeBadImage, 0, nil)
	}
	return nil
}
