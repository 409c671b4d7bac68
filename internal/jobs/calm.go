package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// calmPause is how long asynq waits before it asks a Redis again that did not answer.
const calmPause = 250 * time.Millisecond

// calm is the Redis of asynq's servers. When that is away they would ask again without
// a pause, and take a core for as long as it lasts.
type calm struct {
	redis.UniversalClient
	quit <-chan struct{} // closed: nobody pauses any more
}

// EvalSha runs a script of asynq's by its hash.
func (c calm) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	return c.after(c.UniversalClient.EvalSha(ctx, sha, keys, args...))
}

// Eval runs one that the server does not know yet.
func (c calm) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	return c.after(c.UniversalClient.Eval(ctx, script, keys, args...))
}

func (c calm) after(answer *redis.Cmd) *redis.Cmd {
	if err := answer.Err(); err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "NOSCRIPT") {
		select {
		case <-c.quit:
		case <-time.After(calmPause):
		}
	}
	return answer
}
