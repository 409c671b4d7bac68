package httpapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"zimage/internal/privacy"
	"zimage/internal/problem"
)

// closedView is shown once: nobody else has the secret.
type closedView struct {
	Receipt receiptKeyView `json:"receipt" doc:"Of the erasure. Keep it: it is shown only now."`
}

type receiptKeyView struct {
	ID     string `json:"id" doc:"Names the receipt."`
	Secret string `json:"secret" doc:"Opens it. Never put it into a URL."`
}

// signedReceiptView is the receipt as it was signed, beside its signature.
type signedReceiptView struct {
	Receipt   map[string]any `json:"receipt" doc:"What was done and what is left: state (open or complete), steps, stores with what was deleted and what was counted there at the end, the two dates of the key, processors, exceptions with basis and end."`
	Signature string         `json:"signature,omitempty" contentEncoding:"base64" doc:"Ed25519, over the receipt without white space. Left out while it is open."`
	PublicKey string         `json:"public_key,omitempty" contentEncoding:"base64" doc:"Of the installation."`
}

// signedReceipt keeps the receipt's own bytes, which are what was signed.
type signedReceipt struct {
	Receipt   json.RawMessage `json:"receipt"`
	Signature string          `json:"signature,omitempty"`
	PublicKey string          `json:"public_key,omitempty"`
}

type receiptOutput struct{ Body signedReceipt }

type receiptInput struct {
	ID string `path:"id" doc:"Of the receipt." example:"era_06f3k2m9v0q8r5w1x4y7z2a6bc"`

	secret string
}

// Resolve takes the secret out of the header.
func (in *receiptInput) Resolve(hc huma.Context) []error {
	if header := hc.Header("Authorization"); header != "" {
		in.secret, _ = bearer([]string{header})
	}
	return nil
}

func (a *API) getReceipt(ctx context.Context, in *receiptInput) (*receiptOutput, error) {
	return a.receipt(ctx, in.ID, in.secret)
}

type secretBody struct {
	Secret string `json:"secret" minLength:"1" maxLength:"100" doc:"The one that closing the account showed."`
}

type openReceiptInput struct {
	ID   string     `path:"id" doc:"Of the receipt." example:"era_06f3k2m9v0q8r5w1x4y7z2a6bc"`
	Body secretBody `contentType:"application/json"`
}

func (a *API) openReceipt(ctx context.Context, in *openReceiptInput) (*receiptOutput, error) {
	return a.receipt(ctx, in.ID, in.Body.Secret)
}

func (a *API) receipt(ctx context.Context, id, secret string) (*receiptOutput, error) {
	if err := known("era", id); err != nil {
		return nil, err
	}
	if secret == "" {
		return nil, problem.New(problem.NotFound, "There is no such receipt.")
	}
	signed, err := a.rooms.Privacy.Receipt(ctx, id, secret)
	if err != nil {
		return nil, err
	}
	return &receiptOutput{Body: signedReceipt{
		Receipt: signed.Receipt, Signature: base64.StdEncoding.EncodeToString(signed.Signature), PublicKey: base64.StdEncoding.EncodeToString(signed.PublicKey),
	}}, nil
}

var (
	sampleClosed  = closedView{Receipt: receiptKeyView{ID: "era_06f3k2m9v0q8r5w1x4y7z2a6bc", Secret: "zr_…"}}
	sampleReceipt = signedReceiptView{
		Receipt: map[string]any{
			"format": privacy.ReceiptFormat, "id": "era_06f3k2m9v0q8r5w1x4y7z2a6bc", "state": "complete", "subject": "sub_06f3k2m9v0q8r5w1x4y7z2a6bc",
			"requested_at": sampleAt, "due_at": sampleAt.AddDate(0, 0, 30), "completed_at": sampleAt.AddDate(0, 0, 1), "issued_at": sampleAt.AddDate(0, 0, 1),
			"steps":  []any{map[string]any{"step": "key_destroyed", "at": sampleAt}},
			"key":    map[string]any{"removed_at": sampleAt, "unrecoverable_at": sampleAt.AddDate(0, 0, 28)},
			"stores": []any{map[string]any{"store": "main", "name": "images", "deleted": 12, "left": 0}}, "processors": []any{}, "exceptions": []any{},
		},
		Signature: "q83v…", PublicKey: "mFp1…",
	}
	receiptDoc = doc{
		id: "get-receipt", tag: tagPrivacy, summary: "Fetch the receipt of an erasure",
		description: "For whoever has its secret, sent as `Authorization: Bearer zr_…`, also when the account is long gone. Until the erasure is verified it says `open` and the steps that are done. " +
			"`zimage receipt verify` checks a saved answer without the service.",
		answers: []good{{status: http.StatusOK, description: "The receipt as it is now.", body: sampleReceipt}},
		codes:   []problem.Code{problem.NotFound},
	}
	openReceiptDoc = doc{
		id: "open-receipt", tag: tagPrivacy, summary: "Fetch the receipt of an erasure, with the secret in the body",
		description: "The same for those who cannot send a header.",
		request:     secretBody{Secret: "zr_…"},
		answers:     []good{{status: http.StatusOK, description: "The receipt as it is now.", body: sampleReceipt}},
		codes:       []problem.Code{problem.NotFound},
	}
)
