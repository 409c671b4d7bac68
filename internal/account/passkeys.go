package account

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"zimage/internal/db"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

const (
	passkeysMost      = 20 // of one person
	passkeyAnswerMost = 64 * 1024
	challengeLife     = 5 * time.Minute
	challengesSwept   = 20 // expired ones that go whenever one is made
)

// What a challenge is for. One that was made for another purpose is no challenge.
const (
	toRegister       = "register"
	toSignIn         = "sign-in"
	asSecondFactor   = "second-factor"
	passkeyAddressed = "Passkeys need a public address with https and a host name, or localhost."
)

// relyingParty is us, as browsers know us. Conflict when the public address is
// one that passkeys don't work with.
func (s *Service) relyingParty() (*webauthn.WebAuthn, error) {
	origin, err := passkeyOrigin(s.o.PublicURL)
	if err != nil {
		return nil, err
	}
	rp, err := webauthn.New(&webauthn.Config{
		RPID:                  origin.Hostname(),
		RPDisplayName:         totpIssuer,
		RPOrigins:             []string{origin.Scheme + "://" + origin.Host},
		AttestationPreference: protocol.PreferNoAttestation, // who made it is nothing we need to know
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			// Each passkey can be the only factor: it names its owner, and checks
			// who holds it.
			ResidentKey:        protocol.ResidentKeyRequirementRequired,
			RequireResidentKey: protocol.ResidentKeyRequired(),
			UserVerification:   protocol.VerificationRequired,
		},
		// Password managers send extensions that nobody asked for. We read none.
		ExtensionsUnsolicitedOutputPolicy: protocol.UnsolicitedOutputPolicyIgnore,
	})
	if err != nil {
		return nil, problem.New(problem.Conflict, passkeyAddressed)
	}
	return rp, nil
}

// passkeyOrigin is where browsers use passkeys for us. They know none of bare
// addresses, but who runs us on a loopback address reaches us as localhost too.
func passkeyOrigin(publicURL string) (*url.URL, error) {
	u, err := url.Parse(publicURL)
	if err != nil {
		return nil, problem.New(problem.Conflict, passkeyAddressed)
	}
	host := u.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		host, u.Host = "localhost", strings.TrimSuffix("localhost:"+u.Port(), ":")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || host != "localhost") {
		return nil, problem.New(problem.Conflict, passkeyAddressed)
	}
	return u, nil
}

// passkeyOwner is a person as the library asks for one.
type passkeyOwner struct {
	id, name    string
	credentials []webauthn.Credential
}

func (o passkeyOwner) WebAuthnID() []byte                         { return []byte(o.id) }
func (o passkeyOwner) WebAuthnName() string                       { return o.name }
func (o passkeyOwner) WebAuthnDisplayName() string                { return o.name }
func (o passkeyOwner) WebAuthnCredentials() []webauthn.Credential { return o.credentials }

type passkeyRow struct {
	ID         string        `db:"id"`
	Owner      string        `db:"owner"`
	Credential []byte        `db:"credential"` // sealed JSON
	Name       []byte        `db:"name"`       // sealed
	CreatedAt  int64         `db:"created_at"`
	LastUsedAt sql.NullInt64 `db:"last_used_at"`
}

func passkeyRows(ctx context.Context, q db.Querier, owner string) ([]passkeyRow, error) {
	var rows []passkeyRow
	if err := q.Select(ctx, &rows, `SELECT id, owner, credential, name, created_at, last_used_at FROM passkeys WHERE owner = ? ORDER BY id DESC`,
		owner); err != nil {
		return nil, fmt.Errorf("read passkeys: %w", err)
	}
	return rows, nil
}

func (s *Service) openCredential(ctx context.Context, r passkeyRow) (webauthn.Credential, error) {
	plain, err := s.vault.Unseal(ctx, r.Owner, r.Credential, credentialData(r.ID))
	if err != nil {
		return webauthn.Credential{}, fmt.Errorf("open a passkey: %w", err)
	}
	var c webauthn.Credential
	if err := json.Unmarshal(plain, &c); err != nil {
		return webauthn.Credential{}, errors.New("open a passkey: it is not what we sealed")
	}
	return c, nil
}

func (s *Service) sealCredential(ctx context.Context, owner, id string, c *webauthn.Credential) ([]byte, error) {
	plain, err := json.Marshal(c)
	if err != nil {
		return nil, errors.New("seal a passkey: it does not become JSON")
	}
	return s.vault.Seal(ctx, owner, plain, credentialData(id))
}

