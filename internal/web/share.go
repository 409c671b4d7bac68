package web

import (
	"bytes"
	"context"
	_ "embed" // the page
	"fmt"
	"html/template"
	"net/http"
	"strings"

	"zimage/internal/generate"
	"zimage/internal/privacy"
	"zimage/internal/problem"
)

//go:embed share.html
var shareHTML string

// Shares tells of a shared picture, by the token of its link.
type Shares interface {
	Shared(ctx context.Context, token string) (generate.Shown, error)
}

// sharePath leads to the page of a share; what follows is its token.
const sharePath = "/s/"

type sharePage struct {
	Service string
	Token   string
	Picture *generate.Shown // nil: there is none for who asks
	Origin  string
	Away    bool
}

// sharePages shows one picture to whoever has its link, as it is at that moment.
// Links that open nothing all have the same page.
func sharePages(shares Shares) (http.Handler, error) {
	page, err := template.New("share").Option("missingkey=error").Parse(shareHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the page of a share: %w", err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := sharePage{Service: privacy.ServiceName, Token: strings.TrimPrefix(r.URL.Path, sharePath)}
		status := http.StatusOK
		switch picture, err := shares.Shared(r.Context(), shown.Token); {
		case err == nil:
			shown.Picture, shown.Origin = &picture, origin(picture.SourceType)
		case problem.CodeOf(err) == problem.NotFound:
			status = http.StatusNotFound
		default:
			status, shown.Away = http.StatusServiceUnavailable, true
			w.Header().Set("Retry-After", "60")
		}
		var b bytes.Buffer
		if err := page.Execute(&b, shown); err != nil {
			panic(err) // our own page
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Cache-Control", "private, no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Robots-Tag", "noindex, nofollow, noarchive, noimageindex")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		w.WriteHeader(status)
		_, _ = w.Write(b.Bytes()) // the client hung up
	}), nil
}

// origin says how the picture came to be.
func origin(sourceType string) string {
	if sourceType == "algorithmicMedia" {
		return "Drawn by a computer program, without an AI model."
	}
	return "Made by AI."
}
