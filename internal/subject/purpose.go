package subject

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"zimage/internal/db"
	"zimage/internal/problem"
)

// A Purpose is what somebody's data is to be used for.
type Purpose string

// The purposes. Those without a remark rest on the contract.
const (
	Read     Purpose = "read"     // show a person what is theirs, and let them delete it
	Account  Purpose = "account"  // sign in, change the account, use one's rights
	Notice   Purpose = "notice"   // mail that the service must send: links, security, rights
	Generate Purpose = "generate" // make images, also those already asked for
	Deliver  Purpose = "deliver"  // webhooks and links that the person has set up

	// Some of what follows has no use in this version. The gate stands before there is
	// one, and people's words are kept for it.

	Marketing Purpose = "marketing" // consent: mail about features
	Training  Purpose = "training"  // consent: train, evaluate or optimise models
	Analytics Purpose = "analytics" // consent: measurements in the browser, analytics providers
	Profiling Purpose = "profiling" // consent: personalisation beyond the person's own settings

	Statistics Purpose = "statistics" // legitimate interest: which features are used, reckoned from what people did
)

// A rule says when a purpose is allowed.
type rule struct {
	restricted bool // also while processing is restricted
	suspended  bool // also while the operator has suspended the account
	consent    bool // only with a current consent
	objectable bool // never after an objection
}

var rules = map[Purpose]rule{
	Read:       {restricted: true, suspended: true},
	Account:    {restricted: true, suspended: true},
	Notice:     {restricted: true, suspended: true},
	Generate:   {},
	Deliver:    {},
	Marketing:  {consent: true},
	Training:   {consent: true},
	Analytics:  {consent: true},
	Profiling:  {consent: true},
	Statistics: {objectable: true, suspended: true},
}

// Purposes are all that there are, sorted.
func Purposes() []Purpose { return having(func(rule) bool { return true }) }

// ConsentPurposes are those that need a consent, sorted.
func ConsentPurposes() []Purpose { return having(func(r rule) bool { return r.consent }) }

// ObjectionPurposes are those that a person can object to, sorted.
func ObjectionPurposes() []Purpose { return having(func(r rule) bool { return r.objectable }) }

func having(property func(rule) bool) []Purpose {
	var found []Purpose
	for p, r := range rules {
		if property(r) {
			found = append(found, p)
		}
	}
	slices.Sort(found)
	return found
}

// A Reason is why May refuses. It is the cause of the error, and stable: programs
// decide by it, and rows may keep it.
type Reason string

// The reasons.
const (
	BecauseRestricted Reason = "restricted"      // at the person's own request
	BecauseSuspended  Reason = "suspended"       // by the operator
	BecauseClosed     Reason = "account_closed"  // or there is none (any more)
	BecauseNoConsent  Reason = "no_consent"      // to a purpose that needs one
	BecauseObjected   Reason = "objection"       // to a use that rests on a legitimate interest
	BecauseUnknown    Reason = "use_not_allowed" // a state or purpose that this program does not know
)

var words = map[Reason]string{
	BecauseRestricted: "Processing of this account's data is restricted at its owner's request. Lifting the restriction allows this again.",
	BecauseSuspended:  "This account is suspended. What is there can still be read and deleted.",
	BecauseClosed:     "This account is closed and is being erased.",
	BecauseNoConsent:  "The account's owner has not agreed to this use.",
	BecauseObjected:   "The account's owner objects to this use.",
	BecauseUnknown:    "This use of the account's data is not allowed.",
}

// Words say the reason to people; false for what is none of the reasons.
func (r Reason) Words() (string, bool) {
	text, ok := words[r]
	return text, ok
}

func (r Reason) Error() string { return string(r) }

// ReasonOf finds why May refused; false when err is no refusal of its.
func ReasonOf(err error) (Reason, bool) {
	var r Reason
	ok := errors.As(err, &r)
	return r, ok
}

// refused is May's answer: Unauthorized once the account is closed, else
// Forbidden.
func refused(r Reason) error {
	code := problem.Forbidden
	if r == BecauseClosed {
		code = problem.Unauthorized
	}
	p := problem.Wrap(r, code, words[r])
	if r == BecauseRestricted || r == BecauseSuspended {
		return p.OfRight()
	}
	return p
}

// May returns nil when the person's data may be used for the purpose now, and
// otherwise a *problem.Error that says why not: Forbidden while the account
// exists, Unauthorized when there is none (any more). Its cause is a Reason. An
// unknown state or purpose is refused.
func May(ctx context.Context, q db.Querier, subject string, purpose Purpose) error {
	return may(ctx, q, subject, purpose, "")
}

// Enter is May for a transaction that begins something new of the person's, or
// ends what must not be after a refusal. It keeps the person's row until the
// transaction ends: neither a change of state nor another Enter of the same person
// passes beside it.
func Enter(ctx context.Context, tx *db.Tx, subject string, purpose Purpose) error {
	return may(ctx, tx, subject, purpose, db.ForUpdate(tx))
}

func may(ctx context.Context, q db.Querier, subject string, purpose Purpose, lock string) error {
	r, err := read(ctx, q, subject, lock)
	if err != nil {
		return err
	}
	switch r.State {
	case Active:
	case Closing:
		return refused(BecauseClosed)
	case Erased:
		return NoAccount()
	default:
		return refused(BecauseUnknown)
	}
	need, known := rules[purpose]
	switch {
	case !known:
		return refused(BecauseUnknown)
	case r.RestrictedAt.Valid && !need.restricted:
		return refused(BecauseRestricted)
	case r.SuspendedAt.Valid && !need.suspended:
		return refused(BecauseSuspended)
	}
	if need.consent {
		given, err := consented(ctx, q, subject, purpose)
		if err != nil {
			return err
		}
		if !given {
			return refused(BecauseNoConsent)
		}
	}
	if need.objectable {
		var n int
		if err := q.Get(ctx, &n, `SELECT count(*) FROM objections WHERE subject = ? AND purpose = ?`, subject, purpose); err != nil {
			return fmt.Errorf("look for an objection: %w", err)
		}
		if n > 0 {
			return refused(BecauseObjected)
		}
	}
	return nil
}

