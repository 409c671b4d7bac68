package jobs

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"zimage/internal/db"
)

// Why a handler's context ended, as context.Cause says.
var (
	// ErrFenced means that this attempt is no longer the job's: a lease was lost
	// and somebody else runs it, or has ended it. Nothing may be written.
	ErrFenced = errors.New("jobs: this attempt no longer counts")
	// ErrCanceled means that the job was asked to stop.
	ErrCanceled = errors.New("jobs: canceled")
	// ErrShutdown means that the worker stops; the job is released and runs
	// again elsewhere, without losing an attempt.
	ErrShutdown = errors.New("jobs: the worker shuts down")
)

// A Failure is an error of a handler that says what becomes of its job. Any
// other error is tried again with the kind's backoff.
type Failure struct {
	Code  string        // stable and safe to show
	Final bool          // never tried again
	Off   bool          // called off: the end is canceled, not failed
	After time.Duration // before the next attempt; 0: the kind's backoff
	// Spared means that the attempt does not count: the job is queued again at
	// once, in the turn that it has.
	Spared bool
	cause  error
}

// Fail ends the job as failed.
func Fail(code string, cause error) error { return &Failure{Code: code, Final: true, cause: cause} }

// CallOff ends the job as canceled: what may not be done any more ends so, whoever
// finds it out.
func CallOff(code string, cause error) error {
	return &Failure{Code: code, Final: true, Off: true, cause: cause}
}

// Retry runs the job again, after the kind's backoff, until its attempts are
// used up; then code is why it failed.
func Retry(code string, cause error) error { return &Failure{Code: code, cause: cause} }

// GiveBack queues the job again as if it had not been claimed: what it needs had
// no room for it. Whoever gives back sees to it that the slot rests: otherwise
// the job is claimed again without a pause.
func GiveBack(code string, cause error) error {
	return &Failure{Code: code, Spared: true, cause: cause}
}

func (f *Failure) Error() string { return "job failed: " + f.Code }

func (f *Failure) Unwrap() error { return f.cause }

// A Slot is the right to run one job. Release may be called more than once.
type Slot interface{ Release() }

// Slots bound what runs at once in a lane: a fixed number, or the slots of a
// fleet of engines.
type Slots interface {
	// Acquire waits for a free slot.
	Acquire(ctx context.Context) (Slot, error)
	// Size is how many there are at most.
	Size() int
	// Ready is how many could run a job now, busy ones included.
	Ready() int
	// Busy is how many are taken.
	Busy() int
}

// Fixed is n slots that are always ready.
type Fixed chan struct{}

// NewFixed makes n slots.
func NewFixed(n int) Fixed { return make(Fixed, n) }

// Acquire waits for a free slot.
func (f Fixed) Acquire(ctx context.Context) (Slot, error) {
	select {
	case f <- struct{}{}:
		return &fixedSlot{slots: f}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Size is the number of slots.
func (f Fixed) Size() int { return cap(f) }

// Ready is the number of slots.
func (f Fixed) Ready() int { return cap(f) }

// Busy is the number of slots taken.
func (f Fixed) Busy() int { return len(f) }

type fixedSlot struct {
	slots Fixed
	once  sync.Once
}

func (s *fixedSlot) Release() { s.once.Do(func() { <-s.slots }) }

// Run is one attempt at a job, in the hands of its handler.
type Run struct {
	Job
	// Slot is what the attempt runs on. It is released when the handler returns,
	// unless the handler has released it before (the engine is free, the rest
	// needs none) or keeps it (the engine goes on after a cancel).
	Slot Slot

	worker     *Worker
	cancel     context.CancelCauseFunc
	keep       atomic.Bool
	ended      atomic.Bool // as succeeded
	completing atomic.Bool
	done       atomic.Int64
	total      atomic.Int64
	canceled   atomic.Bool
}

// Progress is carried to the database by the next renewal of the lease.
func (r *Run) Progress(done, total int64) {
	r.done.Store(done)
	r.total.Store(total)
}

// KeepSlot leaves the release of the slot to the caller, beyond the handler's
// return.
func (r *Run) KeepSlot() { r.keep.Store(true) }

// Own keeps the job's row until a transaction ends, in which nobody else then has the
// job; ErrFenced when this attempt no longer counts.
func (r *Run) Own(ctx context.Context, tx *db.Tx) error {
	var id string
	err := tx.Get(ctx, &id, `SELECT id FROM jobs WHERE id = ? AND attempt = ? AND state = 'running'`+db.ForUpdate(tx), r.ID, r.Attempt)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrFenced
	}
	return err
}

// Complete ends the job as succeeded and writes, in the same transaction, what
// fn writes. It is fenced: when this attempt no longer counts it returns
// ErrFenced and nothing is written. While the database is away it waits and
// tries again until ctx ends, so a result is not lost; fn may run several times,
// each with a context of its own.
// After any error but ErrFenced and fn's own, the commit may have happened.
func (r *Run) Complete(ctx context.Context, fn func(ctx context.Context, tx *db.Tx) error) error {
	q := r.worker.queue
	r.completing.Store(true) // a renewal that finds the job ended must not end us
	err := r.worker.persist(ctx, func(ctx context.Context) error {
		var err error
		if fn == nil {
			err = r.worker.succeed(ctx, r.Job)
		} else {
			err = q.db.Tx(ctx, func(tx *db.Tx) error {
				if err := q.mark(ctx, tx, r.Job, Succeeded, ""); err != nil {
					return err
				}
				return fn(ctx, tx)
			})
		}
		if !errors.Is(err, ErrFenced) {
			return err
		}
		// A commit whose answer was lost looks like this too.
		j, unknown := Find(ctx, q.db, r.ID)
		switch {
		case unknown != nil && !errors.Is(unknown, sql.ErrNoRows):
			return unknown
		case unknown == nil && j.State == Succeeded && j.Attempt == r.Attempt:
			return nil
		}
		return err
	})
	if err == nil {
		r.ended.Store(true)
		q.metrics.ended(r.Job, Succeeded, q.clock.Millis())
	}
	return err
}

// succeed marks a job that has nothing more to write. Those that end at the same
// time share one statement, which is its own transaction and soon gives up: a row
// that somebody else is at must not cost the others their lease. Who was not marked,
// for that or because its attempt no longer counts, asks by itself.
func (w *Worker) succeed(ctx context.Context, j Job) error {
	if marked, err := w.ends.ask(j); err == nil && marked {
		return nil
	}
	return w.queue.mark(ctx, w.queue.db, j, Succeeded, "")
}

func (w *Worker) succeedAll(ended []*wish[Job, bool]) error {
	ctx, cancel := context.WithTimeout(context.Background(), Renew)
	defer cancel()
	args := []any{w.queue.clock.Millis()}
	for _, e := range ended {
		args = append(args, e.in.ID, e.in.Attempt)
	}
	var marked []Job
	err := w.queue.db.SelectWrite(ctx, &marked, `UPDATE jobs SET state = 'succeeded', error_code = '', finished_at = ?, lease_until = 0
		WHERE (id, attempt) IN (VALUES `+db.Rows("(?, CAST(? AS integer))", len(ended))+`) AND state = 'running' RETURNING id, attempt`, args...)
	if err != nil {
		return err
	}
	for _, e := range ended {
		e.out = slices.ContainsFunc(marked, func(m Job) bool { return m.ID == e.in.ID && m.Attempt == e.in.Attempt })
	}
	return nil
}

// completeTimeout bounds one try to write what became of an attempt, so that a
// database that hangs is tried again.
const completeTimeout = 30 * time.Second

// A Lane is what a worker serves: a queue and the slots to run it on.
type Lane struct {
	Name  string
	Slots Slots
	// CheckInterval is how often asynq looks for a ring; default 250 ms. 10 ms
	// picks up in 5 to 7 ms and costs about 1 % of a core.
	CheckInterval time.Duration
	// PerParty is how many slots one party may have at once in this worker; 0: all.
	// What hangs for one of them then leaves the others to everybody else.
	PerParty int
	// PerOwner is the same for all parties of an owner together.
	PerOwner int
}

// Worker runs the jobs of its lanes.
type Worker struct {
	queue    *Queue
	id       string
	lanes    []*lane
	shutdown time.Duration
	try      time.Duration // one try to write what became of an attempt
	log      *slog.Logger

	mu       sync.Mutex
	running  map[string]*Run
	stopping bool // whatever is claimed from now on is released at once
	// Claims that ended without an answer, by the name under which they claimed,
	// and when: each may have taken a job.
	unanswered map[string]time.Time
	claims     atomic.Int64
	ends       shared[Job, bool]
	work       sync.WaitGroup
}

// NewWorker makes a worker. shutdown is how long running jobs may take to
// finish once its context has ended.
func (q *Queue) NewWorker(lanes []Lane, shutdown time.Duration) *Worker {
	w := &Worker{
		queue: q, id: db.NewID("wrk", q.clock.Now()), shutdown: shutdown, try: completeTimeout,
		running: map[string]*Run{}, unanswered: map[string]time.Time{},
	}
	w.ends.all = w.succeedAll
	w.log = q.log.With("worker", w.id)
	for _, l := range lanes {
		if l.CheckInterval == 0 {
			l.CheckInterval = 250 * time.Millisecond
		}
		served := &lane{
			Lane: l, worker: w, wake: make(chan struct{}, 1), parties: map[string]int{}, owners: map[string]int{},
			// A result that cannot be stored yet waits in memory: this bounds how many.
			inflight: make(chan struct{}, 3*l.Slots.Size()+2),
		}
		served.claims.all = served.claimAll
		w.lanes = append(w.lanes, served)
	}
	return w
}

// ID names the worker in the database and in logs.
func (w *Worker) ID() string { return w.id }

// Run serves the lanes until ctx ends. Then nothing new is claimed; what runs
// may finish until the shutdown time is over, and is released after it. When
// abort is closed it is released at once.
func (w *Worker) Run(ctx context.Context, abort <-chan struct{}) error {
	// Leases are renewed, and slots acquired, until the last job has ended.
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { w.renew(alive) })

	var bells []func()
	for _, l := range w.lanes {
		kinds := slices.Sorted(maps.Keys(w.queue.kinds))
		hush, err := w.queue.bell.listen(l.Name, kinds, l.Slots.Size(), l.CheckInterval, func() {
			if l.enter() {
				defer l.loops.Done()
				l.serve(ctx)
			}
		}, w.log)
		if err != nil {
			return fmt.Errorf("jobs: listen on lane %s: %w", l.Name, err)
		}
		bells = append(bells, hush)
		w.queue.bell.hear(l.Name, l.kick)
		l.kick() // for what was queued before
		background.Go(func() { l.tick(ctx) })
	}
	w.log.Info("worker serves", "lanes", len(w.lanes))
	<-ctx.Done()

	finished := make(chan struct{})
	go func() {
		for _, hush := range bells {
			hush()
		}
		for _, l := range w.lanes {
			l.close()
			l.loops.Wait()
		}
		w.work.Wait()
		close(finished)
	}()
	select {
	case <-finished:
	case <-abort:
		w.stopAll()
	case <-time.After(w.shutdown):
		w.stopAll()
	}
	select {
	case <-finished:
	case <-time.After(5 * time.Second):
		// A handler that does not end keeps its lease until the process is gone;
		// the job then runs again elsewhere.
		w.log.Warn("jobs did not stop", "jobs", w.busy())
	}
	stop()
	background.Wait()
	gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	w.giveBackUnanswered(gone)
	if _, err := w.queue.db.Exec(gone, `DELETE FROM workers WHERE id = ?`, w.id); err != nil {
		return fmt.Errorf("jobs: sign off: %w", err)
	}
	return nil
}

