package privacy_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/db"
	"zimage/internal/privacy"
	"zimage/internal/subject"
)

const (
	usageAgent = "Mozilla/5.0 (Linux; Android 14; Canary 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36"
	usagePlace = "Canaryville, Canaria"
)

var usageAddr = netip.MustParseAddr("198.51.100.77")

// newUsage is one process's.
func (r *rig) newUsage() (*privacy.Usage, *prometheus.Registry) {
	registry := prometheus.NewRegistry()
	return privacy.NewUsage(privacy.UsageOptions{DB: r.db, Vault: r.vault, Clock: r.clock, Log: slog.New(slog.NewTextHandler(r.log, nil)), Registry: registry,
		Place: func(netip.Addr) string { return usagePlace }, Window: privacy.DefaultPolicy().Windows.Usage}), registry
}

// people adds accounts with nothing but their keys.
func (r *rig) people(ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		r.must(r.vault.Create(context.Background(), id))
		r.must(r.db.Tx(context.Background(), func(tx *db.Tx) error { return subject.New(context.Background(), tx, id, r.clock.Now()) }))
	}
}

func outcomes(t testing.TB, g prometheus.Gatherer) map[string]int {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if n := int(m.GetCounter().GetValue()); n > 0 {
				all[m.GetLabel()[0].GetValue()] = n
			}
		}
	}
	return all
}

func (r *rig) flush(u *privacy.Usage) {
	r.t.Helper()
	r.must(u.Flush(r.t.Context()))
}

// What was used, when, for how long, from what kind of device and about where is
// written, in nothing readable but our own words, and exported; after twelve
// months it is in no export and no report any more.
func TestPromise_U1_UsageIsWrittenSealedAndExported(t *testing.T) {
	stacks(t, setup{}, func(t *testing.T, r *rig) {
		r.people("sub_ada", "sub_ben")
		r.insert("users", map[string]any{"id": "sub_ada", "email_lookup": "x", "email": r.seal("sub_ada", "users", "email", "sub_ada", "ada@example.org"), "password": "", "created_at": 1})
		one, _ := r.newUsage()
		other, _ := r.newUsage() // another process
		use := privacy.Use{Subject: "sub_ada", Caller: "ses_1", Feature: "create-generation", Addr: usageAddr, Agent: usageAgent, Screen: "390x844"}
		one.Note(use)
		one.Note(privacy.Use{Subject: "sub_ben", Caller: "key_1", Feature: "list-models", Agent: "curl/8"})
		r.flush(one)
		r.clock.Advance(20 * time.Minute)
		use.Screen, use.Feature = "", "list-generations"
		other.Note(use)
		r.flush(other)
		r.clock.Advance(20 * time.Minute)
		one.Note(use)
		r.clock.Advance(31 * time.Minute) // another visit
		one.Note(use)
		r.clock.Advance(time.Second)
		one.Note(use)
		r.flush(one)

		var raw bytes.Buffer
		rows, err := r.db.Maps(t.Context(), `SELECT * FROM usage_events`)
		r.must(err)
		for _, row := range rows {
			fmt.Fprintf(&raw, "%s\n", row)
			raw.Write(row["details"].([]byte))
		}
		for _, secret := range []string{"198.51", "anary", "Chrome", "Android", "390x844", "phone", "curl"} {
			if strings.Contains(raw.String()+r.log.String(), secret) {
				t.Errorf("%s is readable", secret)
			}
		}

		_, archive := r.exported("sub_ada")
		events := listOf(t, unpack(t, archive), "usage/events.json")
		var lasted []string
		for _, e := range events {
			lasted = append(lasted, fmt.Sprint(e["feature"], " ", e["visit_ms"]))
		}
		want := []string{"create-generation 0", "list-generations 1200000", "list-generations 2400000", "list-generations 0", "list-generations 1000"}
		if !slices.Equal(lasted, want) {
			t.Errorf("exported %q, want %q", lasted, want)
		}
		first := fmt.Sprint(events[0]["details"])
		if first != "map[address:198.51.100.77 browser:Chrome device:phone place:"+usagePlace+" screen:390x844 system:Android]" || events[0]["at"] != "2031-03-03T12:00:00.000Z" {
			t.Errorf("%v at %v", first, events[0]["at"])
		}

		r.clock.Advance(start.AddDate(0, 12, 0).Sub(r.clock.Now()) - time.Second)
		_, archive = r.exported("sub_ada")
		if n := len(listOf(t, unpack(t, archive), "usage/events.json")); n != 5 {
			t.Errorf("a second before its end: %d events", n)
		}
		r.clock.Advance(time.Second)
		_, archive = r.exported("sub_ada")
		if n := len(listOf(t, unpack(t, archive), "usage/events.json")); n != 4 {
			t.Errorf("at the end of the first: %d events", n)
		}
	})
}

