package app

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/emersion/go-sasl"
	smtpserver "github.com/emersion/go-smtp"
)

// postbox is a mail server that knows one user and counts what it is told.
type postbox struct {
	address       string
	logins, froms atomic.Int32
}

func newPostbox(t *testing.T) *postbox {
	t.Helper()
	b := &postbox{}
	server := smtpserver.NewServer(b)
	server.Domain, server.AllowInsecureAuth = "mx.example", true
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.address = listener.Addr().String()
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { _ = server.Close(); work.Wait() })
	return b
}

func (b *postbox) NewSession(*smtpserver.Conn) (smtpserver.Session, error) { return b, nil }
func (b *postbox) AuthMechanisms() []string                                { return []string{sasl.Plain} }

func (b *postbox) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "mailer" || password != "right" {
			return smtpserver.ErrAuthFailed
		}
		b.logins.Add(1)
		return nil
	}), nil
}

func (b *postbox) Mail(string, *smtpserver.MailOptions) error { b.froms.Add(1); return nil }
func (b *postbox) Rcpt(string, *smtpserver.RcptOptions) error { return nil }
func (b *postbox) Data(io.Reader) error                       { return nil }
func (b *postbox) Reset()                                     {}
func (b *postbox) Logout() error                              { return nil }
