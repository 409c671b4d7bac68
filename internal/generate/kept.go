package generate

// What the policy page says of how long things are kept here.
const (
	TombstoneKept  = tombstoneFor  // id, times and reason of what was removed
	IdempotentKept = idempotentFor // the keyed hash of an Idempotency-Key
)

// EnginesKept is how long what a silent worker said of its engines stays, as the
// data map says.
const EnginesKept = enginesFor
