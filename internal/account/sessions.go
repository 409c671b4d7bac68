package account

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"zimage/internal/db"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

const (
	agentMost    = 512                 // bytes of what a browser calls itself
	sessionsMost = 100                 // browsers of one owner that are remembered
	unusedFor    = 90 * 24 * time.Hour // then a browser is forgotten
	touchEvery   = time.Minute         // so no session's last use is written more often
)

type sessionRow struct {
	ID         string        `db:"id"`
	Owner      string        `db:"owner"`
	Method     Method        `db:"method"`
	Agent      []byte        `db:"agent"`
	Place      []byte        `db:"place"`
	CreatedAt  int64         `db:"created_at"`
	FreshAt    int64         `db:"fresh_at"`
	LastUsedAt int64         `db:"last_used_at"`
	ExpiresAt  int64         `db:"expires_at"`
	EndedAt    sql.NullInt64 `db:"ended_at"`
}

const sessionColumns = `sessions.id, owner, method, agent, place, sessions.created_at, fresh_at, last_used_at, expires_at, ended_at`

// limits are how long a session may lie unused, and how long it lives.
func limits(r Role) (idle, life time.Duration) {
	if r != NoRole {
		return staffSessionIdle, staffSessionLife
	}
	return sessionIdle, sessionLife
}

// until is when the session ends unless it is used; a role that was given later
// shortens it too.
func (r sessionRow) until(role Role) time.Time {
	idle, life := limits(role)
	return time.UnixMilli(min(r.ExpiresAt, r.CreatedAt+life.Milliseconds(), r.LastUsedAt+idle.Milliseconds())).UTC()
}

func (r sessionRow) live(role Role, now time.Time) bool {
	return !r.EndedAt.Valid && r.until(role).After(now)
}

// AuthenticateSession says whom a session's token stands for. Malformed and
// unknown tokens, sessions that were ended or have run out, and those of closed
// accounts get one same Unauthorized. Nothing is cached: an ended session is
// refused at once by every process.
func (s *Service) AuthenticateSession(ctx context.Context, token string) (Principal, error) {
	if !s.sessionForm.fits(token) {
		return Principal{}, notSignedIn()
	}
	now, lookup := s.clock.Now(), s.sessionLookup(token)
	var row struct {
		sessionRow
		Role        Role          `db:"role"`
		DoNotSellAt sql.NullInt64 `db:"do_not_sell_at"`
	}
	err := s.db.Get(ctx, &row, `SELECT `+sessionColumns+`, u.role, u.do_not_sell_at
		FROM sessions JOIN users u ON u.id = owner WHERE token_lookup = ?`, lookup)
	if errors.Is(err, sql.ErrNoRows) {
		return Principal{}, notSignedIn()
	}
	if err != nil {
		return Principal{}, away(fmt.Errorf("find a session: %w", err))
	}
	if err := s.open(ctx, row.sessionRow, row.Role, now); err != nil {
		return Principal{}, err
	}
	if now.UnixMilli()-row.LastUsedAt >= touchEvery.Milliseconds() {
		// Of several requests at once only the first one writes.
		if _, err := s.db.Exec(ctx, `UPDATE sessions SET last_used_at = ? WHERE id = ? AND last_used_at = ? AND ended_at IS NULL`,
			now.UnixMilli(), row.ID, row.LastUsedAt); err != nil {
			return Principal{}, away(fmt.Errorf("note a session's use: %w", err))
		}
	}
	return Principal{
		Subject: row.Owner, Scopes: sessionScopes(row.Role, row.Method), Role: row.Role,
		SessionID: row.ID, Method: row.Method, FreshAt: time.UnixMilli(row.FreshAt).UTC(), lookup: lookup,
		DoNotSell: row.DoNotSellAt.Valid,
	}, nil
}

// open refuses a session that has ended, and one whose account was closed.
func (s *Service) open(ctx context.Context, row sessionRow, role Role, now time.Time) error {
	if !row.live(role, now) {
		return signedOut(row.ID)
	}
	err := subject.May(ctx, s.db, row.Owner, subject.Read)
	if isRefusal(err) {
		return signedOut(row.ID)
	}
	return away(err)
}

