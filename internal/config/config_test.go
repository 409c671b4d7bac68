package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// canary stands for every secret: no error and no line may hold it.
const canary = "c4n4ry-s3cret"

func TestDefaultsRunEverythingInOneProcess(t *testing.T) {
	t.Parallel()
	c, err := ForRole(map[string]string{"PATH": "/bin", "ZIMAGE_S3_BUCKET": ""}, RoleUp)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:8080" || c.MetricsListen != "127.0.0.1:9464" || c.PublicURL != "http://127.0.0.1:8080" {
		t.Errorf("listens at %s and %s as %s", c.Listen, c.MetricsListen, c.PublicURL)
	}
	if !filepath.IsAbs(c.Data) || filepath.Base(c.Data) != "zimage-data" {
		t.Errorf("data is %s", c.Data)
	}
	if want := "sqlite:" + c.Data + "/zimage.db"; c.DatabaseURL != want {
		t.Errorf("database is %s, want %s", c.DatabaseURL, want)
	}
	if within(c.RootKeys, c.Data) || within(strings.TrimPrefix(c.KeysDatabaseURL, "sqlite:"), c.Data) {
		t.Errorf("keys lie in the data folder: %s, %s", c.RootKeys, c.KeysDatabaseURL)
	}
	if c.UsesS3() || c.RedisURL != "" || len(c.Exceptions()) != 0 {
		t.Error("a default names something outside of this process")
	}
	if c.QueuedPerOwner != 100 || c.DailyPerOwner != 1000 || c.RequestsPerMinute != 600 || c.ShutdownTimeout != time.Minute {
		t.Error("the limits are not the documented ones")
	}
}

func TestTheEnvironmentIsReadWhenNoneIsGiven(t *testing.T) {
	t.Setenv("ZIMAGE_LOG_LEVEL", "debug")
	c, err := Load(nil)
	if err != nil || c.LogLevel != "debug" {
		t.Fatalf("level %q, error %v", c.LogLevel, err)
	}
}

// production is what the three processes get; each case changes a copy.
func production(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"ZIMAGE_DATABASE_URL":      "postgres://zimage:" + canary + "@db.internal:5432/zimage?sslmode=verify-full",
		"ZIMAGE_KEYS_DATABASE_URL": "postgres://keys:" + canary + "@keys.internal:5432/keys?sslmode=verify-full",
		"ZIMAGE_REDIS_URL":         "rediss://zimage:" + canary + "@redis.internal:6379/0",
		"ZIMAGE_S3_ENDPOINT":       "s3.internal:9000",
		"ZIMAGE_S3_BUCKET":         "zimage",
		"ZIMAGE_S3_ACCESS_KEY":     canary,
		"ZIMAGE_S3_SECRET_KEY":     canary,
		"ZIMAGE_ROOT_KEYS":         written(t, "roots.yaml", "current: {}\n"),
	}
}

