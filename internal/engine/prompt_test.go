package engine

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestPlainTakesOutSettings(t *testing.T) {
	t.Parallel()
	const block = `<sd_cpp_extra_args>{"batch_count":3}</sd_cpp_extra_args>`
	for _, tt := range []struct{ in, want string }{
		{"a cat", "a cat"},
		{"a < b > c", "a < b > c"},
		{block + "a cat" + block, "a cat"},
		{`<SD_Cpp_Extra_Args>{"seed":1}</sd_CPP_extra_args>a cat`, "a cat"},
		{"< sd_cpp_extra_args >{\n}\n</ sd_cpp_extra_args >a cat", "a cat"},
		{"a cat <sd_cpp_extra_args>", "a cat "},
		{"a cat <sd_cpp_extra_args", "a cat "},
		{"</sd_cpp_extra_args>a cat", "a cat"},
		{"<sd_cpp_<sd_cpp_extra_args>{}</sd_cpp_extra_args>extra_args>{}</sd_cpp_extra_args>a cat", "{}a cat"},
		{"<sd_cpp_sd_cpp_extra_argsextra_args>a cat", "<>a cat"},
		{"<ſd_cpp_extra_args>a cat", "a cat"},
	} {
		if got := plain(tt.in); got != tt.want {
			t.Errorf("%q became %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestNestedTagsCostNoSeconds(t *testing.T) {
	t.Parallel()
	began := time.Now()
	got := plain(strings.Repeat("<sd_cpp_", 5000) + strings.Repeat("extra_args>", 5000))
	if strings.Contains(got, settingsWord) {
		t.Error("a tag is left")
	}
	if took := time.Since(began); took > 5*time.Second { // over and over, it takes minutes
		t.Errorf("took %v", took)
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("a cat <sd_cpp_extra_args>{}</sd_cpp_extra_args>")
	f.Add("<sd_cpp_<sd_cpp_extra_args>extra_args>")
	f.Fuzz(func(t *testing.T, prompt string) {
		if got := plain(prompt); strings.Contains(strings.ToLower(got), settingsWord) {
			t.Errorf("%q", got)
		}
	})
}

// The built-in illustrator reads no settings: it gets the prompt as it was written.
func TestOnlyTheIllustratorGetsThePromptAsItIs(t *testing.T) {
	t.Parallel()
	const tag = "a <sd_cpp_extra_args>{}</sd_cpp_extra_args>cat"
	for _, kind := range append([]string{"a kind to come"}, kinds...) {
		var got Request
		s := settings("one", 1)
		s.Kind = kind
		f, _ := fleet(t, map[string]scripted{"one": {generate: func(_ context.Context, r Request, _ func(Progress)) ([]byte, error) {
			got = r
			return []byte("image"), nil
		}}}, s)
		if _, err := acquire(t, f).Generate(t.Context(), Request{Model: painter, Prompt: tag, NegativePrompt: tag}, nil); err != nil {
			t.Fatal(err)
		}
		want := "a cat"
		if kind == KindIllustrator {
			want = tag
		}
		if got.Prompt != want || got.NegativePrompt != want {
			t.Errorf("%s: %q and %q, want %q", kind, got.Prompt, got.NegativePrompt, want)
		}
	}
}
