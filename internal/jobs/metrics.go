package jobs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of the queue. Labels are lane, kind and state, never a party.
type Metrics struct {
	depth            *prometheus.GaugeVec
	age              *prometheus.GaugeVec
	claimLatency     *prometheus.HistogramVec
	pickup           *prometheus.HistogramVec
	runTime          *prometheus.HistogramVec
	endings          *prometheus.CounterVec
	slotsReady       *prometheus.GaugeVec
	slotsBusy        *prometheus.GaugeVec
	inHand           *prometheus.GaugeVec
	leasesLost       prometheus.Counter
	doorbellFailures prometheus.Counter

	mu    sync.Mutex
	lanes map[string]bool // that were ever sampled: an empty one is told as 0, not left out
}

// NewMetrics makes the metrics and registers them, when there is a registry.
func NewMetrics(r prometheus.Registerer) *Metrics {
	fast := prometheus.ExponentialBuckets(0.0005, 2, 14) // 0.5 ms to 4 s
	slow := prometheus.ExponentialBuckets(0.005, 2.5, 14)
	m := &Metrics{
		lanes: map[string]bool{},
		depth: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_jobs", Help: "Jobs that have not ended, by lane and state (every 10 s, from the scheduler)."}, []string{"lane", "state"}),
		age: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_jobs_oldest_seconds", Help: "How long the longest waiting job of the lane could have run; 0 when none waits."}, []string{"lane"}),
		claimLatency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "zimage_job_claim_seconds", Help: "Time of the claiming statement.", Buckets: fast}, []string{"lane"}),
		pickup: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "zimage_job_pickup_seconds", Help: "From the job's creation to its first claim.", Buckets: slow}, []string{"lane"}),
		runTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "zimage_job_run_seconds", Help: "From claim to end of an attempt.", Buckets: slow}, []string{"lane", "kind"}),
		endings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zimage_jobs_ended_total", Help: "Jobs that ended, by final state."}, []string{"lane", "kind", "state"}),
		slotsReady: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_slots_ready", Help: "Slots of this worker that could run a job."}, []string{"lane"}),
		slotsBusy: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_slots_busy", Help: "Slots of this worker that a job is on."}, []string{"lane"}),
		inHand: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_jobs_in_hand", Help: "Jobs this worker has in hand, results that wait to be stored included."}, []string{"lane"}),
		leasesLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_leases_lost_total", Help: "Attempts whose lease was lost, seen by worker or scheduler."}),
		doorbellFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_doorbell_failures_total", Help: "Rings that Redis did not take; the workers' tick replaces them."}),
	}
	if r != nil {
		r.MustRegister(m.depth, m.age, m.claimLatency, m.pickup, m.runTime, m.endings,
			m.slotsReady, m.slotsBusy, m.inHand, m.leasesLost, m.doorbellFailures)
	}
	return m
}

func (m *Metrics) claimed(lane string, list []Job, took time.Duration, now int64) {
	if len(list) > 0 {
		m.claimLatency.WithLabelValues(lane).Observe(took.Seconds())
	}
	for _, j := range list {
		if j.Attempt == 1 {
			m.pickup.WithLabelValues(lane).Observe(float64(now-max(j.CreatedAt, j.RunAfter)) / 1000)
		}
	}
}

func (m *Metrics) ended(j Job, end State, now int64) {
	m.endings.WithLabelValues(j.Lane, j.Kind, string(end)).Inc()
	if j.StartedAt > 0 {
		m.runTime.WithLabelValues(j.Lane, j.Kind).Observe(float64(now-j.StartedAt) / 1000)
	}
}

func (m *Metrics) slots(lane string, ready, busy, inHand int) {
	m.slotsReady.WithLabelValues(lane).Set(float64(ready))
	m.slotsBusy.WithLabelValues(lane).Set(float64(busy))
	m.inHand.WithLabelValues(lane).Set(float64(inHand))
}

// sample counts the queue for the depth and age metrics.
func (q *Queue) sample(ctx context.Context) error {
	var rows []struct {
		Lane   string `db:"lane"`
		State  string `db:"state"`
		Jobs   int64  `db:"jobs"`
		Oldest int64  `db:"oldest"`
	}
	// One state at a time, because each has its own small index and ended jobs
	// have none.
	var parts []string
	for _, state := range []State{Queued, Waiting, Running} {
		parts = append(parts, fmt.Sprintf(`SELECT lane, '%s' AS state, count(*) AS jobs, min(run_after) AS oldest
			FROM jobs WHERE state = '%s' GROUP BY lane`, state, state))
	}
	err := q.db.Select(ctx, &rows, strings.Join(parts, " UNION ALL "))
	if err != nil {
		return err
	}
	var served []string
	if err := q.db.Select(ctx, &served, `SELECT DISTINCT lane FROM workers`); err != nil {
		return err
	}
	m := q.metrics
	m.mu.Lock()
	defer m.mu.Unlock()
	jobs, oldest := map[[2]string]int64{}, map[string]int64{}
	for _, lane := range served {
		m.lanes[lane] = true
	}
	for _, r := range rows {
		m.lanes[r.Lane] = true
		jobs[[2]string{r.Lane, r.State}] = r.Jobs
		if r.State == string(Queued) {
			oldest[r.Lane] = max(q.clock.Millis()-r.Oldest, 0)
		}
	}
	for lane := range m.lanes {
		for _, state := range []State{Queued, Waiting, Running} {
			m.depth.WithLabelValues(lane, string(state)).Set(float64(jobs[[2]string{lane, string(state)}]))
		}
		m.age.WithLabelValues(lane).Set(float64(oldest[lane]) / 1000)
	}
	return nil
}
