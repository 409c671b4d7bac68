// Package jobs is the durable queue: rows in the database decide what runs,
// asynq on Redis only rings a bell so that a worker looks at once.
//
// A room registers a Kind with a handler and adds jobs in its own transactions.
// Leases, retries, fairness, cancellation, ticks and what happens when a worker,
// Redis or the database goes away are written here once, for every kind. A job
// row holds ids only: never a prompt, an address or a body.
package jobs

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"zimage/internal/clock"
	"zimage/internal/db"
)

// Housekeeping is the lane of everything that needs no GPU.
const Housekeeping = "housekeeping"

// System is the party of work that belongs to nobody.
const System = "system"

const (
	// Lease is how long a worker may be silent before its jobs are somebody
	// else's.
	Lease = 12 * time.Second
	// Renew is how often a worker says that it lives.
	Renew = 3 * time.Second
	// reconcileEvery bounds how late a lost job is found: Lease + reconcileEvery.
	reconcileEvery = 2 * time.Second
	// tick is how often a worker looks without being rung; it is also the cost
	// of a lost ring.
	tick = 2 * time.Second
	// workerGone is the age at which a worker's row no longer counts.
	workerGone = 15 * time.Second
	// keepEnded is how long an ended job's row stays, for those who look why.
	keepEnded = 24 * time.Hour
	// keepTicks is how long a tick's row stays, so that a late scheduler cannot
	// run it again.
	keepTicks = 7 * 24 * time.Hour
)

// A State of a job. Waiting is a retry or a delay: users see it as queued.
type State string

// The states. The last three are final.
const (
	Queued    State = "queued"
	Waiting   State = "waiting"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Canceled  State = "canceled"
)

// Terminal reports whether the job has ended.
func (s State) Terminal() bool { return s == Succeeded || s == Failed || s == Canceled }

// Job is one row of the queue.
type Job struct {
	ID              string `db:"id"`
	Lane            string `db:"lane"`
	Kind            string `db:"kind"`
	Party           string `db:"party"`
	Owner           string `db:"owner"`
	Ref             string `db:"ref"`
	State           State  `db:"state"`
	Attempt         int    `db:"attempt"` // 1 for the first run; it fences every write of that run
	MaxAttempts     int    `db:"max_attempts"`
	VStart          int64  `db:"vstart"`
	Cost            int64  `db:"cost"`
	CancelRequested bool   `db:"cancel_requested"`
	ProgressDone    int64  `db:"progress_done"`
	ProgressTotal   int64  `db:"progress_total"`
	ErrorCode       string `db:"error_code"` // of the newest failure, or why it is to stop
	CreatedAt       int64  `db:"created_at"`
	RunAfter        int64  `db:"run_after"`
	StartedAt       int64  `db:"started_at"`
	FinishedAt      int64  `db:"finished_at"`
}

const columns = `id, lane, kind, party, owner, ref, state, attempt, max_attempts, vstart, cost, cancel_requested,
	progress_done, progress_total, error_code, created_at, run_after, started_at, finished_at`

// A Kind is one sort of work.
type Kind struct {
	Name        string // such as generation:run; also the asynq task type of its ring
	Lane        string // where its jobs go unless New says otherwise; default Housekeeping
	MaxAttempts int    // default 5; a release at shutdown is not counted
	// Timeout of one attempt; 0 means none. The lease is renewed as long as it
	// runs.
	Timeout time.Duration
	// Backoff before attempt+1; default 2 s, doubled each time, at most 5 min.
	Backoff func(attempt int) time.Duration
	// Run does the work. It ends with run.Complete, or returns nil (which
	// completes with nothing more to write) or an error.
	Run func(ctx context.Context, run *Run) error
	// Ended, if set, is told in the same transaction that a job failed for good
	// or was canceled, whoever ended it.
	Ended func(ctx context.Context, tx *db.Tx, j Job, end State, code string) error
}

// Queue adds, cancels and looks at jobs. Workers and the scheduler are made
// from it.
type Queue struct {
	db      *db.DB
	clock   *clock.Clock
	log     *slog.Logger
	kinds   map[string]Kind
	bell    *Bell
	metrics *Metrics
	resting atomic.Int64 // jobs between two pieces; see Pace
}

// New makes a queue. Kinds are registered before any worker starts.
func New(d *db.DB, c *clock.Clock, bell *Bell, m *Metrics, log *slog.Logger) *Queue {
	return &Queue{db: d, clock: c, log: log, kinds: map[string]Kind{}, bell: bell, metrics: m}
}