// A Consent is the newest word of a person about a purpose.
type Consent struct {
	Purpose       Purpose
	Granted       bool
	PolicyVersion string    // the words that were agreed to; empty: never asked
	At            time.Time // zero: never asked
}

// SetConsent keeps a new word about a purpose that needs consent, InvalidRequest
// for any other. Earlier ones stay as the proof of what was agreed to when; one
// that says again what is in force is not kept, so that the proof grows with
// changes of mind alone.
func SetConsent(ctx context.Context, tx *db.Tx, subject string, purpose Purpose, granted bool, policyVersion string, now time.Time) (kept bool, err error) {
	if !rules[purpose].consent {
		return false, problem.Invalid(problem.Field{Location: "purpose", Message: "is not one that needs consent"})
	}
	switch last, err := consent(ctx, tx, subject, purpose); {
	case err != nil:
		return false, err
	case !last.At.IsZero() && last.Granted == granted && last.PolicyVersion == policyVersion:
		return false, nil
	}
	word := 0
	if granted {
		word = 1
	}
	_, err = tx.Exec(ctx, `INSERT INTO consents (id, subject, purpose, granted, policy_version, at) VALUES (?, ?, ?, ?, ?, ?)`,
		db.NewID("con", now), subject, purpose, word, policyVersion, now.UnixMilli())
	if err != nil {
		return false, fmt.Errorf("keep a consent: %w", err)
	}
	return true, nil
}

const newestConsent = `SELECT purpose, granted, policy_version, at FROM consents WHERE subject = ? AND purpose = ? ORDER BY at DESC, granted, id DESC LIMIT 1`

type consentRow struct {
	Purpose       Purpose `db:"purpose"`
	Granted       bool    `db:"granted"`
	PolicyVersion string  `db:"policy_version"`
	At            int64   `db:"at"`
}

func consented(ctx context.Context, q db.Querier, subject string, purpose Purpose) (bool, error) {
	c, err := consent(ctx, q, subject, purpose)
	return c.Granted, err
}

func consent(ctx context.Context, q db.Querier, subject string, purpose Purpose) (Consent, error) {
	var r consentRow
	err := q.Get(ctx, &r, newestConsent, subject, purpose)
	if errors.Is(err, sql.ErrNoRows) {
		return Consent{Purpose: purpose}, nil
	}
	if err != nil {
		return Consent{}, fmt.Errorf("read a consent: %w", err)
	}
	return Consent{Purpose: r.Purpose, Granted: r.Granted, PolicyVersion: r.PolicyVersion, At: moment(r.At)}, nil
}

// Consents are a person's newest words about every purpose that needs one.
func Consents(ctx context.Context, q db.Querier, subject string) ([]Consent, error) {
	var all []Consent
	for _, p := range ConsentPurposes() {
		c, err := consent(ctx, q, subject, p)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// An Objection stands until it is withdrawn.
type Objection struct {
	Purpose Purpose
	At      time.Time // zero: none
}

// Object ends a use that rests on legitimate interests, at once; InvalidRequest
// for a purpose that does not. Objecting twice changes nothing.
func Object(ctx context.Context, tx *db.Tx, subject string, purpose Purpose, now time.Time) (changed bool, err error) {
	if !rules[purpose].objectable {
		return false, problem.Invalid(problem.Field{Location: "purpose", Message: "does not rest on a legitimate interest"})
	}
	n, err := tx.Exec(ctx, `INSERT INTO objections (subject, purpose, at) VALUES (?, ?, ?) ON CONFLICT (subject, purpose) DO NOTHING`,
		subject, purpose, now.UnixMilli())
	if err != nil {
		return false, fmt.Errorf("keep an objection: %w", err)
	}
	return n == 1, nil
}

// WithdrawObjection allows the use again; Conflict when the objection is held.
func WithdrawObjection(ctx context.Context, tx *db.Tx, subject string, purpose Purpose) (changed bool, err error) {
	if err := AskHeld(ctx, tx, "objections", ObjectionRecord(subject, purpose)); err != nil {
		return false, err
	}
	n, err := tx.Exec(ctx, `DELETE FROM objections WHERE subject = ? AND purpose = ?`, subject, purpose)
	if err != nil {
		return false, fmt.Errorf("withdraw an objection: %w", err)
	}
	return n == 1, nil
}

// Objections lists every purpose that can be objected to.
func Objections(ctx context.Context, q db.Querier, subject string) ([]Objection, error) {
	var rows []struct {
		Purpose Purpose `db:"purpose"`
		At      int64   `db:"at"`
	}
	if err := q.Select(ctx, &rows, `SELECT purpose, at FROM objections WHERE subject = ?`, subject); err != nil {
		return nil, fmt.Errorf("read objections: %w", err)
	}
	var all []Objection
	for _, p := range ObjectionPurposes() {
		o := Objection{Purpose: p}
		for _, r := range rows {
			if r.Purpose == p {
				o.At = moment(r.At)
			}
		}
		all = append(all, o)
	}
	return all, nil
}
