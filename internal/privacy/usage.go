package privacy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

const (
	usageEvery  = time.Second
	usageBatch  = 1024 // events of one statement
	usageBuffer = 4096 // events that wait at most: with what browsers call themselves, 4 MiB

	// usageAgain is how long the same look from the same caller is one event: a
	// program that asks every second how far its picture is uses one feature.
	usageAgain = time.Minute
	usageLooks = 20_000 // that are remembered at most

	// usageVisit is how long nothing may be used within one visit.
	usageVisit = 30 * time.Minute
)

// UsageOptions for NewUsage. All are required unless they say otherwise.
type UsageOptions struct {
	DB    *db.DB
	Vault *vault.Vault
	Clock *clock.Clock
	Log   *slog.Logger
	// Registry is where the figure goes; nil: nowhere.
	Registry prometheus.Registerer
	// Place says roughly where an address is; nil: nobody knows.
	Place func(netip.Addr) string
	// Window is how long events count; those beyond are in no report.
	Window Window
}

// Usage writes which features people use, beside their requests and never in
// them: Note only remembers, Run writes what was noted about once a second. What
// was noted and not yet written is lost with the process. Of whoever objects to
// statistics, or has restricted the processing, nothing is written.
type Usage struct {
	o      UsageOptions
	events *prometheus.CounterVec

	mu      sync.Mutex
	waiting []noted
	looks   map[look]int64 // when it was noted last
	full    chan struct{}  // a batch is there

	writing sync.Mutex
	hand    []usageRow // sealed, and not yet written
}

// A Use is one use of a feature.
type Use struct {
	Subject string
	Caller  string // id of the session or key; it is not kept
	Feature string // one of our own words, and never a client's
	Look    bool   // nothing was changed: the same again within a minute is no other use
	Addr    netip.Addr
	Agent   string // what the browser calls itself; only what kind it is of is kept
	Screen  string // empty: not told, or without consent
}

type noted struct {
	Use
	at int64
}

type look struct{ subject, caller, feature string }

// usageDetails are what is sealed of an event.
type usageDetails struct {
	Device  string `json:"device"`
	Browser string `json:"browser,omitempty"`
	System  string `json:"system,omitempty"`
	Address string `json:"address,omitempty"`
	Place   string `json:"place,omitempty"`
	Screen  string `json:"screen,omitempty"`
}

type usageRow struct {
	id, subject, feature string
	at                   int64
	details              []byte
}

// What became of a usage event.
const (
	usageWritten  = "written"
	usageWithheld = "withheld" // its person objects, has restricted the processing or is gone
	usageDropped  = "dropped"  // too many waited
	usageFailed   = "failed"   // for another reason than that a store was away
)

// NewUsage makes it. Nothing is written before Run.
func NewUsage(o UsageOptions) *Usage {
	u := &Usage{o: o, looks: map[look]int64{}, full: make(chan struct{}, 1), events: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "zimage_usage_events_total", Help: "Usage events by what became of them; withheld are those of people who object.",
	}, []string{"outcome"})}
	if o.Registry != nil {
		o.Registry.MustRegister(u.events)
	}
	return u
}

// Note remembers a use, to be written soon. It waits for nothing.
func (u *Usage) Note(use Use) {
	at := u.o.Clock.Millis()
	u.mu.Lock()
	defer u.mu.Unlock()
	if use.Look && u.looked(look{use.Subject, use.Caller, use.Feature}, at) {
		return
	}
	if len(u.waiting) >= usageBuffer {
		u.events.WithLabelValues(usageDropped).Inc()
		return
	}
	u.waiting = append(u.waiting, noted{use, at})
	if len(u.waiting) >= usageBatch {
		select {
		case u.full <- struct{}{}:
		default:
		}
	}
}

// looked reports whether the look was noted within the last minute, and notes it.
func (u *Usage) looked(l look, at int64) bool {
	if last, known := u.looks[l]; known && at-last < usageAgain.Milliseconds() {
		return true
	}
	if len(u.looks) >= usageLooks {
		for old, last := range u.looks {
			if at-last >= usageAgain.Milliseconds() {
				delete(u.looks, old)
			}
		}
		if len(u.looks) >= usageLooks {
			clear(u.looks) // some are written twice, and memory is bounded
		}
	}
	u.looks[l] = at
	return false
}

// Run writes what was noted until ctx ends, and then what is left.
func (u *Usage) Run(ctx context.Context) {
	for _, outcome := range []string{usageWritten, usageWithheld, usageDropped, usageFailed} {
		u.events.WithLabelValues(outcome) // an alert must see the first
	}
	t := time.NewTicker(usageEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			u.write(last)
			return
		case <-t.C:
		case <-u.full:
		}
		u.write(ctx)
	}
}

func (u *Usage) write(ctx context.Context) {
	if err := u.Flush(ctx); err != nil {
		u.o.Log.DebugContext(ctx, "usage events wait", "error", err)
	}
}

// Flush writes all that was noted. What a store that is away does not take is
// tried again by the next one; an error says that something is left.
func (u *Usage) Flush(ctx context.Context) error {
	u.writing.Lock()
	defer u.writing.Unlock()
	for {
		if len(u.hand) == 0 {
			u.mu.Lock()
			n := min(len(u.waiting), usageBatch)
			batch := slices.Clone(u.waiting[:n])
			u.mu.Unlock()
			if n == 0 {
				return nil
			}
			rows, err := u.seal(ctx, batch)
			if err != nil {
				return err
			}
			u.mu.Lock()
			u.waiting = slices.Delete(u.waiting, 0, n)
			u.mu.Unlock()
			u.hand = rows
		}
		written, err := u.insert(ctx, u.hand)
		switch {
		case err == nil:
			u.count(usageWritten, written)
			u.count(usageWithheld, len(u.hand)-written)
		case db.IsAway(err) || ctx.Err() != nil:
			return err
		default: // it would fail again, and hold up everything behind it
			u.o.Log.ErrorContext(ctx, "usage events cannot be written", "error", err)
			u.count(usageFailed, len(u.hand))
		}
		u.hand = nil
	}
}

