package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/mail"
	"zimage/internal/problem"
	"zimage/internal/subject"
)

func code(t *testing.T, what string, err error, want problem.Code) {
	t.Helper()
	if problem.CodeOf(err) != want || err == nil {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

func verifies(t *testing.T, secret string, c call) bool {
	t.Helper()
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	return w.VerifyIgnoringTimestamp([]byte(c.body), c.header) == nil // the rig's clock is another
}

// What is sent verifies with the public library, by the old secret and the new one
// while both are good.
func TestCallsAreSignedByTheRulesOfStandardWebhooks(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, nil)
		e, first := r.endpoint(v.URL)
		r.succeeds("gen_1")
		r.until("the first call", func() bool { return len(v.got()) == 1 })
		c := v.got()[0]
		if !verifies(t, first, c) || c.header.Get("Content-Type") != "application/json" || c.header.Get("webhook-timestamp") != fmt.Sprint(start.Unix()) {
			t.Errorf("%v", c.header)
		}
		other, _, err := r.service.Create(context.Background(), "sub_ada", Change{URL: &v.URL, Events: &[]string{"export.ready"}})
		r.must(err)
		_, foreign, err := r.service.Rotate(context.Background(), "sub_ada", other.ID)
		r.must(err)
		if tampered := (call{c.header, c.body + " "}); verifies(t, foreign, c) || verifies(t, first, tampered) {
			t.Error("anything verifies")
		}
		rotated, second, err := r.service.Rotate(context.Background(), "sub_ada", e.ID)
		r.must(err)
		if second == first || !rotated.OldSecret.Equal(r.clock.Now().Add(24*time.Hour)) {
			t.Errorf("%+v", rotated)
		}
		r.succeeds("gen_2")
		r.until("the second call", func() bool { return len(v.got()) == 2 })
		if c := v.got()[1]; !verifies(t, first, c) || !verifies(t, second, c) || len(strings.Fields(c.header.Get("webhook-signature"))) != 2 {
			t.Errorf("%v", c.header)
		}
		r.idle()
		r.pass(24*time.Hour + time.Second)
		r.succeeds("gen_3")
		r.until("the third call", func() bool { return len(v.got()) == 3 })
		if c := v.got()[2]; verifies(t, first, c) || !verifies(t, second, c) || !r.look(e.ID).OldSecret.IsZero() {
			t.Error("the old secret still signs")
		}
	})
}

// Nothing leaves before its owner says so, and the prompt not before they say that.
func TestPromise_D4_OnlyWhatWasAskedForIsTold(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.succeeds("gen_before")
		if n := r.count(`SELECT count(*) FROM webhook_events`) + r.count(`SELECT count(*) FROM webhook_deliveries`); n != 0 {
			t.Errorf("%d rows without an endpoint", n)
		}
		v, silent, telling := receive(t, nil), receive(t, nil), receive(t, nil)
		r.endpoint(v.URL)
		r.endpoint(silent.URL, string(events.GenerationFailed))
		yes := true
		_, _, err := r.service.Create(context.Background(), "sub_ada", Change{URL: &telling.URL, IncludePrompt: &yes})
		r.must(err)
		_, _, err = r.service.Create(context.Background(), "sub_ben", Change{URL: &silent.URL})
		r.must(err)
		r.succeeds("gen_1")
		r.until("both calls", func() bool { return len(v.got()) == 1 && len(telling.got()) == 1 })
		var m struct {
			ID, Type  string
			Timestamp time.Time
			Sequence  int64
			Data      struct {
				ID, Status, Prompt, URL string
				Metadata                map[string]string
				Images                  []struct{ ID, URL string }
			}
		}
		c := v.got()[0]
		r.must(json.Unmarshal([]byte(c.body), &m))
		if m.ID != c.header.Get("webhook-id") || m.Type != "generation.succeeded" || m.Sequence != 4 || m.Timestamp.Sub(start).Abs() > time.Second || m.Data.ID != "gen_1" ||
			m.Data.Status != "succeeded" || m.Data.URL != "https://zimage.example/v1/generations/gen_1" || m.Data.Images[0].URL != "https://zimage.example/v1/images/img_1/content" {
			t.Errorf("%s", c.body)
		}
		if strings.Contains(c.body, prompt) || strings.Contains(c.body, "17 of hers") || strings.Contains(c.body, "sub_ada") {
			t.Errorf("%s", c.body)
		}
		if body := telling.got()[0].body; !strings.Contains(body, prompt) || !strings.Contains(body, "17 of hers") {
			t.Errorf("%s", body)
		}
		if len(silent.got()) != 0 {
			t.Error("who asked for something else was told")
		}
	})
}

