// Package config reads the settings from the environment, once, at start: one
// struct, every problem said at once with the name of its variable, no secret
// ever repeated.
//
// Only cmd, app, embedded and the deploy test read it; everything below them
// gets plain values. It opens no connection and creates no file.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Prefix of every variable.
const Prefix = "ZIMAGE_"

const (
	fileSuffix = "_FILE"
	testPrefix = Prefix + "TEST_" // the test launcher's, which never reach a setting
	clientKey  = Prefix + "KEY"   // the API key of `zimage generate`, in a user's shell
	off        = "off"

	// maxSecretFile bounds a secret's file: a wrong path must not fill the memory.
	maxSecretFile = 64 << 10
)

// Config is every setting. Its tags are the documentation: the README's table
// and the help text are made from them.
type Config struct {
	Listen         string   `env:"LISTEN" envDefault:"127.0.0.1:8080" doc:"Address of the API, as host:port or unix:PATH. Off loopback it needs a TLS certificate."`
	MetricsListen  string   `env:"METRICS_LISTEN" envDefault:"127.0.0.1:9464" doc:"Address of metrics and probes, one for each process; off: none. It never speaks TLS."`
	PublicURL      string   `env:"PUBLIC_URL" without:"from LISTEN" doc:"The address that users type, without a path; the same for every process. Mails, links and webhooks name it, and passkeys are bound to its host: https with a name, or localhost."`
	TLSCert        string   `env:"TLS_CERT" doc:"PEM file with the certificate chain of the API. Read at start."`
	TLSKey         string   `env:"TLS_KEY" doc:"PEM file with its private key."`
	TLSExceptions  []string `env:"TLS_EXCEPTIONS" doc:"Hops accepted without verified TLS 1.3: listen, metrics, database, keys, redis, s3, smtp. Comma list."`
	TrustedProxies []string `env:"TRUSTED_PROXIES" doc:"Addresses or networks whose X-Forwarded-For is believed. Comma list; empty: nobody's."`

	Data            string `env:"DATA" envDefault:"./zimage-data" doc:"Folder of the embedded database and, without servers for them, of objects and mails."`
	DatabaseURL     string `env:"DATABASE_URL" secret:"url" without:"sqlite:DATA/zimage.db" doc:"sqlite:PATH, or postgres://… with sslmode=verify-full off loopback."`
	KeysDatabaseURL string `env:"KEYS_DATABASE_URL" secret:"url" without:"sqlite:DATA-keys/keys.db" doc:"The key store: never the same database, and backed up apart."`
	RootKeys        string `env:"ROOT_KEYS" without:"DATA-roots/roots.yaml" doc:"File with the root keys, outside DATA. Losing it loses every picture and prompt."`
	RedisURL        string `env:"REDIS_URL" secret:"url" without:"in-process" doc:"redis://, rediss:// or unix:// address. It only rings; nothing is lost with it."`
	RedisCA         string `env:"REDIS_CA" without:"the system's" doc:"PEM file of the authorities that may vouch for Redis, instead of the system's."`

	S3Endpoint  string `env:"S3_ENDPOINT" without:"a folder in DATA" doc:"Object store as host or host:port, without a scheme."`
	S3Bucket    string `env:"S3_BUCKET" doc:"Its bucket."`
	S3Region    string `env:"S3_REGION" envDefault:"us-east-1" doc:"Its region."`
	S3AccessKey string `env:"S3_ACCESS_KEY" secret:"text" doc:"Access key."`
	S3SecretKey string `env:"S3_SECRET_KEY" secret:"text" doc:"Secret key."`
	S3TLS       bool   `env:"S3_TLS" envDefault:"true" doc:"Speak TLS to the object store."`
	S3CA        string `env:"S3_CA" without:"the system's" doc:"PEM file of the authorities that may vouch for the object store, instead of the system's."`

	Engines     string   `env:"ENGINES" without:"the built-in illustrator" doc:"YAML file of engines, models and lanes; the same for every process."`
	Lanes       []string `env:"LANES" without:"all" doc:"The lanes this worker takes. Comma list. Mail, exports and webhooks go with housekeeping."`
	PromptRules string   `env:"PROMPT_RULES" without:"none" doc:"File of rules that refuse prompts before they are accepted; the same for every process."`
	Policy      string   `env:"POLICY" without:"the shipped one" doc:"YAML file of the privacy policy: windows, contacts, processors; the same for every process."`
	SMTPURL     string   `env:"SMTP_URL" secret:"url" without:"a folder in DATA" doc:"Mail server: smtp://user:password@host:587 (STARTTLS required off loopback) or smtps://…@host:465. Without one, mails are files in DATA/mail for a day."`
	SMTPCA      string   `env:"SMTP_CA" without:"the system's" doc:"PEM file of the authorities that may vouch for the mail server, instead of the system's."`
	MailFrom    string   `env:"MAIL_FROM" without:"zimage@localhost" doc:"Sender of mails: an address, perhaps with a name before it. Required with SMTP_URL."`
	GeoIP       string   `env:"GEOIP" without:"none" doc:"Local database file for approximate places, in the MaxMind DB format, such as GeoLite2 City. Without one no place is known."`

	OutboundPorts    []string `env:"OUTBOUND_PORTS" without:"none" doc:"Ports beside 443 and 80 at which webhooks may be delivered, by https at each. Comma list."`
	OutboundLoopback bool     `env:"OUTBOUND_LOOPBACK" envDefault:"false" doc:"For development only, and the one exception from TLS 1.3 for webhooks: they may lead to this machine, at any port and without TLS. Refused where PUBLIC_URL is not loopback."`
	NAT64Prefix      []string `env:"NAT64_PREFIX" without:"none" doc:"Prefixes of your network beside the well-known ones that lead to IPv4 addresses, which webhooks must not reach. Comma list."`

	QueuedPerOwner    int `env:"QUEUED_PER_OWNER" envDefault:"100" min:"1" max:"1000000" doc:"Generations one owner may have waiting."`
	DailyPerOwner     int `env:"DAILY_PER_OWNER" envDefault:"1000" min:"1" max:"1000000000" doc:"Generations one owner may submit in a day."`
	RequestsPerMinute int `env:"REQUESTS_PER_MINUTE" envDefault:"600" min:"1" max:"10000000" doc:"Requests each key or session may make in a minute."`

	LogLevel        string        `env:"LOG_LEVEL" envDefault:"info" oneof:"debug,info,warn,error" doc:"debug, info, warn or error."`
	LogFormat       string        `env:"LOG_FORMAT" envDefault:"text" oneof:"text,json" doc:"text or json."`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT" envDefault:"1m" doc:"How long a stopping process finishes its work before it gives it back, such as 90s."`

	sources    map[string]string // variable → where its value came from
	dataShared bool              // DATA was given in full, so that several processes can mean the same folder
}

