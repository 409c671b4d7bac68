package engine

import (
	"regexp"
	"strings"
)

const settingsWord = "sd_cpp_extra_args"

var (
	settingsBlock = regexp.MustCompile(`(?is)<\s*` + settingsWord + `[^>]*>.*?<\s*/\s*` + settingsWord + `\s*>`)
	settingsTag   = regexp.MustCompile(`(?i)<?\s*/?\s*` + settingsWord + `\s*>?`)
)

// plain takes out of a prompt what stable-diffusion.cpp reads as settings: a user
// who could set the number of images or the size would pass our limits by. It is
// a library too, and may stand behind any server, so no engine gets these words.
//
// Whole blocks go first, then single tags, and then, in one pass, every word that
// taking out put together: doing the first two over and over takes seconds for a
// prompt of nested tags.
func plain(prompt string) string {
	prompt = settingsBlock.ReplaceAllLiteralString(prompt, "")
	prompt = settingsTag.ReplaceAllLiteralString(prompt, "")
	kept := make([]byte, 0, len(prompt))
	for i := range len(prompt) {
		kept = append(kept, prompt[i])
		if start := len(kept) - len(settingsWord); start >= 0 && strings.EqualFold(string(kept[start:]), settingsWord) {
			kept = kept[:start]
		}
	}
	return string(kept)
}
