package httpapi

import "context"

type modelsOutput struct{ Body modelsView }

func (a *API) listModels(ctx context.Context, _ *struct{}) (*modelsOutput, error) {
	list, err := a.rooms.Generate.Models(ctx)
	if err != nil {
		return nil, err
	}
	out := &modelsOutput{Body: modelsView{Object: "list", Data: []modelView{}}}
	for _, m := range list {
		out.Body.Data = append(out.Body.Data, model(m))
	}
	return out, nil
}
