package privacy

// What the data map says of how long things are kept here.
const (
	ExportKept        = exportLife   // an export, from when it is ready
	RemovedExportKept = exportCounts // one that was deleted, since it counts for its day
	ReceiptKept       = receiptLife  // an erasure, with its receipt
	RequestKept       = requestLife  // a request, from its closing
	RequestWordsKept  = wipeAfter    // its address and note
)
