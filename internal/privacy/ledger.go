package privacy

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/vault"
)

const (
	// KindLedgerSeal is the job that chains new entries.
	KindLedgerSeal = "ledger:seal"
	// ledgerEvery leaves room within the minute that is promised for a job that waits.
	ledgerEvery = 20 * time.Second
	ledgerBatch = 1000 // entries
	ledgerSalt  = 32
)

// ledgerKinds are the events that the ledger is about.
var ledgerKinds = map[events.Type]bool{
	events.AccountClosing: true, events.AccountRestricted: true, events.AccountUnrestricted: true,
	events.ConsentGiven: true, events.ConsentWithdrawn: true, events.ObjectionMade: true, events.ObjectionWithdrawn: true,
	events.StaffOpened: true, events.StaffLookedFor: true, events.StaffMadeAccount: true, events.StaffSuspended: true, events.StaffUnsuspended: true, events.StaffClosed: true,
	events.StaffClosedChild: true, events.StaffResetFactors: true, events.StaffGaveRole: true, events.StaffTookRole: true,
	events.StaffListedKeys: true, events.StaffMadeKey: true, events.StaffRevokedKey: true,
	events.StaffDisclosed: true, events.HoldPlaced: true, events.HoldReleased: true,
	events.HoldRenewed: true, events.DoNotSellSet: true, events.DoNotSellWithdrawn: true,
	events.RequestOpened: true, events.RequestChanged: true, events.RequestClosed: true, events.PolicyPublished: true,
}

// LedgerOptions for NewLedger; all are required.
type LedgerOptions struct {
	DB    *db.DB
	Vault *vault.Vault
	Clock *clock.Clock
}

// A Ledger keeps what the service must be able to prove, so that nobody can change
// it unseen. An entry is written in the transaction in which it happened, and
// within a minute chained to all before it. The chain holds salted commitments
// alone: it names nobody, and stays valid when somebody's details are erased.
type Ledger struct{ o LedgerOptions }

// NewLedger makes a ledger. Register its Kind and let its schedule come round.
func NewLedger(o LedgerOptions) *Ledger { return &Ledger{o} }

// Kind is the job that chains entries.
func (l *Ledger) Kind() jobs.Kind {
	return jobs.Kind{Name: KindLedgerSeal, Timeout: 5 * time.Minute, Run: func(ctx context.Context, _ *jobs.Run) error {
		if _, err := l.Seal(ctx); err != nil {
			return jobs.Retry("internal", err)
		}
		return nil
	}}
}

// LedgerSchedules are the ledger's recurring work.
func LedgerSchedules() []jobs.Schedule {
	return []jobs.Schedule{{Name: "ledger-seal", Every: ledgerEvery, Kind: KindLedgerSeal, Party: "ledger"}}
}

// ledgerDetails are what an entry is a commitment to.
type ledgerDetails struct {
	Subject string                 `json:"subject,omitempty"`
	Ref     string                 `json:"ref,omitempty"`
	Hidden  bool                   `json:"hidden,omitempty"`
	Facts   map[events.Fact]string `json:"facts,omitempty"`
}

// Happened keeps an event of the kinds that the ledger is about, in its
// transaction. Of a person whose key is destroyed it keeps that it happened, and
// not to whom.
func (l *Ledger) Happened(ctx context.Context, tx *db.Tx, e events.Event) error {
	if !ledgerKinds[e.Type] {
		return nil
	}
	text, err := json.Marshal(ledgerDetails{Subject: e.Subject, Ref: e.Ref, Hidden: e.Hidden, Facts: e.Facts})
	if err != nil {
		return fmt.Errorf("write a ledger entry: %w", err)
	}
	salt := make([]byte, ledgerSalt)
	if _, err := rand.Read(salt); err != nil {
		return fmt.Errorf("write a ledger entry: %w", err)
	}
	entry := entryRow{ID: db.NewID("led", l.o.Clock.Now()), Kind: string(e.Type), At: e.At.UnixMilli()}
	entry.Commitment = entry.commit(salt, text)
	if _, err := tx.Exec(ctx, `INSERT INTO ledger_entries (id, kind, at, commitment) VALUES (?, ?, ?, ?)`,
		entry.ID, entry.Kind, entry.At, entry.Commitment); err != nil {
		return fmt.Errorf("write a ledger entry: %w", err)
	}
	kept := append(salt, text...)
	if e.Subject != "" {
		kept, err = l.o.Vault.Seal(ctx, e.Subject, kept, ledgerData(entry.ID))
		if errors.Is(err, vault.ErrDestroyed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("seal a ledger entry: %w", err)
		}
	}
	hidden := 0
	if e.Hidden {
		hidden = 1
	}
	if _, err := tx.Exec(ctx, `INSERT INTO ledger_details (entry_id, subject, hidden, details) VALUES (?, ?, ?, ?)`,
		entry.ID, e.Subject, hidden, kept); err != nil {
		return fmt.Errorf("write a ledger entry: %w", err)
	}
	return nil
}

