package privacy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"zimage/internal/db"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/mail"
	"zimage/internal/objects"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

const (
	// KindExport is the job that makes one archive; its ref is the export's id.
	KindExport = "export:run"
	// KindExportSweep is the job that removes what is over.
	KindExportSweep = "export:sweep"
	// ExportLane is where exports wait: one of many images takes long, and must not
	// hold up the other housekeeping.
	ExportLane = "export"

	exportLife = 7 * 24 * time.Hour
	// exportCounts is for how long an export counts, of which three are the most.
	exportCounts = 24 * time.Hour
	exportDaily  = 3 // of one person in 24 hours; those that failed do not count
	exportMost   = 20
	sweepBatch   = 200
)

// An ExportStatus is where an export is in its life.
type ExportStatus string

// The states. The last two are final.
const (
	ExportQueued  ExportStatus = "queued"
	ExportRunning ExportStatus = "running"
	ExportReady   ExportStatus = "ready"
	ExportFailed  ExportStatus = "failed"
)

// An Export is an archive of all that is kept of a person, as its owner sees it.
type Export struct {
	ID        string
	Status    ExportStatus
	Done      int64 // records and files that are in it
	Total     int64 // as reckoned at the start; 0: not yet
	Bytes     int64 // of the archive; from here on 0 or empty until it is ready
	Files     int64
	Records   int64
	Checksums Checksums
	Code      string // why it failed, by a code that is stable
	Message   string // and in words
	CreatedAt time.Time
	EndedAt   time.Time // ready or failed
	ExpiresAt time.Time // it is gone then
}

// Checksums are SHA-256 in hex.
type Checksums struct {
	Archive  string `json:"archive"`
	Manifest string `json:"manifest"` // of manifest.json in it
}

// Why an export fails for good.
const (
	codeMissing    = "object_missing"
	codeUnreadable = "unreadable"
	codeNotAllowed = "not_allowed"
	codeTooLarge   = "too_large"
)

// explainExport says in our own words what a code means.
func explainExport(code string) string {
	switch code {
	case "":
		return ""
	case codeMissing:
		return "A file that belongs to you is missing in our storage, and an export without it would not be whole. The operator has been told; please write to them."
	case codeUnreadable:
		return "Something that belongs to you cannot be opened, and an export without it would not be whole. The operator has been told; please write to them."
	case codeNotAllowed:
		return "The account does not allow an export now."
	case codeTooLarge:
		return "The archive is larger than our storage takes in one piece. Please write to the operator."
	}
	return "The export failed because of an error of ours. Please ask for it again."
}

type exportRow struct {
	ID        string `db:"id"`
	Owner     string `db:"owner"`
	JobID     string `db:"job_id"`
	Status    string `db:"status"`
	ErrorCode string `db:"error_code"`
	Attempts  int    `db:"attempts"`
	Bytes     int64  `db:"bytes"`
	Files     int64  `db:"files"`
	Records   int64  `db:"records"`
	Checksums []byte `db:"checksums"`
	CreatedAt int64  `db:"created_at"`
	EndedAt   int64  `db:"ended_at"`
	ExpiresAt int64  `db:"expires_at"`
	RemovedAt int64  `db:"removed_at"`

	JobState   string `db:"job_state"`
	JobAttempt int    `db:"job_attempt"`
	JobDone    int64  `db:"job_done"`
	JobTotal   int64  `db:"job_total"`
}

const selectExport = `SELECT e.id, e.owner, e.job_id, e.status, e.error_code, e.attempts, e.bytes, e.files, e.records, e.checksums,
	e.created_at, e.ended_at, e.expires_at, e.removed_at, coalesce(j.state, '') AS job_state, coalesce(j.attempt, 0) AS job_attempt,
	coalesce(j.progress_done, 0) AS job_done, coalesce(j.progress_total, 0) AS job_total
	FROM exports e LEFT JOIN jobs j ON j.id = e.job_id `

// visible are the exports that their owner sees: not those that are over.
const visibleExport = ` e.removed_at = 0 AND (e.expires_at = 0 OR e.expires_at > ?) `

func exportKey(owner, id string, attempt int) string {
	return "exports/" + owner + "/" + id + "/" + strconv.Itoa(attempt) + ".zip"
}

