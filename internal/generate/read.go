package generate

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"zimage/internal/db"
	"zimage/internal/engine"
	"zimage/internal/jobs"
	"zimage/internal/objects"
	"zimage/internal/problem"
	"zimage/internal/subject"
	"zimage/internal/vault"
)

// Get returns one generation of the owner; DataRemoved once its content is gone.
func (s *Service) Get(ctx context.Context, owner, id string) (Generation, error) {
	r, err := s.find(ctx, s.DB, owner, id)
	if err != nil {
		return Generation{}, away(err)
	}
	list, err := s.view(ctx, owner, []row{r})
	if err != nil {
		return Generation{}, away(err)
	}
	g := list[0]
	if g.Status == Queued {
		g.Queue, err = s.queue(ctx, r.job())
	}
	return g, away(err)
}

// find reads a row that its owner may see: NotFound for anybody else's,
// DataRemoved for a tombstone and for what has expired.
func (s *Service) find(ctx context.Context, q db.Querier, owner, id string) (row, error) {
	var r row
	err := q.Get(ctx, &r, selectRow+`WHERE g.id = ? AND g.owner = ?`, id, owner)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return r, errNotFound
	case err != nil:
		return r, err
	case r.RemovedAt > 0 || r.ExpiresAt <= s.Clock.Millis():
		return r, errRemoved
	}
	return r, nil
}

func (s *Service) queue(ctx context.Context, j jobs.Job) (*Queue, error) {
	o, err := s.Queue.Outlook(ctx, s.DB, j)
	if err != nil {
		return nil, err
	}
	q := &Queue{Position: o.Position, Served: o.Served}
	if o.Start != nil {
		seconds := int((o.Start.Seconds()) + 0.999)
		q.ETASeconds = &seconds
	}
	return q, nil
}

// List returns a page of the owner's generations, newest first, and the cursor
// of the next one ("" at the end).
func (s *Service) List(ctx context.Context, owner string, p Page) (list []Generation, next string, err error) {
	if p.Limit == 0 {
		p.Limit = 20
	}
	if p.Limit < 1 || p.Limit > 100 {
		return nil, "", problem.Invalid(problem.Field{Location: "query.limit", Message: "must be from 1 to 100"})
	}
	query := selectRow + `WHERE g.owner = ? AND g.removed_at = 0 AND g.expires_at > ?`
	args := []any{owner, s.Clock.Millis()}
	if p.Cursor != "" {
		id, ok := s.openCursor(owner, p.Cursor)
		if !ok {
			return nil, "", problem.Invalid(problem.Field{Location: "query.cursor", Message: "is not a cursor of yours; take next_cursor of the page before"})
		}
		query += ` AND g.id < ?`
		args = append(args, id)
	}
	switch p.Status {
	case "":
	case Queued:
		query += ` AND g.status = '' AND j.state IN ('queued', 'waiting')`
	case Running:
		query += ` AND g.status = '' AND j.state = 'running'`
	case Succeeded, Failed, Canceled:
		query += ` AND g.status = ?`
		args = append(args, p.Status)
	default:
		return nil, "", problem.Invalid(problem.Field{Location: "query.status", Message: "must be queued, running, succeeded, failed or canceled"})
	}
	var rows []row
	if err := s.DB.Select(ctx, &rows, query+` ORDER BY g.id DESC LIMIT ?`, append(args, p.Limit+1)...); err != nil {
		return nil, "", away(err)
	}
	if len(rows) > p.Limit {
		rows = rows[:p.Limit]
		next = s.cursor(owner, rows[p.Limit-1].ID)
	}
	list, err = s.view(ctx, owner, rows)
	return list, next, away(err)
}

// cursor signs the last id of a page for its owner.
func (s *Service) cursor(owner, id string) string {
	return id + "." + s.Vault.Lookup("cursor", owner+"\x00"+id)[:24]
}

func (s *Service) openCursor(owner, cursor string) (id string, ok bool) {
	id, _, _ = strings.Cut(cursor, ".")
	return id, subtle.ConstantTimeCompare([]byte(s.cursor(owner, id)), []byte(cursor)) == 1
}

