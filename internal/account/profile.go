package account

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/picture"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

const (
	nameLonger  = 100   // characters of a profile's name
	sideMost    = 16384 // pixels
	numberMost  = 100   // images
	modelLonger = 128   // characters of a model's name
)

type userRow struct {
	ID          string `db:"id"`
	Email       []byte `db:"email"`
	Username    []byte `db:"username"`
	Profile     []byte `db:"profile"`
	Preferences []byte `db:"preferences"`
	Role        Role   `db:"role"`
	CreatedAt   int64  `db:"created_at"`

	DoNotSellAt sql.NullInt64 `db:"do_not_sell_at"`
}

const selectUser = `SELECT id, email, username, profile, preferences, role, created_at, do_not_sell_at FROM users `

// User is an account as its owner sees it; Unauthorized when there is none.
func (s *Service) User(ctx context.Context, owner string) (User, error) {
	u, err := s.user(ctx, s.db, owner)
	return u, away(err)
}

func (s *Service) user(ctx context.Context, q db.Querier, owner string) (User, error) {
	var r userRow
	err := q.Get(ctx, &r, selectUser+`WHERE id = ?`, owner)
	if errors.Is(err, sql.ErrNoRows) {
		return User{}, subject.NoAccount()
	}
	if err != nil {
		return User{}, fmt.Errorf("read an account: %w", err)
	}
	person, err := subject.Find(ctx, q, owner)
	if err != nil {
		return User{}, err
	}
	factors, err := s.factors(ctx, q, owner)
	if err != nil {
		return User{}, err
	}
	u := User{
		ID: owner, Role: r.Role, CreatedAt: time.UnixMilli(r.CreatedAt).UTC(), RestrictedAt: person.RestrictedAt, SuspendedAt: person.SuspendedAt,
		DoNotSellAt: timeOf(r.DoNotSellAt),
		TOTP:        factors.TOTP, Passkeys: factors.Passkeys, CodesLeft: factors.CodesLeft,
	}
	for _, f := range []struct {
		column string
		sealed []byte
		into   any
	}{
		{"email", r.Email, &u.Email}, {"username", r.Username, &u.Username},
		{"profile", r.Profile, &u.Profile}, {"preferences", r.Preferences, &u.Preferences},
	} {
		if err := s.unsealUser(ctx, owner, f.column, f.sealed, f.into); err != nil {
			return User{}, fmt.Errorf("read an account: %w", err)
		}
	}
	return u, nil
}

// unsealUser opens a column of users into a string, or from JSON into anything
// else. NULL leaves it as it is.
func (s *Service) unsealUser(ctx context.Context, owner, column string, sealed []byte, into any) error {
	if sealed == nil {
		return nil
	}
	plain, err := s.vault.Unseal(ctx, owner, sealed, vault.Column("users", column, owner))
	if err != nil {
		return err
	}
	if text, ok := into.(*string); ok {
		*text = string(plain)
		return nil
	}
	return json.Unmarshal(plain, into)
}

// sealUser is the inverse, of a string or of anything else as JSON; what is
// empty becomes NULL.
func (s *Service) sealUser(ctx context.Context, owner, column string, value any) ([]byte, error) {
	plain, isText := value.(string)
	if !isText {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		plain = string(text)
	}
	if plain == "" || plain == "{}" {
		return nil, nil
	}
	return s.vault.Seal(ctx, owner, []byte(plain), vault.Column("users", column, owner))
}

// Preferences are the defaults of a person's next generation. Nothing remembers
// them: what one process changed counts in all at once.
func (s *Service) Preferences(ctx context.Context, owner string) (Preferences, error) {
	var sealed []byte
	err := s.db.Get(ctx, &sealed, `SELECT preferences FROM users WHERE id = ?`, owner)
	if errors.Is(err, sql.ErrNoRows) {
		return Preferences{}, subject.NoAccount()
	}
	if err != nil {
		return Preferences{}, away(fmt.Errorf("read preferences: %w", err))
	}
	var p Preferences
	err = s.unsealUser(ctx, owner, "preferences", sealed, &p)
	if errors.Is(err, vault.ErrDestroyed) || errors.Is(err, vault.ErrNoKey) {
		return Preferences{}, subject.NoAccount()
	}
	return p, away(err)
}

// A UserChange is what somebody changes about their account; nil leaves it.
type UserChange struct {
	Username    *string
	Profile     *Profile
	Preferences *Preferences
}

