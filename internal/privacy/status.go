package privacy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/problem"
	"zimage/internal/vault"
)

const (
	// statusLife is how long a status, or that there is none, is told again: whoever
	// asks all the time costs one measurement in it.
	statusLife     = 30 * time.Second
	statusTime     = 20 * time.Second // for one measurement
	statusPatience = time.Second      // of who asks while the first one is made
	statusEvery    = time.Minute      // the figures are measured
	// sweepGrace is how long what has passed its window may wait for its sweep.
	sweepGrace = 2 * time.Hour
	// sealGrace is how long an entry of the ledger may wait for its batch.
	sealGrace = 5 * time.Minute
	// fewest is the smallest number that is told, of people or of their things.
	fewest = 10
	day    = 24 * time.Hour
)

// A Promise is one that the program watches itself, by a code that stays.
type Promise struct{ Code, Words string }

// The codes. Those of retention end with the category of the data map.
const (
	promiseRetention = "retention_"
	promiseErasure   = "erasure_in_time"
	promiseRequest   = "request_in_time"
	promiseSweeps    = "sweeps_run"
	promiseLedger    = "ledger_sealed"
	promiseObjects   = "objects_whole"
	promiseRoots     = "roots_rotated"
	promiseClock     = "clock_plausible"
)

// Promises are all that are watched, in the order in which they are told.
func Promises() []Promise {
	var all []Promise
	for _, category := range categories {
		all = append(all, Promise{promiseRetention + category, "No record of the category " + category + " is kept longer than its time."})
	}
	return append(all,
		Promise{promiseErasure, "Closed accounts are erased within the time of the policy."},
		Promise{promiseRequest, "Requests are answered within the time of the policy."},
		Promise{promiseSweeps, "What deletes data by itself runs, and succeeds."},
		Promise{promiseLedger, "What staff did is chained into the ledger within a minute."},
		Promise{promiseObjects, "Every picture that is not yet to be deleted is there."},
		Promise{promiseRoots, "The roots of all keys are replaced in time, so that no backup opens for longer what was erased."},
		Promise{promiseClock, "The service knows what time it is: nothing that is due waits for a clock to be mended."},
	)
}

// A Status is what can be told to everybody of how the policy is kept: whole days,
// and nothing about one person.
type Status struct {
	At         time.Time
	Broken     []Promise
	Policy     string    // version
	Date       time.Time // in force since
	Retention  []RetentionStatus
	Deadlines  []DeadlineStatus
	Sweeps     []SweepStatus
	Checkpoint Checkpoint
	Comparison *Comparison // nil: database and object store have not been compared; 0: fewer than ten
}

// A RetentionStatus is one rule of the data map by which records end.
type RetentionStatus struct {
	Category, Table string
	Columns         []string // that become empty; none: the record goes
	Kept            string   // how long, in words
	OldestDays      *int     // since the oldest record's time began; nil: there is none, or only its end is known
	LateDays        *int     // since the end of the one that ended first; nil: none has ended
	Broken          bool
	ratio           float64 // of the oldest record's age to its time
}

// A DeadlineStatus is whether all of a kind that are open are in time. Where fewer
// than ten are open it tells nothing else.
type DeadlineStatus struct {
	Kind       string
	Open       int  // 0: fewer than ten
	OldestDays *int // since the oldest was asked for
	DueInDays  *int // of the one that is due first; negative: it is late
	Broken     bool
}

// A SweepStatus is a recurring job.
type SweepStatus struct {
	Kind        string
	Every       time.Duration
	LastSuccess time.Time // zero: none within the day for which jobs are remembered
	Broken      bool
}

// statusCache holds what the last measurement came to.
type statusCache struct {
	measure func(context.Context) (Status, error) // Tests put others.

	mu    sync.Mutex
	last  Status
	err   error         // that it failed with; nil: last is what it found
	until time.Time     // by this machine's monotonic time: so long it is told again
	ended chan struct{} // closed at the end of the measurement that runs; nil: none does
}

func (c *statusCache) told() (Status, error) {
	if c.err != nil {
		return Status{}, unmeasured(c.err, max(time.Until(c.until), time.Second))
	}
	return c.last, nil
}

