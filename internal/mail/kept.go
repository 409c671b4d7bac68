package mail

// RowKept is how long it stays on record that a mail was sent, without its content:
// the policy page says so.
const RowKept = rowLife
