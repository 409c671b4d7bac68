package mail

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/e2e/proxy"
	"zimage/internal/jobs"
	"zimage/internal/subject"
	"zimage/internal/testenv"
)

// overSMTP is the transport of most tests: to a server on another machine, with
// STARTTLS and a password.
func overSMTP(s *server) func(*rig) Transport {
	return func(*rig) Transport {
		o := s.options()
		o.User, o.Password = user, password
		return NewSMTP(o)
	}
}

// withServer is stacks with a server of each's own.
func withServer(t *testing.T, test func(t *testing.T, r *rig, s *server)) {
	t.Helper()
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		s := newServer(t, serverOptions{secure: true, login: true})
		test(t, newRig(t, setup{db: d, transport: overSMTP(s)}), s)
	})
}

func TestPromise_S2_ANoticeReachesItsReader(t *testing.T) {
	withServer(t, func(t *testing.T, r *rig, s *server) {
		id := r.send(reset(ada))
		r.await(id, jobs.Succeeded)
		got := s.arrived()
		if len(got) != 1 || got[0].from != "no-reply@zimage.example" || got[0].to != ada {
			t.Fatalf("%d mails arrived: %+v", len(got), got)
		}
		m := parse(t, got[0].raw)
		for header, want := range map[string]string{
			"From": `"Z Image" <no-reply@zimage.example>`, "To": "<" + ada + ">", "Subject": "Set a new password",
			"Date": "Mon, 03 Mar 2031 12:00:00 +0000", "Message-Id": "<" + id + "@zimage.example>",
			"Auto-Submitted": "auto-generated", "Mime-Version": "1.0",
			// What must not be there.
			"User-Agent": "", "X-Mailer": "", "Sender": "", "Return-Path": "", "List-Unsubscribe": "", "Disposition-Notification-To": "",
		} {
			if got := m.header.Get(header); got != want {
				t.Errorf("%s is %q, want %q", header, got, want)
			}
		}
		if len(m.header) != 8 { // the seven above and Content-Type
			t.Errorf("other headers than ours: %v", m.header)
		}
		if fmt.Sprint(m.parts) != "[text/plain text/html]" {
			t.Errorf("parts: %v", m.parts)
		}
		for _, body := range []string{m.text, m.html} {
			for _, part := range []string{code, publicURL, "30 minutes from 3 March 2031, 12:00 UTC"} {
				if !strings.Contains(strings.ReplaceAll(body, "\n", " "), part) {
					t.Errorf("no %q in %s", part, body)
				}
			}
		}
		if host, _ := os.Hostname(); strings.Contains(string(got[0].raw), host) && host != "localhost" {
			t.Errorf("the mail names this machine: %s", got[0].raw)
		}
		r.counted(1, 0, 0, 0, 0)
	})
}

func TestPromise_S2_AnHourWithoutTheServerLosesNothing(t *testing.T) {
	withServer(t, func(t *testing.T, r *rig, s *server) {
		ends := start.Add(time.Hour)
		s.set(func(s *server) {
			s.onRcpt = func() error {
				if r.clock.Now().Before(ends) {
					return refusal(451)()
				}
				return nil
			}
		})
		id := r.send(reset(ada))
		j := r.tried(id, 1)
		for j.State == jobs.Waiting {
			if j.ErrorCode != CodeDeferred {
				t.Fatalf("it waits for %s", j.ErrorCode)
			}
			j = r.again(id)
		}
		if j.State != jobs.Succeeded || len(s.arrived()) != 1 {
			t.Fatalf("after %d attempts the job is %s and %d mails arrived", j.Attempt, j.State, len(s.arrived()))
		}
		late := r.clock.Now().Sub(start)
		if late < time.Hour || late > 2*time.Hour || j.Attempt < 7 || j.Attempt > 10 {
			t.Errorf("accepted %v later, at attempt %d", late, j.Attempt)
		}
		r.counted(1, j.Attempt-1, 0, 0, 0)
		if got := parse(t, s.arrived()[0].raw).header.Get("Date"); got != "Mon, 03 Mar 2031 12:00:00 +0000" {
			t.Errorf("it says that it was written at %s", got)
		}
	})
}