func (w *Worker) stopAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopping = true
	for _, r := range w.running {
		r.cancel(ErrShutdown)
	}
}

func (w *Worker) busy() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.running)
}

// lane is one lane as this worker serves it.
type lane struct {
	Lane
	worker   *Worker
	wake     chan struct{}
	inflight chan struct{}
	loops    sync.WaitGroup
	mu       sync.Mutex
	closed   bool           // nobody enters any more
	parties  map[string]int // slots that each has, where that is bounded
	owners   map[string]int // so too
	active   atomic.Int64
	claims   shared[context.Context, *Job]
	unit     atomic.Int64 // mean run time of one unit of cost, in microseconds
}

// enter counts a loop that begins, unless the lane is closed: a ring may still be on its
// way while somebody waits for the last loop.
func (l *lane) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.loops.Add(1)
	}
	return !l.closed
}

func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

// kick makes the lane look, without a ring.
func (l *lane) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// tick looks when nobody rang, in case that a ring was lost.
func (l *lane) tick(ctx context.Context) {
	for {
		jitter := time.Duration(rand.Int64N(int64(tick) / 4)) //nolint:gosec // spreads load, decides nothing
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-time.After(tick - jitter):
		}
		if l.active.Load() < int64(l.Slots.Size()) {
			if l.enter() {
				go func() {
					defer l.loops.Done()
					l.serve(ctx)
				}()
			}
		}
	}
}

