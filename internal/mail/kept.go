package mail

// What the policy page says of how long things are kept here.
const RowKept = rowLife // that a mail was sent, without its content
