package account

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// AtTheMachine is the principal of the command line: whoever can run it holds
// the keys of the whole service anyway. What it does is kept like any staff's.
func AtTheMachine() Principal {
	return Principal{Subject: cliStaff, Role: RoleOperator, Method: ByPasskey}
}

// act runs what a member of staff does with somebody's account and tells that it
// was done, by whom and why, in the same transaction: the ledger keeps it. What
// the event says of itself stays.
func (s *Service) act(ctx context.Context, staff Principal, owner string, what events.Event, reason string, roles []Role, f func(tx *db.Tx) error) error {
	if err := staff.may(roles...); err != nil {
		return err
	}
	if staff.Subject == owner {
		return ownAccount()
	}
	reason, err := checkReason(reason)
	if err != nil {
		return err
	}
	what.Subject, what.At, what.Facts = owner, s.clock.Now(), withStaff(staff, reason, what.Facts)
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillStaff(ctx, tx, staff); err != nil {
			return err
		}
		if p, err := subject.Find(ctx, tx, owner); problem.CodeOf(err) == problem.Unauthorized || err == nil && p.State == subject.Erased {
			return problem.New(problem.NotFound, "There is no such account.")
		} else if err != nil {
			return err
		}
		if err := s.o.Events.Append(ctx, tx, what); err != nil {
			return err
		}
		return f(tx)
	})
	if problem.CodeOf(err) == problem.Unauthorized { // of the person's account, not of who asks
		err = problem.New(problem.NotFound, "There is no such account.")
	}
	return away(err)
}

func checkReason(reason string) (string, error) {
	reason = strings.TrimSpace(reason)
	if utf8.RuneCountInString(reason) < reasonLeast || !oneLine(reason, reasonMost) {
		return "", problem.Invalid(problem.Field{Location: "body.reason", Message: fmt.Sprintf("must say why in %d to %d characters, in one line", reasonLeast, reasonMost)})
	}
	return reason, nil
}

// stillStaff refuses a member of staff whose session or role was taken since the
// request came, whose session has another token, or who is suspended.
func (s *Service) stillStaff(ctx context.Context, tx *db.Tx, staff Principal) error {
	if staff.Subject == cliStaff {
		return nil
	}
	var n int
	err := tx.Get(ctx, &n, `SELECT count(*) FROM sessions s JOIN users u ON u.id = s.owner JOIN subjects p ON p.id = u.id
		WHERE s.id = ? AND s.owner = ? AND s.token_lookup = ? AND s.ended_at IS NULL AND u.role = ? AND p.state = ? AND p.suspended_at IS NULL`,
		staff.SessionID, staff.Subject, staff.lookup, staff.Role, subject.Active)
	if err != nil {
		return err
	}
	if n == 0 {
		return problem.New(problem.Forbidden, "This is for staff.")
	}
	return nil
}

// may refuses whoever has none of the roles, or has not shown two factors.
func (p Principal) may(roles ...Role) error {
	for _, r := range roles {
		if p.Role != r {
			continue
		}
		if !p.Method.Strong() || p.SessionID == "" && p.Subject != cliStaff {
			return problem.New(problem.Forbidden, "Staff sign in with a second factor.")
		}
		return nil
	}
	return problem.New(problem.Forbidden, "This is for staff.")
}

// AskStaff refuses whoever is not staff in one of the roles, or no longer: for what is
// about nobody's account.
func (s *Service) AskStaff(ctx context.Context, staff Principal, roles ...Role) error {
	if err := staff.may(roles...); err != nil {
		return err
	}
	return away(s.db.Tx(ctx, func(tx *db.Tx) error { return s.stillStaff(ctx, tx, staff) }))
}

// atTheMachine refuses everybody but the command line: a member of staff can be
// talked into things.
func (p Principal) atTheMachine(what string) error {
	if p.Subject != cliStaff {
		return problem.New(problem.Forbidden, what+" at the command line.")
	}
	return nil
}

// FindAccount opens somebody's account to a member of staff, for a reason. The
// answers for an address without account and for one without a role tell apart
// only to staff.
//
// A restricted account opens too, since its owner's wishes are handled by people,
// and so does one that is closing until its keys are destroyed: who asks what
// became of their erasure must be found. Both only for a reason, which is kept.
func (s *Service) FindAccount(ctx context.Context, staff Principal, email, reason string) (User, error) {
	return s.openAccount(ctx, staff, email, reason, events.Event{Type: events.StaffOpened}, []Role{RoleSupport, RolePrivacy, RoleOperator})
}