// serve runs jobs until a claim comes back empty.
func (l *lane) serve(ctx context.Context) {
	l.active.Add(1)
	defer l.active.Add(-1)
	for ctx.Err() == nil {
		select {
		case l.inflight <- struct{}{}:
		case <-ctx.Done():
			return
		}
		slot, err := l.Slots.Acquire(ctx)
		if err != nil {
			<-l.inflight
			return
		}
		j, err := l.claim(ctx)
		if err != nil || j == nil {
			slot.Release()
			<-l.inflight
			return
		}
		// There may be more: one loop brings the next, until every slot has one.
		if l.active.Load() < int64(l.Slots.Size()) {
			l.kick()
		}
		l.start(*j, slot)
	}
}

// claim takes a job for one slot, or nil when there is none. The slots of a lane
// that claim at the same time share one statement. None begins once ctx has ended,
// and none is cut off by that: a job claimed with nobody to hear of it would wait for
// its lease to pass.
func (l *lane) claim(ctx context.Context) (*Job, error) { return l.claims.ask(ctx) }

func (l *lane) claimAll(slots []*wish[context.Context, *Job]) error {
	ctx := slots[0].in // all loops of this lane have the same
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(db.Urgent(context.WithoutCancel(ctx)), Renew)
	defer cancel()
	// Each claims under a name of its own, so that the jobs of a claim that was
	// not answered can be told from those that run or are being claimed.
	w := l.worker
	name := w.id + "/" + strconv.FormatInt(w.claims.Add(1), 36)
	answered := false
	defer func() {
		if !answered {
			w.mu.Lock()
			w.unanswered[name] = time.Now()
			w.mu.Unlock()
		}
	}()
	list, err := w.queue.claim(ctx, l.Name, name, len(slots), l.full())
	if err != nil {
		w.log.Warn("claim failed", "lane", l.Name, "error", err)
		return err
	}
	answered = true
	for i := range list {
		if l.admit(list[i]) {
			slots[i].out = &list[i]
		} else if err := w.queue.release(ctx, list[i]); err != nil {
			w.log.Warn("could not give back a job; its lease will run out", "job", list[i].ID, "error", err)
		}
	}
	return nil
}

// full are those who have all the slots they may have.
type full struct{ parties, owners []any }

func (l *lane) full() (f full) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for party, n := range l.parties {
		if n >= l.PerParty {
			f.parties = append(f.parties, party)
		}
	}
	for owner, n := range l.owners {
		if n >= l.PerOwner {
			f.owners = append(f.owners, owner)
		}
	}
	return f
}

// admit counts a slot of a job's party and owner, unless one of them has all it may
// have: those that were claimed together may be more.
func (l *lane) admit(j Job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hasAll(j) {
		return false
	}
	if l.PerParty > 0 {
		l.parties[j.Party]++
	}
	if l.PerOwner > 0 {
		l.owners[j.Owner]++
	}
	return true
}

