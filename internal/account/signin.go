package account

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

// A claimed account is who somebody says they are, for as long as that is to be
// proved.
type claimed struct {
	ID       string `db:"id"`       // empty: there is no such account
	Password string `db:"password"` // its hash
	entries  bucket // of right passwords
	device   string // the session row that knows this browser; empty: none
	proven   bool   // a second factor was right on that browser before
}

// SignIn opens a session. A wrong address, password or code and an account that
// may not be entered get one same SignInFailed after the same work.
// SecondFactorNeeded, whose cause is a *SecondFactor, means that the password is
// right. RateLimited counts attempts, whether there is an account or not.
func (s *Service) SignIn(ctx context.Context, c Client, cr Credentials) (SignedIn, error) {
	if cr.Password == "" && cr.Passkey != nil {
		return s.SignInWithPasskey(ctx, c, *cr.Passkey)
	}
	started := time.Now()
	_, canonical, err := normalise(cr.Email)
	if err != nil {
		return SignedIn{}, err
	}
	if err := typed(cr.Password); err != nil {
		return SignedIn{}, err
	}
	in, err := s.signIn(ctx, c, canonical, cr)
	if problem.CodeOf(err) == problem.SignInFailed {
		s.level(ctx, c, started)
	}
	return in, err
}

func (s *Service) signIn(ctx context.Context, c Client, canonical string, cr Credentials) (in SignedIn, err error) {
	leave, err := s.enterQueue(ctx, s.sessionForm, c.Device, func() (bool, error) { return s.knowsBrowser(ctx, c.Device, canonical) })
	if err != nil {
		return SignedIn{}, err
	}
	defer leave()
	var who claimed
	err = s.db.Get(ctx, &who, `SELECT id, password FROM users WHERE email_lookup = ?`, s.emailLookup(canonical))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return SignedIn{}, away(fmt.Errorf("sign in: %w", err))
	}
	device, err := s.device(ctx, c.Device)
	if err != nil {
		return SignedIn{}, err
	}
	buckets := append(s.networkBucket(c.Addr), s.accountBucket(canonical))
	if who.ID != "" && device.Owner == who.ID {
		who.device, who.proven = device.ID, device.Method.Strong()
		buckets = s.knownBuckets(c, device.ID)
	}
	who.entries = entryBucket(cmp.Or(who.device, who.ID)) // nobody has none, which costs the same look
	err = s.check(ctx, who, cr, buckets, func(tx *db.Tx, m Method) error {
		var isNew bool
		var err error
		if in, isNew, err = s.openSession(ctx, tx, who.ID, c, m); err != nil || !isNew {
			return err
		}
		return s.tellNewDevice(ctx, tx, who.ID, c)
	})
	return in, err
}

// enterQueue enters the hasher's queue before any query, since it bounds those too.
// Only where it is full the token is looked up, if it is one of ours: whom it makes
// known gets in past the strangers who fill it.
func (s *Service) enterQueue(ctx context.Context, f form, token string, known func() (bool, error)) (leave func(), err error) {
	leave, full := s.hasher.enter()
	if full == nil || !f.fits(token) {
		return leave, full
	}
	done, ok := s.hasher.look(token)
	if !ok {
		return nil, full
	}
	defer done()
	switch ok, err := known(); {
	case err != nil:
		return nil, err
	case !ok:
		return nil, full
	}
	return s.hasher.enterKnown()
}

// knowsBrowser says whether the account with this address was signed in with the
// browser of the token.
func (s *Service) knowsBrowser(ctx context.Context, token, canonical string) (bool, error) {
	var n int
	if err := s.db.Get(ctx, &n, `SELECT count(*) FROM sessions JOIN users ON users.id = owner WHERE token_lookup = ? AND email_lookup = ?`,
		s.sessionLookup(token), s.emailLookup(canonical)); err != nil {
		return false, away(fmt.Errorf("know a browser again: %w", err))
	}
	return n > 0, nil
}