func exportData(owner, id string, attempt int) []byte {
	return vault.Data("object", owner, id, strconv.Itoa(attempt), "export")
}

// attemptsMade of an export, also of one that is being made.
func (r exportRow) attemptsMade() int { return max(r.Attempts, r.JobAttempt) }

// keys of the archives of every attempt but one.
func (r exportRow) keys(but int) []string {
	var keys []string
	for n := 1; n <= r.attemptsMade(); n++ {
		if n != but {
			keys = append(keys, exportKey(r.Owner, r.ID, n))
		}
	}
	return keys
}

func (s *Service) initExports() error {
	if err := s.checkExport(); err != nil {
		return err
	}
	s.Queue.Register(jobs.Kind{Name: KindExport, Lane: ExportLane, MaxAttempts: exportMost, Timeout: 12 * time.Hour,
		Backoff: func(attempt int) time.Duration { return min(5*time.Second<<min(attempt-1, 10), 10*time.Minute) },
		Run:     s.runExport, Ended: s.exportEnded})
	s.Queue.Register(jobs.Kind{Name: KindExportSweep, MaxAttempts: 100, Run: s.sweepExports})
	return nil
}

var errNoExport = problem.New(problem.NotFound, "There is no such export.")

// AskExport has an archive made of all that is kept of a person: Conflict while
// one is being made, DailyLimit after three within 24 hours. It is for a session
// that has just proved who it is; the person is told by mail.
func (s *Service) AskExport(ctx context.Context, owner string) (Export, error) {
	id := db.NewID("exp", s.Clock.Now())
	err := s.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := s.addExport(ctx, tx, owner, id); err != nil {
			return err
		}
		return s.began(ctx, tx, RequestExport, owner, OriginSelf, id, s.Clock.Now())
	})
	if err != nil {
		return Export{}, away(err)
	}
	return s.Export(ctx, owner, id)
}

