// Package privacy is what the service promises about personal data, as data: the
// policy, which names windows, contacts, purposes and processors, with what the
// page says of it where it is in force; and the data map, which describes all that
// is stored. By them it makes copies of all that is a person's, and takes them in from
// elsewhere, erases who closes their account, ends what is past its time, and follows
// requests and holds; it keeps the ledger of what is done with people's data, writes
// which features they use, and tells whether the promises are kept.
//
// It never decides about one person's data; that is subject's. It imports no other
// room and carries no HTTP.
package privacy