// Usage is kept for the policy's window and no longer: the map says so to whoever
// deletes, and of each generation an event without content outlives the generation.
func TestPromise_R4_UsageHasItsWindow(t *testing.T) {
	t.Parallel()
	m := dataMap(t)
	table := m.Table(privacy.StoreMain, "usage_events")
	if k := table.Keep; len(k) != 1 || k[0].Window != "usage" || k[0].From != "at" || k[0].Then != privacy.Delete {
		t.Errorf("usage is kept as %+v", k)
	}
	usage, _ := privacy.DefaultPolicy().Window("usage")
	content, _ := privacy.DefaultPolicy().Window("generated_content")
	if !usage.After(start).Equal(start.AddDate(1, 0, 0)) || !content.After(start).Before(usage.After(start)) {
		t.Errorf("usage is kept for %s, content for %s", usage, content)
	}
	for _, c := range table.Columns {
		if strings.Contains(c.Name, "generation") || strings.Contains(c.Name, "prompt") || c.Sealed == "" && c.Type == "bytes" {
			t.Errorf("an event has %s", c.Name)
		}
	}
}

// Of whoever objects to statistics, restricts, closes or is gone, nothing is
// written from then on, whatever was noted before.
func TestPromise_U1_NotOfWhoeverObjects(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		change := map[string]func(ctx context.Context, tx *db.Tx, id string) error{
			"sub_objects": func(ctx context.Context, tx *db.Tx, id string) error {
				_, err := subject.Object(ctx, tx, id, subject.Statistics, r.clock.Now())
				return err
			},
			"sub_restricts": func(ctx context.Context, tx *db.Tx, id string) error {
				return subject.Restrict(ctx, tx, id, r.clock.Now())
			},
			"sub_closes": func(ctx context.Context, tx *db.Tx, id string) error {
				_, err := subject.Close(ctx, tx, id, r.clock.Now())
				return err
			},
			"sub_gone": func(context.Context, *db.Tx, string) error { return r.vault.Destroy(context.Background(), "sub_gone") },
			"sub_ada":  func(context.Context, *db.Tx, string) error { return nil },
		}
		u, registry := r.newUsage()
		for id := range change {
			r.people(id)
			u.Note(privacy.Use{Subject: id, Feature: "list-models"})
		}
		u.Note(privacy.Use{Subject: "sub_never", Feature: "list-models"})
		for id, f := range change {
			r.must(r.db.Tx(t.Context(), func(tx *db.Tx) error { return f(t.Context(), tx, id) }))
		}
		r.flush(u)
		var who []string
		r.must(r.db.Select(t.Context(), &who, `SELECT subject FROM usage_events`))
		if !slices.Equal(who, []string{"sub_ada"}) {
			t.Errorf("written of %v", who)
		}
		if got := outcomes(t, registry); got["written"] != 1 || got["withheld"] != 5 || len(got) != 2 {
			t.Errorf("%v", got)
		}
		// Nor does a report count those who object, for what was written before.
		if n := r.count(`SELECT count(*) FROM usage_events WHERE subject = 'sub_objects'`); n != 0 {
			t.Errorf("%d", n)
		}
	})
}

// The same look again within a minute is no other use; what is done counts each
// time; and what a store that is away did not take is written once it is back,
// and only once.
func TestUsageIsWrittenOnce(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		r.people("sub_ada", "sub_ben")
		u, registry := r.newUsage()
		look := privacy.Use{Subject: "sub_ada", Caller: "key_1", Feature: "get-generation", Look: true}
		done := privacy.Use{Subject: "sub_ada", Caller: "key_1", Feature: "create-generation"}
		for range 5 {
			u.Note(look)
			u.Note(done)
			r.clock.Advance(11 * time.Second)
		}
		for _, l := range []privacy.Use{
			{Subject: "sub_ben", Caller: "key_1", Feature: "get-generation", Look: true},
			{Subject: "sub_ada", Caller: "key_2", Feature: "get-generation", Look: true},
			{Subject: "sub_ada", Caller: "key_1", Feature: "list-models", Look: true},
		} {
			u.Note(l)
		}
		gone, stop := context.WithCancel(t.Context())
		stop()
		for range 3 {
			if u.Flush(gone) == nil {
				t.Error("a store that is away is no error")
			}
		}
		r.flush(u)
		r.clock.Advance(10 * time.Second)
		u.Note(look) // a minute after the first
		r.flush(u)
		if n := r.count(`SELECT count(*) FROM usage_events`); n != 1+5+3+1 {
			t.Errorf("%d events", n)
		}
		if got := outcomes(t, registry); got["written"] != 10 || len(got) != 1 {
			t.Errorf("%v", got)
		}
		// What the database refuses for good holds up nothing.
		_, err := r.db.Exec(t.Context(), `ALTER TABLE usage_events RENAME TO usage_elsewhere`)
		r.must(err)
		u.Note(done)
		r.flush(u)
		_, err = r.db.Exec(t.Context(), `ALTER TABLE usage_elsewhere RENAME TO usage_events`)
		r.must(err)
		u.Note(done)
		r.flush(u)
		if got := outcomes(t, registry); got["written"] != 11 || got["failed"] != 1 {
			t.Errorf("%v", got)
		}
	})
}

