package privacy

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// A RequestKind is which right somebody uses.
type RequestKind string

// The kinds.
const (
	RequestAccess        RequestKind = "access"
	RequestExport        RequestKind = "export"
	RequestErasure       RequestKind = "erasure"
	RequestRectification RequestKind = "rectification"
	RequestRestriction   RequestKind = "restriction"
	RequestObjection     RequestKind = "objection"
	RequestDoNotSell     RequestKind = "do_not_sell"
)

// RequestKinds are all that there are.
func RequestKinds() []RequestKind {
	return []RequestKind{RequestAccess, RequestExport, RequestErasure, RequestRectification, RequestRestriction, RequestObjection, RequestDoNotSell}
}

// words are what a kind is called in a mail.
func (k RequestKind) words() string {
	switch k {
	case RequestAccess:
		return "to learn what is held about you"
	case RequestExport:
		return "for a copy of your data"
	case RequestErasure:
		return "to erase your account and all your data"
	case RequestRectification:
		return "to correct your data"
	case RequestRestriction:
		return "to restrict the processing of your data"
	case RequestObjection:
		return "to object to the use of your data"
	case RequestDoNotSell:
		return "not to sell or share your data"
	}
	return ""
}

// A RequestState is how far a request is.
type RequestState string

// The states.
const (
	RequestUnconfirmed RequestState = "unconfirmed" // its address has not confirmed it
	RequestOpen        RequestState = "open"
	RequestClosed      RequestState = "closed"
)

// A RequestOutcome is how a request was closed.
type RequestOutcome string

// The outcomes.
const (
	OutcomeDone        RequestOutcome = "done"
	OutcomeNothingHeld RequestOutcome = "nothing_held"
	OutcomeRefused     RequestOutcome = "refused"
	OutcomeWithdrawn   RequestOutcome = "withdrawn"   // by the person, or with the account
	OutcomeUnconfirmed RequestOutcome = "unconfirmed" // the address did not confirm it in time
)

// Where requests come from.
const (
	OriginSelf    = "self"    // the person, in their account
	OriginStaff   = "staff"   // the staff, in the account
	OriginAddress = "address" // the staff, for somebody who wrote from an address
)

const (
	confirmWithin = 7 * 24 * time.Hour  // a mailed code is good
	objectWithin  = 3 * 24 * time.Hour  // from the confirmation, the owner of a guarded account can withdraw what would erase it
	wipeAfter     = 30 * 24 * time.Hour // from the closing, address and note are forgotten
	requestLife   = receiptLife         // from the closing, the row stays
	noteMost      = 2000                // characters
	receivedMost  = 60                  // days that a letter may have lain
	openMost      = 5                   // that one person has asked the staff for at once
)

// A Request is somebody's use of a right.
type Request struct {
	ID       string
	Subject  string // whose; empty: no account is known to be the address's
	Kind     RequestKind
	State    RequestState
	Origin   string
	Ref      string // the export, erasure or purpose that it is about; empty: none
	Outcome  RequestOutcome
	Note     string    // what it asks for; empty: none, forgotten, or not opened
	Address  string    // that it came from; empty: the account's, forgotten, or not opened
	Received time.Time // from then on the deadline counts; a letter, perhaps before it was opened
	OpenedAt time.Time
	DueAt    time.Time
	ClosedAt time.Time // zero: not yet
	ActsAt   time.Time // until then it can be withdrawn before it is done; zero: it did not wait
	Overdue  bool
}

type requestRow struct {
	ID        string         `db:"id"`
	Subject   string         `db:"subject"`
	Kind      RequestKind    `db:"kind"`
	State     RequestState   `db:"state"`
	Origin    string         `db:"origin"`
	Ref       string         `db:"ref"`
	Outcome   RequestOutcome `db:"outcome"`
	Address   []byte         `db:"address"`
	Note      []byte         `db:"note"`
	Received  int64          `db:"received_at"`
	OpenedAt  int64          `db:"opened_at"`
	DueAt     int64          `db:"due_at"`
	ExpiresAt int64          `db:"expires_at"`
	ClosedAt  int64          `db:"closed_at"`
	ActsAt    int64          `db:"acts_at"`
}