func written(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProductionIsAccepted(t *testing.T) {
	t.Parallel()
	for _, role := range []Role{RoleAPI, RoleWorker, RoleScheduler, RoleUp} {
		if _, err := ForRole(production(t), role); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	cert, key := pair(t)
	tests := []struct {
		name string
		role Role
		set  map[string]string // over production; "-" removes
		at   string            // the variable that is named; empty: accepted
		says string
	}{
		{name: "unknown name", set: m("ZIMAGE_BANANA", canary), at: "ZIMAGE_BANANA", says: "is no setting"},
		{name: "typo", set: m("ZIMAGE_DATBASE_URL", canary), at: "ZIMAGE_DATBASE_URL", says: "did you mean ZIMAGE_DATABASE_URL?"},
		{name: "typo of a file", set: m("ZIMAGE_REDIS_URL_FIEL", "x"), at: "ZIMAGE_REDIS_URL_FIEL", says: "did you mean ZIMAGE_REDIS_URL_FILE?"},
		{name: "file of what is no secret", set: m("ZIMAGE_LISTEN_FILE", "x"), at: "ZIMAGE_LISTEN_FILE", says: "is no setting"},
		{name: "variables of Kubernetes", set: m("ZIMAGE_API_PORT_8080_TCP_ADDR", "10.0.0.1", "ZIMAGE_PORT", "tcp://10.0.0.1:80", "ZIMAGE_SERVICE_HOST", "10.0.0.1")},
		{name: "a port of its own", set: m("ZIMAGE_PORT", "8080"), at: "ZIMAGE_PORT", says: "is no setting"},
		{name: "the key of the command line", set: m("ZIMAGE_KEY", canary)},
		{name: "variables of the tests", set: m("ZIMAGE_TEST_POSTGRES", "x")},

		{name: "listen without port", set: m("ZIMAGE_LISTEN", "localhost"), at: "ZIMAGE_LISTEN", says: "host:port"},
		{name: "listen with an impossible port", set: m("ZIMAGE_LISTEN", "127.0.0.1:70000"), at: "ZIMAGE_LISTEN", says: "host:port"},
		{name: "plain HTTP to the network", set: m("ZIMAGE_LISTEN", "192.0.2.1:8080"), at: "ZIMAGE_LISTEN", says: "ZIMAGE_TLS_CERT"},
		{name: "plain HTTP on every address", set: m("ZIMAGE_LISTEN", ":8080", "ZIMAGE_PUBLIC_URL", "https://zimage.example"), at: "ZIMAGE_LISTEN", says: "TLS_EXCEPTIONS names listen"},
		{name: "a name that looks local", set: m("ZIMAGE_LISTEN", "localhost.example:8080"), at: "ZIMAGE_LISTEN", says: "is not loopback"},
		{name: "every address without a public one", set: m("ZIMAGE_LISTEN", "[::]:8080", "ZIMAGE_TLS_EXCEPTIONS", "listen"), at: "ZIMAGE_PUBLIC_URL", says: "is missing"},
		{name: "listen accepted by exception", set: m("ZIMAGE_LISTEN", "0.0.0.0:8080", "ZIMAGE_TLS_EXCEPTIONS", "listen", "ZIMAGE_PUBLIC_URL", "https://zimage.example")},
		{name: "listen with a certificate", set: m("ZIMAGE_LISTEN", "192.0.2.1:8443", "ZIMAGE_TLS_CERT", cert, "ZIMAGE_TLS_KEY", key)},
		{name: "listen on IPv6 loopback", set: m("ZIMAGE_LISTEN", "[::1]:8080")},
		{name: "listen on a socket", set: m("ZIMAGE_LISTEN", "unix:/run/zimage.sock", "ZIMAGE_PUBLIC_URL", "https://zimage.example")},
		{name: "a socket without a public address", set: m("ZIMAGE_LISTEN", "unix:/run/zimage.sock"), at: "ZIMAGE_PUBLIC_URL", says: "is missing"},
		{name: "a socket nowhere", set: m("ZIMAGE_LISTEN", "unix:"), at: "ZIMAGE_LISTEN", says: "unix:PATH"},
		{name: "a worker does not listen", role: RoleWorker, set: m("ZIMAGE_LISTEN", "0.0.0.0:8080")},
		{name: "metrics to the network", role: RoleWorker, set: m("ZIMAGE_METRICS_LISTEN", "0.0.0.0:9464"), at: "ZIMAGE_METRICS_LISTEN", says: "TLS_EXCEPTIONS names metrics"},
		{name: "metrics by exception", role: RoleWorker, set: m("ZIMAGE_METRICS_LISTEN", "0.0.0.0:9464", "ZIMAGE_TLS_EXCEPTIONS", "metrics")},
		{name: "metrics off", role: RoleWorker, set: m("ZIMAGE_METRICS_LISTEN", "off")},
		{name: "metrics nowhere", set: m("ZIMAGE_METRICS_LISTEN", "no"), at: "ZIMAGE_METRICS_LISTEN", says: "or off"},
		{name: "public URL in plain", set: m("ZIMAGE_PUBLIC_URL", "http://zimage.example"), at: "ZIMAGE_PUBLIC_URL", says: "must be https://"},
		{name: "public URL with a path", set: m("ZIMAGE_PUBLIC_URL", "https://zimage.example/app"), at: "ZIMAGE_PUBLIC_URL", says: "nothing after it"},
		{name: "public URL with a closing slash", set: m("ZIMAGE_PUBLIC_URL", "https://zimage.example/")},
		{name: "public URL of another kind", set: m("ZIMAGE_PUBLIC_URL", "ftp://zimage.example"), at: "ZIMAGE_PUBLIC_URL", says: "https://host"},
		{name: "webhooks to this machine", set: m("ZIMAGE_OUTBOUND_LOOPBACK", "true")},
		{name: "webhooks to this machine, of a public service", set: m("ZIMAGE_OUTBOUND_LOOPBACK", "true", "ZIMAGE_PUBLIC_URL", "https://zimage.example"), at: "ZIMAGE_OUTBOUND_LOOPBACK", says: "for development alone"},
		{name: "webhooks to a worker's machine, of a public service", role: RoleWorker, set: m("ZIMAGE_OUTBOUND_LOOPBACK", "true", "ZIMAGE_PUBLIC_URL", "https://zimage.example"), at: "ZIMAGE_OUTBOUND_LOOPBACK", says: "take it away"},
		{name: "certificate alone", set: m("ZIMAGE_TLS_CERT", cert), at: "ZIMAGE_TLS_CERT", says: "ZIMAGE_TLS_KEY"},
		{name: "key alone", set: m("ZIMAGE_TLS_KEY", key), at: "ZIMAGE_TLS_CERT", says: "ZIMAGE_TLS_KEY"},
		{name: "key and certificate swapped", set: m("ZIMAGE_TLS_CERT", key, "ZIMAGE_TLS_KEY", cert), at: "ZIMAGE_TLS_CERT", says: "in PEM"},
		{name: "certificate that is not there", set: m("ZIMAGE_TLS_CERT", "/nowhere/cert.pem", "ZIMAGE_TLS_KEY", key), at: "ZIMAGE_TLS_CERT", says: "no such file"},
		{name: "exception of an unknown hop", set: m("ZIMAGE_TLS_EXCEPTIONS", "redis,all"), at: "ZIMAGE_TLS_EXCEPTIONS", says: "listen, metrics, database"},
		{name: "every proxy", set: m("ZIMAGE_TRUSTED_PROXIES", "0.0.0.0/0"), at: "ZIMAGE_TRUSTED_PROXIES", says: "claim any address"},
		{name: "proxy by name", set: m("ZIMAGE_TRUSTED_PROXIES", "10.0.0.0/8,proxy"), at: "ZIMAGE_TRUSTED_PROXIES", says: "10.0.0.0/24"},
		{name: "proxies", set: m("ZIMAGE_TRUSTED_PROXIES", "10.0.0.0/8, ::1")},
		{name: "outbound port", set: m("ZIMAGE_OUTBOUND_PORTS", "8443,https"), at: "ZIMAGE_OUTBOUND_PORTS", says: "1 to 65535"},
		{name: "outbound ports", set: m("ZIMAGE_OUTBOUND_PORTS", "8443, 10443")},
		{name: "NAT64 of IPv4", set: m("ZIMAGE_NAT64_PREFIX", "10.0.0.0/8"), at: "ZIMAGE_NAT64_PREFIX", says: "networks of IPv6"},
		{name: "NAT64 of everything", set: m("ZIMAGE_NAT64_PREFIX", "::/0"), at: "ZIMAGE_NAT64_PREFIX", says: "networks of IPv6"},
		{name: "NAT64", set: m("ZIMAGE_NAT64_PREFIX", "2001:db8:64::/96")},

		{name: "database of another kind", set: m("ZIMAGE_DATABASE_URL", "mysql://"+canary), at: "ZIMAGE_DATABASE_URL", says: "must be sqlite:PATH or postgres://"},
		{name: "database that does not parse", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@h:port/n"), at: "ZIMAGE_DATABASE_URL", says: "does not parse"},
		{name: "database without TLS", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@db.internal/zimage?sslmode=disable"), at: "ZIMAGE_DATABASE_URL", says: "sslmode=verify-full"},
		{name: "database that may fall back to plain text", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@db.internal/zimage?sslmode=prefer"), at: "ZIMAGE_DATABASE_URL", says: "sslmode=verify-full"},
		{name: "database with the default mode", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@db.internal/zimage"), at: "ZIMAGE_DATABASE_URL", says: "sslmode=verify-full"},
		{name: "database of any name", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@db.internal/zimage?sslmode=require"), at: "ZIMAGE_DATABASE_URL", says: "sslmode=verify-full"},
		{name: "database by exception", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@db.internal/zimage?sslmode=disable", "ZIMAGE_TLS_EXCEPTIONS", "database")},
		{name: "the exception of another hop", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@db.internal/zimage?sslmode=disable", "ZIMAGE_TLS_EXCEPTIONS", "keys"), at: "ZIMAGE_DATABASE_URL", says: "names database"},
		{name: "one of several hosts in plain", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@127.0.0.1,db.internal/zimage?sslmode=disable"), at: "ZIMAGE_DATABASE_URL", says: "sslmode=verify-full"},
		{name: "database on loopback", set: m("ZIMAGE_DATABASE_URL", "postgres://u:"+canary+"@127.0.0.1/zimage?sslmode=disable")},
		{name: "database on a socket", set: m("ZIMAGE_DATABASE_URL", "postgres:///zimage?host=/run/postgresql")},
		{name: "key store without TLS", set: m("ZIMAGE_KEYS_DATABASE_URL", "postgres://u:"+canary+"@db.internal/keys?sslmode=disable"), at: "ZIMAGE_KEYS_DATABASE_URL", says: "names keys"},
		{name: "key store is the database", set: m("ZIMAGE_KEYS_DATABASE_URL", "postgres://other:"+canary+"@DB.internal/zimage?sslmode=verify-full"), at: "ZIMAGE_KEYS_DATABASE_URL", says: "same database"},
		{name: "key store is the database under another name", set: m("ZIMAGE_DATABASE_URL", "postgres://127.0.0.1/z?sslmode=disable", "ZIMAGE_KEYS_DATABASE_URL", "postgres://localhost:5432/z?sslmode=disable"), at: "ZIMAGE_KEYS_DATABASE_URL", says: "same database"},
		{name: "key store beside the database", set: m("ZIMAGE_KEYS_DATABASE_URL", "postgres://other:"+canary+"@db.internal/keys?sslmode=verify-full")},
		{name: "key store is the SQLite file", role: RoleUp, set: m("ZIMAGE_DATABASE_URL", "sqlite:/srv/a/../z.db", "ZIMAGE_KEYS_DATABASE_URL", "sqlite:/srv/z.db"), at: "ZIMAGE_KEYS_DATABASE_URL", says: "same database"},
		{name: "key store in the data folder", role: RoleUp, set: m("ZIMAGE_DATA", "/srv/z", "ZIMAGE_KEYS_DATABASE_URL", "sqlite:/srv/z/keys.db"), at: "ZIMAGE_KEYS_DATABASE_URL", says: "backed up apart"},
		{name: "SQLite without a path", role: RoleUp, set: m("ZIMAGE_DATABASE_URL", "sqlite:"), at: "ZIMAGE_DATABASE_URL", says: "needs a path"},
		{name: "root keys in the data folder", role: RoleUp, set: m("ZIMAGE_DATA", "/srv/z", "ZIMAGE_ROOT_KEYS", "/srv/z/sub/roots.yaml"), at: "ZIMAGE_ROOT_KEYS", says: "name a file outside"},

		{name: "Redis of another kind", set: m("ZIMAGE_REDIS_URL", "http://"+canary), at: "ZIMAGE_REDIS_URL", says: "rediss://"},
		{name: "Redis without TLS", set: m("ZIMAGE_REDIS_URL", "redis://:"+canary+"@redis.internal:6379"), at: "ZIMAGE_REDIS_URL", says: "use rediss://"},
		{name: "Redis of any name", set: m("ZIMAGE_REDIS_URL", "rediss://:"+canary+"@redis.internal:6379?skip_verify=true"), at: "ZIMAGE_REDIS_URL", says: "without skip_verify"},
		{name: "Redis by exception", set: m("ZIMAGE_REDIS_URL", "redis://:"+canary+"@redis.internal:6379", "ZIMAGE_TLS_EXCEPTIONS", "s3, redis")},
		{name: "Redis on loopback", set: m("ZIMAGE_REDIS_URL", "redis://:"+canary+"@[::1]:6379")},
		{name: "Redis on a socket", set: m("ZIMAGE_REDIS_URL", "unix:///run/redis.sock")},

		{name: "S3 without a bucket", set: m("ZIMAGE_S3_BUCKET", "-"), at: "ZIMAGE_S3_BUCKET", says: "is missing"},
		{name: "S3 without an endpoint", set: m("ZIMAGE_S3_ENDPOINT", "-"), at: "ZIMAGE_S3_ENDPOINT", says: "is missing"},
		{name: "S3 with a scheme", set: m("ZIMAGE_S3_ENDPOINT", "https://s3.internal"), at: "ZIMAGE_S3_ENDPOINT", says: "without a scheme"},
		{name: "S3 with a path", set: m("ZIMAGE_S3_ENDPOINT", "s3.internal/bucket"), at: "ZIMAGE_S3_ENDPOINT", says: "without a scheme"},
		{name: "S3 without TLS", set: m("ZIMAGE_S3_TLS", "false"), at: "ZIMAGE_S3_TLS", says: "names s3"},
		{name: "S3 by exception", set: m("ZIMAGE_S3_TLS", "false", "ZIMAGE_TLS_EXCEPTIONS", "s3")},
		{name: "S3 on loopback", set: m("ZIMAGE_S3_TLS", "false", "ZIMAGE_S3_ENDPOINT", "127.0.0.1:9000")},
		{name: "authorities", set: m("ZIMAGE_S3_CA", cert, "ZIMAGE_REDIS_CA", cert)},
		{name: "authorities of S3 without TLS", set: m("ZIMAGE_S3_CA", cert, "ZIMAGE_S3_TLS", "false", "ZIMAGE_TLS_EXCEPTIONS", "s3"), at: "ZIMAGE_S3_CA", says: "no effect"},
		{name: "authorities of S3 that are none", set: m("ZIMAGE_S3_CA", key), at: "ZIMAGE_S3_CA", says: "no certificate"},
		{name: "authorities of S3 that are not there", set: m("ZIMAGE_S3_CA", "/nowhere/ca.pem"), at: "ZIMAGE_S3_CA", says: "no such file"},
		{name: "authorities of Redis without TLS", set: m("ZIMAGE_REDIS_CA", cert, "ZIMAGE_REDIS_URL", "redis://127.0.0.1:6379"), at: "ZIMAGE_REDIS_CA", says: "no effect"},
		{name: "authorities of Redis that are none", set: m("ZIMAGE_REDIS_CA", key), at: "ZIMAGE_REDIS_CA", says: "no certificate"},
		{name: "authorities of mail", set: m("ZIMAGE_SMTP_CA", cert, "ZIMAGE_SMTP_URL", "smtp://mail.internal", "ZIMAGE_MAIL_FROM", "a@b.example")},
		{name: "authorities of mail that are none", set: m("ZIMAGE_SMTP_CA", key, "ZIMAGE_SMTP_URL", "smtp://mail.internal", "ZIMAGE_MAIL_FROM", "a@b.example"), at: "ZIMAGE_SMTP_CA", says: "no certificate"},
		{name: "authorities without mail", set: m("ZIMAGE_SMTP_CA", cert), at: "ZIMAGE_SMTP_CA", says: "no effect"},
		{name: "authorities of a local mail server", set: m("ZIMAGE_SMTP_CA", cert, "ZIMAGE_SMTP_URL", "smtp://localhost:25", "ZIMAGE_MAIL_FROM", "a@b.example"), at: "ZIMAGE_SMTP_CA", says: "no effect"},
		{name: "authorities of mail by exception", set: m("ZIMAGE_SMTP_CA", cert, "ZIMAGE_SMTP_URL", "smtp://mail.internal", "ZIMAGE_MAIL_FROM", "a@b.example", "ZIMAGE_TLS_EXCEPTIONS", "smtp"), at: "ZIMAGE_SMTP_CA", says: "no effect"},
		{name: "authorities of mail by exception with a password", set: m("ZIMAGE_SMTP_CA", cert, "ZIMAGE_SMTP_URL", "smtp://u:"+canary+"@mail.internal", "ZIMAGE_MAIL_FROM", "a@b.example", "ZIMAGE_TLS_EXCEPTIONS", "smtp")},
		{name: "authorities without S3", role: RoleUp, set: noS3("ZIMAGE_S3_CA", cert), at: "ZIMAGE_S3_CA", says: "no effect"},
		{name: "authorities without Redis", role: RoleUp, set: m("ZIMAGE_REDIS_CA", cert, "ZIMAGE_REDIS_URL", "-"), at: "ZIMAGE_REDIS_CA", says: "no effect"},
		{name: "S3 and a word for TLS", set: m("ZIMAGE_S3_TLS", "maybe"), at: "ZIMAGE_S3_TLS", says: "true or false"},
		{name: "mail of another kind", set: m("ZIMAGE_SMTP_URL", "mail://u:"+canary+"@h", "ZIMAGE_MAIL_FROM", "a@b.example"), at: "ZIMAGE_SMTP_URL", says: "smtps://"},
		{name: "mail", set: m("ZIMAGE_SMTP_URL", "smtp://u:"+canary+"@mail.internal:587", "ZIMAGE_MAIL_FROM", "no-reply@zimage.example")},
		{name: "mail over TLS, from a name", set: m("ZIMAGE_SMTP_URL", "smtps://mail.internal", "ZIMAGE_MAIL_FROM", "Z Image <no-reply@zimage.example>")},
		{name: "mail without a sender", set: m("ZIMAGE_SMTP_URL", "smtp://u:"+canary+"@mail.internal"), at: "ZIMAGE_MAIL_FROM", says: "is missing"},
		{name: "a sender without mail", set: m("ZIMAGE_MAIL_FROM", "no-reply@zimage.example")},
		{name: "a sender that is no address", set: m("ZIMAGE_MAIL_FROM", "zimage.example"), at: "ZIMAGE_MAIL_FROM", says: "an address"},
		{name: "two senders", set: m("ZIMAGE_MAIL_FROM", "a@zimage.example, b@zimage.example"), at: "ZIMAGE_MAIL_FROM", says: "an address"},
		{name: "a sender with a line of its own", set: m("ZIMAGE_MAIL_FROM", "=?utf-8?q?a=0D=0ABcc:_b?= <a@zimage.example>"), at: "ZIMAGE_MAIL_FROM", says: "an address"},
		{name: "mail with a path", set: m("ZIMAGE_SMTP_URL", "smtp://mail.internal/inbox", "ZIMAGE_MAIL_FROM", "a@b.example"), at: "ZIMAGE_SMTP_URL", says: "nothing after it"},
		{name: "mail with options", set: m("ZIMAGE_SMTP_URL", "smtp://u:"+canary+"@mail.internal?tls=off", "ZIMAGE_MAIL_FROM", "a@b.example"), at: "ZIMAGE_SMTP_URL", says: "nothing after it"},
		{name: "mail with a user alone", set: m("ZIMAGE_SMTP_URL", "smtp://"+canary+"@mail.internal", "ZIMAGE_MAIL_FROM", "a@b.example"), at: "ZIMAGE_SMTP_URL", says: "user:password"},
		{name: "mail to port 0", set: m("ZIMAGE_SMTP_URL", "smtp://mail.internal:0", "ZIMAGE_MAIL_FROM", "a@b.example"), at: "ZIMAGE_SMTP_URL", says: "host:587"},

		{name: "engines that are not there", set: m("ZIMAGE_ENGINES", "/nowhere/engines.yaml"), at: "ZIMAGE_ENGINES", says: "no such file"},
		{name: "policy that is a folder", set: m("ZIMAGE_POLICY", t.TempDir()), at: "ZIMAGE_POLICY", says: "a folder"},
		{name: "rules that are not there", set: m("ZIMAGE_PROMPT_RULES", "/nowhere/rules"), at: "ZIMAGE_PROMPT_RULES", says: "no such file"},
		{name: "places that are not there", set: m("ZIMAGE_GEOIP", "/nowhere/places"), at: "ZIMAGE_GEOIP", says: "no such file"},
		{name: "lanes", set: m("ZIMAGE_LANES", "generation, gpu-24g,")},
		{name: "lane with a space", set: m("ZIMAGE_LANES", "generation,two words"), at: "ZIMAGE_LANES", says: "lower-case"},
		{name: "no queue at all", set: m("ZIMAGE_QUEUED_PER_OWNER", "0"), at: "ZIMAGE_QUEUED_PER_OWNER", says: "from 1 to"},
		{name: "a number in words", set: m("ZIMAGE_DAILY_PER_OWNER", "many"), at: "ZIMAGE_DAILY_PER_OWNER", says: "whole number"},
		{name: "negative", set: m("ZIMAGE_REQUESTS_PER_MINUTE", "-1"), at: "ZIMAGE_REQUESTS_PER_MINUTE", says: "from 1 to"},
		{name: "level", set: m("ZIMAGE_LOG_LEVEL", "loud"), at: "ZIMAGE_LOG_LEVEL", says: "debug, info, warn, error"},
		{name: "format", set: m("ZIMAGE_LOG_FORMAT", "xml"), at: "ZIMAGE_LOG_FORMAT", says: "text, json"},
		{name: "time without unit", set: m("ZIMAGE_SHUTDOWN_TIMEOUT", "30"), at: "ZIMAGE_SHUTDOWN_TIMEOUT", says: "90s"},
		{name: "no time at all", set: m("ZIMAGE_SHUTDOWN_TIMEOUT", "1ms"), at: "ZIMAGE_SHUTDOWN_TIMEOUT", says: "from 1s"},

		{name: "api on SQLite", role: RoleAPI, set: m("ZIMAGE_DATABASE_URL", "sqlite:/srv/z.db"), at: "ZIMAGE_DATABASE_URL", says: "zimage up"},
		{name: "worker without a database", role: RoleWorker, set: m("ZIMAGE_DATABASE_URL", "-"), at: "ZIMAGE_DATABASE_URL", says: "postgres://"},
		{name: "scheduler without a key store", role: RoleScheduler, set: m("ZIMAGE_KEYS_DATABASE_URL", "-"), at: "ZIMAGE_KEYS_DATABASE_URL", says: "postgres://"},
		{name: "worker without Redis", role: RoleWorker, set: m("ZIMAGE_REDIS_URL", "-"), at: "ZIMAGE_REDIS_URL", says: "is missing"},
		{name: "worker without objects", role: RoleWorker, set: noS3(), at: "ZIMAGE_S3_ENDPOINT", says: "every api, worker and scheduler shares"},
		{name: "worker on a relative folder", role: RoleWorker, set: noS3("ZIMAGE_DATA", "here"), at: "ZIMAGE_S3_ENDPOINT", says: "absolute path"},
		{name: "worker on a shared folder", role: RoleWorker, set: noS3("ZIMAGE_DATA", "/srv/shared")},
		{name: "worker without root keys", role: RoleWorker, set: m("ZIMAGE_ROOT_KEYS", "-"), at: "ZIMAGE_ROOT_KEYS", says: "none makes its own"},
		{name: "worker whose root keys are not there", role: RoleWorker, set: m("ZIMAGE_ROOT_KEYS", "/nowhere/roots.yaml"), at: "ZIMAGE_ROOT_KEYS", says: "no such file"},
		{name: "up makes its root keys", role: RoleUp, set: m("ZIMAGE_ROOT_KEYS", "/nowhere/roots.yaml")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			environ := production(t)
			for name, value := range tt.set {
				if value == "-" {
					delete(environ, name)
				} else {
					environ[name] = value
				}
			}
			role := tt.role
			if role == "" {
				role = RoleAPI
			}
			_, err := ForRole(environ, role)
			if tt.at == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("got %v", err)
			}
			if len(problems) != 1 || problems[0].Variable != tt.at || !strings.Contains(problems[0].Message, tt.says) {
				t.Errorf("got %v, want %s … %s", problems, tt.at, tt.says)
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("quotes a secret: %v", err)
			}
		})
	}
}

// m makes a map of names and values in turn.
func m(pairs ...string) map[string]string {
	set := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		set[pairs[i]] = pairs[i+1]
	}
	return set
}

func noS3(pairs ...string) map[string]string {
	set := m(pairs...)
	for _, name := range []string{"ENDPOINT", "BUCKET", "ACCESS_KEY", "SECRET_KEY"} {
		set["ZIMAGE_S3_"+name] = "-"
	}
	return set
}

func TestTheAddressOfTheMailServerIsReadAsItStands(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]SMTPServer{
		"smtp://localhost":                       {Host: "localhost", Port: 587, Local: true},
		"smtp://127.0.0.1:2525/":                 {Host: "127.0.0.1", Port: 2525, Local: true},
		"smtp://[::1]:25":                        {Host: "::1", Port: 25, Local: true},
		"smtp://u:p%40%2F%3A@mail.example":       {Host: "mail.example", Port: 587, User: "u", Password: "p@/:"},
		"smtps://u%40example.org:p@mail.example": {Host: "mail.example", Port: 465, User: "u@example.org", Password: "p", Implicit: true},
		"smtp://localhost.example:587":           {Host: "localhost.example", Port: 587},
	} {
		for _, exception := range []string{"", "s3,smtp"} {
			want.Excepted = exception != ""
			c, err := Load(m("ZIMAGE_SMTP_URL", address, "ZIMAGE_MAIL_FROM", "a@b.example", "ZIMAGE_TLS_EXCEPTIONS", exception))
			if err != nil {
				t.Fatal(err)
			}
			if got := c.SMTP(); got != want || !c.UsesSMTP() {
				t.Errorf("%s: %+v", address, got)
			}
		}
	}
	c, err := Load(m())
	if err != nil || c.UsesSMTP() || c.MailFrom != "zimage@localhost" || c.MailFolder() != filepath.Join(c.Data, "mail") {
		t.Errorf("without settings: %s in %s, %v", c.MailFrom, c.MailFolder(), err)
	}
}

func TestTheEnvironmentOfPostgresCounts(t *testing.T) {
	environ := production(t)
	environ["ZIMAGE_DATABASE_URL"] = "postgres://u@db.internal/zimage"
	t.Setenv("PGSSLMODE", "verify-full")
	if _, err := Load(environ); err != nil {
		t.Errorf("the driver would verify, but: %v", err)
	}
	t.Setenv("PGSSLMODE", "disable")
	if _, err := Load(environ); err == nil {
		t.Error("the driver would speak plain text, and nothing was said")
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := ForRole(map[string]string{
		"ZIMAGE_LOGLEVEL":     "debug",
		"ZIMAGE_LISTEN":       "0.0.0.0:80",
		"ZIMAGE_LOG_FORMAT":   "xml",
		"ZIMAGE_DATABASE_URL": "mysql://" + canary,
	}, RoleAPI)
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("got %v", err)
	}
	var named []string
	for _, p := range problems {
		named = append(named, strings.TrimPrefix(p.Variable, Prefix))
	}
	want := "LOGLEVEL LISTEN PUBLIC_URL DATABASE_URL KEYS_DATABASE_URL ROOT_KEYS REDIS_URL S3_ENDPOINT LOG_FORMAT"
	if got := strings.Join(named, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != len(problems) {
		t.Errorf("%d lines for %d problems", len(lines), len(problems))
	}
}

func TestSecretsFromFiles(t *testing.T) {
	t.Parallel()
	environ := production(t)
	delete(environ, "ZIMAGE_S3_SECRET_KEY")
	path := written(t, "secret", canary+"\r\n")
	environ["ZIMAGE_S3_SECRET_KEY_FILE"] = path
	c, err := Load(environ)
	if err != nil || c.S3SecretKey != canary {
		t.Fatalf("got %q, %v", c.S3SecretKey, err)
	}

	tests := []struct {
		name, path, plain, says string
	}{
		{name: "both", path: path, plain: canary, says: "keep one of them"},
		{name: "missing", path: "/nowhere/secret", says: "no such file"},
		{name: "empty", path: written(t, "secret", "\n"), says: "it is empty"},
		{name: "folder", path: t.TempDir(), says: "is a directory"},
		{name: "large", path: written(t, "secret", strings.Repeat(canary, 10000)), says: "64 KiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			environ := production(t)
			environ["ZIMAGE_S3_SECRET_KEY"] = tt.plain
			environ["ZIMAGE_S3_SECRET_KEY_FILE"] = tt.path
			_, err := Load(environ)
			var problems Problems
			if !errors.As(err, &problems) || len(problems) != 1 {
				t.Fatalf("got %v", err)
			}
			if p := problems[0]; p.Variable != "ZIMAGE_S3_SECRET_KEY" || !strings.Contains(p.Message, tt.says) || strings.Contains(p.Message, canary) {
				t.Errorf("got %v, want … %s", p, tt.says)
			}
		})
	}
}

func TestRedactedShowsNoSecret(t *testing.T) {
	t.Parallel()
	environ := production(t)
	environ["ZIMAGE_SMTP_URL"] = "smtps://" + canary + ":" + canary + "@mail.internal:465"
	environ["ZIMAGE_MAIL_FROM"] = "no-reply@zimage.example"
	environ["ZIMAGE_KEYS_DATABASE_URL"] = "postgres://keys.internal/keys?user=k&password=" + canary + "&sslmode=verify-full"
	delete(environ, "ZIMAGE_S3_SECRET_KEY")
	file := written(t, "secret", canary)
	environ["ZIMAGE_S3_SECRET_KEY_FILE"] = file
	c, err := Load(environ)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]Line{}
	for _, line := range c.Redacted() {
		lines[line.Name] = line
		if strings.Contains(line.Value, canary) {
			t.Errorf("%s shows its secret", line.Name)
		}
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("start", "config", c)
	if printed := fmt.Sprintf("%v %+v %s %#v", c, c, c, &c) + log.String(); strings.Contains(printed, canary) {
		t.Error("a printed Config shows its secrets")
	}
	if len(lines) != len(Variables()) {
		t.Errorf("%d lines for %d settings", len(lines), len(Variables()))
	}
	for name, want := range map[string]Line{
		"ZIMAGE_DATABASE_URL":      {Value: "postgres://db.internal:5432/zimage", Source: "environment"},
		"ZIMAGE_KEYS_DATABASE_URL": {Value: "postgres://keys.internal/keys", Source: "environment"},
		"ZIMAGE_REDIS_URL":         {Value: "rediss://redis.internal:6379/0", Source: "environment"},
		"ZIMAGE_SMTP_URL":          {Value: "smtps://mail.internal:465", Source: "environment"},
		"ZIMAGE_S3_ACCESS_KEY":     {Value: "(set)", Source: "environment"},
		"ZIMAGE_S3_SECRET_KEY":     {Value: "(set)", Source: "file " + file},
		"ZIMAGE_S3_BUCKET":         {Value: "zimage", Source: "environment"},
		"ZIMAGE_LOG_LEVEL":         {Value: "info", Source: "default"},
		"ZIMAGE_SHUTDOWN_TIMEOUT":  {Value: "1m0s", Source: "default"},
	} {
		want.Name = name
		if lines[name] != want {
			t.Errorf("got %+v, want %+v", lines[name], want)
		}
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	t.Parallel()
	for _, v := range Variables() {
		if v.Doc == "" || !strings.HasSuffix(v.Doc, ".") || strings.ContainsAny(v.Doc, "|\n") {
			t.Errorf("%s: %q is no line for the table", v.Name, v.Doc)
		}
	}
}

// The other hops' handshakes are in internal/app, internal/objects and
// internal/engine, under the same promise.
func TestPromise_X1_TheAPISpeaksTLS13OrNothing(t *testing.T) {
	t.Parallel()
	cert, key := pair(t)
	c, err := Load(m("ZIMAGE_TLS_CERT", cert, "ZIMAGE_TLS_KEY", key))
	if err != nil {
		t.Fatal(err)
	}
	if c.PublicURL != "https://127.0.0.1:8080" {
		t.Errorf("public URL %s with a certificate", c.PublicURL)
	}
	served, err := c.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", served)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	for version, accepted := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
		if (err == nil) != accepted {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}

// pair makes a certificate and its key, in files.
func pair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = written(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	key = written(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	return cert, key
}
