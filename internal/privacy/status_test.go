package privacy_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/privacy"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// promised looks whether exactly these promises are broken, in the status and in
// the figures.
func (h *home) promised(broken ...string) privacy.Status {
	h.t.Helper()
	h.rotate()
	st, err := h.privacy.Measure(context.Background())
	must(h.t, err)
	var codes []string
	for _, p := range st.Broken {
		codes = append(codes, p.Code)
	}
	if !slices.Equal(codes, broken) {
		h.t.Errorf("broken are %v, want %v", codes, broken)
	}
	families, err := h.registry.Gather()
	must(h.t, err)
	shown := 0
	for _, f := range families {
		if f.GetName() != "zimage_promise_broken" {
			continue
		}
		for _, m := range f.GetMetric() {
			shown++
			code := m.GetLabel()[0].GetValue()
			if (m.GetGauge().GetValue() == 1) != slices.Contains(broken, code) {
				h.t.Errorf("the figure of %s is %v", code, m.GetGauge().GetValue())
			}
		}
	}
	if shown != len(privacy.Promises()) {
		h.t.Errorf("%d promises have a figure, of %d", shown, len(privacy.Promises()))
	}
	return st
}

// rotate is what an operator has done every day.
func (h *home) rotate() {
	h.t.Helper()
	_, err := h.vault.Rotate(context.Background(), vault.RotateOptions{})
	must(h.t, err)
}

// rule finds what a status says of the nth rule with a time of a table.
func rule(t testing.TB, st privacy.Status, table string, n int) privacy.RetentionStatus {
	t.Helper()
	for _, r := range st.Retention {
		if r.Table != table {
			continue
		}
		if n == 0 {
			return r
		}
		n--
	}
	t.Fatalf("the status says nothing of %s", table)
	return privacy.RetentionStatus{}
}

func (h *home) exec(query string, args ...any) {
	h.t.Helper()
	if _, err := h.db.Exec(context.Background(), query, args...); err != nil {
		h.t.Fatal(query, err)
	}
}

// Each rule of the map, before and after its end: what waits for its sweep for
// more than two hours breaks the promise of its category, and a hold does not.
func TestPromise_P2_WhatIsKeptTooLongIsTold(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		p := h.newcomer("ann")
		h.promised()
		now := h.clock.Now()
		rules := 0
		for _, table := range dataMap(t).Tables {
			if table.Store != privacy.StoreMain || table.Nobody != "" {
				continue
			}
			n := -1
			for _, k := range table.Keep {
				if k.AsLongAs != "" {
					continue
				}
				n++
				if table.Name == "mails" && k.From == "accepted_at" && k.Then == privacy.Null {
					continue // the database itself refuses it
				}
				rules++
				what := fmt.Sprintf("%s, rule %d", table.Name, n)
				h.fill(p.id, table)
				if table.Name == "mails" && k.Then == privacy.Delete {
					h.exec(`UPDATE mails SET address = NULL, data = NULL`)
				}
				if table.Name == "requests" && k.Then == privacy.Delete {
					h.exec(`UPDATE requests SET address = NULL, address_lookup = NULL, note = NULL`)
				}
				// Its other times say nothing, so that this rule alone counts.
				for _, other := range table.Keep {
					for _, column := range []string{other.From, other.Until} {
						if column != "" && column != "created_at" {
							h.exec(`UPDATE `+table.Name+` SET `+column+` = ? WHERE `+table.Subject+` = ?`, nothingYet(h.db, table.Name, column), p.id)
						}
					}
				}
				span := k.Span()
				if w, ok := privacy.DefaultPolicy().Window(k.Window); ok {
					span = now.Sub(w.Before(now))
				}
				set := func(column string, at time.Time) {
					if column != "" {
						h.exec(`UPDATE `+table.Name+` SET `+column+` = ? WHERE `+table.Subject+` = ?`, at.UnixMilli(), p.id)
					}
				}
				for _, c := range []struct {
					ended  time.Duration
					broken bool
				}{{-time.Minute, false}, {time.Hour, false}, {3 * time.Hour, true}, {50 * time.Hour, true}} {
					set(k.From, now.Add(-span-c.ended))
					set(k.Until, now.Add(-c.ended))
					var want []string
					if c.broken {
						want = []string{"retention_" + table.Category}
					}
					r := rule(t, h.promised(want...), table.Name, n)
					if r.Broken != c.broken || r.Category != table.Category || c.ended > 0 && (r.LateDays == nil || *r.LateDays != int(c.ended/day)) || c.ended < 0 && r.LateDays != nil {
						t.Errorf("%s, %v after its end: %+v", what, c.ended, r)
					}
					if k.From != "" && (r.OldestDays == nil || *r.OldestDays != int((span+c.ended)/day)) {
						t.Errorf("%s, %v after its end: the oldest is %v days", what, c.ended, r.OldestDays)
					}
				}
				if k.Then == privacy.Null { // without what it is about, it has ended
					for _, column := range k.Columns {
						h.exec(`UPDATE `+table.Name+` SET `+column+` = ? WHERE `+table.Subject+` = ?`, nothingOf(h.db, table, column), p.id)
					}
					if r := rule(t, h.promised(), table.Name, n); r.OldestDays != nil || r.Broken {
						t.Errorf("%s, when it is empty: %+v", what, r)
					}
				}
				h.exec(`DELETE FROM `+table.Name+` WHERE `+table.Subject+` = ?`, p.id)
			}
		}
		if rules < 15 {
			t.Errorf("only %d rules were looked at", rules)
		}
	})
}

