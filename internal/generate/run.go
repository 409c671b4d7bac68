package generate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"

	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/events"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/picture"
	"zimage/internal/subject"
)

// stopGrace is how long a canceled call may take to stop its engine before the
// generation is called canceled without it. The slot stays taken until the
// engine really is free.
const stopGrace = time.Second

// errGone ends an attempt whose generation was removed meanwhile.
var errGone = errors.New("generation removed")

// run makes the images of one generation. The engine's slot is free again after
// the last call; encoding, sealing and storing overlap with the next generation.
func (s *Service) run(ctx context.Context, r *jobs.Run) error {
	var g row
	err := s.DB.Get(ctx, &g, selectRow+`WHERE g.id = ?`, r.Ref)
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && (g.RemovedAt > 0 || g.ExpiresAt <= s.Clock.Millis()):
		return jobs.Fail("removed", errGone)
	case err != nil:
		return jobs.Retry("internal", err)
	}
	if err := subject.May(ctx, s.DB, g.Owner, subject.Generate); err != nil {
		if why, refused := subject.ReasonOf(err); refused {
			return jobs.CallOff(string(why), err)
		}
		return jobs.Retry("internal", err) // the database did not say
	}
	plain, err := s.Vault.Unseal(ctx, g.Owner, g.Request, requestData(g.ID))
	if err != nil {
		return jobs.Retry("internal", err)
	}
	var q Request
	if err := json.Unmarshal(plain, &q); err != nil {
		return jobs.Fail("internal", err)
	}
	model, ok := s.models[q.Model]
	if !ok {
		// Perhaps this worker has not read the engines file that has it.
		return jobs.Retry("model_removed", nil)
	}
	slot, ok := r.Slot.(*engine.Slot)
	if !ok {
		return jobs.Retry("internal", fmt.Errorf("lane %s has slots without an engine", r.Lane))
	}
	s.bulletin.changed(g.ID, 2*int64(r.Attempt))
	if err := s.started(ctx, r, g); err != nil {
		return err
	}

	work := &attempt{service: s, run: r, generation: g, request: q, model: model, images: make([]stored, q.N)}
	err = work.make(ctx, slot)
	if err != nil {
		if !work.unsure {
			work.discard(ctx) // what this attempt stored is of no use to anybody
		}
		return err
	}
	return nil
}

// attempt is one run of one generation.
type attempt struct {
	service    *Service
	run        *jobs.Run
	generation row
	request    Request
	model      engine.Model
	images     []stored
	unsure     bool // whether the result was committed: then nothing may be deleted

	mu   sync.Mutex
	told time.Time // when progress was last told
}

// progressEvery is how often an attempt's progress is told at most.
const progressEvery = 150 * time.Millisecond

// due reports whether progress is to be told again, and takes the turn.
func (a *attempt) due() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.told) < progressEvery {
		return false
	}
	a.told = time.Now()
	return true
}

// stored is one image that lies in object storage, before its row is written.
type stored struct {
	id            string
	width, height int
	format        string
	bytes         int64
	seed          int64
	sha256        []byte // sealed
}

func (a *attempt) make(ctx context.Context, slot *engine.Slot) error {
	s, q := a.service, a.request
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var rest sync.WaitGroup // encoding and storing of images that are made
	for k := range q.N {
		raw, err := a.call(ctx, slot, k)
		if err != nil {
			cancel(err)
			rest.Wait()
			return a.failure(ctx, err)
		}
		rest.Go(func() {
			if err := a.finishOne(ctx, slot, k, raw); err != nil {
				cancel(err)
			}
		})
	}
	a.run.Slot.Release()
	rest.Wait()
	if err := context.Cause(ctx); err != nil {
		return a.failure(ctx, err)
	}
	err := a.run.Complete(ctx, a.finish)
	why, refused := subject.ReasonOf(err)
	switch {
	case refused:
		return jobs.CallOff(string(why), err)
	case errors.Is(err, errGone):
		return jobs.Fail("removed", err)
	case err != nil:
		a.unsure = !errors.Is(err, jobs.ErrFenced)
		return err
	}
	s.bulletin.changed(a.generation.ID, 2*int64(a.run.Attempt)+2)
	return nil
}