// pass makes the entries about a request those of the account that it is of, with
// the same words and salts, so that they still fit their commitments.
func (l *Ledger) pass(ctx context.Context, tx *db.Tx, from, to string) error {
	var rows []entryRow
	if err := tx.Select(ctx, &rows, selectEntry+`WHERE d.subject = ? ORDER BY e.id`, from); err != nil {
		return err
	}
	for _, e := range rows {
		sealed := e.Details
		plain, err := l.o.Vault.Unseal(ctx, from, e.Details, ledgerData(e.ID))
		if err == nil {
			sealed, err = l.o.Vault.Seal(ctx, to, plain, ledgerData(e.ID))
		}
		if err != nil && !errors.Is(err, vault.ErrCorrupt) { // what somebody changed stays so, and is found
			return fmt.Errorf("pass on a ledger entry: %w", err)
		}
		if _, err := tx.Exec(ctx, `UPDATE ledger_details SET subject = ?, details = ? WHERE entry_id = ?`, to, sealed, e.ID); err != nil {
			return fmt.Errorf("pass on a ledger entry: %w", err)
		}
	}
	return nil
}

func ledgerData(entry string) []byte { return vault.Column("ledger_details", "details", entry) }

// entryRow is an entry with its details, if they are still there.
type entryRow struct {
	ID         string         `db:"id"`
	Kind       string         `db:"kind"`
	At         int64          `db:"at"`
	Commitment []byte         `db:"commitment"`
	Sequence   sql.NullInt64  `db:"sequence"`
	Subject    sql.NullString `db:"subject"`
	Hidden     sql.NullInt64  `db:"hidden"`
	Details    []byte         `db:"details"`
}

const selectEntry = `SELECT e.id, e.kind, e.at, e.commitment, e.sequence, d.subject, d.hidden, d.details
	FROM ledger_entries e LEFT JOIN ledger_details d ON d.entry_id = e.id `

func (e entryRow) commit(salt, text []byte) []byte {
	sum := sha256.Sum256(vault.Data("zimage ledger entry", e.ID, e.Kind, ledgerNumber(e.At), string(salt), string(text)))
	return sum[:]
}

func ledgerNumber(n int64) string { return strconv.FormatInt(n, 10) }

// errUnfit means that details are not those that the entry is a commitment to.
var errUnfit = errors.New("its details do not fit its commitment")

// open opens an entry's details and holds them against the commitment. They are
// nil when they were erased.
func (l *Ledger) open(ctx context.Context, e entryRow) (*ledgerDetails, error) {
	if !e.Subject.Valid {
		return nil, nil
	}
	plain := e.Details
	if e.Subject.String != "" {
		var err error
		plain, err = l.o.Vault.Unseal(ctx, e.Subject.String, e.Details, ledgerData(e.ID))
		switch {
		case errors.Is(err, vault.ErrDestroyed):
			return nil, nil
		case errors.Is(err, vault.ErrCorrupt), errors.Is(err, vault.ErrNoKey):
			return nil, errUnfit
		case err != nil:
			return nil, err
		}
	}
	if len(plain) < ledgerSalt || !bytes.Equal(e.commit(plain[:ledgerSalt], plain[ledgerSalt:]), e.Commitment) {
		return nil, errUnfit
	}
	var d ledgerDetails
	if err := json.Unmarshal(plain[ledgerSalt:], &d); err != nil {
		return nil, errUnfit
	}
	// A request that became an account's has brought its entries, as they were.
	if d.Subject != e.Subject.String && !strings.HasPrefix(d.Subject, "req_") || e.Hidden.Int64 != 0 && !d.Hidden || e.Hidden.Int64 != 1 && d.Hidden {
		return nil, errUnfit
	}
	return &d, nil
}

// A LedgerEntry is one that a person sees: what happened to their data.
type LedgerEntry struct {
	ID      string
	Kind    events.Type
	At      time.Time
	Ref     string
	Facts   map[events.Fact]string // without who of the staff it was
	Sealed  bool                   // chained; until then, for a minute at most, it is only written
	Damaged bool                   // its details were changed by somebody: they are left out
}

