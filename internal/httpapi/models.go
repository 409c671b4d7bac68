package httpapi

import "context"

type modelsOutput struct{ Body modelsView }

func (a *API) listModels(ctx context.Context, _ *struct{}) (*modelsOutput, error) {
	list, err := a.rooms.Generate.Models(ctx)
	if err != nil {
		return nil, err
	}
	return &modelsOutput{Body: modelsView{Object: "list", Data: each(list, model)}}, nil
}