// Addresses, descriptions and secrets lie sealed, and stand in no log.
func TestPromise_X2_NoAddressOrSecretLiesReadable(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, status(500))
		url, description := v.URL+"/hooks/of-ada", "the shop of ada"
		e, secret, err := r.service.Create(context.Background(), "sub_ada", Change{URL: &url, Description: &description})
		r.must(err)
		if e.URL != url || e.Description != description {
			t.Errorf("%+v", e)
		}
		_, second, err := r.service.Rotate(context.Background(), "sub_ada", e.ID)
		r.must(err)
		r.must(r.queues("gen_1", url, ""))
		r.succeeds("gen_1")
		r.until("the calls", func() bool { return r.count(`SELECT count(*) FROM webhook_attempts`) >= 2 })
		for _, table := range []string{"webhook_endpoints", "webhook_once", "webhook_hosts", "webhook_events", "webhook_deliveries", "webhook_attempts", "jobs"} {
			rows, err := r.db.Maps(context.Background(), "SELECT * FROM "+table)
			r.must(err)
			text := fmt.Sprintf("%s", rows)
			for _, secret := range []string{"of-ada", "127.0.0.1", description, secret, second} {
				if strings.Contains(text, secret) {
					t.Errorf("%s holds %q", table, secret)
				}
			}
			if len(rows) == 0 {
				t.Errorf("%s is empty", table)
			}
		}
		for _, secret := range []string{"of-ada", "127.0.0.1", description, secret, second} {
			if strings.Contains(r.log.String(), secret) {
				t.Errorf("the log holds %q", secret)
			}
		}
	})
}

func TestEndpointsAreCheckedAndTheirOwnersAlone(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		bad := func(c Change, location string) {
			t.Helper()
			_, _, err := r.service.Create(ctx, "sub_ada", c)
			var p *problem.Error
			if !errors.As(err, &p) || p.Code != problem.InvalidRequest || p.Fields[0].Location != location {
				t.Errorf("%v, want a word about %s", err, location)
			}
		}
		url := "https://example.org/x"
		for _, wrong := range []string{"", "http://example.org", "https://10.0.0.1", "https://a:b@example.org", "https://example.org:22"} {
			bad(Change{URL: &wrong}, "url")
		}
		bad(Change{URL: &url, Events: &[]string{"generation.queued"}}, "events")
		long := strings.Repeat("x", 201)
		bad(Change{URL: &url, Description: &long}, "description")
		e, _ := r.endpoint(url, "generation.failed", "generation.failed", "generation.started")
		if strings.Join(e.Events, " ") != "generation.started generation.failed" {
			t.Errorf("%v", e.Events)
		}
		for what, err := range map[string]error{
			"look":   second(r.service.Endpoint(ctx, "sub_ben", e.ID)),
			"change": second(r.service.Update(ctx, "sub_ben", e.ID, Change{URL: &url})),
			"delete": r.service.Delete(ctx, "sub_ben", e.ID),
			"log":    second(r.service.Deliveries(ctx, "sub_ben", e.ID, "", "", 10)),
			"test":   second(r.service.SendTest(ctx, "sub_ben", e.ID)),
		} {
			code(t, what, err, problem.NotFound)
		}
		for range endpointsMost - 1 {
			r.endpoint(url)
		}
		_, _, err := r.service.Create(ctx, "sub_ada", Change{URL: &url})
		code(t, "one too many", err, problem.Conflict)
		if list, err := r.service.Endpoints(ctx, "sub_ada"); err != nil || len(list) != endpointsMost {
			t.Errorf("%d, %v", len(list), err)
		}
		r.must(r.service.Delete(ctx, "sub_ada", e.ID))
		if _, err := r.service.Endpoint(ctx, "sub_ada", e.ID); problem.CodeOf(err) != problem.NotFound {
			t.Error(err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

// A delivery is there when its event is, and only then.
func TestADeliverySharesTheTransactionOfItsEvent(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, nil)
		r.endpoint(v.URL)
		no := errors.New("no")
		err := r.db.Tx(context.Background(), func(tx *db.Tx) error {
			if err := r.events.Append(context.Background(), tx, events.Event{Type: events.GenerationFailed, Subject: "sub_ada", Ref: "gen_1", At: start}); err != nil {
				return err
			}
			return no
		})
		if !errors.Is(err, no) {
			t.Fatal(err)
		}
		r.succeeds("gen_2")
		r.until("the call", func() bool { return len(v.got()) == 1 })
		if n := r.count(`SELECT count(*) FROM webhook_deliveries`); n != 1 || !strings.Contains(v.got()[0].body, "gen_2") {
			t.Errorf("%d deliveries, %v", n, v.got())
		}
	})
}