// StillHolds says whether a session that was let in before may go on: Unauthorized
// when it was ended since, or has another token. Whoever has that one comes back
// with it, and a copy of the old one does not outlive it. Unlike AuthenticateSession
// it is no use of the session, so that an open stream does not keep it alive.
func (s *Service) StillHolds(ctx context.Context, p Principal) error {
	var row struct {
		sessionRow
		Role Role `db:"role"`
	}
	err := s.db.Get(ctx, &row, `SELECT `+sessionColumns+`, u.role FROM sessions JOIN users u ON u.id = owner
		WHERE sessions.id = ? AND owner = ? AND token_lookup = ?`, p.SessionID, p.Subject, p.lookup)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return notSignedIn()
	case err != nil:
		return away(fmt.Errorf("find a session: %w", err))
	}
	return s.open(ctx, row.sessionRow, row.Role, s.clock.Now())
}

// sessionScopes are all but admin, which is for staff that came in with two
// factors.
func sessionScopes(role Role, m Method) []string {
	return slices.DeleteFunc(Scopes(), func(scope string) bool {
		return scope == ScopeAdmin && (role == NoRole || !m.Strong())
	})
}

// notSignedIn is one answer for every reason.
func notSignedIn() error { return problem.New(problem.Unauthorized, "You are not signed in.") }

// SignedOut is the cause of the same answer to a browser that we know: its token
// opens nothing any more, and is no guess.
type SignedOut struct{ SessionID string }

func (*SignedOut) Error() string { return "signed out" }

func signedOut(session string) error {
	return problem.Wrap(&SignedOut{SessionID: session}, problem.Unauthorized, "You are not signed in.")
}

// isRefusal reports whether subject refused, rather than failed.
func isRefusal(err error) bool {
	code := problem.CodeOf(err)
	return code == problem.Unauthorized || code == problem.Forbidden
}

// Fresh reports whether the session proved lately who it is.
func (p Principal) Fresh(now time.Time) bool {
	return p.SessionID != "" && now.Sub(p.FreshAt) < freshFor
}

// inSession refuses a key.
func (p Principal) inSession() error {
	if p.SessionID == "" {
		return problem.New(problem.Forbidden, "A key may not do this: sign in.")
	}
	return nil
}

// Proved refuses a session that did not prove lately who it is, ReauthNeeded, and
// every key, Forbidden: what every sensitive change asks for (OWASP ASVS 5.0, 7.5.1).
func (s *Service) Proved(p Principal) error {
	if err := p.inSession(); err != nil {
		return err
	}
	if !p.Fresh(s.clock.Now()) {
		return problem.New(problem.ReauthNeeded, "Prove again who you are before you change this.")
	}
	return nil
}

// stillThere keeps the account as it is until the transaction ends, and refuses a
// session or key that was ended since the request came, or has another token: a
// body may take seconds to arrive, and a new password must end what a thief began
// before.
func (s *Service) stillThere(ctx context.Context, tx *db.Tx, p Principal) error {
	if err := subject.Enter(ctx, tx, p.Subject, subject.Account); err != nil {
		return err
	}
	question, args := `SELECT count(*) FROM sessions WHERE id = ? AND owner = ? AND token_lookup = ? AND ended_at IS NULL`, []any{p.SessionID, p.Subject, p.lookup}
	if p.SessionID == "" {
		question, args = `SELECT count(*) FROM api_keys WHERE id = ? AND owner = ? AND revoked_at IS NULL`, []any{p.KeyID, p.Subject}
	}
	var live int
	if err := tx.Get(ctx, &live, question, args...); err != nil {
		return err
	}
	if live == 0 {
		return notSignedIn()
	}
	return nil
}