func required(d *db.DB, table, column string) bool {
	c, err := db.ReadConstraints(context.Background(), d)
	return err == nil && c.Required(table, column)
}

// nothingYet is what a time is that has not come.
func nothingYet(d *db.DB, table, column string) any {
	if required(d, table, column) {
		return 0
	}
	return nil
}

func nothingOf(d *db.DB, t privacy.Table, column string) any {
	switch c := t.Column(column); {
	case !required(d, t.Name, column):
		return nil
	case c.Type == "text", c.Type == "words":
		return ""
	}
	return 0
}

func TestPromise_P2_AHoldIsNoBrokenPromise(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		p := h.newcomer("ann")
		h.paint(p, 2)
		h.clock.Advance(91 * day)
		h.exec(`UPDATE sessions SET last_used_at = ?`, h.clock.Millis())
		h.promised("retention_content")
		var ids []string
		must(t, h.db.Select(ctx, &ids, `SELECT id FROM generations ORDER BY id`))
		place := func(id string) (hold string) {
			must(t, h.db.Tx(ctx, func(tx *db.Tx) (err error) {
				hold, err = subject.Hold(ctx, tx, p.id, "generations", id, "case 17", h.clock.Now())
				return err
			}))
			return hold
		}
		place(ids[0])
		h.promised("retention_content") // the other one
		second := place(ids[1])
		st := h.promised() // their images with them
		if r := rule(t, st, "images", 0); r.OldestDays != nil {
			t.Errorf("held images count: %+v", r)
		}
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error { return subject.Release(ctx, tx, second, h.clock.Now()) }))
		h.promised("retention_content")
		// A held image keeps its generation.
		var image string
		must(t, h.db.Get(ctx, &image, `SELECT id FROM images WHERE generation_id = ?`, ids[1]))
		must(t, h.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := subject.Hold(ctx, tx, p.id, "images", image, "case 18", h.clock.Now())
			return err
		}))
		h.promised()
	})
}

// What the status says is what whoever may look into the database finds there.
func TestPromise_P2_StatusEqualsTheDatabase(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		for i := range 5 {
			h.live(fmt.Sprintf("ann%d", i), 2)
			h.clock.Advance(19*day + time.Hour)
		}
		st, err := h.privacy.Measure(ctx)
		must(t, err)
		now := h.clock.Millis()
		for _, c := range []struct {
			table string
			n     int
			query string
		}{
			{"generations", 0, `SELECT coalesce(min(created_at), -1) FROM generations WHERE removed_at = 0`},
			{"generations", 1, `SELECT coalesce(min(removed_at), -1) FROM generations WHERE removed_at > 0`},
			{"images", 0, `SELECT coalesce(min(created_at), -1) FROM images WHERE removed_at = 0`},
			{"sessions", 0, `SELECT coalesce(min(last_used_at), -1) FROM sessions`},
			{"idempotency_keys", 0, `SELECT coalesce(min(created_at), -1) FROM idempotency_keys`},
			{"jobs", 0, `SELECT coalesce(min(finished_at), -1) FROM jobs WHERE finished_at > 0`},
			{"api_keys", 0, `SELECT coalesce(min(revoked_at), -1) FROM api_keys WHERE revoked_at > 0`},
		} {
			var oldest int64
			must(t, h.db.Get(ctx, &oldest, c.query))
			r := rule(t, st, c.table, c.n)
			switch {
			case oldest < 0 && r.OldestDays != nil, oldest >= 0 && (r.OldestDays == nil || int64(*r.OldestDays) != (now-oldest)/day.Milliseconds()):
				t.Errorf("%s: the status says %+v, the database %d", c.table, r, oldest)
			}
		}
		if r := rule(t, st, "generations", 0); r.Kept != "90 days" || *r.OldestDays != 95 || !r.Broken {
			t.Errorf("generations: %+v", r)
		}
		var ended int64
		must(t, h.db.Get(ctx, &ended, `SELECT min(expires_at) FROM images WHERE sha256 IS NOT NULL`))
		if r := rule(t, st, "images", 0); int64(*r.LateDays) != (now-ended)/day.Milliseconds() {
			t.Errorf("images: %d days late, want %d", *r.LateDays, (now-ended)/day.Milliseconds())
		}
		if st.Policy != "2026-01-01" || !st.Date.Equal(privacy.DefaultPolicy().Date) || !st.Checkpoint.Genuine() {
			t.Errorf("the status is %+v", st)
		}
		// Its oldest generation is 95 of 90 days old, and so is the figure.
		if n := h.figure("zimage_retention_oldest_ratio"); n < 1.05 {
			t.Errorf("the oldest ratios sum up to %v", n)
		}
	})
}