// A receiver that fails is called by the schedule, under one id, and given up after
// the last attempt.
func TestAFailedDeliveryIsTriedByTheSchedule(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, func(w http.ResponseWriter, n int) {
			switch n {
			case 2:
				http.Redirect(w, &http.Request{}, "http://127.0.0.1:1/", http.StatusFound)
			case 3:
				w.Header().Set("Retry-After", "7200") // later than the schedule says
				w.WriteHeader(http.StatusServiceUnavailable)
			default:
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_1")
		for n := 1; n <= len(schedule); n++ {
			r.until(fmt.Sprint("attempt ", n), func() bool { return r.count(`SELECT count(*) FROM webhook_attempts`) == n })
			if n == len(schedule) {
				break
			}
			r.until("it waits", func() bool {
				return !r.deliveries(e.ID)[0].NextAt.IsZero() && r.count(`SELECT count(*) FROM jobs WHERE state = 'waiting'`) == 1
			})
			next := r.deliveries(e.ID)[0].NextAt.Sub(r.clock.Now())
			want := schedule[n]
			if n == 3 {
				want = 2 * time.Hour
			}
			if low, high := want*9/10-time.Second, max(want*11/10, restMost)+time.Second; next < low || next > high {
				t.Errorf("attempt %d comes after %s, want about %s", n+1, next, want)
			}
			r.pass(next + time.Millisecond)
		}
		r.until("it is given up", func() bool { return r.deliveries(e.ID)[0].State == Failed })
		d := r.deliveries(e.ID)[0]
		if len(d.Attempts) != len(schedule) || d.Error != codeStatus || d.Attempts[1].Status != 302 || d.Attempts[2].Status != 503 || d.Attempts[0].Error != codeStatus || d.EndedAt.IsZero() {
			t.Errorf("%+v", d)
		}
		for _, c := range v.got() {
			if c.header.Get("webhook-id") != d.Event {
				t.Errorf("%s, want %s", c.header.Get("webhook-id"), d.Event)
			}
		}
		if since := r.look(e.ID).FailingSince; since.Sub(start).Abs() > time.Second {
			t.Errorf("failing since %s", since)
		}
	})
}

// A tenth less to a tenth more, and not all at one moment.
func TestJitterSpreadsADelayByATenth(t *testing.T) {
	t.Parallel()
	for _, d := range schedule {
		low, high := d, d
		for range 1000 {
			j := jitter(d)
			low, high = min(low, j), max(high, j)
		}
		if low < d*9/10 || high > d*11/10 {
			t.Errorf("%s is spread over %s to %s", d, low, high)
		}
		if d > 0 && (low > d*95/100 || high < d*105/100) { // of a thousand
			t.Errorf("%s is spread over %s to %s alone", d, low, high)
		}
	}
}

// What the schedule says of a receiver that failed once and twice: nothing is left alone
// yet, so that nothing else decides.
func TestTheFirstRetriesComeSoon(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, status(http.StatusInternalServerError))
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_1")
		for n, want := range []time.Duration{5 * time.Second, 5 * time.Minute} {
			r.waits(1)
			r.until("it is recorded", func() bool {
				return len(r.deliveries(e.ID)[0].Attempts) == n+1 && !r.deliveries(e.ID)[0].NextAt.IsZero()
			})
			next := r.deliveries(e.ID)[0].NextAt.Sub(r.clock.Now())
			if next < want*9/10-time.Millisecond || next > want*11/10+time.Millisecond {
				t.Errorf("attempt %d comes after %s, want %s, a tenth more or less", n+2, next, want)
			}
			r.pass(next + time.Millisecond)
		}
	})
}

