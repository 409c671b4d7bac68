package mail

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	smtpserver "github.com/emersion/go-smtp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/subject"
	"zimage/internal/testenv"
	"zimage/internal/vault"
)

var start = time.Date(2031, 3, 3, 12, 0, 0, 0, time.UTC)

const publicURL = "https://zimage.example"

// rig is a mailer on real parts, with one worker. Its clock stands still.
type rig struct {
	t     *testing.T
	db    *db.DB
	clock *clock.Clock
	vault *vault.Vault
	queue *jobs.Queue
	mail  *Mailer
	log   *testenv.Lines

	registry *prometheus.Registry
}

type setup struct {
	transport func(*rig) Transport
	db        *db.DB // nil: open one
	idle      bool   // no worker
}

func newRig(t *testing.T, s setup) *rig {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r := &rig{t: t, db: s.db, clock: clock.Manual(start), log: &testenv.Lines{}, registry: prometheus.NewRegistry()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	dir := t.TempDir()
	keys, err := db.Open(ctx, "sqlite:"+filepath.Join(dir, "keys.db"), db.Options{})
	must(err)
	t.Cleanup(func() { _ = keys.Close() })
	_, err = keys.Migrate(ctx, vault.Migrations())
	must(err)
	roots, err := vault.CreateRoots(filepath.Join(dir, "roots"))
	must(err)
	r.vault, err = vault.Open(ctx, keys, roots, r.clock)
	must(err)
	address, err := redis.ParseURL(testenv.Redis(t))
	must(err)
	client := redis.NewClient(address)
	t.Cleanup(func() { _ = client.Close() })
	measured := jobs.NewMetrics(nil)
	bell := jobs.NewBell(client, measured)
	t.Cleanup(bell.Close)
	r.queue = jobs.New(r.db, r.clock, bell, measured, log)
	r.mail = New(Options{DB: r.db, Vault: r.vault, Queue: r.queue, Clock: r.clock, Log: log, Registry: r.registry,
		Transport: s.transport(r), From: "Z Image <no-reply@zimage.example>", PublicURL: publicURL})
	r.person("sub_ada")
	if !s.idle {
		r.work()
	}
	return r
}

// person adds an active subject with keys.
func (r *rig) person(id string) {
	r.t.Helper()
	ctx := context.Background()
	if err := r.vault.Create(ctx, id); err != nil {
		r.t.Fatal(err)
	}
	if err := r.db.Tx(ctx, func(tx *db.Tx) error { return subject.New(ctx, tx, id, r.clock.Now()) }); err != nil {
		r.t.Fatal(err)
	}
}

// work runs a worker until the test ends or stop is called.
func (r *rig) work() (stop func()) {
	w := r.queue.NewWorker([]jobs.Lane{{Name: Lane, Slots: jobs.NewFixed(2)}, {Name: jobs.Housekeeping, Slots: jobs.NewFixed(1)}}, 10*time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := w.Run(ctx, nil); err != nil {
			r.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); work.Wait() })
	r.t.Cleanup(stop)
	return stop
}

// send writes a mail and returns its id.
func (r *rig) send(msg Message) string {
	r.t.Helper()
	ctx := context.Background()
	if err := r.db.Tx(ctx, func(tx *db.Tx) error { return r.mail.Send(ctx, tx, msg) }); err != nil {
		r.t.Fatal(err)
	}
	var id string
	if err := r.db.Get(ctx, &id, `SELECT id FROM mails ORDER BY id DESC LIMIT 1`); err != nil {
		r.t.Fatal(err)
	}
	r.clock.Advance(time.Millisecond) // ids of one millisecond have no order
	return id
}

// reset is the mail that most tests send.
func reset(to string) Message {
	return Message{Subject: "sub_ada", To: to, Template: ResetPassword, Data: map[string]string{"Code": code}}
}

const (
	code = "C4N4RY-7F3A-99QX"
	ada  = "ada.canary@example.org"
)

