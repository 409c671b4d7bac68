package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Redis forwards to a Redis server, command by command.
type Redis struct {
	*tcp
	mu    sync.Mutex
	rules []redisRule
}

type redisRule struct {
	*Fault
	match func(Command) bool
}

// A Command is what a client asked and how the server answered.
type Command struct {
	Args  []string
	Reply string // as it goes over the wire
}

// NewRedis starts a proxy before the server at target.
func NewRedis(target string) (*Redis, error) {
	r := &Redis{}
	var err error
	r.tcp, err = listen(target, r.speak)
	return r, err
}

// CutReply withholds the next n answers (negative: all) to commands that match,
// each time together with its connection. The server has done what was asked.
func (r *Redis) CutReply(n int, match func(Command) bool) *Fault {
	f := &Fault{times: n}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules = append(r.rules, redisRule{f, match})
	return f
}

// Enqueued matches asynq having taken a ring of any lane.
func Enqueued(c Command) bool {
	keys := c.keys()
	return len(keys) == 2 && strings.Contains(keys[0], ":t:") && strings.HasSuffix(keys[1], ":pending") && c.did()
}

// Dequeued matches asynq having handed out a ring, not finding none.
func Dequeued(c Command) bool {
	keys := c.keys()
	return len(keys) == 4 && strings.HasSuffix(keys[0], ":pending") && strings.HasSuffix(keys[1], ":paused") && c.did()
}

// Acknowledged matches asynq having taken note that a ring was answered.
func Acknowledged(c Command) bool {
	keys := c.keys()
	return len(keys) == 5 && strings.HasSuffix(keys[0], ":active") && strings.Contains(keys[3], ":processed:") && c.did()
}

// keys of a script's call; nil for other commands.
func (c Command) keys() []string {
	if len(c.Args) < 3 || !strings.EqualFold(c.Args[0], "eval") && !strings.EqualFold(c.Args[0], "evalsha") {
		return nil
	}
	n, err := strconv.Atoi(c.Args[2])
	if err != nil || n < 0 || len(c.Args) < 3+n {
		return nil
	}
	return c.Args[3 : 3+n]
}

// did is false for an error, such as a script that the server does not know yet,
// and for nothing.
func (c Command) did() bool {
	return !strings.HasPrefix(c.Reply, "-") && c.Reply != "$-1\r\n" && c.Reply != "_\r\n"
}

func (r *Redis) cuts(c Command) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rule := range r.rules {
		if rule.match(c) && rule.strike() {
			return true
		}
	}
	return false
}

func (r *Redis) speak(client, server net.Conn) {
	var mu sync.Mutex
	var asked [][]string // commands whose answer is still to come
	both(client, server, func() error {
		in := bufio.NewReader(client)
		for {
			raw, args, err := readCommand(in)
			if err != nil {
				return err
			}
			mu.Lock()
			asked = append(asked, args)
			mu.Unlock()
			if _, err := server.Write(raw); err != nil {
				return err
			}
		}
	}, func() error {
		in := bufio.NewReader(server)
		for {
			var raw bytes.Buffer
			if err := readValue(in, &raw); err != nil {
				return err
			}
			mu.Lock()
			c := Command{Reply: raw.String()}
			if len(asked) > 0 && raw.Bytes()[0] != '>' { // nobody asked for a push
				c.Args, asked = asked[0], asked[1:]
			}
			mu.Unlock()
			if r.cuts(c) {
				return errCut
			}
			if _, err := client.Write(raw.Bytes()); err != nil {
				return err
			}
		}
	})
}

var errRESP = errors.New("proxy: not RESP")

// readCommand reads an array of bulk strings, which is all that clients send.
func readCommand(in *bufio.Reader) (raw []byte, args []string, err error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil, nil, err
	}
	if line[0] != '*' {
		return line, strings.Fields(string(line)), nil // typed by hand
	}
	n, err := length(line)
	if err != nil {
		return nil, nil, err
	}
	raw = line
	for range n {
		head, err := in.ReadBytes('\n')
		if err != nil {
			return nil, nil, err
		}
		size, err := length(head)
		if err != nil {
			return nil, nil, err
		}
		body, err := exactly(in, size+2)
		if err != nil {
			return nil, nil, err
		}
		raw = append(append(raw, head...), body...)
		args = append(args, string(body[:size]))
	}
	return raw, args, nil
}

// readValue reads one value of RESP 2 or 3, whole, into raw.
func readValue(in *bufio.Reader, raw *bytes.Buffer) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	raw.Write(line)
	switch line[0] {
	case '+', '-', ':', '_', ',', '#', '(':
		return nil
	case '$', '=', '!':
		n, err := length(line)
		if err != nil || n < 0 {
			return err
		}
		body, err := exactly(in, n+2)
		raw.Write(body)
		return err
	case '*', '~', '>', '%', '|':
		n, err := length(line)
		if err != nil {
			return err
		}
		if line[0] == '%' || line[0] == '|' {
			n *= 2
		}
		if line[0] == '|' {
			n++ // attributes stand before the value that they describe
		}
		for range n {
			if err := readValue(in, raw); err != nil {
				return err
			}
		}
		return nil
	}
	return errRESP
}

// length is the number in a line such as $5; -1 means nothing.
func length(line []byte) (int, error) {
	n, err := strconv.Atoi(strings.TrimRight(string(line[1:]), "\r\n"))
	if err != nil {
		return 0, errRESP
	}
	return n, nil
}