func (s *Service) passkeyOwner(ctx context.Context, q db.Querier, owner string) (passkeyOwner, error) {
	rows, err := passkeyRows(ctx, q, owner)
	if err != nil {
		return passkeyOwner{}, err
	}
	o := passkeyOwner{id: owner}
	for _, r := range rows {
		c, err := s.openCredential(ctx, r)
		if err != nil {
			return passkeyOwner{}, err
		}
		o.credentials = append(o.credentials, c)
	}
	return o, nil
}

// keepChallenge writes a challenge, and clears away some that have expired, so
// that those who ask for many leave nothing behind.
func (s *Service) keepChallenge(ctx context.Context, tx *db.Tx, owner, purpose, challenge string) (string, error) {
	now := s.clock.Now()
	if _, err := tx.Exec(ctx, `DELETE FROM passkey_challenges WHERE id IN (SELECT id FROM passkey_challenges
		WHERE expires_at <= ? ORDER BY expires_at LIMIT ?`+db.SkipLocked(tx)+`)`, now.UnixMilli(), challengesSwept); err != nil {
		return "", fmt.Errorf("clear away challenges: %w", err)
	}
	id := db.NewID("chal", now)
	if _, err := tx.Exec(ctx, `INSERT INTO passkey_challenges (id, owner, purpose, challenge, expires_at) VALUES (?, ?, ?, ?, ?)`,
		id, owner, purpose, challenge, now.Add(challengeLife).UnixMilli()); err != nil {
		return "", fmt.Errorf("keep a challenge: %w", err)
	}
	return id, nil
}

// takeChallenge returns a challenge to the one who asks first, and errWrongCode
// to everybody else.
func (s *Service) takeChallenge(ctx context.Context, tx *db.Tx, owner, purpose, id string) (string, error) {
	var challenge string
	err := tx.Get(ctx, &challenge, `DELETE FROM passkey_challenges WHERE id = ? AND owner = ? AND purpose = ? AND expires_at > ? RETURNING challenge`,
		id, owner, purpose, s.clock.Millis())
	if errors.Is(err, sql.ErrNoRows) {
		return "", errWrongCode
	}
	if err != nil {
		return "", fmt.Errorf("take a challenge: %w", err)
	}
	return challenge, nil
}

// BeginPasskey makes the challenge for a new passkey; Conflict when there are 20,
// or the public address is one that passkeys don't work with.
func (s *Service) BeginPasskey(ctx context.Context, p Principal) (PasskeyChallenge, error) {
	var made PasskeyChallenge
	err := s.changeFactors(ctx, p, func(tx *db.Tx, u userFactors) error {
		rp, err := s.relyingParty()
		if err != nil {
			return err
		}
		o, err := s.passkeyOwner(ctx, tx, u.ID)
		if err != nil {
			return err
		}
		if len(o.credentials) >= passkeysMost {
			return tooManyPasskeys()
		}
		email, err := s.vault.Unseal(ctx, u.ID, u.Email, emailData(u.ID))
		if err != nil {
			return err
		}
		o.name = string(email) // shown by the person's own device, among other accounts
		there := make([]protocol.CredentialDescriptor, 0, len(o.credentials))
		for _, c := range o.credentials {
			there = append(there, c.Descriptor())
		}
		options, session, err := rp.BeginRegistration(o, webauthn.WithExclusions(there), webauthn.WithCredentialParameters(passkeyAlgorithms()))
		if err != nil {
			return errors.New("make a challenge for a new passkey") // the library's text may quote the person
		}
		made.Options = options
		made.ID, err = s.keepChallenge(ctx, tx, u.ID, toRegister, session.Challenge)
		return err
	})
	if err != nil {
		return PasskeyChallenge{}, err
	}
	return made, nil
}

func tooManyPasskeys() error {
	return problem.New(problem.Conflict, fmt.Sprintf("An account can have %d passkeys. Remove one that is not needed.", passkeysMost))
}

// passkeyAlgorithms are those that WebAuthn asks for; every authenticator has one.
func passkeyAlgorithms() []protocol.CredentialParameter {
	return webauthn.CredentialParametersRecommendedL3()
}

