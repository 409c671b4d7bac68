package jobs

// What the data map says of how long things are kept here.
const (
	EndedKept   = keepEnded       // a job after its end
	TicksKept   = keepTicks       // that a schedule came round
	WorkersKept = 10 * workerGone // a silent worker
)