// unmeasured is why there is no status, and when there may be one.
func unmeasured(err error, after time.Duration) error {
	if err == nil || db.IsAway(err) {
		return problem.Wrap(err, problem.Unavailable, "The status could not be measured in time. Try again in a moment.").After(after)
	}
	return err
}

// Status is how the policy is kept now, or was some seconds ago. Any number may
// ask: one of them measures, and nobody else waits for longer than a second.
func (s *Service) Status(ctx context.Context) (Status, error) {
	c := &s.status
	c.mu.Lock()
	// While somebody measures, what was found before is told a little longer.
	now := time.Now()
	if now.Before(c.until) || c.ended != nil && now.Before(c.until.Add(statusTime)) {
		defer c.mu.Unlock()
		return c.told()
	}
	if c.ended == nil {
		c.ended = make(chan struct{})
		c.mu.Unlock()
		return s.measureStatus(ctx)
	}
	ended := c.ended
	c.mu.Unlock()
	patience := time.NewTimer(statusPatience)
	defer patience.Stop()
	select {
	case <-ended:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.told()
	case <-patience.C:
		return Status{}, unmeasured(nil, 2*time.Second)
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
}

// measureStatus measures, and keeps what comes of it, a failure too.
func (s *Service) measureStatus(ctx context.Context) (Status, error) {
	// Whoever hangs up must not have the next begin anew.
	measuring, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTime)
	defer cancel()
	st, err := Status{}, errors.New("the measurement did not end")
	defer func() {
		c := &s.status
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last, c.err, c.until = st, err, time.Now().Add(statusLife)
		close(c.ended)
		c.ended = nil
	}()
	if st, err = s.status.measure(measuring); err != nil {
		return Status{}, unmeasured(err, statusLife)
	}
	return st, nil
}

