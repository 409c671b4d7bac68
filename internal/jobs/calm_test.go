package jobs_test

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

// asked counts what is asked of Redis.
type asked struct{ atomic.Int64 }

func (*asked) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*asked) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (a *asked) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, c redis.Cmder) error {
		a.Add(1)
		return next(ctx, c)
	}
}

// While Redis is away workers look by themselves: asking it without a pause would take
// a core from them.
func TestARedisThatIsAwayIsNotAskedWithoutAPause(t *testing.T) {
	d, _ := testenv.Database(t, db.SQLite)
	// One connection, so that the pool soon answers without trying.
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, PoolSize: 1, DialerRetries: 1})
	var calls asked
	client.AddHook(&calls)
	bell := jobs.NewBell(client, jobs.NewMetrics(nil))
	t.Cleanup(func() { bell.Close(); _ = client.Close() })
	b := &bench{t, d, clock.New(), jobs.New(d, clock.New(), bell, jobs.NewMetrics(nil), slog.New(slog.NewTextHandler(io.Discard, nil)))}
	b.queue.Register(jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
	stop := b.work(4, time.Second, "a")
	time.Sleep(2 * time.Second)
	if n := calls.Load(); n < 2 || n > 100 {
		t.Errorf("it was asked %d times in two seconds", n)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
}
