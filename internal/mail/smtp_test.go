package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

func envelope() Envelope {
	return Envelope{ID: "mail_1", From: "no-reply@zimage.example", To: ada, At: start, Subject: "Subject", Text: "text", HTML: "<p>text</p>"}
}

// Which connections a mail goes over, and which are refused before the server
// learns anything: neither an address nor the password.
func TestHops(t *testing.T) {
	t.Parallel()
	const accepts = ""
	for _, c := range []struct {
		name   string
		server serverOptions
		change func(*SMTPOptions)
		code   string
	}{
		{"STARTTLS", serverOptions{secure: true}, nil, accepts},
		{"TLS at once", serverOptions{implicit: true}, func(o *SMTPOptions) { o.Implicit = true }, accepts},
		{"TLS at once, with a password", serverOptions{implicit: true, login: true}, func(o *SMTPOptions) { o.Implicit = true; login(o) }, accepts},
		{"no STARTTLS", serverOptions{}, nil, CodeTLS},
		{"no STARTTLS, with a password", serverOptions{login: true}, login, CodeTLS},
		{"TLS at once, where there is none", serverOptions{}, func(o *SMTPOptions) { o.Implicit = true }, CodeTLS},
		{"TLS 1.2", serverOptions{secure: true, newest: tls.VersionTLS12}, nil, CodeTLS},
		{"TLS 1.2 at once", serverOptions{implicit: true, newest: tls.VersionTLS12}, func(o *SMTPOptions) { o.Implicit = true }, CodeTLS},
		{"another name", serverOptions{secure: true, name: "other.example", login: true}, login, CodeTLS},
		{"another name at once", serverOptions{implicit: true, name: "other.example"}, func(o *SMTPOptions) { o.Implicit = true }, CodeTLS},
		{"an unknown authority", serverOptions{secure: true}, func(o *SMTPOptions) { o.Roots = nil }, CodeTLS},
		{"wrong password", serverOptions{secure: true, login: true}, func(o *SMTPOptions) { o.User, o.Password = user, "wrong" }, CodeLogin},
		{"no way to give the password", serverOptions{secure: true}, login, CodeLogin},
		{"no way that we know", serverOptions{secure: true, login: true, mechs: []string{"GSSAPI"}}, login, CodeLogin},

		{"excepted: no STARTTLS", serverOptions{}, excepted, accepts},
		{"excepted: no STARTTLS, with a password", serverOptions{login: true}, func(o *SMTPOptions) { excepted(o); login(o) }, CodeTLS},
		{"excepted: TLS 1.2", serverOptions{secure: true, newest: tls.VersionTLS12}, excepted, accepts},
		{"excepted: TLS 1.2, with a password", serverOptions{secure: true, newest: tls.VersionTLS12, login: true}, func(o *SMTPOptions) { excepted(o); login(o) }, accepts},
		{"excepted: another name", serverOptions{secure: true, name: "other.example"}, excepted, accepts},
		{"excepted: another name, with a password", serverOptions{secure: true, name: "other.example", login: true}, func(o *SMTPOptions) { excepted(o); login(o) }, CodeTLS},
		{"excepted: TLS 1.2 at once", serverOptions{implicit: true, newest: tls.VersionTLS12}, func(o *SMTPOptions) { excepted(o); o.Implicit = true }, accepts},
		{"excepted: another name at once", serverOptions{implicit: true, name: "other.example"}, func(o *SMTPOptions) { excepted(o); o.Implicit = true }, CodeTLS},

		{"local: in plain", serverOptions{}, local, accepts},
		{"local: in plain, with a password", serverOptions{login: true}, func(o *SMTPOptions) { local(o); login(o) }, accepts},
		{"local: any certificate", serverOptions{secure: true, name: "snakeoil"}, local, accepts},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, c.server)
			o := s.options()
			if c.change != nil {
				c.change(&o)
			}
			err := NewSMTP(o).Send(t.Context(), envelope())
			s.mu.Lock()
			defer s.mu.Unlock()
			if c.code == accepts {
				if err != nil || len(s.got) != 1 {
					t.Errorf("%v, %d mails arrived", err, len(s.got))
				}
				return
			}
			var f *Fault
			if !errors.As(err, &f) || f.Code != c.code || f.Final {
				t.Errorf("got %v, want %s", err, c.code)
			}
			if s.froms != 0 || len(s.got) != 0 {
				t.Error("the mail was mentioned")
			}
			if c.code == CodeTLS && len(s.logins) != 0 {
				t.Error("the password went over it")
			}
			if err != nil && (strings.Contains(err.Error(), theirs) || strings.Contains(err.Error(), "example")) {
				t.Errorf("the error quotes: %v", err)
			}
		})
	}
}

func login(o *SMTPOptions)    { o.User, o.Password = user, password }
func excepted(o *SMTPOptions) { o.Excepted = true }
func local(o *SMTPOptions)    { o.Local = true }

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	var f *Fault
	err = NewSMTP(SMTPOptions{Host: "127.0.0.1", Port: port, Local: true}).Send(t.Context(), envelope())
	if !errors.As(err, &f) || f.Code != CodeBroken || f.Final {
		t.Errorf("got %v", err)
	}
}

// A server that says nothing at all, at any point, is left when the context
// ends, and when the time for the conversation is over.
func TestSilence(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	o := SMTPOptions{Host: "localhost", Port: l.Addr().(*net.TCPAddr).Port}
	for _, implicit := range []bool{false, true} {
		o.Implicit = implicit
		o.Timeout = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		began := time.Now()
		err := NewSMTP(o).Send(ctx, envelope())
		cancel()
		if took := time.Since(began); err == nil || took > 20*time.Second {
			t.Errorf("context: %v after %v", err, took)
		}
		o.Timeout = 100 * time.Millisecond
		began = time.Now()
		err = NewSMTP(o).Send(t.Context(), envelope())
		if took := time.Since(began); err == nil || took > 20*time.Second {
			t.Errorf("timeout: %v after %v", err, took)
		}
	}
}

// A server that hangs after it has accepted the mail does not hold up the word
// of its acceptance.
func TestTheEndOfTheConversationIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		say := func(s string) { _, _ = c.Write([]byte(s + "\r\n")) }
		say("220 here")
		b := make([]byte, 64<<10)
		for _, answer := range []string{"250 mx", "250 ok", "250 ok", "354 go"} {
			if _, err := c.Read(b); err != nil {
				return
			}
			say(answer)
		}
		var all strings.Builder
		for !strings.HasSuffix(all.String(), "\r\n.\r\n") {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			all.Write(b[:n])
		}
		say("250 yours no more")
		for { // silent until the client goes
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	began := time.Now()
	err = NewSMTP(SMTPOptions{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Local: true, Timeout: time.Minute}).Send(t.Context(), envelope())
	if took := time.Since(began); err != nil || took > 30*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	<-done
}

func TestAddressesOfTheWholeWorld(t *testing.T) {
	t.Parallel()
	s := newServer(t, serverOptions{secure: true})
	for _, to := range []string{"ada+tag@example.org", "o'hara@example.org", "ada@xn--bcher-kva.example"} {
		e := envelope()
		e.To = to
		if err := NewSMTP(s.options()).Send(t.Context(), e); err != nil {
			t.Errorf("%s: %v", to, err)
		}
		if got := s.arrived(); got[len(got)-1].to != to {
			t.Errorf("%s went to %s", to, got[len(got)-1].to)
		}
	}
}
