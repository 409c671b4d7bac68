package privacy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math"
	"time"

	"zimage/internal/db"
	"zimage/internal/vault"
)

// batchRow is a link of the chain.
type batchRow struct {
	Number    int64  `db:"number"`
	First     int64  `db:"first"`
	Entries   int64  `db:"entries"`
	At        int64  `db:"at"`
	Hash      []byte `db:"hash"`
	Signature []byte `db:"signature"`
}

// noBatch is what the first batch follows.
func noBatch() batchRow { return batchRow{First: 1, Hash: make([]byte, sha256.Size)} }

const selectBatch = `SELECT number, first, entries, at, hash, signature FROM ledger_batches `

// sum begins the hash of a batch that follows another one.
func (b batchRow) sum(before []byte) hash.Hash {
	h := sha256.New()
	h.Write(vault.Data("zimage ledger batch", string(before), ledgerNumber(b.Number), ledgerNumber(b.First), ledgerNumber(b.Entries), ledgerNumber(b.At)))
	return h
}

// add adds an entry to its batch's hash.
func (e entryRow) add(h hash.Hash) {
	h.Write(vault.Data(ledgerNumber(e.Sequence.Int64), e.ID, e.Kind, ledgerNumber(e.At), string(e.Commitment)))
}

func (b batchRow) message() []byte {
	return vault.Data("zimage ledger checkpoint", ledgerNumber(b.Number), ledgerNumber(b.At), string(b.Hash))
}

// errRaced means that somebody else has made the batch.
var errRaced = errors.New("another batch of that number is there")

// Seal chains all entries that are in no batch yet and returns how many. Any
// number of processes may do so at once: they make one chain.
func (l *Ledger) Seal(ctx context.Context) (total int, err error) {
	for {
		n, err := l.sealBatch(ctx)
		switch {
		case errors.Is(err, errRaced):
			continue
		case err != nil:
			return total, fmt.Errorf("seal the ledger: %w", err)
		}
		total += n
		if n < ledgerBatch {
			return total, nil
		}
	}
}

func (l *Ledger) sealBatch(ctx context.Context) (n int, err error) {
	err = l.o.DB.Tx(ctx, func(tx *db.Tx) error {
		last, err := l.last(ctx, tx)
		if err != nil {
			return err
		}
		// Not those behind some id: one that was committed late has an early id.
		var rows []entryRow
		if err := tx.Select(ctx, &rows, `SELECT id, kind, at, commitment FROM ledger_entries WHERE sequence IS NULL ORDER BY id LIMIT ?`, ledgerBatch); err != nil {
			return err
		}
		if n = len(rows); n == 0 {
			return nil
		}
		b := batchRow{Number: last.Number + 1, First: last.First + last.Entries, Entries: int64(n), At: l.o.Clock.Millis()}
		h := b.sum(last.Hash)
		for i := range rows {
			rows[i].Sequence = sql.NullInt64{Int64: b.First + int64(i), Valid: true}
			rows[i].add(h)
		}
		b.Hash = h.Sum(nil)
		// The number is the lock: whoever comes second waits here, and then looks again.
		made, err := tx.Exec(ctx, `INSERT INTO ledger_batches (number, first, entries, at, hash, signature) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (number) DO NOTHING`, b.Number, b.First, b.Entries, b.At, b.Hash, l.o.Vault.Sign(b.message()))
		if err != nil {
			return err
		}
		if made == 0 {
			return errRaced
		}
		for _, r := range rows {
			placed, err := tx.Exec(ctx, `UPDATE ledger_entries SET sequence = ? WHERE id = ? AND sequence IS NULL`, r.Sequence.Int64, r.ID)
			if err != nil {
				return err
			}
			if placed == 0 {
				return errRaced
			}
		}
		return nil
	})
	return n, err
}

// last is the newest batch; before the first one, an empty one that it can follow.
func (l *Ledger) last(ctx context.Context, q db.Querier) (batchRow, error) {
	b := noBatch()
	err := q.Get(ctx, &b, selectBatch+`ORDER BY number DESC LIMIT 1`)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return b, err
}

// A Checkpoint fixes the ledger as it was: whoever holds one can have it compared,
// and a ledger that was cut off or written anew since does not fit. It tells nothing
// of what is in there, and, since its hash is a keyed one that is another at each
// time, neither how much nor whether anything was added since another one.
type Checkpoint struct {
	At        time.Time         `json:"at"`
	Hash      []byte            `json:"hash"`
	Signature []byte            `json:"signature"`
	PublicKey ed25519.PublicKey `json:"public_key"`
}

const (
	// checkpointEvery is how often there is another checkpoint for everybody: at each
	// full hour, whatever happened.
	checkpointEvery = time.Hour
	// checkpointRest is how long one is kept back, until no batch of before can come
	// any more: whoever asks all the time would otherwise see that one came.
	checkpointRest = 10 * time.Minute
)

