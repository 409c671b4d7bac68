package jobs_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"zimage/internal/clock"
	"zimage/internal/db"
	"zimage/internal/jobs"
	"zimage/internal/testenv"
)

func TestAnEmptyLaneIsToldAsZero(t *testing.T) {
	t.Parallel()
	testenv.Databases(t, func(t *testing.T, d *db.DB) {
		ctx, c, registry := t.Context(), clock.New(), prometheus.NewRegistry()
		client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1}) // away: nobody is rung here
		m := jobs.NewMetrics(registry)
		bell := jobs.NewBell(client, m)
		t.Cleanup(func() { bell.Close(); _ = client.Close() })
		q := jobs.New(d, c, bell, m, slog.New(slog.DiscardHandler))
		q.Register(jobs.Kind{Name: "test:run", Lane: "a", Run: func(context.Context, *jobs.Run) error { return nil }})
		// A scheduler counts in its first pass.
		sampled := func(want func(depth, age float64, there bool) bool) {
			t.Helper()
			ctx, cancel := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- q.NewScheduler().Run(ctx) }()
			testenv.Eventually(t, 10*time.Second, func() bool {
				depth, known := gauge(t, registry, "zimage_jobs", "queued")
				age, told := gauge(t, registry, "zimage_jobs_oldest_seconds", "")
				return want(depth, age, known && told)
			})
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		var j jobs.Job
		if err := d.Tx(ctx, func(tx *db.Tx) (err error) { j, err = q.Add(ctx, tx, jobs.NewJob{Kind: "test:run"}); return err }); err != nil {
			t.Fatal(err)
		}
		sampled(func(depth, age float64, there bool) bool { return there && depth == 1 && age >= 0 })
		if err := d.Tx(ctx, func(tx *db.Tx) error { _, err := q.Cancel(ctx, tx, j.ID, jobs.AtWish); return err }); err != nil {
			t.Fatal(err)
		}
		sampled(func(depth, age float64, there bool) bool { return there && depth == 0 && age == 0 })
	})
}

// gauge reads the value for lane a and, where it is given, that state.
func gauge(t *testing.T, r *prometheus.Registry, name, state string) (value float64, there bool) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["lane"] == "a" && labels["state"] == state {
				return m.GetGauge().GetValue(), true
			}
		}
	}
	return 0, false
}
