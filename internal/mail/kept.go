package mail

import "time"

// RowKept is how long it stays on record that a mail was sent, without its content:
// the policy page says so, and retention ends it by the data map.
const RowKept = 30 * 24 * time.Hour

// FileKept is how long a mail is a file, where there is no mail server, as the data
// map says.
const FileKept = fileLife
