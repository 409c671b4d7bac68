package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/redis/go-redis/v9"
)

// A Hop is one way that data takes between processes. Every hop that leaves the
// machine needs TLS 1.3 with a verified name, or the operator's named exception.
type Hop string

// The hops.
const (
	HopListen   Hop = "listen"
	HopMetrics  Hop = "metrics"
	HopDatabase Hop = "database"
	HopKeys     Hop = "keys"
	HopRedis    Hop = "redis"
	HopS3       Hop = "s3"
	HopSMTP     Hop = "smtp"
)

var hops = []Hop{HopListen, HopMetrics, HopDatabase, HopKeys, HopRedis, HopS3, HopSMTP}

func hopNames() string {
	names := make([]string, len(hops))
	for i, h := range hops {
		names[i] = string(h)
	}
	return strings.Join(names, ", ")
}

// Exceptions are the hops that the operator accepts without verified TLS. They
// are shown to users, so they are worth a line in the log as well.
func (c Config) Exceptions() []Hop {
	var named []Hop
	for _, h := range hops {
		if c.excepted(h) {
			named = append(named, h)
		}
	}
	return named
}

func (c Config) excepted(h Hop) bool { return slices.Contains(c.TLSExceptions, string(h)) }

func orException(h Hop) string {
	return ", unless " + Prefix + "TLS_EXCEPTIONS names " + string(h)
}

// isLocal reports whether a host is this machine: loopback, or the folder of a
// socket. A name other than localhost may point anywhere, also tomorrow.
func isLocal(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// PublicIsLocal reports whether the address that users type is this machine's.
func (c Config) PublicIsLocal() bool {
	u, err := url.Parse(c.PublicURL)
	return err == nil && isLocal(u.Hostname())
}

// checkListen refuses to serve plain HTTP to the network.
func (c Config) checkListen(problems *Problems) {
	host, _, err := net.SplitHostPort(c.Listen)
	if isSocket(c.Listen) {
		host, err = "localhost", nil
	}
	if err != nil {
		return // said by checkValues
	}
	if !isLocal(host) && c.TLSCert == "" && !c.excepted(HopListen) {
		problems.add("LISTEN", "is not loopback: set "+Prefix+"TLS_CERT and "+Prefix+"TLS_KEY, or listen on loopback behind a proxy on this machine"+orException(HopListen))
	}
	if address, err := netip.ParseAddr(host); (host == "" || isSocket(c.Listen) || err == nil && address.IsUnspecified()) && !c.isSet("PUBLIC_URL") {
		problems.add("PUBLIC_URL", "is missing: "+Prefix+"LISTEN is no address that a user can type")
	}
	if u, err := url.Parse(c.PublicURL); err == nil && c.isSet("PUBLIC_URL") && u.Scheme == "http" && !isLocal(u.Hostname()) && !c.excepted(HopListen) {
		problems.add("PUBLIC_URL", "must be https:// off loopback"+orException(HopListen))
	}
}

func (c Config) checkMetricsListen(problems *Problems) {
	if host, _, err := net.SplitHostPort(c.MetricsListen); err == nil && !isLocal(host) && !c.excepted(HopMetrics) {
		problems.add("METRICS_LISTEN", "is not loopback and never speaks TLS: listen on loopback"+orException(HopMetrics))
	}
}

// checkDatabase checks one database's address and returns what identifies the
// database, empty when the address is unusable.
func (c Config) checkDatabase(problems *Problems, variable, address string, hop Hop) string {
	if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
		if path == "" {
			problems.add(variable, "needs a path after sqlite:")
			return ""
		}
		return "sqlite:" + resolved(path)
	}
	if !isPostgres(address) {
		problems.add(variable, "must be sqlite:PATH or postgres://user@host:5432/name")
		return ""
	}
	// The driver's own reading counts, not ours: it also reads PGSSLMODE, PGHOST
	// and the like, and several hosts.
	parsed, err := pgconn.ParseConfig(address)
	if err != nil { // its text may quote the password
		problems.add(variable, "does not parse as postgres://user@host:5432/name?sslmode=verify-full, or a file that it names cannot be read")
		return ""
	}
	ways := []struct {
		host string
		tls  *tls.Config
	}{{parsed.Host, parsed.TLSConfig}}
	for _, f := range parsed.Fallbacks {
		ways = append(ways, struct {
			host string
			tls  *tls.Config
		}{f.Host, f.TLSConfig})
	}
	for _, way := range ways {
		// sslmode=require and verify-ca skip the check of the name; prefer and
		// allow fall back to plain text.
		verified := way.tls != nil && !way.tls.InsecureSkipVerify
		if !verified && !isLocal(way.host) && !c.excepted(hop) {
			problems.add(variable, "is not loopback: add sslmode=verify-full (and sslrootcert=FILE for a private authority)"+orException(hop))
			break
		}
	}
	host := strings.ToLower(parsed.Host)
	if isLocal(host) && !filepath.IsAbs(host) {
		host = "localhost"
	}
	return "postgres:" + net.JoinHostPort(host, strconv.Itoa(int(parsed.Port))) + "/" + parsed.Database
}

