package outbound

import "github.com/prometheus/client_golang/prometheus"

// What became of a call.
const (
	accepted  = "accepted"  // 2xx
	answered  = "answered"  // any other status
	refused   = "refused"   // by us: it leads where we do not call
	unreached = "unreached" // no answer came
)

// newCalls has every outcome from the start, so that the first one is an increase.
func newCalls(r prometheus.Registerer) *prometheus.CounterVec {
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "zimage_outbound_calls_total", Help: "Calls to addresses that people named, by what became of them.",
	}, []string{"outcome"})
	for _, outcome := range []string{accepted, answered, refused, unreached} {
		calls.WithLabelValues(outcome)
	}
	if r != nil {
		r.MustRegister(calls)
	}
	return calls
}

func outcomeOf(a Answer, err *Error) string {
	switch {
	case err == nil && a.Status >= 200 && a.Status < 300:
		return accepted
	case err == nil:
		return answered
	case err.Code == Refused || err.Code == BadURL:
		return refused
	}
	return unreached
}