// A Problem is one setting that cannot be used, and how to mend it. Message
// goes on from the variable's name and never repeats a value that may be secret.
type Problem struct {
	Variable string
	Message  string
}

// Problems is every one that was found, sorted as the settings are.
type Problems []Problem

// Error is one line for each.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.Variable + " " + one.Message
	}
	return strings.Join(lines, "\n")
}

func (p *Problems) add(variable, message string) {
	*p = append(*p, Problem{Prefix + variable, message})
}

// err is nil when there are none, else the first of each variable: what follows
// from it would only bury it.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	order := map[string]int{}
	for i, v := range Variables() {
		order[v.Name] = i + 1 // 0, the unknown names, come first
	}
	seen := map[string]bool{}
	var kept Problems
	for _, one := range p {
		if !seen[one.Variable] {
			seen[one.Variable] = true
			kept = append(kept, one)
		}
	}
	slices.SortStableFunc(kept, func(a, b Problem) int { return cmp.Compare(order[a.Variable], order[b.Variable]) })
	return kept
}

// Load reads the settings from environ, or from the process's environment when
// it is nil, and checks what holds for every role. The error is Problems, all
// at once. An empty variable counts as not set.
func Load(environ map[string]string) (Config, error) {
	c, problems := load(environ)
	return c, problems.err()
}

// ForRole is Load and Validate together, with the problems of both.
func ForRole(environ map[string]string, role Role) (Config, error) {
	c, problems := load(environ)
	return c, append(problems, c.forRole(role)...).err()
}

func load(environ map[string]string) (Config, Problems) {
	if environ == nil {
		environ = env.ToMap(os.Environ())
	}
	c := Config{sources: map[string]string{}}
	values, problems := c.gather(environ)
	if err := env.ParseWithOptions(&c, env.Options{Prefix: Prefix, Environment: values}); err != nil {
		problems = append(problems, unparsed(err)...)
	}
	c.fillDefaults()
	problems = append(problems, c.checkValues()...)
	problems = append(problems, c.checkFiles()...)
	problems = append(problems, c.checkStores()...)
	return c, problems
}