// Register makes a kind known. It panics on a kind without a name or handler,
// or one known already: both are mistakes of the program.
func (q *Queue) Register(k Kind) {
	if k.Name == "" || k.Run == nil {
		panic("jobs: a kind needs a name and a handler")
	}
	if _, known := q.kinds[k.Name]; known {
		panic("jobs: kind registered twice: " + k.Name)
	}
	if k.Lane == "" {
		k.Lane = Housekeeping
	}
	if k.MaxAttempts == 0 {
		k.MaxAttempts = 5
	}
	q.kinds[k.Name] = k
}

// Kinds are the names of all kinds that are known, sorted.
func (q *Queue) Kinds() []string { return slices.Sorted(maps.Keys(q.kinds)) }

// backoff is how long to wait after an attempt.
func (k Kind) backoff(attempt int) time.Duration {
	if k.Backoff != nil {
		return k.Backoff(attempt)
	}
	return min(2*time.Second<<min(max(attempt-1, 0), 10), 5*time.Minute)
}

// NewJob describes a job to add.
type NewJob struct {
	Kind     string
	Party    string    // whose turn it takes; default System
	Owner    string    // whose work it is; default the party
	Ref      string    // the row that the work is about
	Lane     string    // default the kind's
	Cost     int64     // default 1; what a turn is charged
	RunAfter time.Time // zero: now
}

// Add adds a job in the caller's transaction and rings the lane once that is
// committed.
func (q *Queue) Add(ctx context.Context, tx *db.Tx, n NewJob) (Job, error) {
	k, ok := q.kinds[n.Kind]
	if !ok {
		return Job{}, fmt.Errorf("jobs: unknown kind %q", n.Kind)
	}
	now := q.clock.Now()
	j := Job{
		ID: db.NewID("job", now), Kind: n.Kind, Ref: n.Ref, State: Queued, MaxAttempts: k.MaxAttempts,
		Lane: cmp.Or(n.Lane, k.Lane), Party: cmp.Or(n.Party, System), Cost: max(n.Cost, 1),
		CreatedAt: now.UnixMilli(), RunAfter: now.UnixMilli(),
	}
	j.Owner = cmp.Or(n.Owner, j.Party)
	if n.RunAfter.After(now) {
		j.State, j.RunAfter = Waiting, n.RunAfter.UnixMilli() // it takes its turn when it is due
	} else {
		finish, err := takeTurn(ctx, tx, j.Lane, j.Party, j.Cost)
		if err != nil {
			return Job{}, err
		}
		j.VStart = finish - j.Cost
	}
	_, err := tx.Exec(ctx, `INSERT INTO jobs (`+columns+`, lease_until, worker)
		VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, 0, 0, 0, '', ?, ?, 0, 0, 0, '')`,
		j.ID, j.Lane, j.Kind, j.Party, j.Owner, j.Ref, j.State, j.MaxAttempts, j.VStart, j.Cost, j.CreatedAt, j.RunAfter)
	if err != nil {
		return Job{}, err
	}
	if j.State == Queued {
		tx.AfterCommit(func() { q.bell.Ring(j.Lane, j.Kind) })
	}
	return j, nil
}

// takeTurn charges a party for a job and returns its new finish tag: start-time
// fair queueing. The upsert locks the party's row until the transaction ends,
// so that parallel jobs of one party get distinct tags. A party's turn comes after
// every row of a job in the order in which everybody locks: who has it waits for no
// job.
func takeTurn(ctx context.Context, tx *db.Tx, lane, party string, cost int64) (finish int64, err error) {
	err = tx.Get(ctx, &finish, `
		INSERT INTO job_turns (lane, party, finish) VALUES (?, ?, ? + coalesce(
			(SELECT min(vstart) FROM jobs WHERE lane = ? AND state = 'queued'),
			(SELECT max(finish) FROM job_turns WHERE lane = ?), 0))
		ON CONFLICT (lane, party) DO UPDATE
			SET finish = `+db.Greatest(tx)+`(job_turns.finish + ?, excluded.finish)
		RETURNING finish`,
		lane, party, cost, lane, lane, cost)
	return finish, err
}

// AtWish is the code of a job that ended because its owner wanted no more of it.
const AtWish = "canceled"