// Not a server that puts mails off, but none at all: nobody listens for an hour.
func TestPromise_S2_AnHourInWhichNobodyListensLosesNothing(t *testing.T) {
	withServer(t, func(t *testing.T, r *rig, s *server) {
		s.close()
		id, other := r.send(reset(ada)), r.send(reset("ben.canary@example.org"))
		j := r.tried(id, 1)
		for ends := start.Add(time.Hour); j.State == jobs.Waiting && r.clock.Now().Before(ends); j = r.again(id) {
			if j.ErrorCode != CodeBroken {
				t.Fatalf("it waits for %s", j.ErrorCode)
			}
			if got := r.row(id); got.AcceptedAt.Valid || got.Address == nil || got.Data == nil {
				t.Fatal("the mail is given up")
			}
		}
		if j.State != jobs.Waiting || r.clock.Now().Sub(start) > 2*time.Hour {
			t.Fatalf("after %v the job is %s", r.clock.Now().Sub(start), j.State)
		}
		s.open(s.port)
		for _, mail := range []string{id, other} {
			r.tried(mail, 1)
			for tries := 0; r.job(mail).State == jobs.Waiting && tries < 3; tries++ {
				r.again(mail)
			}
			r.await(mail, jobs.Succeeded)
			r.gone(mail, true)
		}
		got := map[string]int{}
		for _, l := range s.arrived() {
			got[l.to]++
		}
		if len(got) != 2 || got[ada] != 1 || got["ben.canary@example.org"] != 1 {
			t.Errorf("mails arrived: %v", got)
		}
		// Nor later.
		r.clock.Advance(24 * time.Hour)
		if err := r.queue.NewScheduler().Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.repeat(id)
		if n := len(s.arrived()); n != 2 {
			t.Errorf("%d mails arrived", n)
		}
		for _, word := range []string{ada, "127.0.0.1", "localhost"} {
			if strings.Contains(r.log.String(), word) {
				t.Errorf("the log holds %q", word)
			}
		}
	})
}

func TestPromise_S2_ADayWithoutTheServerEndsInAFailure(t *testing.T) {
	withServer(t, func(t *testing.T, r *rig, s *server) {
		s.set(func(s *server) { s.onRcpt = refusal(451) })
		id := r.send(reset(ada))
		j := r.tried(id, 1)
		for j.State == jobs.Waiting {
			j = r.again(id)
		}
		if took := r.clock.Now().Sub(start); j.State != jobs.Failed || j.Attempt != attempts || took < 20*time.Hour || took > 28*time.Hour {
			t.Errorf("%s after %d attempts and %v", j.State, j.Attempt, took)
		}
		r.gone(id, false)
		r.counted(0, attempts-1, 0, 1, 0)
	})
}

// gone checks that a mail has ended and that nothing of its content is left.
func (r *rig) gone(id string, ok bool) {
	r.t.Helper()
	got := r.row(id)
	if got.AcceptedAt.Valid != ok || got.FailedAt.Valid == ok || got.Address != nil || got.Data != nil {
		r.t.Errorf("accepted %v, failed %v, %d bytes of address and %d of data left",
			got.AcceptedAt.Valid, got.FailedAt.Valid, len(got.Address), len(got.Data))
	}
}

func TestPromise_S2_AConnectionCutAfterDATASendsTheSameMailAgain(t *testing.T) {
	withServer(t, func(t *testing.T, r *rig, s *server) {
		s.set(func(s *server) { s.cutAfter = true })
		id := r.send(reset(ada))
		if j := r.tried(id, 1); j.State != jobs.Waiting || j.ErrorCode != CodeBroken {
			t.Fatalf("the job is %s (%s)", j.State, j.ErrorCode)
		}
		if got := r.row(id); got.AcceptedAt.Valid || got.Address == nil {
			t.Fatal("taken for accepted without the server's word")
		}
		s.set(func(s *server) { s.cutAfter = false })
		if j := r.again(id); j.State != jobs.Succeeded {
			t.Fatalf("the job is %s (%s)", j.State, j.ErrorCode)
		}
		got := s.arrived()
		if len(got) != 2 {
			t.Fatalf("%d mails arrived", len(got))
		}
		first, second := parse(t, got[0].raw), parse(t, got[1].raw)
		for _, h := range []string{"Message-Id", "Date", "To", "Subject"} {
			if a, b := first.header.Get(h), second.header.Get(h); a == "" || a != b {
				t.Errorf("%s: %q, then %q", h, a, b)
			}
		}
		if first.text != second.text || first.html != second.html {
			t.Error("the second mail says something else")
		}
		r.gone(id, true)
	})
}