const (
	requestColumns = `id, subject, kind, state, origin, ref, outcome, address, note, received_at, opened_at, due_at, expires_at, closed_at, acts_at`
	selectRequest  = `SELECT ` + requestColumns + ` FROM requests `
)

func (s *Service) viewRequest(r requestRow) Request {
	v := Request{ID: r.ID, Subject: r.Subject, Kind: r.Kind, State: r.State, Origin: r.Origin, Ref: r.Ref, Outcome: r.Outcome,
		Received: moment(r.Received), OpenedAt: moment(r.OpenedAt), DueAt: moment(r.DueAt), ClosedAt: moment(r.ClosedAt), ActsAt: moment(r.ActsAt)}
	if r.nobodys() {
		v.Subject = ""
	}
	v.Overdue = r.State != RequestClosed && r.DueAt <= s.Clock.Millis()
	return v
}

// nobodys: it has a key of its own, since no account is known.
func (r requestRow) nobodys() bool { return r.Subject == r.ID }

// openRequest unseals what a request says.
func (s *Service) openRequest(ctx context.Context, r requestRow) (Request, error) {
	v := s.viewRequest(r)
	for _, f := range []struct {
		column string
		sealed []byte
		into   *string
	}{{"note", r.Note, &v.Note}, {"address", r.Address, &v.Address}} {
		if f.sealed == nil {
			continue
		}
		plain, err := s.Vault.Unseal(ctx, r.Subject, f.sealed, vault.Column("requests", f.column, r.ID))
		if errors.Is(err, vault.ErrDestroyed) {
			continue
		}
		if err != nil {
			return v, fmt.Errorf("open a request: %w", err)
		}
		*f.into = string(plain)
	}
	return v, nil
}

func (r requestRow) event(what events.Type) events.Event {
	state := string(r.State)
	if r.State == RequestClosed {
		state = string(r.Outcome)
	}
	return events.Event{Type: what, Subject: r.Subject, Ref: r.ID, Facts: map[events.Fact]string{events.Scope: string(r.Kind), events.State: state}}
}

// happened tells of a request, when there is somebody to tell.
func (s *Service) happened(ctx context.Context, tx *db.Tx, e events.Event) error {
	if s.Events == nil {
		return nil
	}
	e.At = s.Clock.Now()
	return s.Events.Append(ctx, tx, e)
}

// newRequest fills in what all have. The deadline counts from the time that is given.
func (s *Service) newRequest(kind RequestKind, owner, origin string, at time.Time) requestRow {
	r := requestRow{ID: db.NewID("req", s.Clock.Now()), Subject: owner, Kind: kind, State: RequestOpen, Origin: origin, Received: at.UnixMilli(), OpenedAt: s.Clock.Millis()}
	r.DueAt = s.Policy.Windows.Deletion.After(at).UnixMilli()
	return r
}

func insertRequest(ctx context.Context, tx *db.Tx, r requestRow, address, token *string) error {
	_, err := tx.Exec(ctx, `INSERT INTO requests (`+requestColumns+`, address_lookup, token_lookup) VALUES (`+db.Marks(17)+`)`,
		r.ID, r.Subject, r.Kind, r.State, r.Origin, r.Ref, r.Outcome, r.Address, r.Note, r.Received, r.OpenedAt, r.DueAt, r.ExpiresAt, r.ClosedAt, r.ActsAt, address, token)
	if err != nil {
		return fmt.Errorf("write a request: %w", err)
	}
	return nil
}

// began writes that something was begun by somebody's right: a request that waited for
// it goes on as that, otherwise there is a new one.
func (s *Service) began(ctx context.Context, tx *db.Tx, kind RequestKind, owner, origin, ref string, at time.Time) error {
	n, err := tx.Exec(ctx, `UPDATE requests SET ref = ? WHERE subject = ? AND kind = ? AND state = 'open'`, ref, owner, kind)
	if err != nil || n > 0 {
		return err
	}
	r := s.newRequest(kind, owner, origin, at)
	r.Ref = ref
	if err := insertRequest(ctx, tx, r, nil, nil); err != nil {
		return err
	}
	return s.happened(ctx, tx, r.event(events.RequestOpened))
}

