package mail

import (
	"cmp"
	"context"
	"fmt"
	netmail "net/mail"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// An Envelope is one mail as it goes out.
type Envelope struct {
	ID       string // with Host the Message-ID, the same at every attempt
	Host     string // empty: the domain of From
	From, To string
	At       time.Time // when it was written
	Subject  string
	Text     string
	HTML     string
}

// A Transport takes mails away: SMTP, or a Directory.
type Transport interface {
	// Send returns nil once the mail is somebody else's to deliver, and otherwise
	// a *Fault. What ended in doubt, such as a connection that broke before the
	// answer came, is a fault too: the same mail is then sent again.
	Send(ctx context.Context, e Envelope) error
}

var (
	_ Transport = (*SMTP)(nil)
	_ Transport = (*Directory)(nil)
)

// Why a mail was not accepted, as it stands in its job and in the log.
const (
	CodeDeferred = "mail_deferred" // the server asks to come later
	CodeBroken   = "mail_broken"   // no connection, or it broke, or took too long
	CodeTLS      = "mail_tls"      // none that we accept
	CodeLogin    = "mail_login"    // user and password, or no way to give them

	codeRefused   = "mail_refused"   // this mail, for good
	codeServer    = "mail_server"    // the server takes nothing from us: the operator's to mend
	codeFolder    = "mail_folder"    // the directory cannot be written
	codeUnwritten = "mail_unwritten" // it cannot be put into the form of a mail
)

// A Fault is why a mail was not accepted. It never holds the server's words.
type Fault struct {
	Code  string
	Reply int  // the server's reply code; 0: it gave none
	Final bool // no attempt will be better
}

func (f *Fault) Error() string {
	if f.Reply != 0 {
		return fmt.Sprintf("%s (%d)", f.Code, f.Reply)
	}
	return f.Code
}

// compose puts an envelope into the form of a mail. Every header is one of ours
// or an address that was parsed, so nothing that a person typed can add another.
func compose(e Envelope) (*gomail.Msg, error) {
	from, err := netmail.ParseAddress(e.From)
	if err != nil || !isAddress(e.To) {
		return nil, &Fault{Code: codeUnwritten, Final: err == nil} // a wrong sender can be mended
	}
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	m.FromMailAddress(from)
	m.ToMailAddress(&netmail.Address{Address: e.To})
	m.Subject(e.Subject)
	m.SetDateWithValue(e.At)
	m.SetMessageIDWithValue(e.ID + "@" + cmp.Or(e.Host, domain(from.Address)))
	m.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no answering machine answers
	m.SetBodyString(gomail.TypeTextPlain, e.Text)
	m.AddAlternativeString(gomail.TypeTextHTML, e.HTML)
	return m, nil
}

func domain(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }
