package account

import (
	"context"
	_ "embed" // the common passwords
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/alexedwards/argon2id"
	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"

	"zimage/internal/problem"
)

const (
	passwordLeast = 8    // characters (OWASP ASVS 5.0, 6.2.1)
	passwordMost  = 1024 // bytes; a bound on work, far above the 64 characters that must be possible (6.2.9)
	contextLeast  = 4    // characters of a word that a password must not contain; shorter ones are in everything
)

// commonPasswords are those of at least 8 characters that leaks are full of, one
// a line, in small letters.
//
//go:embed common/passwords.txt
var commonPasswords string

// checkPassword refuses what guessers try first: common passwords (OWASP ASVS
// 5.0, 6.2.4 and 6.2.12) and what is made of the person's own words or the
// service's (6.2.11). It asks for nothing else but length: rules of composition
// make passwords worse (6.2.5). email is the canonical address.
func checkPassword(password, email, username string) error {
	refuse := func(message string) error {
		return problem.Invalid(problem.Field{Location: "body.password", Message: message})
	}
	if !utf8.ValidString(password) {
		return refuse("must be text in UTF-8")
	}
	if len(password) > passwordMost {
		return refuse(fmt.Sprintf("must have at most %d bytes", passwordMost))
	}
	password = normal(password)
	if utf8.RuneCountInString(password) < passwordLeast {
		return refuse(fmt.Sprintf("must have at least %d characters", passwordLeast))
	}
	folded := strings.ToLower(password)
	if strings.Contains("\n"+commonPasswords, "\n"+folded+"\n") {
		return refuse("is one of the most common passwords; choose another")
	}
	backwards := reversed(folded)
	for _, word := range contextWords(email, username) {
		if strings.Contains(folded, word) || strings.Contains(backwards, word) {
			return refuse("must not contain your mail address, your username or the name of the service")
		}
	}
	return nil
}

// contextWords are in small letters: the address's local part and the words of
// its domain, the username, and what this service is called.
func contextWords(email, username string) []string {
	words := []string{"zimage", "z image", "z-image", "z_image", "image generator", "imagegenerator"}
	local, domain, _ := strings.Cut(email, "@")
	if readable, err := idna.ToUnicode(domain); err == nil {
		domain = readable
	}
	words = append(words, local, username)
	labels := strings.Split(domain, ".")
	words = append(words, labels[:len(labels)-1]...) // nobody's password suffers from com or museum
	for i, word := range words {
		words[i] = strings.ToLower(normal(word))
	}
	return slices.DeleteFunc(words, func(w string) bool { return utf8.RuneCountInString(w) < contextLeast })
}

func reversed(s string) string {
	runes := []rune(s)
	slices.Reverse(runes)
	return string(runes)
}

// normal is the one form of a text that keyboards and systems write in several
// (NIST SP 800-63B, 3.1.1.2). Nothing else of a password is changed.
func normal(s string) string { return norm.NFC.String(s) }

// hashing is Argon2id as OWASP's password storage cheat sheet asks for: 19 MiB,
// two passes, one lane.
func hashing() *argon2id.Params {
	return &argon2id.Params{Memory: 19 * 1024, Iterations: 2, Parallelism: 1, SaltLength: 16, KeyLength: 32}
}

const (
	// defaultQueue is how many may wait to have a password hashed: about a second's
	// work for one core.
	defaultQueue = 64
	// knownQueue is how many more may wait whom we know, so that strangers who fill
	// the queue do not keep them out, and looksMost how many tokens are looked up at a
	// time to find that out.
	knownQueue = 16
	looksMost  = 64
)

// A hasher hashes as many passwords at a time as there are processors, lets a
// bounded number wait, and refuses the rest at once: its memory is bounded
// however many sign in.
type hasher struct {
	params  *argon2id.Params
	places  chan struct{} // one for each hash that runs
	turns   chan struct{} // one for each that runs or waits
	known   chan struct{} // more turns, for whom we know
	counted func()        // told of each hash, for tests; may be nil

	mu    sync.Mutex
	looks map[string]bool // the tokens that are looked up now
}

func newHasher(queue int) *hasher {
	if queue == 0 {
		queue = defaultQueue
	}
	n := runtime.GOMAXPROCS(0)
	return &hasher{params: hashing(), places: make(chan struct{}, n), turns: make(chan struct{}, n+queue),
		known: make(chan struct{}, knownQueue), looks: map[string]bool{}}
}

var errQueueFull = errors.New("the queue of hashes is full")

// enter takes a place in the queue, to be held for as long as the work around a
// hash lasts: whoever finds it full costs nothing more, not even a query.
func (h *hasher) enter() (leave func(), err error) {
	select {
	case h.turns <- struct{}{}:
		return func() { <-h.turns }, nil
	default:
		return nil, problem.Wrap(errQueueFull, problem.Unavailable, "Too many people sign in at this moment. Try again in a second.").After(time.Second)
	}
}

// enterKnown is enter for somebody who is known before the hash: by a session, by
// a browser that the account was signed in with, or by a mailed code that is right.
func (h *hasher) enterKnown() (leave func(), err error) {
	if leave, err = h.enter(); err == nil {
		return leave, nil
	}
	select {
	case h.known <- struct{}{}:
		return func() { <-h.known }, nil
	default:
		return nil, err
	}
}

// look takes one of the looks, until done; not ok: there are too many, or one for
// this token. So whoever has one token of ours does not keep out who has another.
func (h *hasher) look(token string) (done func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.looks[token] || len(h.looks) >= looksMost {
		return nil, false
	}
	h.looks[token] = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.looks, token)
	}, true
}

// run does one hash when it is its turn. The caller has entered.
func (h *hasher) run(ctx context.Context, hash func() error) error {
	select {
	case h.places <- struct{}{}:
		defer func() { <-h.places }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if h.counted != nil {
		h.counted()
	}
	return hash()
}

func (h *hasher) hash(ctx context.Context, password string) (hashed string, err error) {
	err = h.run(ctx, func() (err error) {
		hashed, err = argon2id.CreateHash(normal(password), h.params)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	return hashed, nil
}

// verify compares a password with its hash; an empty hash, of an account that
// does not exist, costs the same and never fits. outdated says that the hash was
// made with weaker parameters than are in force.
func (h *hasher) verify(ctx context.Context, password, hashed string) (match, outdated bool, err error) {
	exists := hashed != ""
	if !exists {
		hashed = h.nobody()
	}
	err = h.run(ctx, func() error {
		var params *argon2id.Params
		var err error
		match, params, err = argon2id.CheckHash(normal(password), hashed)
		outdated = params != nil && (params.Memory < h.params.Memory || params.Iterations < h.params.Iterations ||
			params.SaltLength < h.params.SaltLength || params.KeyLength < h.params.KeyLength)
		return err
	})
	if err != nil {
		return false, false, fmt.Errorf("check a password: %w", err)
	}
	return match && exists, outdated, nil
}

// nobody is a hash that no password is known to give.
func (h *hasher) nobody() string {
	zeros := func(bytes uint32) string { return strings.Repeat("A", int(bytes*8+5)/6) } // in base 64
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s",
		h.params.Memory, h.params.Iterations, h.params.Parallelism, zeros(h.params.SaltLength), zeros(h.params.KeyLength))
}

// hash waits for its turn in the queue too, for callers that do nothing else
// that is dear.
func (s *Service) hash(ctx context.Context, password string) (string, error) {
	leave, err := s.hasher.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	return s.hasher.hash(ctx, password)
}