func TestPromise_P2_ALateErasureIsTold(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		deadline := func(st privacy.Status) privacy.DeadlineStatus {
			t.Helper()
			i := slices.IndexFunc(st.Deadlines, func(d privacy.DeadlineStatus) bool { return d.Kind == "erasures" })
			if i < 0 {
				t.Fatal("the status says nothing of erasures")
			}
			return st.Deadlines[i]
		}
		if d := deadline(h.promised()); d.OldestDays != nil || d.DueInDays != nil || d.Open != 0 {
			t.Errorf("when none is open: %+v", d)
		}
		for i := range 9 {
			h.close(h.newcomer(fmt.Sprintf("ann%d", i)))
		}
		h.clock.Advance(3 * day)
		// What so few have asked for is nobody's business, below ten.
		few := privacy.DeadlineStatus{Kind: "erasures"}
		if d := deadline(h.promised()); d != few {
			t.Errorf("nine are open, after three days: %+v", d)
		}
		h.exec(`UPDATE erasures SET due_at = due_at - ?`, (28 * day).Milliseconds())
		few.Broken = true
		if d := deadline(h.promised("erasure_in_time")); d != few {
			t.Errorf("nine are open and late: %+v", d)
		}
		h.exec(`UPDATE erasures SET due_at = due_at + ?`, (28 * day).Milliseconds())
		h.close(h.newcomer("jim"))
		if d := deadline(h.promised()); d.Open != 10 || *d.OldestDays != 3 || *d.DueInDays != 27 || d.Broken {
			t.Errorf("ten are open, after three days: %+v", d)
		}
		h.clock.Advance(27*day + time.Hour)
		h.exec(`DELETE FROM ledger_entries`)
		if d := deadline(h.promised("erasure_in_time", "request_in_time")); !d.Broken || *d.DueInDays != -1 || *d.OldestDays != 30 {
			t.Errorf("an hour behind the deadline: %+v", d)
		}
	})
}