func TestADisabledWebhookIsNotToldUntilItIsEnabled(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, nil)
		e, _ := r.endpoint(v.URL)
		change := func(c Change) {
			t.Helper()
			_, err := r.service.Update(context.Background(), "sub_ada", e.ID, c)
			r.must(err)
		}
		no, yes := false, true
		change(Change{Enabled: &no})
		if now := r.look(e.ID); now.DisabledWhy != ByUser || now.DisabledAt.IsZero() {
			t.Errorf("%+v", now)
		}
		r.succeeds("gen_meanwhile")
		if list := r.deliveries(e.ID); len(list) != 0 {
			t.Errorf("%+v", list)
		}
		change(Change{Enabled: &yes})
		r.succeeds("gen_after")
		r.until("the call", func() bool { return len(r.deliveries(e.ID)) == 1 && r.deliveries(e.ID)[0].State == Delivered })
		if told := fmt.Sprint(v.got()); !strings.Contains(told, "gen_after") || strings.Contains(told, "gen_meanwhile") {
			t.Error(told)
		}
		if len(r.mailed()) != 0 {
			t.Error("a mail about what the owner did")
		}
	})
}

// Also of what waited for another attempt at the address before.
func TestAChangedAddressIsTheOneThatIsCalled(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		before, after := receive(t, status(http.StatusInternalServerError)), receive(t, nil)
		e, _ := r.endpoint(before.URL)
		r.succeeds("gen_1")
		r.waits(1)
		called := len(before.got())
		_, err := r.service.Update(context.Background(), "sub_ada", e.ID, Change{URL: &after.URL})
		r.must(err)
		r.succeeds("gen_2")
		r.until("both are told", func() bool {
			r.passIdle(time.Minute)
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 2
		})
		told := fmt.Sprint(after.got())
		if !strings.Contains(told, "gen_1") || !strings.Contains(told, "gen_2") || len(before.got()) != called {
			t.Errorf("%s; the one before was called %d times", told, len(before.got()))
		}
	})
}

func TestAnAnswer410DisablesAndTellsTheOwner(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, status(http.StatusGone))
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_1")
		r.until("it is disabled", func() bool { return r.look(e.ID).DisabledWhy == Gone })
		r.succeeds("gen_2")
		if list := r.deliveries(e.ID); len(list) != 1 || list[0].State != Failed || list[0].Error != codeGone {
			t.Errorf("%+v", list)
		}
		if m := r.mailed(); len(m) != 1 || m[0]["owner"] != "sub_ada" || m[0]["template"] != string(mail.WebhookDisabled) || m[0]["endpoint"] != e.ID || m[0]["why"] == "" {
			t.Errorf("%v", m)
		}
		// What happened meanwhile is there to catch up with.
		list, err := r.service.Events(context.Background(), "sub_ada", "", 10)
		r.must(err)
		if len(list) != 2 || list[1].Ref != "gen_2" {
			t.Errorf("%+v", list)
		}
		yes := true
		v.answers(nil)
		_, err = r.service.Update(context.Background(), "sub_ada", e.ID, Change{Enabled: &yes})
		r.must(err)
		r.succeeds("gen_3")
		r.until("it is called again", func() bool { return len(v.got()) == 2 })
	})
}

func TestFiveDaysOfNothingButFailureDisable(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, status(http.StatusInternalServerError))
		e, _ := r.endpoint(v.URL)
		fail := func(generation string) {
			t.Helper()
			n := r.count(`SELECT count(*) FROM webhook_attempts`)
			r.succeeds(generation)
			r.until("a failure", func() bool { return r.count(`SELECT count(*) FROM webhook_attempts`) > n })
			r.idle()
		}
		fail("gen_1")
		r.pass(4 * 24 * time.Hour)
		fail("gen_2")
		if !r.look(e.ID).DisabledAt.IsZero() {
			t.Error("disabled after four days")
		}
		// A success in between begins the five days anew.
		v.answers(nil)
		r.succeeds("gen_3")
		r.until("a success", func() bool {
			r.passIdle(11 * time.Minute)
			return r.look(e.ID).FailingSince.IsZero()
		})
		r.until("rest", func() bool {
			r.passIdle(25 * time.Hour)
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'`) == 0
		})
		r.pass(4 * 24 * time.Hour)
		v.answers(status(http.StatusInternalServerError))
		fail("gen_4")
		if !r.look(e.ID).DisabledAt.IsZero() {
			t.Error("disabled in spite of a success")
		}
		fail("gen_5")
		r.pass(5*24*time.Hour + time.Minute)
		r.until("it is disabled", func() bool { return r.look(e.ID).DisabledWhy == Failing })
		if m := r.mailed(); len(m) != 1 || m[0]["endpoint"] != e.ID {
			t.Errorf("%v", m)
		}
	})
}