// Checkpoint is the one of the last full hour, for everybody.
func (l *Ledger) Checkpoint(ctx context.Context) (Checkpoint, error) {
	return l.public(ctx, l.o.DB)
}

// CheckpointNow holds all that is sealed, for the operator: two of them, with what the
// clock said, may tell when something was sealed.
func (l *Ledger) CheckpointNow(ctx context.Context) (Checkpoint, error) {
	return l.checkpoint(ctx, l.o.DB, l.o.Clock.Now())
}

func (l *Ledger) public(ctx context.Context, q db.Querier) (Checkpoint, error) {
	return l.checkpoint(ctx, q, l.o.Clock.Now().Add(-checkpointRest).Truncate(checkpointEvery))
}

func (l *Ledger) checkpoint(ctx context.Context, q db.Querier, at time.Time) (Checkpoint, error) {
	b := noBatch()
	err := q.Get(ctx, &b, selectBatch+`WHERE at <= ? ORDER BY number DESC LIMIT 1`, at.UnixMilli())
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Checkpoint{}, db.Unavailable(err)
	}
	c := Checkpoint{At: time.UnixMilli(at.UnixMilli()).UTC(), PublicKey: l.o.Vault.PublicKey()}
	c.Hash = l.seen(c, b)
	c.Signature = l.o.Vault.Sign(c.message())
	return c, nil
}

// seen is the hash of a checkpoint that has seen the ledger up to a batch.
func (l *Ledger) seen(c Checkpoint, b batchRow) []byte {
	of := vault.Data(ledgerNumber(c.At.UnixMilli()), ledgerNumber(b.Number), string(b.Hash))
	sum, _ := hex.DecodeString(l.o.Vault.Lookup("ledger checkpoint", string(of))) // it is hex
	return sum
}

func (c Checkpoint) message() []byte {
	return vault.Data("zimage ledger as of", ledgerNumber(c.At.UnixMilli()), string(c.Hash))
}

// ParseCheckpoint reads one as the API gives it, or out of the manifest of an
// export or the receipt of an erasure.
func ParseCheckpoint(text []byte) (Checkpoint, error) {
	var c Checkpoint
	var in struct {
		Checkpoint *Checkpoint
		Receipt    *struct{ Checkpoint *Checkpoint }
	}
	err := json.Unmarshal(text, &in)
	switch {
	case err == nil && in.Checkpoint != nil:
		c = *in.Checkpoint
	case err == nil && in.Receipt != nil && in.Receipt.Checkpoint != nil:
		c = *in.Receipt.Checkpoint
	case err == nil:
		err = json.Unmarshal(text, &c)
	}
	if err != nil || c.At.IsZero() || len(c.Hash) != sha256.Size || len(c.PublicKey) != ed25519.PublicKeySize {
		return Checkpoint{}, errors.New("this is no checkpoint of a ledger: it needs at, hash, signature and public_key")
	}
	return c, nil
}

// Genuine reports whether a checkpoint was signed with its key.
func (c Checkpoint) Genuine() bool {
	return len(c.PublicKey) == ed25519.PublicKeySize && ed25519.Verify(c.PublicKey, c.message(), c.Signature)
}

// A LedgerFault is the first thing that is wrong with the ledger.
type LedgerFault struct{ What string }

func (f *LedgerFault) Error() string { return "the ledger was changed: " + f.What }

func ledgerFault(format string, args ...any) error { return &LedgerFault{fmt.Sprintf(format, args...)} }

// A LedgerReport counts what Verify has found in order.
type LedgerReport struct {
	Batches int64
	Entries int64 // in batches
	Erased  int64 // of them and the unsealed, those whose details are gone, as an erasure does
	Waiting int64 // entries that are in no batch yet
}

// Verify walks the whole ledger in bounded memory and returns a *LedgerFault for
// the first batch or entry that is not as it was written. held is a checkpoint
// that somebody kept; nil: nobody did, and then entries that were cut off at the
// end are not missed. progress, which may be nil, is told the sum of entries. It
// may run beside everything else.
func (l *Ledger) Verify(ctx context.Context, held *Checkpoint, progress func(entries int64)) (LedgerReport, error) {
	var r LedgerReport
	if held != nil {
		switch {
		case !held.PublicKey.Equal(l.o.Vault.PublicKey()):
			return r, errors.New("the checkpoint is of another installation: its public key is not ours")
		case !held.Genuine():
			return r, errors.New("the checkpoint's signature does not fit: it was changed, and proves nothing")
		}
	}
	before := noBatch()
	found := held == nil || bytes.Equal(held.Hash, l.seen(*held, before))
	for after := int64(math.MinInt64); ; after = before.Number { // one below the first is wrong too
		var batches []batchRow
		if err := l.o.DB.Select(ctx, &batches, selectBatch+`WHERE number > ? ORDER BY number LIMIT 100`, after); err != nil {
			return r, err
		}
		for _, b := range batches {
			if err := l.verifyBatch(ctx, before, b, &r); err != nil {
				return r, err
			}
			found = found || bytes.Equal(held.Hash, l.seen(*held, b))
			r.Batches, r.Entries = r.Batches+1, r.Entries+b.Entries
			before = b
			if progress != nil {
				progress(r.Entries)
			}
		}
		if len(batches) == 0 {
			break
		}
	}
	if !found {
		return r, ledgerFault("it ends with batch %d, and was another one at %s, when the checkpoint saw it: it was cut off or written anew",
			before.Number, held.At.Format(time.RFC3339))
	}
	err := l.verifyOutside(ctx)
	if err == nil {
		err = l.verifyWaiting(ctx, &r)
	}
	if err == nil {
		err = l.verifyDetails(ctx)
	}
	return r, err
}