// check proves an account by its password and, where one is in force, a second
// factor. What follows from it is written by then, in the transaction that uses
// the factor up and in which the account still has this password. The caller has
// entered the hasher's queue.
func (s *Service) check(ctx context.Context, who claimed, cr Credentials, buckets []bucket, then func(*db.Tx, Method) error) error {
	taken, err := s.take(ctx, buckets...)
	if err != nil {
		return err
	}
	switch wait, err := s.full(ctx, who.entries); {
	case err != nil:
		return err
	case wait > 0:
		return tooMany(wait)
	}
	match, outdated, err := s.hasher.verify(ctx, cr.Password, who.Password)
	if err != nil {
		return err
	}
	if !match {
		return signInFailed()
	}
	var better string
	if outdated {
		if better, err = s.hasher.hash(ctx, cr.Password); err != nil {
			return err
		}
	}
	// A refusal is told only after the commit: what it used up stays used.
	var refusal error
	needed := false
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		refusal, needed = nil, false
		if err := s.enter(ctx, tx, who.ID); err != nil {
			return err
		}
		var password string
		if err := tx.Get(ctx, &password, `SELECT password FROM users WHERE id = ?`+db.ForUpdate(tx), who.ID); err != nil {
			return err
		}
		if password != who.Password { // changed since it was checked
			refusal = signInFailed()
			return nil
		}
		var m Method
		err := s.takeIn(ctx, tx, who.entries) // not given back, whatever becomes of it
		if err == nil {
			m, err = s.checkSecond(ctx, tx, who, cr)
		}
		switch code := problem.CodeOf(err); {
		case code == problem.SecondFactorNeeded:
			needed = true
			return giveBack(ctx, tx, taken)
		case code == problem.SignInFailed || code == problem.RateLimited:
			refusal = err
			return nil
		case err != nil:
			return err
		}
		if better != "" {
			if _, err := tx.Exec(ctx, `UPDATE users SET password = ? WHERE id = ?`, better, who.ID); err != nil {
				return err
			}
		}
		if err := then(tx, m); err != nil {
			return err
		}
		return giveBack(ctx, tx, taken)
	})
	switch {
	case err != nil:
		return away(fmt.Errorf("check credentials: %w", err))
	case needed:
		return s.secondFactorNeeded(ctx, who.ID)
	}
	return refusal
}

// checkSecond checks the second factor, if one is in force, and uses it up.
func (s *Service) checkSecond(ctx context.Context, tx *db.Tx, who claimed, cr Credentials) (Method, error) {
	have, err := s.factors(ctx, tx, who.ID)
	switch {
	case err != nil:
		return "", err
	case !have.TOTP && have.Passkeys == 0:
		return ByPassword, nil
	case cr.Code == "" && cr.Passkey == nil:
		return "", problem.New(problem.SecondFactorNeeded, "")
	}
	limit := codeBucket(who.ID)
	if who.proven { // a browser that only a reset made known has no guesses of its own
		limit = codeBucket(who.device)
	}
	if err := s.takeIn(ctx, tx, limit); err != nil {
		return "", err
	}
	m := ByPasswordPasskey
	if cr.Code != "" {
		m, err = s.checkCode(ctx, tx, who.ID, cr.Code)
	} else {
		_, err = s.checkPasskey(ctx, tx, who.ID, *cr.Passkey)
	}
	if errors.Is(err, errWrongCode) {
		return "", signInFailed()
	}
	if err != nil {
		return "", err
	}
	return m, giveBack(ctx, tx, []bucket{limit})
}

// secondFactorNeeded says what there is to choose from.
func (s *Service) secondFactorNeeded(ctx context.Context, owner string) error {
	need, err := s.secondFactor(ctx, owner)
	if err != nil {
		return away(fmt.Errorf("ask for a second factor: %w", err))
	}
	return problem.Wrap(need, problem.SecondFactorNeeded, "The password is right. A second factor is needed too.")
}

