package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"zimage/internal/account"
)

// public routes need no key.
const public = ""

// routes is the whole API in one list. What each route is told to the reader as
// stands beside it in docs.go.
func (a *API) routes() {
	add(a, http.MethodPost, "/v1/generations", account.ScopeGenerate, createDoc, a.createGeneration)
	add(a, http.MethodGet, "/v1/generations", account.ScopeRead, listDoc, a.listGenerations)
	add(a, http.MethodDelete, "/v1/generations", account.ScopeGenerate, deleteGenerationsDoc, a.deleteGenerations)
	add(a, http.MethodGet, "/v1/generations/{id}", account.ScopeRead, getDoc, a.getGeneration)
	add(a, http.MethodDelete, "/v1/generations/{id}", account.ScopeGenerate, deleteGenerationDoc, a.deleteGeneration)
	add(a, http.MethodPost, "/v1/generations/{id}/cancel", account.ScopeGenerate, cancelDoc, a.cancelGeneration)
	add(a, http.MethodGet, "/v1/generations/{id}/events", account.ScopeRead, eventsDoc, a.generationEvents)

	add(a, http.MethodDelete, "/v1/images", account.ScopeGenerate, deleteImagesDoc, a.deleteImages)
	add(a, http.MethodGet, "/v1/images/{id}", account.ScopeRead, imageDoc, a.getImage)
	add(a, http.MethodDelete, "/v1/images/{id}", account.ScopeGenerate, deleteImageDoc, a.deleteImage)
	add(a, http.MethodGet, "/v1/images/{id}/content", account.ScopeRead, contentDoc, a.imageContent)

	add(a, http.MethodGet, "/v1/models", account.ScopeRead, modelsDoc, a.listModels)

	add(a, http.MethodGet, "/healthz", public, healthDoc, a.health)
	add(a, http.MethodGet, "/readyz", public, readyDoc, a.ready)

	a.engine.GET("/openapi.json", a.serveOpenAPI)
	a.engine.GET("/docs", a.serveDocs)
	a.engine.GET("/docs.css", a.serveStyle)
}

// add registers one route with everything that is around a handler: the key, the
// body, the time limit, the words of its errors.
func add[I, O any](a *API, method, path, scope string, d doc, handle func(context.Context, *I) (*O, error)) {
	op := d.operation(a, method, path, scope)
	op.RejectUnknownQueryParameters = true
	op.MaxBodyBytes = maxBody + 1 // readStrict has already counted it
	op.BodyReadTimeout = -1       // and taken the time
	if scope != public {
		op.Middlewares = append(op.Middlewares, a.guard(scope))
	}
	op.Middlewares = append(op.Middlewares, a.checkQuery)
	if d.request != nil {
		op.Middlewares = append(op.Middlewares, a.readStrict)
	} else {
		op.Middlewares = append(op.Middlewares, a.refuseBody)
	}
	huma.Register(a.spec, op, func(ctx context.Context, in *I) (*O, error) {
		if !d.long {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, ordinaryTime)
			defer cancel()
		}
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.refuse(ctx, err)
		}
		return out, nil
	})
}
