//go:build unix

package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/config"
	"zimage/internal/db"
	"zimage/internal/testenv"
)

// Promise X1 has a handshake with a real server for each hop. Those to the stores
// and that of users are here, with the settings by which an operator turns them
// on; the engines' is in internal/engine, S3's own faults are in internal/objects.
// That a hop in plain is refused at start is in config's TestRefusals.

// authority is one of the test's own; its certificates are for 127.0.0.1 alone.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string // PEM
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	a.file = a.write(t.TempDir(), "ca.pem", "CERTIFICATE", a.sign(a.cert, &key.PublicKey))
	if a.pool, err = config.Authorities(a.file); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(cert *x509.Certificate, public *ecdsa.PublicKey) []byte {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

// issue writes a server's certificate and key into a folder.
func (a *authority) issue(folder string) (cert, key string) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	server := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	return a.write(folder, "server.crt", "CERTIFICATE", a.sign(server, &private.PublicKey)), a.write(folder, "server.key", "PRIVATE KEY", der)
}

func (a *authority) write(folder, name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func TestPromise_X1_PostgreSQLIsSpokenToInTLS13(t *testing.T) {
	t.Parallel()
	ctx, server, ca, stranger := t.Context(), testenv.PrivatePostgres(t), newAuthority(t), newAuthority(t)
	cert, key := ca.issue(server.Dir())
	info, err := os.Stat(filepath.Join(server.Dir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{cert, key} { // PostgreSQL does not run as root
		owner := info.Sys().(*syscall.Stat_t)
		if err := os.Chown(file, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := db.Open(ctx, server.URL(), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	set := func(statements ...string) {
		t.Helper()
		for _, s := range statements {
			if _, err := admin.Exec(ctx, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	set("CREATE DATABASE main", "CREATE DATABASE keys", "ALTER SYSTEM SET ssl_cert_file = '"+cert+"'", "ALTER SYSTEM SET ssl_key_file = '"+key+"'",
		"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
	address := func(database, host, rootcert string) string {
		_, port, _ := net.SplitHostPort(server.Addr())
		return fmt.Sprintf("postgres://postgres@%s/%s?sslmode=verify-full&sslrootcert=%s", net.JoinHostPort(host, port), database, rootcert)
	}
	// By both settings that name a database.
	open := func(host, rootcert string) (versions []string, errs []error) {
		for variable, database := range map[string]string{"DATABASE_URL": "main", "KEYS_DATABASE_URL": "keys"} {
			a := &App{log: slog.New(slog.DiscardHandler)}
			d, err := a.openDatabase(ctx, variable, address(database, host, rootcert), "test", db.Main())
			var version string
			if err == nil {
				err = d.Get(ctx, &version, `SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()`)
			}
			_ = a.Close()
			versions, errs = append(versions, version), append(errs, err)
		}
		return versions, errs
	}
	testenv.Eventually(t, 10*time.Second, func() bool { _, errs := open("127.0.0.1", ca.file); return errs[0] == nil }) // it has reloaded
	versions, errs := open("127.0.0.1", ca.file)
	if errs[0] != nil || errs[1] != nil || versions[0] != "TLSv1.3" || versions[1] != "TLSv1.3" {
		t.Errorf("1.3: %v, %v", versions, errs)
	}
	refused := func(what string, _ []string, errs []error) {
		t.Helper()
		for _, err := range errs {
			if err == nil {
				t.Error(what + " was accepted")
			}
		}
	}
	versions, errs = open("127.0.0.1", stranger.file)
	refused("another authority", versions, errs)
	versions, errs = open("localhost", ca.file)
	refused("another name", versions, errs)

	set("ALTER SYSTEM SET ssl_max_protocol_version = 'TLSv1.2'", "SELECT pg_reload_conf()")
	testenv.Eventually(t, 10*time.Second, func() bool { return handshake(server.Addr(), postgresHello, ca, tls.VersionTLS13) != nil })
	if err := handshake(server.Addr(), postgresHello, ca, tls.VersionTLS12); err != nil {
		t.Fatalf("the server should speak 1.2: %v", err)
	}
	versions, errs = open("127.0.0.1", ca.file)
	refused("1.2", versions, errs)
}

// postgresHello asks PostgreSQL for TLS.
func postgresHello(c net.Conn) error {
	if _, err := c.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}); err != nil {
		return err
	}
	answer := make([]byte, 1)
	if _, err := c.Read(answer); err != nil || answer[0] != 'S' {
		return fmt.Errorf("it answers %q, %w", answer, err)
	}
	return nil
}

// handshake says whether a server speaks this version, and no other: a refusal of
// ours proves something only where somebody else is accepted.
func handshake(address string, hello func(net.Conn) error, ca *authority, version uint16) error {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if hello != nil {
		if err := hello(c); err != nil {
			return err
		}
	}
	return tls.Client(c, &tls.Config{RootCAs: ca.pool, ServerName: "127.0.0.1", MinVersion: version, MaxVersion: version}).Handshake() //nolint:gosec // that is the test
}

func TestPromise_X1_RedisIsSpokenToInTLS13(t *testing.T) {
	t.Parallel()
	ctx, server, ca, stranger := t.Context(), testenv.PrivateRedis(t, false), newAuthority(t), newAuthority(t)
	cert, key := ca.issue(server.Dir())
	o, err := config.RedisOptions(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	admin := redis.NewClient(o)
	t.Cleanup(func() { _ = admin.Close() })
	var port string
	for range 5 { // somebody else may take the port
		_, port, _ = net.SplitHostPort(freePort(t))
		err = admin.Do(ctx, "CONFIG", "SET", "tls-cert-file", cert, "tls-key-file", key, "tls-auth-clients", "no", "tls-port", port).Err()
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("this redis-server speaks no TLS: it must be built with BUILD_TLS=yes, as Debian's is: %v", err)
	}
	ping := func(host, authorities string) error {
		a := &App{config: config.Config{RedisURL: "rediss://" + net.JoinHostPort(host, port), RedisCA: authorities}}
		defer func() { _ = a.Close() }()
		if err := a.openRedis(); err != nil {
			return err
		}
		return a.redis.Ping(ctx).Err()
	}
	address := net.JoinHostPort("127.0.0.1", port)
	examined := func(text, mend, authorities string) {
		t.Helper()
		doctor{c: config.Config{RedisURL: "rediss://" + address, RedisCA: authorities}, tell: func(f Finding) {
			if !f.Warn || !strings.Contains(f.Text, text) || !strings.Contains(f.Mend, mend) {
				t.Errorf("the doctor says: %+v", f)
			}
		}}.redis(ctx)
	}
	if err := ping("127.0.0.1", ca.file); err != nil {
		t.Errorf("1.3: %v", err)
	}
	for name, err := range map[string]error{
		"another authority": ping("127.0.0.1", stranger.file), "the system's authorities": ping("127.0.0.1", ""), "another name": ping("localhost", ca.file),
	} {
		if err == nil || !strings.Contains(err.Error(), "x509") {
			t.Errorf("%s: %v", name, err)
		}
	}
	examined("certificate", "ZIMAGE_REDIS_CA", stranger.file)
	if err := admin.ConfigSet(ctx, "tls-protocols", "TLSv1.2").Err(); err != nil {
		t.Fatal(err)
	}
	if err := handshake(address, nil, ca, tls.VersionTLS12); err != nil {
		t.Fatalf("the server should speak 1.2: %v", err)
	}
	if err := ping("127.0.0.1", ca.file); err == nil {
		t.Error("1.2 was accepted")
	}
	examined("TLS 1.3", "turn that on", ca.file)
}

func TestPromise_X1_SettingsSpeakTLS13ToTheObjectStore(t *testing.T) {
	t.Parallel()
	bucket, ca, stranger := testenv.S3(t), newAuthority(t), newAuthority(t)
	certFile, keyFile := ca.issue(t.TempDir())
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(newest uint16) string {
		server := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: bucket.Endpoint})
			r.Out.Host = r.In.Host // it is signed
		}})
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: newest} //nolint:gosec // that is the test
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	modern, old := serve(tls.VersionTLS13), serve(tls.VersionTLS12)
	if err := handshake(old, nil, ca, tls.VersionTLS12); err != nil {
		t.Fatalf("the server should speak 1.2: %v", err)
	}
	for _, tt := range []struct{ name, endpoint, authorities, want string }{
		{"1.3", modern, ca.file, ""},
		{"1.2", old, ca.file, "it needs version 1.3"},
		{"another authority", modern, stranger.file, "unknown authority"},
		{"the system's authorities", modern, "", "unknown authority"},
		{"another name", strings.Replace(modern, "127.0.0.1", "localhost", 1), ca.file, "not valid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := config.Load(map[string]string{
				"ZIMAGE_S3_ENDPOINT": tt.endpoint, "ZIMAGE_S3_BUCKET": bucket.Bucket, "ZIMAGE_S3_ACCESS_KEY": bucket.AccessKey,
				"ZIMAGE_S3_SECRET_KEY": bucket.SecretKey, "ZIMAGE_S3_CA": tt.authorities,
			})
			if err != nil {
				t.Fatal(err)
			}
			a := &App{config: c}
			err = a.openObjects(t.Context())
			if err == nil {
				err = a.objects.Check(t.Context())
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestPromise_X1_TheAPIIsServedInTLS13(t *testing.T) {
	t.Parallel()
	ca, dir := newAuthority(t), t.TempDir()
	cert, key := ca.issue(dir)
	address := freePort(t)
	a := open(t, config.RoleUp, map[string]string{
		"ZIMAGE_LISTEN": address, "ZIMAGE_TLS_CERT": cert, "ZIMAGE_TLS_KEY": key, "ZIMAGE_DATA": filepath.Join(dir, "data"),
	})
	a.start(t, config.RoleAPI)
	for version, accepted := range map[uint16]bool{tls.VersionTLS12: false, tls.VersionTLS13: true} {
		if err := handshake(address, nil, ca, version); (err == nil) != accepted {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
	doctor{c: a.config, role: config.RoleAPI, tell: func(f Finding) {
		if f.Bad || !strings.Contains(f.Text, "already answers") {
			t.Errorf("the doctor says: %+v", f)
		}
	}}.listeners(t.Context())
	res, err := http.Get("http://" + address + "/healthz") //nolint:noctx // a test
	if err == nil {
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("plain HTTP on the port of TLS answers %d", res.StatusCode)
		}
	}
}

// freePort is a loopback address where nobody listens.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// open opens a role on the settings over those of an empty installation.
func open(t *testing.T, role config.Role, settings map[string]string) *App {
	t.Helper()
	a, err := Open(t.Context(), settingsOf(t, role, settings), string(role), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func settingsOf(t *testing.T, role config.Role, settings map[string]string) config.Config {
	t.Helper()
	environ := map[string]string{"ZIMAGE_METRICS_LISTEN": "off", "ZIMAGE_DATA": filepath.Join(t.TempDir(), "data"), "ZIMAGE_SHUTDOWN_TIMEOUT": "5s"}
	for name, value := range settings {
		environ[name] = value
	}
	c, err := config.ForRole(environ, role)
	if err != nil {
		t.Fatal(err)
	}
	if role == config.RoleUp {
		if _, err := CreateRoots(c); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// start runs roles until the test ends.
func (a *App) start(t *testing.T, roles ...config.Role) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	started, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.Run(ctx, nil, func() { close(started) }, roles...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-started:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
}