func TestPromise_P2_ASweepThatDoesNotRunIsTold(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		h.options.Recurring = []jobs.Schedule{{Name: "hourly", Every: time.Hour, Kind: "a:sweep"}, {Name: "daily", Every: day, Kind: "b:sweep"}}
		h.rooms()
		h.promised() // before the first round
		n := 0
		round := func(name, kind string, succeeds bool) {
			n++
			h.exec(`INSERT INTO schedule_ticks (name, tick, at) VALUES (?, ?, ?)`, name, n, h.clock.Millis())
			if succeeds {
				h.exec(`INSERT INTO jobs (id, lane, kind, party, ref, state, attempt, max_attempts, run_after, lease_until, worker, vstart, cost, cancel_requested, progress_done, progress_total, error_code, created_at, started_at, finished_at)
					VALUES (?, 'housekeeping', ?, 'system', ?, 'succeeded', 1, 5, 0, 0, '', 0, 0, 0, 0, 0, '', ?, ?, ?)`,
					db.NewID("job", h.clock.Now()), kind, name, h.clock.Millis(), h.clock.Millis(), h.clock.Millis())
			}
		}
		sweep := func(st privacy.Status, kind string) privacy.SweepStatus {
			t.Helper()
			i := slices.IndexFunc(st.Sweeps, func(s privacy.SweepStatus) bool { return s.Kind == kind })
			if i < 0 {
				t.Fatalf("nothing of %s", kind)
			}
			return st.Sweeps[i]
		}
		round("daily", "b:sweep", true)
		for range 3 {
			round("hourly", "a:sweep", true)
			h.clock.Advance(time.Hour)
		}
		if s := sweep(h.promised(), "a:sweep"); !s.LastSuccess.Equal(h.clock.Now().Add(-time.Hour)) {
			t.Errorf("the last success is %v, at %v", s.LastSuccess, h.clock.Now())
		}
		// It comes round and fails: two hours are borne.
		for range 2 {
			round("hourly", "a:sweep", false)
			h.promised()
			h.clock.Advance(time.Hour)
		}
		round("hourly", "a:sweep", false)
		h.clock.Advance(time.Minute)
		if s := sweep(h.promised("sweeps_run"), "a:sweep"); !s.Broken {
			t.Errorf("after three failures: %+v", s)
		}
		round("hourly", "a:sweep", true)
		h.promised()
		// Nobody keeps the schedule any more.
		h.clock.Advance(2 * time.Hour)
		h.promised()
		h.clock.Advance(time.Hour + time.Minute)
		h.promised("sweeps_run")
		// The job of yesterday is forgotten by now; that of today has two hours.
		h.exec(`DELETE FROM jobs WHERE kind = 'b:sweep'`)
		h.clock.Advance(16 * time.Hour)
		h.exec(`DELETE FROM jobs`)
		round("hourly", "a:sweep", true)
		round("daily", "b:sweep", false)
		h.promised()
		h.clock.Advance(2*time.Hour + time.Minute)
		if s := sweep(h.promised("sweeps_run"), "b:sweep"); !s.Broken || !s.LastSuccess.IsZero() {
			t.Errorf("the daily one: %+v", s)
		}
	})
}

func TestPromise_P2_AnUnsealedLedgerIsTold(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		h.exec(`INSERT INTO ledger_entries (id, kind, at, commitment) VALUES ('led_1', 'consent.given', ?, ?)`, h.clock.Millis(), make([]byte, 32))
		h.clock.Advance(4 * time.Minute)
		h.promised()
		h.clock.Advance(2 * time.Minute)
		h.promised("ledger_sealed")
		l := privacy.NewLedger(privacy.LedgerOptions{DB: h.db, Vault: h.vault, Clock: h.clock})
		if _, err := l.Seal(ctx); err != nil {
			t.Fatal(err)
		}
		c, err := l.Checkpoint(ctx)
		must(t, err)
		if st := h.promised(); !st.Checkpoint.Genuine() || string(st.Checkpoint.Hash) != string(c.Hash) {
			t.Errorf("the checkpoint is %+v, want %+v", st.Checkpoint, c)
		}
	})
}

// A flood of questions is answered from one measurement.
func TestPromise_P2_AFloodOfQuestionsCostsNothing(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, _ = h.privacy.Status(gone) // who hangs up keeps nobody from an answer
		first, err := h.privacy.Status(ctx)
		must(t, err)
		h.clock.Advance(time.Hour)
		must(t, h.db.Close()) // nobody asks it any more
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				if st, err := h.privacy.Status(ctx); err != nil || !st.At.Equal(first.At) {
					t.Errorf("%v, of %v, want that of %v", err, st.At, first.At)
				}
			})
		}
		all.Wait()
	})
}

func TestPromise_P2_ALateRequestIsTold(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		h.promised()
		now := h.clock.Now()
		h.exec(`INSERT INTO requests (id, subject, kind, state, origin, ref, outcome, opened_at, due_at, expires_at, closed_at) VALUES ('req_1', 'sub_1', 'access', 'open', 'self', '', '', ?, ?, 0, 0)`,
			now.UnixMilli(), now.Add(30*day).UnixMilli())
		h.clock.Advance(30 * day)
		st := h.promised()
		i := slices.IndexFunc(st.Deadlines, func(d privacy.DeadlineStatus) bool { return d.Kind == "requests" })
		if i < 0 || st.Deadlines[i] != (privacy.DeadlineStatus{Kind: "requests"}) {
			t.Fatalf("requests: %+v", st.Deadlines)
		}
		h.clock.Advance(time.Minute)
		h.promised("request_in_time")
		h.exec(`UPDATE requests SET state = 'closed', closed_at = ?`, h.clock.Millis())
		h.promised()
	})
}

