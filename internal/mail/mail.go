// Package mail sends what the service must tell its people: rows in the
// database, sent by jobs, at least once and never again after the server's
// recorded acceptance. Without a server mails become files in a directory.
//
// It never decides whom to tell what. Address and content lie sealed with the
// receiver's key until they are accepted or given up, and are gone then. Of what
// a mail server says only its reply code is kept: its words may quote addresses.
package mail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	netmail "net/mail"
	"strings"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/vault"
)

const (
	// KindSend is the job that sends one mail; its ref is the mail's id.
	KindSend = "mail:send"
	// Lane is where mails wait: a server that hangs must not hold up the other
	// housekeeping.
	Lane = "mail"
)

// A Template is a kind of mail.
type Template string

// The templates, with the data that each shows. A mail whose data has another
// key, or lacks one that is not in brackets, is refused by Send.
const (
	ConfirmSignUp       Template = "confirm-signup"        // Code
	SignUpAttempt       Template = "signup-attempt"        // somebody tried to sign up with an address that has an account
	ConfirmEmail        Template = "confirm-email"         // Code, to the new address
	EmailChangeAsked    Template = "email-change-asked"    // to the old address
	EmailChanged        Template = "email-changed"         // to both
	ResetPassword       Template = "reset-password"        // Code
	PasswordChanged     Template = "password-changed"      //
	NewDevice           Template = "new-device"            // When, [Agent], [Place]
	SecondFactorChanged Template = "second-factor-changed" // What: one sentence
	KeyCreated          Template = "key-created"           // [Name], [Reason]: of the operator, who made it
	KeyRevoked          Template = "key-revoked"           // by the operator: [Name], Reason
	RestrictionLifted   Template = "restriction-lifted"    //
	AccountMade         Template = "account-made"          // by the operator
	AccountSuspended    Template = "account-suspended"     // Reason
	AccountUnsuspended  Template = "account-unsuspended"   //
	AccountClosed       Template = "account-closed"        //
	ExportAsked         Template = "export-asked"          //
	ExportReady         Template = "export-ready"          //
	WebhookDisabled     Template = "webhook-disabled"      // Endpoint: its id, Host: of its address, Why: one sentence
	ErasureAsked        Template = "erasure-asked"         // by a letter: When it is begun, ID of the request that can be withdrawn until then, Contact
	RequestConfirm      Template = "request-confirm"       // Request: which right, in words; Code, Contact; to an address that may have no account
	RequestNothingHeld  Template = "request-nothing-held"  // Request, Complaint: how to complain; likewise
	RequestClosed       Template = "request-closed"        // Request, Outcome, Reason, Complaint; likewise
)

// A Message is one mail to be.
type Message struct {
	Subject  string // whose key seals it
	To       string // the address
	Template Template
	Data     map[string]string
}

// Options for New.
type Options struct {
	DB       *db.DB
	Vault    *vault.Vault
	Queue    *jobs.Queue
	Clock    *clock.Clock
	Log      *slog.Logger
	Registry prometheus.Registerer // nil: the metrics are not shown

	Transport Transport // nil: this process writes mails and sends none
	From      string    // an address, perhaps with a name; default zimage@localhost
	PublicURL string    // by which the readers know the service
}

// A Mailer is safe for concurrent use.
type Mailer struct {
	o       Options
	metrics *metrics
}

// New makes a mailer and registers its jobs.
func New(o Options) *Mailer {
	if o.From == "" {
		o.From = "zimage@localhost"
	}
	m := &Mailer{o: o, metrics: newMetrics(o.Registry)}
	o.Queue.Register(jobs.Kind{Name: KindSend, Lane: Lane, MaxAttempts: attempts, Backoff: backoff, Run: m.send, Ended: m.ended})
	return m
}

// urlKey stands in a mail's data beside what the template shows: the address of
// the service as the process knows it that was asked. Not every worker does.
const urlKey = "URL"

// Send has a message sent once the caller's transaction is committed. The error
// never quotes the message.
func (m *Mailer) Send(ctx context.Context, tx *db.Tx, msg Message) error {
	if err := msg.check(); err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	shown := map[string]string{urlKey: m.o.PublicURL}
	for key, value := range msg.Data {
		shown[key] = value
	}
	data, err := json.Marshal(shown)
	if err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	now := m.o.Clock.Now()
	id := db.NewID("mail", now)
	sealed, err := m.o.Vault.Seal(ctx, msg.Subject, data, vault.Column("mails", "data", id))
	if err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	address, err := m.o.Vault.Seal(ctx, msg.Subject, []byte(msg.To), vault.Column("mails", "address", id))
	if err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO mails (id, subject, template, address, data, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
		id, msg.Subject, msg.Template, address, sealed, now.UnixMilli())
	if err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	if _, err = m.o.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindSend, Party: msg.Subject, Ref: id}); err != nil {
		return fmt.Errorf("write a mail: %w", err)
	}
	return nil
}

// check refuses what would fail at every attempt: mistakes of the program, and
// addresses that could carry more than themselves.
func (msg Message) check() error {
	l, known := letters[msg.Template]
	if !known {
		return errors.New("there is no such template")
	}
	for key := range msg.Data {
		if !l.shows(key) {
			return fmt.Errorf("%s shows no %s", msg.Template, key)
		}
	}
	for _, key := range l.needs {
		if msg.Data[key] == "" {
			return fmt.Errorf("%s needs %s", msg.Template, key)
		}
	}
	if !isAddress(msg.To) {
		return errors.New("the address is none")
	}
	return nil
}

// isAddress accepts one bare address.
func isAddress(address string) bool {
	parsed, err := netmail.ParseAddress(address)
	return err == nil && parsed.Name == "" && parsed.Address == address &&
		!strings.ContainsFunc(address, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) })
}
