package privacy

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the room. No label could name anybody.
type Metrics struct {
	exports    *prometheus.CounterVec
	exportTime prometheus.Histogram

	erasuresOpen, erasuresOldest, erasuresOverdue prometheus.Gauge
	erasuresCompleted                             prometheus.Counter
	erasureFailures                               *prometheus.CounterVec
	unmirrored                                    prometheus.Gauge

	purged, orphans                prometheus.Counter
	objectsMissing, objectsUnknown prometheus.Gauge
	objectsRefused                 prometheus.Gauge
	sweepsOldest                   prometheus.Gauge

	requestsOpen                    *prometheus.GaugeVec
	requestsOldest, requestsOverdue prometheus.Gauge
	holdsOpen, holdsDue             prometheus.Gauge

	promiseBroken, retentionOldest *prometheus.GaugeVec
	rootAge, clockApart            prometheus.Gauge
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
		erasuresOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_erasures_open", Help: "Erasures that are not complete (every 10 s, from the scheduler)."}),
		erasuresOldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_erasures_oldest_seconds", Help: "Age of the oldest open erasure, from its request; 0 when none is open."}),
		erasuresOverdue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_erasures_overdue", Help: "Open erasures behind their deadline: a promise is broken."}),
		erasuresCompleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_erasures_completed_total", Help: "Erasures that were verified and have their receipt."}),
		erasureFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zimage_erasure_failures_total", Help: "Times that an erasure could not go on, by code."}, []string{"code"}),
		unmirrored: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_journal_unmirrored", Help: "Lines of the journal of erasures, deletions and ends that the object store does not have after five minutes (from the scheduler)."}),
		purged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_rows_purged_total", Help: "Rows, or their content, that retention ended because their time was over."}),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "zimage_orphans_deleted_total", Help: "Objects that no row needed, found by the daily comparison and deleted."}),
		objectsMissing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_objects_missing", Help: "Objects that rows need and the last daily comparison did not find (from the scheduler)."}),
		objectsUnknown: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_objects_unknown", Help: "Objects that the last daily comparison found and nobody can tell whose they are (from the scheduler)."}),
		objectsRefused: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_objects_refused", Help: "Objects without a row that the last daily comparison did not delete, because they are too many (from the scheduler)."}),
		sweepsOldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_sweeps_oldest_seconds", Help: "Time since the last good sweep of the table that waits longest (from the scheduler)."}),
		requestsOpen: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_requests_open", Help: "Requests by people's rights that are not closed, by kind (every 10 s, from the scheduler)."}, []string{"kind"}),
		requestsOldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_requests_oldest_seconds", Help: "Age of the oldest open request; 0 when none is open."}),
		requestsOverdue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_requests_overdue", Help: "Open requests behind their deadline: a promise is broken."}),
		holdsOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_holds_open", Help: "Holds that are not released."}),
		holdsDue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_holds_review_due", Help: "Holds that somebody should have looked at again: a promise is broken."}),
		promiseBroken: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_promise_broken", Help: "1 while a promise is broken, as /v1/privacy/status says (every minute, from the scheduler)."}, []string{"promise"}),
		retentionOldest: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "zimage_retention_oldest_ratio", Help: "Age of the oldest record to the time that it may be kept, by category; above 1 it waits for its sweep."}, []string{"category"}),
		rootAge: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_root_age_seconds", Help: "Age of the root that wraps new keys (every minute, from the scheduler)."}),
		clockApart: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "zimage_clock_apart_seconds", Help: "How far the database's clock and this machine's differ; beyond an hour nothing is deleted because of a time (every minute, from the scheduler)."}),
	}
	for _, outcome := range []string{outcomeReady, outcomeFailed, outcomeFetched, outcomeRemoved} {
		m.exports.WithLabelValues(outcome) // an alert must see the first
	}
	for _, code := range []string{"internal", "database_away", "keys_failed", "objects_failed"} {
		m.erasureFailures.WithLabelValues(code)
	}
	if r != nil {
		r.MustRegister(m.exports, m.exportTime, m.erasuresOpen, m.erasuresOldest, m.erasuresOverdue, m.erasuresCompleted, m.erasureFailures, m.unmirrored,
			m.purged, m.orphans, m.objectsMissing, m.objectsUnknown, m.objectsRefused, m.sweepsOldest,
			m.requestsOpen, m.requestsOldest, m.requestsOverdue, m.holdsOpen, m.holdsDue,
			m.promiseBroken, m.retentionOldest, m.rootAge, m.clockApart)
	}
	return m
}
