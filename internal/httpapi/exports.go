package httpapi

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"zimage/internal/privacy"
)

type exportInput struct {
	ID string `path:"id" doc:"Of the export." example:"exp_06f3k2m9v0q8r5w1x4y7z2a6bc"`
}

type exportOutput struct{ Body exportView }

type askedOutput struct {
	Location string `header:"Location"`
	Body     exportView
}

func (a *API) askExport(ctx context.Context, _ *struct{}) (*askedOutput, error) {
	e, err := a.rooms.Privacy.AskExport(ctx, callOf(ctx).owner)
	if err != nil {
		return nil, err
	}
	view := a.export(e)
	return &askedOutput{Location: view.URLs.Get, Body: view}, nil
}

type exportsOutput struct{ Body exportsView }

func (a *API) listExports(ctx context.Context, _ *struct{}) (*exportsOutput, error) {
	list, err := a.rooms.Privacy.Exports(ctx, callOf(ctx).owner)
	if err != nil {
		return nil, err
	}
	return &exportsOutput{Body: exportsView{Data: each(list, a.export)}}, nil
}

func (a *API) getExport(ctx context.Context, in *exportInput) (*exportOutput, error) {
	if err := known("exp", in.ID); err != nil {
		return nil, err
	}
	e, err := a.rooms.Privacy.Export(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	return &exportOutput{Body: a.export(e)}, nil
}

func (a *API) deleteExport(ctx context.Context, in *exportInput) (*struct{}, error) {
	if err := known("exp", in.ID); err != nil {
		return nil, err
	}
	return nil, a.rooms.Privacy.DeleteExport(ctx, callOf(ctx).owner, in.ID)
}

// exportContent sends an archive as long as whoever takes it keeps taking, and is
// still allowed to. What fails before the first byte is an answer; after it, the
// connection is cut.
func (a *API) exportContent(ctx context.Context, in *exportInput) (*streamOutput, error) {
	if err := known("exp", in.ID); err != nil {
		return nil, err
	}
	callOf(ctx).idle()
	archive, err := a.rooms.Privacy.ExportArchive(ctx, callOf(ctx).owner, in.ID)
	if err != nil {
		return nil, err
	}
	head := callOf(ctx).head
	r := bufio.NewReaderSize(archive, 64<<10)
	if !head {
		if _, err := r.Peek(1); err != nil {
			_ = archive.Close()
			return nil, err
		}
	}
	return &streamOutput{Body: func(hc huma.Context) {
		defer func() { _ = archive.Close() }()
		w := humagin.Unwrap(hc).Writer
		h := w.Header()
		h.Set("Content-Type", "application/zip")
		h.Set("Content-Length", strconv.FormatInt(archive.Export.Bytes, 10))
		h.Set("Content-Disposition", `attachment; filename="`+archive.Name+`"`)
		h.Set("Accept-Ranges", "none")
		hc.SetStatus(http.StatusOK)
		if head {
			return
		}
		n, err := io.Copy(&patient{ctx: ctx, w: w, deadline: http.NewResponseController(w).SetWriteDeadline, asked: time.Now(), may: func() error {
			if err := a.stillHolds(ctx); err != nil {
				return err
			}
			_, err := a.rooms.Privacy.Export(ctx, callOf(ctx).owner, in.ID)
			if ends(err) {
				return err
			}
			return nil // a failure of ours is no reason to end it
		}}, onlyReader{r})
		if err == nil && n == archive.Export.Bytes {
			a.rooms.Privacy.Fetched()
			return
		}
		if ctx.Err() == nil {
			a.log.LogAttrs(ctx, slog.LevelError, "export not sent whole", callOf(ctx).attrs(slog.String("error", kindOf(err)))...)
		}
		panic(http.ErrAbortHandler)
	}}, nil
}

// onlyReader hides WriteTo: the writer must see every piece.
type onlyReader struct{ io.Reader }

// patient writes to a client that may take hours in all, and a minute for each
// piece. Now and then it asks whether the client still may.
type patient struct {
	ctx      context.Context
	w        io.Writer
	deadline func(time.Time) error
	may      func() error
	asked    time.Time
}

const pieceTime = time.Minute

func (p *patient) Write(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if time.Since(p.asked) >= holdsEvery {
		if err := p.may(); err != nil {
			return 0, err
		}
		p.asked = time.Now()
	}
	_ = p.deadline(time.Now().Add(pieceTime))
	return p.w.Write(b)
}

type exportsView struct {
	Data []exportView `json:"data" nullable:"false" doc:"Newest first."`
}

// exportView is an export as JSON. Fields that are not there yet are left out.
type exportView struct {
	ID             string       `json:"id" doc:"Sorts by the time of the request."`
	Status         string       `json:"status" enum:"queued,running,ready,failed" doc:"The last two are final."`
	Progress       fractionView `json:"progress" doc:"How far it is."`
	Bytes          int64        `json:"bytes,omitempty" doc:"Size of the archive."`
	Files          int64        `json:"files,omitempty" doc:"In the archive."`
	Records        int64        `json:"records,omitempty" doc:"In all its lists."`
	SHA256         string       `json:"sha256,omitempty" doc:"Of the archive, in hex."`
	ManifestSHA256 string       `json:"manifest_sha256,omitempty" doc:"Of manifest.json in the archive, in hex."`
	Error          *failureView `json:"error,omitempty" doc:"Only when it failed."`
	CreatedAt      time.Time    `json:"created_at" doc:"When it was asked for."`
	EndedAt        *time.Time   `json:"ended_at,omitempty" doc:"When it was ready, or failed."`
	ExpiresAt      *time.Time   `json:"expires_at,omitempty" doc:"When it is deleted."`
	URLs           exportURLs   `json:"urls" doc:"What can be done with it."`
}

type fractionView struct {
	Done     int64   `json:"done" doc:"Records and files that are in it."`
	Total    int64   `json:"total" doc:"As reckoned at the start; 0 until it is known."`
	Fraction float64 `json:"fraction" minimum:"0" maximum:"1" doc:"Of the whole."`
}

type exportURLs struct {
	Get     string `json:"get" doc:"This export."`
	Content string `json:"content,omitempty" doc:"The archive, once it is ready. It needs your session, fresh."`
}

func (a *API) export(e privacy.Export) exportView {
	v := exportView{
		ID: e.ID, Status: string(e.Status), Bytes: e.Bytes, Files: e.Files, Records: e.Records,
		SHA256: e.Checksums.Archive, ManifestSHA256: e.Checksums.Manifest,
		CreatedAt: e.CreatedAt.UTC(), EndedAt: moment(e.EndedAt), ExpiresAt: moment(e.ExpiresAt),
		Progress: fractionView{Done: e.Done, Total: e.Total},
		URLs:     exportURLs{Get: a.base + "/v1/account/exports/" + e.ID},
	}
	switch {
	case e.Status == privacy.ExportReady:
		v.Progress.Fraction, v.URLs.Content = 1, v.URLs.Get+"/content"
	case e.Total > 0:
		v.Progress.Fraction = min(float64(e.Done)/float64(e.Total), 1)
	}
	if e.Status == privacy.ExportFailed {
		v.Error = &failureView{Code: e.Code, Message: e.Message}
	}
	return v
}

// sampleExport is one for the description.
func sampleExport(status privacy.ExportStatus) exportView {
	e := privacy.Export{ID: "exp_06f3k2m9v0q8r5w1x4y7z2a6bc", Status: status, CreatedAt: sampleAt}
	switch status {
	case privacy.ExportRunning:
		e.Done, e.Total = 120, 480
	case privacy.ExportReady:
		e.Done, e.Total, e.Bytes, e.Files, e.Records = 480, 480, 214_402_113, 271, 480
		e.Checksums = privacy.Checksums{Archive: strings.Repeat("9f86d081884c7d65", 4), Manifest: strings.Repeat("60303ae22b998861", 4)}
		e.EndedAt, e.ExpiresAt = sampleAt.Add(time.Minute), sampleAt.Add(time.Minute).AddDate(0, 0, 7)
	}
	return (&API{}).export(e)
}
