package privacy

// What the data map says of how long things are kept here.
const (
	ExportKept        = exportLife   // an export, from when it is ready
	RemovedExportKept = exportCounts // one that was deleted, since it counts for its day
	ReceiptKept       = receiptLife  // an erasure, with its receipt
	RequestKept       = requestLife  // a request, from its closing
	RequestWordsKept  = wipeAfter    // its address and note
)

// ObjectionTime is how long an erasure that a letter asked for waits, where a second
// factor is in force.
const ObjectionTime = objectWithin

// UnconfirmedKept is how long a request waits for a confirmation before it is closed.
const UnconfirmedKept = confirmWithin