// hasAll reports whether a job's party or owner has all the slots it may have.
func (l *lane) hasAll(j Job) bool {
	return l.PerParty > 0 && l.parties[j.Party] >= l.PerParty || l.PerOwner > 0 && l.owners[j.Owner] >= l.PerOwner
}

// leave takes back what admit counted. Of one who had all, claims may have passed over
// something: it is looked for again.
func (l *lane) leave(j Job) {
	l.mu.Lock()
	passed := l.hasAll(j)
	fewer(l.parties, j.Party)
	fewer(l.owners, j.Owner)
	l.mu.Unlock()
	if passed {
		l.kick()
	}
}

func fewer(counts map[string]int, who string) {
	if counts[who]--; counts[who] <= 0 {
		delete(counts, who)
	}
}

// keepUnanswered is how long a claim without an answer may still turn out to have
// taken a job: the server may only come to it when it is well again.
const keepUnanswered = 10 * time.Minute

// giveBackUnanswered gives back the jobs that claims without an answer have taken.
// Nobody runs them; left to their leases, they would use up attempts.
func (w *Worker) giveBackUnanswered(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, Renew)
	defer cancel()
	var names []any
	w.mu.Lock()
	for name, at := range w.unanswered {
		if time.Since(at) > keepUnanswered {
			delete(w.unanswered, name)
		} else {
			names = append(names, name)
		}
	}
	w.mu.Unlock()
	for some := range slices.Chunk(names, batch) {
		var taken []struct {
			Job
			Worker string `db:"worker"`
		}
		err := w.queue.db.Select(ctx, &taken, `SELECT `+columns+`, worker FROM jobs
			WHERE state = 'running' AND worker IN (`+db.Marks(len(some))+`)`, some...)
		if err != nil {
			return // it is away still
		}
		kept := map[string]bool{} // claims of which a job is still to be given back
		for _, t := range taken {
			err := recovered(func() error { return w.queue.release(ctx, t.Job) }) // it may tell the kind's Ended
			switch {
			case db.IsAway(err):
				return
			case err != nil:
				kept[t.Worker] = true
				w.log.Error("could not give back a job whose claim was not answered", "job", t.ID, "attempt", t.Attempt, "error", err)
			default:
				w.log.Warn("gave back a job whose claim was not answered", "job", t.ID, "attempt", t.Attempt)
			}
		}
		w.mu.Lock()
		for _, t := range taken { // all that its claim took, in one statement
			if !kept[t.Worker] {
				delete(w.unanswered, t.Worker)
			}
		}
		w.mu.Unlock()
	}
}

// start runs one claimed job in a goroutine of its own.
func (l *lane) start(j Job, slot Slot) {
	w := l.worker
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &Run{Job: j, Slot: slot, worker: w, cancel: cancel}
	w.mu.Lock()
	w.running[j.ID] = r
	if w.stopping { // the claim came back after stopAll
		cancel(ErrShutdown)
	}
	w.mu.Unlock()
	w.work.Go(func() {
		defer func() {
			w.mu.Lock()
			delete(w.running, j.ID)
			w.mu.Unlock()
			cancel(nil)
			if !r.keep.Load() {
				slot.Release()
			}
			<-l.inflight
			l.leave(j)
		}()
		if ctx.Err() != nil {
			w.settle(ctx, r, context.Cause(ctx))
			return
		}
		started := time.Now()
		err := w.call(ctx, r)
		if err == nil && r.ended.Load() {
			l.learn(time.Since(started), j.Cost)
		}
		w.settle(ctx, r, err)
	})
}

// call runs the handler; a panic is an error, of which only the type is told.
func (w *Worker) call(ctx context.Context, r *Run) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.panicked("running", r, p)
			err = Retry("internal", fmt.Errorf("panic of type %T", p))
		}
	}()
	k := w.queue.kinds[r.Kind] // only these are claimed
	if k.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.Timeout)
		defer cancel()
	}
	return k.Run(ctx, r)
}

// panicked logs a panic: its type and where, never what it says.
func (w *Worker) panicked(while string, r *Run, p any) {
	w.log.Error("a job's code panicked", "while", while, "kind", r.Kind, "job", r.ID, "type", fmt.Sprintf("%T", p), "frames", frames())
}

