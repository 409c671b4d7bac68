package privacy

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the room. No label could name anybody.
type Metrics struct {
	exports    *prometheus.CounterVec
	exportTime prometheus.Histogram
}

// What became of an export.
const (
	outcomeReady   = "ready"
	outcomeFailed  = "failed"
	outcomeFetched = "fetched"
	outcomeRemoved = "removed" // before its time
)

// NewMetrics makes the metrics and registers them, when there is a registry.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		exports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zimage_exports_total", Help: "Exports by what became of them; fetched counts each download that was whole."}, []string{"outcome"}),
		exportTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "zimage_export_seconds", Help: "From the request for an export until it is ready.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 10)}), // 1 s to 3 days
	}
	for _, outcome := range []string{outcomeReady, outcomeFailed, outcomeFetched, outcomeRemoved} {
		m.exports.WithLabelValues(outcome) // an alert must see the first
	}
	if r != nil {
		r.MustRegister(m.exports, m.exportTime)
	}
	return m
}
