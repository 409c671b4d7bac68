package embedded

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"zimage/internal/config"
)

func client(t *testing.T, address string) *redis.Client {
	t.Helper()
	o, err := config.RedisOptions(address)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func start(t *testing.T) (address string, stop func()) {
	t.Helper()
	address, stop, err := Redis()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return address, stop
}

func TestRedisListensOnLoopbackAndAsksForItsPassword(t *testing.T) {
	t.Parallel()
	address, _ := start(t)
	o, err := config.RedisOptions(address)
	if err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(o.Addr)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		t.Errorf("listens on %s", o.Addr)
	}
	if len(o.Password) < 26 { // 130 bits
		t.Errorf("the password has %d letters", len(o.Password))
	}
	ctx := context.Background()
	if err := client(t, address).Set(ctx, "a", "b", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for _, stranger := range []string{"redis://" + o.Addr, "redis://:wrong@" + o.Addr} {
		c := client(t, stranger)
		if got, err := c.Get(ctx, "a").Result(); err == nil {
			t.Errorf("%q was read without the password", got)
		}
		if err := c.FlushAll(ctx).Err(); err == nil {
			t.Error("flushed without the password")
		}
		subscription := c.Subscribe(ctx, "x")
		if got, err := subscription.Receive(ctx); err == nil {
			t.Errorf("subscribed without the password: %v", got)
		}
		_ = subscription.Close()
	}
	other, _ := start(t)
	if strings.Contains(other, o.Password) {
		t.Error("two have the same password")
	}
}

func TestRedisForgetsWhatExpires(t *testing.T) {
	t.Parallel()
	address, _ := start(t)
	c, ctx := client(t, address), context.Background()
	if err := c.Set(ctx, "short", "x", 50*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(ctx, "long", "x", time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); c.Exists(ctx, "short").Val() != 0; {
		if time.Now().After(deadline) {
			t.Fatal("a key outlived its time")
		}
	}
	if c.Exists(ctx, "long").Val() != 1 {
		t.Error("a key went before its time")
	}
}

func TestRedisCarriesAsynq(t *testing.T) {
	t.Parallel()
	address, _ := start(t)
	c := client(t, address)
	ran := make(chan string, 1)
	server := asynq.NewServerFromRedisClient(c, asynq.Config{Concurrency: 1, TaskCheckInterval: 10 * time.Millisecond, LogLevel: asynq.FatalLevel})
	if err := server.Start(asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
		ran <- task.Type()
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	if _, err := asynq.NewClientFromRedisClient(c).Enqueue(asynq.NewTask("generation:run", nil)); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-ran:
		if got != "generation:run" {
			t.Errorf("ran %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the task never ran")
	}
}

func TestStopEndsRedis(t *testing.T) {
	t.Parallel()
	address, stop := start(t)
	stop()
	stop() // again does nothing
	if err := client(t, address).Ping(context.Background()).Err(); err == nil {
		t.Error("still answers")
	}
}

// TestMain is also the process that holds a lock until its input ends.
func TestMain(m *testing.M) {
	if path := os.Getenv("ZIMAGE_TEST_LOCK"); path != "" {
		if _, err := Lock(path); err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("locked\n")
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		return
	}
	os.Exit(m.Run())
}

func TestOneProcessHoldsTheLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data", "lock")
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), "ZIMAGE_TEST_LOCK="+path)
	if _, err := holder.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("the holder says %q, %v", line, err)
	}
	_, err = Lock(path)
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), filepath.Dir(path)) {
		t.Errorf("while another process holds it: %v", err)
	}
	// Killed, so it could not clean up.
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	unlock, err := Lock(path)
	if err != nil {
		t.Fatalf("after that process was killed: %v", err)
	}
	if _, err := Lock(path); !errors.Is(err, ErrRunning) {
		t.Errorf("twice in one process: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	unlock, err = Lock(path)
	if err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	_ = unlock()
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data folder is %v, %v", info.Mode(), err)
	}
}
