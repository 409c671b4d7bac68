// Package mail sends what the service must tell its people: rows in the
// database, sent by jobs, at least once and never again after the server's
// recorded acceptance. Without a server mails become files in a directory.
//
// It never decides whom to tell what. Address and content lie sealed with the
// receiver's key until they are accepted, and are gone then.
package mail