func (u *Usage) count(outcome string, n int) { u.events.WithLabelValues(outcome).Add(float64(n)) }

func (u *Usage) seal(ctx context.Context, batch []noted) ([]usageRow, error) {
	rows := make([]usageRow, 0, len(batch))
	withheld, failed := 0, 0
	for _, n := range batch {
		r := usageRow{id: db.NewID("use", time.UnixMilli(n.at)), subject: n.Subject, feature: n.Feature, at: n.at}
		text, err := json.Marshal(u.details(n.Use))
		if err != nil {
			return nil, err
		}
		r.details, err = u.o.Vault.Seal(ctx, n.Subject, text, vault.Column("usage_events", "details", r.id))
		switch {
		case err == nil:
			rows = append(rows, r)
		case errors.Is(err, vault.ErrDestroyed), errors.Is(err, vault.ErrNoKey):
			withheld++
		case db.IsAway(err) || ctx.Err() != nil:
			return nil, err
		default:
			failed++
		}
	}
	u.count(usageWithheld, withheld)
	u.count(usageFailed, failed)
	return rows, nil
}

func (u *Usage) details(use Use) usageDetails {
	d := usageDetails{Screen: use.Screen}
	d.Device, d.Browser, d.System = deviceOf(use.Agent)
	if use.Addr.IsValid() {
		d.Address = use.Addr.String()
		if u.o.Place != nil {
			d.Place = u.o.Place(use.Addr)
		}
	}
	return d
}

// insert writes those of the rows whose people allow it now, in one transaction,
// and says how many they are. Writing a row again changes nothing.
func (u *Usage) insert(ctx context.Context, rows []usageRow) (written int, err error) {
	if len(rows) == 0 {
		return 0, nil
	}
	var people []string
	for _, r := range rows {
		people = append(people, r.subject)
	}
	slices.Sort(people)
	people = slices.Compact(people)
	err = u.o.DB.Tx(ctx, func(tx *db.Tx) error {
		may, err := subject.Allowing(ctx, tx, people, subject.Statistics)
		if err != nil {
			return err
		}
		lasted, err := u.visits(ctx, tx, people, rows)
		if err != nil {
			return err
		}
		var args []any
		written = 0
		for _, r := range rows {
			if !may[r.subject] {
				continue
			}
			written++
			args = append(args, r.id, r.subject, r.at, r.feature, lasted.by(r.subject, r.at), r.details)
		}
		if written == 0 {
			return nil
		}
		_, err = tx.Exec(ctx, `INSERT INTO usage_events (id, subject, at, feature, visit_ms, details) VALUES `+
			db.Rows("(?, ?, ?, ?, ?, ?)", written)+` ON CONFLICT (id) DO NOTHING`, args...)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("write usage events: %w", err)
	}
	return written, nil
}

// visits are how far people's visits had got by their newest event.
type visits map[string]visit

type visit struct{ at, lasted int64 }

// visits reads those that the rows may go on with, whichever process wrote them.
func (u *Usage) visits(ctx context.Context, tx *db.Tx, people []string, rows []usageRow) (visits, error) {
	first := rows[0].at
	for _, r := range rows {
		first = min(first, r.at)
	}
	since := first - usageVisit.Milliseconds()
	args := []any{since, since}
	for _, id := range people {
		args = append(args, id)
	}
	var found []struct {
		Subject string `db:"subject"`
		At      int64  `db:"at"`
		Began   int64  `db:"began"`
	}
	// Only the newest of each is read, by the index: somebody may have used very much in half an hour.
	err := tx.Select(ctx, &found, `SELECT id AS subject,
		coalesce((SELECT e.at FROM usage_events e WHERE e.subject = subjects.id AND e.at >= ? ORDER BY e.at DESC LIMIT 1), 0) AS at,
		coalesce((SELECT e.at - e.visit_ms FROM usage_events e WHERE e.subject = subjects.id AND e.at >= ? ORDER BY e.at DESC, e.visit_ms LIMIT 1), 0) AS began
		FROM subjects WHERE id IN (`+db.Marks(len(people))+`)`, args...)
	if err != nil {
		return nil, err
	}
	v := visits{}
	for _, f := range found {
		if f.At > 0 {
			v[f.Subject] = visit{f.At, f.At - f.Began}
		}
	}
	return v, nil
}

// by is how long a person's visit had lasted at a time, which is remembered.
func (v visits) by(person string, at int64) int64 {
	last, known := v[person]
	if !known || at-last.at > usageVisit.Milliseconds() {
		v[person] = visit{at: at}
		return 0
	}
	lasted := max(0, last.lasted+at-last.at)
	if at > last.at {
		v[person] = visit{at, lasted}
	}
	return lasted
}

// MayMeasure refuses measurements in the browser of whoever has not agreed to them.
func (s *Service) MayMeasure(ctx context.Context, owner string) error {
	return away(subject.May(ctx, s.DB, owner, subject.Analytics))
}