// UpdateUser changes an account and returns it as it is then. It returns
// InvalidRequest for what is not valid and Conflict for a username that somebody
// has, or when a hold keeps the account as it is.
func (s *Service) UpdateUser(ctx context.Context, p Principal, change UserChange) (User, error) {
	var set []string
	var args []any
	put := func(column string, value any) {
		set = append(set, column+" = ?")
		args = append(args, value)
	}
	var fields []problem.Field
	if change.Username != nil {
		if err := checkUsername(*change.Username); err != nil {
			return User{}, err
		}
		sealed, err := s.sealUser(ctx, p.Subject, "username", *change.Username)
		if err != nil {
			return User{}, away(err)
		}
		put("username", sealed)
		put("username_lookup", s.usernameLookup(*change.Username))
	}
	if change.Profile != nil {
		fields = append(fields, change.Profile.check()...)
		sealed, err := s.sealUser(ctx, p.Subject, "profile", *change.Profile)
		if err != nil {
			return User{}, away(err)
		}
		put("profile", sealed)
	}
	if change.Preferences != nil {
		fields = append(fields, change.Preferences.check()...)
		sealed, err := s.sealUser(ctx, p.Subject, "preferences", *change.Preferences)
		if err != nil {
			return User{}, away(err)
		}
		put("preferences", sealed)
	}
	if len(fields) > 0 {
		return User{}, problem.Invalid(fields...)
	}
	var u User
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		if len(set) > 0 {
			if err := subject.AskHeld(ctx, tx, "users", p.Subject); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `UPDATE users SET `+strings.Join(set, ", ")+` WHERE id = ?`, append(args, p.Subject)...); err != nil {
				return err
			}
		}
		var err error
		u, err = s.user(ctx, tx, p.Subject)
		return err
	})
	if db.IsUnique(err) {
		return User{}, usernameTaken()
	}
	if err != nil {
		return User{}, away(err)
	}
	return u, nil
}

func (p Profile) check() (fields []problem.Field) {
	if !oneLine(p.Name, nameLonger) {
		fields = append(fields, problem.Field{Location: "body.name", Message: fmt.Sprintf("must be at most %d characters in one line", nameLonger)})
	}
	return fields
}

// check is only about sanity: what the model cannot do is passed over when the
// time comes, since models change.
func (p Preferences) check() (fields []problem.Field) {
	side := func(n int) bool { return n >= 0 && n <= sideMost }
	ok := len(p.Model) <= modelLonger && !strings.ContainsFunc(p.Model, unicode.IsControl) && utf8.ValidString(p.Model) &&
		side(p.Width) && side(p.Height) && p.N >= 0 && p.N <= numberMost && (p.Format == "" || picture.Writes(p.Format))
	if !ok {
		fields = append(fields, problem.Field{Location: "body.preferences", Message: "has a model, size, number or format that no model takes"})
	}
	if (p.Width == 0) != (p.Height == 0) {
		fields = append(fields, problem.Field{Location: "body.preferences", Message: "needs both width and height, or neither"})
	}
	return fields
}

// Consents are a person's newest words about every purpose that needs one.
func (s *Service) Consents(ctx context.Context, owner string) ([]subject.Consent, error) {
	list, err := subject.Consents(ctx, s.db, owner)
	return list, away(err)
}

// SetConsent keeps what a person agrees to or takes back, in force at once.
func (s *Service) SetConsent(ctx context.Context, p Principal, purpose subject.Purpose, granted bool) error {
	return s.change(ctx, p, func(tx *db.Tx) error {
		return s.setConsent(ctx, tx, p.Subject, purpose, granted, s.o.PolicyVersion, s.clock.Now())
	})
}

func (s *Service) setConsent(ctx context.Context, tx *db.Tx, owner string, purpose subject.Purpose, granted bool, version string, at time.Time) error {
	kept, err := subject.SetConsent(ctx, tx, owner, purpose, granted, version, at)
	if err != nil || !kept {
		return err
	}
	word := events.ConsentWithdrawn
	if granted {
		word = events.ConsentGiven
	}
	return s.o.Events.Append(ctx, tx, events.Event{Type: word, Subject: owner, At: at,
		Facts: map[events.Fact]string{events.Purpose: string(purpose), events.Policy: version}})
}

// Objections are the uses that a person can object to, and whether they do.
func (s *Service) Objections(ctx context.Context, owner string) ([]subject.Objection, error) {
	list, err := subject.Objections(ctx, s.db, owner)
	return list, away(err)
}

