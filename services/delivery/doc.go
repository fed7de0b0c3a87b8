// Package delivery is the service that relays mail to remote hosts: steps 4
// and 5 of the walk (docs/walk.md).
//
// # Name
//
// delivery - relay messages to the hosts of their routes, and settle what
// became of each recipient
//
// # Synopsis
//
// POSTRIDER_POSTGRES_URL, POSTRIDER_NATS_URL, POSTRIDER_HOSTNAME,
// POSTRIDER_SHAPING_FILE, POSTRIDER_RETRY_SCHEDULE, POSTRIDER_WORKER_LEASE, POSTRIDER_HOME_LEASE;
// the whole list is in docs/configuration.md. Run any number of processes.
//
// # Description
//
// A process lives as a worker: it registers, renews its leases every 0.4 s,
// and is the home of its fair share of 64 slots. Sites hash into slots, so
// each site has one home at a time, and its connections and limits live in
// one memory. A hot site may be divided into parts (division.go), each in a
// slot, with its portion of the limits. A request for a site goes this way:
//
//	receive   frame from the bus: claimed, or parked where there is no room,
//	          or passed on to the home of its slot            intake.go
//	look,     what is parked comes back as there is room, also
//	pull      without the bus                                 pull.go
//	site      what waits, by turns, in memory and in          site.go, ready.go,
//	          Postgres                                        backlog.go
//	dispatch  hands jobs to connections as the limits allow,  dispatch.go, lane.go,
//	          from a source of their pool                     turn.go, connections.go,
//	                                                          hosts.go, internal/pace
//	shelve    mail of a site none of whose hosts answers      shelve.go
//	session   one connection, and the jobs that it serves     session.go
//	attempt   one go at a job: dial, load, relay              attempt.go, load.go
//	judge     what each answer means, and whose fault it is   trouble.go, internal/blame
//	heard     rules that replies set off, hosts that ask for  measure.go,
//	          patience, what operators have suspended         internal/adapt
//	settle    outcomes of all sites, one transaction          outcome.go, settle.go
//	waits     what claimed mail waits for, for people         waits.go
//
// shared.go and joint.go keep the limits that sites share by name, of which
// each worker holds a portion; seat.go hands out the connections under them, to
// sites that live and to those that may be dead. source.go knows the sources and
// pools and how each is reached (internal/egress). home.go keeps the leases,
// moves.go moves slots, remnants.go counts what lost ones have left open; sites.go, save.go
// and remember.go hand what a site remembers to its next home; delivery.go puts
// the parts together.
//
// # Consumes
//
// postrider.ready.<worker>: delivery requests, those left for dead workers
// too. Parked recipients of its slots and suspensions, from Postgres.
//
// # Produces
//
// postrider.ready.<worker>: requests for slots that have moved.
// postrider.failed: hints for bounce. The notice "slots".
//
// # Writes
//
// recipients (claims, dispatched, outcomes), attempts, reports, routes,
// workers, slots, sites, divisions, site_parts, shared_limits, measures, waits.
//
// # Standards
//
// RFC 5321 §4.5.3.2 (timeouts), §4.5.4.1 (retries), §5.1 (order of hosts);
// RFC 1047 (duplicates); RFC 3461 §5.2 (relaying of DSN parameters).
//
// # Strategies
//
// Limits hold at the remote host, in every window: a transaction in flight
// counts as one of now, one that is over counts from the moment its reply to
// MAIL was read (internal/pace). A new home counts what the one before it saved
// and, unless that one ended in order, what it can have done unsaved.
//
// Connections: slow start from 5, one more with each success, one less with
// each failure. The connection that has been idle the shortest is used first,
// so those that are not needed end. An address that failed is tried last for
// 30 s to 5 min, and one connection finds out whether it is back; the next
// attempt comes to addresses that the one before has not tried, and to both
// families (Postfix's smtp_balance_inet_protocols). When no host
// of a site answers three times in a row, its mail waits in Postgres, with the
// reason in its history, until a probe gets through; then all of it moves at
// once.
//
// What fails together and what is limited together are two things. Breaker,
// probes, outage and parked mail are the site's, which is one set of hosts;
// limits are the site's and, besides, of names that sites share, as those of a
// provider are. Sites that may be dead have a part of the seats under such a
// limit that bounds what they can hold up (docs/decisions/0011).
//
// Sources: the source is chosen when a job gets a connection, by the weights
// of its pool, among those that can take it; an open connection first. What a
// source cannot take the others of the pool do. Limits hold for each source at
// each site (a lane). Mail none of whose sources can be used waits in
// Postgres, with the reason in its history.
//
// Room: a site holds at most max_ready jobs of each pool, and never more than
// all others leave free. A job goes out by the share of its priority, then by
// turns of the tenants, then of their campaigns, then by age; by the same
// shares what is parked comes into memory. A quarter of the room is kept for
// flows that have next to nothing here, so that they never wait behind what
// is parked of others. Of the connections of the process and its memory for
// contents a site has at most as much as all leave free (room.go), so that a
// site that crawls does not hold up others. Once mail of a flow is parked, new mail of it is parked
// behind it, so that nothing is overtaken for ever.
//
// The fence: a recipient is claimed by one worker under one number; whatever
// a worker does late, or twice, does not match and changes nothing. Right
// before the final dot the worker looks at what is left of its lease, on its
// own monotonic clock counted from before each renewal.
//
// # Security
//
// It sends what it is given to the addresses it is given: the resolver keeps
// it from private networks. Replies of remote hosts are bounded and stored as
// text, never executed or interpreted beyond their codes.
//
// # Diagnostics
//
// Log lines for registration, moved and lost slots, and every step that
// Postgres refused. Spans delivery.attempt, with an event for each exchange,
// and settle. Metrics: postrider.outcomes (by action, phase, class of the
// reply, provider), postrider.outcomes.lost, postrider.requests.parked,
// postrider.connections (by outcome), postrider.adaptations (by
// provider and action), postrider.transaction.duration,
// postrider.delivery.lag.
//
// # Bugs
//
// The monotonic clock of a machine that is suspended as a whole stands still,
// so a worker that wakes up may believe in its lease for up to its rest.
//
// Broken TLS of a host is found anew by each connection.
//
// A process that is stopped (SIGSTOP) cannot close its connections, and
// nothing here can: until it goes on, or the remote host drops them, that host
// may see them beside those of the next home. Nothing is sent on them: the
// lease is looked at before each transaction and before the final dot.
//
// Nor does a worker that is cut off from Postgres close a connection on which
// a host says nothing to a final dot: to break it off may make a duplicate. If
// another worker takes the slot, that host may see it beside those of the next
// home.
//
// More sites that crawl than there are connections hold all of them.
//
// Where a pull fails so that nobody knows whether it was committed, the
// worker ends its life to give back its claims; transactions in progress get
// DELIVERY_DRAIN_TIMEOUT to end.
//
// Mail that waits for a rate limit alone has no history and gets no delay
// notice before it is first tried.
//
// # See also
//
// docs/walk.md, pkg/shaping, store.Claim, store.Settle.
package delivery