// AddPasskey puts a passkey into force that was made for the challenge. With the
// first factor the person's other sessions end and this one gets a new token.
// InvalidRequest for an answer that does not fit, Conflict for a passkey that is
// registered already.
func (s *Service) AddPasskey(ctx context.Context, p Principal, c Client, name string, a PasskeyAnswer) (made Passkey, got Enrolled, err error) {
	if !oneLine(name, nameMost) {
		return Passkey{}, Enrolled{}, problem.Invalid(problem.Field{Location: "body.name", Message: fmt.Sprintf("must be at most %d characters in one line", nameMost)})
	}
	err = s.changeFactors(ctx, p, func(tx *db.Tx, u userFactors) error {
		credential, err := s.checkNewPasskey(ctx, tx, u.ID, a)
		if errors.Is(err, errWrongCode) {
			return problem.Invalid(problem.Field{Location: "body.passkey", Message: "does not answer a challenge that is still open: begin again"})
		}
		if err != nil {
			return err
		}
		before, err := s.factors(ctx, tx, u.ID)
		if err != nil {
			return err
		}
		if before.Passkeys >= passkeysMost {
			return tooManyPasskeys()
		}
		now := s.clock.Now()
		made = Passkey{ID: db.NewID("pk", now), Name: name, CreatedAt: now}
		sealedName, err := s.vault.Seal(ctx, u.ID, []byte(name), passkeyNameData(made.ID))
		if err != nil {
			return err
		}
		sealed, err := s.sealCredential(ctx, u.ID, made.ID, credential)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO passkeys (id, owner, credential_lookup, credential, name, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
			made.ID, u.ID, s.passkeyLookup(credential.ID), sealed, sealedName, now.UnixMilli()); err != nil {
			return err
		}
		if got, err = s.firstFactor(ctx, tx, p, c, before); err != nil {
			return err
		}
		return s.tellFactors(ctx, tx, u.ID, "A passkey was added.")
	})
	if db.IsUnique(err) {
		return Passkey{}, Enrolled{}, problem.New(problem.Conflict, "This passkey is registered already.")
	}
	if err != nil {
		return Passkey{}, Enrolled{}, err
	}
	return made, got, nil
}

// checkNewPasskey returns what of a new passkey is kept.
func (s *Service) checkNewPasskey(ctx context.Context, tx *db.Tx, owner string, a PasskeyAnswer) (*webauthn.Credential, error) {
	rp, err := s.relyingParty()
	if err != nil {
		return nil, err
	}
	challenge, err := s.takeChallenge(ctx, tx, owner, toRegister, a.ChallengeID)
	if err != nil {
		return nil, err
	}
	if len(a.Response) > passkeyAnswerMost {
		return nil, errWrongCode
	}
	// The library's errors quote what was sent and stay here.
	parsed, err := protocol.ParseCredentialCreationResponseBytes(a.Response)
	if err != nil {
		return nil, errWrongCode
	}
	credential, err := rp.CreateCredential(passkeyOwner{id: owner}, webauthn.SessionData{
		Challenge: challenge, UserID: []byte(owner),
		UserVerification: protocol.VerificationRequired, CredParams: passkeyAlgorithms(),
	}, parsed)
	if err != nil {
		return nil, errWrongCode
	}
	// Nobody reads the attestation again, and transports go back to browsers.
	credential.Attestation = webauthn.CredentialAttestation{}
	credential.Transport = slices.DeleteFunc(credential.Transport, func(t protocol.AuthenticatorTransport) bool {
		return !slices.Contains([]protocol.AuthenticatorTransport{
			protocol.USB, protocol.NFC, protocol.BLE, protocol.SmartCard, protocol.Hybrid, protocol.Internal,
		}, t)
	})
	return credential, nil
}

// Passkeys lists a person's passkeys, the newest first.
func (s *Service) Passkeys(ctx context.Context, owner string) ([]Passkey, error) {
	rows, err := passkeyRows(ctx, s.db, owner)
	if err != nil {
		return nil, away(err)
	}
	all := make([]Passkey, 0, len(rows))
	for _, r := range rows {
		name, err := s.vault.Unseal(ctx, owner, r.Name, passkeyNameData(r.ID))
		if err != nil {
			return nil, away(fmt.Errorf("read passkeys: %w", err))
		}
		all = append(all, Passkey{
			ID: r.ID, Name: string(name), CreatedAt: time.UnixMilli(r.CreatedAt).UTC(), LastUsedAt: timeOf(r.LastUsedAt),
		})
	}
	return all, nil
}

// RemovePasskey takes a passkey out of force; NotFound for somebody else's.
// Conflict when it is the last factor of a member of staff.
func (s *Service) RemovePasskey(ctx context.Context, p Principal, id string) error {
	return s.changeFactors(ctx, p, func(tx *db.Tx, u userFactors) error {
		n, err := tx.Exec(ctx, `DELETE FROM passkeys WHERE id = ? AND owner = ?`, id, u.ID)
		if err != nil {
			return err
		}
		if n == 0 {
			return problem.New(problem.NotFound, "There is no such passkey.")
		}
		if err := s.lastFactor(ctx, tx, u); err != nil {
			return err
		}
		return s.tellFactors(ctx, tx, u.ID, "A passkey was removed.")
	})
}

