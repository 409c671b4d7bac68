package account

import (
	"net/netip"
	"time"

	"zimage/internal/subject"
)

// A Client is who asks, as far as the door can see.
type Client struct {
	Addr   netip.Addr // invalid when it came over a socket
	Agent  string     // what the browser calls itself; at most 512 bytes are kept
	Device string     // the token of an earlier session on this browser; empty: none
	// Idle is called when nothing is left to do but to wait until the answer may
	// go. It may be nil.
	Idle func()
}

// A SignUp asks for an account.
type SignUp struct {
	Email    string
	Username string
	Password string
	// OldEnough is the person's word that they are 13 or older. Without it
	// nothing is kept, not even that somebody asked.
	OldEnough bool
	Consents  []subject.Purpose
	Profile   Profile
}

// A Profile is what a person may tell about themselves; all of it is optional.
type Profile struct {
	Name string `json:"name,omitempty"` // to be called by; at most 100 characters
}

// Preferences are the defaults of the person's next generation. A zero field
// means: the service's own default.
type Preferences struct {
	Model  string `json:"model,omitempty"`
	Width  int    `json:"width,omitempty"`
	Height int    `json:"height,omitempty"`
	N      int    `json:"n,omitempty"`
	Format string `json:"format,omitempty"`
}

// A User is an account as its owner sees it.
type User struct {
	ID           string // subject id
	Email        string
	Username     string // empty: none, for accounts made at the command line
	Profile      Profile
	Preferences  Preferences
	Role         Role
	TOTP         bool // whether sign-in asks for a code
	Passkeys     int
	CodesLeft    int // recovery codes that were not used
	CreatedAt    time.Time
	RestrictedAt time.Time // zero: not
	SuspendedAt  time.Time // zero: not
	DoNotSellAt  time.Time // zero: not said; nothing is sold either way
}

// A Role is what a member of staff may do. Roles are given at the command line
// alone, and count only in a session that was opened with two factors.
type Role string

// The roles.
const (
	NoRole         Role = ""
	RoleSupport    Role = "support"  // look up an account, with a reason
	RolePrivacy    Role = "privacy"  // the privacy officer: what support may, and keeps disclosures
	RoleOperator   Role = "operator" // also suspend, and close the account of a child
	cliStaff            = "cli"      // who acts at the machine itself
	reasonMost          = 500        // characters of a reason
	reasonLeast         = 10
	disclosureMost      = 300 // characters of each field of a disclosure
	usernameLeast       = 3
	usernameMost        = 30
)

// A Method is how a session was opened.
type Method string

// The methods. All but the first stand for two factors: a passkey checks who
// holds it.
const (
	ByPassword         Method = "password"
	ByPasswordTOTP     Method = "password+totp"
	ByPasswordRecovery Method = "password+recovery"
	ByPasswordPasskey  Method = "password+passkey"
	ByPasskey          Method = "passkey"
)

// Strong reports whether the method needed two factors.
func (m Method) Strong() bool {
	switch m {
	case ByPasswordTOTP, ByPasswordRecovery, ByPasswordPasskey, ByPasskey:
		return true
	}
	return false
}

// The limits of a session (OWASP ASVS 5.0, 7.3). Staff keep shorter ones.
const (
	sessionIdle      = 7 * 24 * time.Hour
	sessionLife      = 30 * 24 * time.Hour
	staffSessionIdle = 30 * time.Minute
	staffSessionLife = 12 * time.Hour
	// freshFor is how long after a proof of identity sensitive changes are
	// allowed without another.
	freshFor = 10 * time.Minute
)

// A Session is a browser that is signed in, as its owner sees it.
type Session struct {
	ID         string
	Method     Method
	Agent      string
	Place      string // approximate; empty: not known
	CreatedAt  time.Time
	LastUsedAt time.Time // to the minute
	ExpiresAt  time.Time
	Current    bool // it is the one that asks
}

// SignedIn is a session that was just opened, or whose token was changed.
type SignedIn struct {
	Token   string // for the cookie; shown nowhere else
	Session Session
}

// Credentials prove who somebody is.
type Credentials struct {
	Email    string // not for Reauthenticate, which knows it
	Password string
	Code     string         // of the authenticator app, or a recovery code
	Passkey  *PasskeyAnswer // instead of a code, or of everything
}

// A SecondFactor says what a sign-in with the right password still needs. It is
// the cause of a problem.SecondFactorRequired.
type SecondFactor struct {
	TOTP     bool
	Recovery bool
	Passkey  *PasskeyChallenge // nil: none is registered
}

func (*SecondFactor) Error() string { return "a second factor is needed" }

// A PasskeyChallenge is what a browser hands to its authenticator.
type PasskeyChallenge struct {
	ID      string
	Options any // as JSON: what navigator.credentials.get or create takes
}

// A PasskeyAnswer is what the authenticator made of a challenge.
type PasskeyAnswer struct {
	ChallengeID string
	Response    []byte // JSON of the PublicKeyCredential
}

// A Passkey as its owner sees it.
type Passkey struct {
	ID         string
	Name       string
	CreatedAt  time.Time
	LastUsedAt time.Time // zero: never
}