// More than the buffer takes is dropped and counted, and the rest is written in
// the end.
func TestAFullBufferOfUsageDropsAndCounts(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		r.people("sub_ada")
		u, registry := r.newUsage()
		const most, more = 4096, 100
		for range most + more {
			u.Note(privacy.Use{Subject: "sub_ada", Feature: "create-generation", Addr: usageAddr, Agent: usageAgent})
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { u.Run(ctx); close(ended) }()
		stop() // what is left is written at the end
		<-ended
		if got := outcomes(t, registry); got["written"] != most || got["dropped"] != more {
			t.Errorf("%v", got)
		}
		if n := r.count(`SELECT count(*) FROM usage_events`); n != most {
			t.Errorf("%d events", n)
		}
	})
}

// A report tells of ten people and more, in tens, each counted once, of periods
// that are over and within the window, and without whoever objects.
func TestPromise_U6_SmallGroupsAreNeverShown(t *testing.T) {
	stacks(t, setup{idle: true}, func(t *testing.T, r *rig) {
		ctx := t.Context()
		var ids []string
		for i := range 41 {
			ids = append(ids, fmt.Sprintf("sub_%02d", i))
		}
		r.people(ids...)
		u, _ := r.newUsage()
		n := 0
		use := func(at time.Time, feature string, people ...string) {
			for _, id := range people {
				n++
				r.insert("usage_events", map[string]any{"id": fmt.Sprint("use_", n), "subject": id, "at": at.UnixMilli(), "feature": feature, "visit_ms": 0, "details": []byte{1}})
			}
		}
		report := func(per string, last int) string {
			t.Helper()
			counts, err := u.Report(ctx, per, last)
			r.must(err)
			var all []string
			for _, c := range counts {
				if c.People < 10 || c.People%10 != 0 {
					t.Errorf("%+v is told", c)
				}
				all = append(all, fmt.Sprintf("%s %s %d", c.From.Format("01-02"), c.Feature, c.People))
			}
			return strings.Join(all, ", ")
		}
		sunday := time.Date(2031, 3, 2, 23, 59, 59, 999e6, time.UTC) // start is a Monday, at noon
		use(sunday, "nine", ids[:9]...)
		use(sunday, "ten", ids[:10]...)
		use(sunday, "nineteen", ids[:19]...)
		use(sunday, "nineteen", ids[:19]...) // each counts once
		use(sunday, "twenty", ids[:20]...)
		use(sunday.Add(-24*time.Hour), "twenty", ids[10:30]...)
		use(sunday.Add(time.Millisecond), "today", ids...)
		if got := report("day", 1); got != "03-02 anything 20, 03-02 twenty 20, 03-02 nineteen 10, 03-02 ten 10" {
			t.Error(got)
		}
		if got := report("week", 1); got != "02-24 anything 30, 02-24 twenty 30, 02-24 nineteen 10, 02-24 ten 10" {
			t.Error(got)
		}
		// One of ten objects, and one of twenty restricts.
		r.must(r.db.Tx(ctx, func(tx *db.Tx) error {
			_, err := subject.Object(ctx, tx, ids[0], subject.Statistics, r.clock.Now())
			return err
		}))
		if got := report("day", 1); got != "03-02 anything 10, 03-02 nineteen 10, 03-02 twenty 10" {
			t.Error(got)
		}
		r.must(r.db.Tx(ctx, func(tx *db.Tx) error { return subject.Restrict(ctx, tx, ids[29], r.clock.Now()) }))
		if got := report("day", 2); got != "03-01 anything 10, 03-01 twenty 10, 03-02 anything 10, 03-02 nineteen 10, 03-02 twenty 10" {
			t.Error(got)
		}
		// The day that runs comes with the next one; what is beyond its window goes.
		r.clock.Advance(12 * time.Hour)
		if got := report("day", 1); got != "03-03 anything 30, 03-03 today 30" {
			t.Error(got)
		}
		r.clock.Advance(time.Date(2032, 3, 2, 12, 0, 0, 0, time.UTC).Sub(r.clock.Now()))
		if got := report("day", 400); got != "03-03 anything 30, 03-03 today 30" {
			t.Error(got)
		}
		if got := report("week", 60); got != "03-03 anything 30, 03-03 today 30" {
			t.Error(got)
		}
		for _, wrong := range []struct {
			per  string
			last int
		}{{"hour", 1}, {"day", 0}, {"day", 401}} {
			if _, err := u.Report(ctx, wrong.per, wrong.last); err == nil {
				t.Errorf("%v is taken", wrong)
			}
		}
	})
}
