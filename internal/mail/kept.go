package mail

// RowKept is how long it stays on record that a mail was sent, without its content:
// the policy page says so.
const RowKept = rowLife

// FileKept is how long a mail is a file, where there is no mail server, as the data
// map says.
const FileKept = fileLife