// PasskeyChallenge makes a challenge for somebody who signs in with a passkey
// alone; Conflict when the public address is one that passkeys don't work with.
// Nobody needs to be known to ask, so nothing is kept of it.
func (s *Service) PasskeyChallenge() (PasskeyChallenge, error) {
	rp, err := s.relyingParty()
	if err != nil {
		return PasskeyChallenge{}, err
	}
	id := db.NewID("chal", s.clock.Now())
	options, _, err := rp.BeginDiscoverableLogin(func(o *protocol.PublicKeyCredentialRequestOptions) error {
		o.Challenge = s.signInChallenge(id)
		return nil
	})
	if err != nil {
		return PasskeyChallenge{}, errors.New("make a challenge for a passkey")
	}
	return PasskeyChallenge{ID: id, Options: options}, nil
}

// signInChallenge follows from its id, by a key: only who got it from us can have
// it signed.
func (s *Service) signInChallenge(id string) protocol.URLEncodedBase64 {
	return s.vault.MAC("passkey challenge", []byte(id))
}

// useSignInChallenge keeps the id of a challenge that was answered rightly for as
// long as the challenge is good; errWrongCode when that was done before.
func (s *Service) useSignInChallenge(ctx context.Context, tx *db.Tx, id string) error {
	n, err := tx.Exec(ctx, `INSERT INTO passkey_challenges (id, owner, purpose, challenge, expires_at) VALUES (?, '', ?, '', ?) ON CONFLICT (id) DO NOTHING`,
		id, toSignIn, s.clock.Now().Add(challengeLife).UnixMilli())
	if err != nil {
		return fmt.Errorf("use a challenge: %w", err)
	}
	if n == 0 {
		return errWrongCode
	}
	return nil
}

// secondFactorChallenge is for one of the owner's passkeys, after the password.
func (s *Service) secondFactorChallenge(ctx context.Context, owner string) (*PasskeyChallenge, error) {
	rp, err := s.relyingParty()
	if err != nil {
		return nil, err
	}
	o, err := s.passkeyOwner(ctx, s.db, owner)
	if err != nil {
		return nil, away(err)
	}
	if len(o.credentials) == 0 {
		return nil, nil //nolint:nilnil // the last one was removed a moment ago
	}
	options, session, err := rp.BeginLogin(o)
	if err != nil {
		return nil, errors.New("make a challenge for a passkey")
	}
	made := PasskeyChallenge{Options: options}
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		made.ID, err = s.keepChallenge(ctx, tx, owner, asSecondFactor, session.Challenge)
		return err
	})
	if err != nil {
		return nil, away(err)
	}
	return &made, nil
}

// takePasskey counts for the network, or for a browser that is known: an attack
// from beside it does not keep that out.
func (s *Service) takePasskey(ctx context.Context, c Client) ([]bucket, error) {
	known, err := s.device(ctx, c.Device)
	if err != nil {
		return nil, err
	}
	if known.ID != "" {
		return s.take(ctx, s.knownBuckets(c, known.ID)...)
	}
	return s.take(ctx, s.networkBucket(c.Addr)...)
}

// SignInWithPasskey opens a session for the owner of a passkey that answers a
// challenge of PasskeyChallenge. Nobody's wrong attempts stand in its way but
// those of the same network. SignInFailed for every answer that opens nothing.
func (s *Service) SignInWithPasskey(ctx context.Context, c Client, a PasskeyAnswer) (SignedIn, error) {
	taken, err := s.takePasskey(ctx, c)
	if err != nil {
		return SignedIn{}, err
	}
	var in SignedIn
	wrong := false
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		owner, err := s.checkPasskey(ctx, tx, "", a)
		if wrong = errors.Is(err, errWrongCode); wrong {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.takeIn(ctx, tx, entryBucket(owner)); err != nil {
			return err
		}
		var isNew bool
		if in, isNew, err = s.openSession(ctx, tx, owner, c, ByPasskey); err != nil {
			return err
		}
		if isNew {
			if err := s.tellNewDevice(ctx, tx, owner, c); err != nil {
				return err
			}
		}
		return giveBack(ctx, tx, taken)
	})
	switch {
	case err != nil:
		return SignedIn{}, away(fmt.Errorf("sign in with a passkey: %w", err))
	case wrong:
		return SignedIn{}, signInFailed()
	}
	return in, nil
}

