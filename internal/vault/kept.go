package vault

// RingsKept is how long it stays on record which roots a silent process had, as the
// data map says.
const RingsKept = 10 * processDie
