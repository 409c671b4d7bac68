package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/redis/go-redis/v9"

	"zimage/internal/e2e/proxy"
	"zimage/internal/testenv"
)

func TestRedis(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, false)
	p, err := proxy.NewRedis(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	ctx := t.Context()
	through := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: 2 * time.Second})
	direct := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _, _ = through.Close(), direct.Close() })

	if err := through.Set(ctx, "a", strings.Repeat("long\r\n", 20_000), 0).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := through.Get(ctx, "a").Result(); len(got) != 120_000 {
		t.Fatalf("got %d bytes: %v", len(got), err)
	}

	cut := p.CutReply(1, func(c proxy.Command) bool { return len(c.Args) == 2 && c.Args[0] == "incr" && c.Args[1] == "n" })
	if err := through.Incr(ctx, "n").Err(); err == nil {
		t.Error("the answer was not withheld")
	}
	if n := direct.Get(ctx, "n").Val(); n != "1" {
		t.Errorf("the server has n = %q, want what was asked of it", n)
	}
	if err := through.Incr(ctx, "n").Err(); err != nil || cut.Struck() != 1 {
		t.Errorf("the second one: %v, struck %d times", err, cut.Struck())
	}

	p.Refuse(true)
	if through.Ping(ctx).Err() == nil || p.Refused() == 0 {
		t.Error("it refuses nothing")
	}
	p.Refuse(false)
	if err := through.Ping(ctx).Err(); err != nil {
		t.Error(err)
	}

	p.Freeze(true)
	if through.Incr(ctx, "n").Err() == nil {
		t.Error("it answers though frozen")
	}
	p.Freeze(false)
	if err := through.Ping(ctx).Err(); err != nil {
		t.Error(err)
	}
}

func TestRedisKnowsAsynq(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateRedis(t, false)
	p, err := proxy.NewRedis(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	options := asynq.RedisClientOpt{Addr: p.Addr()}
	client := asynq.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	enqueued, dequeued, acknowledged := p.CutReply(1, proxy.Enqueued), p.CutReply(1, proxy.Dequeued), p.CutReply(1, proxy.Acknowledged)

	until(t, "an enqueue is cut", func() bool {
		_, _ = client.Enqueue(asynq.NewTask("x", nil), asynq.Queue("lane"))

		return enqueued.Struck() == 1
	})
	for range 3 {
		if _, err := client.Enqueue(asynq.NewTask("x", nil), asynq.Queue("lane")); err != nil {
			t.Fatal(err)
		}
	}
	worker := asynq.NewServer(options, asynq.Config{Concurrency: 1, Queues: map[string]int{"lane": 1}, TaskCheckInterval: 10 * time.Millisecond, LogLevel: asynq.FatalLevel})
	if err := worker.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { return nil })); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(worker.Shutdown)
	until(t, "a dequeue and an acknowledgement are cut", func() bool { return dequeued.Struck() == 1 && acknowledged.Struck() == 1 })
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	server := testenv.PrivatePostgres(t)
	p, err := proxy.NewPostgres(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	ctx := t.Context()
	connect := func(address string) *pgx.Conn {
		c, err := pgx.Connect(ctx, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(context.Background()) })
		return c
	}
	direct := connect(server.URL())
	if _, err := direct.Exec(ctx, "CREATE TABLE things (name text); CREATE TABLE others (name text)"); err != nil {
		t.Fatal(err)
	}
	count := func(table string) (n int) {
		if err := direct.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	url := strings.Replace(server.URL(), server.Addr(), p.Addr(), 1)
	insert := func(c *pgx.Conn, table string) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO "+table+" VALUES ($1)", "x")
			return err
		})
	}

	cut := p.CutReply(1, func(d proxy.Done) bool { return d.Committed("INSERT INTO things") })
	through := connect(url)
	if err := insert(through, "others"); err != nil {
		t.Fatal(err)
	}
	if err := insert(through, "things"); err == nil || cut.Struck() != 1 {
		t.Errorf("the commit's answer came: %v, struck %d times", err, cut.Struck())
	}
	if n := count("things"); n != 1 {
		t.Errorf("%d rows: the server had to commit", n)
	}
	if err := insert(connect(url), "things"); err != nil {
		t.Error(err)
	}

	alone := p.CutReply(1, func(d proxy.Done) bool { return d.Ran("UPDATE things") })
	through = connect(url)
	if _, err := through.Exec(ctx, "UPDATE things SET name = $1 WHERE name = $2", "y", "nobody"); err != nil {
		t.Error(err)
	}
	if _, err := through.Exec(ctx, "UPDATE things SET name = $1 WHERE name = $2", "y", "x"); err == nil || alone.Struck() != 1 {
		t.Error("the update's answer came")
	}
	p.Refuse(true)
	if c, err := pgx.Connect(ctx, url); err == nil {
		_ = c.Close(ctx)
		t.Error("it refuses nothing")
	}
}

func TestObjects(t *testing.T) {
	t.Parallel()
	server := testenv.PrivateMinio(t)
	bucket := testenv.S3At(t, server.URL())
	p := proxy.NewObjects(bucket.Endpoint)
	t.Cleanup(p.Close)
	ctx := t.Context()
	store, err := minio.New(p.Addr(), &minio.Options{Creds: credentials.NewStaticV4(bucket.AccessKey, bucket.SecretKey, ""), MaxRetries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.MakeBucket(ctx, bucket.Bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	put := func(key string) error {
		_, err := store.PutObject(ctx, bucket.Bucket, key, bytes.NewReader(make([]byte, 100_000)), 100_000, minio.PutObjectOptions{})
		return err
	}
	there := func(key string) bool {
		_, err := store.StatObject(ctx, bucket.Bucket, key, minio.StatObjectOptions{})
		return err == nil
	}
	if err := put("fine"); err != nil || !there("fine") {
		t.Fatal(err)
	}

	full := p.Fail(1, proxy.Stores("/a"), http.StatusInsufficientStorage, "XMinioStorageFull")
	var answer minio.ErrorResponse
	if err := put("a"); !errors.As(err, &answer) || answer.Code != "XMinioStorageFull" || full.Struck() != 1 || there("a") {
		t.Errorf("full: %v, struck %d times", err, full.Struck())
	}
	cut := p.CutReply(1, proxy.Stores("/b"))
	if err := put("b"); err == nil || cut.Struck() != 1 || !there("b") {
		t.Errorf("the answer came: %v, struck %d times", err, cut.Struck())
	}
	gone := p.Away(-1, proxy.Any)
	if put("c") == nil || gone.Struck() == 0 {
		t.Error("it is not away")
	}
	gone.End()
	slow := p.Slow(1, proxy.Stores("/c"), 50*time.Millisecond)
	if err := put("c"); err != nil || slow.Struck() != 1 || !there("c") {
		t.Errorf("slow: %v, struck %d times", err, slow.Struck())
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("still not so: " + what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