func (r *rig) row(id string) row {
	r.t.Helper()
	var got row
	err := r.db.Get(context.Background(), &got, `SELECT id, subject, template, address, data, created_at, accepted_at, failed_at FROM mails WHERE id = ?`, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

// job is the newest job about the mail.
func (r *rig) job(mail string) jobs.Job {
	r.t.Helper()
	var id string
	if err := r.db.Get(context.Background(), &id, `SELECT id FROM jobs WHERE ref = ? ORDER BY id DESC LIMIT 1`, mail); err != nil {
		r.t.Fatal(err)
	}
	j, err := jobs.Find(context.Background(), r.db, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return j
}

func (r *rig) await(mail string, state jobs.State) jobs.Job {
	r.t.Helper()
	testenv.Eventually(r.t, 20*time.Second, func() bool { return r.job(mail).State == state })
	return r.job(mail)
}

// tried waits until the nth attempt has come to an end.
func (r *rig) tried(mail string, n int) jobs.Job {
	r.t.Helper()
	testenv.Eventually(r.t, 20*time.Second, func() bool {
		j := r.job(mail)
		return j.Attempt >= n && j.State != jobs.Running && j.State != jobs.Queued
	})
	return r.job(mail)
}

// again moves the clock to the job's next attempt and lets it come to an end.
func (r *rig) again(mail string) jobs.Job {
	r.t.Helper()
	j := r.job(mail)
	if j.State != jobs.Waiting {
		r.t.Fatalf("the job is %s (%s), not waiting", j.State, j.ErrorCode)
	}
	// A worker at another mail would have been silent for as long as the clock moves.
	testenv.Eventually(r.t, 20*time.Second, func() bool {
		var busy int
		if err := r.db.Get(context.Background(), &busy, `SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')`); err != nil {
			r.t.Fatal(err)
		}
		return busy == 0
	})
	r.clock.Advance(max(0, time.Duration(j.RunAfter-r.clock.Millis())*time.Millisecond))
	if err := r.queue.NewScheduler().Reconcile(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	return r.tried(mail, j.Attempt+1)
}

// repeat makes another job for a mail, as if its first one had been lost.
func (r *rig) repeat(mail string) {
	r.t.Helper()
	ctx := context.Background()
	var id string
	err := r.db.Tx(ctx, func(tx *db.Tx) error {
		j, err := r.queue.Add(ctx, tx, jobs.NewJob{Kind: KindSend, Ref: mail})
		id = j.ID
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	testenv.Eventually(r.t, 20*time.Second, func() bool {
		j, err := jobs.Find(ctx, r.db, id)
		if err != nil {
			r.t.Fatal(err)
		}
		return j.State == jobs.Succeeded
	})
}

// count is what the metrics say of an outcome.
func (r *rig) count(outcome string) int {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var n float64
	for _, f := range families {
		if f.GetName() != "zimage_mails_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "outcome" && l.GetValue() == outcome {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return int(n)
}

// counted waits until the metrics say so: they follow the commit.
func (r *rig) counted(nAccepted, nRetried, nRefused, nFailed, nDropped int) {
	r.t.Helper()
	want := [5]int{nAccepted, nRetried, nRefused, nFailed, nDropped}
	var got [5]int
	for range 400 {
		for i, outcome := range []string{accepted, retried, refused, failed, dropped} {
			got[i] = r.count(outcome)
		}
		if got == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.t.Errorf("counted %v as accepted, retried, refused, failed, dropped; want %v", got, want)
}

func (r *rig) exec(query string, args ...any) {
	r.t.Helper()
	if _, err := r.db.Exec(context.Background(), query, args...); err != nil {
		r.t.Fatal(err)
	}
}

// server is a real mail server, with bad days on demand.
type server struct {
	t     *testing.T
	port  int
	roots *x509.CertPool
	open  func(port int) // listens there, 0 for any
	close func()         // nobody listens, and no connection is left

	mu       sync.Mutex
	got      []letterbox
	rcpts    int
	froms    int
	logins   []string
	onRcpt   func() error
	onMail   func() error
	onData   func() error // once the mail is read
	cutAfter bool         // the connection ends instead of the answer to DATA
	hang     chan struct{}
}

// letterbox is what arrived.
type letterbox struct {
	from, to string
	raw      []byte
}

type serverOptions struct {
	secure   bool   // offers STARTTLS
	implicit bool   // speaks TLS at once
	newest   uint16 // TLS version; 0: any
	name     string // in the certificate; default localhost
	login    bool   // asks for user and password
	mechs    []string
}

const (
	user     = "mailer"
	password = "pa55-canary"
	// theirs stands for the words of servers, which quote what they like.
	theirs = "s3rv3r-words"
)

// newServer starts one on loopback.
func newServer(t *testing.T, o serverOptions) *server {
	t.Helper()
	s := &server{t: t, hang: make(chan struct{})}
	config := &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: o.newest}
	s.roots, config.Certificates = certificate(t, cmp.Or(o.name, "localhost"))
	s.open = func(port int) {
		srv := smtpserver.NewServer(smtpserver.BackendFunc(func(c *smtpserver.Conn) (smtpserver.Session, error) {
			base := &session{s: s, c: c}
			if o.login {
				return &loginSession{base, o}, nil
			}
			return base, nil
		}))
		srv.Domain, srv.AllowInsecureAuth = "mx.example", true
		srv.ErrorLog = log.New(io.Discard, "", 0)
		if o.secure {
			srv.TLSConfig = config
		}
		listener := listen(t, port)
		s.port = listener.Addr().(*net.TCPAddr).Port
		if o.implicit {
			listener = tls.NewListener(listener, config)
		}
		var work sync.WaitGroup
		work.Go(func() { _ = srv.Serve(listener) })
		s.close = func() { _ = srv.Close(); work.Wait() }
	}
	s.open(0)
	t.Cleanup(func() { close(s.hang); s.close() })
	return s
}

// listen takes a port on loopback, for 0 one below those of outgoing connections:
// none of them takes it while the server is away.
func listen(t *testing.T, port int) net.Listener {
	t.Helper()
	for range 100 {
		at := port
		if at == 0 {
			at = 15000 + mrand.IntN(17000) //nolint:gosec // no secret
		}
		if l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(at))); err == nil {
			return l
		}
	}
	t.Fatal("no free port")
	return nil
}

// options reach the server as one on another machine, by the name localhost.
func (s *server) options() SMTPOptions {
	return SMTPOptions{Host: "localhost", Port: s.port, Roots: s.roots, Timeout: 20 * time.Second}
}

// arrived is what the server has accepted so far.
func (s *server) arrived() []letterbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]letterbox(nil), s.got...)
}

func (s *server) set(change func(s *server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

type session struct {
	s        *server
	c        *smtpserver.Conn
	from, to string
}

func (x *session) Mail(from string, _ *smtpserver.MailOptions) error {
	x.s.mu.Lock()
	x.s.froms++
	f := x.s.onMail
	x.s.mu.Unlock()
	x.from = from
	return run(f)
}

func (x *session) Rcpt(to string, _ *smtpserver.RcptOptions) error {
	x.s.mu.Lock()
	x.s.rcpts++
	f := x.s.onRcpt
	x.s.mu.Unlock()
	x.to = to
	return run(f)
}

func (x *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	x.s.mu.Lock()
	f, cut := x.s.onData, x.s.cutAfter
	x.s.mu.Unlock()
	if err := run(f); err != nil {
		return err
	}
	x.s.mu.Lock()
	x.s.got = append(x.s.got, letterbox{x.from, x.to, raw})
	x.s.mu.Unlock()
	if cut {
		_ = x.c.Conn().Close()
	}
	return nil
}

func run(f func() error) error {
	if f == nil {
		return nil
	}
	return f()
}

func (x *session) Reset()        {}
func (x *session) Logout() error { return nil }

// loginSession asks who the client is first.
type loginSession struct {
	*session
	o serverOptions
}

func (x *loginSession) AuthMechanisms() []string {
	if x.o.mechs != nil {
		return x.o.mechs
	}
	return []string{sasl.Plain}
}

func (x *loginSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, u, p string) error {
		x.s.mu.Lock()
		x.s.logins = append(x.s.logins, u+":"+p)
		x.s.mu.Unlock()
		if u != user || p != password {
			return &smtpserver.SMTPError{Code: 535, EnhancedCode: smtpserver.EnhancedCode{5, 7, 8}, Message: theirs}
		}
		return nil
	}), nil
}

// refusal is a server's word.
func refusal(reply int) func() error {
	return func() error {
		return &smtpserver.SMTPError{Code: reply, EnhancedCode: smtpserver.EnhancedCode{reply / 100, 0, 0},
			Message: fmt.Sprintf("%s about <%s>", theirs, ada)}
	}
}

// certificate makes one for a name, and the authority that vouches for it.
func certificate(t *testing.T, name string) (*x509.CertPool, []tls.Certificate) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tests"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &root.PublicKey, root)
	must(err)
	authority, err = x509.ParseCertificate(der)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: authority.NotBefore, NotAfter: authority.NotAfter}
	der, err = x509.CreateCertificate(rand.Reader, leaf, authority, &key.PublicKey, root)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	return pool, []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
}

// read is a mail as its receiver's program reads it.
type read struct {
	header     netmail.Header
	text, html string
	parts      []string // content types
}

func parse(t *testing.T, raw []byte) read {
	t.Helper()
	m, err := netmail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/alternative" {
		t.Fatalf("the mail is %s: %v", kind, err)
	}
	got := read{header: m.Header}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		if part.Header.Get("Content-Transfer-Encoding") != "quoted-printable" {
			t.Fatalf("a part is %s", part.Header.Get("Content-Transfer-Encoding"))
		}
		body, err := io.ReadAll(quotedprintable.NewReader(part))
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(part.Header.Get("Content-Type"))
		got.parts = append(got.parts, kind)
		switch text := strings.ReplaceAll(string(body), "\r\n", "\n"); kind {
		case "text/plain":
			got.text = text
		case "text/html":
			got.html = text
		}
	}
}
