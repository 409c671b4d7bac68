package mail

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	netmail "net/mail"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

const (
	dialTimeout = 15 * time.Second
	// talkTimeout bounds the whole conversation. RFC 5321 would have us wait ten
	// minutes for the last answer, since whoever gives up earlier may send twice;
	// no server that takes mail from programs is as slow.
	talkTimeout = 3 * time.Minute
)

// SMTPOptions say where the server is and what to ask of it.
type SMTPOptions struct {
	Host     string
	Port     int
	User     string // empty: no authentication
	Password string
	Implicit bool // TLS from the first byte on, not by STARTTLS

	// Local servers are on this machine: nothing between them and us has to be
	// encrypted or verified.
	Local bool
	// Excepted is the operator's word that TLS 1.2 is good enough and, where no
	// password goes over it, plain text and an unverified name too.
	Excepted bool

	Roots   *x509.CertPool // nil: the system's
	Timeout time.Duration  // of the whole conversation; 0: three minutes
}

// SMTP hands mails to a server, each over a connection of its own.
type SMTP struct{ o SMTPOptions }

// NewSMTP makes the transport; it connects when it has something to send.
func NewSMTP(o SMTPOptions) *SMTP {
	if o.Timeout == 0 {
		o.Timeout = talkTimeout
	}
	return &SMTP{o}
}

// open reports whether plain text is accepted. What may go in plain text may
// also go to a name that nobody verified: whoever could pretend to be the server
// could as well say that it speaks no TLS.
func (s *SMTP) open() bool { return s.o.Local || s.o.Excepted && s.o.User == "" && !s.o.Implicit }

func (s *SMTP) tls() *tls.Config {
	c := &tls.Config{ServerName: s.o.Host, RootCAs: s.o.Roots, MinVersion: tls.VersionTLS13}
	if s.o.Local || s.o.Excepted {
		c.MinVersion = tls.VersionTLS12
	}
	c.InsecureSkipVerify = s.open()
	return c
}

// Send is described at Transport. It returns at once when ctx ends.
func (s *SMTP) Send(ctx context.Context, e Envelope) error {
	msg, err := compose(e)
	if err != nil {
		return err
	}
	return s.talk(ctx, domain(msg.GetFrom()[0].Address), func(client *smtp.Client) error { return s.hand(client, msg, e.To) })
}

// Check comes as far as a server that would take mail from us, and leaves without
// any. from is an address, perhaps with a name; the error is a *Fault.
func (s *SMTP) Check(ctx context.Context, from string) error {
	sender, err := netmail.ParseAddress(from)
	if err != nil {
		return &Fault{Code: codeUnwritten}
	}
	return s.talk(ctx, domain(sender.Address), func(*smtp.Client) error { return nil })
}

// talk is one conversation with the server, in which it already knows us.
func (s *SMTP) talk(ctx context.Context, self string, f func(*smtp.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(s.o.Host, strconv.Itoa(s.o.Port)))
	if err != nil {
		return &Fault{Code: CodeBroken}
	}
	defer func() { _ = conn.Close() }()
	// The library knows deadlines, and no context.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()

	client, err := s.greet(ctx, conn, self)
	if err != nil {
		return err
	}
	if err := f(client); err != nil {
		return err
	}
	// Accepted. How the server likes our leaving is of no interest any more, and
	// is not waited for.
	_, _ = client.Text.Cmd("QUIT")
	return nil
}

// greet comes as far as a server that knows us over a connection that we accept.
func (s *SMTP) greet(ctx context.Context, conn net.Conn, self string) (*smtp.Client, error) {
	if s.o.Implicit {
		secured := tls.Client(conn, s.tls())
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, &Fault{Code: CodeTLS}
		}
		conn = secured
	}
	client, err := smtp.NewClient(conn, s.o.Host)
	if err != nil {
		return nil, fault(codeServer, err)
	}
	if err := client.Hello(self); err != nil {
		return nil, fault(codeServer, err)
	}
	if !s.o.Implicit {
		switch offered, _ := client.Extension("STARTTLS"); {
		case offered:
			if err := client.StartTLS(s.tls()); err != nil {
				return nil, fault(CodeTLS, err)
			}
		case !s.open():
			return nil, &Fault{Code: CodeTLS}
		}
	}
	if s.o.User == "" {
		return client, nil
	}
	auth := s.auth(client)
	if auth == nil {
		return nil, &Fault{Code: CodeLogin}
	}
	if err := client.Auth(auth); err != nil {
		return nil, fault(CodeLogin, err)
	}
	return client, nil
}

// auth is the best of the ways to say who we are that the server knows; nil when
// it knows none of them.
func (s *SMTP) auth(client *smtp.Client) smtp.Auth {
	_, list := client.Extension("AUTH")
	known := strings.Fields(strings.ToUpper(list))
	switch {
	case slices.Contains(known, "SCRAM-SHA-256"):
		return smtp.ScramSHA256Auth(s.o.User, s.o.Password)
	case slices.Contains(known, "PLAIN"):
		return smtp.PlainAuth("", s.o.User, s.o.Password, s.o.Host, s.o.Local)
	case slices.Contains(known, "LOGIN"):
		return smtp.LoginAuth(s.o.User, s.o.Password, s.o.Host, s.o.Local)
	}
	return nil
}

// hand gives the mail to a server that is ready for it.
func (s *SMTP) hand(client *smtp.Client, msg *gomail.Msg, to string) error {
	options := []gomail.Option{gomail.WithTimeout(s.o.Timeout), gomail.WithoutNoop(), gomail.WithoutRset(), gomail.WithHELO("localhost")}
	if isASCII(to) {
		// Asked for without need, it makes the mail undeliverable wherever the
		// receiver's server lacks it.
		options = append(options, gomail.WithoutSMTPUTF8())
		client.SkipSMTPUTF8(true)
	}
	sender, err := gomail.NewClient(s.o.Host, options...)
	if err != nil {
		return &Fault{Code: codeUnwritten}
	}
	err = sender.SendWithSMTPClient(client, msg)
	if err == nil || msg.IsDelivered() {
		return nil
	}
	var at *gomail.SendError
	if !errors.As(err, &at) {
		return &Fault{Code: CodeBroken}
	}
	switch at.Reason {
	case gomail.ErrSMTPRcptTo, gomail.ErrSMTPData, gomail.ErrSMTPDataClose:
		return replied(codeRefused, at.ErrorCode())
	case gomail.ErrGetSender, gomail.ErrGetRcpts, gomail.ErrNoUnencoded:
		return &Fault{Code: codeUnwritten}
	}
	return replied(codeServer, at.ErrorCode())
}

// fault is what went wrong before any mail was mentioned.
func fault(code string, err error) *Fault {
	var reply *textproto.Error
	if errors.As(err, &reply) {
		return replied(code, reply.Code)
	}
	if code == CodeTLS {
		return &Fault{Code: CodeTLS}
	}
	return &Fault{Code: CodeBroken}
}

// replied decides whose fault it is. Only what a server says for good about this
// receiver or this mail is final; what it says about us, such as that it does not
// know our password or our address, the operator can mend before the day is over.
func replied(code string, reply int) *Fault {
	switch {
	case reply == 0:
		return &Fault{Code: CodeBroken}
	case reply < 500:
		return &Fault{Code: CodeDeferred, Reply: reply}
	case reply == 530: // authentication required, wherever it is said
		return &Fault{Code: CodeLogin, Reply: reply}
	}
	return &Fault{Code: code, Reply: reply, Final: code == codeRefused}
}

func isASCII(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r > 126 }) < 0 }