// call makes image k on the engine. When ctx ends and the engine cannot stop, it
// returns all the same and leaves the slot taken until the engine is free.
func (a *attempt) call(ctx context.Context, slot *engine.Slot, k int) ([]byte, error) {
	s, q := a.service, a.request
	request := engine.Request{
		ID: uuid.NewString(), Model: a.model,
		Prompt: q.Prompt, NegativePrompt: q.NegativePrompt,
		Width: q.Width, Height: q.Height, Steps: q.Steps, Guidance: *q.Guidance,
		Seed: *q.Seed + int64(k),
	}
	total := int64(q.N * q.Steps)
	progress := func(p engine.Progress) {
		done := int64(k * q.Steps)
		if p.Steps > 0 {
			done += int64(q.Steps * min(p.Step, p.Steps) / p.Steps)
		}
		a.run.Progress(done, total)
		if a.due() {
			s.bulletin.progress(a.generation.ID, 2*int64(a.run.Attempt), reckon(done, total, q.N, q.Steps, p.Estimated))
		}
	}
	type outcome struct {
		raw []byte
		err error
	}
	// The fleet ends a call at the engine's timeout; an engine that cannot stop
	// keeps its slot beyond that, and we do not wait for it.
	ctx, cancel := context.WithTimeoutCause(ctx, slot.Timeout()+stopGrace,
		engine.NewError(engine.FaultEngine, engine.CodeTimeout, 0, context.DeadlineExceeded))
	defer cancel()
	done := make(chan outcome, 1)
	started := time.Now()
	go func() {
		raw, err := slot.Generate(ctx, request, progress)
		done <- outcome{raw, err}
	}()
	select {
	case o := <-done:
		if o.err == nil {
			s.Metrics.engineTime.WithLabelValues(a.model.ID).Observe(time.Since(started).Seconds())
		}
		return o.raw, o.err
	case <-ctx.Done():
	}
	select {
	case <-done:
	case <-time.After(stopGrace):
		a.run.KeepSlot()
		go func() {
			<-done
			slot.Release()
		}()
	}
	return nil, context.Cause(ctx)
}

// finishOne is store in a goroutine of its own: a picture that makes the decoder
// panic is a broken one, and must not end the process.
func (a *attempt) finishOne(ctx context.Context, slot *engine.Slot, k int, raw []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			a.service.Log.ErrorContext(ctx, "finishing a picture panicked", "job", a.run.ID, "type", fmt.Sprintf("%T", v))
			err = engine.NewError(engine.FaultEngine, engine.CodeBadImage, 0, nil)
		}
		if err == nil || engine.CodeOf(err) == engine.CodeBadImage {
			slot.Report(err == nil)
		}
	}()
	return a.store(ctx, k, raw)
}