// Restricted or suspended, nothing is told and nothing is lost.
func TestPromise_G6_WebhooksPauseWhileProcessingIsRestricted(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx, v := context.Background(), receive(t, nil)
		e, _ := r.endpoint(v.URL)
		for _, way := range []struct {
			stop, lift func(context.Context, *db.Tx) error
			lifted     events.Type
		}{
			{func(ctx context.Context, tx *db.Tx) error { return subject.Restrict(ctx, tx, "sub_ada", start) },
				func(ctx context.Context, tx *db.Tx) error { return subject.Unrestrict(ctx, tx, "sub_ada") }, events.AccountUnrestricted},
			{func(ctx context.Context, tx *db.Tx) error { return subject.Suspend(ctx, tx, "sub_ada", start) },
				func(ctx context.Context, tx *db.Tx) error { return subject.Unsuspend(ctx, tx, "sub_ada") }, events.StaffUnsuspended},
		} {
			before := len(v.got())
			r.clock.Advance(time.Second)
			r.tx(func(tx *db.Tx) error { return way.stop(ctx, tx) })
			r.happens(events.Event{Type: events.GenerationCanceled, Ref: "gen_1", Sequence: 2})
			r.until("it is paused", func() bool { return r.deliveries(e.ID)[0].State == Paused })
			url := "https://example.org/"
			_, _, err := r.service.Create(ctx, "sub_ada", Change{URL: &url})
			code(t, "a new one", err, problem.Forbidden)
			code(t, "a test", second(r.service.SendTest(ctx, "sub_ada", e.ID)), problem.Forbidden)
			code(t, "a replay", second(r.service.Replay(ctx, "sub_ada", r.deliveries(e.ID)[0].ID)), problem.Forbidden)
			if len(v.got()) != before {
				t.Error("it was told")
			}
			r.tx(func(tx *db.Tx) error { return way.lift(ctx, tx) })
			r.happens(events.Event{Type: way.lifted})
			r.until("it is told", func() bool { return len(v.got()) == before+1 && r.deliveries(e.ID)[0].State == Delivered })
		}
	})
}

// A worker that is lost between the call and its record leaves the job to another one,
// who calls again under the same id.
func TestAWorkerLostBetweenCallAndRecordDeliversAgain(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, func(w http.ResponseWriter, n int) {
			if n == 1 { // as if its lease had passed
				if _, err := r.db.Exec(context.Background(), `UPDATE jobs SET state = 'queued', lease_until = 0, worker = '' WHERE kind = ? AND state = 'running'`, KindDeliver); err != nil {
					t.Error(err)
				}
			}
			w.WriteHeader(http.StatusNoContent)
		})
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_1")
		r.until("it is told twice", func() bool { return len(v.got()) == 2 && r.deliveries(e.ID)[0].State == Delivered })
		calls, d := v.got(), r.deliveries(e.ID)[0]
		if calls[0].header.Get("webhook-id") != calls[1].header.Get("webhook-id") || len(d.Attempts) != 1 {
			t.Errorf("%+v", d)
		}
	})
}

// A worker that has lost its lease meanwhile recorded a failure of its own: the delivery
// is still tried.
func TestAFailureOfALostWorkerLosesNoDelivery(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, func(w http.ResponseWriter, n int) {
			if n > 2 {
				return
			}
			for _, statement := range []string{
				`UPDATE webhook_deliveries SET tries = tries + 1, attempts = attempts + 1`,
				`INSERT INTO webhook_attempts (delivery, n, owner, at, took, status, error) SELECT id, attempts, owner, created_at, 1, 500, 'unexpected_status' FROM webhook_deliveries`,
			} {
				if _, err := r.db.Exec(context.Background(), statement); err != nil {
					t.Error(err)
				}
			}
			if n == 1 {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_1")
		r.waits(1)
		r.pass(6 * time.Minute)
		r.until("it is told", func() bool { return r.deliveries(e.ID)[0].State == Delivered })
		if d := r.deliveries(e.ID)[0]; len(v.got()) != 2 || len(d.Attempts) != 4 {
			t.Errorf("%d calls, %+v", len(v.got()), d)
		}
	})
}