// openSession signs a client in. It always makes a new token; a browser that the
// owner was signed in with before keeps its row, and every other session of this
// browser ends with its cookie. isNew says that the browser was not known.
// SignInFailed when the account may not be entered.
func (s *Service) openSession(ctx context.Context, tx *db.Tx, owner string, c Client, m Method) (in SignedIn, isNew bool, err error) {
	if err := s.enter(ctx, tx, owner); err != nil {
		return SignedIn{}, false, err
	}
	var role Role
	if err := tx.Get(ctx, &role, `SELECT role FROM users WHERE id = ?`, owner); err != nil {
		return SignedIn{}, false, fmt.Errorf("open a session: %w", err)
	}
	id, err := s.takeDevice(ctx, tx, owner, c.Device)
	if err != nil {
		return SignedIn{}, false, err
	}
	now := s.clock.Now()
	isNew = id == ""
	if isNew {
		id = db.NewID("ses", now)
	}
	_, life := limits(role)
	in = SignedIn{Token: s.sessionForm.make(), Session: Session{
		ID: id, Method: m, CreatedAt: now, LastUsedAt: now, ExpiresAt: now.Add(life), Current: true,
	}}
	return in, isNew, s.writeSession(ctx, tx, owner, c, &in, isNew, now, sql.NullInt64{})
}

// knowDevice makes a row that is signed out from the start: its token opens
// nothing, and lets the browser sign in past whoever fills the account's
// throttle.
func (s *Service) knowDevice(ctx context.Context, tx *db.Tx, owner string, c Client) (device string, err error) {
	if _, err := s.takeDevice(ctx, tx, owner, c.Device); err != nil {
		return "", err
	}
	now := s.clock.Now()
	in := SignedIn{Token: s.sessionForm.make(), Session: Session{
		ID: db.NewID("ses", now), Method: ByPassword, CreatedAt: now, LastUsedAt: now, ExpiresAt: now,
	}}
	return in.Token, s.writeSession(ctx, tx, owner, c, &in, true, now, sql.NullInt64{Int64: now.UnixMilli(), Valid: true})
}

func (s *Service) writeSession(ctx context.Context, tx *db.Tx, owner string, c Client, in *SignedIn, isNew bool, fresh time.Time, ended sql.NullInt64) error {
	one := &in.Session
	one.Agent, one.Place = clean(c.Agent, agentMost), s.place(c)
	agent, err := s.sealOptional(ctx, owner, one.Agent, vault.Column("sessions", "agent", one.ID))
	if err != nil {
		return fmt.Errorf("write a session: %w", err)
	}
	place, err := s.sealOptional(ctx, owner, one.Place, vault.Column("sessions", "place", one.ID))
	if err != nil {
		return fmt.Errorf("write a session: %w", err)
	}
	values := []any{s.sessionLookup(in.Token), one.Method, agent, place,
		one.CreatedAt.UnixMilli(), fresh.UnixMilli(), one.LastUsedAt.UnixMilli(), one.ExpiresAt.UnixMilli(), ended, one.ID, owner}
	statement := `UPDATE sessions SET token_lookup = ?, method = ?, agent = ?, place = ?,
		created_at = ?, fresh_at = ?, last_used_at = ?, expires_at = ?, ended_at = ? WHERE id = ? AND owner = ?`
	if isNew {
		statement = `INSERT INTO sessions (token_lookup, method, agent, place,
			created_at, fresh_at, last_used_at, expires_at, ended_at, id, owner) VALUES (` + db.Marks(len(values)) + `)`
	}
	switch n, err := tx.Exec(ctx, statement, values...); {
	case err != nil:
		return fmt.Errorf("write a session: %w", err)
	case n == 0:
		return notSignedIn() // ended in between
	}
	if _, err := tx.Exec(ctx, `DELETE FROM sessions WHERE owner = ? AND id NOT IN
		(SELECT id FROM sessions WHERE owner = ? ORDER BY last_used_at DESC, id DESC LIMIT ?)`, owner, owner, sessionsMost); err != nil {
		return fmt.Errorf("forget old browsers: %w", err)
	}
	return nil
}

