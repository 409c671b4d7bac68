package app

import (
	"fmt"

	"zimage/internal/engine"
	"zimage/internal/engine/comfyui"
	"zimage/internal/engine/illustrator"
	"zimage/internal/engine/openai"
	"zimage/internal/engine/sdcpp"
)

// openEngine makes the adapter that an entry of the engines file asks for.
func openEngine(s engine.Settings) (engine.Engine, error) {
	switch s.Kind {
	case engine.KindIllustrator:
		return illustrator.Open(s)
	case engine.KindOpenAI:
		return openai.Open(s)
	case engine.KindComfyUI:
		return comfyui.Open(s)
	case engine.KindSDCPP:
		return sdcpp.Open(s)
	}
	return nil, fmt.Errorf("unknown kind %q", s.Kind)
}