func TestPromise_S2_NothingIsSentAfterARecordedAcceptance(t *testing.T) {
	withServer(t, func(t *testing.T, r *rig, s *server) {
		id := r.send(reset(ada))
		r.await(id, jobs.Succeeded)
		r.gone(id, true)
		r.repeat(id)
		r.exec(`UPDATE jobs SET state = 'queued', attempt = 0 WHERE ref = ?`, id)
		r.await(id, jobs.Succeeded)
		if n := len(s.arrived()); n != 1 {
			t.Errorf("%d mails arrived", n)
		}
		r.counted(1, 0, 0, 0, 0)
	})
}

// The server has the mail and the database has the acceptance, but its answer
// never came.
func TestPromise_S2_ADatabaseThatAnswersNotAfterTheAcceptance(t *testing.T) {
	t.Parallel()
	address := testenv.DatabaseURL(t, db.Postgres)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.NewPostgres(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	u.Host = p.Addr()
	d, err := db.Open(context.Background(), u.String(), db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if _, err := d.Migrate(context.Background(), db.Main()); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, serverOptions{secure: true, login: true})
	r := newRig(t, setup{db: d, transport: overSMTP(s)})
	cut := p.CutReply(2, func(d proxy.Done) bool { return d.Committed("SET accepted_at") })
	id := r.send(reset(ada))
	testenv.Eventually(t, 20*time.Second, func() bool { return cut.Struck() == 1 && r.count(accepted) == 1 })
	r.await(id, jobs.Succeeded)
	r.gone(id, true)
	if n := len(s.arrived()); n != 1 {
		t.Errorf("%d mails arrived", n)
	}

	// The same with a database that is away for a while: the acceptance waits.
	written := make(chan struct{})
	s.set(func(s *server) {
		s.onData = func() error { <-written; p.Refuse(true); return nil }
	})
	second := r.send(reset(ada))
	close(written)
	testenv.Eventually(t, 20*time.Second, func() bool { return len(s.arrived()) == 2 })
	time.AfterFunc(500*time.Millisecond, func() { p.Refuse(false) })
	testenv.Eventually(t, 20*time.Second, func() bool { return r.count(accepted) == 2 })
	r.await(second, jobs.Succeeded)
	r.gone(second, true)
	if n := len(s.arrived()); n != 2 {
		t.Errorf("%d mails arrived", n)
	}
}

// Wherever in the conversation it is. Who stalls after DATA may have the mail: it
// comes again as the same.
func TestAServerThatStallsIsLeftAndTriedAgain(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]func(s *server, stall func() error){
		"before the receiver": func(s *server, stall func() error) { s.onRcpt = stall },
		"after DATA":          func(s *server, stall func() error) { s.onData = stall },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testenv.Databases(t, func(t *testing.T, d *db.DB) {
				s := newServer(t, serverOptions{secure: true})
				var stalls atomic.Bool
				stalls.Store(true)
				awake := make(chan struct{})
				s.set(func(s *server) {
					at(s, func() error {
						if stalls.Load() {
							<-awake
						}
						return nil
					})
				})
				r := newRig(t, setup{db: d, transport: func(*rig) Transport {
					return sending(func(ctx context.Context, e Envelope) error {
						o := s.options()
						if stalls.Load() {
							o.Timeout = 500 * time.Millisecond
						}
						return NewSMTP(o).Send(ctx, e)
					})
				}})
				id := r.send(reset(ada))
				j := r.tried(id, 1)
				stalls.Store(false)
				close(awake) // a mail that it has, it takes now
				if j.State != jobs.Waiting || j.ErrorCode != CodeBroken {
					t.Fatalf("the job is %s (%s)", j.State, j.ErrorCode)
				}
				if got := r.row(id); got.AcceptedAt.Valid || got.Address == nil {
					t.Fatal("taken for accepted without the server's word")
				}
				want := 1
				if name == "after DATA" {
					want = 2
					testenv.Eventually(t, 20*time.Second, func() bool { return len(s.arrived()) == 1 })
				}
				if j := r.again(id); j.State != jobs.Succeeded || len(s.arrived()) != want {
					t.Fatalf("the job is %s (%s), %d mails arrived", j.State, j.ErrorCode, len(s.arrived()))
				}
				for _, got := range s.arrived() {
					if is := parse(t, got.raw).header.Get("Message-Id"); !strings.Contains(is, id) {
						t.Errorf("the Message-ID is %q", is)
					}
				}
				r.gone(id, true)
			})
		})
	}
}

