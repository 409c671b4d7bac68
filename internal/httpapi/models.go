package httpapi

import (
	"context"
	"slices"

	"zimage/internal/generate"
)

type modelsOutput struct{ Body modelsView }

func (a *API) listModels(ctx context.Context, _ *struct{}) (*modelsOutput, error) {
	list, err := a.rooms.Generate.Models(ctx)
	if err != nil {
		return nil, err
	}
	return &modelsOutput{Body: modelsView{Object: "list", Data: each(list, model)}}, nil
}

type modelInput struct {
	Model string `path:"model" doc:"Its id." example:"z-image-turbo"`
}

type modelOutput struct{ Body modelView }

func (a *API) getModel(ctx context.Context, in *modelInput) (*modelOutput, error) {
	list, err := a.rooms.Generate.Models(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(list, func(m generate.Model) bool { return m.ID == in.Model })
	if at < 0 {
		return nil, noModel()
	}
	return &modelOutput{Body: model(list[at])}, nil
}
