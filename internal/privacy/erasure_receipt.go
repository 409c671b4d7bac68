package privacy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"zimage/internal/db"
)

// ReceiptFormat names the form of a receipt.
const ReceiptFormat = "zimage-erasure-receipt/1"

// A Receipt says what an erasure did. It is open until everything is verified.
type Receipt struct {
	Format      string             `json:"format"`
	ID          string             `json:"id"`
	State       string             `json:"state"` // open or complete
	Subject     string             `json:"subject"`
	RequestedAt time.Time          `json:"requested_at"`
	DueAt       time.Time          `json:"due_at"`
	CompletedAt *time.Time         `json:"completed_at,omitempty"`
	IssuedAt    time.Time          `json:"issued_at"`
	Delayed     string             `json:"delayed,omitempty"`     // why it does not go on, by a code
	WaitsUntil  *time.Time         `json:"waits_until,omitempty"` // for late work, before it is verified
	Steps       []ReceiptStep      `json:"steps"`
	Key         *ReceiptKey        `json:"key,omitempty"`
	Stores      []ReceiptStore     `json:"stores"`
	Processors  []ReceiptProcessor `json:"processors"`
	Exceptions  []ReceiptException `json:"exceptions"`
	Checkpoint  *Checkpoint        `json:"checkpoint,omitempty"` // the ledger's for everybody when it was issued
	Complaint   string             `json:"complaint,omitempty"`  // how to complain, when something was kept for a hold
}

// A ReceiptStep is a step that was done.
type ReceiptStep struct {
	Step string    `json:"step"`
	At   time.Time `json:"at"`
}

// A ReceiptKey has the two dates of the person's key.
type ReceiptKey struct {
	RemovedAt       time.Time `json:"removed_at"`
	UnrecoverableAt time.Time `json:"unrecoverable_at"`          // from when on no backup opens it either
	BehindDeadline  bool      `json:"behind_deadline,omitempty"` // it is after the time in which all should be erased
}

// A ReceiptStore is a table or a kind of object, with what was deleted and what was
// counted there at the end.
type ReceiptStore struct {
	Store   string `json:"store"` // main, keys or objects
	Name    string `json:"name"`
	Deleted int64  `json:"deleted"`
	Left    int64  `json:"left"`
}

// A ReceiptProcessor was told.
type ReceiptProcessor struct {
	Name   string    `json:"name"`
	ToldAt time.Time `json:"told_at"`
}

// A ReceiptException is what was not deleted, and why.
type ReceiptException struct {
	Store   string     `json:"store"`
	Name    string     `json:"name"`
	Records int64      `json:"records"`
	Basis   string     `json:"basis"`
	Until   string     `json:"until"`
	Since   *time.Time `json:"since,omitempty"`
	EndedAt *time.Time `json:"ended_at,omitempty"`
}

// A SignedReceipt is a receipt with the signature over it, in the form that JSON
// has without white space.
type SignedReceipt struct {
	Receipt   json.RawMessage `json:"receipt"`
	Signature []byte          `json:"signature,omitempty"`
	PublicKey []byte          `json:"public_key,omitempty"`
}

// ErrSignature says that a receipt is not what was signed.
var ErrSignature = errors.New("the receipt is not what was signed with this key")

// VerifyReceipt checks a signed receipt, as it was fetched, and reads it. With a
// key it must be of that one; nil: of the one that stands beside it.
func VerifyReceipt(text []byte, key ed25519.PublicKey) (Receipt, ed25519.PublicKey, error) {
	var signed SignedReceipt
	var r Receipt
	if err := json.Unmarshal(text, &signed); err != nil || len(signed.Receipt) == 0 {
		return r, nil, errors.New("this is no receipt")
	}
	var said bytes.Buffer
	if err := json.Compact(&said, signed.Receipt); err != nil {
		return r, nil, errors.New("this is no receipt")
	}
	if err := json.Unmarshal(said.Bytes(), &r); err != nil || r.Format != ReceiptFormat {
		return r, nil, errors.New("this is no receipt, or one of another version")
	}
	if key == nil {
		key = signed.PublicKey
	}
	if len(signed.Signature) == 0 {
		return r, nil, errors.New("the receipt is not signed")
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, said.Bytes(), signed.Signature) {
		return r, nil, ErrSignature
	}
	return r, key, nil
}