// Between the attempts what it is about was deleted.
func TestARetryAfterTheDeletionSaysDataRemoved(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, func(w http.ResponseWriter, n int) {
			if n == 1 {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		yes := true
		_, _, err := r.service.Create(context.Background(), "sub_ada", Change{URL: &v.URL, IncludePrompt: &yes})
		r.must(err)
		r.succeeds("gen_1")
		r.waits(1)
		r.mu.Lock()
		r.gone["gen_1"] = true
		r.mu.Unlock()
		r.happens(events.Event{Type: events.GenerationDeleted, Ref: "gen_1", Reason: "user", Sequence: 1 << 40})
		r.pass(time.Minute)
		r.until("all is told", func() bool { return len(v.got()) == 3 })
		var all []string
		for _, c := range v.got()[1:] {
			all = append(all, c.body)
			if strings.Contains(c.body, prompt) || strings.Contains(c.body, "img_1") {
				t.Error(c.body)
			}
		}
		if text := strings.Join(all, "\n"); !strings.Contains(text, `"data":{"id":"gen_1","code":"data_removed"}`) || !strings.Contains(text, `"data":{"id":"gen_1","reason":"user"}`) {
			t.Error(text)
		}
	})
}

// A worker that comes late finds nothing of an erased person, and writes nothing.
func TestPromise_R7_ALateWorkerWritesNothingOfAnErasedPerson(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		answered := make(chan struct{})
		for i, code := range []int{204, 500, 410} {
			v := receive(t, func(w http.ResponseWriter, _ int) {
				for _, table := range []string{"webhook_attempts", "webhook_deliveries", "webhook_events", "webhook_once", "webhook_endpoints"} {
					if _, err := r.db.Exec(context.Background(), "DELETE FROM "+table); err != nil {
						t.Error(err)
					}
				}
				w.WriteHeader(code)
				answered <- struct{}{}
			})
			r.endpoint(v.URL)
			r.succeeds(fmt.Sprint("gen_", i))
			<-answered
			r.until("its job has ended", func() bool {
				return r.count(`SELECT count(*) FROM jobs WHERE state IN ('queued', 'running', 'waiting')`) == 0
			})
			for _, table := range []string{"webhook_attempts", "webhook_deliveries", "webhook_endpoints"} {
				if n := r.count("SELECT count(*) FROM " + table); n != 0 {
					t.Errorf("after %d %s has %d rows", code, table, n)
				}
			}
		}
		if len(r.mailed()) != 0 {
			t.Error("somebody erased was written to")
		}
	})
}