// FindForCase is FindAccount for a case that forbids that the person learns of it:
// the entry about it is hidden as that about the disclosure will be, which it would
// give away. For privacy officers.
func (s *Service) FindForCase(ctx context.Context, staff Principal, email, reference, reason string) (User, error) {
	reference = strings.TrimSpace(reference)
	if reference == "" || !oneLine(reference, disclosureMost) {
		return User{}, problem.Invalid(disclosureField("case"))
	}
	what := events.Event{Type: events.StaffOpened, Hidden: true, Facts: map[events.Fact]string{events.Case: reference}}
	return s.openAccount(ctx, staff, email, reason, what, staff.officers())
}

func (s *Service) openAccount(ctx context.Context, staff Principal, email, reason string, what events.Event, roles []Role) (User, error) {
	if err := staff.may(roles...); err != nil {
		return User{}, err
	}
	if _, err := checkReason(reason); err != nil { // before the address tells anything
		return User{}, err
	}
	owner, err := s.FindUser(ctx, email)
	if problem.CodeOf(err) == problem.NotFound {
		return User{}, cmp.Or(s.lookedFor(ctx, staff), err)
	}
	if err != nil {
		return User{}, err
	}
	var u User
	err = s.act(ctx, staff, owner, what, reason, roles, func(tx *db.Tx) error {
		var err error
		u, err = s.user(ctx, tx, owner)
		return err
	})
	return u, err
}

// lookedFor tells that a member of staff tried an address without an account. Not
// which, and not why: what is about nobody lies open and stays for ever, and a reason
// may name somebody.
func (s *Service) lookedFor(ctx context.Context, staff Principal) error {
	return away(s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillStaff(ctx, tx, staff); err != nil {
			return err
		}
		return s.o.Events.Append(ctx, tx, events.Event{Type: events.StaffLookedFor, At: s.clock.Now(),
			Facts: map[events.Fact]string{events.Staff: staff.Subject, events.Role: string(staff.Role)}})
	}))
}

// officers are the roles that a member of staff needs one of to keep disclosures. At
// the machine there are none.
func (p Principal) officers() []Role {
	if p.Subject == cliStaff {
		return []Role{p.Role}
	}
	return []Role{RolePrivacy}
}

func disclosureField(name string) problem.Field {
	return problem.Field{Location: "body." + name, Message: fmt.Sprintf("must be there, with at most %d characters in one line", disclosureMost)}
}

// KeysFor lists somebody's keys to the operator at the machine: their names are
// the person's own words.
func (s *Service) KeysFor(ctx context.Context, staff Principal, owner, reason string) ([]Key, error) {
	if err := staff.atTheMachine("Keys of others are listed"); err != nil {
		return nil, err
	}
	var keys []Key
	err := s.act(ctx, staff, owner, events.Event{Type: events.StaffListedKeys}, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		var err error
		keys, err = s.keys(ctx, tx, owner)
		return err
	})
	return keys, err
}

// CreateKeyFor is CreateKey at the machine; the owner is told of it and why.
func (s *Service) CreateKeyFor(ctx context.Context, staff Principal, owner, name string, scopes []string, expires time.Time, reason string) (string, Key, error) {
	if err := staff.atTheMachine("Keys for others are made"); err != nil {
		return "", Key{}, err
	}
	token, k, write, err := s.newKey(ctx, owner, name, scopes, expires)
	if err != nil {
		return "", Key{}, err
	}
	err = s.act(ctx, staff, owner, events.Event{Type: events.StaffMadeKey, Ref: k.ID}, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		if slices.Contains(scopes, ScopeAdmin) {
			var role Role
			if err := tx.Get(ctx, &role, `SELECT role FROM users WHERE id = ?`, owner); err != nil {
				return err
			}
			if role == NoRole {
				return problem.New(problem.Forbidden, "The scope admin is for staff.")
			}
		}
		if err := write(tx); err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.KeyCreated, map[string]string{"Name": name, "Reason": strings.TrimSpace(reason)})
	})
	if err != nil {
		return "", Key{}, err
	}
	return token, k, nil
}

