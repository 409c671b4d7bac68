package config

import (
	"crypto/tls"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var laneName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// checkValues checks what needs nothing but the value itself.
func (c Config) checkValues() Problems {
	var problems Problems
	config := reflect.ValueOf(c)
	for i := range config.NumField() {
		field := config.Type().Field(i)
		variable := field.Tag.Get("env")
		if allowed := field.Tag.Get("oneof"); allowed != "" && !slices.Contains(strings.Split(allowed, ","), config.Field(i).String()) {
			problems.add(variable, "must be one of "+strings.ReplaceAll(allowed, ",", ", "))
		}
		if least := field.Tag.Get("min"); least != "" {
			low, _ := strconv.ParseInt(least, 10, 64)
			high, _ := strconv.ParseInt(field.Tag.Get("max"), 10, 64)
			if n := config.Field(i).Int(); n < low || n > high {
				problems.add(variable, "must be from "+least+" to "+field.Tag.Get("max"))
			}
		}
	}
	if c.ShutdownTimeout < time.Second || c.ShutdownTimeout > time.Hour {
		problems.add("SHUTDOWN_TIMEOUT", "must be from 1s to 1h")
	}
	if !isSocket(c.Listen) && !isAddress(c.Listen) {
		problems.add("LISTEN", "must be host:port, such as 127.0.0.1:8080, or unix:PATH")
	}
	if c.MetricsListen != off && !isAddress(c.MetricsListen) {
		problems.add("METRICS_LISTEN", "must be host:port, such as 127.0.0.1:9464, or off")
	}
	if u, err := url.Parse(c.PublicURL); err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "" ||
		u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		problems.add("PUBLIC_URL", "must be https://host or https://host:port, with nothing after it")
	}
	for _, lane := range c.Lanes {
		if !laneName.MatchString(lane) {
			problems.add("LANES", "names of lanes are lower-case letters, digits, - and _, at most 32, split by commas")
		}
	}
	for _, proxy := range c.TrustedProxies {
		if prefix, err := netip.ParsePrefix(proxy); err == nil {
			if prefix.Bits() == 0 {
				problems.add("TRUSTED_PROXIES", "a network of every address would let anybody claim any address")
			}
		} else if _, err := netip.ParseAddr(proxy); err != nil {
			problems.add("TRUSTED_PROXIES", "must be addresses or networks, such as 10.0.0.7 or 10.0.0.0/24, split by commas")
		}
	}
	for _, port := range c.OutboundPorts {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			problems.add("OUTBOUND_PORTS", "must be ports from 1 to 65535, split by commas")
		}
	}
	if c.OutboundLoopback && !c.PublicIsLocal() {
		problems.add("OUTBOUND_LOOPBACK", "is for development alone: webhooks of whoever signs up at "+Prefix+"PUBLIC_URL would reach what listens on this machine; take it away")
	}
	for _, prefix := range c.NAT64Prefix {
		if p, err := netip.ParsePrefix(prefix); err != nil || !p.Addr().Is6() || p.Bits() == 0 || p.Bits() > 96 {
			problems.add("NAT64_PREFIX", "must be networks of IPv6 of at most 96 bits, such as 2001:db8:64::/96, split by commas")
		}
	}
	for _, name := range c.TLSExceptions {
		if !slices.Contains(hops, Hop(name)) {
			problems.add("TLS_EXCEPTIONS", "knows only "+hopNames())
		}
	}
	return problems
}

// isSocket accepts the path of a socket, for a proxy on this machine.
func isSocket(address string) bool {
	path, ok := strings.CutPrefix(address, "unix:")
	return ok && path != ""
}

