package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"sync"
)

// Postgres forwards to a PostgreSQL server, message by message, without TLS.
type Postgres struct {
	*tcp
	mu    sync.Mutex
	rules []postgresRule
}

type postgresRule struct {
	*Fault
	match func(Done) bool
}

// Done is what the server says that it has done.
type Done struct {
	Tag        string   // of the command, such as COMMIT or UPDATE 1
	Statements []string // of the transaction so far, this one the last
}

// Committed reports whether it is the commit of a transaction in which some
// statement has the given text.
func (d Done) Committed(text string) bool { return d.Tag == "COMMIT" && d.ran(text) }

// Ran reports whether it is a statement with the given text that changed rows in
// a transaction of its own.
func (d Done) Ran(text string) bool {
	return len(d.Statements) == 1 && d.ran(text) && !strings.HasSuffix(d.Tag, " 0")
}

func (d Done) ran(text string) bool {
	return slices.ContainsFunc(d.Statements, func(s string) bool { return strings.Contains(s, text) })
}

// NewPostgres starts a proxy before the server at target.
func NewPostgres(target string) (*Postgres, error) {
	p := &Postgres{}
	var err error
	p.tcp, err = listen(target, p.speak)
	return p, err
}

// CutReply withholds the next n answers (negative: all) that match, each time
// together with its connection. The server has done it.
func (p *Postgres) CutReply(n int, match func(Done) bool) *Fault {
	f := &Fault{times: n}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, postgresRule{f, match})
	return f
}

func (p *Postgres) cuts(d Done) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, rule := range p.rules {
		if rule.match(d) && rule.strike() {
			return true
		}
	}
	return false
}

// session is one connection's statements.
type session struct {
	mu       sync.Mutex
	prepared map[string]string
	ran      []string // since the last moment without a transaction
}

func (p *Postgres) speak(client, server net.Conn) {
	s := &session{prepared: map[string]string{}}
	both(client, server, func() error {
		in := bufio.NewReader(client)
		// The first message has no type: it is the start-up, or asks to cancel.
		head, err := exactly(in, 4)
		if err != nil {
			return err
		}
		body, err := exactly(in, int(binary.BigEndian.Uint32(head))-4)
		if err != nil {
			return err
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return err
		}
		return messages(in, func(kind byte, body, raw []byte) error {
			s.asks(kind, body)
			_, err := server.Write(raw)
			return err
		})
	}, func() error {
		return messages(bufio.NewReader(server), func(kind byte, body, raw []byte) error {
			if kind == 'C' && p.cuts(s.done(text(body))) {
				return errCut
			}
			if kind == 'Z' && body[0] == 'I' {
				s.idle()
			}
			_, err := client.Write(raw)
			return err
		})
	})
}

// messages reads typed messages until it fails or handle does.
func messages(in *bufio.Reader, handle func(kind byte, body, raw []byte) error) error {
	for {
		head, err := exactly(in, 5)
		if err != nil {
			return err
		}
		body, err := exactly(in, int(binary.BigEndian.Uint32(head[1:]))-4)
		if err != nil {
			return err
		}
		if err := handle(head[0], body, append(head, body...)); err != nil {
			return err
		}
	}
}

func (s *session) asks(kind byte, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch kind {
	case 'Q':
		s.ran = append(s.ran, text(body))
	case 'P':
		name := text(body)
		s.prepared[name] = text(body[len(name)+1:])
	case 'B':
		portal := text(body)
		s.ran = append(s.ran, s.prepared[text(body[len(portal)+1:])])
	}
}

func (s *session) done(tag string) Done {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Done{Tag: tag, Statements: slices.Clone(s.ran)}
}

func (s *session) idle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ran = nil
}

// text is what stands before the first zero byte.
func text(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}