// Reauthenticate proves again who a session is, makes it fresh and gives it a
// new token. A passkey alone, for a challenge of PasskeyChallenge, is enough.
func (s *Service) Reauthenticate(ctx context.Context, p Principal, c Client, cr Credentials) (in SignedIn, err error) {
	err = s.proveThen(ctx, p, c, cr, func(tx *db.Tx, m Method) error {
		var err error
		in, err = s.rotate(ctx, tx, p, c, m, s.clock.Now())
		return err
	})
	return in, err
}

// proveThen asks a session for the credentials once more, and does what follows in
// the transaction that uses them up.
func (s *Service) proveThen(ctx context.Context, p Principal, c Client, cr Credentials, then func(*db.Tx, Method) error) error {
	if err := p.inSession(); err != nil {
		return err
	}
	buckets := s.knownBuckets(c, p.SessionID)
	if cr.Password == "" && cr.Passkey != nil {
		return s.provePasskey(ctx, p, *cr.Passkey, buckets, then)
	}
	if err := typed(cr.Password); err != nil {
		return err
	}
	leave, err := s.hasher.enterKnown()
	if err != nil {
		return err
	}
	defer leave()
	who := claimed{entries: entryBucket(p.SessionID), device: p.SessionID, proven: p.Method.Strong()}
	err = s.db.Get(ctx, &who, `SELECT id, password FROM users WHERE id = ?`, p.Subject)
	if errors.Is(err, sql.ErrNoRows) {
		return subject.NoAccount()
	}
	if err != nil {
		return away(fmt.Errorf("prove a session: %w", err))
	}
	return s.check(ctx, who, cr, buckets, then)
}

func (s *Service) provePasskey(ctx context.Context, p Principal, a PasskeyAnswer, buckets []bucket, then func(*db.Tx, Method) error) error {
	taken, err := s.take(ctx, buckets...)
	if err != nil {
		return err
	}
	wrong := false
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		wrong = false
		if err := s.enter(ctx, tx, p.Subject); err != nil {
			return err
		}
		found, err := s.checkPasskey(ctx, tx, "", a)
		if errors.Is(err, errWrongCode) || (err == nil && found != p.Subject) {
			wrong = true // and what it used stays used
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.takeIn(ctx, tx, entryBucket(p.SessionID)); err != nil {
			return err
		}
		if err := then(tx, ByPasskey); err != nil {
			return err
		}
		return giveBack(ctx, tx, taken)
	})
	if err != nil {
		return away(fmt.Errorf("prove a session: %w", err))
	}
	if wrong {
		return signInFailed()
	}
	return nil
}

// enter keeps the account's state as it is until the transaction ends. One that
// may not be entered looks like one that does not exist.
func (s *Service) enter(ctx context.Context, tx *db.Tx, owner string) error {
	err := subject.Enter(ctx, tx, owner, subject.Account)
	if isRefusal(err) {
		return signInFailed()
	}
	return err
}

// signInFailed is one answer for every reason, so that it tells nothing about
// which accounts there are (OWASP ASVS 5.0, 6.3.8).
func signInFailed() error {
	return problem.New(problem.SignInFailed, "The address, the password or the code is not right.")
}

// typed refuses what cannot be a password of ours before anything is done for
// it.
func typed(password string) error {
	if password == "" || len(password) > passwordMost || !utf8.ValidString(password) {
		return problem.Invalid(problem.Field{Location: "body.password", Message: fmt.Sprintf("must be text of at most %d bytes", passwordMost)})
	}
	return nil
}

// turnedAway reports whether somebody was refused before anything was asked about
// the address: the time of that tells nothing, and is the shortest.
func turnedAway(err error) bool {
	return problem.CodeOf(err) == problem.RateLimited || errors.Is(err, errQueueFull)
}

// level waits until a whole number of Options.Level has passed since started, so
// that the time of an answer does not tell what was done for it. The client is
// told first that it only waits.
func (s *Service) level(ctx context.Context, c Client, started time.Time) {
	grid := s.o.Level
	if grid <= 0 {
		return
	}
	if c.Idle != nil {
		c.Idle()
	}
	t := time.NewTimer(grid - time.Since(started)%grid)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