// A dead endpoint with a long queue hangs in its own slots, and is then left alone.
func TestADeadEndpointLeavesALivingOneAlone(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		dead := receive(t, func(w http.ResponseWriter, _ int) {
			<-release
			w.WriteHeader(http.StatusBadGateway)
		})
		living := receive(t, nil)
		d, _ := r.endpoint(dead.URL)
		l, _ := r.endpoint(living.URL)
		const n = 100
		for i := range n {
			r.succeeds(fmt.Sprint("gen_", i))
		}
		r.until("the living one has all", func() bool { return len(living.got()) == n })
		if got := len(dead.got()); got != SlotsPerEndpoint {
			t.Errorf("%d calls hang, want %d", got, SlotsPerEndpoint)
		}
		close(release)
		r.until("it is left alone", func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE party = ? AND state = 'waiting'`, d.ID) == n
		})
		if got := len(dead.got()); got > 3*SlotsPerEndpoint {
			t.Errorf("it was called %d times", got)
		}
		// Once it is well it gets everything.
		dead.answers(nil)
		r.until("all is told", func() bool {
			r.passIdle(11 * time.Minute)
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 2*n
		})
		ids := map[string]bool{}
		for _, c := range dead.got() {
			ids[c.header.Get("webhook-id")] = true
		}
		if len(ids) != n || !r.look(d.ID).FailingSince.IsZero() || len(living.got()) != n || !r.look(l.ID).FailingSince.IsZero() {
			t.Errorf("%d of %d events", len(ids), n)
		}
	})
}

// Somebody all of whose webhooks answer late has a part of the slots, and everybody else
// the others.
func TestSlowEndpointsOfOneAccountLeaveOthersAlone(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		release := make(chan struct{})
		slow := receive(t, func(http.ResponseWriter, int) { <-release })
		let := sync.OnceFunc(func() { close(release) })
		t.Cleanup(let)
		for range 4 {
			r.endpoint(slow.URL)
		}
		const n = 20
		for i := range n {
			r.succeeds(fmt.Sprint("gen_", i))
		}
		r.until("the slow ones have all they may have", func() bool { return len(slow.got()) == SlotsPerOwner })
		quick := receive(t, nil)
		_, _, err := r.service.Create(context.Background(), "sub_ben", Change{URL: &quick.URL})
		r.must(err)
		for i := range n {
			r.happens(events.Event{Type: events.GenerationSucceeded, Subject: "sub_ben", Ref: fmt.Sprint("gen_ben_", i)})
		}
		r.until("the quick one has all", func() bool { return len(quick.got()) == n })
		if got := len(slow.got()); got != SlotsPerOwner {
			t.Errorf("%d calls to slow ones, want %d", got, SlotsPerOwner)
		}
		let()
		r.until("all is told", func() bool {
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 5*n
		})
	})
}

func TestReplay(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		v := receive(t, status(http.StatusBadRequest))
		e, _ := r.endpoint(v.URL)
		r.succeeds("gen_old")
		r.waits(1)
		if _, err := r.db.Exec(ctx, `UPDATE webhook_deliveries SET state = 'failed'`); err != nil { // for good
			t.Fatal(err)
		}
		r.clock.Advance(time.Minute)
		since := r.clock.Now()
		r.clock.Advance(time.Second)
		for i := range 3 {
			r.succeeds(fmt.Sprint("gen_", i))
		}
		r.until("all wait", func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE state = 'waiting'`) == 4 && r.count(`SELECT count(*) FROM webhook_deliveries WHERE attempts > 0`) >= 2
		})
		v.answers(nil)
		before, yes := len(v.got()), true
		_, err := r.service.Update(ctx, "sub_ada", e.ID, Change{Enabled: &yes}) // it is left alone no longer
		r.must(err)
		// Those that were left alone come by themselves.
		n, more, err := r.service.ReplayFailed(ctx, "sub_ada", e.ID, since)
		if err != nil || more || n == 0 || n > 3 {
			t.Errorf("%d, %v, %v", n, more, err)
		}
		r.must(r.queue.NewScheduler().Reconcile(ctx))
		r.until("they are told", func() bool { return len(v.got()) == before+3 })
		r.idle()
		for _, c := range v.got()[before:] {
			if strings.Contains(c.body, "gen_old") {
				t.Error("it was to be told before")
			}
		}
		r.pass(3 * time.Hour)
		r.until("all are told", func() bool {
			return r.count(`SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'`) == 3
		})
		d := r.deliveries(e.ID)[0]
		calls := len(v.got())
		again, err := r.service.Replay(ctx, "sub_ada", d.ID)
		if err != nil || again.ID != d.ID || again.Event != d.Event {
			t.Errorf("%+v, %v", again, err)
		}
		r.until("it is told again", func() bool { return len(v.got()) == calls+1 })
		if last := v.got()[calls]; last.header.Get("webhook-id") != d.Event {
			t.Error("it has another id")
		}
		r.until("it is logged", func() bool { return len(r.deliveries(e.ID)[0].Attempts) == len(d.Attempts)+1 })
		code(t, "somebody else's", second(r.service.Replay(ctx, "sub_ben", d.ID)), problem.NotFound)
		no := false
		_, err = r.service.Update(ctx, "sub_ada", e.ID, Change{Enabled: &no})
		r.must(err)
		code(t, "a disabled one's", second(r.service.Replay(ctx, "sub_ada", d.ID)), problem.Conflict)
	})
}

func TestEventsAreCaughtUpWith(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx := context.Background()
		r.endpoint("https://example.org/")
		for i := range 5 {
			r.happens(events.Event{Type: events.ImageDeleted, Ref: fmt.Sprint("img_", i), Whole: "gen_1", Reason: "expired", Sequence: int64(5 + i)})
			r.clock.Advance(time.Millisecond)
		}
		list, err := r.service.Events(ctx, "sub_ada", "", 3)
		if err != nil || len(list) != 4 || list[0].Ref != "img_0" || list[0].Generation != "gen_1" || list[0].Reason != "expired" || list[0].Sequence != 5 {
			t.Fatalf("%+v, %v", list, err)
		}
		rest, err := r.service.Events(ctx, "sub_ada", list[2].ID, 10)
		if err != nil || len(rest) != 2 || rest[0].Ref != "img_3" {
			t.Errorf("%+v, %v", rest, err)
		}
		if list, err := r.service.Events(ctx, "sub_ben", "", 10); err != nil || len(list) != 0 {
			t.Errorf("somebody else's: %+v, %v", list, err)
		}
	})
}

