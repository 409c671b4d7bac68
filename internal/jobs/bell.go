package jobs

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

const (
	// ringTimeout is how long one ring may take before it is dropped: the tick
	// of the workers replaces it.
	ringTimeout = 200 * time.Millisecond
	// ringTask is far beyond any job: a ring's handler runs jobs until none is
	// left.
	ringTask = 240 * time.Hour
	// maxPending rings in a lane are enough to wake every worker; with a backlog
	// more of them would only fill Redis. A process asks how many there are, and
	// asks again once it has rung all that there was room for: so each may add as many.
	maxPending = 256
	// pendingFor is how long a lane found full is not asked again. In that time
	// no fleet of workers answers so many rings with no job left over.
	pendingFor = 20 * time.Millisecond
)

// A Bell wakes workers through asynq. What it says can be lost: it names no
// job, and workers look every two seconds anyway.
type Bell struct {
	redis   redis.UniversalClient
	client  *asynq.Client
	metrics *Metrics
	rings   chan ring
	quit    chan struct{}
	done    sync.WaitGroup

	mu    sync.Mutex
	local map[string]func() // lanes that this very process serves
}

type ring struct{ lane, kind string }

// NewBell makes a bell and starts the goroutine that rings it. Close it.
func NewBell(r redis.UniversalClient, m *Metrics) *Bell {
	b := &Bell{
		redis: r, client: asynq.NewClientFromRedisClient(r), metrics: m,
		rings: make(chan ring, 1024), quit: make(chan struct{}), local: map[string]func(){},
	}
	b.done.Add(1)
	go b.run()
	return b
}

// Ring wakes a worker of the lane, soon. It never blocks and never fails.
func (b *Bell) Ring(lane, kind string) {
	b.mu.Lock()
	wake := b.local[lane]
	b.mu.Unlock()
	if wake != nil {
		wake()
	}
	select {
	case b.rings <- ring{lane, kind}:
	default:
		b.metrics.doorbellFailures.Inc()
	}
}

// Close stops ringing; what was not rung is left to the workers' tick.
func (b *Bell) Close() {
	close(b.quit)
	b.done.Wait()
}

func (b *Bell) run() {
	defer b.done.Done()
	left := map[string]int64{}     // rings to go before a lane is asked again
	full := map[string]time.Time{} // lanes with rings enough, until then
	for {
		select {
		case <-b.quit:
			return
		case r := <-b.rings:
			if left[r.lane] == 0 {
				if time.Now().Before(full[r.lane]) {
					continue
				}
				n, err := b.room(r.lane)
				if err != nil {
					b.metrics.doorbellFailures.Inc()
					continue
				}
				if n <= 0 {
					full[r.lane] = time.Now().Add(pendingFor)
					continue
				}
				left[r.lane] = n
			}
			left[r.lane]--
			if err := b.ring(r); err != nil {
				b.metrics.doorbellFailures.Inc()
			}
		}
	}
}

// room is how many rings a lane takes before it has enough.
func (b *Bell) room(lane string) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), ringTimeout)
	defer cancel()
	// asynq keeps a queue's pending tasks in this list; there is no cheaper way
	// to ask it how many there are.
	pending, err := b.redis.LLen(ctx, "asynq:{"+lane+"}:pending").Result()
	return maxPending - pending, err
}

func (b *Bell) ring(r ring) error {
	ctx, cancel := context.WithTimeout(context.Background(), ringTimeout)
	defer cancel()
	_, err := b.client.EnqueueContext(ctx, asynq.NewTask(r.kind, nil),
		asynq.Queue(r.lane), asynq.TaskID(rand.Text()), asynq.MaxRetry(0), asynq.Timeout(ringTask))
	return err
}

// listen answers rings of a lane with serve, slots at a time, until stop is
// called. serve's context is not asynq's, which ends when Redis blinks.
func (b *Bell) listen(lane string, kinds []string, slots int, interval time.Duration, serve func(), log *slog.Logger) (stop func(), err error) {
	mux := asynq.NewServeMux()
	for _, kind := range kinds {
		mux.HandleFunc(kind, func(context.Context, *asynq.Task) error {
			serve()
			return nil
		})
	}
	quit := make(chan struct{})
	server := asynq.NewServerFromRedisClient(calm{b.redis, quit}, asynq.Config{
		Concurrency:              max(slots, 1),
		Queues:                   map[string]int{lane: 1},
		TaskCheckInterval:        interval,
		DelayedTaskCheckInterval: time.Minute, // rings are never delayed
		ShutdownTimeout:          time.Second,
		HealthCheckInterval:      time.Minute,
		Logger:                   quiet{log.With("lane", lane)},
		LogLevel:                 asynq.ErrorLevel,
	})
	if err := server.Start(mux); err != nil {
		return nil, err
	}
	return func() { close(quit); server.Shutdown() }, nil
}

// hear makes rings of a lane in this process call wake at once.
func (b *Bell) hear(lane string, wake func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.local[lane] = wake
}

// quiet turns asynq's log into ours. Redis being away is said by readyz and a
// metric, so asynq's many lines about it are for debugging.
type quiet struct{ log *slog.Logger }

func (q quiet) Debug(...any) {}
func (q quiet) Info(...any)  {}
func (q quiet) Warn(...any)  {}
func (q quiet) Error(...any) { q.log.Debug("asynq reports an error") }
func (q quiet) Fatal(...any) { q.log.Error("asynq gave up") }