// isAddress accepts host:port; port 0 asks the system for a free one.
func isAddress(address string) bool {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// checkFiles refuses files that are not there now, rather than at their first
// use. The root keys are not among them: the first start may make them.
func (c Config) checkFiles() Problems {
	var problems Problems
	for _, file := range []struct{ variable, path string }{
		{"TLS_CERT", c.TLSCert}, {"TLS_KEY", c.TLSKey}, {"ENGINES", c.Engines},
		{"PROMPT_RULES", c.PromptRules}, {"POLICY", c.Policy}, {"GEOIP", c.GeoIP},
		{"REDIS_CA", c.RedisCA}, {"S3_CA", c.S3CA}, {"SMTP_CA", c.SMTPCA},
	} {
		if file.path == "" {
			continue
		}
		if message := unreadable(file.path); message != "" {
			problems.add(file.variable, message)
		}
	}
	for _, authority := range []struct{ variable, path string }{{"REDIS_CA", c.RedisCA}, {"S3_CA", c.S3CA}, {"SMTP_CA", c.SMTPCA}} {
		if _, err := Authorities(authority.path); err != nil {
			problems.add(authority.variable, "names a file that holds no certificate, in PEM")
		}
	}
	switch {
	case (c.TLSCert == "") != (c.TLSKey == ""):
		problems.add("TLS_CERT", "needs "+Prefix+"TLS_KEY beside it, and the other way round")
	case c.TLSCert != "" && len(problems) == 0:
		if _, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey); err != nil {
			problems.add("TLS_CERT", "and "+Prefix+"TLS_KEY are no certificate and its key, in PEM")
		}
	}
	if within(c.RootKeys, c.Data) {
		problems.add("ROOT_KEYS", "lies in "+Prefix+"DATA: a backup of that folder would hold the keys with what they lock; name a file outside")
	}
	return problems
}

func unreadable(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "names a file that cannot be read: " + reason(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "names a file that cannot be read: " + reason(err)
	case !info.Mode().IsRegular():
		return "names no file, but a folder or a device"
	}
	return ""
}

// within reports whether path lies in folder, links followed as far as they exist.
func within(path, folder string) bool {
	relative, err := filepath.Rel(resolved(folder), resolved(path))
	return err == nil && relative != ".." && !strings.HasPrefix(relative, ".."+string(filepath.Separator))
}

func resolved(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	parent, name := filepath.Dir(path), filepath.Base(path)
	if parent == path {
		return path
	}
	return filepath.Join(resolved(parent), name)
}

// checkStores checks the addresses of databases, Redis, object store and mail,
// and that each hop to them is encrypted, local, or a named exception.
func (c Config) checkStores() Problems {
	var problems Problems
	main := c.checkDatabase(&problems, "DATABASE_URL", c.DatabaseURL, HopDatabase)
	keys := c.checkDatabase(&problems, "KEYS_DATABASE_URL", c.KeysDatabaseURL, HopKeys)
	if main != "" && main == keys {
		problems.add("KEYS_DATABASE_URL", "is the same database as "+Prefix+"DATABASE_URL: a backup of one must never hold the other")
	}
	if path, ok := strings.CutPrefix(c.KeysDatabaseURL, "sqlite:"); ok && path != "" && within(path, c.Data) {
		problems.add("KEYS_DATABASE_URL", "lies in "+Prefix+"DATA: the key store is backed up apart; name a file outside")
	}
	c.checkRedis(&problems)
	c.checkS3(&problems)
	c.checkSMTP(&problems)
	return problems
}

func (c Config) checkS3(problems *Problems) {
	together := []struct{ variable, value string }{
		{"S3_ENDPOINT", c.S3Endpoint}, {"S3_BUCKET", c.S3Bucket}, {"S3_ACCESS_KEY", c.S3AccessKey}, {"S3_SECRET_KEY", c.S3SecretKey},
	}
	var some bool
	for _, s := range together {
		some = some || s.value != ""
	}
	if c.S3CA != "" && (!some || !c.S3TLS) {
		problems.add("S3_CA", "has no effect: no S3 is spoken to in TLS")
	}
	if !some {
		return
	}
	for _, s := range together {
		if s.value == "" {
			problems.add(s.variable, "is missing: S3 needs endpoint, bucket, access key and secret key together, or none of them")
		}
	}
	if c.S3Endpoint == "" {
		return
	}
	u, err := url.Parse("//" + c.S3Endpoint)
	if err != nil || strings.Contains(c.S3Endpoint, "://") || u.Host != c.S3Endpoint || u.Hostname() == "" {
		problems.add("S3_ENDPOINT", "must be host or host:port without a scheme: "+Prefix+"S3_TLS decides on TLS")
		return
	}
	if !c.S3TLS && !isLocal(u.Hostname()) && !c.excepted(HopS3) {
		problems.add("S3_TLS", "must be true off loopback"+orException(HopS3))
	}
}
