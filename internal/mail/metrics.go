package mail

import "github.com/prometheus/client_golang/prometheus"

// What became of a mail, or of one attempt at it.
const (
	accepted = "accepted"
	retried  = "retried" // an attempt that is made again
	refused  = "refused" // by the server, for good
	failed   = "failed"  // given up after the last attempt
	dropped  = "dropped" // its receiver may not be written to any more
)

// metrics have no label that could name anybody.
type metrics struct {
	mails *prometheus.CounterVec
	time  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		mails: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zimage_mails_total", Help: "Mails by what became of them; retried counts attempts.",
		}, []string{"template", "outcome"}),
		time: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "zimage_mail_seconds", Help: "From the writing of a mail to the server's acceptance.",
			Buckets: prometheus.ExponentialBuckets(0.05, 4, 11), // 50 ms to 15 h
		}),
	}
	if r != nil {
		r.MustRegister(m.mails, m.time)
	}
	return m
}

func (m *metrics) count(t Template, outcome string) {
	m.mails.WithLabelValues(string(t), outcome).Inc()
}
