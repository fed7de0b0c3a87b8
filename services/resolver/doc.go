// Package resolver is the service that finds the way of queued mail: step 3
// of the walk (docs/walk.md).
//
// # Name
//
// resolver - from the domain of a recipient to the hosts that take its mail
//
// # Synopsis
//
// POSTRIDER_POSTGRES_URL, POSTRIDER_NATS_URL, POSTRIDER_HOSTNAME,
// POSTRIDER_DNS_SERVERS, POSTRIDER_DNS_TIMEOUT, POSTRIDER_REMOTE_PORT,
// POSTRIDER_ALLOW_TARGETS, POSTRIDER_ADDRESS_LITERALS, POSTRIDER_SHAPING_FILE,
// POSTRIDER_RETRY_SCHEDULE; the whole list is in docs/configuration.md. Run any
// number of processes: they share one consumer and hold nothing.
//
// # Description
//
// Hints name messages and their due recipients. For each recipient domain the
// routing table is asked first (its own name, then the nearest wildcard
// "*.example.com", then "*"), whose smart hosts are looked up by address; else
// DNS, for MX records and the addresses of their hosts. Recipients of one
// message whose domains have equal hosts, site and TLS level become one
// delivery request. The site hashes to a slot, or is divided over several, the
// slot has a home worker, and the requests of a batch for one home leave as one
// frame. The ways of domains with much mail are announced to ingress for a
// moment: the next messages to them do not come by here.
//
// What DNS says decides, and only what it says definitely is permanent:
//
//	null MX (RFC 7505)                                    failed  5.1.10
//	the domain does not exist (NXDOMAIN)                  failed  5.1.2
//	address literal, unless allowed                       failed  5.1.2
//	no MX has an address; neither MX nor address          failed  5.4.4
//	all addresses loopback, private, reserved             failed  5.4.4
//	we are the best MX: a loop                            failed  5.4.6
//	SERVFAIL, REFUSED, silence, contradiction             delayed 4.4.3
//	smart hosts that cannot be used, whatever the reason  delayed 4.4.4
//
// A host that cannot be used for one of these reasons is passed over while
// another can. An MX that is an address is no host. When we are among the MX,
// only those with a better preference are used.
//
// # Consumes
//
// postrider.queued: hints of ingress, scheduler and bounce. The notice
// "slots": homes have changed. While the bus is down: due rows, every second.
//
// # Produces
//
// postrider.ready.<worker>: delivery requests. postrider.failed: messages to
// report on.
//
// # Writes
//
// recipients (parked; state failed; next_attempt_at), routes, attempts,
// reports.
//
// # Standards
//
// RFC 5321 §5 (MX, implicit MX, loops, random choice among equals), RFC 7505
// (null MX), RFC 1035, RFC 2308 (negative answers), RFC 5452 (forged answers),
// RFC 6604 (aliases), RFC 6891 (EDNS), RFC 7766 (TCP), RFC 3463 (status).
//
// # Strategies
//
// Answers are kept for their TTL, 30 s to 1 h, failures for 5 s; questions in
// flight are shared. Ways that are known leave at once. Others leave in waves
// as they are found; after half a second the rest is followed apart and the
// hint acked, so that no slow domain holds up others. Should the process die
// then, the rows are armed and rung again.
//
// What has no live home, or cannot be published, is parked in Postgres with
// its route, for the home to pull. A batch with a recipient that was tried
// before reads the routing table anew: rerouted mail goes the new way.
//
// # Security
//
// Answers are believed only from the server that was asked, to the question
// that was asked, about the name that was asked for. Host names are letters,
// digits, hyphens and underscores. Counts, lengths, TTLs and times are
// bounded. Connections to the inside (loopback, private, link-local, metadata
// services, and IPv6 forms of these) are refused unless
// POSTRIDER_ALLOW_TARGETS names the network; that holds for smart hosts too,
// and delivery refuses them again.
//
// # Diagnostics
//
// Log lines "resolved" (debug) and "settled" with queue_id and trace_id. Span
// resolver.resolve with an event per route or trouble. Metrics:
// postrider.resolver.recipients (by result), postrider.resolver.dns.duration
// (by type and verdict).
//
// # Bugs
//
// /etc/resolv.conf is read once, at the start. Own addresses are not known,
// only the own name: an MX of another name that leads back here is found out
// by the hop count.
//
// # See also
//
// docs/walk.md, package mx inside, mail.Route.
package resolver