// takeDevice finds the owner's row that the browser's token belongs to; empty:
// none. A row of somebody else's goes: the browser has room for one token, and
// must not leave a session open that nobody can end from it.
func (s *Service) takeDevice(ctx context.Context, tx *db.Tx, owner, token string) (id string, err error) {
	if !s.sessionForm.fits(token) {
		return "", nil
	}
	var row deviceRow
	lookup := s.sessionLookup(token)
	err = tx.Get(ctx, &row, `SELECT id, owner, method FROM sessions WHERE token_lookup = ?`+db.ForUpdate(tx), lookup)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("know a browser again: %w", err)
	case row.Owner == owner:
		return row.ID, nil
	}
	if _, err := tx.Exec(ctx, `DELETE FROM sessions WHERE id = ?`, row.ID); err != nil {
		return "", fmt.Errorf("end another's session: %w", err)
	}
	return "", nil
}

// Issued reports, without asking the database, whether a session's token is one of
// ours, whatever has become of it.
func (s *Service) Issued(token string) bool { return s.sessionForm.fits(token) }

type deviceRow struct {
	ID     string `db:"id"`
	Owner  string `db:"owner"`
	Method Method `db:"method"` // of the last sign-in; ByPassword after a mere reset
}

// device is the row that a browser's token belongs to, signed in or not; zero:
// none.
func (s *Service) device(ctx context.Context, token string) (row deviceRow, err error) {
	if !s.sessionForm.fits(token) {
		return row, nil
	}
	err = s.db.Get(ctx, &row, `SELECT id, owner, method FROM sessions WHERE token_lookup = ?`, s.sessionLookup(token))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return row, away(fmt.Errorf("know a browser again: %w", err))
	}
	return row, nil
}

// rotate gives a session a new token, at once the only one: a copy of the cookie
// opens nothing after a new proof or a change of what protects the account.
func (s *Service) rotate(ctx context.Context, tx *db.Tx, p Principal, c Client, m Method, fresh time.Time) (SignedIn, error) {
	var row sessionRow
	err := tx.Get(ctx, &row, `SELECT `+sessionColumns+` FROM sessions WHERE id = ? AND owner = ? AND token_lookup = ?`+db.ForUpdate(tx),
		p.SessionID, p.Subject, p.lookup)
	if errors.Is(err, sql.ErrNoRows) {
		return SignedIn{}, notSignedIn()
	}
	if err != nil {
		return SignedIn{}, fmt.Errorf("rotate a session: %w", err)
	}
	now := s.clock.Now()
	if !row.live(p.Role, now) {
		return SignedIn{}, notSignedIn()
	}
	in := SignedIn{Token: s.sessionForm.make(), Session: Session{
		ID: row.ID, Method: m, CreatedAt: time.UnixMilli(row.CreatedAt).UTC(), LastUsedAt: now,
		ExpiresAt: time.UnixMilli(row.ExpiresAt).UTC(), Current: true,
	}}
	return in, s.writeSession(ctx, tx, p.Subject, c, &in, false, fresh, sql.NullInt64{})
}

// SignOut ends the session that asks, and returns the token that takes its place
// in the cookie: it opens nothing, and knows the browser again at the next
// sign-in.
func (s *Service) SignOut(ctx context.Context, p Principal) (device string, err error) {
	token, now := s.sessionForm.make(), s.clock.Millis()
	n, err := s.db.Exec(ctx, `UPDATE sessions SET token_lookup = ?, ended_at = ?, last_used_at = ?
		WHERE id = ? AND owner = ? AND token_lookup = ? AND ended_at IS NULL`, s.sessionLookup(token), now, now, p.SessionID, p.Subject, p.lookup)
	if err != nil {
		return "", away(fmt.Errorf("sign out: %w", err))
	}
	if n == 0 {
		return "", notSignedIn()
	}
	return token, nil
}