// verifyBatch holds a batch against the one before it.
func (l *Ledger) verifyBatch(ctx context.Context, before, b batchRow, r *LedgerReport) error {
	if b.Number != before.Number+1 {
		return ledgerFault("batch %d is missing", before.Number+1)
	}
	if b.First != before.First+before.Entries || b.Entries < 1 || b.Entries > ledgerBatch {
		return ledgerFault("batch %d does not begin where the one before it ends", b.Number)
	}
	var rows []entryRow
	if err := l.o.DB.Select(ctx, &rows, selectEntry+`WHERE e.sequence >= ? AND e.sequence < ? ORDER BY e.sequence`, b.First, b.First+b.Entries); err != nil {
		return err
	}
	h := b.sum(before.Hash)
	for i := range b.Entries {
		if i >= int64(len(rows)) || rows[i].Sequence.Int64 != b.First+i {
			return ledgerFault("entry %d, in batch %d, is missing", b.First+i, b.Number)
		}
		e := rows[i]
		if err := l.verifyEntry(ctx, e, r); err != nil {
			return err
		}
		e.add(h)
	}
	if !bytes.Equal(h.Sum(nil), b.Hash) {
		return ledgerFault("batch %d (entries %d to %d) does not have the hash that was sealed", b.Number, b.First, b.First+b.Entries-1)
	}
	if !ed25519.Verify(l.o.Vault.PublicKey(), b.message(), b.Signature) {
		return ledgerFault("batch %d is not signed by this installation", b.Number)
	}
	return nil
}

func (l *Ledger) verifyEntry(ctx context.Context, e entryRow, r *LedgerReport) error {
	d, err := l.open(ctx, e)
	switch {
	case errors.Is(err, errUnfit):
		return ledgerFault("entry %s: %s", e.ID, err)
	case err != nil:
		return err
	case d == nil:
		r.Erased++
	}
	return nil
}

// verifyOutside finds entries with a number that no batch holds.
func (l *Ledger) verifyOutside(ctx context.Context) error {
	var id string
	err := l.o.DB.Get(ctx, &id, `SELECT id FROM ledger_entries WHERE sequence < 1
		OR sequence > (SELECT coalesce(max(first + entries - 1), 0) FROM ledger_batches) ORDER BY sequence LIMIT 1`)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return ledgerFault("entry %s has a number that no batch holds", id)
}

// verifyWaiting checks the entries that are in no batch yet.
func (l *Ledger) verifyWaiting(ctx context.Context, r *LedgerReport) error {
	for after := ""; ; {
		var rows []entryRow
		if err := l.o.DB.Select(ctx, &rows, selectEntry+`WHERE e.sequence IS NULL AND e.id > ? ORDER BY e.id LIMIT ?`, after, ledgerBatch); err != nil {
			return err
		}
		for _, e := range rows {
			if err := l.verifyEntry(ctx, e, r); err != nil {
				return err
			}
			r.Waiting++
			after = e.ID
		}
		if len(rows) < ledgerBatch {
			return nil
		}
	}
}

// verifyDetails finds details of an entry that is not there.
func (l *Ledger) verifyDetails(ctx context.Context) error {
	for after := ""; ; {
		var rows []struct {
			ID   string `db:"entry_id"`
			Lost bool   `db:"lost"`
		}
		if err := l.o.DB.Select(ctx, &rows, `SELECT d.entry_id, e.id IS NULL AS lost FROM ledger_details d LEFT JOIN ledger_entries e ON e.id = d.entry_id
			WHERE d.entry_id > ? ORDER BY d.entry_id LIMIT ?`, after, ledgerBatch); err != nil {
			return err
		}
		for _, d := range rows {
			if d.Lost {
				return ledgerFault("entry %s is missing, and its details are there", d.ID)
			}
			after = d.ID
		}
		if len(rows) < ledgerBatch {
			return nil
		}
	}
}
