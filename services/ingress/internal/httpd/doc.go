// Package httpd takes messages by HTTP: POST /v1/messages, as JSON from which
// the message is composed, or as a whole message (message/rfc822). Package
// access says who the client is; package commit makes its messages durable,
// in the same groups as those of SMTP. docs/openapi.json describes the
// interface; it is made from the types here, and published at /openapi.json.
//
// # Promises
//
// A 202 comes after the commit, never before. A request with an
// Idempotency-Key is accepted once in 24 hours, whatever breaks: the key is in
// the transaction of its messages. All messages of a request are accepted, or
// none. No field has a line break that the client put there.
//
// # Limits
//
// Memory is bounded by a budget for all requests (429 and Retry-After beyond
// it); whole messages that are large wait in the spool until they are here. A
// request that is sent slower than 1 KiB/s beyond the read timeout is cut off,
// and so is who does not read an answer within 10 s. Doorkeeper bounds the
// connections of an address and a network, and the memory of header sections,
// before anybody is known. The address of a client is
// that of its connection: a proxy in front hides it, with the networks of a
// credential and the brakes on guessing that go by it.
package httpd

//go:generate go test . -run=TestDocument -update