// Also after the operator has changed the sender and the address of the service.
func TestAMailThatIsTriedAgainIsTheSameMail(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		s := newServer(t, serverOptions{secure: true})
		r := newRig(t, setup{db: d, transport: func(*rig) Transport {
			return sending(func(ctx context.Context, e Envelope) error {
				if err := NewSMTP(s.options()).Send(ctx, e); err != nil {
					return err
				}
				if len(s.arrived()) == 1 {
					return &Fault{Code: CodeBroken} // its answer is lost
				}
				return nil
			})
		}})
		id := r.send(reset(ada))
		r.tried(id, 1)
		r.mail.o.From, r.mail.o.PublicURL = "post@other.example", "https://other.example"
		if j := r.again(id); j.State != jobs.Succeeded || len(s.arrived()) != 2 {
			t.Fatalf("the job is %s (%s), %d mails arrived", j.State, j.ErrorCode, len(s.arrived()))
		}
		var ids, senders []string
		for _, got := range s.arrived() {
			header := parse(t, got.raw).header
			ids, senders = append(ids, header.Get("Message-Id")), append(senders, header.Get("From"))
		}
		if want := "<" + id + "@zimage.example>"; ids[0] != want || ids[1] != want || senders[0] == senders[1] {
			t.Errorf("the mails are %v from %v, want %s", ids, senders, want)
		}
	})
}

func TestTheHostOfAMessageID(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"https://images.example.org": "images.example.org", "http://127.0.0.1:8080": "127.0.0.1", "https://[2001:db8::1]:8443": "[2001:db8::1]", "": "", "://": "",
	} {
		if got := host(address); got != want {
			t.Errorf("%q gives %q, want %q", address, got, want)
		}
	}
}

func TestAWorkerThatStopsGivesTheMailBack(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		s := newServer(t, serverOptions{secure: true})
		stalled := make(chan struct{})
		once := sync.OnceFunc(func() { close(stalled) })
		s.set(func(s *server) { s.onRcpt = func() error { once(); <-s.hang; return nil } })
		r := newRig(t, setup{db: d, idle: true, transport: func(*rig) Transport {
			o := s.options()
			o.Timeout = time.Hour
			return NewSMTP(o)
		}})
		stop := r.work()
		id := r.send(reset(ada))
		<-stalled
		stop() // a second or so: the conversation is cut off
		if j := r.job(id); j.State != jobs.Queued || j.MaxAttempts-j.Attempt != attempts {
			t.Errorf("the job is %s, and %d attempts are left", j.State, j.MaxAttempts-j.Attempt)
		}
		r.counted(0, 0, 0, 0, 0)
		s.set(func(s *server) { s.onRcpt = nil })
		r.work()
		r.await(id, jobs.Succeeded)
	})
}