// gather keeps our variables, reads the secrets' files, and refuses names that
// nobody knows: a mistyped setting must not be a silent default.
func (c *Config) gather(environ map[string]string) (map[string]string, Problems) {
	var problems Problems
	known := map[string]bool{}
	for _, v := range Variables() {
		known[v.Name] = true
		if v.Secret {
			known[v.Name+fileSuffix] = true
		}
	}
	for name, value := range environ {
		if strings.HasPrefix(name, Prefix) && value != "" && !known[name] && !foreign(name, value) {
			problems = append(problems, Problem{name, unknown(name)})
		}
	}
	slices.SortFunc(problems, func(a, b Problem) int { return cmp.Compare(a.Variable, b.Variable) })

	values := map[string]string{}
	for _, v := range Variables() {
		value, source := environ[v.Name], "environment"
		if path := environ[v.Name+fileSuffix]; v.Secret && path != "" {
			if value != "" {
				problems = append(problems, Problem{v.Name, "is set, and " + v.Name + fileSuffix + " too: keep one of them"})
				continue
			}
			secret, err := readSecret(path)
			if err != nil {
				problems = append(problems, Problem{v.Name, "cannot be read from the file that " + v.Name + fileSuffix + " names: " + err.Error()})
				continue
			}
			value, source = secret, "file "+path
		}
		if value != "" {
			values[v.Name] = value
			c.sources[v.Name] = source
		}
	}
	return values, problems
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", errors.New(reason(err))
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch {
	case err != nil:
		return "", errors.New(reason(err))
	case len(text) > maxSecretFile:
		return "", errors.New("more than 64 KiB, which is no secret")
	}
	text = bytes.TrimRight(text, "\r\n")
	if len(text) == 0 {
		return "", errors.New("it is empty")
	}
	return string(text), nil
}

// reason is the system's word without the path, which the variable names.
func reason(err error) string {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// unparsed turns the parser's errors, which quote values, into ours.
func unparsed(err error) Problems {
	var problems Problems
	var all env.AggregateError
	if !errors.As(err, &all) {
		return Problems{{Prefix + "*", "does not parse"}}
	}
	for _, one := range all.Errors {
		var parse env.ParseError
		if !errors.As(one, &parse) {
			problems = append(problems, Problem{Prefix + "*", "does not parse"})
			continue
		}
		field, _ := reflect.TypeFor[Config]().FieldByName(parse.Name)
		want := "does not parse"
		switch field.Type.Kind() {
		case reflect.Bool:
			want = "must be true or false"
		case reflect.Int:
			want = "must be a whole number, such as " + field.Tag.Get("envDefault")
		case reflect.Int64: // time.Duration, the only one
			want = "must be a duration with its unit, such as 90s or 2m"
		}
		problems.add(field.Tag.Get("env"), want)
	}
	return problems
}

// fillDefaults sets what follows from other settings.
func (c *Config) fillDefaults() {
	c.dataShared = c.isSet("DATA") && filepath.IsAbs(c.Data)
	if abs, err := filepath.Abs(c.Data); err == nil {
		c.Data = abs
	}
	if c.DatabaseURL == "" {
		c.DatabaseURL = "sqlite:" + filepath.Join(c.Data, "zimage.db")
	}
	// Siblings of the data folder: whoever copies that folder as a backup must
	// not copy, with what is locked, the keys that open it.
	if c.KeysDatabaseURL == "" {
		c.KeysDatabaseURL = "sqlite:" + filepath.Join(c.Data+"-keys", "keys.db")
	}
	if c.RootKeys == "" {
		c.RootKeys = filepath.Join(c.Data+"-roots", "roots.yaml")
	}
	if c.PublicURL == "" {
		scheme := "http://"
		if c.TLSCert != "" {
			scheme = "https://"
		}
		c.PublicURL = scheme + c.Listen
		if isSocket(c.Listen) {
			c.PublicURL = scheme + "localhost"
		}
	}
	c.PublicURL = strings.TrimSuffix(c.PublicURL, "/")
	if c.MailFrom == "" {
		c.MailFrom = "zimage@localhost"
	}
	for _, list := range []*[]string{&c.TLSExceptions, &c.TrustedProxies, &c.Lanes, &c.OutboundPorts, &c.NAT64Prefix} {
		*list = trimmed(*list)
	}
}

func trimmed(list []string) []string {
	var kept []string
	for _, one := range list {
		if one = strings.TrimSpace(one); one != "" && !slices.Contains(kept, one) {
			kept = append(kept, one)
		}
	}
	return kept
}

// isSet reports whether the operator gave the setting, rather than a default.
func (c Config) isSet(variable string) bool { return c.sources[Prefix+variable] != "" }

// UsesS3 reports whether objects go to S3 rather than to a folder.
func (c Config) UsesS3() bool { return c.S3Endpoint != "" }

// ObjectsFolder is where objects lie without S3.
func (c Config) ObjectsFolder() string { return filepath.Join(c.Data, "objects") }

// MailFolder is where mails lie without a mail server.
func (c Config) MailFolder() string { return filepath.Join(c.Data, "mail") }

// LockFiles are held by the one process that runs on the data folder, and on the
// SQLite database where that lies elsewhere: it requeues what it finds running.
func (c Config) LockFiles() []string {
	files := []string{filepath.Join(c.Data, "lock")}
	if path, ok := strings.CutPrefix(c.DatabaseURL, "sqlite:"); ok && filepath.Dir(path) != c.Data {
		files = append(files, path+".lock")
	}
	return files
}