// Object ends a use that rests on a legitimate interest, at once.
func (s *Service) Object(ctx context.Context, p Principal, purpose subject.Purpose) error {
	return s.change(ctx, p, func(tx *db.Tx) error { return s.object(ctx, tx, p.Subject, purpose) })
}

func (s *Service) object(ctx context.Context, tx *db.Tx, owner string, purpose subject.Purpose) error {
	changed, err := subject.Object(ctx, tx, owner, purpose, s.clock.Now())
	return s.tellObjection(ctx, tx, owner, purpose, events.ObjectionMade, changed, err)
}

// WithdrawObjection allows the use again.
func (s *Service) WithdrawObjection(ctx context.Context, p Principal, purpose subject.Purpose) error {
	return s.change(ctx, p, func(tx *db.Tx) error {
		changed, err := subject.WithdrawObjection(ctx, tx, p.Subject, purpose)
		return s.tellObjection(ctx, tx, p.Subject, purpose, events.ObjectionWithdrawn, changed, err)
	})
}

// tellObjection tells of it only when something changed.
func (s *Service) tellObjection(ctx context.Context, tx *db.Tx, owner string, purpose subject.Purpose, what events.Type, changed bool, err error) error {
	if err != nil || !changed {
		return err
	}
	return s.o.Events.Append(ctx, tx, events.Event{Type: what, Subject: owner, At: s.clock.Now(),
		Facts: map[events.Fact]string{events.Purpose: string(purpose)}})
}

// Restrict stops every use of the person's data but storing it and what the
// person does with the account, at once.
func (s *Service) Restrict(ctx context.Context, p Principal) error {
	return s.change(ctx, p, func(tx *db.Tx) error { return s.restrict(ctx, tx, p.Subject) })
}

func (s *Service) restrict(ctx context.Context, tx *db.Tx, owner string) error {
	person, err := subject.Find(ctx, tx, owner)
	if err != nil || !person.RestrictedAt.IsZero() {
		return err
	}
	if err := subject.Restrict(ctx, tx, owner, s.clock.Now()); err != nil {
		return err
	}
	return s.stopWork(ctx, tx, owner, events.AccountRestricted)
}

// stopWork tells whoever works for a person to stop, in the transaction that
// forbids it.
func (s *Service) stopWork(ctx context.Context, tx *db.Tx, owner string, why events.Type) error {
	return s.o.Events.Append(ctx, tx, events.Event{Type: why, Subject: owner, Ref: owner, At: s.clock.Now()})
}

// Unrestrict lifts a restriction at the wish of the person who asked for it, in a
// fresh session: whoever finds a browser open must not set others to work on their
// data. The answer tells them, and a mail says it to who should not have been told
// by it.
func (s *Service) Unrestrict(ctx context.Context, p Principal) error {
	if err := s.Proved(p); err != nil {
		return err
	}
	return s.change(ctx, p, func(tx *db.Tx) error {
		person, err := subject.Find(ctx, tx, p.Subject)
		if err != nil || person.RestrictedAt.IsZero() {
			return err
		}
		if err := s.tell(ctx, tx, p.Subject, mail.RestrictionLifted, nil); err != nil {
			return err
		}
		if err := subject.Unrestrict(ctx, tx, p.Subject); err != nil {
			return err
		}
		return s.o.Events.Append(ctx, tx, events.Event{Type: events.AccountUnrestricted, Subject: p.Subject, Ref: p.Subject, At: s.clock.Now()})
	})
}

// change runs what a person does with their own account, while it lives.
func (s *Service) change(ctx context.Context, p Principal, f func(*db.Tx) error) error {
	return away(s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillThere(ctx, tx, p); err != nil {
			return err
		}
		return f(tx)
	}))
}

// Tell is tell for other rooms.
func (s *Service) Tell(ctx context.Context, tx *db.Tx, owner string, template mail.Template, data map[string]string) error {
	return s.tell(ctx, tx, owner, template, data)
}

// tell mails a person at the address of their account.
func (s *Service) tell(ctx context.Context, tx *db.Tx, owner string, template mail.Template, data map[string]string) error {
	var sealed []byte
	if err := tx.Get(ctx, &sealed, `SELECT email FROM users WHERE id = ?`, owner); err != nil {
		return fmt.Errorf("read an address: %w", err)
	}
	var address string
	if err := s.unsealUser(ctx, owner, "email", sealed, &address); err != nil {
		return fmt.Errorf("read an address: %w", err)
	}
	return s.o.Mail.Send(ctx, tx, mail.Message{Subject: owner, To: address, Template: template, Data: data})
}