// fulfilled writes that a right was used which takes no time.
func (s *Service) fulfilled(ctx context.Context, tx *db.Tx, kind RequestKind, owner, ref string, at time.Time) error {
	n, err := s.closeRequests(ctx, tx, OutcomeDone, `subject = ? AND kind = ? AND state = 'open'`, owner, kind)
	if err != nil || n > 0 {
		return err
	}
	r := s.newRequest(kind, owner, OriginSelf, at)
	r.Ref, r.State, r.Outcome, r.DueAt, r.ClosedAt = ref, RequestClosed, OutcomeDone, r.OpenedAt, r.OpenedAt
	if err := insertRequest(ctx, tx, r, nil, nil); err != nil {
		return err
	}
	return s.happened(ctx, tx, r.event(events.RequestClosed))
}

// closeRequests closes those that are not closed, and tells of each.
func (s *Service) closeRequests(ctx context.Context, tx *db.Tx, outcome RequestOutcome, which string, args ...any) (int, error) {
	var rows []requestRow
	err := tx.Select(ctx, &rows, `UPDATE requests SET state = 'closed', outcome = ?, closed_at = ?, token_lookup = NULL WHERE state <> 'closed' AND `+which+
		` RETURNING `+requestColumns, append([]any{outcome, s.Clock.Millis()}, args...)...)
	if err != nil {
		return 0, fmt.Errorf("close a request: %w", err)
	}
	for _, r := range rows {
		if err := s.happened(ctx, tx, r.event(events.RequestClosed)); err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// rightUsed writes what people do by themselves into the list of requests.
func (s *Service) rightUsed(ctx context.Context, tx *db.Tx, e events.Event) error {
	switch e.Type {
	case events.AccountRestricted:
		return s.fulfilled(ctx, tx, RequestRestriction, e.Subject, "", e.At)
	case events.ObjectionMade:
		return s.fulfilled(ctx, tx, RequestObjection, e.Subject, e.Facts[events.Purpose], e.At)
	case events.DoNotSellSet:
		return s.fulfilled(ctx, tx, RequestDoNotSell, e.Subject, "", e.At)
	}
	return nil
}

func errNoRequest() error { return problem.New(problem.NotFound, "There is no such request.") }

// Requests is a page of a person's requests, newest first, behind the one whose id is
// given, and the id of the last when there are more.
func (s *Service) Requests(ctx context.Context, owner, after string, limit int) (list []Request, next string, err error) {
	query, args := selectRequest+`WHERE subject = ?`, []any{owner}
	if after != "" {
		query, args = query+` AND id < ?`, append(args, after)
	}
	var rows []requestRow
	if err := s.DB.Select(ctx, &rows, query+` ORDER BY id DESC LIMIT ?`, append(args, limit+1)...); err != nil {
		return nil, "", away(fmt.Errorf("list requests: %w", err))
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = rows[limit-1].ID
	}
	for _, r := range rows {
		v, err := s.openRequest(ctx, r)
		if err != nil {
			return nil, "", away(err)
		}
		list = append(list, v)
	}
	return list, next, nil
}

// Ask opens a request of a person's that the staff answers: access or rectification.
// The others are begun by what does them. Conflict while five are open.
func (s *Service) Ask(ctx context.Context, owner string, kind RequestKind, note string) (Request, error) {
	if kind != RequestAccess && kind != RequestRectification {
		return Request{}, problem.Invalid(problem.Field{Location: "body.kind", Message: "must be access or rectification: for the others there are ways of their own"})
	}
	note, err := checkNote(note, kind == RequestRectification)
	if err != nil {
		return Request{}, err
	}
	r := s.newRequest(kind, owner, OriginSelf, s.Clock.Now())
	if r.Note, err = s.sealNote(ctx, r, note); err != nil {
		return Request{}, away(err)
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := subject.Enter(ctx, tx, owner, subject.Account); err != nil {
			return err
		}
		var open int
		if err := tx.Get(ctx, &open, `SELECT count(*) FROM requests WHERE subject = ? AND state = 'open' AND kind IN (?, ?)`, owner, RequestAccess, RequestRectification); err != nil {
			return err
		}
		if open >= openMost {
			return problem.New(problem.Conflict, "Five of your requests are open. Wait for an answer, or write to the privacy contact.").OfRight()
		}
		if err := insertRequest(ctx, tx, r, nil, nil); err != nil {
			return err
		}
		return s.happened(ctx, tx, r.event(events.RequestOpened))
	})
	if err != nil {
		return Request{}, away(err)
	}
	v := s.viewRequest(r)
	v.Note = note
	return v, nil
}

func checkNote(note string, needed bool) (string, error) {
	note = strings.TrimSpace(strings.ReplaceAll(note, "\r\n", "\n"))
	strange := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }
	if needed && note == "" || !utf8.ValidString(note) || utf8.RuneCountInString(note) > noteMost || strings.ContainsFunc(note, strange) {
		return "", problem.Invalid(problem.Field{Location: "body.note", Message: fmt.Sprintf("must say what is asked for, in at most %d characters", noteMost)})
	}
	return note, nil
}

