package httpapi

import (
	"context"
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
	Receipt   verbatim `json:"receipt" doc:"What was done and what is left: state (open or complete), steps, stores with what was deleted and what was counted there at the end, the two dates of the key, processors, exceptions with basis and end."`
	Signature []byte   `json:"signature,omitempty" doc:"Ed25519, over the receipt without white space. Left out while it is open."`
	PublicKey []byte   `json:"public_key,omitempty" doc:"Of the installation."`
}

// verbatim is JSON that goes out by its own bytes, which are what was signed.
type verbatim json.RawMessage

// MarshalJSON is asked by the encoder.
func (v verbatim) MarshalJSON() ([]byte, error) { return v, nil }

// Schema is asked by huma.
func (verbatim) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}

type receiptOutput struct{ Body signedReceiptView }

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
	return &receiptOutput{Body: signedReceiptView{Receipt: verbatim(signed.Receipt), Signature: signed.Signature, PublicKey: signed.PublicKey}}, nil
}

var (
	sampleClosed  = closedView{Receipt: receiptKeyView{ID: "era_06f3k2m9v0q8r5w1x4y7z2a6bc", Secret: "zr_…"}}
	sampleReceipt = signedReceiptView{
		Receipt: verbatim(`{"format":"` + privacy.ReceiptFormat + `","id":"era_06f3k2m9v0q8r5w1x4y7z2a6bc","state":"complete","subject":"sub_06f3k2m9v0q8r5w1x4y7z2a6bc",
			"requested_at":"2026-01-15T09:30:00Z","due_at":"2026-02-14T09:30:00Z","completed_at":"2026-01-15T09:36:00Z","issued_at":"2026-01-15T09:36:00Z",
			"steps":[{"step":"key_destroyed","at":"2026-01-15T09:31:00Z"}],
			"key":{"removed_at":"2026-01-15T09:31:00Z","unrecoverable_at":"2026-02-12T09:31:00Z"},
			"stores":[{"store":"main","name":"images","deleted":12,"left":0}],"processors":[],"exceptions":[]}`),
		Signature: []byte("64 bytes"), PublicKey: []byte("32 bytes"),
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