// Entries is a page of what the ledger holds about a person, newest first, and the
// cursor of the next one, empty at the end. What they must not be told is left
// out.
func (l *Ledger) Entries(ctx context.Context, subject, cursor string, limit int) (list []LedgerEntry, next string, err error) {
	if limit < 1 || limit > 100 {
		return nil, "", problem.Invalid(problem.Field{Location: "query.limit", Message: "must be from 1 to 100"})
	}
	query, args := selectEntry+`WHERE d.subject = ? AND d.hidden = 0`, []any{subject}
	if cursor != "" {
		id, _, _ := strings.Cut(cursor, ".")
		if subtle.ConstantTimeCompare([]byte(l.cursor(subject, id)), []byte(cursor)) != 1 {
			return nil, "", problem.Invalid(problem.Field{Location: "query.cursor", Message: "is not a cursor of yours; take next_cursor of the page before"})
		}
		query, args = query+` AND d.entry_id < ?`, append(args, id)
	}
	var rows []entryRow
	if err := l.o.DB.Select(ctx, &rows, query+` ORDER BY d.entry_id DESC LIMIT ?`, append(args, limit+1)...); err != nil {
		return nil, "", db.Unavailable(err)
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = l.cursor(subject, rows[limit-1].ID)
	}
	list = make([]LedgerEntry, 0, len(rows))
	for _, r := range rows {
		e, err := l.show(ctx, r)
		if err != nil {
			return nil, "", db.Unavailable(err)
		}
		list = append(list, e)
	}
	return list, next, nil
}

// show is what a person sees of an entry.
func (l *Ledger) show(ctx context.Context, r entryRow) (LedgerEntry, error) {
	d, err := l.open(ctx, r)
	if err != nil && !errors.Is(err, errUnfit) {
		return LedgerEntry{}, err
	}
	e := LedgerEntry{ID: r.ID, Kind: events.Type(r.Kind), At: time.UnixMilli(r.At).UTC(), Sealed: r.Sequence.Valid, Damaged: d == nil}
	if d != nil {
		e.Ref, e.Facts = d.Ref, d.Facts
		delete(e.Facts, events.Staff)
	}
	return e, nil
}

const (
	ledgerTable  = "ledger_details"
	sealedLedger = "ledger" // what is sealed in it

	// ledgerShown are the entries that people see, as a table for their export.
	ledgerShown = `(SELECT d.entry_id, d.subject, d.hidden, d.details, e.kind, e.at, e.commitment, e.sequence
		FROM ledger_details d JOIN ledger_entries e ON e.id = d.entry_id WHERE d.hidden = 0) AS shown`
)

// record is an entry in an export. It holds the same as the list that its person
// sees: one that was damaged says so, and is no reason to fail.
func (l *Ledger) record(ctx context.Context, t *Table, r row) ([]field, error) {
	e := entryRow{ID: textOf(r["entry_id"]), Kind: textOf(r["kind"]), At: millisOf(r["at"]),
		Subject: sql.NullString{String: textOf(r["subject"]), Valid: true}, Hidden: sql.NullInt64{Int64: millisOf(r["hidden"]), Valid: true}}
	e.Commitment, _ = r["commitment"].([]byte)
	e.Details, _ = r["details"].([]byte)
	e.Sequence.Int64, e.Sequence.Valid = r["sequence"].(int64)
	shown, err := l.show(ctx, e)
	if err != nil {
		return nil, err
	}
	values := map[string]any{"id": shown.ID, "kind": string(shown.Kind), "at": stamp(shown.At), "sealed": shown.Sealed, "damaged": shown.Damaged, "details": nil}
	if !shown.Damaged {
		details := map[string]string{}
		for name, value := range shown.Facts {
			details[string(name)] = value
		}
		if shown.Ref != "" {
			details["ref"] = shown.Ref
		}
		text, err := json.Marshal(details)
		if err != nil {
			return nil, err
		}
		values["details"] = json.RawMessage(text)
	}
	var fields []field
	for _, c := range t.Columns {
		if c.Export != "" {
			fields = append(fields, field{c.Export, values[c.Export]})
		}
	}
	for _, b := range t.Beside {
		fields = append(fields, field{b.Name, values[b.Name]})
	}
	return fields, nil
}

func (l *Ledger) cursor(subject, id string) string {
	return id + "." + l.o.Vault.Lookup("ledger cursor", subject+"\x00"+id)[:24]
}