func TestARefusalForGoodIsFinal(t *testing.T) {
	withServer(t, func(t *testing.T, r *rig, s *server) {
		for n, change := range []func(*server){
			func(s *server) { s.onRcpt = refusal(550) },
			func(s *server) { s.onRcpt, s.onData = nil, refusal(554) },
		} {
			s.set(change)
			id := r.send(reset(ada))
			if j := r.tried(id, 1); j.State != jobs.Failed || j.ErrorCode != codeRefused || j.Attempt != 1 {
				t.Errorf("the job is %s (%s) at attempt %d", j.State, j.ErrorCode, j.Attempt)
			}
			r.gone(id, false)
			r.counted(0, 0, n+1, 0, 0)
			r.repeat(id)
			if len(s.arrived()) != 0 || s.rcpts != n+1 {
				t.Errorf("tried again: %d receivers named", s.rcpts)
			}
		}
	})
}

// What is wrong between the operator and the server is not the mail's fault: it
// goes out once that is mended.
func TestWhatTheOperatorCanMendIsTriedAgain(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		s := newServer(t, serverOptions{secure: true, login: true})
		var given atomic.Value // the password
		r := newRig(t, setup{db: d, transport: func(*rig) Transport {
			return sending(func(ctx context.Context, e Envelope) error {
				o := s.options()
				o.User, o.Password = user, given.Load().(string)
				return NewSMTP(o).Send(ctx, e)
			})
		}})
		for n, c := range []struct {
			name, code string
			change     func(*server)
			password   string
		}{
			{name: "password", code: CodeLogin, password: "wrong", change: func(*server) {}},
			{name: "sender", code: codeServer, password: password, change: func(s *server) { s.onMail = refusal(553) }},
			{name: "unauthenticated", code: CodeLogin, password: password, change: func(s *server) { s.onRcpt = refusal(530) }},
			{name: "busy", code: CodeDeferred, password: password, change: func(s *server) { s.onMail = refusal(421) }},
		} {
			s.set(c.change)
			given.Store(c.password)
			id := r.send(reset(ada))
			if j := r.tried(id, 1); j.State != jobs.Waiting || j.ErrorCode != c.code || len(s.arrived()) != n {
				t.Fatalf("%s: the job is %s (%s), %d mails arrived", c.name, j.State, j.ErrorCode, len(s.arrived()))
			}
			s.set(func(s *server) { s.onMail, s.onRcpt = nil, nil })
			given.Store(password)
			if j := r.again(id); j.State != jobs.Succeeded || len(s.arrived()) != n+1 {
				t.Errorf("%s, mended: the job is %s (%s)", c.name, j.State, j.ErrorCode)
			}
		}
	})
}

// sending is a transport of one function.
type sending func(context.Context, Envelope) error

func (f sending) Send(ctx context.Context, e Envelope) error { return f(ctx, e) }

func TestNobodyIsWrittenToWhoMayNotBe(t *testing.T) {
	confirm := Message{Template: ConfirmSignUp, Data: map[string]string{"Code": code}}
	cases := []struct {
		name   string
		change string // of the subject's row
		forget bool   // its key
		msg    Message
		sent   bool
	}{
		{name: "active", msg: reset(""), sent: true},
		{name: "restricted", change: `restricted_at = 1`, msg: reset(""), sent: true},
		{name: "suspended", change: `suspended_at = 1`, msg: Message{Template: AccountSuspended, Data: map[string]string{"Reason": "spam"}}, sent: true},
		{name: "closing", change: `state = 'closing'`, msg: reset("")},
		{name: "closing, told of it", change: `state = 'closing'`, msg: Message{Template: AccountClosed}, sent: true},
		{name: "erased", change: `state = 'erased'`, msg: reset("")},
		{name: "key destroyed", forget: true, msg: reset("")},
		{name: "key destroyed, signing up", forget: true, msg: confirm},
		{name: "no account yet", change: `id = 'sub_other' || id`, msg: confirm, sent: true},
		{name: "no account", change: `id = 'sub_other' || id`, msg: reset("")},
	}
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		s := newServer(t, serverOptions{secure: true})
		r := newRig(t, setup{db: d, idle: true, transport: func(*rig) Transport { return NewSMTP(s.options()) }})
		ids, want := map[string]string{}, 0
		for n, c := range cases {
			who := fmt.Sprintf("sub_%d", n)
			r.person(who)
			c.msg.Subject, c.msg.To = who, who+"@example.org"
			ids[c.name] = r.send(c.msg)
			if c.change != "" {
				r.exec(`UPDATE subjects SET `+c.change+` WHERE id = ?`, who)
			}
			if c.forget {
				if err := r.vault.Destroy(ctx, who); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.work()
		for n, c := range cases {
			r.await(ids[c.name], jobs.Succeeded)
			r.gone(ids[c.name], c.sent)
			arrived := slices.ContainsFunc(s.arrived(), func(l letterbox) bool { return l.to == fmt.Sprintf("sub_%d@example.org", n) })
			if arrived != c.sent {
				t.Errorf("%s: arrived %v", c.name, arrived)
			}
			if c.sent {
				want++
			}
		}
		if len(s.arrived()) != want {
			t.Errorf("%d mails arrived, want %d", len(s.arrived()), want)
		}
		r.counted(want, 0, 0, 0, len(cases)-want)
	})
}

