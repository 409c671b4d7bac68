package problem_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"zimage/internal/problem"
)

func TestCodeOf(t *testing.T) {
	t.Parallel()
	cause := errors.New("password of db-7 is hunter2")
	for _, tt := range []struct {
		name string
		err  error
		want problem.Code
	}{
		{"ours", problem.New(problem.NotFound, "There is no such thing."), problem.NotFound},
		{"wrapped", fmt.Errorf("get: %w", problem.New(problem.Conflict, "It has ended.")), problem.Conflict},
		{"joined", errors.Join(nil, problem.New(problem.PromptRefused, "No.")), problem.PromptRefused},
		{"with a cause", problem.Wrap(cause, problem.Unavailable, "Try again."), problem.Unavailable},
		{"unknown", cause, problem.Internal},
		{"none", nil, problem.Internal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := problem.CodeOf(tt.err); got != tt.want {
				t.Errorf("CodeOf = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestACauseIsFoundAndNeverShown(t *testing.T) {
	t.Parallel()
	cause := errors.New("password of db-7 is hunter2")
	err := problem.Wrap(cause, problem.Unavailable, "Try again.").After(2 * time.Second)
	if !errors.Is(err, cause) || err.RetryAfter != 2*time.Second {
		t.Errorf("the cause or the time is lost: %+v", err)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the text shows the cause: %s", err)
	}
}

func TestInvalidNamesItsFields(t *testing.T) {
	t.Parallel()
	err := problem.Invalid(problem.Field{Location: "body.prompt", Message: "must not be blank"})
	if err.Code != problem.InvalidRequest || len(err.Fields) != 1 || err.Fields[0].Location != "body.prompt" {
		t.Errorf("%+v", err)
	}
}