func (s *Service) sealNote(ctx context.Context, r requestRow, note string) ([]byte, error) {
	if note == "" {
		return nil, nil
	}
	return s.Vault.Seal(ctx, r.Subject, []byte(note), vault.Column("requests", "note", r.ID))
}

// codeStart is what a mailed code of a request begins with.
const codeStart = "zq_"

func newCode() (string, error) {
	raw := make([]byte, 24)
	_, err := rand.Read(raw)
	return codeStart + base64.RawURLEncoding.EncodeToString(raw), err
}

func (s *Service) codeLookup(code string) string { return s.Vault.Lookup("request code", code) }

// OpenRequest opens a request for somebody who wrote from a mail address, whether it
// has an account or not. A code goes there: nothing is done before it comes back. The
// deadline counts from the day on which the letter came; zero: from now.
func (s *Service) OpenRequest(ctx context.Context, by By, email string, kind RequestKind, note string, received time.Time) (Request, error) {
	if kind.words() == "" {
		return Request{}, problem.Invalid(problem.Field{Location: "body.kind", Message: "is no kind of request"})
	}
	address, canonical, err := s.Accounts.Address(email)
	if err != nil {
		return Request{}, err
	}
	if note, err = checkNote(note, false); err != nil {
		return Request{}, err
	}
	now := s.Clock.Now()
	if received.IsZero() {
		received = now
	} else if received.After(now) || received.Before(now.UTC().Truncate(24*time.Hour).AddDate(0, 0, -receivedMost)) {
		return Request{}, problem.Invalid(problem.Field{Location: "body.received_at", Message: fmt.Sprintf("must be today or at most %d days ago, in UTC", receivedMost)})
	}
	r := s.newRequest(kind, "", OriginAddress, received)
	r.Subject, r.State, r.ExpiresAt = r.ID, RequestUnconfirmed, now.Add(confirmWithin).UnixMilli()
	code, err := newCode()
	if err != nil {
		return Request{}, err
	}
	// The key first, the request second, as with accounts: one without the other is swept.
	if err := s.Vault.Create(ctx, r.ID); err != nil {
		return Request{}, away(err)
	}
	lookup, token := s.Vault.Lookup("request address", canonical), s.codeLookup(code)
	err = by(ctx, func(tx *db.Tx) (events.Event, error) {
		var there int
		err := tx.Get(ctx, &there, `SELECT count(*) FROM requests WHERE address_lookup = ? AND kind = ? AND state = 'unconfirmed'`, lookup, kind)
		if err == nil && there > 0 {
			err = problem.New(problem.Conflict, "A request of this kind waits for its confirmation by this address already.")
		}
		if err != nil {
			return events.Event{}, err
		}
		if r.Address, err = s.Vault.Seal(ctx, r.ID, []byte(address), vault.Column("requests", "address", r.ID)); err != nil {
			return events.Event{}, err
		}
		if r.Note, err = s.sealNote(ctx, r, note); err != nil {
			return events.Event{}, err
		}
		if err := insertRequest(ctx, tx, r, &lookup, &token); err != nil {
			return events.Event{}, err
		}
		err = s.Mail.Send(ctx, tx, mail.Message{Subject: r.ID, To: address, Template: mail.RequestConfirm,
			Data: map[string]string{"Request": kind.words(), "Code": code, "Contact": s.Policy.Contacts.Privacy}})
		return r.event(events.RequestOpened), err
	})
	if err != nil {
		return Request{}, away(errors.Join(err, s.Vault.Discard(ctx, r.ID)))
	}
	return s.viewRequest(r), nil
}

