package account

import (
	"context"
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

// AtTheMachine is the principal of the command line: whoever can run it holds
// the keys of the whole service anyway. What it does is kept like any staff's.
func AtTheMachine() Principal {
	return Principal{Subject: cliStaff, Role: RoleOperator, Method: ByPasskey}
}

// act runs what a member of staff does with somebody's account and keeps that it
// was done, by whom and why, in the same transaction. The reason is sealed with
// the key of the person, so that it goes with them.
func (s *Service) act(ctx context.Context, staff Principal, owner, action, reason string, roles []Role, f func(tx *db.Tx) error) error {
	if err := staff.may(roles...); err != nil {
		return err
	}
	if staff.Subject == owner {
		return problem.New(problem.Forbidden, "Staff do not act on their own account.")
	}
	reason, err := checkReason(reason)
	if err != nil {
		return err
	}
	now := s.clock.Now()
	id := db.NewID("act", now)
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := s.stillStaff(ctx, tx, staff); err != nil {
			return err
		}
		if p, err := subject.Find(ctx, tx, owner); problem.CodeOf(err) == problem.Unauthorized || err == nil && p.State == subject.Erased {
			return problem.New(problem.NotFound, "There is no such account.")
		} else if err != nil {
			return err
		}
		sealed, err := s.vault.Seal(ctx, owner, []byte(reason), vault.Column("staff_actions", "reason", id))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO staff_actions (id, staff, subject, action, reason, at) VALUES (?, ?, ?, ?, ?, ?)`,
			id, staff.Subject, owner, action, sealed, now.UnixMilli()); err != nil {
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
	if n := utf8.RuneCountInString(reason); n < reasonLeast || n > reasonMost || !utf8.ValidString(reason) || strings.ContainsFunc(reason, unicode.IsControl) {
		return "", problem.Invalid(problem.Field{Location: "body.reason", Message: fmt.Sprintf("must say why in %d to %d characters, in one line", reasonLeast, reasonMost)})
	}
	return reason, nil
}

// stillStaff refuses a member of staff whose session or role was taken since the
// request came, or who is suspended.
func (s *Service) stillStaff(ctx context.Context, tx *db.Tx, staff Principal) error {
	if staff.Subject == cliStaff {
		return nil
	}
	var n int
	err := tx.Get(ctx, &n, `SELECT count(*) FROM sessions s JOIN users u ON u.id = s.owner JOIN subjects p ON p.id = u.id
		WHERE s.id = ? AND s.owner = ? AND s.ended_at IS NULL AND u.role = ? AND p.state = ? AND p.suspended_at IS NULL`,
		staff.SessionID, staff.Subject, staff.Role, subject.Active)
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

// FindAccount opens somebody's account to a member of staff, for a reason. The
// answers for an address without account and for one without a role tell apart
// only to staff.
func (s *Service) FindAccount(ctx context.Context, staff Principal, email, reason string) (User, error) {
	roles := []Role{RoleSupport, RolePrivacy, RoleOperator}
	if err := staff.may(roles...); err != nil {
		return User{}, err
	}
	if _, err := checkReason(reason); err != nil { // before the address tells anything
		return User{}, err
	}
	owner, err := s.FindUser(ctx, email)
	if err != nil {
		return User{}, err
	}
	var u User
	err = s.act(ctx, staff, owner, "account opened", reason, roles, func(tx *db.Tx) error {
		var err error
		u, err = s.user(ctx, tx, owner)
		return err
	})
	return u, err
}

// Suspend refuses new work of somebody's and tells them why.
func (s *Service) Suspend(ctx context.Context, staff Principal, owner, reason string) error {
	return s.act(ctx, staff, owner, "suspended", reason, []Role{RoleOperator}, func(tx *db.Tx) error {
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
	return s.act(ctx, staff, owner, "suspension lifted", reason, []Role{RoleOperator}, func(tx *db.Tx) error {
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
		if err := s.fresh(staff); err != nil {
			return err
		}
	}
	return s.closeFor(ctx, staff, owner, "closed: under 13", reason)
}

// CloseFor closes an account for its owner, who asked for it in another way.
func (s *Service) CloseFor(ctx context.Context, staff Principal, owner, reason string) error {
	return s.closeFor(ctx, staff, owner, "closed", reason)
}

func (s *Service) closeFor(ctx context.Context, staff Principal, owner, action, reason string) error {
	err := s.act(ctx, staff, owner, action, reason, []Role{RoleOperator}, func(tx *db.Tx) error { return s.close(ctx, tx, owner) })
	s.known.forgetOwner(owner)
	return err
}

// ResetFactors removes every second factor of somebody who has lost them, ends
// their sessions and tells them. Only at the machine: a member of staff could be
// talked into it.
func (s *Service) ResetFactors(ctx context.Context, staff Principal, owner, reason string) error {
	if staff.Subject != cliStaff {
		return problem.New(problem.Forbidden, "Second factors are reset at the command line.")
	}
	return s.act(ctx, staff, owner, "second factors reset", reason, []Role{RoleOperator}, func(tx *db.Tx) error {
		if err := s.resetFactors(ctx, tx, owner); err != nil {
			return err
		}
		return s.tell(ctx, tx, owner, mail.SecondFactorChanged, map[string]string{"What": "All second factors were removed by the operator, and all sessions were ended."})
	})
}

// SetRole makes somebody a member of staff, or no longer one. It returns
// Conflict for an account without a second factor.
func (s *Service) SetRole(ctx context.Context, staff Principal, owner string, role Role, reason string) error {
	if staff.Subject != cliStaff {
		return problem.New(problem.Forbidden, "Roles are given at the command line.")
	}
	switch role {
	case NoRole, RoleSupport, RolePrivacy, RoleOperator:
	default:
		return problem.Invalid(problem.Field{Location: "role", Message: "must be support, privacy, operator or none"})
	}
	action := "role given: " + string(role)
	if role == NoRole {
		action = "role taken"
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
