package generate

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the room. Labels are model, fault and code.
type Metrics struct {
	engineTime     *prometheus.HistogramVec
	failures       *prometheus.CounterVec
	refused        prometheus.Counter
	objectFailures prometheus.Counter
	resultsWaiting prometheus.Gauge
	swept          prometheus.Counter
}

// NewMetrics makes the metrics and registers them, when there is a registry.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		engineTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "zimage_engine_seconds", Help: "Time of one image on the engine.", Buckets: prometheus.ExponentialBuckets(0.05, 2, 14)}, []string{"model"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zimage_generation_failures_total", Help: "Failed attempts, by whose fault and code."}, []string{"fault", "code"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_prompts_refused_total", Help: "Prompts that the operator's rules refused."}),
		objectFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_object_failures_total", Help: "Calls that object storage did not answer well."}),
		resultsWaiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_results_waiting", Help: "Results in memory that wait for object storage."}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_objects_swept_total", Help: "Objects deleted because nobody needs them."}),
	}
	if r != nil {
		r.MustRegister(m.engineTime, m.failures, m.refused, m.objectFailures, m.resultsWaiting, m.swept)
	}
	return m
}

// ResultsWaiting is how many results of this process wait in memory for object
// storage.
func (s *Service) ResultsWaiting() int { return int(s.waiting.Load()) }