// ConfirmRequest takes a mailed code back, once: whoever has it reads the mail of the
// address. What was asked for is done, or begun, in the same transaction; for an
// address without an account the answer is that nothing is held. LinkInvalid for a
// code that is unknown, used or expired.
func (s *Service) ConfirmRequest(ctx context.Context, code string) (Request, error) {
	if !strings.HasPrefix(code, codeStart) {
		return Request{}, codeInvalid()
	}
	var id string
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		var r requestRow
		err := tx.Get(ctx, &r, selectRequest+`WHERE token_lookup = ? AND state = 'unconfirmed' AND expires_at > ?`, s.codeLookup(code), s.Clock.Millis())
		if isNone(err) {
			return codeInvalid()
		}
		if err != nil {
			return err
		}
		id = r.ID
		said, err := s.openRequest(ctx, r)
		if err != nil {
			return err
		}
		owner, p, err := s.ownerOf(ctx, tx, said.Address)
		if err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `UPDATE requests SET state = 'open', token_lookup = NULL WHERE id = ? AND state = 'unconfirmed'`, r.ID)
		if err != nil {
			return err
		}
		if n == 0 {
			return codeInvalid() // used in this moment
		}
		r.State = RequestOpen
		switch {
		case owner == "":
			return s.nothingHeld(ctx, tx, r, said)
		case p.State == subject.Active || r.Kind == RequestErasure:
			return s.goOn(ctx, tx, r, said, p)
		}
		return s.answer(ctx, tx, r, said.Address, OutcomeRefused, "The account with this address is closed and is being erased.")
	})
	if err != nil {
		return Request{}, away(err)
	}
	var r requestRow
	if err := s.DB.Get(ctx, &r, selectRequest+`WHERE id = ?`, id); err != nil {
		return Request{}, away(err)
	}
	if !r.nobodys() { // it is the account's now; otherwise account:sweep would do it
		if err := s.Vault.Destroy(ctx, r.ID); err != nil {
			s.Log.WarnContext(ctx, "a key is left to be swept", "request", r.ID)
		}
	}
	return s.viewRequest(r), nil
}

func codeInvalid() error {
	return problem.New(problem.LinkInvalid, "This code is not valid, or not any more.")
}

// ownerOf keeps the person's row, so that they do not close or change the address
// meanwhile.
func (s *Service) ownerOf(ctx context.Context, tx *db.Tx, address string) (string, subject.Subject, error) {
	owner, err := s.Accounts.Owner(ctx, tx, address)
	if err != nil || owner == "" {
		return "", subject.Subject{}, err
	}
	p, err := subject.Lock(ctx, tx, owner)
	if err != nil {
		return "", p, err
	}
	again, err := s.Accounts.Owner(ctx, tx, address)
	if err != nil || again != owner || p.State == subject.Erased {
		return "", p, err
	}
	return owner, p, nil
}

// nothingHeld answers an address without an account.
func (s *Service) nothingHeld(ctx context.Context, tx *db.Tx, r requestRow, said Request) error {
	if r.Kind == RequestErasure {
		if err := s.Accounts.ForgetSignUps(ctx, tx, said.Address); err != nil {
			return err
		}
	}
	err := s.Mail.Send(ctx, tx, mail.Message{Subject: r.ID, To: said.Address, Template: mail.RequestNothingHeld,
		Data: map[string]string{"Request": r.Kind.words(), "Complaint": s.Policy.Complaint()}})
	if err != nil {
		return err
	}
	_, err = s.closeRequests(ctx, tx, OutcomeNothingHeld, `id = ?`, r.ID)
	return err
}