// checkPasskey takes the answer to a challenge: whoever commits the transaction
// has used it up. A named owner must have a passkey that answers the challenge of
// secondFactor, right or wrong the first time; an empty one is found by the passkey
// that answers one of PasskeyChallenge, rightly once. It returns whose passkey it
// is, and errWrongCode for every answer that opens nothing, also of an account that
// is closed.
func (s *Service) checkPasskey(ctx context.Context, tx *db.Tx, owner string, a PasskeyAnswer) (string, error) {
	challenge := s.signInChallenge(a.ChallengeID).String()
	if owner != "" {
		var err error
		if challenge, err = s.takeChallenge(ctx, tx, owner, asSecondFactor, a.ChallengeID); err != nil {
			return "", err
		}
	} else if a.ChallengeID < db.FloorID("chal", s.clock.Now().Add(time.Millisecond-challengeLife)) {
		return "", errWrongCode // it was made too long ago
	}
	rp, err := s.relyingParty()
	if err != nil || len(a.Response) > passkeyAnswerMost {
		return "", errWrongCode // no browser can have answered
	}
	// The library's errors quote what was sent and stay here.
	answer, err := protocol.ParseCredentialRequestResponseBytes(a.Response)
	if err != nil {
		return "", errWrongCode
	}
	row, err := s.findPasskey(ctx, tx, answer.RawID)
	if err != nil {
		return "", err
	}
	if owner != "" && row.Owner != owner {
		return "", errWrongCode
	}
	known, err := s.openCredential(ctx, row)
	if err != nil {
		return "", err
	}
	who := passkeyOwner{id: row.Owner, credentials: []webauthn.Credential{known}}
	session := webauthn.SessionData{Challenge: challenge, UserVerification: protocol.VerificationRequired}
	var credential *webauthn.Credential
	if owner == "" {
		// The library refuses an answer whose user handle is not who's id.
		_, credential, err = rp.ValidatePasskeyLogin(func(_, _ []byte) (webauthn.User, error) { return who, nil }, session, answer)
	} else {
		session.UserID = []byte(owner)
		credential, err = rp.ValidateLogin(who, session, answer)
	}
	if err != nil {
		return "", errWrongCode
	}
	if owner == "" {
		if err := s.useSignInChallenge(ctx, tx, a.ChallengeID); err != nil {
			return "", err
		}
	}
	if credential.Authenticator.CloneWarning {
		s.o.Log.WarnContext(ctx, "a passkey's counter went back: there may be a copy of it; refused", "passkey", row.ID)
		return "", errWrongCode
	}
	sealed, err := s.sealCredential(ctx, row.Owner, row.ID, credential)
	if err != nil {
		return "", err
	}
	if _, err := tx.Exec(ctx, `UPDATE passkeys SET credential = ?, last_used_at = ? WHERE id = ?`, sealed, s.clock.Millis(), row.ID); err != nil {
		return "", fmt.Errorf("use a passkey: %w", err)
	}
	return row.Owner, nil
}

// findPasskey reads the passkey with this credential id, and keeps its owner's
// rows in the order in which every change of factors does.
func (s *Service) findPasskey(ctx context.Context, tx *db.Tx, credentialID []byte) (passkeyRow, error) {
	lookup := s.passkeyLookup(credentialID)
	var owner string
	err := tx.Get(ctx, &owner, `SELECT owner FROM passkeys WHERE credential_lookup = ?`, lookup)
	if errors.Is(err, sql.ErrNoRows) {
		return passkeyRow{}, errWrongCode
	}
	if err != nil {
		return passkeyRow{}, fmt.Errorf("find a passkey: %w", err)
	}
	switch err := subject.Enter(ctx, tx, owner, subject.Account); {
	case isRefusal(err):
		return passkeyRow{}, errWrongCode
	case err != nil:
		return passkeyRow{}, err
	}
	if _, err := factorRow(ctx, tx, owner); err != nil {
		return passkeyRow{}, err
	}
	var row passkeyRow
	err = tx.Get(ctx, &row, `SELECT id, owner, credential, name, created_at, last_used_at FROM passkeys WHERE credential_lookup = ?`, lookup)
	if errors.Is(err, sql.ErrNoRows) {
		return passkeyRow{}, errWrongCode // removed while we waited
	}
	if err != nil {
		return passkeyRow{}, fmt.Errorf("find a passkey: %w", err)
	}
	return row, nil
}

func (s *Service) passkeyLookup(credentialID []byte) string {
	return s.vault.Lookup("passkey", string(credentialID))
}

func credentialData(passkey string) []byte  { return vault.Column("passkeys", "credential", passkey) }
func passkeyNameData(passkey string) []byte { return vault.Column("passkeys", "name", passkey) }