// view opens rows for their owner and adds the images.
func (s *Service) view(ctx context.Context, owner string, rows []row) ([]Generation, error) {
	list := make([]Generation, 0, len(rows))
	images := map[string][]Image{}
	var finished []any
	for _, r := range rows {
		if r.Status == Succeeded {
			finished = append(finished, r.ID)
		}
	}
	if len(finished) > 0 {
		var found []imageRow
		err := s.DB.Select(ctx, &found, selectImage+`WHERE generation_id IN (`+db.Marks(len(finished))+`) AND removed_at = 0 AND expires_at > ? ORDER BY n`,
			append(finished, s.Clock.Millis())...)
		if err != nil {
			return nil, err
		}
		for _, i := range found {
			image, err := s.openImage(ctx, i)
			if err != nil {
				return nil, err
			}
			images[i.GenerationID] = append(images[i.GenerationID], image)
		}
	}
	for _, r := range rows {
		g := Generation{
			ID: r.ID, Status: r.status(), Seed: r.Seed, Sequence: r.sequence(), Images: images[r.ID],
			CreatedAt: millis(r.CreatedAt), StartedAt: millis(r.StartedAt), FinishedAt: millis(r.FinishedAt), ExpiresAt: millis(r.ExpiresAt),
		}
		plain, err := s.Vault.Unseal(ctx, owner, r.Request, requestData(r.ID))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(plain, &g.Request); err != nil {
			return nil, err
		}
		g.Progress = Progress{Images: g.Request.N, Steps: g.Request.Steps}
		switch g.Status {
		case Running:
			g.StartedAt = millis(r.JobStartedAt.Int64)
			g.Progress = reckon(r.ProgressDone.Int64, r.ProgressTotal.Int64, g.Request.N, g.Request.Steps, s.estimated[r.JobLane.String])
			g.Progress.Images, g.Progress.Steps = g.Request.N, g.Request.Steps
		case Succeeded:
			g.Progress = reckon(1, 1, g.Request.N, g.Request.Steps, false)
			g.Progress.Image, g.Progress.Step = g.Request.N, g.Request.Steps
		case Failed:
			g.Failure = &Failure{Code: r.ErrorCode, Message: explain(r.ErrorCode)}
		case Canceled:
			if words, ok := subject.Reason(r.ErrorCode).Words(); ok {
				g.Failure = &Failure{Code: r.ErrorCode, Message: words}
			}
		}
		list = append(list, g)
	}
	return list, nil
}

// explain says in our own words what a code means.
func explain(code string) string {
	if m, ok := explanations[code]; ok {
		return m
	}
	if m, ok := subject.Reason(code).Words(); ok {
		return m
	}
	return "The generation failed because of an error of ours."
}

var explanations = map[string]string{
	"refused":            "The engine refused the prompt.",
	"invalid":            "The engine did not accept the request.",
	"engine_unreachable": "The engine could not be reached.",
	"engine_failed":      "The engine failed.",
	"engine_busy":        "The engine had no room.",
	"engine_timeout":     "The engine took too long.",
	"engine_too_large":   "The engine's answer was too large.",
	"bad_image":          "The engine's answer was not a usable picture.",
	"worker_lost":        "The worker was lost too often.",
	"model_removed":      "The model is not offered any more.",
}

type imageRow struct {
	ID           string `db:"id"`
	GenerationID string `db:"generation_id"`
	Owner        string `db:"owner"`
	N            int    `db:"n"`
	Attempt      int    `db:"attempt"`
	Width        int    `db:"width"`
	Height       int    `db:"height"`
	Format       string `db:"format"`
	Bytes        int64  `db:"bytes"`
	Seed         int64  `db:"seed"`
	SHA256       []byte `db:"sha256"`
	CreatedAt    int64  `db:"created_at"`
	ExpiresAt    int64  `db:"expires_at"`
	RemovedAt    int64  `db:"removed_at"`
}

const selectImage = `SELECT id, generation_id, owner, n, attempt, width, height, format, bytes, seed, sha256,
	created_at, expires_at, removed_at FROM images `

func (s *Service) openImage(ctx context.Context, i imageRow) (Image, error) {
	sum, err := s.Vault.Unseal(ctx, i.Owner, i.SHA256, hashData(i.ID))
	if err != nil {
		return Image{}, err
	}
	return Image{ID: i.ID, GenerationID: i.GenerationID, N: i.N, Width: i.Width, Height: i.Height, Format: i.Format,
		Bytes: i.Bytes, SHA256: string(sum), Seed: i.Seed, CreatedAt: millis(i.CreatedAt), ExpiresAt: millis(i.ExpiresAt)}, nil
}

func (s *Service) findImage(ctx context.Context, q db.Querier, owner, id string) (imageRow, error) {
	var i imageRow
	err := q.Get(ctx, &i, selectImage+`WHERE id = ? AND owner = ?`, id, owner)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return i, errNoImage
	case err != nil:
		return i, err
	case i.RemovedAt > 0 || i.ExpiresAt <= s.Clock.Millis():
		return i, errRemoved
	}
	return i, nil
}

// Image returns one image of the owner.
func (s *Service) Image(ctx context.Context, owner, id string) (Image, error) {
	i, err := s.findImage(ctx, s.DB, owner, id)
	if err != nil {
		return Image{}, away(err)
	}
	image, err := s.openImage(ctx, i)
	return image, away(err)
}