// goOn makes a confirmed request the account's, and begins what it asks for.
func (s *Service) goOn(ctx context.Context, tx *db.Tx, r requestRow, said Request, p subject.Subject) error {
	r.Subject = p.ID
	note, err := s.sealNote(ctx, r, said.Note)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE requests SET subject = ?, note = ?, address = NULL, address_lookup = NULL WHERE id = ?`, p.ID, note, r.ID); err != nil {
		return err
	}
	// What the request's own key has sealed ends with it: who of the staff opened it, and
	// why, is for the account to see.
	if err := s.ledger.pass(ctx, tx, r.ID, p.ID); err != nil {
		return err
	}
	if err := s.happened(ctx, tx, r.event(events.RequestChanged)); err != nil {
		return err
	}
	switch r.Kind {
	case RequestErasure:
		if p.State == subject.Active {
			guarded, err := s.Accounts.Guarded(ctx, tx, p.ID)
			if err != nil {
				return err
			}
			if guarded {
				return s.wait(ctx, tx, r)
			}
			return s.Accounts.Honour(ctx, tx, p.ID, events.AccountClosing)
		}
		_, err := tx.Exec(ctx, `UPDATE requests SET ref = coalesce((SELECT id FROM erasures WHERE subject = ?), '') WHERE id = ?`, p.ID, r.ID)
		return err
	case RequestAccess, RequestExport:
		return s.exportFor(ctx, tx, r)
	case RequestRectification:
		return nil // the staff answers it
	}
	right := map[RequestKind]events.Type{RequestRestriction: events.AccountRestricted, RequestObjection: events.ObjectionMade, RequestDoNotSell: events.DoNotSellSet}[r.Kind]
	if err := s.Accounts.Honour(ctx, tx, p.ID, right); err != nil {
		return err
	}
	_, err = s.closeRequests(ctx, tx, OutcomeDone, `id = ?`, r.ID) // it was so before
	return err
}

// waits is the condition that a person's request waits for its owner to withdraw it.
const waits = `subject = ? AND kind = ? AND state = 'open' AND ref = '' AND acts_at > 0`

// wait lets the owner of an account withdraw what would erase it, when a letter was enough
// to ask for it and a sign-in would have needed more. A second letter waits with the first,
// of which the owner knows.
func (s *Service) wait(ctx context.Context, tx *db.Tx, r requestRow) error {
	var first int64
	if err := tx.Get(ctx, &first, `SELECT coalesce(min(acts_at), 0) FROM requests WHERE `+waits, r.Subject, r.Kind); err != nil {
		return err
	}
	if first > 0 {
		_, err := tx.Exec(ctx, `UPDATE requests SET acts_at = ? WHERE id = ?`, first, r.ID)
		return err
	}
	at := s.Clock.Now().Add(objectWithin)
	if _, err := tx.Exec(ctx, `UPDATE requests SET acts_at = ? WHERE id = ?`, at.UnixMilli(), r.ID); err != nil {
		return err
	}
	return s.tell(ctx, tx, r.Subject, mail.ErasureAsked, map[string]string{"When": at.Format("2 January 2006, 15:04 UTC"), "ID": r.ID, "Contact": s.Policy.Contacts.Privacy})
}

// act closes the account of a request that has waited, unless it was withdrawn or the
// account is closed already.
func (s *Service) act(ctx context.Context, r requestRow) error {
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		p, err := subject.Lock(ctx, tx, r.Subject)
		if err != nil || p.State != subject.Active {
			return err
		}
		var state RequestState
		if err := tx.Get(ctx, &state, `SELECT state FROM requests WHERE id = ?`+db.ForUpdate(tx), r.ID); err != nil || state != RequestOpen {
			return err
		}
		return s.Accounts.Honour(ctx, tx, p.ID, events.AccountClosing)
	})
}

// Withdraw ends a request of a person's, at their wish, while nothing was begun for it.
// Of an erasure that waited they are told by mail. NotFound when there is none of that
// id, Conflict when it cannot be withdrawn any more.
func (s *Service) Withdraw(ctx context.Context, owner, id string) error {
	return away(s.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := subject.Lock(ctx, tx, owner); err != nil { // neither is it begun in this moment
			return err
		}
		var r requestRow
		err := tx.Get(ctx, &r, selectRequest+`WHERE id = ? AND subject = ?`, id, owner)
		switch {
		case isNone(err):
			return errNoRequest()
		case err != nil:
			return err
		case r.State == RequestClosed:
			return problem.New(problem.Conflict, "The request is closed already.")
		case r.Ref != "":
			return problem.New(problem.Conflict, "What the request asks for is on its way.")
		case r.ActsAt > 0: // and with it every letter that waits for the same
			if _, err := s.closeRequests(ctx, tx, OutcomeWithdrawn, waits, owner, r.Kind); err != nil {
				return err
			}
			return s.tellOutcome(ctx, tx, r, "", OutcomeWithdrawn, "It was withdrawn by somebody who is signed in to the account.")
		}
		_, err = s.closeRequests(ctx, tx, OutcomeWithdrawn, `id = ?`, r.ID)
		return err
	}))
}

// exportFor has a copy made for a request, or lets it wait for the one that is being
// made. When there were too many lately the staff sees to it.
func (s *Service) exportFor(ctx context.Context, tx *db.Tx, r requestRow) error {
	id := db.NewID("exp", s.Clock.Now())
	switch err := s.addExport(ctx, tx, r.Subject, id); problem.CodeOf(err) {
	case problem.DailyLimit:
		return nil
	case problem.Conflict:
		if err := tx.Get(ctx, &id, `SELECT id FROM exports WHERE owner = ? AND status = '' AND removed_at = 0`, r.Subject); err != nil {
			return err
		}
	default:
		if err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `UPDATE requests SET ref = ? WHERE id = ?`, id, r.ID)
	return err
}

// answer closes a request and mails its outcome to where it came from.
func (s *Service) answer(ctx context.Context, tx *db.Tx, r requestRow, address string, outcome RequestOutcome, reason string) error {
	if _, err := s.closeRequests(ctx, tx, outcome, `id = ?`, r.ID); err != nil {
		return err
	}
	return s.tellOutcome(ctx, tx, r, address, outcome, reason)
}

func (s *Service) tellOutcome(ctx context.Context, tx *db.Tx, r requestRow, address string, outcome RequestOutcome, reason string) error {
	data := map[string]string{"Request": r.Kind.words(), "Reason": reason, "Complaint": s.Policy.Complaint()}
	data["Outcome"] = map[RequestOutcome]string{
		OutcomeDone: "It was done as you asked.", OutcomeRefused: "It was refused.", OutcomeWithdrawn: "It was closed as withdrawn.", OutcomeNothingHeld: "Nothing is held about you.",
	}[outcome]
	if address != "" {
		return s.Mail.Send(ctx, tx, mail.Message{Subject: r.Subject, To: address, Template: mail.RequestClosed, Data: data})
	}
	err := s.tell(ctx, tx, r.Subject, mail.RequestClosed, data)
	if isNone(err) || errors.Is(err, vault.ErrDestroyed) {
		return nil // erased: there is nobody to write to
	}
	return err
}

// ShowRequest opens a request to a privacy officer, with what the person wrote.
func (s *Service) ShowRequest(ctx context.Context, by By, id string) (v Request, err error) {
	err = by(ctx, func(tx *db.Tx) (events.Event, error) {
		var r requestRow
		err := tx.Get(ctx, &r, selectRequest+`WHERE id = ?`, id)
		if isNone(err) {
			err = errNoRequest()
		}
		if err != nil {
			return events.Event{}, err
		}
		v, err = s.openRequest(ctx, r)
		what := r.event(events.StaffOpened)
		return what, err
	})
	return v, away(err)
}

// lockRequest keeps the row of the account that a request belongs to, so that what it
// asks for is not begun in this moment, and then the request's own: the order of
// everybody.
func (s *Service) lockRequest(ctx context.Context, tx *db.Tx, id string) (r requestRow, err error) {
	if err := tx.Get(ctx, &r, selectRequest+`WHERE id = ?`, id); err != nil {
		return r, err
	}
	if !r.nobodys() {
		if _, err := subject.Lock(ctx, tx, r.Subject); err != nil && problem.CodeOf(err) != problem.Unauthorized {
			return r, err
		}
	}
	owner := r.Subject
	err = tx.Get(ctx, &r, selectRequest+`WHERE id = ?`+db.ForUpdate(tx), id)
	if err == nil && r.Subject != owner {
		err = problem.New(problem.Conflict, "The request is being confirmed. Look at it again.")
	}
	return r, err
}

// CloseRequest closes a request with the staff's answer: done, refused, withdrawn or
// nothing_held. The person is told with the reason, unless nobody confirmed the
// address. An erasure that runs closes its request itself.
func (s *Service) CloseRequest(ctx context.Context, by By, id string, outcome RequestOutcome, reason string) (v Request, err error) {
	switch outcome {
	case OutcomeDone, OutcomeRefused, OutcomeWithdrawn, OutcomeNothingHeld:
	default:
		return v, problem.Invalid(problem.Field{Location: "body.outcome", Message: "must be done, refused, withdrawn or nothing_held"})
	}
	err = by(ctx, func(tx *db.Tx) (events.Event, error) {
		r, err := s.lockRequest(ctx, tx, id)
		switch {
		case isNone(err):
			return events.Event{}, errNoRequest()
		case err != nil:
			return events.Event{}, err
		case r.State == RequestClosed:
			return events.Event{}, problem.New(problem.Conflict, "The request is closed already.")
		case r.Kind == RequestErasure && r.Ref != "":
			return events.Event{}, problem.New(problem.Conflict, "The erasure is on its way, and closes the request when it is complete.")
		case r.State == RequestUnconfirmed && outcome != OutcomeRefused && outcome != OutcomeWithdrawn:
			return events.Event{}, problem.New(problem.Conflict, "Nobody has confirmed the address: the request can be refused or withdrawn.")
		}
		said, err := s.openRequest(ctx, r)
		if err != nil {
			return events.Event{}, err
		}
		if r.State == RequestOpen {
			if err := s.tellOutcome(ctx, tx, r, said.Address, outcome, reason); err != nil {
				return events.Event{}, err
			}
		}
		waited := r.State == RequestOpen && r.ActsAt > 0
		r.State, r.Outcome, r.ClosedAt = RequestClosed, outcome, s.Clock.Millis()
		_, err = tx.Exec(ctx, `UPDATE requests SET state = 'closed', outcome = ?, closed_at = ?, token_lookup = NULL WHERE id = ?`, outcome, r.ClosedAt, id)
		if err == nil && waited { // every letter that waits for the same has this answer
			_, err = s.closeRequests(ctx, tx, outcome, waits, r.Subject, r.Kind)
		}
		v = s.viewRequest(r)
		return r.event(events.RequestClosed), err
	})
	return v, away(err)
}

// Which requests the staff lists.
const (
	RequestsOpen    = "open" // also those that wait for their confirmation
	RequestsOverdue = "overdue"
	RequestsAll     = "all"
)

// StaffRequests lists requests by id, after the given one, at most limit. It opens no
// personal data.
func (s *Service) StaffRequests(ctx context.Context, which, after string, limit int) ([]Request, error) {
	query, args := selectRequest+`WHERE id > ?`, []any{after}
	switch which {
	case RequestsAll:
	case RequestsOverdue:
		query, args = query+` AND state <> 'closed' AND due_at <= ?`, append(args, s.Clock.Millis())
	default:
		query += ` AND state <> 'closed'`
	}
	var rows []requestRow
	if err := s.DB.Select(ctx, &rows, query+` ORDER BY id LIMIT ?`, append(args, limit)...); err != nil {
		return nil, away(fmt.Errorf("list requests: %w", err))
	}
	list := make([]Request, len(rows))
	for i, r := range rows {
		list[i] = s.viewRequest(r)
	}
	return list, nil
}