// Cancel ends a job that has not started, at once; a running one is asked to
// stop and its worker answers within a few seconds. Why becomes the job's code;
// of several reasons the first. It returns the state after the call;
// sql.ErrNoRows when there is no such job.
func (q *Queue) Cancel(ctx context.Context, tx *db.Tx, id, why string) (State, error) {
	var j Job
	if err := tx.Get(ctx, &j, `SELECT `+columns+` FROM jobs WHERE id = ?`+db.ForUpdate(tx), id); err != nil {
		return "", err
	}
	switch j.State {
	case Queued, Waiting:
		if j.State == Queued && j.Attempt == 0 {
			// It never ran: its party gets the turn back, after all jobs that the
			// transaction may still cancel.
			tx.AtLast("job_turns "+j.Lane+" "+j.Party, func() error {
				_, err := tx.Exec(ctx, `UPDATE job_turns SET finish = finish - ? WHERE lane = ? AND party = ?`, j.Cost, j.Lane, j.Party)
				return err
			})
		}
		return Canceled, q.end(ctx, tx, j, Canceled, why)
	case Running:
		_, err := tx.Exec(ctx, `UPDATE jobs SET cancel_requested = 1, error_code = ? WHERE id = ? AND cancel_requested = 0`, why, id)
		return Running, err
	default:
		return j.State, nil
	}
}

// stop ends a running job that was asked to, with the reason for which it was.
func (q *Queue) stop(ctx context.Context, tx *db.Tx, j Job) error {
	return q.end(ctx, tx, j, Canceled, cmp.Or(j.ErrorCode, AtWish))
}

// mark writes a final state, unless the attempt no longer counts: ErrFenced.
func (q *Queue) mark(ctx context.Context, w db.Querier, j Job, end State, code string) error {
	n, err := w.Exec(ctx, `UPDATE jobs SET state = ?, error_code = ?, finished_at = ?, lease_until = 0
		WHERE id = ? AND attempt = ? AND state = ?`, end, code, q.clock.Millis(), j.ID, j.Attempt, j.State)
	if err == nil && n == 0 {
		return ErrFenced
	}
	return err
}

// end marks a job that failed for good or was canceled, and tells its room.
func (q *Queue) end(ctx context.Context, tx *db.Tx, j Job, end State, code string) error {
	if err := q.mark(ctx, tx, j, end, code); err != nil {
		return err
	}
	tx.AfterCommit(func() { q.metrics.ended(j, end, q.clock.Millis()) })
	if k := q.kinds[j.Kind]; k.Ended != nil {
		return k.Ended(ctx, tx, j, end, code)
	}
	return nil
}

// Unstarted counts a party's jobs of a kind that wait for their turn, up to
// limit.
func Unstarted(ctx context.Context, q db.Querier, kind, party string, limit int) (n int, err error) {
	err = q.Get(ctx, &n, `SELECT count(*) FROM (
		SELECT 1 FROM jobs WHERE party = ? AND kind = ? AND state IN ('queued', 'waiting') LIMIT ?) AS counted`, party, kind, limit)
	return n, err
}

// Outlook says where a job stands in its lane.
type Outlook struct {
	Position int            // 1 is the next; counted up to 1,001
	Served   bool           // a worker with a ready slot serves the lane now
	Start    *time.Duration // expected until it starts; nil: nothing measured
}

// Outlook reckons when a queued job will start, from this lane's measured times.
func (q *Queue) Outlook(ctx context.Context, r db.Querier, j Job) (Outlook, error) {
	if j.State == Waiting {
		j.VStart = 1<<62 - 1 // its turn is still to be taken: behind all that wait now
	}
	var ahead struct {
		Jobs int   `db:"jobs"`
		Cost int64 `db:"cost"`
	}
	err := r.Get(ctx, &ahead, `SELECT count(*) AS jobs, coalesce(sum(cost), 0) AS cost FROM (
		SELECT cost FROM jobs WHERE lane = ? AND state = 'queued' AND (vstart, id) < (?, ?)
		ORDER BY vstart DESC, id DESC LIMIT 1000) AS ahead`, j.Lane, j.VStart, j.ID)
	if err != nil {
		return Outlook{}, err
	}
	lanes, err := q.Lanes(ctx, r)
	if err != nil {
		return Outlook{}, err
	}
	lane := lanes[j.Lane]
	o := Outlook{Position: ahead.Jobs + 1, Served: lane.Slots > 0}
	if lane.Slots > 0 && lane.UnitMicros > 0 {
		var running struct {
			Jobs int   `db:"jobs"`
			Cost int64 `db:"cost"`
		}
		err := r.Get(ctx, &running, `SELECT count(*) AS jobs, coalesce(sum(cost), 0) AS cost
			FROM jobs WHERE lane = ? AND state = 'running'`, j.Lane)
		if err != nil {
			return Outlook{}, err
		}
		wait := time.Duration(0)
		if running.Jobs+ahead.Jobs >= lane.Slots {
			// Half of what runs is still to be done, on average.
			wait = time.Duration((ahead.Cost+running.Cost/2)*lane.UnitMicros/int64(lane.Slots)) * time.Microsecond
		}
		if j.State == Waiting {
			wait = max(wait, time.Duration(j.RunAfter-q.clock.Millis())*time.Millisecond)
		}
		o.Start = &wait
	}
	return o, nil
}

// A LaneState is what the living workers say of a lane.
type LaneState struct {
	Lane       string `db:"lane"`
	Slots      int    `db:"slots"`       // ready slots of all workers
	UnitMicros int64  `db:"unit_micros"` // mean run time of one unit of cost; 0: not measured
}

// Lanes tells which lanes are served now.
func (q *Queue) Lanes(ctx context.Context, r db.Querier) (map[string]LaneState, error) {
	return Lanes(ctx, r, q.clock)
}

// Lanes is Queue.Lanes for those who have no queue.
func Lanes(ctx context.Context, r db.Querier, c *clock.Clock) (map[string]LaneState, error) {
	var rows []LaneState
	err := r.Select(ctx, &rows, `SELECT lane, sum(slots) AS slots, coalesce(max(unit_micros), 0) AS unit_micros
		FROM workers WHERE seen_at > ? GROUP BY lane`, c.Millis()-workerGone.Milliseconds())
	if err != nil {
		return nil, err
	}
	lanes := make(map[string]LaneState, len(rows))
	for _, l := range rows {
		lanes[l.Lane] = l
	}
	return lanes, nil
}

// Find reads one job; sql.ErrNoRows when it is not there.
func Find(ctx context.Context, q db.Querier, id string) (Job, error) {
	var j Job
	err := q.Get(ctx, &j, `SELECT `+columns+` FROM jobs WHERE id = ?`, id)
	return j, err
}

// claim takes the fairest queued jobs of a lane, n at most, in the order of their
// turns, and none of those who have all the slots they may have. Kinds that are not
// registered here are left to newer workers. That costs no index: the claim reads the
// row that it takes anyway, and 0.2 (SQLite) to 0.3 ms (PostgreSQL) more for every
// 1,000 rows before it that it passes over.
func (q *Queue) claim(ctx context.Context, lane, worker string, n int, without full) (list []Job, err error) {
	if len(q.kinds) == 0 {
		return nil, nil
	}
	now := q.clock.Millis()
	args := []any{now + Lease.Milliseconds(), worker, now, lane}
	passed := "" // asked first: of these there may be many
	if len(without.parties) > 0 {
		passed += ` AND party NOT IN (` + db.Marks(len(without.parties)) + `)`
		args = append(args, without.parties...)
	}
	if len(without.owners) > 0 {
		passed += ` AND owner NOT IN (` + db.Marks(len(without.owners)) + `)`
		args = append(args, without.owners...)
	}
	for _, kind := range slices.Sorted(maps.Keys(q.kinds)) {
		args = append(args, kind)
	}
	// n is written out: PostgreSQL plans an unknown limit as a tenth of the table.
	fairest := `SELECT id FROM jobs WHERE lane = ? AND state = 'queued'` + passed + ` AND kind IN (` + db.Marks(len(q.kinds)) + `)
		ORDER BY vstart, id LIMIT ` + strconv.Itoa(n) + db.SkipLocked(q.db)
	started := time.Now()
	err = q.db.SelectWrite(ctx, &list, `UPDATE jobs SET state = 'running', attempt = attempt + 1, lease_until = ?, worker = ?,
			started_at = ?, progress_done = 0, progress_total = 0
		WHERE id `+db.InOnce(q.db, fairest)+` AND state = 'queued' RETURNING `+columns, args...)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b Job) int { // RETURNING has no order
		return cmp.Or(cmp.Compare(a.VStart, b.VStart), cmp.Compare(a.ID, b.ID))
	})
	q.metrics.claimed(lane, list, time.Since(started), now)
	return list, nil
}