func (s *Service) addExport(ctx context.Context, tx *db.Tx, owner, id string) error {
	// The person's row is kept, so that two requests come one after the other.
	if err := subject.Enter(ctx, tx, owner, subject.Account); err != nil {
		return err
	}
	now := s.Clock.Now()
	var there struct {
		Open   int   `db:"open"`
		Today  int   `db:"today"`
		Oldest int64 `db:"oldest"`
	}
	day := now.Add(-exportCounts).UnixMilli()
	err := tx.Get(ctx, &there, `SELECT count(CASE WHEN status = '' AND removed_at = 0 THEN 1 END) AS open,
		count(CASE WHEN created_at > ? AND (status <> 'failed' OR removed_at > 0) THEN 1 END) AS today,
		coalesce(min(CASE WHEN created_at > ? AND (status <> 'failed' OR removed_at > 0) THEN created_at END), 0) AS oldest
		FROM exports WHERE owner = ?`, day, day, owner)
	switch {
	case err != nil:
		return err
	case there.Open > 0:
		return problem.New(problem.Conflict, "An export is being made already. Wait for it, or delete it.").OfRight()
	case there.Today >= exportDaily:
		return problem.New(problem.DailyLimit, "Three exports within a day are the most.").After(time.UnixMilli(there.Oldest).Sub(now) + exportCounts).OfRight()
	}
	j, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindExport, Party: owner, Ref: id})
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO exports (id, owner, job_id, status, error_code, attempts, bytes, files, records,
		created_at, ended_at, expires_at, removed_at, unswept) VALUES (?, ?, ?, '', '', 0, 0, 0, 0, ?, 0, 0, 0, 0)`,
		id, owner, j.ID, now.UnixMilli())
	if err != nil {
		return err
	}
	return s.tell(ctx, tx, owner, mail.ExportAsked, nil)
}

// Exports lists a person's exports, the newest first.
func (s *Service) Exports(ctx context.Context, owner string) ([]Export, error) {
	var rows []exportRow
	err := s.DB.Select(ctx, &rows, selectExport+`WHERE e.owner = ? AND`+visibleExport+`ORDER BY e.id DESC`, owner, s.Clock.Millis())
	if err != nil {
		return nil, away(fmt.Errorf("list exports: %w", err))
	}
	list := make([]Export, 0, len(rows))
	for _, r := range rows {
		e, err := s.viewExport(ctx, r)
		if err != nil {
			return nil, away(err)
		}
		list = append(list, e)
	}
	return list, nil
}

// Export returns one of a person's exports.
func (s *Service) Export(ctx context.Context, owner, id string) (Export, error) {
	r, err := s.findExport(ctx, s.DB, owner, id)
	if err != nil {
		return Export{}, away(err)
	}
	e, err := s.viewExport(ctx, r)
	return e, away(err)
}

func (s *Service) findExport(ctx context.Context, q db.Querier, owner, id string) (exportRow, error) {
	var r exportRow
	err := q.Get(ctx, &r, selectExport+`WHERE e.id = ? AND e.owner = ? AND`+visibleExport, id, owner, s.Clock.Millis())
	if isNone(err) {
		err = errNoExport
	}
	return r, err
}

func (s *Service) viewExport(ctx context.Context, r exportRow) (Export, error) {
	e := Export{ID: r.ID, Status: ExportStatus(r.Status), Done: r.JobDone, Total: r.JobTotal, Bytes: r.Bytes, Files: r.Files, Records: r.Records,
		Code: r.ErrorCode, Message: explainExport(r.ErrorCode), CreatedAt: moment(r.CreatedAt), EndedAt: moment(r.EndedAt), ExpiresAt: moment(r.ExpiresAt)}
	switch {
	case r.Status == "" && r.JobState == string(jobs.Running):
		e.Status = ExportRunning
	case r.Status == "":
		e.Status = ExportQueued
	case e.Status == ExportReady:
		plain, err := s.Vault.Unseal(ctx, r.Owner, r.Checksums, vault.Column("exports", "checksums", r.ID))
		if err != nil {
			return Export{}, fmt.Errorf("open an export's checksums: %w", err)
		}
		if err := json.Unmarshal(plain, &e.Checksums); err != nil {
			return Export{}, vault.ErrCorrupt
		}
		e.Done, e.Total = r.Records, r.Records
	}
	return e, nil
}

func moment(millis int64) time.Time {
	if millis == 0 {
		return time.Time{}
	}
	return time.UnixMilli(millis).UTC()
}

// An Archive is an export's file, decrypted as it is read. Close it.
type Archive struct {
	io.Reader
	io.Closer
	Export Export
	Name   string
}

// Fetched notes that all of an archive went out.
func (s *Service) Fetched() { s.Metrics.exports.WithLabelValues(outcomeFetched).Inc() }

// ExportArchive opens the file of an export: Conflict while it is not ready. It
// is for a session that has just proved who it is. Whoever reads for long asks
// again now and then whether it is still there.
func (s *Service) ExportArchive(ctx context.Context, owner, id string) (*Archive, error) {
	r, err := s.findExport(ctx, s.DB, owner, id)
	if err != nil {
		return nil, away(err)
	}
	e, err := s.viewExport(ctx, r)
	if err != nil {
		return nil, away(err)
	}
	if e.Status != ExportReady {
		return nil, problem.New(problem.Conflict, "The export is not ready.")
	}
	sealed, _, err := s.Objects.Get(ctx, exportKey(owner, id, r.Attempts))
	if err != nil {
		if _, gone := s.findExport(ctx, s.DB, owner, id); gone != nil {
			return nil, away(gone) // removed in this moment
		}
		if errors.Is(err, objects.ErrNotExist) {
			s.Log.ErrorContext(ctx, "an export's archive is missing", "export", id)
			return nil, problem.Wrap(err, problem.Internal, "The archive is missing. Please ask for another export.")
		}
		return nil, problem.Wrap(err, problem.Unavailable, "Object storage does not answer. Try again in a moment.")
	}
	plain, err := s.Vault.UnsealReader(ctx, owner, sealed, exportData(owner, id, r.Attempts))
	if err != nil {
		return nil, away(errors.Join(err, sealed.Close()))
	}
	return &Archive{Reader: plain, Closer: sealed, Export: e, Name: "zimage-" + id + ".zip"}, nil
}

// DeleteExport removes an export; one that is not ready is stopped.
func (s *Service) DeleteExport(ctx context.Context, owner, id string) error {
	return away(s.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := s.findExport(ctx, tx, owner, id); err != nil {
			return err
		}
		return s.removeExports(ctx, tx, `id = ?`, id)
	}))
}

// voidExports removes all exports of a person: whoever asked for them may not be
// the one who comes to fetch them.
func (s *Service) voidExports(ctx context.Context, tx *db.Tx, owner string) error {
	return s.removeExports(ctx, tx, `owner = ?`, owner)
}

// removeExports hides exports at once. A sweep stops what is being made of them
// and deletes the archives: the locks of jobs are not taken behind those of people.
func (s *Service) removeExports(ctx context.Context, tx *db.Tx, which string, arg any) error {
	var gone []struct {
		ID    string `db:"id"`
		Owner string `db:"owner"`
	}
	err := tx.Select(ctx, &gone, `UPDATE exports SET removed_at = ? WHERE removed_at = 0 AND `+which+` RETURNING id, owner`, s.Clock.Millis(), arg)
	if err != nil || len(gone) == 0 {
		return err
	}
	for _, e := range gone {
		if _, err := s.closeRequests(ctx, tx, OutcomeWithdrawn, `subject = ? AND ref = ?`, e.Owner, e.ID); err != nil {
			return err
		}
	}
	tx.AfterCommit(func() { s.Metrics.exports.WithLabelValues(outcomeRemoved).Add(float64(len(gone))) })
	return s.addExportSweep(ctx, tx, gone[0].Owner, 0)
}

func (s *Service) addExportSweep(ctx context.Context, tx *db.Tx, owner string, after time.Duration) error {
	_, err := s.Queue.Add(ctx, tx, jobs.NewJob{Kind: KindExportSweep, Party: owner, Ref: owner, RunAfter: s.Clock.Now().Add(after)})
	return err
}

// runExport makes one attempt at one archive, under a key of its own.
func (s *Service) runExport(ctx context.Context, run *jobs.Run) error {
	r, err := s.findExport(ctx, s.DB, run.Party, run.Ref)
	switch {
	case problem.CodeOf(err) == problem.NotFound:
		return nil // deleted, or erased with its owner
	case err != nil:
		return jobs.Retry("internal", err)
	}
	if err := subject.May(ctx, s.DB, r.Owner, subject.Account); err != nil {
		if refused := new(problem.Error); errors.As(err, &refused) {
			return jobs.Fail(codeNotAllowed, err)
		}
		return jobs.Retry("internal", err)
	}
	made, err := s.makeArchive(ctx, run, r)
	if err != nil {
		return s.exportFailure(ctx, run, err)
	}
	sums, err := json.Marshal(made.Checksums)
	if err != nil {
		return err
	}
	sealed, err := s.Vault.Seal(ctx, r.Owner, sums, vault.Column("exports", "checksums", r.ID))
	if err != nil {
		return s.exportFailure(ctx, run, err)
	}
	err = run.Complete(ctx, func(ctx context.Context, tx *db.Tx) error {
		if err := subject.Enter(ctx, tx, r.Owner, subject.Account); err != nil {
			return err
		}
		now := s.Clock.Now()
		n, err := tx.Exec(ctx, `UPDATE exports SET status = 'ready', error_code = '', attempts = ?, bytes = ?, files = ?, records = ?, checksums = ?,
			ended_at = ?, expires_at = ?, unswept = ? WHERE id = ? AND status = '' AND removed_at = 0`,
			run.Attempt, made.Bytes, made.Files, made.Records, sealed, now.UnixMilli(), now.Add(exportLife).UnixMilli(), flag(run.Attempt > 1), r.ID)
		switch {
		case err != nil:
			return err
		case n == 0:
			return errNoExport
		case run.Attempt > 1:
			if err := s.addExportSweep(ctx, tx, r.Owner, jobs.Lease); err != nil {
				return err
			}
		}
		// Those that wait for an earlier one, which failed, have it too.
		_, err = s.closeRequests(ctx, tx, OutcomeDone, `subject = ? AND kind IN (?, ?) AND ref LIKE 'exp_%'`, r.Owner, RequestExport, RequestAccess)
		if err != nil {
			return err
		}
		if err := s.happened(ctx, tx, events.Event{Type: events.ExportReady, Subject: r.Owner, Ref: r.ID}); err != nil {
			return err
		}
		return s.tell(ctx, tx, r.Owner, mail.ExportReady, nil)
	})
	switch code := problem.CodeOf(err); {
	case err == nil:
		s.Metrics.exports.WithLabelValues(outcomeReady).Inc()
		s.Metrics.exportTime.Observe(float64(s.Clock.Millis()-r.CreatedAt) / 1000)
		return nil
	case code == problem.NotFound, code == problem.Unauthorized, code == problem.Forbidden:
		return jobs.Fail(codeNotAllowed, err) // removed meanwhile, and so swept
	}
	return err
}

// exportFailure says what becomes of the job. What is missing or cannot be opened
// is so at the next attempt too; everything else may mend.
func (s *Service) exportFailure(ctx context.Context, run *jobs.Run, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, jobs.ErrFenced) || errors.Is(cause, jobs.ErrCanceled) || errors.Is(cause, jobs.ErrShutdown) {
		return cause
	}
	code := "internal"
	switch {
	case errors.Is(err, errMissing):
		code = codeMissing
	case errors.Is(err, vault.ErrCorrupt):
		code = codeUnreadable
	case errors.Is(err, vault.ErrDestroyed), errors.Is(err, vault.ErrNoKey):
		code = codeNotAllowed
	case errors.Is(err, objects.ErrTooLarge):
		code = codeTooLarge
	default:
		return jobs.Retry(code, err)
	}
	s.Log.ErrorContext(ctx, "an export cannot be made", "export", run.Ref, "code", code)
	return jobs.Fail(code, err)
}

// exportEnded is told when an export's job failed for good or was canceled.
func (s *Service) exportEnded(ctx context.Context, tx *db.Tx, j jobs.Job, _ jobs.State, code string) error {
	now := s.Clock.Now()
	n, err := tx.Exec(ctx, `UPDATE exports SET status = 'failed', error_code = ?, attempts = ?, ended_at = ?, expires_at = ?, unswept = ?
		WHERE id = ? AND status = ''`, code, j.Attempt, now.UnixMilli(), now.Add(exportLife).UnixMilli(), flag(j.Attempt > 0), j.Ref)
	if err != nil || n == 0 || j.Attempt == 0 {
		return err
	}
	tx.AfterCommit(func() { s.Metrics.exports.WithLabelValues(outcomeFailed).Inc() })
	return s.addExportSweep(ctx, tx, j.Party, jobs.Lease)
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sweepExports deletes the archives and rows of exports that are over, what
// attempts that do not count have left, and archives that their rows do not need. Its
// job comes from the schedule, or names an owner.
func (s *Service) sweepExports(ctx context.Context, run *jobs.Run) error {
	which, args := `1 = 1`, []any{}
	if run.Party != jobs.System {
		which, args = `e.owner = ?`, []any{run.Party}
	}
	var failed []error
	for after := ""; ; {
		var batch []exportRow
		err := s.DB.Select(ctx, &batch, selectExport+`WHERE `+which+` AND e.id > ?
			AND (e.removed_at > 0 OR (e.expires_at > 0 AND e.expires_at <= ?) OR e.unswept = 1) ORDER BY e.id LIMIT ?`,
			append(append([]any{}, args...), after, s.Clock.Millis(), sweepBatch)...)
		if err != nil {
			return jobs.Retry("internal", err)
		}
		for _, r := range batch {
			after = r.ID
			if err := s.sweepExport(ctx, r); err != nil {
				failed = append(failed, err)
			}
			if ctx.Err() != nil || len(failed) >= sweepPatience {
				return jobs.Retry("internal", errors.Join(failed...))
			}
		}
		if len(batch) < sweepBatch {
			break
		}
	}
	for after := ""; ; {
		var owner string
		err := s.DB.Get(ctx, &owner, `SELECT e.owner FROM exports e WHERE `+which+` AND e.owner > ? ORDER BY e.owner LIMIT 1`, append(append([]any{}, args...), after)...)
		if isNone(err) {
			break
		}
		if err == nil {
			err = s.sweepArchives(ctx, "exports/"+owner+"/")
		}
		if err != nil {
			failed = append(failed, err)
			break
		}
		after = owner
	}
	if len(failed) > 0 {
		return jobs.Retry("internal", errors.Join(failed...))
	}
	return nil
}

// sweepPatience is how many exports may fail to be swept before it is taken that
// object storage is away.
const sweepPatience = 10

// sweepExport deletes what one export does not need. Its own archive and row go
// when it is over; the row of a deleted one stays for the rest of its day, since
// it counts.
func (s *Service) sweepExport(ctx context.Context, r exportRow) error {
	if r.Status == "" {
		// Its attempt may still store something: there is another sweep after its end.
		return s.DB.Tx(ctx, func(tx *db.Tx) error {
			_, err := s.Queue.Cancel(ctx, tx, r.JobID, jobs.AtWish)
			if isNone(err) {
				_, err = tx.Exec(ctx, `UPDATE exports SET status = 'failed' WHERE id = ? AND status = ''`, r.ID)
			}
			return err
		})
	}
	over := r.RemovedAt > 0 || s.expired(ctx, r)
	keep := 0
	if !over && r.Status == string(ExportReady) {
		keep = r.Attempts
	}
	keys := r.keys(keep)
	if err := errors.Join(s.Objects.Delete(ctx, keys...), s.Objects.Abandon(ctx, keys...)); err != nil {
		return err
	}
	if over && s.plausible(ctx) == nil && r.CreatedAt <= s.Clock.Now().Add(-exportCounts).UnixMilli() {
		_, err := s.DB.Exec(ctx, `DELETE FROM exports WHERE id = ?`, r.ID)
		return err
	}
	_, err := s.DB.Exec(ctx, `UPDATE exports SET unswept = 0, checksums = CASE WHEN removed_at > 0 THEN NULL ELSE checksums END WHERE id = ?`, r.ID)
	return err
}

// expired reports whether an archive has had its time. What its owner deleted goes at any
// time.
func (s *Service) expired(ctx context.Context, r exportRow) bool {
	return r.ExpiresAt > 0 && r.ExpiresAt <= s.Clock.Millis() && s.plausible(ctx) == nil
}

// sweepArchives deletes archives of a person that their rows do not need: of attempts
// that were taken for dead and were not. One without a row is the comparison's.
func (s *Service) sweepArchives(ctx context.Context, prefix string) error {
	kind := s.Map.Object(exportKey("s", "e", 1))
	for after := ""; ; {
		page, err := s.Objects.List(ctx, prefix, after, sweepBatch)
		if err != nil {
			return err
		}
		for _, o := range page {
			after = o.Key
			parts, ok := kind.Key.Match(o.Key)
			attempt, strange := strconv.Atoi(parts["attempt"])
			if !ok || strange != nil {
				continue // not ours: never deleted
			}
			needed, known, err := s.needsArchive(ctx, parts["export"], parts["subject"], attempt)
			if err != nil {
				return err
			}
			if needed || !known {
				continue
			}
			if err := s.Objects.Delete(ctx, o.Key); err != nil {
				return err
			}
		}
		if len(page) < sweepBatch {
			return nil
		}
	}
}

// needsArchive reports whether an export needs an archive, and whether there is such an
// export.
func (s *Service) needsArchive(ctx context.Context, id, owner string, attempt int) (needed, known bool, err error) {
	var r exportRow
	err = s.DB.Get(ctx, &r, selectExport+`WHERE e.id = ? AND e.owner = ?`, id, owner)
	if isNone(err) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	switch {
	case r.RemovedAt > 0 || s.expired(ctx, r):
		return false, true, nil
	case r.Status == "":
		return attempt >= r.JobAttempt, true, nil
	}
	return r.Status == string(ExportReady) && attempt == r.Attempts, true, nil
}

// abandonExports removes what broken attempts at a person's exports have left in the
// object store, and no list shows.
func (s *Service) abandonExports(ctx context.Context, owner string) error {
	var rows []exportRow
	if err := s.DB.Select(ctx, &rows, selectExport+`WHERE e.owner = ?`, owner); err != nil {
		return err
	}
	for _, r := range rows {
		if err := s.Objects.Abandon(ctx, r.keys(0)...); err != nil {
			return err
		}
	}
	return nil
}
