package generate

import (
	"context"
	"time"

	"zimage/internal/engine"
	"zimage/internal/jobs"
	"zimage/internal/problem"
)

// LaneSlots are the slots of a fleet's engines in one lane, as jobs sees them.
type LaneSlots struct {
	Fleet *engine.Fleet
	Lane  string
}

// Acquire waits for a free slot of an engine that is ready.
func (l LaneSlots) Acquire(ctx context.Context) (jobs.Slot, error) {
	slot, err := l.Fleet.Acquire(ctx, l.Lane)
	if err != nil {
		return nil, err // not the slot: a nil *engine.Slot would be a non-nil jobs.Slot
	}
	return slot, nil
}

// Size is how many slots the lane's engines have.
func (l LaneSlots) Size() int { return l.Fleet.Slots(l.Lane) }

// Ready is how many of them take images.
func (l LaneSlots) Ready() int { return l.Fleet.ReadySlots(l.Lane) }

// Busy is how many of them are taken.
func (l LaneSlots) Busy() int { return l.count(func(e engine.Status) int { return e.Busy }) }

func (l LaneSlots) count(of func(engine.Status) int) (n int) {
	for _, e := range l.Fleet.Status() {
		if e.Lane == l.Lane {
			n += of(e)
		}
	}
	return n
}

// An EngineState is what a worker said of one of its engines.
type EngineState struct {
	Worker    string `db:"worker"`
	Name      string `db:"name"`
	Kind      string `db:"kind"`
	Lane      string `db:"lane"`
	State     string `db:"state"`
	Slots     int    `db:"slots"`
	Busy      int    `db:"busy"`
	Failures  int    `db:"failures"`
	ErrorCode string `db:"error_code"`
	SeenAt    int64  `db:"seen_at"`
	Drained   bool   `db:"drained"` // the operator's wish
}

// engineReport is how often workers report, and learn what to drain.
const engineReport = 3 * time.Second

// enginesFor is how long the word of a silent worker stays.
const enginesFor = 10 * time.Minute

// ReportEngines tells the database of a worker's engines and takes the
// operator's wishes from it, until ctx ends.
func (s *Service) ReportEngines(ctx context.Context, worker string, fleet *engine.Fleet) {
	t := time.NewTicker(engineReport)
	defer t.Stop()
	for {
		if err := s.reportEngines(ctx, worker, fleet); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "could not report engines", "error", err)
		}
		select {
		case <-ctx.Done():
			gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_, _ = s.DB.Exec(gone, `DELETE FROM engines WHERE worker = ?`, worker) // old rows are not shown anyway
			return
		case <-t.C:
		}
	}
}

func (s *Service) reportEngines(ctx context.Context, worker string, fleet *engine.Fleet) error {
	ctx, cancel := context.WithTimeout(ctx, engineReport)
	defer cancel()
	var names []string
	if err := s.DB.Select(ctx, &names, `SELECT name FROM drained_engines`); err != nil {
		return err
	}
	drained := map[string]bool{}
	for _, n := range names {
		drained[n] = true
	}
	fleet.SetDrained(drained)
	now := s.Clock.Millis()
	for _, e := range fleet.Status() {
		_, err := s.DB.Exec(ctx, `INSERT INTO engines (worker, name, kind, lane, state, slots, busy, failures, error_code, seen_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (worker, name) DO UPDATE SET state = excluded.state, slots = excluded.slots, busy = excluded.busy,
				failures = excluded.failures, error_code = excluded.error_code, seen_at = excluded.seen_at`,
			worker, e.Name, e.Kind, e.Lane, e.State, e.Slots, e.Busy, e.Failures, e.LastErrorCode, now)
		if err != nil {
			return err
		}
	}
	_, err := s.DB.Exec(ctx, `DELETE FROM engines WHERE seen_at < ?`, now-enginesFor.Milliseconds())
	return err
}

// ListEngines tells what the living workers say of their engines.
func (s *Service) ListEngines(ctx context.Context) ([]EngineState, error) {
	var list []EngineState
	err := s.DB.Select(ctx, &list, `SELECT e.worker, e.name, e.kind, e.lane, e.state, e.slots, e.busy, e.failures, e.error_code, e.seen_at,
		d.name IS NOT NULL AS drained FROM engines e LEFT JOIN drained_engines d ON d.name = e.name
		WHERE e.seen_at > ? ORDER BY e.lane, e.name, e.worker`, s.Clock.Millis()-(15*time.Second).Milliseconds())
	return list, err
}

// DrainEngine has every worker give the engine no new work, or again some. It
// is NotFound when no living worker has an engine of that name.
func (s *Service) DrainEngine(ctx context.Context, name string, drain bool) error {
	if !drain {
		n, err := s.DB.Exec(ctx, `DELETE FROM drained_engines WHERE name = ?`, name)
		if err == nil && n == 0 {
			return problem.New(problem.NotFound, "That engine is not drained.")
		}
		return err
	}
	list, err := s.ListEngines(ctx)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Name == name {
			_, err := s.DB.Exec(ctx, `INSERT INTO drained_engines (name, at) VALUES (?, ?) ON CONFLICT (name) DO NOTHING`, name, s.Clock.Millis())
			return err
		}
	}
	return problem.New(problem.NotFound, "No living worker has an engine of that name.")
}