// RevokeKeyFor is RevokeKey at the machine; the owner is told of it and why.
func (s *Service) RevokeKeyFor(ctx context.Context, staff Principal, owner, id, reason string) error {
	if err := staff.atTheMachine("Keys of others are revoked"); err != nil {
		return err
	}
	s.known.forget(id)
	defer s.known.forget(id)
	return s.act(ctx, staff, owner, events.Event{Type: events.StaffRevokedKey, Ref: id}, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		revoked, err := s.revokeKey(ctx, tx, owner, id)
		if err != nil || !revoked {
			return err
		}
		var sealed []byte
		if err := tx.Get(ctx, &sealed, `SELECT name FROM api_keys WHERE id = ?`, id); err != nil {
			return err
		}
		name, err := s.vault.Unseal(ctx, owner, sealed, nameData(id))
		if err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.KeyRevoked, map[string]string{"Name": string(name), "Reason": strings.TrimSpace(reason)})
	})
}

// Suspend refuses new work of somebody's and tells them why.
func (s *Service) Suspend(ctx context.Context, staff Principal, owner, reason string) error {
	return s.act(ctx, staff, owner, events.Event{Type: events.StaffSuspended}, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		if err := subject.Suspend(ctx, tx, owner, s.clock.Now()); err != nil {
			return err
		}
		if err := s.stopWork(ctx, tx, owner, events.AccountSuspended); err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.AccountSuspended, map[string]string{"Reason": strings.TrimSpace(reason)})
	})
}

// Unsuspend lets a suspended account work again and tells its owner.
func (s *Service) Unsuspend(ctx context.Context, staff Principal, owner, reason string) error {
	return s.act(ctx, staff, owner, events.Event{Type: events.StaffUnsuspended}, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		if err := subject.Unsuspend(ctx, tx, owner); err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.AccountUnsuspended, nil)
	})
}

// CloseChild closes the account of somebody who turned out to be under 13. There
// is no way back, so the session must be fresh.
func (s *Service) CloseChild(ctx context.Context, staff Principal, owner, reason string) error {
	if staff.Subject != cliStaff {
		if err := s.Proved(staff); err != nil {
			return err
		}
	}
	return s.closeFor(ctx, staff, owner, events.StaffClosedChild, reason)
}

// CloseFor closes an account for its owner, who asked for it in another way.
func (s *Service) CloseFor(ctx context.Context, staff Principal, owner, reason string) error {
	return s.closeFor(ctx, staff, owner, events.StaffClosed, reason)
}

func (s *Service) closeFor(ctx context.Context, staff Principal, owner string, action events.Type, reason string) error {
	err := s.act(ctx, staff, owner, events.Event{Type: action}, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		return s.close(ctx, tx, owner, map[events.Fact]string{events.Role: string(staff.Role)})
	})
	s.known.forgetOwner(owner)
	return err
}

// ResetFactors removes every second factor of somebody who has lost them, ends
// their sessions and tells them. Only at the machine.
func (s *Service) ResetFactors(ctx context.Context, staff Principal, owner, reason string) error {
	if err := staff.atTheMachine("Second factors are reset"); err != nil {
		return err
	}
	return s.act(ctx, staff, owner, events.Event{Type: events.StaffResetFactors}, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		if err := s.resetFactors(ctx, tx, owner); err != nil {
			return err
		}
		if err := s.stopWork(ctx, tx, owner, events.AccountRecovered); err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.SecondFactorChanged, map[string]string{"What": "All second factors were removed by the operator, and all sessions were ended."})
	})
}

// A Disclosure is personal data that was handed out because a law asked for it.
type Disclosure struct {
	Case      string // its reference at the authority
	Authority string
	Scope     string // which data
	MayBeTold bool   // false: the case forbids that the person learns of it
}

// Disclose keeps that a person's data was disclosed, for privacy officers and at
// the machine. It hands nothing out.
func (s *Service) Disclose(ctx context.Context, staff Principal, owner string, d Disclosure, reason string) error {
	roles := staff.officers()
	if err := staff.may(roles...); err != nil {
		return err
	}
	var fields []problem.Field
	for _, f := range []struct {
		name  string
		value *string
	}{{"case", &d.Case}, {"authority", &d.Authority}, {"scope", &d.Scope}} {
		*f.value = strings.TrimSpace(*f.value)
		if *f.value == "" || !oneLine(*f.value, disclosureMost) {
			fields = append(fields, disclosureField(f.name))
		}
	}
	if len(fields) > 0 {
		return problem.Invalid(fields...)
	}
	what := events.Event{Type: events.StaffDisclosed, Hidden: !d.MayBeTold, Facts: map[events.Fact]string{
		events.Case: d.Case, events.Authority: d.Authority, events.Scope: d.Scope,
	}}
	return s.act(ctx, staff, owner, what, reason, roles, func(*db.Tx) error { return nil })
}

