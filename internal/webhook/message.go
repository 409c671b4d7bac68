package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"zimage/internal/events"
	"zimage/internal/problem"
)

// message is what is sent.
type message struct {
	ID        string    `json:"id"`
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`          // of the event
	Sequence  int64     `json:"sequence,omitempty"` // among those of the generation
	Data      any       `json:"data"`
}

type generationData struct {
	ID             string            `json:"id"`
	Status         string            `json:"status"`
	Error          *errorData        `json:"error,omitempty"`
	Images         []imageData       `json:"images"`
	CreatedAt      time.Time         `json:"created_at"`
	StartedAt      *time.Time        `json:"started_at,omitempty"`
	FinishedAt     *time.Time        `json:"finished_at,omitempty"`
	ExpiresAt      time.Time         `json:"expires_at"`
	URL            string            `json:"url"` // needs the owner's key, as all do
	Prompt         string            `json:"prompt,omitempty"`
	NegativePrompt string            `json:"negative_prompt,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`
}

type errorData struct {
	Code string `json:"code"`
}

type imageData struct {
	ID           string `json:"id"`
	URL          string `json:"url"`
	ThumbnailURL string `json:"thumbnail_url"`
}

// refData is all that is told of what has no more to tell.
type refData struct {
	ID           string `json:"id,omitempty"`
	GenerationID string `json:"generation_id,omitempty"`
	Reason       string `json:"reason,omitempty"` // of a deletion: user, expired, erased
	Code         string `json:"code,omitempty"`   // data_removed: deleted since
	URL          string `json:"url,omitempty"`

	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// body is what a delivery says now: of a generation that has been deleted since, that
// it has.
func (s *Service) body(ctx context.Context, d delivery, prompt bool) ([]byte, error) {
	m := message{ID: d.Event, Type: d.Type, Timestamp: moment(d.At), Sequence: d.Sequence}
	switch e := events.Type(d.Type); {
	case contains(ToldOnce, d.Type):
		var err error
		if m.Data, err = s.generation(ctx, d, prompt); err != nil {
			return nil, err
		}
	case e == events.ImageExpiring:
		var err error
		if m.Data, err = s.ending(ctx, d); err != nil {
			return nil, err
		}
	case e == events.ExportReady:
		m.Data = refData{ID: d.Ref, URL: s.PublicURL + "/v1/account/exports/" + d.Ref}
	case e == events.AccountClosing:
		m.Data = refData{Reason: "erased"}
	default: // a deletion, or a test
		m.Data = refData{ID: d.Ref, GenerationID: d.Whole, Reason: d.Reason}
	}
	return json.Marshal(m)
}

func (s *Service) generation(ctx context.Context, d delivery, prompt bool) (any, error) {
	g, err := s.Generation(ctx, d.Owner, d.Ref)
	switch problem.CodeOf(err) {
	case problem.DataRemoved, problem.NotFound:
		return refData{ID: d.Ref, Code: string(problem.DataRemoved)}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at a generation: %w", err)
	}
	v := generationData{ID: g.ID, Status: g.Status, Images: []imageData{}, CreatedAt: g.CreatedAt.UTC(), StartedAt: pointer(g.StartedAt),
		FinishedAt: pointer(g.FinishedAt), ExpiresAt: g.ExpiresAt.UTC(), URL: s.PublicURL + "/v1/generations/" + g.ID}
	if g.Code != "" {
		v.Error = &errorData{g.Code}
	}
	for _, id := range g.Images {
		url := s.PublicURL + "/v1/images/" + id + "/content"
		v.Images = append(v.Images, imageData{ID: id, URL: url, ThumbnailURL: url + "?thumbnail=true"})
	}
	if prompt {
		v.Prompt, v.NegativePrompt, v.Metadata = g.Prompt, g.NegativePrompt, g.Metadata
	}
	return v, nil
}

func pointer(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// signature is that of Standard Webhooks: one for each secret that is good now.
func (s *Service) signature(ctx context.Context, r row, id string, now time.Time, body []byte) (string, error) {
	secret, err := s.open(ctx, r, "secret", r.Secret)
	if err != nil {
		return "", fmt.Errorf("open a webhook's secret: %w", err)
	}
	secrets := []string{secret}
	if r.OldSecret != nil && r.OldUntil.Int64 > now.UnixMilli() {
		old, err := s.open(ctx, r, "old_secret", r.OldSecret)
		if err != nil {
			return "", fmt.Errorf("open a webhook's secret: %w", err)
		}
		secrets = append(secrets, old)
	}
	signed := make([]string, len(secrets))
	for i, secret := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, secretPrefix))
		if err != nil {
			return "", errors.New("a webhook's secret does not decode") // the decoder's words may quote it
		}
		mac := hmac.New(sha256.New, key)
		_, _ = fmt.Fprintf(mac, "%s.%d.", id, now.Unix())
		_, _ = mac.Write(body)
		signed[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(signed, " "), nil
}