// Watch measures how the policy is kept, for the figures, until ctx ends.
func (s *Service) Watch(ctx context.Context) {
	t := time.NewTicker(statusEvery)
	defer t.Stop()
	for {
		measuring, cancel := context.WithTimeout(ctx, statusTime)
		if _, err := s.Measure(measuring); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "could not measure how the policy is kept", "error", err)
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Measure compares what is stored with what is promised, now, and sets the
// figures.
func (s *Service) Measure(ctx context.Context) (Status, error) {
	st := Status{At: s.Clock.Now(), Policy: s.Policy.Version, Date: s.Policy.Date}
	broken := map[string]bool{}
	var err error
	if st.Retention, err = s.measureRetention(ctx, st.At); err != nil {
		return Status{}, err
	}
	ratios := map[string]float64{}
	for _, r := range st.Retention {
		broken[promiseRetention+r.Category] = broken[promiseRetention+r.Category] || r.Broken
		ratios[r.Category] = max(ratios[r.Category], r.ratio)
	}
	if st.Deadlines, err = s.measureDeadlines(ctx, st.At); err != nil {
		return Status{}, err
	}
	for _, d := range st.Deadlines {
		broken[map[string]string{"erasures": promiseErasure, "requests": promiseRequest}[d.Kind]] = d.Broken
	}
	if st.Sweeps, err = s.measureRecurring(ctx, st.At); err != nil {
		return Status{}, err
	}
	oldest, err := s.oldestSweep(ctx)
	if err != nil {
		return Status{}, err
	}
	broken[promiseSweeps] = oldest > time.Hour+sweepGrace || slices.ContainsFunc(st.Sweeps, func(w SweepStatus) bool { return w.Broken })
	var unsealed int64
	if err := s.DB.Get(ctx, &unsealed, `SELECT coalesce(min(at), 0) FROM ledger_entries WHERE sequence IS NULL`); err != nil {
		return Status{}, fmt.Errorf("look for entries that are not sealed: %w", err)
	}
	broken[promiseLedger] = unsealed > 0 && st.At.Sub(at(unsealed)) > sealGrace
	if st.Comparison, err = s.lastComparison(ctx); err != nil {
		return Status{}, err
	}
	if c := st.Comparison; c != nil {
		broken[promiseObjects] = c.Missing+c.Refused > 0
		for _, n := range []*int{&c.Orphans, &c.Refused, &c.Unknown, &c.Missing} {
			if *n < fewest {
				*n = 0
			}
		}
	}
	if st.Checkpoint, err = s.ledger.Checkpoint(ctx); err != nil {
		return Status{}, err
	}
	root := s.Vault.RootAge()
	s.Metrics.rootAge.Set(root.Seconds())
	broken[promiseRoots] = root > vault.RotateLate
	s.Metrics.clockApart.Set(s.Clock.Apart().Abs().Seconds())
	broken[promiseClock] = s.plausible(ctx) != nil
	for _, p := range Promises() {
		value := 0.0
		if broken[p.Code] {
			st.Broken = append(st.Broken, p)
			value = 1
		}
		s.Metrics.promiseBroken.WithLabelValues(p.Code).Set(value)
	}
	for _, category := range categories {
		s.Metrics.retentionOldest.WithLabelValues(category).Set(ratios[category])
	}
	return st, nil
}

// measureRetention looks at every rule by which a person's records end.
func (s *Service) measureRetention(ctx context.Context, now time.Time) ([]RetentionStatus, error) {
	var all []RetentionStatus
	for _, store := range stores {
		constraints, err := db.ReadConstraints(ctx, s.store(store))
		if err != nil {
			return nil, err
		}
		for i := range s.Map.Tables {
			t := &s.Map.Tables[i]
			if t.Store != store || t.Nobody != "" {
				continue
			}
			for _, k := range t.Keep {
				if k.AsLongAs != "" {
					continue
				}
				r, err := s.measureRule(ctx, t, k, plan{constraints: constraints}, now)
				if err != nil {
					return nil, fmt.Errorf("look how old %s are: %w", t.Name, err)
				}
				all = append(all, r)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b RetentionStatus) int {
		return cmp.Compare(slices.Index(categories, a.Category), slices.Index(categories, b.Category))
	})
	return all, nil
}

func (s *Service) measureRule(ctx context.Context, t *Table, k Keep, p plan, now time.Time) (RetentionStatus, error) {
	r := RetentionStatus{Category: t.Category, Table: t.Name, Columns: k.Columns, Kept: k.span(s.Policy)}
	condition := "NOT " + anyHeld(t, k)
	if k.Then == Null {
		condition += " AND " + p.filled(t, k.Columns)
	}
	first := func(column string) (at time.Time, found bool, err error) {
		var ms int64
		err = s.store(t.Store).Get(ctx, &ms, "SELECT "+column+" FROM "+t.Name+" WHERE "+column+" > 0 AND "+condition+" ORDER BY "+column+" LIMIT 1")
		if isNone(err) {
			return time.Time{}, false, nil
		}
		return time.UnixMilli(ms).UTC(), err == nil, err
	}
	var end time.Time
	ended := false
	if k.From != "" {
		began, found, err := first(k.From)
		if err != nil || !found {
			return r, err
		}
		r.OldestDays = wholeDays(now.Sub(began))
		if end, ended = k.longest(s.Policy, began); ended && end.Sub(began) >= day {
			r.ratio = float64(now.Sub(began)) / float64(end.Sub(began))
		}
	}
	if k.Until != "" { // each record's own end counts, which may be sooner
		stored, found, err := first(k.Until)
		if err != nil {
			return r, err
		}
		if found && (!ended || stored.Before(end)) {
			end, ended = stored, true
		}
	}
	if late := now.Sub(end); ended && late > 0 {
		r.LateDays, r.Broken = wholeDays(late), late > sweepGrace
	}
	return r, nil
}

func wholeDays(d time.Duration) *int {
	n := int(max(d, 0) / day)
	return &n
}

// filled is the condition that a row still has something in the columns that
// become empty.
func (p plan) filled(t *Table, columns []string) string {
	var some []string
	for _, name := range columns {
		if !p.constraints.Required(t.Name, name) {
			some = append(some, name+" IS NOT NULL")
		}
	}
	if len(some) > 0 { // the others tell less, and no index is by them
		return "(" + strings.Join(some, " OR ") + ")"
	}
	for _, name := range columns {
		nothing := "''"
		if c := t.Column(name); c.Type != "text" && c.Type != "words" && c.Type != "bytes" {
			nothing = "0"
		}
		some = append(some, name+" <> "+nothing)
	}
	return "(" + strings.Join(some, " OR ") + ")"
}

// deadlined are the tables whose rows have a deadline.
var deadlined = []struct{ table, opened, closed string }{
	{"erasures", "requested_at", "completed_at"},
	{"requests", "received_at", "closed_at"},
}

func (s *Service) measureDeadlines(ctx context.Context, now time.Time) ([]DeadlineStatus, error) {
	var all []DeadlineStatus
	for _, d := range deadlined {
		if s.Map.Table(StoreMain, d.table) == nil {
			continue
		}
		var sum struct {
			Open   int   `db:"open"`
			Oldest int64 `db:"oldest"`
			Due    int64 `db:"due"`
		}
		err := s.DB.Get(ctx, &sum, `SELECT count(*) AS open, coalesce(min(`+d.opened+`), 0) AS oldest, coalesce(min(due_at), 0) AS due
			FROM `+d.table+` WHERE coalesce(`+d.closed+`, 0) = 0`)
		if err != nil {
			return nil, fmt.Errorf("look for open %s: %w", d.table, err)
		}
		left := at(sum.Due).Sub(now)
		one := DeadlineStatus{Kind: d.table, Broken: sum.Open > 0 && left < 0}
		if sum.Open >= fewest {
			one.Open, one.OldestDays, one.DueInDays = sum.Open, wholeDays(now.Sub(at(sum.Oldest))), wholeDays(left)
			if one.Broken {
				*one.DueInDays = -1 - *wholeDays(-left)
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// lastComparison reads what the job that compares has written.
func (s *Service) lastComparison(ctx context.Context) (*Comparison, error) {
	var row struct {
		At     int64  `db:"ended_at"`
		Result string `db:"result"`
	}
	err := s.DB.Get(ctx, &row, `SELECT ended_at, result FROM sweeps WHERE plan = ?`, comparePlan)
	if isNone(err) {
		return nil, nil
	}
	c := Comparison{At: at(row.At)}
	if err == nil {
		err = json.Unmarshal([]byte(row.Result), &c)
	}
	if err != nil {
		return nil, fmt.Errorf("read the last comparison: %w", err)
	}
	return &c, nil
}

// measureRecurring looks when each recurring job last did its work.
func (s *Service) measureRecurring(ctx context.Context, now time.Time) ([]SweepStatus, error) {
	type span struct {
		Name   string `db:"name"`
		First  int64  `db:"first"`
		Newest int64  `db:"newest"`
	}
	var ticks, done []span
	err := s.DB.Select(ctx, &ticks, `SELECT name, min(at) AS first, max(at) AS newest FROM schedule_ticks GROUP BY name`)
	if err == nil { // a job of a schedule has its name for a ref
		err = s.DB.Select(ctx, &done, `SELECT ref AS name, min(finished_at) AS first, max(finished_at) AS newest FROM jobs
			WHERE state = ? AND ref IN (SELECT name FROM schedule_ticks) GROUP BY ref`, jobs.Succeeded)
	}
	if err != nil {
		return nil, fmt.Errorf("look when sweeps ran: %w", err)
	}
	of := func(all []span, name string) span {
		if i := slices.IndexFunc(all, func(s span) bool { return s.Name == name }); i >= 0 {
			return all[i]
		}
		return span{}
	}
	var all []SweepStatus
	for _, w := range s.Recurring {
		t, last := of(ticks, w.Name), of(done, w.Name).Newest
		one := SweepStatus{Kind: w.Kind, Every: w.Every}
		if last > 0 {
			one.LastSuccess = at(last)
		}
		since := func(ms int64) time.Duration { return now.Sub(at(ms)) }
		switch {
		case t.First == 0: // it has yet to come round
		case since(t.Newest) > w.Every+sweepGrace:
			one.Broken = true // nobody keeps the schedule
		case w.Every <= sweepGrace:
			one.Broken = since(t.First) > w.Every+sweepGrace && since(last) > w.Every+sweepGrace
		default: // of the time before, the job may have been forgotten
			one.Broken = since(t.Newest) > sweepGrace && last < t.Newest
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b SweepStatus) int { return cmp.Compare(a.Kind, b.Kind) })
	return all, nil
}