func frames() string {
	stack := make([]byte, 8<<10)
	return string(stack[:runtime.Stack(stack, false)])
}

// learn keeps the mean run time of one unit of cost, newer runs counting more.
func (l *lane) learn(took time.Duration, cost int64) {
	unit := took.Microseconds() / max(cost, 1)
	old := l.unit.Load()
	if old == 0 {
		l.unit.Store(max(unit, 1))
		return
	}
	l.unit.Store(max((old*7+unit)/8, 1))
}

// settle writes what became of an attempt, unless its handler has done so.
func (w *Worker) settle(ctx context.Context, r *Run, err error) {
	if r.ended.Load() {
		return
	}
	defer func() {
		if p := recover(); p != nil { // of the kind's Backoff or Ended
			w.panicked("ending", r, p) // its lease will run out
		}
	}()
	cause := context.Cause(ctx)
	if errors.Is(err, ErrFenced) || errors.Is(cause, ErrFenced) {
		w.queue.metrics.leasesLost.Inc()
		w.queue.attemptOver(r.Job)
		w.log.Warn("attempt no longer counts", "job", r.ID, "attempt", r.Attempt)
		return
	}
	// The job's own context may have ended: what became of it is written all the
	// same, for as long as a lease could live.
	write, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var settled error
	switch {
	case errors.Is(cause, ErrShutdown):
		settled = w.persist(write, func(ctx context.Context) error { return w.queue.release(ctx, r.Job) })
	case err == nil:
		settled = r.Complete(write, nil)
	default:
		settled = w.persist(write, func(ctx context.Context) error { return w.queue.fail(ctx, r, err) })
	}
	if settled != nil {
		w.log.Warn("could not settle a job; its lease will run out", "job", r.ID, "attempt", r.Attempt, "error", settled)
	}
}

// release gives an attempt back that has not come to an end.
func (q *Queue) release(ctx context.Context, attempt Job) error {
	err := q.db.Tx(ctx, func(tx *db.Tx) error {
		var j Job
		err := tx.Get(ctx, &j, `SELECT `+columns+` FROM jobs WHERE id = ? AND attempt = ? AND state = 'running'`+db.ForUpdate(tx),
			attempt.ID, attempt.Attempt)
		if err != nil {
			return err
		}
		return q.giveBack(ctx, tx, j)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil // it is not ours any more
	}
	return err
}

// giveBack queues a running job as if it had not been claimed. The attempt's
// number stays used, because it fences; one more is allowed instead. A job that
// was asked to stop has stopped.
func (q *Queue) giveBack(ctx context.Context, tx *db.Tx, j Job) error {
	if j.CancelRequested {
		return q.stop(ctx, tx, j)
	}
	_, err := tx.Exec(ctx, `UPDATE jobs SET state = 'queued', lease_until = 0, worker = '', max_attempts = max_attempts + 1
		WHERE id = ?`, j.ID)
	tx.AfterCommit(func() {
		q.attemptOver(j)
		q.bell.Ring(j.Lane, j.Kind)
	})
	return err
}

// attemptOver measures an attempt that did not end its job; those that did are
// measured with it.
func (q *Queue) attemptOver(j Job) {
	q.metrics.runTime.WithLabelValues(j.Lane, j.Kind).Observe(float64(q.clock.Millis()-j.StartedAt) / 1000)
}

// fail writes a failed attempt: canceled, given back, waiting for the next one, or
// failed.
func (q *Queue) fail(ctx context.Context, r *Run, cause error) error {
	k, now := q.kinds[r.Kind], q.clock.Millis()
	f := &Failure{Code: "internal"}
	if !errors.As(cause, &f) && !errors.Is(cause, ErrCanceled) {
		q.log.Error("handler failed", "kind", r.Kind, "job", r.ID, "attempt", r.Attempt, "error", cause)
	}
	err := q.db.Tx(ctx, func(tx *db.Tx) error {
		var j Job
		err := tx.Get(ctx, &j, `SELECT `+columns+` FROM jobs WHERE id = ?`+db.ForUpdate(tx), r.ID)
		if err != nil {
			return err
		}
		if j.State != Running || j.Attempt != r.Attempt {
			return ErrFenced
		}
		switch {
		case j.CancelRequested:
			return q.stop(ctx, tx, j)
		case f.Spared:
			return q.giveBack(ctx, tx, j)
		case f.Off:
			return q.end(ctx, tx, j, Canceled, f.Code)
		case f.Final || j.Attempt >= j.MaxAttempts:
			return q.end(ctx, tx, j, Failed, f.Code)
		}
		after := f.After
		if after == 0 {
			// Of those that count: each that was spared has raised the most.
			after = k.backoff(min(j.Attempt, j.Attempt-j.MaxAttempts+k.MaxAttempts))
		}
		_, err = tx.Exec(ctx, `UPDATE jobs SET state = 'waiting', run_after = ?, lease_until = 0, error_code = ?
			WHERE id = ?`, now+after.Milliseconds(), f.Code, j.ID)
		tx.AfterCommit(func() { q.attemptOver(j) })
		return err
	})
	if errors.Is(err, ErrFenced) || errors.Is(err, sql.ErrNoRows) {
		q.attemptOver(r.Job)
		return nil // ended by somebody, perhaps by us with a lost answer
	}
	return err
}

// persist repeats write while the database is away, each time for as long as
// completeTimeout.
func (w *Worker) persist(ctx context.Context, write func(context.Context) error) error {
	try := func() error {
		// Not ctx: ended in the middle of a commit, it would hide what came of it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.try)
		defer cancel()
		return write(ctx)
	}
	for wait := 100 * time.Millisecond; ; wait = min(wait*2, 2*time.Second) {
		err := try()
		if err == nil || !db.IsAway(err) || errors.Is(err, ErrFenced) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(wait):
		}
	}
}