func TestACanceledJobForgetsItsMail(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, setup{db: d, idle: true, transport: func(*rig) Transport { return nil }})
		id := r.send(reset(ada))
		err := d.Tx(context.Background(), func(tx *db.Tx) error {
			_, err := r.queue.Cancel(context.Background(), tx, r.job(id).ID, jobs.AtWish)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		r.gone(id, false)
		r.counted(0, 0, 0, 0, 1)
	})
}

func TestAMailFollowsItsTransaction(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, setup{db: d, idle: true, transport: func(*rig) Transport { return nil }})
		no := errors.New("no")
		err := d.Tx(context.Background(), func(tx *db.Tx) error {
			if err := r.mail.Send(context.Background(), tx, reset(ada)); err != nil {
				return err
			}
			return no
		})
		var n int
		if err := d.Get(context.Background(), &n, `SELECT (SELECT count(*) FROM mails) + (SELECT count(*) FROM jobs)`); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, no) || n != 0 {
			t.Errorf("%v, and %d rows are left", err, n)
		}
	})
}

// What identifies anybody stands nowhere in plain, before and after.
func TestPromise_S2_NothingOfAMailIsReadableOutsideIt(t *testing.T) {
	t.Parallel()
	testenv.DatabaseURLs(t, func(t *testing.T, address string) {
		ctx := context.Background()
		d, err := db.Open(ctx, address, db.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		if _, err := d.Migrate(ctx, db.Main()); err != nil {
			t.Fatal(err)
		}
		s := newServer(t, serverOptions{secure: true, login: true})
		s.set(func(s *server) { s.onRcpt = refusal(451) })
		r := newRig(t, setup{db: d, transport: overSMTP(s)})
		find := func() (found []string) {
			t.Helper()
			places := map[string]string{"log": r.log.String()}
			if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
				for _, end := range []string{"", "-wal"} {
					raw, err := os.ReadFile(path + end)
					if err != nil && !errors.Is(err, os.ErrNotExist) {
						t.Fatal(err)
					}
					places["file"+end] = string(raw)
				}
			} else {
				for _, table := range []string{"mails", "jobs", "job_turns"} {
					var rows []string
					if err := d.Select(ctx, &rows, `SELECT x::text FROM `+table+` x`); err != nil {
						t.Fatal(err)
					}
					places[table] = strings.Join(rows, "\n")
				}
			}
			for place, text := range places {
				for _, canary := range []string{ada, "canary", code, password, theirs} {
					if strings.Contains(text, canary) || strings.Contains(text, hex.EncodeToString([]byte(canary))) {
						found = append(found, canary+" in "+place)
					}
				}
			}
			return found
		}
		search := func(when string) {
			t.Helper()
			for _, found := range find() {
				t.Errorf("%s: %s", when, found)
			}
		}
		id := r.send(reset(ada))
		r.tried(id, 1)
		search("waiting")
		r.exec(`UPDATE mails SET template = ? WHERE id = ?`, "canary-"+code, id)
		if len(find()) == 0 {
			t.Fatal("the search does not find what is there")
		}
		r.exec(`UPDATE mails SET template = ? WHERE id = ?`, ResetPassword, id)
		s.set(func(s *server) { s.onRcpt = nil })
		r.again(id)
		r.gone(id, true)
		if d.Dialect() == db.SQLite { // what was planted stands in the file until then
			r.exec(`VACUUM`)
			r.exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
		}
		search("accepted")
		s.set(func(s *server) { s.onRcpt = refusal(550) })
		r.await(r.send(reset(ada)), jobs.Failed)
		search("refused")
	})
}