// store turns what the engine gave into a marked picture and its thumbnail,
// seals both and puts them into object storage, waiting while that is away: the
// same ciphertext each time, so that a PUT whose answer was lost is recognised.
func (a *attempt) store(ctx context.Context, k int, raw []byte) error {
	s, g, q := a.service, a.generation, a.request
	options := picture.Options{Format: q.Format, MaxPixels: 4 * max(a.model.MaxPixels, q.Width*q.Height), SourceType: a.model.SourceType, Quality: q.Quality}
	if q.EmbedPrompt {
		options.Prompt = q.Prompt
	}
	p, err := picture.Finish(raw, options)
	if err != nil {
		return engine.NewError(engine.FaultEngine, engine.CodeBadImage, 0, err)
	}
	now := s.Clock.Now()
	image := stored{id: db.NewID("img", now), width: p.Width, height: p.Height, format: p.Format,
		bytes: int64(len(p.Data)), seed: *q.Seed + int64(k)}
	sum := sha256.Sum256(p.Data)
	err = patiently(ctx, func(ctx context.Context) (err error) {
		image.sha256, err = s.Vault.Seal(ctx, g.Owner, []byte(hex.EncodeToString(sum[:])), hashData(image.id))
		return err
	})
	if err != nil {
		return err
	}
	for _, o := range []struct {
		key, what string
		data      []byte
	}{
		{imageKey(g.Owner, g.ID, a.run.Attempt, k), "image", p.Data},
		{thumbKey(g.Owner, g.ID, a.run.Attempt, k), "thumbnail", p.Thumbnail},
	} {
		var sealed bytes.Buffer
		var w io.WriteCloser
		err := patiently(ctx, func(ctx context.Context) (err error) {
			w, err = s.Vault.SealWriter(ctx, g.Owner, &sealed, objectData(g.Owner, g.ID, a.run.Attempt, k, o.what))
			return err
		})
		if err != nil {
			return err
		}
		if _, err := w.Write(o.data); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		if err := s.put(ctx, o.key, sealed.Bytes()); err != nil {
			return err
		}
	}
	a.images[k] = image
	return nil
}