func optional(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

func millis(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

// receipt tells how far an erasure is.
func (s *Service) receipt(ctx context.Context, q db.Querier, e *erasure) (Receipt, error) {
	w, err := parseWork(e.Work)
	if err != nil {
		return Receipt{}, err
	}
	now := s.Clock.Millis()
	r := Receipt{
		Format: ReceiptFormat, ID: e.ID, State: "open", Subject: e.Subject, RequestedAt: at(e.RequestedAt), DueAt: at(e.DueAt),
		CompletedAt: optional(e.CompletedAt), IssuedAt: at(now), Steps: []ReceiptStep{}, Stores: []ReceiptStore{}, Processors: []ReceiptProcessor{}, Exceptions: []ReceiptException{},
	}
	if e.CompletedAt > 0 {
		r.State = "complete"
	} else {
		r.Delayed = e.Failure
		if e.LateUntil > now && w.Steps["processors_told"] > 0 {
			r.WaitsUntil = optional(e.LateUntil)
		}
	}
	w.Steps["complete"] = e.CompletedAt // the receipt is that step
	for _, name := range Steps() {
		if done := w.Steps[name]; done > 0 {
			r.Steps = append(r.Steps, ReceiptStep{name, at(done)})
		}
	}
	if w.KeyRemovedAt > 0 {
		r.Key = &ReceiptKey{at(w.KeyRemovedAt), at(w.KeyGoneAt), w.KeyGoneAt > e.DueAt}
	}
	for _, name := range slices.Sorted(maps.Keys(w.Processors)) {
		r.Processors = append(r.Processors, ReceiptProcessor{name, at(w.Processors[name])})
	}
	exceptions, err := s.exceptions(ctx, q, e.ID)
	if err != nil {
		return Receipt{}, err
	}
	held := map[string]int64{}
	for _, x := range exceptions {
		if x.EndedAt == 0 {
			held[StoreMain+"/"+x.Table]++
		}
	}
	s.stores(&r, w, held)
	s.excepted(&r, w, exceptions)
	return r, nil
}

// stores lists every table and kind of object that is looked at, also those in
// which nothing was.
func (s *Service) stores(r *Receipt, w work, held map[string]int64) {
	for _, t := range s.Map.Tables {
		if t.Nobody == "" {
			name := t.Store + "/" + t.Name
			r.Stores = append(r.Stores, ReceiptStore{t.Store, t.Name, w.Rows[name], w.Kept[name] + held[name]})
		}
	}
	seen := map[string]bool{}
	for _, o := range s.Map.Objects {
		if name := o.Key.Prefix(); o.Subject != "" && !seen[name] && name != heldPrefix {
			seen[name] = true
			r.Stores = append(r.Stores, ReceiptStore{"objects", name, w.Objects[name], 0})
		}
	}
}

// excepted lists what is kept: by the map, and for holds.
func (s *Service) excepted(r *Receipt, w work, exceptions []exception) {
	for _, t := range s.Map.Tables {
		if n := w.Kept[t.Store+"/"+t.Name]; n > 0 && t.Erase.Do == Retain {
			r.Exceptions = append(r.Exceptions, ReceiptException{Store: t.Store, Name: t.Name, Records: n, Basis: t.Erase.Basis, Until: t.Erase.Until})
		}
	}
	holds := s.Map.Table(StoreMain, "holds")
	if len(exceptions) > 0 {
		r.Complaint = s.Policy.Complaint()
	}
	for _, x := range exceptions {
		r.Exceptions = append(r.Exceptions, ReceiptException{Store: StoreMain, Name: x.Table, Records: 1,
			Basis: holds.Erase.Basis, Until: holds.Erase.Until, Since: optional(x.KeptAt), EndedAt: optional(x.EndedAt)})
	}
}

// complete ends an erasure with its one receipt.
func (s *Service) complete(ctx context.Context, e *erasure) error { return s.issue(ctx, e.ID) }

// issue writes the signed receipt of an erasure that is verified.
func (s *Service) issue(ctx context.Context, id string) error {
	var first bool
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		var e erasure
		if err := tx.Get(ctx, &e, selectErasure+`WHERE id = ?`+db.ForUpdate(tx), id); err != nil {
			return err
		}
		now := s.Clock.Millis()
		if first = e.CompletedAt == 0; first {
			if e.Step != "verified" {
				return nil // somebody began anew, or has ended it
			}
			e.CompletedAt = now
		}
		r, err := s.receipt(ctx, tx, &e)
		if err == nil {
			var c Checkpoint
			c, err = s.ledger.public(ctx, tx)
			r.Checkpoint = &c
		}
		if err != nil {
			return err
		}
		text, err := s.sign(r)
		if err != nil {
			return stuck{"sign_failed", err}
		}
		did, err := parseWork(e.Work)
		if err != nil {
			return err
		}
		did.Counted = nil // names of objects, of which none is left to be counted twice
		rest, err := json.Marshal(did)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE erasures SET receipt = ?, receipt_at = ?, completed_at = ?, failures = 0, failure = '', work = ? WHERE id = ?`,
			text, now, e.CompletedAt, string(rest), id)
		if err != nil {
			return err
		}
		_, err = s.closeRequests(ctx, tx, OutcomeDone, `subject = ? AND kind = ?`, e.Subject, RequestErasure)
		return err
	})
	if err == nil && first {
		s.Metrics.erasuresCompleted.Inc()
		s.Log.InfoContext(ctx, "an erasure is complete", "erasure", id)
	}
	return err
}

func (s *Service) sign(r Receipt) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return json.Marshal(SignedReceipt{Receipt: text, Signature: s.Vault.Sign(text), PublicKey: s.Vault.PublicKey()})
}

// Receipt answers whoever has the secret: the signed receipt, or how far the
// erasure is, which is not signed. Anybody else gets NotFound.
func (s *Service) Receipt(ctx context.Context, id, secret string) (SignedReceipt, error) {
	e, err := s.find(ctx, id)
	if errors.Is(err, sql.ErrNoRows) || err == nil && !e.opens(secret) {
		return SignedReceipt{}, noReceipt()
	}
	if err != nil {
		return SignedReceipt{}, away(fmt.Errorf("read a receipt: %w", err))
	}
	var signed SignedReceipt
	if e.CompletedAt > 0 {
		return signed, json.Unmarshal(e.Receipt, &signed)
	}
	r, err := s.receipt(ctx, s.DB, e)
	if err != nil {
		return signed, away(err)
	}
	signed.Receipt, err = json.Marshal(r)
	return signed, err
}

// An OpenErasure is a line of the operator's list: no personal data.
type OpenErasure struct {
	ID          string
	Subject     string
	RequestedAt time.Time
	DueAt       time.Time
	Step        string // the last that is done
	Failure     string
	Failures    int
	LateUntil   time.Time // zero: nothing is waited for
	CompletedAt time.Time // zero: open
}

// Erasures lists those that are open and, with all, those that are complete, after
// the given id, at most limit.
func (s *Service) Erasures(ctx context.Context, all bool, after string, limit int) ([]OpenErasure, error) {
	var rows []erasure
	query := selectErasure + `WHERE id > ? `
	if !all {
		query += `AND completed_at = 0 `
	}
	if err := s.DB.Select(ctx, &rows, query+`ORDER BY id LIMIT ?`, after, limit); err != nil {
		return nil, away(fmt.Errorf("list erasures: %w", err))
	}
	var list []OpenErasure
	for _, e := range rows {
		o := OpenErasure{ID: e.ID, Subject: e.Subject, RequestedAt: at(e.RequestedAt), DueAt: at(e.DueAt), Step: e.Step, Failure: e.Failure, Failures: e.Failures}
		if e.CompletedAt > 0 {
			o.CompletedAt = at(e.CompletedAt)
		} else if e.LateUntil > s.Clock.Millis() {
			o.LateUntil = at(e.LateUntil)
		}
		list = append(list, o)
	}
	return list, nil
}

// String is a receipt in words for its owner.
func (r Receipt) String() string {
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format+"\n", args...) }
	day := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
	line("Receipt %s of the erasure of account %s: %s.", r.ID, r.Subject, r.State)
	line("Asked for %s, due %s.", day(r.RequestedAt), day(r.DueAt))
	if r.CompletedAt != nil {
		line("Complete since %s.", day(*r.CompletedAt))
	}
	if r.Key != nil {
		line("The account's key was removed %s; from %s on no backup can open anything of it.", day(r.Key.RemovedAt), day(r.Key.UnrecoverableAt))
		if r.Key.BehindDeadline {
			line("That is behind the deadline.")
		}
	}
	for _, s := range r.Stores {
		if s.Deleted+s.Left > 0 {
			line("  %s %s: %d deleted, %d left", s.Store, s.Name, s.Deleted, s.Left)
		}
	}
	if len(r.Processors) == 0 {
		line("Nobody outside held anything.")
	}
	for _, p := range r.Processors {
		line("  %s was told %s", p.Name, day(p.ToldAt))
	}
	for _, x := range r.Exceptions {
		if x.EndedAt != nil {
			line("  kept until %s: %d of %s %s. %s", day(*x.EndedAt), x.Records, x.Store, x.Name, x.Basis)
		} else {
			line("  kept: %d of %s %s. %s Until: %s", x.Records, x.Store, x.Name, x.Basis, x.Until)
		}
	}
	if r.Checkpoint != nil {
		line("It holds the ledger's checkpoint of %s: `zimage ledger verify --checkpoint` compares the ledger with it.", day(r.Checkpoint.At))
	}
	if r.Complaint != "" {
		line("%s", r.Complaint)
	}
	return b.String()
}