// An address that was given with one generation is told of that one alone.
func TestAnAddressOfOneGeneration(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		v := receive(t, nil)
		code(t, "a private address", r.queues("gen_0", "https://10.0.0.1/", ""), problem.InvalidRequest)
		r.must(r.queues("gen_1", v.URL, "generation.succeeded"))
		r.succeeds("gen_0")
		r.happens(events.Event{Type: events.GenerationStarted, Ref: "gen_1", Sequence: 2})
		r.succeeds("gen_1")
		r.happens(events.Event{Type: events.GenerationDeleted, Ref: "gen_1"})
		r.until("the call", func() bool { return len(v.got()) == 1 })
		o, err := r.service.OnceSecret(context.Background(), "sub_ada", false)
		r.must(err)
		if !verifies(t, o.Secret, v.got()[0]) || !strings.Contains(v.got()[0].body, "gen_1") {
			t.Errorf("%v", v.got())
		}
		// One that is gone is forgotten; the others are called as before.
		gone := receive(t, status(http.StatusGone))
		r.must(r.queues("gen_2", gone.URL, ""))
		r.must(r.queues("gen_3", v.URL, ""))
		r.succeeds("gen_2")
		r.succeeds("gen_3")
		r.until("both calls", func() bool {
			return len(v.got()) == 2 && r.count(`SELECT count(*) FROM webhook_once WHERE id = 'gen_2'`) == 0
		})
		if len(r.mailed()) != 0 {
			t.Error("a mail about one generation")
		}
		if n := r.count(`SELECT count(*) FROM webhook_endpoints WHERE once = 1`); n != 1 {
			t.Errorf("%d rows stand for them", n)
		}
	})
}

// A closing account's endpoints are told once, and what was to be told is not any more.
func TestAClosingAccountSaysFarewell(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx, v, dead := context.Background(), receive(t, nil), receive(t, status(http.StatusInternalServerError))
		_, secret := r.endpoint(v.URL, "account.closing")
		e, _ := r.endpoint(dead.URL)
		r.succeeds("gen_1")
		r.waits(1)
		r.tx(func(tx *db.Tx) error {
			_, err := subject.Close(ctx, tx, "sub_ada", start)
			return err
		})
		r.happens(events.Event{Type: events.AccountClosing})
		r.until("the job has ended", func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state = 'succeeded'`, KindFarewell) == 1
		})
		if calls := v.got(); len(calls) != 1 || !strings.Contains(calls[0].body, `"type":"account.closing"`) || !strings.Contains(calls[0].body, `"reason":"erased"`) || !verifies(t, secret, calls[0]) {
			t.Errorf("%v", calls)
		}
		if calls := dead.got(); len(calls) != 2 {
			t.Errorf("%d calls", len(calls))
		}
		// What waited is given up.
		r.pass(6 * time.Minute)
		r.until("it is given up", func() bool { return r.deliveries(e.ID)[0].State == Failed })
		if d := r.deliveries(e.ID)[0]; d.Error != string(subject.BecauseClosed) || len(dead.got()) != 2 || len(v.got()) != 1 {
			t.Errorf("%+v, %d and %d calls", d, len(dead.got()), len(v.got()))
		}
	})
}

func TestPromise_G6_APausedAccountSaysNoFarewell(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		ctx, v := context.Background(), receive(t, nil)
		r.endpoint(v.URL)
		r.tx(func(tx *db.Tx) error {
			if err := subject.Restrict(ctx, tx, "sub_ada", start); err != nil {
				return err
			}
			_, err := subject.Close(ctx, tx, "sub_ada", start)
			return err
		})
		r.happens(events.Event{Type: events.AccountClosing})
		r.until("the job has ended", func() bool {
			return r.count(`SELECT count(*) FROM jobs WHERE kind = ? AND state = 'succeeded'`, KindFarewell) == 1
		})
		if calls := v.got(); len(calls) != 0 {
			t.Errorf("%v", calls)
		}
	})
}