// IsOfficer refuses whoever is no privacy officer and not at the machine.
func (s *Service) IsOfficer(staff Principal) error { return staff.may(staff.officers()...) }

// Officer is how another room does something for a privacy officer: it runs do, and
// tells what it says has happened, by whom and why, in one transaction. Unlike act it
// asks nothing of the person's account: there may be none any more.
func (s *Service) Officer(staff Principal, reason string) func(ctx context.Context, do func(tx *db.Tx) (events.Event, error)) error {
	return func(ctx context.Context, do func(tx *db.Tx) (events.Event, error)) error {
		if err := s.IsOfficer(staff); err != nil {
			return err
		}
		reason, err := checkReason(reason)
		if err != nil {
			return err
		}
		return away(s.db.Tx(ctx, func(tx *db.Tx) error {
			if err := s.stillStaff(ctx, tx, staff); err != nil {
				return err
			}
			what, err := do(tx)
			if err != nil {
				return err
			}
			if what.Subject == staff.Subject {
				return ownAccount()
			}
			what.At = s.clock.Now()
			what.Facts = withStaff(staff, reason, what.Facts)
			return s.o.Events.Append(ctx, tx, what)
		}))
	}
}

func ownAccount() error {
	return problem.New(problem.Forbidden, "Staff do not act on their own account.")
}

// withStaff adds to facts who acted and why.
func withStaff(staff Principal, reason string, facts map[events.Fact]string) map[events.Fact]string {
	all := map[events.Fact]string{events.Staff: staff.Subject, events.Role: string(staff.Role), events.Reason: reason}
	maps.Copy(all, facts)
	return all
}

// SetRole makes somebody a member of staff, or no longer one. It returns
// Conflict for an account without a second factor.
func (s *Service) SetRole(ctx context.Context, staff Principal, owner string, role Role, reason string) error {
	if err := staff.atTheMachine("Roles are given"); err != nil {
		return err
	}
	switch role {
	case NoRole, RoleSupport, RolePrivacy, RoleOperator:
	default:
		return problem.Invalid(problem.Field{Location: "role", Message: "must be support, privacy, operator or none"})
	}
	action := events.Event{Type: events.StaffGaveRole, Ref: string(role)}
	if role == NoRole {
		action.Type = events.StaffTookRole
	}
	err := s.act(ctx, staff, owner, action, reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		if role != NoRole {
			f, err := s.factors(ctx, tx, owner)
			if err != nil {
				return err
			}
			if !f.TOTP && f.Passkeys == 0 {
				return problem.New(problem.Conflict, "Staff need a second factor: the account must have an authenticator app or a passkey first.")
			}
		}
		if _, err := tx.Exec(ctx, `UPDATE users SET role = ? WHERE id = ?`, role, owner); err != nil {
			return err
		}
		// Sessions of before were opened under other limits.
		_, err := tx.Exec(ctx, `DELETE FROM sessions WHERE owner = ?`, owner)
		return err
	})
	s.known.forgetOwner(owner)
	return err
}

// An Account is a line of the operator's list: no personal data.
type Account struct {
	ID           string        `db:"id"`
	State        subject.State `db:"state"`
	Role         Role          `db:"role"`
	CreatedAt    int64         `db:"created_at"`
	RestrictedAt int64         `db:"restricted_at"`
	SuspendedAt  int64         `db:"suspended_at"`
}

// Created is when the account was made.
func (a Account) Created() time.Time { return time.UnixMilli(a.CreatedAt).UTC() }

// Accounts lists accounts by id, after the given one, at most limit.
func (s *Service) Accounts(ctx context.Context, after string, limit int) ([]Account, error) {
	var list []Account
	err := s.db.Select(ctx, &list, `SELECT u.id, s.state, u.role, u.created_at, coalesce(s.restricted_at, 0) AS restricted_at, coalesce(s.suspended_at, 0) AS suspended_at
		FROM users u JOIN subjects s ON s.id = u.id WHERE u.id > ? ORDER BY u.id LIMIT ?`, after, limit)
	return list, away(err)
}