func isPostgres(address string) bool {
	return strings.HasPrefix(address, "postgres://") || strings.HasPrefix(address, "postgresql://")
}

func (c Config) checkRedis(problems *Problems) {
	if c.RedisCA != "" && !strings.HasPrefix(c.RedisURL, "rediss://") {
		problems.add("REDIS_CA", "has no effect: "+Prefix+"REDIS_URL is not rediss://")
	}
	if c.RedisURL == "" {
		return
	}
	o, err := RedisOptions(c.RedisURL)
	if err != nil {
		problems.add("REDIS_URL", "must be redis://, rediss:// or unix://, such as rediss://user:password@host:6379/0")
		return
	}
	if o.Network == "unix" {
		return
	}
	host, _, _ := net.SplitHostPort(o.Addr)
	verified := o.TLSConfig != nil && !o.TLSConfig.InsecureSkipVerify
	if !verified && !isLocal(host) && !c.excepted(HopRedis) {
		problems.add("REDIS_URL", "is not loopback: use rediss:// without skip_verify"+orException(HopRedis))
	}
}

// RedisOptions reads a Redis address; a rediss:// hop speaks TLS 1.3 or nothing.
// The error never quotes the address.
func RedisOptions(address string) (*redis.Options, error) {
	o, err := redis.ParseURL(address)
	if err != nil {
		return nil, errors.New("the Redis address does not parse")
	}
	if o.TLSConfig != nil {
		o.TLSConfig.MinVersion = tls.VersionTLS13
	}
	return o, nil
}

// An SMTPServer is what SMTP_URL says of the mail server.
type SMTPServer struct {
	Host           string
	Port           int
	User, Password string // empty: no authentication
	Implicit       bool   // TLS from the first byte on, not by STARTTLS
	Local          bool   // on this machine
	Excepted       bool   // accepted without verified TLS 1.3
}

// Verified reports whether the server must prove its name. Where plain text is
// accepted it need not: whoever could pretend to be the server could as well say
// that it speaks no TLS.
func (s SMTPServer) Verified() bool { return !s.Local && (!s.Excepted || s.User != "" || s.Implicit) }

// UsesSMTP reports whether mail goes to a server rather than to a folder.
func (c Config) UsesSMTP() bool { return c.SMTPURL != "" }

// SMTP is the mail server, when there is one.
func (c Config) SMTP() SMTPServer {
	s, _ := parseSMTP(c.SMTPURL) // checked by Load
	s.Local, s.Excepted = isLocal(s.Host), c.excepted(HopSMTP)
	return s
}

func (c Config) checkSMTP(problems *Problems) {
	if from, err := mail.ParseAddress(c.MailFrom); err != nil || strings.ContainsFunc(from.Name+from.Address, unicode.IsControl) ||
		strings.ContainsFunc(from.Address, unicode.IsSpace) {
		problems.add("MAIL_FROM", "must be an address such as no-reply@example.com, or a name before it: Z Image <no-reply@example.com>")
	}
	if c.SMTPCA != "" && (!c.UsesSMTP() || !c.SMTP().Verified()) {
		problems.add("SMTP_CA", "has no effect: there is no mail server whose certificate is verified")
	}
	if !c.UsesSMTP() {
		return
	}
	if !c.isSet("MAIL_FROM") {
		problems.add("MAIL_FROM", "is missing: mail that goes to "+Prefix+"SMTP_URL needs a sender")
	}
	if _, ok := parseSMTP(c.SMTPURL); !ok {
		problems.add("SMTP_URL", "must be smtp://user:password@host:587 or smtps://user:password@host:465, with nothing after it; characters such as @, / and : in the password are written as %40, %2F and %3A")
	}
	// Plain text off loopback is refused by the sender, which asks for STARTTLS
	// where the exception is not named: the address alone does not tell.
}

func parseSMTP(address string) (s SMTPServer, ok bool) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return SMTPServer{}, false
	}
	switch u.Scheme {
	case "smtp":
		s.Port = 587 // RFC 6409
	case "smtps":
		s.Port, s.Implicit = 465, true // RFC 8314
	default:
		return SMTPServer{}, false
	}
	if u.Port() != "" {
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || port == 0 {
			return SMTPServer{}, false
		}
		s.Port = int(port)
	}
	s.Host, s.User = u.Hostname(), u.User.Username()
	s.Password, _ = u.User.Password()
	if (s.User == "") != (s.Password == "") {
		return SMTPServer{}, false
	}
	return s, true
}

// Authorities reads the file of a private authority; without one it is nil, which
// means the system's.
func Authorities(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("it holds no certificate")
	}
	return pool, nil
}

// ServerTLS is what the API serves with; nil without a certificate. TLS 1.3 is
// the least.
func (c Config) ServerTLS() (*tls.Config, error) {
	if c.TLSCert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("%sTLS_CERT: %w", Prefix, err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}, nil
}
