// Package generate is a prompt's life: submit, run, cancel, list, delete.
//
// Submit seals the prompt and writes generation and job in one transaction; a
// worker runs the job on an engine, seals the pictures into object storage and
// writes the result in one fenced transaction; whoever waits is told. What a
// person wrote leaves this package only to its owner and to the engine.
package generate

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/problem"
	"zimage/internal/vault"
)

// The kinds of job of this room.
const (
	KindRun               = "generation:run"
	KindSweep             = "generation:sweep"
	KindDeleteGenerations = "generation:delete"
	KindDeleteImages      = "image:delete"
)

// tombstoneFor is how long an id answers that its content is gone.
const tombstoneFor = 30 * 24 * time.Hour

// Options of a Service. All are needed unless they say otherwise.
type Options struct {
	DB      *db.DB
	Vault   *vault.Vault
	Objects objects.Store
	Queue   *jobs.Queue
	Events  *events.Log
	Clock   *clock.Clock
	Log     *slog.Logger
	Redis   redis.UniversalClient // progress and wake-ups of those who wait; may be away
	Metrics *Metrics

	Engines engine.Config // which models there are
	Rules   *Rules        // of the operator, for prompts; nil: none

	// Journal keeps beside the keys which rows of a table people deleted. nil: nobody
	// does.
	Journal func(ctx context.Context, table string, ids []string) error
	// Ended is told, in the transaction, which shares and links people ended. nil: nobody is.
	Ended func(ctx context.Context, tx *db.Tx, owner, kind string, ids ...string)

	RetentionDays int // how long content is kept, by the policy
	QueuedLimit   int // generations of one owner that have not started
	DailyLimit    int // generations of one owner in a day (UTC)
}

// Service is the room. Its methods are safe for concurrent use.
type Service struct {
	Options
	models    map[string]engine.Model
	estimated map[string]bool // lanes whose engines tell no steps
	bulletin  *bulletin
	waiting   atomic.Int64 // results in memory that wait for object storage
}

// New makes the room and registers its kinds of job.
func New(o Options) *Service {
	s := &Service{Options: o, models: map[string]engine.Model{}, estimated: map[string]bool{}}
	for _, m := range o.Engines.Models {
		s.models[m.ID] = m
	}
	for _, e := range o.Engines.Engines {
		s.estimated[e.Lane] = s.estimated[e.Lane] || e.Kind == "openai" || e.Kind == "sdcpp"
	}
	s.bulletin = newBulletin(o.Redis)
	o.Queue.Register(jobs.Kind{Name: KindRun, Lane: "generation", Timeout: 6 * time.Hour, Run: s.run, Ended: s.ended})
	o.Queue.Register(jobs.Kind{Name: KindSweep, MaxAttempts: 100, Run: s.sweep})
	o.Queue.Register(jobs.Kind{Name: KindCancelAll, MaxAttempts: 100, Run: s.cancelAll})
	for _, k := range []removal{s.generationRemoval(), s.imageRemoval()} {
		o.Queue.Register(jobs.Kind{Name: k.kind, MaxAttempts: 100, Run: s.deleteRest(k)})
	}
	return s
}

// Close stops the goroutine that tells others of changes.
func (s *Service) Close() { s.bulletin.close() }

// Schedules are the room's recurring work.
func Schedules() []jobs.Schedule {
	return []jobs.Schedule{{Name: sweepAll, Every: time.Hour, Kind: KindSweep}}
}

// row is a generation with what its job knows of it.
type row struct {
	ID            string `db:"id"`
	Owner         string `db:"owner"`
	JobID         string `db:"job_id"`
	Model         string `db:"model"`
	Seed          int64  `db:"seed"`
	Request       []byte `db:"request"`
	Status        Status `db:"status"`
	ErrorCode     string `db:"error_code"`
	Attempts      int    `db:"attempts"`
	CreatedAt     int64  `db:"created_at"`
	StartedAt     int64  `db:"started_at"`
	FinishedAt    int64  `db:"finished_at"`
	ExpiresAt     int64  `db:"expires_at"`
	RemovedAt     int64  `db:"removed_at"`
	RemovedReason string `db:"removed_reason"`

	JobState      sql.NullString `db:"job_state"`
	JobAttempt    sql.NullInt64  `db:"job_attempt"`
	JobLane       sql.NullString `db:"job_lane"`
	JobVStart     sql.NullInt64  `db:"job_vstart"`
	JobRunAfter   sql.NullInt64  `db:"job_run_after"`
	JobStartedAt  sql.NullInt64  `db:"job_started_at"`
	ProgressDone  sql.NullInt64  `db:"progress_done"`
	ProgressTotal sql.NullInt64  `db:"progress_total"`
}

const selectRow = `SELECT g.id, g.owner, g.job_id, g.model, g.seed, g.request, g.status, g.error_code, g.attempts,
	g.created_at, g.started_at, g.finished_at, g.expires_at, g.removed_at, g.removed_reason,
	j.state AS job_state, j.attempt AS job_attempt, j.lane AS job_lane, j.vstart AS job_vstart,
	j.run_after AS job_run_after, j.started_at AS job_started_at, j.progress_done, j.progress_total
	FROM generations g LEFT JOIN jobs j ON j.id = g.job_id `

// status is the row's own once it has ended, else its job's.
func (r row) status() Status {
	switch {
	case r.Status != "":
		return r.Status
	case r.JobState.String == string(jobs.Running):
		return Running
	default:
		return Queued
	}
}

// sequence grows with every change of state: 1 when queued, 2a while attempt a
// runs, 2a+1 when it is queued again after attempt a, and beyond all of these
// once it has ended.
func (r row) sequence() int64 {
	attempt := r.JobAttempt.Int64
	switch {
	case r.Status != "":
		return 2*int64(r.Attempts) + 2
	case r.JobState.String == string(jobs.Running):
		return 2 * attempt
	default:
		return 2*attempt + 1
	}
}

func (r row) job() jobs.Job {
	return jobs.Job{ID: r.JobID, Lane: r.JobLane.String, State: jobs.State(r.JobState.String),
		VStart: r.JobVStart.Int64, RunAfter: r.JobRunAfter.Int64}
}

// requestData binds a sealed request to its row.
func requestData(id string) []byte { return vault.Column("generations", "request", id) }

func hashData(id string) []byte { return vault.Column("images", "sha256", id) }

func objectData(subject, generation string, attempt, n int, what string) []byte {
	return vault.Data("object", subject, generation, fmt.Sprint(attempt), fmt.Sprint(n), what)
}

// prefix of everything that was stored for a generation, by any attempt.
func prefix(owner, generation string) string { return "images/" + owner + "/" + generation + "/" }

func imageKey(owner, generation string, attempt, n int) string {
	return fmt.Sprintf("%s%d/%d.img", prefix(owner, generation), attempt, n)
}

func thumbKey(owner, generation string, attempt, n int) string {
	return fmt.Sprintf("%s%d/%d.thumb", prefix(owner, generation), attempt, n)
}

// away turns an error of a part that is away into one the caller can act on.
func away(err error) error {
	var p *problem.Error
	if err == nil || errors.As(err, &p) {
		return err
	}
	return db.Unavailable(err)
}

func millis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

var (
	errNotFound = problem.New(problem.NotFound, "There is no such generation.")
	errNoImage  = problem.New(problem.NotFound, "There is no such image.")
	errRemoved  = problem.New(problem.DataRemoved, "It was here, and its content has been removed.")
)
