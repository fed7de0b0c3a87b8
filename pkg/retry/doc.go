// Package retry says when a delayed recipient is tried again. It is pure: it
// knows no clock and not who is retried.
//
// RFC 5321 §4.5.4.1 asks for a first retry after some minutes, longer
// intervals later on, and four to five days before giving up. A Schedule is
// the list of those intervals; its last one repeats until the recipient
// expires.
package retry