func TestSendRefusesWhatNoAttemptCouldSend(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, setup{db: d, idle: true, transport: func(*rig) Transport { return nil }})
		for name, msg := range map[string]Message{
			"template":         {To: ada, Template: "advertising"},
			"missing data":     {To: ada, Template: ResetPassword},
			"empty data":       {To: ada, Template: ResetPassword, Data: map[string]string{"Code": ""}},
			"foreign data":     {To: ada, Template: EmailChanged, Data: map[string]string{"New": "x@example.org"}},
			"the address's":    {To: ada, Template: EmailChanged, Data: map[string]string{urlKey: "https://evil.example"}},
			"no address":       {Template: EmailChanged},
			"a name":           {To: "Ada <" + ada + ">", Template: EmailChanged},
			"two addresses":    {To: ada + ", eve@example.org", Template: EmailChanged},
			"another header":   {To: ada + "\r\nBcc: eve@example.org", Template: EmailChanged},
			"another command":  {To: ada + ">\r\nRCPT TO:<eve@example.org", Template: EmailChanged},
			"a bare line feed": {To: "ada\n@example.org", Template: EmailChanged},
			"NUL":              {To: "ada\x00@example.org", Template: EmailChanged},
			"quoted":           {To: "\"ada\r\nX: y\"@example.org", Template: EmailChanged},
			"somebody unknown": {To: ada, Template: EmailChanged, Subject: "sub_none"},
		} {
			if msg.Subject == "" {
				msg.Subject = "sub_ada"
			}
			err := d.Tx(context.Background(), func(tx *db.Tx) error { return r.mail.Send(context.Background(), tx, msg) })
			if err == nil {
				t.Errorf("%s: accepted", name)
			} else if strings.Contains(err.Error(), "example") {
				t.Errorf("%s: the error quotes: %v", name, err)
			}
		}
	})
}