// Content opens a picture, or its thumbnail (JPEG), for its owner. The caller
// closes it.
func (s *Service) Content(ctx context.Context, owner, id string, thumbnail bool) (Content, error) {
	i, err := s.findImage(ctx, s.DB, owner, id)
	if err != nil {
		return Content{}, away(err)
	}
	key, what := imageKey(i.Owner, i.GenerationID, i.Attempt, i.N), "image"
	if thumbnail {
		key, what = thumbKey(i.Owner, i.GenerationID, i.Attempt, i.N), "thumbnail"
	}
	sealed, size, err := s.Objects.Get(ctx, key)
	if err != nil {
		if errors.Is(err, objects.ErrNotExist) {
			if _, err := s.findImage(ctx, s.DB, owner, id); err != nil {
				return Content{}, away(err) // removed in this moment
			}
			s.Log.ErrorContext(ctx, "an image's object is missing", "image", i.ID)
			return Content{}, problem.Wrap(err, problem.Internal, "The picture is missing.")
		}
		s.Metrics.objectFailures.Inc()
		return Content{}, noStorage(err)
	}
	stored := &counted{ReadCloser: sealed, ctx: ctx, failures: s.Metrics.objectFailures}
	plain, err := s.Vault.UnsealReader(ctx, owner, stored, objectData(i.Owner, i.GenerationID, i.Attempt, i.N, what))
	if err != nil {
		err = errors.Join(err, sealed.Close())
		if stored.failed {
			return Content{}, noStorage(err) // not the key store, which away would blame
		}
		return Content{}, away(err)
	}
	c := Content{ReadCloser: readCloser{plain, sealed}, Format: i.Format, Bytes: i.Bytes, Name: i.ID + "." + extension(i.Format)}
	if thumbnail {
		c.Format, c.Bytes, c.Name = "jpeg", vault.PlainSize(size), i.ID+"-thumbnail.jpg"
		return c, nil
	}
	sum, err := s.Vault.Unseal(ctx, owner, i.SHA256, hashData(i.ID))
	if err != nil {
		return Content{}, away(errors.Join(err, c.Close()))
	}
	c.SHA256 = string(sum)
	return c, nil
}

func noStorage(err error) error {
	return problem.Wrap(err, problem.Unavailable, "Object storage does not answer. Try again in a moment.")
}

// counted counts a read that object storage broke off, and none that whoever asked
// did.
type counted struct {
	io.ReadCloser
	ctx      context.Context // of who asked
	failures prometheus.Counter
	failed   bool
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && c.ctx.Err() == nil {
		c.failed = true
		c.failures.Inc()
	}
	return n, err
}

type readCloser struct {
	io.Reader
	io.Closer
}

func extension(format string) string {
	if format == "jpeg" {
		return "jpg"
	}
	return format
}

// Models lists what can be asked for, and whether a worker serves it now.
func (s *Service) Models(ctx context.Context) ([]Model, error) {
	lanes, err := s.Queue.Lanes(ctx, s.DB)
	if err != nil {
		return nil, away(err)
	}
	list := make([]Model, 0, len(s.Engines.Models))
	for _, m := range s.Engines.Models {
		shown := describe(m)
		shown.Served = lanes[m.Lane].Slots > 0
		list = append(list, shown)
	}
	return list, nil
}

// Choose is the model that a request without or with a name gets, whether or not
// it is served; false: there is none of that name.
func (s *Service) Choose(name string, d Defaults) (Model, bool) {
	if name == "" {
		name = s.usual(d)
	}
	m, known := s.models[name]
	return describe(m), known
}

// usual is the model of a request that names none.
func (s *Service) usual(d Defaults) string {
	if _, known := s.models[d.Model]; known {
		return d.Model
	}
	if len(s.Engines.Models) > 0 {
		return s.Engines.Models[0].ID
	}
	return ""
}

func describe(m engine.Model) Model {
	return Model{
		ID: m.ID, Name: m.Name, OwnedBy: m.OwnedBy, License: m.License, SourceType: m.SourceType,
		DefaultWidth: m.DefaultWidth, DefaultHeight: m.DefaultHeight,
		MinSide: m.MinSide, MaxSide: m.MaxSide, SideMultiple: m.SideMultiple, MaxPixels: m.MaxPixels,
		DefaultSteps: m.DefaultSteps, MaxSteps: m.MaxSteps, Guidance: m.DefaultGuidance, MaxGuidance: m.MaxGuidance,
		NegativePrompt: m.NegativePrompt, MaxImages: m.MaxImages, MaxPromptChars: m.MaxPromptChars,
	}
}
