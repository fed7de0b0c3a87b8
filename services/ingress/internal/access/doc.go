// Package access decides who a client is, and how much it may send.
//
// A Keeper verifies passwords, SCRAM exchanges, API keys and client
// certificates against the credentials in Postgres. It returns an Identity,
// which says for whom the client sends and which addresses it may name.
//
// # Promises
//
// A change in Postgres takes effect within three seconds (rowLife). Whatever is
// wrong with a credential, the answer is ErrRefused, after the same work: a
// user that does not exist costs the hash of a password too, and has SCRAM
// salts like everybody else. Who fails too often waits longer each time, then
// gets a *TooManyError, on every ingress of the installation; networks from
// which a user was authenticated before are judged by themselves, so that
// strangers cannot lock a user out. Postgres being away is an error of
// another kind: a temporary failure, never a refusal.
//
// # Limits
//
// Messages per second are counted by each process for itself: n processes
// allow up to n times as many. Quotas of a day (UTC) are counted in Postgres,
// to which each process adds once a second: n processes together may go over
// a quota by what n-1 of them take within a second.
package access