// A hold on a mail keeps that it was written and what became of it. What it said,
// and to whom, is there to be sent and goes with that.
func TestAHoldOnAMailKeepsItsRowAndNotItsWords(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		refuses := map[string]bool{}
		r := newRig(t, setup{db: d, idle: true, transport: func(*rig) Transport {
			return sending(func(_ context.Context, e Envelope) error {
				if refuses[e.ID] {
					return &Fault{Code: codeRefused, Final: true}
				}
				return nil
			})
		}})
		sent, refused := r.send(reset(ada)), r.send(reset(ada))
		refuses[refused] = true
		for _, id := range []string{sent, refused} {
			err := d.Tx(ctx, func(tx *db.Tx) error {
				_, err := subject.Hold(ctx, tx, "sub_ada", "mails", id, "case 7", r.clock.Now())
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		r.work()
		r.await(sent, jobs.Succeeded)
		r.gone(sent, true)
		r.await(refused, jobs.Failed)
		r.gone(refused, false)
	})
}

func TestTheAttemptsSpanADay(t *testing.T) {
	t.Parallel()
	for range 100 {
		var all time.Duration
		for n := 1; n < attempts; n++ {
			wait := backoff(n)
			if n == 1 && (wait < 4*time.Second || wait > 6*time.Second) || wait > 4*time.Hour+24*time.Minute {
				t.Fatalf("after attempt %d: %v", n, wait)
			}
			all += wait
		}
		if all < 20*time.Hour || all > 28*time.Hour {
			t.Fatalf("all attempts within %v", all)
		}
	}
	if a, b := backoff(10), backoff(10); a == b {
		t.Error("no jitter")
	}
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		path := filepath.Join(t.TempDir(), "data", "mail")
		var dir *Directory
		r := newRig(t, setup{db: d, transport: func(r *rig) Transport { dir = NewDirectory(path, r.clock); return dir }})
		if n, err := dir.Sweep(); n != 0 || err != nil {
			t.Fatalf("before the first mail: %d, %v", n, err)
		}
		id := r.send(reset(ada))
		r.await(id, jobs.Succeeded)
		r.gone(id, true)
		file := filepath.Join(path, id+".eml")
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if m := parse(t, raw); m.header.Get("To") != "<"+ada+">" || !strings.Contains(m.text, code) || m.header.Get("Message-Id") != "<"+id+"@zimage.example>" {
			t.Errorf("the file holds %s", raw)
		}
		for name, want := range map[string]os.FileMode{file: 0o600, path: 0o700 | os.ModeDir} {
			if info, err := os.Stat(name); err != nil || info.Mode() != want {
				t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
			}
		}
		// The same id is the same file, whatever another attempt would write.
		e := Envelope{ID: id, From: "a@b.example", To: ada, At: start, Subject: "other", Text: "other", HTML: "other"}
		if err := dir.Send(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(file); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("the file has changed: %v", err)
		}
		if entries, err := os.ReadDir(path); err != nil || len(entries) != 1 {
			t.Errorf("the folder holds %v, %v", entries, err)
		}

		// A day later it is gone, with what an attempt left that did not end, and
		// nothing else is.
		for name, age := range map[string]time.Duration{"left.draft": 0, "notes.txt": 0, "new.eml": 2 * time.Hour} {
			if err := os.WriteFile(filepath.Join(path, name), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(filepath.Join(path, name), start.Add(age), start.Add(age)); err != nil {
				t.Fatal(err)
			}
		}
		r.clock.Advance(23 * time.Hour)
		if n, err := dir.Sweep(); n != 0 || err != nil {
			t.Errorf("%d files removed after 23 hours, %v", n, err)
		}
		r.clock.Advance(time.Hour)
		if n, err := dir.Sweep(); n != 2 || err != nil {
			t.Errorf("%d files removed after 24 hours, %v", n, err)
		}
		if entries, err := os.ReadDir(path); err != nil || len(entries) != 2 || entries[0].Name() != "new.eml" || entries[1].Name() != "notes.txt" {
			t.Errorf("left are %v, %v", entries, err)
		}
		if strings.Contains(r.log.String(), ada) {
			t.Error("the log names the receiver")
		}
	})
}

func TestADirectoryThatCannotBeWrittenIsTriedAgain(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		path := filepath.Join(t.TempDir(), "mail")
		if err := os.WriteFile(path, nil, 0o600); err != nil { // a file stands in the folder's place
			t.Fatal(err)
		}
		r := newRig(t, setup{db: d, transport: func(r *rig) Transport { return NewDirectory(path, r.clock) }})
		id := r.send(reset(ada))
		if j := r.tried(id, 1); j.State != jobs.Waiting || j.ErrorCode != codeFolder {
			t.Fatalf("the job is %s (%s)", j.State, j.ErrorCode)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if j := r.again(id); j.State != jobs.Succeeded {
			t.Errorf("the job is %s (%s)", j.State, j.ErrorCode)
		}
	})
}

func TestTendSweepsAtOnceAndEndsWithItsContext(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	d, _ := testenv.Database(t, db.SQLite)
	r := newRig(t, setup{db: d, idle: true, transport: func(r *rig) Transport { return NewDirectory(path, r.clock) }})
	file := filepath.Join(path, "mail_old.eml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, start, start); err != nil {
		t.Fatal(err)
	}
	r.clock.Advance(25 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.mail.Tend(ctx) }()
	testenv.Eventually(t, 10*time.Second, func() bool { _, err := os.Stat(file); return os.IsNotExist(err) })
	cancel()
	<-ended
}