// Sessions lists where the account is signed in, the newest first.
func (s *Service) Sessions(ctx context.Context, p Principal) ([]Session, error) {
	var rows []sessionRow
	if err := s.db.Select(ctx, &rows, `SELECT `+sessionColumns+` FROM sessions WHERE owner = ? AND ended_at IS NULL`, p.Subject); err != nil {
		return nil, away(fmt.Errorf("list sessions: %w", err))
	}
	now := s.clock.Now()
	list := make([]Session, 0, len(rows))
	for _, r := range rows {
		if !r.live(p.Role, now) {
			continue
		}
		agent, err := s.unsealOptional(ctx, p.Subject, r.Agent, vault.Column("sessions", "agent", r.ID))
		if err != nil {
			return nil, away(fmt.Errorf("list sessions: %w", err))
		}
		place, err := s.unsealOptional(ctx, p.Subject, r.Place, vault.Column("sessions", "place", r.ID))
		if err != nil {
			return nil, away(fmt.Errorf("list sessions: %w", err))
		}
		list = append(list, Session{
			ID: r.ID, Method: r.Method, Agent: agent, Place: place, CreatedAt: time.UnixMilli(r.CreatedAt).UTC(),
			LastUsedAt: time.UnixMilli(r.LastUsedAt).UTC(), ExpiresAt: time.UnixMilli(r.ExpiresAt).UTC(), Current: r.ID == p.SessionID,
		})
	}
	slices.SortFunc(list, func(a, b Session) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(b.ID, a.ID))
	})
	return list, nil
}

// EndSession ends a session and forgets its browser; NotFound for one of
// somebody else's.
func (s *Service) EndSession(ctx context.Context, owner, id string) error {
	n, err := s.db.Exec(ctx, `DELETE FROM sessions WHERE id = ? AND owner = ? AND ended_at IS NULL`, id, owner)
	if err != nil {
		return away(fmt.Errorf("end a session: %w", err))
	}
	if n == 0 {
		return problem.New(problem.NotFound, "There is no such session.")
	}
	return nil
}

// EndSessions ends every session of the owner's but one, which may be none, and
// forgets all other browsers. It returns how many were signed in.
func (s *Service) EndSessions(ctx context.Context, owner, except string) (n int, err error) {
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		n, err = endSessions(ctx, tx, owner, except, s.clock.Millis())
		return err
	})
	if err != nil {
		return 0, away(fmt.Errorf("end sessions: %w", err))
	}
	return n, nil
}

func endSessions(ctx context.Context, tx *db.Tx, owner, except string, now int64) (int, error) {
	var rows []sessionRow
	if err := tx.Select(ctx, &rows, `DELETE FROM sessions WHERE owner = ? AND id <> ? RETURNING `+sessionColumns, owner, except); err != nil {
		return 0, err
	}
	n := 0
	for _, r := range rows {
		if r.live(NoRole, time.UnixMilli(now)) {
			n++
		}
	}
	return n, nil
}

// tellNewDevice mails the owner that somebody signed in with a browser that was
// not known (OWASP ASVS 5.0, 6.3.5), as long as that does not fill their mailbox.
func (s *Service) tellNewDevice(ctx context.Context, tx *db.Tx, owner string, c Client) error {
	if full, err := takeOne(ctx, tx, newDeviceBucket(owner), s.clock.Millis()); err != nil || full > 0 {
		return err
	}
	return s.tell(ctx, tx, owner, mail.NewDevice, map[string]string{
		"When": s.clock.Now().Format("2 January 2006, 15:04 UTC"), "Agent": clean(c.Agent, agentMost), "Place": s.place(c),
	})
}

func (s *Service) place(c Client) string {
	if s.o.Place == nil || !c.Addr.IsValid() {
		return ""
	}
	return s.o.Place(c.Addr)
}

// clean is at most so many bytes of a text in one line, and nothing that is no
// text.
func clean(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	return strings.TrimSpace(strings.ToValidUTF8(text[:min(len(text), most)], ""))
}

// sealOptional leaves an empty text NULL.
func (s *Service) sealOptional(ctx context.Context, owner, text string, data []byte) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	return s.vault.Seal(ctx, owner, []byte(text), data)
}

func (s *Service) unsealOptional(ctx context.Context, owner string, sealed, data []byte) (string, error) {
	if sealed == nil {
		return "", nil
	}
	text, err := s.vault.Unseal(ctx, owner, sealed, data)
	return string(text), err
}

func (s *Service) sessionLookup(token string) string { return s.vault.Lookup("session", token) }