func TestPromise_P2_OrphansAreTold(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		if st := h.promised(); st.Comparison != nil {
			t.Errorf("before the first comparison: %+v", st.Comparison)
		}
		h.exec(`INSERT INTO sweeps (plan, ended_at, result) VALUES ('objects', ?, '{"objects": 120, "orphans": 13, "unknown": 10, "missing": 0}')`, h.clock.Millis())
		if st := h.promised(); st.Comparison == nil || *st.Comparison != (privacy.Comparison{At: h.clock.Now(), Objects: 120, Orphans: 13, Unknown: 10}) {
			t.Errorf("the comparison is %+v", st.Comparison)
		}
		h.exec(`UPDATE sweeps SET result = '{"objects": 120, "orphans": 9, "unknown": 1, "missing": 9}'`)
		if st := h.promised("objects_whole"); *st.Comparison != (privacy.Comparison{At: h.clock.Now(), Objects: 120}) {
			t.Errorf("of fewer than ten: %+v", st.Comparison)
		}
		h.exec(`UPDATE sweeps SET result = '{"objects": 12, "missing": 1}'`)
		h.promised("objects_whole")
		h.exec(`UPDATE sweeps SET result = '{"objects": 1200, "refused": 101}'`)
		h.promised("objects_whole")
	})
}

// A measurement that fails, or does not end, costs one who asks its time and the
// others a second; and the last one is told while the next is made.
func TestPromise_P2_NobodyQueuesForTheStatus(t *testing.T) {
	bothDatabases(t, func(t *testing.T, h *home) {
		ctx := context.Background()
		begun, end := make(chan struct{}), make(chan struct{})
		var fail error
		n := 0
		h.privacy.MeasureBy(func(ctx context.Context, measure func(context.Context) (privacy.Status, error)) (privacy.Status, error) {
			n++
			begun <- struct{}{}
			<-end
			if fail != nil {
				return privacy.Status{}, fail
			}
			return measure(ctx)
		})
		type answer struct {
			st  privacy.Status
			err error
		}
		first := make(chan answer, 1)
		ask := func() {
			go func() {
				st, err := h.privacy.Status(ctx)
				first <- answer{st, err}
			}()
			<-begun
		}
		unavailable := func(what string, err error, least time.Duration) {
			t.Helper()
			var p *problem.Error
			if !errors.As(err, &p) || p.Code != problem.Unavailable || p.RetryAfter < least {
				t.Errorf("%s: %v, %+v", what, err, p)
			}
		}
		crowd := func(each func(privacy.Status, error)) (took time.Duration) {
			start := time.Now()
			var all sync.WaitGroup
			for range 50 {
				all.Go(func() { each(h.privacy.Status(ctx)) })
			}
			all.Wait()
			return time.Since(start)
		}

		// There is none yet, and the first measurement does not end.
		ask()
		took := crowd(func(_ privacy.Status, err error) { unavailable("beside the first", err, time.Second) })
		if took > 10*time.Second { // far below the time of a measurement
			t.Errorf("they waited for %v", took)
		}
		fail = fmt.Errorf("look: %w", context.DeadlineExceeded)
		end <- struct{}{}
		unavailable("the first", (<-first).err, 30*time.Second)
		crowd(func(_ privacy.Status, err error) { unavailable("after the first", err, 20*time.Second) })
		if n != 1 {
			t.Errorf("%d measurements", n)
		}

		// Half a minute later it succeeds, and who waited a moment has it too.
		h.privacy.AgeStatus(time.Minute)
		fail = nil
		ask()
		beside := make(chan answer, 1)
		go func() {
			st, err := h.privacy.Status(ctx)
			beside <- answer{st, err}
		}()
		end <- struct{}{}
		good := <-first
		must(t, good.err)
		if b := <-beside; b.err != nil || !b.st.At.Equal(good.st.At) {
			t.Errorf("beside it: %v, %v", b.st.At, b.err)
		}
		h.clock.Advance(time.Hour)
		// The next is slow: the last is told at once.
		h.privacy.AgeStatus(30 * time.Second)
		ask()
		crowd(func(st privacy.Status, err error) {
			if err != nil || !st.At.Equal(good.st.At) {
				t.Errorf("beside the next: %v, %v", st.At, err)
			}
		})
		end <- struct{}{}
		if a := <-first; a.err != nil || !a.st.At.Equal(good.st.At.Add(time.Hour)) || n != 3 {
			t.Errorf("the next: %v, %v, after %d measurements", a.st.At, a.err, n)
		}
	})
}