// patiently repeats what needs the key store while that is away: the engine's
// work must not be lost to it.
func patiently(ctx context.Context, do func(context.Context) error) error {
	for wait := 200 * time.Millisecond; ; wait = min(wait*2, 5*time.Second) {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return do(ctx)
		}()
		if !db.IsAway(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// put repeats an upload until object storage has taken it or ctx ends. How many
// results can wait here is bounded by the worker.
func (s *Service) put(ctx context.Context, key string, sealed []byte) error {
	waiting := false
	defer func() {
		if waiting {
			s.Metrics.resultsWaiting.Set(float64(s.waiting.Add(-1)))
		}
	}()
	for wait := 200 * time.Millisecond; ; wait = min(wait*2, 5*time.Second) {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return s.Objects.Put(ctx, key, bytes.NewReader(sealed), int64(len(sealed)))
		}()
		if err == nil || errors.Is(err, objects.ErrExists) || errors.Is(err, objects.ErrBadKey) || ctx.Err() != nil {
			return err
		}
		s.Metrics.objectFailures.Inc()
		if !waiting {
			waiting = true
			s.Metrics.resultsWaiting.Set(float64(s.waiting.Add(1)))
			s.Log.WarnContext(ctx, "object storage does not take a result; it waits", "error", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// finish writes the result in the transaction that ends the job. It asks once
// more whether the owner's work may be done: what forbids it stops running work
// too, but only at the next renewal of the lease. What forbids it at this very
// moment is waited for.
func (a *attempt) finish(ctx context.Context, tx *db.Tx) error {
	s, g := a.service, a.generation
	if err := subject.Enter(ctx, tx, g.Owner, subject.Generate); err != nil {
		return err
	}
	now := s.Clock.Now()
	n, err := tx.Exec(ctx, `UPDATE generations SET status = 'succeeded', attempts = ?, started_at = ?, finished_at = ?, unswept = ?
		WHERE id = ? AND removed_at = 0`, a.run.Attempt, a.run.StartedAt, now.UnixMilli(), flag(a.run.Attempt > 1), g.ID)
	if err != nil {
		return err
	}
	if n == 0 {
		return errGone
	}
	for k, i := range a.images {
		_, err := tx.Exec(ctx, `INSERT INTO images (id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256,
				created_at, expires_at, removed_at, removed_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '')`,
			i.id, g.ID, g.Owner, k, a.run.Attempt, i.width, i.height, i.format, i.bytes, i.seed, i.sha256, now.UnixMilli(), g.ExpiresAt)
		if err != nil {
			return err
		}
	}
	if a.run.Attempt > 1 {
		if err := s.addSweep(ctx, tx, g.Owner, jobs.Lease); err != nil {
			return err
		}
	}
	return s.Events.Append(ctx, tx, events.Event{Type: events.GenerationSucceeded, Subject: g.Owner, Ref: g.ID, At: now,
		Sequence: 2*int64(a.run.Attempt) + 2})
}

// discard deletes what this attempt stored. What it misses, the sweep finds.
func (a *attempt) discard(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var keys []string
	for k := range a.images {
		keys = append(keys, imageKey(a.generation.Owner, a.generation.ID, a.run.Attempt, k),
			thumbKey(a.generation.Owner, a.generation.ID, a.run.Attempt, k))
	}
	if err := a.service.Objects.Delete(ctx, keys...); err != nil {
		a.service.Metrics.objectFailures.Inc()
		a.service.Log.WarnContext(ctx, "could not delete what an attempt left; the sweep will", "job", a.run.ID, "error", err)
	}
}

// busyPatience is how old a generation may be before a busy engine costs it
// attempts as any other failure does.
const busyPatience = time.Hour

// failure says what becomes of the job: whose fault it is decides. An engine
// without room has tried nothing: the job keeps its turn, and the fleet lets that
// engine rest.
func (a *attempt) failure(ctx context.Context, err error) error {
	s := a.service
	if cause := context.Cause(ctx); errors.Is(cause, jobs.ErrFenced) || errors.Is(cause, jobs.ErrCanceled) || errors.Is(cause, jobs.ErrShutdown) {
		return cause
	}
	code := engine.CodeOf(err)
	var e *engine.Error
	if !errors.As(err, &e) {
		code = "internal"
	}
	s.Metrics.failures.WithLabelValues(string(engine.FaultOf(err)), code).Inc()
	switch {
	case engine.FaultOf(err) == engine.FaultUser:
		return jobs.Fail(code, err)
	case code == engine.CodeBusy && s.Clock.Now().Sub(millis(a.generation.CreatedAt)) < busyPatience:
		return jobs.GiveBack(code, err)
	}
	return jobs.Retry(code, err)
}

// ended is told when a generation's job failed for good or was canceled.
func (s *Service) ended(ctx context.Context, tx *db.Tx, j jobs.Job, end jobs.State, code string) error {
	status, event := Failed, events.GenerationFailed
	if end == jobs.Canceled {
		status, event = Canceled, events.GenerationCanceled
	}
	now := s.Clock.Now()
	n, err := tx.Exec(ctx, `UPDATE generations SET status = ?, error_code = ?, attempts = ?, started_at = ?, finished_at = ?, unswept = ?
		WHERE id = ? AND status = '' AND removed_at = 0`, status, code, j.Attempt, j.StartedAt, now.UnixMilli(), flag(j.Attempt > 0), j.Ref)
	if err != nil {
		return err
	}
	if j.Attempt > 0 {
		if err := s.addSweep(ctx, tx, j.Party, jobs.Lease); err != nil {
			return err
		}
	}
	if n == 0 {
		return nil // removed while it ran
	}
	tx.AfterCommit(func() { s.bulletin.changed(j.Ref, 2*int64(j.Attempt)+2) })
	return s.Events.Append(ctx, tx, events.Event{Type: event, Subject: j.Party, Ref: j.Ref, At: now, Sequence: 2*int64(j.Attempt) + 2})
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// reckon spreads finished steps over the images.
func reckon(done, total int64, images, steps int, estimated bool) Progress {
	p := Progress{Images: images, Steps: steps, Estimated: estimated}
	if total > 0 && steps > 0 {
		p.Image = min(int(done)/steps, images)
		p.Step = int(done) % steps
		if p.Image == images {
			p.Step = steps
		}
		p.Fraction = min(float64(done)/float64(total), 1)
	}
	return p
}