// renew tells the database every Renew that this worker lives and how far its
// jobs are, and learns which of them are to stop.
func (w *Worker) renew(ctx context.Context) {
	ctx = db.Urgent(ctx)
	t := time.NewTicker(Renew)
	defer t.Stop()
	w.present(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		w.mu.Lock()
		running := slices.Collect(maps.Values(w.running))
		w.mu.Unlock()
		// Side by side: one that waits for its row must not cost the others' lease.
		var renewals sync.WaitGroup
		for _, r := range running {
			renewals.Go(func() { w.renewOne(ctx, r) })
		}
		renewals.Go(func() { w.giveBackUnanswered(ctx) })
		renewals.Wait()
		w.present(ctx)
	}
}

func (w *Worker) renewOne(ctx context.Context, r *Run) {
	ctx, cancel := context.WithTimeout(ctx, Renew)
	defer cancel()
	var stop bool
	err := w.queue.db.GetWrite(ctx, &stop, `UPDATE jobs SET lease_until = ?, progress_done = ?, progress_total = ?
		WHERE id = ? AND attempt = ? AND state = 'running' RETURNING cancel_requested = 1`,
		w.queue.clock.Millis()+Lease.Milliseconds(), r.done.Load(), r.total.Load(), r.ID, r.Attempt)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		if !r.completing.Load() {
			r.cancel(ErrFenced)
		}
	case err != nil:
		// The database is away: the job goes on and its result waits.
	case stop && !r.canceled.Swap(true):
		r.cancel(ErrCanceled)
	}
}

// present writes which lanes this worker serves, with how many ready slots.
func (w *Worker) present(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, Renew)
	defer cancel()
	for _, l := range w.lanes {
		_, err := w.queue.db.Exec(ctx, `INSERT INTO workers (id, lane, slots, unit_micros, seen_at) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (id, lane) DO UPDATE SET slots = excluded.slots, unit_micros = excluded.unit_micros, seen_at = excluded.seen_at`,
			w.id, l.Name, l.Slots.Ready(), l.unit.Load(), w.queue.clock.Millis())
		if err != nil && ctx.Err() == nil {
			w.log.Warn("could not report to the database", "error", err)
			return
		}
		w.queue.metrics.slots(l.Name, l.Slots.Ready(), l.Slots.Busy(), len(l.inflight))
	}
}
