// Package privacy is what the service promises about personal data, as data: the
// policy, which names windows, contacts, purposes and processors, with what the
// page says of it where it is in force; and the data map, which describes all that
// is stored. By them it makes copies of all that is a person's, and takes them in from
// elsewhere; it keeps the ledger of what is done with people's data, and writes which
// features they use.
//
// It never decides about one person's data; that is subject's. It imports no other
// room and carries no HTTP.
package privacy
