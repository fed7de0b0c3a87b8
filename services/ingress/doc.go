// Package ingress takes mail from clients: it is the first step of the walk.
//
// # The walk
//
// A session of package smtpd reads commands and content, and makes a
// mail.Submission of them; package httpd does so with requests. Package commit collects the submissions of all
// sessions and hands them to the store as a group, in one transaction. When
// it is committed each client hears "250 2.0.0 queued as" and the queue id, or
// a 202 with it;
// then one frame on the bus rings for the whole group. Messages to busy domains,
// whose way a resolver has just announced, package straight hands to the home
// of their site.
//
// # Promises
//
// No 250 before the commit (RFC 5321 §6.1). Without Postgres clients hear
// 451 within the commit timeout, and Postgres does not commit what it comes to later; without the bus nothing changes for them, as
// the scheduler rings for what was not rung for. Nobody but
// clients of the relay networks and those that authenticated can name a
// recipient outside the relay domains, and who authenticated names only its
// own addresses. The content passes byte for byte, with our Received field
// before it (a submission also gets the Date and Message-ID that it lacks, and
// loses Bcc); content with a bare CR or LF does not pass.
//
// # State
//
// None that lasts: content that is still coming in waits in package spool. Any
// number of processes may serve behind one address, and a process may die at
// any time. A message whose client has no 250 is the client's.
package ingress
